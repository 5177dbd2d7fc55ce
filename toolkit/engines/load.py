"""One word that names an engine → the engine."""

from pathlib import Path

from toolkit.engines.base import Engine
from toolkit.errors import UserError

ON = ("auto", "cpu", "gpu")


def load_engine(spec: str | Path, *, n_ctx: int = 4096, lora: str | Path | None = None, on: str = "auto") -> Engine:
    """Open the engine that `spec` names.

    Args:
        spec: "embedded" (SmolLM2-135M-Instruct through llama.cpp), a name of the catalogue ("qwen3-4b": fetched the
            first time), a .gguf file, the folder of a run (its exported model), an http(s) address of an
            OpenAI-compatible server, or a folder or hub id for transformers. A folder wins over a name.
        n_ctx: llama.cpp's cache in tokens.
        lora: a GGUF adapter (llama.cpp only).
        on: "cpu", "gpu", or "auto": the GPU where it is seen and has room. A server decides for itself.

    Raises:
        UserError: nothing stands behind `spec`, or `on` asks for what is not there.
    """
    if on not in ON:
        raise UserError(f"a model runs on {', '.join(ON)}, not on {on!r}")
    text = str(spec)
    if text.startswith(("http://", "https://")):
        from toolkit.engines.server import ServerEngine

        return ServerEngine(text)
    from toolkit.models.resolve import exported_gguf, resolve

    if (found := exported_gguf(Path(text))) is not None:
        text = str(found)
    if text.endswith(".gguf"):
        return _llama(Path(text), n_ctx, lora, on)
    if text == "embedded" or _is_name(text):
        from toolkit.models.catalogue import entry, fetch

        return _llama(fetch(entry(text)), n_ctx, lora, on)
    model = resolve(text)
    if lora:
        raise UserError(f"a GGUF adapter needs a GGUF model, and {text} is none", "give the base model's .gguf")
    from toolkit.engines.hf import TransformersEngine
    from toolkit.models.load import load_model, load_tokenizer

    weights = load_model(model)
    if on == "cpu":
        weights = weights.to("cpu")
    if on == "gpu" and weights.device.type == "cpu":
        raise UserError("torch sees no GPU on this machine", "leave it on auto, or install a CUDA build of torch")
    return TransformersEngine(weights, load_tokenizer(model), name=f"transformers:{text}")


def check_engine(spec: str | Path, lora: str | Path | None = None) -> None:
    """Raises UserError, as `load_engine` would, where nothing stands behind `spec` or the adapter; opens nothing.

    For work with several engines, which should not fail at the third one. What a hub or a server holds is not asked.
    """
    from toolkit.engines.llama import check_gguf
    from toolkit.models.resolve import exported_gguf, resolve

    text = str(spec)
    files = [exported_gguf(Path(text)) or (Path(text) if text.endswith(".gguf") else None), lora and Path(lora)]
    for file in filter(None, files):
        check_gguf(file)
    if files[0] is None and not text.startswith(("http://", "https://")):
        if text != "embedded" and _is_name(text):
            from toolkit.models.catalogue import entry

            entry(text)
        else:
            resolve(text)


def _is_name(text: str) -> bool:
    """Whether the catalogue is asked. The upcycled embedded model has no GGUF of its own: transformers runs it."""
    from toolkit.models.resolve import EMBEDDED_MOE

    if text == EMBEDDED_MOE:
        return False
    return "/" not in text and "\\" not in text and text[:1] not in ("", ".", "~") and not Path(text).exists()


def _llama(path: Path, n_ctx: int, lora: str | Path | None, on: str) -> Engine:
    import llama_cpp

    from toolkit.engines.llama import LlamaEngine
    from toolkit.hardware import free_vram

    supports = bool(llama_cpp.llama_supports_gpu_offload())
    size = path.stat().st_size if path.is_file() else 0  # a missing file is the engine's to report
    free = free_vram() if on == "auto" and supports else None
    return LlamaEngine(path, n_ctx, lora, layers_on(on, size, supports, free))


def layers_on(on: str, file_bytes: int, supports_gpu: bool, free_vram: int | None) -> int:
    """llama.cpp's gpu_layers: 0 for the CPU, -1 for all on the GPU.

    Args:
        file_bytes: of the GGUF; a fifth more is reckoned for cache and buffers.
        supports_gpu: whether llama.cpp was built for one.
        free_vram: bytes, or None when nobody can tell: then "auto" trusts that it fits.

    Raises UserError for "gpu" without such a build.
    """
    if on == "gpu" and not supports_gpu:
        raise UserError(
            "this llama.cpp was built without a GPU",
            'CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python '
            "(-DGGML_METAL=on on a Mac, -DGGML_VULKAN=on for other cards)",
        )
    if on == "cpu" or not supports_gpu:
        return 0
    return -1 if on == "gpu" or free_vram is None or file_bytes * 1.2 <= free_vram else 0
