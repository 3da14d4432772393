"""A fit of several processes is that of one, and each holds the same bits; those that die are started again."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ppl_vae as pv
from ppl_vae.infer.distributed import ALONE, Ranks

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(131, 2) @ RANDOM.randn(2, 5) + 0.5 * RANDOM.randn(131, 5)
GREY = RANDOM.rand(131, 6)
COMMON: dict[str, Any] = {"epochs": 3, "batch_size": 32, "lr": 1e-2, "progress": False, "compiled": False, "valid": 0.2}

FITS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ("normal", {"objective": name, "particles": 2}) for name in pv.objectives()},
    "stopped": ("normal", {"epochs": 40, "patience": 2, "lr": 0.1}),
    "short": ("normal", {"batch_size": 26, "valid": 0.0}),  # a last batch of one row: one process has none
    "traced": ("normal", {"compiled": "traced", "batch_size": 26, "valid": 0.0, "objective": "iwae", "particles": 3}),
    "pixels": ("bernoulli", {"binarize": "stochastic"}),
    "traced pixels": ("bernoulli", {"binarize": "stochastic", "compiled": "traced", "batch_size": 26, "valid": 0.0}),
    "weights": ("weights", {}),
    "clipped": ("normal", {"max_grad_norm": 0.1, "optimizer": "sgd", "kl_warmup": 2}),
}
"""Models and options of fits, by name."""


def make(kind: str) -> tuple[Any, Any]:
    data = GREY if kind == "bernoulli" else X
    options: dict[str, Any] = {
        "normal": {},
        "bernoulli": {"likelihood": "bernoulli"},
        "weights": {"weights": "normal"},
        "codes": {"prior": "categorical", "posterior": "categorical", "latent": 3},
    }[kind]
    return pv.build(data, **{"latent": 2, "hidden": (8,), **options}).double(), data


def fit(name: str, **more: Any) -> tuple[Any, pv.History]:
    kind, given = FITS[name]
    if name in ("enumerate", "relaxation"):
        kind, given = "codes", {**given, "particles": 1}
    vae, data = make(kind)
    return vae, pv.fit(vae, data, **{**COMMON, **given, **more})


SHARED = """
import json, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import test_distributed as own
from safetensors.torch import save_file
out, rank = sys.argv[2], None
for name in own.FITS:
    vae, history = own.fit(name, distributed=True)
    rank = torch.distributed.get_rank()
    save_file({k: v.clone() for k, v in vae.state_dict().items()}, f"{out}/{name}-{rank}.safetensors")
    frame = history.to_frame().drop(columns=["seconds", "rows_per_s"])
    json.dump([history.stopped, history.best_epoch, frame.to_numpy().tolist()], open(f"{out}/{name}-{rank}.json", "w"))
