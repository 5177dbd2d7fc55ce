"""Multi-agent rejection sampling: retrieve → (merits ∥ faults) → judge → reflect, for each answer a writer gives.

The roles and their eight axes are published (shared notes, "Greetings by RLAIF"). Not published; chosen because a claim
that must be quoted can be checked without trusting anybody: the reflection agent overturns only by a quote that is
found. Answers of broken form are judged without asking anybody, and all agents answer greedily the first time, so that
a verdict is not luck.
"""

import dataclasses
import itertools
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.engines.base import Engine, Messages, Sampling
from toolkit.engines.hf import TransformersEngine
from toolkit.errors import EngineDown, UserError
from toolkit.feedback.retrieval import Examples
from toolkit.feedback.verdicts import Sampled, facts_of, read_records
from toolkit.greeting.asking import Asked, ask_json, object_schema, tokens_of
from toolkit.greeting.form import broken, clean, plain, units_of
from toolkit.greeting.prompts import prompt
from toolkit.greeting.writing import answer_tokens, greet_prompt
from toolkit.narrative.quoting import quoted
from toolkit.progress import bar, batched
from toolkit.recipe import RejectionSettings
from toolkit.records import Labelled, Request, append_jsonl, guess_language, read_jsonl, write_jsonl
from toolkit.stats import rounded, share_interval

UNIT = 4  # requests asked together and kept together; all of one language and length
SHORTEST_QUOTE = {"zh": 4, "en": 3}  # characters, words: less occurs in any text


@dataclass(frozen=True)
class Agents:
    """Who plays which role; any engine can play any, and one may play several."""

    writer: Engine
    positive: Engine
    negative: Engine
    judge: Engine
    reflector: Engine


def sample(
    agents: Agents,
    requests: list[Request],
    examples: Examples | None,
    settings: RejectionSettings,
    out: Path,
    seed: int,
    names: dict[str, str],
) -> dict:
    """Have answers written and judged; out/records.jsonl grows by UNIT requests and is gone on with after a kill.

    Args:
        examples: labelled greetings of the train side to show similar ones of to the judge; None shows none.
        names: role → name, for the facts.

    Returns:
        `facts_of` the records.

    Raises:
        EngineDown: an engine is gone; what stands in the file is not asked again by the next call.
    """
    path = out / "records.jsonl"
    alike: dict[tuple[str, str], list[Request]] = {}  # one language, one room for the answers
    for r in requests:
        alike.setdefault((r.language, r.length), []).append(r)
    units = [unit for _, group in sorted(alike.items()) for unit in batched(group, UNIT)]
    rows = read_jsonl(path)
    count = Counter(row["request_id"] for row in rows)
    done = [all(count[r.id] == settings.per_request for r in unit) for unit in units]
    whole = {r.id for unit, stands in zip(units, done, strict=True) if stands for r in unit}
    if len(kept := [row for row in rows if row["request_id"] in whole]) < len(rows):
        write_jsonl(path, kept)  # a unit torn by a kill is asked again as a whole: its answers were drawn in one call
    progress = bar(total=len(requests), desc="debates", unit="request", initial=len(whole))
    for number, unit in enumerate(units):
        if not done[number]:
            append_jsonl(
                path, map(dataclasses.asdict, _debate(agents, unit, examples, settings, seed + number * 100_000))
            )
            progress.update(len(unit))
    progress.close()
    return facts_of(read_records(path), names)


def _debate(
    agents: Agents, unit: list[Request], examples: Examples | None, settings: RejectionSettings, seed: int
) -> list[Sampled]:
    """All answers to a unit's requests, written and judged."""
    start = time.monotonic()
    shown = examples.similar([r.text for r in unit], settings.examples, settings.among, seed) if examples else []
    by_request = {r.id: list(found) for r, found in zip(unit, shown or [[]] * len(unit), strict=True)}
    rows = _write(agents.writer, unit, settings, seed)
    _hear(agents, rows, by_request, settings, seed)
    seconds = round((time.monotonic() - start) / len(rows), 3)
    return [Sampled(**{**row, "seconds": seconds}) for row in rows]


def _hear(agents: Agents, rows: list[dict], examples: dict[str, list[Labelled]], settings, seed: int) -> None:
    """Everything but the writing: what each agent says of answers that need to be judged, put into their rows."""
    live = [row for row in rows if row["verdict"] is None and not row["error"]]
    _list_points(agents, live, settings, seed + 20_000)
    live = [row for row in live if not row["error"]]
    _judge(agents.judge, live, examples, settings, seed + 40_000)
    _reflect(agents.reflector, [row for row in live if not row["error"]], settings, seed + 60_000)


