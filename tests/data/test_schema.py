"""Encoding and decoding: exactness, the Jacobian, and what is refused."""

import json
import math
from dataclasses import replace
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
from ppl_vae.data.tables import read_csv
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
    np.testing.assert_allclose(schema.loc, X.mean(0), rtol=1e-13)
    np.testing.assert_allclose(schema.scale, X.std(0), rtol=1e-9)
    x = schema.tensors(X, dtype=torch.float64).x
    assert x.mean(0).abs().max() < 1e-8  # the mean of the last column is 3e6 of its deviations
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
    largest = np.abs(X).max(0)  # what is added and subtracted rounds to these
    assert (np.abs(values_of(back) - X) <= 1e-15 * largest).all()
    single = schema.decode(schema.tensors(data).x)
    assert (np.abs(values_of(single) - X) <= 1e-6 * largest).all()
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
    with pytest.raises(DataError, match=r"^columns: missing \['a', 'c'\]; got 1, expected 3$"):
        schema.tensors(FRAME[["b"]])
    wide = FRAME.assign(**{f"z{j}": 1.0 for j in range(99)})
    with pytest.raises(DataError, match=r"^columns: unknown \['z0', 'z1', .*, 'z5', ... \(99 in all\)\]; got 102,"):
        schema.tensors(wide)
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


# ---- types of columns

RNG = np.random.default_rng(2)
N = 200
TABLE = pd.DataFrame(
    {
        "flag": RNG.random(N) < 0.3,
        "sex": RNG.choice(["female", "male"], N),
        "job": RNG.choice(["clerk", "smith", "cook"], N),
        "colour": pd.Categorical(RNG.choice(["red", "green", "blue"], N), ["red", "green", "blue"]),
        "grade": pd.Categorical(RNG.choice(["low", "high"], N), ["low", "mid", "high"], ordered=True),
        "visits": RNG.poisson(3, N).clip(0, 5),
        "kills": RNG.negative_binomial(1, 0.05, N),
        "bit": RNG.integers(0, 2, N),
        "wage": np.exp(RNG.normal(7, 1, N)),
        "error": RNG.normal(3, 2, N),
        "wind": RNG.uniform(0, 2 * np.pi, N),
        "same": np.full(N, 7),
    }
)
LIKELIHOODS = {
    "flag": "bernoulli",
    "sex": "bernoulli",
    "job": "categorical",
    "colour": "categorical",
    "grade": "ordinal",
    "visits": "poisson",
    "kills": "negative_binomial",
    "bit": "bernoulli",
    "wage": "log_normal",
    "error": "normal",
    "wind": "von_mises",
    "same": "normal",
}
HOLES = RNG.random(TABLE.shape) < 0.2
HOLES[0] = False
FRAMES = {
    "pandas": TABLE,
    "polars": pl.from_pandas(TABLE.assign(colour=TABLE.colour.astype(str))).with_columns(
        pl.col("grade").cast(pl.String).cast(pl.Enum(["low", "mid", "high"]))
    ),
    "pyarrow": pa.Table.from_pandas(TABLE),
}


def with_holes(frame: Any) -> Any:
    """The frame with the HOLES missing, in its own way."""
    if isinstance(frame, pl.DataFrame):
        columns = [frame[name].scatter(np.flatnonzero(HOLES[:, j]), None) for j, name in enumerate(frame.columns)]
        return pl.DataFrame(columns)
    if isinstance(frame, pa.Table):
        return pa.Table.from_pandas(with_holes(frame.to_pandas()))
    return frame.mask(pd.DataFrame(HOLES, columns=frame.columns))


def lists(frame: Any) -> dict[str, list]:
    """The columns as Python lists, None where missing; text where categories were."""
    if isinstance(frame, pd.DataFrame):
        return {n: [None if pd.isna(v) else v for v in frame[n].tolist()] for n in frame.columns}
    return frame.to_dict(as_series=False) if isinstance(frame, pl.DataFrame) else frame.to_pydict()


def same_columns(got: Any, expected: Any) -> None:
    got, expected = lists(got), lists(expected)
    assert list(got) == list(expected)
    for name, column in expected.items():
        if name == "wind":
            turned = [None if v is None else math.remainder(v, 2 * math.pi) for v in column]
            column = turned
        if isinstance(next(v for v in column if v is not None), float):
            np.testing.assert_allclose(np.array(got[name], float), np.array(column, float), rtol=1e-12)
        else:
            assert got[name] == column, name


