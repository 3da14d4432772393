"""Do stochastic tests fail as seldom as they say? Every test of less than a second, under other seeds than its own.

    python benchmarks/seeds.py                     # all test files, 300 seeds
    python benchmarks/seeds.py 20                  # 20 seeds
    python benchmarks/seeds.py 300 infer/test_elbo  # of one file

`PPL_VAE_TEST_SEED=k` shifts the seeds of NumPy's and torch's generators in tests (`tests/conftest.py`), hence data, weights
and, since it is a hash of rows, the noise of scores. Each cell is a file of tests and 5 seeds. Printed are the tests that
failed: one failure in 300 may be chance; a test that fails under most seeds but its own, or its tolerance, is of that seed.
"""

import contextlib
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cells import cell, show

TESTS = Path(__file__).parents[1] / "tests"
SEEDS, TOGETHER, QUICK = 300, 5, 1.0
APART = {"test_footprint", "test_package", "test_product", "test_properties", "data/test_fuzz"}
"""Tests that are not stochastic, or look for their seeds themselves."""


class Record:
    """How long each test of a session took, and whether it failed; some of the tests are left out."""

    def __init__(self, only: set[str] | None) -> None:
        self.only, self.seconds, self.failed = only, Counter[str](), set[str]()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.only is not None:
            items[:] = [item for item in items if item.nodeid in self.only]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.add(report.nodeid)


def session(path: Path, seed: int, only: set[str] | None = None) -> Record:
    """A run of a file of tests in this process, its modules imported anew."""
    for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
        del sys.modules[name]
    os.environ["PPL_VAE_TEST_SEED"] = str(seed)
    record = Record(only)
    options = ["-q", "-p", "no:cacheprovider", "--no-header", "--tb=no", f"--rootdir={TESTS.parent}", str(path)]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        code = pytest.main(options, plugins=[record])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        record.failed.add(f"{path.name}: {code!r}")
    return record


def counted(path: Path, seeds: range) -> dict[str, Any]:
    """Failures by test over seeds, of the quick ones that pass under their own."""
    first = session(path, 0)
    quick = {name for name, seconds in first.seconds.items() if seconds < QUICK and name not in first.failed}
    failures: Counter[str] = Counter()
    for seed in seeds:
        failures.update(session(path, seed, quick).failed)
    return {"tests": len(quick), "failures": dict(failures)}


def main(seeds: int = SEEDS, *names: str) -> None:
    rows, tests = [], 0
    for path in sorted(TESTS.rglob("test_*.py")):
        name = path.relative_to(TESTS).with_suffix("").as_posix()
        if name in APART or (names and name not in names):
            continue
        found, of = Counter[str](), 0
        for first in range(1, seeds + 1, TOGETHER):
            part = range(first, min(first + TOGETHER, seeds + 1))
            settings = {"seeds": [part.start, part.stop], "quick": QUICK}
            run = partial(counted, path, part)
            figures = cell("seeds", f"{name.replace('/', '-')}-{first}", settings, run)
            found.update(figures["failures"])
            of = max(of, figures["tests"])
        tests += of
        rows += [{"test": test, "failures": count, "seeds": seeds} for test, count in found.most_common()]
    show(rows or [{"test": "none", "failures": 0, "seeds": seeds}], f"Failures of {tests} tests over {seeds} seeds")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
