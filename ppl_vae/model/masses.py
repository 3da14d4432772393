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


class ContinuousBernoulli(dist.ContinuousBernoulli):
    """torch's, by `logits`, without the clamp of probabilities that leaves its densities a mass below 1 from |logit| 15 on.

    log p(x) = l x + log(l / (exp l - 1)) (Loaiza-Ganem & Cunningham 2019, eq. 8): by |l|, so that nothing overflows, and
    near l = 0 by its series.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        is_far, size, near = _split(self.logits)
        series = -near / 2 - near**2 / 24 + near**4 / 2880
        exact = size.log() - torch.log(-torch.expm1(-size)) - torch.relu(self.logits)
        return value * self.logits + torch.where(is_far, exact, series)

    def icdf(self, value: Tensor) -> Tensor:
        up, size = self.logits > 0, self.logits.abs().clamp(min=1e-6)
        x = -torch.log1p(torch.where(up, 1 - value, value) * torch.expm1(-size)) / size  # of -|l|
        return torch.where(up, 1 - x, x).clamp(0.0, 1.0)

    @property
    def mean(self) -> Tensor:
        is_far, size, near = _split(self.logits)
        series = near / 12 - near**3 / 720 + near**5 / 30240
        exact = self.logits.sign() * (-1 / torch.expm1(-size) - 1 / size - 0.5)
        return 0.5 + torch.where(is_far, exact, series)

    @property
    def variance(self) -> Tensor:
        is_far, size, near = _split(self.logits)
        series = 1 / 12 - near**2 / 240 + near**4 / 6048
        return torch.where(is_far, 1 / size**2 - torch.exp(-size) / torch.expm1(-size) ** 2, series)


def _split(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which logits are far from 0; for these |logit|, else 1; for the others the logit, else 0: no branch turns infinite."""
    is_far = logits.abs() > 0.5
    return is_far, torch.where(is_far, logits.abs(), 1.0), torch.where(is_far, 0.0, logits)


class Poisson(dist.Poisson):
    """Pyro's, its log masses summed in float64: of large counts float32 loses the difference of large numbers."""

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        count, rate = value.double(), self.rate.double()
        return (torch.xlogy(count, rate) - rate - torch.lgamma(count + 1)).to(self.rate.dtype)


class NegativeBinomial(dist.NegativeBinomial):
    """Pyro's, by `logits`, its log masses summed in float64, as of `Poisson`."""

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        count, total, logits = value.double(), self.total_count.double(), self.logits.double()
        ways = torch.lgamma(total + count) - torch.lgamma(1 + count) - torch.lgamma(total)
        return (ways + total * logsigmoid(-logits) + count * logsigmoid(logits)).to(self.logits.dtype)


class ZeroInflated(dist.ZeroInflatedDistribution):
    """Pyro's, by `gate_logits`; Pyro's keeps the gate it once computed, and can then no longer be expanded."""

    @property
    def gate(self) -> Tensor:
        return torch.sigmoid(self.gate_logits)


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
