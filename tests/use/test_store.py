"""A saved model comes back the same, in any process, and nothing damaged, forged or unfinished passes for it."""

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import ppl_vae as pv
from ppl_vae import pairs
from ppl_vae.files import digest, to_json
from ppl_vae.use import store
from tests.use.golden import make as golden


def benchmark(name: str) -> Any:
    """A script of `benchmarks/` as a module."""
    spec = spec_from_file_location(name, Path(__file__).parents[2] / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILES = benchmark("files")
RNG = np.random.RandomState(0)
ROWS = RNG.randn(40, 6).astype(np.float32)
GREY = RNG.rand(40, 6).astype(np.float32)
BITS = (GREY > 0.5).astype(np.float32)
IMAGES = RNG.rand(20, 8, 8).astype(np.float32)
FRAME = pd.DataFrame(RNG.randn(40, 3), columns=["a", "été", "c"])

MODELS: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "normal": (lambda: pv.build(ROWS, latent=2, hidden=(8, 4)), ROWS, "reconstruction_probability"),
    "shared scale": (
        lambda: pv.build(ROWS, latent=2, hidden=(8,), scale="shared", scale_link="log_variance"),
        ROWS,
        "elbo",
    ),
    "fixed scale": (lambda: pv.build(ROWS, latent=2, hidden=(8,), scale=0.5, standardize="center"), ROWS, "iwae"),
    "linear": (lambda: pv.build(ROWS, latent=2, hidden=(), scale="feature"), ROWS, "elbo"),
    "bernoulli": (lambda: pv.build(BITS, latent=2, likelihood="bernoulli", activation="relu"), BITS, "elbo"),
    "grey": (lambda: pv.build(GREY, latent=2, likelihood="continuous_bernoulli"), GREY, "reconstruction_probability"),
    "delta": (
        lambda: pv.build(ROWS, latent=2, posterior="delta", prior="flat", scale=1.0),
        ROWS,
        "reconstruction_error",
    ),
    "cnn": (
        lambda: pv.build(IMAGES, latent=2, nets="cnn", hidden=(8,), channels=(2, 3), likelihood="continuous_bernoulli"),
        IMAGES,
        "elbo",
    ),
    "double": (lambda: pv.build(ROWS, latent=2).double(), ROWS, "elbo"),
    "weights": (lambda: pv.build(ROWS, latent=2, hidden=(8,), weights="normal", weight_scale=0.5), ROWS, "iwae"),
    "frame": (lambda: pv.build(FRAME, latent=2), FRAME, "elbo"),
    "pca": (lambda: pv.PCA(2).fit(ROWS), ROWS, "reconstruction_error"),
    "ppca": (lambda: pv.PPCA(2).fit(FRAME), FRAME, "elbo"),
}


def small() -> pv.VAE:
    return pv.build(ROWS, latent=2, hidden=(3,))


def scores(vae: Any, data: Any = ROWS, scoring: str = "reconstruction_probability") -> np.ndarray:
    return pv.score(vae, data, scoring, num_draws=4).values


