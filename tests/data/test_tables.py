"""Reading every accepted kind of data, writing it back, and refusing the rest by name."""

import gzip
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from ppl_vae.data.schema import Schema
from ppl_vae.data.tables import Column, check_numbers, frame_like, like, read, read_csv
from ppl_vae.errors import DataError, MissingFileError

ROWS = np.array([[1.0, 2.5], [3.0, -4.0], [0.5, 6.0]])
NAMES = ["b", "a"]
MAKERS = {
    "numpy": lambda rows: rows,
    "torch": torch.from_numpy,
    "pandas": lambda rows: pd.DataFrame(rows, columns=NAMES),
    "polars": lambda rows: pl.DataFrame(rows, schema=NAMES, orient="row"),
    "pyarrow": lambda rows: pa.table({name: rows[:, j] for j, name in enumerate(NAMES)}),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_is_read_and_comes_back_as_itself(kind: str, dtype: Any) -> None:
    rows = ROWS.astype(dtype)
    data = MAKERS[kind](rows)
    table = read(data)
    assert (table.kind, table.shape, table.values.dtype) == (kind, (2,), dtype)
    assert table.names == (("x0", "x1") if kind in ("numpy", "torch") else ("b", "a"))
    np.testing.assert_array_equal(table.values, rows)
    back = like(table.values, kind, table.names, table.shape)
    assert type(back) is type(data)
    again = read(back)
    np.testing.assert_array_equal(again.values, table.values)
    assert again._replace(values=None) == table._replace(values=None)
    assert again.values.dtype == dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floating_arrays_are_not_copied(dtype: Any) -> None:
    rows = np.zeros((3, 4, 2), dtype)
    assert np.shares_memory(read(rows).values, rows)
    assert np.shares_memory(read(torch.from_numpy(rows)).values, rows)
    frame = pd.DataFrame(np.zeros((5, 2), dtype))
    assert np.shares_memory(read(frame.set_axis(["a", "b"], axis=1)).values, frame.to_numpy())


@pytest.mark.parametrize(
    ("given", "read_as"),
    [
        ("float16", "float32"),
        ("bool", "float32"),
        ("uint8", "float32"),
        ("int8", "float64"),
        ("uint16", "float64"),
        ("int32", "float64"),
        ("int64", "float64"),
        (">f4", "float32"),
        (">f8", "float64"),
        ("longdouble", "float64"),
    ],
)
def test_numbers_become_floats_that_hold_them(given: str, read_as: str) -> None:
    array = np.array([[0, 1], [1, 1]]).astype(given)
    table = read(array)
    assert table.values.dtype == np.dtype(read_as)
    np.testing.assert_array_equal(table.values, [[0, 1], [1, 1]])
    if given not in (">f4", ">f8", "longdouble"):
        assert read(pd.DataFrame({"a": array[:, 0]})).values.dtype == np.dtype(read_as)


def test_tensors_of_every_sort() -> None:
    for tensor in (
        torch.ones(2, 3, dtype=torch.bfloat16),
        torch.ones(2, 3, requires_grad=True),
        torch.eye(3).to_sparse(),
    ):
        assert read(tensor).values.dtype == np.float32
    assert read(torch.ones(2, 3, dtype=torch.int64)).values.dtype == np.float64
    with pytest.raises(DataError, match=r"'x0'.*complex64.*expected numbers"):
        read(torch.ones(2, 3, dtype=torch.complex64))


def test_images_are_flattened_and_come_back_as_images() -> None:
    images = np.arange(2 * 4 * 3, dtype=np.float32).reshape(2, 4, 3)
    table = read(images)
    assert (table.values.shape, table.shape, table.names[-1]) == ((2, 12), (4, 3), "x11")
    np.testing.assert_array_equal(like(table.values, "numpy", table.names, table.shape), images)
    assert torch.equal(like(table.values, "torch", table.names, table.shape), torch.from_numpy(images))


def test_readonly_memmaps_and_strided_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    np.testing.assert_array_equal(read(mapped).values, ROWS)
    tensor = like(read(mapped).values, "torch", ("x0", "x1"), (2,))  # torch would warn about read-only memory
    np.testing.assert_array_equal(tensor.numpy(), ROWS)
    np.testing.assert_array_equal(read(ROWS[::-1, ::-1]).values, ROWS[::-1, ::-1])
    np.testing.assert_array_equal(read(ROWS.T).values, ROWS.T)
    assert isinstance(like(ROWS[::-1], "torch", ("x0", "x1"), (2,)), torch.Tensor)


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"i": pd.array([1, None], "Int64"), "b": pd.array([True, None], "boolean"), "f": [1.5, None]}),
        pd.DataFrame(
            {"i": pd.array([1, None], "int64[pyarrow]"), "b": [1, None], "f": pd.array([1.5, None], "Float64")}
        ),
        pl.DataFrame({"i": [1, None], "b": [True, None], "f": [1.5, float("nan")]}),
        pa.table({"i": [1, None], "b": [True, None], "f": [1.5, None]}),
    ],
    ids=["pandas", "pandas-arrow", "polars", "pyarrow"],
)
def test_missing_values_of_frames_become_nan(frame: Any) -> None:
    np.testing.assert_array_equal(read(frame).values, [[1, 1, 1.5], [np.nan] * 3])


