"""What a run will do and about how long it takes, before anything is executed. (Whether it fits: fit.py.)

Times are token counts over measured speeds of the embedded model on 2 cores (docs/results.md); a machine that is twice
as fast needs half. For other models they are scaled by the number of active parameters where a config.json tells it.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from toolkit.recipe import Recipe
from toolkit.records import read_jsonl, side_of

# tokens a second on 2 cores (AMD EPYC with AVX512-BF16, 2026-11-28); measured by whole quickstart runs
READ, JUDGE, WRITE, FEATURES = 1000.0, 800.0, 310.0, 1900.0
LOOK = 80.0  # of a tripwire's look: written, read by policy and start, rated
REWARD_STEP, DPO_STEP = {True: 435.0, False: 720.0}, {True: 150.0, False: 330.0}  # by gradient checkpointing
MADE_PLOT, ASK, DRAFT_PROMPT = 165, 55, 90  # tokens: a well-made plot, one question to the rater, prompt of a draft
CLAIM = 40  # tokens of a critic's claim or a quote
MADE_PLOTS, KINDS = 72, 6  # well-made plots that ship, kinds of damage (narrative.damage.HARM)
EMBEDDED_MILLIONS = 135.0
CHATS = 172  # answers of ours that an instruct run learns from
HOLDING = 1.4  # times as long: the reference's pass, and its logits


@dataclass(frozen=True)
class Estimate:
    """What a stage handles, and seconds (None where the model's size is unknown)."""

    size: str
    seconds: float | None


def estimate(recipe: Recipe) -> dict[str, Estimate]:
    """Stage name → size and expected seconds, for every stage a recipe may have."""
    tables = {"plot": _plot_table, "greeting": _greeting_table, "instruct": _instruct_table}
    table = tables[recipe.task](recipe)
    scale, fixed = _scale(recipe), {"premises", "requests", "data", "unseen", "report"}
    return {
        name: Estimate(size, seconds if name in fixed else None if scale is None else seconds * scale)
        for name, (size, seconds) in table.items()
    }


def _plot_table(recipe: Recipe) -> dict[str, tuple[str, float]]:
    r, made = recipe, MADE_PLOTS if recipe.premises.plots == "shipped" else 50
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
    steps = max(1, pairs * r.dpo.epochs / (r.dpo.batch * r.dpo.accumulate))
    looks = 2 + steps // r.tripwire.every if r.tripwire.every else 0
    watch = looks * r.tripwire.prompts * r.tripwire.samples * length / LOOK
    hearing = 10 * 2 * CLAIM / WRITE + 30 * (ASK + 2 * CLAIM) / READ
    return {
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
            10 + dpo_tokens / DPO_STEP[r.dpo.gradient_checkpointing] + watch,
        ),
        "export": (_export(r), 20),
        "passport": ("of the judge: found, or made once", 2),
        "evaluate": (
            f"{2 * duels} plots, {duels * 10} comparisons, {panel} plots before a panel",
            duels * (2 * length / WRITE + judging + 0.2) + 10 + panel * hearing,
        ),
        "report": ("report.html", 2),
    }


