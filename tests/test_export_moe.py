"""Mixtures through llama.cpp: merged and as an adapter, attention and experts, with the experts in RAM or not."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PLOTS
from mixtures import convert_here

from toolkit.engines.base import Sampling
from toolkit.engines.llama import LlamaEngine
from toolkit.engines.load import load_engine
from toolkit.errors import UserError
from toolkit.export.export import export_model
from toolkit.export.gguf import adapter_to_gguf, base_to_gguf
from toolkit.export.merge import merge_adapter
from toolkit.models.gguf_file import check_same_model, quantise, read_gguf
from toolkit.models.load import load_tokenizer, weights_folder
from toolkit.models.resolve import Model, exported_adapter, exported_gguf, resolve
from toolkit.narrative.writing import write_prompt
from toolkit.preference.dpo import train_dpo
from toolkit.recipe import DpoSettings, ExportSettings, LoraSettings, ModelSettings
from toolkit.records import PreferencePair

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
PROMPT = write_prompt("A ferryman refuses one passenger.")
GREEDY = Sampling(temperature=0, max_tokens=24)


def mixture(kind: str, folder: Path) -> Model:
    """A small mixture with the embedded model's tokenizer, taught a little, so that it is sure of something."""
    from transformers import AutoModelForCausalLM, GptOssConfig, GraniteMoeConfig, MixtralConfig, Qwen3MoeConfig

    tokenizer = load_tokenizer(resolve("embedded"))
    tokenizer.save_pretrained(folder)
    shape = dict(vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
    shape |= dict(num_key_value_heads=2, num_experts_per_tok=2, max_position_embeddings=4096, initializer_range=0.1)
    shape |= dict(bos_token_id=1, eos_token_id=2, pad_token_id=2, tie_word_embeddings=True)
    config = {
        "qwen": lambda: Qwen3MoeConfig(  # llama.cpp takes for granted that the chosen experts' weights sum to 1
            num_experts=4, moe_intermediate_size=32, intermediate_size=32, head_dim=16, norm_topk_prob=True, **shape
        ),
        "mixtral": lambda: MixtralConfig(num_local_experts=4, intermediate_size=32, **shape),
        "granite": lambda: GraniteMoeConfig(num_local_experts=4, intermediate_size=32, **shape),
        "gpt-oss": lambda: GptOssConfig(
            num_local_experts=4,
            intermediate_size=64,
            head_dim=16,
            layer_types=["full_attention"] * 2,
            **shape | {"tie_word_embeddings": False},
        ),
    }[kind]()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    rows = [json.loads(line)["sentences"][0] for line in PLOTS.read_text().splitlines()[:40] if "zh" not in line[:20]]
    ids = torch.tensor(tokenizer(" ".join(rows))["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for at in range(20):
        batch = ids[at * 32 : at * 32 + 64][None]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder, max_shard_size="4MB")
    return Model(str(folder), folder)


def lora(base: Model, out: Path, **targets) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base.weights, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **targets))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.2)
    model.save_pretrained(str(out))
    return out


@pytest.fixture(autouse=True, scope="module")
def quickly():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolkit.export.export.convert", convert_here)
        yield


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """kind → a small mixture with its GGUF."""

    @cache
    def make(kind: str) -> Model:
        folder = tmp_path_factory.mktemp(kind)
        found = mixture(kind, folder / "hf")
        convert_here(folder / "hf", folder / "base.gguf")
        return Model(found.id, found.weights, folder / "base.gguf")

    return make


@pytest.fixture(scope="module")
def qwen(bases) -> Model:
    return bases("qwen")


def export(base: Model, adapter: Path, out: Path, merge: str, kind: str = "F16", four_bit: bool = False) -> dict:
    out.mkdir(parents=True)
    settings = ExportSettings(quantisation=kind, merge=merge)
    return export_model(base, adapter, "mine", settings, ModelSettings(four_bit=four_bit), out)


@pytest.mark.parametrize("kind", ["qwen", "mixtral", "granite"])
def test_lora_on_attention_and_experts_is_proved_merged_and_as_an_adapter(kind, bases, tmp_path):
    base = bases(kind)
    trained = lora(base, tmp_path / "adapter", target_modules=ATTENTION, target_parameters=EXPERTS)
    for merge in ("always", "never"):
        card = export(base, trained, tmp_path / merge / "export", merge)
        proof = card["proof"]
        assert proof["mean_difference"] < 0.01, merge  # nats a token
        assert proof["adapter_change_correlation"] > 0.99
        assert proof["mean_change_from_base"] > 0.05
        assert card["merged"] == (merge == "always")


