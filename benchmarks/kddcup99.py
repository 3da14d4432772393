"""An & Cho's (2015) second experiment: KDD Cup 99, trained on normal connections, each family of attacks apart.

    python benchmarks/kddcup99.py          # the 10 % file, under $PPL_VAE_DATA

Distinct rows only: most of the file is copies of a few attacks. Trained on 80 % of the distinct normal rows; the others and
the attacks of one family are scored. Three seeds, of split and model; means, and standard deviations over seeds in brackets.

"VAEDetector": at its defaults on the mixed table. "one VAE": a model whose columns have likelihoods by what they hold
(`likelihood="infer"`), by its reconstruction probability; a row with a 2 where normal rows held 0 and 1 alone is impossible
under it, and last. PCA and autoencoder (squared error) and isolation forest see the
categories as indicators, all columns standardised.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from cells import cell, show
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score

import ppl_vae as pv

FAMILIES = {
    "DoS": ("smurf", "neptune", "back", "teardrop", "pod", "land"),
    "Probe": ("satan", "ipsweep", "portsweep", "nmap"),
    "R2L": ("warezclient", "guess_passwd", "warezmaster", "imap", "ftp_write", "multihop", "phf", "spy"),
    "U2R": ("buffer_overflow", "rootkit", "loadmodule", "perl"),
}
SEEDS, TRAINED, LATENT = (0, 1, 2), 0.8, 8
FIT = {"epochs": 20, "batch_size": 512, "lr": 3e-3, "valid": 0.0, "progress": False}
Scored = Callable[[pd.DataFrame, pd.DataFrame, int], np.ndarray]
"""Training rows, test rows and a seed to scores of the test rows, higher = more normal."""


def indicators(train: pd.DataFrame, test: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    both = pd.get_dummies(pd.concat([train, test])).to_numpy(float)
    one, two = both[: len(train)], both[len(train) :]
    mean, scale = one.mean(0), one.std(0)
    scale[scale == 0] = 1
    return (one - mean) / scale, (two - mean) / scale


def detector(train: pd.DataFrame, test: pd.DataFrame, seed: int) -> np.ndarray:
    return pv.VAEDetector(random_state=seed).fit(train).score_samples(test)


def vae(train: pd.DataFrame, test: pd.DataFrame, seed: int) -> np.ndarray:
    model = pv.build(train, latent=LATENT, likelihood="infer", seed=seed)
    pv.fit(model, train, seed=seed, **FIT)
    switches = [name for name, kind in zip(model.schema.names, model.schema.likelihoods) if kind == "bernoulli"]
    possible = test[switches].isin([0, 1]).all(axis=1).to_numpy()
    scores = np.full(len(test), -np.inf)
    scores[possible] = pv.score(model, test[possible]).values
    return np.where(possible, scores, scores[possible].min() - 1)


def autoencoder(train: pd.DataFrame, test: pd.DataFrame, seed: int) -> np.ndarray:
    one, two = indicators(train, test)
    model = pv.build(one, latent=LATENT, posterior="delta", prior="flat", scale=1.0, standardize="none", seed=seed)
    pv.fit(model, one, seed=seed, **FIT)
    return pv.score(model, two, "reconstruction_error").values


def pca(train: pd.DataFrame, test: pd.DataFrame, seed: int) -> np.ndarray:
    one, two = indicators(train, test)
    return pv.score(pv.PCA(LATENT).fit(one), two, "reconstruction_error").values


def forest(train: pd.DataFrame, test: pd.DataFrame, seed: int) -> np.ndarray:
    one, two = indicators(train, test)
    return IsolationForest(random_state=seed).fit(one).score_samples(two)


CONTESTANTS: dict[str, Scored] = {
    "VAEDetector": detector,
    "one VAE": vae,
    "autoencoder": autoencoder,
    "PCA": pca,
    "isolation forest": forest,
}


def run(score: Scored, seed: int) -> dict[str, Any]:
    """AUROC and average precision of each family."""
    data = pv.datasets.load("kddcup99")
    frame = data.x.assign(label=data.y).drop_duplicates(ignore_index=True)
    labels = frame.pop("label").to_numpy()
    normal = np.random.RandomState(seed).permutation(np.flatnonzero(labels == "normal"))
    train, held = np.split(normal, [int(TRAINED * len(normal))])
    test = np.concatenate([held, np.flatnonzero(labels != "normal")])
    scores, found = score(frame.iloc[train], frame.iloc[test], seed), dict[str, Any]()
    for family, members in FAMILIES.items():
        strange = np.isin(labels[test], members)
        rows = strange | (labels[test] == "normal")
        found[f"{family} AUROC"] = float(roc_auc_score(strange[rows], -scores[rows]))
        found[f"{family} AP"] = float(average_precision_score(strange[rows], -scores[rows]))
        found[f"{family} rows"] = int(strange.sum())
    return found


if __name__ == "__main__":
    settings = {"fit": FIT, "latent": LATENT, "trained": TRAINED, "detector": repr(pv.VAEDetector().get_params())}
    cells = {
        name: [cell("kddcup99", f"{name}-{s}", settings, lambda n=name, s=s: run(CONTESTANTS[n], s)) for s in SEEDS]
        for name in CONTESTANTS
    }
    for family in FAMILIES:
        lines = []
        for name, rows in cells.items():
            line: dict[str, Any] = {"": name}
            for measure in ("AUROC", "AP"):
                values = [row[f"{family} {measure}"] for row in rows]
                line[measure] = f"{np.mean(values):.3f} ({np.std(values, ddof=1):.3f})"
            lines.append({**line, "seconds": float(np.mean([row["seconds"] for row in rows]))})
        show(lines, f"{family}: {cells['PCA'][0][f'{family} rows']} distinct attacks")
