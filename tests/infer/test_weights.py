"""Uncertain weights under inference: exact posteriors and evidence, gradients, batches; scores and predictions over them."""

import math

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from torch import distributions as td
from torch import nn
from torch.func import functional_call
from torch.nn.functional import softplus

import ppl_vae as pv
from ppl_vae.data.schema import Schema
from ppl_vae.infer import draws as drawing
from ppl_vae.infer.draws import traces
from ppl_vae.infer.handlers import SharedScale
from ppl_vae.infer.noise import Keyed, step_keys
from ppl_vae.infer.objectives import objective
from ppl_vae.infer.scope import isolated
from ppl_vae.model.conditional import Decoder
from ppl_vae.model.families import LIKELIHOODS, Normal
from ppl_vae.model.nets import mlp
from ppl_vae.model.weights import MeanFieldWeights, WeightPrior

RANDOM = np.random.RandomState(0)

# ---- Bayesian linear regression: z is given, the decoder linear, the columns of the design orthogonal

N, NOISE, PRIOR = 40, 0.7, 1.5
DESIGN = np.linalg.qr(np.column_stack([np.ones(N), RANDOM.randn(N, 2)]))[0][:, 1:] * math.sqrt(N)
Y = DESIGN @ RANDOM.randn(2, 3) + RANDOM.randn(3) + NOISE * RANDOM.randn(N, 3)
FRAME = pd.DataFrame(Y, columns=list("abc")).assign(s=DESIGN[:, 0], t=DESIGN[:, 1])

PHI = np.column_stack([DESIGN, np.ones(N)])
PRECISION = (PHI**2).sum(0) / NOISE**2 + PRIOR**-2
MEAN, SD = (Y.T @ PHI) / NOISE**2 / PRECISION, PRECISION**-0.5  # of weights and bias (3, 3) and (3,)
COVARIANCE = NOISE**2 * np.eye(N) + PRIOR**2 * PHI @ PHI.T
EVIDENCE = float(td.MultivariateNormal(torch.zeros(N), torch.tensor(COVARIANCE)).log_prob(torch.tensor(Y.T)).sum())


class Given(nn.Module):
    """z is the covariates, as prior and as encoder."""

    def __init__(self, weights=None):
        super().__init__()
        self.weights = weights

    def forward(self, *x, c):
        return dist.Normal(c, 1e-7).to_event(1)

    def global_sites(self):
        return None if self.weights is None else self.weights()


@pytest.fixture
def regression():
    net = mlp(2, 3, ())
    schema = Schema.fit(FRAME, "none", covariates=("s", "t"))
    decoder = Decoder(net, Normal(3, scale=NOISE), None, WeightPrior(net, PRIOR))
    return pv.VAE(Given(MeanFieldWeights(net)), decoder, Given(), schema).double()


@pytest.fixture
def exact(regression):
    """The guide at the exact posterior."""
    with torch.no_grad():
        regression.decoder.net[0].weight.copy_(torch.tensor(MEAN[:, :2]))
        regression.decoder.net[0].bias.copy_(torch.tensor(MEAN[:, 2]))
        for name, sd in (("0_weight", torch.tensor(SD[:2]).expand(3, 2)), ("0_bias", torch.tensor(SD[2]).expand(3))):
            regression.encoder.weights.raw[name].copy_((sd - 1e-3).expm1().log())
    return regression


def test_the_covariates_are_the_design(regression):
    assert np.allclose(regression.batch(FRAME).c, DESIGN)
    assert np.allclose(PHI.T @ PHI, N * np.eye(3), atol=1e-9)


@pytest.mark.parametrize("particles", [1, 5])
def test_at_the_exact_posterior_the_bound_of_weights_is_the_evidence_for_every_draw(exact, particles):
    for seed in range(4):
        options = {"epochs": 1, "lr": 0.0, "valid": 0.0, "batch_size": N, "particles": particles, "progress": False}
        history = pv.fit(exact, FRAME, seed=seed, **options)
        assert N * history["objective"][-1] == pytest.approx(EVIDENCE, abs=1e-4)


def test_with_the_kl_in_closed_form_the_bound_scatters_about_the_evidence(exact):
    """Mean of 20 within 5 standard errors (Student's t): fails by chance at 8e-5."""
    options = {"objective": "analytic_kl", "epochs": 1, "lr": 0.0, "valid": 0.0, "batch_size": N, "progress": False}
    found = N * np.array([pv.fit(exact, FRAME, seed=seed, **options)["objective"][-1] for seed in range(20)])
    assert found.std() > 0.1
    assert abs(found.mean() - EVIDENCE) < 5 * found.std(ddof=1) / math.sqrt(20)


