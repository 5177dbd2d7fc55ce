"""Answers under a JSON schema, on both local engines: whatever the model would say, the answer parses and conforms."""

import json

import numpy as np
import pytest

from toolkit.engines.base import Sampling
from toolkit.engines.llama import LlamaEngine
from toolkit.engines.load import load_engine
from toolkit.engines.schema import Mask, read_schema
from toolkit.errors import UserError
from toolkit.narrative.writing import write_prompt

PROMPTS = [write_prompt("A ferryman refuses one passenger."), write_prompt("守钟人发现钟声能让人忘记。")]
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "why": {"type": "string", "maxLength": 30},
            "verdict": {"enum": ["good", "bad", "平"]},
            "score": {"type": "integer", "minimum": 1, "maximum": 10},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
        },
        "required": ["why", "verdict", "score", "tags"],
    }
)


def draw(**more) -> Sampling:
    return Sampling(**{"temperature": 1.5, "min_p": 0.0, "max_tokens": 200, "seed": 5, "schema": SCHEMA, **more})


def conforms(text: str) -> bool:
    answer = json.loads(text)
    return (
        list(answer) == ["why", "verdict", "score", "tags"]
        and len(answer["why"]) <= 30
        and answer["verdict"] in ("good", "bad", "平")
        and 1 <= answer["score"] <= 10
        and len(answer["tags"]) <= 2
        and all(len(tag) <= 5 for tag in answer["tags"])
    )


@pytest.fixture(scope="module", params=["llama.cpp", "transformers"])
def engine(request, tiny, tiny_gguf):
    engine = load_engine(tiny_gguf if request.param == "llama.cpp" else tiny)
    yield engine
    engine.close()


def test_a_babbling_model_conforms_at_any_temperature(engine):
    for answers in engine.generate(PROMPTS, 4, [draw(), draw(temperature=5), draw(temperature=0), draw(min_p=0.2)]):
        assert all(conforms(text) for text in answers), answers


def test_the_answer_is_compact(engine):
    text = engine.generate(PROMPTS[:1], 1, draw())[0][0]
    assert text == json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))


def test_the_same_call_gives_the_same_answer(engine):
    assert engine.generate(PROMPTS, 2, draw()) == engine.generate(PROMPTS, 2, draw())


def test_answers_with_and_without_a_schema_do_not_disturb_each_other(engine):
    free = Sampling(temperature=1.0, max_tokens=24, seed=5)
    alone = engine.generate(PROMPTS, 2, [free, free])
    mixed = engine.generate(PROMPTS, 2, [draw(max_tokens=24), free])
    # the free answer shares its prompt, its first row of logits and its batches with one that is kept to a schema
    assert [texts[1][:8] for texts in mixed] == [texts[1][:8] for texts in alone]
    assert all(texts[0].startswith('{"why":"') for texts in mixed)


def test_an_answer_out_of_tokens_is_cut_and_no_json(engine):
    text = engine.generate(PROMPTS[:1], 1, draw(max_tokens=4))[0][0]
    with pytest.raises(ValueError, match=r"line 1"):
        json.loads(text)


def test_a_schema_nobody_can_read_is_refused(engine):
    for schema in ("not json", "[1]", '{"type": "no such type"}'):
        with pytest.raises(UserError, match="schema"):
            engine.generate(PROMPTS[:1], 1, draw(schema=schema))


def test_objects_take_no_other_keys_unless_they_say_so():
    schema = read_schema(
        '{"properties": {"properties": {"properties": {"a": {}}}, "b": {"additionalProperties": true}}}'
    )
    assert schema["additionalProperties"] is False
    assert schema["properties"]["properties"]["additionalProperties"] is False
    assert schema["properties"]["b"] == {"additionalProperties": True}
    assert set(schema["properties"]) == {"properties", "b"}


def test_padding_beyond_the_vocabulary_is_hidden(tiny):
    from llguidance.hf import from_tokenizer

    from toolkit.models.load import load_tokenizer
    from toolkit.models.resolve import resolve

    tokenizer = load_tokenizer(resolve(str(tiny)))
    mask = Mask(from_tokenizer(tokenizer), SCHEMA)
    hidden = mask.hidden(len(tokenizer) + 100)
    assert hidden[len(tokenizer) :].all()
    assert not hidden.all()
    np.testing.assert_array_equal(hidden[: len(tokenizer)], mask.hidden(len(tokenizer)))


def test_only_the_end_is_left_after_the_last_brace(tiny):
    from llguidance.hf import from_tokenizer

    from toolkit.models.load import load_tokenizer
    from toolkit.models.resolve import resolve

    tokenizer = load_tokenizer(resolve(str(tiny)))
    mask = Mask(from_tokenizer(tokenizer), '{"type": "object", "properties": {}}')
    for token in tokenizer("{}")["input_ids"]:
        mask.took(token)
    assert np.flatnonzero(~mask.hidden(len(tokenizer))).tolist() == [tokenizer.eos_token_id]


@pytest.mark.slow
def test_the_embedded_model_answers_a_small_schema_sensibly():
    engine = load_engine("embedded")
    schema = {"properties": {"animal": {"enum": ["ship", "cat", "tree"]}, "name": {"type": "string"}}, "type": "object"}
    schema["required"] = ["animal", "name"]
    ask = [{"role": "user", "content": "Moritz is a cat. Give the animal and its name as JSON."}]
    answer = json.loads(engine.generate([ask], 1, Sampling(0, max_tokens=40, schema=json.dumps(schema)))[0][0])
    assert answer["animal"] == "cat"
    assert "Moritz" in answer["name"]
    engine.close()


# ---- models that may think first

THINKS = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined and enable_thinking is false %}<no thoughts>{% else %}<think>{% endif %}"
)


def test_hybrid_templates_answer_at_once(tiny, tiny_gguf, monkeypatch):
    here = LlamaEngine(tiny_gguf)
    whole = here.metadata
    monkeypatch.setattr(here, "metadata", lambda key: THINKS if key == "tokenizer.chat_template" else whole(key))
    assert here.chat_text(PROMPTS[0]).endswith("<no thoughts>")
    here.close()
    there = load_engine(tiny)
    there.tokenizer.chat_template = THINKS
    assert there.tokenizer.decode(there._tokens(PROMPTS[0])).endswith("<no thoughts>")
