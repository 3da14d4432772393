"""The command line: `ppl-vae demo | fit | score | sample | impute | diagnose | compare | report | parts | datasets`.

Only names and numbers come in, from arguments or a configuration file; what a name may be is decided where its table of
choices stands. Nothing heavy is imported before a command runs, so that `--help` is quick.
"""

import inspect
import os
import re
import sys
import typing
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import reduce
from importlib import import_module
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from ppl_vae.errors import OptionError, PplVaeError
from ppl_vae.options import FitOptions, ModelOptions

WRONG, INTERRUPTED = 2, 130
"""Exit codes: of an error that the user can mend, and (by the shells' convention, 128 + SIGINT) of Ctrl-C."""


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
    try:
        options = parser().parse_args(argv)
        COMMANDS[options.command](**vars(options[options.command]))
        sys.stdout.flush()
        return 0
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:  # `ppl-vae datasets | head`: the reader has gone, and the flush at exit must not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return WRONG
    except (PplVaeError, ArgumentError, OSError) as error:
        return _say(error, WRONG)


def _say(what: object, code: int) -> int:
    print("ppl-vae:", " ".join(str(what).split()), file=sys.stderr)
    return code


# ---- the commands


def demo(out: str, anomaly: int, seed: int) -> None:
    """Find one digit among the others: fit, score, draw, and write it all to a folder."""
    from ppl_vae.use.demo import demo as run

    run(out, anomaly=anomaly, seed=seed)


def fit(
    data: str,
    out: str,
    model: Namespace,
    fit: Namespace,
    missing: list[str] | str,
    names: list[str],
    scores: bool,
    imputations: bool,
    parts: dict[str, Any],
    config: Any = None,
) -> None:
    """Fit a VAE to data; writes the model, history.csv and options.json (for --config) to a folder.

    On request also scores.csv and imputed.csv of the same rows.
    """
    from ppl_vae.files import to_json, write_text
    from ppl_vae.infer.training import fit as train
    from ppl_vae.model.build import build
    from ppl_vae.use.store import save

    model_options, fit_options = ModelOptions(**vars(model)), FitOptions(**vars(fit))
    rows, folder = _rows(data, missing, names), Path(out)
    folder.mkdir(parents=True, exist_ok=True)  # before the work: where it cannot be written, there is no use in it
    vae = build(rows, **asdict(model_options), **_checked_parts(parts))
    if model_options.likelihood == "infer":
        print(vae.schema)
    bar = fit_options.progress and sys.stderr.isatty()  # a bar in a log file is noise
    history = train(vae, rows, **{**asdict(fit_options), "progress": bar})
    save(vae, folder)
    history.save(folder / "history.csv")
    options = {"model": asdict(model_options), "parts": parts, "fit": asdict(fit_options)}
    write_text(folder / "options.json", to_json(options))
    last = history.epochs[(history.best_epoch or len(history)) - 1]
    print(f"{len(history)} epochs in {history['seconds'][-1]:.1f} s")
    held_out = f", {last['valid_bound']:.4f} on the rows held out" if fit_options.valid else ""
    print(f"bound {last['bound']:.4f} nats a row in training{held_out}")
    for name, wanted, write in (("scores", scores, _write_scores), ("imputed", imputations, _write_imputed)):
        (folder / f"{name}.csv").unlink(missing_ok=True)  # of the model before
        if wanted:
            write(folder / f"{name}.csv", vae, rows)
    print(f"wrote {folder}")


def score(
    model: str,
    data: str,
    out: str,
    scoring: str,
    num_draws: int,
    seed: int,
    contamination: float,
    shards: str | None,
    jobs: int,
    missing: list[str] | str,
    names: list[str],
) -> None:
    """Score rows, higher = more normal; writes row, score, mcse and flagged (0 or 1) as CSV.

    With --shards: row, score and mcse of a table larger than memory, as a folder of Parquet parts.
    """
    from ppl_vae.use.store import load

    if shards:
        from ppl_vae.use.scale import score_files

        options = {"scoring": scoring, "num_draws": num_draws, "seed": seed}
        return _in_parts(score_files, model, data, shards, jobs, missing, names, **options)
    _check_csv(out)
    _write_scores(
        out, load(model), _rows(data, missing, names), contamination, scoring=scoring, num_draws=num_draws, seed=seed
    )


