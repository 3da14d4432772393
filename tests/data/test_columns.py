"""Types of columns: support, scaling, the likelihood each is given, against definitions written out here."""

import math

import numpy as np
import pytest

from ppl_vae.data.columns import LIKELIHOOD_TYPES, TYPES, check, find_outside, is_whole, wrap
from ppl_vae.errors import DataError

EDGE = [-np.inf, -4.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 2.5, 255.0, 256.0, np.inf]
SUPPORT = {
    "real": [-4, -1, -0.5, 0, 0.5, 1, 2, 2.5, 255, 256],
    "positive": [0.5, 1, 2, 2.5, 255, 256],
    "count": [0, 1, 2, 255, 256],
    "unit": [0, 0.5, 1],
    "boolean": [-4, -1, -0.5, 0, 0.5, 1, 2, 2.5, 255, 256],  # the likelihood is stricter
    "categorical": [0, 1, 2, 255, 256],
    "ordinal": [0, 1, 2, 255, 256],
    "angle": [-4, -1, -0.5, 0, 0.5, 1, 2, 2.5, 255, 256],
    "pixel": [0, 1, 2, 255],
}


def test_every_type_is_listed() -> None:
    assert set(TYPES) == set(SUPPORT)
    assert set(LIKELIHOOD_TYPES.values()) == set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_the_support_of_each_type(name: str) -> None:
    inside = TYPES[name].contains(np.array(EDGE)[:, None])[:, 0]
    assert [value for value, good in zip(EDGE, inside) if good] == SUPPORT[name]
    assert find_outside(name, np.array([[np.nan]])) is None


def test_a_value_outside_is_named_with_its_column_and_row() -> None:
    values = np.array([[1.0, 1.0, np.nan], [1.0, 2.0, -1.0], [1.0, 0.0, 0.0], [1.0, -3.0, 1.0]])
    assert find_outside("positive", values) == (2, 1)
    with pytest.raises(
        DataError, match=r"column 'b': got 0.0 in row 2, expected finite numbers above 0 \(type positive\)"
    ):
        check("positive", values, ("a", "b", "c"))
    check("positive", values[:2, :2], ("a", "b"))


@pytest.mark.parametrize("name", TYPES)
def test_the_likelihood_of_a_type_is_for_that_type(name: str) -> None:
    for values in ([0.25, 0.5, 0.75], [0.0, 1.0, 1.0], [1.0, 9.0, 90.0]):
        assert LIKELIHOOD_TYPES[TYPES[name].likelihood(np.array(values))] == name


def test_counts_are_negative_binomial_where_they_spread_more_than_their_mean() -> None:
    likelihood = TYPES["count"].likelihood
    assert likelihood(np.array([0.0, 1, 2, 3, np.nan])) == "poisson"  # mean 1.5, variance 1.25
    assert likelihood(np.array([0.0, 0, 0, 8, np.nan])) == "negative_binomial"  # mean 2, variance 12
    rng = np.random.default_rng(0)
    assert likelihood(rng.negative_binomial(2, 0.1, 1000).astype(float)) == "negative_binomial"
    assert likelihood(rng.binomial(10, 0.5, 1000).astype(float)) == "poisson"


def test_unit_values_at_the_ends_are_no_beta() -> None:
    likelihood = TYPES["unit"].likelihood
    assert likelihood(np.array([0.1, 0.9, np.nan])) == "beta"
    assert likelihood(np.array([0.1, 1.0])) == likelihood(np.array([0.0, 0.1])) == "continuous_bernoulli"


def test_positive_columns_are_scaled_by_their_geometric_mean() -> None:
    values = np.array([[1.0, 5.0], [100.0, 5.0], [np.nan, 5.0]])
    loc, scale = TYPES["positive"].affine(values)
    np.testing.assert_allclose(loc, 0)
    np.testing.assert_allclose(scale, [10, 5])
    log_loc, log_scale = TYPES["positive"].logs(values)
    np.testing.assert_allclose(log_loc, 0)
    np.testing.assert_allclose(log_scale, [math.log(10), 1])  # a constant column: 1
    logs = np.log(values / scale)
    np.testing.assert_allclose(np.nanmean(logs, 0), 0, atol=1e-15)
    np.testing.assert_allclose(np.nanstd(logs / log_scale, 0), [1, 0], atol=1e-15)


def test_counts_are_shown_to_nets_with_mean_0_and_deviation_1() -> None:
    values = np.random.default_rng(0).poisson(7, (500, 2)).astype(float)
    values[::7, 0] = np.nan
    log_loc, log_scale = TYPES["count"].logs(values)
    shown = (np.log1p(values) - log_loc) / log_scale
    np.testing.assert_allclose(np.nanmean(shown, 0), 0, atol=1e-12)
    np.testing.assert_allclose(np.nanstd(shown, 0), 1)
    assert TYPES["count"].affine(values)[1].tolist() == [1, 1]


def test_pixels_are_scaled_to_minus_one_and_one() -> None:
    loc, scale = TYPES["pixel"].affine(np.array([[0.0], [255.0]]))
    assert (loc.item(), scale.item()) == (127.5, 127.5)


def test_angles_are_wrapped_to_one_turn() -> None:
    rng = np.random.default_rng(0)
    angles = np.append(rng.normal(0, 30, 1000), [np.pi, -np.pi, 3 * np.pi, -1e-20, 0, -np.pi - 1e-16])
    wrapped = wrap(angles)
    assert (wrapped >= -np.pi).all() and (wrapped < np.pi).all()
    np.testing.assert_allclose(np.exp(1j * wrapped), np.exp(1j * angles), atol=1e-12)
    inside = (angles >= -np.pi) & (angles < np.pi)
    np.testing.assert_array_equal(wrapped[inside], angles[inside])
    assert wrap(np.array([np.pi]))[0] == -np.pi
    assert np.isnan(wrap(np.array([np.nan]))).all()


def test_whole() -> None:
    assert is_whole(np.array([0, -3, 2.5, np.nan, np.inf, 1e300])).tolist() == [True, True, False, False, False, True]
