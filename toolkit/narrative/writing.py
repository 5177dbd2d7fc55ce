"""How a premise is put to a writer, and how text is cut into sentences."""

import re

from toolkit.engines.base import Messages
from toolkit.errors import UserError
from toolkit.narrative.prompts import prompt
from toolkit.records import Premise, guess_language

LONGEST_PREMISE = 4000  # characters; above this it is no premise but a text, and would crowd out the answer


def check_premise(text: str) -> str:
    """The premise, stripped. Raises UserError when it is empty or longer than LONGEST_PREMISE characters."""
    text = text.encode("utf-8", "replace").decode("utf-8").strip()  # a shell may hand over bytes that are no text
    if not text:
        raise UserError("the premise is empty", 'give a sentence: fablesmith write "A lighthouse keeper …"')
    if len(text) > LONGEST_PREMISE:
        raise UserError(
            f"the premise has {len(text):,} characters; at most {LONGEST_PREMISE:,} are taken",
            "give one or two sentences",
        )
    return text


def write_prompt(premise: Premise | str) -> Messages:
    """The messages that ask a writer for a plot; the same for candidates, training, `write` and evaluation."""
    text = premise if isinstance(premise, str) else premise.text
    language = guess_language(text) if isinstance(premise, str) else premise.language
    return [{"role": "user", "content": prompt("write", language, premise=text)}]


_END = re.compile(
    r"""(?:(?<=[.!?…])|(?<=[.!?…]["”’')\]]))\s+(?=["“‘'(\[]?[A-Z0-9])"""  # English: a stop, perhaps a closing quote, a capital
    r"""|(?:(?<=[。！？])|(?<=[。！？][”’」』]))(?![。！？”’」』])"""  # Chinese: no space between sentences
)


def sentences_of(text: str) -> list[str]:
    """Sentences of an English or Chinese text, in order, without empty ones."""
    return [s.strip() for s in _END.split(text.replace("\n", " ")) if s and s.strip()]


def whole_sentences(text: str) -> str:
    """`text` without an unfinished last sentence (a writer that ran into its token limit); as it is when none ends."""
    text = text.strip()
    if text.endswith((".", "!", "?", "…", "。", "！", "？", '"', "”", "」")):
        return text
    cut = max(text.rfind(mark) for mark in ".!?…。！？")
    return text[: cut + 1] if cut > 0 else text
