"""The aggregate posterior, against sums over all codes, quadrature, and the linear Gaussian channel."""

import itertools
import math

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import ppl_vae as pv
from ppl_vae.criticism import aggregate as parts
from ppl_vae.criticism.aggregate import aggregate, log_normal
from ppl_vae.model.linear import PPCA

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(40, 2) @ RANDOM.randn(2, 4) + 0.5 * RANDOM.randn(40, 4)


def sure(found, exact, error):
    """Within 4.5 standard errors: 7e-6 by chance."""
    return abs(found - exact) < 4.5 * error + 1e-12


def exact_parts(log_q, log_p, add):
    """KL, information with and without the own row, of log densities (points, n) and (points,); add: over points."""
    n = log_q.shape[1]
    q = np.exp(log_q)
    inside = np.log(q.mean(1))
    others = np.log(np.maximum(q.sum(1, keepdims=True) - q, 1e-300) / (n - 1))
    kl = add(q * (log_q - log_p[:, None])).mean()
    return kl, add(q * (log_q - inside[:, None])).mean(), add(q * (log_q - others)).mean()


def check(found, kl, low, high):
    assert sure(found.kl[0], kl, found.kl[1])
    information, gap = found.information, found.gap
    assert sure(information.low, low, information.low_error) and sure(information.high, high, information.high_error)
    assert sure(gap.low, kl - high, gap.low_error) and sure(gap.high, kl - low, gap.high_error)
    assert found.information.low < found.information.high and 0 < information.low_error < 0.1


def test_codes_of_bits_by_the_sum_over_all():
    vae = pv.build(X, latent=3, hidden=(4,), prior="bernoulli", posterior="bernoulli").double()
    with torch.no_grad():
        vae.prior.logits.copy_(torch.tensor([-1.0, 0.0, 2.0]))
        vae.encoder.net[-1].weight *= 4
        codes = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3))).double()
        log_q = vae.encoder(vae.batch(X).x).log_prob(codes[:, None]).numpy()
        log_p = vae.prior().log_prob(codes).numpy()
    found = aggregate(vae, vae.batch(X))
    check(found, *exact_parts(log_q, log_p, lambda terms: terms.sum(0)))
    assert found.rows == 40


def test_one_dimension_by_quadrature():
    ppca = PPCA(1).fit(X)
    q = ppca.posterior(X)
    grid = np.linspace(-9, 9, 4001)
    log_q = stats.norm(q.mean[:, 0].numpy(), q.stddev[:, 0].numpy()).logpdf(grid[:, None])
    exact = exact_parts(log_q, stats.norm.logpdf(grid), lambda terms: np.trapezoid(terms, grid, axis=0))
    check(aggregate(ppca, ppca.batch(X), seed=3), *exact)


def test_the_bounds_hold_the_linear_gaussian_channel():
    """I = 1/2 log det(I + W'W / s^2) and no gap, of 600 rows from the model: 5 standard errors of rows and draws."""
    ppca = PPCA(2).fit(X)
    x = ppca.sample(600, seed=1)
    found = aggregate(ppca, ppca.batch(x))
    loadings = ppca.loadings.numpy()
    exact = 0.5 * np.linalg.slogdet(np.eye(2) + loadings.T @ loadings / ppca.noise_variance)[1]
    rows = math.hypot(found.information.low_error, math.sqrt(2 / 600))  # log q(z|x) / q(z) has a variance of at most k
    assert found.information.low - 5 * rows < exact < found.information.high + 5 * rows
    assert found.information.high - found.information.low < 0.5
    assert found.gap.low - 5 * found.gap.low_error < 0 < found.gap.high + 5 * found.gap.high_error
    assert found.gap.high < 0.25


def test_the_gap_is_none_at_the_fit_and_there_for_another_prior():
    """At the maximum-likelihood fit the aggregate has the prior's mean and covariance; N(0, 4 I) is 0.64 nats from it."""
    x = RANDOM.randn(500, 2) @ RANDOM.randn(2, 4) + 0.5 * RANDOM.randn(500, 4)
    ppca = PPCA(2).fit(x)
    found = aggregate(ppca, ppca.batch(x))
    assert found.gap.low < 0.01 and found.gap.high < 0.05
    ppca.prior.scale.fill_(2.0)
    wide = aggregate(ppca, ppca.batch(x)).gap
    exact = 2 * (0.5 * (0.25 - math.log(0.25) - 1))
    assert wide.low - 0.05 < exact < wide.high + 0.05


