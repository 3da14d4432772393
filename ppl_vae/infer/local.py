"""p(z|x) of given rows, by one method or another: all give the same `Draws`."""

import warnings
from collections.abc import Callable
from inspect import Parameter, signature
from math import ceil
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from ppl_vae.data.schema import Batch
from ppl_vae.errors import OptionError, choose, number, whole
from ppl_vae.infer import hmc
from ppl_vae.infer.curvature import mode
from ppl_vae.infer.draws import Draws, batch_of, check, each_block, facts, joined, row_blocks, row_keys
from ppl_vae.infer.joint import Joint, blocks
from ppl_vae.infer.noise import mix, step_keys, uniforms
from ppl_vae.infer.psis import installed, k_hats
from ppl_vae.infer.refine import RowFlow, RowNormal, normals, refined, start
from ppl_vae.infer.scope import reading

STARTS = 32
"""Draws of the encoder from whose mean and standard deviation the others start."""


def posterior(
    vae: Any, data: Any, method: str = "amortized", num_draws: int = 64, seed: int = 0, **options: Any
) -> Draws:
    """Draws from p(z|x), or from an approximation of it, for every row.

    Args:
        vae: a model with its guide.
        data: n rows.
        method: "amortized", the encoder's (Kingma & Welling 2013); "svi" and "flow", a mean-field normal (Kim et al. 2018)
            and a normalizing flow (Cremer et al. 2018) for each row, started at the encoder's answer and refined; "laplace",
            a normal at the mode (Tierney & Kadane 1986); "sir", the encoder's draws resampled by their weights (Rubin
            1987); "hmc", chains of Hamiltonian Monte Carlo, each accepted on its own (Neal 2011); "nuts", Pyro's, all rows
            in one trajectory (Hoffman & Gelman 2014).
        num_draws: S, of all chains together.
        seed: of the noise. A row's draws do not depend on other rows, but for "nuts"; rounding, which does, may lead chains
            of "hmc" elsewhere.
        options: of "svi" and "flow": `steps` (500; 1000), `particles` (16), `lr` (0.05; 0.02); of "laplace": `steps` (300),
            `lr` (0.05); of "sir": `candidates` (20 for each draw); of "hmc": `chains` (16, or fewer, of 25 draws at least),
            `warmup` (300), `leapfrogs` (8); of "nuts": `chains` (4), `warmup` (300).

    Returns: `Draws`. log_q and log_weight are None for "sir", "hmc" and "nuts". Its `.stats`: "method"; by row "elbo" (n,),
        the bound of that row's own q, of "svi", "flow" and "laplace", and "k_hat" (n,) of its weights; "k_hat" and "ess"
        (n,), of "sir"'s weights; "r_hat"
        and "ess" (n, k), "divergences" and "accept" (n,) of "hmc"; and "chains", how many there are, one after another.

    Raises: OptionError; ProgramError where z cannot be moved; DataError.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> ppca = PPCA(2).fit(x)
        >>> exact = posterior(ppca, x[:3], "hmc", num_draws=2000)
        >>> bool((exact.z.mean(0) - ppca.posterior(x[:3]).mean).abs().max() < 0.1)
        True
    """
    make = checked_options(method, options)
    num_draws = whole("num_draws", num_draws)
    batch = batch_of(vae, data)
    programs = facts(vae, batch)
    if method != "amortized" and (programs.point or not programs.proper):
        what = "a point posterior" if programs.point else "an improper prior"
        raise OptionError(f"method: got {method!r} for {what}, expected 'amortized'")
    found = make(vae, batch, num_draws, seed, **options)
    return found._replace(stats={"method": method, **found.stats})


def checked_options(method: str, options: dict[str, Any], what: str = "method") -> Callable[..., Draws]:
    """The function of a method, whose options these are.

    Raises: OptionError.
    """
    make = choose(what, method, METHODS)
    known = {name for name, p in signature(make).parameters.items() if p.kind is Parameter.KEYWORD_ONLY}
    if unknown := sorted(options.keys() - known):
        raise OptionError(f"posterior: got the options {unknown} with {method!r}, expected some of {sorted(known)}")
    for name, value in options.items():
        number(name, value) if name == "lr" else whole(name, value, 0 if name == "warmup" else 1)
    return make


def _amortized(vae: Any, batch: Batch, num_draws: int, seed: int) -> Draws:
    """The encoder's own q(z|x) (Kingma & Welling 2013)."""
    return joined(each_block(vae, batch, num_draws, seed, lambda block: block), 1)


def _by_block(
    vae: Any, batch: Batch, held: int, seed: int, draw: Callable[[Callable[..., Joint], Tensor], Draws]
) -> Draws:
    """`draw` for as many rows as `held` draws of each allow, given a maker of joints of S draws, and the rows' keys."""
    with reading(vae, seed):
        check(vae, batch, read_guide=False)
        found = []
        for _, block in blocks(batch, max(held, STARTS)):
            keys = row_keys(block, seed)

            def joint(draws: int, step: int = 0, block: Batch = block, keys: Tensor = keys) -> Joint:
                return Joint(vae, block, keys, draws, step_keys(torch.zeros_like(keys[:1]), seed, step))

            found.append(draw(joint, keys))
    return _together(found)


