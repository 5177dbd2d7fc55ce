"""Who is better, from matches of two: Bradley–Terry strengths, how sure their order is, and which match to play next.

A writer of strength θᵢ wins against one of θⱼ with probability σ(θᵢ − θⱼ) (Bradley and Terry 1952). θ is in natural
log-odds here and has mean 0; people are shown the Elo-like 1000 + 400·log₁₀: 400 points more means ten wins to one.
"""

import itertools
import math
from collections import Counter
from typing import NamedTuple

import numpy as np

from toolkit.stats import DRAWS

ELO, AVERAGE = 400 / math.log(10), 1000.0
PRIOR = 1.0  # virtual ties a writer
FIRST = 3  # matches of every pair before any is preferred; not published: in simulation 1 to 3 did alike, 5 worse
TYPICAL = 1.0  # log-odds: the difference between two writers that `settled` looks for most keenly
SURE = 0.95


class Result(NamedTuple):
    """One match of writers a < b (numbers from 0) on a premise. `points` of a: 1, 0.5, 0, or None: no verdict."""

    premise: int
    a: int
    b: int
    points: float | None


class Standing(NamedTuple):
    """What the matches say so far, W writers.

    theta (W): strengths, log-odds, mean 0. spread (W, W): their covariance. evidence (W, W): that i is better than j,
    in standard deviations (signed root of the likelihood ratio against "i and j are equal"). variance (W, W): of
    θᵢ − θⱼ if they are equal.
    """

    theta: np.ndarray
    spread: np.ndarray
    evidence: np.ndarray
    variance: np.ndarray

    def ahead(self) -> np.ndarray:
        """(W, W): probability that i is better than j, as if one looked once."""
        return 0.5 * (1 + np.vectorize(math.erf)(self.evidence / math.sqrt(2)))

    def settled(self) -> np.ndarray:
        """(W, W) bool: whether i is ahead of j at 95 %, **however often one has looked before**.

        The rule stops a tournament, so a plain 95 % would be wrong: looking after every match it calls one of two equal
        writers better far more often than 1 time in 20. This is the mixture of Robbins (1970; Johari et al. 2017):
        the likelihood ratio of "they differ by N(0, TYPICAL²)" against "they are equal" must reach 20.
        The 95 % are each pair's own: among four equal writers, six pairs, some pair was called settled in 1 tournament
        of 6 in simulation (80 of 30 premises).
        """
        share = TYPICAL**2 / (self.variance + TYPICAL**2)
        log_ratio = 0.5 * np.log(1 - share) + self.evidence**2 * share / 2
        return (self.evidence > 0) & (log_ratio >= -math.log(1 - SURE))

    def order(self) -> list[int]:
        """Writers from best to worst."""
        return sorted(range(len(self.theta)), key=lambda i: -self.theta[i])


def points_table(results: list[Result], writers: int) -> np.ndarray:
    """(P, W, W): what i won against j on each premise. A match without verdict says nothing and adds nothing."""
    table = np.zeros((1 + max((r.premise for r in results), default=0), writers, writers))
    for r in results:
        if r.points is not None:
            table[r.premise, r.a, r.b] += r.points
            table[r.premise, r.b, r.a] += 1 - r.points
    return table


def fit(points: np.ndarray, tied: np.ndarray | None = None, tolerance: float = 1e-6) -> np.ndarray:
    """Most likely strengths θ (…, W), mean 0, by the MM algorithm (Hunter 2004, eq. 3).

    Args:
        points: (…, W, W): what i won against j; a tie is half a win for both.
        tied: (…, W, W): 1 where i and j must come out equally strong (and on the diagonal).

    A weak prior: each writer has PRIOR ties more, shared evenly among the others (an average opponent). Without it
    a writer that won all its matches has no finite strength, nor have two groups that never met.
    """
    points = _with_prior(points)
    games = points + points.swapaxes(-1, -2)
    together = (lambda x: x) if tied is None else (lambda x: (tied @ x[..., None])[..., 0])
    won = together(points.sum(-1))
    theta = np.zeros_like(won)
    for _ in range(20_000):
        strength = np.exp(theta)
        new = np.log(won / together((games / (strength[..., :, None] + strength[..., None, :])).sum(-1)))
        moved, theta = np.abs(new - theta).max(), new
        if moved < tolerance:
            break
    return theta - theta.mean(-1, keepdims=True)


