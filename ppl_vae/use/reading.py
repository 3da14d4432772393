"""Rows as the command line names them: a file or a data set, the columns and rows of it that are asked for, its labels."""

import re
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppl_vae.data import datasets
from ppl_vae.data.tables import opened, read, read_csv
from ppl_vae.errors import DataError, OptionError
from ppl_vae.options import ReadingOptions
from ppl_vae.use.mistakes import nearest

CSV = (".csv", ".csv.gz")


class Rows(NamedTuple):
    """Rows to work on.

    Attributes:
        data: n rows, of any kind that data may be.
        numbers: (n,) where they stand in what was read, from 0.
        labels: (n,) as read, or None.
        anomalous: (n,) bool, whose label is none of the normal ones; None without labels.
    """

    data: Any
    numbers: np.ndarray
    labels: np.ndarray | None = None
    anomalous: np.ndarray | None = None

    def at(self, places: np.ndarray) -> "Rows":
        """Some of these rows, by their places (m,)."""
        labels, anomalous = (None if part is None else part[places] for part in self[2:])
        return Rows(taken(self.data, places), self.numbers[places], labels, anomalous)

    def normal(self) -> "Rows":
        """These rows without the anomalous ones."""
        return self if self.anomalous is None else self.at(np.flatnonzero(~self.anomalous))


def read_rows(data: str, options: ReadingOptions) -> Rows:
    """Rows of a file or of a data set, as the options say.

    Args:
        data: the path of a file, or the name of a data set.
        options: `ReadingOptions`.

    Raises: OptionError, DataError, MissingFileError.
    """
    found = _named(data, options)
    labels = None if options.labels is None else np.asarray(_labels(data, found, options.labels))
    if options.labels is not None and hasattr(found, "columns"):
        found = found.drop(columns=options.labels)
    found = _without(found, options.drop)
    n = len(found.x if hasattr(found, "x") else found)
    if labels is not None and labels.shape != (n,):
        raise DataError(f"labels: got shape {labels.shape}, expected one for each of {n} rows")
    rows = Rows(found, np.arange(n), labels, None if labels is None else ~_is_one_of(labels, texts(options.normal)))
    return rows if options.part in (None, "test") else rows.at(_part(options.part, n))


def loaded(rows: Any) -> Any:
    """A file's content as a frame or an array, other data as they are."""
    if not isinstance(rows, str | PathLike):
        return rows
    return read_csv(rows) if str(rows).lower().endswith(CSV) else opened(rows)


def taken(rows: Any, places: np.ndarray) -> Any:
    """Some rows, by their places, as data of the same kind."""
    if hasattr(rows, "iloc"):
        return rows.iloc[places].reset_index(drop=True)
    if hasattr(rows, "x"):
        y = getattr(rows, "y", None)
        return rows._replace(x=taken(rows.x, places), y=None if y is None else y[places])
    return rows[places]


def _named(data: str, options: ReadingOptions) -> Any:
    """A frame, an array, or a `Dataset`."""
    path = Path(data)
    is_csv = path.name.lower().endswith(CSV)
    if not is_csv and (options.missing or options.names):
        raise OptionError(f"missing, names: got them for {data}, expected a .csv file, which they are of")
    if path.suffix or path.is_file():
        if options.part == "test":
            raise OptionError(f"part: got 'test' of {data}, expected the name of a data set that is published with one")
        if not is_csv:
            return opened(path)
        return read_csv(path, missing=texts(options.missing), names=list(options.names) or None)
    known = [name for name, _, _ in datasets.names()]
    try:
        found = datasets.load(data)
    except OptionError:
        which = nearest(data, known, "expected a .npy, .npz, .csv or .parquet file or a name from `ppl-vae datasets`")
        raise OptionError(f"DATA: got {data!r}, {which}") from None
    if options.part != "test":
        return found
    if found.test_x is None:
        raise OptionError(f"part: got 'test' of {data}, which is published without one; expected one as 1/3")
    return found._replace(x=found.test_x, y=found.test_y)


def _labels(data: str, found: Any, name: str) -> Any:
    """The labels by their name: a column of a frame, an array of an .npz file, `y` of a data set."""
    if hasattr(found, "x"):
        if name != "y" or found.y is None:
            raise OptionError(
                f"labels: got {name!r} of {data}, expected {'no labels' if found.y is None else repr('y')}"
            )
        return found.y
    if hasattr(found, "columns"):
        _check_there("labels", [name], found.columns)
        return found[name].to_numpy()
    if Path(data).suffix.lower() != ".npz":
        raise OptionError(f"labels: got {name!r} of {data}, expected a table with named columns, or an .npz file")
    with np.load(data, allow_pickle=False) as archive:
        _check_there("labels", [name], archive.files)
        return archive[name].reshape(-1)


def _without(found: Any, columns: tuple[str, ...]) -> Any:
    """The table without some of its columns."""
    if not columns:
        return found
    frame = found.x if hasattr(found, "x") else found
    if not hasattr(frame, "columns"):
        raise OptionError(f"drop: got {list(columns)} of an array, expected a table with named columns")
    _check_there("drop", columns, frame.columns)
    return frame.drop(columns=list(columns))


def _check_there(option: str, columns: Any, there: Any) -> None:
    for column in columns:
        if column not in there:
            raise OptionError(f"{option}: got {column!r}, {nearest(column, there, f'expected one of {list(there)}')}")


def _is_one_of(labels: np.ndarray, normal: list[str]) -> np.ndarray:
    """Whether labels (n,) are one of these texts; 1.0 is "1" too."""
    found = np.isin(labels.astype(str), normal)
    if labels.dtype.kind in "biuf":
        numbers = [float(text) for text in normal if re.fullmatch(r"[-+]?\d+(\.\d*)?", text)]
        found |= np.isin(labels.astype(float), numbers)
    if not found.any():
        some = ", ".join(map(str, np.unique(labels.astype(str))[:5]))
        raise OptionError(f"normal: got {', '.join(normal)}, which is the label of no row; expected one of {some}")
    return found


def _part(part: str | None, n: int) -> np.ndarray:
    """Places of part k of m, of a random order that is always the same, in the rows' own order."""
    found = re.fullmatch(r"(\d+)/(\d+)", part or "")
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise OptionError(f"part: got {part!r}, expected one as 1/3 (the first of three), or test")
    k, m = int(found[1]), int(found[2])
    order = np.random.default_rng(0).permutation(n)
    if len(order[k - 1 :: m]) == 0:
        raise OptionError(f"part: got {part!r} of {n} rows, which is none; expected fewer parts")
    return np.sort(order[k - 1 :: m])


def texts(value: Any) -> list[str]:
    """One text or several, as texts."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):  # YAML could make no list of it
        raise OptionError(f"got {value!r}, expected a list as [a,b], with signs such as ? in quotes")
    return [str(one) for one in (value if isinstance(value, list | tuple) else [value])]


def frame_of(data: Any, names: tuple[str, ...]) -> Any:
    """Rows as a pandas DataFrame, of arrays with these names."""
    import pandas as pd

    if not hasattr(data, "columns"):
        return pd.DataFrame(read(data).values, columns=list(names))
    return data if isinstance(data, pd.DataFrame) else data.to_pandas()
