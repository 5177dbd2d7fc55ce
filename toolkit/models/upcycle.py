"""Sparse upcycling: a dense Llama → a Mixtral whose experts are copies of its MLP, the same function at birth.

After Komatsuzaki et al. 2022 (arXiv 2212.05055). Mixtral divides the chosen experts' weights by their sum, so that equal
experts give what one alone gave, whatever the router says; no rescaling is needed.
"""

from pathlib import Path

import torch

from toolkit.errors import UserError

EXPERTS, ACTIVE = 4, 2
ROUTER_STD = 0.02  # of the router's random first weights (section 3 of the paper)


def upcycle(dense, experts: int = EXPERTS, active: int = ACTIVE, seed: int = 0):
    """A MixtralForCausalLM in `dense`'s dtype with `experts` copies of each MLP, of which `active` see a token.

    Args:
        dense: a LlamaForCausalLM. seed: of the routers, the only weights that are new.

    Raises:
        UserError: the model is no plain Llama (its attention or MLP has biases, or it is of another architecture).
    """
    from transformers import MixtralConfig, MixtralForCausalLM

    old = dense.config
    if old.model_type != "llama" or old.attention_bias or old.mlp_bias:
        raise UserError(f"cannot upcycle a {old.model_type}", "only a Llama without biases has Mixtral's attention")
    alike = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
        "hidden_act max_position_embeddings rms_norm_eps rope_parameters tie_word_embeddings bos_token_id eos_token_id "
        "pad_token_id initializer_range"
    ).split()
    config = MixtralConfig(
        **{name: getattr(old, name) for name in alike},
        num_local_experts=experts,
        num_experts_per_tok=active,
        sliding_window=None,
        dtype=dense.dtype,
    )
    weights = dict(dense.state_dict())
    draw = torch.Generator().manual_seed(seed)
    for i in range(old.num_hidden_layers):
        mlp = f"model.layers.{i}.mlp."
        gate, up, down = (weights.pop(f"{mlp}{name}_proj.weight") for name in ("gate", "up", "down"))
        weights[f"{mlp}experts.gate_up_proj"] = torch.cat([gate, up]).expand(experts, -1, -1)
        weights[f"{mlp}experts.down_proj"] = down.expand(experts, -1, -1)
        router = torch.randn(experts, old.hidden_size, generator=draw) * ROUTER_STD
        weights[f"{mlp}gate.weight"] = router.to(dense.dtype)
    with torch.device("meta"):
        sparse = MixtralForCausalLM(config)
    sparse = sparse.to_empty(device="cpu").to(dense.dtype)
    sparse.load_state_dict(weights)
    sparse.tie_weights()
    sparse.generation_config = dense.generation_config
    return sparse


def save_upcycled(source: Path, folder: Path) -> None:
    """The dense model in `source` as a mixture in `folder`, float16 (half the disk; its rounding is below Q4_1's by far)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dense = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float16)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    upcycle(dense).save_pretrained(folder)
