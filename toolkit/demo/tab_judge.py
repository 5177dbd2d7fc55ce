"""Judge: paste a plot; five ratings, what speaks for and against it in its own words, and how far the judge can be trusted."""

import gradio as gr

from toolkit.demo import judging, parts
from toolkit.demo.desk import follow
from toolkit.demo.house import House, Tab
from toolkit.demo.verdict import verdict
from toolkit.demo.words import Words
from toolkit.errors import UserError

TEXTS = (".txt", ".md", ".text")
LARGEST = 2**20  # bytes of a text file


def build(house: House, words: Words) -> Tab:
    """The tab's components and what they do."""
    w, names = words, list(house.writers())
    with gr.Row(elem_classes="split even"):
        with gr.Column(scale=4, min_width=300, elem_classes="ask"):
            text = gr.Textbox(
                label=w("judge.text"),
                placeholder=w("judge.text.hint"),
                lines=14,
                max_lines=28,
                elem_id="judge-text",
                elem_classes="serif",
            )
            upload = gr.UploadButton(
                w("judge.upload"), size="sm", file_count="single", elem_id="judge-upload", elem_classes="link"
            )
            model = gr.Dropdown(names, value="embedded", label=w("judge.judge"), elem_id="judge-model")
            closely = gr.Radio(
                [(w("judge.quick"), False), (w("judge.closely"), True)],
                value=True,
                label=w("judge.how"),
                elem_classes="parts",
            )
            with gr.Row(elem_classes="acts"):
                go = gr.Button(w("judge.button"), variant="primary", elem_id="judge")
                stop = gr.Button(w("stop"), variant="stop", visible="hidden", elem_id="judge-stop", elem_classes="stop")
        with gr.Column(scale=5, min_width=320, elem_classes="answer"):
            state = gr.HTML("", elem_classes="live", elem_id="judge-state")
            shown = gr.HTML(parts.empty(w("judge.empty"), w("judge.empty.text")), elem_id="verdict")

    busy = [gr.update(interactive=False), gr.update(visible=True)]
    free = [gr.update(interactive=True), gr.update(visible="hidden")]

    async def judge(request: gr.Request, text, name, closely):
        """Stream the verdict into the page: status, verdict, buttons."""
        try:
            text = judging.check_text(text)
            job = house.desk.ask(judging.judge(text, house.model(name), bool(closely)), request.session_hash)
        except UserError as error:
            yield parts.mistake(w, error), gr.skip(), *free
            return
        async for at, found, ahead in follow(house.desk, job):
            if not job.ended:
                told = w(f"judge.step.{found.step}") if found else ""
                told += f" {found.done}/{found.of}" if found and found.done else ""
                yield (
                    parts.status(w, "judging" if at == "working" else at, ahead, more=told),
                    verdict(w, text, found) if found else gr.skip(),
                    *busy,
                )
        last = verdict(w, text, job.shown) if job.shown and job.shown.single else gr.skip()
        yield parts.status(w, job.state, error=job.error), last, *free

    def read(file):
        """A text file into the box; anything else is told, and changes nothing."""
        try:
            return parts.note(w("judge.read"), kind="quiet"), read_text(file)
        except UserError as error:
            return parts.mistake(w, error), gr.skip()

    def halt(request: gr.Request):
        house.desk.stop(request.session_hash)

    go.click(judge, [text, model, closely], [state, shown, go, stop], **parts.STREAMED)
    stop.click(halt, None, None, **parts.AT_ONCE)
    upload.upload(read, upload, [state, text], **parts.AT_ONCE)
    return Tab([model])


def read_text(file: str) -> str:
    """What a text file holds. Raises UserError for another kind, one that is too large, and one that is no UTF-8 text."""
    from pathlib import Path

    path = Path(file)
    if path.suffix.lower() not in TEXTS:
        raise UserError(f"{path.name} is no text file", f"give one of {', '.join(TEXTS)}")
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path.name} is larger than a megabyte", "give a part of it")
    try:
        return path.read_text(encoding="utf-8-sig").replace("\x00", "")
    except UnicodeDecodeError:
        raise UserError(f"{path.name} is not UTF-8 text", "save it as UTF-8") from None
