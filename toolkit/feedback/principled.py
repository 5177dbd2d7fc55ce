"""A judge that holds a list of principles: Good or Bad, with a reason, and the log-odds of Good as a reward."""

import math
from dataclasses import dataclass

import numpy as np

from toolkit.engines.base import Choice, Engine, Messages
from toolkit.errors import EngineDown, UserError
from toolkit.greeting.principles import Principles
from toolkit.greeting.prompts import prompt
from toolkit.narrative.quoting import quoted
from toolkit.progress import bar, batched
from toolkit.records import Labelled, guess_language
from toolkit.stats import auc, cluster_bootstrap, rounded, share_interval

# Latin words in Chinese too: 好 and 差 are several byte tokens in many vocabularies (two each in the embedded model's), and
# a server names the likeliest first tokens as text, in which half a character is not to be found
OPTIONS = ("Good", "Bad")
MOST = 8.0  # log-odds are clipped to ± this (nats): surer than 2999 in 3000 is not told apart from noise. Our choice
CONTENT_FREE = ("N/A", "[MASK]", "")  # as in Zhao et al. 2021, section 5
BLOCK = 16  # answers asked in one call where many are measured


@dataclass(frozen=True)
class PrincipledVerdict:
    """`log_odds`: log P(Good) − log P(Bad), nats, calibrated where the judge is. Without an answer `good` and `log_odds` are None
    and `error` says why.
    """

    good: bool | None
    log_odds: float | None
    reason: str = ""
    error: str = ""


class PrincipledJudge:
    """Args:
    principles: language → the rules it judges greetings of that language by.
    words: tokens of a reason at most.
    """

    def __init__(self, engine: Engine, principles: dict[str, Principles], words: int = 48):
        self.engine, self.principles, self.words = engine, principles, words
        self.shift = dict.fromkeys(principles, 0.0)  # taken off the log-odds, by language; see `calibrate`

    def calibrate(self) -> dict[str, float]:
        """Take the engine's own lean off every verdict from now on: its mean log-odds where request and greeting say nothing
        (contextual calibration, Zhao et al. 2021, arXiv 2102.09690; the mean of log-odds instead of probabilities).

        Whether it helps is to be measured (`agreement` before and after): a strong judge may rightly find "N/A" a bad greeting.
        It moves verdicts and not their order, so that a reward compared within one request is the same but for the clipping.

        Returns:
            language → shift (nats), 0 where the engine could not answer; kept in `shift`.
        """
        for language in self.principles:
            choices = self._choose([self._question(language, text, text) for text in CONTENT_FREE], 0)
            odds = [o for o, _, _ in choices if o is not None]
            self.shift[language] = float(np.mean(odds)) if odds else 0.0
        return dict(self.shift)

    def reward(self, requests: list[str], answers: list[str]) -> list[float | None]:
        """log P(Good) − log P(Bad) of each answer, shifted, within ±MOST (nats); None where the engine could not answer.

        The answers of one language are one call. Raises EngineDown when the engine is gone.
        """
        return [v.log_odds for v in self._judge(requests, answers, 0)]

    def verdicts(self, requests: list[str], answers: list[str]) -> list[PrincipledVerdict]:
        """Good or Bad for each answer, with the reason. Raises EngineDown when the engine is gone."""
        return self._judge(requests, answers, self.words)

    def _judge(self, requests: list[str], answers: list[str], reason: int) -> list[PrincipledVerdict]:
        # one list alone judges everything: an English request may well have a Chinese name in it
        only = next(iter(self.principles)) if len(self.principles) == 1 else ""
        languages = [only or guess_language(r) for r in requests]
        if missing := sorted(set(languages) - set(self.principles)):
            raise UserError(f"no judging principles in {missing[0]}", "give a list of principles for every language")
        out: list[PrincipledVerdict] = [PrincipledVerdict(None, None)] * len(requests)
        for language in sorted(set(languages)):
            rows = [i for i, found in enumerate(languages) if found == language]
            asks = [self._question(language, requests[i], answers[i]) for i in rows]
            for i, (odds, said, error) in zip(rows, self._choose(asks, reason), strict=True):
                if odds is None:
                    out[i] = PrincipledVerdict(None, None, error=error)
                    continue
                odds = min(max(odds - self.shift[language], -MOST), MOST)
                out[i] = PrincipledVerdict(odds > 0, odds, said)
        return out

    def _question(self, language: str, request: str, answer: str) -> Messages:
        """The principles come first, so that engines which keep a shared beginning read them once."""
        text = prompt(
            "detect",
            language,
            principles=self.principles[language].text,
            request=request,
            greeting=quoted(answer, "tags", "greeting"),
        )
        return [{"role": "user", "content": text}]

    def _choose(self, asks: list[Messages], reason: int) -> list[tuple[float | None, str, str]]:
        """(log-odds, reason, error) for each question; one by one where the call as a whole fails."""
        try:
            return [_read(c) for c in self.engine.choose(asks, list(OPTIONS), reason)]
        except EngineDown:
            raise
        except (UserError, TimeoutError) as error:
            if len(asks) > 1:
                return [self._choose([ask], reason)[0] for ask in asks]
            return [(None, "", "timed out" if isinstance(error, TimeoutError) else str(error))]


