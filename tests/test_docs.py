"""The pages' code runs: blocks marked `python` one after another in a folder of their own, and print what the page says.

What other people's programs look like is marked `py`, and read only.
"""

import doctest
import re
from pathlib import Path

import pytest
import torch

import ppl_vae as pv

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if page.parent.name not in ("notebooks", "_build")]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(text):
    """Each block's code and what it says it prints, "" where it does not say."""
    return [(code, said) for code, said in BLOCK.findall(text)]


def check(page, capsys):
    names: dict = {"__name__": "page"}
    for number, (code, said) in enumerate(blocks(page.read_text()), 1):
        exec(compile(code, f"{page.name}, block {number}", "exec"), names)
        printed = capsys.readouterr().out
        if said:
            assert doctest.OutputChecker().check_output(said, printed, FLAGS), f"{page.name}: {said!r}, but: {printed}"


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p.read_text())], ids=lambda p: str(p.relative_to(DOCS)))
def test_a_pages_code_runs_and_prints_what_it_says(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PPL_VAE_DATA", raising=False)
    torch.manual_seed(0)
    check(page, capsys)


def test_a_page_that_says_something_else_is_found(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n")
    with pytest.raises(AssertionError, match=r"'3.*but: 2"):
        check(page, capsys)
    page.write_text("```python\nprint(1.25)\n```\n\n```text\n1.2...\n```\n")
    check(page, capsys)


def test_every_public_name_is_in_the_reference():
    text = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    homes = {word for line in re.findall(r"^```\{public\} (.*)$", text, re.MULTILINE) for word in line.split()}
    assert not set(pv._PUBLIC.values()) - homes
    assert all(home in text for home in ("ppl_vae.data.datasets", "ppl_vae.criticism.plots", "ppl_vae.testing"))
