"""What a model consists of, counted on the meta device: its architecture is built from its configuration, without a single weight.

Configurations of the models that our recipes name come along (data/configs.json, as published), so that counting needs no
network. Total parameters count for memory, not the active ones of a mixture of experts.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import UserError
from toolkit.models.resolve import EMBEDDED, Model

PUBLISHED = Path(__file__).resolve().parents[1] / "data" / "configs.json"
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a parameter in NF4: half a byte, a scale for 64, a scale of 256 scales


@dataclass(frozen=True)
class Sizes:
    """Parameters by what becomes of them.

    Args:
        total, active: all, and those that a token passes through.
        linear, experts: matrices of the layers; these are what 4 bits shrink.
        table: input and output embedding, once where they are one.
        rest: norms, routers, biases.
        layers, layer_experts: decoder layers, and the experts of the largest of them.
        cache: elements that a token leaves in the cache of keys and values, all layers together.
        state: elements a sequence keeps besides, whatever its length (recurrent layers).
    """

    total: int
    active: int
    linear: int
    experts: int
    table: int
    rest: int
    layers: int
    layer_experts: int
    cache: int
    hidden: int
    vocabulary: int

    @property
    def moe(self) -> bool:
        return self.experts > 0

    def weights(self, four_bit: bool, each: float, beside: float | None = None) -> float:
        """Bytes of the weights in memory.

        Args:
            each: bytes of a parameter that is not quantised.
            beside: the same for embeddings and norms where the matrices are in 4 bits (default: `each`).
        """
        if not four_bit:
            return self.total * each
        return (self.linear + self.experts) * NF4_BYTES + (self.table + self.rest) * (beside or each)


def published() -> dict[str, dict]:
    """Hub id → published configuration, of the models that recipes name."""
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))


def config_of(model: Model):
    """transformers' configuration of a model: from its folder, the local cache of the hub, our copies, or the hub.

    Raises UserError where none of these has it, or it is of an architecture that transformers does not know.
    """
    from transformers import AutoConfig

    try:
        if isinstance(model.weights, Path) and (model.weights / "config.json").is_file():
            return AutoConfig.from_pretrained(model.weights)
        if found := _cached(model):
            return AutoConfig.from_pretrained(found)
        if known := published().get(model.id):
            return AutoConfig.for_model(**known)
        from toolkit.models.hub import ask_hub

        ask_hub(model.id)
        return AutoConfig.from_pretrained(model.weights)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cannot read the configuration of {model.id}: {first}", "is it a causal language model?"
        ) from None


def _cached(model: Model) -> Path | None:
    if model.id == EMBEDDED or isinstance(model.weights, Path):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model.id, "config.json")
    return Path(found).parent if isinstance(found, str | os.PathLike) else None


def on_meta(config, dtype=None, *, backbone: bool = False, scoring: bool = False):
    """The model of a configuration without weights, as `load_model` would make it."""
    import torch

    from toolkit.models.load import auto_class

    kind = auto_class(config, backbone, scoring)
    if scoring:
        config.num_labels, config.pad_token_id = 1, 0
    with torch.device("meta"):
        model = kind.from_config(config, dtype=dtype or torch.bfloat16)
    model.config.use_cache = False
    return model


def count(config) -> Sizes:
    """Count the causal language model of a configuration."""
    import torch

    model = on_meta(config)
    text = config.get_text_config()
    tables = {
        id(m.weight): m.weight.numel() for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m
    }
    linears, experts, rest, layer_experts = 0, 0, 0, 0
    owners = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear)}
    by_layer: dict[str, int] = {}
    for name, p in model.named_parameters():
        if id(p) in tables:
            continue
        if p.dim() == 3 and "expert" in name:
            experts += p.numel()
            layer = name.split(".layers.")[-1].split(".")[0]
            by_layer[layer] = by_layer.get(layer, 0) + p.numel()
        elif id(p) in owners:
            linears += p.numel()
        else:
            rest += p.numel()
    layer_experts = max(by_layer.values(), default=0)
    table = sum(tables.values())
    total = linears + experts + rest + table
    routed = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None) or 1
    each = getattr(text, "num_experts_per_tok", None) or 1
    idle = round(experts * (1 - each / routed)) if experts else 0
    return Sizes(
        total=total,
        active=total - idle,
        linear=linears,
        experts=experts,
        table=table,
        rest=rest,
        layers=text.num_hidden_layers,
        layer_experts=layer_experts,
        cache=_cache(text),
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
    )


def _cache(text) -> int:
    """Keys and values of one token in all layers. Layers of another kind than attention keep none that grows."""
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    kinds = getattr(text, "layer_types", None) or ["attention"] * text.num_hidden_layers
    return 2 * (getattr(text, "num_key_value_heads", None) or heads) * head * sum("attention" in k for k in kinds)
