"""Tables larger than memory: files cut into shards, each read on its own, and the same whatever the others hold."""

import csv
import gzip
import io
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

from ppl_vae.data.records import records
from ppl_vae.data.schema import Schema
from ppl_vae.data.tables import FRAMES, check_header, check_texts, parse_csv, refuse_nul, refuse_short
from ppl_vae.errors import DataError, MissingFileError, PplVaeError, whole
from ppl_vae.files import digest

ENDINGS = (".parquet", ".csv", ".csv.gz")
ROWS, CELLS = 100_000, 2**20
"""Of a shard, at most, where nobody says."""
BATCH = 2**13
"""Rows of a Parquet file that are decoded at a time."""


class Source(NamedTuple):
    """One file of a table.

    Attributes:
        path: absolute.
        names: of its columns.
        rows: how many.
        size: in bytes.
        sha256: of a CSV file's bytes (as unpacked), of a Parquet file's footer, which names columns, sizes and places.
        modified: of a Parquet file, whose footer need not tell that a value has changed: nanoseconds; else 0.
        missing: texts of a CSV file that stand for a missing value.
    """

    path: str
    names: tuple[str, ...]
    rows: int
    size: int
    sha256: str
    modified: int = 0
    missing: tuple[str, ...] = ()


class Shard(NamedTuple):
    """Some rows of a table that follow each other in one file.

    Attributes:
        source: the file.
        first: number of the first row in the file.
        rows: how many.
        row: number of the first row in the whole table.
        start, stop: of a CSV file, the bytes of these rows.
        crc: of those bytes.
    """

    source: Source
    first: int
    rows: int
    row: int
    start: int = 0
    stop: int = 0
    crc: int = 0


def plan(
    source: Any, rows: int | None = None, missing: Sequence[str] = (), names: Sequence[str] | None = None
) -> tuple[list[Source], list[Shard]]:
    """Cut a table into shards: a function of the files' content and `rows` alone.

    Of a Parquet file only the footer is read; a CSV file is read once, in blocks, for the places where records begin:
    a line break within quotes is none.

    Args:
        source: a file, a list of files, or a folder: all its files, those of folders in it too, in the order of their
            names; hidden ones and those that begin with "_" are passed over. Parquet or CSV (packed by gzip or not).
        rows: of a shard, at most; None: as many as hold a million cells, 100,000 at most.
        missing, names: as in `read_csv`.

    Returns: the files, and the shards.

    Raises:
        MissingFileError: no such file, or no file of these kinds in the folder.
        DataError: a file that is not whole, or no rows in any; names the file.
        OptionError.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (path := Path(folder) / "few.csv").write_text('a,b\\n1,"x\\ny"\\n2,z\\n3,z\\n')
        ...     [(shard.first, shard.rows) for shard in plan(path, rows=2)[1]]
        [(0, 2), (2, 1)]
    """
    check_texts(missing=missing, names=names)
    rows = None if rows is None else whole("rows", rows)
    sources, shards, before = [], [], 0
    for path in files_of(source):
        is_parquet = path.name.lower().endswith(".parquet")
        try:
            of, cuts = _parquet(path, rows) if is_parquet else _csv(path, rows, missing, names)
        except PplVaeError as error:
            raise DataError(f"file {path}: {error}") from None
        except Exception as error:  # each reader has a dozen of its own; the user needs the file and the reason
            raise DataError(f"file {path}: {_unreadable(error)}") from None
        sources.append(of)
        shards += [Shard(of, first, count, before + first, *place) for first, count, *place in cuts]
        before += of.rows
    if not shards:
        raise DataError(f"source: got no row in {len(sources)} file(s), expected at least one")
    return sources, shards


