"""Every shipped recipe trains: its model at reduced size of the same architecture, one step of every stage with its own settings."""

import dataclasses
import math
import re

import pytest
import torch
from mixtures import convert_here

from toolkit.fit import fit
from toolkit.models.load import load_tokenizer
from toolkit.models.resolve import Model, resolve
from toolkit.models.sizes import config_of
from toolkit.recipe import load_recipe, recipes_folder
from toolkit.records import PreferencePair
from toolkit.runner import plan

RECIPES = sorted(p.stem for p in recipes_folder().glob("*.yaml"))
# what an export does depends on the architecture; of these llama.cpp's converter knows the embedded model's tokenizer
EXPORTED = ("diverse-small", "diverse-ddpo", "plottwist-24gb")
ON_CPU = [n for n in RECIPES if load_recipe(n).model.id == "embedded"]
CARDS = {"t4": 15.0, "12gb": 12.0, "16gb": 16.0}
ATTENTION, MLP = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
PAIRS = [
    PreferencePair(f"Write {i}.", "Ama dug until the root bled.", "Um, nothing.", premise_id="p", chosen_id="c")
    for i in range(2)
]
SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "num_experts": 4, "num_local_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_k": 2, "moe_layer_end_index": 2, "max_position_embeddings": 4096,
}  # fmt: skip


@pytest.fixture(scope="session")
def reduced(tmp_path_factory):
    """Hub id → folder of a random model of the same architecture, 3 layers × 64, with the embedded tokenizer."""
    made, root = {}, tmp_path_factory.mktemp("reduced")

    def make(id: str):
        if id not in made:
            from transformers import AutoModelForCausalLM

            config, tokenizer = config_of(Model(id, id)), load_tokenizer(resolve("embedded"))
            for key, value in SMALL.items():
                if hasattr(config, key):
                    setattr(config, key, value)
            if getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[:3]
            config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id = len(tokenizer), 1, 2, 2
            torch.manual_seed(0)
            made[id] = root / id.replace("/", "--")
            AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(made[id])
            tokenizer.save_pretrained(made[id])
        return made[id]

    return make


def small(recipe):
    """The recipe's settings with the steps of a test: short texts, few answers."""
    last = {n: min(getattr(recipe, n).lora.last_layers, 2) for n in ("sft", "reward", "pairwise", "dpo")}
    sections = {
        n: dataclasses.replace(
            getattr(recipe, n), epochs=1, lora=dataclasses.replace(getattr(recipe, n).lora, r=4, last_layers=last[n])
        )
        for n in last
    }
    grpo = dataclasses.replace(
        recipe.grpo,
        batch=2,
        samples=2,
        mini_batch=2,
        updates=1,
        steps=1,
        max_tokens=4,
        guard=0.0,
        beta=recipe.grpo.beta,
    )
    model = dataclasses.replace(recipe.model, dtype="float32")
    return dataclasses.replace(recipe, model=model, grpo=grpo, **sections)


@pytest.mark.parametrize("name", RECIPES)
def test_one_step_of_every_training_stage_and_the_export(name, reduced, tmp_path, monkeypatch):
    recipe = small(load_recipe(name))
    base = resolve(str(reduced(recipe.model.id)))
    stages, weights = {s.name for s in plan(recipe)}, recipe.model
    trained = []
    if "sft" in stages:
        from toolkit.models.sft import train_sft

        trained.append(train_sft(base, [(p.prompt, p.chosen) for p in PAIRS], recipe.sft, weights, tmp_path / "sft"))
    if "reward" in stages:
        _train_reward(base, recipe, tmp_path / "reward")
    if "pairwise" in stages:
        from toolkit.reward.pairwise import train_pairwise

        (tmp_path / "pairwise").mkdir()
        trained.append(train_pairwise(base, PAIRS, [], recipe.pairwise, weights, tmp_path / "pairwise"))
    start = tmp_path / "sft" / "adapter" if "sft" in stages else None
    if "dpo" in stages:
        from toolkit.preference.dpo import train_dpo

        trained.append(train_dpo(base, PAIRS, recipe.dpo, weights, tmp_path / "dpo", deviation=[1.0, 1.0], start=start))
    if "grpo" in stages:
        from toolkit.preference.grpo import train_grpo

        paid = [("length", lambda prompts, answers: [float(len(a)) for a in answers], 1.0)]
        asked = [{"prompt": p.prompt} for p in PAIRS]
        trained.append(
            train_grpo(base, asked, paid, lambda p, a: [], recipe.grpo, weights, tmp_path / "grpo", start=start)
        )
    assert all(facts["steps"] >= 1 for facts in trained)
    moved = _tensors(tmp_path / recipe.align / "adapter")
    assert moved
    assert any(t.abs().max() > 0 for n, t in moved.items() if "lora_B" in n)
    if name in EXPORTED:
        _export(base, tmp_path / recipe.align / "adapter", recipe, tmp_path / "export", monkeypatch)
    if not start:
        wears = {n.split(".lora_")[0].rsplit(".", 1)[-1] for n in moved}
        assert wears == ATTENTION | (set() if recipe.model.kind == "moe" else MLP)


def _export(base, adapter, recipe, out, monkeypatch):
    """The `model` and `export` stages, as the recipe asks for them, and the proof that comes with the latter."""
    from toolkit.export.export import export_model

    monkeypatch.setattr("toolkit.export.export.convert", convert_here)
    out.mkdir()
    gguf = out.with_name("base.gguf")
    convert_here(base.weights, gguf)
    card = export_model(Model(base.id, base.weights, gguf), adapter, recipe.name, recipe.export, recipe.model, out)
    assert card["proof"]["mean_change_from_base"] > 0
    assert (out / "adapter.gguf").is_file()


def _train_reward(base, recipe, out):
    from toolkit.models.load import fingerprint
    from toolkit.reward.data import Group
    from toolkit.reward.model import RewardConfig, new_reward_model
    from toolkit.reward.train import train_reward

    out.mkdir()
    config = RewardConfig(str(base.weights), fingerprint(base), recipe.reward.depth, dtype="float32", four_bit=recipe.model.four_bit)  # fmt: skip
    model = new_reward_model(config, recipe.reward.lora)
    groups = [
        Group(str(i), texts=[PAIRS[0].chosen, PAIRS[0].rejected], targets=[[8.0] * 5, [3.0] * 5], weights=[1.0] * 2, origins=["x"] * 2)
        for i in range(2)
    ]  # fmt: skip
    train_reward(model, groups, recipe.reward, out)
    model.save(out)
    assert (out / "head.safetensors").is_file()


def _tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("name", [n for n in RECIPES if "predicted" in load_recipe(n).memory])
def test_the_header_says_what_fit_predicts(name):
    recipe = load_recipe(name)
    found = fit(recipe, next((gib for key, gib in CARDS.items() if key in name), 24.0), 64)
    vram, ram, disk = map(int, re.match(r"(\d+) GB VRAM, (\d+) GB RAM, (\d+) GB disk", recipe.memory).groups())
    assert (vram, ram, disk) == (math.ceil(found.peak("vram")), math.ceil(found.peak("ram")), math.ceil(found.disk))
    assert found.active <= 5e9 or not name.startswith("plottwist")


@pytest.mark.parametrize("name", ON_CPU)
def test_a_recipe_without_a_gpu_fits_the_memory_it_names(name):
    recipe = load_recipe(name)
    assert fit(recipe, 0, 64).peak("ram") < float(re.match(r"(\d+) GB RAM", recipe.memory)[1])
