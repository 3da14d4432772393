"""Rows drawn from a model together with the latents that made them, and rows drawn anew for the rows at hand."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.data.schema import Batch
from ppl_vae.errors import OptionError
from ppl_vae.infer import noise
from ppl_vae.infer.draws import batch_of, is_local, plated, row_keys, sample_sites, shared_key, told_apart
from ppl_vae.infer.joint import holding
from ppl_vae.infer.noise import Keyed

CELLS = 2**22
"""Cells of data that are held at a time."""
STREAM = 0x51B
"""Sets the noise of simulated rows apart from that of training, which is keyed by (seed, step, row) too."""


class Simulation(NamedTuple):
    """n rows from the model.

    Attributes:
        batch: the rows, encoded; their classes unknown.
        sites: {name: (1, n, ...)} of the latent sites of the rows that made them.
        shared: {name: (1, ...)} of the sites that all rows share.
    """

    batch: Batch
    sites: dict[str, Tensor]
    shared: dict[str, Tensor]


def pattern(vae: Any, n: int, given: Any) -> Batch | None:
    """What n rows are given and which of their cells are missing, from rows reused in turn; None: nothing, and none.

    Raises: OptionError for a model with covariates and no rows to take them from.
    """
    schema = vae.schema
    if given is not None:
        batch = batch_of(vae, given)
        return batch.rows(torch.arange(n, device=batch.x.device) % len(batch.x))
    if schema is not None and schema.covariates is not None:
        names = list(schema.covariates.names)
        raise OptionError(f"given: got nothing, expected rows with the columns {names} that the model is given")
    return None


def simulate(vae: Any, n: int, seed: int, like: Batch | None = None, fitted: bool = True) -> Simulation:
    """Draw n rows, x ~ p(x|z), z ~ p(z); to be called inside `isolated`. Row i is the same whatever n.

    Args:
        seed: of the noise.
        like: n rows whose covariates, groups and missing cells these have.
        fitted: draw what all rows share once from the guide; else from its prior.

    Raises: OptionError for an improper prior.
    """
    like = like or _plain(vae, n)
    device = like.x.device
    given = {name: value for name, value in (("c", like.c), ("group", like.group)) if value is not None}
    keys, common = noise.step_keys(torch.arange(n, device=device), seed, STREAM), shared_key(like.x, seed)

    def run(shared: dict[str, Tensor]) -> dict[str, Any]:
        model = plated(poutine.replay(vae.model, trace=holding(shared)), 1)
        args = () if like.mask is None else (None, like.mask)
        with Keyed(keys, strict=False, shared=common):
            return sample_sites(poutine.trace(model).get_trace(*args, n=n, **given))

    try:
        model = run({})
    except NotImplementedError as error:
        raise OptionError("got an improper prior, which cannot be sampled; expected a proper one") from error
    shared = {name: s["value"] for name, s in model.items() if not is_local(s) and not s["is_observed"]}
    x = model["x"]["value"].reshape(n, -1)
    if shared and fitted:
        few = like._replace(x=x, label=None).rows(slice(2))
        args, given_few = few.arguments()
        with Keyed(row_keys(few, seed), strict=False, shared=common):
            guide = sample_sites(poutine.trace(plated(vae.guide, 1)).get_trace(*args, **given_few))
        shared = {name: site["value"] for name, site in guide.items() if not is_local(site)}
        model = run(shared)
        x = model["x"]["value"].reshape(n, -1)
    x = x if like.mask is None else torch.where(like.mask, x, 0.0)
    local = {n: s["value"] for n, s in model.items() if is_local(s) and n != "x" and not s["is_observed"]}
    return Simulation(like._replace(x=x, label=None), local, shared)


def _plain(vae: Any, n: int) -> Batch:
    """n rows about which nothing is known, no cell missing."""
    like = next((p for p in [*vae.parameters(), *vae.buffers()] if p.is_floating_point()), torch.zeros(0))
    d = 0 if vae.schema is None else vae.schema.width
    x = torch.zeros(n, d, dtype=like.dtype, device=like.device)
    nullable = vae.schema is not None and vae.schema.nullable
    return Batch(x, torch.ones_like(x, dtype=torch.bool) if nullable else None)


def replicates(vae: Any, batch: Batch, num_draws: int, seed: int, new: bool) -> Iterator[Tensor]:
    """Draws of x for n rows, (S, n, d) encoded, some of them at a time; to be called inside `isolated`.

    What all rows share comes from the guide, draw by draw.

    Args:
        new: z from its prior, as of other rows that are given the same; else z from q(z|x).
    """
    n, d = batch.x.shape
    keys, common = told_apart(row_keys(batch, seed)), shared_key(batch.x, seed)
    args, given = batch.arguments()
    height = max(1, CELLS // (n * d))
    beside = {name: value for name, value in given.items() if name != "label"}
    for first in range(0, num_draws, height):
        size = min(height, num_draws - first)
        with Keyed(keys, first=first, strict=False, shared=common):
            guide = sample_sites(poutine.trace(plated(vae.guide, size)).get_trace(*args, **given))
        kept = holding({name: site["value"] for name, site in guide.items() if not (new and is_local(site))})
        with Keyed(keys, first=first, strict=False, shared=common):
            model = plated(poutine.replay(vae.model, trace=kept), size)
            try:
                sites = sample_sites(poutine.trace(model).get_trace(None, *args[1:], n=n, **beside))
            except NotImplementedError as error:
                raise OptionError("got an improper prior, which cannot be sampled; expected a proper one") from error
        yield sites["x"]["value"].expand(size, n, d)
