"""Adversarial rounds: one agent hides flaws in greetings, one finds them, and both lists of rules grow sharper.

    generator (S_G) ─flawed greeting─▶ detector (S_D) ─found: how to hide better─▶ optimiser ─▶ new S_G
    labelled good and flawed ones ───▶      │
                                            └─wrong: reflector, a change to S_D─▶ optimiser ─▶ S_D for trial ─▶ gate ─▶ kept or not

After the published loop (adversarial principle-guided judge, reflection; rounds in batches of 4, at most 10 rules). Ours is the
gate: a new S_D is kept only when it is no worse on held-out labelled greetings that no round has shown to any agent.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from toolkit.engines.base import Engine
from toolkit.errors import UserError
from toolkit.feedback.adversaries import Adversaries
from toolkit.feedback.principled import by_request, figures, rights
from toolkit.greeting.principles import Principles, diff
from toolkit.progress import bar, batched
from toolkit.recipe import PrinciplesSettings
from toolkit.records import Labelled, Request, write_jsonl
from toolkit.stats import cluster_bootstrap, rounded, wilson

ROLES = ("generator", "detector", "reflector", "optimiser")
BATCH = 4  # requests between two rewritings of the lists; as published
COUNTS = (
    "generated",
    "passed_count",
    "labelled",
    "labelled_wrong",
)  # greetings with a verdict, and the wrong ones of each
EXAMPLES = 2  # labelled pairs beside each batch: as many labelled greetings as generated ones. Our choice


def train(
    engines: dict[str, Engine],
    requests: list[Request],
    labelled_train: list[Labelled],
    labelled_gate: list[Labelled],
    start: dict[str, dict[str, Principles]],
    settings: PrinciplesSettings,
    out: Path,
    seed: int,
) -> dict:
    """Run the rounds in one language. A killed run goes on where it was and ends as if it had not been killed.

    Args:
        engines: one for each of ROLES; the same one may play several.
        requests: of one language and of the train side; what the generator answers.
        labelled_train: good and flawed greetings that the agents may see.
        labelled_gate: held-out ones of other requests, which decide whether a new S_D is kept. What they say of the kept one is
            a little too kind, as of anything chosen by them: measure it on a third side.
        start: "detector" and "generator" → language → the list to start from.
        out: folder for history.jsonl (a row a round, 0 is the start), steps.jsonl (every answer asked for),
            detector.LANG.md and generator.LANG.md (the lists as they stand).

    Returns:
        The facts: rounds, kept (rounds whose S_D was), stopped (why), calibrated, shift and start_shift (what to take off the log-odds of a judge with the kept list, and with the first),
        gate (pairs, start and best figures), passed (share of generated greetings that were found Good), calls, tokens, seconds,
        errors and dropped (by reason), detector and generator (the kept lists).

    Raises:
        UserError: several languages, no list in this one, too few requests, a gate that the agents would see.
        EngineDown: an engine is gone; run it again to go on.
    """
    language = _check(requests, labelled_train, labelled_gate, start, settings)
    out.mkdir(parents=True, exist_ok=True)
    agents = Adversaries(engines, language, settings, out / "steps.jsonl", seed)
    best, s_g = start["detector"][language], start["generator"][language]
    odds = _open_gate(agents, best, labelled_gate)
    first = standing = figures(labelled_gate, odds)
    history = [{"round": 0, "language": language, "verdict": "start", "kept": True, "why": "where it starts"}]
    history[0] |= {"detector_after": best.rules, "generator_after": s_g.rules, **_shown(first), **agents.spent()}
    stale, stopped = 0, "all rounds done"
    rng = np.random.default_rng(seed)
    drawn = _drawn(requests, settings.rounds * settings.per_round, rng)
    examples = _drawn(labelled_train, settings.rounds * -(-settings.per_round // BATCH) * EXAMPLES, rng)
    progress = bar(total=settings.rounds, desc=f"rounds {language}", unit="round")
    for number in range(1, settings.rounds + 1):
        per = len(drawn) // settings.rounds, len(examples) // settings.rounds
        mine = [items[(number - 1) * n : number * n] for items, n in zip((drawn, examples), per, strict=True)]
        draft, new_g, row = _round(agents, number, best, s_g, *mine)
        tried, found, now = _gate(agents, labelled_gate, draft, best, odds, standing)
        better = _key(now) > _key(standing)
        row |= {"generator_before": s_g.rules, "generator_after": new_g.rules, "generator_diff": diff(s_g, new_g)}
        if tried["kept"]:
            best = replace(draft, version=best.version + 1, note=f"round {number}: {tried['why']}")
            odds, standing = found, now
        if new_g.rules != s_g.rules:
            s_g = replace(new_g, version=s_g.version + 1, note=f"round {number}")
        stale = 0 if better else stale + 1
        history.append({"round": number, "language": language, **row, **tried, **agents.spent()})
        _save(out, history, best, s_g)
        progress.update(1)
        if stale >= settings.patience and number < settings.rounds:
            stopped = f"no gain in {stale} round{'s' * (stale > 1)}"
            break
    progress.close()
    _save(out, history, best, s_g)
    gate = {"pairs": len(labelled_gate), "start": first, "best": standing}
    shift = round(agents.shifts[best.rules], 4) if agents.calibrated else 0.0
    first_rules = history[0]["detector_after"]
    start_shift = round(agents.shifts[first_rules], 4) if agents.calibrated else 0.0
    facts = {"language": language, "stopped": stopped, "calibrated": agents.calibrated, "shift": shift}
    facts |= {"start_shift": start_shift, "gate": gate}
    lists = {"detector": best, "generator": s_g}
    return facts | _summed(history) | {k: {"version": p.version, "rules": list(p.rules)} for k, p in lists.items()}


def _summed(history: list[dict]) -> dict:
    """What the rounds come to together."""
    rounds = history[1:]
    out = {"rounds": len(rounds), "kept": sum(row["kept"] for row in rounds)}
    out |= {k: sum(row[k] for row in rounds) for k in COUNTS}
    out["passed"] = _share(out["passed_count"], out["generated"])
    out |= {k: round(sum(row[k] for row in history), 1) for k in ("calls", "tokens", "seconds")}
    return out | {k: dict(sum((Counter(row[k]) for row in history), Counter())) for k in ("errors", "dropped")}


def _share(part: int, whole: int) -> list[float | None]:
    """[share, low, high], Wilson's interval."""
    return rounded([part / whole if whole else float("nan"), *wilson(part, whole)])


