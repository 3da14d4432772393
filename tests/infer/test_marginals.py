"""Bounds against log p(x) by numerical integration over z, for priors that have no closed form of it."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.infer.noise import Keyed, step_keys
from ppl_vae.infer.objectives import objective
from ppl_vae.infer.scope import isolated

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


def fitted(prior, k):
    """A model in float64 with decoder and prior fixed away from where they start, and a guide wider than its fit."""
    vae = pv.build(X, latent=k, hidden=(8,), scale=0.6, **{"prior": prior, **PRIORS[prior]}).double()
    vae.decoder.net = Bent()
    with torch.no_grad():
        for parameter in vae.prior.parameters():
            parameter += 0.4 * torch.randn_like(parameter)
    vae.prior.requires_grad_(False)
    pv.fit(vae, X, epochs=60, lr=0.03, batch_size=60, particles=4, valid=0.0, progress=False)
    with torch.no_grad():
        vae.encoder.net[-1].bias[k:] += 0.5
    return vae


def integral(vae, k, step=1):
    """log p(x) (n,) in the data's own units, by the trapezoid rule on every `step`-th point of the grid."""
    half, points = GRID[k]
    axis = torch.linspace(-half, half, points).double()[::step]
    z = torch.cartesian_prod(*[axis] * k).view(-1, k)
    with torch.no_grad():
        prior = vae.prior.marginal() if hasattr(vae.prior, "marginal") else vae.prior()
        log_prior, mean = prior.log_prob(z), Bent()(z)
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
    assert (
        np.abs(exact - integral(vae, k, 2).numpy()).max() < 4e-3
    )  # the error of the finer grid: a quarter of it or less
    iwae = pv.score(vae, X, "iwae", num_draws=2000)
    assert iwae.mcse.max() < 0.2
    assert np.all(np.abs(iwae.values - exact) < 5 * iwae.mcse + 1e-3)
    error = math.sqrt((iwae.mcse**2).sum()) / len(X)
    assert abs(iwae.values.mean() - exact.mean()) < 5 * error + (iwae.mcse**2).mean() / 2  # less the log's own bias
    elbo = pv.score(vae, X, "elbo", num_draws=2000)
    assert np.all(elbo.values < exact + 5 * elbo.mcse) and elbo.values.mean() < exact.mean()


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
