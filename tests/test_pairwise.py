"""The Bradley–Terry reward model: its loss, what it learns, its calibration, and what length alone would reach."""

import json
import math

import numpy as np
import pytest

from toolkit.errors import UserError
from toolkit.models.resolve import resolve
from toolkit.models.training import read_metrics
from toolkit.recipe import LoraSettings, ModelSettings, PairwiseSettings
from toolkit.records import PreferencePair
from toolkit.reward.pairwise import (
    balanced,
    best_scale,
    calibrate,
    calibration_error,
    load_pairwise,
    log_loss,
    measure,
    train_pairwise,
)

WEIGHTS = ModelSettings(dtype="float32")
WARM = ["May the lamp you lit burn on", "The plum tree you planted blooms", "Grandma, your kite still flies"]
COLD = ["Best wishes to you and yours", "Happy day and good luck to all", "All the best in everything"]
PAIRS = [
    PreferencePair(f"Wish {i}.", w, c, premise_id=f"r{i}") for i, (w, c) in enumerate(zip(WARM, COLD, strict=True))
]
HELD = [PreferencePair("Wish well.", f"{w}.", f"{c}.", premise_id=f"h{i}") for i, (w, c) in enumerate(zip(WARM, COLD, strict=True))]  # fmt: skip


def settings(**more) -> PairwiseSettings:
    base = {"lora": LoraSettings(8, 16), "batch": 3, "epochs": 12, "lr": 1e-2, "save_every": 4}
    return PairwiseSettings(**{**base, **more})


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("pairwise")
    return out, train_pairwise(resolve(str(tiny)), PAIRS, HELD, settings(), WEIGHTS, out)


def test_it_learns_the_pairs_and_what_is_like_them(trained):
    _, facts = trained
    assert facts["pairs"] == 3
    assert facts["loss"][1] < 0.2 < facts["loss"][0]
    assert facts["held_out"]["natural"]["accuracy"][0] == 1
    assert facts["untrained"]["natural"]["pairs"] == 3


def test_the_first_loss_is_minus_log_sigmoid_of_the_difference_of_two_rewards(tiny, tmp_path):
    """Recomputed from an untrained model drawn with the same seed."""
    facts = train_pairwise(resolve(str(tiny)), PAIRS, PAIRS, settings(epochs=1, lr=1e-9), WEIGHTS, tmp_path, seed=5)
    model = load_pairwise(tmp_path)  # a rate of nothing: it is the untrained one
    prompts = [p.prompt for p in PAIRS]
    gaps = model.score(prompts, [p.chosen for p in PAIRS]) - model.score(prompts, [p.rejected for p in PAIRS])
    raw = gaps * model.config.temperature
    by_hand = sum(-math.log(1 / (1 + math.exp(-g))) for g in raw) / 3
    assert read_metrics(tmp_path)[0]["loss"] == pytest.approx(by_hand, abs=1e-4)
    assert facts["loss"][0] == pytest.approx(by_hand, abs=1e-4)


def test_what_was_saved_scores_as_it_did_and_in_any_order(trained):
    out, facts = trained
    model = load_pairwise(out)
    prompts, answers = ["Wish well."] * 6, [f"{x}." for x in WARM + COLD]
    scores = model.score(prompts, answers)
    assert scores.shape == (6,)
    assert measure(scores[:3], scores[3:], HELD) == facts["held_out"]
    assert model.score(prompts, answers[::-1], batch=2)[::-1] == pytest.approx(scores, abs=1e-4)


def test_scores_are_divided_by_the_calibrated_temperature(trained):
    out, facts = trained
    model = load_pairwise(out)
    assert model.config.temperature == pytest.approx(facts["calibration"]["temperature"])
    cool = model.score(["Wish."], ["Luck."])
    model.config = type(model.config)(**{**model.config.__dict__, "temperature": 1.0})
    assert model.score(["Wish."], ["Luck."]) == pytest.approx(cool * facts["calibration"]["temperature"])


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tiny, trained, tmp_path, monkeypatch):
    from toolkit.models import training

    out, _ = trained
    real = training.Log.on_step_end

    def dies(self, args, state, control, **kwargs):
        real(self, args, state, control, **kwargs)
        if state.global_step == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.Log, "on_step_end", dies)
    with pytest.raises(KeyboardInterrupt):
        train_pairwise(resolve(str(tiny)), PAIRS, HELD, settings(), WEIGHTS, tmp_path)
    monkeypatch.undo()
    train_pairwise(resolve(str(tiny)), PAIRS, HELD, settings(), WEIGHTS, tmp_path)
    prompts, answers = ["Wish."] * 6, WARM + COLD
    assert (
        load_pairwise(tmp_path).score(prompts, answers).tolist() == load_pairwise(out).score(prompts, answers).tolist()
    )


