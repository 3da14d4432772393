"""Missing cells: drawn many times from p(missing | observed), and filled once by what is most expected."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.criticism.inference_data import attributes, wrapped
from ppl_vae.data.fill import filled
from ppl_vae.data.schema import Schema
from ppl_vae.data.tables import read
from ppl_vae.errors import OptionError, ProgramError, whole
from ppl_vae.infer.draws import Draws, batch_of, check, facts, row_blocks, row_keys, told_apart
from ppl_vae.infer.rules import base
from ppl_vae.infer.scope import reading
from ppl_vae.model.mixed import Columnwise, expected

Cells = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Of each column with holes: their rows (m,), and own values (m,), or (M, m) for M imputations."""


@dataclass(frozen=True, repr=False)
class Imputed:
    """Imputations of the missing cells of a table of n rows.

    Attributes:
        frame: the data with each hole filled once, of the data's own type: the mean of a number, the whole number nearest
            to the mean of a count or pixel, or in a column of integers; the more probable value of a boolean, the most
            probable level of a category, the median level of an ordered one. Observed cells are as they were.
        draws: ArviZ's InferenceData (0.2x) or a DataTree (1.x); group posterior: each column with holes, dimensions chain
            (1), draw, row, in own units (codes of categorical columns, whose levels are in its attributes).
        ess: (n,) effective number of the candidates of each row, NaN for rows without holes: where it is small beside
            the number of draws, these repeat few candidates and are too alike.
        num_draws: the number of imputations M.
    """

    frame: Any
    draws: Any
    ess: np.ndarray
    num_draws: int
    _data: Any = None
    _cells: Cells = field(default_factory=dict)
    _names: tuple[str, ...] = ()

    @property
    def cells(self) -> int:
        """How many there were to fill."""
        return sum(len(rows) for rows, _ in self._cells.values())

    def __repr__(self) -> str:
        return f"Imputed({self.cells} cells of {len(self.ess)} rows, {self.num_draws} draws)"

    def completed(self, m: int) -> Any:
        """One completed table.

        Analyse each, then pool by Rubin's rules. The tables are exchangeable: none is better than another.

        Args:
            m: its number, from 0 to num_draws - 1.

        Returns: n rows without holes, of the data's own type.

        Raises: OptionError for a number outside.
        """
        if not 0 <= m < self.num_draws:
            raise OptionError(f"m: got {m!r}, expected a number from 0 to {self.num_draws - 1}")
        return filled(
            self._data, {name: (rows, values[m]) for name, (rows, values) in self._cells.items()}, self._names
        )


