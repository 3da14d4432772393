"""Imputation of missing cells: tables of mixed columns with published masks, and Breast Cancer with half its cells hidden.

    python benchmarks/imputation.py                    # every cell, one after another
    python benchmarks/imputation.py Wine-50_1          # cells whose name starts so
    python benchmarks/imputation.py tune               # settings of ours, by held-out observed cells

Tables of HI-VAE (Nazabal et al. 2018), $PPL_VAE_DATA/hivae: Adult, Breast, Wine with their masks at 10, 20 (two) and 50 %.
Errors are theirs, over the cells that a mask hides (truly missing ones are not scored), column by column: root mean squared
error over the range of the column; share of wrong categories; mean absolute displacement over the number of levels of an
ordinal column. Every method is ranked from 1 (best) to 5 in each column under each mask.

Ours has a recipe by the number of rows: `SMALL` is that of MIWAE's notebook (128 x 128 relu, 20 particles, 64 rows a step);
`LARGE`, above 2000 rows, is a wider net, looked for because `SMALL` came second to the forests on Wine's first mask, and
chosen among four by a tenth of that table's observed cells; `HUGE`, above 20,000 rows, has one scale a column instead of one
a cell, looked for because `LARGE` came second to the forests on Adult's first mask, and chosen by a tenth of that table's
observed cells. `tune` prints what each, and further settings, make of such a tenth.

Breast Cancer of scikit-learn (569 x 30), standardised before half of the cells are hidden completely at random, as in the
notebook of Mattei & Frellsen (2019): mean squared error over the hidden cells, masks of seeds 0 to 4.

Beside ours: the mean (mode of categories, median of ordinal columns); the mean of 5, 10 or 20 nearest neighbours
(scikit-learn's `KNNImputer`); random forests in the manner of MissForest (Stekhoven & Buehlmann 2012), 30 trees and 5
rounds, a classifier for categories; regularised iterative PCA (Josse & Husson 2012) of rank 1, 2, 3, 5 or 8. Neighbours and
rank are chosen anew for each table and mask, by a further 10 % of observed cells. They see numbers and codes standardised
and categories as one column a level. On Adult neighbours are sought among 5000 random rows, and a forest grows on 10,000.
"""

import hashlib
import sys
from collections.abc import Callable
from functools import cache, partial
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from cells import cell, show
from scipy.stats import rankdata
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.impute import KNNImputer

import ppl_vae as pv
from ppl_vae.data.datasets import _root

TABLES, MASKS, SEEDS = ("Breast", "Wine", "Adult"), ("10_1", "20_1", "20_2", "50_1"), (0, 1, 2, 3, 4)
LIKELIHOODS = {
    "real": "student_t",
    "pos": "student_t",
    "count": "student_t",
    "cat": "categorical",
    "ordinal": "ordinal",
}
SMALL: dict[str, Any] = {
    "model": {"latent": 10, "hidden": (128, 128), "activation": "relu"},
    "fit": {"objective": "iwae", "particles": 20, "batch_size": 64, "lr": 1e-3, "valid": 0.0},
    "steps": 5000,
    "candidates": 1000,
}
LARGE: dict[str, Any] = {
    "model": {"latent": 10, "hidden": (256, 256), "activation": "silu"},
    "fit": {"objective": "iwae", "particles": 5, "batch_size": 256, "lr": 3e-3, "valid": 0.0},
    "steps": 10_000,
    "candidates": 300,
}
HUGE: dict[str, Any] = {**LARGE, "model": {**LARGE["model"], "scale": "feature"}}
RECIPES = {2000: SMALL, 20_000: LARGE}  # up to so many rows
NEIGHBOURS, RANKS = (5, 10, 20), (1, 2, 3, 5, 8)
DONORS, GROWN, ROUNDS, TREES = 5000, 10_000, 5, 30


