"""What the columns are: names, types, levels, and the scaling between the data's own units and the model's."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from ppl_vae.data.columns import LIKELIHOOD_TYPES, TYPES, check, find_outside, is_whole, wrap
from ppl_vae.data.tables import FRAMES, Column, Table, check_numbers, frame_like, like, read
from ppl_vae.errors import DataError, ModelFileError, OptionError, choose

ROWS = 8192  # rows handled at a time, so that float64 work on a large float32 table stays small
MANY_LEVELS = 1000  # text with more levels than this names rows, it does not describe them
FEW_LEVELS = 10  # text with no more levels than this describes rows, however few these are

Vector = tuple[float, ...] | None


class Batch(NamedTuple):
    """What the two programs see.

    Attributes:
        x: (n, d), in encoded units; 0 where a cell is missing.
        mask: (n, d), true where a cell was observed, or None where the schema declares no nullable column.
        c: (n, q) encoded covariates, or None.
        group: (n,) long, the number of each row's group, -1 where it is unseen or missing; or None.
        label: (n,) long, the number of each row's label, -1 where it is unknown; or None.
    """

    x: torch.Tensor
    mask: torch.Tensor | None = None
    c: torch.Tensor | None = None
    group: torch.Tensor | None = None
    label: torch.Tensor | None = None

    def rows(self, numbers: Any) -> "Batch":
        """Take some of the rows.

        Args:
            numbers: of rows, a slice, or a mask (n,).

        Returns: their `Batch`.
        """
        parts: list[Any] = [None if part is None else part[numbers] for part in self]
        return Batch(*parts)

    def arguments(self) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        """Lay the columns out as the two programs take them.

        Returns: (x,) or (x, mask), and by keyword those of c, group and label there are.
        """
        given = {name: getattr(self, name) for name in ("c", "group", "label")}
        args = (self.x,) if self.mask is None else (self.x, self.mask)
        return args, {name: value for name, value in given.items() if value is not None}


class Levels(NamedTuple):
    """A column beside the data that tells groups or labels: its name, and the levels that 0, 1, ... stand for."""

    name: str
    levels: tuple[Any, ...]


@dataclass(frozen=True)
class Schema:
    """The columns that a model was built for. Encoded = (own - loc) / scale, column by column.

    The own values of a column with levels are its codes 0, 1, ...; those of an angle are wrapped to [-pi, pi).

    Attributes:
        names: the d column names.
        kind: numpy | torch | pandas | polars | pyarrow, the type that decoded data come back as.
        shape: the event shape of a row of an array; its product is d.
        loc: d numbers in the data's own units, or None for zeros.
        scale: d positive numbers in the data's own units, or None for ones.
        precision: the data's own floating dtype, float32 or float64.
        types: a name in `columns.TYPES` for each column, or None where all are "real".
        likelihoods: the name of each column's likelihood, or None where none was asked for.
        levels: each column's levels, None for a column of numbers; or None where no column has any.
        log_loc, log_scale: mean and standard deviation of log(1 + x) of counts and of the log of encoded positive
            columns, to show to nets; 0 and 1 elsewhere; or None where all are.
        nullable: names of the columns that may miss values.
        dtypes: each column's own type, a `tables.Column.kind`, or None where all are float; for `decode`.
        covariates: the schema of the columns that are given, not modelled; or None.
        group, label: the columns that tell each row's group and label; or None.
    """

    names: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    loc: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    precision: str = "float32"
    types: tuple[str, ...] | None = None
    likelihoods: tuple[str, ...] | None = None
    levels: tuple[tuple[Any, ...] | None, ...] | None = None
    log_loc: tuple[float, ...] | None = None
    log_scale: tuple[float, ...] | None = None
    nullable: tuple[str, ...] = ()
    dtypes: tuple[str, ...] | None = None
    covariates: "Schema | None" = None
    group: Levels | None = None
    label: Levels | None = None

    @classmethod
    def fit(
        cls,
        data: Any,
        standardize: str = "feature",
        *,
        likelihood: str | Mapping[str, str] | None = None,
        nullable: bool | Iterable[str] = (),
        covariates: Iterable[str] = (),
        group: str | None = None,
        label: str | None = None,
        likelihood_types: Mapping[str, str] = LIKELIHOOD_TYPES,
    ) -> "Schema":
        """Learn names, kind, shape, types and scaling from data.

        Args:
            data: n >= 2 rows of any kind that `tables.read` accepts.
            standardize: "feature" (mean 0 and standard deviation 1 in each real column; a constant column keeps scale
                1), "center" (mean 0 only) or "none". Columns of other types have a scaling of their own.
            likelihood: one name for all columns; {column: name}, which leaves the others to `infer`; or None: all
                columns are real numbers. A likelihood tells the type of its columns.
            nullable: names of the columns that may miss values (NaN), or True: those that do here.
            covariates: names of the columns that are given, not modelled. Their types are inferred, real ones
                standardized; a mapping names likelihoods, hence types, of covariates too.
            group: name of the column that tells each row's group.
            label: name of the column that tells each row's label, missing where it is unknown.
            likelihood_types: the type of column for each known likelihood.

        Returns:
            The schema; multiplying the data by a power of two multiplies loc and scale of real columns by it exactly.

        Raises:
            DataError: fewer than two rows, a value that its column's type does not allow, a NaN or infinity (names
                column and row), a column with no value at all, or data that cannot be read.
            OptionError: an unknown `standardize`, likelihood or column.
        """
        choose("standardize", standardize, STANDARDIZE)
        table = read(data)
        _check_rows(table, 2)
        given = _known("covariates", covariates, table.names)
        beside = (*given, *_known("group", group, table.names), *_known("label", label, table.names))
        modelled = [name for name in table.names if name not in beside]
        if len(set(beside)) < len(beside) or not modelled:
            raise OptionError(
                f"covariates, group and label: got the columns {list(beside)} of {list(table.names)}, "
                "expected distinct ones that leave some to model"
            )
        wanted: dict[str, str] | None = None
        if likelihood is not None:
            wanted = dict(likelihood) if isinstance(likelihood, Mapping) else dict.fromkeys(modelled, likelihood)
            _known("likelihood", wanted, (*modelled, *given))
            for name in wanted.values():
                choose("likelihood", name, dict(likelihood_types))
        rows = table if not beside else _pick(table, modelled)
        schema = _fit(rows, standardize, wanted, nullable, likelihood_types)
        return replace(
            schema,
            covariates=_fit(_pick(table, given), "feature", wanted or {}, (), likelihood_types) if given else None,
            group=None if group is None else _levels(table, group),
            label=None if label is None else _levels(table, label),
        )

    @classmethod
    def infer(
        cls,
        frame: Any,
        likelihoods: Mapping[str, str] | None = None,
        *,
        covariates: Iterable[str] = (),
        group: str | None = None,
        label: str | None = None,
        standardize: str = "feature",
        likelihood_types: Mapping[str, str] = LIKELIHOOD_TYPES,
    ) -> "Schema":
        """Choose a likelihood for each column by what it holds; columns with missing values become nullable.

        Truth values, the numbers {0, 1} and text of two levels: bernoulli. Other text and categories: categorical;
        ordered categories: ordinal. Whole numbers of at least 0: negative_binomial if their variance is above their
        mean, else poisson. Numbers above 0: log_normal. Other numbers, and a number that never changes: normal.

        Args:
            frame: n >= 2 rows of any kind that `tables.read` accepts.
            likelihoods: {column: name} instead of that choice; an angle is by request only, as von_mises.
            covariates, group, label, standardize, likelihood_types: as in `fit`.

        Returns:
            The schema; print it to see the choices.

        Raises:
            DataError: as `fit`; and text of more than 1000 levels, or more than 10 and above half as many as rows.
            OptionError: as `fit`.

        Example:
            >>> import pandas as pd
            >>> frame = pd.DataFrame({"age": [39, 50, 31], "job": ["clerk", "smith", None], "wage": [2.5, 3.1, 0.4]})
            >>> print(Schema.infer(frame, {"age": "normal"}))
            column  type      likelihood  levels or scaling           nullable
            age     real      normal      (own - 40) / 7.789          no
            job     boolean   bernoulli   'clerk', 'smith'            yes
            wage    positive  log_normal  own / 1.458                 no
        """
        return cls.fit(
            frame,
            standardize,
            likelihood=dict(likelihoods or {}),
            nullable=True,
            covariates=covariates,
            group=group,
            label=label,
            likelihood_types=likelihood_types,
        )

    @classmethod
    def of(cls, data: Any) -> "Schema":
        """The columns of data, which have to be numbers, without scaling.

        Args:
            data: one row or more of any kind that `tables.read` accepts.

        Returns: a `Schema` in which encoded and own units are the same.
        """
        table = read(data)
        check_numbers(table)
        return cls(table.names, table.kind, table.shape, precision=str(table.values.dtype))

    @property
    def width(self) -> int:
        """The number of columns, d."""
        return len(self.names)

    @property
    def column_types(self) -> tuple[str, ...]:
        """The type of each column (d,), names in `columns.TYPES`."""
        return self.types or ("real",) * self.width

    @property
    def log_jacobians(self) -> tuple[float, ...]:
        """log |d encoded / d own| of each column (d,), in nats; 0 for columns whose likelihood is a mass."""
        scales = self.scale or (1.0,) * self.width
        return tuple(-math.log(s) if TYPES[t].continuous else 0.0 for s, t in zip(scales, self.column_types))

    @property
    def log_jacobian(self) -> float:
        """log |d encoded / d own|, summed over columns, in nats: add it to a log density of encoded rows."""
        return math.fsum(self.log_jacobians)

    def take(self, indices: Sequence[int]) -> "Schema":
        """The schema of some columns, without covariates, group and label.

        Args:
            indices: m column numbers, in the order wanted.

        Returns:
            The schema, of width m and shape (m,).
        """
        parts = {name: getattr(self, name) for name in PER_COLUMN}
        taken: dict[str, Any] = {name: part and tuple(part[j] for j in indices) for name, part in parts.items()}
        names = tuple(self.names[j] for j in indices)
        nullable = tuple(name for name in names if name in self.nullable)
        taken |= {"names": names, "shape": (len(names),), "nullable": nullable}
        return replace(self, covariates=None, group=None, label=None, **taken)

    def __str__(self) -> str:
        """A table of the columns, at most 50 of them."""
        head = ("column", "type", "likelihood", "levels or scaling", "nullable")
        lines = [head, *map(self._line, range(min(self.width, 50)))]
        widths = [max(map(len, cells)) for cells in zip(*lines)]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
        if self.width > 50:
            text.append(f"... {self.width - 50} more columns")
        if self.covariates is not None:
            table = str(self.covariates).splitlines()[1:]
            text += ["covariates", *(f"  {line}" for line in table)]
        for what, column in (("group", self.group), ("label", self.label)):
            if column is not None:
                text.append(f"{what}  {column.name}: {_brief(column.levels)}")
        return "\n".join(text)

    def _line(self, j: int) -> tuple[str, ...]:
        loc, scale = ((self.loc or {j: 0.0})[j], (self.scale or {j: 1.0})[j])
        levels = self.levels and self.levels[j]
        own = f"(own - {loc:.4g})" if loc else "own"
        scaling = own if scale == 1 else f"{own} / {scale:.4g}"
        return (
            self.names[j],
            self.column_types[j],
            self.likelihoods[j] if self.likelihoods else "-",
            scaling if levels is None else _brief(levels, 3),
            "yes" if self.names[j] in self.nullable else "no",
        )

    def tensors(
        self,
        data: Any,
        *,
        minimum_rows: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Batch:
        """Check data against the schema and encode them.

        Columns of a frame are matched by name where the schema was made from a frame or has covariates, a group or a
        label, otherwise by position. The columns of group and label may be absent.

        Args:
            data: n rows of any kind that `tables.read` accepts, in their own units.
            minimum_rows: the smallest n allowed.
            dtype: a floating dtype of torch.
            device: where the tensors go; None is the CPU.

        Returns:
            A `Batch` with x (n, d) in encoded units. With an identity scaling and the right dtype it shares memory
            with the data where torch can. A group or label that is missing, and a group that is unseen, is -1.

        Raises:
            DataError: too few rows, other columns than the schema's, a column of another type, an infinity, a NaN in a
                column that is not nullable or in a covariate, a value that its type does not allow, an unseen level
                (each names column and row), or a value too large or small for `dtype` once encoded.
            OptionError: a `dtype` that is not floating.
        """
        if not dtype.is_floating_point:
            raise OptionError(f"dtype: got {dtype}, expected a floating dtype such as torch.float32")
        table = self.named(read(data))
        _check_rows(table, minimum_rows)
        x, mask = self._encoded(self.match(table), dtype, device)
        given = self.covariates
        c = None if given is None else given._encoded(_pick(table, given.names), dtype, device)[0]
        group, label = _numbers(table, self.group, False, device), _numbers(table, self.label, True, device)
        return Batch(x, mask, c, group, label)

    def decode(self, x: torch.Tensor | np.ndarray) -> Any:
        """Turn encoded rows into data of the schema's own type and units.

        Args:
            x: (n, d), in encoded units.

        Returns:
            The data: (n, *shape) for arrays and tensors, n rows of named columns for frames, without covariates, group
            and label. float64 where `x` or the data that the schema was made from are float64, otherwise float32.
            Columns with levels are given by the nearest level, and NaN as a missing value; counts, truth values and
            pixels that were integers are again, where all of a column are whole and none is missing.

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
        if self.kind in FRAMES and self.types is not None:
            return frame_like({name: self._column(j, own[:, j]) for j, name in enumerate(self.names)}, self.kind)
        for j, levels in enumerate(self.levels or ()):
            own[:, j] = own[:, j] if levels is None else self._column(j, own[:, j])
        return like(own, self.kind, self.names, self.shape)

    def to_dict(self) -> dict[str, Any]:
        """The schema as plain lists, strings and numbers.

        Returns: what `from_dict` gives back exactly, through JSON too.
        """
        state = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        return state | {"covariates": self.covariates and self.covariates.to_dict()}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "Schema":
        """Rebuild a schema.

        Args:
            state: what `to_dict` returned.

        Returns:
            An equal schema.

        Raises:
            ModelFileError: missing or unknown keys, or parts that do not fit each other.
        """
        try:
            parts: dict[str, Any] = {key: _frozen(value) for key, value in state.items() if key != "covariates"}
            given = state.get("covariates")
            parts |= {key: Levels(*parts[key]) for key in ("group", "label") if parts.get(key) is not None}
            schema = cls(**parts, covariates=None if given is None else cls.from_dict(given))
            per_column = [getattr(schema, name) for name in PER_COLUMN]
            if any(part is not None and len(part) != schema.width for part in per_column):
                raise TypeError("parts of other lengths than names")
            if not {*schema.column_types} <= {*TYPES} or not {*schema.nullable} <= {*schema.names}:
                raise TypeError("unknown types or columns")
            return schema
        except (TypeError, AttributeError) as error:
            raise ModelFileError(
                f"schema: got {state!r:.200}, expected what Schema.to_dict returns ({error})"
            ) from None

    @property
    def beside(self) -> tuple[str, ...]:
        """Names of the columns that may be there and are not modelled."""
        given = () if self.covariates is None else self.covariates.names
        return (*given, *(column.name for column in (self.group, self.label) if column is not None))

    def named(self, table: Table) -> Table:
        """Name the columns by the schema, where they are matched by position.

        Args:
            table: n rows.

        Returns: the same table with names.

        Raises: DataError for another number of columns.
        """
        frames = self.kind in FRAMES and table.kind in FRAMES
        bare = table.kind not in FRAMES and self.covariates is None and len(table.names) == self.width
        if frames or (self.beside and not bare):
            return table
        if len(table.names) != self.width:
            raise DataError(f"data: got {len(table.names)} columns, expected {self.width}")
        return table._replace(names=self.names)

    def match(self, table: Table) -> Table:
        """Take the schema's own columns, in its order.

        Args:
            table: n rows of named columns.

        Returns: the table of these columns.

        Raises: DataError for missing or unknown ones.
        """
        if table.names == self.names and self.covariates is None:
            return table
        needed = (*self.names, *(() if self.covariates is None else self.covariates.names))
        got, expected = set(table.names), {*needed, *self.beside}
        missing = [name for name in needed if name not in got]
        unknown = [name for name in table.names if name not in expected]
        if missing or unknown:
            wrong = [
                f"{label} [{_brief(names)}]" for label, names in (("missing", missing), ("unknown", unknown)) if names
            ]
            raise DataError(f"columns: {', '.join(wrong)}; got {len(table.names)}, expected {len(needed)}")
        return _pick(table, self.names)

    def _encoded(
        self, table: Table, dtype: torch.dtype, device: torch.device | str | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x (n, d), 0 in holes, and the mask (n, d) or None, of a table of just the schema's columns."""
        own = self._own(table)
        x = self._encode(own, np.float64 if dtype == torch.float64 else np.float32)
        mask = ~np.isnan(own) if self.nullable else None
        if mask is not None:
            x = np.where(mask, x, x.dtype.type(0))
        encoded = torch.from_numpy(x).to(device=device, dtype=dtype)
        self._check_overflow(encoded, own)
        return encoded, None if mask is None else torch.from_numpy(mask).to(device)

    def _own(self, table: Table, otherwise: str = "") -> np.ndarray:
        """Own values (n, d), known to be those that their types allow: codes of levels, wrapped angles, NaN in holes.

        They are the table's own memory where nothing has to be changed. `otherwise` says what to do with text.
        """
        numbers = [j for j in range(self.width) if self.levels is None or self.levels[j] is None]
        check_numbers(table, numbers, self.nullable, otherwise)
        _check_finite(table, self.nullable)
        values = table.values
        if self.types is None:
            return values
        if len(numbers) < self.width or "angle" in self.types:
            values = values.copy()
        for j, levels in enumerate(self.levels or ()):
            if levels is not None:
                values[:, j] = _recode(table, j, levels)
        for name, places in _by_type(self.types):
            if name == "angle":
                values[:, places] = wrap(values[:, places])
            elif not TYPES[name].levels and TYPES[name].contains is not np.isfinite:  # those are known by now
                check(name, values[:, places], tuple(np.asarray(self.names)[places].tolist()))
        return values

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
        fits = torch.isfinite(x)
        if "positive" in self.column_types:  # those must not become 0
            positive = np.asarray(self.column_types) == "positive"
            fits &= (x != 0) | torch.from_numpy(np.isnan(values) | ~positive).to(x.device)
        if fits.all():
            return
        column = int((~fits).any(0).nonzero()[0])
        row = int((~fits[:, column]).nonzero()[0])
        raise DataError(
            f"column {self.names[column]!r}: got {values[row, column]} in row {row}, "
            f"expected a value that fits {x.dtype} once encoded"
        )

    def _column(self, j: int, values: np.ndarray) -> Any:
        """Column j (n,) in own values and own type, from codes or numbers."""
        import pandas as pd

        missing = np.isnan(values)
        kind = self.dtypes[j] if self.dtypes else "float"
        levels = self.levels[j] if self.levels else None
        if levels is None:
            mass = not TYPES[self.column_types[j]].continuous
            whole = kind == "integer" and mass and (is_whole(values) & (np.abs(values) < 2**53)).all()
            return values.astype(np.int64) if whole else values
        codes = np.where(missing, -1, np.clip(np.rint(values), 0, len(levels) - 1)).astype(np.int64)
        if kind in ("categorical", "ordered"):
            return pd.Categorical.from_codes(codes, pd.Index(list(levels)), ordered=kind == "ordered")
        return pd.Series(list(levels)).reindex(codes).array


OF_TEXT = '; likelihood="infer" takes text as levels, and `missing` says which texts of a CSV file are missing cells'
"""What to do with text where a schema is made."""
PER_COLUMN = ("loc", "scale", "types", "likelihoods", "levels", "log_loc", "log_scale", "dtypes")


# ---- what fit decides


def _fit(
    table: Table,
    standardize: str,
    wanted: Mapping[str, str] | None,
    nullable: bool | Iterable[str],
    likelihood_types: Mapping[str, str],
) -> Schema:
    """The schema of a table of just the modelled columns, or of just the covariates.

    Args:
        wanted: the likelihoods asked for, by column; None: all columns are real.
    """
    if nullable is True:
        nullable = np.asarray(table.names)[np.isnan(table.values).any(0)].tolist()
    names = _known("nullable", nullable or (), table.names)
    schema = Schema(table.names, table.kind, table.shape, precision=str(table.values.dtype), nullable=names)
    if names:
        _check_some_value(table)
    if wanted is None:
        loc, scale = STANDARDIZE[standardize](table._replace(values=schema._own(table, OF_TEXT)))
        return replace(schema, loc=loc, scale=scale)
    _check_finite(table, schema.nullable)
    likelihoods = tuple(wanted[name] if name in wanted else _inferred(table, j) for j, name in enumerate(table.names))
    types = tuple(likelihood_types[name] for name in likelihoods)
    kinds = tuple(column.kind for column in table.columns)
    levels = tuple(_levels_for(table, j, type_) for j, type_ in enumerate(types))
    schema = replace(
        schema,
        types=None if set(types) == {"real"} else types,
        likelihoods=likelihoods,
        levels=levels if any(of is not None for of in levels) else None,
        dtypes=kinds if table.kind in FRAMES and set(kinds) != {"float"} else None,
    )
    return replace(schema, **_scaling(table._replace(values=schema._own(table, OF_TEXT)), types, standardize))


def _scaling(table: Table, types: tuple[str, ...], standardize: str) -> dict[str, Any]:
    """loc, scale, log_loc and log_scale of a table of own values; None where all are 0 or all are 1."""
    if set(types) == {"real"}:
        return dict(zip(("loc", "scale"), STANDARDIZE[standardize](table)))
    d = len(types)
    found = {"loc": np.zeros(d), "scale": np.ones(d), "log_loc": np.zeros(d), "log_scale": np.ones(d)}
    for name, places in _by_type(types):
        values = table.values[:, places]
        found["loc"][places], found["scale"][places] = TYPES[name].affine(values)
        found["log_loc"][places], found["log_scale"][places] = TYPES[name].logs(values)
        if name == "real":
            loc, scale = STANDARDIZE[standardize](table.take(np.arange(d)[places].tolist()))
            found["loc"][places], found["scale"][places] = _vector(loc, 0.0), _vector(scale, 1.0)
    plain = {"loc": 0.0, "scale": 1.0, "log_loc": 0.0, "log_scale": 1.0}
    return {key: None if (of == plain[key]).all() else tuple(of.tolist()) for key, of in found.items()}


def _inferred(table: Table, j: int) -> str:
    """The likelihood of column j, by what it holds."""
    column, values = table.columns[j], table.values[:, j]
    values = values[~np.isnan(values)]
    low, high = values.min(), values.max()
    if column.kind == "boolean":
        return "bernoulli"
    if column.levels is not None:
        if column.kind == "ordered" and len(column.levels) > 1:
            return "ordinal"
        _check_describes(table.names[j], len(np.unique(values)), len(table.values))
        return "bernoulli" if len(column.levels) == 2 else "categorical"
    whole = is_whole(values).all()
    if low == 0 and high == 1 and whole:
        return "bernoulli"
    type_ = "real" if low == high else "count" if whole and low >= 0 else "positive" if low > 0 else "real"
    return TYPES[type_].likelihood(values)


def _levels_for(table: Table, j: int, type_: str) -> tuple[Any, ...] | None:
    """The levels of column j once it is of this type; None where its numbers stand for themselves.

    Raises:
        DataError: what the column holds has no such levels.
    """
    name, column, values = table.names[j], table.columns[j], table.values[:, j]
    if type_ != "boolean" and not TYPES[type_].levels:
        return None
    if type_ == "boolean" and column.levels is None:
        if table.kind not in FRAMES:
            return None
        if column.kind != "boolean" and not find_outside("unit", values[:, None]):  # grey values may be binarized
            return None
    if type_ == "ordinal" and column.kind == "text":
        raise DataError(
            f"column {name!r}: got text without an order ({_brief(column.levels or ())}), "
            "expected an ordered category or numbers for an ordinal column"
        )
    levels = _distinct(column, values)
    if type_ == "boolean" and len(levels) > 2:
        raise DataError(f"column {name!r}: got the levels {_brief(levels)}, expected two for a boolean column")
    return levels


def _levels(table: Table, name: str) -> Levels:
    """The levels of a column that tells groups or labels."""
    j = table.names.index(name)
    if np.isnan(table.values[:, j]).all():
        raise DataError(f"column {name!r}: got no value in any row, expected some levels")
    return Levels(name, _distinct(table.columns[j], table.values[:, j]))


def _distinct(column: Column, values: np.ndarray) -> tuple[Any, ...]:
    """The levels of a column: its own, or its distinct numbers, sorted."""
    if column.levels is not None:
        return column.levels
    if column.kind == "boolean":
        return False, True
    found = np.unique(values[~np.isnan(values)])
    return tuple((found.astype(np.int64) if is_whole(found).all() else found).tolist())


def _by_type(types: tuple[str, ...]) -> list[tuple[str, Any]]:
    """Each type with the places of its columns: all of them as a slice, which copies nothing, or a list."""
    if len(set(types)) == 1:
        return [(types[0], slice(None))]
    return [(name, [j for j, of in enumerate(types) if of == name]) for name in dict.fromkeys(types)]


# ---- levels -> codes


def _place(column: Column, values: np.ndarray, levels: tuple[Any, ...]) -> np.ndarray:
    """The place (n,) of each value among the levels; NaN where it is missing, -1 where it is none of them."""
    if column.levels == levels:
        return values
    observed = ~np.isnan(values)
    if column.levels is None:
        numbers, codes = np.unique(values[observed], return_inverse=True)
        own = tuple(numbers.tolist())
    else:
        own, codes = column.levels, values[observed].astype(np.int64)
    known = {level: place for place, level in enumerate(levels)}
    places = np.full(len(values), np.nan)
    places[observed] = np.asarray([known.get(level, -1) for level in own], np.float64)[codes]
    return places


def _recode(table: Table, j: int, levels: tuple[Any, ...]) -> np.ndarray:
    """The codes (n,) of column j, NaN where missing; a value that is no level is refused."""
    column, values = table.columns[j], table.values[:, j]
    places = _place(column, values, levels)
    if (places < 0).any():
        row = int((places < 0).argmax())
        number = {"boolean": bool, "integer": int}.get(column.kind, float)
        got = number(values[row]) if column.levels is None else column.levels[int(values[row])]
        raise DataError(
            f"column {table.names[j]!r}: got {got!r:.200} in row {row} (dtype {column.dtype}), "
            f"expected one of {_brief(levels)}"
        )
    return places


def _numbers(
    table: Table, column: Levels | None, strict: bool, device: torch.device | str | None
) -> torch.Tensor | None:
    """The group or label (n,) of each row, -1 where it is missing or, unless `strict`, unseen; None if undeclared."""
    if column is None:
        return None
    if column.name not in table.names:
        return torch.full((len(table.values),), -1, device=device)
    j = table.names.index(column.name)
    find = _recode if strict else lambda of, j, levels: _place(of.columns[j], of.values[:, j], levels)
    return torch.from_numpy(np.nan_to_num(find(table, j, column.levels), nan=-1).astype(np.int64)).to(device)


# ---- scalings: table -> (loc, scale)


def _feature(table: Table) -> tuple[Vector, Vector]:
    loc, scale = _moments(table)
    return tuple(loc.tolist()), tuple(scale.tolist())


def _center(table: Table) -> tuple[Vector, Vector]:
    return _feature(table)[0], None


def _none(table: Table) -> tuple[Vector, Vector]:
    return None, None


STANDARDIZE = {"feature": _feature, "center": _center, "none": _none}


def _moments(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (divisor n) of each column's n values, in float64; (value, 1) of a constant column.

    Deviations are divided by a power of two near the largest before they are squared: their squares neither underflow
    nor overflow, and every step commutes exactly with multiplying the data by a power of two.
    """
    values = table.values
    low, high = (best.reduce(values).astype(np.float64) for best in (np.fmin, np.fmax))  # both pass over NaN
    constant = low == high  # the rounded deviation of a constant column is not always 0
    n = len(values) - np.isnan(values).sum(0)
    add = np.sum if (n == len(values)).all() else np.nansum  # which copies
    with np.errstate(over="ignore", invalid="ignore"):
        exponent = np.frexp(high - low)[1]
        total, squares = np.zeros_like(low), np.zeros_like(low)
        for part in _parts(values):
            total += add(part, 0)
        loc = np.where(constant, low, total / n)
        for part in _parts(values):
            squares += add(np.square(np.ldexp(part - loc, -exponent)), 0)
        scale = np.where(constant, 1.0, np.ldexp(np.sqrt(squares / n), exponent))
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


def _check_some_value(table: Table) -> None:
    empty = np.isnan(table.values).all(0)
    if empty.any():
        name = table.names[int(empty.argmax())]
        raise DataError(f"column {name!r}: got no value in any row, expected at least one: drop the column")


def _check_describes(name: str, levels: int, rows: int) -> None:
    if levels > MANY_LEVELS or (levels > FEW_LEVELS and levels > rows / 2):
        raise DataError(
            f"column {name!r}: got {levels} distinct texts in {rows} rows, expected few: "
            "drop the column if it names rows, or ask for its likelihood"
        )


def _check_finite(table: Table, nullable: tuple[str, ...] = ()) -> None:
    """Refuse infinities, and NaN but in nullable columns."""
    values = table.values
    good = np.isfinite(values)
    if good.all():
        return
    if nullable:
        good |= np.isnan(values) & np.isin(table.names, nullable)
        if good.all():
            return
    column = int(good.all(0).argmin())
    row = int(good[:, column].argmin())
    hole = np.isnan(values[row, column])
    text = table.columns[column].levels is not None
    raise DataError(
        f"column {table.names[column]!r}: got {None if hole and text else values[row, column]} in row {row} "
        f"({int((~good).sum())} such cell(s) in all), expected {'text' if text else 'finite numbers'}"
        + ("; only columns declared nullable may miss values" if hole else "")
    )


def _known(what: str, names: Any, columns: Sequence[str]) -> tuple[str, ...]:
    """Names of columns, as a tuple; one name and None will do."""
    names = () if names is None else (names,) if isinstance(names, str) else tuple(names)
    if unknown := [name for name in names if name not in columns]:
        raise OptionError(f"{what}: got the column {unknown[0]!r}, expected some of {_brief(tuple(columns))}")
    return names


def _pick(table: Table, names: Sequence[str]) -> Table:
    """The table of these columns, in this order."""
    place = {name: j for j, name in enumerate(table.names)}
    return table.take([place[name] for name in names])


def _brief(levels: Sequence[Any], most: int = 6) -> str:
    """'a', 'b', 'c', ... (12 in all)"""
    shown = ", ".join(map(repr, levels[:most]))
    return shown if len(levels) <= most else f"{shown}, ... ({len(levels)} in all)"


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(part) for part in value) if isinstance(value, list) else value
