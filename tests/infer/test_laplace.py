"""Laplace's approximation of the decoder's last layer: exact where the model is linear and normal, Hessians elsewhere."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import distributions as td

import ppl_vae as pv
from ppl_vae.infer import laplace
from ppl_vae.infer.draws import row_keys, shared_key, traces
from ppl_vae.infer.scope import isolated
from ppl_vae.model.conditional import distribution
from ppl_vae.model.missing import masked

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(50, 2) @ RANDOM.randn(2, 3) + 0.5 * RANDOM.randn(50, 3)
NOISE, PRIOR = 0.7, 1.5


def build(x=X, latent=2, **options):
    vae = pv.build(x, latent=latent, **{"hidden": (4,), "standardize": "none", **options})
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return vae.double()


POINT = {"posterior": "delta", "prior": "flat"}
"""z is a function of x: the decoder is a regression."""


def hidden_units(vae, z, c=None):
    """What the last layer reads, (..., 1 + hidden), and 1 for the bias first."""
    features = vae.decoder.net[:-1](z)
    return torch.cat([torch.ones_like(features[..., :1]), features], -1).detach()


def covariance(uncertain):
    tril = uncertain.encoder.weights.tril
    return tril @ tril.mT


@pytest.fixture
def linear():
    """A linear decoder at its mode, with the exact posterior (covariance (3, 3), the bias first) beside it."""
    vae = build(hidden=(), scale=NOISE, **POINT)
    x = torch.as_tensor(X)
    phi = hidden_units(vae, torch.as_tensor(pv.encode(vae, X)))
    exact = torch.linalg.inv(phi.T @ phi / NOISE**2 + torch.eye(3) / PRIOR**2)
    mean = exact @ phi.T @ x / NOISE**2
    with torch.no_grad():
        vae.decoder.net[0].bias.copy_(mean[0])
        vae.decoder.net[0].weight.copy_(mean[1:].T)
    return vae, phi, mean, exact


def test_of_a_linear_normal_decoder_it_is_the_exact_posterior(linear):
    vae, _, mean, exact = linear
    uncertain = pv.last_layer_laplace(vae, X, PRIOR)
    assert torch.allclose(covariance(uncertain), exact.expand(3, 3, 3))
    shared = pv.draws(uncertain, X[:2], num_draws=20000).shared
    drawn = torch.cat([shared["decoder.net.0.bias"][..., None], shared["decoder.net.0.weight"]], -1)[:, 0]
    deviation = exact.diagonal().sqrt()
    assert torch.all((drawn.mean(0) - mean.T).abs() < 5 * deviation / math.sqrt(20000))  # of 9 numbers: 5e-6
    for j in range(3):
        found = torch.cov(drawn[:, j].T)
        assert torch.all((found - exact).abs() < 5 * torch.outer(deviation, deviation) * math.sqrt(2 / 20000))


def test_scores_integrate_over_the_last_layer(linear):
    """Of each row, log N(x; mean'phi, noise^2 + phi' C phi): within 5 standard errors of 20,000 draws; 50 rows: 3e-5."""
    vae, phi, mean, exact = linear
    scores = pv.score(pv.last_layer_laplace(vae, X, PRIOR), X, num_draws=20000)
    deviation = (NOISE**2 + ((phi @ exact) * phi).sum(1)).sqrt()[:, None]
    log_p = td.Normal(phi @ mean, deviation).log_prob(torch.as_tensor(X)).sum(1).numpy()
    assert np.all(np.abs(scores.values - log_p) < 5 * scores.mcse)
    assert np.any(np.abs(pv.score(vae, X).values - log_p) > 10 * scores.mcse)  # the test could tell
    assert np.allclose(pv.reconstruct(pv.last_layer_laplace(vae, X, PRIOR), X), phi @ mean, atol=0.2)


def test_its_density_is_that_of_the_joint_normal_of_bias_and_weights(linear):
    vae, _, mean, exact = linear
    uncertain = pv.last_layer_laplace(vae, X, PRIOR)
    batch = uncertain.batch(X[:2])
    with isolated(uncertain), torch.no_grad():
        guide, model = traces(uncertain, batch, row_keys(batch, 0), 5, shared=shared_key(batch.x, 0))
    names = ("decoder.net.0.bias", "decoder.net.0.weight")
    bias, weight = (guide[name]["value"][:, 0] for name in names)
    together = torch.cat([bias[..., None], weight], -1)
    log_q, log_p = (sum(s[n]["fn"].log_prob(s[n]["value"])[:, 0] for n in names) for s in (guide, model))
    assert torch.allclose(log_q, td.MultivariateNormal(mean.T, exact).log_prob(together).sum(-1))
    assert torch.allclose(log_p, td.Normal(0.0, PRIOR).log_prob(together).sum((-1, -2)))


def test_the_curvature_is_averaged_over_the_encoders_draws_of_z():
    """Against the draws themselves, and against E[zz'] in closed form within 5 standard errors of its 6 numbers: 3e-6."""
    vae = build(hidden=(), scale=NOISE)
    precision = torch.linalg.inv(covariance(pv.last_layer_laplace(vae, X, PRIOR, num_draws=400, seed=3)))
    phi = hidden_units(vae, pv.draws(vae, X, num_draws=400, seed=3).z)
    each = torch.einsum("sni,snj->sij", phi, phi) / NOISE**2
    assert torch.allclose(precision, (each.mean(0) + torch.eye(3) / PRIOR**2).expand(3, 3, 3))
    q = vae.encoder(vae.batch(X).x).base_dist
    one = torch.ones(len(X), 1)
    phi = torch.cat([one, q.loc], 1).detach()
    variance = torch.cat([0 * one, q.scale**2], 1).sum(0).detach()
    exact = (phi.T @ phi + torch.diag(variance)) / NOISE**2 + torch.eye(3) / PRIOR**2
    assert torch.all((precision[0] - exact).abs() < 5 * each.std(0) / math.sqrt(400) + 1e-6 * exact.abs())


COUNTS, BITS = np.floor(np.exp(X)), (X > 0).astype(float)
KINDS = np.array(["u", "v", "w"])
MIXED = pd.DataFrame({"a": X[:, 0], "b": np.exp(X[:, 1]), "k": KINDS[COUNTS[:, 0].astype(int) % 3], "n": COUNTS[:, 2]})
HOLES = np.where(RANDOM.rand(*X.shape) < 0.3, np.nan, X)
MODELS = {
    "bernoulli": (BITS, {"likelihood": "bernoulli"}),
    "row scale": (X, {"scale": "row"}),
    "student_t": (X, {"likelihood": "student_t", "df": "row"}),
    "mixed": (MIXED, {"likelihood": "infer"}),
    "holes": (HOLES, {"nullable": True}),
    "multinomial": (COUNTS + 1, {"likelihood": "multinomial"}),
    "low rank": (X, {"likelihood": "low_rank_normal"}),
}


@pytest.mark.parametrize("kind", MODELS)
def test_blocks_are_those_of_the_hessian_of_any_likelihood(kind):
    x, options = MODELS[kind]
    vae = build(x, **options, **POINT)
    batch = vae.batch(x)
    phi = hidden_units(vae, vae.encoder(batch.x, batch.mask).v)

    def log_lik(weights):
        p = distribution(vae.decoder.family, phi @ weights.T)
        p = p if batch.mask is None else masked(p, batch.mask)
        return p.log_prob(batch.x if batch.mask is None else torch.where(batch.mask, batch.x, 0.0)).sum()

    last = vae.decoder.net[-1]
    weights = torch.cat([last.bias[:, None], last.weight], 1).detach()
    hessian = torch.autograd.functional.hessian(log_lik, weights)
    blocks = -torch.stack([hessian[j, :, j] for j in range(len(weights))])
    values, vectors = torch.linalg.eigh(blocks)
    exact = (vectors / (values.clamp(min=0) + PRIOR**-2)[:, None]) @ vectors.mT
    uncertain = pv.last_layer_laplace(vae, x, PRIOR)
    assert torch.allclose(covariance(uncertain), exact, rtol=1e-6, atol=1e-9)
    assert np.isfinite(pv.score(uncertain, x, num_draws=4).values).all()


def test_blocks_of_rows_add_up(monkeypatch):
    vae = build(scale="row", **POINT)
    whole = covariance(pv.last_layer_laplace(vae, X))
    monkeypatch.setattr(laplace, "NUMBERS", 16 * 6 * 7)
    assert torch.allclose(covariance(pv.last_layer_laplace(vae, X)), whole)


def test_the_model_itself_stays_as_it_was():
    vae = build(scale="row")
    before, state = pv.score(vae, X, num_draws=4).values, {n: v.clone() for n, v in vae.state_dict().items()}
    uncertain = pv.last_layer_laplace(vae, X)
    assert np.array_equal(pv.score(vae, X, num_draws=4).values, before)
    assert all(torch.equal(value, state[name]) for name, value in vae.state_dict().items())
    assert all(p.grad is None for p in vae.parameters())
    assert torch.equal(uncertain.decoder.net[-1].weight, vae.decoder.net[-1].weight)
    assert uncertain.recipe["kind"] == "laplace" and vae.recipe["kind"] == "build"


IMAGES = RANDOM.rand(20, 4, 4)


@pytest.mark.parametrize(
    ("make", "x", "message"),
    [
        (lambda: pv.PPCA(2).fit(X), X, "got a PPCA with the decoder LinearNormal"),
        (lambda: pv.build(X, latent=2, weights="normal"), X, "weights='point'"),
        (lambda: pv.build(IMAGES, latent=2, nets="cnn", channels=(2,)), IMAGES, "ends in Flatten"),
    ],
)
def test_other_models_are_refused(make, x, message):
    with pytest.raises(pv.OptionError, match=message):
        pv.last_layer_laplace(make(), x)


def test_the_scale_of_the_prior_is_a_positive_number():
    with pytest.raises(pv.OptionError, match="prior_scale: got 0"):
        pv.last_layer_laplace(build(), X, 0)
