"""Any number of writers against each other: all write to the same premises, a judge compares blind and in both orders.

Strengths, intervals and the choice of the next match are in `bradley_terry`. Everything grows on disk and is reused
after a kill: the next match depends on the verdicts so far and the seed, and on nothing else.
"""

import dataclasses
import hashlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from toolkit.engines.base import Engine, Sampling
from toolkit.errors import UserError
from toolkit.evaluate import bradley_terry as bt
from toolkit.evaluate import charts
from toolkit.evaluate.judge import Judge, Verdict
from toolkit.evaluate.ranking import Texts, results_of, summarise
from toolkit.evaluate.writers import check_premises, claim, save, write
from toolkit.narrative.dimensions import KEYS
from toolkit.progress import bar
from toolkit.records import Plot, Premise, append_jsonl, build, dump, read_jsonl


def tournament(
    writers: dict[str, Callable[[], Engine]],
    premises: list[Premise],
    judge: Callable[[], Judge],
    out: Path,
    *,
    sampling: Sampling,
    per_premise: int = 1,
    budget: int | None = None,
    threshold: float | None = 0.0,
    seed: int = 0,
    about: dict | None = None,
) -> dict:
    """Write, judge the matches that tell most, and rank.

    In `out`: plots.jsonl, verdicts.jsonl, tournament.json, tournament.svg (strengths), wins.svg (who beat whom).

    Args:
        writers: name → what opens it; opened one after the other, and closed before the judge is opened.
        per_premise: texts of each writer on a premise; the k-th of one meets the k-th of the other.
        budget: most matches in all, those of earlier calls included; None: until settled or all are played.
        threshold: least |log-odds| at which a verdict counts (the judge's passport's).
        seed: decides which premise comes first.
        about: what else makes the texts (files, hashes); a call that differs in it does not reuse them.

    Returns:
        `ranking.summarise`'s figures. Stopping at a settled order is allowed for in what is called settled, and not in
        the intervals of the strengths: those are of the verdicts at hand (see `bradley_terry.intervals`).

    Raises:
        UserError: fewer than two writers, names or ids that occur twice, no premise, or `out` holds another tournament.
        EngineDown: a writer or the judge is gone; what is done is kept.
    """
    _check(writers, premises, per_premise, budget, threshold)
    out.mkdir(parents=True, exist_ok=True)
    names = sorted(writers)  # the order in which they are given changes nothing
    settings = {
        "writers": names,
        "premises": hashlib.sha256("\n".join(map(dump, premises)).encode()).hexdigest()[:16],
        "per_premise": per_premise,
        "sampling": dataclasses.asdict(sampling),
        "seed": seed,
        "about": about or {},
    }
    claim(out / "tournament.json", settings, "tournament")
    for name, open_writer in writers.items():
        write(name, open_writer, premises, per_premise, [({}, sampling)], out / "plots.jsonl", at_once=12)
    texts = _texts(out)
    left = _matches(_who_wrote(names, texts), premises, texts, per_premise, out, seed)
    settings["judge"], end = _judge(left, texts, judge, out, settings, budget, threshold)
    found = summarise(names, texts, read_jsonl(out / "verdicts.jsonl"), threshold, end)
    figures = {"settings": settings, **found}
    save(out / "tournament.json", json.dumps(figures, indent=1, ensure_ascii=False))
    save(out / "tournament.svg", charts.strengths(figures))
    save(out / "wins.svg", charts.pairwise(figures))
    return figures


def _check(writers, premises, per_premise, budget, threshold) -> None:
    if len(writers) < 2:
        raise UserError(f"{len(writers)} writer given; a tournament needs at least two", "name another model")
    plain = [name.strip().casefold() for name in writers]
    if twice := {name for name, p in zip(writers, plain, strict=True) if plain.count(p) > 1 or not p}:
        raise UserError(f"writers' names must differ: {', '.join(map(repr, sorted(twice)))}", "give each its own name")
    check_premises(premises)
    for name, value in (("per_premise", per_premise), ("budget", budget)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; at least 1 is needed")
    if threshold is None:
        raise UserError(
            "the judge has earned no trust at any threshold: no verdict of it would count",
            "take another judge, or set the threshold to 0 to count every verdict all the same",
        )


def _texts(out: Path) -> Texts:
    return {(row["premise_id"], row["k"], row["origin"]): row for row in read_jsonl(out / "plots.jsonl")}


def _matches(names, premises, texts, per_premise, out: Path, seed: int) -> dict[tuple[str, str], list]:
    """Pair of writers → the (premise, k) on which both wrote and have not met, in an order that the seed decides."""
    done = {(row["premise_id"], row["k"], *row["writers"]) for row in read_jsonl(out / "verdicts.jsonl")}
    slots = [(p, k) for p in premises for k in range(per_premise)]
    random.Random(seed).shuffle(slots)
    return {
        (a, b): [
            (p, k)
            for p, k in slots
            if all(texts[p.id, k, w]["text"].strip() for w in (a, b)) and (p.id, k, a, b) not in done
        ]
        for a, b in itertools.combinations(names, 2)
    }


def _judge(left, texts: Texts, open_judge, out: Path, settings: dict, budget, threshold) -> tuple[str, str]:
    """Play until settled, out of budget, or all is played: (the judge's name, which of ranking.ENDS)."""
    path, rows = out / "verdicts.jsonl", read_jsonl(out / "verdicts.jsonl")
    names = sorted({name for pair in left for name in pair})
    most = min(len(rows) + sum(map(len, left.values())), budget or 10**9)
    judge = open_judge()
    progress = bar(total=most, desc="judge", unit="match", initial=len(rows))
    try:
        claim(out / "tournament.json", {**settings, "judge": judge.name}, "tournament")
        while True:
            results = results_of(rows, names, threshold)
            now = bt.standing(results, len(names))
            playable = [(names.index(a), names.index(b)) for (a, b), slots in left.items() if slots]
            if bt.begun(results, playable) and bt.settled_order(now):
                return judge.name, "settled"
            if not playable or len(rows) >= most:
                return judge.name, "budget" if playable else "played"
            a, b = pair = tuple(names[i] for i in bt.next_pair(results, now, playable))
            times = Counter(row["premise_id"] for row in rows)
            premise, k = slot = min(left[pair], key=lambda slot: times[slot[0].id])  # spread over the premises
            left[pair].remove(slot)
            one, two = (build(Plot, texts[premise.id, k, w]) for w in pair)
            if one.text == two.text:  # nothing to ask
                even = dict.fromkeys(KEYS, 0.5)
                verdict = Verdict(premise.id, one.id, two.id, even, even)
            else:
                verdict = judge.compare(premise.text, one, two)
            rows.append({**dataclasses.asdict(verdict), "k": k, "writers": [a, b]})
            append_jsonl(path, rows[-1:])
            progress.update(1)
    finally:
        progress.close()
        judge.close()


def _who_wrote(names: list[str], texts: Texts) -> list[str]:
    """The writers with at least one text; UserError when there are not two."""
    wrote = [name for name in names if any(t["text"].strip() for (_, _, who), t in texts.items() if who == name)]
    if len(wrote) < 2:
        why = next((t["error"] for t in texts.values() if t["error"]), "every answer is empty")
        raise UserError(
            f"nothing to compare: {', '.join(set(names) - set(wrote))} wrote no text ({why})", "check the models"
        )
    return wrote
