"""PSIS-LOO of a Bayesian decoder against refits without each row.

x = loading * U z + noise * e with z, e standard normal is pPCA of one latent dimension: its marginal is in closed form, and
the posterior of (log loading, log noise), of all rows or without one, is a sum over a grid. Only the draws are Monte Carlo.
"""

import math

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from torch import nn

import ppl_vae as pv
from ppl_vae.infer.psis import threshold
from ppl_vae.model.vae import VAE

U = torch.tensor([1.0, -0.5, 0.8], dtype=torch.float64)
RANDOM = np.random.RandomState(1)
X = RANDOM.randn(24, 1) * (1.2 * U.numpy()) + 0.6 * RANDOM.randn(24, 3)
SITES = ("loading", "noise")


class Weights(nn.Module):
    """p(w), and p(x | z, w): no parameters."""

    def __init__(self):
        super().__init__()
        self.register_buffer("direction", U)

    def global_sites(self):
        return {name: pyro.sample(name, dist.LogNormal(U.new_zeros(()), 1.0)) for name in SITES}

    def forward(self, z, shared):
        loading, noise = (shared[name][..., None] for name in SITES)
        return dist.Normal(z * loading * U, noise).to_event(1)


class Guide(nn.Module):
    """q(w), log-normal, and q(z | x, w): its exact posterior, or one that is too wide."""

    def __init__(self, loc=(0.0, -0.5), scale=(0.3, 0.3), widened=1.0):
        super().__init__()
        self.loc, self.scale, self.widened = loc, scale, widened

    def global_sites(self):
        numbers = zip(SITES, self.loc, self.scale)
        return {name: pyro.sample(name, dist.LogNormal(U.new_tensor(m), s)) for name, m, s in numbers}

    def forward(self, x, shared):
        loading, noise = (shared[name][..., None] for name in SITES)
        precision = 1 + loading**2 * (U @ U) / noise**2
        loc = loading / noise**2 * (x @ U)[:, None] / precision
        return dist.Normal(loc, self.widened * precision.rsqrt()).to_event(1)


def bayesian(**options):
    return VAE(Guide(**options), Weights(), lambda: dist.Normal(U.new_zeros(1), 1.0).to_event(1))


def log_p(loading, noise):
    """log p(x_i | w) of draws (...): (..., n)."""
    loading, noise, x = loading[..., None] ** 2, noise[..., None] ** 2, torch.as_tensor(X)
    signal = noise + loading * (U @ U)  # the variance along U; noise that across it
    distance = (x * x).sum(1) / noise - loading / (noise * signal) * (x @ U) ** 2
    return -0.5 * (3 * math.log(2 * math.pi) + 2 * noise.log() + signal.log() + distance)


def grid():
    """log loading and log noise, and log p(w, x) + log area at each point, and log p(x_i | w)."""
    axes = torch.linspace(-2.0, 2.5, 200).double(), torch.linspace(-1.6, 0.6, 200).double()
    a, b = torch.meshgrid(*axes, indexing="ij")
    each = log_p(a.exp().ravel(), b.exp().ravel())
    log_prior = dist.Normal(0.0, 1.0).log_prob(torch.stack([a.ravel(), b.ravel()])).sum(0)
    return torch.stack([a.ravel(), b.ravel()]), log_prior + each.sum(1), each


POINTS, LOG_POSTERIOR, EACH = grid()
# log p(x_i | all other rows): the evidence of all rows over that of the others
EXACT = (LOG_POSTERIOR.logsumexp(0) - (LOG_POSTERIOR[:, None] - EACH).logsumexp(0)).numpy()


def standard_error(log_lik, log_weight=0.0):
    """Of the sum over rows of log (sum_s c_s / sum_s c_s / p_is), by the delta method; log_lik (chains, draws, n)."""
    c = np.exp(np.broadcast_to(log_weight, log_lik.shape[:2]) - np.max(log_weight))[..., None]
    removed = c * np.exp(log_lik.min((0, 1)) - log_lik)
    return float(arviz.mcse((c / c.mean() - removed / removed.mean((0, 1))).sum(-1)))


def moments():
    """Mean and standard deviation of log w under its posterior, (2,) each."""
    weight = LOG_POSTERIOR.softmax(0)
    mean = POINTS @ weight
    return mean, ((POINTS - mean[:, None]) ** 2 @ weight).sqrt()


@pytest.fixture(scope="module")
def nuts():
    """{site: (S,)} from the marginal posterior of w, by Pyro's NUTS."""

    def potential(sites):
        return -(log_p(*sites["w"].exp()).sum() - 0.5 * (sites["w"] ** 2).sum())

    with torch.random.fork_rng(), pyro.get_param_store().scope():
        pyro.set_rng_seed(3)
        start = {"w": U.new_tensor([0.5, -0.5])}
        run = MCMC(NUTS(potential_fn=potential), 800, 150, initial_params=start, disable_progbar=True)
        run.run()
        return dict(zip(SITES, run.get_samples()["w"].exp().T))


