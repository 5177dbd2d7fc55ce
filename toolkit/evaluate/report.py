"""report.html: what a run did and found, in one self-contained page. Every text is escaped; nothing is fetched."""

import dataclasses
import html
import json
from pathlib import Path

import yaml

from toolkit.evaluate import charts
from toolkit.evaluate.diversity import MEASURES
from toolkit.hardware import PACKAGES, package_version
from toolkit.models.training import read_metrics
from toolkit.narrative.dimensions import DIMENSIONS
from toolkit.recipe import Recipe
from toolkit.records import REASONS, AspectRatings, Plot, read_jsonl


def write_report(recipe: Recipe, work, path: Path) -> None:
    """Assemble the page from the finished stages of `work` (a run.Work)."""
    facts = work.card("evaluate")["facts"]
    body = [
        *_verdict(facts),
        *_evaluation(facts, work),
        *_diversity(facts, work),
        *_passport(facts, work),
        *_panel(facts, work),
        *_texts(work),
        *(_reward(work) if work.has("reward") else []),
        *_pairs(recipe, work),
        *_training(work),
        *_watch(work),
        *_export(work),
        *_settings(recipe, work),
    ]
    _write_page(recipe, body, path)


def _write_page(recipe: Recipe, body: list[str], path: Path) -> None:
    """A run's name, what it is about, and `body`, in the page that all reports share."""
    body = [f"<h1>{_e(recipe.name)}</h1>", f'<p class="quiet">{_e(recipe.about)}</p>', *body]
    page = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    page = page.replace("{{title}}", _e(f"{recipe.name} · Fablesmith")).replace("{{body}}", "\n".join(body))
    path.write_text(page, encoding="utf-8")


def verdict_lines(facts: dict) -> list[str]:
    """What the evaluation says, in plain sentences: also when the reward moved and the judge did not."""
    value, low, high = facts["win_rate"]
    sure = low is not None and (low > 0.5 or high < 0.5)
    held_back = facts["no_verdict"]
    if value is None:
        why = (
            "its passport says that no verdict of it is to be trusted"
            if facts["threshold"] is None
            else "it was never sure enough"
        )
        raw, low_raw, high_raw = facts["raw_win_rate"]
        lines = [f"The judge gives no verdict on any of {facts['pairs']} pairs: {why}."]
        if raw is not None:
            lines.append(
                f"For the record, untrusted: it would have preferred the aligned model in {_pct(raw)} (95 % interval "
                f"{_pct(low_raw)} to {_pct(high_raw)}), with the order deciding in {_pct(facts['ties_by_order'])} of the pairs."
            )
    else:
        judge = (
            f"The judge prefers the aligned model in {_pct(value)} of {facts['pairs'] - held_back} pairs (ties count half; "
            f"95 % interval {_pct(low)} to {_pct(high)})"
        )
        lines = [
            judge
            + ": "
            + (
                ("a real gain." if value > 0.5 else "a real loss.")
                if sure
                else "not distinguishable from no difference."
            )
        ]
        level, low_level, high_level = facts["length_controlled"]
        lines.append(f"At equal length it would be {_pct(level)} ({_pct(low_level)} to {_pct(high_level)}).")
        if held_back:
            lines.append(
                f"On {held_back} of {facts['pairs']} pairs it gives no verdict: it was not as sure as its passport asks, "
                "or could not read them."
            )
        if facts["ties_by_order"] > 0.5:
            lean, low_lean, high_lean = facts["lean_rate"]
            lines.append(
                f"In {_pct(facts['ties_by_order'])} of the pairs its verdict changed with the order of the two texts: on "
                "these plots the judge mostly cannot tell, so weigh its verdict accordingly. With the order's pull "
                f"cancelled out it leans to the aligned model in {_pct(lean)} of the pairs (95 % interval {_pct(low_lean)} "
                f"to {_pct(high_lean)})."
            )
    if reward := facts.get("reward"):
        gain, low_gain, high_gain = reward["gain"]
        moved = low_gain is not None and (low_gain > 0 or high_gain < 0)
        lines.append(
            f"The mean reward went from {reward['base']['mean'][0]:.2f} to {reward['aligned']['mean'][0]:.2f} of 10 "
            f"(change {gain:+.2f}, 95 % interval {low_gain:+.2f} to {high_gain:+.2f})."
            if low_gain is not None
            else f"The mean reward changed by {gain:+.2f}."
        )
        if moved and gain > 0 and not (sure and value > 0.5):
            lines.append(
                "So training moved the reward it was aimed at, but the independent judge does not confirm that the plots "
                "are better. Treat this run as a working road, not as a better writer."
            )
        elif not moved:
            lines.append("So training on this budget did not measurably move the reward either.")
    return lines


