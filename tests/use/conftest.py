"""What tests of the command line share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ppl_vae.use import cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `main` in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(list(argv))
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A CSV file of 60 rows."""
    path = tmp_path / "table.csv"
    x = np.random.RandomState(0).randn(60, 3)
    pd.DataFrame(x, columns=["a", "b", "c"]).to_csv(path, index=False)
    return path
