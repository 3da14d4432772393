"""Bounds as functions of log weights, by hand and by numerical integration."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from ppl_vae.infer.bounds import BOUNDS, grouped, iwae, renyi

LOG_WEIGHT = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double()


def test_bounds_by_hand():
    log_weight = torch.tensor([[0.0, 1.0], [math.log(3.0), 1.0]])
    assert torch.allclose(BOUNDS["elbo"](log_weight), torch.tensor([math.log(3) / 2, 1.0]))
    assert torch.allclose(BOUNDS["iwae"](log_weight), torch.tensor([math.log(2.0), 1.0]))
    squares = (1 + 9) / 2, (1 + 1 / 3) / 2
    assert torch.allclose(renyi(log_weight, -1.0), torch.tensor([math.log(squares[0]) / 2, 1.0]))
    assert torch.allclose(renyi(log_weight, 2.0), torch.tensor([-math.log(squares[1]), 1.0]))


def test_renyis_bound_is_iwae_at_0_falls_with_alpha_and_tends_to_the_elbo_at_1():
    assert torch.equal(renyi(LOG_WEIGHT, 0.0), iwae(LOG_WEIGHT))
    values = torch.stack([renyi(LOG_WEIGHT, alpha) for alpha in (-5.0, -1.0, 0.0, 0.5, 0.9, 1.1, 2.0)])
    assert (values.diff(dim=0) < 0).all()
    for alpha in (1 - 1e-6, 1 + 1e-6):
        assert torch.allclose(renyi(LOG_WEIGHT, alpha), LOG_WEIGHT.mean(0), atol=1e-5)
    assert torch.allclose(renyi(LOG_WEIGHT, -500.0), LOG_WEIGHT.amax(0), atol=0.01)


def test_groups_are_averaged():
    by_hand = (iwae(LOG_WEIGHT[:3]) + iwae(LOG_WEIGHT[3:])) / 2
    assert torch.allclose(grouped(iwae, 2)(LOG_WEIGHT), by_hand)
    assert torch.equal(grouped(iwae, 1)(LOG_WEIGHT), iwae(LOG_WEIGHT))
    assert torch.allclose(grouped(iwae, 6)(LOG_WEIGHT), LOG_WEIGHT.mean(0))


@pytest.mark.parametrize("alpha", [0.5, 0.0, -0.4])
def test_many_draws_give_renyis_divergence(alpha):
    """z ~ N(0, 1), x | z ~ N(z, 0.7^2), q = N(0.6, 0.8^2), x = 1: against the integral, 4.5 standard errors, 7e-6."""
    q, prior, likelihood = stats.norm(0.6, 0.8), stats.norm(), stats.norm(1.0, 0.7)

    def log_weight(z):
        return prior.logpdf(z) + likelihood.logpdf(z) - q.logpdf(z)

    exact = math.log(integrate.quad(lambda z: q.pdf(z) * math.exp((1 - alpha) * log_weight(z)), -8, 8)[0]) / (1 - alpha)
    drawn = torch.as_tensor(log_weight(q.rvs(200_000, random_state=np.random.RandomState(0))))
    powers = ((1 - alpha) * drawn).exp()
    error = float(powers.std() / powers.mean()) / math.sqrt(len(drawn)) / (1 - alpha)
    assert abs(float(renyi(drawn[:, None], alpha)) - exact) < 4.5 * error and error < 0.01