def test_masked_arrays_do_not_show_what_is_hidden() -> None:
    masked = np.ma.array([[1, 2], [3, 4]], mask=[[False, True], [False, False]])
    np.testing.assert_array_equal(read(masked).values, [[1, np.nan], [3, 4]])


def test_column_names_become_text() -> None:
    assert read(pd.DataFrame(ROWS)).names == ("0", "1")


def test_objects_that_hold_data() -> None:
    schema = SimpleNamespace(names=("u", "v"), shape=(1, 2))
    table = read(SimpleNamespace(x=ROWS, schema=schema))
    assert (table.names, table.shape, table.kind) == (("u", "v"), (1, 2), "numpy")
    assert read(SimpleNamespace(x=ROWS[:, :1], schema=schema)).names == ("x0",)
    assert read(SimpleNamespace(x=pd.DataFrame(ROWS, columns=NAMES))).names == ("b", "a")
    assert read(pd.DataFrame({"x": [1.0]})).names == ("x",)


# ---- columns that are not numbers


TEXT = ["b", None, "a", "b"]
ORDER = ["low", "mid", "high"]  # "mid" is not used
GRADE = ["high", "low", None, "low"]
MIXED = {
    "pandas": pd.DataFrame(
        {
            "text": TEXT,
            "flag": [True, False, None, True],
            "grade": pd.Categorical(GRADE, ORDER, ordered=True),
            "n": [3, 1, 2, 0],
        }
    ),
    "polars": pl.DataFrame(
        {
            "text": TEXT,
            "flag": [True, False, None, True],
            "grade": pl.Series(GRADE, dtype=pl.Enum(ORDER)),
            "n": [3, 1, 2, 0],
        }
    ),
    "pyarrow": pa.table(
        {
            "text": TEXT,
            "flag": [True, False, None, True],
            "grade": pa.array(pd.Categorical(GRADE, ORDER, ordered=True)),
            "n": [3, 1, 2, 0],
        }
    ),
}


@pytest.mark.parametrize("kind", MIXED)
def test_text_and_categories_become_codes_of_their_levels(kind: str) -> None:
    table = read(MIXED[kind])
    nan = np.nan
    np.testing.assert_array_equal(table.values, [[1, 1, 2, 3], [nan, 0, 0, 1], [0, nan, nan, 2], [1, 1, 0, 0]])
    assert table.values.dtype == np.float64
    assert [column.kind for column in table.columns] == ["text", "boolean", "ordered", "integer"]
    assert [column.levels for column in table.columns] == [("a", "b"), None, tuple(ORDER), None]


def test_categories_keep_their_order_and_sessions_of_polars_do_not_matter() -> None:
    column = read(pd.DataFrame({"c": pd.Categorical([20, 10], [20, 30, 10])})).columns[0]
    assert column == Column("categorical", "Categorical", (20, 30, 10))
    pl.Series(["z", "y"], dtype=pl.Categorical)  # older than the next: its categories may come first
    table = read(pl.DataFrame({"c": pl.Series(["u", "t", None], dtype=pl.Categorical)}))
    assert table.columns[0].levels == ("t", "u")
    np.testing.assert_array_equal(table.values[:, 0], [1, 0, np.nan])
    table = read(pa.table({"c": pa.array(["u", "t"]).dictionary_encode()}))
    assert (table.columns[0].kind, table.columns[0].levels) == ("categorical", ("u", "t"))


