"""report.html of a greeting's run: one self-contained page. Every text is escaped and says its language; nothing is fetched."""

import json
from pathlib import Path

from toolkit.evaluate import charts, greeting_charts
from toolkit.evaluate.greetings import verdict_lines
from toolkit.evaluate.report import _e, _export, _figure, _interval, _pct, _settings, _span, _table
from toolkit.greeting.form import script_of
from toolkit.models.training import read_metrics
from toolkit.recipe import Recipe
from toolkit.records import guess_language, read_jsonl

SHOWN = 3  # requests a language in "side by side"
WATCHED = {
    "reward": "mean reward",
    "judge": "unseen judge, log-odds",
    "diversity": "diversity: mean cosine distance",
    "length": "length, words or characters",
    "repetition": "repeated word runs, share",
    "kl": "KL from the start, nats a token",
}


def write_greeting_report(recipe: Recipe, work, path: Path) -> None:
    """Assemble the page from the finished stages of `work` (a runner.Work); what a run has not is left out."""
    facts = {name: found for name in work.stages if (found := _facts(work, name)) is not None}
    found = facts["evaluate"]
    body = [
        f"<h1>{_e(recipe.name)}</h1>",
        f'<p class="quiet">{_e(recipe.about)}</p>',
        '<div class="verdict">',
        *(f"<p>{_e(line)}</p>" for line in [*verdict_lines(found), *_tripped(facts)]),
        "</div>",
        *_steps(recipe, facts),
        *_comparison(found),
        *_texts(work),
        *_unseen(facts.get("unseen") or {}),
        *_alignment(recipe, work, facts),
        *_tripwire(work, facts),
        *_reward_model(facts),
        *_principles(work, facts.get("principles") or {}),
        *_agents(work, facts.get("rejection") or {}),
        *(_export(work) if (facts.get("export") or {}).get("proof") else []),
        *_settings(recipe, work),
    ]
    page = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    page = page.replace("{{title}}", _e(f"{recipe.name} · Fablesmith")).replace("{{body}}", "\n".join(body))
    path.write_text(page, encoding="utf-8")


def _facts(work, name: str) -> dict | None:
    return work.card(name).get("facts") or {} if (work.of(name) / "stage.json").is_file() else None


def _align(facts: dict) -> str:
    """The stage that aligned the writer: grpo, dpo, or "" for neither."""
    return next((name for name in ("grpo", "dpo") if name in facts), "")


def tag(text: str) -> str:
    """The text's BCP 47 tag: zh-Hant where it has a character that only traditional Chinese has, zh-Hans, or en."""
    if guess_language(text) != "zh":
        return "en"
    return "zh-Hant" if script_of(text) == "traditional" else "zh-Hans"


def _said(text: str, element: str = "span", look: str = "") -> str:
    """A text of a person or a model, escaped, in its language, so that browsers choose the right glyphs."""
    named = f' class="{look}"' if look else ""
    return f'<{element}{named} lang="{tag(text)}">{_e(text) if text.strip() else "(nothing)"}</{element}>'


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
    if n := get("pairs", "pairs", "chosen_longer", "rejected_longer", "near_duplicates", "curated"):
        lines.append(("Pairs, balanced by length", _pairs_of(n)))
    if n := get("pairwise", "pairs", "steps", "too_long"):
        lines.append(("Reward model", _pairs_of(n)))
    rounds = [f"{_e(k)}: {f.get('rounds')} rounds, {f.get('kept')} kept ({_e(f.get('stopped', ''))})" for k, f in _languages(facts.get("principles") or {})]  # fmt: skip
    if rounds:
        lines.append(("Judging principles", "; ".join(rounds)))
    if stage := _align(facts):
        name = f"GRPO, reward: {', '.join(recipe.grpo.rewards)}" if stage == "grpo" else "DPO"
        lines.append((f"Alignment by {name}", _pairs_of(get(stage, "requests", "pairs", "steps", "calls", "tokens"))))
    if not lines:
        return []
    rows = "".join(f"<tr><td>{_e(name)}</td><td>{told}</td></tr>" for name, told in lines)
    return ["<h2>What was done</h2>", f'<div class="scroll"><table>{rows}</table></div>']


def _pairs_of(values: dict) -> str:
    return ", ".join(f"{_e(k.replace('_', ' '))} {_e(_number(v))}" for k, v in values.items())


