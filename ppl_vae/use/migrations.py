"""What `model.json` and the weights of older formats mean in the newest one: pure functions, one a version."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

State = dict[str, Tensor]


def migrate(content: dict[str, Any], state: State, newest: int) -> tuple[dict[str, Any], State]:
    """Description and weights in the newest format.

    Args:
        content: model.json's, of a version between 1 and `newest`.
        state: the weights by name.
        newest: the format to reach.
    """
    for version in range(content["format_version"], newest):
        content, state = MIGRATIONS[version](content, state)
        content = content | {"format_version": version + 1}
    return content, state


def _from_1(content: dict[str, Any], state: State) -> tuple[dict[str, Any], State]:
    """Version 2 has types of columns, holes, covariates, groups and labels, and one name for a learned or fixed scale."""
    recipe, schema = content["recipe"], content["schema"]
    if recipe["kind"] == "build":
        recipe = {**recipe, "nullable": False, "covariates": [], "group": None, "label": None}
    d, likelihood = len(schema["names"]), recipe.get("likelihood", "normal")
    types = None if likelihood == "normal" else [TYPES_1[likelihood]] * d
    new = {"types": types, "likelihoods": types and [likelihood] * d, "nullable": [], "levels": None, "dtypes": None}
    absent = dict.fromkeys(("log_loc", "log_scale", "covariates", "group", "label"))
    names = {f"decoder.family.{old}": "decoder.family.scale" for old in ("raw", "fixed")}
    state = {names.get(name, name): value for name, value in state.items()}
    return content | {"recipe": recipe, "schema": {**schema, **new, **absent}}, state


def _from_2(content: dict[str, Any], state: State) -> tuple[dict[str, Any], State]:
    """Version 3 says whether the decoder's weights are uncertain."""
    recipe = content["recipe"]
    return content | {"recipe": {**recipe, "weights": "point"} if recipe["kind"] == "build" else recipe}, state


def _from_3(content: dict[str, Any], state: State) -> tuple[dict[str, Any], State]:
    """Version 4 counts the steps that trained the guide, which before were taken for all."""
    return content, {**state, "guide_steps": state["steps"]}


def _from_4(content: dict[str, Any], state: State) -> tuple[dict[str, Any], State]:
    """Version 5 holds things made of models too: a tree, and each tensor is of its own dtype."""
    kind, recipe = content["recipe"]["kind"], {k: v for k, v in content["recipe"].items() if k != "kind"}
    rest = {key: value for key, value in content.items() if key not in ("recipe", "schema", "dtype")}
    return rest | {"model": {"kind": kind, "recipe": recipe, "schema": content["schema"]}}, state


TYPES_1 = {"bernoulli": "boolean", "continuous_bernoulli": "unit"}

MIGRATIONS: dict[int, Callable[[dict[str, Any], State], tuple[dict[str, Any], State]]] = {
    1: _from_1,
    2: _from_2,
    3: _from_3,
    4: _from_4,
}
"""From each version to the next."""
