"""Requests for greetings and labelled greetings: the shipped ones, a user's own, and no leakage between the sides."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from toolkit.errors import UserError
from toolkit.greeting.form import LENGTHS, plain
from toolkit.greeting.writing import guess_length, request_in
from toolkit.records import (
    Imported,
    Labelled,
    PreferencePair,
    Request,
    _detect,
    _text,
    _turns,
    guess_language,
    import_rows,
    text_id,
)

DATA = Path(__file__).resolve().parent.parent / "data" / "greetings"

FLAWS = {  # kind of flaw → what it is
    "generic": "could be sent to anybody",
    "dated": "a worn phrase carries it",
    "ignores": "leaves out a detail that the request names",
    "cold": "polite, without feeling",
    "tone": "the wrong register for its receiver",
    "logic": "something does not add up",
    "language": "a slip of grammar or of word choice",
    "taboo": "unlucky, pressing or culturally wrong words",
}
LANGUAGES = ("zh", "en")
_NAMED = ("occasion", "receiver", "relation", "tone")


def read_requests(path: Path, skip_bad_lines: bool = False) -> Imported:
    """Requests from any known format: `text` (or `request`), or the user's turn of each conversation.

    Language and length are guessed where they are not given (length "medium" unless the words say otherwise).

    Raises UserError with file:line for a line that is no request, a text said twice, or an unknown length or language.
    """
    seen: dict[str, str] = {}

    def make(kind: str, row: dict) -> Request:
        text = _text(row.get("text", row.get("request")), "text") if kind == "ours" else _turns(kind, row)[0]
        request = Request(
            id=str(row.get("id") or text_id(text, "r")),
            text=text,
            length=_one_of(row.get("length") or guess_length(text), LENGTHS, "length"),
            language=_one_of(row.get("language") or guess_language(text), LANGUAGES, "language"),
            **{k: _text(row[k], k) for k in _NAMED if row.get(k)},
        )
        if (first := seen.setdefault(plain(text), request.id)) != request.id:
            raise ValueError(f"the same request as {first!r}")
        return request

    return import_rows(
        Path(path), make, skip_bad_lines, detect=lambda row: "ours" if "request" in row else _detect(row)
    )


def read_labelled(path: Path, skip_bad_lines: bool = False, requests: Sequence[Request] = ()) -> Imported:
    """Labelled greetings: rows with good and bad and the request's text or id; or preference pairs of any known format.

    Args:
        requests: known ones, from which a row with request_id alone gets its text, and one with a known text its id.

    Raises UserError with file:line for a line without request, good or bad, with good and bad alike, an unknown flaw
    or an unknown request_id.
    """
    by_id, by_text = {r.id: r for r in requests}, {plain(r.text): r for r in requests}

    def make(kind: str, row: dict) -> Labelled:
        if kind == "labelled":
            text = row.get("request", row.get("text"))
            good, bad = _text(row["good"], "good"), _text(row["bad"], "bad")
        else:
            text, good, bad = _turns(kind, row)
            if good is None or bad is None:
                raise ValueError("no good and bad greeting (or chosen and rejected) in this line")
        id = str(row["request_id"]) if row.get("request_id") else ""
        if text is None:
            if not id:
                raise ValueError("neither `request` nor `request_id`")
            if id not in by_id:
                raise ValueError(f"no request has the id {id!r}")
            text = by_id[id].text
        text = _text(text, "request")
        known = by_id.get(id) or by_text.get(plain(text))
        if id in by_id and plain(by_id[id].text) != plain(text):
            raise ValueError(f"the request {id!r} reads otherwise in the file of requests")
        if plain(good) == plain(bad):
            raise ValueError("good and bad are the same text")
        language = row.get("language") or (known.language if known else guess_language(text))
        return Labelled(
            request_id=id or (known.id if known else text_id(text, "r")),
            request=text,
            good=good,
            bad=bad,
            flaw=_one_of(row["flaw"], FLAWS, "flaw") if row.get("flaw") else "",
            language=_one_of(language, LANGUAGES, "language"),
        )

    def detect(row: dict) -> str:
        if "good" in row or "bad" in row:
            if missing := [k for k in ("good", "bad") if k not in row]:
                raise ValueError(f"no `{missing[0]}` in this line")
            return "labelled"
        found = _detect(row)
        if found == "ours":
            raise ValueError("no `good` and `bad` in this line")
        return found

    return import_rows(Path(path), make, skip_bad_lines, detect=detect)


def _one_of(value, known: Iterable[str], what: str) -> str:
    if value not in known:
        raise ValueError(f"{what} {value!r} is not known; one of {', '.join(known)}")
    return value


def shipped(languages: Sequence[str]) -> tuple[list[Request], list[Labelled]]:
    """The shipped requests and labelled greetings in these languages, in the order of the files.

    Raises UserError when the files are missing, or hold nothing in these languages.
    """
    requests = read_requests(DATA / "requests.jsonl").rows
    labelled = read_labelled(DATA / "labelled.jsonl", requests=requests).rows
    requests = [r for r in requests if r.language in languages]
    if not requests:
        raise UserError(f"no shipped request is in {', '.join(languages) or 'no language'}", f"there are {LANGUAGES}")
    return requests, [x for x in labelled if x.language in languages]


def leaks(train: Iterable, others: Iterable) -> list[tuple[str, str, str]]:
    """Texts that stand on both sides: (what it is on the one side, on the other, the text), by `form.plain`.

    Args:
        train, others: Request, Labelled or PreferencePair records, mixed as you like. Requests are compared with
            requests and answers with answers, whatever their label.
    """
    found = []
    one, two = _texts(train), _texts(others)
    for kind in one:
        for text in one[kind].keys() & two[kind].keys():
            found.append((one[kind][text][0], two[kind][text][0], one[kind][text][1]))
    return sorted(found)


def check_split(train: Iterable, others: Iterable) -> None:
    """Raises UserError when a request or an answer stands on both sides (`leaks`): what is learnt would be tested on."""
    if found := leaks(train, others):
        a, b, text = found[0]
        raise UserError(
            f"{len(found)} text{'s stand' if len(found) > 1 else ' stands'} on two sides of the split, first {a} and {b}: {text[:60]!r}",
            "remove one of each from your files; a request's side follows from its id",
        )


def _texts(records: Iterable) -> dict[str, dict[str, tuple[str, str]]]:
    """kind of text → text as compared → (where it stands, the text)."""
    out: dict[str, dict[str, tuple[str, str]]] = {"request": {}, "answer": {}}
    for r in records:
        if isinstance(r, Request):
            texts = [("request", r.text)]
        elif isinstance(r, Labelled):
            texts = [("request", r.request), ("answer", r.good), ("answer", r.bad)]
        elif isinstance(r, PreferencePair):
            texts = [("request", request_in(r.prompt)), ("answer", r.chosen), ("answer", r.rejected)]
        else:
            raise TypeError(f"{type(r).__name__} holds no request")
        id = r.id if isinstance(r, Request) else r.request_id if isinstance(r, Labelled) else r.premise_id
        for kind, text in texts:
            out[kind].setdefault(plain(text), (f"{kind} of {id!r}", text))
    return out
