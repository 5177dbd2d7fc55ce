"""Rejection sampling: who is asked what, what overturns a verdict, agents that fail, and what a kill leaves."""

import dataclasses
import json
import threading

import pytest

from toolkit.engines.base import Messages
from toolkit.errors import EngineDown, UserError
from toolkit.feedback.rejection import Agents, check_agents, sample, unsupported
from toolkit.feedback.retrieval import Examples
from toolkit.feedback.verdicts import Sampled, curated_pairs, read_records, show_record, to_pairs
from toolkit.greeting.form import LENGTHS, length_of
from toolkit.greeting.writing import greet_prompt
from toolkit.recipe import RejectionSettings
from toolkit.records import Labelled, Request, read_jsonl

ZH = [
    Request(f"zh-{i}", t, length="short", language="zh")
    for i, t in enumerate(["外公七十大寿，他爱下棋", "同事乔迁新居，她养了三盆兰花"])
]
EN = [
    Request(f"en-{i}", t, length="short")
    for i, t in enumerate(
        [
            "birthday of my neighbour who mends old radios",
            "exam luck for Ada",
            "new job for Tom",
            "farewell, Mr Lee",
            "x y",
        ]
    )
]
GOOD = "Happy birthday to you, and may every old radio on your bench sing again this year."
FLAT = "Happy birthday to you, and may you have a wonderful day and a very nice year."
ZH_GOOD = "外公，七十大寿快乐，愿您棋盘上步步从容。"
ZH_FLAT = "祝您生日快乐，身体健康，万事如意，天天开心。"
NAMES = dict.fromkeys(("writer", "positive", "negative", "judge", "reflector"), "actor")
ROLES = {
    "You are the advocate": "positive",
    "You are the opponent": "negative",
    "You are the judge": "judge",
    "You review": "reflector",
    "你是正方": "positive",
    "你是反方": "negative",
    "你是评委": "judge",
    "请你复核": "reflector",
}


def role_of(messages: Messages) -> str:
    return next((role for mark, role in ROLES.items() if mark in messages[-1]["content"]), "writer")


class Actor:
    """Plays every role. Writes `drafts` in turn; the judge accepts what holds the word radio or 棋; `says` replaces a
    role's answer (a text, or a function of the question). Remembers what it was asked, role by role."""

    family = ""

    def __init__(self, drafts=(GOOD, FLAT), name="actor", **says):
        self.drafts, self.name, self.says = drafts, name, says
        self.asked: dict[str, list[str]] = {role: [] for role in (*ROLES.values(), "writer")}
        self.samplings = []

    def generate(self, prompts, n, sampling):
        self.samplings.append(sampling)
        return [[self._one(m, k) for k in range(n)] for m in prompts]

    def _one(self, messages, k):
        role, text = role_of(messages), messages[-1]["content"]
        self.asked[role].append(text)
        if role in self.says:
            said = self.says[role]
            said = said(text) if callable(said) else said
            if isinstance(said, Exception):
                raise said
            return said
        if role == "writer":
            drafts = self.drafts(text) if callable(self.drafts) else self.drafts
            return drafts[k % len(drafts)]
        if role in ("positive", "negative"):
            return json.dumps({"points": [f"a {role} point"]})
        greeting = text.split("<greeting>")[1].split("</greeting>")[0]
        good = int("radio" in greeting or "棋" in greeting)
        if role == "judge":
            return json.dumps({"reason": "as it seems", "verdict": good})
        return json.dumps({"quote": "", "cause": "nothing speaks against it", "verdict": good})

    def close(self):
        pass


def settings(**more) -> RejectionSettings:
    return RejectionSettings(**({"per_request": 2} | more))


def run(actor, tmp_path, requests=EN[:1], examples=None, **more):
    tmp_path.mkdir(exist_ok=True)
    agents = actor if isinstance(actor, Agents) else Agents(actor, actor, actor, actor, actor)
    facts = sample(agents, requests, examples, settings(**more), tmp_path, 1, NAMES)
    return facts, read_records(tmp_path / "records.jsonl")


def test_the_road_ends_in_verdicts_with_reasons(tmp_path):
    facts, (good, flat) = run(Actor(), tmp_path)
    assert (good.final, flat.final) == (1, 0)
    assert (good.reason, good.merits, good.faults) == ("as it seems", ("a positive point",), ("a negative point",))
    assert (facts["asked"], facts["judged"], facts["accepted"], facts["acceptance"][0]) == (2, 2, 1, 0.5)


