"""Evidence against closed forms. Stochastic limits are 4 standard errors: a false alarm in 16,000 numbers."""

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.errors import OptionError
from ppl_vae.infer import ais, hmc
from ppl_vae.infer.noise import mix


@pytest.fixture(scope="module")
def ppca():
    """Probabilistic PCA with a guide that is off: log p(x) stays known."""
    r = np.random.RandomState(0)
    x = r.randn(400, 3) @ r.randn(3, 6) + 0.5 * r.randn(400, 6)
    model = pv.PPCA(3).fit(x)
    with torch.no_grad():
        model.encoder.linear.weight.mul_(0.95)
        model.encoder.scale.mul_(1.2)
    return model, x


@pytest.mark.parametrize("method, draws, path", [("iwae", 2000, {}), ("psis", 2000, {}), ("ais", 64, {"steps": 60})])
def test_closed_form(ppca, method, draws, path):
    model, x = ppca
    found = pv.log_evidence(model, x[:100], method, draws, **path)
    z = (found.log_p - model.log_prob(x[:100])) / found.mcse
    assert np.mean(np.abs(z) < 3) >= 0.95
    assert abs(z.mean()) < 4 * max(z.std(), 1) / 10 + 0.2  # a log of a mean is low by a fraction of its error
    assert z.std() < 1.5
    assert not found.doubtful.any()
    assert "no row shows" in found.verdict


def test_a_bad_guide_is_told(ppca):
    _, x = ppca
    far = pv.PPCA(3).fit(x)
    with torch.no_grad():
        far.encoder.scale.mul_(0.2)
    found = pv.log_evidence(far, x[:20], num_draws=1000)
    assert found.doubtful.mean() > 0.8
    assert "do not trust" in found.verdict
    few = pv.log_evidence(far, x[:20], num_draws=100)
    assert np.isnan(few.k_hat).all() and "too few" in few.verdict


def test_the_error_of_the_mean(ppca):
    """Equal rows have equal noise: their mean is no surer than one of them. Of different rows errors cancel."""
    model, x = ppca
    one = pv.log_evidence(model, x[:1], num_draws=500)
    same = pv.log_evidence(model, np.repeat(x[:1], 9, 0), num_draws=500)
    assert one.mean_mcse == pytest.approx(one.mcse[0]) and same.mean_mcse == pytest.approx(one.mcse[0])
    means = [pv.log_evidence(model, x[:100], num_draws=50, seed=seed) for seed in range(100)]
    spread = np.std([found.log_p.mean() for found in means], ddof=1)  # known to 7 %: fails by chance at 2e-5
    assert np.mean([found.mean_mcse for found in means]) == pytest.approx(spread, rel=0.3)


def test_the_error_of_the_mean_under_uncertain_weights():
    x = np.random.RandomState(0).randn(60, 3)
    vae = pv.build(x, latent=1, hidden=(), weights="normal", seed=1, scale=1.0)
    with torch.no_grad():
        vae.encoder.net[-1].bias[1:] += 1.0  # wide enough for weights to have a variance
    means = [pv.log_evidence(vae, x, num_draws=200, seed=seed) for seed in range(60)]
    spread = np.std([found.log_p.mean() for found in means], ddof=1)  # known to 9 %: fails by chance at 6e-5
    assert np.mean([found.mean_mcse for found in means]) == pytest.approx(spread, rel=0.36)


def test_simulated_by_another_model(ppca):
    with pytest.raises(pv.OptionError, match="3 latent dimensions, expected those of this very model, which has 2"):
        pv.log_evidence(pv.PPCA(2).fit(ppca[1]), pv.generate(ppca[0], 3), "ais", 4, steps=5)


@pytest.mark.parametrize("count", [1, 5, 12])
def test_other_numbers_of_z_than_rows(ppca, count):
    model = ppca[0]
    made = pv.generate(model, 10)
    with pytest.raises(OptionError, match=f"data: got 10 simulated rows with {count} z, expected the z of each row"):
        pv.log_evidence(model, pv.Simulated(made.x, np.resize(made.z, (count, made.z.shape[1]))), "ais", 4, steps=5)


def test_columns_of_a_frame_are_no_latents(ppca):
    """A frame may have a column named z: it is not where the rows came from."""
    _, x = ppca
    frame = pd.DataFrame(x[:20, :4], columns=["x", "y", "z", "h"])
    model = pv.PPCA(2).fit(frame)
    found = pv.log_evidence(model, frame, "ais", 4, steps=5)
    assert found.upper is None and np.array_equal(
        found.log_p, pv.log_evidence(model, frame.to_numpy(), "ais", 4, steps=5).log_p
    )


