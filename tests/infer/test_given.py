"""The programs at given draws of what rows share: closed forms, and what counts as a point estimate."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import distributions as td

import ppl_vae as pv
from ppl_vae.infer.draws import row_keys
from ppl_vae.infer.given import (
    as_pyros,
    draws_given,
    log_densities_of_shared,
    log_marginals,
    point_estimates,
    sites_of,
)
from ppl_vae.infer.scope import isolated

RANDOM = np.random.RandomState(0)
GROUPS = np.repeat(["a", "b", "c"], 7)
X = pd.DataFrame(RANDOM.randn(21, 2) * [1.0, 30.0] + [5.0, 0.0], columns=["u", "v"]).assign(group=GROUPS)
WEIGHT, NOISE = torch.tensor([0.9, -0.6], dtype=torch.float64), 0.7


@pytest.fixture
def hierarchical():
    """Groups with effects on z, a linear decoder that is known, an encoder that is near and wide."""
    vae = pv.build(X, latent=1, hidden=(), scale=NOISE, prior="hierarchical", group="group").double()
    with torch.no_grad():
        vae.decoder.net[0].weight.copy_(WEIGHT[:, None])
        vae.decoder.net[0].bias.zero_()
        vae.encoder.net[0].weight.copy_(torch.stack([WEIGHT / (NOISE**2 + WEIGHT @ WEIGHT), 0 * WEIGHT]))
        vae.encoder.net[0].bias.copy_(torch.tensor([0.0, math.log(math.expm1(0.9))]))
    vae.decoder.requires_grad_(False)
    return vae.eval()


@pytest.fixture
def uncertain():
    return pv.build(X[["u", "v"]], latent=1, hidden=(3,), scale=NOISE, weights="normal").double().eval()


def drawn(vae, data, num_draws):
    return pv.draws(vae, data, num_draws).shared


def test_sites_that_all_rows_share_have_names_for_their_dimensions(hierarchical, uncertain):
    with isolated(hierarchical):
        found = sites_of(hierarchical, hierarchical.batch(X))
    assert found.local == ("z",) and not found.sums_out
    assert {name: site.dims for name, site in found.shared.items()} == {
        "location": ("latent",),
        "spread": ("latent",),
        "offsets": ("groups", "latent"),
    }
    assert found.shared["offsets"].shape(5) == (5, 3, 1) and found.shared["spread"].pyros(5) == (5, 1, 1)
    with isolated(uncertain):
        weight = sites_of(uncertain, uncertain.batch(X[["u", "v"]])).shared["decoder.net.0.weight"]
    assert weight.shape(5) == (5, 3, 1) and weight.dims[0] == "decoder.net.0.weight_dim_0"  # 3 is no number of latents


@pytest.mark.parametrize("particles", [50, 300])
def test_marginals_given_group_effects_are_the_normals_that_they_are(hierarchical, particles):
    """126 numbers within 5 standard errors, by their exact ones: of 50 skewed weights alike, an estimate is too small."""
    batch, shared = hierarchical.batch(X), drawn(hierarchical, X, 6)
    with isolated(hierarchical), torch.no_grad():
        found, error, *_ = log_marginals(hierarchical, batch, shared, row_keys(batch, 1), particles, 1)
        guide = hierarchical.encoder(batch.x)
    location, spread, offsets = (shared[name].reshape(6, -1) for name in ("location", "spread", "offsets"))
    effect = (location + spread * offsets)[:, batch.group]
    cov = torch.outer(WEIGHT, WEIGHT) + NOISE**2 * torch.eye(2)
    of_x = td.MultivariateNormal(effect[..., None] * WEIGHT, cov).log_prob(batch.x)
    exact = of_x + hierarchical.schema.log_jacobian
    var = 1 / (1 + WEIGHT @ WEIGHT / NOISE**2)  # of p(z|x, w)
    distance = (var * (effect + batch.x @ WEIGHT / NOISE**2) - guide.mean[:, 0]).square()
    wide = guide.variance[:, 0]
    square = wide / (var * (2 * wide - var)).sqrt() * (distance / (2 * wide - var)).exp()  # the mean of (p/q)^2 under q
    sd = ((square - 1) / particles).sqrt()
    assert found.shape == exact.shape == (6, 21) and error.max() < 0.5
    assert torch.all((found - exact).abs() < 5 * sd + sd**2)  # less the bias of a log: 7e-5
    assert 0.5 < ((found - exact) / sd).square().mean() < 1.6  # 4 standard errors
    assert 0.9 < (error / sd).mean() < 1.1


def test_marginals_given_weights_are_a_sum_over_z(uncertain):
    data = X[["u", "v"]]
    batch, shared = uncertain.batch(data), drawn(uncertain, data, 5)
    with isolated(uncertain), torch.no_grad():
        found, error, *_ = log_marginals(uncertain, batch, shared, row_keys(batch, 1), 100, 1)
    grid = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    for s in range(5):
        w = [shared[f"decoder.net.{layer}"][s, 0] for layer in ("0.weight", "0.bias", "2.weight", "2.bias")]
        loc = torch.tanh(grid[:, None] @ w[0].T + w[1]) @ w[2].T + w[3]
        log_joint = (
            td.Normal(loc[:, None], NOISE).log_prob(batch.x).sum(-1) + td.Normal(0.0, 1.0).log_prob(grid)[:, None]
        )
        exact = (log_joint + math.log(18 / 4000)).logsumexp(0) + uncertain.schema.log_jacobian
        assert torch.all((found[s] - exact).abs() < 5 * error[s] + error[s] ** 2)


def test_a_rows_marginals_do_not_depend_on_other_rows_nor_draws_on_each_other(hierarchical):
    batch, shared = hierarchical.batch(X), drawn(hierarchical, X, 5)
    keys, few = row_keys(batch, 0), slice(3, 9)
    with isolated(hierarchical), torch.no_grad():
        found, *_ = log_marginals(hierarchical, batch, shared, keys, 20, 0)
        some, *_ = log_marginals(hierarchical, batch.rows(few), shared, keys[few], 20, 0)
        same = {name: value[:1].expand(9, *value.shape[1:]) for name, value in shared.items()}
        again, *_ = log_marginals(hierarchical, batch, same, keys, 20, 0)  # 6 draws at a time
    assert torch.allclose(found[:, few], some, rtol=1e-12)
    assert len(again.unique(dim=0)) == 9  # particles of its own for each


@pytest.mark.parametrize("particles", [60, 300])
def test_draws_and_rows_of_many_blocks_are_those_of_one(hierarchical, particles):
    many = pd.concat([X] * 4, ignore_index=True)
    batch, shared = hierarchical.batch(many), drawn(hierarchical, X, 3)
    keys = row_keys(batch, 0)
    with isolated(hierarchical), torch.no_grad():
        found, *_ = log_marginals(hierarchical, batch, shared, keys, particles, 0)
        alone, *_ = log_marginals(hierarchical, batch.rows(slice(63, None)), shared, keys[63:], particles, 0)
    assert found.shape == (3, 84) and torch.allclose(found[:, 63:], alone, rtol=1e-12)


def test_draws_of_z_are_given_those_of_the_shared_sites(hierarchical):
    batch = hierarchical.batch(X)
    values = {"location": torch.arange(200.0)[:, None], "spread": torch.ones(200, 1), "offsets": torch.zeros(200, 3, 1)}
    with isolated(hierarchical), torch.no_grad():
        sites = sites_of(hierarchical, batch)
        found = draws_given(hierarchical, batch, as_pyros(values, sites, batch.x), row_keys(batch, 0), 0)
    assert found.shared["location"].flatten().tolist() == list(range(200))
    prior = td.Normal(torch.arange(200.0)[:, None].double(), 1.0).log_prob(found.z[..., 0])
    assert torch.allclose(found.log_prior, prior)
    assert len(found.z[:, 0].unique()) == 200  # the noise of a second block is not that of the first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spread": None}, r"got the sites \['location', 'offsets'\], expected \['location', 'offsets', 'spread'\]"),
        ({"offsets": torch.zeros(4, 2, 1)}, r"shape \(4, 2, 1\) of site 'offsets', expected \(4, 3, 1\)"),
        ({"spread": torch.ones(3, 1)}, r"shape \(3, 1\) of site 'spread', expected \(4, 1\)"),
    ],
)
def test_shared_values_of_other_sites_or_shapes_are_refused(hierarchical, change, message):
    values = {"location": torch.zeros(4, 1), "spread": torch.ones(4, 1), "offsets": torch.zeros(4, 3, 1)} | change
    values = {name: value for name, value in values.items() if value is not None}
    with isolated(hierarchical):
        sites = sites_of(hierarchical, hierarchical.batch(X))
    with pytest.raises(pv.OptionError, match=message):
        as_pyros(values, sites, torch.zeros(1))


def test_densities_of_weights_are_those_of_prior_and_posterior(uncertain):
    data = X[["u", "v"]]
    shared, weights = drawn(uncertain, data, 7), uncertain.encoder.weights
    with isolated(uncertain), torch.no_grad():
        log_p, log_all, log_q = log_densities_of_shared(uncertain, uncertain.batch(data), shared)
        q = {
            f"decoder.net.{name}": td.Normal(
                loc, torch.nn.functional.softplus(weights.raw[name.replace(".", "_")]) + 1e-3
            )
            for name, loc in uncertain.decoder.net.named_parameters()
        }
    expected = {name: td.Normal(0.0, 1.0).log_prob(value).flatten(1).sum(1) for name, value in shared.items()}
    assert all(torch.allclose(log_p[name], expected[name]) for name in shared)
    assert torch.allclose(log_all, sum(expected.values()))
    assert torch.allclose(log_q, sum(q[name].log_prob(shared[name][:, 0]).flatten(1).sum(1) for name in q))


def test_densities_of_group_effects_are_summed_over_groups(hierarchical):
    shared = drawn(hierarchical, X, 4)
    with isolated(hierarchical), torch.no_grad():
        log_p, log_all, log_q = log_densities_of_shared(hierarchical, hierarchical.batch(X), shared)
        q = hierarchical.encoder.shared
        scale = torch.nn.functional.softplus(q.raw["offsets"]) + 1e-3
    assert torch.allclose(log_p["offsets"], td.Normal(0.0, 1.0).log_prob(shared["offsets"]).sum((1, 2)))
    assert torch.allclose(log_p["spread"], td.HalfNormal(torch.tensor(1.0)).log_prob(shared["spread"]).sum((1, 2)))
    assert torch.allclose(log_all, sum(log_p.values())) and log_q.shape == (4,)
    only = td.Normal(q.loc["offsets"], scale).log_prob(shared["offsets"]).sum((1, 2))
    with isolated(hierarchical), torch.no_grad():
        moved = dict(shared, offsets=q.loc["offsets"].expand_as(shared["offsets"]))
        at_mean = log_densities_of_shared(hierarchical, hierarchical.batch(X), moved)[2]
    peak = td.Normal(q.loc["offsets"], scale).log_prob(q.loc["offsets"]).sum()
    assert torch.allclose(at_mean - log_q, peak - only)


def estimates(vae, data):
    batch, drawn = vae.batch(data), pv.draws(vae, data, 2)
    with isolated(vae), torch.no_grad():
        return point_estimates(vae, batch, drawn, sites_of(vae, batch))


def test_learned_numbers_that_the_density_depends_on_are_point_estimates(hierarchical, uncertain):
    assert estimates(hierarchical, X) == []
    hierarchical.decoder.requires_grad_(True)
    assert estimates(hierarchical, X) == ["decoder.net.0.weight", "decoder.net.0.bias"]
    numbers = X[["u", "v"]]
    assert estimates(uncertain, numbers) == []  # the decoder's own parameters are means of q(w)
    scaled = pv.build(numbers, latent=1, hidden=(), scale="feature", weights="normal")
    assert len(estimates(scaled, numbers)) == 1
    mixture = pv.build(numbers, latent=1, hidden=(), weights="normal", prior="mixture")
    assert {name.split(".")[0] for name in estimates(mixture, numbers)} == {"prior"}
    horseshoe = pv.build(numbers, latent=2, hidden=(), scale=NOISE, prior="horseshoe")
    assert "decoder.net.0.weight" in estimates(horseshoe, numbers)
