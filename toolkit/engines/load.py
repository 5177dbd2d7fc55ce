"""One word that names an engine → the engine."""

import shutil
from pathlib import Path

from toolkit.engines.base import Engine
from toolkit.errors import FablesmithError, UserError

ON, GPU_EXPERTS = ("auto", "cpu", "gpu"), ("auto", "all", "none")


def load_engine(
    spec: str | Path,
    *,
    n_ctx: int = 4096,
    lora: str | Path | None = None,
    on: str = "auto",
    gpu_experts: str = "auto",
) -> Engine:
    """Open the engine that `spec` names.

    Args:
        spec: "embedded" (SmolLM2-135M-Instruct through llama.cpp), a name of the catalogue ("qwen3-4b": fetched the
            first time), a .gguf file, the folder of a run (what it exported: a model, or an adapter with its base), an
            http(s) address of an OpenAI-compatible server or several with commas between them (the same model, work goes
            to whichever is free; #64 after one says how many questions it takes at once), or a folder or hub id for transformers. A folder wins over a name.
        n_ctx: llama.cpp's cache in tokens.
        lora: a GGUF adapter (llama.cpp only).
        on: "cpu", "gpu", or "auto": the GPU where it is seen and has room. A server decides for itself.
        gpu_experts: a mixture's experts on the GPU: "all", "none" (they stay in RAM), or "auto", as it fits (llama.cpp).

    Raises:
        UserError: nothing stands behind `spec`, or `on` asks for what is not there.
    """
    if on not in ON:
        raise UserError(f"a model runs on {', '.join(ON)}, not on {on!r}")
    if gpu_experts not in GPU_EXPERTS:
        raise UserError(f"experts on the GPU are {', '.join(GPU_EXPERTS)}, not {gpu_experts!r}")
    text = str(spec)
    if text.startswith(("http://", "https://")):
        from toolkit.engines.server import ServerEngine, ServerPool

        urls = [url.strip() for url in text.split(",") if url.strip()]
        return ServerPool(urls) if len(urls) > 1 else ServerEngine(*urls)
    from toolkit.models.resolve import exported_adapter, exported_gguf, resolve

    if (found := exported_gguf(Path(text))) is not None:
        on_top = exported_adapter(Path(text))
        if lora and on_top:
            raise UserError(f"{text} is an adapter itself, and takes no other", f"put {lora} on {found}")
        text, lora = str(found), lora or on_top
    where = (n_ctx, lora, on, gpu_experts)
    if text.endswith(".gguf"):
        return _llama(Path(text), *where)
    if text == "embedded" or _is_name(text):
        from toolkit.models.catalogue import entry, fetch

        found = fetch(entry(text))
        return _llama(found, *where, faster=in_16_bits(found) if text == "embedded" else None)
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
    from toolkit.models.resolve import exported_adapter, exported_gguf, resolve

    text = str(spec)
    model = exported_gguf(Path(text)) or (Path(text) if text.endswith(".gguf") else None)
    for file in filter(None, [model, exported_adapter(Path(text)), lora and Path(lora)]):
        check_gguf(file)
    if model is None and not text.startswith(("http://", "https://")):
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


def in_16_bits(path: Path) -> Path | None:
    """The embedded model's weights in 16 bits (271 MB), made once into the cache; None where the disk has no room for them.

    llama.cpp has fast products for BF16 or F16 (models.gguf_file.fast_form) and none for Q4_1, which the package holds: prompts are
    read two to three times as fast, and sixteen answers written in half the time. Verdicts are within 0.011 nats of those computed
    in float32 with F16, within 0.041 with BF16, against 0.26 as packaged (docs/results.md, Speed).
    """
    from toolkit.hardware import cache_dir
    from toolkit.models.gguf_file import fast_form, quantise
    from toolkit.models.resolve import digest

    form = fast_form()
    made = cache_dir() / "gguf" / f"{path.stem.rsplit('.', 1)[0]}-{digest([path])}.{form}.gguf"
    if not made.is_file():
        try:
            made.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(made.parent).free < 2**30:
                return None
            quantise(path, made, form)
        except (OSError, FablesmithError):
            return None
    return made


def _llama(
    path: Path, n_ctx: int, lora: str | Path | None, on: str, gpu_experts: str, faster: Path | None = None
) -> Engine:
    import llama_cpp

    from toolkit.engines.llama import LlamaEngine
    from toolkit.engines.placing import placement, without_experts
    from toolkit.hardware import free_vram
    from toolkit.models.gguf_file import file_size

    supports = bool(llama_cpp.llama_supports_gpu_offload())
    free = free_vram() if on != "cpu" and supports else None
    layers, experts_in_ram = placement(
        on, gpu_experts, file_size(path), supports, free, lambda: without_experts(path, n_ctx)
    )
    return LlamaEngine(path, n_ctx, lora, layers, experts_in_ram, faster)