@pytest.fixture(scope="module")
def exported(nuts):
    return pv.to_arviz(bayesian(), X, shared=nuts, particles=1)


def test_the_log_likelihood_is_the_marginal_of_each_row_given_each_draw_of_the_weights(nuts, exported):
    assert exported.log_likelihood["x"].dims == ("chain", "draw", "row")
    assert np.allclose(exported.log_likelihood["x"][0], log_p(nuts["loading"], nuts["noise"]), atol=1e-10)
    assert np.array_equal(exported.posterior["loading"][0], nuts["loading"])


def test_arvizs_loo_agrees_with_refits_without_each_row(exported):
    """Within 4 Monte Carlo standard errors of the summed difference: fails by chance at 6e-5."""
    found, error = arviz.loo(exported, pointwise=True), standard_error(exported.log_likelihood["x"].values)
    assert not found["warning"] and error < 0.5
    assert abs(found.iloc[0] - EXACT.sum()) < 4 * error
    assert np.abs(found["loo_i"] - EXACT).max() < 0.2


class Flipped(Guide):
    """Knows the weights, and looks for z at the other sign."""

    def forward(self, x, shared):
        q = super().forward(x, shared).base_dist
        return dist.Normal(-q.loc, q.scale).to_event(1)


@pytest.mark.parametrize(("particles", "kept"), [(16, "ess"), (64, "ess"), (1000, "k_hat")])
def test_where_the_encoder_does_not_know_z_the_log_says_so(particles, kept, caplog):
    """Errors of nats, which the standard errors do not show; where q(z) is near p(z | x, w) nothing is said."""
    vae = VAE(Flipped(), Weights(), lambda: dist.Normal(U.new_zeros(1), 1.0).to_event(1))
    found = pv.to_arviz(
        vae, X, num_draws=8, particles=particles, groups=["log_likelihood", "posterior", "sample_stats"]
    )
    w = (torch.as_tensor(found.posterior[name].values[0]).double() for name in SITES)
    error = found.log_likelihood["x"].values[0] - log_p(*w).numpy()
    stats = {name: found.sample_stats[f"{name}_given_shared"].values[0] for name in {"ess", kept}}
    limit = min(10, particles / 4)
    flagged = stats["ess"] < limit if kept == "ess" else stats["k_hat"] > threshold(particles)
    share = found.log_likelihood["x"].attrs["doubtful"]
    assert share == flagged.mean() > 0.4 and error[flagged].mean() < -3
    assert f"of {100 * share:.3g} % of the pairs" in caplog.text and "is likely too low there" in caplog.text
    caplog.clear()
    near = pv.to_arviz(bayesian(widened=1.2), X, num_draws=8, particles=particles, groups=["log_likelihood"])
    assert near.log_likelihood["x"].attrs["doubtful"] == 0 and not caplog.text


def test_ours_is_arvizs_where_the_weights_are_from_the_posterior(exported):
    theirs, ours = arviz.loo(exported, pointwise=True), pv.loo(exported)
    assert np.allclose(ours["loo_i"], theirs["loo_i"]) and np.allclose(ours["pareto_k"], theirs["pareto_k"])
    assert np.allclose([ours.iloc[j] for j in range(3)], [theirs.iloc[j] for j in range(3)])


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
@pytest.mark.parametrize("seed", [0, 1])
def test_weights_from_a_variational_q_are_corrected_for(seed):
    """Within 4 standard errors, 6e-5 each; without the correction it is another number.

    q(w) is wider than the posterior, and beside it: of weights with honest errors."""
    mean, sd = moments()
    exported = pv.to_arviz(
        bayesian(loc=(mean + 0.3 * sd).tolist(), scale=(1.5 * sd).tolist()), X, num_draws=2000, seed=seed, particles=1
    )
    stats = exported.sample_stats
    log_weight = (stats["log_p_shared"] - stats["log_q_shared"]).values
    error = standard_error(exported.log_likelihood["x"].values, log_weight)
    found = pv.loo(exported)
    assert not found["warning"] and error < 0.3
    assert abs(found.iloc[0] - EXACT.sum()) < 4 * error
    assert abs(arviz.loo(exported).iloc[0] - EXACT.sum()) > 20 * error
    assert "ppl_vae.loo" in exported.log_likelihood["x"].attrs["weights"]


