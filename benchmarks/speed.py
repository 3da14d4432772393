"""How fast? Training steps, whole fits and scores, beside Pyro, PyTorch by hand, NumPyro, PyOD and pythae.

    python benchmarks/speed.py                  # every part, one after another, on a machine that does nothing else
    python benchmarks/speed.py step/tabular     # parts whose name starts so
    SPEED_QUICK=1 python benchmarks/speed.py    # sizes that say nothing, to see that it runs; keeps nothing

"step": milliseconds a step of training, of "tabular" (20 features, 64 hidden, 8 latent, batches of 256 of 51,200 rows) and
"mnist" (784, 400, 20, batches of 128 of 59,904 rows), the contestants of `speed_peers.py` one after another in rounds whose
order rotates. In each round each trains for some epochs more, the first of which is not timed. Medians over rounds, and
quartiles in brackets. All have as many weights, and after as many steps bounds alike. An epoch has in it whatever a
contestant does for each: orders, noise, records. "floor": the matrix products of a step alone, by MKL or oneDNN, whichever
is faster at each shape, and at the rate of products of 2048 x 2048.

"growth": t = a + b n^c fitted to the time of a compiled step, or of a score, at five sizes n of one thing, and the
standard error of c. "fits": seconds of whole fits, each in a process of its own. "score": the reconstruction probability
of 100,000 rows by 64 draws; beside Pyro's route, and by hand with whichever number of rows at a time is fastest; the three
must agree; then the peak memory above what was there before, in processes of their own. "compile": in processes of their
own, without anything cached. "figure2": Kingma & Welling's (2013) figure 2 as in `aevb_curves.py`, end to end.

As many threads (OMP_NUM_THREADS, else all cores) for torch and JAX, which never run at the same time; the process is kept
to as many cores. Others come with `pip install -e ".[bench]"`; what is not there is named with the reason. The last lines
say what was asked for, and what was met. Linux only (memory, cores).
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import curve_fit
from speed_peers import FITS, LR, STEPS, Contestant, Problem, by_hand, by_predictive, ours, same_weights

import ppl_vae as pv

Row = dict[str, Any]
Read = Callable[[dict[str, Row]], float]
"""From the rows of a part by what their first column says."""
QUICK = bool(os.environ.get("SPEED_QUICK"))
SCRATCH = TemporaryDirectory(prefix="speed")  # what torch compiles, of this process alone
RESULTS = Path(SCRATCH.name) if QUICK else Path(__file__).parent / "results" / "speed"
THREADS = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
PACKAGES = ("torch", "pyro-ppl", "numpyro", "jax", "pyod", "pythae", "numpy")
TABULAR, MNIST = Problem(20, 64, 8, 256, 200 * 256), Problem(784, 400, 20, 128, 468 * 128)
if QUICK:
    TABULAR, MNIST = (p._replace(rows=8 * p.batch) for p in (TABULAR, MNIST))
SCORED, DRAWS, BLOCKS = 2_000 if QUICK else 100_000, 64, (32, 128, 512, 2048)


def settle() -> None:
    """Threads and caches of this process."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = SCRATCH.name
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])  # JAX has a thread a core that it may run on
    torch.set_num_threads(THREADS)


def machine() -> Row:
    """Where the figures come from."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = {word for line in lines if line.startswith("flags") for word in line.split()}
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    fast = sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"})
    load = round(os.getloadavg()[0], 1)
    of_cpu = {"cpu": names[0], "instructions": fast, "cores": os.cpu_count(), "threads": THREADS, "load before": load}
    return {**of_cpu, "python": platform.python_version(), **versions}


def _settled(call: Callable, args: tuple) -> Any:
    settle()
    return call(*args)


def apart(call: Callable, *args: Any) -> Any:
    """What a function gives in a fresh process, where nothing is compiled and no memory was used."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_settled, call, args).result()


