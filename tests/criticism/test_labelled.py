import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import arviz
import numpy as np
import pytest

from ppl_vae.criticism.inference_data import export
from ppl_vae.criticism.labelled import SAMPLE, Column, Export, Labelled, cells, elpd, labelled, loo
from ppl_vae.errors import OptionError
from ppl_vae.model.build import build
from ppl_vae.model.linear import PPCA

ROOT = Path(__file__).parents[2]
RANDOM = np.random.RandomState(0)
LOG_P = -5 + RANDOM.randn(50)
X = RANDOM.randn(30, 3)

pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword")  # ArviZ 0.23 under pandas 3.1


def test_importing_it_imports_no_torch():
    program = "import ppl_vae.criticism.labelled, sys; print('torch' in sys.modules, 'arviz' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == ["False", "False"]


def test_chains_one_after_another_become_a_dimension():
    z = Labelled(np.arange(24.0).reshape(6, 4), (SAMPLE, "row"), {"unit": "nats"})
    groups = {"posterior": {"z": z}, "prior": {"z": z}, "observed_data": {"x": Labelled(np.ones(4), ("row",))}}
    made = labelled(Export(groups, {"row": list("abcd")}, {"posterior": 2}, {"seed": 3}))
    assert made.posterior.z.dims == ("chain", "draw", "row") and made.posterior.z.attrs == {"unit": "nats"}
    assert np.array_equal(made.posterior.z[1, 0], np.arange(12.0, 16.0))
    assert made.prior.z.shape == (1, 6, 4) and list(made.observed_data.row.values) == list("abcd")
    assert made.attrs["seed"] == made.prior.attrs["seed"] == 3


def test_names_that_stand_for_something_else_are_changed():
    names = ["row", "a/b", "a_b", "draw", "/"]
    group = {name: Labelled(np.full((2, 3), float(j)), (SAMPLE, "row")) for j, name in enumerate(names)}
    made = labelled(Export({"posterior": group})).posterior
    assert list(made.data_vars) == ["row_", "a_b", "a_b_", "draw_", "_"]
    assert [float(made[name][0, 0, 0]) for name in made.data_vars] == [0, 1, 2, 3, 4]
    assert made["draw_"].attrs == {"name": "draw"} and made["a_b_"].attrs == {"name": "a_b"} | made["a_b_"].attrs


def test_labels_of_another_number_are_not_used():
    made = labelled(Export({"prior": {"w": Labelled(np.zeros((2, 3)), (SAMPLE, "groups"))}}, {"groups": ["u", "v"]}))
    assert made.prior.groups.values.tolist() == [0, 1, 2]


def test_cells_are_one_variable_unless_columns_differ():
    values = np.array([[0.0, 1.0], [2.0, 0.9999999]])
    counts = [Column("a", "count"), Column("b", "count")]
    (name, made), *_ = cells(values, ("row", "column"), "x", counts).items()
    assert name == "x" and made.values.dtype == np.int32 and made.values.tolist() == [[0, 1], [2, 1]]
    incomplete = [counts[0], counts[1]._replace(complete=False)]
    assert cells(values, ("row", "column"), "x", incomplete)["x"].values.dtype.kind == "f"
    mixed = [Column("a", "real"), Column("b", "categorical", ("u", "v"))]
    apart = cells(values, ("row", "column"), "x", mixed)
    assert list(apart) == ["a", "b"] and apart["b"].values.tolist() == [1, 1] and apart["b"].dims == ("row",)
    assert apart["b"].attrs == {"type": "categorical", "levels": ["u", "v"]}
    assert cells(values * 2**31, ("row", "column"), "x", counts)["x"].values.dtype == np.int64


