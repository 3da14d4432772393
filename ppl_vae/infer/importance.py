"""Objectives that are a function of each row's log weights, with gradients through the draws."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_vae.infer.elbo import Place, TensorELBO, Weights, attached, restore, state_of, steered

Estimate = Callable[[Weights], tuple[Tensor, Tensor]]
"""Weights to the objective and to a surrogate, (n,) each, whose gradient estimates that of the objective."""


class ByWeights(TensorELBO):
    """The sum over rows of an objective of log weights.

    Observed sites that all rows share, such as a prior of weights, are added once, whatever the objective does to the
    weights: Pyro's `RenyiELBO` has them, and with them the whole batch, inside its logarithm.

    Args:
        estimate: the objective and its surrogate.
        particles: K.
        place: where densities are computed.
    """

    def __init__(self, estimate: Estimate, particles: int, place: Place = attached) -> None:
        super().__init__(particles, place)
        self.estimate = estimate
        self.traceable = not getattr(estimate, "keeps_state", False)

    def state(self) -> dict[str, Tensor]:
        """What the estimate keeps."""
        return state_of(self.estimate)

    def restore(self, state: dict[str, Tensor]) -> None:
        """Give that back."""
        restore(self.estimate, state)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        weights = self.weights(model, guide, args, kwargs)
        return -steered(*self.estimate(weights)).sum() - weights.shared


class AnalyticKL(TensorELBO):
    """Pyro's `TraceMeanField_ELBO` in tensors alone: KL(q||p) of each site in closed form where there is one."""

    traceable = True

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        of_model, of_guide = self._get_vectorized_trace(model, guide, args, kwargs)
        bound = torch.zeros(())
        for name, site in of_model.nodes.items():
            if site["type"] != "sample":
                continue
            if site["is_observed"]:
                bound = bound + site["log_prob_sum"]
                continue
            q = of_guide.nodes[name]
            try:
                kl = scale_and_mask(kl_divergence(q["fn"], site["fn"]), q["scale"], q["mask"]).sum()
            except NotImplementedError:
                kl = q["log_prob_sum"] - site["log_prob_sum"]
            bound = bound - kl
        return -bound / self.num_particles


def through_draws(bound: Callable[[Tensor], Tensor]) -> Estimate:
    """The gradient of a bound itself (Burda et al. 2016): each draw's log weight by its share of the total."""

    def estimate(weights: Weights) -> tuple[Tensor, Tensor]:
        value = bound(weights.log_weight)
        return value, value

    return estimate
