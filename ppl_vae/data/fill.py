"""Cells put into a table: everything else stays as it was, to the bit."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppl_vae.data.tables import read, read_csv

Cells = Mapping[str, tuple[np.ndarray, np.ndarray]]


def filled(data: Any, cells: Cells) -> Any:
    """A copy of data with some cells filled.

    Args:
        data: of any kind that `tables.read` accepts; a file comes back as a data frame or array, a `Dataset` as its x.
        cells: {column: (rows (m,), values (m,))}.

    Returns: the data, of its own type; a column of whole numbers becomes one of floats where a value is not whole.

    Example:
        >>> x = np.array([[1.0, np.nan], [3.0, 4.0]])
        >>> filled(x, {"x1": (np.array([0]), np.array([2.5]))}).tolist()
        [[1.0, 2.5], [3.0, 4.0]]
    """
    if isinstance(data, str | os.PathLike):
        data = _opened(Path(data))
    elif hasattr(data, "x") and not hasattr(data, "columns"):
        data = data.x
    kind = read(data).kind
    return FILLERS[kind](data, cells)


def _opened(path: Path) -> Any:
    if path.name.endswith((".csv", ".csv.gz")):
        return read_csv(path)
    if path.suffix == ".parquet":
        import pandas as pd

        return pd.read_parquet(path)
    table = read(path)
    return table.values.reshape(len(table.values), *table.shape)


def _numpy(data: Any, cells: Cells) -> np.ndarray:
    rows = np.ma.filled(data.astype(float), np.nan) if isinstance(data, np.ma.MaskedArray) else np.array(data)
    flat = rows.reshape(len(rows), -1)
    for name, (where, values) in cells.items():
        flat[where, int(name.removeprefix("x"))] = values
    return flat.reshape(rows.shape)


def _torch(data: torch.Tensor, cells: Cells) -> torch.Tensor:
    return torch.from_numpy(_numpy(data.numpy(force=True), cells))


def _pandas(data: Any, cells: Cells) -> Any:
    frame = data.copy()
    for name, (where, values) in cells.items():
        column = frame[name].astype(_roomy(frame[name].dtype, values))
        column.iloc[where] = values.astype(float) if column.dtype.kind == "f" else values
        frame[name] = column
    return frame


def _roomy(dtype: Any, values: np.ndarray) -> Any:
    """A type that holds the column and the values: whole numbers make room for others."""
    whole = getattr(dtype, "kind", "O") in "iu"
    return float if whole and (np.asarray(values, float) % 1).any() else dtype


def _pyarrow(data: Any, cells: Cells) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    for name, (where, values) in cells.items():
        column = data.column(name).combine_chunks()
        own = column.type
        plain = own.value_type if pa.types.is_dictionary(own) else own
        if pa.types.is_integer(plain) and (np.asarray(values, float) % 1).any():
            plain = own = pa.float64()
        mask = np.zeros(len(column), dtype=bool)
        mask[where] = True
        given = pa.array(values.tolist()).cast(plain)
        new = pc.replace_with_mask(column.cast(plain), pa.array(mask), given)
        new = new.dictionary_encode() if pa.types.is_dictionary(own) else new
        data = data.set_column(data.column_names.index(name), name, new)
    return data


def _polars(data: Any, cells: Cells) -> Any:
    import polars as pl

    for name, (where, values) in cells.items():
        series, order = data[name], np.argsort(where)
        if series.dtype.is_integer() and (np.asarray(values, float) % 1).any():
            series = series.cast(pl.Float64)
        given = pl.Series(values[order].tolist(), strict=False).cast(series.dtype)
        data = data.with_columns(series.scatter(where[order], given))
    return data


FILLERS: dict[str, Callable[[Any, Cells], Any]] = {
    "numpy": _numpy,
    "torch": _torch,
    "pandas": _pandas,
    "polars": _polars,
    "pyarrow": _pyarrow,
}
