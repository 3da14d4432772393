"""What the latent explorer moves in: a decoded grid over two latent dimensions, and rows where the guide places them."""

import json
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from ppl_vae.criticism.predictive import as_frame, decode, encode
from ppl_vae.data.tables import read
from ppl_vae.errors import OptionError
from ppl_vae.infer.draws import batch_of, space
from ppl_vae.use.report.charts import Panel, Span, cut, number, short
from ppl_vae.use.report.graph import code
from ppl_vae.use.report.pictures import cells, encoded, image_shape, limits, pixels

SIDE, LINE = 24, 96
"""Codes along each of two dimensions, and along a single one, that are decoded."""
BYTES = 1_200_000
"""Of the images of the grid, at most, and of those of rows."""
POINTS, COLUMNS = 400, 40
"""Rows and columns that are kept, at most."""
CLASSES = 10
"""Kinds of rows that are told apart by colour."""
SQUARE = 400.0


class Plane(NamedTuple):
    """Two latent dimensions, or one, and where rows are in them.

    Attributes:
        axes: their numbers.
        spread: standard deviation over rows of each posterior mean, (k,).
        means: posterior means (n, k).
        rest: the codes of all others, (k,).
    """

    axes: tuple[int, ...]
    spread: np.ndarray
    means: np.ndarray
    rest: np.ndarray


def plane_of(vae: Any, frame: Any) -> Plane:
    """The dimensions whose posterior means move most over rows, the others at their mean.

    Raises: OptionError for z that lives on no plane.
    """
    where = space(code(vae, batch_of(vae, frame))["fn"])
    if where != "density on R^k":
        raise OptionError(f"z has a {where}: there is no plane to move in")
    means = encode(vae, frame).astype(float)
    spread = means.std(0)
    axes = tuple(sorted(np.argsort(-spread, kind="stable")[:2].tolist()))
    return Plane(axes, spread, means, means.mean(0))


def explorer(
    vae: Any, frame: Any, places: np.ndarray, scores: np.ndarray, kinds: np.ndarray, names: list[str]
) -> dict[str, Any]:
    """The drawing of the plane, what its program reads, and what is to be said of it.

    Args:
        vae: a model.
        frame: n rows, in own units.
        places: (m,) numbers of those that are kept, the most anomalous first.
        scores: (n,).
        kinds: (n,) the number of each row's kind, which colours it.
        names: of the kinds.

    Raises: OptionError, DataError.
    """
    plane = plane_of(vae, frame)
    places = places[:POINTS]
    x, y = (
        (_span(plane.means[:, axis]) for axis in plane.axes)
        if len(plane.axes) > 1
        else (_span(plane.means[:, 0]), Span(-1.0, 1.0))
    )
    image = image_shape(vae.schema)
    across, down = _sides(plane, image)
    z = np.repeat(plane.rest[None], across * down, 0)
    grid = np.meshgrid(np.linspace(*x, across), np.linspace(*y, down) if down > 1 else [0.0])
    for axis, values in zip(plane.axes, grid):
        z[:, axis] = values.ravel()
    given, typical = _given(vae, frame, places, len(z))
    decoded = decode(vae, z, given)
    positions = plane.means[places][:, list(plane.axes)]
    positions = positions if len(plane.axes) > 1 else np.column_stack([positions, np.zeros(len(places))])
    data = {
        "x": list(x),
        "y": list(y),
        "side": [across, down],
        "axes": [f"z[{axis}]" for axis in plane.axes],
        "at": [[round(float(a), 4), round(float(b), 4)] for a, b in positions],
        "row": places.tolist(),
        "score": [short(float(scores[row])) for row in places],
        "kind": [names[kinds[row]] for row in places],
        **(_images if image else _table)(vae, frame, places, decoded, image),
    }
    return {
        "svg": _drawing(plane, x, y, positions, [kinds[row] for row in places], data),
        "json": inert(data),
        "image": image is not None,
        "kinds": names,
        "names": data.get("columns", []),
        "caption": " ".join(
            _told(plane, len(frame), places, across, down, image, len(known_names(vae, frame)), typical)
        ),
    }


def _told(
    plane: Plane, n: int, places: np.ndarray, across: int, down: int, image: Any, columns: int, typical: int | None
) -> list[str]:
    """What is shown, and what is not."""
    words = [
        f"Decoded beforehand at {across} by {down} codes"
        + (", the mean of the four around a place." if image else ", the nearest.")
    ]
    if (others := len(plane.spread) - len(plane.axes)) > 0:
        rest = "the other at its mean" if others == 1 else f"the other {others} at their means"
        words.append(
            f"z has {len(plane.spread)} dimensions: these two are those whose posterior means move most, with {rest} over "
            "all rows, so that decoded places are not reconstructions."
        )
    if len(places) < n:
        words.append(f"{len(places)} of {n} rows are in this file, the most anomalous among them.")
    if image is None and columns > COLUMNS:
        words.append(f"The first {COLUMNS} of {columns} columns are.")
    if typical is not None:
        words.append(f"The columns that the model is given are those of row {typical}.")
    return words


