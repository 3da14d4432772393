"""Oracles: the Beta-binomial law of false positives, the share of Benjamini & Hochberg, and counts by hand."""

import logging
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.ensemble import IsolationForest

import ppl_vae as pv
from ppl_vae.criticism.calibration import Calibration, Fold, calibrate, hidden, patterns
from ppl_vae.criticism.conformal import p_values

WEIGHTS = np.random.RandomState(7).randn(3, 6)
OPTIONS: dict[str, Any] = {"scoring": "reconstruction_probability", "num_draws": 4, "seed": 0}


def rows(n: int, seed: int) -> np.ndarray:
    random = np.random.RandomState(seed)
    return random.standard_t(5, (n, 3)) @ WEIGHTS + 0.5 * random.randn(n, 6)


class Sums:
    """A detector whose score of a row is the sum of its cells."""

    def score_samples(self, x: np.ndarray) -> np.ndarray:
        return np.nansum(x, 1)


@pytest.fixture(scope="module")
def ppca() -> Any:
    return pv.PPCA(3).fit(rows(200, 0))


@pytest.fixture(scope="module")
def vae() -> Any:
    """A VAE of 400 rows, fitted a little."""
    vae = pv.build(rows(400, 0), latent=3, hidden=(16,))
    pv.fit(vae, rows(400, 0), epochs=15, lr=1e-2, progress=False, compiled=False)
    return vae


@pytest.fixture(scope="module")
def with_holes() -> Any:
    """A VAE of rows with holes, fitted a little."""
    x = rows(600, 1)
    x[np.random.RandomState(2).rand(*x.shape) < 0.2] = np.nan
    vae = pv.build(x, latent=3, hidden=(16,), nullable=True)
    pv.fit(vae, x, epochs=10, lr=1e-2, progress=False, compiled=False)
    return vae


def ks(counts: list[int], m: int, n: int, level: float) -> float:
    """Kolmogorov and Smirnov's p-value of randomised PITs of false positives among m rows by n calibration rows, which
    should be Beta-binomial(m, k, n + 1 - k), k = floor(level (n + 1))."""
    k = int(level * (n + 1) + 1e-9)
    law = stats.betabinom(m, k, n + 1 - k)
    where = np.random.RandomState(3).rand(len(counts))
    return float(stats.kstest(law.cdf(np.array(counts) - 1) + where * law.pmf(counts), "uniform").pvalue)


@pytest.mark.parametrize("level", [0.01, 0.05, 0.1])
def test_false_positives_follow_their_law(ppca: Any, level: float) -> None:
    """One model, fitted on other rows, and 200 random splits of 1200 rows. Each fails by chance at 1e-3."""
    scores, random, counts = pv.score(ppca, rows(1200, 4), **OPTIONS).values, np.random.RandomState(3), []
    for _ in range(200):
        split = random.permutation(scores)
        counts.append(int((p_values("conformal", [np.sort(split[:500])], [split[500:]], 0.1) <= level).sum()))
    assert ks(counts, 700, 500, level) > 1e-3


def test_false_positives_of_a_vae_follow_their_law(vae: Any) -> None:
    """As above, from rows to decisions, with fresh noise in each of 200 splits. Each level fails by chance at 1e-3."""
    data, random = rows(1200, 14), np.random.RandomState(5)
    counts: dict[float, list[int]] = {0.01: [], 0.05: [], 0.1: []}
    for trial in range(200):
        split = random.permutation(data)
        calibration = calibrate(vae, split[:500], num_draws=2, seed=trial)
        p = calibration.p_values(split[500:])
        for level, found in counts.items():
            found.append(int((p <= level).sum()))
    for level, found in counts.items():
        assert ks(found, 700, 500, level) > 1e-3, level


def test_selections_by_a_vae_keep_the_false_discovery_rate(vae: Any) -> None:
    """80 normal rows and 20 with one column moved by 8 standard deviations, 100 times, each with calibration rows of its
    own: the bound of theorem 2, within 4 standard errors (fails by chance at 3e-5), and most of the anomalies found."""
    random, fdr, shares, power = np.random.RandomState(6), 0.2, [], []
    for trial in range(100):
        new = rows(100, 5000 + trial)
        new[np.arange(80, 100), random.randint(0, 6, 20)] += random.choice([-1, 1], 20) * 8 * new.std()
        picked = calibrate(vae, rows(199, 7000 + trial), num_draws=2, seed=trial).select(new, fdr)
        shares.append(picked[:80].sum() / max(picked.sum(), 1))
        power.append(picked[80:].mean())
    assert np.mean(shares) < fdr * 0.8 + 4 * np.std(shares) / 10
    assert np.mean(power) > 0.8


