"""Priors: modules that, called with nothing, return a distribution of one z."""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints


class StandardNormal(nn.Module):
    """p(z) = N(0, I) in `latent` dimensions."""

    loc: Tensor
    scale: Tensor

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent))
        self.register_buffer("scale", torch.ones(latent))

    def forward(self) -> dist.Distribution:
        return dist.Normal(self.loc, self.scale).to_event(1)


class Flat(nn.Module):
    """The improper prior of log density 0 everywhere: with a point posterior, maximum likelihood. It cannot be sampled."""

    def __init__(self, latent: int = 1) -> None:
        super().__init__()
        self.latent = latent

    def forward(self) -> dist.Distribution:
        return dist.ImproperUniform(constraints.real_vector, (), (self.latent,))


PRIORS: dict[str, Callable[[int], nn.Module]] = {"standard_normal": StandardNormal, "flat": Flat}
