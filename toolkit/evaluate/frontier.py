"""Quality against diversity: several writers, each at several sampling settings, several texts for each premise.

Sampling hotter buys diversity with quality, so one point a writer says little: what counts is whether a trained writer
lies above the curve that the other one draws as its temperature changes. Writers of one name are training seeds of one
method and make one point. Texts and ratings grow on disk; a killed call goes on, and a writer or a temperature more
reuses what stands.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.engines.base import Engine, Sampling
from toolkit.errors import UserError
from toolkit.evaluate import charts
from toolkit.evaluate.diversity import premise_values
from toolkit.evaluate.frontier_text import LEAST, lines
from toolkit.evaluate.measures import length_of
from toolkit.evaluate.writers import AT_ONCE, check_premises, claim, save, write
from toolkit.progress import bar, batched
from toolkit.records import Premise, append_jsonl, dump, read_jsonl, text_id
from toolkit.stats import DRAWS, middle, rounded

DIVERSITY = ("semantic", "style", "vendi", "distinct_2", "self_bleu")  # of evaluate.diversity
AXES = ("semantic", "style")  # what the chart's y is, and the comparison at equal quality
MOST_OUTSIDE = 0.2  # of the draws may lie where there is no curve; with more, an interval would be of the lucky rest
SHORTEST_CUT = 30  # words; a writer of stubs does not cut everybody's texts down to nothing


Rate = Callable[[list[str], list[str]], list[float]]


@dataclass(frozen=True)
class Rater:
    """What rates texts.

    Args:
        identity: tells its weights from any other's; ratings are kept under it.
        open: a context in which there is a function (texts, their premises) → ratings on 1 … 10, NaN where there is none;
            entered after the writers are closed, and only when some text has no rating yet.
        caution: what must be said beside its figures; "" when nothing.
    """

    identity: str
    open: Callable[[], AbstractContextManager[Rate]]
    caution: str = ""


@dataclass(frozen=True)
class Setting:
    """One point of a writer's curve."""

    temperature: float
    min_p: float


Key = tuple[str, Setting]  # writer's name, setting
Values = dict[Key, dict[str, np.ndarray]]  # → measure → (S, P): seeds × premises, NaN where there is none


def frontier(
    writers: dict[str, dict[str, Callable[[], Engine]]],
    premises: list[Premise],
    raters: dict[str, Rater],
    out: Path,
    *,
    grid: list[Setting],
    sampling: Sampling,
    samples: int = 8,
    semantic: str = "minilm",
    style: str = "stylometry",
    own: dict[str, list[Setting]] | None = None,
) -> dict:
    """Write, rate, measure, and put quality against diversity.

    In `out`: plots.jsonl, quality.jsonl, frontier.json, frontier.svg.

    Args:
        writers: name → identity of the weights → what opens them; opened one after the other. Several under one name
            are training seeds of one method. The first name is what the others are held against.
        raters: "reward", "judge" → what rates; empty for diversity alone.
        grid: the settings each writer writes at; `sampling` says the rest.
        samples: texts of each writer at each setting on each premise.
        semantic, style: embedding models, see models.embed.
        own: name → settings of that writer instead of `grid`.

    Raises:
        UserError: nothing to write to, a number out of range, `out` holds other texts, or nobody wrote anything.
        EngineDown: a writer or rater is gone; what is done is kept.
    """
    grids = {name: (own or {}).get(name, grid) for name in writers}
    _check(writers, premises, grids, samples)
    settings = {
        "premises": hashlib.sha256("\n".join(map(dump, premises)).encode()).hexdigest()[:16],
        "samples": samples,
        **{k: v for k, v in dataclasses.asdict(sampling).items() if k not in ("temperature", "min_p")},
    }
    out.mkdir(parents=True, exist_ok=True)
    claim(out / "frontier.json", settings, "frontier")
    for name, members in writers.items():
        drawn = [(vars(s), dataclasses.replace(sampling, **vars(s))) for s in grids[name]]
        for i, (identity, open_writer) in enumerate(members.items(), 1):
            shown = f"{name} {i}" if len(members) > 1 else name
            write(identity, open_writer, premises, samples, drawn, out / "plots.jsonl", AT_ONCE, shown)
    members = {m: name for name, ids in writers.items() for m in ids}
    rows = [
        r
        for r in read_jsonl(out / "plots.jsonl")
        if Setting(**r["sampling"]) in grids.get(members.get(r["origin"]), [])
    ]
    if not any(r["text"].strip() for r in rows):
        why = next((r["error"] for r in rows if r["error"]), "every answer is empty")
        raise UserError(f"nothing to compare: no writer wrote any text ({why})", "check the models")
    ratings = {kind: _rate(kind, rater, rows, out / "quality.jsonl") for kind, rater in raters.items()}
    cut = equal_words([r["text"] for r in rows])
    values = _values(rows, writers, premises, grids, samples, ratings, cut, semantic, style)
    figures = {
        "settings": settings,
        "writers": {name: list(ids) for name, ids in writers.items()},
        "premises": len(premises),
        "words": cut,
        "count": at_a_time(samples),
        "embeddings": {"semantic": semantic, "style": style},
        "cautions": {kind: rater.caution for kind, rater in raters.items()},
        "no_text": _no_text(rows, members),
        "unrated": {k: sum(bool(r["text"].strip()) and math.isnan(f[r["text"]]) for r in rows) for k, f in ratings.items()},
        **compare(values, list(raters)),
    }  # fmt: skip
    figures["lines"] = lines(figures)
    save(out / "frontier.json", json.dumps(figures, indent=1, ensure_ascii=False))
    save(out / "frontier.svg", charts.frontier(figures))
    return figures


