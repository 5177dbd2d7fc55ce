"""Mixtures in 4 bits: every weight that should be is, whatever form the checkpoint has, in little memory, and only once."""

import json
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import torch
from mixtures import ARCHITECTURES, mixture, rounded, save_mixture, unpacked

from toolkit.errors import UserError
from toolkit.models import four_bit
from toolkit.models.audit import audit, require_four_bit, table
from toolkit.models.experts import quantise, shape_of
from toolkit.models.load import load_model
from toolkit.models.resolve import resolve

IDS = torch.arange(80).view(2, 40) * 5 + 3


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FABLESMITH_CACHE", str(tmp_path / "cache"))


def load(folder, **more):
    return load_model(resolve(str(folder)), dtype="float32", four_bit=True, **more)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_computes_what_its_rounded_weights_compute(name, fused, tmp_path):
    model = mixture(name)
    packed = load(save_mixture(model, tmp_path / "m", fused))
    assert audit(packed).share > 0.96
    before = logits(model)
    torch.testing.assert_close(logits(packed), logits(rounded(model, packed)), atol=1e-4, rtol=1e-4)
    assert torch.cosine_similarity(before.flatten(), logits(packed).flatten(), 0) > 0.9


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_backbone_of_a_reward_model_comes_from_the_same_cache(name, tmp_path, monkeypatch):
    folder = save_mixture(mixture(name), tmp_path / "m")
    whole = load(folder)
    monkeypatch.setattr(four_bit, "quantise", None)
    backbone = load(folder, backbone=True)
    torch.testing.assert_close(backbone(IDS).last_hidden_state, whole.model(IDS).last_hidden_state)


def test_a_scoring_head_is_fresh_and_not_quantised(tmp_path):
    folder = save_mixture(mixture("qwen3_moe"), tmp_path / "m")
    torch.manual_seed(5)
    first, second = load(folder, scoring=True), load(folder, scoring=True)
    assert first.score.weight.shape == (1, 64)
    assert first.score.weight.dtype == torch.float32
    assert 0 < first.score.weight.std() < 0.1
    assert not torch.equal(first.score.weight, second.score.weight)


def test_quantising_in_pieces_is_bitsandbytes_own_quantising(monkeypatch):
    from bitsandbytes import functional

    from toolkit.models import experts

    monkeypatch.setattr(experts, "_PIECE", 1024)
    weight = torch.randn(3, 50, 64)
    (packed, state), (theirs, there) = (
        quantise(weight),
        functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True),
    )
    assert torch.equal(packed, theirs)
    assert state == there


# ---- the cache


def test_the_second_load_quantises_nothing(tmp_path, monkeypatch):
    folder = save_mixture(mixture("mixtral"), tmp_path / "m")
    first = logits(load(folder))
    monkeypatch.setattr(four_bit, "_convert", None)
    torch.testing.assert_close(logits(load(folder)), first, atol=0, rtol=0)


def test_a_conversion_that_is_killed_goes_on_where_it_was(tmp_path, monkeypatch):
    folder = save_mixture(mixture("mixtral"), tmp_path / "m")
    whole = logits(load(folder))
    monkeypatch.setenv("FABLESMITH_CACHE", str(tmp_path / "other"))
    real, written = four_bit.save_file, []

    def dies(tensors, path):
        if len(written) == 3:
            path.with_name(f"{path.name.partition('.partial')[0]}.partial-999999999").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path.name.partition(".partial")[0])
        real(tensors, path)

    monkeypatch.setattr(four_bit, "save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        load(folder)
    monkeypatch.setattr(
        four_bit, "save_file", lambda t, path: (written.append(path.name.partition(".partial")[0]), real(t, path))
    )
    assert torch.equal(logits(load(folder)), whole)
    assert sorted(written) == sorted(p.name for p in folder.glob("*.safetensors"))
    assert not list((tmp_path / "other").rglob("*.partial*"))


def test_a_torn_part_of_the_cache_is_made_anew(tmp_path):
    folder = save_mixture(mixture("olmoe"), tmp_path / "m")
    whole = logits(load(folder))
    part = next((tmp_path / "cache" / "nf4").rglob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-50])
    assert torch.equal(logits(load(folder)), whole)


