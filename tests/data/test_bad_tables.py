"""Every table that cannot be used as it is, at each stage: an error of ours that says where and what, or the right result.

A case tells what happens when a model is built from its table (`build`), and when a model of the sound table meets it to be
fitted (`fit`) and to score (`score`): the message, as a regular expression, or `RIGHT` (finite figures), `SAME` (those of
the sound table, bit for bit), or `FAR` (finite but in row 3, which is infinitely improbable).
"""

import datetime
import gzip
import io
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import ppl_vae as pv
from ppl_vae.data.tables import read, read_csv

N = 12
RNG = np.random.default_rng(0)
NUMBERS = pd.DataFrame({"a": RNG.normal(size=N), "b": RNG.exponential(size=N)})
MIXED = NUMBERS.assign(
    job=["clerk", "smith", "clerk"] * 4,
    flag=[True, False, True, True] * 3,
    n=RNG.poisson(3, N),
    size=pd.Categorical([1, 2, 3] * 4),
)
RIGHT, SAME, FAR = "right", "same", "far"


class Case(NamedTuple):
    """`data` is a table, or makes one of the sound table; `of` is that table."""

    data: Any
    build: str
    fit: str
    score: str
    of: pd.DataFrame = NUMBERS
    options: Mapping[str, Any] = MappingProxyType({})


def always(data: Any, message: str, **of: Any) -> Case:
    return Case(data, message, message, message, **of)


def mixed(data: Any, build: str, fit: str, score: str) -> Case:
    """Of a model of MIXED, its likelihoods inferred."""
    return Case(data, build, fit, score, MIXED, {"likelihood": "infer"})


def put(column: str, value: Any, row: int = 3) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """The table with one other cell."""

    def with_cell(frame: pd.DataFrame) -> pd.DataFrame:
        values = frame[column].astype(object)
        values[row] = value
        return frame.assign(**{column: values.infer_objects()})

    return with_cell


