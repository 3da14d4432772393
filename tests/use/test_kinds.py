"""Things made of models, and models of the user's own parts, come back the same or are refused."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppl_vae as pv
from ppl_vae.use.kinds import KINDS, OF, RECIPES

RNG = np.random.RandomState(0)
X = (RNG.randn(40, 4) @ RNG.randn(4, 4)).astype(np.float32)
NAMES = ("x0", "x1", "x2", "x3")
NEW = X[:7] + 0.25
HOLES = np.where(RNG.rand(40, 4) < 0.2, np.nan, X)
MIXED = pd.DataFrame({"size": X[:, 0], "kind": np.where(X[:, 1] > 0, "low", "high"), "on": X[:, 2] > 0})
SMALL: dict[str, Any] = {"latent": 2, "hidden": (3,)}
QUICK: dict[str, Any] = {"parts": ({"latent": 2}, {"likelihood": "student_t"}), "hidden": (3,), "steps": 9, "epochs": 1}


def build(x: Any = X, **options: Any) -> pv.VAE:
    return pv.build(x, **SMALL | options)


def detector(x: Any = X, **options: Any) -> pv.VAEDetector:
    return pv.VAEDetector(**QUICK | {"random_state": 0} | options).fit(x)


def there_and_back(thing: Any, folder: Path, **own: Any) -> Any:
    pv.save(thing, folder)
    return pv.load(folder, **own)


def files(folder: Path) -> list[tuple[str, bytes]]:
    return sorted((file.name, file.read_bytes()) for file in folder.iterdir())


# ---- things made of models


def asked(thing: Any, rows: Any) -> list[np.ndarray]:
    """Everything that is asked of a thing."""
    if isinstance(thing, pv.Calibration):
        found = thing.decide(rows)
        return [getattr(found, name) for name in found.__annotations__]
    if isinstance(thing, pv.VAEDetector):
        return [thing.score_samples(rows), thing.predict(rows), thing.transform(rows), thing.get_feature_names_out()]
    scoring = "reconstruction_error" if isinstance(thing, pv.Autoencoder) else "iwae"
    return [pv.score(thing, rows, num_draws=3).values, pv.score(thing, rows, scoring, num_draws=3).mcse]


def same(old: np.ndarray, new: np.ndarray) -> bool:
    return np.array_equal(old, new, equal_nan=old.dtype.kind == "f")


def regret(background: Any) -> tuple[str, dict[str, Any]]:
    return "likelihood_ratio", {"background": background}


THINGS: dict[str, tuple[Callable[[], Any], Any]] = {
    "laplace": (lambda: pv.last_layer_laplace(build(), X), NEW),
    "ensemble": (lambda: pv.Ensemble([build(seed=0), build(prior="mixture"), build(weights="normal")]), NEW),
    "ensemble of PPCAs": (lambda: pv.Ensemble([pv.PPCA(2).fit(X), pv.PPCA(2).fit(X)]), NEW),
    "detector": (lambda: detector(seeds=2), NEW),
    "detector of named columns": (
        lambda: detector(pd.DataFrame(X, columns=list("abcd"))),
        pd.DataFrame(NEW, columns=[*"abcd"]),
    ),
    "detector of text": (lambda: detector(MIXED), MIXED[:7]),
    "detector of holes": (lambda: detector(HOLES), HOLES[:7]),
    "calibration": (lambda: pv.calibrate(build(), X, level=0.1, rule="conditional", delta=0.2, num_draws=3), NEW),
    "calibration of holes": (lambda: pv.calibrate(build(HOLES, nullable=True), HOLES, num_draws=3), HOLES[:9] + 0.1),
    "calibration of a label": (
        lambda: pv.calibrate(build(MIXED, label="kind", likelihood="infer"), MIXED, num_draws=3),
        MIXED[:7],
    ),
    "calibration in folds": (
        lambda: pv.calibrate(pv.Candidate(lambda seed: build(seed=seed), epochs=1), X, folds=3, num_draws=3, seed=5),
        NEW,
    ),
    "calibration of an ensemble": (lambda: pv.calibrate(pv.Ensemble([build(), build(seed=1)]), X, num_draws=3), NEW),
    "calibration of a PPCA": (lambda: pv.calibrate(pv.PPCA(2).fit(X), X, rule="tail", level=0.2), NEW),
    "calibration with a model in its score": (
        lambda: pv.calibrate(build(), X, scoring=regret(build(seed=1)), num_draws=3),
        NEW,
    ),
    "calibration with rows in its score": (
        lambda: pv.calibrate(build(), X, scoring=("typicality", {"normal": X[:20]}), num_draws=3),
        NEW,
    ),
    "calibration of a detector": (lambda: pv.calibrate(detector(), X[:20]), NEW),
    "calibration of a detector of text": (lambda: pv.calibrate(detector(MIXED), MIXED[:30]), MIXED[:7]),
    "calibration of a detector of holes": (lambda: pv.calibrate(detector(HOLES), HOLES), HOLES[:9]),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[np.ndarray]], dict[str, Any]]:
    """All of them saved, and what they were asked before: of each thing once."""
    root = tmp_path_factory.mktemp("things")
    things = {name: make() for name, (make, _) in THINGS.items()}
    for number, thing in enumerate(things.values()):
        pv.save(thing, root / str(number))
    return root, {name: asked(things[name], rows) for name, (_, rows) in THINGS.items()}, things


@pytest.mark.parametrize("name", THINGS)
def test_things_made_of_models_come_back_the_same(name: str, kept: Any, tmp_path: Path) -> None:
    root, before, things = kept
    folder = root / str(list(THINGS).index(name))
    again = pv.load(folder)
    assert type(again) is type(things[name]) and repr(again) == repr(things[name])
    for old, new in zip(before[name], asked(again, THINGS[name][1]), strict=True):
        assert old.dtype == new.dtype and same(old, new)
    pv.save(again, tmp_path / "again")
    assert files(tmp_path / "again") == files(folder)


ANEW = """
import sys, torch, numpy as np
torch.set_num_threads(1)
import ppl_vae as pv
from tests.use.test_kinds import THINGS, asked
for number, (_, rows) in enumerate(THINGS.values()):
    found = asked(pv.load(f"{sys.argv[1]}/{number}"), rows)
    np.savez(f"{sys.argv[1]}/{number}.npz", *(x.astype(str) if x.dtype == object else x for x in found))
