"""Data sets by name: `load("mnist")`. Every file is checked against its published content; nothing is downloaded."""

import gzip
import hashlib
import io
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppl_vae.data.checksums import SHA256, UNCOMPRESSED_SHA256
from ppl_vae.data.schema import Schema
from ppl_vae.errors import DataError, MissingFileError, choose


class Dataset(NamedTuple):
    """A data set, ready to use; accepted wherever data is.

    Attributes:
        x: (n, d) array in its own units (kddcup99: a pandas DataFrame).
        y: n labels, or None.
        schema: the names and event shape of the columns, with identity scaling.
        name: the name that `load` knows it by.
        test_x, test_y: the published test part, where there is one.
        valid_x: the published validation part, where there is one.
    """

    x: Any
    y: np.ndarray | None
    schema: Schema
    name: str
    test_x: np.ndarray | None = None
    test_y: np.ndarray | None = None
    valid_x: np.ndarray | None = None


class Entry(NamedTuple):
    """How one data set is read.

    Attributes:
        load: called with the data set's name and the data folder, where it reads the files.
        files: their paths below the data folder.
        description: in a line.
    """

    load: Callable[[str, Path], Dataset]
    files: tuple[str, ...]
    description: str


def load(name: str, root: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set by name.

    `binarized_mnist` is published with its test part sorted by class; it comes shuffled by a fixed permutation.

    Args:
        name: digits, mnist, fashion_mnist, frey, binarized_mnist, kddcup99 or adbench/<name>, such as adbench/cardio or
            adbench/6_cardio; upper and lower case are the same.
        root: the folder of the files; by default $PPL_VAE_DATA, else ~/.cache/ppl_vae.

    Returns:
        A `Dataset`.

    Raises:
        OptionError: an unknown name; lists the known ones.
        MissingFileError: a file is absent; says which and where.
        DataError: a file differs from the published one.

    Example:
        >>> load("digits").x.shape
        (1797, 64)
    """
    name = _canonical(name)
    return choose("data set", name, DATASETS).load(name, _root(root))


def names(root: str | os.PathLike[str] | None = None) -> list[tuple[str, bool, str]]:
    """List the data sets that `load` knows.

    Args:
        root: the folder of the files, as in `load`.

    Returns:
        (name, whether its files are there, description) of each.

    Example:
        >>> names()[0][:2]
        ('digits', True)
    """
    folder = _root(root)
    return [(name, all((folder / f).is_file() for f in e.files), e.description) for name, e in DATASETS.items()]


def binarize(x: np.ndarray, how: str | None, seed: int = 0) -> np.ndarray:
    """Make grey values binary.

    Args:
        x: (n, ...) grey values in [0, 1].
        how: None or "none" (as is), "threshold" (1 where x > 0.5) or "stochastic" (1 with probability x).
        seed: of the stochastic draws.

    Returns:
        An array of zeros and ones, float32, in the shape of `x`; with "none", `x` itself.

    Raises:
        DataError: a value outside [0, 1]; names the column.
        OptionError: an unknown `how`.

    Example:
        >>> binarize(np.array([[0.2, 0.8]]), "threshold")
        array([[0., 1.]], dtype=float32)
    """
    return choose("binarize", "none" if how is None else how, BINARIZE)(x, seed)


# ---- binarize, by name


def _as_is(x: np.ndarray, seed: int) -> np.ndarray:
    return x


def _threshold(x: np.ndarray, seed: int) -> np.ndarray:
    return (_check_grey(x) > 0.5).astype(np.float32)


def _stochastic(x: np.ndarray, seed: int) -> np.ndarray:
    draws = np.random.default_rng(seed).random(x.shape, dtype=np.float32)  # in [0, 1): a value of 1 is always drawn 1
    return (draws < _check_grey(x)).astype(np.float32)


BINARIZE = {"none": _as_is, "threshold": _threshold, "stochastic": _stochastic}


def _check_grey(x: np.ndarray) -> np.ndarray:
    rows = x.reshape(len(x), -1)
    outside = ~((rows >= 0) & (rows <= 1))  # so that NaN is outside too
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise DataError(f"column 'x{column}': got {rows[row, column]} in row {row}, expected grey values in [0, 1]")
    return x


# ---- files


def _root(root: str | os.PathLike[str] | None) -> Path:
    return Path(root or os.environ.get("PPL_VAE_DATA") or "~/.cache/ppl_vae").expanduser()


def _fetch(name: str, root: Path, file: str) -> bytes:
    """The bytes of a file, uncompressed if it is gzip, once they are known to be the published ones."""
    path = root / file
    if not path.is_file():
        raise MissingFileError(
            f"data set {name!r}: got no file {path}, expected {file} below {root}; "
            "put the files there or set PPL_VAE_DATA to the folder that has them"
        )
    packed = path.read_bytes()
    digest = hashlib.sha256(packed).hexdigest()
    content = _unpacked(packed) if path.suffix == ".gz" else packed
    same_content = content is not None and hashlib.sha256(content).hexdigest() == UNCOMPRESSED_SHA256.get(file)
    if content is None or not (digest == SHA256[file] or same_content):
        raise DataError(f"file {path}: got SHA-256 {digest}, expected {SHA256[file]}: it is damaged or another file")
    return content


def _unpacked(packed: bytes) -> bytes | None:
    try:
        return gzip.decompress(packed)
    except Exception:  # OSError, EOFError or zlib.error; the digest is what the user is told
        return None


def _archive(name: str, root: Path, file: str) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(_fetch(name, root, file)), allow_pickle=False) as archive:
        return dict(archive)


def _idx(name: str, root: Path, file: str) -> np.ndarray:
    """An array of the IDX format: two zeros, type 8 (bytes), the number of dimensions, their sizes, the data."""
    content = _fetch(name, root, file)
    dims = content[3]
    shape = struct.unpack_from(f">{dims}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape)


# ---- the data sets


def _schema(x: np.ndarray, shape: tuple[int, ...] | None = None) -> Schema:
    columns = tuple(f"x{j}" for j in range(x.shape[1]))
    return Schema(columns, "numpy", shape or (x.shape[1],), precision=str(x.dtype))


def _grey(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)


def _digits(name: str, root: Path) -> Dataset:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    return Dataset(x, y.astype(np.int64), _schema(x, (8, 8)), name)


def _images(name: str, root: Path) -> Dataset:
    x, y, test_x, test_y = (_idx(name, root, file) for file in DATASETS[name].files)
    grey = _grey(x)
    return Dataset(
        grey, y.astype(np.int64), _schema(grey, x.shape[1:]), name, test_x=_grey(test_x), test_y=test_y.astype(np.int64)
    )


def _frey(name: str, root: Path) -> Dataset:
    images = _archive(name, root, *DATASETS[name].files)["X"]
    x = _grey(images)
    return Dataset(x, None, _schema(x, images.shape[1:]), name)


def _binarized_mnist(name: str, root: Path) -> Dataset:
    packed = _archive(name, root, *DATASETS[name].files)
    x, valid, test = (
        np.unpackbits(packed[part], axis=1, count=784).astype(np.float32) for part in ("train", "valid", "test")
    )
    noise = random.Random(0)  # Python fixes this sequence for good, NumPy's generators do not
    order = np.argsort([noise.random() for _ in range(len(test))])
    test_y = packed["test_labels_derived"][order].astype(np.int64)
    return Dataset(x, None, _schema(x, (28, 28)), name, test_x=test[order], test_y=test_y, valid_x=valid)


def _adbench(name: str, root: Path) -> Dataset:
    archive = _archive(name, root, *DATASETS[name].files)
    x = archive["X"].astype(np.float64)
    return Dataset(x, archive["y"].astype(np.int64), _schema(x), name)


KDD_CATEGORICAL = ("protocol_type", "service", "flag")
KDD_COLUMNS = tuple(
    """duration protocol_type service flag src_bytes dst_bytes land wrong_fragment urgent hot num_failed_logins
    logged_in num_compromised root_shell su_attempted num_root num_file_creations num_shells num_access_files
    num_outbound_cmds is_host_login is_guest_login count srv_count serror_rate srv_serror_rate rerror_rate
    srv_rerror_rate same_srv_rate diff_srv_rate srv_diff_host_rate dst_host_count dst_host_srv_count
    dst_host_same_srv_rate dst_host_diff_srv_rate dst_host_same_src_port_rate dst_host_srv_diff_host_rate
    dst_host_serror_rate dst_host_srv_serror_rate dst_host_rerror_rate dst_host_srv_rerror_rate""".split()
)


def _kddcup99(name: str, root: Path) -> Dataset:
    """The 10 % file; its labels lose the full stop that ends each line ("normal." is "normal")."""
    import pandas as pd

    x = pd.read_csv(
        io.BytesIO(_fetch(name, root, *DATASETS[name].files)),
        header=None,
        names=[*KDD_COLUMNS, "label"],
        dtype=dict.fromkeys(KDD_CATEGORICAL, "category"),
    )
    y = x.pop("label").str.removesuffix(".").to_numpy().astype(str)
    return Dataset(x, y, Schema(KDD_COLUMNS, "pandas", (len(KDD_COLUMNS),), precision="float64"), name)


def _image_files(folder: str) -> tuple[str, ...]:
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(f"{folder}/{part}-ubyte.gz" for part in parts)


def _adbench_name(file: str) -> str:
    """adbench/6_cardio.npz -> adbench/cardio"""
    return "adbench/" + Path(file).stem.split("_", 1)[1]


DATASETS = {
    "digits": Entry(_digits, (), "1797 handwritten digits of 8x8 grey values, from scikit-learn"),
    "mnist": Entry(_images, _image_files("mnist"), "60000 + 10000 handwritten digits of 28x28 grey values"),
    "fashion_mnist": Entry(_images, _image_files("fashion_mnist"), "60000 + 10000 clothes of 28x28 grey values"),
    "frey": Entry(_frey, ("frey/freyfaces.npz",), "1965 video frames of a face, 28x20 grey values"),
    "binarized_mnist": Entry(
        _binarized_mnist,
        ("binarized_mnist/binarized_mnist_packed.npz",),
        "50000 + 10000 + 10000 statically binarized digits of 28x28 bits",
    ),
    "kddcup99": Entry(
        _kddcup99,
        ("kddcup99/kddcup.data_10_percent.gz",),
        "494021 network connections, 38 numeric and 3 categorical columns",
    ),
    **{
        _adbench_name(file): Entry(_adbench, (file,), f"anomaly detection, ADBench {Path(file).stem}; y = 1: anomaly")
        for file in SHA256
        if file.startswith("adbench/")
    },
}


def _canonical(name: Any) -> Any:
    """The spelling of a name in DATASETS; an unknown name as it is."""
    known = {key.lower(): key for key in DATASETS}
    known |= {
        f"adbench/{Path(file).stem}".lower(): _adbench_name(file) for file in SHA256 if file.startswith("adbench/")
    }
    return known.get(name.lower(), name) if isinstance(name, str) else name