def impute(
    model: str,
    data: str,
    out: str,
    seed: int,
    shards: str | None,
    jobs: int,
    missing: list[str] | str,
    names: list[str],
) -> None:
    """Fill the missing cells of rows with what is most expected given the others; writes CSV.

    With --shards: of a table larger than memory, as a folder of Parquet parts.
    """
    from ppl_vae.use.store import load

    if shards:
        from ppl_vae.use.scale import impute_files

        return _in_parts(impute_files, model, data, shards, jobs, missing, names, seed=seed)
    _check_csv(out)
    _write_imputed(out, load(model), _rows(data, missing, names), seed)


def compare(experiment: str, out: str, jobs: int, retry: bool) -> None:
    """Compare candidates by held-out log evidence, as a file says; run again, it goes on where it was stopped.

    Writes table.csv, cells.csv, pointwise.csv and settings.json to a folder, and each cell to its own files in cells/.
    """
    from concurrent.futures import ProcessPoolExecutor
    from contextlib import nullcontext
    from multiprocessing import get_context

    import torch

    from ppl_vae.criticism.compare import compare as run
    from ppl_vae.errors import whole
    from ppl_vae.use.experiment import experiment as read

    plan, folder, jobs = read(experiment), Path(out), whole("jobs", jobs)
    folder.mkdir(parents=True, exist_ok=True)  # before the work: where it cannot be written, there is no use in it
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
                progress=sys.stderr.isatty(),
            )
    finally:
        torch.set_num_threads(threads)
    found.save(folder)
    print(found)
    print(f"wrote {folder}")
    if found.cells["error"].notna().all():
        raise PplVaeError(f"compare: got no cell of {len(found.cells)} that did not fail; the reasons are above")


def diagnose(
    model: str,
    data: str,
    out: str,
    checks: list[str] | str,
    num_draws: int,
    seed: int,
    missing: list[str] | str,
    names: list[str],
) -> None:
    """Diagnose a fitted model on rows: prints a sentence for each check, writes its figures as CSV."""
    from ppl_vae.criticism.diagnostics import diagnose as run
    from ppl_vae.use.store import load

    _check_csv(out)
    found = run(load(model), _rows(data, missing, names), checks=checks or None, num_draws=num_draws, seed=seed)
    _write_csv(out, found.table.reset_index())
    print(found)
    print(f"wrote {out}")


def report(
    folder: str,
    data: str | None,
    out: str | None,
    title: str | None,
    contamination: float,
    num_draws: int,
    seed: int,
    missing: list[str] | str,
    names: list[str],
) -> None:
    """Write one HTML file about a fit, a comparison or the demo: what was fitted, how well, and what is anomalous."""
    from ppl_vae.use.report.folder import of_folder

    rows = _rows(data, missing, names) if data else None
    options = {"title": title, "contamination": contamination, "num_draws": num_draws, "seed": seed}
    print(f"wrote {of_folder(folder, rows, out, **options)}")


def parts() -> None:
    """List the priors, likelihoods, posteriors and objectives by name."""
    from ppl_vae.infer.objectives import objectives
    from ppl_vae.model.build import likelihoods, posteriors, priors

    texts = {name: objective.text for name, objective in objectives().items()}
    for kind, named in {
        "prior": priors(),
        "likelihood": likelihoods(),
        "posterior": posteriors(),
        "objective": texts,
    }.items():
        for name, text in named.items():
            print(f"{kind:<11} {name:<32} {text}")


