"""Wrong commands, each answered in one line that says what to do, and exit code 2."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ppl_vae.use.mistakes import nearest, told

Run = Callable[..., tuple[int, str, str]]

MISTAKES = {
    "": "got no command, expected one of demo, fit, calibrate,",
    "scor m digits": "got the command 'scor', did you mean score?",
    "fit digits --out m --fit.epoch 3": "fit: got --fit.epoch, which is no option; did you mean --fit.epochs?",
    "fit digits --out m --epochs 3": "fit: got --epochs, which is no option; did you mean --fit.epochs?",
    "fit digits --out m --fit.epochs three": "fit: --fit.epochs: got 'three', expected a whole number",
    "fit digits --out m --fit.lr": "fit: got --fit.lr without a value, expected one after it",
    "fit digits --out m --model.hidden 64": "fit: --model.hidden: got '64', expected a list, as [a,b]",
    "fit digits --out m --drop a b": "fit: --drop: got 'a', expected a list, as [a,b]",
    "fit digits": "fit: got no --out, expected it; see --help",
    "fit --out m": "fit: got no DATA, expected a .npy, .npz, .csv or .parquet file, or the name of a data set",
    "fit digit --out m": "DATA: got 'digit', did you mean digits?",
    "fit digits --out m --config o.json": "fit: got the key 'epochs', which is no option; did you mean fit.epochs?",
    "fit digits --out m --config bad.toml": "bad.toml: not the TOML expected:",
    "fit digits --out m --labels z": "labels: got 'z' of digits, expected 'y'",
    "fit digits --out m --labels y --normal 10": "normal: got 10, which is the label of no row; expected one of 0, 1,",
    "fit digits --out m --drop [x0]": "drop: got ['x0'] of an array, expected a table with named columns",
    "fit t.csv --out m --drop [incme]": "drop: got 'incme', did you mean income?",
    "fit digits --out m --part 4/3": "part: got '4/3', expected one as 1/3 (the first of three), or test",
    "fit digits --out m --part test": "part: got 'test' of digits, which is published without one; expected one as 1/3",
    "fit digits --out m --missing ?": "missing, names: got them for digits, expected a .csv file",
    "fit t.csv --out m --missing [?,-1]": "got '[?,-1]', expected a list as [a,b], with signs such as ? in quotes",
    "fit words.csv --out m": "column 'city': got 'Bern' in row 0 (dtype String), expected numbers; likelihood=",
    "fit t.csv --out m --fit.lr -1": "lr: got -1.0, expected a number of at least 0",
    "fit t.csv --out o.json": "out: got 'o.json', which is a file, expected a folder",
    "fit t.csv --out t.csv": "out: got 't.csv', from which the rows are read, expected another name",
    "fit t.csv --out kept": "out: got 'kept', which holds a model, expected a folder without one, or --force to replace it",
    "score m t.csv --out t.csv": "out: got 't.csv', from which the rows are read, expected another name",
    "score m digits --out s.txt": "out: got 's.txt', expected a name that ends in .csv, .parquet, .npz or .npy",
    "score m digits --shards p --part 1/3": "part: got it with --shards, expected files of the model's own columns",
    "draw m --kind manifld --out a.png": "kind: got 'manifld', expected one of 'manifold',",
    "fit digits --out m --device quantum": "device: got 'quantum', expected one that torch has here",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_wrong_command_is_told_what_to_do(run: Run, command: str) -> None:
    Path("o.json").write_text('{"epochs": 3}')
    Path("bad.toml").write_text("fit: 3")
    Path("t.csv").write_text("age,income\n1,2\n3,4\n5,6\n")
    Path("kept").mkdir()
    Path("kept/model.json").write_text("{}")
    Path("words.csv").write_text("city\nBern\nChur\n")
    code, out, err = run(*command.split())
    assert (code, out) == (2, "") and not Path("m").exists()
    assert err.startswith(f"ppl-vae: {MISTAKES[command]}")
    assert err.count("\n") == 1 and len(err) < 500


def test_a_message_of_an_unknown_form_is_one_line() -> None:
    assert told("something\n  new", "fit", [], []) == "something new"
    assert nearest("Wine", ["wine", "mnist"], "") == "did you mean wine?"
