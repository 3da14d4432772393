"""Encoders and decoders: a net between features and the raw parameters of a family."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn


def beside(*parts: Tensor | None) -> Tensor:
    """Features (..., a), (..., b) as one (..., a + b), leading dimensions broadcast; None is left out."""
    given = [part for part in parts if part is not None]
    if len(given) == 1:
        return given[0]
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in given))
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in given], -1)


def width(family: Any, features: int) -> int:
    """How many raw numbers a family wants for so many features."""
    return family.width if hasattr(family, "width") else family.outputs * features


def distribution(family: Any, raw: Tensor) -> dist.Distribution:
    """A family's distribution at raw parameters (..., width): whole, or in `family.outputs` equal parts."""
    return family(raw) if hasattr(family, "width") else family(*raw.chunk(family.outputs, -1))


class Conditional(nn.Module):
    """p(. | value): a net, and a family that turns its outputs into a distribution.

    Args:
        net: (..., inputs) to (..., width).
        family: a module with `.outputs` (numbers per feature), called with that many tensors (..., features); or with
            `.width`, called with all of them, (..., width).
    """

    def __init__(self, net: Any, family: Any) -> None:
        super().__init__()
        self.net, self.family = net, family

    def forward(self, value: Tensor) -> dist.Distribution:
        return distribution(self.family, self.net(value))


class Encoder(nn.Module):
    """q(z | x, c, y), from the features of the cells that were observed.

    Args:
        inputs: x (..., d) and mask to features.
        net: features, beside those of c and y, to raw parameters.
        family: as for `Conditional`.
        covariates: c to features, where there are covariates.
        shared: a program without arguments that samples the prior's sites outside the plate, where there are any.
        weights: the same for the decoder's weights.
    """

    def __init__(
        self, inputs: Any, net: Any, family: Any, covariates: Any = None, shared: Any = None, weights: Any = None
    ) -> None:
        super().__init__()
        self.inputs, self.net, self.family = inputs, net, family
        self.covariates, self.shared, self.weights = covariates, shared, weights

    def forward(
        self, x: Tensor, mask: Tensor | None = None, c: Tensor | None = None, y: Tensor | None = None
    ) -> dist.Distribution:
        return self.at(beside(self.features(x, mask, c), y))

    def features(self, x: Tensor, mask: Tensor | None = None, c: Tensor | None = None) -> Tensor:
        """What the net sees of x and c."""
        return beside(self.inputs(x, mask), None if self.covariates is None else self.covariates(c))

    def at(self, features: Tensor) -> dist.Distribution:
        """q(z|.) at features (..., inputs of the net)."""
        return distribution(self.family, self.net(features))

    def global_sites(self) -> Any:
        """Sample what the plate of rows does not hold."""
        if self.weights is not None:
            self.weights()
        return None if self.shared is None else self.shared()


class Decoder(nn.Module):
    """p(x | z, c, y): arguments as for `Encoder`.

    Args:
        weights: the prior of the net's weights where these are sites, such as `weights.WeightPrior`; with `.sample()`, and
            called with the net's input and what that returned.
    """

    def __init__(self, net: Any, family: Any, covariates: Any = None, weights: Any = None) -> None:
        super().__init__()
        self.net, self.family, self.covariates, self.weights = net, family, covariates, weights

    def forward(
        self, z: Tensor, c: Tensor | None = None, y: Tensor | None = None, shared: Any = None
    ) -> dist.Distribution:
        features = beside(z, None if self.covariates is None else self.covariates(c), y)
        raw = self.net(features) if self.weights is None else self.weights(features, shared)
        return distribution(self.family, raw)

    def global_sites(self) -> Any:
        """Sample the net's weights, where they are sites."""
        return None if self.weights is None else self.weights.sample()
