"""The command line: options from files and flags, what is written beside a result, forms of tables, --json and --quiet."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ppl_vae as pv
from ppl_vae.options import ReadingOptions
from ppl_vae.use import cli
from ppl_vae.use.reading import read_rows

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--model.latent", "2", "--model.hidden", "[8]", "--fit.epochs", "2")


@pytest.fixture
def model(run: Run, table: Path) -> str:
    """A folder of a fit."""
    assert run("fit", str(table), "--out", "model", *SMALL)[0] == 0
    return "model"


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """300 rows of a CSV file, 20 of which are far out and labelled 1."""
    x = np.random.RandomState(1).randn(300, 3)
    y = np.arange(300) % 15 == 0
    x[y] += 8
    path = tmp_path / "labelled.csv"
    pd.DataFrame(x, columns=["a", "b", "c"]).assign(kind=y.astype(int)).to_csv(path, index=False)
    return path


# ---- options


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("options.yaml", "fit: {epochs: 3, lr: 2e-3}\nmodel: {latent: 3}\ndrop: [c]\n"),
        ("options.toml", 'drop = ["c"]\n[fit]\nepochs = 3\nlr = 2e-3\n[model]\nlatent = 3\n'),
        ("options.json", '{"fit": {"epochs": 3, "lr": 2e-3}, "model": {"latent": 3}, "drop": ["c"]}'),
    ],
)
def test_a_file_of_options_in_three_forms(run: Run, table: Path, name: str, text: str) -> None:
    Path(name).write_text(text)
    code, _, err = run("fit", str(table), "--config", name, "--model.hidden", "[4]", "--out", "m")
    assert (code, err) == (0, "")
    written = json.loads(Path("m/options.json").read_text())
    assert (written["fit"]["epochs"], written["fit"]["lr"], written["model"]["latent"]) == (3, 2e-3, 3)
    assert written["model"]["hidden"] == [4] and written["drop"] == ["c"] and written["data"] == str(table)
    schema = pv.load("m").schema
    assert schema is not None and schema.names == ("a", "b")


def test_options_after_a_file_win_and_so_does_data(run: Run, table: Path, model: str) -> None:
    pd.read_csv(table).head(30).to_csv("other.csv", index=False)
    asked = ("--config", f"{model}/options.json", "--fit.epochs", "1")
    code, out, _ = run("fit", "other.csv", "--out", "m", *asked, "--json")
    assert code == 0 and json.loads(out)["epochs"] == 1 and json.loads(out)["rows"] == 30


def test_what_was_written_beside_a_result_makes_it_again(run: Run, table: Path, model: str) -> None:
    with_data = json.loads(Path(model, "options.json").read_text())
    assert with_data["data"] == str(table)
    assert set(with_data["versions"]) == {"ppl_vae", "torch", "pyro", "numpy", "python"}
    for command, file in (("score", "scores.csv"), ("diagnose", "diagnosis.csv"), ("sample", "samples.csv")):
        rows = [str(table)] if command != "sample" else []
        assert run(command, model, *rows, "--seed", "3")[0] == 0
        first = Path(file).read_bytes()
        assert run(command, "--config", f"{file}.options.json", "--out", "again.csv")[0] == 0
        assert Path("again.csv").read_bytes() == first
    code, _, err = run("fit", "--config", f"{model}/options.json", "--out", "again")
    assert (code, err) == (0, "")
    assert Path("again/model.json").read_bytes() == Path(model, "model.json").read_bytes()


def test_options_of_folders_from_before_are_read(run: Run, table: Path) -> None:
    old = {"model": {"latent": 3, "hidden": [4]}, "parts": {}, "fit": {"epochs": 1, "seed": 2}}
    Path("old.json").write_text(json.dumps(old))
    assert run("fit", str(table), "--config", "old.json", "--out", "m")[0] == 0
    recipe = pv.load("m").recipe
    assert recipe is not None and recipe["latent"] == 3


def test_the_objective_has_options(run: Run, table: Path) -> None:
    asked = ("--fit.objective", "renyi", "--fit.particles", "2", "--objective_options", '{"alpha": 0.3}')
    assert run("fit", str(table), "--out", "m", *SMALL, *asked)[0] == 0
    code, _, err = run("fit", str(table), "--out", "other", *SMALL, "--objective_options", '{"alpha": 0.3}')
    assert code == 2 and "alpha" in err


def test_one_seed_for_weights_and_fit(run: Run, table: Path) -> None:
    assert run("fit", str(table), "--out", "m", *SMALL, "--seed", "7")[0] == 0
    written = json.loads(Path("m/options.json").read_text())
    assert (written["model"]["seed"], written["fit"]["seed"]) == (7, 7)
    assert "seed: got 'x', expected a whole number" in run("fit", str(table), "--out", "m", "--seed", "x")[2]


# ---- what is there already


def test_a_model_is_replaced_on_demand_only(run: Run, table: Path, model: str) -> None:
    assert run("calibrate", model, str(table), "--out", "c")[0] == 0
    before = {path: path.read_bytes() for folder in (model, "c") for path in Path(folder).iterdir()}
    for wrong in (
        ("fit", str(table), "--out", model, *SMALL),
        ("fit", str(table), "--out", model, *SMALL, "--fit.checkpoint", "kept"),  # nothing to go on from
        ("calibrate", model, str(table), "--out", "c"),
        ("calibrate", model, str(table), "--out", model),
    ):
        code, _, err = run(*wrong)
        expected = f"out: got {wrong[wrong.index('--out') + 1]!r}, which holds a model, expected a folder without one"
        assert code == 2 and err == f"ppl-vae: {expected}, or --force to replace it\n"
    Path("e.yaml").write_text(f"data: {table}\ntest: 0.3\n")
    assert "which holds a model, expected a folder without one" in run("compare", "e.yaml", "--out", model)[2]
    assert "which holds a model, expected a folder without one" in run("demo", "--out", model)[2]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert run("fit", str(table), "--out", model, "--force", *SMALL, "--seed", "1")[0] == 0
    assert run("calibrate", model, str(table), "--out", "c", "--force", "--level", "0.2")[0] == 0
    assert pv.load("c").level == 0.2 and pv.load(model).recipe["seed"] == 1
    assert "force" not in json.loads(Path(model, "options.json").read_text())


def test_a_fit_that_goes_on_writes_its_model_again(run: Run, table: Path) -> None:
    asked = ("fit", str(table), "--out", "m", *SMALL, "--fit.checkpoint", "kept")
    assert run(*asked)[0] == 0
    first = Path("m/model.json").read_bytes()
    assert run(*asked)[0] == 0 and Path("m/model.json").read_bytes() == first
    code, _, err = run(*asked, "--fit.lr", "0.1")
    assert code == 2 and "of another fit, whose lr was" in err and Path("m/model.json").read_bytes() == first


def test_no_result_is_written_over_its_rows(run: Run, table: Path, model: str) -> None:
    before = table.read_bytes()
    for command in ("score", "impute", "diagnose"):
        code, _, err = run(command, model, str(table), "--out", f"./{table.name}")
        assert code == 2 and "from which the rows are read, expected another name" in err
    assert "from which" in run("sample", model, "--given", table.name, "--out", table.name)[2]
    Path("raw").mkdir()
    Path("raw/1.csv").write_bytes(before)
    assert "shards: got 'raw', from which" in run("score", model, "raw", "--shards", "raw")[2]
    assert table.read_bytes() == before and os.listdir("raw") == ["1.csv"]


# ---- rows


def test_rows_that_are_labelled(run: Run, labelled: Path) -> None:
    asked = ("--labels", "kind")
    code, out, err = run("fit", str(labelled), "--out", "m", *SMALL, *asked, "--json")
    assert (code, err, json.loads(out)["rows"]) == (0, "", 280)
    schema = pv.load("m").schema
    assert schema is not None and schema.names == ("a", "b", "c")

    figures = json.loads(run("score", "m", str(labelled), *asked, "--contamination", "0.1", "--json")[1])
    assert figures["rows"] == 300 and figures["flagged"] == 30 and figures["anomalous"] == 20
    assert figures["found"] == 20 and figures["false"] == 10 and figures["auroc"] == 1

    frame = pd.read_csv(labelled)
    np.savez("labelled.npz", X=frame[["a", "b", "c"]].to_numpy(), y=frame["kind"].to_numpy())
    other = json.loads(run("score", "m", "labelled.npz", "--labels", "y", "--contamination", "0.1", "--json")[1])
    assert other == figures
    other = json.loads(run("score", "m", str(labelled), *asked, "--normal", "[0,1]", "--json")[1])
    assert other["normal"] == 300 and other["auroc"] is None


def test_parts_of_rows_are_all_rows_once(run: Run, labelled: Path) -> None:
    parts = [read_rows(str(labelled), ReadingOptions(labels="kind", part=f"{k}/3")) for k in (1, 2, 3)]
    assert sorted(np.concatenate([part.numbers for part in parts])) == list(range(300))
    whole = pd.read_csv(labelled)
    for part in parts:
        assert part.labels is not None and part.labels.tolist() == whole["kind"][part.numbers].tolist()
        assert part.data["a"].tolist() == whole["a"][part.numbers].tolist()


def test_a_calibration_and_its_decisions(run: Run, labelled: Path) -> None:
    asked = (str(labelled), "--labels", "kind")
    assert run("fit", *asked, "--part", "1/3", "--out", "m", *SMALL)[0] == 0
    drawn = ("--num_draws", "32", "--seed", "4", "--level", "0.1")
    code, out, err = run("calibrate", "m", *asked, "--part", "2/3", "--out", "c", *drawn)
    assert (code, err) == (0, "") and "on average over calibration rows" in out
    known = read_rows(str(labelled), ReadingOptions(labels="kind", part="2/3")).normal()
    expected = pv.calibrate(pv.load("m"), known.data, num_draws=32, seed=4, level=0.1)
    rows = read_rows(str(labelled), ReadingOptions(labels="kind", part="3/3"))
    assert run("score", "c", *asked, "--part", "3/3", "--reasons", "2", "--fdr", "0.2")[0] == 0
    written, decided = pd.read_csv("scores.csv", keep_default_na=False), expected.decide(rows.data)
    assert written["row"].tolist() == rows.numbers.tolist()
    assert np.array_equal(written["p_value"], decided.p_values)
    assert np.array_equal(written["flagged"] == 1, decided.anomalous)
    assert np.array_equal(written["picked"] == 1, expected.select(rows.data, 0.2))
    assert ((written["reasons"] != "") == (written["flagged"] == 1)).all()
    reason = written["reasons"][written["flagged"] == 1].iloc[0]
    assert reason.count(";") == 1 and "+" in reason

    figures = json.loads(run("score", "c", *asked, "--part", "3/3", "--level", "0.3", "--json")[1])
    assert figures["level"] == 0.3 and figures["flagged"] > decided.anomalous.sum()
    code, _, err = run("score", "m", *asked, "--level", "0.3")
    assert code == 2 and "expected the folder of `ppl-vae calibrate`" in err


def test_a_report_reads_the_rows_as_the_fit_did(run: Run) -> None:
    Path("raw.csv").write_text("39, clerk, 0\n?, smith, 0\n50, clerk, 1\n28, smith, 0\n" * 8)
    reading = ("--names", "[age,job,odd]", "--missing", "?", "--labels", "odd")
    assert run("fit", "raw.csv", "--out", "m", *SMALL, *reading, "--model.likelihood", "infer")[0] == 0
    code, out, err = run("report", "m", "--json", "--num_draws", "4")
    assert (code, err, json.loads(out)) == (0, "", {"out": "m/report.html"})
    assert "32 rows, 2 columns" in Path("m/report.html").read_text()
    assert json.loads(Path("m/report.html.options.json").read_text())["folder"] == "m"


# ---- forms of tables


@pytest.mark.parametrize("ending", ["csv", "parquet", "npz", "npy"])
def test_tables_go_out_and_come_in(run: Run, model: str, ending: str) -> None:
    assert run("sample", model, "--n", "9", "--out", f"rows.{ending}", "--seed", "1")[0] == 0
    rows = read_rows(f"rows.{ending}", ReadingOptions()).data
    assert np.allclose(np.asarray(rows), np.asarray(pv.generate(pv.load(model), 9, seed=1).x))
    assert run("score", model, f"rows.{ending}", "--out", "scores.parquet")[0] == 0
    assert run("sample", model, "--n", "9", "--out", "rows.csv", "--seed", "1")[0] == 0
    assert run("score", model, "rows.csv", "--out", "scores.csv")[0] == 0
    assert np.allclose(pd.read_parquet("scores.parquet"), pd.read_csv("scores.csv"))
    if ending == "npz":
        with np.load("rows.npz") as archive:
            assert archive["names"].tolist() == ["a", "b", "c"]


def test_text_is_no_npy(run: Run) -> None:
    Path("raw.csv").write_text("age,job\n39,clerk\n31,smith\n50,clerk\n28,smith\n")
    assert run("fit", "raw.csv", "--out", "m", *SMALL, "--model.likelihood", "infer")[0] == 0
    code, _, err = run("sample", "m", "--out", "rows.npy")
    assert code == 2 and "the column 'job', which is no number" in err and err.count("\n") == 1
    assert run("sample", "m", "--out", "rows.npz", "--n", "5")[0] == 0
    with np.load("rows.npz", allow_pickle=False) as archive:
        assert set(archive["job"]) <= {"clerk", "smith"} and archive["age"].dtype.kind == "i"


# ---- what is printed


def test_quiet_is_quiet_and_json_is_json(run: Run, table: Path) -> None:
    for command in (
        ("fit", str(table), "--out", "m", "--force", *SMALL, "--model.likelihood", "infer"),
        ("calibrate", "m", str(table), "--out", "c", "--force"),
        ("score", "m", str(table)),
        ("score", "c", str(table)),
        ("sample", "m"),
        ("diagnose", "m", str(table), "--checks", "kl", "--num_draws", "20"),
        ("draw", "m", "--kind", "history", "--out", "h.png"),
    ):
        assert run(*command, "--quiet") == (0, "", "")
        code, out, err = run(*command, "--json")
        assert (code, err, out.count("\n")) == (0, "", 1)
        assert isinstance(json.loads(out), dict)
    for command in (("parts",), ("datasets",)):
        assert "digits" in json.loads(run(*command, "--json")[1]) or command == ("parts",)
    assert json.loads(run("parts", "--json")[1])["prior"] == pv.priors()


def test_no_bar_where_there_is_no_terminal(model: str, tmp_path: Path) -> None:
    program = "import sys; from ppl_vae.use.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "fit", "--config", f"{model}/options.json", "--out", "again", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---- logs, pictures, completion, processes


def test_a_log_beside_the_model(run: Run, table: Path) -> None:
    assert run("fit", str(table), "--out", "m", *SMALL, "--log", "jsonl")[0] == 0
    lines = pd.read_json("m/log.jsonl", lines=True)
    assert np.allclose(lines["bound"], pd.read_csv("m/history.csv")["bound"]) and lines["epoch"].tolist() == [1, 2]
    code, _, err = run("fit", str(table), "--out", "other", *SMALL, "--log", "print")
    assert code == 2 and "log: got 'print', expected one of 'jsonl', 'tensorboard'" in err


def test_pictures(run: Run) -> None:
    assert run("fit", "digits", "--out", "m", *SMALL, "--model.likelihood", "continuous_bernoulli")[0] == 0
    for kind, *more in (
        ("manifold", "--n", "3"),
        ("samples", "--n", "4"),
        ("reconstructions", "digits", "--n", "3"),
        ("latent", "digits", "--labels", "y"),
        ("scores", "digits", "--labels", "y", "--n", "2", "--part", "1/20"),
        ("explained", "digits", "--n", "1"),
        ("history",),
    ):
        code, _, err = run("draw", "m", *more, "--kind", kind, "--out", f"{kind}.png")
        assert (code, err) == (0, "")
        assert Path(f"{kind}.png").read_bytes().startswith(b"\x89PNG")
    assert "kind: got 'latent' without DATA" in run("draw", "m", "--kind", "latent", "--out", "x.png")[2]
    assert "ends in .png, .pdf, .svg or .jpg" in run("draw", "m", "--kind", "samples", "--out", "x.gif")[2]


def test_a_shell_completes_commands_and_options(run: Run) -> None:
    if find_spec("shtab") is None:
        pytest.skip("shtab is not installed: the extra `completion` brings it")
    code, out, _ = run("completion", "bash")
    assert code == 0
    Path("complete.bash").write_text(out)
    script = """source complete.bash
    complete=$(complete -p ppl-vae | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    COMP_WORDS=(ppl-vae fit --fit.ep); COMP_CWORD=2; $complete ppl-vae --fit.ep; echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "--fit.epochs"
    assert "expected one of bash, zsh, tcsh" in run("completion", "fish")[2]


def test_of_several_processes_the_first_writes(run: Run, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run("sample", "nowhere")[0] == 2
    called: list[str] = []

    def list_them() -> None:
        """As the command does."""
        called.append("once")
        print("something")

    monkeypatch.setitem(cli.COMMANDS, "datasets", list_them)
    assert run("datasets", "--json") == (0, "", "") and called == ["once"]
    assert os.listdir() == ["table.csv"]
