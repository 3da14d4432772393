"""Bounds on log p(x) per row as functions of log weights log p(x, z) - log q(z|x) of S draws."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def elbo(log_weight: Tensor) -> Tensor:
    """The evidence lower bound per row: log weights (S, n) to their mean (n,)."""
    return log_weight.mean(0)


def iwae(log_weight: Tensor) -> Tensor:
    """The importance-weighted bound per row: log weights (S, n) to the log of the mean weight (n,)."""
    return torch.logsumexp(log_weight, 0) - math.log(len(log_weight))


def renyi(log_weight: Tensor, alpha: float) -> Tensor:
    """The Rényi bound per row, log mean w^(1 - alpha) / (1 - alpha) (Li & Turner 2016, section 4.1): (S, n) to (n,).

    Args:
        alpha: any number but 1, whose limit is the ELBO; 0 is IWAE, and with negative ones many draws bound from above.

    Example:
        >>> renyi(torch.tensor([[0.0], [math.log(9.0)]]), alpha=0.5).exp()  # the square of the mean root
        tensor([4.])
    """
    return iwae((1 - alpha) * log_weight) / (1 - alpha)


BOUNDS: dict[str, Callable[[Tensor], Tensor]] = {"elbo": elbo, "iwae": iwae}


def grouped(bound: Callable[[Tensor], Tensor], groups: int) -> Callable[[Tensor], Tensor]:
    """The mean over M groups of draws of a bound: log weights (M K, n) to (n,) (MIWAE of Rainforth et al. 2018)."""
    return lambda log_weight: torch.stack([bound(group) for group in log_weight.chunk(groups)]).mean(0)
