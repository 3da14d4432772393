"""`report`: from a fit to one HTML file that asks the network for nothing."""

import base64
import hashlib
from collections.abc import Callable
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from ppl_vae.criticism.calibration import Calibration
from ppl_vae.criticism.checks import spaced
from ppl_vae.criticism.comparison import Comparison
from ppl_vae.criticism.diagnostics import Diagnosis
from ppl_vae.criticism.predictive import as_frame
from ppl_vae.errors import OptionError, PplVaeError, first_line, number, several, whole
from ppl_vae.files import write_text
from ppl_vae.infer.draws import batch_of
from ppl_vae.infer.history import History
from ppl_vae.use.report import sections as of
from ppl_vae.use.report.charts import signed


def report(
    vae: Any = None,
    data: Any = None,
    path: str | PathLike = "report.html",
    *,
    history: History | None = None,
    calibration: Calibration | None = None,
    comparison: Comparison | pd.DataFrame | None = None,
    diagnosis: Diagnosis | None = None,
    plane: Any = None,
    labels: Any = None,
    anomalous: Any = None,
    options: dict[str, Any] | None = None,
    title: str | None = None,
    contamination: float = 0.05,
    num_draws: int = 64,
    seed: int = 0,
) -> Path:
    """Write a report of a fit: one HTML file, some 5 MB at most, that asks the network for nothing.

    What was fitted, how the fit went, what the model predicts, scores and the most anomalous rows with reasons, diagnostics
    with a verdict, a comparison, and a latent explorer: decoded codes and rows of the two latent dimensions that move most,
    the others at their mean. What does not apply to a model says so in its place. Equal arguments give equal bytes.

    Args:
        vae: a fitted model; None for the report of a comparison alone.
        data: n rows, better not those that it was fitted to; of more than 10,000, or fewer of many columns, so
            many are looked at, evenly spaced.
        path: the file.
        history: of the fit, for its curves; of one that was not read from a file, the report says how many of the rows the
            fit was given.
        calibration: to decide by; without one the lowest share `contamination` is flagged, which promises nothing.
        comparison: a `Comparison`, or any data frame, to show as a table.
        diagnosis: of `diagnose`; None makes the quick checks of 300 rows at most.
        plane: a second model of the same columns, to explore in the place of `vae`, as one of two latent dimensions.
        labels: (n,) of anything, for colours and scores by label; None takes those that a data set has.
        anomalous: (n,) of bool, rows known to be anomalous, which the checks leave out; None: those labelled 1 of a data set
            whose labels are 0 and 1, as ADBench's are.
        options: names and values to tell of the fit, as options.json of `ppl-vae fit` has them.
        title: of the page.
        contamination: share of rows to flag, in (0, 0.5].
        num_draws: S, of each score.
        seed: of the draws.

    Returns: the path.

    Raises: OptionError, DataError.

    Example:
        >>> import tempfile
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(60, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     text = report(PPCA(2).fit(x), x, folder + "/report.html").read_text(encoding="utf-8")
        >>> "Scores</h2>" in text, "://" in text
        (True, False)
    """
    options, sections = dict(options or {}), dict[str, Any]()
    given = {"history": history, "calibration": calibration, "comparison": comparison, "diagnosis": diagnosis}
    _check(vae, data, contamination, num_draws, seed, **given)
    if Path(path).is_dir():
        raise OptionError(f"path: got the folder {path}, expected a file, as {Path(path) / 'report.html'}")
    asked = None
    if vae is not None:
        asked = _asked(vae, data, labels, anomalous, calibration, contamination, num_draws, seed)
        found = of.checked(asked) if diagnosis is None else diagnosis
        sections["fitted"] = _tried(of.fitted, asked, options)
        if history is not None:
            sections["training"] = _tried(of.training, history)
        sections["explorer"] = _tried(of.explored, asked, asked.one if plane is None else plane)
        sections["predictive"] = _tried(of.predictive, asked, found, diagnosis is None)
        sections["scores"] = _tried(of.scored, asked)
        sections["anomalous"] = _tried(of.anomalous, asked)
        sections["diagnosis"] = of.diagnosed(found) | {"of": asked.checked if diagnosis is None else None}
    if comparison is not None:
        sections["comparison"] = of.compared(comparison, {} if asked else options)
    write_text(
        path,
        _page(title or _title(asked, comparison), sections, asked, None if asked is None else of.seen(asked, history)),
    )
    return Path(path)


