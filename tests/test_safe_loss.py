"""The held loss: β = 0 is plain training, β = 1 stays at the reference, and logits are never there whole."""

import dataclasses
import json
import math

import pytest
import torch

from toolkit.models import anchor
from toolkit.models.anchor import Anchor, beta_of, head_of, last_states, token_terms
from toolkit.models.load import load_model, load_tokenizer
from toolkit.models.resolve import resolve
from toolkit.models.sft import train_sft
from toolkit.models.training import read_metrics
from toolkit.recipe import LoraSettings, ModelSettings, SafetySettings, SftSettings
from toolkit.safety.train import hold, train_safe

WEIGHTS = ModelSettings(dtype="float32")
ROWS = [
    {"prompt": "Wish Ada well.", "answer": "May the lamp you lit burn on."},
    {"prompt": "Wish Bo well.", "answer": "Your kite still flies above the mill."},
    {"prompt": "Wish Cy well.", "answer": "The ferry waits."},
    {"prompt": "Wish Di well.", "answer": "Ring the bell twice, and the fog will lift for you."},
]
PAIRS = [(r["prompt"], r["answer"]) for r in ROWS]
RISKS = [0.0, 1.0, 0.25, 0.5]
LINEAR = SafetySettings(signal="probe", beta_min=0.0, beta_max=1.0)


def settings(**more) -> SftSettings:
    base = {"lora": LoraSettings(8, 16), "batch": 2, "epochs": 3, "lr": 1e-2, "save_every": 2}
    return SftSettings(**{**base, **more})


def safety(**more) -> SafetySettings:
    return dataclasses.replace(LINEAR, **more)


def adapter(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter" / "adapter_model.safetensors")


def run(tiny, out, risks=RISKS, start=None, sft=None, **more):
    return train_safe(resolve(str(tiny)), ROWS, risks, sft or settings(), safety(**more), WEIGHTS, out, 1, start)


# ---- the terms


@pytest.fixture
def head():
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 300, bias=False)
    return lambda states: layer(states).float()


def states(n=7):
    torch.manual_seed(1)
    return torch.randn(n, 16, requires_grad=True), torch.randn(n, 16), torch.randint(0, 300, (n,))


def direct(head, own, reference, targets):
    log_q, log_p = head(own).log_softmax(-1), head(reference).log_softmax(-1)
    return -log_q[torch.arange(len(targets)), targets], (log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize("tokens", [1, 3, 1000])
def test_terms_made_in_blocks_are_the_direct_ones_in_value_and_gradient(head, monkeypatch, tokens):
    monkeypatch.setattr(anchor, "BLOCK", 4 * 300 * tokens)
    own, reference, targets = states()
    weights = torch.linspace(0.1, 2, 7)
    found, wanted = [], []
    for into, made in ((found, token_terms(head, own, reference, targets, 300)), (wanted, direct(head, own, reference, targets))):  # fmt: skip
        own.grad = None
        (weights * made[0] + (2 - weights) * made[1]).sum().backward()
        into += [made[0].detach(), made[1].detach(), own.grad.clone()]
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-5)


def test_the_gradient_agrees_with_finite_differences(head):
    own, reference, targets = states(3)
    twice = lambda s: sum(t.sum() * w for t, w in zip(token_terms(lambda x: head(x.float()).double(), s, reference, targets, 300), (0.3, 0.7), strict=True))  # noqa: E731  # fmt: skip
    own.grad = None
    twice(own).backward()
    step, place = 1e-2, (1, 4)
    moved = []
    for sign in (1, -1):
        other = own.detach().clone()
        other[place] += sign * step
        moved.append(twice(other).item())
    assert own.grad[place].item() == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-2)


def test_the_divergence_and_its_gradient_are_exactly_zero_at_the_reference(head):
    own, _, targets = states()
    _, kl = token_terms(head, own, own.detach().clone(), targets, 300)
    assert kl.abs().max() == 0
    kl.sum().backward()
    assert own.grad.abs().max() == 0


def test_the_block_is_as_many_tokens_as_the_vocabulary_allows(head, monkeypatch):
    sizes = []
    watched = lambda s: (sizes.append(len(s)), head(s))[1]  # noqa: E731
    monkeypatch.setattr(anchor, "BLOCK", 4 * 300 * 3)
    token_terms(watched, *states(), 300)
    assert max(sizes) == 3


@pytest.mark.parametrize(
    "more",
    [{"final_logit_softcapping": 5.0}, {"logit_scale": 0.25}, {"logits_scaling": 4.0}],
    ids=lambda m: next(iter(m)),
)
def test_the_head_scales_and_caps_as_the_models_config_says(tiny, more):
    model = load_model(resolve(str(tiny)), dtype="float32")
    plain = head_of(model)(torch.ones(1, 64))
    for name, value in more.items():
        setattr(model.config, name, value)
    found = head_of(model)(torch.ones(1, 64))
    wanted = 5 * torch.tanh(plain / 5) if "final_logit_softcapping" in more else plain / 4
    assert torch.allclose(found, wanted, atol=1e-5)


