"""The one seam where weights enter memory: transformers + peft + bitsandbytes, CPU or GPU, same adapter format.

In 4 bits a mixture of experts goes through models.four_bit, anything else through transformers. Weights come from safetensors or GGUF only, and `trust_remote_code` is never set.
"""

import hashlib
import os
import shutil
from copy import deepcopy
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from toolkit.errors import UserError
from toolkit.hardware import left_by_killed
from toolkit.models.hub import require
from toolkit.models.resolve import EMBEDDED, MADE, Model, digest, embedded_gguf, resolve, unmade
from toolkit.models.targets import adapter_targets, of_layers
from toolkit.recipe import LoraSettings, ModelSettings

transformers_logging.disable_progress_bar()  # "Loading weights" would break into our own bars


def pick_dtype(name: str = "auto") -> torch.dtype:
    """`auto` → bfloat16 where the hardware computes in it, else float32.

    On a CPU without AVX512-BF16 or AMX bfloat16 is emulated and 2–3 times slower than float32; with it, 2–4 times faster
    (both measured, docs/results.md).

    Raises UserError for bfloat16 on a card without it (a T4, say).
    """
    card = torch.cuda.is_available()
    whole = card and torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bfloat16" and card and not whole:
        raise UserError(
            f"model.dtype: this card ({torch.cuda.get_device_name(0)}) does not compute in bfloat16",
            "leave model.dtype at auto, which takes float16 here",
        )
    if name != "auto":
        return getattr(torch, name)
    if card:
        return torch.bfloat16 if whole else torch.float16
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
    model: Model,
    *,
    dtype: str = "auto",
    four_bit: bool = False,
    backbone: bool = False,
    scoring: bool = False,
    least_4bit: float = ModelSettings.least_4bit,
):
    """Weights into memory, on the GPU where there is one.

    Args:
        dtype: auto, float32, bfloat16 or float16.
        four_bit: NF4 with double quantisation through bitsandbytes (works on CPU too, slower).
        backbone: without the language-model head, for a reward model.
        scoring: with a fresh head of one output, `score`, drawn from torch's random state and never quantised.
        least_4bit: share of the layers' weights that must really be in 4 bits (models.audit).

    Raises:
        UserError: the weights are not to be had (offline and not cached, gated, unknown architecture), or too few of them
            are in 4 bits.
    """
    from transformers import AutoConfig

    ensure_weights(model)
    chosen = pick_dtype(dtype)
    config = _from_hub(model, AutoConfig.from_pretrained, model.weights)
    kind = auto_class(config, backbone, scoring)
    loaded = _load_mixture(model, config, kind, chosen, scoring) if four_bit else None
    if loaded is None:
        loaded = _load_plain(model, kind, chosen, four_bit, scoring)
    loaded.config.use_cache = not (backbone or scoring)
    if four_bit:
        from bitsandbytes.nn import Linear4bit

        from toolkit.models.audit import require_four_bit

        for module in loaded.modules():
            if isinstance(module, Linear4bit):
                # else the first reading without gradients on a CPU with AVX512-BF16 packs the weights anew, for a kernel that
                # has no backward pass, and whatever is trained afterwards learns from what passes beside them
                module.support_avx512bf16_for_cpu = False
        require_four_bit(loaded, least_4bit)
    return loaded


