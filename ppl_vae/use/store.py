"""A saved thing is a folder: `model.json` in names and numbers, and its tensors as safetensors. Nothing in it can run."""

import json
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

import pyro
import safetensors.torch
import torch
from torch import Tensor

from ppl_vae.errors import MissingFileError, ModelFileError, OptionError
from ppl_vae.files import digest, from_json, locked, read_bytes, to_json, write_bytes, write_text
from ppl_vae.files import pack as pack_tensors
from ppl_vae.use.kinds import anonymous, pack, unpack, untouched_on_failure, wanted
from ppl_vae.use.migrations import migrate

FORMAT_VERSION = 5
KEYS = {"format_version", "versions", "model", "weights", "sha256"}
KEYS_TO_4 = {"format_version", "versions", "recipe", "schema", "dtype", "weights", "sha256"}
MODEL_FILE = "model.json"
MAX_JSON = 16 * 2**20
"""Bytes of model.json, and of the names of tensors."""
MAX_VALUES = 2**19
"""Values in either, each some 100 bytes once it is read: room for 30,000 columns of any type."""
OURS = r"weights-[0-9a-f]{16}\.safetensors|\.(model\.json|weights-[0-9a-f]{16}\.safetensors)\.\w{8}"
"""Files of ours: tensors, and what a killed process had begun to write."""


def save(thing: Any, path: str | PathLike) -> None:
    """Write a model, or what is made of models, to a folder; equal things give equal bytes.

    An interrupted save leaves what was there before. Objects of your own (an encoder, a prior, a likelihood) are kept as
    their tensors and what they are called: `load` says which it wants handed in.

    Args:
        thing: a model of `build`, also after `last_layer_laplace`; a `VAE` or `Autoencoder` of your own parts; a fitted
            `PCA` or `PPCA`; an `Ensemble`, a `Calibration` or a fitted `VAEDetector` of these. An optimiser's state and a
            history are not kept.
        path: a folder; made where absent, other files in it stay.

    Raises:
        OptionError: a thing that is none of these, or changed since it was built, or with options that are no names,
            numbers, rows or models.
        ModelFileError: the folder cannot be written.

    Example:
        >>> import tempfile, numpy as np
        >>> from ppl_vae.model.linear import PCA
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(PCA(2).fit(x), folder)
        ...     load(folder).components.shape
        torch.Size([2, 4])
    """
    folder = Path(path)
    node, tensors = pack(thing)
    weights = pack_tensors(tensors)
    sha256 = digest(weights)
    content = {
        "format_version": FORMAT_VERSION,
        "versions": versions(),
        "model": node,
        "weights": {"sha256": sha256, "size": len(weights)},
    }
    text = to_json({**content, "sha256": digest(to_json(content).encode())})
    _check_size(folder / MODEL_FILE, text.encode(), OptionError)
    try:
        with locked(folder):
            _write(folder, _weights_name(sha256), weights, text)
    except OSError as error:
        raise ModelFileError(f"{folder}: the model could not be written: {error}") from error


def _write(folder: Path, name: str, weights: bytes, text: str) -> None:
    """Both files, or neither; what is stale goes."""
    new = not (folder / name).exists()
    try:
        # the weights' name holds their digest, so that the old model stays whole until model.json is replaced
        write_bytes(folder / name, weights)
        write_text(folder / MODEL_FILE, text)
    except OSError:
        if new:
            _remove(folder / name)
        raise
    for stale in folder.iterdir():
        if re.fullmatch(OURS, stale.name) and stale.name != name:
            _remove(stale)


