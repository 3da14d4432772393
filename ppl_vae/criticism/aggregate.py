"""The aggregate posterior q(z), the mixture of q(z|x) over rows: what z tells of the row, and how far q(z) is from p(z)."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.criticism.simulation import CELLS
from ppl_vae.data.schema import Batch
from ppl_vae.infer.draws import (
    check,
    is_local,
    jacobians,
    log_densities,
    model_sites,
    plated,
    row_keys,
    sample_sites,
    shared_key,
    told_apart,
)
from ppl_vae.infer.joint import holding
from ppl_vae.infer.noise import Keyed
from ppl_vae.infer.scope import reading

PAIRS = 2**20
"""Pairs of a draw and a row at which q(z|x) is evaluated, in all."""
MOST = 700
"""Rows of the mixture: two draws for each stay within `PAIRS`."""
DRAWS = 32
"""Draws of a row: more would not tell more of the mixture, whose rows are what is scarce."""


class Bounds(NamedTuple):
    """A number known to lie between two, on average over sets of n rows, each with its Monte Carlo standard error."""

    low: float
    high: float
    low_error: float
    high_error: float


class Aggregate(NamedTuple):
    """The parts of the KL term (Hoffman & Johnson 2016): KL = information + gap, all in nats.

    Attributes:
        kl: KL(q(z|x) || p(z)), mean over the rows, and its error.
        information: I_q(x; z), what z tells of the row.
        gap: KL(q(z) || p(z)); None where the prior differs from row to row.
        rows: n of the mixture.
    """

    kl: tuple[float, float]
    information: Bounds
    gap: Bounds | None
    rows: int


def aggregate(vae: Any, batch: Batch, num_draws: int = 1000, seed: int = 0) -> Aggregate:
    """Split the mean KL term into information and the aggregate posterior's distance from the prior.

    q(z) is estimated by the mixture over the n rows at hand. With the draw's own row in it, the information is that about
    the row's number among these n (Hoffman & Johnson 2016): exact for them, at most log n, and for rows in general too low.
    Without it, it is too high (Poole et al. 2019, eqs. 11 and 13): the truth lies between, up to Monte Carlo error. Of the
    gap the reverse is true. The bounds are far apart where rows hardly overlap: n rows cannot tell more than log n nats.

    Args:
        vae: a model with its guide; "z" here is all latent sites of a row.
        batch: n encoded rows, 2 at least.
        num_draws: of z a row at most; no more than `DRAWS`, and fewer where pairs of draws and rows would exceed `PAIRS`.
        seed: of the noise.
    """
    n = len(batch.x)
    draws = max(2, min(num_draws, DRAWS, PAIRS // n**2))
    with reading(vae, seed):
        check(vae, batch, strict=False)
        keys, common = told_apart(row_keys(batch, seed)), shared_key(batch.x, seed)
        args, given = batch.arguments()
        with Keyed(keys, strict=False, shared=common):
            guide = sample_sites(poutine.trace(plated(vae.guide, draws)).get_trace(*args, **given))
            values = {name: site["value"] for name, site in guide.items()}
            log_prior = log_densities(model_sites(vae, batch, holding(values), draws), jacobians(vae, batch), batch)[0]
        own, inside, outside = _mixture(vae, batch, guide)
        alike = _same_prior(vae, batch, guide)
    mean = _mean if all(is_local(site) for site in guide.values()) else mean_of
    kl, low, high = own - log_prior, own - inside, own - outside
    information = Bounds(*mean(low)[:1], *mean(high)[:1], mean(low)[1], mean(high)[1])
    below, above = mean(kl - high), mean(kl - low)
    gap = Bounds(below[0], above[0], below[1], above[1]) if alike else None
    return Aggregate(mean(kl), information, gap, n)


def _mixture(vae: Any, batch: Batch, guide: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Of draws (S, n, ...) of every row: log q(z|x) of the own row, of the mixture of all, of all others, (S, n) each."""
    draws, n = guide["z"]["value"].shape[:2]
    flat, shared = {}, {}
    for name, site in guide.items():
        value = site["value"]
        if is_local(site):
            flat[name] = value.reshape(draws * n, 1, *value.shape[2:])
        else:  # q(z|x) does not depend on them: one draw will do, which may be all weights of a net
            shared[name] = value[:1]
    found = []
    for start, log_q in log_q_of_rows(vae, batch, flat, shared):
        rows = torch.arange(start, start + len(log_q), device=log_q.device)[:, None] % n
        own = log_q.gather(1, rows)
        others = log_q.scatter(1, rows, -torch.inf).logsumexp(1, keepdim=True)
        found.append(torch.cat([own, torch.logaddexp(own, others), others], 1))
    own, inside, outside = (column.view(draws, n) for column in torch.cat(found).T)
    log_n, log_others = (torch.log(torch.tensor(float(m))) for m in (n, n - 1))
    return own, inside - log_n, outside - log_others


