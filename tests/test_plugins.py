"""Parts of other packages: real distributions, a folder with metadata and a module each, on the path of a fresh process."""

import os
import subprocess
import sys

import pytest

MODULE = """
import sys
import pyro.distributions as dist
import torch
from torch import nn

class Gumbel(nn.Module):
    outputs, type = 2, "real"

    def forward(self, loc, raw):
        return dist.Gumbel(loc, raw.exp()).to_event(1)

def prior(setting, *, sharpness=1.0):
    return lambda: dist.Normal(torch.zeros(setting.latent), 1 / sharpness).to_event(1)

def likelihood(schema, heads):
    return Gumbel()

def posterior(latent, link):
    return Gumbel()

number = 3
"""
START = """
import sys, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", message=r"\\s*ArviZ is undergoing")
import numpy as np
import ppl_vae as pv
from ppl_vae.model.priors import PRIORS
from ppl_vae.plugins import clashes

x = np.random.RandomState(0).randn(40, 3)

def refusal(**options):
    try:
        pv.build(x, latent=2, hidden=(4,), **options)
    except pv.OptionError as error:
        return str(error)
"""


@pytest.fixture
def install(tmp_path):
    """Put a distribution of some entry points (group: {name: value}) and modules (name: text) into the folder."""

    def put(name, entries, **modules):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"[ppl_vae.{g}]\n" + "".join(f"{n} = {v}\n" for n, v in of.items()) for g, of in entries.items()]
        (info / "entry_points.txt").write_text("\n".join(lines))
        for module, text in modules.items():
            (tmp_path / f"{module}.py").write_text(text)

    return put


@pytest.fixture
def run(tmp_path):
    """What a program prints in a process that has the folder on its path."""

    def process(program):
        path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", START + program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return process


PARTS = {kind: {"gumbel": f"gumbels:{kind[:-1]}"} for kind in ("priors", "likelihoods", "posteriors")}


def test_a_package_brings_a_prior_a_likelihood_and_a_posterior(install, run, tmp_path):
    install("gumbels", PARTS, gumbels=MODULE)
    printed = run("""
vae = pv.build(x, latent=2, hidden=(4,), prior="gumbel", likelihood="gumbel", posterior="gumbel", sharpness=4.0)
print(vae.prior().base_dist.scale[0].item(), type(vae.decoder.family).__name__, type(vae.encoder.family).__name__)
bound = pv.fit(vae, x, epochs=20, valid=0, progress=False)["bound"]
print(bound[-1] > bound[0])
pv.save(vae, "kept")
print((pv.score(pv.load("kept"), x).values == pv.score(vae, x).values).all())
""")
    assert printed == ["0.25 Gumbel Gumbel", "True", "True"]


def test_a_package_is_imported_when_a_part_of_it_is_asked_for_and_not_before(install, run):
    install("gumbels", PARTS, gumbels=MODULE)
    printed = run("""
print(refusal(prior="gumble"))
pv.build(x, latent=2, hidden=(4,), prior="normal")
print("gumbels" in sys.modules)
pv.build(x, latent=2, hidden=(4,), prior="gumbel")
print("gumbels" in sys.modules)
""")
    assert printed[0].startswith("prior: got 'gumble', expected one of 'standard_normal', ")
    assert printed[0].endswith(", 'gumbel'") and printed[1:] == ["False", "True"]


def test_a_broken_package_breaks_nothing_else(install, run):
    install("gumbels", PARTS, gumbels=MODULE)
    values = {
        "raises": "broken:prior",
        "absent": "nowhere:prior",
        "nameless": "gumbels:nothing",
        "three": "gumbels:number",
    }
    install("broken", {"priors": values}, broken="1 / 0\n")
    printed = run("""
for name in ("normal", "gumbel"):
    pv.build(x, latent=2, hidden=(4,), prior=name)
for name in ("raises", "absent", "nameless", "three"):
    print(refusal(prior=name))
""")
    raises, absent, nameless, three = printed
    assert raises == "prior: got 'raises' of the package broken, which failed: ZeroDivisionError: division by zero"
    assert "of the package broken, which failed: ModuleNotFoundError: No module named 'nowhere'" in absent
    assert "of the package broken, which failed: AttributeError" in nameless
    assert three == "prior: got 'three' of the package broken, which is 3, expected a factory"


def test_a_name_of_two_packages_is_refused_and_one_of_ours_stays_ours(install, run):
    install("gumbels", {"priors": {"gumbel": "gumbels:prior", "normal": "gumbels:prior"}}, gumbels=MODULE)
    install("others", {"priors": {"gumbel": "gumbels:prior"}})
    printed = run("""
print(refusal(prior="gumbel"))
print(type(pv.build(x, latent=2, hidden=(4,), prior="normal").prior).__name__, "gumbels" in sys.modules)
print(clashes("prior", PRIORS), clashes("posterior", {}))
""")
    assert printed == [
        "prior: got 'gumbel', which several packages register (gumbels, others), expected one",
        "Family False",
        "['normal (gumbels)'] []",
    ]


def test_without_packages_our_names_are_all_that_there_is(run):
    printed = run("""
print(refusal(posterior="gumbel"))
print(refusal(likelihood="gumbel"))
print(refusal(prior=3))
""")
    assert printed[0].endswith("'categorical'") and printed[1].endswith("'von_mises'")
    assert printed[2].startswith("prior: got 3, expected ")
