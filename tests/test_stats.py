"""Small statistics against values worked out by hand."""

import math

import numpy as np
import pytest

from toolkit.stats import bootstrap, cluster_bootstrap, ranks, spearman, spearman_interval


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([10, 30, 20], [1, 3, 2]),
        ([5, 5], [1.5, 1.5]),
        ([1, 2, 2, 3], [1, 2.5, 2.5, 4]),
        ([7, 7, 7], [2, 2, 2]),
        ([-1.5, 0.0, -1.5, 2.0, 2.0], [1.5, 3, 1.5, 4.5, 4.5]),
    ],
)
def test_ranks_start_at_one_and_ties_share(values, expected):
    assert ranks(values).tolist() == expected


@pytest.mark.parametrize(
    ("a", "b", "rho"),
    [
        ([1, 2, 3], [10, 20, 900], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),  # 1 − 6·4 / (5·24)
        ([1, 2, 3], [1, 1, 2], math.sqrt(0.75)),
        ([1, 1, 2, 2], [1, 2, 1, 2], 0.0),
    ],
)
def test_spearman_equals_the_hand_value(a, b, rho):
    assert spearman(a, b) == pytest.approx(rho)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1, 2], [1, 2]), ([3, 3, 3], [1, 2, 3]), ([1, 2, 3], [0, 0, 0])])
def test_spearman_is_nan_where_there_is_no_order_to_compare(a, b):
    assert math.isnan(spearman(a, b))


def test_spearman_agrees_with_scipy_also_with_ties():
    theirs = pytest.importorskip("scipy.stats").spearmanr
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 6, 30), rng.integers(0, 6, 30)
        assert spearman(a, b) == pytest.approx(theirs(a, b).statistic)


def test_the_same_seed_gives_the_same_interval():
    values = [0.1, 2.3, 1.7, 5.9, 4.4]
    assert bootstrap(values, seed=4, draws=50) == bootstrap(values, seed=4, draws=50)
    assert bootstrap(values, seed=4, draws=50) != bootstrap(values, seed=5, draws=50)


def test_an_interval_stands_around_its_value():
    value, low, high = bootstrap([0.0, 1.0] * 20)
    assert value == 0.5
    assert low < 0.5 < high


def test_the_interval_of_a_mean_is_as_wide_as_theory_says():
    values = np.random.default_rng(1).normal(size=400)
    _, low, high = bootstrap(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_equal_values_have_an_interval_of_no_width():
    assert bootstrap([0.7] * 5) == pytest.approx((0.7, 0.7, 0.7))


def test_one_value_has_no_interval():
    value, low, high = bootstrap([3.0])
    assert value == 3.0
    assert math.isnan(low)
    assert math.isnan(high)


def test_no_value_has_no_statistic():
    assert all(map(math.isnan, bootstrap([])))


def test_another_statistic_is_used_as_given():
    assert bootstrap([1, 2, 9], np.median)[0] == 2


def test_clusters_are_drawn_whole():
    # within a group all agree: 3 wins of 4 in a group would never be drawn, so the mean is 0, 0.5 or 1
    groups = [np.ones(4), np.zeros(4)]
    value, low, high = cluster_bootstrap(groups)
    assert (value, low, high) == (0.5, 0.0, 1.0)
    _, narrow_low, _ = bootstrap(np.concatenate(groups))
    assert narrow_low > low


def test_a_larger_cluster_counts_by_its_rows():
    assert cluster_bootstrap([np.ones(3), np.zeros(1)])[0] == 0.75


@pytest.mark.parametrize(("groups", "value"), [([np.array([1.0, 0.0])], 0.5), ([], float("nan"))])
def test_fewer_than_two_clusters_are_treated_as_rows(groups, value):
    assert cluster_bootstrap(groups)[0] == pytest.approx(value, nan_ok=True)


def test_a_correlation_interval_lies_within_one():
    a = np.arange(20)
    rho, low, high = spearman_interval(a, a + 4 * np.random.default_rng(0).normal(size=20))
    assert rho == pytest.approx(spearman(a, a + 4 * np.random.default_rng(0).normal(size=20)))
    assert -1 <= low < rho < high <= 1
