"""Tables larger than memory: scored or imputed shard by shard, Parquet or CSV in, Parquet out, stopped and resumed."""

import builtins
import io
import os
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch

from ppl_vae.criticism import cells
from ppl_vae.criticism.described import described
from ppl_vae.criticism.imputation import fill_each
from ppl_vae.criticism.scores import score
from ppl_vae.data import shards
from ppl_vae.data.schema import Schema
from ppl_vae.data.shards import Shard, Source
from ppl_vae.data.tables import Column, Table
from ppl_vae.errors import DataError, MissingFileError, ModelFileError, OptionError, PplVaeError, whole
from ppl_vae.files import digest, from_json, locked, read_bytes, to_json, write_bytes, write_text
from ppl_vae.progress import tqdm
from ppl_vae.use.store import load, save
from ppl_vae.versions import versions

FORMAT = "ppl_vae parts 1"
MANIFEST = "_manifest.json"
"""Readers of a folder of Parquet files pass over names that begin with "_"."""
MODEL = "_model"
KEY = b"ppl_vae"
"""In the metadata of a part: the key of its job, its first row, and its digest."""


class Part(NamedTuple):
    """A file of the output: its name, the number of its first row in the whole table, its rows, and its digest."""

    file: str
    row: int
    rows: int
    sha256: str


