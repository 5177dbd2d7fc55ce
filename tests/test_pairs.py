"""Which pairs are kept, and the reason of each that is not."""

import pytest

from toolkit.narrative.dimensions import KEYS
from toolkit.narrative.writing import write_prompt
from toolkit.preference.pairs import confident_pairs, overlap
from toolkit.records import REASONS, AspectRatings, Plot

GOOD = "Ann dug the dry well by night until the root she struck began to bleed."
BAD = "One day a well was found by some people and then it was all over again."
SETTINGS = {
    "margin": 0.3,
    "agree": 0.6,
    "prompts": "both",
    "length_ratio": 1.5,
    "per_premise": 9,
    "max_pairs": 0,
}


def scores(*values):
    return dict(zip(KEYS, values * 5 if len(values) == 1 else values, strict=True))


def rating(id, positive, negative):
    return AspectRatings(id, scores(5.0), positive=scores(positive), negative=scores(negative))


def sort_two(good=GOOD, bad=BAD, better=(7.0,), worse=(4.0,), sides=((7, 4), (7, 4)), **settings):
    """(kept, rejected) of one premise's two plots, `sides` being the two assessments of (good, bad)."""
    plots = [Plot("good", good, "p", "A well."), Plot("bad", bad, "p", "A well.")]
    (gp, bp), (gn, bn) = sides
    return confident_pairs(
        plots,
        {"good": scores(*better), "bad": scores(*worse)},
        {"good": rating("good", gp, gn), "bad": rating("bad", bp, bn)},
        **{**SETTINGS, **settings},
    )


def test_a_confident_pair_is_kept_with_all_that_is_known_of_it():
    (pair,), rejected = sort_two()
    assert rejected == []
    assert (pair.chosen, pair.rejected, pair.chosen_id, pair.rejected_id) == (GOOD, BAD, "good", "bad")
    assert (pair.margin, pair.premise_id) == (3.0, "p")
    assert (pair.chosen_scores, pair.rejected_scores) == (scores(7.0), scores(4.0))
    assert pair.prompt == write_prompt("A well.")[0]["content"]


# reason → what makes exactly this condition fail, and what just lets it pass
EDGES = {
    "margin": ({"better": (4.29,)}, {"better": (4.5,)}),
    "dimensions": (
        {"better": (9.0, 9.0, 4.0, 4.0, 4.0)},
        {"better": (9.0, 9.0, 4.1, 4.0, 4.0)},
    ),
    "prompts": ({"sides": ((7, 4), (4, 4))}, {"sides": ((7, 4), (4.1, 4))}),
    "length": ({"good": "x" * 151, "bad": "y" * 100}, {"good": "x" * 150, "bad": "y" * 100}),
    "duplicate": ({"good": "a b c d e f g", "bad": "a b c d e f g"}, {"good": "a b c d e f g", "bad": "a b c d e g f"}),
}


@pytest.mark.parametrize("reason", EDGES)
def test_a_pair_just_beyond_a_limit_is_left_out_for_that_reason(reason):
    kept, (rejected,) = sort_two(**EDGES[reason][0])
    assert kept == []
    assert (rejected.reason, rejected.better, rejected.worse, rejected.premise_id) == (reason, "good", "bad", "p")


@pytest.mark.parametrize("reason", EDGES)
def test_a_pair_just_within_a_limit_is_kept(reason):
    kept, rejected = sort_two(**EDGES[reason][1])
    assert [p.chosen_id for p in kept] == ["good"]
    assert rejected == []


@pytest.mark.parametrize(
    ("prompts", "sides", "kept"),
    [
        ("both", ((7, 4), (7, 4)), 1),
        ("both", ((7, 4), (4, 7)), 0),
        ("either", ((7, 4), (4, 7)), 1),
        ("either", ((4, 7), (7, 4)), 1),
        ("either", ((4, 4), (4, 7)), 0),
        ("ignore", ((4, 7), (4, 7)), 1),
    ],
)
def test_as_many_assessments_must_agree_as_the_recipe_says(prompts, sides, kept):
    assert len(sort_two(prompts=prompts, sides=sides)[0]) == kept


