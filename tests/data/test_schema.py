"""Encoding and decoding: exactness, the Jacobian, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from ppl_vae.data.datasets import load
from ppl_vae.data.schema import ROWS, Schema
from ppl_vae.errors import DataError, ModelFileError, OptionError

X = np.random.default_rng(0).normal([1, -20, 3e4], [1, 5, 1e-2], size=(50, 3))
NAMES = ["a", "b", "c"]
FRAME = pd.DataFrame(X, columns=NAMES)
KINDS = {
    "numpy": X,
    "torch": torch.from_numpy(X),
    "pandas": FRAME,
    "polars": pl.DataFrame(X, schema=NAMES, orient="row"),
    "pyarrow": pa.Table.from_pandas(FRAME),
}


def values_of(data: Any) -> np.ndarray:
    return (
        data
        if isinstance(data, np.ndarray)
        else data.numpy()
        if isinstance(data, torch.Tensor)
        else np.column_stack([np.asarray(data[name]) for name in NAMES])
    )


# ---- fit


def test_feature_scaling_has_mean_zero_and_deviation_one() -> None:
    schema = Schema.fit(X)
    np.testing.assert_allclose(schema.loc, X.mean(0), rtol=1e-14)
    np.testing.assert_allclose(schema.scale, X.std(0), rtol=1e-9)
    x = schema.tensors(X, dtype=torch.float64).x
    assert x.mean(0).abs().max() < 1e-9
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(3, dtype=torch.float64))


def test_center_and_none() -> None:
    center, none = Schema.fit(X, "center"), Schema.fit(X, "none")
    assert center.scale is None and center.loc == Schema.fit(X).loc
    assert none.loc is None and none.scale is None
    assert torch.equal(none.tensors(X, dtype=torch.float64).x, torch.from_numpy(X))


def test_a_constant_column_keeps_scale_one_and_encodes_to_zero() -> None:
    x = np.column_stack([np.full(7, 0.1), np.arange(7.0)])  # the mean of seven 0.1 is not 0.1
    schema = Schema.fit(x)
    assert schema.loc[0] == 0.1 and schema.scale[0] == 1.0
    assert (schema.tensors(x).x[:, 0] == 0).all()


@pytest.mark.parametrize("exponent", [-600, -40, 7, 500])
def test_a_power_of_two_scales_exactly(exponent: int) -> None:
    schema, scaled = Schema.fit(X), Schema.fit(np.ldexp(X, exponent))
    assert scaled.loc == tuple(np.ldexp(schema.loc, exponent))
    assert scaled.scale == tuple(np.ldexp(schema.scale, exponent))
    assert torch.equal(schema.tensors(X).x, scaled.tensors(np.ldexp(X, exponent)).x)


def test_statistics_are_float64_of_float32_data_and_one_for_all_containers() -> None:
    x = X.astype(np.float32)
    assert Schema.fit(x).loc == Schema.fit(x.astype(np.float64)).loc
    schemas = {(s.loc, s.scale) for s in map(Schema.fit, KINDS.values())}
    assert len(schemas) == 1


def test_many_rows_are_summed_in_parts() -> None:
    x = np.random.default_rng(1).normal(5, 2, size=(2 * ROWS + 3, 2))
    schema = Schema.fit(x)
    np.testing.assert_allclose(schema.loc, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(schema.scale, x.std(0), rtol=1e-12)
    expected = ((x - schema.loc) / schema.scale).astype(np.float32)
    np.testing.assert_array_equal(schema.tensors(x).x.numpy(), expected)


def test_fit_takes_data_sets() -> None:
    digits = load("digits")
    schema = Schema.fit(digits, "none")
    assert (schema.width, schema.shape, schema.kind) == (64, (8, 8), "numpy")
    assert schema.decode(schema.tensors(digits).x).shape == (1797, 8, 8)


def test_fit_refuses() -> None:
    with pytest.raises(DataError, match=r"got 1 row\(s\), expected at least 2"):
        Schema.fit(X[:1])
    with pytest.raises(OptionError, match="standardize: got 'zscore', expected one of 'feature', 'center', 'none'"):
        Schema.fit(X, "zscore")
    with pytest.raises(DataError, match=r"column 'x0': .* expected a spread that float64 holds"):
        Schema.fit(np.array([[-1.7e308], [1.7e308]]))


# ---- round trips


@pytest.mark.parametrize("standardize", ["feature", "center", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_decode_undoes_tensors_in_type_and_units(kind: str, standardize: str) -> None:
    data = KINDS[kind]
    schema = Schema.fit(data, standardize)
    back = schema.decode(schema.tensors(data, dtype=torch.float64).x)
    assert type(back) is type(data)
    np.testing.assert_allclose(values_of(back), X, rtol=1e-14)
    single = schema.decode(schema.tensors(data).x)
    np.testing.assert_allclose(values_of(single), X, rtol=1e-6)
    assert values_of(single).dtype == np.float64  # as the data were


def test_decode_keeps_float32_data_float32() -> None:
    schema = Schema.fit(X.astype(np.float32))
    batch = schema.tensors(X)
    assert schema.decode(batch.x).dtype == np.float32
    assert schema.decode(batch.x.double().numpy()).dtype == np.float64
    assert schema.decode(batch.x.requires_grad_()).dtype == np.float32


def test_decode_refuses_another_width() -> None:
    with pytest.raises(DataError, match=r"got shape \(2, 4\), expected \(n, 3\)"):
        Schema.fit(X).decode(np.zeros((2, 4)))


def test_a_schema_survives_json_exactly() -> None:
    for schema in (Schema.fit(FRAME), Schema.fit(X, "none"), Schema.fit(X.reshape(25, 3, 2))):
        again = Schema.from_dict(json.loads(json.dumps(schema.to_dict())))
        assert again == schema and hash(again) == hash(schema)


@pytest.mark.parametrize("state", [{}, {"names": ["a"], "kind": "numpy", "shape": [1], "colour": 1}, None])
def test_a_broken_state_is_refused(state: Any) -> None:
    with pytest.raises(ModelFileError, match="schema: got"):
        Schema.from_dict(state)


# ---- the Jacobian


def test_the_jacobian_is_that_of_the_encoding() -> None:
    schema = Schema.fit(X)
    loc, scale = (torch.tensor(v, dtype=torch.float64) for v in (schema.loc, schema.scale))
    jacobian = torch.func.jacrev(lambda row: (row - loc) / scale)(torch.from_numpy(X[0]))
    assert schema.log_jacobian == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-12)
    own = torch.distributions.Normal(loc, scale).log_prob(torch.from_numpy(X)).sum(-1)
    encoded = torch.distributions.Normal(0.0, 1.0).log_prob(schema.tensors(X, dtype=torch.float64).x).sum(-1)
    torch.testing.assert_close(own, encoded + schema.log_jacobian)


def test_the_jacobian_follows_a_change_of_units() -> None:
    assert Schema.fit(8 * X).log_jacobian == pytest.approx(Schema.fit(X).log_jacobian - 3 * math.log(8), abs=1e-12)
    assert Schema.fit(X, "center").log_jacobian == 0.0 == Schema.fit(X, "none").log_jacobian


# ---- tensors


def test_identity_shares_memory_and_readonly_is_copied_without_a_warning() -> None:
    x = X.astype(np.float32)
    schema = Schema.fit(x, "none")
    assert np.shares_memory(schema.tensors(x).x.numpy(), x)
    x.flags.writeable = False
    tensor = schema.tensors(x).x
    assert not np.shares_memory(tensor.numpy(), x)
    assert torch.equal(tensor, torch.from_numpy(x.copy()))
    assert torch.equal(schema.tensors(x[::-1]).x, tensor.flip(0))


def test_the_data_are_never_written_to() -> None:
    x = X.copy()
    Schema.fit(x).tensors(x, dtype=torch.float64)
    np.testing.assert_array_equal(x, X)


def test_dtypes() -> None:
    schema = Schema.fit(X)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert schema.tensors(X, dtype=dtype, device="cpu").x.dtype == dtype
    with pytest.raises(OptionError, match=r"got torch.int64, expected a floating dtype"):
        schema.tensors(X, dtype=torch.int64)


def test_a_row_encodes_alike_whatever_its_batch() -> None:
    schema = Schema.fit(X)
    whole = schema.tensors(X)
    assert whole.mask is None and whole.c is None
    assert torch.equal(torch.cat([schema.tensors(X[i : i + 1]).x for i in range(len(X))]), whole.x)


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow"])
def test_frames_are_matched_by_name(kind: str) -> None:
    schema = Schema.fit(FRAME)
    data = KINDS[kind]
    turned = data.select(["c", "a", "b"]) if kind != "pandas" else data[["c", "a", "b"]]
    assert torch.equal(schema.tensors(turned).x, schema.tensors(FRAME).x)


def test_other_columns_are_listed() -> None:
    schema = Schema.fit(FRAME)
    with pytest.raises(DataError, match=r"missing \['b'\], unknown \['z'\]"):
        schema.tensors(FRAME.rename(columns={"b": "z"}))
    with pytest.raises(DataError, match=r"columns: missing \['a', 'c'\]; got"):
        schema.tensors(FRAME[["b"]])
    with pytest.raises(DataError, match=r"columns: unknown \['z'\]; got"):
        schema.tensors(FRAME.assign(z=1.0))


def test_arrays_are_matched_by_position() -> None:
    by_name, by_place = Schema.fit(FRAME), Schema.fit(X)
    assert torch.equal(by_name.tensors(X).x, by_place.tensors(X).x)
    assert torch.equal(by_place.tensors(FRAME.rename(columns={"a": "z"})).x, by_place.tensors(X).x)
    for schema in (by_name, by_place):
        with pytest.raises(DataError, match="got 2 columns, expected 3"):
            schema.tensors(X[:, :2])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(bad: float) -> None:
    x = X.copy()
    x[4, 1] = x[7, 1] = x[2, 2] = bad
    schema = Schema.fit(FRAME)
    frame = pd.DataFrame(x, columns=NAMES)
    for call in (Schema.fit, schema.tensors):
        with pytest.raises(
            DataError, match=rf"column 'b': got {bad} in row 4 \(3 such cell\(s\) in all\), expected finite"
        ):
            call(frame)
    with pytest.raises(DataError, match="column 'x1'"):
        Schema.fit(x)
    with pytest.raises(DataError, match="column 'b'"):  # the schema's own order, whatever the frame's
        schema.tensors(frame[["c", "b", "a"]])


def test_overflow_is_named() -> None:
    schema = Schema.fit(FRAME, "none")
    large = FRAME.copy()
    large.loc[3, "c"] = 1e39
    with pytest.raises(DataError, match=r"column 'c': got 1e\+39 in row 3, expected a value that fits torch.float32"):
        schema.tensors(large)
    assert schema.tensors(large, dtype=torch.float64).x[3, 2] == 1e39
    with pytest.raises(DataError, match=r"column 'c'.*float16"):
        schema.tensors(FRAME * 10, dtype=torch.float16)
    with pytest.raises(DataError, match="column 'a'"):
        Schema.fit(FRAME * 1e-30).tensors(FRAME * 1e30)


def test_too_few_rows() -> None:
    schema = Schema.fit(X)
    assert schema.tensors(X[:1]).x.shape == (1, 3)
    with pytest.raises(DataError, match=r"got 1 row\(s\), expected at least 2"):
        schema.tensors(X[:1], minimum_rows=2)


def test_files_are_data_too(tmp_path: Path) -> None:
    FRAME.to_parquet(tmp_path / "x.parquet")
    schema = Schema.fit(tmp_path / "x.parquet")
    assert schema == Schema.fit(FRAME)