@pytest.mark.parametrize("kind", FRAMES)
def test_infer_gives_each_column_the_likelihood_of_what_it_holds(kind: str) -> None:
    schema = Schema.infer(FRAMES[kind], {"wind": "von_mises"})
    assert dict(zip(schema.names, schema.likelihoods)) == LIKELIHOODS
    assert dict(zip(schema.names, schema.types))["wind"] == "angle"
    assert (schema.kind, schema.nullable, schema.shape) == (kind, (), (12,))
    levels = dict(zip(schema.names, schema.levels))
    assert levels["flag"] == (False, True) and levels["bit"] is None
    assert levels["job"] == ("clerk", "cook", "smith") and levels["grade"] == ("low", "mid", "high")
    assert levels["colour"] == (("blue", "green", "red") if kind == "polars" else ("red", "green", "blue"))


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("kind", FRAMES)
def test_mixed_frames_come_back_as_they_were(kind: str, holes: bool) -> None:
    frame = with_holes(FRAMES[kind]) if holes else FRAMES[kind]
    schema = Schema.infer(frame, LIKELIHOODS)
    batch = schema.tensors(frame, dtype=torch.float64)
    assert batch.x.isfinite().all()
    if holes:
        assert schema.nullable == schema.names
        np.testing.assert_array_equal(batch.mask.numpy(), ~HOLES)
        assert (batch.x[~batch.mask] == 0).all()
    else:
        assert batch.mask is None
    x = batch.x if not holes else torch.where(batch.mask, batch.x, torch.nan)
    back = schema.decode(x)
    assert type(back) is type(frame)
    same_columns(back, frame)
    if kind == "pandas" and not holes:
        pd.testing.assert_frame_equal(back.drop(columns=["wind", "same"]), frame.drop(columns=["wind", "same"]))
    if kind == "polars":
        assert back["grade"].dtype == pl.Enum(["low", "mid", "high"])
    assert torch.equal(schema.tensors(back, dtype=torch.float64).x != 0, batch.x != 0)


def test_encoded_values_are_what_the_table_of_types_says() -> None:
    schema = Schema.infer(TABLE, LIKELIHOODS)
    x = dict(zip(schema.names, schema.tensors(TABLE, dtype=torch.float64).x.numpy().T))
    np.testing.assert_array_equal(x["flag"], TABLE.flag)
    np.testing.assert_array_equal(x["sex"], TABLE.sex == "male")
    np.testing.assert_array_equal(x["job"], TABLE.job.map({"clerk": 0, "cook": 1, "smith": 2}))
    np.testing.assert_array_equal(x["grade"], TABLE.grade.cat.codes)
    np.testing.assert_array_equal(x["kills"], TABLE.kills)
    np.testing.assert_allclose(np.log(x["wage"]).mean(), 0, atol=1e-12)
    np.testing.assert_allclose(x["error"], (TABLE.error - TABLE.error.mean()) / TABLE.error.std(ddof=0), atol=1e-12)
    np.testing.assert_allclose(np.exp(1j * x["wind"]), np.exp(1j * TABLE.wind))
    np.testing.assert_array_equal(x["same"], 0)
    at = {name: j for j, name in enumerate(schema.names)}
    assert schema.scale[at["same"]] == 1 and schema.loc[at["same"]] == 7
    assert schema.log_scale[at["wage"]] == pytest.approx(np.log(TABLE.wage).std(ddof=0))
    assert schema.log_loc[at["kills"]] == pytest.approx(np.log1p(TABLE.kills).mean())


def test_the_jacobian_of_a_positive_column_makes_its_density_integrate_to_one() -> None:
    own = np.random.default_rng(3).lognormal(4, 0.7, (500, 1))
    schema = Schema.fit(own, likelihood="log_normal")
    x = np.exp(np.linspace(-4, 12, 20001))[:, None]  # in own units
    encoded = schema.tensors(x, dtype=torch.float64).x
    mean, scale = torch.tensor([[0.3], [0.7]], dtype=torch.float64)
    log_density = torch.distributions.LogNormal(mean, scale).log_prob(encoded).sum(-1) + schema.log_jacobian
    assert np.trapezoid(log_density.exp().numpy(), x[:, 0]) == pytest.approx(1, abs=1e-6)
    direct = torch.distributions.LogNormal(mean + math.log(schema.scale[0]), scale).log_prob(torch.from_numpy(x))
    torch.testing.assert_close(log_density, direct.sum(-1))


