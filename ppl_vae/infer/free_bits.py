"""Free bits: a dimension of z pays for its KL term only beyond a floor."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_vae.errors import ProgramError
from ppl_vae.infer.elbo import TensorELBO
from ppl_vae.infer.noise import base


class FreeBits(TensorELBO):
    """E_q[log p(x|z)] - sum_j max(bits, mean over the batch of KL(q(z_j|x) || p(z_j))) (Kingma et al. 2016, C.8).

    Joint over the batch: whether a dimension is above the floor is decided by all its rows.

    Args:
        particles: K.
        bits: the floor of each dimension, in nats a row.
    """

    def __init__(self, particles: int, bits: float) -> None:
        super().__init__(particles)
        self.bits = bits

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        weights = self.weights(model, guide, args, kwargs)
        log_lik = sum(site["log_prob"] for site in weights.model.values() if site["is_observed"])
        kl = torch.cat(
            [by_dimension(name, site, weights.model[name]["fn"]) for name, site in weights.guide.items()], -1
        )
        log_lik = log_lik.reshape(weights.log_weight.shape).mean(0)
        return -(log_lik - kl.flatten(0, -2).mean(0).clamp(min=self.bits).sum()).sum() - weights.shared


def by_dimension(name: str, site: Any, prior: Any) -> Tensor:
    """KL(q(z_j|x) || p(z_j)) (..., n, k): in closed form where there is one, else its estimate at the draw.

    Raises: ProgramError naming the site, where dimensions of guide or prior depend on each other.
    """
    z, q, p = site["value"], base(site["fn"]), base(prior)
    for family in (q, p):
        if family.event_shape:
            raise ProgramError(
                f"site {name!r}: got {type(family).__name__}, whose dimensions depend on each other, expected guide and "
                "prior to be made of one distribution a dimension, for free bits to be told by dimension"
            )
    try:
        kl = kl_divergence(q, p)
    except NotImplementedError:
        kl = q.log_prob(z) - p.log_prob(z)
    return kl.expand(z.shape)
