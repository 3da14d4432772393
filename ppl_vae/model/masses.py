"""Distributions that Pyro lacks, or has with another support."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import SigmoidTransform
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

HALF = 1 / 255
"""Half the distance between two grey levels, in encoded units."""


class _Grey(constraints.Constraint):
    """(k - 127.5) / 127.5 for k = 0, ..., 255, up to the rounding of float32."""

    is_discrete = True
    lower_bound = -1.0

    def check(self, value: Tensor) -> Tensor:
        level = value * 127.5 + 127.5
        return (level - level.round()).abs().le(1e-3) & value.abs().le(1 + HALF / 2)

    def __repr__(self) -> str:
        return "one of the 256 levels (k - 127.5) / 127.5"


class _OpenUnit(constraints.Constraint):
    """0 < x < 1."""

    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)

    def __repr__(self) -> str:
        return "a value above 0 and below 1"


@biject_to.register(_OpenUnit)
def _(constraint: Any) -> SigmoidTransform:
    return SigmoidTransform()


class OpenBeta(dist.Beta):
    """Beta on the open interval: at 0 and 1 its density is 0 or infinite, so rows that hold them are refused."""

    support = _OpenUnit()  # type: ignore[assignment]


def _gate(self: Any) -> Tensor:
    return torch.sigmoid(self.gate_logits)


class ZeroInflatedPoisson(dist.ZeroInflatedPoisson):
    """Pyro's, by `gate_logits`; Pyro's keeps the gate it once computed, and can then no longer be expanded."""

    gate = property(_gate)


class ZeroInflatedNegativeBinomial(dist.ZeroInflatedNegativeBinomial):
    """Pyro's, by `logits` and `gate_logits`; Pyro's refuses a probability that rounds to 1."""

    gate = property(_gate)
    arg_constraints = {  # noqa: RUF012 - torch's own protocol
        "total_count": constraints.positive,
        "logits": constraints.real,
        "gate_logits": constraints.real,
    }


class RowMultinomial(dist.Multinomial):
    """Multinomial given each row's own total: log_prob (...) of counts (..., d) conditions on their sum.

    Args:
        total_count: the total of the rows that `sample` draws, and of `mean`; scores do not use it.
        logits: (..., d).
    """

    support = constraints.independent(constraints.nonnegative_integer, 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """As torch's, but without writing in place, which `torch.func.vmap` refuses."""
        if self._validate_args:
            self._validate_sample(value)
        powers = torch.where(value == 0, 0.0, self.logits) * value  # 0 log 0 is 0
        return torch.lgamma(value.sum(-1) + 1) - torch.lgamma(value + 1).sum(-1) + powers.sum(-1)


class DiscretizedLogistic(dist.TorchDistribution):
    """Logistic rounded to 256 grey levels, the outer two with the tails (Salimans et al. 2017, eq. 2, one component).

    Args:
        loc, scale: (...), in encoded units, where level k is (k - 127.5) / 127.5.

    Example:
        >>> levels = (torch.arange(256) - 127.5) / 127.5
        >>> mass = DiscretizedLogistic(torch.tensor(0.3), torch.tensor(0.1)).log_prob(levels).exp()
        >>> round(mass.sum().item(), 4)
        1.0
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012 - torch's own protocol
    support = _Grey()

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiscretizedLogistic":
        return DiscretizedLogistic(self.loc.expand(batch_shape), self.scale.expand(batch_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """log of F(b) - F(a) = F(b) (1 - F(a)) (1 - exp(a - b)): no difference of nearly equal numbers."""
        if self._validate_args:
            self._validate_sample(value)
        first, last = value < HALF - 1, value > 1 - HALF
        above = logsigmoid((self.loc - value + HALF) / self.scale)  # a is the level's lower edge, b its upper
        below = logsigmoid((value + HALF - self.loc) / self.scale)
        between = torch.log(-torch.expm1(-2 * HALF / self.scale))
        return above.masked_fill(first, 0.0) + below.masked_fill(last, 0.0) + between.masked_fill(first | last, 0.0)

    def icdf(self, value: Tensor) -> Tensor:
        """The level that holds the logistic's own quantile."""
        level = ((self.loc + self.scale * torch.logit(value)) * 127.5 + 127.5).round().clamp(0, 255)
        return (level - 127.5) / 127.5

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - torch's signature
        with torch.no_grad():
            u = torch.rand(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
            return self.icdf(u)

    @property
    def mean(self) -> Tensor:
        """-1 + 2/255 sum over the 255 inner edges of P(x above the edge); one edge at a time, to hold no (..., 255)."""
        above = torch.zeros_like(self.loc)
        for k in range(1, 256):
            above = above + torch.sigmoid((self.loc - (k - 128) / 127.5) / self.scale)
        return 2 * HALF * above - 1