def _verdict(facts: dict) -> list[str]:
    return ['<div class="verdict">', *(f"<p>{_e(line)}</p>" for line in verdict_lines(facts)), "</div>"]


def _evaluation(facts: dict, work) -> list[str]:
    out = ["<h2>Base against aligned</h2>", '<div class="row">']
    if reward := facts.get("reward"):
        series = {side: {d.key: reward[side][d.key] for d in DIMENSIONS} for side in ("base", "aligned")}
        out.append(
            _figure(
                charts.radar(series, "Mean reward on the five dimensions"),
                "Mean reward, 1 to 10, on the five dimensions. The reward model is what training aimed at: it is not the judge.",
            )
        )
    out.append(
        _figure(
            charts.wins(facts),
            f"Judge: {facts['judge']}, every answer counted, trusted or not. Each pair is asked in both orders; a verdict that changes with the order is a tie. Rings: the judge's lean with the order's pull cancelled out.",
        )
    )
    out.append("</div>")
    chars = facts["mean_characters"]
    longer = (
        "no decided pair" if facts["longer_wins"] is None else f"in {_pct(facts['longer_wins'])} of the decided pairs"
    )
    out.append(_table(
        ["measure", "value"],
        [
            ["pairs, premises", f"{facts['pairs']}, {facts['premises']} (none seen in training)"],
            ["won, lost, tied, no verdict", f"{facts['wins']}, {facts['losses']}, {facts['pairs'] - facts['no_verdict'] - facts['wins'] - facts['losses']}, {facts['no_verdict']}"],
            ["win rate at equal length", _interval(facts["length_controlled"]) if facts["win_rate"][0] is not None else "no verdict"],
            ["length, characters", f"aligned {chars['aligned']:.0f}, base {chars['base']:.0f}"],
            ["baseline, length alone: the longer one wins", longer],
        ],
    ))  # fmt: skip
    return out


SHOWN = ("semantic", "style", "vendi", "distinct_2", "self_bleu", "openings")  # of the measures, in the report's table


def _diversity(facts: dict, work) -> list[str]:
    found = facts.get("diversity")
    if not found:
        return []
    sides = [side for side in ("base", "aligned") if side in found["writers"]]
    rows = []
    for key in SHOWN:
        values = [found["writers"][side]["measures"][key]["value"] for side in sides]
        gap = found["differences"].get("aligned", {}).get(key, {}).get("value")
        row = [_span(v) for v in values] + [_span(gap, "+") if gap else ""]
        rows.append([f"{MEASURES[key].label} {'↑' if MEASURES[key].higher else '↓'}", *row])
    names = " ".join(
        f"{side.capitalize()} uses for several premises: {', '.join(f'{n} ({texts})' for n, texts, _ in again)}."
        for side in sides
        if (again := [row for row in found["writers"][side]["names"]["top"][:5] if row[2] > 1])
    )
    picture = (work.of("evaluate") / "diversity.svg").read_text(encoding="utf-8")
    return [
        "<h2>Do the plots differ from each other?</h2>",
        f"<p>{_e(found['sentence'])} {_e(names)}</p>",
        _table(["↑ more is more diverse", *sides, "change"], rows),
        f"<details><summary>All measures</summary>{_figure(picture, 'Plots of one premise, 95 % intervals over premises. docs/diversity.md defines each measure.')}</details>",
    ]


