"""Small statistics with intervals, used wherever a figure is reported."""

from collections.abc import Callable

import numpy as np

DRAWS = 2000


def bootstrap(values, statistic: Callable = np.mean, seed: int = 0, draws: int = DRAWS) -> tuple[float, float, float]:
    """(statistic, low, high): 95 % percentile bootstrap over the first axis of `values`. NaN interval under 2 values."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return (float(statistic(values)) if len(values) else float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    drawn = [statistic(values[rng.integers(0, len(values), len(values))]) for _ in range(draws)]
    return float(statistic(values)), *middle(drawn)


def cluster_bootstrap(groups: list[np.ndarray], statistic: Callable = np.mean, seed: int = 0, draws: int = DRAWS):
    """As `bootstrap`, drawing whole groups (arrays of rows that stand together, such as one premise's)."""
    if len(groups) < 2:
        return bootstrap(np.concatenate(groups) if groups else [], statistic, seed, draws)
    rng = np.random.default_rng(seed)
    drawn = [
        statistic(np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])) for _ in range(draws)
    ]
    return float(statistic(np.concatenate(groups))), *middle(drawn)


def middle(drawn) -> tuple[float, float]:
    """The middle 95 % of the draws in which the statistic exists."""
    known = np.asarray(drawn)[~np.isnan(drawn)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def ranks(values) -> np.ndarray:
    """Ranks from 1, ties shared."""
    values = np.asarray(values, dtype=float)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def spearman(a, b) -> float:
    """Spearman's rank correlation; NaN when one side is constant or there are fewer than 3 values."""
    if len(a) < 3:
        return float("nan")
    a, b = ranks(a), ranks(b)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 0 else float("nan")


def spearman_interval(a, b, seed: int = 0) -> tuple[float, float, float]:
    """(rho, low, high), 95 % bootstrap over the items."""
    both = np.stack([np.asarray(a, float), np.asarray(b, float)], axis=1)
    return bootstrap(both, lambda rows: spearman(rows[:, 0], rows[:, 1]), seed)


def length_controlled(groups: list[np.ndarray], seed: int = 0) -> tuple[float, float, float]:
    """(win rate at equal length, low, high): what is left of a win rate when the difference of lengths is held at nothing.

    A logistic regression of points (0, ½, 1) on tanh of the standardised log ratio of lengths, read off at ratio 1,
    after length-controlled AlpacaEval (Dubois et al. 2024, arXiv 2404.04475); a ridge of 1 on both coefficients keeps a
    clean sweep finite. Interval by drawing groups.

    Args:
        groups: of rows (points, log of own length / other length), one array (n, 2) a premise.
    """
    spread = np.concatenate(groups)[:, 1].std() if groups else 0.0

    def at_equal_length(rows: np.ndarray) -> float:
        x = np.stack([np.ones(len(rows)), np.tanh(rows[:, 1] / spread) if spread > 1e-9 else 0 * rows[:, 1]], axis=1)
        w = np.zeros(2)
        for _ in range(25):  # Newton; two coefficients
            p = 1 / (1 + np.exp(-x @ w))
            gradient = x.T @ (p - rows[:, 0]) + w
            w -= np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + np.eye(2), gradient)
        return float(1 / (1 + np.exp(-w[0])))

    return cluster_bootstrap(groups, at_equal_length, seed, 500) if groups else (float("nan"),) * 3


