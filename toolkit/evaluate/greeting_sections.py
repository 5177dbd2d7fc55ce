"""Sections of the greetings' report that tell of one stage each: judges, rewards, training, tripwire, principles, agents."""

import json

from toolkit.evaluate import greeting_charts
from toolkit.evaluate.report import _e, _figure, _interval, _table
from toolkit.evaluate.rounds_chart import chart
from toolkit.greeting.form import script_of
from toolkit.models.training import read_metrics
from toolkit.records import guess_language, read_jsonl

WATCHED = {
    "reward": "mean reward",
    "judge": "unseen judge, log-odds",
    "diversity": "diversity",
    "length": "length, words (characters)",
    "repetition": "repeated word runs",
    "form": "answers of broken form",
    "kl": "KL, nats a token",
}


# ---- texts and figures


def tag(text: str) -> str:
    """The text's BCP 47 tag: zh-Hant where it has a character that only traditional Chinese has, zh-Hans, or en."""
    if guess_language(text) != "zh":
        return "en"
    return "zh-Hant" if script_of(text) == "traditional" else "zh-Hans"


def said(text: str, element: str = "span", look: str = "") -> str:
    """A text of a person or a model, escaped, in its language, so that browsers choose the right glyphs."""
    named = f' class="{look}"' if look else ""
    return f'<{element}{named} lang="{tag(text)}">{_e(text) if text.strip() else "(nothing)"}</{element}>'


