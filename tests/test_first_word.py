"""What a user waits for, on the real embedded model, from the shell."""

import json
import os
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow
PREMISE = "A lighthouse keeper learns what the light keeps away."


def fablesmith(*args: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "toolkit", *args], capture_output=True, text=True, timeout=300, **more)


def test_write_prints_its_first_word_within_three_seconds():
    best = 99.0
    for _ in range(3):  # the best of three: the machine that tests may be busy with something else
        started = time.monotonic()
        process = subprocess.Popen([sys.executable, "-m", "toolkit", "write", PREMISE], stdout=subprocess.PIPE)
        first = os.read(process.stdout.fileno(), 16)
        best = min(best, time.monotonic() - started)
        process.kill()
        process.wait()
        assert first.strip()
    assert best <= 3.0


def test_the_same_seed_writes_the_same_plots():
    command = ("write", PREMISE, "-n", "2", "--seed", "1", "--max-tokens", "24", "--json")
    first, again = fablesmith(*command), fablesmith(*command)
    assert first.stdout == again.stdout
    rows = [json.loads(line) for line in first.stdout.splitlines()]
    assert [row["n"] for row in rows] == [0, 1]
    assert rows[0]["text"] != rows[1]["text"]


@pytest.mark.parametrize(
    "premise", ["守钟人发现钟声能让人忘记。", "🦊🔥🌊", "Ünïcödé ‘quotes’ and <b>tags</b> {braces}"]
)
def test_a_premise_in_any_script_gets_a_plot(premise):
    done = fablesmith("write", premise, "--max-tokens", "24", "--seed", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_write_into_a_closed_pipe_ends_quietly():
    command = f'"{sys.executable}" -m toolkit write "{PREMISE}" --max-tokens 60 | head -c 5'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr


def test_judge_rates_every_text_on_five_dimensions(tmp_path):
    from toolkit.narrative.dimensions import KEYS

    file = tmp_path / "stories.jsonl"
    file.write_text(
        '{"text": "Ama dug until the root bled. She begged its pardon, and water came."}\n{"text": "Um."}\n'
    )
    done = fablesmith("judge", str(file), "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [sorted(row["scores"]) for row in rows] == [sorted(KEYS)] * 2
    assert all(1 <= v <= 10 for row in rows for v in row["scores"].values())


def test_a_terminal_that_speaks_no_utf8_gets_utf8_and_no_traceback():
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "toolkit", "write", "🦊", "-n", "2", "--max-tokens", "8", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "──" in done.stdout.decode("utf-8")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_behind_standard_output_is_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "toolkit", "write", PREMISE, "--max-tokens", "8"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    assert "No space left" in done.stderr


def test_without_a_seed_the_one_drawn_is_told():
    row = json.loads(fablesmith("write", PREMISE, "--max-tokens", "8", "--json").stdout)
    again = json.loads(fablesmith("write", PREMISE, "--max-tokens", "8", "--json", "--seed", str(row["seed"])).stdout)
    assert again["text"] == row["text"]
