"""The distance between samples, and InfoVAE's other terms."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate

import ppl_vae as pv
from ppl_vae.infer.handlers import surroundings
from ppl_vae.infer.mmd import squared_distance
from ppl_vae.infer.noise import step_keys
from ppl_vae.infer.objectives import objective
from ppl_vae.infer.scope import isolated

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(60, 2) @ RANDOM.randn(2, 4) + 0.5 * RANDOM.randn(60, 4)
ROWS = torch.arange(60)


def test_distance_is_the_definition_over_pairs():
    a, b = torch.randn(2, 7, 3).double(), torch.randn(2, 7, 3).double() + 0.5

    def kernel(x, y):
        return 6 / (6 + float((x - y).square().sum()))

    pairs = [(i, j) for i in range(7) for j in range(7)]
    for s in range(2):
        within = sum(kernel(a[s, i], a[s, j]) + kernel(b[s, i], b[s, j]) for i, j in pairs if i != j) / 42
        across = sum(kernel(a[s, i], b[s, j]) for i, j in pairs) / 49
        assert float(squared_distance(a, b)[s]) == pytest.approx(within - 2 * across, abs=1e-12)


def test_distance_is_unbiased_at_any_number_of_rows():
    """N(0, 1) against N(1, 1) by integration over the difference's density: 4.5 standard errors, 7e-6 each."""

    def expected(mean):
        density = lambda d: math.exp(-((d - mean) ** 2) / 4) / math.sqrt(4 * math.pi)  # noqa: E731
        return integrate.quad(lambda d: density(d) * 2 / (2 + d * d), -20, 20)[0]

    exact = 2 * expected(0.0) - 2 * expected(1.0)
    noise = torch.Generator().manual_seed(0)
    for n in (2, 10):
        a, b = (torch.randn(20_000, n, 1, generator=noise).double() + mean for mean in (0, 1))
        found = squared_distance(a, b)
        assert abs(float(found.mean()) - exact) < 4.5 * float(found.std()) / math.sqrt(20_000)
        same = squared_distance(a, b - 1)
        assert abs(float(same.mean())) < 4.5 * float(same.std()) / math.sqrt(20_000) and (same < 0).any()


def test_one_row_has_no_distance():
    one = torch.zeros(2, 1, 3, requires_grad=True)
    found = squared_distance(one, torch.ones(2, 1, 3))
    assert found.tolist() == [0, 0]
    found.sum().backward()
    assert (one.grad == 0).all()


def evaluated(vae, choice):
    target = objective(choice)
    elbo = target.make(2)
    with isolated(vae), torch.no_grad(), surroundings(target, elbo, ROWS, step_keys(ROWS, 0, 0)):
        return elbo.loss(vae.model, vae.guide, vae.batch(X).x)


def test_terms_of_infovae():
    """Without a weight on the distance it is elbo, beta = 1 - alpha; its weight is alpha + lam - 1, times the rows."""
    vae = pv.build(X, latent=2, hidden=(4,)).double()
    for alpha in (0.0, 0.7, 1.0):
        without = evaluated(vae, ("mmd", {"alpha": alpha, "lam": 1 - alpha}))
        assert without == pytest.approx(evaluated(vae, ("beta", {"beta": 1 - alpha})), abs=1e-8)
        gaps = [evaluated(vae, ("mmd", {"alpha": alpha, "lam": lam})) - without for lam in (2 - alpha, 11 - alpha)]
        assert gaps[1] == pytest.approx(10 * gaps[0], rel=1e-6) and gaps[0] > 0.1


def test_the_prior_is_drawn_anew_in_each_step_by_key():
    vae = pv.build(X, latent=2, hidden=(4,)).double()
    x, elbo = vae.batch(X).x, objective("mmd").make(1)
    values = []
    for step in (0, 0, 1):
        elbo.at(ROWS, step_keys(ROWS, 0, step))
        with isolated(vae), torch.no_grad(), surroundings(objective("mmd"), elbo, ROWS, step_keys(ROWS, 0, 0)):
            elbo.at(ROWS, step_keys(ROWS, 0, step))
            values.append(elbo.loss(vae.model, vae.guide, x))
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("prior", ["normal", "mixture", "flow"])
def test_a_prior_that_is_learned_is_drawn_to_the_aggregate_posterior(prior):
    vae = pv.build(X, latent=2, hidden=(4,), prior=prior).double()
    target = objective(("mmd", {"alpha": 1.0, "lam": 1.0}))
    elbo = target.make(1)
    vae.zero_grad()
    with isolated(vae), surroundings(target, elbo, ROWS, step_keys(ROWS, 0, 0)):
        elbo.loss_and_grads(vae.model, vae.guide, vae.batch(X).x)
    assert any(p.grad is not None and p.grad.abs().max() > 1e-3 for p in vae.prior.parameters())


def test_the_aggregate_posterior_comes_nearer_to_the_prior():
    """Without the KL term, with the distance and without: on fresh draws of 60 rows, the mean of 50."""
    far = []
    for weight in (0.0, 100.0):
        vae = pv.build(X, latent=2, hidden=(16,), scale=0.5)
        choice = ("mmd", {"alpha": 1.0, "lam": weight})
        pv.fit(vae, X, objective=choice, epochs=150, lr=0.02, batch_size=60, valid=0.0, progress=False)
        z = pv.draws(vae, X, num_draws=50).z
        far.append(float(squared_distance(z, torch.randn(z.shape)).mean()))
    assert far[1] < 0.2 * far[0] and far[1] < 0.02
