"""What a run will do and about how long it takes, before anything is executed.

Times are token counts over measured speeds of the embedded model on 2 cores (docs/results.md); a machine that is twice
as fast needs half. For other models they are scaled by the number of active parameters where a config.json tells it.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from toolkit.recipe import Recipe

# tokens a second on 2 cores (AMD EPYC with AVX512-BF16, 2026-11-21); measured by whole quickstart runs
READ, JUDGE, WRITE, FEATURES = 900.0, 430.0, 160.0, 1900.0
REWARD_STEP, DPO_STEP = {True: 435.0, False: 720.0}, {True: 120.0, False: 265.0}  # by gradient checkpointing
MADE_PLOT, ASK, DRAFT_PROMPT = 165, 55, 90  # tokens: a well-made plot, one question to the rater, prompt of a draft
CLAIM = 40  # tokens of a critic's claim or a quote
KINDS = 6  # of damage (narrative.damage.HARM)
EMBEDDED_MILLIONS = 135.0


@dataclass(frozen=True)
class Estimate:
    """What a stage handles, and seconds (None where the model's size is unknown)."""

    size: str
    seconds: float | None


def estimate(recipe: Recipe) -> dict[str, Estimate]:
    """Stage name → size and expected seconds, for every stage a recipe may have."""
    r, made = recipe, 72 if recipe.premises.plots == "shipped" else 50
    drafts = r.premises.train * r.candidates.per_premise
    pairs = min(r.pairs.max_pairs or drafts, r.premises.train * r.pairs.per_premise)
    length = r.candidates.max_tokens * 0.85
    seen = made * (1 + KINDS * len(r.reward.strengths)) * MADE_PLOT
    trained = 0.8 * seen + drafts * 1.25 * length
    duels = r.premises.test * r.evaluate.per_premise
    dpo_tokens = pairs * 2 * (length + DRAFT_PROMPT) * r.dpo.epochs
    rating = (length + 10 * ASK) / READ + 10 * r.ratings.reason / WRITE
    check = 2 * r.ratings.check * (MADE_PLOT + 10 * ASK) / READ
    judging = 2 * (2 * length + 5 * ASK + 60) / JUDGE
    panel = 2 * min(r.evaluate.panel, r.premises.test) * (1 + len(r.evaluate.jury))
    hearing = 10 * 2 * CLAIM / WRITE + 30 * (ASK + 2 * CLAIM) / READ
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
            15 + seen / FEATURES + r.reward.epochs * trained / REWARD_STEP[r.reward.gradient_checkpointing],
        ),
        "deviation": ("how far answers lie from each other", 15 + drafts * 0.03),
        "pairs": (f"at most {pairs} pairs", 5 + drafts * length / FEATURES) if not r.pairs.file else (r.pairs.file, 1),
        "dpo": (
            f"{r.dpo.loss}, {r.dpo.epochs:g} epochs of at most {pairs} pairs",
            10 + dpo_tokens / DPO_STEP[r.dpo.gradient_checkpointing],
        ),
        "export": (f"GGUF {r.export.quantisation} and adapter, with proof", 20),
        "passport": ("of the judge: found, or made once", 2),
        "evaluate": (
            f"{2 * duels} plots, {duels * 10} comparisons, {panel} plots before a panel",
            duels * (2 * length / WRITE + judging + 0.2) + 10 + panel * hearing,
        ),
        "report": ("report.html", 2),
    }
    scale, fixed = _scale(recipe), {"premises", "report"}
    return {
        name: Estimate(size, seconds if name in fixed else None if scale is None else seconds * scale)
        for name, (size, seconds) in table.items()
    }


def _scale(recipe: Recipe) -> float | None:
    """How much slower than the embedded model, by parameters; None when no config.json is at hand."""
    if recipe.model.id == "embedded":
        return 1.0
    config = Path(recipe.model.id) / "config.json"
    if not config.is_file():
        return None
    c = json.loads(config.read_text())
    try:
        hidden, layers = c["hidden_size"], c["num_hidden_layers"]
        width = c.get("moe_intermediate_size", c["intermediate_size"]) * (c.get("num_experts_per_tok") or 1)
        millions = (layers * (2.5 * hidden * hidden + 3 * hidden * width) + c["vocab_size"] * hidden) / 1e6
    except KeyError:
        return None
    return max(0.05, millions / EMBEDDED_MILLIONS)