"""


def test_they_do_in_a_fresh_process(kept: Any) -> None:
    root, before, _ = kept
    where = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", ANEW, str(root)], cwd=where, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for number, name in enumerate(THINGS):
        with np.load(root / f"{number}.npz") as found:
            for old, new in zip(before[name], found.values(), strict=True):
                assert same(old.astype(new.dtype), new), name


def test_a_calibration_is_asked_on_without_a_model_run(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its rows nor its models are needed to load it, and nothing is scored."""
    root, _, things = kept
    monkeypatch.setattr("ppl_vae.criticism.calibration.score", None)
    calibration = pv.load(root / str(list(THINGS).index("calibration in folds")))
    assert calibration.rows == 40 and calibration.guarantee == things["calibration in folds"].guarantee


def test_a_detector_has_its_parameters_and_attributes(kept: Any) -> None:
    root, _, things = kept
    name = "detector of named columns"
    old, new = things[name], pv.load(root / str(list(THINGS).index(name)))
    assert old.get_params() == new.get_params()
    assert old.n_features_in_ == new.n_features_in_ and (old.feature_names_in_ == new.feature_names_in_).all()
    assert old.offset_ == new.offset_ and [m[1:] for m in old.members_] == [m[1:] for m in new.members_]
    new.fit(X)  # and it can be fitted again


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: detector(random_state=np.random.RandomState(0)), r"random_state: got RandomState\(MT19937\)"),
        (
            lambda: detector(parts=({"likelihood": dist.StudentT},)),
            r"parts.0.likelihood: got <class 'pyro.distributions",
        ),
        (
            lambda: pv.calibrate(build(), X, scoring=("typicality", {"normal": [len]})),
            "options.scoring.1.normal.0: got <b",
        ),
        (lambda: pv.calibrate(Mean(), X), "save: got a Mean, expected"),
    ],
)
def test_options_that_no_file_holds_are_named(
    make: Callable[[], Any], message: str, monkeypatch: Any, tmp_path: Path
) -> None:
    if "scoring" in message:
        monkeypatch.setattr("ppl_vae.criticism.calibration.Fold.judged", lambda *_: (np.zeros(40), np.zeros(40)))
        monkeypatch.setattr("ppl_vae.criticism.calibration._expect_other_rows", lambda *_: None)
    with pytest.raises(pv.OptionError, match=message):
        pv.save(make(), tmp_path / "model")
    assert not (tmp_path / "model").exists()


