"""What `fit` may call after each epoch: the history as lines of JSON, or for TensorBoard."""

import json
import os
from collections.abc import Callable, Iterable
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any

from ppl_vae.errors import OptionError, choose
from ppl_vae.files import write_bytes
from ppl_vae.infer.history import History


class JsonLines:
    """Write each epoch of a fit as a line of JSON; a callback of `fit`.

    A line is there whole once the call returns. A fit that goes on from a checkpoint goes on in the file: what it does again
    is written over, so that each epoch stands there once. A fit that begins anew begins the file anew. What is not finite
    becomes null.

    Args:
        path: the file; its folder is made.

    Example:
        >>> import tempfile
        >>> history = History()
        >>> history.append({"epoch": 1, "bound": -3.5, "valid_bound": float("nan")})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     JsonLines(f"{folder}/log.jsonl")(None, history)
        ...     print(Path(folder, "log.jsonl").read_text(), end="")
        {"epoch": 1, "bound": -3.5, "valid_bound": null}
    """

    def __init__(self, path: str | PathLike) -> None:
        self.path, self._written = Path(path), 0

    def __call__(self, vae: Any, history: History) -> None:
        if not 0 < self._written == len(history) - 1 or not self.path.exists():
            # the first epoch that this object sees: the history knows those before it, the file may know others
            write_bytes(self.path, "".join(map(_line, history.epochs)).encode())
        else:
            with self.path.open("ab") as file:
                file.write(_line(history.epochs[-1]).encode())
                file.flush()
                os.fsync(file.fileno())
        self._written = len(history)


def _line(epoch: dict[str, float]) -> str:
    return json.dumps({name: value if isfinite(value) else None for name, value in epoch.items()}) + "\n"


class TensorBoard:
    """Write each epoch of a fit as scalars for TensorBoard (`pip install ppl_vae[tensorboard]`); a callback of `fit`.

    A fit that goes on from a checkpoint goes on in the folder: what an earlier process wrote of epochs that are done again
    is purged by TensorBoard's readers. What is not finite is left out.

    Args:
        folder: of the event files, one for each process that writes there.

    Raises: OptionError where TensorBoard is not installed.
    """

    def __init__(self, folder: str | PathLike) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise OptionError(
                f"TensorBoard: got {error}, expected it to be installed: pip install 'ppl_vae[tensorboard]'"
            ) from None
        self._make, self._folder, self._written = SummaryWriter, Path(folder), 0
        self._writer: Any = None

    def __call__(self, vae: Any, history: History) -> None:
        if self._writer is None or self._written != len(history) - 1:
            self.close()
            self._writer = self._make(os.fspath(self._folder), purge_step=len(history))
        for name, value in history.epochs[-1].items():
            if name != "epoch" and isfinite(value):
                self._writer.add_scalar(name, value, len(history))
        self._writer.flush()
        self._written = len(history)

    def close(self) -> None:
        """Close the file; a later epoch opens another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


CALLBACKS: dict[str, Callable[[Path], Callable[[Any, History], object]]] = {
    "jsonl": lambda folder: JsonLines(folder / "log.jsonl"),
    "tensorboard": lambda folder: TensorBoard(folder / "tensorboard"),
}


def callbacks(names: str | Iterable[str], folder: str | PathLike) -> list[Callable[[Any, History], object]]:
    """The callbacks of these names, which write to a folder.

    Args:
        names: one, or several, of `CALLBACKS`.
        folder: to write log.jsonl, or the folder tensorboard, to.

    Returns: one for each name.

    Raises: OptionError.
    """
    return [choose("log", name, CALLBACKS)(Path(folder)) for name in ([names] if isinstance(names, str) else names)]
