"""Small charts as inline SVG, in colours of the page: they follow its dark mode, print, and hold no outside reference."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

WIDTH, HEIGHT = 360.0, 210.0
"""Of a chart in its own units, a pixel each on a phone: text of 11 units stays legible there."""
LEFT, RIGHT, TOP, BOTTOM = 54.0, 16.0, 10.0, 36.0
LABELS = 130.0
"""Room for names on the left of charts whose lines have some."""
LINE = 20.0
MINUS = "\N{MINUS SIGN}"
LONGEST, WIDE = 20, 56
"""Letters of such a name, and of one that has a line of its own."""


class Span(NamedTuple):
    """A range of values along an axis."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Where a value lies, 0 at the low end and 1 at the high one."""
        return (value - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> list[float]:
        """Some round values inside."""
        from matplotlib.ticker import MaxNLocator

        found = MaxNLocator(nbins=5, steps=[1, 2, 5, 10]).tick_values(self.low, self.high)
        return [float(value) for value in found if self.low <= value <= self.high]


def span(values: Iterable[float], pad: float = 0.04) -> Span:
    """The range of those values that are finite, and a little around it."""
    found = np.asarray(list(values), float)
    found = found[np.isfinite(found)]
    low, high = (float(found.min()), float(found.max())) if len(found) else (0.0, 1.0)
    around = pad * (high - low) or max(abs(low), 1.0) * 0.05
    return Span(low - around, high + around)


class Panel:
    """A chart's rectangle, with axes.

    Args:
        x, y: what is shown along each.
        size: width and height of the whole.
        left: room on the left.
        whole: whether ticks along x are whole numbers only.
    """

    def __init__(
        self, x: Span, y: Span, size: tuple[float, float] = (WIDTH, HEIGHT), left: float = LEFT, whole: bool = False
    ) -> None:
        self.x, self.y, self.size, self.whole = x, y, size, whole
        self.box = left, TOP, size[0] - left - RIGHT, size[1] - TOP - BOTTOM

    def right(self, value: float) -> float:
        """Where a value of x is, from the left."""
        return self.box[0] + self.box[2] * self.x.at(value)

    def down(self, value: float) -> float:
        """Where a value of y is, from the top."""
        return self.box[1] + self.box[3] * (1 - self.y.at(value))

    def axes(self, xlabel: str, ylabel: str = "", yticks: bool = True) -> Markup:
        """Ticks, grid lines and labels."""
        left, top, width, height = self.box
        parts = [line((left, top + height), (left + width, top + height), "axis")]
        for value in self.x.ticks:
            if self.whole and not value.is_integer():
                continue
            parts.append(text(self.right(value), top + height + 14, short(value), "tick middle"))
        for value in self.y.ticks if yticks else ():
            parts.append(line((left, self.down(value)), (left + width, self.down(value)), "grid"))
            parts.append(text(left - 5, self.down(value) + 4, short(value), "tick end"))
        middle = (
            left + width / 2 if left < LABELS else self.size[0] / 2
        )  # where names take room, the label may need theirs
        parts.append(text(middle, self.size[1] - 5, xlabel, "middle"))
        if ylabel:
            turned = Markup('<text class="middle" transform="translate(11 {}) rotate(-90)">{}</text>')
            parts.append(turned.format(number(top + height / 2), ylabel))
        return joined(parts)

    def svg(self, label: str, *parts: Markup) -> Markup:
        """The picture, with a sentence for those who do not see it."""
        shape = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
        return shape.format(number(self.size[0]), number(self.size[1]), label, joined(parts))


def line(start: tuple[float, float], end: tuple[float, float], kind: str) -> Markup:
    """A straight line."""
    numbers = [number(value) for value in (*start, *end)]
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(*numbers, kind)


def text(x: float, y: float, words: str, kind: str = "") -> Markup:
    """Words at a place."""
    return Markup('<text x="{}" y="{}" class="{}">{}</text>').format(number(x), number(y), kind, words)


def rectangle(x: float, y: float, width: float, height: float, kind: str) -> Markup:
    """A filled box."""
    numbers = [number(value) for value in (x, y, max(width, 0.0), max(height, 0.0))]
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" class="{}"/>').format(*numbers, kind)


def dot(x: float, y: float, kind: str, radius: float = 3.5) -> Markup:
    """A filled circle."""
    return Markup('<circle cx="{}" cy="{}" r="{}" class="{}"/>').format(number(x), number(y), radius, kind)


def joined(parts: Iterable[Markup]) -> Markup:
    """One after another."""
    return Markup("").join(parts)


def number(value: float) -> str:
    """A coordinate."""
    return f"{value:.1f}".removesuffix(".0")


def short(value: float) -> str:
    """A number for the eye, of four digits, with a true minus sign.

    Example:
        >>> short(214531.0), short(-0.25) == MINUS + "0.25"
        ('214500', True)
    """
    rounded = f"{value:.4g}"
    rounded = f"{float(rounded):.0f}" if 1e4 <= abs(value) < 1e7 else rounded
    return rounded.replace("-", MINUS)


def signed(words: str) -> str:
    """Words with a true minus sign before each number that has one; dates, names and ranges stay as they are.

    Example:
        >>> signed("-2 to 1e-05, a-1, 2020-01-02") == "{0}2 to 1e{0}05, a-1, 2020-01-02".format(MINUS)
        True
    """
    return re.sub(r"(?<![\w.)-])-(?=\.?\d|inf)|(?<=\de)-(?=\d)", MINUS, words)


def cut(words: str, longest: int = LONGEST) -> str:
    """Words, shortened in the middle: names of one kind differ at either end.

    Example:
        >>> cut("iwae, K = 8, latent=2", 18)
        'iwae, K =…latent=2'
    """
    tail = (longest - 1) // 2
    return words if len(words) <= longest else f"{words[: longest - 1 - tail]}…{words[-tail:]}"


# ---- whole charts


def lines(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], xlabel: str, ylabel: str) -> Markup:
    """Lines over x, in the order of their colours; gaps where a value is not finite.

    Example:
        >>> str(lines({"a<b": ([1, 2], [3.0, 4.0])}, "epoch", "nats")).count("<path")
        1
    """
    x_span, y_span = (
        span([v for pair in series.values() for v in pair[axis]], pad) for axis, pad in ((0, 0.01), (1, 0.04))
    )
    panel = Panel(x_span, y_span, whole=True)
    parts = [panel.axes(xlabel, ylabel)]
    for place, (x, y) in enumerate(series.values()):
        steps, pen = [], "M"
        for a, b in zip(x, y):
            if math.isfinite(b):
                steps.append(f"{pen}{number(panel.right(a))} {number(panel.down(b))}")
            pen = "L" if math.isfinite(b) else "M"
        parts.append(Markup('<path d="{}" class="line s{}"/>').format("".join(steps), place))
        if len(steps) == 1:
            parts.append(dot(panel.right(x[0]), panel.down(y[0]), f"f{place}"))
    return panel.svg(f"{ylabel} by {xlabel}: {', '.join(series)}", *parts)


