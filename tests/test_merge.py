"""The streaming merge: peft's own result, little memory, and no half-written file, dense or a mixture, however stored."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from toolkit.errors import FablesmithError, UserError
from toolkit.export import merge as module
from toolkit.export.lora import place, read_adapter
from toolkit.export.merge import merge_adapter
from toolkit.models.resolve import Model

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def mixture(kind: str = "qwen", experts: int = 4):
    """A random mixture of 2 layers × 32."""
    from transformers import AutoModelForCausalLM, GraniteMoeConfig, MixtralConfig, Qwen3MoeConfig

    torch.manual_seed(3)
    shape = dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    shape |= dict(num_experts_per_tok=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    config = {
        "qwen": lambda: Qwen3MoeConfig(
            num_experts=experts, moe_intermediate_size=24, intermediate_size=48, head_dim=8, **shape
        ),
        "mixtral": lambda: MixtralConfig(num_local_experts=experts, intermediate_size=24, **shape),
        "granite": lambda: GraniteMoeConfig(num_local_experts=experts, intermediate_size=24, **shape),
    }[kind]()
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def train(model, out, **targets):
    """A LoRA adapter with random B in `out`, and the model it makes, merged by peft."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(4)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **targets))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    model.save_pretrained(str(out))
    return model.merge_and_unload()


def saved(model, folder, dtype=torch.float32, shard: int = 20_000):
    """`model` in `folder`, in many files, as the hub has it."""
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return Model(str(folder), folder)


def loaded(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["qwen", "mixtral", "granite"])
def test_a_merged_mixture_is_what_peft_makes_of_it(kind, tmp_path):
    base = saved(mixture(kind), tmp_path / "base")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 3
    block = "block_sparse_moe" if kind == "granite" else "mlp"
    targets = [t.replace("mlp", block) for t in EXPERTS]
    wanted = train(loaded(tmp_path / "base"), tmp_path / "adapter", target_modules=ATTENTION, target_parameters=targets)
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    got = loaded(tmp_path / "merged").state_dict()
    before = loaded(tmp_path / "base").state_dict()
    changed = 0
    for name, tensor in wanted.state_dict().items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-6, atol=1e-6)
        changed += not torch.equal(tensor, before[name])
    assert changed == 2 * (4 + 2)  # layers × (attention, fused experts)


def test_a_merged_dense_model_has_the_bits_that_peft_gives_it(tiny, tmp_path):
    wanted = train(loaded(tiny), tmp_path / "adapter", target_modules=[*ATTENTION, "gate_proj", "up_proj", "down_proj"])
    merge_adapter(Model(str(tiny), tiny), tmp_path / "adapter", tmp_path / "merged")
    got = loaded(tmp_path / "merged").state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in wanted.state_dict().items())
    same = [p.name for p in tiny.iterdir() if p.suffix == ".json"]
    assert all((tmp_path / "merged" / name).read_bytes() == (tiny / name).read_bytes() for name in same)


def test_experts_that_are_fused_on_disk_merge_too(tmp_path):
    model = mixture()
    save_folder = tmp_path / "base"
    base = saved(model, save_folder)
    for file in save_folder.glob("*.safetensors*"):
        file.unlink()
    save_file(model.state_dict(), save_folder / "model.safetensors")  # memory's own names: mlp.experts.gate_up_proj
    wanted = train(mixture(), tmp_path / "adapter", target_modules=["q_proj"], target_parameters=EXPERTS)
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    got = load_file(tmp_path / "merged" / "model.safetensors")
    for name, tensor in wanted.state_dict().items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-6, atol=1e-6)


def test_an_adapter_on_single_experts_merges_like_one_on_fused_ones(tmp_path):
    """Unfused training (one Linear an expert) names its matrices so; experts that no token reached may have none."""
    base = saved(mixture(), tmp_path / "base")
    train(loaded(tmp_path / "base"), tmp_path / "fused", target_modules=["q_proj"], target_parameters=EXPERTS)
    single, settings = {}, json.loads((tmp_path / "fused" / "adapter_config.json").read_text())
    for key, lora in read_adapter(tmp_path / "fused", 4).items():
        block, _, kind = key.rpartition(".")
        for e in range(4) if block.endswith("experts") else [None]:
            name = key if e is None else f"{block}.{e}.{kind}_proj"
            if e == 3 and kind == "up":
                continue
            sides = (lora.a, lora.b) if e is None else (lora.a[e], lora.b[e])
            for side, tensor in zip("AB", sides, strict=True):
                single[f"base_model.model.{name}.lora_{side}.weight"] = tensor.clone().contiguous()
    (tmp_path / "single").mkdir()
    save_file(single, tmp_path / "single" / "adapter_model.safetensors")
    settings["target_parameters"] = None
    (tmp_path / "single" / "adapter_config.json").write_text(json.dumps(settings))
    for name in ("fused", "single"):
        merge_adapter(base, tmp_path / name, tmp_path / f"merged-{name}")
    a, b = (loaded(tmp_path / f"merged-{name}").state_dict() for name in ("fused", "single"))
    before = loaded(tmp_path / "base").state_dict()
    for name, tensor in a.items():
        if name.endswith("gate_up_proj"):  # expert 3 has no LoRA on `up` in the second
            torch.testing.assert_close(b[name][:3], tensor[:3])
            torch.testing.assert_close(b[name][3, :24], tensor[3, :24])
            torch.testing.assert_close(b[name][3, 24:], before[name][3, 24:])
            assert not torch.equal(tensor[3, 24:], before[name][3, 24:])
        else:
            torch.testing.assert_close(b[name], tensor)


