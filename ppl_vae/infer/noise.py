"""Noise as an input: counter-based, so that a draw is a function of its row, the seed and its number alone.

A key is 64 bits for each row: of the row's bytes in scoring, of (step, row number) in training. Noise number j of a row is
a hash of its key and j (splitmix64's finaliser, Steele, Lea & Flood 2014), independent between rows and keys.
"""

from collections.abc import Callable
from functools import singledispatch
from math import prod
from typing import Any
from zlib import crc32

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_vae.errors import ProgramError

GAMMA, FIRST, SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685  # splitmix64's, as int64


def mix(h: Tensor) -> Tensor:
    """splitmix64's finaliser on int64: a bijection that scatters every bit."""
    h = (h ^ ((h >> 30) & 0x3FFFFFFFF)) * FIRST  # the masks make the shifts logical
    h = (h ^ ((h >> 27) & 0x1FFFFFFFFF)) * SECOND
    return h ^ ((h >> 31) & 0x1FFFFFFFF)


def row_keys(x: Tensor, seed: int) -> Tensor:
    """Keys (n,) from the bytes of the rows of x (n, d): equal rows have equal keys, wherever they stand."""
    bits = (x + 0.0).contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int64).long()  # +0.0: -0 is 0
    salt = mix(torch.arange(1, x.shape[1] + 1, device=x.device) * GAMMA + _wrapped(seed))
    return mix(mix(bits * GAMMA + salt).sum(1))


def step_keys(rows: Tensor, seed: int, step: int) -> Tensor:
    """Keys (b,) from the row numbers (b,) of one training step."""
    return mix(
        rows * GAMMA + mix(torch.tensor([_wrapped(seed) ^ step * FIRST & 0x7FFFFFFFFFFFFFFF], device=rows.device))
    )


def _wrapped(seed: int) -> int:
    """Any whole number as one that int64 holds."""
    return (seed + 2**63) % 2**64 - 2**63


def uniforms(keys: Tensor, draws: int, size: int, first: int = 0) -> Tensor:
    """Noise in the open interval (0, 1), float64.

    Args:
        keys: (n,) int64.
        draws: S, numbered from `first`; draw s is the same whatever S and `first`.
        size: numbers a draw.

    Returns: (S, n, size).
    """
    numbers = torch.arange(first * size + 1, (first + draws) * size + 1, device=keys.device) * GAMMA
    h = mix(keys[:, None] + numbers)
    u = (((h >> 12) & 0xFFFFFFFFFFFFF).double() + 0.5) * 2.0**-52
    return u.view(len(keys), draws, size).transpose(0, 1)


@singledispatch
def draw(distribution: Any, uniform: Callable[[], Tensor]) -> Tensor | None:
    """A draw from `distribution`, made of noise; None for a family without a rule. Register a rule to add one.

    Without a rule of its own a family is drawn by its inverse cumulative distribution function, if it has one.

    Args:
        uniform: gives the noise, of the shape of a draw.
    """
    try:
        u = uniform()
        return distribution.icdf(u).to(getattr(distribution, "loc", u).dtype)
    except (NotImplementedError, AttributeError):
        return None


@draw.register
def _(normal: dist.Normal, uniform: Callable[[], Tensor]) -> Tensor:
    return normal.loc + normal.scale * torch.special.ndtri(uniform()).to(normal.loc.dtype)


@draw.register
def _(delta: dist.Delta, uniform: Callable[[], Tensor]) -> Tensor:
    return delta.v


@draw.register
def _(normal: torch.distributions.MultivariateNormal, uniform: Callable[[], Tensor]) -> Tensor:
    noise = torch.special.ndtri(uniform()).to(normal.loc.dtype)
    return normal.loc + (normal.scale_tril @ noise[..., None])[..., 0]


@draw.register
def _(transformed: torch.distributions.TransformedDistribution, uniform: Callable[[], Tensor]) -> Tensor | None:
    value = draw(transformed.base_dist, uniform)
    for transform in transformed.transforms if value is not None else ():
        value = transform(value)
    return value


@draw.register(torch.distributions.Independent)
@draw.register(dist.MaskedDistribution)
def _(wrapped: Any, uniform: Callable[[], Tensor]) -> Tensor | None:
    return draw(wrapped.base_dist, uniform)


class Keyed(Messenger):
    """Draws the unobserved sites of the programs run inside from keyed noise.

    Enter it outside all other handlers: then a site's distribution is already expanded by every plate.

    Args:
        keys: (n,) int64, one a row of the plate "data".
        first: number of the first draw.
        strict: refuse a site without a rule, instead of leaving it to torch's generator.
        reparameterized: False cuts the gradient through draws, which makes Pyro use the score function.
    """

    def __init__(self, keys: Tensor, *, first: int = 0, strict: bool = True, reparameterized: bool = True) -> None:
        super().__init__()
        self.keys, self.first, self.strict, self.reparameterized = keys, first, strict, reparameterized
        self.drawn: dict[str, int] = {}  # how many draws a site has had: a program run again goes on with the next

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None or site_is_subsample(msg):
            return
        fn = msg["fn"]
        msg["value"] = draw(fn, lambda: self._noise(msg))
        if msg["value"] is None and self.strict:
            raise ProgramError(
                f"site {msg['name']!r}: {base(fn).__class__.__name__} has no rule that makes a draw from keyed noise; "
                "register one with ppl_vae.infer.noise.draw.register"
            )
        if not self.reparameterized:
            self._detach(msg)

    def _detach(self, msg: Any) -> None:
        family = base(msg["fn"])
        if isinstance(family, dist.Delta):
            raise ProgramError(f"site {msg['name']!r}: got a point mass, whose encoder has no score function")
        try:
            family.has_rsample = False
        except AttributeError as error:  # a property of what it is made of
            raise ProgramError(
                f"site {msg['name']!r}: got {type(family).__name__}, "
                "expected a family that can be drawn from without gradient"
            ) from error
        if msg["value"] is not None:
            msg["value"] = msg["value"].detach()

    def _noise(self, msg: Any) -> Tensor:
        name, batch, event = msg["name"], msg["fn"].batch_shape, msg["fn"].event_shape
        salted = mix(self.keys + crc32(name.encode()))
        if any(frame.name == "data" for frame in msg["cond_indep_stack"]):
            rows = batch[-1]
        else:  # a global site: one key for all
            rows, salted = 1, mix(salted.sum(0, keepdim=True))
        draws, before = prod(batch) // rows, self.drawn.get(name, 0)
        self.drawn[name] = before + draws
        noise = uniforms(salted, draws, prod(event), self.first + before)
        return noise.reshape(batch + event)


def base(fn: Any) -> Any:
    """The family under event dimensions and masks."""
    while isinstance(fn, torch.distributions.Independent | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn
