"""An outlier detector in scikit-learn's shape: VAEs whose scores are made comparable, of which the lowest counts."""

from collections.abc import Sequence
from math import ceil
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, OutlierMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ppl_vae.criticism.predictive import encode
from ppl_vae.criticism.scores import score
from ppl_vae.errors import OptionError, whole
from ppl_vae.infer.training import fit
from ppl_vae.model.build import build

PARTS: tuple[dict[str, Any], ...] = (
    {},
    {"likelihood": "student_t", "scale": "feature", "hidden": (128,), "activation": "tanh", "lr": 1e-2},
)
"""What members differ by: in the one noise depends on the row, in the other on the feature alone, with tails that are heavy. No
one of the two is best on all tables."""


MOST = 10_000
"""Training rows that are scored to know what is usual, at most."""


HELD_OUT = 200
"""Rows that say when a member has been trained for long enough, at most; a fifth of fewer than 1,000."""


class Member(NamedTuple):
    """A fitted model, and where the middle half of its scores of the training rows is."""

    vae: Any
    center: float
    width: float

    def standardised(self, scores: np.ndarray) -> np.ndarray:
        """Scores of this member in its own quartile ranges, 0 in the middle of the training rows'."""
        return (scores - self.center) / self.width


class VAEDetector(ClassNamePrefixFeaturesOutMixin, TransformerMixin, OutlierMixin, BaseEstimator):
    """Outlier detection by the reconstruction probability of an ensemble of VAEs.

    Each member's scores are standardised by the median and the quartiles of its own scores of the training rows, and the
    lowest counts: a row is as strange as the member finds it that finds it strangest. `score_samples` is in units of
    quartile ranges, and higher is more normal.

    Args:
        parts: for each kind of member, `lr` and options of `build` in the place of those below.
        latent: latent dimensions; no more than features.
        hidden: widths of the encoder's hidden layers, mirrored in the decoder.
        activation: of these layers.
        scale_floor: smallest learned scale, in units of a feature's standard deviation: without one, the density grows
            without bound where values repeat.
        seeds: members of each kind.
        epochs: passes of training over the rows, for each member, unless these are fewer or more steps than
        steps: (fewest, most). Of all epochs' weights those are kept that are best on held-out rows: a fifth, 200 at most.
        batch_size, lr: of training; batches are of one size, so that none is of a few rows alone.
        scoring: score of a row by a member, as in `score`.
        num_draws: of z, for a score.
        contamination: share of training rows that `predict` calls outliers, in (0, 0.5].
        random_state: seed, `RandomState` or None.

    Attributes:
        members_: fitted models, with the median and the quartile range of their training scores.
        offset_: rows that score lower are outliers.
        n_features_in_, feature_names_in_: of the training data.

    Missing values (NaN) are left out of the likelihood where training data had some in the same column.

    Example:
        >>> x = np.random.RandomState(0).randn(60, 3)
        >>> detector = VAEDetector(steps=(50, 50), random_state=0).fit(x)
        >>> detector.predict([[0.0, 0.0, 0.0], [9.0, 9.0, 9.0]]).tolist()
        [1, -1]
    """

    members_: list[Member]
    offset_: float

    def __init__(
        self,
        *,
        parts: Sequence[dict[str, Any]] = PARTS,
        latent: int = 8,
        hidden: Sequence[int] = (128, 128),
        activation: str = "relu",
        scale_floor: float = 0.05,
        seeds: int = 1,
        epochs: int = 128,
        steps: tuple[int, int] = (500, 4000),
        batch_size: int = 512,
        lr: float = 3e-3,
        scoring: Any = "expected_log_likelihood",
        num_draws: int = 32,
        contamination: float = 0.1,
        random_state: Any = None,
    ) -> None:
        self.parts = parts
        self.latent = latent
        self.hidden = hidden
        self.activation = activation
        self.scale_floor = scale_floor
        self.seeds = seeds
        self.epochs = epochs
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.scoring = scoring
        self.num_draws = num_draws
        self.contamination = contamination
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "VAEDetector":
        """Fit to rows (n, d) that are normal, or nearly all of which are.

        Args:
            X: array of numbers, or a data frame, whose columns of text, categories and truth values get a likelihood of
                their own; NaN where a value is missing.
            y: ignored.
        """
        contamination = self.contamination
        if not isinstance(contamination, Real) or not 0 < contamination <= 0.5:
            raise OptionError(f"contamination: got {contamination!r}, expected a share in (0, 0.5]")
        if isinstance(self.parts, dict) or not all(isinstance(part, dict) for part in self.parts):
            raise OptionError(f"parts: got {self.parts!r:.200}, expected a list of options of `build`, a dict for each")
        rows = self._checked(X, reset=True)
        random = check_random_state(self.random_state)
        first, known = int(random.randint(2**31 - 1)), self._some(rows, random)
        self.members_, usual = [], []
        for number, part in enumerate(list(self.parts) * whole("seeds", self.seeds)):
            vae = self._fitted(rows, part, (first + number) % 2**31)
            scores = self._scores(vae, known)
            low, center, high = np.quantile(scores, (0.25, 0.5, 0.75))
            self.members_.append(Member(vae, float(center), max(float(high - low), 1e-6)))
            usual.append(self.members_[-1].standardised(scores))
        self._n_features_out = encode(self.members_[0].vae, known[:1]).shape[1]
        self.offset_ = float(np.quantile(np.min(usual, 0), contamination))
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """(n,): higher = more normal."""
        check_is_fitted(self)
        return self._of_members(self._checked(X, reset=False))

    def decision_function(self, X: Any) -> np.ndarray:
        """`score_samples` less `offset_`, (n,): below 0 for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """(n,): 1 for inliers, -1 for outliers."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def transform(self, X: Any) -> np.ndarray:
        """Posterior means of the first member, (n, latent)."""
        check_is_fitted(self)
        rows = self._checked(X, reset=False)
        kind = np.float32 if getattr(rows, "dtype", None) == np.float32 else np.float64
        return encode(self.members_[0].vae, rows).astype(kind)

    # -- how

    def _some(self, rows: Any, random: np.random.RandomState) -> Any:
        """Rows to know what is usual."""
        if len(rows) <= MOST:
            return rows
        places = np.sort(random.permutation(len(rows))[:MOST])
        return rows[places] if isinstance(rows, np.ndarray) else rows.iloc[places]

    def _fitted(self, rows: Any, part: dict[str, Any], seed: int) -> Any:
        options: dict[str, Any] = {
            "latent": self.latent,
            "hidden": self.hidden,
            "activation": self.activation,
            "scale_floor": self.scale_floor,
            "likelihood": "normal",
        } | part
        options["latent"] = min(whole("latent", options["latent"]), rows.shape[1])
        if isinstance(rows, np.ndarray):
            options["nullable"] = bool(np.isnan(rows).any())
        else:  # the other columns by what they hold
            numbers = rows.select_dtypes("number").columns
            options["likelihood"] = dict.fromkeys(map(str, numbers), options["likelihood"])
        lr = options.pop("lr", self.lr)
        vae = build(rows, seed=seed, **options)
        valid = min(0.2, HELD_OUT / len(rows))
        seen = len(rows) - ceil(valid * len(rows))
        batches = ceil(seen / whole("batch_size", self.batch_size))
        fewest, most = (whole("steps", steps) for steps in self.steps)
        epochs = max(1, min(max(whole("epochs", self.epochs), fewest // batches), most // batches))
        how = {"batch_size": ceil(seen / batches), "valid": valid, "patience": epochs if valid else None}
        fit(vae, rows, epochs=epochs, lr=lr, seed=seed, progress=False, **how)
        return vae

    def _scores(self, vae: Any, rows: Any) -> np.ndarray:
        return score(vae, rows, self.scoring, num_draws=self.num_draws).values

    def _of_members(self, rows: Any) -> np.ndarray:
        return np.min([member.standardised(self._scores(member.vae, rows)) for member in self.members_], 0)

    def _checked(self, X: Any, reset: bool) -> Any:
        """An array of numbers, or a data frame with other columns as it is."""
        if hasattr(X, "select_dtypes") and X.select_dtypes(exclude="number").shape[1]:
            validate_data(self, X, reset=reset, skip_check_array=True)
            return X
        least = 2 if reset else 1
        kinds = [np.float64, np.float32]
        return validate_data(self, X, reset=reset, dtype=kinds, ensure_all_finite="allow-nan", ensure_min_samples=least)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
