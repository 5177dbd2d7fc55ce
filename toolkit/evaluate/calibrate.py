"""Calibration from people: a judge's ratings put on people's scale, how sure it must be to be trusted, and people's
ratings as preference pairs. Nothing here makes a judge order texts better: a map keeps the order, a threshold leaves out.
"""

import difflib
import json
import random
from dataclasses import dataclass, replace
from itertools import combinations, pairwise, product
from pathlib import Path

import numpy as np

from toolkit.errors import UserError
from toolkit.evaluate.judge import Judge, Verdict
from toolkit.evaluate.rating import rate_texts, say_unrated
from toolkit.hardware import require_writable
from toolkit.narrative.dimensions import KEYS, SCALE
from toolkit.narrative.writing import write_prompt
from toolkit.people import NEEDED, RatedText, one_against_the_rest
from toolkit.progress import say
from toolkit.records import AspectRatings, Plot, PreferencePair, text_id
from toolkit.stats import cluster_bootstrap, quadratic_kappa, rounded, spearman, wilson

FOLDS = 5
SPLITS = 25  # ways of halving the groups: one alone depends on luck


# ---- a map that keeps the order


@dataclass(frozen=True)
class MonotoneMap:
    """Rising line through (x, y): straight between the points, constant outside them. `x` rises strictly, `y` rises."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, values) -> np.ndarray:
        return np.interp(np.asarray(values, float), self.x, self.y)

    def to_dict(self) -> dict:
        return {"x": list(self.x), "y": list(self.y)}

    @classmethod
    def from_dict(cls, row: dict) -> "MonotoneMap":
        """Raises UserError for points that would not keep the order."""
        try:
            x, y = (tuple(float(v) for v in row[k]) for k in ("x", "y"))
        except (KeyError, TypeError, ValueError):
            raise UserError("this is no map: it needs numbers x and y", "calibrate the judge again") from None
        falls = any(b <= a for a, b in pairwise(x)) or any(b < a for a, b in pairwise(y))
        if not x or len(x) != len(y) or falls or not np.isfinite([*x, *y]).all():
            raise UserError("this map does not keep the order of the ratings", "calibrate the judge again")
        return cls(x, y)


def fit_monotone(x, y, weights=None) -> MonotoneMap:
    """The rising map with the least squared error (isotonic regression by pool-adjacent-violators, Ayer et al. 1955).

    The points are the blocks' centres, so that ratings between two blocks stay apart.

    Args:
        x, y: (N,) the judge's ratings and people's; pairs with a NaN are left out.
        weights: (N,) how much each counts; None: alike.

    Raises:
        UserError: fewer than 30 points, or a rank correlation that is not above 0.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, float)
    known = np.isfinite(x) & np.isfinite(y) & (w > 0)
    x, y, w = x[known], y[known], w[known]
    if len(x) < NEEDED:
        raise UserError(f"{len(x)} texts to fit a map on; at least {NEEDED} are needed", "give more rated texts")
    if not spearman(x, y) > 0:
        raise UserError(
            "the judge does not follow people on this aspect: a map would only hide it",
            "take another judge, or leave this aspect out",
        )
    return _pool(x, y, w)


