"""Compare: a blind vote between two models, by mouse or by keys; votes are those of `fablesmith vote`."""

import random

import gradio as gr

from toolkit.demo import parts
from toolkit.demo.comparing import Pair, Progress, write_pair
from toolkit.demo.desk import follow
from toolkit.demo.drafting import SIZES, Wish
from toolkit.demo.house import House, Tab
from toolkit.demo.words import Words
from toolkit.errors import UserError

ANSWERS = {"first": "1", "tie": "0", "second": "2"}  # button → answer as `fablesmith vote` takes it


def build(house: House, words: Words) -> Tab:
    """The tab's components and what they do."""
    w, names = words, list(house.writers())
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=2, min_width=300, elem_classes="ask"):
            a = gr.Dropdown(names, value="embedded", label=w("compare.a"), elem_id="model-a")
            b = gr.Dropdown(
                names,
                value=names[0] if names[0] != "embedded" else (names[1:] or names)[0],
                label=w("compare.b"),
                elem_id="model-b",
            )
            own = gr.Textbox(
                label=w("compare.premise"), placeholder=w("compare.premise.hint"), lines=3, elem_id="compare-premise"
            )
            size = gr.Radio(
                [(w(f"write.size.{s}"), s) for s in SIZES], value="plot", label=w("write.size"), elem_classes="parts"
            )
            temperature = gr.Slider(0, 2, value=0.8, step=0.05, label=w("temperature"))
            with gr.Row(elem_classes="acts"):
                go = gr.Button(w("compare.button"), variant="primary", elem_id="compare")
                stop = gr.Button(
                    w("stop"), variant="stop", visible="hidden", elem_id="compare-stop", elem_classes="stop"
                )
        with gr.Column(scale=5, min_width=320, elem_classes="answer"):
            state = gr.HTML("", elem_classes="live", elem_id="compare-state")
            shown = gr.HTML(parts.empty(w("compare.empty"), w("compare.empty.text")), elem_id="pair")
            pair, last, again, yes = gr.State(None), gr.State([]), gr.State(False), gr.State(True)
            with gr.Row(visible=False, elem_classes="acts vote") as ballot:
                buttons = {k: gr.Button(w(f"compare.{k}"), elem_id=f"vote-{k}") for k in (*ANSWERS, "skip")}
            with gr.Row(elem_classes="acts small"):
                undo = gr.Button(w("compare.undo"), size="sm", elem_id="vote-undo", elem_classes="link", visible=False)
            with gr.Accordion(w("compare.count"), open=False, elem_id="count") as count:
                figures = gr.HTML("")

    busy = [gr.update(interactive=False), gr.update(visible=True)]
    free = [gr.update(interactive=True), gr.update(visible="hidden")]
    out = [state, shown, pair, ballot, go, stop]

    async def compare(request: gr.Request, again, a, b, premise, size, temperature):
        """Write the next pair: status, the two texts, the pair, the ballot, buttons."""
        if not again:
            yield [gr.skip()] * len(out)
            return
        try:
            premise = premise if (premise or "").strip() else random.choice(house.premises(w.language))
            wish = Wish.of(premise, "", "", size, 1, temperature, 0.05, None, "")
            job = house.desk.ask(write_pair(wish, (a, house.model(a)), (b, house.model(b))), request.session_hash)
        except UserError as error:
            yield parts.mistake(w, error), gr.skip(), None, gr.update(visible=False), *free
            return
        first = True
        async for at, found, ahead in follow(house.desk, job):
            if job.ended:
                break
            told = w("compare.writing", place=found.place, words=found.words) if isinstance(found, Progress) else ""
            text = parts.premise(w, wish.premise) if first else gr.skip()
            yield parts.status(w, at, ahead, more=told), text, None, gr.update(visible=False), *busy
            first = False
        if isinstance(job.shown, Pair):
            yield (
                parts.status(w, "done", more=w("compare.keys")),
                parts.pair(w, job.shown),
                job.shown,
                gr.update(visible=True),
                *free,
            )
        else:
            yield parts.status(w, job.state, error=job.error), gr.skip(), None, gr.update(visible=False), *free

    def voting(button: str):
        def vote(pair, last):
            """Put the vote on disk: status, the pair is over, what can be undone, the ballot goes, whether the next may come,
            and the way to undo it."""
            if not isinstance(pair, Pair):
                return parts.note(w("compare.nothing"), kind="quiet"), gr.skip(), gr.skip(), gr.skip(), False, gr.skip()
            if button == "skip":
                return "", None, gr.skip(), gr.update(visible=False), True, gr.skip()
            from toolkit.evaluate.vote import keep_vote

            try:
                kept = keep_vote(house.votes, ANSWERS[button], pair.premise, list(pair.shown), pair.seconds)
            except (UserError, OSError) as error:
                return parts.mistake(w, error), gr.skip(), gr.skip(), gr.skip(), False, gr.skip()
            said = parts.note(w("compare.kept", path=house.votes), kind="good")
            return said, None, [*last, kept], gr.update(visible=False), True, gr.update(visible=True)

        return vote

    def take_back(last):
        if not last:
            return parts.note(w("compare.no_undo"), kind="quiet"), gr.skip(), gr.skip()
        from toolkit.evaluate.vote import take_back

        take_back(*last[-1])
        return parts.note(w("compare.undone"), kind="quiet"), last[:-1], gr.update(visible=len(last) > 1)

    def counted():
        from toolkit.evaluate.vote import read_votes, tally

        try:
            return parts.count(w, tally(*read_votes(house.votes)), str(house.votes))
        except (UserError, OSError) as error:
            return parts.mistake(w, error)

    def halt(request: gr.Request):
        house.desk.stop(request.session_hash)

    given = [a, b, own, size, temperature]
    go.click(compare, [yes, *given], out, **parts.STREAMED)
    stop.click(halt, None, None, **parts.AT_ONCE)
    for name, button in buttons.items():
        voted = button.click(voting(name), [pair, last], [state, pair, last, ballot, again, undo], **parts.AT_ONCE)
        voted = voted.then(counted, None, figures, **parts.AT_ONCE)
        voted.then(compare, [again, *given], out, **parts.STREAMED)
    undo.click(take_back, last, [state, last, undo], **parts.AT_ONCE).then(counted, None, figures, **parts.AT_ONCE)
    count.expand(counted, None, figures, **parts.AT_ONCE)
    return Tab([a, b])
