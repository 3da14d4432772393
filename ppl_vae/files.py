"""Files: whole or not at all; names and numbers as JSON. Knows no model."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

from ppl_vae.errors import MissingFileError, ModelFileError, OptionError


def write_bytes(path: str | PathLike, content: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never half: temporary file, fsync, rename."""
    path = Path(path)
    _make(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are private
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Let one process at a time write to a folder, made where absent: it would take what others have begun for stale.

    Where a system has no such locks, as for some network drives, there is none.

    Raises: OptionError where another process has it, and it is not to be waited for.
    """
    _make(folder)
    with ExitStack() as held:
        with suppress(ImportError, OSError):
            import fcntl

            handle = os.open(folder, os.O_RDONLY)
            held.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise OptionError(
                    f"{folder}: got a folder that another process is writing to, expected another"
                ) from None
        yield


def _make(folder: Path) -> None:
    """A folder, and those that it is in, each there after a crash too."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    """Let a rename reach the disk before what follows it, where a system does this for folders."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | PathLike, text: str) -> None:
    """`write_bytes` of text."""
    write_bytes(path, text.encode())


def read_bytes(path: str | PathLike) -> bytes:
    """A file's content. Raises: MissingFileError."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(f"{os.fspath(path)}: no such file") from error


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def to_json(value: Any) -> str:
    """JSON with sorted keys, so that equal values are equal text; NaN is refused."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def from_json(text: bytes, name: str) -> Any:
    """JSON without duplicate keys, NaN and infinities. Raises: ModelFileError, naming the file."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            raise ValueError("a key stands twice")
        return found

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"got {constant}, expected finite numbers")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{name}: not the JSON expected: {error}") from error
