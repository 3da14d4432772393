"""One cell of a comparison, a candidate under one seed: what is known of it, and its two files."""

import re
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pyro
import safetensors.numpy
import safetensors.torch
import torch

from ppl_vae.criticism.described import attributes, described, own
from ppl_vae.data.tables import read
from ppl_vae.errors import MissingFileError, ModelFileError
from ppl_vae.files import digest, from_json, read_bytes, to_json, write_bytes, write_text
from ppl_vae.infer.draws import each_block

FORMAT = "ppl_vae comparison cell 1"
POINTWISE = ("log_p", "mcse", "doubtful", "bound", "k_hat")
FIGURES = ("seconds", "gradients", "epochs", "stopped", "active", "latent", "num_draws")


class Cell(NamedTuple):
    """A candidate fitted under one seed, or why it could not be.

    Attributes:
        candidate, seed: which.
        figures: those of `FIGURES`; empty where it failed.
        pointwise: {name of `POINTWISE`: (n,) float64} of the test rows, in nats of the data in its own units; empty where it
            failed.
        error: why it failed, None where it did not.
    """

    candidate: str
    seed: int
    figures: dict[str, Any]
    pointwise: dict[str, np.ndarray]
    error: str | None = None


# ---- the key: two cells share one only where they are the same fit of the same model to the same data


def key(content: dict[str, Any]) -> str:
    """SHA-256 of whatever decides what a cell's figures are, and of this library's version."""
    return digest(to_json(described({**content, "version": import_module("ppl_vae").__version__})).encode())


def fingerprint(vae: Any, data: Any) -> dict[str, Any]:
    """What a fresh model is: structure, weights, columns, what its parts, plain functions too, do to a few rows, and the
    code and plain attributes of those that the user wrote, which may matter in training alone.

    Raises: OptionError for an attribute whose content cannot be told.
    """
    few = vae.batch(data).rows(slice(4))
    (densities,) = each_block(vae, few, 2, 0, lambda block: (block.log_lik, block.log_prior, block.log_q))
    state = {name: value.detach().cpu().contiguous().clone() for name, value in vae.state_dict().items()}
    return {
        "structure": re.sub(r" at 0x[0-9a-f]+", "", str(vae)),
        "recipe": repr(getattr(vae, "recipe", None)),
        "schema": repr(vae.schema),
        "parts": described([_own_part(name, part) for name, part in vae.named_modules()]),
        "state": digest(safetensors.torch.save(state)),
        # to few digits: another machine may round otherwise
        "densities": [f"{value:.4g}" for part in densities for value in part.flatten().tolist()],
    }


def _own_part(name: str, part: Any) -> list[Any]:
    """Of the user's own parts class and plain attributes, of the library's the functions among these."""
    plain = attributes(part)
    if own(type(part).__module__):
        return [name, type(part), plain]
    return [name, {key: value for key, value in plain.items() if isinstance(value, FunctionType)}]


def data_digest(data: Any) -> str:
    """SHA-256 of rows as read: names, levels and values."""
    table = read(data)
    head = repr((table.names, table.shape, table.columns, str(table.values.dtype)))
    return digest(head.encode() + np.ascontiguousarray(table.values).tobytes())


def versions() -> dict[str, str]:
    """Of this library and those that the figures come from, for a reader's eyes."""
    own = import_module("ppl_vae").__version__
    return {"ppl_vae": own, "torch": str(torch.__version__), "pyro": pyro.__version__, "numpy": np.__version__}


# ---- the files


def stem(folder: Path, candidate: str, seed: int, key: str) -> Path:
    """The path of a cell's files without their endings."""
    return folder / f"{re.sub(r'[^A-Za-z0-9_.=-]+', '_', candidate)[:80]}-{seed}-{key[:16]}"


def save(path: Path, key: str, cell: Cell) -> None:
    """Write a cell: figures as JSON, after the numbers row by row as safetensors, so that what has figures is whole."""
    arrays = safetensors.numpy.save(cell.pointwise)
    content = {
        "format": FORMAT,
        "key": key,
        "versions": versions(),
        "candidate": cell.candidate,
        "seed": cell.seed,
        "figures": cell.figures,
        "error": cell.error,
        "pointwise": {"sha256": digest(arrays)},
    }
    write_bytes(path.with_name(path.name + ".safetensors"), arrays)
    write_text(path.with_name(path.name + ".json"), to_json({**content, "sha256": digest(to_json(content).encode())}))


def load(path: Path, key: str) -> Cell | None:
    """The cell that `save` wrote there under this key; None where there is none.

    Raises: ModelFileError naming the file, for one that is damaged or of another origin.
    """
    file = path.with_name(path.name + ".json")
    try:
        raw = read_bytes(file)
    except MissingFileError:
        return None
    content = from_json(raw, str(file))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        _refuse(file, "another kind of file", f"a {FORMAT}")
    rest = {name: value for name, value in content.items() if name != "sha256"}
    if digest(to_json(rest).encode()) != content.get("sha256"):
        _refuse(file, "content that is not what was saved", "it unchanged")
    if content["key"] != key:
        _refuse(file, f"the cell of candidate {content['candidate']!r} with the key {content['key']}", f"the key {key}")
    arrays = path.with_name(path.name + ".safetensors")
    try:
        packed = read_bytes(arrays)
    except MissingFileError:
        _refuse(arrays, "nothing there", f"the numbers of {file.name}")
    if digest(packed) != content["pointwise"]["sha256"]:
        _refuse(arrays, "content that is not what was saved", "it unchanged")
    pointwise = {} if content["error"] is not None else safetensors.numpy.load(packed)
    return Cell(content["candidate"], content["seed"], content["figures"], pointwise, content["error"])


def _refuse(file: Path, got: str, expected: str) -> NoReturn:
    raise ModelFileError(f"{file}: got {got}, expected {expected}; delete it to have the cell run again")
