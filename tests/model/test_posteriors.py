import inspect
import math

import pytest
import torch
from scipy import stats

from ppl_vae.errors import OptionError
from ppl_vae.model.conditional import distribution, width
from ppl_vae.model.families import softplus_scale
from ppl_vae.model.posteriors import CONCENTRATION_FLOOR, POSTERIORS, MeanField, Point

NORMALS = ("mean_field", "low_rank", "full_rank", "iaf", "spline_flow", "mixture")
SMOOTH = (*NORMALS, "logistic_normal", "dirichlet", "power_spherical")
DISCRETE = ("bernoulli", "categorical")


def family(name, k=3, **options):
    return POSTERIORS[name].make(k, "softplus", **options)


def at(name, raw, k=3, **options):
    return distribution(family(name, k, **options), raw)


def noise(name, *batch, k=3, **options):
    return torch.randn(*batch, width(family(name, k, **options), k))


@pytest.mark.parametrize("name", POSTERIORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_posterior_draws_and_scores_at_any_leading_shape(name, dtype):
    made = family(name).to(dtype)
    q = distribution(made, torch.randn(4, 5, width(made, 3), dtype=dtype))
    assert q.batch_shape == (4, 5) and q.event_shape == (3,)
    z = q.sample((2,))
    assert z.shape == (2, 4, 5, 3) and z.dtype == dtype and q.log_prob(z).shape == (2, 4, 5)
    expanded = q.expand((6, 4, 5))
    assert expanded.batch_shape == (6, 4, 5) and expanded.log_prob(expanded.sample()).isfinite().all()


@pytest.mark.parametrize("name", POSTERIORS)
@pytest.mark.parametrize("k", [1, 2, 20])
def test_the_start_is_near_the_prior_and_every_input_and_parameter_gets_a_gradient(name, k):
    if k == 1 and name in ("logistic_normal", "dirichlet", "power_spherical", "categorical"):
        with pytest.raises(OptionError, match=f"latent: got 1, expected at least 2 with '{name}'"):
            family(name, 1)
        return
    made = family(name, k)
    raw = (0.1 * torch.randn(50, width(made, k))).requires_grad_()
    q = distribution(made, raw)
    assert q.has_rsample == (name not in DISCRETE)
    z = q.rsample() if q.has_rsample else q.sample()
    (q.log_prob(z) + z.square().sum(-1)).sum().backward()
    # a draw's own log density is free of where it is: a point's and a normal's location move by z^2 alone
    assert raw.grad.isfinite().all() and raw.grad.abs().sum(0).min() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())


@pytest.mark.parametrize("name", NORMALS)
def test_normals_start_at_unit_order(name):
    """Mean and standard deviation over 4,000 draws at raw 0: within 0.1 of 0, between 0.4 and 1.3."""
    z = at(name, torch.zeros(4000, width(family(name), 3))).sample()
    assert z.mean(0).abs().max() < 0.1 and (z.std(0) > 0.4).all() and (z.std(0) < 1.3).all()


def test_mean_field_and_point_are_as_they_were():
    loc, raw = torch.randn(4, 3), torch.randn(4, 3)
    q = MeanField()(loc, raw)
    assert torch.equal(q.base_dist.loc, loc) and torch.equal(q.base_dist.scale, softplus_scale(raw))
    assert torch.equal(Point()(loc).sample(), loc) and (MeanField.outputs, Point.outputs) == (2, 1)


@pytest.mark.parametrize("name, options", [("low_rank", {"rank": 1}), ("low_rank", {"rank": 3}), ("full_rank", {})])
def test_correlated_normals_are_scipys(name, options):
    raw = noise(name, k=3, **options).double()
    q = at(name, raw, **options)
    if name == "low_rank":
        factor, scale = raw[6:].reshape(3, options["rank"]), softplus_scale(raw[3:6])
        covariance = factor @ factor.T + torch.diag(scale**2)
    else:
        tril = torch.diag(softplus_scale(raw[3:6]))
        tril[1, 0], tril[2, 0], tril[2, 1] = raw[6:] / math.sqrt(3)
        covariance = tril @ tril.T
    z = torch.randn(5, 3).double()
    expected = stats.multivariate_normal(raw[:3].numpy(), covariance.numpy()).logpdf(z)
    assert torch.allclose(q.log_prob(z), torch.as_tensor(expected)) and torch.allclose(q.mean, raw[:3])


