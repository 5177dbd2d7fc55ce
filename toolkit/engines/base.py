"""What an engine is: text out of a model, or the log-probabilities of given options. Nothing else knows which model."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

Messages = list[dict[str, str]]  # [{"role": "system" | "user" | "assistant", "content": str}, ...]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Args:
        temperature: 0 takes the likeliest token.
        min_p: drop tokens less likely than this share of the likeliest.
        top_p: keep the smallest set of tokens with this total probability.
        repeat_penalty: divide the logits of the last 64 tokens seen by this; 1 is off.
        max_tokens: longest answer.
        stop: texts that end the answer (not part of it).
        seed: the i-th answer of a call is drawn with seed + i.
        schema: JSON schema, as text, that the answer conforms to; compact JSON on the local engines. An answer that
            max_tokens cuts short is no JSON: json.loads tells.
    """

    temperature: float = 0.8
    min_p: float = 0.05
    top_p: float = 1.0
    repeat_penalty: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int = 0
    schema: str = ""


Samplings = Sampling | Sequence[Sampling]  # one for all, or one for each of the n answers to a prompt


def spread(sampling: Samplings, n: int) -> list[Sampling]:
    """One Sampling per answer: the one given n times, or the n given."""
    if isinstance(sampling, Sampling):
        return [sampling] * n
    if len(sampling) != n:
        raise ValueError(f"{len(sampling)} samplings for {n} answers")
    return list(sampling)


@dataclass(frozen=True)
class Choice:
    """A verdict. `logps` (O): log-probability (nats) of each option, renormalised over the options."""

    logps: tuple[float, ...]
    reason: str = ""

    @property
    def best(self) -> int:
        return max(range(len(self.logps)), key=self.logps.__getitem__)

    def expect(self, values: Sequence[float]) -> float:
        """Mean of `values` (O) under the verdict's probabilities: a rating finer than the likeliest digit."""
        return sum(v * math.exp(p) for v, p in zip(values, self.logps, strict=True))


class Engine(Protocol):
    """Anything that writes and chooses: llama.cpp, transformers, or a server.

    Work given in one call is one unit: on the local engines the same call on the same machine gives the same
    answer whatever was asked before it. Callers that want to resume bit for bit make the same calls again.
    """

    name: str
    family: str  # whose weights: "qwen", "llama" …; "" when nobody tells

    def generate(self, prompts: Sequence[Messages], n: int, sampling: Samplings) -> list[list[str]]:
        """`n` answers to each prompt: a list (P) of lists (n) of texts."""
        ...

    def stream(self, prompts: Sequence[Messages], n: int, sampling: Samplings) -> Iterator[tuple[int, str]]:
        """The same answers piece by piece: (index of the answer in 0 … P·n − 1, next piece of its text)."""
        ...

    def choose(self, prompts: Sequence[Messages], options: Sequence[str], reason: int = 0) -> list[Choice]:
        """How likely each prompt's answer is to start with each option, and, if asked, the reason that follows.

        Args:
            options: answers that differ in their first token; only that token is looked at.
            reason: after the likeliest option, let the model go on for at most so many tokens, one line, greedily.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds; it is not used again."""
        ...


def tidy_reason(text: str) -> str:
    """What follows a verdict, without the punctuation between the two."""
    return text.strip().lstrip(".:;,-–—)* ").strip()


def trim_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Cut `text` at the first stop text in it. Returns (text, whether one was found)."""
    found = [at for at in (text.find(s) for s in stop if s) if at >= 0]
    return (text[: min(found)], True) if found else (text, False)


FAMILIES = {  # word in a model's name → family
    **{w: w for w in ("smollm", "qwen", "llama", "mistral", "gemma", "phi", "granite", "deepseek", "olmo", "falcon")},
    **{w: w for w in ("glm", "yi", "internlm", "exaone", "minicpm", "stablelm", "tinyllama", "gptoss", "lfm", "ernie")},
    **{"qwq": "qwen", "qvq": "qwen", "codellama": "llama", "codegemma": "gemma", "chatglm": "glm", "smolvlm": "smollm"},
    **{w: "mistral" for w in ("mixtral", "ministral", "magistral", "codestral", "devstral", "mathstral")},
    **{w: "cohere" for w in ("cohere", "commandr", "aya")},
}


def family_of(*names: str) -> str:
    """Whose weights a model's names speak of: "Meta-Llama-3.1-8B-Instruct" → "llama".

    Args:
        names: from the most to the least telling. The first with a known family in it decides; when it holds several,
            the last one, which names the weights a tune started from ("DeepSeek-R1-Distill-Qwen-7B" is Qwen's).

    Returns:
        A lower-case word. Without a known family: the first word of the last name, digits dropped; "" for no name.
    """
    words: list[str] = []
    for name in names:
        words = re.findall(
            r"[a-z]+", re.sub(r"gpt-?_?oss", "gptoss", re.sub(r"command-?r\b", "commandr", name.lower()))
        )
        if known := [FAMILIES[w] for w in words if w in FAMILIES]:
            return "gpt-oss" if known[-1] == "gptoss" else known[-1]
        words = re.findall(r"[a-z]{3,}", name.lower().rstrip("/").rsplit("/", 1)[-1])
    return words[0] if words and words[0] not in ("default", "model") else ""


def defused(messages: Messages, controls: Iterable[str]) -> Messages:
    """The messages with a space inside every control token their content spells out ("<|im_end|>" → "< |im_end|>").

    Templates put content between control tokens and the tokenizer cannot tell whose they are: a text could close its
    own turn and speak as the system.
    """
    found = [c for c in controls if len(c) > 2 and any(c in m["content"] for m in messages)]
    for control in sorted(found, key=len, reverse=True):
        messages = [{**m, "content": m["content"].replace(control, f"{control[0]} {control[1:]}")} for m in messages]
    return messages