def _pool(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> MonotoneMap:
    _, place = np.unique(x, return_inverse=True)
    blocks: list[list[float]] = []  # weight, weight · x, weight · y
    for block in zip(*(np.bincount(place, v) for v in (w, w * x, w * y)), strict=True):
        blocks.append(list(block))
        while len(blocks) > 1 and blocks[-2][2] / blocks[-2][0] >= blocks[-1][2] / blocks[-1][0]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    return MonotoneMap(tuple(float(b[1] / b[0]) for b in blocks), tuple(float(b[2] / b[0]) for b in blocks))


# ---- ratings


def calibrate_ratings(
    judge: Judge,
    rated: list[RatedText],
    aspects: dict[str, str],
    out: Path,
    scale: tuple[float, float] | None = None,
    source: str = "",
    seed: int = 0,
) -> dict:
    """Fit one map a dimension, from the judge's rating to people's mean on SCALE, and measure what it is worth.

    Measured by cross-validation over groups (RatedText.group): no text is predicted by a map that saw its group.

    Args:
        aspects: people's aspect → dimension key.
        out: folder for ratings.jsonl (a later call goes on from it) and calibration.json.
        scale: lowest and highest rating people could give; None: as found among the single ratings.
        source: what the ratings are, for the record (a file's name).

    Returns:
        What calibration.json holds: {"judge", "fitted_on", "maps": {dimension: map}, "refused": {dimension: why there is
        none}, "quality": {dimension: {"aspect", "texts", "mae_before", "mae_after", "mae_constant" (always naming people's
        mean), "kappa_before", "kappa_after" (quadratic weights, on ratings rounded to 1 … 10): [value, low, high] with a
        95 % bootstrap over groups; "spearman_before", "spearman_after"; "people": one person against the rest}}}.

    Raises:
        UserError: an aspect or dimension that does not exist, no scale, a rating off the scale, fewer than two groups,
            or no dimension for which a map can be fitted.
    """
    _check_aspects(rated, aspects)
    low, high = map(float, scale or _scale_of(rated))
    if low >= high:
        raise UserError(f"the scale {low:g} … {high:g} has no width", "give the lowest rating, then the highest")
    for r in rated:
        if off := [a for a in aspects if not low <= r.mean[a] <= high]:
            raise UserError(
                f"text {r.id}: {off[0]} {r.mean[off[0]]:g} is off the scale {low:g} … {high:g}", "give --scale"
            )
    if len({r.group for r in rated}) < 2:
        raise UserError(
            "all texts are of one group: there is nothing to check a map on", "rate texts of several prompts"
        )
    require_writable(out)
    ratings = rate_texts(judge, [r.text for r in rated], out / "ratings.jsonl")
    reasons = say_unrated(ratings)
    both = [(r, mine) for r, mine in zip(rated, ratings, strict=True) if not mine.error]
    groups = [r.group for r, _ in both]
    maps, refused, quality = {}, {}, {}
    for aspect, key in aspects.items():
        x = np.array([mine.scores[key] for _, mine in both])
        theirs = np.array([r.mean[aspect] for r, _ in both])
        y = SCALE[0] + (theirs - low) / (high - low) * (SCALE[1] - SCALE[0])
        try:
            maps[key] = fit_monotone(x, y).to_dict()
        except UserError as error:
            refused[key] = str(error)
            say(f"{aspect} → {key}: {error}")
        if len(x) >= NEEDED:
            people = one_against_the_rest([r for r, _ in both], aspect)
            quality[key] = {"aspect": aspect, **_quality(x, y, groups, seed), "people": rounded([people])[0]}
    if not maps:
        raise UserError(
            "no map can be fitted: " + "; ".join(f"{key}: {why}" for key, why in refused.items()),
            "take another judge, or more texts",
        )
    calibration = {
        "judge": judge.name,
        "fitted_on": {
            "source": source,
            "texts": len(both),
            "groups": len(set(groups)),
            "unrated": len(rated) - len(both),
            "reasons": reasons,
            "scale": [low, high],
            "scale_given": scale is not None,
            "fingerprint": text_id("\n".join(sorted(text_id(r.text) for r, _ in both)), "c"),
        },
        "maps": maps,
        "refused": refused,
        "quality": quality,
    }
    partial = out / "calibration.json.partial"
    partial.write_text(json.dumps(calibration, indent=1, ensure_ascii=False), encoding="utf-8")
    partial.replace(out / "calibration.json")
    return calibration


def _check_aspects(rated: list[RatedText], aspects: dict[str, str]) -> None:
    if not rated or not aspects:
        raise UserError("there is nothing to calibrate on", "name rated texts, and for each aspect a dimension")
    for what, given, known in (("aspect", aspects, rated[0].mean), ("dimension", aspects.values(), KEYS)):
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                meant = f"did you mean {near[0]}? " if near else ""
                raise UserError(f"there is no {what} {name}", f"{meant}there are: {', '.join(known)}")
    if len(set(aspects.values())) < len(aspects):
        raise UserError("two aspects are given for one dimension", "take the one that means it best")


def _scale_of(rated: list[RatedText]) -> tuple[float, float]:
    single = [v for r in rated for given in r.people.values() for v in given if np.isfinite(v)]
    if not single or min(single) == max(single):
        raise UserError("the scale of the ratings is not known: the file holds no single ratings", "give --scale")
    return min(single), max(single)


def _quality(x: np.ndarray, y: np.ndarray, groups: list[str], seed: int) -> dict:
    """How near the judge (x) comes to people (y) as it is, and through maps fitted on other groups."""
    names = sorted(set(groups))
    random.Random(seed).shuffle(names)
    fold = {name: i % min(FOLDS, len(names)) for i, name in enumerate(names)}
    of = np.array([fold[g] for g in groups])
    after, constant = np.empty_like(x), np.empty_like(x)
    for f in range(of.max() + 1):
        seen = of != f
        after[~seen] = _pool(x[seen], y[seen], np.ones(seen.sum()))(x[~seen])
        constant[~seen] = y[seen].mean()
    rows = np.stack([x, after, constant, y], axis=1)
    clusters = [rows[[i for i, g in enumerate(groups) if g == name]] for name in sorted(set(groups))]

    def interval(column: int, statistic) -> list[float | None]:
        if np.isnan(statistic(rows[:, column], y)):
            return [None] * 3
        return rounded(cluster_bootstrap(clusters, lambda r: statistic(r[:, column], r[:, 3]), seed))

    mae = lambda mine, theirs: np.abs(mine - theirs).mean()  # noqa: E731
    kappa = lambda mine, theirs: quadratic_kappa(np.floor(mine + 0.5), np.floor(theirs + 0.5))  # noqa: E731
    before, behind = rounded([spearman(x, y), spearman(after, y)])
    return {
        "texts": len(x),
        "mae_before": interval(0, mae),
        "mae_after": interval(1, mae),
        "mae_constant": interval(2, mae),
        "kappa_before": interval(0, kappa),
        "kappa_after": interval(1, kappa),
        "spearman_before": before,
        "spearman_after": behind,  # moves only by the ties a map makes, and by maps differing between the folds
    }


class Calibrated:
    """A judge whose ratings pass through maps fitted on people's; comparisons are left as they are.

    A dimension without a map keeps the judge's own rating.

    Args:
        calibration: what `calibrate_ratings` returned, or its file or folder.

    Raises UserError for a calibration that was fitted for another judge.
    """

    def __init__(self, judge: Judge, calibration: dict | Path):
        found = calibration if isinstance(calibration, dict) else read_calibration(calibration)
        if found.get("judge") != judge.name:
            raise UserError(
                f"this calibration was fitted for {found.get('judge')}, not for {judge.name}",
                "calibrate this judge, or take the one it was fitted for",
            )
        self.judge, self.name, self.family = judge, f"{judge.name} (calibrated)", judge.family
        self.maps = {key: MonotoneMap.from_dict(row) for key, row in found["maps"].items()}

    def rate(self, plot: Plot) -> AspectRatings:
        found = self.judge.rate(plot)
        scores = {k: round(float(self.maps[k](v)), 4) if k in self.maps else v for k, v in found.scores.items()}
        return replace(found, scores=scores, rater=self.name)

    def compare(self, premise: str, a: Plot, b: Plot) -> Verdict:
        return self.judge.compare(premise, a, b)

    def close(self) -> None:
        self.judge.close()


def read_calibration(path: Path) -> dict:
    """calibration.json, or the folder that holds it."""
    path = Path(path) / "calibration.json" if Path(path).is_dir() else Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not isinstance(found.get("maps"), dict):
            raise ValueError("no maps")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "calibrate a judge first") from None
    except ValueError as error:
        raise UserError(f"{path} is no calibration: {error}", "calibrate the judge again") from None
    return found


