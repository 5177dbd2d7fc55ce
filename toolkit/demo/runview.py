"""A run as HTML: where its stages stand, curves, pairs with reasons, charts, what it made."""

import base64
import re
from pathlib import Path
from urllib.parse import quote

from toolkit.demo import running
from toolkit.demo.house import House
from toolkit.demo.parts import esc, prose
from toolkit.demo.words import Words
from toolkit.models.resolve import exported_gguf


def stages(w: Words, folder: Path, at_work: bool) -> str:
    """The stages as a list: done, at work, stopped half-way, to come."""
    rows = []
    for step in running.steps(folder):
        state = "paused" if step.state == "working" and not at_work else step.state
        told = w.clock(step.seconds) if step.seconds is not None else ""
        told += f" · {step.peak_gb:.1f} GB" if step.peak_gb else ""
        rows.append(
            f"<li class='{state}'><span class='dot' aria-hidden='true'></span><strong>{esc(w.stage(step.name))}</strong>"
            f"<span>{esc(w(f'stage.{state}'))}</span><span class='told'>{esc(told)}</span></li>"
        )
    return f"<ol class='stages'>{''.join(rows)}</ol>"


def run(w: Words, house: House, folder: Path, at_work: bool) -> str:
    """Everything about a run that its folder tells."""
    recipe = running.read_json(folder / "recipe.json")
    out = [f"<h2>{esc(folder.name)}</h2><p class='quiet'>{esc(recipe.get('about', ''))}</p>", _made(w, house, folder)]
    out.append(
        f"<div class='half'><section><h3>{esc(w('runs.stages'))}</h3>{stages(w, folder, at_work)}</section>{curves(w, folder)}</div>"
    )
    out.append(_pairs(w, folder))
    for name, path in running.pictures(house, folder).items():
        picture = base64.b64encode(path.read_bytes()).decode()
        told = esc(w(f"runs.{name}"))
        out.append(
            f"<section><h3>{told}</h3><img class='picture' alt='{told}' src='data:image/svg+xml;base64,{picture}'></section>"
        )
    return f"<div class='run'>{''.join(out)}</div>"


def _made(w: Words, house: House, folder: Path) -> str:
    """What came out: the report, the safety card and the model, each only when it is there."""
    links = []
    pages = {"report": folder / "report" / "report.html", "safety": running.safety_card(house, folder)}
    for name, page in pages.items():
        if page.is_file():
            told = esc(w(f"runs.open_{name}"))
            links.append(
                f"<a class='button' target='_blank' rel='noopener' href='../{name}/{quote(folder.name)}'>{told}</a>"
            )
    model = exported_gguf(folder)
    if model is not None:
        links.append(f"<span class='path'>{esc(w('runs.model'))} <code>{esc(model)}</code></span>")
    return f"<p class='made'>{''.join(links)}</p>" if links else ""


def curves(w: Words, folder: Path) -> str:
    """The training curves so far; nothing where no stage has logged one."""
    drawn = running.curves(folder)
    if not drawn:
        return ""
    figures = "".join(
        f"<figure><figcaption>{esc(w.stage(name))}</figcaption>{svg}</figure>" for name, svg in drawn.items()
    )
    return f"<section class='curves'><h3>{esc(w('runs.curves'))}</h3>{figures}</section>"


def _pairs(w: Words, folder: Path) -> str:
    """The surest pairs side by side with what tells them apart, and why the others were left out."""
    shown, many, left_out = running.pairs(folder)
    if not many:
        return ""
    rows = []
    for row in shown:
        scores = [
            (k, row["chosen_scores"][k] - v)
            for k, v in (row.get("rejected_scores") or {}).items()
            if k in (row.get("chosen_scores") or {})
        ]
        why = ", ".join(
            f"{w(f'dimension.{k}')} {gap:+.1f}"
            for k, gap in sorted(scores, key=lambda x: -x[1])
            if k in ("character", "tone", "pacing", "coherence", "emotion")
        )
        asked = re.sub(r"^(Premise: |前提：|Request: |要求：)", "", str(row["prompt"]).strip().rsplit("\n", 1)[-1])
        rows.append(
            f"<details class='preference'><summary>{esc(asked[:160])}<span>{esc(why)}</span></summary><div class='cards n2'>"
            f"<article class='card'><header><h3>{esc(w('runs.chosen'))}</h3></header>{prose(str(row['chosen']))}</article>"
            f"<article class='card'><header><h3>{esc(w('runs.rejected'))}</h3></header>{prose(str(row['rejected']))}</article></div></details>"
        )
    reasons = "".join(f"<li><strong>{n}</strong> {esc(w.reason(why))}</li>" for why, n in left_out.most_common())
    left = (
        f"<details class='dropped'><summary>{esc(w('runs.left_out', n=sum(left_out.values())))}</summary><ul>{reasons}</ul></details>"
        if reasons
        else ""
    )
    return f"<section><h3>{esc(w('runs.pairs', n=many))}</h3>{''.join(rows)}{left}</section>"


def fits(w: Words, found: dict) -> str:
    """The verdict of `fablesmith fit` for this machine, and about how long the run takes."""
    words = []
    for where in ("vram", "ram", "disk"):
        has, needs = found.get(f"has_{where}"), found["needs"][where]
        if has:
            words.append(w(f"train.{where}", needs=needs, has=has))
    time = w("train.time", time=w.clock(found["seconds"])) if found.get("seconds") else w("train.no_time")
    kind, head = ("good", w("train.fits")) if found["fits"] else ("error", w("train.too_large"))
    helps = "".join(
        f"<li>{esc(h['change'])} <code>{esc(' '.join(h['set']))}</code></li>"
        for h in found.get("what_helps", [])
        if h["fits"]
    )
    helps = f"<p class='hint'>{esc(w('train.helps'))}</p><ul>{helps}</ul>" if helps else ""
    return f"<div class='note {kind}'><p><strong>{esc(head)}</strong> {esc('; '.join(words))}</p><p class='hint'>{esc(time)}</p>{helps}</div>"


def log(text: str) -> str:
    return f"<pre class='log' tabindex='0'>{esc(text)}</pre>" if text else ""
