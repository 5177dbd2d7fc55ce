"""Several plots a premise from one writer, at varied sampling."""

import re
from collections.abc import Iterator
from dataclasses import replace

from toolkit.engines.base import Engine, Sampling
from toolkit.narrative.writing import sentences_of, whole_sentences, write_prompt
from toolkit.records import Plot, Premise


def write_candidates(
    engine: Engine, premises: list[Premise], samplings: list[Sampling], angles: bool = False
) -> Iterator[tuple[Premise, list[Plot]]]:
    """One plot for each premise and sampling, premise by premise in order; duplicates and empty ones are left out.

    The premises given are one unit of repeatable work.

    Args:
        angles: the k-th draft of each premise is asked from the k-th angle.
    """
    if angles:
        asked = [
            engine.generate([write_prompt(p, k) for p in premises], 1, replace(s, seed=s.seed + k * len(premises)))
            for k, s in enumerate(samplings)
        ]
        answers = [[texts[i][0] for texts in asked] for i in range(len(premises))]
    else:
        answers = engine.generate([write_prompt(p) for p in premises], len(samplings), samplings)
    for premise, texts in zip(premises, answers, strict=True):
        kept, seen = [], {plain(premise.text)}
        for k, (text, sampling) in enumerate(zip(texts, samplings, strict=True)):
            text = whole_sentences(text)
            if len(sentences_of(text)) < 2 or plain(text) in seen:
                continue
            seen.add(plain(text))
            drawn = {"temperature": sampling.temperature, "seed": sampling.seed}
            kept.append(
                Plot(f"{premise.id}-{k}", text, premise.id, premise.text, origin=f"model:{engine.name}", sampling=drawn)
            )
        yield premise, kept


def plain(text: str) -> str:
    """Text as it counts for "the same text": lower case, letters and digits only."""
    return re.sub(r"\W+", " ", text.lower()).strip()
