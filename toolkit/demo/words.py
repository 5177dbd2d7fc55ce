"""What the page says, in English and Chinese: words.yaml."""

import re
from functools import cache
from pathlib import Path

import yaml

from toolkit.errors import UserError

LANGUAGES = {"en": "English", "zh": "简体中文"}


@cache
def _table() -> dict:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is there
    return yaml.load((Path(__file__).parent / "words.yaml").read_text(encoding="utf-8"), loader)


class Words:
    """`words("write.button")` is the text of that key in one language; places in braces are filled."""

    def __init__(self, language: str):
        self.language = language
        self._at = list(LANGUAGES).index(language)

    def __call__(self, key: str, **places) -> str:
        text = _table()["words"][key][self._at]
        return text.format(**places) if places else text

    def choices(self, of: str) -> list[str]:
        """A list of words.yaml, such as the genres."""
        return _table()[of][self.language]

    def stage(self, name: str) -> str:
        """A stage of a run (runner.STAGES)."""
        return _table()["stages"].get(name, [name, name])[self._at]

    def reason(self, why: str) -> str:
        """Why a pair was left out (records.REASONS)."""
        if self.language == "en":
            from toolkit.records import REASONS

            return REASONS.get(why, why)
        return _table()["reasons"].get(why, why)

    def form(self, what: str) -> str:
        """What is wrong with a greeting's form (greeting.form.broken)."""
        return what if self.language == "en" else _table()["forms"].get(what, what)

    def clock(self, seconds: float) -> str:
        """A length of time, as people say it."""
        minutes = round(seconds / 60)
        if seconds < 90:
            return self("clock.seconds", n=round(seconds))
        return self("clock.minutes", n=minutes) if minutes < 120 else self("clock.hours", n=round(minutes / 60))

    def drop(self, why: str) -> str:
        """Why a claim does not count (evaluate.panel), in this language."""
        return _table()["dropped"].get(why, [why, why])[self._at]

    def mistake(self, error: BaseException) -> tuple[str, str]:
        """(what is wrong, what to do) in this language. What no rule knows is told in the original words, and said to be."""
        hint = getattr(error, "hint", "")
        if isinstance(error, MemoryError):
            return self("error.memory"), self("error.memory_hint")
        if not isinstance(error, (UserError, OSError)):
            return self("error.ours"), f"{type(error).__name__}: {error}"
        for rule in _table()["mistakes"]:
            if found := re.fullmatch(rule["match"], str(error), re.DOTALL):
                message, hint = (rule[self.language] + ["", ""])[:2]
                return message.format(*found.groups()), hint.format(*found.groups())
        return (str(error), hint) if self.language == "en" else (f"{self('error.original')}{error}", hint)