def check_agents(
    agents: Agents,
    labelled: list[Labelled],
    examples: Examples | None,
    settings: RejectionSettings,
    out: Path,
    seed: int,
) -> dict:
    """The agents where the answer is known: labelled greetings, good and flawed, heard as any answer is (not published).

    out/check.jsonl grows by labelled pair and is gone on with after a kill; `settings.check` pairs of `labelled` are heard.

    Returns:
        {"pairs", "accuracy": [share right, low, high] (balanced; an answer without a verdict counts as wrong; intervals draw
        pairs), "good_accepted", "bad_rejected": shares}; a coin gets 0.5. Empty where nothing is to be heard.
    """
    path, picked = out / "check.jsonl", _in_turn(labelled)[: settings.check]
    done = {row["request_id"] for row in read_jsonl(path)}
    progress = bar(total=len(picked), desc="check", unit="pair", initial=len(done)) if picked else None
    for number, x in enumerate(picked):
        if x.request_id in done:
            continue
        shown = examples.similar([x.request], settings.examples, settings.among, seed)[0] if examples else []
        row = {"request_id": x.request_id, "request": x.request, "language": x.language, "verdict": None, "error": ""}
        rows = [
            {**row, "id": f"{x.request_id}-{kind}", "text": text, "calls": {}, "tokens": {}}
            for kind, text in (("good", x.good), ("bad", x.bad))
        ]
        _hear(agents, rows, {x.request_id: shown}, settings, seed + number * 100_000)
        append_jsonl(path, map(dataclasses.asdict, (Sampled(**row) for row in rows)))
        progress.update(1)
    if progress is not None:
        progress.close()
    verdicts: dict[str, dict[str, int | None]] = {}
    for record in read_records(path):
        verdicts.setdefault(record.request_id, {})[record.id.rsplit("-", 1)[1]] = record.final
    right = [np.array([v.get("good") == 1, v.get("bad") == 0], float) for v in verdicts.values()]
    if not right:
        return {}
    good, bad = np.mean(right, axis=0)
    shares = {"good_accepted": round(float(good), 4), "bad_rejected": round(float(bad), 4)}
    return {"pairs": len(right), "accuracy": rounded(share_interval(right)), **shares}


def _in_turn(labelled: list[Labelled]) -> list[Labelled]:
    """One labelled pair a request, the languages in turn."""
    first = list({x.request_id: x for x in reversed(labelled)}.values())[::-1]
    sides = [[x for x in first if x.language == language] for language in sorted({x.language for x in first})]
    return [x for row in itertools.zip_longest(*sides) for x in row if x is not None]


def _write(writer: Engine, unit: list[Request], settings: RejectionSettings, seed: int) -> list[dict]:
    n = settings.per_request
    room = answer_tokens(unit[0])
    heats = [settings.temperatures[k % len(settings.temperatures)] for k in range(n)]
    samplings = [Sampling(temperature=t, max_tokens=room, seed=seed) for t in heats]
    asks = [greet_prompt(r) for r in unit]
    try:
        answers = [(texts, "") for texts in writer.generate(asks, n, samplings)]
    except EngineDown:
        raise
    except (UserError, TimeoutError):  # one request must not take its neighbours along
        answers = [_write_alone(writer, ask, n, samplings) for ask in asks]
    rows = []
    for at, (request, (texts, error)) in enumerate(zip(unit, answers, strict=True)):
        seen: dict[str, str] = {}
        for k, raw in enumerate(texts):
            text, id = clean(raw, request), f"{request.id}-{k}"
            row = {"id": id, "request_id": request.id, "request": request.text, "text": text, "error": error}
            row |= {"language": request.language, "length": request.length, "raw": raw if raw != text else ""}
            row |= {"sampling": {"temperature": heats[k], "seed": seed + at * n + k}, "verdict": None}
            row |= {"calls": {"writer": 1}, "tokens": {"writer": tokens_of(writer, raw)}}
            if not error and (reasons := broken(text, request)):
                row |= {"broken": tuple(reasons), "verdict": 0, "reason": f"form: {', '.join(reasons)}"}
            elif not error and seen.setdefault(plain(text), id) != id:
                row["error"] = "the same words as another answer"
            rows.append(row)
    return rows


def _write_alone(writer: Engine, ask: Messages, n: int, samplings: list[Sampling]) -> tuple[list[str], str]:
    try:
        return writer.generate([ask], n, samplings)[0], ""
    except EngineDown:
        raise
    except (UserError, TimeoutError) as error:
        return [""] * n, f"writer: {'timed out' if isinstance(error, TimeoutError) else error}"


def _room(words: int, language: str) -> tuple[int, int]:
    """(tokens of an answer, characters of its texts), so that the text ends before the tokens do and the JSON is whole."""
    return (3 * words + 32, words) if language == "zh" else (words + 32, 3 * words)


def _text(most: int, least: int = 0) -> dict:
    return {"type": "string", "minLength": least, "maxLength": most}


