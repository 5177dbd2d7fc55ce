"""Holding a training to a frozen reference, the harder the riskier an example is (arXiv 2602.17546): L = α · task + β · KL(π_ref ‖ π_θ).

The reference is the model that is trained, with its adapter off, or the adapter it started from (its copy "ref"): no second
model. The vocabulary's logits are made a few tokens at a time and again for the gradient, so that they are never there whole.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint
from transformers import TrainerCallback

from toolkit.recipe import SafetySettings
from toolkit.records import append_jsonl, read_jsonl, write_jsonl

REFERENCE = "ref"  # name of the frozen copy of the adapter that training started from, as TRL calls it
BLOCK = 64 * 2**20  # bytes of one block of float32 logits; seven times that is alive at the peak (docs/results.md)
EMA = "risk_ema.jsonl"

Head = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Held:
    """What is held and how hard: one risk in 0 … 1 a row of the training, and the recipe's `safety` section."""

    risks: list[float]
    settings: SafetySettings


class Anchor:
    """β of each example of a batch, and the KL divergence that it weighs. One for one training.

    Args:
        out: the stage's folder; where risks are smoothed, their running mean is kept there step by step, so that a resumed
            training goes on as if nothing had been.
    """

    def __init__(self, settings: SafetySettings, out: Path):
        self.settings, self.file, self.mean = settings, Path(out) / EMA, None

    def betas(self, risks: torch.Tensor) -> torch.Tensor:
        """(B,) weights of the KL term for risks (B,), without gradient. α is what is left to 1.

        Smoothed risk s̃ = λ · m + (1 − λ) · s, m the running mean of the batches before (after this batch it is the mean of
        the s̃). With `per: batch` every example has the mean of the batch's β, as in the released code.
        """
        s, ema = risks.detach().float(), self.settings.ema
        if ema:
            s = (1 - ema) * s + ema * (float(s.mean()) if self.mean is None else self.mean)
            self.mean = float(s.mean())
        found = beta_of(s, self.settings)
        return found.mean().expand_as(found) if self.settings.per == "batch" else found

    def reference_states(self, model, inputs: dict) -> torch.Tensor:
        """Last hidden states (B, T, H) of the reference on the same tokens, without gradient.

        Args:
            model: the PEFT model. inputs: input_ids, attention_mask … of its forward pass.
        """
        from trl.trainer.utils import use_adapter

        started = self.settings.reference == "start" and REFERENCE in model.peft_config
        with torch.no_grad(), use_adapter(model, REFERENCE if started else None), last_states(model) as seen:
            model(**inputs, use_cache=False, logits_to_keep=1)
        return seen[0]

    def callback(self) -> TrainerCallback:
        return _Callback(self)


class _Callback(TrainerCallback):
    """Keeps the running mean of risks: written before the step's checkpoint is, read where a training is resumed."""

    def __init__(self, anchor: Anchor):
        self.anchor = anchor

    def on_train_begin(self, args, state, control, **kwargs):
        rows = [row for row in read_jsonl(self.anchor.file) if row["step"] <= state.global_step]
        if rows or self.anchor.file.exists():
            write_jsonl(self.anchor.file, rows)
        self.anchor.mean = rows[-1]["mean"] if rows else None

    def on_step_end(self, args, state, control, **kwargs):
        if self.anchor.settings.ema:
            append_jsonl(self.anchor.file, [{"step": state.global_step, "mean": self.anchor.mean}])


def beta_of(risk, settings: SafetySettings):
    """Risk in 0 … 1 (a number or a tensor) → β.

    linear: β_min + (β_max − β_min) · s (the paper); clamp: s brought into [β_min, β_max] (the released code, whose s is
    (r − 2) / 3 of the critic's score r).
    """
    low, high = settings.beta_min, settings.beta_max
    if settings.map == "linear":
        return low + (high - low) * risk
    return risk.clamp(low, high) if isinstance(risk, torch.Tensor) else min(max(risk, low), high)


@contextmanager
def last_states(model) -> Iterator[list[torch.Tensor]]:
    """Collects the last hidden states (B, T, H) of every forward pass inside: what goes into the head, with its gradient.

    A hook, so that a trainer's own pass can be read and none is made twice, and so that routers' losses are the model's own.
    """
    seen: list[torch.Tensor] = []
    backbone = (model.get_base_model() if hasattr(model, "peft_config") else model).base_model
    hook = backbone.register_forward_hook(lambda module, args, out: seen.append(out[0]))
    try:
        yield seen
    finally:
        hook.remove()


