"""What flows: Premise → Plot → AspectRatings → PreferencePair, and Request → greeting → PreferencePair. Frozen, JSONL on disk, one format all the way."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from toolkit.errors import UserError


@dataclass(frozen=True)
class Premise:
    """A story's seed, one or two sentences. `split` is "test" for one id in five, by hash, else "train"."""

    id: str
    text: str
    genre: str = ""
    tone: str = ""
    setting: str = ""
    language: str = "en"

    @property
    def split(self) -> str:
        return split_of(self.id)


@dataclass(frozen=True)
class Plot:
    """A whole story outline. `origin` says where it comes from: given, a model (and how), or damage done to another."""

    id: str
    text: str
    premise_id: str = ""
    premise: str = ""
    origin: str = "given"
    sampling: dict = field(default_factory=dict)
    sentences: tuple[str, ...] = ()  # the text, cut; empty when nobody has cut it
    turn: tuple[int, ...] = ()  # which sentences carry the emotional turn; empty when unknown
    characters: tuple[str, ...] = ()  # names in the text, protagonist first; empty when unknown


@dataclass(frozen=True)
class AspectRatings:
    """One plot's ratings. Every dict is dimension key → value; `scores` on 1 … 10 (narrative.dimensions.SCALE).

    Where there is no rating `scores` is empty and `error` says why: none is ever made up.
    """

    plot_id: str
    scores: dict[str, float]
    positive: dict[str, float] = field(default_factory=dict)  # quality as the positive assessment sees it, 1 … 10
    negative: dict[str, float] = field(default_factory=dict)  # quality as the negative critique leaves it, 1 … 10
    merits: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    rater: str = ""
    error: str = ""

    @property
    def mean(self) -> float:
        """Mean of the dimensions; NaN where there is no rating."""
        return sum(self.scores.values()) / len(self.scores) if self.scores else float("nan")


