"""What the Write tab asks of a writer: drafts from a premise, and changes to one of them."""

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

from toolkit.demo.desk import Job, Models
from toolkit.demo.history import keep
from toolkit.demo.prompts import prompt
from toolkit.engines.base import Messages, Sampling
from toolkit.errors import UserError
from toolkit.narrative.writing import check_premise, write_prompt
from toolkit.records import guess_language

SIZES = {"brief": 110, "plot": 220, "story": 640}  # tokens at most; `plot` is what the house's models are trained on
MOODS = {"rewrite": 0.0, "surprising": 0.3, "calmer": -0.3}  # added to the temperature
LONGEST_STORY = 16_000  # characters in the editor
NEW_SEEDS = 2**31


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a person asked for. `seed` is drawn where none was given."""

    premise: str
    genre: str = ""
    tone: str = ""
    size: str = "plot"
    n: int = 2
    temperature: float = 0.8
    min_p: float = 0.05
    seed: int = 0
    model: str = "embedded"

    @staticmethod
    def of(premise, genre, tone, size, n, temperature, min_p, seed, model) -> "Wish":
        """From the page's fields, brought into range. Raises UserError for an empty or over-long premise."""
        return Wish(
            check_premise(str(premise or "")),
            str(genre or "").strip()[:80],
            str(tone or "").strip()[:80],
            size if size in SIZES else "plot",
            min(max(int(n or 1), 1), 4),
            min(max(float(temperature if temperature is not None else 0.8), 0.0), 2.0),
            min(max(float(min_p if min_p is not None else 0.05), 0.0), 0.5),
            new_seed() if seed in (None, "") else int(seed) % NEW_SEEDS,
            model,
        )


def new_seed() -> int:
    return random.randrange(NEW_SEEDS)


def draft_prompt(wish: Wish) -> Messages:
    """A plot is asked for as everywhere in the house; genre and tone, where given, stand after the premise."""
    language = guess_language(wish.premise)
    more = [
        prompt(name, language, **{name: value}) for name, value in (("genre", wish.genre), ("tone", wish.tone)) if value
    ]
    premise = f"{wish.premise}\n\n{' '.join(more)}" if more else wish.premise
    if wish.size == "plot":
        return write_prompt(premise)
    return [{"role": "user", "content": prompt(wish.size, language, premise=premise)}]


def write_drafts(wish: Wish, history: Path | None):
    """Work for the desk that shows the list of texts as it grows; what was written is kept in `history`, stopped or not."""

    def work(models: Models, job: Job) -> Iterator[list[str]]:
        texts = [""] * wish.n
        engine = writer(models, wish.model)
        sampling = Sampling(
            wish.temperature, wish.min_p, repeat_penalty=1.05, max_tokens=SIZES[wish.size], seed=wish.seed
        )
        pieces = engine.stream([draft_prompt(wish)], wish.n, sampling)
        try:
            for i, piece in pieces:
                texts[i] += piece if texts[i] else piece.lstrip()
                yield list(texts)
        finally:
            pieces.close()
            if history and any(t.strip() for t in texts):
                keep(history, wish, texts)

    return work


def writer(models: Models, spec: str):
    """The engine of an opened model. Raises UserError for a reward model, which writes nothing."""
    engine = models.get(spec).engine
    if engine is None:
        raise UserError(f"{spec} rates texts, it does not write", "choose another model")
    return engine


# ---- working on a text


def passage_at(text: str, start: int, end: int) -> tuple[int, int]:
    """The marked passage without the spaces at its ends; where nothing is marked, the paragraph around the cursor."""
    start, end = sorted((min(max(start, 0), len(text)), min(max(end, 0), len(text))))
    if not text[start:end].strip():
        start = text.rfind("\n", 0, start) + 1
        stop = text.find("\n", start)
        end = stop if stop >= 0 else len(text)
        if not text[start:end].strip():  # an empty line: the last paragraph before it, or the first
            before = text[:start].rstrip()
            start, end = (before.rfind("\n") + 1, len(before)) if before else (0, len(text.split("\n", 1)[0]))
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def change(story: str, how: str, marked: tuple[int, int], wish: Wish):
    """Work that shows the whole text with the change growing in it.

    Args:
        how: continue, or one of MOODS.
        marked: selection in `story`, in characters; both ends are the cursor where nothing is marked.
    """
    language = guess_language(story)
    if how == "continue":
        before, after = story.rstrip(), ""
        before += "\n\n"
        asked, room = prompt("continue", language, story=before[-LONGEST_STORY // 2 :].strip()), 220
        temperature = wish.temperature
    else:
        start, end = passage_at(story, *marked)
        before, after, passage = story[:start], story[end:], story[start:end]
        near = story[max(0, start - 3000) : end + 1500]
        asked = prompt(how, language, story=near.strip(), passage=passage)
        room = min(700, max(60, len(passage) * (2 if language == "zh" else 1) // 3 + 60))
        temperature = min(max(wish.temperature + MOODS[how], 0.2), 1.6)
    sampling = Sampling(temperature, wish.min_p, repeat_penalty=1.05, max_tokens=room, seed=wish.seed)

    def work(models: Models, job: Job) -> Iterator[str]:
        new = ""
        pieces = writer(models, wish.model).stream([[{"role": "user", "content": asked}]], 1, sampling)
        try:
            for _, piece in pieces:
                new = (new + piece).lstrip()
                yield before + new + after
        finally:
            pieces.close()
        if not new.strip():
            yield story  # nothing came: what was there stays

    return work


def markdown(title: str, story: str, about: str) -> str:
    """A text as a Markdown file: what it grew from as a quotation, the text, how it was made. Nothing in it is markup."""
    quote = "\n".join(f"> {line}" for line in _plain(title).splitlines())
    return f"{quote}\n\n{_plain(story)}\n\n---\n\n*{_plain(about)}*\n"


def _plain(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\`*_[]<>#|" else c for c in text.strip())
