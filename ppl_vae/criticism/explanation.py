"""Which columns make a row's score, and what they would be in a normal row."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.criticism.beyond import without_nan
from ppl_vae.criticism.imputation import own
from ppl_vae.criticism.scores import score
from ppl_vae.data.columns import TYPES
from ppl_vae.data.fill import filled
from ppl_vae.data.schema import Batch
from ppl_vae.errors import OptionError, number, whole
from ppl_vae.infer.draws import Draws, batch_of, each_block, facts, jacobians, likelihood_mean, log_prob_per_feature

CELLS = 2**22
"""Of rows that are repaired at a time."""
LEAST = -1e30
"""Log densities below are taken for this one: of draws that are impossible."""
ROUNDS = 5
"""How often a repaired row is shown to the encoder again, whose first answer believes the cell in question."""


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """Of n rows of d columns; densities in nats of the data in its own units.

    Attributes:
        scores: (n,), the reconstruction probability.
        parts: (n, d), sum_s w_s log p(x_d|z_s), w_s in proportion to p(x|z_s); 0 for a hole.
        remainder: (n,), -KL(w || 1/S), from -log S to 0: scores are parts summed and the remainder.
        gain: (n, d), how much the score would rise if that cell were what the others ask for: large for the columns that
            make a row anomalous, and comparable between columns; inf where it makes an impossible row possible, -inf for
            a hole, and where the row is impossible with it and without.
        instead: (n, d), what the others ask for, in encoded units: see `repaired`.
        names: the d columns.
        vae, data: what was explained.
    """

    scores: np.ndarray
    parts: np.ndarray
    remainder: np.ndarray
    gain: np.ndarray
    instead: np.ndarray
    names: tuple[str, ...]
    vae: Any
    data: Any

    def __repr__(self) -> str:
        return f"Explanation({len(self.scores)} rows by {len(self.names)} columns)"

    def columns(self, row: int, most: int = 3) -> list[tuple[str, float]]:
        """The columns of a row whose repair gains most, the largest gain first.

        Without those whose repair leaves the row as impossible as it was: none, where more than one cell makes it so.

        Args:
            row: its place.
            most: so many columns, at most.

        Returns: (name, gain in nats) of each.

        Raises: OptionError for a place that there is not.
        """
        if whole("row", row, 0) >= len(self.scores):
            raise OptionError(f"row: got {row!r}, expected a place from 0 to {len(self.scores) - 1}")
        order = np.argsort(-self.gain[row], kind="stable")[: whole("most", most)]
        return [(self.names[j], float(self.gain[row, j])) for j in order if self.gain[row, j] > -np.inf]

    def repaired(self, least: float = 3.0) -> Any:
        """The rows with their worst cell as the others ask for, where that gains enough.

        A row with more than one wrong cell may still be anomalous: explain it again.

        Args:
            least: gain in nats from which on a cell is replaced; 3 is a factor of 20.

        Returns: n rows, of the data's own type; as they were, where no repair gains enough.
        """
        least, worst, schema, cells = number("least", least), self.gain.argmax(1), self.vae.schema, {}
        for j in np.unique(worst):
            rows = np.flatnonzero((worst == j) & (self.gain[:, j] >= least))
            values = self.instead[rows, j]
            cells[self.names[j]] = rows, values if schema is None else own(schema, int(j), values)
        return filled(self.data, cells, self.names if schema is None or not schema.beside else None)

    def frame(self) -> Any:
        """The gains as a pandas data frame.

        Returns: n rows, a column for each of the data, in nats.
        """
        import pandas as pd

        return pd.DataFrame(self.gain, columns=list(self.names))


def explain(vae: Any, data: Any, num_draws: int = 64, seed: int = 0) -> Explanation:
    """Say which columns make rows anomalous.

    The reconstruction probability (An & Cho 2015, algorithm 4) is taken apart: with w_s = p(x|z_s) / sum_t p(x|z_t), log
    (1/S) sum_s p(x|z_s) = sum_d sum_s w_s log p(x_d|z_s) - KL(w || 1/S). An encoder that is misled by one cell lets others
    look bad, so that the parts tell little of who is to blame; hence each cell in turn is replaced by what the others ask
    for, E[x_d|z] at draws weighted by p(x_-d|z), shown to the encoder again some times, and the row is scored anew. The
    cells that are replaced are a search's, which ends near E[x_d|x_-d]; the gains are those of these cells.

    Args:
        vae: a model with its guide.
        data: n rows, of interest: the work is that of scoring 6 n d rows.
        num_draws: S.
        seed: of the noise.

    Returns: `Explanation`.

    Raises: ProgramError for a likelihood that is no product over columns; DataError.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> random = np.random.RandomState(0)
        >>> x = random.randn(200, 1) + 0.1 * random.randn(200, 4)  # four columns that agree
        >>> found = explain(PPCA(1).fit(x), np.array([[0.3, 0.3, 9.0, 0.3]]))
        >>> found.columns(0, 1)[0][0], bool(abs(found.repaired()[0, 2] - 0.3) < 0.2)
        ('x2', True)
        >>> bool(np.allclose(found.parts.sum(1) + found.remainder, found.scores))
        True
    """
    batch = batch_of(vae, data)
    n, d = batch.x.shape
    known = facts(vae, batch)
    draws = 1 if known.point and not known.shared else whole("num_draws", num_draws)
    found = each_block(vae, batch, draws, seed, _weighted, log_prob_per_feature, False)
    scores, parts, remainder = (torch.cat(column).numpy(force=True) for column in zip(*found))
    scores = without_nan(scores)
    seen = np.ones((n, d), bool) if batch.mask is None else batch.mask.numpy(force=True)
    parts = parts + np.where(seen, np.array(jacobians(vae, batch)), 0.0)
    gain, instead = np.full((n, d), -np.inf), batch.x.numpy(force=True).copy()
    rows, columns = np.nonzero(seen)
    most = max(1, CELLS // d)
    for start in range(0, len(rows), most):
        here = rows[start : start + most], columns[start : start + most]
        some, which = batch.rows(torch.from_numpy(here[0])), torch.from_numpy(here[1])
        for _ in range(ROUNDS):
            some = _replaced(vae, some, which, draws, seed)
        after, before = score(vae, some, num_draws=draws, seed=seed).values, scores[here[0]]
        possible = after > -np.inf  # of an impossible row, a repair that leaves it impossible gains nothing
        gain[here] = np.where(possible, after - np.where(possible, before, 0.0), -np.inf)
        instead[here] = some.x[torch.arange(len(which)), which].numpy(force=True)
    names = tuple(vae.schema.names) if vae.schema is not None else tuple(f"x{j}" for j in range(d))
    return Explanation(scores, parts, remainder, gain, instead, names, vae, data)


def _weighted(block: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (n,), parts (n, d) in encoded units, remainder (n,)."""
    assert block.observed is not None
    log_weight = block.log_lik.clamp(min=LEAST).log_softmax(0)
    weight, log_draws = log_weight.exp(), np.log(len(log_weight))
    remainder = -(weight * log_weight).sum(0) - log_draws
    parts = torch.where(weight[..., None] > 0, weight[..., None] * block.observed, 0.0).sum(0)  # not 0 * -inf
    return block.log_lik.logsumexp(0) - log_draws, parts, remainder


