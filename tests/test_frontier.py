"""Quality against diversity: arithmetic worked out by hand, seeds pooled, texts and ratings kept, cautions said."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from toolkit import cli
from toolkit.engines.base import Sampling
from toolkit.errors import EngineDown, UserError
from toolkit.evaluate import frontier as fr
from toolkit.evaluate.frontier import Draws, Rater, Setting, at_quality, compare, frontier, not_dominated
from toolkit.evaluate.frontier_text import lines, table
from toolkit.records import Premise, read_jsonl, write_jsonl

NAN = float("nan")

# ---- arithmetic


def test_a_point_is_on_the_frontier_when_no_other_beats_it():
    quality = np.array([1.0, 2.0, 3.0, 2.0, 3.0, NAN])
    diversity = np.array([3.0, 2.0, 1.0, 1.5, 1.0, 9.0])
    # the fourth has the second's quality and less diversity; equal points do not beat each other; NaN is nowhere
    assert not_dominated(quality, diversity).tolist() == [True, True, True, False, True, False]


def test_between_two_temperatures_the_curve_is_a_straight_line():
    q, d = np.array([6.0, 5.0, 3.0]), np.array([0.2, 0.3, 0.7])
    found = at_quality(q, d, np.array([6.0, 5.5, 4.0, 3.0, 2.9, 6.1]))
    assert found == pytest.approx([0.2, 0.25, 0.5, 0.7, NAN, NAN], nan_ok=True)


def test_a_curve_that_turns_back_counts_with_its_higher_branch():
    assert at_quality(np.array([5.0, 6.0, 4.0]), np.array([0.2, 0.3, 0.7]), np.array(5.5)) == pytest.approx(0.4)


def test_temperatures_of_equal_quality_count_with_the_more_diverse_one():
    assert at_quality(np.array([5.0, 5.0]), np.array([0.2, 0.3]), np.array(5.0)) == pytest.approx(0.3)


def test_one_temperature_draws_no_curve():
    assert np.isnan(at_quality(np.array([5.0]), np.array([0.2]), np.array(5.0)))


def width(values, seed=0):
    draws = Draws({"a": len(values)}, values.shape[1], seed)
    low, high = fr.triple(draws.mean(draws.profile("a", values)))[1:]
    return high - low


def test_with_one_seed_the_interval_is_the_bootstrap_over_premises():
    values = np.random.default_rng(0).normal(5, 1, (1, 40))
    assert width(values) == pytest.approx(2 * 1.96 * values.std() / np.sqrt(40), rel=0.1)


def test_seeds_that_differ_widen_the_interval_although_premises_agree():
    seeds = np.random.default_rng(0).normal(5, 1, (8, 1))
    assert width(seeds + np.zeros((8, 40))) == pytest.approx(2 * 1.96 * seeds.std() / np.sqrt(8), rel=0.15)


def test_intervals_of_two_crossed_effects_cover_the_truth():
    covered = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        values = rng.normal(0, 1, (6, 1)) + rng.normal(0, 1, (1, 30)) + rng.normal(0, 1, (6, 30))
        draws = Draws({"a": 6}, 30, seed, draws=400)
        _, low, high = fr.triple(draws.mean(draws.profile("a", values)))
        covered.append(low <= 0 <= high)
    assert 0.82 <= np.mean(covered) <= 1  # six seeds: a little under 95 %, as every bootstrap of few


def test_a_premise_without_a_value_is_left_out_and_not_counted_as_nought():
    draws = Draws({"a": 2}, 3)
    values = np.array([[1.0, NAN, 3.0], [3.0, NAN, NAN]])
    profile = draws.profile("a", values)
    assert profile[0] == pytest.approx([2, NAN, 3], nan_ok=True)
    assert draws.mean(profile)[0] == pytest.approx(2.5)


def points(rows, raters=("reward",)):
    """{(name, temperature): {measure: (S, P)}} → compare's figures; what is not given is 0."""
    some = np.asarray(next(iter(next(iter(rows.values())).values())), float)
    values = {}
    for (name, t), given in rows.items():
        shape = np.asarray(next(iter(given.values())), float).shape
        empty = {m: np.zeros(shape) for m in (*raters, *fr.DIVERSITY, "words", "no_text")}
        values[name, Setting(t, 0.05)] = empty | {m: np.asarray(v, float) for m, v in given.items()}
    assert some.ndim == 2
    return compare(values, list(raters))