@pytest.mark.parametrize(("seen", "low", "high"), [(False, 1e-3, 1.0), (True, 0.0, 1e-6)])
def test_calibration_on_training_rows_is_rejected(seen: bool, low: float, high: float) -> None:
    """200 models of 40 rows, calibrated on 40 others, or on the same: these are more probable than rows to come, and the
    same test finds it out."""
    counts = []
    for trial in range(200):
        train, fresh, new = rows(40, 3 * trial + 100), rows(40, 3 * trial + 101), rows(100, 3 * trial + 102)
        model = pv.PPCA(5).fit(train)
        calibration = calibrate(model, (train if seen else fresh)[:39], level=0.1, num_draws=2)
        counts.append(int(calibration.predict(new).sum()))
    assert low < ks(counts, 100, 39, 0.1) < high


def test_calibrate_is_the_ranks_of_scores(ppca: Any) -> None:
    normal, others = rows(99, 6), np.concatenate([rows(20, 8), 20 + rows(20, 9)])
    calibration = calibrate(ppca, normal, level=0.1, num_draws=4)
    reference, scores = (pv.score(ppca, x, num_draws=4).values for x in (normal, others))
    by_hand = [(1 + (reference <= s).sum()) / 100 for s in scores]
    decisions = calibration.decide(others)
    np.testing.assert_array_equal(decisions.p_values, by_hand)
    np.testing.assert_array_equal(decisions.scores, scores)
    np.testing.assert_array_equal(calibration.p_values(others), by_hand)
    np.testing.assert_array_equal(calibration.predict(others), np.array(by_hand) <= 0.1)
    np.testing.assert_array_equal(calibration.predict(others), scores < calibration.threshold)
    assert calibration.predict(others)[20:].all() and calibration.rows == 99
    assert repr(calibration) == "Calibration(reconstruction_probability of 99 rows, 'conformal' at level 0.1)"
    assert f"({decisions.anomalous.sum()} of 40 anomalous" in repr(decisions) and set(decisions.against) == {"same"}


def test_other_levels_without_another_fit(ppca: Any) -> None:
    calibration = calibrate(ppca, rows(300, 6), num_draws=4)
    for level, rule in ((0.01, "conformal"), (0.1, "conditional"), (0.2, "simultaneous"), (0.001, "tail")):
        new = calibrate(ppca, rows(300, 6), level=level, rule=rule, num_draws=4)
        again = calibration.at(level, rule)
        assert again.threshold == new.threshold and again.guarantee == new.guarantee
        assert again.folds is calibration.folds
    assert calibration.at(0.1, "conditional").threshold < calibration.at(0.1).threshold


def test_the_delta_that_is_asked_for() -> None:
    """Quantiles of the Beta by hand, of 60 calibration rows that score 0 to 59."""
    scores = np.array([-1.0, 2.5, 7.0, 58.5])
    counts = np.array([0, 3, 8, 59])
    given = calibrate(Sums(), np.arange(60.0)[:, None], level=0.1, rule="conditional", delta=0.3)
    for calibration, delta in ((given, 0.3), (given.at(0.1), 0.3), (given.at(0.1, delta=0.02), 0.02)):
        p = stats.beta.ppf(1 - delta, counts + 1, 60 - counts)
        np.testing.assert_allclose(calibration.p_values(scores[:, None]), p, rtol=1e-9)
        flagged = (stats.beta.ppf(1 - delta, np.arange(60) + 1, 60 - np.arange(60)) <= 0.1).sum()
        assert calibration.threshold == flagged - 1
    assert given.threshold > given.at(0.1, delta=0.02).threshold


def test_the_threshold_is_of_the_most_frequent_cells() -> None:
    """Of three patterns, whose scores are far apart, by hand: the sixth lowest of 119 at level 0.05."""
    x = np.zeros((317, 3))
    x[:, 2] = np.arange(317.0)
    x[:99, 0] = x[99:218, 1] = np.nan
    assert calibrate(Sums(), x, level=0.05).threshold == 99 + 5


