"""A transformers model behind the engine protocol: slower than llama.cpp, but needs no GGUF."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from toolkit.engines.base import (
    Choice,
    Messages,
    Sampling,
    Samplings,
    defused,
    family_of,
    spread,
    tidy_reason,
    trim_at_stop,
)
from toolkit.engines.schema import Mask
from toolkit.errors import UserError


class TransformersEngine:
    """Args: model, tokenizer: a causal language model and its tokenizer, as `models.load` returns them."""

    def __init__(self, model, tokenizer, name: str = "transformers"):
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        if not tokenizer.chat_template:
            raise UserError(f"{name} has no chat template", "use an instruct model")
        kind = getattr(model.config, "model_type", "")
        # many makers use Llama's architecture: their chat templates tell more
        template = tokenizer.chat_template if kind == "llama" else ""
        self.family = family_of(Path(getattr(model.config, "name_or_path", "") or "").name, str(template), kind)
        self._schema_tokens = None

    def close(self) -> None:
        self.model = None

    def _tokens(self, messages: Messages) -> list[int]:
        # hybrid templates (Qwen3's) open a long train of thought unless told not to; others ignore the argument
        text = self.tokenizer.apply_chat_template(
            defused(messages, self.tokenizer.all_special_tokens),
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def generate(self, prompts: Sequence[Messages], n: int, sampling: Samplings) -> list[list[str]]:
        import torch

        draws = spread(sampling, n)
        answers = []
        for number, prompt in enumerate(prompts):
            ids = torch.tensor([self._tokens(prompt)], device=self.model.device)
            self._check_room(ids.shape[1] + max(d.max_tokens for d in draws))
            answers.append([self._one(ids, draw, draw.seed + number * n + k) for k, draw in enumerate(draws)])
        return answers

    def _check_room(self, need: int) -> None:
        room = getattr(self.model.config, "max_position_embeddings", None) or 1 << 30
        if need > room:
            raise UserError(
                f"the text is too long: {need} tokens with the answer; {self.name} has room for {room}",
                "shorten the text or the answer",
            )

    def _one(self, ids, draw: Sampling, seed: int) -> str:
        import torch
        from transformers import GenerationConfig

        drawn = {"temperature": float(draw.temperature), "min_p": draw.min_p, "top_p": draw.top_p, "top_k": 0}
        config = GenerationConfig(
            do_sample=draw.temperature > 0,
            max_new_tokens=draw.max_tokens,
            repetition_penalty=draw.repeat_penalty,
            eos_token_id=self._ends(),
            pad_token_id=self.tokenizer.pad_token_id,
            **(drawn if draw.temperature > 0 else {}),
        )
        masks = [self._keep_to(draw.schema)] if draw.schema else None
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed)
            out = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=config, logits_processor=masks
            )
        return trim_at_stop(self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True), draw.stop)[0]

    def _ends(self):
        return self.model.generation_config.eos_token_id or self.tokenizer.eos_token_id

    def _keep_to(self, schema: str):
        """A logits processor for one answer: hides what would break the schema."""
        import torch

        if self._schema_tokens is None:
            from llguidance.hf import from_tokenizer

            ends = self._ends()
            self._schema_tokens = from_tokenizer(self.tokenizer, eos_token=ends if isinstance(ends, list) else [ends])
        mask, seen = Mask(self._schema_tokens, schema), None

        def process(ids, scores):  # (1, T) tokens so far, (1, V) scores of the next
            nonlocal seen
            if seen is not None:
                mask.took(int(ids[0, -1]))
            seen = ids.shape[1]
            return scores.masked_fill(torch.from_numpy(mask.hidden(scores.shape[1])).to(scores.device), -torch.inf)

        return process

    def stream(self, prompts: Sequence[Messages], n: int, sampling: Samplings) -> Iterator[tuple[int, str]]:
        for i, texts in enumerate(self.generate(prompts, n, sampling)):
            yield from ((i * n + j, text) for j, text in enumerate(texts))

    def choose(self, prompts: Sequence[Messages], options: Sequence[str], reason: int = 0) -> list[Choice]:
        import torch

        firsts = [self.tokenizer(o, add_special_tokens=False)["input_ids"][0] for o in options]
        if len(set(firsts)) < len(firsts):
            raise UserError(f"two of the options {list(options)} begin with the same token for {self.name}")
        choices = []
        for prompt in prompts:
            ids = torch.tensor([self._tokens(prompt)], device=self.model.device)
            self._check_room(ids.shape[1] + reason + 1)
            with torch.inference_mode():
                logps = self.model(ids, logits_to_keep=1).logits[0, -1, firsts].double().log_softmax(0)
            text = ""
            if reason:
                ids = torch.cat([ids, torch.tensor([[firsts[int(logps.argmax())]]], device=ids.device)], 1)
                text = self._one(ids, Sampling(temperature=0, max_tokens=reason, stop=("\n",)), 0)
            choices.append(Choice(tuple(logps.tolist()), tidy_reason(text)))
        return choices

    def answer_logps(self, prompt: Messages, answer: str):
        """As LlamaEngine's: (token ids (T), log-probabilities (T, V), nats) of each token of `answer`."""
        import torch

        before, ids = self._tokens(prompt), self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        self._check_room(len(before) + len(ids))
        with torch.inference_mode():
            whole = torch.tensor([before + ids], device=self.model.device)
            logits = self.model(whole, logits_to_keep=len(ids) + 1).logits[0, :-1].float()
        return torch.tensor(ids).numpy(), logits.log_softmax(-1).cpu().numpy()