def load(path: str | PathLike, **own: Any) -> Any:
    """Read what `save` wrote. Nothing from the files is executed or unpickled, and every changed byte is an error.

    Args:
        path: the folder. A link in the place of a file in it is refused.
        own: the objects of your own that the model was made with, under the names of the arguments that they were: of
            `VAE` (encoder, decoder, prior, classes), `Autoencoder`, `Programs` (model, guide, module) or `build`
            (likelihood, prior, posterior; of a likelihood by column those columns). Modules are given the saved values,
            and are as before if anything fails.
            Of a part of an ensemble, calibration or detector, `**{"0/prior": ...}`; an error says what is wanted.

    Returns: the same kind of thing, on the CPU, in the dtypes that it was saved in; its scores, p-values and decisions are
        bit-equal to those before.

    Raises:
        MissingFileError: no folder, or no model in it.
        ModelFileError: a file that is damaged, of a newer format, or not of this format; or objects of your own that the
            saved values do not fit.
        OptionError: other objects of your own than are wanted.

    Example:
        >>> import tempfile, numpy as np, torch, pyro.distributions as dist
        >>> from ppl_vae.model.build import build
        >>> def narrow():
        ...     return dist.Laplace(torch.zeros(2), 0.5).to_event(1)
        >>> vae = build(np.random.RandomState(0).randn(50, 4), latent=2, hidden=(8,), prior=narrow)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(vae, folder)
        ...     load(folder, prior=narrow).recipe["own"]
        {'prior': 'narrow'}
    """
    folder = Path(path)
    file = folder / MODEL_FILE
    content = _read_model_file(folder)
    state = _read_weights(folder, content)
    with _readable(file):
        content, state = migrate(content, state, FORMAT_VERSION)
        node = content["model"]
        asked = wanted(node)
    _check_handed(file, asked, own)
    with _readable(file), untouched_on_failure(own):
        thing = unpack(node, state, own)
        again, tensors = pack(thing)
        # what was not understood, or went to two places, shows here
        if json.dumps(anonymous(again), sort_keys=True) != json.dumps(anonymous(node), sort_keys=True):
            raise ValueError(f"got {node!r:.300}, expected names and numbers of {again!r:.300}")
        if wrong := [name for name in {**tensors, **state} if not _equal(tensors.get(name), state.get(name))]:
            raise ValueError(
                f"got the tensors {sorted(wrong)!r:.300}, which the model does not hold; expected each to be its"
            )
    return thing


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """A forged file can fail in any way; its reader gets one kind of error."""
    try:
        yield
    except Exception as error:
        raise ModelFileError(f"{file}: no model could be made of it: {type(error).__name__}: {error}") from error


def _check_handed(file: Path, asked: dict[str, Any], own: dict[str, Any]) -> None:
    """Every object of the user's that is asked for, and no other."""
    flat = {name: {c: None for c in of} if isinstance(of, dict) else None for name, of in asked.items()}
    given = {
        name: {c: None for c in of} if isinstance(of, dict) and isinstance(flat.get(name), dict) else None
        for name, of in own.items()
    }
    if flat != given:
        raise OptionError(f"{file}: got load({_call(given)}), expected load({_call(asked)})")


def _call(own: dict[str, Any]) -> str:
    """Arguments of `load` as they are written."""

    def what(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{column!r}: {what(of)}" for column, of in value.items()) + "}"
        return "..." if value is None else f"<what was {value!r:.100}>"

    plain = {name: value for name, value in own.items() if name.isidentifier()}
    parts = ", ".join(f"{name!r}: {what(value)}" for name, value in own.items() if name not in plain)
    return ", ".join(["path", *(f"{n}={what(v)}" for n, v in plain.items()), *([f"**{{{parts}}}"] if parts else [])])


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors are the same to the bit, NaN too."""
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = (value.cpu().contiguous().reshape(-1).view(torch.uint8) for value in (a, b))
    return torch.equal(a, b)


def versions() -> dict[str, str]:
    """For a reader's eyes; without "+cpu" and the like, so that equal models give equal bytes on every machine."""
    versions = {"ppl_vae": import_module("ppl_vae").__version__, "torch": torch.__version__, "pyro": pyro.__version__}
    return {name: str(version).partition("+")[0] for name, version in versions.items()}


def _weights_name(sha256: str) -> str:
    return f"weights-{sha256[:16]}.safetensors"


def _remove(file: Path) -> None:
    with suppress(OSError):  # it does no harm
        file.unlink(missing_ok=True)