class Mean:
    """A detector of another library."""

    def score_samples(self, x: Any) -> np.ndarray:
        return np.asarray(x).mean(1)


def test_every_kind_has_a_type_or_a_recipe() -> None:
    assert set(KINDS) == {*OF.values(), *RECIPES}
    for name in OF:
        module, _, of = name.rpartition(".")
        assert hasattr(__import__(module, fromlist=[of]), of)


# ---- the user's own parts


class Encoder(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return dist.Normal(super().forward(x), 0.5).to_event(1)


class Decoder(nn.Linear):
    def forward(self, z: Tensor) -> Any:
        return dist.StudentT(4, super().forward(z), 1).to_event(1)


class Gauss(nn.Module):
    """A prior with parameters."""

    def __init__(self, k: int = 2) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.randn(k))

    def forward(self) -> Any:
        return dist.Normal(self.loc, 1.0).to_event(1)


class Pooled(Gauss):
    """A prior with a site that all rows share."""

    def global_sites(self) -> Tensor:
        import pyro

        return pyro.sample("tau", dist.HalfNormal(torch.ones(()) * self.loc.exp().mean()))

    def forward(self, shared: Tensor) -> Any:  # type: ignore[override]
        return dist.Normal(self.loc, 1 + shared[..., None]).to_event(1)


class Laplace(nn.Module):
    """A family with a parameter and a constant."""

    outputs = 1

    def __init__(self, d: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.randn(d))
        self.factor = torch.arange(1.0, d + 1)  # no buffer: it comes of the constructor

    def forward(self, loc: Tensor) -> Any:
        return dist.Laplace(loc * self.factor, self.raw.exp()).to_event(1)


class Narrow(nn.Module):
    """A posterior with a parameter."""

    outputs = 1

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.randn(2))

    def forward(self, loc: Tensor) -> Any:
        return dist.Normal(loc, self.raw.exp()).to_event(1)


def laplace() -> Any:
    return dist.Laplace(torch.zeros(2), 0.5).to_event(1)


def own_vae(schema: Any = None) -> pv.VAE:
    return pv.VAE(Encoder(4, 2), Decoder(2, 4), laplace, schema)


