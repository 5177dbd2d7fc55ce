"""The safe reference beside preferences and rewards: β = 0 changes nothing, β = 1 nothing at all is learnt, and a pair's own β counts."""

import pytest
import torch
from test_grpo import REQUESTS, letters, no_guard
from test_grpo import settings as grpo_settings
from test_weighted_losses import PAIRS, WEIGHTS, adapter
from test_weighted_losses import settings as dpo_settings

from toolkit.models.anchor import Held
from toolkit.models.resolve import resolve
from toolkit.models.sft import train_sft
from toolkit.models.training import read_metrics
from toolkit.preference.dpo import train_dpo
from toolkit.preference.grpo import train_grpo
from toolkit.recipe import LoraSettings, SafetySettings, SftSettings

WHOLE = SafetySettings(signal="probe", beta_min=0.0, beta_max=1.0)
EVEN = [1.0] * 3


def dpo(tiny, out, loss, risks, **more):
    held = Held(risks, WHOLE) if risks else None
    weights = EVEN if loss in ("ddpo", "dorpo") else None
    return train_dpo(resolve(str(tiny)), PAIRS, dpo_settings(loss, **more), WEIGHTS, out, deviation=weights, held=held)


def grpo(tiny, out, risk, start=None, **more):
    out.mkdir(exist_ok=True)
    held = Held([risk] * len(REQUESTS), WHOLE) if risk is not None else None
    return train_grpo(
        resolve(str(tiny)), REQUESTS, [("letters", letters, 1.0)], no_guard, grpo_settings(**more), WEIGHTS, out,
        start=start, lora=LoraSettings(8, 16), held=held,
    )  # fmt: skip


@pytest.mark.parametrize("loss", ["dpo", "orpo"])
def test_without_risk_pairs_are_learnt_as_if_nothing_held_them(tiny, tmp_path, monkeypatch, loss):
    monkeypatch.setattr("toolkit.preference.shared.why_plain", lambda *_: "a held training reads pairs so")
    dpo(tiny, tmp_path / "plain", loss, None)
    dpo(tiny, tmp_path / "held", loss, [0.0] * 3)
    a, b = adapter(tmp_path / "plain"), adapter(tmp_path / "held")
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)
    for x, y in zip(read_metrics(tmp_path / "plain"), read_metrics(tmp_path / "held"), strict=True):
        assert x["loss"] == pytest.approx(y["loss"], abs=1e-6)


@pytest.mark.parametrize("loss", ["dpo", "dorpo"])
def test_at_full_risk_no_pair_moves_the_model(tiny, tmp_path, loss):
    dpo(tiny, tmp_path, loss, EVEN)
    assert all(r["grad_norm"] == 0 and r["safety/kl"] == 0 for r in read_metrics(tmp_path))
    assert all(v.abs().max() == 0 for k, v in adapter(tmp_path).items() if "lora_B" in k)


def test_a_risky_pair_teaches_nothing_and_its_neighbours_do(tiny, tmp_path):
    facts = dpo(tiny, tmp_path, "dpo", [0.0, 0.0, 1.0], batch=3, epochs=8, lr=5e-3)
    assert facts["beta"] == pytest.approx([1 / 3] * 3, abs=1e-4)
    assert facts["loss"][1] < facts["loss"][0]
    dpo(tiny, tmp_path / "plain", "dpo", None, batch=3, epochs=8, lr=5e-3)
    from toolkit.models.load import load_model, load_tokenizer

    base = resolve(str(tiny))
    tokenizer, gap = load_tokenizer(base), {}
    for name, folder in (("held", tmp_path), ("plain", tmp_path / "plain")):
        from peft import PeftModel

        network = PeftModel.from_pretrained(load_model(base, dtype="float32"), str(folder / "adapter"))

        def logp(pair, answer, network=network):
            turns = [{"role": "user", "content": pair.prompt}]
            head = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
            ids = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}], return_dict=False)
            with torch.no_grad():
                rows = network(torch.tensor([ids])).logits[0, len(head) - 1 : -1].log_softmax(-1)
            return float(rows[torch.arange(len(ids) - len(head)), ids[len(head) :]].sum())

        gap[name] = [logp(p, p.chosen) - logp(p, p.rejected) for p in PAIRS]
    assert gap["held"][0] - gap["held"][2] > gap["plain"][0] - gap["plain"][2]


def test_the_first_loss_of_a_held_pair_is_its_share_of_the_plain_one(tiny, tmp_path):
    """At the start the divergence is 0, so that what is left is the mean of α · log 2."""
    dpo(tiny, tmp_path, "dpo", [0.0, 0.5, 1.0], batch=3, epochs=1)
    assert read_metrics(tmp_path)[0]["loss"] == pytest.approx(0.5 * 0.6931, abs=1e-4)


def test_rewards_teach_as_before_without_risk(tiny, tmp_path):
    grpo(tiny, tmp_path / "plain", None, steps=4)
    grpo(tiny, tmp_path / "held", 0.0, steps=4)
    a, b = adapter(tmp_path / "plain"), adapter(tmp_path / "held")
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


def test_rewards_teach_nothing_at_full_risk(tiny, tmp_path):
    facts = grpo(tiny, tmp_path, 1.0, steps=4, beta=0.0)
    assert facts["beta"] == [1.0, 1.0, 1.0]
    assert facts["kl_held"] == [0, 0, 0]
    assert all(v.abs().max() == 0 for k, v in adapter(tmp_path).items() if "lora_B" in k)


def test_rewards_are_held_to_the_adapter_they_start_from(tiny, tmp_path):
    rows = [(r["prompt"], "May the lamp you lit burn on.") for r in REQUESTS]
    sft = SftSettings(lora=LoraSettings(8, 16), batch=5, epochs=4, lr=1e-2)
    train_sft(resolve(str(tiny)), rows, sft, WEIGHTS, tmp_path / "cold")
    facts = grpo(tiny, tmp_path / "held", 1.0, start=tmp_path / "cold" / "adapter", steps=2, beta=0.0)
    assert facts["kl_held"] == [0, 0, 0]
    a, b = adapter(tmp_path / "cold"), adapter(tmp_path / "held")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_held_training_of_rewards_goes_on_where_it_was_killed(tiny, tmp_path, monkeypatch):
    from toolkit.models import training

    real = training.Log.on_step_end

    def dies(self, args, state, control, **kwargs):
        real(self, args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt

    grpo(tiny, tmp_path / "whole", 0.5, steps=4)
    monkeypatch.setattr(training.Log, "on_step_end", dies)
    with pytest.raises(KeyboardInterrupt):
        grpo(tiny, tmp_path / "killed", 0.5, steps=4)
    monkeypatch.undo()
    grpo(tiny, tmp_path / "killed", 0.5, steps=4)
    a, b = adapter(tmp_path / "whole"), adapter(tmp_path / "killed")
    assert all(torch.equal(a[k], b[k]) for k in a)
