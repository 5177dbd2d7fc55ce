"""The shipped dark premises: a hundred different ones, readable as premises, each within a premise's bounds."""

import json
from collections import Counter

from conftest import PLOTS

from toolkit.narrative.writing import check_premise
from toolkit.records import read_premises

FILE = PLOTS.with_name("dark_fiction.jsonl")


def test_there_are_a_hundred_and_none_twice():
    rows = read_premises(FILE).rows
    assert len(rows) == 100
    assert len({r.text for r in rows}) == 100
    assert all(check_premise(r.text) == r.text and r.genre and r.tone and r.setting for r in rows)


def test_they_are_of_many_kinds_and_two_languages():
    rows = read_premises(FILE).rows
    assert len({r.genre for r in rows}) >= 12
    assert max(Counter(r.genre for r in rows).values()) <= 10
    assert Counter(r.language for r in rows)["zh"] >= 5


def test_no_two_share_most_of_their_words():
    words = [set(r.text.lower().split()) for r in read_premises(FILE).rows if r.language == "en"]
    near = [len(a & b) / min(len(a), len(b)) for i, a in enumerate(words) for b in words[:i]]
    assert max(near) < 0.6


def test_none_is_a_premise_of_the_other_file():
    other = {json.loads(line)["text"] for line in PLOTS.with_name("premises.jsonl").read_text().splitlines()}
    assert not other & {r.text for r in read_premises(FILE).rows}
