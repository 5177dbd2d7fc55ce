"""How a text under judgement is shown to a model, so that instructions planted in it stay part of the story."""

import re

from toolkit.narrative.prompts import prompt
from toolkit.narrative.writing import sentences_of

GUARDS = ("none", "tags", "quote", "both")


def guard_rule(guard: str, language: str = "en") -> str:
    """What the system message says of the guard: empty for "none"."""
    rules = [prompt(f"guard_{kind}", language) for kind in ("tags", "quote") if guard in (kind, "both")]
    return " ".join(rules)


def quoted(text: str, guard: str, tag: str = "plot") -> str:
    """`text` as it is put before a judge.

    tags: between <plot> and </plot>; a text that forges such a tag has its angle bracket changed to ‹.
    quote: one sentence a line, each after "> " (a mark on every line that a text cannot close;
    after "spotlighting", Hines et al. 2024, arXiv 2403.14720). both: the one inside the other.

    Which one costs and shields how much is measured: docs/results.md, planted instructions.
    """
    if guard in ("quote", "both"):
        text = "\n".join(f"> {s}" for line in text.splitlines() for s in sentences_of(line))
    if guard in ("tags", "both"):
        kind = tag.split("_")[0]
        text = re.sub(rf"<(?=\s*/?\s*{kind})", "‹", text, flags=re.IGNORECASE)
        return f"<{tag}>\n{text}\n</{tag}>"
    return text
