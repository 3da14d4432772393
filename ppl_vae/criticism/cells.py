"""One cell of a comparison, a candidate under one seed: what is known of it, and its two files."""

import re
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch

from ppl_vae.criticism.described import attributes, described, own
from ppl_vae.data.tables import read
from ppl_vae.errors import MissingFileError, ModelFileError
from ppl_vae.files import digest, to_json
from ppl_vae.infer.draws import each_block
from ppl_vae.pairs import Pair, pack, refuse
from ppl_vae.versions import versions

FORMAT = "ppl_vae comparison cell 2"
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
    return {
        "structure": re.sub(r" at 0x[0-9a-f]+", "", str(vae)),
        "recipe": repr(getattr(vae, "recipe", None)),
        "schema": repr(vae.schema),
        "parts": described([_own_part(name, part) for name, part in vae.named_modules()]),
        "state": digest(pack(vae.state_dict())),
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


# ---- the files


def stem(folder: Path, candidate: str, seed: int, key: str) -> Path:
    """The path of a cell's files without their endings."""
    return folder / f"{re.sub(r'[^A-Za-z0-9_.=-]+', '_', candidate)[:80]}-{seed}-{key[:16]}"


def save(path: Path, key: str, cell: Cell) -> None:
    """Write a cell: figures as JSON, the numbers row by row as safetensors."""
    content = {
        "format": FORMAT,
        "key": key,
        "versions": versions(),
        "candidate": cell.candidate,
        "seed": cell.seed,
        "figures": cell.figures,
        "error": cell.error,
    }
    pointwise = {name: torch.from_numpy(values) for name, values in cell.pointwise.items()}
    _pair(path).write(path.parent, content, pointwise)


def load(path: Path, key: str) -> Cell | None:
    """The cell that `save` wrote there under this key; None where there is none.

    Raises: ModelFileError naming the file, for one that is damaged or of another origin.
    """

    def check(file: Path, content: dict[str, Any]) -> None:
        if content.get("format") != FORMAT:
            refuse(file, "another kind of file", f"a {FORMAT}")
        if content.get("key") != key:
            other = f"the cell of candidate {content.get('candidate')!r} with the key {content.get('key')}"
            refuse(file, other, f"the key {key}")

    try:
        content, tensors = _pair(path).read(path.parent, check)
    except MissingFileError:
        return None
    except ModelFileError as error:
        raise ModelFileError(f"{error}; delete it to have the cell run again") from None
    pointwise = {name: value.numpy() for name, value in tensors.items()}
    return Cell(content["candidate"], content["seed"], content["figures"], pointwise, content["error"])


def _pair(path: Path) -> Pair:
    return Pair("a cell", path.name, path.name)
