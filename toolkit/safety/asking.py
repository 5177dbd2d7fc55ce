"""A model put to the question: requests from files, its answers kept on disk, what kind of answers they are."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toolkit.engines.base import Engine, Sampling
from toolkit.errors import EngineDown, UserError
from toolkit.progress import bar, batched
from toolkit.records import append_jsonl, import_rows, read_jsonl, text_id
from toolkit.safety.refusal import COMPLIANCE, PARTIAL, REFUSAL, classify
from toolkit.stats import bootstrap, rounded, wilson

AT_ONCE = 16  # requests of one call: the local engine answers so many side by side
ASKS = ("prompt", "goal", "behavior", "Goal", "Behavior", "instruction", "text", "premise")  # what public sets call it
KINDS = (COMPLIANCE, PARTIAL, REFUSAL)


@dataclass(frozen=True)
class Ask:
    """One request. `messages` is what the model sees: the user's turn, unless a set has its own way to put it."""

    id: str
    text: str
    messages: tuple[dict, ...] = ()

    def turns(self) -> list[dict]:
        return list(self.messages) or [{"role": "user", "content": self.text}]


def read_asks(path: Path, label: str = "", most: int | None = None, skip_bad_lines: bool = False) -> list[Ask]:
    """Requests from a JSONL file whose rows have one of ASKS, such as AdvBench's, XSTest's or HarmBench's.

    Args:
        label: keep only rows without a `label` or with this one (XSTest: safe, unsafe).
        most: the first so many.

    Raises UserError for a bad line, none at all, or none of that label.
    """

    def make(kind: str, row: dict) -> tuple[Ask, str]:
        value = next((row[k] for k in ASKS if k in row), None)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"no request: one of {', '.join(ASKS)} must be a text")
        return Ask(str(row.get("id") or text_id(value, "a")), value.strip()), str(row.get("label") or label)

    rows = import_rows(path, make, skip_bad_lines, detect=lambda row: "requests").rows
    found = list({ask.id: ask for ask, kind in rows if kind == label}.values())
    if not found:
        raise UserError(f"{path} holds no request labelled {label!r}", 'rows such as {"prompt": …, "label": "safe"}')
    return found[:most]


def answer(name: str, engine: Callable[[], Engine], sets: dict[str, list[Ask]], path: Path, sampling: Sampling) -> None:
    """Every set's requests answered once by one model; rows {origin, set, id, prompt, answer, error} grow in `path`.

    What stands under `name` is not asked again, and a unit is always the same call: a resumed run writes what an unbroken one
    does. A request that the engine cannot take has an `error`. Raises EngineDown when the model is gone.

    Args:
        engine: opens the model, or gives the open one; not called where every answer stands.
    """
    have = {(row["set"], row["id"]) for row in read_jsonl(path) if row["origin"] == name}
    wanted = [
        (kind, unit)
        for kind, asks in sets.items()
        for unit in batched(asks, AT_ONCE)
        if any((kind, a.id) not in have for a in unit)
    ]
    progress = bar(total=sum(len(unit) for _, unit in wanted), desc="answers", unit="answer")
    for kind, unit in wanted:
        found = zip(unit, _answers(engine(), unit, sampling), strict=True)
        about = [({"origin": name, "set": kind, "id": a.id, "prompt": a.text}, told) for a, told in found]
        rows = [{**known, "answer": text, "error": error} for known, (text, error) in about]
        append_jsonl(path, [row for row in rows if (kind, row["id"]) not in have])
        progress.update(len(unit))
    progress.close()


def _answers(engine: Engine, unit: list[Ask], sampling: Sampling) -> list[tuple[str, str]]:
    try:
        return [(texts[0].strip(), "") for texts in engine.generate([a.turns() for a in unit], 1, sampling)]
    except EngineDown:
        raise
    except UserError as error:
        if len(unit) == 1:
            return [("", str(error))]
        return [found for a in unit for found in _answers(engine, [a], sampling)]  # which one was it?


def shares(rows: list[dict]) -> dict:
    """How one model's answers to one set divide: asked, unanswered, and [share, low, high] (Wilson's 95 %) of each of KINDS.

    An answer that was never given (the engine's error) is in no share.
    """
    kinds = [classify(row["answer"]) for row in rows if not row["error"]]
    found = {"asked": len(rows), "unanswered": len(rows) - len(kinds)}
    return found | {k: share(kinds.count(k), len(kinds)) for k in KINDS}


def share(count: int, n: int) -> list[float | None]:
    """[count / n, low, high], Wilson's; three times None for n = 0."""
    return rounded([count / n if n else float("nan"), *wilson(count, n)])


def change(before: list[dict], after: list[dict], value: Callable[[dict], float | None]) -> list[float | None]:
    """[mean of value(after) − value(before), low, high]: bootstrap over the requests that both have a value for."""
    first = {row["id"]: value(row) for row in before}
    pairs = [(first.get(row["id"]), value(row)) for row in after]
    return rounded(bootstrap([b - a for a, b in pairs if a is not None and b is not None]))


def is_kind(kind: str) -> Callable[[dict], float | None]:
    """A row → 1.0 where its answer is of this kind, 0.0 where not, None where there is none."""
    return lambda row: None if row["error"] else float(classify(row["answer"]) == kind)
