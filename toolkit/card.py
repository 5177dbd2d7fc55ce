"""The model card of a run: what was made of what, how, and what was measured of it. Only what the run's own files say.

In the hub's form (YAML header, Markdown), so that it can go along with the model as README.md.
"""

import json
import os
from pathlib import Path

from toolkit.models.catalogue import catalogue
from toolkit.models.resolve import EMBEDDED, EMBEDDED_MOE
from toolkit.narrative.dimensions import DIMENSIONS

CARD = "model-card.md"
WRITES = {
    "plot": "writes a short plot for a premise",
    "greeting": "writes a greeting for an occasion",
    "instruct": "answers in the manner of the chats it learnt from",
}
EMBEDDED_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
# beginnings of hub ids → licence in the hub's spelling, the longest that fits counts; from the models' own pages
LICENCES = {
    "HuggingFaceTB/SmolLM2": "apache-2.0",
    "Qwen/Qwen3": "apache-2.0",
    "Qwen/Qwen2.5": "apache-2.0",
    "Qwen/Qwen2.5-3B": "other",
    "Qwen/Qwen2.5-72B": "other",
    "ibm-granite/": "apache-2.0",
    "mistralai/Mistral-Nemo": "apache-2.0",
    "mistralai/Mistral-Small-3": "apache-2.0",
    "mistralai/Mistral-7B": "apache-2.0",
    "allenai/OLMo": "apache-2.0",
    "baidu/ERNIE-4.5": "apache-2.0",
    "google/gemma-2": "gemma",
    "google/gemma-3": "gemma",
    "meta-llama/Llama-3.1": "llama3.1",
    "meta-llama/Meta-Llama-3.1": "llama3.1",
    "meta-llama/Llama-3.2": "llama3.2",
    "meta-llama/Llama-3.3": "llama3.3",
    "microsoft/phi-4": "mit",
}


def write_card(run: Path) -> Path | None:
    """RUN/model-card.md from what the run holds by now; None where it has exported nothing."""
    if not (run / "export" / "stage.json").is_file():
        return None
    partial = run / f"{CARD}.partial"
    partial.write_text(model_card(run), encoding="utf-8")
    os.replace(partial, run / CARD)
    return run / CARD


def model_card(run: Path) -> str:
    """The card as text. `run`: a run's folder, its stage export done."""
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    facts = {p.parent.name: json.loads(p.read_text(encoding="utf-8"))["facts"] for p in run.glob("*/stage.json")}
    base = EMBEDDED_ID if recipe["model"]["id"].startswith(EMBEDDED) else recipe["model"]["id"]
    sections = (
        _head(recipe, base, facts),
        _header(recipe, base, facts),
        _made(recipe, base, facts, run),
        _measured(recipe, facts),
        _safety(run, facts),
        _limits(recipe, facts),
        _licence(base),
    )
    return "\n".join(line for section in sections for line in section) + "\n"


def licence(base: str) -> str:
    """The licence of a base model in the hub's spelling; "other" where it is not known here or is the maker's own."""
    folder = Path(base)
    if (folder / "README.md").is_file():  # weights kept in a folder with their own card
        for line in (folder / "README.md").read_text(encoding="utf-8", errors="replace").splitlines()[1:40]:
            if line.startswith("license:"):
                return line.partition(":")[2].strip()
    known = [name for name in LICENCES if base.startswith(name)]
    if known:
        return LICENCES[max(known, key=len)]
    named = next((e for e in catalogue() if base in (e.name, e.repo)), None)
    return named.licence.lower() if named else "other"


def _head(recipe: dict, base: str, facts: dict) -> list[str]:
    import yaml

    from toolkit.hardware import package_version

    spoken = {"plot": "premises", "greeting": "requests"}.get(recipe["task"])
    head = {
        "license": licence(base),
        "base_model": base,
        "base_model_relation": "finetune" if facts["export"].get("merged", True) else "adapter",
        "language": list(recipe[spoken]["languages"]) if spoken else [],
        "pipeline_tag": "text-generation",
        "tags": ["fablesmith", "creative-writing", recipe["align"], "gguf", "lora"],
    }
    if not head["language"]:  # the user's own chats: they may be in any
        del head["language"]
    if Path(base).exists():  # a folder of this machine is nobody else's base
        del head["base_model"], head["base_model_relation"]
    about = f"{recipe['about']}.\n\n" if recipe["about"] else ""
    made = f"Made by Fablesmith {package_version('fablesmith')}. Every figure below was measured by the run that made the model."
    return ["---", yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip(), "---", "", f"# {recipe['name']}", "", about + made, ""]  # fmt: skip


def _header(recipe: dict, base: str, facts: dict) -> list[str]:
    what = WRITES[recipe["task"]]
    export = facts["export"]
    files = f"`{export['gguf']}` holds the model" if export.get("merged", True) else f"`{export['adapter']}` goes on `{Path(export['gguf']).name}`"  # fmt: skip
    return [f"It {what}. {files}; its chat template is inside, and the same prompt as in training works best (`fablesmith write`).", ""]  # fmt: skip


