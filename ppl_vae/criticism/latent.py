"""What each latent dimension carries: how far its posterior mean moves, and its part of the KL term."""

from functools import singledispatch
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, distributions
from torch.distributions import kl_divergence

from ppl_vae.criticism.simulation import CELLS, simulate
from ppl_vae.data.schema import Batch
from ppl_vae.infer.draws import check, row_keys, shared_key, traces
from ppl_vae.infer.scope import reading

ACTIVE = 0.01
"""Variance of the posterior mean over rows, in prior variances, above which a unit is active (Burda et al. 2016)."""
SIMULATED = 4096
"""Draws of z for the variance of a prior that has no formula for it."""
FEW = 16
"""Draws for a KL term that changes from draw to draw."""


@singledispatch
def marginals(distribution: Any) -> Any:
    """The distributions of the k entries on their own, batch (..., k) and event (); None where they have no formula."""
    return None


@marginals.register
def _(independent: distributions.Independent) -> Any:
    one = len(independent.event_shape) == 1 and not independent.base_dist.event_shape
    return independent.base_dist if one else None


@marginals.register
def _(masked: dist.MaskedDistribution) -> Any:
    return marginals(masked.base_dist)


@marginals.register(distributions.MultivariateNormal)
@marginals.register(distributions.LowRankMultivariateNormal)
def _(normal: Any) -> Any:
    return dist.Normal(normal.mean, normal.variance.sqrt())


class Estimate(NamedTuple):
    """Numbers (k,), one a dimension, and their Monte Carlo standard errors (k,)."""

    values: Tensor
    errors: Tensor


def kl_by_dimension(vae: Any, batch: Batch, seed: int = 0) -> Estimate | None:
    """KL(q(z_j|x) || p(z_j)), mean over rows: in closed form where there is one, else Monte Carlo.

    Of a posterior with correlated dimensions it is that of each dimension on its own; they then add up to less than the
    whole, by the total correlation of q(z|x).

    Args:
        batch: n encoded rows.
        seed: of draws, where they are needed.

    Returns: in nats, (k,); None where dimensions have no distributions of their own in closed form.
    """
    with reading(vae, seed):
        check(vae, batch, strict=False)
        keys, common = row_keys(batch, seed), shared_key(batch.x, seed)
        height = max(1, CELLS // (FEW * batch.x.shape[1]))
        parts = []
        for start in range(0, len(batch.x), height):
            rows = slice(start, start + height)
            guide, model = traces(vae, batch.rows(rows), keys[rows], FEW, strict=False, shared=common)
            q, p = marginals(guide["z"]["fn"]), marginals(model["z"]["fn"])
            if (
                q is None or p is None or len(model["z"]["fn"].batch_shape) > 2
            ):  # a component of the prior is summed out
                return None
            parts.append(_terms(q, p, guide["z"]["value"]))
    terms = torch.cat(parts, 1).double().mean(1)  # rows of one draw share its sites: errors are over draws
    return Estimate(terms.mean(0), terms.std(0) / len(terms) ** 0.5)


def _terms(q: Any, p: Any, z: Tensor) -> Tensor:
    """KL(q || p) of every entry, (S, n, k), or log q - log p at z where there is no formula."""
    try:
        return kl_divergence(q, p).expand_as(z)
    except NotImplementedError:
        return q.log_prob(z) - p.log_prob(z)


def prior_variance(vae: Any, batch: Batch, seed: int = 0) -> Tensor:
    """Variance (k,) of z over the prior of rows as these, by its formula or from draws."""
    few = batch.rows(slice(2))
    with reading(vae, seed):
        _, model = traces(vae, few, row_keys(few, seed), 1, strict=False)
        alone = [n for n, s in model.items() if n != "x"] == ["z"]
        entries = marginals(model["z"]["fn"]) if alone and batch.c is None and batch.group is None else None
        if entries is not None:
            return entries.variance.double().flatten(0, -2)[0]
        many = torch.arange(SIMULATED, device=batch.x.device) % len(batch.x)
        return simulate(vae, SIMULATED, seed, batch.rows(many)).sites["z"][0].double().var(0)


def activity(mean: Tensor, variance: Tensor, num_draws: int | Tensor, scale: Tensor) -> Estimate:
    """Variance over rows of E_q[z_j], in prior variances (Burda et al. 2016), (k,).

    Means over draws scatter more than the means that they estimate: that part is taken off, which leaves no bias where
    the number of independent draws is right.

    Args:
        mean: over S draws, (n, k).
        variance: over the same draws, (n, k).
        num_draws: S, or how many independent draws they are worth, (k,) or (n, k).
        scale: the prior's variance, (k,).
    """
    noise = (variance / num_draws).mean(0)
    found = mean.var(0) - noise
    error = ((4 * found.clamp(min=0) * noise + 2 * noise**2) / len(mean)).sqrt()
    return Estimate(found / scale, error / scale)