def test_mixture_is_the_sum_of_its_components_by_hand():
    raw, z = noise("mixture", posterior_components=3).double(), torch.randn(5, 3).double()
    made = family("mixture").double()
    parts = raw[3:].reshape(3, 6)
    expected = 0.0
    for c in range(3):
        loc = parts[c, :3] + made.spread[c]
        p = stats.norm.pdf(z, loc, softplus_scale(parts[c, 3:])).prod(-1)
        expected = expected + raw[:3].softmax(-1)[c] * torch.as_tensor(p)
    assert torch.allclose(distribution(made, raw).log_prob(z), expected.log())


@pytest.mark.parametrize("name", NORMALS)
@pytest.mark.parametrize("k", [1, 2])
def test_densities_integrate_to_one(name, k):
    made = family(name, k).double()
    line = torch.linspace(-10, 10, 401).double()
    grid = torch.cartesian_prod(*[line] * k).reshape(-1, k)
    with torch.no_grad():
        total = distribution(made, torch.randn(width(made, k)).double()).log_prob(grid).exp().sum() * 0.05**k
    assert float(total) == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("name", SMOOTH)
def test_draws_follow_the_density(name, goodness_of_fit):
    """In the coordinates that the density is against; each fails by chance at 1e-4."""
    edge = 2.0 if name == "dirichlet" else 0.0  # a density that ends abruptly has no balls at its edge
    k = 3 if name in ("logistic_normal", "dirichlet", "power_spherical") else 2
    q = at(name, noise(name, k=k) + edge, k)
    flat = (lambda z: z[:, :2]) if name in ("logistic_normal", "dirichlet") else (lambda z: z)
    assert goodness_of_fit(q, dim=2, coordinates=flat) > 1e-4


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_draws_have_their_frequencies(name):
    """Five standard errors over at most 8 cells: 5e-6."""
    q, n = at(name, torch.tensor([0.5, -1.0, 1.5])), 20000
    support = q.enumerate_support()
    codes = (q.sample((n,))[:, None] == support).all(-1).float().argmax(-1)
    p = q.log_prob(support).exp()
    assert p.sum() == pytest.approx(1.0, abs=1e-5)
    frequency = torch.bincount(codes, minlength=len(support)) / n
    assert ((frequency - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all()


def test_constrained_families_start_unsaturated_and_stay_in_bounds():
    assert torch.allclose(
        at("dirichlet", torch.zeros(3)).concentration, torch.full((3,), 1 + CONCENTRATION_FLOOR), atol=1e-3
    )
    assert torch.allclose(
        at("dirichlet", torch.full((3,), -200.0)).concentration, torch.full((3,), CONCENTRATION_FLOOR)
    )
    assert torch.allclose(
        at("logistic_normal", torch.zeros(4)).sample((2000,)).mean(0), torch.full((3,), 1 / 3), atol=0.03
    )
    q = at("power_spherical", torch.tensor([0.0, 3.0, 4.0, 0.0]))
    assert torch.allclose(q.direction, torch.tensor([0.0, 0.6, 0.8])) and float(q.concentration) == pytest.approx(
        1, abs=1e-3
    )
    for raw in (torch.zeros(4), torch.tensor([0.0, 1.0, 0.0, -200.0])):
        assert at("power_spherical", raw, k=3).concentration > 0


def test_zero_directions_are_no_trouble():
    raw = torch.zeros(1000, 4, requires_grad=True)
    at("power_spherical", raw).rsample().sum().backward()
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("name", ["iaf", "spline_flow"])
def test_flows_take_their_options_and_the_net_moves_them(name):
    made = family(name, 2, transforms=2, flow_hidden=(8,), context=5)
    assert made.width == 9 and len(made.transform.transforms) == 2
    raw = torch.randn(3, 9, requires_grad=True)
    made(raw).rsample().square().sum().backward()
    assert raw.grad[:, 4:].abs().sum() > 0  # the context


def test_link_is_passed_on():
    for name in NORMALS:
        with pytest.raises(OptionError, match="scale_link"):
            POSTERIORS[name].make(2, "exp")
        POSTERIORS[name].make(2, "log_variance")


def test_factories_name_their_options_and_say_what_they_make():
    for name, posterior in POSTERIORS.items():
        latent, link, *options = inspect.signature(posterior.make).parameters.values()
        assert (latent.name, link.name) == ("latent", "link") and posterior.text, name
        assert all(o.kind is o.KEYWORD_ONLY and o.default is not o.empty for o in options), name
    for name, option in (("low_rank", "rank"), ("mixture", "posterior_components"), ("iaf", "context")):
        with pytest.raises(OptionError, match=option):
            POSTERIORS[name].make(2, "softplus", **{option: -1})