def _number(value) -> str:
    if isinstance(value, dict):
        return " · ".join(f"{k} {_number(v)}" for k, v in value.items())
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


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
        '<div class="row">',
    ]
    for name in found["scorers"]:
        gaps = {w["name"]: w["scores"][name]["difference"] for w in others}
        out.append(_forest(gaps, f"{name} reward: difference from {base}"))
    if judged:
        wins = {w["name"]: (w["unseen"] or {}).get("wins") for w in others}
        out.append(_forest(wins, f"unseen judge: wins against {base}, %", 0.5, 100))
    out.append(_forest({w["name"]: w["diversity"]["difference"] for w in others}, f"diversity: difference from {base}"))
    out.append("</div>")
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
    """Diversity, length, form and cost."""
    languages = found["languages"]
    unit = {"zh": "characters", "en": "words"}
    head = ["writer", "diversity"]
    for name in languages:
        head += [f"length, {unit.get(name, name)}", f"same opening, {name}", f"repeated runs, {name}"]
    head += ["broken form", "empty", "seconds", "calls", "tokens"]
    rows = []
    for w in found["writers"]:
        row = [w["name"], _span(w["diversity"]["mean"])]
        for name in languages:
            each = w["by_language"].get(name, {})
            length = each.get("length", [None])[0]
            row += ["–" if length is None else f"{length:.0f}"]
            row += [_pct(each[key][0]) if each.get(key) else "–" for key in ("openings", "repeats")]
        row += [_interval(w["broken"]["share"]) if w["broken"] else "–", str(w["empty"])]
        rows.append([*row, f"{w['seconds']:,.0f}", f"{w['calls']:,}", f"{w['tokens']:,}"])
    reasons = [
        f"<p>{_e(w['name'])}: {_e(', '.join(f'{reason} {n}' for reason, n in w['broken']['reasons'].items()))}.</p>"
        for w in found["writers"]
        if w["broken"] and w["broken"]["reasons"]
    ]
    return [
        "<h3>Diversity, length, form and cost</h3>",
        _table(head, rows),
        '<p class="quiet">Diversity: mean cosine distance of two greetings to one request. Same opening, repeated runs: chance that '
        "greetings to two different requests begin alike, or share a run of 4 words (8 Chinese characters). Cost: of all that "
        "was written to hand these greetings in.</p>",
        *([f"<details><summary>Broken form by reason</summary>{''.join(reasons)}</details>"] if reasons else []),
    ]


def _telling(writers: list[dict]) -> list[str]:
    rows = [f"<p>{_e(w['name'])}: {_grams(w['telling'])}</p>" for w in writers if w.get("telling")]
    return ["<h3>What each writer says more often than the baseline</h3>", *rows] if rows else []


def _grams(rows: list[dict]) -> str:
    """N-grams of reward.telling with their z."""
    return " ".join(
        f'<span class="gram">{_said(str(r.get("ngram", "")))} <small>{float(r.get("z") or 0):+.1f}</small></span>'
        for r in rows
    )


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
            out.append(f'{_said(mine[0]["request"], "p", "premise")}<div class="texts">')
            out += [
                f"<div><h4>{_e(row['writer'])}</h4>{_said(row['text'], 'div', 'text')}</div>"
                for row in mine
            ]  # fmt: skip
            out.append("</div>")
    return out


# ---- judge and rewards


def _unseen(facts: dict) -> list[str]:
    quality = facts.get("quality") or facts
    if "all" not in quality:
        return []
    rows: dict[str, list] = {}
    for name, found in quality.items():
        if isinstance(found, dict) and "accuracy" in found:
            label = f"{name} ({found['pairs']} pairs)"
            rows[label], rows[f"{label}, length only"] = found["accuracy"], found["length_only"]
    models = ", ".join(f"{k}: {v['model']}" for k, v in quality.items() if isinstance(v, dict) and "model" in v)
    gone = "; ".join(f"{k}: {why}" for k, why in (facts.get("left_out") or {}).items())
    return [
        "<h2>How far the unseen judge can be trusted</h2>",
        f"<p>A small regression on frozen embeddings ({_e(models)}), learnt from labelled greetings of the test side, which no "
        f"writer and no reward has seen. Below: pairs it had not seen, ordered rightly.{' Left out: ' + _e(gone) + '.' if gone else ''}</p>",
        '<div class="row">',
        _figure(greeting_charts.bars(rows, "labelled pairs ordered rightly, %"), "Cross-validated over requests, beside “the longer one is good”."),
        "</div>",
    ]  # fmt: skip


