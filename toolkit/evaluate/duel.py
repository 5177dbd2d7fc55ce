"""Base against aligned on premises neither was trained on: both write, the judge compares, the reward model scores."""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from toolkit.engines.base import Engine, Sampling
from toolkit.evaluate.judge import Judge, Verdict
from toolkit.narrative.dimensions import KEYS
from toolkit.narrative.writing import whole_sentences, write_prompt
from toolkit.progress import bar, batched
from toolkit.records import AspectRatings, Plot, Premise, append_jsonl, read_jsonl, write_jsonl
from toolkit.stats import bootstrap, cluster_bootstrap, length_controlled, rounded


def duel_stage(
    writers: dict[str, Callable[[], Engine]],
    premises: list[Premise],
    per_premise: int,
    sampling: Sampling,
    open_judge: Callable[[], Judge],
    score: Callable[[list[str]], np.ndarray] | None,
    out: Path,
    threshold: float | None = 0.0,
    beside: bool = False,
) -> dict:
    """Write, judge and score; everything grows on disk and is reused after a kill.

    Args:
        writers: "base" and "aligned", each opened when its turn comes; both draw with the same seeds.
        score: texts → (N, 5) rewards; None leaves the mean reward out.
        threshold: of the judge's passport (Verdict.outcome).
        beside: the judge is in memory beside the second writer and judges while that writes (for a judge on the CPU
            and a writer on the GPU); else one after the other, never both in memory. The verdicts are the same.

    Returns:
        `summarise`'s figures.
    """
    path = out / "plots.jsonl"
    plots = {p.id: p for p in read_jsonl(path, Plot)}
    bench = _Bench(open_judge, plots, per_premise, len(premises), out / "verdicts.jsonl")
    early: list[Future] = []
    with ThreadPoolExecutor(1) as pool:
        for name, open_writer in writers.items():
            for unit in _write(name, open_writer, premises, per_premise, sampling, plots, path):
                if beside and name == "aligned":
                    early.append(pool.submit(bench.judge, unit))
    for job in early:
        job.result()  # what failed beside the writer fails here
    bench.judge(premises)
    verdicts = [Verdict(**v) for v in read_jsonl(bench.path)]
    known = bench.close()
    known["families"] = {row["writer"]: row["family"] for row in read_jsonl(out / "families.jsonl")}
    scores = None
    if score is not None:
        written = [p for p in plots.values() if p.text]
        values = score([p.text for p in written])
        scores = {p.id: row for p, row in zip(written, values, strict=True)}
        rows = [
            AspectRatings(id, {k: round(float(v), 4) for k, v in zip(KEYS, r, strict=True)}) for id, r in scores.items()
        ]
        write_jsonl(out / "scores.jsonl", rows)
    return {**known, **summarise(verdicts, plots, scores, threshold)}


def _write(name, open_writer, premises, per_premise, sampling, plots, path) -> Iterator[list[Premise]]:
    """Let one writer write what is not in `plots` yet, in fixed units; yields each unit as it is on disk."""
    units = list(batched(premises, max(1, 12 // per_premise)))
    have = {p.premise_id for p in plots.values() if p.origin == name}
    units = [u for u in units if not {p.id for p in u} <= have]
    if not units:
        return
    engine = open_writer()
    append_jsonl(path.with_name("families.jsonl"), [{"writer": name, "family": engine.family}])
    progress = bar(total=len(premises), desc=name, unit="premise", initial=len(have))
    for unit in units:
        texts = engine.generate([write_prompt(p) for p in unit], per_premise, sampling)
        written = [
            Plot(f"{p.id}-{k}-{name}", whole_sentences(text), p.id, p.text, origin=name)
            for p, answers in zip(unit, texts, strict=True)
            for k, text in enumerate(answers)
            if p.id not in have
        ]
        append_jsonl(path, written)
        plots.update((p.id, p) for p in written)
        progress.update(len(unit))
        yield unit
    progress.close()
    engine.close()


class _Bench:
    """The judge, opened when it is first needed, and what it has decided."""

    def __init__(self, open_judge, plots: dict[str, Plot], per_premise: int, premises: int, path: Path):
        self.open_judge, self.plots, self.per_premise, self.path = open_judge, plots, per_premise, path
        self.done = {(v["a"], v["b"]) for v in read_jsonl(path)}
        self.total, self.one = premises * per_premise, None

    def judge(self, premises: list[Premise]) -> None:
        """Judge what is not decided yet of these premises."""
        if self.one is None:
            self.one = self.open_judge()
            self.bar = bar(total=self.total, desc="judge", unit="pair", initial=len(self.done))
        for premise in premises:
            for k in range(self.per_premise):
                aligned, base = (self.plots[f"{premise.id}-{k}-{name}"] for name in ("aligned", "base"))
                if (aligned.id, base.id) in self.done:
                    continue
                if aligned.text and base.text and aligned.text != base.text:
                    verdict = self.one.compare(premise.text, aligned, base)
                else:  # nothing to ask: twice the same text is a tie, and a text wins against an empty answer
                    sure = dict.fromkeys(KEYS, 0.5 + 0.5 * (bool(aligned.text) - bool(base.text)))
                    verdict = Verdict(premise.id, aligned.id, base.id, sure, sure)
                append_jsonl(self.path, [dataclasses.asdict(verdict)])
                self.done.add((aligned.id, base.id))
                self.bar.update(1)

    def close(self) -> dict:
        self.bar.close()
        self.one.close()
        return {"judge": self.one.name, "judge_family": self.one.family}


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
        return rounded(cluster_bootstrap([np.array([value(v) for v in g], float) for g in groups]))

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
        "length_controlled": rounded(length_controlled(ratios)),
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
            table[side]["mean"] = rounded(bootstrap(rows.mean(1)))
        gains = [np.array([scores[v.a].mean() - scores[v.b].mean() for v in g]) for g in scored]
        table["gain"] = rounded(cluster_bootstrap(gains))
        summary["reward"] = table
    return summary
