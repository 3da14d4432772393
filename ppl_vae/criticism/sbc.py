"""Simulation-based calibration of the encoder: where the z that made a row ranks among draws from q(z|x)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.criticism.simulation import CELLS, pattern, simulate
from ppl_vae.data.schema import Batch
from ppl_vae.errors import OptionError, whole
from ppl_vae.infer import noise
from ppl_vae.infer.draws import (
    check,
    facts,
    jacobians,
    log_densities,
    model_sites,
    plated,
    row_keys,
    sample_sites,
    told_apart,
)
from ppl_vae.infer.joint import holding
from ppl_vae.infer.noise import Keyed
from ppl_vae.infer.scope import reading

LOG_LIK = "log p(x|z)"
"""The name of the quantity that depends on the row."""
TIES = 0x7E5
"""Sets the noise that breaks ties apart from that of draws."""
LEVEL = 1e-3
"""Level of a verdict over all quantities together: of the smallest p times their number (Bonferroni)."""
PLAIN = 4.0
"""Standard errors from which a mean or a spread of ranks is called off."""


@dataclass(frozen=True, repr=False)
class Ranks:
    """Ranks of the truth among draws, uniform on 0, ..., L where q(z|x) is the posterior (Talts et al. 2018, theorem 1).

    Attributes:
        ranks: (simulations, quantities), whole numbers.
        names: of the quantities: z[0], z[1], ... and log p(x|z).
        num_draws: L.
    """

    ranks: np.ndarray
    names: tuple[str, ...]
    num_draws: int

    def counts(self, bins: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """How many ranks fall into each bin, (bins, quantities), and how many are expected to, (bins,).

        Args:
            bins: at most L + 1; None: 20, or fewer, so that 5 are expected in each.
        """
        n, values = len(self.ranks), self.num_draws + 1
        bins = max(2, min(20, values, n // 5)) if bins is None else whole("bins", bins, 2)
        if bins > values:
            raise OptionError(f"bins: got {bins}, expected at most one for each of the {values} ranks")
        where = np.arange(values) * bins // values  # bins of unequal numbers of ranks where L + 1 is no multiple
        members = where[self.ranks][..., None] == np.arange(bins)
        return members.sum(0).T, np.bincount(where, minlength=bins) * n / values

    def p_values(self, bins: int | None = None) -> np.ndarray:
        """Chi-square p-values of uniformity, (quantities,)."""
        from scipy.stats import chi2

        counts, expected = self.counts(bins)
        return chi2.sf(((counts - expected[:, None]) ** 2 / expected[:, None]).sum(0), len(expected) - 1)

    @property
    def fractions(self) -> np.ndarray:
        """Ranks as shares in (0, 1), (simulations, quantities)."""
        return (self.ranks + 0.5) / (self.num_draws + 1)

    @property
    def table(self) -> Any:
        """A pandas data frame, one row a quantity.

        Columns: "p", of the chi-square test; "mean" of the ranks as shares, 1/2 where calibrated; "spread", their standard
        deviation over that of uniform ranks, 1 where calibrated; "finding" in words, at level 0.001 over all quantities.
        """
        import pandas as pd

        share, even = self.fractions, np.sqrt((1 - (self.num_draws + 1.0) ** -2) / 12)
        mean, spread = share.mean(0), share.std(0, ddof=1) / even
        index = pd.Index(self.names, name="quantity")
        return pd.DataFrame({"p": self.p_values(), "mean": mean, "spread": spread, "finding": self._findings()}, index)

    def _findings(self) -> list[str]:
        share, n = self.fractions, len(self.ranks)
        shift = (share.mean(0) - 0.5) * np.sqrt(12 * n)
        spread = (((share - 0.5) ** 2).mean(0) * 12 - 1) / np.sqrt(0.8 / n)  # var of 12 (u - 1/2)^2 is 4/5
        found = []
        for name, p, move, width in zip(self.names, self.p_values(), shift, spread):
            low, high = ("too large", "too small")
            if name == LOG_LIK:
                low, high = ("higher than of the truth", "lower than of the truth: part of x is not used")
            parts = [high if move > 0 else low] if abs(move) > PLAIN else []
            if abs(width) > PLAIN and not (parts and name == LOG_LIK):
                parts.append("too narrow" if width > 0 else "too wide")
            found.append("calibrated" if p * len(self.names) > LEVEL else ", ".join(parts) or "not uniform")
        return found

    @property
    def verdict(self) -> str:
        """In a sentence, whether the guide is calibrated on rows that the model makes, at level 0.001 (`LEVEL`)."""
        p, n = self.p_values(), len(self.ranks)
        worst = int(p.argmin())
        if p[worst] * len(p) > LEVEL:
            return (
                f"the guide is calibrated as far as {n} simulated rows can tell, at level {LEVEL:g} "
                f"(smallest p {p[worst]:.2g} of {len(p)})"
            )
        bad = int((p * len(p) <= LEVEL).sum())
        finding = self._findings()[worst]
        words = f"draws are {finding}" if finding != "not uniform" else "ranks are not uniform"
        return (
            f"{bad} of {len(p)} quantities are not calibrated at level {LEVEL:g}; {self.names[worst]} most "
            f"(p {p[worst]:.2g}): {words}"
        )

    def __repr__(self) -> str:
        return f"Ranks({len(self.ranks)} simulations, {self.num_draws} draws; {self.verdict})"


def sbc(vae: Any, num_simulations: int = 1000, num_draws: int = 99, seed: int = 0, given: Any = None) -> Ranks:
    """Rank the z that made a row among draws from the guide (Talts et al. 2018): of the encoder, a matter of seconds.

    z* ~ p(z), x* ~ p(x|z*), then the rank of each z*_j among L draws of z_j from q(z|x*), and that of log p(x*|z*) among
    log p(x*|z) at the same draws. The last one depends on the row, and so sees what ranks of z cannot: a guide that ignores
    x and is the prior has uniform ranks of z (Modrak et al. 2023). Uniform ranks speak for the guide on rows that the model
    makes, not for the model on rows of the data.

    Args:
        vae: a model with its guide. Sites that all rows share are held at one draw from their posterior, classes unknown.
        num_simulations: rows.
        num_draws: L.
        seed: of the noise.
        given: rows whose covariates, groups and missing cells the simulated rows take, in turn; needed by a model with
            covariates. None: groups that were not seen, no missing cells.

    Returns: `Ranks`; equal values, as of discrete z, are put in an order at random. Its verdict is at level 0.001 over all
        quantities: of the smallest p times their number.

    Raises: OptionError for an improper prior or a point posterior, or where `given` is needed.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> sbc(PPCA(1).fit(np.random.RandomState(0).randn(50, 3)), num_simulations=200, num_draws=19)
        Ranks(200 simulations, 19 draws; the guide is calibrated as far as 200 simulated rows can tell, at level 0.001
        (smallest p ... of 2))
    """
    n, num_draws = whole("num_simulations", num_simulations, 10), whole("num_draws", num_draws)
    like = pattern(vae, n, given)
    with reading(vae, seed):
        made = simulate(vae, n, seed, like)
        if facts(vae, made.batch).point:
            raise OptionError("sbc: got a point posterior, expected one with draws to rank the truth among")
        check(vae, made.batch, strict=False)
        keys = told_apart(row_keys(made.batch, seed))  # equal rows would have equal draws, and ranks that go together
        height = max(1, CELLS // ((num_draws + 1) * made.batch.x.shape[1]))
        parts = []
        for start in range(0, n, height):
            rows = slice(start, start + height)
            truth = {name: value[:, rows] for name, value in made.sites.items()}
            values = _quantities(vae, made.batch.rows(rows), truth, made.shared, keys[rows], num_draws)
            ties = noise.uniforms(noise.mix(keys[rows] + TIES), 1, values.shape[-1])[0]
            parts.append(rank_of_first(values, ties))
    ranks = torch.cat(parts).cpu().numpy()
    names = (*(f"z[{j}]" for j in range(ranks.shape[1] - 1)), LOG_LIK)
    return Ranks(ranks, names, num_draws)


def _quantities(
    vae: Any, batch: Batch, truth: dict[str, Tensor], shared: dict[str, Tensor], keys: Tensor, num_draws: int
) -> Tensor:
    """What is ranked, (L + 1, n, k + 1) float64: of the truth, then of L draws."""
    args, given = batch.arguments()
    with Keyed(keys, strict=False):
        guide = plated(poutine.replay(vae.guide, trace=holding(shared, num_draws)), num_draws)
        drawn = sample_sites(poutine.trace(guide).get_trace(*args, **given))
        sites = {name: torch.cat([value, drawn[name]["value"]]) for name, value in truth.items() if name in drawn}
        values = holding({**sites, **{name: v.expand(num_draws + 1, *v.shape[1:]) for name, v in shared.items()}})
        model = model_sites(vae, batch, values, num_draws + 1)
    log_lik = log_densities(model, jacobians(vae, batch), batch)[1]
    return torch.cat([sites["z"].double(), log_lik[..., None]], -1)


def rank_of_first(values: Tensor, uniform: Tensor) -> Tensor:
    """The rank, 0 to L, of the first of values (L + 1, n, q) among the others; its place among equals by noise (n, q)."""
    below, equal = (values[1:] < values[0]).sum(0), (values[1:] == values[0]).sum(0)
    return below + (uniform * (equal + 1)).floor().long()