@pytest.mark.parametrize("name", ["elbo", "analytic_kl"])
def test_a_fit_finds_the_exact_posterior(regression, name):
    options = {"objective": name, "particles": 8, "epochs": 120, "lr": 0.1, "batch_size": N, "valid": 0.0}
    pv.fit(regression, FRAME, progress=False, **options)
    shared = pv.draws(regression, FRAME[:2], num_draws=4000).shared
    weight, bias = (shared[f"decoder.net.0.{name}"][:, 0].numpy() for name in ("weight", "bias"))
    found = np.concatenate([weight, bias[..., None]], -1)
    assert np.all(np.abs(found.mean(0) - MEAN) < 0.3 * SD)  # the closed-form KL leaves the noise of log p(x|w)
    assert np.all(np.abs(found.std(0) / SD - 1) < 0.15)


def test_scores_of_new_rows_integrate_over_weights(exact):
    """log of the mean over w of N(y; w'phi, noise^2): within 5 standard errors of 8000 draws, 20 rows: 1e-5."""
    new = FRAME.head(20).copy()
    new[["a", "b", "c"]] += 0.5 * RANDOM.randn(20, 3)
    variance = NOISE**2 + PHI[:20] ** 2 @ SD**2
    y = torch.tensor(new[["a", "b", "c"]].to_numpy())
    log_p = td.Normal(torch.tensor(PHI[:20] @ MEAN.T), torch.tensor(variance**0.5)[:, None]).log_prob(y).sum(1).numpy()
    for scores in (
        pv.score(exact, new, "iwae", num_draws=8000),
        pv.score(exact, new, "reconstruction_probability", num_draws=8000, seed=1),
    ):
        assert np.all(np.abs(scores.values - log_p) < 5 * scores.mcse)
        assert np.all(scores.mcse < 0.05)
    plug_in = td.Normal(torch.tensor(PHI[:20] @ MEAN.T), NOISE).log_prob(y).sum(1).numpy()
    assert np.any(np.abs(plug_in - log_p) > 10 * scores.mcse)  # the test could tell


# ---- gradients and batches, against a loop written by hand

X = RANDOM.randn(40, 2) @ RANDOM.randn(2, 3) + 0.5 * RANDOM.randn(40, 3)


@pytest.fixture
def small():
    vae = pv.build(X, latent=2, hidden=(4,), scale="feature", standardize="none", weights="normal", weight_scale=0.8)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return vae.double()


def by_hand(vae, name, x, keys, share, particles):
    """Minus the bound, one draw of the weights for all rows of each particle."""
    with isolated(vae), torch.no_grad():
        guide, _ = traces(vae, vae.batch(X)._replace(x=x), keys, particles)
    loc, raw = vae.encoder.net(x).chunk(2, -1)
    sd, loss = softplus(raw) + 1e-3, 0.0
    prior = td.Normal(0.0, 0.8)
    posterior = {
        n: td.Normal(p, softplus(vae.encoder.weights.raw[n.replace(".", "_")]) + 1e-3)
        for n, p in vae.decoder.net.named_parameters()
    }
    for k in range(particles):
        weights = {}
        for n, q in posterior.items():
            noise = (guide[f"decoder.net.{n}"]["value"][k, 0] - q.loc) / q.scale
            weights[n] = q.loc + q.scale * noise.detach()
        z = loc + sd * ((guide["z"]["value"][k] - loc) / sd).detach()
        scale = softplus(vae.decoder.family.scale) + 1e-3
        log_lik = td.Normal(functional_call(vae.decoder.net, weights, (z,)), scale).log_prob(x).sum()
        if name == "analytic_kl":
            kl = td.kl_divergence(td.Normal(loc, sd), td.Normal(0.0, 1.0)).sum()
            kl_of_weights = sum(td.kl_divergence(q, prior).sum() for q in posterior.values())
        else:
            kl = (td.Normal(loc, sd).log_prob(z) - td.Normal(0.0, 1.0).log_prob(z)).sum()
            kl_of_weights = sum(
                (q.log_prob(w) - prior.log_prob(w)).sum() for w, q in zip(weights.values(), posterior.values())
            )
        loss = loss - (log_lik - kl - share * kl_of_weights) / particles
    return loss


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("name", ["elbo", "analytic_kl"])
def test_loss_and_gradients_of_a_batch_are_those_by_hand(small, name, particles):
    x, keys = small.batch(X).x[:7], step_keys(torch.arange(7), 0, 3)
    parameters = list(small.parameters())
    expected = by_hand(small, name, x, keys, 7 / 40, particles)
    gradients = torch.autograd.grad(expected, parameters)
    with isolated(small), Keyed(keys), SharedScale(7 / 40):
        loss = objective(name).make(particles).loss_and_grads(small.model, small.guide, x)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-9)
    for parameter, gradient in zip(parameters, gradients):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["elbo", "analytic_kl"])
