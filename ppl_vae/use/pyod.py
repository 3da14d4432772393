"""The detector in PyOD's shape: higher = more anomalous, labels 0 and 1, the training rows' own scores as attributes."""

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted

from ppl_vae.use.estimator import VAEDetector


class PyODDetector(BaseEstimator):
    """`VAEDetector` with the main methods and the attributes of PyOD's `BaseDetector` (Zhao et al. 2019), without PyOD.

    Args:
        contamination: share of the training rows that are called anomalies.
        detector: the `VAEDetector`; None: at its defaults.

    Attributes:
        decision_scores_: (n,) of the training rows, higher = more anomalous.
        threshold_: scores above it are anomalies.
        labels_: (n,) of the training rows, 1 for anomalies.
        detector_: the fitted `VAEDetector`.

    Example:
        >>> x = np.random.RandomState(0).randn(60, 3)
        >>> found = PyODDetector(detector=VAEDetector(steps=50, random_state=0)).fit(x)
        >>> int(found.labels_.sum()), found.predict([[9.0, 9.0, 9.0]]).tolist()
        (6, [1])
    """

    def __init__(self, contamination: float = 0.1, detector: VAEDetector | None = None) -> None:
        self.contamination = contamination
        self.detector = detector

    def fit(self, X: Any, y: Any = None) -> "PyODDetector":
        """Fit to rows (n, d); `y` is ignored."""
        detector = VAEDetector() if self.detector is None else clone(self.detector)
        self.detector_ = detector.set_params(contamination=self.contamination).fit(X)
        self.decision_scores_ = self.decision_function(X)
        self.threshold_ = -self.detector_.offset_
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(int)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """(n,): higher = more anomalous."""
        check_is_fitted(self, "detector_")
        return -self.detector_.score_samples(X)

    def score_samples(self, X: Any) -> np.ndarray:
        """(n,): higher = more normal, as `calibrate` asks for it."""
        return -self.decision_function(X)

    def predict(self, X: Any) -> np.ndarray:
        """(n,): 1 for anomalies, else 0."""
        return (self.decision_function(X) > self.threshold_).astype(int)

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, 2): 1 - p and p, with p a score's place between the least and the largest of the training rows, as PyOD's
        "linear"; it is no probability."""
        scores = self.decision_function(X)
        low, high = self.decision_scores_.min(), self.decision_scores_.max()
        p = np.clip((scores - low) / max(high - low, 1e-30), 0.0, 1.0)
        return np.stack([1 - p, p], 1)
