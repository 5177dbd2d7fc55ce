"""What every training stage shares: one Trainer set-up that resumes, a progress bar with time left, metrics on disk."""

import json
import math
import os
from pathlib import Path

import torch
from transformers import TrainerCallback

from toolkit import together
from toolkit.errors import ProofError, UserError
from toolkit.models.audit import require_four_bit
from toolkit.models.load import checkpoint, load_model, lora_config, pick_dtype, prepare_four_bit, wear, weights_folder
from toolkit.models.resolve import Model
from toolkit.models.unsloth_road import Road, accelerated
from toolkit.progress import bar, say
from toolkit.recipe import LoraSettings, ModelSettings

CHECKPOINTS, METRICS, TENSORBOARD, WHOLE = "checkpoints", "metrics.jsonl", "tensorboard", "whole"


def trainer_settings(out: Path, *, seed: int, save_every: int, **more) -> dict:
    """Keyword arguments for transformers' TrainingArguments (or TRL's): logs every step, saves every `save_every`.

    The same seed, data and machine give the same weights whether or not the run was interrupted (CPU).
    """
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(out / TENSORBOARD)
    return {
        "output_dir": str(out / CHECKPOINTS),
        "seed": seed,
        "data_seed": seed,
        "logging_steps": 1,
        "save_steps": save_every,
        "save_strategy": "steps",
        "save_total_limit": 2,
        "report_to": ["tensorboard"],
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0,
        "ddp_timeout": together.PATIENCE,
        **more,
    }


def policy(
    base: Model,
    weights: ModelSettings,
    lora: LoraSettings,
    checkpointing: bool,
    start: Path | None = None,
    road: Road | None = None,
    most_tokens: int = 4096,
):
    """(model, peft config) for a TRL trainer: what is trained.

    Args:
        checkpointing: gradient checkpointing.
        start: an adapter to go on from; the model then wears it and the config is None (its own LoRA settings hold).
        road: what `unsloth_road.take` chose; unsloth's model wears its adapter already. Stock libraries when None.
        most_tokens: longest sequence, which unsloth wants to know.
    """
    if road and road.unsloth:
        dtype = pick_dtype(weights.dtype)
        model = accelerated(base, weights_folder(base), weights, lora, checkpointing, dtype, most_tokens)
        if weights.four_bit:
            require_four_bit(model, weights.least_4bit)
        return model, None
    model = load_model(base, dtype=weights.dtype, four_bit=weights.four_bit, least_4bit=weights.least_4bit)
    model.config.use_cache = False
    if weights.four_bit:
        prepare_four_bit(model)
    if checkpointing:
        checkpoint(model)
    if start is None:
        return model, lora_config(model, lora)
    return wear(model, start, trainable=True), None


def in_float32(model) -> None:
    """Trainable weights to float32 (TRL makes a quantised model's bfloat16, which loses small steps), and the reference
    adapter, where there is one, to the very same values: what starts in two precisions does not start level.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if "ref" in getattr(model, "peft_config", {}):
                model.get_parameter(name.replace(".default.", ".ref.")).data = parameter.data.clone()


def passes(settings) -> dict:
    """What a recipe section's batch, accumulate, epochs and lr mean to a trainer. Checkpointing is switched on at the model.

    Several processes share what the recipe calls a step, so that their number changes nothing. Raises UserError where a step
    cannot be shared evenly.
    """
    processes = together.count()
    accumulate = getattr(settings, "accumulate", 1)
    rows = settings.batch * accumulate
    if rows % processes:
        raise UserError(
            f"{processes} processes cannot share a step of {rows} (batch {settings.batch} × accumulate {accumulate})",
            "start as many processes as divide it, or change batch or accumulate",
        )
    batch = math.gcd(settings.batch, rows // processes)
    return {
        "save_every": settings.save_every,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": rows // processes // batch,
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.lr,
        "gradient_checkpointing": False,
        "bf16": False,
    }


def last_checkpoint(out: Path) -> str | None:
    """The newest whole checkpoint in a stage's folder: one that a kill cut short lacks the trainer's state, or, of several
    processes, the mark that all have written their part."""
    found = [p for p in (out / CHECKPOINTS).glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
    found = [p for p in found if (p / WHOLE).is_file() or not (p / "rng_state_0.pth").exists()]
    return str(max(found, key=lambda p: int(p.name.split("-")[1]))) if found else None


class Log(TrainerCallback):
    """Progress bar and metrics.jsonl (one line a step: what the trainer logged). Lines after a resumed step are redone."""

    def __init__(self, out: Path, desc: str, show: str = "loss"):
        self.path, self.desc, self.show, self.bar = out / METRICS, desc, show, None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            rows = read_metrics(self.path.parent)
            self.path.write_text("".join(json.dumps(r) + "\n" for r in rows if r["step"] <= state.global_step))
        self.bar = bar(total=state.max_steps, desc=self.desc, unit="step", initial=state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            if self.show in logs:
                self.bar.set_postfix_str(f"{self.show} {float(logs[self.show]):.3f}", refresh=False)
            with self.path.open("a") as file:
                known = {k: float(v) for k, v in logs.items() if v is not None}  # None: TRL's mean of nothing
                file.write(json.dumps({"step": state.global_step, **known}) + "\n")

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


class Agree(TrainerCallback):
    """Of several processes only the first sees what it decides by: whether to stop, it tells the others. And a checkpoint is whole
    when all have written their part. Stands behind the callbacks that decide."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if together.count() > 1:
            told = torch.tensor(float(control.should_training_stop), device=next(model.parameters()).device)
            torch.distributed.broadcast(told, 0)
            control.should_training_stop = bool(told)
        return control

    def on_save(self, args, state, control, **kwargs):
        if together.count() > 1:
            torch.distributed.barrier()
            if state.is_world_process_zero:
                (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE).touch()


class FirstGradients(TrainerCallback):
    """Looks before the first update whether everything that should learn can: an adapter beside the path of the computation
    would be trained for hours, saved, and change nothing.

    A router may send no token of the first step to an expert: its part of the adapter then has a gradient of zeros, which is
    said, not refused. Raises ProofError when a trainable parameter has no gradient at all.
    """

    def __init__(self):
        self.looked = False

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.looked:
            return
        self.looked = True
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        without = [name for name, p in trained.items() if p.grad is None]
        if without or not trained:
            raise ProofError(
                f"{len(without)} of {len(trained)} adapter parameters got no gradient in the first step, first {', '.join(without[:3])}"
            )
        asleep, experts = 0, 0
        for name, p in trained.items():
            module = model.get_submodule(name.partition(".lora_B")[0]) if ".lora_B" in name else None
            count = getattr(module, "num_experts", 1)
            if count > 1:
                experts += count
                asleep += int((p.grad.view(p.shape[0], -1, count).abs().sum((0, 1)) == 0).sum())
        if asleep:
            say(f"  no token of the first step reached {asleep} of {experts} adapted expert matrices")


def read_metrics(folder: Path) -> list[dict]:
    """The logged steps of a training stage, oldest first; a torn last line is left out."""
    path = folder / METRICS
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
