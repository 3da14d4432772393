"""Oracles: counts by hand, binomial tails, a product written out, and the laws of order statistics of uniform variables."""

import numpy as np
import pytest
from scipy import stats

from ppl_vae import OptionError
from ppl_vae.criticism.conformal import RULES, Tail, conditional, p_values, simultaneous, threshold

SEED = 0


def test_conformal_p_values_count_scores_at_or_below() -> None:
    """Ties count: (1 + #{s_i <= s}) / (n + 1)."""
    random = np.random.RandomState(SEED)
    reference, scores = np.sort(random.randint(0, 9, 40)), random.randint(-1, 10, 30)
    by_hand = [(1 + sum(r <= s for r in reference)) / 41 for s in scores]
    assert p_values("conformal", [reference], [scores], 0.1).tolist() == by_hand


def test_folds_are_counted_each_by_its_own_model() -> None:
    """The mean of the folds' p-values."""
    one, two = np.array([1.0, 2.0]), np.array([10.0, 20.0, 30.0])
    got = p_values("conformal", [one, two], [np.array([1.5, 0.0]), np.array([25.0, 30.0])], 0.1)
    np.testing.assert_allclose(got, [(2 / 3 + 3 / 4) / 2, (1 / 3 + 4 / 4) / 2], rtol=1e-12)


def test_conditional_p_values_are_binomial_tails() -> None:
    """At p, the chance that so many or more of n normal rows score below it is 1 - delta (Clopper & Pearson 1934)."""
    counts = np.arange(50)
    p = conditional(counts, 50, 0.1)
    np.testing.assert_allclose(stats.binom.sf(counts, 50, p), 0.9, rtol=1e-9)
    assert conditional(np.array([50]), 50, 0.1).tolist() == [1.0]


def test_simultaneous_p_values_are_the_product_written_out() -> None:
    """Bates et al. (2023), section 3: b = 1 - delta^(1/k) (i ... (i - k + 1) / (n ... (n - k + 1)))^(1/k), i = n - count."""
    n, k, delta = 11, 5, 0.2
    by_hand = []
    for count in range(n + 1):
        i, product = n - count, 1.0
        for j in range(k):
            product *= max(i - j, 0) / (n - j)
        by_hand.append(1 - delta ** (1 / k) * product ** (1 / k))
    np.testing.assert_allclose(simultaneous(np.arange(n + 1), n, delta), by_hand, rtol=1e-12)


@pytest.mark.parametrize("n", [9, 60])
def test_simultaneous_bounds_fail_as_often_as_they_may(n: int) -> None:
    """The rate below the j-th score is a uniform order statistic; Sarkar (2008): one exceeds its bound with probability
    delta, exactly. Binomial of 20,000; fails by chance at 6e-5."""
    delta, trials = 0.1, 20_000
    rates = np.sort(np.random.RandomState(SEED).rand(trials, n), 1)
    failed = (rates > simultaneous(np.arange(n), n, delta)).any(1).sum()
    assert abs(failed - delta * trials) < 4 * (trials * delta * (1 - delta)) ** 0.5


@pytest.mark.parametrize("rule", ["conformal", "conditional"])
def test_what_the_rules_promise_at_one_level(rule: str) -> None:
    """The rate of flagged rows is on average at most the level, or at most the level with probability 1 - delta; with
    another (k - 1)-th score as the threshold the next higher level would be missed. 4 standard errors."""
    n, level, delta, trials = 119, 0.1, 0.2, 20_000
    scores = np.sort(np.random.RandomState(SEED).rand(trials, n), 1)
    rates = np.array([threshold(rule, own, level, delta) for own in scores])  # of uniform scores
    if rule == "conformal":  # level (n + 1) is whole: equality
        assert abs(rates.mean() - level) < 4 * rates.std() / trials**0.5
    else:
        exceeded = (rates > level).mean()
        k = int((RULES[rule].p_values(np.arange(n), n, delta) <= level).sum())
        expected = stats.beta.sf(level, k, n + 1 - k)
        assert expected <= delta < stats.beta.sf(level, k + 1, n - k)
        assert abs(exceeded - expected) < 4 * (expected * (1 - expected) / trials) ** 0.5


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("level", [0.001, 0.01, 0.05, 0.3])
def test_thresholds_flag_the_rows_with_small_p_values(rule: str, level: float) -> None:
    """Ties included."""
    random = np.random.RandomState(SEED)
    reference = np.sort(np.round(random.randn(200), 1))
    scores = np.concatenate([np.round(random.randn(500) * 2, 1), random.randn(100) * 5])
    p = p_values(rule, [reference], [scores], 0.1)
    np.testing.assert_array_equal(p <= level, scores < threshold(rule, reference, level, 0.1))