def test_a_change_that_bfloat16_would_round_away_is_kept(tmp_path):
    base = saved(mixture(), tmp_path / "base", torch.bfloat16)
    wanted = train(loaded(tmp_path / "base"), tmp_path / "adapter", target_modules=ATTENTION)
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    got, name = loaded(tmp_path / "merged").state_dict(), "model.layers.1.self_attn.q_proj.weight"
    tensor = wanted.state_dict()[name]
    assert torch.equal(got[name], tensor.half().float())
    assert not torch.equal(got[name], tensor.bfloat16().float())


def kill_after(files: int, base, adapter, out) -> None:
    """Merge in a process that dies without warning in the middle of writing its next file."""
    code = f"""
import os
from pathlib import Path
from toolkit.export import merge
from toolkit.models.resolve import Model
write, done = merge._copy, []
def dying(source, target, size):
    if len(list(Path({str(out)!r}).glob("*.safetensors"))) == {files}:
        target.write(source.read(size // 2)); target.flush(); os.kill(os.getpid(), 9)
    write(source, target, size)
merge._copy = dying
merge.merge_adapter(Model({str(base)!r}, Path({str(base)!r})), Path({str(adapter)!r}), Path({str(out)!r}))
"""
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode == -9


def test_a_killed_merge_keeps_its_whole_files_and_goes_on(tmp_path):
    base = saved(mixture(), tmp_path / "base")
    train(loaded(tmp_path / "base"), tmp_path / "adapter", target_modules=ATTENTION)
    out = tmp_path / "merged"
    kill_after(2, tmp_path / "base", tmp_path / "adapter", out)
    kept = {p.name: p.stat().st_mtime_ns for p in out.glob("*.safetensors")}
    assert len(kept) == 2
    assert not (out / "config.json").exists()  # so that nobody takes it for a whole model
    merge_adapter(base, tmp_path / "adapter", out)
    assert {n: (out / n).stat().st_mtime_ns for n in kept} == kept
    merge_adapter(base, tmp_path / "adapter", tmp_path / "unbroken")
    for file in (tmp_path / "unbroken").glob("*.safetensors"):
        assert (out / file.name).read_bytes() == file.read_bytes()
    assert not list(out.glob("*.partial"))


def test_files_of_another_adapter_are_not_taken_for_this_ones(tmp_path):
    base = saved(mixture(), tmp_path / "base")
    for name, target in (("one", "q_proj"), ("two", "v_proj")):
        train(loaded(tmp_path / "base"), tmp_path / name, target_modules=[target])
    merge_adapter(base, tmp_path / "one", tmp_path / "merged")
    merge_adapter(base, tmp_path / "two", tmp_path / "merged")
    merge_adapter(base, tmp_path / "two", tmp_path / "fresh")
    for file in (tmp_path / "fresh").glob("*.safetensors"):
        assert (tmp_path / "merged" / file.name).read_bytes() == file.read_bytes()


