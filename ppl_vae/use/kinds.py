"""What can be saved: each kind of thing as names and numbers, tensors, and further things that it is made of."""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ppl_vae.criticism.calibration import Calibration, DetectorFold, Fold
from ppl_vae.criticism.conformal import RULES
from ppl_vae.data.columns import TYPES
from ppl_vae.data.schema import Schema
from ppl_vae.errors import OptionError, called, choose
from ppl_vae.infer.ensemble import Ensemble
from ppl_vae.infer.laplace import uncertain
from ppl_vae.infer.scope import own_parameters, unchecked
from ppl_vae.model.autoencoder import Autoencoder
from ppl_vae.model.build import assemble, own_parts
from ppl_vae.model.linear import PCA, PPCA
from ppl_vae.model.programs import Programs
from ppl_vae.model.vae import VAE
from ppl_vae.use.values import Beside, plain, tuples

Tensors = dict[str, Tensor]
Node = dict[str, Any]
"""A thing in a file: its "kind", the names and numbers of that kind, and in "parts" the nodes of what it is made of."""


class Packed(NamedTuple):
    """A thing taken apart: names and numbers, tensors, and further things by name."""

    content: dict[str, Any]
    tensors: Tensors
    parts: dict[str, Any] = {}  # noqa: RUF012


class Kind(NamedTuple):
    """How a kind of thing is taken apart, and made again of the same and of what the user handed in."""

    pack: Callable[[Any], Packed]
    unpack: Callable[[Packed, dict[str, Any]], Any]


DEPTH, PARTS = 8, 10_000
"""Of things made of things, at most."""


def pack(thing: Any) -> tuple[Node, Tensors]:
    """A thing as a node, and its tensors: of a part under the part's name and a slash.

    Raises: OptionError for a thing that cannot be saved.
    """
    kind = _kind(thing)
    packed = KINDS[kind].pack(thing)
    node, tensors, parts = {"kind": kind, **packed.content}, dict(packed.tensors), {}
    for name, part in packed.parts.items():
        parts[name], own = pack(part)
        tensors |= {f"{name}/{key}": value for key, value in own.items()}
    return node | ({"parts": parts} if parts else {}), tensors


def unpack(node: Any, tensors: Tensors, handed: dict[str, Any], depth: int = DEPTH) -> Any:
    """The thing that was packed.

    Args:
        handed: objects of the user's by the names of `wanted`.
    """
    if not isinstance(node, dict) or depth == 0:
        raise ValueError(f"got {node!r:.100}, expected things of at most {DEPTH} levels")
    kind, nodes = choose("kind", node.get("kind"), KINDS), node.get("parts", {})
    (own, below), (given, given_below) = _split(tensors, nodes), _split(handed, nodes)
    parts = {
        name: unpack(part, below.get(name, {}), given_below.get(name, {}), depth - 1) for name, part in nodes.items()
    }
    content = {name: value for name, value in node.items() if name not in ("kind", "parts")}
    return kind.unpack(Packed(content, own, parts), given)


def wanted(node: Any, depth: int = DEPTH) -> dict[str, Any]:
    """The user's objects that a node was made with: what each was called, by argument, of parts under "part/argument"."""
    if not isinstance(node, dict) or depth == 0:
        return {}
    own, parts = node.get("own", {}), node.get("parts", {})
    if not isinstance(own, dict) or not isinstance(parts, dict) or len(parts) > PARTS:
        raise ValueError(f"got the objects {own!r:.100} and the parts {parts!r:.100}, expected {PARTS} by name at most")
    below = {f"{name}/{key}": value for name, part in parts.items() for key, value in wanted(part, depth - 1).items()}
    return own | below


def anonymous(node: Any) -> Any:
    """A node without what the user's objects are called, which may change."""
    if not isinstance(node, dict):
        return node
    new = {"own": lambda of: sorted(of) if isinstance(of, dict) else "", "parts": anonymous}
    return {key: {n: new[key](v) for n, v in value.items()} if key in new else value for key, value in node.items()}


