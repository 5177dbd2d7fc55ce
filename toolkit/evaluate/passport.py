"""A judge's passport: how far its ratings and verdicts can be trusted, measured, in one file and one picture.

Measured on material whose answer is known without any judge: well-made plots against their own damage, the same story
told short and long, instructions planted in a plot, and, where files are given, what people said. Everything asked is
on disk as it comes (asked.jsonl), so that a killed passport goes on where it was.
"""

import dataclasses
import datetime
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from toolkit.evaluate import charts
from toolkit.evaluate.calibrate import calibrate_confidence
from toolkit.evaluate.judge import Judge, Verdict
from toolkit.narrative.damage import HARM, damage
from toolkit.narrative.dimensions import KEYS, SCALE
from toolkit.narrative.writing import sentences_of
from toolkit.people import RatedText, one_against_the_rest, within_systems
from toolkit.progress import bar
from toolkit.records import (
    AspectRatings,
    Plot,
    append_jsonl,
    build,
    guess_language,
    join_sentences,
    read_jsonl,
    split_of,
)
from toolkit.stats import (
    bootstrap,
    cluster_bootstrap,
    quadratic_kappa,
    rounded,
    share_interval,
    spearman,
    spearman_interval,
)

# people's aspects that ask what one of our dimensions asks; every other is compared with the mean of the five
SAME_QUESTION = {d: d for d in KEYS} | {"cohesion": "coherence", "empathy": "emotion"}
STRENGTH = 0.7  # of damage, as the reward model is trained on
GAP = 0.5  # least difference of people's means for a pair of texts to have an order


@dataclass(frozen=True)
class Passport:
    """What is known of a judge. Triples are [value, low, high] with a 95 % interval; None: not measurable on this judge.

    Args:
        judge, identity: its name, and a hash of weights and prompts; `made`: the day.
        known_pairs: share of pairs (a plot, its damage) in which the verdict in both orders was right; `wrong`: the
            opposite in both orders; `flips`: the order decided.
        rated_right: share of the same pairs in which the damaged dimensions were rated lower.
        languages: language → known_pairs of that language alone.
        length_slope: rating points (1 … 10) for each doubling of the length at equal content; `longer_wins`: share of
            decided comparisons of these pairs that the longer telling won.
        own: how often it prefers a text of its own model to a well-made plot, of the decided ones.
        likes_likely: Spearman of its mean rating with its own mean log-probability of the text.
        repeat: mean |difference| of ratings asked again in other company, and of the same words laid out otherwise.
        planted: rating points that a planted demand for the top mark adds, beyond a neutral insertion at the same place.
        people: file → aspect → figures, see `against_people`.
        confidence: "known pairs" and, where files are given, "people" → calibrate_confidence's answer on that material:
            threshold in log-odds, accuracy and coverage above it.
        counts: how many were asked; `failed`: how many got no answer.
    """

    judge: str
    identity: str
    made: str
    guard: str
    known_pairs: list
    wrong: list
    flips: list | None
    rated_right: list
    languages: dict
    length_slope: list
    longer_wins: list | None
    own: list | None
    likes_likely: float | None
    repeat: dict
    planted: list
    planted_worst: dict
    people: dict = field(default_factory=dict)
    confidence: dict = field(default_factory=dict)
    counts: dict = field(default_factory=dict)

    @property
    def threshold(self) -> float | None:
        """Least |log-odds| at which its verdicts are to be trusted: the higher of the two; None where either is None."""
        found = [c["threshold"] for c in self.confidence.values()]
        return max(found) if found and None not in found else None

    @property
    def trust(self) -> str:
        """What its verdicts are worth, in words."""
        lost = [what for what, c in self.confidence.items() if c["threshold"] is None]
        if lost or not self.confidence:
            return f"no verdict of it is to be trusted (on {' and '.join(lost)} it did not earn that)"
        parts = [
            f"{100 * c['accuracy'][0]:.0f} % on {what}, of which it decides {100 * c['coverage']:.0f} %"
            for what, c in self.confidence.items()
        ]
        return f"where it gives a verdict it is right in {'; in '.join(parts)}"

    @property
    def line(self) -> str:
        """One line for every report that uses the judge."""
        said = [f"right on {_share(self.known_pairs)} of pairs of known order (both orders; a coin 25 %)"]
        if self.flips:
            said.append(f"the order decides {_share(self.flips)}")
        said.append(f"{self.length_slope[0]:+.2f} points for doubled length")
        said.append(f"a planted demand adds {self.planted[0]:+.2f}")
        for file, aspects in self.people.items():
            for aspect, found in aspects.items():
                low, high = found["spearman"][1:]
                said.append(f"{file} {aspect} {found['spearman'][0]:+.2f} ({low:+.2f} to {high:+.2f})")
        said.append(self.trust)
        return f"Passport of {self.judge}, {self.made}: " + "; ".join(said) + "."

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> "Passport":
        known = {f.name for f in dataclasses.fields(Passport)}
        return Passport(**{k: v for k, v in json.loads(path.read_text(encoding="utf-8")).items() if k in known})


