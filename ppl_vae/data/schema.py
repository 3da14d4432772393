"""What the columns are: names, the kind of table, and the scaling between the data's own units and the model's."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ppl_vae.data.tables import FRAMES, Table, like, read
from ppl_vae.errors import DataError, ModelFileError, OptionError, choose

ROWS = 8192  # rows handled at a time, so that float64 work on a large float32 table stays small


class Batch(NamedTuple):
    """What the two programs see.

    Attributes:
        x: (n, d), in encoded units.
        mask: (n, d), true where a cell was observed, or None where all were.
        c: (n, covariates), or None.
    """

    x: torch.Tensor
    mask: torch.Tensor | None = None
    c: torch.Tensor | None = None


@dataclass(frozen=True)
class Schema:
    """The columns that a model was built for. Encoded = (own - loc) / scale, column by column.

    Attributes:
        names: the d column names.
        kind: numpy | torch | pandas | polars | pyarrow, the type that decoded data come back as.
        shape: the event shape of a row of an array; its product is d.
        loc: d numbers in the data's own units, or None for zeros.
        scale: d positive numbers in the data's own units, or None for ones.
        precision: the data's own floating dtype, float32 or float64.
    """

    names: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    loc: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    precision: str = "float32"

    @classmethod
    def fit(cls, data: Any, standardize: str = "feature") -> "Schema":
        """Learn names, kind, shape and scaling from data.

        Args:
            data: n >= 2 rows of any kind that `tables.read` accepts.
            standardize: "feature" (mean 0 and standard deviation 1 in each column; a constant column keeps scale 1),
                "center" (mean 0 only) or "none".

        Returns:
            The schema; multiplying the data by a power of two multiplies loc and scale by it exactly.

        Raises:
            DataError: fewer than two rows, a NaN or infinity (names column and row), or data that cannot be read.
            OptionError: an unknown `standardize`.
        """
        standardizer = choose("standardize", standardize, STANDARDIZE)
        table = read(data)
        _check_rows(table, 2)
        _check_finite(table.values, table.names)
        loc, scale = standardizer(table)
        return cls(table.names, table.kind, table.shape, loc, scale, str(table.values.dtype))

    @classmethod
    def of(cls, data: Any) -> "Schema":
        """The columns of data, without scaling.

        Args:
            data: one row or more of any kind that `tables.read` accepts.
        """
        table = read(data)
        return cls(table.names, table.kind, table.shape, precision=str(table.values.dtype))

    @property
    def width(self) -> int:
        """The number of columns, d."""
        return len(self.names)

    @property
    def log_jacobian(self) -> float:
        """log |d encoded / d own|, summed over columns, in nats: add it to a log density of encoded rows."""
        return 0.0 if self.scale is None else -math.fsum(map(math.log, self.scale))

    def tensors(
        self,
        data: Any,
        *,
        minimum_rows: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Batch:
        """Check data against the schema and encode them.

        Columns of a frame are matched by name where the schema was made from a frame, otherwise by position.

        Args:
            data: n rows of any kind that `tables.read` accepts, in their own units.
            minimum_rows: the smallest n allowed.
            dtype: a floating dtype of torch.
            device: where the tensors go; None is the CPU.

        Returns:
            A `Batch` with x (n, d) in encoded units. With an identity scaling and the right dtype it shares memory
            with the data where torch can.

        Raises:
            DataError: too few rows, other columns than the schema's, a NaN or infinity (names column and row), or a
                value too large for `dtype` once encoded (names the column).
            OptionError: a `dtype` that is not floating.
        """
        if not dtype.is_floating_point:
            raise OptionError(f"dtype: got {dtype}, expected a floating dtype such as torch.float32")
        table = read(data)
        _check_rows(table, minimum_rows)
        values = self._match(table)
        _check_finite(values, self.names)
        x = torch.from_numpy(self._encode(values, np.float64 if dtype == torch.float64 else np.float32))
        x = x.to(device=device, dtype=dtype)
        self._check_overflow(x, values)
        return Batch(x)

    def decode(self, x: torch.Tensor | np.ndarray) -> Any:
        """Turn encoded rows into data of the schema's own type and units.

        Args:
            x: (n, d), in encoded units.

        Returns:
            The data: (n, *shape) for arrays and tensors, n rows of named columns for frames. float64 where `x` or the
            data that the schema was made from are float64, otherwise float32.

        Raises:
            DataError: another number of columns.
        """
        rows = x.numpy(force=True) if isinstance(x, torch.Tensor) else np.asarray(x)
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise DataError(f"encoded rows: got shape {rows.shape}, expected (n, {self.width})")
        double = rows.dtype == np.float64 or self.precision == "float64"
        own = rows * _vector(self.scale, 1.0) + _vector(self.loc, 0.0) if self.loc or self.scale else rows
        with np.errstate(over="ignore"):  # too large for float32 is infinite, as in any cast
            own = own.astype(np.float64 if double else np.float32)
        return like(own, self.kind, self.names, self.shape)

    def to_dict(self) -> dict[str, Any]:
        """The schema as plain lists, strings and numbers; `from_dict` gives it back exactly, through JSON too."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "Schema":
        """Rebuild a schema.

        Args:
            state: what `to_dict` returned.

        Returns:
            An equal schema.

        Raises:
            ModelFileError: missing or unknown keys.
        """
        try:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in state.items()}
            return cls(**fields)
        except (TypeError, AttributeError) as error:
            raise ModelFileError(
                f"schema: got {state!r:.200}, expected what Schema.to_dict returns ({error})"
            ) from None

    def _match(self, table: Table) -> np.ndarray:
        """The values (n, d) of a table with its columns in the schema's order."""
        if self.kind in FRAMES and table.kind in FRAMES:
            return self._match_names(table)
        if len(table.names) != self.width:
            raise DataError(f"data: got {len(table.names)} columns, expected {self.width}")
        return table.values

    def _match_names(self, table: Table) -> np.ndarray:
        if table.names == self.names:
            return table.values
        got, expected = set(table.names), set(self.names)
        missing = [name for name in self.names if name not in got]
        unknown = [name for name in table.names if name not in expected]
        if missing or unknown:
            wrong = [f"{label} {names}" for label, names in (("missing", missing), ("unknown", unknown)) if names]
            raise DataError(f"columns: {', '.join(wrong)}; got {list(table.names)}, expected {list(self.names)}")
        place = {name: j for j, name in enumerate(table.names)}
        return table.values[:, [place[name] for name in self.names]]

    def _encode(self, values: np.ndarray, dtype: type[np.floating]) -> np.ndarray:
        """Encode (n, d) in float64, as writable rows of `dtype`."""
        loc, scale = _vector(self.loc, 0.0), _vector(self.scale, 1.0)
        with np.errstate(over="ignore"):  # found and named by _check_overflow
            if self.loc is None and self.scale is None:
                return np.require(
                    values, dtype, ["C", "W", "A"]
                )  # no copy if it is so already; torch takes no read-only memory
            x = np.empty(values.shape, dtype)
            for start in range(0, len(values), ROWS):
                part = slice(start, start + ROWS)
                x[part] = (values[part] - loc) / scale
        return x

    def _check_overflow(self, x: torch.Tensor, values: np.ndarray) -> None:
        finite = torch.isfinite(x)
        if finite.all():
            return
        column = int((~finite).any(0).nonzero()[0])
        row = int((~finite[:, column]).nonzero()[0])
        raise DataError(
            f"column {self.names[column]!r}: got {values[row, column]} in row {row}, "
            f"expected a value that fits {x.dtype} once encoded"
        )


