"""Cells of a table, each run once: a cell is kept with its settings and the code that it ran, and resumed from there."""

import ast
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGE = Path(__file__).parent.parent / "ppl_vae"
NUMERICAL = ("data", "model", "infer", "criticism/scores.py", "criticism/predictive.py")


def code() -> str:
    """A digest of the code that figures depend on, docstrings and comments left out."""
    folders = [PACKAGE / part for part in NUMERICAL]
    files = sorted(file for folder in folders for file in ([folder] if folder.is_file() else folder.rglob("*.py")))
    return hashlib.sha256("".join(_bare(file) for file in files).encode()).hexdigest()[:12]


def _bare(file: Path) -> str:
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            node.body = body[1:]  # type: ignore[attr-defined]
    return ast.dump(tree)


def cell(table: str, name: str, settings: dict[str, Any], run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures of one cell: read if it was run with these settings and this code, else run and kept.

    With BENCH_REUSE=1 in the environment a cell of older code is read too, marked as such.
    """
    path = RESULTS / table / f"{name}.json"
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["settings"] == settings and (kept["code"] == code() or os.environ.get("BENCH_REUSE")):
            return {"cell": name, **kept["figures"], "code": "current" if kept["code"] == code() else kept["code"]}
    started, ran = time.perf_counter(), code()
    figures = {k: round(v, 6) if isinstance(v, float) else v for k, v in run().items()}
    figures["seconds"] = round(time.perf_counter() - started, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": settings, "code": ran, "figures": figures}, indent=1) + "\n")
    return {"cell": name, **figures, "code": "current"}


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print a table in Markdown."""
    import pandas as pd

    print(f"\n{title}\n\n{pd.DataFrame(rows).to_markdown(index=False, floatfmt='.4g')}\n", flush=True)