def level(quality, semantic, premises=8, wobble=0.0, seed=0):
    """One seed; the premises' own level, alike for all writers, beside what is asked."""
    own = np.random.default_rng(1).normal(0, 1, (1, premises))
    noise = np.random.default_rng(seed).normal(0, wobble, (1, premises)) if wobble else 0
    return {"reward": quality + own + noise, "semantic": semantic + own / 10 + noise / 10}


def test_differences_are_paired_by_premise():
    found = points({("a", 0.8): level(5, 0.3), ("b", 0.8): level(5.5, 0.4, wobble=0.1)})
    _, low, high = found["points"][1]["figures"]["reward"]
    value, gap_low, gap_high = found["against"][0]["figures"]["reward"]
    assert value == pytest.approx(0.5, abs=0.1)
    assert high - low > 5 * (gap_high - gap_low)


def test_a_difference_is_of_the_premises_that_both_have():
    some, other = np.full((1, 8), 0.3), np.full((1, 8), 0.5)
    some[0, 0], other[0, 1] = 9, 9
    some[0, 1] = NAN
    other[0, 0] = NAN
    found = points({("a", 0.8): {"semantic": some}, ("b", 0.8): {"semantic": other}})
    assert found["against"][0]["figures"]["semantic"][0] == pytest.approx(0.2)


def test_seeds_of_one_name_make_one_point():
    found = points({("a", 0.8): {"semantic": [[0.3] * 6]}, ("b", 0.8): {"semantic": [[0.4] * 6, [0.6] * 6]}})
    b = found["points"][1]
    assert (b["seeds"], b["figures"]["semantic"]) == (2, [0.5, 0.4, 0.6])
    assert found["over"][0]["figures"]["semantic"] == [pytest.approx(0.2), pytest.approx(0.1), pytest.approx(0.3)]


def test_above_the_curve_is_the_vertical_distance_at_equal_quality():
    rows = {("a", 0.6): level(6, 0.2), ("a", 1.0): level(4, 0.4), ("b", 0.6): level(5, 0.35), ("b", 1.0): level(3, 0.9)}
    found = {row["temperature"]: row["figures"]["reward/semantic"] for row in points(rows)["above"]}
    assert found[0.6][0] == pytest.approx(0.05)  # at quality 5 the curve is at 0.3
    assert found[1.0] is None


def test_above_the_curve_has_an_interval_that_its_noise_widens():
    rows = lambda wobble: {  # noqa: E731
        ("a", 0.6): level(6, 0.2, wobble=wobble), ("a", 1.0): level(4, 0.4, wobble=wobble, seed=1),
        ("b", 0.8): level(5, 0.35, wobble=wobble, seed=2)}  # fmt: skip
    spans = []
    for wobble in (0.02, 0.2):
        value, low, high = next(iter(points(rows(wobble) | {("b", 0.6): level(5, 0.35, wobble=wobble, seed=2)}, )["above"]))["figures"]["reward/semantic"]  # fmt: skip
        assert low < value < high
        spans.append(high - low)
    assert spans[1] > 3 * spans[0]


def test_fewer_than_six_premises_have_no_interval():
    found = points({("a", 0.8): level(5, 0.3, premises=5), ("b", 0.8): level(6, 0.3, premises=5, wobble=1)})
    assert all(row["figures"]["reward"][1:] == [None, None] for row in (*found["points"], *found["against"]))


def test_the_frontier_comes_with_the_share_of_draws_that_agree():
    other = level(5, 0.3)
    other["reward"] = other["reward"] + [[0.2, -0.2, 0.2, -0.2, 0.2, -0.2, 0.3, -0.2]]  # as diverse; better, but barely
    rows = {("a", 0.8): level(5, 0.3), ("b", 0.8): other, ("c", 0.8): level(3, 0.1)}
    on = {p["writer"]: p["frontier"]["reward/semantic"] for p in points(rows)["points"]}
    assert on["c"] == [False, 0]
    assert (on["a"][0], on["b"][0]) == (False, True)
    assert 0.3 < on["a"][1] < on["b"][1] < 0.7


