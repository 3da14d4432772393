"""The report of a folder that `ppl-vae fit`, `compare` or `demo` wrote."""

import json
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ppl_vae.criticism.calibration import Calibration
from ppl_vae.data.tables import opened
from ppl_vae.errors import DataError, MissingFileError, OptionError
from ppl_vae.files import from_json, read_bytes
from ppl_vae.infer.draws import batch_of, known_again
from ppl_vae.infer.history import History
from ppl_vae.options import ReadingOptions
from ppl_vae.use.reading import Rows, read_rows
from ppl_vae.use.report.page import report
from ppl_vae.use.store import MODEL_FILE, load

SHOWN = ("labels", "normal", "drop", "fit", "objective_options", "task")
"""Of what the two files of options tell: the model itself tells how it was built."""


def of_folder(
    folder: str | PathLike,
    rows: Rows | None = None,
    path: str | PathLike | None = None,
    source: str | None = None,
    **options: Any,
) -> Path:
    """Write the report of a folder.

    What is read, where it is there: model.json or model/; plane/, a second model to explore; calibration/; history.csv;
    options.json, and report.json, which goes before it; table.csv, the table of a comparison, and its settings.json.

    Args:
        folder: of a fit, a comparison or the demo.
        rows: for the model; None takes those that options.json names under "data", read as it says.
        path: the file; None: report.html in the folder.
        source: what the rows were read from, in words.
        options: `title`, `history`, `contamination`, `num_draws` and `seed` of `report`.

    Returns: the path of the file.

    Raises: MissingFileError where there is no model and no table; OptionError without data for a model; ModelFileError.
    """
    folder = Path(folder)
    models = [place for place in (folder, folder / "model") if (place / MODEL_FILE).is_file()]
    table = folder / "table.csv"
    if not models and not table.is_file():
        raise MissingFileError(
            f"{folder}: got neither a model nor a table.csv there, expected the folder of a fit, a comparison or the demo"
        )
    fit, told = _json(folder / "options.json"), _json(folder / "report.json")
    of_fit, told = rows is None and "fit" in fit and "data" not in told, fit | told
    found: dict[str, Any] = {"path": folder / "report.html" if path is None else path, **options}
    title = told.pop("title", None)
    found["title"] = found.get("title") or title
    if models:
        rows = _rows(folder, told) if rows is None else rows
        found["data"] = rows.data
        if rows.labels is not None:
            found |= {"labels": rows.labels, "anomalous": rows.anomalous}
        found["vae"] = load(models[0])
        if isinstance(found["vae"], Calibration):
            found |= {"calibration": found["vae"], "vae": found["vae"].folds[0].vae}
        for name in ("calibration", "plane"):
            if (folder / name / MODEL_FILE).is_file():
                found[name] = load(folder / name)
        if "history" not in options and (folder / "history.csv").is_file():
            found["history"] = read_history(folder / "history.csv")
            if of_fit:
                found["history"].rows = known_again(batch_of(found["vae"], rows.normal().data))
    if table.is_file():
        found["comparison"] = opened(table)
    kept = {name: told[name] for name in SHOWN if told.get(name)}
    kept |= {"fitted_to": _named(fit) if "fit" in fit else None, "data": source or _named(told)}
    return report(**found, options=kept if models else _json(folder / "settings.json"))


def _rows(folder: Path, told: dict[str, Any]) -> Rows:
    """The rows that options.json names: by path, by the path in the folder, or by a data set's name."""
    if "data" not in told:
        raise OptionError(
            f"data: got none, and {folder / 'options.json'} names none; expected --data, a file or the name of a data set"
        )
    names = [field.name for field in fields(ReadingOptions) if field.name in told]
    asked: dict[str, Any] = {name: tuple(told[name]) if isinstance(told[name], list) else told[name] for name in names}
    inside, reading = folder / told["data"], ReadingOptions(**asked)
    name = str(inside if inside.is_file() else told["data"])
    if reading == ReadingOptions() and Path(name).is_file():  # whose labels, if it has any, the report finds
        return Rows(Path(name), np.empty(0))
    return read_rows(name, reading)


def _named(told: dict[str, Any]) -> str | None:
    """The rows that options name, in words."""
    return f"{told['data']}, part {told['part']}" if told.get("part") else told.get("data")


def read_history(file: Path) -> History:
    """What `History.save` wrote. Raises: DataError, MissingFileError."""
    history = History()
    try:
        table = opened(file)
        for epoch in table.astype(float).to_dict("records"):
            history.append({str(name): value for name, value in epoch.items()})
        if "epoch" not in table or "bound" not in table:
            raise ValueError(f"got the columns {list(table)}")
    except ValueError as error:
        raise DataError(
            f"file {file}: got no history of a fit, expected one as `ppl-vae fit` writes it: {error}"
        ) from error
    return history


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    found = from_json(read_bytes(file), str(file))
    if not isinstance(found, dict):
        raise DataError(f"file {file}: got {json.dumps(found)[:80]}, expected names and values")
    return found
