"""Kingma & Welling (2013), figure 3: three ways to infer on 1000 images of MNIST, and the fourth that they leave open.

    python benchmarks/figure3.py             # every cell, one after another
    python benchmarks/figure3.py aevb/once   # cells whose name starts so

784-100-3 and back, tanh, Bernoulli pixels, the first 1000 training images, batches of 100, Adagrad with a constant step
size, 10^7 samples, a N(0, I) prior of all weights (by weight decay 1 / 1000). The step size is that of the paper's
three, 0.01, 0.02 and 0.1, whose evidence of 200 training images is highest after 10^5 samples. Pixels: the paper does
not say how they were made binary. "once": drawn once with the grey value as probability; "anew": drawn anew for each
batch, and once for the evaluation; "grey": the cross entropy of the grey values themselves, which is no density.

"aevb" is the bound with the KL term in closed form, "wake_sleep" as in the paper, "mcem" its Monte Carlo EM (HMC of 10
leapfrog steps tuned to 90 % acceptance, 5 updates of the weights for each draw; the chains of each image go on from
epoch to epoch, for which its pixels have to stay). The paper counts "training samples evaluated": "mcem_evaluated" is the
same with the leapfrog steps counted too, 3.2 for each row and update of the weights. "full_vb" is its appendix F: a normal
posterior over the decoder's weights too, in the place of their mode.

Evidence: annealed importance sampling (16 chains, 250 temperatures; 50 for the choice of the step size) of these 1000
images and of the first 1000 test images. With weights that are drawn it is the log of a mean over these too, each chain
having its own, for which 16 draws of 79,000 weights are too few: it is at least so much. "raised" is by how much 256 chains
raise it on the first 100 images, with the share of these of which even that estimate is in doubt.
"""

import sys
from functools import partial
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from cells import behaviour, cell, show
from torch.distributions import constraints

import ppl_vae as pv

PAPER = {"aevb": (-114.4, -142.9), "wake_sleep": (-128.3, -146.6), "mcem": (-118.3, -142.4)}
PAPER["mcem_evaluated"] = PAPER["mcem"]
METHODS: dict[str, dict[str, Any]] = {
    "aevb": {"objective": "analytic_kl"},
    "wake_sleep": {"objective": "wake_sleep"},
    "mcem": {"objective": "mcem"},
    "mcem_evaluated": {"objective": "mcem", "evaluations": 3.2},
    "full_vb": {"objective": "analytic_kl", "weights": "normal", "chains": 256},
}
PIXELS = ("once", "anew", "grey")
SAMPLES, FIRST, RATES, ROWS = 10_000_000, 100_000, (0.01, 0.02, 0.1), 1000


class Grey(torch.nn.Module):
    """Bernoulli's log mass at grey values."""

    type, outputs = "unit", 1

    def __init__(self, features: int) -> None:
        super().__init__()

    def forward(self, logits: torch.Tensor) -> dist.Distribution:
        return CrossEntropy(logits=logits, validate_args=False).to_event(1)


class CrossEntropy(dist.Bernoulli):
    """A Bernoulli that takes grey values."""

    support = constraints.unit_interval


def images(pixels: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """To train on, and the training and test images to judge by."""
    data = pv.datasets.load("mnist")
    x, test = (np.asarray(v[:ROWS], np.float32) for v in (data.x, data.test_x))
    if pixels == "grey":
        return x, x, test
    drawn, drawn_test = (
        (np.random.RandomState(7 + i).rand(*v.shape) < v).astype(np.float32) for i, v in enumerate((x, test))
    )
    return (x if pixels == "anew" else drawn), drawn, drawn_test


def evidence(vae: pv.VAE, x: np.ndarray, chains: int = 16, steps: int = 250) -> pv.Evidence:
    """By annealing, which needs no encoder."""
    return pv.log_evidence(vae, x, "ais", chains, seed=1, steps=steps)


def fitted(method: str, pixels: str, x: np.ndarray, samples: int, lr: float) -> pv.VAE:
    """One model after so many samples."""
    of = METHODS[method]
    point = "weights" not in of
    likelihood = Grey if pixels == "grey" else "bernoulli"
    vae = pv.build(
        x, latent=3, hidden=(100,), likelihood=likelihood, weights=of.get("weights", "point"), standardize="none"
    )
    fit = {
        "optimizer": "adagrad",
        "schedule": "constant",
        "batch_size": 100,
        "valid": 0.0,
        "progress": False,
        "compiled": "auto",
    }
    binarize = "stochastic" if pixels == "anew" else None
    decay, epochs = 1 / ROWS if point else 0.0, round(samples / ROWS / of.get("evaluations", 1.0))
    pv.fit(vae, x, objective=of["objective"], epochs=epochs, lr=lr, weight_decay=decay, binarize=binarize, **fit)
    return vae


def run(method: str, pixels: str) -> dict[str, Any]:
    """Choose the step size, fit, and estimate the evidence."""
    x, train, test = images(pixels)
    chains = METHODS[method].get("chains")

    def judged(lr: float) -> float:
        return float(evidence(fitted(method, pixels, x, FIRST, lr), train[:200], steps=50).log_p.mean())

    lr = max(RATES, key=judged)
    vae = fitted(method, pixels, x, SAMPLES, lr)
    figures: dict[str, Any] = {"lr": lr}
    for name, rows in (("train", train), ("test", test)):
        log_p = evidence(vae, rows).log_p
        figures |= {name: float(log_p.mean()), f"{name} se": float(log_p.std() / len(log_p) ** 0.5)}
        if chains is not None:
            more = evidence(vae, rows[:100], chains)
            raised = more.log_p - log_p[:100]
            figures |= {f"{name} raised": float(raised.mean()), f"{name} raised se": float(raised.std() / 10)}
            figures |= {f"{name} doubtful": float(more.doubtful.mean())}
    return {**figures, "gap": figures["train"] - figures["test"]}


def main(prefix: str = "") -> None:
    """Run and print what is asked for."""
    now, rows = behaviour(hidden=(16, 16)), []
    for pixels in PIXELS:
        for method, of in METHODS.items():
            if f"{method}/{pixels}".startswith(prefix) and not (of["objective"] == "mcem" and pixels == "anew"):
                settings = {**of, "samples": SAMPLES, "first": FIRST, "rates": list(RATES), "behaviour": now}
                found = cell("figure3", f"{method}-{pixels}", settings, partial(run, method, pixels))
                paper = PAPER.get(method, (np.nan, np.nan))
                rows.append(
                    {"method": method, "pixels": pixels, **found, "paper, train": paper[0], "paper, test": paper[1]}
                )
                print(rows[-1], flush=True)
    show(rows, "Evidence of 1000 training and 1000 test images, nats an image")


if __name__ == "__main__":
    main(*sys.argv[1:2])
