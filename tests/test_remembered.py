"""Verdicts that are known again: the same call to the same weights, and only that; whatever happens to the file."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toolkit import judges, stages
from toolkit.engines import remembered as module
from toolkit.engines.base import Choice
from toolkit.engines.remembered import remembered
from toolkit.evaluate.judge import EngineJudge
from toolkit.recipe import load_recipe
from toolkit.records import AspectRatings, Plot, read_jsonl, write_jsonl
from toolkit.runner import Work

ROOT = Path(__file__).resolve().parents[1]
ASK = [[{"role": "user", "content": "How good is it? 灯"}]]


class Counting:
    """An engine of a GGUF file whose verdict is how often it has been asked."""

    name, family, lora = "counting", "none", None

    def __init__(self, path):
        self.path, self.calls, self.closed = path, 0, False

    def choose(self, prompts, options, reason=0):
        self.calls += 1
        return [Choice((-0.1 * self.calls, -1 / 3), f"said {self.calls}")] * len(prompts)

    def generate(self, prompts, n, sampling):
        self.calls += 1
        return [["text"] * n for _ in prompts]

    def close(self):
        self.closed = True


@pytest.fixture
def gguf(tmp_path, monkeypatch):
    monkeypatch.setenv("FABLESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FABLESMITH_VERDICTS")
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF weights")
    return path


def open_one(gguf):
    engine = Counting(gguf)
    return engine, remembered(engine, gguf)


def test_the_same_call_to_the_same_weights_is_asked_once_in_all_runs(gguf):
    first, second = open_one(gguf), open_one(gguf)
    answers = [memory.choose(ASK, ["1", "2"], 4) for _, memory in (first, first, second)]
    assert answers[0] == answers[1] == answers[2] == [Choice((-0.1, -1 / 3), "said 1")]
    assert (first[0].calls, second[0].calls, second[1].known, second[1].asked) == (1, 0, 1, 1)


@pytest.mark.parametrize(
    "call", [(ASK, ["1", "3"], 4), (ASK, ["1", "2"], 5), ([[{"role": "user", "content": "?"}]], ["1", "2"], 4)]
)
def test_another_question_is_asked(gguf, call):
    engine, memory = open_one(gguf)
    memory.choose(ASK, ["1", "2"], 4)
    memory.choose(*call)
    assert engine.calls == 2


def test_files_that_differ_in_their_middle_alone_are_other_weights(gguf):
    """Two merged models whose training left the first and the last megabyte alone."""
    end = b"-" * 2**20
    gguf.write_bytes(end + b"one" + end)
    open_one(gguf)[1].choose(ASK, ["1", "2"])
    gguf.write_bytes(end + b"two" + end)
    engine, memory = open_one(gguf)
    memory.choose(ASK, ["1", "2"])
    assert engine.calls == 1


def test_other_weights_or_another_adapter_are_another_judge(gguf, tmp_path):
    open_one(gguf)[1].choose(ASK, ["1", "2"])
    adapted = Counting(gguf)
    adapted.lora = tmp_path / "lora.gguf"
    adapted.lora.write_bytes(b"GGUF adapter")
    remembered(adapted, gguf).choose(ASK, ["1", "2"])
    gguf.write_bytes(b"GGUF trained on")
    changed, memory = open_one(gguf)
    memory.choose(ASK, ["1", "2"])
    assert (adapted.calls, changed.calls) == (1, 1)


def test_what_is_written_is_written_anew(gguf):
    engine, memory = open_one(gguf)
    assert memory.generate(ASK, 2, None) == memory.generate(ASK, 2, None) == [["text", "text"]]
    assert engine.calls == 2


def test_a_server_may_change_its_weights_and_is_always_asked(gguf):
    engine = Counting(None)
    assert remembered(engine, "http://127.0.0.1:1/v1") is engine


def test_one_word_leaves_it_out(gguf, monkeypatch):
    open_one(gguf)[1].choose(ASK, ["1", "2"])
    monkeypatch.setenv("FABLESMITH_VERDICTS", "off")
    engine, memory = open_one(gguf)
    memory.choose(ASK, ["1", "2"])
    assert engine.calls == 1


def test_closing_says_how_many_were_known(gguf, monkeypatch):
    said = []
    monkeypatch.setattr(module, "say", said.append)
    for _ in range(2):
        engine, memory = open_one(gguf)
        memory.choose(ASK, ["1", "2"])
        memory.close()
        assert engine.closed
    assert [line.split("(")[0] for line in said] == ["  1 of 1 verdicts were known "]


def test_the_oldest_go_first_where_there_are_too_many(gguf, monkeypatch):
    monkeypatch.setattr(module, "MOST", 3)
    asks = [[[{"role": "user", "content": str(i)}]] for i in range(5)]
    _, memory = open_one(gguf)
    for ask in asks:
        memory.choose(ask, ["1"])
    engine, memory = open_one(gguf)
    for ask in asks[::-1]:
        memory.choose(ask, ["1"])
    assert (engine.calls, memory.known) == (2, 3)


def test_a_damaged_file_is_begun_anew(gguf, tmp_path):
    open_one(gguf)[1].choose(ASK, ["1"])
    (tmp_path / "cache" / "verdicts.sqlite").write_bytes(b"torn" * 4000)
    for calls in (1, 0):
        engine, memory = open_one(gguf)
        memory.choose(ASK, ["1"])
        assert engine.calls == calls


def test_where_nothing_can_be_kept_the_judge_is_asked(gguf, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    _, memory = open_one(gguf)
    assert memory.choose(ASK, ["1"]) == [Choice((-0.1, -1 / 3), "said 1")]
    assert memory.choose(ASK, ["1"])[0].reason == "said 2"


# asks N questions from the first on; prints each when it is kept
ASKER = """
import sys
sys.path.insert(0, sys.argv[1])
from test_remembered import Counting
from toolkit.engines.remembered import remembered
from pathlib import Path

memory = remembered(Counting(Path(sys.argv[2])), sys.argv[2])
for i in range(int(sys.argv[3])):
    memory.choose([[{"role": "user", "content": str(i)}]], ["1"])
    print(i, flush=True)
print(memory.asked - memory.known, memory.engine.calls)
"""


def test_two_processes_share_it_and_a_killed_one_leaves_it_whole(gguf, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    start = lambda count: subprocess.Popen(  # noqa: E731
        [sys.executable, "-c", ASKER, str(ROOT / "tests"), str(gguf), str(count)], stdout=subprocess.PIPE, text=True
    )
    both = [start(60), start(10**6)]
    lines = both[0].communicate(timeout=120)[0].split("\n")
    while int(both[1].stdout.readline()) < 60:  # it has passed where the other one ended
        time.sleep(0)
    both[1].send_signal(signal.SIGKILL)
    both[1].wait(timeout=60)
    assert lines[-2].split()[0] == lines[-2].split()[1]  # what it did not know it asked
    engine, memory = open_one(gguf)
    for i in range(60):
        assert memory.choose([[{"role": "user", "content": str(i)}]], ["1"])
    assert (engine.calls, memory.known) == (0, 60)


def test_a_second_run_rates_known_drafts_without_asking(gguf, tmp_path, monkeypatch):
    class Rater(Counting):
        def choose(self, prompts, options, reason=0):
            self.calls += 1
            return [Choice((-0.5,) * 5, "why")] * len(prompts)

    opened = []
    monkeypatch.setattr("toolkit.engines.load.load_engine", lambda spec: opened.append(Rater(gguf)) or opened[-1])
    recipe = load_recipe("quickstart", [f"ratings.rater={gguf}", "ratings.check=0"])
    for run, count in (("one", 3), ("two", 5)):
        root = tmp_path / run
        for name in ("candidates", "premises", "ratings"):
            (root / name).mkdir(parents=True)
        plots = [Plot(f"{run}{i}", f"A keeper lights lamp {i}. It goes out.") for i in range(count)]
        write_jsonl(root / "candidates" / "candidates.jsonl", plots)
        facts = stages.ratings(recipe, Work(root, root / "ratings", ()))
        rows = read_jsonl(root / "ratings" / "ratings.jsonl", AspectRatings)
        assert [r.plot_id for r in rows] == [p.id for p in plots]
    assert [e.calls for e in opened] == [3, 2]
    assert facts["known"] == 3


def test_a_passport_asks_anew(gguf, tmp_path, monkeypatch):
    engine = Counting(gguf)
    asked = []
    monkeypatch.setattr(judges, "load_engine", lambda *args, **more: engine)
    monkeypatch.setattr(judges, "make_passport", lambda judge, *args, **more: asked.append(judge))
    monkeypatch.setattr(judges, "keep_passport", lambda *args: None)
    opened = judges.open_judge(gguf)
    judges.issue_passport(opened, tmp_path / "out", own=0)
    assert opened.judge.engine is not engine
    assert isinstance(asked[0], EngineJudge)
    assert asked[0].engine is engine
