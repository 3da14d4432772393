"""Scores of rows, read off one set of draws. Higher is more normal, everywhere."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.criticism.beyond import BEYOND, beyond, without_nan
from ppl_vae.data.schema import Batch
from ppl_vae.errors import DataError, OptionError, choose, number, whole
from ppl_vae.infer.blocks import reader
from ppl_vae.infer.draws import Draws, Pieces, batch_of, facts, log_prob_per_feature, minus_squared_error
from ppl_vae.infer.given import check_rows, sites_of
from ppl_vae.infer.scope import reading


@dataclass(frozen=True, repr=False)
class Scores:
    """One number a row, with its Monte Carlo standard error.

    Attributes:
        values: (n,) float64, higher = more normal; in nats of the data in its own units (not for reconstruction_error, nor
            disagreement, a number of members).
        mcse: (n,) Monte Carlo standard errors of `values`, row by row. That of a log of a mean (reconstruction_probability,
            iwae) is by the delta method and never above 1: from about 0.5 a few draws carry the row (effective sample
            size 1 / (mcse^2 + 1 / S)), the value is too low by more than it says. Equal rows share their noise.
        per_feature: (n, d) on request, else None.
        scoring: name of the score.
    """

    values: np.ndarray
    mcse: np.ndarray
    scoring: str
    per_feature: np.ndarray | None = None

    def __repr__(self) -> str:
        means = f"mean {self.values.mean():.4f}, mean mcse {self.mcse.mean():.4f}"
        return f"Scores({self.scoring} of {len(self.values)} rows, {means})"

    def threshold(self, contamination: float) -> float:
        """The value that a share `contamination` of these rows falls below: flag rows with lower scores.

        Args:
            contamination: expected share of anomalies among these rows, in (0, 0.5].

        Returns: a score, in the unit of `values`.

        Raises: OptionError for a share outside (0, 0.5].

        Example:
            >>> scores = Scores(np.arange(100.0), np.zeros(100), "elbo")
            >>> bool(np.mean(scores.values < scores.threshold(0.05)) == 0.05)
            True
        """
        if number("contamination", contamination) > 0.5:
            raise OptionError(f"contamination: got {contamination!r}, expected a share in (0, 0.5]")
        return quantile(self.values, contamination)


def quantile(values: np.ndarray, share: float) -> float:
    """The value that a share lies below; between -inf and a number there is none in between, but the number."""
    return float(np.quantile(values, share, method="linear" if np.isfinite(values).all() else "higher"))


def mean(log_values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over draws (S, ...) and its standard error."""
    draws = len(log_values)
    spread = log_values.std(0) if draws > 1 else torch.full_like(log_values[0], math.nan)
    return log_values.mean(0), spread / math.sqrt(draws)