def test_too_few_rows_are_told(ppca: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ppl_vae"):
        assert not calibrate(ppca, rows(15, 6), level=0.05).predict(100 * rows(3, 1)).any()
    assert "15 calibration rows with the most frequent cells are too few for level 0.05" in caplog.text
    assert "3 rows have cells that only 15 calibration rows have, too few for level 0.05" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "ppl_vae"):
        folds = calibrate(pv.Candidate(lambda seed: pv.build(rows(90, 6), latent=2, seed=seed), epochs=1), rows(90, 6))
    assert "90 calibration rows with the most frequent cells are too few for level 0.05" in caplog.text
    assert not folds.predict(100 * rows(3, 1)).any()
    caplog.clear()
    assert calibrate(ppca, rows(19, 6), level=0.05).predict(100 * rows(3, 1)).all() and not caplog.text
    with pytest.raises(pv.OptionError, match="rule: got 'tail' with 15 calibration rows"):
        calibrate(ppca, rows(15, 6)).at(0.01, rule="tail")


def test_rows_that_a_score_was_fitted_to_do_not_calibrate_it(ppca: Any, caplog: pytest.LogCaptureFixture) -> None:
    for normal, said in ((rows(80, 6), True), (rows(80, 7), False)):
        caplog.clear()
        calibrate(ppca, rows(80, 6), level=0.1, scoring=("typicality", {"normal": normal}))
        assert ("100 % of the calibration rows are among 'normal'" in caplog.text) == said


def test_labels_leave_anomalies_out(ppca: Any) -> None:
    x = np.concatenate([rows(150, 6), 30 + rows(50, 9)])
    labels = np.repeat([0, 1], [150, 50])
    given = calibrate(ppca, x, labels=labels, level=0.1, num_draws=4)
    assert given.rows == 150 and given.threshold == calibrate(ppca, x[:150], level=0.1, num_draws=4).threshold


def selections(deflated: float) -> np.ndarray:
    """False discovery proportions of selections among 80 normal and 20 anomalous rows, 400 times."""
    random, found = np.random.RandomState(11), []
    for _ in range(400):
        reference = np.sort(random.randn(199))
        scores = np.concatenate([random.randn(80), random.randn(20) - 3])
        p = p_values("conformal", [reference], [scores], 0.1) * deflated
        picked = stats.false_discovery_control(p) <= 0.2
        found.append(picked[:80].sum() / max(picked.sum(), 1))
    return np.array(found)


def test_selections_keep_the_false_discovery_rate() -> None:
    """At most the level times the share of normal rows (Bates et al. 2023, theorem 2), within 4 standard errors; p-values
    that are too small by half are found out by the same test."""
    bound = 0.2 * 0.8
    ours, control = selections(1.0), selections(0.5)
    assert ours.mean() < bound + 4 * ours.std() / 20
    assert control.mean() > bound + 4 * control.std() / 20


def test_select_is_benjamini_and_hochberg(ppca: Any) -> None:
    calibration = calibrate(ppca, rows(400, 6), num_draws=4)
    x = np.concatenate([rows(60, 12), 15 + rows(15, 13)])
    p, fdr = np.sort(calibration.p_values(x)), 0.1
    allowed = np.flatnonzero(p <= fdr * np.arange(1, 76) / 75)
    expected = calibration.p_values(x) <= (p[allowed[-1]] if len(allowed) else -1)
    np.testing.assert_array_equal(calibration.select(x, fdr), expected)
    assert expected[60:].mean() > 0.5


def test_rows_at_the_very_bound_of_a_selection_are_picked() -> None:
    """17 of 50 rows score above 16 of 499 calibration rows: p = 17 / 500 = 0.1 * 17 / 50. One of them less, and none is."""
    calibration = calibrate(Sums(), np.arange(499.0)[:, None])
    new = np.repeat([15.5, 1000.0], [17, 33])[:, None]
    assert calibration.p_values(new).tolist() == [17 / 500] * 17 + [1.0] * 33
    assert calibration.select(new, 0.1).tolist() == [True] * 17 + [False] * 33
    assert not calibration.select(np.concatenate([new[1:], new[-1:]]), 0.1).any()


# ---- rows with holes


def test_rows_with_holes_are_judged_among_their_like(with_holes: Any) -> None:
    """Rows of two cells have higher densities than rows of six; flags come as often in both. Binomial of 400 on top of
    the Beta of 600 calibration rows: 4 standard errors."""
    normal, new = rows(600, 14), rows(800, 15)
    new[:400, 2:] = np.nan
    calibration = calibrate(with_holes, normal, level=0.1, num_draws=8)
    flagged = calibration.predict(new)
    sd = stats.betabinom(400, 60, 541).std() / 400
    for part in (flagged[:400], flagged[400:]):
        assert abs(part.mean() - 0.1) < 4 * sd
    blind = pv.score(with_holes, new[:400], num_draws=8).values < calibration.threshold
    assert blind.mean() < 0.1 - 4 * sd  # what comparing densities of other dimensions would do