def test_jacobians_are_those_of_densities_alone() -> None:
    schema = Schema.infer(TABLE, LIKELIHOODS)
    terms = dict(zip(schema.names, schema.log_jacobians))
    scales = dict(zip(schema.names, schema.scale))
    expected = {"wage": -math.log(scales["wage"]), "error": -math.log(scales["error"])}
    assert terms == pytest.approx(dict.fromkeys(schema.names, 0.0) | expected)
    assert schema.log_jacobian == pytest.approx(sum(expected.values()))
    pixels = Schema.fit(np.array([[0, 255], [3, 7]]), likelihood="discretized_logistic")
    assert pixels.scale == (127.5, 127.5) and pixels.log_jacobians == (0, 0) and pixels.log_jacobian == 0
    assert Schema.fit(X).log_jacobians == pytest.approx(-np.log(X.std(0)))


def test_take_gives_the_schema_of_some_columns() -> None:
    schema = Schema.infer(TABLE.mask(HOLES), {"wind": "von_mises"}, label="sex", covariates=[], group="bit")
    places = [schema.names.index(name) for name in ("wage", "job", "error")]
    part = schema.take(places)
    again = Schema.infer(TABLE.mask(HOLES)[["wage", "job", "error"]])
    assert part.shape == (3,) and part.nullable == ("wage", "job", "error")
    assert part.log_loc == (0, 0, 0) and again.log_loc is None  # the same
    for name in ("loc", "scale", "log_scale"):  # sums over other columns may round otherwise
        assert getattr(part, name) == pytest.approx(getattr(again, name), rel=1e-12)
    sums = dict.fromkeys(("loc", "scale", "log_loc", "log_scale"))
    assert replace(part, **sums) == replace(again, **sums)
    assert Schema.fit(X).take([2, 0]).names == ("x2", "x0")
    assert Schema.fit(X, "none").take([1]).loc is None


def test_one_likelihood_for_all_columns_of_an_array() -> None:
    bits = (np.random.default_rng(0).random((20, 2, 3)) < 0.5).astype(np.float32)
    for likelihood, type_ in (("bernoulli", "boolean"), ("continuous_bernoulli", "unit")):
        schema = Schema.fit(bits, likelihood=likelihood)
        assert schema.types == (type_,) * 6 and schema.likelihoods == (likelihood,) * 6
        assert (schema.shape, schema.loc, schema.scale, schema.levels) == ((2, 3), None, None, None)
        x = schema.tensors(bits).x
        assert np.shares_memory(x.numpy(), bits)
        assert torch.equal(x, Schema.fit(bits, "none").tensors(bits).x)
        np.testing.assert_array_equal(schema.decode(x), bits)
    for standardize in ("feature", "center", "none"):
        plain, named = Schema.fit(X, standardize), Schema.fit(X, standardize, likelihood="normal")
        assert plain.types is None is plain.likelihoods and named.likelihoods == ("normal",) * 3
        assert torch.equal(plain.tensors(X).x, named.tensors(X).x)
        assert (plain.loc, plain.scale, plain.types) == (named.loc, named.scale, named.types)
    schema = Schema.fit(torch.tensor([[3, 10], [7, 10], [3, 20]]), likelihood="categorical")
    assert schema.levels == ((3, 7), (10, 20))
    x = schema.tensors(np.array([[7.0, 20.0], [3.0, 10.0]])).x
    assert x.tolist() == [[1, 1], [0, 0]]
    assert schema.decode(x).tolist() == [[7, 20], [3, 10]] and schema.decode(x).dtype == torch.float64


def test_codes_that_nets_mix_are_decoded_to_the_nearest_level() -> None:
    schema = Schema.fit(pd.DataFrame({"a": ["x", "y", "z"], "n": [4, 5, 6]}), likelihood={"n": "poisson"})
    back = schema.decode(np.array([[0.4, 4.5], [1.9, 5.0], [7.0, 6.0]]))
    assert back["a"].tolist() == ["x", "z", "z"] and back["n"].tolist() == [4.5, 5, 6]


