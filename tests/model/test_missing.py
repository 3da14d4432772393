import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from ppl_vae.data.schema import Schema
from ppl_vae.errors import ProgramError
from ppl_vae.model.families import LIKELIHOODS, Heads, likelihood
from ppl_vae.model.missing import inside, masked

MASK = torch.tensor([[True, True, True], [True, False, True], [False, False, True], [False, False, False]])
VALUE = {"positive": 0.7, "unit": 0.3, "count": 4.0, "boolean": 1.0, "categorical": 2.0, "ordinal": 1.0, "pixel": 1.0}


def columns(kinds):
    """A schema of three columns of one type, or of the types given."""
    kinds = (kinds,) * 3 if isinstance(kinds, str) else kinds
    names = tuple(f"x{j}" for j in range(len(kinds)))
    levels = tuple(tuple("abc") if k in ("categorical", "ordinal") else None for k in kinds)
    return Schema(names, "pandas", (len(kinds),), types=kinds, levels=levels)


def family(name, scale="row"):
    return likelihood(columns(LIKELIHOODS[name].type), name, Heads(scale))


def scored(module, x, mask, raw):
    """log p(observed | z) (n,), and the gradients of its sum."""
    raw = raw.clone().requires_grad_()
    distribution = module(raw)
    log_p = masked(distribution, mask).log_prob(torch.where(mask, x, inside(distribution)))
    parameters = list(module.parameters())
    return log_p, torch.autograd.grad(log_p.sum(), [raw, *parameters])


@pytest.mark.parametrize("scale", ["row", "feature"])
@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("name", ["low_rank_normal", "full_normal"])
def test_a_masked_joint_normal_is_its_exact_marginal(name, lead, scale):
    module = family(name, scale).double()
    distribution = module(torch.randn(*lead, 4, module.width, dtype=torch.float64))
    x = torch.randn(4, 3, dtype=torch.float64)
    got = masked(distribution, MASK).log_prob(torch.where(MASK, x, 0.0)).detach()
    assert got.shape == (*lead, 4)
    loc = distribution.loc.detach().numpy()
    covariance = distribution.covariance_matrix.detach().expand(*lead, 4, 3, 3).numpy()
    for place in np.ndindex(*lead, 3):
        seen = MASK[place[-1]].numpy()
        oracle = stats.multivariate_normal(loc[place][seen], covariance[place][np.ix_(seen, seen)])
        assert float(got[place]) == pytest.approx(oracle.logpdf(x[place[-1]].numpy()[seen]), abs=1e-9)
    assert got[..., 3].abs().max() < 1e-12


def test_a_full_mask_leaves_joint_normals_as_they_are():
    for name in ("low_rank_normal", "full_normal"):
        module = family(name)
        distribution = module(torch.randn(4, module.width))
        whole = masked(distribution, torch.ones(4, 3, dtype=torch.bool))
        x = torch.randn(4, 3)
        assert torch.allclose(whole.log_prob(x), distribution.log_prob(x), atol=1e-4)


def test_a_masked_full_normal_takes_ill_conditioned_factors():
    """A condition number of 1e9 of the factor: its square is beyond float64."""
    tril = torch.tensor([[1.0, 0, 0], [1e3, 1e-3, 0], [1e3, 1e3, 1e-6]], dtype=torch.float64, requires_grad=True)
    normal = dist.MultivariateNormal(torch.zeros(3, dtype=torch.float64), scale_tril=tril)
    log_p = masked(normal, torch.tensor([True, True, True])).log_prob(torch.zeros(3, dtype=torch.float64))
    assert float(log_p.detach()) == pytest.approx(-math.log(1e-9) - 1.5 * math.log(2 * math.pi), rel=1e-6)
    assert torch.autograd.grad(log_p, tril)[0].isfinite().all()


@pytest.mark.parametrize("name", sorted(set(LIKELIHOODS) - {"multinomial"}))
def test_entries_are_those_observed_alone(name):
    """log p of a row with holes is the sum over, or the marginal of, its other cells."""
    if name in ("low_rank_normal", "full_normal"):
        return  # above
    module = family(name)
    distribution = module(torch.randn(4, module.width))
    x = torch.full((4, 3), VALUE.get(LIKELIHOODS[name].type, 0.4))
    got = masked(distribution, MASK).log_prob(torch.where(MASK, x, inside(distribution)))
    assert torch.allclose(got, (distribution.base_dist.log_prob(x) * MASK).sum(-1))


@pytest.mark.parametrize("scale", ["row", "feature"])
@pytest.mark.parametrize("name", sorted(set(LIKELIHOODS) - {"multinomial"}))
def test_what_stands_in_a_hole_never_matters(name, scale):
    """Scores and gradients are bit-equal and finite for NaN, 0 and 1e30."""
    module = family(name, scale)
    raw = torch.randn(4, module.width)
    results = []
    for hidden in (torch.nan, 0.0, 1e30):
        x = torch.where(MASK, VALUE.get(LIKELIHOODS[name].type, 0.4), hidden)
        log_p, gradients = scored(module, x, MASK, raw)
        assert log_p.isfinite().all() and all(g.isfinite().all() for g in gradients)
        results.append([log_p, *gradients])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


def test_what_stands_in_a_hole_never_matters_in_a_mixed_table():
    kinds = ("positive", "real", "categorical", "unit", "count", "pixel", "angle")
    names = ("gamma", "student_t", "categorical", "beta", "zero_inflated_negative_binomial", "discretized_logistic")
    choice = dict(zip((f"x{j}" for j in range(7)), (*names, "von_mises")))
    module = likelihood(columns(kinds), choice)
    raw, mask = torch.randn(6, module.width), torch.rand(6, 7) > 0.5
    own = torch.tensor([0.7, 0.4, 2.0, 0.3, 4.0, 1.0, 0.4])
    results = []
    for hidden in (torch.nan, 0.0, 1e30):
        log_p, gradients = scored(module, torch.where(mask, own, hidden), mask, raw)
        results.append([log_p, *gradients])
        assert log_p.isfinite().all() and all(g.isfinite().all() for g in gradients)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))
    full = module(raw).base_dist.log_prob(own.expand(6, 7))
    assert torch.allclose(results[0][0], (full * mask).sum(-1), atol=1e-5)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_inside_is_in_the_support(name):
    module = family(name)
    distribution = module(torch.randn(4, module.width))
    filled = torch.where(MASK, torch.nan, inside(distribution))
    entries = getattr(distribution, "base_dist", distribution)
    if name != "multinomial" and isinstance(distribution, dist.Independent):
        assert entries.support.check(filled)[~MASK].all()
    else:
        assert (filled[~MASK] == 0).all()


def test_inside_knows_supports_with_other_bounds():
    assert float(inside(dist.Uniform(torch.full((3,), 2.0), 4.0).to_event(1))[0]) == 3.0
    assert float(inside(dist.Categorical(torch.ones(3, 2)).to_event(1))) == 0.0
    assert float(inside(dist.Pareto(torch.ones(3) * 2, 1.0).to_event(1))[0]) > 2.0


@pytest.mark.parametrize(
    "distribution",
    [
        dist.Multinomial(3, torch.ones(4, 3)),
        dist.Dirichlet(torch.ones(4, 3)),
        dist.MultivariateNormal(torch.zeros(4, 3, 2), torch.eye(2)).to_event(1),
    ],
)
def test_joint_families_without_a_formula_are_refused(distribution):
    with pytest.raises(ProgramError, match=r"expected one distribution an entry"):
        masked(distribution, MASK)
