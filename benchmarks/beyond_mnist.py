"""Scores beyond likelihood on images: An & Cho's (2015) digits again, and Fashion-MNIST against MNIST, both ways.

    python benchmarks/beyond_mnist.py             # ten digits, then the two pairs
    python benchmarks/beyond_mnist.py 1           # one digit

Digits: models as in `an_cho.py` (continuous Bernoulli, 784-400-200, 8 epochs) of nine digits score 200 test images of each
of the ten; AUROC of the tenth. Pairs: models of 60,000 images of one set, of the same widths, score 1000 test images of it
and 1000 of the other. "background": a model of the same images with a fifth of the pixels drawn anew (Ren et al. 2019).
"members": an ensemble of three seeds. 20 draws a row; regret by 100 steps for each row.
"""

import sys
from typing import Any

import numpy as np
from an_cho import FIT, NETS
from cells import behaviour, cell, show
from sklearn.metrics import roc_auc_score

import ppl_vae as pv

LIKELIHOOD, DRAWS, EACH, PAIR, MEMBERS, REDRAWN = "continuous_bernoulli", 20, 200, 1000, 3, 0.2
SETTINGS = {"fit": FIT, "nets": NETS, "draws": DRAWS, "each": EACH, "pair": PAIR, "redrawn": REDRAWN}


def fitted(x: np.ndarray, seed: int = 0) -> Any:
    vae = pv.build(x, **{**NETS, "seed": seed}, likelihood=LIKELIHOOD)
    pv.fit(vae, x, **{**FIT, "seed": seed})
    return vae


def redrawn(x: np.ndarray) -> np.ndarray:
    """A fifth of the pixels with grey values of their own."""
    random = np.random.RandomState(0)
    return np.where(random.rand(*x.shape) < REDRAWN, random.rand(*x.shape), x).astype(np.float32)


def scores(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """Every score of test rows by models of the training rows; higher = more normal."""
    members = [fitted(train, seed) for seed in range(MEMBERS)]
    vae, ensemble, background = members[0], pv.Ensemble(members), fitted(redrawn(train))
    few = train[np.random.RandomState(0).permutation(len(train))[:2000]]
    asked: dict[str, tuple[Any, Any]] = {
        name: (vae, name)
        for name in (
            "reconstruction_probability",
            "elbo",
            "iwae",
            "kl_to_prior",
            "likelihood_regret",
            "input_complexity",
        )
    }
    asked |= {
        name: (vae, (name, {"normal": few})) for name in ("typicality", "density_of_states", "aggregate_posterior")
    }
    asked["likelihood_ratio"] = vae, ("likelihood_ratio", {"background": background})
    asked |= {name: (ensemble, name) for name in ("waic", "disagreement")}
    return {name: pv.score(model, test, scoring, num_draws=DRAWS).values for name, (model, scoring) in asked.items()}


def auroc(found: dict[str, np.ndarray], strange: np.ndarray) -> dict[str, Any]:
    return {name: float(roc_auc_score(strange, -values)) for name, values in found.items()}


def digit(number: int) -> dict[str, Any]:
    """One digit as the anomaly."""
    data = pv.datasets.load("mnist")
    normal = np.random.RandomState(number).permutation(np.flatnonzero(data.y != number))
    normal = normal[: int(0.9 * len(normal))]
    test = np.concatenate([np.flatnonzero(data.test_y == c)[:EACH] for c in range(10)])
    return {"digit": number, **auroc(scores(data.x[normal], data.test_x[test]), data.test_y[test] == number)}


def pair(known: str, other: str) -> dict[str, Any]:
    """One set as the anomaly of another."""
    one, two = pv.datasets.load(known), pv.datasets.load(other)
    test = np.concatenate([one.test_x[:PAIR], two.test_x[:PAIR]])
    return {"known": known, "other": other, **auroc(scores(one.x, test), np.repeat([False, True], PAIR))}


if __name__ == "__main__":
    settings = {**SETTINGS, "behaviour": behaviour(likelihood=LIKELIHOOD)}
    wanted = next((int(a) for a in sys.argv[1:] if a.isdigit()), None)
    rows = []
    for number in range(10) if wanted is None else [wanted]:
        rows.append(cell("beyond_mnist", f"{number}", settings, lambda number=number: digit(number)))
        print(rows[-1], flush=True)
    names = [name for name in rows[0] if name not in ("cell", "digit", "seconds", "code")]
    table = [{"score": name, **{row["cell"]: row[name] for row in rows}} for name in names]
    show(
        [{**row, "mean": float(np.mean(list(row.values())[1:]))} for row in table],
        "MNIST, a digit as the anomaly: AUROC",
    )
    if wanted is None:
        pairs = [("fashion_mnist", "mnist"), ("mnist", "fashion_mnist")]
        ways = [cell("beyond_mnist", "-".join(p), settings, lambda p=p: pair(*p)) for p in pairs]
        named = [f"{way['known']}, {way['other']} strange" for way in ways]
        show(
            [{"score": n, **{name: way[n] for name, way in zip(named, ways)}} for n in names], "One set against another"
        )
