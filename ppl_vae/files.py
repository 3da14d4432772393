"""Files: whole or not at all; names and numbers as JSON, tensors as safetensors. Knows no model."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ppl_vae.errors import MissingFileError, ModelFileError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

MAX_JSON = 64 * 2**20
"""Bytes of a JSON file, at most."""


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


def pack(tensors: Mapping[str, "Tensor"]) -> bytes:
    """Tensors as safetensors; never with the first bytes of a pickle, which a header of 640, 896, 1152 or 1408 bytes has."""
    import safetensors.torch

    # cloned: safetensors takes no tensors that share memory
    raw = safetensors.torch.save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()})
    if raw[0] == 0x80 and 2 <= raw[1] <= 5:
        size = int.from_bytes(raw[:8], "little")
        raw = (size + 8).to_bytes(8, "little") + raw[8 : 8 + size] + b" " * 8 + raw[8 + size :]
    return raw


def write_pair(folder: str | PathLike, name: str, content: Mapping[str, Any], tensors: Mapping[str, "Tensor"]) -> None:
    """Write names and numbers to `<name>.json`, tensors to `<name>-<their digest>.safetensors`; an older pair goes.

    A crash leaves the pair before or this one: the JSON file, which is replaced last, says which tensors are its own.

    Raises: ModelFileError where the folder cannot be written.
    """
    folder, packed = Path(folder), pack(tensors)
    whole = {**content, "tensors": {"sha256": digest(packed), "size": len(packed)}}
    own = _tensors_file(name, whole["tensors"]["sha256"])
    try:
        with locked(folder):
            write_bytes(folder / own, packed)
            write_text(folder / f"{name}.json", to_json({**whole, "sha256": digest(to_json(whole).encode())}))
            files = rf"{re.escape(name)}-[0-9a-f]{{16}}\.safetensors"
            ours = rf"{files}|\.({re.escape(name)}\.json|{files})\.\w{{8}}"  # the last: of a process that was killed
            for stale in folder.iterdir():
                if re.fullmatch(ours, stale.name) and stale.name != own:
                    stale.unlink()
    except OSError as error:
        raise ModelFileError(f"{folder}: the {name} could not be written: {error}") from error


def read_pair(folder: str | PathLike, name: str) -> tuple[dict[str, Any], dict[str, "Tensor"]]:
    """What `write_pair` wrote.

    Raises: MissingFileError where there is none; ModelFileError for one that is not as it was written, or half of one.
    """
    import safetensors.torch

    file = Path(folder) / f"{name}.json"
    raw = _read(file, MAX_JSON)
    content = from_json(raw, str(file))
    rest = {key: value for key, value in content.items() if key != "sha256"} if isinstance(content, dict) else {}
    try:
        same = to_json(content).encode() == raw and digest(to_json(rest).encode()) == content["sha256"]
        sha256 = rest.pop("tensors")["sha256"]
        same = same and re.fullmatch("[0-9a-f]{64}", sha256) is not None  # it names a file
        tensors = Path(folder) / _tensors_file(name, sha256)
    except (ValueError, TypeError, KeyError):
        same = False
    if not same:
        raise ModelFileError(f"{file}: got content that is not what was written, expected it unchanged")
    try:
        packed = _read(tensors, content["tensors"]["size"])
    except MissingFileError as error:  # half a pair is none that may be begun anew
        raise ModelFileError(f"{error}, expected it beside {file.name}") from None
    if digest(packed) != content["tensors"]["sha256"]:
        raise ModelFileError(f"{tensors}: got content that is not what was written, expected it unchanged")
    # own, aligned memory: kernels are chosen by it
    return rest, {key: value.clone() for key, value in safetensors.torch.load(packed).items()}


def _read(file: Path, most: int) -> bytes:
    """A file's content, of so many bytes at most."""
    try:
        if (size := file.stat().st_size) > most:
            raise ModelFileError(f"{file}: got {size} bytes, expected at most {most}")
        return file.read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"{file}: no such file") from None
    except OSError as error:
        raise ModelFileError(f"{file}: could not be read: {error}") from error


def _tensors_file(name: str, sha256: str) -> str:
    return f"{name}-{sha256[:16]}.safetensors"
