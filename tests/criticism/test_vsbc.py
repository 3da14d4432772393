"""The variational calibration of what all rows share: its test is exact, and it sees a posterior that is off."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import ppl_vae as pv
from ppl_vae.criticism.vsbc import Symmetry, asymmetry, vsbc

RANDOM = np.random.RandomState(0)
FRAME = pd.DataFrame(RANDOM.randn(24, 2), columns=["a", "b"]).assign(group=np.repeat(["u", "v", "w"], 8))
FIT = {"epochs": 40, "lr": 0.05, "batch_size": 24, "particles": 2}


def model(seed, shift=0.0):
    """Group effects under a decoder that is known; with a shift, a guide of the location that is kept off."""
    vae = pv.build(
        FRAME, latent=1, hidden=(), scale=0.5, standardize="none", prior="hierarchical", group="group", seed=seed
    )
    with torch.no_grad():
        vae.decoder.net[0].weight.copy_(torch.tensor([[1.0], [-0.7]]))
        vae.decoder.net[0].bias.zero_()
        if shift:
            vae.encoder.shared.loc["location"] += shift
    vae.decoder.requires_grad_(False)
    vae.encoder.shared.loc["location"].requires_grad_(not shift)
    return vae


def test_the_statistic_is_the_two_sample_kolmogorov_smirnov_one():
    for n in (5, 17, 60):
        p = RANDOM.rand(n).round(1 if n == 60 else 8)  # with ties
        assert asymmetry(p)[0] == pytest.approx(stats.ks_2samp(p, (1 - p).round(8)).statistic)


def test_its_p_value_is_exact():
    """Over all 2^9 signs of 9 distances from 1/2: the share whose walk gets at least as far."""
    signs = np.array(list(itertools.product((-1, 1), repeat=9)))
    far = np.abs(signs.cumsum(1)).max(1)
    distances = np.linspace(0.45, 0.05, 9)
    for reach in range(1, 10):
        p = 0.5 + distances * signs[far == reach][0]
        assert asymmetry(p) == pytest.approx((reach / 9, (far >= reach).mean()))


def test_the_usual_p_value_is_too_small_and_this_one_is_not():
    """1000 uniform samples of 100 at level 1 %: 4 binomial deviations are 1.3 %, so this fails by chance at 3e-5."""
    samples = RANDOM.rand(1000, 100)
    ours = np.mean([asymmetry(p)[1] <= 0.01 for p in samples])
    usual = np.mean([stats.ks_2samp(p, 1 - p).pvalue <= 0.01 for p in samples])
    assert ours < 0.01 + 0.013 < usual


def test_only_a_side_counts_not_a_spread():
    narrow = Symmetry(stats.beta(0.4, 0.4).rvs((200, 1), random_state=0), ("w[0]",))
    assert narrow.p_values()[0] > 1e-3 and narrow.table["spread"].item() > 1.15
    low = Symmetry(stats.beta(2.0, 1.0).rvs((200, 1), random_state=0), ("w[0]",))
    assert low.p_values()[0] < 1e-6 and "w[0] most, too low" in low.verdict


def test_posteriors_of_group_effects_and_one_that_is_kept_off():
    """Five p-values above 1e-3: 5e-3 by chance, the seeds are fixed."""
    found = vsbc(model, FRAME, num_simulations=6, num_draws=200, **FIT)
    assert found.names == ("location[0]", "spread[0]", "offsets[0]", "offsets[1]", "offsets[2]")
    assert found.probabilities.shape == (6, 5) and (found.p_values() > 1e-3).all()
    off = vsbc(lambda seed: model(seed, 4.0), FRAME, num_simulations=11, num_draws=200, **{**FIT, "epochs": 3})
    assert off.p_values()[0] < 1e-3 and off.probabilities[:, 0].mean() < 0.1 and off.p_values().argmin() == 0


def test_a_model_in_the_place_of_a_function_and_options_that_fit_does_not_have():
    x = np.random.RandomState(0).randn(10, 3)
    vae = pv.build(x, latent=1, hidden=())
    with pytest.raises(pv.OptionError, match="make: got a VAE, expected a function of a number"):
        vsbc(vae, x)
    with pytest.raises(pv.OptionError, match=r"got the fit options \['epoch'\], expected some of .*'epochs'"):
        vsbc(lambda seed: vae, x, 2, epoch=1)
    with pytest.raises(pv.OptionError, match="vae: got a int, expected a model"):
        vsbc(lambda seed: seed, x, 2)


def test_a_model_of_rows_alone_is_refused():
    with pytest.raises(pv.OptionError, match="without sites that all rows share"):
        vsbc(lambda seed: pv.build(FRAME[["a", "b"]], latent=1), FRAME[["a", "b"]], 2, epochs=1)
