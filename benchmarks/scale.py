"""Tables larger than memory: what scoring them takes of it, and whether killed workers change a byte of what is written.

    python benchmarks/scale.py [memory | chaos | engines]

memory: a table of 20 columns (18 normal ones, a count with missing cells, a text of 4 levels), in a temporary folder, as one
CSV file and as one Parquet file that is a single group of rows, the worst there is for a reader. It is scored by 8 draws a
row in a process of its own, by the builtin `map`; MB (10^6 bytes) of its largest resident set (VmHWM), beyond that after the
import of the library, pandas and pyarrow.

chaos: the shards of a Parquet file serially, and on a Dask cluster of three workers on this machine, of which one is killed
(SIGKILL) at a random time, three times; bytes of all parts and of the manifest are compared. engines: seconds of the same.
"""

import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

DRAWS = 8
BYTES = 150
"""Of a row of either file, about."""
WORKERS = 3
LEVELS = np.array(["north", "east", "south", "west"], object)


def rows_of(n: int, seed: int) -> pd.DataFrame:
    """n rows of the table."""
    generator = np.random.default_rng(seed)
    hidden = generator.normal(size=(n, 3))
    values = hidden @ np.random.default_rng(0).normal(size=(3, 18)) + 0.3 * generator.normal(size=(n, 18))
    frame = pd.DataFrame(values.round(5), columns=[f"x{j}" for j in range(18)])
    frame["count"] = np.where(generator.random(n) < 0.1, np.nan, generator.poisson(np.exp(hidden[:, 0].clip(-2, 2))))
    frame["text"] = LEVELS[generator.integers(0, 4, n)]
    return frame


def write(path: Path, n: int) -> None:
    """The table in a file: CSV some rows at a time, Parquet as a single group of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = (rows_of(min(100_000, n - first), first + 1) for first in range(0, n, 100_000))
    if path.suffix == ".csv":
        with path.open("w") as file:
            for number, part in enumerate(parts):
                part.to_csv(file, index=False, header=number == 0, lineterminator="\n")
    else:
        table = pa.concat_tables([pa.Table.from_pandas(part, preserve_index=False) for part in parts])
        pq.write_table(table, path, row_group_size=n, use_dictionary=["text"], compression="none")


def model(folder: Path, epochs: int = 5) -> str:
    """A saved model of the table."""
    import ppl_vae as pv

    frame = rows_of(5000, 0)
    vae = pv.build(frame, latent=3, hidden=(32,), likelihood="infer")
    pv.fit(vae, frame, epochs=epochs, lr=3e-3, progress=False)
    pv.save(vae, folder / "model")
    return str(folder / "model")


# ---- memory


def resident(what: str) -> float:
    """MB of this process: "VmRSS" now, "VmHWM" at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024 / 1e6


def child(folder: str, source: str, out: str) -> None:
    """Score in this process, and print what it took."""
    import pyarrow.parquet

    import ppl_vae as pv

    loaded = [pv.score_files, pv.score, pv.load, pyarrow.parquet, pd.read_csv]  # all that is imported, is now
    gc.collect()
    before, started = max(resident("VmHWM"), resident("VmRSS")), time.perf_counter()
    found = loaded[0](folder, source, out, num_draws=DRAWS, progress=False)
    seconds = time.perf_counter() - started
    print(
        json.dumps(
            {"rows": found.rows, "import MB": before, "beyond MB": resident("VmHWM") - before, "took s": seconds}
        )
    )