def test_elpd_is_what_arviz_compares():
    better = LOG_P + 0.3 + 0.1 * RANDOM.randn(50)
    mcse = np.full(50, 0.02)
    found = arviz.compare({"first": elpd(LOG_P, mcse, np.full(50, 0.2), 1000), "second": elpd(better)})
    assert list(found.index) == ["second", "first"]
    assert np.isclose(found["elpd_diff"]["first"], (better - LOG_P).sum())
    assert np.isclose(found["dse"]["first"], np.sqrt(50 * (better - LOG_P).var()))
    assert np.allclose(found["se"], [np.sqrt(50 * better.var()), np.sqrt(50 * LOG_P.var())])
    made = elpd(LOG_P, mcse)
    assert f"{LOG_P.sum():.2f}" in str(made) and np.isclose(made["loo_i"].attrs["mcse"], 0.02 * np.sqrt(50))


def test_elpd_warns_of_estimates_that_should_not_be_trusted():
    assert not elpd(LOG_P, k_hat=np.full(50, 0.6), num_draws=1000)["warning"]
    assert elpd(LOG_P, k_hat=np.full(50, 0.6), num_draws=100)["warning"]  # 100 draws carry up to 0.5
    assert "Pareto k" in str(elpd(LOG_P, k_hat=np.full(50, 0.6), num_draws=100))


def test_very_low_densities_are_compared_without_stacking():
    models = {"first": elpd(LOG_P - 900), "second": elpd(LOG_P - 901)}
    found = arviz.compare(models, method="bb-pseudo-bma")
    assert np.isclose(found["elpd_diff"]["second"], 50) and np.isclose(found["weight"]["first"], 1)


@pytest.mark.parametrize("numbers", [{"log_p": [1.0, np.nan]}, {"log_p": 3.0}, {"log_p": [1.0, 2.0], "k_hat": [0.1]}])
def test_elpd_refuses_other_shapes_and_what_is_not_finite(numbers):
    with pytest.raises(OptionError, match=r"log_p|k_hat"):
        elpd(**numbers)


def test_loo_needs_log_likelihoods():
    with pytest.raises(OptionError, match="loo: got no log likelihood, as it was not asked for"):
        loo(labelled(Export({"posterior": {"z": Labelled(np.zeros((2, 3)), (SAMPLE, "row"))}})))


def test_arviz_1_reads_writes_plots_and_compares_the_same(tmp_path):
    """In the environment that `make arviz1` makes, where a Python from 3.12 on is installed."""
    python = ROOT / ".venv-arviz1" / "bin" / "python"
    if not (ROOT / ".venv-arviz1" / ".installed").exists():
        pytest.skip("no .venv-arviz1, so ArviZ 1.x is not tested: `make arviz1`, with a Python from 3.12 on, makes it")
    full = export(build(X, latent=1, hidden=(4,), scale=0.5, weights="normal"), X, num_draws=100, particles=4)
    point = export(PPCA(1).fit(X), X, num_draws=5)
    other = LOG_P + 0.2 + 0.1 * RANDOM.randn(50)
    densities = {"first": (LOG_P, np.full(50, 0.1), np.full(50, 0.2), 1000), "second": (other,)}
    (tmp_path / "export.pickle").write_bytes(pickle.dumps((full, point, densities)))
    here = labelled(full)
    here.to_netcdf(str(tmp_path / "draws.nc"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
    script = Path(__file__).parent / "arviz1.py"
    run = subprocess.run(
        [python, "-W", "error::FutureWarning", script, tmp_path],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"},
    )
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert not found["torch"] and int(found["version"].split(".")[0]) >= 1
    assert "log likelihood not found" in found["failed"]
    with pytest.warns(UserWarning, match="Estimated shape parameter"):
        theirs = arviz.loo(here, pointwise=True)
    assert np.allclose(found["loo"], theirs["loo_i"]) and np.allclose(found["k"], theirs["pareto_k"])
    assert np.allclose(found["ours"], loo(here)["loo_i"])
    means = arviz.summary(here, kind="stats", round_to="none")["mean"]
    assert np.allclose(found["summary"], means, atol=1e-5)
    assert found["ranks"] == ["second", "first"]
    assert np.allclose(found["differences"], [0, abs((other - LOG_P).sum())])
    assert np.allclose(found["errors"], [0, np.sqrt(50 * (other - LOG_P).var())])
