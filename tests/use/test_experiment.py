"""An experiment's file: what it means, and that whatever means nothing is refused by name."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import ppl_vae as pv
from ppl_vae.errors import MissingFileError, OptionError
from ppl_vae.use.experiment import Experiment, experiment

ROWS = np.random.RandomState(0).randn(50, 4).astype("float32")


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Reads a text as an experiment."""

    def call(text: str) -> Experiment:
        (tmp_path / "experiment.yaml").write_text(text)
        return experiment(tmp_path / "experiment.yaml")

    return call


def test_one_model_by_its_defaults(read: Any) -> None:
    plan = read("data: digits\ntest: 0.2")
    spec = {"model": {}, "fit": {}, "objective": "elbo", "posterior": "amortized"}
    assert plan == Experiment("digits", 0.2, 0, [], [], {"model": spec}, {"seeds": [0, 1, 2]})


WHOLE = """
data: table.csv
test: others.csv
missing: "?"
names: [a, b]
split_seed: 3
model: {latent: 2, hidden: [8]}
fit: {epochs: 3, lr: 1e-3}
posterior: {name: svi, steps: 10}
candidates:
  small: {}
  large: {model: {hidden: [16, 8]}, objective: iwae}
grid:
  model.latent: [1, 3]
  objective: [elbo, {name: renyi, alpha: 0.5}]
seeds: [4, 5]
budget: {seconds: 2}
num_draws: 7
evidence: {name: refit, hidden: [4]}
"""


def test_a_grid_of_candidates(read: Any) -> None:
    plan = read(WHOLE)
    assert (plan.data, plan.test, plan.missing, plan.names, plan.split_seed) == (
        "table.csv",
        "others.csv",
        ["?"],
        ["a", "b"],
        3,
    )
    assert plan.settings == {
        "seeds": [4, 5],
        "budget": {"seconds": 2},
        "num_draws": 7,
        "evidence": ("refit", {"hidden": (4,)}),
    }
    tails = ["latent=1, objective=elbo", "latent=1, objective=renyi alpha=0.5"]
    tails += [tail.replace("latent=1", "latent=3") for tail in tails]
    assert list(plan.specs) == [f"{size}, {tail}" for size in ("small", "large") for tail in tails]
    assert plan.specs["large, latent=3, objective=renyi alpha=0.5"] == {
        "model": {"latent": 3, "hidden": [16, 8]},
        "fit": {"epochs": 3, "lr": 0.001},
        "objective": ("renyi", {"alpha": 0.5}),
        "posterior": ("svi", {"steps": 10}),
    }
    assert plan.specs["small, latent=1, objective=elbo"]["model"] == {"latent": 1, "hidden": [8]}


def test_candidates_are_made_of_the_rows_to_train_on(read: Any) -> None:
    plan = read(
        "data: x\ntest: 0.5\nmodel: {hidden: [4]}\ngrid: {model.latent: [1, 2], fit.lr: [1e-2]}\nobjective: iwae"
    )
    candidates = plan.candidates(ROWS)
    assert list(candidates) == ["latent=1, lr=0.01", "latent=2, lr=0.01"]
    one = pickle.loads(pickle.dumps(candidates["latent=2, lr=0.01"]))
    assert (one.objective, one.posterior, one.fit) == ("iwae", "amortized", {"lr": 0.01})
    made, expected = one.make(7), pv.build(ROWS, latent=2, hidden=(4,), seed=7)
    assert made.recipe == expected.recipe
    assert all(np.array_equal(a.detach(), b.detach()) for a, b in zip(made.parameters(), expected.parameters()))


def test_rows_are_split_by_a_share(read: Any) -> None:
    plan = read("data: x\ntest: 0.3")
    train, test = plan.split(ROWS)
    assert len(train) == 35 and len(test) == 15
    assert np.array_equal(np.unique(np.concatenate([train, test]), axis=0), np.unique(ROWS, axis=0))
    assert np.array_equal(plan.split(ROWS)[1], test)
    other = read("data: x\ntest: 0.3\nsplit_seed: 1").split(ROWS)[1]
    assert not np.array_equal(other, test)


