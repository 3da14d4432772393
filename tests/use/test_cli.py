"""The command line from end to end: what it writes, what it says, and how it fails."""

import inspect
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import ppl_vae as pv
from ppl_vae.criticism.diagnostics import diagnose
from ppl_vae.use import cli
from ppl_vae.use.demo import demo

Run = Callable[..., tuple[int, str, str]]


SMALL = ("--model.latent", "2", "--model.hidden", "[8]", "--fit.epochs", "2")


def test_fit_score_and_sample(run: Run, table: Path) -> None:
    code, out, err = run("fit", str(table), "--out", "model", *SMALL)
    assert (code, err) == (0, "") and "2 epochs" in out
    assert len(pd.read_csv("model/history.csv")) == 2

    assert "held out" not in run("fit", str(table), "--out", "other", *SMALL, "--fit.valid", "0")[1]

    code, out, err = run("score", "model", str(table), "--contamination", "0.1", "--num_draws", "4", "--seed", "3")
    assert (code, err) == (0, "") and "60 rows, 6 flagged" in out
    written = pd.read_csv("scores.csv")
    expected = pv.score(pv.load("model"), str(table), num_draws=4, seed=3)
    assert list(written.columns) == ["row", "score", "mcse", "flagged"]
    assert np.array_equal(written["score"], expected.values) and np.array_equal(written["mcse"], expected.mcse)
    assert np.array_equal(written["flagged"] == 1, expected.values < expected.threshold(0.1))

    code, out, err = run("sample", "model", "--n", "7", "--out", "new/rows.csv", "--seed", "1")
    assert (code, err) == (0, "")
    written = pd.read_csv("new/rows.csv")
    assert list(written.columns) == ["a", "b", "c"]
    assert np.allclose(written, pv.generate(pv.load("model"), 7, seed=1).x)


def test_every_option_reaches_the_model(run: Run, table: Path) -> None:
    model = ("--model.scale", "0.5", "--model.hidden", "[4, 3]", "--model.standardize", "center")
    fit = ("--fit.patience", "1", "--fit.epochs", "3", "--fit.objective", "iwae", "--fit.particles", "2")
    assert run("fit", str(table), "--out", "model", *model, *fit)[0] == 0
    recipe = pv.load("model").recipe
    assert recipe is not None
    assert (recipe["scale"], recipe["hidden"], recipe["standardize"]) == (0.5, (4, 3), "center")
    options = json.loads(Path("model/options.json").read_text())
    assert options["fit"]["patience"] == 1 and options["fit"]["objective"] == "iwae"


def test_options_of_the_parts(run: Run, table: Path) -> None:
    parts = ("--model.prior", "mixture", "--parts", '{"components": 3}')
    assert run("fit", str(table), "--out", "a", *SMALL, *parts)[0] == 0
    assert run("fit", str(table), "--out", "b", "--config", "a/options.json")[0] == 0
    for folder in "ab":
        assert pv.load(folder).prior.loc.shape == (3, 2)
    for wrong, message in (('{"knots": 3}', "the options ['knots']"), ('{"latent": 3}', "as --model.latent")):
        code, _, err = run("fit", str(table), "--out", "c", "--parts", wrong)
        assert code == 2 and message in err


RAW = """39, clerk, 5, 0.1
31, ?, 2, 2.5
?, smith, ?, 0.7
50, clerk, 1, 3.5
44, smith, 7, ?
28, clerk, 0, 1.5
"""


def test_from_a_raw_table_to_scores_and_imputations(run: Run) -> None:
    Path("raw.csv").write_text(RAW * 10)
    reading = ("--names", "[age, job, visits, wage]", "--missing", '["?"]')
    asked = (*reading, "--model.likelihood", "infer", "--scores", "--imputations")
    code, out, err = run("fit", "raw.csv", "--out", "m", *SMALL, *asked)
    assert (code, err) == (0, "")
    assert re.search(r"job +boolean +bernoulli +'clerk', 'smith' +yes", out)
    raw = pv.read_csv("raw.csv", missing=["?"], names=["age", "job", "visits", "wage"])
    filled = pd.read_csv("m/imputed.csv")
    assert list(filled.columns) == list(raw.columns) and raw.isna().to_numpy().sum() == 40
    assert not filled.isna().any().any()
    for name in raw.columns:
        there = raw[name].notna().to_numpy()
        assert filled[name][there].tolist() == raw[name][there].tolist()
    assert set(filled["job"]) == {"clerk", "smith"}
    expected = pv.score(pv.load("m"), raw).values
    assert np.array_equal(pd.read_csv("m/scores.csv")["score"], expected)

    assert run("impute", "m", "raw.csv", "--out", "again.csv", *reading[:2], "--missing", "?")[0] == 0
    assert Path("again.csv").read_bytes() == Path("m/imputed.csv").read_bytes()
    assert run("score", "m", "raw.csv", "--out", "again.csv", *reading)[0] == 0
    assert Path("again.csv").read_bytes() == Path("m/scores.csv").read_bytes()
    assert run("fit", "raw.csv", "--out", "m", "--force", *SMALL, *reading, "--model.likelihood", "infer")[0] == 0
    assert not Path("m/scores.csv").exists() and not Path("m/imputed.csv").exists()  # they were of the model before
    code, _, err = run("score", "m", "raw.csv", *reading[:2])
    assert code == 2 and "'age'" in err and "'?'" in err