def standing(results: list[Result], writers: int) -> Standing:
    """Strengths and how sure they are.

    Variances come from the Fisher information, times the share of verdicts that are no ties (a verdict in {0, ½, 1} varies
    at most so much less than one in {0, 1}), and times more where the sandwich over premises is wider: verdicts on
    one premise are not independent. The evidence is a likelihood ratio, not θ over its deviation: that falls
    back to nothing when one writer wins everything (Hauck and Donner 1977).
    """
    table = points_table(results, writers)
    total = table.sum(0)
    theta = fit(total)
    chance = _chance(theta)
    inverse = np.linalg.pinv(_information(total, theta))
    points = [r.points for r in results if r.points is not None]
    untied = 1 - points.count(0.5) / (len(points) + 1)
    surprise = (table - (table + table.swapaxes(1, 2)) * chance).sum(2)  # (P, W): points above what was expected
    clustered = inverse @ surprise.T @ surprise @ inverse
    scale = max(untied, float(np.trace(clustered) / np.trace(inverse)))

    i, j = np.triu_indices(writers, 1)
    pair = np.arange(len(i))
    tied = np.repeat(np.eye(writers)[None], len(i), axis=0)
    tied[pair, i, j] = tied[pair, j, i] = 1
    equal = fit(np.broadcast_to(total, tied.shape), tied)  # for each pair: as if its two were equally strong
    ratio = 2 * np.maximum(_log_likelihood(total, theta) - _log_likelihood(total, equal), 0) / scale
    between = np.linalg.pinv(_information(total, equal)) * scale
    evidence, variance = np.zeros((writers, writers)), np.ones((writers, writers))
    evidence[i, j] = np.sign(theta[i] - theta[j]) * np.sqrt(ratio)
    variance[i, j] = variance[j, i] = between[pair, i, i] + between[pair, j, j] - 2 * between[pair, i, j]
    return Standing(theta, inverse * scale, evidence - evidence.T, variance)


def _chance(theta: np.ndarray) -> np.ndarray:
    """(…, W, W): probability that i wins against j."""
    return 1 / (1 + np.exp(theta[..., None, :] - theta[..., :, None]))


def _log_likelihood(points: np.ndarray, theta: np.ndarray) -> np.ndarray:
    return (_with_prior(points) * np.log(_chance(theta))).sum((-2, -1))


def _information(points: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """(…, W, W): Fisher information of θ; a shift of all is unknowable, so it is inverted by pinv."""
    chance = _chance(theta)
    weight = (_with_prior(points) + _with_prior(points).T) * chance * (1 - chance)
    return np.eye(len(points)) * weight.sum(-1, keepdims=True) - weight


def settled_order(now: Standing) -> bool:
    """Whether each writer is settled to be ahead of the next one."""
    order, sure = now.order(), now.settled()
    return all(sure[i, j] for i, j in itertools.pairwise(order))


def begun(results: list[Result], playable: list[tuple[int, int]]) -> bool:
    """Whether each pair that can still be played has been FIRST times."""
    return all(played >= FIRST for played, _ in _counts(results, playable).values())


def next_pair(results: list[Result], now: Standing, playable: list[tuple[int, int]]) -> tuple[int, int]:
    """The pair (a, b) of `playable`, a < b, whose match is expected to tell most about the order.

    First every pair is played FIRST times. Then, among those who stand next to each other: where the doubt about who of
    the two is ahead is greatest, times the share of their matches so far that had a verdict. Not published; in
    simulation (tests/test_tournament.py) the order is settled after a half to two thirds of the verdicts that drawing
    pairs at random needs. Weighing all pairs by the information of a match, p(1 − p), took 3 to 6 % more.
    """
    counts, ahead, order = _counts(results, playable), now.ahead(), now.order()
    fewest = min(playable, key=lambda pair: counts[pair][0])
    if counts[fewest][0] < FIRST:
        return fewest

    def worth(pair: tuple[int, int]) -> float:
        played, judged = counts[pair]
        return min(ahead[pair], 1 - ahead[pair]) * (judged + 1) / (played + 1)

    neighbours = {(min(pair), max(pair)) for pair in itertools.pairwise(order)}
    return max([pair for pair in playable if pair in neighbours] or playable, key=worth)


def _counts(results: list[Result], pairs: list[tuple[int, int]]) -> dict[tuple[int, int], tuple[int, int]]:
    """Pair → (matches played, those with a verdict)."""
    played = Counter((r.a, r.b) for r in results)
    judged = Counter((r.a, r.b) for r in results if r.points is not None)
    return {pair: (played[pair], judged[pair]) for pair in pairs}


def intervals(results: list[Result], now: Standing, seed: int = 0, draws: int = DRAWS) -> np.ndarray:
    """(W, 2): 95 % of θ, percentile bootstrap over premises, widened to ±1.96 standard deviations where it is narrower.

    Premises are drawn, not verdicts: those on one premise stand or fall together. (A bootstrap of nothing but wins has no
    width at all, hence the widening.) NaN under two premises. After early stopping the strengths are pulled apart
    a little and the intervals are those of the verdicts at hand: read `settled` for the order.
    """
    table = points_table(results, len(now.theta))
    table = table[table.any((1, 2))]
    if len(table) < 2:
        return np.full((len(now.theta), 2), np.nan)
    rng = np.random.default_rng(seed)
    times = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), size=draws)
    drawn = fit(np.tensordot(times, table, axes=1), tolerance=1e-4)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    half = 1.96 * np.sqrt(np.diag(now.spread))
    return np.stack([np.minimum(low, now.theta - half), np.maximum(high, now.theta + half)], axis=1)


def best(now: Standing, seed: int = 0, draws: int = 20_000) -> np.ndarray:
    """(W): probability that each is the best of all (normal approximation)."""
    drawn = np.random.default_rng(seed).multivariate_normal(now.theta, now.spread, size=draws, method="svd")
    return np.bincount(drawn.argmax(1), minlength=len(now.theta)) / draws


def _with_prior(points: np.ndarray) -> np.ndarray:
    writers = points.shape[-1]
    return points + PRIOR / 2 / (writers - 1) * (1 - np.eye(writers))
