"""Export proof: what is handed out is the model that was trained, and differs from the base.

Two programs read two files: torch the base and the PEFT adapter, as trained; llama.cpp the exported GGUF, or the base's
GGUF with the GGUF adapter. They must see the same tokens and say the same of them.
"""

from pathlib import Path

import numpy as np

from toolkit.engines.base import Messages, Sampling
from toolkit.engines.llama import LlamaEngine
from toolkit.engines.load import load_engine
from toolkit.errors import ProofError
from toolkit.hardware import release_memory
from toolkit.models.resolve import Model
from toolkit.narrative.writing import write_prompt

# Largest mean |difference| of log-probabilities, nats a token. The f16 file must be the trained model to rounding: a wrong
# tensor, rope or tokenizer shows there. A quantised file is then allowed what quantising costs a model as small as the
# embedded one, which is the most sensitive we ship (measured, docs/results.md), with half as much again.
F16_TOLERANCE = 0.02
TOLERANCE = {"F16": 0.02, "BF16": 0.03, "Q8_0": 0.2, "Q6_K": 0.3, "Q5_K_M": 0.6, "Q4_K_M": 0.9}
COARSEST = 1.5  # for a base GGUF of a kind that we do not make
# What torch's own way of holding the base adds: 16 bits where 32 do not fit. NF4, where training was in it and float32 does not
# fit, has an error that is the base's and not the export's (0.99 of the embedded mixture, whatever the file's kind): it is measured, by
# reading the untrained base in both programs, and may be so large. What is handed out may then be twice as far from what was
# trained: it was 0.91 to 0.97 times as far after a light training (docs/results.md), 1.9 of a random model with an adapter that turns it over.
TORCH_TOLERANCE = {"float32": 0.0, "float16": 0.05, "bfloat16": 0.1, "nf4": 1.5}
OF_BASE = 2.0
# Correlation of what training changed in each token's log-probability, in torch and in llama.cpp. Rounding, of the base's
# GGUF or of NF4, bends the change itself: after a light training of the embedded mixture Q8_0 leaves 0.84, Q4_K_M 0.46
# (docs/results.md), and BF16 0.67 after two steps of a cold start, 0.998 after the quickstart. A change that has nothing to do with training's is at
# 0 ± 0.1 over so many tokens.
CORRELATION = {"exact": 0.95, "rounded": 0.3}
LIGHT = 0.002  # nats a token: a change of which F16's own rounding (0.0017 on the embedded model) is a large part

TEXT = (
    "Ines mended nets on the pier until the storm took her brother's boat. She rowed out at dawn with the harbour's only "
    "lamp, found the hull turned over, and heard knocking from inside. She answered, three knocks, and began to saw."
)
CHATS: tuple[Messages, ...] = (
    [{"role": "user", "content": "Hello."}],
    [
        {"role": "system", "content": "You write plots."},
        {"role": "user", "content": 'Naïve café — "quotes", 数字 and 🦊.'},
    ],
    [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}, {"role": "user", "content": "C\nD"}],
)
PROMPT = write_prompt("A net mender hears knocking under a capsized boat.")
GREEDY = Sampling(temperature=0, max_tokens=48)
WHOLE = ("0", "1")  # general.file_type: F32, F16; BF16 rounds what it multiplies, which is much beside a light training