def test_a_path_is_of_annealing_alone(ppca):
    with pytest.raises(OptionError, match="steps: got 50 with 'iwae'"):
        pv.log_evidence(*ppca, "iwae", steps=50)


def test_equal_weights(ppca):
    exact = pv.PPCA(3).fit(ppca[1])
    found = pv.log_evidence(exact, ppca[1][:5], num_draws=1000)
    assert (found.k_hat == 0).all() and (found.mcse < 1e-6).all()
    assert np.allclose(found.ess, 1000)


def terms(u):
    """Prior N(0, 1), likelihood N(2; u, 0.5^2): p = N(2; 0, 1.25)."""
    normal = torch.distributions.Normal
    return normal(0.0, 1.0).log_prob(u).sum(-1), normal(u, 0.5).log_prob(torch.tensor(2.0, dtype=u.dtype)).sum(-1)


LOG_P = float(torch.distributions.Normal(0.0, 1.25**0.5).log_prob(torch.tensor(2.0)))


@pytest.mark.parametrize("leapfrogs, step", [(1, 0.3), (3, 1.4)])
def test_the_mean_weight_is_unbiased_on_a_coarse_path(leapfrogs, step):
    """Three steps far from equilibrium: forward E w = p(x), and backward E 1/w = 1/p(x), exactly."""
    rows, chains = 20, 4000
    noise = torch.Generator().manual_seed(0)
    beta = torch.tensor([0.0, 0.1, 0.5, 1.0]).double()[:, None].expand(-1, rows)
    path = ais.Path(beta, torch.full((3, rows), step), torch.ones(3, rows, 1).double(), leapfrogs)
    keys = mix(torch.arange(1, rows + 1) * 31)
    start = torch.randn(chains, rows, 1, generator=noise, dtype=torch.float64)
    forward = (ais.forward(terms, start, keys, path) - LOG_P).exp().flatten()
    assert abs(forward.mean() - 1) < 4 * forward.std() / len(forward) ** 0.5
    assert forward.std() > 0.1  # else the path would test nothing
    posterior = 1.6 + 0.2**0.5 * torch.randn(chains, rows, 1, generator=noise, dtype=torch.float64)
    backward = (LOG_P - ais.backward(terms, posterior, mix(keys), path)).exp().flatten()
    assert abs(backward.mean() - 1) < 4 * backward.std() / len(backward) ** 0.5


def test_a_tuned_path():
    rows = 5
    start = torch.randn(ais.PILOTS, rows, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    path = ais.tuned(terms, start, mix(torch.arange(1, rows + 1)), 40, 3)
    assert path.beta.shape == (41, rows) and (path.beta.diff(dim=0) > 0).all()
    assert (path.beta[0] == 0).all() and (path.beta[-1] == 1).all()
    assert (path.scale[-1] < path.scale[0]).float().mean() > 0.5  # the posterior is narrower than the prior
    moved = hmc.transition(
        terms, hmc.evaluate(terms, start), path.step[0], path.scale[0], 3, mix(start[0, :, 0].long())
    )
    assert 0.3 < moved.accept.mean() <= 1


def test_simulated_rows_are_bounded_from_above(ppca):
    model, _ = ppca
    simulated = pv.generate(model, 40)
    found = pv.log_evidence(model, simulated, "ais", 16, steps=150)
    exact = model.log_prob(simulated.x)
    gap = found.upper - found.log_p
    assert found.upper is not None and gap.mean() > -4 * gap.std() / 40**0.5
    assert abs((found.upper - exact).mean()) < 0.1 and abs((found.log_p - exact).mean()) < 0.1
    assert "from above" in found.verdict
    assert pv.log_evidence(model, simulated.x, "ais", 4, steps=10).upper is None


class Given(nn.Module):
    """A decoder onto two columns, of fixed weights."""

    def forward(self, z):
        mean = torch.stack([z[..., 0] - 0.5 * z[..., 1], torch.sin(z[..., 0])], -1)
        return dist.Normal(mean, 0.4).to_event(1)


def encoder(x):
    return dist.Normal(0.5 * x, 0.8).to_event(1)


def integrated(prior, x, of=lambda u: u, size=400):
    """log p(x) at k = 2 on a grid."""
    line = torch.linspace(-7, 7, size)
    z = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).view(-1, 1, 2)
    joint = prior.log_prob(z) + Given()(z).log_prob(x)
    return (joint.double().logsumexp(0) + 2 * torch.log(line[1] - line[0])).numpy()


