"""Wake-sleep: the model learns from data explained by the guide, the guide from data that the model explains itself."""

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.infer.bounds import elbo, iwae
from ppl_vae.infer.elbo import TensorELBO, Weights, detached, local, steered, total
from ppl_vae.infer.pathwise import shares

DREAM = 0x5EED
"""Sets the noise of dreamt rows apart from that of their draws."""


def reweighted(weights: Weights) -> tuple[Tensor, Tensor]:
    """IWAE for the model, and for the guide the posterior's mean of log q, both by the shares of K draws of each row.

    The wake phase of both (Bornschein & Bengio 2015): to log p(x) and KL(p(z|x) || q(z|x)) as K grows.
    """
    return iwae(weights.log_weight), (shares(weights) * (weights.log_p + weights.score)).sum(0)


class WakeSleep(TensorELBO):
    """The wake-sleep algorithm (Hinton, Dayan, Frey & Neal 1995).

    Awake the model's log p(x, z) rises at draws of q(z|x); asleep log q(z'|x') rises at draws of p(x', z'), a row for each
    of the batch and with its mask and covariates. No one function is raised: its value is the ELBO.
    """

    def __init__(self, particles: int) -> None:
        super().__init__(particles, detached)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        weights = self.weights(model, guide, args, kwargs)
        surrogate = weights.log_p.mean(0) + self._asleep(model, guide, *args, **kwargs)
        return -steered(elbo(weights.log_weight), surrogate).sum() - weights.shared

    def _asleep(self, model: Any, guide: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """log q(z'|x') (n,) at rows that the model dreams."""
        with poutine.block():  # what watches the fit sees the rows themselves alone
            with torch.no_grad(), self.noise(DREAM):
                dream = poutine.trace(model).get_trace(None, *args, n=x.shape[-2], **kwargs)
            dreamt = dream.nodes["x"]["value"]
            trace = poutine.trace(poutine.replay(guide, trace=dream)).get_trace(dreamt, *args, **kwargs)
            trace.compute_log_prob()
        return total(local(trace), 1)[0]