# ---- writing, rating, and what is kept

WORDS = "lamp keeper storm glass letter harbour winter door bread ladder fox engine".split()
PREMISES = [Premise(f"p{i}", f"A lamp, number {i}.") for i in range(6)]
GRID = [Setting(0.6, 0.05), Setting(1.2, 0.05)]


class Writer:
    """Writes forty words; hotter, from more different ones. Its seed and name decide them, whatever was asked before."""

    opened, calls = 0, []

    def __init__(self, name, bold=0, fails_on=(), one_on=(), down_after=10**9):
        self.name, self.bold, self.fails_on, self.one_on, self.left = name, bold, fails_on, one_on, down_after
        Writer.opened += 1
        assert Writer.opened == 1, "two writers are held in memory"

    def generate(self, prompts, n, sampling):
        asked = [messages[0]["content"] for messages in prompts]
        Writer.calls.append((self.name, sampling.temperature, len(prompts), n))
        if self.left == 0:
            raise EngineDown("the writer is gone")
        self.left -= 1
        on = lambda text, numbers: any(f"number {i}." in text for i in numbers)  # noqa: E731
        if any(on(text, self.fails_on) for text in asked):
            raise UserError("the premise is too long")
        return [
            ["" if on(text, self.one_on) and k else self.text(text, k, sampling) for k in range(n)] for text in asked
        ]

    def text(self, text, k, sampling):
        number = text.partition("number ")[2][:1]
        rng = np.random.default_rng(
            [ord(number), k, sampling.seed, int(10 * sampling.temperature), *map(ord, self.name)]
        )
        some = WORDS[: 4 + self.bold + int(4 * sampling.temperature)]
        return "The " + " ".join(rng.choice(some, 39)) + "."

    def close(self):
        Writer.opened -= 1


def rating(text):
    return 10 - len(set(text.split())) / 2 - len(text) / 1000


class Ratings:
    """Rates by how many different words a text has, and how long they are: fewer are better. `asked`: the texts."""

    def __init__(self, identity="fake", caution="", none_for=""):
        self.asked, self.opened, self.none_for = [], 0, none_for
        self.rater = Rater(identity, self.open, caution)

    @contextmanager
    def open(self):
        self.opened += 1
        assert Writer.opened == 0, "a writer is held beside the rater"
        yield self.rate

    def rate(self, texts, premises):
        assert all(p.startswith("A lamp") for p in premises)
        self.asked += texts
        return [NAN if self.none_for and self.none_for in t else rating(t) for t in texts]


@pytest.fixture(autouse=True)
def nobody_is_open():
    Writer.opened, Writer.calls = 0, []


def chart(out, names=("a", "b"), odd=None, ratings=None, premises=PREMISES, **settings):
    """a is timid, b bold; a name with a number behind it is a seed of the name."""
    odd = odd or {}
    writers = {}
    for name in names:
        bold = 3 * (name[0] == "b")
        open_writer = lambda name=name, bold=bold: Writer(name, bold, **odd.get(name, {}))  # noqa: E731
        writers.setdefault(name.rstrip("0123456789"), {})[name] = open_writer
    raters = {"reward": (ratings or Ratings()).rater}
    settings = {"grid": GRID, "samples": 4, "sampling": Sampling(max_tokens=90), "semantic": "stylometry"} | settings
    return frontier(writers, premises, settings.pop("raters", raters), out, **settings)


def point(figures, name, temperature=0.6):
    return next(p for p in figures["points"] if (p["writer"], p["temperature"]) == (name, temperature))


