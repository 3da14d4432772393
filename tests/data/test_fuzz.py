"""Damaged files that were found to be read otherwise than they should, and some of `benchmarks/fuzz.py`."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import ppl_vae as pv

spec: Any = spec_from_file_location("fuzz", Path(__file__).parents[2] / "benchmarks" / "fuzz.py")
fuzz = module_from_spec(spec)
spec.loader.exec_module(fuzz)


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_a_damaged_file_is_a_table_or_an_error_of_ours(tmp_path: Path, first: int) -> None:
    for number in range(first, first + 50):
        ending, content = fuzz.made(number)
        (path := tmp_path / f"{number}{ending}").write_bytes(content)
        assert fuzz.outcome(path) in ("read", "refused"), f"{path}: {content[:200]!r}"


@pytest.mark.parametrize("ending", fuzz.VALID)
def test_the_files_that_are_damaged_are_sound(tmp_path: Path, ending: str) -> None:
    (path := tmp_path / f"a{ending}").write_bytes(fuzz.VALID[ending])
    assert fuzz.outcome(path) == "read"


def test_outcomes_that_are_neither_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path := tmp_path / "a.csv").write_bytes(fuzz.VALID[".csv"])
    for error, expected in (
        (KeyError("of its own"), "KeyError: 'of its own'"),
        (pv.DataError("bad"), "without the file"),
    ):

        def fails(path: Path, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(fuzz, "read", fails)
        assert fuzz.outcome(path).startswith(expected)


def test_a_worker_that_dies_or_hangs_is_followed_by_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = """
import os, sys, time
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    if number == 1: time.sleep(60)
    if number == 2: os.abort()
    print(".csv", "read", flush=True)
"""
    (tmp_path / "worker.py").write_text(program)
    monkeypatch.setattr(fuzz, "__file__", str(tmp_path / "worker.py"))
    monkeypatch.setattr(fuzz, "SECONDS", 0.5)
    found = fuzz.run(0, 4)
    assert [found[number][1] for number in range(4)] == ["read", "hangs, 0.5 s", "crash, exit code -6", "read"]


def test_signalling_nans_are_no_warnings() -> None:
    """A NaN whose bits say so makes numpy warn of whatever is done with it."""
    values = np.array([[1.0, 2.0], [0.5, 3.0]])
    values.view(np.uint64)[0, 0] = 0x7FF0000000000001
    for make in (pv.Schema.fit, pv.Schema.infer):
        with pytest.raises(pv.DataError, match=r"column 'x0': got .*nan"):
            make(values)


def test_counts_whose_squares_overflow_have_a_spread() -> None:
    """Of whole numbers up to 4e155 the variance is infinite, which numpy warned of."""
    counts = np.array([0.0, 3.0, 4e155])
    assert pv.Schema.infer(pd.DataFrame({"n": counts})).likelihoods == ("negative_binomial",)