def log_q_of_rows(
    vae: Any, batch: Batch, values: dict[str, Tensor], shared: dict[str, Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """log q(z|x_i) of some z at a time at all n rows: where they start, and (many, n). To be called inside `reading`.

    Args:
        values: of the local sites, (M, 1, ...).
        shared: of the other sites, (1, ...).
    """
    n, (args, given), z = len(batch.x), batch.arguments(), values["z"]
    if (normal := None if shared or len(values) > 1 else _normal(vae, args, given)) is not None:
        size = max(1, CELLS // n)
        for start in range(0, len(z), size):
            yield start, log_normal(z[start : start + size, 0], *normal)
        return
    size = max(1, CELLS // (n * z.shape[-1]))
    for start in range(0, len(z), size):
        some = {name: value[start : start + size] for name, value in values.items()}
        many = len(some["z"])
        of_rows = {name: value.expand(many, n, *value.shape[2:]) for name, value in some.items()}
        trace = holding(of_rows | {name: value.expand(many, *value.shape[1:]) for name, value in shared.items()})
        q = sample_sites(poutine.trace(poutine.replay(plated(vae.guide, many), trace=trace)).get_trace(*args, **given))
        terms = [site["fn"].log_prob(site["value"]).double() for site in q.values() if is_local(site)]
        yield start, sum(terms, start=torch.zeros(())).expand(many, n)


def _normal(vae: Any, args: Any, given: Any) -> tuple[Tensor, Tensor] | None:
    """Means and scales (n, k) of a guide with one latent site that is a diagonal normal, and no other."""
    sites = sample_sites(poutine.trace(plated(vae.guide, 1)).get_trace(*args, **given))
    q = sites["z"]["fn"] if set(sites) == {"z"} and is_local(sites["z"]) else None
    while isinstance(q, dist.Independent):
        q = q.base_dist
    return (q.loc.double()[0], q.scale.double()[0]) if isinstance(q, dist.Normal) and q.loc.dim() == 3 else None


def log_normal(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """log N(z_m; loc_i, diag(scale_i^2)) of z (M, k), loc and scale (n, k), as (M, n): the square multiplied out, which is
    a product of matrices in the place of M n k differences."""
    z, precision = z.double(), scale**-2
    square = z**2 @ precision.T - 2 * z @ (loc * precision).T + (loc**2 * precision).sum(1)
    return -0.5 * square - (scale.log() + 0.5 * math.log(2 * math.pi)).sum(1)


def _same_prior(vae: Any, batch: Batch, guide: dict[str, Any]) -> bool:
    """Whether all rows have one prior: at the latents of the first row's first draw, its density is the same for each."""
    first = {}
    for name, site in guide.items():
        value = site["value"][:1]
        first[name] = value[:, :1].expand(1, len(batch.x), *value.shape[2:]) if is_local(site) else value
    log_prior = log_densities(model_sites(vae, batch, holding(first), 1), jacobians(vae, batch), batch)[0]
    return bool(torch.allclose(log_prior, log_prior[:, :1]))


def _mean(terms: Tensor) -> tuple[float, float]:
    """Mean of (S, n) and its Monte Carlo standard error, draws being independent between rows."""
    draws, n = terms.shape
    return float(terms.mean()), float((terms.var(0) / draws).sum().sqrt() / n)


def mean_of(terms: Tensor) -> tuple[float, float]:
    """The mean of (S, n) and its Monte Carlo standard error; over draws, since rows may share noise within one."""
    by_draw = terms.mean(1)
    return float(by_draw.mean()), float(by_draw.std() / len(by_draw) ** 0.5)
