"""report.html of a greeting's run: one self-contained page. Every text is escaped and says its language; nothing is fetched."""

from pathlib import Path

from toolkit.evaluate import greeting_charts
from toolkit.evaluate.greeting_sections import (
    agents,
    aligned_by,
    alignment,
    by_language,
    grams,
    number,
    principles,
    reward_model,
    said,
    tripped,
    tripwire,
    unseen_judge,
)
from toolkit.evaluate.greetings import verdict_lines
from toolkit.evaluate.report import _e, _export, _figure, _interval, _pct, _settings, _span, _table, _write_page
from toolkit.recipe import Recipe
from toolkit.records import read_jsonl

SHOWN = 3  # requests a language in "side by side"


def write_greeting_report(recipe: Recipe, work, path: Path) -> None:
    """Assemble the page from the finished stages of `work` (a runner.Work); what a run has not is left out."""
    facts = {name: found for name in work.stages if (found := _facts(work, name)) is not None}
    found = facts["evaluate"]
    body = [
        '<div class="verdict">',
        *(f"<p>{_e(line)}</p>" for line in [*verdict_lines(found), *tripped(facts)]),
        "</div>",
        *_steps(recipe, facts),
        *_comparison(found),
        *_texts(work),
        *unseen_judge(facts.get("unseen") or {}),
        *alignment(work, facts),
        *tripwire(work, facts),
        *reward_model(facts),
        *principles(work, facts.get("principles") or {}),
        *agents(work, facts.get("rejection") or {}),
        *(_export(work) if (facts.get("export") or {}).get("proof") else []),
        *_settings(recipe, work),
    ]
    _write_page(recipe, body, path)


def _facts(work, name: str) -> dict | None:
    return work.card(name).get("facts") or {} if (work.of(name) / "stage.json").is_file() else None


# ---- what was done


def _steps(recipe: Recipe, facts: dict) -> list[str]:
    """One line a stage, with its figures."""
    get = lambda stage, *keys: {k: facts[stage][k] for k in keys if facts.get(stage, {}).get(k) is not None}  # noqa: E731
    lines = []
    if n := get("requests", "train", "validate", "test", "labelled"):
        lines.append(("Requests, split by request", _pairs_of(n)))
    if n := get("sft", "rows", "too_long", "steps"):
        lines.append(("Cold start on good greetings", _pairs_of(n)))
    if n := get("rejection", "asked", "judged", "accepted"):
        lines.append(("Answers judged by agents", _pairs_of(n)))
    if n := get("pairs", "pairs", "chosen_longer", "chosen_shorter", "length_auc", "said_on_two_sides"):
        own = facts["pairs"].get("train") or {}
        lines.append(
            ("Pairs, balanced by length", _pairs_of({k: own.get(k) for k in ("by_agents", "curated") if k in own} | n))
        )
    if n := get("pairwise", "pairs", "steps", "too_long"):
        lines.append(("Reward model", _pairs_of(n)))
    rounds = [f"{_e(k)}: {f.get('rounds')} rounds" + (f", {f.get('kept')} kept ({_e(f.get('stopped', ''))})" if f.get("rounds") else "") for k, f in by_language(facts.get("principles") or {})]  # fmt: skip
    if rounds:
        lines.append(("Judging principles", "; ".join(rounds)))
    if stage := aligned_by(facts):
        name = f"GRPO, reward: {', '.join(recipe.grpo.rewards)}" if stage == "grpo" else "DPO"
        lines.append((f"Alignment by {name}", _pairs_of(get(stage, "requests", "pairs", "steps", "answers", "tokens"))))
    if not lines:
        return []
    rows = "".join(f"<tr><td>{_e(name)}</td><td>{told}</td></tr>" for name, told in lines)
    return ["<h2>What was done</h2>", f'<div class="scroll"><table>{rows}</table></div>']


def _pairs_of(values: dict) -> str:
    return ", ".join(f"{_e(k.replace('_', ' '))} {_e(number(v))}" for k, v in values.items())


# ---- writers