@pytest.mark.parametrize(
    ("column", "values", "kind"),
    [
        ([True, None, False], [1, np.nan, 0], "boolean"),
        ([2, None, 1], [2, np.nan, 1], "integer"),
        ([np.int64(2), 0.5, True], [2, 0.5, 1], "float"),
    ],
)
def test_numbers_kept_as_objects_are_numbers(column: list, values: list, kind: str) -> None:
    table = read(pd.DataFrame({"a": pd.Series(column, dtype=object)}))
    np.testing.assert_array_equal(table.values[:, 0], values)
    assert (table.columns[0].kind, table.columns[0].levels) == (kind, None)


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"a": pd.Series([None, None], dtype=object)}),
        pl.DataFrame({"a": [None, None]}),
        pa.table({"a": pa.nulls(2)}),
    ],
    ids=["pandas", "polars", "pyarrow"],
)
def test_a_column_without_values_has_no_levels(frame: Any) -> None:
    table = read(frame)
    assert np.isnan(table.values).all() and table.columns[0].levels == ()
    check_numbers(table, nullable=("a",))
    with pytest.raises(DataError, match=r"column 'a': got None in row 0 .*expected numbers"):
        check_numbers(table)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pd.DataFrame({"age": [1.0, 2], "city": ["Rome", "Oslo"]}), "'city': got 'Rome' in row 0.*expected numbers"),
        (pd.DataFrame({"a": ["1", "?"]}), r"column 'a': got '\?' in row 1"),
        (pd.DataFrame({"a": pd.array([None, "Rome"], "string")}), "column 'a': got 'Rome' in row 1"),
        (pd.DataFrame({"a": pd.Series([1, "z"], dtype=object)}), "column 'a': got 'z' in row 1"),
        (pd.DataFrame({"c": pd.Categorical(["u", "u"])}), "column 'c': got 'u'"),
        (pl.DataFrame({"a": [1, 2], "s": ["z", "z"]}), "column 's': got 'z'"),
        (pl.DataFrame({"n": [None, None]}), "column 'n': got None"),
        (pa.table({"s": ["z", "y"]}), "column 's': got 'z'"),
    ],
)
def test_where_only_numbers_will_do_the_rest_is_said(data: Any, message: str) -> None:
    for call in (Schema.fit, Schema.of):
        with pytest.raises(DataError, match=message):
            call(data)


@pytest.mark.parametrize("kind", MIXED)
def test_frames_are_put_together_again(kind: str) -> None:
    columns = {
        "text": pd.array(TEXT, "str"),
        "grade": pd.Categorical(GRADE, ORDER, ordered=True),
        "x": np.array([0.5, np.nan, 1, 2]),
    }
    frame = frame_like(columns, kind)
    assert type(frame) is type(MIXED[kind])
    table = read(frame)
    assert [column.levels for column in table.columns] == [("a", "b"), tuple(ORDER), None]
    assert [column.kind for column in table.columns] == ["text", "ordered", "float"]
    np.testing.assert_array_equal(table.values[:, 2], columns["x"])


# ---- files


def test_raw_csv_with_markers_blanks_and_no_header(tmp_path: Path) -> None:
    raw = "39, State-gov, 1\n54, ?, 2\n?, Private, \n"
    (tmp_path / "a.csv").write_text(raw)
    with gzip.open(tmp_path / "a.CSV.GZ", "wt") as file:
        file.write(raw)
    for name in ("a.csv", "a.CSV.GZ"):
        frame = read_csv(tmp_path / name, missing=["?"], names=["age", "work", "n"])
        expected = pd.DataFrame({"age": [39, 54, np.nan], "work": ["State-gov", None, "Private"], "n": [1, 2, np.nan]})
        pd.testing.assert_frame_equal(frame, expected)
    (tmp_path / "a.csv").write_text("age, work\n1, x\n")
    assert read_csv(str(tmp_path / "a.csv")).to_dict("list") == {"age": [1], "work": ["x"]}