def test_numbers_of_two_values_may_be_a_boolean_column_of_a_frame() -> None:
    frame = pd.DataFrame({"liable": [1, 2, 2, 1], "grey": [0.0, 0.5, 1, 0.2]})
    schema = Schema.fit(frame, likelihood="bernoulli")
    assert schema.levels == ((1, 2), None)
    x = schema.tensors(frame).x
    assert x[:, 0].tolist() == [0, 1, 1, 0]
    assert schema.decode(x)["liable"].tolist() == [1, 2, 2, 1]


@pytest.mark.parametrize(
    ("column", "likelihood", "message"),
    [
        (["a", "b", "c"], "normal", "'a': got 'a' in row 0 .*expected numbers"),
        (["a", "b", "c"], "poisson", "'a': got 'a' in row 0 .*expected numbers"),
        (["a", "b", "c"], "bernoulli", "'a': got the levels 'a', 'b', 'c', expected two"),
        (["a", "b", "c"], "ordinal", "'a': got text without an order"),
        ([1.0, 2.5, 3], "poisson", "'a': got 2.5 in row 1, expected whole numbers of at least 0"),
        ([1.0, -2, 3], "negative_binomial", "'a': got -2.0 in row 1, expected whole numbers of at least 0"),
        ([1.0, 0, 3], "gamma", "'a': got 0.0 in row 1, expected finite numbers above 0"),
        ([0.5, 0, 3], "beta", r"'a': got 3.0 in row 2, expected numbers in \[0, 1\]"),
        ([0, 255, 256], "discretized_logistic", "'a': got 256.0 in row 2, expected whole numbers from 0 to 255"),
    ],
)
def test_a_likelihood_that_does_not_fit_its_column_is_refused(column: list, likelihood: str, message: str) -> None:
    frame = pd.DataFrame({"a": column, "b": [1.5, 2.5, 3.5]})
    for call in (Schema.infer, lambda frame, names: Schema.fit(frame, likelihood=names)):
        with pytest.raises(DataError, match=message):
            call(frame, {"a": likelihood})


def test_infer_refuses_what_it_cannot_use() -> None:
    frame = pd.DataFrame({"id": [f"row {i}" for i in range(30)], "x": range(30)})
    with pytest.raises(DataError, match=r"column 'id': got 30 distinct texts in 30 rows.*drop the column"):
        Schema.infer(frame)
    assert len(Schema.infer(frame, {"id": "categorical"}).levels[0]) == 30
    assert Schema.infer(frame[:10]).likelihoods == ("categorical", "negative_binomial")
    many = pd.DataFrame({"id": [f"user {i}" for i in range(1001)] * 3})
    with pytest.raises(DataError, match="column 'id': got 1001 distinct texts in 3003 rows"):
        Schema.infer(many)
    for empty in ([np.nan] * 30, [None] * 30):
        with pytest.raises(DataError, match="column 'gone': got no value in any row"):
            Schema.infer(frame[["x"]].assign(gone=empty))
    with pytest.raises(OptionError, match="likelihood: got the column 'z', expected some of 'id', 'x'"):
        Schema.infer(frame, {"z": "normal"})
    with pytest.raises(OptionError, match="likelihood: got 'gauss', expected one of 'normal', 'student_t'"):
        Schema.infer(frame, {"x": "gauss"})
    with pytest.raises(OptionError, match="likelihood: got 'gauss'"):
        Schema.fit(X, likelihood="gauss")
    assert Schema.fit(X, likelihood="gauss", likelihood_types={"gauss": "real"}).likelihoods == ("gauss",) * 3


def test_numbers_that_infer_tells_apart() -> None:
    frame = pd.DataFrame(
        {
            "whole floats": [0.0, 4, 9, np.nan],
            "below 0": [-1, 0, 1, 2],
            "zero and above": [0, 0.5, 1, 2],
            "ones": [1, 1, 1, 1],
            "one text": ["a", "a", "a", "a"],
            "bits": [0.0, 1, np.nan, 1],
        }
    )
    schema = Schema.infer(frame)
    assert schema.likelihoods == ("negative_binomial", "normal", "normal", "normal", "categorical", "bernoulli")
    assert schema.nullable == ("whole floats", "bits")
    assert Schema.infer(frame[["below 0", "ones"]]).types is None
    assert Schema.infer(np.array([[0, 5.5], [1, 0.5]])).likelihoods == ("bernoulli", "log_normal")


