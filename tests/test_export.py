"""GGUF export, and a proof that can fail."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from toolkit.errors import ProofError, UserError
from toolkit.export.gguf import adapter_to_gguf, convert
from toolkit.export.merge import merge_adapter
from toolkit.export.proof import prove_export
from toolkit.models.gguf_file import quantise
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


@dataclass(frozen=True)
class Exported:
    base: Model
    adapter: Path
    adapter_gguf: Path
    f16: Path
    q8: Path

    def prove(self, **other) -> dict:
        """The proof of these files, with some exchanged."""
        files = {"base": self.base, "adapter": self.adapter, "base_gguf": self.base.gguf, "kind": "Q8_0"}
        files |= {"adapter_gguf": self.adapter_gguf, "merged": self.q8, "f16": self.f16}
        return prove_export(**files | other)


@pytest.fixture(scope="module")
def exported(tiny, tiny_gguf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    base = Model(str(tiny), tiny, tiny_gguf)
    trained = adapter(tiny, folder / "adapter")
    merge_adapter(base, trained, folder / "merged")
    convert(folder / "merged", folder / "f16.gguf")
    quantise(folder / "f16.gguf", folder / "q8.gguf", "Q8_0")
    adapter_to_gguf(trained, tiny_gguf, folder / "adapter.gguf")
    return Exported(base, trained, folder / "adapter.gguf", folder / "f16.gguf", folder / "q8.gguf")


def test_a_good_export_is_proved(exported):
    facts = exported.prove()
    assert facts["torch"] == "float32"
    assert facts["f16_mean_difference"] < 0.01
    assert facts["mean_difference"] < 0.2
    assert facts["adapter_mean_difference"] < 0.01
    assert facts["adapter_change_correlation"] > 0.99
    assert facts["mean_change_from_base"] > 10 * facts["mean_difference"]


def test_an_adapter_alone_is_proved(exported):
    facts = exported.prove(merged=None, f16=None, kind="F16")
    assert facts["tolerance"] == 0.02
    assert facts["mean_difference"] < 0.01
    assert facts["adapter_change_correlation"] > 0.99
    assert facts["greedy_text_differs_from_base"]


def test_an_adapter_on_a_quantised_base_is_proved_against_the_model_as_it_was_trained_in_4_bit(exported, tmp_path):
    quantise(exported.base.gguf, tmp_path / "q4.gguf", "Q4_K_M")
    base = Model(exported.base.id, exported.base.weights, tmp_path / "q4.gguf")
    adapter_to_gguf(exported.adapter, base.gguf, tmp_path / "adapter.gguf")
    told = {
        "base": base,
        "base_gguf": base.gguf,
        "adapter_gguf": tmp_path / "adapter.gguf",
        "merged": None,
        "f16": None,
    }
    facts = exported.prove(**told, kind="Q4_K_M", four_bit=True)
    assert facts["torch"] == "nf4"
    assert facts["tolerance"] == pytest.approx(0.9 + 2 * facts["base_mean_difference"], abs=1e-3)
    assert facts["correlation_asked"] <= facts["adapter_change_correlation"]
    assert facts["greedy_text_differs_from_base"]


def test_what_4_bits_cost_the_base_is_allowed_and_not_more(exported, tmp_path):
    """An adapter four times as strong in torch as in the files, where 1.5 nats were allowed whatever the base's own error."""
    from safetensors.torch import load_file, save_file

    facts = exported.prove(four_bit=True)
    assert facts["f16_mean_difference"] < 0.02 + 2 * facts["base_mean_difference"] < 1.0
    shutil.copytree(exported.adapter, tmp_path / "strong")
    file = tmp_path / "strong" / "adapter_model.safetensors"
    save_file({k: 2 * v for k, v in load_file(file).items()}, file)
    with pytest.raises(ProofError, match="f16 GGUF differ"):
        exported.prove(adapter=tmp_path / "strong", four_bit=True)


def test_an_export_that_is_the_base_fails_the_proof(exported, tiny, tmp_path):
    untrained = adapter(tiny, tmp_path / "untrained", b=0.0)
    with pytest.raises(ProofError, match="exactly what the base writes"):
        exported.prove(adapter=untrained, merged=exported.base.gguf, kind="F16", f16=None)


def test_another_models_gguf_fails_the_proof(exported):
    with pytest.raises(ProofError, match="Q8_0 GGUF differ"):
        exported.prove(merged=exported.base.gguf)


def test_a_wrong_f16_file_fails_the_proof_even_within_the_quantised_tolerance(exported):
    with pytest.raises(ProofError, match="f16 GGUF differ"):
        exported.prove(f16=exported.base.gguf)


@pytest.mark.parametrize("alone", [False, True])
def test_an_adapter_for_other_heads_fails_the_proof(exported, tmp_path, monkeypatch, alone):
    """Without the rotary reordering of query and key rows the file loads, runs and is wrong."""
    from toolkit.export import gguf as module

    monkeypatch.setattr(module, "ROPE_REORDERED", set())
    adapter_to_gguf(exported.adapter, exported.base.gguf, tmp_path / "wrong.gguf")
    told = {"merged": None, "f16": None, "kind": "F16"} if alone else {}
    with pytest.raises(ProofError, match="differ from torch" if alone else "does not move the base"):
        exported.prove(adapter_gguf=tmp_path / "wrong.gguf", **told)


def test_another_chat_template_fails_the_proof(exported, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(exported.base.weights, changed)
    template = changed / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|im_start|> "))
    with pytest.raises(ProofError, match="chat template tokens differ"):
        exported.prove(base=Model(str(changed), changed, exported.base.gguf))


def test_an_adapter_that_gguf_has_no_place_for_is_refused(tiny, tiny_gguf, tmp_path):
    from safetensors.numpy import load_file, save_file

    trained = adapter(tiny, tmp_path / "adapter", targets=("q_proj",))
    weights = load_file(trained / "adapter_model.safetensors")
    odd = {key.replace("self_attn.q_proj", "self_attn.no_such"): value for key, value in weights.items()}
    save_file(odd, trained / "adapter_model.safetensors")
    with pytest.raises(UserError, match="no place in a GGUF"):
        adapter_to_gguf(trained, tiny_gguf, tmp_path / "a.gguf")
