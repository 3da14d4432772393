"""Oracles: scikit-learn's own checks, and what the estimator is made of."""

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import ppl_vae as pv
from ppl_vae.use.estimator import VAEDetector
from ppl_vae.use.pyod import PyODDetector

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(300, 2) @ RANDOM.randn(2, 5) + 0.3 * RANDOM.randn(300, 5)
STRANGE = RANDOM.randn(60, 5) * X.std(0)
SMALL: Any = ({}, {"likelihood": "student_t", "scale": "feature"})
QUICK: dict[str, Any] = {
    "parts": SMALL, "epochs": 1, "steps": 60, "steps_per_row": 10.0, "batch_size": 512, "lr": 1e-2, "latent": 2,
    "hidden": (16,), "num_draws": 8, "random_state": 0,
}  # fmt: skip


@parametrize_with_checks([VAEDetector(parts=SMALL, epochs=1, steps=10, hidden=(4,), latent=2, num_draws=4)])
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    """None is expected to fail."""
    check(estimator)


@pytest.fixture(scope="module")
def detector() -> VAEDetector:
    return VAEDetector(**{**QUICK, "steps": 600}).fit(X)


def test_scores_are_the_mean_of_members_made_comparable(detector: VAEDetector) -> None:
    each = []
    assert len(detector.members_) == 2
    for vae, _, _ in detector.members_:
        own, new = (pv.score(vae, rows, "expected_log_likelihood", num_draws=8).values for rows in (X, STRANGE))
        low, middle = np.quantile(own, (0.1, 0.5))
        each.append((new - middle) / (middle - low))
    by_hand = np.mean(each, 0)
    np.testing.assert_allclose(detector.score_samples(STRANGE), by_hand, rtol=1e-9)
    np.testing.assert_allclose(detector.decision_function(STRANGE), by_hand - detector.offset_, rtol=1e-9)
    np.testing.assert_array_equal(detector.predict(STRANGE), np.where(by_hand < detector.offset_, -1, 1))
    assert (detector.predict(X) == -1).mean() == 0.1


def test_members_by_another_score() -> None:
    """By hand, as above, where members disagree: the mean of both, not the lower one."""
    fitted = VAEDetector(**{**QUICK, "steps": 8, "scoring": "elbo", "contamination": 0.3}).fit(X)
    own, new = [], []
    for vae, _, _ in fitted.members_:
        known, strange = (pv.score(vae, rows, "elbo", num_draws=8).values for rows in (X, STRANGE))
        low, middle = np.quantile(known, (0.1, 0.5))
        own.append((known - middle) / (middle - low))
        new.append((strange - middle) / (middle - low))
    np.testing.assert_allclose(fitted.score_samples(STRANGE), (new[0] + new[1]) / 2, rtol=1e-9)
    np.testing.assert_allclose(fitted.offset_, np.quantile((own[0] + own[1]) / 2, 0.3), rtol=1e-9)


def test_each_member_has_a_seed_of_its_own() -> None:
    """Two of each of two kinds: no decoder is like another of its kind."""
    members = VAEDetector(**{**QUICK, "steps": 1, "seeds": 2}).fit(X).members_
    first, second, *others = (member.vae.state_dict() for member in members)
    for one, two in ((first, others[0]), (second, others[1])):
        weights = [name for name in one if name.startswith("decoder") and name.endswith("weight")]
        assert one.keys() == two.keys() and first.keys() != second.keys()
        assert weights and not any(torch.isclose(one[name], two[name]).all() for name in weights)


def test_it_finds_what_is_strange(detector: VAEDetector) -> None:
    """Rows of the same scales without the two factors."""
    scores = detector.score_samples(np.concatenate([X, STRANGE]))
    assert roc_auc_score(np.repeat([0, 1], [300, 60]), -scores) > 0.9


def test_the_same_seed_gives_the_same_detector() -> None:
    one, two, other = (VAEDetector(**{**QUICK, "random_state": seed}).fit(X).score_samples(X) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, other)


def test_latents_are_posterior_means(detector: VAEDetector) -> None:
    np.testing.assert_allclose(detector.transform(X), pv.encode(detector.members_[0].vae, X), rtol=1e-6)
    assert detector.get_feature_names_out().tolist() == ["vaedetector0", "vaedetector1"]


