"""DPO: the loss is the published one, the reference is the base, and what cannot be trained is refused."""

import math

import pytest

from toolkit.errors import ProofError, UserError
from toolkit.models.resolve import resolve
from toolkit.models.training import read_metrics
from toolkit.preference.dpo import train_dpo
from toolkit.recipe import DpoSettings, LoraSettings, ModelSettings
from toolkit.records import PreferencePair

PAIRS = [
    PreferencePair("Write.", "Ama dug until the root bled.", "Um, nothing."),
    PreferencePair("Write more.", "The bell rang for the drowned.", "So it goes on."),
]


WEIGHTS = ModelSettings(dtype="float32")


def settings(r=8, alpha=16, **more) -> DpoSettings:
    return DpoSettings(
        **{"lora": LoraSettings(r, alpha), "batch": 2, "accumulate": 1, "epochs": 12, "lr": 1e-2, **more}
    )


def test_it_starts_at_log_two_and_learns_the_pairs(tiny, tmp_path):
    train_dpo(resolve(str(tiny)), PAIRS, settings(), WEIGHTS, tmp_path)
    rows = read_metrics(tmp_path)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert rows[-1]["loss"] < 0.5
    assert rows[-1]["rewards/margins"] > 0


def test_the_logged_margin_is_beta_times_the_difference_of_log_ratios(tiny, tmp_path):
    """Recomputed by hand from the saved adapter: the margin that one more step would start from."""
    import torch
    from peft import PeftModel

    from toolkit.models.load import load_model, load_tokenizer

    model = resolve(str(tiny))
    train_dpo(model, PAIRS, settings(epochs=1, lr=1e-3), WEIGHTS, tmp_path / "one")
    train_dpo(model, PAIRS, settings(epochs=2, lr=1e-3), WEIGHTS, tmp_path / "two")
    network, tokenizer = load_model(model, dtype="float32"), load_tokenizer(model)
    network = PeftModel.from_pretrained(network, str(tmp_path / "one" / "adapter"))

    def logp(pair, answer):
        prompt = [{"role": "user", "content": pair.prompt}]
        head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], return_dict=False)
        with torch.no_grad():
            rows = network(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(rows[i - 1, ids[i]]) for i in range(len(head), len(ids)))

    def margin(pair):
        on = logp(pair, pair.chosen) - logp(pair, pair.rejected)
        with network.disable_adapter():
            off = logp(pair, pair.chosen) - logp(pair, pair.rejected)
        return 0.1 * (on - off)

    # both runs take the same first step at the same learning rate, so the second run's second margin is this one
    second = read_metrics(tmp_path / "two")[1]["rewards/margins"]
    assert sum(map(margin, PAIRS)) / 2 == pytest.approx(second, abs=2e-4)


def test_pairs_that_are_too_long_are_left_out_and_counted(tiny, tmp_path):
    long = PreferencePair("Write.", "word " * 400, "Um.")
    facts = train_dpo(resolve(str(tiny)), [*PAIRS, long], settings(4, epochs=1, max_tokens=120), WEIGHTS, tmp_path)
    assert (facts["pairs"], facts["too_long"]) == (2, 1)


def test_when_no_pair_is_short_enough_it_says_how_long_they_are(tiny, tmp_path):
    with pytest.raises(UserError, match=r"none of the 2 pairs.*dpo\.max_tokens = 32"):
        train_dpo(resolve(str(tiny)), PAIRS, settings(4, max_tokens=32), WEIGHTS, tmp_path)


def test_a_reference_that_is_not_the_base_is_noticed(tiny, tmp_path, monkeypatch):
    import peft

    real = peft.LoraConfig
    # LoRA whose B is not zero at birth: the policy is then not the reference at step 0
    monkeypatch.setattr(peft, "LoraConfig", lambda **k: real(**{**k, "init_lora_weights": False}))
    with pytest.raises(ProofError, match="not 0"):
        train_dpo(resolve(str(tiny)), PAIRS, settings(alpha=800), WEIGHTS, tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_four_bits_it_learns_the_pairs_too(tiny, tmp_path, dtype):
    train_dpo(resolve(str(tiny)), PAIRS, settings(), ModelSettings(dtype=dtype, four_bit=True), tmp_path)
    rows = read_metrics(tmp_path)
    assert rows[0]["rewards/margins"] == 0
    assert rows[-1]["loss"] < 0.5


# ---- from an adapter


@pytest.fixture(scope="module")
def cold_start(tiny, tmp_path_factory):
    from toolkit.models.sft import train_sft
    from toolkit.recipe import SftSettings

    out = tmp_path_factory.mktemp("sft")
    sft = SftSettings(lora=LoraSettings(8, 16), batch=2, epochs=6, lr=1e-2)
    train_sft(resolve(str(tiny)), [(p.prompt, p.chosen) for p in PAIRS], sft, WEIGHTS, out)
    return out / "adapter"


def tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("loss", ["dpo", "ddpo"])
@pytest.mark.parametrize("four_bit", [False, True])
def test_from_an_adapter_it_starts_level_with_it_and_learns(tiny, cold_start, tmp_path, loss, four_bit):
    weights = ModelSettings(dtype="float32", four_bit=four_bit)
    train_dpo(resolve(str(tiny)), PAIRS, settings(loss=loss, lr=3e-3), weights, tmp_path, deviation=[1.0, 1.0], start=cold_start)  # fmt: skip
    rows = read_metrics(tmp_path)
    assert rows[0]["rewards/margins"] == 0
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert rows[-1]["loss"] < 0.6


def test_from_an_adapter_only_the_trained_one_is_saved_and_it_has_moved(tiny, cold_start, tmp_path):
    train_dpo(resolve(str(tiny)), PAIRS, settings(epochs=2), WEIGHTS, tmp_path, start=cold_start)
    assert not (tmp_path / "adapter" / "ref").exists()
    before, after = tensors(cold_start), tensors(tmp_path / "adapter")
    assert before.keys() == after.keys()
    assert any((before[k] != after[k]).any() for k in before)


def test_orpo_goes_on_from_an_adapter_too(tiny, cold_start, tmp_path):
    train_dpo(resolve(str(tiny)), PAIRS, settings(loss="orpo", lr=3e-3), WEIGHTS, tmp_path, start=cold_start)
    rows = read_metrics(tmp_path)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_an_interrupted_training_from_an_adapter_keeps_its_reference(tiny, cold_start, tmp_path, monkeypatch):
    from toolkit.models import training

    more = {"epochs": 6, "lr": 3e-3, "save_every": 2}
    train_dpo(resolve(str(tiny)), PAIRS, settings(**more), WEIGHTS, tmp_path / "whole", start=cold_start)
    real = training.Log.on_step_end

    def dies(self, args, state, control, **kwargs):
        real(self, args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.Log, "on_step_end", dies)
    with pytest.raises(KeyboardInterrupt):
        train_dpo(resolve(str(tiny)), PAIRS, settings(**more), WEIGHTS, tmp_path / "killed", start=cold_start)
    monkeypatch.undo()
    train_dpo(resolve(str(tiny)), PAIRS, settings(**more), WEIGHTS, tmp_path / "killed", start=cold_start)
    whole, resumed = tensors(tmp_path / "whole" / "adapter"), tensors(tmp_path / "killed" / "adapter")
    assert all((whole[k] == resumed[k]).all() for k in whole)
