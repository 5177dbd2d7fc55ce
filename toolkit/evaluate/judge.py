"""The independent judge: an engine that rates plots and compares two of them in both orders. Never the reward model."""

import math
from dataclasses import dataclass

from toolkit.engines.base import Engine
from toolkit.narrative.dimensions import DIMENSIONS, SCALE
from toolkit.narrative.prompts import prompt
from toolkit.records import AspectRatings, Plot, guess_language

DIGITS = "123456789"


def judge_plot(engine: Engine, plot: Plot, reason: int = 16) -> AspectRatings:
    """One question a dimension; the rating is the mean of the digits under their probabilities, on 1 … 10.

    `merits` holds the reasons given. Unlike feedback.ratings there is one neutral question, so that the judge is not
    the rater whose labels the reward model saw.
    """
    language = guess_language(plot.text)
    head = [{"role": "system", "content": prompt("rate_system", language)}]
    shown = prompt("rate_plot", language, plot=plot.text)
    asks = [
        [*head, {"role": "user", "content": f"{shown}\n\n{prompt('judge_score', language, name=d.name, asks=d.asks)}"}]
        for d in DIMENSIONS
    ]
    answers = engine.choose(asks, list(DIGITS), reason)
    low, high = SCALE
    scores = {
        d.key: round(low + (a.expect(range(1, 10)) - 1) / 8 * (high - low), 4)
        for d, a in zip(DIMENSIONS, answers, strict=True)
    }
    merits = {d.key: a.reason for d, a in zip(DIMENSIONS, answers, strict=True) if a.reason}
    return AspectRatings(plot.id, scores, merits=merits, rater=engine.name)


@dataclass(frozen=True)
class Verdict:
    """One comparison. For each dimension: the judge's probability that A is better with A shown first, and second."""

    premise_id: str
    a: str
    b: str
    first: dict[str, float]
    second: dict[str, float]

    def points(self, key: str | None = None) -> float:
        """A's points: 1 when A wins in both orders, 0 when B does, 0.5 otherwise (a tie: the order decided).

        Over all dimensions (key None) the mean probability of each order decides.
        """
        first = self.first[key] if key else sum(self.first.values()) / len(self.first)
        second = self.second[key] if key else sum(self.second.values()) / len(self.second)
        return 1.0 if first > 0.5 and second > 0.5 else 0.0 if first < 0.5 and second < 0.5 else 0.5

    def lean(self, key: str | None = None) -> float:
        """1 when the judge leans to A, 0 to B, 0.5 to neither, with the pull of the order cancelled out.

        The mean log-odds of the two orders: a judge that always names the first text adds the same amount to one and
        takes it from the other. Finer than `points` and less strict: report both.
        """
        keys = [key] if key else list(self.first)
        total = sum(_log_odds(side[k]) for k in keys for side in (self.first, self.second))
        return 0.5 if abs(total) < 1e-9 else float(total > 0)

    @property
    def flipped(self) -> bool:
        """Whether the verdict changed with the order."""
        return self.points() == 0.5


def _log_odds(p: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))


def compare(engine: Engine, premise: str, a: Plot, b: Plot) -> Verdict:
    """Which is better, on each dimension, in both orders. The judge does not see who wrote what."""
    language = guess_language(premise)
    asks = [
        [
            {"role": "system", "content": prompt("duel_system", language)},
            {
                "role": "user",
                "content": prompt(
                    "duel", language, premise=premise, first=one.text, second=two.text, name=d.name, asks=d.asks
                ),
            },
        ]
        for one, two in ((a, b), (b, a))
        for d in DIMENSIONS
    ]
    # two calls: the five questions of one order share their beginning, and it is read once
    n = len(DIMENSIONS)
    answers = [*engine.choose(asks[:n], ["1", "2"]), *engine.choose(asks[n:], ["1", "2"])]
    first = {d.key: round(math.exp(x.logps[0]), 5) for d, x in zip(DIMENSIONS, answers[:n], strict=True)}
    second = {d.key: round(math.exp(x.logps[1]), 5) for d, x in zip(DIMENSIONS, answers[n:], strict=True)}
    return Verdict(a.premise_id, a.id, b.id, first, second)
