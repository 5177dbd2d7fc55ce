"""What people said: files of ratings, read into one form, and how far people agree among themselves."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.errors import UserError
from toolkit.records import text_id
from toolkit.stats import spearman

NEEDED = 30  # texts; with fewer an interval of a correlation covers nearly everything


@dataclass(frozen=True)
class RatedText:
    """One text and what people gave it. `mean`: aspect → value; `people`: aspect → one value a person (may be empty).

    `group` holds together what must not be split (one prompt, one content plan); `system` is who wrote the text;
    `prompt` is what the writer was asked for, "" when the file does not say.
    """

    id: str
    text: str
    mean: dict[str, float]
    people: dict[str, tuple[float, ...]]
    group: str = ""
    system: str = ""
    prompt: str = ""


def read_people(path: Path, needed: int = NEEDED) -> list[RatedText]:
    """A JSONL file of rows {"text", "mean": {aspect: value} or "ratings": {aspect: [person, …]}, "group" or "prompt", "system"}.

    Raises:
        UserError: no such file, a line without text or ratings, aspects that differ between lines, a value that is no
            number, or fewer than `needed` texts.
    """
    rows: list[RatedText] = []
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UserError(f"no file at {path}", "check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}", "save it as UTF-8 JSONL") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text = row["text"]
            if not isinstance(text, str):
                raise ValueError("`text` is no text")
            if not text.strip():
                raise ValueError("`text` is empty")
            people = {a: tuple(float(v) for v in given) for a, given in (row.get("ratings") or {}).items()}
            mean = {a: float(v) for a, v in (row.get("mean") or {}).items()}
            mean = mean or {a: sum(v) / len(v) for a, v in people.items() if v}
            if not mean:
                raise ValueError("no ratings: give `mean` {aspect: value} or `ratings` {aspect: [person, …]}")
            if not all(np.isfinite(v) for v in mean.values()):
                raise ValueError("a rating is not a number")
            if rows and mean.keys() != rows[0].mean.keys():
                raise ValueError(f"aspects {', '.join(mean)} differ from {', '.join(rows[0].mean)} above")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            if isinstance(error, json.JSONDecodeError):
                reason = f"not valid JSON: {error.msg}"
            raise UserError(f"{path}:{number}: {reason}", "mend the line") from None
        group, system, prompt = (str(row.get(k) or "") for k in ("group", "system", "prompt"))
        if not system and "human_written" in row:
            system = "human" if row["human_written"] else "machine"
        group = group or text_id(prompt or text, "g")
        rows.append(RatedText(str(row.get("id") or text_id(text)), text, mean, people, group, system, prompt))
    if len(rows) < needed:
        raise UserError(
            f"{path} holds {len(rows)} rated texts; at least {needed} are needed",
            "with fewer, chance decides what comes out",
        )
    return rows


def one_against_the_rest(rows: list[RatedText], aspect: str) -> float:
    """Mean Spearman of one person with the mean of the others: what any judge is up against. NaN without single ratings."""
    most = max((len(r.people.get(aspect, ())) for r in rows), default=0)
    if most < 2:
        return float("nan")
    table = np.array([r.people[aspect] for r in rows if len(r.people[aspect]) == most])
    return float(np.nanmean([spearman(table[:, i], np.delete(table, i, axis=1).mean(1)) for i in range(most)]))


def within_systems(mine, theirs, systems) -> float:
    """Mean of the Spearman inside each writer's texts (at least 8 of them): who wrote a text already tells much.

    NaN where there is one writer only, or none is named.
    """
    systems = np.asarray(systems)
    if len(set(systems.tolist())) < 2:
        return float("nan")
    found = [
        spearman(np.asarray(mine)[systems == s], np.asarray(theirs)[systems == s])
        for s in sorted(set(systems))
        if (systems == s).sum() >= 8
    ]
    return float(np.nanmean(found)) if found else float("nan")