def _check(writers, premises, grids, samples) -> None:
    if not writers or not all(writers.values()):
        raise UserError("no writer given", "name at least one model")
    check_premises(premises)
    if samples < 2:
        raise UserError(f"samples is {samples}; how far texts are apart takes at least 2")
    if any(len(set(grid)) < max(1, len(grid)) for grid in grids.values()):
        raise UserError("a sampling setting is given twice, or none", "give each temperature and min-p once")


def _rate(kind: str, rater: Rater, rows: list[dict], path: Path) -> dict[str, float]:
    """Text → rating (NaN where there is none); each text is asked about once, whoever wrote it."""
    have = {r["text"]: r["rating"] for r in read_jsonl(path) if r["rater"] == rater.identity}
    texts = {r["text"]: r["premise"] for r in rows if r["text"].strip() and text_id(r["text"]) not in have}
    if texts:
        with rater.open() as rate:
            progress = bar(total=len(texts), desc=kind, unit="text")
            for part in batched(list(texts.items()), AT_ONCE):
                found = rounded(rate([t for t, _ in part], [p for _, p in part]))
                rated = zip(part, found, strict=True)
                new = [{"text": text_id(t), "rater": rater.identity, "rating": rating} for (t, _), rating in rated]
                append_jsonl(path, new)
                have |= {row["text"]: row["rating"] for row in new}
                progress.update(len(part))
            progress.close()
    known = {r["text"]: have.get(text_id(r["text"])) for r in rows}
    return {text: float("nan") if x is None else x for text, x in known.items()}


def equal_words(texts: list[str]) -> int:
    """Length to which texts are cut where length moves a measure: nine texts in ten have as many words."""
    counts = [length_of(t) for t in texts if t.strip()]
    return max(SHORTEST_CUT, int(np.percentile(counts, 10)))


def at_a_time(samples: int) -> int:
    """Texts of a premise that are compared at a time: half of them, so that a few lost or short ones cost no premise."""
    return max(2, samples // 2)


def _values(rows, writers, premises, grids, samples, ratings, cut, semantic, style) -> Values:
    """Measure by seed and premise, for each writer and setting."""
    place = {p.id: i for i, p in enumerate(premises)}
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["origin"], Setting(**row["sampling"]), row["premise_id"]), []).append(row)
    named = {key: json.dumps([key[0], *vars(key[1]).values(), key[2]]) for key in groups}
    texts = {key: [r["text"] for r in group if r["text"].strip()] for key, group in groups.items()}
    enough = {named[key]: found for key, found in texts.items() if len(found) > 1}
    # one call for everything: the embedding model is loaded once
    terms = {"measures": DIVERSITY, "words": cut, "count": at_a_time(samples)}
    spread = premise_values(enough, semantic=semantic, style=style, **terms) if enough else {}
    spread["vendi"] = {key: v / terms["count"] for key, v in spread.get("vendi", {}).items()}
    mean = lambda x: float(np.nanmean(x)) if len(x) and not np.isnan(x).all() else float("nan")  # noqa: E731
    values: Values = {}
    for name, ids in writers.items():
        for setting in grids[name]:
            table = {m: np.full((len(ids), len(premises)), np.nan) for m in (*ratings, *DIVERSITY, "words", "no_text")}
            for s, identity in enumerate(ids):
                for premise, p in place.items():
                    key = (identity, setting, premise)
                    for kind, found in ratings.items():
                        table[kind][s, p] = mean([found[t] for t in texts[key]])
                    for m in DIVERSITY:
                        table[m][s, p] = spread.get(m, {}).get(named[key], np.nan)
                    table["words"][s, p] = mean([length_of(t) for t in texts[key]])
                    table["no_text"][s, p] = 1 - len(texts[key]) / samples
            values[name, setting] = table
    return values


