"""Noise as an input: counter-based, so that a draw is a function of its row, the seed and its number alone.

A key is 64 bits for each row: of the row's bytes in scoring, of (step, row number) in training. Noise number j of a row is
a hash of its key and j (splitmix64's finaliser, Steele, Lea & Flood 2014), independent between rows and keys.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple
from zlib import crc32

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_vae.errors import ProgramError
from ppl_vae.infer.rules import Uniform, base, draw

GAMMA, FIRST, SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685  # splitmix64's, as int64


def mix(h: Tensor) -> Tensor:
    """splitmix64's finaliser on int64: a bijection that scatters every bit."""
    # h = (h ^ (h >> 30)) * FIRST and so on; the masks make the shifts logical. In place, since fresh memory costs most
    h = (h >> 30).bitwise_and_(0x3FFFFFFFF).bitwise_xor_(h).mul_(FIRST)
    h = (h >> 27).bitwise_and_(0x1FFFFFFFFF).bitwise_xor_(h).mul_(SECOND)
    return (h >> 31).bitwise_and_(0x1FFFFFFFF).bitwise_xor_(h)


def row_keys(x: Tensor, seed: int) -> Tensor:
    """Keys (n,) from the bytes of the rows of x (n, d): equal rows have equal keys, wherever they stand."""
    bits = (x + 0.0).contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int64).long()  # +0.0: -0 is 0
    salt = mix(torch.arange(1, x.shape[1] + 1, device=x.device) * GAMMA + _wrapped(seed))
    return mix(mix(bits * GAMMA + salt).sum(1))


def step_keys(rows: Tensor, seed: int, step: int) -> Tensor:
    """Keys (b,) from the row numbers (b,) of one training step."""
    return keys_by_step(rows[None], seed, [step])[0]


def keys_by_step(rows: Tensor, seed: int, steps: Iterable[int]) -> Tensor:
    """Keys (m, b) from the row numbers (m, b) of m training steps."""
    salts = [_wrapped(seed) ^ step * FIRST & 0x7FFFFFFFFFFFFFFF for step in steps]
    return mix(rows * GAMMA + mix(torch.tensor(salts, device=rows.device))[:, None])


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
    return _uniforms(keys, _counted(draws, size, first).to(keys.device)).view(len(keys), draws, size).transpose(0, 1)


def _counted(draws: int, size: int, first: int) -> Tensor:
    """What tells noise numbers apart, (draws * size,)."""
    return torch.arange(first * size + 1, (first + draws) * size + 1) * GAMMA


def _uniforms(keys: Tensor, counted: Tensor) -> Tensor:
    h = mix(keys[..., None] + counted)
    return (h >> 12).bitwise_and_(0xFFFFFFFFFFFFF).double().add_(0.5).mul_(2.0**-52)


class Request(NamedTuple):
    """What noise a site asks for.

    Attributes:
        salt: of the site's name.
        local: whether it belongs to each row.
        call: number of the request among those of one sampling of the site.
        draws, size, first: as in `uniforms`.
    """

    salt: int
    local: bool
    call: int
    draws: int
    size: int
    first: int


def requested(request: Request, keys: Tensor, shared: Tensor | None = None, everyone: Tensor | None = None) -> Tensor:
    """The noise that a site asked for, (draws, n, size), or (draws, 1, size) where it belongs to all rows.

    Args:
        keys: (n,) of the rows.
        shared: (1,) key of sites of all rows; None: of all these rows together,
        everyone: or of all of these.
    """
    if request.local:
        own = mix(keys + request.salt)
    elif shared is not None:
        own = mix(shared + request.salt)
    else:
        own = mix(mix((keys if everyone is None else everyone) + request.salt).sum(0, keepdim=True))
    return uniforms(mix(own + request.call) if request.call else own, request.draws, request.size, request.first)


