"""Column types: what a column may hold, how it is scaled, whether its likelihood is a density or a mass."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from ppl_vae.errors import DataError


class Type(NamedTuple):
    """One type of column. Its functions take own values (n, m), NaN where missing, of m columns of this type.

    Attributes:
        expected: what the values have to be, in words.
        contains: (n, m) -> (n, m) bool, whether each value is in the support; NaN may be either.
        continuous: True for a density, whose scaling has a Jacobian; False for a mass.
        likelihood: own values (n,) of one column -> the name of the likelihood used unless another is asked for.
        affine: (n, m) -> loc and scale, each (m,), in own units; encoded = (own - loc) / scale.
        logs: (n, m) -> mean and standard deviation, each (m,), of the logarithm that nets are shown, else 0 and 1.
        levels: True where values are codes 0, 1, ... of a list of levels.
    """

    expected: str
    contains: Callable[[Array], Array]
    continuous: bool
    likelihood: Callable[[Array], str]
    affine: Callable[[Array], tuple[Array, Array]]
    logs: Callable[[Array], tuple[Array, Array]]
    levels: bool = False


def find_outside(name: str, values: Array) -> tuple[int, int] | None:
    """(row, column) of the first value that a type does not allow: the first such column, its first row.

    Args:
        name: a key of `TYPES`.
        values: (n, m) own values or codes; NaN, a missing value, is always allowed.
    """
    bad = ~(TYPES[name].contains(values) | np.isnan(values))
    if not bad.any():
        return None
    column = int(bad.any(0).argmax())
    return int(bad[:, column].argmax()), column


def check(name: str, values: Array, names: tuple[str, ...]) -> None:
    """Refuse values that are outside the support of their type.

    Args:
        name: a key of `TYPES`.
        values: (n, m) in own units.
        names: of the m columns.

    Raises:
        DataError: names the column, the row, the value and what was expected.

    Example:
        >>> check("count", np.array([[2.0, 0.5]]), ("visits", "hours"))
        Traceback (most recent call last):
        ppl_vae.errors.DataError: column 'hours': got 0.5 in row 0, expected whole numbers of at least 0 (type count)
    """
    if found := find_outside(name, values):
        row, column = found
        raise DataError(
            f"column {names[column]!r}: got {values[row, column]} in row {row}, "
            f"expected {TYPES[name].expected} (type {name})"
        )


def wrap(angle: Array) -> Array:
    """Angles in radians, moved by whole turns into [-pi, pi); those already there are kept to the bit."""
    turned = np.mod(angle + np.pi, 2 * np.pi) - np.pi
    turned = np.where(turned >= np.pi, -np.pi, turned)  # a tiny negative remainder rounds up to the divisor
    return np.where((angle >= -np.pi) & (angle < np.pi), angle, turned)


def is_whole(values: Array) -> Array:
    """Whether each value is a finite whole number; NaN and infinities are not."""
    with np.errstate(invalid="ignore"):  # of signalling NaN
        return np.isfinite(values) & (np.floor(values) == values)


# ---- the parts of a type


def _named(name: str) -> Callable[[Array], str]:
    return lambda values: name


def _count_likelihood(values: Array) -> str:
    """More spread than a Poisson, whose variance is its mean, asks for a negative binomial."""
    with np.errstate(over="ignore"):
        spread = np.nanvar(values, dtype=np.float64)
    return "negative_binomial" if spread > np.nanmean(values) else "poisson"


def _unit_likelihood(values: Array) -> str:
    """A beta density may be infinite at 0 and 1, the continuous Bernoulli's is not."""
    return "continuous_bernoulli" if ((values == 0) | (values == 1)).any() else "beta"


def _identity(values: Array) -> tuple[Array, Array]:
    return np.zeros(values.shape[1]), np.ones(values.shape[1])


def _geometric(values: Array) -> tuple[Array, Array]:
    return np.zeros(values.shape[1]), np.exp(np.nanmean(np.log(values, dtype=np.float64), 0))


def _grey(values: Array) -> tuple[Array, Array]:
    return np.full(values.shape[1], 127.5), np.full(values.shape[1], 127.5)


def _spread(logs: Array) -> Array:
    """Standard deviation of each column; 1 for a constant column, whose computed one is mere rounding."""
    constant = np.fmin.reduce(logs) == np.fmax.reduce(logs)
    return np.where(constant, 1.0, np.nanstd(logs, 0))


def _log_positive(values: Array) -> tuple[Array, Array]:
    """The mean is 0 since the encoded values have geometric mean 1."""
    return np.zeros(values.shape[1]), _spread(np.log(values, dtype=np.float64))


def _log_count(values: Array) -> tuple[Array, Array]:
    logs = np.log1p(values, dtype=np.float64)
    return np.nanmean(logs, 0), _spread(logs)


def _codes(values: Array) -> Array:
    return is_whole(values) & (values >= 0)


TYPES: dict[str, Type] = {
    "real": Type(
        "finite numbers", np.isfinite, True, _named("normal"), _identity, _identity
    ),  # scaled by `standardize`
    "positive": Type(
        "finite numbers above 0",
        lambda x: (x > 0) & np.isfinite(x),
        True,
        _named("log_normal"),
        _geometric,
        _log_positive,
    ),
    "count": Type(
        "whole numbers of at least 0",
        lambda x: is_whole(x) & (x >= 0),
        False,
        _count_likelihood,
        _identity,
        _log_count,
    ),
    "unit": Type("numbers in [0, 1]", lambda x: (x >= 0) & (x <= 1), True, _unit_likelihood, _identity, _identity),
    "boolean": Type(  # the likelihood refuses numbers that are not 0 or 1: grey values may be binarized first
        "two levels", np.isfinite, False, _named("bernoulli"), _identity, _identity
    ),
    "categorical": Type("one of the levels", _codes, False, _named("categorical"), _identity, _identity, True),
    "ordinal": Type("one of the ordered levels", _codes, False, _named("ordinal"), _identity, _identity, True),
    "angle": Type("finite numbers, in radians", np.isfinite, True, _named("von_mises"), _identity, _identity),
    "pixel": Type(
        "whole numbers from 0 to 255",
        lambda x: is_whole(x) & (x >= 0) & (x <= 255),
        False,
        _named("discretized_logistic"),
        _grey,
        _identity,
    ),
}
"""The types of columns by name."""

LIKELIHOOD_TYPES: dict[str, str] = {
    **dict.fromkeys(("normal", "student_t", "laplace", "low_rank_normal", "full_normal"), "real"),
    **dict.fromkeys(("log_normal", "gamma"), "positive"),
    **dict.fromkeys(("beta", "continuous_bernoulli"), "unit"),
    "bernoulli": "boolean",
    "categorical": "categorical",
    "ordinal": "ordinal",
    **dict.fromkeys(
        ("poisson", "negative_binomial", "zero_inflated_poisson", "zero_inflated_negative_binomial", "multinomial"),
        "count",
    ),
    "discretized_logistic": "pixel",
    "von_mises": "angle",
}
"""The type of the columns that each likelihood is for."""