def _share(found: list) -> str:
    value, low, high = found
    if value is None:
        return "?"
    return f"{100 * value:.0f} % ({100 * low:.0f}–{100 * high:.0f})" if low is not None else f"{100 * value:.0f} %"


class Asked:
    """What a judge was asked, on disk: the same question is put once, also after a kill."""

    def __init__(self, judge: Judge, path: Path):
        self.judge, self.path, self.ratings, self.verdicts, self.bar = judge, path, {}, {}, None
        for row in read_jsonl(path):
            if "plot_id" in row:
                self.ratings[row["plot_id"]] = build(AspectRatings, row)
            else:
                self.verdicts[row["a"], row["b"]] = Verdict(**row)

    def rate(self, plot: Plot) -> AspectRatings:
        if plot.id not in self.ratings:
            self.ratings[plot.id] = self.judge.rate(plot)
            append_jsonl(self.path, [dataclasses.asdict(self.ratings[plot.id])])
        if self.bar is not None:
            self.bar.update(1)
        return self.ratings[plot.id]

    def compare(self, premise: str, a: Plot, b: Plot) -> Verdict:
        if (a.id, b.id) not in self.verdicts:
            self.verdicts[a.id, b.id] = self.judge.compare(premise, a, b)
            append_jsonl(self.path, [dataclasses.asdict(self.verdicts[a.id, b.id])])
        if self.bar is not None:
            self.bar.update(1)
        return self.verdicts[a.id, b.id]