def impute(vae: Any, data: Any, num_draws: int = 20, seed: int = 0, candidates: int = 1000) -> Imputed:
    """Impute missing cells by sampling importance resampling (Rubin 1987; Mattei & Frellsen 2019, eqs. 11 and 12).

    For every row `candidates` pairs z ~ q(z|x_obs), x_mis ~ p(x_mis | z, x_obs) are weighted by p(x_obs, z) / q(z|x_obs);
    the draws are `num_draws` of them with replacement, jointly for all holes of the row; the single filling is the
    weighted mean of E[x_mis | z, x_obs]. Given z, cells depend on the observed ones under a joint normal only. A missing
    label (see `classify`) is not imputed, nor is a covariate or a group.

    A row's draws are a function of the row, the model and the seed, independent of those of other rows given the data.
    Rows with equal observed cells are told apart by their order: another order may swap their draws, no more. Sites that
    all rows share, such as effects of groups, are integrated out for each row alone: one completed table mixes several
    draws of them.

    Assumes that cells are missing at random: whether a cell is missing may depend on what was observed in its row, not on
    its own value. The draws hold the model's weights fixed, so they are not proper in Rubin's sense: pooled variances are
    too small by what the weights are uncertain.

    Args:
        vae: a model with nullable columns.
        data: n rows; NaN where missing.
        num_draws: M, imputations of each hole.
        seed: of all noise.
        candidates: draws a row to resample from.

    Returns: `Imputed`: .frame with the holes filled, .draws of each hole.

    Raises: OptionError for a model without nullable columns, or without weights; ProgramError for a joint likelihood that
        is no normal.

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
    rows, missing, found = _resampled(vae, data, num_draws, candidates, seed, told_apart)
    ess = np.full(len(missing), np.nan)
    ess[rows] = found.ess
    schema = vae.schema
    points = _cells(schema, rows, missing[rows], found.point)
    cells = _cells(schema, rows, missing[rows], found.drawn)
    names = schema.named(read(data)).names
    return Imputed(
        filled(data, points, names), _arviz(schema, cells, num_draws, seed), ess, num_draws, data, cells, names
    )


def fill_each(vae: Any, data: Any, seed: int = 0, candidates: int = 1000) -> Any:
    """The data with each hole filled once, as `impute(...).frame`, by a function of row, model and seed alone.

    Rows with equal observed cells are filled alike, where `impute` tells them apart by their order.

    Args:
        vae, data, seed, candidates: as in `impute`.

    Raises: as `impute`.
    """
    rows, missing, found = _resampled(vae, data, 1, candidates, seed, lambda keys: keys)
    return filled(data, _cells(vae.schema, rows, missing[rows], found.point), vae.schema.named(read(data)).names)


def _resampled(
    vae: Any, data: Any, num_draws: int, candidates: int, seed: int, keyed: Callable[[Tensor], Tensor]
) -> tuple[np.ndarray, np.ndarray, "Filled"]:
    """The rows (r,) with holes, which cells (n, d) are missing, and what these rows are filled with.

    Args:
        keyed: keys of rows to those that their noise goes by.
    """
    batch, schema = batch_of(vae, data), vae.schema
    if schema is None or not schema.nullable:
        raise OptionError("impute: got a model without nullable columns, expected one built with nullable=...")
    known = facts(vae, batch)
    if known.point or not known.proper:
        raise OptionError("impute: got a point posterior or an improper prior, whose draws have no weights")
    assert batch.mask is not None  # of a model with nullable columns
    missing = ~batch.mask.cpu().numpy()
    where = np.flatnonzero(missing.any(1))
    if not len(where):
        d = missing.shape[1]
        return where, missing, Filled(np.empty((0, d)), np.empty((num_draws, 0, d)), np.empty(0))
    programs, few = Candidates(vae), batch.rows(torch.from_numpy(where).to(batch.x.device))
    with reading(vae, seed):
        check(vae, few)
        keys = keyed(row_keys(few, seed))
        blocks = row_blocks(programs, few, candidates, seed, programs.observe, strict=False, keys=keys)
        parts = [programs.resample(block, num_draws) for block in blocks]
    return where, missing, Filled(*(np.concatenate(part, axis) for part, axis in zip(zip(*parts), (0, 1, 0))))


def _cells(schema: Schema, rows: np.ndarray, missing: np.ndarray, encoded: np.ndarray) -> Cells:
    """Own values of the missing cells (r, d) of some rows, from encoded ones (..., r, d)."""
    places = np.flatnonzero(missing.any(0)).tolist()
    return {schema.names[j]: (rows[missing[:, j]], own(schema, j, encoded[..., missing[:, j], j])) for j in places}


class Candidates:
    """The programs of a model, which also draw every cell of x given z and the row's observed cells.

    The draws come beside those of z, by the same keys: they too are functions of the row, the seed and their number.
    """

    def __init__(self, vae: Any) -> None:
        self.vae, self.schema, self.guide = vae, vae.schema, vae.guide
        self.coded: list[tuple[Tensor, int]] = []  # columns of each coded part, and the number of its levels
        self.latest: Tensor | None = None

    def model(self, x: Tensor, mask: Tensor, **given: Any) -> Tensor:
        """The model, and the sites "pick" and "completed", whose log densities count for nothing."""
        trace = poutine.trace(self.vae.model).get_trace(x, mask, **given)
        likelihood, entries = trace.nodes["x"]["fn"], base(trace.nodes["x"]["fn"])
        if len(likelihood.batch_shape) > 2:
            raise ProgramError("impute: got a model that sums a site out on which x depends, expected it in the guide")
        if entries.event_shape:  # masked, the mean of a joint normal means nothing: the same with nothing masked
            whole = poutine.trace(poutine.replay(self.vae.model, trace=trace))
            with poutine.block():
                entries = base(whole.get_trace(x, torch.ones_like(mask), **given).nodes["x"]["fn"])
        with poutine.block(hide=["data"]), pyro.plate("data", x.shape[-2], dim=-1):  # entered again: in the trace once
            pick = pyro.sample("pick", dist.Uniform(x.new_zeros(()), x.new_ones(())).mask(False))
            drawn = pyro.sample("completed", entries.to_event(1 - entries.event_dim).mask(False))
        drawn, means = (completed(entries, value.to(x.dtype), x, mask) for value in (drawn, expected(entries)))
        parts: list[Any] = [entries]
        columns: tuple[Tensor, ...] = (torch.arange(x.shape[-1]),)
        if isinstance(entries, Columnwise):
            parts, columns = entries.parts, entries.split_columns()
        coded = [(c, p) for c, p in zip(columns, parts) if isinstance(p, torch.distributions.Categorical)]
        self.coded = [(c, p.probs.shape[-1]) for c, p in coded]
        found = [pick[..., None], drawn, means, *(p.probs.flatten(-2) for _, p in coded)]
        self.latest = torch.cat([part.expand(*pick.shape, part.shape[-1]) for part in found], -1)
        return trace.nodes["x"]["value"]

    def observe(self, site: Any) -> Tensor:
        """What `model` drew last, (S, n, 1 + 2 d + probabilities of coded columns)."""
        assert self.latest is not None
        return self.latest

    def resample(self, block: Draws, num_draws: int) -> "Filled":
        """Draw from the candidates with replacement by their weights, and average over all by these.

        By the inverse of their cumulative weights at the first `num_draws` values of "pick" (Rubin 1987).
        """
        assert block.observed is not None and self.schema is not None
        types = np.array(self.schema.column_types)
        sizes = [1, len(types), len(types), *(len(c) * count for c, count in self.coded)]
        pick, drawn, means, *levels = block.observed.split(sizes, -1)
        share = (block.log_weight - block.log_weight.logsumexp(0)).exp()
        below = share.cumsum(0).mT.contiguous()
        kept = torch.searchsorted(below / below[:, -1:], pick[:num_draws, :, 0].mT.double().contiguous()).mT
        kept = kept.clamp(max=len(share) - 1)  # where weights are NaN
        weight = share[..., None].to(means.dtype)
        angle = torch.atan2((weight * drawn.sin()).sum(0), (weight * drawn.cos()).sum(0))
        point = torch.where(torch.as_tensor(types == "angle"), angle, (weight * means).sum(0))
        for (columns, count), of in zip(self.coded, levels):
            probability = (weight * of).sum(0).unflatten(-1, (len(columns), count))
            median = (probability.cumsum(-1) < 0.5).sum(-1).clamp(max=count - 1)
            ordered = torch.as_tensor(types[columns.numpy()] == "ordinal")
            point[..., columns] = torch.where(ordered, median, probability.argmax(-1)).to(point.dtype)
        ess = 1 / (share**2).sum(0)
        drawn = drawn.gather(0, kept[..., None].expand(-1, -1, len(types)))
        return Filled(*(part.double().cpu().numpy() for part in (point, drawn, ess)))


class Filled(NamedTuple):
    """Of some rows: `point` (n, d) and `drawn` (M, n, d), encoded; `ess` (n,)."""

    point: np.ndarray
    drawn: np.ndarray
    ess: np.ndarray


@singledispatch
def completed(entries: Any, value: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """A draw or the mean (..., n, d) of p(x|z), moved to one of p(x | z, x_obs); where x was observed it means nothing.

    For a normal: value + S_o (S_oo)^-1 (x_obs - value_obs), exact for draws (Matheron's rule) and the mean.

    Args:
        entries: p(x|z), of batch (..., n, d), or of batch (..., n) and event (d,) where entries depend on each other.
        value: (..., n, d).
        x, mask: (n, d).
    """
    if entries.event_shape:
        raise ProgramError(
            f"impute: got the likelihood {type(entries).__name__}, whose entries depend on each other, expected one "
            "distribution an entry, or a multivariate normal"
        )
    return value


@completed.register
def _(normal: torch.distributions.MultivariateNormal, value: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    rows = torch.where(mask[..., None], normal.scale_tril, 0.0).double()  # S_oo = R'R, with 1 in the holes, as `masked`
    upper = torch.linalg.qr(torch.cat([rows, torch.diag_embed(~mask).to(rows).expand_as(rows)], -1).mT).R
    residual = torch.where(mask, x - value, 0.0).double()[..., None]
    moved = normal.scale_tril.double() @ (rows.mT @ torch.cholesky_solve(residual, upper, upper=True))
    return value + moved[..., 0].to(value.dtype)


@completed.register
def _(normal: torch.distributions.LowRankMultivariateNormal, value: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    factor, scale = normal.cov_factor.double(), normal.cov_diag.double()
    rows = torch.where(mask[..., None], factor, 0.0)
    residual = torch.where(mask, x - value, 0.0).double() / scale
    inner = torch.eye(rows.shape[-1], dtype=rows.dtype) + rows.mT @ (rows / scale[..., None])
    common = torch.linalg.solve(
        inner, rows.mT @ residual[..., None]
    )  # Woodbury: also the posterior mean of the factors
    return torch.where(mask, x, value + (factor @ common)[..., 0].to(value.dtype))


SUPPORTS = {
    "positive": (float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)),
    "count": (0.0, np.inf),
    "unit": (0.0, 1.0),
    "boolean": (0.0, 1.0),
    "pixel": (0.0, 255.0),
}
"""Bounds of the values of a type of column, in its own units."""
WHOLE = ("count", "boolean", "pixel")


def own(schema: Schema, j: int, encoded: np.ndarray) -> np.ndarray:
    """Values of column j in its own units or levels, each the nearest that its type allows."""
    levels = schema.levels[j] if schema.levels else None
    if levels is not None:
        return np.array(levels, dtype=object)[np.rint(encoded).astype(int).clip(0, len(levels) - 1)]
    values = encoded * (schema.scale[j] if schema.scale else 1.0) + (schema.loc[j] if schema.loc else 0.0)
    kind = schema.column_types[j]
    return np.clip(np.rint(values) if kind in WHOLE else values, *SUPPORTS.get(kind, (-np.inf, np.inf)))


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
