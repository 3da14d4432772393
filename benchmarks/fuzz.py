"""Damaged files: the readers give a table or an error of ours, and never another error, a crash or a hang.

    python benchmarks/fuzz.py           # 10,000 files, counts by ending and outcome
    python benchmarks/fuzz.py 500 7     # 500 of them, from number 7 on

File number i is made from seed i: a valid .csv, .csv.gz, .parquet, .npy or .npz with bytes changed, inserted, deleted, cut
off or repeated, or random text with the marks of CSV. What is read then goes through `Schema`. It all happens in a process
that is started again after a crash, or after 20 s without an answer; warnings are errors; files that fail are kept.
"""

import gzip
import io
import select
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import ppl_vae as pv
from ppl_vae.data.tables import read

FILES, SECONDS, MEMORY = 10_000, 20, 2**34
FRAME = pd.DataFrame(
    {
        "age": [39, 50, 38, 53, 28, 37],
        "wage": [2.5, 1e-3, None, 0.75, 12.25, 3.0],
        "job": ["clerk", "a, b", None, 'says "no"', "clerk", "clerk"],
        "free": [True, False, True, True, False, True],
        "size": pd.Categorical(["s", "m", "l", "m", None, "s"], ["s", "m", "l"], ordered=True),
    }
)
TOKENS = [
    b'"',
    b"'",
    b",",
    b"\n",
    b"\r",
    b"\0",
    b";",
    b"\t",
    b" ",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xc3",
    b"NA",
    b"nan",
    b"inf",
]
TOKENS += [
    b"1e999",
    b"-1",
    b"0x10",
    b"9007199254740993",
    b"9" * 400,
    b"True",
    b"2020-01-01",
    b"1,2\n",
    b'""',
    b"\\",
    b"#",
    b"x",
]


def valid() -> dict[str, bytes]:
    """A sound file of each ending."""
    files = {ending: io.BytesIO() for ending in (".parquet", ".npy", ".npz")}
    FRAME.to_parquet(files[".parquet"])
    array = np.arange(12.0).reshape(6, 2)
    np.save(files[".npy"], array)
    np.savez(files[".npz"], x=array, y=np.arange(6))
    text = FRAME.to_csv(index=False).encode()
    return {".csv": text, ".csv.gz": gzip.compress(text, mtime=0), **{k: file.getvalue() for k, file in files.items()}}


VALID = valid()


def damaged(content: bytes, random: np.random.RandomState) -> bytes:
    """A file with some changes, most often one."""
    for _ in range(random.geometric(0.6)):
        at = random.randint(len(content) + 1)
        end = min(len(content), at + 1 + int(random.exponential(4)))
        middle, token = content[at:end], TOKENS[random.randint(len(TOKENS))]
        turned = bytes(byte ^ (1 << random.randint(8)) for byte in middle)
        moved = content[(of := random.randint(len(content) + 1)) : of + len(middle)]
        new = (
            turned,
            moved,
            token + middle,
            token,
            b"",
            middle * random.randint(2, 40),
            random.bytes(len(middle)),
            None,
        )
        kind = new[random.randint(len(new))]
        content = content[:at] if kind is None else content[:at] + kind + content[end:]
    return content


def made(number: int) -> tuple[str, bytes]:
    """The ending and the content of a file."""
    random = np.random.RandomState(number)
    kinds = [".csv", ".csv", ".parquet", ".parquet", ".csv.gz", ".npy", ".npz", "text"]
    kind = kinds[random.randint(len(kinds))]
    if kind == "text":
        fields = [b"1", b"2.5", b"a", b",", b",", b",", b"\n", b"\n", *TOKENS]
        return ".csv", b"".join(fields[j] for j in random.randint(len(fields), size=random.randint(60)))
    if kind == ".csv.gz" and random.rand() < 0.5:  # what is packed is damaged, not the packing
        return kind, gzip.compress(damaged(VALID[".csv"], random), mtime=0)
    return kind, damaged(VALID[kind], random)


def outcome(path: Path) -> str:
    """read, refused, or what went wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return _outcome(path)
    except BaseException as error:  # those of other languages are no Exceptions
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _outcome(path: Path) -> str:
    try:
        table = read(path)
    except pv.DataError as error:
        return "refused" if str(path) in str(error) else f"without the file: {error}"
    sound = table.values.shape == (len(table.values), len(table.names)) and len({*table.names}) == len(table.names)
    if not sound or 0 in table.values.shape:
        return f"of shape {table.values.shape} with the columns {table.names}"
    for make in (pv.Schema.infer, pv.Schema.fit):
        try:
            schema: Any = make(table)
            if not torch.isfinite(schema.tensors(table).x).all():
                return "not finite once encoded"
        except pv.DataError as error:
            if "column" not in str(error) and "row(s)" not in str(error):
                return f"without a column: {error}"
    return "read"


def work(first: int, last: int) -> None:
    """Outcomes of files from one number to another, a line each."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, last):
            ending, content = made(number)
            path = Path(folder) / f"{number}{ending}"
            path.write_bytes(content)
            print(ending, outcome(path), flush=True)
            path.unlink()


def run(first: int, last: int) -> dict[int, tuple[str, str]]:
    """Ending and outcome by number, whatever happens to the process."""
    found: dict[int, tuple[str, str]] = {}
    while first < last:
        command = [sys.executable, __file__, "work", str(first), str(last)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as worker:
            for number, ending, text in _answers(worker, first):
                found[number] = ending, text
                first = number + 1
    return found


def _answers(worker: subprocess.Popen, number: int) -> Iterator[tuple[int, str, str]]:
    """What a process says of each file from a number on; when it is silent, that is the last answer."""
    patience = 10 * SECONDS  # imports take their time
    while select.select([worker.stdout], [], [], patience)[0]:
        if not (line := worker.stdout.readline().decode()):  # type: ignore[union-attr]
            if code := worker.wait():
                yield number, made(number)[0], f"crash, exit code {code}"
            return
        ending, text = line.rstrip("\n").split(" ", 1)
        yield number, ending, text
        number, patience = number + 1, SECONDS
    worker.kill()
    yield number, made(number)[0], f"hangs, {patience} s"


def main(files: int = FILES, first: int = 0) -> int:
    found = run(first, first + files)
    counts = Counter(found.values())
    print(
        "| ending | "
        + " | ".join(names := sorted({text for _, text in counts}, key=lambda t: (t not in ("read", "refused"), t)))
    )
    print("|---" * (len(names) + 1) + "|")
    for ending in VALID:
        print(f"| {ending} | " + " | ".join(str(counts[ending, text]) for text in names) + " |")
    bad = {number: text for number, (_, text) in found.items() if text not in ("read", "refused")}
    for number, text in bad.items():
        ending, content = made(number)
        path = Path(tempfile.gettempdir()) / f"fuzz-{number}{ending}"
        path.write_bytes(content)
        print(f"{path}: {text}")
    return len(bad)


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(int(sys.argv[2]), int(sys.argv[3]))
    else:
        sys.exit(min(1, main(*map(int, sys.argv[1:]))))
