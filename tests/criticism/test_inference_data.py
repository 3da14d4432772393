import math

import arviz
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import MatplotlibDeprecationWarning

import ppl_vae as pv

X = np.random.RandomState(0).randn(30, 4)
GROUPS = [
    "posterior",
    "prior",
    "posterior_predictive",
    "prior_predictive",
    "observed_data",
    "log_prior",
    "sample_stats",
]


@pytest.fixture(scope="module")
def mixed():
    """A table of columns of several types with holes, covariates and groups."""
    random = np.random.RandomState(1)
    frame = pd.DataFrame(
        {
            "age": 40 + 9 * random.randn(40),
            "a/b": np.exp(random.randn(40)),
            "row": random.poisson(2.0, 40),
            "job": random.choice(["clerk", "smith", "none"], 40),
            "site": random.choice(["north", "south"], 40),
            "dose": random.choice([1.0, 2.0, 4.0], 40),
        }
    )
    frame.loc[3, "age"] = frame.loc[5, "site"] = None
    return frame


@pytest.fixture(scope="module")
def of_mixed(mixed):
    options = {"likelihood": "infer", "prior": "hierarchical", "group": "site", "covariates": ["dose"]}
    vae = pv.build(mixed, latent=2, hidden=(8,), **options)
    return vae, pv.to_arviz(vae, mixed, num_draws=150, seed=2)


def test_arviz_gets_the_draws_labelled_and_writes_them(tmp_path):
    vae = pv.build(X, latent=2, hidden=(8,))
    inference, drawn = pv.to_arviz(vae, X, num_draws=7, seed=3), pv.draws(vae, X, 7, seed=3)
    assert set(inference.groups()) == set(GROUPS)
    assert inference.posterior.z.dims == ("chain", "draw", "row", "latent")
    assert np.array_equal(inference.posterior.z[0], drawn.z)
    stats = inference.sample_stats
    assert np.allclose(stats.lp - stats.log_q, stats.log_weight)
    assert np.array_equal(stats.log_weight[0], drawn.log_weight)
    z = inference.posterior.z
    assert np.allclose(inference.log_prior.z, -0.5 * (z**2).sum("latent") - np.log(2 * np.pi), atol=1e-5)
    assert np.array_equal(stats.lp[0], drawn.log_lik + drawn.log_prior)
    assert "k_hat" not in stats  # 7 draws do not tell
    assert list(inference.observed_data.column.values) == ["x0", "x1", "x2", "x3"]
    assert np.allclose(inference.observed_data.x, X, atol=1e-6)
    inference.to_netcdf(str(tmp_path / "draws.nc"))
    again = arviz.from_netcdf(str(tmp_path / "draws.nc"))
    for group in GROUPS:
        assert again[group].equals(inference[group]) and again[group].attrs == inference[group].attrs
    again.close()


def test_every_group_says_what_made_it():
    inference = pv.to_arviz(pv.build(X, latent=2, hidden=(8,)), X, num_draws=3, seed=4)
    for attrs in (inference.attrs, *(inference[group].attrs for group in GROUPS)):
        assert attrs["inference_library"] == "pyro" and attrs["inference_library_version"]
        assert attrs["creation_library"] == "ppl_vae" and attrs["creation_library_version"] == pv.__version__
        assert attrs["arviz_version"] == arviz.__version__ and attrs["created_at"]
        assert (attrs["num_draws"], attrs["seed"], attrs["method"], attrs["approximate"]) == (3, 4, "amortized", 1)


def test_arvizs_own_summary_reads_it():
    summary = arviz.summary(pv.to_arviz(pv.PPCA(2).fit(X), X[:3], num_draws=400), kind="stats", round_to="none")
    exact = pv.PPCA(2).fit(X).posterior(X[:3]).mean.numpy().ravel()
    assert len(summary) == 6 and np.abs(summary["mean"].to_numpy() - exact).max() < 0.3


