"""Sparse upcycling: a mixture that is the dense model at birth, on disk, in memory and in llama.cpp."""

import pytest

from toolkit.errors import UserError
from toolkit.models.load import load_model, load_tokenizer
from toolkit.models.resolve import resolve
from toolkit.models.upcycle import upcycle

TEXT = "Ama dug until the root bled. Water came when she begged its pardon."


def logits(model, tokenizer):
    import torch

    with torch.inference_mode():
        return model(torch.tensor([tokenizer(TEXT)["input_ids"]])).logits[0]


def test_it_is_the_dense_model_at_birth_whatever_the_router_says(tiny, tiny_moe):
    import torch

    tokenizer = load_tokenizer(resolve(str(tiny)))
    dense, sparse = load_model(resolve(str(tiny)), dtype="float32"), load_model(resolve(str(tiny_moe)), dtype="float32")
    assert (sparse.config.num_local_experts, sparse.config.num_experts_per_tok) == (4, 2)
    torch.testing.assert_close(logits(sparse, tokenizer), logits(dense, tokenizer), atol=1e-4, rtol=1e-4)
    for layer in sparse.model.layers:
        torch.nn.init.normal_(layer.mlp.gate.weight, std=3)
    torch.testing.assert_close(logits(sparse, tokenizer), logits(dense, tokenizer), atol=1e-4, rtol=1e-4)


def test_every_expert_is_asked(tiny_moe):
    """A router of zeros would send every token to the same two."""
    sparse = load_model(resolve(str(tiny_moe)), dtype="float32")
    seen = [set() for _ in sparse.model.layers]
    for found, layer in zip(seen, sparse.model.layers, strict=True):
        layer.mlp.gate.register_forward_hook(lambda m, a, out, found=found: found.update(out[2].flatten().tolist()))
    logits(sparse, load_tokenizer(resolve(str(tiny_moe))))
    assert seen == [{0, 1, 2, 3}] * 4


def test_experts_are_not_one_tensor_in_disguise(tiny):
    import torch

    sparse = upcycle(load_model(resolve(str(tiny)), dtype="float32"))
    experts = sparse.model.layers[0].mlp.experts
    with torch.no_grad():
        experts.gate_up_proj[0].zero_()
    assert experts.gate_up_proj[1].abs().sum() > 0


def test_only_a_plain_llama_is_upcycled(tiny_moe):
    with pytest.raises(UserError, match="cannot upcycle a mixtral"):
        upcycle(load_model(resolve(str(tiny_moe)), dtype="float32"))


def test_llama_cpp_reads_the_mixture_as_transformers_does(tiny_moe, tmp_path):
    import numpy as np

    from toolkit.engines.llama import LlamaEngine
    from toolkit.export.gguf import convert

    convert(tiny_moe, tmp_path / "moe.gguf")
    engine = LlamaEngine(tmp_path / "moe.gguf", 512)
    model = resolve(str(tiny_moe))
    tokens = load_tokenizer(model)(TEXT)["input_ids"]
    rows = logits(load_model(model, dtype="float32"), load_tokenizer(model)).double().log_softmax(-1).numpy()
    here = np.array([rows[i, t] for i, t in enumerate(tokens[1:])])
    assert np.abs(here - engine.logps(tokens)).mean() < 0.02
    engine.close()


@pytest.mark.slow
def test_embedded_moe_is_embedded():
    import torch

    model = resolve("embedded-moe")
    tokenizer = load_tokenizer(model)
    dense, sparse = load_model(resolve("embedded"), dtype="float32"), load_model(model, dtype="float32")
    for p in dense.parameters():  # the mixture is kept in float16
        p.data = p.data.half().float()
    torch.testing.assert_close(logits(sparse, tokenizer), logits(dense, tokenizer), atol=1e-3, rtol=1e-3)
