"""Positive–Negative rating (PlotTwist): the same plot is asked once for its merits and, apart, once for its faults."""

from pathlib import Path

from toolkit.engines.base import Choice, Engine, Messages
from toolkit.narrative.damage import HARM, damage
from toolkit.narrative.dimensions import DIMENSIONS, SCALE
from toolkit.narrative.prompts import prompt
from toolkit.progress import bar, batched
from toolkit.records import AspectRatings, Plot, append_jsonl, guess_language, read_jsonl, split_of
from toolkit.stats import bootstrap

DIGITS = "12345"


def rate_plot(engine: Engine, plot: Plot, reason: int = 12) -> AspectRatings:
    """Rate one plot on the five dimensions: ten questions in one call, so that the plot is read once.

    Args:
        reason: tokens of each merit or fault named; 0 names none.

    Returns:
        AspectRatings with `positive`, `negative` and `scores`, each on 1 … 10 (see `balanced`).
    """
    return rate_plots(engine, [plot], reason)[0]


def rate_plots(engine: Engine, plots: list[Plot], reason: int = 12) -> list[AspectRatings]:
    """As `rate_plot`, all in one call: for engines that answer more than ten questions at once (several servers)."""
    asks = [ask for plot in plots for ask in _questions(plot)]
    answers = batched(engine.choose(asks, list(DIGITS), reason), 2 * len(DIMENSIONS))
    return [_ratings(plot, own, engine.name) for plot, own in zip(plots, answers, strict=True)]


def _questions(plot: Plot) -> list[Messages]:
    """For each dimension one question for merits and one for faults; alike up to the plot's end."""
    language = guess_language(plot.text)
    head = [{"role": "system", "content": prompt("rate_system", language)}]
    shown = prompt("rate_plot", language, plot=plot.text)
    return [
        [*head, {"role": "user", "content": f"{shown}\n\n{prompt(side, language, name=d.name, asks=d.asks)}"}]
        for d in DIMENSIONS
        for side in ("positive", "negative")
    ]


def _ratings(plot: Plot, answers: list[Choice], rater: str) -> AspectRatings:
    merits, faults = answers[::2], answers[1::2]
    positive = {d.key: _stretch(m.expect(range(1, 6))) for d, m in zip(DIMENSIONS, merits, strict=True)}
    negative = {d.key: _stretch(6 - f.expect(range(1, 6))) for d, f in zip(DIMENSIONS, faults, strict=True)}
    return AspectRatings(
        plot_id=plot.id,
        scores={key: round(balanced(positive[key], negative[key]), 4) for key in positive},
        positive={k: round(v, 4) for k, v in positive.items()},
        negative={k: round(v, 4) for k, v in negative.items()},
        merits=_said(merits),
        faults=_said(faults),
        rater=rater,
    )


def balanced(positive: float, negative: float) -> float:
    """The merge of the two assessments: their mean, so that a rater's kindness, which lifts merits and hides faults,
    cancels against its severity when asked for faults alone.

    Not published; chosen because it is the only merge that treats both prompts alike and keeps the scale.

    Args:
        positive: quality as the merits show it, 1 … 10.
        negative: quality that the faults leave, 1 … 10.
    """
    return (positive + negative) / 2


def _stretch(five: float) -> float:
    """1 … 5 → SCALE (1 … 10)."""
    return SCALE[0] + (five - 1) / 4 * (SCALE[1] - SCALE[0])


def _said(answers: list[Choice]) -> dict[str, str]:
    return {d.key: a.reason for d, a in zip(DIMENSIONS, answers, strict=True) if a.reason}


def check_rater(engine: Engine, plots: list[Plot], count: int, seed: int, path: Path) -> dict:
    """Test the rater where the answer is known: well-made plots of the test side against their own damage.

    Args:
        plots: well-made plots; those on the test side are used, `count` at most, one kind of damage each in turn.
        path: check.jsonl, grows a line a comparison and is reused after a kill.

    Returns:
        {"rater_check": {"right": share of comparisons whose damaged dimension was rated lower, with its 95 % interval,
        "comparisons": n}}; empty when `count` is 0. A coin gets 0.5.
    """
    known = sorted((p for p in plots if split_of(p.premise_id or p.id) == "test"), key=lambda p: p.id)
    done = {row["plot_id"] for row in read_jsonl(path)}
    kinds = list(HARM)
    progress = bar(total=min(count, len(known)), desc="rater check", unit="plot", initial=len(done)) if count else None
    for number, plot in enumerate(known[:count]):
        if plot.id in done:
            continue
        worse = next(
            (d for k in range(len(kinds)) if (d := damage(plot, kinds[(number + k) % len(kinds)], 0.7, plots, seed))),
            None,
        )
        progress.update(1)
        if worse is None:
            continue
        kind = worse.origin.split(":")[1]
        aimed = [key for key, share in HARM[kind].items() if share == 1.0]
        good, bad = rate_plot(engine, plot, reason=0), rate_plot(engine, worse, reason=0)
        right = [float(good.scores[k] > bad.scores[k]) for k in aimed]
        append_jsonl(path, [{"plot_id": plot.id, "kind": kind, "right": sum(right) / len(right)}])
    if progress is not None:
        progress.close()
    rows = [row["right"] for row in read_jsonl(path)]
    return {"rater_check": {"right": list(bootstrap(rows)), "comparisons": len(rows)}} if rows else {}
