"""Does a judge tell good texts from bad ones? PlotTwist's check (acclaimed against panned screenplays), for any two sets.

The same figures are computed for the texts' length, which needs no judge: what length alone does is no merit of a judge.
"""

import json
from pathlib import Path

import numpy as np

from toolkit.errors import UserError
from toolkit.evaluate import charts
from toolkit.evaluate.judge import Judge
from toolkit.evaluate.rating import rate_texts, say_unrated
from toolkit.hardware import require_writable
from toolkit.narrative.dimensions import DIMENSIONS
from toolkit.progress import say
from toolkit.records import Plot
from toolkit.stats import auc, cohen_d, mean_difference, permutation_p, rounded, two_sample_bootstrap

LEAST = 5  # texts a side; with 4 against 4 even a perfect judge hardly reaches p < 0.05
SURE = 0.05  # p under which a difference is called one


def sensitivity(judge: Judge, good: list[Plot], bad: list[Plot], out: Path | None, seed: int = 0) -> dict:
    """Rate both sets and say how far apart the judge holds them.

    Intervals are 95 % bootstraps over the texts, each side drawn by itself, and take texts as independent; where a judge
    separates the sets without one exception the interval of the AUC has no width, however few the texts.

    Args:
        out: folder for ratings.jsonl (a later call goes on from it), sensitivity.json and sensitivity.svg; None keeps nothing.

    Returns:
        {"judge", "good" and "bad": {"texts", "repeated", "unrated"}, "reasons": why there is no rating → count,
        "measures": {dimension key, "mean" and "length" (characters): {"good", "bad": mean; "delta", "d", "auc":
        [value, low, high]; "p"}}, "over_length": AUC of the mean rating minus that of length, taken in whichever
        direction length points, [value, low, high]; "sentence"}. What cannot be computed is None.

    Raises:
        UserError: fewer than 5 different (or rated) texts a side, or a text that stands in both sets.
    """
    sides = {"good": _distinct(good), "bad": _distinct(bad)}
    for name, texts in sides.items():
        _enough(name, len(texts), "different texts")
    if both := [t for t in sides["good"] if t in set(sides["bad"])]:
        start = " ".join(both[0].split())
        raise UserError(
            f"{len(both)} of the texts stand in both sets, the first: “{start[:60]}{'…' if len(start) > 60 else ''}”",
            "a text cannot be good and bad: take it out of one file",
        )
    if out is not None:
        require_writable(out)
    rated = rate_texts(judge, sides["good"] + sides["bad"], out / "ratings.jsonl" if out else None)
    reasons = say_unrated(rated)
    records = {"good": rated[: len(sides["good"])], "bad": rated[len(sides["good"]) :]}
    figures: dict = {"judge": judge.name}
    values: dict[str, dict[str, np.ndarray]] = {}
    for name, given in (("good", good), ("bad", bad)):
        kept = [(t, r) for t, r in zip(sides[name], records[name], strict=True) if not r.error]
        _enough(name, len(kept), "texts the judge could rate", next(iter(reasons), ""))
        figures[name] = {
            "texts": len(kept),
            "repeated": len(given) - len(sides[name]),
            "unrated": len(sides[name]) - len(kept),
        }
        values[name] = {d.key: np.array([r.scores[d.key] for _, r in kept]) for d in DIMENSIONS}
        values[name]["mean"] = np.array([r.mean for _, r in kept])
        values[name]["length"] = np.array([float(len(t)) for t, _ in kept])
        if figures[name]["repeated"]:
            say(f"{figures[name]['repeated']} repeated texts among the {name} ones are counted once")
    figures["reasons"] = reasons
    figures["measures"] = {k: _apart(values["good"][k], values["bad"][k], seed) for k in values["good"]}
    figures["over_length"] = _over_length(values["good"], values["bad"], seed)
    figures["sentence"] = sentence(figures)
    if out is not None:
        labels = {d.name.replace(" ", "\n", 1): d.key for d in DIMENSIONS} | {"Mean": "mean"}
        rows = {label: (values["good"][k].tolist(), values["bad"][k].tolist()) for label, k in labels.items()}
        names = tuple(f"{n} ({figures[n]['texts']})" for n in ("good", "bad"))
        picture = charts.overlap(rows, names, "Ratings of the good and the bad texts, by dimension")
        (out / "sensitivity.svg").write_text(picture, encoding="utf-8")
        (out / "sensitivity.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False), encoding="utf-8")
    return figures


def sentence(figures: dict) -> str:
    """What the figures say of the judge's mean rating, in one sentence that claims no more than they do."""
    found, length = figures["measures"]["mean"], figures["measures"]["length"]
    over, low, _ = figures["over_length"]
    share, p = (
        f"{100 * found['auc'][0]:.0f} %",
        "p " + (_p(found["p"]) if found["p"] < 0.001 else f"= {_p(found['p'])}"),
    )
    if found["p"] >= SURE:
        n = f"{figures['good']['texts']} and {figures['bad']['texts']} texts"
        alone = " Length alone tells them apart." if length["p"] < SURE else ""
        return f"Not distinguishable: on {n} the judge's ratings differ no more than chance would ({p}).{alone}"
    if found["delta"][0] < 0:
        return f"The judge has them the wrong way round: it rates the bad texts higher ({p})."
    start = f"The judge tells them apart: a good text is rated above a bad one {share} of the time ({p})"
    if over <= 0:
        return f"{start}, but length alone does as well or better."
    if low is None or low <= 0:
        return f"{start}, but it is not shown to do better than length alone."
    return f"{start}, and better than length alone."


def table(figures: dict) -> str:
    """The figures for a terminal, one line a measure, with the sentence beneath."""
    good, bad = figures["good"], figures["bad"]
    counts = f"{good['texts']} good and {bad['texts']} bad texts, judged by {figures['judge']}"
    if missing := good["unrated"] + bad["unrated"]:
        counts += f"; {missing} left out for want of a rating ({good['unrated']} good, {bad['unrated']} bad)"
    lines = [counts, "", f"{'':<26}{'good':>6}{'bad':>8}{'Δ [95 %]':>24}{'d [95 %]':>23}{'AUC [95 %]':>21}{'p':>9}"]
    for label, key in [(d.name, d.key) for d in DIMENSIONS] + [("Mean", "mean"), ("Length alone", "length")]:
        row = figures["measures"][key]
        digits = 0 if key == "length" else 2
        lines.append(
            f"{label:<26}{row['good']:>6.{digits}f}{row['bad']:>8.{digits}f}{_span(row['delta'], digits, '+'):>24}"
            f"{_span(row['d'], 2, '+'):>23}{_span(row['auc'], 2):>21}{_p(row['p']):>9}"
        )
    return "\n".join([*lines, "", figures["sentence"]])


def _distinct(plots: list[Plot]) -> list[str]:
    return list(dict.fromkeys(p.text.strip() for p in plots))


def _enough(side: str, n: int, what: str, why: str = "") -> None:
    if n < LEAST:
        raise UserError(
            f"{n} {what} on the {side} side; at least {LEAST} are needed" + (f" (left out: {why})" if why else ""),
            "with fewer, chance decides what comes out",
        )


def _apart(good: np.ndarray, bad: np.ndarray, seed: int) -> dict:
    return {
        "good": round(float(good.mean()), 4),
        "bad": round(float(bad.mean()), 4),
        "delta": rounded(two_sample_bootstrap(good, bad, mean_difference, seed)),
        "d": rounded(two_sample_bootstrap(good, bad, cohen_d, seed)),
        "auc": rounded(two_sample_bootstrap(good, bad, auc, seed)),
        "p": round(permutation_p(good, bad, seed), 6),
    }


def _over_length(good: dict, bad: dict, seed: int) -> list[float | None]:
    """AUC of the mean rating − AUC of length on the same drawn texts, length turned so that it does its best."""
    sign = 1 if auc(good["length"], bad["length"]) >= 0.5 else -1
    length = [sign * side["length"] for side in (good, bad)]
    gain = lambda a, b, wa, wb: auc(a, b, wa, wb) - auc(*length, wa, wb)  # noqa: E731
    return rounded(two_sample_bootstrap(good["mean"], bad["mean"], gain, seed))


def _span(values: list[float | None], digits: int, sign: str = "") -> str:
    value, low, high = (f"{v:{sign}.{digits}f}" if v is not None else "–" for v in values)
    return f"{value} [{low}, {high}]"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