def _span(found: list, sign: str = "") -> str:
    value, low, high = found
    if value is None:
        return "–"
    return f"{value:{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})" if low is not None else f"{value:{sign}.2f}"


def _passport(facts: dict, work) -> list[str]:
    card = work.card("passport")["facts"]
    out = ["<h2>How far the judge can be trusted</h2>"]
    if not card["line"]:
        out.append(
            "<p>The recipe skips the judge's passport: nothing is known of how far its verdicts can be trusted.</p>"
        )
    else:
        picture = (work.of("passport") / "passport.svg").read_text(encoding="utf-8")
        out += [f"<p>{_e(card['line'])}</p>", f'<div class="row">{_figure(picture, PASSPORT)}</div>']
    return out + [f"<p>{_e(line[0].upper() + line[1:])}.</p>" for line in facts["warnings"]]


PASSPORT = (
    "Points with 95 % intervals; the dotted mark is what a judge without sense or fault would show. Pairs of known order: "
    "well-made plots of the house against their own damage."
)


def _panel(facts: dict, work) -> list[str]:
    panel = facts.get("panel")
    if not panel:
        return []
    dropped = ", ".join(f"{n} {_e(why)}" for why, n in panel["dropped"].items()) or "none"
    out = [
        "<h2>A panel heard some plots</h2>",
        f"<p>Critics for and against each dimension, a close reader who must quote the plot for every claim, an editor who "
        f"weighs what is left ({_e(', '.join(panel['members']))}). {panel['kept']} of {panel['claims']} claims could be "
        f"supported by a quote; dropped: {dropped}; {panel['malformed']} critics answered in no readable form. Debate can "
        "harm as well as help, so the same model's single call stands beside it.</p>",
    ]
    rows = []
    for writer, found in panel["writers"].items():
        for which in ("panel", "single"):
            means = found[which]
            cells = [f"{means[d.key]:.2f}" if means else "none" for d in DIMENSIONS]
            rows.append(
                [
                    f"{writer}, {'panel' if which == 'panel' else 'single call'} ({found['plots']} plot{'s' * (found['plots'] != 1)})",
                    *cells,
                ]
            )
    out.append(_table(["mean rating, 1 to 10", *(d.name for d in DIMENSIONS)], rows))
    if panel["without_rating"]:
        reasons = "; ".join(f"{n} plots: {why}" for why, n in panel["without_rating"].items())
        out.append(f"<p>Without a rating: {_e(reasons)}.</p>")
    first = next(iter(read_jsonl(work.of("evaluate") / "panel.jsonl")), None)
    if first is not None:
        lines = "".join(
            f"<li>{_e(c['dimension'])}, {_e(c['side'])}: {_e(c['claim'])} "
            + (f"<i>dropped: {_e(c['dropped'])}</i>" if c["dropped"] else f"“{_e(c['quote'])}”")
            + "</li>"
            for c in first["claims"]
        )
        out.append(f"<details><summary>Claims about the first plot</summary><ul>{lines}</ul></details>")
    return out


def _texts(work, most: int = 6) -> list[str]:
    plots = {p.id: p for p in read_jsonl(work.of("evaluate") / "plots.jsonl", Plot)}
    scores = {s.plot_id: s for s in read_jsonl(work.of("evaluate") / "scores.jsonl", AspectRatings)}
    out, shown = (
        ["<h2>Side by side</h2>", '<p class="quiet">The first plots of the test premises in order, not picked.</p>'],
        0,
    )
    for id, base in plots.items():
        if not id.endswith("-0-base") or shown == most:
            continue
        aligned = plots[id.removesuffix("base") + "aligned"]
        shown += 1
        out.append(f'<p class="premise">{_e(base.premise)}</p><div class="texts">')
        for name, plot in (("base", base), ("aligned", aligned)):
            mean = f" · reward {scores[plot.id].mean:.2f}" if plot.id in scores else ""
            out.append(f'<div><h4>{name}{mean}</h4><div class="text">{_e(plot.text) or "(nothing)"}</div></div>')
        out.append("</div>")
    return out


