"""Shards hold what the whole file holds, cell by cell, wherever it is cut; what is not whole is refused by name."""

import gzip
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ppl_vae as pv
from ppl_vae.data import records, shards
from ppl_vae.data.shards import kinds, plan, read_shard
from ppl_vae.data.tables import read_csv
from ppl_vae.errors import DataError, MissingFileError, OptionError

TEXT = dict.fromkeys("abc", "text")


@pytest.fixture(autouse=True)
def _closed() -> Any:
    yield
    shards.close()


def joined(path: Path, rows: int | None, kinds: dict[str, str], **options: Any) -> pd.DataFrame:
    found = [read_shard(shard, kinds) for shard in plan(path, rows, **options)[1]]
    assert rows is None or all(len(part) == rows for part in found[:-1])
    frames = [part.to_pandas() if isinstance(part, pa.Table) else part for part in found]
    return pd.concat(frames, ignore_index=True)


# ---- CSV


def test_records_begin_where_pandas_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pick, path = random.Random(0), tmp_path / "t.csv"
    fields = ["1", "", "x", ' "a"', '"a\nb"', '"a""b"', '5" p', '"q"r', '"\r\n"', " ", '"x, y"', '""', '"a\rb"', ' z "']
    for _ in range(300):
        monkeypatch.setattr(records, "BLOCK", pick.randrange(1, 40))
        lines = ["a,b,c"] + [",".join(pick.choices(fields, k=3)) for _ in range(pick.randrange(1, 8))]
        for _ in range(pick.randrange(3)):
            lines.insert(pick.randrange(len(lines)), pick.choice(["", "  "]))
        line = pick.choice(["\n", "\r\n", "\r"])
        path.write_bytes((line.join(lines) + pick.choice(["", line, line * 2, line + "  "])).encode())
        with path.open("rb") as file:
            expected = pd.read_csv(file, index_col=False, skipinitialspace=True, dtype=str)
        pd.testing.assert_frame_equal(joined(path, pick.randrange(1, 4), TEXT), expected)


def test_cells_are_what_the_model_says_whatever_a_shard_holds(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("n,t,b\n1,007,True\n,7,\nTRUE,x,false\n2.5,NA,1\n")
    found = {rows: joined(path, rows, {"n": "number", "t": "text", "b": "truth"}) for rows in (1, 2, 3, 9)}
    for frame in found.values():
        assert frame["n"].astype(float).tolist()[::2] == [1.0, 1.0] and frame["n"].isna().tolist() == [0, 1, 0, 0]
        assert frame["t"].tolist()[:3] == ["007", "7", "x"] and pd.isna(frame["t"][3])
        assert frame["b"].dtype == "boolean" and frame["b"].fillna(False).tolist() == [True, False, False, True]


def test_numbers_are_those_of_read_csv_to_the_bit(tmp_path: Path) -> None:
    values = np.random.RandomState(0).randn(200, 3) * 10.0 ** np.arange(-3, 6, 3)
    pd.DataFrame(values, columns=list("abc")).to_csv(path := tmp_path / "t.csv", index=False)
    frame = pv.read_csv(path)
    for text in ("", "True,1,2\n"):  # the second time cell by cell
        path.write_text(path.read_text() + text)
        found = joined(path, 201, dict.fromkeys("abc", "number")).iloc[:200]
        assert np.array_equal(found.to_numpy(float), frame.to_numpy())


def test_one_odd_cell_leaves_the_other_columns_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("n,b,t\n1,True,1\nTrue,,2\n")
    found = joined(path, None, {"n": "number", "b": "truth", "t": "text"})
    assert found["n"].tolist() == [1.0, 1.0] and found["b"].dtype == "boolean" and found["t"].tolist() == ["1", "2"]


def test_files_without_header_with_own_words_for_holes_and_packed(tmp_path: Path) -> None:
    content = b"1, ?\n2,x\n3,y\n"
    (tmp_path / "a.csv").write_bytes(content)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(content))
    for name in ("a.csv", "b.csv.gz"):
        found = joined(tmp_path / name, 2, {"n": "number", "t": "text"}, missing=["?"], names=["n", "t"])
        assert found["n"].tolist() == [1, 2, 3] and found["t"].isna().tolist() == [True, False, False]


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    for name in ("b.csv", "a/z.csv", "_other/c.csv", ".hidden.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("n\n1\n2\n3\n")
    (tmp_path / "empty.csv").write_text("n\n")
    sources, cut = plan(tmp_path, 2)
    assert [Path(of.path).name for of in sources] == ["z.csv", "b.csv", "empty.csv"]
    assert [(shard.row, shard.first, shard.rows) for shard in cut] == [(0, 0, 2), (2, 2, 1), (3, 0, 2), (5, 2, 1)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b'a,b\n1,"x\n2,y\n', "got a quote in the record at byte 4 that is never closed"),
        ("t.csv", b"a,b,c\n1,2,3\n1,2", "got 2 fields and no line break at the end of the last record, expected 3"),
        ("t.csv", b"", "got no line in it"),
        ("t.csv", b"a,b\n", "got no row in 1 file"),
        ("t.csv.gz", b"a,b\n", "cannot be read"),
        ("t.csv.gz", gzip.compress(b"a,b\n1,2\n", mtime=0)[:-9], "cannot be read .EOFError"),
        ("t.csv", b"\xff,b\n1,2\n", "cannot be read .UnicodeDecodeError"),
        ("t.csv", b"a,b\n1,2\n3\0,4\n", "got a NUL byte, expected text in UTF-8 throughout"),
        ("t.csv", b"a,b\n1,2\n" + bytes(20), "got a NUL byte"),
        ("t.csv", b"\n a,b, a\n1,2,3\n", "got 'a' more than once, expected distinct names"),
        ("t.parquet", b"PAR1 half of it", "got 15 bytes without a footer, expected a whole Parquet file"),
        ("t.parquet", b"", "got 0 bytes without a footer"),
        ("t.parquet", b"xxxx\0\0\0\0PAR1", "cannot be read"),
        ("t.txt", b"a", "got ending '.txt'"),
    ],
)
def test_what_is_not_a_whole_table_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        plan(tmp_path / name)


