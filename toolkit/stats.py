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
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(statistic(values)), float(low), float(high)


def cluster_bootstrap(groups: list[np.ndarray], statistic: Callable = np.mean, seed: int = 0, draws: int = DRAWS):
    """As `bootstrap`, drawing whole groups (arrays of rows that stand together, such as one premise's)."""
    if len(groups) < 2:
        return bootstrap(np.concatenate(groups) if groups else [], statistic, seed, draws)
    rng = np.random.default_rng(seed)
    drawn = [
        statistic(np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])) for _ in range(draws)
    ]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(statistic(np.concatenate(groups))), float(low), float(high)


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
