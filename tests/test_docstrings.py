"""Every public name says in a sentence what it is, then its arguments and no other, what it returns and raises."""

import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import ppl_vae as pv
from ppl_vae import OptionError

ENTRY = re.compile(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*):", re.MULTILINE)
OURS = re.compile(r"^\s*raise (\w+Error)\b", re.MULTILINE)


def public() -> Iterator[tuple[str, Any]]:
    """Names and what they stand for: functions, classes, their methods and properties, and what the public modules hold."""
    for name in pv.__all__:
        thing = getattr(pv, name)
        if isinstance(thing, ModuleType):
            yield name, thing
            own = ((n, v) for n, v in vars(thing).items() if getattr(v, "__module__", None) == thing.__name__)
            for inner, value in own:
                if not inner.startswith("_") and callable(value):
                    yield from parts(f"{name}.{inner}", value)
        else:
            yield from parts(name, thing)


def parts(name: str, thing: Any) -> Iterator[tuple[str, Any]]:
    yield name, thing
    if inspect.isclass(thing):
        for inner, member in vars(thing).items():
            member = getattr(member, "__func__", member)  # of class and static methods
            if not inner.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                yield f"{name}.{inner}", member


def section(doc: str, name: str) -> str:
    """The indented lines below a heading."""
    found = re.search(rf"^{name}:\n((?:    .*\n|\n)*)", doc + "\n", re.MULTILINE)
    return found[1] if found else ""


def described(doc: str, name: str) -> set[str]:
    return {one.lstrip("*") for entry in ENTRY.findall(section(doc, name)) for one in entry.split(", ")}


def parameters(thing: Any) -> set[str]:
    if isinstance(thing, property | ModuleType) or (inspect.isclass(thing) and issubclass(thing, Exception)):
        return set()
    return {name for name in inspect.signature(thing).parameters if name not in ("self", "cls") and name[0] != "_"}


def faults(name: str, thing: Any) -> list[str]:
    doc = inspect.getdoc(thing) if not inspect.isclass(thing) else inspect.cleandoc(thing.__doc__ or "")
    if not doc:
        return ["no docstring"]
    found = []
    if not doc.split("\n\n")[0].endswith("."):
        found.append("no sentence first")
    takes, args = parameters(thing), described(doc, "Args")
    if missing := takes - args - described(doc, "Attributes"):
        found.append(f"arguments not described: {sorted(missing)}")
    if other := args - takes:
        found.append(f"no arguments of its: {sorted(other)}")
    if inspect.isfunction(thing):
        returns = inspect.signature(thing).return_annotation
        if returns is not None and not re.search(r"^(Returns|Yields): ?", doc, re.MULTILINE):
            found.append("no Returns")
        raised = set(OURS.findall(inspect.getsource(thing))) & set(pv.__all__)
        if raised and not all(error in doc for error in raised):
            found.append(f"raises {sorted(raised)}")
        if (
            "." not in name.removeprefix("datasets.").removeprefix("plots.").removeprefix("testing.")
            and ">>>" not in doc
        ):
            found.append("no example")
    return found


PUBLIC = dict(public())


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_described(name):
    assert not faults(name, PUBLIC[name])


def test_names_behind_public_names_are_met():
    assert {
        "fit",
        "VAE.model",
        "Scores.threshold",
        "Evidence.verdict",
        "plots.samples",
        "datasets.load",
    } <= PUBLIC.keys()
    assert len(PUBLIC) > 150


def test_what_is_missing_is_found():
    def bad(a: int, b: int) -> int:
        """No stop

        Args:
            a: one.
            c: none of its.
        """
        raise OptionError("no")

    assert faults("bad", bad) == [
        "no sentence first",
        "arguments not described: ['b']",
        "no arguments of its: ['c']",
        "no Returns",
        "raises ['OptionError']",
        "no example",
    ]
