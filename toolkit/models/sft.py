"""Supervised fine-tuning with LoRA on good answers, by TRL's SFTTrainer: cold starts, and whoever's own instructions.

Held to its reference (models.anchor) it pays L = Σ [α · −log π_θ + β · KL(π_ref ‖ π_θ)] / tokens, over the answers' tokens of a
batch; each token has the α and β of its example.
"""

from pathlib import Path

from toolkit import together
from toolkit.engines.base import Messages, defused
from toolkit.errors import UserError
from toolkit.models.anchor import REFERENCE, Anchor, Held, RiskCollator, answer_terms, last_states, trace
from toolkit.models.load import load_tokenizer
from toolkit.models.resolve import Model
from toolkit.models.training import (
    Agree,
    FirstGradients,
    Log,
    in_float32,
    last_checkpoint,
    passes,
    policy,
    trainer_settings,
)
from toolkit.models.unsloth_road import FROM_ADAPTER, OWN_LOSS, take
from toolkit.recipe import ModelSettings, SftSettings


def train_sft(
    base: Model,
    rows: list[tuple[str | Messages, str]],
    settings: SftSettings,
    weights: ModelSettings,
    out: Path,
    seed: int = 1,
    held: Held | None = None,
    start: Path | None = None,
) -> dict:
    """Teach `base` to answer as `rows` (prompt, answer) do; the adapter lands in out/adapter. Goes on from the last checkpoint.

    L = −mean log π(token) over the answers' tokens of a batch, the template's end of turn among them; the prompt costs nothing.

    Args:
        rows: a prompt is the user's turn, or the turns before the answer.
        held: what holds the training to its reference; the β of every step stands in metrics.jsonl.
        start: an adapter to go on from; its own LoRA settings hold then.

    Returns:
        Facts (of several processes only the first has any): rows used, too_long (left out), steps, loss [first, last]; held: also beta and kl [first, last, mean].

    Raises:
        UserError: no row is short enough.
    """
    road = take(base, weights, OWN_LOSS if held else FROM_ADAPTER if start else "")
    from datasets import Dataset
    from transformers import PrinterCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    tokenizer = load_tokenizer(base)
    turns = [defused([*asked(p), {"role": "assistant", "content": a}], tokenizer.all_special_tokens) for p, a in rows]
    lengths = [len(tokenizer.apply_chat_template(t, return_dict=False)) for t in turns]
    risks = held.risks if held else [0.0] * len(rows)
    kept = [
        {"prompt": t[:-1], "completion": t[-1:], **({"risk": s} if held else {})}
        for t, n, s in zip(turns, lengths, risks, strict=True)
        if n <= settings.max_tokens
    ]
    if not kept:
        raise UserError(
            f"none of the {len(rows)} answers is within sft.max_tokens = {settings.max_tokens} "
            f"(shortest: {min(lengths, default=0)})",
            "raise sft.max_tokens, or give more answers",
        )
    set_seed(seed)
    model, lora = policy(
        base, weights, settings.lora, settings.gradient_checkpointing, start, road, settings.max_tokens
    )
    if held and start:
        model.add_adapter(REFERENCE, model.peft_config["default"])
    args = trainer_settings(out, seed=seed, **passes(settings))
    anchor = Anchor(held.settings, out) if held else None
    trainer = (_held_trainer(anchor) if held else SFTTrainer)(
        model=model,
        args=SFTConfig(**args, max_length=None, completion_only_loss=True),
        train_dataset=Dataset.from_list(kept),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[Log(out, "sft"), FirstGradients(), *([anchor.callback()] if held else []), Agree()],
    )
    trainer.remove_callback(PrinterCallback)
    if held:
        trainer.data_collator = RiskCollator(trainer.data_collator)
    in_float32(trainer.model)
    trainer.train(resume_from_checkpoint=last_checkpoint(out))
    if together.rank():  # one of several that train together: the first writes
        return {}
    trainer.model.save_pretrained(str(out / "adapter"), selected_adapters=["default"])
    history = [h for h in trainer.state.log_history if "loss" in h]
    facts = {
        "rows": len(kept),
        "too_long": len(rows) - len(kept),
        "steps": trainer.state.global_step,
        "loss": [round(float(history[at]["loss"]), 4) for at in (0, -1)],
    }
    return facts | (trace(history) if held else {})


def asked(prompt: str | Messages) -> Messages:
    """The turns before an answer."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _held_trainer(anchor: Anchor):
    from trl import SFTTrainer

    class HeldTrainer(SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            """Σ [α · nll + β · kl] / tokens of (B, T); the routers' balance loss, where there is one, counts by the mean α."""
            if return_outputs:
                raise NotImplementedError("logits are not kept: they would cost a vocabulary for every token")
            risks = inputs["risks"]
            known = {k: v for k, v in inputs.items() if k not in ("labels", "risks", "completion_mask")}
            router = {"output_router_logits": True} if self.aux_loss_enabled else {}
            inner = self.accelerator.unwrap_model(model)
            with last_states(inner) as seen:
                out = model(**known, **router, use_cache=False, logits_to_keep=1)
            reference = anchor.reference_states(inner, known)
            mask = inputs["labels"] != -100
            nll, kl, row = answer_terms(inner, seen[0], reference, inputs["input_ids"], mask)
            beta = anchor.betas(risks).to(nll.device)
            tokens = len(nll) if num_items_in_batch is None else num_items_in_batch
            loss = ((1 - beta)[row] * nll + beta[row] * kl).sum() / max(int(tokens), 1)
            if num_items_in_batch is not None:  # it counts the tokens of all processes, whose losses are averaged
                loss = loss * self.accelerator.num_processes
            if self.aux_loss_enabled:
                steps = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
                loss = loss + (1 - beta).mean() * self.router_aux_loss_coef * out.aux_loss / steps
            notes = {"nll": nll.mean(), "kl": kl.mean(), "beta": beta.mean(), "risk": risks.mean()}
            for name, value in notes.items():
                self._metrics["train"][f"safety/{name}"].append(
                    self.accelerator.gather(value.detach().to(loss)).mean().item()
                )
            return loss

    return HeldTrainer