def test_rows_of_every_kind_are_split(read: Any, tmp_path: Path) -> None:
    plan, frame = read("data: x\ntest: 0.2"), pd.DataFrame({"a": np.arange(10.0), "b": list("uvuvuvuvuv")})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    np.save(tmp_path / "t.npy", ROWS[:10])
    expected = plan.split(frame)
    for ending in ("csv", "parquet"):
        for part, same in zip(plan.split(tmp_path / f"t.{ending}"), expected):
            assert part.astype({"b": object}).equals(same.astype({"b": object}))  # text, not codes
    assert [len(part) for part in plan.split(tmp_path / "t.npy")] == [8, 2]
    digits = pv.datasets.load("digits")
    train, test = plan.split(digits)
    assert len(train.x) == len(train.y) == 1438 and len(test.x) == 359 and train.schema.shape == digits.schema.shape


def test_a_file_or_a_published_part_to_test_on(read: Any) -> None:
    assert read("data: x\ntest: y.npy").split(ROWS, ROWS[:5])[1] is not None
    published = pv.datasets.load("digits")._replace(test_x=ROWS)
    train, test = read("data: digits").split(published)
    assert train is published and test is ROWS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: x\nmodel: {latent: 2}\nbuget: {seconds: 1}", "got the key 'buget', expected some of data, test,"),
        (
            "data: x\ncandidates: {a: {modle: {}}}",
            "candidate 'a': got the key 'modle', expected some of model, objective",
        ),
        ("data: x\ndata: y", "the key 'data' stands twice"),
        ("data: x\nmodel: {latent: 1, latent: 2}", "the key 'latent' stands twice"),
        (
            "data: x\ngrid: {latent: [1]}",
            "grid: got the key 'latent', expected objective, posterior, model.NAME or fit.NAME",
        ),
        ("data: x\ngrid: {model: [1]}", "grid: got the key 'model'"),
        ("data: x\ngrid: {objective.k: [1]}", "grid: got the key 'objective.k'"),
        ("data: x\ngrid: {model.latent: 3}", "grid, model.latent: got 3, expected a list"),
        ("data: x\ngrid: {model.latent: []}", r"grid, model.latent: got \[\], expected a list"),
        ("data: x\nmodel: {seed: 1}", "model: got the key 'seed', expected `seeds` of the experiment"),
        ("data: x\ngrid: {fit.seed: [1]}", "fit: got the key 'seed'"),
        ("test: 0.5", "data: got None, expected a name"),
        ("data: 3", "data: got 3"),
        ("data: x\nobjective: {alpha: 1}", "objective: got {'alpha': 1}, expected a name"),
        ("data: x\nevidence: 3", "evidence: got 3"),
        ("data: x\nseeds: 3", "seeds: got 3, expected a list"),
        ("data: x\nseeds: [a]", "seeds: got 'a', expected a whole number"),
        ("data: x\ntest: -1", "test: got -1, expected a number above 0"),
        ("data: x\nsplit_seed: a", "split_seed: got 'a'"),
        ("data: x\nnames: [1]", "names: got 1, expected a name"),
        ("- data", "got .'data'., expected names with values"),
        ("", "got None, expected names with values"),
        ("data: [", "not the YAML expected"),
        ("data: !!python/object/apply:colorsys.rgb_to_hsv [1, 1, 1]", "not the YAML expected"),
        ("1: x", "expected names with values"),
    ],
)
def test_what_means_nothing_is_refused(read: Any, text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        read(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: {latnt: 2}",
            r"candidate 'model': build: got the options \['latnt'\].*options of every model: latent, hidden",
        ),
        (
            "fit: {epoch: 2}",
            r"candidate 'model': candidate: got the fit options \['epoch'\], expected some of \['batch_size'[^()]*$",
        ),
        ("objective: guess", r"candidate 'model': objective: got 'guess', expected one of 'elbo'[^()]*$"),
        (
            "objective: {name: renyi, beta: 1}",
            r"candidate 'model': objective: got .* expected options among \['alpha'\]$",
        ),
        ("grid: {model.prior: [vamp, guess]}", "candidate 'prior=guess': prior: got 'guess', expected one of"),
        ("model: {hidden: 3}", "candidate 'model': hidden: got 3"),
    ],
)
def test_options_that_no_model_has_are_refused_before_any_fit(read: Any, text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        read(f"data: x\ntest: 0.5\n{text}").candidates(ROWS)


@pytest.mark.parametrize("given", ["", "test: 1", "test: 1.5"])
def test_a_share_that_is_none(read: Any, given: str) -> None:
    with pytest.raises(OptionError, match=r"test: got .*, expected a share in \(0, 1\)"):
        read(f"data: x\n{given}").split(ROWS)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nowhere\.yaml"):
        experiment(tmp_path / "nowhere.yaml")
