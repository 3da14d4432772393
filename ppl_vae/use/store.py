"""A saved thing is a folder: `model.json` in names and numbers, and its tensors as safetensors. Nothing in it can run."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppl_vae.errors import ModelFileError, OptionError
from ppl_vae.pairs import Pair, refuse
from ppl_vae.use.kinds import anonymous, pack, unpack, untouched_on_failure, wanted
from ppl_vae.use.migrations import migrate
from ppl_vae.versions import versions

FORMAT_VERSION = 5
KEYS = {"format_version", "versions", "model", "weights", "sha256"}
KEYS_TO_4 = {"format_version", "versions", "recipe", "schema", "dtype", "weights", "sha256"}
MODEL_FILE = "model.json"
PAIR = Pair("a saved model", "model", "weights", key="weights", most=16 * 2**20, values=2**19)
"""Its values are room for 30,000 columns of any type."""


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
    node, tensors = pack(thing)
    PAIR.write(path, {"format_version": FORMAT_VERSION, "versions": versions(), "model": node}, tensors)


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
    file = Path(path) / MODEL_FILE
    content, state = PAIR.read(path, _check_format)
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


def _check_format(file: Path, content: dict[str, Any]) -> None:
    """A model.json of a format that this version knows."""
    version = content.get("format_version")
    if not isinstance(version, int):
        refuse(file, "names and numbers without a format_version", f"format_version {FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        refuse(file, f"the newer format_version {version}", f"at most {FORMAT_VERSION}; upgrade ppl_vae")
    if version < 1:
        refuse(file, f"format_version {version}", f"1 to {FORMAT_VERSION}")
    keys = KEYS if version > 4 else KEYS_TO_4
    if set(content) != keys:
        refuse(file, f"the keys {sorted(content)!r:.300}", str(sorted(keys)))
