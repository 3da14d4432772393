"""Uncertain weights: nets at many weights at once, their prior and posterior, and what `build` makes of them."""

import copy
import math

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch import distributions as td
from torch.func import functional_call

import ppl_vae as pv
from ppl_vae.infer.noise import Keyed, uniforms
from ppl_vae.infer.rules import draw
from ppl_vae.infer.scope import isolated
from ppl_vae.model.nets import conv_decoder, mlp
from ppl_vae.model.vae import global_sites
from ppl_vae.model.weights import ManyNormals, MeanFieldWeights, WeightPrior, at_weights, normals

X = np.random.RandomState(0).randn(30, 4)
NETS = {
    "linear": lambda: mlp(3, 8, ()),
    "mlp": lambda: mlp(3, 8, (5,)),
    "cnn": lambda: conv_decoder(3, (4, 2), 8, (5,), channels=(2,)),
}


def drawn(net, *batch):
    return {name: torch.randn(*batch, *p.shape).double() for name, p in net.named_parameters()}


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize(
    ("batch", "lead"),
    [
        ((4, 1), (4,)),
        ((4, 1), ()),
        ((4, 1), (2, 4)),
        ((1, 1), (4,)),
        ((), (4,)),
        ((2, 4, 1), (2, 4)),
        ((2, 1, 1), (2, 4)),
    ],
    ids=str,
)
def test_a_net_at_many_weights_is_the_net_at_each(kind, batch, lead):
    net = NETS[kind]().double()
    weights, value = drawn(net, *batch), torch.randn(*lead, 6, 3).double()
    got = at_weights(net, weights, value)
    shape = torch.broadcast_shapes(batch[:-1], lead)
    assert got.shape == (*shape, 6, 8)
    value = value.expand(*shape, 6, 3)
    for place in np.ndindex(*shape):
        own = {n: w.expand(*shape, 1, *p.shape)[place][0] for (n, w), p in zip(weights.items(), net.parameters())}
        assert torch.allclose(got[place], functional_call(net, own, (value[place],)))


def test_the_weights_that_are_not_given_are_the_nets_own():
    net = mlp(3, 8, (5,)).double()
    last = {name: w for name, w in drawn(net, 4, 1).items() if name.startswith("2")}
    value = torch.randn(4, 6, 3).double()
    hidden = net[1](net[0](value))
    expected = torch.stack([h @ w[0].T + b[0] for h, w, b in zip(hidden, last["2.weight"], last["2.bias"])])
    assert torch.allclose(at_weights(net, last, value), expected)


# ---- many normals


LOC, SCALE = torch.randn(3, 5).double(), torch.rand(3, 5).double() + 0.5


def test_many_normals_are_normals():
    many, one = normals(LOC, SCALE), td.Independent(td.Normal(LOC, SCALE), 2)
    value = torch.randn(7, 3, 5).double()
    assert many.event_shape == (3, 5)
    assert torch.equal(many.log_prob(value), one.log_prob(value))
    assert isinstance(many.expand((4, 1)), ManyNormals)
    unit = normals(torch.zeros(()).expand(3, 5), torch.ones(()).expand(3, 5))
    kl = 0.5 * (SCALE**2 + LOC**2 - 1) - SCALE.log()
    assert torch.allclose(td.kl_divergence(many, unit), kl.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 60002])
def test_draws_of_many_normals_are_standard_normal_and_independent(dtype, size):
    """Kolmogorov-Smirnov at p = 1e-4, correlations and kurtosis within 4.5 standard errors, of 4 cases: 6e-4 in all."""
    draws, zero = 60003 // size, torch.zeros(size, dtype=dtype)
    many = normals(zero, zero + 1).expand((draws, 1))

    def uniform(*shape):
        return uniforms(torch.tensor([5]), draws, math.prod(shape)).reshape(draws, 1, *shape)

    z = draw(many, uniform)
    assert z.dtype == dtype and z.shape == (draws, 1, size)
    z = z.flatten().double().numpy()
    assert stats.kstest(z, "norm").pvalue > 1e-4
    half = len(z) // 2
    for a, b in ((z[:-1], z[1:]), (z[:half], z[half : 2 * half]), (z[:-1] ** 2, z[1:] ** 2), (z, z**3 - 3 * z)):
        a, b = a - a.mean(), b - b.mean()
        assert abs((a * b).mean()) < 4.5 * (a * b).std() / math.sqrt(len(a))


