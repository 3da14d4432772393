"""log p(x, z) of given rows as a function of z: what every method that moves z stands on."""

from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from ppl_vae.data.schema import Batch
from ppl_vae.errors import ProgramError
from ppl_vae.infer.draws import is_local, jacobians, log_densities, model_sites, traces
from ppl_vae.infer.noise import Keyed
from ppl_vae.infer.rules import base

NUMBERS = 2**23
"""Numbers of the data that draws hold at a time."""


def blocks(batch: Batch, num_draws: int) -> Iterator[tuple[int, Batch]]:
    """Some rows at a time, and where they start: as many as so many draws of each can hold."""
    height = max(1, NUMBERS // (num_draws * batch.x.shape[1]))
    for start in range(0, len(batch.x), height):
        yield start, batch.rows(slice(start, start + height))


class Joint:
    """log p(z) and log p(x|z) of n encoded rows at any z, S draws at a time; to be used inside `isolated`.

    Sites that all rows share are held at S draws from their posterior, one for each draw of z.

    Args:
        vae: a model with its guide.
        batch: n encoded rows.
        keys: (n,) of the rows' noise.
        num_draws: S.
        shared: (1,) key of the noise of sites that all rows share.

    Attributes:
        q: q(z|x), batch (S, n).
        start: z (S, n, k) from the guide.
        to_z: from coordinates without constraints u (S, n, k') to z.
        shared: the sites that all rows share, {name: (S, ...)}.

    Raises: ProgramError where z is not the only latent site of the rows, or has no coordinates without constraints.
    """

    def __init__(self, vae: Any, batch: Batch, keys: Tensor, num_draws: int, shared: Tensor) -> None:
        guide, model = traces(vae, batch, keys, num_draws, shared=shared)
        if others := [name for name, site in guide.items() if is_local(site) and name != "z"]:
            raise ProgramError(
                f"site {others[0]!r}: got it beside 'z'; expected z to be the only latent site of the rows"
            )
        prior = model["z"]["fn"]
        try:
            self.to_z = coordinates(prior.support)
        except NotImplementedError:
            raise ProgramError(
                f"site 'z': got the prior {type(base(prior)).__name__}, which has no coordinates without constraints; "
                "expected a continuous z on R^k, a simplex or an interval, or a method that only weighs draws"
            ) from None
        self.vae, self.batch, self.num_draws = vae, batch, num_draws
        self.q, self.start = guide["z"]["fn"], guide["z"]["value"]
        self.shared = {name: site["value"] for name, site in guide.items() if not is_local(site)}

    def prior_draws(self, keys: Tensor) -> Tensor:
        """u (S, n, k') of z from the prior, by noise of the rows' keys (n,)."""
        with Keyed(keys):
            sites = model_sites(self.vae, self.batch, holding(self.shared), self.num_draws, enumerate=False)
        return self.to_z.inv(sites["z"]["value"])

    def terms(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log prior of u (S, n), that of z with the Jacobian of `to_z`, and log p(x|z) (S, n); float64."""
        z = self.to_z(u)
        log_prior, log_lik = self.at(z)
        jacobian = self.to_z.log_abs_det_jacobian(u, z)
        return log_prior + jacobian.reshape(*u.shape[:2], -1).sum(-1), log_lik

    def at(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log p(z) and log p(x|z), each (S, n) float64, in nats of the data in its own units."""
        return self._at(z, self.shared)

    def at_many(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The same without gradients, for more draws than memory should hold at a time."""
        size = max(1, NUMBERS // self.batch.x.numel())
        shared = [dict(zip(self.shared, part)) for part in zip(*(v.split(size) for v in self.shared.values()))]
        with torch.no_grad():
            parts = [self._at(part, shared[i] if shared else {}) for i, part in enumerate(z.split(size))]
        log_prior, log_lik = (torch.cat(part) for part in zip(*parts))
        return log_prior, log_lik

    def _at(self, z: Tensor, shared: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        sites = model_sites(self.vae, self.batch, holding({"z": z, **shared}), len(z))
        return log_densities(sites, jacobians(self.vae, self.batch), self.batch)[:2]


def coordinates(support: Any) -> Any:
    """The map from numbers without constraints to a support; that of a mixture is that of its parts."""
    return biject_to(support.base_constraint if type(support).__name__ == "MixtureSameFamilyConstraint" else support)


def holding(values: dict[str, Tensor], num_draws: int | None = None) -> poutine.Trace:
    """A trace that holds sites at these values, each of one draw expanded to `num_draws`."""
    trace = poutine.Trace()
    for name, value in values.items():
        value = value if num_draws is None else value.expand(num_draws, *value.shape[1:])
        trace.add_node(name, name=name, type="sample", value=value, is_observed=False, infer={})
    return trace
