"""DDPO and DORPO: hand-computed values, and plain DPO where every weight is 1."""

import math

import pytest
import torch

from toolkit.errors import UserError
from toolkit.models.resolve import resolve
from toolkit.models.training import read_metrics
from toolkit.preference import losses
from toolkit.preference.dpo import train_dpo
from toolkit.recipe import DpoSettings, LoraSettings, ModelSettings
from toolkit.records import PreferencePair

PAIRS = [
    PreferencePair("Write.", "Ama dug until the root bled.", "Um, nothing."),
    PreferencePair("Write more.", "The bell rang for the drowned.", "So it goes on."),
    PreferencePair("Write again.", "Nobody came to the feast, and the cook ate alone.", "Fine."),
]
WEIGHTS = ModelSettings(dtype="float32")


def settings(loss, **more) -> DpoSettings:
    base = {"lora": LoraSettings(8, 16), "batch": 2, "accumulate": 1, "epochs": 4, "lr": 3e-3}
    return DpoSettings(loss=loss, **{**base, **more})


def adapter(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter" / "adapter_model.safetensors")


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_ddpo_is_the_weight_times_minus_log_sigmoid_of_beta_times_the_gap():
    got = losses.ddpo(torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0]), 0.1)
    assert got.tolist() == pytest.approx([-0.5 * math.log(sigmoid(0.2)), -3.0 * math.log(sigmoid(-0.1))])


def test_dorpo_has_its_weight_inside_the_sigmoid_and_before_the_likelihood():
    p, q, w, odds = 0.4, 0.2, 1.7, 0.25
    got = losses.dorpo(torch.tensor([math.log(p)]), torch.tensor([math.log(q)]), torch.tensor([w]), odds)
    gap = math.log(p / (1 - p)) - math.log(q / (1 - q))
    assert got.item() == pytest.approx(-w * math.log(p) - odds * math.log(sigmoid(w * gap)), rel=1e-5)


def test_weights_act_on_each_pair_by_itself():
    chosen, rejected = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    together = losses.dorpo(chosen, rejected, torch.tensor([2.0, 0.3]), 0.25)
    alone = [
        losses.dorpo(chosen[i : i + 1], rejected[i : i + 1], torch.tensor([w]), 0.25) for i, w in ((0, 2.0), (1, 0.3))
    ]
    assert together.tolist() == pytest.approx([a.item() for a in alone])


def test_the_odds_term_is_trls_where_the_weight_is_one():
    from trl.experimental.orpo import ORPOTrainer

    chosen, rejected = torch.tensor([-0.3, -2.0]), torch.tensor([-1.5, -0.01])
    holder = type("T", (), {"beta": 0.25, "accelerator": type("A", (), {"device": "cpu"})()})()
    theirs = ORPOTrainer.odds_ratio_loss(holder, chosen, rejected)[0]
    ours = losses.dorpo(chosen, rejected, torch.ones(2), 0.25) + chosen
    assert (-ours).tolist() == pytest.approx(theirs.tolist(), rel=1e-5)


def test_log_odds_stay_finite_for_an_answer_that_is_certain():
    assert torch.isfinite(losses.log_odds(torch.tensor([0.0, -1e-9, -500.0]))).all()


def test_ddpo_with_every_weight_one_is_dpo_to_the_last_bit(tiny, tmp_path):
    base = resolve(str(tiny))
    train_dpo(base, PAIRS, settings("dpo"), WEIGHTS, tmp_path / "dpo")
    train_dpo(base, PAIRS, settings("ddpo"), WEIGHTS, tmp_path / "ddpo", deviation=[1.0] * 3)
    for key in ("loss", "rewards/margins", "logps/chosen"):
        assert [r[key] for r in read_metrics(tmp_path / "ddpo")] == [r[key] for r in read_metrics(tmp_path / "dpo")]
    plain, weighted = adapter(tmp_path / "dpo"), adapter(tmp_path / "ddpo")
    assert all(torch.equal(plain[k], weighted[k]) for k in plain)