def sample(model: str, n: int, out: str, seed: int, given: str | None) -> None:
    """Draw new rows from a model; writes them as CSV, in the units of its data."""
    import pandas as pd

    from ppl_vae.criticism.predictive import generate
    from ppl_vae.data.tables import read, read_csv
    from ppl_vae.use.store import load

    _check_csv(out)
    vae = load(model)
    assert vae.schema is not None  # a model that was saved has one
    beside = None if given is None else read_csv(given)
    n = n if beside is None else len(beside)
    rows = generate(vae, n, seed, beside).x
    frame = rows if hasattr(rows, "columns") else pd.DataFrame(read(rows).values, columns=list(vae.schema.names))
    _write_csv(out, frame if isinstance(frame, pd.DataFrame) else frame.to_pandas())
    print(f"wrote {out}: {n} rows, {vae.schema.width} columns")


def datasets() -> None:
    """List the data sets that DATA may name, and whether their files are here."""
    from ppl_vae.data.datasets import names

    for name, is_there, description in names():
        print(f"{name:<22} {'here' if is_there else 'absent':<7} {description}")


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "fit": fit,
    "score": score,
    "sample": sample,
    "impute": impute,
    "diagnose": diagnose,
    "compare": compare,
    "report": report,
    "parts": parts,
    "datasets": datasets,
}


# ---- what they share


def _rows(data: str, missing: list[str] | str | None = None, names: list[str] | None = None) -> Any:
    """Data by path or by a data set's name; a data set's labels are not looked at."""
    from ppl_vae.data.datasets import load
    from ppl_vae.data.tables import read_csv

    path = Path(data)
    if missing or names:
        return read_csv(path, missing=[missing] if isinstance(missing, str) else missing or (), names=names or None)
    if path.suffix or path.exists():
        return path
    try:
        return load(data)
    except OptionError:
        raise OptionError(
            f"DATA: got {data!r}, expected a .npy, .npz, .csv or .parquet file or a name from `ppl-vae datasets`"
        ) from None


def _in_parts(
    work: Callable[..., Any],
    model: str,
    data: str,
    shards: str,
    jobs: int,
    missing: list[str] | str,
    names: list[str],
    **options: Any,
) -> None:
    from ppl_vae.errors import whole
    from ppl_vae.use.engines import processes

    words = [missing] if isinstance(missing, str) else missing
    engine = processes(jobs) if whole("jobs", jobs) > 1 else map
    options |= {"missing": words, "names": names or None, "map": engine, "progress": sys.stderr.isatty()}
    print(f"wrote {work(model, data, shards, **options)!r}")


def _write_scores(out: str | Path, vae: Any, rows: Any, contamination: float = 0.05, **options: Any) -> None:
    import pandas as pd

    from ppl_vae.criticism.scores import score as score_rows

    scores = score_rows(vae, rows, **options)
    threshold = scores.threshold(contamination)
    flagged = (scores.values < threshold).astype(int)
    columns = {"row": range(len(flagged)), "score": scores.values, "mcse": scores.mcse, "flagged": flagged}
    _write_csv(out, pd.DataFrame(columns))
    print(f"wrote {out}: {len(flagged)} rows, {flagged.sum()} flagged, with a {scores.scoring} below {threshold:.6g}")


def _write_imputed(out: str | Path, vae: Any, rows: Any, seed: int = 0) -> None:
    import pandas as pd

    from ppl_vae.criticism.imputation import impute as impute_rows
    from ppl_vae.data.tables import read

    imputed = impute_rows(vae, rows, seed=seed)
    frame = imputed.frame
    if not hasattr(frame, "columns"):
        frame = pd.DataFrame(read(frame).values, columns=list(vae.schema.names))
    frame = frame if isinstance(frame, pd.DataFrame) else frame.to_pandas()
    _write_csv(out, frame)
    print(f"wrote {out}: {imputed!r}")