def _read(choice: Choice) -> tuple[float | None, str, str]:
    good, bad = choice.logps
    odds = good - bad
    if math.isnan(odds):
        return None, choice.reason, "neither word has a probability"
    return odds, choice.reason, ""


def agreement(judge: PrincipledJudge, labelled: list[Labelled], progress: str = "") -> dict:
    """How far a judge agrees with labelled greetings; see `figures` for what is returned.

    Args:
        progress: what to call the bar that is shown; none when empty.
    """
    asked = [(x.request, text) for x in labelled for text in (x.good, x.bad)]
    shown = bar(total=len(asked), desc=progress, unit="greeting") if progress else None
    odds: list[float | None] = []
    for block in batched(asked, BLOCK):
        odds += judge.reward(*map(list, zip(*block, strict=True)))
        if shown is not None:
            shown.update(len(block))
    if shown is not None:
        shown.close()
    return figures(labelled, odds)


def figures(labelled: list[Labelled], odds: list[float | None]) -> dict:
    """Log-odds of good and flawed greetings → how well they tell the two apart. Intervals (95 %) draw whole requests.

    Args:
        odds: of x.good and x.bad for each x of `labelled` in turn, (2·N); None where there is none, which counts as wrong for
            the accuracy and is left out of the other two.

    Returns:
        accuracy: [share, low, high] of verdicts that are right, good and flawed ones counting half each (balanced);
        good_right, bad_right: the two halves; auc: [value, low, high], that any good one stands above any flawed one;
        pairwise: [share, low, high] of pairs whose good one stands above its own flawed one, ties half;
        length: what the longer text would get: {"auc", "pairwise"}; pairs; unanswered: log-odds that are missing.
    """
    rows = np.array([math.nan if o is None else o for o in odds], dtype=float).reshape(-1, 2)
    sizes = np.array([[len(x.good), len(x.bad)] for x in labelled], dtype=float).reshape(-1, 2)
    group = lambda values: list(by_request(labelled, values).values())  # noqa: E731
    right = rights(odds)
    known = rows[~np.isnan(rows).any(1)]
    answered = by_request([x for x, row in zip(labelled, rows, strict=True) if not np.isnan(row).any()], known)
    above = [_above(values) for values in answered.values()]
    none = [None] * 3
    return {
        "pairs": len(labelled),
        "accuracy": rounded(share_interval([g.ravel() for g in group(right)])),
        "good_right": rounded([right[:, 0].mean()])[0] if len(right) else None,
        "bad_right": rounded([right[:, 1].mean()])[0] if len(right) else None,
        "auc": rounded(cluster_bootstrap(group(rows), _auc, draws=500)) if len(known) else none,
        "pairwise": rounded(share_interval(above)) if len(known) else none,
        "length": {"auc": rounded([_auc(sizes)])[0], "pairwise": rounded([_above(sizes).mean()])[0]}
        if len(sizes)
        else {},
        "unanswered": int(np.isnan(rows).sum()),
    }


def rights(odds: list[float | None]) -> np.ndarray:
    """1 where a verdict is right, 0 where it is wrong or missing: (N, 2) of the good and the flawed one of each pair."""
    rows = np.array([math.nan if o is None else o for o in odds], dtype=float).reshape(-1, 2)
    return np.stack([rows[:, 0] > 0, rows[:, 1] <= 0], axis=1).astype(float)  # NaN is neither


def by_request(labelled: list[Labelled], values: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of `values` (N, …) that stand together, by request."""
    places: dict[str, list[int]] = {}
    for i, x in enumerate(labelled):
        places.setdefault(x.request_id, []).append(i)
    return {id: values[rows] for id, rows in places.items()}


def _auc(rows: np.ndarray) -> float:
    good, bad = rows[:, 0], rows[:, 1]
    return float(auc(good[~np.isnan(good)], bad[~np.isnan(bad)]))


def _above(rows: np.ndarray) -> np.ndarray:
    return (rows[:, 0] > rows[:, 1]) + (rows[:, 0] == rows[:, 1]) / 2