def test_a_plot_that_was_not_rated_has_no_assessment_in_its_favour():
    plots = [Plot("good", GOOD, "p"), Plot("bad", BAD, "p")]
    values = {"good": scores(7.0), "bad": scores(4.0)}
    kept, (rejected,) = confident_pairs(plots, values, {}, **{**SETTINGS, "prompts": "either"})
    assert (kept, rejected.reason) == ([], "prompts")
    assert len(confident_pairs(plots, values, {}, **{**SETTINGS, "prompts": "ignore"})[0]) == 1


def texts(n):
    """n texts of one length without three words in common."""
    return [" ".join(f"w{i:02}x{k:02}" for k in range(12)) for i in range(n)]


def sort_many(means, premises=None, **settings):
    """Plots p0, p1 … with these mean scores, all of one premise unless told."""
    premises = premises or ["p"] * len(means)
    plots = [
        Plot(f"p{i}", text, premise) for i, (text, premise) in enumerate(zip(texts(len(means)), premises, strict=True))
    ]
    values = {f"p{i}": scores(float(m)) for i, m in enumerate(means)}
    return confident_pairs(plots, values, {}, **{**SETTINGS, "prompts": "ignore", **settings})


def test_the_surest_pairs_of_a_premise_are_kept_and_the_rest_is_surplus():
    kept, rejected = sort_many([2, 4, 6, 8], per_premise=1)
    assert [(p.chosen_id, p.rejected_id) for p in kept] == [("p3", "p0")]
    assert {r.reason for r in rejected} == {"surplus"}
    assert len(rejected) == 5


def test_a_plot_wins_once_and_loses_once_at_most():
    kept, _ = sort_many([2, 4, 6, 8])
    winners, losers = [p.chosen_id for p in kept], [p.rejected_id for p in kept]
    assert len(set(winners)) == len(winners) >= 2
    assert len(set(losers)) == len(losers)


def test_pairs_come_by_falling_margin_over_all_premises():
    kept, _ = sort_many([2, 3, 5, 9, 4, 6], ["a", "a", "b", "b", "c", "c"])
    assert [(p.premise_id, p.margin) for p in kept] == [("b", 4.0), ("c", 2.0), ("a", 1.0)]


def test_plots_of_different_premises_are_never_paired():
    kept, rejected = sort_many([2, 8], ["a", "b"])
    assert (kept, rejected) == ([], [])


def test_max_pairs_keeps_the_surest_of_all():
    kept, rejected = sort_many([2, 3, 5, 9], ["a", "a", "b", "b"], max_pairs=1)
    assert [p.premise_id for p in kept] == ["b"]
    assert [(r.premise_id, r.reason) for r in rejected] == [("a", "budget")]


def test_every_pair_is_either_kept_or_left_out_with_a_known_reason():
    kept, rejected = sort_many([2, 2.1, 4, 6, 8, 8], per_premise=2, max_pairs=1)
    assert len(kept) + len(rejected) == 15
    assert {r.reason for r in rejected} == {"margin", "surplus", "budget"} <= set(REASONS)


def test_the_order_of_the_plots_changes_nothing():
    plots = [Plot(f"p{i}", t, "p") for i, t in enumerate(texts(4))]
    values = {f"p{i}": scores(m) for i, m in enumerate([5.0, 2.0, 8.0, 5.0])}
    there, back = (
        confident_pairs(order, values, {}, **{**SETTINGS, "prompts": "ignore"})[0] for order in (plots, plots[::-1])
    )
    assert there == back


@pytest.mark.parametrize(
    ("a", "b", "share"),
    [
        ("a b c d", "a b c d", 1.0),
        ("A b C d", "a B c D", 1.0),
        ("a b c d", "x a b c d y", 1.0),
        ("a b c d", "a b c x", 0.5),
        ("a b c", "d e f", 0.0),
        ("hi", "hi ", 1.0),
        ("hi", "ho", 0.0),
        ("hi", "hi you there all", 0.0),
    ],
)
def test_overlap_is_the_share_of_the_smaller_texts_triples(a, b, share):
    assert overlap(a, b) == share


def test_chinese_texts_that_say_nearly_the_same_overlap():
    a = "灯塔看守人每晚点亮灯火，直到有一天他明白灯火赶走了什么，于是他熄灭了灯。"
    assert overlap(a, a.replace("每晚", "夜夜")) > 0.8
    assert overlap(a, "面包师的寡妇在瘟疫里仍然让炉火烧着，没有人敢来买她的面包。") < 0.2