def test_the_writer_gets_the_very_messages_of_training_at_its_temperatures(tmp_path):
    actor = Actor()
    _, records = run(actor, tmp_path, temperatures=(0.5, 0.9))
    assert set(actor.asked["writer"]) == {greet_prompt(EN[0])[0]["content"]}
    assert [s.temperature for s in actor.samplings[0]] == [0.5, 0.9]
    assert [r.sampling["temperature"] for r in records] == [0.5, 0.9]


def test_chinese_answers_are_debated_in_chinese(tmp_path):
    actor = Actor((ZH_GOOD, ZH_FLAT))
    _, records = run(actor, tmp_path, ZH[:1])
    assert [r.final for r in records] == [1, 0]
    assert all("祝福语" in q for q in actor.asked["judge"])


def test_calls_and_tokens_are_counted_by_role(tmp_path):
    facts, _ = run(Actor(), tmp_path)
    assert facts["calls"] == {"writer": 2, "positive": 2, "negative": 2, "judge": 2, "reflector": 2}
    assert all(count > 0 for count in facts["tokens"].values())


def test_the_judge_sees_similar_good_greetings_and_the_record_names_them(tmp_path):
    labelled = [Labelled("e1", "birthday of my uncle who builds radios", "May your radios hum.", "Have a nice day.")]
    actor = Actor()
    _, records = run(actor, tmp_path, examples=Examples(labelled, "ngrams"))
    assert all("May your radios hum." in q and "Have a nice day." not in q for q in actor.asked["judge"])
    assert records[0].examples == ("e1",)


def test_one_engine_is_asked_for_both_lists_in_one_call(tmp_path):
    actor = Actor()
    run(actor, tmp_path)
    assert len(actor.samplings) == 4  # writer, both lists, judge, reflector


def test_two_engines_list_side_by_side(tmp_path):
    meet = threading.Barrier(2, timeout=20)  # broken unless both are in it at once

    class Meets(Actor):
        def generate(self, prompts, n, sampling):
            meet.wait()
            return super().generate(prompts, n, sampling)

    other = Actor()
    _, records = run(Agents(other, Meets(), Meets(), other, other), tmp_path)
    assert [r.final for r in records] == [1, 0]


# ---- form


def test_broken_form_is_judged_without_asking_and_counted_apart(tmp_path):
    actor = Actor(("Dear [Name], happy birthday to you and all the best for the coming year.", "", GOOD))
    facts, records = run(actor, tmp_path, per_request=3)
    assert [(r.final, r.broken) for r in records] == [(0, ("placeholder",)), (0, ("empty",)), (1, ())]
    assert records[0].reason == "form: placeholder"
    assert (facts["broken"], facts["form"], facts["judged"]) == (2, {"placeholder": 1, "empty": 1}, 1)
    assert len(actor.asked["judge"]) == 1


def test_the_same_words_twice_are_judged_once(tmp_path):
    actor = Actor((GOOD, GOOD.upper()))
    facts, records = run(actor, tmp_path)
    assert [r.final for r in records] == [1, None]
    assert facts["no_verdict"] == {"the same words as another answer": 1}
    assert len(actor.asked["judge"]) == 1


# ---- the reflection agent


def reflects(quote, verdict=0):
    return json.dumps({"quote": quote, "cause": "the radio is not old", "verdict": verdict})


def test_a_verdict_is_overturned_by_a_quote_that_stands(tmp_path):
    facts, (record,) = run(Actor((GOOD,), reflector=reflects("every OLD radio")), tmp_path, per_request=1)
    assert (record.verdict, record.reflected, record.final, record.overturned) == (1, 0, 0, True)
    assert record.cause == "the radio is not old"
    assert (facts["overturned"], facts["overturn"][0], facts["accepted"]) == (1, 1.0, 0)


