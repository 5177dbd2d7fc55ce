"""What a run will need is told before it runs: every stage of every recipe, counted from the architecture."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from mixtures import ARCHITECTURES, SHAPE

from toolkit.cli import main
from toolkit.errors import UserError
from toolkit.fit import ATTENTION, changes, fit, table
from toolkit.memory import Run
from toolkit.models.dry import Job, _run, dry_step
from toolkit.models.resolve import Model
from toolkit.models.sizes import NF4_BYTES, config_of, count, published
from toolkit.recipe import LoraSettings, load_recipe, recipes_folder
from toolkit.runner import plan

RECIPES = sorted(p.stem for p in recipes_folder().glob("*.yaml"))
GPU = [n for n in RECIPES if load_recipe(n).model.id != "embedded"]
CARDS = {"t4": 15.0, "12gb": 12.0, "16gb": 16.0}


def config(id):
    return config_of(Model(id, id))


@pytest.mark.parametrize(
    ("id", "billions"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", 7.615616512),
        ("Qwen/Qwen3-4B-Instruct-2507", 4.022468096),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", 30.532122624),
        ("allenai/OLMoE-1B-7B-0125-Instruct", 6.919161856),
    ],
)
def test_parameters_are_counted_as_their_makers_count_them(id, billions):
    assert count(config(id)).total == round(billions * 1e9)


def test_a_held_training_counts_its_reference_and_whoever_tells_the_risks():
    def dpo(*sets):
        return Run(load_recipe("quickstart", ["tripwire.every=0", *sets]), 0.0).use("dpo")

    plain, probe = dpo(), dpo("safety={signal: probe}")
    assert probe.ram["logits"] > plain.ram["logits"] + 0.5
    assert sum(probe.ram.values()) > sum(plain.ram.values())
    read = dpo("safety={signal: critic, critic: qwen3-8b}")
    assert sum(read.ram.values()) > 5, "an 8B critic is open in this stage, before the training"
    assert read.kept == probe.kept


def test_all_experts_of_a_mixture_count_not_the_active_ones():
    sizes = count(config("Qwen/Qwen3-30B-A3B-Instruct-2507"))
    assert sizes.experts == 48 * 128 * 3 * 2048 * 768
    assert sizes.active == pytest.approx(3.35e9, rel=0.01)
    by_hand = (sizes.experts + 48 * (2048 * 4096 * 2 + 2 * 2048 * 512)) * NF4_BYTES
    assert sizes.weights(True, 2.0) == pytest.approx(by_hand + 2 * (2 * 151936 * 2048) + 2 * sizes.rest, rel=1e-6)


def test_every_model_that_a_recipe_names_has_its_configuration_here():
    assert {load_recipe(n).model.id for n in RECIPES} <= set(published())


def test_a_step_of_few_layers_stands_for_all():
    job = Job(4, 64, lora=LoraSettings(targets=ATTENTION), reference=True, checkpointing=True, four_bit=True)
    small = config("Qwen/Qwen3-30B-A3B-Instruct-2507")
    small.num_hidden_layers, small.num_experts = 16, 8
    whole, guessed = _run(small, job, 16), dry_step(small, job)
    assert guessed.total == pytest.approx(whole.total, rel=1e-6)
    assert guessed.trainable == whole.trainable


def test_experts_in_four_bits_are_unpacked_one_at_a_time_and_embeddings_stay_in_16_bit():
    job = Job(2, 128, lora=LoraSettings(targets=("q_proj",)), checkpointing=True, four_bit=True)
    step = dry_step(config("Qwen/Qwen3-30B-A3B-Instruct-2507"), job)
    assert step.unpacked <= 2 * 2048 * 4096 * 2  # an expert's or an attention's matrix, not a layer's 1.2 GB


def test_lora_on_experts_is_counted_as_it_is_trained_in_4_bits_and_in_16():
    """Each token's copies pass through one expert's factors; peft alone, on 16-bit experts, makes a layer's sum of weights and LoRA."""
    small = config("Qwen/Qwen3-30B-A3B-Instruct-2507")
    small.num_hidden_layers, small.num_experts = 2, 8
    step = lambda **more: dry_step(small, Job(1, 64, checkpointing=True, **more))  # noqa: E731
    attention, both = LoraSettings(16, targets=ATTENTION), LoraSettings(16, targets=("attention", "experts", "router"))
    four, sixteen = (step(lora=both, four_bit=packed) for packed in (True, False))
    factors = (
        2 * 16 * (8 * (2048 + 2 * 768 + 768 + 2048) + 2048 + 8)
    )  # layers × rank × (experts' two matrices, and the router)
    assert four.trainable == sixteen.trainable == step(lora=attention).trainable + factors
    layer = 8 * 3 * 2048 * 768 * 2
    assert four.total - step(lora=attention, four_bit=True).total < 4 * factors + 64 * 8 * 10 * 2048 * 4
    assert sixteen.total - step(lora=attention).total > layer


