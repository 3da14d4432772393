import math
import re

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import EnergyDistance, RenyiELBO, ReweightedWakeSleep, Trace_ELBO, Trace_MMD, TraceTailAdaptive_ELBO

import ppl_vae as pv
from ppl_vae.infer.noise import Keyed, step_keys
from ppl_vae.infer.objectives import OBJECTIVES, REFUSED, objective
from ppl_vae.infer.scope import isolated

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(40, 2) @ RANDOM.randn(2, 4) + 0.5 * RANDOM.randn(40, 4)
ROWS = torch.arange(40)


@pytest.fixture
def ppca():
    return pv.PPCA(2).fit(X)


def loss(vae, name, particles, step=0, x=None, gradient=False):
    """One evaluation of an objective, with the noise that `fit` would use."""
    target = objective(name)
    x = vae.batch(X).x if x is None else x
    elbo = target.make(particles)
    keys = step_keys(ROWS[: len(x)], 0, step)
    with isolated(vae), Keyed(keys, reparameterized=target.reparameterized):
        return (elbo.loss_and_grads if gradient else elbo.loss)(vae.model, vae.guide, x)


@pytest.mark.parametrize(("name", "particles"), [("elbo", 1), ("elbo", 5), ("iwae", 5), ("score_function", 1)])
def test_with_the_exact_guide_the_loss_is_minus_log_p_for_every_row_and_draw(ppca, name, particles):
    x, exact = ppca.batch(X).x, ppca.log_prob(X)
    for row in range(10):
        for step in range(5):
            assert -loss(ppca, name, particles, step, x[row : row + 1]) == pytest.approx(exact[row], abs=1e-6)
    assert -loss(ppca, name, particles) == pytest.approx(exact.sum(), abs=1e-6)


def test_analytic_kl_scatters_around_log_p_even_there(ppca):
    """Mean of 1000 within 4 standard errors: fails by chance at 6e-5 (Roeder et al. 2017 say why it scatters)."""
    values = np.array([-loss(ppca, "analytic_kl", 1, step) for step in range(1000)])
    assert values.std() > 0.1
    assert abs(values.mean() - ppca.log_prob(X).sum()) < 4 * values.std() / math.sqrt(1000)


@pytest.fixture
def moved(ppca):
    """A guide that is not exact."""
    with torch.no_grad():
        ppca.encoder.linear.weight.add_(0.1)
        ppca.encoder.scale.mul_(1.5)
    ppca.encoder.linear.weight.requires_grad_(True)
    return ppca


def test_bounds_are_ordered_and_below_log_p(moved):
    """ELBO < IWAE_5 < IWAE_50 < log p on average over 300 steps, each gap above 4 standard errors of the pairs.

    Fails by chance at 3e-5: what the last bound may lie above log p."""
    bounds = [
        np.array([-loss(moved, name, k, step) for step in range(300)])
        for name, k in (("elbo", 1), ("iwae", 5), ("iwae", 50))
    ]
    for lower, upper in zip(bounds, bounds[1:]):
        gap = upper - lower
        assert gap.mean() > 4 * gap.std() / math.sqrt(300)
    assert bounds[-1].mean() < moved.log_prob(X).sum() + 4 * bounds[-1].std() / math.sqrt(300)


def gradient(vae, name, particles, step):
    vae.zero_grad(set_to_none=True)
    loss(vae, name, particles, step, gradient=True)
    return vae.encoder.linear.weight.grad.flatten().numpy().copy()


@pytest.mark.parametrize(("name", "particles"), [("elbo", 1), ("elbo", 4), ("analytic_kl", 2), ("iwae", 4)])
def test_pathwise_gradients_are_finite_differences_under_shared_noise(moved, name, particles):
    got, weight, h = gradient(moved, name, particles, 3), moved.encoder.linear.weight.data.view(-1), 1e-5
    numeric = []
    for j in range(len(weight)):
        values = []
        for sign in (1, -1):
            weight[j] += sign * h
            values.append(loss(moved, name, particles, 3))
            weight[j] -= sign * h
        numeric.append((values[0] - values[1]) / (2 * h))
    assert np.allclose(got, numeric, rtol=1e-5, atol=1e-5)


