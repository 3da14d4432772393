"""Each pair of prior, likelihood, posterior, objective and holes: trained, or refused for a reason that has a name.

`benchmarks/product.py` runs every combination; here are some, found by a greedy search, in which each pair of values meets,
and that in a cell that trains wherever there is one.
"""

import json
from importlib.util import module_from_spec, spec_from_file_location
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

spec = spec_from_file_location("product", Path(__file__).parents[1] / "benchmarks" / "product.py")
matrix = module_from_spec(spec)
spec.loader.exec_module(matrix)

SIZES = [len(values) for values in matrix.FACTORS]
CELLS = [matrix.Cell(*values) for values in product(*matrix.FACTORS)]
TRAINS = np.array([not matrix.reasons(cell) for cell in CELLS])
CODES = np.indices(SIZES).reshape(len(SIZES), -1).T
PAIRS = np.stack(
    [(CODES[:, i] + 100 * CODES[:, j]) * 100 + 10 * i + j for i, j in combinations(range(len(SIZES)), 2)], 1
)


def cover(among, known=()):
    """The numbers of a few cells among some in which every pair of values meets that meets in any of these."""
    left, chosen = among[~np.isin(PAIRS[among], known).all(1)], []
    new = ~np.isin(np.arange(PAIRS.max() + 1), known)
    while new[PAIRS[left]].any():
        best = left[new[PAIRS[left]].sum(1).argmax()]
        new[PAIRS[best]] = False
        chosen.append(best)
    return chosen


TRAINED = cover(np.flatnonzero(TRAINS))
REFUSED = cover(np.flatnonzero(~TRAINS), known=PAIRS[TRAINED])


def named(numbers):
    return [pytest.param(CELLS[i], id="-".join(map(str, CELLS[i]))) for i in numbers]


def test_every_pair_meets_in_a_cell_that_trains_if_there_is_one():
    assert set(PAIRS[TRAINED].flat) == set(PAIRS[TRAINS].flat)
    assert set(PAIRS[TRAINED + REFUSED].flat) == set(PAIRS.flat)
    assert len(set(PAIRS.flat)) == sum(a * b for a, b in combinations(SIZES, 2))


@pytest.mark.parametrize("cell", named(TRAINED))
def test_a_cell_trains(cell):
    (outcome,) = matrix.run([cell])
    assert isinstance(outcome, tuple), outcome


@pytest.mark.parametrize("cell", named(REFUSED))
def test_a_cell_is_refused_for_its_reason(cell):
    (outcome,) = matrix.run([cell])
    assert outcome in matrix.reasons(cell), outcome


SOUND, APART = matrix.Cell("normal", "normal", "mean_field"), matrix.Cell("normal", "normal", "dirichlet")


def test_outcomes_that_no_reason_explains_are_failures(monkeypatch):
    monkeypatch.setattr(matrix, "REASONS", {"why": matrix.Reason(lambda cell: True, "no such text")})
    assert list(matrix.run([SOUND])) == [{"failed": "trained, expected a refusal: why"}]
    for reasons in (matrix.REASONS, {}):
        monkeypatch.setattr(matrix, "REASONS", reasons)
        (outcome,) = matrix.run([APART])
        assert outcome["failed"].startswith("ProgramError: site 'z': got a density on the simplex")


def test_a_model_that_cannot_be_built_is_a_failure(monkeypatch):
    monkeypatch.setitem(matrix.LIKELIHOOD_OPTIONS, "normal", {"likelihood": "normal", "hidden_": 1})
    (outcome,) = matrix.run([SOUND])
    assert outcome["failed"].startswith("OptionError: build: got the options ['hidden_']")


def test_a_model_that_does_not_learn_is_a_failure(monkeypatch):
    monkeypatch.setattr("ppl_vae.testing.STEPS", (1,))
    monkeypatch.setattr("ppl_vae.testing.ERRORS", 1e9)
    (outcome,) = matrix.run([SOUND])
    assert outcome["failed"].startswith("AssertionError: training: after 1 steps the bound rose by")


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Two lines of the matrix, in a folder of their own."""
    monkeypatch.setattr(matrix, "RESULTS", tmp_path)
    monkeypatch.setattr(matrix, "FACTORS", (["normal"], ["normal"], ["mean_field", "delta"], *matrix.FACTORS[3:]))
    forget()
    yield tmp_path / "normal.jsonl"
    forget()


def forget():
    matrix.behaviour.cache_clear()
    matrix.key.cache_clear()


def test_lines_are_kept_while_their_parts_do_what_they_did(small, monkeypatch, capsys):
    matrix.run_prior("normal")
    first = small.read_text()
    small.write_text(first[:-20])  # stopped while it wrote the second line
    matrix.run_prior("normal")
    kept, anew = small.read_text().splitlines()
    assert kept == first.splitlines()[0] and json.loads(anew)["cells"] == json.loads(first.splitlines()[1])["cells"]
    assert matrix.show() == 0 and "|        12 |         0 |        0 |" in capsys.readouterr().out

    monkeypatch.setitem(matrix.PRIOR_OPTIONS, "normal", {"scale_floor": 0.5})  # another behaviour
    forget()
    matrix.run_prior("normal")
    assert not {json.loads(line)["key"] for line in small.read_text().splitlines()} & {json.loads(kept)["key"]}


def test_failures_are_shown(small, capsys):
    cells = {"elbo": {"failed": "of something"}, "iwae": "a reason", "analytic_kl": [1.0, 12]}
    small.write_text(json.dumps({"likelihood": "normal", "posterior": "delta", "cells": cells}) + "\n")
    assert matrix.show() == 1
    assert "normal | normal | delta | elbo: of something" in capsys.readouterr().out