def test_roles_of_columns(run: Run, table: Path) -> None:
    frame = pd.read_csv(table).assign(site=np.arange(60) % 3, kind=["yes", "no"] * 30)
    frame.to_csv("roles.csv", index=False)
    roles = (
        "--model.covariates",
        "[c]",
        "--model.group",
        "site",
        "--model.label",
        "kind",
        "--model.prior",
        "hierarchical",
    )
    assert run("fit", "roles.csv", "--out", "m", *SMALL, *roles)[0] == 0
    schema = pv.load("m").schema
    assert (
        schema is not None and schema.covariates is not None and schema.group is not None and schema.label is not None
    )
    assert (schema.names, schema.covariates.names) == (("a", "b"), ("c",))
    assert (schema.group.name, schema.label.levels) == ("site", ("no", "yes"))

    assert "given: got nothing" in run("sample", "m", "--n", "4")[2]
    frame[["c", "site"]].head(4).to_csv("given.csv", index=False)
    assert run("sample", "m", "--given", "given.csv")[0] == 0
    drawn = pd.read_csv("samples.csv")
    assert set(drawn.columns) == set(frame) and np.allclose(drawn["c"], frame["c"].head(4))


def test_the_written_options_repeat_the_fit(run: Run, table: Path) -> None:
    assert run("fit", str(table), "--out", "a", *SMALL, "--fit.seed", "5", "--model.scale", "shared")[0] == 0
    assert run("fit", str(table), "--out", "b", "--config", "a/options.json")[0] == 0
    for name in ("model.json", "options.json"):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()


def test_diagnose(run: Run, table: Path) -> None:
    assert run("fit", str(table), "--out", "model", *SMALL)[0] == 0
    asked = ("--checks", "[active_units,evidence]", "--num_draws", "1000", "--seed", "2")
    code, out, err = run("diagnose", "model", str(table), *asked)
    assert (code, err) == (0, "")
    expected = diagnose(pv.load("model"), str(table), checks=["active_units", "evidence"], num_draws=1000, seed=2)
    assert out == f"{expected}\nwrote diagnosis.csv\n"
    written = pd.read_csv("diagnosis.csv")
    assert list(written.columns) == ["check", "figure", "value", "mcse"]
    assert np.array_equal(written["value"], expected.table["value"])
    assert "checks: got 'guess'" in run("diagnose", "model", str(table), "--checks", "[guess]")[2]
    assert "checks: got 'guess'" in run("diagnose", "model", str(table), "--checks", "guess")[2]
    assert run("diagnose", "model", str(table), "--checks", "kl", "--num_draws", "50")[0] == 0
    assert set(pd.read_csv("diagnosis.csv")["check"]) == {"kl"}


EXPERIMENT = """
data: digits
test: 0.2
model: {likelihood: continuous_bernoulli, hidden: [32]}
fit: {epochs: 3, batch_size: 128}
grid:
  objective: [elbo, analytic_kl, iwae]
  model.latent: [2, 4, 8]
seeds: [0]
evidence: {name: iwae, num_draws: 8}
num_draws: 8
"""


