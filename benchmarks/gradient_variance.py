"""How noisy is the score-function gradient beside the pathwise one? The same model, the same rows, the same bound.

    python benchmarks/gradient_variance.py          # every cell, one after another
    python benchmarks/gradient_variance.py normal   # cells whose name starts so: bernoulli, normal
    python benchmarks/gradient_variance.py --tiny   # a few repeats, to see that it runs

scikit-learn's digits, binarised at 1/2 with a Bernoulli likelihood or grey with a normal one (a scale per row and
pixel); one hidden tanh layer of 64, 4 latent dimensions, 20 epochs of "elbo". Then the weights stay, and the gradient
of the bound, summed over one batch of 128 rows, is taken 400 times with fresh noise by each of the objectives "elbo"
(pathwise) and "score_function", with 1, 10 and 100 particles, through the same pieces as a step of `fit`: Pyro's ELBO
object and keyed noise, keyed differently for the two, so that they are independent.

Variance is the trace of the gradient's covariance matrix; "ratio" is score function over pathwise, with its standard
error by the jackknife over repeats. The decoder's gradient is the same estimator in both: its ratio has to be 1.
Both estimate one gradient: "max z" is the largest difference of the two mean gradients over the encoder's weights, in
standard errors of that difference, and "limit" what it exceeds in at most 1 % of runs were every z normal (Bonferroni).
"slope" is the score-function mean over the pathwise one, both along the direction of a third mean (pathwise, 100
particles): 1 if they agree.
"""

import sys

import numpy as np
import pyro
import torch
from cells import cell, show
from scipy.stats import norm

import ppl_vae as pv
from ppl_vae.infer.noise import Keyed, step_keys
from ppl_vae.infer.scope import isolated

TINY = "--tiny" in sys.argv
MODEL = {"latent": 4, "hidden": (64,), "seed": 0}
TRAIN = {"epochs": 20, "batch_size": 128, "lr": 2e-3, "valid": 0.0, "seed": 0, "progress": False}
ROWS, REPEATS = 128, 20 if TINY else 400
PARTICLES = (1, 10, 100)


def trained(likelihood: str) -> tuple[pv.VAE, torch.Tensor]:
    """A briefly trained model, and one batch of encoded rows."""
    x = pv.datasets.load("digits").x
    x = pv.datasets.binarize(x, "threshold") if likelihood == "bernoulli" else x
    vae = pv.build(x, likelihood=likelihood, **MODEL)
    pv.fit(vae, x, **TRAIN)
    return vae, vae.batch(x[np.random.RandomState(0).permutation(len(x))[:ROWS]]).x


def gradients(vae: pv.VAE, batch: torch.Tensor, name: str, particles: int, seed: int) -> dict[str, np.ndarray]:
    """Gradients of the bound summed over rows, by encoder and decoder: (repeats, weights) each."""
    objective = pv.objectives()[name]
    elbo, rows = objective.make(particles), torch.arange(len(batch))
    parts: dict[str, list[np.ndarray]] = {"encoder": [], "decoder": []}
    with isolated(vae):
        for step in range(REPEATS):
            vae.zero_grad()
            pyro.clear_param_store()
            with Keyed(step_keys(rows, seed, step), strict=False, reparameterized=objective.reparameterized):
                elbo.loss_and_grads(vae.model, vae.guide, batch)
            for part, kept in parts.items():
                kept.append(torch.cat([-p.grad.flatten() for p in getattr(vae, part).parameters()]).double().numpy())
    return {part: np.stack(kept) for part, kept in parts.items()}


def variance(g: np.ndarray) -> tuple[float, float]:
    """Trace of the covariance of gradients (repeats, weights), and its relative standard error by the jackknife."""
    n, squares = len(g), np.square(g - g.mean(0)).sum(1)
    trace = squares.sum() / (n - 1)
    without = (squares.sum() - squares * n / (n - 1)) / (n - 2)  # the trace with one repeat left out
    return float(trace), float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()) / trace)


def agreement(a: np.ndarray, b: np.ndarray, direction: np.ndarray) -> dict[str, float]:
    """Whether two independent samples of gradients have one mean, weight by weight and along a direction."""
    error = np.sqrt((a.var(0, ddof=1) + b.var(0, ddof=1)) / len(a))
    known = error > 1e-12 * np.abs(b).max()  # weights of pixels that are never on have no gradient
    z = np.abs(a.mean(0) - b.mean(0))[known] / error[known]
    above, below = a @ direction, b @ direction
    relative = [v.std(ddof=1) / len(v) ** 0.5 / abs(below.mean()) for v in (above, below)]
    return {
        "max z": float(z.max()),
        "limit": float(norm.isf(0.005 / len(z))),
        "slope": float(above.mean() / below.mean()),
        "slope_se": float(np.hypot(*relative)),
    }


def compared(likelihood: str, particles: int) -> dict[str, float]:
    """One row of the table."""
    vae, batch = trained(likelihood)
    score = gradients(vae, batch, "score_function", particles, seed=1)
    path = gradients(vae, batch, "elbo", particles, seed=2)
    figures: dict[str, float] = {}
    for part in ("encoder", "decoder"):
        (above, above_se), (below, below_se) = variance(score[part]), variance(path[part])
        figures |= {f"{part}: score function": above, f"{part}: pathwise": below, f"{part}: ratio": above / below}
        figures[f"{part}: ratio_se"] = above / below * float(np.hypot(above_se, below_se))
    direction = gradients(vae, batch, "elbo", 100, seed=3)["encoder"].mean(0)
    return {**figures, **agreement(score["encoder"], path["encoder"], direction)}


if __name__ == "__main__":
    wanted, rows = next((a for a in sys.argv[1:] if not a.startswith("-")), ""), []
    settings = {"model": {**MODEL, "hidden": list(MODEL["hidden"])}, "train": TRAIN, "rows": ROWS, "repeats": REPEATS}
    for likelihood in ("bernoulli", "normal"):
        for k in PARTICLES:
            if f"{likelihood}-{k}".startswith(wanted):
                run = lambda name=likelihood, k=k: compared(name, k)  # noqa: E731
                name = f"{likelihood}-{k}"
                rows.append({"cell": name, **run()} if TINY else cell("gradient_variance", name, settings, run))
                print(rows[-1], flush=True)
    show(rows, "Variance of the gradient of the bound, score function over pathwise")
