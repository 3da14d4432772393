"""A model on disk: `model.json` in names and numbers, and its weights as safetensors. Nothing in it can run."""

import math
import re
from collections.abc import Callable
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

import pyro
import safetensors.torch
import torch
from torch import Tensor

from ppl_vae.data.columns import TYPES
from ppl_vae.data.schema import Schema
from ppl_vae.errors import MissingFileError, ModelFileError, OptionError
from ppl_vae.files import digest, from_json, read_bytes, to_json, write_bytes, write_text
from ppl_vae.infer.scope import unchecked
from ppl_vae.model.build import assemble
from ppl_vae.model.linear import PCA, PPCA
from ppl_vae.model.vae import VAE
from ppl_vae.use.migrations import migrate

FORMAT_VERSION = 4
KEYS = {"format_version", "versions", "recipe", "schema", "dtype", "weights", "sha256"}
MODEL_FILE = "model.json"
MAX_MODEL_FILE = 64 * 2**20
"""Bytes: room for the names and scalings of about a million columns."""


def _build(recipe: dict[str, Any], schema: Schema) -> VAE:
    # JSON knows lists only; in a recipe every sequence is a tuple
    return assemble(schema, {key: tuple(v) if isinstance(v, list) else v for key, v in recipe.items()})


def _pca(recipe: dict[str, Any], schema: Schema) -> VAE:
    return PCA(**recipe).allocate(schema.width, schema)


def _ppca(recipe: dict[str, Any], schema: Schema) -> VAE:
    return PPCA(**recipe).allocate(schema.width, schema)


RECIPES: dict[str, Callable[[dict[str, Any], Schema], VAE]] = {"build": _build, "pca": _pca, "ppca": _ppca}


def _made(recipe: dict[str, Any], schema: Schema) -> VAE:
    """The model of a recipe without values: no memory and no random numbers until its weights are known to fit."""
    with torch.device("meta"), unchecked():  # which looks at values
        return RECIPES[recipe["kind"]]({k: v for k, v in recipe.items() if k != "kind"}, schema)


def save(vae: VAE, path: str | PathLike) -> None:
    """Write a model that `build` made by names, a `PCA` or a `PPCA` to a folder; equal models give equal bytes.

    An interrupted save leaves the model that was there before.

    Args:
        vae: the model; what is kept is its recipe, schema and weights, not an optimiser's state or a history.
        path: a folder; made where absent, other files in it stay.

    Raises:
        OptionError: a model without a recipe, or changed since it was built, or with weights of several dtypes.
        ModelFileError: the folder cannot be written.

    Example:
        >>> import tempfile, numpy as np
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(PCA(2).fit(x), folder)
        ...     load(folder).components.shape
        torch.Size([2, 4])
    """
    folder = Path(path)
    recipe, schema = _recipe(vae)
    state = {name: value.detach().cpu().contiguous().clone() for name, value in vae.state_dict().items()}
    weights = safetensors.torch.save(state)
    sha256 = digest(weights)
    content = {
        "format_version": FORMAT_VERSION,
        "versions": _versions(),
        "recipe": recipe,
        "schema": schema.to_dict(),
        "dtype": _dtype(state),
        "weights": {"sha256": sha256, "size": len(weights)},
    }
    name = _weights_name(sha256)
    text = to_json({**content, "sha256": digest(to_json(content).encode())})
    try:
        # the weights' name holds their digest, so that the old model stays whole until model.json is replaced
        write_bytes(folder / name, weights)
        write_text(folder / MODEL_FILE, text)
        for stale in folder.iterdir():
            if re.fullmatch(r"weights-[0-9a-f]{16}\.safetensors", stale.name) and stale.name != name:
                stale.unlink()
    except OSError as error:
        raise ModelFileError(f"{folder}: the model could not be written: {error}") from error


def load(path: str | PathLike) -> VAE:
    """Read a model that `save` wrote. Nothing from the files is executed or unpickled, and every changed byte is an error.

    Args:
        path: the folder.

    Returns: the model, on the CPU, in the dtype that it was saved in; its scores are bit-equal to those before.

    Raises:
        MissingFileError: no folder, or no model in it.
        ModelFileError: a file that is damaged, of a newer format, or not of this format.
    """
    folder = Path(path)
    content = _read_model_file(folder)
    state = _read_weights(folder, content)
    name = folder / MODEL_FILE
    try:
        content, state = migrate(content, state, FORMAT_VERSION)
        schema = _schema(content["schema"])
        recipe = dict(content["recipe"])
        vae = _made(recipe, schema)
        if vae.recipe is None or to_json(vae.recipe) != to_json(recipe):
            raise ValueError(f"got the recipe {recipe!r:.300}, expected names and numbers that `build` knows")
        vae.load_state_dict(state, strict=True, assign=True)
        if _dtype(state) != content["dtype"]:
            raise ValueError(f"got weights of {_dtype(state)}, expected {content['dtype']!r}")
    except Exception as error:  # a forged file can fail in any way; its reader gets one kind of error
        raise ModelFileError(f"{name}: no model could be made of it: {type(error).__name__}: {error}") from error
    return vae


def _recipe(vae: Any) -> tuple[dict[str, Any], Schema]:
    """The recipe and schema of a model that can be made again from them."""
    recipe, schema = getattr(vae, "recipe", None), getattr(vae, "schema", None)
    if recipe is None or schema is None:
        raise OptionError(
            f"save: got a {type(vae).__name__} without a recipe, expected a model that build() made by names, or a "
            "fitted PCA or PPCA; of a model made from your own objects save the state_dict() and your code"
        )
    again = _made(recipe, schema)
    shapes = [{name: value.shape for name, value in m.state_dict().items()} for m in (vae, again)]
    if shapes[0] != shapes[1] or str(vae) != str(again):
        raise OptionError(
            f"save: got a {type(vae).__name__} whose parts were changed after it was built, expected those of its recipe "
            f"{recipe}; save the state_dict() and your code instead"
        )
    return recipe, schema


