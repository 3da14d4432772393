"""The notebooks: each runs at small size in a fresh kernel, and is committed as it came out at full size."""

import ast
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
KILOBYTES = 700
OF_A_MACHINE = re.compile(r"(?<![\w./])/(home|root|tmp|usr|opt|var|Users|private)/|site-packages|\bat 0x[0-9a-f]{6}")


def cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def kinds(cell: dict[str, Any]) -> set[str]:
    """What a cell shows: the streams and the MIME types of its outputs."""
    return {kind for output in cell["outputs"] for kind in output.get("data", [output.get("name", "error")])}


def asserted(source: str) -> int:
    """How many assertions code makes that could fail."""
    code = re.sub(r"(?m)^%.*$", "", source)
    return sum(isinstance(n, ast.Assert) and not isinstance(n.test, ast.Constant) for n in ast.walk(ast.parse(code)))


def texts(output: dict[str, Any]) -> str:
    """What is to be read in an output, pictures apart."""
    shown = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/png")}
    return "".join(json.dumps(part) for part in (shown, output.get("text", "")))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_at_small_size(path: Path, tmp_path: Path) -> None:
    """Without real data, an error or a word on stderr, and every cell shows what it does at full size."""
    script = runpy.run_path(str(ROOT / "notebooks" / "execute.py"))
    fresh = script["executed"](path, PPL_VAE_SMALL="1", PPL_VAE_DATA=str(tmp_path))
    for new, old in zip([c for c in fresh.cells if c.cell_type == "code"], cells(path), strict=True):
        assert "stderr" not in kinds(new), f"{path.name} warns:\n{new.source}\n{new.outputs}"
        # a word about data that is not here is no other output
        shown = [kinds(cell) - {"stdout"} for cell in (new, old)]
        assert shown[0] == shown[1], f"{path.name} is committed with other outputs than it has:\n{new.source}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_as_it_ran(path: Path) -> None:
    """All cells in order, no error, nothing of the machine, not too large; and what it claims is asserted."""
    code = cells(path)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert sum(bool(cell["outputs"]) for cell in code) > len(code) / 2
    assert any("image/png" in kinds(cell) for cell in code)
    for cell in code:
        assert not {"error", "stderr"} & kinds(cell), cell["source"]
        for output in cell["outputs"]:
            found = OF_A_MACHINE.search(texts(output))
            assert found is None, f"{found} in {texts(output)}"
    whole = path.read_text()
    assert str(ROOT) not in whole and sys.prefix not in whole
    assert "PPL_VAE_SMALL" in "".join(code[0]["source"])
    assert sum(asserted("".join(cell["source"])) for cell in code) >= 3
    assert len(whole) < 1000 * KILOBYTES, f"{len(whole) / 1000:.0f} kB"


def test_they_are_numbered() -> None:
    numbers = [int(path.name[:2]) for path in NOTEBOOKS]
    assert numbers and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
