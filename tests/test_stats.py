"""Small statistics against values worked out by hand."""

import math

import numpy as np
import pytest

from toolkit.stats import (
    auc,
    bootstrap,
    cluster_bootstrap,
    cohen_d,
    mean_difference,
    permutation_p,
    quadratic_kappa,
    ranks,
    rounded,
    share_interval,
    spearman,
    spearman_interval,
    two_sample_bootstrap,
    wilson,
)


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


# ---- shares


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
    ],
)
def test_wilsons_interval_is_the_known_one(right, n, low, high):
    assert wilson(right, n) == pytest.approx((low, high), abs=2e-4)


def test_of_nothing_there_is_no_share():
    assert all(map(math.isnan, wilson(0, 0)))
    assert all(map(math.isnan, share_interval([])))


def test_five_of_five_is_not_certainty():
    value, low, high = share_interval([np.ones(1)] * 5)
    assert (value, high) == (1.0, 1.0)
    assert low == pytest.approx(wilson(5, 5)[0])


def test_a_share_of_groups_that_stand_together_is_less_sure_than_its_rows():
    value, low, high = share_interval([np.ones(20), np.zeros(20)] * 2)
    assert value == 0.5
    assert low < wilson(40, 80)[0]
    assert high > wilson(40, 80)[1]


# ---- two samples


def test_cohens_d_is_the_difference_in_pooled_deviations():
    # means 4 and 2, variances 4 and 1 (n − 1): pooled sd √2.5
    assert cohen_d([2, 4, 6], [1, 2, 3]) == pytest.approx(2 / math.sqrt(2.5))
    # 3 and 5 values: ((2 · 1 + 4 · 2.5) / 6)^½ = √2
    assert cohen_d([1, 2, 3], [1, 2, 3, 4, 5]) == pytest.approx(-1 / math.sqrt(2))


@pytest.mark.parametrize(("a", "b"), [([1], [2, 3]), ([], []), ([3, 3], [1, 1])])
def test_cohens_d_needs_a_spread(a, b):
    assert math.isnan(cohen_d(a, b))


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        ([3, 4], [1, 2], 1.0),
        ([1, 2], [3, 4], 0.0),
        ([1, 3], [2, 4], 0.25),
        ([2, 2], [2, 2, 2], 0.5),
        ([1, 2], [2], 0.25),
    ],
)
def test_auc_counts_pairs_in_the_right_order(a, b, value):
    assert auc(a, b) == pytest.approx(value)


def test_auc_of_an_empty_side_is_nan():
    assert math.isnan(auc([], [1]))


@pytest.mark.parametrize("statistic", [mean_difference, cohen_d, auc])
def test_a_value_that_counts_twice_is_as_if_it_stood_there_twice(statistic):
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 5, 7).astype(float), rng.integers(0, 5, 9).astype(float)
    wa, wb = rng.integers(0, 4, (3, 7)).astype(float), rng.integers(0, 4, (3, 9)).astype(float)
    expected = [
        statistic(np.repeat(a, x.astype(int)), np.repeat(b, y.astype(int))) for x, y in zip(wa, wb, strict=True)
    ]
    assert statistic(a, b, wa, wb) == pytest.approx(np.array(expected))


def test_a_permutation_p_is_the_share_of_all_relabellings():
    # 3 against 3 and fully apart: 2 of 20 labellings are as extreme
    assert permutation_p([4, 5, 6], [1, 2, 3]) == pytest.approx(0.1, abs=0.01)
    assert permutation_p([1, 2, 3], [4, 5, 6]) == pytest.approx(0.1, abs=0.01)


def test_a_permutation_p_is_one_where_nothing_differs_and_never_zero():
    assert permutation_p([1, 2, 3], [1, 2, 3]) == 1.0
    assert permutation_p([5.1] * 4, [5.1] * 3) == 1.0
    assert permutation_p(np.arange(40) + 100.0, np.arange(40.0), draws=99) == 0.01


def test_permutation_ps_of_equal_samples_are_spread_evenly():
    rng = np.random.default_rng(3)
    found = [permutation_p(rng.normal(size=12), rng.normal(size=9), draws=199) for _ in range(300)]
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)


def test_each_side_of_two_samples_is_drawn_by_itself():
    value, low, high = two_sample_bootstrap([1.0] * 9, [0.0] * 2, mean_difference)
    assert (value, low, high) == (1.0, 1.0, 1.0)


def test_the_interval_of_a_difference_is_as_wide_as_theory_says():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=300), rng.normal(size=200) * 2
    _, low, high = two_sample_bootstrap(a, b, mean_difference)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(a.var() / 300 + b.var() / 200), rel=0.1)


def test_a_statistic_without_a_value_has_no_interval():
    assert all(map(math.isnan, two_sample_bootstrap([3.0, 3.0], [1.0, 1.0], cohen_d)))


# ---- agreement


def test_quadratic_kappa_equals_the_one_of_the_table():
    a, b = np.array([1, 2, 3, 4, 4, 2]), np.array([1, 3, 3, 4, 2, 2])
    seen = np.zeros((4, 4))
    np.add.at(seen, (a - 1, b - 1), 1 / 6)
    weight = (np.arange(4)[:, None] - np.arange(4)) ** 2
    expected = 1 - (weight * seen).sum() / (weight * np.outer(seen.sum(1), seen.sum(0))).sum()
    assert quadratic_kappa(a, b) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("a", "b", "kappa"), [([1, 2, 3], [1, 2, 3], 1.0), ([1, 2], [2, 1], -1.0), ([1, 1, 2, 2], [1, 2, 1, 2], 0.0)]
)
def test_quadratic_kappa_of_known_cases(a, b, kappa):
    assert quadratic_kappa(a, b) == pytest.approx(kappa)


def test_what_is_no_number_is_null_in_a_file():
    assert rounded([0.123456, float("nan"), float("inf")]) == [0.1235, None, None]
