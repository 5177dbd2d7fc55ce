"""The independent judge: rates one plot, or compares two in both orders, and says so when it cannot.

A judge is an engine (`EngineJudge`) or a reward model's scores (`ScoreJudge`); the passport, the tournament and the
reports treat both alike. No score is made up: what could not be judged carries the reason instead.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from toolkit.engines.base import Engine
from toolkit.errors import EngineDown, UserError
from toolkit.narrative.dimensions import DIMENSIONS, KEYS, SCALE
from toolkit.narrative.prompts import prompt
from toolkit.narrative.quoting import guard_rule, quoted
from toolkit.records import AspectRatings, Plot, guess_language, written_in

DIGITS = "123456789"
GUARD = "tags"  # the default defence against planted instructions
LANGUAGES = ("en", "zh")  # the house's prompts and passports cover no other


@dataclass(frozen=True)
class Verdict:
    """One comparison. For each dimension: the judge's probability that A is better with A shown first, and second.

    Where there is none (`error` says why) both are empty.
    """

    premise_id: str
    a: str
    b: str
    first: dict[str, float]
    second: dict[str, float]
    error: str = ""

    def odds(self, key: str | None = None) -> float:
        """Log-odds that A is better, mean of both orders (and of all dimensions when key is None).

        A judge that always names the first text adds the same amount to one order and takes it from the other.
        """
        keys = [key] if key else list(self.first)
        return sum(_log_odds(side[k]) for k in keys for side in (self.first, self.second)) / (2 * len(keys))

    def outcome(self, key: str | None = None, threshold: float | None = 0.0) -> str:
        """ "a" or "b" when the same side wins in both orders; "tie" when the order decides; "none" without a verdict.

        Args:
            key: a dimension; None takes the mean probability over all.
            threshold: least |log-odds| at which the judge has earned trust (its passport's); None: never.
        """
        if self.error or threshold is None or (threshold and abs(self.odds(key)) < threshold):
            return "none"
        first = self.first[key] if key else sum(self.first.values()) / len(self.first)
        second = self.second[key] if key else sum(self.second.values()) / len(self.second)
        return "a" if first > 0.5 and second > 0.5 else "b" if first < 0.5 and second < 0.5 else "tie"

    def points(self, key: str | None = None) -> float:
        """A's points: 1 when A wins in both orders, 0 when B does, 0.5 otherwise."""
        return {"a": 1.0, "b": 0.0}.get(self.outcome(key), 0.5)

    def lean(self, key: str | None = None) -> float:
        """1 when the judge leans to A, 0 to B, 0.5 to neither, with the pull of the order cancelled out.

        Finer than `points` and less strict: report both.
        """
        if self.error or abs(self.odds(key)) < 1e-9:
            return 0.5
        return float(self.odds(key) > 0)

    @property
    def flipped(self) -> bool:
        """Whether the verdict changed with the order."""
        return self.outcome() == "tie"


def _log_odds(p: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))


class Judge(Protocol):
    """What rates and compares. `name` for reports, `family` of the weights ("" when unknown)."""

    name: str
    family: str

    def rate(self, plot: Plot) -> AspectRatings:
        """Five ratings, or a record whose `error` says why there is none. EngineDown when nothing more can be asked."""
        ...

    def compare(self, premise: str, a: Plot, b: Plot) -> Verdict:
        """Which is better on each dimension, in both orders; or a Verdict with `error`."""
        ...

    def close(self) -> None: ...


class EngineJudge:
    """A language model as judge.

    Args:
        engine: any engine; closed with the judge.
        guard: how plots are shown (narrative.quoting.GUARDS).
        reason: tokens of the reason given with each rating; 0 asks for none.
        languages: texts in others are not judged; None judges any.
    """

    def __init__(
        self, engine: Engine, guard: str = GUARD, reason: int = 16, languages: tuple[str, ...] | None = LANGUAGES
    ):
        self.engine, self.guard, self.reason, self.languages = engine, guard, reason, languages
        self.name, self.family = engine.name, getattr(engine, "family", "")

    def rate(self, plot: Plot) -> AspectRatings:
        if why := unfit(plot.text, self.languages):
            return AspectRatings(plot.id, {}, rater=self.name, error=why)
        try:
            return judge_plot(self.engine, plot, self.reason, self.guard)
        except EngineDown:
            raise
        except UserError as error:
            return AspectRatings(plot.id, {}, rater=self.name, error=str(error))

    def compare(self, premise: str, a: Plot, b: Plot) -> Verdict:
        why = unfit(a.text, self.languages) or unfit(b.text, self.languages)
        try:
            return (
                Verdict(a.premise_id, a.id, b.id, {}, {}, why)
                if why
                else compare(self.engine, premise, a, b, self.guard)
            )
        except EngineDown:
            raise
        except UserError as error:
            return Verdict(a.premise_id, a.id, b.id, {}, {}, str(error))

    def close(self) -> None:
        self.engine.close()


