"""Base + LoRA → merged safetensors, one matrix at a time: memory for a few matrices, whatever the model's size.

The files are read and written as bytes. A merged 16-bit matrix becomes float16: that is what the GGUF will hold, and
bfloat16's seven bits would round small changes away. So each file keeps its length and its layout.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from toolkit.errors import FablesmithError, UserError
from toolkit.export.lora import Lora, Place, place, read_adapter
from toolkit.hardware import require_disk
from toolkit.models.load import weights_folder
from toolkit.models.resolve import Model, digest

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MARK = ".merging.json"  # of what base and adapter the files in a folder are
CHUNK = 1 << 24


def merge_adapter(base: Model, adapter: Path, out: Path) -> None:
    """Base weights + LoRA → a folder of safetensors with the base's configuration and tokenizer, computed in float32.

    Files that are whole stay when the work is killed and done again; none is ever half-written under its name.

    Raises:
        UserError: the adapter is for another model, the base is quantised on disk or damaged, or the disk is too small.
    """
    source = weights_folder(base)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    files = weight_files(source)
    headers = {file: read_header(file) for file in files}
    loras = read_adapter(adapter, config.get("num_experts") or config.get("num_local_experts") or 0)
    _check(loras, headers, config, source)
    mark = {"base": digest(files), "adapter": digest([adapter / "adapter_model.safetensors"])}
    known = out / MARK
    if out.exists() and (not known.is_file() or json.loads(known.read_text()) != mark):
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    known.write_text(json.dumps(mark))
    todo = [file for file in files if not (out / file.name).is_file()]
    require_disk(out, sum(file.stat().st_size for file in todo) / 2**20, "the merged model")
    for file in todo:
        partial = out / f"{file.name}.partial"
        _merge_file(file, headers[file], loras, partial)
        os.replace(partial, out / file.name)
    for file in source.iterdir():
        if file.suffix in {".json", ".jinja", ".txt", ".model"} and file.name != MARK:
            shutil.copyfile(file, out / file.name)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors that make up the model in `folder` (some repositories keep a second copy beside them)."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    single = folder / "model.safetensors"
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


def read_header(file: Path) -> dict[str, dict]:
    """Tensor name → {dtype, shape, data_offsets (from the file's beginning)}, in the file's order.

    Raises UserError when the file is missing, cut short or not a safetensors file.
    """
    try:
        with file.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((t["data_offsets"][1] for t in header.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError):
        raise UserError(f"{file} is not a readable safetensors file", "download the model again") from None
    if file.stat().st_size != end:
        raise UserError(f"{file} has {file.stat().st_size} bytes, {end} are expected", "download the model again")
    moved = {n: {**t, "data_offsets": [8 + length + at for at in t["data_offsets"]]} for n, t in header.items()}
    return dict(sorted(moved.items(), key=lambda item: item[1]["data_offsets"]))


def _keys(where: Place) -> list[str]:
    """Names of the LoRA matrices that change the tensor at `where`: none, one, or two for a fused gate_up."""
    if not where.kind:
        return [where.key]
    return [f"{where.key}.{kind}" for kind in where.kind.split("_")]


def _check(loras: dict[str, Lora], headers: dict[Path, dict], config: dict, source: Path) -> None:
    """Raise UserError unless every LoRA finds its tensors, of its shape, in floating point."""
    if config.get("model_type") == "gpt_oss" and any(".mlp.experts." in key for key in loras):
        raise UserError(
            f"the adapter changes experts of {source}, which gpt-oss stores transposed, usually in 4 bits",
            "set export.merge: never: the adapter alone can be exported",
        )
    left = set(loras)
    for header in headers.values():
        for name, tensor in header.items():
            where = place(name)
            for key in _keys(where):
                if key not in loras:
                    continue
                if tensor["dtype"] not in FLOATS:
                    raise UserError(
                        f"{name} of {source} is quantised on disk ({tensor['dtype']}): nothing can be merged into it",
                        "set export.merge: never, or take the model's 16-bit weights",
                    )
                rows, columns = loras[key].b.shape[-2], loras[key].a.shape[-1]
                if tensor["shape"][-2:] != [rows * len(_keys(where)), columns]:
                    raise UserError(
                        f"the adapter changes {rows} × {columns} of {name}, which is {tensor['shape']}",
                        "it was trained on another model",
                    )
                left.discard(key)
    if left:
        raise UserError(
            f"the adapter changes {sorted(left)[0]}, which {source} does not hold",
            "it was trained on another model, or on an output layer that shares the input's weights",
        )


def _merge_file(file: Path, header: dict[str, dict], loras: dict[str, Lora], out: Path) -> None:
    targets = {name: where for name, where in ((n, place(n)) for n in header) if loras.keys() & set(_keys(where))}
    start = next(iter(header.values()))["data_offsets"][0] if header else 0
    told = {}
    for name, tensor in header.items():
        dtype = "F16" if name in targets and tensor["dtype"] == "BF16" else tensor["dtype"]
        told[name] = {**tensor, "dtype": dtype, "data_offsets": [at - start for at in tensor["data_offsets"]]}
    raw = json.dumps({"__metadata__": {"format": "pt"}, **told}, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with file.open("rb") as source, out.open("wb") as target:
        target.write(len(raw).to_bytes(8, "little") + raw)
        for name, tensor in header.items():
            source.seek(tensor["data_offsets"][0])
            if name in targets:
                for matrix in _merged(source, tensor, targets[name], loras):
                    target.write(matrix)
            else:
                _copy(source, target, tensor["data_offsets"][1] - tensor["data_offsets"][0])
        target.flush()
        os.fsync(target.fileno())


def _merged(source, tensor: dict, where: Place, loras: dict[str, Lora]) -> Iterator[memoryview]:
    """The bytes of a changed tensor, an expert at a time where it holds several."""
    dtype, shape = FLOATS[tensor["dtype"]], tensor["shape"]
    kept = torch.float32 if dtype == torch.float32 else torch.float16
    stacked = len(shape) == 3
    for expert in range(shape[0]) if stacked else [where.expert]:
        raw = bytearray(source.read(dtype.itemsize * shape[-2] * shape[-1]))
        weight = torch.frombuffer(raw, dtype=dtype).reshape(shape[-2:]).float()
        for part, key in zip(weight.chunk(len(_keys(where))), _keys(where), strict=True):
            if key in loras:
                part += loras[key].delta(expert)
        weight = weight.to(kept)
        if not weight.isfinite().all():
            raise FablesmithError(f"merging gives numbers in {where.key} that {kept} cannot hold")
        yield memoryview(weight.numpy()).cast("B")


def _copy(source, target, size: int) -> None:
    while size:
        part = source.read(min(size, CHUNK))
        target.write(part)
        size -= len(part)
