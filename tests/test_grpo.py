"""GRPO: advantages and rewards by hand, what a round costs is known, and a kill costs nothing."""

import json
import math

import pytest

from toolkit.errors import UserError
from toolkit.models.resolve import resolve
from toolkit.preference.grpo import Rewards, rounds_of, shape, train_grpo
from toolkit.recipe import GrpoSettings, LoraSettings, ModelSettings

WEIGHTS = ModelSettings(dtype="float32")
REQUESTS = [{"prompt": f"Wish {name} well.", "id": name} for name in ("Ada", "Bo", "Cy", "Di", "Eve")]


def settings(**more) -> GrpoSettings:
    base = {"lr": 1e-2, "batch": 2, "mini_batch": 4, "updates": 2, "epochs": 2}
    return GrpoSettings(**{**base, "max_tokens": 12, "save_every": 2, **more})


def letters(prompts, answers):
    return [float(a.count("e")) for a in answers]


def no_guard(prompt, answer):
    return []


def train(tiny, out, reward=letters, guard=no_guard, requests=REQUESTS, **more):
    rewards = more.pop("rewards", [("letters", reward, 1.0)])
    keys = ("start", "tripwire", "seed")
    named = {k: more.pop(k) for k in keys if k in more}
    out.mkdir(exist_ok=True)
    return train_grpo(
        resolve(str(tiny)), requests, rewards, guard, settings(**more), WEIGHTS, out, lora=LoraSettings(8, 16), **named
    )


def adapter(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("grpo")
    return out, train(tiny, out)


def test_facts_say_what_was_written_and_what_it_cost(trained):
    out, facts = trained
    assert (facts["rounds"], facts["steps"], facts["answers"]) == (5, 10, 40)  # 5 requests twice, in rounds of 2 × 4
    assert 40 <= facts["tokens"] <= 40 * 12
    assert all(v >= 0 for v in facts["seconds"].values())
    assert facts["seconds"]["writing"] > 0
    assert facts["written_by"] == "transformers"
    assert facts["kl"][0] == 0
    assert json.loads((out / "scales.json").read_text()) == facts["scales"]
    assert not (out / "adapter" / "ref").exists()


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tiny, trained, tmp_path, monkeypatch):
    from toolkit.models import training

    real = training.Log.on_step_end

    def dies(self, args, state, control, **kwargs):
        real(self, args, state, control, **kwargs)
        if state.global_step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.Log, "on_step_end", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, tmp_path)
    monkeypatch.undo()
    facts = train(tiny, tmp_path)
    whole, resumed = adapter(trained[0]), adapter(tmp_path)
    assert all((whole[k] == resumed[k]).all() for k in whole)
    timeless = lambda f: {k: v for k, v in f.items() if k != "seconds"}  # noqa: E731
    assert timeless(facts) == timeless(trained[1])


def test_checkpoints_fall_between_rounds(tiny, tmp_path):
    train(tiny, tmp_path, save_every=1, epochs=1)
    found = sorted(int(p.name.split("-")[1]) for p in (tmp_path / "checkpoints").glob("checkpoint-*"))
    assert found == [4, 6]


def test_it_learns_what_is_paid_for(tiny, tmp_path):
    the = lambda prompts, answers: [float(a.count("the")) for a in answers]  # noqa: E731
    facts = train(tiny, tmp_path, reward=the, steps=4, batch=4, samples=8, updates=1, mini_batch=32, beta=0.0)
    assert facts["rewards"]["letters"][1] > facts["rewards"]["letters"][0] + 4