def test_replicates_have_the_moments_of_the_posterior_and_prior_predictive():
    """pPCA in closed form; 4 means and variances of 3 rows each way, within 4.5 standard errors: 3e-4 in all."""
    own = X * [1.0, 5.0, 0.2, 1.0] + [0.0, 100.0, 0.0, 3.0]
    ppca = pv.PPCA(2).fit(own)
    w = ppca.decoder.linear.weight.detach().numpy()
    noise, mean = float(ppca.decoder.scale[0]) ** 2, np.asarray(ppca.schema.loc)
    inference = pv.to_arviz(ppca, own[:3], num_draws=4000, seed=5)
    posterior = ppca.posterior(own[:3])
    spread = np.diag(posterior.variance[0].numpy())
    cases = {
        "posterior_predictive": (posterior.mean.numpy() @ w.T + mean, w @ spread @ w.T),
        "prior_predictive": (np.tile(mean, (3, 1)), w @ w.T),
    }
    for group, (loc, cov) in cases.items():
        x, variance = inference[group].x.values[0], np.diag(cov) + noise
        assert np.all(np.abs(x.mean(0) - loc) < 4.5 * np.sqrt(variance / 4000))
        assert np.all(np.abs(x.var(0) / variance - 1) < 4.5 * math.sqrt(2 / 4000))
    z = inference.prior.z.values[0]
    assert np.all(np.abs(z.mean(0)) < 4.5 / math.sqrt(4000)) and np.all(
        np.abs(z.var(0) - 1) < 4.5 * math.sqrt(2 / 4000)
    )
    pairs = np.corrcoef(z[:, 0, 0], inference.posterior.z.values[0, :, 0, 0])[0, 1]
    assert abs(pairs) < 4.5 / math.sqrt(4000)  # the prior's noise is not the posterior's
    assert inference.sample_stats.k_hat.dims == ("row",) and np.all(inference.sample_stats.k_hat == 0)  # an exact guide


@pytest.mark.parametrize("rows", [slice(7, 8), slice(89, 2, -25)])
def test_what_is_said_of_a_row_does_not_depend_on_other_rows(rows):
    vae, data = pv.build(X, latent=2, hidden=(8,)), np.random.RandomState(2).randn(90, 4)
    together, alone = (pv.to_arviz(vae, part, num_draws=150, seed=6) for part in (data, data[rows]))
    for group, name in (("posterior", "z"), ("prior", "z"), ("posterior_predictive", "x"), ("prior_predictive", "x")):
        assert np.allclose(together[group][name].values[:, :, rows], alone[group][name], rtol=1e-5, atol=1e-6)


def test_equal_rows_are_told_apart_and_the_callers_noise_is_left_alone():
    twice = np.concatenate([X, X[:1]])
    state = torch.get_rng_state()
    inference = pv.to_arviz(pv.build(X, latent=2, hidden=(8,)), twice, num_draws=4)
    assert torch.equal(state, torch.get_rng_state())
    for group, name in (("posterior", "z"), ("posterior_predictive", "x"), ("prior_predictive", "x")):
        values = inference[group][name].values
        assert not np.isclose(values[:, :, 0], values[:, :, -1]).any()


def test_a_mixed_table_has_a_variable_a_column_in_own_units(mixed, of_mixed):
    _, inference = of_mixed
    observed, made = inference.observed_data, inference.posterior_predictive
    assert list(observed.data_vars) == list(made.data_vars) == ["age", "a_b", "row_", "job"]
    assert observed["a_b"].attrs["name"] == "a/b" and observed["row_"].attrs["name"] == "row"
    assert np.allclose(observed["age"], mixed["age"], equal_nan=True) and np.isnan(observed["age"][3])
    assert observed["row_"].dtype == made["row_"].dtype == np.int32 and np.array_equal(observed["row_"], mixed["row"])
    levels = np.array(observed["job"].attrs["levels"])
    assert np.array_equal(levels[observed["job"]], mixed["job"])
    assert np.isfinite(made["age"]).all() and np.all(made["a_b"] > 0) and set(np.unique(made["job"])) <= {0, 1, 2}
    assert abs(float(inference.prior_predictive["age"].mean()) - 40) < 20  # own units


def test_what_is_given_is_constant_data(mixed, of_mixed):
    constant = of_mixed[1].constant_data
    assert not constant.mask[3, 0] and int((~constant.mask).sum()) == 1
    assert np.allclose(constant.covariates[:, 0], mixed["dose"]) and list(constant.covariate.values) == ["dose"]
    assert constant.group[5] == "" and list(constant.group.values[:3]) == list(mixed["site"][:3])


