"""The reward model's loss, its closed-form start, its labels and its measure, against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from toolkit.narrative.damage import HARM
from toolkit.narrative.dimensions import KEYS
from toolkit.records import AspectRatings, Plot
from toolkit.reward.data import DROP, WHOLE, Group, anchored_groups, harmed, label_shares, rated_groups, split_groups
from toolkit.reward.model import AspectHead, aspect_loss
from toolkit.reward.train import length_scores, measure

NAN = float("nan")


def loss(raw, targets, weights=None, groups=None, absolute=None, rank_weight=0.0, gap=0.1):
    """(loss, gradient); a plain number stands for a row whose first dimension alone is known."""
    n = len(raw)
    raw = torch.tensor([r if isinstance(r, list) else [r] + [0.0] * 4 for r in raw], requires_grad=True)
    value = aspect_loss(
        raw,
        torch.tensor([t if isinstance(t, list) else [t] + [NAN] * 4 for t in targets]),
        weights=torch.tensor(weights or [1.0] * n),
        groups=torch.tensor(groups or [0] * n),
        absolute=torch.tensor(absolute or [True] * n),
        rank_weight=rank_weight,
        gap=gap,
    )
    value.backward()
    return value.item(), raw.grad


def softplus(x):
    return math.log1p(math.exp(x))


def test_regression_is_the_mean_square_error_of_what_is_known():
    assert loss([0.5, -0.5], [1.0, -1.0])[0] == pytest.approx(0.25)
    assert loss([[0.0, 1.0, 0.0, 0.0, 0.0]], [[1.0, 1.0, NAN, NAN, 3.0]])[0] == pytest.approx((1 + 0 + 9) / 3)


def test_an_unknown_target_gives_no_loss_and_no_gradient():
    value, grad = loss([[0.3, 9.0, 0.0, 0.0, 0.0]], [[0.3, NAN, NAN, NAN, NAN]], rank_weight=1.0)
    assert value == pytest.approx(0.0)
    assert torch.isfinite(grad).all()
    assert grad[0, 1] == 0


def test_a_batch_of_which_nothing_is_known_has_a_loss_of_zero():
    assert loss([0.5], [NAN], rank_weight=1.0)[0] == 0.0


def test_a_text_counts_by_its_weight():
    assert loss([1.0, 0.0], [0.0, 2.0], weights=[1.0, 0.25])[0] == pytest.approx((1 * 1 + 0.25 * 4) / 1.25)


def test_ranking_adds_the_logistic_loss_of_the_difference():
    value, _ = loss([0.2, 0.5], [1.0, 0.0], rank_weight=2.0)
    assert value == pytest.approx((0.64 + 0.25) / 2 + 2.0 * softplus(0.3))


def test_ranking_averages_over_pairs_by_the_smaller_trust():
    value, _ = loss([0.0, 1.0, 2.0], [1.0, 0.0, -1.0], weights=[1.0, 1.0, 0.5], rank_weight=1.0)
    regression = (1 + 1 + 0.5 * 9) / 2.5
    ranking = (1 * softplus(1) + 0.5 * softplus(2) + 0.5 * softplus(1)) / 2
    assert value == pytest.approx(regression + ranking)


def test_where_only_the_order_counts_there_is_no_regression():
    value, grad = loss([0.5, 0.0], [0.1, 0.9], absolute=[False, True])
    assert value == pytest.approx(0.81)
    assert grad[0, 0] == 0
    assert loss([0.0, 0.0], [1.0, 0.0], absolute=[False, False], rank_weight=1.0)[0] == pytest.approx(math.log(2))


def test_texts_of_different_groups_are_not_compared():
    together, _ = loss([0.0, 0.0], [1.0, 0.0], groups=[3, 3], rank_weight=1.0)
    apart, _ = loss([0.0, 0.0], [1.0, 0.0], groups=[3, 4], rank_weight=1.0)
    assert together - apart == pytest.approx(math.log(2))


def test_targets_nearer_than_the_gap_are_not_compared():
    assert loss([0.0, 0.0], [0.2, 0.1], rank_weight=1.0, gap=0.15)[0] == pytest.approx(0.025)


def test_a_pair_of_which_one_side_is_unknown_is_not_compared():
    assert loss([0.0, 0.0], [1.0, NAN], rank_weight=1.0)[0] == pytest.approx(1.0)


def test_the_gradient_raises_the_better_and_lowers_the_worse():
    _, grad = loss([0.5, 0.0], [0.5, 0.0], rank_weight=1.0)
    assert grad[0, 0] < 0 < grad[1, 0]


# ---- linear probe


def probe(features, targets, weights, ridge):
    head = AspectHead(features.shape[1])
    head.fit_ridge(features, targets, weights, ridge)
    with torch.no_grad():
        return head(torch.from_numpy(features)).numpy(), head.linear.weight.detach().numpy()


def problem(n=40, h=4):
    rng = np.random.default_rng(0)
    features = (3 * rng.normal(size=(n, h)) + 5).astype(np.float32)
    targets = np.tanh(0.3 * rng.normal(size=(n, 5))).astype(np.float32)
    targets[rng.random((n, 5)) < 0.3] = NAN
    return features, targets, rng.uniform(0.2, 1, n)


def test_the_probe_is_the_weighted_ridge_regression_of_what_is_known():
    features, targets, weights = problem()
    found, _ = probe(features, targets, weights, ridge=7.0)
    z = (features - features.mean(0)) / features.std(0)
    x = np.hstack([np.ones((len(z), 1)), z]).astype(float)
    penalty = np.diag([0.0] + [7.0] * z.shape[1])  # the bias is not shrunk
    for d in range(5):
        known = ~np.isnan(targets[:, d])
        xk, w, y = x[known], np.diag(weights[known]), np.arctanh(targets[known, d])
        beta = np.linalg.solve(xk.T @ w @ xk + penalty, xk.T @ w @ y)
        assert found[:, d] == pytest.approx(x @ beta, abs=1e-4)


def test_the_tanh_of_an_unshrunk_probe_gives_back_what_it_was_fitted_to():
    features, _, weights = problem()
    targets = np.tanh(0.05 * features @ np.ones((4, 5)) - 1.0).astype(np.float32)
    found, _ = probe(features, targets, weights, ridge=1e-4)
    assert np.tanh(found) == pytest.approx(targets, abs=1e-3)


def test_a_strong_ridge_leaves_only_the_weighted_mean():
    features, targets, weights = problem()
    found, matrix = probe(features, targets, weights, ridge=1e9)
    known = ~np.isnan(targets[:, 0])
    assert np.abs(matrix).max() < 1e-4
    assert found[:, 0] == pytest.approx(np.average(np.arctanh(targets[known, 0]), weights=weights[known]), abs=1e-4)


def test_a_target_at_the_end_of_the_scale_gives_a_finite_probe():
    features, targets, weights = problem()
    targets[0], targets[1] = 1.0, -1.0
    assert np.isfinite(probe(features, targets, weights, ridge=1.0)[0]).all()


def test_a_feature_that_never_changes_does_no_harm():
    features, targets, weights = problem()
    features[:, 0] = 2.0
    assert np.isfinite(probe(features, targets, weights, ridge=1.0)[0]).all()


# ---- labels


@pytest.mark.parametrize("kind", HARM)
def test_damage_lowers_the_harmed_spares_the_unharmed_and_leaves_the_rest_unknown(kind):
    for key, after in zip(KEYS, harmed([9.0] * 5, kind, 0.5, 6.0), strict=True):
        share = HARM[kind].get(key)
        assert after == pytest.approx(NAN if share is None else 9.0 - 3.0 * share, nan_ok=True)


def test_a_rating_never_falls_below_the_scale():
    assert min(v for v in harmed([2.0] * 5, "shuffle", 1.0, 6.0) if v == v) == 1.0


def group(id="g", *rows):
    made = Group(id)
    for text, target, weight, origin in rows:
        made.add(text, [target] + [NAN] * 4, weight, origin)
    return made


def test_label_shares_count_known_labels_by_trust():
    groups = [group("a", ("x", 9.0, 1.0, "people"), ("y", 3.0, 0.5, "rated")), group("b", ("z", NAN, 1.0, "people"))]
    groups[0].add("w", [5.0] * 5, 0.5, "damage:cut")
    assert label_shares(groups) == {"damage:cut": 0.625, "people": 0.25, "rated": 0.125}


def test_label_shares_sum_to_one():
    shares = label_shares(anchored_groups([plot(i) for i in range(3)], [0.3, 0.7], seed=1))
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-3)


def plot(i, premise=None):
    sentences = tuple(f"Ann{i} met trouble {k} of {i}." for k in range(8))
    return Plot(
        f"x{i}", " ".join(sentences), premise or f"p{i}", sentences=sentences, turn=(4,), characters=(f"Ann{i}",)
    )


def test_a_well_made_plot_is_grouped_with_each_kind_of_its_damage():
    first = anchored_groups([plot(0), plot(1)], [0.7], seed=1)[0]
    assert first.origins == ["whole plots", *(f"damage:{kind}" for kind in HARM)]
    assert first.targets[0] == [WHOLE] * 5
    assert first.targets[1] == pytest.approx(harmed([WHOLE] * 5, "shuffle", 0.7, DROP), nan_ok=True)
    assert set(first.weights) == {1.0}


def test_rated_candidates_are_grouped_by_premise_with_one_damaged_and_little_trust():
    drafts = [plot(0, "a"), plot(1, "a"), plot(2, "b")]
    ratings = {d.id: AspectRatings(d.id, dict.fromkeys(KEYS, 6.0)) for d in drafts}
    found = rated_groups(drafts, ratings, weight=0.25, strength=0.7, seed=1)
    assert [(g.id, [o.split(":")[0] for o in g.origins]) for g in found] == [
        ("a", ["rated", "rated", "damage"]),
        ("b", ["rated", "damage"]),
    ]
    assert {w for g in found for w in g.weights} == {0.25}
    assert [g.absolute for g in found] == [False, False]


def test_ratings_are_put_in_units_of_their_spread_around_the_middle():
    drafts = [plot(i, "a") for i in range(3)]
    ratings = {d.id: AspectRatings(d.id, dict.fromkeys(KEYS, 6.0 + i / 100)) for i, d in enumerate(drafts)}
    (found,) = rated_groups(drafts, ratings, weight=0.25, strength=0.7, seed=1)
    step = math.sqrt(1.5)  # 1 / the standard deviation of −1, 0, 1
    for row, expected in zip(found.targets[:3], (5.5 - step, 5.5, 5.5 + step), strict=True):
        assert row == pytest.approx([expected] * 5, abs=1e-3)


def test_a_candidate_that_was_not_rated_is_left_out():
    ratings = {"x0": AspectRatings("x0", dict.fromkeys(KEYS, 6.0))}
    (found,) = rated_groups([plot(0, "a"), plot(1, "a")], ratings, weight=0.25, strength=0.7, seed=1)
    assert found.origins.count("rated") == 1


def test_no_premise_stands_on_both_sides():
    groups = [group(f"x{i}") for i in range(60)]
    premise_of = {f"x{i}": f"p{i // 2}" for i in range(60)}
    train, held_out = split_groups(groups, premise_of)
    assert len(train) + len(held_out) == 60
    assert train
    assert held_out
    assert not {premise_of[g.id] for g in train} & {premise_of[g.id] for g in held_out}


# ---- measure


def scored(*rows):
    return np.array([[r] * 5 for r in rows], dtype=float)


def test_the_measure_of_a_hand_case():
    first = group("a", ("x", 9.0, 1.0, "p"), ("y", 5.0, 1.0, "p"), ("z", 1.0, 1.0, "p"))
    second = group("b", ("x", 9.0, 1.0, "p"), ("y", 5.0, 1.0, "p"), ("z", NAN, 1.0, "p"))
    found = measure(scored(3, 2, 1, 1, 2, 9), [first, second])["character"]
    assert found["pairs"] == 4  # three right in the first, one wrong in the second
    assert found["accuracy"][0] == pytest.approx(0.75)
    assert found["spearman"][0] == pytest.approx(1.0)  # the second has too few known


def test_a_tie_is_half_right():
    found = measure(scored(2, 2), [group("a", ("x", 9.0, 1.0, "p"), ("y", 5.0, 1.0, "p"))])
    assert found["character"]["accuracy"][0] == 0.5


def test_targets_nearer_than_the_gap_make_no_pair():
    found = measure(scored(2, 1), [group("a", ("x", 9.0, 1.0, "p"), ("y", 8.6, 1.0, "p"))])
    assert (found["character"]["pairs"], found["character"]["accuracy"]) == (0, None)


def test_a_dimension_of_which_nothing_is_known_has_no_figure():
    found = measure(scored(2, 1), [group("a", ("x", 9.0, 1.0, "p"), ("y", 1.0, 1.0, "p"))])
    assert found["emotion"] == {"spearman": None, "pairs": 0, "accuracy": None}


def test_the_length_baseline_scores_by_characters():
    groups = [group("a", ("xx", 9.0, 1.0, "p"), ("x", 1.0, 1.0, "p")), group("b", ("灯塔。", 9.0, 1.0, "p"))]
    assert length_scores(groups).tolist() == [[2.0] * 5, [1.0] * 5, [3.0] * 5]