def test_the_states_read_in_passing_give_the_models_own_logits(tiny):
    model, tokenizer = load_model(resolve(str(tiny)), dtype="float32"), load_tokenizer(resolve(str(tiny)))
    ids = torch.tensor([tokenizer("The bell rang twice.")["input_ids"]])
    with last_states(model) as seen:
        wanted = model(ids).logits
    assert torch.allclose(head_of(model)(seen[0][0]), wanted[0], atol=1e-5)


# ---- β


def test_beta_goes_in_a_line_from_its_lower_to_its_upper_bound():
    assert [beta_of(s, safety(beta_min=0.1, beta_max=0.9)) for s in (0.0, 0.5, 1.0)] == pytest.approx([0.1, 0.5, 0.9])


def test_the_published_map_clamps_two_thirds_of_the_scores():
    published = safety(beta_min=0.1, beta_max=0.9, map="clamp")
    scores = {1: 0.1, 2: 0.1, 3: 1 / 3, 4: 2 / 3, 5: 0.9}
    for r, beta in scores.items():
        s = min(max((r - 2) / 3, 0), 1)
        assert beta_of(s, published) == pytest.approx(beta)
        assert beta_of(torch.tensor([s]), published).item() == pytest.approx(beta)


def test_per_batch_every_example_has_the_mean(tmp_path):
    risks = torch.tensor([0.0, 1.0, 0.5])
    assert Anchor(safety(), tmp_path).betas(risks).tolist() == [0.0, 1.0, 0.5]
    assert Anchor(safety(per="batch"), tmp_path).betas(risks).tolist() == pytest.approx([0.5] * 3)


def test_a_smoothed_risk_is_drawn_to_the_mean_of_the_batches_before(tmp_path):
    held = Anchor(safety(ema=0.5), tmp_path)
    assert held.betas(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0.25, 0.75])  # m = 0.5, the batch's own mean
    assert held.betas(torch.tensor([1.0, 1.0])).tolist() == pytest.approx([0.75, 0.75])  # half of 0.5, half of 1
    assert held.betas(torch.tensor([0.0, 0.2])).tolist() == pytest.approx([0.375, 0.475])  # half of 0.75
    assert held.mean == pytest.approx(0.425)


def test_the_controls_replace_the_risks():
    assert hold(RISKS, safety(signal="none")) is None
    assert hold(RISKS, safety(signal="constant")).risks == [1.0] * 4
    shuffled = hold(RISKS, safety(signal="random"), seed=3)
    assert sorted(shuffled.risks) == sorted(RISKS)
    assert shuffled.risks == hold(RISKS, safety(signal="random"), seed=3).risks
    assert any(hold(RISKS, safety(signal="random"), seed=n).risks != RISKS for n in range(5))


# ---- training


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain")
    return out, train_sft(resolve(str(tiny)), PAIRS, settings(), WEIGHTS, out)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_with_beta_zero_it_is_plain_fine_tuning(tiny, plain, tmp_path, accumulate):
    want, sft = plain[0], settings(accumulate=accumulate)
    if accumulate == 2:
        want = tmp_path / "plain"
        train_sft(resolve(str(tiny)), PAIRS, sft, WEIGHTS, want)
    run(tiny, tmp_path, [0.0] * 4, sft=sft)
    for a, b in zip(read_metrics(tmp_path), read_metrics(want), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    a, b = adapter(tmp_path), adapter(want)
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in b)


def test_with_beta_one_a_model_at_its_reference_does_not_move(tiny, tmp_path):
    run(tiny, tmp_path, [1.0] * 4)
    rows = read_metrics(tmp_path)
    assert all(r["grad_norm"] == 0 and r["safety/kl"] == 0 for r in rows)
    assert all(v.abs().max() == 0 for k, v in adapter(tmp_path).items() if "lora_B" in k)


def test_with_beta_one_a_model_stays_at_the_adapter_it_started_from(tiny, plain, tmp_path):
    run(tiny, tmp_path, [1.0] * 4, start=plain[0] / "adapter")
    a, b = adapter(tmp_path), adapter(plain[0])
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in b)


def test_held_to_the_base_an_adapter_that_strayed_is_drawn_back(tiny, plain, tmp_path):
    run(tiny, tmp_path, [1.0] * 4, start=plain[0] / "adapter", reference="base", sft=settings(epochs=10))
    rows = read_metrics(tmp_path)
    assert rows[-1]["safety/kl"] < 0.5 * rows[0]["safety/kl"]


def test_the_more_it_is_held_the_less_it_drifts_and_learns(tiny, plain, tmp_path):
    ends = {}
    for beta in (0.1, 0.9):
        run(tiny, tmp_path / str(beta), [beta] * 4)
        ends[beta] = read_metrics(tmp_path / str(beta))[-1]
    assert ends[0.9]["safety/kl"] < 0.5 * ends[0.1]["safety/kl"]
    assert ends[0.9]["safety/nll"] > ends[0.1]["safety/nll"]