def _versions() -> dict[str, str]:
    """For a reader's eyes; without "+cpu" and the like, so that equal models give equal bytes on every machine."""
    versions = {"ppl_vae": import_module("ppl_vae").__version__, "torch": torch.__version__, "pyro": pyro.__version__}
    return {name: str(version).partition("+")[0] for name, version in versions.items()}


def _dtype(state: dict[str, Tensor]) -> str:
    """The one floating dtype of some weights, by torch's name."""
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in state.values() if value.is_floating_point()})
    if len(dtypes) != 1:
        raise OptionError(f"weights: got the dtypes {dtypes}, expected one")
    return dtypes[0]


def _weights_name(sha256: str) -> str:
    return f"weights-{sha256[:16]}.safetensors"


def _read(file: Path, what: str, size: tuple[int, int]) -> bytes:
    """A file's content, once its size is known to lie between two numbers of bytes."""
    try:
        found = file.stat().st_size
        if not size[0] <= found <= size[1]:
            expected = f"{size[0]}" if size[0] == size[1] else f"at most {size[1]}"
            raise ModelFileError(f"{file}: got {found} bytes, expected {expected}: not {what}, or damaged")
        return read_bytes(file)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"{file}: got nothing there, expected {what}") from None
    except OSError as error:
        raise ModelFileError(f"{file}: {what} could not be read: {error}") from error


def _read_model_file(folder: Path) -> dict[str, Any]:
    """The content of model.json, known to be what `save` wrote."""
    file = folder / MODEL_FILE
    raw = _read(file, "the description of a saved model", (0, MAX_MODEL_FILE))
    content = from_json(raw, str(file))
    if not isinstance(content, dict) or not isinstance(content.get("format_version"), int):
        _refuse(file, f"a JSON {type(content).__name__} without a format_version", f"format_version {FORMAT_VERSION}")
    version = content["format_version"]
    if version > FORMAT_VERSION:
        _refuse(file, f"the newer format_version {version}", f"at most {FORMAT_VERSION}; upgrade ppl_vae")
    if version < 1:
        _refuse(file, f"format_version {version}", f"1 to {FORMAT_VERSION}")
    if set(content) != KEYS:
        _refuse(file, f"the keys {sorted(content)!r:.300}", str(sorted(KEYS)))
    rest = {key: value for key, value in content.items() if key != "sha256"}
    try:
        canonical, found = to_json(content).encode(), digest(to_json(rest).encode())
    except ValueError as error:  # NaN and infinity are no JSON
        raise ModelFileError(f"{file}: got {error}, expected finite numbers") from error
    if found != content["sha256"] or canonical != raw:
        _refuse(
            file, f"content of SHA-256 {found}", f"{content['sha256']!r:.80} in the spelling that was saved: damaged"
        )
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
    raw = _read(file, "the weights of a saved model", (size, size))
    if digest(raw) != sha256:
        _refuse(file, f"content of SHA-256 {digest(raw)}", f"{sha256}: damaged")
    try:
        state = safetensors.torch.load(raw)
    except Exception as error:  # SafetensorError and others of its own
        raise ModelFileError(f"{file}: not the safetensors expected: {error}") from error
    return {name: value.clone() for name, value in state.items()}  # own, aligned memory: kernels are chosen by it


def _schema(state: Any) -> Schema:
    """A schema whose every part is of the right type and size."""
    return _checked(Schema.from_dict(state), state)


def _checked(schema: Schema, state: Any) -> Schema:
    if schema.covariates is not None:
        _checked(schema.covariates, state)
    d = len(schema.names)
    columns = (*schema.names, *(schema.covariates.names if schema.covariates else ()))
    good = (
        all(isinstance(name, str) for name in schema.names)
        and isinstance(schema.kind, str)
        and all(isinstance(size, int) and size > 0 for size in schema.shape)
        and math.prod(schema.shape) == d
        and schema.precision in ("float32", "float64")
        and all(
            column is None or (len(column) == d and all(isinstance(number, int | float) for number in column))
            for column in (schema.loc, schema.scale, schema.log_loc, schema.log_scale)
        )
        and all(number > 0 for number in (*(schema.scale or ()), *(schema.log_scale or ())))
        and (schema.types is None or (len(schema.types) == d and all(name in TYPES for name in schema.types)))
        and all(
            column is None or (len(column) == d and all(isinstance(name, str) for name in column))
            for column in (schema.likelihoods, schema.dtypes)
        )
        and (schema.levels is None or len(schema.levels) == d)
        and all(_are_levels(levels) for levels in schema.levels or () if levels is not None)
        and set(schema.nullable) <= set(schema.names)
        and all(
            beside is None
            or (beside.name not in columns and isinstance(beside.name, str) and _are_levels(beside.levels))
            for beside in (schema.group, schema.label)
        )
    )
    if not good:
        raise ValueError(f"got the schema {state!r:.300}, expected names, shape and scaling of the same columns")
    return schema


def _are_levels(levels: Any) -> bool:
    return isinstance(levels, tuple) and all(isinstance(level, str | bool | int | float) for level in levels)


def _refuse(file: Path, got: str, expected: str) -> NoReturn:
    raise ModelFileError(f"{file}: got {got}, expected {expected}")
