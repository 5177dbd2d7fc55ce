"""Weights in memory: the embedded model as trainable weights, LoRA, 4 bits, and what must be refused."""

import pytest

from toolkit.errors import UserError
from toolkit.models.load import fingerprint, load_model, load_tokenizer, lora_config, prepare_four_bit
from toolkit.models.resolve import Model, resolve
from toolkit.recipe import LoraSettings


def test_lora_on_the_last_layers_touches_no_other(tiny):
    from peft import get_peft_model

    model = load_model(resolve(str(tiny)), dtype="float32")
    model = get_peft_model(model, lora_config(model, LoraSettings(r=4, last_layers=1)))
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 14
    assert all(".layers.3." in n for n in trained)


def test_a_lora_target_that_matches_nothing_is_refused_with_what_there_is(tiny):
    model = load_model(resolve(str(tiny)), dtype="float32")
    with pytest.raises(UserError, match="qkv_proj") as caught:
        lora_config(model, LoraSettings(targets=("qkv_proj",)))
    assert "q_proj" in caught.value.hint


def test_four_bits_train_on_cpu_and_only_the_adapter_moves(tiny):
    import torch
    from bitsandbytes.nn import Linear4bit
    from peft import get_peft_model

    model = load_model(resolve(str(tiny)), dtype="float32", four_bit=True)
    assert isinstance(model.model.layers[0].mlp.up_proj, Linear4bit)
    prepare_four_bit(model)
    model = get_peft_model(model, lora_config(model, LoraSettings(r=4)))
    ids = torch.arange(20)[None] + 100
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all("lora_" in n for n, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(("dtype", "kept"), [("bfloat16", "bfloat16"), ("float16", "float32")])
def test_embeddings_of_a_dense_model_in_4_bits_become_float32_only_where_float16_might_overflow(tiny, dtype, kept):
    import torch

    model = load_model(resolve(str(tiny)), dtype=dtype, four_bit=True)
    prepare_four_bit(model)
    assert model.get_input_embeddings().weight.dtype == model.model.norm.weight.dtype == getattr(torch, kept)
    assert not any(p.requires_grad for p in model.parameters())


def test_pickled_weights_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="no safetensors"):
        resolve(str(tmp_path))


def test_a_hub_id_that_is_not_here_is_named_offline():
    with pytest.raises(UserError, match="nobody/nothing is not on this machine"):
        load_tokenizer(Model("nobody/nothing", "nobody/nothing"))


def test_what_a_killed_process_left_of_the_embedded_weights_is_cleared_away(tmp_path, monkeypatch):
    import os

    from toolkit.models import load

    monkeypatch.setenv("FABLESMITH_CACHE", str(tmp_path))
    monkeypatch.setattr(load, "_unpack_gguf", lambda gguf, folder: (folder / "config.json").write_text("{}"))
    for left in (f"embedded.partial-{os.getppid()}", "embedded.partial-999999999", "embedded-moe.partial-999999999"):
        (tmp_path / left).mkdir()
    load.ensure_weights(resolve("embedded"))
    kept = {f"embedded.partial-{os.getppid()}", "embedded-moe.partial-999999999", "embedded"}
    assert {p.name for p in tmp_path.iterdir()} == kept


def test_the_fingerprint_changes_with_the_weights(tiny, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    assert fingerprint(resolve(str(copy))) == fingerprint(resolve(str(tiny)))
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(resolve(str(copy))) != fingerprint(resolve(str(tiny)))


def test_a_large_file_that_was_trained_in_its_middle_alone_is_another(tmp_path):
    """As a merged model is whose training left embeddings and head alone. The file has holes: it takes no room."""
    from toolkit.models.resolve import digest

    files = [tmp_path / "one", tmp_path / "two"]
    for file in files:
        with file.open("wb") as f:
            f.truncate(300 << 20)
    assert digest(files[:1]) == digest(files[1:])
    with files[1].open("r+b") as f:
        f.seek(140 << 20)
        f.write(b"trained" * 100_000)  # a matrix of 576 × 576 in 16 bits
    assert digest(files[:1]) != digest(files[1:])


@pytest.mark.slow
def test_the_embedded_weights_give_the_log_probabilities_of_their_gguf():
    import numpy as np
    import torch

    from toolkit.engines.load import load_engine
    from toolkit.narrative.writing import write_prompt

    engine = load_engine("embedded")
    tokens = engine.chat_tokens(write_prompt("A cook hides a letter in the bread.")) + engine.tokenize("Ama kneaded.")
    model = load_model(resolve("embedded"), dtype="float32")
    with torch.inference_mode():
        logits = model(torch.tensor([tokens])).logits[0].double()
    here = logits[:-1].log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].numpy()
    # llama.cpp multiplies Q4_1 weights by activations rounded to 8 bits: that alone is the difference
    assert np.abs(here - engine.logps(tokens)).mean() < 0.1
    engine.close()


def test_memory_that_is_freed_is_kept_for_the_next_step():
    import platform
    import resource

    import torch

    if platform.libc_ver()[0] != "glibc":
        pytest.skip("another C library manages memory here")
    torch.zeros(4_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(4_000_000).add_(1)  # 16 MB: 4000 pages, each touched
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 20_000


def test_memory_that_a_stage_freed_is_given_back_when_asked():
    import platform

    import psutil
    import torch

    from toolkit.hardware import release_memory

    if platform.libc_ver()[0] != "glibc":
        pytest.skip("another C library manages memory here")
    big = torch.ones(60_000_000)  # 240 MB
    del big
    kept = psutil.Process().memory_info().rss
    release_memory()
    assert psutil.Process().memory_info().rss < kept - 150e6


def test_checkpointing_asks_no_gradient_of_what_lies_below_the_adapter(tiny):
    """transformers and peft make the embeddings of a checkpointed model require gradients. Nor does it ask transformers for
    what that is about to drop."""
    import warnings

    import torch
    from peft import get_peft_model

    from toolkit.models.load import checkpoint, load_model, lora_config
    from toolkit.recipe import LoraSettings

    model = load_model(resolve(str(tiny)), dtype="float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint(model)
    model = get_peft_model(model, lora_config(model, LoraSettings(4, 8, last_layers=1))).train()
    ids = torch.tensor([[1, 5, 9]])
    assert not model.get_input_embeddings()(ids).requires_grad
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
