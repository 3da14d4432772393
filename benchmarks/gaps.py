"""Approximation and amortisation gap of MNIST images (Cremer et al. 2018), with one decoder held fixed.

    python benchmarks/gaps.py          # every cell, one after another
    python benchmarks/gaps.py large    # cells whose name starts so

784-200-200-50 and back (tanh), Bernoulli pixels of the first 10,000 training images, drawn once, 100 epochs. Then the
decoder is held, and three encoders are fitted anew to the same images for 100 epochs: "small" with one hidden layer of
50, "large" with two of 500, and "flow", two of 200 and an inverse autoregressive flow; "own" is the one that the
decoder was fitted with. On the first 1000 training and the first 1000 test images: the encoder's bound L[q], by 200
draws; the best mean-field normal of each image, refined from there by 1000 steps, and the best flow of each image.
Evidence: the larger of annealed importance sampling, 16 chains through 1000 temperatures, and the encoder's 5000-draw
bound, as Cremer et al. do, of the first 100 of both. Approximation gap: evidence - best bound of the family searched;
amortisation gap: that bound - L[q]. For "flow" the search is over flows of each row, which is another family than the
encoder's: its second gap holds what the two differ by, too.
"""

import sys
from functools import partial
from typing import Any

import numpy as np
from cells import RESULTS, behaviour, cell, show

import ppl_vae as pv

MODEL = {"latent": 50, "hidden": (200, 200), "likelihood": "bernoulli", "seed": 0}
FIT = {"epochs": 100, "batch_size": 100, "lr": 1e-3, "valid": 0.0, "seed": 0, "progress": False}
ENCODERS: dict[str, dict[str, Any] | None] = {
    "own": None,
    "small": {"hidden": (50,)},
    "large": {"hidden": (500, 500)},
    "flow": {"hidden": (200, 200), "posterior": "iaf"},
}
BEST = {"normal": ("svi", {"steps": 1000, "lr": 0.02}), "flow": ("flow", {"steps": 1500, "lr": 0.01})}
TRAIN, ROWS, ANNEALED, DRAWS = 10_000, 1000, 100, 200


def images() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """To train on, and the rows looked at."""
    data = pv.datasets.load("mnist")
    x, test = (
        (np.random.RandomState(i).rand(*v.shape) < v).astype(np.float32)
        for i, v in enumerate((data.x[:TRAIN], data.test_x[:ROWS]))
    )
    return x, {"train": x[:ROWS], "test": test}


def decoder(x: np.ndarray) -> pv.VAE:
    """The model whose decoder is held; fitted once, kept beside the results' folder."""
    path = RESULTS.parent / "models" / "gaps"
    if not path.exists():
        vae = pv.build(x, **MODEL)
        pv.fit(vae, x, **FIT)
        pv.save(vae, path)
    return pv.load(path)


def with_encoder(name: str, x: np.ndarray) -> pv.VAE:
    """The same decoder, with this encoder fitted to it."""
    vae, of = decoder(x), ENCODERS[name]
    if of is None:
        return vae
    other = pv.build(x, **{**MODEL, **of, "seed": 1})
    vae.decoder.requires_grad_(False)
    both = pv.VAE(other.encoder, vae.decoder, vae.prior, vae.schema)
    pv.fit(both, x, **FIT)
    return both


def by_row(name: str, kind: str, values: np.ndarray) -> dict[str, float]:
    """Mean and standard error over rows; the values are kept beside the cell."""
    folder = RESULTS / "gaps"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}-{kind}.npy", values.astype(np.float32))
    return {kind: float(values.mean()), f"{kind} se": float(values.std() / len(values) ** 0.5)}


def encoded(name: str) -> dict[str, Any]:
    """The bound of an encoder."""
    x, rows = images()
    vae, figures = with_encoder(name, x), {}
    for part, of in rows.items():
        figures |= by_row(name, part, pv.score(vae, of, "elbo", DRAWS, seed=1).values)
    return figures


def best(family: str) -> dict[str, Any]:
    """The best bound of a family for each row; it depends on the decoder alone."""
    x, rows = images()
    vae, figures, (method, options) = decoder(x), {}, BEST[family]
    for part, of in rows.items():
        found = pv.posterior(vae, of, method, DRAWS, seed=1, **options)
        figures |= by_row(f"best_{family}", part, found.stats["elbo"])
    return figures


def evidence() -> dict[str, Any]:
    """log p(x) by annealing, and by the encoder's draws."""
    x, rows = images()
    vae, figures = decoder(x), {}
    for part, of in rows.items():
        found = pv.log_evidence(vae, of[:ANNEALED], "ais", seed=1, steps=1000)
        bound = pv.log_evidence(vae, of[:ANNEALED], "iwae", 5000, seed=1)
        figures |= by_row("evidence", part, np.maximum(found.log_p, bound.log_p))  # as Cremer et al. do
        figures |= {f"{part} ais over iwae": float((found.log_p - bound.log_p).mean())}
    return figures


def kept(name: str, part: str) -> np.ndarray:
    """Values by row."""
    return np.load(RESULTS / "gaps" / f"{name}-{part}.npy").astype(float)


def difference(one: np.ndarray, two: np.ndarray) -> str:
    """Mean and standard error of a paired difference over rows."""
    rows = min(len(one), len(two))
    over = one[:rows] - two[:rows]
    return f"{over.mean():.2f} ({over.std(ddof=1) / rows**0.5:.2f})"


def main(prefix: str = "") -> None:
    """Run and print what is asked for."""
    settings = {
        "model": {**MODEL, "hidden": list(MODEL["hidden"])},
        "fit": FIT,
        "behaviour": behaviour(hidden=(16, 16)),
    }
    cells = {"evidence": evidence, **{f"best_{family}": partial(best, family) for family in BEST}}
    cells |= {name: partial(encoded, name) for name in ENCODERS}
    rows = []
    for name, run in cells.items():
        if name.startswith(prefix):
            rows.append(
                cell(
                    "gaps", name, {**settings, "of": str(BEST if name.startswith("best") else ENCODERS.get(name))}, run
                )
            )
            print(rows[-1], flush=True)
    show(rows, "Bounds, nats an image")
    if prefix:
        return
    table = []
    for part in ("train", "test"):
        log_p = kept("evidence", part)
        for name in ENCODERS:
            family = kept("best_flow" if name == "flow" else "best_normal", part)
            gaps = {"approximation": difference(log_p, family), "amortization": difference(family, kept(name, part))}
            table.append({"rows": part, "encoder": name, **gaps, "whole": difference(log_p, kept(name, part))})
    show(table, "Gaps, nats an image (standard errors over rows: 100 where the evidence is in it, else 1000)")


if __name__ == "__main__":
    main(*sys.argv[1:2])