class Table(NamedTuple):
    """Numbers and codes (n, d), NaN where missing; of each column real, pos, count, cat or ordinal, and its levels."""

    values: np.ndarray
    types: tuple[str, ...]
    levels: tuple[int, ...]

    def hide(self, hidden: np.ndarray) -> "Table":
        """The table without these cells (n, d)."""
        return self._replace(values=np.where(hidden, np.nan, self.values))


Imputer = Callable[[Table], np.ndarray]


def load(name: str, mask: str) -> tuple[Table, np.ndarray]:
    """A table of HI-VAE, and the cells (n, d) that a mask hides."""
    folder = _root(None) / "hivae" / name
    types = pd.read_csv(folder / "data_types.csv.gz")
    values = pd.read_csv(folder / "data.csv.gz", header=None).to_numpy(float)
    rows, columns = pd.read_csv(folder / f"Missing{mask}.csv.gz", header=None).to_numpy().T - 1
    hidden = np.zeros(values.shape, bool)
    hidden[rows, columns] = True
    return Table(values, tuple(types["type"]), tuple(types["nclass"].fillna(0).astype(int))), hidden & ~np.isnan(values)


def cancer(seed: int) -> tuple[Table, np.ndarray]:
    """Breast Cancer, and half of its cells."""
    x = load_breast_cancer().data
    x = (x - x.mean(0)) / x.std(0)
    return Table(x, ("real",) * 30, (0,) * 30), np.random.RandomState(seed).rand(*x.shape) < 0.5


def errors(table: Table, filled: np.ndarray, hidden: np.ndarray) -> list[float]:
    """The error of each column, over its hidden cells."""
    return [
        float(METRICS.get(kind, spread)(*(of[hidden[:, j], j] for of in (table.values, filled)), table, j))
        for j, kind in enumerate(table.types)
    ]


def spread(truth: np.ndarray, guess: np.ndarray, table: Table, j: int) -> float:
    """Root mean squared error over the range."""
    return np.sqrt(((truth - guess) ** 2).mean()) / (np.nanmax(table.values[:, j]) - np.nanmin(table.values[:, j]))


METRICS: dict[str, Callable[..., float]] = {
    "cat": lambda truth, guess, table, j: (truth != guess).mean(),
    "ordinal": lambda truth, guess, table, j: np.abs(truth - guess).mean() / table.levels[j],
}


# ---- methods: a table with holes to the same without


def recipe(table: Table, **changed: Any) -> dict[str, Any]:
    """Of ours, for so many rows, and what is changed of it."""
    own = next((of for most, of in RECIPES.items() if len(table.values) <= most), HUGE)
    return {"likelihoods": LIKELIHOODS, **own["model"], **own["fit"], **own, **changed}


def ours(table: Table, seed: int = 0, **changed: Any) -> np.ndarray:
    """The library: epochs make up for the number of rows."""
    of = recipe(table, **changed)
    model, fit = ({name: of[name] for name in HUGE[part] if name in of} for part in ("model", "fit"))
    frame = pd.DataFrame(table.values).add_prefix("x")
    chosen = dict(zip(frame, map(of["likelihoods"].__getitem__, table.types)))
    vae = pv.build(frame, likelihood=chosen, nullable=True, seed=seed, **model)
    epochs = ceil(of["steps"] / ceil(len(frame) / of["batch_size"]))
    pv.fit(vae, frame, seed=seed, progress=False, epochs=epochs, **fit)
    return pv.impute(vae, frame, num_draws=1, candidates=of["candidates"], seed=seed).frame.to_numpy()


def mean(table: Table) -> np.ndarray:
    """Mean of numbers, mode of categories, median of ordinal columns."""
    fill = {
        "cat": lambda v: np.bincount(v.astype(int)).argmax(),
        "ordinal": lambda v: np.quantile(v, 0.5, method="lower"),
    }
    best = [fill.get(t, np.mean)(v[~np.isnan(v)]) for t, v in zip(table.types, table.values.T)]
    return np.where(np.isnan(table.values), best, table.values)


