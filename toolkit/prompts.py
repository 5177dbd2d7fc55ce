"""Prompts are text files, NAME.LANGUAGE.txt in a folder beside the code that asks them, with {places} to fill."""

from functools import cache
from pathlib import Path


@cache
def _template(folder: Path, name: str, language: str) -> str:
    path = folder / f"{name}.{language}.txt"
    return (path if path.exists() else folder / f"{name}.en.txt").read_text(encoding="utf-8").strip()


def fill(folder: Path, file: str, language: str = "en", /, **places: str) -> str:
    """The prompt file with its places filled; English where a language has no file of its own.

    Filled by replacement, not str.format: braces in a user's text are only text.
    """
    text = _template(folder, file, language)
    pieces = []
    while text:
        start = text.find("{")
        end = text.find("}", start)
        if start < 0 or end < 0:
            break
        pieces += [text[:start], places[text[start + 1 : end]]]
        text = text[end + 1 :]
    return "".join(pieces) + text


def lines(folder: Path, file: str, language: str = "en") -> list[str]:
    """The lines of a file that is a list."""
    return _template(folder, file, language).splitlines()
