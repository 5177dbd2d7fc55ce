"""The before/after card of a model's safety: sentences, a picture, a page. Figures come from safety_report."""

import html
from pathlib import Path

from toolkit.evaluate.charts import ALIGNED, BASE, INK, QUIET, _figure, _plain, _svg

MEASURES = {  # set, what of it → label; higher is worse, but for the task's loss all are shares
    ("harmful", "compliance"): "harmful requests complied with (detector)",
    ("harmful", "judged"): "harmful requests complied with (critic)",
    ("lookalikes", "refusal"): "safe look-alikes refused",
    ("dark", "refusal"): "dark premises refused",
}
READS = 0.75  # the least lower end of the critic's AUROC on known answers (not published; chosen: a reader has 1)
NAMES = {"harmful": "harmful requests", "lookalikes": "safe look-alikes", "dark": "dark premises"}


def lines(figures: dict) -> list[str]:
    """What was found, in sentences that claim no more than the intervals allow."""
    model, before, found = figures["model"], figures["before"], []
    for (kind, what), label in MEASURES.items():
        now = model.get(kind, {}).get(what)
        if not now or now[0] is None:
            continue
        text = f"{label}: {_share(now)} of {model[kind]['asked'] - model[kind]['unanswered']}"
        if before and (was := before.get(kind, {}).get(what)):
            text += f", before {_share(was)}"
            moved = figures["change"]["judged" if what == "judged" else kind]
            text += f"; {_moved(moved, 'percentage points', 100)}"
        found.append(text + ".")
    for kind, name in NAMES.items():
        if n := model.get(kind, {}).get("unanswered"):
            found.append(f"{n} of {model[kind]['asked']} {name} could not be put to the model and count in no share.")
    if failed := sum((figures["critic"] or {}).get("failed", {}).values()):
        found.append(f"The critic had no score for {failed} answers, which count as complying.")
    if known := (figures["critic"] or {}).get("known"):
        found.append(_critic(known, figures["critic"]["requests"]))
    loss = model["task"]["loss"]
    if loss[0] is not None:
        text = f"loss on the task: {loss[0]:.3f} nats a token ({model['task']['texts']} held-out texts)"
        if before and before["task"]["loss"][0] is not None:
            text += f", before {before['task']['loss'][0]:.3f}; {_moved(figures['change']['task'], 'nats')}"
        found.append(text + ".")
    else:
        found.append(
            "The loss on the task was not measured: this engine tells no log-probabilities, or no text fitted."
        )
    if drift := figures["drift"]:
        found.append(
            "Drift from the model before was not measured: no log-probabilities, or another vocabulary."
            if drift[0] is None
            else f"drift from the model before: {drift[0]:.3f} nats a token{_span(drift, 1, '.3f')}."
        )
    if rate := figures["win_rate"]:
        found.append(rate.get("why") or f"the judge prefers it to the model before on the task in {_share(rate['rate'])} of {rate['verdicts']} verdicts.")  # fmt: skip
    return [text[0].upper() + text[1:] for text in found]


def _critic(known: list, requests: int) -> str:
    """How far the critic's share goes: whoever reads tells a bare promise to comply from a plain refusal, with an AUROC of 1."""
    told = f"the critic tells a bare promise to comply from a plain refusal with an AUROC of {known[0]:.2f}{_span(known, 1, '.2f')} on {requests} of the requests"
    return told + ("." if (known[1] or 0) >= READS else ": it cannot be relied on, look at the detector's share.")


def _share(value: list) -> str:
    return f"{100 * value[0]:.0f} %{_span(value, 100, '.0f')}"


def _span(value: list, scale: float, form: str) -> str:
    return "" if value[1] is None else f" ({scale * value[1]:{form}}–{scale * value[2]:{form}})"


def _moved(value: list, unit: str, scale: float = 1) -> str:
    if value[0] is None:
        return "no pair to compare"
    if not any(value):  # drawing again from nothing but zeros says nothing of chance
        return "each as before"
    form = "+.0f" if scale == 100 else "+.3f"
    text = f"change {scale * value[0]:{form}} {unit}"
    if value[1] is None:
        return text
    text += f" ({scale * value[1]:{form}} to {scale * value[2]:{form}})"
    return text if value[1] > 0 or value[2] < 0 else text + ", within chance"


def table(figures: dict) -> str:
    """For the terminal."""
    head = figures["model"]["name"] + (f" (before: {figures['before']['name']})" if figures["before"] else "")
    return "\n".join([head, *(f"  {line}" for line in figures["lines"])])


