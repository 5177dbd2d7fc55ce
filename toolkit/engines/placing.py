"""Where a GGUF runs: which part of it on the GPU, by what fits, and how llama.cpp is told."""

import ctypes
from collections.abc import Callable
from pathlib import Path

from toolkit.errors import UserError
from toolkit.models.gguf_file import EXPERTS, read_gguf

BUFFERS = 10**9  # bytes; llama.cpp's compute buffers, and an expert tensor on its way to the card for a long prompt


def placement(
    on: str,
    gpu_experts: str,
    file_bytes: int,
    supports_gpu: bool,
    free_vram: int | None,
    without_experts: Callable[[], int | None] = lambda: None,
) -> tuple[int, bool]:
    """(llama.cpp's gpu_layers: 0 for the CPU, -1 for all on the GPU; whether a mixture's experts stay in RAM).

    "auto" takes the first that fits: all on the GPU; a mixture's experts in RAM and the rest on the GPU (of 30 billion
    parameters with 3 active, 1 in 20 is not an expert's); all on the CPU.

    Args:
        gpu_experts: all on the GPU, none, or auto.
        file_bytes: of the GGUF; a fifth more is reckoned for cache and buffers.
        supports_gpu: whether llama.cpp was built for one.
        free_vram: bytes, or None when nobody can tell: then "auto" trusts that it fits.
        without_experts: bytes on the GPU when the experts are not, None for a dense model; asked only when it matters.

    Raises UserError for a GPU without such a build, or experts on a GPU that nothing else may use.
    """
    if (on == "gpu" or (gpu_experts == "all" and on != "cpu")) and not supports_gpu:
        raise UserError(
            "this llama.cpp was built without a GPU",
            'CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python '
            "(-DGGML_METAL=on on a Mac, -DGGML_VULKAN=on for other cards)",
        )
    if on == "cpu" and gpu_experts == "all":
        raise UserError("--on cpu leaves no GPU for --gpu-experts all", "leave one of them out")
    if on == "cpu" or not supports_gpu:
        return 0, gpu_experts == "none"
    fits = free_vram is None or file_bytes * 1.2 <= free_vram
    if gpu_experts == "all" or (gpu_experts == "auto" and fits):
        return -1, False
    rest = without_experts()
    if rest is not None and (on == "gpu" or gpu_experts == "none" or rest <= free_vram):
        return -1, True
    return (-1 if on == "gpu" or fits else 0), False


def without_experts(path: Path, n_ctx: int) -> int | None:
    """Bytes that a mixture takes on the GPU beside its experts: weights, cache, and buffers for a batch."""
    found = read_gguf(path)
    return found.size - found.expert_size + n_ctx * found.cache + BUFFERS if found.expert_size else None


class _Override(ctypes.Structure):
    """llama_model_tensor_buft_override: tensors whose name the regular expression finds go into that kind of buffer."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p))


def experts_to_ram(C) -> ctypes.Array:
    """What llama.cpp's own --cpu-moe makes: the experts into the CPU's buffers; an entry of nulls ends the list."""
    from llama_cpp._ctypes_extensions import load_shared_library

    cpu_buffer = load_shared_library("ggml-base", C.llama_cpp._base_path).ggml_backend_cpu_buffer_type
    cpu_buffer.restype = ctypes.c_void_p
    return (_Override * 2)(_Override(EXPERTS.encode(), cpu_buffer()), _Override())
