"""Pictures by name, each a function of a model, rows and a few numbers that returns a figure."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ppl_vae.criticism import plots
from ppl_vae.criticism.diagnostics import diagnose
from ppl_vae.criticism.explanation import explain
from ppl_vae.criticism.pit import pit
from ppl_vae.criticism.scores import score
from ppl_vae.errors import OptionError, choose, whole
from ppl_vae.use.reading import Rows
from ppl_vae.use.report.folder import read_history
from ppl_vae.use.store import load

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".pdf", ".svg", ".jpg")


class Picture(NamedTuple):
    """How one is drawn: `draw(folder of a model, rows, n, seed)`, whether of rows, and what n is where it is not said."""

    draw: Callable[[Any, Any, int, int], "Figure"]
    of_rows: bool
    n: int
    text: str


def draw(kind: str, model: str | PathLike, rows: Rows | None, n: int | None = None, seed: int = 0) -> "Figure":
    """Draw a picture of a saved model.

    Args:
        kind: a name of `PICTURES`.
        model: its folder.
        rows: for those that are of rows.
        n: how many rows, draws, or images along a side; None: as the picture has it.
        seed: of draws.

    Raises: OptionError.
    """
    picture = choose("kind", kind, PICTURES)
    if picture.of_rows and rows is None:
        raise OptionError(f"kind: got {kind!r} without DATA, expected the rows to draw")
    return picture.draw(model, rows, picture.n if n is None else whole("n", n), seed)


def _scores(model: Any, rows: Rows, n: int, seed: int) -> "Figure":
    if rows.anomalous is None:
        raise OptionError("labels: got none, expected those that tell normal rows from anomalous ones")
    found = score(load(model), rows.data, num_draws=n, seed=seed)
    return plots.score_histogram(found, rows.anomalous.astype(int))


def _first(rows: Rows, n: int) -> Any:
    return rows.at(np.arange(min(n, len(rows.numbers)))).data


def _reconstructions(model: Any, rows: Rows, n: int, seed: int) -> "Figure":
    return plots.reconstructions(load(model), _first(rows, n), n)


def _explained(model: Any, rows: Rows, n: int, seed: int) -> "Figure":
    return plots.explained(explain(load(model), _first(rows, n), seed=seed), n)


def _units(model: Any, rows: Rows, n: int, seed: int) -> "Figure":
    return plots.latent_units(diagnose(load(model), rows.data, checks=["kl", "active_units"], num_draws=n, seed=seed))


PICTURES: dict[str, Picture] = {
    "manifold": Picture(
        lambda model, rows, n, seed: plots.manifold_grid(load(model), n),
        False, 20, "the plane of two latent dimensions as n x n images",
    ),
    "samples": Picture(
        lambda model, rows, n, seed: plots.samples(load(model), n, seed),
        False, 64, "E[x|z] of n draws of z from the prior",
    ),
    "reconstructions": Picture(_reconstructions, True, 10, "the first n rows, and E[x|z]"),
    "latent": Picture(
        lambda model, rows, n, seed: plots.latent_scatter(load(model), rows.data, rows.labels),
        True, 0, "posterior means of two latent dimensions, coloured by --labels",
    ),
    "scores": Picture(
        _scores, True, 64, "scores by n draws of normal and anomalous rows, by --labels, and the ROC curve"
    ),
    "explained": Picture(_explained, True, 5, "which cells make the first n rows anomalous"),
    "units": Picture(_units, True, 64, "KL term and activity of each latent dimension, by n draws"),
    "pit": Picture(
        lambda model, rows, n, seed: plots.uniformity(pit(load(model), rows.data, n, seed)),
        True, 99, "where cells lie among n draws of the marginal predictive",
    ),
    "history": Picture(
        lambda model, rows, n, seed: plots.training_curve(read_history(Path(model) / "history.csv")),
        False, 0, "bound and KL term by epoch, of a folder that fit wrote",
    ),
}  # fmt: skip
