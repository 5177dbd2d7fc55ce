"""The shared pass is TRL's function: same log-probabilities, gradients and training; and nothing is computed twice."""

import pytest
import torch
import trl.trainer.dpo_trainer  # noqa: F401 (it takes utils.use_adapter for its own before that is replaced here)
from trl.trainer import utils

from toolkit.models.load import load_model, load_tokenizer, lora_config
from toolkit.models.resolve import resolve
from toolkit.models.training import read_metrics
from toolkit.preference import shared
from toolkit.preference.dpo import chat_row, token_ids, train_dpo
from toolkit.recipe import DpoSettings, LoraSettings, ModelSettings
from toolkit.records import PreferencePair, read_jsonl

PAIRS = [
    PreferencePair("Write a plot about a well and a bell.", "Ama dug until the root bled, and then she drank.", "Um."),
    PreferencePair(
        "Write more.", "The bell rang for the drowned.", "So it goes on, and on, and nobody minds it at all."
    ),
    PreferencePair("Write again.", "Nobody came to the feast, and the cook ate alone.", "Fine."),
]
WEIGHTS = ModelSettings(dtype="float32")
LOSSES = ("dpo", "ddpo", "orpo", "dorpo")


def settings(loss="dpo", last_layers=2, **more) -> DpoSettings:
    base = {"lora": LoraSettings(8, 16, last_layers=last_layers), "batch": 2, "accumulate": 1, "epochs": 2, "lr": 3e-3}
    return DpoSettings(loss=loss, **{**base, **more})