def test_a_pair_of_weight_zero_teaches_nothing(tiny, tmp_path):
    base = resolve(str(tiny))
    more = {"batch": 3, "epochs": 3, "lr": 1e-2}
    train_dpo(base, PAIRS, settings("ddpo", **more), WEIGHTS, tmp_path / "a", deviation=[1.5, 1.5, 0.0])
    train_dpo(base, [*PAIRS[:2], PreferencePair("Write again.", "X.", "Y.")], settings("ddpo", **more), WEIGHTS, tmp_path / "b", deviation=[1.5, 1.5, 0.0])  # fmt: skip
    a, b = adapter(tmp_path / "a"), adapter(tmp_path / "b")
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)


def test_ddpo_starts_at_log_two_times_the_mean_weight(tiny, tmp_path):
    train_dpo(resolve(str(tiny)), PAIRS, settings("ddpo", batch=3), WEIGHTS, tmp_path, deviation=[0.5, 1.0, 1.8])
    first = read_metrics(tmp_path)[0]
    assert first["loss"] == pytest.approx(math.log(2) * 1.1, abs=1e-4)
    assert first["weights"] == pytest.approx(1.1)


@pytest.mark.parametrize("loss", ["orpo", "dorpo"])
def test_orpo_and_dorpo_learn_the_pairs_without_a_reference(tiny, tmp_path, loss):
    train_dpo(
        resolve(str(tiny)), PAIRS, settings(loss, lr=1e-2, epochs=8), WEIGHTS, tmp_path, deviation=[1.5, 0.5, 1.0]
    )
    rows = read_metrics(tmp_path)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["logps/chosen"] > rows[0]["logps/chosen"]
    assert rows[-1]["rewards/margins"] > rows[0]["rewards/margins"]


def test_the_first_orpo_loss_is_recomputed_by_hand(tiny, tmp_path):
    from toolkit.models.load import load_model, load_tokenizer

    base = resolve(str(tiny))
    train_dpo(base, PAIRS, settings("dorpo", batch=3, epochs=1), WEIGHTS, tmp_path, deviation=[0.2, 2.0, 0.8])
    network, tokenizer = load_model(base, dtype="float32"), load_tokenizer(base)

    def mean_logp(pair, answer):
        prompt = [{"role": "user", "content": pair.prompt}]
        head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], return_dict=False)
        with torch.no_grad():
            rows = network(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(rows[i - 1, ids[i]]) for i in range(len(head), len(ids))) / (len(ids) - len(head))

    total = 0.0
    for pair, w in zip(PAIRS, (0.2, 2.0, 0.8), strict=True):
        c, r = mean_logp(pair, pair.chosen), mean_logp(pair, pair.rejected)
        gap = c - math.log(1 - math.exp(c)) - (r - math.log(1 - math.exp(r)))
        total += -w * c - 0.25 * math.log(sigmoid(w * gap))
    assert read_metrics(tmp_path)[0]["loss"] == pytest.approx(total / 3, abs=2e-4)


def test_pairs_that_all_weigh_nothing_are_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="weights are all 0"):
        train_dpo(resolve(str(tiny)), PAIRS, settings("ddpo"), WEIGHTS, tmp_path, deviation=[0.0] * 3)


@pytest.fixture(scope="module")
def tiny_moe(tmp_path_factory):
    """A random Qwen3 mixture of experts, 2 layers × 4 experts, with a balance loss."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    from toolkit.models.load import load_tokenizer

    folder = tmp_path_factory.mktemp("moe")
    tokenizer = load_tokenizer(resolve("embedded"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        router_aux_loss_coef=0.05,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_mixture_of_experts_keeps_its_balance_loss_under_the_weights(tiny_moe, tmp_path):
    lora = LoraSettings(8, 16, targets=("q_proj", "k_proj", "v_proj", "o_proj"))
    attention = {"lora": lora, "epochs": 2, "router_aux": 0.05}
    base = resolve(str(tiny_moe))
    train_dpo(base, PAIRS, settings("dpo", **attention), WEIGHTS, tmp_path / "dpo")
    train_dpo(base, PAIRS, settings("ddpo", **attention), WEIGHTS, tmp_path / "ddpo", deviation=[1.0] * 3)
    losses_ = [[r["loss"] for r in read_metrics(tmp_path / name)] for name in ("dpo", "ddpo")]
    assert losses_[0] == losses_[1]
    assert losses_[0][0] > math.log(2) + 0.01  # the balance loss stands in it
