"""Bounds against log p(x) by numerical integration over z, and likelihoods against one by integration over x."""

import math

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.infer.noise import Keyed, step_keys
from ppl_vae.infer.objectives import objective
from ppl_vae.infer.scope import isolated
from ppl_vae.model.families import LIKELIHOODS

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(60, 2) @ RANDOM.randn(2, 3) + 0.5 * RANDOM.randn(60, 3)
WEIGHT = torch.tensor([[1.2, 0.1], [-0.2, 1.0], [0.5, -0.6]]).double()
GRID = {1: (12.0, 4801), 2: (7.0, 421)}
"""Half width and points of each axis, by k."""
PRIORS = {
    "standard_normal": {},
    "normal": {},
    "student_t": {"df": 3.0},
    "laplace": {},
    "mixture": {"components": 3},
    "enumerated_mixture": {"components": 3},
    "vamp": {"components": 4},
    "spline": {"prior": "flow", "flow": "spline", "transforms": 2, "flow_hidden": (8,)},
    "affine": {"prior": "flow", "flow": "affine", "transforms": 2, "flow_hidden": (8,)},
}


class Bent(nn.Module):
    """A nonlinear decoder whose likelihood falls off in every direction of z, as a guide of wide normals needs."""

    def forward(self, z):
        return z @ WEIGHT[:, : z.shape[-1]].T + 0.5 * torch.tanh(2 * z[..., :1])


def fitted(prior, k, **options):
    """A model in float64 with decoder and prior fixed away from where they start, and a guide wider than its fit."""
    vae = pv.build(X, latent=k, hidden=(8,), scale=0.6, **{"prior": prior, **PRIORS[prior], **options}).double()
    vae.decoder.net = Bent()
    with torch.no_grad():
        for parameter in vae.prior.parameters():
            parameter += 0.4 * torch.randn_like(parameter)
    vae.prior.requires_grad_(False)
    pv.fit(vae, X, epochs=60, lr=0.03, batch_size=60, particles=4, valid=0.0, progress=False)
    if "posterior" not in options:
        with torch.no_grad():
            vae.encoder.net[-1].bias[k:] += 1.0
    return vae


def integral(vae, k, step=1):
    """log p(x) (n,) in the data's own units, by the trapezoid rule on every `step`-th point of the grid."""
    half, points = GRID[k]
    axis = torch.linspace(-half, half, points).double()[::step]
    z = torch.cartesian_prod(*[axis] * k).view(-1, k)
    with torch.no_grad():
        prior = vae.prior.marginal() if hasattr(vae.prior, "marginal") else vae.prior()
        log_prior, mean = prior.log_prob(z), Bent()(z)
        mass = prior.log_prob(2 * z).logsumexp(0) + k * (2 * (axis[1] - axis[0])).log()
        assert mass.abs() < 0.02  # on a wider, coarser grid: the prior is a density
        x = vae.batch(X).x
        log_lik = torch.stack([dist.Normal(mean, 0.6).log_prob(row).sum(-1) for row in x])
    # the integrand is 0 at the ends, so all weights are the same
    return (log_lik + log_prior).logsumexp(1) + k * (axis[1] - axis[0]).log() + vae.schema.log_jacobian


@pytest.mark.parametrize("k", GRID)
@pytest.mark.parametrize("prior", PRIORS)
def test_iwae_is_log_p_and_the_elbo_below(prior, k):
    """60 rows each within 5 Monte Carlo standard errors, and their mean: fails by chance at 4e-5 a prior."""
    vae = fitted(prior, k)
    exact = integral(vae, k).numpy()
    # the error of the finer grid is a quarter of this or less
    assert np.abs(exact - integral(vae, k, 2).numpy()).max() < 1e-2
    check(vae, exact)


@pytest.mark.parametrize("posterior", ["low_rank", "full_rank", "iaf", "spline_flow", "mixture"])
def test_every_posterior_weighs_to_the_same_integral(posterior):
    """As above at k = 2; flows as posteriors, with their density. Fails by chance at 4e-5 each."""
    flow = {"transforms": 2, "flow_hidden": (8,)} if posterior in ("iaf", "spline_flow") else {}
    vae = fitted("standard_normal", 2, posterior=posterior, **flow)
    check(vae, integral(vae, 2).numpy())


def check(vae, exact):
    """iwae within errors of log p(x), row by row and in the mean; elbo below."""
    iwae = pv.score(vae, X, "iwae", num_draws=2000)
    assert iwae.mcse.max() < 0.2
    assert np.all(np.abs(iwae.values - exact) < 5 * iwae.mcse + 1e-3)
    error = math.sqrt((iwae.mcse**2).sum()) / len(X)
    assert abs(iwae.values.mean() - exact.mean()) < 5 * error + (iwae.mcse**2).mean() / 2  # less the log's own bias
    elbo = pv.score(vae, X, "elbo", num_draws=2000)
    assert np.all(elbo.values < exact + 5 * elbo.mcse) and elbo.values.mean() < exact.mean()


