"""Pareto-smoothed importance sampling (Vehtari et al. 2024): heavy tails of weights smoothed, and measured by k-hat."""

import math
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

FEWEST = 1000
"""Draws from which on k-hat says something."""
ROUNDING, EPS = 1e-5, float(np.finfo(np.float32).eps)
"""Log weights that differ by less are equal: all draws weigh the same, and no tail is left to fit."""


def threshold(num_draws: int) -> float:
    """k-hat up to which a mean of so many weights can be trusted (Vehtari et al. 2024, eq. 13).

    Example:
        >>> [round(threshold(s), 2) for s in (100, 1000, 10_000)]
        [0.5, 0.67, 0.7]
    """
    return min(1 - 1 / math.log10(num_draws), 0.7)


def smoothed(log_weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log weights (S, n) smoothed, not normalised, and k-hat (n,): 0 where the largest weights are equal.

    A k-hat is of the weights met: it never rules out a mode that no draw has reached.
    """
    draws = len(log_weight)
    tail = np.sort(log_weight, axis=0)[-math.ceil(min(draws / 5, 3 * math.sqrt(draws))) :]
    equal = np.ptp(log_weight, axis=0) < np.maximum(ROUNDING, 4 * EPS * np.abs(log_weight).max(0))
    heavy = ~equal & (np.ptp(tail, axis=0) > 0)  # there is a tail to fit: ArviZ 1.x raises where there is none
    found, k_hat = log_weight.copy(), np.where(heavy, np.inf, 0.0)
    if len(tail) < 5 or not heavy.any():
        return found, k_hat
    rows = np.ascontiguousarray(log_weight[:, heavy].T)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights without a tail
        normalised, k_hat[heavy] = _psislw()(rows)
    # the lowest is no part of the tail: it shows what was normalised away
    lowest = np.where(np.isfinite(rows), rows, np.inf).argmin(1)[:, None]
    constant = np.take_along_axis(rows, lowest, 1) - np.take_along_axis(normalised, lowest, 1)
    found[:, heavy] = (normalised + constant).T
    return found, k_hat


def k_hats(log_weight: np.ndarray) -> np.ndarray:
    """k-hat (n,) of log weights (S, n); NaN of fewer than 1000 draws, which cannot tell."""
    if len(log_weight) < FEWEST:
        return np.full(log_weight.shape[1], np.nan)
    return smoothed(log_weight)[1]


def _psislw() -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """ArviZ's, of whichever major version is installed: (n, S) to normalised log weights and k-hat."""
    if int(version("arviz").split(".")[0]) >= 1:
        from arviz_stats.base import array_stats

        return lambda log_weight: array_stats.psislw(-log_weight, axis=-1)  # it takes log likelihoods
    return installed().psislw


def installed() -> Any:
    """ArviZ, quietly: 0.2x announces version 1 once a day."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz
