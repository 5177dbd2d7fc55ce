"""Drafts of one premise asked from different angles: a wider pool without any training.

Not published; chosen because a small model answers one prompt with one story again and again, whatever the temperature.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from toolkit.engines.base import Engine, Messages, Sampling, Samplings, spread
from toolkit.narrative.prompts import lines
from toolkit.records import guess_language


def from_angle(messages: Messages, k: int) -> Messages:
    """The messages with the k-th shipped angle (prompts/angles) after the question, taken round and round."""
    *before, last = messages
    known = lines("angles", guess_language(last["content"]))
    return [*before, {**last, "content": f"{last['content']}\n\n{known[k % len(known)]}"}]


class Angled:
    """An engine that asks for the k-th answer to each prompt from the k-th angle; otherwise the engine given."""

    def __init__(self, engine: Engine):
        self.engine, self.name, self.family = engine, engine.name, engine.family

    def generate(self, prompts: Sequence[Messages], n: int, sampling: Samplings) -> list[list[str]]:
        """As Engine.generate. Answers that share a sampling are one call: on the local engines they are written together."""
        samplings, answers, drawn = spread(sampling, n), [[""] * n for _ in prompts], 0
        for kind in dict.fromkeys(samplings):
            ks = [k for k in range(n) if samplings[k] == kind]
            asked = [from_angle(p, k) for p in prompts for k in ks]
            # the i-th answer of a call is drawn with seed + i: the next call begins where this one ends
            made = self.engine.generate(asked, 1, replace(kind, seed=kind.seed + drawn))
            drawn += len(asked)
            for place, (text,) in enumerate(made):
                answers[place // len(ks)][ks[place % len(ks)]] = text
        return answers

    def stream(self, prompts: Sequence[Messages], n: int, sampling: Sampling) -> Iterator[tuple[int, str]]:
        """As Engine.stream, with one sampling for all."""
        return self.engine.stream([from_angle(p, k) for p in prompts for k in range(n)], 1, sampling)

    def choose(self, prompts, options, reason=0):
        """As Engine.choose: a verdict has no angle."""
        return self.engine.choose(prompts, options, reason)

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()
