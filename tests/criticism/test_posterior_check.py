"""Posterior predictive checks: statistics by hand, and which of the two asks more."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import ppl_vae as pv
from ppl_vae.criticism.posterior_check import posterior_predictive
from ppl_vae.model.linear import PPCA

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(150, 2) @ RANDOM.randn(2, 3) + 0.5 * RANDOM.randn(150, 3)


def test_statistics_are_those_of_the_columns():
    frame = pd.DataFrame(
        {
            "real": 30 + 5 * RANDOM.randn(60),
            "count": RANDOM.poisson(1.0, 60),
            "kind": RANDOM.choice(["u", "v", "w"], 60),
            "turn": RANDOM.vonmises(1.0, 2.0, 60),
        }
    )
    likelihood = {"real": "normal", "count": "poisson", "kind": "categorical", "turn": "von_mises"}
    vae = pv.build(frame, likelihood=likelihood, latent=2, hidden=(4,))
    for new in (True, False):
        found = posterior_predictive(vae, frame, 5, new=new)["data"]
        assert np.allclose(found["real"], [frame.real.mean(), frame.real.std(ddof=0)])
        shares = [frame["count"].mean(), frame["count"].std(ddof=0), (frame["count"] == 0).mean()]
        assert np.allclose(found["count"], shares)
        assert np.allclose(found["kind"], frame.kind.value_counts(normalize=True)[found["kind"].index])
        assert np.allclose(found["turn"], [np.cos(frame.turn).mean(), np.sin(frame.turn).mean()])


def test_the_same_rows_again_and_other_rows_in_closed_form():
    """pPCA: a row again is N(W E[z|x], W S W' + s^2), another one N(0, W W' + s^2). The mean of 150 over 400 data sets:
    its mean within 5 errors, its spread within 5 of a relative 1 / sqrt(800)."""
    ppca = PPCA(2).fit(X)
    w, noise = ppca.loadings.numpy(), ppca.noise_variance
    q = ppca.posterior(X)
    again = X.mean(0) + (q.mean.numpy() @ w.T).mean(0)
    within = np.sqrt(((w * q.stddev.numpy()[0]) ** 2).sum(1) + noise) / np.sqrt(150)
    across = np.sqrt((w**2).sum(1) + noise) / np.sqrt(150)
    for new, mean, sd in ((False, again, within), (True, X.mean(0), across)):
        found = posterior_predictive(ppca, X, 400, new=new).xs("mean", level="statistic")
        assert np.all(np.abs(found["model"] - mean) < 5 * 1.25 * sd / 20)  # a median's error is 1.25 times a mean's
        assert np.allclose((found["high"] - found["low"]) / (2 * 1.645), sd, rtol=0.25)


def test_shares_above_the_data_are_uniform_where_the_model_made_the_data():
    """x from the model, 100 times, z anew: Kolmogorov-Smirnov of two statistics fails by chance at 2e-4."""
    ppca = PPCA(1).fit(RANDOM.randn(30, 2) * [1, 3])
    drawn = [pv.generate(ppca, 30, seed=100 + i).x for i in range(100)]
    above = np.array([posterior_predictive(ppca, x, 99, seed=i, new=True).above for i, x in enumerate(drawn)])
    for statistic in (0, 3):  # the first column's mean, the second's spread
        assert stats.kstest(above[:, statistic], "uniform").pvalue > 1e-4


def test_rows_that_the_encoder_has_seen_are_forgiven_more():
    ppca = PPCA(2).fit(X)
    shifted = X + ppca.loadings[:, 0].numpy()
    new, again = (posterior_predictive(ppca, shifted, 200, new=new).above for new in (True, False))
    assert min(new.min(), 1 - new.max()) == 0.0
    assert min(again.xs("mean", level=1).min(), 1 - again.xs("mean", level=1).max()) > 0.005


def test_an_improper_prior_and_no_data_sets_are_refused():
    flat = pv.build(X, posterior="delta", prior="flat", scale=1.0)
    with pytest.raises(pv.OptionError, match="improper prior"):
        posterior_predictive(flat, X, new=True)
    assert np.isfinite(posterior_predictive(flat, X, 3)["data"]).all()  # the same rows again need no prior
    with pytest.raises(pv.OptionError, match="n: got 0"):
        posterior_predictive(flat, X, 0)
