"""Two files, names and numbers as JSON and tensors as safetensors: both or neither, and known to be as they were written."""

import json
import re
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import safetensors.torch
from torch import Tensor

from ppl_vae.errors import MissingFileError, ModelFileError, OptionError
from ppl_vae.files import digest, from_json, locked, to_json, write_bytes, write_text


class Pair(NamedTuple):
    """What its two files are called, and how large they may be.

    Attributes:
        what: the thing, in errors.
        name: of the JSON file, without its ending.
        tensors: what the name of the tensors' file begins with; a part of their digest and its ending follow.
        key: under which the JSON file has their digest and size.
        most: bytes of the JSON file, and of the names of the tensors.
        values: values in either, each some 100 bytes once it is read.
    """

    what: str
    name: str
    tensors: str
    key: str = "tensors"
    most: int = 64 * 2**20
    values: int = 2**24

    def write(self, folder: str | PathLike, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write both files; an older pair goes, and what a process that was killed had begun.

        A crash leaves the pair before or this one: the JSON file, which is replaced last, says which tensors are its own.

        Raises: OptionError for names and numbers that are too many; ModelFileError where the folder cannot be written.
        """
        folder, packed = Path(folder), pack(tensors)
        own = self._tensors_file(sha256 := digest(packed))
        whole = {**content, self.key: {"sha256": sha256, "size": len(packed)}}
        text = to_json({**whole, "sha256": digest(to_json(whole).encode())})
        self._check_size(folder / f"{self.name}.json", text.encode(), OptionError)
        try:
            with locked(folder):
                self._put(folder, own, packed, text)
        except OSError as error:
            raise ModelFileError(f"{folder}: could not be written: {error}") from error

    def _put(self, folder: Path, own: str, packed: bytes, text: str) -> None:
        new = not (folder / own).exists()
        try:
            write_bytes(folder / own, packed)
            write_text(folder / f"{self.name}.json", text)
        except OSError:
            if new:
                _remove(folder / own)
            raise
        tensors = rf"{re.escape(self.tensors)}-[0-9a-f]{{16}}\.safetensors"
        ours = rf"{tensors}|\.({re.escape(self.name)}\.json|{tensors})\.\w{{8}}"
        for stale in folder.iterdir():
            if re.fullmatch(ours, stale.name) and stale.name != own:
                _remove(stale)

    def read(
        self, folder: str | PathLike, check: Callable[[Path, dict[str, Any]], None] | None = None
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What `write` wrote. Nothing in the files is executed or unpickled, and every changed byte is an error.

        Args:
            folder: where; a link in the place of a file in it is refused.
            check: of the JSON file and its content, before its digest: as of another format, whose digest may be another.

        Raises: MissingFileError where there is none; ModelFileError for one that is not as it was written, or half of one.
        """
        folder, before = Path(folder), None
        while True:
            content = self._read_json(folder, check)
            told = content.pop(self.key, None)
            try:
                return content, self._read_tensors(folder, told)
            except MissingFileError as error:
                if told == before:  # half a pair is none that may be begun anew
                    raise ModelFileError(f"{error}, beside {self.name}.json") from None
                before = told  # a new pair may have been written in between

    def _read_json(self, folder: Path, check: Callable[[Path, dict[str, Any]], None] | None) -> dict[str, Any]:
        file = folder / f"{self.name}.json"
        raw = _read(file, f"the description of {self.what}", (0, self.most))
        self._check_size(file, raw)
        content = from_json(raw, str(file))
        if not isinstance(content, dict):
            refuse(file, f"a JSON {type(content).__name__}", "names with values")
        if check is not None:
            check(file, content)
        sha256 = content.pop("sha256", None)
        line = f' "sha256": {json.dumps(sha256)},\n'.encode()  # the digest is of all other lines of the file
        if (found := digest(raw.replace(line, b"", 1))) != sha256:
            refuse(file, f"content of SHA-256 {found}", f"{sha256!r:.80}: damaged")
        return content

    def _read_tensors(self, folder: Path, told: Any) -> dict[str, Tensor]:
        described = folder / f"{self.name}.json"
        try:
            sha256, size = str(told["sha256"]), int(told["size"])
        except (TypeError, KeyError, ValueError):
            refuse(described, f"{self.key} {told!r:.200}", "sha256 and size")
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):  # it names a file: nothing but a digest may stand there
            refuse(described, f"the sha256 {sha256!r:.100} of {self.key}", "64 hexadecimal digits")
        file = folder / self._tensors_file(sha256)
        raw = _read(file, f"the {self.key} of {self.what}", (size, size), self._check_header)
        if (found := digest(raw)) != sha256:
            refuse(file, f"content of SHA-256 {found}", f"{sha256}: damaged")
        header = raw[8 : 8 + int.from_bytes(raw[:8], "little")]
        self._check_size(file, header)
        from_json(header, str(file))  # of two tensors under one name, safetensors would take the last
        try:
            found_tensors = safetensors.torch.load(raw)
        except Exception as error:  # SafetensorError and others of its own
            raise ModelFileError(f"{file}: not the safetensors expected: {error}") from error
        # own, aligned memory: kernels are chosen by it
        return {name: value.clone() for name, value in found_tensors.items()}

    def _tensors_file(self, sha256: str) -> str:
        return f"{self.tensors}-{sha256[:16]}.safetensors"

    def _check_size(self, file: Path, text: bytes, error: type[Exception] = ModelFileError) -> None:
        """JSON that is read in little time and memory, whatever stands in it."""
        values = text.count(b",") + 8 * (text.count(b"[") + text.count(b"{"))  # a list or dict takes as much as eight
        if len(text) > self.most or values > self.values:
            raise error(
                f"{file}: got {len(text)} bytes and {values} values, expected at most {self.most} and {self.values}: "
                "names and numbers of fewer columns"
            )

    def _check_header(self, file: Path) -> None:
        """A safetensors file tells first how long the names of its tensors are."""
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
        if length > min(self.most, file.stat().st_size - 8):
            refuse(file, f"a header of {length} bytes", f"at most {self.most}, within the file")


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as safetensors; never with the first bytes of a pickle, which a header of 640, 896, 1152 or 1408 bytes has."""
    # cloned: safetensors takes no tensors that share memory
    raw = safetensors.torch.save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()})
    if raw[0] == 0x80 and 2 <= raw[1] <= 5:
        size = int.from_bytes(raw[:8], "little")
        raw = (size + 8).to_bytes(8, "little") + raw[8 : 8 + size] + b" " * 8 + raw[8 + size :]
    return raw


def _read(file: Path, what: str, size: tuple[int, int], check: Callable[[Path], None] | None = None) -> bytes:
    """A file's content, once it is known to be a file and no link, of a size between two numbers of bytes."""
    try:
        found = file.lstat()
        if not stat.S_ISREG(found.st_mode):
            refuse(file, "a link or something else", f"a file, {what}")
        if not size[0] <= found.st_size <= size[1]:
            expected = f"{size[0]}" if size[0] == size[1] else f"at most {size[1]}"
            refuse(file, f"{found.st_size} bytes", f"{expected}: not {what}, or damaged")
        if check is not None:
            check(file)
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"{file}: got nothing there, expected {what}") from None
    except OSError as error:
        raise ModelFileError(f"{file}: {what} could not be read: {error}") from error


def _remove(file: Path) -> None:
    with suppress(OSError):  # it does no harm
        file.unlink(missing_ok=True)


def refuse(file: Path, got: str, expected: str) -> NoReturn:
    """Raise: ModelFileError, of a file."""
    raise ModelFileError(f"{file}: got {got}, expected {expected}")
