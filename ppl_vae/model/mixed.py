"""One family a column: their log densities side by side, whose sum is log p(x|z) of the row."""

from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae.errors import ProgramError
from ppl_vae.model.conditional import distribution, width


@singledispatch
def expected(distribution: Any) -> Tensor:
    """E[x|z], entry by entry (..., d); the most probable code where x is a code, the mean direction of an angle."""
    return distribution.mean


@expected.register(torch.distributions.Independent)
@expected.register(dist.MaskedDistribution)
def _(wrapped: Any) -> Tensor:
    return expected(wrapped.base_dist)


@expected.register
def _(categorical: torch.distributions.Categorical) -> Tensor:
    return categorical.logits.argmax(-1).to(categorical.logits.dtype)


@singledispatch
def averaged(distribution: Any) -> Tensor:
    """`expected` of the mixture over the first of the batch dimensions (S, ..., d), that of draws: (..., d)."""
    return expected(distribution).mean(0)


@averaged.register(torch.distributions.Independent)
@averaged.register(dist.MaskedDistribution)
def _(wrapped: Any) -> Tensor:
    return averaged(wrapped.base_dist)


@averaged.register
def _(categorical: torch.distributions.Categorical) -> Tensor:
    return categorical.probs.mean(0).argmax(-1).to(categorical.probs.dtype)


@averaged.register
def _(von_mises: dist.VonMises) -> Tensor:
    angle, concentration = von_mises.loc, von_mises.concentration
    length = torch.special.i1e(concentration) / torch.special.i0e(concentration)
    return torch.atan2((length * angle.sin()).mean(0), (length * angle.cos()).mean(0))


class ColumnSupport(constraints.Constraint):
    """The support of each column: `check` gives (..., d)."""

    def __init__(self, columnwise: "Columnwise") -> None:
        self.columnwise = columnwise
        self.is_discrete = all(part.support.is_discrete for part in columnwise.parts)

    def check(self, value: Tensor) -> Tensor:
        return self.columnwise.joined(lambda part, own: part.support.check(own), value)


class Columnwise(dist.TorchDistribution):
    """Distributions of some columns each, side by side: batch (..., d), event ().

    Args:
        parts: distributions of batch (..., columns of the part) and event ().
        columns: (d,) long, the columns of the first part, then of the second, and so on: a permutation of 0, ..., d - 1.

    Example:
        >>> parts = [dist.Poisson(torch.ones(2)), dist.Normal(torch.zeros(1), 1.0)]
        >>> mixed = Columnwise(parts, torch.tensor([0, 2, 1]))
        >>> mixed.log_prob(torch.tensor([0.0, 0.0, 1.0]))
        tensor([-1.0000, -0.9189, -1.0000])
    """

    arg_constraints = {}  # noqa: RUF012 - torch's own protocol

    def __init__(self, parts: Sequence[Any], columns: Tensor) -> None:
        lead = torch.broadcast_shapes(*(part.batch_shape[:-1] for part in parts))
        self.sizes = [part.batch_shape[-1] for part in parts]
        self.parts = [part.expand((*lead, size)) for part, size in zip(parts, self.sizes)]
        self.columns, self.order = columns, columns.argsort()
        super().__init__(torch.Size((*lead, len(columns))), validate_args=False)

    def split_columns(self) -> tuple[Tensor, ...]:
        """The columns of each part."""
        return self.columns.split(self.sizes)

    def split(self, value: Tensor) -> tuple[Tensor, ...]:
        """Entries (..., d) as (..., columns of the part) for each part."""
        return value[..., self.columns].split(self.sizes, -1)

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`."""
        return torch.cat(list(values), -1)[..., self.order]

    def joined(self, of: Callable[..., Tensor], *values: Tensor) -> Tensor:
        """`of(part, value of the part, ...)` of all parts, joined."""
        return self.join([of(part, *own) for part, *own in zip(self.parts, *map(self.split, values))])

    def log_prob(self, value: Tensor) -> Tensor:
        return self.joined(lambda part, own: part.log_prob(own), value)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - torch's signature
        return self.joined(lambda part: part.sample(sample_shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return self.joined(lambda part: part.rsample(sample_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Columnwise":
        lead = torch.Size(batch_shape[:-1])
        parts = [part.expand((*lead, size)) for part, size in zip(self.parts, self.sizes)]
        return Columnwise(parts, self.columns)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return all(part.has_rsample for part in self.parts)

    @property
    def mean(self) -> Tensor:
        """`expected` of every part."""
        return self.joined(expected)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> ColumnSupport:
        return ColumnSupport(self)


@averaged.register
def _(columnwise: Columnwise) -> Tensor:
    return columnwise.joined(averaged)


class Mixed(nn.Module):
    """A family for each group of columns; `.width` is the sum of theirs, the raw numbers stand group after group.

    Args:
        parts: pairs of column numbers and the family of those columns, every column once.
    """

    columns: Tensor

    def __init__(self, parts: Sequence[tuple[Sequence[int], nn.Module]]) -> None:
        super().__init__()
        self.families = nn.ModuleList([family for _, family in parts])
        self.sizes = [len(columns) for columns, _ in parts]
        self.widths = [width(family, len(columns)) for columns, family in parts]
        self.width = sum(self.widths)
        self.register_buffer("columns", torch.tensor([j for columns, _ in parts for j in columns]))

    def forward(self, raw: Tensor) -> dist.Distribution:
        """raw (..., width) to a distribution of event (d,)."""
        parts = [entrywise(distribution(f, own)) for f, own in zip(self.families, raw.split(self.widths, -1))]
        return Columnwise(parts, self.columns).to_event(1)


def entrywise(likelihood: Any) -> Any:
    """The distribution of the entries, batch (..., d), under a likelihood of event (d,).

    Raises: ProgramError where the entries are not independent given z.
    """
    independent = isinstance(likelihood, torch.distributions.Independent)
    if not independent or likelihood.event_dim != 1 or likelihood.base_dist.event_dim:
        raise ProgramError(
            f"likelihood: got {type(likelihood).__name__} of event shape {tuple(likelihood.event_shape)}, expected "
            "one distribution an entry, with .to_event(1)"
        )
    return likelihood.base_dist