def _shown(figures_: dict) -> dict:
    """What a row of history tells of the gate."""
    return {k: figures_[k] for k in ("accuracy", "auc", "pairwise", "unanswered")} if figures_["pairs"] else {}


def _save(out: Path, history: list[dict], detector: Principles, generator: Principles) -> None:
    write_jsonl(out / "history.jsonl", history)
    detector.save(out / f"detector.{detector.language}.md")
    generator.save(out / f"generator.{generator.language}.md")


def _check(requests, labelled_train, labelled_gate, start, settings) -> str:
    languages = {r.language for r in requests} | {x.language for x in [*labelled_train, *labelled_gate]}
    if len(languages) != 1:
        raise UserError(f"the rounds run in one language, not in {len(languages)}", "give requests of one language")
    language = languages.pop()
    for kind in ("detector", "generator"):
        if language not in start[kind]:
            raise UserError(f"no {kind} list in {language}", "give a list of rules in that language")
    if settings.rounds and len(requests) < BATCH:
        raise UserError(f"{len(requests)} requests in {language} to train on, a batch needs {BATCH}", "give more")
    if settings.rounds and not labelled_gate:
        raise UserError(
            f"no held-out labelled greetings in {language}: nothing would tell whether new principles are better",
            "give labelled greetings of more requests, or set principles.rounds to 0",
        )
    seen = {r.id for r in requests} | {x.request_id for x in labelled_train}
    texts = {r.text for r in requests} | {t for x in labelled_train for t in (x.request, x.good, x.bad)}
    for x in labelled_gate:
        if x.request_id in seen or texts & {x.request, x.good, x.bad}:
            raise UserError(
                f"the held-out greetings of {x.request_id} are among those the agents learn from",
                "split labelled greetings by request",
            )
    return language


def _drawn(items: list, count: int, rng: np.random.Generator) -> list:
    """`count` of `items`: all in random order, and again from the start when they run out."""
    order = [items[i] for i in rng.permutation(len(items))]
    return [order[i % len(order)] for i in range(count)] if order else []