def test_enough_rows_of_the_same_pattern_are_the_reference(with_holes: Any) -> None:
    normal = rows(200, 16)
    normal[:99, 0] = np.nan
    pattern = np.array([False, True, True, True, True, True, True])
    found, kind = Fold(with_holes, with_holes.batch(normal), OPTIONS).reference(pattern)
    scores = pv.score(with_holes, normal, **OPTIONS).values
    np.testing.assert_array_equal(found, np.sort(scores[:99]))
    assert kind == "same"
    fewer = normal[1:]  # all rows that have these cells
    found, kind = Fold(with_holes, with_holes.batch(fewer), OPTIONS).reference(pattern)
    fewer[:, 0] = np.nan
    np.testing.assert_allclose(found, np.sort(pv.score(with_holes, fewer, **OPTIONS).values))
    assert kind == "hidden"


def test_cells_that_no_calibration_row_has_are_simulated(with_holes: Any, caplog: pytest.LogCaptureFixture) -> None:
    normal = rows(100, 16)
    normal[:, 0] = np.nan
    fold = Fold(with_holes, with_holes.batch(normal), OPTIONS)
    found, kind = fold.reference(np.ones(7, bool))
    assert len(found) == 2000 and kind == "simulated"
    simulated = pv.generate(with_holes, 2000, OPTIONS["seed"]).x
    simulated[:, 5] = np.nan  # as of the rows that are judged
    found, kind = fold.reference(np.array([True] * 5 + [False, True]))
    np.testing.assert_allclose(found, np.sort(pv.score(with_holes, simulated, **OPTIONS).values), rtol=1e-6)
    with caplog.at_level(logging.WARNING, "ppl_vae"):
        decisions = calibrate(with_holes, normal, num_draws=2).decide(rows(3, 1))
    assert decisions.against.tolist() == ["simulated"] * 3 and "no level is promised" in caplog.text


def test_patterns_and_hidden_cells() -> None:
    mask = torch.tensor([[True, False], [True, True], [True, False]])
    batch = pv.Batch(torch.ones(3, 2), mask, label=torch.tensor([0, -1, 2]))
    found, which = patterns(batch)
    assert found[which].tolist() == [[True, False, True], [True, True, False], [True, False, True]]
    rest = hidden(batch.rows(slice(1, 3)), np.array([False, True, False]))
    assert rest.x.tolist() == [[0.0, 1.0]] * 2 and rest.label.tolist() == [-1, -1]
    assert rest.mask is not None and rest.mask.tolist() == [[False, True]] * 2
    assert hidden(batch, np.array([True, True, False])).label.tolist() == [-1, -1, -1]
    assert hidden(batch, np.array([True, False, True])).label.tolist() == [0, -1, 2]


# ---- what is not known


def test_decisions_within_the_error_of_a_score_are_unsure(ppca: Any) -> None:
    """Two standard errors around the threshold. With few draws many, with many draws few; those that 200 times as many draws
    turn are nearly all among them."""
    normal, new = rows(400, 6), rows(1000, 17) * 1.5
    calibration = calibrate(ppca, normal, level=0.2, num_draws=5)
    few, threshold = calibration.decide(new), calibration.threshold
    low, high = few.scores - 2 * few.mcse, few.scores + 2 * few.mcse
    np.testing.assert_array_equal(few.unsure, (low < threshold) & (high >= threshold))
    reference = np.sort(pv.score(ppca, normal, num_draws=5).values)
    many = pv.score(ppca, new, num_draws=1000, seed=1).values
    turned = (p_values("conformal", [reference], [many], 0.1) <= 0.2) != few.anomalous
    assert 0 < few.unsure.sum() < 400
    assert turned.sum() > 10 and few.unsure[turned].mean() > 0.8
    assert calibrate(ppca, normal, level=0.2, num_draws=500).decide(new).unsure.sum() < few.unsure.sum() / 3


# ---- folds