def picture(figures: dict) -> str:
    """SVG: each share before (grey) and after (orange) with its interval; below it, where there is one, β over training."""
    trace = [r for r in figures["trace"] if r.get("safety/beta") is not None]
    shown = [(label, kind, what) for (kind, what), label in MEASURES.items() if _value(figures["model"], kind, what)]
    figure, axes = _figure(6.4, 0.9 + 0.5 * max(len(shown), 1) + (2.4 if trace else 0))
    if trace:
        axes.remove()
        grid = figure.add_gridspec(2, 1, height_ratios=[0.5 * max(len(shown), 1), 2.0], hspace=0.55)
        axes, below = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
        _betas(below, trace)
    for y, (_, kind, what) in enumerate(shown):
        for who, shift, colour in (("before", 0.14, BASE), ("model", -0.14, ALIGNED)):
            if value := _value(figures[who] or {}, kind, what):
                axes.plot([100 * value[1], 100 * value[2]], [y - shift] * 2, color=colour, linewidth=2, alpha=0.6)
                axes.plot(100 * value[0], y - shift, "o", color=colour, markersize=6)
    for who, colour in (("before", BASE), ("model", ALIGNED)):
        if figures[who]:
            axes.plot([], [], "o", color=colour, label=_plain(figures[who]["name"]))
    axes.set_yticks(range(len(shown)), [label for label, _, _ in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(-3, 103)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=QUIET, linewidth=0.5)
    axes.set_xlabel("% of answers; less is better")
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return _svg(figure, "Safety before and after: shares with 95 % intervals")


def _value(model: dict, kind: str, what: str) -> list | None:
    value = model.get(kind, {}).get(what)
    return value if value and value[0] is not None else None


def _betas(axes, trace: list[dict]) -> None:
    """β and risk of each step (means over the batch), and on the right the KL divergence they hold."""
    steps = [r["step"] for r in trace]
    axes.patch.set_alpha(0)
    axes.step(steps, [r["safety/beta"] for r in trace], where="mid", color=ALIGNED, linewidth=1.6, label="β")
    if all(r.get("safety/risk") is not None for r in trace):
        axes.plot(steps, [r["safety/risk"] for r in trace], ".", color=INK, markersize=4, label="risk")
    axes.set_ylim(-0.04, 1.04)
    axes.set_xlabel("step of training")
    if all(r.get("safety/kl") is not None for r in trace):
        right = axes.twinx()
        right.plot(steps, [r["safety/kl"] for r in trace], color="#3b7ea1", linewidth=1.2, linestyle=":")
        right.set_ylabel("KL, nats a token (dotted)", color="#3b7ea1")
        right.set_ylim(bottom=0)
        right.spines["right"].set_visible(True)
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))


def page(figures: dict, examples: dict[str, list[dict]]) -> str:
    """HTML, self-contained. Answers to harmful requests are not shown: they stay in answers.jsonl."""
    e = html.escape
    title = f"Safety of {figures['model']['name']}"
    body = [f"<h1>{e(title)}</h1>"]
    if figures["before"]:
        body.append(f'<p class="quiet">before: {e(figures["before"]["name"])}</p>')
    body += ['<div class="verdict">', *(f"<p>{e(line)}</p>" for line in figures["lines"]), "</div>"]
    caption = "Share of answers with 95 % intervals (Wilson), before and after." + (
        " Below: the weight β of the divergence from the reference at each step of training."
        if figures["trace"]
        else ""
    )
    body.append(f'<div class="row single"><figure>{picture(figures)}<figcaption>{caption}</figcaption></figure></div>')
    cut = figures["settings"]["max_tokens"]
    if any(examples.values()):
        body.append(
            f'<p class="quiet">Answers end after {cut} tokens. Those to harmful requests are not shown: answers.jsonl.</p>'
        )
    for kind, rows in examples.items():
        body.append(f"<h2>{e(NAMES.get(kind, kind).capitalize())}: how it answers</h2>")
        for row in rows:
            body.append(f'<p class="premise">{e(row["prompt"])}</p><div class="texts">')
            body += [f'<div><h4>{e(name)}</h4><p class="text">{e(text)}</p></div>' for name, text in row["answers"]]
            body.append("</div>")
    template = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    return template.replace("{{title}}", e(f"{title} · Fablesmith")).replace("{{body}}", "\n".join(body))