def wilson(right: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval (low, high) of a share of `right` in `n`; NaN for n = 0. Unlike a bootstrap it has a width at 0 and at 1."""
    if n <= 0:
        return float("nan"), float("nan")
    share = right / n
    middle = share + z * z / (2 * n)
    half = z * np.sqrt(max(share * (1 - share), 0.0) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return max(float(low), 0.0), min(float(high), 1.0)


def share_interval(groups: list[np.ndarray], seed: int = 0) -> tuple[float, float, float]:
    """(share, low, high) of values in 0 … 1: the wider of Wilson's interval and the bootstrap over whole groups.

    The bootstrap alone has no width where all values are alike; Wilson's alone does not know that groups stand together.
    """
    if not groups:
        return (float("nan"),) * 3
    value, low, high = cluster_bootstrap(groups, seed=seed)
    rows = np.concatenate(groups)
    sides = wilson(rows.sum(), len(rows))
    return value, float(np.nanmin([low, sides[0]])), float(np.nanmax([high, sides[1]]))


# ---- two samples; `wa` (…, n) and `wb` (…, m) say how often each value counts, once when None


def mean_difference(a, b, wa=None, wb=None):
    """Mean of a − mean of b, (…)."""
    a, b, wa, wb = _counted(a, b, wa, wb)
    return wa @ a / wa.sum(-1) - wb @ b / wb.sum(-1)


def cohen_d(a, b, wa=None, wb=None):
    """(mean of a − mean of b) in pooled standard deviations (n − 1), (…); NaN under 2 values a side or without any spread."""
    a, b, wa, wb = _counted(a, b, wa, wb)
    if min(len(a), len(b)) < 2:
        return np.full(wa.shape[:-1], np.nan)[()]
    squares = 0.0
    for values, w in ((a, wa), (b, wb)):
        away = values - values.mean()  # near 0, so that the difference of squares below loses nothing
        squares = squares + w @ away**2 - (w @ away) ** 2 / w.sum(-1)
    pooled = np.sqrt(np.maximum(squares, 0) / (wa.sum(-1) + wb.sum(-1) - 2))
    return np.where(pooled > 1e-9, mean_difference(a, b, wa, wb) / np.maximum(pooled, 1e-9), np.nan)[()]


def auc(a, b, wa=None, wb=None):
    """Probability that a value of `a` is above one of `b`, ties counting half (Mann-Whitney), (…); NaN for an empty side."""
    a, b, wa, wb = _counted(a, b, wa, wb)
    if not len(a) or not len(b):
        return np.full(wa.shape[:-1], np.nan)[()]
    order = np.argsort(b)
    below = np.concatenate([np.zeros((*wb.shape[:-1], 1)), np.cumsum(wb[..., order], -1)], -1)
    lower, upper = (np.searchsorted(b[order], a, side) for side in ("left", "right"))
    won = (wa * (below[..., lower] + below[..., upper])).sum(-1) / 2
    return won / (wa.sum(-1) * wb.sum(-1))


def _counted(a, b, wa, wb):
    a, b = np.asarray(a, float), np.asarray(b, float)
    return a, b, np.ones(len(a)) if wa is None else wa, np.ones(len(b)) if wb is None else wb


def permutation_p(a, b, seed: int = 0, draws: int = 10_000) -> float:
    """Two-sided p of a difference of means when the labels are shuffled: (k + 1) / (draws + 1), never 0."""
    both = np.concatenate([np.asarray(a, float), np.asarray(b, float)])
    if not len(a) or not len(b):
        return float("nan")
    both = both - both.mean()  # then the mean of a alone tells the difference
    seen = abs(both[: len(a)].sum()) - 1e-9 * np.abs(both).sum()  # equal sums in another order are equal
    rng = np.random.default_rng(seed)
    rows = max(1, min(draws, 2_000_000 // len(both)))  # memory, not arithmetic
    k = 0
    for start in range(0, draws, rows):
        shuffled = rng.permuted(np.tile(both, (min(rows, draws - start), 1)), axis=1)
        k += int((np.abs(shuffled[:, : len(a)].sum(1)) >= seen).sum())
    return (k + 1) / (draws + 1)


def two_sample_bootstrap(a, b, statistic: Callable, seed: int = 0, draws: int = DRAWS) -> tuple[float, float, float]:
    """(statistic, low, high): 95 % percentile bootstrap, each side drawn by itself.

    Args:
        statistic: (a, b, wa, wb) → (draws,), with the weights above: all draws are counted at once.
    """
    value = float(statistic(a, b, None, None))
    if min(len(a), len(b)) < 2:
        return value, float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    wa, wb = (rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(float) for n in (len(a), len(b)))
    drawn = statistic(a, b, wa, wb)
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return value, float("nan"), float("nan")
    low, high = np.percentile(drawn, [2.5, 97.5])
    return value, float(low), float(high)


# ---- regression


def span(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, P) in their own span (N, R) and the way back (P, R): a ridge does not see the rotation, R ≤ N is fast."""
    u, s, v = np.linalg.svd(x, full_matrices=False)
    kept = s > 1e-9 * s[0]
    return u[:, kept] * s[kept], v[kept].T


def logistic(x: np.ndarray, weights: np.ndarray, strength, start: np.ndarray | None = None) -> np.ndarray:
    """(R,) argmin of Σ weight · log(1 + exp(−x·w)) + ½ Σ strength · w², by Newton.

    Two classes are rows that are multiplied by +1 or −1, a column of ones among them for the intercept.

    Args:
        strength: one number, or one a column (R,).
    """
    w = np.zeros(x.shape[1]) if start is None else start.copy()
    ridge = np.broadcast_to(strength, w.shape)
    for _ in range(30):
        p = 1 / (1 + np.exp(np.clip(x @ w, -500, 500)))  # probability of the wrong order
        gradient = ridge * w - x.T @ (weights * p)
        hessian = (x * (weights * p * (1 - p))[:, None]).T @ x + np.diag(ridge)
        step = np.linalg.solve(hessian, gradient)
        w -= step
        if np.abs(step).max() < 1e-6:
            break
    return w


# ---- agreement


def quadratic_kappa(a, b) -> float:
    """Cohen's kappa with quadratic weights for two raters' categories, given as numbers; NaN where both are constant and alike.

    1 − mean squared difference / what it would be with the same two margins and no relation.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if not len(a):
        return float("nan")
    chance = a.var() + b.var() + (a.mean() - b.mean()) ** 2
    return float(1 - ((a - b) ** 2).mean() / chance) if chance > 0 else float("nan")


def rounded(values, digits: int = 4) -> list[float | None]:
    """Numbers for a JSON file: NaN and infinity become null."""
    return [round(float(v), digits) if np.isfinite(v) else None for v in values]
