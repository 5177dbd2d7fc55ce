"""Export proof: the GGUF is the model that was trained, and differs from the base."""

from pathlib import Path

import numpy as np

from toolkit.engines.base import Messages, Sampling
from toolkit.engines.llama import LlamaEngine
from toolkit.errors import ProofError
from toolkit.hardware import release_memory
from toolkit.narrative.writing import write_prompt

# Largest mean |difference| of log-probabilities, nats a token. The f16 file must be the trained model to rounding: a wrong
# tensor, rope or tokenizer shows there. A quantised file is then allowed what quantising costs a model as small as the
# embedded one, which is the most sensitive we ship (measured, docs/results.md), with half as much again.
F16_TOLERANCE = 0.02
TOLERANCE = {"F16": 0.02, "Q8_0": 0.2, "Q6_K": 0.3, "Q5_K_M": 0.6, "Q4_K_M": 0.9}

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


def prove_export(
    merged: Path, f16: Path, gguf: Path, kind: str, base_gguf: Path, adapter_gguf: Path | None = None
) -> dict:
    """Check the exported files against the merged transformers model and the base.

    Args:
        merged: folder of the merged model; f16, gguf: its GGUF before and after quantising to `kind`.
        base_gguf: the base model's; adapter_gguf: put on it, it must move the base as training did.

    Returns:
        What was compared and measured.

    Raises:
        ProofError: token ids, EOS or BOS differ, log-probabilities differ by more than the tolerance, or the
            exported model is indistinguishable from the base.
    """
    import torch

    from toolkit.models.load import load_model, load_tokenizer
    from toolkit.models.resolve import resolve

    model = resolve(str(merged))
    tokenizer, network = load_tokenizer(model), load_model(model, dtype="float32")
    engine = LlamaEngine(gguf, n_ctx=2048)
    facts: dict = {"tolerance": TOLERANCE[kind]}
    for chat in CHATS:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        here, there = tokenizer(text, add_special_tokens=False)["input_ids"], engine.chat_tokens(chat)
        if here != there:
            raise ProofError(f"chat template tokens differ: transformers {here} · GGUF {there}")
    facts["chats_with_equal_tokens"] = len(CHATS)
    for name, here, there in (
        ("EOS", tokenizer.eos_token_id, engine.C.llama_vocab_eos(engine.vocab)),
        ("BOS", tokenizer.bos_token_id, engine.C.llama_vocab_bos(engine.vocab)),
    ):
        if here is not None and here != there:
            raise ProofError(f"{name} differs: transformers {here} · GGUF {there}")
        facts[name.lower()] = here
    prompt = write_prompt("A net mender hears knocking under a capsized boat.")
    tokens = engine.chat_tokens(prompt) + engine.tokenize(TEXT)
    with torch.inference_mode():
        logits = network(torch.tensor([tokens], device=network.device)).logits[0].double().cpu()
    reference = logits[:-1].log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].numpy()
    del network, logits
    release_memory()
    exported = engine.logps(tokens)
    whole = LlamaEngine(f16, n_ctx=2048)
    f16_logps = whole.logps(tokens)
    facts["f16_mean_difference"] = _within(reference, f16_logps, F16_TOLERANCE, "the f16 GGUF")
    whole.close()
    facts["tokens"] = len(tokens)
    facts["mean_difference"] = _within(reference, exported, TOLERANCE[kind], f"the {kind} GGUF")
    drawn = engine.generate([prompt], 1, GREEDY)[0][0]
    engine.close()
    base = LlamaEngine(base_gguf, n_ctx=2048)
    base_is_f16 = base.metadata("general.file_type") == "1"
    base_logps, base_drawn = base.logps(tokens), base.generate([prompt], 1, GREEDY)[0][0]
    base.close()
    facts["mean_change_from_base"] = round(float(np.abs(exported - base_logps).mean()), 5)
    facts["greedy_text_differs_from_base"] = drawn != base_drawn
    facts["greedy_text"], facts["greedy_text_of_base"] = drawn, base_drawn
    if not facts["greedy_text_differs_from_base"] and facts["mean_change_from_base"] < 1e-4:
        raise ProofError("the exported model writes exactly what the base writes: the adapter did not reach the file")
    if adapter_gguf is not None:
        on_base = LlamaEngine(base_gguf, n_ctx=2048, lora=adapter_gguf)
        moved, wanted = on_base.logps(tokens) - base_logps, f16_logps - base_logps
        on_base.close()
        facts["adapter_change_correlation"] = correlation = round(float(np.corrcoef(moved, wanted)[0, 1]), 4)
        facts["adapter_mean_difference"] = round(float(np.abs(moved - wanted).mean()), 5)
        # a quantised base has its own rounding in `wanted`, so that less can be asked there
        needed = 0.95 if base_is_f16 else 0.5
        if not correlation >= needed:
            raise ProofError(
                f"the adapter GGUF does not move the base as training did: correlation {correlation}, at least {needed} is asked"
            )
    return facts


GREEDY = Sampling(temperature=0, max_tokens=48)


def _within(reference: np.ndarray, measured: np.ndarray, tolerance: float, what: str) -> float:
    difference = float(np.abs(reference - measured).mean())
    if not difference <= tolerance:  # NaN fails too
        raise ProofError(
            f"log-probabilities of {what} differ from the trained model's by {difference:.4f} nats a token on average; "
            f"at most {tolerance} is allowed"
        )
    return round(difference, 5)