def test_score_function_has_the_same_mean_gradient_and_more_variance(moved):
    """8 coordinates of 1200 draws, each within 4.5 standard errors: fails by chance at 6e-5."""
    path = np.array([gradient(moved, "elbo", 10, step) for step in range(500)])
    score = np.array([gradient(moved, "score_function", 10, step) for step in range(500, 1700)])
    error = np.sqrt(path.var(0) / len(path) + score.var(0) / len(score))
    assert np.all(np.abs(path.mean(0) - score.mean(0)) < 4.5 * error)
    assert score.var(0).sum() > 5 * path.var(0).sum()


def test_score_function_detaches_its_draws(moved):
    with isolated(moved), Keyed(step_keys(ROWS, 0, 0), reparameterized=False):
        z = moved.guide(moved.batch(X).x)
    assert not z.requires_grad


def test_iwae_with_one_particle_is_the_elbo(moved):
    for step in range(5):
        assert loss(moved, "iwae", 1, step) == pytest.approx(loss(moved, "elbo", 1, step), abs=1e-9)


def test_any_factory_of_an_elbo_is_an_objective():
    x = X.astype("float32")
    vae = pv.build(x, latent=2, hidden=(8,))
    history = pv.fit(vae, x, objective=Trace_ELBO, epochs=2, progress=False)
    same = pv.build(x, latent=2, hidden=(8,))
    again = pv.fit(same, x, objective="elbo", epochs=2, progress=False)
    assert np.array_equal(history["bound"], again["bound"])


@pytest.mark.parametrize("vectorized", [True, False])
def test_particles_of_a_users_elbo_are_draws_of_their_own(moved, vectorized):
    """Ten particles scatter as ten do, run at once or one after another: the ratio of variances is F(199, 199), 1e-6."""

    def losses(particles):
        values = []
        for step in range(200):
            elbo = Trace_ELBO(num_particles=particles, vectorize_particles=vectorized and particles > 1)
            with isolated(moved), torch.no_grad(), Keyed(step_keys(ROWS, 0, step)):
                values.append(elbo.loss(moved.model, moved.guide, moved.batch(X).x))
        return np.array(values)

    ratio = losses(1).var(ddof=1) / losses(10).var(ddof=1)
    assert 10 / 2 < ratio < 10 * 2


def test_history_counts_particles_that_run_one_after_another():
    x = X.astype("float32")
    bounds = []
    for vectorized in (True, False):
        elbo = RenyiELBO(alpha=0, num_particles=6, vectorize_particles=vectorized)
        target = objective("iwae")._replace(make=lambda particles, elbo=elbo: elbo)
        vae = pv.build(x, latent=2, hidden=(8,))
        bounds.append(pv.fit(vae, x, objective=target, epochs=2, progress=False)["bound"])
    assert np.allclose(*bounds, rtol=1e-5)


class LogNormalCode(torch.nn.Module):
    outputs = 2

    def forward(self, loc, raw):
        base = dist.Normal(loc, torch.nn.functional.softplus(raw) + 0.1)
        return dist.TransformedDistribution(base, dist.transforms.ExpTransform()).to_event(1)


def test_score_function_is_refused_where_it_would_be_another_estimator():
    point = pv.build(X, latent=2, posterior="delta", prior="flat", scale=1.0)
    with pytest.raises(pv.ProgramError, match="site 'z': got a point mass"):
        pv.fit(point, X, objective="score_function", progress=False)
    prior = dist.LogNormal(torch.zeros(2), 1.0).to_event(1)
    transformed = pv.build(X, latent=2, posterior=LogNormalCode(), prior=prior)
    with pytest.raises(pv.ProgramError, match="site 'z': got TransformedDistribution"):
        pv.fit(transformed, X, objective="score_function", progress=False)
    assert np.isfinite(pv.fit(transformed, X, epochs=2, progress=False)["valid_bound"]).all()


