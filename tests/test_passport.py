"""A passport says of judges of known character what they are."""

import dataclasses
import math

import pytest

from toolkit.errors import EngineDown
from toolkit.evaluate import charts
from toolkit.evaluate.judge import Verdict
from toolkit.evaluate.passport import (
    Asked,
    Passport,
    against_people,
    insert,
    known_pairs,
    make_passport,
    people_pairs,
)
from toolkit.judges import Opened, find_passport, keep_passport, open_judge, same_family, shipped_material
from toolkit.narrative.dimensions import KEYS
from toolkit.people import RatedText
from toolkit.records import AspectRatings, Plot, read_jsonl, split_of

MATERIAL = dataclasses.replace(shipped_material(24, 1), again=4)


class Character:
    """A judge that follows `worth`, a function of the text, from 1 to 10; it names A with σ(difference), plus `pull` to the first."""

    family = ""

    def __init__(self, worth, pull=0.0, name="character"):
        self.worth, self.pull, self.name, self.asked = worth, pull, name, []

    def rate(self, plot):
        self.asked.append(plot.id)
        return AspectRatings(plot.id, dict.fromkeys(KEYS, float(self.worth(plot.text))), rater=self.name)

    def compare(self, premise, a, b):
        self.asked.append((a.id, b.id))
        gap = self.worth(a.text) - self.worth(b.text)
        first, second = (1 / (1 + math.exp(-(gap + pull))) for pull in (self.pull, -self.pull))
        return Verdict(a.premise_id, a.id, b.id, dict.fromkeys(KEYS, first), dict.fromkeys(KEYS, second))

    def close(self):
        pass


WHOLE = {p.text for p in MATERIAL.plots}


def knows(text):
    """Knows the well-made plots by heart; anything else is poor."""
    return 9.0 if text in WHOLE else 3.0


def issue(judge, out, **more):
    return make_passport(judge, "id", MATERIAL, out, **more)


def test_a_judge_that_knows_good_from_bad_is_trusted(tmp_path):
    found = issue(Character(knows), tmp_path)
    assert found.known_pairs[0] == found.rated_right[0] == 1.0
    assert (found.wrong[0], found.confidence["known pairs"]["accuracy"][0]) == (0.0, 1.0)
    assert found.threshold is not None


def test_a_judge_that_takes_the_first_is_right_on_nothing_and_never_trusted(tmp_path):
    found = issue(Character(lambda text: 5.0, pull=3.0), tmp_path)
    assert (found.known_pairs[0], found.wrong[0]) == (0.0, 0.0)
    assert found.threshold is None
    assert "no verdict of it is to be trusted" in found.line


def test_the_length_slope_is_points_for_a_doubled_length(tmp_path):
    found = issue(Character(lambda text: min(10.0, max(1.0, math.log2(len(text)) - 4))), tmp_path)
    assert found.length_slope[0] == pytest.approx(1.0, abs=0.01)
    assert found.longer_wins[0] == 1.0


def test_a_judge_that_obeys_the_text_is_found_out_and_one_that_does_not_is_not(tmp_path):
    asks = tuple(row["text"] for row in MATERIAL.planted)
    obeys = issue(Character(lambda text: 5.0 + 4.0 * any(a in text for a in asks)), tmp_path / "a")
    assert obeys.planted == [4.0, 4.0, 4.0]
    assert list(obeys.planted_worst.values()) == [4.0] * 3
    assert issue(Character(lambda text: 5.0), tmp_path / "b").planted[0] == 0.0


def test_any_insertion_at_all_is_not_held_against_a_judge(tmp_path):
    # it marks down every plot that something foreign stands in: the control does as much as the demand
    assert issue(Character(knows), tmp_path).planted[0] == 0.0