def number(value) -> str:
    if isinstance(value, dict):
        return " · ".join(f"{k} {number(v)}" for k, v in value.items())
    if isinstance(value, list):
        return " → ".join(map(number, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def grams(rows: list[dict]) -> str:
    """N-grams of reward.telling with their z."""
    return " ".join(
        f'<span class="gram">{said(str(r.get("ngram", "")))} <small>{float(r.get("z") or 0):+.1f}</small></span>'
        for r in rows
    )


def aligned_by(facts: dict) -> str:
    """The stage that aligned the writer: grpo, dpo, or "" for neither."""
    return next((name for name in ("grpo", "dpo") if name in facts), "")


# ---- judge and rewards


def unseen_judge(facts: dict) -> list[str]:
    facts = facts.get("judge") or {}
    quality = facts.get("quality") or {}
    if "all" not in quality:
        return []
    rows: dict[str, list] = {}
    for name, found in quality.items():
        if isinstance(found, dict) and "accuracy" in found:
            label = f"{name} ({found['pairs']} pairs)"
            rows[label], rows[f"{label}, length only"] = found["accuracy"], found["length_only"]
            if found.get("own"):
                rows[f"{name}: own above another's"] = found["own"]
    models = ", ".join(f"{k}: {v['model']}" for k, v in quality.items() if isinstance(v, dict) and "model" in v)
    gone = "; ".join(f"{k}: {why}" for k, why in (facts.get("left_out") or {}).items())
    return [
        "<h2>How far the unseen judge can be trusted</h2>",
        f"<p>A small regression on frozen embeddings ({_e(models)}), learnt from labelled greetings of the test side, which no "
        f"writer and no reward has seen. Below: pairs it had not seen, ordered rightly.{' Left out: ' + _e(gone) + '.' if gone else ''}</p>",
        '<div class="row single">',
        _figure(greeting_charts.bars(rows, "labelled pairs ordered rightly, %"), "Cross-validated over requests, beside “the longer one is good”. Own above another’s: a good greeting above the good one to another request. What it cannot see (an empty, unfinished or repeating answer, another language, the request again) loses by rule."),
        "</div>",
    ]  # fmt: skip


def reward_model(facts: dict) -> list[str]:
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
            f'<div class="row single">{_figure(picture, "Held-out requests, beside what length alone would get.")}</div>'
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
                out.append(f"<p>Most telling of {_e(kind)}: {grams(mine)}</p>")
    return out


def alignment(work, facts: dict) -> list[str]:
    stage = aligned_by(facts)
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
    told = [[k.replace("_", " "), number(v)] for k, v in facts[stage].items() if _shows(v)]
    return [
        f"<h2>Alignment by {stage.upper()}</h2>",
        f'<div class="row small">{"".join(pictures)}</div>' if pictures else "",
        f"<details><summary>All figures</summary>{_table(['', ''], told)}</details>",
    ]


def _shows(value) -> bool:
    """A figure, [first, last], or a small table of either: what one line can show."""
    if isinstance(value, dict):
        return 0 < len(value) <= 12 and all(not isinstance(v, dict) and _shows(v) for v in value.values())
    if isinstance(value, list):
        return len(value) == 2 and all(isinstance(v, int | float) for v in value)
    return isinstance(value, int | float | str) and not isinstance(value, bool) and value != ""


# ---- tripwire


def tripped(facts: dict) -> list[str]:
    """Where the tripwire stopped training: when, why, and what was put back."""
    found = (facts.get(aligned_by(facts)) or {}).get("tripwire") or {}
    if found.get("tripped") is None:
        return []
    back = f"step {found['kept']}" if found.get("kept") else "the start"
    climbed = "the reward climbed while " * ("reward" in found)
    return [
        f"The tripwire stopped the training at step {found['tripped']}: {climbed}"
        f"{'; '.join(found.get('reasons') or ['a guard fell'])}. What is compared here is the last good checkpoint: {back}."
    ]


def tripwire(work, facts: dict) -> list[str]:
    stage = aligned_by(facts)
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
    where = "where the reward climbed, nothing else" if "reward" in rows[0] else "nothing"
    lines = tripped(facts) or [
        f"It looked {len(rows)} times and did not trip: {where} fell beyond its limit and beyond noise."
    ]
    return [
        "<h2>The tripwire's series</h2>",
        *(f"<p>{_e(line)}</p>" for line in lines),
        f'<div class="row small">{"".join(pictures)}</div>',
        '<p class="quiet">Measured on a small probe of the same prompts at every look, which nothing trains on. Dashed: where training was stopped; ring: '
        "the checkpoint that was put back.</p>",
    ]


# ---- principles


def by_language(found: dict) -> list[tuple[str, dict]]:
    """(language, facts) of the adversarial rounds: one run a language."""
    if "language" in found:
        return [(found["language"], found)]
    found = found.get("languages") or found
    return [(k, v) for k, v in found.items() if isinstance(v, dict) and "rounds" in v]


def principles(work, found: dict) -> list[str]:
    out = []
    for language, facts in by_language(found):
        gate = facts.get("gate") or {}
        start, best = ((gate.get(k) or {}).get("accuracy") for k in ("start", "best"))
        out.append(f"<h3>{_e({'en': 'English', 'zh': 'Chinese'}.get(language, language))}</h3>")
        if start and best:
            out.append(
                f"<p>{facts.get('rounds')} rounds, {facts.get('kept')} of them kept; {_e(facts.get('stopped', ''))}. Right on "
                f"{gate.get('pairs')} held-out pairs, good and flawed counted alike: {_interval(start)} at the start, "
                f"{_interval(best)} with the list that was kept.</p>"
            )
        before, after = (facts.get(f"test_{when}") or {} for when in ("before", "after"))
        if before and after:
            lean = f" Its lean ({facts['shift']:+.2f} nats) is taken off." if facts.get("calibrated") else ""
            out.append(
                f"<p>On {after['pairs']} labelled pairs that nothing has seen: {_interval(before['accuracy'])} right before, "
                f"{_interval(after['accuracy'])} after (good ones {after['good_right']:.0%}, flawed ones {after['bad_right']:.0%}); "
                f"area under the curve {before['auc'][0]:.2f} before, {after['auc'][0]:.2f} after. A coin: 50 %, 0.50.{lean}</p>"
            )
        folder = work.of("principles")
        folder = folder / language if (folder / language).is_dir() else folder
        history = [r for r in read_jsonl(folder / "history.jsonl") if r.get("language", language) == language]
        if any(row.get("accuracy") for row in history):
            told = "Accuracy of the judging principles on held-out labelled greetings, with what was rejected; share of the generator's flawed greetings that passed as good."
            out.append(f'<div class="row single">{_figure(chart(history), told)}</div>')
        rules = (facts.get("detector") or {}).get("rules") or []
        if rules:
            items = "".join(said(rule, "li") for rule in rules)
            out.append(f"<details open><summary>The judging principles</summary><ol>{items}</ol></details>")
        for row in history:
            if row["round"] and row.get("diff"):
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


def agents(work, found: dict) -> list[str]:
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
        ("overturn_refused", "changes refused: no quote that stands"),
        ("unreflected", "verdicts without a readable reflection"),
        ("broken", "answers of broken form, judged 0 unasked"),
        ("form", "broken form, by reason"),
        ("calls", "calls, by role"),
        ("tokens", "tokens, by role"),
        ("seconds", "seconds"),
    ):
        value = found.get(key)
        if isinstance(value, list) and len(value) == 3:
            rows.append([label, _interval(value)])
        elif value not in (None, {}, []):
            rows.append([label, number(value)])
    if check := found.get("check"):
        label = f"right on {check['pairs']} labelled pairs that nothing trains on (a coin: 50 %)"
        rows.append([label, _interval(check["accuracy"])])
        shares = f"{check['good_accepted']:.0%} of the good ones accepted, {check['bad_rejected']:.0%} of the flawed ones rejected"
        rows.append(["of these", shares])
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
        verdict = row.get("reflected") if row.get("overturned") else row.get("verdict")
        kind = (
            "broken form" if row.get("broken") else "no verdict" if verdict is None else "overturned" if row.get("overturned")
            else "accepted" if verdict == 1 else "rejected"
        )  # fmt: skip
        kinds[kind].append(row)
    out = []
    for kind, rows in kinds.items():
        for row in rows[: most if kind != "broken form" else 1]:
            parts = [said(str(row.get("text", "")), "div", "text")]
            for key, label in (("merits", "For"), ("faults", "Against")):
                if items := row.get(key):
                    parts.append(f"<p>{label}:</p><ul>{''.join(said(_claim(item), 'li') for item in items)}</ul>")
            for key, label in (("broken", "Broken form"), ("reason", "Judge"), ("cause", "Reflection"), ("quote", "quoting"), ("error", "No answer")):  # fmt: skip
                if value := row.get(key):
                    value = ", ".join(value) if isinstance(value, list) else str(value)
                    parts.append(f"<p>{label}: {said(value)}</p>")
            out.append(
                f"<details><summary>{_e(kind)}: {said(str(row.get('request', '')))}</summary>"
                f'<div class="card">{"".join(parts)}</div></details>'
            )
    return out


def _claim(item) -> str:
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
