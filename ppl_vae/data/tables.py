"""Whatever a user hands in -> one array with column names (`read`), and back again (`like`)."""

import csv
import gzip
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from ppl_vae.errors import DataError, MissingFileError, OptionError, PplVaeError, first_line

ACCEPTED = (
    "a NumPy array, a torch tensor, a pandas or polars DataFrame, a pyarrow table, "
    "a path to .npy, .npz, .csv, .csv.gz or .parquet, or an object whose .x is one of these"
)
FRAMES = ("pandas", "polars", "pyarrow")
EXACT = 2.0**53
"""From here on float64 does not hold every whole number."""


class Column(NamedTuple):
    """What a column was before it became numbers.

    Attributes:
        kind: float | integer | boolean, which are numbers, or text | categorical | ordered, which have levels.
        dtype: the data's own name of its type, for messages.
        levels: text, numbers or truth values, which the values count from 0: the categories in their own order, or the
            distinct texts, sorted; () where every value is missing. None for numbers.
    """

    kind: str
    dtype: str
    levels: tuple[Any, ...] | None = None


class Table(NamedTuple):
    """Data as read.

    Attributes:
        values: (n, d), float32 or float64, in the data's own units; NaN where missing; may share the data's memory.
            A column that is not numbers holds the codes 0, 1, ... of its levels.
        names: the d column names; those of an array are x0, x1, ....
        kind: numpy | torch | pandas | polars | pyarrow.
        shape: the event shape of one row, e.g. (28, 28); its product is d.
        columns: the d columns' own types.
    """

    values: np.ndarray
    names: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    columns: tuple[Column, ...]

    def take(self, places: list[int]) -> "Table":
        """The table of these columns, in this order; without a copy if they are all there as they stand."""
        if places == list(range(len(self.names))):
            return self
        names, columns = tuple(self.names[j] for j in places), tuple(self.columns[j] for j in places)
        return Table(self.values[:, places], names, self.kind, (len(places),), columns)


def read(data: Any) -> Table:
    """Read any accepted kind of data as an array with column names.

    Args:
        data: a NumPy array or torch tensor (n, ...), a pandas or polars DataFrame, a pyarrow table, a path to a .npy,
            .npz, .csv, .csv.gz or .parquet file, or an object whose `.x` is one of these (and whose `.schema`, if any,
            names the columns of an array). Columns of a frame may be numbers, truth values, text or categories.

    Returns:
        A `Table`; float32 and float64 arrays are kept as they are, without a copy.

    Raises:
        DataError: another type, no rows or columns, a column of dates or other objects, or of text and numbers, an array
            that is not numbers, whole numbers of 2**53 and above, two columns of one name, a bad file.
        MissingFileError: the path does not exist.
    """
    if isinstance(data, Table):
        return data
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


