"""A model's chat template, taken apart: what stands before, between and after the texts of a chat.

Ollama does not read the Jinja template of a GGUF: it recognises a few and wants a Go template for the others. Instead of a list
of families, the template itself is asked: chats with marked texts are rendered, the pieces between the marks are what any
program needs, and other chats must then come out alike, letter by letter. What cannot be said in such pieces is said so.
"""

import ctypes
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toolkit.engines.base import Messages
from toolkit.errors import UserError


@dataclass(frozen=True)
class ChatForm:
    """The pieces. A chat is: start · user · text · (answer · text · turn · user · text)* · ask.

    Args:
        start: before the first user's piece where no system text is given (a default one stands in it).
        system: around a given system text: instead of `start`, or, with `system_last`, before the last user's text;
            None where the template takes none.
        user: before a user's text; answer: after it, before an answer that is given; ask: after it, before the one to come.
        turn: after an answer.
    """

    start: str
    system: tuple[str, str] | None
    user: str
    answer: str
    ask: str
    turn: str
    system_last: bool = False

    def text(self, messages: Messages) -> str:
        """The chat as this form writes it. `messages`: an optional system text, then user and assistant in turn, ending with a user."""
        system = next((m["content"] for m in messages if m["role"] == "system"), "")
        turns = [m for m in messages if m["role"] != "system"]
        first = bool(system) and self.system is not None and not self.system_last
        out = system.join(self.system) if first else self.start
        for i, m in enumerate(turns):
            if m["role"] == "user":
                last = i == len(turns) - 1
                late = system + self.system[1] if last and system and self.system_last else ""
                out += self.user + late + m["content"] + (self.ask if last else self.answer)
            else:
                out += m["content"] + self.turn
        return out

    @property
    def marks(self) -> str:
        """What stands around every turn, in one text."""
        return self.answer + self.ask + self.turn + self.user


S, U, X, V = "sYstem0text", "uSer1text", "aNswer2text", "uSer3text"  # found in no template
_USER, _ANSWER, _AGAIN = ({"role": r, "content": c} for r, c in (("user", U), ("assistant", X), ("user", V)))
_SYSTEM = {"role": "system", "content": S}
_CHECKS: tuple[Messages, ...] = tuple(
    [*system, *turns]
    for system in ([], [{"role": "system", "content": "Be brief.\nBe kind."}])
    for turns in (
        [{"role": "user", "content": "Hello."}],
        [
            {"role": "user", "content": 'Naïve café — "quotes", {{ 数字 }} and 🦊.'},
            {"role": "assistant", "content": "B"},
            {"role": "user", "content": "C\nD"},
            {"role": "assistant", "content": "E # f"},
            {"role": "user", "content": "G"},
        ],
    )
)


def chat_form(render: Callable[[Messages], str]) -> ChatForm | None:
    """The form of the template behind `render`; None when pieces cannot say it.

    Args:
        render: messages → text with the assistant's turn opened, without a token that the program puts in front by itself;
            raises for messages it does not take.
    """
    try:
        start, ask = _between(render([_USER]), U)
        start2, answer, turn, ask2 = _between(render([_USER, _ANSWER, _AGAIN]), U, X, V)
    except (ValueError, UserError):
        return None
    if (start, ask) != (start2, ask2):
        return None
    try:
        before, between, _ = _between(render([_SYSTEM, _USER]), S, U)
        system = (before, between)
    except Exception:  # a template refuses in its own way
        system = None
    last = system is not None and before == start  # it stands within the user's turn: the first or the last?
    ends = [start, turn, *([] if system is None or last else [between])]
    user = _common_end(ends)
    cut = len(user)
    whole = lambda s: s[: len(s) - cut]  # noqa: E731
    forms = []
    if system is None or last:
        forms.append(ChatForm(whole(start), system and (whole(start), between), user, answer, ask, whole(turn), last))
    if system is not None:
        user = _common_end([start, turn, between])
        cut = len(user)
        forms.append(ChatForm(whole(start), (before, whole(between)), user, answer, ask, whole(turn)))
    return next((form for form in forms if _reproduces(form, render)), None)


def _between(text: str, *marks: str) -> tuple[str, ...]:
    """The pieces before, between and after the marks. Raises ValueError unless each stands there once, in this order."""
    pieces = []
    for mark in marks:
        piece, found, text = text.partition(mark)
        if not found or mark in text:
            raise ValueError(f"{mark} does not stand once")
        pieces.append(piece)
    return (*pieces, text)


