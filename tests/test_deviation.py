"""Deviation per prompt and its weights: the published arithmetic, and what happens at its edges."""

import numpy as np
import pytest

from toolkit.errors import UserError
from toolkit.preference.deviation import (
    combined,
    deviations,
    mean_distances,
    mean_one,
    min_max,
    rare_words,
)

MODELS = {"semantic": "stylometry", "style": "stylometry"}  # no network, no model: style stands in for both
TEXTS = [
    "She walked to the mill, and the mill was shut.",
    "Why would anybody go there? Nobody asked; nobody went!",
    "He had always been afraid of the water, though he never said so, because his father had drowned in it.",
    "They ran. They fell. They ran again.",
]


def unit(*degrees):
    return np.array([[np.cos(np.radians(d)), np.sin(np.radians(d))] for d in degrees])


def test_a_distance_is_the_mean_over_the_other_answers():
    d = mean_distances(unit(0, 90, 180))
    assert d.tolist() == pytest.approx([1.5, 1.0, 1.5])


def test_z_runs_from_the_least_deviating_to_the_most():
    assert min_max(np.array([0.2, 0.5, 0.3])).tolist() == pytest.approx([0, 1, 1 / 3])


def test_several_kinds_are_combined_by_their_geometric_mean():
    assert combined([np.array([0.25, 1.0]), np.array([1.0, 0.0])]).tolist() == pytest.approx([0.5, 0.0])


def test_the_weight_is_n_times_z_over_the_sum_of_z():
    assert mean_one(np.array([0.0, 0.5, 1.0])).tolist() == pytest.approx([0.0, 1.0, 2.0])


@pytest.mark.parametrize("floor", [0.0, 0.2, 1.0])
def test_weights_have_mean_one_and_stay_above_the_floor(floor):
    z = np.random.default_rng(0).random(8)
    z[2] = 0
    w = mean_one(z, floor)
    assert w.mean() == pytest.approx(1)
    assert w.min() >= floor - 1e-12


def test_a_floor_of_one_makes_every_weight_one():
    assert mean_one(np.array([0.0, 0.3, 1.0]), 1.0).tolist() == [1, 1, 1]


def weights(texts, kinds=("style",), floor=0.0):
    rows = deviations({"p": [(str(i), t) for i, t in enumerate(texts)]}, kinds, floor, MODELS)
    return [r.weight for r in rows]


def test_a_lone_answer_weighs_one():
    assert weights(TEXTS[:1]) == [1]


def test_two_answers_weigh_one_each_because_each_is_as_far_from_the_other():
    assert weights(TEXTS[:2]) == [1, 1]


def test_two_answers_weigh_one_each_by_their_words_too():
    assert weights(["a b c", "a a a"], kinds=("words",)) == [1, 1]


def test_an_enormous_answer_is_refused_with_its_prompt():
    with pytest.raises(UserError, match=r"the answer 1 to prompt p has 200,001 characters"):
        weights(["a b", "a" * 200_001])


def test_of_four_answers_the_least_deviating_weighs_nothing_and_the_mean_is_one():
    w = weights(TEXTS)
    assert min(w) == 0
    assert np.mean(w) == pytest.approx(1)


def test_identical_answers_weigh_one_each():
    assert weights([TEXTS[0]] * 4) == [1, 1, 1, 1]


def test_an_answer_unlike_three_identical_ones_takes_all_the_weight():
    assert weights([TEXTS[0]] * 3 + [TEXTS[1]]) == pytest.approx([0, 0, 0, 4])


def test_where_two_kinds_leave_nothing_every_weight_is_one():
    assert mean_one(combined([np.array([0.0, 1.0]), np.array([1.0, 0.0])])).tolist() == [1, 1]


def test_prompts_do_not_see_each_other():
    both = deviations(
        {"p": [(str(i), t) for i, t in enumerate(TEXTS)], "q": [("x", "Another thing entirely, of another kind.")]},
        ("style",),
        0.0,
        MODELS,
    )
    assert [r.weight for r in both[:4]] == weights(TEXTS)
    assert both[4].weight == 1


def test_rare_words_are_counted_over_the_prompts_answers():
    assert rare_words(["a b", "a a"]).tolist() == pytest.approx([(1 / 3 + 1) / 2, 1 / 3])


def test_rare_words_of_chinese_are_characters():
    assert rare_words(["山水", "山山"]).tolist() == pytest.approx([(1 / 3 + 1) / 2, 1 / 3])


def test_a_text_without_words_has_no_rare_ones():
    assert rare_words(["…!", "a"]).tolist() == [0, 1]
