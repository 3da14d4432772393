import arviz
import numpy as np

import ppl_vae as pv

X = np.random.RandomState(0).randn(30, 4)


def test_arviz_gets_the_draws_labelled_and_writes_them(tmp_path):
    vae = pv.build(X, latent=2, hidden=(8,))
    inference, drawn = pv.to_arviz(vae, X, num_draws=7, seed=3), pv.draws(vae, X, 7, seed=3)
    assert inference.posterior.z.dims == ("chain", "draw", "row", "latent")
    assert np.array_equal(inference.posterior.z[0], drawn.z)
    stats = inference.sample_stats
    assert np.allclose(stats.lp - stats.log_q, stats.log_weight)
    assert np.array_equal(stats.log_weight[0], drawn.log_weight)
    z = inference.posterior.z
    assert np.allclose(inference.log_prior.z, -0.5 * (z**2).sum("latent") - np.log(2 * np.pi), atol=1e-5)
    assert np.array_equal(stats.lp[0], drawn.log_lik + drawn.log_prior)
    assert inference.attrs["inference_library"] == "pyro" and inference.attrs["inference_library_version"]
    assert list(inference.observed_data.column.values) == ["x0", "x1", "x2", "x3"]
    assert not hasattr(inference, "log_likelihood")
    inference.to_netcdf(str(tmp_path / "draws.nc"))
    again = arviz.from_netcdf(str(tmp_path / "draws.nc"))
    assert np.array_equal(again.posterior.z, inference.posterior.z)
    again.close()


def test_arvizs_own_summary_reads_it():
    summary = arviz.summary(pv.to_arviz(pv.PPCA(2).fit(X), X[:3], num_draws=400), kind="stats", round_to="none")
    exact = pv.PPCA(2).fit(X).posterior(X[:3]).mean.numpy().ravel()
    assert len(summary) == 6 and np.abs(summary["mean"].to_numpy() - exact).max() < 0.3
