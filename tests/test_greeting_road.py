"""A greetings run on a tiny random model: every stage in both languages, killed in the middle, resumed, without a network."""

import hashlib
import json
from pathlib import Path

import pytest
from test_road import finish, kill_at, run_whole, start

from toolkit.records import read_jsonl

pytestmark = pytest.mark.slow

ARTEFACTS = (
    "requests/train.jsonl",
    "sft/adapter/adapter_model.safetensors",
    "pairs/pairs.jsonl",
    "pairwise/adapter_model.safetensors",
    "principles/detector.en.md",
    "principles/detector.zh.md",
    "grpo/adapter/adapter_model.safetensors",
    "evaluate/answers.jsonl",
)


@pytest.fixture(scope="module")
def recipe(tiny, tiny_gguf) -> list[str]:
    lora = "{r: 4, alpha: 8}"
    return [
        *(f"model.id={tiny}", f"model.gguf={tiny_gguf}", "task=greeting", "align=grpo"),
        *("requests.languages=[zh, en]", "requests.train=16", "requests.test=3"),
        *(f"sft={{lora: {lora}, lr: 1e-2, epochs: 0.2, gradient_checkpointing: false, save_every: 2}}",),
        *("rejection={requests: 2, per_request: 2, words: 16, tries: 1, retrieval: auto}",),
        *(f"pairwise={{lora: {lora}, lr: 1e-3, epochs: 0.2, gradient_checkpointing: false, save_every: 2}}",),
        *("principles={rounds: 1, per_round: 4, words: 16, tries: 1}",),
        "grpo={rewards: [model, judge], weights: [1, 1], lr: 1e-3, batch: 4, mini_batch: 8, steps: 6, max_tokens: 16, "
        "gradient_checkpointing: false, save_every: 2}",
        *("tripwire={every: 3, prompts: 2}", "evaluate={per_premise: 1, best_of: 2}"),
    ]


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> Path:
    """A run that nobody interrupted, with every network call of it and its children refused."""
    return run_whole(recipe, tmp_path_factory.mktemp("whole"))


def card(run: Path, stage: str) -> dict:
    return json.loads((run / stage / "stage.json").read_text())["facts"]


def test_with_the_network_refused_every_stage_runs(whole):
    stages = [s["stage"] for s in json.loads((whole / "manifest.json").read_text())["stages"]]
    assert stages == [
        "model", "requests", "sft", "rejection", "pairs", "pairwise", "unseen", "principles", "grpo", "export", "evaluate", "report"
    ]  # fmt: skip


def test_every_answer_of_agents_that_babble_is_counted_once(whole):
    facts, records = card(whole, "rejection"), read_jsonl(whole / "rejection" / "records.jsonl")
    assert facts["asked"] == len(records)
    assert facts["judged"] + facts["broken"] + sum(facts["no_verdict"].values()) == facts["asked"]


def test_no_request_or_greeting_stands_on_two_sides(whole):
    sides = {side: {r["text"] for r in read_jsonl(whole / "requests" / f"{side}.jsonl")} for side in ("train", "test")}
    assert not sides["train"] & sides["test"]


def test_both_rewards_are_in_the_comparison_and_the_best_of_each(whole):
    facts = card(whole, "evaluate")
    assert facts["scorers"] == ["model", "judge"]
    assert [w["name"] for w in facts["writers"]] == ["base", "sft", "grpo", "best of 2 by model", "best of 2 by judge"]


def test_the_report_holds_chinese_with_its_language_and_fonts(whole):
    page = (whole / "report" / "report.html").read_text(encoding="utf-8")
    assert 'lang="zh-Hans"' in page
    assert "Noto Sans CJK" in page


def test_a_run_killed_in_its_stages_ends_as_an_uninterrupted_one(whole, recipe, tmp_path):
    out = tmp_path / "runs" / "killed"
    out.parent.mkdir()
    for glob, lines in (
        ("rejection.partial/records.jsonl", 4),
        ("principles.partial/en/steps.jsonl", 2),
        ("grpo.partial/checkpoints/checkpoint-*/trainer_state.json", 0),
    ):
        kill_at(recipe, out, glob, lines)
    finish(start(recipe, out), out)
    sums = [{n: hashlib.sha256((run / n).read_bytes()).hexdigest() for n in ARTEFACTS} for run in (whole, out)]
    assert sums[0] == sums[1]


def test_a_finished_run_writes_greetings_from_the_command_line(whole, capsys):
    from toolkit.cli import main

    assert (
        main(
            [
                "write",
                "--as",
                "greeting",
                "七十大寿，写给外公",
                "--model",
                str(whole),
                "--seed",
                "1",
                "--max-tokens",
                "24",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out.strip()


def test_debates_of_a_run_can_be_browsed(whole, capsys):
    from toolkit.cli import main

    assert main(["debates", str(whole), "-n", "0", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == card(whole, "rejection")["asked"]


def test_debates_of_a_request_that_is_not_there_are_refused(whole, capsys):
    from toolkit.cli import main

    assert main(["debates", str(whole), "--request", "nobody"]) == 2
    assert "no answer to 'nobody'" in capsys.readouterr().err
