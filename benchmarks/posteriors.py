"""Posteriors of given rows, method by method: against grids where there are two latents, against long chains beyond.

    python benchmarks/posteriors.py          # every cell, one after another
    python benchmarks/posteriors.py grid     # cells whose name starts so

Two VAEs of scikit-learn's digits (64 grey values, a normal likelihood with one scale a pixel, two hidden layers of 64 tanh
units, 200 epochs on all but the 20 rows looked at): with 2 latents the truth is an integral on a grid of 1201 x 1201 points;
with 8 it is Pyro's NUTS, 4 chains a row together of 4000 draws after 1000 of warm-up, and of the 20 rows those whose R-hats
are all below 1.01. Every method makes 4000 draws. Distance of means in standard deviations of the true posterior, and ratio
of standard deviations: the worst over rows and latents, and the mean.
"""

import hashlib
import sys
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from cells import behaviour, cell, show
from sklearn.datasets import load_digits

import ppl_vae as pv

METHODS: dict[str, dict[str, Any]] = {
    "amortized": {},
    "svi": {"steps": 1000},
    "flow": {"steps": 3000},
    "laplace": {},
    "sir": {"candidates": 400_000},
    "hmc": {"warmup": 500},
}
ROWS, DRAWS = 20, 4000


def fitted(latent: int) -> tuple[pv.VAE, np.ndarray]:
    """A model of the digits, and rows that it has not seen."""
    x = load_digits().data / 16
    x = x[np.random.RandomState(0).permutation(len(x))]
    vae = pv.build(x, latent=latent, hidden=(64, 64), scale="feature", scale_floor=0.1, standardize="center", seed=0)
    pv.fit(vae, x[ROWS:], epochs=200, lr=3e-3, objective="analytic_kl", seed=0, progress=False)
    return vae, x[:ROWS]


def grid(vae: pv.VAE, x: np.ndarray, size: int = 1201) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (n, 2) of p(z|x) under a standard normal prior, by summing over a grid."""
    line = torch.linspace(-6, 6, size)
    z = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).view(-1, 1, 2)
    rows = vae.batch(x).x
    with torch.no_grad():
        log_p = torch.cat([vae.decoder(part).log_prob(rows) for part in z.split(20_000)]).double()
    weight = (log_p - 0.5 * (z.double() ** 2).sum(-1)).softmax(0)[..., None]
    mean = (weight * z).sum(0)
    return mean.numpy(), (weight * (z - mean) ** 2).sum(0).sqrt().numpy()


def chains(vae: pv.VAE, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and standard deviation (n, k) of long chains, and which rows have converged."""
    found = pv.posterior(vae, x, "nuts", 16_000, warmup=1000, seed=5)
    return found.z.mean(0).numpy(), found.z.std(0).numpy(), (found.stats["r_hat"] < 1.01).all(1)


def compared(latent: int) -> dict[str, Any]:
    """Every method against the truth."""
    vae, x = fitted(latent)
    mean, sd, good = (*grid(vae, x), np.ones(ROWS, bool)) if latent == 2 else chains(vae, x)
    figures: dict[str, Any] = {"rows": int(good.sum()), "methods": {}}
    for method, options in METHODS.items():
        start = time.perf_counter()
        found = pv.posterior(vae, x, method, DRAWS, seed=1, **options)
        seconds = time.perf_counter() - start
        off = np.abs(found.z.mean(0).numpy() - mean)[good] / sd[good]
        ratio = (found.z.std(0).numpy() / sd)[good]
        figures["methods"][method] = {
            "mean off, worst": float(off.max()),
            "on average": float(off.mean()),
            "sd ratio, least": float(ratio.min()),
            "sd ratio, mean": float(ratio.mean()),
            "sd ratio, most": float(ratio.max()),
            "R-hat": float(found.stats["r_hat"].max()) if "r_hat" in found.stats else float("nan"),
            "seconds": seconds,
        }
        print(latent, method, {k: round(v, 3) for k, v in figures["methods"][method].items()}, flush=True)
    return figures


def digest() -> str:
    """What the methods compute, to three digits: moments of a few draws for a small model."""
    x = np.random.RandomState(0).randn(60, 4)
    ppca, short, found = pv.PPCA(2).fit(x), {"svi": "steps", "flow": "steps", "laplace": "steps", "hmc": "warmup"}, []
    for method in METHODS:
        options = {short[method]: 20} if method in short else {}
        z = pv.posterior(ppca, x[:2], method, 40, **options).z
        found += [*z.mean(0).flatten().tolist(), *z.std(0).flatten().tolist()]
    return hashlib.sha256(" ".join(f"{v:.3g}" for v in found).encode()).hexdigest()[:12]


def main(prefix: str = "") -> None:
    """Run and print what is asked for."""
    now = behaviour(hidden=(16, 16), likelihood="normal", scale="feature")
    methods = digest()
    for name, latent in {"grid": 2, "nuts": 8}.items():
        if name.startswith(prefix):
            settings = {"methods": METHODS, "draws": DRAWS, "rows": ROWS, "behaviour": now, "digest": methods}
            found = cell("posteriors", name, settings, partial(compared, latent))
            rows = [{"method": method, **of} for method, of in found["methods"].items()]
            show(rows, f"{latent} latents, {found['rows']} rows, against {name}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