@pytest.mark.parametrize(
    ("quote", "why"),
    [
        ("", "nothing quoted"),
        ("every new radio", "the quote stands neither in the greeting nor in the request"),
        ("old radio", "the quote is too short to show anything"),
        ("very old radi", "the quote stands neither in the greeting nor in the request"),
    ],
)
def test_without_such_a_quote_the_verdict_stands_and_the_record_says_so(tmp_path, quote, why):
    facts, (record,) = run(Actor((GOOD,), reflector=reflects(quote)), tmp_path, per_request=1)
    assert (record.final, record.overturned, record.reflected) == (1, False, 0)
    assert record.cause == f"not overturned, {why}: the radio is not old"
    assert (facts["overturned"], facts["overturn_refused"]) == (0, 1)


def test_the_request_may_be_quoted_as_well():
    assert unsupported("mends old radios", GOOD, EN[0].text) == ""


def test_chinese_is_quoted_in_characters_whatever_the_script():
    assert unsupported("棋盤上步步", ZH_GOOD) == ""
    assert unsupported("棋盘", ZH_GOOD) == "the quote is too short to show anything"


def test_a_reflector_that_cannot_be_read_changes_nothing_and_is_counted(tmp_path):
    facts, records = run(Actor(reflector="hm"), tmp_path)
    assert [r.final for r in records] == [1, 0]
    assert {r.error for r in records} == {"reflector: no JSON in the answer"}
    assert (facts["unreflected"], facts["calls"]["reflector"]) == (2, 4)


# ---- agents that fail


@pytest.mark.parametrize(
    ("role", "said", "why"),
    [
        ("judge", "I love it!", "judge: no JSON in the answer"),
        ("judge", '{"reason":"fine","verdict":7}', "judge: 'verdict' is none of 0, 1"),
        ("judge", '{"reason":"","verdict":1}', "judge: 'reason' is empty"),
        ("judge", TimeoutError(), "judge: timed out"),
        ("judge", UserError("the text is too long"), "judge: the text is too long"),
        ("positive", '{"points":"all"}', "positive: 'points' is no array"),
        ("negative", '{"points":["cut', "negative: broken JSON, or cut short"),
        ("negative", TimeoutError(), "negative: timed out"),
        ("writer", TimeoutError(), "writer: timed out"),
    ],
)
def test_an_agent_that_fails_gives_a_record_that_says_so_after_bounded_tries(tmp_path, role, said, why):
    actor = Actor(**{role: said})
    facts, records = run(actor, tmp_path, tries=3)
    assert {(r.final, r.error) for r in records} == {(None, why)}
    assert (facts["judged"], facts["accepted"], facts["acceptance"], facts["no_verdict"]) == (
        0,
        0,
        [None] * 3,
        {why: 2},
    )
    assert facts["calls"][role] == (2 if role == "writer" else 6)
    assert to_pairs(records, settings())[0] == []


def test_an_agent_that_never_accepts_leaves_clear_counts_and_no_pair(tmp_path):
    facts, records = run(Actor(judge='{"reason":"not good enough","verdict":0}', reflector=reflects("")), tmp_path)
    assert (facts["judged"], facts["accepted"], facts["acceptance"][0]) == (2, 0, 0.0)
    pairs, counts = to_pairs(records, settings())
    assert (pairs, counts["without_accepted"], counts["with_both"]) == ([], 1, 0)


def test_one_request_that_fails_takes_no_other_along(tmp_path):
    picky = Actor(lambda q: (GOOD, FLAT), writer=lambda q: UserError("too long") if "Ada" in q else GOOD)
    _, records = run(picky, tmp_path, EN[:3], per_request=1)
    assert [r.error for r in records] == ["", "writer: too long", ""]


# ---- a kill


def test_a_kill_goes_on_without_asking_again_what_stands(tmp_path):
    whole, _ = run(Actor(), tmp_path / "whole", EN)
    dies = Actor(judge=lambda q: EngineDown("gone") if "x y" in q else '{"reason":"fine","verdict":1}')
    with pytest.raises(EngineDown):
        run(dies, tmp_path / "cut", EN)
    assert {r["request_id"] for r in read_jsonl(tmp_path / "cut" / "records.jsonl")} == {r.id for r in EN[:4]}
    again = Actor()
    facts, records = run(again, tmp_path / "cut", EN)
    assert len(again.asked["writer"]) == 2
    assert facts["asked"] == whole["asked"]
    assert len({r.id for r in records}) == 10


