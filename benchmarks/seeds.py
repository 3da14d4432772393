"""Do stochastic tests fail as seldom as they say? Every one of less than a second, under other seeds than its own.

    python benchmarks/seeds.py                     # all test files, 300 seeds
    python benchmarks/seeds.py 20                  # 20 seeds
    python benchmarks/seeds.py 300 infer/test_elbo  # of one file

`PPL_VAE_TEST_SEED=k` shifts the seeds of NumPy's and torch's generators in tests (`tests/conftest.py`), hence data, weights
and, since it is a hash of rows, the noise of scores. Stochastic is a test whose text speaks of chance: of standard errors,
of p-values or of how seldom it fails. Each cell is a file of tests and 20 seeds. Printed are the tests that failed: one
failure in 300 may be chance; a test that fails under most seeds but its own is of that seed alone.
"""

import ast
import contextlib
import hashlib
import os
import re
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cells import cell, show

TESTS = Path(__file__).parents[1] / "tests"
SEEDS, TOGETHER, QUICK = 300, 20, 1.0
CHANCE = re.compile(
    r"fails? (once|in|with)|once in|failure rate|standard error|mcse|p-?value|> ?1e-[3-6]|kstest|chi2|binom|sigma",
    re.IGNORECASE,
)
LEAN = ["-o", "addopts=--import-mode=importlib", "--assert=plain", "-pno:cacheprovider", "-pno:unraisableexception"]
"""A session without what its verdict does not need: two thirds of its time, where tests are short."""
APART = {"test_footprint", "test_package", "test_product", "test_properties", "data/test_fuzz"}
"""Tests that are not stochastic, or look for their seeds themselves."""


class Record:
    """How long each test of a session took of the processor, and whether it failed; some of the tests are left out."""

    def __init__(self, only: set[str] | None) -> None:
        self.only, self.seconds, self.failed = only, dict[str, float](), set[str]()  # only: ids, or names of functions

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.only is not None:
            items[:] = [item for item in items if {item.nodeid, item.name.partition("[")[0]} & self.only]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.seconds[nodeid] = -time.process_time()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.seconds[nodeid] += time.process_time()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)


def session(path: Path, seed: int, only: set[str] | None = None) -> Record:
    """A run of a file of tests in this process, its modules imported anew."""
    for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
        del sys.modules[name]
    os.environ["PPL_VAE_TEST_SEED"] = str(seed)
    record = Record(only)
    options = [*LEAN, "-q", "--no-header", "--tb=no", f"--rootdir={TESTS.parent}", str(path)]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        code = pytest.main(options, plugins=[record])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        record.failed.add(f"{path.name}: {code!r}")
    return record


def of_chance(path: Path) -> set[str]:
    """The names of a file's test functions whose text speaks of chance."""
    text = path.read_text()
    functions = [f for f in ast.walk(ast.parse(text)) if isinstance(f, ast.FunctionDef) and f.name.startswith("test")]
    return {f.name for f in functions if CHANCE.search(ast.get_source_segment(text, f) or "")}


def quick(path: Path) -> dict[str, Any]:
    """A file's stochastic tests that take less than a second, with what they share, and pass under their own seeds."""
    only = of_chance(path)
    session(path, 0, only)  # what a process does once
    while True:  # a test that is left out may have paid for what the others wait for
        first = session(path, 0, only)
        kept = {n for n, seconds in first.seconds.items() if seconds < QUICK and n not in first.failed}
        if len(kept) == len(first.seconds):
            return {"tests": sorted(kept)}
        only = kept


def counted(path: Path, seeds: range, only: set[str]) -> dict[str, Any]:
    """Failures by test over seeds."""
    failures: Counter[str] = Counter()
    for seed in seeds:
        failures.update(session(path, seed, only).failed)
    return {"failures": dict(failures)}


def main(seeds: int = SEEDS, *names: str) -> None:
    rows, tests = [], 0
    for path in sorted(TESTS.rglob("test_*.py")):
        name = path.relative_to(TESTS).with_suffix("").as_posix()
        if name in APART or (names and name not in names) or not of_chance(path):
            continue
        settings = {"file": hashlib.sha256(path.read_bytes()).hexdigest()[:12], "quick": QUICK}
        key = name.replace("/", "-")
        only = set(cell("seeds", f"{key}-quick", settings, partial(quick, path))["tests"])
        found = Counter[str]()
        for first in range(1, seeds + 1, TOGETHER) if only else ():
            part = range(first, min(first + TOGETHER, seeds + 1))
            run = partial(counted, path, part, only)
            found.update(cell("seeds", f"{key}-{first}", {**settings, "until": part.stop}, run)["failures"])
        tests += len(only)
        rows += [{"test": test, "failures": count, "seeds": seeds} for test, count in found.most_common()]
    show(rows or [{"test": "none", "failures": 0, "seeds": seeds}], f"Failures of {tests} tests over {seeds} seeds")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
