"""The sections of the report, each from the model and its rows to what the page shows; figures come from `criticism`."""

import math
import platform
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from ppl_vae.criticism.calibration import Decisions
from ppl_vae.criticism.checks import NAT, Finding, spaced
from ppl_vae.criticism.comparison import Comparison
from ppl_vae.criticism.diagnostics import Diagnosis, diagnose
from ppl_vae.criticism.explanation import explain
from ppl_vae.criticism.imputation import own
from ppl_vae.criticism.plots import window
from ppl_vae.criticism.posterior_check import posterior_predictive
from ppl_vae.criticism.predictive import as_frame, generate, reconstruct
from ppl_vae.criticism.scores import SCORES, Scores, score
from ppl_vae.data.tables import read
from ppl_vae.errors import OptionError, PplVaeError, first_line, several
from ppl_vae.infer.draws import base, batch_of, known_again
from ppl_vae.infer.history import History
from ppl_vae.use.report import charts
from ppl_vae.use.report.charts import Interval, Span, cut, short
from ppl_vae.use.report.explorer import CLASSES, explorer, known_names, own_names, own_values
from ppl_vae.use.report.graph import code, graph, sites
from ppl_vae.use.report.pictures import cell, coloured, image_shape, limits, pixels, png, strip
from ppl_vae.versions import versions

ROWS, CELLS = 10_000, 1_000_000
"""Rows that are scored, at most, and their cells, but of 500 rows in any case."""
CHECKED, CHECKED_CELLS, DATASETS = 300, 40_000, 100
"""Rows that the checks look at, and their cells, but of 50 rows in any case; data sets that are drawn."""
CHECKS = ("active_units", "collapse", "kl", "information", "rate_distortion", "evidence", "predictive")
"""Those that take seconds."""
SHOWN, EXPLAINED = 10, 700_000
"""Rows that are shown as the most anomalous; those of them that are explained, times their cells squared: a row of MNIST."""
STATISTICS, PICTURES, LEVELS = 12, 9, 8
"""Lines, columns and levels of the predictive checks."""
LINES = 100
"""Of a table of comparison."""