@pytest.mark.parametrize("name", [*ARCHITECTURES, "phimoe"])
@pytest.mark.parametrize("head", ["logprobs", "score", "mean"])
def test_a_step_of_every_mixture_that_trains_can_be_told(name, head):
    from transformers import AutoConfig

    more = ARCHITECTURES.get(name, {"intermediate_size": 64, "num_local_experts": 4})
    tiny = AutoConfig.for_model(name, vocab_size=512, **{**SHAPE, **more})
    targets = ("attention",) if name == "phimoe" else ("attention", "experts", "router")
    job = Job(2, 32, head=head, lora=LoraSettings(4, targets=targets), checkpointing=True, four_bit=True)
    assert count(tiny).active < count(tiny).total
    assert dry_step(tiny, job).total > 0  # of the same configuration, on which transformers has written by now


def test_a_30b_mixture_with_lora_on_all_experts_does_not_fit_24_gib_and_attention_alone_is_offered():
    found = fit(load_recipe("plottwist-24gb", ["dpo.lora.targets=[attention, experts]"]), 24, 64)
    assert found.short() == ["vram"]
    assert [h.change for h in found.what_helps if h.fits] == ["LoRA on attention only"]
    step = dry_step(config(found.model), Job(1, 8, lora=LoraSettings(16, targets=("experts",)), four_bit=True))
    assert round(step.trainable / 1e6) == 629  # what docs/mixtures.md says


def test_checkpointing_shorter_texts_and_fewer_rows_each_need_less():
    base = Job(4, 512, lora=LoraSettings(), dtype="float32", gpu=False)
    taken = lambda **more: dry_step(config("embedded"), dataclasses.replace(base, **more)).total  # noqa: E731
    assert taken(checkpointing=True) < 0.5 * taken()
    assert 0.4 * taken() < taken(tokens=256) < taken() / 2  # a mask grows with the square
    assert taken(rows=2) == pytest.approx(taken() / 2, rel=0.02)


def shared_job(passes, **more) -> Job:
    return Job(1, 0, lora=LoraSettings(), dtype="float32", gpu=False, passes=passes, reference=True, **more)


def test_the_ledger_counts_a_pair_read_at_once_as_the_real_step_allocates_it(tiny, monkeypatch):
    """The same pass, once with numbers: every tensor that torch makes in the layers is booked, and nothing else. Few logits at a
    time: what is made of them inside operations only the dry step tells.
    """
    from peft import get_peft_model

    from toolkit.models.dry import Ledger
    from toolkit.models.load import load_model, lora_config
    from toolkit.models.resolve import resolve
    from toolkit.preference.shared import answer_logps, rows_of

    for module in ("toolkit.preference.shared", "toolkit.models.dry"):
        monkeypatch.setattr(f"{module}.BLOCK", 2**20)
    base = load_model(resolve(str(tiny)), dtype="float32")
    peft = get_peft_model(base, lora_config(base, LoraSettings())).train()
    row = rows_of(list(range(3, 43)), list(range(5, 165)), list(range(7, 167)), True)[0]
    ledger = Ledger([*peft.parameters(), *peft.buffers(), row.ids, row.at, row.targets])
    with ledger:
        out = answer_logps(peft.get_base_model(), row)
        with torch.no_grad(), peft.disable_adapter():
            known = answer_logps(peft.get_base_model(), row)
        (out - known).sum().backward()
    told = dry_step(config_of(Model(str(tiny), tiny)), shared_job(((row.ids.shape[1], len(row.at)),)))
    assert told.total == pytest.approx(ledger.peak, rel=0.1)