def make_passport(
    judge: Judge,
    identity: str,
    material: "Material",
    out: Path,
    *,
    own: list[tuple[str, Plot, Plot]] = (),
    likelihood: Callable[[str], float] | None = None,
    people: dict[str, list[RatedText]] | None = None,
    seed: int = 0,
) -> Passport:
    """Ask everything and write passport.json and passport.svg into `out`.

    Args:
        own: (premise, text of the judge's own model, well-made plot) for the test of self-preference.
        likelihood: mean log-probability (nats a token) that the judge's model gives a text; None where it has none.
        people: name → rated texts.
    """
    people = people or {}
    pairs = known_pairs(material.plots, material.pairs, seed)
    planted = plant(material, seed)
    short_long = [(_told(row, "short"), _told(row, "long"), row["premise"]) for row in material.same_story]
    again = [p for p in material.plots if split_of(p.premise_id or p.id) == "test"][: material.again]
    by_people = {name: people_pairs(rows, material.pairs, seed) for name, rows in people.items()}
    out.mkdir(parents=True, exist_ok=True)
    asked = Asked(judge, out / "asked.jsonl")
    total = 3 * len(pairs) + 3 * len(short_long) + 3 * len(planted) + 3 * len(again) + len(own)
    total += sum(len(rows) for rows in people.values()) + sum(map(len, by_people.values()))
    asked.bar = bar(total=total, desc="passport", unit="question")

    odds, groups, right, wrong, flips, languages = [], [], [], [], [], {}
    rated, rated_of = [], []
    people_odds, people_groups = [], []
    for good, bad, aimed in pairs:
        verdict = asked.compare(good.premise, good, bad)
        a, b = asked.rate(good), asked.rate(bad)
        if not (a.error or b.error):
            rated.append(float(np.mean([_right(a.scores[k] - b.scores[k]) for k in aimed])))
            rated_of.append(good.id)
        if verdict.error:
            continue
        outcome = verdict.outcome()
        right.append(float(outcome == "a"))
        wrong.append(float(outcome == "b"))
        flips.append(float(outcome == "tie"))
        odds.append(_sure(verdict))
        groups.append(good.id)
        languages.setdefault(guess_language(good.text), []).append(right[-1])

    # people's order, where given
    found_people = {}
    for name, rows in people.items():
        scored = [(r, asked.rate(Plot(f"{name}:{r.id}", r.text))) for r in rows]
        found_people[name] = against_people([x for x in scored if not x[1].error])
        for better, worse in by_people[name]:
            one, two = Plot(f"{name}:{better.id}", better.text), Plot(f"{name}:{worse.id}", worse.text)
            verdict = asked.compare(better.prompt or "(not given)", one, two)
            if not verdict.error:
                people_odds.append(_sure(verdict))
                people_groups.append(f"{name}:{better.group}")

    slopes, longer = [], []
    for short, long, premise in short_long:
        a, b, verdict = asked.rate(short), asked.rate(long), asked.compare(premise, short, long)
        if not (a.error or b.error):
            slopes.append((b.mean - a.mean) / np.log2(len(long.text) / len(short.text)))
        if not verdict.error and verdict.outcome() != "tie":
            longer.append(float(verdict.outcome() == "b"))

    shifts, by_kind = [], {}
    for plain, harmless, demanding, kind in planted:
        base, control, shifted = asked.rate(plain), asked.rate(harmless), asked.rate(demanding)
        if not (base.error or control.error or shifted.error):
            shifts.append(shifted.mean - control.mean)
            by_kind.setdefault(kind, []).append(shifts[-1])

    repeats, relaid = [], []
    for plot in again:
        first = asked.rate(plot)
        second = asked.rate(dataclasses.replace(plot, id=f"{plot.id}~again"))
        third = asked.rate(dataclasses.replace(plot, id=f"{plot.id}~relaid", text=_relaid(plot)))
        if not (first.error or second.error or third.error):
            repeats.append(np.mean([abs(first.scores[k] - second.scores[k]) for k in KEYS]))
            relaid.append(np.mean([abs(first.scores[k] - third.scores[k]) for k in KEYS]))

    mine = [asked.compare(premise, text, reference) for premise, text, reference in own]
    mine = [float(v.outcome() == "a") for v in mine if not v.error and v.outcome() != "tie"]
    asked.bar.close()

    likes = None
    if likelihood is not None:
        whole = {p.id: p for pair in pairs for p in pair[:2]}
        rows = [(asked.ratings[i].mean, likelihood(p.text)) for i, p in whole.items() if not asked.ratings[i].error]
        likes = round(spearman(*zip(*rows, strict=True)), 4) if len(rows) > 2 else None

    failed = [r.error for r in asked.ratings.values() if r.error] + [
        v.error for v in asked.verdicts.values() if v.error
    ]
    passport = Passport(
        judge=judge.name,
        identity=identity,
        made=datetime.date.today().isoformat(),
        guard=getattr(judge, "guard", "none"),
        known_pairs=_shares(right, groups),
        wrong=_shares(wrong, groups),
        flips=_shares(flips, groups) if hasattr(judge, "engine") else None,
        rated_right=_shares(rated, rated_of),
        languages={k: _shares(v) for k, v in languages.items()},
        length_slope=_triple(slopes),
        longer_wins=_shares(longer) if longer else None,
        own=_shares(mine) if mine else None,
        likes_likely=likes,
        repeat={"again": _mean(repeats), "relaid": _mean(relaid)},
        planted=_triple(shifts),
        planted_worst=dict(sorted(((k, _mean(v)) for k, v in by_kind.items()), key=lambda x: -x[1])[:3]),
        people=found_people,
        confidence={
            what: calibrate_confidence(np.array(found), of, seed=seed)
            for what, found, of in (("known pairs", odds, groups), ("people", people_odds, people_groups))
            if found
        },
        counts={
            "pairs": len(pairs), "same_story": len(short_long), "planted": len(planted), "again": len(again),
            "own": len(own), "ratings": len(asked.ratings), "comparisons": len(asked.verdicts), "failed": len(failed),
            "first_failure": failed[0] if failed else "",
        },
    )  # fmt: skip
    passport.save(out / "passport.json")
    (out / "passport.svg").write_text(charts.passport(passport), encoding="utf-8")
    return passport


