"""Likelihoods and the scales of normals: net outputs to a Pyro distribution with its event dimension declared."""

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae.errors import OptionError, choose, number

SCALE_FLOOR = 1e-3
"""Smallest standard deviation unless told otherwise, in encoded units."""
LOG_VARIANCE_BOUND = 14.0
"""The log_variance link clamps from above to this: a standard deviation of 1.1e3."""


def softplus_scale(raw: Tensor, floor: float = SCALE_FLOOR) -> Tensor:
    """Standard deviation from an unbounded number: softplus(raw) + floor."""
    return softplus(raw) + floor


def log_variance_scale(raw: Tensor, floor: float = SCALE_FLOOR) -> Tensor:
    """Standard deviation from a log-variance head, clamped (Kingma & Welling 2013, appendix C.2)."""
    return torch.exp(0.5 * raw.clamp(2 * math.log(floor), LOG_VARIANCE_BOUND))


SCALE_LINKS: dict[str, Callable[..., Tensor]] = {"softplus": softplus_scale, "log_variance": log_variance_scale}
UNIT = {"softplus": 0.5413, "log_variance": 0.0}
"""The raw value at which each link gives a standard deviation of 1, where learned scales start."""


class Conditional(nn.Module):
    """p(. | c): a net, and a family that turns its outputs into a distribution. Encoders and decoders alike.

    Args:
        net: (..., c) to (..., outputs * features).
        family: called with the `family.outputs` equal parts of the net's output, each (..., features).
    """

    def __init__(self, net: Any, family: Any) -> None:
        super().__init__()
        self.net, self.family = net, family

    def forward(self, c: Tensor) -> dist.Distribution:
        return self.family(*self.net(c).chunk(self.family.outputs, -1))


class Normal(nn.Module):
    """Normal with a diagonal scale, learned per row and feature, per feature, shared, or fixed.

    Args:
        features: d.
        scale: "row" (the net gives it), "feature", "shared", or a number, the standard deviation in encoded units.
        link: a name in `SCALE_LINKS`.
        floor: smallest learned standard deviation, in encoded units.
    """

    fixed: Tensor

    def __init__(
        self, features: int, scale: str | float = "row", link: str = "softplus", floor: float = SCALE_FLOOR
    ) -> None:
        super().__init__()
        self.link, self.floor = choose("scale_link", link, SCALE_LINKS), number("scale_floor", floor)
        self.outputs = 2 if scale == "row" else 1
        if scale in ("feature", "shared"):
            size = features if scale == "feature" else 1
            self.raw = nn.Parameter(torch.full((size,), UNIT[link]))
        elif isinstance(scale, str) and scale != "row":
            raise OptionError(f"scale: got {scale!r}, expected 'row', 'feature', 'shared' or a positive number")
        elif scale != "row":
            self.register_buffer("fixed", torch.tensor([number("scale", scale)]))

    def forward(self, loc: Tensor, raw: Tensor | None = None) -> dist.Distribution:
        if hasattr(self, "fixed"):
            return dist.Normal(loc, self.fixed).to_event(1)
        return dist.Normal(loc, self.link(self.raw if raw is None else raw, self.floor)).to_event(1)


class Bernoulli(nn.Module):
    """Bernoulli from logits, on {0, 1}: log p(x|z) = sum x log p + (1-x) log(1-p) (Kingma & Welling 2013, C.1)."""

    outputs = 1

    def forward(self, logits: Tensor) -> dist.Distribution:
        return dist.Bernoulli(logits=logits).to_event(1)


class ContinuousBernoulli(nn.Module):
    """Continuous Bernoulli from logits: a density on [0, 1] for grey values (Loaiza-Ganem & Cunningham 2019)."""

    outputs = 1

    def forward(self, logits: Tensor) -> dist.Distribution:
        return dist.ContinuousBernoulli(logits=logits).to_event(1)


def bernoulli(features: int, scale: str | float, link: str, floor: float) -> nn.Module:
    """Factory of `Bernoulli`; it has no scale."""
    return Bernoulli()


def continuous_bernoulli(features: int, scale: str | float, link: str, floor: float) -> nn.Module:
    """Factory of `ContinuousBernoulli`; it has no scale."""
    return ContinuousBernoulli()


LIKELIHOODS: dict[str, Callable[[int, str | float, str, float], nn.Module]] = {
    "normal": Normal,
    "bernoulli": bernoulli,
    "continuous_bernoulli": continuous_bernoulli,
}
