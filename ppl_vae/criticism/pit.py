"""Probability integral transforms: where each cell lies in what the model predicts for it, column by column."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ppl_vae.criticism.simulation import replicates
from ppl_vae.errors import whole
from ppl_vae.infer import noise
from ppl_vae.infer.draws import batch_of, check, row_keys, told_apart
from ppl_vae.infer.scope import reading

SPLIT = 0x917
"""Sets the noise that spreads equal values apart from that of draws."""


@dataclass(frozen=True, repr=False)
class PIT:
    """Of each cell the share of the prediction below it, uniform on (0, 1) if the model is right.

    Attributes:
        values: (n, d), NaN where a cell is missing.
        names: of the d columns.
        num_draws: of the prediction of each cell.
    """

    values: np.ndarray
    names: tuple[str, ...]
    num_draws: int

    @property
    def fractions(self) -> np.ndarray:
        """The values, (n, d)."""
        return self.values

    def p_values(self) -> np.ndarray:
        """Kolmogorov-Smirnov p-values of uniformity, (d,); NaN of a column without a cell.

        `diagnose` calls a column off where p times the number of columns is below 0.001.
        """
        from scipy.stats import kstest

        cells = [column[~np.isnan(column)] for column in self.values.T]
        return np.array([kstest(u, "uniform").pvalue if len(u) else np.nan for u in cells])

    @property
    def table(self) -> Any:
        """A pandas data frame, one row a column: "p"; "mean", above 1/2 where the data are larger than predicted; "spread",
        the standard deviation over that of uniform values, above 1 where predictions are too narrow."""
        import pandas as pd

        held = [column[~np.isnan(column)] for column in self.values.T]
        mean = [u.mean() if len(u) else np.nan for u in held]
        wide = [u.std() * np.sqrt(12) if len(u) else np.nan for u in held]
        return pd.DataFrame({"p": self.p_values(), "mean": mean, "spread": wide}, pd.Index(self.names, name="column"))

    def __repr__(self) -> str:
        p = self.p_values()
        least = np.nanmin(p) if np.isfinite(p).any() else np.nan
        return f"PIT({self.values.shape[0]} rows, {len(p)} columns; smallest p {least:.2g})"


def pit(vae: Any, data: Any, num_draws: int = 99, seed: int = 0) -> PIT:
    """Where each cell lies among draws from the marginal predictive p(x_j), z from its prior (Dawid 1984).

    The prediction does not see the row, only its covariates and group; what all rows share comes from its posterior. So it
    criticises the model, column by column; a prediction with z from q(z|x) would have seen the cell, and is not uniform
    under any model. With u = (cells drawn below + v (ties + 1)) / (L + 1), v uniform, u is exactly uniform at any L, also
    where values repeat (Czado et al. 2009). Use rows that the model was not fitted to.

    Args:
        vae: a fitted model with a proper prior.
        data: n rows.
        num_draws: L.
        seed: of the noise.

    Returns: `PIT`.

    Raises: OptionError for an improper prior; DataError.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(200, 2)
        >>> found = pit(PPCA(1).fit(x), x + np.array([0.0, 2.0]))
        >>> bool(found.p_values()[0] > 0.01 > found.p_values()[1]), bool(found.table["mean"]["x1"] > 0.8)
        (True, True)
    """
    num_draws, batch = whole("num_draws", num_draws), batch_of(vae, data)
    below, equal = torch.zeros_like(batch.x), torch.zeros_like(batch.x)
    with reading(vae, seed):
        check(vae, batch, strict=False, read_guide=False)  # of other rows' z, from the prior
        for x in replicates(vae, batch, num_draws, seed, new=True):
            below += (x < batch.x).sum(0)
            equal += (x == batch.x).sum(0)
    keys = noise.mix(told_apart(row_keys(batch, seed)) + SPLIT)
    split = noise.uniforms(keys, 1, batch.x.shape[1])[0]
    values = (below + split * (equal + 1)) / (num_draws + 1)
    if batch.mask is not None:
        values = torch.where(batch.mask, values, torch.nan)
    names = tuple(f"x{j}" for j in range(values.shape[1])) if vae.schema is None else vae.schema.names
    return PIT(values.double().cpu().numpy(), names, num_draws)
