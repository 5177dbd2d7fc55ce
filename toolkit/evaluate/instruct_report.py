"""report.html of an instruct run: what was learnt, how hard it was held and by what, in one self-contained page."""

from pathlib import Path

from toolkit.evaluate import charts
from toolkit.evaluate.report import _e, _export, _figure, _settings, _table, _write_page
from toolkit.models.training import read_metrics
from toolkit.recipe import Recipe
from toolkit.records import read_jsonl

SIGNALS = {
    "none": "Nothing held this training: it is plain fine-tuning.",
    "constant": "Every answer was held alike.",
    "random": "The risks were shuffled among the answers: a control, not a protection.",
    "probe": "The probe of the base model's hidden states told the risk of each request.",
    "critic": "A critic scored each answer from 1 (harmless) to 5 (does what a harmful request asks).",
    "both": "The probe and the critic were asked; the higher risk counted.",
}
RISKIEST = 8  # rows shown


def write_instruct_report(recipe: Recipe, work, path: Path) -> None:
    """Assemble the page from the finished stages of `work` (a runner.Work)."""
    body = [
        *_card(work),
        *_training(recipe, work),
        *(_risks(work) if work.has("risk") else []),
        *_export(work),
        *_settings(recipe, work),
    ]
    _write_page(recipe, body, path)


def _card(work) -> list[str]:
    """The safety card's sentences and picture."""
    facts = work.card("safety")["facts"]
    lines = "".join(f"<p>{_e(line)}</p>" for line in facts["lines"])
    picture = (work.of("safety") / "safety.svg").read_text(encoding="utf-8")
    return [f'<div class="verdict">{lines}</div>', _figure(picture, "Before and after, with 95 % intervals.")]


def _training(recipe: Recipe, work) -> list[str]:
    facts, rows = work.card("sft")["facts"], read_metrics(work.of("sft"))
    out = [
        "<h2>Training</h2>",
        f"<p>{facts['rows']} answers, {facts['steps']} steps; {facts['too_long']} left out as too long. {SIGNALS[recipe.safety.signal]}</p>",
        '<div class="row">',
        _figure(charts.curves(rows, {"loss": "loss"}, "Training loss"), "Loss of each step."),
    ]
    if "beta" in facts:
        out.append(
            _figure(
                charts.curves(
                    rows, {"safety/beta": "β", "safety/kl": "KL, nats a token"}, "How hard each step was held"
                ),
                f"β, the weight of the divergence from the base, mean of each batch ({facts['beta'][2]:.2f} over all), and that divergence "
                f"({facts['kl'][1]:.3f} nats a token at the end).",
            )
        )
    return [*out, "</div>"]


def _risks(work) -> list[str]:
    facts = work.card("risk")["facts"]
    low, middle, high = facts["quantiles"]
    text = f"Mean risk {facts['mean']:.2f}; the middle 90 % lie between {low:.2f} and {high:.2f}, half below {middle:.2f}. "
    text += f"{facts['over_half']:.0%} of the answers have a risk of one half or more."
    if failed := facts.get("critic", {}).get("failed"):
        told = ", ".join(f"{n} × {reason}" for reason, n in failed.items())
        text += f" The critic had no score for {sum(failed.values())} of them, which count as fully risky ({told})."
    data = read_jsonl(work.of("data") / "train.jsonl")
    risks = [row["risk"] for row in read_jsonl(work.of("risk") / "risk.jsonl")]
    worst = sorted(zip(risks, data, strict=True), key=lambda pair: -pair[0])[:RISKIEST]
    shown = [[_last(row["prompt"])[:160], f"{risk:.2f}"] for risk, row in worst]
    return ["<h2>Risk</h2>", f"<p>{_e(text)}</p>", _table(["riskiest requests", "risk"], shown)]


def _last(prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]
