"""From scores to decisions with an error rate: rows are judged against rows that are known to be normal."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ppl_vae.criticism.beyond import without_nan
from ppl_vae.criticism.compare import Candidate
from ppl_vae.criticism.conformal import RULES, p_values, threshold
from ppl_vae.criticism.predictive import generate
from ppl_vae.criticism.scores import score
from ppl_vae.data.schema import Batch
from ppl_vae.data.tables import rows_at
from ppl_vae.errors import OptionError, choose, number, whole
from ppl_vae.infer.draws import batch_of
from ppl_vae.infer.noise import row_keys
from ppl_vae.infer.training import fit

log = logging.getLogger(__name__)

LEVEL, DELTA, FOLDS = 0.05, 0.1, 5
SCORING, NUM_DRAWS = "reconstruction_probability", 64
FEWEST = 99
"""Rows of one pattern of holes that are enough to judge others of the same."""
MOST = 2000
"""Rows whose cells are hidden, or that are simulated, to judge rows of another pattern."""
SHIFTS = (0.0, -2.0, 2.0)
"""Monte Carlo standard errors that are added to a score: it is not told from a threshold in between."""


@dataclass(frozen=True, eq=False, repr=False)
class Decisions:
    """Of m rows.

    Attributes:
        anomalous: (m,) of bool, p <= level.
        unsure: (m,) of bool: two Monte Carlo standard errors of the score more or less would turn the decision; to tell,
            calibrate and judge with more draws. Of fewer than some 30 draws the errors are too small to be trusted. False
            where the error is not known.
        p_values: (m,).
        scores: (m,), higher = more normal; of folds their mean.
        mcse: (m,) of the scores; of folds the mean of theirs.
        against: (m,) of text, what each row was compared to: "same", calibration rows with the same cells; "hidden",
            calibration rows with the other cells hidden; "simulated", rows by the model, which promise nothing.
    """

    anomalous: np.ndarray
    unsure: np.ndarray
    p_values: np.ndarray
    scores: np.ndarray
    mcse: np.ndarray
    against: np.ndarray

    def __repr__(self) -> str:
        unsure = "unknown how many" if np.isnan(self.mcse).all() else self.unsure.sum()
        return f"Decisions({self.anomalous.sum()} of {len(self.anomalous)} anomalous, {unsure} unsure)"


class Fold:
    """A fitted model, and rows that it was not fitted to.

    Args:
        vae: the model.
        batch: n encoded rows.
        options: of `score`.
        scores: of these rows (n,), where they are known.
    """

    def __init__(self, vae: Any, batch: Any, options: dict[str, Any], scores: np.ndarray | None = None) -> None:
        self.vae, self.options = vae, options
        self.batch = self.read(batch)
        self.scores = self.judged(self.batch)[0] if scores is None else scores
        self.patterns, self.which = self.seen(self.batch)
        self._references: dict[bytes, tuple[np.ndarray, str]] = {}

    def read(self, data: Any) -> Any:
        """Rows as they are scored."""
        return batch_of(self.vae, data)

    def judged(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        """Scores (n,) and their Monte Carlo errors, NaN where these are not known."""
        found = score(self.vae, rows, **self.options)
        return without_nan(found.values), found.mcse

    def seen(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        """The distinct patterns of cells that are there, and which of them each row has."""
        return patterns(rows)

    def hidden(self, places: np.ndarray, pattern: np.ndarray) -> Any:
        """Some of the rows with all cells hidden but those of a pattern."""
        return hidden(self.batch.rows(torch.from_numpy(places)), pattern)

    def reference(self, pattern: np.ndarray) -> tuple[np.ndarray, str]:
        """Ascending scores of normal rows with this pattern of cells, for log densities of other cells do not compare.

        "same": of rows with the same pattern, if there are `FEWEST`; else "hidden": of rows that have all of these cells,
        the others hidden; if there are none, "simulated": of rows that the model simulates.
        """
        key = pattern.tobytes()
        if key not in self._references:
            scores, kind = self._compared(pattern)
            self._references[key] = np.sort(scores), kind
        return self._references[key]

    def _compared(self, pattern: np.ndarray) -> tuple[np.ndarray, str]:
        same = np.all(self.patterns == pattern, 1)[self.which]
        if same.sum() >= FEWEST or same.all():
            return self.scores[same], "same"
        covers = np.flatnonzero(np.all(self.patterns >= pattern, 1)[self.which])[:MOST]
        rows = self.hidden(covers, pattern) if len(covers) else hidden(self._simulated(pattern), pattern)
        return self.judged(rows)[0], "hidden" if len(covers) else "simulated"

    def _simulated(self, pattern: np.ndarray) -> Batch:
        if self.batch.c is not None or self.batch.group is not None or self.batch.label is not None:
            raise OptionError(
                "data: got rows with cells that no calibration row has, and a model with covariates, groups or labels; "
                "expected calibration rows with these cells"
            )
        return batch_of(self.vae, generate(self.vae, MOST, self.options["seed"]))


class DetectorFold(Fold):
    """A fitted detector in scikit-learn's shape, as `VAEDetector`, and rows that it was not fitted to."""

    def read(self, data: Any) -> Any:
        data = data.to_pandas() if hasattr(data, "to_pandas") else data  # of polars and pyarrow
        return data if hasattr(data, "iloc") else np.asarray(data)

    def judged(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        scores = without_nan(np.asarray(self.vae.score_samples(rows), float))
        return scores, np.full(len(scores), np.nan)

    def seen(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        there = rows.notna().to_numpy() if hasattr(rows, "iloc") else ~np.isnan(rows.astype(float))
        found, which = np.unique(there, axis=0, return_inverse=True)
        return found, which.reshape(-1)

    def hidden(self, places: np.ndarray, pattern: np.ndarray) -> Any:
        if hasattr(self.batch, "iloc"):
            return self.batch.iloc[places].where(pattern[None].repeat(len(places), 0))
        return np.where(pattern, self.batch[places].astype(float), np.nan)

    def _simulated(self, pattern: np.ndarray) -> Batch:
        columns = getattr(self.batch, "columns", [f"x{j}" for j in range(len(pattern))])
        there = ", ".join(map(repr, np.asarray(columns)[pattern][:10].tolist()))
        raise OptionError(
            f"data: got rows with cells that no calibration row has, all of {there}; expected calibration rows with these "
            "cells, as a detector does not simulate them"
        )


def patterns(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """The distinct patterns (r, d + 1) of cells that are there, the class last, and which of them each row has, (n,)."""
    n, d = len(batch.x), batch.x.flatten(1).shape[1]
    if batch.mask is None and batch.label is None:
        return np.ones((1, d + 1), bool), np.zeros(n, int)
    seen = torch.ones(n, d, dtype=torch.bool) if batch.mask is None else batch.mask.cpu()
    known = torch.ones(n, dtype=torch.bool) if batch.label is None else (batch.label >= 0).cpu()
    found, which = np.unique(torch.cat([seen, known[:, None]], 1).numpy(), axis=0, return_inverse=True)
    return found, which.reshape(-1)


def hidden(batch: Batch, pattern: np.ndarray) -> Batch:
    """The same rows with all cells hidden but those of a pattern."""
    seen = torch.from_numpy(pattern).to(batch.x.device)
    label = batch.label if batch.label is None or seen[-1] else torch.full_like(batch.label, -1)
    if seen[:-1].all():
        return batch._replace(label=label)
    mask = seen[:-1].expand(batch.x.shape).clone()
    return batch._replace(x=torch.where(mask, batch.x, 0.0), mask=mask, label=label)


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """Scores of normal rows, against which others are judged (Vovk et al. 2005; Bates et al. 2023); made by `calibrate`.

    Attributes:
        folds: models, each with rows that it was not fitted to.
        level: largest p-value of rows that are flagged.
        rule: a name of `RULES`.
        delta: how often, over calibration rows, the rules "conditional" and "simultaneous" may fail.
    """

    folds: tuple[Fold, ...]
    level: float
    rule: str
    delta: float

    def __repr__(self) -> str:
        scoring = self.folds[0].options["scoring"]
        name = scoring[0] if isinstance(scoring, tuple) else scoring
        folds = f" in {len(self.folds)} folds" if len(self.folds) > 1 else ""
        return f"Calibration({name} of {self.rows} rows{folds}, {self.rule!r} at level {self.level:g})"

    @property
    def rows(self) -> int:
        """n, of all folds."""
        return sum(len(fold.scores) for fold in self.folds)

    @property
    def guarantee(self) -> str:
        """What holds if the calibration rows and normal rows to come are exchangeable, for each pattern of holes apart.

        Of rows that are judged against "hidden" ones (`Decisions.against`) it holds if what is missing does not depend on
        the values; of those against "simulated" ones nothing is promised.
        """
        if len(self.folds) == 1:
            return RULES[self.rule].text
        return (
            "of normal rows to come, at most twice the level is flagged on average, in practice less than the level, and "
            "far less where a fold has few rows (cross-conformal: Vovk 2015; Vovk & Wang 2020, of means of p-values); "
            "nothing is proven of `select`"
        )

    @property
    def threshold(self) -> float:
        """The score below which rows are flagged that have the cells that most calibration rows have; -inf: too few rows
        for the level.

        Raises: OptionError where each fold has its own, or for too few rows for a tail.
        """
        if len(self.folds) > 1:
            raise OptionError("threshold: got several folds, whose scores have no common one; expected p_values")
        return threshold(self.rule, self._usual()[0], self.level, self.delta)

    def _usual(self) -> list[np.ndarray]:
        """Of each fold, what rows with the cells that most calibration rows have are compared to."""
        return [fold.reference(fold.patterns[np.bincount(fold.which).argmax()])[0] for fold in self.folds]

    def at(self, level: float, rule: str | None = None, delta: float | None = None) -> "Calibration":
        """Take the same calibration rows at another level, or by another rule: nothing is fitted again.

        Args:
            level: as in `calibrate`.
            rule: as there; None: the same.
            delta: as there; None: the same.

        Returns: another `Calibration`.

        Raises: OptionError.
        """
        rule, delta = self.rule if rule is None else rule, self.delta if delta is None else delta
        _check_rule(rule, len(self.folds))
        return _told(replace(self, level=_share("level", level), rule=rule, delta=_share("delta", delta)))

    def decide(self, data: Any) -> Decisions:
        """Judge m rows: flag them, say which decisions are unsure, and how probable such scores are of normal rows.

        Args:
            data: m rows.

        Returns: `Decisions`, (m,) of each.

        Raises: as `score`.
        """
        batches = [fold.read(data) for fold in self.folds]
        values, unknown = zip(*(fold.judged(batch) for fold, batch in zip(self.folds, batches)))
        errors = [np.nan_to_num(e) for e in unknown]
        seen, which = self.folds[0].seen(batches[0])
        p, low, high = (np.empty(len(which)) for _ in range(3))
        against = np.empty(len(which), dtype="U9")
        for place, pattern in enumerate(seen):
            rows = which == place
            references, kinds = zip(*(fold.reference(pattern) for fold in self.folds))
            against[rows] = max(kinds, key=("same", "hidden", "simulated").index)
            if "simulated" in kinds:
                log.warning("%d rows have cells that no calibration row has: no level is promised of these", rows.sum())
            if self._least(references) > self.level:
                log.warning(
                    "%d rows have cells that only %d calibration rows have, too few for level %g: none of them is flagged",
                    rows.sum(), sum(map(len, references)), self.level,
                )  # fmt: skip
            shifted = [np.concatenate([v[rows] + s * e[rows] for s in SHIFTS]) for v, e in zip(values, errors)]
            found_p = p_values(
                self.rule, list(references), shifted, self.delta
            )  # of all at once: a tail is fitted once
            p[rows], low[rows], high[rows] = np.split(found_p, len(SHIFTS))
        unsure = (low <= self.level) != (high <= self.level)
        return Decisions(p <= self.level, unsure, p, np.mean(values, 0), np.mean(unknown, 0), against)

    def _least(self, references: Sequence[np.ndarray]) -> float:
        """The p-value of a score below all of these."""
        return float(p_values(self.rule, list(references), [np.array([-np.inf])] * len(references), self.delta)[0])

    def p_values(self, data: Any) -> np.ndarray:
        """Say how probable so low a score is of a normal row.

        Args:
            data: m rows.

        Returns: p-values (m,) in (0, 1], lower = more anomalous.

        Raises: as `score`.
        """
        return self.decide(data).p_values

    def predict(self, data: Any) -> np.ndarray:
        """Flag rows as anomalous where p <= level.

        Args:
            data: m rows.

        Returns: (m,) of bool.

        Raises: as `score`.
        """
        return self.decide(data).anomalous

    def select(self, data: Any, fdr: float = 0.1) -> np.ndarray:
        """Pick rows by Benjamini & Hochberg (1995), of which a share `fdr` is normal at most, on average.

        P-values against the same calibration rows depend on each other positively, which does no harm where rows are
        independent and scores continuous (Bates et al. 2023, theorem 2). It is proven of rows with the same cells and
        without folds. By the rule "simultaneous" it holds with probability 1 - delta over calibration rows. One row of m is
        picked from m / fdr calibration rows on: with n of these no p-value is below 1 / (n + 1).

        Args:
            data: m rows.
            fdr: that share, the false-discovery rate.

        Returns: (m,) of bool.

        Raises: OptionError for the rules "conditional", of one level alone, and "tail"; as `score`.
        """
        fdr = _rate(self.rule, fdr)  # before the work
        return selected(self.p_values(data), self.rule, fdr)


def selected(p_values: np.ndarray, rule: str, fdr: float) -> np.ndarray:
    """Which rows `Calibration.select` picks, (m,) of bool, by the p-values (m,) that its rule gave them.

    Raises: OptionError, as that.
    """
    from scipy.stats import false_discovery_control

    return false_discovery_control(p_values, method="bh") <= _rate(rule, fdr) * (1 + 1e-9)  # of ties


def _rate(rule: str, fdr: Any) -> float:
    """A false-discovery rate, by a rule that can select."""
    fdr = _share("fdr", fdr)
    if rule in ("conditional", "tail"):
        raise OptionError(f"select: got the rule {rule!r}, expected 'conformal' or 'simultaneous'")
    return fdr


def calibrate(
    vae: Any,
    data: Any,
    *,
    level: float = LEVEL,
    rule: str = "conformal",
    labels: Any = None,
    folds: int = FOLDS,
    delta: float = DELTA,
    scoring: str | tuple[str, dict[str, Any]] = SCORING,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> Calibration:
    """Calibrate decisions on normal rows, so that of normal rows to come a chosen share is flagged, at most.

    Args:
        vae: a fitted model; `data` are then n rows that it was not fitted to (split conformal). Or a `Candidate`: it is
            fitted to `data` without each of some folds in turn, and these calibrate (cross-conformal, Vovk 2015): all rows
            serve twice, for a weaker guarantee. Its `make` sees all rows; what it takes from them, such as their scale,
            should not tell one row from another. Or a fitted detector with `score_samples`, as `VAEDetector`.
        data: n normal rows, or with `labels` those that are not marked. Anomalies among them make flags rarer if they score
            low, and more frequent if they score high.
        level: the share of normal rows that may be flagged (false-positive rate); below 1 / (n + 1), of n rows that a row is
            compared to, in folds those of one fold, none is, but by "tail".
        rule: "conformal" holds on average over calibration rows; "conditional" for all but a share delta of calibrations;
            "simultaneous" the same at all levels; "tail" goes below 1 / (n + 1), asymptotically. `RULES` says more.
        labels: (n,), 0 for normal rows, 1 for anomalous ones, which are left out.
        folds: of a `Candidate`.
        delta: how often "conditional" and "simultaneous" may fail.
        scoring, num_draws, seed: as in `score`; of these rows and of all that are judged. A detector has its own. What a
            scoring is told to be normal, as in ("typicality", {"normal": rows}), has to be other rows than these.

    Returns: `Calibration`. A row with holes is compared to rows with the same holes, and what is promised holds for each
        pattern of holes apart; where these rows are fewer than 99, to rows whose other cells are hidden, which is right if
        what is missing does not depend on the values, and takes their scores for each such pattern; where no row has all of
        its cells, to rows that the model simulates, which promises nothing, and which a detector cannot. `Decisions.against`
        tells.

    Raises: OptionError, DataError.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(300, 4)
        >>> calibration = calibrate(PPCA(2).fit(x[:100]), x[100:], level=0.1)
        >>> calibration.predict(np.array([[0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0]])).tolist()
        [False, True]
        >>> calibration.at(0.01).threshold < calibration.threshold
        True
    """
    level, delta = _share("level", level), _share("delta", delta)
    options = {"scoring": scoring, "num_draws": num_draws, "seed": seed}
    if isinstance(vae, Candidate):
        folds = whole("folds", folds, 2)
        _check_rule(rule, folds)
        return _told(Calibration(tuple(_folds(vae, data, labels, folds, options)), level, rule, delta))
    _check_rule(rule, 1)
    if folds != FOLDS:
        raise OptionError(f"folds: got {folds!r} for a fitted model, expected a Candidate, to be fitted in folds")
    if isinstance(vae, type) or not (callable(getattr(vae, "batch", None)) or hasattr(vae, "score_samples")):
        got = f"the class {vae.__name__}" if isinstance(vae, type) else f"a {type(vae).__name__}"
        raise OptionError(f"vae: got {got}, expected a model, a Candidate or a fitted detector with score_samples")
    if hasattr(vae, "score_samples"):
        if options != {"scoring": SCORING, "num_draws": NUM_DRAWS, "seed": 0}:
            raise OptionError(f"vae: got a {type(vae).__name__} with {options}, expected its own scores as they are")
        rows = data if labels is None else rows_at(data, _normal(labels, len(data)).numpy())
        return _told(
            Calibration((DetectorFold(vae, rows, options | {"scoring": type(vae).__name__}),), level, rule, delta)
        )
    batch = batch_of(vae, data)
    _expect_other_rows(vae, batch, scoring)
    fold = Fold(vae, batch if labels is None else batch.rows(_normal(labels, len(batch.x))), options)
    return _told(Calibration((fold,), level, rule, delta))


def _expect_other_rows(vae: Any, batch: Batch, scoring: Any) -> None:
    """Say it where calibration rows are those that a score was fitted to: rows to come are not like these then."""
    if isinstance(scoring, tuple) and len(scoring) == 2 and "normal" in dict(scoring[1]):
        known = row_keys(batch_of(vae, scoring[1]["normal"]).x, 0)
        share = torch.isin(row_keys(batch.x, 0), known).float().mean()
        if share > 0.5:
            log.warning(
                "%.0f %% of the calibration rows are among 'normal': more of rows to come is flagged", 100 * share
            )


def _told(calibration: Calibration) -> Calibration:
    """Say it where there are too few rows for the level.

    Raises: OptionError for a tail.
    """
    usual = calibration._usual()
    if calibration.rule == "tail":
        threshold("tail", usual[0], calibration.level, calibration.delta)
    elif calibration._least(usual) > calibration.level:
        log.warning(
            "%d calibration rows with the most frequent cells are too few for level %g: no row like them is flagged",
            sum(map(len, usual)), calibration.level,
        )  # fmt: skip
    return calibration


def _folds(candidate: Candidate, data: Any, labels: Any, folds: int, options: dict[str, Any]) -> Iterator[Fold]:
    """Each left out of what its model was fitted to."""
    if candidate.objective is None or candidate.posterior != "amortized":
        raise OptionError(
            f"vae: got a candidate with objective={candidate.objective!r}, posterior={candidate.posterior!r}, expected one "
            "that is fitted to each fold's rest, and scored by its encoder"
        )
    seed = options["seed"] % 2**32
    for j in range(folds):
        vae = candidate.make(seed + j)
        batch = batch_of(vae, data)
        normal = torch.arange(len(batch.x)) if labels is None else _normal(labels, len(batch.x))
        if len(normal) < 2 * folds:
            raise OptionError(f"folds: got {folds} for {len(normal)} rows, expected at least two rows in each")
        order = normal[torch.from_numpy(np.random.RandomState(seed).permutation(len(normal)))]
        own = torch.arange(len(order)) % folds == j
        rest = batch.rows(order[~own])
        fit(vae, rest, objective=candidate.objective, seed=seed + j, progress=False, **candidate.fit)
        yield Fold(vae, batch.rows(order[own]), options)


def _normal(labels: Any, n: int) -> torch.Tensor:
    """Places of the normal rows."""
    marks = np.asarray(labels)
    if marks.shape != (n,) or marks.dtype.kind not in "biuf" or not np.isin(marks, (0, 1)).all():
        raise OptionError(f"labels: got {marks.dtype} of shape {marks.shape}, expected 0 or 1 for each of {n} rows")
    if marks.all():
        raise OptionError("labels: got anomalies only, expected normal rows to calibrate on")
    return torch.from_numpy(np.flatnonzero(marks == 0))


def _share(name: str, value: Any) -> float:
    try:
        got = number(name, value)
    except OptionError:
        got = 1.0
    if got >= 1:
        raise OptionError(f"{name}: got {value!r:.100}, expected a share in (0, 1)")
    return got


def _check_rule(rule: Any, folds: int) -> None:
    choose("rule", rule, RULES)
    if folds > 1 and rule != "conformal":
        raise OptionError(
            f"rule: got {rule!r} for several folds, expected 'conformal', of which alone something is proven"
        )
