"""When unsloth is the road, what is asked of it, and that the gpu extra resolves beside our own pins. It never runs here."""

import importlib.util
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from toolkit.errors import UserError
from toolkit.models import training, unsloth_road
from toolkit.models.load import load_model, lora_config
from toolkit.models.resolve import resolve
from toolkit.models.unsloth_road import OWN_LOSS, choose, take
from toolkit.recipe import LoraSettings, ModelSettings

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def installed(monkeypatch):
    """A machine with a GPU and unsloth, as far as the choice looks."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name == "unsloth" else real(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)


@pytest.fixture
def asked(monkeypatch, installed):
    """A stand-in for unsloth's module that loads with stock libraries; what it was asked is returned."""
    calls = {}

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(**kwargs):
            calls["from_pretrained"] = kwargs
            monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
            return load_model(resolve(kwargs["model_name"]), dtype="float32", four_bit=kwargs["load_in_4bit"]), None

        @staticmethod
        def get_peft_model(model, **kwargs):
            from peft import get_peft_model

            calls["get_peft_model"] = kwargs
            settings = LoraSettings(kwargs["r"], kwargs["lora_alpha"], targets=tuple(kwargs["target_modules"]))
            return get_peft_model(model, lora_config(model, settings))

    monkeypatch.setitem(sys.modules, "unsloth", types.SimpleNamespace(FastLanguageModel=FastLanguageModel))
    return calls


def test_it_is_taken_where_it_is_installed_has_a_gpu_and_knows_the_model(tiny, installed):
    road = choose(resolve(str(tiny)), ModelSettings())
    assert road.unsloth
    assert "llama" in road.why


def test_each_reason_not_to_take_it_is_said(tiny, installed, monkeypatch):
    base, reasons = resolve(str(tiny)), []
    reasons.append(choose(base, ModelSettings(unsloth="never")))
    reasons.append(choose(base, ModelSettings(), OWN_LOSS))
    monkeypatch.setattr(unsloth_road, "KNOWN", ["qwen3"])
    reasons.append(choose(base, ModelSettings()))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reasons.append(choose(base, ModelSettings()))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reasons.append(choose(base, ModelSettings()))
    assert not any(r.unsloth for r in reasons)
    whys = ["model.unsloth is never", OWN_LOSS, "nothing of its own for llama", "needs a GPU", "is not installed"]
    assert all(part in road.why for part, road in zip(whys, reasons, strict=True))


def test_one_line_says_which_road_and_why(tiny, monkeypatch):
    said = []
    monkeypatch.setattr(unsloth_road, "say", said.append)
    take(resolve(str(tiny)), ModelSettings(unsloth="never"))
    assert said == ["  training through transformers, peft and bitsandbytes: model.unsloth is never"]


def test_the_same_recipe_trains_through_it_and_writes_a_plain_adapter(tiny, asked, tmp_path):
    from test_dpo import PAIRS, settings

    from toolkit.models.training import read_metrics
    from toolkit.preference.dpo import train_dpo

    weights = ModelSettings(dtype="float32", four_bit=True)
    train_dpo(resolve(str(tiny)), PAIRS, settings(r=4, epochs=6), weights, tmp_path)
    assert read_metrics(tmp_path)[-1]["loss"] < read_metrics(tmp_path)[0]["loss"]
    load, lora = asked["from_pretrained"], asked["get_peft_model"]
    assert load["model_name"] == str(tiny.resolve())
    assert (load["load_in_4bit"], load["max_seq_length"], load["trust_remote_code"]) == (True, 384, False)
    assert load["use_exact_model_name"]
    assert (lora["r"], lora["lora_alpha"], lora["use_gradient_checkpointing"]) == (4, 16, "unsloth")
    assert sorted(lora["target_modules"]) == sorted("q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split())
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_what_it_leaves_in_16_bit_is_refused_too(tiny, asked, monkeypatch):
    real = load_model
    monkeypatch.setattr(sys.modules[__name__], "load_model", lambda base, **k: real(base, dtype="float32"))
    weights = ModelSettings(dtype="float32", four_bit=True)
    with pytest.raises(UserError, match=r"only 0\.0% of the layers' weights"):
        training.policy(resolve(str(tiny)), weights, LoraSettings(4), True, road=choose(resolve(str(tiny)), weights))


def test_when_it_cannot_load_the_model_the_way_round_is_named(tiny, asked, monkeypatch):
    def fails(**_):
        raise NotImplementedError("Unsloth: no such thing")

    monkeypatch.setattr(sys.modules["unsloth"].FastLanguageModel, "from_pretrained", fails)
    weights = ModelSettings(dtype="float32")
    with pytest.raises(UserError, match="no such thing") as caught:
        training.policy(resolve(str(tiny)), weights, LoraSettings(4), True, road=choose(resolve(str(tiny)), weights))
    assert "model.unsloth: never" in caught.value.hint


def test_the_gpu_extra_resolves_with_our_pins():
    """Resolution only: installing it would break peft and trl on a machine without a GPU."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if not uv:
        pytest.skip("uv, which resolves without downloading, is not installed")
    command = [uv, "pip", "compile", "pyproject.toml", "--extra", "gpu", "--python-version", "3.11", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    if any(word in done.stderr for word in ("error sending request", "dns error", "Could not connect", "timed out")):
        pytest.skip("no package registry to be reached")
    assert done.returncode == 0, done.stderr
    found = dict(line.split("==") for line in done.stdout.splitlines() if "==" in line and not line.startswith(" "))
    assert {"unsloth", "unsloth-zoo", "transformers", "trl", "peft", "bitsandbytes"} <= found.keys()
    assert not found["trl"].startswith("1.15.0")
