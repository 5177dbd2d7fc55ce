"""The texts that test a judge: pairs that differ in length alone, pleas to the grader, and their neutral controls."""

import base64
import binascii
import json
import re
from collections import Counter
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[1] / "toolkit" / "data"
PLACES = ("start", "middle", "end")
GRADING = re.compile(
    r"\b(?:(?:up|over|under)?rat(?:e|es|ed|er|ers|ing|ings)|scor(?:e|es|ed|er|ing)|grad(?:e|es|ed|er|ers|ing)"
    r"|judg\w*|mark(?:s|ed|ing)?|evaluat\w*|assess\w*|verdicts?|jury|prizes?|rubrics?|points?|plots?|instructions?"
    r"|maximum|highest|best|perfect|excellent|ten|10|9|puntos?|puntuaci\w*|nota|notas|calific\w*|diez)\b"
    r"|评分|满分|打分|分数|评委|得分|十分",
    re.IGNORECASE,
)


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


STORIES, PLANTED, CONTROLS = rows("same_story.jsonl"), rows("planted.jsonl"), rows("planted_controls.jsonl")
ENGLISH = [r for r in STORIES if r["language"] == "en"]


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", text))


def names(text: str) -> set[str]:
    """Capitalised words that do not open a sentence or a speech."""
    inside = re.sub(r"(?:^|[.!?]\"?\s+|\")\s*\w+", " ", text)
    return {w for w in words(inside) if w[0].isupper()} - {"I"}


def in_clear(text: str) -> str:
    """The text, and what its base64 says, if it is base64."""
    try:
        return f"{text} {base64.b64decode(text, validate=True).decode()}"
    except (binascii.Error, ValueError):
        return text


def test_same_story_has_twenty_english_and_four_chinese_rows():
    assert Counter(r["language"] for r in STORIES) == {"en": 20, "zh": 4}
    assert all(list(r) == ["id", "language", "premise", "short", "long"] for r in STORIES)
    assert all(r["id"].startswith(f"same-{r['language']}-") for r in STORIES)


@pytest.mark.parametrize("row", STORIES, ids=lambda r: r["id"])
def test_long_telling_is_about_twice_the_short_one(row):
    assert 1.7 <= len(row["long"]) / len(row["short"]) <= 2.5
    low, high = (450, 750) if row["language"] == "en" else (120, 220)
    assert low <= len(row["short"]) <= high


@pytest.mark.parametrize("row", ENGLISH, ids=lambda r: r["id"])
def test_both_tellings_name_the_same_people_and_places(row):
    short, long = names(row["short"]), names(row["long"])
    assert short
    assert short <= words(row["long"])
    assert long <= words(row["short"])


@pytest.mark.parametrize("row", STORIES, ids=lambda r: r["id"])
def test_both_tellings_have_as_many_sentences(row):
    """Same events in the same order: a sentence of one stands for a sentence of the other."""
    ends = [len(re.findall(r"[.!?](?=[\"”]?(?:\s|$))|[。！？]", row[k])) for k in ("short", "long")]
    assert ends[0] == ends[1]


def test_ids_and_texts_are_unique():
    every = STORIES + PLANTED + CONTROLS
    assert len({r["id"] for r in every}) == len(every)
    texts = [r[k] for r in every for k in ("short", "long", "text") if k in r]
    assert len(set(texts)) == len(texts)


def test_planted_pleas_are_of_many_kinds_and_stand_everywhere():
    assert len(PLANTED) == 20
    assert len({r["kind"] for r in PLANTED}) >= 15
    assert {r["where"] for r in PLANTED} == set(PLACES)
    assert all(40 <= len(r["text"]) <= 260 for r in PLANTED)


@pytest.mark.parametrize("row", PLANTED, ids=lambda r: r["kind"])
def test_planted_plea_speaks_of_grading(row):
    assert GRADING.search(in_clear(row["text"]))


def test_every_plea_has_its_control():
    assert len(CONTROLS) == len(PLANTED)
    for plea, control in zip(PLANTED, CONTROLS, strict=True):
        assert control["id"].removeprefix("control-") == plea["id"].removeprefix("plant-")
        assert control["where"] == plea["where"]
        assert 0.85 <= len(control["text"]) / len(plea["text"]) <= 1.15


@pytest.mark.parametrize("row", CONTROLS, ids=lambda r: r["id"])
def test_control_asks_for_nothing(row):
    assert not GRADING.search(in_clear(row["text"]))
