"""The logistic-normal distribution on the simplex, in isometric log-ratio coordinates."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Transform, constraints


def contrasts(k: int, like: Tensor) -> Tensor:
    """An orthonormal basis (k, k - 1) of the vectors that sum to 0, Helmert's: each part against those before."""
    rows = torch.arange(1, k, dtype=like.dtype, device=like.device)
    below = torch.arange(k, device=like.device)[:, None] < rows
    basis = torch.where(below, 1.0, 0.0).to(like)
    basis[1:] -= torch.diag(rows)
    return basis / (rows * (rows + 1)).sqrt()


class LogRatio(Transform):
    """y (..., k - 1) to softmax(V y) on the simplex of k parts; V the contrasts. The inverse is V' log(theta).

    The isometric log-ratio of Egozcue et al. (2003): unlike stick-breaking it treats all parts alike. Densities on the
    simplex are against its first k - 1 coordinates, as those of torch's `Dirichlet` and `LogisticNormal`.
    """

    domain = constraints.real_vector
    codomain = constraints.simplex
    bijective = True

    def __init__(self, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)  # the last draw's coordinates are kept: log(theta) may underflow

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, LogRatio)

    def with_cache(self, cache_size: int = 1) -> "LogRatio":
        return LogRatio(cache_size)

    def _call(self, x: Tensor) -> Tensor:
        return (x @ contrasts(x.shape[-1] + 1, x).T).softmax(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        return y.clamp(min=torch.finfo(y.dtype).tiny).log() @ contrasts(y.shape[-1], y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        k = y.shape[-1]
        return (x @ contrasts(k, x).T).log_softmax(-1).sum(-1) + 0.5 * math.log(k)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] - 1))


def logistic_normal(loc: Tensor, scale: Tensor) -> dist.Distribution:
    """softmax(V y), y ~ N(loc, diag(scale^2)) with loc and scale (..., k - 1); event (k,), on the simplex."""
    return dist.TransformedDistribution(dist.Normal(loc, scale).to_event(1), [LogRatio()])
