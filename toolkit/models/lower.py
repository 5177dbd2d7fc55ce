"""The layers below the lowest adapter: what comes out of them is the same whatever the adapter has learnt, so it is made once."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

KEPT = 2**30  # bytes of such states that a training keeps


def plain_kind(config) -> str:
    """What keeps every model of this kind, as its configuration tells, from being read in two parts; "" where nothing is known to."""
    config = config.get_text_config()
    if any(
        getattr(config, n, None) for n in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    ):
        return "a mixture of experts"
    if getattr(config, "attention_dropout", 0):
        return "attention has dropout"
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention"} or (
        getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    ):
        return "attention looks back only so far"
    return ""


def lowest_adapted(base) -> int:
    """Index of the lowest layer that an adapter or a trainable weight is in; 0 where one stands outside the layers."""
    layers = base.base_model.layers
    inside = {id(p) for layer in layers for p in layer.parameters()}
    if any(p.requires_grad and id(p) not in inside for p in base.parameters()):
        return 0
    adapted = (
        i for i, layer in enumerate(layers) if any("lora_" in n or p.requires_grad for n, p in layer.named_parameters())
    )
    return next(adapted, 0)


@torch.no_grad()
def where_cut(backbone) -> int:
    """The lowest adapted layer, where reading the layers below it first and the others from their states is the same function, as
    tried on a few tokens; 0 where it is not."""
    if plain_kind(backbone.config) or not (start := lowest_adapted(backbone)):
        return 0
    ids = torch.arange(1, 17, device=backbone.device)[None]
    try:
        states = states_into(backbone, start, input_ids=ids)
        with layers_from(backbone, start):
            parts = backbone(inputs_embeds=states, use_cache=False).last_hidden_state
    except (RuntimeError, TypeError, KeyError, IndexError, AttributeError, ValueError):
        return 0
    whole = backbone(input_ids=ids, use_cache=False).last_hidden_state
    return start if torch.allclose(parts.float(), whole.float(), rtol=1e-3, atol=1e-3) else 0


@contextmanager
def layers_from(backbone, start: int) -> Iterator[None]:
    """The backbone without its layers below `start`, which `inputs_embeds` then stand for."""
    layers = backbone.layers
    if start:
        backbone.layers = layers[start:]
    try:
        yield
    finally:
        backbone.layers = layers


@torch.no_grad()
def states_into(backbone, start: int, **inputs) -> torch.Tensor:
    """(B, T, H): what comes into layer `start` when the backbone reads `inputs`; the layers from there on are not run."""
    seen = []

    class Enough(Exception):
        pass

    def stop(module, args, kwargs):
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise Enough

    hook = backbone.layers[start].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        backbone(**inputs, use_cache=False)
    except Enough:
        pass
    finally:
        hook.remove()
    return seen[0]