def test_dense_dpo_is_counted_a_pair_at_a_time_and_a_mixtures_a_batch_at_a_time():
    def activations(name, **more):
        sets = ["tripwire.every=0", *(f"dpo.{k}={v}" for k, v in more.items())]
        return Run(load_recipe(name, sets), 24).use("dpo").vram["activations"]

    assert Run(load_recipe("diverse-ddpo"), 24).pairs_apart() == ""
    assert activations("diverse-ddpo", batch=1) == activations("diverse-ddpo", batch=4)
    assert Run(load_recipe("plottwist-24gb"), 24).pairs_apart() == "a mixture of experts"
    assert activations("plottwist-24gb", batch=4) > 3 * activations("plottwist-24gb", batch=1)


def test_a_training_that_is_held_is_counted_the_plain_way():
    quiet = "tripwire.every=0"  # whose look would be the larger moment
    held = Run(load_recipe("quickstart", ["safety.signal=constant", quiet]), 0)
    plain = Run(load_recipe("quickstart", [quiet]), 0).use("dpo")
    assert held.pairs_apart() == "held by risk"
    assert held.use("dpo").ram["logits"] > 0.8
    assert held.use("dpo").ram["activations"] > 1.5 * plain.ram["activations"]


def test_the_passes_of_a_pair_are_those_that_the_training_makes(tmp_path):
    from toolkit.preference.dpo import chat_row, token_ids
    from toolkit.preference.shared import rows_of
    from toolkit.records import PreferencePair, write_jsonl

    pairs = [PreferencePair("Write. " * n, "Ama dug. " * 60, "Um. " * 50) for n in (2, 40)]
    write_jsonl(tmp_path / "pairs.jsonl", [{k: getattr(p, k) for k in ("prompt", "chosen", "rejected")} for p in pairs])
    run = Run(load_recipe("quickstart", [f"pairs.file={tmp_path / 'pairs.jsonl'}", "dpo.max_tokens=600"]), 0)
    real = [token_ids(run.tokenizer(), chat_row(p)) for p in pairs]
    for prompt, shared in ((40, True), (2, False)):
        ids = real[[2, 40].index(prompt)]
        passes = [(row.ids.shape[1], len(row.at)) for row in rows_of(*ids, shared)]
        told = Run(load_recipe("quickstart", [f"pairs.file={tmp_path / 'pairs.jsonl'}", "dpo.max_tokens=600"]), 0)
        told.own_pairs = lambda prompt=prompt: [pairs[[2, 40].index(prompt)]]
        assert len(told.passes()) == len(passes)
        assert sum(t for t, _ in told.passes()) == pytest.approx(sum(t for t, _ in passes), abs=45)


def test_states_of_lower_layers_are_kept_where_there_is_a_second_epoch():
    kept = lambda epochs: Run(load_recipe("quickstart", [f"dpo.epochs={epochs}"]), 0).use("dpo").ram  # noqa: E731
    assert "lower layers' states" not in kept(1)
    assert 0.01 < kept(2)["lower layers' states"] <= 1.0