def weights_file(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def refusal(folder: Path) -> str:
    """The message of the error that loading gives."""
    with pytest.raises(pv.ModelFileError) as caught:
        pv.load(folder)
    return str(caught.value)


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_model_comes_back_the_same(kind: str, tmp_path: Path) -> None:
    make, data, scoring = MODELS[kind]
    vae = make()
    pv.save(vae, tmp_path / "model")
    back = pv.load(tmp_path / "model")
    assert type(back) is type(vae) and str(back) == str(vae)
    assert back.schema == vae.schema and back.recipe == vae.recipe
    for (name, a), (other, b) in zip(vae.state_dict().items(), back.state_dict().items(), strict=True):
        assert name == other and a.dtype == b.dtype and torch.equal(a, b)
    assert [(n, p.requires_grad) for n, p in back.named_parameters()] == [
        (n, p.requires_grad) for n, p in vae.named_parameters()
    ]
    assert np.array_equal(scores(vae, data, scoring), scores(back, data, scoring))


def test_a_loaded_model_trains_on_and_saves_to_the_same_bytes(tmp_path: Path) -> None:
    vae = small()
    pv.fit(vae, ROWS, epochs=1, progress=False)
    pv.save(vae, tmp_path / "a")
    back = pv.load(tmp_path / "a")
    pv.save(back, tmp_path / "b")
    files = [sorted((p.name, p.read_bytes()) for p in (tmp_path / name).iterdir()) for name in "ab"]
    assert files[0] == files[1]
    before = scores(back)
    pv.fit(back, ROWS, epochs=1, progress=False)
    assert not np.array_equal(before, scores(back))


def test_save_and_load_leave_the_random_state(tmp_path: Path) -> None:
    vae, before = small(), torch.get_rng_state()
    pv.save(vae, tmp_path)
    pv.load(tmp_path)
    assert torch.equal(before, torch.get_rng_state())


WITHOUT_PICKLE = """
import sys, numpy as np, torch, ppl_vae as pv
folder, loading, asked = sys.argv[1], [False], []
sys.addaudithook(lambda event, args: asked.append(args) if loading[0] and event.startswith("pickle.") else None)
def refuse(*args, **kwargs): raise SystemExit("torch.load was called")
torch.load = torch.serialization.load = refuse
torch.set_num_threads(1)
loading[0] = True
vae = pv.load(folder + "/model")
loading[0] = False
if asked: raise SystemExit(f"unpickled {asked}")
np.save(folder + "/scores.npy", pv.score(vae, np.load(folder + "/x.npy"), num_draws=4).values)
"""


def test_scores_are_bit_equal_in_a_process_that_cannot_unpickle(tmp_path: Path) -> None:
    vae = small()
    pv.fit(vae, ROWS, epochs=2, progress=False)
    pv.save(vae, tmp_path / "model")
    np.save(tmp_path / "x.npy", ROWS)
    run = subprocess.run([sys.executable, "-c", WITHOUT_PICKLE, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert np.array_equal(scores(vae), np.load(tmp_path / "scores.npy"))


def test_every_changed_byte_is_caught(tmp_path: Path) -> None:
    pv.save(small(), tmp_path)
    files, random = sorted(tmp_path.iterdir()), np.random.RandomState(1)
    assert len(files) == 2
    for turn in range(60):
        file = files[turn % 2]
        raw = file.read_bytes()
        at, by = random.randint(len(raw)), 1 + random.randint(255)
        file.write_bytes(raw[:at] + bytes([raw[at] ^ by]) + raw[at + 1 :])
        with pytest.raises(pv.ModelFileError):
            pv.load(tmp_path)
        file.write_bytes(raw)
    pv.load(tmp_path)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_caught(tmp_path: Path, which: int, share: float) -> None:
    pv.save(small(), tmp_path)
    file = sorted(tmp_path.iterdir())[which]
    raw = file.read_bytes()
    file.write_bytes(raw[: int(share * len(raw))])
    assert str(file) in refusal(tmp_path)
    file.write_bytes(raw + b" ")
    assert str(file) in refusal(tmp_path)


def test_what_is_absent_is_said(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(pv.MissingFileError, match=re.escape(str(folder / "model.json"))):
            pv.load(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(pv.MissingFileError, match="expected the description of a saved model"):
        pv.load(tmp_path / "file")
    pv.save(small(), tmp_path / "model")
    weights_file(tmp_path / "model").unlink()
    with pytest.raises(pv.ModelFileError, match="expected the weights of a saved model"):
        pv.load(tmp_path / "model")


PRODUCT = benchmark("product")
SOUND, REFERENCE = ("normal", "normal", "mean_field"), PRODUCT.PARTNERS
COMBINATIONS = {
    *((SOUND[0], likelihood, SOUND[2]) for likelihood in PRODUCT.FACTORS[1]),
    *((prior, SOUND[1], REFERENCE[PRODUCT.SPACES.get(prior, "reals")][1]) for prior in PRODUCT.FACTORS[0]),
    *((REFERENCE[PRODUCT.SPACES.get(posterior, "reals")][0], "mixed", posterior) for posterior in PRODUCT.FACTORS[2]),
}


def test_every_part_by_name_comes_back_the_same_in_one_fresh_process(tmp_path: Path) -> None:
    """Scores and log densities to the bit; `benchmarks/files.py registry` takes every combination."""
    for number, names in enumerate(sorted(COMBINATIONS)):
        FILES.keep(*FILES.combination(PRODUCT, names), tmp_path / str(number))
    found = FILES.loaded_anew([tmp_path / str(number) for number in range(len(COMBINATIONS))])
    assert len(found) == len(COMBINATIONS) > 50 and set(found.values()) == {True}, found


GOLDEN = [(version, name) for version, models in golden.MODELS.items() for name in models]


@pytest.mark.parametrize(("version", "name"), GOLDEN)
def test_files_of_every_format_give_the_scores_that_they_gave(version: int, name: str, tmp_path: Path) -> None:
    folder = Path(golden.__file__).parent / str(version) / name
    data, _ = golden.MODELS[version][name]
    before = np.load(folder / "scores.npy")
    own = golden.OWN.get((version, name), {})
    thing = pv.load(folder, **own)
    assert np.allclose(golden.answers(thing, data), before, rtol=1e-5, atol=1e-5)
    pv.save(thing, tmp_path)
    assert json.loads((tmp_path / "model.json").read_text())["format_version"] == store.FORMAT_VERSION
    assert np.array_equal(golden.answers(pv.load(tmp_path, **own), data), golden.answers(thing, data))


def forge(folder: Path, **changes: Any) -> None:
    """Change the content of model.json and make its digest right again."""
    file = folder / "model.json"
    content = {**json.loads(file.read_text()), **changes}
    content.pop("sha256")
    file.write_text(to_json({**content, "sha256": digest(to_json(content).encode())}))


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    pv.save(small(), tmp_path)
    forge(tmp_path, format_version=6)
    assert "newer format_version 6, expected at most 5; upgrade ppl_vae" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "got a JSON list, expected names with values"),
        ('{"format_version": 0}', "format_version 0, expected 1 to 5"),
        ('{"format_version": 1}', "got the keys"),
        ('{"format_version": 1, "format_version": 1}', "a key stands twice"),
        ("{", "not the JSON expected"),
        ("[" * 20_000, "not the JSON expected"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "model.json").write_text(text)
    assert message in refusal(tmp_path)


def test_nan_is_refused(tmp_path: Path) -> None:
    pv.save(small(), tmp_path)
    file = tmp_path / "model.json"
    file.write_text(re.sub(r'"latent": 2', '"latent": NaN', file.read_text()))
    assert "finite" in refusal(tmp_path)


def test_a_model_file_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "model.json").open("wb") as file:
        file.truncate(store.PAIR.most + 1)
    assert f"expected at most {store.PAIR.most}" in refusal(tmp_path)


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PAIR", store.PAIR._replace(values=20))
    with pytest.raises(pv.OptionError, match="expected at most"):
        pv.save(small(), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_forged_content_is_an_error_of_ours(tmp_path: Path) -> None:
    vae = small()
    pv.save(vae, tmp_path)
    right = json.loads((tmp_path / "model.json").read_text())
    model, weights = right["model"], right["weights"]
    recipe, schema = model["recipe"], model["schema"]
    forgeries: tuple[dict[str, Any], ...] = (
        {"extra": 1},
        {"model": []},
        *(
            {"model": {**model, **changes}}
            for changes in (
                {"extra": 1},
                {"parts": {}},
                {"kind": "laplace"},
                {"recipe": []},
                {"recipe": {**recipe, "hidden": [4]}},  # other shapes than the weights
                {"recipe": {**recipe, "latent": "2"}},
                {"recipe": {**recipe, "unknown": 1}},
                {"kind": "pca", "recipe": {"latent": 2}},
                {"schema": {**schema, "unknown": 1}},
                {"schema": {**schema, "loc": schema["loc"][1:]}},
                {"schema": {**schema, "scale": [-1.0] * 6}},
                {"schema": {**schema, "shape": [2, 2]}},
                {"schema": {**schema, "names": [1, 2, 3, 4, 5, 6]}},
            )
        ),
        {"weights": {"sha256": "../" * 20, "size": 1}},
        {"weights": None},
    )
    for changes in forgeries:
        forge(tmp_path, **changes)
        assert str(tmp_path) in refusal(tmp_path), changes
        (tmp_path / "model.json").write_text(to_json(right))
    assert weights["size"] == weights_file(tmp_path).stat().st_size
    assert np.array_equal(scores(vae), scores(pv.load(tmp_path)))


@pytest.mark.parametrize("name", FILES.HOSTILE)
def test_hostile_folders_are_refused_and_no_canary_sings(name: str, tmp_path: Path) -> None:
    folder = FILES.victim(tmp_path)
    FILES.HOSTILE[name](folder, tmp_path / "canary")
    with pytest.raises((pv.ModelFileError, pv.OptionError)) as caught:
        pv.load(folder)
    assert str(folder) in str(caught.value) and len(str(caught.value)) < 3000
    assert not (tmp_path / "canary").exists()


def test_the_payload_of_these_would_be_heard(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(FILES.Payload(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def test_mutated_folders_are_refused_or_the_same() -> None:
    found = FILES.mutations(200) + FILES.forged(100)
    assert sum(found.values()) == 300 and not [name for name in found if FILES.bad(name)], found
    assert len({name.partition(":")[0] for name in found}) > 6  # of every kind


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_killed_save_leaves_the_old_model_or_the_new() -> None:
    found = FILES.killed(5, hidden=200)
    assert found["first model"] + found["second model"] == 5 and not [name for name in found if FILES.bad(name)], found
    assert found["files left after one more save"] == 2


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """A disk that is full. Python ignores SIGXFSZ, so that a write fails instead."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("which", ["weights", "model.json"])
def test_a_full_disk_leaves_the_model_before_and_nothing_else(tmp_path: Path, which: str) -> None:
    first, second = small(), pv.build(ROWS, latent=2, hidden=(3,), seed=1)
    pv.save(first, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    if which == "model.json":
        second = pv.PPCA(1).fit(ROWS)  # of few weights
    size = 100 if which == "weights" else 900
    with no_file_above(size), pytest.raises(pv.ModelFileError, match=re.escape(f"{tmp_path}: could not be written")):
        pv.save(second, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert np.array_equal(scores(first), scores(pv.load(tmp_path)))
    pv.save(second, tmp_path)
    assert type(pv.load(tmp_path)) is type(second)


def test_a_folder_that_is_read_only_is_an_error_of_ours(tmp_path: Path) -> None:
    first = small()
    pv.save(first, tmp_path)
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write to every folder")
        with pytest.raises(pv.ModelFileError, match="could not be written"):
            pv.save(pv.build(ROWS, latent=2, hidden=(3,), seed=1), tmp_path)
        assert len(list(tmp_path.iterdir())) == 2 and np.array_equal(scores(first), scores(pv.load(tmp_path)))
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("writer", ["write_bytes", "write_text"])
def test_an_interrupted_save_leaves_the_model_before(
    tmp_path: Path, writer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = small()
    pv.save(first, tmp_path)
    second = pv.build(ROWS, latent=2, hidden=(3,), seed=1)

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pairs, writer, interrupt)
        pv.save(second, tmp_path)
    assert np.array_equal(scores(first), scores(pv.load(tmp_path)))
    pv.save(second, tmp_path)
    assert np.array_equal(scores(second), scores(pv.load(tmp_path)))
    assert len(list(tmp_path.iterdir())) == 2  # nothing stale stays


def test_other_files_of_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.safetensors").write_text("mine")
    pv.save(small(), tmp_path)
    pv.save(pv.PCA(2).fit(ROWS), tmp_path)
    assert (tmp_path / "notes.safetensors").read_text() == "mine"
    assert isinstance(pv.load(tmp_path), pv.PCA)


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(pv.ModelFileError, match="could not be written"):
        pv.save(small(), tmp_path / "file")


def changed() -> pv.VAE:
    vae = small()
    vae.decoder.net[1] = torch.nn.ReLU()
    return vae


class Further(pv.VAE):
    """May hold anything."""


def stored() -> pv.VAE:
    """A program with a parameter of its own, which no module has."""
    programs = [
        lambda x: dist.Normal(x[..., :1], 1.0).to_event(1),
        lambda: dist.Normal(torch.zeros(1), 1.0).to_event(1),
    ]
    scale = partial(pyro.param, "scale", lambda: torch.ones(6), constraint=constraints.positive)
    vae = pv.VAE(programs[0], lambda z: dist.Normal(z, scale()).to_event(1), programs[1])
    pv.score(vae, ROWS, num_draws=1)
    return vae


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pv.PCA(2), "got a PCA, expected a model that"),
        (lambda: {"weights": 1}, "got a dict, expected a model that"),
        (lambda: Further(*[lambda: None] * 3), "got a Further, expected"),
        (pv.VAEDetector, r"not fitted, expected .fit\(X\) first"),
        (changed, r"changed after it was built.*save the state_dict\(\)"),
        (stored, r"parameters \['scale'\] in Pyro's store"),
        (lambda: pv.build(ROWS, latent=2, prior="student_t", df=torch.tensor(5.0)), r"recipe.df: got tensor\(5.\)"),
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path: Path, make: Callable[[], Any], message: str) -> None:
    with pytest.raises(pv.OptionError, match=message):
        pv.save(make(), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_nothing_of_the_machine_is_in_the_file(tmp_path: Path) -> None:
    pv.save(small(), tmp_path)
    text = (tmp_path / "model.json").read_text()
    assert str(tmp_path) not in text and "+cpu" not in text
    assert set(json.loads(text)["versions"]) == {"ppl_vae", "torch", "pyro", "numpy"}