@dataclass(frozen=True)
class PreferencePair:
    """`chosen` is the better answer to `prompt`, which is the whole user turn, as put to the model. Scores are dimension key → 1 … 10 where a model scored them."""

    prompt: str
    chosen: str
    rejected: str
    premise_id: str = ""
    chosen_id: str = ""
    rejected_id: str = ""
    margin: float = 0.0
    chosen_scores: dict[str, float] = field(default_factory=dict)
    rejected_scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What a greeting is asked for, as a person types it. `length` is short, medium or long (greeting.form.LENGTHS)."""

    id: str
    text: str
    occasion: str = ""
    receiver: str = ""
    relation: str = ""
    tone: str = ""
    length: str = "medium"
    language: str = "en"

    @property
    def side(self) -> str:
        return side_of(self.id)


@dataclass(frozen=True)
class Labelled:
    """A good greeting and a flawed one for the same request, about equally long. `flaw` is a kind of greeting.requests.FLAWS."""

    request_id: str
    request: str
    good: str
    bad: str
    flaw: str = ""
    language: str = "en"

    @property
    def side(self) -> str:
        return side_of(self.request_id)


# why a pair of candidates did not become a preference pair, in the order in which it is checked
REASONS = {
    "margin": "the mean reward differs too little",
    "dimensions": "too few dimensions favour the better one",
    "prompts": "too few of the two assessments (positive, negative) prefer the better one",
    "length": "one is too much longer than the other",
    "duplicate": "the two say nearly the same",
    "surplus": "enough surer pairs for this premise",
    "budget": "enough surer pairs in all",
}

Record = TypeVar("Record", Premise, Plot, AspectRatings, PreferencePair, Request, Labelled)


def split_of(id: str) -> str:
    """ "test" for one id in five, decided by the id alone: a premise never changes sides, whatever file it is in."""
    return "test" if int(hashlib.sha256(id.encode()).hexdigest(), 16) % 5 == 0 else "train"


def side_of(id: str) -> str:
    """ "train" (60 %), "validate" (15 %) or "test" (25 %), decided by a request's id alone.

    Writers and reward models learn from the first; thresholds and principles are chosen on the second; the third is
    for the final comparison and the judge that nothing else has seen.
    """
    place = int(hashlib.sha256(id.encode()).hexdigest(), 16) % 20
    return "train" if place < 12 else "validate" if place < 15 else "test"


def text_id(text: str, prefix: str = "t") -> str:
    return f"{prefix}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


# ---- our own files


def dump(record) -> str:
    """One JSON line; fields at their default are left out."""
    kept = {}
    for f in dataclasses.fields(record):
        value = getattr(record, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if value != default:
            kept[f.name] = value
    return json.dumps(kept, ensure_ascii=False)


def write_jsonl(path: Path, rows: Iterable) -> int:
    """Write records or dicts, whole or not at all; returns how many."""
    partial, count = path.with_suffix(path.suffix + ".partial"), 0
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) if isinstance(row, dict) else dump(row)) + "\n")
            count += 1
    os.replace(partial, path)
    return count


def append_jsonl(path: Path, rows: Iterable) -> None:
    """Add records to a growing file and put them on the disk at once: what was made before a crash is kept."""
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) if isinstance(row, dict) else dump(row)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_jsonl(path: Path, kind: type[Record] | type[dict] = dict) -> list[Record]:
    """Read a file we wrote, whole; see `each_jsonl`."""
    return list(each_jsonl(path, kind))


def each_jsonl(path: Path, kind: type[Record] | type[dict] = dict) -> Iterator[Record]:
    """The records of a file we wrote, one at a time: a file may be larger than memory. None where there is no file.

    A torn last line (the process died writing it) is cut off the file; see `append_jsonl`.
    """
    if not path.exists():
        return
    whole = 0  # bytes
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            if line.strip():
                row = json.loads(line)
                yield row if kind is dict else build(kind, row)
        else:
            return
    with path.open("r+b") as file:
        file.truncate(whole)


def build(kind: type[Record], row: dict) -> Record:
    """A dict of ours → record; lists become tuples, unknown keys are ignored."""
    names = {f.name for f in dataclasses.fields(kind)}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k in names})


# ---- other people's files

FORMATS = "ours (text), prompt/chosen/rejected, messages, ShareGPT (conversations), Alpaca (instruction/output)"


@dataclass(frozen=True)
class Imported:
    """What a data file held. `bad` lists "file:line: reason" of the lines left out."""

    format: str
    rows: list
    bad: list[str]


def read_premises(path: Path, skip_bad_lines: bool = False) -> Imported:
    """Premises from any known format: the text, or what the user asked in each conversation."""

    def make(kind: str, row: dict) -> Premise:
        if kind == "ours":
            text = row.get("text", row.get("premise"))
            text = _text(text, "text")
            known = {k: _text(row[k], k) for k in ("genre", "tone", "setting", "language") if row.get(k)}
            known.setdefault("language", guess_language(text))
            return Premise(id=str(row.get("id") or text_id(text, "p")), text=text, **known)
        text = _turns(kind, row)[0]
        return Premise(id=str(row.get("id") or text_id(text, "p")), text=text, language=guess_language(text))

    return import_rows(path, make, skip_bad_lines)


def read_plots(path: Path, skip_bad_lines: bool = False) -> Imported:
    """Plots from any known format: the text, or the last answer in each conversation (the chosen one of a pair).

    A text without an id gets one of its own words; the same words again, which a writer may well give twice, another.
    """
    times: dict[str, int] = {}

    def own_id(row: dict, text: str) -> str:
        if row.get("id"):
            return str(row["id"])
        id = text_id(text)
        times[id] = times.get(id, 0) + 1
        return id if times[id] == 1 else f"{id}-{times[id]}"

    def make(kind: str, row: dict) -> Plot:
        if kind == "ours":
            sentences = row.get("sentences") or []
            if not isinstance(sentences, list) or not all(isinstance(s, str) for s in sentences):
                raise ValueError("`sentences` must be a list of texts")
            text = row.get("text") or join_sentences(sentences)
            text = _text(text, "text")
            extra = {k: tuple(row[k]) for k in ("turn", "characters") if row.get(k)}
            if any(not isinstance(i, int) or not 0 <= i < len(sentences) for i in extra.get("turn", ())):
                raise ValueError("`turn` must list indices of `sentences`")
            row = {"premise_id": row.get("group"), "origin": row.get("system"), **row}  # as files of ratings call them
            named = {k: str(row[k]) for k in ("premise_id", "premise", "origin") if row.get(k)}
            return Plot(id=own_id(row, text), text=text, sentences=tuple(sentences), **named, **extra)
        premise, answer = _turns(kind, row)[:2]
        if answer is None:
            raise ValueError("no answer: this is no plot")
        return Plot(id=own_id(row, answer), text=answer, premise=premise)

    return import_rows(path, make, skip_bad_lines)


def read_pairs(path: Path, skip_bad_lines: bool = False) -> Imported:
    """Preference pairs from any known format that has a chosen and a rejected answer."""

    def make(kind: str, row: dict) -> PreferencePair:
        if kind == "ours":
            raise ValueError("not a preference pair: no prompt, chosen and rejected")
        prompt, chosen, rejected = _turns(kind, row)
        if chosen is None:
            raise ValueError("no chosen answer: this is not a preference pair")
        if rejected is None:
            raise ValueError("no rejected answer: this is not a preference pair")
        if chosen == rejected:
            raise ValueError("chosen and rejected are the same text")
        return PreferencePair(prompt, chosen, rejected, premise_id=str(row.get("premise_id") or text_id(prompt, "p")))

    return import_rows(path, make, skip_bad_lines)


def request_of(kind: str, row: dict) -> str:
    """What was asked, in a row of any known format (`import_rows` names its kind): the text, or the user's first turn."""
    return _text(row.get("text", row.get("premise")), "text") if kind == "ours" else _turns(kind, row)[0]


