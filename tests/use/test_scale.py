"""Scores and fillings of files: those of the table in memory, the same bytes wherever it was stopped, errors by place."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import ppl_vae as pv
from ppl_vae.errors import DataError, MissingFileError, ModelFileError, OptionError
from ppl_vae.files import locked
from ppl_vae.use import scale

RNG = np.random.RandomState(0)
N = 60
FRAME = pd.DataFrame(
    {
        "wage": RNG.randn(N).round(4),
        "age": RNG.poisson(4, N),
        "job": np.array(["7", "clerk", 'the "smith",\nown'], object)[RNG.randint(0, 3, N)],
        "own": RNG.rand(N) < 0.5,
    }
)
HOLES = FRAME.astype({"age": float, "own": object}).mask(RNG.rand(N, 4) < 0.2)
FAST: dict[str, Any] = {"num_draws": 8, "progress": False}


@pytest.fixture(scope="module")
def vae() -> Any:
    return pv.build(HOLES, latent=2, hidden=(8,), likelihood="infer", seed=1)


@pytest.fixture(scope="module")
def saved(vae: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pv.save(vae, folder := tmp_path_factory.mktemp("model"))
    return folder


def write(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.convert_dtypes().to_parquet(path, row_group_size=25)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def failing(after: int) -> Callable[..., Iterator[Any]]:
    """A map that fails once so many tasks are done."""

    def engine(function: Callable, tasks: Iterable[Any]) -> Iterator[Any]:
        for number, task in enumerate(tasks):
            if number == after:
                raise KeyboardInterrupt
            yield function(task)

    return engine


# ---- the same as in memory


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("rows", [1, 7, 25, None])
def test_scores_are_those_of_the_whole_table(
    vae: Any, saved: Path, tmp_path: Path, kind: str, rows: int | None
) -> None:
    source = write(HOLES, tmp_path / f"t.{kind}")
    found = pv.score_files(saved, source, tmp_path / "out", rows=rows, per_feature=True, **FAST)
    frame = pd.read_parquet(tmp_path / "out")
    expected = pv.score(vae, HOLES, num_draws=8, per_feature=True)
    assert found.rows == N and len(found.parts) == -(-N // (rows or N)) and "60 rows" in repr(found)
    assert frame["row"].tolist() == list(range(N))
    np.testing.assert_allclose(frame["score"], expected.values, rtol=1e-6)
    np.testing.assert_allclose(frame["mcse"], expected.mcse, rtol=1e-4)  # a difference of logs that nearly cancel
    assert expected.per_feature is not None
    parts = frame[[f"score.{name}" for name in FRAME]].to_numpy()
    np.testing.assert_allclose(parts, expected.per_feature, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_fillings_do_not_depend_on_the_cut(vae: Any, saved: Path, tmp_path: Path, kind: str) -> None:
    source, tables = write(HOLES, tmp_path / f"t.{kind}"), []
    for rows in (7, None):
        out = tmp_path / f"out{rows}"
        pv.impute_files(saved, source, out, rows=rows, candidates=50, progress=False)
        tables.append(pd.read_parquet(out))
    first, second = tables
    assert first[["job", "own"]].equals(second[["job", "own"]]) and not first.isna().any().any()
    np.testing.assert_allclose(first[["wage", "age"]], second[["wage", "age"]], rtol=1e-5)
    for name in FRAME:
        there = HOLES[name].notna()
        assert first[name][there].tolist() == HOLES[name][there].tolist()
    expected = pv.impute(vae, HOLES, num_draws=2, candidates=50).frame
    told_apart = HOLES.duplicated(keep=False)
    np.testing.assert_allclose(first["wage"][~told_apart], expected["wage"][~told_apart], rtol=1e-5)
    assert first["job"][~told_apart].tolist() == expected["job"][~told_apart].tolist()


def test_equal_rows_are_filled_alike_wherever_they_are(saved: Path, tmp_path: Path) -> None:
    write(HOLES.iloc[[3, 5, 3, 5, 3]], tmp_path / "t.csv")
    pv.impute_files(saved, tmp_path / "t.csv", tmp_path / "out", rows=2, candidates=50, progress=False)
    frame = pd.read_parquet(tmp_path / "out")
    assert frame.iloc[0].equals(frame.iloc[2]) and frame.iloc[0].equals(frame.iloc[4])


def test_types_and_index_of_parquet_stay(saved: Path, tmp_path: Path) -> None:
    frame = HOLES.set_index(pd.Index([f"r{i}" for i in range(N)], name="id")).convert_dtypes()
    frame["job"] = frame["job"].astype("category")
    frame.to_parquet(tmp_path / "t.parquet")
    pv.impute_files(saved, tmp_path / "t.parquet", tmp_path / "out", rows=25, candidates=50, progress=False)
    found = pd.read_parquet(tmp_path / "out")
    assert found.index.equals(frame.index) and found["age"].dtype.kind == "i" and found["own"].dtype == "boolean"
    pv.score_files(saved, tmp_path / "t.parquet", tmp_path / "scores", rows=25, **FAST)
    assert len(pd.read_parquet(tmp_path / "scores")) == N


def test_several_files_are_one_table(vae: Any, tmp_path: Path) -> None:
    write(HOLES[:20], tmp_path / "1.csv")
    write(HOLES[20:].reset_index(drop=True)[["own", "job", "wage", "age"]], tmp_path / "2.parquet")
    found = pv.score_files(vae, [tmp_path / "1.csv", tmp_path / "2.parquet"], tmp_path / "out", rows=15, **FAST)
    assert [part.row for part in found.parts] == [0, 15, 20, 35, 50]
    scores = np.concatenate([pd.read_parquet(path)["score"] for path in found.paths])
    np.testing.assert_allclose(scores, pv.score(vae, HOLES, num_draws=8).values, rtol=1e-6)
    assert pv.load(tmp_path / "out" / "_model").schema == vae.schema


def test_a_calibration_judges_files(vae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = pv.calibrate(vae, HOLES[:30], level=0.2, num_draws=8)
    monkeypatch.setattr(scale, "load", lambda folder: calibration)
    pv.save(vae, tmp_path / "model")
    write(HOLES[30:], tmp_path / "t.csv")
    monkeypatch.setattr(scale, "_models", {})
    pv.score_files(tmp_path / "model", tmp_path / "t.csv", tmp_path / "out", rows=25, progress=False)
    frame, expected = pd.read_parquet(tmp_path / "out"), calibration.decide(HOLES[30:])
    np.testing.assert_allclose(frame["p_value"], expected.p_values)
    assert frame["anomalous"].tolist() == expected.anomalous.tolist()
    with pytest.raises(OptionError, match="num_draws: got 8 with a Calibration, which has its own"):
        pv.score_files(tmp_path / "model", tmp_path / "t.csv", tmp_path / "again", **FAST)


# ---- stopped and resumed


def test_a_job_that_was_stopped_goes_on_to_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    source = write(HOLES, tmp_path / "t.parquet")
    pv.score_files(saved, source, tmp_path / "whole", rows=10, **FAST)
    with pytest.raises(KeyboardInterrupt):
        pv.score_files(saved, source, tmp_path / "out", rows=10, map=failing(3), **FAST)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["_manifest.json", "part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    (tmp_path / "out" / ".part-00003.parquet.killed").touch()
    before = (tmp_path / "out" / names[1]).stat().st_mtime_ns
    found = pv.score_files(saved, source, tmp_path / "out", rows=10, **FAST)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert (tmp_path / "out" / names[1]).stat().st_mtime_ns == before  # not made again
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert manifest["key"] == found.key and [part["rows"] for part in manifest["parts"]] == [10] * 6


@pytest.mark.parametrize("damage", ["cut", "empty", "a byte", "another"])
def test_a_damaged_part_is_made_again(saved: Path, tmp_path: Path, damage: str) -> None:
    source = write(HOLES, tmp_path / "t.csv")
    pv.score_files(saved, source, out := tmp_path / "out", rows=10, **FAST)
    before, part = contents(out), out / "part-00002.parquet"
    whole = part.read_bytes()
    damaged = {
        "cut": [whole[:-20]],
        "empty": [b""],
        "a byte": [whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :] for i in range(0, len(whole), len(whole) // 7)],
        "another": [before["part-00001.parquet"]],
    }
    for content in damaged[damage]:
        part.write_bytes(content)
        pv.score_files(saved, source, out, rows=10, **FAST)
        assert contents(out) == before


def test_every_byte_of_a_part_counts(tmp_path: Path) -> None:
    table = pa.table({"row": np.arange(5), "score": np.linspace(0, 1, 5)})
    packed, path = scale._packed(table, b"key 0 "), tmp_path / "part"
    assert pq.read_table(pa.BufferReader(packed)).equals(table)
    for place in range(len(packed)):
        path.write_bytes(packed[:place] + bytes([packed[place] ^ 1]) + packed[place + 1 :])
        assert scale._kept(path, b"key 0 ") is None
    path.write_bytes(packed)
    assert scale._kept(path, b"key 0 ") == packed and scale._kept(path, b"key 1 ") is None


def test_a_folder_of_another_job_is_refused(vae: Any, saved: Path, tmp_path: Path) -> None:
    source = write(HOLES, tmp_path / "t.csv")
    pv.score_files(saved, source, out := tmp_path / "out", rows=40, **FAST)
    before, message = contents(out), r"out: got .*out with 2 part\(s\) of another job"
    other = pv.build(HOLES, latent=2, hidden=(8,), likelihood="infer", seed=2)
    for model, options in ((saved, {"rows": 30}), (saved, {"rows": 40, "seed": 3}), (other, {"rows": 40})):
        with pytest.raises(OptionError, match=message):
            pv.score_files(model, source, out, **options, **FAST)
    with pytest.raises(OptionError, match=message):
        pv.impute_files(saved, source, out, rows=40, progress=False)
    assert contents(out) == before
    source.write_text(source.read_text() + "1,2,7,True\n")
    with pytest.raises(OptionError, match=message):
        pv.score_files(saved, source, out, rows=40, **FAST)
    (out / "_manifest.json").unlink()
    with pytest.raises(OptionError, match=message):
        pv.score_files(saved, source, out, rows=40, **FAST)


def test_a_folder_that_another_process_writes_to_is_refused(saved: Path, tmp_path: Path) -> None:
    source, out = write(HOLES, tmp_path / "t.csv"), tmp_path / "out"
    with locked(out), pytest.raises(OptionError, match="out: got a folder that another process is writing to"):
        pv.score_files(saved, source, out, rows=40, **FAST)
    assert not list(out.iterdir())
    assert pv.score_files(saved, source, out, rows=40, **FAST).rows == len(HOLES)


def test_a_model_in_memory_and_its_folder_are_one_job(vae: Any, saved: Path, tmp_path: Path) -> None:
    source = write(HOLES, tmp_path / "t.csv")
    (first, second) = (pv.score_files(m, source, tmp_path / "out", rows=40, **FAST) for m in (saved, vae))
    assert first == second


def test_files_may_move(saved: Path, tmp_path: Path) -> None:
    source = write(HOLES, tmp_path / "t.parquet")
    first = pv.score_files(saved, source, tmp_path / "out", rows=40, **FAST)
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.move(source, tmp_path / "elsewhere"))
    assert pv.score_files(shutil.copytree(saved, tmp_path / "m"), moved, tmp_path / "out", rows=40, **FAST) == first


# ---- what can be wrong


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("job", "pilot", "column 'job': got 'pilot' in row 33 .*expected one of"),
        ("age", -1.0, "column 'age': got -1.0 in row 33"),
        ("wage", np.inf, "column 'wage': got inf in row 33"),
    ],
)
def test_a_bad_row_is_named_and_finished_parts_stay(
    saved: Path, tmp_path: Path, kind: str, column: str, value: Any, message: str
) -> None:
    frame = HOLES.copy()
    frame.loc[33, column] = value
    source = write(frame, tmp_path / f"t.{kind}")
    with pytest.raises(DataError, match=rf"file .*t\.{kind}: {message}"):
        pv.score_files(saved, source, tmp_path / "out", rows=10, **FAST)
    assert sorted(path.name for path in (tmp_path / "out").glob("*part*")) == [
        f"part-0000{i}.parquet" for i in range(3)
    ]


@pytest.mark.parametrize("rows", [10, 50])
def test_a_word_among_numbers_is_named(saved: Path, tmp_path: Path, rows: int) -> None:
    """Also where it is in the first shard, whose first row is tried alone."""
    write(HOLES.astype({"wage": object}).replace({"wage": {HOLES["wage"][33]: "much"}}), tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"t\.csv: column 'wage': got 'much' in row 33 .*expected numbers"):
        pv.score_files(saved, tmp_path / "t.csv", tmp_path / "out", rows=rows, **FAST)


def test_columns_of_all_files_are_known_to_fit_before_the_first_is_read(saved: Path, tmp_path: Path) -> None:
    write(HOLES, tmp_path / "1.csv")
    write(HOLES.drop(columns="age"), tmp_path / "2.csv")
    with pytest.raises(DataError, match=r"2\.csv: columns: missing \['age'\]"):
        pv.score_files(saved, [tmp_path / "1.csv", tmp_path / "2.csv"], tmp_path / "out", **FAST)
    assert not (tmp_path / "out").exists()


def test_a_file_that_grows_meanwhile_is_refused_in_the_end(saved: Path, tmp_path: Path) -> None:
    source = write(HOLES, tmp_path / "t.csv")

    def growing(function: Callable, tasks: Iterable[Any]) -> Iterator[Any]:
        yield from map(function, tasks)
        source.write_text(source.read_text() + "1,2,7,True\n")

    with pytest.raises(DataError, match=r"t\.csv: got \d+ bytes in the end, expected the \d+"):
        pv.score_files(saved, source, tmp_path / "out", rows=40, map=growing, **FAST)


def test_a_model_that_changes_meanwhile_is_refused(vae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(HOLES, tmp_path / "t.csv")
    pv.save(vae, tmp_path / "model")

    def elsewhere(function: Callable, tasks: Iterable[Any]) -> Iterator[Any]:
        pv.save(pv.build(HOLES, latent=2, hidden=(8,), likelihood="infer", seed=2), tmp_path / "model")
        monkeypatch.setattr(scale, "_models", {})  # as in another process
        yield from map(function, tasks)

    with pytest.raises(ModelFileError, match=r"got a model with the digest .* it has been changed"):
        pv.score_files(tmp_path / "model", source, tmp_path / "out", map=elsewhere, **FAST)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scoring": "best"}, "scoring: got 'best'"),
        ({"num_draws": 0}, "num_draws: got 0"),
        ({"rows": 0}, "rows: got 0"),
        ({"scoring": "elbo", "per_feature": True}, "per_feature: got scoring='elbo'"),
        ({"compiled": "yes"}, "compiled: got 'yes'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    saved: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    source = write(HOLES, tmp_path / "t.csv")
    with pytest.raises(OptionError, match=message):
        pv.score_files(saved, source, tmp_path / "out", **FAST | options)
    assert not (tmp_path / "out").exists()


def test_no_model_no_source_no_room(vae: Any, saved: Path, tmp_path: Path) -> None:
    source = write(HOLES, tmp_path / "t.csv")
    with pytest.raises(MissingFileError, match="nowhere"):
        pv.score_files(tmp_path / "nowhere", source, tmp_path / "out", **FAST)
    with pytest.raises(MissingFileError, match="got nothing there"):
        pv.score_files(saved, tmp_path / "u.csv", tmp_path / "out", **FAST)
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="file, expected a folder that can be written"):
        pv.score_files(saved, source, tmp_path / "file", **FAST)
    with pytest.raises(OptionError, match=r"out: got .*out in the source .*expected another"):
        pv.score_files(saved, tmp_path, tmp_path / "out", **FAST)


def test_threads_and_generators_are_left_as_they_were(saved: Path, tmp_path: Path) -> None:
    source = write(HOLES, tmp_path / "t.csv")
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    pv.score_files(saved, source, tmp_path / "out", **FAST)
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads


def test_a_large_table_goes_by_a_graph_which_gives_the_same(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(HOLES, tmp_path / "t.csv")
    plain = pv.score_files(saved, source, tmp_path / "plain", rows=25, **FAST)
    monkeypatch.setattr(scale, "GRAPH_PAYS", 1)
    traced = pv.score_files(saved, source, tmp_path / "traced", rows=25, **FAST)
    assert (plain.options["compiled"], traced.options["compiled"]) == (False, "traced")
    scores = [pd.read_parquet(found.folder)["score"] for found in (plain, traced)]
    np.testing.assert_allclose(*scores, rtol=1e-5)


def test_detectors_and_what_is_calibrated_on_them(tmp_path: Path) -> None:
    x = pd.DataFrame(np.random.RandomState(0).randn(90, 3), columns=list("abc"))
    x.to_parquet(tmp_path / "new.parquet")
    detector = pv.VAEDetector(parts=({},), steps=20, epochs=1, hidden=(8,), random_state=0).fit(x[:40])
    calibration = pv.calibrate(detector, x[40:], level=0.1)
    for name, thing in (("detector", detector), ("calibration", calibration)):
        pv.save(thing, tmp_path / name)
        pv.score_files(tmp_path / name, tmp_path / "new.parquet", tmp_path / f"of {name}", rows=30, progress=False)
    scores = pd.read_parquet(tmp_path / "of detector")
    np.testing.assert_allclose(scores["score"], detector.score_samples(x), rtol=1e-6, atol=1e-6)
    judged = pd.read_parquet(tmp_path / "of calibration")
    np.testing.assert_allclose(judged["p_value"], calibration.p_values(x), atol=0.02 + 1e-9)  # one rank, by rounding