def auto_class(config, backbone: bool, scoring: bool):
    """transformers' Auto class. Architectures that it has no scoring class of (OLMoE, Granite-MoE) get one of its own parts."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.modeling_layers import GenericForSequenceClassification

    if not scoring:
        return AutoModel if backbone else AutoModelForCausalLM
    if (
        type(config) not in AutoModelForSequenceClassification._model_mapping
        and type(config) in AutoModel._model_mapping
    ):
        base = AutoModel._model_mapping[type(config)]
        own = next(c for c in base.__mro__ if c.__name__.endswith("PreTrainedModel"))
        name = f"{base.__name__.removesuffix('Model')}ForSequenceClassification"
        # transformers reads in a class's module whether its experts may be computed in more ways than one
        made = type(name, (GenericForSequenceClassification, own), {"__module__": base.__module__})
        AutoModelForSequenceClassification.register(type(config), made, exist_ok=True)
    return AutoModelForSequenceClassification


def _load_mixture(model: Model, config, kind, dtype: torch.dtype, scoring: bool):
    """A mixture of experts in 4 bits, or None when the model is none."""
    from toolkit.models.four_bit import load_mixture

    if scoring:
        config.num_labels = 1
    return _from_hub(model, load_mixture, config, lambda: weights_folder(model), kind, dtype)


def _load_plain(model: Model, kind, chosen: torch.dtype, four_bit: bool, scoring: bool):
    from transformers import BitsAndBytesConfig

    kwargs = {
        "dtype": chosen,
        "device_map": {"": torch.cuda.current_device()} if torch.cuda.is_available() else {"": "cpu"},
    }
    if four_bit:
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=chosen,
            llm_int8_skip_modules=["score"] if scoring else None,  # it is of this head's fresh weights that it learns
        )
    if scoring:
        kwargs["num_labels"] = 1
        before = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # "newly initialised: score.weight": that is what is wanted
    try:
        return _from_hub(model, kind.from_pretrained, model.weights, **kwargs)
    finally:
        if scoring:
            transformers_logging.set_verbosity(before)


def checkpoint(model) -> None:
    """Gradient checkpointing, without making the embeddings require gradients.

    transformers does that when it is switched on, and peft when it wraps such a model; only reentrant checkpointing needs it. LoRA on the last layers would pay for a backward pass through all of them, and keep the states of all.
    """
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    bare.enable_input_require_grads = lambda: None
    renamed = hasattr(model, "activation_checkpointing_enable")  # transformers 5.24
    enable = model.activation_checkpointing_enable if renamed else model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def prepare_four_bit(model) -> None:
    """Make a model that was loaded in 4 bits ready for an adapter: frozen.

    peft would make all that is not quantised float32. Embeddings and head stay in bfloat16 here, which spares 2.0 GiB of
    Qwen2.5-7B, 2.3 of Qwen3-30B-A3B, and half of what a layer keeps: transformers computes norms, and everybody
    log-probabilities, in float32 whatever the weights are. In float16, whose range what flows between layers
    may leave, a dense model is made float32 as peft does.
    """
    from toolkit.models.experts import Packed

    if model.dtype != torch.float16 or any(isinstance(m, Packed) for m in model.modules()):
        model.requires_grad_(False)
        return
    from peft import prepare_model_for_kbit_training

    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def lora_config(model, lora: LoraSettings, task: str | None = "CAUSAL_LM"):
    """peft's config for `lora` on `model`, as plain peft writes and reads it.

    Raises UserError when a target matches nothing, or is one that peft would put elsewhere.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    modules, parameters = adapter_targets(model, lora.targets)
    layers = model.config.num_hidden_layers
    chosen = list(range(layers - min(lora.last_layers, layers), layers)) if lora.last_layers else None
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=modules or None,
        target_parameters=of_layers(parameters, chosen) or None,
        layers_to_transform=chosen if modules else None,
        layers_pattern="layers" if chosen and modules else None,
        task_type=task,
    )
    read = deepcopy(config)
    convert_peft_config_for_transformers(read, model, None)  # gate_proj of old mixtures meant what is one parameter now
    if moved := set(config.target_modules or ()) - set(read.target_modules or ()):
        raise UserError(
            f"lora.targets: peft puts what {', '.join(sorted(moved))} names of a {model.config.model_type} on the experts",
            "leave it out, or name `experts`",
        )
    return _knows_experts(config)


def _knows_experts(config):
    """peft's config, told how 4-bit experts wear LoRA; what it writes to disk is the same."""
    from toolkit.models.experts import Packed, ParamWrapper

    config._register_custom_module({Packed: ParamWrapper})
    return config


def wear(model, adapter: Path, trainable: bool = False):
    """`model` with the PEFT adapter in a folder, on 4-bit experts too."""
    from peft import PeftConfig, PeftModel

    config = _knows_experts(PeftConfig.from_pretrained(str(adapter)))
    return PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable, config=config)


def ensure_weights(model: Model) -> None:
    """Make the embedded models' trainable weights, once; other models need nothing. Safe to call again."""
    folder = model.weights
    if not unmade(model):
        return
    for left in left_by_killed(folder.parent, folder.name):
        shutil.rmtree(left, ignore_errors=True)
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
    require(model)
    try:
        return call(*args, **kwargs)
    except OSError as error:
        first = str(error).strip().splitlines()[0]
        if isinstance(model.weights, Path):
            hint = "is the folder whole, and the cache one that can be written to?"
        elif os.environ.get("HF_HUB_OFFLINE") == "1":
            hint = "without --offline it would be fetched"
        else:
            hint = "check the id, log in if it is gated, or use a local folder"
        raise UserError(f"cannot get {model.id}: {first}", hint) from None
    except ValueError as error:
        raise UserError(
            f"cannot load {model.id}: {str(error).splitlines()[0]}", "is it a causal language model?"
        ) from None
