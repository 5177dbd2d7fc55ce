"""Greetings in Chinese and English: what for, several at once, and what is wrong with a text's form, if anything."""

import gradio as gr

from toolkit.demo import parts
from toolkit.demo.desk import follow
from toolkit.demo.drafting import new_seed, writer
from toolkit.demo.house import House, Tab
from toolkit.demo.words import Words
from toolkit.engines.base import Sampling
from toolkit.errors import UserError


def build(house: House, words: Words) -> Tab:
    """The tab's components and what they do."""
    w = words
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=2, min_width=300, elem_classes="ask"):
            request = gr.Textbox(
                label=w("greet.request"),
                placeholder=w("greet.request.hint"),
                lines=4,
                max_lines=8,
                elem_id="greet-request",
            )
            examples = gr.HTML(
                parts.suggestions(w.choices("greetings")), js_on_load=parts.SEND, elem_id="greet-examples"
            )
            n = gr.Radio([1, 2, 3, 4], value=3, label=w("greet.n"), elem_classes="parts")
            model = gr.Dropdown(list(house.writers()), value=next(iter(house.writers())), label=w("model"))
            temperature = gr.Slider(0, 2, value=0.8, step=0.05, label=w("temperature"))
            with gr.Row(elem_classes="acts"):
                go = gr.Button(w("greet.button"), variant="primary", elem_id="greet")
                stop = gr.Button(w("stop"), variant="stop", visible="hidden", elem_id="greet-stop", elem_classes="stop")
        with gr.Column(scale=5, min_width=320, elem_classes="answer"):
            state = gr.HTML("", elem_classes="live", elem_id="greet-state")
            shown = gr.HTML(parts.empty(w("greet.empty"), w("greet.empty.text")), elem_id="greetings")

    busy = [gr.update(interactive=False), gr.update(visible=True)]
    free = [gr.update(interactive=True), gr.update(visible="hidden")]

    async def greet(session: gr.Request, request, n, name, temperature):
        """Stream greetings into the page: status, cards, buttons."""
        from toolkit.greeting.form import broken, clean
        from toolkit.greeting.writing import as_request

        try:
            asked, spec = as_request(str(request or "")), house.model(name)
            n, temperature = min(max(int(n or 1), 1), 4), min(max(float(temperature or 0), 0.0), 2.0)
            job = house.desk.ask(write_greetings(asked, spec, n, temperature), session.session_hash)
        except UserError as error:
            yield parts.mistake(w, error), gr.skip(), *free
            return
        texts = [""] * n
        async for at, found, ahead in follow(house.desk, job):
            texts = found or texts
            if not job.ended:
                yield parts.status(w, at, ahead), parts.drafts(w, texts, False), *busy
        texts = [clean(t, asked) for t in texts]
        notes = [
            w("greet.form", what=", ".join(w.form(b) for b in broken(t, asked))) if broken(t, asked) else ""
            for t in texts
        ]
        if spec == "embedded" and asked.language == "zh":
            notes = [w("greet.chinese"), *notes[1:]]
        cards = parts.drafts(w, texts, True, notes=notes) if any(texts) else gr.skip()
        yield parts.status(w, job.state, error=job.error), cards, *free

    def example(event: gr.EventData):
        at, known = getattr(event, "n", None), w.choices("greetings")
        return known[at] if isinstance(at, int) and 0 <= at < len(known) else gr.skip()

    def halt(session: gr.Request):
        house.desk.stop(session.session_hash)

    go.click(greet, [request, n, model, temperature], [state, shown, go, stop], **parts.STREAMED)
    stop.click(halt, None, None, **parts.AT_ONCE)
    examples.click(example, None, request, **parts.AT_ONCE)
    return Tab([model])


def write_greetings(asked, spec: str, n: int, temperature: float):
    """Work that shows the list of greetings as it grows, as `fablesmith write --as greeting` asks for them."""

    def work(models, job):
        from toolkit.greeting.writing import answer_tokens, greet_prompt

        texts = [""] * n
        sampling = Sampling(temperature, min_p=0.05, max_tokens=answer_tokens(asked), seed=new_seed())
        pieces = writer(models, spec).stream([greet_prompt(asked)], n, sampling)
        try:
            for i, piece in pieces:
                texts[i] += piece if texts[i] else piece.lstrip()
                yield list(texts)
        finally:
            pieces.close()

    return work
