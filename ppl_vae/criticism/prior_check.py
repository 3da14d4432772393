"""A model held against data before it is fitted, or after: what data sets drawn from it have in common with the data."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from pyro import poutine

from ppl_vae.data.schema import Batch
from ppl_vae.errors import OptionError, whole
from ppl_vae.infer.draws import batch_of, plated
from ppl_vae.infer.scope import reading

RANGE = (0.05, 0.95)
"""Quantiles over data sets between which a statistic is expected."""
CELLS = 2**22
"""Cells drawn at a time, at least one data set."""

Statistic = Callable[[np.ndarray], np.ndarray]
"""Of one column of S data sets, (S, n) in its own units, NaN where a cell is missing: (S,)."""


def quantile(share: float, values: np.ndarray) -> np.ndarray:
    """The value that a share of a column's cells lies below."""
    return np.nanquantile(values, share, axis=1)


def share(code: float, values: np.ndarray) -> np.ndarray:
    """The share of a column's cells that have this value."""
    return (values == code).sum(1) / (~np.isnan(values)).sum(1)


def turned(function: Callable, values: np.ndarray) -> np.ndarray:
    """The mean of a function of a column's angles."""
    return np.nanmean(function(values), 1)


NUMBERS: dict[str, Statistic] = {f"{q:.0%}": partial(quantile, q) for q in (0.05, 0.5, 0.95)}
STATISTICS: dict[str, dict[str, Statistic]] = {
    "count": {**NUMBERS, "zeros": partial(share, 0.0)},
    "boolean": {"0": partial(share, 0.0), "1": partial(share, 1.0)},
    "angle": {"cos": partial(turned, np.cos), "sin": partial(turned, np.sin)},
}
"""By the type of the column; of levels the share of each, else `NUMBERS`."""


def prior_predictive(vae: Any, data: Any, n: int = 100, seed: int = 0) -> Any:
    """Compare each column with that of n data sets drawn from the model as it stands.

    z comes from the prior, and so do classes and what all rows share, such as effects of groups; x from p(x|z). Each data
    set has the rows of the data: as many, with their covariates, groups and missing cells. Before a fit this is the prior
    predictive check (Gelman et al. 2020, Bayesian Workflow, section 2.4), with weights that are random as the nets were
    made; after it, a check of what was learned, under the fitted prior.

    Args:
        vae: a model, fitted or not; its prior has to be proper.
        data: rows as those that it was built for.
        n: data sets. The smallest share above the data but 0 is 1 / (2n).
        seed: of the noise.

    Returns: a pandas data frame, one row for each (column, statistic): the 5 %, 50 % and 95 % quantiles of numbers, in the
        data's own units, and of counts the share of zeros; the share of each level; the mean cosine and sine of angles.
        Its columns: "data"; "model", the median over data sets, with "low" and "high", the 5 % and 95 % quantiles; "above",
        the share of data sets whose statistic is above the data's, ties counted half: near 0 or 1 the model hardly ever
        makes such data. NaN for a column without an observed cell.

    Raises: OptionError for an improper prior or a bad n; DataError for other rows than the model's.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(50, 2)
        >>> found = prior_predictive(PPCA(1).fit(x), x + np.array([0.0, 9.0]))
        >>> bool(found.above["x0"].between(0.01, 0.99).all()), found.above["x1"].tolist()
        (True, [0.0, 0.0, 0.0])
    """
    n = whole("n", n)
    batch = batch_of(vae, data)
    args, given = batch.arguments()
    rows = len(batch.x)

    def drawn() -> Iterator[torch.Tensor]:
        at_once = max(1, CELLS // batch.x.numel())
        for start in range(0, n, at_once):
            model = plated(vae.model, min(at_once, n - start))
            try:
                sites = poutine.trace(model).get_trace(None, *args[1:], n=rows, **given).nodes
            except NotImplementedError as error:
                raise OptionError(
                    "prior_predictive: got an improper prior, which cannot be sampled; expected a proper one"
                ) from error
            yield sites["x"]["value"].expand(min(at_once, n - start), *batch.x.shape)

    with reading(vae, seed):
        return held_against(vae.schema, batch, drawn(), STATISTICS, NUMBERS)


def held_against(
    schema: Any,
    batch: Batch,
    drawn: Iterable[torch.Tensor],
    by_type: dict[str, dict[str, Statistic]],
    others: dict[str, Statistic],
) -> Any:
    """Statistics of columns beside those of drawn data sets, the data frame that `prior_predictive` describes.

    Args:
        schema: of the data, or None.
        batch: n encoded rows.
        drawn: encoded data sets, (S, n, d) at a time.
        by_type: statistics of a column by its type, beside the share of each level; others: of any other type.
    """
    import pandas as pd

    statistics = _statistics(schema, batch.x.shape[1], by_type, others)
    seen = _values(statistics, _own(schema, batch.x[None], batch.mask))[0]
    made = np.concatenate([_values(statistics, _own(schema, x, batch.mask)) for x in drawn])
    known = ~np.isnan(made).all(0)
    made, held = made[:, known], seen[known]
    # of these quantiles one more data set is outside of the range as often as it says, of NumPy's own more often
    low, middle, high = np.nanquantile(made, (RANGE[0], 0.5, RANGE[1]), axis=0, method="weibull")
    above = ((made > held).sum(0) + (made >= held).sum(0)) / (2 * (~np.isnan(made)).sum(0))
    index = pd.MultiIndex.from_tuples([name for name, *_ in statistics], names=["column", "statistic"])
    found = pd.DataFrame({"model": middle, "low": low, "high": high, "above": above}, index[known]).reindex(index)
    found.insert(0, "data", seen)
    return found


def _statistics(
    schema: Any, d: int, by_type: dict[str, dict[str, Statistic]], others: dict[str, Statistic]
) -> list[tuple[tuple[str, str], int, Statistic]]:
    """(column's name, statistic's name), column and function of each."""
    names = [f"x{j}" for j in range(d)] if schema is None else schema.names
    types = ("real",) * d if schema is None else schema.column_types
    levels = (None if schema is None else schema.levels) or (None,) * d
    found = []
    for j in range(d):
        shares = {str(level): partial(share, float(code)) for code, level in enumerate(levels[j] or ())}
        of = shares or by_type.get(types[j], others)
        found += [((names[j], name), j, function) for name, function in of.items()]
    return found


def _values(statistics: list, own: np.ndarray) -> np.ndarray:
    """Of data sets (S, n, d): (S, statistics), NaN where a data set has no cell of the column."""
    found, some = np.full((len(own), len(statistics)), np.nan), ~np.isnan(own).all(1)
    for k, (_, j, function) in enumerate(statistics):
        sets = some[:, j]
        if sets.any():
            found[sets, k] = function(own[sets, :, j])
    return found


def _own(schema: Any, x: torch.Tensor, mask: Any) -> np.ndarray:
    """Encoded data sets (S, n, d) in their own units, levels as codes, NaN where a cell is missing."""
    seen = x if mask is None else torch.where(mask, x, torch.nan)
    scale, loc = (1.0, 0.0) if schema is None else (schema.scale or 1.0, schema.loc or 0.0)
    return seen.double().cpu().numpy() * np.asarray(scale) + np.asarray(loc)
