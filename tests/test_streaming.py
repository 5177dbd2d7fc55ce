"""10,000 premises × 8 candidates pass through the stages without being in memory together."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A process of its own, so that its peak is its own. The engine answers at once with texts half as long as real drafts; the reward
# model is one figure of a text. Prints the growth of the peak after the first 500 premises, and seconds of processor a part
ROAD = """
import dataclasses, json, os, resource, sys, time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import toolkit.engines.load as engines
import toolkit.reward
from toolkit import stages
from toolkit.engines.base import Choice
from toolkit.narrative.dimensions import KEYS
from toolkit.recipe import load_recipe
from toolkit.records import Premise, write_jsonl
from toolkit.runner import Work

WORDS = json.loads(Path(sys.argv[3]).read_text())
os.fsync = lambda fd: None  # the disk's time is no part of what is measured


class Quick:
    name, family = "quick", "none"

    def generate(self, prompts, n, sampling):
        def text(i, k):
            start = hash((prompts[i][0]["content"], k)) % (len(WORDS) - 60)
            rows = [WORDS[at : at + 12] for at in range(start, start + 60, 12)]
            return " ".join(" ".join(row).capitalize() + "." for row in rows)

        return [[text(i, k) for k in range(n)] for i in range(len(prompts))]

    def choose(self, prompts, options, reason=0):
        return [Choice(tuple([-1.6] * len(options)), "the reason that is given for it")] * len(prompts)

    def close(self):
        pass


def score(texts):
    return np.array([[1 + 9 * (hash((t, k)) % 1000) / 1000 for k in KEYS] for t in texts])


engines.load_engine = lambda spec, **more: Quick()
sys.modules["toolkit.reward.model"] = SimpleNamespace(load_reward_model=lambda folder, dimensions: SimpleNamespace(score=score))
stages.base_of = lambda work: SimpleNamespace(gguf="quick")
recipe = load_recipe("quickstart", ["candidates.per_premise=8", "ratings.check=0", "pairs.prompts=ignore", "pairs.max_pairs=2000"])


def road(premises, root):
    spent = {}
    (root / "premises").mkdir(parents=True)
    rows = (Premise(f"p{i}", f"A keeper of light number {i} learns what it keeps away.") for i in range(premises))
    write_jsonl(root / "premises" / "train.jsonl", rows)
    write_jsonl(root / "premises" / "plots.jsonl", [])
    for name in ("candidates", "ratings", "pairs"):
        (root / name).mkdir()
        begun = time.process_time()
        facts = getattr(stages, name)(recipe, Work(root, root / name, ()))
        spent[name] = time.process_time() - begun
        print(name, {k: v for k, v in facts.items() if isinstance(v, int)}, file=sys.stderr)
    return spent, facts["pairs"]


peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
few, _ = road(int(sys.argv[2]) // 20, Path(sys.argv[1]) / "few")
before = peak()
many, pairs = road(int(sys.argv[2]), Path(sys.argv[1]) / "many")
print(json.dumps({"grown_mb": peak() - before, "few": few, "many": many, "pairs": pairs}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the system tells no peak there")
def test_80_000_candidates_stream_through_bounded_memory_in_linear_time(tmp_path):
    plots = [json.loads(line) for line in (ROOT / "toolkit" / "data" / "plots.jsonl").read_text().splitlines()]
    words = " ".join(" ".join(p["sentences"]) for p in plots if p.get("language", "en") == "en").lower().split()
    (tmp_path / "words.json").write_text(json.dumps([w.strip(".,!?") or "a" for w in words]))
    command = [sys.executable, "-c", textwrap.dedent(ROAD), tmp_path, "10000", tmp_path / "words.json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FABLESMITH_QUIET": "1", "PYTHONHASHSEED": "1"}
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    print(found)  # pytest -s shows it
    print(found, done.stderr)
    assert found["pairs"] == 2000
    assert found["grown_mb"] < 100
    for name, seconds in found["many"].items():  # 20 times the work; the first time some things are made once
        assert seconds < 20 * 1.5 * found["few"][name] + 1, name
