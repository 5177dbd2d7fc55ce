"""Writers compared on the same requests: every figure against one counted by hand, and nothing made up where there is none."""

from types import SimpleNamespace

import numpy as np
import pytest

from toolkit.errors import UserError
from toolkit.evaluate import greetings
from toolkit.evaluate.greetings import Writer, answer_rows, best_of, measure, verdict_lines
from toolkit.records import Request

QUALITY = {"accuracy": [0.8, 0.7, 0.9], "length_only": [0.5, 0.4, 0.6], "pairs": 40, "requests": 40, "trusted": True}


def embed(texts, model="", desc=""):
    """Embedding double: the first letter's axis."""
    out = np.zeros((len(texts), 128), np.float32)
    out[range(len(texts)), [ord(t[0]) % 128 for t in texts]] = 1
    return out


@pytest.fixture(autouse=True)
def embedding(monkeypatch):
    monkeypatch.setattr(greetings, "embed", embed)


def judge(quality=QUALITY):
    """An unseen judge that counts exclamation marks."""
    return SimpleNamespace(
        score=lambda requests, answers: np.array([float(a.count("!")) for a in answers]), quality={"all": quality}
    )


REQUESTS = [Request(f"r{i}", f"wedding toast {i}") for i in range(4)]


def writers(better="Joy to you both!", **more):
    sft = Writer("sft", {r.id: ["All the best.", "Be well, friends."] for r in REQUESTS}, seconds=2.0, calls=1)
    return [sft, Writer("grpo", {r.id: [better, better] for r in REQUESTS}, **more)]


def characters(requests, answers):
    return [float(len(a)) for a in answers]


def compare(found=None, scorers=None, unseen=None, **more):
    result = measure(found or writers(), REQUESTS, scorers or {}, unseen, **more)
    return {w["name"]: w for w in result["writers"]}


# ---- scores


def test_a_scorer_is_asked_once_a_writer():
    calls = []
    compare(scorers={"model": lambda q, a: calls.append(len(a)) or characters(q, a)})
    assert calls == [8, 8]


def test_the_mean_and_the_paired_difference():
    found = compare(scorers={"model": characters})
    assert found["sft"]["scores"]["model"]["mean"][0] == 15.0  # 13 and 17 characters
    assert found["sft"]["scores"]["model"]["difference"] is None
    assert found["grpo"]["scores"]["model"]["difference"] == [1.0, 1.0, 1.0]


def test_a_difference_is_of_requests_that_both_answered():
    one, two = writers()
    two.answers.pop("r0")
    one.answers["r0"] = ["x" * 1000]
    assert compare([one, two], {"model": characters})["grpo"]["scores"]["model"]["difference"][0] == 1.0
    assert compare([one, two])["grpo"]["missing"] == 1


def test_an_answer_without_a_score_is_counted_and_not_made_up():
    none = {"judge": lambda q, a: [None if x.startswith("All") else 2.0 for x in a]}
    found = compare(scorers=none)["sft"]["scores"]["judge"]
    assert found["unscored"] == 4
    assert found["mean"] == [2.0, 2.0, 2.0]


def test_where_nothing_is_scored_there_is_no_figure():
    found = compare(scorers={"judge": lambda q, a: [None] * len(a)})["grpo"]["scores"]["judge"]
    assert found["mean"] == found["difference"] == [None, None, None]


def test_no_scorer_is_asked_about_an_empty_answer():
    asked = []
    found = compare(writers(better=" "), {"model": lambda q, a: asked.extend(a) or characters(q, a)})["grpo"]
    assert "" not in [a.strip() for a in asked]
    assert found["empty"] == 8
    assert found["scores"]["model"]["unscored"] == 8


# ---- the unseen judge


def test_wins_against_the_baselines_answers_to_the_same_request():
    found = compare(unseen=judge())["grpo"]["unseen"]
    assert found["wins"][0] == 1.0
    assert (found["won"], found["lost"], found["tied"]) == (16, 0, 0)  # 2 × 2 answers, 4 requests
    assert found["wins"][1] < 1.0  # four requests are no certainty


def test_ties_count_half():
    found = compare(writers(better="Be glad."), unseen=judge())["grpo"]["unseen"]
    assert found["wins"][0] == 0.5
    assert found["tied"] == 16


def test_an_empty_answer_loses_and_two_of_them_tie():
    one, two = writers(better="")
    one.answers["r0"] = ["", ""]
    found = compare([one, two], unseen=judge())["grpo"]["unseen"]
    assert (found["won"], found["lost"], found["tied"]) == (0, 12, 4)


def test_an_answer_with_a_fault_that_the_judge_cannot_see_loses():
    echo = lambda text, request: ["echo"] if text.startswith("Joy") else ["too short"]  # noqa: E731
    found = compare(unseen=judge(), broken=echo)
    assert found["grpo"]["unseen"]["wins"][0] == 0.0
    assert found["grpo"]["unseen"]["void"] == 8
    assert found["sft"]["unseen"]["void"] == 0  # that one is too short is no such fault


def test_a_win_by_length_alone_is_told_by_the_length_controlled_rate():
    rng = np.random.default_rng(0)
    requests = [Request(f"r{i}", f"toast {i}") for i in range(60)]
    text = lambda: "word " * int(rng.integers(5, 60))  # noqa: E731
    both = [
        Writer("sft", {r.id: [text()] for r in requests}),
        Writer("long", {r.id: [text() + "word " * 12] for r in requests}),
    ]
    by_length = SimpleNamespace(score=lambda q, a: np.array([float(len(x)) for x in a]), quality={"all": QUALITY})
    found = measure(both, requests, {}, by_length)["writers"][1]["unseen"]
    assert found["wins"][0] > 0.6
    assert found["length_controlled"][0] < found["wins"][0] - 0.05


