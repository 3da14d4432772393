"""An outlier detector in scikit-learn's shape: the mean of VAEs whose scores are made comparable."""

from collections.abc import Sequence
from math import ceil
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, OutlierMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ppl_vae.criticism.predictive import encode
from ppl_vae.criticism.scores import quantile, score
from ppl_vae.data.tables import rows_at
from ppl_vae.errors import OptionError, number, whole
from ppl_vae.infer.training import fit
from ppl_vae.model.build import build

PARTS: tuple[dict[str, Any], ...] = (
    {"hidden": (128, 128), "activation": "relu"},
    {"likelihood": "student_t", "scale": "feature", "lr": 1e-2, "steps": 1000, "steps_per_row": 1000.0},
)
"""What members differ by: in the one noise depends on the row, in the other on the feature alone, with tails that are heavy.
No one of the two is best on all tables. The first memorises few rows soon, the second does not."""


USUAL = 10_000
"""Training rows that are scored to know what is usual, at most."""


MOST = 4_000
"""Steps of training, at most."""


TRAINING = ("epochs", "steps", "steps_per_row", "batch_size", "lr")


class Member(NamedTuple):
    """A fitted model, the median of its scores of the training rows, and how far the lowest tenth lies below that.

    Anomalies are low: it is the lower tail whose width makes members comparable.
    """

    vae: Any
    center: float
    width: float

    def standardised(self, scores: np.ndarray) -> np.ndarray:
        """Scores of this member, 0 in the middle of the training rows', -1 below all but a tenth of them."""
        return (scores - self.center) / self.width


def _framed(x: np.ndarray, names: np.ndarray) -> Any:
    """Rows whose errors and explanations name columns."""
    import pandas as pd

    return pd.DataFrame(x, columns=names, copy=False)


