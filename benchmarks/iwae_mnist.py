"""Burda et al. (2016), table 1 in small: how much a tighter bound gains on MNIST, at equal steps, and at equal time.

    python benchmarks/iwae_mnist.py          # every cell, one after another
    python benchmarks/iwae_mnist.py 5        # one of them

784-200-200-50 and back (tanh), Bernoulli pixels drawn anew for each batch, all 60,000 images, batches of 100, Adam with
a cosine schedule from 1e-3; the paper took 3280 epochs. "1" and "5": IWAE of 1 and 5 particles for the same number of
steps; "50": 50 particles at the steps that an hour held on two cores; "1 long": one particle for the time that an hour
held; "1 as 50" and "5 as 50": the steps of "50". Test log-likelihood: 5000-draw bound on the 10,000 test images, pixels
drawn once. Active units: variance of the posterior mean over test images above 0.01.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cells import RESULTS, behaviour, cell, show

import ppl_vae as pv

CELLS: dict[str, dict[str, Any]] = {
    "1": {"particles": 1, "epochs": 150},
    "5": {"particles": 5, "epochs": 150},
    "50": {"particles": 50, "epochs": 36},
    "1 as 50": {"particles": 1, "epochs": 36},
    "5 as 50": {"particles": 5, "epochs": 36},
    "1 long": {"particles": 1, "epochs": 1000},
}
MODEL = {"latent": 50, "hidden": (200, 200), "likelihood": "bernoulli", "seed": 0}
FIT = {"batch_size": 100, "lr": 1e-3, "binarize": "stochastic", "valid": 0.0}
PAIRS = (("5", "1"), ("50", "1 as 50"), ("50", "5 as 50"))


def rows_of(name: str) -> Path:
    """The file of test log-likelihoods, image by image."""
    return RESULTS / "iwae_mnist" / f"{name.replace(' ', '_')}.npy"


def run(name: str, particles: int, epochs: int) -> dict[str, Any]:
    """Fit and score."""
    data = pv.datasets.load("mnist")
    test = (np.random.RandomState(11).rand(*data.test_x.shape) < data.test_x).astype(np.float32)
    vae = pv.build(data.x, **MODEL)
    objective = "elbo" if particles == 1 else "iwae"
    history = pv.fit(
        vae,
        data.x,
        objective=objective,
        particles=particles,
        epochs=epochs,
        seed=0,
        progress=False,
        compiled="auto",
        **FIT,
    )
    log_p = pv.log_evidence(vae, test, "iwae", 5000, seed=1).log_p
    rows_of(name).parent.mkdir(parents=True, exist_ok=True)
    np.save(rows_of(name), log_p.astype(np.float32))
    return {
        "log_p": float(log_p.mean()),
        "se": float(log_p.std() / len(log_p) ** 0.5),
        "active": int((pv.encode(vae, test).var(0) > 0.01).sum()),
        "gradients, millions": epochs * len(data.x) * particles / 1e6,
        "fit, seconds": float(history["seconds"][-1]),
    }


def main(only: str = "") -> None:
    """Run and print what is asked for."""
    now, rows = behaviour({"objective": "iwae", "particles": 3}, hidden=(16, 16)), []
    for name, of in CELLS.items():
        if only in ("", name):
            rows.append(
                cell("iwae_mnist", name.replace(" ", "_"), {**of, **FIT, "behaviour": now}, partial(run, name, **of))
            )
            print(rows[-1], flush=True)
    show(rows, "IWAE on MNIST, nats a test image")
    pairs = []
    for one, two in PAIRS:
        if rows_of(one).exists() and rows_of(two).exists():
            over = np.load(rows_of(one)).astype(float) - np.load(rows_of(two)).astype(float)
            pairs.append(
                {"of": one, "over": two, "gain": over.mean(), "paired se": over.std(ddof=1) / len(over) ** 0.5}
            )
    show(pairs, "Gains, paired over images")


if __name__ == "__main__":
    main(*sys.argv[1:2])
