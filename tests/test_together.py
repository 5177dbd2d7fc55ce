"""A run in several processes: they train as one would, and only the first writes and speaks."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit import together
from toolkit.errors import UserError
from toolkit.models.training import passes, read_metrics
from toolkit.recipe import DpoSettings, load_recipe
from toolkit.records import read_jsonl
from toolkit.runner import run_recipe

ROOT = Path(__file__).resolve().parents[1]
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
        **{"dpo.batch": 2, "dpo.accumulate": 2, "dpo.epochs": 2, "dpo.lr": 5e-3, "dpo.save_every": 2},
        **{"dpo.lora.last_layers": 2, "premises.train": 6, "premises.test": 3},
        **{"tripwire.every": 3, "tripwire.prompts": 2, "deviation.semantic": "ngrams", "candidates.max_tokens": 16},
    }
    return [f"{key}={value}" for key, value in given.items()]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the launcher's store needs libuv, which torch lacks there")
def test_two_processes_train_as_one_does(tiny, tiny_gguf, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"  # not beside each other, or the second takes what the first has made
    run_recipe(load_recipe("quickstart", settings(one, tiny, tiny_gguf)), one / "run", "dpo")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", free_port(), "-m", "toolkit", "run", "quickstart", "--out", str(two / "run")]
    command += [w for text in settings(two, tiny, tiny_gguf) for w in ("--set", text)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    del env["FABLESMITH_QUIET"]
    done = subprocess.run(
        [*command, "--until", "dpo", "--no-fit"], env=env, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone, both = (read_metrics(tmp_path / name / "run" / "dpo") for name in ("one", "two"))
    assert [row["step"] for row in both] == [row["step"] for row in alone] == [1, 2, 3, 4]
    for key in ("loss", "rewards/margins", "grad_norm"):
        assert [row[key] for row in both] == pytest.approx([row[key] for row in alone], rel=1e-4, abs=1e-5), key
    assert alone[-1]["loss"] < alone[0]["loss"] - 0.01  # they have something to agree on
    references = [read_jsonl(tmp_path / name / "run" / "dpo" / "reference.jsonl") for name in ("one", "two")]
    assert [len({row["key"] for row in rows}) for rows in references] == [len(PAIRS)] * 2
    assert [len(rows) for rows in references] == [len(PAIRS)] * 2  # each made by one process, and kept once
    looks = read_jsonl(two / "run" / "dpo" / "tripwire.jsonl")
    assert [row["step"] for row in looks] == [0, 3, 4]
    assert done.stdout == f"{two / 'run' / 'dpo'}\n"
    assert done.stderr.count("align the writer") == 1
    files = [{p.name for p in (tmp_path / name / "run" / "dpo" / "adapter").iterdir()} for name in ("one", "two")]
    assert files[0] == files[1] > {"adapter_model.safetensors"}


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