OWN: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Any]]]] = {
    "a VAE": (own_vae, lambda: {"encoder": Encoder(4, 2), "decoder": Decoder(2, 4), "prior": laplace}),
    "a VAE with a schema": (
        lambda: own_vae(pv.Schema.fit(X)),
        lambda: {"encoder": Encoder(4, 2), "decoder": Decoder(2, 4), "prior": laplace},
    ),
    "an autoencoder": (
        lambda: pv.Autoencoder(nn.Linear(4, 2), nn.Linear(2, 4)),
        lambda: {"encoder": nn.Linear(4, 2), "decoder": nn.Linear(2, 4)},
    ),
    "a distribution as prior": (lambda: build(prior=laplace()), lambda: {"prior": laplace()}),
    "a callable as prior": (lambda: build(prior=laplace), lambda: {"prior": laplace}),
    "a module as prior": (lambda: build(prior=Gauss()), lambda: {"prior": Gauss()}),
    "a module with a shared site as prior": (lambda: build(prior=Pooled()), lambda: {"prior": Pooled()}),
    "a class as likelihood": (lambda: build(likelihood=dist.Cauchy), lambda: {"likelihood": dist.Cauchy}),
    "a callable as likelihood": (lambda: build(likelihood=Laplace), lambda: {"likelihood": Laplace}),
    "likelihoods by column": (
        lambda: build(likelihood={"x0": "normal", "x1": Laplace, "x2": dist.StudentT, "x3": Laplace}),
        lambda: {"likelihood": {"x1": Laplace, "x2": dist.StudentT, "x3": Laplace}},
    ),
    "one likelihood by column": (
        lambda: build(likelihood=dict.fromkeys(NAMES, Laplace)),
        lambda: {"likelihood": dict.fromkeys(NAMES, Laplace)},
    ),
    "a module as posterior": (lambda: build(posterior=Narrow()), lambda: {"posterior": Narrow()}),
    "all of these": (
        lambda: build(prior=Gauss(), likelihood=Laplace, posterior=Narrow()),
        lambda: {"prior": Gauss(), "likelihood": Laplace, "posterior": Narrow()},
    ),
    "in float64": (
        lambda: build(prior=Gauss(), likelihood=dist.Cauchy).double(),
        lambda: {"prior": Gauss().double(), "likelihood": dist.Cauchy},
    ),
    "after Laplace's approximation": (
        lambda: pv.last_layer_laplace(build(prior=Gauss()), X),
        lambda: {"prior": Gauss()},
    ),
    "an ensemble": (
        lambda: pv.Ensemble([build(prior=Gauss()), build(), build(prior=laplace)]),
        lambda: {"0/prior": Gauss(), "2/prior": laplace},
    ),
    "a calibration": (
        lambda: pv.calibrate(pv.Ensemble([build(prior=Gauss())]), X, num_draws=3),
        lambda: {"0/0/prior": Gauss()},
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_own_parts_are_handed_in(name: str, tmp_path: Path) -> None:
    make, parts = OWN[name]
    thing, own = make(), parts()
    again = there_and_back(thing, tmp_path, **own)
    for old, new in zip(asked(thing, NEW), asked(again, NEW), strict=True):
        assert same(old, new)
    modules = [part for part in own.values() if isinstance(part, nn.Module)]
    held = {id(module) for module in again.modules()} if isinstance(again, nn.Module) else None
    assert held is None or all(id(module) in held for module in modules)  # themselves, and no copies
    if name == "a VAE":
        pv.fit(again, X, epochs=1, progress=False)  # goes on


@pytest.mark.parametrize("name", OWN)
def test_what_is_wanted_is_said(name: str, tmp_path: Path) -> None:
    make, parts = OWN[name]
    pv.save(make(), tmp_path)
    with pytest.raises(pv.OptionError) as caught:
        pv.load(tmp_path)
    assert "got load(path), expected load(path, " in str(caught.value) and "<what was '" in str(caught.value)
    assert all(key in str(caught.value) for key in parts())


def test_messages_are_calls_that_work(tmp_path: Path) -> None:
    pv.save(build(prior=laplace(), likelihood={"x1": dist.StudentT}), tmp_path / "a")
    pv.save(OWN["an ensemble"][0](), tmp_path / "b")
    with pytest.raises(pv.OptionError) as caught:
        pv.load(tmp_path / "a", prior=laplace)
    assert str(caught.value).endswith(
        "model.json: got load(path, prior=...), expected load(path, likelihood={'x1': <what was 'StudentT'>}, "
        "prior=<what was 'Laplace'>)"
    )
    with pytest.raises(pv.OptionError) as caught:
        pv.load(tmp_path / "b", prior=laplace)
    assert "expected load(path, **{'0/prior': <what was 'Gauss'>, '2/prior': <what was 'laplace'>})" in str(
        caught.value
    )


@pytest.mark.parametrize(
    "own",
    [
        {"prior": laplace},
        {"prior": laplace, "likelihood": Laplace},
        {"likelihood": {"x1": Laplace}, "encoder": Encoder(4, 2)},
    ],
)
def test_nothing_else_is_taken(own: dict[str, Any], tmp_path: Path) -> None:
    pv.save(build(), tmp_path)
    with pytest.raises(pv.OptionError, match=r"expected load\(path\)"):
        pv.load(tmp_path, **own)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"encoder": Encoder(4, 3)}, r"shape \(2, 4\) for 'encoder.weight', expected .* \(3, 4\)"),
        ({"encoder": Encoder(4, 2).double()}, r"got torch.float32 .* expected torch.float64"),
        ({"decoder": nn.Sequential(Decoder(2, 4))}, r"tensors other than .*'decoder.0.bias', .*'decoder.bias'"),
        ({"encoder": 3}, "encoder: got 3, expected a callable"),
    ],
)
def test_parts_that_do_not_fit_stay_as_they_were(own: dict[str, Any], message: str, tmp_path: Path) -> None:
    pv.save(own_vae(), tmp_path)
    handed = {"encoder": Encoder(4, 2), "decoder": Decoder(2, 4), "prior": laplace} | own
    before = {name: copy.deepcopy(part) for name, part in handed.items()}
    with pytest.raises(pv.ModelFileError, match=message):
        pv.load(tmp_path, **handed)
    for name, part in handed.items():
        if isinstance(part, nn.Module):
            old = before[name].state_dict()
            assert all(torch.equal(value, old[key]) for key, value in part.state_dict().items())