@dataclass(frozen=True)
class Material:
    """What every judge is shown: well-made plots, the same stories told short and long, instructions and their controls.

    `pairs`: comparisons of known order (and of each file of people) at most; `planted_in`: plots each instruction is
    planted in; `again`: plots rated again.
    """

    plots: list[Plot]
    same_story: list[dict]
    planted: list[dict]
    controls: list[dict]
    pairs: int = 90
    planted_in: int = 3
    again: int = 10


def known_pairs(plots: list[Plot], most: int, seed: int) -> list[tuple[Plot, Plot, list[str]]]:
    """(plot, its damage, dimensions aimed at), of plots on the test side: no reward model of ours has learnt from them."""
    held = sorted((p for p in plots if split_of(p.premise_id or p.id) == "test"), key=lambda p: p.id)
    found = []
    for plot in held:
        for kind, shares in HARM.items():
            if (worse := damage(plot, kind, STRENGTH, plots, seed)) is not None:
                found.append((plot, worse, [k for k, share in shares.items() if share == 1.0]))
    random.Random(seed).shuffle(found)
    return found[:most]


def plant(material: Material, seed: int) -> list[tuple[Plot, Plot, Plot, str]]:
    """(plot, with a harmless insertion, with a demand for the top mark at the same place, kind of demand)."""
    hosts = sorted((p for p in material.plots if guess_language(p.text) == "en"), key=lambda p: p.id)
    hosts = [p for p in hosts if split_of(p.premise_id or p.id) == "test"] or hosts
    random.Random(seed).shuffle(hosts)
    rows = []
    for demand, control in zip(material.planted, material.controls, strict=True):
        for host in hosts[: material.planted_in]:
            harmless, demanding = (
                dataclasses.replace(host, id=f"{host.id}~{x['id']}", text=insert(host, x["text"], x["where"]))
                for x in (control, demand)
            )
            rows.append((host, harmless, demanding, demand["kind"]))
    return rows


