"""Data sets by name: published facts, and what is said when a file is absent or damaged."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ppl_vae.data.checksums import SHA256, UNCOMPRESSED_SHA256
from ppl_vae.data.datasets import BINARIZE, Dataset, binarize, load, names
from ppl_vae.data.schema import Schema
from ppl_vae.errors import DataError, MissingFileError, OptionError


@pytest.fixture
def real() -> Callable[[str], Dataset]:
    if not os.environ.get("PPL_VAE_DATA"):
        pytest.skip("PPL_VAE_DATA is not set: no real data here")
    return load


def test_digits_are_embedded(tmp_path: Path) -> None:
    digits = load("digits", tmp_path)
    assert digits.x.shape == (1797, 64) and digits.x.dtype == np.float32
    assert (digits.x.min(), digits.x.max()) == (0, 1)
    assert digits.schema == Schema(tuple(f"x{j}" for j in range(64)), "numpy", (8, 8))
    assert np.bincount(digits.y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert load("DIGITS").name == "digits"


@pytest.mark.parametrize(
    ("name", "counts", "mean"),
    [
        ("mnist", [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949], 0.1307),
        ("fashion_mnist", [6000] * 10, 0.2860),
    ],
)
def test_images(real: Callable[[str], Dataset], name: str, counts: list[int], mean: float) -> None:
    data = real(name)
    assert data.x.shape == (60000, 784) and data.test_x.shape == (10000, 784)
    assert data.x.dtype == np.float32 and data.y.dtype == data.test_y.dtype == np.int64
    assert np.bincount(data.y).tolist() == counts and len(data.test_y) == 10000
    assert data.schema.shape == (28, 28)
    assert (data.x.min(), data.x.max()) == (0, 1)
    assert data.x.mean(dtype=np.float64) == pytest.approx(mean, abs=5e-5)


def test_frey(real: Callable[[str], Dataset]) -> None:
    frey = real("frey")
    assert frey.x.shape == (1965, 560) and frey.x.dtype == np.float32 and frey.y is None
    assert frey.schema.shape == (28, 20)
    assert (frey.x * 255).mean(dtype=np.float64) == pytest.approx(154.46, abs=5e-3)


def test_binarized_mnist(real: Callable[[str], Dataset]) -> None:
    data = real("binarized_mnist")
    assert [len(part) for part in (data.x, data.valid_x, data.test_x)] == [50000, 10000, 10000]
    assert data.x.shape[1] == 784 and data.x.dtype == np.float32 and data.y is None
    assert np.unique(data.x).tolist() == [0, 1]
    assert np.bincount(data.test_y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert len(set(data.test_y[:100])) == 10  # shuffled
    assert np.array_equal(real("binarized_mnist").test_y, data.test_y)  # and always alike
    zeros, ones = (data.test_x[data.test_y == digit].mean(0).reshape(28, 28) for digit in (0, 1))
    assert zeros[14, 14] < 0.1 < 0.8 < ones[14, 14]  # rows and labels were shuffled together


@pytest.mark.parametrize("name", ["adbench/cardio", "adbench/6_cardio", "ADBench/Cardio", "adbench/6_CARDIO"])
def test_adbench(real: Callable[[str], Dataset], name: str) -> None:
    cardio = real(name)
    assert cardio.name == "adbench/cardio"
    assert cardio.x.shape == (1831, 21) and cardio.x.dtype == np.float64
    assert cardio.y.sum() == 176 and cardio.y.dtype == np.int64
    assert len(np.unique(cardio.x, axis=0)) == 1822  # nothing is dropped
    assert Schema.fit(cardio).width == 21


def test_every_adbench_set_is_cast(real: Callable[[str], Dataset]) -> None:
    for name, available, _ in names():
        if name.startswith("adbench/") and available:
            data = real(name)
            assert data.x.dtype == np.float64 and np.isfinite(data.x).all() and set(np.unique(data.y)) == {0, 1}


def test_kddcup99(real: Callable[[str], Dataset]) -> None:
    kdd = real("kddcup99")
    assert kdd.x.shape == (494021, 41)
    assert tuple(kdd.x.columns) == kdd.schema.names
    categorical = [name for name, dtype in kdd.x.dtypes.items() if dtype == "category"]
    assert categorical == ["protocol_type", "service", "flag"]
    assert [kdd.x[name].nunique() for name in categorical] == [3, 66, 11]
    assert (kdd.y == "normal").sum() == 97278 and (kdd.y == "smurf").sum() == 280790 and len(np.unique(kdd.y)) == 23
    with pytest.raises(DataError, match="column 'protocol_type': got 'tcp' in row 0"):
        Schema.fit(kdd)


def test_every_published_file_is_known_by_its_content(real: Callable[[str], Dataset]) -> None:
    assert all(available for _, available, _ in names())
    assert set(UNCOMPRESSED_SHA256) <= set(SHA256)


# ---- absent, damaged, unknown


def test_an_absent_file_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingFileError, match=rf"{tmp_path}/mnist/train-images.*PPL_VAE_DATA"):
        load("mnist", tmp_path)
    monkeypatch.setenv("PPL_VAE_DATA", str(tmp_path))
    with pytest.raises(MissingFileError, match=rf"{tmp_path}/frey/freyfaces.npz"):
        load("frey")
    monkeypatch.delenv("PPL_VAE_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(MissingFileError, match=rf"{tmp_path}/home/.cache/ppl_vae/frey"):
        load("frey")


def test_another_file_is_refused_with_both_digests(tmp_path: Path) -> None:
    (tmp_path / "frey").mkdir()
    (tmp_path / "frey/freyfaces.npz").write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    with pytest.raises(
        DataError, match=rf"freyfaces.npz: got SHA-256 {empty}, expected {SHA256['frey/freyfaces.npz']}"
    ):
        load("frey", tmp_path)


def test_a_truncated_gzip_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(bytes(range(256)) * 100)
    (tmp_path / "mnist").mkdir()
    for content in (whole[: len(whole) // 2], whole, b"not gzip"):
        (tmp_path / "mnist/train-images-idx3-ubyte.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz: got SHA-256 .*, expected "):
            load("mnist", tmp_path)


def test_the_same_content_packed_anew_is_accepted(real: Callable[[str], Dataset], tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    for file in (Path(os.environ["PPL_VAE_DATA"]) / "mnist").iterdir():
        (tmp_path / "mnist" / file.name).write_bytes(gzip.compress(gzip.decompress(file.read_bytes()), 1, mtime=1))
    assert load("mnist", tmp_path).x.shape == (60000, 784)


@pytest.mark.parametrize("name", ["mnists", "adbench/nothing", "adbench/", None])
def test_an_unknown_name_lists_the_known(name: str) -> None:
    with pytest.raises(OptionError, match=r"data set: got .*'digits', 'mnist', .*'adbench/cardio'"):
        load(name)


def test_names_say_what_is_there(tmp_path: Path) -> None:
    listed = {name: available for name, available, _ in names(tmp_path)}
    assert [name for name, available in listed.items() if available] == ["digits"]
    assert len(listed) == 6 + 19
    assert all(description for _, _, description in names(tmp_path))


# ---- binarize


def test_binarize() -> None:
    grey = np.array([[0.0, 0.5, 0.51, 1.0]])
    assert binarize(grey, None) is grey and binarize(grey, "none") is grey
    assert binarize(grey, "threshold").tolist() == [[0, 0, 1, 1]]
    assert set(BINARIZE) == {"none", "threshold", "stochastic"}
    for how in ("threshold", "stochastic"):
        assert binarize(grey, how).dtype == np.float32


def test_stochastic_binarization_has_the_grey_value_as_its_mean() -> None:
    grey = np.tile(np.array([0.0, 0.2, 0.7, 1.0], np.float32), (20000, 1))
    before = np.random.get_state()[1].copy()
    bits = binarize(grey, "stochastic", seed=3)
    assert np.unique(bits).tolist() == [0, 1]
    mean = bits.mean(0)
    assert (mean[0], mean[3]) == (0, 1)
    np.testing.assert_allclose(mean[1:3], [0.2, 0.7], atol=0.02)  # six standard errors
    assert np.array_equal(bits, binarize(grey, "stochastic", seed=3))
    assert not np.array_equal(bits, binarize(grey, "stochastic", seed=4))
    assert np.array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize("how", ["threshold", "stochastic"])
@pytest.mark.parametrize("bad", [-0.1, 1.5, np.nan])
def test_binarize_refuses_what_is_not_grey(how: str, bad: float) -> None:
    with pytest.raises(DataError, match=r"column 'x2': got .* in row 1, expected grey values in \[0, 1\]"):
        binarize(np.array([[0, 0, 1], [0, 1, bad]]), how)


def test_binarize_refuses_an_unknown_way() -> None:
    with pytest.raises(OptionError, match="binarize: got 'dynamic', expected one of 'none', 'threshold', 'stochastic'"):
        binarize(np.zeros((1, 1)), "dynamic")