def test_the_advantage_is_the_reward_less_its_groups_mean_over_the_groups_deviation(tiny, tmp_path, monkeypatch):
    from trl import GRPOTrainer

    seen = []
    real = GRPOTrainer._generate_and_score_completions

    def watched(self, inputs):
        found = real(self, inputs)
        seen.append(found["advantages"].tolist())
        return found

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", watched)
    paid = [1.0, 2.0, 3.0, 6.0, 5.0, 5.0, 5.0, 5.0]
    facts = train(tiny, tmp_path, reward=lambda p, a: paid, steps=2)
    deviation = math.sqrt((4 + 1 + 0 + 9) / 3)
    scale = facts["scales"]["letters"][
        1
    ]  # TRL adds 1e-4 to the deviation of what we pay, which is this many times smaller
    expected = [(v - 3) / (deviation + 1e-4 * scale) for v in paid[:4]] + [0.0] * 4
    assert seen[0] == pytest.approx(expected, abs=1e-4)
    assert facts["flat_groups"] == 0.5


@pytest.mark.parametrize("off", [1.0, 0.0])
def test_an_answer_cut_short_teaches_only_where_the_guard_can_punish_it(tiny, tmp_path, monkeypatch, off):
    from trl import GRPOTrainer

    seen = []
    real = GRPOTrainer._generate_and_score_completions
    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", lambda *a: seen.append(real(*a)) or seen[-1])
    given = ([("letters", letters, 1.0)], no_guard, settings(steps=2, max_tokens=3, guard=off), WEIGHTS, tmp_path)
    facts = train_grpo(resolve(str(tiny)), REQUESTS, *given)
    taught = seen[0]["completion_mask"].any(1).float().mean().item()
    assert facts["cut_short"][0] > 0
    assert taught == pytest.approx(1.0 if off else 1 - facts["cut_short"][0])


@pytest.mark.slow
def test_the_embedded_model_takes_a_step(tmp_path):
    sizes = {"batch": 2, "samples": 2, "mini_batch": 4, "updates": 1, "steps": 1, "max_tokens": 16}
    few, lora = GrpoSettings(**sizes), LoraSettings(8, 16, last_layers=4)
    long = [("length", lambda p, a: [float(len(x)) for x in a], 1.0)]
    facts = train_grpo(resolve("embedded"), REQUESTS, long, no_guard, few, WEIGHTS, tmp_path, lora=lora)
    assert (facts["answers"], facts["steps"]) == (4, 1)


def test_in_four_bits_it_goes_on_from_an_adapter(tiny, tmp_path):
    from toolkit.models.sft import train_sft
    from toolkit.recipe import SftSettings

    base, four = resolve(str(tiny)), ModelSettings(dtype="float32", four_bit=True)
    sft = SftSettings(lora=LoraSettings(4, 8), batch=2, epochs=2, lr=1e-2)
    train_sft(base, [("Wish Ada well.", "May your lamp burn on.")] * 2, sft, four, tmp_path / "sft")
    (tmp_path / "grpo").mkdir()
    given = ([("letters", letters, 1.0)], no_guard, settings(steps=2, beta=0.1), four, tmp_path / "grpo")
    facts = train_grpo(base, REQUESTS, *given, start=tmp_path / "sft" / "adapter")
    assert facts["kl"][0] == pytest.approx(0, abs=1e-6)  # from the adapter, not from the bare model
    assert json.loads((tmp_path / "grpo" / "adapter" / "adapter_config.json").read_text())["r"] == 4
    before, after = adapter(tmp_path / "sft"), adapter(tmp_path / "grpo")
    assert any((before[k] != after[k]).any() for k in before)


def test_requests_that_are_too_long_are_left_out_and_counted(tiny, tmp_path):
    long = {"prompt": "well " * 300}
    facts = train(tiny, tmp_path, requests=[*REQUESTS, long], steps=1)
    assert (facts["requests"], facts["too_long"]) == (5, 1)
    with pytest.raises(UserError, match=r"none of the 1 requests.*grpo\.prompt_tokens = 256"):
        train(tiny, tmp_path / "none", requests=[long])


def test_faults_of_form_are_counted(tiny, tmp_path):
    facts = train(tiny, tmp_path, guard=lambda p, a: ["too short", "language"] if "Ada" in p else [], steps=4)
    assert facts["guard"]["too short"] == facts["guard"]["language"] == facts["guard"]["any"]


# ---- what is paid