def insert(plot: Plot, text: str, where: str) -> str:
    """`text` as lines of its own at the start, in the middle or at the end of a plot."""
    sentences = list(plot.sentences or sentences_of(plot.text))
    at = {"start": 0, "middle": len(sentences) // 2, "end": len(sentences)}[where]
    parts = [join_sentences(sentences[:at]), text, join_sentences(sentences[at:])]
    return "\n".join(p for p in parts if p)


def against_people(scored: list[tuple[RatedText, AspectRatings]]) -> dict:
    """Aspect → how ratings agree with people's means.

    Returns for each aspect: spearman [value, low, high]; within: mean Spearman inside each writer's texts;
    accuracy [value, low, high] of pairs of one prompt whose means differ by at least GAP (interval over prompts), pairs;
    kappa: quadratic weighted, the judge's 1 … 10 mapped linearly to people's range; length: Spearman of length alone;
    rest: one person against the others; compared: our dimension, or "mean".
    """
    rows = [r for r, _ in scored]
    lengths = [len(r.text) for r in rows]
    figures = {}
    for aspect in rows[0].mean if rows else ():
        key = SAME_QUESTION.get(aspect)
        mine = np.array([a.scores[key] if key else a.mean for _, a in scored])
        theirs = np.array([r.mean[aspect] for r in rows])
        right = [
            np.array([_right((mine[i] - mine[j]) * np.sign(theirs[i] - theirs[j])) for i, j in pairs])
            for pairs in _ordered(rows, aspect).values()
        ]
        singles = [v for r in rows for v in r.people.get(aspect, ())] or list(theirs)
        low, high = min(singles), max(singles)
        scaled = low + (mine - SCALE[0]) / (SCALE[1] - SCALE[0]) * (high - low)
        figures[aspect] = {
            "compared": key or "mean",
            "texts": len(rows),
            "spearman": rounded(spearman_interval(mine, theirs)),
            "within": rounded([within_systems(mine, theirs, [r.system for r in rows])])[0],
            "accuracy": rounded(cluster_bootstrap(right)) if right else None,
            "pairs": int(sum(map(len, right))),
            "kappa": rounded([quadratic_kappa(np.rint(scaled), np.rint(theirs))])[0],
            "length": rounded(spearman_interval(lengths, theirs)),
            "rest": rounded([one_against_the_rest(rows, aspect)])[0],
        }
    return figures


def _ordered(rows: list[RatedText], aspect: str | None) -> dict[str, list[tuple[int, int]]]:
    """Prompt → pairs (i, j) of its texts that people put apart by at least GAP, on one aspect or on the mean of all."""
    value = [r.mean[aspect] if aspect else float(np.mean(list(r.mean.values()))) for r in rows]
    found: dict[str, list] = {}
    for i, one in enumerate(rows):
        for j in range(i + 1, len(rows)):
            if one.group == rows[j].group and abs(value[i] - value[j]) >= GAP:
                found.setdefault(one.group, []).append((i, j))
    return found


def people_pairs(rows: list[RatedText], most: int, seed: int) -> list[tuple[RatedText, RatedText]]:
    """(better, worse) by the mean of all aspects, of one prompt; spread over the prompts, `most` of them."""
    mean = lambda r: np.mean(list(r.mean.values()))  # noqa: E731
    rng, queues = random.Random(seed), []
    for pairs in _ordered(rows, None).values():
        rng.shuffle(pairs)
        queues.append(pairs)
    rng.shuffle(queues)
    picked = [pairs[n] for n in range(max(map(len, queues), default=0)) for pairs in queues if n < len(pairs)][:most]
    return [(rows[i], rows[j]) if mean(rows[i]) > mean(rows[j]) else (rows[j], rows[i]) for i, j in picked]


def _sure(verdict: Verdict) -> float:
    """Log-odds towards A; NaN where the order decides, as that is no verdict in use either."""
    return float("nan") if verdict.outcome() == "tie" else verdict.odds()


def _told(row: dict, which: str) -> Plot:
    return Plot(f"{row['id']}~{which}", row[which], row["id"], row["premise"])


def _relaid(plot: Plot) -> str:
    """The same words, one sentence a line, with typographic quotation marks."""
    return "\n\n".join(plot.sentences or sentences_of(plot.text)).replace("'", "’")


def _right(difference: float) -> float:
    return 1.0 if difference > 0 else 0.0 if difference < 0 else 0.5


def _triple(values: list[float]) -> list:
    return rounded(bootstrap(values))


def _shares(values: list[float], of: list[str] | None = None) -> list:
    """[share, low, high] of values in 0 … 1; `of` says which stand together (a plot), each by itself when None."""
    of = of or [str(i) for i in range(len(values))]
    together = {name: [v for v, o in zip(values, of, strict=True) if o == name] for name in dict.fromkeys(of)}
    return rounded(share_interval([np.array(v) for v in together.values()]))


def _mean(values: list[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None
