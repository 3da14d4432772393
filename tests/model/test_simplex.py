import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from ppl_vae.model.simplex import LogRatio, contrasts, logistic_normal


@pytest.mark.parametrize("k", [2, 3, 7])
def test_contrasts_are_orthonormal_and_sum_to_zero(k):
    v = contrasts(k, torch.zeros(1).double())
    assert torch.allclose(v.T @ v, torch.eye(k - 1).double()) and torch.allclose(v.sum(0), torch.zeros(k - 1).double())


def test_density_integrates_to_one_over_the_simplex():
    p = logistic_normal(torch.tensor([0.4, -0.3]).double(), torch.tensor([0.7, 1.1]).double())
    n = 1000
    line = (torch.arange(n).double() + 0.5) / n
    first, second = torch.cartesian_prod(line, line).unbind(-1)
    # the square's lower half, by the fold (a, b) -> (1 - a, 1 - b) of its upper half
    over = first + second > 1
    first, second = torch.where(over, 1 - first, first), torch.where(over, 1 - second, second)
    theta = torch.stack([first, second, 1 - first - second], -1)
    inside = theta[:, 2] > 1e-9
    total = p.log_prob(theta[inside]).exp().sum() / n**2 / 2
    assert float(total) == pytest.approx(1.0, abs=3e-3)


def test_jacobian_and_inverse_are_those_of_autograd():
    y = torch.randn(4).double()
    transform = LogRatio(0)
    theta = transform(y)
    jacobian = torch.autograd.functional.jacobian(lambda v: transform(v)[:-1], y)
    assert torch.allclose(transform.log_abs_det_jacobian(y, theta), torch.linalg.slogdet(jacobian)[1])
    assert torch.allclose(transform.inv(theta), y)


def test_draws_follow_the_density(goodness_of_fit):
    """In the first k - 1 coordinates; fails by chance at 1e-4."""
    p = logistic_normal(torch.tensor([0.5, -1.0]), torch.tensor([0.5, 1.0]))
    assert goodness_of_fit(p, dim=2, coordinates=lambda x: x[:, :2]) > 1e-4


def test_unit_normal_is_the_laplace_approximation_of_the_dirichlet():
    """The curvature, at the mode, of a symmetric Dirichlet's log density in log-ratio coordinates is minus alpha."""
    alpha, k = 1.7, 4

    def log_density(y):
        transform = LogRatio(0)
        theta = transform(y)
        return dist.Dirichlet(torch.full((k,), alpha).double()).log_prob(theta) + transform.log_abs_det_jacobian(
            y, theta
        )

    centre = torch.zeros(k - 1).double()
    assert torch.autograd.functional.jacobian(log_density, centre).abs().max() < 1e-9
    curvature = torch.autograd.functional.hessian(log_density, centre)
    assert torch.allclose(curvature, -alpha * torch.eye(k - 1).double(), atol=1e-8)


def test_all_parts_are_alike_and_kl_is_that_of_the_coordinates():
    p, q = logistic_normal(torch.zeros(3), torch.ones(3)), logistic_normal(torch.randn(3), torch.rand(3) + 0.5)
    theta = torch.rand(9, 4).softmax(-1)
    assert torch.allclose(p.log_prob(theta), p.log_prob(theta[:, [2, 0, 3, 1]]), atol=1e-4)
    assert torch.allclose(kl_divergence(q, p), kl_divergence(q.base_dist, p.base_dist))


def test_many_parts_in_float32_stay_on_the_simplex_and_finite():
    loc = (8 * torch.randn(50, 199)).requires_grad_()
    p = logistic_normal(loc, torch.ones(50, 199)).expand((2, 50))
    theta = p.rsample((3,))
    assert theta.shape == (3, 2, 50, 200) and p.support.check(theta).all()
    (p.log_prob(theta).sum() + theta.square().sum()).backward()
    assert loc.grad.isfinite().all()
    extreme = torch.zeros(200)
    extreme[0] = 1.0
    assert p.log_prob(extreme).isfinite().all()
