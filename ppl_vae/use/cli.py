"""The command line: `ppl-vae fit | calibrate | score | impute | sample | diagnose | compare | draw | report | ...`.

Only names and numbers come in, from arguments or a configuration file; what a name may be is decided where its table of
choices stands. Nothing heavy is imported before a command runs, so that `--help` is quick.
"""

import inspect
import json
import math
import os
import re
import sys
import typing
from argparse import SUPPRESS, Action
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, fields
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace

from ppl_vae.errors import OptionError, PplVaeError, several, whole
from ppl_vae.options import FitOptions, ModelOptions, ReadingOptions
from ppl_vae.use.mistakes import told

WRONG, INTERRUPTED = 2, 130
"""Exit codes: of an error that the user can mend, and (by the shells' convention, 128 + SIGINT) of Ctrl-C."""
NOT_OF_THE_RESULT = ("config", "quiet", "json", "out", "shards", "force")
"""Arguments that do not decide what is written, only where."""


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; None: those of this process.

    Returns: the exit code; results go to stdout, an error is one line on stderr.

    Example:
        >>> main(["--version"])
        ppl-vae 0.1.0
        0
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        _run(*_parsed(argv))
        sys.stdout.flush()
        return 0
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:  # `ppl-vae datasets | head`: the reader has gone, and the flush at exit must not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return WRONG
    except (PplVaeError, OSError) as error:
        return _say(error, WRONG)


def _say(what: object, code: int) -> int:
    print("ppl-vae:", " ".join(str(what).split()), file=sys.stderr)
    return code


def _parsed(argv: list[str]) -> tuple[str, dict[str, Any]]:
    """The command and its arguments; those by position may also come from a file.

    Raises: OptionError.
    """
    top, commands = parsers()
    try:
        options = top.parse_args(argv)
    except ArgumentError as error:
        command = next((word for word in argv if word in commands), None)
        names = [name for action in commands[command]._actions for name in action.option_strings] if command else []
        raise OptionError(told(str(error), command, names, list(commands))) from None
    command, given = options.command, vars(options[options.command])
    for name, text in commands[command].by_position.items():
        if given[name] is None:
            given[name] = commands[command].from_file.get(name)
        if given[name] is None and text.startswith("*"):
            raise OptionError(f"{command}: got no {name.upper()}, expected {text[1:]}")
    return command, given


def _run(command: str, given: dict[str, Any]) -> None:
    """Call a command with those of its arguments that its signature names, and write down what it was asked."""
    call, first = COMMANDS[command], os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    asked = {**given, "reading": ReadingOptions(**_fields(ReadingOptions, given))}
    _check_apart(given)
    with _silence(given.get("quiet") or given.get("json") or not first), _tidy(given.get("out")):
        figures = call(**{name: asked[name] for name in inspect.signature(call).parameters})
    if first:
        _record(given, figures)
        if given.get("json"):
            print(json.dumps(_plain(figures or {}), allow_nan=False))


@contextmanager
def _silence(wanted: Any) -> Iterator[None]:
    if not wanted:
        yield
        return
    with redirect_stdout(StringIO()):
        yield


@contextmanager
def _tidy(out: str | None) -> Iterator[None]:
    """A folder that a command has made, and leaves empty as it fails, goes again."""
    new = out is not None and not Path(out).exists()
    try:
        yield
    except BaseException:
        if out is not None and new:
            with suppress(OSError):  # it was never made, or holds something
                Path(out).rmdir()
        raise


def _check_apart(given: dict[str, Any]) -> None:
    """No result is written over the rows that it is made of."""
    name = "shards" if given.get("shards") else "out"
    out = given.get(name)
    for source in ("data", "given"):
        path = given.get(source)
        if out is not None and path is not None and Path(path).exists() and Path(out).resolve() == Path(path).resolve():
            raise OptionError(f"{name}: got {out!r}, from which the rows are read, expected another name")


def _check_free(out: str, force: bool, otherwise: str = "a folder without one, or --force to replace it") -> None:
    """A model is minutes or days of work: none is written over unasked."""
    if Path(out, "model.json").exists() and not force:
        raise OptionError(f"out: got {out!r}, which holds a model, expected {otherwise}")


def _folder(out: str) -> Path:
    """The folder of that name, made before the work: where it cannot be written, there is no use in it."""
    if Path(out).is_file():
        raise OptionError(f"out: got {out!r}, which is a file, expected a folder")
    Path(out).mkdir(parents=True, exist_ok=True)
    return Path(out)