def test_a_comparison_that_was_killed_goes_on_with_the_missing_cells(run: Run, tmp_path: Path) -> None:
    Path("experiment.yaml").write_text(EXPERIMENT)
    program = "import sys; from ppl_vae.use.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "compare", "experiment.yaml", "--out", "runs/x"]
    cells = tmp_path / "runs" / "x" / "cells"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while process.poll() is None and len(list(cells.glob("*.json"))) < 3:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.stdout is not None
        assert process.wait() == -signal.SIGKILL, process.stdout.read().decode()
    done = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in cells.glob("*.json")}
    done |= {p: (p.stat().st_mtime_ns, p.read_bytes()) for j in done for p in cells.glob(f"{j.stem}-*.safetensors")}
    assert 6 <= len(done) < 18  # of 9 cells, two files each
    assert not (cells.parent / "table.csv").exists()

    code, out, err = run("compare", "experiment.yaml", "--out", "runs/x")
    assert (code, err) == (0, "") and "wrote runs/x" in out
    assert len(list(cells.glob("*.json"))) == len(list(cells.glob("*.safetensors"))) == 9
    assert all((p.stat().st_mtime_ns, p.read_bytes()) == kept for p, kept in done.items())
    table = pd.read_csv("runs/x/table.csv", index_col=0)
    assert sorted(table.index) == sorted(
        f"objective={o}, latent={k}" for o in ("elbo", "analytic_kl", "iwae") for k in (2, 4, 8)
    )
    assert (
        table["evidence"].is_monotonic_decreasing
        and (table["gradients"] == 3 * 1294).all()
        and not table["failed"].any()
    )
    assert table["difference"].iloc[0] == 0 and f"{table['evidence'].iloc[0]:.3f}" in out

    everything = {p: p.stat().st_mtime_ns for p in cells.iterdir()}
    assert run("compare", "experiment.yaml", "--out", "runs/x")[1] == out
    assert {p: p.stat().st_mtime_ns for p in cells.iterdir()} == everything
    first = min(cells.glob("*.json"))
    first.write_bytes(first.read_bytes()[:-5])
    code, out, err = run("compare", "experiment.yaml", "--out", "runs/x")
    assert code == 2 and first.name in err and err.count("\n") == 1


def test_candidates_that_fail_are_in_the_table(run: Run, table: Path) -> None:
    text = (
        f"data: {table}\ntest: 0.3\nmodel: {{hidden: [4], latent: 2}}\nfit: {{epochs: 1}}\nseeds: [1]\nnum_draws: 8\n"
    )
    text += "evidence: {name: iwae, num_draws: 8}\ncandidates: {good: {}, bad: {objective: enumerate}}"
    Path("e.yaml").write_text(text)
    code, out, err = run("compare", "e.yaml", "--out", "x")
    assert (code, err) == (0, "") and "bad, seed 1 failed: OptionError: objective: got 'enumerate'" in out
    assert pd.read_csv("x/cells.csv").set_index("candidate")["error"].notna().to_dict() == {"good": False, "bad": True}


def test_a_data_set_by_name(run: Run) -> None:
    cnn = ("--model.nets", "cnn", "--model.hidden", "[4]", "--model.likelihood", "continuous_bernoulli")
    assert run("fit", "digits", "--out", "model", *cnn, "--fit.epochs", "1")[0] == 0
    assert run("sample", "model", "--n", "3")[0] == 0
    assert pd.read_csv("samples.csv").shape == (3, 64)
    code, out, _ = run("datasets")
    assert code == 0
    assert any(line.startswith("digits") and " here " in line for line in out.splitlines())


