"""What a run will do and about how long it takes, before anything is executed.

Times are token counts over measured speeds of the embedded model on 2 cores (docs/results.md); a machine that is twice
as fast needs half. For other models they are scaled by the number of active parameters where a config.json tells it.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from toolkit.models.resolve import EMBEDDED, resolve
from toolkit.narrative.damage import HARM
from toolkit.recipe import Recipe
from toolkit.runner import plan, stage_keys, stands

# tokens a second on 2 cores (AMD EPYC with AVX512-BF16, 2026-11-21); measured by whole quickstart runs
READ, JUDGE, WRITE, FEATURES, REWARD_STEP, DPO_STEP = 900.0, 430.0, 160.0, 1900.0, 435.0, 120.0
MADE_PLOT, ASK, DRAFT_PROMPT = 165, 55, 90  # tokens: a well-made plot, one question to the rater, prompt of a draft
EMBEDDED_MILLIONS = 135.0


@dataclass(frozen=True)
class Estimate:
    """One stage: what it handles, and seconds (None where the model's size is unknown)."""

    stage: str
    size: str
    seconds: float | None


def estimate(recipe: Recipe) -> list[Estimate]:
    """Sizes and expected seconds of every stage of `recipe`, in order."""
    r, made = recipe, 72 if recipe.premises.plots == "shipped" else 50
    drafts = r.premises.train * r.candidates.per_premise
    pairs = min(r.pairs.max_pairs or drafts, r.premises.train * r.pairs.per_premise)
    length = r.candidates.max_tokens * 0.85
    seen = made * (1 + len(HARM) * len(r.reward.strengths)) * MADE_PLOT
    trained = 0.8 * seen + drafts * 1.25 * length
    duels = r.premises.test * r.evaluate.per_premise
    dpo_tokens = pairs * 2 * (length + DRAFT_PROMPT) * r.dpo.epochs
    rating = (length + 10 * ASK) / READ + 10 * r.ratings.reason / WRITE
    check = 2 * r.ratings.check * (MADE_PLOT + 10 * ASK) / READ
    judging = 2 * (2 * length + 5 * ASK + 60) / JUDGE
    table = {
        "model": ("weights and GGUF of the base", 30),
        "premises": (f"{r.premises.train} to train, {r.premises.test} to test, {made} plots to learn from", 1),
        "candidates": (f"{drafts} drafts of at most {r.candidates.max_tokens} tokens", drafts * length / WRITE),
        "ratings": (
            f"{drafts * 10} assessments, {2 * r.ratings.check} plots to check the rater",
            drafts * rating + check,
        ),
        "reward": (
            f"about {trained / 1000:.0f}k tokens an epoch",
            15 + seen / FEATURES + r.reward.epochs * trained / REWARD_STEP,
        ),
        "pairs": (f"at most {pairs} pairs", 5 + drafts * length / FEATURES) if not r.pairs.file else (r.pairs.file, 1),
        "dpo": (f"{r.dpo.epochs:g} epochs of at most {pairs} pairs", 10 + dpo_tokens / DPO_STEP),
        "export": (f"GGUF {r.export.quantisation} and adapter, with proof", 20),
        "evaluate": (f"{2 * duels} plots, {duels * 10} comparisons", duels * (2 * length / WRITE + judging + 0.2) + 10),
        "report": ("report.html", 2),
    }
    scale = _scale(recipe)
    fixed = {"premises", "report"}
    rows = []
    for stage in plan(recipe):
        size, seconds = table[stage.name]
        rows.append(
            Estimate(stage.name, size, seconds if stage.name in fixed else None if scale is None else seconds * scale)
        )
    return rows


def _scale(recipe: Recipe) -> float | None:
    """How much slower than the embedded model, by parameters; None when no config.json is at hand."""
    if recipe.model.id == EMBEDDED:
        return 1.0
    weights = resolve(recipe.model.id, recipe.model.gguf or None).weights
    if not isinstance(weights, Path):
        return None
    c = json.loads((weights / "config.json").read_text())
    try:
        hidden, layers = c["hidden_size"], c["num_hidden_layers"]
        width = c.get("moe_intermediate_size", c["intermediate_size"]) * (c.get("num_experts_per_tok") or 1)
        millions = (layers * (2.5 * hidden * hidden + 3 * hidden * width) + c["vocab_size"] * hidden) / 1e6
    except KeyError:
        return None
    return max(0.05, millions / EMBEDDED_MILLIONS)


def show_plan(recipe: Recipe, out: Path) -> str:
    """The plan as text: stages, sizes, expected time, and what stands already in `out`."""
    keys = stage_keys(recipe)
    rows, total, unknown = [], 0.0, False
    for e in estimate(recipe):
        if stands(out / e.stage, keys[e.stage]):
            time = "stands"
        elif e.seconds is None:
            time, unknown = "?", True
        else:
            time, total = _time(e.seconds), total + e.seconds
        rows.append(f"  {e.stage:<11} {time:>8}   {e.size}")
    ending = " and what is marked ?: its model's size is not known before it is fetched" if unknown else ""
    head = f"{recipe.name}: {recipe.about}\n" if recipe.about else f"{recipe.name}\n"
    needs = f"needs {recipe.memory}\n" if recipe.memory else ""
    return (
        f"{head}{needs}in {out}:\n"
        + "\n".join(rows)
        + f"\nabout {_time(total)} on 2 cores{ending}. Nothing was executed."
    )


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