def _ask(engine: Engine, rows: list[dict], asks: list[str], schema: dict, settings, seed: int) -> list[Asked]:
    """One question about each row's answer, all in one call; the case comes first, so that it is read once."""
    cases = [
        prompt(
            "case",
            row["language"],
            request=quoted(row["request"], "tags", "request"),
            greeting=quoted(row["text"], "tags", "greeting"),
        )
        for row in rows
    ]
    messages = [[{"role": "user", "content": f"{case}\n\n{ask}"}] for case, ask in zip(cases, asks, strict=True)]
    tokens = _room(settings.words, rows[0]["language"])[0] if rows else 1
    return ask_json(engine, messages, schema, words=tokens, tries=settings.tries, seed=seed, temperature=0)


def _count(row: dict, role: str, asked: Asked) -> None:
    row["calls"][role], row["tokens"][role] = asked.calls, asked.tokens_out
    if asked.value is None:
        row["error"] = row["error"] or f"{role}: {asked.error}"


def _list_points(agents: Agents, rows: list[dict], settings: RejectionSettings, seed: int) -> None:
    """Merits and faults, side by side: a thread each for two engines, one call where one engine plays both."""
    if not rows:
        return
    language = rows[0]["language"]
    most = min(8, max(2, settings.words // 24))
    points = {"type": "array", "items": _text(_room(settings.words, language)[1] // most, 2), "maxItems": most}
    schema = object_schema(points=points)
    merits, faults = (prompt(side, language) for side in ("positive", "negative"))
    if agents.positive is agents.negative:
        asks = [merits] * len(rows) + [faults] * len(rows)
        both = _ask(agents.positive, rows + rows, asks, schema, settings, seed)
        found = both[: len(rows)], both[len(rows) :]
    else:
        # transformers draws from torch's one generator: two of its engines at once would take each other's numbers
        alone = all(isinstance(e, TransformersEngine) for e in (agents.positive, agents.negative))
        with ThreadPoolExecutor(1 if alone else 2) as pool:
            jobs = [
                pool.submit(_ask, engine, rows, [ask] * len(rows), schema, settings, seed)
                for engine, ask in ((agents.positive, merits), (agents.negative, faults))
            ]
            found = tuple(job.result() for job in jobs)
    for row, merit, fault in zip(rows, *found, strict=True):
        _count(row, "positive", merit)
        _count(row, "negative", fault)
        for key, asked in (("merits", merit), ("faults", fault)):
            row[key] = tuple(p.strip() for p in asked.value["points"]) if asked.value else ()


def _judge(judge: Engine, rows: list[dict], examples: dict[str, list[Labelled]], settings, seed: int) -> None:
    if not rows:
        return
    language = rows[0]["language"]
    schema = object_schema(
        reason=_text(_room(settings.words, language)[1], 2), verdict={"type": "integer", "enum": [0, 1]}
    )
    asks = []
    for row in rows:
        shown = examples[row["request_id"]]
        text = "\n".join(f"- {x.request}\n  {x.good}" for x in shown)
        known = prompt("examples", language, examples=text) + "\n\n" if shown else ""
        asks.append(prompt("judge", language, examples=known, **_points(row)))
        row["examples"] = tuple(x.request_id for x in shown)
    for row, asked in zip(rows, _ask(judge, rows, asks, schema, settings, seed), strict=True):
        _count(row, "judge", asked)
        if asked.value:
            row["verdict"], row["reason"] = asked.value["verdict"], asked.value["reason"].strip()


def _points(row: dict) -> dict[str, str]:
    return {key: "\n".join(f"- {p}" for p in row[key]) or "-" for key in ("merits", "faults")}


def _reflect(reflector: Engine, rows: list[dict], settings: RejectionSettings, seed: int) -> None:
    """The verdict reviewed. It is overturned only by a quote that is found; a reflector that cannot be read changes nothing."""
    if not rows:
        return
    language = rows[0]["language"]
    most = _room(settings.words, language)[1] // 2
    schema = object_schema(quote=_text(most), cause=_text(most, 2), verdict={"type": "integer", "enum": [0, 1]})
    asks = [
        prompt("reflect", language, verdict=str(row["verdict"]), reason=row["reason"], **_points(row)) for row in rows
    ]
    for row, asked in zip(rows, _ask(reflector, rows, asks, schema, settings, seed), strict=True):
        _count(row, "reflector", asked)
        if asked.value:
            row |= {key: asked.value[key].strip() for key in ("quote", "cause")}
            row["reflected"] = asked.value["verdict"]
            if row["reflected"] != row["verdict"]:
                why = unsupported(row["quote"], row["text"], row["request"])
                row["overturned"] = not why
                row["cause"] = f"not overturned, {why}: {row['cause']}" if why else row["cause"]


def unsupported(quote: str, *texts: str) -> str:
    """Why a quote proves nothing of these texts, or "": it must stand in one of them and have SHORTEST_QUOTE units."""
    said = plain(quote)
    if not said:
        return "nothing quoted"
    language = guess_language(said)
    if len(units_of(said)) < SHORTEST_QUOTE[language]:
        return "the quote is too short to show anything"
    stands = (said in plain(t) if language == "zh" else f" {said} " in f" {plain(t)} " for t in texts)
    return "" if any(stands) else "the quote stands neither in the greeting nor in the request"