def test_the_demo_gets_its_options(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("ppl_vae.use.demo.demo", lambda *args, **kwargs: asked.append((args, kwargs)))
    assert run("demo")[0] == 0
    assert run("demo", "--out", "x", "--anomaly", "4", "--seed", "2")[0] == 0
    default = {name: inspect.signature(demo).parameters[name].default for name in ("anomaly", "seed")}
    assert asked == [(("runs/demo",), default), (("x",), {"anomaly": 4, "seed": 2})]


def test_help_and_version(run: Run) -> None:
    code, out, _ = run("fit", "--help")
    text = " ".join(out.split())
    assert code == 0
    assert "normal, student_t, bernoulli, poisson" in text and "widths of the hidden layers" in text
    assert run("--version") == (0, f"ppl-vae {pv.__version__}\n", "")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "command"),
        (("guess",), "guess"),
        (("fit", "TABLE"), "out"),
        (("fit", "TABLE", "--out", "m", "--model.latent", "many"), "model.latent"),
        (("fit", "TABLE", "--out", "m", "--model.likelihood", "os.system"), "expected one of 'normal'"),
        (("fit", "TABLE", "--out", "m", "--model.scale", "wide"), "scale: got 'wide'"),
        (("fit", "TABLE", "--out", "m", "--fit.optimizer", "newton"), "newton"),
        (("fit", "TABLE", "--out", "m", "--colour", "red"), "--colour"),
        (("fit", "TABLE", "--out", "TABLE"), "table.csv"),
        (("fit", "nowhere.csv", "--out", "m"), "nowhere.csv"),
        (("fit", "nowhere", "--out", "m"), "DATA: got 'nowhere'"),
        (("fit", "text.csv", "--out", "m"), "column 'b': got 'two' in row 1"),
        (("fit", "hole.csv", "--out", "m"), "column 'b': got nan in row 1"),
        (("fit", "TABLE", "--out", "m", "--config", "nowhere.json"), "nowhere.json"),
        (("score", "nowhere", "TABLE"), "nowhere/model.json"),
        (("score", "nowhere", "TABLE", "--out", "scores.txt"), "ends in .csv, .parquet, .npz or .npy"),
        (("sample", "nowhere"), "nowhere/model.json"),
        (("diagnose", "nowhere", "TABLE"), "nowhere/model.json"),
        (("compare", "nowhere.yaml", "--out", "x"), "nowhere.yaml: no such file"),
        (("compare", "text.csv", "--out", "x"), "text.csv: got 'a,b 1,2 3,two'"),
        (("compare", "e.yaml"), "out"),
        (("demo", "--anomaly", "10"), "anomaly: got 10"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run: Run, table: Path, argv: tuple[str, ...], message: str) -> None:
    Path("text.csv").write_text("a,b\n1,2\n3,two\n")
    Path("hole.csv").write_text("a,b\n1,2\n3,\n5,6\n")
    code, out, err = run(*[str(table) if word == "TABLE" else word for word in argv])
    assert code == 2 and out == ""
    assert err.startswith("ppl-vae: ") and err.endswith("\n") and err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    "text",
    [
        '{"model": {"class_path": "colorsys.ONE_THIRD", "init_args": {}}}',
        '{"model": {"likelihood": {"class_path": "colorsys.ONE_THIRD"}}}',
        'model: !!python/object/apply:colorsys.rgb_to_hsv [1, 1, 1]',
        'model: {likelihood: !!python/name:colorsys.ONE_THIRD ""}',
        '{"import": "colorsys"}',
    ],
)  # fmt: skip
def test_a_configuration_file_imports_nothing(run: Run, table: Path, text: str, monkeypatch: Any) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    Path("config.yaml").write_text(text)
    code, _, err = run("fit", str(table), "--out", "m", "--config", "config.yaml")
    assert code == 2 and err.count("\n") == 1
    assert "colorsys" not in sys.modules and not Path("m").exists()


def test_ctrl_c_is_one_line_and_exit_code_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        """The user presses Ctrl-C."""
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "datasets", interrupt)
    assert run("datasets") == (130, "", "ppl-vae: interrupted\n")


def test_a_reader_that_leaves_early_is_no_error() -> None:
    program = "import sys; from ppl_vae.use.cli import main; sys.exit(main(['datasets']))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


@pytest.mark.parametrize("argv", [["--help"], ["fit", "--help"], ["--version"]])
def test_help_is_quick(argv: list[str]) -> None:
    program = (
        "import sys; from ppl_vae.use.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'pyro', 'numpy', 'pandas', 'sklearn', 'matplotlib'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    assert seconds < 5  # 0.2 s where nothing else runs; torch alone takes 2


def test_a_folder_of_files_goes_into_parts(run: Run) -> None:
    Path("raw").mkdir()
    for name in ("1", "2"):
        Path(f"raw/{name}.csv").write_text(RAW * 5)
    reading = ("--names", "[age, job, visits, wage]", "--missing", "?")
    assert run("fit", "raw/1.csv", "--out", "m", *SMALL, *reading, "--model.likelihood", "infer")[0] == 0
    for command in ("score", "impute"):
        code, out, err = run(command, "m", "raw", "--shards", f"{command}d", *reading)
        assert (code, err) == (0, "") and out.startswith("wrote Manifest(60 rows in 2 parts in ")
    assert len(pd.read_parquet("scored")) == 60 and not pd.read_parquet("imputed").isna().any().any()
    code, _, err = run("score", "m", "raw", "--shards", "imputed", *reading)
    assert code == 2 and "of another job" in err
    assert "jobs: got 0" in run("score", "m", "raw", "--shards", "scored", "--jobs", "0")[2]
