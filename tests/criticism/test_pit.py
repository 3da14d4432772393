"""Probability integral transforms: exactly uniform for the model itself, also of counts, and what a wrong model does."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import ppl_vae as pv
from ppl_vae.criticism.pit import pit
from ppl_vae.model.linear import PPCA

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(200, 2) @ RANDOM.randn(2, 3) + 0.5 * RANDOM.randn(200, 3)


def test_the_transform_is_the_distribution_function_of_the_marginal():
    """x_j ~ N(mean, W W' + s^2): shares of 4000 draws within 5 binomial errors, with 600 cells 4e-4 by chance."""
    ppca = PPCA(2).fit(X)
    scale = ((ppca.loadings**2).sum(1) + ppca.noise_variance).sqrt().numpy()
    exact = stats.norm(X.mean(0), scale).cdf(X)
    found = pit(ppca, X, num_draws=4000).values
    assert np.all(np.abs(found - exact) < 5 * np.sqrt(exact * (1 - exact) / 4000) + 1 / 2000)


def test_rows_of_the_model_are_uniform_at_any_number_of_draws():
    """Counts, bits and numbers: 9 p-values, each below 1e-4 by chance 1e-4."""
    frame = pd.DataFrame({"a": RANDOM.poisson(2.0, 50), "b": RANDOM.rand(50) < 0.3, "c": RANDOM.randn(50)})
    vae = pv.build(frame, latent=2, hidden=(4,), likelihood={"a": "poisson", "b": "bernoulli", "c": "normal"})
    rows = pv.generate(vae, 500, seed=3).x
    for draws in (1, 9, 99):
        found = pit(vae, rows, draws)
        assert found.names == ("a", "b", "c") and (found.p_values() > 1e-4).all()
        assert 0 < found.values.min() and found.values.max() < 1
    assert "calibrated" not in repr(found) and "500 rows, 3 columns" in repr(found)


def test_a_shift_and_a_spread_are_seen():
    ppca = PPCA(2).fit(X)
    x = pv.generate(ppca, 400, seed=1).x
    x[:, 1] += 1.5
    x[:, 2] = x[:, 2].mean() + 2 * (x[:, 2] - x[:, 2].mean())
    table = pit(ppca, x).table
    assert table["p"]["x0"] > 1e-3 and table["p"]["x1"] < 1e-6 and table["p"]["x2"] < 1e-6
    assert table["mean"]["x1"] > 0.6 and table["spread"]["x2"] > 1.15


def test_missing_cells_have_none_and_a_cell_does_not_depend_on_other_rows():
    frame = pd.DataFrame(X, columns=list("abc")).mask(RANDOM.rand(200, 3) < 0.2)
    frame["d"] = np.nan
    frame.loc[0, "d"] = 1.0
    vae = pv.build(frame, latent=2, hidden=(4,), nullable=True)
    found = pit(vae, frame)
    assert np.array_equal(np.isnan(found.values), frame.isna())
    some = pit(vae, frame.iloc[50:60])
    held = ~np.isnan(some.values)
    assert np.array_equal(some.values[held], found.values[50:60][held])
    assert np.isnan(some.p_values()[3]) and np.isfinite(some.p_values()[:3]).all()


def test_equal_rows_have_draws_of_their_own():
    ppca = PPCA(2).fit(X)
    found = pit(ppca, np.repeat(X[:1], 300, 0), 3).values
    assert len(np.unique(found[:, 0])) == 300


def test_what_all_rows_share_and_what_a_row_is_given():
    """A group far away: its rows are where the model expects them only if it is told their group."""
    group = np.repeat(["u", "v"], 100)
    frame = pd.DataFrame({"x": np.where(group == "u", -4.0, 4.0) + RANDOM.randn(200), "group": group})
    vae = pv.build(frame, latent=1, hidden=(), scale=0.5, standardize="none", prior="hierarchical", group="group")
    with torch.no_grad():
        vae.decoder.net[0].weight.fill_(1.0)
        vae.decoder.net[0].bias.zero_()
    vae.decoder.requires_grad_(False)
    pv.fit(vae, frame, epochs=150, lr=0.1, batch_size=200, valid=0.0, progress=False)
    told = pit(vae, frame).values[:, 0]
    other = pit(vae, frame.assign(group=group[::-1])).values[:, 0]
    assert 0.4 < told[:100].mean() < 0.6 and 0.4 < told[100:].mean() < 0.6
    assert other[:100].mean() < 0.1 and other[100:].mean() > 0.9


def test_an_improper_prior_is_refused():
    with pytest.raises(pv.OptionError, match="improper prior"):
        pit(pv.build(X, posterior="delta", prior="flat", scale=1.0), X)
