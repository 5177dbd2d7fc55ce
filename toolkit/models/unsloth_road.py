"""The accelerated road: unsloth, where it is installed, there is a GPU, and it has code of its own for the model.

The same recipe and the same PEFT adapter on disk either way. unsloth cannot be imported without an accelerator, so nothing here
is but when the road is taken; and it changes trl as it is imported, so the road is chosen before trl is.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import UserError
from toolkit.models.resolve import Model
from toolkit.models.targets import adapter_targets, of_layers
from toolkit.progress import say
from toolkit.recipe import LoraSettings, ModelSettings

# model types with kernels or 4-bit experts of unsloth's own (2026.10); it takes others too, through transformers, and gains nothing
KNOWN = (
    "llama mistral gemma gemma2 gemma3_text qwen2 qwen3 granite cohere falcon_h1 qwen3_moe qwen3_next mixtral gpt_oss "
    "glm4_moe glm4_moe_lite ernie4_5_moe lfm2_moe deepseek_v3"
).split()


OWN_LOSS = "this loss is ours, on stock trl"
FROM_ADAPTER = "it goes on from an adapter"


@dataclass(frozen=True)
class Road:
    """Whether unsloth is taken, and why (not)."""

    unsloth: bool
    why: str


def choose(base: Model, weights: ModelSettings, unless: str = "") -> Road:
    """The road for training `base`; `unless` says what of the training only stock trl does. Imports nothing of unsloth's."""
    import torch

    if unless:
        return Road(False, unless)
    if weights.unsloth == "never":
        return Road(False, "model.unsloth is never")
    if importlib.util.find_spec("unsloth") is None:
        return Road(False, "unsloth is not installed")
    if not torch.cuda.is_available():
        return Road(False, "unsloth needs a GPU, and torch sees none")
    from transformers import AutoConfig

    kind = AutoConfig.from_pretrained(base.weights).model_type
    if kind not in KNOWN:
        return Road(False, f"unsloth has nothing of its own for {kind}")
    return Road(True, f"it is installed, there is a GPU, and it knows {kind}")


def would_take(config, weights: ModelSettings) -> bool:
    """Whether a card would make `choose` take unsloth here for a model of this configuration."""
    installed = importlib.util.find_spec("unsloth") is not None
    return installed and weights.unsloth != "never" and config.model_type in KNOWN


def take(base: Model, weights: ModelSettings, unless: str = "") -> Road:
    """Choose the road, say which, and import unsloth where it is the one. Call before trl is imported."""
    road = choose(base, weights, unless)
    if road.unsloth:
        import unsloth  # noqa: F401 (it patches trl, peft and transformers)
    say(f"  training through {'unsloth' if road.unsloth else 'transformers, peft and bitsandbytes'}: {road.why}")
    return road


def accelerated(
    base: Model, folder: Path, weights: ModelSettings, lora: LoraSettings, checkpointing: bool, dtype, most_tokens: int
):
    """The model with a fresh LoRA, as unsloth makes both.

    Args:
        folder: where the weights are (`weights_folder`): unsloth must not take another checkpoint of the same name.
        most_tokens: longest sequence.

    Raises UserError when it cannot load the model; `model.unsloth: never` is then the way.
    """
    from unsloth import FastLanguageModel

    kept = "unsloth" if checkpointing else False
    try:
        model, _ = FastLanguageModel.from_pretrained(
            model_name=str(folder),
            max_seq_length=most_tokens,
            dtype=dtype,
            load_in_4bit=weights.four_bit,
            load_in_16bit=not weights.four_bit,
            use_exact_model_name=True,
            use_gradient_checkpointing=kept,
            fix_tokenizer=False,
            trust_remote_code=False,
        )
    except (RuntimeError, ValueError, NotImplementedError, ImportError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"unsloth cannot load {base.id}: {first}", "set model.unsloth: never") from None
    modules, parameters = adapter_targets(model, lora.targets)
    layers = model.config.get_text_config().num_hidden_layers
    chosen = list(range(layers - min(lora.last_layers, layers), layers)) if lora.last_layers else None
    return FastLanguageModel.get_peft_model(
        model,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=0,
        bias="none",
        target_modules=modules,
        target_parameters=of_layers(parameters, chosen) or None,
        layers_to_transform=chosen,
        use_gradient_checkpointing=kept,
    )
