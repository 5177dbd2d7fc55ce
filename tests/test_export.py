"""GGUF export, and a proof that can fail."""

import shutil

import pytest

from toolkit.errors import ProofError, UserError
from toolkit.export.gguf import adapter_to_gguf, convert, quantise
from toolkit.export.merge import merge_adapter
from toolkit.export.proof import prove_export
from toolkit.models.load import load_model, lora_config
from toolkit.models.resolve import Model
from toolkit.recipe import LoraSettings


def adapter(tiny, out, targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), b=0.2):
    """A LoRA adapter whose effect is not small."""
    import torch
    from peft import get_peft_model

    torch.manual_seed(1)
    model = load_model(Model(str(tiny), tiny), dtype="float32")
    model = get_peft_model(model, lora_config(model, LoraSettings(r=4, targets=targets)))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=b)
    model.save_pretrained(str(out))
    return out


@pytest.fixture(scope="module")
def exported(tiny, tiny_gguf, tmp_path_factory):
    """(merged folder, f16 GGUF, Q8_0 GGUF, adapter GGUF, base GGUF)."""
    folder = tmp_path_factory.mktemp("export")
    base = Model(str(tiny), tiny, tiny_gguf)
    trained = adapter(tiny, folder / "adapter")
    merge_adapter(base, trained, folder / "merged")
    convert(folder / "merged", folder / "f16.gguf")
    quantise(folder / "f16.gguf", folder / "q8.gguf", "Q8_0")
    adapter_to_gguf(base, trained, tiny_gguf, folder / "adapter.gguf")
    return folder / "merged", folder / "f16.gguf", folder / "q8.gguf", folder / "adapter.gguf", tiny_gguf


def test_a_good_export_is_proved(exported):
    merged, f16, q8, lora, base = exported
    facts = prove_export(merged, f16, q8, "Q8_0", base, lora)
    assert facts["f16_mean_difference"] < 0.01
    assert facts["mean_difference"] < 0.2
    assert facts["adapter_mean_difference"] < 0.01
    assert facts["adapter_change_correlation"] > 0.99
    assert facts["mean_change_from_base"] > 10 * facts["mean_difference"]


def test_an_export_that_is_the_base_fails_the_proof(exported, tiny):
    *_, base = exported
    with pytest.raises(ProofError, match="exactly what the base writes"):
        prove_export(tiny, base, base, "F16", base)


def test_another_models_gguf_fails_the_proof(exported):
    merged, f16, _, _, base = exported
    with pytest.raises(ProofError, match="Q8_0 GGUF differ"):
        prove_export(merged, f16, base, "Q8_0", base)


def test_a_wrong_f16_file_fails_the_proof_even_within_the_quantised_tolerance(exported):
    merged, _, q8, _, base = exported
    with pytest.raises(ProofError, match="f16 GGUF differ"):
        prove_export(merged, base, q8, "Q8_0", base)


def test_an_adapter_for_other_heads_fails_the_proof(exported, tiny, tmp_path, monkeypatch):
    """Without the rotary reordering of query and key rows the file loads, runs and is wrong."""
    from toolkit.export import gguf as module

    merged, f16, q8, _, base = exported
    monkeypatch.setattr(module, "ROPE_REORDERED", set())
    trained = merged.parent / "adapter"
    adapter_to_gguf(Model(str(tiny), tiny, base), trained, base, tmp_path / "wrong.gguf")
    with pytest.raises(ProofError, match="does not move the base"):
        prove_export(merged, f16, q8, "Q8_0", base, tmp_path / "wrong.gguf")


def test_another_chat_template_fails_the_proof(exported, tmp_path):
    merged, f16, q8, _, base = exported
    changed = tmp_path / "merged"
    shutil.copytree(merged, changed)
    template = changed / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|im_start|> "))
    with pytest.raises(ProofError, match="chat template tokens differ"):
        prove_export(changed, f16, q8, "Q8_0", base)


def test_an_adapter_that_gguf_has_no_place_for_is_refused(tiny, tiny_gguf, tmp_path):
    from safetensors.numpy import load_file, save_file

    trained = adapter(tiny, tmp_path / "adapter", targets=("q_proj",))
    weights = load_file(trained / "adapter_model.safetensors")
    odd = {key.replace("self_attn.q_proj", "self_attn.no_such"): value for key, value in weights.items()}
    save_file(odd, trained / "adapter_model.safetensors")
    with pytest.raises(UserError, match="no place in a GGUF"):
        adapter_to_gguf(Model(str(tiny), tiny, tiny_gguf), trained, tiny_gguf, tmp_path / "a.gguf")