def test_reading_csv_names_the_file_that_is_bad(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"a.csv.gz"):
        read_csv(tmp_path / "a.csv.gz")
    (tmp_path / "a.csv.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match=r"a.csv.gz: cannot be read as .csv.gz"):
        read_csv(tmp_path / "a.csv.gz")
    (tmp_path / "a.csv").write_text("1,2\n3,4,5\n")
    with pytest.raises(DataError, match=r"a.csv: cannot be read as .csv"):
        read_csv(tmp_path / "a.csv", names=["a", "b"])
    (tmp_path / "a.csv").write_text("1,2\n3,4\n")
    with pytest.raises(
        DataError, match=r"a.csv: got more fields in its lines than column names, expected a name for each"
    ):
        read_csv(tmp_path / "a.csv", names=["a"])
    with pytest.raises(DataError, match=r"got ending '.npy', expected one of .csv, .csv.gz"):
        read_csv(tmp_path / "a.npy")


def test_a_csv_may_be_packed_and_hold_text(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write("age,city\n39, ?\n40,Rome\n,Oslo\n")
    table = read(tmp_path / "a.csv.gz")
    assert table.columns[1].levels == ("?", "Oslo", "Rome")  # without the blank, as of a frame by `read_csv`
    assert table.columns == read(read_csv(tmp_path / "a.csv.gz")).columns
    np.testing.assert_array_equal(table.values, [[39, 0], [40, 2], [np.nan, 1]])


def test_files_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    np.savez(tmp_path / "a.npz", y=np.zeros(3), X=ROWS)
    np.savez(tmp_path / "b.npz", y=np.zeros(3), rows=ROWS)
    frame = pd.DataFrame(ROWS, columns=NAMES)
    frame.to_csv(tmp_path / "a.CSV", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    for name, kind in {
        "a.npy": "numpy",
        "a.npz": "numpy",
        "b.npz": "numpy",
        "a.CSV": "pandas",
        "a.parquet": "pandas",
    }.items():
        for path in (tmp_path / name, str(tmp_path / name)):
            table = read(path)
            np.testing.assert_array_equal(table.values, ROWS)
            assert table.kind == kind
            assert table.names == (("b", "a") if kind == "pandas" else ("x0", "x1"))


def test_a_csv_with_holes_is_read_with_nan(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n,3\n")
    np.testing.assert_array_equal(read(tmp_path / "a.csv").values, [[1, 2], [np.nan, 3]])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bad.npy", b"nothing of the kind"),
        ("empty.npy", b""),
        ("bad.npz", b"PK\x03\x04 cut"),
        ("text.npz", b"nothing of the kind"),
        ("empty.csv", b""),
        ("ragged.csv", b"a,b\n1,2\n3,4,5,6\n"),
        ("wide.csv", b"a,b\n1,2,3\n4,5,6\n"),
        ("binary.csv", b"\xff\xfe\x00\x01\x02"),
        ("header.csv", b"a,b\n"),
        ("bad.parquet", b"PAR1 and no more"),
        ("empty.parquet", b""),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name) as caught:
        read(tmp_path / name)
    assert caught.value.__suppress_context__  # no other library's traceback


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    for name, save in {"a.npy": np.save, "a.npz": np.savez}.items():
        save(tmp_path / name, np.random.default_rng(0).normal(size=(100, 5)))
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=name):
            read(tmp_path / name)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[object]]), allow_pickle=True)
    with pytest.raises(DataError, match=r"a\.npy"):
        read(tmp_path / "a.npy")


def test_an_npz_must_say_which_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", u=ROWS, v=ROWS)
    with pytest.raises(DataError, match=r"\['u', 'v'\].*expected one named 'x' or 'X'"):
        read(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.csv", "a.parquet"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingFileError, match=str(tmp_path / name)):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.xlsx", "digits"])
def test_an_unknown_ending_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"expected one of \.npy, \.npz, \.csv, \.parquet"):
        read(name)


# ---- refusals


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pd.DataFrame({"t": pd.to_datetime(["2020-01-01"])}), "column 't': got .*2020.*expected numbers"),
        (np.array([[1, 2], [3, "z"]], dtype=object), "column 'x1': got 'z' in row 1 .*object.*expected numbers"),
        (np.array([[1, 2]], dtype=object), "column 'x0': got 1 .*object.*expected numbers"),
        (np.array([["p", "q"]]), "column 'x0': got 'p'"),
        (np.array([["2020-01-01"]], dtype="datetime64[D]"), "column 'x0': got .*datetime64"),
        (np.ones((2, 2), complex), "column 'x0': got .*complex128.*expected numbers"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "got 'a' more than once"),
        (pd.DataFrame([[1, 2]], columns=[0, "0"]), "got '0' more than once"),
        (pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), "got 'a' more than once"),
        (np.ones(3), r"shape \(3,\), expected rows x columns"),
        (torch.tensor(1.0), "expected rows x columns"),
        (np.ones((0, 3)), "at least one row and one column"),
        (np.ones((3, 0)), "at least one row and one column"),
        (torch.ones(0, 3), "at least one row and one column"),
        (pd.DataFrame(), "at least one row and one column"),
        (pl.DataFrame({"a": []}), "at least one row and one column"),
        (pa.table({"a": pa.array([], pa.float64())}), "at least one row and one column"),
        (pd.DataFrame({"a": [[1], [2]]}), r"column 'a': got \[1\] in row 0"),
        (pd.DataFrame({"a": [1j, 2j]}), "column 'a': got 1j in row 0"),
        (pd.DataFrame({"a": pd.cut([1, 2], 2)}), "column 'a': got Interval.* expected numbers, truth values or text"),
        (pd.DataFrame({"a": [None, object()]}), "column 'a': got <object .* in row 1"),
        (pl.DataFrame({"a": [[1], [2]]}), r"column 'a': got \[1\] in row 0"),
        ([[1.0, 2.0]], "got list, expected a NumPy array, a torch tensor, a pandas or polars DataFrame"),
        (None, "got NoneType"),
        (pd.Series([1.0]), "got Series"),
    ],
)
def test_what_cannot_be_used_is_said(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(data)
