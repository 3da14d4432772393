"""Pictures of a fit, of what a model predicts, of its latent space and of its scores. Each function returns a figure.

Figures are made without pyplot, so that no backend is chosen and no global state kept: `.savefig(path)` writes one,
`%matplotlib inline` shows one at the end of a notebook's cell.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from ppl_vae.criticism.explanation import Explanation
from ppl_vae.criticism.imputation import own
from ppl_vae.criticism.latent import ACTIVE
from ppl_vae.criticism.predictive import decode, encode, generate, manifold, reconstruct
from ppl_vae.criticism.scores import SCORES, Scores
from ppl_vae.data.tables import FRAMES, like, read
from ppl_vae.errors import OptionError, whole
from ppl_vae.infer.draws import batch_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#666666"  # Okabe & Ito (2008): told apart by colour-blind eyes
LABEL_COLOURS = (  # Petroff (2021), arXiv:2107.02270: made for colour-vision deficiency
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
LABEL_MARKERS = ("o", "^")
MAX_LABELS = len(LABEL_COLOURS) * len(LABEL_MARKERS)
NAMED_COLUMNS = 16  # more columns than this are numbered, since their names would overlap
KOLMOGOROV = (
    1.628  # the largest distance of n uniform numbers' shares below u from u is below this / sqrt n 99 times of 100
)
BARS = 10  # columns of an explained row
GAP = 0.06  # between the images of a grid, in widths of one


# ---- the fit


def training_curve(history: Any, axes: "Axes | None" = None) -> "Figure":
    """Bound and validation bound by epoch, in nats a row, with the KL term on an axis of its own.

    Args:
        history: a `History` of at least one epoch. What is not finite in all epochs is left out.
        axes: where to draw; None makes a figure.

    Returns: the figure; `best_epoch`, where there is one, is a dotted line.

    Raises: OptionError: no epochs.

    Example:
        >>> from ppl_vae.infer.history import History
        >>> history = History()
        >>> history.append({"epoch": 1, "bound": -5.0, "kl": 1.0, "valid_bound": -6.0})
        >>> training_curve(history).axes[0].get_ylabel()
        'bound (nats a row)'
    """
    from matplotlib.ticker import MaxNLocator

    if not len(history):
        raise OptionError(f"history: got {history!r}, expected at least one epoch")
    figure, axes = _canvas(axes, (6.0, 4.0))
    other = axes.twinx()
    drawn = _curve(axes, history, "bound", "training", BLUE)
    drawn += _curve(axes, history, "valid_bound", "validation", VERMILLION)
    drawn += _curve(other, history, "kl", "KL (right axis)", GREY, linewidth=1, linestyle="--")
    if history.best_epoch is not None:
        label = f"best epoch ({history.best_epoch})"
        drawn.append(axes.axvline(history.best_epoch, color="black", linewidth=1, linestyle=":", label=label))
    axes.set(xlabel="epoch", ylabel="bound (nats a row)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    other.set_ylabel("KL (nats a row)", color=GREY)
    other.tick_params(axis="y", colors=GREY)
    for side in (axes, other):
        side.spines["top"].set_visible(False)
    _legend_above(axes, handles=drawn)
    return figure


def _curve(axes: "Axes", history: Any, column: str, label: str, color: str, **style: Any) -> list[Any]:
    """One column as a line, if there is anything to draw."""
    values = np.asarray(history[column], float) if column in history.epochs[0] else np.array([np.nan])
    values = np.where(np.isfinite(values), values, np.nan)
    if np.isnan(values).all():
        return []
    marker = "o" if len(values) == 1 else None
    return axes.plot(history["epoch"], values, color=color, label=label, marker=marker, **style)


# ---- what the model predicts


def reconstructions(vae: Any, data: Any, n: int = 10) -> "Figure":
    """The first n rows and E[x|z] at their posterior means: images over images, or for tables lines over the columns.

    Args:
        vae: a model; its rows are images where its schema's shape is (height, width) or (colours, height, width).
        data: at least one row; all of them are drawn where there are fewer than n.
        n: how many.

    Returns: the figure. Images share the grey scale of the originals; the columns of a table are in encoded units, so
        that they can share an axis.

    Raises: OptionError, DataError.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> len(reconstructions(PPCA(2).fit(x), x, n=3).axes)
        3
    """
    table = read(data)
    rows = like(table.values[: whole("n", n)], table.kind, table.names, table.shape)
    originals, decoded = _own(vae, rows), _values(reconstruct(vae, rows))
    if _is_image(vae):
        return _image_pairs(vae, originals, decoded)
    return _line_pairs(vae, _encoded(vae, originals), _encoded(vae, decoded))


def samples(vae: Any, n: int = 64, seed: int = 0, axes: "Axes | None" = None) -> "Figure":
    """E[x|z] of n draws of z from the prior: a grid of images, or a line over the columns for each row of a table.

    Args:
        vae: a model with a proper prior.
        n: how many.
        seed: of the draws, as in `generate`.
        axes: where to draw; None makes a figure.

    Returns: the figure.

    Raises: OptionError.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> len(samples(PPCA(2).fit(x), n=9).axes[0].lines)
        9
    """
    values = _values(decode(vae, generate(vae, n, seed).z))
    if not _is_image(vae):
        return _line_samples(vae, _encoded(vae, values), axes)
    images, across = _images(values, vae.schema.shape, _limits(values)), math.ceil(math.sqrt(n))
    width, ratio = min(6.0, 0.9 * across), _ratio(images)
    figure, axes = _canvas(axes, (width, width * ratio * math.ceil(n / across) / across))
    _grid(axes, images, across)
    axes.set_axis_off()
    return figure


def manifold_grid(vae: Any, side: int = 20, axes: "Axes | None" = None) -> "Figure":
    """The plane of two latent dimensions as one picture (Kingma & Welling 2013, fig. 4).

    Args:
        vae: a model of images with two latent dimensions.
        side: images along each side, at the standard normal's quantiles (i + 1/2) / side.
        axes: where to draw; None makes a figure.

    Returns: the figure.

    Raises: OptionError: rows that are no images, or another number of latent dimensions.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> images = np.random.RandomState(0).rand(50, 8, 8)
        >>> manifold_grid(PPCA(2).fit(images), side=3).axes[0].images[0].get_array().shape
        (24, 24)
    """
    whole("side", side)
    if not _is_image(vae):
        shape = None if vae.schema is None else vae.schema.shape
        raise OptionError(
            f"manifold_grid: got rows of shape {shape}, expected images: (height, width) or (colours, height, width)"
        )
    values = _values(manifold(vae, side))
    images = _images(values, vae.schema.shape, _limits(values))
    height, width = images.pixels.shape[1:3]
    mosaic = images.pixels.reshape(side, side, height, width, -1).swapaxes(1, 2)
    mosaic = mosaic.reshape(side * height, side * width, -1)
    figure, axes = _canvas(axes, (6.5, 6.5 * _ratio(images)))
    _show(axes, mosaic, images.limits, (0.0, 1.0, 0.0, 1.0))
    axes.set_aspect(_ratio(images))
    axes.set(xlabel="z[0] (quantile of the prior)", ylabel="z[1] (quantile of the prior)")
    return figure


# ---- the latent space


def latent_scatter(
    vae: Any, data: Any, labels: Any = None, dimensions: tuple[int, int] = (0, 1), axes: "Axes | None" = None
) -> "Figure":
    """Posterior means of two latent dimensions, a point a row.

    Args:
        vae: a model of at least two latent dimensions.
        data: n rows.
        labels: (n,) what to colour by: up to 20 distinct values get a legend, more (of numbers) a colour bar.
        dimensions: which two.
        axes: where to draw; None makes a figure.

    Returns: the figure.

    Raises: OptionError, DataError.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> latent_scatter(PPCA(2).fit(x), x).axes[0].collections[0].get_offsets().shape
        (50, 2)
    """
    means = encode(vae, data)
    first, second = _dimensions(dimensions, means.shape[1])
    points = means[:, first], means[:, second]
    colours = None if labels is None else _labels(labels, len(means))
    figure, axes = _canvas(axes, (6.0, 5.0))
    style: dict[str, Any] = {"s": 14 if len(means) <= 2000 else 4, "linewidths": 0, "alpha": 0.8, "rasterized": True}
    if colours is None:
        axes.scatter(points[0], points[1], color=BLUE, **style)
    elif colours.names is None:
        drawn = axes.scatter(points[0], points[1], c=colours.values, cmap="viridis", **style)
        axes.figure.colorbar(drawn, ax=axes, label="label")
    else:
        _scatter_groups(axes, points, colours.values, colours.names, style)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xlabel=f"z[{first}] (posterior mean)", ylabel=f"z[{second}] (posterior mean)")
    return figure


class _Colours(NamedTuple):
    """Values (n,): codes of the names, or numbers for a colour bar where names is None."""

    values: np.ndarray
    names: list[str] | None


def _labels(labels: Any, n: int) -> _Colours:
    values = np.asarray(labels)
    if values.shape != (n,):
        raise OptionError(f"labels: got shape {values.shape}, expected ({n},), one a row")
    is_number = values.dtype.kind in "iuf"
    distinct, codes = np.unique(values if is_number else values.astype(str), return_inverse=True)
    if len(distinct) <= MAX_LABELS:
        return _Colours(codes, [f"{value:g}" if values.dtype.kind == "f" else str(value) for value in distinct])
    if not is_number:
        raise OptionError(f"labels: got {len(distinct)} distinct ones, expected at most {MAX_LABELS}, or numbers")
    return _Colours(values, None)


def _scatter_groups(
    axes: "Axes", points: tuple[np.ndarray, np.ndarray], codes: np.ndarray, names: list[str], style: dict
) -> None:
    for code, name in enumerate(names):
        marker, place = divmod(code, len(LABEL_COLOURS))
        look = style | {"color": LABEL_COLOURS[place], "marker": LABEL_MARKERS[marker]}
        axes.scatter(points[0][codes == code], points[1][codes == code], label=name, **look)
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, markerscale=2, handletextpad=0.1)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def _dimensions(dimensions: Sequence[int], latent: int) -> tuple[int, int]:
    chosen = tuple(dimensions)
    if len(set(chosen)) != 2 or len(chosen) != 2 or not all(d in range(latent) for d in chosen):
        raise OptionError(f"dimensions: got {dimensions!r}, expected two different ones of 0 to {latent - 1}")
    return chosen


# ---- the scores


def score_histogram(
    scores: Scores | np.ndarray,
    labels: Any,
    axes: "Sequence[Axes] | None" = None,
    *,
    threshold: float | None = None,
) -> "Figure":
    """Scores of normal and anomalous rows, and how well they tell the two apart.

    Args:
        scores: `Scores`, or an array (n,); higher = more normal.
        labels: (n,) 0 = normal, 1 = anomalous; some of each.
        axes: two, for the histogram and the ROC curve; None makes a figure.
        threshold: rows of lower scores count as anomalies; drawn in both panels.

    Returns: the figure. Scores of minus infinity count as lowest; what lies far beyond the normal rows (ten times their
        interquartile range) is gathered in the outermost bins.

    Raises: OptionError.

    Example:
        >>> figure = score_histogram(np.array([0.0, -1.0, -5.0, -0.5]), [0, 0, 1, 1])
        >>> figure.axes[1].get_title()
        'AUROC 0.750'
    """
    values = np.asarray(scores.values if isinstance(scores, Scores) else scores, float)
    anomalous = _anomalous(labels, values)
    figure, panels = _two_panels(axes)
    _draw_histogram(panels[0], values, anomalous, threshold, _score_name(scores))
    _draw_roc(panels[1], np.nan_to_num(values), anomalous, threshold)
    return figure


def _anomalous(labels: Any, values: np.ndarray) -> np.ndarray:
    """Labels as bools (n,), once scores and labels are known to be usable."""
    if values.ndim != 1 or np.isnan(values).any() or not np.isfinite(values).any():
        raise OptionError(
            f"scores: got shape {values.shape}, {np.isnan(values).sum()} NaN; expected numbers, one a row"
        )
    labels = np.asarray(labels)
    if labels.shape != values.shape:
        raise OptionError(f"labels: got shape {labels.shape}, expected {values.shape}, one a row")
    if set(distinct := np.unique(labels).tolist()) != {0, 1}:
        raise OptionError(f"labels: got {distinct[:10]!r}, expected 0 (normal) and 1 (anomalous), some of each")
    return labels.astype(bool)


def _score_name(scores: Scores | np.ndarray) -> str:
    if not isinstance(scores, Scores):
        return "score"
    known = SCORES.get(scores.scoring)
    unit = "" if known is None else ", nats a row" if known.nats else ", squared encoded units"
    return scores.scoring.replace("_", " ") + unit


def _draw_histogram(
    axes: "Axes", values: np.ndarray, anomalous: np.ndarray, threshold: float | None, name: str
) -> None:
    low, high = window(values, anomalous, threshold)
    bins, shown = np.linspace(low, high, 41), np.clip(values, low, high)
    for kind, rows, color in (("normal", ~anomalous, BLUE), ("anomalous", anomalous, VERMILLION)):
        share = np.full(rows.sum(), 1 / rows.sum())
        label = f"{kind} ({rows.sum()} rows)"
        axes.hist(shown[rows], bins.tolist(), weights=share, histtype="stepfilled", alpha=0.6, color=color, label=label)
    if threshold is not None:
        axes.axvline(threshold, color="black", linewidth=1, linestyle="--", label=f"threshold {threshold:.4g}")
    beyond = "" if (shown == values).all() else "\n(the outermost bins hold the scores beyond)"
    axes.set(xlabel=f"{name} (higher = more normal){beyond}", ylabel="share of each kind of row")
    _legend_above(axes)
    _open(axes)


def window(values: np.ndarray, anomalous: np.ndarray, threshold: float | None) -> tuple[float, float]:
    """What part of the scores to show: a few anomalies far out would leave one bar for all the rest.

    Args:
        values: (n,) scores.
        anomalous: (n,) bool, rows that may lie far out.
        threshold: shown in any case.

    Returns: (low, high): of what is finite, within ten interquartile ranges of the normal rows.

    Example:
        >>> low, high = window(np.array([-1e6, -2.0, -1.0, 0.0, 1.0]), np.array([True, False, False, False, False]), None)
        >>> low, high
        (np.float64(-16.25), np.float64(1.0))
    """
    finite = values[np.isfinite(values)]
    low, high = finite.min(), finite.max()
    normal = values[np.isfinite(values) & ~anomalous]
    lower, upper = np.quantile(normal, (0.25, 0.75)) if len(normal) else (low, high)
    if (reach := 10 * (upper - lower)) > 0:
        low, high = max(low, lower - reach), min(high, upper + reach)
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _draw_roc(axes: "Axes", values: np.ndarray, anomalous: np.ndarray, threshold: float | None) -> None:
    from sklearn.metrics import roc_auc_score, roc_curve

    false, true, _ = roc_curve(anomalous, -values)  # what sklearn calls a score rises with the positive class
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    axes.plot(false, true, color=BLUE, clip_on=False)
    if threshold is not None:
        flagged = values < threshold
        at = flagged[~anomalous].mean(), flagged[anomalous].mean()
        axes.plot(*at, "o", color="black", markersize=5, clip_on=False)
        axes.annotate("threshold", at, (6, -12), textcoords="offset points", fontsize="small")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    axes.set_title(f"AUROC {roc_auc_score(anomalous, -values):.3f}")
    _open(axes)


def _two_panels(axes: "Sequence[Axes] | None") -> "tuple[Figure, list[Axes]]":
    if axes is None:
        figure = _figure((10.0, 4.0))
        return figure, list(figure.subplots(1, 2, width_ratios=(3, 2)))
    panels = list(np.ravel(np.asarray(axes, dtype=object)))
    if len(panels) != 2:
        raise OptionError(f"axes: got {len(panels)}, expected two, for the histogram and the ROC curve")
    return panels[0].figure, panels


# ---- what a diagnosis found


def uniformity(found: Any, axes: "Axes | None" = None) -> "Figure":
    """How far shares are from uniform: the share of them below u, minus u, a line a quantity.

    Args:
        found: `Ranks` of `sbc`, a `PIT`, or `Symmetry` of `vsbc`.
        axes: where to draw; None makes a figure.

    Returns: the figure. Of one uniform quantity the line stays within the band 99 times of 100 (Kolmogorov's limit); below
        0 on the left and above it on the right, predictions or draws are too wide, the other way round too narrow.

    Example:
        >>> from ppl_vae.criticism.sbc import Ranks
        >>> uniformity(Ranks(np.arange(100)[:, None], ("z[0]",), 99)).axes[0].get_xlabel()
        'u'
    """
    shares, names = found.fractions, found.names
    figure, axes = _canvas(axes, (6.0, 4.0))
    furthest = 0.0
    for j, name in enumerate(names):
        held = np.sort(shares[~np.isnan(shares[:, j]), j])
        below = np.arange(1, len(held) + 1) / max(len(held), 1) - held
        named = {"color": LABEL_COLOURS[j % 10], "label": name} if len(names) <= 10 else {"color": BLUE, "alpha": 0.4}
        axes.plot(held, below, linewidth=1, **named)
        furthest = max(furthest, float(np.abs(below).max(initial=0.0)))
    band = KOLMOGOROV / math.sqrt(len(shares))
    axes.axhspan(-band, band, color=GREY, alpha=0.2, linewidth=0, zorder=0)
    limit = 1.1 * max(band, furthest)
    axes.set(xlim=(0, 1), ylim=(-limit, limit), xlabel="u", ylabel="share below u, minus u")
    if len(names) <= 10:
        _legend_above(axes)
    _open(axes)
    return figure


def latent_units(diagnosis: Any, axes: "Axes | None" = None) -> "Figure":
    """The KL term of each latent dimension in nats, the largest first, and whether its posterior mean moves with x.

    Args:
        diagnosis: with the checks "kl" and "active_units", of a model whose dimensions have distributions of their own.
        axes: where to draw; None makes a figure.

    Returns: the figure.

    Raises: OptionError where one of them is missing.

    Example:
        >>> from ppl_vae.criticism.diagnostics import diagnose
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> found = diagnose(PPCA(2).fit(x), x, checks=["kl", "active_units"], num_draws=10)
        >>> len(latent_units(found).axes[0].patches)
        2
    """
    kl, activity = diagnosis["kl"].detail.get("kl"), diagnosis["active_units"].detail.get("activity")
    if kl is None or activity is None:
        raise OptionError(f"diagnosis: got {diagnosis['kl'].verdict!r}, expected nats by dimension")
    order = np.argsort(-kl)
    active = activity[order] > ACTIVE
    figure, axes = _canvas(axes, (6.0, 3.5))
    for kind, which, color in (("active", active, BLUE), ("idle", ~active, VERMILLION)):
        places = np.flatnonzero(which)
        axes.bar(places, kl[order][places], color=color, label=f"{kind} ({len(places)})")
    if len(kl) <= 30:
        axes.set_xticks(range(len(kl)), [f"z[{j}]" for j in order], rotation=90)
    axes.set(xlabel="latent dimension", ylabel="KL (nats a row)")
    _legend_above(axes)
    _open(axes)
    return figure


def explained(found: Any, n: int = 5) -> "Figure":
    """What repairing each cell of the first n explained rows would gain.

    Images: the rows, and over them in colour the pixels whose repair gains most, as strong as the gain. Tables: bars of the
    ten columns that gain most, in nats, with the value and what the other columns ask for; hatched, with no length of their
    own, where the repair makes an impossible row possible.

    Args:
        found: of `explain`.
        n: how many rows; all where there are fewer.

    Returns: the figure. One colour scale for all images, from 0 to the largest gain.

    Raises: OptionError.

    Example:
        >>> from ppl_vae.criticism.explanation import explain
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> len(explained(explain(PPCA(2).fit(x), x[:1], num_draws=8), n=1).axes)
        1
    """
    if not isinstance(found, Explanation):
        raise OptionError(f"found: got a {type(found).__name__}, expected the Explanation that `explain` gives")
    n = min(whole("n", n), len(found.scores))
    return (_overlays if _is_image(found.vae) else _bars)(found, n)


# ---- rows as numbers


def _values(data: Any) -> np.ndarray:
    return read(data).values


def _own(vae: Any, rows: Any) -> np.ndarray:
    """Rows (n, d) in their own units, checked against the schema and with the columns in its order."""
    vae.batch(rows)
    table = read(rows)
    if vae.schema is None or table.kind not in FRAMES or vae.schema.kind not in FRAMES:
        return table.values
    return table.values[:, [table.names.index(name) for name in vae.schema.names]]


def _encoded(vae: Any, own: np.ndarray) -> np.ndarray:
    """Rows (n, d) in the units that let columns share an axis."""
    return own if vae.schema is None else vae.schema.tensors(own).x.numpy()


# ---- rows as images


class _Images(NamedTuple):
    """Pixels (n, height, width, 1), or (n, height, width, 3) in [0, 1]; the limits are black and white."""

    pixels: np.ndarray
    limits: tuple[float, float]


def _is_image(vae: Any) -> bool:
    """Whether rows are (height, width) or (colours, height, width) with one colour or three."""
    shape: tuple[int, ...] = () if vae.schema is None else vae.schema.shape
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Black and white: 0 and 1 for values between them, else all but the outermost 1 % on each side."""
    if values.min() >= 0 and values.max() <= 1:
        return 0.0, 1.0
    low, high = np.quantile(values, (0.01, 0.99))  # one stray pixel would turn the rest grey
    return float(low), float(high)


def _images(values: np.ndarray, shape: tuple[int, ...], limits: tuple[float, float]) -> _Images:
    planes = values.reshape(len(values), -1, *shape[-2:])
    pixels = np.moveaxis(planes, 1, -1)
    if pixels.shape[-1] == 1:
        return _Images(pixels, limits)
    low, high = limits  # colours have no vmin and vmax: scale them here
    return _Images(np.clip((pixels - low) / ((high - low) or 1.0), 0.0, 1.0), limits)


def _ratio(images: _Images) -> float:
    """Height of an image over its width."""
    return images.pixels.shape[1] / images.pixels.shape[2]


def _show(axes: "Axes", pixels: np.ndarray, limits: tuple[float, float], extent: tuple[float, ...]) -> None:
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    place = cast("tuple[float, float, float, float]", extent)
    axes.imshow(pixels, cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest", extent=place)


def _grid(axes: "Axes", images: _Images, across: int, top: float = 0.0) -> float:
    """Draw images row by row, each one wide, downwards from `top`; returns where the last row ends."""
    step, ratio = 1 + GAP, _ratio(images)
    for i, pixels in enumerate(images.pixels):
        down, right = divmod(i, across)
        left, upper = right * step, top + down * (ratio + GAP)
        _show(axes, pixels, images.limits, (left, left + 1, upper + ratio, upper))
    end = top + math.ceil(len(images.pixels) / across) * (ratio + GAP) - GAP
    _frame(axes, across, end)
    return end


def _frame(axes: "Axes", across: int, end: float) -> None:
    """As many images side by side, from the top down to `end`."""
    axes.set(xlim=(0, across * (1 + GAP) - GAP), ylim=(end, 0), aspect="equal")


def _image_pairs(vae: Any, originals: np.ndarray, decoded: np.ndarray) -> "Figure":
    n, limits = len(originals), _limits(originals)
    above, below = (_images(values, vae.schema.shape, limits) for values in (originals, decoded))
    ratio = _ratio(above)
    figure, axes = _canvas(None, (1.2 + 0.8 * n, 0.3 + 1.6 * ratio))
    middle = _grid(axes, above, n) + GAP
    _grid(axes, below, n, top=middle)
    axes.set_xticks([])
    axes.set_yticks([ratio / 2, middle + ratio / 2], ["original", "reconstruction"])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _overlays(found: Any, n: int) -> "Figure":
    shape, gain, values = found.vae.schema.shape, np.maximum(found.gain[:n], 0.0), _own(found.vae, found.data)[:n]
    images = _images(values, shape, _limits(values))
    colour = gain.reshape(n, -1, *shape[-2:]).max(1) / max(gain.max(), 1e-12)
    red = np.empty((*colour.shape, 4))
    red[..., :3], red[..., 3] = tuple(int(VERMILLION[i : i + 2], 16) / 255 for i in (1, 3, 5)), colour
    ratio = _ratio(images)
    figure, axes = _canvas(None, (0.4 + 0.9 * n, 0.3 + 0.9 * ratio))
    _grid(axes, images, n)
    for i, layer in enumerate(red):
        left = i * (1 + GAP)
        axes.imshow(layer, interpolation="nearest", extent=(left, left + 1, ratio, 0))
    _frame(axes, n, ratio)
    axes.set_axis_off()
    return figure


# ---- rows as lines over columns


def _line_samples(vae: Any, rows: np.ndarray, axes: "Axes | None") -> "Figure":
    figure, axes = _canvas(axes, (7.0, 4.0))
    axes.plot(rows.T, color=BLUE, linewidth=1, alpha=max(0.3, min(1.0, 8 / len(rows))))
    _name_columns(axes, vae, rows.shape[1])
    axes.set_ylabel(f"E[x|z] ({_unit(vae)})")
    _open(axes)
    return figure


def _line_pairs(vae: Any, originals: np.ndarray, decoded: np.ndarray) -> "Figure":
    across = min(5, len(originals))
    down = math.ceil(len(originals) / across)
    figure = _figure((1.0 + 2.2 * across, 1.0 + 1.8 * down))
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for i, (axes, original, decoded_row) in enumerate(zip(panels, originals, decoded)):
        axes.plot(original, color=GREY, label="original")
        axes.plot(decoded_row, color=VERMILLION, linewidth=1, label="reconstruction")
        axes.set_title(f"row {i}", fontsize="small")
        _name_columns(axes, vae, originals.shape[1])
        axes.set_xlabel("")
        _open(axes)
    for axes in panels[len(originals) :]:
        axes.set_visible(False)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False)
    figure.supxlabel("column", fontsize="medium")
    figure.supylabel(f"x ({_unit(vae)})", fontsize="medium")
    return figure


def _bars(found: Any, n: int) -> "Figure":
    figure = _figure((6.0, 0.4 + (0.35 + 0.22 * min(BARS, len(found.names))) * n))
    encoded = batch_of(found.vae, found.data).x[:n].numpy(force=True)
    for i, axes in enumerate(figure.subplots(n, 1, squeeze=False).ravel()):
        order = np.argsort(-found.gain[i], kind="stable")[:BARS]
        order = order[found.gain[i, order] > -np.inf]
        gain = found.gain[i, order]
        most = gain[np.isfinite(gain)].max(initial=1.0)
        bars = axes.barh(range(len(order)), np.minimum(gain, 1.2 * most), color=BLUE)
        for bar, value in zip(bars, gain):  # an impossible row that is possible again
            bar.set_hatch("//" if np.isinf(value) else None)
        labels = [
            f"{found.names[j]} = {_short(found.vae, j, encoded[i, j])} ({_short(found.vae, j, found.instead[i, j])})"
            for j in order
        ]
        axes.set_yticks(range(len(order)), labels, fontsize="small")
        axes.invert_yaxis()
        none = "" if len(order) else ": no repair of one cell makes it possible"
        axes.set_title(f"row {i}, score {found.scores[i]:.3g}{none}", fontsize="small", loc="left")
        _open(axes)
    axes.set_xlabel("gain of the repair (nats)")
    return figure


def _short(vae: Any, column: int, encoded: float) -> str:
    value = encoded if vae.schema is None else own(vae.schema, int(column), np.array([encoded]))[0]
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def _name_columns(axes: "Axes", vae: Any, columns: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("column")
    if vae.schema is not None and columns <= NAMED_COLUMNS:
        axes.set_xticks(range(columns), vae.schema.names, rotation=90)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _unit(vae: Any) -> str:
    schema = vae.schema
    if schema is None or (schema.loc is None and schema.scale is None):
        return "own units"
    return "own units, centred" if schema.scale is None else "standard deviations"


# ---- figures


def _figure(size: tuple[float, float]) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _canvas(axes: "Axes | None", size: tuple[float, float]) -> "tuple[Figure, Axes]":
    """The axes that were given and their figure, or new ones of a size in inches."""
    if axes is None:
        figure = _figure(size)
        return figure, figure.subplots()
    return cast("Figure", axes.figure), axes


def _open(axes: "Axes") -> None:
    """No lines above and to the right."""
    axes.spines[["top", "right"]].set_visible(False)


def _legend_above(axes: "Axes", **options: Any) -> None:
    """A legend in one line above the axes, where it covers nothing."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize="small", borderaxespad=0.2, **options
    )