torch.distributed.destroy_process_group()
"""


def torchrun(program: str, folder: Path, *args: str, restarts: int = 0, **environment: str) -> Any:
    """Two processes of one thread each, by torch's own launcher."""
    script = folder / "program.py"
    script.write_text(textwrap.dedent(program))
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    given = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [*command, f"--max-restarts={restarts}", "--monitor-interval=0.1", str(script), *args],
        capture_output=True, text=True, timeout=300, env=given, cwd=folder,
    )  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    run = torchrun(SHARED, folder, str(Path(__file__).parent), str(folder))
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", FITS)
def test_two_processes_fit_what_one_does(name: str, shared: Path) -> None:
    """Every objective; uneven parts; stopping at the same epoch. In double precision, so that rounding stays small."""
    from safetensors.torch import load_file

    first, second = (load_file(shared / f"{name}-{rank}.safetensors") for rank in (0, 1))
    vae, history = fit(name)
    for key, value in vae.state_dict().items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=0, atol=1e-6)
    figures = [json.loads((shared / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    expected = history.to_frame().drop(columns=["seconds", "rows_per_s"]).to_numpy()
    assert np.array_equal(figures[0][2], figures[1][2], equal_nan=True)
    np.testing.assert_allclose(np.array(figures[0][2], float), expected, rtol=1e-6, atol=1e-6)
    assert figures[0][:2] == [history.stopped, history.best_epoch]


RESTARTED = """
import os, signal, sys, numpy as np, torch, ppl_vae as pv
torch.set_num_threads(1)
folder, kill = sys.argv[1], int(sys.argv[2])
x = np.load(folder + "/x.npy")
vae = pv.build(x, latent=2, hidden=(8,))
def die(vae, history):
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and kill == len(history) and os.environ["RANK"] == "1": os.kill(os.getpid(), signal.SIGKILL)
pv.fit(vae, x, epochs=12, batch_size=32, progress=False, compiled=False, callbacks=[die], distributed=True,
    checkpoint=folder + "/kept-" + str(kill), checkpoint_steps=3)
if os.environ["RANK"] == "0": pv.save(vae, folder + "/model-" + str(kill))
torch.distributed.destroy_process_group()
"""


def test_a_process_that_dies_is_started_again(tmp_path: Path) -> None:
    """The end is that of two processes that were left alone, bit for bit."""
    np.save(tmp_path / "x.npy", X)
    for kill in (0, 5):
        run = torchrun(RESTARTED, tmp_path, str(tmp_path), str(kill), restarts=1)
        assert run.returncode == 0, run.stderr[-3000:]
    undisturbed, again = (pv.load(tmp_path / f"model-{kill}").state_dict() for kill in (0, 5))
    assert all(torch.equal(value, again[name]) for name, value in undisturbed.items())


REFUSED = """
import os, sys, numpy as np, torch, ppl_vae as pv
x = np.random.RandomState(0).randn(40, 3)
rank, said = int(os.environ["RANK"]), []
options = dict(epochs=1, progress=False, distributed=True)
moved = pv.build(x, latent=1)
with torch.no_grad(): next(moved.parameters()).add_(rank)
asked = {
    "weights": lambda: pv.fit(moved, x, **options),
    "model's seed": lambda: pv.fit(pv.build(x, latent=1, seed=rank), x, **options),
    "data": lambda: pv.fit(pv.build(x, latent=1), x + rank, **options),
    "lr": lambda: pv.fit(pv.build(x, latent=1), x, lr=1e-3 * (1 + rank), **options),
    "graph": lambda: pv.fit(pv.build(x, latent=1), x, compiled=True, **options),
}
for name, call in asked.items():
    try: call()
    except pv.OptionError as error: said.append(f"{name}: {error}")
alone = pv.build(x, latent=1)
pv.fit(alone, x, epochs=1, progress=False)
said.append("alone: " + float(sum(p.double().sum() for p in alone.parameters())).hex())
open(f"said-{rank}.txt", "w").write("\\n".join(said))
torch.distributed.destroy_process_group()
"""


def test_processes_that_are_not_alike_are_refused(tmp_path: Path) -> None:
    """And a plain fit of each is the same model in all."""
    run = torchrun(REFUSED, tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    first, second = ((tmp_path / f"said-{rank}.txt").read_text().splitlines() for rank in (0, 1))
    assert first == second and len(first) == 6
    for line, name in zip(first, ("weights", "model's seed", "data", "lr")):
        assert line.startswith(f"{name}: distributed: got other {name} in process 1 than in process 0")
    assert "'traced' leaves it out of the graph" in first[4] and first[5].startswith("alone")


def test_every_row_is_one_process_own() -> None:
    for n in (0, 1, 5, 32):
        for size in (1, 2, 3, 7):
            places = [list(range(n))[Ranks(rank, size).part(n)] for rank in range(size)]
            assert [place for own in places for place in own] == list(range(n))
            assert max(map(len, places)) - min(map(len, places)) <= 1
    assert ALONE.total(1.0, 2.5) == [1.0, 2.5]


def test_without_a_launcher() -> None:
    vae, data = make("normal")
    with pytest.raises(pv.OptionError, match="in a process that torchrun did not start"):
        pv.fit(vae, data, distributed=True, **COMMON)
    with pytest.raises(pv.OptionError, match="distributed: got 2"):
        pv.fit(vae, data, distributed=2, **COMMON)  # type: ignore[arg-type]


def test_a_plain_fit_among_several_processes_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    vae, data = make("normal")
    pv.fit(vae, data, **{**COMMON, "epochs": 1})
    assert "2 processes were started, and each makes the whole fit" in caplog.text