def test_folds_judge_by_models_that_have_not_seen_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: each fold's model scores the new rows and its fold's own, none of which it was fitted to; p-values are means
    over folds. Marked rows are in no fold, nor in what a model is fitted to."""
    x, new, labels, fitted = rows(61, 18), rows(200, 19), np.zeros(61, int), []
    labels[::6] = 1
    x[labels == 1] += 30
    new[:3] += 50 * np.eye(new.shape[1])[:3]  # some that are called, whatever the draws
    make = partial(pv.build, x, latent=3, hidden=(), scale="shared")
    candidate = pv.Candidate(lambda seed: make(seed=seed), epochs=3, lr=3e-2, valid=0.0, compiled=False)

    def watched(vae: Any, batch: pv.Batch, **options: Any) -> Any:
        fitted.append((vae, batch.x))
        return pv.fit(vae, batch, **options)

    monkeypatch.setattr("ppl_vae.criticism.calibration.fit", watched)
    calibration = calibrate(candidate, x, level=0.1, labels=labels, folds=3, num_draws=4)
    assert calibration.rows == 50 and [len(fold.batch.x) for fold in calibration.folds] == [17, 17, 16]
    normal = as_set(fitted[0][0].batch(x[labels == 0]).x)
    assert as_set(torch.cat([fold.batch.x for fold in calibration.folds])) == normal and len(normal) == 50
    by_model = []
    for fold, (vae, rest) in zip(calibration.folds, fitted, strict=True):
        assert fold.vae is vae and len(rest) + len(fold.batch.x) == 50
        assert as_set(rest) | as_set(fold.batch.x) == normal
        own, scores = pv.score(vae, fold.batch, **OPTIONS).values, pv.score(vae, new, **OPTIONS)
        p = (1 + (own <= scores.values[:, None]).sum(1)) / (len(own) + 1)
        by_model.append((p, scores.values, scores.mcse))
    p, scores, mcse = np.mean(by_model, 0)
    decisions = calibration.decide(new)
    np.testing.assert_allclose(decisions.p_values, p, rtol=1e-12)
    np.testing.assert_allclose(decisions.scores, scores, rtol=1e-12)
    np.testing.assert_allclose(decisions.mcse, mcse, rtol=1e-12)
    np.testing.assert_array_equal(decisions.anomalous, p <= 0.1)
    assert ((p > 0.1) & (p <= 0.2)).any() and (p <= 0.1).any()
    with pytest.raises(pv.OptionError, match="threshold: got several folds"):
        _ = calibration.threshold
    assert "in 3 folds" in repr(calibration) and "twice the level" in calibration.guarantee


def as_set(x: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in x.tolist()}


def test_of_folds_the_weakest_comparison_is_told(with_holes: Any) -> None:
    """Rows without their first cell: one fold has the same, one has more cells, and one lacks another."""
    same, more, other = rows(40, 16), rows(40, 16), rows(40, 16)
    same[:, 0] = other[:, 1] = np.nan
    folds = [Fold(with_holes, with_holes.batch(x), OPTIONS) for x in (same, more, other)]
    for chosen, weakest in (((0, 1), "hidden"), ((1, 0), "hidden"), ((0, 2), "simulated"), ((2, 1), "simulated")):
        calibration = Calibration(tuple(folds[j] for j in chosen), 0.1, "conformal", 0.1)
        assert calibration.decide(same[:3]).against.tolist() == [weakest] * 3


def test_wrong_options(ppca: Any) -> None:
    x = rows(30, 0)
    candidate = pv.Candidate(lambda seed: pv.build(x, latent=1, hidden=()), epochs=1)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (ppca, {"level": 0.0}, "level: got 0.0"),
        (ppca, {"level": 1}, "level: got 1, expected a share"),
        (ppca, {"level": -1}, r"level: got -1, expected a share in \(0, 1\)"),
        (ppca, {"level": "a"}, r"level: got 'a', expected a share in \(0, 1\)"),
        (ppca, {"rule": "cv"}, "rule: got 'cv'"),
        (ppca, {"delta": 2.0}, "delta: got 2.0"),
        (ppca, {"labels": [0, 1]}, "labels: got int64 of shape"),
        (ppca, {"labels": np.full(30, 2)}, "labels"),
        (ppca, {"labels": ["0"] * 30}, "labels: got <U1"),
        (ppca, {"rule": "tail", "level": 0.001}, "rule: got 'tail' with 30 calibration rows"),
        (ppca, {"labels": np.ones(30)}, "labels: got anomalies only"),
        (candidate, {"rule": "tail"}, "rule: got 'tail' for several folds"),
        (candidate, {"folds": 1}, "folds: got 1"),
        (candidate, {"folds": 16}, "folds: got 16 for 30 rows"),
        (pv.Candidate(lambda seed: ppca, objective=None), {}, "objective=None"),
        (pv.Candidate(lambda seed: ppca, posterior="svi"), {}, "posterior='svi'"),
        (x, {}, "vae: got a ndarray"),
        (pv.VAEDetector, {}, "vae: got the class VAEDetector"),
        (ppca, {"folds": 3}, "folds: got 3 for a fitted model"),
        (IsolationForest().fit(x), {"num_draws": 3}, "vae: got a IsolationForest with"),
    ]
    for vae, options, message in cases:
        with pytest.raises(pv.OptionError, match=message):
            calibrate(vae, x, **options)
    with pytest.raises(pv.OptionError, match=r"fdr: got 1\.5"):
        calibrate(ppca, x).select(x, fdr=1.5)
    for rule in ("conditional", "tail"):
        with pytest.raises(pv.OptionError, match=f"select: got the rule '{rule}'"):
            calibrate(ppca, rows(100, 6), rule=rule).select(x)
    with pytest.raises(pv.DataError, match="got a Batch of 3 columns"):
        calibrate(ppca, pv.Batch(torch.zeros(5, 3)))
    with pytest.raises(pv.OptionError, match="background: got a model of other columns or scales"):
        calibrate(ppca, x, scoring=("likelihood_ratio", {"background": pv.PPCA(3).fit(2 * x)}))


def test_encoded_rows_are_data_too(with_holes: Any) -> None:
    x = rows(40, 20)
    x[::3, 1] = np.nan
    one, two = (pv.score(with_holes, data, num_draws=3).values for data in (x, with_holes.batch(x)))
    np.testing.assert_array_equal(one, two)
    assert isinstance(calibrate(with_holes, with_holes.batch(x)), Calibration)


# ---- detectors in scikit-learn's shape


def test_a_detector_is_calibrated_by_its_scores() -> None:
    """Of any that has `score_samples`: labels leave anomalies out, frames and arrays are alike."""
    forest = IsolationForest(random_state=0).fit(rows(200, 0))
    normal, new = rows(99, 6), np.concatenate([rows(20, 8), 20 + rows(20, 9)])
    calibration = calibrate(forest, normal, level=0.1)
    by_hand = [(1 + (forest.score_samples(normal) <= s).sum()) / 100 for s in forest.score_samples(new)]
    decisions = calibration.decide(new)
    np.testing.assert_array_equal(decisions.p_values, by_hand)
    assert "unknown how many unsure" in repr(decisions)
    assert not decisions.unsure.any() and np.isnan(decisions.mcse).all() and set(decisions.against) == {"same"}
    assert repr(calibration) == "Calibration(IsolationForest of 99 rows, 'conformal' at level 0.1)"
    marked = calibrate(forest, np.concatenate([normal, 20 + normal]), labels=np.repeat([0, 1], 99), level=0.1)
    assert marked.threshold == calibration.threshold
    assert calibration.select(new, 0.1)[20:].mean() > 0.5


@pytest.mark.parametrize("framed", [False, True])
def test_a_detector_judges_rows_with_holes_among_their_like(framed: bool) -> None:
    x = rows(400, 1)
    x[::5, 2] = np.nan
    data = pd.DataFrame(x, columns=list("abcdef")) if framed else x
    detector = pv.VAEDetector(epochs=1, steps=20, hidden=(4,), parts=({},), random_state=0).fit(data[:200])
    calibration = calibrate(detector, data[200:], level=0.1)
    new = data[200:].copy()
    (new.iloc if framed else new)[:50, 2] = np.nan
    decisions = calibration.decide(new)
    assert set(decisions.against[:50]) == {"hidden"} and set(decisions.against[51:54]) == {"same"}
    reference = data[200:].copy()  # all rows have the five cells that are left
    (reference.iloc if framed else reference)[:, 2] = np.nan
    ranks = np.searchsorted(np.sort(detector.score_samples(reference)), detector.score_samples(new[:50]), side="right")
    np.testing.assert_array_equal(decisions.p_values[:50], (1 + ranks) / 201)
    if framed:
        import polars as pl

        np.testing.assert_array_equal(calibration.p_values(pl.from_pandas(new)), decisions.p_values)
    complete = data[1:5]
    with pytest.raises(pv.OptionError, match=r"rows with cells that no calibration row has, all of '.{1,2}', "):
        calibrate(detector, reference, level=0.1).decide(complete)