def head_of(model) -> Head:
    """Hidden states (N, H) → float32 logits (N, V), as this model makes them: scaled or capped where its kind does that.

    The kinds that scale are those TRL's own fused head knows (trl.trainer.utils.add_fused_lm_head).
    """
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    head, config = inner.get_output_embeddings(), inner.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    named = (getattr(config, name, None) for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"))
    scale = next((s for s in named if s is not None), None)
    if scale is None and getattr(config, "logits_scaling", None) is not None:
        scale = config.logits_scaling if config.model_type == "hyperclovax" else 1 / config.logits_scaling

    def logits(states: torch.Tensor) -> torch.Tensor:
        found = head(states.to(head.weight.device)).float()
        found = found if scale is None else found * scale
        return found if cap is None else cap * torch.tanh(found / cap)

    return logits


def token_terms(head: Head, states: torch.Tensor, reference: torch.Tensor, targets: torch.Tensor, vocabulary: int):
    """(−log π_θ(target) (N,), KL(π_ref ‖ π_θ) over the whole vocabulary (N,)), in nats, of N tokens.

    Args:
        states, reference: (N, H) of the model, with gradient, and of the reference.
        targets: (N,) token ids.
        vocabulary: V; decides how many tokens go through the head at once (BLOCK).
    """
    size = max(1, BLOCK // (4 * vocabulary))
    nll, kl = [], []
    for at in range(0, len(targets), size):
        part = slice(at, at + size)
        more = {"use_reentrant": False, "preserve_rng_state": False}
        a, b = checkpoint(_block_terms, head, states[part], reference[part], targets[part], **more)
        nll.append(a)
        kl.append(b)
    if not nll:
        return states.new_zeros(0, dtype=torch.float32), states.new_zeros(0, dtype=torch.float32)
    return torch.cat(nll), torch.cat(kl)


def _block_terms(head: Head, states, reference, targets):
    with torch.no_grad():
        known = head(reference)
    return _Terms.apply(head(states), known, targets)


class _Terms(torch.autograd.Function):
    """(nll (N,), kl (N,)) of logits (N, V) and the reference's.

    The gradient is written out, softmax(logits) − softmax(known), so that it is exactly 0 where the two are alike: Adam makes
    whole steps of a gradient that is only rounding.
    """

    @staticmethod
    def forward(ctx, logits, known, targets):
        targets = targets.to(logits.device)
        log_q, log_p = logits.log_softmax(-1), known.log_softmax(-1)
        ctx.save_for_backward(log_q, log_p, targets)
        return -log_q.gather(-1, targets[:, None])[:, 0], (log_p.exp() * (log_p - log_q)).sum(-1)

    @staticmethod
    def backward(ctx, by_nll, by_kl):
        log_q, log_p, targets = ctx.saved_tensors
        q = log_q.exp()
        gradient = (q - log_p.exp()).mul_(by_kl[:, None]).addcmul_(q, by_nll[:, None])
        return gradient.scatter_add_(-1, targets[:, None], -by_nll[:, None]), None, None


def answer_terms(model, states: torch.Tensor, reference: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor):
    """`token_terms` of the tokens of ids (B, T) where mask (B, T) is 1: (nll (N,), kl (N,), row of each token (N,))."""
    own = mask[:, 1:].bool()
    nll, kl = token_terms(
        head_of(model), states[:, :-1][own], reference[:, :-1][own], ids[:, 1:][own], _vocabulary(model)
    )
    return nll, kl, own.nonzero()[:, 0].to(nll.device)


def _vocabulary(model) -> int:
    return model.config.get_text_config().vocab_size


def row_sums(values: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """(count,) sum of the values (N,) that belong to each row."""
    return values.new_zeros(count).index_add(0, rows, values)


def trace(history: list[dict]) -> dict:
    """{"beta", "kl": [first, last, mean]} of a held training's logged steps; KL in nats a token, not weighted."""
    found = {}
    for key in ("beta", "kl"):
        values = [float(h[f"safety/{key}"]) for h in history if h.get(f"safety/{key}") is not None]
        found[key] = [round(v, 5) for v in (values[0], values[-1], sum(values) / len(values))]
    return found


class RiskCollator:
    """Puts the examples' `risk` beside what a trainer's own collator makes: `risks` (B,)."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, examples: list[dict]) -> dict:
        risks = torch.tensor([float(e["risk"]) for e in examples])
        return {**self.inner([{k: v for k, v in e.items() if k != "risk"} for e in examples]), "risks": risks}