def _split(values: dict[str, Any], parts: Any) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Values of a thing itself, and those of each of its parts."""
    own: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        head, _, rest = name.partition("/")
        if head in parts:
            below.setdefault(head, {})[rest] = value
        else:
            own[name] = value
    return own, below


def _kind(thing: Any) -> str:
    recipe = getattr(thing, "recipe", None)
    if isinstance(thing, VAE) and recipe is not None:
        return recipe["kind"]
    name = f"{type(thing).__module__}.{type(thing).__qualname__}"
    if name not in OF:
        raise OptionError(
            f"save: got a {type(thing).__name__}, expected a model that build() made, a VAE or Autoencoder of your own "
            "parts, Programs, a fitted PCA or PPCA, an Ensemble, a Calibration or a fitted VAEDetector"
        )
    return OF[name]


def _ordered(parts: dict[str, Any]) -> list[Any]:
    return [parts[str(place)] for place in range(len(parts))]


def _numbered(things: Any) -> dict[str, Any]:
    return {str(place): thing for place, thing in enumerate(things)}


# ---- models of a recipe


def _build(recipe: dict[str, Any], schema: Schema, own: dict[str, Any]) -> VAE:
    likelihood = own.get("likelihood")
    if isinstance(likelihood, dict):
        own = own | {"likelihood": {**recipe.get("likelihood", {}), **likelihood}}
    # JSON knows lists only; in a recipe every sequence is a tuple
    return assemble(schema, {key: tuple(v) if isinstance(v, list) else v for key, v in recipe.items()} | own)


RECIPES: dict[str, Callable[[dict[str, Any], Schema, dict[str, Any]], VAE]] = {
    "build": _build,
    "laplace": lambda recipe, schema, own: uncertain(_build(recipe, schema, own)),
    "pca": lambda recipe, schema, own: PCA(**recipe).allocate(schema.width, schema),
    "ppca": lambda recipe, schema, own: PPCA(**recipe).allocate(schema.width, schema),
}


def _made(kind: str, recipe: dict[str, Any], schema: Schema, own: dict[str, Any], tensors: Tensors) -> VAE:
    """The model of a recipe without values: no memory and no random numbers until its weights are known to fit."""
    if "likelihood" in own:
        own = own | {"likelihood": _with_values(own["likelihood"], {})}
    _check_sizes(recipe, tensors)
    with Bounded(tensors), torch.device("meta"), unchecked():  # which looks at values
        return RECIPES[kind](recipe, schema, own)


def _with_values(part: Any, known: dict[int, Any]) -> Any:
    """A likelihood of the user's makes its module with values; the same for the same, whose columns are one family."""
    if isinstance(part, dict):
        return {name: _with_values(of, known) for name, of in part.items()}
    if not callable(part) or (isinstance(part, type) and issubclass(part, torch.distributions.Distribution)):
        return part

    @functools.wraps(part)
    def made(*args: Any, **options: Any) -> Any:
        with torch.device("cpu"):
            return part(*args, **options)

    return known.setdefault(id(part), made)


class Bounded(TorchFunctionMode):
    """Refuses to lay out more than the tensors of a file can be the weights of: a few numbers may ask for any amount.

    Args:
        tensors: of the file.
    """

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self.calls = 2000 + 100 * len(tensors)
        self.numbers = 2**22 + 128 * sum(value.numel() for value in tensors.values())

    def __torch_function__(self, call: Any, types: Any, args: Any = (), options: Any = None) -> Any:
        options = options or {}
        self.calls -= 1
        # the masks of flows have values; what is made of some is as large as they are together, or repeated
        real = [value.shape for value in args if isinstance(value, Tensor) and not value.is_meta]
        if real:
            self.numbers -= options.get("repeats", 1) * _together(real)
        if self.calls < 0 or self.numbers < 0:
            raise ValueError("got a recipe of more layers or numbers than there are weights")
        return call(*args, **options)


def _together(shapes: list[torch.Size]) -> int:
    try:
        return torch.broadcast_shapes(*shapes).numel()
    except RuntimeError:
        return sum(shape.numel() for shape in shapes)


def _check_sizes(recipe: dict[str, Any], tensors: Tensors) -> None:
    """Neighbouring layers have a matrix of weights between them, which has to be there."""
    most, latent = sum(value.numel() for value in tensors.values()), recipe.get("latent", 1)
    for name in SIZES:
        sizes = recipe.get(name, ())
        sizes = list(sizes) if isinstance(sizes, list | tuple) else [sizes]
        chain = [size for size in (1, *sizes, latent if name.endswith("hidden") else 1) if isinstance(size, int)]
        if len(sizes) > len(tensors) or any(a * b > most for a, b in zip(chain, chain[1:])):
            raise ValueError(
                f"got {name}={sizes!r:.100}, latent={latent!r:.100}: more than the {most} numbers that there are"
            )


SIZES = ("latent", "hidden", "channels", "flow_hidden", "prior_hidden", "components", "context", "rank", "transforms")