def test_a_constant_column_of_any_type_is_encoded() -> None:
    frame = pd.DataFrame({"a": [5, 5, 5], "b": [0.25, 0.25, 0.25], "c": ["x"] * 3, "d": [2, 2, 2]})
    schema = Schema.infer(frame, {"a": "poisson", "b": "log_normal", "d": "ordinal"})
    x = schema.tensors(frame, dtype=torch.float64).x
    torch.testing.assert_close(x[0], torch.tensor([5.0, 1, 0, 0], dtype=torch.float64))
    assert schema.log_scale is None  # 1 throughout
    same_columns(schema.decode(x), frame)


# ---- missing values


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_a_hole_where_the_column_is_nullable(kind: str) -> None:
    values = X.copy()
    values[[3, 7], 1] = np.nan
    frame = pd.DataFrame(values, columns=NAMES)
    data = {
        "numpy": values,
        "torch": torch.from_numpy(values),
        "pandas": frame,
        "polars": pl.from_pandas(frame),
        "pyarrow": pa.Table.from_pandas(frame),
    }[kind]
    schema = Schema.fit(data, nullable=True)
    assert schema.nullable == (schema.names[1],)
    assert schema == Schema.fit(data, nullable=[schema.names[1]]) == Schema.fit(data, nullable=schema.names[1])
    kept = np.delete(X[:, 1], [3, 7])
    assert schema.loc[1] == pytest.approx(kept.mean(), rel=1e-13) and schema.scale[1] == pytest.approx(kept.std())
    assert (schema.loc[0], schema.scale[2]) == (Schema.fit(X).loc[0], Schema.fit(X).scale[2])
    batch = schema.tensors(data)
    assert batch.mask.dtype == torch.bool and torch.equal(batch.mask, torch.from_numpy(~np.isnan(values)))
    assert (batch.x[~batch.mask] == 0).all() and batch.x.isfinite().all()
    full = schema.tensors(KINDS[kind])
    assert full.mask.all() and torch.equal(full.x[batch.mask], batch.x[batch.mask])
    back = schema.decode(torch.where(batch.mask, batch.x.double(), torch.nan))
    np.testing.assert_allclose(values_of(back), values, rtol=1e-6, atol=1e-5)


def test_holes_of_shared_memory_are_not_filled_in_the_data() -> None:
    values = X.astype(np.float32)
    values[3, 1] = np.nan
    x = Schema.fit(values, "none", nullable=True).tensors(values).x
    assert x[3, 1] == 0 and np.isnan(values[3, 1])


def test_only_nan_is_a_hole_and_only_where_declared() -> None:
    schema = Schema.fit(FRAME, nullable=["b"])
    assert schema.nullable == ("b",) and schema.tensors(FRAME).mask.all()
    for name, bad in (("a", np.nan), ("b", np.inf), ("b", -np.inf)):
        with pytest.raises(DataError, match=f"column '{name}': got {bad} in row 5"):
            schema.tensors(FRAME.assign(**{name: np.where(np.arange(50) == 5, bad, X[:, 0])}))
    with pytest.raises(OptionError, match="nullable: got the column 'z', expected some of 'a', 'b', 'c'"):
        Schema.fit(FRAME, nullable=["z"])
    with pytest.raises(DataError, match="column 'a': got no value in any row"):
        Schema.fit(FRAME.assign(a=np.nan), nullable=True)
    text = pd.DataFrame({"job": ["a", "b", "c"], "n": [1.5, 2, 3]})
    with pytest.raises(DataError, match=r"column 'job': got None in row 1 .*expected text; only columns declared null"):
        Schema.infer(text).tensors(text.assign(job=["a", None, "b"]))


def test_rows_may_miss_all_of_a_nullable_column() -> None:
    frame = with_holes(TABLE)
    schema = Schema.infer(frame, LIKELIHOODS)
    empty = pd.DataFrame({name: [None, None] for name in TABLE.columns})
    for data in (empty, empty.astype(float), pl.from_pandas(empty), pa.Table.from_pandas(empty)):
        batch = schema.tensors(data)
        assert not batch.mask.any() and (batch.x == 0).all()


# ---- what later data may be