def in_parts(data: Any, cells: int) -> list[Any]:
    """Data as read, in parts of whole rows with at most so many cells each; arrays and tensors without a copy.

    Example:
        >>> [part.shape for part in in_parts(np.zeros((5, 3)), 6)]
        [(2, 3), (2, 3), (1, 3)]
    """
    table = (
        data if isinstance(data, np.ndarray | torch.Tensor) else read(data)
    )  # all rows tell what levels a column has
    values: Any = table.values if isinstance(table, Table) else table
    height = max(1, cells // max(1, int(np.prod(values.shape[1:]))))
    if values.ndim < 2 or len(values) <= height:
        return [table]
    places = [slice(start, start + height) for start in range(0, len(values), height)]
    return [table._replace(values=values[rows]) if isinstance(table, Table) else table[rows] for rows in places]


def rows_at(data: Any, places: np.ndarray) -> Any:
    """Some rows of an array or a pandas DataFrame."""
    return data.iloc[places] if hasattr(data, "iloc") else np.asarray(data)[places]


def held_by(data: Any, name: str) -> Any:
    """What an object that holds data has under a name, None where it has nothing; a frame's columns are not meant."""
    return None if _frame_kind(data) else getattr(data, name, None)


def read_csv(path: str | os.PathLike[str], *, missing: Sequence[str] = (), names: Sequence[str] | None = None) -> Any:
    """Read a CSV file, packed by gzip or not, as a pandas DataFrame; blanks before a value are dropped.

    Args:
        path: ends in .csv or .csv.gz.
        missing: texts that stand for a missing value, besides those of pandas (an empty cell, NA, NaN, ...).
        names: the column names of a file that has none in its first line.

    Returns:
        The frame: numbers where all of a column are, else text; NaN where missing.

    Raises:
        DataError: not a CSV file in UTF-8, lines with more or fewer fields than columns, or two columns of one name.
        MissingFileError: the path does not exist.
        OptionError: one text in the place of a list.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (path := Path(folder) / "adult.csv").write_text("39, State-gov\\n54, ?\\n")
        ...     read_csv(path, missing=["?"], names=["age", "work"])
           age       work
        0   39  State-gov
        1   54        NaN
    """
    check_texts(missing=missing, names=names)
    header = {} if names is None else {"names": list(names), "header": None}

    def reader(path: Path) -> Any:
        return _csv(path, na_values=list(missing), **header)

    return _open(Path(path), {".csv": reader, ".csv.gz": reader})


def check_texts(**options: Any) -> None:
    """Refuse a text where a list of texts is expected: its letters would be taken, each for one. Raises: OptionError."""
    for name, value in options.items():
        if isinstance(value, str):
            raise OptionError(f"{name}: got {value!r}, expected a list of texts, as [{value!r}]")


def like(values: np.ndarray, kind: str, names: tuple[str, ...], shape: tuple[int, ...]) -> Any:
    """Turn an array of rows into the kind of data that `read` found.

    Args:
        values: (n, d).
        kind: numpy | torch | pandas | polars | pyarrow.
        names: the d column names, used by the three frames.
        shape: the event shape of a row, used by arrays and tensors, which come back as (n, *shape).

    Returns:
        The data, in the dtype of `values`; NaN becomes null in polars and pyarrow.
    """
    if kind == "pandas":
        import pandas as pd

        return pd.DataFrame(values, columns=list(names))
    if kind == "polars":
        import polars as pl

        return pl.DataFrame(values, schema=list(names), orient="row").fill_nan(None)
    if kind == "pyarrow":
        import pyarrow as pa

        return pa.Table.from_arrays([pa.array(column, from_pandas=True) for column in values.T], names=list(names))
    rows = values.reshape(len(values), *shape)
    # torch has no read-only tensors: it warns when it is given such memory, so that is copied
    return torch.from_numpy(np.require(rows, requirements=["C", "W"])) if kind == "torch" else rows


def frame_like(columns: dict[str, Any], kind: str) -> Any:
    """Turn columns of one length into the kind of frame that `read` found.

    Args:
        columns: a NumPy array or pandas array by name.
        kind: pandas | polars | pyarrow; in the last two what pandas counts as missing becomes null.

    Returns:
        The frame; an ordered pandas Categorical becomes a polars Enum or an ordered pyarrow dictionary.
    """
    import pandas as pd

    if kind == "pandas":
        return pd.DataFrame(columns)
    import pyarrow as pa

    table = pa.table({name: pa.array(column, from_pandas=True) for name, column in columns.items()})
    if kind == "pyarrow":
        return table
    import polars as pl

    ordered = {name: c.dtype.categories for name, c in columns.items() if getattr(c, "ordered", False)}
    enums = [pl.col(name).cast(pl.String).cast(pl.Enum(levels)) for name, levels in ordered.items()]
    return pl.DataFrame(pl.from_arrow(table)).with_columns(enums)


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
    column = Column(_NUMBERS.get(rows.dtype.kind, "float"), str(rows.dtype))
    return _exact(Table(np.asarray(rows, dtype=_dtype(rows, names)), names, kind, shape, (column,) * len(names)))


_NUMBERS = {"b": "boolean", "i": "integer", "u": "integer"}


def _read_tensor(tensor: torch.Tensor) -> Table:
    try:
        tensor = tensor.detach().to_dense()
        if tensor.is_floating_point() and tensor.dtype != torch.float64:  # of some NumPy does not know
            tensor = tensor.float()
        array = tensor.numpy(force=True)
    except (RuntimeError, TypeError) as error:  # no data at all, or no numbers to NumPy
        text = f"data: got a tensor of {tensor.dtype} on {tensor.device}, expected numbers ({first_line(error)})"
        raise DataError(text) from None
    return _read_array(array, "torch")


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
    _check_distinct(names)
    if kind == "pandas" and list(data.columns) != list(names):
        data = data.set_axis(list(names), axis=1)
    frame = nw.from_native(data, eager_only=True)
    numeric = [name for name, dtype in frame.schema.items() if dtype.is_numeric() or dtype == nw.Boolean]
    coded = {name: _coded(name, frame[name], data, kind) for name in names if name not in set(numeric)}
    small = {nw.Float32, nw.Float16, nw.Boolean, nw.UInt8}
    fits = all(column.levels is not None and len(column.levels) < 2**24 for _, column in coded.values())
    target = np.float32 if fits and all(frame.schema[name] in small for name in numeric) else np.float64
    columns = tuple(coded[name][1] if name in coded else _numbers(frame.schema[name]) for name in names)
    if not coded:
        return _exact(Table(_frame_values(frame, data, kind, target), names, kind, (len(names),), columns))
    values = np.empty((len(frame), len(names)), target)
    if numeric:
        part = frame.select(numeric)
        values[:, [names.index(name) for name in numeric]] = _frame_values(part, part.to_native(), kind, target)
    for name, (codes, _) in coded.items():
        values[:, names.index(name)] = codes
    return _exact(Table(values, names, kind, (len(names),), columns))


def _numbers(dtype: Any) -> Column:
    kind = "integer" if dtype.is_integer() else "float" if dtype.is_numeric() else "boolean"
    return Column(kind, str(dtype))


def _coded(name: str, series: Any, data: Any, kind: str) -> tuple[np.ndarray, Column]:
    """What `_codes` returns, or an error of ours: there is no end to what an object column may hold."""
    try:
        return _codes(name, series, data, kind)
    except PplVaeError:
        raise
    except Exception as error:
        raise DataError(
            f"column {name!r}: got what cannot be read (dtype {series.dtype}; {type(error).__name__}: "
            f"{first_line(error)}), expected numbers, truth values or text"
        ) from None


def _codes(name: str, series: Any, data: Any, kind: str) -> tuple[np.ndarray, Column]:
    """The codes (n,) of a column that is not numbers, NaN where missing, and its levels."""
    import narwhals as nw
    import pandas as pd

    dtype = series.dtype
    # narwhals would turn a pyarrow dictionary into plain text, and so lose the order of its levels
    own = data.column(name).to_pandas() if kind == "pyarrow" else series.to_pandas()
    if isinstance(own.dtype, pd.CategoricalDtype):
        codes, distinct = own.cat.codes.to_numpy(), own.cat.categories
        sort = "ordered" if own.cat.ordered or dtype == nw.Enum else "categorical"
    elif dtype in (nw.String, nw.Object, nw.Unknown):
        try:
            codes, distinct = pd.factorize(own)
        except TypeError:  # lists and their like have no hash
            raise _not_numbers(name, series.to_list(), dtype) from None
        sort = "text"
    else:  # each library spells a missing value its own way
        raise _not_numbers(name, [None if m else v for v, m in zip(series.to_list(), series.is_null())], dtype)
    levels = [level.item() if isinstance(level, np.generic) else level for level in distinct.tolist()]
    if odd := [level for level in levels if not isinstance(level, str | bool | int | float)]:
        row = int((codes == levels.index(odd[0])).argmax())
        raise DataError(
            f"column {name!r}: got {odd[0]!r:.200} in row {row} (dtype {dtype}), expected numbers, truth values or text"
        )
    words = [isinstance(level, str) for level in levels]
    if sort == "text" and len({*words}) == 2:  # which pandas would call one where they are equal, as 1 and True
        first, other = levels[int(codes[(codes >= 0).argmax()])], words.index(not words[0])
        raise DataError(
            f"column {name!r}: got {levels[other]!r:.200} in row {int((codes == other).argmax())} and {first!r:.200} before "
            f"it (dtype {dtype}), expected either text or numbers"
        )
    if sort == "text" or (kind == "polars" and dtype == nw.Categorical):  # whose categories are the whole session's
        codes, levels = _sorted(codes, levels)
    if levels and sort == "text" and not any(words):  # numbers kept as objects
        kinds = {"boolean": bool, "integer": int, "float": object}
        number = next(kind for kind, of in kinds.items() if all(isinstance(level, of) for level in levels))
        return np.asarray([*map(float, levels), np.nan])[codes], Column(number, str(dtype))
    return np.where(codes < 0, np.nan, codes), Column(sort, str(dtype), tuple(levels))


def _sorted(codes: np.ndarray, levels: list[Any]) -> tuple[np.ndarray, list[Any]]:
    """The same column with its levels sorted, and without those that it does not have."""
    used = np.unique(codes[codes >= 0])
    order = sorted(used.tolist(), key=lambda code: (type(levels[code]).__name__, levels[code]))
    place = np.full(len(levels) + 1, -1)  # the last is for the code -1 of a missing value
    place[order] = np.arange(len(order))
    return place[codes], [levels[code] for code in order]


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


def opened(path: str | os.PathLike[str]) -> Any:
    """What a file of data holds: an array, or a pandas data frame.

    Args:
        path: of a .npy, .npz, .csv, .csv.gz or .parquet file.

    Raises: DataError, naming the file; MissingFileError.
    """
    return _open(Path(path), _READERS)


def _read_path(path: Path) -> Table:
    return _open(path, _READERS, read)


def _open(path: Path, readers: Mapping[str, Callable[[Path], Any]], use: Callable = lambda data: data) -> Any:
    """What `use` makes of a file's content; whatever goes wrong names the file."""
    ending = next((ending for ending in readers if path.name.lower().endswith(ending)), None)
    if ending is None:
        raise DataError(f"file {path}: got ending {path.suffix!r}, expected one of {', '.join(readers)}")
    try:
        if path.exists():
            return use(readers[ending](path))
    except PplVaeError as error:
        raise DataError(f"file {path}: {error}") from None
    except Exception as error:  # each reader has a dozen of its own; the user needs the file and the reason
        why = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"file {path}: cannot be read as {ending} ({why})") from None
    raise MissingFileError(f"file {path}: got nothing there, expected a {ending} file")


