"""A generative rater: the reward model's ratings, taught to an ordinary chat model that llama.cpp can run.

The reward model is a PyTorch head, which no GGUF program knows. The rater answers a judge's own questions (one a dimension)
with one digit; the mean of the digits under their probabilities is the rating.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from toolkit.engines.base import Messages
from toolkit.errors import UserError
from toolkit.models.load import load_model, load_tokenizer, lora_config, prepare_four_bit
from toolkit.models.resolve import Model
from toolkit.models.training import FirstGradients, Log, last_checkpoint, read_metrics, trainer_settings
from toolkit.narrative.dimensions import SCALE
from toolkit.recipe import LoraSettings, ModelSettings
from toolkit.reward.probe import fit_probe

Questions = Callable[[str], list[Messages]]  # a text → one question a dimension, alike up to the text's end


@dataclass(frozen=True)
class RaterSettings:
    """How a rater is trained. Only the upper layers learn: the reward model's own features end two thirds up."""

    lora: LoraSettings = field(default_factory=lambda: LoraSettings(r=16, alpha=32, last_layers=12))
    lr: float = 1e-3
    epochs: float = 1.0  # passes over the texts, all questions of each
    batch: int = 2  # texts a step
    max_texts: int = 200  # drawn at random when there are more
    max_tokens: int = 512  # longest question; texts above it are left out, and counted
    save_every: int = 20  # steps between checkpoints


def target_digits(ratings: np.ndarray, options: int) -> np.ndarray:
    """Ratings (…) on SCALE → the distribution over `options` digits (…, O) whose mean is exactly the rating.

    Binomial(O − 1, p), p the rating's place on the scale. Not published; chosen because its mean is exact up to the ends of
    the scale, and log-odds of its digits are linear in one number: the model has one direction to learn, along which the
    gradient is the error of the mean. (All mass on the two nearest digits has the same mean, but a kink at every digit.)
    """
    share = (np.asarray(ratings, dtype=np.float64)[..., None] - SCALE[0]) / (SCALE[1] - SCALE[0])
    k, n = np.arange(options), options - 1
    return np.array([math.comb(n, i) for i in k]) * share**k * (1 - share) ** (n - k)


def option_tokens(tokenizer, options: Sequence[str]) -> list[int]:
    """The first token of each option. Raises UserError when two are alike: the model cannot tell such answers apart."""
    firsts = [tokenizer(o, add_special_tokens=False)["input_ids"][0] for o in options]
    if len(set(firsts)) < len(firsts):
        raise UserError(f"two of {', '.join(options)} begin with the same token", "take another base model")
    return firsts


def encode(tokenizer, questions: list[Messages]) -> tuple[list[int], list[list[int]]]:
    """One text's questions in the chat template, the assistant's turn opened → (their common beginning, what follows it)."""
    if not tokenizer.chat_template:
        raise UserError("the base model has no chat template", "train on an instruct model")
    texts = [tokenizer.apply_chat_template(q, tokenize=False, add_generation_prompt=True) for q in questions]
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    shared, last = 0, min(map(len, rows)) - 1
    while shared < last and all(row[shared] == rows[0][shared] for row in rows):
        shared += 1
    return rows[0][:shared], [row[shared:] for row in rows]


def pad_left(rows: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), (B, T): padded on the left, so that every row's last token stands in the last column."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(r)) + r for r in rows])
    return ids, torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])


def collate(texts: list[tuple[list[int], list[list[int]]]], pad_id: int) -> dict[str, torch.Tensor]:
    """`encode`d texts (B), Q questions each → input_ids, attention_mask (B, P); tails, tails_mask (B · Q, T)."""
    ids, mask = pad_left([begin for begin, _ in texts], pad_id)
    tails, tails_mask = pad_left([tail for _, rest in texts for tail in rest], pad_id)
    return {"input_ids": ids, "attention_mask": mask, "tails": tails, "tails_mask": tails_mask}


def alike(rows: list, size: Callable, batch: int, seed: int) -> list[list]:
    """Batches of about one length: little padding. Sorted in random windows only: all texts of one length may be one writer's."""
    rows, window, batches = rows[:], 8 * batch, []
    random.Random(seed).shuffle(rows)
    for start in range(0, len(rows), window):
        part = sorted(rows[start : start + window], key=size)
        batches += [part[at : at + batch] for at in range(0, len(part), batch)]
    return batches


def digit_logps(model, batch: dict[str, torch.Tensor], digits: list[int]) -> torch.Tensor:
    """Log-probabilities of the digits as the answer's first token, among the whole vocabulary: (B · Q, O).

    A text is read once for all its questions (a step takes 3.1 s instead of 8.5 on a busy 2-core machine), through the
    model's cache, which carries gradients. Positions count real tokens only, so that padding on either side of the cut changes nothing.
    """
    mask, tails = batch["attention_mask"], batch["tails"]
    each = len(tails) // len(mask)
    place = (mask.cumsum(1) - 1).clamp(min=0)
    more = {"use_cache": True, "logits_to_keep": 1}
    cache = model(input_ids=batch["input_ids"], attention_mask=mask, position_ids=place, **more).past_key_values
    cache.batch_repeat_interleave(each)
    whole = torch.cat([mask.repeat_interleave(each, 0), batch["tails_mask"]], 1)
    place = (whole.cumsum(1) - 1).clamp(min=0)[:, mask.shape[1] :]
    read = model(input_ids=tails, attention_mask=whole, position_ids=place, past_key_values=cache, **more)
    return read.logits[:, -1].float().log_softmax(-1)[:, digits]


