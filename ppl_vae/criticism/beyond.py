"""Scores beyond likelihood: a density is high where data are simple, and these ask something else of it."""

import math
import zlib
from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.criticism.aggregate import log_q_of_rows
from ppl_vae.data.schema import Batch
from ppl_vae.errors import OptionError, whole
from ppl_vae.infer.draws import batch_of, draws, facts
from ppl_vae.infer.ensemble import Ensemble
from ppl_vae.infer.local import posterior
from ppl_vae.infer.scope import reading

Found = tuple[np.ndarray, np.ndarray]
"""Values (n,), higher = more normal, and their Monte Carlo standard errors; NaN where these are not known."""
Likelihood = Callable[..., Found]
"""A score by name of a model and rows, with the caller's draws and seed; a further number gives noise of its own."""
HELD = 1024
"""Rows whose draws are held at a time."""
STATES = ("elbo", "kl_to_prior", "reconstruction_error")
"""How probable a row is, how unusual its z, and how far from it what is decoded."""
ROWS = 2000
"""Normal rows that the aggregate posterior is a mixture of, at most."""


def likelihood_regret(
    vae: Any, data: Any, likelihood: Likelihood, num_draws: int, seed: int, *, steps: int = 100, lr: float = 0.05
) -> Found:
    """Minus what the bound of a row gains where its own q is refined: L[q_encoder] - max_q L[q] (Xiao et al. 2020, eq. 5).

    The maximum is over mean-field normals: of an encoder of a richer family the difference may be above 0.

    Args:
        steps, lr: of the refinement, a mean-field normal for each row, started at the encoder's answer.
    """
    _expect_one(vae, "likelihood_regret")

    def regret(rows: Batch) -> tuple[Tensor, Tensor]:
        own = draws(vae, rows, num_draws, seed).log_weight
        best = posterior(vae, rows, "svi", num_draws, seed, steps=steps, lr=lr).log_weight
        return own.mean(0) - best.mean(0), (_variance_of_mean(own) + _variance_of_mean(best)).sqrt()

    return _some_at_a_time(batch_of(vae, data), regret)


def likelihood_ratio(
    vae: Any, data: Any, likelihood: Likelihood, num_draws: int, seed: int, *, background: Any
) -> Found:
    """log p(x) - log p_background(x), both by importance weights (Ren et al. 2019, eq. 4).

    Args:
        background: a model of what all rows have in common, as one fitted to perturbed rows.
    """
    if isinstance(data, Batch) and getattr(background, "schema", None) != vae.schema:
        raise OptionError(
            "background: got a model of other columns or scales for encoded rows, expected one of the same"
        )
    (value, error), (other, its) = likelihood(vae, data, "iwae"), likelihood(background, data, "iwae", 1)
    return value - other, np.hypot(error, its)


def typicality(vae: Any, data: Any, likelihood: Likelihood, num_draws: int, seed: int, *, normal: Any) -> Found:
    """-|log p(x) - mean over normal rows of log p|: neither improbable nor too probable (Nalisnick et al. 2019, eq. 4).

    Args:
        normal: rows that say what is normal, best ones that the model was not fitted to, and none that calibrate it.
    """
    value, error = likelihood(vae, data, "iwae")
    usual = likelihood(vae, normal, "iwae")[0].mean()
    if not np.isfinite(usual):
        raise OptionError("normal: got rows that the model finds impossible, expected finite scores")
    return -np.abs(value - usual), error


