"""Safe fine-tuning by risk: one call for every signal and every control (docs/safety.md)."""

import random
from pathlib import Path

from toolkit.models.anchor import Held
from toolkit.models.resolve import Model
from toolkit.models.sft import train_sft
from toolkit.recipe import ModelSettings, SafetySettings, SftSettings


def hold(risks: list[float], settings: SafetySettings, seed: int = 1) -> Held | None:
    """What holds a training whose rows have these risks; None where nothing does.

    none: plain training. constant: beta_max for every row. random: the same risks, shuffled among the rows, so that β has the same
    mean and spread and no meaning. Else the risks as they are.
    """
    if settings.signal == "none":
        return None
    if settings.signal == "constant":
        risks = [1.0] * len(risks)
    if settings.signal == "random":
        risks = random.Random(f"{seed}:risks").sample(risks, len(risks))
    return Held(list(risks), settings)


def train_safe(
    base: Model,
    rows: list[dict],
    risks: list[float],
    settings: SftSettings,
    safety: SafetySettings,
    weights: ModelSettings,
    out: Path,
    seed: int = 1,
    start: Path | None = None,
) -> dict:
    """Fine-tune `base` on rows {"prompt", "answer"}, held to its reference by `risks`; models.sft.train_sft says the rest.

    Args:
        risks: one a row, 0 … 1. With signal none or constant they are not looked at.
        settings, safety, weights: the recipe's `sft`, `safety` and `model` sections.
        start: an adapter to go on from. It is then the reference too, as it is now, unless safety.reference is base.

    Returns:
        Facts of train_sft. The adapter is in out/adapter; out/metrics.jsonl has a line a step: loss, and where the training
        is held safety/nll, safety/kl (nats a token), safety/beta and safety/risk (means over the batch).
    """
    pairs = [(row["prompt"], row["answer"]) for row in rows]
    return train_sft(base, pairs, settings, weights, out, seed, hold(risks, safety, seed), start)