@torch.inference_mode()
def ask(model, tokenizer, texts: list[str], questions: Questions, options: str) -> tuple[np.ndarray, float]:
    """(ratings (N, Q) on SCALE, mean share of the vocabulary's probability that the options hold), one text at a time."""
    digits, rows = option_tokens(tokenizer, options), []
    for text in texts:
        batch = collate([encode(tokenizer, questions(text))], tokenizer.pad_token_id)
        batch = {k: v.to(model.device) for k, v in batch.items()}
        rows.append(digit_logps(model, batch, digits).double().exp().cpu().numpy())
    p = np.stack(rows)
    share = (p / p.sum(-1, keepdims=True)) @ np.arange(len(options)) / (len(options) - 1)
    return SCALE[0] + share * (SCALE[1] - SCALE[0]), float(p.sum(-1).mean())


def train_rater(
    base: Model,
    texts: list[str],
    scores: np.ndarray,
    questions: Questions,
    options: str,
    settings: RaterSettings,
    weights: ModelSettings,
    out: Path,
    seed: int = 1,
) -> dict:
    """Teach `base` to answer `questions` with the digits whose mean is the score; the adapter lands in out/adapter.

    L = mean of KL(target ‖ model) over questions, at the first token of the answer, over the whole vocabulary: a server that
    shows only its likeliest tokens then shows the digits. Goes on from the last checkpoint in `out`.

    Args:
        texts: N; those with a question above settings.max_tokens are left out.
        scores: (N, Q) on SCALE. options: the digits, lowest first.
        weights: dtype and four_bit of the frozen weights (a recipe's `model` section).

    Returns facts: texts used and left out, steps, first and last loss (mean of up to 10 steps). Raises UserError when no
    text is short enough, or the model has no chat template or no token for each digit.
    """
    from peft import get_peft_model
    from transformers import PrinterCallback, Trainer, TrainingArguments

    tokenizer = load_tokenizer(base)
    digits, targets = option_tokens(tokenizer, options), target_digits(scores, len(options))
    rows = [(*encode(tokenizer, questions(text)), target) for text, target in zip(texts, targets, strict=True)]
    size = lambda row: len(row[0]) + max(map(len, row[1]))  # noqa: E731
    kept = [row for row in rows if size(row) <= settings.max_tokens]
    if not kept:
        limit = f"{settings.max_tokens} tokens with its question"
        raise UserError(f"none of {len(rows)} texts is within {limit}", "give shorter texts, or raise max_tokens")
    batches = alike(kept, size, settings.batch, seed)

    model = load_model(base, dtype=weights.dtype, four_bit=weights.four_bit, least_4bit=weights.least_4bit)
    if weights.four_bit:
        prepare_four_bit(model)
    torch.manual_seed(seed)
    model = get_peft_model(model, lora_config(model, settings.lora))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # low-precision optimiser states lose small steps

    def prepare(drawn: list[list]) -> dict[str, torch.Tensor]:
        rows = [row for part in drawn for row in part]
        made = collate([row[:2] for row in rows], tokenizer.pad_token_id)
        return {**made, "targets": torch.tensor(np.concatenate([row[2] for row in rows]), dtype=torch.float32)}

    class RaterTrainer(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return nn.functional.kl_div(digit_logps(model, inputs, digits), inputs["targets"], reduction="batchmean")

    args = trainer_settings(
        out,
        seed=seed,
        save_every=settings.save_every,
        per_device_train_batch_size=1,  # one item is one batch made above
        num_train_epochs=settings.epochs,
        learning_rate=settings.lr,
        warmup_steps=min(10, len(batches) // 4),  # the digits' share of the vocabulary jumps at first
    )
    more = {"train_dataset": batches, "data_collator": prepare, "callbacks": [Log(out, "rater"), FirstGradients()]}
    trainer = RaterTrainer(model=model, args=TrainingArguments(**args), **more)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(out))
    read = [prepare([batch]) for batch in batches]
    places = [batch.pop("targets").numpy() @ np.linspace(0, 1, len(options)) for batch in read]
    probe = fit_probe(model, read, places, lambda m, batch: digit_logps(m, batch, digits))
    model.save_pretrained(str(out / "adapter"))
    losses = [row["loss"] for row in read_metrics(out) if "loss" in row]
    part = max(1, min(10, len(losses) // 2))
    ends = [round(float(np.mean(x)), 4) for x in (losses[:part], losses[-part:])]
    facts = {"texts": len(kept), "too_long": len(rows) - len(kept), "steps": trainer.state.global_step, "loss": ends}
    return {**facts, "probe": probe}
