"""Training mixtures of experts in 4 bits: what an adapter goes on, that all of it learns, and that plain peft reads it."""

import json
import math

import pytest
import torch
from mixtures import ARCHITECTURES, mixture, rounded, save_mixture

from toolkit.errors import ProofError, UserError
from toolkit.models.load import checkpoint, load_model, load_tokenizer, lora_config, wear
from toolkit.models.resolve import resolve
from toolkit.models.training import FirstGradients, read_metrics
from toolkit.preference.dpo import train_dpo
from toolkit.recipe import DpoSettings, LoraSettings, ModelSettings, PairwiseSettings, RewardSettings
from toolkit.records import PreferencePair

PAIRS = [
    PreferencePair("Write.", "Ama dug until the root bled.", "Um, nothing."),
    PreferencePair("Write more.", "The bell rang for the drowned.", "So it goes on."),
]
WEIGHTS = ModelSettings(dtype="float32", four_bit=True)
EVERYTHING = ("attention", "experts", "router")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("FABLESMITH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Architecture → a tiny mixture's folder, with the embedded model's tokenizer; made once each."""
    made, tokenizer = {}, load_tokenizer(resolve("embedded"))

    def folder(name: str, **more):
        key = f"{name}{sorted(more)}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp(name)
            save_mixture(mixture(name, len(tokenizer), **more), made[key], shard="5MB")
            tokenizer.save_pretrained(made[key])
        return made[key]

    return folder


def dpo(r=8, targets=("auto",), **more) -> DpoSettings:
    return DpoSettings(lora=LoraSettings(r, 2 * r, targets=targets), batch=2, accumulate=1, **{"epochs": 6, "lr": 2e-2, **more})  # fmt: skip


def tensors(adapter):
    from safetensors.torch import load_file

    return load_file(adapter / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("name", "targets"),
    [("qwen3_moe", ("auto",)), ("granitemoe", ("auto",)), *((name, EVERYTHING) for name in ARCHITECTURES)],
)
def test_dpo_in_four_bits_starts_level_and_learns_the_pairs(name, targets, folders, tmp_path):
    train_dpo(resolve(str(folders(name))), PAIRS, dpo(targets=targets), WEIGHTS, tmp_path)
    rows = read_metrics(tmp_path)
    assert rows[0]["rewards/margins"] == 0
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert rows[-1]["loss"] < 0.55
    found = tensors(tmp_path / "adapter")
    assert all(t.abs().sum() > 0 for n, t in found.items() if "lora_B" in n)
    assert all("self_attn" in n for n in found) == (targets == ("auto",))
    assert (sum("experts" in n for n in found) == 2 * 2 * 2) == (targets == EVERYTHING)  # layers, matrices, factors


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_an_adapter_on_4_bit_experts_is_what_plain_peft_reads_on_16_bit_ones(name, folders, tmp_path):
    from peft import PeftModel

    base = resolve(str(folders(name)))
    train_dpo(base, PAIRS, dpo(targets=EVERYTHING, epochs=3), WEIGHTS, tmp_path)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert sorted(config["target_parameters"])[0].endswith("down_proj")
    packed = load_model(base, dtype="float32", four_bit=True)
    sixteen = rounded(load_model(base, dtype="float32"), packed)
    packed = wear(packed, tmp_path / "adapter").train()
    plain = PeftModel.from_pretrained(sixteen, str(tmp_path / "adapter")).train()
    ids = torch.arange(60).view(2, 30) * 7 + 3
    with torch.no_grad():
        ours, theirs = packed(ids).logits, plain(ids).logits
        with packed.disable_adapter():
            bare = packed(ids).logits
        merged = plain.merge_and_unload()(ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ours, merged, atol=1e-3, rtol=1e-3)
    assert (ours - bare).abs().max() > 0.01


def test_reading_without_gradients_does_not_change_what_training_learns_from(folders):
    """bitsandbytes on a CPU with AVX512-BF16 would pack weights for a kernel without a backward pass at the first reading."""
    from peft import get_peft_model

    ids, found = torch.arange(60).view(2, 30) * 7 + 3, []
    for read_first in (False, True):
        model = load_model(resolve(str(folders("qwen3_moe"))), dtype="float32", four_bit=True)
        torch.manual_seed(1)
        model = get_peft_model(model, lora_config(model, LoraSettings(4)))
        if read_first:
            with torch.no_grad():
                model.eval()(ids)
        model.train()(input_ids=ids, labels=ids).loss.backward()
        found.append([p.grad for n, p in model.named_parameters() if "lora_B" in n])
    torch.testing.assert_close(found[0], found[1])


def test_gradients_through_4_bit_experts_are_those_of_their_16_bit_rounding(folders):
    from peft import get_peft_model

    base = resolve(str(folders("qwen3_moe")))
    lora = LoraSettings(4, 8, targets=EVERYTHING)
    packed = load_model(base, dtype="float32", four_bit=True)
    plain = rounded(load_model(base, dtype="float32"), packed)
    ids, found = torch.arange(60).view(2, 30) * 7 + 3, []
    for model in (packed, plain):
        torch.manual_seed(1)
        checkpoint(model)
        model = get_peft_model(model, lora_config(model, lora)).train()
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1
        model(input_ids=ids, labels=ids).loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_rating_reward_model_trains_on_a_mixture_and_loads(name, folders, tmp_path):
    from test_reward_model import GOOD, groups

    from toolkit.models.load import fingerprint
    from toolkit.reward.model import RewardConfig, load_reward_model, new_reward_model
    from toolkit.reward.train import train_reward

    folder = folders(name)
    config = RewardConfig(str(folder), fingerprint(resolve(str(folder))), depth=0.5, dtype="float32", four_bit=True)
    model = new_reward_model(config, LoraSettings(r=4, targets=EVERYTHING))
    train_reward(model, groups(), RewardSettings(epochs=1, batch=1, lr=1e-2, ridge=1.0, save_every=9), tmp_path)
    model.save(tmp_path)
    scores = model.score(GOOD)
    assert ((scores > 1) & (scores < 10)).all()
    assert load_reward_model(tmp_path).score(GOOD) == pytest.approx(scores, abs=2e-2)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_pairwise_reward_model_trains_on_a_mixture_and_loads(name, folders, tmp_path):
    from toolkit.reward.pairwise import load_pairwise, train_pairwise

    facts = train_pairwise(
        resolve(str(folders(name))), PAIRS, PAIRS, PairwiseSettings(LoraSettings(8, 16), epochs=12, batch=2, lr=1e-2), WEIGHTS, tmp_path
    )  # fmt: skip
    assert facts["loss"][1] < 0.4
    loaded = load_pairwise(tmp_path)
    good, bad = loaded.score([p.prompt for p in PAIRS] * 2, [p.chosen for p in PAIRS] + [p.rejected for p in PAIRS]).reshape(2, 2)  # fmt: skip
    assert (good > bad).all()


# ---- targets


def trained(folder, settings: LoraSettings, four_bit=True) -> set[str]:
    """Names of what an adapter goes on, without layer numbers."""
    from peft import get_peft_model

    model = load_model(resolve(str(folder)), dtype="float32", four_bit=four_bit)
    model = get_peft_model(model, lora_config(model, settings))
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    return {n.replace("base_model.model.model.", "").partition(".lora_")[0] for n in names}


def test_auto_is_attention_and_mlp_of_a_dense_model_and_attention_of_a_mixture(tiny, folders):
    assert len(trained(tiny, LoraSettings(4))) == 4 * 7
    assert trained(folders("olmoe"), LoraSettings(4)) == {
        f"layers.{i}.self_attn.{m}_proj" for i in (0, 1) for m in "qkvo"
    }


@pytest.mark.parametrize("four_bit", [True, False])
def test_experts_and_routers_of_the_last_layers_alone(folders, four_bit):
    settings = LoraSettings(4, last_layers=1, targets=("experts", "router"))
    assert trained(folders("mixtral"), settings, four_bit) == {
        "layers.1.mlp.experts",
        "layers.1.mlp.experts.base_layer",
        "layers.1.mlp.gate",
    }


def test_shared_experts_by_their_own_name_or_refused_where_peft_means_others(tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {
        "vocab_size": 99,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    qwen = {
        "intermediate_size": 64,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
        "num_experts": 4,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2_moe", **shape, **qwen))
    model.save_pretrained(tmp_path)
    names = trained(tmp_path, LoraSettings(4, targets=("shared",)))
    assert names == {f"layers.{i}.mlp.shared_expert.{m}_proj" for i in (0, 1) for m in ("gate", "up", "down")}
    next_ = {"head_dim": 16, "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16}  # fmt: skip
    other = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_next", **shape, **qwen, **next_))
    with pytest.raises(UserError, match=r"peft puts what .* on the experts"):
        lora_config(other, LoraSettings(4, targets=("shared",)))


@pytest.mark.parametrize("word", ["experts", "router", "shared"])
def test_words_that_mean_nothing_in_a_dense_model_are_refused(tiny, word):
    model = load_model(resolve(str(tiny)), dtype="float32")
    with pytest.raises(UserError, match=f"'{word}' matches no module") as caught:
        lora_config(model, LoraSettings(targets=(word,)))
    assert "attention, mlp" in caught.value.hint


def test_an_adapter_beside_the_computation_is_noticed_at_the_first_step(tiny):
    from peft import get_peft_model

    model = load_model(resolve(str(tiny)), dtype="float32")
    model = get_peft_model(model, lora_config(model, LoraSettings(4)))
    model.base_model.model.model.layers = model.base_model.model.model.layers[:3]  # the last one's adapter sees nothing
    model.register_module("beside", torch.nn.Linear(2, 2))
    model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    with pytest.raises(ProofError, match="2 of 44 adapter parameters got no gradient"):
        FirstGradients().on_pre_optimizer_step(None, None, None, model=model)


def test_experts_without_a_token_are_counted(folders, monkeypatch):
    from peft import get_peft_model

    from toolkit.models import training

    model = load_model(resolve(str(folders("qwen3_moe"))), dtype="float32", four_bit=True)
    model = get_peft_model(model, lora_config(model, LoraSettings(4, targets=("experts",)))).train()
    model(input_ids=torch.tensor([[5, 6]]), labels=torch.tensor([[5, 6]])).loss.backward()
    said = []
    monkeypatch.setattr(training, "say", said.append)
    FirstGradients().on_pre_optimizer_step(None, None, None, model=model)
    assert "of 32 adapted expert matrices" in said[0]  # 2 layers × 2 matrices × 8 experts, of which at most 4 are asked


# ---- the loss that balances routers


def test_the_balance_loss_is_off_by_default_and_adds_where_it_is_asked_for(folders, tmp_path):
    base, losses = resolve(str(folders("mixtral"))), []
    for i, weight in enumerate((0.0, 0.5)):
        train_dpo(base, PAIRS, dpo(epochs=1, router_aux=weight), WEIGHTS, tmp_path / str(i))
        losses.append(read_metrics(tmp_path / str(i))[0]["loss"])
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[1] > losses[0] + 0.5  # at least 1 · weight by definition: experts · Σ share · probability


def test_a_balance_loss_is_refused_on_a_dense_model(tiny, tmp_path):
    with pytest.raises(UserError, match="no routers to balance"):
        train_dpo(resolve(str(tiny)), PAIRS, dpo(router_aux=0.01), ModelSettings(dtype="float32"), tmp_path)