def _checked_parts(parts: dict[str, Any]) -> dict[str, Any]:
    """Options of the parts, none of which is one of the model's; sequences as `build` takes them."""
    if known := sorted(parts.keys() & {field.name for field in fields(ModelOptions)}):
        raise OptionError(f"parts: got {known[0]!r}, expected it as --model.{known[0]}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in parts.items()}


def _check_csv(out: str) -> None:
    """Before the work: what is written is CSV, whatever the name says."""
    if Path(out).suffix.lower() != ".csv":
        raise OptionError(f"out: got {out!r}, expected a name that ends in .csv")


def _write_csv(out: str | Path, frame: Any) -> None:
    from ppl_vae.files import write_text

    write_text(out, frame.to_csv(index=False, lineterminator="\n"))


# ---- the arguments

DATA = "a .npy, .npz, .csv or .parquet file, or the name of a data set"


def parser() -> ArgumentParser:
    """The parser of all commands."""
    version = import_module("ppl_vae").__version__
    description = "Variational autoencoders as two probabilistic programs."
    top = ArgumentParser(prog="ppl-vae", description=description, version=version, exit_on_error=False)
    commands = top.add_subcommands(dest="command")
    for name, arguments in ARGUMENTS.items():
        text = inspect.getdoc(COMMANDS[name])
        assert text is not None
        one = ArgumentParser(description=text, exit_on_error=False)
        arguments(one)
        commands.add_subcommand(name, one, help=text)
    return top


def _demo_arguments(one: ArgumentParser) -> None:
    one.add_argument("--out", type=str, default="runs/demo", help="folder")
    one.add_argument("--anomaly", type=int, default=8, help="the digit that no model sees in training, 0 to 9")
    one.add_argument("--seed", type=int, default=0, help="of everything random")


def _fit_arguments(one: ArgumentParser) -> None:
    one.add_argument("data", type=str, help=DATA)
    one.add_argument("--out", type=str, required=True, help="folder")
    one.add_argument("--config", action="config", help="a file of model and fit options, such as options.json of a fit")
    _add_reading(one)
    one.add_argument("--scores", action="store_true", help="also score these rows, into scores.csv")
    one.add_argument("--imputations", action="store_true", help="also fill their missing cells, into imputed.csv")
    _add_options(one, "model", ModelOptions)
    one.add_argument(
        "--parts",
        type=dict[str, bool | int | float | str | list[int]],
        default={},
        help='options of prior, likelihood, posterior and nets, as {"components": 20}',
    )
    _add_options(one, "fit", FitOptions)


def _score_arguments(one: ArgumentParser) -> None:
    one.add_argument("model", type=str, help="folder of a model")
    one.add_argument("data", type=str, help=DATA)
    one.add_argument("--out", type=str, default="scores.csv", help="file")
    one.add_argument(
        "--scoring",
        type=str,
        default="reconstruction_probability",
        help="reconstruction_probability | expected_log_likelihood | elbo | iwae | kl_to_prior | reconstruction_error",
    )
    one.add_argument("--num_draws", type=int, default=64, help="Monte Carlo draws a row")
    one.add_argument("--seed", type=int, default=0, help="of the draws")
    one.add_argument("--contamination", type=float, default=0.05, help="share of these rows to flag, in (0, 0.5]")
    _add_shards(one)
    _add_reading(one)


def _add_shards(one: ArgumentParser) -> None:
    text = (
        "a folder for Parquet parts, in the place of --out: DATA may then be larger than memory, or a folder of files"
    )
    one.add_argument("--shards", type=str | None, default=None, help=text)
    one.add_argument("--jobs", type=int, default=1, help="processes that make these parts")


def _add_reading(one: ArgumentParser) -> None:
    one.add_argument(
        "--missing", type=list[str] | str, default=[], help='texts of a CSV file that stand for a missing cell, as "?"'
    )
    one.add_argument(
        "--names", type=list[str], default=[], help="column names of a CSV file without a first line of them"
    )


def _impute_arguments(one: ArgumentParser) -> None:
    one.add_argument("model", type=str, help="folder of a model")
    one.add_argument("data", type=str, help=DATA)
    one.add_argument("--out", type=str, default="imputed.csv", help="file")
    one.add_argument("--seed", type=int, default=0, help="of the draws")
    _add_shards(one)
    _add_reading(one)


def _sample_arguments(one: ArgumentParser) -> None:
    one.add_argument("model", type=str, help="folder of a model")
    one.add_argument("--n", type=int, default=100, help="number of rows")
    one.add_argument("--out", type=str, default="samples.csv", help="file")
    one.add_argument("--seed", type=int, default=0, help="of the draws")
    one.add_argument(
        "--given",
        type=str | None,
        default=None,
        help="a CSV file of the columns that the model is given (covariates, group): one new row for each",
    )


def _diagnose_arguments(one: ArgumentParser) -> None:
    one.add_argument("model", type=str, help="folder of a model")
    one.add_argument("data", type=str, help=DATA)
    one.add_argument("--out", type=str, default="diagnosis.csv", help="file")
    one.add_argument(
        "--checks", type=list[str] | str, default=[], help="a name, or names as [active_units,evidence]; []: all"
    )
    one.add_argument("--num_draws", type=int, default=1000, help="Monte Carlo draws a row")
    one.add_argument("--seed", type=int, default=0, help="of the draws")
    _add_reading(one)


def _compare_arguments(one: ArgumentParser) -> None:
    one.add_argument("experiment", type=str, help="a YAML file: data, candidates or a grid, seeds, budget, evidence")
    one.add_argument("--out", type=str, required=True, help="folder")
    one.add_argument("--jobs", type=int, default=1, help="cells to run at a time, each in a process of its own")
    one.add_argument("--retry", action="store_true", help="also run cells again that failed before")


def _report_arguments(one: ArgumentParser) -> None:
    one.add_argument("folder", type=str, help="folder that fit, compare or demo wrote")
    one.add_argument("--data", type=str | None, default=None, help=f"{DATA}; by default those that options.json names")
    one.add_argument("--out", type=str | None, default=None, help="file; by default report.html in the folder")
    one.add_argument("--title", type=str | None, default=None, help="of the page")
    one.add_argument("--contamination", type=float, default=0.05, help="share of these rows to flag, in (0, 0.5]")
    one.add_argument("--num_draws", type=int, default=64, help="Monte Carlo draws a row")
    one.add_argument("--seed", type=int, default=0, help="of the draws")
    _add_reading(one)


def _no_arguments(one: ArgumentParser) -> None:
    pass


ARGUMENTS: dict[str, Callable[[ArgumentParser], None]] = {
    "demo": _demo_arguments,
    "fit": _fit_arguments,
    "score": _score_arguments,
    "sample": _sample_arguments,
    "impute": _impute_arguments,
    "diagnose": _diagnose_arguments,
    "compare": _compare_arguments,
    "report": _report_arguments,
    "parts": _no_arguments,
    "datasets": _no_arguments,
}


def _add_options(one: ArgumentParser, group: str, options: type) -> None:
    """An argument for each field of a dataclass, one by one: names and numbers only, never a class path."""
    hints, texts = typing.get_type_hints(options), _texts(options)
    for field in fields(options):
        kind = hints[field.name]
        # a union takes the first type that fits, and every value fits str
        if isinstance(kind, UnionType) and str in typing.get_args(kind):
            kind = reduce(or_, sorted(typing.get_args(kind), key=lambda part: part is str))
        one.add_argument(f"--{group}.{field.name}", type=kind, default=field.default, help=texts[field.name])


def _texts(options: type) -> dict[str, str]:
    """What the docstring of a dataclass says about each of its attributes."""
    text = inspect.getdoc(options) or ""
    return dict(re.findall(r"^    (\w+): (.*)$", text.partition("Attributes:")[2], re.MULTILINE))


if __name__ == "__main__":
    sys.exit(main())
