"""Objectives that are a function of each row's log weights, with gradients through the draws."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ppl_vae.infer.elbo import Place, TensorELBO, Weights, attached, steered

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

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        weights = self.weights(model, guide, args, kwargs)
        return -steered(*self.estimate(weights)).sum() - weights.shared


def through_draws(bound: Callable[[Tensor], Tensor]) -> Estimate:
    """The gradient of a bound itself (Burda et al. 2016): each draw's log weight by its share of the total."""

    def estimate(weights: Weights) -> tuple[Tensor, Tensor]:
        value = bound(weights.log_weight)
        return value, value

    return estimate
