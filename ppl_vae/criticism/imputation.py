"""Missing cells: drawn many times from p(missing | observed), and filled once by what is most expected."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.criticism.inference_data import attributes, wrapped
from ppl_vae.data.fill import filled
from ppl_vae.data.schema import Schema
from ppl_vae.errors import OptionError, ProgramError, whole
from ppl_vae.infer.draws import Draws, each_block, facts
from ppl_vae.infer.noise import base
from ppl_vae.model.mixed import Columnwise, expected

Cells = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Of each column with holes: their rows (m,), and own values (m,), or (M, m) for M imputations."""


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
    _data: Any = None
    _cells: Cells = field(default_factory=dict)

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
        return filled(self._data, {name: (rows, values[m]) for name, (rows, values) in self._cells.items()})


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
    points: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    cells: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if len(where):
        proposal = Proposal(schema, num_draws)
        parts = each_block(vae, batch.rows(where), candidates, seed, proposal.resample, proposal.propose)
        point, drawn, found = (np.concatenate(part, -2 + (k == 2)) for k, part in enumerate(zip(*parts)))
        rows, missing = where.cpu().numpy(), holes[where].cpu().numpy()
        ess[rows] = found
        for j in missing.any(0).nonzero()[0].tolist():
            here = missing[:, j]
            points[schema.names[j]] = rows[here], own(schema, j, point[here, j])
            cells[schema.names[j]] = rows[here], own(schema, j, drawn[:, here, j])
    return Imputed(filled(data, points), _arviz(schema, cells, num_draws, seed), ess, data, cells)


class Filled(NamedTuple):
    """Of some rows: `point` (n, d) and `drawn` (M, n, d), encoded; `ess` (n,)."""

    point: np.ndarray
    drawn: np.ndarray
    ess: np.ndarray


class Proposal:
    """Candidates for the cells of a row, and which of them are kept."""

    def __init__(self, schema: Schema, num_draws: int) -> None:
        self.types, self.num_draws = np.array(schema.column_types), num_draws
        self.coded: list[tuple[Tensor, int]] = []  # columns of each coded part, and the number of its levels

    def propose(self, site: Any) -> Tensor:
        """A draw of every cell, its mean, and the probabilities of coded columns: (S, n, 2 d + probabilities)."""
        entries = base(site["fn"])
        if entries.event_shape:
            raise ProgramError(
                f"impute: got the likelihood {type(entries).__name__}, whose entries depend on each other; expected one "
                "distribution an entry"
            )
        parts: list[Any] = [entries]
        columns: tuple[Tensor, ...] = (torch.arange(entries.batch_shape[-1]),)
        if isinstance(entries, Columnwise):
            parts, columns = entries.parts, entries.split_columns()
        order = torch.cat(tuple(columns)).argsort()
        drawn = torch.cat([part.sample().to(site["value"].dtype) for part in parts], -1)[..., order]
        means = torch.cat([expected(part) for part in parts], -1)[..., order]
        coded = [isinstance(part, torch.distributions.Categorical) for part in parts]
        self.coded = [(c, p.probs.shape[-1]) for c, p, yes in zip(columns, parts, coded) if yes]
        return torch.cat([drawn, means, *(p.probs.flatten(-2) for p, yes in zip(parts, coded) if yes)], -1)

    def resample(self, draws: Draws) -> Filled:
        """Keep draws without replacement by their weights (Gumbel top-k), and average over all by these."""
        assert draws.observed is not None
        d = len(self.types)
        log_weight = draws.log_weight - draws.log_weight.logsumexp(0)
        gumbel = -torch.log(-torch.log(torch.rand_like(log_weight)))
        kept = (log_weight + gumbel).topk(self.num_draws, 0).indices
        drawn, means, levels = draws.observed[..., :d], draws.observed[..., d : 2 * d], draws.observed[..., 2 * d :]
        weight = log_weight.exp()[..., None].to(means.dtype)
        point = (weight * means).sum(0)
        angle = torch.atan2((weight * drawn.sin()).sum(0), (weight * drawn.cos()).sum(0))
        point = torch.where(torch.as_tensor(self.types == "angle"), angle, point)
        probabilities = (weight * levels).sum(0)
        for columns, count in self.coded:
            size = len(columns) * count
            of, probabilities = (
                probabilities[..., :size].unflatten(-1, (len(columns), count)),
                probabilities[..., size:],
            )
            ordered = torch.as_tensor(self.types[columns.numpy()] == "ordinal")
            median = (of.cumsum(-1) < 0.5).sum(-1).clamp(max=count - 1)
            point[..., columns] = torch.where(ordered, median, of.argmax(-1)).to(point.dtype)
        ess = 1 / (log_weight.exp() ** 2).sum(0)
        drawn = drawn.gather(0, kept[..., None].expand(-1, -1, d))
        return Filled(*(part.double().cpu().numpy() for part in (point, drawn, ess)))


def own(schema: Schema, j: int, encoded: np.ndarray) -> np.ndarray:
    """Values of column j in its own units or levels."""
    levels = schema.levels[j] if schema.levels else None
    if levels is not None:
        return np.array(levels, dtype=object)[np.rint(encoded).astype(int).clip(0, len(levels) - 1)]
    if schema.column_types[j] == "boolean":
        return np.rint(encoded)
    values = encoded * (schema.scale[j] if schema.scale else 1.0) + (schema.loc[j] if schema.loc else 0.0)
    return np.rint(values) if schema.column_types[j] == "pixel" else values


def _arviz(schema: Schema, cells: Cells, num_draws: int, seed: int) -> Any:
    """A posterior group of the cells that were missing, each column with dimensions chain, draw and its own rows."""
    import xarray as xr

    variables, coords = {}, {"chain": [0], "draw": np.arange(num_draws)}
    for name, (rows, values) in cells.items():
        levels = schema.levels[schema.names.index(name)] if schema.levels else None
        if levels is not None:
            values = np.vectorize({level: code for code, level in enumerate(levels)}.get, otypes=[float])(values)
        of = {"levels": [str(level) for level in levels]} if levels is not None else {}
        variables[name] = (("chain", "draw", f"{name}_row"), values.astype(float)[None], of)
        coords[f"{name}_row"] = rows
    return wrapped({"posterior": xr.Dataset(variables, coords)}, attributes(num_draws, seed))
