"""Asking agents for JSON: bounded tries, checked answers, an error where there is none."""

import json

import pytest

from toolkit.errors import EngineDown, UserError
from toolkit.greeting.asking import ask_json, read

SCHEMA = {
    "type": "object",
    "properties": {
        "good": {"type": "integer", "enum": [0, 1]},
        "list": {"type": "array", "items": {"type": "string", "minLength": 2}, "maxItems": 2},
    },
    "required": ["good"],
}


class Says:
    """Gives the answers of a script, one list a call; an exception in it is raised. Remembers how it was asked."""

    name, family = "says", ""

    def __init__(self, *script):
        self.script, self.calls = list(script), []

    def generate(self, prompts, n, sampling):
        self.calls.append((len(prompts), sampling))
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, Exception):
            raise answer
        return [[a] for a in ([answer] * len(prompts) if isinstance(answer, str) else answer)]


def ask(engine, count=1, **more):
    messages = [[{"role": "user", "content": f"q{i}"}] for i in range(count)]
    return ask_json(engine, messages, SCHEMA, **({"words": 50, "tries": 3, "seed": 1} | more))


def test_a_good_answer_is_taken_at_once():
    engine = Says('{"good":1}')
    (asked,) = ask(engine)
    assert (asked.value, asked.error, asked.calls, len(engine.calls)) == ({"good": 1}, "", 1, 1)


def test_the_schema_and_the_length_reach_the_engine():
    engine = Says('{"good":1}')
    ask(engine, temperature=0.3)
    sampling = engine.calls[0][1]
    assert (json.loads(sampling.schema), sampling.max_tokens, sampling.temperature) == (SCHEMA, 50, 0.3)


def test_only_what_failed_is_asked_again_with_another_seed():
    engine = Says(['{"good":1}', "nonsense", '{"good":0}'], ['{"good":0}'])
    asked = ask(engine, 3)
    assert [a.value["good"] for a in asked] == [1, 0, 0]
    assert [a.calls for a in asked] == [1, 2, 1]
    assert [size for size, _ in engine.calls] == [3, 1]
    assert engine.calls[0][1].seed != engine.calls[1][1].seed


def test_tries_are_bounded_and_nothing_is_made_up():
    engine = Says("I like it")
    (asked,) = ask(engine)
    assert (asked.value, asked.error, asked.raw, asked.calls) == (None, "no JSON in the answer", "I like it", 3)
    assert asked.tokens_out > 0


def test_a_greedy_second_try_is_drawn_warmer():
    engine = Says("no", '{"good":1}')
    ask(engine, temperature=0)
    assert [s.temperature for _, s in engine.calls] == [0, 0.5]


def test_a_timeout_is_the_questions_error():
    (asked,) = ask(Says(TimeoutError()))
    assert (asked.value, asked.error, asked.calls) == (None, "timed out", 3)


def test_one_bad_question_spoils_no_other():
    class Picky(Says):
        def generate(self, prompts, n, sampling):
            if any(m[0]["content"] == "q1" for m in prompts):
                raise UserError("the text is too long")
            return super().generate(prompts, n, sampling)

    asked = ask(Picky('{"good":1}'), 3)
    assert [a.error for a in asked] == ["", "the text is too long", ""]


def test_an_engine_that_is_gone_is_raised():
    with pytest.raises(EngineDown):
        ask(Says(EngineDown("gone")), 2)


def test_what_the_caller_does_not_accept_is_asked_again():
    engine = Says('{"good":0}', '{"good":1}')
    (asked,) = ask(engine, accept=lambda v: "" if v["good"] else "not good")
    assert (asked.value, asked.calls) == ({"good": 1}, 2)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "an empty answer"),
        ('{"good":', "broken JSON, or cut short"),
        ('{"good":1', "broken JSON, or cut short"),
        ("[1]", "no JSON in the answer"),
        ('{"bad":1}', "the answer has no 'good'"),
        ('{"good":2}', "'good' is none of 0, 1"),
        ('{"good":"1"}', "'good' is no integer"),
        ('{"good":true}', "'good' is no integer"),
        ('{"good":1,"list":"x"}', "'list' is no array"),
        ('{"good":1,"list":["ab","cd","ef"]}', "'list' is too long"),
        ('{"good":1,"list":["a"]}', "an item of 'list' is too short"),
        ('{"good":1,"list":["  "]}', "an item of 'list' is empty"),
    ],
)
def test_an_answer_against_the_schema_is_told(text, why):
    assert read(text, SCHEMA) == (None, why)


def test_words_around_the_object_do_no_harm():
    assert read('Sure!\n```json\n{"good": 1, "more": 2}\n```', SCHEMA)[0] == {"good": 1, "more": 2}
