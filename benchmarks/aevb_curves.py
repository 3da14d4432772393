"""Kingma & Welling (2013), figure 2: the test bound after 1e7 training samples, on MNIST and Frey faces.

    python benchmarks/aevb_curves.py            # every cell, one after another
    python benchmarks/aevb_curves.py mnist      # cells whose name starts so

MNIST: the first 50,000 images to train, the 10,000 test images; pixels drawn anew as Bernoulli with the grey value as
probability (for test once). Frey: 1965 frames x / 255, 400 to test; "random" as in the paper, where neighbouring frames are
near-duplicates, and "contiguous", the last 400 frames of the film. Networks, batch and bound as in the paper (one hidden
tanh layer of 500 or 200, L = 1, analytic KL); batches of 200 and Adam with a cosine schedule from 2e-3, not 100 and Adagrad.
Frey: the normal likelihood has a scale per row and pixel, softplus + 1e-3 in standardised units, about 1.5e-4 in units of x / 255.
"""

import sys

import numpy as np
from cells import cell, show

import ppl_vae as pv

SAMPLES = 10_000_000
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
SETTINGS = {
    "samples": SAMPLES,
    "objective": "analytic_kl",
    "batch_size": 200,
    "lr": 2e-3,
    "optimizer": "adam",
    "seed": 0,
}


def bounds(vae: pv.VAE, x: np.ndarray, name: str) -> dict[str, float]:
    """Mean bound of rows, with the standard error over rows."""
    values = pv.score(vae, x, "elbo", num_draws=10, seed=1).values
    return {name: float(values.mean()), f"{name}_se": float(values.std() / len(values) ** 0.5)}


def fit(vae: pv.VAE, x: np.ndarray, **options: object) -> pv.History:
    """Train on 1e7 rows."""
    epochs = SAMPLES // len(x)
    keys = ("objective", "batch_size", "lr", "optimizer", "seed")
    kept = {k: SETTINGS[k] for k in keys}
    return pv.fit(vae, x, epochs=epochs, valid=0.0, progress=False, **kept, **options)


def mnist(latent: int) -> dict[str, float]:
    """One cell of MNIST."""
    data = pv.datasets.load("mnist")
    train, test = data.x[:50000], pv.datasets.binarize(data.test_x, "stochastic", seed=1)
    vae = pv.build(train, latent=latent, hidden=(500,), likelihood="bernoulli")
    history = fit(vae, train, binarize="stochastic")
    return {**bounds(vae, test, "test"), "train": float(history["bound"][-1])}


def frey(latent: int, split: str) -> dict[str, float]:
    """One cell of Frey faces."""
    x = pv.datasets.load("frey").x
    order = np.random.RandomState(0).permutation(len(x)) if split == "random" else np.arange(len(x))
    train, test = x[order[:1565]], x[order[1565:]]
    vae = pv.build(train, latent=latent, hidden=(200,))
    fit(vae, train)
    return {**bounds(vae, test, "test"), **bounds(vae, train, "train")}


if __name__ == "__main__":
    wanted, rows = sys.argv[1] if len(sys.argv) > 1 else "", []
    cells = [(f"mnist-{k}", "mnist", k, lambda k=k: mnist(k)) for k in PAPER["mnist"]]
    for split in ("random", "contiguous"):
        cells += [(f"frey-{split}-{k}", "frey", k, lambda k=k, s=split: frey(k, s)) for k in PAPER["frey"]]
    for name, data, latent, run in cells:
        if name.startswith(wanted):
            at_1e7, at_1e8 = PAPER[data][latent]
            row = cell("aevb_curves", name, {**SETTINGS, "latent": latent}, run)
            rows.append({**row, "paper 1e7": at_1e7, "paper 1e8": at_1e8})
            print(rows[-1], flush=True)
    show(rows, "Test bound, nats a row, after 1e7 training samples")
