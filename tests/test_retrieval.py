"""Retrieval: near, drawn by request, never the request itself, in its own language."""

import pytest

from toolkit.feedback import retrieval
from toolkit.feedback.retrieval import Examples, pick_model
from toolkit.records import Labelled

ZH = ["外公七十大寿", "外婆八十大寿", "同事乔迁新居", "邻居搬进新房", "表妹考上大学"]
EN = ["Birthday card for grandpa", "Wedding toast for my sister"]
LABELLED = [
    *(Labelled(f"zh-{i}", t, f"好{i}", f"坏{i}", language="zh") for i, t in enumerate(ZH)),
    *(Labelled(f"en-{i}", t, f"good {i}", f"bad {i}") for i, t in enumerate(EN)),
]


@pytest.fixture(scope="module")
def examples():
    return Examples(LABELLED, "ngrams")


def ids(found):
    return [[x.request_id for x in row] for row in found]


def test_the_nearest_comes_first(examples):
    assert ids(examples.similar(["爷爷七十大寿", "舅舅乔迁"], 1, 1, seed=0)) == [["zh-0"], ["zh-2"]]


def test_a_request_never_sees_its_own_examples(examples):
    (found,) = examples.similar(["外公，七十大寿！"], 4, 4, seed=0)
    assert "zh-0" not in {x.request_id for x in found}
    assert len(found) == 4


def test_examples_are_in_the_language_of_the_request(examples):
    assert set(ids(examples.similar(["toast for my brother"], 5, 8, seed=0))[0]) == {"en-0", "en-1"}


def test_the_draw_follows_from_seed_and_request_alone(examples):
    one = examples.similar(["爷爷七十大寿", "舅舅乔迁"], 2, 4, seed=3)
    assert examples.similar(["舅舅乔迁"], 2, 4, seed=3) == one[1:]
    assert len({str(ids(examples.similar(["爷爷七十大寿"], 2, 5, seed=s))) for s in range(9)}) > 1


def test_one_example_a_request():
    twice = [LABELLED[0], Labelled("zh-0", ZH[0], "又好", "又坏", language="zh"), LABELLED[1]]
    assert len(Examples(twice, "ngrams").similar(["爷爷七十大寿"], 3, 3, seed=0)[0]) == 2


def test_without_examples_there_are_none():
    assert Examples([], "ngrams").similar(["a", "b"], 2, 8, seed=0) == [[], []]


@pytest.mark.parametrize(
    ("cached", "languages", "picked"),
    [(True, ("zh", "en"), "multilingual"), (False, ("zh", "en"), "ngrams"), (False, ("en",), "minilm")],
)
def test_auto_takes_what_is_at_hand(monkeypatch, cached, languages, picked):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a: "file" if cached else None)
    said = []
    monkeypatch.setattr(retrieval, "say", said.append)
    assert pick_model("auto", languages) == picked
    assert picked in said[0]


def test_a_named_model_is_taken_as_it_is():
    assert pick_model("jina", ("zh",)) == "jina"
