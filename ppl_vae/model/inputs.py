"""What a net sees of a row: features made of each column by its type."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.data.schema import Schema

Function = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Encoded values (..., m) of m columns, and two numbers for each, to features (..., m)."""
Features = list[tuple[Function, float, float]]
"""The features of one column: functions, each with its two numbers."""


def _itself(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return x


def _log(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return (x.log() - loc) / scale


def _log1p(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return (x.log1p() - loc) / scale


def _place(x: Tensor, loc: Tensor, levels: Tensor) -> Tensor:
    return (x + 0.5) / levels * 2 - 1


def _cos(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return x.cos()


def _sin(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return x.sin()


def _is(x: Tensor, code: Tensor, scale: Tensor) -> Tensor:
    return (x == code).to(x)


def _positive(schema: Any, j: int) -> Features:
    return [(_log, *_logs(schema, j))]


def _count(schema: Any, j: int) -> Features:
    return [(_log1p, *_logs(schema, j))]


def _ordinal(schema: Any, j: int) -> Features:
    return [(_place, 0.0, len(schema.levels[j]))]


def _angle(schema: Any, j: int) -> Features:
    return [(_cos, 0.0, 1.0), (_sin, 0.0, 1.0)]


def _categorical(schema: Any, j: int) -> Features:
    return [(_is, code, 1.0) for code in range(len(schema.levels[j]))]


def _plain(schema: Any, j: int) -> Features:
    return [(_itself, 0.0, 1.0)]


def _logs(schema: Any, j: int) -> tuple[float, float]:
    loc, scale = schema.log_loc, schema.log_scale
    return (0.0 if loc is None else loc[j]), (1.0 if scale is None else scale[j])


FEATURES: dict[str, Callable[[Any, int], Features]] = {
    "positive": _positive,
    "count": _count,
    "ordinal": _ordinal,
    "angle": _angle,
    "categorical": _categorical,
}
"""The features of the column j of a schema, by its type; a column of any other type is its own feature."""


class Inputs(nn.Module):
    """Features (..., width) of encoded rows (..., d).

    Columns of one type stand together, types in the order of their first column: real, unit, boolean and pixel columns
    as they are, logarithms of positive columns and of counts (standardised), places of ordinal codes on [-1, 1],
    cosines and then sines of angles, one feature for each level of categorical columns. Last, for each nullable column,
    1 where it was observed and 0 where not. The features of a cell that was not observed are 0, whatever stands there.

    Args:
        schema: the columns. Where all are their own features and none is nullable, a row is its own features.

    Example:
        >>> types, levels = ("categorical", "angle"), (("x", "y"), None)
        >>> schema = Schema(("a", "b"), "pandas", (2,), types=types, levels=levels, nullable=("b",))
        >>> Inputs(schema)(torch.tensor([[1.0, torch.nan]]), torch.tensor([[True, False]]))
        tensor([[0., 1., 0., 0., 0.]])
    """

    nullable: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        types = schema.column_types
        columns: dict[Function, list[tuple[int, float, float]]] = {}
        for j, kind in enumerate(types):
            for function, first, second in FEATURES.get(kind, _plain)(schema, j):
                columns.setdefault(function, []).append((j, first, second))
        nullable = [j for j, name in enumerate(schema.names) if name in schema.nullable]
        self.width = sum(map(len, columns.values())) + len(nullable)
        self.identity = set(columns) == {_itself} and not nullable
        if not self.identity:
            self.parts = nn.ModuleList([_Part(function, rows) for function, rows in columns.items()])
            self.register_buffer("nullable", torch.tensor(nullable, dtype=torch.long))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (..., d), encoded; mask (..., d) of bool, True where observed, or None where all were."""
        if self.identity:
            return x if mask is None else torch.where(mask, x, 0.0)
        seen = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.expand_as(x)
        x = torch.where(seen, x, 0.0)  # before any arithmetic: NaN times 0 is NaN
        return torch.cat([*(part(x, seen) for part in self.parts), seen[..., self.nullable].to(x)], -1)


class _Part(nn.Module):
    """One function of some columns, each with two numbers; 0 where a cell was not observed."""

    columns: Tensor
    first: Tensor
    second: Tensor

    def __init__(self, function: Function, rows: list[tuple[int, float, float]]) -> None:
        super().__init__()
        self.function = function
        columns, first, second = zip(*rows)
        self.register_buffer("columns", torch.tensor(columns))
        self.register_buffer("first", torch.tensor(first, dtype=torch.get_default_dtype()))
        self.register_buffer("second", torch.tensor(second, dtype=torch.get_default_dtype()))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        return torch.where(seen[..., self.columns], self.function(x[..., self.columns], self.first, self.second), 0.0)
