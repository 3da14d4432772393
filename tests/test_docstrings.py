"""Every public name says in a sentence what it is, then its arguments and no other, what it returns and raises; a method
of statistics also whose it is."""

import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import ppl_vae as pv
from ppl_vae import OptionError
from ppl_vae.criticism.beyond import BEYOND
from ppl_vae.criticism.checks import CHECKS
from ppl_vae.criticism.compare import EVIDENCE
from ppl_vae.criticism.conformal import RULES
from ppl_vae.criticism.scores import SCORES
from ppl_vae.infer import evidence, local
from ppl_vae.infer.objectives import OBJECTIVES
from ppl_vae.infer.optim import SCHEDULES
from ppl_vae.model.families import LIKELIHOODS
from ppl_vae.model.posteriors import POSTERIORS
from ppl_vae.model.priors import PRIORS
from ppl_vae.model.weights import WEIGHTS

ENTRY = re.compile(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*):", re.MULTILINE)
OURS = re.compile(r"^\s*raise (\w+Error)\b", re.MULTILINE)
NAME = r"[A-Z][\w'-]+"
SOURCE = re.compile(rf"{NAME}(?: & {NAME})?(?: et\s+al\.)?,?\s+\(?(?:19|20)\d\d\b")
"""Kingma & Welling 2013; Cremer et al. (2018)."""
NO_METHOD = {
    "containers": "Batch Candidate Comparison Dataset Diagnosis Draws Explanation History Imputed Manifest Schema Scores "
    "Simulated",
    "the interface of a user's own programs": "Programs",
    "files": "load save read_csv score_files impute_files report to_arviz",
    "lists, whose rows are asked themselves": "likelihoods objectives posteriors priors",
    "what `fit` is, of several models": "fit_many",
    "expectations and draws under p(x|z), as they are written": "decode generate interpolate predict reconstruct",
}
REGISTRIES: dict[str, tuple[dict[str, Any], str]] = {
    "objectives": (OBJECTIVES, ""),
    "scores": (SCORES | BEYOND, ""),
    "rules": (RULES, ""),
    "checks": (CHECKS, ""),
    "methods": (local.METHODS, ""),
    "evidence": (evidence.METHODS | EVIDENCE, ""),
    "priors": (PRIORS, "flat normal mixture enumerated_mixture laplace student_t dirichlet bernoulli categorical"),
    "posteriors": (POSTERIORS, "delta bernoulli categorical"),
    "likelihoods": (
        LIKELIHOODS,
        "low_rank_normal full_normal laplace log_normal gamma categorical poisson negative_binomial von_mises",
    ),
    "weights": (WEIGHTS, "point"),
    "schedules": (SCHEDULES, "constant"),
}
"""Rows by name, and those of textbook distributions, which nobody in particular proposed here."""


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


def is_method(name: str, thing: Any) -> bool:
    """Of functions and classes at the top: neither an error nor listed as something else."""
    if "." in name or isinstance(thing, ModuleType) or name in " ".join(NO_METHOD.values()).split():
        return False
    return not (inspect.isclass(thing) and issubclass(thing, Exception))


def told(row: Any) -> str:
    """What a row of a registry says: its text, and the docstrings of what makes it."""
    docs = (inspect.getdoc(part) for part in (row, getattr(row, "make", None)) if inspect.isroutine(part))
    return " ".join(filter(None, (getattr(row, "text", ""), *docs)))


@pytest.mark.parametrize("name", [name for name, thing in PUBLIC.items() if is_method(name, thing)])
def test_a_method_names_its_source(name):
    assert SOURCE.search(inspect.getdoc(PUBLIC[name]))


@pytest.mark.parametrize("kind", REGISTRIES)
def test_rows_of_registries_name_their_source(kind):
    rows, textbook = REGISTRIES[kind]
    assert {name for name, row in rows.items() if not SOURCE.search(told(row))} == set(textbook.split())


def test_what_is_no_method_is_public():
    assert set(" ".join(NO_METHOD.values()).split()) <= set(PUBLIC)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("(Kingma & Welling 2013, eq. 6)", True),
        ("by Cremer et al. (2018).", True),
        ("Daxberger & Hernandez-Lobato 2019", True),
        ("of 2019", False),
        ("since 2013 rows", False),
        ("Pyro 1.9", False),
    ],
)
def test_sources_are_recognised(text, named):
    assert bool(SOURCE.search(text)) == named


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
