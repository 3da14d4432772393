"""Several models as one: draws side by side, densities of the mixture, and a word for what has no meaning there."""

import copy
import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import logsumexp

import ppl_vae as pv

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(60, 2) @ RANDOM.randn(2, 4) + 0.5 * RANDOM.randn(60, 4)


@pytest.fixture
def linear():
    """Three models with exact guides."""
    first = pv.PPCA(2).fit(X)
    members = [first]
    for factor in (0.7, 1.3):
        member = copy.deepcopy(first)
        with torch.no_grad():
            noise = member.decoder.scale[0] * factor
            member.decoder.scale.fill_(noise)
            signal = (member.loadings**2).sum(0)
            member.encoder.linear.weight.copy_(member.loadings.T / (signal + noise**2)[:, None])
            member.encoder.scale.copy_(noise * (signal + noise**2).rsqrt())
        members.append(member)
    return members


def test_of_models_with_exact_guides_every_bound_is_exact(linear):
    """iwae and evidence are the log of the mean of the members' densities, elbo the mean of their logs, for any draws."""
    log_p = np.array([member.log_prob(X) for member in linear])
    assert np.abs(log_p[0] - log_p[1]).max() > 1
    both = pv.Ensemble(linear)
    mixture = logsumexp(log_p, 0) - math.log(3)
    assert np.allclose(pv.score(both, X, "iwae", num_draws=2).values, mixture, atol=1e-8)
    assert np.allclose(pv.log_evidence(both, X, num_draws=2).log_p, mixture, atol=1e-8)
    assert np.allclose(pv.score(both, X, "elbo", num_draws=2).values, log_p.mean(0), atol=1e-8)


def neural(weights=("point", "normal", "normal")):
    return [pv.build(X, latent=2, hidden=(5,), weights=kind, seed=seed) for seed, kind in enumerate(weights)]


class Stored:
    """A scale that lives in Pyro's parameter store, under one name in all models."""

    def __init__(self, start):
        self.start = start

    def __call__(self, x):
        scale = pyro.param("scale", torch.tensor(self.start))
        return dist.Normal(x[..., :2], scale).to_event(1)


def stored():
    prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    schema = pv.Schema.infer(pd.DataFrame(X.astype("float32"), columns=list("abcd")))
    members = [
        pv.VAE(Stored(s), lambda z: dist.Normal(z.repeat(1, 1, 2), 1.0).to_event(1), lambda: prior) for s in (0.5, 2.0)
    ]
    for member in members:
        member.schema = schema
    return members


@pytest.mark.parametrize("make", [neural, stored])
def test_draws_are_the_members_own_side_by_side(make):
    members = make()
    data = X if make is neural else pd.DataFrame(X.astype("float32"), columns=list("abcd"))
    data = pd.concat([data] * 10) if make is stored else np.tile(X, (10, 1))  # several blocks of rows
    found = pv.draws(pv.Ensemble(members), data, num_draws=16, seed=3)
    own = [pv.draws(member, data, num_draws=16, seed=3 + j) for j, member in enumerate(members)]
    assert found.shared["member"].tolist() == np.repeat(np.arange(len(members)), 16).tolist()
    for name in ("z", "log_lik", "log_prior", "log_q", "log_weight"):
        assert torch.equal(getattr(found, name), torch.cat([getattr(draws, name) for draws in own]))


def test_what_the_members_share_alike_is_kept():
    same, other = neural(("normal", "normal")), neural()
    assert len(pv.draws(pv.Ensemble(same), X, num_draws=3).shared["decoder.net.0.bias"]) == 6
    assert pv.draws(pv.Ensemble(other), X, num_draws=3).shared.keys() == {"member"}


def test_scores_are_read_off_the_draws_of_all_members():
    both = pv.Ensemble(neural())
    draws = pv.draws(both, X, num_draws=8)
    log_mean = (draws.log_lik.logsumexp(0) - math.log(24)).numpy()
    assert np.allclose(pv.score(both, X, num_draws=8).values, log_mean)
    assert np.allclose(pv.score(both, X, num_draws=8, per_feature=True).per_feature.shape, (60, 4))
    assert np.all(pv.score(both, X, "reconstruction_error", num_draws=8).values < 0)


def test_predictions():
    members = neural()
    both = pv.Ensemble(members)
    each = [pv.reconstruct(member, X, num_draws=64, seed=j) for j, member in enumerate(members)]
    assert np.allclose(pv.reconstruct(both, X), np.mean(each, 0), atol=1e-5)
    made = [pv.generate(both, 5, seed=seed).x for seed in range(12)]
    makers = [
        [np.array_equal(x, pv.generate(member, 5, seed=seed).x) for member in members].index(True)
        for seed, x in enumerate(made)
    ]
    assert set(makers) == {0, 1, 2}


@pytest.mark.parametrize(
    "use",
    [
        lambda both: pv.fit(both, X, progress=False),
        lambda both: pv.encode(both, X),
        lambda both: pv.decode(both, np.zeros((1, 2))),
        lambda both: pv.log_evidence(both, X[:2], "ais"),
        lambda both: pv.posterior(both, X[:2], "laplace"),
        lambda both: pv.to_arviz(both, X[:2]),
        lambda both: pv.posterior_predictive(both, X[:9]),
        lambda both: pv.pit(both, X[:9]),
        lambda both: both.model(n=3),
    ],
)
def test_what_is_each_members_own_is_refused(use):
    with pytest.raises(pv.OptionError, match=r"expected one of its \.members"):
        use(pv.Ensemble(neural()))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (lambda: [], "got none"),
        (lambda: [*neural(), 3], "got a int as number 3"),
        (lambda: [pv.Ensemble(neural())], "got a Ensemble as number 0"),
        (lambda: [pv.build(X, latent=2), pv.build(2 * X, latent=2)], "other columns or scales in number 1"),
        (lambda: [pv.build(X, latent=2), pv.build(X, latent=2).double()], "torch.float32 and torch.float64"),
    ],
)
def test_members_are_models_of_the_same_data(members, message):
    with pytest.raises(pv.OptionError, match=message):
        pv.Ensemble(members())


def test_members_have_as_many_latent_dimensions():
    both = pv.Ensemble([pv.build(X, latent=latent) for latent in (2, 3)])
    with pytest.raises(pv.OptionError, match=r"got \[2, 3\] latent dimensions"):
        pv.draws(both, X, num_draws=2)
