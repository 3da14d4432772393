"""Saved models that every later version has to read: written once per format, with the scores that they gave.

python tests/use/golden/make.py     # writes the folder of the present format; those of older formats stay as they are
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import torch

import ppl_vae as pv

X = np.random.RandomState(0).randn(40, 4).astype("float32") * 2 + 1
BITS, GREY = (X > 1).astype("float32"), 1 / (1 + np.exp(-X))
FRAME = pd.DataFrame(X, columns=list("abcd"))
MIXED = pd.DataFrame(
    {
        "real": X[:, 0],
        "positive": np.exp(X[:, 1]),
        "count": np.floor(np.exp(X[:, 2] / 2)),
        "kind": np.array(["low", "mid", "high"])[np.digitize(X[:, 3], [0, 2])],
        "age": 30 + X[:, 0],
        "site": np.array(["north", "south"])[BITS[:, 1].astype(int)],
        "class": np.array(["yes", "no"])[BITS[:, 2].astype(int)],
    }
).mask(np.add.outer(np.arange(40), np.arange(7) * 5) % 11 == 0)
MIXED["age"] = 30 + X[:, 0]

SMALL = {"latent": 2, "hidden": (3,)}
FLOW = {**SMALL, "transforms": 1, "flow_hidden": (3,)}

MODELS: dict[int, dict[str, tuple[Any, Callable[[Any], Any]]]] = {
    1: {
        **{
            f"normal-{scale}": (X, lambda x, scale=scale: pv.build(x, scale=scale, **SMALL))
            for scale in ("row", "feature", "shared", 0.5)
        },
        "bernoulli": (BITS, lambda x: pv.build(x, likelihood="bernoulli", **SMALL)),
        "continuous": (GREY, lambda x: pv.build(x, likelihood="continuous_bernoulli", **SMALL)),
        "frame": (FRAME, lambda x: pv.build(x, scale="feature", **SMALL)),
        "pca": (X, lambda x: pv.PCA(2).fit(x)),
        "ppca": (X, lambda x: pv.PPCA(2).fit(x)),
    },
    2: {
        "vamp-iaf": (BITS, lambda x: pv.build(x, likelihood="bernoulli", prior="vamp", posterior="iaf", **FLOW)),
        "flow-full_rank": (
            X,
            lambda x: pv.build(x, likelihood="full_normal", prior="flow", posterior="full_rank", **FLOW),
        ),
        "mixed": (
            MIXED,
            lambda x: pv.build(
                x,
                likelihood="infer",
                covariates=["age"],
                group="site",
                label="class",
                prior="hierarchical",
                **SMALL,
            ),
        ),
        "ppca": (X, lambda x: pv.PPCA(2).fit(x)),
    },
    3: {
        "weights": (MIXED, lambda x: pv.build(x, likelihood="infer", covariates=["age"], weights="normal", **SMALL)),
        "ppca": (X, lambda x: pv.PPCA(2).fit(x)),
    },
    4: {
        "bernoulli": (BITS, lambda x: pv.build(x, likelihood="bernoulli", **SMALL)),
        "ppca": (X, lambda x: pv.PPCA(2).fit(x)),
    },
    5: {
        "mixed": (MIXED, lambda x: pv.build(x, likelihood="infer", covariates=["age"], label="class", **SMALL)),
        "laplace": (X, lambda x: pv.last_layer_laplace(pv.build(x, **SMALL), x)),
        "ensemble": (X, lambda x: pv.Ensemble([pv.build(x, seed=j, **SMALL) for j in (0, 1)])),
        "calibration": (X, lambda x: pv.calibrate(pv.build(x, **SMALL), x + 0.1, level=0.1, num_draws=4)),
        "detector": (
            MIXED[["age", "kind"]].ffill().bfill(),
            lambda x: pv.VAEDetector(hidden=(3,), parts=({"latent": 2},), steps=8, epochs=1, random_state=0).fit(x),
        ),
        "own": (FRAME, lambda x: pv.build(x, prior=narrow, likelihood={"b": dist.StudentT, "d": "laplace"}, **SMALL)),
    },
}


def narrow() -> Any:
    """A prior of the user's."""
    return dist.Laplace(torch.zeros(2), 0.5).to_event(1)


OWN: dict[tuple[int, str], dict[str, Any]] = {(5, "own"): {"prior": narrow, "likelihood": {"b": dist.StudentT}}}
"""What is handed in to load a model."""


def answers(thing: Any, data: Any) -> np.ndarray:
    """What is asked of a saved thing, one number a row."""
    if isinstance(thing, pv.Calibration):
        return thing.p_values(data)
    if isinstance(thing, pv.VAEDetector):
        return thing.score_samples(data)
    return pv.score(thing, data, num_draws=4).values


def main(version: int) -> None:
    """Write the models of a format."""
    for name, (data, make) in MODELS[version].items():
        folder = Path(__file__).parent / str(version) / name
        thing = make(data)
        if isinstance(thing, pv.VAE) and thing.recipe["kind"] == "build":
            pv.fit(thing, data, epochs=1, progress=False)
        pv.save(thing, folder)
        np.save(folder / "scores.npy", answers(thing, data))


if __name__ == "__main__":
    main(int(*sys.argv[1:]) if sys.argv[1:] else max(MODELS))
