"""The two programs as the graph that is drawn of a VAE: solid arrows of the model, dashed ones of the guide."""

from typing import Any, NamedTuple

from markupsafe import Markup
from pyro import poutine
from pyro.infer.inspect import get_model_relations

from ppl_vae.data.schema import Batch
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


def graph(found: list[Site], rows: int, latent: int, columns: int) -> Markup:
    """The drawing, as SVG."""
    shared, local = [s for s in found if not s.local], [s for s in found if s.local]
    if len(shared) > MOST:
        names = {s.name for s in shared}
        told = f"{len(shared)} shared sites"
        below = [s for s in local if names & set(s.parents)]
        shared = [Site(told, f"as {cut(shared[0].name, 24)}", (), False, False)]
        local = [
            s._replace(parents=(told, *(p for p in s.parents if p not in names))) if s in below else s for s in local
        ]
    height = max(len(local), len(shared)) * STEP + 34
    place = {
        s.name: (LOCAL if s.local else SHARED, 44 + STEP * i) for group in (shared, local) for i, s in enumerate(group)
    }
    sizes = {"z": f"{latent} dimensions", "x": f"{columns} columns"}
    parts = [rectangle(PLATE, 12, RIGHT - PLATE - 6, len(local) * STEP + 12, "plate")]
    parts.append(text(RIGHT - 14, len(local) * STEP + 18, f"{rows} rows", "end"))
    for site in (*shared, *local):
        parts += [arrow(place[parent], place[site.name], "arrow") for parent in site.parents if parent in place]
    if "x" in place:
        parts += [bent(place["x"], place[s.name]) for s in local if not s.observed]
    for site in (*shared, *local):
        x, y = place[site.name]
        kind = "node seen" if site.observed else "node"
        parts.append(Markup('<circle cx="{}" cy="{}" r="{}" class="{}"/>').format(number(x), number(y), RADIUS, kind))
        if site.local:
            parts.append(text(x, y + 5, cut(site.name, 5), "middle name"))
            parts.append(text(x + RADIUS + 18, y - 2, cut(site.family, 19)))
            parts.append(text(x + RADIUS + 18, y + 12, sizes.get(site.name, ""), "tick"))
        else:
            parts.append(text(x, y + RADIUS + 12, cut(site.name, 15), "middle"))
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


def arrow(start: tuple[float, float], end: tuple[float, float], kind: str) -> Markup:
    """A straight arrow between the edges of two nodes."""
    length = max(((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5, 1.0)
    right, down = (RADIUS + 2) * (end[0] - start[0]) / length, (RADIUS + 2) * (end[1] - start[1]) / length
    return line((start[0] + right, start[1] + down), (end[0] - right, end[1] - down), kind)


def bent(start: tuple[float, float], end: tuple[float, float]) -> Markup:
    """A dashed arrow of the guide, up on the left of the nodes."""
    reach = RADIUS * 0.8
    numbers = (
        start[0] - reach,
        start[1] - reach,
        start[0] - 3 * RADIUS,
        (start[1] + end[1]) / 2,
        end[0] - reach,
        end[1] + reach,
    )
    return Markup('<path d="M{} {}Q{} {} {} {}" class="arrow guide"/>').format(*map(number, numbers))