def _npy(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _npz(path: Path) -> np.ndarray:
    with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:  # np.load takes others too
        for key in ("x", "X"):
            if key in archive:
                return archive[key]
        tables = [array for array in map(archive.__getitem__, archive.files) if np.ndim(array) >= 2]
        if len(tables) != 1:
            raise DataError(
                f"got arrays {archive.files}, expected one named 'x' or 'X', or a single one of rows x columns"
            )
        return tables[0]


def _csv(path: Path, **options: Any) -> Any:
    unpacked: Any = gzip.open if path.suffix.lower() == ".gz" else open
    with unpacked(path, "rb") as file:
        for part in iter(lambda: file.read(2**20), b""):
            refuse_nul(part)
        file.seek(0)
        frame = parse_csv(file, **options)
    with unpacked(path, "rt", encoding="utf-8-sig", newline="") as text:
        lines = csv.reader(text, skipinitialspace=True)
        if "names" not in options:
            check_header(next(line for line in lines if _fields(line)))
        refuse_short(frame, lines)
    return frame


def refuse_nul(part: bytes) -> None:
    """Refuse bytes that no text has; some readers end a cell at them."""
    if b"\0" in part:
        raise DataError("got a NUL byte, expected text in UTF-8 throughout")


def check_header(fields: Iterable[str]) -> None:
    """Refuse names that stand twice: pandas would call a second 'a' 'a.1'. Those without a name it counts."""
    _check_distinct(filter(None, fields))


def refuse_short(frame: Any, lines: Any, where: Callable[[int], str] | None = None) -> None:
    """Refuse a line with fewer fields than columns, which pandas has filled: the last of its cells is missing.

    Args:
        frame: as parsed.
        lines: a `csv.reader` of the same.
        where: what to call the line of a row in messages; by default its number.
    """
    if frame.shape[1] == 1 or not frame.iloc[:, -1].isna().any():
        return
    full = ((line, count) for line in lines if (count := _fields(line)))
    for row, (line, count) in enumerate(full):
        if count < frame.shape[1]:
            place = where(row) if where else f"line {lines.line_num}"
            raise DataError(f"{place}: got {len(line)} field(s), expected {frame.shape[1]}")


def parse_csv(file: IO[bytes], **options: Any) -> Any:
    """The pandas DataFrame of an open CSV file; more fields in a line than in the first are an error of pandas."""
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # pandas drops fields that no name is for
        try:
            return pd.read_csv(file, index_col=False, low_memory=False, skipinitialspace=True, **options)
        except pd.errors.ParserWarning:
            raise DataError("got more fields in its lines than column names, expected a name for each") from None


def _fields(line: list[str]) -> int:
    """How many fields a line of CSV has; none if it is blank."""
    return len(line) if len(line) > 1 or any(map(str.strip, line)) else 0


def _parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    table = pq.read_table(path, page_checksum_verification=True)
    table.validate(full=True)
    return table.to_pandas(integer_object_nulls=True)  # not as floats, which round


_READERS = {".npy": _npy, ".npz": _npz, ".csv": _csv, ".parquet": _parquet, ".csv.gz": _csv}


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


def _check_distinct(names: Iterable[str]) -> None:
    """Refuse names that stand for two columns."""
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise DataError(f"columns: got {', '.join(map(repr, twice))} more than once, expected distinct names")


def _exact(table: Table) -> Table:
    """The table, none of whose whole numbers has been rounded."""
    if all(column.kind != "integer" for column in table.columns):
        return table
    low, high = np.fmin.reduce(table.values), np.fmax.reduce(table.values)  # both pass over NaN
    for j in np.flatnonzero((low <= -EXACT) | (high >= EXACT)).tolist():
        if table.columns[j].kind == "integer":
            row = int((np.abs(table.values[:, j]) >= EXACT).argmax())
            raise DataError(
                f"column {table.names[j]!r}: got about {table.values[row, j]:.0f} in row {row} (dtype "
                f"{table.columns[j].dtype}), expected whole numbers below 2**53, which float64 holds exactly: "
                "make them floats if rounding will do, text if they are names"
            )
    return table


def check_numbers(
    table: Table, places: Iterable[int] | None = None, nullable: Iterable[str] = (), otherwise: str = ""
) -> None:
    """Refuse columns that are not numbers; one without any value may pass as numbers where it is `nullable`.

    Args:
        table: as read.
        places: numbers of the columns to check; by default all.
        nullable: names of the columns that may miss values.
        otherwise: what the error says of text beside.

    Raises:
        DataError: names the column, and the value that shows best what it is.
    """
    for j in range(len(table.names)) if places is None else places:
        name, column = table.names[j], table.columns[j]
        if column.levels or (column.levels is not None and name not in nullable):
            levels = (*column.levels, None)  # the last is for a missing value
            codes = np.nan_to_num(table.values[:, j], nan=-1).astype(int)
            raise _not_numbers(name, [levels[code] for code in codes.tolist()], column.dtype, otherwise)


def _offender(column: Iterable[Any]) -> tuple[int, Any] | None:
    """The first (row, value) that is neither missing nor a number."""
    for row, value in enumerate(column):
        try:
            float("nan" if value is None else value)
        except (TypeError, ValueError):
            return row, value
    return None


def _not_numbers(name: str, column: list[Any], dtype: Any, otherwise: str = "") -> DataError:
    """The error for a column that is not numbers, with the value that shows it best."""
    present = ((row, value) for row, value in enumerate(column) if value is not None)
    found = _offender(column) or next(present, (0, None))
    return DataError(
        f"column {name!r}: got {found[1]!r:.200} in row {found[0]} (dtype {dtype}), expected numbers{otherwise}"
    )
