"""Asking agents for JSON: few tries, every answer checked, and what cannot be read becomes an error, never a value."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from toolkit.engines.base import Engine, Messages, Sampling
from toolkit.errors import EngineDown, UserError

_KINDS = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
_AGAIN = 0.5  # least temperature of a second try: greedily the same answer would come again
_STEP = 10_007  # between the seeds of two tries: further than one call has answers


def object_schema(**properties) -> dict:
    """JSON schema of an object with exactly these properties."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


@dataclass(frozen=True)
class Asked:
    """What came of one question. `value` is None where `error` says why; `raw` is the last answer as it came.

    `calls` counts the tries, `tokens_out` the tokens of all their answers (`tokens_of`).
    """

    value: dict | None
    error: str
    raw: str
    calls: int
    tokens_out: int


def ask_json(
    engine: Engine,
    messages: list[Messages],
    schema: dict,
    *,
    words: int,
    tries: int,
    seed: int,
    temperature: float = 0.7,
    accept: Callable[[dict], str] | None = None,
) -> list[Asked]:
    """One JSON object for each question, all questions in one call; those without a usable answer are asked again.

    The schema goes to the engine, which may or may not keep to it, and every answer is checked against it here too.

    Args:
        schema: JSON schema of an object (the keywords that `against` knows).
        words: tokens of an answer at most; one that is cut short is no JSON.
        tries: times a question is asked at most; each try has seeds of its own.
        accept: what is wrong with a value that fits the schema, or ""; a wrong one is asked again.

    Returns:
        One Asked a question, in order.

    Raises:
        EngineDown: the engine is gone. Any other UserError, and a timeout, is the error of the question it befell:
            when a whole call fails its questions are asked one by one, so that one bad text spoils no other.
    """
    out = [Asked(None, "not asked", "", 0, 0) for _ in messages]
    drawn = Sampling(temperature=temperature, max_tokens=words, schema=json.dumps(schema, ensure_ascii=False))
    for number in range(tries):
        todo = [i for i, asked in enumerate(out) if asked.value is None]
        if not todo:
            break
        hot = temperature if number == 0 else max(temperature, _AGAIN)
        sampling = replace(drawn, seed=seed + number * _STEP, temperature=hot)
        for i, (text, failed) in zip(todo, _answers(engine, [messages[i] for i in todo], sampling), strict=True):
            value, error = (None, failed) if failed else read(text, schema)
            if value is not None and accept and (error := accept(value)):
                value = None
            before = out[i]
            out[i] = Asked(value, error, text, before.calls + 1, before.tokens_out + tokens_of(engine, text))
    return out


def _answers(engine: Engine, messages: list[Messages], sampling: Sampling) -> list[tuple[str, str]]:
    """(text, error) for each question."""
    try:
        return [(answers[0], "") for answers in engine.generate(messages, 1, sampling)]
    except EngineDown:
        raise
    except (UserError, TimeoutError) as error:
        if len(messages) > 1:
            alone = [replace(sampling, seed=sampling.seed + k) for k in range(len(messages))]
            return [_answers(engine, [m], s)[0] for m, s in zip(messages, alone, strict=True)]
        return [("", "timed out" if isinstance(error, TimeoutError) else str(error))]


def read(text: str, schema: dict) -> tuple[dict | None, str]:
    """(the JSON object in an answer, "") or (None, why there is none). Words around the object do no harm."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0:
        return None, "no JSON in the answer" if text.strip() else "an empty answer"
    try:
        value = json.loads(text[start : end + 1])
    except ValueError:
        return None, "broken JSON, or cut short"
    wrong = against(value, schema)
    return (None, wrong) if wrong else (value, "")


def against(value, schema: dict, where: str = "the answer") -> str:
    """What in `value` breaks `schema`, or "". Knows type, enum, required, properties, items and the least and greatest
    sizes; a key that the schema does not name is no harm and is left in.
    """
    kind = schema.get("type")
    if kind and (not isinstance(value, _KINDS[kind]) or (kind in ("integer", "number") and isinstance(value, bool))):
        return f"{where} is no {kind}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{where} is none of {', '.join(map(str, schema['enum']))}"
    if isinstance(value, dict):
        if missing := [k for k in schema.get("required", ()) if k not in value]:
            return f"{where} has no {missing[0]!r}"
        inner = ((value[k], s, repr(k)) for k, s in schema.get("properties", {}).items() if k in value)
        return next((wrong for v, s, name in inner if (wrong := against(v, s, name))), "")
    if isinstance(value, (str, list)):
        least, most = ("minLength", "maxLength") if isinstance(value, str) else ("minItems", "maxItems")
        size = len(value.strip()) if isinstance(value, str) else len(value)
        if size < schema.get(least, 0):
            return f"{where} is too short" if size else f"{where} is empty"
        if size > schema.get(most, size):
            return f"{where} is too long"
        items = value if isinstance(value, list) and "items" in schema else []
        return next((wrong for v in items if (wrong := against(v, schema["items"], f"an item of {where}"))), "")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        return "" if low <= value <= high else f"{where} is not between {low} and {high}"
    return ""


def tokens_of(engine: Engine, text: str) -> int:
    """Tokens of a text: counted by a local engine's own tokenizer; elsewhere estimated at four bytes each."""
    if callable(count := getattr(engine, "tokenize", None)):
        return len(count(text))
    if callable(count := getattr(engine, "tokenizer", None)):
        return len(count(text, add_special_tokens=False)["input_ids"])
    return -(-len(text.encode()) // 4)
