"""Several plots a premise from one writer, at varied sampling."""

import re
from collections.abc import Iterator

from toolkit.engines.base import Engine, Sampling
from toolkit.narrative.writing import sentences_of, whole_sentences, write_prompt
from toolkit.records import Plot, Premise


def write_candidates(
    engine: Engine, premises: list[Premise], samplings: list[Sampling]
) -> Iterator[tuple[Premise, list[Plot]]]:
    """One plot for each premise and sampling, premise by premise in order; duplicates and empty ones are left out.

    All premises given are one call to the engine (its unit of repeatable work).
    """
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
