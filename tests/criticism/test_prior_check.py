"""Prior predictive checks: every prior by name, statistics by hand, and shares above the data that are uniform."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import ppl_vae as pv
from ppl_vae.criticism.prior_check import held_against
from ppl_vae.data.schema import Batch
from ppl_vae.model.linear import PPCA
from ppl_vae.model.priors import PRIORS

RANDOM = np.random.RandomState(0)
N = 60
FRAME = pd.DataFrame(
    {
        "real": 30 + 5 * RANDOM.randn(N),
        "positive": np.exp(RANDOM.randn(N)),
        "count": RANDOM.poisson(1.0, N),
        "flag": RANDOM.rand(N) < 0.3,
        "kind": RANDOM.choice(["u", "v", "w"], N, p=[0.6, 0.3, 0.1]),
    }
)
LIKELIHOOD = {"real": "normal", "count": "poisson"}
POSTERIOR = {
    "logistic_normal": "logistic_normal",
    "dirichlet": "dirichlet",
    "sphere": "power_spherical",
    "bernoulli": "bernoulli",
    "categorical": "categorical",
}
GIVEN = {"conditional": {"covariates": ("age",)}, "hierarchical": {"group": "site"}}


@pytest.mark.parametrize("name", [name for name in PRIORS if name != "flat"])
def test_every_prior_is_checked_by_name(name):
    frame = FRAME.assign(age=RANDOM.randn(N), site=RANDOM.choice(["a", "b"], N))
    frame = frame.drop(columns=[c for c in ("age", "site") if c not in str(GIVEN.get(name))])
    options = {"posterior": POSTERIOR.get(name, "mean_field"), **GIVEN.get(name, {})}
    vae = pv.build(frame, likelihood=LIKELIHOOD, latent=2, hidden=(8,), prior=name, **options)
    found = pv.prior_predictive(vae, frame, n=20)
    assert list(found.columns) == ["data", "model", "low", "high", "above"] and np.isfinite(found).all(axis=None)
    assert (found.low <= found.model).all() and (found.model <= found.high).all() and found.above.between(0, 1).all()
    assert found.equals(pv.prior_predictive(vae, frame, n=20))
    assert not found.equals(pv.prior_predictive(vae, frame, n=20, seed=1))


def test_statistics_are_those_of_the_columns():
    vae = pv.build(FRAME, likelihood=LIKELIHOOD, latent=2, hidden=(8,))
    found = pv.prior_predictive(vae, FRAME, n=3)["data"]
    for column in ("real", "positive", "count"):
        assert np.allclose(found[column][["5%", "50%", "95%"]], FRAME[column].quantile([0.05, 0.5, 0.95]))
    assert found["count", "zeros"] == pytest.approx((FRAME["count"] == 0).mean())
    assert np.allclose(found["kind"], FRAME.kind.value_counts(normalize=True)[found["kind"].index])
    assert found["flag"].tolist() == pytest.approx([1 - FRAME.flag.mean(), FRAME.flag.mean()])
    angle = pd.DataFrame({"angle": RANDOM.vonmises(1.0, 2.0, N)})
    found = pv.prior_predictive(pv.build(angle, likelihood="von_mises", latent=2), angle, n=3)["data"]["angle"]
    assert found.tolist() == pytest.approx([np.cos(angle.angle).mean(), np.sin(angle.angle).mean()])


def test_missing_cells_are_left_out_on_both_sides():
    """Those below the median are hidden: half of the rows tell of the data and of what is drawn."""
    low = FRAME.real < FRAME.real.median()
    holes = FRAME.assign(real=FRAME.real.mask(low))
    vae = pv.build(holes, likelihood=LIKELIHOOD, nullable=["real"], latent=2, hidden=(8,))
    found = pv.prior_predictive(vae, holes, n=10)
    assert found.loc[("real", "50%"), "data"] == pytest.approx(FRAME.real[~low].median())
    assert np.isfinite(found).all(axis=None)


def test_shares_above_the_data_are_uniform_where_the_model_made_the_data():
    """x from the model itself, 100 times: Kolmogorov-Smirnov of two statistics fails by chance at 2e-4."""
    ppca = PPCA(1).fit(RANDOM.randn(30, 2) * [1, 3])
    drawn = [pv.generate(ppca, 30, seed=100 + i).x for i in range(100)]
    above = np.array([pv.prior_predictive(ppca, x, seed=i).above for i, x in enumerate(drawn)])
    for statistic in (1, 5):  # of the first column its median, of the second its 95 % quantile
        assert stats.kstest(above[:, statistic], "uniform").pvalue > 1e-4
    shifted = pv.prior_predictive(ppca, drawn[0] + np.array([0, 20]))
    assert shifted.loc["x1"].above.max() == 0.0 and shifted.loc["x0"].above.min() > 0.0


def test_a_data_set_has_one_draw_of_what_its_rows_share():
    """Medians of data sets spread as sqrt(location + spread of effects), not as row noise over sqrt(n)."""
    rows = pd.DataFrame({"a": RANDOM.randn(400), "site": "only"})
    vae = pv.build(rows, prior="hierarchical", group="site", latent=1, hidden=(), scale=0.1, standardize="none")
    with torch.no_grad():
        vae.decoder.net[0].weight.fill_(1.0)
        vae.decoder.net[0].bias.zero_()
    found = pv.prior_predictive(vae, rows, n=400).loc[("a", "50%")]
    # location of variance 1 and spread times offset of variance 1: about 1.4, against 0.06 of 400 rows of their own
    assert 1.0 < (found.high - found.low) / (2 * 1.645) < 1.8


def test_an_improper_prior_and_no_data_sets_are_refused():
    x = RANDOM.randn(20, 2)
    with pytest.raises(pv.OptionError, match="improper prior"):
        pv.prior_predictive(pv.build(x, posterior="delta", prior="flat", scale=1.0), x)
    with pytest.raises(pv.OptionError, match="n: got 0"):
        pv.prior_predictive(pv.build(x), x, n=0)


def test_a_column_without_an_observed_cell_has_nan_and_no_warning():
    """One row with a hole, for each type of statistic: NumPy's warnings would be errors here."""
    frame = FRAME.assign(turn=RANDOM.vonmises(1.0, 2.0, N))
    frame = frame.mask(RANDOM.rand(*frame.shape) < 0.2)
    vae = pv.build(frame, likelihood={**LIKELIHOOD, "turn": "von_mises"}, nullable=True, latent=2, hidden=(8,))
    row = frame.dropna().iloc[:1]
    for column in row:
        found = pv.prior_predictive(vae, row.assign(**{column: np.nan}), n=5)
        assert found.loc[[column]].isna().all(axis=None)
        assert np.isfinite(found.drop(column, level="column")).all(axis=None)


def test_a_data_set_of_the_model_is_outside_the_range_one_time_in_ten():
    """Of 20 data sets, one of them the data, each is the lowest with 1 / 20: of 19 the range is their ends."""
    drawn = torch.randn(19, 5, 1, generator=torch.Generator().manual_seed(0))
    found = held_against(None, Batch(torch.zeros(5, 1)), [drawn], {}, {"mean": lambda values: values.mean(1)}).iloc[0]
    means = drawn.double().mean(1)
    assert found["low"] == pytest.approx(means.min().item()) and found["high"] == pytest.approx(means.max().item())