@dataclass(frozen=True)
class Asked:
    """What the report is about.

    Attributes:
        vae: a fitted model.
        frame: n rows, in own units.
        total: of how many rows these are.
        rows: (n,) their numbers among these.
        labels: (n,) text, or None.
        anomalous: (n,) of bool, rows that are known to be anomalous, or None.
        calibration: a `Calibration`, or None.
        contamination, num_draws, seed: as in `report`.
    """

    vae: Any
    frame: Any
    total: int
    rows: np.ndarray
    labels: np.ndarray | None
    calibration: Any
    contamination: float
    num_draws: int
    seed: int
    anomalous: np.ndarray | None = None

    @cached_property
    def decided(self) -> Decisions | None:
        """What the calibration makes of the rows."""
        return None if self.calibration is None else self.calibration.decide(self.frame)

    @cached_property
    def scores(self) -> Scores:
        """Of the rows, by the calibration's scoring if there is one."""
        if self.decided is None:
            return score(self.vae, self.frame, num_draws=self.num_draws, seed=self.seed)
        scoring = self.calibration.folds[0].options["scoring"]
        return Scores(self.decided.scores, self.decided.mcse, scoring[0] if isinstance(scoring, tuple) else scoring)

    @cached_property
    def threshold(self) -> float | None:
        """Rows that score below are flagged; None where folds have no common one."""
        if self.calibration is None:
            return self.scores.threshold(self.contamination)
        return self.calibration.threshold if len(self.calibration.folds) == 1 else None

    @cached_property
    def flagged(self) -> np.ndarray:
        """(n,) of bool."""
        return self.scores.values < self.threshold if self.decided is None else self.decided.anomalous

    @cached_property
    def few(self) -> Any:
        """Rows for the checks, evenly spaced, without the anomalous ones: a model is not meant to make those."""
        most = min(CHECKED, max(50, CHECKED_CELLS // self.frame.shape[1]))
        places = np.arange(len(self.frame)) if self.anomalous is None else np.flatnonzero(~self.anomalous)
        return self.frame.iloc[places[spaced(len(places), most).numpy()]].reset_index(drop=True)

    @property
    def checked(self) -> str:
        """Which rows the checks look at."""
        if self.anomalous is None:
            return several(len(self.few), "row") + (
                ", whatever their label" if self.labels is not None and len(set(self.labels)) > 1 else ""
            )
        return f"{several(len(self.few), 'row')} that are labelled normal; anomalous ones are left out"

    @property
    def one(self) -> Any:
        """The model, or the first member of an ensemble: what runs the programs."""
        return self.vae.members[0] if hasattr(self.vae, "members") else self.vae

    @property
    def unit(self) -> str:
        """Of the scores."""
        known = SCORES.get(self.scores.scoring)
        return "" if known is None else ", nats a row" if known.nats else ", squared encoded units"

    @property
    def scoring(self) -> str:
        """The score's name, as words."""
        return self.scores.scoring.replace("_", " ")


# ---- what was fitted


FLATTERS = "Scores, checks and predictions flatter a model on rows that it was fitted to"


def seen(asked: Asked, history: History | None) -> tuple[str, bool]:
    """How many of the rows the fit was given, as far as that is known, in a sentence; and whether they are most of them."""
    if history is None or history.rows is None:
        return f"{FLATTERS}; whether these are such rows, nothing here tells.", False
    met = int(torch.isin(known_again(batch_of(asked.one, asked.frame)), history.rows).sum())
    rows, given = several(len(asked.frame), "row"), several(len(history.rows), "row")
    if not met:
        return f"None of these {rows} is one of the {given} that the fit was given.", False
    are = "is" if met == 1 else "are"
    words = f"{met} of these {rows} {are} among the {given} that the fit was given. {FLATTERS}."
    return words, 2 * met > len(asked.frame)


def fitted(asked: Asked, options: dict[str, Any]) -> dict[str, Any]:
    """The graph of the two programs, and how they were made and fitted."""
    vae = asked.one
    batch = batch_of(vae, asked.frame)
    found, z = sites(vae, batch), code(vae, batch)
    latent, prior = z["value"].shape[-1], next(site.family for site in found if site.name == "z")
    recipe = {**(getattr(vae, "recipe", None) or {})}
    own_parts = recipe.pop("own", {})
    parameters = sum(p.numel() for p in vae.parameters() if p.requires_grad)
    told = [
        ("Prior", called(recipe.pop("prior", None), own_parts.get("prior"), prior)),
        (
            "Likelihood",
            called(recipe.pop("likelihood", None), own_parts.get("likelihood"), kinds(vae, found[-1].family)),
        ),
        ("Posterior", called(recipe.pop("posterior", None), own_parts.get("posterior"), type(base(z["fn"])).__name__)),
        ("Latent dimensions", str(latent)),
        ("Columns", f"{batch.x.shape[1]}" + beside(vae)),
        ("Parameters", f"{parameters:,} trained"),
    ]
    if hasattr(asked.vae, "members"):
        told.insert(
            0,
            (
                "Ensemble",
                f"of {several(len(asked.vae.members), 'model')} that score together; the rest is of the first",
            ),
        )
    kind = recipe.pop("kind", None)
    rest = {
        name: value for name, value in recipe.items() if name != "latent" and value not in (None, (), [], False, {})
    }
    if kind in ("pca", "ppca", "laplace"):
        told.insert(0, ("Model", {"pca": "PCA", "ppca": "probabilistic PCA", "laplace": "last-layer Laplace"}[kind]))
    told.append(("Built with", settings(rest)))
    told += [
        (NAMED.get(name, name.replace("_", " ").capitalize()), settings(value))
        for name, value in options.items()
        if value not in ({}, None) and name != "data"
    ]
    source = f" of {options['data']}" if options.get("data") else ""
    told.append(("This report", f"of {several(asked.total, 'row')}{source}"))
    versions_now = {**versions(), "Python": platform.python_version()}
    told.append(("Made with", f"seed {asked.seed}, {several(asked.num_draws, 'draw')} a row; {settings(versions_now)}"))
    return {
        "svg": graph(found, latent, batch.x.shape[1]),
        "terms": [(name, text) for name, text in told if text],
    }


NAMED = {
    "labels": "Labels in",
    "normal": "Labels of normal rows",
    "fitted_to": "Fitted to",
    "fit": "Fitted with",
    "num_draws": "Draws for bound and k-hat",
}
"""What some options are called on the page."""


def called(name: Any, own_part: Any, family: str) -> str:
    """A part by its name, or by what the user's own is called, and by the family that it turned out to be."""
    if isinstance(own_part, dict):
        own_part = ", ".join(f"{column}: {of}" for column, of in own_part.items())
    words = own_part or (settings(name) if isinstance(name, dict) else name)
    return f"{words} ({family})" if words else family


def kinds(vae: Any, family: str) -> str:
    """The likelihoods of columns with how many there are of each, or of all."""
    names = vae.schema.likelihoods if vae.schema is not None else None
    return ", ".join(f"{n} {name}" for name, n in Counter(names).most_common()) if names else family


def beside(vae: Any) -> str:
    """Columns that the model is given, in words."""
    columns = () if vae.schema is None else vae.schema.beside
    return f", and beside them {', '.join(columns)}" if columns else ""


def settings(values: Any) -> str:
    """Names and values in one line."""
    if isinstance(values, tuple | list):
        return " ".join(map(settings, values))
    if not isinstance(values, dict):
        return short(values) if isinstance(values, float) else str(values)
    return ", ".join(
        f"{name.replace('_', ' ')} {settings(value)}" for name, value in values.items() if value is not None
    )


# ---- how the fit went


def training(history: History) -> dict[str, Any]:
    """Curves by epoch, and where they ended."""
    if not len(history):
        raise OptionError("the history has no epochs")
    epochs = history["epoch"].tolist()

    def curve(*columns: tuple[str, str]) -> dict[str, Any]:
        known = {name: history[c] for c, name in columns if c in history}
        return {name: (epochs, values.tolist()) for name, values in known.items() if np.isfinite(values).any()}

    bounds = curve(("bound", "training"), ("valid_bound", "validation")) or curve(("objective", "objective"))
    figures = [(charts.lines(bounds, "epoch", "bound (nats a row)"), list(bounds))] if bounds else []
    terms = curve(("kl", "KL"))
    if terms:
        figures.append((charts.lines(terms, "epoch", "KL (nats a row)"), list(terms)))
    seconds = f" in {history['seconds'][-1]:.1f} s" if "seconds" in history else ""
    words = f"{several(len(history), 'epoch')}{seconds}; at the end the {history.latest()} nats a row"
    if "valid_bound" in history and math.isfinite(last := history["valid_bound"][-1]):
        words += f", {last:.4f} on the rows held out"
        gap = history["bound"][-1] - last
        words += f". The training rows are {short(gap)} nats better than those held out." if gap > 0 else "."
    else:
        words += "; no rows were held out, so that nothing here tells of overfitting."
    return {"figures": figures, "words": words}


# ---- what the model predicts


def predictive(asked: Asked, diagnosis: Diagnosis, own: bool = True) -> dict[str, Any]:
    """Data sets that the model draws beside the data, and images beside their reconstructions.

    Args:
        own: False: the diagnosis was handed in, of rows that are not known.
    """
    image, found = image_shape(asked.one.schema), diagnosis.findings.get("predictive")
    parts: dict[str, Any] = {"images": [], "intervals": None, "columns": [], "words": "", "more": 0}
    if image:
        parts["images"] = images(asked, image)
    try:
        table = (
            found.detail["table"]
            if found and "table" in found.detail
            else posterior_predictive(asked.one, asked.few, DATASETS, asked.seed, new=True)
        )
    except PplVaeError as error:
        return parts | {"words": f"Data sets were not drawn: {first_line(error)}"}
    held = table.dropna()
    half = ((held["high"] - held["low"]) / 2).clip(lower=1e-9 * held["data"].abs().clip(lower=1e-9))
    away = (held["data"] - (held["high"] + held["low"]) / 2) / half
    order = away.abs().sort_values(ascending=False, kind="stable").index
    beyond = (held["data"] < held["low"]) | (held["data"] > held["high"])  # rounding may put `away` above 1 at an end
    outside = int(beyond.sum())
    parts["words"] = (
        f"Of {asked.checked if own else 'the rows of the diagnosis that was handed in'}: {outside} of "
        f"{several(len(held), 'statistic')} of columns {'lies' if outside == 1 else 'lie'} outside what 90 % of drawn data "
        "sets have; of a right model a tenth would, on average."
    )
    if image:  # pixels by their numbers tell nothing
        return parts
    lines = [
        Interval(f"{column}, {statistic}", -1, 1, float(away[column, statistic]), bool(beyond[column, statistic]))
        for column, statistic in order[:STATISTICS]
    ]
    if lines:
        around = "the data, in half widths of the model's 90 % interval"
        parts["intervals"] = charts.intervals(lines, around, around=Span(-4, 4))
        parts["more"] = max(0, len(held) - STATISTICS)
    parts["columns"] = marginals(asked, list(dict.fromkeys(column for column, _ in order))[:PICTURES])
    return parts


def images(asked: Asked, image: tuple[int, int, int]) -> list[dict[str, str]]:
    """Rows, their reconstructions, and rows that are drawn, as pictures."""
    few = asked.few.iloc[:SHOWN].reset_index(drop=True)
    values, again = own_values(asked.one, few), read(reconstruct(asked.one, few)).values
    ends = limits(values)
    both = np.concatenate([pixels(values, image, ends), pixels(again, image, ends)])
    found = [{"src": png(strip(both, len(values))), "caption": "Rows, and below each its reconstruction E[x|z]."}]
    try:
        drawn = generate(asked.one, 20, asked.seed, like_given(asked.one, few.iloc[np.arange(20) % len(few)])).x
    except PplVaeError:  # an improper prior
        return found
    shown = strip(pixels(own_values(asked.one, as_frame(drawn)), image, ends), SHOWN)
    return [*found, {"src": png(shown), "caption": "Rows drawn from the model: z from the prior, x from p(x|z)."}]


def like_given(vae: Any, rows: Any) -> Any:
    """The columns that the model is given, of these rows; None if there are none."""
    names = [] if vae.schema is None else [name for name in vae.schema.beside if name in rows]
    return rows[names].reset_index(drop=True) if names else None


def marginals(asked: Asked, columns: list[str]) -> list[dict[str, Any]]:
    """A chart for each of these columns: the data filled, rows that the model draws outlined."""
    drawn = as_frame(generate(asked.one, len(asked.few), asked.seed, like_given(asked.one, asked.few)).x)
    names = dict(zip(known_names(asked.one, asked.few), own_names(asked.one, asked.few)))
    found = []
    for name in columns:
        data = asked.few[names.get(name, name)].dropna()
        model = (drawn[name] if name in drawn else drawn.iloc[:, list(names).index(name)]).dropna()
        found.append({"name": cut(name, 60), "svg": marginal(data, model)})
    return found


def marginal(data: Any, model: Any) -> Markup:
    """One column of the data and of drawn rows."""
    numbers = data.dtype.kind in "iuf" and model.dtype.kind in "iuf"
    if numbers and max(data.nunique(), model.nunique()) > 2:
        values = [data.to_numpy(float), model.to_numpy(float)]
        ends = np.quantile(np.concatenate(values), (0.005, 0.995))
        whole = data.dtype.kind in "iu" or np.array_equal(np.round(values[0]), values[0])
        low, high = (
            (ends[0] - 0.5, ends[1] + 0.5) if whole else (ends[0], ends[1] if ends[1] > ends[0] else ends[0] + 1.0)
        )
        bins = max(1, math.ceil((high - low) / max(1.0, math.ceil((high - low) / 24)))) if whole else 24
        return charts.histogram({"data": values[0], "model": values[1]}, np.linspace(low, high, bins + 1), "")
    parts = [column.map(str).value_counts(normalize=True) for column in (data, model)]
    levels = parts[0].index.union(parts[1].index, sort=False)
    levels = sorted(levels, key=lambda level: -parts[0].get(level, 0.0))[:LEVELS]
    groups = {kind: [float(part.get(level, 0.0)) for level in levels] for kind, part in zip(("data", "model"), parts)}
    return charts.shares(groups, levels, "share of rows")


# ---- scores and decisions


def scored(asked: Asked) -> dict[str, Any]:
    """The distribution of scores, the threshold, and what is promised of it."""
    values, threshold = asked.scores.values, asked.threshold
    known = np.isfinite(values)
    if not known.any():
        raise OptionError("no row has a finite score: the model holds all of them for impossible")
    low, high = window(
        values, np.zeros(len(values), bool), threshold if threshold is not None and math.isfinite(threshold) else None
    )
    edges = np.linspace(low, high, 41)
    svg = charts.histogram({"scores": values}, edges, f"{asked.scoring}{asked.unit}", threshold)
    flagged = asked.flagged.sum()
    words = [f"{flagged} of {several(len(values), 'row')} {'is' if flagged == 1 else 'are'} flagged as anomalous"]
    if threshold is not None:
        words[0] += f": a score below {short(threshold)}"
        if not np.array_equal(asked.flagged, values < threshold):  # a pattern of holes has a threshold of its own
            words[0] += ", of rows with the cells that most calibration rows have; others have limits of their own"
    words[0] += "."
    if asked.anomalous is not None:
        kinds = ((asked.anomalous, "labelled anomalous"), (~asked.anomalous, "labelled normal"))
        shares = [f"{(asked.flagged & kind).sum()} of the {kind.sum()} {name}" for kind, name in kinds]
        words.append(f"Flagged are {shares[0]} and {shares[1]}.")
    words += promised(asked)
    if not known.all():
        words.append(f"A score of minus infinity: {several((~known).sum(), 'row')}.")
    if (clipped := int(((values < low) | (values > high)).sum())) > 0:
        words.append(f"The outermost bars hold {several(clipped, 'score')} beyond.")
    return {
        "svg": svg,
        "words": words,
        "by_label": by_label(asked),
        "text": SCORES[asked.scores.scoring].text if asked.scores.scoring in SCORES else "",
    }


def promised(asked: Asked) -> list[str]:
    """What the threshold is worth, in sentences."""
    given, decided = asked.calibration, asked.decided
    if decided is None:
        return [
            f"The threshold is the {asked.contamination:.3g} quantile of these same rows: it flags that share whether "
            "they are anomalous or not. No error rate is promised; a calibration on normal rows (pv.calibrate) gives one."
        ]
    delta = f", delta {given.delta:g}" if given.rule in ("conditional", "simultaneous") else ""
    words = [
        f"Calibrated on {several(given.rows, 'row')} known to be normal, rule {given.rule!r}, level {given.level:g}{delta}.",
        f"Promised, if normal rows to come are like those: {given.guarantee}.",
    ]
    if (other := int((decided.against == "hidden").sum())) > 0:
        words.append(
            f"Of {several(other, 'row')} judged against rows whose other cells were hidden, it is promised if what is "
            "missing does not depend on the values."
        )
    if (simulated := int((decided.against == "simulated").sum())) > 0:
        words.append(f"Of {several(simulated, 'row')} judged against simulated ones, nothing is promised.")
    if decided.unsure.any():
        words.append(f"{several(decided.unsure.sum(), 'decision')} may turn with other Monte Carlo draws.")
    return words


def by_label(asked: Asked) -> Markup | None:
    """Scores of each kind of row: where the middle half and the middle nine tenths lie."""
    if asked.labels is None:
        return None
    lines, finite = [], np.isfinite(asked.scores.values)
    kinds, counts = np.unique(asked.labels, return_counts=True)
    for kind in kinds[np.argsort(-counts, kind="stable")][: 2 * CLASSES]:
        values = asked.scores.values[(asked.labels == kind) & finite]
        if len(values):
            low, first, middle, last, high = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()
            lines.append(Interval(f"{cell(str(kind))} ({len(values)})", low, high, middle, False, (first, last)))
    lines.sort(key=lambda one: one.value)
    mark = asked.threshold if asked.threshold is not None and math.isfinite(asked.threshold) else None
    return charts.intervals(lines, f"score by label{asked.unit}", mark) if lines else None


# ---- the most anomalous rows


def anomalous(asked: Asked) -> dict[str, Any]:
    """Rows of lowest score with the columns whose repair gains most."""
    order = np.argsort(asked.scores.values, kind="stable")[:SHOWN]
    width, image = len(own_names(asked.vae, asked.frame)), image_shape(asked.vae.schema)
    explained = order[: EXPLAINED // width**2]
    rows: list[dict[str, Any]] = [
        {
            "row": int(asked.rows[row]),
            "label": None if asked.labels is None else cell(asked.labels[row]),
            "score": short(float(asked.scores.values[row])),
            "flagged": bool(asked.flagged[row]),
            "p": None if asked.decided is None else short(float(asked.decided.p_values[row])),
            "reasons": [],
            "src": None,
        }
        for row in order
    ]
    words = ""
    found = None
    try:
        if len(explained):
            found = explain(asked.vae, asked.frame.iloc[explained].reset_index(drop=True), asked.num_draws, asked.seed)
    except PplVaeError as error:
        words = f"Reasons are not shown: {first_line(error)}"
    if not words and len(explained) < len(order):
        words = f"Of {width} cells each, {len(explained)} of these rows are explained."
    if image:
        values = own_values(asked.vae, asked.frame)
        shown = pixels(values[order], image, limits(values))
    for place, row in enumerate(rows):
        if found is not None and place < len(explained):
            row["reasons"] = reasons(asked, found, place)
        if image:
            over = shown[place]
            if found is not None and place < len(explained):
                gain = np.maximum(np.nan_to_num(found.gain[place], posinf=found.gain.max()), 0.0)
                layer = np.moveaxis(gain.reshape(image[2], image[0], image[1]), 0, -1).max(-1)
                step = [math.ceil(side / size) for side, size in zip(layer.shape, over.shape)]
                over = coloured(over, layer[:: step[0], :: step[1]] / max(gain.max(), 1e-12) * 0.85)
            row["src"] = png(over)
    return {
        "rows": rows,
        "words": words,
        "image": image is not None,
        "has_p": asked.decided is not None,
        "has_label": asked.labels is not None,
    }


def reasons(asked: Asked, found: Any, place: int) -> list[dict[str, str]]:
    """The columns to blame, what stands in them, and what the others ask for."""
    names, columns = list(found.names), own_names(asked.vae, found.data)
    image, told = image_shape(asked.vae.schema), []
    for name, gain in found.columns(place):
        if gain < 0.1:
            continue
        j = names.index(name)
        instead = found.instead[place, j]
        value = instead if asked.vae.schema is None else own(asked.vae.schema, j, np.array([instead]))[0]
        if image:
            name = f"pixel {j // image[1] % image[0]}, {j % image[1]}"
        told.append(
            {
                "name": cut(name, 60),
                "value": cell(found.data[columns[j]].iloc[place]),
                "instead": cell(value),
                "gain": short(gain),
            }
        )
    return told


# ---- diagnostics


def surely(figure: tuple[float, float], limit: float) -> bool:
    """Whether a figure is above a limit by more than its Monte Carlo error."""
    return figure[0] > limit + 3 * figure[1]


def unlike_prior(f: dict[str, tuple[float, float]]) -> bool | None:
    """Whether q(z) is more than a nat from p(z); None where it is not, and may still be more than `NAT`."""
    low, high = (f.get(f"KL(q(z) || p(z)), at {end}") for end in ("least", "most"))
    if low is None or high is None:
        return None
    return surely(low, 1.0) or (None if high[0] > NAT else False)


DOUBTS: dict[str, Any] = {
    "collapse": lambda f: f["share of idle dimensions"][0] > 0,
    "information": unlike_prior,
    "evidence": lambda f: f["share of bad k-hat"][0] > 0.05,
    "gaps": lambda f: max(v for name, (v, _) in f.items() if name != "rows") > 1.0,
    "calibration": lambda f: f["quantities not calibrated"][0] > 0,
    "predictive": lambda f: (
        (share := f["share outside the 90 % interval"][0]) > 0.25 and share * f["statistics"][0] > 1.5
    ),
    "pit": lambda f: f["columns not as predicted"][0] > 0,
}
"""When figures of a check ask for a second look, None where they cannot tell; the other checks tell, and judge nothing.

Idle dimensions count once, as "collapse"; one statistic of few lies outside too often to say anything.
"""


def checked(asked: Asked) -> Diagnosis:
    """The quick checks, each of those that do not apply with its reason."""
    options = {"num_draws": 1000, "seed": asked.seed}
    try:
        return diagnose(asked.one, asked.few, checks=CHECKS, **options)  # which share their draws
    except PplVaeError:
        findings: dict[str, Finding] = {}
    for name in CHECKS:
        try:
            findings |= diagnose(asked.one, asked.few, checks=name, **options).findings
        except PplVaeError as error:
            findings[name] = Finding({}, f"not checked: {first_line(error)}", {})
    return Diagnosis(findings, (len(asked.few), len(asked.few)), 1000)


def diagnosed(diagnosis: Diagnosis) -> dict[str, Any]:
    """Each check with its verdict, and one verdict on all."""
    lines: list[dict[str, Any]] = []
    for name, found in diagnosis.findings.items():
        if (
            not found.figures and lines and lines[-1]["verdict"] == found.verdict
        ):  # one reason may keep many from being made
            lines[-1]["name"] += f", {name.replace('_', ' ')}"
            continue
        doubtful = DOUBTS[name](found.figures) if found.figures and name in DOUBTS else None
        kind = {True: "doubt", False: "fine", None: "told"}[doubtful]
        figures = [
            (figure, short(value), "" if math.isnan(e) or e == 0 else short(e))
            for figure, (value, e) in found.figures.items()
        ]
        lines.append({"name": name.replace("_", " "), "kind": kind, "verdict": found.verdict, "figures": figures})
    doubts = [one["name"] for one in lines if one["kind"] == "doubt"]
    judged = sum(one["kind"] != "told" for one in lines)
    verdict = "No check applies to this model."
    if judged:
        verdict = f"None of {several(judged, 'check')} speaks against this fit."
    if doubts:
        asks = "asks" if len(doubts) == 1 else "ask"
        verdict = f"{len(doubts)} of {several(judged, 'check')} {asks} for a second look: {', '.join(doubts)}."
    return {"lines": lines, "verdict": verdict, "rows": diagnosis.rows, "num_draws": diagnosis.num_draws}


# ---- the comparison


MEANT = {
    "evidence": "mean log p(x) of the test rows, nats a row",
    "se": "its standard error over rows",
    "sd_seeds": "its standard deviation over seeds",
    "mcse": "its Monte Carlo error",
    "difference": "to the candidate of highest evidence, on the same rows and seeds",
    "doubtful": "share of rows whose evidence should not be trusted",
    "bound": "mean ELBO",
    "gap": "evidence less bound",
    "bad_k": "share of rows whose weights under the posterior should not be trusted",
    "active": "latent dimensions that move with x",
    "gradients": "rows times draws of the fit",
}
"""Columns of a `Comparison`'s table, in words."""


def compared(comparison: Any, options: dict[str, Any]) -> dict[str, Any]:
    """A table as it is, with a picture of differences where it has some."""
    words = list(comparison.warnings) if isinstance(comparison, Comparison) else []
    if isinstance(comparison, Comparison):
        failed = comparison.cells[comparison.cells["error"].notna()]
        words += [f"{c.candidate}, seed {c.seed} failed: {c.error}" for c in failed.itertuples()]
        options = {**comparison.settings, **options}
    table = comparison.table.reset_index() if isinstance(comparison, Comparison) else comparison
    table = table.dropna(axis=1, how="all")  # of one seed nothing has a spread over seeds
    shown = table.iloc[:LINES]
    svg = None
    if {"difference", "difference_se"} <= set(table):
        lines = [
            Interval(str(name), d - se, d + se, d)
            for name, d, se in zip(shown.iloc[:, 0], shown["difference"], shown["difference_se"].fillna(0.0))
            if math.isfinite(d)
        ]
        svg = charts.intervals(lines, "difference to the best, ± se (nats a row)", 0.0) if lines else None
    return {
        "head": [(str(name).replace("_", " "), table[name].dtype.kind not in "iufb") for name in table],
        "lines": [[cell(value) for value in line] for line in shown.itertuples(index=False)],
        "more": len(table) - len(shown),
        "svg": svg,
        "words": words,
        "legend": "; ".join(f"{n.replace('_', ' ')}: {of}" for n, of in MEANT.items() if n in table) if svg else "",
        "terms": [
            (NAMED.get(n, n.replace("_", " ").capitalize()), settings(of))
            for n, of in options.items()
            if of is not None
        ],
    }


# ---- the latent space


def explored(asked: Asked, vae: Any) -> dict[str, Any]:
    """The explorer of a model, of evenly spaced rows and the most anomalous ones."""
    order = np.argsort(asked.scores.values, kind="stable")[:SHOWN]
    others = [row for row in spaced(len(asked.frame), 390).tolist() if row not in set(order.tolist())]
    places = np.array([*order.tolist(), *others])
    if asked.labels is not None and len(np.unique(asked.labels)) <= CLASSES:
        names, kinds = np.unique(asked.labels, return_inverse=True)
        told = [f"label {cell(str(name))}" for name in names]
    else:
        kinds, told = asked.flagged.astype(int), ["not flagged", "flagged"]
    found = explorer(vae, asked.frame, places, asked.scores.values, kinds.reshape(-1), told)
    return {**found, "own": vae is asked.one}
