"""Many writers, one judge: strengths worked out by hand, matches that tell most, an order only settled when it is."""

import itertools
import json
import math

import numpy as np
import pytest

from toolkit.engines.base import Sampling
from toolkit.errors import EngineDown, UserError
from toolkit.evaluate import bradley_terry as bt
from toolkit.evaluate.judge import Verdict
from toolkit.evaluate.ranking import lines, table
from toolkit.evaluate.tournament import tournament
from toolkit.narrative.dimensions import KEYS
from toolkit.records import Premise, read_jsonl


def matches(*counts):
    """(a, b, points of a, how many) → results, each on a premise of its own."""
    rows = [(a, b, points) for a, b, points, times in counts for _ in range(times)]
    return [bt.Result(i, *row) for i, row in enumerate(rows)]


def strengths(*counts, writers=2):
    return bt.fit(bt.points_table(matches(*counts), writers).sum(0))


# ---- strengths


def test_two_writers_at_three_to_one_stand_seven_to_three_with_the_virtual_tie():
    # n = 4 + 1 virtual, wins 3 + ½ and 1 + ½: the fixed point of MM is the ratio of the wins
    theta = strengths((0, 1, 1.0, 3), (0, 1, 0.0, 1))
    assert theta[0] - theta[1] == pytest.approx(math.log(3.5 / 1.5), abs=1e-6)
    assert theta.sum() == pytest.approx(0)


def test_strengths_solve_the_likelihood_equations():
    counts = ((0, 1, 1.0, 5), (0, 1, 0.0, 2), (1, 2, 1.0, 4), (1, 2, 0.5, 3), (0, 3, 0.0, 6), (2, 3, 1.0, 1))
    points = bt._with_prior(bt.points_table(matches(*counts), 4).sum(0))
    theta = strengths(*counts, writers=4)
    chance = 1 / (1 + np.exp(theta[None, :] - theta[:, None]))
    assert points.sum(1) == pytest.approx(((points + points.T) * chance).sum(1), abs=1e-5)


def test_ties_count_half_for_both():
    assert strengths((0, 1, 0.5, 8)) == pytest.approx([0, 0])
    assert strengths((0, 1, 0.5, 8)) == pytest.approx(strengths((0, 1, 1.0, 4), (0, 1, 0.0, 4)))


def test_a_match_without_verdict_says_nothing():
    some = ((0, 1, 1.0, 3), (0, 1, 0.0, 1))
    assert strengths(*some, (0, 1, None, 9)) == pytest.approx(strengths(*some))


def test_a_writer_that_won_everything_has_a_finite_strength_and_a_wide_interval():
    results = matches((0, 1, 1.0, 10))
    now = bt.standing(results, 2)
    assert now.theta[0] - now.theta[1] == pytest.approx(math.log(10.5 / 0.5), abs=1e-5)
    low, high = bt.intervals(results, now)[0]
    assert high - low > 1


def test_writers_that_never_met_have_finite_strengths():
    theta = strengths((0, 1, 1.0, 5), (2, 3, 1.0, 5), writers=4)
    assert np.isfinite(theta).all()
    assert theta[0] == pytest.approx(theta[2])


def test_many_tables_at_once_give_what_each_gives_alone():
    tables = np.random.default_rng(0).integers(0, 5, (6, 3, 3)) * (1 - np.eye(3))
    assert bt.fit(tables) == pytest.approx(np.array([bt.fit(one) for one in tables]), abs=1e-5)