@pytest.mark.parametrize(
    ("case", "gib"),
    [
        ("dpo", 1.56),
        ("dpo-checkpointed", 1.65),
        ("dpo-long", 1.50),
        ("dpo-nf4", 1.50),
        ("dpo-held", 3.27),
        ("dpo-moe-nf4", 1.85),
        ("pairwise", 1.58),
        ("reward", 1.93),
        ("reward-bf16", 1.99),
        ("dpo-bf16", 1.33),
        ("sft", 3.38),
        ("sft-held", 2.47),
        ("grpo", 3.96),
        ("grpo-held", 4.26),
    ],
)
def test_a_peak_that_was_measured_is_told_to_within_10_percent(case, gib, monkeypatch):
    """Peaks of resident memory as benchmarks/fit_against_measured.py prints them (docs/results.md)."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import fit_against_measured

    told = fit_against_measured.predict(fit_against_measured.CASES[case])
    print(case, round(sum(told.values()), 3))
    assert sum(told.values()) == pytest.approx(gib, rel=0.1)


RUN = {
    "candidates": 0.82,
    "ratings": 0.83,
    "reward": 2.19,
    "pairs": 1.33,
    "dpo": 2.23,
    "export": 1.71,
    "passport": 1.20,
    "evaluate": 1.84,
    "report": 0.77,
}


def test_stages_of_a_run_that_was_measured_are_told_to_within_10_percent():
    """One process, one stage after the other, in bfloat16 (docs/results.md)."""
    sets = ["model.dtype=bfloat16", "premises.train=8", "premises.test=4"]
    stages = {s.name: s.peak("ram") for s in fit(load_recipe("quickstart", sets), 0, 64).stages}
    print({n: round(v, 3) for n, v in stages.items()})
    assert {n: stages[n] for n in RUN} == pytest.approx(RUN, rel=0.1)


def test_kernels_for_shapes_that_do_not_come_again_are_not_kept():
    """On a CPU with products for bfloat16 oneDNN makes one for each shape: 260 MiB for these 400, as it comes."""
    import psutil

    texts, weights = torch.randn(500, 576, dtype=torch.bfloat16), torch.randn(256, 576, dtype=torch.bfloat16)
    resident = lambda: psutil.Process().memory_info().rss / 2**20  # noqa: E731
    texts[:99] @ weights.T
    before = resident()
    for tokens in range(100, 500):
        texts[:tokens] @ weights.T
    assert resident() - before < 60


def test_weights_that_are_not_made_yet_are_counted_while_they_are_made(tmp_path, monkeypatch):
    """1.71 and 2.64 GiB were measured (docs/results.md)."""
    monkeypatch.setenv("FABLESMITH_CACHE", str(tmp_path))
    made = lambda *sets: sum(Run(load_recipe("quickstart", [*sets]), 0).use("model").ram.values())  # noqa: E731
    assert made() == pytest.approx(1.71, rel=0.1)
    assert made("model.id=embedded-moe", "model.four_bit=true") == pytest.approx(2.64, rel=0.1)


def test_what_an_earlier_stage_loaded_is_still_there():
    stages = {s.name: s.peak("ram") for s in fit(load_recipe("quickstart"), 0, 16).stages}
    assert stages["premises"] < 0.2  # nothing trained yet
    assert stages["report"] > 0.5  # torch is there
    alone = fit(load_recipe("quickstart"), 0, 16, stages=("report",)).stages[0]
    assert alone.peak("ram") == stages["premises"]


def test_experts_in_ram_are_offered_where_a_judge_on_the_card_does_not_fit():
    sets = ["model.id=Qwen/Qwen3-4B-Instruct-2507", "model.four_bit=true", "evaluate.judge=qwen3-30b-a3b", "evaluate.gpu_experts=all"]  # fmt: skip
    found = fit(load_recipe("quickstart", sets), 16, 64)
    offered = {h.change: h for h in found.what_helps if h.fits}
    (change,) = [c for c in offered if c.startswith("experts of writers and judges in RAM")]
    assert offered[change].set == ('evaluate.gpu_experts="none"',)
    assert fit(load_recipe("quickstart", [*sets, *offered[change].set]), 16, 64).fits


def test_a_run_that_is_held_may_be_told_what_holding_costs():
    recipe = load_recipe("safe-probe")
    needed = fit(recipe, 24, 64).peak("vram")
    told = [h for h in fit(recipe, 0.95 * needed, 64).what_helps if "gives up what `safety` is for" in h.change]
    assert told[0].vram < needed - 0.3


def test_a_target_that_names_nothing_is_refused_on_the_meta_device():
    with pytest.raises(UserError, match="'w_proj' matches no module"):
        dry_step(config("embedded"), Job(1, 8, lora=LoraSettings(targets=("w_proj",))))


@pytest.mark.parametrize("name", GPU)
def test_every_gpu_recipe_fits_the_card_it_names(name):
    card = next((gib for key, gib in CARDS.items() if key in name), 24.0)
    found = fit(load_recipe(name), card, 64)
    assert found.fits
    assert [s.name for s in found.stages] == [s.name for s in plan(load_recipe(name))]
    assert found.peak("vram") > 2


def test_without_a_card_training_needs_ram_and_no_graphics_memory():
    found = fit(load_recipe("quickstart"), 0, 16)
    assert found.peak("vram") == 0
    stages = {s.name: s.peak("ram") for s in found.stages}
    assert stages["dpo"] > stages["candidates"] > stages["premises"] > 0


def test_what_helps_is_tried_and_each_that_is_said_to_fit_does():
    sets = ["dpo.gradient_checkpointing=false", "dpo.max_tokens=2048", "candidates.max_tokens=1900", "tripwire.every=0"]
    found = fit(load_recipe("diverse-ddpo", sets), 16, 64)
    assert found.short() == ["vram"]
    enough = [h for h in found.what_helps if h.fits]
    assert "gradient checkpointing" in [h.change for h in enough]
    for h in enough:
        again = fit(load_recipe("diverse-ddpo", [*sets, *h.set]), 16, 64)
        assert again.fits
        assert again.peak("vram") == pytest.approx(h.vram, abs=0.01)


def test_a_change_that_changes_nothing_is_not_offered():
    recipe = load_recipe("quickstart")
    for change, sets, changed in changes(recipe):
        assert bool(sets) == (changed != recipe), change


def test_the_command_says_no_with_exit_code_3_and_yes_with_0(capsys):
    assert main(["fit", "greetings-rm", "--vram", "8", "--ram", "64"]) == 3
    assert "DOES NOT FIT" in capsys.readouterr().out
    assert main(["fit", "greetings-rm", "--vram", "24", "--ram", "64", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["fits"]
    assert row["needs"]["vram"] == pytest.approx(max(sum(s["vram"].values()) for s in row["stages"]), abs=0.01)


def test_it_says_where_a_writers_experts_wait_in_ram():
    assert "experts wait in RAM, the rest of their model is on the card: candidates" in table(
        fit(load_recipe("plottwist-24gb"), 16, 64)
    )
    assert "experts wait in RAM" not in table(fit(load_recipe("plottwist-24gb"), 24, 64))


def test_the_list_of_all_recipes_says_what_they_are_held_against(capsys, monkeypatch, tmp_path):
    shutil.copy(recipes_folder() / "quickstart.yaml", tmp_path)
    monkeypatch.setattr("toolkit.recipe.recipes_folder", lambda: tmp_path)
    assert main(["fit", "--vram", "24", "--ram", "64"]) == 0
    assert capsys.readouterr().out.endswith("held against VRAM 24.0, RAM 64.0 GiB\n")


def test_a_run_that_does_not_fit_stops_before_anything_is_made(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("toolkit.fit._ram", lambda: 1.0)
    assert main(["run", "quickstart", "--out", str(tmp_path / "run")]) == 3
    assert "does not fit this machine" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_told_so_does_not_ask(tmp_path, monkeypatch):
    monkeypatch.setattr("toolkit.fit._ram", lambda: 1.0)
    monkeypatch.setattr("toolkit.runner.run_recipe", lambda recipe, out, until: tmp_path)
    assert main(["run", "quickstart", "--no-fit", "--out", str(tmp_path / "run")]) == 0