def _made(recipe: dict, base: str, facts: dict, run: Path) -> list[str]:
    upcycled = recipe["model"]["id"] == EMBEDDED_MOE
    rows = [
        ("base", f"{base}, each MLP copied into {facts['export']['experts']} experts" if upcycled else base),
        ("recipe", f"{recipe['name']}, seed {recipe['seed']} (all settings: `recipe.json` of the run)"),
    ]
    if "premises" in facts:
        p, own = facts["premises"], recipe["premises"]["file"] != "shipped"
        source = "the maker's own" if own else "written for Fablesmith"
        rows.append(("premises", f"{p['train']} to train on and {p['test']} to test on, {source}"))
        if p.get("plots"):
            rows.append(("well-made plots", f"{p['plots']}, {'the maker’s own' if recipe['premises']['plots'] != 'shipped' else 'written for Fablesmith'}"))  # fmt: skip
    if "requests" in facts:
        q = facts["requests"]
        rows.append(("requests", ", ".join(f"{q[k]} to {k}" for k in ("train", "validate", "test") if k in q)))
    if "data" in facts:
        d, own = facts["data"], recipe.get("data", {}).get("file") != "shipped"
        rows.append(("chats", f"{d['train']} answers to learn from, {d['test']} held out, {'the maker’s own' if own else 'written for Fablesmith'}"))  # fmt: skip
    if "pairs" in facts:
        pairs = facts["pairs"]
        left = sum(pairs["rejected"].values()) if isinstance(pairs.get("rejected"), dict) else None
        rows.append(("preference pairs", f"{pairs['pairs']} kept" + (f", {left} left out for stated reasons" if left is not None else "")))  # fmt: skip
    align = facts.get(recipe["align"], {})
    rows.append(("alignment", _alignment(recipe, align)))
    watch = align.get("tripwire")
    if watch:
        ended = (
            f"tripped at step {watch['tripped']}: {', '.join(watch['reasons'])}" if watch["tripped"] else "did not trip"
        )
        rows.append(("tripwire", f"{watch['looks']} looks, {ended}"))
    proof = facts["export"].get("proof", {})
    if "mean_difference" in proof:
        rows.append(("export", f"{facts['export'].get('quantisation', '')}; log-probabilities differ from the trained model's by {proof['mean_difference']:g} nats a token, training changed them by {proof['mean_change_from_base']:g}"))  # fmt: skip
    if (run / "manifest.json").is_file():
        manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
        seconds = sum(s["seconds"] for s in manifest["stages"])
        machine = manifest["machine"]
        rows.append(("machine", f"{machine['cores']} cores, {machine['system']}; {seconds / 60:.0f} min in all"))
    return ["## How it was made", "", "| | |", "|---|---|", *(f"| {k} | {_cell(v)} |" for k, v in rows), ""]


def _alignment(recipe: dict, facts: dict) -> str:
    settings = recipe[recipe["align"]]
    name = settings.get("loss", recipe["align"]).upper()
    beta = f", β {settings['beta']:g}" if "beta" in settings else ""
    lora = recipe.get("sft" if recipe["align"] == "grpo" else recipe["align"], {}).get("lora", {})
    said = f"{name}{beta}, learning rate {settings['lr']:g}, LoRA rank {lora.get('r', '?')}"
    if "steps" in facts:
        said += f", {facts['steps']} steps"
    if isinstance(facts.get("loss"), list) and len(facts["loss"]) == 2:
        said += f"; loss {facts['loss'][0]:.3f} → {facts['loss'][1]:.3f}"
    return said


# ---- figures


def _measured(recipe: dict, facts: dict) -> list[str]:
    lines = ["## What was measured", ""]
    found = facts.get("evaluate")
    if not found and recipe["task"] == "instruct" and "safety" in facts:
        return [*lines, "Loss on held-out answers, drift and refusals: under Safety.", ""]
    if not found:
        return [*lines, "Nothing yet: the run was not taken to its evaluation. Nothing is claimed of this model.", ""]
    line = facts.get("passport", {}).get("line")
    if line:
        lines += [f"> {line}", "", "(The passport of the judge: how far its verdicts can be trusted.)", ""]
    elif recipe["task"] == "plot":
        lines += ["The judge has no passport: how far it can be trusted was not measured.", ""]
    lines += ["Texts to prompts that were not trained on; in brackets the 95 % interval over prompts.", ""]
    lines += _greetings(found) if recipe["task"] == "greeting" else _plots(recipe, found)
    return [*lines, ""]