class Code:
    """Columns for methods that know numbers only: standardised, a category as one column for each level."""

    def __init__(self, table: Table) -> None:
        self.table = table
        x = table.values
        self.loc, self.scale = np.nanmean(x, 0), np.nanstd(x, 0)
        self.levels = [np.unique(v[~np.isnan(v)]) if t == "cat" else None for t, v in zip(table.types, x.T)]

    def column(self, values: np.ndarray, j: int) -> np.ndarray:
        """(n,) to (n, columns)."""
        if (levels := self.levels[j]) is None:
            return ((values - self.loc[j]) / self.scale[j])[:, None]
        return np.where(np.isnan(values)[:, None], np.nan, values[:, None] == levels)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """(n, d) to (n, columns)."""
        return np.concatenate([self.column(v, j) for j, v in enumerate(values.T)], 1)

    def decode(self, coded: np.ndarray) -> np.ndarray:
        """The holes of the table filled: nearest levels of ordinal columns, most probable ones of categories."""
        filled, start = self.table.values.copy(), 0
        for j, (kind, levels) in enumerate(zip(self.table.types, self.levels)):
            of = coded[:, start : start + (1 if levels is None else len(levels))]
            start += of.shape[1]
            guess = of[:, 0] * self.scale[j] + self.loc[j] if levels is None else levels[of.argmax(1)]
            if kind == "ordinal":
                guess = np.clip(np.rint(guess), np.nanmin(filled[:, j]), np.nanmax(filled[:, j]))
            hole = np.isnan(filled[:, j])
            filled[hole, j] = guess[hole]
        return filled


def neighbours(table: Table, count: int) -> np.ndarray:
    """The mean of the nearest rows that have the cell."""
    code = Code(table)
    coded = code.encode(table.values)
    donors = np.random.RandomState(0).permutation(len(coded))[:DONORS]
    return code.decode(KNNImputer(n_neighbors=count).fit(coded[donors]).transform(coded))


def pca(table: Table, rank: int) -> np.ndarray:
    """Iterative PCA, singular values shrunk by the noise (Josse & Husson 2012)."""
    code = Code(table)
    coded = code.encode(table.values)
    loc, scale = np.nanmean(coded, 0), np.nanstd(coded, 0)
    x, hole = np.nan_to_num((coded - loc) / scale), np.isnan(coded)
    for _ in range(300):
        centre = x.mean(0)
        value, vector = np.linalg.eigh((x - centre).T @ (x - centre) / len(x))
        value, vector = value[::-1], vector[:, ::-1][:, :rank]
        noise = value[rank:].mean()
        fit = (x - centre) @ vector * np.clip(1 - noise / value[:rank], 0, None) @ vector.T + centre
        change = ((fit - x)[hole] ** 2).mean()
        x = np.where(hole, fit, x)
        if change < 1e-8:
            break
    return code.decode(x * scale + loc)


def forest(table: Table) -> np.ndarray:
    """Each column by random forests on all others, columns with few holes first."""
    code, rng = Code(table), np.random.RandomState(0)
    filled, hole = mean(table), np.isnan(table.values)
    for _ in range(ROUNDS):
        for j in np.argsort(hole.sum(0), kind="stable"):
            if not hole[:, j].any():
                continue
            others = np.concatenate([code.column(v, i) for i, v in enumerate(filled.T) if i != j], 1)
            seen = rng.permutation((~hole[:, j]).nonzero()[0])[:GROWN]
            category = table.types[j] == "cat"
            kind, leaf = (RandomForestClassifier, 1) if category else (RandomForestRegressor, 5)  # randomForest's own
            trees = kind(TREES, max_features="sqrt", min_samples_leaf=leaf, random_state=rng)
            guess = trees.fit(others[seen], table.values[seen, j]).predict(others[hole[:, j]])
            filled[hole[:, j], j] = np.rint(guess) if table.types[j] == "ordinal" else guess
    return filled