class ScoreJudge:
    """A reward model as judge: it scores each text by itself, so the order of two texts cannot sway it.

    Args:
        score: texts → (N, 5) ratings on SCALE, in the order of KEYS; UserError for a text it cannot read.
    """

    family = ""

    def __init__(self, name: str, score: Callable[[list[str]], np.ndarray], languages=("en",)):
        self.name, self.languages = name, languages
        self._row = lru_cache(4096)(lambda text: score([text])[0])  # a comparison asks for ratings that stand already

    def rate(self, plot: Plot) -> AspectRatings:
        if why := unfit(plot.text, self.languages):
            return AspectRatings(plot.id, {}, rater=self.name, error=why)
        try:
            row = self._row(plot.text)
        except UserError as error:
            return AspectRatings(plot.id, {}, rater=self.name, error=str(error))
        scores = {k: round(float(v), 4) for k, v in zip(KEYS, row, strict=True)}
        return AspectRatings(plot.id, scores, rater=self.name)

    def compare(self, premise: str, a: Plot, b: Plot) -> Verdict:
        """The probability is σ of the difference of the two ratings, as in training (reward.model.aspect_loss)."""
        mine, other = self.rate(a), self.rate(b)
        if why := mine.error or other.error:
            return Verdict(a.premise_id, a.id, b.id, {}, {}, why)
        sure = {k: 1 / (1 + math.exp(other.scores[k] - mine.scores[k])) for k in KEYS}
        return Verdict(a.premise_id, a.id, b.id, sure, sure)

    def close(self) -> None:
        """Nothing is held here."""


def unfit(text: str, languages: tuple[str, ...] | None) -> str:
    """Why a text cannot be judged at all; "" when it can."""
    if not text.strip():
        return "the text is empty"
    if languages is not None and (found := written_in(text)) not in languages:
        named = {"en": "English", "zh": "Chinese", "other": "another language"}
        return f"the text is in {named[found]}; this judge is known only for {', '.join(named[x] for x in languages)}"
    return ""


def judge_plot(engine: Engine, plot: Plot, reason: int = 16, guard: str = GUARD) -> AspectRatings:
    """One question a dimension; the rating is the mean of the digits under their probabilities, on 1 … 10.

    `merits` holds the reasons given. Unlike feedback.ratings there is one neutral question, so that the judge is not
    the rater whose labels the reward model saw. Raises UserError when the engine has no answer.
    """
    answers = engine.choose(rating_questions(plot.text, guard), list(DIGITS), reason)
    scores = {d.key: digit_rating(a) for d, a in zip(DIMENSIONS, answers, strict=True)}
    merits = {d.key: a.reason for d, a in zip(DIMENSIONS, answers, strict=True) if a.reason}
    return AspectRatings(plot.id, scores, merits=merits, rater=engine.name)


def rating_questions(text: str, guard: str = GUARD) -> list[list[dict[str, str]]]:
    """The five questions of `judge_plot` as messages; alike up to the plot's end, so that it is read once."""
    language = guess_language(text)
    system = f"{prompt('judge_system', language)} {guard_rule(guard, language)}".strip()
    shown = quoted(text, guard)
    return [
        [
            {"role": "system", "content": system},
            {"role": "user", "content": f"{shown}\n\n{prompt('judge_score', language, name=d.name, asks=d.asks)}"},
        ]
        for d in DIMENSIONS
    ]


def digit_rating(answer) -> float:
    """A Choice over DIGITS → its expected value on SCALE."""
    low, high = SCALE
    return round(low + (answer.expect(range(1, 10)) - 1) / 8 * (high - low), 4)


def compare(engine: Engine, premise: str, a: Plot, b: Plot, guard: str = GUARD) -> Verdict:
    """Which is better, on each dimension, in both orders. The judge does not see who wrote what."""
    language = guess_language(premise)
    system = f"{prompt('duel_system', language)} {guard_rule(guard, language)}".strip()

    def ask(one: str, two: str) -> list:
        shown = {"first": quoted(one, guard, "plot_1"), "second": quoted(two, guard, "plot_2")}
        asks = [
            [
                {"role": "system", "content": system},
                {
                    "role": "user",
                    "content": prompt("duel", language, premise=premise, name=d.name, asks=d.asks, **shown),
                },
            ]
            for d in DIMENSIONS
        ]
        return engine.choose(asks, ["1", "2"])  # the five questions of one order share their beginning: read once

    first = {d.key: round(math.exp(x.logps[0]), 5) for d, x in zip(DIMENSIONS, ask(a.text, b.text), strict=True)}
    second = {d.key: round(math.exp(x.logps[1]), 5) for d, x in zip(DIMENSIONS, ask(b.text, a.text), strict=True)}
    return Verdict(a.premise_id, a.id, b.id, first, second)