def test_in_pipelines_searches_and_copies() -> None:
    """A search has no labels here: by the mean score of the rows left out."""
    pipe = make_pipeline(StandardScaler(), VAEDetector(**QUICK))
    assert set(pipe.fit(X).predict(X)) == {-1, 1}
    search = GridSearchCV(
        VAEDetector(**QUICK), {"latent": [1, 2]}, scoring=lambda e, x, y=None: e.score_samples(x).mean(), cv=2
    )
    assert search.fit(X).best_params_["latent"] in (1, 2)
    copied = clone(VAEDetector(**QUICK))
    assert copied.get_params() == VAEDetector(**QUICK).get_params()


def test_frames_and_missing_values() -> None:
    frame = pd.DataFrame(X, columns=list("abcde"))
    frame.iloc[::7, 2] = np.nan
    fitted = VAEDetector(**QUICK).fit(frame)
    assert fitted.feature_names_in_.tolist() == list("abcde") and np.isfinite(fitted.score_samples(frame)).all()
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(frame[list("abced")])


def test_frames_with_categories() -> None:
    """A category that contradicts the numbers is strange."""
    z = np.random.RandomState(4).randn(400)
    frame = pd.DataFrame({"a": z, "b": 2 * z, "kind": np.where(z > 0, "up", "down")})
    wrong = frame.assign(kind=np.where(z > 0, "down", "up"))[np.abs(z) > 0.5]
    fitted = VAEDetector(**{**QUICK, "steps": 500}).fit(frame)
    scores = np.concatenate([fitted.score_samples(frame), fitted.score_samples(wrong)])
    assert roc_auc_score(np.repeat([0, 1], [400, len(wrong)]), -scores) > 0.9
    assert fitted.transform(frame).shape == (400, 2)
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(frame[["a", "b"]])


def test_frames_with_categories_and_holes() -> None:
    """In columns of text and of numbers, in training and after it, in frames of any library."""
    z = np.random.RandomState(4).randn(200)
    frame = pd.DataFrame({"a": z, "b": 2 * z, "kind": np.where(z > 0, "up", "down")})
    frame.loc[:5, "kind"], frame.loc[4:9, "a"] = None, np.nan
    fitted = VAEDetector(**QUICK).fit(frame)
    scores = fitted.score_samples(frame)
    assert np.isfinite(scores).all()
    other = pl.from_pandas(frame)
    np.testing.assert_allclose(VAEDetector(**QUICK).fit(other).score_samples(other), scores, rtol=1e-5, atol=1e-5)


def test_a_fit_that_fails_leaves_the_detector_as_it_was() -> None:
    frame = pd.DataFrame(X, columns=list("abcde")).assign(kind="u")
    fitted = VAEDetector(**QUICK).fit(frame)
    before = fitted.score_samples(frame)
    with pytest.raises(pv.DataError, match="kind"):
        fitted.fit(frame.assign(kind=pd.Timestamp("2026-01-01")))
    np.testing.assert_array_equal(fitted.score_samples(frame), before)
    with pytest.raises(NotFittedError):
        VAEDetector(**QUICK).score_samples(frame)


def test_a_row_beyond_what_floats_hold_is_the_least_normal() -> None:
    far = np.where(np.eye(5, dtype=bool)[:3], 1e30, X[:3])
    detector = PyODDetector(0.1, VAEDetector(**QUICK)).fit(X)
    assert (detector.detector_.score_samples(far) == -np.inf).all() and detector.predict(far).all()
    wide = pv.build(X, hidden=(64, 64), activation="relu", latent=5)
    pv.fit(wide, X, epochs=2, progress=False)
    for scoring in ("reconstruction_probability", "expected_log_likelihood", "elbo", "iwae"):
        assert (pv.score(wide, far, scoring).values == -np.inf).all(), scoring


