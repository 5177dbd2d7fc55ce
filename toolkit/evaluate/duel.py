"""Base against aligned on premises neither was trained on: both write, the judge compares, the reward model scores."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from toolkit.engines.base import Sampling
from toolkit.engines.llama import LlamaEngine
from toolkit.evaluate.judge import Judge, Verdict
from toolkit.narrative.dimensions import KEYS
from toolkit.narrative.writing import whole_sentences, write_prompt
from toolkit.progress import bar, batched
from toolkit.records import AspectRatings, Plot, Premise, append_jsonl, read_jsonl, write_jsonl
from toolkit.stats import bootstrap, cluster_bootstrap, length_controlled


def duel_stage(
    writers: dict[str, Path],
    premises: list[Premise],
    per_premise: int,
    sampling: Sampling,
    open_judge: Callable[[], Judge],
    score: Callable[[list[str]], np.ndarray] | None,
    out: Path,
    threshold: float | None = 0.0,
) -> dict:
    """Write, judge and score; everything grows on disk and is reused after a kill.

    Args:
        writers: {"base": GGUF, "aligned": GGUF}; both draw with the same seeds.
        score: texts → (N, 5) rewards; None leaves the mean reward out.
        threshold: of the judge's passport (Verdict.outcome).

    Returns:
        `summarise`'s figures.
    """
    path, verdict_path = out / "plots.jsonl", out / "verdicts.jsonl"
    for name, gguf in writers.items():
        units = list(batched(premises, max(1, 12 // per_premise)))
        have = {p.premise_id for p in read_jsonl(path, Plot) if p.origin == name}
        units = [u for u in units if not {p.id for p in u} <= have]
        if not units:
            continue
        engine = LlamaEngine(gguf)
        append_jsonl(out / "families.jsonl", [{"writer": name, "family": getattr(engine, "family", "")}])
        progress = bar(total=len(premises), desc=name, unit="premise", initial=len(have))
        for unit in units:
            texts = engine.generate([write_prompt(p) for p in unit], per_premise, sampling)
            append_jsonl(
                path,
                [
                    Plot(f"{p.id}-{k}-{name}", whole_sentences(text), p.id, p.text, origin=name)
                    for p, answers in zip(unit, texts, strict=True)
                    for k, text in enumerate(answers)
                    if p.id not in have
                ],
            )
            progress.update(len(unit))
        progress.close()
        engine.close()
    plots = read_jsonl(path, Plot)
    by_id = {p.id: p for p in plots}
    duels = [(p, by_id[f"{p.id}-{k}-aligned"], by_id[f"{p.id}-{k}-base"]) for p in premises for k in range(per_premise)]
    done = {(v["a"], v["b"]) for v in read_jsonl(verdict_path)}
    judge = open_judge()
    progress = bar(total=len(duels), desc="judge", unit="pair", initial=len(done))
    for premise, aligned, base in duels:
        if (aligned.id, base.id) in done:
            continue
        if aligned.text and base.text and aligned.text != base.text:
            verdict = judge.compare(premise.text, aligned, base)
        else:  # nothing to ask: twice the same text is a tie, and a text wins against an empty answer
            sure = dict.fromkeys(KEYS, 0.5 + 0.5 * (bool(aligned.text) - bool(base.text)))
            verdict = Verdict(premise.id, aligned.id, base.id, sure, sure)
        append_jsonl(verdict_path, [dataclasses.asdict(verdict)])
        progress.update(1)
    progress.close()
    verdicts = [Verdict(**v) for v in read_jsonl(verdict_path)]
    known = {"judge": judge.name, "judge_family": judge.family}
    known["families"] = {row["writer"]: row["family"] for row in read_jsonl(out / "families.jsonl")}
    judge.close()
    scores = None
    if score is not None:
        written = [p for p in plots if p.text]
        values = score([p.text for p in written])
        scores = {p.id: row for p, row in zip(written, values, strict=True)}
        rows = [
            AspectRatings(id, {k: round(float(v), 4) for k, v in zip(KEYS, r, strict=True)}) for id, r in scores.items()
        ]
        write_jsonl(out / "scores.jsonl", rows)
    return {**known, **summarise(verdicts, by_id, scores, threshold)}


def summarise(
    verdicts: list[Verdict],
    plots: dict[str, Plot],
    scores: dict[str, np.ndarray] | None,
    threshold: float | None = 0.0,
) -> dict:
    """Figures with 95 % intervals (bootstrap over premises).

    win_rate: of aligned, overall and per dimension, a tie half, over the pairs with a verdict; None without any.
    raw_*: the same over all judged pairs, whether or not the judge has earned trust. lean_rate: with the order
    cancelled out. length_controlled: win_rate at equal length. Also how often the order decided, lengths, how often the
    longer text wins, and rewards.
    """
    by_premise: dict[str, list[Verdict]] = {}
    judged = [v for v in verdicts if not v.error]
    for v in judged:
        by_premise.setdefault(v.premise_id, []).append(v)
    groups = list(by_premise.values())
    trusted = [[v for v in g if v.outcome(threshold=threshold) != "none"] for g in groups]
    trusted = [g for g in trusted if g]
    length = lambda id: len(plots[id].text)  # noqa: E731

    def rate(value, groups=groups) -> list[float | None]:
        return _round(cluster_bootstrap([np.array([value(v) for v in g], float) for g in groups]))

    ratios = [np.array([[v.points(), np.log(max(length(v.a), 1) / max(length(v.b), 1))] for v in g]) for g in trusted]
    decided = [v for g in trusted for v in g if not v.flipped]
    longer = [float((length(v.a) > length(v.b)) == (v.points() == 1.0)) for v in decided if length(v.a) != length(v.b)]
    summary = {
        "pairs": len(verdicts),
        "premises": len({v.premise_id for v in verdicts}),
        "threshold": threshold,
        "no_verdict": len(verdicts) - sum(map(len, trusted)),
        "errors": [v.error for v in verdicts if v.error],
        "win_rate": rate(lambda v: v.points(), trusted),
        "length_controlled": _round(length_controlled(ratios)),
        "raw_win_rate": rate(lambda v: v.points()),
        "raw_win_rate_by_dimension": {k: rate(lambda v, k=k: v.points(k)) for k in KEYS},
        "lean_rate": rate(lambda v: v.lean()),
        "lean_rate_by_dimension": {k: rate(lambda v, k=k: v.lean(k)) for k in KEYS},
        "ties_by_order": round(sum(v.flipped for v in judged) / len(judged), 4) if judged else None,
        "wins": sum(v.points() == 1 for v in decided),
        "losses": sum(v.points() == 0 for v in decided),
        "longer_wins": round(sum(longer) / len(longer), 4) if longer else None,
        "mean_characters": {
            side: round(sum(length(getattr(v, at)) for v in verdicts) / len(verdicts), 1)
            for side, at in (("aligned", "a"), ("base", "b"))
        },
    }
    every: dict[str, list[Verdict]] = {}
    for v in verdicts:
        every.setdefault(v.premise_id, []).append(v)
    scored = [[v for v in g if v.a in (scores or {}) and v.b in (scores or {})] for g in every.values()]
    scored = [g for g in scored if g]
    if scored:
        table = {}
        for side, at in (("aligned", "a"), ("base", "b")):
            rows = np.array([scores[getattr(v, at)] for g in scored for v in g])
            table[side] = {k: round(float(m), 4) for k, m in zip(KEYS, rows.mean(0), strict=True)}
            table[side]["mean"] = _round(bootstrap(rows.mean(1)))
        gains = [np.array([scores[v.a].mean() - scores[v.b].mean() for v in g]) for g in scored]
        table["gain"] = _round(cluster_bootstrap(gains))
        summary["reward"] = table
    return summary


def _round(values) -> list[float | None]:
    return [None if math.isnan(v) else round(float(v), 4) for v in values]
