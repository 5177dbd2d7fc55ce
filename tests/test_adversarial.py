"""The adversarial loop with agents of known behaviour: what is learnt, what the gate refuses, what a kill costs."""

import json
import re

import pytest

from toolkit.engines.base import Choice
from toolkit.errors import EngineDown, UserError
from toolkit.feedback.adversarial import ROLES, train
from toolkit.feedback.principled import CONTENT_FREE
from toolkit.greeting.principles import MOST, Principles, load
from toolkit.greeting.prompts import lines
from toolkit.greeting.requests import FLAWS
from toolkit.recipe import PrinciplesSettings
from toolkit.records import Labelled, Request, read_jsonl

KINDS = ("mould", "rust", "dust", "moths")
START = {
    "detector": {"en": Principles(("Look closely.",), 1, "en", "Principles")},
    "generator": {"en": Principles(("Stay vague.",), 1, "en", "Ways")},
}
KNOWING = START | {"detector": {"en": Principles(tuple(f"Find {k}." for k in KINDS), 1, "en", "Principles")}}


def request(i: int) -> Request:
    return Request(f"q{i}", f"A card number {i}")


def labelled(i: int, side: str) -> Labelled:
    kind = KINDS[i % len(KINDS)]
    return Labelled(f"{side}{i}", f"{side} card {i}", f"{side} sun {i}", f"{side} {kind} {i}", kind)


REQUESTS = [request(i) for i in range(8)]
TRAIN = [labelled(i, "train") for i in range(4)]
GATE = [labelled(i, "gate") for i in range(8)]


class World:
    """All four agents. A greeting is flawed when it names one of KINDS; the detector finds only what its rules name, and
    everything when they say "all bad"; the reflector names the missing kind; the optimiser puts suggestions at the end.
    """

    name, family = "world", "double"

    def __init__(self, optimise=None, dies_at=0, nonsense=(), kinds=KINDS):
        self.optimise, self.dies_at, self.nonsense, self.kinds = optimise, dies_at, nonsense, kinds
        self.calls, self.asked = 0, []

    def _tick(self):
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt

    def choose(self, prompts, options, reason=0):
        self._tick()
        return [self._verdict(p[0]["content"]) for p in prompts]

    def _verdict(self, text):
        self.asked.append(text)
        rules, _, rest = text.partition("Somebody asked")
        greeting = re.search(r"<greeting>\n(.*)\n</greeting>", rest, re.DOTALL)[1]
        bad = "all bad" in rules or any(k in greeting and k in rules for k in self.kinds)
        return Choice((-4.0, -0.02) if bad else (-0.02, -4.0), "seen")

    def generate(self, prompts, n, sampling):
        self._tick()
        return [[self._answer(p[0]["content"])] for p in prompts]

    def _answer(self, text):
        self.asked.append(text)
        kind = next((k for k in self.kinds if k in text.split("Greeting:")[-1]), "")
        if "To train a judge" in text:
            role, number = "generator", int(re.search(r"number (\d+)", text)[1])
            kind = self.kinds[number % len(self.kinds)]
            value = {"greeting": f"Dear you, {kind} {number} is all I have to say today.", "hidden": f"there is {kind}"}
        elif "Explain the judge's error" in text:
            role, value = "reflector", {"explanation": "missed", "suggestion": f"Find {kind}."}
        elif "How could the writer" in text:
            role, value = "detector", {"suggestion": f"Hide it {len(text)} times."}
        else:
            role = "optimiser"
            old, new = text.split("\n\n")[:2]
            rules = re.findall(r"^\d+\. (.*)$", old, re.M) + re.findall(r"^- (.*)$", new, re.M)
            judging = "Good or Bad" in text
            value = {"rules": self.optimise(rules) if self.optimise and judging else rules[-MOST:]}
        return "I would rather not." if role in self.nonsense else json.dumps(value)

    def close(self):
        pass


def run(out, world=None, rounds=3, per_round=8, patience=2, **more):
    world = world or World()
    engines = dict.fromkeys(ROLES, world)
    settings = PrinciplesSettings(rounds=rounds, per_round=per_round, patience=patience)
    given = {"requests": REQUESTS, "labelled_train": TRAIN, "labelled_gate": GATE, "start": START, **more}
    return train(engines, settings=settings, out=out, seed=1, **given)