def test_bad_objectives():
    vae = pv.build(X, latent=2)
    with pytest.raises(pv.OptionError, match="'advi', expected one of 'elbo'"):
        pv.fit(vae, X, objective="advi")
    with pytest.raises(pv.OptionError, match="expected them set inside"):
        pv.fit(vae, X, objective=Trace_ELBO, particles=3)
    with pytest.raises(pv.OptionError, match="no KL term to weigh"):
        pv.fit(vae, X, objective="iwae", particles=3, kl_warmup=2)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (("renyi", {"alpha": 1}), "alpha: got 1, where Rényi's bound is the ELBO.*use 'elbo'"),
        (("renyi", {"alpha": "a"}), "alpha: got 'a'"),
        (("renyi", {"beta": 1}), r"objective: got {'beta': 1} for 'renyi', expected options among \['alpha'\]"),
        (("iwae", {"alpha": 1}), r"for 'iwae', expected options among \[\]"),
        (("mean_iwae", {"groups": 0}), "groups: got 0"),
        (("sticking_the_landing", {"bound": "renyi"}), "bound: got 'renyi', expected one of 'elbo', 'iwae'"),
        (("score_function", {"baseline": 1}), "baseline: got 1, expected one of 'none', 'leave_one_out', 'decaying'"),
        (("beta", {"beta": -1}), "beta: got -1"),
        (("cyclic", {"cycles": 1.5}), "cycles: got 1.5"),
        (("cyclic", {"share": 2}), "share: got 2"),
        (("free_bits", {"bits": -0.1}), "bits: got -0.1"),
        (("mmd", {"lam": None}), "lam: got None"),
        (("relaxation", {"temperature": 0}), "temperature: got 0"),
    ],
)
def test_bad_options_of_objectives(choice, message):
    with pytest.raises(pv.OptionError, match=message):
        objective(choice)


