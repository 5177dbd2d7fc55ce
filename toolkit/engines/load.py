"""One word that names an engine → the engine."""

from pathlib import Path

from toolkit.engines.base import Engine
from toolkit.errors import UserError


def load_engine(spec: str | Path, *, n_ctx: int = 4096, lora: str | Path | None = None) -> Engine:
    """Open the engine that `spec` names.

    Args:
        spec: "embedded" (SmolLM2-135M-Instruct through llama.cpp), a .gguf file, the folder of a run (its exported
            model), an http(s) address of an OpenAI-compatible server, or a folder or hub id for transformers.
        n_ctx: llama.cpp's cache in tokens.
        lora: a GGUF adapter (llama.cpp only).

    Raises:
        UserError: nothing stands behind `spec`.
    """
    text = str(spec)
    if text.startswith(("http://", "https://")):
        from toolkit.engines.server import ServerEngine

        return ServerEngine(text)
    from toolkit.models.resolve import exported_gguf, resolve

    if (found := exported_gguf(Path(text))) is not None:
        text = str(found)
    if text.endswith(".gguf"):
        from toolkit.engines.llama import LlamaEngine

        return LlamaEngine(text, n_ctx, lora)
    model = resolve(text)
    if model.gguf is not None:
        from toolkit.engines.llama import LlamaEngine

        return LlamaEngine(model.gguf, n_ctx, lora)
    if lora:
        raise UserError(f"a GGUF adapter needs a GGUF model, and {text} is none", "give the base model's .gguf")
    from toolkit.engines.hf import TransformersEngine
    from toolkit.models.load import load_model, load_tokenizer

    return TransformersEngine(load_model(model), load_tokenizer(model), name=f"transformers:{text}")
