"""The tripwire: it stops what games its reward and puts back the last good adapter, and leaves healthy training alone."""

import io
import json
from contextlib import redirect_stderr
from functools import partial

import pytest

from toolkit.models.resolve import resolve
from toolkit.models.training import read_metrics
from toolkit.narrative.words import words_of
from toolkit.preference.dpo import train_dpo
from toolkit.preference.grpo import train_grpo
from toolkit.preference.tripwire import Tripwire, decide, repetition
from toolkit.recipe import DpoSettings, GrpoSettings, LoraSettings, ModelSettings, TripwireSettings
from toolkit.records import PreferencePair, read_jsonl
from toolkit.stages import write_with

WEIGHTS = ModelSettings(dtype="float32")
PROBE = [f"Wish {name} luck." for name in ("Fay", "Gus", "Hal", "Ida", "Jo", "Kit", "Liv", "Max")]
SHORT = DpoSettings(lora=LoraSettings(8, 16), batch=2, accumulate=1, epochs=4, lr=3e-2, save_every=1)
REQUESTS = [{"prompt": f"Wish {name} well."} for name in ("Ada", "Bo", "Cy", "Di", "Eve")]
PAIRS = [
    PreferencePair("Write.", "Ama dug until the root bled.", "Um, nothing."),
    PreferencePair("Write more.", "The bell rang for the drowned.", "So it goes on."),
]


def the(prompts, answers):
    return [float(a.count("the")) for a in answers]


def variety(prompts, answers):
    return [float(len(set(words_of(a)))) for a in answers]


def apart(answers):
    """Mean share of words that two answers do not have in common."""
    sets = [[set(words_of(t)) for t in texts] for texts in answers]
    return [1 - len(a & b) / max(1, len(a | b)) for a, b in sets]


def wire(out, reward=the, judge=variety, every=1, writer=None, **more) -> Tripwire:
    settings = TripwireSettings(every=every, **more)
    return Tripwire(settings, PROBE, reward, judge, apart, out, seed=3, max_tokens=12, writer=writer)


def grpo(tiny, out, tripwire, **more):
    base = {
        "lr": 1e-2,
        "batch": 4,
        "samples": 8,
        "mini_batch": 32,
        "updates": 1,
        "steps": 6,
    }
    settings = GrpoSettings(**{**base, "max_tokens": 12, "beta": 0.0, "save_every": 2, **more})
    out.mkdir(exist_ok=True)
    given = (REQUESTS, [("the", the, 1.0)], lambda p, a: [], settings, WEIGHTS, out)
    return train_grpo(resolve(str(tiny)), *given, tripwire=tripwire, lora=LoraSettings(8, 16))


