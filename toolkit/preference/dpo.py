"""Preference training with LoRA on TRL's DPO trainer: DPO, DDPO, ORPO, DORPO.

The reference is the same model with its adapter off, or, where training starts from an adapter, that adapter as it was
(TRL keeps a copy named "ref"); ORPO and DORPO have none.
"""

from pathlib import Path

from toolkit import together
from toolkit.errors import ProofError, UserError
from toolkit.models.anchor import Anchor, Held, trace
from toolkit.models.load import fingerprint, load_tokenizer
from toolkit.models.resolve import Model, digest
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
from toolkit.preference.tripwire import Tripwire
from toolkit.progress import say
from toolkit.recipe import WEIGHTED, DpoSettings, ModelSettings
from toolkit.records import PreferencePair

STEP0_TOLERANCE = 1e-3  # reward margin (β · nats) before the first update: adapter on and off must be the same model


def train_dpo(
    base: Model,
    pairs: list[PreferencePair],
    settings: DpoSettings,
    weights: ModelSettings,
    out: Path,
    seed: int = 1,
    deviation: list[float] | None = None,
    start: Path | None = None,
    tripwire: Tripwire | None = None,
    held: Held | None = None,
) -> dict:
    """Align `base` on `pairs`; the adapter lands in out/adapter. Goes on from the last checkpoint in `out`.

    dpo: L = −log σ(β · [log π(c)/π_ref(c) − log π(r)/π_ref(r)])  (Rafailov et al. 2023), c chosen, r rejected, sums
    over answer tokens, by TRL itself. The other losses: preference.losses.

    Args:
        settings, weights: the recipe's `dpo` and `model` sections.
        deviation: weight of each pair's chosen answer, for ddpo and dorpo.
        start: an adapter to go on from, such as the cold start's; its own LoRA settings hold then.
        tripwire: stops when reward climbs while what it does not see falls; the adapter is then the last good one.
        held: what holds each pair's chosen answer to the safe reference besides (preference.trainer.trainer_for).

    Returns:
        Facts (of several processes only the first has any): pairs used and left out, steps, first and last loss, margin and accuracy, the tripwire's, and beta and kl where held.

    Raises:
        UserError: no pair is short enough, every pair weighs nothing, or router_aux is asked of a model without routers.
        ProofError: the reward margin before the first update is not 0.
    """
    own_loss = held or settings.loss != "dpo"
    road = take(base, weights, OWN_LOSS if own_loss else FROM_ADAPTER if start else "")
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback, set_seed
    from trl import DPOConfig, DPOTrainer

    from toolkit.preference.shared import PairsAsTheyAre, shared_trainer_for, why_plain
    from toolkit.preference.trainer import PairCollator, trainer_for

    tokenizer = load_tokenizer(base)
    rows = [chat_row(p) for p in pairs]
    if settings.loss in WEIGHTED:
        rows = [{**row, "weight": w} for row, w in zip(rows, deviation or [], strict=True)]
    if held:
        rows = [{**row, "risk": s} for row, s in zip(rows, held.risks, strict=True)]
    lengths = [
        max(
            len(tokenizer.apply_chat_template(r["prompt"] + r[side], return_dict=False))
            for side in ("chosen", "rejected")
        )
        for r in rows
    ]
    kept = [r for r, n in zip(rows, lengths, strict=True) if n <= settings.max_tokens]
    if not kept:
        raise UserError(
            f"none of the {len(pairs)} pairs is within dpo.max_tokens = {settings.max_tokens} (shortest: {min(lengths, default=0)})",
            "raise dpo.max_tokens, or give pairs (pairs.margin decides how many there are)",
        )
    if settings.loss in WEIGHTED and not any(r["weight"] > 0 for r in kept):
        raise UserError(
            f"every chosen answer of the {len(kept)} pairs is its premise's least deviating one: their weights are all 0",
            "set deviation.floor above 0, or write more candidates a premise",
        )

    class Step0(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if settings.loss in ("orpo", "dorpo"):  # no reference, so nothing to start level with
                return
            if state.global_step == 1 and logs and abs(float(logs.get("rewards/margins", 0))) > STEP0_TOLERANCE:
                raise ProofError(
                    f"DPO starts at a reward margin of {logs['rewards/margins']}, not 0: the reference is not the base"
                )

    args = trainer_settings(out, seed=seed, **passes(settings))
    set_seed(seed)  # TRL before 1.16 draws the adapter's first weights unseeded
    model, lora = policy(
        base, weights, settings.lora, settings.gradient_checkpointing, start, road, settings.max_tokens
    )
    if settings.router_aux and not hasattr(model.config.get_text_config(), "output_router_logits"):
        raise UserError(
            f"dpo.router_aux = {settings.router_aux:g}, but {base.id} has no routers to balance", "set it to 0"
        )
    anchor = Anchor(held.settings, out) if held else None
    why = "unsloth has its own passes" if road.unsloth else "the training is held by risk" if anchor else ""
    why = why or why_plain(model, token_ids(tokenizer, kept[0]))
    loss = "ddpo" if settings.loss == "dpo" else settings.loss  # with every weight 1 they are the same to the last bit
    if not why:
        known = repr((fingerprint(base), start and digest(sorted(start.glob("*.safetensors"))), weights))
        trainer_class, collator = shared_trainer_for(loss, settings.odds, out, known), PairsAsTheyAre()
    elif settings.loss == "dpo" and not anchor:
        trainer_class, collator = DPOTrainer, None
    else:
        trainer_class, collator = trainer_for(loss, settings.odds, anchor), PairCollator(tokenizer.pad_token_id)
    if why:
        say(f"  pairs are read the plain way: {why}")
    trainer = trainer_class(
        model=model,
        args=DPOConfig(**args, beta=settings.beta, max_length=None, router_aux_loss_coef=settings.router_aux),
        train_dataset=Dataset.from_list(kept),
        processing_class=tokenizer,
        data_collator=collator,
        peft_config=lora,
        callbacks=[
            Step0(),
            Log(out, "dpo"),
            FirstGradients(),
            *([tripwire.callback(tokenizer)] if tripwire else []),
            *([anchor.callback()] if anchor else []),
            Agree(),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    in_float32(trainer.model)
    trainer.train(resume_from_checkpoint=last_checkpoint(out))
    if together.rank():  # one of several that train together: the first writes
        return {}
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(str(out / "adapter"), selected_adapters=["default"])
    history = [h for h in trainer.state.log_history if "loss" in h]
    facts = {
        "loss_kind": settings.loss,
        "pairs": len(kept),
        "too_long": len(rows) - len(kept),
        "steps": trainer.state.global_step,
    }
    for name, key in (("loss", "loss"), ("margin", "rewards/margins"), ("accuracy", "rewards/accuracies")):
        facts[name] = [round(float(history[at][key]), 4) for at in (0, -1)]
    if held:
        facts |= trace(history)
    if tripwire:
        facts["tripwire"] = tripwire.finish(out / "adapter")
    return facts


def token_ids(tokenizer, row: dict) -> tuple[list[int], list[int], list[int]]:
    """(prompt, chosen, rejected) of a `chat_row`, cut where TRL cuts: the answers begin where they leave the prompt."""
    read = lambda messages, **more: tokenizer.apply_chat_template(messages, return_dict=False, **more)  # noqa: E731
    prompt = read(row["prompt"], add_generation_prompt=True)
    both = [read(row["prompt"] + row[side]) for side in ("chosen", "rejected")]
    alike = [own == a == b for own, a, b in zip(prompt, *both, strict=False)]
    cut = alike.index(False) if False in alike else len(alike)
    return prompt[:cut], both[0][cut:], both[1][cut:]


def chat_row(pair: PreferencePair) -> dict:
    """A pair in TRL's conversational form."""
    say = lambda text: [{"role": "assistant", "content": text}]  # noqa: E731
    return {
        "prompt": [{"role": "user", "content": pair.prompt}],
        "chosen": say(pair.chosen),
        "rejected": say(pair.rejected),
    }
