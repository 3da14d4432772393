"""Data sets drawn from the fitted model, held against the data: the posterior predictive check."""

from functools import partial
from typing import Any

import numpy as np

from ppl_vae.criticism.prior_check import STATISTICS, Statistic, held_against, share
from ppl_vae.criticism.simulation import replicates
from ppl_vae.errors import whole
from ppl_vae.infer.draws import batch_of, check
from ppl_vae.infer.scope import reading


def mean(values: np.ndarray) -> np.ndarray:
    """The mean of a column's cells."""
    return np.nanmean(values, 1)


def spread(values: np.ndarray) -> np.ndarray:
    """The standard deviation of a column's cells."""
    return np.nanstd(values, 1)


MOMENTS: dict[str, Statistic] = {"mean": mean, "sd": spread}
BY_TYPE: dict[str, dict[str, Statistic]] = {
    **STATISTICS,
    "boolean": {"mean": mean},
    "count": {**MOMENTS, "zeros": partial(share, 0.0)},
    "unit": {**MOMENTS, "zeros": partial(share, 0.0)},
}
"""By the type of the column; of levels the share of each, else `MOMENTS`."""


def posterior_predictive(vae: Any, data: Any, n: int = 100, seed: int = 0, new: bool = False) -> Any:
    """Compare each column's mean, spread and zeros with those of n data sets drawn from the fitted model.

    What all rows share comes from its posterior (Gelman et al. 1996). Each data set has the rows of the data: as many, with
    their covariates, groups and missing cells.

    Args:
        vae: a fitted model.
        data: rows as those that it was built for, better not those that it was fitted to.
        n: data sets.
        seed: of the noise.
        new: z of each row from its prior, as of other rows, which asks whether the model makes such data; else from q(z|x),
            the same rows measured again, which asks whether z holds what matters of them. The second uses x twice, and so
            forgives a lot.

    Returns: a pandas data frame with the columns of `prior_predictive`'s; its statistics are the mean and the standard
        deviation of numbers, in the data's own units, and of counts and of values in [0, 1] the share of zeros; the share of
        each level; the mean cosine and sine of angles.

    Raises: OptionError for an improper prior, with new=True, or a bad n; DataError for other rows than the model's.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(50, 2)
        >>> found = posterior_predictive(PPCA(1).fit(x), x, new=True)
        >>> bool(found.above.between(0.01, 0.99).all()), found.index.tolist()[:2]
        (True, [('x0', 'mean'), ('x0', 'sd')])
    """
    n = whole("n", n)
    batch = batch_of(vae, data)
    with reading(vae, seed):
        check(vae, batch, strict=False, read_guide=not new)
        return held_against(vae.schema, batch, replicates(vae, batch, n, seed, new), BY_TYPE, MOMENTS)
