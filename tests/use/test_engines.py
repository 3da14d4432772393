"""Every engine gives the results of `map`, in order; workers that are killed change nothing."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import neg
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import ppl_vae as pv
from ppl_vae.errors import OptionError, PplVaeError, whole
from ppl_vae.use import engines

ROWS = pd.DataFrame(np.random.RandomState(0).randn(120, 4), columns=list("abcd"))


def ppca(q: int, seed: int) -> Any:
    return pv.PPCA(q).fit(ROWS[:80])


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="distributed is not installed: pip install ppl_vae[dask]")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        yield client


@pytest.fixture
def job(tmp_path: Path) -> tuple[Any, Path]:
    """A model and a file, and the parts by the builtin `map` in a folder beside it."""
    ROWS.to_parquet(source := tmp_path / "t.parquet")
    model = pv.PPCA(2).fit(ROWS)
    pv.score_files(model, source, tmp_path / "serial", num_draws=8, rows=10, progress=False)
    return model, source


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def killing(engine: Callable, pids: Callable[[], list[int]]) -> Callable[..., Iterator[Any]]:
    """The engine, of whose workers one is killed when the first result is there."""

    def spoilt(function: Callable, tasks: Iterable[Any]) -> Iterator[Any]:
        for number, result in enumerate(engine(function, tasks)):
            if number == 0:
                os.kill(pids()[0], signal.SIGKILL)
            yield result

    return spoilt


def test_processes_go_on_where_one_is_killed(job: tuple[Any, Path], tmp_path: Path) -> None:
    model, source = job
    engine = killing(
        engines.processes(2), lambda: [child.pid for child in multiprocessing.active_children() if child.pid]
    )
    found = pv.score_files(model, source, tmp_path / "out", num_draws=8, rows=10, map=engine, progress=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "serial") and found.rows == 120


def test_processes_in_order_of_one_thread_and_their_errors() -> None:
    engine = engines.processes(1)
    assert list(engine(neg, [])) == []
    with pytest.raises(OptionError, match="n: got 0"):
        list(engine(partial(whole, "n"), [1, 0, 2]))
    assert list(engine(_threads, [0, 0])) == [1, 1]


def test_workers_that_are_always_killed_are_an_error_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "RETRIES", 0)
    with pytest.raises(PplVaeError, match="processes: got workers that were killed 1 times in a row"):
        list(engines.processes(1)(os._exit, [1]))


def test_a_cluster_goes_on_where_a_worker_is_killed(client: Any, job: tuple[Any, Path], tmp_path: Path) -> None:
    model, source = job
    engine = killing(engines.dask(client), lambda: list(client.run(os.getpid).values()))
    found = pv.score_files(model, source, tmp_path / "out", num_draws=8, rows=10, map=engine, progress=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "serial") and found.rows == 120


def test_cells_of_a_comparison_on_a_cluster_are_those_of_map(client: Any) -> None:
    candidates = {f"q={q}": pv.Candidate(partial(ppca, q), objective=None) for q in (1, 2)}
    options: dict[str, Any] = {"seeds": [0], "evidence": ("iwae", {"num_draws": 8}), "num_draws": 8, "progress": False}
    serial = pv.compare(candidates, ROWS[:80], ROWS[80:], **options)
    spread = pv.compare(candidates, ROWS[:80], ROWS[80:], map=engines.dask(client), **options)
    assert spread.pointwise.equals(serial.pointwise) and spread.cells["error"].isna().all()


def test_an_error_on_a_cluster_stops_the_others_and_is_not_tried_again(client: Any, tmp_path: Path) -> None:
    engine = engines.dask(client)
    assert list(engine(neg, [1, 2, 3])) == [-1, -2, -3]
    with pytest.raises(OptionError, match="n: got 0"):
        list(engine(partial(whole, "n"), [1, 0, 2]))
    with pytest.raises(ZeroDivisionError):
        list(engines.dask(client, retries=0)(partial(divmod, 1), [1, 0]))


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(OptionError, match="n: got 0"):
        engines.processes(0)
    with pytest.raises(OptionError, match="retries: got -1"):
        engines.dask(None, retries=-1)


def _threads(_: Any) -> int:
    return torch.get_num_threads()
