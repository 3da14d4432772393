"""What each dimension carries, against closed forms and quadrature."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import ppl_vae as pv
from ppl_vae.criticism.latent import activity, kl_by_dimension, marginals, prior_variance
from ppl_vae.model.linear import PPCA

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(80, 3) @ RANDOM.randn(3, 5) + 0.5 * RANDOM.randn(80, 5)


def test_kl_of_normals_is_its_closed_form_without_error():
    ppca = PPCA(3).fit(X)
    q = ppca.posterior(X)
    loc, scale = q.mean.numpy(), q.stddev.numpy()
    by_hand = 0.5 * (loc**2 + scale**2 - np.log(scale**2) - 1).mean(0)
    found = kl_by_dimension(ppca, ppca.batch(X))
    assert np.allclose(found.values, by_hand) and found.errors.max() < 1e-12
    assert float(found.values.sum()) == pytest.approx(
        -np.mean(pv.score(ppca, X, "elbo", 4000).values - log_lik(ppca)), abs=0.02
    )


def log_lik(ppca):
    return pv.score(ppca, X, "expected_log_likelihood", 4000).values


def test_kl_of_bits_is_its_sum():
    vae = pv.build(X, latent=3, hidden=(4,), prior="bernoulli", posterior="bernoulli").double()
    with torch.no_grad():
        vae.prior.logits.copy_(torch.tensor([-1.0, 0.0, 2.0]))
        q, p = torch.sigmoid(vae.encoder.net(vae.batch(X).x)).numpy(), torch.sigmoid(vae.prior.logits).numpy()
    by_hand = (q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))).mean(0)
    assert np.allclose(kl_by_dimension(vae, vae.batch(X)).values, by_hand, rtol=1e-5)


def test_kl_without_a_formula_is_within_its_error_of_quadrature():
    """Three dimensions within 5 standard errors, of 16 draws: Student's t with 15 degrees, 2e-4 each."""
    vae = pv.build(X, latent=3, hidden=(4,), prior="student_t", df=3.0).double()
    with torch.no_grad():
        q = vae.encoder(vae.batch(X).x).base_dist
    grid = np.linspace(-30, 30, 6001)[:, None, None]
    log_q = stats.norm(q.loc.numpy(), q.scale.numpy()).logpdf(grid)
    terms = np.exp(log_q) * (log_q - stats.t(3).logpdf(grid))
    exact = np.trapezoid(terms, grid[:, 0, 0], axis=0).mean(0)
    found = kl_by_dimension(vae, vae.batch(X))
    assert (found.errors > 0).all() and np.all(np.abs(found.values.numpy() - exact) < 5 * found.errors.numpy())


@pytest.mark.parametrize("posterior", ["full_rank", "low_rank"])
def test_correlated_dimensions_have_the_kl_of_their_marginals(posterior):
    vae = pv.build(X, latent=3, hidden=(4,), posterior=posterior).double()
    with torch.no_grad():
        q = vae.encoder(vae.batch(X).x)
        marginal = stats.norm(q.mean.numpy(), q.variance.sqrt().numpy())
        total = torch.distributions.kl_divergence(
            torch.distributions.MultivariateNormal(q.mean, q.covariance_matrix),
            torch.distributions.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double()),
        ).mean()
    by_hand = 0.5 * (marginal.mean() ** 2 + marginal.var() - np.log(marginal.var()) - 1).mean(0)
    found = kl_by_dimension(vae, vae.batch(X)).values
    assert np.allclose(found, by_hand) and found.sum() < total


@pytest.mark.parametrize("options", [{"posterior": "iaf"}, {"prior": "mixture"}, {"prior": "enumerated_mixture"}])
def test_dimensions_without_distributions_of_their_own_have_none(options):
    vae = pv.build(X, latent=2, hidden=(4,), **options)
    assert kl_by_dimension(vae, vae.batch(X)) is None
    assert marginals(dist.OneHotCategorical(torch.ones(3))) is None


def test_activity_is_without_bias_at_few_draws():
    """Means of 10 draws scatter by a tenth of the posterior's variance more: 20 times the limit of an active unit."""
    n, draws, true = 4000, 10, 0.005
    loc, scale = np.sqrt(true) * RANDOM.randn(n, 1), np.sqrt(2.0)
    z = torch.as_tensor(loc + scale * RANDOM.randn(draws, n, 1))
    found = activity(z.mean(0), z.var(0), draws, torch.ones(1))
    assert float(z.mean(0).var()) > 0.1
    assert abs(float(found.values) - loc.var()) < 4 * float(found.errors) < 0.05
    again = [
        activity(*moments(loc + scale * RANDOM.randn(draws, n, 1)), draws, torch.ones(1)).values for _ in range(200)
    ]
    # 200 repeats: the standard deviation is known to a twentieth
    assert np.std(again) == pytest.approx(float(found.errors), rel=0.25)
    assert abs(np.mean(again) - loc.var()) < 4 * np.std(again) / np.sqrt(200)


def moments(z):
    return torch.as_tensor(z.mean(0)), torch.as_tensor(z.var(0, ddof=1))


def test_activity_is_in_units_of_the_prior():
    """At the fit of pPCA the mean of dimension j has variance 1 - sigma_j^2 over its own rows (divisor n)."""
    ppca = PPCA(3).fit(X)
    drawn = pv.draws(ppca, X, 2000)
    exact = (1 - ppca.encoder.scale**2) * 80 / 79
    for unit in (1.0, 4.0):
        found = activity(drawn.z.mean(0), drawn.z.var(0), 2000, torch.full((3,), unit))
        assert torch.all((found.values * unit - exact).abs() < 5 * found.errors * unit)


def test_the_priors_variance():
    """By formula, or from 4096 draws: 2 % each, 5 of them here."""
    for options, exact in (
        ({}, 1.0),
        ({"prior": "laplace"}, 2.0),
        ({"prior": "student_t", "df": 4.0}, 2.0),
        ({"prior": "bernoulli", "posterior": "bernoulli"}, 0.25),
    ):
        vae = pv.build(X, latent=2, hidden=(4,), **options)
        assert torch.allclose(prior_variance(vae, vae.batch(X)), torch.full((2,), exact).double())
    sphere = pv.build(X, latent=2, hidden=(4,), prior="sphere", posterior="power_spherical")
    assert prior_variance(sphere, sphere.batch(X)).numpy() == pytest.approx([0.5, 0.5], rel=0.1)
    mixture = pv.build(X, latent=2, hidden=(4,), prior="mixture")
    loc, scale = mixture.prior.loc.detach(), torch.nn.functional.softplus(mixture.prior.raw.detach())
    exact = (scale**2).mean(0) + loc.var(0, correction=0)
    assert prior_variance(mixture, mixture.batch(X)).numpy() == pytest.approx(exact.numpy(), rel=0.1)
