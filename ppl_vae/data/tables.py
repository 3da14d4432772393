"""Whatever a user hands in -> one array with column names (`read`), and back again (`like`)."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ppl_vae.errors import DataError, MissingFileError, PplVaeError

ACCEPTED = (
    "a NumPy array, a torch tensor, a pandas or polars DataFrame, a pyarrow table, "
    "a path to .npy, .npz, .csv or .parquet, or an object whose .x is one of these"
)
FRAMES = ("pandas", "polars", "pyarrow")


class Table(NamedTuple):
    """Data as read.

    Attributes:
        values: (n, d), float32 or float64, in the data's own units; NaN where missing; may share the data's memory.
        names: the d column names; those of an array are x0, x1, ....
        kind: numpy | torch | pandas | polars | pyarrow.
        shape: the event shape of one row, e.g. (28, 28); its product is d.
    """

    values: np.ndarray
    names: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]


def read(data: Any) -> Table:
    """Read any accepted kind of data as an array with column names.

    Args:
        data: a NumPy array or torch tensor (n, ...), a pandas or polars DataFrame, a pyarrow table, a path to a .npy,
            .npz, .csv or .parquet file, or an object whose `.x` is one of these (and whose `.schema`, if any, names
            the columns of an array).

    Returns:
        A `Table`; float32 and float64 arrays are kept as they are, without a copy.

    Raises:
        DataError: another type, no rows or columns, a column that is not numbers, two columns of one name, a bad file.
        MissingFileError: the path does not exist.
    """
    if isinstance(data, np.ndarray):
        return _read_array(data, "numpy")
    if isinstance(data, torch.Tensor):
        return _read_tensor(data)
    if kind := _frame_kind(data):
        return _read_frame(data, kind)
    if isinstance(data, str | os.PathLike):
        return _read_path(Path(data))
    if hasattr(data, "x"):
        return _read_holder(data)
    raise DataError(f"data: got {type(data).__name__}, expected {ACCEPTED}")


def like(values: np.ndarray, kind: str, names: tuple[str, ...], shape: tuple[int, ...]) -> Any:
    """Turn an array of rows into the kind of data that `read` found.

    Args:
        values: (n, d).
        kind: numpy | torch | pandas | polars | pyarrow.
        names: the d column names, used by the three frames.
        shape: the event shape of a row, used by arrays and tensors, which come back as (n, *shape).

    Returns:
        The data, in the dtype of `values`.
    """
    if kind == "pandas":
        import pandas as pd

        return pd.DataFrame(values, columns=list(names))
    if kind == "polars":
        import polars as pl

        return pl.DataFrame(values, schema=list(names), orient="row")
    if kind == "pyarrow":
        import pyarrow as pa

        return pa.Table.from_arrays([pa.array(column) for column in values.T], names=list(names))
    rows = values.reshape(len(values), *shape)
    # torch has no read-only tensors: it warns when it is given such memory, so that is copied
    return torch.from_numpy(np.require(rows, requirements=["C", "W"])) if kind == "torch" else rows


# ---- arrays and tensors


def _read_array(array: np.ndarray, kind: str) -> Table:
    if array.ndim < 2:
        raise DataError(f"data: got an array of shape {array.shape}, expected rows x columns")
    _check_not_empty(array.shape)
    shape = array.shape[1:]
    names = tuple(f"x{j}" for j in range(int(np.prod(shape))))
    if isinstance(array, np.ma.MaskedArray):  # np.asarray would bring the hidden values back
        array = np.ma.filled(array.astype(_dtype(array.reshape(len(array), -1), names)), np.nan)
    rows = np.asarray(array).reshape(len(array), -1)
    return Table(np.asarray(rows, dtype=_dtype(rows, names)), names, kind, shape)


def _read_tensor(tensor: torch.Tensor) -> Table:
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.dtype == torch.bfloat16:  # unknown to NumPy
        tensor = tensor.float()
    return _read_array(tensor.numpy(force=True), "torch")


def _dtype(rows: np.ndarray, names: tuple[str, ...]) -> type[np.floating]:
    """The floating dtype that holds `rows` (n, d), or an error that names the first column that is not numbers."""
    kind, size = rows.dtype.kind, rows.dtype.itemsize
    if kind in "biuf":
        small = (kind == "b") or (kind == "u" and size == 1) or (kind == "f" and size <= 4)
        return np.float32 if small else np.float64
    bad = [j for j in range(rows.shape[1]) if _offender(rows[:, j].tolist())] if kind == "O" else []
    j = bad[0] if bad else 0
    raise _not_numbers(names[j], rows[:, j].tolist(), rows.dtype)


# ---- frames


def _frame_kind(data: Any) -> str | None:
    from narwhals import dependencies as known

    checks: tuple[Callable[[Any], bool], ...] = (
        known.is_pandas_dataframe,
        known.is_polars_dataframe,
        known.is_pyarrow_table,
    )
    return next((kind for kind, check in zip(FRAMES, checks) if check(data)), None)


def _read_frame(data: Any, kind: str) -> Table:
    import narwhals as nw

    names = tuple(map(str, data.column_names if kind == "pyarrow" else data.columns))
    _check_not_empty(data.shape)
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise DataError(f"columns: got {', '.join(map(repr, twice))} more than once, expected distinct names")
    if kind == "pandas" and list(data.columns) != list(names):
        data = data.set_axis(list(names), axis=1)
    frame = nw.from_native(data, eager_only=True)
    for name, dtype in frame.schema.items():
        if not (dtype.is_numeric() or dtype == nw.Boolean):
            missing = frame[name].is_null().to_list()  # each library spells a missing value its own way
            raise _not_numbers(name, [None if m else v for v, m in zip(frame[name].to_list(), missing)], dtype)
    small = {nw.Float32, nw.Float16, nw.Boolean, nw.UInt8}
    target = np.float32 if all(dtype in small for dtype in frame.schema.values()) else np.float64
    return Table(_frame_values(frame, data, kind, target), names, kind, (len(names),))


def _frame_values(frame: Any, data: Any, kind: str, target: type[np.floating]) -> np.ndarray:
    import narwhals as nw

    narrow = nw.Float32 if target is np.float32 else nw.Float64
    if any(dtype != narrow for dtype in frame.schema.values()):
        frame = frame.select(nw.all().cast(narrow))
    values = frame.to_numpy()
    if values.dtype == object:  # pandas columns that pyarrow backs keep their own missing value
        values = data.to_numpy(dtype=target, na_value=np.nan)
    return np.asarray(values, dtype=target)


# ---- files, each opened here: not every reader closes a damaged one


def _read_path(path: Path) -> Table:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"file {path}: got ending {path.suffix!r}, expected one of {', '.join(_READERS)}")
    if not path.exists():
        raise MissingFileError(f"file {path}: got nothing there, expected a {path.suffix} file")
    try:
        return read(reader(path))
    except PplVaeError as error:
        raise DataError(f"file {path}: {error}") from None
    except Exception as error:  # each reader has a dozen of its own; the user needs the file and the reason
        raise DataError(f"file {path}: cannot be read as {path.suffix} ({type(error).__name__}: {error})") from None


def _npy(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _npz(path: Path) -> np.ndarray:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        for key in ("x", "X"):
            if key in archive:
                return archive[key]
        tables = [array for array in map(archive.__getitem__, archive.files) if array.ndim >= 2]
        if len(tables) != 1:
            raise DataError(
                f"got arrays {archive.files}, expected one named 'x' or 'X', or a single one of rows x columns"
            )
        return tables[0]


def _csv(path: Path) -> Any:
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # pandas drops fields that the header does not name
        with path.open("rb") as file:
            return pd.read_csv(file, index_col=False, low_memory=False)


def _parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pandas()


_READERS = {".npy": _npy, ".npz": _npz, ".csv": _csv, ".parquet": _parquet}


# ---- objects that hold data


def _read_holder(data: Any) -> Table:
    table = read(data.x)
    schema = getattr(data, "schema", None)
    if schema is None or table.kind in FRAMES or len(schema.names) != len(table.names):
        return table
    return table._replace(names=tuple(schema.names), shape=tuple(schema.shape))


# ---- what can be wrong


def _check_not_empty(shape: tuple[int, ...]) -> None:
    if 0 in shape:
        raise DataError(f"data: got shape {tuple(shape)}, expected at least one row and one column")


def _offender(column: Iterable[Any]) -> tuple[int, Any] | None:
    """The first (row, value) that is neither missing nor a number."""
    for row, value in enumerate(column):
        try:
            float("nan" if value is None else value)
        except (TypeError, ValueError):
            return row, value
    return None


def _not_numbers(name: str, column: list[Any], dtype: Any) -> DataError:
    """The error for a column that is not numbers, with the value that shows it best."""
    present = ((row, value) for row, value in enumerate(column) if value is not None)
    found = _offender(column) or next(present, (0, None))
    return DataError(f"column {name!r}: got {found[1]!r} in row {found[0]} (dtype {dtype}), expected numbers")
