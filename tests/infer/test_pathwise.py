"""Gradients along the draws alone: none at the posterior, their bias, and what they leave of the noise."""

import numpy as np
import pytest
import torch

import ppl_vae as pv
from ppl_vae.infer.gradients import gradients

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(300, 2) @ RANDOM.randn(2, 4) + 0.5 * RANDOM.randn(300, 4)
LANDING = "sticking_the_landing"


@pytest.fixture
def ppca():
    return pv.PPCA(2).fit(X)


@pytest.fixture
def moved(ppca):
    """A guide that is not exact."""
    with torch.no_grad():
        ppca.encoder.linear.weight.add_(0.15)
        ppca.encoder.scale.mul_(1.4)
    return ppca


@pytest.mark.parametrize("particles", [1, 5])
@pytest.mark.parametrize("name", [LANDING, "dreg", (LANDING, {"bound": "iwae"})], ids=str)
def test_at_the_exact_posterior_the_guide_has_no_gradient_in_any_draw(ppca, name, particles):
    """The total derivative of elbo and iwae is as noisy as ever there (Roeder et al. 2017)."""
    landed = gradients(ppca, X, name, particles=particles, num_repeats=20)
    noisy = gradients(ppca, X, "elbo", particles=particles, num_repeats=20)
    key = "encoder.linear.weight"
    assert landed.mean[key].abs().max() < 1e-12 and landed.variance[key].max() < 1e-24
    assert noisy.variance[key].min() > 1e-4 / particles
    decoder = "decoder.linear.weight"
    assert torch.allclose(landed.mean[decoder], noisy.mean[decoder], atol=0.5) and landed.variance[decoder].min() > 1e-6


def z_scores(vae, name, own, particles, num_repeats):
    """Differences of mean gradients from those of the objective's own pathwise gradient, in standard errors."""
    found = gradients(vae, X, name, particles=particles, num_repeats=num_repeats, seed=1)
    plain = gradients(vae, X, own, particles=particles, num_repeats=num_repeats, seed=2)
    return {
        key: (found.mean[key] - plain.mean[key]) / torch.hypot(found.error[key], plain.error[key])
        for key in ("encoder.linear.weight", "decoder.linear.weight")
    }


@pytest.mark.parametrize(
    ("name", "own", "particles"),
    [
        (LANDING, "elbo", 1),
        (LANDING, "elbo", 4),
        ("dreg", "iwae", 1),
        ("dreg", "iwae", 6),
        ((LANDING, {"bound": "iwae"}), "iwae", 1),
    ],
    ids=str,
)
def test_mean_gradients_are_those_of_the_objective(moved, name, own, particles):
    """16 weights, each within 4.5 standard errors of 60 repeats: fails by chance at 3e-4."""
    for z in z_scores(moved, name, own, particles, 60).values():
        assert z.abs().max() < 4.5


def test_the_score_dropped_from_iwae_leaves_a_bias(moved):
    z = z_scores(moved, (LANDING, {"bound": "iwae"}), "iwae", 6, 60)
    assert z["encoder.linear.weight"].abs().max() > 6
    assert z["decoder.linear.weight"].abs().max() < 4.5


@pytest.mark.parametrize(
    ("posterior", "name"),
    [("full_rank", "dreg"), ("spline_flow", LANDING), ("spline_flow", "dreg"), ("iaf", LANDING), ("mixture", LANDING)],
)
def test_any_family_with_a_density(posterior, name):
    """Flows keep the base value of their last draw: at a copy of it they must not. Both bounds are the ELBO's with one
    particle; at most 500 weights, each within 6 standard errors of 30 repeats: fails by chance at 1e-4."""
    options = {"transforms": 2, "flow_hidden": (4,)} if posterior in ("spline_flow", "iaf") else {}
    vae = pv.build(X, latent=2, hidden=(4,), posterior=posterior, scale=0.5, **options).double()
    with torch.no_grad():
        for p in vae.encoder.parameters():
            p += 0.2 * torch.randn_like(p)
    found, plain = (gradients(vae, X, which, num_repeats=30, seed=seed) for seed, which in enumerate((name, "elbo")))
    for key, mean in plain.mean.items():
        error = torch.hypot(found.error[key], plain.error[key])
        assert torch.all((found.mean[key] - mean).abs() < 6 * error + 1e-9)
    assert plain.parts["encoder"].snr > 0.4  # hence mean gradients of more than two errors


def test_a_guide_with_two_sites_is_refused_by_name():
    import pyro
    import pyro.distributions as dist

    class Two(torch.nn.Module):
        def forward(self, x):
            u = pyro.sample("u", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            return dist.Normal(x[..., :1] + 0 * u, 1.0).to_event(1)

    class Prior(torch.nn.Module):
        def forward(self):
            pyro.sample("u", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            return dist.Normal(torch.zeros(1), 1.0).to_event(1)

    vae = pv.VAE(Two(), lambda z: dist.Normal(z.expand(*z.shape[:-1], 4), 1.0).to_event(1), Prior())
    vae.register_parameter("unused", torch.nn.Parameter(torch.zeros(1)))
    for name in (LANDING, "dreg"):
        with pytest.raises(pv.OptionError, match="a guide with the sites 'u', 'z', expected one site a row"):
            gradients(vae, X.astype("float32"), name, num_repeats=20)