def _replaced(vae: Any, batch: Batch, which: Tensor, draws: int, seed: int) -> Batch:
    """Rows whose cell in column `which` (n,) is E[x_d|z] at draws weighted by p(x_-d|z); whole where it has to be."""
    types = vae.schema.column_types if vae.schema is not None else ("real",) * batch.x.shape[1]
    angles = torch.tensor([kind == "angle" for kind in types], device=batch.x.device)
    numbers = torch.tensor([TYPES[kind].continuous for kind in types], device=batch.x.device) & ~angles
    start = 0

    def both(site: Any) -> Tensor:
        return torch.stack([log_prob_per_feature(site), likelihood_mean(site).double()], -1)

    def read(block: Draws) -> Tensor:
        nonlocal start
        assert block.observed is not None
        n = block.log_lik.shape[1]
        column = which[start : start + n].to(block.log_lik.device)
        start += n
        cell = block.observed[:, torch.arange(n), column]  # (S, n, 2)
        weight = (block.log_lik - cell[..., 0]).nan_to_num(LEAST).clamp(min=LEAST).softmax(0)
        mean, best = (weight * cell[..., 1]).sum(0), cell[..., 1].gather(0, weight.argmax(0)[None])[0]
        return torch.where(numbers[column], mean, torch.where(angles[column], best, best.round()))

    found = each_block(vae, batch, draws, seed, read, both, False)
    x = batch.x.clone()
    x[torch.arange(len(x)), which] = torch.cat(found).to(x)
    return batch._replace(x=x)