def test_the_batches_of_an_epoch_have_the_loss_of_all_rows_in_mean(small, name):
    """Means of 20 fits of 20 particles within 5 standard errors (Student's t): fails by chance at 1e-5."""
    options = {"objective": name, "particles": 20, "epochs": 1, "lr": 0.0, "valid": 0.0, "progress": False}

    def losses(batch_size, seeds):
        found = [pv.fit(small, X, seed=seed, batch_size=batch_size, **options)["objective"][-1] for seed in seeds]
        return 40 * np.array(found)

    whole, parts = losses(40, range(20)), losses(13, range(20, 40))
    error = math.sqrt((whole.var(ddof=1) + parts.var(ddof=1)) / 20)
    assert abs(whole.mean() - parts.mean()) < 5 * error
    kl = sum(
        td.kl_divergence(td.Normal(p, softplus(raw) + 1e-3), td.Normal(0.0, 0.8)).sum()
        for p, raw in (
            (p, small.encoder.weights.raw[n.replace(".", "_")]) for n, p in small.decoder.net.named_parameters()
        )
    )
    assert 5 * error < 0.2 * float(kl.detach())  # the test could tell


# ---- draws


@pytest.mark.parametrize("num_draws", [6, 200])
def test_each_draw_has_weights_of_its_own_and_all_rows_share_them(small, num_draws):
    rows = np.resize(X, (600, 3))  # several blocks of rows, and of draws
    found = pv.draws(small, rows, num_draws=num_draws)
    x, scale = torch.as_tensor(rows), softplus(small.decoder.family.scale) + 1e-3
    for s in (0, 1, num_draws - 1):
        weights = {n: found.shared[f"decoder.net.{n}"][s, 0] for n, _ in small.decoder.net.named_parameters()}
        log_lik = td.Normal(functional_call(small.decoder.net, weights, (found.z[s],)), scale).log_prob(x).sum(-1)
        assert torch.allclose(found.log_lik[s], log_lik)
    assert len({float(w) for w in found.shared["decoder.net.2.bias"][:, 0, 0]}) == num_draws
    assert torch.allclose(found.log_weight, found.log_lik + found.log_prior - found.log_q)


def test_a_row_has_the_same_score_in_any_company_and_whether_weights_are_kept_or_drawn_again(small, monkeypatch):
    rows = np.resize(X, (600, 3))
    before = pv.score(small, rows, "iwae", num_draws=200).values
    alone = pv.score(small, rows[[7, 577]], "iwae", num_draws=200).values
    assert np.allclose(before[[7, 577]], alone, rtol=1e-9)
    monkeypatch.setattr(drawing, "KEPT", 0)
    assert np.array_equal(pv.score(small, rows, "iwae", num_draws=200).values, before)


def test_iwae_is_the_log_of_the_mean_over_draws_of_weights(small):
    found = pv.draws(small, X, num_draws=16)
    log_mean = found.log_weight.logsumexp(0) - math.log(16)
    assert np.allclose(pv.score(small, X, "iwae", num_draws=16).values, log_mean)
    assert np.allclose(pv.score(small, X, "elbo", num_draws=16).values, found.log_weight.mean(0))


def test_a_point_posterior_of_z_leaves_the_weights_uncertain():
    vae = pv.build(X, latent=2, hidden=(4,), posterior="delta", scale=1.0, weights="normal")
    assert np.all(pv.score(vae, X, num_draws=8).mcse > 0)
    with pytest.raises(pv.OptionError, match="'elbo' for a point posterior"):
        pv.score(vae, X, "elbo")


# ---- predictions