def synthetic(folder, files: int, megabytes: int):
    """A model of `files` files of `megabytes` each (bfloat16), with a LoRA on every matrix of half of them."""
    side, each = 1024, megabytes // 2
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    where, adapter = {}, {}
    for f in range(files):
        names = [f"model.layers.{f}.block.{i}.weight" for i in range(each)]
        name = f"model-{f + 1:05}-of-{files:05}.safetensors"
        save_file({n: torch.full((side, side), 0.5, dtype=torch.bfloat16) for n in names}, folder / name)
        where |= dict.fromkeys(names, name)
        for n in names[::2]:
            adapter[f"base_model.model.{n.removesuffix('.weight')}.lora_A.weight"] = torch.ones(2, side)
            adapter[f"base_model.model.{n.removesuffix('.weight')}.lora_B.weight"] = torch.ones(side, 2)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    trained = folder.parent / "adapter"
    trained.mkdir()
    save_file(adapter, trained / "adapter_model.safetensors")
    (trained / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2, "r": 2}))
    return trained


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the high-water mark is Linux's")
def test_the_merge_holds_less_than_two_files_in_memory(tmp_path):
    trained = synthetic(tmp_path / "base", files=8, megabytes=48)
    code = f"""
from pathlib import Path
from toolkit.export.merge import merge_adapter
from toolkit.models.resolve import Model
def peak():  # not ru_maxrss: a child begins with its parent's
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
before = peak()
merge_adapter(Model("m", Path({str(tmp_path / "base")!r})), Path({str(trained)!r}), Path({str(tmp_path / "out")!r}))
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < 2 * 48  # of 384 MB read and written
    got = load_file(tmp_path / "out" / "model-00008-of-00008.safetensors")
    assert got["model.layers.7.block.0.weight"].unique().tolist() == [2.5]
    assert got["model.layers.7.block.1.weight"].unique().tolist() == [0.5]


def test_bad_input_is_refused_before_anything_is_written(tmp_path, tiny):
    base = saved(mixture(), tmp_path / "base")
    train(loaded(tiny), tmp_path / "of-tiny", target_modules=["q_proj"])
    with pytest.raises(UserError, match="changes 64 × 64 of model"):
        merge_adapter(base, tmp_path / "of-tiny", tmp_path / "out")
    train(loaded(tiny), tmp_path / "mlp", target_modules=["gate_proj"])
    with pytest.raises(UserError, match="does not hold"):
        merge_adapter(base, tmp_path / "mlp", tmp_path / "out")
    file = sorted((tmp_path / "base").glob("*.safetensors"))[1]
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="are expected"):
        merge_adapter(base, tmp_path / "of-tiny", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_quantised_on_disk_are_refused(tmp_path):
    trained = synthetic(tmp_path / "base", files=1, megabytes=4)
    file = tmp_path / "base" / "model-00001-of-00001.safetensors"
    save_file({n: torch.zeros(t.shape, dtype=torch.uint8) for n, t in load_file(file).items()}, file)
    with pytest.raises(UserError, match="quantised on disk") as caught:
        merge_adapter(Model("m", tmp_path / "base"), trained, tmp_path / "out")
    assert "export.merge: never" in caught.value.hint


def test_numbers_that_no_longer_fit_are_not_written(tmp_path):
    trained = synthetic(tmp_path / "base", files=1, megabytes=4)
    weights = load_file(trained / "adapter_model.safetensors")
    save_file({k: v * 1e4 for k, v in weights.items()}, trained / "adapter_model.safetensors")
    with pytest.raises(FablesmithError, match="cannot hold"):
        merge_adapter(Model("m", tmp_path / "base"), trained, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_full_disk_is_told_before(tmp_path, monkeypatch):
    trained = synthetic(tmp_path / "base", files=1, megabytes=4)

    def full(folder, megabytes, what):
        raise UserError(f"{what} needs {megabytes:.0f} MB")

    monkeypatch.setattr(module, "require_disk", full)
    with pytest.raises(UserError, match="the merged model needs 4 MB"):
        merge_adapter(Model("m", tmp_path / "base"), trained, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "key", "kind", "expert"),
    [
        ("model.layers.3.block_sparse_moe.experts.5.w3.weight", "model.layers.3.mlp.experts", "up", 5),
        ("model.layers.3.mlp.experts.5.down_proj.weight", "model.layers.3.mlp.experts", "down", 5),
        ("model.layers.3.mlp.experts.gate_up_proj", "model.layers.3.mlp.experts", "gate_up", None),
        ("model.layers.3.block_sparse_moe.output_linear.weight", "model.layers.3.mlp.experts", "down", None),
        ("model.layers.3.block_sparse_moe.router.layer.weight", "model.layers.3.mlp.router", "", None),
        ("model.layers.3.block_sparse_moe.gate.weight", "model.layers.3.mlp.gate", "", None),
        ("model.layers.3.mlp.gate_proj.weight", "model.layers.3.mlp.gate_proj", "", None),
        ("model.layers.3.mlp.shared_expert.up_proj.weight", "model.layers.3.mlp.shared_expert.up_proj", "", None),
    ],
)
def test_each_layout_leads_to_the_same_place(name, key, kind, expert):
    found = place(name)
    assert (found.key, found.kind, found.expert) == (key, kind, expert)