def _record(given: dict[str, Any], figures: Any) -> None:
    """Options and versions, for --config: options.json in a folder that was written, NAME.options.json beside a file."""
    shards, out = given.get("shards"), given.get("out") or (figures or {}).get("out")
    if out is None:
        return
    from ppl_vae.use.configuration import write_options

    if shards:
        path = Path(shards, "_options.json")  # readers of a folder of Parquet files pass over names that begin with "_"
    else:
        path = Path(out, "options.json") if Path(out).is_dir() else Path(f"{out}.options.json")
    write_options(path, _plain({name: value for name, value in given.items() if name not in NOT_OF_THE_RESULT}))


def _plain(value: Any) -> Any:
    """As JSON knows it: NaN and infinities become null."""
    if isinstance(value, Namespace | dict):
        return {name: _plain(one) for name, one in (vars(value) if isinstance(value, Namespace) else value).items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fields(options: type, given: dict[str, Any]) -> dict[str, Any]:
    return {field.name: given[field.name] for field in fields(options) if field.name in given}


# ---- the commands, each of which returns the figures that --json prints


def demo(out: str, anomaly: int, seed: int) -> dict[str, Any]:
    """Find one digit among the others: fit, score, draw, and write it all to a folder."""
    from ppl_vae.use.demo import demo as run

    _check_free(out, False, "a folder without one")
    found = run(out, anomaly=anomaly, seed=seed)
    names = ("model", "score", "auroc", "average_precision", "seconds")
    return {"out": out, "results": [{name: getattr(one, name) for name in names} for one in found or ()]}


def fit(
    data: str,
    out: str,
    model: Namespace,
    fit: Namespace,
    scores: bool,
    imputations: bool,
    parts: dict[str, Any],
    objective_options: dict[str, Any],
    log: list[str] | str,
    device: str | None,
    force: bool,
    quiet: bool,
    reading: ReadingOptions,
) -> dict[str, Any]:
    """Fit a VAE to data; writes the model, history.csv and options.json (for --config) to a folder.

    With --labels to the normal rows alone. On request also scores.csv and imputed.csv of the same rows.
    """
    from ppl_vae.infer.callbacks import callbacks
    from ppl_vae.infer.checkpoint import is_kept
    from ppl_vae.infer.training import fit as train
    from ppl_vae.model.build import build
    from ppl_vae.use.reading import read_rows
    from ppl_vae.use.store import save

    model_options, fit_options = ModelOptions(**vars(model)), FitOptions(**vars(fit))
    _check_free(out, force or is_kept(fit_options.checkpoint))  # the fit that goes on wrote that model, or is refused
    rows, folder = read_rows(data, reading).normal(), _folder(out)
    vae = build(rows.data, **asdict(model_options), **_checked_parts(parts))
    if model_options.likelihood == "infer":
        print(vae.schema)
    given = asdict(fit_options) | {"progress": fit_options.progress and _bars(quiet), "device": device}
    if objective_options:
        given["objective"] = (fit_options.objective, objective_options)
    history = train(vae, rows.data, **given, callbacks=callbacks(log, folder))
    if fit_options.distributed and os.environ.get("RANK", "0") != "0":
        return {}  # the first process writes
    save(vae, folder)
    history.save(folder / "history.csv")
    last = history.epochs[(history.best_epoch or len(history)) - 1]
    print(f"{several(len(history), 'epoch')} in {history['seconds'][-1]:.1f} s")
    held_out = f", {last['valid_bound']:.4f} on the rows held out" if fit_options.valid else ""
    print(f"bound {last['bound']:.4f} nats a row in training{held_out}")
    for name, wanted, write in (("scores", scores, _write_scores), ("imputed", imputations, _write_imputed)):
        (folder / f"{name}.csv").unlink(missing_ok=True)  # of the model before
        if wanted:
            write(folder / f"{name}.csv", vae, rows)
    print(f"wrote {folder}")
    return {"out": out, "rows": len(rows.numbers), "epochs": len(history), "stopped": history.stopped, **last}


def calibrate(
    model: str,
    data: str,
    out: str,
    level: float,
    rule: str,
    delta: float,
    scoring: str,
    num_draws: int,
    seed: int,
    device: str | None,
    force: bool,
    reading: ReadingOptions,
) -> dict[str, Any]:
    """Calibrate decisions on normal rows that the model was not fitted to; writes a folder for `ppl-vae score`."""
    from ppl_vae.criticism.calibration import calibrate as run
    from ppl_vae.use.reading import read_rows
    from ppl_vae.use.store import save

    _check_free(out, force)
    rows = read_rows(data, reading).normal()
    vae = _load(model, device)
    found = run(vae, rows.data, level=level, rule=rule, delta=delta, scoring=scoring, num_draws=num_draws, seed=seed)
    save(found, out)
    print(f"{found}, which flags rows below {found.threshold:.6g}")
    print(found.guarantee)
    print(f"wrote {out}")
    return {"out": out, "rows": found.rows, "level": level, "rule": rule, "threshold": found.threshold}


def score(
    model: str,
    data: str,
    out: str,
    scoring: str,
    num_draws: int,
    seed: int,
    contamination: float,
    per_feature: bool,
    compiled: bool | str,
    level: float | None,
    rule: str | None,
    fdr: float | None,
    reasons: int,
    shards: str | None,
    jobs: int,
    device: str | None,
    quiet: bool,
    reading: ReadingOptions,
) -> dict[str, Any]:
    """Score rows, higher = more normal; writes row, score, mcse and flagged (0 or 1), those of lowest score being flagged.

    MODEL may also be the folder of a calibration, whose scoring it is then: p_value, unsure and against are written too, and
    flagged are rows with a p-value of its level at most. With --labels, also says how many of the anomalous rows were found.
    With --shards: a table larger than memory, as a folder of Parquet parts.
    """
    from ppl_vae.use.judging import against_labels, decided, scored, with_reasons
    from ppl_vae.use.reading import read_rows
    from ppl_vae.use.writing import TABLES, check_ending, write_table

    own: dict[str, Any] = {"scoring": scoring, "num_draws": num_draws, "seed": seed}
    own |= {"per_feature": per_feature, "compiled": compiled}
    if shards:
        from ppl_vae.use.scale import score_files

        return _in_parts(score_files, model, data, shards, jobs, quiet, reading, **own)
    check_ending(out, TABLES)
    thing, rows = _load(model, device), read_rows(data, reading)
    if hasattr(thing, "decide"):
        frame, figures = decided(thing, rows, level, rule, fdr)
        flags = f"with a p-value of {figures['level']:g} at most, {figures['unsure']} unsure"
    else:
        if level is not None or rule is not None or fdr is not None:
            raise OptionError(
                "level, rule, fdr: got them with a model, expected the folder of `ppl-vae calibrate` as MODEL"
            )
        frame, figures = scored(thing, rows, contamination, **own)
        flags = f"with a {figures['scoring']} below {figures['threshold']:.6g}"
    if reasons:
        frame = with_reasons(frame, thing, rows, reasons, num_draws, seed)
    write_table(out, frame)
    figures = {"out": out, "rows": len(frame), "flagged": int(frame["flagged"].sum()), **figures}
    print(f"wrote {out}: {several(figures['rows'], 'row')}, {figures['flagged']} flagged, {flags}")
    if rows.anomalous is not None:
        figures |= (by := against_labels(frame, rows.anomalous))
        anomalous = several(by["anomalous"], "anomalous row")
        print(f"flagged {by['found']} of {anomalous}, and {by['false']} of {several(by['normal'], 'normal one')}")
        if by["auroc"] is not None:
            print(f"AUROC {by['auroc']:.4f}, average precision {by['average_precision']:.4f}")
    return figures


def impute(
    model: str,
    data: str,
    out: str,
    seed: int,
    candidates: int,
    shards: str | None,
    jobs: int,
    device: str | None,
    quiet: bool,
    reading: ReadingOptions,
) -> dict[str, Any]:
    """Fill the missing cells of rows with what is most expected given the others.

    With --shards: of a table larger than memory, as a folder of Parquet parts.
    """
    from ppl_vae.use.reading import read_rows
    from ppl_vae.use.writing import TABLES, check_ending

    if shards:
        from ppl_vae.use.scale import impute_files

        return _in_parts(impute_files, model, data, shards, jobs, quiet, reading, seed=seed, candidates=candidates)
    check_ending(out, TABLES)
    return _write_imputed(out, _load(model, device), read_rows(data, reading), seed=seed, candidates=candidates)


def compare(experiment: str, out: str, jobs: int, retry: bool, quiet: bool) -> dict[str, Any]:
    """Compare candidates by held-out log evidence, as a file says; run again, it goes on where it was stopped.

    Writes table.csv, cells.csv, pointwise.csv and settings.json to a folder, and each cell to its own files in cells/.
    """
    from concurrent.futures import ProcessPoolExecutor
    from contextlib import nullcontext
    from multiprocessing import get_context

    import torch

    from ppl_vae.criticism.compare import compare as run
    from ppl_vae.use.experiment import experiment as read

    _check_free(out, False, "a folder without one")
    jobs, plan, folder = whole("jobs", jobs), read(experiment), _folder(out)
    others = _rows(plan.test) if isinstance(plan.test, str) else None
    train, test = plan.split(_rows(plan.data, plan.missing, plan.names), others)
    candidates = plan.candidates(train)
    threads = torch.get_num_threads()
    pool: Any = ProcessPoolExecutor(jobs, get_context("spawn")) if jobs > 1 else nullcontext()
    torch.set_num_threads(max(1, threads // jobs))  # which every cell's process takes over
    try:
        with pool:
            found = run(
                candidates,
                train,
                test,
                **plan.settings,
                map=pool.map if jobs > 1 else map,
                folder=folder / "cells",
                retry=retry,
                progress=_bars(quiet),
            )
    finally:
        torch.set_num_threads(threads)
    found.save(folder)
    print(found)
    print(f"wrote {folder}")
    if found.cells["error"].notna().all():
        raise PplVaeError(f"compare: got no cell of {len(found.cells)} that did not fail; the reasons are above")
    return {
        "out": out,
        "table": found.table.reset_index(names="candidate").to_dict("records"),
        "warnings": found.warnings,
    }


def diagnose(
    model: str,
    data: str,
    out: str,
    checks: list[str] | str,
    num_draws: int,
    seed: int,
    device: str | None,
    reading: ReadingOptions,
) -> dict[str, Any]:
    """Diagnose a fitted model on rows: prints a sentence for each check, writes its figures."""
    from ppl_vae.criticism.diagnostics import diagnose as run
    from ppl_vae.use.reading import read_rows
    from ppl_vae.use.writing import TABLES, check_ending, write_table

    check_ending(out, TABLES)
    rows = read_rows(data, reading)
    found = run(_load(model, device), rows.data, checks=checks or None, num_draws=num_draws, seed=seed)
    write_table(out, found.table.reset_index())
    print(found)
    print(f"wrote {out}")
    named = {
        name: {"verdict": one.verdict, **{figure: pair[0] for figure, pair in one.figures.items()}}
        for name, one in found.findings.items()
    }
    return {"out": out, "checks": named}


def report(
    folder: str,
    data: str | None,
    out: str | None,
    title: str | None,
    contamination: float,
    num_draws: int,
    seed: int,
    reading: ReadingOptions,
) -> dict[str, Any]:
    """Write one HTML file about a fit, a comparison or the demo: what was fitted, how well, and what is anomalous."""
    from ppl_vae.use.reading import read_rows
    from ppl_vae.use.report.folder import of_folder

    rows = None if data is None else read_rows(data, reading)
    options = {"title": title, "contamination": contamination, "num_draws": num_draws, "seed": seed}
    path = of_folder(folder, rows, out, data if reading.part is None else f"{data}, part {reading.part}", **options)
    print(f"wrote {path}")
    return {"out": str(path)}


def draw(
    model: str, data: str | None, kind: str, out: str, n: int | None, seed: int, reading: ReadingOptions
) -> dict[str, Any]:
    """Draw a picture of a fitted model, as PNG, PDF, SVG or JPEG."""
    import io

    from ppl_vae.files import write_bytes
    from ppl_vae.use.pictures import ENDINGS
    from ppl_vae.use.pictures import draw as run
    from ppl_vae.use.reading import read_rows
    from ppl_vae.use.writing import check_ending

    ending, content = check_ending(out, ENDINGS), io.BytesIO()
    figure = run(kind, model, None if data is None else read_rows(data, reading), n, seed)
    figure.savefig(content, format=ending[1:], dpi=150)
    write_bytes(out, content.getvalue())
    print(f"wrote {out}")
    return {"out": out, "kind": kind}


def parts() -> dict[str, Any]:
    """List what options take by name: priors, likelihoods, posteriors, objectives, scores, rules, checks, pictures; and what
    the file of `compare` takes: methods as a candidate's `posterior`, and `evidence`.
    """
    from ppl_vae.criticism.beyond import BEYOND, needs
    from ppl_vae.criticism.checks import CHECKS
    from ppl_vae.criticism.compare import EVIDENCE
    from ppl_vae.criticism.conformal import RULES
    from ppl_vae.criticism.scores import SCORES
    from ppl_vae.infer.local import METHODS
    from ppl_vae.infer.objectives import objectives
    from ppl_vae.model.build import likelihoods, posteriors, priors
    from ppl_vae.use.pictures import PICTURES

    rows: dict[str, dict[str, Any]] = {
        "objective": objectives(),
        "score": SCORES
        | {name: call for name, call in BEYOND.items() if not needs(call)},  # a model cannot come in by name
        "rule": RULES,
        "check": CHECKS,
        "method": METHODS,
        "evidence": EVIDENCE,
        "picture": PICTURES,
    }
    listed = {"prior": priors(), "likelihood": likelihoods(), "posterior": posteriors()}
    listed |= {kind: {name: _told(row) for name, row in named.items()} for kind, named in rows.items()}
    for kind, named in listed.items():
        for name, text in named.items():
            print(f"{kind:<11} {name:<32} {text}")
    return listed


def sample(model: str, n: int, out: str, seed: int, given: str | None, device: str | None) -> dict[str, Any]:
    """Draw new rows from a model, in the units of its data."""
    from ppl_vae.criticism.predictive import generate
    from ppl_vae.use.reading import frame_of, loaded
    from ppl_vae.use.writing import TABLES, check_ending, write_table

    check_ending(out, TABLES)
    vae = _load(model, device)
    assert vae.schema is not None  # a model that was saved has one
    beside = None if given is None else loaded(given)
    n = n if beside is None else len(beside)
    write_table(out, frame_of(generate(vae, n, seed, beside).x, vae.schema.names))
    print(f"wrote {out}: {several(n, 'row')}, {several(vae.schema.width, 'column')}")
    return {"out": out, "rows": n, "columns": vae.schema.width}


def datasets() -> dict[str, Any]:
    """List the data sets that DATA may name, and whether their files are here."""
    from ppl_vae.data.datasets import names

    found = {name: {"here": is_there, "text": text} for name, is_there, text in names()}
    for name, one in found.items():
        print(f"{name:<22} {'here' if one['here'] else 'absent':<7} {one['text']}")
    return found


def completion(shell: str) -> None:
    """Print a script that lets a shell complete commands and options."""
    if find_spec("shtab") is None:
        raise OptionError("completion: got no shtab, expected it to be installed: pip install 'ppl_vae[completion]'")
    if shell not in SHELLS:
        raise OptionError(f"completion: got {shell!r}, expected one of {', '.join(SHELLS)}")
    print(parser().get_completion_script(f"shtab-{shell}"))


COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "fit": fit,
    "calibrate": calibrate,
    "score": score,
    "sample": sample,
    "impute": impute,
    "diagnose": diagnose,
    "compare": compare,
    "report": report,
    "draw": draw,
    "parts": parts,
    "datasets": datasets,
    "completion": completion,
}


# ---- what they share


def _told(row: Any) -> str:
    """What a row of a registry says of itself: its text, or the first paragraph of a function's docstring."""
    text = getattr(row, "text", None) or (inspect.getdoc(row) or "").partition("\n\n")[0]
    return " ".join(text.split()).removesuffix(".")


def _rows(data: str, missing: list[str] | str | None = None, names: list[str] | None = None) -> Any:
    """Data by path or by a data set's name; labels are not looked at."""
    from ppl_vae.use.reading import read_rows

    return read_rows(data, ReadingOptions(missing=missing or (), names=tuple(names or ()))).data  # type: ignore[arg-type]


def _load(model: str, device: str | None) -> Any:
    """A saved model, or a calibration, on a device."""
    from ppl_vae.use.store import load

    found = load(model)
    for vae in [fold.vae for fold in found.folds] if hasattr(found, "folds") else [found]:
        if device is not None:
            try:
                vae.to(device)
            except (RuntimeError, AssertionError, AttributeError) as error:
                raise OptionError(f"device: got {device!r}, expected one that torch has here: {error}") from error
    return found


def _bars(quiet: bool) -> bool:
    """Whether to show progress: a bar in a log file is noise."""
    return sys.stderr.isatty() and not quiet


def _in_parts(
    work: Callable[..., Any],
    model: str,
    data: str,
    shards: str,
    jobs: int,
    quiet: bool,
    reading: ReadingOptions,
    **options: Any,
) -> dict[str, Any]:
    from ppl_vae.use.engines import processes
    from ppl_vae.use.reading import texts

    if asked := [name for name in ("drop", "labels", "part") if getattr(reading, name)]:
        raise OptionError(f"{asked[0]}: got it with --shards, expected files of the model's own columns")
    engine = processes(jobs) if whole("jobs", jobs) > 1 else map
    options |= {
        "missing": texts(reading.missing),
        "names": reading.names or None,
        "map": engine,
        "progress": _bars(quiet),
    }
    found = work(model, data, shards, **options)
    print(f"wrote {found!r}")
    return {"out": shards, "rows": found.rows, "parts": len(found.parts)}


def _write_scores(out: str | Path, vae: Any, rows: Any) -> None:
    from ppl_vae.use.judging import scored
    from ppl_vae.use.writing import write_table

    frame, figures = scored(vae, rows, CONTAMINATION)
    write_table(out, frame)
    flags = f"{frame['flagged'].sum()} flagged, with a {figures['scoring']} below {figures['threshold']:.6g}"
    print(f"wrote {out}: {several(len(frame), 'row')}, {flags}")


def _write_imputed(out: str | Path, vae: Any, rows: Any, **options: Any) -> dict[str, Any]:
    from ppl_vae.criticism.imputation import impute as impute_rows
    from ppl_vae.use.reading import frame_of
    from ppl_vae.use.writing import write_table

    imputed = impute_rows(vae, rows.data, **options)
    write_table(out, frame_of(imputed.frame, vae.schema.names))
    print(f"wrote {out}: {imputed!r}")
    return {"out": str(out), "rows": len(rows.numbers), "cells": imputed.cells}


def _checked_parts(parts: dict[str, Any]) -> dict[str, Any]:
    """Options of the parts, none of which is one of the model's; sequences as `build` takes them."""
    if known := sorted(parts.keys() & {field.name for field in fields(ModelOptions)}):
        raise OptionError(f"parts: got {known[0]!r}, expected it as --model.{known[0]}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in parts.items()}


# ---- the arguments

DATA = "a .npy, .npz, .csv or .parquet file, or the name of a data set"
SHELLS = ("bash", "zsh", "tcsh")
TABLE = "file: .csv, .parquet, .npz or .npy"
CONTAMINATION = 0.05
SCORING = (
    "reconstruction_probability | expected_log_likelihood | elbo | iwae | kl_to_prior | reconstruction_error | ... "
    "(see `ppl-vae parts`)"
)
RULE = "conformal | conditional | simultaneous | tail"
CHECKS = (
    "active_units | collapse | kl | information | rate_distortion | evidence | gaps | gradients | calibration | "
    "predictive | pit, or several, as [active_units,evidence]; []: all"
)


class Command(ArgumentParser):
    """The parser of one command.

    Attributes:
        by_position: what each argument by position is; with a star: which has to be there.
        from_file: those of them that a configuration file names.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.by_position: dict[str, str] = {}
        self.from_file: dict[str, Any] = {}

    def position(self, name: str, text: str, required: bool = True) -> None:
        """Add an argument by position."""
        self.by_position[name] = "*" * required + text
        self.add_argument(name, type=str, nargs="?", help=text)


class Seed(Action):
    """One number for both seeds of a fit: that of the weights, and that of all that comes after."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        cfg["model.seed"] = cfg["fit.seed"] = whole(
            "seed", int(values) if re.fullmatch(r"-?\d+", values) else values, None
        )


class Config(ActionConfigFile):
    """A file of options; jsonargparse would read YAML only, and no arguments by position."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        from ppl_vae.use.configuration import read_options

        content = read_options(values)
        content.pop("versions", None)
        parser.from_file = {name: content.pop(name) for name in parser.by_position if name in content}
        super().__call__(parser, cfg, json.dumps(content), option_string)


def parsers() -> tuple[ArgumentParser, dict[str, Command]]:
    """The parser, and that of each command."""
    version = import_module("ppl_vae").__version__
    description = "Variational autoencoders as two probabilistic programs."
    top = ArgumentParser(
        prog="ppl-vae", description=description, version=version, exit_on_error=False, allow_abbrev=False
    )
    commands = top.add_subcommands(dest="command")
    made: dict[str, Command] = {}
    for name, arguments in ARGUMENTS.items():
        text = inspect.getdoc(COMMANDS[name])
        assert text is not None
        made[name] = one = Command(description=text, exit_on_error=False, allow_abbrev=False)
        arguments(one)
        commands.add_subcommand(name, one, help=text)
    return top, made


def parser() -> ArgumentParser:
    """The parser of all commands."""
    return parsers()[0]


def _demo_arguments(one: Command) -> None:
    one.add_argument("--out", type=str, default="runs/demo", help="folder")
    one.add_argument("--anomaly", type=int, default=8, help="the digit that no model sees in training, 0 to 9")
    one.add_argument("--seed", type=int, default=0, help="of everything random")
    _add_common(one)


def _fit_arguments(one: Command) -> None:
    one.position("data", DATA)
    one.add_argument("--out", type=str, required=True, help="folder")
    _add_force(one)
    one.add_argument("--scores", action="store_true", help="also score these rows, into scores.csv")
    one.add_argument("--imputations", action="store_true", help="also fill their missing cells, into imputed.csv")
    one.add_argument(
        "--log",
        type=list[str] | str,
        default=[],
        help="also write each epoch: jsonl | tensorboard | [jsonl,tensorboard]",
    )
    _add_device(one)
    _add_reading(one)
    _add_options(one, "model.", ModelOptions)
    values = dict[str, bool | int | float | str | list[int]]
    text = 'options of prior, likelihood, posterior and nets, as {"components": 20} (see `ppl-vae parts`)'
    one.add_argument("--parts", type=values, default={}, help=text)
    _add_options(one, "fit.", FitOptions)
    one.add_argument(
        "--seed", action=Seed, dest=SUPPRESS, default=SUPPRESS, metavar="SEED", help="of both: model.seed and fit.seed"
    )
    text = 'of the objective, as {"alpha": 0.3} (see `ppl-vae parts`)'
    one.add_argument("--objective_options", type=values, default={}, help=text)
    _add_common(one)


def _calibrate_arguments(one: Command) -> None:
    _add_model_and_data(one)
    one.add_argument("--out", type=str, required=True, help="folder")
    _add_force(one)
    one.add_argument("--level", type=float, default=0.05, help="share of normal rows to come that may be flagged")
    one.add_argument("--rule", type=str, default="conformal", help=RULE)
    one.add_argument("--delta", type=float, default=0.1, help="how often conditional and simultaneous may fail")
    _add_scoring(one)
    _add_reading(one)
    _add_common(one)


def _score_arguments(one: Command) -> None:
    _add_model_and_data(one, "folder of a model, or of a calibration")
    one.add_argument("--out", type=str, default="scores.csv", help=TABLE)
    _add_scoring(one)
    text = "share of these rows to flag, in (0, 0.5]"
    one.add_argument("--contamination", type=float, default=CONTAMINATION, help=text)
    one.add_argument("--per_feature", action="store_true", help="also the part of each column")
    text = "true | traced (without a compiler) | false | auto (where it pays): by a graph"
    one.add_argument("--compiled", type=bool | str, default="auto", help=text)
    one.add_argument("--level", type=float | None, default=None, help="of a calibration, instead of its own")
    text = f"{RULE}; of a calibration, instead of its own"
    one.add_argument("--rule", type=str | None, default=None, help=text)
    one.add_argument(
        "--fdr", type=float | None, default=None, help="by a calibration: pick rows, this share being normal"
    )
    text = "tell so many columns that make a row anomalous, of rows that are flagged"
    one.add_argument("--reasons", type=int, default=0, help=text)
    _add_shards(one)
    _add_reading(one)
    _add_common(one)


def _impute_arguments(one: Command) -> None:
    _add_model_and_data(one)
    one.add_argument("--out", type=str, default="imputed.csv", help=TABLE)
    one.add_argument("--seed", type=int, default=0, help="of the draws")
    one.add_argument("--candidates", type=int, default=1000, help="draws a row that a filling is the weighted mean of")
    _add_device(one)
    _add_shards(one)
    _add_reading(one)
    _add_common(one)


def _sample_arguments(one: Command) -> None:
    one.position("model", "folder of a model")
    one.add_argument("--n", type=int, default=100, help="number of rows")
    one.add_argument("--out", type=str, default="samples.csv", help=TABLE)
    one.add_argument("--seed", type=int, default=0, help="of the draws")
    text = "a file of the columns that the model is given (covariates, group): one new row for each"
    one.add_argument("--given", type=str | None, default=None, help=text)
    _add_device(one)
    _add_common(one)


def _diagnose_arguments(one: Command) -> None:
    _add_model_and_data(one)
    one.add_argument("--out", type=str, default="diagnosis.csv", help=TABLE)
    one.add_argument("--checks", type=list[str] | str, default=[], help=CHECKS)
    one.add_argument("--num_draws", type=int, default=1000, help="Monte Carlo draws a row")
    one.add_argument("--seed", type=int, default=0, help="of the draws")
    _add_device(one)
    _add_reading(one)
    _add_common(one)


def _compare_arguments(one: Command) -> None:
    text = "a YAML, JSON or TOML file: data, candidates or a grid, seeds, budget, evidence; `ppl-vae parts` lists the names"
    one.position("experiment", text)
    one.add_argument("--out", type=str, required=True, help="folder")
    one.add_argument("--jobs", type=int, default=1, help="cells to run at a time, each in a process of its own")
    one.add_argument("--retry", action="store_true", help="also run cells again that failed before")
    _add_common(one)


def _draw_arguments(one: Command) -> None:
    one.position("model", "folder of a model")
    one.position("data", f"{DATA}; for pictures of rows", required=False)
    text = "manifold | samples | reconstructions | latent | scores | explained | units | pit | history"
    one.add_argument("--kind", type=str, required=True, help=text)
    one.add_argument("--out", type=str, required=True, help="file: .png, .pdf, .svg or .jpg")
    one.add_argument(
        "--n", type=int | None, default=None, help="rows, draws, or images along a side; see ppl-vae parts"
    )
    one.add_argument("--seed", type=int, default=0, help="of the draws")
    _add_reading(one)
    _add_common(one)


def _report_arguments(one: Command) -> None:
    one.position("folder", "folder that fit, compare or demo wrote")
    one.add_argument("--data", type=str | None, default=None, help=f"{DATA}; by default those that options.json names")
    one.add_argument("--out", type=str | None, default=None, help="file; by default report.html in the folder")
    one.add_argument("--title", type=str | None, default=None, help="of the page")
    text = "share of these rows to flag, in (0, 0.5]"
    one.add_argument("--contamination", type=float, default=CONTAMINATION, help=text)
    one.add_argument("--num_draws", type=int, default=64, help="Monte Carlo draws a row")
    one.add_argument("--seed", type=int, default=0, help="of the draws")
    _add_reading(one)
    _add_common(one)


def _completion_arguments(one: Command) -> None:
    one.position("shell", " | ".join(SHELLS))


def _list_arguments(one: Command) -> None:
    one.add_argument("--json", action="store_true", help="print a JSON object")


ARGUMENTS: dict[str, Callable[[Command], None]] = {
    "demo": _demo_arguments,
    "fit": _fit_arguments,
    "calibrate": _calibrate_arguments,
    "score": _score_arguments,
    "sample": _sample_arguments,
    "impute": _impute_arguments,
    "diagnose": _diagnose_arguments,
    "compare": _compare_arguments,
    "draw": _draw_arguments,
    "report": _report_arguments,
    "parts": _list_arguments,
    "datasets": _list_arguments,
    "completion": _completion_arguments,
}


# ---- arguments that several commands share


def _add_common(one: Command) -> None:
    one.add_argument("--quiet", action="store_true", help="print nothing")
    one.add_argument("--json", action="store_true", help="print a JSON object of figures, and nothing else")
    one.add_argument("--config", action=Config, help="a YAML, JSON or TOML file of options; those after it win")


def _add_model_and_data(one: Command, model: str = "folder of a model") -> None:
    one.position("model", model)
    one.position("data", DATA)


def _add_force(one: Command) -> None:
    one.add_argument("--force", action="store_true", help="replace the model that --out holds")


def _add_device(one: Command) -> None:
    one.add_argument("--device", type=str | None, default=None, help="cpu | cuda | cuda:1 | ...")


def _add_scoring(one: Command) -> None:
    one.add_argument("--scoring", type=str, default="reconstruction_probability", help=SCORING)
    one.add_argument("--num_draws", type=int, default=64, help="Monte Carlo draws a row")
    one.add_argument("--seed", type=int, default=0, help="of the draws")
    _add_device(one)


def _add_shards(one: Command) -> None:
    text = (
        "a folder for Parquet parts, in the place of --out: DATA may then be larger than memory, or a folder of files"
    )
    one.add_argument("--shards", type=str | None, default=None, help=text)
    one.add_argument("--jobs", type=int, default=1, help="processes that make these parts")


def _add_reading(one: Command) -> None:
    _add_options(one, "", ReadingOptions)


def _add_options(one: ArgumentParser, group: str, options: type) -> None:
    """An argument for each field of a dataclass, one by one: names and numbers only, never a class path."""
    hints, texts = typing.get_type_hints(options), _texts(options)
    for field in fields(options):
        kind = hints[field.name]
        # a union takes the first type that fits, and every value fits str
        if isinstance(kind, UnionType) and str in typing.get_args(kind):
            kind = reduce(or_, sorted(typing.get_args(kind), key=lambda part: part is str))
        one.add_argument(f"--{group}{field.name}", type=kind, default=field.default, help=texts[field.name])


def _texts(options: type) -> dict[str, str]:
    """What the docstring of a dataclass says about each of its attributes."""
    text = inspect.getdoc(options) or ""
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text.partition("Attributes:")[2], re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in found}


if __name__ == "__main__":
    sys.exit(main())