def test_a_draw_of_many_normals_is_the_same_whatever_the_number_of_draws():
    def sample(draws, first=0):
        with Keyed(torch.arange(3), first=first, shared=torch.tensor([5])), pyro.plate("draws", draws, dim=-2):
            return pyro.sample("w", normals(LOC, SCALE))

    w = sample(6)
    assert w.shape == (6, 1, 3, 5)
    assert torch.equal(w[:2], sample(2)) and torch.equal(w[4:], sample(2, first=4))


# ---- what `build` makes


SITES = {f"decoder.net.{n}" for n in ("0.weight", "0.bias", "2.weight", "2.bias")}


def test_every_weight_of_the_decoders_net_is_a_site_that_all_rows_share():
    vae = pv.build(X, latent=2, hidden=(5,), scale="feature", weights="normal", weight_scale=0.5)
    drawn = pv.draws(vae, X, num_draws=3)
    assert drawn.shared.keys() == SITES
    assert drawn.shared["decoder.net.2.weight"].shape == (3, 1, 4, 5)
    assert "decoder.family.scale" in dict(vae.named_parameters())  # a point estimate beside the net
    with isolated(vae):
        nodes = poutine.trace(vae.model).get_trace(n=2).nodes
    for name, parameter in vae.decoder.net.named_parameters():
        prior = nodes[f"decoder.net.{name}"]["fn"].base_dist
        assert torch.equal(prior.loc, torch.zeros_like(parameter))
        assert torch.equal(prior.scale, torch.full_like(parameter, 0.5))


def test_the_posterior_starts_at_the_usual_weights_and_narrow():
    point, vae = (pv.build(X, latent=2, hidden=(5,), weights=weights) for weights in ("point", "normal"))
    for a, b in zip(point.decoder.net.parameters(), vae.decoder.net.parameters()):
        assert torch.equal(a, b)
    with isolated(vae):
        guide = poutine.trace(vae.guide).get_trace(vae.batch(X).x).nodes
    for name, parameter in vae.decoder.net.named_parameters():
        q = guide[f"decoder.net.{name}"]["fn"].base_dist
        assert torch.equal(q.loc, parameter)
        assert torch.all((q.scale > 0.02) & (q.scale < 0.05))


def test_the_decoder_wants_its_weights():
    vae = pv.build(X, latent=2, weights="normal")
    with pytest.raises(pv.ProgramError, match="got no weights"):
        vae.decoder(torch.zeros(1, 2))


def test_sites_of_the_prior_stand_beside_those_of_the_decoder():
    frame = pd.DataFrame(X, columns=list("abcd")).assign(g=np.repeat(["u", "v"], 15))
    vae = pv.build(frame, latent=2, hidden=(5,), prior="hierarchical", group="g", weights="normal")
    assert pv.draws(vae, frame, num_draws=3).shared.keys() == SITES | {"location", "spread", "offsets"}


def test_a_copy_has_weights_of_its_own():
    vae = pv.build(X, latent=2, weights="normal")
    before, twin = pv.score(vae, X, num_draws=4).values, copy.deepcopy(vae)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter += 1.0
    assert np.array_equal(pv.score(vae, X, num_draws=4).values, before)
    assert not np.allclose(pv.score(twin, X, num_draws=4).values, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "cauchy"}, "weights: got 'cauchy', expected"),
        ({"weight_scale": 2.0}, r"got the options \['weight_scale'\]"),
        ({"weights": "normal", "weight_scale": 0.0}, "weight_scale: got 0"),
        ({"weights": "normal", "prior": "ard"}, "weights: got 'normal' with prior='ard'"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(pv.OptionError, match=message):
        pv.build(X, latent=2, **options)


def test_parts_that_someone_puts_together_themselves():
    net = mlp(2, 4, ())
    decoder = pv.build(X, latent=2, hidden=(), scale=1.0).decoder
    decoder.net, decoder.weights = net, WeightPrior(net, names=["0.bias"])
    sites = poutine.trace(global_sites).get_trace(decoder).nodes
    assert [name for name, site in sites.items() if site["type"] == "sample"] == ["decoder.net.0.bias"]
    assert repr(MeanFieldWeights(net)) == "MeanFieldWeights(0_bias, 0_weight)"