def files_of(source: Any) -> list[Path]:
    """The files of a table: as given, or those of a folder. Raises: MissingFileError, DataError."""
    if isinstance(source, str | os.PathLike):
        folder = Path(source).absolute()
        if not folder.is_dir():
            return [_checked(folder)]
        found = sorted(path for path in folder.rglob("*") if path.name.lower().endswith(ENDINGS))
        shown = [path for path in found if not any(part[0] in "._" for part in path.relative_to(folder).parts)]
        if not shown:
            raise MissingFileError(
                f"folder {folder}: got no file in it, expected some that end in {', '.join(ENDINGS)}"
            )
        return shown
    if not isinstance(source, Iterable):
        raise DataError(f"source: got {type(source).__name__}, expected a file, a list of files, or a folder")
    return [_checked(Path(path).absolute()) for path in source]


def _checked(path: Path) -> Path:
    if not path.name.lower().endswith(ENDINGS):
        raise DataError(f"file {path}: got ending {path.suffix!r}, expected one of {', '.join(ENDINGS)}")
    if not path.is_file():
        raise MissingFileError(f"file {path}: got nothing there, expected a table")
    return path


def kinds(schema: Schema | None, names: Sequence[str]) -> dict[str, str]:
    """What the cells of each column are by the model's schema, never by what a file happens to hold.

    Returns: {column: "text", "truth" or "number"}, without columns that the schema does not know.
    """
    if schema is None:
        return dict.fromkeys(names, "number")
    own = names if schema.kind not in FRAMES and not schema.beside else schema.names  # by position, as `Schema.named`
    levels: dict[str, Any] = dict(zip(own, schema.levels or (None,) * schema.width))
    if (given := schema.covariates) is not None:
        levels |= dict(zip(given.names, given.levels or (None,) * given.width))
    levels |= {column.name: column.levels for column in (schema.group, schema.label) if column is not None}
    return {name: _kind(levels[name] or ()) for name in names if name in levels}


def _kind(levels: Sequence[Any]) -> str:
    if any(isinstance(level, str) for level in levels):
        return "text"
    return "truth" if levels and all(isinstance(level, bool) for level in levels) else "number"


def read_shard(shard: Shard, kinds: dict[str, str]) -> Any:
    """The rows of a shard: a pandas DataFrame of a CSV file, a pyarrow table of a Parquet file.

    Args:
        shard: of `plan`.
        kinds: what the cells of each column are: "text", "truth" or "number".

    Raises: DataError naming the file, for one that is not what it was when it was planned, or cannot be read.
    """
    source = shard.source
    try:
        is_parquet = source.path.lower().endswith(".parquet")
        rows = _parquet_rows(shard, kinds) if is_parquet else _csv_rows(shard, kinds)
        if len(rows) != shard.rows:
            raise DataError(f"got {len(rows)} rows, expected {shard.rows}")
        return rows
    except PplVaeError as error:
        reason = str(error)
    except Exception as error:
        reason = _unreadable(error)
    raise DataError(f"file {source.path}, rows {shard.first} to {shard.first + shard.rows - 1}: {reason}")


def _unreadable(error: Exception) -> str:
    return f"cannot be read ({type(error).__name__}: {error})"


def close() -> None:
    """Let go of the file that was read last."""
    while _open:
        _open.popitem()[1].close()


_open: dict[Any, Any] = {}
"""The one file that this process reads: what shards of it that follow each other have in common."""


def _kept_open(source: Source, make: Any) -> Any:
    if source not in _open:
        close()
        _open[source] = make(source.path)
    return _open[source]


