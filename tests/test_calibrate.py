"""Calibration from people: maps that keep the order, thresholds that hold on fresh comparisons, ratings as pairs."""

import json

import numpy as np
import pytest

from toolkit.errors import UserError
from toolkit.evaluate.calibrate import (
    Calibrated,
    MonotoneMap,
    calibrate_confidence,
    calibrate_ratings,
    fit_monotone,
    ratings_to_pairs,
    read_calibration,
)
from toolkit.evaluate.judge import ScoreJudge
from toolkit.narrative.dimensions import KEYS
from toolkit.narrative.writing import write_prompt
from toolkit.people import RatedText
from toolkit.records import Plot, text_id
from toolkit.stats import spearman

# ---- a map that keeps the order


def test_a_map_pools_what_falls_and_joins_the_blocks_centres():
    # thirty points: x = 1, 2, 3, 4, 5, six times each; the means 1, 3, 2, 4, 4 fall once: 2 and 3 become one block
    x, y = np.repeat([1.0, 2, 3, 4, 5], 6), np.repeat([1.0, 3, 2, 4, 4], 6)
    found = fit_monotone(x, y)
    assert found.x == (1.0, 2.5, 4.5)
    assert found.y == (1.0, 2.5, 4.0)
    assert found([1.75, 3.5]).tolist() == [1.75, 3.25]


def test_outside_what_was_seen_a_map_is_constant():
    found = fit_monotone(np.arange(30), np.arange(30) * 2)
    assert found([-5, 100]).tolist() == [0.0, 58.0]


def test_weights_count_a_point_as_often_as_it_stands_there():
    rng = np.random.default_rng(0)
    x = np.sort(rng.normal(size=30)).round(1)
    y, w = x + rng.normal(size=30), rng.integers(1, 4, 30)
    weighted, repeated = fit_monotone(x, y, w), fit_monotone(np.repeat(x, w), np.repeat(y, w))
    assert weighted.x == pytest.approx(repeated.x)
    assert weighted.y == pytest.approx(repeated.y)


def test_a_map_has_the_least_squared_error_of_all_rising_ones():
    """Isotonic regression's min-max formula: the fit at i is max over a ≤ i of min over b ≥ i of the mean of y[a … b]."""
    rng = np.random.default_rng(4)
    y = np.arange(40) / 8 + rng.normal(size=40) * 2
    found = fit_monotone(np.arange(40), y)
    best = [max(min(y[a : b + 1].mean() for b in range(i, 40)) for a in range(i + 1)) for i in range(40)]
    assert found.y == pytest.approx(sorted(set(np.round(best, 9))))


def test_a_map_keeps_the_order_up_to_ties():
    rng = np.random.default_rng(1)
    x = rng.uniform(1, 10, 60)
    after = fit_monotone(x, x + rng.normal(size=60) * 3)(np.sort(rng.uniform(0, 11, 200)))
    assert (np.diff(after) >= 0).all()


def test_points_without_a_number_are_left_out():
    x = np.append(np.arange(30.0), [np.nan, 3])
    y = np.append(np.arange(30.0), [5, np.nan])
    assert fit_monotone(x, y) == fit_monotone(np.arange(30), np.arange(30))


def test_fewer_than_thirty_points_make_no_map():
    with pytest.raises(UserError, match="29 texts to fit a map on; at least 30"):
        fit_monotone(np.arange(29), np.arange(29))


@pytest.mark.parametrize("y", [-np.arange(40.0), np.ones(40), np.tile([1.0, 2, 2, 1], 10)])
def test_a_judge_that_does_not_follow_people_gets_no_map(y):
    with pytest.raises(UserError, match="a map would only hide it"):
        fit_monotone(np.arange(40), y)


def test_a_map_goes_through_a_file():
    rng = np.random.default_rng(2)
    found = fit_monotone(np.arange(40), np.arange(40) + rng.normal(size=40) * 5)
    assert MonotoneMap.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    "row", [{}, {"x": [1, 2], "y": [2, 1]}, {"x": [2, 1], "y": [1, 2]}, {"x": [], "y": []}, {"x": [1], "y": ["z"]}]
)
def test_a_map_that_would_change_the_order_is_refused(row):
    with pytest.raises(UserError, match="map"):
        MonotoneMap.from_dict(row)