def aligned(base: Model, out: Path, steps: int, lr: float, four_bit: bool = False) -> Path:
    """An adapter from a few steps of DPO: ordered sentences against the same words in disorder."""
    rows = [json.loads(line)["sentences"] for line in PLOTS.read_text().splitlines() if "zh" not in line[:20]]
    pairs = [PreferencePair("Write a sentence.", x[0], " ".join(sorted(x[0].split()))) for x in rows if len(x[0]) < 90]
    settings = DpoSettings(
        lora=LoraSettings(r=4, alpha=8, targets=ATTENTION), lr=lr, epochs=1.0, batch=2, accumulate=1, max_tokens=96
    )
    facts = train_dpo(base, pairs[: 2 * steps], settings, ModelSettings(dtype="float32", four_bit=four_bit), out)
    assert facts["steps"] == steps
    return out / "adapter"


def test_dpo_of_a_mixture_reaches_llama_cpp_merged_and_as_an_adapter(qwen, tmp_path):
    trained = aligned(qwen, tmp_path / "run" / "dpo", 6, 2e-2)
    for merge in ("always", "never"):
        proof = export(qwen, trained, tmp_path / merge / "export", merge)["proof"]
        assert proof["mean_difference"] < 0.01, merge
        assert proof["adapter_change_correlation"] > 0.99
        assert proof["mean_change_from_base"] > 10 * proof["mean_difference"]
        assert proof["greedy_text_differs_from_base"]


def test_dpo_in_4_bits_reaches_llama_cpp_merged_and_as_an_adapter(qwen, tmp_path, monkeypatch):
    """Proved on the 16-bit weights that are handed out, to rounding; a large model's proof counts in NF4, as was trained."""
    trained = aligned(qwen, tmp_path / "run" / "dpo", 6, 2e-2, four_bit=True)
    for merge in ("always", "never"):
        proof = export(qwen, trained, tmp_path / merge / "export", merge, four_bit=True)["proof"]
        assert proof["torch"] == "float32"
        assert proof["tolerance"] < 0.05
        assert proof["adapter_change_correlation"] > 0.95, merge
        monkeypatch.setattr("toolkit.export.export.TRAINED_IN_4_BITS_UP_TO", 0)
        proof = export(qwen, trained, tmp_path / "large" / merge / "export", merge, four_bit=True)["proof"]
        monkeypatch.undo()
        assert proof["torch"] == "nf4"
        assert proof["adapter_change_correlation"] > 0.8, merge
        assert proof["greedy_text_differs_from_base"]


@pytest.mark.slow
def test_the_embedded_mixture_trained_in_4_bits_reaches_llama_cpp_merged_and_as_an_adapter(tmp_path):
    """Proved on 16-bit weights, which is what is handed out: there every token's log-probability must be the same."""
    found = resolve("embedded-moe")
    base_to_gguf(weights_folder(found), "F16", tmp_path / "base.gguf")
    base = Model(found.id, found.weights, tmp_path / "base.gguf")
    trained = aligned(base, tmp_path / "run" / "dpo", 4, 2e-3, four_bit=True)
    for merge in ("always", "never"):
        proof = export(base, trained, tmp_path / merge / "export", merge, four_bit=True)["proof"]
        assert proof["mean_difference"] <= proof["tolerance"] < 0.05, merge
        assert proof["adapter_change_correlation"] > 0.95  # the base's file is BF16 where that computes faster
        assert proof["mean_change_from_base"] > 2 * proof["mean_difference"]
        assert proof["greedy_text_differs_from_base"]


def test_lora_on_experts_in_4_bits_is_proved_on_a_quantised_base(qwen, tmp_path):
    trained = lora(qwen, tmp_path / "adapter", target_modules=ATTENTION, target_parameters=EXPERTS)
    quantise(qwen.gguf, tmp_path / "q8.gguf", "Q8_0")
    base = Model(qwen.id, qwen.weights, tmp_path / "q8.gguf")
    proof = export(base, trained, tmp_path / "export", "never", four_bit=True)["proof"]
    assert proof["torch"] == "float32"
    assert proof["adapter_change_correlation"] >= proof["correlation_asked"]


def test_gpt_oss_interleaves_gate_and_up(bases, tmp_path):
    base = bases("gpt-oss")
    trained = lora(base, tmp_path / "adapter", target_modules=ATTENTION, target_parameters=EXPERTS)
    card = export(base, trained, tmp_path / "export", "never")
    assert card["proof"]["adapter_change_correlation"] > 0.99
    with pytest.raises(UserError, match="stores transposed"):
        merge_adapter(base, trained, tmp_path / "merged")


