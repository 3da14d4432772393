"""Cells put into a table: everything else stays as it was, to the bit."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppl_vae.data.tables import held_by, read, read_csv

Cells = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Of each column to be filled: rows (m,), and own values (m,)."""
Placed = Mapping[int, tuple[np.ndarray, np.ndarray]]
"""The same by the place of the column in its table."""


def filled(data: Any, cells: Cells, names: Sequence[str] | None = None) -> Any:
    """A copy of data with some cells filled.

    Args:
        data: of any kind that `tables.read` accepts; a file comes back as a data frame or array, a `Dataset` as its x.
        cells: {column: (rows (m,), values (m,))}.
        names: what the columns of the data are called here; None: by their own names.

    Returns:
        The data, of its own type, each column of its own: one of integers gets the nearest ones, one of categories
        those that it lacks.

    Example:
        >>> x = np.array([[1.0, np.nan], [3.0, 4.0]])
        >>> filled(x, {"x1": (np.array([0]), np.array([2.5]))}).tolist()
        [[1.0, 2.5], [3.0, 4.0]]
    """
    if isinstance(data, str | os.PathLike):
        data = _opened(Path(data))
    table = read(data)
    place = {name: j for j, name in enumerate(table.names if names is None else names)}
    data = data if (x := held_by(data, "x")) is None else x
    return FILLERS[table.kind](data, {place[name]: cell for name, cell in cells.items()})


def _opened(path: Path) -> Any:
    if path.name.lower().endswith((".csv", ".csv.gz")):
        return read_csv(path)
    if path.suffix.lower() == ".parquet":
        import pandas as pd

        return pd.read_parquet(path)
    table = read(path)
    return table.values.reshape(len(table.values), *table.shape)


def _numpy(data: Any, cells: Placed) -> np.ndarray:
    rows = np.ma.filled(data.astype(float), np.nan) if isinstance(data, np.ma.MaskedArray) else np.array(data)
    flat = rows.reshape(len(rows), -1)
    for j, (where, values) in cells.items():
        flat[where, j] = values
    return flat.reshape(rows.shape)


def _torch(data: torch.Tensor, cells: Placed) -> torch.Tensor:
    rows = data.detach() if data.layout == torch.strided else data.detach().to_dense()
    rows = rows.clone(memory_format=torch.contiguous_format)
    flat = rows.view(len(rows), -1)
    for j, (where, values) in cells.items():
        flat[torch.from_numpy(where).to(rows.device), j] = torch.from_numpy(values.astype(float)).to(rows)
    return rows


def _pandas(data: Any, cells: Placed) -> Any:
    import pandas as pd

    frame = data.copy()
    for j, (where, values) in cells.items():
        column = frame.iloc[:, j]
        if isinstance(column.dtype, pd.CategoricalDtype):
            column = column.cat.add_categories(_lacking(values, column.cat.categories))
        elif column.dtype.kind in "iu":
            values = _whole(values)
        column.iloc[where] = pd.Series(values.tolist(), column.index[where]).astype(column.dtype).array
        frame.isetitem(j, column)
    return frame


def _whole(values: np.ndarray) -> np.ndarray:
    """The nearest integers."""
    return np.rint(values.astype(float)).astype(int)


def _lacking(values: np.ndarray, known: Any) -> list[Any]:
    """The values that are not among the known ones, once each."""
    own = set(known)
    return [value for value in dict.fromkeys(values.tolist()) if value not in own]


def _pyarrow(data: Any, cells: Placed) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    for j, (where, values) in cells.items():
        column = data.column(j).combine_chunks()
        own, given, hole = column.type, values.tolist(), np.zeros(len(column), dtype=bool)
        hole[where] = True
        order = np.argsort(where)  # replacements are taken from row to row
        if pa.types.is_dictionary(own):
            levels = column.dictionary.to_pylist()
            levels += _lacking(values, levels)
            given, column = [levels.index(value) for value in given], column.indices
        elif pa.types.is_integer(own):
            given = _whole(values).tolist()
        new = pa.array([given[k] for k in order]).cast(column.type)
        column = pc.replace_with_mask(column, pa.array(hole), new)
        if pa.types.is_dictionary(own):
            column = pa.DictionaryArray.from_arrays(column, pa.array(levels, own.value_type), ordered=own.ordered)
        data = data.set_column(j, data.field(j).with_type(column.type), column)
    return data


def _polars(data: Any, cells: Placed) -> Any:
    import polars as pl

    columns = data.get_columns()
    for j, (where, values) in cells.items():
        series, order = columns[j], np.argsort(where)
        if series.dtype.is_integer():
            values = _whole(values)
        elif isinstance(series.dtype, pl.Enum) and (new := _lacking(values, series.dtype.categories)):
            series = series.cast(pl.Enum([*series.dtype.categories, *new]))
        given = pl.Series(values[order].tolist(), strict=False).cast(series.dtype)
        columns[j] = series.scatter(where[order], given)
    return pl.DataFrame(columns)


FILLERS: dict[str, Callable[[Any, Placed], Any]] = {
    "numpy": _numpy,
    "torch": _torch,
    "pandas": _pandas,
    "polars": _polars,
    "pyarrow": _pyarrow,
}