def test_one_module_in_two_places_is_refused_and_stays_as_it_was(tmp_path: Path) -> None:
    pv.save(pv.Ensemble([build(prior=Gauss()), build(prior=Gauss())]), tmp_path)
    gauss = Gauss()
    before = gauss.loc.detach().clone()
    with pytest.raises(pv.ModelFileError, match=r"got the tensors .'0/prior.loc'"):
        pv.load(tmp_path, **{"0/prior": gauss, "1/prior": gauss})
    assert torch.equal(gauss.loc, before)


def test_tied_modules_stay_tied(tmp_path: Path) -> None:
    def tied() -> dict[str, Any]:
        encoder, decoder = Encoder(2, 2), Decoder(2, 2)
        decoder.weight = encoder.weight
        return {"encoder": encoder, "decoder": decoder, "prior": laplace}

    again = there_and_back(pv.VAE(**tied()), tmp_path, **tied())
    assert again.encoder.weight is again.decoder.weight


def test_an_own_model_that_was_changed_is_refused(tmp_path: Path) -> None:
    vae = build(prior=Gauss(), likelihood=Laplace)
    vae.decoder.net[1] = nn.ReLU()
    with pytest.raises(pv.OptionError, match="changed after it was built"):
        pv.save(vae, tmp_path)


def test_a_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Extra(Gauss):
        def get_extra_state(self) -> Any:
            return {"a": 1}

        def set_extra_state(self, state: Any) -> None:
            pass

    with pytest.raises(pv.OptionError, match=r"\['prior._extra_state'\]"):
        pv.save(build(prior=Extra()), tmp_path / "model")


def test_the_same_objects_give_the_same_bytes(tmp_path: Path) -> None:
    vae = build(prior=Gauss(), likelihood=Laplace)
    again = there_and_back(vae, tmp_path / "a", prior=Gauss(), likelihood=Laplace)
    pv.save(again, tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