def test_a_writer_with_temperatures_of_its_own_is_compared_where_both_write(tmp_path):
    found = chart(tmp_path, own={"b": GRID[:1]})
    assert [(p["writer"], p["temperature"]) for p in found["points"]] == [("a", 0.6), ("a", 1.2), ("b", 0.6)]
    assert found["over"][0]["settings"] == 1
    assert {r["origin"] for r in read_jsonl(tmp_path / "plots.jsonl") if r["sampling"]["temperature"] == 1.2} == {"a"}


def test_a_writer_at_temperatures_that_the_first_has_not_is_still_held_against_its_curve(tmp_path):
    found = chart(tmp_path, own={"b": [Setting(0.9, 0.05)]})
    assert found["over"][0]["settings"] == 0
    assert [row["temperature"] for row in found["above"]] == [0.9]


def test_the_bold_writer_is_more_diverse_and_the_chart_is_written(tmp_path):
    found = chart(tmp_path)
    assert [(p["writer"], p["temperature"]) for p in found["points"]] == [
        ("a", 0.6),
        ("a", 1.2),
        ("b", 0.6),
        ("b", 1.2),
    ]
    over = found["over"][0]["figures"]
    assert over["distinct_2"][1] > 0
    assert over["self_bleu"][2] < 0
    assert over["reward"][2] < 0
    assert json.loads((tmp_path / "frontier.json").read_text()) == json.loads(json.dumps(found))
    assert (tmp_path / "frontier.svg").read_text().startswith("<svg")
    assert "at a loss of quality by reward (" in table(found)


def test_quality_is_the_mean_rating_and_words_are_counted(tmp_path):
    figures = chart(tmp_path)
    rows = [
        r for r in read_jsonl(tmp_path / "plots.jsonl") if (r["origin"], r["sampling"]["temperature"]) == ("a", 0.6)
    ]
    expected = np.mean([rating(r["text"]) for r in rows])
    assert point(figures, "a")["figures"]["reward"][0] == pytest.approx(expected, abs=1e-3)
    assert point(figures, "a")["figures"]["words"] == [40, None, None]


def test_several_premises_are_written_in_one_call_of_at_most_sixteen_texts(tmp_path):
    chart(tmp_path, names=("a",))
    assert Writer.calls == [("a", t, n, 4) for t in (0.6, 1.2) for n in (4, 2)]


def test_more_than_sixteen_texts_are_asked_for_in_parts(tmp_path):
    chart(tmp_path, names=("a",), premises=PREMISES[:1], samples=20, grid=GRID[:1])
    assert [n for *_, n in Writer.calls] == [16, 4]
    assert len({r["text"] for r in read_jsonl(tmp_path / "plots.jsonl")}) == 20


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_killed_run_goes_on_with_equal_figures(tmp_path, after):
    whole = chart(tmp_path / "whole")
    with pytest.raises(EngineDown):
        chart(tmp_path / "torn", odd={"b": {"down_after": after}})
    with (tmp_path / "torn" / "plots.jsonl").open("a") as file:
        file.write('{"id": "p1-0-0.6-')  # the process died here
    assert chart(tmp_path / "torn") == whole


def test_nothing_is_written_or_rated_twice(tmp_path):
    chart(tmp_path)
    Writer.calls, again = [], Ratings()
    chart(tmp_path, ratings=again)
    assert (Writer.calls, again.asked, again.opened) == ([], [], 0)


def test_a_temperature_or_a_writer_more_reuses_what_stands(tmp_path):
    first = chart(tmp_path, names=("a",), grid=GRID[:1])
    Writer.calls, ratings = [], Ratings()
    found = chart(tmp_path, ratings=ratings)
    assert ("a", 0.6) not in {(name, t) for name, t, *_ in Writer.calls}
    assert len(ratings.asked) == 3 * 24
    assert point(found, "a")["figures"]["reward"] == point(first, "a")["figures"]["reward"]


