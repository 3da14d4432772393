"""Pareto smoothing and its k-hat."""

import numpy as np
import pytest

from ppl_vae.infer.psis import k_hats, smoothed, threshold


def test_thresholds():
    # 1 - 1/log10(S), at most 0.7 (Vehtari et al. 2024)
    assert [threshold(s) for s in (100, 1000, 10**6)] == [0.5, pytest.approx(2 / 3), 0.7]


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_k_hat_of_pareto_weights(k):
    """Weights of generalised Pareto tail index k; over 40 sets of 5000 draws, within 4 standard errors and 0.03."""
    u = np.random.RandomState(0).rand(5000, 40)
    found = k_hats(np.log(u**-k))
    assert abs(found.mean() - k) < 4 * found.std() / np.sqrt(40) + 0.03  # the prior on k pulls it towards 0.5


def test_smoothing_keeps_the_level():
    """Light tails: the mean weight stays what it was."""
    log_weight = 0.3 * np.random.RandomState(1).randn(4000, 5) - 700
    found, k_hat = smoothed(log_weight)
    mean = [np.log(np.exp(v + 700).mean(0)) for v in (log_weight, found)]
    assert np.abs(mean[0] - mean[1]).max() < 0.001
    assert (k_hat < threshold(4000)).all()


def test_draws_without_weight():
    """Some draws where the likelihood is 0: the level stays, the others are smoothed."""
    log_weight = 0.3 * np.random.RandomState(1).randn(4000, 2)
    log_weight[::10] = -np.inf
    found, k_hat = smoothed(log_weight)
    assert np.abs(np.log(np.exp(found).mean(0)) - np.log(np.exp(log_weight).mean(0))).max() < 0.001
    assert (k_hat < threshold(4000)).all()


def test_equal_weights_are_good():
    log_weight = np.full((1000, 3), -5.0) + 1e-7 * np.random.RandomState(0).randn(1000, 3)
    found, k_hat = smoothed(log_weight)
    assert (k_hat == 0).all() and np.array_equal(found, log_weight)


def test_the_level_does_not_matter():
    """k-hat is of ratios: weights of tail index 0.9, with 1e6 nats taken off each."""
    log_weight = -0.9 * np.log(np.random.RandomState(0).rand(4000, 3))
    assert np.allclose(k_hats(log_weight), k_hats(log_weight - 1e6), atol=1e-6) and (k_hats(log_weight) > 0.8).all()


def test_few_draws_say_nothing():
    assert np.isnan(k_hats(np.zeros((999, 2)))).all()