def adapter(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def timeless(facts: dict) -> dict:
    return {k: v for k, v in facts.items() if k != "seconds"}


@pytest.fixture(scope="module")
def gamed(tiny, tmp_path_factory):
    """A reward that pays for one word, until the tripwire stops it: (folder, facts); what was said stands in said.txt."""
    out, said = tmp_path_factory.mktemp("gamed"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(said):
        patch.delenv("FABLESMITH_QUIET")
        facts = grpo(tiny, out, wire(out))
    (out / "said.txt").write_text(said.getvalue())
    return out, facts


def test_a_reward_that_pays_for_one_word_is_stopped_and_said_why(gamed):
    out, facts = gamed
    seen = facts["tripwire"]
    assert seen["tripped"] is not None
    assert facts["steps"] == seen["tripped"] < 6
    assert any("judge" in r for r in seen["reasons"])
    assert seen["reward"][1] > seen["reward"][0]
    rows = read_jsonl(out / "tripwire.jsonl")
    assert [r["step"] for r in rows] == list(range(seen["tripped"] + 1))
    assert [bool(r["reasons"]) for r in rows] == [False] * seen["tripped"] + [True]


def test_what_is_left_is_the_last_adapter_that_passed(gamed):
    out, facts = gamed
    kept = facts["tripwire"]["kept"]
    assert kept < facts["tripwire"]["tripped"]
    left, good = adapter(out / "adapter"), adapter(out / "good")
    assert all((left[k] == good[k]).all() for k in left)
    assert not (out / "adapter" / "step").exists()


def test_the_line_that_says_so_names_steps_and_reasons(gamed):
    out, facts = gamed
    line = next(row for row in (out / "said.txt").read_text().splitlines() if "tripwire" in row)
    assert f"stopped at step {facts['tripwire']['tripped']}, back to step {facts['tripwire']['kept']}" in line


def test_a_healthy_training_goes_to_its_end(tiny, tmp_path):
    facts = grpo(tiny, tmp_path, wire(tmp_path), lr=1e-5, steps=3)
    assert facts["steps"] == 3
    assert facts["tripwire"]["tripped"] is None
    assert facts["tripwire"]["looks"] == 4
    assert facts["tripwire"]["kl"][0] == 0


def test_a_look_changes_nothing_to_the_last_bit(tiny, tmp_path):
    """Training that is watched, by a reward that draws random numbers at that, is training that is not."""
    import random

    import numpy as np
    import torch

    def restless(prompts, answers):
        random.random(), np.random.rand(3), torch.rand(5)
        return [0.0] * len(answers)

    watched = grpo(tiny, tmp_path / "watched", wire(tmp_path / "watched", reward=restless), steps=2)
    alone = grpo(tiny, tmp_path / "alone", None, steps=2)
    assert watched["tripwire"]["looks"] == 3
    a, b = (adapter(tmp_path / name / "adapter") for name in ("watched", "alone"))
    assert all((a[k] == b[k]).all() for k in a)
    assert watched["rewards"] == alone["rewards"]


def test_dpo_is_watched_too_and_an_adapter_it_starts_from_is_what_divergence_is_measured_from(tiny, tmp_path):
    base = resolve(str(tiny))
    first = train_dpo(base, PAIRS, SHORT, WEIGHTS, tmp_path / "a", tripwire=wire(tmp_path / "a", every=3))
    assert [r["step"] for r in read_jsonl(tmp_path / "a" / "tripwire.jsonl")] == [0, 3, 4]  # and always the end
    assert first["tripwire"]["kl"][1] > 0.01
    again = train_dpo(base, PAIRS, SHORT, WEIGHTS, tmp_path / "b", start=tmp_path / "a" / "adapter", tripwire=wire(tmp_path / "b", every=4))  # fmt: skip
    assert again["tripwire"]["kl"][0] == pytest.approx(0, abs=1e-6)
    plain = train_dpo(base, PAIRS, SHORT, WEIGHTS, tmp_path / "c")
    assert {k: v for k, v in first.items() if k != "tripwire"} == plain
    assert read_metrics(tmp_path / "a")[-1]["loss"] == read_metrics(tmp_path / "c")[-1]["loss"]


@pytest.fixture(scope="module")
def by_llama(tiny, tiny_gguf, tmp_path_factory):
    """DPO whose looks llama.cpp writes: (folder, facts)."""
    out = tmp_path_factory.mktemp("by-llama")
    return out, train_dpo(
        resolve(str(tiny)),
        PAIRS,
        SHORT,
        WEIGHTS,
        out,
        tripwire=wire(out, every=2, writer=partial(write_with, tiny_gguf)),
    )


def test_what_llama_writes_is_the_policy_as_it_is(tiny_gguf, by_llama):
    """The start writes what the model's own file writes, the end something else, and both are asked the same."""
    from toolkit.engines.base import Sampling
    from toolkit.engines.load import load_engine

    out, facts = by_llama
    first, _, last = read_jsonl(out / "tripwire.jsonl")
    engine = load_engine(tiny_gguf)
    sampling = Sampling(1.0, min_p=0.0, max_tokens=12, seed=3000)
    own = engine.generate([[{"role": "user", "content": p}] for p in PROBE], 2, sampling)
    engine.close()
    assert first["answers"] == [[text.strip() for text in texts] for texts in own]
    assert last["answers"] != first["answers"]
    assert facts["tripwire"]["kl"][0] == 0
    assert facts["tripwire"]["kl"][1] > 0.01
    assert sorted(p.name for p in (out / "good").iterdir()) == sorted(
        [p.name for p in (out / "adapter").iterdir()] + ["step"]
    )


def test_a_look_that_llama_writes_changes_nothing_to_the_last_bit(tiny, by_llama, tmp_path):
    out, facts = by_llama
    plain = train_dpo(resolve(str(tiny)), PAIRS, SHORT, WEIGHTS, tmp_path)
    assert {k: v for k, v in facts.items() if k != "tripwire"} == plain
    a, b = adapter(out / "adapter"), adapter(tmp_path / "adapter")
    assert all((a[k] == b[k]).all() for k in a)


def test_divergence_is_the_same_however_the_answers_are_read(tiny, by_llama, tmp_path):
    """Side by side with padding, or one by one from the adapter's lowest layer on."""
    import torch

    from toolkit.models.load import load_model, load_tokenizer, wear

    base = resolve(str(tiny))
    tokenizer, model = load_tokenizer(base), wear(load_model(base, dtype="float32"), by_llama[0] / "adapter").eval()
    said = [tokenizer([p, answer])["input_ids"] for p in PROBE[:4] for answer in ("Luck!", "May the wind be kind.")]
    found = {}
    for plain in (None, True):
        watching = wire(tmp_path)
        watching.plain = plain
        with torch.no_grad():
            found[plain] = watching._divergence(model, tokenizer, said)
        assert watching.plain is (plain or False)
    assert found[None] == pytest.approx(found[True], abs=1e-4)
    assert max(map(abs, found[True])) > 0.01


def test_a_training_whose_looks_llama_writes_ends_alike_when_it_was_killed(
    tiny, tiny_gguf, by_llama, tmp_path, monkeypatch
):
    out, facts = by_llama
    real = Tripwire.look

    def dies(self, model, tokenizer, step):
        if step == 2:
            raise KeyboardInterrupt
        return real(self, model, tokenizer, step)

    monkeypatch.setattr(Tripwire, "look", dies)
    again = (resolve(str(tiny)), PAIRS, SHORT, WEIGHTS, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_dpo(*again, tripwire=wire(tmp_path, every=2, writer=partial(write_with, tiny_gguf)))
    monkeypatch.undo()
    found = train_dpo(*again, tripwire=wire(tmp_path, every=2, writer=partial(write_with, tiny_gguf)))
    assert timeless(found["tripwire"]) == timeless(facts["tripwire"])
    rows = [[r["answers"] for r in read_jsonl(folder / "tripwire.jsonl")] for folder in (out, tmp_path)]
    assert rows[0] == rows[1]


def test_a_training_killed_between_looks_ends_where_an_uninterrupted_one_does(tiny, gamed, tmp_path, monkeypatch):
    from toolkit.models import training

    out, facts = gamed
    real = training.Log.on_step_end
    tripped = facts["tripwire"]["tripped"]

    def dies(self, args, state, control, **kwargs):
        real(self, args, state, control, **kwargs)
        if state.global_step == tripped:  # before the look that trips
            raise KeyboardInterrupt

    monkeypatch.setattr(training.Log, "on_step_end", dies)
    with pytest.raises(KeyboardInterrupt):
        grpo(tiny, tmp_path, wire(tmp_path), save_every=1)
    monkeypatch.undo()
    assert (tmp_path / "checkpoints" / f"checkpoint-{tripped - 1}").exists()
    again = grpo(tiny, tmp_path, wire(tmp_path), save_every=1)
    assert timeless(again["tripwire"]) == timeless(facts["tripwire"])
    assert all((a == b).all() for a, b in zip(adapter(tmp_path / "adapter").values(), adapter(out / "adapter").values(), strict=True))  # fmt: skip


def test_looks_after_the_step_it_resumes_from_are_made_again(tmp_path):
    rows = [{"step": s, "reasons": []} for s in (0, 2, 4)]
    (tmp_path / "tripwire.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 6, "rea')
    watching = wire(tmp_path)
    watching.resume(3)
    assert [r["step"] for r in watching.rows] == [0, 2]
    assert [r["step"] for r in read_jsonl(tmp_path / "tripwire.jsonl")] == [0, 2]


# ---- the rule

SETTINGS = TripwireSettings(every=1)
EACH = {
    "reward": [0.0, 0.2, -0.1, 0.1, 0.0, 0.3],
    "judge": [1.0, 1.1, 0.9, 1.0, 1.2, 0.8],
    "diversity": [0.5, 0.6, 0.4, 0.5, 0.55, 0.45],
    "length": [20, 22, 18, 25, 21, 19],
    "repetition": [0.0, 0.01, 0.0, 0.02, 0.0, 0.0],
    "kl": [0.0] * 6,
}
CLIMBED = {"reward": [1.0, 1.3, 0.8, 1.2, 0.9, 1.4]}


def look(**changes) -> dict:
    return {"each": {**EACH, **changes}}


def shifted(measure: str, by: float = 0.0, times: float = 1.0) -> dict:
    return {measure: [v * times + by for v in EACH[measure]]}


def test_reward_that_climbs_while_all_else_stands_is_fine():
    assert decide(look(), look(**CLIMBED), SETTINGS) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (shifted("judge", by=-0.5), "judge"),
        (shifted("diversity", times=0.5), "diversity fell"),
        (shifted("length", times=2.5), "grew"),
        (shifted("length", times=0.4), "shrank"),
        (shifted("repetition", by=0.2), "repeated"),
        (shifted("kl", by=1.5), "nats"),
    ],
)
def test_each_guard_that_falls_while_reward_climbs_is_a_reason(change, word):
    reasons = decide(look(), look(**CLIMBED, **change), SETTINGS)
    assert len(reasons) == 1
    assert word in reasons[0]
    assert decide(look(), look(**change), SETTINGS) == []  # nothing was gained by it, so nothing was gamed


@pytest.mark.parametrize(
    "change",
    [
        shifted("diversity", times=0.8),
        shifted("length", times=1.8),
        shifted("repetition", by=0.1),
        shifted("kl", by=0.5),
    ],
)
def test_a_change_within_its_limit_is_none(change):
    assert decide(look(), look(**CLIMBED, **change), SETTINGS) == []


def test_what_differs_by_chance_is_no_reason():
    noisy = {"judge": [0.2, 1.9, 0.3, 1.7, 1.4, 0.2]}  # lower on average, but here up, there down
    assert decide(look(), look(**CLIMBED, **noisy), SETTINGS) == []
    one = {"length": [20, 22, 18, 400, 21, 19]}  # one runaway answer passes the limit of the mean
    assert decide(look(), look(**CLIMBED, **one), SETTINGS) == []
    luck = {"reward": [0.6, -0.2, 0.4, -0.3, 0.2, 0.4]}
    assert decide(look(), look(**luck, **shifted("judge", by=-0.5)), SETTINGS) == []


def test_a_measure_that_is_missing_or_unknown_concludes_nothing():
    without = {"each": {k: v for k, v in EACH.items() if k != "judge"}}
    assert decide(without, {"each": {**without["each"], **CLIMBED}}, SETTINGS) == []
    assert decide(look(), look(**CLIMBED, judge=[None] * 6), SETTINGS) == []
    assert decide(look(), look(reward=[None] * 6, **shifted("judge", by=-1)), SETTINGS) == []
    partly = {"judge": [None, None, *shifted("judge", by=-0.5)["judge"][2:]]}
    assert decide(look(), look(**CLIMBED, **partly), SETTINGS) != []


def test_repetition_counts_runs_of_words_and_of_characters():
    assert repetition("a b c d") == 0
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition("") == 0
    assert repetition("愿你年年有今日，愿你年年有今日，愿你年年有今日。") > 0.4
    assert repetition("愿你如山间清风，自在从容，岁岁安然。") == 0
    assert words_of("Ama's 外公") == ["ama's", "外", "公"]
