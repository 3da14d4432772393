"""Oracles: torch's own log density, and its gradients."""

import pyro.distributions as dist
import pytest
import torch

from ppl_vae.model.student_t import StudentT


@pytest.mark.parametrize("df", [(), (3,), (7, 1), (7, 3)])
@pytest.mark.parametrize("scale", [(), (3,), (7, 3)])
def test_log_density_and_gradients_are_torchs(df: tuple[int, ...], scale: tuple[int, ...]) -> None:
    random = torch.Generator().manual_seed(0)
    values = [2 + torch.rand(df, generator=random), torch.randn(7, 3, generator=random)]
    values.append(0.1 + torch.rand(scale, generator=random))
    found = []
    for kind in (StudentT, dist.StudentT):
        parameters = [value.clone().double().requires_grad_() for value in values]
        log_prob = kind(*parameters).expand((5, 7, 3)).log_prob(torch.arange(105.0).view(5, 7, 3).double() / 10)
        found.append([log_prob, *torch.autograd.grad(log_prob.sum(), parameters)])
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