def test_wins_are_told_by_language():
    requests = [REQUESTS[0], Request("z", "写给外公", language="zh")]
    both = [
        Writer("sft", {"r0": ["Plain."], "z": ["好!"]}),
        Writer("grpo", {"r0": ["Joy!"], "z": ["好"]}),
    ]
    found = measure(both, requests, {}, judge())["writers"][1]["unseen"]["by_language"]
    assert (found["en"][0], found["zh"][0]) == (1.0, 0.0)


def test_without_the_judge_its_columns_are_left_out():
    result = measure(writers(), REQUESTS, {}, None)
    assert result["judge"] is None
    assert all(w["unseen"] is None for w in result["writers"])


# ---- diversity, length, form


def test_diversity_is_the_distance_inside_a_request():
    found = compare()
    assert found["sft"]["diversity"]["mean"][0] == 1.0  # A… and B…
    assert found["grpo"]["diversity"]["mean"][0] == 0.0
    assert found["grpo"]["diversity"]["difference"] == [-1.0, -1.0, -1.0]


def test_one_answer_a_request_has_no_diversity():
    found = compare([Writer("sft", {r.id: ["Be well."] for r in REQUESTS})])
    assert found["sft"]["diversity"]["mean"] == [None, None, None]


def test_openings_are_compared_between_requests():
    found = compare()
    assert found["grpo"]["by_language"]["en"]["openings"][0] == 1.0
    assert found["sft"]["by_language"]["en"]["openings"][0] == 0.5  # of 2 × 2 pairs of answers two begin alike


def test_a_run_of_words_in_two_requests_answers_is_repetition():
    texts = ["a b c d e", "x b c d e", "p q r s t", "u v w y z"]
    found = compare([Writer("sft", {r.id: [t] for r, t in zip(REQUESTS, texts, strict=True)})])
    assert found["sft"]["by_language"]["en"]["repeats"][0] == pytest.approx(1 / 6, abs=1e-4)


def test_length_is_in_words_and_in_chinese_characters():
    requests = [REQUESTS[0], Request("z", "写给外公", language="zh")]
    found = measure([Writer("sft", {"r0": ["two words"], "z": ["福如东海。"]})], requests, {}, None)["writers"][0]
    assert found["by_language"]["en"]["length"][0] == 2
    assert found["by_language"]["zh"]["length"][0] == 5  # a full-width mark is read as one


def test_broken_form_is_counted_by_reason():
    broken = lambda text, request: ["too short", "echo"] if text.startswith("All") else []  # noqa: E731
    found = compare(broken=broken)
    assert found["sft"]["broken"]["share"][0] == 0.5
    assert found["sft"]["broken"]["reasons"] == {"too short": 4, "echo": 4}
    assert found["grpo"]["broken"]["reasons"] == {}


def test_what_it_took_and_the_telling_words_are_passed_on():
    found = compare(telling={"grpo": [{"gram": "joy"}]})
    assert (found["sft"]["seconds"], found["sft"]["calls"]) == (2.0, 1)
    assert found["grpo"]["telling"] == [{"gram": "joy"}]


def test_a_baseline_that_is_no_writer_is_refused():
    with pytest.raises(UserError, match="cannot compare"):
        measure(writers(), REQUESTS, {}, None, baseline="base")


def test_no_request_is_refused():
    with pytest.raises(UserError, match="no requests"):
        measure(writers(), [], {}, None)


def test_a_writer_without_any_answer_has_no_figures():
    one, _ = writers()
    found = compare([one, Writer("mute", {})], {"model": characters}, judge())["mute"]
    assert found["missing"] == 4
    assert found["unseen"]["wins"] == [None, None, None]


# ---- best of n


def test_the_best_of_each_n_is_picked():
    answers, scores = {"r": ["a", "b", "c", "d"]}, {"r": [1.0, 3.0, 2.0, None]}
    assert best_of(answers, scores, 2) == {"r": ["b", "c"]}
    assert best_of(answers, scores, 4) == {"r": ["b"]}


def test_where_nothing_was_scored_nothing_was_chosen():
    assert best_of({"r": ["a", "b"]}, {"r": [None, float("nan")]}, 2) == {"r": ["a"]}


def test_an_uneven_number_of_answers_is_refused():
    with pytest.raises(UserError, match="groups of 2"):
        best_of({"r": ["a", "b", "c"]}, {"r": [1, 2, 3]}, 2)


# ---- words and rows


def test_a_row_for_each_answer():
    rows = answer_rows(writers(), REQUESTS[:1])
    assert [(r["writer"], r["k"], r["text"]) for r in rows][:2] == [
        ("sft", 0, "All the best."),
        ("sft", 1, "Be well, friends."),
    ]
    assert len(rows) == 4


def test_a_reward_that_rose_without_the_judge_is_said():
    found = measure(writers(better="Be glad, my friends."), REQUESTS, {"model": characters}, judge())
    line = verdict_lines(found)[1]
    assert "model rose" in line
    assert "does not confirm" in line
    assert "less diverse" in line


def test_a_judge_that_is_no_better_than_a_coin_is_not_believed():
    coin = {**QUALITY, "accuracy": [0.52, 0.4, 0.64], "trusted": False}
    lines = verdict_lines(measure(writers(), REQUESTS, {}, judge(coin)))
    assert "no better than a coin" in lines[0]
    assert "not to be relied on" in lines[1]