def _plots(recipe: dict, found: dict) -> list[str]:
    rows = ["| | base | this model | difference |", "|---|---|---|---|"]
    if reward := found.get("reward"):
        base, mine = reward["base"], reward["aligned"]
        rows.append(f"| mean reward, 1 … 10 (of the reward model it learnt from: no independent word) | {_span(base['mean'])} | {_span(mine['mean'])} | {_span(reward['gain'], sign=True)} |")  # fmt: skip
        rows += [f"| – {d.name} | {base[d.key]:.2f} | {mine[d.key]:.2f} | |" for d in DIMENSIONS if d.key in base]
    if diversity := found.get("diversity"):
        writers, gap = diversity["writers"], diversity["differences"].get("aligned", {})
        for key, name in (("semantic", "distance in meaning between answers to one premise"), ("style", "distance in style"), ("self_bleu", "self-BLEU (higher repeats more)")):  # fmt: skip
            cells = [
                _span(writers[w]["measures"][key]["value"])
                for w in ("base", "aligned")
                if key in writers[w]["measures"]
            ]
            if len(cells) == 2 and key in gap:
                rows.append(f"| {name} | {cells[0]} | {cells[1]} | {_span(gap[key]['value'], sign=True)} |")
    words = [f"Judge: {found['judge']}, {found['pairs']} pairs on {found['premises']} premises, each in both orders."]
    if found["no_verdict"] == found["pairs"]:
        words.append("It gave no verdict on any of them: by its passport none of its verdicts is to be trusted.")
    else:
        words.append(f"It preferred this model to its base in {_share(found['win_rate'])} of the pairs with a verdict (a coin: 50 %); on {found['no_verdict']} pairs it gave none.")  # fmt: skip
    return [
        *(rows if len(rows) > 2 else []),
        "",
        " ".join(words),
        *(["", found["diversity"]["sentence"]] if diversity else []),
    ]


def _greetings(found: dict) -> list[str]:
    rows = ["| writer | wins before the unseen judge | distance between answers | broken form |", "|---|---|---|---|"]
    for w in found.get("writers", []):
        wins = (w.get("unseen") or {}).get("wins")
        rows.append(f"| {w['name']} | {_share(wins) if wins else 'baseline'} | {_span(w['diversity']['mean'])} | {_share(w['broken']['share']) if w.get('broken') else '–'} |")  # fmt: skip
    quality = found.get("judge")
    say = f"The unseen judge, which nothing trained on, was itself tested: {json.dumps(quality, ensure_ascii=False)}." if quality else ""  # fmt: skip
    return [
        *rows,
        "",
        f"{found.get('requests', '?')} requests; wins are against {found.get('baseline', 'the baseline')}. {say}",
    ]


def _safety(run: Path, facts: dict) -> list[str]:
    """What `fablesmith safety` or the stage of that name found, wherever it lies."""
    found = facts.get("safety", {}).get("lines")
    for beside in (run / "safety" / "safety.json", run.parent / f"safety-{run.name}" / "safety.json"):
        if not found and beside.is_file():
            found = json.loads(beside.read_text(encoding="utf-8")).get("lines")
    if not found:
        return ["## Safety", "", "What the training did to the model's refusals and to how it can be misused was not measured (`fablesmith safety`). Assume it is no safer than its base.", ""]  # fmt: skip
    return ["## Safety", "", *(f"- {line}" for line in found), ""]


def _limits(recipe: dict, facts: dict) -> list[str]:
    lines = []
    if recipe["model"]["id"].startswith(EMBEDDED):
        upcycled = recipe["model"]["id"] == EMBEDDED_MOE
        lines.append(
            f"{'A mixture made of a' if upcycled else 'A'} model of 135 million parameters: it shows that the road works, and is no novelist. It writes English only."
        )
    lines.append(
        "It was aligned to the taste of an automatic rater. What people would say of its texts was not asked, unless a figure above says so."
    )
    lines.append("One training seed: how much another seed would change is not known.")
    warnings = [w[0].upper() + w[1:] + "." for w in facts.get("evaluate", {}).get("warnings", [])]
    return ["## Limits", "", *(f"- {line}" for line in lines + warnings), ""]


def _licence(base: str) -> list[str]:
    found = licence(base)
    if found == "other":
        return ["## Licence", "", f"That of {base}, which Fablesmith does not know or which is its maker's own: read it on the base's page before you pass this model on."]  # fmt: skip
    return [
        "## Licence",
        "",
        f"That of the base, {base}: {found}. Fablesmith itself (Apache-2.0) lays no claim to what it makes.",
    ]


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _span(value: list | None, sign: bool = False) -> str:
    """[value, low, high] → "7.28 (7.18 to 7.37)"."""
    if not value or value[0] is None:
        return "–"
    form = "{:+.2f}" if sign else "{:.2f}"
    shown = [form.format(v) if v is not None else "?" for v in value]
    return f"{shown[0]} ({shown[1]} to {shown[2]})" if len(shown) == 3 and value[1] is not None else shown[0]


def _share(value: list | None) -> str:
    if not value or value[0] is None:
        return "–"
    return f"{100 * value[0]:.0f} %" + (f" ({100 * value[1]:.0f}–{100 * value[2]:.0f})" if value[1] is not None else "")
