import math

import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.distributions import biject_to

from ppl_vae.model.discrete import BitVector
from ppl_vae.model.flows import Flow
from ppl_vae.model.mixture import Mixture, of_normals
from ppl_vae.model.simplex import logistic_normal
from ppl_vae.model.sphere import PowerSpherical


def components(k, *batch):
    return torch.randn(*batch, 3), torch.randn(*batch, 3, k), torch.rand(*batch, 3, k) + 0.5


def test_density_and_responsibilities_by_hand():
    logits, loc, scale = components(2)
    z = torch.randn(5, 2)
    p = of_normals(logits, loc, scale)
    joint = torch.stack(
        [
            logits.softmax(-1)[c] * torch.as_tensor(stats.norm.pdf(z, loc[c], scale[c]).prod(-1)).float()
            for c in range(3)
        ],
        -1,
    )
    assert torch.allclose(p.log_prob(z), joint.sum(-1).log(), atol=1e-5)
    assert torch.allclose(p.responsibilities(z), joint / joint.sum(-1, keepdim=True), atol=1e-5)
    assert torch.allclose(p.mean, (logits.softmax(-1)[:, None] * loc).sum(0))


@pytest.mark.parametrize("k", [1, 2])
def test_draws_follow_the_density(k, goodness_of_fit):
    """Each fails by chance at 1e-4."""
    assert goodness_of_fit(of_normals(*components(k)), dim=k) > 1e-4


@pytest.mark.parametrize("k", [1, 2, 3])
def test_gradients_of_draws_are_those_of_the_moments(k):
    """E[z' A z] has a closed form: its gradients within five standard errors, of at most 21 numbers (1e-5)."""
    n, start = 40000, [t.double() for t in components(k)]
    a = torch.randn(k, k).double()
    exact = [t.clone().requires_grad_() for t in start]
    quadratic = ((exact[1] @ a) * exact[1]).sum(-1) + (exact[2] ** 2 * a.diagonal()).sum(-1)
    (exact[0].softmax(-1) * quadratic).sum().backward()
    rows = [t.expand(n, *t.shape).clone().requires_grad_() for t in start]
    z = of_normals(*rows).rsample()
    ((z @ a) * z).sum().backward()
    for row, one in zip(rows, exact):
        error = (row.grad.mean(0) - one.grad) / (row.grad.std(0) / n**0.5 + 1e-12)
        assert error.abs().max() < 5


def test_a_draw_is_unchanged_by_its_gradient_and_equal_components_are_no_trouble():
    logits, loc, scale = (t.requires_grad_() for t in (torch.zeros(3), torch.zeros(3, 2), torch.ones(3, 2)))
    p = of_normals(logits, loc, scale)
    z = p.sample((100,))
    assert torch.equal(p.attach(z), z)
    p.rsample((100,)).square().sum().backward()
    assert all(t.grad.isfinite().all() for t in (logits, loc, scale)) and torch.allclose(logits.grad, torch.zeros(3))


def test_shapes_expansion_and_types():
    p = of_normals(*components(4, 5)).expand((2, 5))
    assert p.batch_shape == (2, 5) and p.event_shape == (4,) and p.has_rsample
    z = p.rsample((7,))
    assert z.shape == (7, 2, 5, 4) and p.log_prob(z).shape == (7, 2, 5)
    assert p.responsibilities(z).shape == (7, 2, 5, 3) and p.mean.shape == (2, 5, 4)
    assert of_normals(*components(4)).expand((6,)).sample().shape == (6, 4)
    assert of_normals(*(t.double() for t in components(2))).rsample().dtype == torch.float64
    assert biject_to(p.support)(z).shape == z.shape  # what NUTS asks for
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.full((2, 5, 4), math.nan))


def flows():
    flow = Flow(3, context=2)
    return flow(torch.randn(4, flow.width))


FAMILIES = {
    "flow": flows,
    "low_rank": lambda: dist.LowRankMultivariateNormal(torch.randn(4, 3), torch.randn(4, 3, 2), torch.ones(4, 3)),
    "full_rank": lambda: dist.MultivariateNormal(torch.randn(4, 3), scale_tril=torch.eye(3).expand(4, 3, 3)),
    "mixture": lambda: of_normals(*components(3, 4)),
    "logistic_normal": lambda: logistic_normal(torch.randn(4, 2), torch.ones(4, 2)),
    "dirichlet": lambda: dist.Dirichlet(torch.rand(4, 3) + 0.5),
    "sphere": lambda: PowerSpherical(torch.nn.functional.normalize(torch.randn(4, 3), dim=-1), torch.rand(4) + 1),
    "bits": lambda: BitVector(torch.randn(4, 3)),
    "one_hot": lambda: dist.OneHotCategorical(logits=torch.randn(4, 3)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_takes_components_of_any_family(name):
    family = FAMILIES[name]()
    p = Mixture(torch.randn(4), family).expand((2, 6))
    z = p.sample()
    assert z.shape == (2, 6, 3)
    values = [family.log_prob(z[s, i].expand(4, 3)) for s in range(2) for i in range(6)]
    expected = torch.stack([(p.logits[0, 0] + v).logsumexp(0) for v in values]).reshape(2, 6)
    assert torch.allclose(p.log_prob(z), expected, atol=1e-3)
    assert p.responsibilities(z).sum(-1).allclose(torch.ones(2, 6))
