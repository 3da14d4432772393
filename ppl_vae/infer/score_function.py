"""Gradients to the guide through its score d log q / d parameters, for draws that carry none, with baselines per row."""

import math

import torch
from torch import Tensor

from ppl_vae.infer.bounds import elbo, iwae
from ppl_vae.infer.elbo import Weights
from ppl_vae.infer.pathwise import shares

DECAY = 0.9
"""Of a running mean of log weights, a step: Pyro's default too."""


def leave_one_out(weights: Weights) -> tuple[Tensor, Tensor]:
    """The ELBO; the baseline of a draw is the mean log weight of the row's others (Kool et al. 2019)."""
    log_weight = weights.log_weight.detach()
    gain = (log_weight - log_weight.mean(0)) * len(log_weight) / (len(log_weight) - 1)
    return elbo(log_weight), (gain * weights.score + weights.log_p).mean(0)


def vimco(weights: Weights) -> tuple[Tensor, Tensor]:
    """IWAE; the baseline of a draw is the bound with its weight replaced by the others' geometric mean.

    VIMCO (Mnih & Rezende 2016).
    """
    log_weight = weights.log_weight.detach()
    number = len(log_weight)
    others = (log_weight.sum(0) - log_weight) / (number - 1)
    without = torch.where(torch.eye(number, dtype=torch.bool, device=others.device)[..., None], others, log_weight)
    gain = iwae(log_weight) - (without.logsumexp(1) - math.log(number))
    return iwae(log_weight), (gain * weights.score + shares(weights) * weights.log_weight).sum(0)


class Decaying:
    """The ELBO; the baseline is a running mean of the log weights of the steps before (Mnih & Gregor 2014).

    A number for all rows: it helps where they are alike.
    """

    keeps_state = True

    def __init__(self) -> None:
        self.mean, self.weight = torch.zeros(()), 0.0

    def state(self) -> dict[str, torch.Tensor]:
        """The mean, and what it falls short of."""
        return {"mean": self.mean, "weight": torch.tensor(self.weight, dtype=torch.float64)}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from there."""
        self.mean, self.weight = state["mean"], float(state["weight"])

    def __call__(self, weights: Weights) -> tuple[Tensor, Tensor]:
        log_weight = weights.log_weight.detach()
        baseline = self.mean / self.weight if self.weight else self.mean
        if torch.is_grad_enabled():
            self.mean = DECAY * self.mean + (1 - DECAY) * log_weight.mean()
            self.weight = DECAY * self.weight + 1 - DECAY
        return elbo(log_weight), ((log_weight - baseline) * weights.score + weights.log_p).mean(0)