def mixture():
    return dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.3, 0.7])),
        dist.Normal(torch.tensor([[-1.0, 0.0], [1.5, 1.0]]), 0.7).to_event(1),
    )


@pytest.mark.parametrize("method, draws, path", [("iwae", 4000, {}), ("ais", 64, {"steps": 100})])
def test_other_priors_against_a_grid(method, draws, path):
    vae = pv.VAE(encoder, Given(), mixture)
    x = torch.tensor([[0.3, 0.8], [-2.0, -0.5], [1.0, 0.1]])
    found = pv.log_evidence(vae, x.numpy(), method, draws, **path)
    assert (np.abs(found.log_p - integrated(mixture(), x)) < 4 * found.mcse + 0.01).all()


FIXED = {"flat", "sphere", "bernoulli", "categorical", "conditional", "hierarchical", "ard", "horseshoe"}


@pytest.mark.parametrize("prior", sorted(pv.priors().keys() - FIXED))
def test_every_continuous_prior(prior):
    """Annealing from the prior agrees with the mean of p(x|z) over many draws of z, also where a site is summed out."""
    x = np.random.RandomState(0).randn(30, 2)
    simplex = {"posterior": "logistic_normal"} if prior in ("dirichlet", "logistic_normal") else {}
    more = {"components": 3} if prior in ("mixture", "enumerated_mixture", "vamp") else {}
    vae = pv.build(x, latent=2, hidden=(4,), prior=prior, seed=1, scale=0.7, **simplex, **more)
    with torch.no_grad():
        likelihood = vae.decoder(torch.as_tensor(pv.generate(vae, 100_000).z))
        log_lik = likelihood.log_prob(vae.batch(x[:3]).x[:, None]).double() + vae.schema.log_jacobian
    mean, spread = log_lik.exp().mean(1), log_lik.exp().std(1)
    found = pv.log_evidence(vae, x[:3], "ais", 64, steps=20)
    error = np.hypot(found.mcse, (spread / mean / 100_000**0.5).numpy())
    assert (np.abs(found.log_p - mean.log().numpy()) < 4 * error + 1e-3).all()


def test_sites_that_all_rows_share():
    """Each chain has its own draw of the groups' effects: the log of the mean evidence over their posterior."""
    x = pd.DataFrame(np.random.RandomState(0).randn(30, 2), columns=["a", "b"]).assign(g=["u", "v", "w"] * 10)
    vae = pv.build(x, latent=2, hidden=(4,), prior="hierarchical", group="g", seed=1, scale=1.0)
    with torch.no_grad():
        vae.encoder.net[-1].bias[2:] += 2.0  # wider than the prior, so that weights have a variance
    by_chains, by_weights = (
        pv.log_evidence(vae, x[:3], "ais", 200, steps=20),
        pv.log_evidence(vae, x[:3], num_draws=9000),
    )
    error = np.hypot(by_chains.mcse, by_weights.mcse)
    assert (np.abs(by_chains.log_p - by_weights.log_p) < 4 * error).all() and (error < 0.1).all()


def test_a_row_alone(ppca):
    model, x = ppca
    for method in ("iwae", "psis"):
        together, alone = pv.log_evidence(model, x[:9], method, 1000), pv.log_evidence(model, x[4:5], method, 1000)
        assert together.log_p[4] == pytest.approx(alone.log_p[0], rel=1e-12)


def test_what_has_no_evidence(ppca):
    _, x = ppca
    plain = pv.build(x, latent=2, hidden=(), posterior="delta", prior="flat", scale=1.0)
    with pytest.raises(pv.OptionError, match="improper prior"):
        pv.log_evidence(plain, x)
    sphere = pv.build(x, latent=3, hidden=(), prior="sphere", posterior="power_spherical")
    with pytest.raises(pv.ProgramError, match="coordinates without constraints"):
        pv.log_evidence(sphere, x[:2], "ais", 4)
    with pytest.raises(pv.OptionError, match="'psis', expected at least 1000"):
        pv.log_evidence(sphere, x[:2], "psis", 100)
    with pytest.raises(pv.OptionError, match="method: got 'exact'"):
        pv.log_evidence(sphere, x[:2], "exact")