def best_of(make: Callable[[Table, int], np.ndarray], options: tuple[int, ...]) -> Imputer:
    """The option that is best on a further tenth of the observed cells, relative to the mean."""

    def imputer(table: Table) -> np.ndarray:
        figures = [relative(table, lambda kept, option=option: make(kept, option)) for option in options]
        return make(table, options[int(np.argmin(figures))])

    return imputer


def relative(table: Table, imputer: Imputer, seed: int = 0) -> float:
    """Mean over columns of the error on a tenth of the observed cells, over that of the mean."""
    hidden = (np.random.RandomState(5000 + seed).rand(*table.values.shape) < 0.1) & ~np.isnan(table.values)
    kept = table.hide(hidden)
    plain, found = (np.array(errors(table, of(kept), hidden)) for of in (mean, imputer))
    return float((found / plain).mean())


METHODS: dict[str, Imputer] = {
    "ours": ours,
    "mean": mean,
    "kNN": best_of(neighbours, NEIGHBOURS),
    "forest": forest,
    "PCA": best_of(pca, RANKS),
}


# ---- tables


def figures(table: Table, hidden: np.ndarray, imputer: Imputer) -> dict[str, Any]:
    """Errors by column, and the mean squared error over all cells."""
    filled = imputer(table.hide(hidden))
    assert np.isfinite(filled[hidden]).all()
    return {"errors": errors(table, filled, hidden), "mse": float(((filled - table.values)[hidden] ** 2).mean())}


@cache
def digest() -> str:
    """What the library computes here, to three digits: a small fit of mixed columns and its imputations.

    Asked for once, at the start: a table that takes long goes on with the code that it started with.
    """
    table, hidden = load("Wine", "20_1")
    few = table._replace(values=table.values[::30]).hide(hidden[::30])
    filled = ours(few, steps=40, particles=3)
    return hashlib.sha256(" ".join(f"{v:.3g}" for v in filled.mean(0)).encode()).hexdigest()[:12]


def settings(table: Table, method: str, **changed: Any) -> dict[str, Any]:
    """What a cell depends on beside the data."""
    own = {name: value for name, value in recipe(table, **changed).items() if name not in ("model", "fit")}
    of = {
        "ours": {**own, "hidden": list(own["hidden"]), "digest": digest()},
        "kNN": {"neighbours": list(NEIGHBOURS), "donors": DONORS},
        "forest": {"trees": TREES, "rounds": ROUNDS, "grown": GROWN},
        "PCA": {"ranks": list(RANKS)},
    }
    return of.get(method, {})


def run(name: str, mask: str) -> dict[str, dict[str, Any]]:
    """The figures of each method on one table under one mask; with the name "Cancer" the mask is a seed."""
    table, hidden = cancer(int(mask)) if name == "Cancer" else load(name, mask)
    return {
        method: cell(
            "imputation", f"{name}-{mask}-{method}", settings(table, method), partial(figures, table, hidden, imputer)
        )
        for method, imputer in METHODS.items()
    }


def ranks(found: dict[str, dict[str, Any]]) -> np.ndarray:
    """(methods,): the mean over columns of the rank of each method's error, 1 the best, ties shared."""
    return rankdata(np.round([of["errors"] for of in found.values()], 12), axis=0).mean(1)


