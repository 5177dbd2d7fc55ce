"""DivPO: most deviating of the good against least deviating of the bad, in both published forms."""

from toolkit.narrative.dimensions import KEYS
from toolkit.preference.divpo import divpo_pairs
from toolkit.records import Plot

TEXTS = [
    "Ama dug until the root bled, and the well gave back her brother's ring.",
    "The bell rang for the drowned, but only the blind ferryman rowed out.",
    "Oskar sold his shadow twice, and both buyers came for it at noon.",
    "Mei planted the letter, and a house of unread words grew over winter.",
    "Nobody ate at the feast, so the cook poisoned himself out of shame.",
    "Three brothers shared one coat until the tailor sewed it to the eldest.",
    "A thief returned every clock, each of them one hour younger than before.",
    "She taught the echo to lie, and the valley went to war over its answer.",
]
LIMITS = {"length_ratio": 3.0, "per_premise": 2, "max_pairs": 0}


def made(quality, rank, texts=TEXTS, **more):
    plots = [Plot(f"p-{i}", t, "p", "A premise.") for i, t in enumerate(texts[: len(quality)])]
    scores = {p.id: dict.fromkeys(KEYS, q) for p, q in zip(plots, quality, strict=True)}
    ranks = {p.id: r for p, r in zip(plots, rank, strict=True)}
    pairs, rejected = divpo_pairs(plots, scores, ranks, **{"share": 0.25, "threshold": 0.0, **LIMITS, **more})
    return [(p.chosen_id[2:], p.rejected_id[2:]) for p in pairs], [r.reason for r in rejected]


def test_the_most_deviating_of_the_best_share_meets_the_least_deviating_of_the_worst():
    quality = [9, 8, 5, 5, 5, 5, 2, 1]
    rank = [0.2, 0.9, 1.0, 0.5, 0.5, 0.0, 0.7, 0.1]
    assert made(quality, rank, per_premise=1)[0] == [("1", "7")]


def test_a_second_pair_uses_the_next_of_each_side():
    quality = [9, 8, 5, 5, 5, 5, 2, 1]
    rank = [0.8, 0.9, 1.0, 0.5, 0.5, 0.0, 0.7, 0.1]
    assert made(quality, rank)[0] == [("1", "7"), ("0", "6")]


def test_with_a_threshold_all_above_it_are_good():
    quality = [9, 8, 7, 6, 5, 4, 3, 2]
    rank = [0.1, 0.2, 0.9, 0.3, 0.05, 1.0, 0.4, 0.6]
    assert made(quality, rank, threshold=6.0, per_premise=1)[0] == [("2", "4")]


def test_a_premise_whose_answers_are_all_good_gives_no_pair():
    assert made([9, 8, 7, 6], [0.1, 0.2, 0.9, 0.3], threshold=6.0) == ([], [])


def test_of_two_answers_the_better_is_chosen_when_it_deviates_as_much():
    assert made([5, 6], [1.0, 1.0])[0] == [("1", "0")]


def test_a_lone_answer_gives_no_pair():
    assert made([5], [1.0]) == ([], [])


def test_equal_quality_gives_no_pair():
    assert made([5, 5], [1.0, 0.0]) == ([], ["margin"])


def test_an_answer_much_longer_than_the_other_is_left_out():
    pairs, reasons = made([9, 1], [1.0, 0.0], texts=[TEXTS[0] * 4, TEXTS[1]])
    assert (pairs, reasons) == ([], ["length"])


def test_two_answers_that_say_the_same_are_no_pair():
    assert made([9, 1], [1.0, 0.0], texts=[TEXTS[0], TEXTS[0] + " So."]) == ([], ["duplicate"])


def test_the_budget_keeps_the_pairs_that_differ_most_in_deviation():
    quality = [9, 8, 5, 5, 5, 5, 2, 1]
    rank = [0.8, 0.9, 1.0, 0.5, 0.5, 0.0, 0.7, 0.1]
    assert made(quality, rank, max_pairs=1) == ([("1", "7")], ["budget"])