def test_a_call_with_fewer_settings_shows_only_those(tmp_path):
    chart(tmp_path)
    assert len(chart(tmp_path, names=("a",), grid=GRID[:1])["points"]) == 1


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"samples": 5}, "samples"),
        ({"premises": PREMISES[1:]}, "premises"),
        ({"sampling": Sampling(max_tokens=91)}, "max_tokens"),
        ({"sampling": Sampling(max_tokens=90, seed=1)}, "seed"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(tmp_path, changed, what):
    chart(tmp_path)
    with pytest.raises(UserError, match=f"holds a frontier with other {what}") as error:
        chart(tmp_path, **changed)
    assert "--out" in error.value.hint


def test_another_rater_does_not_take_the_firsts_ratings(tmp_path):
    chart(tmp_path)
    other = Ratings("another")
    chart(tmp_path, ratings=other)
    assert len(other.asked) == 4 * 24


def test_seeds_of_one_name_are_pooled_in_one_point(tmp_path):
    alone = [point(chart(tmp_path / n, names=(n,)), "b")["figures"]["reward"][0] for n in ("b1", "b2")]
    both = chart(tmp_path / "both", names=("a1", "b1", "b2"))
    assert [p["seeds"] for p in both["points"]] == [1, 1, 2, 2]
    assert point(both, "b")["figures"]["reward"][0] == pytest.approx(np.mean(alone), abs=1e-3)


def test_a_writer_that_writes_nothing_has_no_figures_and_the_reason_is_said(tmp_path):
    found = chart(tmp_path, odd={"b": {"fails_on": range(6)}})
    b = point(found, "b")
    assert (b["figures"]["reward"], b["figures"]["semantic"], b["figures"]["no_text"][0]) == ([None] * 3, [None] * 3, 1)
    assert not any(on for on, _ in b["frontier"].values())
    assert "b gave no text 48 times: the premise is too long." in found["lines"]
    assert "b: nothing to hold against a, no premise has enough texts of both." in found["lines"]
    assert table(found)


def test_when_nobody_writes_anything_there_is_nothing_to_compare(tmp_path):
    with pytest.raises(UserError, match=r"no writer wrote any text \(the premise is too long\)"):
        chart(tmp_path, names=("a",), odd={"a": {"fails_on": range(6)}})


def test_a_premise_with_one_text_counts_for_quality_and_not_for_diversity(tmp_path):
    found = chart(tmp_path, odd={"b": {"one_on": [2]}})
    whole = chart(tmp_path / "without", premises=[p for p in PREMISES if p.id != "p2"])
    b = point(found, "b")["figures"]
    assert b["no_text"][0] == pytest.approx(3 / 4 / 6, abs=1e-3)
    assert b["style"][0] == pytest.approx(point(whole, "b")["figures"]["style"][0], abs=1e-3)
    assert b["reward"][0] != point(whole, "b")["figures"]["reward"][0]


def test_texts_too_short_for_the_measures_of_equal_length_are_said(tmp_path, monkeypatch):
    whole = Writer.text
    monkeypatch.setattr(Writer, "text", lambda *asked: " ".join(whole(*asked).split()[:12]) + ".")
    found = chart(tmp_path, names=("a",))
    assert point(found, "a")["figures"]["style"] == [None] * 3
    assert "Too few texts of a have 30 words: no figure where length counts." in found["lines"]


def test_texts_without_a_rating_are_counted_and_said(tmp_path):
    found = chart(tmp_path, ratings=Ratings(none_for="storm"))
    n = sum("storm" in r["text"] for r in read_jsonl(tmp_path / "plots.jsonl"))
    assert found["unrated"] == {"reward": n}
    assert any(line.startswith(f"{n} of 96 texts have no rating by reward") and "flatters" in line for line in found["lines"])  # fmt: skip


def test_without_a_rater_diversity_stands_alone(tmp_path):
    found = chart(tmp_path, raters={})
    assert "reward" not in point(found, "a")["figures"]
    assert found["lines"][0].startswith("b: semantic diversity ")
    assert "temperature" in (tmp_path / "frontier.svg").read_text()


def test_a_rater_with_a_caution_is_starred_in_table_and_picture(tmp_path):
    found = chart(tmp_path, ratings=Ratings(caution="reward: it is not to be trusted"))
    assert "reward*" in table(found).splitlines()[0]
    assert table(found).count("* reward: it is not to be trusted.") == 1
    assert "quality by reward* (" in found["lines"][0]
    svg = (tmp_path / "frontier.svg").read_text()
    assert "reward*" in svg
    assert "not to be trusted" in svg


def test_twelve_names_with_odd_signs_have_their_own_colours_and_marks(tmp_path):
    found = chart(tmp_path, names=("a",))
    names = ["a $x$ & <b>", *(f"writer {i}" for i in range(11))]
    found["writers"] = {name: ["w"] for name in names}
    found["points"] = [{**p, "writer": name} for name in names for p in found["points"]]
    svg = fr.charts.frontier(found)
    assert "a $x$ &amp; &lt;b&gt;" in svg
    assert all(colour in svg for colour in fr.charts.MANY)


# ---- sentences


def said(quality, semantic, words=(0.0, None, None), premises=30, above=None, settings=2, caution=""):
    """The sentences about ddpo against dpo."""
    flat = {"semantic": list(semantic), "style": [0.0, -0.1, 0.1], "reward": list(quality), "words": list(words)}
    figures = {
        "first": "dpo", "premises": premises, "words": 40, "count": 4, "cautions": {"reward": caution}, "no_text": {},
        "unrated": {"reward": 0}, "settings": {"samples": 8}, "writers": {"dpo": ["1", "2"], "ddpo": ["3", "4"]},
        "points": [{"writer": "dpo", "temperature": t, "min_p": 0.05, "seeds": 2, "frontier": {"reward/semantic": [t < 1, 1.0]}, "figures": flat} for t in (0.6, 1.0)],
        "over": [{"writer": "ddpo", "settings": settings, "figures": flat}],
        "above": [{"writer": "ddpo", "temperature": 0.6, "min_p": 0.05, "figures": {"reward/semantic": above}}],
    }  # fmt: skip
    return lines(figures)


def test_diversity_without_measurable_loss_is_said_with_both_intervals():
    found = said((-0.02, -0.1, 0.06), (0.03, 0.01, 0.05))
    assert found[0] == (
        "ddpo: semantic diversity +0.030 (+0.010 to +0.050), style diversity +0.000 (-0.100 to +0.100) (not settled) "
        "against dpo at no measurable loss of quality by reward (-0.02, -0.10 to +0.06), mean of 2 sampling settings."
    )


@pytest.mark.parametrize(
    ("quality", "words", "part"),
    [
        ((-0.2, -0.3, -0.1), (0.0, -1.0, 1.0), "at a loss of quality by reward (-0.20"),
        ((0.2, 0.1, 0.3), (0.0, -1.0, 1.0), "with a gain of quality by reward (+0.20"),
        ((0.2, -0.1, 0.3), (12.2, 8.0, 15.0), "its texts are 12 words longer, which may be part of why"),
        ((0.2, -0.1, 0.3), (-3.0, -5.0, -1.0), "3 words shorter"),
    ],
)
def test_loss_gain_and_length_are_named(quality, words, part):
    assert part in said(quality, (0.03, 0.01, 0.05), words)[0]


def test_outside_the_curves_range_nothing_is_claimed():
    assert (
        "none of its points lies within the quality that dpo's temperature curve covers"
        in said((0, -1, 1), (0, -1, 1))[1]
    )
    assert "curve: semantic diversity +0.020 (+0.010 to +0.030) at t 0.6." in said((0, -1, 1), (0, -1, 1), above=[0.02, 0.01, 0.03])[1]  # fmt: skip


def test_one_seed_and_few_seeds_are_said():
    assert "Few seeds (dpo 2, ddpo 2): the part of the intervals that is theirs is too narrow." in said((0, -1, 1), (0, -1, 1))  # fmt: skip


def test_few_premises_are_said_to_be_few():
    assert any(line.startswith("2 premises: too few for intervals") for line in said((0, None, None), (0, None, None), premises=2))  # fmt: skip
    assert not any("premises:" in line for line in said((0, -1, 1), (0, -1, 1)))


# ---- the command


def run(capsys, *argv):
    code = cli.main(["frontier", *map(str, argv)])
    return code, capsys.readouterr()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere/model.gguf", "--diversity-only"], "no GGUF file at nowhere/model.gguf"),
        (["embedded", "dpo=runs/nowhere/deep", "--diversity-only"], "no run at runs/nowhere/deep"),
        (["embeded", "--diversity-only"], "no model at embeded"),
        (["embedded+nowhere.gguf", "--diversity-only"], "no GGUF file at nowhere.gguf"),
        (["a=embedded", "a=embedded", "--diversity-only"], "a=embedded and a=embedded are the same weights"),
        (["a=embedded", "b=embedded", "--diversity-only"], "b=embedded and a=embedded are the same weights"),
        (["=embedded", "--diversity-only"], "no writer in '=embedded'"),
        (["embedded"], "says how good a text is"),
        (["embedded", "--reward", "nowhere"], "no reward model in nowhere"),
        (["embedded", "--judge", "nowhere/judge.gguf"], "no GGUF file at nowhere/judge.gguf"),
        (["embedded", "--diversity-only", "--temperatures", "0.6;0.8"], "not numbers"),
        (["embedded", "--diversity-only", "--temperatures", "0,0.8"], "the same text every time"),
        (["embedded", "--diversity-only", "--min-p", "2"], "--min-p 2 is out of range"),
        (["embedded", "--diversity-only", "--samples", "1"], "--samples 1 is out of range"),
        (["embedded", "--diversity-only", "--most", "0"], "--most 0 is out of range"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, capsys, argv, message):
    code, shown = run(capsys, *argv, "--out", tmp_path / "out")
    assert code == 2
    assert message in shown.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("threshold", "rated_right", "part"),
    [
        (None, [0.9, 0.8, 1.0], "no verdict of it is to be trusted"),
        (0.5, [0.5, 0.4, 0.6], "no lower than a coin would"),
        ("no passport", [], "has no passport"),
        (0.5, [0.9, 0.8, 1.0], ""),
    ],
)
def test_a_judge_is_as_trusted_as_its_passport_says(monkeypatch, threshold, rated_right, part):
    from toolkit import cli_diversity, judges
    from toolkit.evaluate.passport import Passport

    confidence = {"known pairs": {"threshold": threshold, "accuracy": [0.8], "coverage": 0.5}}
    share, slope = [0.1, 0.0, 0.2], [0, -1, 1]
    passport = Passport("fake", "1", "2026-01-01", "tags", share, share, None, rated_right, {}, slope, None, None, None, {}, slope, {}, {}, confidence)  # fmt: skip
    judge = SimpleNamespace(name="fake", family="", close=lambda: None)
    known = None if threshold == "no passport" else passport
    opened = SimpleNamespace(judge=judge, passport=known, identity="1")
    monkeypatch.setattr(judges, "open_judge", lambda *_, **__: opened)
    rater, _ = cli_diversity._judge(SimpleNamespace(judge="fake", on="auto", gpu_experts="auto"))
    assert part in rater.caution
    assert bool(rater.caution) == bool(part)


