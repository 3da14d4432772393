"""What tests of distributions share."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import spatial, special, stats
from torch import Tensor


@pytest.fixture
def goodness_of_fit() -> Callable[..., float]:
    """p-value of a distribution's draws against its own density, by distances to nearest neighbours.

    The mass of the ball from a draw to the nearest of n others is exponential of mean 1 / n. Pyro's helper takes all
    distances within one sample, of which many are mutual: its p-values fall below 1e-4 for exact normals. Here few draws
    look among many others.
    """

    def p_value(q: Any, dim: int, coordinates: Callable[[Tensor], Tensor] = lambda z: z) -> float:
        with torch.no_grad():
            z = q.sample((42000,))
            density = q.log_prob(z[:2000]).double().exp().numpy()
        z = coordinates(z).double().numpy()
        distance = spatial.cKDTree(z[2000:]).query(z[:2000])[0]
        ball = distance**dim * math.pi ** (dim / 2) / special.gamma(dim / 2 + 1)
        return float(stats.kstest(40000 * density * ball, "expon").pvalue)

    return p_value