def _pack_made(vae: Any) -> Packed:
    """A model with a recipe, if it is still what its recipe makes."""
    recipe, tensors = {k: v for k, v in vae.recipe.items() if k not in ("kind", "own")}, _state(vae)
    own = vae.recipe.get("own", {})
    again = _made(vae.recipe["kind"], recipe, vae.schema, own_parts(vae) if own else {}, tensors)
    shapes = [{name: value.shape for name, value in m.state_dict().items()} for m in (vae, again)]
    if shapes[0] != shapes[1] or str(vae) != str(again):
        raise OptionError(
            f"save: got a {type(vae).__name__} whose parts were changed after it was built, expected those of its recipe "
            f"{recipe}; save the state_dict() and your code instead"
        )
    content = {"recipe": plain("recipe", recipe), "schema": vae.schema.to_dict()}
    return Packed(content | ({"own": own} if own else {}), tensors)


def _unpack_made(kind: str) -> Callable[[Packed, dict[str, Any]], Any]:
    def unpack(packed: Packed, handed: dict[str, Any]) -> Any:
        content, own = packed.content, {name: handed[name] for name in packed.content.get("own", {})}
        vae = _made(kind, dict(content["recipe"]), _schema(content["schema"]), own, packed.tensors)
        return _filled(vae, packed.tensors)

    return unpack


# ---- models of the user's own parts

OWN = {"vae": ("encoder", "decoder", "prior", "classes"), "autoencoder": ("encoder", "decoder")}


def _pack_own(vae: Any) -> Packed:
    given = {name: getattr(vae, name) for name in OWN[_kind(vae)] if getattr(vae, name) is not None}
    own = {name: called(part.net if isinstance(vae, Autoencoder) else part) for name, part in given.items()}
    schema = vae.schema
    return Packed({"own": own, "schema": None if schema is None else schema.to_dict()}, _state(vae))


def _unpack_own(make: Callable[..., VAE]) -> Callable[[Packed, dict[str, Any]], Any]:
    def unpack(packed: Packed, handed: dict[str, Any]) -> Any:
        schema = packed.content["schema"]
        own = {name: handed[name] for name in packed.content["own"]}
        return _filled(make(**own, schema=None if schema is None else _schema(schema)), packed.tensors)

    return unpack


PROGRAMS = ("model", "guide", "module")


def _pack_programs(programs: Any) -> Packed:
    given = dict(zip(PROGRAMS, (*programs.functions, programs.module)))
    schema = programs.schema
    content = {
        "own": {name: called(part) for name, part in given.items()},
        "obs": programs.obs,
        "local": list(programs.local),
        "schema": None if schema is None else schema.to_dict(),
    }
    return Packed(content, _state(programs))


def _unpack_programs(packed: Packed, handed: dict[str, Any]) -> Programs:
    content, schema = packed.content, packed.content["schema"]
    own = {name: handed[name] for name in content["own"]}
    of = Programs(**own, obs=content["obs"], local=content["local"], schema=None if schema is None else _schema(schema))
    return _filled(of, packed.tensors)


# ---- weights


def _state(vae: Any) -> Tensors:
    state = vae.state_dict()
    if wrong := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise OptionError(f"save: got the state {wrong} of your modules, which is no tensor, expected tensors")
    if own := own_parameters(vae):
        raise OptionError(f"save: got the parameters {own} in Pyro's store, by pyro.param; expected those of modules")
    return {name: value.detach() for name, value in state.items()}


def _filled(vae: Any, tensors: Tensors) -> Any:
    """The model with these values; those of the user's modules are put into the tensors that they have."""
    there = vae.state_dict()
    if wrong := sorted(there.keys() ^ tensors.keys()):
        raise ValueError(f"got tensors other than those of the model: {wrong!r:.300}")
    for name, own in there.items():
        new = tensors[name]
        kinds = (own.is_floating_point(), new.is_floating_point()) if own.is_meta else (own.dtype, new.dtype)
        if own.shape != new.shape or kinds[0] != kinds[1]:
            raise ValueError(
                f"got {new.dtype} of shape {tuple(new.shape)} for {name!r}, expected {own.dtype} of {tuple(own.shape)}"
            )
    laid_out = {name for name, own in there.items() if own.is_meta}
    vae.load_state_dict({name: tensors[name] for name in laid_out}, strict=False, assign=True)
    vae.load_state_dict({name: value for name, value in tensors.items() if name not in laid_out}, strict=False)
    return vae