def _height(columns: Sequence[str]) -> int:
    """Rows of a shard where nobody says."""
    return max(1, min(ROWS, CELLS // max(1, len(columns))))


# ---- CSV


def _csv(path: Path, rows: int | None, missing: Sequence[str], names: Sequence[str] | None) -> Any:
    """The source, and (first, rows, start, stop, crc) of each shard: one pass, in blocks."""
    cuts: list[tuple[int, ...]] = []
    total, crc, start, place, count = sha256(), 0, 0, 0, 0
    columns, last, size = None if names is None else tuple(names), b"", path.stat().st_size
    with _opened(path) as file:
        for block, ends, final in records(file):
            refuse_nul(block)
            begin = 0
            if columns is None and len(ends):
                begin, ends = int(ends[0]), ends[1:]
                columns, start = _header(block[:begin]), place + begin
            if columns is not None:
                rows = rows or _height(columns)
                for end in ends[rows - 1 - count % rows :: rows].tolist():  # of the records that fill a shard
                    crc = zlib.crc32(memoryview(block)[begin:end], crc)
                    cuts.append((len(cuts) * rows, rows, start, place + end, crc))
                    begin, start, crc = end, place + end, 0
                crc = zlib.crc32(memoryview(block)[begin:], crc)
                count, last = count + len(ends), final or last
            total.update(block)
            place += len(block)
    if columns is None or rows is None:
        raise DataError("got no line in it, expected the names of columns")
    if count % rows:
        cuts.append((len(cuts) * rows, count % rows, start, place, crc))
    if last and not last.endswith((b"\n", b"\r")) and count:
        fields = parse_csv(io.BytesIO(last), header=None).shape[1]
        if fields < len(columns):
            raise DataError(
                f"got {fields} fields and no line break at the end of the last record, expected {len(columns)}: "
                "is it still being written?"
            )
    return Source(str(path), columns, count, size, total.hexdigest(), 0, tuple(missing)), cuts


def _opened(path: str | Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb") if str(path).lower().endswith(".gz") else open(path, "rb"))


def _fields(content: bytes) -> Any:
    """The `csv.reader` of some records."""
    return csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), skipinitialspace=True)


def _header(line: bytes) -> tuple[str, ...]:
    check_header(next(filter(any, _fields(line)), ()))
    return tuple(map(str, parse_csv(io.BytesIO(line), nrows=0).columns))


DTYPES = {"text": str, "truth": "boolean", "number": "float64"}
TRUTH = {
    text: number for word, number in (("true", "1"), ("false", "0")) for text in (word, word.title(), word.upper())
}


def _csv_rows(shard: Shard, kinds: dict[str, str]) -> Any:
    source = shard.source
    file = _kept_open(source, _opened)
    file.seek(shard.start)
    content = file.read(shard.stop - shard.start)
    if zlib.crc32(content) != shard.crc:
        raise DataError("got other bytes than when it was planned, expected a file that does not change")

    def parsed(dtypes: dict[str, Any]) -> Any:
        options = {"names": list(source.names), "header": None, "na_values": list(source.missing)}
        frame = parse_csv(io.BytesIO(content), dtype=dtypes, **options)
        refuse_short(frame, _fields(content), lambda row: f"row {shard.first + row}")
        return frame

    try:
        return parsed({name: DTYPES[kind] for name, kind in kinds.items()})
    except ValueError:  # a cell of some column is none of its kind: which one, the text shows
        frame = parsed(dict.fromkeys(kinds, str))
    for name, kind in kinds.items():
        if kind != "text":
            frame[name] = _numbers(frame[name], kind == "truth")
    return frame


def _numbers(texts: Any, truth: bool) -> Any:
    """Numbers, by the same parser, truth values among them being 1 and 0; the texts as they are where one is neither."""
    import pandas as pd

    cells = "\n".join(texts.fillna("nan").replace(TRUTH))
    try:
        found = parse_csv(io.BytesIO(cells.encode()), header=None, dtype="float64")[0]
    except ValueError:
        return texts
    only = truth and found.dropna().isin([0, 1]).all()
    return pd.array(found.map({0.0: False, 1.0: True}), "boolean") if only else found.to_numpy()


# ---- Parquet


def _parquet(path: Path, rows: int | None) -> Any:
    import pyarrow.parquet as pq

    footer = _footer(path)
    with pq.ParquetFile(path) as file:
        n, schema = file.metadata.num_rows, file.schema_arrow
    names = tuple(name for name in schema.names if name not in indices(schema))
    rows = rows or _height(names)
    status = path.stat()
    source = Source(str(path), names, n, status.st_size, digest(footer), status.st_mtime_ns)
    return source, [(first, min(rows, n - first)) for first in range(0, n, rows)]


def _footer(path: str | Path) -> bytes:
    """The last part of a Parquet file, which is written when all else is there."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        length, magic = int.from_bytes(file.read(4), "little"), file.read(4)
        if magic != b"PAR1" or length + 12 > size:
            raise DataError(
                f"got {size} bytes without a footer, expected a whole Parquet file: is it still being written?"
            )
        file.seek(size - 8 - length)
        return file.read(length)


def indices(schema: Any) -> list[str]:
    """The columns of a Parquet file that pandas wrote as its index."""
    return [name for name in (schema.pandas_metadata or {}).get("index_columns", []) if isinstance(name, str)]


class _Parquet:
    """A Parquet file from row to row: a group of rows, however large, is decoded once for all shards that follow."""

    def __init__(self, path: str) -> None:
        import pyarrow.parquet as pq

        # buffered: else a group's columns are read whole before the first row is there
        self.file = pq.ParquetFile(path, buffer_size=2**16, pre_buffer=False, page_checksum_verification=True)
        sizes = [self.file.metadata.row_group(group).num_rows for group in range(self.file.num_row_groups)]
        self.starts = np.cumsum([0, *sizes])
        self.at, self.rest = -1, None
        self.batches: Iterator[Any] = iter(())

    def close(self) -> None:
        self.batches = iter(())
        self.file.close()

    def rows(self, first: int, count: int) -> Any:
        """A pyarrow table of rows first to first + count."""
        import pyarrow as pa

        group = int(np.searchsorted(self.starts, first, "right")) - 1
        if not self.starts[group] <= self.at <= first:
            groups = range(group, self.file.num_row_groups)
            self.batches = self.file.iter_batches(BATCH, row_groups=groups, use_threads=False)
            self.at, self.rest = int(self.starts[group]), None
        found: list[Any] = []
        while count:
            batch: Any = next(self.batches) if self.rest is None else self.rest
            skipped = min(first - self.at, len(batch))
            taken = min(count, len(batch) - skipped)
            if taken:
                found.append(batch.slice(skipped, taken))
            self.at += skipped + taken
            self.rest = batch.slice(skipped + taken) if skipped + taken < len(batch) else None
            first, count = first + taken, count - taken
        return pa.Table.from_batches(found)


def _parquet_rows(shard: Shard, kinds: dict[str, str]) -> Any:
    source, status = shard.source, os.stat(shard.source.path)
    got = status.st_size, status.st_mtime_ns
    if got != (source.size, source.modified):
        raise DataError(
            f"got {got[0]} bytes of the time {got[1]}, expected {source.size} of {source.modified}, as when it was "
            "planned: a file that does not change"
        )
    return _settled(_kept_open(source, _Parquet).rows(shard.first, shard.rows), kinds)


def _settled(table: Any, kinds: dict[str, str]) -> Any:
    """The same rows, in types that do not depend on which other rows were read before."""
    import pyarrow as pa
    import pyarrow.compute as pc

    types = {"text": pa.string(), "truth": pa.bool_(), "number": pa.float64()}
    for j, field in enumerate(table.schema):
        column = table.column(j)
        if pa.types.is_null(field.type) and field.name in kinds:
            column = column.cast(types[kinds[field.name]])
        elif pa.types.is_dictionary(field.type):  # its levels are those met so far
            column = column.unify_dictionaries().combine_chunks()
            own, used = field.type, pc.unique(column.indices).drop_null()
            levels = column.dictionary.take(used.sort())
            levels = levels if own.ordered else levels.sort()
            codes = pc.index_in(column.dictionary_decode(), levels).cast(own.index_type)
            column = pa.DictionaryArray.from_arrays(codes, levels, ordered=own.ordered)
        else:
            continue
        table = table.set_column(j, field.with_type(column.type), column)
    return table
