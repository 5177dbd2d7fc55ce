"""What a GGUF file says of itself, read from its header: sizes for placing it, names for putting an adapter on it. And its kinds."""

import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from toolkit.errors import FablesmithError, UserError
from toolkit.models.resolve import Model

EXPERTS = (
    r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"  # names of the tensors of a mixture's experts, as llama.cpp's own pattern
)

# bits of a weight, as llama.cpp mixes them
BITS = {"F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.57, "Q5_K_M": 5.7, "Q4_K_M": 4.9}
FTYPE = {"F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q4_K_M": 15}  # llama_ftype


@dataclass(frozen=True)
class GgufFile:
    """Of all parts of a file together.

    Args:
        arch: as llama.cpp calls it ("llama", "qwen3moe").
        parameters: of all, not of the active ones.
        size, expert_size: bytes of all tensors, and of the experts'.
        cache: bytes of the 16-bit key and value cache a token.
        context: tokens the model was made for. experts: 0 in a dense model.
        quantisation: "Q4_K_M", "F16" …; template: of a chat, "" where there is none.
        tensors: their names.
    """

    arch: str
    parameters: int
    size: int
    expert_size: int
    cache: int
    context: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    experts: int
    quantisation: str
    template: str
    tensors: frozenset[str]


def parts(path: Path) -> list[Path]:
    """The files that belong to `path`: itself, or all of NAME-00001-of-00003.gguf."""
    found = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.gguf", path.name)
    return (
        [path.with_name(f"{found[1]}-{i:05}-of-{found[2]}.gguf") for i in range(1, int(found[2]) + 1)]
        if found
        else [path]
    )


def file_size(path: Path) -> int:
    """Bytes of all parts that are there; what is missing is for the engine to report."""
    return sum(p.stat().st_size for p in parts(path) if p.is_file())


def read_gguf(path: Path) -> GgufFile:
    """Read the header, once for a file as it is: the library goes through the vocabulary token by token, which takes seconds.

    Raises UserError when the file is no whole GGUF, or lacks what every language model's file says.
    """
    if not path.is_file():
        raise UserError(f"no GGUF file at {path}", "check the path")
    return _read(path, path.stat().st_size, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _read(path: Path, size: int, changed: int) -> GgufFile:
    import gguf

    try:
        readers = [gguf.GGUFReader(part) for part in parts(path)]
        fields = readers[0].fields
        arch = str(fields["general.architecture"].contents())
        get = lambda key, default=0: fields[f"{arch}.{key}"].contents() if f"{arch}.{key}" in fields else default  # noqa: E731
        heads, hidden, layers = get("attention.head_count"), get("embedding_length"), get("block_count")
        heads = max(heads) if isinstance(heads, list) else heads
        kv = get("attention.head_count_kv", heads)
        kv = kv if isinstance(kv, list) else [kv] * layers
        wide = get("attention.key_length", hidden // heads) + get("attention.value_length", hidden // heads)
    except (OSError, ValueError, KeyError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"{path} is not a readable GGUF of a language model: {error}", "download or export it again"
        ) from None
    tensors = [t for reader in readers for t in reader.tensors]
    kind = fields["general.file_type"].contents() if "general.file_type" in fields else -1
    template = fields["tokenizer.chat_template"].contents() if "tokenizer.chat_template" in fields else ""
    return GgufFile(
        arch=arch,
        parameters=sum(int(t.n_elements) for t in tensors),
        size=sum(int(t.n_bytes) for t in tensors),
        expert_size=sum(int(t.n_bytes) for t in tensors if re.search(EXPERTS, t.name)),
        cache=2 * wide * sum(kv),
        context=get("context_length"),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=max(kv),
        experts=get("expert_count"),
        quantisation=next((k.name.removeprefix("MOSTLY_") for k in gguf.LlamaFileType if k.value == kind), "unknown"),
        template=template,
        tensors=frozenset(t.name for t in tensors),
    )


def check_same_model(path: Path, model: Model) -> None:
    """Raise UserError when the GGUF's shape is not that of the model's weights; weights of a hub that are not here are
    not asked (the export's proof compares what both say)."""
    found = read_gguf(path)
    config = Path(model.weights) / "config.json"
    if not config.is_file():
        return
    told = json.loads(config.read_text(encoding="utf-8"))
    for key, here in (("num_hidden_layers", found.layers), ("hidden_size", found.hidden)):
        if told.get(key, here) != here:
            raise UserError(
                f"{path} is no GGUF of {model.id}: {key} is {here} there and {told[key]} here",
                "model.gguf must hold the same weights as model.id",
            )


def fast_form() -> str:
    """The 16-bit form of weights in which llama.cpp computes faster here: "BF16" on a CPU with products for it, else "F16".

    On two cores with AVX512-BF16 prompts are read 1.6 times as fast as in F16, and sixteen answers written 1.3 times (docs/results.md).
    """
    import llama_cpp as C

    told = C.llama_print_system_info()
    in_bf16 = b"AVX512_BF16 = 1" in told and b"LLAMAFILE = 1" in told  # llamafile's products are the ones that use it
    return "BF16" if in_bf16 and not C.llama_supports_gpu_offload() else "F16"


def quantise(source: Path, out: Path, kind: str) -> None:
    """A GGUF → one of `kind` (a key of BITS); an F16 one that is to be F16 is moved. FablesmithError where llama.cpp cannot."""
    import llama_cpp as C

    from toolkit.engines.llama import silence
    from toolkit.hardware import physical_cores

    if kind == "F16" and read_gguf(source).quantisation == "F16":
        os.replace(source, out)
        return
    silence(C)
    partial = out.with_suffix(f".{os.getpid()}.quantising")
    params = C.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = FTYPE[kind], physical_cores(), True
    try:
        if code := C.llama_model_quantize(str(source).encode(), str(partial).encode(), params):
            raise FablesmithError(f"llama.cpp could not quantise {source} to {kind} (code {code})")
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