class ByStep:
    """The noise that sites ask for in steps that follow one another.

    Args:
        requests: what is asked for in each step.
        device: of the keys.

    Attributes:
        counted: the constants that it takes besides.
    """

    def __init__(self, requests: Sequence[Request], device: torch.device) -> None:
        self.requests = requests
        self.counted = [_counted(r.draws, r.size, r.first).to(device) for r in requests]

    def __call__(self, keys: Tensor, present: Tensor, *counted: Tensor) -> tuple[Tensor, ...]:
        """Noise (m, draws, n, size) for each request, with n = 1 where it is not local.

        Args:
            keys: (m, n) of the rows of each step.
            present: (m, n) of bool, rows that count.
        """
        found = []
        for request, numbers in zip(self.requests, counted):
            own = mix(keys + request.salt)
            if not request.local:
                own = mix((own * present).sum(1, keepdim=True))
            if request.call:
                own = mix(own + request.call)
            noise = _uniforms(own, numbers).reshape(*own.shape, request.draws, request.size)
            found.append(noise.movedim(2, 1).contiguous())
        return tuple(found)


class Keyed(Messenger):
    """Draws the unobserved sites of the programs run inside from keyed noise.

    Enter it outside all other handlers: then a site's distribution is already expanded by every plate.

    Args:
        keys: (n,) int64, one a row of the plate "data".
        first: number of the first draw.
        strict: refuse a site without a rule, instead of leaving it to torch's generator.
        reparameterized: False cuts the gradient through draws, which makes Pyro use the score function.
        shared: (1,) int64, the key of sites outside the plate "data"; None: of all rows together.
        values: of sites that have been drawn already, by name.
        supply: gives the noise that is asked for; None: `requested`.
        everyone: keys of all rows that sites outside the plate belong to, where the plate has some of them.
    """

    def __init__(
        self,
        keys: Tensor,
        *,
        first: int = 0,
        strict: bool = True,
        reparameterized: bool = True,
        shared: Tensor | None = None,
        values: Mapping[str, Tensor] = MappingProxyType({}),
        supply: Callable[[Request], Tensor] | None = None,
        everyone: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.keys, self.first, self.strict, self.reparameterized = keys, first, strict, reparameterized
        self.values = values
        self.supply = supply or (lambda request: requested(request, keys, shared, everyone))
        self.drawn: dict[str, int] = {}  # how many draws a site has had: a program run again goes on with the next

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None or site_is_subsample(msg):
            return
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
            return
        fn = msg["fn"]
        msg["value"] = draw(fn, self._noise(msg))
        if msg["value"] is None and self.strict:
            raise ProgramError(
                f"site {msg['name']!r}: {base(fn).__class__.__name__} has no rule that makes a draw from keyed noise; "
                "register one with ppl_vae.infer.noise.draw.register"
            )
        if not self.reparameterized:
            self._score_function(msg)
        if msg["value"] is not None and not fn.has_rsample:  # else its gradient would count beside the score function
            msg["value"] = msg["value"].detach()

    def _score_function(self, msg: Any) -> None:
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

    def _noise(self, msg: Any) -> Uniform:
        """The noise of a site, as rules ask for it; each time that a program samples the site, of its next draws."""
        name, batch, event = msg["name"], tuple(msg["fn"].batch_shape), tuple(msg["fn"].event_shape)
        salt, local = crc32(name.encode()), any(frame.name == "data" for frame in msg["cond_indep_stack"])
        n = len(self.keys) if local else 1
        *others, draws, rows = (1, 1, *batch)  # the others, such as an enumerated site's values: more numbers a draw
        first = self.first + self.drawn.get(name, 0)
        self.drawn[name] = self.drawn.get(name, 0) + draws
        calls = count()

        def uniform(*shape: int) -> Tensor:
            shape, call = shape or event, next(calls)
            size = prod(batch) // (draws * n) * prod(shape)
            noise = self.supply(Request(salt, local, call, draws, size, first))
            return noise.reshape(draws, rows, prod(others), prod(shape)).permute(2, 0, 1, 3).reshape(batch + shape)

        return uniform