def test_unseen_levels_are_named_with_the_known() -> None:
    schema = Schema.infer(TABLE, LIKELIHOODS)
    for name, value in {"sex": "other", "job": "baker", "colour": "mauve", "grade": "top"}.items():
        column = TABLE[name].astype(object)
        column[11] = value
        levels = ", ".join(map(repr, schema.levels[schema.names.index(name)]))
        with pytest.raises(DataError, match=rf"column '{name}': got '{value}' in row 11 .*expected one of {levels}$"):
            schema.tensors(TABLE.assign(**{name: column}))
    unused = TABLE.assign(job=pd.Categorical(TABLE.job, ["smith", "clerk", "cook", "baker"]))
    assert torch.equal(schema.tensors(unused).x, schema.tensors(TABLE).x)
    numeric = Schema.fit(np.arange(40.0)[:, None], likelihood="categorical")
    with pytest.raises(
        DataError, match=r"column 'x0': got 2.5 in row 1 .*expected one of 0, 1, 2, 3, 4, 5, ... \(40 in all\)"
    ):
        numeric.tensors(np.array([[1], [2.5]]))


def test_columns_of_another_type_are_refused() -> None:
    schema = Schema.infer(TABLE, LIKELIHOODS)
    with pytest.raises(DataError, match=r"column 'job': got 3 in row 0 \(dtype Int64\), expected one of 'clerk'"):
        schema.tensors(TABLE.assign(job=3))
    with pytest.raises(DataError, match=r"column 'error': got 'much' in row 0 .*expected numbers"):
        schema.tensors(TABLE.assign(error="much"))
    with pytest.raises(DataError, match=r"column 'flag': got 'yes' in row 0 .*expected one of False, True"):
        schema.tensors(TABLE.assign(flag="yes"))
    with pytest.raises(DataError, match=r"column 'visits': got 0.5 in row 0, expected whole numbers"):
        schema.tensors(TABLE.assign(visits=0.5))
    with pytest.raises(DataError, match=r"column 'wage': got -1.0 in row 0, expected finite numbers above 0"):
        schema.tensors(TABLE.assign(wage=-1))
    assert torch.equal(
        schema.tensors(TABLE.assign(flag=TABLE.flag.astype(float), visits=TABLE.visits.astype(float))).x,
        schema.tensors(TABLE).x,
    )


@pytest.mark.parametrize("kind", FRAMES)
def test_mixed_frames_are_matched_by_name_across_libraries(kind: str) -> None:
    schema = Schema.infer(TABLE, LIKELIHOODS)
    turned = list(reversed(TABLE.columns))
    data = FRAMES[kind][turned] if kind == "pandas" else FRAMES[kind].select(turned)
    assert torch.equal(schema.tensors(data).x, schema.tensors(TABLE).x)


def test_a_mixed_row_encodes_alike_whatever_its_batch() -> None:
    schema = Schema.infer(with_holes(TABLE), LIKELIHOODS)
    whole = schema.tensors(with_holes(TABLE))
    for i in (0, 1, 17, 199):
        one = schema.tensors(with_holes(TABLE).iloc[i : i + 1])
        assert torch.equal(one.x[0], whole.x[i]) and torch.equal(one.mask[0], whole.mask[i])


# ---- covariates, group, label

ROLES: dict[str, Any] = {"covariates": ["wage", "job"], "group": "visits", "label": "sex"}


def test_covariates_group_and_label_are_no_data() -> None:
    schema = Schema.infer(TABLE, **ROLES)
    assert set(schema.names) == set(TABLE.columns) - {"wage", "job", "visits", "sex"} and schema.width == 8
    assert schema.covariates.names == ("wage", "job") and schema.covariates.types == ("positive", "categorical")
    assert schema.group == ("visits", tuple(sorted(set(TABLE.visits)))) and schema.label.levels == ("female", "male")
    batch = schema.tensors(TABLE, dtype=torch.float64)
    assert torch.equal(
        batch.c, Schema.infer(TABLE[["wage", "job"]]).tensors(TABLE[["wage", "job"]], dtype=torch.float64).x
    )
    assert batch.group.dtype == batch.label.dtype == torch.long
    np.testing.assert_array_equal(batch.group, TABLE.visits)
    np.testing.assert_array_equal(batch.label, TABLE.sex == "male")
    assert torch.equal(
        batch.x, Schema.infer(TABLE[list(schema.names)]).tensors(TABLE[list(schema.names)], dtype=torch.float64).x
    )
    assert list(schema.decode(batch.x).columns) == list(schema.names)


