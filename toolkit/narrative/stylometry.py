"""How a text is written, whatever it is about: rates of function words, marks and lengths, against a reference.

The cosine distance of such vectors is Cosine Delta, the usual measure of authorship (Smith & Aldridge 2011; Evert et al.
2017), here with marks and lengths besides words, because a plot has a hundred words and not a novel's.
"""

import functools
import json
import re
from pathlib import Path

import numpy as np

from toolkit.narrative.writing import sentences_of
from toolkit.records import guess_language

FUNCTION_WORDS = {
    "en": (
        "the of and to a in that it is was i for on you he be with as by at have are this not but had his they from she "
        "which or we an there her were one do been all their has would will what if can when so no out up into than "
        "them then some could him about now only its over after also other these my me who just like more very even "
        "before through where how because while though still until never again down off yet too any each every both "
        "once perhaps however finally suddenly"
    ).split(),
    "zh": list(
        "的了是在不一我他她它们这那就也都和与而却但又还才再把被让给从到对向为以于之其所将会能要可只如若因虽便即着过吗呢吧啊"
    ),
}
_MARKS = {
    "en": [",", ".", ";", ":", "!", "?", "—", "-", "'", '"', "(", "…"],
    "zh": list("，。；：！？—、“（…《"),
}
_SAME = str.maketrans({"“": '"', "”": '"', "’": "'", "‘": "'", "–": "—"})
_PLOTS = Path(__file__).resolve().parents[1] / "data" / "plots.jsonl"


def style_vectors(texts: list[str]) -> np.ndarray:
    """Unit vectors (N, D), float32: z-scores of each text's habits against the shipped plots of its language.

    English and Chinese habits stand in different columns, so that texts of two languages are at distance 1.
    """
    rows = np.zeros((len(texts), sum(len(_mean_and_spread(language)[0]) for language in FUNCTION_WORDS)))
    for i, text in enumerate(texts):
        start = 0
        for language in FUNCTION_WORDS:
            mean, spread = _mean_and_spread(language)
            if language == (guess_language(text) if guess_language(text) in FUNCTION_WORDS else "en"):
                rows[i, start : start + len(mean)] = np.clip((_habits(text, language) - mean) / spread, -4, 4)
            start += len(mean)
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _habits(text: str, language: str) -> np.ndarray:
    """Rates and lengths (D): function words and marks in a hundred units, then lengths of words and sentences."""
    if language == "en":
        text = text.translate(_SAME)
    units = list(re.sub(r"\W", "", text)) if language == "zh" else re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())
    size = max(1, len(units))
    counts = {u: 0 for u in FUNCTION_WORDS[language]}
    for u in units:
        if u in counts:
            counts[u] += 1
    words = [100 * c / size for c in counts.values()]
    marks = [100 * text.count(m) / size for m in _MARKS[language]]
    sentences = [len(s) if language == "zh" else len(s.split()) for s in sentences_of(text)] or [0]
    lengths = [
        float(np.mean([len(u) for u in units] or [0])),
        float(np.mean([len(u) > 6 for u in units] or [0])) * 100,
        float(np.log1p(np.mean(sentences))),
        float(np.log1p(np.std(sentences))),
        100 * len(re.findall(r"\bI\b", text)) / size,
        100 * text.count("\n\n") / size,
        100 * sum(u.endswith("ed") for u in units) / size,
        100 * sum(u.endswith("ing") for u in units) / size,
    ]
    return np.array(words + marks + lengths)


@functools.cache
def _mean_and_spread(language: str) -> tuple[np.ndarray, np.ndarray]:
    """What is usual in the shipped plots; no spread is taken below a tenth of a word in a hundred."""
    plots = [json.loads(line)["sentences"] for line in _PLOTS.read_text(encoding="utf-8").splitlines()]
    texts = [t for t in ("".join(s) if guess_language(s[0]) == "zh" else " ".join(s) for s in plots)]
    rows = np.stack([_habits(t, language) for t in texts if guess_language(t) == language])
    return rows.mean(0), np.maximum(rows.std(0), 0.1)