def _common_end(texts: list[str]) -> str:
    """What all end with, from the mark that names the user on; nothing when it is white space only: no header, an accident."""
    end = os.path.commonprefix([t[::-1] for t in texts])[::-1]  # noqa: RUF071 of letters, on purpose
    end = end[max(0, end.rfind("<", 0, max(0, end.rfind("user")))) :]
    return end if end.strip() else ""


def _reproduces(form: ChatForm, render: Callable[[Messages], str]) -> bool:
    chats = [c for c in _CHECKS if form.system or c[0]["role"] != "system"]
    try:
        return all(form.text(chat) == render(chat) for chat in chats)
    except (ValueError, UserError):
        return False


# ---- Ollama's template


def go_template(form: ChatForm) -> str:
    """The form as a Go template over .System and .Messages, as Ollama fills them in (its template/template.go)."""
    start = _literal(form.start)
    if form.system and not form.system_last:
        before, after = form.system
        start = "{{ if .System }}" + _literal(before) + "{{ .System }}" + _literal(after) + (
            "{{ else }}" + start if start else ""
        ) + "{{ end }}"  # fmt: skip
    late = (
        "{{ if and $last $.System }}{{ $.System }}" + _literal(form.system[1]) + "{{ end }}" if form.system_last else ""
    )
    return (
        start
        + "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        + '{{ if eq .Role "user" }}' + _literal(form.user) + late + "{{ .Content }}"
        + "{{ if $last }}" + _literal(form.ask) + "{{ else }}" + _literal(form.answer) + "{{ end }}"
        + '{{ else if eq .Role "assistant" }}{{ .Content }}{{ if not $last }}' + _literal(form.turn) + "{{ end }}"
        + "{{ end }}{{ end }}"
    )  # fmt: skip


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')


# ---- what a GGUF says of itself


@dataclass(frozen=True)
class GgufChat:
    """What a program that runs the file has to know. `form` is None where the template cannot be taken apart."""

    form: ChatForm | None
    template: str
    stop: tuple[str, ...]
    context: int
    architecture: str
    dated: bool  # the template writes today's date


def read_chat(path: Path) -> GgufChat:
    """Read vocabulary and metadata, no weights.

    Raises UserError when the file is no GGUF or has no chat template.
    """
    import llama_cpp as C
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    from toolkit.engines.llama import check_gguf, silence

    check_gguf(path)
    silence(C)
    C.llama_backend_init()
    params = C.llama_model_default_params()
    params.vocab_only = True
    model = C.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise UserError(f"llama.cpp cannot read {path}", "the file is damaged; export it again")
    try:
        vocab = C.llama_model_get_vocab(model)

        def metadata(key: str) -> str:
            room = ctypes.create_string_buffer(1 << 18)
            return room.value.decode() if C.llama_model_meta_val_str(model, key.encode(), room, len(room)) >= 0 else ""

        token = lambda t: C.llama_vocab_get_text(vocab, t).decode() if t >= 0 else ""  # noqa: E731
        template = metadata("tokenizer.chat_template")
        if not template:
            raise UserError(f"{path} has no chat template", "use an instruct model's GGUF")
        bos, eos = token(C.llama_vocab_bos(vocab)), token(C.llama_vocab_eos(vocab))
        formatter = Jinja2ChatFormatter(template=template, eos_token=eos, bos_token=bos)
        # what llama.cpp puts in front by itself must not stand there twice
        own = bos if C.llama_vocab_get_add_bos(vocab) else ""
        form = chat_form(lambda messages: formatter(messages=messages, enable_thinking=False).prompt.removeprefix(own))
        controls = [token(t) for t in range(C.llama_vocab_n_tokens(vocab)) if C.llama_vocab_is_control(vocab, t)]
        stop = [c for c in controls if form and c and c in form.marks] + [eos] * (eos != "")
        architecture = metadata("general.architecture")
        return GgufChat(
            form,
            template,
            tuple(dict.fromkeys(stop)),
            int(metadata(f"{architecture}.context_length") or 4096),
            architecture,
            bool(re.search(r"strftime_now", template)),
        )
    finally:
        C.llama_model_free(model)
