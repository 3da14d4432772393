"""What an option takes by name stands in its help, or where its help says; compared with the registries themselves."""

import json
import re
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any

import pytest

from ppl_vae.criticism.beyond import BEYOND
from ppl_vae.criticism.checks import CHECKS
from ppl_vae.criticism.compare import EVIDENCE
from ppl_vae.criticism.conformal import RULES
from ppl_vae.criticism.scores import SCORES
from ppl_vae.data.schema import STANDARDIZE
from ppl_vae.infer.callbacks import CALLBACKS
from ppl_vae.infer.local import METHODS
from ppl_vae.infer.objectives import OBJECTIVES
from ppl_vae.infer.optim import OPTIMIZERS, SCHEDULES
from ppl_vae.infer.precision import PRECISIONS
from ppl_vae.infer.rows import PIXELS
from ppl_vae.model.build import NETS
from ppl_vae.model.families import LIKELIHOODS, SCALE_LINKS
from ppl_vae.model.nets import ACTIVATIONS
from ppl_vae.model.posteriors import POSTERIORS
from ppl_vae.model.priors import PRIORS
from ppl_vae.model.weights import WEIGHTS
from ppl_vae.options import FitOptions, ModelOptions
from ppl_vae.use import cli
from ppl_vae.use.pictures import ENDINGS, PICTURES
from ppl_vae.use.writing import TABLES

Run = Callable[..., tuple[int, str, str]]

ALONE = {*BEYOND} - {"likelihood_ratio", "typicality", "density_of_states", "aggregate_posterior"}
"""Scores that need no model and no rows beside, which have no name."""
LISTED: dict[str, Any] = {
    "prior": PRIORS,
    "likelihood": LIKELIHOODS,
    "posterior": POSTERIORS,
    "objective": OBJECTIVES,
    "score": {*SCORES} | ALONE,
    "rule": RULES,
    "check": CHECKS,
    "method": METHODS,
    "evidence": EVIDENCE,
    "picture": PICTURES,
}
CHOICES: dict[tuple[str, str], Any] = {
    ("fit", "model.likelihood"): LIKELIHOODS,
    ("fit", "model.prior"): PRIORS,
    ("fit", "model.posterior"): POSTERIORS,
    ("fit", "model.nets"): NETS,
    ("fit", "model.activation"): ACTIVATIONS,
    ("fit", "model.scale"): ("row", "feature", "shared"),
    ("fit", "model.scale_link"): SCALE_LINKS,
    ("fit", "model.standardize"): STANDARDIZE,
    ("fit", "model.weights"): WEIGHTS,
    ("fit", "fit.objective"): OBJECTIVES,
    ("fit", "fit.optimizer"): OPTIMIZERS,
    ("fit", "fit.schedule"): SCHEDULES,
    ("fit", "fit.binarize"): PIXELS,
    ("fit", "fit.precision"): PRECISIONS,
    ("fit", "fit.compiled"): ("true", "traced", "false", "auto"),
    ("fit", "log"): CALLBACKS,
    ("calibrate", "rule"): RULES,
    ("calibrate", "scoring"): {*SCORES} | ALONE,
    ("score", "rule"): RULES,
    ("score", "scoring"): {*SCORES} | ALONE,
    ("score", "compiled"): ("true", "traced", "false", "auto"),
    ("score", "out"): TABLES,
    ("sample", "out"): TABLES,
    ("impute", "out"): TABLES,
    ("diagnose", "out"): TABLES,
    ("diagnose", "checks"): CHECKS,
    ("draw", "kind"): PICTURES,
    ("draw", "out"): ENDINGS,
    ("compare", "experiment"): {*METHODS, *EVIDENCE, *OBJECTIVES},
    ("completion", "shell"): cli.SHELLS,
}


@pytest.mark.parametrize("command,option", CHOICES)
def test_help_names_the_choices_or_who_lists_them(command: str, option: str) -> None:
    choices = CHOICES[command, option]
    text = next(action.help for action in cli.parsers()[1][command]._actions if action.dest == option)
    absent = [name for name in choices if not re.search(rf"(?<!\w){re.escape(name)}\b", text)]
    if absent:
        assert "`ppl-vae parts`" in text and {*absent} <= {name for named in LISTED.values() for name in named}


def test_parts_lists_every_name(run: Run) -> None:
    code, out, _ = run("parts")
    assert code == 0
    listed = {tuple(line.split()[:2]) for line in out.splitlines()}
    assert listed == {(kind, name) for kind, names in LISTED.items() for name in names}
    told = json.loads(run("parts", "--json")[1])
    assert all(text and "\n" not in text for named in told.values() for text in named.values())


def test_no_option_of_model_and_fit_is_forgotten() -> None:
    def is_name(field: Field) -> bool:
        return "str" in str(field.type) and "tuple" not in str(field.type)

    groups = {"model": ModelOptions, "fit": FitOptions}
    names = {f"{group}.{field.name}" for group, of in groups.items() for field in fields(of) if is_name(field)}
    columns_and_folders = {"model.group", "model.label", "fit.checkpoint"}
    assert names - columns_and_folders == {option for command, option in CHOICES if command == "fit"} - {"log"}