def test_groups_and_labels_may_be_unknown() -> None:
    schema = Schema.infer(TABLE, **ROLES)
    sex, visits = TABLE.sex.astype(object), TABLE.visits.astype(float)
    sex[3], visits[4], visits[5] = None, np.nan, 99
    batch = schema.tensors(TABLE.assign(sex=sex, visits=visits))
    assert (batch.label[3], batch.label[4]) == (-1, TABLE.sex[4] == "male")
    assert batch.group[3:6].tolist() == [TABLE.visits[3], -1, -1]
    absent = schema.tensors(TABLE.drop(columns=["sex", "visits"]))
    assert (absent.group == -1).all() and (absent.label == -1).all()
    with pytest.raises(DataError, match=r"column 'sex': got 'other' in row 3 .*expected one of 'female', 'male'"):
        schema.tensors(TABLE.assign(sex=sex.fillna("other")))
    half = Schema.infer(TABLE.assign(sex=sex), **ROLES)
    assert half.label == schema.label and half.tensors(TABLE.assign(sex=sex)).label[3] == -1
    with pytest.raises(DataError, match="column 'sex': got no value in any row"):
        Schema.infer(TABLE.assign(sex=None), **ROLES)


def test_covariates_have_to_be_there_and_whole() -> None:
    schema = Schema.infer(TABLE, **ROLES)
    with pytest.raises(DataError, match=r"columns: missing \['job'\]"):
        schema.tensors(TABLE.drop(columns="job"))
    with pytest.raises(DataError, match="column 'wage': got nan in row 0"):
        schema.tensors(TABLE.assign(wage=np.nan))
    with pytest.raises(DataError, match="column 'job': got 'baker' in row 0"):
        schema.tensors(TABLE.assign(job="baker"))
    with pytest.raises(DataError, match="column 'job': got None in row "):
        Schema.infer(with_holes(TABLE), covariates=["job"])
    for options in ({"covariates": ["z"]}, {"group": "z"}, {"label": "z"}):
        with pytest.raises(OptionError, match=f"{next(iter(options))}: got the column 'z', expected some of"):
            Schema.infer(TABLE, **options)
    with pytest.raises(OptionError, match="expected distinct ones"):
        Schema.infer(TABLE, covariates=["job"], group="job")
    with pytest.raises(OptionError, match="leave some to model"):
        Schema.fit(X, covariates=["x0", "x1", "x2"])


def test_columns_of_arrays_play_roles_by_their_names() -> None:
    data = np.column_stack([X, np.arange(50) % 4 + 10, X[:, 0] > 1])
    schema = Schema.fit(data, covariates=["x1"], group="x3", label="x4")
    assert schema.names == ("x0", "x2") and schema.shape == (2,) and schema.types is None
    batch = schema.tensors(data, dtype=torch.float64)
    torch.testing.assert_close(batch.x, Schema.fit(X).tensors(X, dtype=torch.float64).x[:, [0, 2]])
    torch.testing.assert_close(batch.c, Schema.fit(X).tensors(X, dtype=torch.float64).x[:, [1]])
    assert batch.group.tolist() == (np.arange(50) % 4).tolist() and schema.group.levels == (10, 11, 12, 13)
    assert batch.label.tolist() == (X[:, 0] > 1).tolist()
    labelled = Schema.fit(data[:, [0, 1, 2, 4]], label="x1")
    bare = labelled.tensors(data[:, [0, 2, 4]])  # no label: the rest by position
    assert (bare.label == -1).all()
    assert torch.equal(bare.x, labelled.tensors(data[:, [0, 1, 2, 4]]).x)


def test_batches_give_rows_and_arguments() -> None:
    batch = Schema.infer(with_holes(TABLE), {"wind": "von_mises"}, group="visits").tensors(with_holes(TABLE))
    some = batch.rows(torch.tensor([5, 2]))
    assert some.c is None is some.label and torch.equal(some.x, batch.x[[5, 2]])
    args, given = some.arguments()
    assert [part.shape for part in args] == [(2, 11), (2, 11)] and torch.equal(given["group"], batch.group[[5, 2]])
    args, given = Schema.fit(X).tensors(X).rows(slice(4)).arguments()
    assert len(args) == 1 and args[0].shape == (4, 3) and given == {}


