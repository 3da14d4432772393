"""What holds of any table: encoded and decoded it is the same, what is hidden and who else is there do not matter.

Hypothesis makes up tables of two to ten rows: columns of every type, holes, covariates, in each kind of frame.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ppl_vae as pv
from ppl_vae.infer.noise import Keyed, step_keys
from ppl_vae.infer.objectives import objective
from ppl_vae.infer.scope import isolated

LEVELS = ["a", "é", "", "NaN", 'x,"y"\n']
CELLS: dict[str, st.SearchStrategy] = {
    "real": st.floats(-1e9, -1e-9) | st.just(0.0) | st.floats(1e-9, 1e9),
    "positive": st.floats(1e-9, 1e9),
    "count": st.integers(0, 2**20),
    "integer": st.integers(-(2**40), 2**40),
    "bit": st.integers(0, 1),
    "flag": st.booleans(),
    "text": st.sampled_from(LEVELS),
    "category": st.sampled_from(LEVELS),
    "ordered": st.sampled_from(LEVELS),
}
"""Values of a column of each type."""

checked = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
few = settings(checked, max_examples=15)


class Drawn(NamedTuple):
    """A table as columns of Python values, None where missing, the kind of frame, and the names of covariates."""

    columns: dict[str, list]
    kind: str
    covariates: list[str]

    def frame(self, order: list[str] | None = None, rows: Any = slice(None), kind: str | None = None) -> Any:
        """The frame of these rows, its columns in this order."""
        names = list(self.columns) if order is None else order
        frame = (
            pd.DataFrame({name: _series(name, self.columns[name]) for name in names}).iloc[rows].reset_index(drop=True)
        )
        if (kind or self.kind) == "pandas":
            return frame
        if (kind or self.kind) == "pyarrow":
            return pa.Table.from_pandas(frame)
        enums = {name: pl.Enum(LEVELS) for name in names if name.startswith("ordered")}
        return pl.from_pandas(frame).cast({name: pl.String for name in enums}).cast(enums)

    def schema(self) -> pv.Schema:
        return pv.Schema.infer(self.frame(), covariates=self.covariates)

    def model(self) -> Any:
        return pv.build(self.frame(), likelihood="infer", covariates=self.covariates, latent=1, hidden=(3,))


def _series(name: str, values: list) -> pd.Series:
    kind = name.split("_")[0]
    if kind in ("category", "ordered"):
        return pd.Series(pd.Categorical(values, LEVELS, ordered=kind == "ordered"))
    if kind == "text":
        return pd.Series(values, dtype="str")
    if None in values:
        return pd.Series(values, dtype={"flag": "boolean", "real": "float64", "positive": "float64"}.get(kind, "Int64"))
    return pd.Series(values)


@st.composite
def tables(draw: Any, least: int = 2) -> Drawn:
    n = draw(st.integers(least, 10))
    kinds = draw(st.lists(st.sampled_from(list(CELLS)), min_size=1, max_size=5))
    names = [f"{kind}_{place}" for place, kind in enumerate(kinds)]
    covariates = names[1:] if draw(st.booleans()) else []
    covariates = [name for name in covariates if draw(st.booleans())]
    columns = {}
    for name, kind in zip(names, kinds):
        values = draw(st.lists(CELLS[kind], min_size=n, max_size=n))
        if name not in covariates and draw(st.booleans()):
            whole = draw(st.integers(0, n - 1))  # a column has some value
            values = [v if i == whole or draw(st.booleans()) else None for i, v in enumerate(values)]
        columns[name] = values
    return Drawn(columns, draw(st.sampled_from(["pandas", "polars", "pyarrow"])), covariates)


def lists(frame: Any) -> dict[str, list]:
    """The columns of any frame as Python values, None where missing."""
    if isinstance(frame, pd.DataFrame):
        return {n: [None if pd.isna(v) else v for v in frame[n].tolist()] for n in frame.columns}
    return frame.to_dict(as_series=False) if isinstance(frame, pl.DataFrame) else frame.to_pydict()


@checked
@given(tables())
def test_decoding_undoes_encoding(drawn: Drawn) -> None:
    frame, schema = drawn.frame(), drawn.schema()
    batch = schema.tensors(frame, dtype=torch.float64)
    x = batch.x if batch.mask is None else torch.where(batch.mask, batch.x, torch.nan)
    back = schema.decode(x)
    assert type(back) is type(frame)
    found = lists(back)
    assert list(found) == [name for name in drawn.columns if name not in drawn.covariates]
    for name, values in found.items():
        expected = drawn.columns[name]
        assert [value is None for value in values] == [value is None for value in expected]
        if name.startswith(("real", "positive", "count", "integer", "bit")):
            numbers = np.array(expected, float)
            np.testing.assert_allclose(
                np.array(values, float), numbers, rtol=1e-12, atol=1e-14 * np.nanmax(np.abs(numbers))
            )
        else:
            assert values == expected
    again = schema.tensors(back if not drawn.covariates else frame, dtype=torch.float64)
    torch.testing.assert_close(again.x, batch.x, rtol=1e-9, atol=1e-9)


@checked
@given(tables(), st.randoms(use_true_random=False))
def test_columns_go_by_name_in_any_frame(drawn: Drawn, random: Any) -> None:
    schema = drawn.schema()
    order = random.sample(list(drawn.columns), len(drawn.columns))
    expected = schema.tensors(drawn.frame())
    for kind in ("pandas", "polars", "pyarrow"):
        found = schema.tensors(drawn.frame(order, kind=kind))
        assert all(b is None if a is None else torch.equal(a, b) for a, b in zip(expected, found))
    assert pv.Schema.from_dict(schema.to_dict()) == schema


@few
@given(tables())
def test_what_is_hidden_changes_no_bit_of_score_loss_or_gradient(drawn: Drawn) -> None:
    vae, frame = drawn.model(), drawn.frame()
    batch, seen = vae.batch(frame), []
    for hidden in (0.0, float("nan"), 1e30):
        x = batch.x if batch.mask is None else torch.where(batch.mask, batch.x, hidden)
        held = batch._replace(x=x)
        args, given_ = held.arguments()
        vae.zero_grad(set_to_none=True)
        with isolated(vae), Keyed(step_keys(torch.arange(len(x)), 0, 0)):
            loss = objective("elbo").make(1).loss_and_grads(vae.model, vae.guide, *args, **given_)
        gradients = [p.grad for p in vae.parameters()]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vae, "batch", lambda data, minimum_rows=1, held=held: held)
            scores = pv.score(vae, frame, "elbo", num_draws=3)
        seen.append([torch.tensor(loss), *gradients, torch.tensor(scores.values), torch.tensor(scores.mcse)])
    assert all(torch.equal(a, b) for other in seen[1:] for a, b in zip(seen[0], other))


@few
@given(tables(least=3), st.randoms(use_true_random=False))
def test_a_score_is_of_its_row_alone(drawn: Drawn, random: Any) -> None:
    vae, n = drawn.model(), len(next(iter(drawn.columns.values())))
    scores = pv.score(vae, drawn.frame(), num_draws=5)
    order = random.sample(range(n), n)
    for rows in (order, order[: n // 2], [order[0]], [0, *[order[0]] * 4]):
        found = pv.score(vae, drawn.frame(rows=rows), num_draws=5)
        np.testing.assert_allclose(found.values, scores.values[rows], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found.mcse, scores.mcse[rows], rtol=1e-4, atol=1e-6)
    assert np.array_equal(pv.score(vae, drawn.frame(), num_draws=5).values, scores.values)