def test_effects_of_groups_are_found_by_their_names(mixed, of_mixed):
    vae, inference = of_mixed
    offsets = inference.posterior.offsets
    assert offsets.dims == ("chain", "draw", "groups", "latent") and list(offsets.groups.values) == ["north", "south"]
    drawn = pv.draws(vae, mixed, 150, seed=2).shared["offsets"]
    assert np.array_equal(offsets.sel(groups="south")[0], drawn[:, 1])
    assert inference.prior.offsets.dims == offsets.dims
    assert (
        abs(float(inference.prior.offsets.std()) - 1) < 0.2
        and abs(float(inference.posterior.offsets.std()) - 0.1) < 0.02
    )


def test_a_missing_count_keeps_its_column_from_integers(mixed):
    frame = mixed.rename(columns={"row": "kids"})[["kids", "job"]].astype({"kids": float})
    frame.loc[0, "kids"] = None
    vae = pv.build(frame, latent=1, hidden=(8,), likelihood={"kids": "poisson"}, nullable=True)
    inference = pv.to_arviz(vae, frame, num_draws=5)
    assert {inference[group]["kids"].dtype.kind for group in ("observed_data", "posterior_predictive")} == {"f"}


def test_replicates_of_a_joint_normal_are_whole_where_cells_are_missing():
    """Masked, its draws mean nothing in the holes; the mean of 2000 within 5 standard errors."""
    frame = pd.DataFrame(X, columns=list("abcd"))
    frame.loc[:9, "b"] = None
    vae = pv.build(frame, latent=1, hidden=(), likelihood="full_normal", nullable=True, standardize="none")
    with torch.no_grad():
        vae.decoder.net[-1].weight.zero_()
        vae.decoder.net[-1].bias[:4] = 7.0
    made = pv.to_arviz(vae, frame[:2], num_draws=1000, groups="posterior_predictive").posterior_predictive["x"].values
    assert abs(made[..., 1].mean() - 7) < 5 * made[..., 1].std() / math.sqrt(2000)


@pytest.mark.filterwarnings("ignore", category=MatplotlibDeprecationWarning)
@pytest.mark.parametrize("group", ["posterior", "prior"])
def test_arviz_plots_replicates_of_every_column(of_mixed, group):
    axes = arviz.plot_ppc(of_mixed[1], group=group, num_pp_samples=10, backend="matplotlib", show=False)
    assert len(np.ravel(axes)) == 4


def test_classes_and_pixels():
    random = np.random.RandomState(0)
    frame = pd.DataFrame((random.rand(20, 3) < 0.5).astype(float), columns=list("abc"))
    frame["kind"] = ["u", None, "v", None] * 5
    inference = pv.to_arviz(pv.build(frame, latent=1, likelihood="bernoulli", label="kind"), frame, num_draws=6)
    assert inference.posterior["y"].dims[-1] == "class" and list(inference.posterior["class"].values) == ["u", "v"]
    assert np.all(inference.posterior["y"].values[:, :, 0] == [1, 0])  # known
    assert inference.observed_data["x"].dtype.kind == inference.posterior_predictive["x"].dtype.kind == "i"
    assert list(inference.constant_data["label"].values[:4]) == ["u", "", "v", ""]


def test_sampled_draws_keep_their_chains():
    ppca = pv.PPCA(2).fit(X)
    drawn = pv.posterior(ppca, X[:5], "hmc", num_draws=100, chains=3, warmup=50)
    inference = pv.to_arviz(ppca, X[:5], draws=drawn, groups=["posterior", "sample_stats", "posterior_predictive"])
    assert dict(inference.posterior.sizes) == {"chain": 2, "draw": 34, "row": 5, "latent": 2}  # the third was cut short
    assert np.array_equal(inference.posterior.z[1], drawn.z[34:68])
    assert np.array_equal(inference.sample_stats.lp[1], (drawn.log_lik + drawn.log_prior)[34:68])
    assert "log_weight" not in inference.sample_stats and inference.sample_stats.r_hat.dims == ("row", "latent")
    assert inference.attrs["approximate"] == 0 and inference.attrs["num_draws"] == 68
    # given z, replicates are about its decoding
    x, mean = inference.posterior_predictive.x.values, pv.decode(ppca, drawn.z[:68].flatten(0, 1)).reshape(2, 34, 5, 4)
    assert abs((x - mean).std() / float(ppca.decoder.scale[0]) - 1) < 4.5 / math.sqrt(2 * x.size)


