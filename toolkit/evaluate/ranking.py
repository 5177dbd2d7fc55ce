"""What a tournament found: figures with intervals, sentences that claim no more than is settled, a table to print."""

import dataclasses
import itertools
from collections import Counter

import numpy as np

from toolkit.evaluate import bradley_terry as bt
from toolkit.evaluate.judge import Verdict
from toolkit.narrative.dimensions import DIMENSIONS, KEYS
from toolkit.stats import cluster_bootstrap, rounded

ENDS = {
    "settled": "stopped early, the order being settled",
    "budget": "stopped by the budget",
    "played": "every match played",
}
POINTS = {"a": 1.0, "b": 0.0, "tie": 0.5, "none": None}
Texts = dict[tuple[str, int, str], dict]  # (premise id, k, writer) → a row of plots.jsonl


def outcome(row: dict, threshold: float | None, key: str | None = None) -> str:
    """A row of verdicts.jsonl → "a", "b", "tie" or "none", as Verdict.outcome."""
    return Verdict(*(row[f.name] for f in dataclasses.fields(Verdict))).outcome(key, threshold)


def results_of(rows: list[dict], names: list[str], threshold: float | None) -> list[bt.Result]:
    """Rows of verdicts.jsonl between `names` as matches; premises are numbered as they come."""
    number: dict[str, int] = {}
    return [
        bt.Result(
            number.setdefault(row["premise_id"], len(number)),
            *map(names.index, row["writers"]),
            POINTS[outcome(row, threshold)],
        )
        for row in rows
        if set(row["writers"]) <= set(names)
    ]


def summarise(names: list[str], texts: Texts, rows: list[dict], threshold: float | None, end: str) -> dict:
    """All figures of a tournament, best writer first; a writer without a verdict that counts has no strength.

    `strength` is [value, low, high] on the Elo-like scale of `bradley_terry` (mean 1000; 400 points: ten wins to one);
    `best` the probability of being the best; `settled` holds however early the tournament was stopped. Wins, losses and
    ties are counted in matches; `dimensions` likewise, on one dimension alone.
    """
    found = [outcome(row, threshold) for row in rows]
    ranked = sorted({w for row, o in zip(rows, found, strict=True) if o != "none" for w in row["writers"]})
    results = results_of(rows, ranked, threshold)
    writers = {name: {"name": name, **_record(name, texts, rows, threshold)} for name in names}
    order, pairs = [], []
    if ranked:
        now = bt.standing(results, len(ranked))
        ahead, settled, order = now.ahead(), now.settled(), now.order()
        elo = bt.AVERAGE + bt.ELO * np.column_stack([now.theta, bt.intervals(results, now)])
        for rank, (i, best) in enumerate(((i, bt.best(now)[i]) for i in order), 1):
            writers[ranked[i]] |= {"rank": rank, "strength": rounded(elo[i], 1), "best": round(float(best), 4)}
        for i, j in itertools.combinations(order, 2):
            sure = {"probability": round(float(ahead[i, j]), 4), "settled": bool(settled[i, j])}
            pairs.append(
                {"ahead": ranked[i], "behind": ranked[j], **_tally(rows, threshold, ranked[i], ranked[j]), **sure}
            )
    first = [ranked[i] for i in order]
    decided = [row for row, o in zip(rows, found, strict=True) if o in "ab"]
    why = Counter(
        row["error"] or "the judge is not sure enough" for row, o in zip(rows, found, strict=True) if o == "none"
    )
    counted = len(found) - found.count("none")
    figures = {
        "writers": [writers[name] for name in first + [name for name in names if name not in ranked]],
        "pairs": pairs,
        "matches": len(rows),
        "verdicts": counted,
        "premises": len({row["premise_id"] for row in rows}),
        "ties_by_order": round(found.count("tie") / counted, 4) if counted else None,
        "without_verdict": round(found.count("none") / len(rows), 4) if rows else None,
        "why_none": dict(why),
        "longer_wins": _longer_wins(decided, texts, threshold),
        "end": end,
    }
    return {**figures, "lines": lines(figures)}


def _tally(rows: list[dict], threshold: float | None, name: str, other: str = "", key: str | None = None) -> dict:
    """Matches of `name` (against `other`): won, lost, tied, and those without verdict."""
    kinds = Counter()
    for row in rows:
        if name in row["writers"] and (not other or other in row["writers"]):
            side = "ab"[row["writers"].index(name)]
            o = outcome(row, threshold, key)
            kinds[{"tie": "tied", "none": "no_verdict", side: "won"}.get(o, "lost")] += 1
    return {kind: kinds[kind] for kind in ("won", "lost", "tied", "no_verdict")}