CURVES = {
    "sphere": ("power_spherical", -1.5, lambda t: torch.stack([(2 * math.pi * t).cos(), (2 * math.pi * t).sin()], -1)),
    "dirichlet": ("logistic_normal", 1.5, lambda t: torch.stack([t, 1 - t], -1)),
    "logistic_normal": ("dirichlet", 0.0, lambda t: torch.stack([t, 1 - t], -1)),
}
"""By prior: another posterior on the same space, so that no factor of both cancels; its last raw number, that weights have a
variance (a concentration below 1/2, as (1 + cos)^concentration is 0 opposite; a scale of 2); that space as a curve of t."""


@pytest.mark.parametrize("prior", CURVES)
def test_on_the_circle_and_the_simplex_log_p_is_the_integral_along_them(prior):
    """60 rows within 5 Monte Carlo standard errors, and their mean: fails by chance at 4e-5 each."""
    posterior, raw, curve = CURVES[prior]
    options = {"concentration": 2.0} if prior == "dirichlet" else {}
    vae = pv.build(X, latent=2, hidden=(8,), scale=0.6, prior=prior, posterior=posterior, **options).double()
    vae.decoder.net = Bent()
    pv.fit(vae, X, epochs=20, lr=0.01, batch_size=60, particles=4, valid=0.0, progress=False)
    with torch.no_grad():
        vae.encoder.net[-1].weight[-1], vae.encoder.net[-1].bias[-1] = 0.0, raw
    t = (torch.arange(20_000).double() + 0.5) / 20_000  # the midpoint rule
    z = curve(t)
    density = {  # of t: uniform angles; Beta(2, 2); the logit of t is sqrt(2) times a standard normal
        "sphere": torch.ones_like(t),
        "dirichlet": 6 * t * (1 - t),
        "logistic_normal": dist.Normal(0.0, math.sqrt(2)).log_prob(t.logit()).exp() / (t * (1 - t)),
    }[prior]
    log_lik = torch.stack([dist.Normal(Bent()(z), 0.6).log_prob(row).sum(-1) for row in vae.batch(X).x])
    exact = (log_lik + density.log()).logsumexp(1) - math.log(len(t)) + vae.schema.log_jacobian
    check(vae, exact.numpy())


# ---- likelihoods, end to end: data frame, schema, build, score


ROWS = 20_001
SINGLE = [name for name in LIKELIHOODS if name not in ("low_rank_normal", "full_normal", "multinomial")]


def quadrature(name):
    """Own values of a column (ROWS,) and their weights: every value of a mass, the midpoint rule of a density.

    Reals are sinh(t) about 30, positive numbers exp(t), those of [0, 1] sigmoid(t): densities decay fast in t.
    """
    kind, t = LIKELIHOODS[name].type, np.linspace(-25, 25, ROWS)
    step = t[1] - t[0]
    values = {
        "real": lambda: (30 + np.sinh(t), step * np.cosh(t)),
        "positive": lambda: (np.exp(t), step * np.exp(t)),
        "unit": lambda: (1 / (1 + np.exp(-t)), step / (2 + 2 * np.cosh(t))),
        "angle": lambda: (t / 25 * math.pi * 0.99999, np.full(ROWS, 2 * math.pi / ROWS)),
    }
    if kind in values:
        return values[kind]()
    levels = {"boolean": [False, True], "categorical": [*"uvw"], "ordinal": [1, 2, 3, 4], "pixel": range(256)}
    levels = list(levels.get(kind, range(ROWS)))
    column = np.resize(np.array(levels), ROWS)
    if kind == "ordinal":
        column = pd.Categorical(column, levels, ordered=True)
    return column, np.arange(ROWS) < len(levels)


def training():
    """A few rows of every column, of scales and locations of their own."""
    random = np.random.RandomState(1)
    own = {
        "real": lambda: 30 + 4 * random.randn(50),
        "positive": lambda: 7 * np.exp(0.7 * random.randn(50)),
        "unit": lambda: random.beta(2, 3, 50),
        "angle": lambda: random.vonmises(1, 2, 50),
        "count": lambda: random.poisson(4, 50),
        "boolean": lambda: np.arange(50) % 3 == 0,
        "categorical": lambda: np.resize([*"uvw"], 50),
        "ordinal": lambda: pd.Categorical(np.resize([1, 2, 3, 4], 50), ordered=True),
        "pixel": lambda: random.randint(0, 256, 50),
    }
    return pd.DataFrame({name: own[LIKELIHOODS[name].type]() for name in SINGLE})