# ---- scalings: table -> (loc, scale)

Vector = tuple[float, ...] | None


def _feature(table: Table) -> tuple[Vector, Vector]:
    loc, scale = _moments(table)
    return tuple(loc.tolist()), tuple(scale.tolist())


def _center(table: Table) -> tuple[Vector, Vector]:
    return _feature(table)[0], None


def _none(table: Table) -> tuple[Vector, Vector]:
    return None, None


STANDARDIZE = {"feature": _feature, "center": _center, "none": _none}


def _moments(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (divisor n) of each column, in float64; (value, 1) of a constant column.

    Deviations are divided by a power of two near the largest before they are squared: their squares neither underflow
    nor overflow, and every step commutes exactly with multiplying the data by a power of two.
    """
    values = table.values
    low, high = values.min(0).astype(np.float64), values.max(0).astype(np.float64)
    constant = low == high  # the rounded deviation of a constant column is not always 0
    with np.errstate(over="ignore", invalid="ignore"):
        exponent = np.frexp(high - low)[1]
        total, squares = np.zeros_like(low), np.zeros_like(low)
        for part in _parts(values):
            total += part.sum(0)
        loc = np.where(constant, low, total / len(values))
        for part in _parts(values):
            squares += np.square(np.ldexp(part - loc, -exponent)).sum(0)
        scale = np.where(constant, 1.0, np.ldexp(np.sqrt(squares / len(values)), exponent))
    bad = ~(np.isfinite(loc) & np.isfinite(scale) & (scale > 0))
    if bad.any():
        j = int(bad.argmax())
        raise DataError(
            f"column {table.names[j]!r}: got values from {low[j]} to {high[j]}, expected a spread that float64 holds"
        )
    return loc, scale


# ---- helpers and checks


def _parts(values: np.ndarray) -> Iterator[np.ndarray]:
    """Rows in float64, a part at a time, in one memory layout: equal frames and arrays give equal sums."""
    return (np.ascontiguousarray(values[start : start + ROWS], np.float64) for start in range(0, len(values), ROWS))


def _vector(numbers: Vector, default: float) -> np.ndarray:
    return np.asarray(default if numbers is None else numbers, dtype=np.float64)


def _check_rows(table: Table, minimum: int) -> None:
    if len(table.values) < minimum:
        raise DataError(f"data: got {len(table.values)} row(s), expected at least {minimum}")


def _check_finite(values: np.ndarray, names: tuple[str, ...]) -> None:
    finite = np.isfinite(values)
    if finite.all():
        return
    column = int(finite.all(0).argmin())
    row = int(finite[:, column].argmin())
    raise DataError(
        f"column {names[column]!r}: got {values[row, column]} in row {row} "
        f"({int((~finite).sum())} such cell(s) in all), expected finite numbers"
    )