def test_the_loss_of_a_batch_is_recomputed_by_hand_for_each_kind_of_beta(tiny, plain, tmp_path):
    """Starting from a trained adapter and held to the base, so that the divergence is not nothing."""
    from peft import PeftModel

    base, start = resolve(str(tiny)), plain[0] / "adapter"
    tokenizer = load_tokenizer(base)
    network = PeftModel.from_pretrained(load_model(base, dtype="float32"), str(start))
    each = []
    for prompt, answer in PAIRS:
        turns = [{"role": "user", "content": prompt}]
        head = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}], return_dict=False)
        with torch.no_grad():
            log_q = network(torch.tensor([ids])).logits[0, len(head) - 1 : -1].log_softmax(-1)
            with network.disable_adapter():
                log_p = network(torch.tensor([ids])).logits[0, len(head) - 1 : -1].log_softmax(-1)
        nll = -log_q[torch.arange(len(ids) - len(head)), ids[len(head) :]].sum()
        each.append((float(nll), float((log_p.exp() * (log_p - log_q)).sum()), len(ids) - len(head)))
    tokens = sum(n for *_, n in each)
    for per in ("example", "batch"):
        betas = RISKS if per == "example" else [sum(RISKS) / 4] * 4
        wanted = sum((1 - b) * nll + b * kl for b, (nll, kl, _) in zip(betas, each, strict=True)) / tokens
        out = tmp_path / per
        run(tiny, out, start=start, reference="base", per=per, sft=settings(batch=4, epochs=1))
        first = read_metrics(out)[0]
        assert first["loss"] == pytest.approx(wanted, abs=2e-4)
        assert first["safety/beta"] == pytest.approx(sum(RISKS) / 4)
        assert first["safety/kl"] == pytest.approx(sum(kl for _, kl, _ in each) / tokens, abs=2e-4)


def test_the_riskless_example_is_learnt_and_the_risky_one_is_not(tiny, tmp_path):
    facts = run(tiny, tmp_path, [0.0, 1.0, 0.0, 1.0], sft=settings(epochs=20, batch=4))
    assert facts["beta"] == pytest.approx([0.5] * 3)
    from peft import PeftModel

    base = resolve(str(tiny))
    network = PeftModel.from_pretrained(load_model(base, dtype="float32"), str(tmp_path / "adapter"))
    tokenizer = load_tokenizer(base)
    fell = []
    for prompt, answer in PAIRS:
        turns = [{"role": "user", "content": prompt}]
        head = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}], return_dict=False)
        found = []
        for off in (False, True):
            with torch.no_grad(), network.disable_adapter() if off else torch.no_grad():
                log_q = network(torch.tensor([ids])).logits[0, len(head) - 1 : -1].log_softmax(-1)
            found.append(-float(log_q[torch.arange(len(ids) - len(head)), ids[len(head) :]].mean()))
        fell.append(found[1] - found[0])
    assert min(fell[0], fell[2]) > 2 * max(fell[1], fell[3])


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tiny, tmp_path, monkeypatch, ema):
    from toolkit.models import training

    real = training.Log.on_step_end

    def dies(self, args, state, control, **kwargs):
        real(self, args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt

    run(tiny, tmp_path / "whole", ema=ema)
    monkeypatch.setattr(training.Log, "on_step_end", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path / "killed", ema=ema)
    monkeypatch.undo()
    run(tiny, tmp_path / "killed", ema=ema)
    whole, resumed = adapter(tmp_path / "whole"), adapter(tmp_path / "killed")
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    betas = [[r["safety/beta"] for r in read_metrics(tmp_path / name)] for name in ("whole", "killed")]
    assert betas[0] == betas[1]
    assert len(betas[0]) == 6


def test_in_four_bits_it_is_held_too(tiny, tmp_path):
    weights = ModelSettings(dtype="float32", four_bit=True)
    facts = train_safe(resolve(str(tiny)), ROWS, RISKS, settings(batch=4, epochs=8), safety(), weights, tmp_path)
    assert facts["kl"][0] == 0
    assert math.isfinite(facts["kl"][1])
    assert facts["loss"][1] < facts["loss"][0]


def test_turns_before_the_answer_are_a_prompt_too(tiny, tmp_path):
    rows = [{"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "And?"}], "answer": "So."}]  # fmt: skip
    facts = train_safe(resolve(str(tiny)), rows, [0.5], settings(epochs=1), safety(), WEIGHTS, tmp_path)
    assert facts["rows"] == 1


def test_the_trace_of_a_training_is_on_disk(tiny, tmp_path):
    facts = run(tiny, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all({"safety/nll", "safety/kl", "safety/beta", "safety/risk"} <= r.keys() for r in rows)
    assert facts["beta"][0] == pytest.approx(rows[0]["safety/beta"], abs=1e-5)
