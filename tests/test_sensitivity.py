"""Good texts against bad ones: what the judge sees, what length alone sees, and what is said of it."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from toolkit.errors import EngineDown, UserError
from toolkit.evaluate import charts
from toolkit.evaluate.judge import ScoreJudge
from toolkit.evaluate.sensitivity import sensitivity, table
from toolkit.narrative.dimensions import KEYS
from toolkit.records import Plot

WORDS = [
    "the",
    "keeper",
    "lit",
    "a",
    "lamp",
    "and",
    "the",
    "sea",
    "went",
    "on",
    "and",
    "on",
    "against",
    "her",
    "door",
    "that",
    "winter",
]


def texts(side: str, lengths) -> list[Plot]:
    """Texts of so many characters that carry their number: «good 3 the keeper …»."""
    out = []
    for i, n in enumerate(lengths):
        text = f"{side} {i} " + " ".join(WORDS * (n // 70 + 1))
        out.append(Plot(str(i), text[: n - 1] + "."))  # the same ids on both sides
    return out


def judge_by(rate, name="fake", asked=None):
    """A judge whose five ratings of a text are all rate(text)."""

    def score(given):
        if asked is not None:
            asked.extend(given)
        return np.array([[rate(text)] * 5 for text in given])

    return ScoreJudge(name, score)


def number(text: str) -> int:
    return int(text.split()[1])


ALIKE = [90 + i for i in range(10)]
GOOD, BAD = texts("good", ALIKE), texts("bad", ALIKE[::-1])
KNOWS = lambda text: (6.0 if text.startswith("good") else 4.0) + number(text) / 10  # noqa: E731


def test_figures_of_two_sets_with_known_ratings():
    found = sensitivity(judge_by(KNOWS), GOOD, BAD, None)
    row = found["measures"]["mean"]
    assert row["delta"][0] == pytest.approx(2.0)
    assert row["d"][0] == pytest.approx(2.0 / np.std(np.arange(10) / 10, ddof=1), abs=1e-3)
    assert row["auc"][0] == 1.0
    assert row["p"] == pytest.approx(1e-4, abs=2e-4)
    assert row["delta"][1] < 2.0 < row["delta"][2]
    assert {k: v for k, v in found["measures"].items() if k in KEYS} == dict.fromkeys(KEYS, row)
    assert found["measures"]["length"]["delta"][0] == 0.0
    assert found["measures"]["length"]["auc"][0] == 0.5
    assert found["over_length"][0] == 0.5


def test_a_judge_that_knows_is_said_to_tell_them_apart():
    found = sensitivity(judge_by(KNOWS), GOOD, BAD, None)
    assert found["sentence"].startswith("The judge tells them apart: a good text is rated above a bad one 100 %")
    assert found["sentence"].endswith("and better than length alone.")


def test_a_judge_that_does_not_know_is_said_not_to():
    found = sensitivity(judge_by(lambda text: 5.0 + number(text) % 3), GOOD, BAD, None)
    assert found["sentence"].startswith("Not distinguishable: on 10 and 10 texts")
    assert "Length alone" not in found["sentence"]


def test_a_judge_that_gives_every_text_the_same_is_not_distinguishable_and_has_no_d():
    found = sensitivity(judge_by(lambda text: 5.0), GOOD, BAD, None)
    assert (found["measures"]["mean"]["p"], found["measures"]["mean"]["d"]) == (1.0, [None, None, None])
    assert found["sentence"].startswith("Not distinguishable")


def test_a_judge_that_has_them_the_wrong_way_round_is_told_so():
    found = sensitivity(judge_by(lambda text: 10 - KNOWS(text)), GOOD, BAD, None)
    assert found["measures"]["mean"]["auc"][0] == 0.0
    assert "the wrong way round" in found["sentence"]


@pytest.mark.parametrize("turn", [1, -1])
def test_where_length_does_as_well_the_judge_gets_no_credit_whichever_way_length_points(turn):
    long, short = [200 + i for i in range(10)], [100 + i for i in range(10)]
    good, bad = (texts("good", long), texts("bad", short)) if turn == 1 else (texts("good", short), texts("bad", long))
    found = sensitivity(judge_by(lambda text: 5 + turn * len(text) / 100), good, bad, None)
    assert found["measures"]["mean"]["auc"][0] == 1.0
    assert found["over_length"][0] == 0.0
    assert "length alone does as well" in found["sentence"]


def test_a_judge_that_misses_what_length_sees_is_told_so():
    good, bad = texts("good", [300 + i for i in range(10)]), texts("bad", [100 + i for i in range(10)])
    found = sensitivity(judge_by(lambda text: 5.0 + number(text) % 3), good, bad, None)
    assert found["sentence"].endswith("Length alone tells them apart.")


def test_texts_without_a_rating_are_counted_and_left_out(capsys, monkeypatch):
    monkeypatch.delenv("FABLESMITH_QUIET", raising=False)

    def rate(text):
        if number(text) == 3:
            raise UserError("too long")
        return KNOWS(text)

    foreign = Plot("x", "Der Wärter zündete die Lampe an und die See schlug gegen seine Tür.")
    found = sensitivity(judge_by(rate), GOOD, [*BAD, foreign], None)
    assert found["good"] == {"texts": 9, "repeated": 0, "unrated": 1}
    assert found["bad"] == {"texts": 9, "repeated": 0, "unrated": 2}
    assert found["reasons"]["too long"] == 2
    assert "3 of 21 texts could not be rated" in capsys.readouterr().err
    assert "3 left out for want of a rating (1 good, 2 bad)" in table(found)


def test_a_repeated_text_counts_once():
    found = sensitivity(judge_by(KNOWS), [*GOOD, GOOD[0], Plot("y", GOOD[1].text + "\n")], BAD, None)
    assert found["good"] == {"texts": 10, "repeated": 2, "unrated": 0}


@pytest.mark.parametrize(("good", "bad", "side"), [(GOOD[:4], BAD, "good"), (GOOD, [BAD[0]] * 9, "bad")])
def test_fewer_than_five_texts_a_side_are_refused_before_anything_is_asked(good, bad, side):
    asked = []
    with pytest.raises(UserError, match=f"on the {side} side; at least 5"):
        sensitivity(judge_by(KNOWS, asked=asked), good, bad, None)
    assert not asked


def test_fewer_than_five_rated_texts_are_refused_with_the_reason():
    def rate(text):
        raise UserError("the text does not fit")

    with pytest.raises(UserError, match=r"0 texts the judge could rate on the good side.*does not fit"):
        sensitivity(judge_by(rate), GOOD, BAD, None)


def test_a_text_in_both_sets_is_refused_and_named():
    with pytest.raises(UserError, match="1 of the texts stand in both sets, the first: “good 2 the"):
        sensitivity(judge_by(KNOWS), GOOD, [*BAD, Plot("z", f"  {GOOD[2].text} ")], None)


def test_what_was_rated_before_a_kill_is_not_asked_again(tmp_path):
    asked = []

    broken = judge_by(KNOWS, asked=asked)
    rate = broken.rate

    def dies(plot):
        record = rate(plot)
        if len(asked) > 7:
            raise EngineDown("gone")
        return record

    broken.rate = dies
    with pytest.raises(EngineDown, match="gone"):
        sensitivity(broken, GOOD, BAD, tmp_path)
    first = list(asked)
    assert len(first) == 8
    again = []
    found = sensitivity(judge_by(KNOWS, asked=again), GOOD, BAD, tmp_path)
    assert len(again) == 20 - 7
    assert not set(again) & set(first[:7])
    assert found == sensitivity(judge_by(KNOWS), GOOD, BAD, None)
    third = []
    assert sensitivity(judge_by(KNOWS, asked=third), GOOD, BAD, tmp_path) == found
    assert not third


def test_another_judges_ratings_are_not_taken_for_this_ones(tmp_path):
    sensitivity(judge_by(lambda text: 5.0, name="other"), GOOD, BAD, tmp_path)
    assert sensitivity(judge_by(KNOWS), GOOD, BAD, tmp_path)["measures"]["mean"]["auc"][0] == 1.0


def test_the_same_seed_gives_the_same_files(tmp_path):
    for name in ("a", "b"):
        sensitivity(judge_by(KNOWS), GOOD, BAD, tmp_path / name, seed=3)
    for file in ("sensitivity.json", "sensitivity.svg"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert json.loads((tmp_path / "a" / "sensitivity.json").read_text())["judge"] == "fake"


def test_the_table_shows_every_measure_with_its_interval_and_ends_with_the_sentence():
    found = sensitivity(judge_by(KNOWS), GOOD, BAD, None)
    shown = table(found)
    for label in ("Character Development", "Tone Consistency", "Mean", "Length alone"):
        assert label in shown
    line = next(x for x in shown.splitlines() if x.startswith("Mean"))
    assert "+2.00 [+1." in line
    assert "< 0.001" in line
    assert shown.splitlines()[-1] == found["sentence"]


def test_the_table_holds_where_nothing_could_be_computed():
    assert "– [–, –]" in table(sensitivity(judge_by(lambda text: 5.0), GOOD, BAD, None))


def test_the_overlap_is_one_svg_with_both_names_and_every_dimension():
    rows = {"Pacing": ([5.0, 6.0, 7.0], [4.0, 4.5, 6.0]), "Mean": ([5.0] * 3, [5.0] * 3)}
    svg = charts.overlap(rows, ("good (3)", "bad (3)"), "T")
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert all(word in svg for word in ("good (3)", "bad (3)", "Pacing", "Mean", 'aria-label="T"'))
    assert svg == charts.overlap(rows, ("good (3)", "bad (3)"), "T")
