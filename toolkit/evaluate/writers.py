"""Writers put to work: their texts grow on disk in fixed units, so that a killed run goes on where it was."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

from toolkit.engines.base import Engine, Sampling
from toolkit.errors import EngineDown, UserError
from toolkit.narrative.writing import whole_sentences, write_prompt
from toolkit.progress import bar, batched
from toolkit.records import Plot, Premise, append_jsonl, read_jsonl

AT_ONCE = 16  # answers to one prompt in one call: the local engine decodes so many side by side


def write(
    name: str,
    open_writer: Callable[[], Engine],
    premises: list[Premise],
    n: int,
    settings: list[tuple[dict, Sampling]],
    path: Path,
    at_once: int,
    shown: str = "",
) -> None:
    """All texts of one writer, added to `path`: for each setting and premise `n` rows of Plot's fields, k and error.

    A unit is always the same call, so that a resumed run writes what an unbroken one does. Where every text stands
    the writer is not opened.

    Args:
        name: the texts' `origin`; what stands under it is reused.
        settings: (what is put into the texts' `sampling`, how they are drawn); the first is the texts' identity
            beside premise, k and origin.
        at_once: texts asked for in one call, at least those of one premise.
        shown: beside the progress bar, where the name is not for people.

    Raises EngineDown when the writer is gone; what was written before is kept.
    """
    have = {_key(row) for row in read_jsonl(path) if row["origin"] == name}
    wanted = [
        (told, sampling, unit)
        for told, sampling in settings
        for unit in batched(premises, max(1, at_once // n))
        if any(_key(row) not in have for p in unit for row in _rows(name, told, p, [""] * n, ""))
    ]
    if not wanted:
        return
    engine = open_writer()
    progress = bar(total=n * sum(len(unit) for _, _, unit in wanted), desc=shown or name, unit="text")
    try:
        for told, sampling, unit in wanted:
            answered = zip(unit, answers(engine, unit, n, sampling), strict=True)
            rows = [row for p, (texts, error) in answered for row in _rows(name, told, p, texts, error)]
            append_jsonl(path, [row for row in rows if _key(row) not in have])
            progress.update(n * len(unit))
    finally:
        progress.close()
        engine.close()


def _rows(name: str, told: dict, p: Premise, texts: list[str], error: str) -> list[dict]:
    label = "".join(f"-{value:g}" for value in told.values()) + f"-{name}"
    plots = [Plot(f"{p.id}-{k}{label}", text, p.id, p.text, name, told) for k, text in enumerate(texts)]
    return [{**dataclasses.asdict(plot), "k": k, "error": error} for k, plot in enumerate(plots)]


def _key(row: dict) -> tuple:
    return row["premise_id"], row["k"], row["origin"], tuple(sorted(row["sampling"].items()))


def answers(engine: Engine, unit: list[Premise], n: int, sampling: Sampling) -> list[tuple[list[str], str]]:
    """(n texts, "") of each premise; where the writer failed, (n empty texts, why)."""
    found: list[list[str]] = [[] for _ in unit]
    try:
        for start in range(0, n, AT_ONCE):
            drawn = dataclasses.replace(sampling, seed=sampling.seed + start)
            part = engine.generate([write_prompt(p) for p in unit], min(AT_ONCE, n - start), drawn)
            for texts, more in zip(found, part, strict=True):
                texts += [whole_sentences(t) for t in more]
        return [(texts, "") for texts in found]
    except EngineDown:
        raise
    except UserError as error:
        if len(unit) == 1:
            return [([""] * n, str(error))]
        return [answer for p in unit for answer in answers(engine, [p], n, sampling)]  # which one was it?


def claim(path: Path, settings: dict, what: str) -> None:
    """Record in the JSON file `path` what this folder holds; refuse another's. A key that was not known yet is added."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"settings": {}}
    now = json.loads(json.dumps(settings))
    if other := [key for key in now if key in found["settings"] and found["settings"][key] != now[key]]:
        raise UserError(
            f"{path.parent} holds a {what} with other {', '.join(other)}",
            "use another --out, or give the settings it was begun with",
        )
    if found["settings"].keys() < now.keys():
        save(path, json.dumps({**found, "settings": {**found["settings"], **now}}, indent=1, ensure_ascii=False))


def check_premises(premises: list[Premise]) -> None:
    """Raises UserError for none at all, or an id that occurs twice."""
    if not premises:
        raise UserError("no premises: there is nothing to write to", "give a file with at least one")
    ids = [p.id for p in premises]
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise UserError(f"premise id {twice!r} occurs twice", "give each premise its own id")


def save(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
