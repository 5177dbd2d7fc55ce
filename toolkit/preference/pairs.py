"""High-confidence preference pairs (PlotTwist) from rewards and ratings; every pair left out keeps its reason."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

from toolkit.narrative.dimensions import KEYS
from toolkit.narrative.writing import write_prompt
from toolkit.records import AspectRatings, Plot, PreferencePair, guess_language


@dataclass(frozen=True)
class Rejected:
    """A pair that was left out, and why: one of REASONS."""

    premise_id: str
    better: str
    worse: str
    margin: float
    reason: str


NEEDED = {"both": 2, "either": 1, "ignore": 0}


def confident_pairs(
    plots: list[Plot],
    scores: dict[str, dict[str, float]],
    ratings: dict[str, AspectRatings],
    *,
    margin: float,
    agree: float,
    prompts: str,
    length_ratio: float,
    per_premise: int,
    max_pairs: int,
) -> tuple[list[PreferencePair], list[Rejected]]:
    """All pairs of one premise's candidates, sorted into confident ones and rejected ones.

    The threshold is not published; chosen as a margin on the mean reward together with the conditions below, each a
    setting of the recipe. A pair is checked in the order of REASONS, and the surest are kept first.

    Args:
        scores: plot id → dimension → reward (1 … 10).
        ratings: plot id → the rater's two assessments, for `prompts`.
        prompts: how many of the two assessments must prefer the better one: both, either, or ignore (none).
        margin, agree, length_ratio, per_premise, max_pairs: as in the recipe's `pairs` section.

    Returns:
        (pairs, rejected), pairs by falling margin.
    """
    mean = {id: sum(s.values()) / len(s) for id, s in scores.items()}
    kept: list[PreferencePair] = []
    rejected: list[Rejected] = []
    for premise, group in by_premise(plots):
        found = []
        for a, b in combinations(group, 2):
            better, worse = (a, b) if (mean[a.id], a.id) > (mean[b.id], b.id) else (b, a)
            gap = mean[better.id] - mean[worse.id]
            favour = sum(scores[better.id][k] > scores[worse.id][k] for k in KEYS) / len(KEYS)
            sizes = sorted((len(better.text), len(worse.text)))
            if gap < margin:
                reason = "margin"
            elif favour < agree:
                reason = "dimensions"
            elif _in_favour(ratings.get(better.id), ratings.get(worse.id)) < NEEDED[prompts]:
                reason = "prompts"
            elif sizes[1] > length_ratio * sizes[0]:
                reason = "length"
            elif overlap(better.text, worse.text) > 0.8:
                reason = "duplicate"
            else:
                found.append((gap, better, worse))
                continue
            rejected.append(Rejected(premise, better.id, worse.id, round(gap, 4), reason))
        used: Counter[str] = Counter()
        for gap, better, worse in sorted(found, key=lambda f: (-f[0], f[1].id, f[2].id)):
            # a plot may win once and lose once: one outlier must not make every pair
            if (
                sum(p.premise_id == premise for p in kept) >= per_premise
                or used[f"+{better.id}"]
                or used[f"-{worse.id}"]
            ):
                rejected.append(Rejected(premise, better.id, worse.id, round(gap, 4), "surplus"))
                continue
            used[f"+{better.id}"] += 1
            used[f"-{worse.id}"] += 1
            kept.append(as_pair(better, worse, scores, gap))
    kept, over = within_budget(kept, max_pairs, lambda p: p.margin)
    return kept, rejected + over


def within_budget(
    pairs: list[PreferencePair], most: int, surest: Callable[[PreferencePair], float]
) -> tuple[list[PreferencePair], list[Rejected]]:
    """(the `most` surest pairs, 0 is all, the surest first; the others)."""
    ordered = sorted(pairs, key=lambda p: (-surest(p), p.chosen_id, p.rejected_id))
    kept = ordered[:most] if most else ordered
    over = ordered[len(kept) :]
    return kept, [Rejected(p.premise_id, p.chosen_id, p.rejected_id, p.margin, "budget") for p in over]


def by_premise(plots: list[Plot]) -> list[tuple[str, list[Plot]]]:
    """(premise id, its plots), sorted by premise."""
    groups: dict[str, list[Plot]] = {}
    for plot in plots:
        groups.setdefault(plot.premise_id, []).append(plot)
    return sorted(groups.items())


def as_pair(better: Plot, worse: Plot, scores: dict[str, dict[str, float]], gap: float) -> PreferencePair:
    """The two as a record, under the prompt that a writer is given."""
    return PreferencePair(
        prompt=write_prompt(better.premise)[-1]["content"],
        chosen=better.text,
        rejected=worse.text,
        premise_id=better.premise_id,
        chosen_id=better.id,
        rejected_id=worse.id,
        margin=round(gap, 4),
        chosen_scores=scores[better.id],
        rejected_scores=scores[worse.id],
    )


def _in_favour(better: AspectRatings | None, worse: AspectRatings | None) -> int:
    """How many of the two assessments, each on its mean over the dimensions, rate `better` higher: 0, 1 or 2."""
    if not better or not worse:
        return 0
    side = lambda ratings, name: sum(getattr(ratings, name).values())  # noqa: E731
    return sum(side(better, name) > side(worse, name) for name in ("positive", "negative"))


def overlap(a: str, b: str) -> float:
    """Share of the smaller text's three-word sequences (Chinese: three characters) that stand in the other: 1 says the same."""
    chinese = guess_language(a) == "zh"
    units = [list(t) if chinese else t.lower().split() for t in (a, b)]
    grams = [{tuple(words[i : i + 3]) for i in range(len(words) - 2)} for words in units]
    smaller = min(map(len, grams))
    return len(grams[0] & grams[1]) / smaller if smaller else float(a.strip() == b.strip())
