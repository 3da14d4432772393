"""The two programs as the graph that is drawn of a VAE: solid arrows of the model, dashed ones of the guide."""

from typing import Any, NamedTuple

from markupsafe import Markup
from pyro import poutine
from pyro.infer.inspect import get_model_relations

from ppl_vae.data.schema import Batch
from ppl_vae.errors import several
from ppl_vae.infer.draws import row_keys, traces
from ppl_vae.infer.scope import reading
from ppl_vae.use.report.charts import cut, joined, line, number, rectangle, text

RADIUS, STEP = 19.0, 76.0
SHARED, LOCAL, RIGHT, PLATE = 50.0, 214.0, 406.0, 122.0
MOST = 5
"""Sites that all rows share that are drawn; more are drawn as one."""


class Site(NamedTuple):
    """A site of the model: its name, its distribution, what it depends on, and whether it is in the plate of rows."""

    name: str
    family: str
    parents: tuple[str, ...]
    local: bool
    observed: bool


def sites(vae: Any, batch: Batch) -> list[Site]:
    """The sites of the model in their order, by Pyro's own inspection of its log densities."""
    few = batch.rows(slice(2))
    args, given = few.arguments()
    with reading(vae):
        # the guide's values: an improper prior has none of its own
        guide = poutine.trace(vae.guide).get_trace(*args, **given)
        found = get_model_relations(poutine.replay(vae.model, trace=guide), args, given)
    local = {name for name in found["plate_sample"].get("data", ())}
    return [
        Site(name, found["sample_dist"][name], tuple(parents), name in local, name == "x")
        for name, parents in found["sample_sample"].items()
    ]


def code(vae: Any, batch: Batch) -> dict[str, Any]:
    """The guide's site of z, at two rows."""
    few = batch.rows(slice(2))
    with reading(vae):
        guide, _ = traces(vae, few, row_keys(few, 0), 1, strict=False)
    return guide["z"]


def graph(found: list[Site], latent: int, columns: int) -> Markup:
    """The drawing, as SVG."""
    shared, local = [s for s in found if not s.local], [s for s in found if s.local]
    if len(shared) > MOST:
        names = {s.name for s in shared}
        told = f"{len(shared)} shared sites"
        below = [s for s in local if names & set(s.parents)]
        shared = [Site(told, shared[0].family, (), False, False)]
        local = [
            s._replace(parents=(told, *(p for p in s.parents if p not in names))) if s in below else s for s in local
        ]
    height = max(len(local), len(shared)) * STEP + 34
    place = {
        s.name: (LOCAL if s.local else SHARED, 44 + STEP * i) for group in (shared, local) for i, s in enumerate(group)
    }
    sizes = {"z": several(latent, "dimension"), "x": several(columns, "column")}
    parts = [rectangle(PLATE, 12, RIGHT - PLATE - 6, len(local) * STEP + 12, "plate")]
    parts.append(text(RIGHT - 14, len(local) * STEP + 18, "rows", "end"))
    order = [site.name for site in local]
    for site in (*shared, *local):
        for parent in (name for name in site.parents if name in place):
            beyond = site.local and parent in order and order.index(site.name) - order.index(parent) > 1
            parts.append(
                bent(place[parent], place[site.name], "arrow", 1) if beyond else arrow(place[parent], place[site.name])
            )
    if "x" in place:
        parts += [bent(place["x"], place[s.name], "arrow guide", -1) for s in local if not s.observed]
    for site in (*shared, *local):
        x, y = place[site.name]
        kind = "node seen" if site.observed else "node"
        parts.append(Markup('<circle cx="{}" cy="{}" r="{}" class="{}"/>').format(number(x), number(y), RADIUS, kind))
        if site.local:
            parts.append(text(x, y + 5, cut(site.name, 5), "middle name"))
            parts.append(text(x + RADIUS + 26, y - 2, cut(site.family, 19)))
            parts.append(text(x + RADIUS + 26, y + 12, sizes.get(site.name, ""), "tick"))
        else:
            parts.append(text(x, y + RADIUS + 12, tail(site.name), "middle"))
            parts.append(text(x, y + RADIUS + 24, cut(site.family, 18), "middle tick"))
    words = "; ".join(f"{s.name} ~ {s.family}" + (f" given {', '.join(s.parents)}" if s.parents else "") for s in found)
    label = f"The model: {words}. The guide: {', '.join(s.name for s in local if not s.observed)} given x."
    shape = Markup('<svg class="chart graph" viewBox="{} 0 {} {}" role="img" aria-label="{}">{}{}</svg>')
    left = 0.0 if shared else PLATE - 2
    return shape.format(number(left), number(RIGHT - left), number(height), label, HEADS, joined(parts))


HEADS = Markup(
    '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    '<path d="M0 0L8 4L0 8z" class="head"/></marker></defs>'
)


def tail(name: str, longest: int = 15) -> str:
    """The end of a name, which tells most: `…net.0.weight`."""
    return name if len(name) <= longest else "…" + name[1 - longest :]


def arrow(start: tuple[float, float], end: tuple[float, float]) -> Markup:
    """A straight arrow between the edges of two nodes."""
    length = max(((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5, 1.0)
    right, down = (RADIUS + 2) * (end[0] - start[0]) / length, (RADIUS + 2) * (end[1] - start[1]) / length
    return line((start[0] + right, start[1] + down), (end[0] - right, end[1] - down), "arrow")


def bent(start: tuple[float, float], end: tuple[float, float], kind: str, side: int) -> Markup:
    """An arrow past the nodes in between, on the left (-1) or on the right (1)."""
    right, down = side * RADIUS * 0.8, RADIUS * 0.8 * (1 if end[1] > start[1] else -1)
    middle = start[0] + side * 3 * RADIUS, (start[1] + end[1]) / 2
    numbers = (start[0] + right, start[1] + down, *middle, end[0] + right, end[1] - down)
    return Markup('<path d="M{} {}Q{} {} {} {}" class="{}"/>').format(*map(number, numbers), kind)