def _reward(work) -> list[str]:
    facts, rated = work.card("reward")["facts"], work.card("ratings")["facts"]
    out = ["<h2>The reward model</h2>"]
    shares = ", ".join(f"{_pct(v)} {_e(k)}" for k, v in sorted(facts["labels_from"].items(), key=lambda x: -x[1]))
    out.append(f"<p>Trained on {facts['texts']} texts in {facts['groups']} groups. Labels come from: {shares}.</p>")
    if check := rated.get("rater_check"):
        value, low, high = check["right"]
        out.append(
            f"<p>The rater that labelled the candidates ({_e(rated['rater'])}) put a damaged plot below the whole one in "
            f"{_pct(value)} of {check['comparisons']} comparisons (95 % interval {_pct(low)} to {_pct(high)}; a coin: 50 %).</p>"
        )
    quality = facts["held_out"]
    if quality.get("reward model"):
        out.append(
            f'<div class="row">{_figure(charts.accuracy(quality), "Held-out premises: plots against their own damage.")}</div>'
        )
        rows = []
        for d in DIMENSIONS:
            row = [d.name]
            for name in ("reward model", "untrained", "length only"):
                found = quality[name][d.key]
                row.append(_interval(found["accuracy"]) if found["accuracy"] else "no pairs")
            rho = quality["reward model"][d.key]["spearman"]
            rows.append([*row, f"{rho[0]:.2f}" if rho else "", str(quality["reward model"][d.key]["pairs"])])
        out.append(
            _table(["dimension", "pair accuracy", "untrained", "length only", "Spearman in a group", "pairs"], rows)
        )
    metrics = read_metrics(work.of("reward"))
    out.append(
        f"<details><summary>Training curve</summary>{charts.curves(metrics, {'loss': 'loss'}, 'Reward model loss')}</details>"
    )
    return out


def _pairs(recipe: Recipe, work) -> list[str]:
    facts = work.card("pairs")["facts"]
    out = ["<h2>Preference pairs</h2>"]
    if "rejected" not in facts:
        return [
            *out,
            f"<p>{facts['pairs']} pairs from {_e(facts['from'])} ({_e(facts['format'])}), {facts['bad_lines']} bad lines.</p>",
        ]
    kept = [p["margin"] for p in read_jsonl(work.of("pairs") / "pairs.jsonl")]
    gone = [p["margin"] for p in read_jsonl(work.of("pairs") / "rejected.jsonl")]
    out.append(
        f"<p>{facts['pairs']} pairs kept; the chosen text is the longer one in {_pct(facts['chosen_is_longer'])} of them.</p>"
    )
    out.append(
        f'<div class="row">{_figure(charts.margins(kept, gone, recipe.pairs.margin if recipe.pairs.select == "confident" else None), "Margins of all pairs within a premise.")}</div>'
    )
    out.append(_table(["left out because", "pairs"], [[REASONS[k], str(v)] for k, v in facts["rejected"].items() if v]))
    return out


LOSSES = {
    "dpo": "DPO",
    "ddpo": "DDPO: each pair counts by how unusual its chosen text is",
    "orpo": "ORPO",
    "dorpo": "DORPO: each pair counts by how unusual its chosen text is",
}


