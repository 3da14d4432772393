"""Priors and posteriors on statically binarised MNIST: one architecture, one budget, one table.

    python benchmarks/priors_mnist.py              # every cell, one after another
    python benchmarks/priors_mnist.py vamp/0       # cells whose name starts so

784-300-300 and back, 40 latent dimensions, Bernoulli pixels; 100 epochs on the 50,000 training images, batches of 200, Adam
with a cosine schedule from 1e-3, the objective `elbo` with one draw a row, the KL term warmed up over 10 epochs; the same
for all. Seeds 0, 1, 2 of weights, order and noise. Test log-likelihood: the importance-weighted bound with 5000 draws on the
first 1000 test images (in the fixed shuffled order of the data set). Differences are paired over these images, averaged
over seeds: the standard error is over images, given these fits; the gain of each seed stands beside it. No setting was
chosen by test images.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cells import RESULTS, behaviour, cell, show

import ppl_vae as pv

PARTS: dict[str, dict[str, Any]] = {
    "standard_normal": {},
    "mixture": {"prior": "mixture", "components": 50},
    "vamp": {"prior": "vamp", "components": 200},
    "flow": {"prior": "flow"},
    "iaf": {"posterior": "iaf"},
}
ROWS = {"epochs": 100, "batch_size": 200, "lr": 1e-3, "kl_warmup": 10, "valid": 0.0}
SEEDS = (0, 1, 2)
DRAWS, TEST = 5000, 1000


def run(name: str, seed: int) -> dict[str, Any]:
    """Fit one model and score the test images; keeps the bound of each beside the cell."""
    data = pv.datasets.load("binarized_mnist")
    model = {"latent": 40, "hidden": (300, 300), "activation": "relu", "likelihood": "bernoulli", "seed": seed}
    vae = pv.build(data.x, **model, **PARTS[name])
    history = pv.fit(vae, data.x, seed=seed, progress=False, **ROWS)
    log_p = pv.score(vae, data.test_x[:TEST], "iwae", num_draws=DRAWS).values
    bound = pv.score(vae, data.test_x[:TEST], "elbo", num_draws=50).values
    np.save(rows_of(name, seed), log_p.astype(np.float32))
    return {
        "log_p": float(log_p.mean()),
        "bound": float(bound.mean()),
        "train_bound": history["bound"][-1],
        "parameters": sum(p.numel() for p in vae.parameters()),
    }


def rows_of(name: str, seed: int) -> Path:
    """The file of test log-likelihoods, image by image."""
    folder = RESULTS / "priors_mnist"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}-{seed}.npy"


def main(prefix: str = "") -> None:
    """Run and print what is asked for."""
    cells = []
    for seed in SEEDS:
        for name, parts in PARTS.items():
            if f"{name}/{seed}".startswith(prefix):
                small = {**parts, **({"components": 10} if "components" in parts else {})}
                settings = {**parts, **ROWS, "draws": DRAWS, "rows": TEST, "behaviour": behaviour(**small)}
                cells.append(cell("priors_mnist", f"{name}-{seed}", settings, partial(run, name, seed)))
    show(cells, "Test log-likelihood, nats an image")
    if prefix:
        return
    log_p = {name: np.stack([np.load(rows_of(name, seed)) for seed in SEEDS]) for name in PARTS}
    table = []
    for name, values in log_p.items():
        gain = (values - log_p["standard_normal"]).mean(0)
        error = gain.std(ddof=1) / len(gain) ** 0.5
        table.append(
            {
                "parts": name,
                **{f"seed {seed}": float(v.mean()) for seed, v in zip(SEEDS, values)},
                "mean": float(values.mean()),
                **{f"gain {seed}": float(g.mean()) for seed, g in zip(SEEDS, values - log_p["standard_normal"])},
                "gain": float(gain.mean()),
                "paired se": float(error),
                "in se": float(gain.mean() / error) if error else float("nan"),
            }
        )
    show(
        table,
        f"Statically binarised MNIST: {DRAWS}-draw bound on {TEST} test images, gain over the standard normal prior",
    )


if __name__ == "__main__":
    main(*sys.argv[1:2])