def instead(column: str, values: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """The table with one other column."""
    return lambda frame: frame.assign(**{column: values})


def objects(*values: Any) -> pd.Series:
    return pd.Series([values[i % len(values)] for i in range(N)], dtype=object)


def readonly(frame: pd.DataFrame) -> np.ndarray:
    values = frame.to_numpy(np.float32)
    values.flags.writeable = False
    return values


HOLE = (
    r"column 'a': got nan in row 3 \(1 such cell\(s\) in all\), expected finite numbers; only columns declared nullable"
)
LARGE = r"column 'a': got about \d+ in row 0 \(dtype \w+\), expected whole numbers below 2\*\*53, which float64 holds"
DATE = r"column 'a': got .*2020.* in row 0 .*expected numbers"
TWO_ROWS = r"data: got 1 row\(s\), expected at least 2"
NO_CELLS = r"data: got shape \(.*\), expected at least one row and one column"
TOO_LARGE = r"column 'a': got 1e\+308 in row 3, expected a value that fits torch.float32 once encoded"
EXPLODES = r"step 0: got a .* that is not finite.* Column 'a' has in row 3 a value of size .*e\+\d\d once encoded"

CASES = {
    # cells
    "nan": always(put("a", np.nan), HOLE),
    "None": always(put("a", None), HOLE),
    "NA": always(put("a", pd.NA), HOLE),
    "inf": always(
        put("a", np.inf), r"column 'a': got inf in row 3 \(1 such cell\(s\) in all\), expected finite numbers$"
    ),
    "-inf in an array": always(
        lambda frame: put("b", -np.inf)(frame).to_numpy(),
        r"column '(x1|b)': got -inf in row 3 \(1 such cell\(s\) in all\), expected finite numbers$",
    ),
    "a cell of 1e12": Case(put("a", 1e12), RIGHT, EXPLODES, RIGHT),
    "a cell of 1e38": Case(put("a", 1e38), RIGHT, EXPLODES, FAR),
    "a cell of 1e308": Case(put("a", 1e308), RIGHT, TOO_LARGE, TOO_LARGE),
    "a spread beyond float64": Case(
        instead("a", [-1.7e308, 1.7e308] * 6),
        r"column 'a': got values from -1.7e\+308 to 1.7e\+308, expected a spread that float64 holds",
        r"column 'a': got -1.7e\+308 in row 0, expected a value that fits torch.float32 once encoded",
        r"column 'a': got -1.7e\+308 in row 0, expected a value that fits torch.float32 once encoded",
    ),
    "values below float32": Case(lambda frame: frame.assign(a=frame.a * 1e-300), RIGHT, RIGHT, RIGHT),
    # rows and columns
    "no rows": always(lambda frame: frame[:0], NO_CELLS),
    "no columns": always(lambda frame: frame[[]], NO_CELLS),
    "no columns of an array": always(np.ones((3, 0)), NO_CELLS),
    "nothing at all": always(pl.DataFrame(), NO_CELLS),
    "1 row": Case(lambda frame: frame[:1], TWO_ROWS, TWO_ROWS, RIGHT),
    "a constant column": Case(instead("a", 0.1), RIGHT, RIGHT, RIGHT),
    "all missing": Case(
        instead("a", np.nan),
        "column 'a': got no value in any row, expected at least one: drop the column",
        RIGHT,
        RIGHT,
        options={"nullable": ["a"]},
    ),
    "all missing, text": always(
        instead("a", objects(None)), r"column 'a': got None in row 0 \(dtype String\), expected numbers"
    ),
    "missing column": Case(lambda frame: frame[["a"]], RIGHT, *[r"columns: missing \['b'\]; got 1, expected 2"] * 2),
    "extra column": Case(instead("z", 1.0), RIGHT, *[r"columns: unknown \['z'\]"] * 2),
    "renamed column": Case(
        lambda frame: frame.rename(columns={"b": "B"}), RIGHT, *[r"columns: missing \['b'\], unknown \['B'\]"] * 2
    ),
    "reordered columns": Case(lambda frame: frame[["b", "a"]], RIGHT, RIGHT, SAME),
    "duplicate column": always(
        lambda frame: pd.concat([frame, frame[["b"]]], axis=1), "columns: got 'b' more than once, expected distinct"
    ),
    "names that are one as text": always(
        lambda frame: frame.set_axis([0, "0"], axis=1), "columns: got '0' more than once, expected distinct names"
    ),
    "numbers as names": Case(
        lambda frame: frame.set_axis([0, 1], axis=1), RIGHT, *[r"missing \['a', 'b'\], unknown \['0', '1'\]"] * 2
    ),
    "MultiIndex of columns": Case(
        lambda frame: frame.set_axis(pd.MultiIndex.from_tuples([("a", "x"), ("b", "y")]), axis=1),
        RIGHT,
        *[re.escape("""unknown ["('a', 'x')", "('b', 'y')"]""")] * 2,
    ),
    "MultiIndex of rows": Case(
        lambda frame: frame.set_axis(pd.MultiIndex.from_product([range(3), range(4)])), RIGHT, RIGHT, SAME
    ),
    "equal names of rows": Case(lambda frame: frame.set_axis([0] * N), RIGHT, RIGHT, SAME),
    # types of columns
    "numbers kept as objects": Case(lambda frame: frame.assign(a=frame.a.astype(object)), RIGHT, RIGHT, SAME),
    "read-only memory": Case(readonly, RIGHT, RIGHT, RIGHT),
    "float16": Case(lambda frame: frame.astype(np.float16), RIGHT, RIGHT, RIGHT),
    "a float16 array": Case(lambda frame: frame.to_numpy(np.float16), RIGHT, RIGHT, RIGHT),
    "float8": Case(lambda frame: torch.tensor(frame.to_numpy()).to(torch.float8_e4m3fn), RIGHT, RIGHT, RIGHT),
    "dates": always(instead("a", pd.date_range("2020", periods=N)), DATE),
    "dates kept as objects": always(
        instead("a", objects(datetime.date(2020, 1, 1))), DATE.replace("2020", "date.2020")
    ),
    "dates of polars": always(pl.DataFrame({"a": [datetime.date(2020, 1, 1)] * 3, "b": [1.0, 2, 3]}), DATE),
    "periods": always(instead("a", pd.period_range("2020", periods=N, freq="D")), DATE),
    "time spans": always(instead("a", pd.to_timedelta(range(N), unit="s")), r"column 'a': got Timedelta\('0 days"),
    "intervals": always(instead("a", pd.interval_range(0, N)), r"column 'a': got Interval\(0, 1, closed='right'\)"),
    "complex numbers": always(instead("a", 1j), r"column 'a': got 1j in row 0 .*expected numbers"),
    "Decimals": always(instead("a", objects(Decimal("1.5"))), r"column 'a': got Decimal\('1.5'\) in row 0"),
    "Decimals of pyarrow": Case(pa.table({"a": [Decimal("1.5"), Decimal("2.5")], "b": [1.0, 2.0]}), *[RIGHT] * 3),
    "lists": always(instead("a", [[1]] * N), r"column 'a': got \[1\] in row 0 \(dtype Object\), expected numbers"),
    "dicts": always(instead("a", [{"x": 1}] * N), "column 'a': got {'x': 1} in row 0"),
    "tuples": always(instead("a", [(1, 2)] * N), r"column 'a': got \(1, 2\) in row 0"),
    "arrays": always(instead("a", [np.ones(2)] * N), r"column 'a': got array\(\[1., 1.\]\) in row 0"),
    "lists of pyarrow": always(pa.table({"a": [[1], [2]], "b": [1.0, 2]}), r"column 'a': got \[1\] in row 0"),
    "structs of polars": always(
        pl.DataFrame({"a": [{"x": 1}] * 2, "b": [1.0, 2]}), "column 'a': got {'x': 1} in row 0"
    ),
    "bytes": always(pl.DataFrame({"a": [b"1", b"x"], "b": [1.0, 2]}), "column 'a': got b'x' in row 1"),
    "unions": always(
        pa.table({"a": pa.UnionArray.from_sparse(pa.array([0, 0], pa.int8()), [pa.array([1, 2])]), "b": [1.0, 2]}),
        "column 'a': got what cannot be read .*union.*expected numbers, truth values or text",
    ),
    "text that is not UTF-8": always(
        pa.table({"a": pa.array([b"\xff", b"x"]).view(pa.string()), "b": [1.0, 2]}),
        "column 'a': got what cannot be read .*expected numbers, truth values or text",
    ),
    "numbers and text": always(
        instead("a", objects(1.5, "x")),
        r"column 'a': got 'x' in row 1 and 1.5 before it .*expected either text or numbers",
    ),
    "long text": always(
        instead("a", "x" * 10**6), r"column 'a': got 'x{199} in row 0 \(dtype String\), expected numbers"
    ),
    "whole numbers of 2**53": always(instead("a", np.arange(2**53, 2**53 + N)), LARGE),
    "whole numbers of 2**53 and holes": always(
        instead("a", pd.array([2**53 + 1, None] * 6, "Int64")), LARGE, options={"nullable": True}
    ),
    "whole numbers of 2**63": always(pl.DataFrame({"a": pl.Series([2**63, 1], dtype=pl.UInt64), "b": [1.0, 2]}), LARGE),
    "whole numbers of 2**70": always(instead("a", objects(2**70)), LARGE),
    "whole numbers of 10**400": always(
        instead("a", objects(10**400)), "column 'a': got what cannot be read .*int too large to convert to float"
    ),
    "an array of 2**53": always(np.full((3, 2), -(2**53)), LARGE.replace("'a'", "'x0'").replace("about ", "about -")),
    "whole numbers below 2**53": Case(
        instead("a", np.arange(2**53 - N, 2**53)), RIGHT, EXPLODES.replace("row 3", r"row \d+"), RIGHT
    ),
    # text, categories, truth values and counts
    "no change": mixed(lambda frame: frame, RIGHT, RIGHT, SAME),
    "missing text": mixed(
        put("job", None),
        RIGHT,
        *[r"column 'job': got None in row 3 .*expected text; only columns declared nullable"] * 2,
    ),
    "unseen category": mixed(
        put("job", "cook"),
        RIGHT,
        *[r"column 'job': got 'cook' in row 3 \(dtype String\), expected one of 'clerk', 'smith'"] * 2,
    ),
    "unseen category, a number": mixed(
        put("size", 4), RIGHT, *[r"column 'size': got 4 in row 3 \(dtype Int64\), expected one of 1, 2, 3$"] * 2
    ),
    "text for numbers": mixed(
        instead("a", "x"), RIGHT, *[r"column 'a': got 'x' in row 0 \(dtype String\), expected n"] * 2
    ),
    "numbers written as text": mixed(
        lambda frame: frame.assign(a=frame.a.astype(str)),
        "column 'a': got 12 distinct texts in 12 rows, expected few",
        *[r"column 'a': got '[-\d.]+' in row 0 \(dtype String\), expected numbers"] * 2,
    ),
    "numbers for text": mixed(
        instead("job", [1, 2] * 6),
        RIGHT,
        *[r"column 'job': got 1 in row 0 \(dtype Int64\), expected one of 'clerk', 's"] * 2,
    ),
    "truth values for text": mixed(
        instead("job", [True, False] * 6),
        RIGHT,
        *[r"column 'job': got True in row 0 \(dtype Boolean\), expected one of 'clerk', 'smith'"] * 2,
    ),
    "text for truth values": mixed(
        instead("flag", "True"), RIGHT, *[r"column 'flag': got 'True' in row 0 .*expected one of False, True"] * 2
    ),
    "2 for a truth value": mixed(
        instead("flag", [0, 2] * 6), RIGHT, *[r"column 'flag': got 2 in row 1 .*expected one of False, True"] * 2
    ),
    "0 and 1 for truth values": mixed(lambda frame: frame.assign(flag=frame.flag * 1.0), RIGHT, RIGHT, SAME),
    "integers that became floats": mixed(lambda frame: frame.assign(n=frame.n * 1.0), RIGHT, RIGHT, SAME),
    "levels that became floats": mixed(lambda frame: frame.assign(size=[1.0, 2, 3] * 4), RIGHT, RIGHT, SAME),
    "counts with halves": mixed(
        lambda frame: frame.assign(n=frame.n + 0.5),
        RIGHT,
        *[r"column 'n': got 7.5 in row 0, expected whole numbers"] * 2,
    ),
    "counts below 0": mixed(
        instead("n", -1), RIGHT, *[r"column 'n': got -1.0 in row 0, expected whole numbers of at"] * 2
    ),
    "0 where values are positive": mixed(
        put("b", 0.0), RIGHT, *[r"column 'b': got 0.0 in row 3, expected finite numbers above 0"] * 2
    ),
    "positive, and 0 once encoded": mixed(
        put("b", 5e-324),
        RIGHT,
        *[r"column 'b': got 5e-324 in row 3, expected a value that fits torch.float32 once encoded"] * 2,
    ),
    "dates for text": mixed(
        instead("job", pd.date_range("2020", periods=N)),
        *["column 'job': got Timestamp.* in row 0 .*expected numbers"] * 3,
    ),
    "1 and True in one column": mixed(
        instead("job", objects("clerk", 1, True)),
        *["column 'job': got 1 in row 1 and 'clerk' before it .*either text or"] * 3,
    ),
    # what is no table
    "a list": always(
        [[1.0, 2.0]], "data: got list, expected a NumPy array, a torch tensor, a pandas or polars DataFrame"
    ),
    "a Series": always(NUMBERS.a, "data: got Series, expected a NumPy array"),
    "a lazy frame": always(pl.LazyFrame({"a": [1.0]}), "data: got LazyFrame, expected"),
    "one dimension": always(np.ones(3), r"data: got an array of shape \(3,\), expected rows x columns"),
    "a structured array": always(
        np.zeros((2, 2), "f8,f8"), r"column 'x0': got \(0.0, 0.0\) in row 0 .*expected numbers"
    ),
    "an array of objects": always(
        np.array([[1, "z"]], object), "column 'x1': got 'z' in row 0 .dtype object., expected num"
    ),
    "a tensor without data": always(
        torch.empty(3, 2, device="meta"), "data: got a tensor of torch.float32 on meta, expected"
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_table_is_refused_by_name_or_gives_the_right_result(name: str) -> None:
    case = CASES[name]
    data = case.data(case.of) if callable(case.data) else case.data

    def built(table: Any) -> Any:
        return pv.build(table, latent=1, hidden=(4,), **case.options)

    def scored(vae: Any, table: Any) -> np.ndarray:
        return pv.score(vae, table, num_draws=4).values

    def fitted(vae: Any) -> Any:
        pv.fit(vae, data, epochs=1, valid=0.0, progress=False)
        return vae

    met(case.build, lambda: built(data))
    met(case.fit, lambda: scored(fitted(built(case.of)), case.of))
    met(case.score, lambda: scored(built(case.of), data), lambda: scored(built(case.of), case.of))


def met(expected: str, stage: Callable[[], Any], sound: Callable[[], np.ndarray] | None = None) -> None:
    """What is expected of a stage is what happens."""
    if expected not in (RIGHT, SAME, FAR):
        with pytest.raises(pv.PplVaeError, match=expected) as caught:
            stage()
        assert len(str(caught.value)) < 1000
        return
    found = stage()
    if isinstance(found, np.ndarray):
        assert not np.isnan(found).any()
        np.testing.assert_array_equal(np.isfinite(found), (expected != FAR) | (np.arange(len(found)) != 3))
    if expected == SAME:
        np.testing.assert_array_equal(found, sound())


# ---- files: any stage reads them alike, and may then refuse a column

CSV = b"a,b\n1,2\n3,4\n5,6\n"


def saved(save: Callable, *args: Any, **arrays: Any) -> bytes:
    save(file := io.BytesIO(), *args, **arrays)
    return file.getvalue()


def packed(name: str, text: str) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr(name, text)
    return file.getvalue()


NPY, NPZ = saved(np.save, np.ones((50, 4))), saved(np.savez, x=np.ones((50, 4)))
GZ, PARQUET = gzip.compress(CSV), saved(lambda file: NUMBERS.to_parquet(file))
OBJECTS = np.array([[1.0, 2.0]], dtype=object)
NUL, SHORT = "got a NUL byte, expected text in UTF-8 throughout", r"line \d: got 1 field\(s\), expected 2"

FILES = {
    "nothing.csv": (b"", r"cannot be read as .csv \(EmptyDataError"),
    "blank.csv": (b"\n  \n\n", r"cannot be read as .csv \(EmptyDataError"),
    "only a header.csv": (b"a,b\n", r"got shape \(0, 2\), expected at least one row and one column"),
    "cut in a line.csv": (CSV[:-3], SHORT),
    "cut after a quote.csv": (b'a,b\n1,"x"\n3,"y', "cannot be read as .csv .*EOF inside string"),
    "a short line.csv": (b"a,b\n1,2\n\n3\n5,6\n", SHORT),
    "a short line of blanks.csv": (b"a,b,c\n1,2,3\n,\n4,5,6\n", r"line 3: got 2 field\(s\), expected 3"),
    "a short line packed.csv.gz": (gzip.compress(b"a,b\n1,2\n3\n5,6\n"), SHORT),
    "a long line.csv": (b"a,b\n1,2\n3,4,5\n", "cannot be read as .csv .*Expected 2 fields in line 3, saw 3"),
    "all lines long.csv": (b"a,b\n1,2,3\n3,4,5\n", "got more fields in its lines than column names"),
    "one name twice.csv": (b"a,b,a\n1,2,3\n3,4,5\n", "columns: got 'a' more than once, expected distinct names"),
    "UTF-16.csv": (CSV.decode().encode("utf-16"), NUL),
    "UTF-16 without a mark.csv": (CSV.decode().encode("utf-16-le"), NUL),
    "UTF-32.csv": (CSV.decode().encode("utf-32"), NUL),
    "Latin-1.csv": ("a,b\n1,é\n2,u\n".encode("latin-1"), "cannot be read as .csv .*UnicodeDecodeError"),
    "zeros at the end.csv": (CSV + bytes(20), NUL),
    "zeros.csv": (bytes(100), NUL),
    "gzip unannounced.csv": (GZ, "NUL byte|UnicodeDecodeError"),
    "parquet as.csv": (PARQUET, NUL),
    "beyond 2**53.csv": (b"a,b\n9007199254740993,2\n1,3\n", LARGE),
    "beyond float64.csv": (b"a,b\n1" + b"0" * 400 + b",2\n1,3\n", "column 'a': got what cannot be read"),
    "infinite.csv": (b"a,b\n1e999,2\n1,3\n", "column 'a': got inf in row 0"),
    "text among numbers.csv": (b"a,b\n1,2\nx,3\n4,5\n", "column 'a': got 'x' in row 1 .*expected numbers"),
    "cut short.csv.gz": (GZ[:-9], "cannot be read as .csv.gz .*ended before"),
    "of another sum.csv.gz": (GZ[:-8] + bytes(8), "cannot be read as .csv.gz .*CRC check failed"),
    "more after it.csv.gz": (GZ + b"more", "cannot be read as .csv.gz .*Not a gzipped file"),
    "no gzip.csv.gz": (CSV, "cannot be read as .csv.gz .*Not a gzipped file"),
    "nothing.npy": (b"", "cannot be read as .npy .*EOF"),
    "cut in the header.npy": (NPY[:100], "cannot be read as .npy .*EOF: reading array header"),
    "cut.npy": (NPY[:-1], "cannot be read as .npy .*Failed to read all data"),
    "of 146 TiB.npy": (NPY.replace(b"(50, 4)", b"(5000000000000, 4)"), "cannot be read as .npy .*MemoryError"),
    "of minus 5 rows.npy": (NPY.replace(b"(50, 4)", b"(-5, 4)"), "cannot be read as .npy"),
    "an archive.npy": (NPZ, "cannot be read as .npy .*magic string"),
    "objects.npy": (saved(np.save, OBJECTS, allow_pickle=True), "cannot be read as .npy .*Object arrays"),
    "a pickle.npy": (pickle.dumps(np.ones((3, 2))), "cannot be read as .npy .*magic string"),
    "cut.npz": (NPZ[:-5], "cannot be read as .npz .*BadZipFile"),
    "objects.npz": (saved(np.savez, x=OBJECTS), "cannot be read as .npz .*Object arrays"),
    "a pickle.npz": (pickle.dumps(np.ones((3, 2))), "cannot be read as .npz .*BadZipFile"),
    "an array.npz": (NPY, "cannot be read as .npz .*BadZipFile"),
    "two arrays.npz": (
        saved(np.savez, u=np.ones((3, 2)), v=np.ones((3, 2))),
        r"got arrays \['u', 'v'\], expected one named",
    ),
    "no arrays.npz": (saved(np.savez), r"got arrays \[\], expected one named 'x' or 'X'"),
    "one dimension.npz": (saved(np.savez, x=np.ones(3)), r"got an array of shape \(3,\), expected rows x columns"),
    "text.npz": (packed("u", "hi"), r"got arrays \['u'\], expected one named 'x' or 'X'"),
    "text as x.npz": (packed("x.npy", "hi"), "data: got bytes, expected a NumPy array"),
    "nothing.parquet": (b"", "cannot be read as .parquet .*0 bytes"),
    "no footer.parquet": (PARQUET[:-8], "cannot be read as .parquet .*magic bytes not found in footer"),
    "cut.parquet": (PARQUET[: len(PARQUET) // 2], "cannot be read as .parquet .*magic bytes not found in footer"),
    "text.parquet": (CSV, "cannot be read as .parquet .*magic bytes not found in footer"),
    "one name twice.parquet": (
        saved(lambda file: pq.write_table(pa.table([[1.0], [2.0]], names=["a", "a"]), file)),
        "cannot be read as .parquet .*Multiple matches for .*a",
    ),
    "lists.parquet": (
        saved(lambda file: pq.write_table(pa.table({"a": [[1], [2]]}), file)),
        r"column 'a': got array\(\[1\]\) in row 0",
    ),
    "beyond 2**53, with holes.parquet": (
        saved(lambda file: pq.write_table(pa.table({"a": [2**53 + 1, None]}), file)),
        LARGE,
    ),
    "no rows.parquet": (
        saved(lambda file: pq.write_table(pa.table({"a": pa.array([], pa.float64())}), file)),
        r"got shape \(0, 1\)",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_named_with_the_reason(tmp_path: Path, name: str) -> None:
    content, message = FILES[name]
    (tmp_path / name).write_bytes(content)
    vae = pv.build(NUMBERS, latent=1, hidden=(4,))
    for use in (pv.build, lambda path: pv.fit(vae, path, progress=False), lambda path: pv.score(vae, path)):
        with pytest.raises(pv.DataError, match=message) as caught:
            use(tmp_path / name)
        text = str(caught.value)
        assert text.startswith((f"file {tmp_path / name}: ", "column ")) and "\n" not in text and len(text) < 500
        assert caught.value.__suppress_context__ or text.startswith("column ")  # no other library's traceback


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".npy", ".npz", ".parquet"])
def test_what_is_no_file_is_named(tmp_path: Path, ending: str) -> None:
    (folder := tmp_path / f"folder{ending}").mkdir()
    (link := tmp_path / f"link{ending}").symlink_to("nowhere")
    long = tmp_path / ("x" * 300 + ending)
    for path, message in ((folder, "IsADirectory|shape"), (long, "File name too long"), (link, "got nothing there")):
        with pytest.raises(pv.DataError, match=f"file {re.escape(str(path))}: .*({message})"):
            read(path)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "canary",)

    loaded = np.array([[Payload()]], dtype=object)
    np.save(tmp_path / "a.npy", loaded, allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=loaded)
    for name in ("b.npy", "b.npz", "b.csv", "b.parquet"):
        (tmp_path / name).write_bytes(pickle.dumps(Payload()))
    for path in list(tmp_path.iterdir()):
        with pytest.raises(pv.DataError):
            read(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (b"\xef\xbb\xbf" + CSV, [[1, 2], [3, 4], [5, 6]]),  # the mark of UTF-8
        (CSV[:-1], [[1, 2], [3, 4], [5, 6]]),
        (CSV[:-2], [[1, 2], [3, 4], [5, np.nan]]),  # as if the cell were missing: no reader could tell
        (CSV.replace(b"\n", b"\r\n"), [[1, 2], [3, 4], [5, 6]]),
        (CSV.replace(b"\n", b"\r"), [[1, 2], [3, 4], [5, 6]]),
        (CSV.replace(b"\n", b"\n\n  \n"), [[1, 2], [3, 4], [5, 6]]),
        (b"a,b\n1,2,\n3,,\n", [[1, 2], [3, np.nan]]),  # a comma after the last field
        (b'a,b\n1,"2"\n3,\n"5",6\n', [[1, 2], [3, np.nan], [5, 6]]),
        (b",\n1,1\n3,4\n", [[1, 1], [3, 4]]),  # columns without names
        (b'"a\nb",c\n1,2\n3,\n', [[1, 2], [3, np.nan]]),  # a name of two lines
    ],
)
def test_odd_csv_files_that_can_be_read_are(tmp_path: Path, content: bytes, values: list) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(content))
    for path in (tmp_path / "a.csv", tmp_path / "a.csv.gz"):
        np.testing.assert_array_equal(read(path).values, values)
        np.testing.assert_array_equal(read_csv(path), values)


def test_whole_numbers_with_holes_are_whole_numbers_in_parquet_too(tmp_path: Path) -> None:
    frame = pa.table({"n": [2**30 + 1, None, 3]})
    pq.write_table(frame, tmp_path / "a.parquet")
    table = read(tmp_path / "a.parquet")
    np.testing.assert_array_equal(table.values, [[2**30 + 1], [np.nan], [3]])
    assert table.columns[0].kind == "integer" == read(frame).columns[0].kind