def _reward_model(facts: dict) -> list[str]:
    found = facts.get("pairwise")
    if not found:
        return []
    rows: dict[str, list] = {}
    for kind, told in (("natural", "all pairs"), ("balanced", "length-balanced")):
        for source, label in (("held_out", "reward model"), ("untrained", "untrained")):
            if one := (found.get(source) or {}).get(kind):
                rows[f"{label}, {told} ({one['pairs']})"] = one["accuracy"]
        if one := (found.get("held_out") or {}).get(kind):
            rows[f"length only, {told}"] = one["length_only"]
    out = ["<h2>The reward model</h2>"]
    if rows:
        picture = greeting_charts.bars(rows, "held-out pairs ordered rightly, %")
        out.append(
            f'<div class="row">{_figure(picture, "Held-out requests, beside what length alone would get.")}</div>'
        )
    if one := found.get("calibration"):
        before, after = one["log_loss"]
        out.append(
            f"<p>Calibrated by one temperature ({one['temperature']:.2f}): log-loss {before:.3f} → {after:.3f} nats a pair "
            f"(a coin: 0.693), calibration error {one['ece'][0]:.3f} → {one['ece'][1]:.3f}.</p>"
        )
    told = found.get("telling") or (facts.get("pairs") or {}).get("telling") or []
    told = {"": told} if isinstance(told, list) else told
    for language, rows_ in told.items():
        for side in ("chosen", "rejected"):
            if mine := [r for r in rows_ if r.get("side") == side]:
                kind = f"{side} answers{', ' + language if language else ''}"
                out.append(f"<p>Most telling of {_e(kind)}: {_grams(mine)}</p>")
    return out


def _alignment(recipe: Recipe, work, facts: dict) -> list[str]:
    stage = _align(facts)
    if not stage:
        return []
    metrics = read_metrics(work.of(stage))
    wanted = [("reward", "mean reward"), ("kl", "KL, nats a token"), ("frac_reward_zero_std", "groups with all-equal reward")]  # fmt: skip
    if stage == "dpo":
        wanted = [("loss", "loss"), ("rewards/accuracies", "accuracy"), ("rewards/margins", "margin, β · nats")]
    pictures = [
        _figure(greeting_charts.series(points, label), "")
        for key, label in wanted
        if (points := [(r["step"], r[key]) for r in metrics if key in r])
    ]
    told = [[k.replace("_", " "), _number(v)] for k, v in facts[stage].items() if _plain(v)]
    return [
        f"<h2>Alignment by {stage.upper()}</h2>",
        f'<div class="row small">{"".join(pictures)}</div>' if pictures else "",
        f"<details><summary>All figures</summary>{_table(['', ''], told)}</details>",
    ]


def _plain(value) -> bool:
    """A figure, or a small table of figures: what a line can show."""
    if isinstance(value, dict):
        return 0 < len(value) <= 12 and all(isinstance(v, int | float) for v in value.values())
    return isinstance(value, int | float | str) and not isinstance(value, bool) and value != ""


# ---- tripwire


def _tripped(facts: dict) -> list[str]:
    """Where the tripwire stopped training: when, why, and what was put back."""
    found = (facts.get(_align(facts)) or {}).get("tripwire") or {}
    if found.get("tripped") is None:
        return []
    back = f"step {found['kept']}" if found.get("kept") else "the start"
    return [
        f"The tripwire stopped the training at step {found['tripped']}: the reward climbed while "
        f"{'; '.join(found.get('reasons') or ['a guard fell'])}. What is compared here is the last good checkpoint: {back}."
    ]


def _tripwire(work, facts: dict) -> list[str]:
    stage = _align(facts)
    rows = read_jsonl(work.of(stage) / "tripwire.jsonl") if stage else []
    if not rows:
        return []
    found = facts[stage].get("tripwire") or {}
    stopped, kept = found.get("tripped"), found.get("kept")
    pictures = []
    for key, label in WATCHED.items():
        points = [(r["step"], r[key]) for r in rows if r.get(key) is not None]
        if points:
            pictures.append(_figure(greeting_charts.series(points, label, stopped, kept), ""))
    lines = _tripped(facts) or [
        f"It looked {len(rows)} times and did not trip: where the reward climbed, nothing else fell beyond its limit and beyond noise."
    ]
    return [
        "<h2>The tripwire's series</h2>",
        *(f"<p>{_e(line)}</p>" for line in lines),
        f'<div class="row small">{"".join(pictures)}</div>',
        '<p class="quiet">Measured on a small probe of the same requests at every look. Dashed: where training was stopped; ring: '
        "the checkpoint that was put back.</p>",
    ]


# ---- principles


def _languages(found: dict) -> list[tuple[str, dict]]:
    """(language, facts) of the adversarial rounds: one run a language."""
    if "language" in found:
        return [(found["language"], found)]
    found = found.get("languages") or found
    return [(k, v) for k, v in found.items() if isinstance(v, dict) and ("gate" in v or "rounds" in v)]