def test_a_collapsed_guide_tells_nothing():
    vae = pv.VAE(
        lambda x: dist.Normal(x.new_zeros(*x.shape[:-1], 2), 1.0).to_event(1),
        lambda z: dist.Normal(z.repeat_interleave(2, -1), 1.0).to_event(1),
        lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1),
    )
    found = aggregate(vae, vae.batch(X.astype("float32")))
    assert abs(found.kl[0]) < 1e-6 and abs(found.information.low) < 1e-6 and abs(found.information.high) < 1e-6


def test_rows_that_hardly_overlap_tell_at_most_log_n():
    x = np.eye(6).repeat(5, 0) * 50 + 0.1 * RANDOM.randn(30, 6)
    ppca = PPCA(4).fit(x)
    apart = aggregate(ppca, ppca.batch(x)).information
    assert apart.low <= math.log(30) + 1e-9 and apart.high > apart.low


def test_priors_of_rows_that_differ_have_no_gap_and_others_do():
    frame = pd.DataFrame(X, columns=list("abcd")).assign(age=RANDOM.randn(40), site=RANDOM.choice(["u", "v"], 40))
    conditional = pv.build(frame.drop(columns="site"), latent=2, hidden=(4,), prior="conditional", covariates=["age"])
    assert aggregate(conditional, conditional.batch(frame.drop(columns="site"))).gap is None
    covariates = pv.build(frame.drop(columns="site"), latent=2, hidden=(4,), covariates=["age"])
    assert aggregate(covariates, covariates.batch(frame.drop(columns="site"))).gap is not None
    classes = pv.build(frame.drop(columns="age"), latent=2, hidden=(4,), label="site")
    assert aggregate(classes, classes.batch(frame.drop(columns="age"))).gap is not None


def test_priors_that_differ_are_found_in_sorted_rows_too():
    frame = pd.DataFrame(X, columns=list("abcd")).assign(site=["u"] * 20 + ["v"] * 20)
    grouped = pv.build(frame, latent=2, hidden=(4,), group="site", prior="hierarchical")
    assert aggregate(grouped, grouped.batch(frame)).gap is None


def test_errors_where_rows_share_a_draw(monkeypatch):
    """Noise that rows of a draw share does not average out over rows: sd 1 / sqrt(400), within 4 of its errors."""
    terms = torch.from_numpy(RANDOM.randn(400, 1) + 0.1 * RANDOM.randn(400, 50))
    error = parts.mean_of(terms)[1]
    assert abs(error * 20 - 1) < 4 / 800**0.5 + 1e-3 and parts._mean(terms)[1] < 0.2 * error
    used = []
    monkeypatch.setattr(parts, "mean_of", lambda terms: used.append(1) or (0.0, 0.0))
    frame = pd.DataFrame(X, columns=list("abcd")).assign(site="u")
    grouped = pv.build(frame, latent=2, hidden=(4,), group="site", prior="hierarchical")
    aggregate(grouped, grouped.batch(frame))
    assert used


@pytest.mark.parametrize("posterior", ["full_rank", "mixture", "iaf"])
def test_every_density_is_read_at_the_draws_of_every_row(posterior):
    """The mean KL term is the one of the draws, by another way."""
    vae = pv.build(X, latent=2, hidden=(4,), posterior=posterior)
    found, drawn = aggregate(vae, vae.batch(X)), pv.draws(vae, X, 400, seed=5)
    terms = (drawn.log_q - drawn.log_prior).mean(1)
    assert sure(found.kl[0], float(terms.mean()), math.hypot(found.kl[1], float(terms.std()) / 20))


def test_a_normal_multiplied_out_is_the_normal() -> None:
    """With scales of 1e-3 beside scales of 1, as of latents that z tells much of."""
    random = torch.Generator().manual_seed(0)
    z, loc = (3 * torch.randn(n, 20, generator=random) for n in (50, 40))
    scale = 10 ** (-3 * torch.rand(40, 20, generator=random))
    expected = torch.distributions.Normal(loc.double(), scale.double()).log_prob(z[:, None].double()).sum(-1)
    torch.testing.assert_close(log_normal(z, loc.double(), scale.double()), expected, rtol=1e-9, atol=1e-6)