def by_type(name: str, mask: str, found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each type of column: the mean error of each method; and one of their average ranks."""
    types = np.array(load(name, mask)[0].types)
    rows = [
        {"table": name, "mask": mask, "columns": f"{(types == kind).sum()} {kind}"}
        | {method: np.mean(np.array(of["errors"])[types == kind]) for method, of in found.items()}
        for kind in dict.fromkeys(types)
    ]
    return [*rows, {"table": name, "mask": mask, "columns": "rank"} | dict(zip(found, ranks(found)))]


def summary(of: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Average ranks over masks, and how far ours is behind the best of the others.

    "spread", their standard deviation over masks over the root of their number, holds the effect of the share of hidden
    cells too: it is no error of chance alone.
    """
    rows = []
    for title, each in of.items():
        mean = each.mean(0)
        best = 1 + int(mean[1:].argmin())
        behind = each[:, 0] - each[:, best]
        error = behind.std(ddof=1) / np.sqrt(len(behind)) if len(behind) > 1 else np.nan
        rows.append(
            {
                "table": title,
                "masks": len(each),
                **dict(zip(METHODS, mean)),
                "ours - next": behind.mean(),
                "spread": error,
            }
        )
    return rows


def tables(prefix: str) -> None:
    """The published masks: errors by type of column, and average ranks."""
    rows, found = [], {}
    for name in TABLES:
        for mask in MASKS:
            if f"{name}-{mask}".startswith(prefix):
                cells = run(name, mask)
                rows += by_type(name, mask, cells)
                found[name, mask] = ranks(cells)
                print(f"{name} {mask}", dict(zip(METHODS, found[name, mask].round(2).tolist())), flush=True)
    if found:
        show(rows, "Error of the hidden cells by type of column (mean over columns), and average rank")
        groups = {name: np.array([r for (n, _), r in found.items() if n == name]) for name in TABLES}
        groups |= {
            f"{m} %": np.array([r for (_, k), r in found.items() if k.startswith(m)]) for m in ("10", "20", "50")
        }
        groups["all"] = np.array(list(found.values()))
        show(summary({title: each for title, each in groups.items() if len(each)}), "Average rank over masks, 1 to 5")


def halves(prefix: str) -> None:
    """Breast Cancer with half of its cells hidden: mean squared errors over the seeds of the mask."""
    found = [run("Cancer", str(seed)) for seed in SEEDS if f"Cancer-{seed}".startswith(prefix)]
    if not found:
        return
    errors = np.array([[of["mse"] for of in cells.values()] for cells in found])
    error = errors.std(0, ddof=1) / np.sqrt(len(errors)) if len(errors) > 1 else np.full(len(METHODS), np.nan)
    rows: list[dict[str, Any]] = [{"mask": f"seed {k}", **dict(zip(METHODS, of))} for k, of in enumerate(errors)]
    rows += [
        {"mask": "mean", **dict(zip(METHODS, errors.mean(0)))},
        {"mask": "standard error", **dict(zip(METHODS, error))},
    ]
    show(rows, "Breast Cancer, half of the cells hidden: mean squared error (MIWAE's notebook: 0.287)")


def tune() -> None:
    """Settings of ours side by side, by a tenth of the observed cells; the hidden ones are not looked at."""
    rows = []
    for title, changed in VARIANTS.items():
        of = {}
        for name, mask in (("Breast", "50_1"), ("Wine", "10_1"), ("Adult", "10_1")):
            table, hidden = load(name, mask)
            one = partial(relative, table.hide(hidden), partial(ours, **changed))
            kept = settings(table, "ours", **changed)
            of[name] = cell("imputation", f"tune-{name}-{title}", kept, lambda one=one: {"relative": one()})["relative"]
        rows.append({"setting": title, **of})
        print(rows[-1], flush=True)
    show(rows, "Error on held-out observed cells over that of the mean")


NUMBERS = {"cat": "categorical", "ordinal": "ordinal"}
VARIANTS: dict[str, dict[str, Any]] = {
    **{
        title: {"scale": "row", **of["model"], **of["fit"], "steps": of["steps"], "candidates": of["candidates"]}
        for title, of in {"small": SMALL, "large": LARGE, "huge": HUGE}.items()
    },
    "normal": {"likelihoods": {**NUMBERS, **dict.fromkeys(("real", "pos", "count"), "normal")}},
    "by type": {"likelihoods": {**NUMBERS, "real": "normal", "pos": "log_normal", "count": "poisson"}},
    "latent 5": {"latent": 5},
    "elbo": {"objective": "elbo", "particles": 1},
}


def main(prefix: str = "") -> None:
    """Run and print what is asked for."""
    if prefix == "tune":
        return tune()
    halves(prefix)
    tables(prefix)


if __name__ == "__main__":
    main(*sys.argv[1:2])