@pytest.mark.parametrize("level", [2e-3, 1e-6])
def test_tails_of_a_known_law(level: float) -> None:
    """Scores whose lower tail is a generalised Pareto law: its quantile, on a log scale, within 4 standard errors by the
    delta method, with the asymptotic covariance of Smith (1984); fails by chance at 6e-5. `below` is the inverse."""
    shape, scale, n = 0.2, 2.0, 20_000
    scores = -stats.genpareto.rvs(shape, scale=scale, size=n, random_state=np.random.RandomState(SEED))
    truth = -stats.genpareto.isf(level, shape, scale=scale)
    tail = Tail.of(np.sort(scores))
    assert tail is not None
    m = tail.share * n
    at_start = scale + shape * -tail.start  # the law above a threshold is the same with a larger scale
    covariance = (1 + shape) / m * np.array([[1 + shape, -at_start], [-at_start, 2 * at_start**2]])

    def log_depth(shape: float, scale: float, log_share: float) -> float:
        depth = stats.genpareto.isf(level / np.exp(log_share), shape, scale=scale) - tail.start
        return float(np.log(depth))

    here = np.array([shape, at_start, np.log(tail.share)])
    slope = [(log_depth(*(here + s)) - log_depth(*(here - s))) / 2e-4 for s in np.diag([1e-4] * 3)]
    error = float(np.sqrt(slope[:2] @ covariance @ slope[:2] + slope[2] ** 2 / m))
    assert abs(np.log(tail.at(level) / truth)) < 4 * error < 1.5
    np.testing.assert_allclose(tail.below(np.array([tail.at(1e-7)])), 1e-7, rtol=1e-6)


def test_a_tail_goes_on_below_the_lowest_score_only() -> None:
    reference = np.sort(np.random.RandomState(SEED).randn(500))
    scores = np.array([-20.0, -6.0, reference[0], reference[3], 0.0])
    plain, tail = (p_values(rule, [reference], [scores], 0.1) for rule in ("conformal", "tail"))
    np.testing.assert_array_equal(plain[2:], tail[2:])
    assert tail[0] < tail[1] < plain[0] == plain[1] == 1 / 501


def test_too_few_rows() -> None:
    """Below 1 / (n + 1) nothing is flagged; a tail says what it needs."""
    reference = np.sort(np.random.RandomState(SEED).randn(30))
    assert threshold("conformal", reference, 0.01, 0.1) == -np.inf
    with pytest.raises(OptionError, match="rule: got 'tail' with 30 calibration rows"):
        threshold("tail", reference, 0.01, 0.1)
    assert Tail.of(np.zeros(1000)) is None
    assert Tail.of(np.sort(np.concatenate([[-np.inf], np.arange(999.0)]))) is None
    np.testing.assert_array_equal(
        p_values("tail", [reference], [reference], 0.1), p_values("conformal", [reference], [reference], 0.1)
    )


def test_a_tail_has_no_end() -> None:
    """Uniform scores, whose law ends: an exponential law in its place is above it, and never 0."""
    scores = np.sort(np.random.RandomState(SEED).rand(5000))
    tail = Tail.of(scores)
    assert tail is not None and tail.shape == 0
    below = np.array([-0.1, 0.0, 0.001])
    assert (tail.below(below) > below.clip(0)).all() and (tail.below(below) > 0).all()


@pytest.mark.parametrize(("n", "few"), [(100, 20), (500, 67)])
def test_a_tail_starts_at_the_first_score_above_those_it_is_fitted_to(n: int, few: int) -> None:
    """By hand: the lowest min(n / 5, 3 sqrt(n)) scores, whose share lies below the next. Their law ends here, and the
    exponential one in its place has the mean of the excesses, which is not their median."""
    scores = np.arange(n) ** 0.5
    tail = Tail.of(scores)
    assert tail is not None
    assert tail == (few**0.5, few / n, 0.0, pytest.approx((few**0.5 - scores[:few]).mean(), rel=1e-12))
    np.testing.assert_allclose(tail.below(scores[[few]]), (scores < tail.start).mean(), rtol=1e-12)


def test_a_tail_never_raises_a_p_value() -> None:
    """Below even spacing the exponential law finds 1.8 % where 1 / (n + 1) = 0.2 % is proven."""
    reference, scores = np.arange(500.0), np.array([-0.5, -40.0, -400.0])
    tail = Tail.of(reference)
    assert tail is not None
    below = tail.below(scores)
    assert below[0] > below[1] > 1 / 501 > below[2]
    np.testing.assert_array_equal(p_values("tail", [reference], [scores], 0.1), [1 / 501, 1 / 501, below[2]])


def test_a_tails_threshold_is_never_above_the_lowest_score() -> None:
    """Just below the resolution, 0.9 / (n + 1), and with one score far out: the law would flag rows that lie above that
    one, whose p-values are 2 / (n + 1)."""
    reference, level = np.concatenate([[-1000.0], np.arange(500.0)]), 0.9 / 502
    tail = Tail.of(reference)
    assert tail is not None and tail.at(level) > reference[0]
    assert threshold("tail", reference, level, 0.1) == reference[0]
    scores = np.array([-1000.1, -1000.0, tail.at(level) - 1])
    assert (p_values("tail", [reference], [scores], 0.1) <= level).tolist() == [True, False, False]
