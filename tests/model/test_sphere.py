import math

import numpy as np
import pytest
import torch
from scipy import special
from torch.distributions import kl_divergence

from ppl_vae.model.sphere import PowerSpherical, UniformSphere, log_area


def circle(n=4000):
    angle = (torch.arange(n).double() + 0.5) * 2 * math.pi / n
    return torch.stack([angle.cos(), angle.sin()], -1), 2 * math.pi / n


def globe(n=400):
    """Exact for polynomials of degree below n: Gauss & Legendre's heights (equal ones are equal areas), equal angles."""
    height, weight = map(torch.from_numpy, np.polynomial.legendre.leggauss(n))
    angle = (torch.arange(n).double() + 0.5) * 2 * math.pi / n
    height, angle = height[:, None], angle[None]
    radius = (1 - height**2).sqrt()
    points = torch.stack([radius * angle.cos(), radius * angle.sin(), height.expand(n, n)], -1).reshape(-1, 3)
    return points, (weight * 2 * math.pi / n).repeat_interleave(n)


def family(k, concentration=3.0, **options):
    direction = torch.nn.functional.normalize(torch.randn(k, **options), dim=-1)
    return PowerSpherical(direction, torch.tensor(concentration, **options))


@pytest.mark.parametrize("points, k", [(circle, 2), (globe, 3)])
@pytest.mark.parametrize("concentration", [0.01, 1.0, 20.0])
def test_densities_integrate_to_one(points, k, concentration):
    x, area = points()
    q = family(k, concentration, dtype=torch.float64)
    assert float((q.log_prob(x).exp() * area).sum()) == pytest.approx(1.0, abs=1e-4)
    assert float((UniformSphere(torch.zeros(k).double()).log_prob(x).exp() * area).sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("points, k", [(circle, 2), (globe, 3)])
def test_mean_entropy_and_kl_are_the_integrals(points, k):
    x, area = points()
    p, q = family(k, 2.5, dtype=torch.float64), UniformSphere(torch.zeros(k).double())
    weight = p.log_prob(x).exp() * area
    assert torch.allclose(p.mean, (weight[:, None] * x).sum(0), atol=1e-5)
    assert torch.allclose(p.entropy(), -(weight * p.log_prob(x)).sum(), atol=1e-4)
    assert torch.allclose(kl_divergence(p, q), (weight * (p.log_prob(x) - q.log_prob(x))).sum(), atol=1e-4)


def test_at_five_dimensions_the_radial_part_is_its_beta():
    p = family(5, 4.0, dtype=torch.float64)
    x = torch.nn.functional.normalize(torch.randn(1000, 5).double(), dim=-1)
    a, b = 6.0, 2.0  # (k - 1) / 2 + concentration, (k - 1) / 2
    constant = (a + b) * math.log(2) + b * math.log(math.pi) + special.gammaln(a) - special.gammaln(a + b)
    assert torch.allclose(p.log_prob(x), 4.0 * torch.log1p(x @ p.direction) - constant)


@pytest.mark.parametrize("k, concentration", [(2, 0.5), (2, 30.0), (3, 5.0), (6, 10.0)])
def test_draws_follow_the_density(k, concentration, goodness_of_fit):
    """Each fails by chance at 1e-4."""
    p = family(k, concentration, dtype=torch.float64)
    assert goodness_of_fit(p, dim=k - 1) > 1e-4
    x = p.sample((8000,))
    error = (x.mean(0) - p.mean) / (x.std(0) / 8000**0.5)
    assert error.abs().max() < 5  # 6e-7 a coordinate


def test_uniform_draws_follow_the_density(goodness_of_fit):
    """Fails by chance at 1e-4."""
    assert goodness_of_fit(UniformSphere(torch.zeros(3)), dim=2) > 1e-4


def test_gradients_are_those_of_the_mean():
    """d/d concentration of E[direction . x] and the pull on the direction; five standard errors, 6e-7 each."""
    n, target = 20000, torch.tensor([1.0, 2.0, -1.0]).double()

    def power_spherical(rows):
        raw = torch.tensor([0.3, -0.5, 1.0]).double().repeat(rows, 1).requires_grad_()
        concentration = torch.full((rows,), 2.0).double().requires_grad_()
        return (raw, concentration), PowerSpherical(raw / raw.norm(dim=-1, keepdim=True), concentration)

    drawn, p = power_spherical(n)
    (p.rsample() @ target).sum().backward()
    exact, p = power_spherical(1)
    (p.mean @ target).sum().backward()
    for many, one in zip(drawn, exact):
        assert torch.all((many.grad.mean(0) - one.grad[0]).abs() < 5 * many.grad.std(0) / n**0.5)


@pytest.mark.parametrize("k", [2, 3, 40])
@pytest.mark.parametrize("concentration", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_are_on_the_sphere_and_finite_at_the_extremes(k, concentration, dtype):
    direction = torch.zeros(500, k, dtype=dtype)
    direction[:250, 0], direction[250:, -1] = 1.0, -1.0
    direction.requires_grad_()
    c = torch.full((500,), concentration, dtype=dtype, requires_grad=True)
    p = PowerSpherical(direction, c)
    x = p.rsample()
    assert p.support.check(x).all() and x.dtype == dtype
    (p.log_prob(x).sum() + x.sum()).backward()
    assert direction.grad.isfinite().all() and c.grad.isfinite().all()
    assert p.log_prob(-direction.detach()).isfinite().all()


def test_shapes_and_expansion():
    p = PowerSpherical(torch.eye(3)[:1].expand(5, 3), torch.ones(5)).expand((2, 5))
    assert p.batch_shape == (2, 5) and p.event_shape == (3,)
    x = p.rsample((4,))
    assert x.shape == (4, 2, 5, 3) and p.log_prob(x).shape == (4, 2, 5) and p.mean.shape == (2, 5, 3)
    u = UniformSphere(torch.zeros(3)).expand((2, 5))
    assert u.sample().shape == (2, 5, 3) and u.log_prob(x).shape == (4, 2, 5)
    assert UniformSphere(torch.zeros(3)).log_prob(x).shape == (4, 2, 5)
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.ones(2, 5, 3))


def test_area():
    assert math.exp(log_area(2)) == pytest.approx(2 * math.pi)
    assert math.exp(log_area(3)) == pytest.approx(4 * math.pi)