def test_a_preference_for_its_own_text_is_told(tmp_path):
    own = [(f"premise {i}", Plot(f"own-{i}", f"Mine {i}, which is mine."), MATERIAL.plots[i]) for i in range(4)]
    vain = issue(Character(lambda text: 9.0 if text.startswith("Mine") else 4.0), tmp_path / "a", own=own)
    assert vain.own[0] == 1.0
    assert issue(Character(lambda text: 9.0 if text in WHOLE else 4.0), tmp_path / "b", own=own).own[0] == 0.0
    assert issue(Character(knows), tmp_path / "c").own is None


def test_ratings_that_follow_the_models_own_likelihood_are_told(tmp_path):
    found = issue(Character(lambda text: 1 + 9 * len(text) / 2000), tmp_path, likelihood=lambda text: float(len(text)))
    assert found.likes_likely == pytest.approx(1.0)


def test_a_judge_swayed_by_the_layout_does_not_repeat_itself(tmp_path):
    found = issue(Character(lambda text: 5.0 + ("\n" in text)), tmp_path)
    assert found.repeat == {"again": 0.0, "relaid": 1.0}


class Dies(Character):
    def rate(self, plot):
        if len(self.asked) >= 30:
            raise EngineDown("gone")
        return super().rate(plot)


def test_a_killed_passport_goes_on_and_asks_nothing_twice(tmp_path):
    first = Dies(knows)
    with pytest.raises(EngineDown):
        issue(first, tmp_path / "a")
    again = Character(knows)
    found = issue(again, tmp_path / "a")
    whole = Character(knows)
    assert found == issue(whole, tmp_path / "b")
    assert len(again.asked) == len(whole.asked) - len(first.asked)
    assert len(set(whole.asked)) == len(whole.asked)


class Refuses(Character):
    def rate(self, plot):
        rated = super().rate(plot)
        return AspectRatings(plot.id, {}, error="too long") if len(plot.text) > 900 else rated

    def compare(self, premise, a, b):
        if max(len(a.text), len(b.text)) > 900:
            return Verdict(a.premise_id, a.id, b.id, {}, {}, "too long")
        return super().compare(premise, a, b)


def test_what_could_not_be_judged_is_counted_and_scores_nothing(tmp_path):
    found = issue(Refuses(knows), tmp_path)
    assert found.counts["failed"] > 0
    assert found.counts["first_failure"] == "too long"
    assert found.known_pairs[0] == 1.0


# ---- the material


def test_pairs_of_known_order_are_of_plots_no_reward_model_learnt_from():
    for good, bad, aimed in known_pairs(MATERIAL.plots, 99, 0):
        assert split_of(good.premise_id) == "test"
        assert good.text != bad.text
        assert set(aimed) <= set(KEYS)
        assert good.premise


@pytest.mark.parametrize(
    ("where", "text"), [("start", "X\nOne. Two."), ("middle", "One.\nX\nTwo."), ("end", "One. Two.\nX")]
)
def test_instructions_are_planted_where_they_belong(where, text):
    assert insert(Plot("p", "One. Two.", sentences=("One.", "Two.")), "X", where) == text


# ---- people


def rated(id, mean, group="g", system="s", text="words"):
    return RatedText(id, text, {"coherence": mean, "fun": mean}, {"coherence": (mean, mean)}, group, system)


def scores(value):
    return AspectRatings("x", {k: 1.0 for k in KEYS} | {"coherence": value})


def test_agreement_with_people_is_of_the_same_question_where_there_is_one():
    rows = [(rated(str(i), float(i), f"g{i % 3}"), scores(1.0 + i)) for i in range(1, 6)]
    found = against_people(rows)
    assert (found["coherence"]["compared"], found["fun"]["compared"]) == ("coherence", "mean")
    assert found["coherence"]["spearman"][0] == 1.0
    assert found["coherence"]["accuracy"][0] == 1.0
    assert found["coherence"]["pairs"] == 2  # 1–4 and 2–5 share a prompt
    assert found["coherence"]["rest"] == pytest.approx(1.0)


def test_a_judge_against_people_is_wrong_on_every_pair():
    rows = [(rated(str(i), float(i)), scores(9.0 - i)) for i in range(1, 6)]
    assert against_people(rows)["coherence"]["accuracy"] == [0.0, 0.0, 0.0]


