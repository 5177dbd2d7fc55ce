"""A file of texts that people rated: read, checked, and put on the house's scale."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.errors import UserError
from toolkit.narrative.dimensions import SCALE

FEWEST = 30  # texts: below, a correlation's interval says nothing


@dataclass(frozen=True)
class Rated:
    """Texts with people's ratings. `targets` (N, D) on 1 … 10; `raters` aspect → (N, R) as given, where all have R."""

    texts: list[str]
    targets: np.ndarray
    dimensions: tuple[str, ...]
    scale: tuple[float, float]
    groups: list[str]
    systems: list[str]
    raters: dict[str, np.ndarray]


def to_house(values, scale: tuple[float, float]):
    """People's ratings on `scale` → 1 … 10, linearly."""
    return SCALE[0] + (np.asarray(values, float) - scale[0]) / (scale[1] - scale[0]) * (SCALE[1] - SCALE[0])


def from_house(values, scale: tuple[float, float]):
    """1 … 10 → people's `scale`, linearly."""
    return scale[0] + (np.asarray(values, float) - SCALE[0]) / (SCALE[1] - SCALE[0]) * (scale[1] - scale[0])


def read_rated(path: Path, scale: tuple[float, float] | None = None) -> Rated:
    """Read JSONL rows {text, mean {aspect: value} or ratings {aspect: [person, …]}, group or prompt, system}.

    Args:
        scale: lowest and highest possible rating; the whole numbers around those in the file when None.

    Raises UserError with the line: no JSON, no text, no ratings, other aspects than the first line's; and for a file
    of fewer than 30 texts, a rating outside `scale`, or an aspect that is the same for all.
    """
    if not Path(path).is_file():
        raise UserError(f"no file at {path}", 'JSONL with "text" and "ratings": {aspect: [person, …]}')
    rows, means = [], []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            row, mean = _row(line, f"{path}:{number}")
            if means and set(mean) != set(means[0]):
                raise UserError(
                    f"{path}:{number}: rates {', '.join(mean)}, but the first line {', '.join(means[0])}",
                    "every text needs the same aspects",
                )
            rows.append(row)
            means.append(mean)
    if len(rows) < FEWEST:
        raise UserError(f"{path} has {len(rows)} rated texts; at least {FEWEST} are needed", "rate more texts")
    aspects = tuple(means[0])
    table = np.array([[m[a] for a in aspects] for m in means])
    given = [v for r in rows for a in aspects for v in r.get("ratings", {}).get(a, [])] + table.ravel().tolist()
    if scale is None:
        scale = (float(math.floor(min(given))), float(math.ceil(max(given))))
    if min(given) < scale[0] or max(given) > scale[1]:
        raise UserError(f"{path}: ratings go from {min(given):g} to {max(given):g}, outside {scale}", "mend the scale")
    for aspect, column in zip(aspects, table.T, strict=True):
        if column.min() == column.max():
            raise UserError(f"{path}: every text has the same {aspect}", "there is nothing to learn; leave it out")
    raters = {a: [r.get("ratings", {}).get(a, []) for r in rows] for a in aspects}
    raters = {a: np.array(v, float) for a, v in raters.items() if len(set(map(len, v))) == 1 and len(v[0]) > 1}
    groups = [str(r.get("group") or r.get("prompt") or f"text {i}") for i, r in enumerate(rows)]
    systems = [str(r.get("system", "")) for r in rows]
    return Rated([r["text"] for r in rows], to_house(table, scale), aspects, scale, groups, systems, raters)


def _row(line: str, where: str) -> tuple[dict, dict[str, float]]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg}", "one JSON object a line") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"].strip():
        raise UserError(f"{where}: no text", 'each line needs "text"')
    try:
        people = {a: [float(x) for x in v] for a, v in (row.get("ratings") or {}).items()}
        mean = {a: float(v) for a, v in (row.get("mean") or {}).items()} or {
            a: sum(v) / len(v) for a, v in people.items()
        }
    except (TypeError, ValueError, AttributeError, ZeroDivisionError):
        raise UserError(f"{where}: a rating is not a number", '"ratings": {"coherence": [4, 3, 5]}') from None
    if not mean or not all(math.isfinite(v) for v in mean.values()):
        raise UserError(f"{where}: no ratings", 'give "ratings": {aspect: [person, …]} or "mean": {aspect: value}')
    return {**row, "ratings": people}, mean
