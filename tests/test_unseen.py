"""The unseen judge: it learns which of two answers is good, says how well, and keeps quiet where it knows nothing."""

import numpy as np
import pytest

from toolkit.errors import UserError
from toolkit.evaluate import unseen
from toolkit.evaluate.unseen import Unseen, _folds
from toolkit.records import Labelled
from toolkit.stats import logistic, span

WORDS = ["lake", "rust", "violin", "oven", "kite", "moss", "ladder", "plum", "sail", "clay"]


def bag(texts, model="minilm", desc=""):
    """Embedding double: hashed words, unit length."""
    out = np.zeros((len(texts), 64), np.float32)
    for row, text in zip(out, texts, strict=True):
        assert text.strip()
        for word in text.split() if model == "minilm" else text:
            row[sum(map(ord, word)) % 64] += 1
        row /= np.linalg.norm(row)
    return out


@pytest.fixture(autouse=True)
def embedding(monkeypatch):
    monkeypatch.setattr(unseen, "embed", bag)
    monkeypatch.setattr(unseen, "check_embedding", lambda model: None)


def english(n=30, good="fresh", bad="worn"):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        a, b, c = rng.choice(WORDS, 3, replace=False)
        rows.append(Labelled(f"r{i}", f"about {a}", f"{a} {b} {good} {c}", f"{b} {c} {bad} of {c}"))
    return rows


def test_it_learns_what_tells_good_from_bad():
    judge = Unseen.fit(english())
    assert judge.quality["en"]["accuracy"][0] > 0.9
    good, bad = judge.score(["about lake"] * 2, ["sail fresh clay", "sail worn clay"])
    assert good > bad


def test_labels_without_sense_are_not_trusted():
    rng = np.random.default_rng(1)
    rows = [
        Labelled(x.request_id, x.request, x.bad, x.good) if rng.random() < 0.5 else x
        for x in english(40, good="and", bad="and")
    ]
    judge = Unseen.fit(rows)
    assert not judge.trusted
    assert judge.quality["en"]["accuracy"][1] < 0.5


def test_good_labels_are_trusted():
    assert Unseen.fit(english()).trusted


def test_length_alone_stands_beside_its_accuracy():
    quality = Unseen.fit(english()).quality["en"]
    assert quality["length_only"][0] == 0  # the bad one is always a word longer here
    assert quality["pairs"] == 30


def test_the_accuracy_is_of_requests_it_had_not_seen(monkeypatch):
    seen = []
    real = unseen._fit
    monkeypatch.setattr(unseen, "_fit", lambda data, train, *more: seen.append(train.sum()) or real(data, train, *more))
    Unseen.fit(english(20))
    assert seen.count(20) == 1  # the one that is kept
    assert sorted(set(seen))[-2:] == [16, 20]


def test_requests_stand_in_twos_and_the_other_answer_is_the_partners():
    groups = ["a", "b", "a", "c", "d", "e", "e"]  # five requests: a two and a three
    other, couple = unseen._couples(groups, np.random.default_rng(0))
    for i, j in enumerate(other):
        assert groups[i] != groups[j]
        assert couple[i] == couple[j]
    assert couple[0] == couple[2]
    assert sorted({c: len({g for g, x in zip(groups, couple, strict=True) if x == c}) for c in couple}.values()) == [
        2,
        3,
    ]


def test_a_couple_stands_on_one_side_of_a_cut():
    fold = _folds(np.array([0, 1, 0, 2, 1, 3, 4, 5]), np.random.default_rng(0))
    assert fold[0] == fold[2]
    assert fold[1] == fold[4]
    assert len(set(fold)) == 5


def test_the_regression_is_where_its_gradient_is_nothing():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4)) + np.array([0.5, 0, 0, 0])
    weights = rng.random(30) / 30
    w = logistic(x, weights, 0.01)
    gradient = 0.01 * w - (x * (weights / (1 + np.exp(x @ w)))[:, None]).sum(0)
    assert np.abs(gradient).max() < 1e-6


def test_turning_the_features_changes_no_score():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 40))
    turned, back = span(x)
    assert turned.shape == (12, 12)
    even = np.full(12, 1 / 12)
    np.testing.assert_allclose(x @ (back @ logistic(turned, even, 0.1)), x @ logistic(x, even, 0.1), atol=1e-6)


def test_the_request_counts_and_not_the_answer_alone():
    rng = np.random.default_rng(0)
    rows = []
    for i in range(200):
        a, b = rng.choice(WORDS, 2, replace=False)
        rows.append(Labelled(f"r{i}", f"{a}", f"for {a}", f"for {b}"))
    judge = Unseen.fit(rows)
    assert judge.quality["en"]["accuracy"][0] > 0.9


def test_one_fine_answer_sent_to_everybody_is_seen():
    rng = np.random.default_rng(0)
    rows = []
    for i in range(120):
        a, b = rng.choice(WORDS, 2, replace=False)
        rows.append(Labelled(f"r{i}", f"{a}", f"fresh {a} {b}", f"worn {a} {b}"))  # both bear on the request
    judge = Unseen.fit(rows)
    own, other = judge.score(["lake"] * 2, ["fresh lake oven", "fresh rust oven"])
    assert own > other
    assert judge.quality["en"]["own"][0] > 0.7


def test_each_language_has_its_own():
    rows = english() + [
        Labelled(f"z{i}", f"写给{w}的", f"{w}新{v}", f"{w}旧{v}", language="zh")
        for i, (w, v) in enumerate(zip("春夏秋冬山水风花雪月云雨", "甲乙丙丁戊己庚辛壬癸子丑", strict=True))
    ]
    judge = Unseen.fit(rows)
    assert set(judge.parts) == {"en", "zh"}
    assert judge.parts["zh"].model == "ngrams"
    new, old = judge.score(["写给外公"] * 2, ["外公新", "外公旧"])
    assert new > old


def test_a_language_with_too_few_is_left_out_and_scores_nothing():
    judge = Unseen.fit([*english(), Labelled("z", "写给外公", "新", "旧", language="zh")])
    assert "1 labelled requests" in judge.left_out["zh"]
    assert np.isnan(judge.score(["写给外公"], ["新"])).all()


def test_too_few_in_every_language_is_said():
    with pytest.raises(UserError, match="too few labelled"):
        Unseen.fit(english(3))


def test_nothing_at_all_is_said():
    with pytest.raises(UserError, match="too few labelled"):
        Unseen.fit([])


def test_an_empty_answer_gets_no_score():
    scores = Unseen.fit(english()).score(["about lake"] * 2, ["", "a fresh sail"])
    assert np.isnan(scores[0])
    assert np.isfinite(scores[1])


def test_it_is_the_same_after_saving(tmp_path):
    judge = Unseen.fit(english())
    judge.save(tmp_path)
    again = Unseen.load(tmp_path)
    asked = ["about lake"] * 2, ["sail fresh clay", "sail worn clay"]
    np.testing.assert_array_equal(judge.score(*asked), again.score(*asked))
    assert again.quality == judge.quality
    assert again.trusted


def test_a_folder_without_one_is_said(tmp_path):
    with pytest.raises(UserError, match="no unseen judge"):
        Unseen.load(tmp_path)


def test_the_same_labels_give_the_same_judge():
    one, two = (Unseen.fit(english(), seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.parts["en"].weights, two.parts["en"].weights)
    assert one.quality == two.quality