def test_pairs_of_people_are_of_one_prompt_and_clearly_apart():
    rows = [rated("a", 1.0), rated("b", 1.2), rated("c", 4.0), rated("d", 4.0, "other")]
    found = {(x.id, y.id) for x, y in people_pairs(rows, 99, 0)}
    assert found == {("c", "a"), ("c", "b")}


def test_who_is_right_on_damage_and_wrong_by_people_is_not_trusted(tmp_path):
    rows = [
        rated(f"{g}-{k}", float(k), f"g{g}", text=f"The {'very ' * k}old tale number {g} was told.")
        for g in range(12)
        for k in (1, 5)
    ]
    agrees = lambda text: 5.0 + 0.5 * text.count("very ") if "tale number" in text else knows(text)  # noqa: E731
    good = issue(Character(agrees), tmp_path / "a", people={"tales": rows})
    bad = issue(
        Character(lambda t: 10 - agrees(t) if "tale number" in t else knows(t)), tmp_path / "b", people={"tales": rows}
    )
    assert good.threshold is not None
    assert good.people["tales"]["coherence"]["accuracy"][0] == 1.0
    assert (bad.threshold, bad.confidence["known pairs"]["threshold"] is None) == (None, False)
    assert "on people it did not earn that" in bad.line


# ---- keeping


def test_a_passport_holds_only_for_its_own_weights_and_prompts(tmp_path, monkeypatch):
    monkeypatch.setenv("FABLESMITH_CACHE", str(tmp_path / "cache"))
    passport = issue(Character(knows), tmp_path / "out")
    passport = dataclasses.replace(passport, identity="abc")
    opened = Opened(Character(knows), "abc", tmp_path / "model.passport.json")
    assert opened.passport is None
    keep_passport(passport, opened)
    assert opened.passport == passport
    (tmp_path / "model.passport.json").unlink()
    assert opened.passport == passport  # the cache has it
    assert find_passport("abd", tmp_path / "model.passport.json") is None


def test_a_damaged_passport_is_no_passport(tmp_path, monkeypatch):
    monkeypatch.setenv("FABLESMITH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "p.json").write_text("{")
    assert find_passport("abc", tmp_path / "p.json") is None


def test_the_picture_names_the_judge_and_what_is_not_measured(tmp_path):
    found = issue(Character(knows, name="llama.cpp:one.gguf"), tmp_path)
    assert (tmp_path / "passport.svg").read_text() == charts.passport(found)
    assert "llama.cpp:one.gguf" in charts.passport(found)
    nothing = dataclasses.replace(found, length_slope=[None, None, None])
    assert "not measured" in charts.passport(nothing)


def test_a_passport_is_read_back_as_it_was_written(tmp_path):
    found = issue(Character(knows), tmp_path)
    assert Passport.load(tmp_path / "passport.json") == found
    assert Passport.load(tmp_path / "passport.json").line == found.line


def test_answers_are_on_disk_as_they_come(tmp_path):
    asked = Asked(Character(knows), tmp_path / "asked.jsonl")
    asked.rate(MATERIAL.plots[0])
    assert len(read_jsonl(tmp_path / "asked.jsonl")) == 1


def test_a_judge_of_the_writers_family_is_warned_of():
    (warning,) = same_family("j", "qwen", {"base": "qwen", "other": "llama", "unknown": ""})
    assert "the judge j and base are of one family (qwen)" in warning
    assert same_family("j", "", {"base": ""}) == []
    assert same_family("j", "phi", {"base": "qwen"}) == []


@pytest.mark.slow
def test_the_shipped_passport_is_of_the_embedded_judge_as_it_is_asked_today(tmp_path, monkeypatch):
    monkeypatch.setenv("FABLESMITH_CACHE", str(tmp_path))
    opened = open_judge("embedded")
    opened.judge.close()
    assert opened.passport is not None, "weights or prompts changed: fablesmith passport embedded, and ship the new one"
    assert opened.passport.threshold is None
