"""The one seam where weights enter memory: transformers + peft + bitsandbytes, CPU or GPU, same adapter format.

Weights come from safetensors or GGUF only, and `trust_remote_code` is never set.
"""

import hashlib
import os
import shutil
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from toolkit.errors import UserError
from toolkit.models.resolve import EMBEDDED, MADE, Model, digest, embedded_gguf, resolve
from toolkit.recipe import LoraSettings

transformers_logging.disable_progress_bar()  # "Loading weights" would break into our own bars


def pick_dtype(name: str = "auto") -> torch.dtype:
    """`auto` → bfloat16 where the hardware computes in it, else float32.

    On a CPU without AVX512-BF16 or AMX bfloat16 is emulated and 2–3 times slower than float32; with it, 2–4 times faster
    (both measured, docs/results.md).
    """
    if name != "auto":
        return getattr(torch, name)
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    checks = [getattr(torch.cpu, c, lambda: False) for c in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return torch.bfloat16 if any(check() for check in checks) else torch.float32


def load_tokenizer(model: Model):
    """The tokenizer with its chat template; a missing pad token is set to EOS."""
    from transformers import AutoTokenizer

    ensure_weights(model)
    tokenizer = _from_hub(model, AutoTokenizer.from_pretrained, model.weights)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    model: Model, *, dtype: str = "auto", four_bit: bool = False, backbone: bool = False, scoring: bool = False
):
    """Weights into memory, on the GPU where there is one.

    Args:
        dtype: auto, float32, bfloat16 or float16.
        four_bit: NF4 with double quantisation through bitsandbytes (works on CPU too, slower).
        backbone: without the language-model head, for a reward model.
        scoring: with a fresh head of one output, `score`, drawn from torch's random state and never quantised.

    Raises:
        UserError: the weights are not to be had (offline and not cached, gated, unknown architecture).
    """
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

    ensure_weights(model)
    chosen = pick_dtype(dtype)
    kwargs = {"dtype": chosen, "device_map": {"": 0} if torch.cuda.is_available() else {"": "cpu"}}
    if four_bit:
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=chosen,
            llm_int8_skip_modules=["score"] if scoring else None,  # it is of this head's fresh weights that it learns
        )
    kind = AutoModelForSequenceClassification if scoring else AutoModel if backbone else AutoModelForCausalLM
    if scoring:
        kwargs["num_labels"] = 1
        before = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # "newly initialised: score.weight": that is what is wanted
    try:
        loaded = _from_hub(model, kind.from_pretrained, model.weights, **kwargs)
    finally:
        if scoring:
            transformers_logging.set_verbosity(before)
    loaded.config.use_cache = not (backbone or scoring)
    return loaded


def lora_config(model, lora: LoraSettings, task: str | None = "CAUSAL_LM"):
    """peft's config for `lora` on `model`. Raises UserError when a target matches no module (peft may drop it silently)."""
    from peft import LoraConfig

    names = [name for name, _ in model.named_modules()]
    for target in lora.targets:
        if not any(name.endswith("." + target) for name in names):
            found = sorted({name.rsplit(".", 1)[-1] for name in names if name.endswith("_proj")})
            raise UserError(f"lora.targets: {target!r} matches no module of this model", f"it has {', '.join(found)}")
    layers = model.config.num_hidden_layers
    chosen = list(range(layers - min(lora.last_layers, layers), layers)) if lora.last_layers else None
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets),
        layers_to_transform=chosen,
        layers_pattern="layers" if chosen else None,
        task_type=task,
    )


def ensure_weights(model: Model) -> None:
    """Make the embedded models' trainable weights, once; other models need nothing. Safe to call again."""
    folder = model.weights
    if model.id not in MADE or (folder / "config.json").is_file():
        return
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True, exist_ok=True)
    if model.id == EMBEDDED:
        _unpack_gguf(model.gguf, partial)
    else:
        from toolkit.models.upcycle import save_upcycled

        save_upcycled(weights_folder(resolve(EMBEDDED)), partial)
    try:
        partial.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(partial)


def _unpack_gguf(gguf: Path, folder: Path) -> None:
    """A GGUF's weights as float32 safetensors, with its tokenizer, into `folder`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    # transformers keeps a "quantised" mark on a GGUF's model and then refuses to save it: a fresh model takes its weights
    packed = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(packed.state_dict())
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    fresh.save_pretrained(folder)


def weights_folder(model: Model) -> Path:
    """A local folder with the weights, configuration and tokenizer; a hub id's are fetched unless offline."""
    ensure_weights(model)
    if isinstance(model.weights, Path):
        return model.weights
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt"]
    return Path(_from_hub(model, snapshot_download, model.weights, allow_patterns=wanted))


def fingerprint(model: Model) -> str:
    """Short hash of what the weights are (a hub id's: of the id)."""
    if model.id in MADE:  # also before they are made
        made = digest([embedded_gguf()])
        return made if model.id == EMBEDDED else f"{made[:12]}-moe"
    if isinstance(model.weights, Path):
        return digest([model.weights / "config.json", *sorted(model.weights.glob("*.safetensors"))])
    return hashlib.sha256(str(model.weights).encode()).hexdigest()[:16]


def _from_hub(model: Model, call, *args, **kwargs):
    try:
        return call(*args, **kwargs)
    except OSError as error:
        first = str(error).strip().splitlines()[0]
        offline = os.environ.get("HF_HUB_OFFLINE") == "1"
        hint = (
            "without --offline it would be fetched"
            if offline
            else "check the id, log in if it is gated, or use a local folder"
        )
        raise UserError(f"cannot get {model.id}: {first}", hint) from None
    except ValueError as error:
        raise UserError(
            f"cannot load {model.id}: {str(error).splitlines()[0]}", "is it a causal language model?"
        ) from None