def test_an_improper_prior_and_a_point_posterior_leave_out_what_they_do_not_have():
    inference = pv.to_arviz(pv.PCA(2).fit(X), X, num_draws=3)
    assert set(inference.groups()) == {
        "posterior",
        "posterior_predictive",
        "observed_data",
        "log_prior",
        "sample_stats",
    }
    assert list(inference.sample_stats) == ["lp"]
    assert "prior: the prior is improper" in inference.attrs["left_out"]


def test_groups_are_chosen_by_name():
    vae = pv.build(X, latent=2, hidden=(8,))
    assert pv.to_arviz(vae, X, num_draws=3, groups=["sample_stats", "prior"]).groups() == ["sample_stats", "prior"]
    with pytest.raises(pv.OptionError, match="groups: got 'posteriors', expected one of 'posterior', 'prior'"):
        pv.to_arviz(vae, X, groups="posteriors")
    with pytest.raises(pv.OptionError, match="got 'log_likelihood', but decoder and prior are point estimates"):
        pv.to_arviz(vae, X, groups=["log_likelihood"])
    with pytest.raises(pv.OptionError, match="got 'prior', but the prior is improper"):
        pv.to_arviz(pv.PCA(2).fit(X), X, groups=["prior"])


def test_large_replicates_have_to_be_asked_for(monkeypatch):
    monkeypatch.setattr("ppl_vae.criticism.inference_data.LARGE", 3 * X.size - 1)
    vae = pv.build(X, latent=2, hidden=(8,))
    inference = pv.to_arviz(vae, X, num_draws=3)
    assert set(inference.groups()) == set(GROUPS) - {"posterior_predictive", "prior_predictive"}
    assert "prior_predictive: 360 numbers; ask for it by name" in inference.attrs["left_out"]
    assert pv.to_arviz(vae, X, num_draws=3, groups=["prior_predictive"]).prior_predictive.x.shape == (1, 3, 30, 4)


def test_point_weights_beside_effects_of_groups_are_left_out_unless_asked_for(mixed, of_mixed):
    vae, inference = of_mixed
    assert "log_likelihood: decoder.net.0.weight, " in inference.attrs["left_out"]
    with pytest.raises(TypeError, match="log likelihood not found"):
        arviz.loo(inference)
    with pytest.raises(pv.OptionError, match=r"loo: got no log likelihood.*point estimates, which have seen the rows"):
        pv.loo(inference)
    asked = pv.to_arviz(vae, mixed, num_draws=4, groups="log_likelihood", particles=8).log_likelihood["x"]
    assert asked.attrs["point_estimates"].startswith("decoder.net.0.weight, decoder.net.0.bias, ")


def test_chains_of_z_that_share_few_weights_have_no_log_likelihood():
    vae = pv.build(X, latent=1, hidden=(), scale=0.5, weights="normal")
    drawn = pv.posterior(vae, X[:4], "hmc", num_draws=20, chains=2, warmup=5)
    inference = pv.to_arviz(vae, X[:4], draws=drawn, groups=None)
    assert "each chain of z has one draw of what all rows share, 2 in all" in inference.attrs["left_out"]


def test_draws_of_other_rows_or_beside_shared_ones_are_refused():
    vae = pv.build(X, latent=2, hidden=(8,))
    with pytest.raises(pv.OptionError, match="at the first draw of row 0, which this model puts at"):
        pv.to_arviz(vae, X[5:9], draws=pv.draws(vae, X[:4], 2))
    with pytest.raises(pv.OptionError, match="draws: got 5 rows and the shared sites"):
        pv.to_arviz(vae, X, draws=pv.draws(vae, X[:5], 3))
    with pytest.raises(pv.OptionError, match="shared: got it beside draws"):
        pv.to_arviz(vae, X, draws=pv.draws(vae, X, 3), shared={})
    with pytest.raises(pv.OptionError, match=r"shared: got the sites \['w'\], expected \[\]"):
        pv.to_arviz(vae, X, shared={"w": np.zeros(3)})