def test_a_writer_that_learnt_from_the_reward_model_is_said(tmp_path):
    from toolkit import cli_diversity

    for run in ("mine", "other"):
        (tmp_path / run / "reward").mkdir(parents=True)
        (tmp_path / run / "reward" / "reward.json").write_text(f'{{"of": "{run}"}}')
    caution = lambda *writers: cli_diversity._reward(SimpleNamespace(reward=tmp_path / "mine", writers=writers)).caution  # noqa: E731
    assert caution("embedded", f"dpo={tmp_path / 'mine'}").startswith("reward: dpo learnt from this very reward model")
    assert caution(f"embedded+{tmp_path / 'mine' / 'export' / 'adapter.gguf'}")
    assert caution("embedded", f"dpo={tmp_path / 'other'}") == ""


def test_a_run_that_took_the_reward_model_from_the_run_beside_learnt_from_it_too(tmp_path):
    import os

    from toolkit import cli_diversity

    for run in ("mine", "beside"):
        (tmp_path / run / "reward").mkdir(parents=True)
    (tmp_path / "mine" / "reward" / "reward.json").write_text("{}")
    os.link(tmp_path / "mine" / "reward" / "reward.json", tmp_path / "beside" / "reward" / "reward.json")
    args = SimpleNamespace(reward=tmp_path / "mine", writers=[f"ddpo={tmp_path / 'beside'}"])
    assert "ddpo learnt from this very reward model" in cli_diversity._reward(args).caution