# ---- ratings


def people(n=60, groups=12, noise=0.0, seed=0):
    """Texts «good 7.3 …» whose first number is what the judge sees; people gave 1 … 5 by a bent scale."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        seen = rng.uniform(1, 10)
        given = np.clip(np.rint(1 + 4 * ((seen - 1) / 9) ** 3 + noise * rng.normal(size=3)), 1, 5)
        text = f"{seen:.3f} is what the judge of this tale sees and it is the tale of number {i}."
        ratings = {"cohesion": tuple(given), "noise": tuple(rng.integers(1, 6, 3))}
        mean = {a: float(np.mean(v)) for a, v in ratings.items()}
        out.append(RatedText(f"r{i}", text, mean, ratings, group=f"g{i % groups}"))
    return out


def reader(name="fake", asked=None, sign=1):
    """A judge that rates a text by its first number on each dimension."""

    def score(texts):
        if asked is not None:
            asked.extend(texts)
        return np.array([[5.5 + sign * (float(t.split()[0]) - 5.5)] * 5 for t in texts])

    return ScoreJudge(name, score)


def test_a_bent_judge_is_put_on_peoples_scale(tmp_path):
    found = calibrate_ratings(reader(), people(), {"cohesion": "coherence"}, tmp_path)
    q = found["quality"]["coherence"]
    assert q["mae_before"][0] > 1.5
    assert q["mae_after"][2] < 1.0
    assert q["mae_after"][2] < q["mae_constant"][0]
    assert q["kappa_after"][0] > 0.95 > q["kappa_before"][0]
    assert q["spearman_after"] == pytest.approx(q["spearman_before"], abs=0.05)
    assert found["fitted_on"]["scale"] == [1.0, 5.0]
    assert (found["fitted_on"]["texts"], found["fitted_on"]["groups"]) == (60, 12)
    assert json.loads((tmp_path / "calibration.json").read_text()) == found


def test_figures_before_are_those_of_the_plain_ratings(tmp_path):
    rated = people(noise=0.7)
    q = calibrate_ratings(reader(), rated, {"cohesion": "tone"}, tmp_path)["quality"]["tone"]
    x = np.array([float(r.text.split()[0]) for r in rated])
    y = np.array([1 + (r.mean["cohesion"] - 1) / 4 * 9 for r in rated])
    assert q["mae_before"][0] == pytest.approx(np.abs(x - y).mean(), abs=1e-3)
    assert q["spearman_before"] == pytest.approx(spearman(x, y), abs=1e-3)


def test_a_map_is_judged_on_groups_it_did_not_see(tmp_path):
    """Two groups, one all low and one all high: each is predicted by the map of the other, and wholly wrong."""
    rated = [
        RatedText(f"{g}{k}", f"{at + k / 10} is what the judge of this tale sees.", {"a": level}, {"a": (level,)}, g)
        for g, at, level in (("low", 2.0, 1.0), ("high", 6.0, 5.0))
        for k in range(20)
    ]
    q = calibrate_ratings(reader(), rated, {"a": "tone"}, tmp_path)["quality"]["tone"]
    assert q["mae_after"][0] == q["mae_constant"][0] == 9.0
    assert q["mae_before"][0] < 4


def test_a_second_call_asks_the_judge_nothing(tmp_path):
    asked = []
    first = calibrate_ratings(reader(asked=asked), people(), {"cohesion": "coherence"}, tmp_path)
    assert len(asked) == 60
    assert calibrate_ratings(reader(asked=asked), people(), {"cohesion": "coherence"}, tmp_path) == first
    assert len(asked) == 60


def test_an_aspect_the_judge_does_not_follow_is_refused_and_the_others_stand(tmp_path):
    rated = [RatedText(r.id, r.text, {**r.mean, "noise": 6 - r.mean["cohesion"]}, r.people, r.group) for r in people()]
    found = calibrate_ratings(reader(), rated, {"cohesion": "coherence", "noise": "emotion"}, tmp_path)
    assert list(found["maps"]) == ["coherence"]
    assert "a map would only hide it" in found["refused"]["emotion"]
    with pytest.raises(UserError, match="no map can be fitted: emotion"):
        calibrate_ratings(reader(), rated, {"noise": "emotion"}, tmp_path)


def test_texts_the_judge_cannot_rate_are_counted(tmp_path):
    foreign = RatedText(
        "x", "Der Wärter zündete die Lampe an und die See schlug gegen die Tür.", {"cohesion": 3, "noise": 3}, {}, "g1"
    )
    found = calibrate_ratings(reader(), [*people(), foreign], {"cohesion": "coherence"}, tmp_path)
    assert (found["fitted_on"]["texts"], found["fitted_on"]["unrated"]) == (60, 1)
    assert sum(found["fitted_on"]["reasons"].values()) == 1


def means_only(rated):
    return [RatedText(r.id, r.text, r.mean, {}, r.group) for r in rated]


def test_without_single_ratings_the_scale_must_be_given(tmp_path):
    with pytest.raises(UserError, match="scale of the ratings is not known"):
        calibrate_ratings(reader(), means_only(people()), {"cohesion": "tone"}, tmp_path)
    found = calibrate_ratings(reader(), means_only(people()), {"cohesion": "tone"}, tmp_path, scale=(0, 5))
    assert found["fitted_on"]["scale"] == [0, 5]
    assert found["maps"]["tone"]["y"][0] >= 2.8 - 1e-9  # people's lowest, 1, is not the scale's lowest


@pytest.mark.parametrize(
    ("aspects", "scale", "said"),
    [
        ({"cohesoin": "tone"}, None, "there is no aspect cohesoin"),
        ({"cohesion": "tune"}, None, "there is no dimension tune"),
        ({"cohesion": "tone", "noise": "tone"}, None, "two aspects are given for one dimension"),
        ({"cohesion": "tone"}, (2, 5), "off the scale 2 … 5"),
        ({"cohesion": "tone"}, (5, 1), "has no width"),
        ({}, None, "nothing to calibrate on"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_anything_is_asked(tmp_path, aspects, scale, said):
    asked = []
    with pytest.raises(UserError, match=said):
        calibrate_ratings(reader(asked=asked), people(), aspects, tmp_path, scale)
    assert not asked


def test_one_group_cannot_check_a_map(tmp_path):
    with pytest.raises(UserError, match="all texts are of one group"):
        calibrate_ratings(reader(), people(groups=1), {"cohesion": "tone"}, tmp_path)


# ---- the calibrated judge


def test_a_calibrated_judge_rates_through_the_map_and_keeps_the_rest(tmp_path):
    calibration = {"judge": "fake", "maps": {"tone": {"x": [1.0, 10.0], "y": [1.0, 4.0]}}}
    judge = Calibrated(reader(), calibration)
    plot = Plot("p", "5.5 is what the judge of this tale sees.")
    found = judge.rate(plot)
    assert found.scores == {k: 2.5 if k == "tone" else 5.5 for k in KEYS}
    assert found.rater == judge.name != "fake"
    other = Plot("q", "7.0 is what the judge of this tale sees.")
    assert judge.compare("A.", plot, other) == reader().compare("A.", plot, other)


def test_a_calibrated_judge_makes_no_rating_up():
    found = Calibrated(reader(), {"judge": "fake", "maps": {}}).rate(Plot("p", ""))
    assert (found.scores, found.error) == ({}, "the text is empty")


def test_a_calibration_is_read_from_its_folder_and_belongs_to_its_judge(tmp_path):
    calibrate_ratings(reader(), people(), {"cohesion": "coherence"}, tmp_path)
    assert list(Calibrated(reader(), tmp_path).maps) == ["coherence"]
    assert read_calibration(tmp_path) == read_calibration(tmp_path / "calibration.json")
    with pytest.raises(UserError, match="fitted for fake, not for other"):
        Calibrated(reader("other"), tmp_path)
    with pytest.raises(UserError, match="cannot read"):
        Calibrated(reader(), tmp_path / "none.json")
    (tmp_path / "calibration.json").write_text("[]")
    with pytest.raises(UserError, match="is no calibration"):
        Calibrated(reader(), tmp_path)


# ---- confidence


def comparisons(n, seed, slope=0.0, per=4, together=False):
    """Odds of a judge that is right with probability σ(slope · |odds|), `per` comparisons a group."""
    rng = np.random.default_rng(seed)
    sure, groups = np.abs(rng.normal(size=n)), np.arange(n) // per
    luck = rng.random(n)[groups] if together else rng.random(n)
    return np.where(luck < 1 / (1 + np.exp(-slope * sure)), sure, -sure), [str(g) for g in groups]


@pytest.mark.parametrize("together", [False, True])
def test_a_coin_is_never_trusted(together):
    """Also a coin that is thrown once a group: many comparisons, few throws."""
    trusted = sum(
        calibrate_confidence(*comparisons(120, seed, together=together), seed=seed)["threshold"] is not None
        for seed in range(100)
    )
    assert trusted <= 10  # of 100


def test_a_threshold_holds_on_fresh_comparisons():
    fresh, told, found = [], [], 0
    for seed in range(30):
        known = calibrate_confidence(*comparisons(300, seed, slope=1.5), wanted=0.7, seed=seed)
        if known["threshold"] is None:
            continue
        found += 1
        odds, _ = comparisons(20_000, 10_000 + seed, slope=1.5)
        fresh.append((odds[np.abs(odds) >= known["threshold"]] > 0).mean())
        told.append(known["accuracy"][0])
    assert found >= 20
    assert np.mean(fresh) >= 0.7 - 0.05
    assert np.mean(told) == pytest.approx(np.mean(fresh), abs=0.03)  # the choice does not flatter itself


def test_a_judge_right_only_when_sure_is_trusted_from_there_on():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0, 2, 600)
    odds = np.where(sure > 1, 1, rng.choice([-1, 1], 600)) * sure
    found = calibrate_confidence(odds, [str(i // 3) for i in range(600)], wanted=0.9)
    assert 0.7 < found["threshold"] <= 1.0
    assert found["coverage"] == pytest.approx((sure >= found["threshold"]).mean(), abs=1e-3)
    assert 0.9 <= found["accuracy"][0] <= found["accuracy"][2]
    assert found["accuracy"][1] > 0.5


def test_a_judge_that_is_nearly_always_right_is_trusted_always():
    odds = np.abs(np.random.default_rng(0).normal(size=200))
    odds[::20] *= -1
    found = calibrate_confidence(odds, [str(i) for i in range(200)])
    assert (found["threshold"], found["coverage"]) == (0.0, 1.0)
    assert found["accuracy"][0] == pytest.approx(0.95)


def test_a_judge_that_is_mostly_wrong_is_not_trusted():
    odds, groups = comparisons(300, 0, slope=2.0)
    assert calibrate_confidence(-odds, groups)["threshold"] is None


def test_the_curve_is_what_all_comparisons_say():
    found = calibrate_confidence(np.array([1.0, -1.0, 2.0, 2.0, np.nan]), list("abcde"))
    assert found["curve"][0] == [0.0, 0.8, 0.75]
    assert found["curve"][-1] == [2.0, 0.4, 1.0]
    assert (found["threshold"], found["coverage"], found["comparisons"]) == (None, 0.0, 5)
    assert found["accuracy"][0] == 0.75


@pytest.mark.parametrize(("odds", "groups"), [([], []), ([np.nan] * 3, list("abc")), ([2.0] * 90, ["a"] * 90)])
def test_without_verdicts_or_groups_nothing_is_trusted(odds, groups):
    assert calibrate_confidence(np.array(odds), groups)["threshold"] is None


def test_a_threshold_depends_on_the_seed_alone():
    data = comparisons(200, 3, slope=1.5)
    assert calibrate_confidence(*data, seed=1) == calibrate_confidence(*data, seed=1)


# ---- people's ratings as pairs


def rated(id, likes, group="g", prompt="A well.", relevance=3):
    likes = tuple(map(float, likes))
    mean = {"likability": sum(likes) / len(likes), "relevance": float(relevance)}
    return RatedText(
        id, f"Text {id}.", mean, {"likability": likes, "relevance": (relevance,) * len(likes)}, group, "", prompt
    )


def test_texts_of_one_prompt_that_differ_enough_become_a_pair():
    (pair,) = ratings_to_pairs([rated("bad", [1, 2, 3]), rated("good", [4, 4, 4])], {"likability": 1}, 2.0)
    assert (pair.chosen, pair.rejected, pair.margin) == ("Text good.", "Text bad.", 2.0)
    assert (pair.chosen_id, pair.rejected_id, pair.premise_id) == ("good", "bad", text_id("A well.", "p"))
    assert pair.prompt == write_prompt("A well.")[-1]["content"]


def test_the_aspects_count_by_their_weights():
    rows = [rated("a", [5, 5, 5], relevance=1), rated("b", [1, 1, 1], relevance=5)]
    assert ratings_to_pairs(rows, {"likability": 3, "relevance": 1}, 1.0)[0].chosen_id == "a"
    (pair,) = ratings_to_pairs(rows, {"likability": 1, "relevance": 3}, 1.0)
    assert (pair.chosen_id, pair.margin) == ("b", 2.0)


def test_a_pair_most_people_do_not_confirm_is_left_out():
    # means 2.67 and 2, carried by one person: the other two say the opposite
    rows = [rated("a", [5, 1, 2]), rated("b", [1, 2, 3]), rated("c", [1, 1, 1])]
    found = {(p.chosen_id, p.rejected_id) for p in ratings_to_pairs(rows, {"likability": 1}, 0.5)}
    assert found == {("a", "c"), ("b", "c")}


def test_where_the_numbers_of_people_differ_all_are_held_against_all():
    rows = [rated("a", [5, 5]), rated("b", [1, 4, 4])]
    assert ratings_to_pairs(rows, {"likability": 1}, 1.0)[0].chosen_id == "a"


def test_means_alone_are_enough():
    rows = means_only([rated("a", [5]), rated("b", [1])])
    rows = [RatedText(r.id, r.text, r.mean, {}, "g", "", "A well.") for r in rows]
    assert len(ratings_to_pairs(rows, {"likability": 1}, 1.0)) == 1


def test_prompts_may_be_given_by_group_and_texts_without_one_are_left_out():
    rows = [
        rated(i, likes, group, "")
        for i, likes, group in (("a", [5], "1"), ("b", [1], "1"), ("c", [5], "2"), ("d", [1], "2"))
    ]
    (pair,) = ratings_to_pairs(rows, {"likability": 1}, 1.0, {"1": "Snow."})
    assert pair.prompt == write_prompt("Snow.")[-1]["content"]
    with pytest.raises(UserError, match="nothing says what the writers were asked for"):
        ratings_to_pairs(rows, {"likability": 1}, 1.0)


def test_pairs_come_surest_first_and_never_across_prompts():
    rows = [rated(f"{g}{n}", [n], g, f"Premise {g}.") for g in "xy" for n in (1, 3, 5)]
    found = ratings_to_pairs(rows, {"likability": 1}, 2.0)
    assert [p.margin for p in found] == [4.0, 4.0, 2.0, 2.0, 2.0, 2.0]
    assert all(p.chosen_id[0] == p.rejected_id[0] for p in found)


@pytest.mark.parametrize(
    ("rows", "weights", "gap", "said"),
    [
        ([rated("a", [5], "1", "P"), rated("b", [1], "2", "Q")], {"likability": 1}, 1.0, "no group has two texts"),
        ([rated("a", [5]), rated("b", [4])], {"likability": 1}, 2.0, r"differs by 2 .*the widest: 1\.00"),
        ([rated("a", [5]), rated("b", [4])], {"fun": 1}, 1.0, "there is no aspect fun"),
        ([rated("a", [5]), rated("b", [4])], {"likability": 0}, 1.0, "weights"),
        ([rated("a", [5]), rated("b", [4])], {}, 1.0, "weights"),
        ([rated("a", [5]), rated("b", [4])], {"likability": 1}, 0.0, "gap is 0"),
        ([], {"likability": 1}, 1.0, "no rated texts"),
    ],
)
def test_ratings_that_make_no_pairs_say_why(rows, weights, gap, said):
    with pytest.raises(UserError, match=said):
        ratings_to_pairs(rows, weights, gap)