HEADINGS = {
    "fitted": "What was fitted",
    "training": "Training",
    "explorer": "Latent explorer",
    "predictive": "What the model predicts",
    "scores": "Scores",
    "anomalous": "Most anomalous rows",
    "diagnosis": "Diagnostics",
    "comparison": "Comparison",
}


KINDS: dict[str, tuple[type, ...]] = {
    "history": (History,),
    "calibration": (Calibration,),
    "comparison": (Comparison, pd.DataFrame),
    "diagnosis": (Diagnosis,),
}


def _check(vae: Any, data: Any, contamination: Any, num_draws: Any, seed: Any, **given: Any) -> None:
    if vae is None and given["comparison"] is None:
        raise OptionError("report: got neither a model nor a comparison, expected one of them")
    if (vae is None) != (data is None):
        got = "data without a model" if vae is None else "a model without data"
        raise OptionError(f"report: got {got}, expected both")
    for name, kinds in KINDS.items():
        if given[name] is not None and not isinstance(given[name], kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise OptionError(f"{name}: got a {type(given[name]).__name__}, expected a {expected}")
    if number("contamination", contamination) > 0.5:
        raise OptionError(f"contamination: got {contamination!r}, expected a share in (0, 0.5]")
    whole("num_draws", num_draws)
    whole("seed", seed, None)


def _asked(
    vae: Any, data: Any, labels: Any, anomalous: Any, calibration: Any, contamination: float, num_draws: int, seed: int
) -> of.Asked:
    """The rows as a frame, so many of them as are looked at."""
    if labels is None and (labels := _labels(data)) is not None and anomalous is None and _are_marks(labels):
        anomalous = np.asarray(labels) == 1
    frame = as_frame(data).reset_index(drop=True)
    batch_of(vae, frame, minimum_rows=2)
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != (len(frame),):
            raise OptionError(f"labels: got shape {labels.shape}, expected ({len(frame)},), one a row")
        labels = labels.astype(str)
    if anomalous is not None:
        anomalous = np.asarray(anomalous)
        if anomalous.shape != (len(frame),) or anomalous.dtype != bool:
            raise OptionError(
                f"anomalous: got shape {anomalous.shape} of {anomalous.dtype}, expected ({len(frame)},) of bool, one a row"
            )
    rows = spaced(len(frame), min(of.ROWS, max(500, of.CELLS // frame.shape[1]))).numpy()
    kept = frame.iloc[rows].reset_index(drop=True)
    chosen, odd = (None if part is None else part[rows] for part in (labels, anomalous))
    if odd is not None and (~odd).sum() < 2:
        raise OptionError(
            f"anomalous: got {odd.sum()} of {several(len(odd), 'row')}, expected two or more that are normal"
        )
    return of.Asked(vae, kept, len(frame), rows, chosen, calibration, contamination, num_draws, seed, odd)


def _are_marks(labels: Any) -> bool:
    """Whether labels are 0 and 1, both."""
    found = np.unique(labels)
    return found.dtype.kind in "biuf" and found.tolist() == [0, 1]


def _labels(data: Any) -> Any:
    """Those of a data set, or of an .npz file."""
    if isinstance(data, str | PathLike):
        if Path(data).suffix.lower() != ".npz" or not Path(data).exists():
            return None
        with np.load(data, allow_pickle=False) as archive:
            return archive["y"] if "y" in archive.files else None
    return getattr(data, "y", None) if hasattr(data, "x") and not hasattr(data, "columns") else None


def _tried(make: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """A section, or why it does not apply."""
    try:
        return make(*args)
    except PplVaeError as error:
        return {"absent": first_line(error)}


def _title(asked: of.Asked | None, comparison: Any) -> str:
    if asked is None:
        return "A comparison of models"
    shape = asked.frame.shape
    return f"A variational autoencoder on {several(asked.total, 'row')}, {several(shape[1], 'column')}"


def _page(title: str, sections: dict[str, Any], asked: of.Asked | None, seen: tuple[str, bool] | None) -> str:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["signed"] = signed
    home = files("ppl_vae.use.report")
    template, style, script = (
        home.joinpath(name).read_text(encoding="utf-8") for name in ("report.html", "report.css", "explorer.js")
    )
    return environment.from_string(template).render(
        title=title,
        sections=sections,
        headings=HEADINGS,
        asked=asked,
        seen=seen,
        style=Markup(style),
        script=Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
