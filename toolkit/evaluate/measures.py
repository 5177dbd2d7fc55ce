"""Measures of how far the texts of one premise are apart: each one function, of texts or of their vectors."""

import itertools
import re
import zlib
from collections import Counter

import numpy as np

from toolkit.models.embed import cosine_distances
from toolkit.narrative.names import words_in
from toolkit.narrative.stylometry import FUNCTION_WORDS
from toolkit.narrative.words import UNIT, ngrams, words_of
from toolkit.records import guess_language

SEGMENTS = 4  # beginning, two middles, end; a hundred words bear no finer cut
OPENING = {"en": 3, "zh": 4}  # first words of a text; Chinese characters
REPEATED = 4  # words of the n-grams that count as repeating oneself


def pair_distance(vectors: np.ndarray) -> float:
    """Mean cosine distance over all pairs of unit vectors (N, D); 0 … 2."""
    return float(cosine_distances(vectors)[np.triu_indices(len(vectors), 1)].mean())


def vendi(vectors: np.ndarray) -> float:
    """Vendi score of unit vectors (N, D): exp of the entropy of the eigenvalues of K/N, K the cosines; 1 … N.

    Friedman & Dieng 2022 (arXiv 2210.02410), equation 1.
    """
    kernel = 1 - cosine_distances(vectors)  # 1 on the diagonal, a zero vector's too
    values = np.linalg.eigvalsh(kernel / len(vectors))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def distinct(texts: list[str], n: int) -> float:
    """Different n-grams / all n-grams of the texts together, none across two texts; NaN without any.

    Li et al. 2016 (arXiv 1510.03055), section 5.2; words in lower case, marks left out, Chinese by character.
    """
    grams = [g for t in texts for g in ngrams(words_of(t), n)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def self_bleu(texts: list[str]) -> float:
    """Mean BLEU-4 of each text against all others as references, 0 … 1 (Texygen, Zhu et al. 2018, arXiv 1802.01886).

    sacrebleu's sentence BLEU: its tokeniser 13a, or zh where one of the texts is Chinese; exponential smoothing.
    """
    from sacrebleu.metrics import BLEU

    chinese = any(guess_language(t) == "zh" for t in texts)
    bleu = BLEU(tokenize="zh" if chinese else "13a", effective_order=True)
    scores = [bleu.sentence_score(t, texts[:i] + texts[i + 1 :]).score for i, t in enumerate(texts)]
    return float(np.clip(np.mean(scores) / 100, 0, 1))


def compression(texts: list[str]) -> float:
    """Compressed / plain bytes of the texts joined by line feeds (zlib, level 9, UTF-8).

    The inverse of Shaib et al. 2024's compression ratio (arXiv 2403.00553), so that more means more diverse. zlib looks
    back 32 KB: what repeats farther back than that is not seen.
    """
    plain = "\n".join(texts).encode("utf-8", "replace")
    return len(zlib.compress(plain, 9)) / len(plain)


def self_repetition(texts: list[str]) -> float:
    """Mean over texts of the share of a text's different 4-word runs that occur in another of the texts; 0 … 1.

    After Salkar et al. 2022 (AACL, “Self-Repetition in Abstractive Neural Summarizers”) and Shaib et al. 2024, who take
    the logarithm of the count; a share is the same whatever the length. NaN where a text has under 4 words.
    """
    grams = [set(ngrams(words_of(t), REPEATED)) for t in texts]
    holders = Counter(g for one in grams for g in one)
    if not all(grams):
        return float("nan")
    return float(np.mean([sum(holders[g] > 1 for g in one) / len(one) for one in grams]))


def openings(texts: list[str]) -> float:
    """Share of pairs of texts whose first 3 words (4 Chinese characters) are the same, case and marks aside.

    Not published; chosen because small models begin alike (“In the heart of”), which no average over a text shows.
    """
    first = [opening_of(t) for t in texts]
    return float(np.mean([a == b for a, b in itertools.combinations(first, 2)]))


def skeleton(quarters: np.ndarray) -> float:
    """How alike texts are quarter by quarter, beyond what they share in any order; 1: the same story, about 0: only a subject.

    For each pair: a = mean cosine of quarters in the same place, b = mean cosine of quarters in different places. The
    value is Σ(a − b) / Σ(1 − b) over the pairs, as kappa corrects agreement for chance: two texts about one subject have
    a high a and an equally high b. NaN for fewer than 2 texts. Not published; chosen because it needs no parser and the
    plain mean a mostly tells that texts answer one premise.

    Args:
        quarters: unit vectors (N, SEGMENTS, D) of each text's quarters, names and the premise's words masked.
    """
    if len(quarters) < 2:
        return float("nan")
    cosines = np.einsum("aid,bjd->abij", quarters.astype(float), quarters.astype(float))
    cosines = cosines[np.triu_indices(len(quarters), 1)]
    same = np.trace(cosines, axis1=1, axis2=2) / SEGMENTS
    other = (cosines.sum((1, 2)) - SEGMENTS * same) / (SEGMENTS * (SEGMENTS - 1))
    room = (1 - other).sum()
    return float((same - other).sum() / room) if room > 1e-6 else 1.0  # no room: every quarter of every text is alike


# ---- words


def length_of(text: str) -> int:
    return sum(1 for _ in UNIT.finditer(text))


def cut_to(text: str, words: int) -> str:
    """`text` up to the end of its word number `words`."""
    last = next(itertools.islice(UNIT.finditer(text), words - 1, None), None)
    return text[: last.end()] if last else text


def opening_of(text: str) -> tuple[str, ...]:
    return tuple(words_of(text)[: OPENING[guess_language(text)]])


# ---- quarters


def quarters_of(text: str, names: set[str], premise: str) -> list[str] | None:
    """SEGMENTS pieces of equally many words, its names and the premise's words masked; None under 2 words a piece.

    By words and not by sentences: a small model's text often has two or three sentences of forty words.
    """
    masked = _masked(text, names, premise)
    return _pieces(masked) if length_of(masked) >= 2 * SEGMENTS else None


def _pieces(text: str) -> list[str]:
    ends = [m.end() for m in UNIT.finditer(text)]
    marks = [0, *(ends[len(ends) * i // SEGMENTS - 1] for i in range(1, SEGMENTS)), len(text)]
    return [text[a:b].strip() for a, b in itertools.pairwise(marks)]


def _masked(text: str, names: set[str], premise: str) -> str:
    """`text` with “someone” for names and “something” for the premise's words: what is told, not of whom and of what.

    The premise's words: those of 4 letters or more that are no function words, plural or not; in Chinese, any two
    characters in a row that stand so in the premise.
    """
    if guess_language(text) == "zh":
        given = {premise[i : i + 2] for i in range(len(premise) - 1)}
        given = {pair for pair in given if len(re.findall(r"[\u4e00-\u9fff]", pair)) == 2}
        hit = {j for i in range(len(text) - 1) if text[i : i + 2] in given for j in (i, i + 1)}
        return re.sub("\0+", "某", "".join("\0" if i in hit else c for i, c in enumerate(text)))
    given = {w.lower().rstrip("s") for _, _, w in words_in(premise) if len(w) > 3}
    given -= {w.rstrip("s") for w in FUNCTION_WORDS["en"]}
    out, at = [], 0
    for start, end, word in words_in(text):
        if stand := "someone" if word in names else "something" if word.lower().rstrip("s") in given else "":
            out += [text[at:start], stand]
            at = end
    return "".join([*out, text[at:]])