def _principles(work, found: dict) -> list[str]:
    out = []
    for language, facts in _languages(found):
        gate = facts.get("gate") or {}
        start, best = ((gate.get(k) or {}).get("accuracy") for k in ("start", "best"))
        out.append(f"<h3>{_e({'en': 'English', 'zh': 'Chinese'}.get(language, language))}</h3>")
        if start and best:
            out.append(
                f"<p>{facts.get('rounds')} rounds, {facts.get('kept')} of them kept; {_e(facts.get('stopped', ''))}. Right on "
                f"{gate.get('pairs')} held-out pairs, good and flawed counted alike: {_interval(start)} at the start, "
                f"{_interval(best)} with the list that was kept.</p>"
            )
        folder = work.of("principles")
        folder = folder / language if (folder / language).is_dir() else folder
        if (folder / "rounds.svg").is_file():
            picture = (folder / "rounds.svg").read_text(encoding="utf-8")
            told = "Accuracy of the judging principles on held-out labelled greetings, rejected rounds hollow; share of the generator's flawed greetings that passed as good."
            out.append(f'<div class="row">{_figure(picture[picture.index("<svg") :], told)}</div>')
        rules = (facts.get("detector") or {}).get("rules") or []
        if rules:
            items = "".join(_said(rule, "li") for rule in rules)
            out.append(f"<details open><summary>The judging principles</summary><ol>{items}</ol></details>")
        for row in read_jsonl(folder / "history.jsonl"):
            if row.get("language", language) == language and row.get("round") and row.get("diff"):
                accuracy = f", {_interval(row['accuracy'])} right" if row.get("accuracy") else ""
                out.append(
                    f"<details><summary>Round {row['round']}: {_e(row.get('verdict', ''))}{_e(accuracy)}</summary>"
                    f"<p>{_e(row.get('why', ''))}</p>{_diff(row['diff'])}</details>"
                )
    return ["<h2>The principle-guided judge</h2>", *out] if out else []


def _diff(text: str) -> str:
    """A unified diff; what was added and what was taken out also by colour."""
    looks = {"+": "added", "-": "gone"}
    lines = [
        f'<span class="{looks.get(line[:1], "") if line[:3] not in ("+++", "---") else ""}">{_e(line)}</span>'
        for line in text.splitlines()
    ]
    return f'<pre class="diff" lang="{tag(text)}">{chr(10).join(lines)}</pre>'


# ---- agents


def _agents(work, found: dict) -> list[str]:
    if not found:
        return []
    rows = []
    for key, label in (
        ("asked", "answers written"),
        ("judged", "judged"),
        ("accepted", "accepted"),
        ("acceptance", "acceptance rate"),
        ("overturned", "verdicts overturned by reflection"),
        ("overturn", "overturn rate"),
        ("no_verdict", "without a verdict, by reason"),
        ("broken", "broken form, by reason"),
        ("calls", "calls, by role"),
        ("tokens", "tokens, by role"),
        ("seconds", "seconds"),
    ):
        value = found.get(key)
        if isinstance(value, list) and len(value) == 3:
            rows.append([label, _interval(value)])
        elif value not in (None, {}, []):
            rows.append([label, _number(value)])
    debates = _debates(read_jsonl(work.of("rejection") / "records.jsonl"))
    out = ["<h2>The agents</h2>", _table(["", ""], rows)]
    if debates:
        out.append("<p>Some debates, the first of each kind; the run keeps them all.</p>")
    return [*out, *debates]


def _debates(records: list[dict], most: int = 2) -> list[str]:
    """The first records of each outcome, to open."""
    kinds: dict[str, list[dict]] = {
        "overturned": [],
        "accepted": [],
        "rejected": [],
        "no verdict": [],
        "broken form": [],
    }
    for row in records:
        verdict = row.get("reflected") if row.get("reflected") is not None else row.get("verdict")
        kind = (
            "broken form" if row.get("broken") else "no verdict" if verdict is None else "overturned" if row.get("overturned")
            else "accepted" if verdict == 1 else "rejected"
        )  # fmt: skip
        kinds[kind].append(row)
    out = []
    for kind, rows in kinds.items():
        for row in rows[: most if kind != "broken form" else 1]:
            parts = [_said(str(row.get("text", "")), "div", "text")]
            for key, label in (("merits", "For"), ("faults", "Against")):
                if items := row.get(key):
                    parts.append(f"<p>{label}:</p><ul>{''.join(_said(_claim(item), 'li') for item in items)}</ul>")
            for key, label in (("broken", "Broken form"), ("reason", "Judge"), ("cause", "Reflection"), ("error", "No answer")):  # fmt: skip
                if value := row.get(key):
                    value = ", ".join(value) if isinstance(value, list) else str(value)
                    parts.append(f"<p>{label}: {_said(value)}</p>")
            out.append(
                f"<details><summary>{_e(kind)}: {_said(str(row.get('request', '')))}</summary>"
                f'<div class="card">{"".join(parts)}</div></details>'
            )
    return out


def _claim(item) -> str:
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