def prove_export(
    base: Model,
    adapter: Path,
    base_gguf: Path,
    adapter_gguf: Path,
    merged: Path | None = None,
    kind: str = "F16",
    f16: Path | None = None,
    *,
    four_bit: bool = False,
    dtype: str = "float32",
) -> dict:
    """Check the exported files against the base and the adapter in torch.

    Args:
        base, adapter: what was trained, and the PEFT adapter.
        base_gguf, adapter_gguf: the base's GGUF and the GGUF adapter, which must move it as training did.
        merged: the merged model's GGUF; None when only the adapter is handed out.
        kind: what `merged` (or, without it, `base_gguf`) is quantised to. f16: the merged file before quantising.
        four_bit, dtype: how torch holds the base; float32 where memory allows, which is what the files should hold. The
            tolerances grow by what another way costs.

    Returns:
        What was compared and measured.

    Raises:
        ProofError: token ids, EOS or BOS differ, log-probabilities differ by more than the tolerance, the adapter moves
            the base otherwise than training did, or the exported model is indistinguishable from the base.
    """
    on_base = {"path": base_gguf, "lora": adapter_gguf}
    engine = _open(merged) if merged else _open(**on_base)
    tokens, facts = _same_tokens(base, engine)
    engine.close()
    before, trained, facts["torch"] = _torch_logps(base, adapter, tokens, four_bit, dtype)  # alone in memory
    coarse = TORCH_TOLERANCE[facts["torch"]]
    exported, drawn, _ = _read(tokens, **({"path": merged} if merged else on_base))
    base_logps, base_drawn, base_kind = _read(tokens, path=base_gguf)
    if facts["torch"] == "nf4":
        facts["base_mean_difference"] = of_base = _within(before, base_logps, COARSEST + coarse, "the base's own GGUF")
        coarse = OF_BASE * of_base
    facts["tolerance"] = round(TOLERANCE.get(kind, COARSEST) + coarse, 3)
    facts["tokens"] = len(tokens)
    if f16:
        whole = _read(tokens, path=f16)[0]
        facts["f16_mean_difference"] = _within(trained, whole, F16_TOLERANCE + coarse, "the f16 GGUF")
    what = f"the {kind} GGUF" if merged else f"the adapter on the {kind} GGUF"
    facts["mean_difference"] = _within(trained, exported, facts["tolerance"], what)
    facts["mean_change_from_base"] = round(float(np.abs(exported - base_logps).mean()), 5)
    facts["greedy_text_differs_from_base"] = drawn != base_drawn
    facts["greedy_text"], facts["greedy_text_of_base"] = drawn, base_drawn
    if not facts["greedy_text_differs_from_base"] and facts["mean_change_from_base"] < 1e-4:
        raise ProofError("the exported model writes exactly what the base writes: the adapter did not reach the file")
    moved = (_read(tokens, **on_base)[0] if merged else exported) - base_logps
    facts["adapter_mean_difference"] = round(float(np.abs(moved - (trained - before)).mean()), 5)
    facts["adapter_change_correlation"] = correlation = round(float(np.corrcoef(moved, trained - before)[0, 1]), 4)
    exact = facts["torch"] == "float32" and base_kind in WHOLE and np.abs(trained - before).mean() > LIGHT
    facts["correlation_asked"] = needed = CORRELATION["exact" if exact else "rounded"]
    if not correlation >= needed:
        raise ProofError(
            f"the adapter GGUF does not move the base as training did: correlation {correlation}, at least {needed} is asked"
        )
    return facts


def _open(path: Path, lora: Path | None = None) -> LlamaEngine:
    return load_engine(path, n_ctx=2048, lora=lora)


def _same_tokens(base: Model, engine: LlamaEngine) -> tuple[list[int], dict]:
    """(a prompt and a text in tokens, facts). Raises ProofError unless both sides read chats and know their ends alike."""
    from toolkit.models.load import load_tokenizer

    tokenizer = load_tokenizer(base)
    for chat in CHATS:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        here, there = tokenizer(text, add_special_tokens=False)["input_ids"], engine.chat_tokens(chat)
        if here != there:
            raise ProofError(f"chat template tokens differ: transformers {here} · GGUF {there}")
    facts: dict = {"chats_with_equal_tokens": len(CHATS)}
    for name, here, there in (
        ("EOS", tokenizer.eos_token_id, engine.C.llama_vocab_eos(engine.vocab)),
        ("BOS", tokenizer.bos_token_id, engine.C.llama_vocab_bos(engine.vocab)),
    ):
        if here is not None and here != there:
            raise ProofError(f"{name} differs: transformers {here} · GGUF {there}")
        facts[name.lower()] = here
    return engine.chat_tokens(PROMPT) + engine.tokenize(TEXT), facts


def _torch_logps(
    base: Model, adapter: Path, tokens: list[int], four_bit: bool, dtype: str
) -> tuple[np.ndarray, np.ndarray, str]:
    """Log-probability (nats) of each token after the first, shape (T − 1): of the base, and with its adapter; and how
    torch held the base."""
    from toolkit.models.load import load_model, wear

    loaded = load_model(base, dtype=dtype, four_bit=four_bit)
    held = "nf4" if four_bit else str(loaded.dtype).removeprefix("torch.")
    network = wear(loaded, adapter).eval()
    trained = _token_logps(network, tokens)
    with network.disable_adapter():
        before = _token_logps(network, tokens)
    del network, loaded
    release_memory()
    return before, trained, held


def _token_logps(network, tokens: list[int]) -> np.ndarray:
    import torch

    ids = torch.tensor([tokens], device=network.device)
    with torch.inference_mode():
        logps = network(ids).logits[0, :-1].double().log_softmax(-1)
        return logps.gather(1, ids[0, 1:, None])[:, 0].cpu().numpy()


def _read(tokens: list[int], path: Path, lora: Path | None = None) -> tuple[np.ndarray, str, str]:
    """(log-probabilities of the tokens, greedy answer, general.file_type) of a GGUF, with its adapter."""
    engine = _open(path, lora)
    try:
        return engine.logps(tokens), engine.generate([PROMPT], 1, GREEDY)[0][0], engine.metadata("general.file_type")
    finally:
        engine.close()


def _within(reference: np.ndarray, measured: np.ndarray, tolerance: float, what: str) -> float:
    difference = float(np.abs(reference - measured).mean())
    if not difference <= tolerance:  # NaN fails too
        raise ProofError(
            f"log-probabilities of {what} differ from torch's by {difference:.4f} nats a token on average; "
            f"at most {tolerance:g} is allowed"
        )
    return round(difference, 5)
