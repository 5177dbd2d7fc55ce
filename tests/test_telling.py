"""What sets chosen answers apart: the planted phrase is found, by the published formula, and nothing where nothing is."""

import math

import numpy as np
import pytest

from toolkit.reward.telling import length_auc, ngrams, telling


def texts(n: int, seed: int, phrase: str = "") -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"{phrase} ".lstrip() + " ".join(rng.choice(list("abcdefgh"), 6)) for _ in range(n)]


def test_a_phrase_that_opens_one_side_is_the_most_telling():
    rows = telling(texts(40, 0, "dear friend"), texts(40, 1))
    assert rows[0]["ngram"].startswith("dear friend")
    assert rows[0]["side"] == "chosen"
    assert rows[0]["z"] > 3
    rows = telling(texts(40, 0), texts(40, 1, "good luck"))
    assert [r["side"] for r in rows if "good luck" in r["ngram"]] == ["rejected"]


def test_the_score_is_the_published_one():
    """Monroe et al. 2008 by hand: y = 8 and 2 of 20 n-grams a side, prior 0.1 × (8 + 2) of 0.1 × 40."""
    chosen = ["luck joy"] * 5 + ["luck sun"] * 1 + ["luck"] * 2
    rejected = ["luck"] * 2 + ["sun joy"] * 6
    row = next(r for r in telling(chosen, rejected, 50) if r["ngram"].startswith("luck"))
    counts = [sum(len(set(ngrams(t))) for t in side) for side in (chosen, rejected)]
    own = {"luck": (8, 2), "luck joy": (5, 0)}[row["ngram"]]
    prior, total = 0.1 * sum(own), 0.1 * sum(counts)
    odds = [math.log((y + prior) / (n + total - y - prior)) for y, n in zip(own, counts, strict=True)]
    z = (odds[0] - odds[1]) / math.sqrt(1 / (own[0] + prior) + 1 / (own[1] + prior))
    assert row["z"] == pytest.approx(z, abs=0.01)


def test_chinese_is_read_by_character_and_written_without_spaces():
    rows = telling(["亲爱的，愿您安康。"] * 12, ["愿你快乐，一切都好。"] * 12)
    assert "亲爱的" in [r["ngram"] for r in rows if r["side"] == "chosen"]
    assert all(" " not in r["ngram"] for r in rows)


def test_sides_that_are_alike_have_nothing_telling():
    assert telling(texts(60, 0), texts(60, 0)) == []
    assert telling([], []) == []


def test_a_refrain_inside_one_answer_does_not_tell():
    rows = telling([*texts(30, 0), "zap " * 50], texts(31, 1))
    assert not any("zap" in r["ngram"] for r in rows)


def test_length_alone_tells_as_much_as_its_auc():
    assert length_auc(["aaa", "aaaa"], ["a", "aa"]) == 1
    assert length_auc(["aa", "aa"], ["aa", "aa"]) == 0.5