def test_after_a_kill_the_records_are_those_of_an_uninterrupted_run(tmp_path):
    run(Actor(), tmp_path / "whole", EN)
    lines = (tmp_path / "whole" / "records.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "records.jsonl").write_text("".join(lines[:9]) + lines[9][:40])  # the last unit is torn
    run(Actor(), tmp_path / "cut", EN)
    a, b = (read_records(tmp_path / name / "records.jsonl") for name in ("whole", "cut"))
    still = lambda rows: [dataclasses.replace(r, seconds=0) for r in rows]  # noqa: E731
    assert still(a) == still(b)


def test_looking_at_a_run_under_way_leaves_its_file_alone(tmp_path):
    run(Actor(), tmp_path)
    path = tmp_path / "records.jsonl"
    path.write_text(path.read_text() + '{"id": "half')
    before = path.read_bytes()
    assert len(read_records(path)) == 2
    assert path.read_bytes() == before


def test_languages_are_asked_apart_in_units_of_their_own(tmp_path):
    actor = Actor(lambda q: (ZH_GOOD, ZH_FLAT) if "祝福语" in q else (GOOD, FLAT))
    _, records = run(actor, tmp_path, [ZH[0], EN[0], ZH[1]])
    assert [r.request_id for r in records] == ["en-0", "en-0", "zh-0", "zh-0", "zh-1", "zh-1"]


# ---- pairs


def said(request: str, k: int, words: int, final: int | None, word: str = "", **more) -> Sampled:
    """An answer of so many different words."""
    text = " ".join(f"{word or f'w{request}{k}'}{i}" for i in range(words)) + "."
    return Sampled(f"{request}-{k}", request, f"request {request}", text, length="short", verdict=final, **more)


def test_pairs_are_accepted_against_rejected_of_one_request():
    records = [said("a", 0, 10, 1), said("a", 1, 10, 0), said("b", 0, 10, 1), said("c", 0, 10, 0)]
    (pair,), counts = to_pairs(records, settings())
    assert (pair.premise_id, pair.chosen_id, pair.rejected_id) == ("a", "a-0", "a-1")
    assert pair.prompt == greet_prompt(Request("a", "request a", length="short"))[0]["content"]
    assert (counts["with_both"], counts["without_rejected"], counts["without_accepted"]) == (1, 1, 1)


def test_what_has_no_verdict_makes_no_pair():
    assert to_pairs([said("a", 0, 10, 1), said("a", 1, 10, None, error="judge: timed out")], settings())[0] == []


def test_an_overturned_verdict_is_the_one_that_counts():
    records = [said("a", 0, 10, 1), said("a", 1, 10, 1, reflected=0, overturned=True)]
    assert to_pairs(records, settings())[0][0].rejected_id == "a-1"


def test_pairs_of_unlike_length_or_of_the_same_words_are_left_out():
    records = [said("a", 0, 10, 1), said("a", 1, 16, 0), said("b", 0, 10, 1, "x"), said("b", 1, 11, 0, "x")]
    pairs, counts = to_pairs(records, settings())
    assert pairs == []
    assert (counts["dropped"]["length"], counts["dropped"]["duplicate"]) == (1, 1)


def test_over_the_whole_set_the_chosen_is_longer_as_often_as_shorter():
    records = []
    for i, (good, bad) in enumerate([(12, 10), (14, 10), (11, 10), (10, 12), (10, 10)]):
        records += [said(f"r{i}", 0, good, 1), said(f"r{i}", 1, bad, 0)]
    pairs, counts = to_pairs(records, settings())
    assert (counts["chosen_longer"], counts["chosen_shorter"], counts["equal"]) == (1, 1, 1)
    assert counts["before_balance"] == {"chosen_longer": 3, "chosen_shorter": 1}
    assert [p.premise_id for p in pairs] == ["r2", "r3", "r4"]  # the largest differences went


def test_a_request_gives_pairs_of_both_directions_where_it_can():
    records = [said("a", 0, 11, 1), said("a", 1, 10, 0), said("a", 2, 12, 0)]
    pairs, counts = to_pairs(records, settings(pairs=2))
    assert (len(pairs), counts["chosen_longer"], counts["chosen_shorter"]) == (2, 1, 1)


def test_no_request_gives_more_than_its_pairs():
    records = [*(said("a", k, 10, 1) for k in range(3)), *(said("a", k, 10, 0) for k in range(3, 6))]
    pairs, counts = to_pairs(records, settings(pairs=2))
    assert (len(pairs), counts["dropped"]["surplus"]) == (2, 7)
    assert len({p.chosen_id for p in pairs}) == 2


def test_a_fault_of_content_goes_before_one_of_form():
    records = [said("a", 0, 10, 1), said("a", 1, 10, 0, broken=("list",)), said("a", 2, 10, 0)]
    assert to_pairs(records, settings(pairs=1))[0][0].rejected_id == "a-2"


def test_curated_greetings_are_pairs_under_the_requests_own_prompt():
    labelled = [Labelled("en-0", EN[0].text, GOOD, FLAT, "generic")]
    (pair,) = curated_pairs(labelled, EN)
    assert (pair.prompt, pair.chosen, pair.rejected) == (greet_prompt(EN[0])[0]["content"], GOOD, FLAT)
    low, high = LENGTHS["short"]["en"]
    assert f"{low} to {high} words" in pair.prompt
    assert low <= length_of(GOOD, "en") <= high


# ---- reading


def test_a_record_reads_as_a_debate(tmp_path):
    _, (record, _) = run(Actor(reflector=reflects("every old radio")), tmp_path)
    shown = show_record(record)
    for part in (
        EN[0].text,
        GOOD,
        "a positive point",
        "1: as it seems",
        "0, overturns it",
        "“every old radio”",
        "rejected;",
    ):
        assert part in shown


def test_a_record_without_a_verdict_says_why():
    assert "no verdict" in (shown := show_record(said("a", 0, 9, None, error="judge: timed out")))
    assert "judge: timed out" in shown


# ---- real models


def test_transformers_engines_that_play_both_sides_are_repeatable(tiny, tmp_path):
    from toolkit.engines.hf import TransformersEngine
    from toolkit.models.load import load_model, load_tokenizer
    from toolkit.models.resolve import resolve

    model = resolve(str(tiny))
    one, two = (TransformersEngine(load_model(model), load_tokenizer(model)) for _ in range(2))
    actor = Actor((GOOD, GOOD + " Hooray!"))
    rows = []
    for name in ("a", "b"):
        agents = Agents(actor, one, two, actor, actor)
        _, records = run(agents, tmp_path / name, words=16, tries=2)
        rows.append([dataclasses.replace(r, seconds=0) for r in records])
    assert rows[0] == rows[1]
    assert all(r.final is not None or r.error for r in rows[0])


@pytest.mark.slow
def test_the_embedded_model_plays_every_role(tmp_path):
    from toolkit.engines.load import load_engine

    engine = load_engine("embedded")
    facts, records = run(engine, tmp_path, EN[1:2], words=32)
    engine.close()
    assert facts["asked"] == facts["broken"] + facts["judged"] + sum(facts["no_verdict"].values())
    assert all(r.final in (0, 1) or r.error for r in records)


# ---- the agents' own test

KNOWN = [Labelled(f"k{i}", f"birthday of neighbour {i}", f"{GOOD} {i}.", f"{FLAT} {i}.") for i in range(4)]


def checked(tmp_path, actor, **more) -> dict:
    settings = RejectionSettings(words=32, examples=0, **more)
    return check_agents(Agents(actor, actor, actor, actor, actor), KNOWN, None, settings, tmp_path, 1)


def test_agents_that_know_good_from_flawed_pass_their_test(tmp_path):
    found = checked(tmp_path, Actor())
    assert found["accuracy"][0] == 1
    assert found["pairs"] == 4


def test_agents_that_accept_everything_are_right_half_the_time(tmp_path):
    found = checked(tmp_path, Actor(judge=json.dumps({"reason": "fine", "verdict": 1})))
    assert found["accuracy"][0] == 0.5
    assert (found["good_accepted"], found["bad_rejected"]) == (1, 0)


def test_an_agent_that_cannot_be_read_is_wrong_in_its_test(tmp_path):
    assert checked(tmp_path, Actor(judge="no json"))["accuracy"][0] == 0


def test_a_test_that_stands_is_not_asked_again(tmp_path):
    before, actor = checked(tmp_path, Actor()), Actor()
    assert checked(tmp_path, actor) == before
    assert not actor.asked["judge"]


def test_no_labelled_pair_to_hear_is_no_figure(tmp_path):
    assert checked(tmp_path, Actor(), check=0) == {}
