"""Tables as files, by the ending of their name; each is written whole or not at all."""

import io
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

from ppl_vae.errors import OptionError
from ppl_vae.files import write_bytes


def check_ending(out: str | PathLike, endings: Any) -> str:
    """The ending of a name, before the work whose result goes there.

    Raises: OptionError unless it is one of these.
    """
    ending = Path(out).suffix.lower()
    if ending not in endings:
        *some, last = endings
        raise OptionError(f"out: got {str(out)!r}, expected a name that ends in {', '.join(some)} or {last}")
    return ending


def write_table(out: str | PathLike, frame: Any) -> None:
    """Write a pandas DataFrame by the ending of the name: a name of `TABLES`.

    Args:
        out: .csv and .parquet hold the columns as they are; .npz an array `x` of all columns, or where one is no number, an
            array for each; .npy that array `x` alone.
        frame: n rows.

    Raises: OptionError for another ending; for .npy, of columns that are no numbers.

    Example:
        >>> import tempfile, numpy as np, pandas as pd
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_table(f"{folder}/a.npz", pd.DataFrame({"a": [1.0, 2.0], "b": [3, 4]}))
        ...     with np.load(f"{folder}/a.npz") as archive:
        ...         archive["names"].tolist(), archive["x"].tolist()
        (['a', 'b'], [[1.0, 3.0], [2.0, 4.0]])
    """
    write_bytes(out, TABLES[check_ending(out, TABLES)](frame))


def _csv(frame: Any) -> bytes:
    return frame.to_csv(index=False, lineterminator="\n").encode()


def _parquet(frame: Any) -> bytes:
    content = io.BytesIO()
    frame.to_parquet(content, index=False)
    return content.getvalue()


def _npz(frame: Any) -> bytes:
    import numpy as np

    content = io.BytesIO()
    if words := _not_numbers(frame):
        texts = {
            name: frame[name].astype(str).to_numpy(str) if name in words else frame[name].to_numpy() for name in frame
        }
        np.savez(content, **texts)
    else:
        np.savez(content, x=frame.to_numpy(float), names=np.array([str(name) for name in frame]))
    return content.getvalue()


def _npy(frame: Any) -> bytes:
    import numpy as np

    if words := _not_numbers(frame):
        raise OptionError(
            f"out: got the column {words[0]!r}, which is no number, for .npy; expected .csv, .parquet or .npz"
        )
    content = io.BytesIO()
    np.save(content, frame.to_numpy(float))
    return content.getvalue()


def _not_numbers(frame: Any) -> list[str]:
    return [name for name in frame if frame[name].dtype.kind not in "biuf"]


TABLES: dict[str, Callable[[Any], bytes]] = {".csv": _csv, ".parquet": _parquet, ".npz": _npz, ".npy": _npy}