def read_chats(path: Path, skip_bad_lines: bool = False) -> Imported:
    """Rows {"prompt", "answer"} to learn from, a row for every answer of the assistant; of a pair the chosen one.

    `prompt` is the user's turn, or all turns before the answer where there are several: [{"role", "content"}, …], a system
    message among them.
    """

    def make(kind: str, row: dict) -> list[dict]:
        if kind in ("messages", "sharegpt"):
            return _answers(row["messages" if kind == "messages" else "conversations"])
        if kind == "ours":
            raise ValueError("a text alone is nothing to learn answers from: no prompt and answer")
        if kind == "prompt/chosen/rejected" and "chosen" not in row:  # TRL's and OpenAI's names for prompt and answer
            row = {**row, "chosen": row.get("completion", row.get("response", row.get("answer")))}
        prompt, answer = _turns(kind, row)[:2]
        if answer is None:
            raise ValueError("no answer to learn from")
        return [{"prompt": prompt, "answer": answer}]

    found = import_rows(path, make, skip_bad_lines)
    return Imported(found.format, [row for rows in found.rows for row in rows], found.bad)


_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", **{r: r for r in ("system", "user", "assistant")}}


def _answers(turns) -> list[dict]:
    """A row for each turn of the assistant that follows a turn of the user."""
    if not isinstance(turns, list) or not turns or not all(isinstance(t, dict) for t in turns):
        raise ValueError("the conversation must be a list of turns")
    before, rows = [], []
    for turn in turns:
        role = turn.get("role", turn.get("from"))
        if role not in _ROLES:
            raise ValueError(f"a turn of {role!r}; known: {', '.join(_ROLES)}")
        said = {"role": _ROLES[role], "content": _text(turn.get("content", turn.get("value")), "a turn")}
        if said["role"] == "assistant" and any(t["role"] == "user" for t in before):
            rows.append({"prompt": before[0]["content"] if len(before) == 1 else before[:], "answer": said["content"]})
        before.append(said)
    if not rows:
        raise ValueError("no answer of the assistant to a turn of the user")
    return rows


def guess_language(text: str) -> str:
    return "zh" if any("\u4e00" <= c <= "\u9fff" for c in text) else "en"


_ENGLISH = re.compile(
    r"the|of|to|and|is|it|he|she|for|be|what|his|her|that|with|they|but|had|not|from|by|you|i|my|we|this|were"
)


def written_in(text: str) -> str:
    """ "zh", "en" or "other": what the house's prompts and passports cover, and what they do not.

    Decided by script, and for Latin letters by the share of English function words (at least one word in twelve;
    of the shipped plots the lowest has one in six). A text of under 8 words in Latin letters counts as English.
    """
    letters = [c for c in text if c.isalpha()]
    if not letters:
        return "other"
    share = lambda low, high: sum(low <= c <= high for c in letters) / len(letters)  # noqa: E731
    if share("\u3040", "\u30ff") > 0.05:  # kana: Japanese
        return "other"
    if share("\u4e00", "\u9fff") > 0.3:
        return "zh"
    if share("A", "\u024f") < 0.7:
        return "other"
    words = re.findall(r"[^\W\d_]+", text.lower())
    return "en" if len(words) < 8 or sum(bool(_ENGLISH.fullmatch(w)) for w in words) / len(words) >= 1 / 12 else "other"


def languages_of(texts: Iterable[str]) -> tuple[str, ...]:
    """The languages (`written_in`) of at least one text in ten: what something learnt from these texts is known for."""
    found = [written_in(t) for t in texts]
    return tuple(sorted(x for x in set(found) if found.count(x) >= len(found) / 10))


def join_sentences(sentences: Iterable[str]) -> str:
    """Sentences → text: no space after Chinese full stops."""
    out = ""
    for s in sentences:
        tight = not out or out[-1] in "。！？」" or (out[-1] in "”…" and guess_language(s) == "zh")
        out += s if tight else " " + s
    return out


