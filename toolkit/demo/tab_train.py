"""Train: a recipe, whether it fits this machine, start, watch, stop, go on."""

import gradio as gr

from toolkit.demo import parts, running, runview
from toolkit.demo.house import House, Tab
from toolkit.demo.running import Training
from toolkit.demo.words import Words
from toolkit.errors import UserError
from toolkit.recipe import load_recipe

EVERY = 2.0  # seconds between two looks at the run


def build(house: House, words: Words) -> Tab:
    """The tab's components and what they do."""
    w, training, known = words, Training(house), running.recipes()
    first = known[0]
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=2, min_width=300, elem_classes="ask"):
            recipe = gr.Dropdown(known, value=first, label=w("train.recipe"), elem_id="recipe")
            about = gr.HTML("", elem_id="about")
            check = gr.Button(w("train.check"), size="sm", elem_id="check")
            name = gr.Textbox(
                first,
                label=w("train.name"),
                info=w("train.name.info", runs=house.runs),
                max_lines=1,
                elem_id="run-name",
            )
            with gr.Accordion(w("more"), open=False):
                sets = gr.Textbox(
                    "", label=w("train.sets"), info=w("train.sets.info"), lines=3, elem_id="sets", elem_classes="mono"
                )
            with gr.Row(elem_classes="acts"):
                go = gr.Button(w("train.start"), variant="primary", elem_id="start")
                stop = gr.Button(w("stop"), variant="stop", elem_id="train-stop", elem_classes="halt")
        with gr.Column(scale=5, min_width=320, elem_classes="answer"):
            state = gr.HTML("", elem_classes="live", elem_id="train-state")
            shown = gr.HTML(parts.empty(w("train.empty"), w("train.empty.text")), elem_id="train-view")
            clock = gr.Timer(EVERY, active=False)

    def lines(text) -> list[str]:
        return [line.strip() for line in str(text or "").splitlines() if line.strip()]

    def choose(name):
        return (parts.about(load_recipe(name)), name, "") if name in known else (gr.skip(), gr.skip(), gr.skip())

    def fits(recipe, sets):
        yield parts.status(w, "checking")
        try:
            yield runview.fits(w, running.verdict(recipe, lines(sets)))
        except Exception as error:
            yield parts.mistake(w, error)

    def opened(recipe, name):
        return parts.about(load_recipe(recipe)) if recipe in known else gr.skip(), *look(name)

    def look(name):
        """The run of that name as it stands, and whether to look again."""
        try:
            folder = training.folder(name)
        except UserError:
            return gr.skip(), gr.Timer(active=False)
        at_work = training.at_work(folder)
        head = f"<h2>{parts.esc(folder.name)}</h2>"
        body = f"<div class='run'>{head}{runview.stages(w, folder, at_work)}{runview.curves(w, folder)}{runview.log(running.said(folder))}</div>"
        return body, gr.Timer(active=at_work)

    def start(recipe, name, sets):
        try:
            training.start(recipe, str(name or "").strip(), lines(sets))
        except (UserError, OSError) as error:
            return parts.mistake(w, error), gr.Timer(active=False)
        return parts.note(w("train.started"), w("train.started.hint"), "good"), gr.Timer(active=True)

    def halt(name):
        try:
            training.stop(training.folder(str(name or "").strip()))
        except UserError as error:
            return parts.mistake(w, error), *look(name)
        return parts.note(w("train.stopped"), w("train.stopped.hint"), "quiet"), *look(name)

    recipe.input(choose, recipe, [about, name, state], **parts.AT_ONCE)
    check.click(fits, [recipe, sets], state, show_progress="hidden", concurrency_limit=2)
    go.click(start, [recipe, name, sets], [state, clock], **parts.AT_ONCE)
    stop.click(halt, name, [state, shown, clock], **parts.AT_ONCE)
    clock.tick(look, name, [shown, clock], **parts.AT_ONCE)
    return Tab(shown=(opened, [recipe, name], [about, shown, clock]))
