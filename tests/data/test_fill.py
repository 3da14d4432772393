"""Cells put into a table: of the table's own type, everything else to the bit as it was."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from ppl_vae.data.fill import filled

FRAME = pd.DataFrame(
    {
        "real": [0.1, None, 0.3],
        "whole": pd.array([1, 2, None], dtype="Int16"),
        "yes": pd.array([None, True, False], dtype="boolean"),
        "text": ["a", None, "b"],
        "grade": pd.Categorical([None, "low", "high"], ["low", "high"], ordered=True),
        "kept": [1e-300, 0.1 + 0.2, -0.0],
    },
    index=[7, 7, 5],
)
CELLS = {
    "real": (np.array([1]), np.array([0.25])),
    "whole": (np.array([2]), np.array([6.7])),
    "yes": (np.array([0]), np.array([1.0])),
    "text": (np.array([1]), np.array(["c"], dtype=object)),
    "grade": (np.array([0]), np.array(["high"], dtype=object)),
}
FULL = {
    "real": [0.1, 0.25, 0.3],
    "whole": [1, 2, 7],
    "yes": [True, True, False],
    "text": ["a", "c", "b"],
    "grade": ["high", "low", "high"],
    "kept": [1e-300, 0.1 + 0.2, -0.0],
}


def test_each_column_of_a_data_frame_keeps_its_type() -> None:
    before = FRAME.copy(deep=True)
    full = filled(FRAME, CELLS)
    assert full.to_dict("list") == FULL
    assert (full.dtypes == FRAME.dtypes).all() and full.index.equals(FRAME.index)
    assert np.signbit(full["kept"].iloc[2])
    pd.testing.assert_frame_equal(FRAME, before)


def test_polars_and_pyarrow_keep_their_types() -> None:
    own = {"real": pl.Float64, "whole": pl.Int16, "yes": pl.Boolean, "text": pl.String, "kept": pl.Float32}
    frame = pl.DataFrame({c: FRAME[c].astype(object).where(FRAME[c].notna(), None).tolist() for c in FRAME})
    frame = frame.with_columns(
        *(pl.col(name).cast(kind) for name, kind in own.items()), pl.col("grade").cast(pl.Enum(["low", "high"]))
    )
    full = filled(frame, CELLS)
    assert full.schema == frame.schema
    assert {name: full[name].to_list() for name in CELLS} == {name: FULL[name] for name in CELLS}
    assert full["kept"].equals(frame["kept"])

    table = pa.Table.from_pandas(FRAME, preserve_index=False)
    full = filled(table, CELLS)
    assert full.schema.types == table.schema.types and full.schema.field("grade").type.ordered
    assert full.to_pydict() == FULL


def test_categories_that_a_column_lacks_are_added() -> None:
    cells = {"grade": (np.array([0]), np.array(["middle"], dtype=object))}
    full = filled(FRAME, cells)["grade"]
    assert full.tolist() == ["middle", "low", "high"] and full.cat.ordered
    table = pa.Table.from_pandas(FRAME, preserve_index=False)
    assert filled(table, cells)["grade"].to_pylist() == ["middle", "low", "high"]
    frame = pl.DataFrame({"grade": pl.Series([None, "low", "high"], dtype=pl.Enum(["low", "high"]))})
    assert filled(frame, cells)["grade"].to_list() == ["middle", "low", "high"]


def test_rows_in_any_order() -> None:
    cells = {"a": (np.array([3, 0]), np.array([30, 0]))}
    for frame in (
        pd.DataFrame({"a": pd.array([None, 1, 2, None], dtype="Int64")}),
        pl.DataFrame({"a": [None, 1, 2, None]}),
        pa.table({"a": pa.chunked_array([[None, 1], [2, None]])}),
    ):
        column = filled(frame, cells)["a"]
        assert (column.to_pylist() if isinstance(frame, pa.Table) else list(column)) == [0, 1, 2, 30]


def test_arrays_and_tensors_keep_type_and_shape() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    x[1, 0, 1] = np.nan
    cells = {"x1": (np.array([1]), np.array([0.5]))}
    for given in (x, torch.tensor(x), torch.tensor(x, requires_grad=True), SimpleNamespace(x=x), x.transpose(0, 2, 1)):
        full = filled(given, cells)
        like = getattr(given, "x", given)
        assert type(full) is type(like) and full.shape == like.shape and full.dtype == like.dtype
    full = filled(x, cells)
    assert full[1, 0, 1] == 0.5 and np.isnan(x[1, 0, 1]) and (full == x).sum() == 11
    masked = np.ma.masked_array([[1, 2], [3, 4]], [[False, True], [False, False]])
    assert filled(masked, {"x1": (np.array([0]), np.array([2.5]))}).tolist() == [[1.0, 2.5], [3.0, 4.0]]


def test_columns_by_other_names_and_files(tmp_path) -> None:
    cells = {"b": (np.array([0]), np.array([9.0]))}
    assert filled(np.array([[1.0, np.nan]]), cells, ("a", "b")).tolist() == [[1.0, 9.0]]
    pd.DataFrame({"a": [1, 2], "b": [None, 3.0]}).to_csv(tmp_path / "t.CSV", index=False)
    assert filled(tmp_path / "t.CSV", cells).to_dict("list") == {"a": [1, 2], "b": [9.0, 3.0]}
    pd.DataFrame({"a": [1, 2], "b": [None, 3.0]}).to_parquet(tmp_path / "t.parquet")
    assert filled(str(tmp_path / "t.parquet"), cells)["b"].tolist() == [9.0, 3.0]
    np.save(tmp_path / "t.npy", np.array([[1.0, np.nan]]))
    assert filled(tmp_path / "t.npy", {"x1": (np.array([0]), np.array([9.0]))}).tolist() == [[1.0, 9.0]]


def test_unknown_columns_are_an_error() -> None:
    with pytest.raises(KeyError, match="absent"):
        filled(FRAME, {"absent": (np.array([0]), np.array([1.0]))})