def test_of_the_weights_the_export_has_their_own_densities():
    exported = pv.to_arviz(bayesian(loc=(0.6, -0.5)), X, num_draws=50, particles=1)
    w = {name: torch.as_tensor(exported.posterior[name].values[0]) for name in SITES}
    log_prior = {name: dist.LogNormal(0.0, 1.0).log_prob(w[name]) for name in SITES}
    log_q = sum(dist.LogNormal(m, 0.3).log_prob(w[name]) for name, m in zip(SITES, (0.6, -0.5)))
    log_joint = sum(log_prior.values()) + log_p(w["loading"], w["noise"]).sum(1)
    for name in SITES:
        assert np.allclose(exported.log_prior[name][0], log_prior[name])
    assert np.allclose(exported.sample_stats["log_q_shared"][0], log_q)
    assert np.allclose(exported.sample_stats["log_p_shared"][0], log_joint)


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
def test_an_encoder_that_is_not_exact_costs_particles(nuts):
    """The error of each log p(x_i | w) makes leaving out too low, by about its square a row; 64 particles keep it small."""
    few = {name: value[:300] for name, value in nuts.items()}
    exact, wide = (pv.to_arviz(bayesian(widened=c), X, shared=few, particles=64) for c in (1.0, 1.3))
    error = wide.log_likelihood["x"].attrs["mcse"]
    assert 0.01 < error < 0.1
    found = arviz.loo(wide).iloc[0] - arviz.loo(exact).iloc[0]
    assert abs(found) < 4 * math.sqrt(len(X)) * error


def test_point_weights_have_no_log_likelihood_and_arviz_says_so():
    exported = pv.to_arviz(pv.PPCA(1).fit(X), X, num_draws=5)
    with pytest.raises(TypeError, match="log likelihood not found"):
        arviz.loo(exported)
    with pytest.raises(pv.OptionError, match="point estimates, which have seen the rows"):
        pv.loo(exported)
    assert exported.attrs["left_out"].startswith("log_likelihood: ")


SPREAD = 0.6


def log_joint(w, x):
    """Of weights (S, 6), a column and the offsets: log p(w, x) (S,) and log p(x_i | w) (S, n), x (n, 3)."""
    column, x = w[:, None, :3], x - w[:, None, 3:]
    signal = SPREAD**2 + (column**2).sum(-1)
    distance = ((x**2).sum(-1) - (x * column).sum(-1) ** 2 / signal) / SPREAD**2
    each = -0.5 * (3 * math.log(2 * math.pi) + 4 * math.log(SPREAD) + signal.log() + distance)
    return each.sum(1) + dist.Normal(0.0, 1.0).log_prob(w).sum(1), each


@pytest.fixture(scope="module")
def decoder():
    """A linear decoder with weights="normal", an encoder that is exact at the mode of its weights, and 40,000 draws of
    these from a Student-t about it, with their log weights."""
    vae = pv.build(X, latent=1, hidden=(), scale=SPREAD, weights="normal").double()
    x = vae.batch(X).x
    mode = torch.cat([U, torch.zeros(3)]).requires_grad_()
    optimizer = torch.optim.LBFGS([mode], max_iter=200, line_search_fn="strong_wolfe")

    def energy():
        optimizer.zero_grad()
        loss = -log_joint(mode[None], x)[0].sum()
        loss.backward()
        return loss

    optimizer.step(energy)
    mode = mode.detach()
    hessian = torch.autograd.functional.hessian(lambda w: -log_joint(w[None], x)[0].sum(), mode)
    signal = SPREAD**2 + mode[:3] @ mode[:3]
    with torch.no_grad():
        net = vae.encoder.net[0]
        net.weight.copy_(torch.stack([mode[:3] / signal, torch.zeros(3)]))
        net.bias[0] = -mode[:3] @ mode[3:] / signal
        net.bias[1] = (1.1 * SPREAD / signal.sqrt() - 1e-3).expm1().log()
    q = torch.distributions.StudentT(U.new_tensor(8.0)).expand([6])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        noise = q.sample([40_000])
    w = mode + noise @ torch.linalg.cholesky(hessian.inverse()).T
    return vae, w, log_joint(w, x), q.log_prob(noise).sum(1)


def test_a_model_with_weights_normal_agrees_with_refits_without_each_row(decoder):
    """Refits by importance sampling; within 4 standard errors of the summed difference (6e-5) and the bias of particles."""
    vae, w, (log_p_w, each), log_q = decoder
    weight = log_p_w - log_q
    # the marginal is even in the column: the mode at -w gives the same, and needs no visit
    refits = weight.logsumexp(0) - (weight[:, None] - each).logsumexp(0) + vae.schema.log_jacobian
    chosen = w[torch.multinomial(weight.softmax(0), 800, replacement=True)]
    shared = {"decoder.net.0.weight": chosen[:, :3, None], "decoder.net.0.bias": chosen[:, 3:]}
    exported = pv.to_arviz(vae, X, shared=shared, particles=64, groups=["posterior", "log_likelihood"])
    log_lik = exported.log_likelihood["x"]
    errors = standard_error(each.numpy()[None], weight.numpy()[None]), standard_error(log_lik.values)
    found, bias = arviz.loo(exported), len(X) * log_lik.attrs["mcse"] ** 2
    assert not found["warning"] and max(errors) < 0.2 and bias < 0.1
    assert abs(found["elpd_loo"] - float(refits.sum())) < 4 * math.hypot(*errors) + bias


def test_what_is_no_export() -> None:
    with pytest.raises(pv.OptionError, match="loo: got a ndarray, expected what to_arviz returned"):
        pv.loo(np.zeros(3))
