"""A run in several processes: they train as one would, and only the first writes and speaks."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import several as several_trainings

from toolkit import together
from toolkit.errors import UserError
from toolkit.models.training import passes, read_metrics
from toolkit.recipe import DpoSettings, load_recipe
from toolkit.records import read_jsonl
from toolkit.runner import run_recipe

ROOT = Path(__file__).resolve().parents[1]
STEPS = 20
several = pytest.mark.skipif(
    sys.platform == "win32", reason="the launcher's store needs libuv, which torch lacks there"
)
PAIRS = [
    {
        "prompt": f"Write of lamp {i}.",
        "chosen": f"Ama lit lamp {i} until the root bled" + " and bled" * i + ".",
        "rejected": "Um, nothing" + " at all" * (i % 3) + ".",
    }
    for i in range(8)
]


def settings(folder: Path, tiny, tiny_gguf) -> list[str]:
    """The quickstart on the user's own pairs, tiny; with a tripwire, which one process alone sees."""
    folder.mkdir()
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    given = {
        **{"pairs.file": folder / "pairs.jsonl", "model.id": tiny, "model.gguf": tiny_gguf, "model.dtype": "float32"},
        **{"dpo.batch": 2, "dpo.accumulate": 2, "dpo.epochs": STEPS // 2, "dpo.lr": 1e-3, "dpo.save_every": 2},
        **{"dpo.lora.last_layers": 2, "premises.train": 6, "premises.test": 3},
        **{"tripwire.every": 5, "tripwire.prompts": 2, "deviation.semantic": "ngrams", "candidates.max_tokens": 16},
    }
    return [f"{key}={value}" for key, value in given.items()]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launched(*words, own=False, **more) -> subprocess.Popen:
    """Two processes, through accelerate or (`own`) torch's own launcher, which here are the same."""
    start = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    if not own:
        start = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env.pop("FABLESMITH_QUIET", None)
    command = [sys.executable, "-m", *start, free_port(), *map(str, words)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def until(true, seconds: float) -> float:
    """Wait for it; how long that took."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < seconds
        time.sleep(0.05)
    return time.monotonic() - begun


def gone(processes) -> bool:
    return all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.slow
@several
def test_two_processes_killed_at_their_work_go_on_and_end_as_one_does(tiny, tiny_gguf, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"  # not beside each other, or the second takes what the first has made
    run_recipe(load_recipe("quickstart", settings(one, tiny, tiny_gguf)), one / "run", "dpo")
    sets = [w for text in settings(two, tiny, tiny_gguf) for w in ("--set", text)]
    command = ["-m", "toolkit", "run", "quickstart", "--out", two / "run", *sets, "--until", "dpo", "--no-fit"]

    first = launched(*command)
    partial = two / "run" / "dpo.partial"
    until(lambda: list(partial.glob("checkpoints/checkpoint-*/whole")) or first.poll() is not None, 300)
    workers = psutil.Process(first.pid).children()
    assert len(workers) == 2, first.communicate()[1][-3000:]
    workers[1].kill()  # SIGKILL
    assert until(lambda: gone(workers), 30) < 15  # it is the launcher that ends the other
    said = first.communicate(timeout=60)[1]
    assert first.returncode != 0
    assert "[rank0]" not in said, "a traceback"
    left = len(read_metrics(partial))
    assert 0 < left < STEPS, "it was killed in its training"

    second = launched(*command)
    out, said = second.communicate(timeout=400)
    assert second.returncode == 0, said[-3000:]
    alone, both = (read_metrics(tmp_path / name / "run" / "dpo") for name in ("one", "two"))
    assert [row["step"] for row in both] == [row["step"] for row in alone] == list(range(1, STEPS + 1))
    for key in ("loss", "rewards/margins", "grad_norm"):
        assert [row[key] for row in both] == pytest.approx([row[key] for row in alone], rel=1e-3, abs=1e-5), key
    assert alone[-1]["loss"] < alone[0]["loss"] - 0.01  # they have something to agree on
    assert farthest(one / "run" / "dpo", two / "run" / "dpo") < 1e-4
    references = [read_jsonl(tmp_path / name / "run" / "dpo" / "reference.jsonl") for name in ("one", "two")]
    assert [len({row["key"] for row in rows}) for rows in references] == [len(PAIRS)] * 2
    assert [len(rows) for rows in references] == [len(PAIRS)] * 2  # each made by one process, and kept once
    looks = read_jsonl(two / "run" / "dpo" / "tripwire.jsonl")
    assert [row["step"] for row in looks] == [0, 5, 10, 15, 20]
    assert out == f"{two / 'run' / 'dpo'}\n"
    assert said.count("align the writer") == 1
    files = [{p.name for p in (tmp_path / name / "run" / "dpo" / "adapter").iterdir()} for name in ("one", "two")]
    assert files[0] == files[1] > {"adapter_model.safetensors"}


def farthest(one: Path, two: Path) -> float:
    """The largest difference between two trainings' weights."""
    from safetensors.torch import load_file

    files = [p.relative_to(one) for p in one.rglob("*.safetensors") if "checkpoints" not in p.parts]
    assert files
    pairs = [(load_file(one / name), load_file(two / name)) for name in files]
    return max(float((a[key] - b[key]).abs().max()) for a, b in pairs for key in a)


@pytest.fixture(scope="module")
def everything(tiny, tmp_path_factory):
    """Folders of every training, by one process and by two."""
    out = tmp_path_factory.mktemp("several")
    done = launched(ROOT / "tests" / "several.py", "train", tiny, out / "two", own=True)
    several_trainings.train(str(tiny), str(out / "one"))
    said = done.communicate(timeout=400)[1]
    assert done.returncode == 0, said[-3000:]
    return out / "one", out / "two"


@pytest.mark.slow
@several
@pytest.mark.parametrize("name", several_trainings.TRAININGS)
def test_every_training_in_two_processes_is_that_in_one(everything, name):
    one, two = (folder / name for folder in everything)
    alone, both = read_metrics(one), read_metrics(two)
    assert len(alone) == len(both) > 5
    assert [row["loss"] for row in both] == pytest.approx([row["loss"] for row in alone], rel=1e-4, abs=1e-5)
    assert [row["grad_norm"] for row in both] == pytest.approx([row["grad_norm"] for row in alone], rel=1e-3, abs=1e-5)
    gap = max(abs(a["loss"] - b["loss"]) for a, b in zip(alone, both, strict=True))
    print(f"{name}: {len(alone)} steps, losses within {gap:.1e}, weights within {farthest(one, two):.1e}")
    # each step moves a weight by up to 5e-3, in the direction of a gradient that may be nothing but rounding
    assert farthest(one, two) < 5e-4
    assert max(row["grad_norm"] for row in alone) > 0.01
    if "held" in name:
        notes = [[[row[f"safety/{key}"] for key in ("beta", "risk")] for row in rows] for rows in (alone, both)]
        assert notes[1] == [pytest.approx(row) for row in notes[0]]
    if name.startswith("grpo"):
        keys = ("reward", "letters/mean", "guard/any", "answers", "tokens")
        assert [[row[k] for k in keys] for row in both] == [pytest.approx([row[k] for k in keys]) for row in alone]
        assert (one / "scales.json").read_text() == (two / "scales.json").read_text()


@pytest.mark.slow
@several
def test_where_one_process_has_a_users_error_all_end():
    said = launched(ROOT / "tests" / "several.py", "fail", "1", own=True).communicate(timeout=60)[1]
    assert said.count("it cannot be") == 1
    assert "rank      : 1" in said
    assert "exitcode  : 2" in said


@pytest.mark.slow
@several
def test_processes_whose_launcher_is_killed_end_by_themselves():
    launcher = launched(ROOT / "tests" / "several.py", "wait", own=True, start_new_session=True)
    heard = launcher.stdout.readline() + launcher.stdout.readline()
    assert heard == "waiting\nwaiting\n"
    workers = psutil.Process(launcher.pid).children()
    launcher.kill()
    assert until(lambda: gone(workers), 30) < 10
    assert len(workers) == 2


@pytest.mark.parametrize(
    ("batch", "accumulate", "processes", "each"),
    [(2, 1, 2, (1, 1)), (1, 8, 4, (1, 2)), (4, 2, 2, (4, 1)), (2, 3, 1, (2, 3))],
)
def test_processes_share_what_the_recipe_calls_a_step(monkeypatch, batch, accumulate, processes, each):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    found = passes(DpoSettings(batch=batch, accumulate=accumulate))
    assert (found["per_device_train_batch_size"], found["gradient_accumulation_steps"]) == each


def test_a_step_that_cannot_be_shared_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"3 processes cannot share a step of 2 \(batch 2 × accumulate 1\)"):
        passes(DpoSettings(batch=2, accumulate=1))


def test_processes_that_nothing_brings_together_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with pytest.raises(UserError, match="nothing to meet at"):
        together.Processes().__enter__()


def test_a_process_alone_is_told_nothing_of_others(monkeypatch):
    for name in together.NAMES:
        monkeypatch.delenv(name, raising=False)
    with together.Processes() as processes, processes.together("dpo"):
        assert (processes.rank, together.rank(), together.count()) == (0, 0, 1)
