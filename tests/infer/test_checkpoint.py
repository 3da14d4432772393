"""A fit that was stopped goes on as if it had not been, bit for bit; what is no state of it is refused."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

import ppl_vae as pv
from ppl_vae.infer.objectives import objective
from ppl_vae.infer.run import Run

RANDOM = np.random.RandomState(0)
X = (RANDOM.randn(150, 2) @ RANDOM.randn(2, 5) + 0.5 * RANDOM.randn(150, 5)).astype("float32")
GREY = RANDOM.rand(150, 6).astype("float32")
OPTIONS: dict[str, Any] = {"epochs": 4, "lr": 1e-2, "batch_size": 32, "progress": False, "compiled": False}


class Stopped(Exception):
    """As a process that is killed, between two steps."""


def small(x: Any = X, **options: Any) -> Any:
    return pv.build(x, latent=2, hidden=(8,), **options)


class Noisy(nn.Module):
    """A net that drops units, which draws from torch's own generator, and a parameter that only the program has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.3), nn.Linear(8, 5))

    def forward(self, z: torch.Tensor) -> Any:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        return dist.Normal(self.net(z), scale).to_event(1)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return dist.Normal(self.net(x), 0.5).to_event(1)


def own() -> Any:
    return pv.VAE(Encoder(), Noisy(), lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1))


KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "elbo": (small, X, {}),
    "iwae": (small, X, {"objective": "iwae", "particles": 3}),
    "mcem": (small, X, {"objective": "mcem", "particles": 2}),
    "baseline": (small, X, {"objective": ("score_function", {"baseline": "decaying"})}),
    "factory": (small, X, {"objective": lambda: Trace_ELBO(num_particles=2)}),
    "trace_graph": (small, X, {"objective": "trace_graph"}),
    "wake_sleep": (small, X, {"objective": "wake_sleep"}),
    "cyclic": (small, X, {"objective": "cyclic", "kl_warmup": 3}),
    "patience": (small, X, {"patience": 1, "lr": 0.3, "epochs": 30}),
    "sgd": (small, X, {"optimizer": "sgd", "max_grad_norm": 1.0}),
    "adagrad": (small, X, {"optimizer": "adagrad", "schedule": "constant"}),
    "adamw": (small, X, {"optimizer": "adamw", "weight_decay": 0.1, "valid": 0.0}),
    "pixels": (lambda: small(GREY, likelihood="bernoulli"), GREY, {"binarize": "stochastic"}),
    "weights": (lambda: small(weights="normal"), X, {}),
    "own": (own, X, {}),
    "traced": (small, X, {"compiled": "traced", "batch_size": 2, "epochs": 2}),
    "traced pixels": (
        lambda: small(GREY, likelihood="bernoulli"),
        GREY,
        {"binarize": "stochastic", "compiled": "traced", "batch_size": 2, "epochs": 2},
    ),
}


def everything(vae: Any) -> dict[str, torch.Tensor]:
    """What a fit leaves, with the parameters of its programs' own."""
    from ppl_vae.infer.scope import _own

    return {k: v.clone() for k, v in vae.state_dict().items()} | {
        name: value.detach().clone() for name, value in _own[vae]["params"].items()
    }