def adapter(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter" / "adapter_model.safetensors")


def adapted(tiny, last_layers=2):
    """The tiny model with an adapter that changes what it says."""
    from peft import get_peft_model

    torch.manual_seed(0)
    model = load_model(resolve(str(tiny)), dtype="float32")
    config = lora_config(model, LoraSettings(8, 16, last_layers=last_layers))
    config.init_lora_weights = False
    return get_peft_model(model, config)


def examples(tiny):
    tokenizer = load_tokenizer(resolve(str(tiny)))
    return [token_ids(tokenizer, chat_row(p)) for p in PAIRS]


def plain_logps(base, ids):
    """(chosen, rejected), each read by itself with all its logits."""
    out = []
    for answer in ids[1:]:
        whole = torch.tensor([ids[0] + answer])
        logps = base(whole).logits[0, :-1].log_softmax(-1).gather(-1, whole[0, 1:, None])[:, 0]
        out.append(logps[len(ids[0]) - 1 :].sum())
    return torch.stack(out)


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("start", [0, 2])
def test_log_probabilities_and_gradients_are_those_of_two_passes(tiny, both, start):
    model = adapted(tiny)
    base = model.get_base_model()
    for ids in examples(tiny):
        gradients, values = [], []
        for way in ("plain", "shared"):
            model.zero_grad()
            if way == "plain":
                sums = plain_logps(base, ids)
            else:
                sums = torch.zeros(2)
                for row in shared.rows_of(*ids, both):
                    states = shared.lower_states(base, row, start) if start else None
                    sums = sums.index_add(0, row.rejected.long(), shared.answer_logps(base, row, start, states))
            (sums[0] - 0.5 * sums[1]).backward()
            values.append(sums.tolist())
            gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        assert values[1] == pytest.approx(values[0], abs=1e-3)
        for a, b in zip(*gradients, strict=True):
            assert torch.allclose(a, b, atol=1e-4 * float(a.abs().max()) + 1e-6)


def test_few_logits_at_a_time_give_the_same(tiny, monkeypatch):
    torch.manual_seed(0)
    states, weight, targets = torch.randn(7, 16, requires_grad=True), torch.randn(50, 16), torch.randint(0, 50, (7,))
    wanted = (states @ weight.T).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    above = torch.randn(7)
    gradient = torch.autograd.grad(wanted, states, above)[0]
    monkeypatch.setattr(shared, "BLOCK", 4 * 50 * 3)  # three tokens at a time
    found = shared.AnswerLogps.apply(states, weight, targets)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(torch.autograd.grad(found, states, above)[0], gradient, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("last_layers", [0, 2])
def test_training_is_the_plain_one(tiny, tmp_path, monkeypatch, loss, last_layers):
    """Loss, margin and log-probabilities of every step, and the adapter at the end; DPO's plain way is TRL's own trainer."""
    base, weights = resolve(str(tiny)), [0.5, 1.5, 1.0]
    train_dpo(base, PAIRS, settings(loss, last_layers), WEIGHTS, tmp_path / "shared", deviation=weights)
    monkeypatch.setattr(shared, "why_plain", lambda *_: "asked to")
    train_dpo(base, PAIRS, settings(loss, last_layers), WEIGHTS, tmp_path / "plain", deviation=weights)
    a, b = read_metrics(tmp_path / "shared"), read_metrics(tmp_path / "plain")
    for key in ("loss", "rewards/margins", "logps/chosen", "grad_norm"):
        assert [r[key] for r in a] == pytest.approx([r[key] for r in b], rel=2e-3, abs=2e-4)
    one, other = adapter(tmp_path / "shared"), adapter(tmp_path / "plain")
    assert one.keys() == other.keys()
    # Adam's first steps are signs: a gradient that is rounding moves a weight by lr either way
    assert all(float((one[k] - other[k]).abs().mean()) < 3e-4 for k in one)


def test_the_reference_is_computed_once_a_pair_and_lower_layers_too(tiny, tmp_path, monkeypatch):
    made = {"lower": 0, "reference": 0}
    lower, use = shared.lower_states, utils.use_adapter
    monkeypatch.setattr(shared, "lower_states", lambda *a: made.__setitem__("lower", made["lower"] + 1) or lower(*a))
    monkeypatch.setattr(
        utils, "use_adapter", lambda *a: made.__setitem__("reference", made["reference"] + 1) or use(*a)
    )
    monkeypatch.setattr(shared, "worth_sharing", lambda *_: True)
    monkeypatch.setattr(shared, "_gap", lambda *_: 0.0)
    train_dpo(resolve(str(tiny)), PAIRS, settings(epochs=3), WEIGHTS, tmp_path)
    assert made == {"lower": 3, "reference": 3}
    assert len(read_jsonl(tmp_path / shared.FILE)) == 3


def test_a_reference_on_disk_is_not_computed_again(tiny, tmp_path, monkeypatch):
    base = resolve(str(tiny))
    train_dpo(base, PAIRS, settings(), WEIGHTS, tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / shared.FILE).write_bytes((tmp_path / "a" / shared.FILE).read_bytes())
    monkeypatch.setattr(utils, "use_adapter", lambda *_: pytest.fail("computed again"))
    train_dpo(base, PAIRS, settings(), WEIGHTS, tmp_path / "b")
    one, other = adapter(tmp_path / "a"), adapter(tmp_path / "b")
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_what_would_differ_is_read_the_plain_way_and_named(tiny, tiny_moe):
    ids = examples(tiny)[0]
    model = load_model(resolve(str(tiny)), dtype="float32")
    assert shared.why_plain(model, ids) == ""
    assert shared.why_plain(load_model(resolve(str(tiny_moe)), dtype="float32"), ids) == "a mixture of experts"
    # a model that looks the same and is not: it scales its logits
    scaled = load_model(resolve(str(tiny)), dtype="float32")
    real = scaled.forward

    def forward(*args, **kwargs):
        out = real(*args, **kwargs)
        out.logits = out.logits / 3
        return out

    scaled.forward = forward
    assert "nats a token" in shared.why_plain(scaled, ids)
    model.config._attn_implementation = "eager"
    assert "eager" in shared.why_plain(model, ids)


def test_long_answers_under_a_short_prompt_are_read_one_by_one():
    small = {"layer": 3_540_000, "width": 576}  # SmolLM2-135M's
    assert shared.worth_sharing(100, 120, 120, **small)
    assert not shared.worth_sharing(60, 1500, 1500, **small)
    assert shared.worth_sharing(100, 500, 500, layer=190_000_000, width=4096)  # an 8B model's


def test_the_answers_begin_where_trl_begins_them(tiny):
    """Also where the prompt alone is rendered otherwise than before an answer."""
    from trl.data_utils import common_prefix_length

    tokenizer = load_tokenizer(resolve(str(tiny)))
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant><think>{% endif %}"
    row = chat_row(PAIRS[0])
    read = lambda m, **k: tokenizer.apply_chat_template(m, return_dict=False, **k)  # noqa: E731
    prompt, whole = read(row["prompt"], add_generation_prompt=True), read(row["prompt"] + row["chosen"])
    other = read(row["prompt"] + row["rejected"])
    cut = min(common_prefix_length(prompt, whole), common_prefix_length(prompt, other))
    assert 0 < cut < len(prompt)
    assert token_ids(tokenizer, row) == (prompt[:cut], whole[cut:], other[cut:])
