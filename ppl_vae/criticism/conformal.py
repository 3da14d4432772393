"""P-values of rows from the ranks of their scores among those of normal rows, and what each kind promises."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ppl_vae.errors import OptionError

FEWEST_EXCESSES = 10
"""Scores that a tail is fitted to, at least."""


class Rule(NamedTuple):
    """How the number of calibration scores at or below a row's own becomes a p-value.

    Attributes:
        p_values: counts (m,), each 0 to n, of n calibration scores, and delta, to p-values (m,), which grow with counts.
        text: what is promised of flagging rows with p <= level, and where it comes from.
    """

    p_values: Callable[[np.ndarray, int, float], np.ndarray]
    text: str


def marginal(counts: np.ndarray, n: int, delta: float) -> np.ndarray:
    """(1 + count) / (n + 1)."""
    return (counts + 1) / (n + 1)


def conditional(counts: np.ndarray, n: int, delta: float) -> np.ndarray:
    """The share of normal rows below the (count + 1)-th score is Beta(count + 1, n - count): its quantile at 1 - delta."""
    from scipy.special import betaincinv

    return np.where(counts < n, betaincinv(counts + 1.0, np.maximum(n - counts, 1.0), 1 - delta), 1.0)


def simultaneous(counts: np.ndarray, n: int, delta: float) -> np.ndarray:
    """1 - (delta prod_{j < k} (n - count - j) / (n - j))^(1/k), k = n / 2; 1 for the highest counts."""
    k = max(1, n // 2)
    sums = np.concatenate([[0.0], np.cumsum(np.log(np.arange(n, 0, -1.0)))])
    table, first = np.ones(n + 1), np.arange(n - k + 1)
    table[first] = -np.expm1((np.log(delta) + sums[first + k] - sums[first] - sums[k]) / k)
    return table[counts]


RULES: dict[str, Rule] = {
    "conformal": Rule(
        marginal,
        "of normal rows to come, at most the level is flagged on average over calibration rows (Vovk et al. 2005; Bates et "
        "al. 2023, eq. 1)",
    ),
    "conditional": Rule(
        conditional,
        "with probability 1 - delta over calibration rows, at most the level of normal rows to come is flagged, at one "
        "level that was chosen before (Vovk 2012)",
    ),
    "simultaneous": Rule(
        simultaneous,
        "with probability 1 - delta over calibration rows, at most the level of normal rows to come is flagged, at all "
        "levels at once (Bates et al. 2023, section 3: Simes' adjustment)",
    ),
    "tail": Rule(
        marginal,
        "as 'conformal' down to 1 / (n + 1); below, asymptotic: a generalised Pareto law of the lowest scores, exponential "
        "where its fit would end, which holds in the limit of ever lower ones (Siffer et al. 2017); far below 1 / (n + 1) "
        "the rate may be several times the level under heavy tails, and a fraction of it under light ones",
    ),
}
"""Kinds of p-values, of normal rows to come that are exchangeable with the calibration rows."""


class Tail(NamedTuple):
    """P(score < s) = share (1 + shape (start - s) / scale)^(-1 / shape), below `start` (Siffer et al. 2017, eq. 1)."""

    start: float
    share: float
    shape: float
    scale: float

    @classmethod
    def of(cls, scores: np.ndarray) -> "Tail | None":
        """Fitted to the lowest scores, of (n,) in ascending order, by maximum likelihood; None for too few.

        Never with an end, below which nothing were possible: an exponential law in its place.
        """
        from scipy.stats import genpareto

        n = len(scores)
        few = int(min(n / 5, 3 * n**0.5))  # as many as Pareto smoothing takes (Vehtari et al. 2024)
        if few < FEWEST_EXCESSES or len(np.unique(scores[: few + 1])) <= FEWEST_EXCESSES or not np.isfinite(scores[0]):
            return None
        start = scores[few]
        try:
            shape, _, scale = genpareto.fit(start - scores[:few], floc=0.0)
        except RuntimeError:  # no fit was found
            shape = -1.0
        if shape < 0:
            shape, scale = 0.0, (start - scores[:few]).mean()
        return cls(float(start), few / n, float(shape), float(scale))

    def below(self, scores: np.ndarray) -> np.ndarray:
        """The probability of lower scores."""
        from scipy.stats import genpareto

        return self.share * genpareto.sf(self.start - scores, self.shape, scale=self.scale)

    def at(self, level: float) -> float:
        """The score that a share `level` lies below."""
        from scipy.stats import genpareto

        return float(self.start - genpareto.isf(level / self.share, self.shape, scale=self.scale))


def p_values(rule: str, references: list[np.ndarray], scores: list[np.ndarray], delta: float) -> np.ndarray:
    """P-values of m rows; of several folds their mean, twice which is a p-value (Vovk & Wang 2020).

    Args:
        rule: a name of `RULES`.
        references: of each fold, scores of normal rows in ascending order.
        scores: of each fold, those of the m rows by the same model; none NaN.
        delta: of the rules that may fail.
    """
    counts = [np.searchsorted(*pair, side="right") for pair in zip(references, scores)]
    p = np.mean([RULES[rule].p_values(count, len(own), delta) for count, own in zip(counts, references)], 0)
    if rule == "tail" and (lowest := counts[0] == 0).any() and (tail := Tail.of(references[0])):
        p[lowest] = np.minimum(p[lowest], tail.below(scores[0][lowest]))
    return p


def threshold(rule: str, reference: np.ndarray, level: float, delta: float) -> float:
    """The score below which p <= level; -inf where no score is that low.

    Args:
        reference: scores of n normal rows in ascending order.
    """
    n = len(reference)
    flagged = int((RULES[rule].p_values(np.arange(n), n, delta) <= level).sum())
    if flagged:
        return float(reference[flagged - 1])
    if rule != "tail":
        return -np.inf
    if (tail := Tail.of(reference)) is None:
        raise OptionError(
            f"rule: got 'tail' with {n} calibration rows, expected more, with over {FEWEST_EXCESSES} different low scores"
        )
    return min(float(reference[0]), tail.at(level))
