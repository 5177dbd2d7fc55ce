"""The doctor finds what stands in the way, and is not felled by it itself."""

import json
import os
import subprocess
import sys

import pytest

from toolkit import doctor
from toolkit.cli import main

CARD = {"name": "NVIDIA T", "driver": "535.1", "gib": 15.0, "cuda": "12.2"}
CPU = {"version": "2.13.0+cpu", "cuda": None, "seen": False, "bf16": False}
SEEN = {"version": "2.13.0", "cuda": "12.8", "seen": True, "bf16": True, "name": "NVIDIA T", "gib": 15.0}


@pytest.fixture(autouse=True)
def busy(monkeypatch):
    """What else runs on this machine is no finding of these tests."""
    monkeypatch.setattr(doctor, "RUN_RAM", 0.0)


def by_name(found):
    return {f.about: f for f in found}


def run(folder, *verb):
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "toolkit", *verb]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=240)


def test_with_a_torch_that_cannot_be_imported_it_says_so_and_how_to_mend_it(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')\n")
    done = run(tmp_path, "doctor", "--json")
    assert done.returncode == 1, done.stderr
    rows = {f["about"]: f for f in json.loads(done.stdout)["findings"]}
    assert "libcudart.so.13" in rows["torch"]["said"]
    assert "pip install" in rows["torch"]["fix"]
    assert rows["packages"]["state"] == "ok"
    assert "free" in rows["memory"]["said"]


@pytest.mark.parametrize("broken", ["torch", "llama_cpp"])
def test_a_missing_library_is_a_problem_with_a_fix(monkeypatch, broken):
    real = doctor._ask
    asked = {doctor.TORCH: CPU, doctor.LLAMA: {"version": "0.3", "gpu": False, "system": "AVX2 = 1"}}
    code = {"torch": doctor.TORCH, "llama_cpp": doctor.LLAMA}[broken]
    missing = lambda c: real("import nothing_of_this_name") if c == code else asked[c]  # noqa: E731
    monkeypatch.setattr(doctor, "_ask", missing)
    problems = [f for f in doctor.examine() if f.state == doctor.PROBLEM]
    assert [f.about for f in problems] == [{"torch": "torch", "llama_cpp": "llama.cpp"}[broken]]
    assert "No module named 'nothing_of_this_name'" in problems[0].said
    assert problems[0].fix


def test_a_library_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(doctor, "LIMIT", 0.2)
    assert "within" in doctor._ask("import time; time.sleep(9)")["error"]


def test_a_card_that_a_cpu_build_of_torch_ignores_is_a_problem():
    found = by_name(doctor._torch(CPU, CARD))
    assert found["gpu"].state == doctor.PROBLEM
    assert "CPU build" in found["gpu"].said


def test_a_driver_too_old_for_torch_is_told_from_a_hidden_card():
    blind = {**SEEN, "seen": False, "bf16": False}
    assert "newer NVIDIA driver" in by_name(doctor._torch(blind, CARD))["gpu"].fix
    assert "CUDA_VISIBLE_DEVICES" in by_name(doctor._torch(blind, {**CARD, "cuda": "13.0"}))["gpu"].fix


def test_a_card_without_bfloat16_is_noted_not_refused():
    found = by_name(doctor._torch({**SEEN, "bf16": False}, CARD))
    assert found["precision"].state == doctor.NOTE
    assert "float16" in found["precision"].said
    assert found["gpu"].state == doctor.OK


def test_llama_cpp_without_the_card_is_noted_with_the_build_that_uses_it():
    llama = {"version": "0.3.36", "gpu": False, "system": "AVX2 = 1"}
    assert next(iter(doctor._llama(llama, CARD))).fix == doctor.CUDA_LLAMA
    assert next(iter(doctor._llama(llama, {}))).state == doctor.OK


def test_a_version_outside_our_pins_is_named(monkeypatch):
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: "1.15.0" if name == "trl" else real(name))
    (found,) = doctor._pins()
    assert found.state == doctor.PROBLEM
    assert found.said.startswith("trl is 1.15.0")
    assert "!=1.15.0" in found.fix


def test_a_full_disk_is_a_problem(monkeypatch):
    full = type("Usage", (), {"free": 10**9})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: full)
    assert [f.state for f in doctor._room()][:2] == [doctor.PROBLEM] * 2


def test_on_a_sound_machine_it_ends_with_0(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_ask", lambda code: SEEN if code == doctor.TORCH else {"version": "0.3", "gpu": True, "system": ""})  # fmt: skip
    monkeypatch.setattr(doctor, "_card", lambda: {**CARD, "cuda": "13.0"})
    assert main(["doctor"]) == 0
    assert "nothing stands in the way" in capsys.readouterr().out