def test_models_of_one_name_with_different_temperatures_are_refused(tmp_path):
    from toolkit import cli_diversity

    for name in ("a", "b"):
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF" + name.encode())
    args = SimpleNamespace(
        writers=[f"x={tmp_path / 'a.gguf'}@t0.6", f"x={tmp_path / 'b.gguf'}"], max_tokens=9, on="auto"
    )
    with pytest.raises(UserError, match="the models called x name different temperatures"):
        cli_diversity._writers(args, {}, {}, [0.05])


def test_an_adapter_is_put_on_its_model_and_makes_a_writer_of_its_own(tmp_path, monkeypatch):
    from toolkit import cli_diversity
    from toolkit.engines import load

    adapter = tmp_path / "a.gguf"
    adapter.write_bytes(b"GGUF a")
    opened = []
    monkeypatch.setattr(load, "load_engine", lambda spec, **how: opened.append((spec, how["lora"])) or SimpleNamespace(family=""))  # fmt: skip
    args = SimpleNamespace(
        writers=["x=embedded", f"x=embedded+{adapter}"], max_tokens=120, on="auto", gpu_experts="auto"
    )
    writers = cli_diversity._writers(args, {}, {}, [0.05])
    assert len(writers["x"]) == 2
    for open_writer in writers["x"].values():
        open_writer()
    assert opened == [("embedded", None), ("embedded", str(adapter))]


