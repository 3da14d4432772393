"""Kingma & Welling (2013), figure 2: the test bound after 1e7 training samples, on MNIST and Frey faces.

    python benchmarks/aevb_curves.py            # every cell, one after another
    python benchmarks/aevb_curves.py mnist      # cells whose name starts so

MNIST: the first 50,000 images to train, the 10,000 test images; pixels drawn anew as Bernoulli with the grey value as
probability (for test once). Frey: 1965 frames x / 255, 400 to test; "random" as in the paper, where neighbouring frames are
near-duplicates, and "contiguous", the last 400 frames of the film. Networks and bound as in the paper (one hidden tanh
layer of 500 or 200, L = 1, analytic KL). Other than in the paper: batches of 200, not 100; Adam with a cosine schedule from
2e-3, not Adagrad; on Frey decoupled weight decay of 0.3 and half the samples, 5e6. Frey's normal likelihood has a scale for
each row and pixel, softplus + 0.01 in units of x / 255 (two and a half grey levels): with a floor of 1e-3 a handful of rare
faces, far from any training frame, cost the mean 35 nats a row at N_z = 2.
"""

import sys
from typing import Any

import numpy as np
from cells import cell, show

import ppl_vae as pv

SAMPLES = {"mnist": 10_000_000, "frey": 5_000_000}
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
SHARED = {"objective": "analytic_kl", "batch_size": 200, "lr": 2e-3, "seed": 0}
SETTINGS = {
    "mnist": {**SHARED, "optimizer": "adam"},
    "frey": {**SHARED, "optimizer": "adamw", "weight_decay": 0.3},
}
MODEL: dict[str, dict[str, Any]] = {
    "mnist": {"hidden": [500], "likelihood": "bernoulli"},
    "frey": {"hidden": [200], "standardize": "center", "scale_floor": 0.01},
}


def bounds(vae: pv.VAE, x: np.ndarray, name: str) -> dict[str, float]:
    """Mean bound of rows, with the standard error over rows."""
    values = pv.score(vae, x, "elbo", num_draws=10, seed=1).values
    return {name: float(values.mean()), f"{name}_se": float(values.std() / len(values) ** 0.5)}


def fit(vae: pv.VAE, x: np.ndarray, data: str, **options: Any) -> pv.History:
    """Train on as many rows as `SAMPLES` says."""
    return pv.fit(vae, x, epochs=SAMPLES[data] // len(x), valid=0.0, progress=False, **SETTINGS[data], **options)


def mnist(latent: int) -> dict[str, float]:
    """One cell of MNIST."""
    data = pv.datasets.load("mnist")
    train, test = data.x[:50000], pv.datasets.binarize(data.test_x, "stochastic", seed=1)
    vae = pv.build(train, latent=latent, **MODEL["mnist"])
    history = fit(vae, train, "mnist", binarize="stochastic")
    return {**bounds(vae, test, "test"), "train": float(history["bound"][-1])}


def frey(latent: int, split: str) -> dict[str, float]:
    """One cell of Frey faces."""
    x = pv.datasets.load("frey").x
    order = np.random.RandomState(0).permutation(len(x)) if split == "random" else np.arange(len(x))
    train, test = x[order[:1565]], x[order[1565:]]
    vae = pv.build(train, latent=latent, **MODEL["frey"])
    fit(vae, train, "frey")
    return {**bounds(vae, test, "test"), **bounds(vae, train, "train")}


if __name__ == "__main__":
    wanted, rows = sys.argv[1] if len(sys.argv) > 1 else "", []
    cells = [(f"mnist-{k}", "mnist", k, lambda k=k: mnist(k)) for k in PAPER["mnist"]]
    for split in ("random", "contiguous"):
        cells += [(f"frey-{split}-{k}", "frey", k, lambda k=k, s=split: frey(k, s)) for k in PAPER["frey"]]
    for name, data, latent, run in cells:
        if name.startswith(wanted):
            at_1e7, at_1e8 = PAPER[data][latent]
            model = MODEL[data] if data == "frey" else {}
            settings = {"samples": SAMPLES[data], **SETTINGS[data], **model, "latent": latent}
            row = cell("aevb_curves", name, settings, run)
            rows.append({**row, "paper 1e7": at_1e7, "paper 1e8": at_1e8})
            print(rows[-1], flush=True)
    show(rows, "Test bound, nats a row")