def _open_gate(agents: Adversaries, principles: Principles, labelled: list[Labelled]) -> list[float | None]:
    """Measure the starting principles plain and with the content-free shift, and go on with what is righter, plain where
    it is a tie: chosen once, before any round, because with a small model all verdicts may be the same word.
    """
    plain = agents.measure(principles, labelled)
    if not labelled:
        return plain
    agents.calibrated = True
    shifted = agents.measure(principles, labelled)
    agents.calibrated = bool(rights(shifted).mean() > rights(plain).mean())
    return shifted if agents.calibrated else plain


def _gate(
    agents: Adversaries, labelled: list[Labelled], draft: Principles, best: Principles, odds: list, standing: dict
) -> tuple[dict, list[float | None], dict]:
    """Whether a new S_D is kept: its accuracy is higher, or equal with an AUC no lower.

    Args:
        odds, standing: log-odds and figures of `best` on the gate.

    Returns:
        (what the round's row tells, log-odds and figures of the draft).
    """
    told = {"detector_before": best.rules, "detector_after": draft.rules, "diff": diff(best, draft)}
    if draft.rules == best.rules:
        told |= {"verdict": "unchanged", "kept": False, "why": "no usable change to try", **_shown(standing)}
        return told, odds, standing
    found = agents.measure(draft, labelled)
    new = figures(labelled, found)
    change = (rights(found) - rights(odds)).mean(1)
    gain = rounded(cluster_bootstrap(list(by_request(labelled, change).values())))
    was, now = _key(standing), _key(new)
    kept = now >= was
    told |= {"verdict": "kept" if kept else "rejected", "kept": kept, "gain": gain, **_shown(new)}
    percent = [f"{100 * share:.0f} %" for share in (was[0], now[0])]
    told["why"] = f"accuracy {' → '.join(percent)}, AUC {was[1]:.2f} → {now[1]:.2f}, {new['pairs']} held-out pairs"
    return told, found, new


def _key(figures_: dict) -> tuple[float, float]:
    """By what lists are compared. Without any answer there is no AUC: accuracy 0, and nothing to prefer."""
    return figures_["accuracy"][0] or 0.0, figures_["auc"][0] or 0.0


def _round(
    agents: Adversaries,
    number: int,
    best: Principles,
    s_g: Principles,
    requests: list[Request],
    examples: list[Labelled],
) -> tuple[Principles, Principles, dict]:
    """Batches of requests and labelled pairs → (S_D for trial, S_G, what the round's row tells)."""
    s_d, told = best, Counter()
    tips: dict[str, list[str]] = {"detector": [], "generator": []}
    batches = list(batched(requests, BATCH))
    for b, batch in enumerate(batches):
        step = f"r{number}.b{b}"
        labelled = examples[b * len(examples) // len(batches) : (b + 1) * len(examples) // len(batches)]
        cases = [*agents.flawed(step, s_g, batch), *agents.known(labelled)]
        verdicts = agents.detect(f"{step}.detect", s_d, cases)
        judged = [(c, v) for c, v in zip(cases, verdicts, strict=True) if v["good"] is not None]
        told.update(generated=sum(bool(c.hidden) for c, _ in judged))
        told.update(passed_count=sum(bool(c.hidden) and v["good"] for c, v in judged))
        told.update(labelled=sum(not c.hidden for c, _ in judged))
        told.update(labelled_wrong=sum(not c.hidden and v["good"] != c.good for c, v in judged))
        for_g = agents.how_to_hide(step, s_g, [(c, v) for c, v in judged if c.hidden and not v["good"]])
        for_d = agents.reflect(step, s_d, [(c, v) for c, v in judged if v["good"] != c.good])
        for_d, for_g = agents.usable("detector", for_d, s_d), agents.usable("generator", for_g, s_g)
        tips["detector"] += for_d
        tips["generator"] += for_g
        s_d = agents.rewrite(step, "detector", s_d, for_d)
        s_g = agents.rewrite(step, "generator", s_g, for_g)
    counts = {k: told[k] for k in COUNTS}
    return s_d, s_g, {**counts, "passed": _share(told["passed_count"], told["generated"]), "suggestions": tips}
