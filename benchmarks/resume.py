"""Fits that are killed, fits of two processes, and many fits in one process.

    python benchmarks/resume.py              # all of them
    python benchmarks/resume.py kills        # SIGKILL at 20 random steps: are the final weights those of a fit left alone?
    python benchmarks/resume.py elastic      # one of two processes killed, 10 times, under torchrun --max-restarts 1
    python benchmarks/resume.py throughput   # rows/s of two processes of one thread, beside one of one thread
    python benchmarks/resume.py soak         # 1,000 fits in one process: memory, Pyro's store, threads, open files

A table of 20 features; nets of 64 tanh units, 8 latents (throughput: two layers of 256). Killed are fits by the programs, by
the traced and by the compiled graph in turn, some milliseconds after a random step.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyro
from cells import cell, show

import ppl_vae as pv

KILLS, RESTARTS, ROUNDS, FITS = 20, 10, 5, 1000
ROWS, FEATURES, EPOCHS, BATCH = 4000, 20, 60, 100
WAYS = (False, "traced", True)
PROGRAM = f"""
import json, os, signal, sys, threading, numpy as np, torch, ppl_vae as pv
torch.set_num_threads(1)
folder, name, way, kill = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
shared = "RANK" in os.environ
x = np.random.RandomState(0).randn({ROWS}, {FEATURES}).astype("float32")
if kill and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" and os.environ.get("RANK", "1") == "1":
    from ppl_vae.infer.run import Run
    after = Run.after
    def die(self, step, interrupted):
        after(self, step, interrupted)
        if step.number >= kill: threading.Timer(0.002, os.kill, (os.getpid(), signal.SIGKILL)).start()
    Run.after = die
vae = pv.build(x, latent=8, hidden=(64,))
pv.fit(vae, x, epochs={EPOCHS}, batch_size={BATCH}, lr=3e-3, progress=False, compiled=way, distributed=shared,
    checkpoint=folder + "/kept-" + name, checkpoint_steps=7)
if os.environ.get("RANK", "0") == "0": pv.save(vae, folder + "/" + name)
if shared: torch.distributed.destroy_process_group()
"""
SPEED = """
import os, sys, time, numpy as np, torch, ppl_vae as pv
torch.set_num_threads(1)
shared = "RANK" in os.environ
size = int(os.environ.get("WORLD_SIZE", "1"))
x = np.random.RandomState(0).randn(40960, 20).astype("float32")
vae = pv.build(x, latent=8, hidden=(256, 256))
met = []
pv.fit(vae, x, epochs=6, batch_size=512 * size, lr=1e-3, progress=False, compiled=False, valid=0.0, distributed=shared,
    callbacks=[lambda v, h: met.append(h.epochs[-1]["rows_per_s"])])
if os.environ.get("RANK", "0") == "0": print(sorted(met[1:])[len(met) // 2])
if shared: torch.distributed.destroy_process_group()
"""


def run(folder: Path, program: str, *args: str, processes: int = 1, restarts: int = 0) -> Any:
    script = folder / "program.py"
    script.write_text(program)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    launcher += [f"--max-restarts={restarts}", "--monitor-interval=0.1"]
    given = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(pv.__file__).parent.parent)}
    command = [sys.executable, "-W", "ignore", *(launcher if processes > 1 else []), str(script), str(folder), *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=given)


def same(one: Path, other: Path) -> bool:
    a, b = (pv.load(path).state_dict() for path in (one, other))
    return all(bool((value == b[name]).all()) for name, value in a.items())


def kills() -> dict[str, Any]:
    """How many of the fits that were killed end bit-equal to those that were not."""
    random, equal, died = np.random.RandomState(0), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for way in WAYS:
            done = run(folder, PROGRAM, f"alone-{way}", json.dumps(way), "0")
            assert done.returncode == 0, done.stderr
        for number in range(KILLS):
            way, step = WAYS[number % 3], int(random.randint(1, EPOCHS * int(0.9 * ROWS / BATCH)))
            first = run(folder, PROGRAM, f"{number}", json.dumps(way), f"{step}")
            died += first.returncode == -signal.SIGKILL
            again = run(folder, PROGRAM, f"{number}", json.dumps(way), "0")
            equal += again.returncode == 0 and same(folder / f"{number}", folder / f"alone-{way}")
    return {"kills": KILLS, "died": died, "bit-equal": equal}


def elastic() -> dict[str, Any]:
    """How many fits of two processes, one of which is killed, recover, and end bit-equal to one left alone."""
    random, equal, recovered = np.random.RandomState(1), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        done = run(folder, PROGRAM, "alone", "false", "0", processes=2)
        assert done.returncode == 0, done.stderr
        for number in range(RESTARTS):
            step = int(random.randint(1, EPOCHS * int(0.9 * ROWS / BATCH)))
            again = run(folder, PROGRAM, f"{number}", "false", f"{step}", processes=2, restarts=1)
            recovered += again.returncode == 0
            equal += again.returncode == 0 and same(folder / f"{number}", folder / "alone")
    return {"kills": RESTARTS, "recovered": recovered, "bit-equal": equal}


def throughput() -> dict[str, Any]:
    """Medians of rounds, one after the other in each."""
    found: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        for _ in range(ROUNDS):
            for processes, kept in found.items():
                done = run(Path(name), SPEED, processes=processes)
                assert done.returncode == 0, done.stderr
                kept.append(float(done.stdout.split()[-1]))
    one, two = (statistics.median(kept) for kept in found.values())
    return {"rows/s, one": one, "rows/s, two": two, "ratio": two / one}


def soak() -> dict[str, Any]:
    """What a thousand fits leave behind; the slope of memory over the second half of them."""

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024

    def files() -> int:
        return len(os.listdir("/proc/self/fd"))

    x, kept = np.random.RandomState(0).randn(60, 4).astype("float32"), []
    before = 0, 0
    start = time.perf_counter()
    for number in range(FITS):
        vae = pv.build(x, latent=2, hidden=(8,), seed=number)
        pv.fit(vae, x, epochs=2, progress=False, seed=number)
        pv.score(vae, x, num_draws=4)
        kept.append(resident())
        if number == 9:
            before = files(), threading.active_count()
    half = kept[FITS // 2 :]
    slope = float(np.polyfit(np.arange(len(half)), half, 1)[0])
    return {
        "fits": FITS,
        "kB a fit": slope,
        "MB in all after the tenth": (kept[-1] - kept[9]) / 1024,
        "names in Pyro's store": len(list(pyro.get_param_store())),
        "files left open": files() - before[0],
        "threads left": threading.active_count() - before[1],
        "milliseconds a fit": 1000 * (time.perf_counter() - start) / FITS,
    }


PARTS = {part.__name__: part for part in (kills, elastic, throughput, soak)}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        settings = {"program": PROGRAM, "speed": SPEED, "counts": [KILLS, RESTARTS, ROUNDS, FITS]}
        show([cell("resume", part, settings, PARTS[part])], PARTS[part].__doc__ or part)
