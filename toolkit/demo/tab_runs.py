"""Runs: what lies in the folder of runs, and each run from its stages to its report; a running one is followed."""

import gradio as gr

from toolkit.demo import parts, runview
from toolkit.demo.house import House, Tab
from toolkit.demo.running import Training
from toolkit.demo.words import Words
from toolkit.errors import UserError

EVERY = 3.0  # seconds between two looks at a run that is at work


def build(house: House, words: Words) -> Tab:
    """The tab's components and what they do."""
    w, training = words, Training(house)
    with gr.Row(elem_classes="chooser"):
        run = gr.Dropdown([], label=w("runs.run"), elem_id="run", min_width=260)
        again = gr.Button(w("runs.again"), size="sm", elem_id="runs-again", elem_classes="link")
    shown = gr.HTML("", elem_id="run-view")
    clock = gr.Timer(EVERY, active=False)

    def look(name):
        """The run as it stands now, and whether to look again by itself."""
        if not name:
            return parts.empty(w("runs.empty"), w("runs.empty.text")), gr.Timer(active=False)
        try:
            folder = house.run(name)
        except UserError as error:
            return parts.mistake(w, error), gr.Timer(active=False)
        at_work = training.at_work(folder)
        return runview.run(w, house, folder, at_work), gr.Timer(active=at_work)

    def listed(name):
        names = house.run_names()
        chosen = name if name in names else (names or [None])[0]
        return gr.update(choices=names, value=chosen), *look(chosen)

    run.input(look, run, [shown, clock], **parts.AT_ONCE)
    clock.tick(look, run, [shown, clock], **parts.AT_ONCE)
    again.click(listed, run, [run, shown, clock], **parts.AT_ONCE)
    return Tab(shown=(listed, run, [run, shown, clock]))