def rotating(calls: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each gives in each round."""
    names, found = list(calls), {name: [] for name in calls}
    for j in range(rounds):
        for name in names[j % len(names) :] + names[: j % len(names)]:
            found[name].append(calls[name]())
    return found


def timed(call: Callable[[], Any]) -> float:
    """Seconds."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def reason(error: BaseException) -> str:
    """Of a failure, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"


# ---- training steps


def steps(problem: Problem, epochs: int, rounds: int) -> list[Row]:
    """One row a contestant."""
    x, contestants, missing = problem.data(), dict[str, Contestant](), dict[str, str]()
    if QUICK:
        epochs, rounds = 1, 2
    for name, make in STEPS.items():
        try:
            contestants[name] = make(problem, x)
            contestants[name].run(1)  # compiles
        except Exception as error:  # one that is not there, or not for this machine, is left out
            contestants.pop(name, None)
            missing[name] = reason(error)
    bounds = dict[str, float]()

    def stretch(name: str) -> float:
        seconds, bounds[name] = contestants[name].run(1 + epochs)
        return 1e3 * statistics.mean(seconds[1:]) / problem.steps

    found = rotating({name: partial(stretch, name) for name in contestants}, rounds)
    rows = []
    for name, ms in found.items():
        row: Row = {"contestant": name, "weights": contestants[name].weights, "bound": bounds[name], **spread("ms", ms)}
        for to in ("ppl_vae, compiled", "PyTorch, eager"):
            if to in found:
                row |= spread(f"to {to}", np.divide(ms, found[to]), np.median(ms) / np.median(found[to]))
        rows.append({**row, "note": "", "rounds": ms})
    return [*rows, *floors(problem), *({"contestant": name, "note": why} for name, why in missing.items())]


def spread(name: str, values: Any, middle: Any = None) -> Row:
    """A median and, in brackets, quartiles."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {name: float(median if middle is None else middle), f"{name} [quartiles]": f"{low:.3g}-{high:.3g}"}


def floors(problem: Problem) -> list[Row]:
    """The matrix products of a step, forward and backward, and nothing else."""
    b, d, h, k = problem.batch, problem.features, problem.hidden, problem.latent
    layers = [(d, h), (h, 2 * k), (k, h), (h, d)]
    products = [(b, i, o) for i, o in layers] + [(i, b, o) for i, o in layers] + [(b, o, i) for i, o in layers[1:]]
    operations = sum(2 * m * n * p for m, n, p in products)
    rows, large = [], 512 if QUICK else 2048
    for dtype, bits in ((torch.float32, "float32"), (torch.bfloat16, "bf16")):
        rate = 2e-9 * large**3 / product(large, large, large, dtype)
        ms, at_rate = 1e3 * sum(product(*shape, dtype) for shape in products), 1e-6 * operations / rate
        note = f"{operations / 1e9:.3g} GFLOP, {at_rate:.3g} ms at the {rate:.0f} GFLOP/s of {large} x {large}"
        rows.append({"contestant": f"floor, {bits}", "ms": ms, "note": note})
    return rows


def product(m: int, n: int, p: int, dtype: torch.dtype) -> float:
    """Seconds of (m, n) times (n, p), by the faster of two libraries."""
    a, b, c = torch.randn(m, n).to(dtype), torch.randn(n, p).to(dtype), torch.empty(m, p, dtype=dtype)
    turned = b.T.contiguous()  # as the weights of a linear layer
    ways: list[Callable[[], Any]] = [lambda: torch.mm(a, b, out=c)]
    if torch.backends.mkldnn.is_available():
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(a, turned, None, "none", [], ""))
    repeats = max(3, int((1e7 if QUICK else 1e9) / (2 * m * n * p)))
    with torch.no_grad():
        return min(timed(lambda way=way: [way() for _ in range(repeats)]) for way in ways for _ in range(5)) / repeats


# ---- growth

