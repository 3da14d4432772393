"""Pairs of files are whole or not there, and are what they seem to be."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import ppl_vae as pv
from ppl_vae.pairs import Pair, pack

KEPT = Pair("what is kept", "kept", "kept")


def test_tensors_never_begin_as_a_pickle_does() -> None:
    """Headers of many lengths, among them those of which they would."""
    lengths = set()
    for n in range(1, 1400, 4):
        tensors = {"a" * n: torch.arange(3.0)}
        lengths.add(int.from_bytes(safetensors.torch.save(tensors)[:8], "little"))
        raw = pack(tensors)
        assert not (raw[0] == 0x80 and raw[1] in (2, 3, 4, 5)) and not raw.startswith(b"PK")
        assert torch.equal(safetensors.torch.load(raw)["a" * n], torch.arange(3.0))
    assert {0x280, 0x380, 0x480, 0x580} <= lengths


def test_a_pair_comes_back_and_an_older_one_goes(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    for number in range(3):
        KEPT.write(tmp_path, {"number": number}, {"a": shared + number, "b": shared.view(2, 2)})
    content, tensors = KEPT.read(tmp_path)
    assert content == {"number": 2} and torch.equal(tensors["a"], shared + 2) and tensors["b"].shape == (2, 2)
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(
        pv.MissingFileError, match=r"other\.json: got nothing there, expected the description of what is"
    ):
        KEPT._replace(name="other").read(tmp_path)


@pytest.mark.parametrize("which", [0, 1])
def test_every_changed_byte_of_a_pair_is_caught(which: int, tmp_path: Path) -> None:
    KEPT.write(tmp_path, {"number": 1}, {"a": torch.arange(4.0)})
    file = sorted(tmp_path.iterdir())[which]
    raw = file.read_bytes()
    for at in range(len(raw)):
        file.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises((pv.ModelFileError, pv.MissingFileError)):
            KEPT.read(tmp_path)


def test_a_pair_that_is_replaced_while_it_is_read_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    KEPT.write(tmp_path, {"number": 1}, {"a": torch.arange(4.0)})
    read_json = Pair._read_json

    def replaced(*args: Any) -> dict[str, Any]:
        content = read_json(*args)
        monkeypatch.undo()
        KEPT.write(tmp_path, {"number": 2}, {"a": torch.arange(5.0)})
        return content

    monkeypatch.setattr(Pair, "_read_json", replaced)
    content, tensors = KEPT.read(tmp_path)
    assert content == {"number": 2} and len(tensors["a"]) == 5


WRITER = """
import sys, torch
from pathlib import Path
from ppl_vae.pairs import Pair
folder, own = Path(sys.argv[1]), int(sys.argv[2])
(folder / sys.argv[2]).write_text("")
while len(list(folder.glob("[01]"))) < 2: pass
for number in range(60):
    Pair("", "kept", "kept").write(folder, {"number": [own, number]}, {"a": torch.full((100,), own + number / 64)})
"""


def test_two_writers_leave_what_one_of_them_wrote(tmp_path: Path) -> None:
    """Neither takes a file of the other, which it has begun, for one of a process that was killed."""
    pytest.importorskip("fcntl")
    both = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(own)]) for own in (0, 1)]
    assert [one.wait(120) for one in both] == [0, 0]
    content, tensors = KEPT.read(tmp_path)
    own, number = content["number"]
    assert number == 59 and torch.equal(tensors["a"], torch.full((100,), own + number / 64))
    assert len(list(tmp_path.iterdir())) == 4