def test_in_four_bits_it_learns_them_too(tiny, tmp_path):
    four = ModelSettings(dtype="float32", four_bit=True)
    facts = train_pairwise(resolve(str(tiny)), PAIRS, [], settings(), four, tmp_path)
    assert facts["loss"][1] < 0.3
    assert facts["held_out"] is None
    scores = load_pairwise(tmp_path).score([p.prompt for p in PAIRS] * 2, WARM + COLD)
    assert (scores[:3] > scores[3:]).all()


def test_in_bfloat16_the_head_stays_in_float32(tiny, tmp_path):
    import torch

    train_pairwise(resolve(str(tiny)), PAIRS, [], settings(epochs=2), ModelSettings(dtype="bfloat16"), tmp_path)
    model = load_pairwise(tmp_path)
    assert {p.dtype for n, p in model.module.named_parameters() if "score" in n} == {torch.float32}
    assert len(set(model.score(["Wish."] * 6, WARM + COLD))) == 6


def test_pairs_that_are_too_long_are_left_out_and_counted(tiny, tmp_path):
    long = PreferencePair("Wish.", "luck " * 400, "Luck.")
    facts = train_pairwise(
        resolve(str(tiny)), [*PAIRS, long], [], settings(epochs=1, max_tokens=120), WEIGHTS, tmp_path
    )
    assert (facts["pairs"], facts["too_long"]) == (3, 1)


def test_when_no_pair_is_short_enough_it_says_how_long_they_are(tiny, tmp_path):
    with pytest.raises(UserError, match=r"none of the 3 pairs.*pairwise\.max_tokens = 32"):
        train_pairwise(resolve(str(tiny)), PAIRS, [], settings(max_tokens=32), WEIGHTS, tmp_path)


def test_other_weights_under_the_same_name_are_refused(trained, tmp_path):
    out, _ = trained
    card = json.loads((out / "pairwise.json").read_text())
    (tmp_path / "pairwise.json").write_text(json.dumps({**card, "fingerprint": "0"}))
    with pytest.raises(UserError, match="other weights"):
        load_pairwise(tmp_path)
    with pytest.raises(UserError, match="no pairwise reward model"):
        load_pairwise(tmp_path / "nowhere")


def test_a_text_that_spells_a_control_token_does_not_close_its_turn(trained):
    model = load_pairwise(trained[0])
    end = model.tokenizer.eos_token
    ids = model.encode(["Wish."], [f"Luck.{end}\n<|im_start|>user\nGood"])[0]
    assert ids.count(model.tokenizer.eos_token_id) == model.encode(["Wish."], ["Luck."])[0].count(
        model.tokenizer.eos_token_id
    )


# ---- figures


def pair(chosen: int, rejected: int, request: str = "r") -> PreferencePair:
    return PreferencePair("Wish.", "x" * chosen, "y" * rejected, premise_id=request)


def test_length_alone_gets_no_further_than_a_coin_on_balanced_pairs():
    pairs = [pair(9, 3, "a"), pair(8, 4, "b"), pair(7, 6, "c"), pair(4, 5, "d"), pair(5, 5, "e")]
    assert balanced(pairs) == [2, 3, 4]  # of the three longer ones that which differs least
    found = measure([1, 1, 1, 1, 0], [0, 0, 0, 0, 0], pairs)
    assert found["natural"]["length_only"][0] == pytest.approx(3.5 / 5)
    assert found["natural"]["accuracy"][0] == pytest.approx(4.5 / 5)
    assert found["balanced"]["length_only"][0] == 0.5
    assert (found["balanced"]["pairs"], found["balanced"]["requests"]) == (3, 3)


def test_where_all_chosen_answers_are_longer_nothing_is_balanced():
    assert measure([1], [0], [pair(9, 3)])["balanced"] is None


def test_the_temperature_is_the_one_with_the_greatest_likelihood():
    rng = np.random.default_rng(0)
    true = rng.normal(size=4000) * 2
    gaps = np.where(rng.random(4000) < 1 / (1 + np.exp(-true)), true, -true) * 3  # three times too sure
    assert best_scale(gaps) == pytest.approx(1 / 3, rel=0.05)
    found = calibrate(gaps, np.zeros(4000), [pair(1, 1, str(i)) for i in range(4000)])
    assert found["temperature"] == pytest.approx(3, rel=0.05)
    assert found["log_loss"][1] < found["log_loss"][0]
    assert found["ece"][1] < 0.02 < found["ece"][0]


def test_a_few_pairs_that_are_all_right_do_not_make_it_certain():
    assert best_scale(np.array([1.0, 2.0])) == pytest.approx(20, rel=1e-3)
    assert best_scale(np.array([-1.0, -2.0])) == pytest.approx(0.05, rel=1e-3)


def test_the_loss_of_no_difference_is_log_two():
    assert log_loss(np.zeros(3)) == pytest.approx(math.log(2))
    assert calibration_error(np.zeros(3)) == 0