def density_of_states(
    vae: Any,
    data: Any,
    likelihood: Likelihood,
    num_draws: int,
    seed: int,
    *,
    normal: Any,
    of: Sequence[str] = STATES,
    components: int = 5,
) -> Found:
    """log density of a row's statistics among those of normal rows (Morningstar et al. 2021, arXiv:2006.09273), by a mixture
    of normals (Bishop 2006, eq. 9.7): a row may be too probable, or as probable as others in another way.

    Args:
        normal: rows that say what is normal, best ones that the model was not fitted to, and none that calibrate it; several
            hundred.
        of: names of scores, which are the statistics.
        components: of the mixture of normals that is fitted to them, whitened.
    """
    from sklearn.mixture import GaussianMixture

    if not isinstance(of, Sequence) or isinstance(of, str) or not of:
        raise OptionError(f"of: got {of!r:.100}, expected names of scores")
    known, rows = (np.stack([likelihood(vae, x, name)[0] for name in of], 1) for x in (normal, data))
    if len(known) <= 10 * whole("components", components) or not np.isfinite(known).all():
        raise OptionError(f"normal: got {len(known)} rows, expected more than {10 * components}, with finite scores")
    center, scale = known.mean(0), known.std(0)
    values, vectors = np.linalg.eigh(np.cov((known - center) / scale, rowvar=False).reshape(len(of), -1))
    white = vectors / np.sqrt(np.maximum(values, 1e-9)) / scale[:, None]
    mixture = GaussianMixture(components, random_state=seed, reg_covar=1e-4).fit((known - center) @ white)
    found, possible = np.full(len(rows), -np.inf), np.isfinite(rows).all(1)
    found[possible] = mixture.score_samples((rows[possible] - center) @ white)
    return found, np.full(len(rows), np.nan)


def waic(vae: Any, data: Any, likelihood: Likelihood, num_draws: int, seed: int) -> Found:
    """Mean less variance of log p_m(x) over the members of an ensemble (Choi et al. 2018, eq. 1).

    The Monte Carlo variance of the members' estimates is taken off that over members, both without bias.
    """
    value, error = _of_members(vae, data, likelihood, "waic")
    return value.mean(0) - (value.var(0, ddof=1) - (error**2).mean(0)), np.full(value.shape[1], np.nan)


def disagreement(vae: Any, data: Any, likelihood: Likelihood, num_draws: int, seed: int) -> Found:
    """Effective number of the members of an ensemble that find the row probable, 1 / sum_m w_m^2 with w_m in proportion to
    p_m(x), 1 to M: few where they disagree (Daxberger & Hernandez-Lobato 2019, eq. 7)."""
    value, _ = _of_members(vae, data, likelihood, "disagreement")
    weight = np.exp(value - value.max(0))
    weight /= weight.sum(0)
    return 1 / (weight**2).sum(0), np.full(value.shape[1], np.nan)


def aggregate_posterior(
    vae: Any, data: Any, likelihood: Likelihood, num_draws: int, seed: int, *, normal: Any
) -> Found:
    """E_q[log (1/N) sum_i q(z|x_i)]: how close z is to that of normal rows (Tomczak & Welling 2018, eq. 9).

    Args:
        normal: N rows, none of those that calibrate it; of more than `ROWS`, some.
    """
    _expect_one(vae, "aggregate_posterior")
    if facts(vae, batch_of(vae, data)).shared:
        raise OptionError("scoring: got 'aggregate_posterior' for a model with sites that all rows share")
    rows = batch_of(vae, normal)
    n = len(rows.x)
    rows = rows if n <= ROWS else rows.rows(torch.from_numpy(np.random.RandomState(seed).permutation(n)[:ROWS]))

    def density(some: Batch) -> tuple[Tensor, Tensor]:
        found = draws(vae, some, num_draws, seed)
        values = {name: value.flatten(0, 1)[:, None] for name, value in found.sites.items()}
        with reading(vae, seed):
            mixture = torch.cat([log_q.logsumexp(1) for _, log_q in log_q_of_rows(vae, rows, values, {})])
        log_density = mixture.view(found.z.shape[:2]) - math.log(len(rows.x))
        return log_density.mean(0), _variance_of_mean(log_density).sqrt()

    return _some_at_a_time(batch_of(vae, data), density)


