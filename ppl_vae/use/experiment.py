"""A comparison as a file: YAML, JSON or TOML in names and numbers to candidates, data and the arguments of `compare`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import product
from os import PathLike
from typing import Any, NamedTuple

import numpy as np

from ppl_vae.criticism.compare import Candidate
from ppl_vae.data.tables import read
from ppl_vae.errors import OptionError, PplVaeError, first_line, number, whole
from ppl_vae.model.build import build
from ppl_vae.options import ModelOptions
from ppl_vae.use.configuration import read_options
from ppl_vae.use.reading import loaded, taken

OWN = ("model", "objective", "posterior", "fit")
"""What a candidate may set, and what stands for all of them where it does not."""
KEYS = (
    "data", "test", "split_seed", "missing", "names", *OWN, "candidates", "grid", "seeds", "budget", "evidence",
    "num_draws",
)  # fmt: skip


class Experiment(NamedTuple):
    """What an experiment's file says.

    Attributes:
        data: a file or the name of a data set.
        test: the share of its rows to test on, another file, or None for the published test part.
        split_seed: of the rows to test on.
        missing, names: how a CSV file is read.
        specs: {name of a candidate: what it sets, of `OWN`}.
        settings: further arguments of `compare`.
    """

    data: str
    test: float | str | None
    split_seed: int
    missing: list[str]
    names: list[str]
    specs: dict[str, dict[str, Any]]
    settings: dict[str, Any]

    def split(self, rows: Any, others: Any = None) -> tuple[Any, Any]:
        """Rows to train and to test on.

        Args:
            rows: what `data` names.
            others: what `test` names, where it is a file.
        """
        if others is not None:
            return rows, others
        if self.test is None and getattr(rows, "test_x", None) is not None:
            return rows, rows.test_x
        share = self.test
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise OptionError(f"test: got {share!r}, expected a share in (0, 1) of these rows, or a file")
        rows = loaded(rows)
        n = len(read(rows).values)
        order = np.random.default_rng(self.split_seed).permutation(n)
        cut = max(1, round(share * n))
        return taken(rows, np.sort(order[cut:])), taken(rows, np.sort(order[:cut]))

    def candidates(self, train: Any) -> dict[str, Candidate]:
        """The candidates, each of whose models can be built.

        Raises: OptionError naming the candidate.
        """
        made = {}
        for name, spec in self.specs.items():
            recipe = Recipe(train, {key: _tuple(value) for key, value in spec["model"].items()})
            try:
                made[name] = Candidate(recipe, spec["objective"], spec["posterior"], **spec["fit"])
            except PplVaeError as error:  # which lists what there is
                raise OptionError(f"candidate {name!r}: {first_line(error)}") from error
            try:
                recipe(self.settings["seeds"][0])
            except PplVaeError as error:
                options = ", ".join(field.name for field in fields(ModelOptions) if field.name != "seed")
                raise OptionError(
                    f"candidate {name!r}: {first_line(error)} (options of every model: {options}; its parts have their own)"
                ) from error
        return made


@dataclass(frozen=True)
class Recipe:
    """A function of a seed that builds a model: data and options of `build`."""

    data: Any
    options: dict[str, Any]

    def __call__(self, seed: int) -> Any:
        return build(self.data, **self.options, seed=seed)


def experiment(path: str | PathLike) -> Experiment:
    """Read an experiment's file. Nothing in it can run; a key that means nothing is an error.

    Its keys: `data` and `test` (a share, or a file; absent: the published test part), `split_seed`; `missing` and `names`
    of a CSV file; `model`, `fit` (options of `build` and `fit` by name), `objective` and `posterior` (a name, or its `name`
    with options), of all candidates; `candidates`, {name: those of these four that it sets}; `grid`, {one of these, as
    objective or model.latent: values}, of which each combination is a candidate; `seeds`, `budget`, `evidence`,
    `num_draws` as in `compare`.

    Raises: OptionError naming the key; MissingFileError.
    """
    content = _mapping(str(path), read_options(path), KEYS)
    common = _spec("the experiment", {key: content[key] for key in OWN if key in content})
    names = _mapping("candidates", content.get("candidates", {"": {}}))
    points = _points(_mapping("grid", content.get("grid", {})))
    specs = {}
    for name, own in names.items():
        for words, point in points:
            chosen = _merged(_merged(common, _spec(f"candidate {name!r}", own)), point)
            specs[", ".join(filter(None, [name, words])) or "model"] = {
                "objective": "elbo",
                "posterior": "amortized",
            } | chosen
    test = content.get("test")
    settings: dict[str, Any] = {key: value for key, value in content.items() if key in ("budget", "num_draws")}
    if "evidence" in content:
        settings["evidence"] = _choice("evidence", content["evidence"])
    return Experiment(
        _text("data", content.get("data")),
        test if test is None or isinstance(test, str) else number("test", test),
        whole("split_seed", content.get("split_seed", 0), 0),
        _texts("missing", content.get("missing", [])),
        _texts("names", content.get("names", [])),
        specs,
        settings | {"seeds": [whole("seeds", seed, None) for seed in _list("seeds", content.get("seeds", [0, 1, 2]))]},
    )


# ---- what stands in the file


def _spec(where: str, given: Any) -> dict[str, Any]:
    """Options of a candidate: those of model and fit as mappings, objective and posterior as names or (name, options)."""
    spec = dict(_mapping(where, given or {}, OWN))
    for key in ("model", "fit"):
        spec[key] = _mapping(f"{where}, {key}", spec.get(key) or {})
        if "seed" in spec[key]:
            raise OptionError(f"{where}, {key}: got the key 'seed', expected `seeds` of the experiment")
    for key in ("objective", "posterior"):
        if key in spec:
            spec[key] = _choice(f"{where}, {key}", spec[key])
    return spec


def _merged(common: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    both = {key: common.get(key, {}) | own.get(key, {}) for key in ("model", "fit")}
    return common | own | both


def _points(grid: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Each combination of a grid's values: in words, and as a candidate's options."""
    axes = []
    for path, values in grid.items():
        head, _, name = path.partition(".")
        if (head in ("model", "fit")) != bool(name) or head not in OWN:
            raise OptionError(f"grid: got the key {path!r}, expected objective, posterior, model.NAME or fit.NAME")
        axes.append([(path, value) for value in _list(f"grid, {path}", values)])
    points = []
    for chosen in product(*axes):
        words = ", ".join(f"{path.rpartition('.')[2]}={_words(value)}" for path, value in chosen)
        point: dict[str, Any] = {}
        for path, value in chosen:
            head, _, name = path.partition(".")
            point = _merged(point, {head: {name: value}} if name else {head: value})
        points.append((words, _spec("grid", point)))
    return points


def _choice(where: str, value: Any) -> Any:
    """A name as it is; a mapping with a name and options as (name, options)."""
    if isinstance(value, Mapping) and "name" in value:
        return _text(f"{where}, name", value["name"]), {k: _tuple(v) for k, v in value.items() if k != "name"}
    return _text(where, value)


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(
            [str(value.get("name", "")), *(f"{k}={_words(v)}" for k, v in value.items() if k != "name")]
        ).strip()
    return str(value)


def _mapping(where: str, value: Any, known: tuple[str, ...] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise OptionError(f"{where}: got {value!r:.200}, expected names with values, as `key: value`")
    if known is not None and (wrong := [key for key in value if key not in known]):
        raise OptionError(f"{where}: got the key {wrong[0]!r}, expected some of {', '.join(known)}")
    return value


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise OptionError(f"{where}: got {value!r:.200}, expected a list of one value or more")
    return value


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise OptionError(f"{where}: got {value!r:.200}, expected a name")
    return value


def _texts(where: str, value: Any) -> list[str]:
    return [_text(where, one) for one in (value if isinstance(value, list) else [value])]


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