def _comparison(found: dict) -> list[str]:
    writers, base = found["writers"], found["baseline"]
    others = [w for w in writers if w["name"] != base]
    judged = any(w["unseen"] for w in writers)
    head = ["writer", *(f"{name} reward" for name in found["scorers"])]
    head += [f"unseen judge: wins against {base}", "at equal length"] if judged else []
    languages = found["languages"] if judged and len(found["languages"]) > 1 else []
    head += [f"wins, {name}" for name in languages]
    rows = []
    for w in writers:
        row = [w["name"], *(_span(w["scores"][name]["mean"]) for name in found["scorers"])]
        for key in ("wins", "length_controlled") if judged else ():
            row.append(_interval(w["unseen"][key]) if key in (w["unseen"] or {}) else "–")
        for name in languages:
            each = (w["unseen"] or {}).get("by_language", {})
            row.append(_interval(each[name]) if name in each else "–")
        rows.append(row)
    out = [
        "<h2>Writers compared</h2>",
        f"<p>{found['requests']} requests that nothing was trained on, the same ones for every writer; 95 % intervals over "
        f"requests. A reward is what a training may aim at; the unseen judge is what none has met.</p>",
        _table(head, rows),
        '<div class="row small">',
    ]
    for name in found["scorers"]:
        gaps = {w["name"]: w["scores"][name]["difference"] for w in others}
        out.append(_forest(gaps, f"{name} reward: difference from {base}"))
    if judged:
        wins = {w["name"]: (w["unseen"] or {}).get("wins") for w in others}
        out.append(_forest(wins, f"unseen judge: wins against {base}, %", 0.5, 100))
    out.append(_forest({w["name"]: w["diversity"]["difference"] for w in others}, f"diversity: difference from {base}"))
    out.append(
        '</div><p class="quiet">Paired by request. Dashed: no difference; coloured where the 95 % interval lies clear of it.</p>'
    )
    pictures = [
        _figure(greeting_charts.trade(points, f"mean reward: {name}"), f"Reward ({name}) against diversity. Up and to the right is better; a reward bought with diversity goes down and to the right.")
        for name in found["scorers"]
        if (points := {w["name"]: (w["scores"][name]["mean"], w["diversity"]["mean"]) for w in writers if w["diversity"]["mean"][0] is not None and w["scores"][name]["mean"][0] is not None})
    ]  # fmt: skip
    return [*out, '<div class="row">', *pictures, "</div>", *_shape(found), *_telling(writers)]


def _forest(found: dict, label: str, mark: float = 0.0, scale: float = 1.0) -> str:
    if not any(v and v[0] is not None for v in found.values()):
        return ""
    return _figure(greeting_charts.forest(found, label, mark, scale), "")


def _shape(found: dict) -> list[str]:
    """Diversity and wording, form and cost."""
    unit = {"zh": "characters", "en": "words"}
    head, wording, cost = ["writer", "diversity"], [], []
    for name in found["languages"]:
        head += [f"length, {unit.get(name, name)}", f"same opening, {name}", f"repeated runs, {name}"]
    for w in found["writers"]:
        row = [w["name"], _span(w["diversity"]["mean"])]
        for name in found["languages"]:
            each = w["by_language"].get(name, {})
            length = each.get("length", [None])[0]
            row += ["–" if length is None else f"{length:.0f}"]
            row += [_pct(each[key][0]) if each.get(key) else "–" for key in ("openings", "repeats")]
        wording.append(row)
        broken = w["broken"] or {"share": [None] * 3, "reasons": {}}
        reasons = ", ".join(f"{reason} {n}" for reason, n in broken["reasons"].items()) or "–"
        row = [w["name"], _interval(broken["share"]) if w["broken"] else "–", reasons, str(w["empty"])]
        cost.append([*row, *(f"{w[key]:,.0f}" for key in ("seconds", "calls"))])
    return [
        "<h3>Diversity and wording</h3>",
        _table(head, wording),
        '<p class="quiet">Diversity: mean cosine distance of two greetings to one request. Same opening, repeated runs: chance that '
        "greetings to two different requests begin alike, or share a run of 4 words (8 Chinese characters).</p>",
        "<h3>Form and cost</h3>",
        _table(["writer", "broken form", "by reason", "empty", "seconds", "calls"], cost),
        '<p class="quiet">Cost: of all that was written to hand these greetings in.</p>',
    ]


def _telling(writers: list[dict]) -> list[str]:
    rows = [f"<p>{_e(w['name'])}: {grams(w['telling'])}</p>" for w in writers if w.get("telling")]
    return ["<h3>What each writer says more often than the baseline</h3>", *rows] if rows else []


def _texts(work) -> list[str]:
    """The first requests of each language with every writer's first greeting."""
    rows = read_jsonl(work.of("evaluate") / "answers.jsonl")
    firsts: dict[str, dict[str, list]] = {}
    for row in rows:
        if row.get("k", 0) == 0:
            firsts.setdefault(row["language"], {}).setdefault(row["request_id"], []).append(row)
    if not firsts:
        return []
    out = [
        "<h2>Side by side</h2>",
        '<p class="quiet">The first greeting of each writer to the first requests of each language, in order, not picked.</p>',
    ]
    for requests in firsts.values():
        for mine in list(requests.values())[:SHOWN]:
            out.append(f'{said(mine[0]["request"], "p", "premise")}<div class="texts">')
            out += [
                f"<div><h4>{_e(row['writer'])}</h4>{said(row['text'], 'div', 'text')}</div>"
                for row in mine
            ]  # fmt: skip
            out.append("</div>")
    return out
