"""Cells of a table, each run once: a cell is kept with its settings and the code that it ran, and resumed from there."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ppl_vae as pv

RESULTS = Path(__file__).parent / "results"


def code() -> str:
    """What the library computes, as a digest: a small fit and its scores for two likelihoods, to four digits.

    A figure stands while these numbers do; a change of names, texts or checks leaves them as they are.
    """
    digest = hashlib.sha256()
    x = np.random.RandomState(0).rand(300, 12).astype(np.float32)
    for likelihood, data in (("normal", x), ("bernoulli", (x > 0.5).astype(np.float32))):
        for objective in ("elbo", "analytic_kl"):
            vae = pv.build(data, latent=3, hidden=(16,), likelihood=likelihood)
            pv.fit(vae, data, objective=objective, epochs=3, lr=1e-2, batch_size=50, valid=0.0, progress=False)
            for scoring in ("reconstruction_probability", "elbo"):
                values = pv.score(vae, data, scoring, num_draws=8).values
                digest.update(" ".join(f"{v:.4g}" for v in (values.mean(), values.std())).encode())
    return digest.hexdigest()[:12]


def behaviour(fit: dict[str, Any] | None = None, **options: Any) -> str:
    """What the library computes with these parts, as a digest of a small fit and its bound, to four digits."""
    x = (np.random.RandomState(0).rand(300, 12) > 0.5).astype(np.float32)
    vae = pv.build(x, **{"latent": 3, "hidden": (16,), "likelihood": "bernoulli", **options})
    pv.fit(vae, x, epochs=3, lr=1e-2, batch_size=50, valid=0.0, progress=False, **(fit or {}))
    values = pv.score(vae, x, "iwae", num_draws=8).values
    return hashlib.sha256(f"{values.mean():.4g} {values.std():.4g}".encode()).hexdigest()[:12]


CODE = code()  # as it is when it is imported, whatever is edited while a long table runs


def cell(table: str, name: str, settings: dict[str, Any], run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures of one cell: read if it was run with these settings and this code, else run and kept.

    With BENCH_REUSE=1 in the environment a cell of older code is read too, marked as such.
    """
    path = RESULTS / table / f"{name}.json"
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["settings"] == settings and (kept["code"] == CODE or os.environ.get("BENCH_REUSE")):
            return {"cell": name, **kept["figures"], "code": "current" if kept["code"] == CODE else kept["code"]}
    started = time.perf_counter()
    figures = {k: round(v, 6) if isinstance(v, float) else v for k, v in run().items()}
    figures["seconds"] = round(time.perf_counter() - started, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": settings, "code": CODE, "figures": figures}, indent=1) + "\n")
    return {"cell": name, **figures, "code": "current"}


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print a table in Markdown."""
    import pandas as pd

    print(f"\n{title}\n\n{pd.DataFrame(rows).to_markdown(index=False, floatfmt='.4g')}\n", flush=True)
