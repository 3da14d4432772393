"""Laplace's approximation of p(z|x): a normal at the mode, with the curvature there."""

from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.infer.hmc import Graphed, Terms, evaluate
from ppl_vae.infer.optim import cosine

FLAT = 1e-6
"""Smallest curvature: at a saddle or on a plateau the others' absolute values are taken, and never less than this."""


class Mode(NamedTuple):
    """u (n, k), and the Cholesky factor (n, k, k) of the inverse of minus the Hessian of log p(x, u) there."""

    u: Tensor
    factor: Tensor


def mode(terms: Terms, start: Tensor, steps: int, lr: float, newton: int = 10) -> Mode:
    """Climb log p(x, u) from `start` (n, k) by Adam, row by row, and finish with Newton steps where they climb."""
    u = start[None].clone()
    terms = Graphed(terms, u, steps)
    adam = torch.optim.Adam([u], lr=lr)
    for step in range(steps):
        adam.param_groups[0]["lr"] = lr * cosine(step / steps)
        u.grad = -evaluate(terms, u).grad(1.0)
        adam.step()
    state = evaluate(terms, u)
    for _ in range(newton):
        values, vectors = _curvature(terms, state.u)
        grad = torch.einsum("nij,ni->nj", vectors, state.grad(1.0)[0].double())
        new = evaluate(terms, state.u + torch.einsum("nij,nj->ni", vectors, grad / values).to(u)[None])
        better = new.log_prob(1.0) > state.log_prob(1.0)
        state = type(state)(
            *(torch.where(better[..., None] if a.dim() == 3 else better, a, b) for a, b in zip(new, state))
        )
    values, vectors = _curvature(terms, state.u)
    covariance = (vectors / values[:, None]) @ vectors.mT
    return Mode(state.u[0], torch.linalg.cholesky(covariance).to(u))


def _curvature(terms: Terms, u: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n, k), made positive, and eigenvectors (n, k, k) of minus the Hessian at u (1, n, k)."""
    k = u.shape[-1]
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        (grad,) = torch.autograd.grad(torch.stack(terms(u)).sum(), u, create_graph=True)
        # rows do not depend on each other: the gradient of a sum over them holds a line of every Hessian
        lines = [torch.autograd.grad(grad[..., j].sum(), u, retain_graph=True)[0][0] for j in range(k)]
    hessian = torch.stack(lines, 1).double()
    values, vectors = torch.linalg.eigh(-(hessian + hessian.mT) / 2)
    return values.abs().clamp(min=FLAT), vectors
