"""The hierarchical prior under inference: sites that all rows share, unseen groups, partial pooling."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import distributions as td
from torch.nn.functional import softplus

import ppl_vae as pv

RANDOM = np.random.RandomState(0)
SIZES = np.array([2] * 6 + [40] * 6)
GROUP = np.repeat(np.arange(12), SIZES)
WEIGHT, NOISE = np.array([1.0, -0.75, 0.5]), 0.25
EFFECTS = 0.5 + 0.8 * RANDOM.randn(12)
Z = EFFECTS[GROUP] + RANDOM.randn(len(GROUP))
X = Z[:, None] * WEIGHT + NOISE * RANDOM.randn(len(GROUP), 3)


def table(rows=slice(None), group=None):
    names = np.array([f"g{code:02}" for code in GROUP]) if group is None else np.full(len(X), group)
    return pd.DataFrame(X, columns=list("abc")).assign(group=names)[rows]


@pytest.fixture
def vae():
    """The decoder at the truth and frozen; the guide of the shared sites away from where it starts."""
    options = {"latent": 1, "hidden": (), "scale": NOISE, "standardize": "none"}
    vae = pv.build(table(), prior="hierarchical", group="group", **options).double()
    with torch.no_grad():
        vae.decoder.net[0].weight.copy_(torch.as_tensor(WEIGHT)[:, None])
        vae.decoder.net[0].bias.zero_()
        for parameter in vae.encoder.shared.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    vae.decoder.requires_grad_(False)
    return vae


def kl_of_shared(vae):
    """KL(q(w) || p(w)) of location, spread and offsets in closed form; the guide of spread is log-normal."""
    guide = vae.encoder.shared
    q = {name: td.Normal(guide.loc[name], softplus(guide.raw[name]) + 1e-3) for name in guide.loc}
    kl = sum(td.kl_divergence(q[name], td.Normal(0.0, 1.0)).sum() for name in ("location", "offsets"))
    loc, scale = q["spread"].loc, q["spread"].scale
    square = (2 * loc + 2 * scale**2).exp()
    entropy = loc + scale.log() + 0.5 * math.log(2 * math.pi * math.e)
    kl = kl - entropy.sum() + 0.5 * (square - math.log(2 / math.pi)).sum()
    return float(kl.detach())


@pytest.mark.parametrize("batch_size", [252, 100, 9])
def test_an_epoch_has_the_kl_of_shared_sites_once(vae, batch_size):
    """Mean of 30 within 5 of its standard errors: fails by chance at 3e-5 each."""
    options = {"epochs": 1, "lr": 0.0, "valid": 0.0, "batch_size": batch_size, "particles": 20, "progress": False}
    found = []
    for seed in range(30):
        history = pv.fit(vae, table(), seed=seed, **options)
        found.append(len(X) * (history["bound"][-1] - history["objective"][-1]))  # the bound is of rows, given w
    assert abs(np.mean(found) - kl_of_shared(vae)) < 5 * np.std(found, ddof=1) / math.sqrt(30)
    assert np.std(found, ddof=1) / math.sqrt(30) < 0.02 * kl_of_shared(vae)


def test_weights_are_of_rows_given_the_shared_sites(vae):
    drawn = pv.draws(vae, table(), num_draws=5)
    location, spread = (drawn.shared[name].view(5, 1) for name in ("location", "spread"))
    effects = location + spread * drawn.shared["offsets"].view(5, 12)
    z = drawn.z[..., 0]
    log_prior = td.Normal(effects[:, GROUP], 1.0).log_prob(z)
    loc, raw = vae.encoder.net(torch.as_tensor(X)).T
    log_q = td.Normal(loc, softplus(raw) + 1e-3).log_prob(z)
    log_lik = td.Normal(drawn.z * torch.as_tensor(WEIGHT), NOISE).log_prob(torch.as_tensor(X)).sum(-1)
    assert torch.allclose(drawn.log_prior, log_prior) and torch.allclose(drawn.log_q, log_q)
    assert torch.allclose(drawn.log_weight, log_lik + log_prior - log_q)


@pytest.mark.parametrize("rows", [slice(7, 8), slice(100, None, -1), slice(240, None)])
def test_a_rows_score_and_draws_do_not_depend_on_its_batch_mates(vae, rows):
    together, alone = (pv.draws(vae, part, num_draws=4) for part in (table(), table(rows)))
    assert torch.allclose(together.z[:, rows] if rows.step != -1 else together.z[:, :101].flip(1), alone.z, rtol=1e-9)
    for name, values in together.shared.items():
        assert torch.equal(values, alone.shared[name])
    scores = [pv.score(vae, part, "iwae", num_draws=16).values for part in (table(), table(rows))]
    assert np.allclose(scores[0][rows], scores[1], rtol=1e-9)


def test_an_unseen_group_has_the_population_integrated_over_a_new_effect(vae):
    """Against 100,000 new effects for each of 3 draws of hyperparameters and 252 rows, within 5.5 standard errors: 3e-5."""
    drawn = pv.draws(vae, table(group="elsewhere"), num_draws=3)
    assert set(vae.batch(table(group="elsewhere")).group.tolist()) == {-1}
    for s in range(3):
        location, spread, z = drawn.shared["location"][s].item(), drawn.shared["spread"][s].item(), drawn.z[s]
        effects = location + spread * torch.randn(100_000).double()
        density = td.Normal(effects, 1.0).log_prob(z).exp()
        error = density.std(1) / math.sqrt(100_000) / density.mean(1)
        assert torch.all((density.mean(1).log() - drawn.log_prior[s]).abs() < 5.5 * error)
        marginal = td.Normal(location, math.sqrt(1 + spread**2)).log_prob(z[:, 0])
        assert torch.allclose(marginal, drawn.log_prior[s])


def test_a_missing_group_is_an_unseen_one(vae):
    frame = table()
    frame.loc[3, "group"] = None
    assert vae.batch(frame).group[3] == -1
    unseen, missing = (pv.draws(vae, part, num_draws=3) for part in (table(group="elsewhere"), frame))
    assert torch.allclose(unseen.log_prior[:, 3], missing.log_prior[:, 3])


def exact_effects():
    """Posterior means and standard deviations of the effects (12,): Gaussian given the spread, which is summed on a grid."""
    estimate = X @ WEIGHT / (WEIGHT @ WEIGHT)  # of z, variance NOISE^2 / |WEIGHT|^2: sufficient
    mean = np.bincount(GROUP, estimate) / SIZES
    noise = (1 + NOISE**2 / (WEIGHT @ WEIGHT)) / SIZES
    grid = np.linspace(0.005, 5, 1000)
    log_p, means, squares = [], [], []
    for spread in grid:
        prior = 1 + spread**2 * np.eye(12)  # of effects, the location integrated out
        total = prior + np.diag(noise)
        gain = np.linalg.solve(total, prior).T
        log_p.append(-0.5 * (np.linalg.slogdet(total)[1] + mean @ np.linalg.solve(total, mean) + spread**2))
        means.append(gain @ mean)
        squares.append(means[-1] ** 2 + np.diag(prior - gain @ prior))
    weight = np.exp(log_p - np.max(log_p))
    weight /= weight.sum()
    first, second = weight @ np.array(means), weight @ np.array(squares)
    return mean, first, np.sqrt(second - first**2)


def test_fitted_effects_are_the_posteriors_and_pooled_in_part(vae):
    before = [parameter.clone() for parameter in vae.decoder.parameters()]
    options = {"particles": 8, "epochs": 500, "lr": 0.03, "batch_size": 252, "valid": 0.0}
    pv.fit(vae, table(), progress=False, **options)
    assert all(torch.equal(a, b) for a, b in zip(before, vae.decoder.parameters()))  # frozen parameters stay
    shared = pv.draws(vae, table(slice(2)), num_draws=4000).shared
    location, spread = (shared[name].view(-1, 1) for name in ("location", "spread"))
    found = (location + spread * shared["offsets"].view(-1, 12)).mean(0).numpy()
    alone, exact, deviation = exact_effects()
    assert np.all(np.abs(found - exact) < 0.5 * deviation)
    # a group's own mean moves to the population's, by more where there are few rows
    kept = (found - float(location.mean())) / (alone - float(location.mean()))
    few, many = SIZES == 2, SIZES == 40
    assert np.all(kept[few] < 0.95) and np.median(kept[few]) < 0.8 and np.all(kept[many] > kept[few].max())
    assert np.all(kept[many] < 1.05)
