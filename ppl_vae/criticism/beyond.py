"""Scores beyond likelihood: a density is high where data are simple, and these ask something else of it."""

import math
import zlib
from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

import numpy as np
import torch

from ppl_vae.criticism.aggregate import log_q_of_rows
from ppl_vae.errors import OptionError
from ppl_vae.infer.draws import batch_of, draws, facts
from ppl_vae.infer.ensemble import Ensemble
from ppl_vae.infer.local import posterior
from ppl_vae.infer.scope import reading

Found = tuple[np.ndarray, np.ndarray]
"""Values (n,), higher = more normal, and their Monte Carlo standard errors; NaN where these are not known."""
Likelihood = Callable[[Any, Any, str], Found]
"""A score by name of a model and rows, with the caller's draws and seed."""
ROWS = 2000
"""Normal rows that the aggregate posterior is a mixture of, at most."""


def likelihood_regret(
    vae: Any, data: Any, likelihood: Likelihood, num_draws: int, seed: int, *, steps: int = 100, lr: float = 0.05
) -> Found:
    """Minus what the bound of a row gains where its own q is refined: L[q_encoder] - max_q L[q] (Xiao et al. 2020, eq. 5).

    Args:
        steps, lr: of the refinement, a mean-field normal for each row, started at the encoder's answer.
    """
    _expect_one(vae, "likelihood_regret")
    own = draws(vae, data, num_draws, seed).log_weight
    best = posterior(vae, data, "svi", num_draws, seed, steps=steps, lr=lr).log_weight
    gain = own.mean(0) - best.mean(0)
    error = ((own.var(0) + best.var(0)) / num_draws).sqrt()
    return gain.numpy(force=True), error.numpy(force=True)


def likelihood_ratio(
    vae: Any, data: Any, likelihood: Likelihood, num_draws: int, seed: int, *, background: Any
) -> Found:
    """log p(x) - log p_background(x), both by importance weights (Ren et al. 2019, eq. 4).

    Args:
        background: a model of what all rows have in common, as one fitted to perturbed rows.
    """
    (value, error), (other, its) = likelihood(vae, data, "iwae"), likelihood(background, data, "iwae")
    return value - other, np.hypot(error, its)


def typicality(vae: Any, data: Any, likelihood: Likelihood, num_draws: int, seed: int, *, normal: Any) -> Found:
    """-|log p(x) - mean over normal rows of log p|: neither improbable nor too probable (Nalisnick et al. 2019, eq. 4).

    Args:
        normal: rows that say what is normal, such as the training rows.
    """
    value, error = likelihood(vae, data, "iwae")
    return -np.abs(value - likelihood(vae, normal, "iwae")[0].mean()), error


def waic(vae: Any, data: Any, likelihood: Likelihood, num_draws: int, seed: int) -> Found:
    """Mean less variance of log p_m(x) over the members of an ensemble (Choi et al. 2018, eq. 1)."""
    value = _of_members(vae, data, likelihood, "waic")
    return value.mean(0) - value.var(0), np.full(value.shape[1], np.nan)


def disagreement(vae: Any, data: Any, likelihood: Likelihood, num_draws: int, seed: int) -> Found:
    """Effective number of the members of an ensemble that find the row probable, 1 / sum_m w_m^2 with w_m in proportion to
    p_m(x), 1 to M: few where they disagree (Daxberger & Hernandez-Lobato 2019, eq. 7)."""
    value = _of_members(vae, data, likelihood, "disagreement")
    weight = np.exp(value - value.max(0))
    weight /= weight.sum(0)
    return 1 / (weight**2).sum(0), np.full(value.shape[1], np.nan)


def aggregate_posterior(
    vae: Any, data: Any, likelihood: Likelihood, num_draws: int, seed: int, *, normal: Any
) -> Found:
    """E_q[log (1/N) sum_i q(z|x_i)]: how close z is to that of normal rows (Tomczak & Welling 2018, eq. 9).

    Args:
        normal: N rows; of more than `ROWS`, some.
    """
    _expect_one(vae, "aggregate_posterior")
    if facts(vae, batch_of(vae, data)).shared:
        raise OptionError("scoring: got 'aggregate_posterior' for a model with sites that all rows share")
    rows = batch_of(vae, normal)
    n = len(rows.x)
    rows = rows if n <= ROWS else rows.rows(torch.from_numpy(np.random.RandomState(seed).permutation(n)[:ROWS]))
    found = draws(vae, data, num_draws, seed)
    values = {name: value.flatten(0, 1)[:, None] for name, value in found.sites.items()}
    with reading(vae, seed):
        mixture = torch.cat([log_q.logsumexp(1) for _, log_q in log_q_of_rows(vae, rows, values, {})])
    log_density = mixture.view(found.z.shape[:2]) - math.log(len(rows.x))
    return log_density.mean(0).numpy(force=True), (log_density.std(0) / math.sqrt(num_draws)).numpy(force=True)


def input_complexity(vae: Any, data: Any, likelihood: Likelihood, num_draws: int, seed: int) -> Found:
    """log p(x) + L(x) log 2, L the bits that DEFLATE, PNG's compressor, needs (Serra et al. 2020, eq. 1).

    Each row is cut into 256 levels between the least and the largest cell of all rows given.
    """
    value, error = likelihood(vae, data, "iwae")
    cells = batch_of(vae, data).x.flatten(1).numpy(force=True)
    low, high = cells.min(), cells.max()
    levels = np.round((cells - low) / max(high - low, 1e-30) * 255).astype(np.uint8)
    bits = np.array([8 * len(zlib.compress(row.tobytes(), 9)) for row in levels])
    return value + bits * math.log(2), error


BEYOND: dict[str, Callable[..., Found]] = {
    call.__name__: call
    for call in (
        likelihood_regret,
        likelihood_ratio,
        typicality,
        waic,
        disagreement,
        aggregate_posterior,
        input_complexity,
    )
}


def beyond(
    vae: Any,
    data: Any,
    name: str,
    options: dict[str, Any],
    likelihood: Likelihood,
    num_draws: int,
    seed: int,
) -> Found:
    """Score rows by a name of `BEYOND`.

    Raises: OptionError for options that it does not have, or needs.
    """
    call = BEYOND[name]
    known = {n: p for n, p in signature(call).parameters.items() if p.kind is Parameter.KEYWORD_ONLY}
    if unknown := sorted(options.keys() - known):
        raise OptionError(f"scoring: got the options {unknown} with {name!r}, expected some of {sorted(known)}")
    if missing := sorted(n for n, p in known.items() if p.default is Parameter.empty and n not in options):
        raise OptionError(f"scoring: got {name!r} without {missing[0]!r}, expected ({name!r}, {{{missing[0]!r}: ...}})")
    known_facts = facts(vae, batch_of(vae, data))
    if known_facts.point or not known_facts.proper:
        raise OptionError(f"scoring: got {name!r} for a point posterior or an improper prior, where no bound holds")
    return call(vae, data, likelihood, num_draws, seed, **options)


def _expect_one(vae: Any, name: str) -> None:
    if isinstance(vae, Ensemble):
        raise OptionError(f"scoring: got {name!r} for an Ensemble, expected one of its .members")


def _of_members(vae: Any, data: Any, likelihood: Likelihood, name: str) -> np.ndarray:
    """log p_m(x), (M, n)."""
    if not isinstance(vae, Ensemble) or len(vae.members) < 2:
        raise OptionError(f"scoring: got {name!r} for a {type(vae).__name__}, expected an Ensemble of two or more")
    return np.stack([likelihood(member, data, "iwae")[0] for member in vae.members])
