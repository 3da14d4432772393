import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ppl_vae as pv

ROOT = Path(__file__).parent.parent


def test_importing_the_package_imports_nothing_heavy():
    program = "import ppl_vae, sys; print([m for m in ('torch', 'pyro', 'pandas', 'matplotlib') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", pv.__all__)
def test_every_public_name_is_there_and_documented(name):
    public = getattr(pv, name)
    assert name in dir(pv)
    assert inspect.getdoc(public)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        pv.fitt  # noqa: B018


def code_blocks(page):
    return [block.split("```")[0] for block in page.read_text().split("```python\n")[1:]]


def test_the_readmes_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = code_blocks(ROOT / "README.md")
    names: dict = {}
    exec(code.replace("epochs=100", "epochs=100, progress=False"), names)
    assert 0 <= float(capsys.readouterr().out) <= 1
    assert names["history"]["bound"][-1] > names["history"]["bound"][0]
    assert (tmp_path / "runs" / "digits" / "model.json").exists()


def test_the_guides_parts_of_ones_own_are_trained():
    own: dict = {}
    for code in code_blocks(ROOT / "docs" / "guide.md"):
        exec(code, own)
    vae, table = own["vae"], own["table"]
    before = [p.detach().clone() for p in vae.parameters()]
    pv.fit(vae, table, epochs=2, progress=False)
    assert len(before) == 4 and all(not torch.equal(a, b) for a, b in zip(before, vae.parameters()))
    shuffled = pv.score(vae, table[list("dcba")])
    assert np.array_equal(shuffled.values, pv.score(vae, table).values)