def _read(file: Path, what: str, size: tuple[int, int], check: Callable[[Path], None] | None = None) -> bytes:
    """A file's content, once it is known to be a file and no link, of a size between two numbers of bytes."""
    try:
        found = file.lstat()
        if not stat.S_ISREG(found.st_mode):
            _refuse(file, "a link or something else", f"a file, {what}")
        if not size[0] <= found.st_size <= size[1]:
            expected = f"{size[0]}" if size[0] == size[1] else f"at most {size[1]}"
            _refuse(file, f"{found.st_size} bytes", f"{expected}: not {what}, or damaged")
        if check is not None:
            check(file)
        return read_bytes(file)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"{file}: got nothing there, expected {what}") from None
    except OSError as error:
        raise ModelFileError(f"{file}: {what} could not be read: {error}") from error


def _check_size(file: Path, text: bytes, error: type[Exception] = ModelFileError) -> None:
    """JSON that is read in little time and memory, whatever stands in it."""
    values = text.count(b",") + 8 * (text.count(b"[") + text.count(b"{"))  # a list or dict takes as much as eight
    if len(text) > MAX_JSON or values > MAX_VALUES:
        raise error(
            f"{file}: got {len(text)} bytes and {values} values, expected at most {MAX_JSON} and {MAX_VALUES}: "
            "names and numbers of fewer columns"
        )


def _read_model_file(folder: Path) -> dict[str, Any]:
    """The content of model.json, known to be what `save` wrote."""
    file = folder / MODEL_FILE
    raw = _read(file, "the description of a saved model", (0, MAX_JSON))
    _check_size(file, raw)
    content = from_json(raw, str(file))
    if not isinstance(content, dict) or not isinstance(content.get("format_version"), int):
        _refuse(file, f"a JSON {type(content).__name__} without a format_version", f"format_version {FORMAT_VERSION}")
    version = content["format_version"]
    if version > FORMAT_VERSION:
        _refuse(file, f"the newer format_version {version}", f"at most {FORMAT_VERSION}; upgrade ppl_vae")
    if version < 1:
        _refuse(file, f"format_version {version}", f"1 to {FORMAT_VERSION}")
    keys = KEYS if version > 4 else KEYS_TO_4
    if set(content) != keys:
        _refuse(file, f"the keys {sorted(content)!r:.300}", str(sorted(keys)))
    # the digest is of all other lines of the file
    line = f' "sha256": {json.dumps(content["sha256"])},\n'.encode()
    found = digest(raw.replace(line, b"", 1))
    if found != content["sha256"]:
        _refuse(file, f"content of SHA-256 {found}", f"{content['sha256']!r:.80}: damaged")
    return content


def _read_weights(folder: Path, content: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of the weights file, known to be those that `save` wrote."""
    weights = content["weights"]
    try:
        sha256, size = str(weights["sha256"]), int(weights["size"])
    except (TypeError, KeyError, ValueError) as error:
        raise ModelFileError(
            f"{folder / MODEL_FILE}: got weights {weights!r:.200}, expected sha256 and size"
        ) from error
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):  # it names a file: nothing but a digest may stand there
        _refuse(folder / MODEL_FILE, f"the weights' sha256 {sha256!r:.100}", "64 hexadecimal digits")
    file = folder / _weights_name(sha256)
    raw = _read(file, "the weights of a saved model", (size, size), _check_header)
    if digest(raw) != sha256:
        _refuse(file, f"content of SHA-256 {digest(raw)}", f"{sha256}: damaged")
    header = raw[8 : 8 + int.from_bytes(raw[:8], "little")]
    _check_size(file, header)
    from_json(header, str(file))  # of two tensors under one name, safetensors would take the last
    try:
        state = safetensors.torch.load(raw)
    except Exception as error:  # SafetensorError and others of its own
        raise ModelFileError(f"{file}: not the safetensors expected: {error}") from error
    return {name: value.clone() for name, value in state.items()}  # own, aligned memory: kernels are chosen by it


def _check_header(file: Path) -> None:
    """A safetensors file tells first how long the names of its tensors are."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
    if length > min(MAX_JSON, file.stat().st_size - 8):
        _refuse(file, f"a header of {length} bytes", f"at most {MAX_JSON}, within the file")


def _refuse(file: Path, got: str, expected: str) -> NoReturn:
    raise ModelFileError(f"{file}: got {got}, expected {expected}")
