"""The whole road on a tiny random model: every stage, killed in the middle, resumed, without a network."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import tiny_recipe

pytestmark = pytest.mark.slow

ARTEFACTS = (
    "candidates/candidates.jsonl",
    "ratings/ratings.jsonl",
    "reward/head.safetensors",
    "reward/adapter_model.safetensors",
    "pairs/pairs.jsonl",
    "dpo/adapter/adapter_model.safetensors",
    "export/quickstart-Q8_0.gguf",
    "export/adapter.gguf",
    "evaluate/plots.jsonl",
    "evaluate/verdicts.jsonl",
)

NO_NETWORK = """
import socket
def refuse(*a, **k):
    raise AssertionError("a network connection was tried: %r" % (a,))
socket.socket.connect = refuse
socket.socket.connect_ex = refuse
socket.getaddrinfo = refuse
"""


def hashes(run: Path) -> dict[str, str]:
    return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in ARTEFACTS}


def start(recipe: list[str], out: Path, env=None) -> subprocess.Popen:
    command = [sys.executable, "-m", "toolkit", "run", "quickstart", "--out", str(out), "--debug"]
    options = recipe[recipe.index("--until") :] if "--until" in recipe else []
    for text in recipe[: len(recipe) - len(options)]:
        command += ["--set", text]
    command += options
    log = (out.parent / f"{out.name}.log").open("a")
    return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **(env or {})}, start_new_session=True)


def finish(process: subprocess.Popen, out: Path) -> None:
    code = process.wait(timeout=600)
    assert code == 0, (out.parent / f"{out.name}.log").read_text()[-3000:]


def kill_at(recipe: list[str], out: Path, glob: str, lines: int = 0) -> None:
    """Run until a file that `glob` finds stands, with so many lines, then kill -9."""
    process = start(recipe, out)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if any(not lines or p.read_text().count("\n") >= lines for p in out.glob(glob)):
            break
        time.sleep(0.01)
    assert process.poll() is None, f"ended before {glob}: " + (out.parent / f"{out.name}.log").read_text()[-2000:]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_whole(recipe: list[str], folder: Path) -> Path:
    """A run that nobody interrupts, with every network call of it and its children refused."""
    (folder / "sitecustomize.py").write_text(NO_NETWORK)
    out = folder / "runs" / "whole"
    out.parent.mkdir()
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    finish(start(recipe, out, {"PYTHONPATH": path}), out)
    return out


@pytest.fixture(scope="module")
def recipe(tiny, tiny_gguf) -> list[str]:
    return tiny_recipe(tiny, tiny_gguf)


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> Path:
    """A run that nobody interrupted, with every network call of it and its children refused."""
    return run_whole(recipe, tmp_path_factory.mktemp("whole"))


def test_with_the_network_refused_every_stage_runs(whole):
    stages = [s["stage"] for s in json.loads((whole / "manifest.json").read_text())["stages"]]
    assert stages == [
        "model", "premises", "candidates", "ratings", "reward", "pairs", "dpo", "export", "passport", "evaluate", "report"
    ]  # fmt: skip


def test_the_report_loads_nothing_from_elsewhere(whole):
    page = (whole / "report" / "report.html").read_text()
    for loader in ("<script", "<link", "<img", "<iframe", "@import", "url(http"):
        assert loader not in page
    assert "<svg" in page


def test_dpo_starts_at_a_reward_margin_of_zero(whole):
    first = json.loads((whole / "dpo" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["rewards/margins"] == 0.0


def test_training_is_logged_for_tensorboard(whole):
    assert list((whole / "dpo" / "tensorboard").rglob("events.out.*"))


def test_the_exported_model_is_proved_and_differs_from_the_base(whole):
    proof = json.loads((whole / "export" / "export.json").read_text())["proof"]
    assert proof["mean_difference"] <= proof["tolerance"]
    assert proof["mean_change_from_base"] > proof["mean_difference"]
    assert proof["adapter_change_correlation"] > 0.9


def test_every_rejected_pair_keeps_its_reason(whole):
    from toolkit.records import REASONS

    rows = [json.loads(line) for line in (whole / "pairs" / "rejected.jsonl").read_text().splitlines()]
    assert rows
    assert all(row["reason"] in REASONS for row in rows)


def test_a_second_run_skips_everything(whole, recipe):
    before = {p: p.stat().st_mtime_ns for p in whole.glob("*/stage.json")}
    finish(start(recipe, whole), whole)
    assert {p: p.stat().st_mtime_ns for p in whole.glob("*/stage.json")} == before


def test_another_beta_reuses_everything_before_dpo(whole, recipe):
    out = whole.parent / "b02"
    finish(start([*recipe, "dpo.beta=0.5"], out), out)
    for stage in ("candidates", "ratings", "reward", "pairs"):
        assert (out / stage / "stage.json").samefile(whole / stage / "stage.json")
    assert (
        hashes(out)["dpo/adapter/adapter_model.safetensors"] != hashes(whole)["dpo/adapter/adapter_model.safetensors"]
    )


def test_a_weighted_run_takes_all_it_can_from_the_plain_one_and_trains_something_else(whole, recipe):
    out = whole.parent / "weighted"
    finish(start([*recipe, "dpo.loss=ddpo"], out), out)
    for stage in ("candidates", "ratings", "reward", "pairs"):
        assert (out / stage / "stage.json").samefile(whole / stage / "stage.json")
    rows = [json.loads(line) for line in (out / "deviation" / "deviation.jsonl").read_text().splitlines()]
    assert {r["id"] for r in rows} >= {json.loads(p)["chosen_id"] for p in (out / "pairs" / "pairs.jsonl").open()}
    assert (
        hashes(out)["dpo/adapter/adapter_model.safetensors"] != hashes(whole)["dpo/adapter/adapter_model.safetensors"]
    )
    assert "least unusual answer" in (out / "report" / "report.html").read_text()


def test_divpo_takes_the_reward_model_from_the_plain_run_and_the_deviation_from_the_weighted_one(whole, recipe):
    out = whole.parent / "divpo"
    finish(start([*recipe, "pairs.select=divpo", "--until", "dpo"], out), out)
    assert (out / "reward" / "stage.json").samefile(whole / "reward" / "stage.json")
    assert (out / "deviation" / "stage.json").samefile(whole.parent / "weighted" / "deviation" / "stage.json")
    assert json.loads((out / "dpo" / "stage.json").read_text())["facts"]["loss_kind"] == "dpo"


def test_own_pairs_are_weighted_by_the_answers_they_hold(recipe, tmp_path):
    texts = ["Ama dug until it bled.", "So, it went on, as it does!", "Nobody came; the cook ate alone?", "He slept."]
    pairs = [{"prompt": "Write.", "chosen": a, "rejected": b} for a, b in (texts[:2], texts[2:])]
    pairs.append({"prompt": "Write something else.", "chosen": texts[0], "rejected": texts[3]})  # weighs 1 there
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    out = tmp_path / "mine"
    finish(start([*recipe, f"pairs.file={tmp_path / 'mine.jsonl'}", "dpo.loss=dorpo", "--until", "dpo"], out), out)
    weights = [json.loads(line)["weight"] for line in (out / "deviation" / "deviation.jsonl").read_text().splitlines()]
    assert sum(weights[:4]) == pytest.approx(4)
    assert min(weights) == 0
    assert weights[4:] == [1, 1]
    used = json.loads((out / "dpo" / "stage.json").read_text())["facts"]["weights"]
    assert used["mean"] == pytest.approx((weights[0] + weights[2] + 1) / 3, abs=1e-3)


def test_killed_in_several_stages_the_run_ends_with_the_same_artefacts(whole, recipe, tmp_path):
    out = tmp_path / "killed"
    # (what must be on disk before the kill): in the middle of writing, of rating, and after a checkpoint of each training
    for glob, lines in (
        ("candidates.partial/units.jsonl", 1),
        ("ratings.partial/ratings.jsonl", 3),
        ("reward.partial/checkpoints/checkpoint-*/trainer_state.json", 0),
        ("dpo.partial/checkpoints/checkpoint-*/trainer_state.json", 0),
        ("evaluate.partial/verdicts.jsonl", 1),
    ):
        kill_at(recipe, out, glob, lines)
    finish(start(recipe, out), out)
    resumed = {s["stage"] for s in json.loads((out / "manifest.json").read_text())["stages"] if s["resumed"]}
    assert {"candidates", "ratings", "reward", "dpo", "evaluate"} <= resumed
    assert hashes(out) == hashes(whole)
