"""Approximation and amortisation gap against the closed forms of a linear Gaussian model whose posterior is correlated."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.criticism.gaps import gaps

WEIGHTS = torch.tensor([[1.0, 0.8], [0.5, 1.0], [-0.6, -0.7]]).double()
NOISE = 1.0
PRECISION = torch.eye(2).double() + WEIGHTS.T @ WEIGHTS / NOISE**2
X = np.random.RandomState(0).randn(12, 3)


def model(shift=0.0, stretch=1.0):
    """Mean-field q about the exact mean, each scale `stretch` times the best, moved by `shift` of it."""
    best = PRECISION.diagonal() ** -0.5

    def encoder(x):
        mean = x @ WEIGHTS @ torch.linalg.inv(PRECISION) / NOISE**2
        return dist.Normal(mean + shift * best, stretch * best).to_event(1)

    vae = pv.VAE(
        encoder,
        lambda z: dist.Normal(z @ WEIGHTS.T, NOISE).to_event(1),
        lambda: dist.Normal(torch.zeros(2).double(), 1.0).to_event(1),
    )
    vae.register_buffer("like", WEIGHTS)
    return vae


def exact(shift=0.0, stretch=1.0):
    """1/2 (sum log M_jj - log det M), and 1/2 (d'Md + k (s^2 - 1 - log s^2)) for q* moved by d and stretched by s."""
    approximation = 0.5 * (PRECISION.diagonal().log().sum() - torch.logdet(PRECISION))
    d = shift * PRECISION.diagonal() ** -0.5
    amortization = 0.5 * (d @ PRECISION @ d + 2 * (stretch**2 - 1 - 2 * np.log(stretch)))
    return float(approximation), float(amortization)


@pytest.mark.parametrize("off", [{}, {"shift": 0.8}, {"stretch": 1.6}])
def test_gaps_of_twelve_rows(off):
    """Within 4.5 standard errors and what the search leaves, 0.01 nats: 2e-4 by chance for 24 numbers."""
    found = gaps(model(**off), X, num_draws=3000, refine={"steps": 200})
    for got, error, true in zip(found[:2], found[2:4], exact(**off)):
        assert np.all(np.abs(got - true) < 4.5 * error + 0.01)
    assert 0 < np.median(found.approximation_error) < 0.06 and exact()[0] > 0.2
    assert np.allclose(found.approximation + found.amortization, found.evidence.log_p - elbo(model(**off)))


def elbo(vae):
    return pv.score(vae, X, "elbo", 3000).values


def test_a_flow_closes_the_approximation_gap():
    found = gaps(model(), X[:2], "flow", num_draws=2000, refine={"steps": 300})
    assert np.all(np.abs(found.approximation) < 0.03 + 4.5 * found.approximation_error)
    assert np.all(found.amortization > exact()[0] - 0.05)


def test_options_reach_the_search_and_the_evidence():
    short = gaps(model(shift=0.8), X[:4], num_draws=4000, refine={"steps": 1}, estimate={"num_draws": 500})
    assert np.all(short.amortization < exact(shift=0.8)[1] - 0.2) and short.evidence.num_draws == 500
    with pytest.raises(pv.OptionError, match="stepz"):
        gaps(model(), X[:4], refine={"stepz": 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hmc"}, "method: got 'hmc', expected one of 'amortized', 'svi', 'flow', 'laplace'"),
        ({"method": "sir"}, "method: got 'sir'"),
        ({"method": "nuts"}, "method: got 'nuts'"),
        ({"refine": {"num_draws": 3}}, r"got the options \['num_draws'\] with 'svi'"),
        (
            {"estimate": {"seed": 3}},
            r"estimate: got the options \['seed'\], expected some of \['leapfrogs', 'num_draws'",
        ),
        ({"num_draws": 1}, "num_draws: got 1"),
    ],
)
def test_what_has_no_bound_is_refused_before_any_work(options, message, monkeypatch):
    monkeypatch.setattr("ppl_vae.criticism.gaps.log_evidence", None)
    with pytest.raises(pv.OptionError, match=message):
        gaps(model(), X[:2], **options)


def test_printed_gaps_are_means_errors_and_a_verdict():
    found = gaps(model(), X, "amortized", num_draws=1000)
    mean, error = found.approximation.mean(), found.approximation_error.mean()
    assert repr(found).startswith(f"Gaps(12 rows; approximation mean {mean:.4f} (mean mcse {error:.4f}), amortization")
    assert repr(found).endswith(f"{found.evidence.verdict})") and "array" not in repr(found)
    assert isinstance(found, tuple) and len(found) == 5
