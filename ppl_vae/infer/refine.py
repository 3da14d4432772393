"""A variational posterior for each row of its own, started at the encoder's answer and refined by gradient ascent."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ppl_vae.infer import graphs
from ppl_vae.infer.hmc import Terms, key_of
from ppl_vae.infer.noise import uniforms
from ppl_vae.infer.optim import cosine


class Family(Protocol):
    """q(u|x) of n rows, apart in every parameter."""

    parameters: list[Tensor]

    def __call__(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Standard normal noise (S, n, k) to u (S, n, k) and log q(u), (S, n)."""


class RowNormal:
    """Independent normals, loc and scale (n, k); the path of log q's own parameters is cut (Roeder et al. 2017)."""

    def __init__(self, loc: Tensor, scale: Tensor, keys: Tensor) -> None:
        self.loc, self.log_scale = loc.clone(), scale.log()
        self.parameters = [self.loc, self.log_scale]

    def __call__(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        u = self.loc + self.log_scale.exp() * noise
        q = torch.distributions.Normal(self.loc.detach(), self.log_scale.detach().exp())
        return u, q.log_prob(u).double().sum(-1)


class RowFlow:
    """Normals, bent and then turned: sinh-arcsinh in each dimension (Jones & Pewsey 2009), affine couplings (Dinh et al.
    2017) with a small net for each row, a triangular matrix. It starts as independent normals.
    """

    def __init__(self, loc: Tensor, scale: Tensor, keys: Tensor, layers: int = 4, hidden: int = 16) -> None:
        n, k = loc.shape
        self.loc, self.log_scale, self.lower = loc.clone(), scale.log(), loc.new_zeros(n, k, k)
        self.skew, self.tail = torch.zeros_like(loc), torch.zeros_like(loc)
        self.masks = [(torch.arange(k, device=loc.device) + i) % 2 == 0 for i in range(layers if k > 1 else 0)]
        self.nets = []
        for i, mask in enumerate(self.masks):
            inputs, outputs = int(mask.sum()), int((~mask).sum())
            first = torch.special.ndtri(uniforms(key_of(keys, -1 - i), 1, inputs * hidden)[0]).to(loc)
            self.nets.append(
                [
                    first.view(n, inputs, hidden) / inputs**0.5,
                    loc.new_zeros(n, hidden),
                    loc.new_zeros(n, hidden, 2 * outputs),
                    loc.new_zeros(n, 2 * outputs),
                ]
            )
        own = [self.loc, self.log_scale, self.lower, self.skew, self.tail]
        self.parameters = own + [p for net in self.nets for p in net]

    def __call__(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        log_q = torch.distributions.Normal(0.0, 1.0).log_prob(noise).double().sum(-1)
        angle = torch.asinh(noise) * self.tail.exp() + self.skew
        u = torch.sinh(angle)
        log_q = log_q - (torch.log(torch.cosh(angle)) + self.tail - 0.5 * torch.log1p(noise**2)).double().sum(-1)
        for mask, (w1, b1, w2, b2) in zip(self.masks, self.nets):
            h = torch.tanh(torch.einsum("sna,nah->snh", u[..., mask], w1) + b1)
            shift, stretch = (torch.einsum("snh,nho->sno", h, w2) + b2).chunk(2, -1)
            stretch = torch.tanh(stretch)
            bent = u.clone()
            bent[..., ~mask] = u[..., ~mask] * stretch.exp() + shift
            u, log_q = bent, log_q - stretch.double().sum(-1)
        matrix = self.lower.tril(-1) + torch.diag_embed(self.log_scale.exp())
        u = self.loc + torch.einsum("nij,snj->sni", matrix, u)
        return u, log_q - self.log_scale.double().sum(-1)


def refined(
    family: Family,
    terms: Callable[[int], Terms],
    keys: Tensor,
    steps: int,
    particles: int,
    lr: float,
    fixed: bool = False,
) -> Family:
    """Raise each row's E_q[log p(x, u) - log q(u)] by Adam on its own parameters; the step size falls along a cosine.

    Args:
        family: q, moved in place.
        terms: the number of a step to log prior and log likelihood of u at `particles` draws.
        keys: (n,) of the noise.
        fixed: whether the terms are those of the first step throughout.
    """

    def downhill(noise: Tensor, step: int = 0) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            u, log_q = family(noise)
            log_prior, log_lik = terms(step)(u)
            bound = (log_prior + log_lik - log_q).mean(0)
            loss = torch.where(bound.isfinite(), bound, 0.0).sum().neg()
            return torch.autograd.grad(loss, family.parameters, allow_unused=True, materialize_grads=True)

    for parameter in family.parameters:
        parameter.requires_grad_()
    by_graph = graphs.repeated(downhill, [normals(keys, particles, family.parameters[0], 0)], steps if fixed else 0)
    adam = torch.optim.Adam(family.parameters, lr=lr, betas=(0.9, 0.99))
    for step in range(steps):
        adam.param_groups[0]["lr"] = lr * cosine(step / steps)
        noise = normals(keys, particles, family.parameters[0].detach(), step)
        for parameter, gradient in zip(family.parameters, by_graph(noise) if fixed else downhill(noise, step)):
            parameter.grad = gradient
        adam.step()
    for parameter in family.parameters:
        parameter.requires_grad_(False)
        parameter.grad = None
    return family


def normals(keys: Tensor, draws: int, like: Tensor, number: int) -> Tensor:
    """Standard normal noise (S, n, k) for rows with parameters `like` (n, k), numbered."""
    return torch.special.ndtri(uniforms(key_of(keys, number), draws, like.shape[-1])).to(like)


def start(joint: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (n, k) of the encoder's draws in coordinates without constraints."""
    u = joint.to_z.inv(joint.start)
    return u.mean(0), u.std(0).clamp(min=1e-3)
