"""Pieces of the page as HTML text. Whatever a person or a model wrote goes through `esc`."""

import html

from toolkit.demo.words import Words
from toolkit.records import guess_language

# buttons inside a piece: a click sends the button's data-take as `n`
SEND = """element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-take]');
  if (button) { const n = button.dataset.take; trigger('click', {n: /^[0-9]+$/.test(n) ? Number(n) : n}); }
});"""

# For what answers within a blink. gradio's queue closes a page's stream when its last event ends, and a click that comes
# just then waits for ever on the closed one: so nothing quick goes through the queue, least of all after a long answer.
AT_ONCE = {"show_progress": "hidden", "queue": False}
# For what streams from the desk, which has a queue of its own.
STREAMED = {"show_progress": "hidden", "concurrency_limit": None}


def esc(text: object) -> str:
    """As text in HTML, also inside an attribute. Braces and dollars too: the page's own templates must not read them."""
    return html.escape(str(text), quote=True).translate(
        {ord("{"): "&#123;", ord("}"): "&#125;", ord("$"): "&#36;", ord("`"): "&#96;"}
    )


def note(message: str, hint: str = "", kind: str = "error") -> str:
    """A message with a hint: kind is error, quiet or good."""
    role = "alert" if kind == "error" else "note"
    more = f"<p class='hint'>{esc(hint)}</p>" if hint else ""
    return f"<div class='note {kind}' role='{role}'><p>{esc(message)}</p>{more}</div>"


def mistake(words: Words, error: BaseException) -> str:
    return note(*words.mistake(error))


def status(words: Words, state: str, ahead: int = 0, error: BaseException | None = None, more: str = "") -> str:
    """Where a job stands, in one line."""
    if state == "failed" and error is not None:
        return mistake(words, error)
    if state == "waiting":
        text = words("status.waiting", n=ahead) if ahead else words("status.next")
    else:
        text = words(f"status.{state}")
    busy = "<span class='pulse' aria-hidden='true'></span>" if state in ("waiting", "opening", "working") else ""
    return f"<p class='status'>{busy}{esc(text)}{' · ' + esc(more) if more else ''}</p>"


def empty(title: str, text: str) -> str:
    """What stands where nothing is yet."""
    return f"<div class='empty'><p class='empty-title'>{esc(title)}</p><p>{esc(text)}</p></div>"


def prose(text: str, growing: bool = False) -> str:
    """A story in paragraphs; with a caret at its end while it grows."""
    language = guess_language(text)
    parts = [p.strip() for p in text.split("\n") if p.strip()] or [""]
    caret = "<span class='caret' aria-hidden='true'></span>" if growing else ""
    return f"<div class='story' lang='{language}'><p>" + "</p><p>".join(map(esc, parts)) + f"{caret}</p></div>"


def length(words: Words, text: str) -> str:
    """How long a text is: words, or characters of a Chinese one."""
    if guess_language(text) == "zh":
        return words("length.characters", n=sum(not c.isspace() for c in text))
    return words("length.words", n=len(text.split()))


def drafts(words: Words, texts: list[str], done: bool, action: str = "", notes: list[str] | None = None) -> str:
    """Texts side by side; when done each with a button that copies it, and one that says `action` and sends its number."""
    cards = []
    for i, text in enumerate(texts):
        name = words("draft", n=i + 1)
        buttons = (
            f"<button type='button' class='copy' data-copy>{esc(words('copy'))}</button>"
            if done and text.strip()
            else ""
        )
        if buttons and action:
            buttons = f"<button type='button' class='take' data-take='{i}'>{esc(action)}</button>{buttons}"
        said = f"<p class='form'>{esc(notes[i])}</p>" if notes and notes[i] else ""
        cards.append(
            f"<article class='card' aria-label='{esc(name)}'><header><h3>{esc(name)}</h3>"
            f"<span>{esc(length(words, text)) if text.strip() else ''}</span></header>{prose(text, not done)}{said}<div class='below'>{buttons}</div></article>"
        )
    return f"<div class='cards n{len(texts)}'>{''.join(cards)}</div>"


def suggestions(texts: list[str]) -> str:
    """Buttons that each put one of the texts into a field."""
    rows = "".join(f"<button type='button' data-take='{i}'>{esc(text)}</button>" for i, text in enumerate(texts))
    return f"<div class='suggestions'>{rows}</div>"


def history(words: Words, entries: list[dict]) -> str:
    """Entries of the history, each with a button that opens it."""
    if not entries:
        return f"<p class='quiet'>{esc(words('write.history.empty'))}</p>"
    rows = []
    for entry in entries:
        first = " ".join(str(next((t for t in entry["texts"] if t.strip()), "")).split())[:110]
        rows.append(
            f"<li><button type='button' class='take' data-take='{esc(entry['id'])}'><strong>{esc(entry['wish']['premise'][:90])}</strong>"
            f"<span>{esc(entry['made'].replace('T', ' ')[:16])} · {esc(first)}</span></button></li>"
        )
    return f"<ul class='history'>{''.join(rows)}</ul>"


def premise(words: Words, text: str) -> str:
    """The premise that two texts answer."""
    return f"<p class='premise'><span>{esc(words('write.premise'))}</span> {esc(text)}</p>"


def pair(words: Words, found) -> str:
    """A blind pair (comparing.Pair): premise and two texts, told apart by their numbers only."""
    cards = [
        f"<article class='card' aria-label='{esc(words('compare.text', n=n))}'><header><h3>{n}</h3></header>{prose(plot.text)}</article>"
        for n, plot in enumerate(found.shown, 1)
    ]
    return f"{premise(words, found.premise)}<div class='cards n2'>{''.join(cards)}</div>"


def count(words: Words, figures: dict, path: str) -> str:
    """The votes so far (evaluate.vote.tally): each origin's share with its interval, as a bar and in figures."""
    if not figures["votes"] + figures["ties"]:
        return f"<p class='quiet'>{esc(words('compare.no_votes'))}</p>"
    rows = []
    for origin, row in sorted(figures["preferred"].items(), key=lambda item: -item[1]["share"][0]):
        value, low, high = (100 * v for v in row["share"])
        said = words("compare.share", share=value, low=low, high=high, of=row["of"])
        rows.append(
            f"<div class='share'><strong>{esc(origin)}</strong><span class='bar' aria-hidden='true'><i style='left:{low:.1f}%;width:{high - low:.1f}%'></i>"
            f"<b style='left:{value:.1f}%'></b></span><span>{esc(said)}</span></div>"
        )
    intervals = [row["share"] for row in figures["preferred"].values()]
    if len(intervals) == 2 and intervals[0][1] <= 0.5 <= intervals[0][2]:
        rows.append(f"<p class='quiet'>{esc(words('compare.unclear'))}</p>")
    value, low, high = figures["first_preferred"]
    if value is not None and (low > 0.5 or high < 0.5):
        rows.append(f"<p class='quiet'>{esc(words('compare.habit', share=100 * value))}</p>")
    uses = esc(words("compare.uses", path=path)).replace("\n", "<br>")
    return f"<div class='shares'>{''.join(rows)}</div><p class='uses'>{uses}</p>"


def about(recipe) -> str:
    """What a recipe does and needs."""
    return f"<p class='about'>{esc(recipe.about)}<br><span class='quiet'>{esc(recipe.memory)}</span></p>"
