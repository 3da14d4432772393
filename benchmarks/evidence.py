"""Evidence that can be checked: closed forms, and bounds from both sides on rows that a model made itself.

    python benchmarks/evidence.py            # every cell, one after another
    python benchmarks/evidence.py ppca       # cells whose name starts so

pPCA: 10 components of scikit-learn's digits (64 pixels), 500 rows. Its guide would be exact, so that every method has
nothing to do: its means are multiplied by 0.97 and its scales by 1.1. Share of rows within 3 standard errors of the
closed form: importance sampling and Pareto smoothing with 5000 draws, annealing with 64 chains through 500
temperatures.

MNIST: 784-200-200-50 and back (tanh), Bernoulli pixels drawn anew, 60 epochs with a cosine schedule. 100 rows made by
the model, bounded from below by annealing from the prior, and from above by annealing back from the z that made them
(Grosse et al. 2016), 16 chains a row; and the 5000-draw bound of the encoder on the same rows.
"""

import sys
from functools import partial
from typing import Any

import numpy as np
import torch
from cells import behaviour, cell, show
from sklearn.datasets import load_digits

import ppl_vae as pv

CLOSED = {"iwae": {"num_draws": 5000}, "psis": {"num_draws": 5000}, "ais": {"num_draws": 64, "steps": 500}}
MODEL = {"latent": 50, "hidden": (200, 200), "likelihood": "bernoulli", "seed": 0}
FIT = {"epochs": 60, "batch_size": 100, "lr": 1e-3, "binarize": "stochastic", "valid": 0.0}
ROWS, STEPS, CHAINS = 100, (250, 1000, 4000), 16


def closed(method: str, **options: Any) -> dict[str, Any]:
    """One method against pPCA's closed form."""
    x = load_digits().data
    x = x[:, x.std(0) > 0]
    ppca = pv.PPCA(10).fit(x)
    with torch.no_grad():
        ppca.encoder.linear.weight.mul_(0.97)
        ppca.encoder.scale.mul_(1.1)
    found = pv.log_evidence(ppca, x[:500], method, seed=1, **options)
    error = found.log_p - ppca.log_prob(x[:500])
    return {
        "share within 3 se": float(np.mean(np.abs(error) < 3 * found.mcse)),
        "mean error": float(error.mean()),
        "its se": float(error.std() / len(error) ** 0.5),
        "mean mcse": float(found.mcse.mean()),
        "doubtful": float(found.doubtful.mean()),
    }


def fitted() -> pv.VAE:
    """The VAE of MNIST."""
    data = pv.datasets.load("mnist")
    vae = pv.build(data.x, **MODEL)
    pv.fit(vae, data.x, seed=0, progress=False, **FIT)
    return vae


def sandwich(steps: tuple[int, ...]) -> dict[str, Any]:
    """Bounds from below and above on simulated rows, for each number of temperatures."""
    vae, figures = fitted(), {}
    rows = pv.generate(vae, ROWS, seed=3)
    bound = pv.log_evidence(vae, rows, "iwae", seed=1)
    figures["iwae"] = float(bound.log_p.mean())
    for count in steps:
        found = pv.log_evidence(vae, rows, "ais", CHAINS, seed=1, steps=count)
        gap, over = found.upper - found.log_p, found.log_p - bound.log_p
        figures |= {
            f"ais {count}": float(found.log_p.mean()),
            f"upper {count}": float(found.upper.mean()),
            f"gap {count}": float(gap.mean()),
            f"largest gap {count}": float(gap.max()),
            f"over iwae {count}": float(over.mean()),
            f"paired se {count}": float(over.std(ddof=1) / len(over) ** 0.5),
        }
        print({name: round(value, 3) for name, value in figures.items()}, flush=True)
    return figures


def main(prefix: str = "") -> None:
    """Run and print what is asked for."""
    now = behaviour(hidden=(16, 16))
    rows = [
        cell("evidence", f"ppca-{method}", {**options, "behaviour": now}, partial(closed, method, **options))
        for method, options in CLOSED.items()
        if f"ppca-{method}".startswith(prefix)
    ]
    if rows:
        show(rows, "Against the closed form, nats a row")
    if "mnist".startswith(prefix):
        settings = {**MODEL, **FIT, "hidden": list(MODEL["hidden"]), "steps": list(STEPS), "behaviour": now}
        show([cell("evidence", "mnist", settings, partial(sandwich, STEPS))], "Simulated rows of an MNIST decoder")


if __name__ == "__main__":
    main(*sys.argv[1:2])
