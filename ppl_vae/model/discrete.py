"""Discrete latents: vectors of bits that can be enumerated, and continuous relaxations."""

from functools import singledispatch
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.errors import ProgramError

MOST_BITS = 12
"""Vectors of more bits than this are not enumerated: there are 2^k of them."""


class BitVector(dist.Independent):
    """Independent bits as one vector in {0, 1}^k: `Bernoulli(logits).to_event(1)` that can be enumerated.

    Args:
        logits: (..., k).
    """

    has_enumerate_support = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(dist.Bernoulli(logits=logits, validate_args=validate_args), 1, validate_args=validate_args)

    @property
    def logits(self) -> Tensor:
        return self.base_dist.logits

    def expand(self, batch_shape: Any, _instance: Any = None) -> "BitVector":
        return BitVector(self.logits.expand(*batch_shape, -1), validate_args=self._validate_args)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All vectors, (2^k, 1, ..., k) or with expand (2^k, ..., k), the first bit changing slowest.

        Raises: ProgramError where k is above `MOST_BITS`.
        """
        k = self.event_shape[0]
        if k > MOST_BITS:
            raise ProgramError(
                f"enumeration: got {k} bits, expected at most {MOST_BITS}, since all 2^k vectors are summed over; "
                "use the score function or a relaxation"
            )
        places = torch.arange(k - 1, -1, -1, device=self.logits.device)
        bits = torch.arange(2**k, device=self.logits.device)[:, None] >> places & 1
        bits = bits.to(self.logits.dtype).reshape(2**k, *(1 for _ in self.batch_shape), k)
        return bits.expand(2**k, *self.batch_shape, k) if expand else bits


@singledispatch
def relaxed(distribution: Any, temperature: Tensor) -> dist.Distribution:
    """A continuous distribution that tends to a discrete one as the temperature tends to 0, with gradients.

    The density is another's, on the open cube or simplex: a bound made of it is not one on the discrete model
    (Maddison et al. 2017; Jang et al. 2017). Register a rule to add a family.

    Args:
        distribution: a `BitVector` or `OneHotCategorical`.
        temperature: a scalar tensor, above 0.

    Raises: ProgramError for a family without a relaxation.
    """
    raise ProgramError(f"relaxation: got {type(distribution).__name__}, expected BitVector or OneHotCategorical")


@relaxed.register
def _(distribution: BitVector, temperature: Tensor) -> dist.Distribution:
    return dist.RelaxedBernoulli(temperature, logits=distribution.logits).to_event(1)


@relaxed.register
def _(distribution: torch.distributions.OneHotCategorical, temperature: Tensor) -> dist.Distribution:
    # rounding takes draws off the simplex by more than its check allows
    return dist.RelaxedOneHotCategorical(temperature, logits=distribution.logits, validate_args=False)
