"""The two programs at given draws of what all rows share: log p(x_i | w), and what of a model is no draw but an estimate."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae.data.schema import Batch
from ppl_vae.errors import OptionError
from ppl_vae.infer.draws import (
    Draws,
    is_local,
    jacobians,
    joined,
    log_densities,
    model_sites,
    row_blocks,
    row_keys,
    traces,
)
from ppl_vae.infer.joint import holding
from ppl_vae.infer.noise import GAMMA, mix
from ppl_vae.infer.psis import FEWEST, k_hats, threshold
from ppl_vae.model.vae import global_sites

AT_ONCE = 128
"""Draws of a block of rows."""

Sizes = tuple[tuple[str, int], ...]


class Shared(NamedTuple):
    """A latent site that all rows share: names and sizes of the dimensions of its plate, if it has one, and of its event."""

    plate: Sizes
    event: Sizes

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the dimensions of a draw."""
        return tuple(name for name, _ in self.plate + self.event)

    def shape(self, draws: int) -> tuple[int, ...]:
        """Of so many draws."""
        return (draws, *(size for _, size in self.plate + self.event))

    def pyros(self, draws: int) -> tuple[int, ...]:
        """The same under a plate of draws, which stands to the left of a site's own, or of a dimension of size 1."""
        return (draws, *([size for _, size in self.plate] or [1]), *(size for _, size in self.event))


class Sites(NamedTuple):
    """The latent sites of two programs.

    Attributes:
        local: names of those of the rows that the guide samples.
        shared: those that all rows share, by name.
        sums_out: whether x depends on a site that is summed out.
    """

    local: tuple[str, ...]
    shared: dict[str, Shared]
    sums_out: bool


def sites_of(vae: Any, batch: Batch) -> Sites:
    """Run the programs on two encoded rows; to be called inside `isolated`, as all here."""
    few = batch.rows(slice(2))
    guide, model = traces(vae, few, row_keys(few, 0), 1, strict=False)
    prior = poutine.trace(global_sites).get_trace(getattr(vae, "prior", None)).nodes
    k = guide["z"]["value"].shape[-1]
    shared = {}
    for name, site in model.items():
        if is_local(site) or site["is_observed"]:
            continue
        plate = [(frame.name, frame.size) for frame in site["cond_indep_stack"] if frame.name != "draws"]
        event = [(f"{name}_dim_{j}", size) for j, size in enumerate(site["fn"].event_shape)]
        if name in prior and event and event[-1][1] == k:
            event[-1] = ("latent", k)
        shared[name] = Shared(tuple(plate), tuple(event))
    local = tuple(name for name, site in guide.items() if is_local(site))
    return Sites(local, shared, len(model["x"]["fn"].batch_shape) > 2)