@contextmanager
def untouched_on_failure(handed: dict[str, Any]) -> Iterator[None]:
    """Put the values of the user's modules back as they were, if what is inside fails."""
    parts = [one for part in handed.values() for one in (part.values() if isinstance(part, dict) else [part])]
    modules = [part for part in parts if isinstance(part, nn.Module)]
    before = [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]
    try:
        yield
    except BaseException:
        for module, state in zip(modules, before):
            module.load_state_dict(state)
        raise


# ---- things made of models


def _pack_ensemble(ensemble: Any) -> Packed:
    return Packed({}, {}, _numbered(ensemble.members))


def _unpack_ensemble(packed: Packed, handed: dict[str, Any]) -> Ensemble:
    return Ensemble(_ordered(packed.parts))


def _pack_calibration(calibration: Any) -> Packed:
    beside = Beside(parts=_numbered(fold.vae for fold in calibration.folds))
    folds = [
        {part: beside.put(f"{place}.{part}", getattr(fold, part)) for part in ("batch", "options", "scores")}
        for place, fold in enumerate(calibration.folds)
    ]
    settings = {name: getattr(calibration, name) for name in ("level", "rule", "delta")}
    return Packed(plain("calibration", settings) | {"folds": folds}, beside.tensors, beside.parts)


def _unpack_calibration(packed: Packed, handed: dict[str, Any]) -> Calibration:
    content, beside = packed.content, Beside(packed.tensors, packed.parts)
    choose("rule", content["rule"], RULES)
    folds = []
    for place, of in enumerate(content["folds"]):
        vae, (batch, options, scores) = (
            packed.parts[str(place)],
            (beside.get(of[n]) for n in ("batch", "options", "scores")),
        )
        make = DetectorFold if hasattr(vae, "score_samples") else Fold
        folds.append(make(vae, batch, options, scores))
    return Calibration(tuple(folds), content["level"], content["rule"], content["delta"])


def _pack_detector(detector: Any) -> Packed:
    if not hasattr(detector, "members_"):
        raise OptionError("save: got a VAEDetector that is not fitted, expected .fit(X) first")
    params = {name: plain(name, value) for name, value in detector.get_params(deep=False).items()}
    names = getattr(detector, "feature_names_in_", None)
    fitted = {
        "offset": detector.offset_,
        "members": [[member.center, member.width] for member in detector.members_],
        "features": detector.n_features_in_,
        "names": None if names is None else names.tolist(),
        "outputs": detector._n_features_out,
    }
    parts = _numbered(member.vae for member in detector.members_)
    return Packed({"params": params, "fitted": plain("fitted", fitted)}, {}, parts)


def _unpack_detector(packed: Packed, handed: dict[str, Any]) -> Any:
    from ppl_vae.use.estimator import Member, VAEDetector  # scikit-learn's, for those alone that use it

    fitted = packed.content["fitted"]
    detector: Any = VAEDetector(**tuples(packed.content["params"]))
    members = zip(_ordered(packed.parts), fitted["members"], strict=True)
    detector.members_ = [Member(vae, float(center), float(width)) for vae, (center, width) in members]
    detector.offset_, detector.n_features_in_ = float(fitted["offset"]), int(fitted["features"])
    detector._n_features_out = int(fitted["outputs"])
    if fitted["names"] is not None:
        detector.feature_names_in_ = np.array(fitted["names"], dtype=object)
    return detector


KINDS: dict[str, Kind] = {
    **{kind: Kind(_pack_made, _unpack_made(kind)) for kind in RECIPES},
    "vae": Kind(_pack_own, _unpack_own(VAE)),
    "autoencoder": Kind(_pack_own, _unpack_own(Autoencoder)),
    "programs": Kind(_pack_programs, _unpack_programs),
    "ensemble": Kind(_pack_ensemble, _unpack_ensemble),
    "calibration": Kind(_pack_calibration, _unpack_calibration),
    "detector": Kind(_pack_detector, _unpack_detector),
}
OF = {
    "ppl_vae.model.vae.VAE": "vae",
    "ppl_vae.model.autoencoder.Autoencoder": "autoencoder",
    "ppl_vae.model.programs.Programs": "programs",
    "ppl_vae.infer.ensemble.Ensemble": "ensemble",
    "ppl_vae.criticism.calibration.Calibration": "calibration",
    "ppl_vae.use.estimator.VAEDetector": "detector",
}
"""Of things without a recipe, by their own type: a subclass may have more to it."""


# ---- schemas


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