def _greeting_table(recipe: Recipe) -> dict[str, tuple[str, float]]:
    r, counts = recipe, _shipped_requests(recipe)
    train, checked = counts["train"], counts["validate"]
    answer = r.grpo.max_tokens * 0.7
    most = r.rejection.requests
    sampled = min(train, most or train)
    asked = (sampled + min(checked, (most + 2) // 3 or checked)) * r.rejection.per_request
    agents = asked * (3 * (answer + ASK + 4 * r.rejection.words) / READ + 4 * 0.7 * r.rejection.words / WRITE)
    pairs, good = sampled * r.rejection.pairs + counts["labelled"], counts["labelled"]
    rows = train * r.grpo.samples
    steps = r.grpo.steps or math.ceil(r.grpo.epochs * train / r.grpo.batch) * r.grpo.updates
    rounds = steps / r.grpo.updates
    each = min(rows, r.grpo.batch * r.grpo.samples) * (
        answer / WRITE + (answer + DRAFT_PROMPT) * 1.3 / DPO_STEP[r.grpo.gradient_checkpointing]
    )
    looks = 2 + steps // r.tripwire.every if r.tripwire.every else 0
    watch = looks * r.tripwire.prompts * r.tripwire.samples * answer / LOOK
    dpo = pairs * 2 * (answer + DRAFT_PROMPT) * r.dpo.epochs / DPO_STEP[r.dpo.gradient_checkpointing]
    tests, n = min(r.requests.test, counts["test"]), r.evaluate.per_premise
    return {
        "model": ("weights and GGUF of the base", 30),
        "requests": (f"{train} to train, {checked} to check, {tests} to test", 1),
        "sft": (f"{good} good greetings, {r.sft.epochs:g} epochs", 15 + good * r.sft.epochs * (answer + DRAFT_PROMPT) / DPO_STEP[r.sft.gradient_checkpointing]),
        "rejection": (f"{asked} answers, each before four agents", asked * answer / WRITE + agents),
        "pairs": (f"at most {pairs} pairs", 2),
        "pairwise": ("Bradley–Terry", 20 + pairs * 2 * (answer + DRAFT_PROMPT) * r.pairwise.epochs / DPO_STEP[r.pairwise.gradient_checkpointing]),
        "unseen": ("a judge of labelled greetings", 20),
        "principles": (f"at most {r.principles.rounds} rounds of {r.principles.per_round} requests", 20 + r.principles.rounds * (r.principles.per_round * 4 * r.principles.words / WRITE + 60)),
        "grpo": (f"{steps} steps, {min(rows, r.grpo.batch * r.grpo.samples)} answers a round of writing", 15 + rounds * each + watch),
        "dpo": (f"{r.dpo.loss}, {r.dpo.epochs:g} epochs of at most {pairs} pairs", 10 + dpo + watch),
        "export": (_export(r), 20),
        "evaluate": (f"{tests} requests, {n * (2 + r.evaluate.best_of)} answers to each", 15 + tests * n * (2 + r.evaluate.best_of) * answer / WRITE),
        "report": ("report.html", 2),
    }  # fmt: skip


def _instruct_table(recipe: Recipe) -> dict[str, tuple[str, float]]:
    r = recipe
    rows = CHATS if r.data.file == "shipped" else _lines(Path(r.data.file)) * 4 // 5
    rows, answer = min(rows, r.data.train or rows), min(r.sft.max_tokens, 2 * DRAFT_PROMPT)
    step = DPO_STEP[r.sft.gradient_checkpointing] / (HOLDING if r.safety.signal != "none" else 1.0)
    reads = {"probe": DRAFT_PROMPT, "critic": answer + 2 * ASK}
    kinds = 1 + bool(r.safety.harmful) + bool(r.safety.lookalikes)
    asked = 2 * r.safety.most * kinds * r.safety.max_tokens / WRITE
    return {
        "model": ("weights and GGUF of the base", 30),
        "data": (f"{rows} answers to learn, at most {r.data.test} to test", 1),
        "risk": (f"{rows} rows, by {' and '.join(r.safety.asks) or 'nobody'}", 10 + sum(rows * reads[w] / READ for w in r.safety.asks)),
        "sft": (f"{rows} answers, {r.sft.epochs:g} epochs, {'held by ' + r.safety.signal if r.safety.signal != 'none' else 'plain'}", 15 + rows * r.sft.epochs * (answer + DRAFT_PROMPT) / step),
        "export": (_export(r), 20),
        "safety": (f"{2 * kinds * r.safety.most} answers at most, {2 * r.data.test} held-out losses", 20 + asked + 2 * r.data.test * 2 * answer / READ),
        "report": ("report.html", 2),
    }  # fmt: skip


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _shipped_requests(recipe: Recipe) -> dict[str, int]:
    """How many requests a side, and labelled greetings to train on; an own file is guessed at 200."""
    data = Path(__file__).parent / "data" / "greetings"
    spoken = recipe.requests.languages
    rows = [r for r in read_jsonl(data / "requests.jsonl") if r["language"] in spoken]
    counts = {side: sum(side_of(r["id"]) == side for r in rows) for side in ("train", "validate", "test")}
    if recipe.requests.file != "shipped":
        counts = {"train": 120, "validate": 30, "test": 50}
    made = {x["request_id"] for x in read_jsonl(data / "labelled.jsonl")} & {r["id"] for r in rows}
    most = recipe.requests.train
    counts |= {side: min(counts[side], most or counts[side]) for side in ("train", "validate")}
    return {**counts, "labelled": sum(side_of(id) == "train" for id in made)}


def _export(recipe: Recipe) -> str:
    """What is handed out. Whether `auto` merges depends on the model's size, which is not asked here."""
    merged = f"GGUF {recipe.export.quantisation}"
    wanted = (
        "always" if recipe.export.merge == "auto" and recipe.model.id.startswith("embedded") else recipe.export.merge
    )
    what = {"always": f"{merged} and adapter", "never": "adapter", "auto": f"adapter, and {merged} below 8B parameters"}
    return f"{what[wanted]}, with proof"


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