@pytest.mark.parametrize("standardize", ["feature", "none"])
def test_every_likelihood_sums_or_integrates_to_one_in_the_datas_own_units(standardize):
    """Of a decoder that does not look at z, so that a column's score is the log density of its value."""
    data = training()
    likelihood = {name: name for name in SINGLE}
    vae = pv.build(data, likelihood=likelihood, latent=1, hidden=(4,), standardize=standardize).double()
    with torch.no_grad():
        vae.decoder.net[0].weight.zero_()
        vae.decoder.net[0].bias += 0.3 * torch.randn(4)
    grid = {name: quadrature(name) for name in SINGLE}
    frame = pd.DataFrame({name: values for name, (values, _) in grid.items()})
    scores = pv.score(vae, frame, "expected_log_likelihood", num_draws=1, per_feature=True)
    assert np.allclose(scores.per_feature.sum(1), scores.values)
    for j, name in enumerate(SINGLE):
        assert np.exp(scores.per_feature[:, j]) @ grid[name][1] == pytest.approx(1.0, abs=2e-3), name


@pytest.mark.parametrize("likelihood", ["low_rank_normal", "full_normal"])
def test_joint_normals_integrate_to_one_in_the_datas_own_units(likelihood):
    random = np.random.RandomState(2)
    data = random.randn(50, 2) @ [[3.0, 1.0], [0.0, 0.2]] + [10, -5]
    vae = pv.build(data, likelihood=likelihood, latent=1, hidden=(4,)).double()
    with torch.no_grad():
        vae.decoder.net[0].weight.zero_()
        vae.decoder.net[0].bias += 1.0
    axes = [np.linspace(m - 8 * s, m + 8 * s, 161) for m, s in zip(data.mean(0), data.std(0))]
    points = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
    density = np.exp(pv.score(vae, points, "expected_log_likelihood", num_draws=1).values)
    total = density.sum() * np.prod([axis[1] - axis[0] for axis in axes])
    assert total == pytest.approx(1.0, abs=1e-3)


def pair():
    """A marginalised and an enumerated mixture with the same parameters."""
    vaes = []
    for prior in ("mixture", "enumerated_mixture"):
        vae = pv.build(X, latent=2, hidden=(8,), prior=prior, components=4).double()
        with torch.no_grad():
            vae.prior.logits.copy_(torch.tensor([0.3, -1.0, 0.5, 0.0]))
        vaes.append(vae)
    assert all(torch.equal(a, b) for a, b in zip(*(vae.parameters() for vae in vaes)))
    return vaes


@pytest.mark.parametrize("particles", [1, 3])
def test_enumerated_mixture_has_the_loss_and_gradient_of_the_marginalised(particles):
    losses, gradients = [], []
    for vae, which in zip(pair(), ("make", "enumerated")):
        elbo = getattr(objective("elbo"), which)(particles)
        with isolated(vae), Keyed(step_keys(torch.arange(60), 0, 0)):
            losses.append(elbo.loss_and_grads(vae.model, vae.guide, vae.batch(X).x))
        gradients.append(torch.cat([p.grad.flatten() for p in vae.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    assert torch.allclose(*gradients, atol=1e-8) and gradients[0].abs().max() > 1


def test_enumerated_mixture_fits_as_the_marginalised():
    histories = [pv.fit(vae, X, epochs=5, lr=1e-2, batch_size=20, progress=False) for vae in pair()]
    for name in ("bound", "objective", "valid_bound"):
        assert np.allclose(histories[0][name], histories[1][name], atol=1e-5)


def test_enumerated_mixture_draws_and_weighs_as_the_marginalised():
    marginal, enumerated = pair()
    one, other = pv.draws(marginal, X, num_draws=7), pv.draws(enumerated, X, num_draws=7)
    assert torch.equal(one.z, other.z)
    for density in ("log_prior", "log_lik", "log_q", "log_weight"):
        assert torch.allclose(getattr(one, density), getattr(other, density), atol=1e-5)
    prior = enumerated.prior
    scale = nn.functional.softplus(prior.raw) + 1e-3
    joint = prior.logits.log_softmax(0) + dist.Normal(prior.loc, scale).log_prob(one.z[..., None, :]).sum(-1)
    assert torch.allclose(other.sites["component"], joint.softmax(-1), atol=1e-5)
    assert torch.allclose(other.sites["component"], marginal.prior.responsibilities(one.z), atol=1e-5)
    assert other.sites["component"].shape == (7, 60, 4)