def test_means_of_z_are_those_of_the_encoder(small):
    assert np.allclose(pv.encode(small, X), small.encoder.net(small.batch(X).x)[:, :2].detach())


def test_decoded_codes_are_averaged_over_weights(small):
    """The mean of 64 draws of the weights against that of 4000, within 5 standard errors of 24 numbers: 2e-5."""
    z = np.array([[1.0, -1.0], [0.0, 2.0], [3.0, 0.5], [0.0, 0.0]] * 2)
    many = pv.draws(small, X[:2], num_draws=4000, seed=9).shared
    weights = {n: many[f"decoder.net.{n}"][:, 0] for n, _ in small.decoder.net.named_parameters()}
    net = torch.func.vmap(lambda w: functional_call(small.decoder.net, w, (torch.tensor(z),)))(weights)
    error = net.std(0).numpy() / math.sqrt(64)
    found = pv.decode(small, z)
    assert np.all(np.abs(found - net.mean(0).detach().numpy()) < 5 * error)
    assert np.allclose(pv.reconstruct(small, X), pv.decode(small, pv.encode(small, X)))


def test_all_that_a_model_is_for_goes_with_holes_covariates_groups_and_classes():
    frame = pd.DataFrame(RANDOM.randn(50, 3), columns=list("abc")).assign(kind=np.resize(["u", "v", "w"], 50))
    frame = frame.mask(RANDOM.rand(50, 4) < 0.1).assign(age=RANDOM.randn(50), site=np.resize(["p", "q"], 50))
    frame["label"] = np.resize(["s", "t", None], 50)
    roles = {"covariates": ["age"], "group": "site", "label": "label", "prior": "hierarchical", "likelihood": "infer"}
    vae = pv.build(frame, latent=2, hidden=(5,), weights="normal", **roles)
    pv.fit(vae, frame, epochs=2, particles=2, progress=False)
    for scoring in ("reconstruction_probability", "elbo", "iwae"):
        assert np.isfinite(pv.score(vae, frame, scoring, num_draws=4).values).all()
    rebuilt = pv.reconstruct(vae, frame)
    assert set(rebuilt["kind"]) <= {"u", "v", "w"} and np.isfinite(rebuilt[["a", "b", "c"]].to_numpy()).all()
    assert not pv.impute(vae, frame, num_draws=2, candidates=20).frame[["a", "b", "c", "kind"]].isna().any(axis=None)
    made = [pv.generate(vae, 50, seed=seed, given=frame).x for seed in (0, 0, 1)]
    assert made[0].equals(made[1]) and not made[0].equals(made[2])
    assert pv.prior_predictive(vae, frame, n=4)["model"].notna().any()


@pytest.mark.parametrize("likelihood", ["bernoulli", "student_t", "multinomial", "discretized_logistic", "full_normal"])
def test_weights_of_any_likelihood_are_trained(likelihood):
    kind = LIKELIHOODS[likelihood].type
    u = RANDOM.rand(30, 4)
    x = {"boolean": u > 0.5, "count": 8 * u, "pixel": 256 * u}.get(kind, u)
    x = np.floor(x).astype(float) if kind in ("boolean", "count", "pixel") else x
    vae = pv.build(x, latent=2, hidden=(5,), likelihood=likelihood, weights="normal")
    before = [p.detach().clone() for p in vae.parameters()]
    history = pv.fit(vae, x, epochs=2, particles=2, valid=0.0, progress=False)
    assert np.isfinite(history["objective"]).all()
    assert all(not torch.equal(a, b) for a, b in zip(before, vae.parameters()))


def test_a_fit_of_digits_rises_and_beats_its_start():
    digits = pv.datasets.load("digits").x.reshape(-1, 64)
    x = (digits > 8).astype("float32")[:900]
    vae = pv.build(x, latent=6, hidden=(32,), likelihood="bernoulli", weights="normal")
    start = pv.score(vae, x[600:], "iwae", num_draws=16).values
    options = {"objective": "analytic_kl", "epochs": 16, "lr": 1e-2, "batch_size": 100, "valid": 0.0}
    history = pv.fit(vae, x[:600], progress=False, **options)
    fitted = pv.score(vae, x[600:], "iwae", num_draws=16).values
    assert history["objective"][-1] > history["objective"][0] + 10
    assert np.mean(np.diff(history["objective"][::4]) > 0) == 1
    assert (fitted - start).mean() > 15
