"""Which column was it? One cell of normal rows is spoilt, and the explanation should name its column.

    python benchmarks/explanations.py [folder of .npz files with X and y]    # default: adbench under $PPL_VAE_DATA

A VAE is fitted to half of the normal rows of each table (of Adult: of all rows), and calibrated on a quarter at level 0.05.
Of the last quarter 500 rows that are not called anomalies have one cell each spoilt: a number is moved by 4 standard
deviations of its column, a category or truth value is exchanged for another, drawn at random. Of 200 of those that are
called anomalies then, the share whose column has the largest gain; beside it that whose column falls furthest below its
median part, which tells less.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cells import behaviour, cell, show

import ppl_vae as pv

MOST, ROWS, CALLED, LEVEL, DRAWS, MOVED, SEED = 4000, 500, 200, 0.05, 32, 4.0, 0
MODEL = {"latent": 8, "hidden": (128, 128), "activation": "relu", "scale_floor": 0.05}
FIT = {"batch_size": 256, "lr": 3e-3, "valid": 0.0, "progress": False}
STEPS = 600


ADULT = (
    "age workclass fnlwgt education education_num marital_status occupation relationship race sex capital_gain capital_loss "
    "hours_per_week native_country income"
).split()


def adult() -> pd.DataFrame:
    """Rows without a missing cell."""
    path = Path(os.environ["PPL_VAE_DATA"]) / "uci" / "adult-train.csv.gz"
    return pv.read_csv(path, missing=["?"], names=ADULT).dropna().drop_duplicates()


def normal(path: Path) -> pd.DataFrame:
    """Distinct normal rows of a table."""
    with np.load(path) as file:
        x = file["X"][file["y"] == 0].astype(np.float64)
    x = np.unique(x, axis=0)
    return pd.DataFrame(x[:, x.std(0) > 0]).rename(columns=str)


def spoilt(rows: pd.DataFrame, seen: pd.DataFrame, random: np.random.RandomState) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows with one cell each that is wrong, and the places of their columns."""
    rows, columns = rows.reset_index(drop=True), random.randint(0, rows.shape[1], len(rows))
    cells = {name: rows[name].astype(object).tolist() for name in rows}
    for i, j in enumerate(columns):
        name = rows.columns[j]
        if pd.api.types.is_numeric_dtype(seen[name]):
            cells[name][i] = cells[name][i] + random.choice([-1, 1]) * MOVED * seen[name].std()
        else:
            cells[name][i] = random.choice([level for level in seen[name].unique() if level != cells[name][i]])
    kinds = {n: float if pd.api.types.is_numeric_dtype(seen[n]) else seen[n].dtype for n in rows}
    return pd.DataFrame(cells).astype(kinds), columns


def run(frame: pd.DataFrame) -> dict[str, Any]:
    random = np.random.RandomState(SEED)
    frame = frame.iloc[random.permutation(len(frame))[: 2 * MOST]].reset_index(drop=True)
    for name in frame.select_dtypes("number"):
        frame[name] = frame[name].astype(float)
    half, three = len(frame) // 2, 3 * len(frame) // 4
    seen, known, new = frame[:half], frame[half:three], frame[three : three + 2 * ROWS]
    likelihood = dict.fromkeys(seen.select_dtypes("number"), "normal")
    vae = pv.build(seen, likelihood=likelihood, seed=SEED, **{**MODEL, "latent": min(8, seen.shape[1])})
    pv.fit(vae, seen, epochs=max(1, round(STEPS * FIT["batch_size"] / len(seen))), seed=SEED, **FIT)
    calibration = pv.calibrate(vae, known, level=LEVEL, num_draws=DRAWS)
    new = new[~calibration.predict(new)][:ROWS]
    bad, columns = spoilt(new, seen, random)
    called = np.flatnonzero(calibration.predict(bad))
    some = called[:CALLED]
    found = pv.explain(vae, bad.iloc[some], num_draws=DRAWS)
    usual = np.median(pv.explain(vae, known[:500], num_draws=DRAWS).parts, 0)
    first = found.gain.argmax(1) == columns[some]
    return {
        "columns": frame.shape[1],
        "spoilt": len(bad),
        "called": len(called),
        "gain first": float(first.mean()),
        "part first": float(((usual - found.parts).argmax(1) == columns[some]).mean()),
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(os.environ["PPL_VAE_DATA"]) / "adbench"
    settings = {"model": MODEL, "fit": FIT, "steps": STEPS, "draws": DRAWS, "moved": MOVED, "behaviour": behaviour()}
    tables = {"adult": adult} | {path.stem: lambda p=path: normal(p) for path in sorted(folder.glob("*.npz"))}
    rows = []
    for name, table in tables.items():
        rows.append({"table": name, **cell("explanations", name, settings, lambda t=table: run(t()))})
        print(rows[-1], flush=True)
    show(rows, f"The column of one spoilt cell, first among the explanations ({len(rows)} tables)")
