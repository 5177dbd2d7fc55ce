"""How the tokens of one answer are drawn from their logits.

Why not llama.cpp's samplers: `llama_sampler_sample` lays out the whole vocabulary as a list of candidates for every token, 0.08 to 0.09 ms
for 49k. What min_p drops, which is nearly all, is told here from the logits as they lie: 0.03 to 0.05 ms (docs/results.md).
"""

from collections import deque

import numpy as np

from toolkit.engines.base import Sampling
from toolkit.engines.schema import Mask

REMEMBERED = 64  # tokens of an answer that the repeat penalty sees, as llama.cpp's own default


class Drawing:
    """One answer's draws: the same seed and the same logits give the same tokens.

    Args:
        sampling: temperature, top_p, min_p and repeat_penalty, applied in llama.cpp's order: penalty, top_p, min_p, temperature.
        seed: of this answer.
        mask: hides what would break the answer's schema, or None.
    """

    def __init__(self, sampling: Sampling, seed: int = 0, mask: Mask | None = None):
        self.sampling, self.mask, self.random = sampling, mask, np.random.default_rng(seed % 2**32)
        self.seen: deque[int] = deque(maxlen=REMEMBERED)

    def next(self, logits: np.ndarray) -> int:
        """The next token from logits (V); they are left as they are, for answers to one prompt draw from the same row."""
        s = self.sampling
        if self.mask is not None:
            logits = np.where(self.mask.hidden(len(logits)), -np.inf, logits)
        if s.repeat_penalty != 1 and self.seen:
            logits, seen = logits.copy(), list(set(self.seen))
            found = logits[seen]
            logits[seen] = np.where(found > 0, found / s.repeat_penalty, found * s.repeat_penalty)
        token = int(logits.argmax()) if s.temperature <= 0 else self._drawn(logits)
        self.seen.append(token)
        if self.mask is not None:
            self.mask.took(token)
        return token

    def _drawn(self, logits: np.ndarray) -> int:
        s, highest = self.sampling, logits.max()
        kept = _likeliest(logits, s.top_p) if s.top_p < 1 else None
        if s.min_p > 0:
            floor = highest + np.log(s.min_p)
            kept = np.flatnonzero(logits >= floor) if kept is None else kept[logits[kept] >= floor]
        left = (logits if kept is None else logits[kept]).astype(np.float64)
        sums = np.exp((left - highest) / s.temperature).cumsum()
        at = int(sums.searchsorted(self.random.random() * sums[-1], side="right"))
        return int(at if kept is None else kept[at])


def _likeliest(logits: np.ndarray, share: float) -> np.ndarray:
    """The fewest tokens with this share of all probability, the likeliest first; one at least."""
    p = np.exp(logits.astype(np.float64) - logits.max())
    wanted = share * p.sum()
    for least in (1e-3, 1e-6, 0.0):  # sorting the whole vocabulary takes milliseconds and is seldom needed
        some = np.flatnonzero(p >= least)
        some = some[np.argsort(-p[some], kind="stable")]
        sums = p[some].cumsum()
        if sums[-1] >= wanted:
            break
    return some[: int(sums.searchsorted(wanted)) + 1]