def history(out):
    return read_jsonl(out / "history.jsonl")


def untimed(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_the_detector_learns_the_planted_kinds_of_flaw(tmp_path):
    facts = run(tmp_path)
    assert facts["gate"]["start"]["accuracy"][0] == 0.5
    assert facts["gate"]["best"]["accuracy"][0] == 1.0
    learnt = load(tmp_path / "detector.en.md")
    assert all(kind in learnt.text for kind in KINDS)
    assert learnt.rules == tuple(facts["detector"]["rules"])
    assert learnt.version == 2


def test_the_history_tells_each_round(tmp_path):
    run(tmp_path)
    start, first, *_ = history(tmp_path)
    assert (start["round"], start["verdict"], start["accuracy"][0]) == (0, "start", 0.5)
    assert (first["verdict"], first["kept"], first["accuracy"][0]) == ("kept", True, 1.0)
    assert first["gain"][0] == 0.5
    assert first["accuracy"][1] < 1.0 <= first["accuracy"][2]
    assert "+Find " in first["diff"]
    assert first["generated"] == 8
    assert 4 <= first["passed_count"] <= 8  # of the first batch nothing is known
    assert first["calls"] > 8


def test_the_generator_learns_from_what_was_found(tmp_path):
    run(tmp_path, rounds=2)
    ways = load(tmp_path / "generator.en.md")
    assert any(rule.startswith("Hide it") for rule in ways.rules)
    assert ways.version > 1


def test_it_stops_when_nothing_is_gained(tmp_path):
    facts = run(tmp_path, rounds=9)
    assert facts["stopped"] == "no gain in 2 rounds"
    assert facts["rounds"] == 3
    assert [row["verdict"] for row in history(tmp_path)[2:]] == ["unchanged", "unchanged"]


def test_a_harmful_change_is_rejected_by_the_gate(tmp_path):
    better = START | {"detector": {"en": Principles(("Find mould.", "Find rust."), 5, "en", "Principles")}}
    facts = run(tmp_path, World(optimise=lambda rules: [*rules, "Call all bad."]), rounds=1, start=better)
    (row,) = history(tmp_path)[1:]
    assert (row["verdict"], row["kept"], row["accuracy"][0]) == ("rejected", False, 0.5)
    assert row["gain"][0] == -0.25
    assert "+Call all bad." in row["diff"]
    assert facts["gate"]["best"]["accuracy"][0] == 0.75
    kept = load(tmp_path / "detector.en.md")
    assert (kept.rules, kept.version) == (("Find mould.", "Find rust."), 5)


def test_dropped_rules_that_were_needed_are_rejected(tmp_path):
    better = START | {"detector": {"en": Principles(("Find mould.", "Find rust."), 1, "en", "Principles")}}
    facts = run(tmp_path, World(optimise=lambda rules: ["Be nice."]), rounds=1, start=better)
    assert (facts["kept"], facts["detector"]["rules"]) == (0, ["Find mould.", "Find rust."])


def test_an_agent_that_answers_nonsense_is_asked_again_and_counted(tmp_path):
    facts = run(tmp_path, World(nonsense=("reflector",)), rounds=1)
    assert facts["errors"] == {"reflector: no JSON in the answer": facts["errors"]["reflector: no JSON in the answer"]}
    assert facts["kept"] == 0
    assert facts["detector"]["rules"] == ["Look closely."]
    assert history(tmp_path)[1]["verdict"] == "unchanged"


@pytest.mark.parametrize("role", ["generator", "optimiser", "detector"])
def test_nonsense_of_any_agent_ends_in_a_count_not_in_a_rule(tmp_path, role):
    facts = run(tmp_path, World(nonsense=(role,)), rounds=2)
    if role != "detector" or facts["kept"]:  # its verdicts are no text; what it suggests is
        assert any(error.startswith(role) for error in facts["errors"])
    assert all("rather not" not in rule for k in ("detector", "generator") for rule in facts[k]["rules"])


def test_a_generator_that_writes_another_language_is_no_case(tmp_path):
    world = World(kinds=("一箱旧衣服里长出来的霉斑，洗也洗不掉，晒也晒不干，看着就叫人心烦意乱。",) * 4)
    facts = run(tmp_path, world, rounds=1)
    assert facts["generated"] == 0
    assert facts["passed"] == [None] * 3
    assert facts["dropped"]["generator: form, language"] == 8


def test_a_flawed_greeting_of_broken_form_is_no_case(tmp_path):
    facts = run(tmp_path, World(kinds=("[Name]",) * 4), rounds=1)
    assert facts["generated"] == 0
    assert facts["dropped"]["generator: form, placeholder"] == 8


def test_a_generator_that_repeats_its_instruction_is_no_case(tmp_path):
    told = "that a hasty reader would accept but that has a real flaw"
    facts = run(tmp_path, World(kinds=(told,) * 4), rounds=1)
    assert facts["generated"] == 0
    assert facts["dropped"]["generator: form, echo"] == 8


def test_every_kind_of_flaw_has_its_chinese_words():
    assert [line.split(": ")[0] for line in lines("flaws", "zh")] == list(FLAWS)


def test_too_many_rules_are_refused_and_the_list_never_exceeds_ten(tmp_path):
    facts = run(tmp_path, World(optimise=lambda rules: [f"{r} {i}" for r in rules for i in range(12)]), rounds=1)
    assert any(error.startswith("optimiser") for error in facts["errors"])
    assert facts["detector"]["rules"] == ["Look closely."]


def test_many_suggestions_are_merged_into_ten_at_most(tmp_path):
    kinds = tuple(f"kind{c}" for c in "abcdefghijklmnop")
    facts = run(tmp_path, World(kinds=kinds), requests=[request(i) for i in range(16)], per_round=16, rounds=3)
    assert facts["rounds"] == 3 or facts["stopped"].startswith("no gain")
    for row in history(tmp_path):
        assert len(row["detector_after"]) <= MOST
        assert len(row["generator_after"]) <= MOST


def test_a_useless_suggestion_is_dropped_and_counted(tmp_path):
    start = START | {"detector": {"en": Principles(("Find.",), 1, "en", "Principles")}}
    facts = run(tmp_path, World(kinds=("",)), rounds=1, start=start)  # "Find ." says what rule 1 says
    assert set(facts["dropped"]) <= {"detector: suggestion already there", "generator: suggestion already there"}
    assert facts["detector"]["rules"] == ["Find."]


def test_a_killed_run_ends_as_if_it_had_not_been_killed(tmp_path):
    world = World()
    facts = run(tmp_path / "whole", world, rounds=2)
    for dies_at in range(1, world.calls + 1, 4):
        out, again = tmp_path / str(dies_at), World()
        with pytest.raises(KeyboardInterrupt):
            run(out, World(dies_at=dies_at), rounds=2)
        resumed = run(out, again, rounds=2)
        assert {k: v for k, v in resumed.items() if k != "seconds"} == {
            k: v for k, v in facts.items() if k != "seconds"
        }
        assert untimed(history(out)) == untimed(history(tmp_path / "whole"))
        assert (out / "detector.en.md").read_text() == (tmp_path / "whole" / "detector.en.md").read_text()
        assert again.calls <= world.calls - dies_at + 1  # what stands is not asked again


def test_a_finished_run_asks_nothing_again(tmp_path):
    run(tmp_path)
    world = World()
    run(tmp_path, world)
    assert world.calls == 0


def test_an_engine_that_is_gone_is_raised(tmp_path):
    class Gone(World):
        def choose(self, *_):
            raise EngineDown("gone")

    with pytest.raises(EngineDown):
        run(tmp_path, Gone())


def test_without_a_verdict_nothing_is_learnt(tmp_path):
    class Slow(World):
        def choose(self, *_):
            raise TimeoutError

    facts = run(tmp_path, Slow(), rounds=1)
    assert facts["gate"]["start"]["unanswered"] == 2 * len(GATE)
    assert facts["gate"]["start"]["accuracy"][0] == 0.0
    assert (facts["generated"], facts["kept"]) == (0, 0)
    assert facts["errors"]["detector: timed out"] > 0


def test_a_lean_that_hides_every_verdict_is_taken_off(tmp_path):
    class Kind(World):
        def _verdict(self, text):
            found = super()._verdict(text).logps
            empty = any(f"<greeting>\n{t}\n</greeting>" in text for t in CONTENT_FREE)
            return Choice((0.0, -5.0) if empty else (found[0] / 2, found[1] / 2 - 5))  # says Good to everything

    facts = run(tmp_path, Kind(), rounds=0, start=KNOWING)
    assert (facts["calibrated"], facts["shift"]) == (True, 5.0)
    assert facts["gate"]["best"]["accuracy"][0] == 1.0


def test_a_judge_that_is_right_is_left_as_it_is(tmp_path):
    facts = run(tmp_path, rounds=0, start=KNOWING)  # it calls an empty greeting Good, and taking that off would harm
    assert (facts["calibrated"], facts["shift"]) == (False, 0.0)
    assert facts["gate"]["best"]["accuracy"][0] == 1.0


def test_no_rounds_measure_the_principles_as_they_are(tmp_path):
    facts = run(tmp_path, rounds=0)
    assert (facts["rounds"], facts["detector"]["version"]) == (0, 1)
    assert load(tmp_path / "detector.en.md").rules == ("Look closely.",)


def test_no_rounds_need_no_gate(tmp_path):
    facts = run(tmp_path, rounds=0, labelled_gate=[])
    assert facts["gate"]["pairs"] == 0
    assert facts["calls"] == 0


def test_a_gate_that_the_agents_would_see_is_refused(tmp_path):
    with pytest.raises(UserError, match="train1"):
        run(tmp_path, labelled_gate=[*GATE, TRAIN[1]])


def test_rounds_without_a_gate_are_refused(tmp_path):
    with pytest.raises(UserError, match="no held-out"):
        run(tmp_path, labelled_gate=[])


def test_two_languages_at_once_are_refused(tmp_path):
    with pytest.raises(UserError, match="one language"):
        run(tmp_path, requests=[*REQUESTS, Request("z", "贺寿", language="zh")])


def test_the_gate_is_shown_to_no_agent_but_the_detector(tmp_path):
    world = World()
    run(tmp_path, world)
    others = [text for text in world.asked if "is this greeting Good or Bad?" not in text]
    assert others
    assert not any("gate" in text for text in others)


def test_the_chart_shows_each_round(tmp_path):
    from toolkit.evaluate.rounds_chart import chart

    run(tmp_path, rounds=2)
    rows = history(tmp_path)
    rejected = {**rows[1], "round": 3, "verdict": "rejected", "kept": False, "accuracy": [0.4, 0.2, 0.6]}
    svg = chart([*rows, rejected, {"round": 4, "verdict": "unchanged", "kept": False, "passed": [None] * 3}])
    assert svg.startswith("<svg role=")
    for label in ("S_D kept: accuracy", "S_D tried and rejected", "S_D unchanged", "S_G: flawed ones that passed"):
        assert svg.count(label) == 1
    assert chart(rows) == chart(rows)


def test_the_chart_of_an_unmeasured_start_is_drawn():
    from toolkit.evaluate.rounds_chart import chart

    assert "<svg" in chart([{"round": 0, "verdict": "start", "kept": True}])


@pytest.mark.slow
def test_a_real_engine_killed_and_resumed_ends_alike(tmp_path, tiny_gguf):
    from toolkit.engines.load import load_engine

    engine = load_engine(tiny_gguf)
    whole = run(tmp_path / "whole", engine, rounds=1, per_round=4, labelled_gate=GATE[:2])
    assert whole["gate"]["best"]["unanswered"] == 0
    assert whole["calls"] >= 4 + 8 + 4  # two measures of two pairs, eight verdicts, four greetings at least

    class Dying:
        name, family, close, tokenize = engine.name, engine.family, engine.close, engine.tokenize
        choose, left = engine.choose, 1

        def generate(self, *args):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return engine.generate(*args)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Dying(), rounds=1, per_round=4, labelled_gate=GATE[:2])
    resumed = run(tmp_path / "killed", engine, rounds=1, per_round=4, labelled_gate=GATE[:2])
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
    assert untimed(history(tmp_path / "killed")) == untimed(history(tmp_path / "whole"))
    engine.close()