def test_a_disk_too_small_for_the_cache_is_told_with_the_setting_that_moves_it(tmp_path, monkeypatch):
    folder = save_mixture(mixture("olmoe"), tmp_path / "m")
    monkeypatch.setattr("toolkit.hardware.shutil.disk_usage", lambda _: type("Usage", (), {"free": 0}))
    with pytest.raises(UserError, match="the cache of 4-bit weights needs") as told:
        load(folder)
    assert "FABLESMITH_CACHE" in told.value.hint
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_folder_that_lacks_a_shard_is_not_told_to_log_in(tmp_path):
    folder = save_mixture(mixture("olmoe"), tmp_path / "m")
    next(folder.glob("*00002-of*.safetensors")).unlink()
    with pytest.raises(UserError, match="00002-of") as told:
        load(folder)
    assert "is the folder whole" in told.value.hint


def test_other_weights_of_the_same_name_have_another_cache(tmp_path):
    model = mixture("mixtral")
    first = logits(load(save_mixture(model, tmp_path / "m")))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1.5)
    assert not torch.allclose(logits(load(save_mixture(model, tmp_path / "m"))), first)


def test_a_torn_shard_is_named(tmp_path):
    folder = save_mixture(mixture("mixtral"), tmp_path / "m")
    shard = max(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-50])
    with pytest.raises(UserError, match=shard.name):
        load(folder)


def test_a_weight_that_is_missing_is_named(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_mixture(mixture("gpt_oss"), tmp_path / "m", fused=True)
    path = next(p for p in folder.glob("*.safetensors") if "model.layers.0.mlp.experts.down_proj" in load_file(p))
    tensors = load_file(path)
    del tensors["model.layers.0.mlp.experts.down_proj"]
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"lacks 1 .*layers\.0\.mlp\.experts\.down_proj"):
        load(folder)


# ---- how much memory

_MEASURE = """
import sys, json
from toolkit.hardware import PeakMemory, prepare_environment
prepare_environment(offline=True)
import bitsandbytes, psutil, torch
from toolkit.models.experts import quantise
from toolkit.models.load import load_model
from toolkit.models.resolve import resolve
quantise(torch.randn(4096))  # libraries that load on first use
before = psutil.Process().memory_info().rss / 2**30
with PeakMemory() as memory:
    model = load_model(resolve(sys.argv[1]), dtype="bfloat16", four_bit=True)
print(json.dumps({"mib": (memory.gb - before) * 1024}))
"""


def test_loading_many_shards_takes_the_quantised_model_and_one_shard(tmp_path):
    """A mixture of 207 MiB in many shards: 28 MiB in 4 bits, a shard of 16, and what bitsandbytes needs to quantise a piece."""
    model = mixture("qwen3_moe", num_hidden_layers=8, hidden_size=512, moe_intermediate_size=512, num_experts=8)
    folder = save_mixture(model, tmp_path / "m", shard="16MB")
    sizes = [p.stat().st_size / 2**20 for p in folder.glob("*.safetensors")]
    del model
    assert len(sizes) > 10
    done = subprocess.run([sys.executable, "-c", _MEASURE, str(folder)], capture_output=True, text=True, check=True)
    cache = sum(p.stat().st_size for p in (tmp_path / "cache").rglob("*.safetensors")) / 2**20
    working = 4 * 14  # MiB: experts._PIECE weights
    fused = 3 * 8 * 2 * 512 * 512 * 4 / 2**20  # a layer's gate_up_proj: as read, stacked, and joined
    assert json.loads(done.stdout)["mib"] < cache + max(sizes) + working + fused + 32
    assert cache + max(sizes) + working + fused + 32 < sum(sizes)


# ---- what is refused, and the audit


def test_the_audit_finds_a_16_bit_expert_among_4_bit_ones(tmp_path):
    model = load(save_mixture(mixture("qwen3_moe"), tmp_path / "m"))
    sound = audit(model)
    assert sound.share > 0.96
    experts = model.model.layers[1].mlp.experts
    shape = shape_of(experts.down_proj)
    experts.down_proj = torch.nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16), False)
    found = audit(model)
    assert ("model.layers.1.mlp.experts.down_proj", prod(shape), "bfloat16") in found.largest
    assert found.parameters == sound.parameters
    assert found.inner_four_bit == sound.inner_four_bit - prod(shape)
    with pytest.raises(
        UserError, match=r"that are not: model\.layers\.1\.mlp\.experts\.down_proj \(16,384, bfloat16\)"
    ):
        require_four_bit(model, 0.9)
    assert "layers.1.mlp.experts.down_proj" in table(found)


