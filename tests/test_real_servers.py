"""Candidates and verdicts by two real servers (llama-cpp-python's own), one of which is killed at its work."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from toolkit import stages
from toolkit.models.resolve import embedded_gguf
from toolkit.recipe import load_recipe
from toolkit.records import AspectRatings, Plot, Premise, read_jsonl, write_jsonl
from toolkit.runner import Work

for package in ("fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings"):
    pytest.importorskip(package)  # pip install llama-cpp-python[server], as the test extra does


class Served:
    """A server process, and how many answers its log tells of."""

    def __init__(self, log: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log, self.url = log, f"http://127.0.0.1:{self.port}/v1"
        # logits of all tokens: without them this server gives no log-probabilities (it makes them of the whole context each time,
        # so that is short); a new request must not end another
        settings = {"model": embedded_gguf(), "port": self.port, "n_ctx": 256, "n_threads": 1}
        settings |= {"logits_all": True, "interrupt_requests": False}
        words = [w for key, value in settings.items() for w in (f"--{key}", str(value))]
        command = [sys.executable, "-m", "llama_cpp.server", *words]
        self.process = subprocess.Popen(command, stdout=log.open("w"), stderr=subprocess.STDOUT, env=os.environ)

    def wait(self) -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/models", timeout=5):
                return
            time.sleep(0.2)
        raise AssertionError(self.log.read_text()[-2000:])

    @property
    def answers(self) -> int:
        return self.log.read_text().count('"POST /v1/chat/completions HTTP/1.1" 200')

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=60)


@pytest.fixture
def servers(tmp_path):
    both = [Served(tmp_path / f"{i}.log") for i in range(2)]
    try:
        for server in both:
            server.wait()
        yield both
    finally:
        for server in both:
            server.kill()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL there")
def test_two_servers_share_a_run_and_one_killed_midway_loses_and_doubles_nothing(servers, tmp_path):
    urls = ",".join(s.url for s in servers)
    settings = [f"candidates.writer={urls}", "candidates.per_premise=3", "candidates.max_tokens=72"]
    recipe = load_recipe("quickstart", [*settings, f"ratings.rater={urls}", "ratings.reason=0", "ratings.check=0"])
    for name in ("premises", "candidates", "ratings"):
        (tmp_path / name).mkdir()
    premises = [Premise(f"p{i}", f"A keeper of {what} must choose.") for i, what in enumerate(["bees", "light"])]
    write_jsonl(tmp_path / "premises" / "train.jsonl", premises)
    write_jsonl(tmp_path / "premises" / "plots.jsonl", [])

    facts = stages.candidates(recipe, Work(tmp_path, tmp_path / "candidates", ()))
    assert sum(s.answers for s in servers) == facts["asked"] == 6  # four at once each
    assert min(s.answers for s in servers) >= 1
    written = [p.id for p in read_jsonl(tmp_path / "candidates" / "candidates.jsonl", Plot)]
    assert len(set(written)) == len(written) == facts["candidates"] == 6 - facts["left_out"] > 0
    plots = [
        Plot(f"p{i}-{k}", f"Ama keeps {what} {k}. Then she lets them go.")
        for i, what in enumerate(["bees", "light"])
        for k in range(2)
    ]
    write_jsonl(tmp_path / "candidates" / "candidates.jsonl", plots)  # these are short, and their number is known

    before, doomed = [s.answers for s in servers], servers[1]

    def kill_at_work():
        while doomed.answers < before[1] + 5:
            time.sleep(0.05)
        doomed.kill()

    killer = threading.Thread(target=kill_at_work, daemon=True)
    killer.start()
    facts = stages.ratings(recipe, Work(tmp_path, tmp_path / "ratings", ()))
    killer.join(timeout=10)
    assert doomed.process.poll() == -signal.SIGKILL
    rated = read_jsonl(tmp_path / "ratings" / "ratings.jsonl", AspectRatings)
    assert [r.plot_id for r in rated] == [p.id for p in plots]
    assert all(len(r.scores) == 5 and not r.error for r in rated)
    assert facts["rated"] == 4
    answered = [s.answers - n for s, n in zip(servers, before, strict=True)]
    assert answered[1] >= 5  # it took part, as it did before
    # each of 40 questions is answered once; those that the killed one was at (4 at most) may have been answered and not heard
    assert 40 <= sum(answered) <= 44