def input_complexity(
    vae: Any, data: Any, likelihood: Likelihood, num_draws: int, seed: int, *, low: float = 0.0, high: float = 1.0
) -> Found:
    """log p(x) + L(x) log 2, L the bits that DEFLATE, PNG's compressor, needs (Serra et al. 2020, eq. 1).

    Args:
        low, high: in the data's own units; rows are cut into 256 levels between.
    """
    batch, schema = batch_of(vae, data), vae.schema
    if batch.mask is not None and not batch.mask.all():
        raise OptionError("scoring: got 'input_complexity' for rows with holes, which have no code")
    if not low < high:
        raise OptionError(f"low, high: got {low!r} and {high!r}, expected the range of the data's values")
    value, error = likelihood(vae, batch, "iwae")
    cells = batch.x.double().numpy(force=True)
    if schema is not None:
        cells = cells * np.array(schema.scale or 1.0) + np.array(schema.loc or 0.0)
    levels = np.round((cells.clip(low, high) - low) / (high - low) * 255).astype(np.uint8)
    bits = np.array([8 * len(zlib.compress(row.tobytes(), 9)) for row in levels])
    return value + bits * math.log(2), error


BEYOND: dict[str, Callable[..., Found]] = {
    call.__name__: call
    for call in (
        likelihood_regret,
        likelihood_ratio,
        typicality,
        density_of_states,
        waic,
        disagreement,
        aggregate_posterior,
        input_complexity,
    )
}


def needs(call: Callable[..., Found]) -> list[str]:
    """The options of a score of `BEYOND` that have no default."""
    return sorted(name for name, of in _options(call).items() if of.default is Parameter.empty)


def _options(call: Callable[..., Found]) -> dict[str, Parameter]:
    return {name: of for name, of in signature(call).parameters.items() if of.kind is Parameter.KEYWORD_ONLY}


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
    if not isinstance(options, dict):
        raise OptionError(f"scoring: got {options!r:.100} as the options of {name!r}, expected a dict")
    known = _options(call)
    if unknown := sorted(options.keys() - known):
        raise OptionError(f"scoring: got the options {unknown} with {name!r}, expected some of {sorted(known)}")
    if missing := [one for one in needs(call) if one not in options]:
        raise OptionError(f"scoring: got {name!r} without {missing[0]!r}, expected ({name!r}, {{{missing[0]!r}: ...}})")
    known_facts = facts(vae, batch_of(vae, data))
    if known_facts.point or not known_facts.proper:
        raise OptionError(f"scoring: got {name!r} for a point posterior or an improper prior, where no bound holds")
    with np.errstate(invalid="ignore"):  # differences of what is impossible
        values, errors = call(vae, data, likelihood, num_draws, seed % 2**32, **options)
    return without_nan(values), errors


def without_nan(scores: np.ndarray) -> np.ndarray:
    """A score that is no number is of a row that no draw finds possible, or beyond what floats hold: the lowest."""
    return np.where(np.isnan(scores), -np.inf, scores)


def _some_at_a_time(batch: Batch, read: Callable[[Batch], tuple[Tensor, Tensor]]) -> Found:
    """Values and errors of rows, some of them held at a time."""
    parts = [read(batch.rows(slice(start, start + HELD))) for start in range(0, len(batch.x), HELD)]
    values, errors = (torch.cat(column).numpy(force=True) for column in zip(*parts))
    return values, errors


def _variance_of_mean(values: Tensor) -> Tensor:
    """Of the mean over draws (S, n), (n,): not known of one draw."""
    draws = len(values)
    return values.var(0) / draws if draws > 1 else torch.full_like(values[0], math.nan)


def _expect_one(vae: Any, name: str) -> None:
    if isinstance(vae, Ensemble):
        raise OptionError(f"scoring: got {name!r} for an Ensemble, expected one of its .members")


def _of_members(vae: Any, data: Any, likelihood: Likelihood, name: str) -> Found:
    """log p_m(x) and their errors, (M, n) each, with noise of their own."""
    if not isinstance(vae, Ensemble) or len(vae.members) < 2:
        raise OptionError(f"scoring: got {name!r} for a {type(vae).__name__}, expected an Ensemble of two or more")
    values, errors = zip(*(likelihood(member, data, "iwae", m) for m, member in enumerate(vae.members)))
    return np.stack(values), np.stack(errors)