def memory(kind: str, gigabytes: float) -> dict[str, Any]:
    """Of one file, which is removed afterwards."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        needed, free = 1.3 * gigabytes * 1e9, shutil.disk_usage(folder).free
        if free < needed:
            raise SystemExit(f"{folder}: got {free / 1e9:.1f} GB free, expected {needed / 1e9:.1f}")
        path = folder / f"table.{kind}"
        subprocess.run([sys.executable, __file__, "_write", str(path), str(int(gigabytes * 1e9 / BYTES))], check=True)
        command = [sys.executable, __file__, "_score", model(folder), str(path), str(folder / "out")]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        return {"file GB": path.stat().st_size / 1e9, **json.loads(run.stdout.splitlines()[-1])}


# ---- killed workers


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files of a job."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def serially(source: Path, saved: str, out: Path, rows: int) -> float:
    import ppl_vae as pv

    started = time.perf_counter()
    pv.score_files(saved, source, out, num_draws=64, rows=rows, progress=False)
    return time.perf_counter() - started


def chaos(n: int, rows: int, kills: int = 3, seed: int = 0) -> dict[str, Any]:
    """Parts by a cluster whose workers are killed, beside those of a serial run."""
    import dask
    from distributed import Client, LocalCluster

    import ppl_vae as pv
    from ppl_vae.use import engines

    with tempfile.TemporaryDirectory() as temporary:
        folder, generator = Path(temporary), random.Random(seed)
        write(source := folder / "table.parquet", n)
        saved = model(folder)
        taken = serially(source, saved, folder / "serial", rows)
        killed: list[int] = []
        finished = threading.Event()
        options = {"n_workers": WORKERS, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
        with dask.config.set({"distributed.scheduler.allowed-failures": 10}), LocalCluster(**options) as cluster:
            with Client(cluster) as client:

                def kill() -> None:
                    while len(killed) < kills and not finished.wait(generator.uniform(0.1, 0.3) * taken / kills):
                        pids = [worker["pid"] for worker in client.run(lambda: {"pid": os.getpid()}).values()]
                        pid = generator.choice(pids)
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)
                        client.wait_for_workers(WORKERS)

                killer = threading.Thread(target=kill)
                started = time.perf_counter()
                killer.start()
                found = pv.score_files(
                    saved, source, folder / "dask", num_draws=64, rows=rows, map=engines.dask(client), progress=False
                )
                seconds = time.perf_counter() - started
                finished.set()
                killer.join()
        own, other = contents(folder / "serial"), contents(folder / "dask")
        seen = pd.read_parquet(folder / "dask")["row"].to_numpy()
        return {
            "rows": n, "parts": len(found.parts), "workers killed": len(killed), "serial s": taken, "dask s": seconds,
            "every row once": bool(np.array_equal(np.sort(seen), np.arange(n))), "same bytes": own == other,
        }  # fmt: skip


def engines_of(n: int, rows: int) -> dict[str, Any]:
    """Seconds of the same shards by each engine with two workers, their start included, and whether bytes are the same."""
    from distributed import Client, LocalCluster

    import ppl_vae as pv
    from ppl_vae.use import engines

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(source := folder / "table.parquet", n)
        saved, figures = model(folder), {}
        figures["serial s"] = serially(source, saved, folder / "serial", rows)
        for name in ("processes", "dask"):
            started = time.perf_counter()
            if name == "processes":
                pv.score_files(
                    saved, source, folder / name, num_draws=64, rows=rows, map=engines.processes(2), progress=False
                )
            else:
                with (
                    LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
                    Client(cluster) as one,
                ):
                    pv.score_files(
                        saved, source, folder / name, num_draws=64, rows=rows, map=engines.dask(one), progress=False
                    )
            figures[f"{name} s"] = time.perf_counter() - started
        same = len({tuple(contents(folder / name).items()) for name in ("serial", "processes", "dask")}) == 1
        return {"rows": n, **figures, "same bytes": same}


def main() -> None:
    tiny = "--tiny" in sys.argv
    asked = [word for word in sys.argv[1:] if word != "--tiny"] or ["memory", "chaos", "engines"]
    import cells

    def kept(name: str, settings: dict[str, Any], run: Any) -> dict[str, Any]:
        return {"cell": name, **run()} if tiny else cells.cell("scale", name, settings, run)

    if "memory" in asked:
        sizes = (0.01, 0.02) if tiny else (0.3, 3.0)
        table = [
            kept(
                f"memory-{kind}-{size:g}",
                {"kind": kind, "GB": size, "draws": DRAWS},
                lambda k=kind, s=size: memory(k, s),
            )
            for kind in ("parquet", "csv")
            for size in sizes
        ]
        cells.show(table, "Memory beyond the import, MB, of scoring a file by 8 draws")
    n, rows = (20_000, 1000) if tiny else (300_000, 3000)
    if "chaos" in asked:
        cells.show(
            [kept("chaos", {"n": n, "rows": rows, "kills": 3, "workers": WORKERS}, lambda: chaos(n, rows))],
            "Killed workers",
        )
    if "engines" in asked:
        cells.show([kept("engines", {"n": n, "rows": rows}, lambda: engines_of(n, rows))], "Engines")


if __name__ == "__main__":
    if sys.argv[1:2] == ["_score"]:
        child(*sys.argv[2:])
    elif sys.argv[1:2] == ["_write"]:
        write(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
