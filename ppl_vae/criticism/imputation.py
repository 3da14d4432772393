"""Missing cells: drawn many times from p(missing | observed), and filled once by what is most expected."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.criticism.inference_data import attributes, wrapped
from ppl_vae.data.tables import as_pandas, like_original
from ppl_vae.errors import DataError, OptionError, ProgramError, whole
from ppl_vae.infer.draws import Draws, each_block, facts
from ppl_vae.infer.noise import base
from ppl_vae.model.families import expected
from ppl_vae.model.mixed import Columnwise


@dataclass(frozen=True, repr=False)
class Imputed:
    """Imputations of the missing cells of a table of n rows.

    Attributes:
        frame: the data with each hole filled once, of the data's own type: the mean of a number, the most probable level
            of a category, the median level of an ordered one. Observed cells are as they were.
        draws: ArviZ's InferenceData (0.2x) or a DataTree (1.x); group posterior: each column with holes, dimensions chain
            (1), draw, row, in own units (codes of categorical columns, whose levels are in its attributes).
        ess: (n,) effective number of the candidates of each row, NaN for rows without holes: where it is small beside
            the number of draws, these are too alike.
    """

    frame: Any
    draws: Any
    ess: np.ndarray
    _table: Any = field(default=None)
    _cells: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def __repr__(self) -> str:
        cells = sum(len(rows) for rows, _ in self._cells.values())
        return f"Imputed({cells} cells of {len(self.ess)} rows, {self.num_draws} draws)"

    @property
    def num_draws(self) -> int:
        """The number of imputations M."""
        return next((len(values) for _, values in self._cells.values()), 0)

    def completed(self, m: int) -> Any:
        """The m-th completed table, of the data's own type: analyse each, then pool by Rubin's rules."""
        if not 0 <= m < self.num_draws:
            raise OptionError(f"m: got {m!r}, expected a number from 0 to {self.num_draws - 1}")
        return self._table.filled({name: (rows, values[m]) for name, (rows, values) in self._cells.items()})


def impute(vae: Any, data: Any, num_draws: int = 20, seed: int = 0, candidates: int = 1000) -> Imputed:
    """Impute missing cells by sampling importance resampling (Rubin 1987; Mattei & Frellsen 2019, eqs. 11 and 12).

    For every row `candidates` pairs z ~ q(z|x_obs), x_mis ~ p(x_mis|z) are weighted by p(x_obs, z) / q(z|x_obs); the draws
    are `num_draws` of them without replacement, jointly for all holes of the row; the single filling is the weighted
    mean of E[x_mis|z].

    Assumes that cells are missing at random: whether a cell is missing may depend on what was observed in its row, not on
    its own value. The draws hold the model's weights fixed, so they are not proper in Rubin's sense: pooled variances are
    too small by what the weights are uncertain.

    Args:
        vae: a model with nullable columns.
        data: n rows; NaN where missing.
        num_draws: M, imputations of each hole.
        seed: of all noise.
        candidates: draws a row to resample from.

    Raises: OptionError for a model without nullable columns, or without weights; ProgramError for a joint likelihood.

    Example:
        >>> from ppl_vae.model.build import build
        >>> x = np.random.RandomState(0).randn(30, 3)
        >>> x[::2, 0] = np.nan
        >>> imputed = impute(build(x, latent=2, hidden=(8,), nullable=True), x, num_draws=5)
        >>> bool(np.isfinite(imputed.frame).all()), bool((imputed.frame == x)[~np.isnan(x)].all())
        (True, True)
    """
    num_draws, candidates = whole("num_draws", num_draws), whole("candidates", candidates)
    if candidates < num_draws:
        raise OptionError(f"candidates: got {candidates}, expected at least num_draws = {num_draws}")
    schema = vae.schema
    if schema is None or not schema.nullable:
        raise OptionError("impute: got a model without nullable columns, expected one built with nullable=...")
    batch = vae.batch(data)
    known = facts(vae, batch)
    if known.point or not known.proper:
        raise OptionError("impute: got a point posterior or an improper prior, whose draws have no weights")
    holes = ~batch.mask
    where = holes.any(1).nonzero()[:, 0]
    ess = np.full(len(holes), np.nan)
    cells: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    points: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if len(where):
        filled = each_block(vae, batch.rows(where), candidates, seed, lambda d: _resampled(d, num_draws), _proposed)
        point, drawn = (torch.cat([getattr(f, part) for f in filled], -2).double().cpu().numpy() for part in ("point", "drawn"))
        ess[where.cpu().numpy()] = torch.cat([f.ess for f in filled]).cpu().numpy()
        missing, rows = holes[where].cpu().numpy(), where.cpu().numpy()
        for j in missing.any(0).nonzero()[0]:
            here = missing[:, j]
            points[schema.names[j]] = rows[here], schema.own(point[here, j], j)
            cells[schema.names[j]] = rows[here], schema.own(drawn[:, here, j], j)
    table = like_original(data, schema)
    return Imputed(table.filled(points), _arviz(vae, cells, len(holes), num_draws, seed), ess, table, cells)


class _Filled(NamedTuple):
    """Of some rows: `point` (n, d), `drawn` (M, n, d), both encoded; `ess` (n,)."""

    point: Tensor
    drawn: Tensor
    ess: Tensor


def _parts(site: Any) -> tuple[list[Any], Tensor]:
    """The entrywise distributions under a likelihood's site, and the columns of each, one after another."""
    entries = base(site["fn"])
    if entries.event_dim:
        raise ProgramError(
            f"impute: got the likelihood {type(entries).__name__}, whose entries depend on each other; expected one "
            "distribution an entry"
        )
    if isinstance(entries, Columnwise):
        return entries.parts, entries.columns
    return [entries], torch.arange(entries.batch_shape[-1])


def _proposed(site: Any) -> Tensor:
    """(S, n, 2 d + codes): a draw of every cell, its mean, and the probabilities of the levels of coded columns."""
    parts, columns = _parts(site)
    order = columns.argsort()
    drawn = torch.cat([part.sample().to(torch.get_default_dtype()) for part in parts], -1)[..., order]
    means = torch.cat([expected(part) for part in parts], -1)[..., order]
    levels = [part.probs.flatten(-2) for part in parts if isinstance(part, torch.distributions.Categorical)]
    site["fn"].coded = None
    return torch.cat([drawn, means, *levels], -1)