def test_rewards_are_standardised_over_the_first_round_weighted_and_summed(tmp_path):
    rewards = [("a", lambda p, x: [1.0, 3.0, 5.0, 7.0], 1.0), ("b", lambda p, x: [0.0, 0.0, 1.0, 1.0], 0.5)]
    pays = Rewards(rewards, no_guard, 1.0, 2, tmp_path / "scales.json")
    values, _ = pays(["p"] * 4, ["w"] * 4)
    a, b = [(v - 4) / math.sqrt(5) for v in (1, 3, 5, 7)], [(v - 0.5) / 0.5 for v in (0, 0, 1, 1)]
    assert values == pytest.approx([x + 0.5 * y for x, y in zip(a, b, strict=True)])


def test_later_rounds_and_later_attempts_are_paid_by_the_first_rounds_scale(tmp_path):
    numbers = iter([[1.0, 3.0], [10.0, 20.0], [10.0, 20.0]])
    rewards = [("a", lambda p, x: next(numbers), 1.0)]
    first = Rewards(rewards, no_guard, 1.0, 2, tmp_path / "scales.json")
    first(["p"] * 2, ["w"] * 2)
    second, _ = first(["p"] * 2, ["w"] * 2)
    assert second == [8.0, 18.0]
    assert Rewards(rewards, no_guard, 1.0, 2, tmp_path / "scales.json")(["p"] * 2, ["w"] * 2)[0] == second


def test_an_answer_without_a_number_is_paid_as_the_worst_of_its_group(tmp_path):
    given = [1.0, None, 4.0, 3.0, None, math.nan]
    pays = Rewards([("a", lambda p, x: given, 1.0)], no_guard, 1.0, 2, tmp_path / "s.json")
    values, notes = pays(["p"] * 6, ["w"] * 6)
    assert values[1] == values[0]
    assert values[4] == values[5] == 0  # a group without any number: the mean, for all
    assert values[2] > values[3]
    assert notes["a/missing"] == pytest.approx(0.5)


def test_a_reward_without_any_number_stops_the_training(tmp_path):
    pays = Rewards([("judge", lambda p, x: [None, None], 1.0)], no_guard, 1.0, 2, tmp_path / "s.json")
    with pytest.raises(UserError, match="'judge' gave none of the first 2 answers a number"):
        pays(["p"] * 2, ["w"] * 2)


def test_a_reward_that_is_the_same_for_all_pays_nothing_and_divides_by_nothing(tmp_path):
    pays = Rewards([("a", lambda p, x: [2.0, 2.0], 1.0)], no_guard, 1.0, 2, tmp_path / "s.json")
    assert pays(["p"] * 2, ["w"] * 2)[0] == [0.0, 0.0]


def test_the_guard_takes_its_share_once_however_many_faults(tmp_path):
    faults = lambda p, a: ["empty", "too short"] if not a else []  # noqa: E731
    pays = Rewards([("a", lambda p, x: [2.0, 2.0], 1.0)], faults, 1.5, 2, tmp_path / "s.json")
    values, notes = pays(["p"] * 2, ["", "w"])
    assert values == [-1.5, 0.0]
    assert (notes["guard/empty"], notes["guard/too short"], notes["guard/any"]) == (1, 1, 1)


def test_a_round_is_cut_as_published():
    assert shape(GrpoSettings(), 4000) == {"batch": 32, "mini_batch": 16, "accumulate": 4}


def test_every_request_has_its_turn_before_any_has_another():
    order = rounds_of(5, 12, 3)
    assert sorted(order[:5]) == sorted(order[5:10]) == [0, 1, 2, 3, 4]
    assert order[:5] != order[5:10]
    assert len(order) == 12


def test_few_requests_make_small_rounds_and_mini_batches_that_fit():
    assert shape(GrpoSettings(), 5) == {"batch": 5, "mini_batch": 10, "accumulate": 1}
    with pytest.raises(UserError, match="5 requests × 3 samples cannot be split into 2"):
        shape(GrpoSettings(samples=3), 5)