def columns(history: Any) -> Any:
    return history.to_frame().drop(columns=["seconds", "rows_per_s"])


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> Any:
    """Until it is undone, a fit of this process ends after so many calls of it."""
    after, met = Run.after, [0]

    def counted(self: Run, step: Any, interrupted: bool) -> None:
        met[0] += 1
        after(self, step, interrupted)
        if met[0] == steps:
            raise Stopped

    patch = monkeypatch.context()
    patch.__enter__().setattr(Run, "after", counted)
    return patch


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_that_was_stopped_ends_where_it_would_have(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an epoch and at its end, at the first step and the last."""
    make, data, given = KINDS[kind]
    options = {**OPTIONS, **given}
    undisturbed = make()
    expected = pv.fit(undisturbed, data, **options)
    steps = int(undisturbed.steps)
    wanted = everything(undisturbed)
    stops = [(1, 1), (1, 3), (2, 5), (1, steps)]
    if options["compiled"] == "traced":  # 68 steps an epoch, in two calls of the graph
        stops = [(1, 1), (1, 2)]
    for kept, stop in stops:
        folder = tmp_path / f"{kept}-{stop}"
        again = {**options, "checkpoint": folder, "checkpoint_steps": kept}
        patch = stop_after(monkeypatch, stop)
        with pytest.raises(Stopped):
            pv.fit(make(), data, **again)
        patch.__exit__(None, None, None)
        vae = make()
        history = pv.fit(vae, data, **again)
        found = everything(vae)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), (kept, stop)
        assert columns(history).equals(columns(expected)), (kept, stop)
        assert history.stopped == expected.stopped and history.best_epoch == expected.best_epoch
        done = make()
        assert columns(pv.fit(done, data, **again)).equals(columns(expected))  # read, not fitted
        assert all(torch.equal(value, wanted[name]) for name, value in everything(done).items())


def test_a_compiled_fit_goes_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**OPTIONS, "compiled": True, "batch_size": 2, "epochs": 2}
    undisturbed = small()
    expected = pv.fit(undisturbed, X, **options)
    again = {**options, "checkpoint": tmp_path, "checkpoint_steps": 1}
    patch = stop_after(monkeypatch, 3)
    with pytest.raises(Stopped):
        pv.fit(small(), X, **again)
    patch.__exit__(None, None, None)
    vae = small()
    history = pv.fit(vae, X, **again)
    assert all(torch.equal(v, undisturbed.state_dict()[name]) for name, v in vae.state_dict().items())
    assert columns(history).equals(columns(expected))


def test_the_model_that_was_stopped_goes_on_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook; and a second fit goes on from the end of the first, with a folder of its own."""
    undisturbed, vae = small(), small()
    for _ in range(2):
        pv.fit(undisturbed, X, **OPTIONS)
    for place, stop in (("a", 7), ("b", 3)):
        patch = stop_after(monkeypatch, stop)
        with pytest.raises(Stopped):
            pv.fit(vae, X, checkpoint=tmp_path / place, checkpoint_steps=1, **OPTIONS)
        patch.__exit__(None, None, None)
        pv.fit(vae, X, checkpoint=tmp_path / place, checkpoint_steps=1, **OPTIONS)
    assert all(torch.equal(v, undisturbed.state_dict()[name]) for name, v in vae.state_dict().items())


KILLED = """
import signal, sys, numpy as np, torch, ppl_vae as pv
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)
folder, x = sys.argv[1], np.load(sys.argv[1] + "/x.npy")
vae = pv.build(x, latent=2, hidden=(8,))
say = lambda vae, history: print(len(history), flush=True)
pv.fit(vae, x, epochs=40, batch_size=32, progress=False, compiled=False, callbacks=[say], checkpoint=folder + "/kept",
    checkpoint_steps=1)
pv.save(vae, folder + "/model")
"""


def started(folder: Path) -> Any:
    np.save(folder / "x.npy", X)
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_was_killed_goes_on(kill: int, tmp_path: Path) -> None:
    first = started(tmp_path)
    for line in first.stdout:
        if int(line) == 7:
            first.send_signal(kill)
            break
    _, errors = first.communicate(timeout=60)
    assert first.returncode != 0 and not (tmp_path / "model").exists()
    if kill == signal.SIGINT:
        assert errors.rstrip().endswith("KeyboardInterrupt")
    assert json.loads((tmp_path / "kept" / "checkpoint.json").read_text())["numbers"]["step"] >= 7 * 5
    _, errors = (second := started(tmp_path)).communicate(timeout=120)
    assert second.returncode == 0, errors
    undisturbed = small()
    pv.fit(undisturbed, X, epochs=40, batch_size=32, progress=False, compiled=False)
    back = pv.load(tmp_path / "model")
    assert all(torch.equal(v, undisturbed.state_dict()[name]) for name, v in back.state_dict().items())


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handler, where a process that runs tests has none."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_leaves_the_model_after_a_whole_step(tmp_path: Path, ctrl_c: None) -> None:
    vae, met = small(), []

    def interrupt(vae: Any, history: Any) -> None:
        met.append(len(history))
        if len(history) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    options = {**OPTIONS, "checkpoint": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        pv.fit(vae, X, callbacks=[interrupt], **options)
    assert met == [1, 2] and int(vae.steps) == 2 * 5 + 1
    assert np.isfinite(pv.score(vae, X).values).all()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    undisturbed = small()
    pv.fit(undisturbed, X, **OPTIONS)
    pv.fit(vae, X, **options)
    assert all(torch.equal(v, undisturbed.state_dict()[name]) for name, v in vae.state_dict().items())


def test_ctrl_c_in_the_last_epoch_leaves_the_best_weights(ctrl_c: None) -> None:
    """A step size that spoils what the first epochs learned: the last weights are not the best."""
    options = {**OPTIONS, "lr": 0.3, "schedule": "constant", "valid": 0.3, "patience": 100}
    vae, undisturbed, last = small(), small(), OPTIONS["epochs"]

    def interrupt(vae: Any, history: Any) -> None:
        if len(history) == last:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        pv.fit(vae, X, callbacks=[interrupt], **options)
    assert pv.fit(undisturbed, X, **options).best_epoch < last
    assert all(torch.equal(v, undisturbed.state_dict()[name]) for name, v in vae.state_dict().items())


def test_a_second_ctrl_c_does_not_wait(ctrl_c: None) -> None:
    def interrupt(vae: Any, history: Any) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second one went by")

    with pytest.raises(KeyboardInterrupt):
        pv.fit(small(), X, callbacks=[interrupt], **OPTIONS)


def test_fits_run_in_threads_that_get_no_signals() -> None:
    vae, failed = small(), []

    def run() -> None:
        try:
            pv.fit(vae, X, **OPTIONS)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failed and int(vae.steps) == 4 * 5


def test_a_state_is_kept_by_the_clock(tmp_path: Path) -> None:
    """With none but that of the end in an hour, and one after every step in no time."""
    written = []
    for seconds in (3600.0, 0.0):
        kept: list[float] = []
        folder = tmp_path / str(seconds)

        def look(vae: Any, history: Any, folder: Path = folder, kept: list[float] = kept) -> None:
            file = folder / "checkpoint.json"
            kept.append(json.loads(file.read_text())["numbers"]["step"] if file.exists() else 0)

        folder.mkdir()
        (folder / ".checkpoint.json.0123abcd").write_text("")  # of a process that was killed
        pv.fit(small(), X, checkpoint=folder, checkpoint_seconds=seconds, callbacks=[look], **OPTIONS)
        written.append(kept)
        assert len(list(folder.iterdir())) == 2  # nothing stale stays
    assert written == [[0, 0, 0, 0], [5, 10, 15, 20]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 2e-2}, "whose lr was 0.01, expected 0.02"),
        ({"seed": 1}, "whose seed was 0, expected 1"),
        ({"objective": "iwae"}, "whose objective was 'elbo', expected 'iwae'"),
        ({"data": X + 1}, "whose data was"),
        ({"vae": pv.build(X, latent=3)}, "whose model's hidden was"),
        ({"vae": small(activation="relu")}, "whose model's activation was 'tanh', expected 'relu'"),
        ({"vae": small(prior="laplace")}, "whose model's prior was 'standard_normal', expected 'laplace'"),
        ({"vae": small(seed=1)}, "whose model's seed was 0, expected 1"),
        ({"vae": small().double()}, "whose model was"),
    ],
)
def test_the_state_of_another_fit_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    options = {**OPTIONS, "checkpoint": tmp_path, "epochs": 1}
    pv.fit(small(), X, **options)
    vae, data = change.pop("vae", small()), change.pop("data", X)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    with pytest.raises(pv.OptionError, match=f"of another fit, {message}"):
        pv.fit(vae, data, **{**options, **change})
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    options = {**OPTIONS, "checkpoint": tmp_path, "epochs": 1}
    pv.fit(small(), X, **options)
    for file in sorted(tmp_path.iterdir()):
        raw = file.read_bytes()
        for damaged in (raw[:-1], raw[:100] + b"?" + raw[101:], b""):
            file.write_bytes(damaged)
            with pytest.raises(pv.ModelFileError, match="expected"):
                pv.fit(small(), X, **options)
        file.write_bytes(raw)
    pv.fit(small(), X, **options)


