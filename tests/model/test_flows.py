import math
import subprocess
import sys

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import biject_to

from ppl_vae.errors import OptionError
from ppl_vae.model.flows import Flow, FlowDistribution


def bent(latent, kind="spline", **options) -> Flow:
    """A flow in float64, far from the identity."""
    flow = Flow(latent, kind, hidden=(16,), **options).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return flow


VARIANTS = [("spline", False), ("affine", False), ("affine", True)]


@pytest.mark.parametrize("kind, inverse", VARIANTS)
@pytest.mark.parametrize("latent", [1, 2])
def test_density_integrates_to_one(kind, inverse, latent):
    flow = bent(latent, kind, inverse=inverse)
    line = torch.linspace(-20, 20, 601).double()
    grid = torch.cartesian_prod(*[line] * latent).reshape(-1, latent)
    with torch.no_grad():
        total = flow().log_prob(grid).exp().sum() * (line[1] - line[0]) ** latent
    assert float(total) == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("kind, inverse", VARIANTS)
@pytest.mark.parametrize("latent", [1, 3])
@pytest.mark.parametrize("raw", [False, True])
def test_log_prob_is_the_change_of_variables_by_autograd(kind, inverse, latent, raw):
    flow = bent(latent, kind, inverse=inverse, context=2)
    q = flow(torch.randn(flow.width).double()) if raw else flow()
    base = torch.randn(latent).double()
    jacobian = torch.autograd.functional.jacobian(q.transform, base)
    expected = torch.distributions.Normal(0, 1).log_prob(base).sum() - torch.linalg.slogdet(jacobian)[1]
    assert torch.allclose(q.log_prob(q.transform(base)), expected, atol=1e-8)


@pytest.mark.parametrize("kind, inverse", VARIANTS)
def test_a_remembered_draw_has_the_density_and_gradients_of_inversion(kind, inverse):
    flow = bent(3, kind, inverse=inverse, context=2)
    raw = torch.randn(2, 4, flow.width).double().requires_grad_()
    q = flow(raw)
    z = q.rsample()
    parameters = [raw, *flow.parameters()]
    remembered = torch.autograd.grad((q.log_prob(z) - z.square().sum(-1)).sum(), parameters, retain_graph=True)
    inverted = torch.autograd.grad((q.log_prob(z + 0) - z.square().sum(-1)).sum(), parameters)
    assert torch.allclose(q.log_prob(z), q.log_prob(z + 0), atol=1e-8)
    for a, b in zip(remembered, inverted):
        assert torch.allclose(a, b, atol=1e-6)


def test_drawing_in_one_pass_and_scoring_the_draw_never_inverts(monkeypatch):
    q = bent(6, "affine", inverse=True)()
    calls = []
    monkeypatch.setattr(
        "zuko.transforms.AutoregressiveTransform._inverse", lambda self, y: calls.append(1) or torch.zeros_like(y)
    )
    q.log_prob(q.rsample())
    assert not calls
    q.log_prob(torch.zeros(6).double())
    assert calls


@pytest.mark.parametrize("draw", [lambda q: q.sample(), lambda q: q.rsample().detach()])
def test_a_draw_without_gradient_keeps_the_score_function(draw):
    """What `sample` remembers has no gradient; log_prob must have one all the same."""
    flow = bent(2, context=2)
    raw = torch.randn(5, flow.width).double().requires_grad_()
    q = flow(raw)
    z = draw(q)
    (gradient,) = torch.autograd.grad(q.log_prob(z).sum(), raw)
    (expected,) = torch.autograd.grad(flow(raw).log_prob(z.clone()).sum(), raw)
    assert torch.allclose(gradient, expected) and gradient.abs().sum() > 0


@pytest.mark.parametrize("kind, inverse", VARIANTS)
def test_draws_follow_the_density(kind, inverse, goodness_of_fit):
    """Each fails by chance at 1e-4."""
    assert goodness_of_fit(bent(2, kind, inverse=inverse)(), dim=2) > 1e-4


def test_the_same_object_is_prior_and_posterior():
    flow = bent(2, context=3)
    z = torch.randn(7, 2).double()
    unit = math.log(math.expm1(1 - 1e-3))  # softplus_scale gives 1
    raw = torch.tensor([0.0, 0.0, unit, unit, 0.0, 0.0, 0.0]).double().expand(7, -1)
    assert torch.allclose(flow().log_prob(z), flow(raw).log_prob(z))


@pytest.mark.parametrize("kind, inverse", VARIANTS)
@pytest.mark.parametrize("latent", [1, 4])
def test_starts_near_the_mean_field_and_reaches_every_parameter(kind, inverse, latent):
    flow = Flow(latent, kind, context=3, inverse=inverse)
    raw = torch.randn(8, flow.width, requires_grad=True)
    loc, scale = raw[..., :latent], flow.link(raw[..., latent : 2 * latent])
    z = flow(raw).rsample()
    near = dist.Normal(loc, scale).to_event(1).log_prob(z)
    assert torch.allclose(flow(raw).log_prob(z), near, atol=0.3)
    (flow(raw).log_prob(z.detach()).sum() + z.square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in [raw, *flow.parameters()])


def test_shapes_expansion_and_types():
    flow = Flow(3, context=2)
    q = flow(torch.randn(5, flow.width)).expand((2, 5))
    assert isinstance(q, FlowDistribution) and q.batch_shape == (2, 5) and q.event_shape == (3,)
    z = q.rsample((7,))
    assert z.shape == (7, 2, 5, 3) and q.log_prob(z).shape == (7, 2, 5) and q.log_prob(z[0]).shape == (2, 5)
    assert flow().expand((4,)).sample().shape == (4, 3)
    assert flow.double()().sample().dtype == torch.float64
    assert biject_to(q.support)(z).shape == z.shape


@pytest.mark.parametrize("latent", [1, 3])
def test_is_laid_out_without_values_and_shown_without_random_numbers(latent):
    """Saved models are laid out on the meta device and compared by their text."""
    with torch.device("meta"):
        empty = Flow(latent, context=2)
    state = torch.get_rng_state()
    assert all(value.is_meta for value in empty.state_dict().values()) and repr(empty) == repr(Flow(latent, context=2))
    torch.set_rng_state(state)
    repr(empty)
    assert torch.equal(torch.get_rng_state(), state)
    full = Flow(latent, context=2)
    empty.load_state_dict(full.state_dict(), assign=True)
    z = torch.randn(5, latent)
    assert torch.equal(empty().log_prob(z), full().log_prob(z))


def test_errors_name_the_option():
    with pytest.raises(OptionError, match="flow: got 'glow'"):
        Flow(2, "glow")
    with pytest.raises(OptionError, match="flow_hidden"):
        Flow(2, hidden=(0,))
    with pytest.raises(OptionError, match="transforms"):
        Flow(2, transforms=0)


def test_importing_zuko_leaves_torchs_checks_of_arguments_on():
    code = (
        "import torch, ppl_vae.model.flows; assert torch.distributions.Distribution._validate_args is True\n"
        "torch.distributions.Distribution.set_default_validate_args(False)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
