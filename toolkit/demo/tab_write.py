"""Write: drafts from a premise, side by side; then work on one of them."""

import random

import gradio as gr

from toolkit.demo import drafting, parts
from toolkit.demo.desk import follow
from toolkit.demo.drafting import Wish
from toolkit.demo.history import forget, recall
from toolkit.demo.house import House, Tab
from toolkit.demo.words import Words
from toolkit.errors import UserError
from toolkit.narrative.writing import whole_sentences

CARET = "(...all) => { const t = document.querySelector('#story textarea'); all[1] = t ? `${t.selectionStart},${t.selectionEnd}` : '0,0'; return all; }"
SAVE = """(text) => { const a = document.createElement('a');
  a.href = URL.createObjectURL(new Blob([text], {type: 'text/markdown;charset=utf-8'}));
  a.download = 'story.md'; a.click(); setTimeout(() => URL.revokeObjectURL(a.href), 1000); }"""


def build(house: House, words: Words) -> Tab:
    """The tab's components and what they do."""
    w = words
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=2, min_width=300, elem_classes="ask"):
            premise = gr.Textbox(
                label=w("write.premise"),
                placeholder=w("write.premise.hint"),
                lines=4,
                max_lines=10,
                elem_id="premise",
                autofocus=True,
            )
            another = gr.Button(w("write.surprise"), size="sm", elem_id="another", elem_classes="link")
            with gr.Row(elem_classes="pair"):
                genre = gr.Dropdown(
                    [(w("write.any"), ""), *w.choices("genres")],
                    value="",
                    label=w("write.genre"),
                    allow_custom_value=True,
                    min_width=120,
                )
                tone = gr.Dropdown(
                    [(w("write.any"), ""), *w.choices("tones")],
                    value="",
                    label=w("write.tone"),
                    allow_custom_value=True,
                    min_width=120,
                )
            size = gr.Radio(
                [(w(f"write.size.{s}"), s) for s in drafting.SIZES],
                value="plot",
                label=w("write.size"),
                elem_classes="parts",
            )
            n = gr.Radio([1, 2, 3, 4], value=2, label=w("write.n"), elem_classes="parts", elem_id="write-n")
            model = gr.Dropdown(
                list(house.writers()), value=next(iter(house.writers())), label=w("model"), elem_id="model"
            )
            with gr.Accordion(w("more"), open=False):
                temperature = gr.Slider(0, 2, value=0.8, step=0.05, label=w("temperature"), info=w("temperature.info"))
                min_p = gr.Slider(0, 0.5, value=0.05, step=0.01, label=w("min_p"), info=w("min_p.info"))
                seed = gr.Number(
                    value=None, precision=0, minimum=0, label=w("seed"), info=w("seed.info"), elem_id="seed"
                )
            with gr.Row(elem_classes="acts"):
                go = gr.Button(w("write.button"), variant="primary", elem_id="write")
                stop = gr.Button(w("stop"), variant="stop", visible="hidden", elem_id="write-stop", elem_classes="stop")
        with gr.Column(scale=5, min_width=320, elem_classes="answer"):
            state = gr.HTML("", elem_classes="live", elem_id="write-state")
            shown = gr.HTML(
                parts.empty(w("write.empty"), w("write.empty.text")), elem_id="drafts", js_on_load=parts.SEND
            )
            drafts, versions = gr.State([]), gr.State([])
            with gr.Column(visible=False, elem_classes="desk") as editor:
                story = gr.Textbox(
                    label=w("write.story"),
                    info=w("write.story.info"),
                    lines=12,
                    max_lines=40,
                    elem_id="story",
                    elem_classes="serif",
                )
                caret = gr.Textbox("0,0", visible="hidden")
                file = gr.Textbox("", visible="hidden")
                with gr.Row(elem_classes="acts small"):
                    edits = {
                        how: gr.Button(w(f"write.{how}"), size="sm", elem_id=f"do-{how}")
                        for how in ("continue", *drafting.MOODS)
                    }
                    undo = gr.Button(w("write.undo"), size="sm", elem_id="undo")
                    edit_stop = gr.Button(
                        w("stop"), size="sm", variant="stop", visible="hidden", elem_id="edit-stop", elem_classes="stop"
                    )
                    save = gr.Button(w("write.export"), size="sm", elem_id="save")
                edit_state = gr.HTML("", elem_classes="live", elem_id="edit-state")
            with gr.Accordion(w("write.history"), open=False, elem_id="history") as past:
                entries = gr.HTML("", js_on_load=parts.SEND, elem_id="entries")
                clear = gr.Button(w("write.history.clear"), size="sm", elem_id="clear")

    fields = [premise, genre, tone, size, n, temperature, min_p, seed, model]
    busy = [gr.update(interactive=False), gr.update(visible=True)]
    free = [gr.update(interactive=True), gr.update(visible="hidden")]

    async def write(request: gr.Request, *given):
        """Stream drafts into the page: status, cards, drafts, buttons."""
        try:
            wish = Wish.of(*given[:-1], house.model(given[-1]))
            job = house.desk.ask(drafting.write_drafts(wish, house.history), request.session_hash)
        except UserError as error:
            yield parts.mistake(w, error), gr.skip(), gr.skip(), *free
            return
        texts, about = [""] * wish.n, w("status.seed", seed=wish.seed)
        async for at, found, ahead in follow(house.desk, job):
            texts = found or texts
            if not job.ended:
                yield parts.status(w, at, ahead, more=about), parts.drafts(w, texts, False), gr.skip(), *busy
        kept = [whole_sentences(t) if job.state == "done" else t.strip() for t in texts]
        cards = (
            parts.drafts(w, kept, True, w("write.take"))
            if any(kept)
            else parts.empty(w("write.empty"), w("write.empty.text"))
        )
        yield parts.status(w, job.state, error=job.error, more=about), cards, kept, *free

    async def edit(request, how, text, at, past, *given):
        """Stream a change of the text into the editor: text, versions, status, buttons."""
        try:
            if not (text or "").strip():
                raise UserError(w("write.no_story"), w("write.no_story.hint"))
            if len(text) > drafting.LONGEST_STORY:
                raise UserError(
                    w("write.story_long", n=len(text), most=drafting.LONGEST_STORY), w("write.story_long.hint")
                )
            wish = Wish.of(given[0] or "-", *given[1:-1], house.model(given[-1]))
            marked = tuple(int(x) for x in str(at).split(",")[:2]) if str(at).replace(",", "").isdigit() else (0, 0)
            job = house.desk.ask(drafting.change(text, how, (*marked, *marked)[:2], wish), request.session_hash)
        except UserError as error:
            yield gr.skip(), gr.skip(), parts.mistake(w, error), *free
            return
        async for at, found, ahead in follow(house.desk, job):
            if not job.ended:
                yield found or gr.skip(), gr.skip(), parts.status(w, at, ahead), *busy
        yield job.shown or gr.skip(), [*past, text][-50:], parts.status(w, job.state, error=job.error), *free

    def editing(how: str):
        async def one(request: gr.Request, *given):
            async for frame in edit(request, how, *given):
                yield frame

        return one

    def take(texts, event: gr.EventData):
        at = getattr(event, "n", None)
        if not (isinstance(at, int) and 0 <= at < len(texts)):
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        return texts[at], [], gr.update(visible=True), ""

    def back(past):
        if not past:
            return gr.skip(), gr.skip(), parts.note(w("write.no_undo"), kind="quiet")
        return past[-1], past[:-1], ""

    def another_premise():
        return random.choice(house.premises(w.language))

    def halt(request: gr.Request):
        house.desk.stop(request.session_hash)

    def list_past():
        return parts.history(w, recall(house.history))

    def open_past(event: gr.EventData):
        """Put an entry of the history back: premise, genre, tone, cards, drafts, status."""
        found = next((r for r in recall(house.history) if r["id"] == getattr(event, "n", None)), None)
        if found is None:
            return [gr.skip()] * 6
        wish = found["wish"]
        made = [str(t) for t in found["texts"]][:4]
        about = parts.note(
            f"{found['made'].replace('T', ' ')} · {wish['model']} · {w('status.seed', seed=wish['seed'])}", kind="quiet"
        )
        return wish["premise"], wish["genre"], wish["tone"], parts.drafts(w, made, True, w("write.take")), made, about

    def clear_past():
        forget(house.history)
        return list_past()

    def as_markdown(premise, text, model):
        return drafting.markdown(premise or "", text or "", f"Fablesmith · {model}")

    go.click(write, fields, [state, shown, drafts, go, stop], **parts.STREAMED).then(
        list_past, None, entries, **parts.AT_ONCE
    )
    for button in (stop, edit_stop):
        button.click(halt, None, None, **parts.AT_ONCE)
    for how, button in edits.items():
        button.click(
            editing(how),
            [story, caret, versions, *fields],
            [story, versions, edit_state, button, edit_stop],
            js=CARET,
            **parts.STREAMED,
        )
    another.click(another_premise, None, premise, **parts.AT_ONCE)
    shown.click(take, drafts, [story, versions, editor, edit_state], **parts.AT_ONCE)
    undo.click(back, versions, [story, versions, edit_state], **parts.AT_ONCE)
    past.expand(list_past, None, entries, **parts.AT_ONCE)
    entries.click(open_past, None, [premise, genre, tone, shown, drafts, state], **parts.AT_ONCE)
    clear.click(clear_past, None, entries, **parts.AT_ONCE)
    save.click(as_markdown, [premise, story, model], file, **parts.AT_ONCE).then(None, file, None, js=SAVE)
    return Tab([model])
