"""Free bits: KL terms by dimension, and where the floor holds."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.infer.free_bits import by_dimension
from ppl_vae.infer.handlers import surroundings
from ppl_vae.infer.noise import step_keys
from ppl_vae.infer.objectives import objective
from ppl_vae.infer.scope import isolated

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(30, 2) @ RANDOM.randn(2, 4) + 0.5 * RANDOM.randn(30, 4)
ROWS = torch.arange(30)


def evaluated(vae, choice, particles=2):
    target = objective(choice)
    elbo = target.make(particles)
    vae.zero_grad(set_to_none=True)
    with isolated(vae), surroundings(target, elbo, ROWS, step_keys(ROWS, 0, 0)):
        loss = elbo.loss_and_grads(vae.model, vae.guide, vae.batch(X).x)
    return loss, [p.grad for p in vae.parameters()]


def test_without_a_floor_it_is_the_analytic_bound():
    vae = pv.build(X, latent=3, hidden=(4,)).double()
    free, plain = evaluated(vae, ("free_bits", {"bits": 0.0})), evaluated(vae, "analytic_kl")
    assert free[0] == pytest.approx(plain[0], abs=1e-9)
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(free[1], plain[1]))


def test_under_a_floor_that_no_dimension_reaches_nothing_draws_the_guide_to_the_prior():
    vae = pv.build(X, latent=3, hidden=(4,)).double()
    (high, gradient), (zero, _) = evaluated(vae, ("free_bits", {"bits": 50.0})), evaluated(vae, "elbo")
    assert high > zero + 30 * 3 * 40
    log_lik, _ = evaluated(vae, ("beta", {"beta": 0.0}))
    assert high == pytest.approx(log_lik + 30 * 3 * 50, abs=1e-8)
    assert all(torch.allclose(a, b) for a, b in zip(gradient, evaluated(vae, ("beta", {"beta": 0.0}))[1]))


def site(fn, value):
    return {"fn": fn, "value": value}


def test_closed_forms_draws_and_shapes():
    loc, scale = torch.randn(5, 2), torch.rand(5, 2) + 0.5
    q, z = dist.Normal(loc, scale).to_event(1).expand([3, 5]), torch.randn(3, 5, 2)
    normal = dist.Normal(torch.zeros(2), 2.0).to_event(1)
    exact = by_dimension("z", site(q, z), normal)
    by_hand = torch.log(2 / scale) + (scale**2 + loc**2) / 8 - 0.5
    assert exact.shape == (3, 5, 2) and torch.allclose(exact, by_hand.expand(3, 5, 2), atol=1e-6)
    student = dist.StudentT(4.0, torch.zeros(2), 1.0).to_event(1)  # no closed form
    drawn = by_dimension("z", site(q, z), student)
    difference = dist.Normal(loc, scale).log_prob(z) - dist.StudentT(4.0, 0.0, 1.0).log_prob(z)
    assert torch.allclose(drawn, difference)


@pytest.mark.parametrize(
    ("options", "family"),
    [
        ({"posterior": "full_rank"}, "MultivariateNormal"),
        ({"posterior": "iaf"}, "FlowDistribution"),
        ({"prior": "mixture", "components": 3}, "Mixture"),
    ],
)
def test_dimensions_that_depend_on_each_other_are_refused(options, family):
    vae = pv.build(X, latent=2, hidden=(4,), **options)
    with pytest.raises(pv.ProgramError, match=f"site 'z': got {family}, whose dimensions depend"):
        pv.fit(vae, X, objective="free_bits", progress=False)


def test_a_dimension_that_would_collapse_keeps_about_its_floor():
    """Noise has nothing to tell: plain training gives every dimension up, free bits stop at the floor."""
    noise = np.random.RandomState(0).randn(200, 3)
    kls = {}
    for name in ("elbo", ("free_bits", {"bits": 0.5})):
        vae = pv.build(noise, latent=2, hidden=(), scale=1.0)
        history = pv.fit(vae, noise, objective=name, epochs=80, lr=0.05, batch_size=200, valid=0.0, progress=False)
        kls[str(name)[:4]] = history["kl"][-1]
    assert kls["elbo"] < 0.3 and 0.8 < kls["('fr"] < 1.2