JOINT_FACTORIES = {
    ReweightedWakeSleep: lambda: ReweightedWakeSleep(num_particles=3),
    TraceTailAdaptive_ELBO: lambda: TraceTailAdaptive_ELBO(num_particles=3, vectorize_particles=True),
    EnergyDistance: lambda: EnergyDistance(num_particles=3),
    Trace_MMD: lambda: Trace_MMD(kernel={}),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_pyros_objectives_that_are_refused_name_what_to_use_instead(kind):
    for choice in (kind, JOINT_FACTORIES.get(kind, lambda: kind())):
        with pytest.raises(pv.OptionError, match=f"objective: got {kind.__name__}, wh.*expected '") as caught:
            pv.fit(pv.build(X, latent=2), X, objective=choice, progress=False)
        assert any(f"'{name}'" in str(caught.value) for name in OBJECTIVES)
        assert ("compiled=True" in str(caught.value)) == kind.__name__.startswith("Jit")


@pytest.mark.parametrize("prior", ["ard", "hierarchical"])
def test_pyros_renyi_bound_is_refused_where_a_site_is_shared_and_ours_knows_where_it_belongs(prior):
    table = pd.DataFrame(X, columns=list("abcd")).assign(who=list("uvwx") * 10)
    options = {"prior": "hierarchical", "group": "who"} if prior == "hierarchical" else {"prior": "ard", "hidden": ()}
    data = table if prior == "hierarchical" else X
    renyi = lambda: RenyiELBO(alpha=0.5, num_particles=3)  # noqa: E731
    with pytest.raises(
        pv.OptionError, match=r"got RenyiELBO with the site '.*' that all rows share.*'iwae' or 'renyi'"
    ):
        pv.fit(pv.build(data, latent=2, **options), data, objective=renyi, progress=False)
    pv.fit(pv.build(X, latent=2), X, objective=renyi, epochs=1, progress=False)
    if prior == "ard":
        pv.fit(pv.build(X, latent=2, **options), X, objective="renyi", epochs=1, progress=False)
        return
    for name, target in OBJECTIVES.items():
        if not target.shared:
            with pytest.raises(pv.OptionError, match=f"{name}.*that all rows share; expected 'elbo'"):
                pv.fit(pv.build(data, latent=2, **options), data, objective=name, particles=2, progress=False)


@pytest.mark.parametrize("options", [{"prior": "hierarchical", "group": "who"}, {"weights": "normal"}])
def test_objectives_that_are_advised_can_be_fitted(options):
    """Sites that all rows share may have no draws without a gradient, which the score function would need."""
    data = pd.DataFrame(X, columns=list("abcd")).assign(who=list("uvwx") * 10) if "group" in options else X
    vae = pv.build(data, latent=2, hidden=(4,), **options)
    with pytest.raises(pv.OptionError, match=r"sticking_the_landing.*expected 'elbo'") as caught:
        pv.fit(vae, data, objective="sticking_the_landing", progress=False)
    advised = re.findall("'([a-z_]+)'", str(caught.value).partition("expected")[2])
    assert advised == ["elbo", "analytic_kl", "trace_graph", "beta", "cyclic"]
    for name in advised:
        pv.fit(vae, data, objective=name, epochs=1, progress=False)


def test_every_objective_says_what_it_is_and_needs():
    assert {name for name, target in OBJECTIVES.items() if not target.per_row} == {"free_bits", "mmd"}
    for name, target in OBJECTIVES.items():
        assert target.text and target.bound in ("elbo", "iwae"), name
    assert OBJECTIVES["elbo"].needs == "" and "draws with a gradient" in OBJECTIVES["dreg"].needs
    chosen = objective(("score_function", {"baseline": "leave_one_out"}), 2)
    assert chosen.least == 2 and chosen.options == {"baseline": "leave_one_out"}
    assert OBJECTIVES["score_function"].least == 1


def test_each_row_of_iwae_is_weighed_alone():
    """One joint weight for the batch would be far below the sum of the rows' bounds."""
    scale = 0.2
    vae = pv.VAE(
        lambda x: dist.Normal(0 * x, 1.0).to_event(1),
        lambda z: dist.Normal(z, scale).to_event(1),
        lambda: dist.Normal(torch.zeros(1), 1.0).to_event(1),
    )
    x = torch.linspace(-2, 2, 30)[:, None]
    keys = step_keys(torch.arange(30), 0, 0)
    with isolated(vae), torch.no_grad(), Keyed(keys):
        got = -objective("iwae").make(5000).loss(vae.model, vae.guide, x)
    exact = dist.Normal(0.0, math.sqrt(1 + scale**2)).log_prob(x).sum()
    assert got == pytest.approx(float(exact), abs=1.0)
    assert "loc" not in pyro.get_param_store()


@pytest.mark.parametrize("particles", [1, 4])
def test_iwae_is_renyis_bound_and_adds_a_prior_of_weights_once(particles):
    """Pyro's RenyiELBO puts an observed site that all rows share inside the logarithm, and the whole batch with it."""
    x = RANDOM.randn(30, 5)

    def both(prior):
        vae = pv.build(x, latent=3, hidden=(), prior=prior).double()
        rows = vae.batch(x)
        with isolated(vae), Keyed(step_keys(torch.arange(30), 0, 0)):
            ours = objective("iwae").make(particles).loss(vae.model, vae.guide, rows.x)
        with isolated(vae), Keyed(step_keys(torch.arange(30), 0, 0)):
            vectorized = particles > 1
            theirs = RenyiELBO(alpha=0.0, num_particles=particles, vectorize_particles=vectorized, max_plate_nesting=1)
            theirs = theirs.loss(vae.model, vae.guide, rows.x)
        with isolated(vae):
            sites = pyro.poutine.trace(vae.model).get_trace(n=1).nodes.values()
        shared = [s for s in sites if s["type"] == "sample" and s["is_observed"]]
        return ours, theirs, sum(float(s["fn"].log_prob(s["value"]).sum().detach()) for s in shared)

    plain, renyi, _ = both("standard_normal")
    assert plain == pytest.approx(renyi, abs=1e-9)
    penalised, _, log_prior = both("ard")
    assert penalised == pytest.approx(plain - log_prior, abs=1e-9)