def inert(data: Any) -> Markup:
    """JSON that ends no script and starts no tag or comment, whatever stands in it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def _span(values: np.ndarray) -> Span:
    """Nearly all of the values, with a margin; what lies beyond is drawn at the edge."""
    low, high = np.quantile(values, (0.01, 0.99))
    around = max(0.2 * (high - low), 0.1)
    return Span(round(float(low - around), 4), round(float(high + around), 4))


def _sides(plane: Plane, image: tuple[int, int, int] | None) -> tuple[int, int]:
    """Codes along the two dimensions, as many as there is room for."""
    if len(plane.axes) == 1:
        return LINE, 1
    size = 1 if image is None else pixels(np.zeros((1, np.prod(image))), image, (0.0, 1.0)).size
    side = max(2, min(SIDE, int((BYTES / size) ** 0.5)))
    return side, side


def _given(vae: Any, frame: Any, places: np.ndarray, n: int) -> tuple[Any, int | None]:
    """For a model that is given columns: those of one row, n times, and the number of that row."""
    if vae.schema is None or not vae.schema.beside:
        return None, None
    row = int(places[len(places) // 2])
    return as_frame(frame)[list(vae.schema.beside)].iloc[[row] * n].reset_index(drop=True), row


def _images(vae: Any, frame: Any, places: np.ndarray, decoded: Any, image: Any) -> dict[str, Any]:
    values, grid = own_values(vae, frame), read(decoded).values
    ends = limits(values)
    fitting = max(1, BYTES // pixels(values[:1], image, ends).size)
    rows, codes = pixels(values[places[:fitting]], image, ends), pixels(grid, image, ends)
    return {"shape": list(codes.shape[1:]), "grid": encoded(codes.tobytes()), "rows": encoded(rows.tobytes())}


def _table(vae: Any, frame: Any, places: np.ndarray, decoded: Any, image: Any) -> dict[str, Any]:
    shown, names = as_frame(decoded), known_names(vae, frame)[:COLUMNS]
    return {
        "columns": [cut(name, 60) for name in names],
        "grid": [cells(shown.iloc[:, j].tolist()) for j in range(len(names))],
        "rows": [cells(frame[name].iloc[places].tolist()) for name in own_names(vae, frame)[:COLUMNS]],
    }


def known_names(vae: Any, frame: Any) -> list[str]:
    """The modelled columns as the model calls them: one without a schema knows their positions."""
    return [f"x{j}" for j in range(frame.shape[1])] if vae.schema is None else list(vae.schema.names)


def own_names(vae: Any, frame: Any) -> list[str]:
    """The modelled columns as the frame calls them, by name if it has them, else by position."""
    names = known_names(vae, frame)
    return names if set(names) <= set(frame) else list(frame)[: len(names)]


def own_values(vae: Any, frame: Any) -> np.ndarray:
    """Rows (n, d) of numbers in their own units."""
    return frame[own_names(vae, frame)].to_numpy(float)


def _drawing(plane: Plane, x: Span, y: Span, positions: np.ndarray, kinds: list[int], data: dict[str, Any]) -> Markup:
    """The plane with its rows, each in reach of the keyboard from the one before."""
    panel = Panel(x, y, (SQUARE, SQUARE))
    labels = [*data["axes"], ""][:2]
    points = []
    shape = Markup(
        '<circle cx="{}" cy="{}" r="4" class="point k{}" tabindex="{}" data-i="{}" role="img" aria-label="{}"/>'
    )
    for i, ((a, b), kind) in enumerate(zip(positions, kinds)):
        right, down = panel.right(min(max(a, x.low), x.high)), panel.down(min(max(b, y.low), y.high))
        told = f"row {data['row'][i]}, {data['kind'][i]}, score {data['score'][i]}"
        points.append(shape.format(number(right), number(down), kind % CLASSES, 0 if i == 0 else -1, i, told))
    left, top, width, height = panel.box
    words = "Latent plane. Arrow keys move, with Shift in larger steps; the panel tells what is decoded there."
    whole = Markup(
        '<svg id="plane" class="chart" viewBox="0 0 {0} {0}" data-box="{1}"><rect id="field" x="{2}" y="{3}" width="{4}" '
        'height="{5}" class="field" tabindex="0" role="application" aria-label="{6}"/>{7}{8}'
        '<g id="cross" aria-hidden="true"><circle r="9"/><path d="M-15 0H-5M5 0H15M0 -15V-5M0 5V15"/></g></svg>'
    )
    box = " ".join(map(number, panel.box))
    return whole.format(
        number(SQUARE), box, *map(number, (left, top, width, height)), words,
        panel.axes(f"{labels[0]} (posterior mean)", f"{labels[1]} (posterior mean)" if labels[1] else "", bool(labels[1])),
        Markup("").join(reversed(points)),
    )  # fmt: skip
