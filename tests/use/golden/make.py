"""Saved models that every later version has to read: written once per format, with the scores that they gave.

python tests/use/golden/make.py     # writes the folder of the present format; those of older formats stay as they are
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

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
}


def main(version: int) -> None:
    """Write the models of a format."""
    for name, (data, make) in MODELS[version].items():
        folder = Path(__file__).parent / str(version) / name
        vae = make(data)
        if vae.recipe["kind"] == "build":
            pv.fit(vae, data, epochs=1, progress=False)
        pv.save(vae, folder)
        np.save(folder / "scores.npy", pv.score(vae, data, num_draws=4).values)


if __name__ == "__main__":
    main(int(*sys.argv[1:]) if sys.argv[1:] else max(MODELS))
