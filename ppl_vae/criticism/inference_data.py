"""To ArviZ: all that a model says of some rows, as the groups of its schema."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.criticism.labelled import SAMPLE, Column, Export, Labelled, attributes, cells, labelled, wrapped
from ppl_vae.data.schema import Batch, Schema
from ppl_vae.errors import OptionError, choose, whole
from ppl_vae.infer.draws import (
    Draws,
    Facts,
    batch_of,
    check,
    facts,
    joined,
    plated,
    row_blocks,
    row_keys,
    shared_key,
    told_apart,
)
from ppl_vae.infer.given import (
    AT_ONCE,
    Marginals,
    Sites,
    as_pyros,
    check_rows,
    draws_given,
    held,
    log_densities_of_shared,
    log_marginals,
    point_estimates,
    sites_of,
)
from ppl_vae.infer.noise import Keyed, mix
from ppl_vae.infer.psis import FEWEST, k_hats
from ppl_vae.infer.scope import reading

log = logging.getLogger(__name__)

__all__ = ["attributes", "export", "to_arviz", "wrapped"]

HEIGHT = 64
"""Rows of a block."""
LARGE = 2**27
"""Numbers above which a predictive group has to be asked for by name: 1 GiB of them."""
PRIOR = 0x5DEECE66D
"""Sets the noise of draws from the prior apart from that of the posterior, whose sites have the same names."""
PER_ROW = (SAMPLE, "row")

Group = dict[str, Labelled]


def to_arviz(
    vae: Any,
    data: Any,
    num_draws: int = 200,
    seed: int = 0,
    draws: Draws | None = None,
    groups: Iterable[str] | None = None,
    *,
    shared: dict[str, Any] | None = None,
    particles: int = 64,
) -> Any:
    """What a model says of n rows as ArviZ's InferenceData (0.2x) or an xarray DataTree (1.x).

    Dimensions: chain (1, but for the chains of a sampler), draw, row, latent, column. Groups, in the data's own units:

    - posterior: z and the other latent sites of the rows, or the probabilities of one that is summed out; sites that all
      rows share, such as weights or effects of groups.
    - prior: the same sites drawn from the model before it sees x.
    - posterior_predictive, prior_predictive: x, a data set a draw; complete also where observed cells are missing.
    - observed_data: x, NaN where a cell is missing. Here and above, a table of columns of several types has a variable a
      column instead of x, levels as codes with the attribute "levels".
    - constant_data: mask, where cells may be missing; covariates; group and label.
    - log_likelihood: x, log p(x_i | w_s) of row i given draw s of all that rows share, z integrated out by importance
      sampling. `loo` leaves rows out by it, and so does `az.loo` where w was drawn from its exact posterior. Where decoder
      or prior are point estimates it is left out, since those have seen the row: `az.loo` then fails instead of answering.
      Its attribute "mcse" is the mean standard error of these numbers, of which `az.loo` comes out too low by about the
      square a row. That holds as long as the encoder knows where z is under these weights: it may not where they are of
      another mode, as with the signs of z turned. Its attribute "doubtful" is the share of (draw, row) pairs that a few
      draws of z carry, log p(x_i | w_s) being likely too low, and the log warns of it: by Pareto k-hat from 1000 particles
      on, else where the weights are worth less than 10 draws (a quarter of the particles, if these are fewer than 40).
    - log_prior: log p(z_i | w_s) and log p(w_s).
    - sample_stats: lp, log p(x, z | w); log_q, log q(z | x), and log_weight, their difference; k_hat of each row's weights,
      from 1000 draws on; what a sampler says of itself; with log_likelihood also log_p_shared, log p(w, all rows), and
      log_q_shared, log q(w), and of the draws of z in each log p(x_i | w_s) the effective sample size ess_given_shared, and
      k_hat_given_shared.

    What was left out, and why, is in the attribute "left_out". Equal rows are told apart by their order, as in `impute`:
    their draws differ.

    Args:
        vae: a model with its guide.
        data: n rows.
        num_draws: S, where no draws are given.
        seed: of all noise.
        draws: of these rows, by any method of `posterior`; `stats["chains"]` says of how many chains, one after another.
        groups: names of those wanted; None: all that make sense. A log_likelihood beside point estimates has to be asked
            for by name, and names these in its attribute "point_estimates".
        shared: {site: (S, ...)} draws of what all rows share from its exact posterior, such as Pyro's NUTS gives, in the
            place of the guide's; z is drawn given these.
        particles: draws of z in each log p(x_i | w_s).

    Returns: ArviZ's `InferenceData`, or an xarray `DataTree`.

    Raises: OptionError for unknown groups, or one that this model does not have; DataError; ProgramError.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(20, 4)
        >>> inference = to_arviz(PPCA(2).fit(x), x, num_draws=5)
        >>> inference.posterior.z.shape, inference.posterior_predictive.x.dims
        ((1, 5, 20, 2), ('chain', 'draw', 'row', 'column'))
    """
    return labelled(export(vae, data, num_draws, seed, draws, groups, shared=shared, particles=particles))


def export(
    vae: Any,
    data: Any,
    num_draws: int = 200,
    seed: int = 0,
    draws: Draws | None = None,
    groups: Iterable[str] | None = None,
    *,
    shared: dict[str, Any] | None = None,
    particles: int = 64,
) -> Export:
    """As `to_arviz`, in NumPy arrays."""
    num_draws, particles = whole("num_draws", num_draws), whole("particles", particles)
    asked = None if groups is None else [groups] if isinstance(groups, str) else list(groups)
    for name in asked or ():
        choose("groups", name, GROUPS)
    batch = batch_of(vae, data)
    known = facts(vae, batch)
    with reading(vae, seed):
        check(vae, batch, read_guide=draws is None)
        sites, keys = sites_of(vae, batch), told_apart(row_keys(batch, seed))
        stats = {"method": "amortized"} if draws is None else {"method": "given", **draws.stats}
        if draws is not None:
            _check(vae, draws, batch, sites, shared)
            draws = _whole_chains(draws)
        elif shared is not None:
            draws = draws_given(vae, batch, as_pyros(shared, sites, batch.x), keys, seed)
        else:
            draws = joined(list(row_blocks(vae, batch, num_draws, seed, keys=keys)), 1)
        of = Source(vae, batch, draws, known, sites, keys, seed, particles, shared is not None)
        left_out = {name: why for name, reason in IMPOSSIBLE.items() if (why := reason(of))}
        if asked is None:
            left_out = {name: why for name, reason in UNWISE.items() if (why := reason(of))} | left_out
        elif refused := [name for name in asked if name in left_out]:
            raise OptionError(f"groups: got {refused[0]!r}, but {left_out[refused[0]]}")
        wanted = [name for name in GROUPS if (name in asked if asked is not None else name not in left_out)]
        found = {name: GROUPS[name](of) for name in wanted}
    made: dict[str, Any] = {name: value for name, value in stats.items() if isinstance(value, str | int | float)}
    if asked is None and left_out:
        made["left_out"] = "; ".join(f"{name}: {why}" for name, why in left_out.items())
    made = attributes(len(draws.z), seed, approximate=int(draws.log_q is not None), **made)
    chains = dict.fromkeys(OF_DRAWS, _chains(draws)[0])
    return Export({name: group for name, group in found.items() if group}, _coords(of), chains, made)


def _check(vae: Any, draws: Draws, batch: Batch, sites: Sites, shared: Any) -> None:
    if shared is not None:
        raise OptionError("shared: got it beside draws, which have their own, expected one of the two")
    got, expected = (draws.z.shape[1], sorted(draws.shared)), (len(batch.x), sorted(sites.shared))
    if got != expected:
        raise OptionError(
            f"draws: got {got[0]} rows and the shared sites {got[1]}, expected {expected[0]} rows and {expected[1]}"
        )
    check_rows(vae, batch, draws, sites)


def _chains(draws: Draws) -> tuple[int, int]:
    """How many chains of full length, and that length."""
    length = -(-len(draws.z) // int(draws.stats.get("chains", 1)))
    return len(draws.z) // length, length


def _whole_chains(draws: Draws) -> Draws:
    """Without the draws of a last chain that was cut short: a table of chains and draws has no place for them."""
    chains, length = _chains(draws)
    if len(draws.z) == chains * length:
        return draws

    def cut(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: cut(value) for name, value in part.items()}
        return None if part is None else part[: chains * length]

    parts: list[Any] = [*map(cut, draws[:-1]), draws.stats]
    return Draws(*parts)


@dataclass(frozen=True)
class Source:
    """What groups are made from: n encoded rows, draws for them, what the programs are, keys (n,) of the rows.

    Attributes:
        exact: what rows share was drawn from its exact posterior.
    """

    vae: Any
    batch: Batch
    draws: Draws
    known: Facts
    sites: Sites
    keys: Tensor
    seed: int
    particles: int
    exact: bool

    def simulated(self, names: Iterable[str], keys: Tensor) -> dict[str, Tensor]:
        """Run the model without x on every row, S times: sites "z" and "x" (S, n, ...), and shared ones (S, ...).

        Args:
            names: of the sites that are held at the draws; all others are drawn anew.
            keys: (n,) of the rows' noise.
        """
        n, num_draws, names, blocks = len(self.batch.x), len(self.draws.z), list(names), []
        shared_keys = mix(shared_key(self.batch.x, self.seed) + PRIOR)
        for start in range(0, n, HEIGHT):  # every block has the same shape: see `row_blocks`
            rows = torch.arange(start, start + HEIGHT, device=self.batch.x.device).clamp(max=n - 1)
            args, given = self.batch.rows(rows).arguments()
            masks = [torch.ones_like(mask) for mask in args[1:]]
            parts: list[dict[str, Tensor]] = []
            for first in range(0, num_draws, AT_ONCE):
                size = min(AT_ONCE, num_draws - first)
                trace = held(self.draws, names, slice(first, first + size), rows)
                program: Any = poutine.replay(plated(self.vae.model, size), trace=trace)
                with Keyed(keys[rows], first=first, strict=False, shared=shared_keys):
                    sites: Any = poutine.trace(program).get_trace(None, *masks, n=HEIGHT, **given).nodes
                drawn = {name: sites[name]["value"].expand(size, HEIGHT, -1) for name in ("z", "x")}
                parts.append(drawn | {name: sites[name]["value"] for name in self.sites.shared})
            blocks.append({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        of_rows = {name: torch.cat([block[name] for block in blocks], 1)[:, :n] for name in ("z", "x")}
        return of_rows | {name: blocks[0][name] for name in self.sites.shared}  # in every block the same

    @cached_property
    def from_prior(self) -> dict[str, Tensor]:
        """As `simulated`, with nothing held."""
        return self.simulated((), mix(self.keys + PRIOR))

    @cached_property
    def marginals(self) -> Marginals:
        """log p(x_i | w_s), (S, n)."""
        return log_marginals(self.vae, self.batch, self.draws.shared, self.keys, self.particles, self.seed)

    @cached_property
    def estimates(self) -> list[str]:
        """Names of the point estimates in decoder and prior."""
        return point_estimates(self.vae, self.batch, self.draws, self.sites)


# ---- the groups


def _posterior(of: Source) -> Group:
    others = {name: value for name, value in of.draws.sites.items() if name != "z"}
    return {
        "z": Labelled(_numpy(of.draws.z), (*PER_ROW, "latent")),
        **{name: _of_rows(name, _numpy(value)) for name, value in others.items()},
        **_of_all(of, of.draws.shared),
    }


def _prior(of: Source) -> Group:
    drawn = of.from_prior
    shared = {name: drawn[name] for name in of.sites.shared}
    return {"z": Labelled(_numpy(drawn["z"]), (*PER_ROW, "latent")), **_of_all(of, shared)}


def _posterior_predictive(of: Source) -> Group:
    return _x(of, of.simulated((*of.sites.local, *of.sites.shared), of.keys)["x"], PER_ROW)


def _prior_predictive(of: Source) -> Group:
    return _x(of, of.from_prior["x"], PER_ROW)


def _observed_data(of: Source) -> Group:
    x, mask = of.batch.x, of.batch.mask
    return _x(of, x if mask is None else torch.where(mask, x, torch.nan), ("row",))


def _constant_data(of: Source) -> Group:
    found: Group = {}
    batch, schema = of.batch, of.vae.schema
    if batch.mask is not None:
        found["mask"] = Labelled(_numpy(batch.mask), ("row", "column"))
    if batch.c is not None:
        given = schema.covariates
        own = _own(given, _numpy(batch.c))
        found |= cells(own, ("row", "covariate"), "covariates", _described(given, [True] * given.width))
    for name, codes in (("group", batch.group), ("label", batch.label)):
        if codes is not None:
            levels = np.array([*map(str, getattr(schema, name).levels), ""])  # code -1: unseen or unknown
            found[name] = Labelled(levels[_numpy(codes)], ("row",))
    return found


def _log_likelihood(of: Source) -> Group:
    found = of.marginals
    more: dict[str, Any] = {"particles": of.particles, "mcse": float(found.mcse.mean())}
    more["doubtful"] = float(found.doubtful.double().mean())
    if more["doubtful"]:
        log.warning(
            "log_likelihood: of %.3g %% of the pairs of a draw of the weights and a row a few of %d draws of z carry log "
            "p(x|w), which is likely too low there, by more than mcse says, and what leaves rows out by it is off: the "
            "encoder does not know z under these weights; expected more particles, or weights near its own",
            100 * more["doubtful"],
            of.particles,
        )
    if of.estimates:
        more["point_estimates"] = ", ".join(of.estimates)
    if not of.exact:
        more["weights"] = "drawn from q(w), not from the posterior: ppl_vae.loo corrects for it, az.loo does not"
    return {"x": Labelled(_numpy(found.log_p), PER_ROW, more)}


def _log_prior(of: Source) -> Group:
    found = {"z": Labelled(_numpy(of.draws.log_prior), PER_ROW)}
    if of.draws.shared:
        log_p, _, _ = log_densities_of_shared(of.vae, of.batch, of.draws.shared)
        found |= {name: Labelled(_numpy(value), (SAMPLE,)) for name, value in log_p.items()}
    return found


def _sample_stats(of: Source) -> Group:
    draws = of.draws
    found = {"lp": Labelled(_numpy(draws.log_lik + draws.log_prior), PER_ROW)}
    if draws.log_q is not None and draws.log_weight is not None and not of.known.point:
        found["log_q"] = Labelled(_numpy(draws.log_q), PER_ROW)
        found["log_weight"] = Labelled(_numpy(draws.log_weight), PER_ROW)
        if len(draws.z) >= FEWEST and of.known.proper:
            found["k_hat"] = Labelled(k_hats(_numpy(draws.log_weight)), ("row",))
    shapes = {tuple(draws.z.shape[a:b]): dims for (a, b), dims in STATS.items()}
    for name, value in draws.stats.items():
        values = _numpy(value) if isinstance(value, Tensor) else np.asarray(value)
        if values.shape in shapes:
            found[name] = Labelled(values, shapes[values.shape])
    if "marginals" in vars(of):
        _, log_p, log_q = log_densities_of_shared(of.vae, of.batch, draws.shared)
        found["log_p_shared"] = Labelled(_numpy(log_p + of.marginals.log_p.sum(1)), (SAMPLE,))
        found["ess_given_shared"] = Labelled(_numpy(of.marginals.ess), PER_ROW)
        if of.particles >= FEWEST:
            found["k_hat_given_shared"] = Labelled(_numpy(of.marginals.k_hat), PER_ROW)
        if not of.exact:
            found["log_q_shared"] = Labelled(_numpy(log_q), (SAMPLE,))
    return found


STATS = {(0, 2): PER_ROW, (1, 3): ("row", "latent"), (1, 2): ("row",)}
"""What a method says of itself, by the part of the shape (S, n, k) that it has."""
GROUPS: dict[str, Callable[[Source], Group]] = {
    "posterior": _posterior,
    "prior": _prior,
    "posterior_predictive": _posterior_predictive,
    "prior_predictive": _prior_predictive,
    "observed_data": _observed_data,
    "constant_data": _constant_data,
    "log_likelihood": _log_likelihood,
    "log_prior": _log_prior,
    "sample_stats": _sample_stats,
}
"""By name, in the order in which they are made: sample_stats reads what log_likelihood found."""
OF_DRAWS = ("posterior", "posterior_predictive", "log_likelihood", "log_prior", "sample_stats")
"""Groups whose draws are those of the posterior."""


# ---- why a group is left out; "" if it is not


def _improper(of: Source) -> str:
    return "" if of.known.proper else "the prior is improper and cannot be sampled"


def _summed_out(of: Source) -> str:
    return "x depends on a site that is summed out" if of.sites.sums_out else ""


def _without_weights(of: Source) -> str:
    if of.known.point or not of.known.proper:
        return "a point posterior or an improper prior has no log p(x)"
    return "" if of.sites.shared else "decoder and prior are point estimates, which have seen the rows"


def _large(of: Source) -> str:
    size = len(of.draws.z) * of.batch.x.numel()
    return "" if size <= LARGE else f"{size} numbers; ask for it by name, or for fewer rows"


def _without_uncertainty(of: Source) -> str:
    shared = next(iter(of.draws.shared.values()), None)
    if shared is None:
        return ""
    if (distinct := len(shared.flatten(1).unique(dim=0))) <= of.draws.stats.get("chains", 0):
        return f"each chain of z has one draw of what all rows share, {distinct} in all"
    if not of.estimates:
        return ""
    first = ", ".join(of.estimates[:2]) + (", ..." if len(of.estimates) > 2 else "")
    return f"{first} are point estimates, which have seen the rows; ask for it by name to hold them fixed"


IMPOSSIBLE: dict[str, Callable[[Source], str]] = {
    "prior": _improper,
    "prior_predictive": _improper,
    "posterior_predictive": _summed_out,
    "log_likelihood": _without_weights,
}
UNWISE: dict[str, Callable[[Source], str]] = {
    "posterior_predictive": _large,
    "prior_predictive": _large,
    "log_likelihood": _without_uncertainty,
}
"""Unless it is asked for by name."""


# ---- labels and units


def _of_rows(name: str, values: np.ndarray) -> Labelled:
    dims = ("class",) if name == "y" and values.ndim == 3 else [f"{name}_dim_{j}" for j in range(values.ndim - 2)]
    return Labelled(values, (*PER_ROW, *dims))


def _of_all(of: Source, values: dict[str, Tensor]) -> Group:
    """Shared sites, without the dimensions that are Pyro's."""
    sites = {name: of.sites.shared[name] for name in values}
    return {
        name: Labelled(_numpy(value).reshape(sites[name].shape(len(value))), (SAMPLE, *sites[name].dims))
        for name, value in values.items()
    }