@dataclass(frozen=True, repr=False)
class Manifest:
    """What a folder of parts is; also in the folder, as `_manifest.json`.

    Attributes:
        folder: where the parts are; `pandas.read_parquet(folder)` and its like read them as one table.
        key: SHA-256 of all that decides what is in them: model, options, sources, shards and this library's version.
        options: those of the call.
        sources: of each file its name, rows, size and digest.
        parts: in the order of rows.
        versions: of the libraries, for a reader's eyes.
    """

    folder: Path
    key: str
    options: dict[str, Any]
    sources: list[dict[str, Any]]
    parts: list[Part]
    versions: dict[str, str]

    def __repr__(self) -> str:
        return f"Manifest({self.rows} rows in {len(self.parts)} parts in {self.folder})"

    @property
    def rows(self) -> int:
        """n, of all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def paths(self) -> list[Path]:
        """Of the parts, in the order of rows."""
        return [self.folder / part.file for part in self.parts]


def score_files(
    model: Any,
    source: Any,
    out: str | os.PathLike,
    *,
    scoring: Any = "reconstruction_probability",
    num_draws: int = 64,
    seed: int = 0,
    per_feature: bool = False,
    compiled: bool | str = "auto",
    rows: int | None = None,
    missing: Sequence[str] = (),
    names: Sequence[str] | None = None,
    map: Callable = builtins.map,
    progress: bool = True,
) -> Manifest:
    """Score a table of files, however large; the same scores as by `score`, to float32 rounding.

    The table is cut into shards, and a shard becomes a part `part-00000.parquet`, ... with the columns `row` (its number
    in the whole table), `score`, `mcse`, and on request `score.<column>`; of a `Calibration` also `p_value` and
    `anomalous`, of a detector `score` alone. A part is there whole or not at all, and is a function of the shard, model
    and options alone: the same bytes by any engine. Started again, a job goes on where it was stopped; a damaged part is
    made again; a folder with parts of another job is refused.

    Args:
        model: the folder of a saved model, which each process reads once; or a model, which is saved to `out` first.
        source: a file, a list of files or a folder, Parquet or CSV (`.csv.gz` too). The columns are those of the model, in
            any order. A cell of CSV is read by the type that the model knows for its column; as in `read_csv`, blanks
            before it are dropped.
        out: a folder for the parts.
        scoring, num_draws, seed, per_feature: as in `score`; a `Calibration` has its own.
        compiled: as in `score`; "auto": "traced", where the whole table pays for it. True is some twice as fast, once each
            process has compiled.
        rows: of a shard, at most, all of which are in memory; None: as many as hold a million cells,
            100,000 at most.
        missing, names: as in `read_csv`.
        map: the engine: the builtin `map`, `ppl_vae.use.engines.processes(n)`, `ppl_vae.use.engines.dask(client)`, or any
            executor's. Each shard is scored by one thread.
        progress: show a bar.

    Returns: the `Manifest`.

    Raises:
        DataError: a file that is not whole or changes meanwhile, or rows that the model cannot read: names file, column
            and row of the file. Finished parts stay.
        MissingFileError, ModelFileError: no such file; no model, or a damaged one.
        OptionError: unknown options; a folder with parts of another job; one text in the place of a list.

    Example:
        >>> import tempfile, pandas as pd
        >>> from ppl_vae.model.linear import PPCA
        >>> frame = pd.DataFrame(np.random.RandomState(0).randn(50, 3), columns=list("abc"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     frame.to_parquet(f"{folder}/new.parquet")
        ...     found = score_files(PPCA(2).fit(frame), f"{folder}/new.parquet", f"{folder}/out", rows=20, progress=False)
        ...     len(found.parts), pd.read_parquet(found.folder).columns.tolist()
        (3, ['row', 'score', 'mcse'])
    """
    options = {"scoring": scoring, "num_draws": whole("num_draws", num_draws), "seed": seed, "per_feature": per_feature}
    options["compiled"] = compiled
    return _run("score", model, source, out, options, rows, missing, names, map, progress)


def impute_files(
    model: Any,
    source: Any,
    out: str | os.PathLike,
    *,
    seed: int = 0,
    candidates: int = 1000,
    rows: int | None = None,
    missing: Sequence[str] = (),
    names: Sequence[str] | None = None,
    map: Callable = builtins.map,
    progress: bool = True,
) -> Manifest:
    """Fill the missing cells of a table of files, however large, each once, as `impute(...).frame` does.

    The parts are the table with its holes filled, in the order of its rows, Parquet columns of their own types, numbers of
    CSV files float64. All else is as in `score_files`. Rows with equal observed cells are filled alike, where `impute`
    fills them by different draws: a row's filling does not depend on where the table was cut.

    Args:
        model: of a model with nullable columns, as in `score_files`.
        seed: of the draws.
        candidates: draws a row that a filling is the weighted mean of.
        source, out, rows, missing, names, map, progress: as in `score_files`.

    Returns: the `Manifest`.

    Raises: as `score_files` and `impute`.

    Example:
        >>> import tempfile, pandas as pd
        >>> from ppl_vae.model.build import build
        >>> frame = pd.DataFrame(np.random.RandomState(0).randn(50, 3), columns=list("abc"))
        >>> frame.loc[::2, "a"] = np.nan
        >>> vae = build(frame, latent=1, hidden=(4,), nullable=True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     frame.to_parquet(f"{folder}/new.parquet")
        ...     found = impute_files(vae, f"{folder}/new.parquet", f"{folder}/out", rows=20, progress=False)
        ...     len(found.parts), int(pd.read_parquet(found.folder).isna().sum().sum())
        (3, 0)
    """
    options = {"seed": seed, "candidates": whole("candidates", candidates)}
    return _run("impute", model, source, out, options, rows, missing, names, map, progress)


class Task(NamedTuple):
    """A shard to turn into a part: `what` is a name of `WORK`, `model` the folder of a model and its digest."""

    what: str
    model: tuple[str, str]
    options: dict[str, Any]
    shard: Shard
    path: str
    key: str


def _run(
    what: str,
    model: Any,
    source: Any,
    out: str | os.PathLike,
    options: dict[str, Any],
    rows: int | None,
    missing: Sequence[str],
    names: Sequence[str] | None,
    map: Callable,
    progress: bool,
) -> Manifest:
    """A job from its beginning, or from where it was stopped, to its manifest."""
    given, folder = isinstance(model, str | os.PathLike), Path(out).absolute()
    if isinstance(source, str | os.PathLike) and folder.is_relative_to(Path(source).absolute()):
        raise OptionError(f"out: got {folder} in the source {source}, which would hold the parts too; expected another")
    with TemporaryDirectory() as temporary, closing(shards), ExitStack() as held:
        place = Path(model if given else temporary).absolute()
        if not given:
            save(model, place)
        sha256 = digest_of(place)
        known = _loaded(place, sha256)
        sources, cut = shards.plan(source, rows, missing, names)
        _check_columns(known, sources)
        options = _tried(what, known, cut, options)
        told = {"sources": [of[1:] for of in sources], "shards": [shard[1:] for shard in cut]}
        key = cells.key({"format": FORMAT, "what": what, "model": sha256, "options": options, **told})
        files = [{"file": Path(of.path).name, "rows": of.rows, "size": of.size, "sha256": of.sha256} for of in sources]
        begun = Manifest(folder, key, {"what": what, **options}, files, [], versions())
        held.enter_context(_alone(folder))
        _claim(begun)
        if not given:
            save(model, place := folder / MODEL)
        paths = [str(folder / f"part-{number:05d}.parquet") for number in range(len(cut))]
        tasks = [Task(what, (str(place), sha256), options, shard, path, key) for shard, path in zip(cut, paths)]
        parts = list(tqdm(map(run, tasks), total=len(tasks), disable=not progress, desc=what, unit="part"))
        for of in sources:
            if (size := os.stat(of.path).st_size) != of.size:
                raise DataError(
                    f"file {of.path}: got {size} bytes in the end, expected the {of.size} that it had before"
                )
        for stale in (*folder.glob(".part-*"), *folder.glob(f".{MANIFEST}.*")):  # of processes killed as they wrote
            stale.unlink(missing_ok=True)
        done = replace(begun, parts=parts)
        _write(done)
        return done


# ---- before the work


def _check_columns(model: Any, sources: list[Source]) -> None:
    """Of every file, before the first row is read."""
    schema = schema_of(model)
    for of in sources:
        d = len(of.names)
        try:
            table = Table(np.empty((0, d)), of.names, "pandas", (d,), (Column("float", "float64"),) * d)
            if schema is not None:
                schema.match(schema.named(table))
        except DataError as error:
            raise DataError(f"file {of.path}: {error}") from None


def _tried(what: str, model: Any, cut: list[Shard], options: dict[str, Any]) -> dict[str, Any]:
    """The options, once the first row was read by them; here it is decided for all shards whether they go by a graph."""
    rows = _read(cut[0], model)
    row = rows.slice(0, 1) if hasattr(rows, "slice") else rows.iloc[:1]
    choices = [options]
    if options.get("compiled") == "auto":
        n = sum(shard.rows for shard in cut)
        graph = n * options["num_draws"] >= GRAPH_PAYS
        choices = [options | {"compiled": choice} for choice in (("traced", False) if graph else (False,))]
    for options in choices:
        try:
            _worked(what, model, cut[0], row, options)
            break
        except OptionError:  # of a model that has no graph, or of any other option
            if options is choices[-1]:
                raise
        except DataError:  # which cell it is that makes a column text, all rows tell
            _worked(what, model, cut[0], rows, options)
            raise
    return options


GRAPH_PAYS = 2**22
"""Rows times draws from which on a graph pays, as `infer.blocks` has it for 500 blocks of 8192."""


def _alone(folder: Path) -> AbstractContextManager:
    """No other job writes to the folder inside. Raises: OptionError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return locked(folder, wait=False)


def _unwritable(folder: Path, error: OSError) -> OptionError:
    return OptionError(f"out: got {folder}, expected a folder that can be written ({error})")


def _claim(job: Manifest) -> None:
    """Take a folder for a job, or refuse it: parts of two jobs in one folder would be one table to whoever reads it."""
    there = sorted(job.folder.glob("part-*.parquet"))
    try:
        content = from_json(read_bytes(job.folder / MANIFEST), MANIFEST)
        old = content.get("key") if isinstance(content, dict) else None
    except (MissingFileError, ModelFileError, OSError):
        old = None
    if there and old != job.key:
        raise OptionError(
            f"out: got {job.folder} with {len(there)} part(s) of another job, expected an empty folder, or parts of this "
            "model with these options of these files as they are; delete it or choose another"
        )
    if old != job.key:
        _write(job)


def _write(job: Manifest) -> None:
    content = {name: value for name, value in vars(job).items() if name != "folder"}
    content["parts"] = [part._asdict() for part in job.parts]
    try:
        write_text(job.folder / MANIFEST, to_json(described({"format": FORMAT, **content})))
    except OSError as error:
        raise _unwritable(job.folder, error) from error


def digest_of(folder: Path) -> str:
    """SHA-256 of a saved model: of its files of JSON and of weights, by name."""
    found = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors"))
    shown = [path for path in found if not any(part[0] in "._" for part in path.relative_to(folder).parts)]
    return digest(to_json([[str(path.relative_to(folder)), digest(read_bytes(path))] for path in shown]).encode())


def schema_of(model: Any) -> Schema | None:
    """The columns of what a folder holds: of a model, or of those that a `Calibration` judges by."""
    return getattr(model.folds[0].vae if hasattr(model, "folds") else model, "schema", None)


# ---- one shard


def run(task: Task) -> Part:
    """The part of a shard: the one that is there, if it is whole and of this job, else made anew."""
    path, shard = Path(task.path), task.shard
    mark = f"{task.key} {shard.row} ".encode()
    packed = _kept(path, mark)
    if packed is None:
        model = _loaded(*task.model)
        packed = _packed(_worked(task.what, model, shard, _read(shard, model), task.options), mark)
        try:
            write_bytes(path, packed)
        except OSError as error:
            raise PplVaeError(f"{path}: the part could not be written: {error}") from error
    return Part(path.name, shard.row, shard.rows, digest(packed))


def _kept(path: Path, mark: bytes) -> bytes | None:
    """The content of a part, if it is the one that is wanted and not a byte of it has changed."""
    try:
        packed = path.read_bytes()
    except OSError:
        return None
    return packed if mark in packed and _sealed(packed, mark) == packed else None


def _packed(table: Any, mark: bytes) -> bytes:
    """A Parquet file that says in its own metadata what it is and which bytes it is made of."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), KEY: mark + BLANK}), sink)
    return _sealed(sink.getvalue(), mark)


def _sealed(packed: bytes, mark: bytes) -> bytes:
    """The file with the SHA-256 of all its other bytes after its mark."""
    place = packed.rindex(mark) + len(mark)
    before, after = packed[:place], packed[place + len(BLANK) :]
    return before + digest(before + BLANK + after).encode() + after


BLANK = b"0" * 64


_models: dict[str, Any] = {}
"""The one model that this process works with, by its digest."""


def _loaded(folder: str | Path, sha256: str) -> Any:
    if sha256 not in _models:
        model = load(folder)
        if (got := digest_of(Path(folder))) != sha256:
            raise ModelFileError(f"{folder}: got a model with the digest {got}, expected {sha256}: it has been changed")
        _models.clear()
        _models[sha256] = model
    return _models[sha256]


def _read(shard: Shard, model: Any) -> Any:
    return shards.read_shard(shard, shards.kinds(schema_of(model), shard.source.names))


def _worked(what: str, model: Any, shard: Shard, rows: Any, options: dict[str, Any]) -> Any:
    """The pyarrow table of a part. Raises: DataError naming the file, and the row by its number there."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with another number matrix products round otherwise
    try:
        return WORK[what](model, shard, rows, **options)
    except DataError as error:
        text = re.sub(r"\bin row (\d+)", lambda found: f"in row {int(found[1]) + shard.first}", str(error), count=1)
        raise DataError(f"file {shard.source.path}: {text}") from None
    finally:
        torch.set_num_threads(threads)


def _scored(model: Any, shard: Shard, rows: Any, **options: Any) -> Any:
    import pyarrow as pa

    columns: dict[str, Any] = {"row": np.arange(shard.row, shard.row + len(rows), dtype=np.int64)}
    rows = rows.drop_columns(shards.indices(rows.schema)) if isinstance(rows, pa.Table) else rows
    own = hasattr(model, "decide") or hasattr(model, "score_samples")
    if own and (changed := [name for name, value in SCORING.items() if value != options[name]]):
        raise OptionError(f"{changed[0]}: got {options[changed[0]]!r} with a {type(model).__name__}, which has its own")
    if hasattr(model, "decide"):
        found = model.decide(rows)
        columns |= {"score": found.scores, "mcse": found.mcse}
        columns |= {"p_value": found.p_values, "anomalous": found.anomalous}
    elif hasattr(model, "score_samples"):
        columns["score"] = model.score_samples(rows if hasattr(rows, "iloc") else rows.to_pandas())
    else:
        scores = score(model, rows, **options)
        columns |= {"score": scores.values, "mcse": scores.mcse}
        if scores.per_feature is not None:
            columns |= {f"score.{name}": part for name, part in zip(model.schema.names, scores.per_feature.T)}
    return pa.table(columns)


SCORING = {"scoring": "reconstruction_probability", "num_draws": 64, "seed": 0, "per_feature": False}


def _filled(model: Any, shard: Shard, rows: Any, **options: Any) -> Any:
    import pyarrow as pa

    if isinstance(rows, pa.Table):
        index = shards.indices(rows.schema)
        table = fill_each(model, rows.drop_columns(index), **options)
        for name in index:
            table = table.append_column(rows.field(name), rows.column(name))
        return table.replace_schema_metadata(rows.schema.metadata if index else None)
    frame = fill_each(model, rows, **options)
    types = {"text": pa.string(), "truth": pa.bool_(), "number": pa.float64()}
    kinds = shards.kinds(schema_of(model), shard.source.names)
    fields = pa.schema([(name, types[kinds[name]]) for name in frame.columns])
    return pa.Table.from_pandas(frame, fields, preserve_index=False).replace_schema_metadata(None)


WORK: dict[str, Callable[..., Any]] = {"score": _scored, "impute": _filled}
