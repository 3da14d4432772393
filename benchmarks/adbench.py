"""ADBench: one default for all tables, beside what others offer. Mean AUROC and average precision, ranks, seconds.

    python benchmarks/adbench.py [folder of .npz files with X and y]    # default: adbench under $PPL_VAE_DATA
    ADBENCH_ONLY=wilt,cardio python benchmarks/adbench.py               # some of them

Semi-supervised: trained on half of the normal rows, tested on the rest and all anomalies. Unsupervised: trained and tested
on all rows, without labels. Duplicate rows are dropped before that: in the usual protocol many test rows are copies of
training rows. No row is resampled; of more than 50,000 some are drawn. Three seeds, of split and detector. Columns are
standardised by the training rows for all alike; whatever else a detector does is its own, at its defaults. One that fails on
a table has an AUROC of 0.5 there.

Defaults were developed on half of the tables, by a hash of their names; the other half is reported apart. Cells are kept in
`results/adbench` and resumed; others than ours come with `pip install -e ".[bench]"`.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cells import cell, show
from scipy.stats import rankdata, wilcoxon
from sklearn.metrics import average_precision_score, roc_auc_score

from ppl_vae.use.estimator import VAEDetector

MOST, SEEDS, OURS = 50_000, (0, 1, 2), "ppl_vae"
Detector = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""Training rows, test rows and a seed to scores of the test rows, higher = more anomalous."""


def ours(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    return -VAEDetector(random_state=seed).fit(train).score_samples(test)


def squared_norm(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    return (test**2).sum(1)


def of_pyod(module: str, name: str) -> Detector:
    """A detector of PyOD at its defaults."""

    def detect(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
        from importlib import import_module
        from inspect import signature

        kind = getattr(import_module(f"pyod.models.{module}"), name)
        detector = kind(random_state=seed) if "random_state" in signature(kind).parameters else kind()
        detector.fit(train)
        return detector.decision_function(test)

    return detect


DETECTORS: dict[str, Detector] = {
    OURS: ours,
    "squared norm": squared_norm,
    "PCA": of_pyod("pca", "PCA"),
    "kNN": of_pyod("knn", "KNN"),
    "isolation forest": of_pyod("iforest", "IForest"),
    "ECOD": of_pyod("ecod", "ECOD"),
    "VAE, PyOD": of_pyod("vae", "VAE"),
    "autoencoder, PyOD": of_pyod("auto_encoder", "AutoEncoder"),
}


def table(path: Path, seed: int, labelled: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training rows, test rows and labels of these, 1 = anomaly."""
    with np.load(path) as file:
        x, y = file["X"].astype(np.float64), file["y"].astype(int)
    x, first = np.unique(x, axis=0, return_index=True)
    y, random = y[first], np.random.RandomState(seed)
    some = random.permutation(len(x))[:MOST]
    x, y = x[some], y[some]
    normal = random.permutation(np.flatnonzero(y == 0))
    train = normal[: len(normal) // 2] if labelled else np.arange(len(x))
    test = np.setdiff1d(np.arange(len(x)), train) if labelled else train
    mean, scale = x[train].mean(0), x[train].std(0)
    x = (x - mean) / np.where(scale > 0, scale, 1.0)
    return x[train], x[test], y[test]


def run(path: Path, labelled: bool, detect: Detector) -> dict[str, Any]:
    """One cell: a figure of each seed."""
    found: dict[str, Any] = {"auroc": [], "precision": [], "spent": []}
    for seed in SEEDS:
        train, test, y = table(path, seed, labelled)
        start = time.perf_counter()
        try:
            scores = np.nan_to_num(detect(train, test, seed))  # PCA divides by variances that may be 0
        except Exception as error:  # of a detector that cannot do with a table: it has no answer
            scores, found["failed"] = np.zeros(len(test)), f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
        found["spent"].append(round(time.perf_counter() - start, 3))
        found["auroc"].append(round(float(roc_auc_score(y, scores)), 6))
        found["precision"].append(round(float(average_precision_score(y, scores)), 6))
    return {**found, "rows": len(train), "columns": train.shape[1], "anomalies": int(y.sum())}


def developed_on(name: str) -> bool:
    """Whether a table is of the half that defaults were developed on."""
    return int(hashlib.sha1(name.split("_", 1)[-1].encode()).hexdigest(), 16) % 2 == 0


def settings(name: str) -> dict[str, Any]:
    """What a detector ran with, as far as it is not its version's default."""
    from importlib.metadata import version

    if name == OURS:
        return {"params": repr(VAEDetector().get_params())}
    return {"pyod": version("pyod")} if name != "squared norm" else {}


def cells_of(paths: list[Path], labelled: bool) -> Iterator[dict[str, Any]]:
    way = "semi-supervised" if labelled else "unsupervised"
    for path in paths:
        for name, detect in DETECTORS.items():
            key = f"{way}/{path.stem}/{name}"
            kept = cell("adbench", key, settings(name), lambda p=path, d=detect: run(p, labelled, d))
            figures = {measure: float(np.mean(kept[measure])) for measure in ("auroc", "precision", "spent")}
            yield {"table": path.stem, "detector": name, **figures}


def summary(rows: pd.DataFrame, title: str) -> None:
    """Means over tables, mean ranks, and Wilcoxon's test of ours against each over tables."""
    lines = []
    by = {m: rows.groupby(["table", "detector"])[m].mean().unstack() for m in ("auroc", "precision", "spent")}
    names = [name for name in DETECTORS if name in by["auroc"]]
    ranks = {m: rankdata(-by[m][names].to_numpy(), axis=1).mean(0) for m in ("auroc", "precision")}
    for place, name in enumerate(names):
        line: dict[str, Any] = {"detector": name}
        for m in ("auroc", "precision"):
            line |= {m: by[m][name].mean(), f"{m}, rank": ranks[m][place]}
            apart = (by[m][OURS] - by[m][name]).to_numpy()
            line[f"{m}, p"] = float(wilcoxon(apart).pvalue) if apart.any() else np.nan
        lines.append({**line, "seconds a fit and score": by["spent"][name].mean()})
    show(lines, f"{title}: {len(by['auroc'])} tables")


def main() -> None:
    """Print one table for each setting, of all tables, of those developed on, of the others; then table by table."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(os.environ["PPL_VAE_DATA"]) / "adbench"
    only = os.environ.get("ADBENCH_ONLY", "").lower().split(",")
    paths = sorted(path for path in folder.glob("*.npz") if only == [""] or path.stem.split("_", 1)[-1].lower() in only)
    for labelled in (True, False):
        rows = pd.DataFrame(cells_of(paths, labelled))
        way = "semi-supervised" if labelled else "unsupervised"
        summary(rows, way)
        for half, which in (("developed on", True), ("not looked at", False)):
            part = rows[[developed_on(name) == which for name in rows["table"]]]
            if len(part):
                summary(part, f"{way}, {half}")
        each = (
            rows.groupby(["table", "detector"])["auroc"]
            .mean()
            .unstack()[[n for n in DETECTORS if n in set(rows.detector)]]
        )
        show(each.reset_index().to_dict("records"), f"{way}: AUROC by table")


if __name__ == "__main__":
    main()