def test_what_transformers_alone_leaves_in_16_bit_is_refused_before_training(tmp_path, monkeypatch):
    folder = save_mixture(mixture("qwen3_moe"), tmp_path / "m")
    monkeypatch.setattr(four_bit, "load_mixture", lambda *_: None)
    with pytest.raises(UserError, match=r"model\.least_4bit asks for 90%.*experts\.gate_up_proj"):
        load(folder)
    assert load(folder, least_4bit=0).is_loaded_in_4bit


def test_every_load_says_what_of_it_is_in_4_bits(tmp_path, monkeypatch, capsys):
    folder = save_mixture(mixture("olmoe"), tmp_path / "m")
    monkeypatch.delenv("FABLESMITH_QUIET")
    load(folder)
    assert "% of the layers' weights are in 4 bits; 0.00 GiB in all" in capsys.readouterr().err


def test_bytes_of_the_audit_are_what_the_tensors_take(tmp_path):
    model = load(save_mixture(mixture("mixtral"), tmp_path / "m"))
    found, tables = (
        audit(model),
        1600 * len(four_bit.four_bit_names(model)),
    )  # bytes of code tables, which weigh at this size
    assert 0.516 * found.four_bit < found.bytes["4-bit"] < 0.516 * found.four_bit + tables
    assert found.bytes["float32"] == (found.parameters - found.four_bit) * 4


def test_mxfp4_checkpoints_of_gpt_oss_are_unpacked_first(tmp_path):
    from safetensors.torch import load_file, save_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    model = mixture("gpt_oss", hidden_size=64, intermediate_size=64)
    folder = save_mixture(model, tmp_path / "m", fused=True)
    wanted = {}
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
            count, rows, columns = tensors.pop(name).shape
            blocks = torch.randint(0, 256, (count, columns, rows // 32, 16), dtype=torch.uint8)
            scales = torch.randint(120, 125, (count, columns, rows // 32), dtype=torch.uint8)
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            wanted[name] = convert_moe_packed_tensors(blocks, scales)
        save_file(tensors, path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    packed = load(folder)
    assert len(wanted) == 4
    for name, weight in wanted.items():
        parameter = packed.get_parameter(name)
        assert shape_of(parameter) == weight.shape
        torch.testing.assert_close(unpacked(parameter.data, parameter.quant_state), unpacked(*quantise(weight)))


def test_a_checkpoint_that_is_quantised_otherwise_is_refused(tmp_path):
    folder = save_mixture(mixture("mixtral"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    with pytest.raises(UserError, match="quantised already"):
        load(folder)


def test_the_audit_is_a_verb(tiny_moe, capsys):
    from toolkit.cli import main

    assert main(["audit", str(tiny_moe), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["share"] > 0.98
    assert main(["audit", str(tiny_moe)]) == 0
    assert "largest that are not in 4 bits" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["dpo", "reward"])
def test_the_benchmark_of_24_gib_runs_at_reduced_size(what, monkeypatch):
    """The same code makes the full size on a GPU: random weights directly in 4 bits, our own training."""
    import argparse

    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    monkeypatch.setattr(four_bit, "load_mixture", four_bit.load_mixture)  # which the benchmark replaces
    monkeypatch.delenv("FABLESMITH_CACHE")  # where the tokenizer is
    import memory_24gb

    args = argparse.Namespace(tiny=True, one="ours", what=[what], tokens=[64], steps=2, checkpoint=None, folder=None)
    row = memory_24gb.one(args)
    assert row["ram"] > 0
    assert row["rate"] == pytest.approx(128 / row["seconds"])
    config = memory_24gb.config_of(True, None)
    assert 0.01 < memory_24gb.predicted(config, what, 64, gpu=False) < 1


def test_the_benchmark_of_24_gib_says_why_a_peer_does_not_run(monkeypatch):
    import argparse
    import importlib.util

    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import memory_24gb

    args = argparse.Namespace(tiny=False, checkpoint=None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert memory_24gb.not_here("experts4bit", True, args) == "experts4bit-qlora is not installed"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert "--checkpoint" in memory_24gb.not_here("experts4bit", True, args)
    assert memory_24gb.not_here("unsloth", False, args) == "it takes a GPU"
    assert memory_24gb.not_here("ours", False, args) == ""
