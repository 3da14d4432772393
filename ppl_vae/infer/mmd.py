"""InfoVAE: a distance between the prior and the guide's distribution over all rows, beside each row's KL term."""

from typing import Any

import pyro
from pyro import poutine
from torch import Tensor

from ppl_vae.errors import ProgramError
from ppl_vae.infer.bounds import elbo
from ppl_vae.infer.elbo import TensorELBO

PRIOR = 0x3A11
"""Sets the noise of draws from the prior apart from that of the guide's."""


class MMD(TensorELBO):
    """E_q[log p(x|z)] - (1 - alpha) KL(q(z|x) || p(z)) - (alpha + lam - 1) MMD^2(q(z), p(z)) (Zhao et al. 2019, eq. 6).

    q(z) is that of the batch's rows together, so the objective is joint over the batch: take hundreds of rows.

    Args:
        particles: K.
        alpha: 0 keeps the whole KL term, 1 drops it (the paper's MMD-VAE; Tolstikhin et al. 2018).
        lam: weight of the distance, in nats a row.
    """

    def __init__(self, particles: int, alpha: float, lam: float) -> None:
        super().__init__(particles)
        self.alpha, self.weight = alpha, alpha + lam - 1

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        weights = self.weights(model, guide, args, kwargs)
        if list(weights.guide) != ["z"]:
            names = ", ".join(map(repr, weights.guide))
            raise ProgramError(
                f"objective: got a guide with the sites {names}, expected 'z' alone, whose draws are compared"
            )
        prior, draws = weights.model["z"]["fn"], weights.guide["z"]["value"]
        with poutine.block(), self.noise(PRIOR), pyro.plate("data", draws.shape[-2], dim=-1):
            others = pyro.sample("z", prior)
        shape = (self.num_particles, *draws.shape[-2:])
        distance = squared_distance(draws.reshape(shape), others.reshape(shape)).mean()
        log_prior = weights.model["z"]["log_prob"].reshape(weights.log_q.shape)
        return (
            -elbo(weights.log_weight + self.alpha * (weights.log_q - log_prior)).sum()
            + draws.shape[-2] * self.weight * distance
            - weights.shared
        )


def squared_distance(first: Tensor, second: Tensor) -> Tensor:
    """MMD^2 of two samples (..., n, k) without bias (Gretton et al. 2012, eq. 3), so that it may be below 0: (...).

    The kernel is the inverse multiquadratic c / (c + |a - b|^2), c = 2k (Tolstikhin et al. 2018, section 4), for a prior of
    unit variance. 0 for samples of one, which have no pairs.

    Example:
        >>> import torch
        >>> a, b = torch.zeros(50, 2), torch.ones(50, 2)
        >>> squared_distance(a, a), squared_distance(a, b)  # 1 + 1 - 2 * 4 / 6
        (tensor(0.), tensor(0.6667))
    """
    n, scale = first.shape[-2], 2 * first.shape[-1]
    if n == 1:
        return (first * second * 0).sum((-2, -1))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        apart = a.square().sum(-1)[..., :, None] + b.square().sum(-1)[..., None, :] - 2 * a @ b.mT
        return scale / (scale + apart.clamp(min=0))

    def within(a: Tensor) -> Tensor:
        return (kernel(a, a).sum((-2, -1)) - n) / (n * (n - 1))

    return within(first) + within(second) - 2 * kernel(first, second).mean((-2, -1))