def test_a_writer_may_name_its_own_temperatures_and_be_asked_from_angles(monkeypatch):
    from toolkit import cli_diversity
    from toolkit.engines import load
    from toolkit.narrative.angles import Angled

    monkeypatch.setattr(load, "load_engine", lambda spec, **how: SimpleNamespace(name=spec, family=""))
    args = SimpleNamespace(
        writers=["embedded@t0.6,1.2", "wide=embedded@angles"], max_tokens=120, on="auto", gpu_experts="auto"
    )
    own = {}
    writers = cli_diversity._writers(args, {}, own, [0.05])
    assert own == {"embedded": [Setting(0.6, 0.05), Setting(1.2, 0.05)]}
    assert list(writers) == ["embedded", "wide"]
    assert isinstance(next(iter(writers["wide"].values()))(), Angled)


def test_the_shipped_premises_are_english_ones_of_the_test_side_and_as_many_as_asked():
    from toolkit import cli_diversity

    found = cli_diversity._premises(SimpleNamespace(premises=None, seed=0, most=5))
    assert len(found) == 5
    assert {(p.split, p.language) for p in found} == {("test", "en")}
    assert found == cli_diversity._premises(SimpleNamespace(premises=None, seed=0, most=9))[:5]


@pytest.mark.slow
def test_the_command_charts_a_real_model_and_goes_on(tiny_gguf, tmp_path, capsys):
    write_jsonl(tmp_path / "premises.jsonl", PREMISES[:2])
    argv = [f"a={tiny_gguf}", "--temperatures", "0.7,1.0", "--samples", 3, "--max-tokens", 24, "--diversity-only"]
    argv += ["--premises", tmp_path / "premises.jsonl", "--out", tmp_path / "out"]
    code, shown = run(capsys, *argv)
    assert code == 0
    assert "writer" in shown.out.splitlines()[0]
    assert (tmp_path / "out" / "frontier.svg").is_file()
    kept = (tmp_path / "out" / "plots.jsonl").read_bytes()
    code, shown = run(capsys, *argv, "--json", "--judge", tiny_gguf)
    figures = json.loads(shown.out)
    assert code == 0
    assert len(read_jsonl(tmp_path / "out" / "plots.jsonl")) == 12
    assert (tmp_path / "out" / "plots.jsonl").read_bytes() == kept
    assert [p["temperature"] for p in figures["points"]] == [0.7, 1.0]
