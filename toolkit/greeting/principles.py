"""Short lists of rules in readable files: by what a greeting is judged, or how a flawed one is made to look fine."""

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import UserError

MOST = 10  # rules in a list; as published for both lists of the adversarial training
LONGEST = (
    300  # characters of a rule; not published, chosen because ten of them still leave room for a greeting in 2k tokens
)
SHIPPED = Path(__file__).parent / "principles"


@dataclass(frozen=True)
class Principles:
    """A numbered list of rules. `name` is its title, `note` says where this version comes from."""

    rules: tuple[str, ...]
    version: int
    language: str
    name: str
    note: str = ""

    @property
    def text(self) -> str:
        """The rules as they stand in a prompt: one numbered line each."""
        return "\n".join(f"{i}. {rule}" for i, rule in enumerate(self.rules, 1))

    def save(self, path: Path) -> None:
        """Write the file that `load` reads, whole or not at all."""
        head = [f"# {self.name}", "", f"version: {self.version}", f"language: {self.language}"]
        head += [f"note: {self.note}"] if self.note else []
        partial = Path(path).with_suffix(".partial")
        partial.write_text("\n".join([*head, "", self.text, ""]), encoding="utf-8")
        os.replace(partial, path)


def fault(rules: Sequence[str]) -> str:
    """What is wrong with a list of rules, or "": none, more than MOST, an empty, doubled or too long one."""
    if not rules:
        return "no rule"
    if len(rules) > MOST:
        return f"{len(rules)} rules, at most {MOST} are allowed"
    seen: dict[str, int] = {}
    for i, rule in enumerate(rules, 1):
        if wrong := _fault_of(rule, seen, i):
            return wrong
    return ""


def _fault_of(rule: str, seen: dict[str, int], number: int) -> str:
    plain = re.sub(r"\W+", " ", rule.lower()).strip()
    if not plain:
        return f"rule {number} is empty"
    if len(rule) > LONGEST:
        return f"rule {number} has {len(rule)} characters, at most {LONGEST} are allowed"
    if plain in seen:
        return f"rule {number} says the same as rule {seen[plain]}"
    seen[plain] = number
    return ""


def load(path: Path) -> Principles:
    """Read a list of rules from Markdown: a `# title`, `version:`, `language:`, maybe `note:`, then `1. rule` lines.

    Raises:
        UserError: with file and line, for a line that is none of these, or for what `fault` finds.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"cannot read principles at {path}: {error.strerror}", "check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text", "save it as UTF-8") from None
    name, head, rules, seen = "", {}, [], {}

    def refuse(number: int, what: str):
        raise UserError(f"{path}:{number}: {what}", "see the shipped detector.en.md for the form")

    for number, line in enumerate(lines, 1):
        line = line.strip()
        if line.startswith("# ") and not name:
            name = line[2:].strip()
        elif found := re.fullmatch(r"\d+[.)、．]\s*(.*)", line):
            rules.append(found[1])
            if len(rules) > MOST:
                refuse(number, f"more than {MOST} rules")
            if wrong := _fault_of(found[1], seen, len(rules)):
                refuse(number, wrong)
        elif (found := re.fullmatch(r"(version|language|note):\s*(.*)", line)) and not rules:
            head[found[1]] = (number, found[2])
        elif line:
            refuse(number, f"{line[:40]!r} is neither a title, version:, language:, note: nor a numbered rule")
    if not rules:
        refuse(max(len(lines), 1), "no rule")
    for key in ("version", "language"):
        if key not in head:
            refuse(1, f"no {key}: line")
    at, version = head["version"]
    if not re.fullmatch(r"[0-9]{1,9}", version):
        refuse(at, f"version {version!r} is no whole number")
    if not head["language"][1]:
        refuse(head["language"][0], "language is empty")
    return Principles(tuple(rules), int(version), head["language"][1], name or path.stem, head.get("note", (0, ""))[1])


def shipped(kind: str, language: str) -> Principles:
    """The list a run starts from: `kind` is "detector" or "generator"; English for a language that has none."""
    path = SHIPPED / f"{kind}.{language}.md"
    return load(path if path.exists() else SHIPPED / f"{kind}.en.md")


def diff(a: Principles, b: Principles) -> str:
    """What changed from `a` to `b`: every rule on a line that begins with "-", "+" or a blank; "" when they are alike.

    Rules stand without their numbers, so that one deleted rule does not change all that follow.
    """
    names = (f"{a.name}, version {a.version}", f"{b.name}, version {b.version}")
    return "\n".join(difflib.unified_diff(a.rules, b.rules, *names, n=MOST, lineterm=""))