def test_intervals_draw_premises_and_not_verdicts():
    apart = matches((0, 1, 1.0, 16), (0, 1, 0.0, 16))
    together = [r._replace(premise=r.premise // 8) for r in apart]  # on each of 4 premises all eight say the same
    width = lambda results: float(np.ptp(bt.intervals(results, bt.standing(results, 2))[0]))  # noqa: E731
    assert width(together) > 1.8 * width(apart)
    assert np.isnan(bt.intervals([r._replace(premise=0) for r in apart], bt.standing(apart, 2))).all()


def test_the_best_is_the_best_with_the_probability_of_the_order():
    now = bt.standing(matches((0, 1, 1.0, 9), (0, 1, 0.0, 5)), 2)
    assert bt.best(now)[0] == pytest.approx(now.ahead()[0, 1], abs=0.01)
    assert bt.best(now).sum() == pytest.approx(1)


# ---- planted strengths


class World:
    """Writers of known strength; every match's result is drawn once, so that two ways of pairing meet the same truth."""

    def __init__(self, theta, premises, seed, ties=0.0):
        self.n, rng = len(theta), np.random.default_rng(seed)
        self.left = {pair: list(range(premises)) for pair in itertools.combinations(range(self.n), 2)}
        self.points = {}
        for a, b in self.left:
            wins = rng.random(premises) < 1 / (1 + np.exp(theta[b] - theta[a]))
            self.points[a, b] = np.where(rng.random(premises) < ties, 0.5, wins)
        self.results = []

    def play(self, pair):
        premise = self.left[pair].pop()
        self.results.append(bt.Result(premise, *pair, float(self.points[pair][premise])))

    def playable(self):
        return [pair for pair, left in self.left.items() if left]


def verdicts_until_settled(theta, seed, rng=None, look=4):
    """How many verdicts until the order is settled (looked at every fourth), and whether it is right then."""
    world = World(theta, 200, seed)
    while True:
        now = bt.standing(world.results, world.n)
        if bt.begun(world.results, world.playable()) and bt.settled_order(now):
            return len(world.results), now.order() == sorted(range(world.n), key=lambda i: -theta[i])
        for _ in range(look):
            playable = world.playable()
            world.play(playable[rng.integers(len(playable))] if rng else bt.next_pair(world.results, now, playable))


def test_matches_that_tell_most_settle_the_order_with_fewer_verdicts_than_random_ones():
    theta = [0.0, 2.4, -2.4, 1.2]
    chosen = [verdicts_until_settled(theta, seed) for seed in range(20)]
    random = [verdicts_until_settled(theta, seed, np.random.default_rng(seed + 1000)) for seed in range(20)]
    mean = lambda found: np.mean([n for n, _ in found])  # noqa: E731
    assert mean(chosen) < 0.75 * mean(random)
    assert sum(right for _, right in chosen) >= 19


def test_with_the_same_budget_the_order_is_right_more_often():
    theta, right = [2.0, 1.0, 0.0, -1.0, -2.0], {"chosen": 0, "random": 0}
    for seed in range(20):
        for kind in right:
            world, rng = World(theta, 60, seed), np.random.default_rng(seed)
            while len(world.results) < 60:
                now = bt.standing(world.results, 5)
                for _ in range(3):
                    playable = world.playable()
                    chosen = bt.next_pair(world.results, now, playable)
                    world.play(chosen if kind == "chosen" else playable[rng.integers(10)])
            right[kind] += bt.standing(world.results, 5).order() == [0, 1, 2, 3, 4]
    assert right["chosen"] >= right["random"] + 4


def test_looking_after_every_match_rarely_settles_an_order_of_equal_writers():
    wrong = naive = 0
    for seed in range(40):
        world, settled, plain = World([0.0, 0.0], 60, seed, ties=0.2), False, False
        while world.playable():
            world.play((0, 1))
            now = bt.standing(world.results, 2)
            if len(world.results) >= bt.FIRST:
                settled |= bool(now.settled().any())
                plain |= bool((now.ahead() > 0.975).any())
        wrong, naive = wrong + settled, naive + plain
    assert wrong <= 4  # 2 expected of 40 at 95 %
    assert naive >= 6  # why a plain 95 % would not do


def test_intervals_of_a_full_round_robin_cover_the_planted_strengths():
    theta, inside = np.array([1.0, 0.3, -0.3, -1.0]), []
    for seed in range(40):
        world = World(theta, 25, seed)
        for pair in world.playable():
            for _ in range(25):
                world.play(pair)
        found = bt.intervals(world.results, bt.standing(world.results, 4), draws=300)
        inside += [low <= value <= high for (low, high), value in zip(found, theta, strict=True)]
    assert 0.9 <= np.mean(inside) <= 0.995


def test_every_pair_is_begun_before_any_is_preferred():
    world = World([3.0, 0.0, 0.0], 9, 0)
    for _ in range(3 * bt.FIRST):
        world.play(bt.next_pair(world.results, bt.standing(world.results, 3), world.playable()))
    assert bt.begun(world.results, world.playable())
    assert {len(left) for left in world.left.values()} == {9 - bt.FIRST}


def test_a_pair_the_judge_cannot_judge_is_left_for_others():
    results = matches((0, 1, None, 9), (0, 2, 0.5, 9), (1, 2, 0.5, 9))
    now = bt.standing(results, 3)
    assert bt.next_pair(results, now, [(0, 1), (0, 2), (1, 2)]) != (0, 1)


# ---- the whole tournament

SKILL = {"weak": -3.0, "middling": 0.0, "strong": 3.0}
PREMISES = [Premise(f"p{i}", f"A lamp, number {i}.") for i in range(12)]


class Writer:
    """Writes its own name and the number of the premise; closed once."""

    opened, asked = 0, 0

    def __init__(self, name, fails_on=(), empty_on=(), down_on=()):
        self.name, self.fails_on, self.empty_on, self.down_on = name, fails_on, empty_on, down_on
        Writer.opened += 1
        assert Writer.opened == 1, "two writers are held in memory"

    def generate(self, prompts, n, sampling):
        Writer.asked += 1
        asked = [messages[0]["content"] for messages in prompts]
        on = lambda text, numbers: any(f"number {i}." in text for i in numbers)  # noqa: E731
        if any(on(text, self.down_on) for text in asked):
            raise EngineDown("the writer is gone")
        if any(on(text, self.fails_on) for text in asked):
            raise UserError("the premise is too long")
        return [["" if on(t, self.empty_on) else f"{self.name} wrote {k} of them." for k in range(n)] for t in asked]

    def close(self):
        Writer.opened -= 1


class Judge:
    """Prefers the higher skill, with luck that depends on the texts and the premise; dies after `alive` matches."""

    family = ""

    def __init__(self, alive=10**9, answer=None, name="fake judge"):
        self.alive, self.answer, self.name, self.met, self.closed = alive, answer, name, [], False
        assert Writer.opened == 0, "a writer is held beside the judge"

    def compare(self, premise, a, b):
        if len(self.met) == self.alive:
            raise EngineDown("the judge is gone")
        self.met.append((a.id, b.id))
        if self.answer:
            first, second = self.answer(a, b)
        else:
            luck = np.random.default_rng(sum(map(ord, premise + a.text + b.text))).normal(0, 2)
            first = second = 1 / (1 + math.exp(SKILL[b.origin] - SKILL[a.origin] + luck))
        wide = lambda x: x if isinstance(x, dict) else dict.fromkeys(KEYS, x)  # noqa: E731
        return Verdict(a.premise_id, a.id, b.id, wide(first), wide(second))

    def close(self):
        self.closed = True


@pytest.fixture(autouse=True)
def nobody_is_open():
    Writer.opened = Writer.asked = 0


def play(out, judge=None, names=tuple(SKILL), odd=None, premises=PREMISES, **settings):
    judge = judge or Judge()
    writers = {name: (lambda name=name: Writer(name, **(odd or {}).get(name, {}))) for name in names}
    return tournament(writers, premises, lambda: judge, out, sampling=Sampling(), **settings)


def by_name(figures):
    return {w["name"]: w for w in figures["writers"]}


def test_the_ranking_is_found_and_written(tmp_path):
    found = play(tmp_path)
    assert [w["name"] for w in found["writers"]] == ["strong", "middling", "weak"]
    assert [w["rank"] for w in found["writers"]] == [1, 2, 3]
    value, low, high = found["writers"][0]["strength"]
    assert 1000 < low < value < high
    assert sum(w["best"] for w in found["writers"]) == pytest.approx(1, abs=1e-3)
    assert json.loads((tmp_path / "tournament.json").read_text()) == json.loads(json.dumps(found))
    assert all((tmp_path / name).read_text().startswith("<svg") for name in ("tournament.svg", "wins.svg"))
    shown = table(found)
    assert all(text in shown for text in ("strong", "no verdict", *KEYS, *found["lines"]))


def test_the_order_in_which_writers_are_given_changes_nothing(tmp_path):
    one, two = (play(tmp_path / str(i), names=tuple(SKILL)[::step]) for i, step in enumerate((1, -1)))
    assert one == two


def test_a_tournament_that_was_killed_goes_on_with_the_same_next_match(tmp_path):
    whole = Judge()
    expected = play(tmp_path / "whole", whole, per_premise=2, threshold=0.3)
    parts = []
    for alive in (0, 1, 7):
        parts.append(Judge(alive))
        with pytest.raises(EngineDown):
            play(tmp_path / "torn", parts[-1], per_premise=2, threshold=0.3)
    with (tmp_path / "torn" / "verdicts.jsonl").open("a") as file:
        file.write('{"premise_id": "p1", "a": "p1-')  # the process died here
    parts.append(Judge())
    assert play(tmp_path / "torn", parts[-1], per_premise=2, threshold=0.3) == expected
    assert [met for part in parts for met in part.met] == whole.met
    assert all(part.closed for part in parts)
    assert len(set(whole.met)) == len(whole.met)


def test_texts_are_written_once_and_in_the_same_calls(tmp_path):
    premises = [Premise(f"p{i}", f"A lamp, number {i}.") for i in range(30)]
    with pytest.raises(EngineDown):
        play(tmp_path, odd={"middling": {"down_on": [25]}}, premises=premises, budget=3)
    assert len(read_jsonl(tmp_path / "plots.jsonl")) == 30 + 24
    Writer.asked = 0
    play(tmp_path, premises=premises, budget=3)
    assert Writer.asked == 1 + 3
    Writer.asked = 0
    play(tmp_path, premises=premises, budget=3)
    assert Writer.asked == 0


def test_a_larger_budget_goes_on_where_the_smaller_stopped(tmp_path):
    first, second = Judge(), Judge()
    assert play(tmp_path / "a", first, budget=5)["end"] == "budget"
    play(tmp_path / "a", second, budget=14)
    both = Judge()
    play(tmp_path / "b", both, budget=14)
    assert first.met + second.met == both.met
    assert (len(first.met), len(both.met)) == (5, 14)


def test_a_failing_writer_and_an_empty_answer_are_recorded_and_not_judged(tmp_path):
    odd = {"weak": {"fails_on": [3, 4]}, "strong": {"empty_on": [5]}}
    judge = Judge(answer=lambda a, b: (0.9, 0.1))
    found = play(tmp_path, judge, odd=odd)
    assert by_name(found)["weak"]["no_text"] == {"the premise is too long": 2}
    assert by_name(found)["strong"]["no_text"] == {"an empty answer": 1}
    assert (by_name(found)["weak"]["texts"], by_name(found)["middling"]["texts"]) == (10, 12)
    assert found["matches"] == len(judge.met) == 3 * 12 - 2 * 2 - 2
    assert "weak gave no text 2 times: the premise is too long." in found["lines"]


def test_writers_that_write_nothing_at_all_leave_nothing_to_compare(tmp_path):
    with pytest.raises(UserError, match=r"weak wrote no text \(the premise is too long\)"):
        play(tmp_path, names=("weak", "strong"), odd={"weak": {"fails_on": range(12)}})


def test_verdicts_below_the_threshold_count_for_nobody(tmp_path):
    unsure = Judge(answer=lambda a, b: (0.6, 0.6) if "weak" in (a.origin, b.origin) else (0.9, 0.9))
    found = play(tmp_path, unsure, threshold=1.0)
    weak = by_name(found)["weak"]
    assert (weak["rank"], weak["strength"], weak["won"], weak["lost"]) == (None, [None] * 3, 0, 0)
    assert weak["no_verdict"] > 0
    assert found["why_none"] == {"the judge is not sure enough": weak["no_verdict"]}
    assert found["writers"][-1] == weak
    assert "Nothing is known of weak: no verdict." in found["lines"]
    assert "weak" in table(found)


def test_a_judge_that_says_nothing_ranks_nobody(tmp_path):
    found = play(tmp_path, Judge(answer=lambda a, b: (0.6, 0.6)), threshold=9.0)
    assert (found["verdicts"], found["without_verdict"], found["ties_by_order"]) == (0, 1.0, None)
    assert all(w["rank"] is None for w in found["writers"])
    assert table(found)


def test_names_are_shown_as_they_are_given(tmp_path):
    SKILL.update({"a $x$ & <b>": 1.0})
    try:
        play(tmp_path, names=("weak", "a $x$ & <b>"), budget=6)
    finally:
        del SKILL["a $x$ & <b>"]
    for name in ("tournament.svg", "wins.svg"):
        assert "a $x$ &amp; &lt;b&gt;" in (tmp_path / name).read_text()


def test_two_that_are_not_neighbours_are_said_to_be_settled_when_those_between_are_not():
    pair = {"won": 1, "lost": 1, "tied": 1, "no_verdict": 0, "probability": 0.8}
    figures = {
        "writers": [{"name": name, "rank": rank, "no_text": {}} for rank, name in enumerate("ABC", 1)],
        "pairs": [{"ahead": a, "behind": b, "settled": a + b == "AC", **pair} for a, b in ("AB", "AC", "BC")],
        "verdicts": 9,
        "matches": 9,
        "premises": 3,
        "end": "played",
        "why_none": {},
        "ties_by_order": 0.3,
        "longer_wins": [0.6, 0.4, 0.8],
    }
    assert lines(figures) == [
        "A and B cannot be told apart with 9 verdicts (3 between the two; A is the better one with probability 0.80).",
        "A is ahead of C: settled at 95 %.",
        "B and C cannot be told apart with 9 verdicts (3 between the two; B is the better one with probability 0.80).",
        "9 matches on 3 premises, every match played.",
        "Baseline, length alone: the longer text won 60 % of the decided matches (95 % interval 40 to 80 %).",
    ]


def test_dimensions_are_counted_by_themselves(tmp_path):
    def answer(a, b):
        tone = 0.9 if a.origin == "strong" else 0.1
        return ({**dict.fromkeys(KEYS, 0.9), "tone": tone},) * 2

    found = play(tmp_path, Judge(answer=answer), names=("strong", "weak"), budget=8)
    strong = by_name(found)["strong"]
    assert (strong["won"], strong["dimensions"]["tone"]["won"]) == (8, 8)
    assert by_name(found)["weak"]["dimensions"]["pacing"] == {"won": 0, "lost": 8, "tied": 0, "no_verdict": 0}

    def against(a, b):
        return ({**dict.fromkeys(KEYS, 0.9), "tone": 0.1},) * 2

    found = play(tmp_path / "x", Judge(answer=against), names=("strong", "weak"), budget=8)
    assert (by_name(found)["strong"]["won"], by_name(found)["strong"]["dimensions"]["tone"]["lost"]) == (8, 8)


def test_a_judge_that_goes_by_the_order_ties_everything_and_nothing_is_settled(tmp_path):
    found = play(tmp_path, Judge(answer=lambda a, b: (0.9, 0.1)))
    assert (found["ties_by_order"], found["end"], found["longer_wins"]) == (1.0, "played", None)
    assert not any(p["settled"] for p in found["pairs"])
    assert sum("cannot be told apart with 36 verdicts (12 between the two" in line for line in found["lines"]) == 2
    assert any("order of the two texts decided" in line for line in found["lines"])


def test_a_settled_order_stops_the_tournament_and_is_said(tmp_path):
    premises = [Premise(f"p{i}", f"A lamp, number {i}.") for i in range(60)]
    sure = Judge(answer=lambda a, b: (0.9, 0.9) if SKILL[a.origin] > SKILL[b.origin] else (0.1, 0.1))
    found = play(tmp_path, sure, premises=premises)
    assert found["end"] == "settled"
    assert found["matches"] < 60
    assert found["lines"][:2] == [
        "strong is ahead of middling: settled at 95 %.",
        "middling is ahead of weak: settled at 95 %.",
    ]


def test_the_length_baseline_says_how_often_the_longer_text_won(tmp_path):
    longer = Judge(answer=lambda a, b: (0.9, 0.9) if len(a.text) > len(b.text) else (0.1, 0.1))
    found = play(tmp_path, longer)
    assert found["longer_wins"][0] == 1.0
    assert by_name(found)["middling"]["characters"] == len("middling wrote 0 of them.")


def test_the_same_text_twice_is_a_tie_that_nobody_is_asked_about(tmp_path):
    writers = {name: lambda: Writer("same") for name in ("one", "two")}
    judge = Judge()
    found = tournament(writers, PREMISES, lambda: judge, tmp_path, sampling=Sampling())
    assert (judge.met, by_name(found)["one"]["tied"]) == ([], 12)


# ---- what cannot be


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"names": ("weak",)}, "at least two"),
        ({"names": ("weak", " Weak")}, "names must differ"),
        ({"names": ("weak", "")}, "names must differ"),
        ({"premises": []}, "no premises"),
        ({"premises": [PREMISES[0], PREMISES[0]]}, "'p0' occurs twice"),
        ({"per_premise": 0}, "per_premise is 0"),
        ({"budget": 0}, "budget is 0"),
        ({"threshold": None}, "earned no trust"),
    ],
)
def test_bad_input_is_refused_before_anything_is_opened(tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        play(tmp_path / "out", **changed)
    assert (Writer.asked, (tmp_path / "out").exists()) == (0, False)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"names": ("weak", "strong")}, "writers"),
        ({"premises": PREMISES[1:]}, "premises"),
        ({"per_premise": 2}, "per_premise"),
        ({"seed": 1}, "seed"),
        ({"about": {"weak": "sha256:1"}}, "about"),
        ({"judge": Judge(name="another")}, "judge"),
    ],
)
def test_another_tournament_is_not_mixed_into_the_folder(tmp_path, changed, what):
    play(tmp_path, budget=4)
    with pytest.raises(UserError, match=f"other {what}") as error:
        play(tmp_path, **{"budget": 4, **changed})
    assert "--out" in error.value.hint