def test_of_many_rows_random_ones_say_what_is_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 of 300 rows, the first of which are the least strange: about a tenth of all rows is flagged, within 4 standard
    deviations of the share below an order statistic of rows without replacement, 0.025; fails by chance at 1e-4."""
    monkeypatch.setattr("ppl_vae.use.estimator.USUAL", 100)
    x = X[(X**2).sum(1).argsort()]
    sd = (0.1 * 0.9 / 100 * (1 - 100 / 300)) ** 0.5
    for data in (x, pd.DataFrame(x, columns=list("abcde")).assign(kind="u")):
        fitted = VAEDetector(**{**QUICK, "steps": 8}).fit(data)
        assert abs((fitted.predict(data) == -1).mean() - 0.1) < 4 * sd


@pytest.mark.parametrize(
    ("options", "steps"),
    [({"steps_per_row": 0.1}, 30), ({"epochs": 100}, 200), ({"epochs": 1}, 60), ({"epochs": 9000}, 4000)],
)
def test_steps_of_training(options: dict[str, Any], steps: int) -> None:
    """Of 300 rows in batches of 150."""
    fitted = VAEDetector(**{**QUICK, "steps_per_row": 100.0, "batch_size": 200, "parts": ({},), **options}).fit(X)
    assert int(fitted.members_[0].vae.steps) == steps


def test_trimmed_rows_are_left_out_of_a_second_fit(detector: VAEDetector) -> None:
    """A tenth of anomalies in training: fitted without most of them, they are told apart better."""
    both, labels = np.concatenate([X, 3 * STRANGE[:33]]), np.repeat([0, 1], [300, 33])
    found = []
    for trim in (0.0, 0.1):
        fitted = VAEDetector(**{**QUICK, "steps": 600, "trim": trim}).fit(both)
        found.append(fitted.score_samples(both))
    assert roc_auc_score(labels, -found[1]) > roc_auc_score(labels, -found[0])
    kept = found[0] >= np.quantile(found[0], 0.1)
    again = VAEDetector(**{**QUICK, "steps": 600}).fit(both[kept])
    torch.testing.assert_close(again.members_[1].vae.decoder.state_dict(), fitted.members_[1].vae.decoder.state_dict())
    with pytest.raises(pv.OptionError, match=r"trim: got 1.0, expected a share in \[0, 1\)"):
        VAEDetector(trim=1).fit(X)


def test_the_offset_of_a_trimmed_fit_is_of_its_second_members() -> None:
    """A tenth of all training rows is below, those that were trimmed among them."""
    both = np.concatenate([X, 3 * STRANGE[:33]])
    fitted = VAEDetector(**{**QUICK, "steps": 8, "trim": 0.2}).fit(both)
    np.testing.assert_allclose(fitted.offset_, np.quantile(fitted.score_samples(both), 0.1), rtol=1e-6)
    assert (fitted.predict(both) == -1).sum() == 34


def test_errors_and_explanations_name_columns() -> None:
    frame = pd.DataFrame(X, columns=["age", "b", "c", "d", "e"])
    fitted = VAEDetector(**QUICK).fit(frame)
    with pytest.raises(pv.DataError, match="age"):
        fitted.predict(frame.assign(age=np.nan))
    assert pv.explain(fitted.members_[0].vae, frame[:2], num_draws=2).names == tuple(frame)


def test_wrong_parts() -> None:
    with pytest.raises(pv.OptionError, match="parts: got"):
        VAEDetector(parts={"latent": 2}).fit(X)  # type: ignore[arg-type]
    for parts in ((), None, (1,)):
        with pytest.raises(pv.OptionError, match="parts: got"):
            VAEDetector(parts=parts).fit(X)  # type: ignore[arg-type]


@pytest.mark.parametrize("contamination", [0.0, 0.6, -1, "auto"])
def test_wrong_contamination(contamination: Any) -> None:
    with pytest.raises(pv.OptionError, match="contamination: got"):
        VAEDetector(contamination=contamination).fit(X)


def test_in_pyods_shape() -> None:
    """Higher = more anomalous; labels 0 and 1; a share of anomalies that is its own, not the detector's."""
    quick = VAEDetector(**{**QUICK, "steps": 8})
    plain, found = clone(quick).fit(X), PyODDetector(0.2, quick).fit(X)
    np.testing.assert_array_equal(found.decision_function(STRANGE), -plain.score_samples(STRANGE))
    np.testing.assert_array_equal(found.decision_scores_, -plain.score_samples(X))
    np.testing.assert_array_equal(found.labels_, found.predict(X))
    own, new = -plain.score_samples(X), -plain.score_samples(STRANGE)
    np.testing.assert_allclose(found.threshold_, np.quantile(own, 0.8), rtol=1e-6)
    np.testing.assert_array_equal(found.predict(STRANGE), (new > found.threshold_).astype(int))
    assert found.labels_.sum() == 60 and set(found.predict(STRANGE)) == {0, 1}
    place = ((new - own.min()) / (own.max() - own.min())).clip(0, 1)
    np.testing.assert_allclose(found.predict_proba(STRANGE), np.stack([1 - place, place], 1), rtol=1e-9)
    assert clone(found).get_params()["contamination"] == 0.2
    calibration = pv.calibrate(found, X[:99], level=0.1)
    assert calibration.threshold == pv.calibrate(plain, X[:99], level=0.1).threshold