def histogram(groups: Mapping[str, np.ndarray], edges: np.ndarray, xlabel: str, mark: float | None = None) -> Markup:
    """Shares of each group's values by bin: the first filled, the others outlined; values beyond go to the outermost bins.

    Args:
        groups: values by name.
        edges: of the bins.
        xlabel: of the axis.
        mark: a value to draw a line at.
    """
    shares = {
        name: np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / max(len(values), 1)
        for name, values in groups.items()
    }
    panel = Panel(
        Span(float(edges[0]), float(edges[-1])), Span(0.0, 1.08 * max(s.max() for s in shares.values()) or 1.0)
    )
    parts, places = [panel.axes(xlabel, "share of rows")], [panel.right(float(edge)) for edge in edges]
    for order, share in enumerate(shares.values()):
        tops = [panel.down(float(height)) for height in share]
        steps = [f"M{number(places[0])} {number(panel.down(0))}"]
        for left, right, top in zip(places, places[1:], tops):
            steps.append(f"L{number(left)} {number(top)}L{number(right)} {number(top)}")
        steps.append(f"L{number(places[-1])} {number(panel.down(0))}")
        kind = "area f0" if not order else f"line s{order}"
        parts.append(Markup('<path d="{}" class="{}"/>').format("".join(steps), kind))
    if mark is not None and panel.x.low <= mark <= panel.x.high:
        parts.append(line((panel.right(mark), TOP), (panel.right(mark), panel.down(0)), "mark"))
    return panel.svg(f"Histogram of {xlabel}: {', '.join(groups)}", *parts)


def shares(groups: Mapping[str, Sequence[float]], names: Sequence[str], xlabel: str) -> Markup:
    """Bars of shares by level, a bar for each group."""
    step = 12.0 * len(groups) + 6
    height = TOP + BOTTOM + step * len(names)
    panel = Panel(
        Span(0.0, max(max(values) for values in groups.values()) * 1.02 or 1.0), Span(0, 1), (WIDTH, height), LABELS
    )
    parts = [panel.axes(xlabel, yticks=False)]
    for row, name in enumerate(names):
        top = TOP + row * step + 3
        parts.append(text(LABELS - 6, top + step / 2 + 1, cut(name), "end"))
        for order, values in enumerate(groups.values()):
            width = panel.right(values[row]) - LABELS
            parts.append(rectangle(LABELS, top + 12 * order, width, 11, f"area f{order}"))
    return panel.svg(f"Shares of {', '.join(map(str, names))}: {', '.join(groups)}", *parts)


class Interval(NamedTuple):
    """A line of `intervals`: its name, a range, a value in or out of it, and whether that is something to look at."""

    name: str
    low: float
    high: float
    value: float
    stands_out: bool = False
    inner: tuple[float, float] | None = None


def intervals(rows: Sequence[Interval], xlabel: str, mark: float | None = None, around: Span | None = None) -> Markup:
    """A line for each range with a dot for a value, named on the left, or above where names are long.

    Values beyond the axis are drawn at its end.
    """
    ends = [v for r in rows for v in (r.low, r.high, r.value)] + ([] if mark is None else [mark])
    above = any(len(row.name) > LONGEST for row in rows)
    step, left = (2 * LINE, 6.0) if above else (LINE, LABELS)
    height = TOP + BOTTOM + step * len(rows)
    panel = Panel(around or span(ends), Span(0, 1), (WIDTH, height), left)
    parts = [panel.axes(xlabel, yticks=False)]
    if mark is not None:
        parts.append(line((panel.right(mark), TOP), (panel.right(mark), height - BOTTOM), "mark"))
    for place, row in enumerate(rows):
        y = TOP + step * (place + 1) - LINE / 2
        low, high, value = (panel.right(min(max(v, panel.x.low), panel.x.high)) for v in (row.low, row.high, row.value))
        parts.append(text(left, y - 12, cut(row.name, WIDE)) if above else text(left - 6, y + 4, row.name, "end"))
        parts.append(line((low, y), (high, y), "range"))
        if row.inner is not None:
            inner = [panel.right(min(max(v, panel.x.low), panel.x.high)) for v in row.inner]
            parts.append(rectangle(inner[0], y - 4, inner[1] - inner[0], 8, "area f0"))
        parts.append(dot(value, y, "f1" if row.stands_out else "f0"))
    return panel.svg(f"{xlabel}, by line: {', '.join(row.name for row in rows)}", *parts)
