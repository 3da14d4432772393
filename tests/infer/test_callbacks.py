"""Callbacks of `fit`: each epoch once, whole, also of a fit that was stopped and goes on."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppl_vae as pv
from ppl_vae.infer.callbacks import JsonLines, TensorBoard, callbacks

X = np.random.RandomState(0).randn(80, 3)
FIGURES = ("bound", "kl", "valid_bound", "lr", "grad_norm", "reconstruction")


class Stop(Exception):
    """The process is killed."""


def stop_at(epoch: int) -> Any:
    def stop(vae: Any, history: pv.History) -> None:
        if len(history) == epoch:
            raise Stop

    return stop


def fit(folder: Path, epochs: int, logs: list[Any], checkpoint: bool = True) -> pv.History:
    vae = pv.build(X, latent=2, hidden=(4,))
    kept = {"checkpoint": folder / "kept", "checkpoint_steps": 3} if checkpoint else {}  # 5 steps an epoch
    return pv.fit(vae, X, epochs=epochs, batch_size=16, progress=False, callbacks=logs, **kept)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines_are_the_history(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "new" / "log.jsonl")
    history = fit(tmp_path, 3, [log], checkpoint=False)
    assert lines(log.path) == history.epochs
    fit(tmp_path, 2, [log], checkpoint=False)
    assert [line["epoch"] for line in lines(log.path)] == [1, 2]  # a fit that begins anew


def test_a_line_holds_no_nan(tmp_path: Path) -> None:
    history = pv.History()
    history.append({"epoch": 1, "bound": math.nan, "kl": math.inf, "lr": 0.5})
    JsonLines(tmp_path / "log.jsonl")(None, history)
    assert lines(tmp_path / "log.jsonl") == [{"epoch": 1, "bound": None, "kl": None, "lr": 0.5}]


@pytest.mark.parametrize("killed_at", [1, 3])
def test_json_lines_of_a_fit_that_goes_on_stand_once(tmp_path: Path, killed_at: int) -> None:
    path = tmp_path / "log.jsonl"
    with pytest.raises(Stop):
        fit(tmp_path, 4, [JsonLines(path), stop_at(killed_at)])
    assert len(lines(path)) == killed_at
    with path.open("a") as file:
        file.write('{"epoch": ')  # what a crash may leave
    history = fit(tmp_path, 4, [JsonLines(path)])
    assert [line["epoch"] for line in lines(path)] == [1, 2, 3, 4]
    assert [[line[name] for name in FIGURES] for line in lines(path)] == [
        [epoch[name] for name in FIGURES] for epoch in history.epochs
    ]


def test_names_make_callbacks(tmp_path: Path) -> None:
    (one,) = callbacks("jsonl", tmp_path)
    assert isinstance(one, JsonLines) and one.path == tmp_path / "log.jsonl"
    assert callbacks([], tmp_path) == []
    with pytest.raises(pv.OptionError, match="log: got 'print', expected one of 'jsonl', 'tensorboard'"):
        callbacks("print", tmp_path)


def scalars(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard's own imports
def test_tensorboard_reads_the_history_back_also_of_a_fit_that_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: the extra `tensorboard` brings it")
    first, second = TensorBoard(tmp_path / "events"), TensorBoard(tmp_path / "events")
    with pytest.raises(Stop):
        fit(tmp_path, 4, [first, stop_at(3)])
    first.close()
    assert [event.step for event in scalars(tmp_path / "events").Scalars("bound")] == [1, 2, 3]
    history = fit(tmp_path, 4, [second])
    second.close()
    found = scalars(tmp_path / "events")
    assert set(found.Tags()["scalars"]) == set(history) - {"epoch"}
    for name in FIGURES:
        events = found.Scalars(name)
        assert [event.step for event in events] == [1, 2, 3, 4]
        assert np.allclose([event.value for event in events], history[name], rtol=1e-6)


def test_without_tensorboard_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(pv.OptionError, match=r"pip install 'ppl_vae\[tensorboard\]'"):
        TensorBoard(tmp_path)