def _x(of: Source, x: Tensor, dims: tuple[str, ...]) -> Group:
    """Encoded cells (..., d) in their own units."""
    schema, mask = of.vae.schema, of.batch.mask
    if schema is None:
        return {"x": Labelled(_numpy(x), (*dims, "column"))}
    complete = [True] * schema.width if mask is None else mask.all(0).tolist()
    return cells(_own(schema, _numpy(x)), (*dims, "column"), "x", _described(schema, complete))


def _own(schema: Schema, x: np.ndarray) -> np.ndarray:
    """In the precision that `Schema.decode` has."""
    own = x * np.asarray(schema.scale or 1.0) + np.asarray(schema.loc or 0.0)
    return own.astype(np.float32) if x.dtype == np.float32 and schema.precision == "float32" else own


def _described(schema: Schema, complete: list[bool]) -> list[Column]:
    levels = schema.levels or (None,) * schema.width
    return [Column(*column) for column in zip(schema.names, schema.column_types, levels, complete)]


def _coords(of: Source) -> dict[str, Any]:
    schema = of.vae.schema
    if schema is None:
        return {"column": [f"x{j}" for j in range(of.batch.x.shape[1])]}
    levels = {"groups": schema.group, "class": schema.label}
    return {
        "column": list(schema.names),
        "covariate": [] if schema.covariates is None else list(schema.covariates.names),
        **{dim: list(map(str, column.levels)) for dim, column in levels.items() if column is not None},
    }


def _numpy(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()