def log_mean_exp(log_values: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the mean of exp over draws (S, ...), and its standard error by the delta method: sd(w) / (mean(w) sqrt S)."""
    top = log_values.amax(0)
    weights = torch.exp(log_values - torch.where(torch.isfinite(top), top, 0.0))
    average, error = mean(weights)
    return top + torch.log(average), error / average


def _check_draws(vae: Any, batch: Batch, draws: Draws) -> None:
    """Refuse draws of other rows, or by another model."""
    if draws.z.shape[1] != len(batch.x):
        raise OptionError(f"draws: got those of {draws.z.shape[1]} rows, expected those of these {len(batch.x)}")
    if hasattr(vae, "members"):  # whose draws are of several models
        return
    with reading(vae):
        sites = sites_of(vae, batch)
        if sites.shared.keys() == draws.shared.keys() and draws.sites.keys() >= set(sites.local):
            check_rows(vae, batch, draws, sites)


def log_lik(draws: Draws) -> Tensor:
    """log p(x|z), (S, n)."""
    return draws.log_lik


def log_weight(draws: Draws) -> Tensor:
    """log p(x, z) - log q(z|x), (S, n)."""
    return draws.log_weight


def log_ratio(draws: Draws) -> Tensor:
    """log p(z) - log q(z|x), (S, n)."""
    return draws.log_prior - draws.log_q


def observed(draws: Draws) -> Tensor:
    """Summed over features, (S, n)."""
    assert draws.observed is not None
    return draws.observed.sum(-1)


class Score(NamedTuple):
    """How a score is read off draws.

    Attributes:
        read: draws to (S, n).
        reduce: (S, ...) to a value and its standard error.
        per_feature: the part of each feature, a function of the likelihood's site; None where there is none.
        nats: whether it is in nats; else in squared encoded units.
        weighs: whether it needs a proper prior.
        text: what it is, and its source.
    """

    read: Callable[[Draws], Tensor]
    reduce: Callable[[Tensor], tuple[Tensor, Tensor]]
    per_feature: Callable[[Any], Tensor] | None
    nats: bool
    weighs: bool
    text: str


SCORES: dict[str, Score] = {
    "reconstruction_probability": Score(
        log_lik, log_mean_exp, log_prob_per_feature, True, False,
        "log (1/S) sum_s p(x|z_s), z_s from q(z|x) (An & Cho 2015, algorithm 4); bounds nothing, ranks no models",
    ),
    "expected_log_likelihood": Score(
        log_lik, mean, log_prob_per_feature, True, False,
        "E_q[log p(x|z)] (An & Cho 2015); never above the reconstruction probability, by Jensen",
    ),
    "elbo": Score(
        log_weight, mean, None, True, True,
        "E_q[log p(x,z) - log q(z|x)], a lower bound of log p(x) (Kingma & Welling 2013, eq. 2)",
    ),
    "iwae": Score(
        log_weight, log_mean_exp, None, True, True,
        "log (1/S) sum_s p(x,z_s)/q(z_s|x), log p(x) from below on average (Burda et al. 2016, eq. 8)",
    ),
    "kl_to_prior": Score(
        log_ratio, mean, None, True, True,
        "-KL(q(z|x) || p(z)), a term of the bound (Kingma & Welling 2013): how much of its own a row asks of z",
    ),
    "reconstruction_error": Score(
        observed, mean, minus_squared_error, False, False,
        "-E_q|x - E[x|z]|^2 in squared encoded units (what An & Cho 2015 compare with): no density, and negative so that "
        "higher is more normal",
    ),
}  # fmt: skip


def score(
    vae: Any,
    data: Any,
    scoring: str | tuple[str, dict[str, Any]] = "reconstruction_probability",
    num_draws: int = 64,
    seed: int = 0,
    per_feature: bool = False,
    draws: Draws | None = None,
    compiled: bool | str = "auto",
) -> Scores:
    """Score every row; higher = more normal.

    A score is a function of its row, the model and the seed alone: bit-equal when asked again, equal to float32 rounding
    whatever other rows come along. Of a row with missing cells it is the score of the cells that were observed, and lower
    or higher for being of fewer cells. A label is one more cell: where it is known the row's score is of x and y, as of
    log p(x, y); to compare rows with and without, drop that column. With sites w that all rows share, such as uncertain
    weights, each draw has its own w from their posterior: "iwae" estimates the log of the mean over w of p(x | w), row by
    row, and the sum over rows that w was learned from may exceed their evidence.

    Args:
        vae: a model with its guide; also an autoencoder or a PCA.
        data: n rows.
        scoring: "reconstruction_probability" log (1/S) sum_s p(x|z_s), z_s ~ q(z|x) (An & Cho 2015, algorithm 4);
            "expected_log_likelihood" E_q[log p(x|z)] (An & Cho 2015); "elbo" and "iwae", the lower bounds of
            log p(x) (Kingma & Welling 2013, eq. 2; Burda et al. 2016, eq. 8); "kl_to_prior" -KL(q(z|x) || p(z));
            "reconstruction_error" -E_q|x - E[x|z]|^2, in squared encoded units. Or a name of `BEYOND` (`beyond.py`), with
            its options as (name, options): "likelihood_regret"; ("likelihood_ratio", {"background": model});
            ("typicality", {"normal": rows}), and with "density_of_states" or "aggregate_posterior" in its place;
            "input_complexity"; and of an
            ensemble "waic" and "disagreement".
        num_draws: S.
        seed: of the noise.
        per_feature: also give each feature's part (n, d); not for elbo and iwae, which have none. The reconstruction
            probability is a log of a mean, so its parts do not sum to it.
        draws: read these instead of drawing anew (not for reconstruction_error nor per_feature).
        compiled: True: a block of rows is one compiled graph, made in some 10 seconds, kept for later calls; "traced": the
            programs are run once, and after that the list of tensor operations that they led to; False: the programs are
            run for each block; "auto": what so many rows and draws pay for, on a CPU, where there can be such a graph.

    Returns: `Scores`, in nats of the data in its own units.

    Raises: OptionError, DataError.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> ppca = PPCA(2).fit(x)
        >>> bool(np.allclose(score(ppca, x, "iwae").values, ppca.log_prob(x), atol=1e-8))  # the guide is exact
        True
    """
    scoring, options = scoring if isinstance(scoring, tuple) and len(scoring) == 2 else (scoring, {})
    choose("scoring", scoring, SCORES | BEYOND)
    if scoring in BEYOND:
        if per_feature or draws is not None:
            raise OptionError(f"scoring: got {scoring!r} with per_feature or draws, which it has no use for")

        def likelihood(model: Any, rows: Any, of: str, apart: int = 0) -> tuple[np.ndarray, np.ndarray]:
            found = score(model, rows, of, num_draws, seed + apart, compiled=compiled)
            return found.values, found.mcse

        return Scores(*beyond(vae, data, scoring, options, likelihood, whole("num_draws", num_draws), seed), scoring)
    if options:
        raise OptionError(f"scoring: got options with {scoring!r}, which has none")
    how = SCORES[scoring]
    if per_feature and how.weighs:
        raise OptionError(f"per_feature: got scoring={scoring!r}, whose KL term has no parts by feature")
    pieces = Pieces(vae, data)
    known = facts(vae, pieces.first)
    if how.weighs and (known.point or not known.proper):
        what = "an improper prior" if not known.proper else "a point posterior"
        raise OptionError(
            f"scoring: got {scoring!r} for {what}, where it bounds nothing; expected a score of log p(x|z)"
        )
    if not how.nats and (column := _without_error(vae)):
        raise OptionError(f"scoring: got {scoring!r} with the column {column}, whose codes have no squared error")
    observe = how.per_feature if per_feature or how.read is observed else None
    certain, read = known.point and not known.shared, Reading(how, per_feature)
    if draws is not None:
        if observe is not None:
            raise OptionError(
                f"draws: got draws with scoring={scoring!r}, per_feature={per_feature}, which need new ones"
            )
        if how.weighs and draws.log_weight is None:
            raise OptionError(
                f"draws: got draws without log_q with scoring={scoring!r}, expected draws of known density"
            )
        _check_draws(vae, batch_of(vae, data), draws)
        values, errors, *features = (part.numpy(force=True) for part in read(draws))
    else:
        num_draws = 1 if certain else whole("num_draws", num_draws)
        figures = reader(vae, pieces.first, pieces.rows, num_draws, seed, read, observe, compiled)
        values, errors, *features = _in_order(pieces, lambda batch: _in_own_units(vae, how, batch, figures(batch)))
    return Scores(without_nan(values), np.zeros_like(values) if certain else errors, scoring, *features)


def _in_order(pieces: Pieces, figures: Callable[[Batch], Iterable[list[np.ndarray]]]) -> list[np.ndarray]:
    """Figures of all rows, each in an array that is filled piece by piece."""
    found, start = list[np.ndarray](), 0
    for batch in pieces:
        try:
            blocks = figures(batch)
        except DataError:
            pieces.refuse_all()
            raise
        for block in blocks:
            found = found or [np.empty((pieces.rows, *part.shape[1:]), part.dtype) for part in block]
            for whole_of, part in zip(found, block):
                whole_of[start : start + len(part)] = part
            start += len(block[0])
    return found


def _in_own_units(vae: Any, how: Score, batch: Batch, blocks: list[tuple[Tensor, ...]]) -> Iterator[list[np.ndarray]]:
    """Values, errors and each feature's part (h, d), block by block, of the data in its own units."""
    jacobian = np.array(vae.schema.log_jacobians) if how.nats and vae.schema is not None else np.zeros(1)
    start = 0
    for values, errors, *features in ([part.numpy(force=True) for part in block] for block in blocks):
        rows = slice(start, start + len(values))
        observed = True if batch.mask is None or not features else batch.mask[rows].numpy(force=True)
        yield [values, errors, *(part + np.where(observed, jacobian, 0.0) for part in features)]
        start += len(values)


def _without_error(vae: Any) -> str | None:
    """The first column whose difference to its mean means nothing."""
    types = vae.schema.types if vae.schema is not None else None
    named = zip(vae.schema.names, types) if types else ()
    return next((f"{name!r} ({kind})" for name, kind in named if kind in ("categorical", "ordinal", "angle")), None)


@dataclass(frozen=True)
class Reading:
    """Draws to values (n,), their standard errors (n,), and on request each feature's part (n, d)."""

    how: Score
    per_feature: bool

    def __call__(self, block: Draws) -> tuple[Tensor, ...]:
        # contiguous along draws, (n, S): a reduction along the first dimension depends on the row's place
        values, errors = self.how.reduce(self.how.read(block).T.contiguous().T)
        if not self.per_feature or block.observed is None:
            return values, errors
        return values, errors, self.how.reduce(block.observed)[0]