def _no_text(rows: list[dict], members: dict[str, str]) -> dict[str, dict[str, int]]:
    """Name → why there is no text → how often."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        if not row["text"].strip():
            why, reasons = row["error"] or "an empty answer", found.setdefault(members[row["origin"]], {})
            reasons[why] = reasons.get(why, 0) + 1
    return found


# ---- arithmetic


class Draws:
    """Premises and seeds drawn with replacement, D times, row 0 as they are: every figure is of the same draws.

    Premises are drawn once for all writers, so that differences are paired; seeds for each writer by themselves (a
    two-way bootstrap, as for crossed random effects: Owen 2007, "The pigeonhole bootstrap").

    Args:
        seeds: writer → how many training seeds S.
        premises: how many premises P.
    """

    def __init__(self, seeds: dict[str, int], premises: int, seed: int = 0, draws: int = DRAWS):
        rng = np.random.default_rng(seed)
        many = lambda n: np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), size=draws)])  # noqa: E731
        self.premises = many(premises)  # (D + 1, P)
        self.seeds = {name: many(n) for name, n in seeds.items()}  # → (D + 1, S)

    def profile(self, name: str, values: np.ndarray) -> np.ndarray:
        """(S, P) of a writer → its mean over the seeds of each draw, (D + 1, P); NaN where no drawn seed has a value."""
        return _ratio(self.seeds[name] @ np.nan_to_num(values), self.seeds[name] @ ~np.isnan(values))

    def mean(self, profile: np.ndarray) -> np.ndarray:
        """(D + 1, P) → mean over the premises of each draw, (D + 1)."""
        known = ~np.isnan(profile)
        return _ratio((self.premises * np.nan_to_num(profile)).sum(1), (self.premises * known).sum(1))


def _ratio(a, b) -> np.ndarray:
    return np.where(b > 0, a / np.maximum(b, 1e-12), np.nan)


def triple(drawn: np.ndarray) -> list[float | None]:
    """[value, low, high] of (D + 1); no interval where no draw differs, because all values are alike."""
    differ = not np.isnan(drawn[0]) and np.nanmax(drawn) - np.nanmin(drawn) > 1e-9
    low, high = middle(drawn[1:]) if differ else (np.nan, np.nan)
    return rounded([drawn[0], low, high])


def not_dominated(quality: np.ndarray, diversity: np.ndarray) -> np.ndarray:
    """Which of N points no other beats in one without losing in the other: (…, N) → bool (…, N). NaN: not on it."""
    q, d = quality[..., :, None], diversity[..., :, None]  # each point, against all of the last axis
    other_q, other_d = quality[..., None, :], diversity[..., None, :]
    beaten = ((other_q >= q) & (other_d >= d) & ((other_q > q) | (other_d > d))).any(-1)
    return ~beaten & ~np.isnan(quality) & ~np.isnan(diversity)


def at_quality(curve_q: np.ndarray, curve_d: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """Diversity of a curve where it has this quality: linear between neighbours, the highest where it passes twice.

    Args:
        curve_q, curve_d: (T, …) points in order of temperature.
        quality: (…).

    Returns:
        (…), NaN outside the curve's range.
    """
    best = np.full(np.shape(quality), np.nan)
    for q0, q1, d0, d1 in zip(curve_q, curve_q[1:], curve_d, curve_d[1:], strict=False):
        flat = np.abs(q1 - q0) < 1e-12
        share = np.where(flat, 0, (quality - q0) / np.where(flat, 1, q1 - q0))
        here = np.where(flat, np.maximum(d0, d1), d0 + share * (d1 - d0))
        inside = (quality >= np.minimum(q0, q1) - 1e-12) & (quality <= np.maximum(q0, q1) + 1e-12)
        best = np.fmax(best, np.where(inside, here, np.nan))
    return best


def compare(values: Values, raters: list[str], seed: int = 0, draws: int = DRAWS) -> dict:
    """Points, differences to the first writer, and the comparison at equal quality, all with 95 % intervals.

    Returns:
        points: writer, temperature, min_p, seeds, figures (measure → [value, low, high]), frontier ("rater/measure" →
            [on it or not, share of the draws in which it is]).
        against: the same for differences at one setting, paired by premise, and `over` the settings together.
        above: vertical distance to the first writer's temperature curves at equal quality; None outside their range.
    """
    names = list(dict.fromkeys(name for name, _ in values))
    # all of 5 premises on one side happens by chance 6 times in 100: no interval at 95 % can be had of so few
    told = triple if len(next(iter(values.values()))["words"][0]) >= LEAST else lambda x: [triple(x)[0], None, None]
    first, some = names[0], next(iter(values.values()))
    seeds = {name: next(len(t["words"]) for (n, _), t in values.items() if n == name) for name in names}
    drawn = Draws(seeds, some["words"].shape[1], seed, draws)
    profiles = {key: {m: drawn.profile(key[0], v) for m, v in table.items()} for key, table in values.items()}
    means = {key: {m: drawn.mean(p) for m, p in table.items()} for key, table in profiles.items()}
    rings: dict[Key, dict] = {key: {} for key in values}
    for rater in raters:
        for axis in AXES:
            quality, spread = (np.stack([means[key][m] for key in values], -1) for m in (rater, axis))
            on = not_dominated(quality, spread)
            for i, key in enumerate(values):
                rings[key][f"{rater}/{axis}"] = [bool(on[0, i]), round(float(on[1:, i].mean()), 3)]
    points = [
        {"writer": name, **vars(s), "seeds": seeds[name], "frontier": rings[name, s],
         "figures": {m: told(x) for m, x in means[name, s].items()}}
        for name, s in values
    ]  # fmt: skip
    against, over, above = [], [], []
    for name in names[1:]:
        gaps: dict[str, list[np.ndarray]] = {}
        both = [s for n, s in values if n == name and (first, s) in values]
        for s in both:
            gap = {m: drawn.mean(x - profiles[first, s][m]) for m, x in profiles[name, s].items()}
            against.append({"writer": name, **vars(s), "figures": {m: told(x) for m, x in gap.items()}})
            for m, x in gap.items():
                gaps.setdefault(m, []).append(x)
        together = {m: told(_mean_known(gaps[m])) if both else [None] * 3 for m in some}
        over.append({"writer": name, "settings": len(both), "figures": together})
        for s in [s for n, s in values if n == name]:
            found = {}
            for rater in raters:
                for axis in AXES:
                    curve = _first_at(means, first, rater, axis, means[name, s][rater])
                    found[f"{rater}/{axis}"] = _above(means[name, s][axis] - curve, told)
            above.append({"writer": name, **vars(s), "figures": found})
    return {"first": first, "points": points, "against": against, "over": over, "above": above}


def _mean_known(rows: list[np.ndarray]) -> np.ndarray:
    """Mean over the settings in which there is a difference at all, the same ones in every draw: list of (D + 1) → (D + 1)."""
    known = [x for x in rows if not np.isnan(x[0])]
    return np.mean(known, axis=0) if known else np.full_like(rows[0], np.nan)


def _first_at(means, first: str, rater: str, axis: str, quality: np.ndarray) -> np.ndarray:
    """The best diversity that the first writer's temperature curves (one for each min_p) reach at this quality."""
    best = np.full(quality.shape, np.nan)
    for min_p in {s.min_p for name, s in means if name == first}:
        line = sorted((s for name, s in means if name == first and s.min_p == min_p), key=lambda s: s.temperature)
        q, d = (np.stack([means[first, s][m] for s in line]) for m in (rater, axis))
        best = np.fmax(best, at_quality(q, d, quality))
    return best


def _above(drawn: np.ndarray, told: Callable) -> list[float | None] | None:
    if np.isnan(drawn[0]):
        return None
    found = told(drawn)
    return found if np.isnan(drawn[1:]).mean() <= MOST_OUTSIDE else [found[0], None, None]