class VAEDetector(ClassNamePrefixFeaturesOutMixin, TransformerMixin, OutlierMixin, BaseEstimator):
    """Outlier detection by an ensemble of VAEs.

    A member's score is E_q[log p(x|z)], how well it explains a row (An & Cho 2015, section 3.2), less the median of its
    scores of the training rows, in units of what their tenth percentile lies below that. The mean of members is
    `score_samples`; higher is more normal, and -inf the score of a row beyond what floats hold.

    Args:
        parts: for each kind of member, options of `build` and any of the next nine, in the place of those: the second of
            the two that are here has `lr`, `steps` and `steps_per_row` of its own, so that to change them for both takes
            other parts.
        latent: latent dimensions; no more than features.
        hidden: widths of the encoder's hidden layers, mirrored in the decoder.
        activation: of these layers.
        scale_floor: smallest learned scale, in units of a feature's standard deviation: without one, the density grows
            without bound where values repeat.
        epochs: passes of training over the rows, if these are at least
        steps: so many, else as many; of neither more than 4,000 steps, or than
        steps_per_row: steps for each row, 8 at least.
        batch_size, lr: of training. Batches are of about one size, so that none is of a few rows alone.
        seeds: members of each kind.
        trim: share of the training rows, those that score lowest, without which all members are fitted once more, in [0, 1):
            for rows that are known to hold anomalies.
        scoring: score of a row by a member, as in `score`.
        num_draws: of z, for a score.
        contamination: share of training rows that `predict` calls outliers, in (0, 0.5].
        random_state: seed, `RandomState` or None.

    Attributes:
        members_: fitted models, with what their scores are standardised by.
        offset_: rows that score lower are outliers.
        n_features_in_, feature_names_in_: of the training data.

    Missing values (NaN) are left out of the likelihood where training data had some in the same column.

    Example:
        >>> x = np.random.RandomState(0).randn(60, 3)
        >>> detector = VAEDetector(random_state=0).fit(x)
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
        hidden: Sequence[int] = (128,),
        activation: str = "tanh",
        scale_floor: float = 0.05,
        epochs: int = 64,
        steps: int = 500,
        steps_per_row: float = 0.5,
        batch_size: int = 512,
        lr: float = 3e-3,
        seeds: int = 1,
        trim: float = 0.0,
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
        self.epochs = epochs
        self.steps = steps
        self.steps_per_row = steps_per_row
        self.batch_size = batch_size
        self.lr = lr
        self.seeds = seeds
        self.trim = trim
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

        Returns: itself.

        Raises: OptionError for settings, DataError for rows that cannot be used.
        """
        contamination = self.contamination
        if not isinstance(contamination, Real) or not 0 < contamination <= 0.5:
            raise OptionError(f"contamination: got {contamination!r}, expected a share in (0, 0.5]")
        parts = self.parts
        if not isinstance(parts, Sequence) or not parts or not all(isinstance(part, dict) for part in parts):
            raise OptionError(f"parts: got {self.parts!r:.200}, expected a list of options of `build`, a dict for each")
        trim = number("trim", self.trim, inclusive=True)
        if trim >= 1:
            raise OptionError(f"trim: got {trim!r}, expected a share in [0, 1)")
        rows = self._checked(X, reset=True)
        random = check_random_state(self.random_state)
        first, known = int(random.randint(2**31 - 1)), self._some(rows, random)
        usual = self._fit_members(rows, known, first)
        if trim:
            scores = self._of_members(rows)
            kept = np.flatnonzero(scores >= np.quantile(scores, trim))
            usual = self._fit_members(rows_at(rows, kept), known, first)
        self._n_features_out = encode(self.members_[0].vae, known[:1]).shape[1]
        self.offset_ = quantile(usual, contamination)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Score rows; higher is more normal.

        Args:
            X: n rows, with the columns of `fit`.

        Returns: (n,) float64: means over members of standardised scores.

        Raises: NotFittedError before `fit`; DataError.
        """
        check_is_fitted(self)
        return self._of_members(self._checked(X, reset=False))

    def decision_function(self, X: Any) -> np.ndarray:
        """Score rows by `score_samples` less `offset_`.

        Args:
            X: n rows, with the columns of `fit`.

        Returns: (n,): below 0 for outliers.

        Raises: NotFittedError before `fit`; DataError.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """Tell outliers from inliers.

        Args:
            X: n rows, with the columns of `fit`.

        Returns: (n,): 1 for inliers, -1 for outliers.

        Raises: NotFittedError before `fit`; DataError.
        """
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def transform(self, X: Any) -> np.ndarray:
        """Posterior means of z by the first member.

        Args:
            X: n rows, with the columns of `fit`.

        Returns: (n, latent).

        Raises: NotFittedError before `fit`; DataError.
        """
        check_is_fitted(self)
        rows = self._checked(X, reset=False)
        kind = np.float32 if np.asarray(rows).dtype == np.float32 else np.float64
        return encode(self.members_[0].vae, rows).astype(kind)

    # -- how

    def _fit_members(self, rows: Any, known: Any, first: int) -> np.ndarray:
        """Fit them to rows, and return the scores of some that are known."""
        members, found = list[Member](), []
        for place, part in enumerate(list(self.parts) * whole("seeds", self.seeds)):
            vae = self._fitted(rows, part, (first + place) % 2**31)
            scores = self._scores(vae, known)
            low, center = np.quantile(scores, (0.1, 0.5))
            members.append(Member(vae, float(center), max(float(center - low), 1e-6)))
            found.append(members[-1].standardised(scores))
        self.members_ = members  # all or none: a fit that fails leaves the detector as it was
        return np.mean(found, 0)

    def _some(self, rows: Any, random: np.random.RandomState) -> Any:
        """Rows to know what is usual."""
        if len(rows) <= USUAL:
            return rows
        return rows_at(rows, np.sort(random.permutation(len(rows))[:USUAL]))

    def _fitted(self, rows: Any, part: dict[str, Any], seed: int) -> Any:
        given = ("latent", "hidden", "activation", "scale_floor", *TRAINING)
        options: dict[str, Any] = {"likelihood": "normal"} | {name: getattr(self, name) for name in given} | part
        epochs, steps, size = (whole(name, options.pop(name)) for name in ("epochs", "steps", "batch_size"))
        most = min(MOST, max(8, number("steps_per_row", options.pop("steps_per_row")) * len(rows)))
        lr = options.pop("lr")
        options["latent"] = min(whole("latent", options["latent"]), rows.shape[1])
        numbers = None if isinstance(rows, np.ndarray) else list(rows.select_dtypes("number"))
        if numbers is None or len(numbers) == rows.shape[1]:
            options["nullable"] = bool(np.isnan(np.asarray(rows)).any())
        else:  # the other columns by what they hold
            options["likelihood"] = dict.fromkeys(map(str, numbers), options["likelihood"])
            options["nullable"] = bool(rows.isna().to_numpy().any())
        vae, batches = build(rows, seed=seed, **options), ceil(len(rows) / size)
        epochs = max(1, min(max(epochs, ceil(steps / batches)), round(most / batches)))
        fit(vae, rows, epochs=epochs, batch_size=ceil(len(rows) / batches), lr=lr, valid=0.0, seed=seed, progress=False)
        return vae

    def _scores(self, vae: Any, rows: Any) -> np.ndarray:
        return score(vae, rows, self.scoring, num_draws=self.num_draws).values

    def _of_members(self, rows: Any) -> np.ndarray:
        return np.mean([member.standardised(self._scores(member.vae, rows)) for member in self.members_], 0)

    def _checked(self, X: Any, reset: bool) -> Any:
        """An array of numbers, named if it was so in training; or a data frame with other columns, as it is."""
        if not hasattr(X, "select_dtypes") and (to_pandas := getattr(X, "to_pandas", None)):
            X = to_pandas()  # of polars and pyarrow
        if hasattr(X, "select_dtypes") and X.select_dtypes(exclude="number").shape[1]:
            validate_data(self, X, reset=reset, skip_check_array=True)
            return X
        least = 2 if reset else 1
        kinds = [np.float64, np.float32]
        x = validate_data(self, X, reset=reset, dtype=kinds, ensure_all_finite="allow-nan", ensure_min_samples=least)
        names = getattr(self, "feature_names_in_", None)
        return x if names is None else _framed(x, names)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