def _record(name: str, texts: Texts, rows: list[dict], threshold: float | None) -> dict:
    mine = [t for (_, _, writer), t in texts.items() if writer == name]
    lengths = [len(t["text"]) for t in mine if t["text"].strip()]
    return {
        "rank": None,
        "strength": [None, None, None],
        "best": None,
        **_tally(rows, threshold, name),
        "dimensions": {key: _tally(rows, threshold, name, key=key) for key in KEYS},
        "characters": round(sum(lengths) / len(lengths), 1) if lengths else None,
        "texts": len(lengths),
        "no_text": dict(Counter(t["error"] or "an empty answer" for t in mine if not t["text"].strip())),
    }


def _longer_wins(decided: list[dict], texts: Texts, threshold: float | None) -> list[float | None] | None:
    """[share, low, high] of the decided matches that the longer text won: what a judge of nothing but length would get."""
    groups: dict[str, list[float]] = {}
    for row in decided:
        a, b = (len(texts[row["premise_id"], row["k"], w]["text"]) for w in row["writers"])
        if a != b:
            groups.setdefault(row["premise_id"], []).append(float((a > b) == (outcome(row, threshold) == "a")))
    return rounded(cluster_bootstrap([np.array(g) for g in groups.values()]), 4) if groups else None


def lines(figures: dict) -> list[str]:
    """What the tournament says, in plain sentences: what is settled, what is not, and what else may explain it."""
    ranked = [w["name"] for w in figures["writers"] if w["rank"]]
    pairs = {(p["ahead"], p["behind"]): p for p in figures["pairs"]}
    said = []
    for (i, one), (j, two) in itertools.combinations(enumerate(ranked), 2):
        pair = pairs[one, two]
        between = all(pairs[step]["settled"] for step in itertools.pairwise(ranked[i : j + 1]))
        judged = pair["won"] + pair["lost"] + pair["tied"]
        if pair["settled"] and (j == i + 1 or not between):
            said.append(f"{one} is ahead of {two}: settled at 95 %.")
        elif j == i + 1:
            said.append(
                f"{one} and {two} cannot be told apart with {figures['verdicts']} verdicts ({judged} between the two; "
                f"{one} is the better one with probability {pair['probability']:.2f})."
            )
    said += [f"Nothing is known of {w['name']}: no verdict." for w in figures["writers"] if not w["rank"]]
    said.append(f"{figures['matches']} matches on {figures['premises']} premises, {ENDS[figures['end']]}.")
    for w in figures["writers"]:
        said += [f"{w['name']} gave no text {n} times: {why}." for why, n in w["no_text"].items()]
    said += [f"No verdict in {n} matches: {why}." for why, n in figures["why_none"].items()]
    if (figures["ties_by_order"] or 0) > 0.5:
        said.append(
            f"In {100 * figures['ties_by_order']:.0f} % of the verdicts the order of the two texts decided (ties): "
            "this judge mostly cannot tell these texts apart."
        )
    if figures["longer_wins"]:
        share, low, high = figures["longer_wins"]
        known = "" if low is None else f" (95 % interval {100 * low:.0f} to {100 * high:.0f} %)"
        said.append(f"Baseline, length alone: the longer text won {100 * share:.0f} % of the decided matches{known}.")
    return said


def _share(value: float | None) -> str:
    """A percentage that says neither certain nor impossible."""
    return "?" if value is None else "> 99 %" if value > 0.99 else "< 1 %" if value < 0.01 else f"{100 * value:.0f} %"


def table(figures: dict) -> str:
    """Plain text for a terminal: rank, strength with interval, results, length, and won–lost on each dimension."""
    head = ["", "writer", "strength (95 %)", "best", "won", "lost", "tied", "no verdict", "characters"]
    body = [head + [d.key for d in DIMENSIONS]]
    for w in figures["writers"]:
        value, low, high = w["strength"]
        strength = "?" if value is None else f"{value:.0f}" + ("" if low is None else f" ({low:.0f}–{high:.0f})")
        body.append([
            str(w["rank"] or "–"),
            w["name"],
            strength,
            _share(w["best"]),
            *(str(w[kind]) for kind in ("won", "lost", "tied", "no_verdict")),
            "–" if w["characters"] is None else f"{w['characters']:.0f}",
            *(f"{w['dimensions'][key]['won']}–{w['dimensions'][key]['lost']}" for key in KEYS),
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    rows = [
        "  ".join(c.ljust(n) if at < 2 else c.rjust(n) for at, (c, n) in enumerate(zip(row, widths, strict=True)))
        for row in body
    ]
    return "\n".join([*(row.rstrip() for row in rows), "", *figures["lines"]])
