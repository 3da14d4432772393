"""Missing values: the likelihood of the cells that were observed."""

import math
from functools import singledispatch
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from ppl_vae.errors import ProgramError
from ppl_vae.model.mixed import Columnwise, entrywise

NEUTRAL = 1 / math.sqrt(2 * math.pi)
"""Standard deviation of a normal whose log density at its mean is 0."""


@singledispatch
def masked(distribution: Any, mask: Tensor) -> dist.Distribution:
    """p(observed cells | z), from p(x|z) of event (d,).

    A joint normal comes back as its exact marginal, times a factor for each hole that is 1 at 0: its `mean` and its
    draws mean nothing there.

    Args:
        distribution: of batch (..., n) and event (d,).
        mask: (n, d) of bool, True where x was observed. Elsewhere x has to be what `inside` says.

    Raises: ProgramError for a joint family whose marginals have no formula here.
    """
    raise ProgramError(
        f"mask: got the likelihood {type(distribution).__name__}, whose entries depend on each other, expected one "
        "distribution an entry with .to_event(1), or a multivariate normal"
    )


@masked.register
def _(independent: torch.distributions.Independent, mask: Tensor) -> dist.Distribution:
    return entrywise(independent).mask(mask).to_event(1)


@masked.register
def _(normal: torch.distributions.LowRankMultivariateNormal, mask: Tensor) -> dist.Distribution:
    return dist.LowRankMultivariateNormal(
        torch.where(mask, normal.loc, 0.0),
        torch.where(mask[..., None], normal.cov_factor, 0.0),
        torch.where(mask, normal.cov_diag, NEUTRAL**2),
    )


@masked.register
def _(normal: torch.distributions.MultivariateNormal, mask: Tensor) -> dist.Distribution:
    """R'R = L L' + diag(holes), by QR: as well conditioned as L, where a Cholesky factor of L L' may fail."""
    rows = torch.where(mask[..., None], normal.scale_tril, 0.0)
    holes = torch.diag_embed(~mask * rows.new_tensor(NEUTRAL)).expand_as(rows)
    upper = torch.linalg.qr(torch.cat([rows, holes], -1).mT).R
    signs = upper.diagonal(dim1=-2, dim2=-1).sign()  # LAPACK's may be negative, a Cholesky factor's are not
    return dist.MultivariateNormal(torch.where(mask, normal.loc, 0.0), scale_tril=upper.mT * signs[..., None, :])


@singledispatch
def inside(distribution: Any) -> Tensor:
    """A value in the support of every entry, broadcastable to (..., d), to stand in the holes.

    A masked log density is not used there, but its gradient is 0 times that at this value, which has to be finite.
    """
    support = distribution.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support.is_discrete:
        return torch.as_tensor(getattr(support, "lower_bound", 0.0), dtype=torch.get_default_dtype())
    return biject_to(support)(torch.zeros(()))


@inside.register(torch.distributions.Independent)
@inside.register(dist.MaskedDistribution)
def _(wrapped: Any) -> Tensor:
    return inside(wrapped.base_dist)


@inside.register
def _(columnwise: Columnwise) -> Tensor:
    values = [inside(part).to(columnwise.columns.device) for part in columnwise.parts]
    lead = torch.broadcast_shapes(*(value.shape[:-1] for value in values))  # () unless a support differs between rows
    return columnwise.join([value.expand(*lead, size) for value, size in zip(values, columnwise.sizes)])