@pytest.mark.parametrize("rows", [1, 2, 3, 9])
def test_a_line_cut_short_is_refused_wherever_the_table_is_cut(tmp_path: Path, rows: int) -> None:
    """As by `read_csv`, and not taken for a missing cell; one of blanks is none."""
    (tmp_path / "t.csv").write_text('a,b\n1,2\n"x\ny",\n\n  \n3,4\n5\n7,8\n')
    cut = plan(tmp_path / "t.csv", rows)[1]
    with pytest.raises(DataError, match=r"row 3: got 1 field\(s\), expected 2"):
        [read_shard(shard, {"a": "text", "b": "number"}) for shard in cut]


@pytest.mark.parametrize("option", ["missing", "names"])
def test_one_text_in_the_place_of_a_list_is_refused(tmp_path: Path, option: str) -> None:
    """Else each of its letters would be one."""
    (tmp_path / "t.csv").write_text("a,b\nn,2\n")
    for read in (plan, read_csv):
        with pytest.raises(OptionError, match=rf"{option}: got 'none', expected a list of texts, as \['none'\]"):
            read(tmp_path / "t.csv", **{option: "none"})


def test_a_quote_that_swallows_the_file_is_found_before_memory_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "BLOCK", 64)
    monkeypatch.setattr(records, "LONGEST", 256)
    (tmp_path / "t.csv").write_text('a,b\n1,"x\n' + "2,y\n" * 1000)
    with pytest.raises(DataError, match="got a record of more than 256 bytes at byte 4"):
        plan(tmp_path / "t.csv")


def test_nothing_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"t\.csv: got nothing there"):
        plan(tmp_path / "t.csv")
    with pytest.raises(MissingFileError, match="got no file in it"):
        plan(tmp_path)
    with pytest.raises(DataError, match="source: got int"):
        plan(3)


def test_a_file_that_changes_after_the_plan_is_refused(tmp_path: Path) -> None:
    (csv := tmp_path / "t.csv").write_text("a\n1\n2\n3\n")
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0]})
    frame.to_parquet(parquet := tmp_path / "t.parquet")
    cut = plan([csv, parquet], 2)[1]
    csv.write_text("a\n1\n2\n4\n")
    (frame + 1).to_parquet(parquet)
    assert read_shard(cut[0], {"a": "number"})["a"].tolist() == [1, 2]  # these bytes are as they were
    with pytest.raises(DataError, match=r"t\.csv, rows 2 to 2: got other bytes than when it was planned"):
        read_shard(cut[1], {"a": "number"})
    with pytest.raises(DataError, match=r"t\.parquet, rows 0 to 1: got .* expected .* a file that does not change"):
        read_shard(cut[2], {"a": "number"})


# ---- Parquet


@pytest.mark.parametrize("group", [4, 7, 100])
def test_rows_of_parquet_in_any_order_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    monkeypatch.setattr(shards, "BATCH", 3)
    levels = pd.Categorical.from_codes([0, 1, 2, -1] * 10, ["b", "a", "c"])
    frame = pd.DataFrame({"x": np.arange(40.0), "level": levels, "i": pd.array([1, None] * 20, "Int64")})
    pq.write_table(pa.Table.from_pandas(frame), path := tmp_path / "t.parquet", row_group_size=group)
    cut = plan(path, 9)[1]
    found = {shard.first: read_shard(shard, {}) for shard in [*cut[::-1], *cut[1::2], *cut[::2]]}
    again = {shard.first: read_shard(shard, {}) for shard in cut}
    assert all(found[first].equals(again[first]) for first in found)
    whole = pa.concat_tables([again[shard.first] for shard in cut]).unify_dictionaries().to_pandas()
    assert whole["level"].astype(object).equals(frame["level"].astype(object))
    assert whole[["x", "i"]].astype(float).equals(frame[["x", "i"]].astype(float))


def test_order_of_levels_stays_and_a_column_without_values_gets_its_type(tmp_path: Path) -> None:
    levels = pd.Categorical(["low", "high", "low"], ["low", "mid", "high"], ordered=True)
    table = pa.Table.from_pandas(pd.DataFrame({"level": levels, "t": [None] * 3, "n": [None] * 3}))
    pq.write_table(table, path := tmp_path / "t.parquet")
    (part,) = (read_shard(shard, {"t": "text", "n": "number"}) for shard in plan(path)[1])
    assert part.schema.field("t").type == pa.string() and part.schema.field("n").type == pa.float64()
    assert part.column("level").combine_chunks().dictionary.to_pylist() == ["low", "high"]
    assert part.schema.field("level").type.ordered


def test_kinds_are_the_schemas() -> None:
    frame = pd.DataFrame({"t": ["a", "b"] * 3, "y": [True, False] * 3, "n": [1.5, 2, 3] * 2, "g": [7, 8] * 3})
    schema = pv.Schema.infer(frame, covariates=["n"], group="g")
    assert kinds(schema, ["g", "n", "y", "t", "u"]) == {"g": "number", "n": "number", "y": "truth", "t": "text"}
    assert kinds(pv.Schema.fit(np.eye(2)), ["p", "q"]) == {"p": "number", "q": "number"}
