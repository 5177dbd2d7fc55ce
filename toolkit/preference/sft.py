"""Cold start: supervised fine-tuning with LoRA on good answers, by TRL's SFTTrainer."""

from pathlib import Path

from toolkit.engines.base import defused
from toolkit.errors import UserError
from toolkit.models.load import load_tokenizer
from toolkit.models.resolve import Model
from toolkit.models.training import Log, in_float32, last_checkpoint, passes, policy, trainer_settings
from toolkit.recipe import ModelSettings, SftSettings


def train_sft(
    base: Model,
    rows: list[tuple[str, str]],
    settings: SftSettings,
    weights: ModelSettings,
    out: Path,
    seed: int = 1,
) -> dict:
    """Teach `base` to answer as `rows` (prompt, answer) do; the adapter lands in out/adapter. Goes on from the last checkpoint.

    L = −mean log π(token) over the answers' tokens of a batch, the template's end of turn among them; the prompt costs nothing.

    Returns:
        Facts: rows used, too_long (left out), steps, loss [first, last].

    Raises:
        UserError: no row is short enough.
    """
    from datasets import Dataset
    from transformers import PrinterCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    tokenizer = load_tokenizer(base)
    turns = [
        defused([{"role": "user", "content": p}, {"role": "assistant", "content": a}], tokenizer.all_special_tokens)
        for p, a in rows
    ]
    lengths = [len(tokenizer.apply_chat_template(t, return_dict=False)) for t in turns]
    kept = [
        {"prompt": t[:1], "completion": t[1:]} for t, n in zip(turns, lengths, strict=True) if n <= settings.max_tokens
    ]
    if not kept:
        raise UserError(
            f"none of the {len(rows)} answers is within sft.max_tokens = {settings.max_tokens} "
            f"(shortest: {min(lengths, default=0)})",
            "raise sft.max_tokens, or give more answers",
        )
    set_seed(seed)
    model, lora = policy(base, weights, settings.lora, settings.gradient_checkpointing)
    args = trainer_settings(out, seed=seed, **passes(settings))
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**args, max_length=None, completion_only_loss=True),
        train_dataset=Dataset.from_list(kept),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[Log(out, "sft")],
    )
    trainer.remove_callback(PrinterCallback)
    in_float32(trainer.model)
    trainer.train(resume_from_checkpoint=last_checkpoint(out))
    trainer.model.save_pretrained(str(out / "adapter"))
    history = [h for h in trainer.state.log_history if "loss" in h]
    return {
        "rows": len(kept),
        "too_long": len(rows) - len(kept),
        "steps": trainer.state.global_step,
        "loss": [round(float(history[at]["loss"]), 4) for at in (0, -1)],
    }
