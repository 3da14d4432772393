"""Files: whole or not at all. Knows no model."""

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

from ppl_vae.errors import MissingFileError, ModelFileError


def write_bytes(path: str | PathLike, content: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never half: temporary file, fsync, rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
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