class At(Messenger):
    """Puts the sites of a program at given values."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]


class Given:
    """The programs of a model whose guide has what rows share at given values (S, ...)."""

    def __init__(self, vae: Any, values: dict[str, Tensor]) -> None:
        self.vae, self.values, self.schema, self.model = vae, values, vae.schema, vae.model

    def guide(self, *args: Any, **given: Any) -> Any:
        with At(self.values):
            return self.vae.guide(*args, **given)


def as_pyros(values: dict[str, Any], sites: Sites, like: Tensor) -> dict[str, Tensor]:
    """Draws of what rows share, {name: (S, ...)}, shaped as Pyro has them under a plate of draws.

    Raises: OptionError for other sites or shapes.
    """
    if not values or values.keys() != sites.shared.keys():
        raise OptionError(f"shared: got the sites {sorted(values)}, expected {sorted(sites.shared)}")
    found = {name: torch.as_tensor(value).to(like) for name, value in values.items()}
    draws = len(next(iter(found.values())))
    for name, site in sites.shared.items():
        if found[name].numel() != math.prod(site.shape(draws)):
            raise OptionError(
                f"shared: got the shape {tuple(found[name].shape)} of site {name!r}, expected {site.shape(draws)}"
            )
    return {name: found[name].reshape(site.pyros(draws)) for name, site in sites.shared.items()}


def draws_given(vae: Any, batch: Batch, shared: dict[str, Tensor], keys: Tensor, seed: int) -> Draws:
    """Draws of z from the guide, one for each of S draws of what rows share.

    Args:
        shared: {name: (S, ...)}, as Pyro has them.
        keys: (n,) of the rows' noise.
    """
    parts = []
    for first, size, some in _slices(shared, AT_ONCE):
        blocks = row_blocks(Given(vae, some), batch, size, seed, keys=_numbered(keys, first))
        parts.append(joined(list(blocks), 1))
    return joined(parts, 0)


class Marginals(NamedTuple):
    """Estimates of log p(x_i | w_s), each (S, n).

    Attributes:
        log_p: the log of the mean over particles of p(x, z|w) / q(z|x, w).
        mcse: its standard error; NaN of one particle.
        ess: effective sample size of these weights, (sum of them)^2 / sum of their squares, from 1 to `particles`.
        k_hat: their Pareto k-hat; NaN of fewer than 1000 particles.
        particles: K.
    """

    log_p: Tensor
    mcse: Tensor
    ess: Tensor
    k_hat: Tensor
    particles: int

    @property
    def doubtful(self) -> Tensor:
        """(S, n) of bool: by k-hat, or of too few particles for it where the weights are worth less than 10 of them, or a
        quarter of them if that is less."""
        if self.particles < FEWEST:
            return self.ess < min(10, self.particles / 4)
        return self.k_hat > threshold(self.particles)


def log_marginals(
    vae: Any, batch: Batch, shared: dict[str, Tensor], keys: Tensor, particles: int, seed: int
) -> Marginals:
    """log p(x_i | w_s) by importance sampling of z from the guide at each draw of w.

    Each draw of w has particles of its own, so that their errors are independent between draws.

    Args:
        shared: {name: (S, ...)} draws of w, as Pyro has them.
        keys: (n,) of the rows' noise.
        particles: draws of z.
    """
    found, at_once = [], max(1, AT_ONCE // particles)
    for first, size, some in _slices(shared, at_once):
        if at_once > 1:  # one alone holds for however many particles
            some = {name: value.repeat_interleave(particles, 0) for name, value in some.items()}
        own = _numbered(keys, first + 1)  # 0 is that of the draws themselves
        blocks = row_blocks(Given(vae, some), batch, size * particles, seed, strict=False, keys=own)
        log_weight = joined(list(blocks), 1).log_weight.unflatten(0, (size, particles))
        log_mean = log_weight.logsumexp(1) - math.log(particles)
        square = (2 * (log_weight - log_mean[:, None])).exp().mean(1) - 1
        error = (square.clamp(min=0) / (particles - 1)).sqrt() if particles > 1 else torch.full_like(square, math.nan)
        ess = particles / (1 + square.clamp(min=0))
        k_hat = torch.full_like(ess, math.nan)
        if particles >= FEWEST:
            columns = log_weight.movedim(1, 0).reshape(particles, -1)
            k_hat = torch.from_numpy(k_hats(columns.cpu().numpy())).to(ess).view_as(ess)
        found.append((log_mean, error, ess, k_hat))
    log_p, error, ess, k_hat = (torch.cat(part) for part in zip(*found))
    return Marginals(log_p, error, ess, k_hat, particles)


def log_densities_of_shared(
    vae: Any, batch: Batch, shared: dict[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Of draws w: log p of each site, log p of all of them and of what is observed given them, log q; each (S,)."""
    few = batch.rows(slice(2))
    size = len(next(iter(shared.values())))
    guide, model = traces(Given(vae, shared), few, row_keys(few, 0), size, strict=False)

    def log_prob(site: Any) -> Tensor:
        return site["fn"].log_prob(site["value"]).double().expand(size, -1).sum(1)

    log_p = {name: log_prob(site) for name, site in model.items() if not is_local(site)}
    log_q = [log_prob(site) for site in guide.values() if not is_local(site)]
    start = torch.zeros(size, dtype=torch.float64)
    return {name: log_p[name] for name in shared}, sum(log_p.values(), start=start), sum(log_q, start=start)


def point_estimates(vae: Any, batch: Batch, draws: Draws, sites: Sites) -> list[str]:
    """Names of the parameters of decoder, prior and classes that are learned and that log p(x, z, w) depends on."""
    parts = {name: getattr(vae, name, None) for name in ("decoder", "prior", "classes")}
    learned = {
        f"{part}.{name}": parameter
        for part, module in parts.items()
        if isinstance(module, torch.nn.Module)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    trace = held(draws, (*sites.shared, *sites.local), slice(0, 1), slice(2))
    with torch.enable_grad():
        model = model_sites(vae, batch.rows(slice(2)), trace, 1)
        terms = [site["fn"].log_prob(site["value"]).sum() for site in model.values()]
        total = sum(terms, start=torch.zeros(()))
    if not learned or not total.requires_grad:
        return []
    gradients = torch.autograd.grad(total, list(learned.values()), allow_unused=True)
    return [name for name, gradient in zip(learned, gradients) if gradient is not None]


def check_rows(vae: Any, batch: Batch, draws: Draws, sites: Sites) -> None:
    """Refuse draws of other rows, or by another model: by log p(x|z) at the first of them.

    Raises: OptionError.
    """
    first = held(draws, (*sites.local, *sites.shared), slice(1), slice(None))
    log_lik = log_densities(model_sites(vae, batch, first, 1), jacobians(vae, batch), batch)[1]
    if other := (~torch.isclose(log_lik, draws.log_lik[:1], rtol=1e-3, atol=1e-2)).nonzero().tolist():
        row = other[0][1]
        raise OptionError(
            f"draws: got log p(x|z) = {draws.log_lik[0, row]:.6g} at the first draw of row {row}, which this model puts at "
            f"{log_lik[0, row]:.6g}; expected draws of these rows by this very model"
        )


def held(draws: Draws, names: Iterable[str], which: slice, rows: Any) -> Any:
    """A trace, for a replay, of some sites at some of the draws, and rows."""
    shared = draws.shared
    return holding(
        {name: shared[name][which] if name in shared else draws.sites[name][which][:, rows] for name in names}
    )


def _numbered(keys: Tensor, number: int) -> Tensor:
    """Keys (n,) of noise of its own for each block of draws."""
    return mix(keys + mix(torch.full_like(keys, number) * GAMMA))


def _slices(values: dict[str, Tensor], size: int) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
    """Some draws at a time: number of the first, how many, their values."""
    draws = len(next(iter(values.values())))
    for first in range(0, draws, size):
        some = {name: value[first : first + size] for name, value in values.items()}
        yield first, min(size, draws - first), some
