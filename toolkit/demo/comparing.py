"""The blind comparison: two models write from one premise with one seed; nobody sees who wrote what until votes are counted."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from toolkit.demo.desk import Job, Models
from toolkit.demo.drafting import SIZES, Wish, draft_prompt, writer
from toolkit.engines.base import Sampling
from toolkit.errors import UserError
from toolkit.narrative.writing import whole_sentences
from toolkit.records import Plot, text_id


@dataclass(frozen=True)
class Pair:
    """Two texts in the order in which they are shown; `origin` of each is the model's name. It never leaves the server."""

    premise: str
    shown: tuple[Plot, Plot]
    since: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.since, 1)


@dataclass(frozen=True)
class Progress:
    """What a person may see while the two are written: which one, and how many words there are. The texts come together,
    because who writes faster would give them away."""

    place: int
    words: int


def write_pair(wish: Wish, first: tuple[str, str], second: tuple[str, str]):
    """Work that shows Progress, and at the end a Pair.

    Args:
        first, second: (name, what `load_engine` takes) of the two models; which of them is shown first is drawn.

    Raises UserError when both wrote the same words.
    """
    if first[1] == second[1]:
        raise UserError("both are the same model", "choose two different ones")

    def work(models: Models, job: Job) -> Iterator[Progress | Pair]:
        order = random.sample((first, second), 2)
        plots = []
        for place, (name, spec) in enumerate(order, 1):
            text = ""
            sampling = Sampling(
                wish.temperature, wish.min_p, repeat_penalty=1.05, max_tokens=SIZES[wish.size], seed=wish.seed
            )
            pieces = writer(models, spec).stream([draft_prompt(wish)], 1, sampling)
            try:
                for _, piece in pieces:
                    text += piece
                    yield Progress(place, len(text.split()))
            finally:
                pieces.close()
            id = text_id(f"{wish.premise} {wish.seed}", "p")
            plots.append(
                Plot(f"{id}-{place}", whole_sentences(text), text_id(wish.premise, "p"), wish.premise, origin=name)
            )
        if not all(p.text for p in plots):
            raise UserError("a model wrote nothing", "try again, or another premise")
        if plots[0].text == plots[1].text:
            raise UserError("both wrote the same words", "raise the temperature, or compare other models")
        yield Pair(wish.premise, tuple(plots))

    return work