# ---- confidence


def calibrate_confidence(odds: np.ndarray, groups: list[str], wanted: float = 0.7, seed: int = 0) -> dict:
    """The least |log-odds| from which on a judge is right clearly more often than a coin.

    The groups are halved, in 25 ways. On each half the least threshold is chosen whose accuracy is above `wanted` by one
    standard error (Wilson, z = 1); the other half, which had no part in the choice, must confirm it: accuracy of at
    least `wanted`, and the lower end of the 95 % Wilson interval above 0.5. A halving counts when this holds both ways;
    when most do, the threshold is the median over them of the higher of the two. Comparisons of a group stand
    together, so the interval counts fewer of them where a group's are right or wrong as one (design effect, Kish 1965).
    The procedure is not published; chosen because a threshold looks best on the comparisons it was chosen on.

    Args:
        odds: (N,) log-odds, positive towards the right answer; 0 is half right, NaN is no verdict.
        groups: (N,) what must not be split (a premise).

    Returns:
        {"threshold": None when the judge never earned trust, "accuracy": [value, low, high] on halves that did not
        choose (of all verdicts where there is no threshold), "coverage": share of comparisons at or above the threshold,
        "comparisons": N, "curve": [[threshold, coverage, accuracy], …] on all comparisons, to be drawn, not quoted}.
    """
    odds = np.asarray(odds, float)
    if len(odds) != len(groups):
        raise ValueError(f"{len(odds)} comparisons, {len(groups)} groups")
    known = np.isfinite(odds)
    sure, right = np.abs(odds[known]), (np.sign(odds[known]) + 1) / 2
    _, of = np.unique(np.asarray(groups, dtype=str)[known], return_inverse=True)
    found = {"threshold": None, "accuracy": [None] * 3, "coverage": 0.0, "comparisons": len(odds), "curve": []}
    if not len(sure):
        return found
    grid = np.unique([0.0, *np.quantile(sure, np.arange(1, 20) / 20)])  # by how sure, not by how right: nothing leaks
    found["curve"] = [
        [round(float(t), 4), round(float((sure >= t).sum() / len(odds)), 4), round(float(right[sure >= t].mean()), 4)]
        for t in grid
    ]
    value, n = _effective(right, of)
    found["accuracy"] = rounded([value, *wilson(value * n, n)])
    rng, count = np.random.default_rng(seed), of.max() + 1
    if count < 2:
        return found
    passed, checked = [], []
    for _ in range(SPLITS):
        first = np.isin(of, rng.permutation(count)[: count // 2])
        halves = [(first, ~first), (~first, first)]
        chosen = [_choose(sure[one], right[one], grid, wanted) for one, _ in halves]
        if None in chosen:
            continue
        above = [other & (sure >= t) for t, (_, other) in zip(chosen, halves, strict=True)]
        checked.append((sum(right[a].sum() for a in above), sum(a.sum() for a in above)))
        if all(_confirmed(right[a], of[a], wanted) for a in above):
            passed.append(max(chosen))
    if len(passed) <= SPLITS / 2:
        return found
    threshold = float(np.quantile(passed, 0.5, method="higher"))
    k, n = np.mean(checked, axis=0)  # of all halvings, not of those that passed: these are the lucky ones
    kept = sure >= threshold
    n_effective = n * _effective(right[kept], of[kept])[1] / kept.sum()
    low, high = wilson(k / n * n_effective, n_effective)
    if k / n < wanted or low <= 0.5:
        return found
    found |= {
        "threshold": round(threshold, 4),
        "accuracy": rounded([k / n, low, high]),
        "coverage": round(float(kept.sum() / len(odds)), 4),
    }
    return found


def _choose(sure: np.ndarray, right: np.ndarray, grid: np.ndarray, wanted: float) -> float | None:
    for t in grid:
        above = right[sure >= t]
        if wilson(above.sum(), len(above), z=1.0)[0] >= wanted and wilson(above.sum(), len(above))[0] > 0.5:
            return float(t)
    return None


def _confirmed(right: np.ndarray, of: np.ndarray, wanted: float) -> bool:
    if not len(right):
        return False
    value, n = _effective(right, of)
    return value >= wanted and wilson(value * n, n)[0] > 0.5


def _effective(right: np.ndarray, of: np.ndarray) -> tuple[float, float]:
    """(accuracy, number of independent comparisons that would be as telling): at most N, and the groups where all are alike."""
    value, n = right.mean(), len(right)
    sums, sizes = np.bincount(of, right), np.bincount(of)
    count = int((sizes > 0).sum())
    spread = value * (1 - value) / n
    if spread == 0 or count < 2:
        return float(value), float(count)
    clustered = ((sums - value * sizes) ** 2).sum() * count / (count - 1) / n**2
    return float(value), float(n / max(1.0, clustered / spread))


# ---- people's ratings as pairs


def ratings_to_pairs(
    rated: list[RatedText], aspect_weights: dict[str, float], gap: float, prompts: dict[str, str] | None = None
) -> list[PreferencePair]:
    """Preference pairs out of a file of people's ratings, the surest first.

    Two texts for one prompt become a pair when their weighted means differ by at least `gap`, and, where both have as
    many single ratings, more than half of the people (i-th with i-th) put the same one higher; where the numbers
    differ, more than half of all two people.

    Args:
        aspect_weights: aspect → weight, at least 0; the mean is weighted by them.
        gap: on the file's own scale.
        prompts: group → premise, for files that do not say what the writers were asked for.

    Returns:
        Pairs with `margin` the difference, `prompt` the whole user turn for the premise (write_prompt).

    Raises:
        UserError: an aspect that is not there, weights without a sum, a gap that is not above 0, no prompt, no two texts
            for one prompt, or no pair that differs enough.
    """
    if not rated:
        raise UserError("there are no rated texts to make pairs of", "give a file of ratings")
    for aspect in aspect_weights:
        if aspect not in rated[0].mean:
            raise UserError(f"there is no aspect {aspect}", f"there are: {', '.join(rated[0].mean)}")
    total = sum(aspect_weights.values())
    if total <= 0 or min(aspect_weights.values()) < 0:
        raise UserError("the aspects' weights must be at least 0, and one of them above 0")
    if gap <= 0:
        raise UserError(f"gap is {gap:g}; it must be above 0", "a pair is one better and one worse text")
    weights = {a: w / total for a, w in aspect_weights.items() if w > 0}
    texts: dict[tuple[str, str], list[RatedText]] = {}
    for r in rated:
        if premise := (prompts or {}).get(r.group, "").strip() or r.prompt.strip():
            texts.setdefault((r.group, premise), []).append(r)
    asked = sum(map(len, texts.values()))
    if not asked:
        raise UserError("nothing says what the writers were asked for", 'add "prompt" to the rows, or give prompts')
    if asked < len(rated):
        say(f"{len(rated) - asked} texts whose prompt is not known are left out")
    candidates = [
        (premise, a, b)
        for (_, premise), group in sorted(texts.items())
        for a, b in combinations(group, 2)
        if a.text.strip() != b.text.strip()
    ]
    if not candidates:
        raise UserError(
            f"no group has two texts ({asked} texts for {len(texts)} prompts): there is nothing to prefer one to",
            "a pair needs two texts for one prompt; `group` or `prompt` must be alike in their rows",
        )
    mean = lambda r: sum(w * r.mean[a] for a, w in weights.items())  # noqa: E731
    pairs, widest, disputed = [], 0.0, 0
    for premise, a, b in candidates:
        better, worse = (a, b) if mean(a) > mean(b) else (b, a)
        margin = mean(better) - mean(worse)
        widest = max(widest, margin)
        if margin < gap - 1e-9:
            continue
        if not _most_agree(better, worse, weights):
            disputed += 1
            continue
        pairs.append(
            PreferencePair(
                prompt=write_prompt(premise)[-1]["content"],
                chosen=better.text.strip(),
                rejected=worse.text.strip(),
                premise_id=text_id(premise, "p"),
                chosen_id=better.id,
                rejected_id=worse.id,
                margin=round(margin, 4),
            )
        )
    if disputed:
        say(f"{disputed} pairs are left out: most people do not agree with the direction of the mean")
    if not pairs:
        raise UserError(
            f"none of {len(candidates)} pairs differs by {gap:g} with most people agreeing (the widest: {widest:.2f})",
            "lower the gap",
        )
    return sorted(pairs, key=lambda p: (-p.margin, p.chosen_id, p.rejected_id))


def _most_agree(better: RatedText, worse: RatedText, weights: dict[str, float]) -> bool:
    """Whether more than half of the people rate `better` higher; True where no single ratings are given."""
    mine, other = (_each_person(r, weights) for r in (better, worse))
    if not mine or not other:
        return True
    both = list(zip(mine, other, strict=True)) if len(mine) == len(other) else list(product(mine, other))
    return sum(a > b + 1e-9 for a, b in both) > len(both) / 2


def _each_person(r: RatedText, weights: dict[str, float]) -> list[float]:
    """One weighted mean a person; empty where the aspects were not rated by equally many."""
    given = [r.people.get(a, ()) for a in weights]
    if len({len(g) for g in given}) != 1:
        return []
    return [sum(w * v for w, v in zip(weights.values(), row, strict=True)) for row in zip(*given, strict=True)]