def _together(found: list[Draws]) -> Draws:
    """Blocks of rows as one, their stats too."""
    return joined(found, 1)._replace(stats=_stats([block.stats for block in found]))


def _stats(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Those of blocks of rows as one: arrays follow each other, what is the same for all stays."""
    return {
        name: np.concatenate([part[name] for part in parts]) if isinstance(value, np.ndarray) else value
        for name, value in parts[0].items()
    }


def _own_family(make: Callable[..., Any], steps: int, lr: float, text: str) -> Callable[..., Draws]:
    """Variational inference for each row on its own."""

    def method(
        vae: Any, batch: Batch, num_draws: int, seed: int, *, steps: int = steps, particles: int = 16, lr: float = lr
    ) -> Draws:
        def draw(joint: Callable[..., Joint], keys: Tensor) -> Draws:
            one = joint(particles)

            def terms(step: int) -> hmc.Terms:  # what all rows share is drawn anew each step
                return (joint(particles, step) if one.shared else one).terms

            family, fixed = make(*start(joint(STARTS)), keys), not one.shared
            q = refined(family, terms, mix(keys + 1), steps, particles, lr, fixed)
            return _weighed(joint, *q(normals(mix(keys + 2), num_draws, q.parameters[0], 0)))

        return _by_block(vae, batch, particles, seed, draw)

    method.__doc__ = text
    return method


def _weighed(make: Callable[..., Joint], u: Tensor, log_q: Tensor) -> Draws:
    """Draws u (S, n, k) and log q(u) (S, n) as z with its densities and weights; the bound of each row's q."""
    few = make(1)
    joint = make(len(u)) if few.shared else few  # each draw with its own of what all rows share
    z = joint.to_z(u)
    log_prior, log_lik = joint.at_many(z)
    log_q = log_q - joint.to_z.log_abs_det_jacobian(u, z).reshape(*u.shape[:2], -1).sum(-1)
    log_weight = log_prior + log_lik - log_q
    stats = {"elbo": log_weight.mean(0).cpu().numpy(), "k_hat": k_hats(log_weight.cpu().numpy())}
    return Draws(z, {"z": z}, log_lik, log_prior, log_q, log_weight, None, joint.shared, stats)


def _laplace(vae: Any, batch: Batch, num_draws: int, seed: int, *, steps: int = 300, lr: float = 0.05) -> Draws:
    """A normal at the mode of each row's p(z|x), by its curvature there (Tierney & Kadane 1986)."""

    def draw(joint: Callable[..., Joint], keys: Tensor) -> Draws:
        one = joint(1)
        if one.shared:  # each draw of these has a mode of its own
            raise OptionError(
                f"method: got 'laplace' with the site {next(iter(one.shared))!r} that all rows share; "
                "expected 'svi', 'flow' or 'hmc'"
            )
        at = mode(one.terms, start(joint(STARTS))[0], steps, lr)
        noise = normals(mix(keys + 2), num_draws, at.u, 0)
        u = at.u + torch.einsum("nij,snj->sni", at.factor, noise)
        return _weighed(joint, u, dist.MultivariateNormal(at.u, scale_tril=at.factor).log_prob(u).double())

    return _by_block(vae, batch, 1, seed, draw)


def _sir(vae: Any, batch: Batch, num_draws: int, seed: int, *, candidates: int | None = None) -> Draws:
    """The encoder's draws resampled by their weights (Rubin 1987)."""
    candidates, keys = candidates or 20 * num_draws, mix(row_keys(batch, seed) + 3)
    with reading(vae, seed):
        check(vae, batch)
        found, met = [], 0
        for block in row_blocks(vae, batch, candidates, seed, pad=False):
            rows = block.z.shape[1]
            found.append(_resampled(block, uniforms(keys[met : met + rows], num_draws, 1)[..., 0]))
            met += rows
    return _together(found)


def _resampled(block: Draws, uniform: Tensor) -> Draws:
    """Draws picked with replacement by their weights, at uniform noise (S, n)."""
    share = block.log_weight.T.softmax(1)
    cumulative = share.cumsum(1)
    chosen = torch.searchsorted(cumulative / cumulative[:, -1:], uniform.T.contiguous()).T

    def pick(values: Tensor) -> Tensor:
        where = chosen.view(*chosen.shape, *(1,) * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
        return values.gather(0, where)

    stats = {"ess": (1 / (share**2).sum(1)).cpu().numpy(), "k_hat": k_hats(block.log_weight.cpu().numpy())}
    sites = {name: pick(value) for name, value in block.sites.items()}
    return Draws(pick(block.z), sites, pick(block.log_lik), pick(block.log_prior), None, None, stats=stats)


def _hmc(
    vae: Any,
    batch: Batch,
    num_draws: int,
    seed: int,
    *,
    chains: int | None = None,
    warmup: int = 300,
    leapfrogs: int = 8,
) -> Draws:
    """Chains of Hamiltonian Monte Carlo, each accepted on its own (Neal 2011)."""
    chains = min(chains or max(1, min(16, num_draws // 25)), num_draws)  # none too short to be judged
    length = ceil(num_draws / chains)

    def draw(joint: Callable[..., Joint], keys: Tensor) -> Draws:
        target, (_, scale) = joint(chains), start(joint(STARTS))
        begin = target.to_z.inv(target.start)
        ran = hmc.sample(target.terms, begin, scale, mix(keys + 1), length, warmup, leapfrogs)
        stats = {"divergences": ran.divergences.cpu().numpy(), "accept": ran.accept.cpu().numpy()}
        return _of_chains(target, ran.u, num_draws, stats)

    return _by_block(vae, batch, chains, seed, draw)


def _nuts(vae: Any, batch: Batch, num_draws: int, seed: int, *, chains: int = 4, warmup: int = 300) -> Draws:
    """Pyro's no-U-turn sampler, all rows in one trajectory (Hoffman & Gelman 2014)."""
    chains = min(chains, max(1, num_draws // 4))  # Pyro wants four draws of each
    length = max(ceil(num_draws / chains), 4)

    def draw(joint: Callable[..., Joint], keys: Tensor) -> Draws:
        target, alone, found, divergences = joint(chains), joint(1), [], 0
        for chain, begin in enumerate(target.to_z.inv(target.start)):
            alone.shared = {name: value[chain : chain + 1] for name, value in target.shared.items()}

            def energy(sites: dict[str, Tensor], terms: hmc.Terms = alone.terms, begin: Tensor = begin) -> Tensor:
                log_prior, log_lik = terms(sites["u"][None].to(begin))
                return -(log_prior + log_lik).sum()

            with torch.enable_grad():
                kernel = NUTS(potential_fn=energy)
                run = MCMC(kernel, length, warmup, initial_params={"u": begin.double()}, disable_progbar=True)
                run.run()
            found.append(run.get_samples()["u"].to(begin))
            divergences += sum(map(len, run.diagnostics()["divergences"].values()))
        stats = {"divergences": np.full(len(keys), divergences)}
        return _of_chains(target, torch.stack(found), num_draws, stats)

    return _by_block(vae, batch, chains, seed, draw)


def _of_chains(joint: Joint, u: Tensor, num_draws: int, stats: dict[str, Any]) -> Draws:
    """Draws of chains u (C, T, n, k) one after another, each chain with its own draw of what all rows share."""
    z = joint.to_z(u)
    found = [joint.at(each) for each in z.unbind(1)]  # a draw of every chain at a time
    log_prior, log_lik = (torch.stack(part, 1).flatten(0, 1)[:num_draws] for part in zip(*found))
    z, shared = (
        z.flatten(0, 1)[:num_draws],
        {k: v.repeat_interleave(u.shape[1], 0)[:num_draws] for k, v in joint.shared.items()},
    )
    figures = {"chains": len(u), **convergence(u.cpu().numpy()), **stats}
    return Draws(z, {"z": z}, log_lik, log_prior, None, None, shared=shared, stats=figures)


def convergence(chains: np.ndarray) -> dict[str, np.ndarray]:
    """R-hat and the bulk effective sample size (n, k) of chains (C, T, n, k), by ArviZ (Vehtari et al. 2021).

    NaN where there are too few to tell: of one chain for R-hat, of fewer than four draws.
    """
    arviz = installed()
    import xarray as xr

    count, length, *shape = chains.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of chains that do not move
        data = xr.Dataset({"u": (("chain", "draw", "row", "latent"), chains)})

        def by(function: str, fewest: int) -> np.ndarray:
            tells = count >= fewest and length >= 4  # else ArviZ logs that it cannot
            return np.asarray(getattr(arviz, function)(data)["u"]) if tells else np.full(shape, np.nan)

        return {"r_hat": by("rhat", 2), "ess": by("ess", 1)}


METHODS: dict[str, Callable[..., Draws]] = {
    "amortized": _amortized,
    "svi": _own_family(
        RowNormal, 500, 0.05, "A mean-field normal for each row, started at the encoder's answer (Kim et al. 2018)."
    ),
    "flow": _own_family(
        RowFlow, 1000, 0.02, "A normalizing flow for each row, started at the encoder's answer (Cremer et al. 2018)."
    ),
    "laplace": _laplace,
    "sir": _sir,
    "hmc": _hmc,
    "nuts": _nuts,
}
BOUNDED = {name: METHODS[name] for name in ("amortized", "svi", "flow", "laplace")}
"""Methods whose draws have a density, and so a bound."""
