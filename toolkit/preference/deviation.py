"""How far each answer lies from the other answers to its prompt, and the weight that gives it in training.

Deviation-weighted training (DDPO, DORPO; Chung et al. 2025, arXiv 2503.17126) counts a pair by how unusual its chosen
answer is among the answers to the same prompt.
"""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from toolkit.errors import UserError
from toolkit.models.embed import LONGEST, cosine_distances, embed
from toolkit.records import guess_language

EMBEDDED_KINDS = ("semantic", "style")
KINDS = (*EMBEDDED_KINDS, "words")
ALIKE = 1e-6  # cosine distances closer than this are rounding, not deviation


@dataclass(frozen=True)
class Deviation:
    """One answer among those to its prompt: raw `distances` per kind, `rank` in 0 … 1 (kinds combined), `weight` with mean 1."""

    id: str
    premise_id: str
    distances: dict[str, float]
    rank: float
    weight: float


def deviations(
    answers: dict[str, list[tuple[str, str]]], kinds: tuple[str, ...], floor: float, models: dict[str, str]
) -> list[Deviation]:
    """The deviation of every answer, prompt by prompt.

    Args:
        answers: premise id → (id, text) of each answer to it, chosen and rejected together.
        kinds: of KINDS; several are combined by their geometric mean.
        floor: no weight is below it, 0 … 1.
        models: embedding model of "semantic" and of "style".

    Raises:
        UserError: an empty or over-long text, or an embedding model that is not to be had.
    """
    for premise, group in answers.items():
        for id, text in group:
            if len(text) > LONGEST:
                raise UserError(
                    f"the answer {id} to prompt {premise} has {len(text):,} characters; at most {LONGEST:,} are compared "
                    f"({text[:40]!r} …)",
                    "take it out, or cut it",
                )
    texts = [text for group in answers.values() for _, text in group]
    vectors = {kind: embed(texts, models[kind], f"{kind}") for kind in kinds if kind in EMBEDDED_KINDS}
    found, start = [], 0
    for premise, group in answers.items():
        rows = slice(start, start + len(group))
        start += len(group)
        distances = {
            kind: mean_distances(vectors[kind][rows]) if kind in vectors else rare_words([text for _, text in group])
            for kind in kinds
        }
        few = len(group) < 3  # of two answers each is as far from the other, whatever rarity of words would say
        z = np.ones(len(group)) if few else combined([min_max(d) for d in distances.values()])
        weights = mean_one(z, floor)
        for i, (id, _) in enumerate(group):
            raw = {kind: round(float(d[i]), 6) for kind, d in distances.items()}
            found.append(Deviation(id, premise, raw, round(float(z[i]), 6), float(weights[i])))
    return found


def mean_distances(vectors: np.ndarray) -> np.ndarray:
    """(n,): mean cosine distance of each unit vector (n, D) to the other n − 1; 0 for a lone one."""
    n = len(vectors)
    return cosine_distances(vectors).sum(1) / (n - 1) if n > 1 else np.zeros(n)


def rare_words(texts: list[str]) -> np.ndarray:
    """(n,): mean over a text's words of one over how often the word occurs in all texts of the prompt together.

    DivPO's inverse word frequency (arXiv 2501.18101); Chinese by the character. Texts without words get 0.
    """
    rows = [re.findall(r"\w", t) if guess_language(t) == "zh" else re.findall(r"\w+", t.lower()) for t in texts]
    counts = Counter(word for row in rows for word in row)
    return np.array([np.mean([1 / counts[w] for w in row]) if row else 0.0 for row in rows])


def min_max(distances: np.ndarray) -> np.ndarray:
    """z in 0 … 1 over one prompt: the least deviating answer 0, the most deviating 1; all 1 where they are alike.

    Alike are: a single answer, two by their distance (each is as far from the other), and identical ones.
    """
    spread = float(np.ptp(distances)) if len(distances) else 0.0
    if spread < ALIKE:
        return np.ones(len(distances))
    return (distances - distances.min()) / spread


def combined(kinds: list[np.ndarray]) -> np.ndarray:
    """Geometric mean of several kinds' z, each (n,)."""
    return np.prod(kinds, axis=0) ** (1 / len(kinds))


def mean_one(z: np.ndarray, floor: float = 0.0) -> np.ndarray:
    """Weights (n,) with mean 1 over the prompt: w = n · z / Σz; all 1 where every z is 0.

    With a floor: w ← floor + (1 − floor) · w, which keeps the mean at 1 and the order. (The published ablation clamps at
    0.2 and lets the mean grow; chosen otherwise because the mean is what keeps the loss at its scale.)
    """
    total = z.sum()
    weights = len(z) * z / total if total > 0 else np.ones(len(z))
    return floor + (1 - floor) * weights