def test_half_a_state_is_refused(tmp_path: Path) -> None:
    """Not taken for none, so that what is there is not written over."""
    options = {**OPTIONS, "checkpoint": tmp_path, "epochs": 1}
    pv.fit(small(), X, **options)
    next(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(pv.ModelFileError, match=r"expected the tensors of the checkpoint, beside checkpoint\.json"):
        pv.fit(small(), X, **options)


def test_bounds_that_are_not_finite_are_kept(tmp_path: Path) -> None:
    """As of a held-out row that no float32 holds the density of."""
    far = X.copy()
    far[torch.randperm(150, generator=torch.Generator().manual_seed(0))[0]] = 1e25  # the first that a fit holds out
    options = {**OPTIONS, "checkpoint": tmp_path, "checkpoint_steps": 1}
    history = pv.fit(small(), far, **options)
    assert np.isneginf(history["valid_bound"]).all()
    again = pv.fit(small(), far, **options)
    assert again.epochs == history.epochs


def test_equal_options_are_the_same_in_every_process() -> None:
    """A number of NumPy's is that number, and no place in memory is part of a name."""
    given = {name: p.default for name, p in signature(pv.fit).parameters.items() if p.default is not Parameter.empty}
    given.pop("progress")
    a, b = (
        Run(small(), X, **{**given, "lr": lr, "objective": objective("iwae", 2)}) for lr in (np.float64(0.01), 0.01)
    )
    assert a.identity == b.identity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": 3}, "checkpoint: got 3, expected a folder"),
        ({"checkpoint": "x", "checkpoint_seconds": -1}, "checkpoint_seconds"),
        ({"checkpoint": "x", "checkpoint_steps": 0}, "checkpoint_steps"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(pv.OptionError, match=message):
        pv.fit(small(), X, **options)


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(pv.ModelFileError, match=r"could not be (read|written)"):
        pv.fit(small(), X, checkpoint=tmp_path / "file", **OPTIONS)