# ---- kept and shown


def test_a_mixed_schema_survives_json_exactly() -> None:
    frame = with_holes(TABLE).assign(wage=TABLE.wage, job=TABLE.job, floats=np.resize([0.1, 1e-300, 2.5], N))
    schema = Schema.infer(frame, {"floats": "categorical", "wind": "von_mises"}, **ROLES)
    again = Schema.from_dict(json.loads(json.dumps(schema.to_dict())))
    assert again == schema and hash(again) == hash(schema)
    assert again.levels[again.names.index("floats")] == (1e-300, 0.1, 2.5)
    assert [type(level) for level in again.levels[0]] == [bool, bool] and type(again.group.levels[0]) is int
    assert again.group._fields == ("name", "levels") and isinstance(again.covariates, Schema)
    assert torch.equal(again.tensors(frame).x, schema.tensors(frame).x)


def test_states_of_the_first_format_are_read() -> None:
    old = {
        "names": ["a", "b"],
        "kind": "pandas",
        "shape": [2],
        "loc": [1.0, 2.0],
        "scale": None,
        "precision": "float64",
    }
    assert Schema.from_dict(old) == Schema(("a", "b"), "pandas", (2,), (1.0, 2.0), None, "float64")


@pytest.mark.parametrize(
    "change",
    [
        {"types": ["angel", "real"]},
        {"types": ["real"]},
        {"levels": [None]},
        {"nullable": ["z"]},
        {"group": ["g"]},
        {"covariates": {"names": ["c"]}},
        {"covariates": 3},
        {"colour": 1},
    ],
)
def test_a_state_whose_parts_do_not_fit_is_refused(change: dict) -> None:
    state = Schema(("a", "b"), "pandas", (2,)).to_dict()
    assert Schema.from_dict(state).width == 2
    with pytest.raises(ModelFileError, match="schema: got"):
        Schema.from_dict(state | change)


def test_a_schema_is_printed_as_a_table() -> None:
    frame = with_holes(TABLE).assign(wage=TABLE.wage, job=TABLE.job)
    lines = str(Schema.infer(frame, {"wind": "von_mises"}, **ROLES)).splitlines()
    assert lines[0].split() == ["column", "type", "likelihood", "levels", "or", "scaling", "nullable"]
    assert len({line.rindex(" ") for line in lines[:9]}) == 1  # aligned
    assert lines[1].split() == ["flag", "boolean", "bernoulli", "False,", "True", "yes"]
    assert lines[9] == "covariates" and lines[10].split()[:3] == ["wage", "positive", "log_normal"]
    assert lines[-2] == "group  visits: 0, 1, 2, 3, 4, 5" and lines[-1] == "label  sex: 'female', 'male'"
    wide = str(Schema.fit(np.eye(60))).splitlines()
    assert len(wide) == 52 and wide[-1] == "... 10 more columns"
    assert wide[1].split() == ["x0", "real", "-", "(own", "-", "0.01667)", "/", "0.128", "no"]


# ---- real data


def test_raw_adult_goes_in_and_comes_back(data_root: Path) -> None:
    names = "age work weight education years marital occupation relationship race sex gain loss hours country income"
    frame = read_csv(data_root / "uci/adult-train.csv.gz", missing=["?"], names=names.split())
    assert frame.shape == (32561, 15) and frame.isna().sum()[lambda n: n > 0].to_dict() == {
        "work": 1836,
        "occupation": 1843,
        "country": 583,
    }  # as adult.names has them
    schema = Schema.infer(frame, label="income")
    assert schema.nullable == ("work", "occupation", "country")
    counts = {name: len(levels) for name, levels in zip(schema.names, schema.levels) if levels}
    assert counts == {  # of adult.names
        "work": 8,
        "education": 16,
        "marital": 7,
        "occupation": 14,
        "relationship": 6,
        "race": 5,
        "sex": 2,
        "country": 41,
    }
    assert schema.label == ("income", ("<=50K", ">50K"))
    batch = schema.tensors(frame)
    assert (~batch.mask).sum() == 1836 + 1843 + 583 and batch.label.double().mean() == pytest.approx(0.2408, abs=5e-5)
    back = schema.decode(torch.where(batch.mask, batch.x.double(), torch.nan))
    pd.testing.assert_frame_equal(back, frame.drop(columns="income"))