def _training(work) -> list[str]:
    facts, metrics = work.card("dpo")["facts"], read_metrics(work.of("dpo"))
    kind = facts["loss_kind"]
    referred = kind in ("dpo", "ddpo")
    name = kind.upper()
    loss = charts.curves(metrics, {"loss": "loss", "rewards/accuracies": "accuracy"}, f"{name} loss and accuracy")
    label = "reward margin (β · nats)" if referred else "difference of log-odds"
    margin = charts.curves(metrics, {"rewards/margins": label}, f"{name} margin")
    start = (
        f" Before the first update the reward margin is {facts['margin'][0]:.4f}, as it must be: the reference is the "
        "model with its adapter off."
        if referred
        else ""
    )
    out = [
        f"<h2>Alignment ({LOSSES[kind]})</h2>",
        f"<p>{facts['pairs']} pairs, {facts['steps']} steps; {facts['too_long']} left out as too long.{start}</p>",
    ]
    if weights := facts.get("weights"):
        out.append(
            f"<p>The chosen texts weigh {weights['mean']:.2f} on average; {weights['zero']} of them weigh nothing, being the "
            "least unusual answer to their premise. If the average is below 1 the reward prefers what is usual.</p>"
        )
    out.append(
        f'<div class="row">{_figure(loss, "Loss and share of pairs ordered rightly")}{_figure(margin, "Margin between chosen and rejected")}</div>'
    )
    return out


def _watch(work) -> list[str]:
    from toolkit.evaluate.greeting_sections import tripwire  # stands on this page's helpers

    return tripwire(work, {"dpo": work.card("dpo")["facts"]})


def _export(work) -> list[str]:
    facts = work.card("export")["facts"]
    proof = facts["proof"]
    f16 = f"f16 {proof['f16_mean_difference']:.4f}, " if "f16_mean_difference" in proof else ""
    rows = [
        ["file", f"{facts['gguf']} ({facts['megabytes']} MB), and {facts['adapter']} for the base GGUF" if facts["merged"] else f"{facts['adapter']} ({facts['megabytes']} MB), for {facts['base_gguf']}"],
        ["chat template", f"same token ids in {proof['chats_with_equal_tokens']} conversations; EOS {proof['eos']}, BOS {proof['bos']}"],
        ["log-probabilities", f"{f16}{facts['quantisation']} {proof['mean_difference']:.4f} nats a token from the trained model (torch, {proof['torch']}) over {proof['tokens']} tokens (allowed {proof['tolerance']})"],
        ["adapter file", f"{proof['adapter_mean_difference']:.4f} nats a token from what training changed; moves the base as training did (correlation {proof['adapter_change_correlation']:.3f})"],
        ["distance from the base", f"{proof['mean_change_from_base']:.4f} nats a token; greedy text {'differs' if proof['greedy_text_differs_from_base'] else 'is the same'}"],
    ]  # fmt: skip
    return ["<h2>The exported model</h2>", _table(["proof", ""], rows)]


def _settings(recipe: Recipe, work) -> list[str]:
    cards = [work.card(n) for n in work.stages if (work.of(n) / "stage.json").is_file()]
    rows = [
        [c["stage"], f"{c['seconds']:.0f} s" + (" (since resumed)" if c["resumed"] else ""), f"{c['peak_gb']:.1f} GB"]
        for c in cards
    ]
    text = yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(recipe))), sort_keys=False, allow_unicode=True)
    versions = ", ".join(f"{name} {package_version(name)}" for name in PACKAGES)
    return [
        "<h2>Settings</h2>",
        _table(["stage", "time", "peak memory"], rows),
        f'<p class="quiet">{_e(versions)}</p>',
        f"<details><summary>The whole recipe</summary><pre>{_e(text)}</pre></details>",
    ]


def _e(text: object) -> str:
    return html.escape(str(text))


def _pct(value: float | None) -> str:
    return "?" if value is None else f"{100 * value:.0f} %"


def _interval(found: list) -> str:
    value, low, high = found
    return f"{_pct(value)} ({100 * low:.0f}–{100 * high:.0f})" if low is not None and low == low else _pct(value)


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{_e(caption)}</figcaption></figure>"


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = "".join(f"<th>{_e(h)}</th>" for h in head)
    lines = "".join(
        "<tr>" + "".join(f'<td class="{"n" if i else ""}">{_e(c)}</td>' for i, c in enumerate(r)) + "</tr>"
        for r in rows
    )
    return f'<div class="scroll"><table><tr>{cells}</tr>{lines}</table></div>'