AXES: dict[str, tuple[int, ...]] = {
    "batch": (64, 256, 1024, 4096, 16384),
    "features": (20, 80, 320, 1280, 5120),
    "latent": (2, 8, 32, 128, 512),
    "hidden": (16, 64, 256, 1024, 4096),
    "particles": (1, 4, 16, 64, 256),
}
SCORES: dict[str, tuple[int, ...]] = {"rows": (1000, 4000, 16000, 64000, 256000), "draws": (4, 16, 64, 256, 1024)}


def growth() -> list[Row]:
    """One row for each thing that grows."""
    few = slice(0, 4) if QUICK else slice(None)
    rows = [grown(f"step, {axis}", sizes[few], partial(step_of, axis)) for axis, sizes in AXES.items()]
    return rows + [grown(f"score, {axis}", sizes[few], partial(score_of, axis)) for axis, sizes in SCORES.items()]


def step_of(axis: str, size: int) -> float:
    """Seconds of a compiled step, the median of epochs."""
    options = {"particles": size} if axis == "particles" else {}
    problem = TABULAR if options else TABULAR._replace(**{axis: size})
    many = max(8, min(200, 2**24 // (problem.batch * problem.features)))
    problem = problem._replace(rows=problem.batch * (4 if QUICK else many))
    seconds, _ = ours(problem, problem.data(), compiled=not QUICK, **options).run(4 if QUICK else 16)
    return statistics.median(seconds[1:]) / problem.steps


def score_of(axis: str, size: int) -> float:
    """Seconds of a score, the least of three."""
    n, draws = (size, DRAWS) if axis == "rows" else (SCORED // 10, size)
    x = TABULAR._replace(rows=n).data()
    vae = TABULAR.vae(x)
    pv.score(vae, x[:100], num_draws=draws, compiled="traced")
    return min(timed(lambda: pv.score(vae, x, num_draws=draws, compiled="traced")) for _ in range(1 if QUICK else 3))


def grown(name: str, sizes: tuple[int, ...], seconds: Callable[[int], float]) -> Row:
    """Fixed cost, cost of the smallest size and exponent, by least squares of relative errors."""
    n, t = np.array(sizes, float), np.array([seconds(size) for size in sizes])
    start = (t[0] / 2, t[0] / 2, 1.0)
    try:
        found, covariance = curve_fit(
            lambda n, a, b, c: a + b * n**c, n / n[0], t, start, t, bounds=([0, 0, 0], [np.inf, np.inf, 4])
        )
        fixed, first, c, se = *found, covariance[2, 2] ** 0.5
    except RuntimeError:  # no least squares were found
        fixed = first = c = se = np.nan
    figures = {"exponent": float(c), "se": float(se), "fixed ms": 1e3 * float(fixed), "first ms": 1e3 * float(first)}
    times = ", ".join(f"{1e3 * v:.3g}" for v in t)
    return {"of": name, **figures, "sizes": ", ".join(map(str, sizes)), "ms": times}


# ---- whole fits


def fits() -> list[Row]:
    """Seconds, the median of repeats in fresh processes."""
    epochs, repeats = (2, 1) if QUICK else (50, 3)
    missing, runs = dict[str, str](), {name: [] for name in FITS}
    for _ in range(repeats):
        for name in [name for name in FITS if name not in missing]:
            try:
                runs[name].append(apart(fit_of, name, epochs))
            except Exception as error:
                missing[name] = reason(error)
    rows: list[Row] = []
    for name in [name for name in FITS if name not in missing]:
        seconds, compiling = np.array(runs[name]).T
        figures = {"seconds": float(np.median(seconds)), "without compiling": float(np.median(seconds - compiling))}
        rows.append({"contestant": name, **figures, "epochs": epochs, "repeats": [round(s, 2) for s in seconds]})
    return [*rows, *({"contestant": name, "note": why} for name, why in missing.items())]


def fit_of(name: str, epochs: int) -> tuple[float, float]:
    """One of them, after a short one without compilation for what is loaded at the first."""
    few = TABULAR._replace(rows=4 * TABULAR.batch)
    FITS["ppl_vae, eager" if name.startswith("ppl_vae") else name](few, few.data(), 1)
    return FITS[name](TABULAR, TABULAR.data(), epochs)


def many() -> list[Row]:
    """Ten seeds in one run beside one fit, the second call of each, whose graph is there."""
    x, seeds = TABULAR.data(), range(10)
    fixed: dict[str, Any] = {"epochs": 2 if QUICK else 50, "batch_size": TABULAR.batch, "lr": LR, "valid": 0.0}
    fixed |= {"progress": False}
    calls = {
        "one": lambda: pv.fit(TABULAR.vae(x), x, compiled=True, **fixed),
        "ten": lambda: pv.fit_many([TABULAR.vae(x, seed) for seed in seeds], x, seeds=seeds, **fixed),
    }
    try:
        return [{"contestant": n, "first": timed(call), "seconds": timed(call)} for n, call in calls.items()]
    except Exception as error:
        return [{"contestant": "pv.fit_many", "note": reason(error)}]


# ---- scores


def scored() -> list[Row]:
    """Ours, by hand, and by Pyro, of the same rows by nets of the same weights; then memory."""
    problem = TABULAR._replace(rows=SCORED)
    x = problem.data()
    vae, rows_of = problem.vae(x), torch.from_numpy(x)
    pv.fit(vae, x, epochs=2, lr=LR, valid=0.0, progress=False, compiled=False)
    net = same_weights(vae, problem)
    block = min(BLOCKS, key=lambda b: min(timed(lambda: by_hand(net, rows_of[:8192], DRAWS, b)) for _ in range(3)))
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    of_a_row = 4 * DRAWS * (2 * problem.hidden + 4 * problem.features)  # bytes: activations, and a few temporaries
    some = rows_of[: free // 2 // of_a_row]
    values = dict[str, np.ndarray]()

    def take(name: str, call: Callable[[], Any], scale: float = 1.0) -> float:
        start = time.perf_counter()
        values[name] = np.asarray(call(), np.float64)
        return (time.perf_counter() - start) * scale

    def our(compiled: bool | str) -> np.ndarray:
        return pv.score(vae, x, num_draws=DRAWS, compiled=compiled).values

    first = timed(lambda: our(True))  # compiles
    calls = {
        "ppl_vae": partial(take, "ppl_vae", lambda: our("auto")),
        "ppl_vae, compiled": partial(take, "ppl_vae, compiled", lambda: our(True)),
        "ppl_vae, eager": partial(take, "ppl_vae, eager", lambda: our(False)),
        "PyTorch": partial(take, "PyTorch", lambda: by_hand(net, rows_of, DRAWS, block)),
        "Pyro": partial(take, "Pyro", lambda: by_predictive(net, some, DRAWS), SCORED / len(some)),
    }
    notes = {"PyTorch": f"{block} rows at a time", "Pyro": f"{len(some)} rows at once, scaled to all"}
    notes |= {
        "ppl_vae": "compiled='auto', here a traced graph",
        "ppl_vae, compiled": f"the first call took {first:.1f} s",
    }
    found, rows = rotating(calls, 2 if QUICK else 5), []
    distinct = np.sort(np.unique(x, axis=0, return_index=True)[1])
    for name, seconds in found.items():
        row = {"contestant": name, **spread("seconds", seconds)}
        row |= spread("to ppl_vae, compiled", np.divide(seconds, found["ppl_vae, compiled"]))
        difference = values[name] - values["ppl_vae"][: len(values[name])]
        if name in ("PyTorch", "Pyro"):  # ours have the same noise; so have equal rows in ours
            of_distinct = difference[distinct[distinct < len(difference)]]
            row["z"] = float(of_distinct.mean() / (of_distinct.std() / len(of_distinct) ** 0.5))
        away = float(np.abs(difference).max())
        rows.append(
            {**row, "mean": float(values[name].mean()), "largest difference": away, "note": notes.get(name, "")}
        )
    layers = ((problem.latent, problem.hidden), (problem.hidden, problem.features))
    floor = SCORED / block * sum(product(block * DRAWS, i, o, torch.float32) for i, o in layers)
    rows.append({"contestant": "floor, float32", "seconds": floor, "note": "the decoder's matrix products"})
    for name in ("ppl_vae", "PyTorch"):
        for n in (1000, 10_000) if QUICK else (100_000, 1_000_000):
            above, whole = apart(peak, name, n, block)
            rows.append({"contestant": f"{name}, memory, rows: {n:,}", "MB above": above, "MB of process": whole})
    return rows


def peak(name: str, n: int, block: int) -> tuple[float, float]:
    """MB: most memory while n rows are scored, above what was there before, and of the process less its data."""
    problem = TABULAR._replace(rows=n)
    x = problem.data()
    vae = problem.vae(x)
    net, torch_x = same_weights(vae, problem), torch.from_numpy(x)
    calls = {
        "ppl_vae": lambda rows: pv.score(vae, x[rows], num_draws=DRAWS),
        "PyTorch": lambda rows: by_hand(net, torch_x[rows], DRAWS, block),
    }
    calls[name](slice(500))  # what is loaded at the first call
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    calls[name](slice(None))
    return resident("VmHWM") - before, resident("VmHWM") - x.nbytes / 1e6


def resident(field: str) -> float:
    """MB of memory, from Linux."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024 / 1e6


# ---- compilation


def mixed(n: int) -> pd.DataFrame:
    """A table with columns of four types."""
    random = np.random.default_rng(0)
    columns = {f"real{j}": random.standard_normal(n) for j in range(6)}
    columns |= {f"bit{j}": random.integers(0, 2, n).astype(bool) for j in range(4)}
    columns |= {f"class{j}": random.choice(list("abcd"), n) for j in range(3)}
    return pd.DataFrame({**columns, "count": random.poisson(3.0, n)})


ARCHITECTURES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Bernoulli, 20-64-8": ({"likelihood": "bernoulli"}, {}),
    "Bernoulli, 784-400-20": ({"likelihood": "bernoulli", "latent": 20, "hidden": (400,)}, {"batch_size": 128}),
    "normal": ({}, {}),
    "mixture prior": ({"prior": "mixture"}, {}),
    "IAF posterior": ({"posterior": "iaf"}, {}),
    "mixed table": ({"likelihood": "infer"}, {}),
    "IWAE, 5 particles": ({"likelihood": "bernoulli"}, {"objective": "iwae", "particles": 5}),
}


def compilation() -> list[Row]:
    """Seconds to compile a step, or why it is not."""
    return [{"architecture": name, **apart(compiled_of, name)} for name in list(ARCHITECTURES)[: 2 if QUICK else None]]


def compiled_of(name: str) -> Row:
    """One architecture."""
    model, fit = ARCHITECTURES[name]
    x = mixed(2000) if name == "mixed table" else (MNIST if "784" in name else TABULAR)._replace(rows=2000).data()
    x = x if model.get("likelihood") else x + np.random.default_rng(1).standard_normal(x.shape, np.float32)
    vae = pv.build(x, **{"latent": 8, "hidden": (64,), **model})
    try:
        history = pv.fit(vae, x, epochs=1, valid=0.0, progress=False, compiled=True, **fit)
    except pv.PplVaeError as error:
        return {"not compiled": reason(error)}
    return {"seconds": history.compile_seconds}


# ---- figure 2 of Kingma & Welling (2013)

FIGURE2: dict[str, dict[str, Any]] = {
    "eager": {"compiled": False},
    "compiled": {"compiled": True},
    "compiled, bf16": {"compiled": True, "precision": "bf16"},
}


def figure2() -> list[Row]:
    """1e7 samples of MNIST, 20 latent dimensions, with all that a fit does, each in a process of its own."""
    rows: list[Row] = []
    for name, options in FIGURE2.items():
        try:
            rows.append({"contestant": name, **apart(figure2_of, options)})
        except Exception as error:
            rows.append({"contestant": name, "note": reason(error)})
    return rows


def figure2_of(options: dict[str, Any]) -> Row:
    """One fit, and the bound of the test images."""
    from aevb_curves import CELLS, bounds, trained

    of, data = CELLS["mnist"], pv.datasets.load("mnist")
    train, test = data.x[:50000], pv.datasets.binarize(data.test_x, "stochastic", seed=1)
    if QUICK:
        of, train, test = {**of, "samples": 2000}, train[:2000], test[:500]
    vae = pv.build(train, latent=20, hidden=(500,), likelihood="bernoulli")
    start = time.perf_counter()
    history = trained(vae, train, of, binarize="stochastic", **options)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "compiling": history.compile_seconds, **bounds(vae, test, "test")}


# ---- what was asked for


def ratio(above: str, below: str, column: str = "ms") -> Read:
    """Of two rows."""
    return lambda rows: rows[above][column] / rows[below][column]


def change(one: str, other: str, column: str) -> Read:
    """Distance of two rows."""
    return lambda rows: abs(rows[one][column] - rows[other][column])


def range_of(column: str) -> Read:
    """Largest over smallest of all rows."""
    return lambda rows: float(np.ptp(np.log([abs(row[column]) for row in rows.values() if row.get(column)])))


def bend(name: str) -> Read:
    """Distance of an exponent from 1."""
    return lambda rows: abs(rows[name]["exponent"] - 1)


OURS = "ppl_vae, memory, rows:"
OWN, EAGER, BF16, LOOP = "ppl_vae, compiled", "ppl_vae, eager", "ppl_vae, compiled, bf16", "NumPyro, fori_loop"
TRACED = "ppl_vae, traced"
ASKED: tuple[tuple[str, str, float, Read], ...] = (  # part, what, at most, and how it is read off
    ("step/tabular", "compiled / Pyro", 0.13, ratio(OWN, "Pyro, SVI")),
    ("step/tabular", "compiled / PyTorch, eager", 0.45, ratio(OWN, "PyTorch, eager")),
    ("step/tabular", "compiled / NumPyro, fori_loop", 1.2, ratio(OWN, LOOP)),
    ("step/tabular", "the same, beyond", 1.0, ratio(OWN, LOOP)),
    ("step/tabular", "the same, far beyond", 0.5, ratio(OWN, LOOP)),
    ("step/tabular", "traced, no compiler / PyTorch, eager", 1.6, ratio(TRACED, "PyTorch, eager")),
    ("step/tabular", "eager / PyTorch, eager", 1.6, ratio(EAGER, "PyTorch, eager")),
    ("step/tabular", "same work: bounds, log of largest / smallest", 0.05, range_of("bound")),
    ("step/tabular", "same work: weights, log of largest / smallest", 0.0, range_of("weights")),
    ("step/mnist", "compiled / Pyro", 0.4, ratio(OWN, "Pyro, SVI")),
    ("step/mnist", "compiled / PyTorch, eager", 0.75, ratio(OWN, "PyTorch, eager")),
    ("step/mnist", "compiled / NumPyro, fori_loop", 1.2, ratio(OWN, LOOP)),
    ("step/mnist", "the same, beyond", 1.0, ratio(OWN, LOOP)),
    ("step/mnist", "compiled, bf16 / NumPyro, fori_loop", 0.8, ratio(BF16, LOOP)),
    ("step/mnist", "traced, no compiler / PyTorch, eager", 1.1, ratio(TRACED, "PyTorch, eager")),
    ("step/mnist", "eager / PyTorch, eager", 1.1, ratio(EAGER, "PyTorch, eager")),
    ("step/mnist", "same work: bounds, log of largest / smallest", 0.05, range_of("bound")),
    ("step/mnist", "same work: weights, log of largest / smallest", 0.0, range_of("weights")),
    ("fit_many", "ten / one", 3.0, ratio("ten", "one", "seconds")),
    ("score/tabular", "compiled / PyTorch by hand", 1.1, ratio(OWN, "PyTorch", "seconds")),
    ("score/tabular", "as it comes / PyTorch by hand", 1.1, ratio("ppl_vae", "PyTorch", "seconds")),
    ("score/tabular", "compiled / Pyro's Predictive", 0.2, ratio(OWN, "Pyro", "seconds")),
    ("score/tabular", "as it comes / Pyro's Predictive", 0.2, ratio("ppl_vae", "Pyro", "seconds")),
    ("score/tabular", "|z| of PyTorch's estimate", 4.0, lambda rows: abs(rows["PyTorch"]["z"])),
    ("score/tabular", "|z| of Pyro's estimate", 4.0, lambda rows: abs(rows["Pyro"]["z"])),
    ("score/tabular", "memory, 1e6 rows / 1e5", 1.1, ratio(f"{OURS} 1,000,000", f"{OURS} 100,000", "MB of process")),
    ("growth", "step, rows: |exponent - 1|", 0.1, bend("step, batch")),
    ("growth", "step, particles: |exponent - 1|", 0.1, bend("step, particles")),
    ("growth", "score, rows: |exponent - 1|", 0.1, bend("score, rows")),
    ("growth", "score, draws: |exponent - 1|", 0.1, bend("score, draws")),
    ("compile", "seconds, the slowest", 15.0, lambda rows: max(row.get("seconds") or np.inf for row in rows.values())),
    ("figure2", "compiled / eager", 0.6, ratio("compiled", "eager", "seconds")),
    ("figure2", "compiled, bf16 / eager", 0.35, ratio("compiled, bf16", "eager", "seconds")),
    ("figure2", "test bound, nats: |compiled - eager|", 0.3, change("compiled", "eager", "test")),
    ("figure2", "test bound, nats: |compiled, bf16 - eager|", 0.3, change("compiled, bf16", "eager", "test")),
)


def must_show() -> list[Row]:
    """Each thing that was asked for, as far as it has been run."""
    found = []
    for part, what, limit, read in ASKED:
        path = RESULTS / f"{part.replace('/', '-')}.json"
        row: Row = {"part": part, "what": what, "at most": limit, "found": None, "": "not run"}
        if path.exists():
            rows = {next(iter(row.values())): row for row in json.loads(path.read_text())["rows"]}
            try:
                value = read(rows)
                row |= {"found": value, "": "met" if value <= limit else "NOT MET"}
            except (KeyError, ValueError):
                row[""] = "not there"
        found.append(row)
    return found


PARTS: dict[str, Callable[[], list[Row]]] = {
    "step/tabular": partial(steps, TABULAR, epochs=10, rounds=9),
    "step/mnist": partial(steps, MNIST, epochs=2, rounds=9),
    "growth": growth,
    "fits/tabular": fits,
    "score/tabular": scored,
    "fit_many": many,
    "compile": compilation,
    "figure2": figure2,
}


def main(prefix: str = "") -> None:
    """Run, keep and print what is asked for."""
    settle()
    from cells import CODE, show

    for part, run in PARTS.items():
        if part.startswith(prefix):
            found = {"machine": machine(), "code": CODE, "rows": run()}
            RESULTS.mkdir(parents=True, exist_ok=True)
            (RESULTS / f"{part.replace('/', '-')}.json").write_text(json.dumps(found, indent=1) + "\n")
            print(found["machine"])
            show([{k: v for k, v in row.items() if k not in ("rounds", "repeats")} for row in found["rows"]], part)
    show(must_show(), "What was asked for")


if __name__ == "__main__":
    main(*sys.argv[1:2])