def _detect(row: dict) -> str:
    if "conversations" in row:
        return "sharegpt"
    if "messages" in row:
        return "messages"
    if "instruction" in row:
        return "alpaca"
    if "chosen" in row or "prompt" in row:
        return "prompt/chosen/rejected"
    if "text" in row or "premise" in row or "sentences" in row:
        return "ours"
    raise ValueError(f"keys {', '.join(map(repr, list(row)[:6]))} are of no known format; known: {FORMATS}")


def _text(value, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a text, not {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{what} is empty")
    return value.strip()


def _turns(kind: str, row: dict) -> tuple[str, str | None, str | None]:
    """(prompt, chosen or only answer, rejected answer) of a row of somebody else's format."""
    if kind == "alpaca":
        prompt = _text(row["instruction"], "instruction")
        if row.get("input"):
            prompt += "\n\n" + _text(row["input"], "input")
        output = row.get("output")
        chosen, rejected = row.get("chosen", output), row.get("rejected")
        if isinstance(output, list):  # LLaMA-Factory's preference form: [chosen, rejected]
            chosen, rejected = (*output, None, None)[:2]
        return prompt, _maybe(chosen, "output"), _maybe(rejected, "rejected")
    if kind == "prompt/chosen/rejected":
        chosen, rejected = row.get("chosen"), row.get("rejected")
        prompt = row.get("prompt")
        if prompt is None and isinstance(chosen, list):  # TRL's implicit prompt: the turns before the answer
            prompt, chosen = chosen[:-1], chosen[-1:]
            rejected = rejected[-1:] if isinstance(rejected, list) else rejected
        return _said(prompt, "prompt"), _maybe(chosen, "chosen"), _maybe(rejected, "rejected")
    turns = row["messages"] if kind == "messages" else row["conversations"]
    if not isinstance(turns, list) or not turns or not all(isinstance(t, dict) for t in turns):
        raise ValueError(f"{'messages' if kind == 'messages' else 'conversations'} must be a list of turns")
    said = [(t.get("role", t.get("from")), t.get("content", t.get("value"))) for t in turns]
    asked = [text for role, text in said if role in ("user", "human")]
    answered = [text for role, text in said if role in ("assistant", "gpt", "model")]
    if not asked:
        raise ValueError("no turn of the user")
    chosen, rejected = row.get("chosen", answered[-1] if answered else None), row.get("rejected")
    return _text(asked[0], "the user's turn"), _maybe(chosen, "answer"), _maybe(rejected, "rejected")


def _said(value, what: str) -> str:
    """A text, a turn, or a list of turns → its last text."""
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, dict):
        value = value.get("content", value.get("value"))
    return _text(value, what)


def _maybe(value, what: str) -> str | None:
    return None if value is None else _said(value, what)


def _lines(path: Path) -> Iterator[tuple[int, str | dict]]:
    """(line number, JSON text) of a .jsonl; (item number, item) of a file that is one JSON list."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no file at {path}", "check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})", "save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if text.lstrip().startswith("["):
        try:
            yield from enumerate(json.loads(text), 1)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}:{error.lineno}: not valid JSON: {error.msg}", "mend the file, or use JSONL"
            ) from None
        return
    yield from ((i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip())


def import_rows(path: Path, make, skip_bad_lines: bool = False, detect=None) -> Imported:
    """Read a user's file row by row. `make(kind, row)` builds a record or raises ValueError with what is wrong; `detect(row)`
    names the row's format (all of one file alike; by default one of FORMATS).
    """
    rows, bad, seen, found = [], [], set(), None
    for number, line in _lines(Path(path)):
        try:
            row = line if isinstance(line, dict) else json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not a JSON object")
            kind = (detect or _detect)(row)
            if found and kind != found:
                raise ValueError(f"this line is {kind}, the lines before are {found}")
            record = make(kind, row)
            if (id := getattr(record, "id", None)) in seen and id is not None:
                raise ValueError(f"id {id!r} occurs twice")
            seen.add(id)
            found = kind
            rows.append(record)
        except (ValueError, KeyError, TypeError) as error:
            reason = f"not valid JSON: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
            if not skip_bad_lines:
                raise UserError(f"{path}:{number}: {reason}", "mend the line, or pass --skip-bad-lines") from None
            bad.append(f"{path}:{number}: {reason}")
    if not rows:
        raise UserError(
            f"{path} holds no usable line" + (f" ({len(bad)} bad)" if bad else ""), f"known formats: {FORMATS}"
        )
    return Imported(found, rows, bad)
