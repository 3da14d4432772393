"""Batched HMC against densities whose moments are known. Limits of 4 standard errors: a false alarm in 16,000 numbers."""

import math

import numpy as np
import pytest
import torch

import ppl_vae as pv
from ppl_vae.infer import graphs, hmc
from ppl_vae.infer.noise import mix

KEYS = mix(torch.arange(1, 41) * 7919)


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def flat(u):
    return torch.zeros(u.shape[:2])


def run(log_lik, rows, k=1, chains=50, length=40, **options):
    start = torch.zeros(chains, rows, k) + 0.1
    settings = {"warmup": 60, **options}
    return hmc.sample(lambda u: (flat(u), log_lik(u)), start, torch.ones(rows, k), KEYS[:rows], length, **settings)


def within(values, expected, error_of=1.0):
    """Whether means over chains (C, T, ...) are within 4 standard errors; those of chains, which are independent."""
    each = values.mean(1)
    error = each.std(0) / math.sqrt(len(each))
    return bool(((each.mean(0) - expected).abs() < 4 * error).all())


def test_moments_of_normals_of_other_scales():
    scale = torch.tensor([[1.0, 0.01], [10.0, 3.0], [0.3, 100.0]])
    loc = torch.tensor([[1.0, -5.0], [0.0, 20.0], [3.0, 1.0]])
    ran = run(lambda u: torch.distributions.Normal(loc, scale).log_prob(u).sum(-1), 3, k=2, warmup=300)
    assert within(ran.u, loc)
    assert within((ran.u - loc) ** 2, scale**2)
    assert ((ran.accept > 0.6) & (ran.accept < 0.99)).all()
    assert (ran.divergences == 0).all()


def test_a_density_of_light_tails():
    """exp(-u^4): E u^2 = gamma(3/4) / gamma(1/4), which holds only where proposals are refused as they should be."""
    ran = run(lambda u: -(u**4).sum(-1), 40, warmup=30)
    assert within(ran.u.mean(2) ** 0 * (ran.u**2).mean(2), math.gamma(0.75) / math.gamma(0.25))


def test_powers_of_the_likelihood():
    """Prior N(0, 1), likelihood N(3; u, 1)^beta: the posterior is N(3 beta / (1 + beta), 1 / (1 + beta))."""
    beta = torch.tensor([0.0, 0.25, 1.0, 4.0])

    def terms(u):
        return -0.5 * (u**2).sum(-1), -0.5 * ((u - 3) ** 2).sum(-1)

    state = hmc.evaluate(terms, torch.randn(4000, 4, 1, generator=torch.Generator().manual_seed(0)))
    met = []
    for number in range(60):
        step, scale = torch.full((4,), 0.5), torch.ones(4, 1)
        moved = hmc.transition(terms, state, step, scale, 5, hmc.key_of(KEYS[:4], number), beta)
        state = moved.state
        met.append(state.u[..., 0])
    kept = torch.stack(met[20:], 1)
    assert within(kept, 3 * beta / (1 + beta))
    assert within((kept - 3 * beta / (1 + beta)) ** 2, 1 / (1 + beta))


def test_rows_are_apart():
    """One row without a sane density changes nothing for the others, and keeps its place."""
    loc = torch.tensor([0.0, math.nan, 2.0])[:, None]
    both = run(lambda u: -0.5 * ((u - loc) ** 2).sum(-1), 3, length=3, warmup=0)
    alone = run(lambda u: -0.5 * ((u - loc[:1]) ** 2).sum(-1), 1, length=3, warmup=0)
    assert torch.equal(both.u[:, :, :1], alone.u)
    assert (both.u[:, :, 1] == 0.1).all()
    assert both.divergences[1] == 50 * 3


def test_the_same_again():
    one, two = (run(lambda u: -0.5 * (u**2).sum(-1), 2, length=3) for _ in range(2))
    assert torch.equal(one.u, two.u)


@pytest.mark.parametrize("kind", ["hmc", "svi", "flow", "laplace", "ais"])
@pytest.mark.parametrize("compiles", [False, True])
def test_by_a_graph(monkeypatch: pytest.MonkeyPatch, kind: str, compiles: bool) -> None:
    """Chains, paths and refinement are the same by what was written down; compiled, up to rounding that chains blow up."""
    if compiles and kind in ("flow", "ais"):
        pytest.skip("as slow to compile as any, and the same code")
    x = np.random.RandomState(0).randn(6, 4)
    vae = pv.build(x, latent=2, hidden=(5,), posterior="full_rank", prior="mixture").double()
    made: list[int] = []
    as_it_is = graphs.lean

    def counted(graph, inputs):
        made.append(1)
        return as_it_is(graph, inputs)

    def found():
        if kind == "ais":
            return pv.log_evidence(vae, x, "ais", num_draws=4, steps=12, leapfrogs=2).log_p
        options = {"hmc": {"warmup": 4, "leapfrogs": 3, "chains": 2}, "laplace": {"steps": 12}}.get(kind, {"steps": 12})
        return pv.posterior(vae, x, kind, num_draws=8, **options).z.numpy()  # of two chains

    monkeypatch.setattr(graphs, "lean", counted)
    without = found()
    assert not made
    monkeypatch.setattr(graphs, "TRACING_PAYS", 1)
    monkeypatch.setattr(graphs, "PAYS", 1 if compiles else 10**9)
    by_graph = found()
    assert bool(made) != compiles
    assert np.allclose(by_graph, without, rtol=1e-8, atol=1e-8)
