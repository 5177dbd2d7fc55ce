"""What cannot work is refused before a minute is spent: nothing is fetched, nothing written."""

import time

import pytest
import torch

from toolkit.cli import main
from toolkit.errors import UserError
from toolkit.fit import check
from toolkit.models import hub
from toolkit.models.resolve import Model
from toolkit.recipe import load_recipe


@pytest.fixture
def online(monkeypatch):
    """As without --offline; the hub answers what a test says."""
    monkeypatch.delenv("HF_HUB_OFFLINE")


def refused(tmp_path, capsys, *arguments) -> str:
    out = tmp_path / "run"
    assert main(["run", *arguments, "--out", str(out)]) == 2
    assert not out.exists()
    return capsys.readouterr().err


def test_a_dense_model_in_a_recipe_for_mixtures(tmp_path, capsys):
    said = refused(tmp_path, capsys, "quickstart", "--set", "model.kind=moe")
    assert "embedded is a dense model, and quickstart is for mixtures" in said


def test_a_mixture_in_a_recipe_for_dense_models(tmp_path, capsys):
    attention = "[q_proj, k_proj, v_proj, o_proj]"
    sets = ["model.id=embedded-moe", "model.kind=dense", *(f"{s}.lora.targets={attention}" for s in ("reward", "dpo"))]
    said = refused(tmp_path, capsys, "quickstart", *(x for s in sets for x in ("--set", s)))
    assert "embedded-moe is a mixture of experts" in said


def test_a_missing_id_offline(tmp_path, capsys):
    said = refused(tmp_path, capsys, "quickstart", "--offline", "--set", "model.id=Qwen/Qwen3-4B-Instruct-2507")
    assert "Qwen/Qwen3-4B-Instruct-2507 is not on this machine" in said
    assert "without --offline it would be fetched" in said


def test_a_judge_that_is_not_here_offline(tmp_path, capsys):
    said = refused(tmp_path, capsys, "quickstart", "--offline", "--set", "evaluate.judge=granite3.3-8b")
    assert "evaluate.judge: granite3.3-8b is not on this machine" in said


def test_a_gated_id(online, monkeypatch):
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def gated(url, timeout):
        raise GatedRepoError("403", response=httpx.Response(403, request=httpx.Request("HEAD", url)))

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", gated)
    with pytest.raises(UserError, match="is gated") as error:
        hub.require(Model("meta-llama/Llama", "meta-llama/Llama"))
    assert "accept the terms" in error.value.hint


def test_a_mistyped_id_without_a_network_fails_in_seconds(online, monkeypatch):
    import socket

    def dead(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", dead)
    started = time.monotonic()
    with pytest.raises(UserError, match="the hub cannot be reached"):
        check(load_recipe("quickstart", ["model.id=Qwen/Qwen3-4B-Instruct-25070"]))
    assert time.monotonic() - started < 10


def test_a_target_that_matches_nothing(tmp_path, capsys):
    said = refused(tmp_path, capsys, "quickstart", "--set", "dpo.lora.targets=[q_proj, w_proj]")
    assert "'w_proj' matches no module" in said


def test_a_balance_loss_of_a_model_without_routers(tmp_path, capsys):
    said = refused(tmp_path, capsys, "quickstart", "--set", "dpo.router_aux=0.001")
    assert "embedded has no routers to balance" in said


def test_bfloat16_on_a_card_without_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")
    with pytest.raises(UserError, match="Tesla T4") as error:
        check(load_recipe("quickstart", ["model.dtype=bfloat16"]))
    assert "float16" in error.value.hint


def test_too_little_memory_of_a_card_ends_with_3(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("toolkit.fit._card", lambda: 8.0)
    monkeypatch.setattr("toolkit.fit._ram", lambda: 64.0)
    monkeypatch.setattr("toolkit.models.hub.require", lambda model: None)
    monkeypatch.setattr("toolkit.fit._require_engines", lambda recipe: None)
    assert main(["run", "plottwist-24gb", "--out", str(tmp_path / "run")]) == 3
    assert "DOES NOT FIT: VRAM" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