def test_the_adapter_alone_is_what_a_run_hands_out(qwen, tmp_path):
    trained = lora(qwen, tmp_path / "run" / "dpo" / "adapter", target_modules=ATTENTION)
    card = export(qwen, trained, tmp_path / "run" / "export", "never")
    out = tmp_path / "run" / "export"
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "adapter.gguf", "chat_template.jinja", "export.json"]
    assert json.loads((out / "export.json").read_text()) == card
    assert card["gguf"] == card["base_gguf"] == str(qwen.gguf)
    assert card["peft_adapter"] == "../dpo/adapter"
    assert (card["experts"], card["context"], card["base_quantisation"]) == (4, 4096, "F16")
    assert (out / "chat_template.jinja").read_text() == read_gguf(qwen.gguf).template
    readme = (out / "README.md").read_text()
    assert f"llama-cli -m {qwen.gguf} --lora adapter.gguf" in readme
    assert "ADAPTER ./adapter.gguf" in readme
    assert "--cpu-moe" in readme
    assert (exported_gguf(tmp_path / "run"), exported_adapter(tmp_path / "run")) == (qwen.gguf, out / "adapter.gguf")
    engine = load_engine(tmp_path / "run")
    on_base = load_engine(qwen.gguf, lora=out / "adapter.gguf")
    assert engine.generate([PROMPT], 1, GREEDY) == on_base.generate([PROMPT], 1, GREEDY)
    engine.close()
    on_base.close()
    with pytest.raises(UserError, match="is an adapter itself"):
        load_engine(tmp_path / "run", lora=out / "adapter.gguf")


def test_a_killed_export_goes_on_from_its_last_whole_file(qwen, tmp_path, monkeypatch):
    from toolkit.export import export as module

    trained = lora(qwen, tmp_path / "adapter", target_modules=ATTENTION)
    out = tmp_path / "run" / "export"

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "quantise", killed)
    with pytest.raises(KeyboardInterrupt):
        export(qwen, trained, out, "always", "Q8_0")
    assert (out / "f16.gguf").is_file()
    assert not (out / "merged").exists()
    monkeypatch.undo()
    monkeypatch.setattr(module, "merge_adapter", killed)
    card = export_model(qwen, trained, "mine", ExportSettings(merge="always"), ModelSettings(), out)
    assert card["merged"]
    assert sorted(p.name for p in out.glob("*.gguf")) == ["adapter.gguf", "mine-Q8_0.gguf"]


def test_auto_merges_small_models_and_leaves_large_ones(qwen, tmp_path, monkeypatch):
    from toolkit.export import export as module

    trained = lora(qwen, tmp_path / "adapter", target_modules=ATTENTION)
    for large in (1, 0):
        monkeypatch.setattr(module, "MERGED_BELOW", read_gguf(qwen.gguf).parameters + large)
        assert export(qwen, trained, tmp_path / str(large), "auto")["merged"] == bool(large)


def test_llama_cpp_keeps_the_experts_in_ram_and_says_the_same(qwen, tmp_path):
    quantise(qwen.gguf, tmp_path / "q8.gguf", "Q8_0")
    for file in (qwen.gguf, tmp_path / "q8.gguf"):
        tokens = None
        found = []
        for where in ("none", "auto"):
            engine = load_engine(file, gpu_experts=where)
            tokens = tokens or engine.chat_tokens(PROMPT)
            found.append((engine.in_ram, engine.logps(tokens), engine.generate([PROMPT], 2, GREEDY)))
            engine.close()
        (moved, logps, texts), (unmoved, usual, usual_texts) = found
        assert set(moved) == {f"blk.{i}.ffn_{k}_exps.weight" for i in (0, 1) for k in ("gate", "up", "down")}
        assert unmoved == ()
        np.testing.assert_allclose(logps, usual, atol=1e-5)
        assert texts == usual_texts


def test_an_adapter_works_on_experts_that_are_kept_in_ram(qwen, tmp_path):
    trained = lora(qwen, tmp_path / "adapter", target_modules=ATTENTION, target_parameters=EXPERTS)
    adapter_to_gguf(trained, qwen.gguf, tmp_path / "adapter.gguf")
    logps = []
    for in_ram in (True, False):
        engine = LlamaEngine(qwen.gguf, lora=tmp_path / "adapter.gguf", experts_in_ram=in_ram)
        logps.append(engine.logps(engine.chat_tokens(PROMPT)))
        engine.close()
    np.testing.assert_allclose(*logps, atol=1e-5)


def test_a_dense_model_is_moved_nowhere(tiny_gguf):
    engine = load_engine(tiny_gguf, gpu_experts="none")
    assert engine.in_ram == ()
    engine.close()


def test_a_files_header_tells_its_sizes(qwen):
    found = read_gguf(qwen.gguf)
    assert (found.arch, found.experts, found.layers, found.hidden) == ("qwen3moe", 4, 2, 64)
    assert found.expert_size == 2 * 4 * 3 * 64 * 32 * 2  # layers, experts, matrices, f16
    assert found.expert_size < found.size < qwen.gguf.stat().st_size
    assert found.cache == 2 * 2 * 2 * 16 * 2  # layers, keys and values, KV heads, head size, 16 bit


def test_a_gguf_of_another_model_is_refused_at_once(qwen, tiny_gguf):
    check_same_model(qwen.gguf, qwen)
    with pytest.raises(UserError, match="num_hidden_layers is 4 there and 2 here"):
        check_same_model(tiny_gguf, qwen)
