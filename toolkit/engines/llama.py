"""llama.cpp in this process: GGUF files on CPU or GPU, several answers decoded side by side.

Why the low-level API: llama-cpp-python's high-level `Llama` decodes one sequence at a time (102 tokens/s here for
the embedded model, against 237 for sixteen at once). Prompts that begin alike share that beginning: it is decoded
once and copied to the others in the cache.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
from toolkit.engines.drawing import Drawing
from toolkit.engines.placing import experts_to_ram
from toolkit.engines.schema import Mask
from toolkit.engines.sharing import CORES, Cores
from toolkit.errors import Stopped, UserError
from toolkit.hardware import physical_cores

# sequences decoded at once; 24 and 32 are no faster once each has 100 tokens behind it (docs/results.md, Speed)
SIDE_BY_SIDE = 16


class LlamaEngine:
    """A GGUF file behind the engine protocol.

    Args:
        path: the GGUF file.
        n_ctx: cache size in tokens, shared by the sequences decoded side by side.
        lora: a GGUF adapter to put on top, or None.
        gpu_layers: layers on the GPU where llama.cpp was built for one; -1 is all.
        experts_in_ram: a mixture's experts stay in the computer's memory whatever the GPU takes; `in_ram` names the
            tensors that llama.cpp kept there.
        faster: a file of the same weights in a form that computes faster, to be opened instead; `path` and `name` stay,
            `opened` is the one that is read.

    Raises:
        UserError: the file is missing, truncated, not a GGUF, or has no chat template.
    """

    def __init__(
        self,
        path: str | Path,
        n_ctx: int = 4096,
        lora: str | Path | None = None,
        gpu_layers: int = -1,
        experts_in_ram: bool = False,
        faster: str | Path | None = None,
    ):
        import llama_cpp as C

        self.C, self.path, self.name = C, Path(path), f"llama.cpp:{Path(path).name}"
        self.opened = Path(faster or path)
        check_gguf(self.path)
        silence(C)
        C.llama_backend_init()
        params = C.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        overrides = experts_to_ram(C) if experts_in_ram else None  # llama.cpp reads it while loading
        params.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
        _overridden.clear()
        self.model = C.llama_model_load_from_file(str(self.opened).encode(), params)
        self.in_ram = tuple(_overridden)
        self.lora = Path(lora) if lora else None
        if not self.model:
            raise UserError(
                f"llama.cpp cannot load {self.path}: {_last_error()}",
                "the file is damaged or of an architecture this llama.cpp does not know; download or export it again",
            )
        self.vocab = C.llama_model_get_vocab(self.model)
        self.n_vocab = C.llama_vocab_n_tokens(self.vocab)
        self.n_ctx = n_ctx
        params = C.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = n_ctx, 2048, 512, 2 * SIDE_BY_SIDE + 1
        on_card = gpu_layers != 0 and not experts_in_ram and C.llama_supports_gpu_offload()
        self.cores = Cores(physical_cores()) if on_card else CORES  # what a card computes takes no core from others
        params.n_threads = params.n_threads_batch = self._threads = physical_cores()
        params.kv_unified = True  # one cache for all sequences, so that a shared beginning is stored once
        self.ctx = C.llama_init_from_model(self.model, params)
        if not self.ctx:
            raise UserError(f"llama.cpp cannot make a context of {n_ctx} tokens for {self.path}: {_last_error()}")
        self.memory = C.llama_get_memory(self.ctx)
        self.batch = C.llama_batch_init(2048, 0, 1)
        if lora:
            adapter = C.llama_adapter_lora_init(self.model, str(lora).encode())
            if not adapter:
                raise UserError(f"llama.cpp cannot put {lora} on {self.path}: {_last_error()}", "is it this model's?")
            adapters, scales = (C.llama_adapter_lora_p_ctypes * 1)(adapter), (ctypes.c_float * 1)(1.0)
            C.llama_set_adapters_lora(self.ctx, adapters, 1, scales)
        self._formatter = self._schema_tokens = self._control_texts = self._asked_to_stop = None
        self.family = self._family()

    def close(self) -> None:
        """Free the model's memory now instead of at the end of the process."""
        self._schema_tokens = None  # it calls llama.cpp with the model's vocabulary
        if self.ctx:
            self.C.llama_batch_free(self.batch)
            self.C.llama_free(self.ctx)
            self.C.llama_model_free(self.model)
            self.ctx = self.model = None

    def stop_when(self, asked: Callable[[], bool]) -> None:
        """Let the reading of a long text end with `Stopped` as soon as `asked` says so (on the CPU; a GPU reads to the end)."""
        self._asked_to_stop = self.C.ggml_abort_callback(lambda _: asked())  # kept: ctypes must not collect it

    # ---- tokens

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        """Token ids of `text`, no BOS added; `special` reads control tokens such as <|im_start|> as one token."""
        raw = text.encode()
        room = (self.C.llama_token * (len(raw) + 8))()
        n = self.C.llama_tokenize(self.vocab, raw, len(raw), room, len(room), False, special)
        return list(room[:n])

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for: possibly a part of a character; empty for control tokens."""
        room = ctypes.create_string_buffer(128)
        n = self.C.llama_token_to_piece(self.vocab, token, room, len(room), 0, False)
        return room.raw[: max(n, 0)]

    def metadata(self, key: str) -> str | None:
        room = ctypes.create_string_buffer(65536)
        n = self.C.llama_model_meta_val_str(self.model, key.encode(), room, len(room))
        return room.value.decode() if n >= 0 else None

    def _family(self) -> str:
        """From the file's metadata. Many makers use the architecture "llama", and a GGUF made of a folder is named after
        the folder: then the tokenizer's kind ("smollm") and the chat template ("You are a … named SmolLM") tell more."""
        keys = ["general.basename", "general.name", "general.architecture"]
        if self.metadata("general.architecture") == "llama":
            keys[2:2] = ["tokenizer.ggml.pre", "tokenizer.chat_template"]
            # llama.cpp's name for a whole kind of tokenizers, not for whose weights they are
            if (self.metadata("tokenizer.ggml.pre") or "").startswith("llama"):
                keys.remove("tokenizer.ggml.pre")
        return family_of(*(self.metadata(key) or "" for key in keys))

    def chat_text(self, messages: Messages) -> str:
        """The messages in the model's own chat template, with the assistant's turn opened, to be answered at once.

        Hybrid templates (Qwen3's) open a long train of thought unless `enable_thinking` is false; others ignore it.
        """
        if self._formatter is None:
            from llama_cpp.llama_chat_format import Jinja2ChatFormatter

            template = self.metadata("tokenizer.chat_template")
            if not template:
                raise UserError(f"{self.path} has no chat template", "use an instruct model's GGUF")
            text = lambda token: self._special_text(token)  # noqa: E731
            self._formatter = Jinja2ChatFormatter(
                template=template,
                eos_token=text(self.C.llama_vocab_eos(self.vocab)),
                bos_token=text(self.C.llama_vocab_bos(self.vocab)),
            )
        return self._formatter(messages=defused(messages, self._controls()), enable_thinking=False).prompt

    def _controls(self) -> list[str]:
        """Texts of the control tokens, such as <|im_end|>."""
        if self._control_texts is None:
            control = self.C.llama_vocab_is_control
            self._control_texts = [self._special_text(t) for t in range(self.n_vocab) if control(self.vocab, t)]
        return self._control_texts

    def _special_text(self, token: int) -> str:
        return self.C.llama_vocab_get_text(self.vocab, token).decode() if token >= 0 else ""

    def chat_tokens(self, messages: Messages) -> list[int]:
        """Token ids the model sees for `messages`; BOS is added where the model wants one and the template has none."""
        tokens = self.tokenize(self.chat_text(messages))
        bos = self.C.llama_vocab_bos(self.vocab)
        if self.C.llama_vocab_get_add_bos(self.vocab) and tokens[:1] != [bos]:
            tokens = [bos, *tokens]
        return tokens

    # ---- decoding

    def _decode(self, items: list[tuple[int, int, int, bool]]) -> None:
        """Decode (token, position, sequence, wants logits) in one batch of at most 2048."""
        b = self.batch
        b.n_tokens = len(items)
        for i, (token, position, sequence, wants) in enumerate(items):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, position, 1, wants
            b.seq_id[i][0] = sequence
        # llama.cpp asks at every node of its graph: nothing for many tokens, a twentieth of the time for one
        watched = self._asked_to_stop if self._asked_to_stop and len(items) > 64 else self.C.ggml_abort_callback(0)
        self.C.llama_set_abort_callback(self.ctx, watched, None)
        with self.cores.some() as threads:
            if threads != self._threads:
                self.C.llama_set_n_threads(self.ctx, threads, threads)
                self._threads = threads
            code = self.C.llama_decode(self.ctx, b)
        if code:
            if code == 2:
                raise Stopped("the decoding was stopped")
            raise UserError(
                f"llama.cpp could not decode a batch with {self.path.name} (code {code})", "close other programs"
            )

    def _logits(self, index: int) -> np.ndarray:
        """Logits (V) of the item at `index` of the last batch."""
        return np.ctypeslib.as_array(self.C.llama_get_logits_ith(self.ctx, index), shape=(self.n_vocab,))

    def _prefill(
        self, prompts: list[list[int]], room: int, every: bool = False
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """Clear the cache, decode prompts into sequences 0 … P−1, their common beginning once.

        Yields (sequence, batch index, logits (V)) for the last token of each prompt as soon as its batch is decoded,
        or for every token after the common beginning when `every`.
        """
        shared = shared_beginning(prompts)
        self._check_room(shared + sum(len(p) - shared + room for p in prompts), max(map(len, prompts)))
        self.C.llama_memory_clear(self.memory, True)
        self._read(prompts[0][:shared], 0)
        for sequence in range(1, len(prompts)):
            self.C.llama_memory_seq_cp(self.memory, 0, sequence, -1, -1)
        tail = [
            (token, position, sequence, every or position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt[shared:], shared)
        ]
        for start in range(0, len(tail), 2048):
            part = tail[start : start + 2048]
            self._decode(part)
            for i, (_, _, sequence, wants) in enumerate(part):
                if wants:
                    yield sequence, i, self._logits(i)

    def _read(self, tokens: list[int], sequence: int, start: int = 0) -> None:
        """Decode tokens into a sequence from position `start` on; nothing is asked of them."""
        for at in range(0, len(tokens), 2048):
            part = tokens[at : at + 2048]
            self._decode([(token, start + at + i, sequence, False) for i, token in enumerate(part)])

    def _check_room(self, total: int, longest: int) -> None:
        trained = self.C.llama_model_n_ctx_train(self.model)
        if total > self.n_ctx or longest > trained:
            raise UserError(
                f"the text is too long: {longest} tokens with the answer, {total} in all; {self.path.name} "
                f"has room for {min(self.n_ctx, trained)}",
                "shorten the text or the answer (--max-tokens), or ask for fewer at once",
            )

    def _blocks(self, prompts: list[list[int]], room: int) -> Iterator[list[int]]:
        """Indices of prompts that fit side by side with `room` tokens each, in order; what they begin with alike counts once."""
        block, shared, tails = [], 0, 0
        for i, prompt in enumerate(prompts):
            alike = min(shared, common(prompts[block[0]], prompt), len(prompt) - 1) if block else len(prompt) - 1
            grown = tails + len(block) * (shared - alike) + len(prompt) - alike
            if block and (len(block) == SIDE_BY_SIDE or alike + grown + (len(block) + 1) * room > self.n_ctx):
                yield block
                block, alike, grown = [], len(prompt) - 1, 1
            block.append(i)
            shared, tails = alike, grown
        if block:
            yield block

    def _drawing(self, sampling: Sampling, seed: int) -> Drawing:
        """How an answer is drawn; what keeps it to its schema has a state, so each answer has its own."""
        if not sampling.schema:
            return Drawing(sampling, seed)
        if self._schema_tokens is None:
            from llguidance.llamacpp import lltokenizer_from_vocab

            ends = [t for t in range(self.n_vocab) if self.C.llama_vocab_is_eog(self.vocab, t)]
            self._schema_tokens = lltokenizer_from_vocab(self.vocab, eos_token=ends)
        return Drawing(sampling, seed, Mask(self._schema_tokens, sampling.schema))

    # ---- the protocol

    def stream(self, prompts: Sequence[Messages], n: int, sampling: Samplings) -> Iterator[tuple[int, str]]:
        """As the protocol says. An answer that ends makes room for the next; what all prompts begin with is read once, and so
        is each prompt. Closing the iterator stops the work.
        """
        samplings, tokens = spread(sampling, n), [self.chat_tokens(p) for p in prompts]
        if not tokens or not n:
            return
        with self.cores.at_work():
            queue = _Queue(self, tokens, samplings)
            yield from self._go_on([], queue.drawings, queue.answers, queue.admit, queue.ended)

    def _go_on(self, live: "list[_Live]", drawings, answers, admit=list, ended=None) -> Iterator[tuple[int, str]]:
        """Decode answers side by side until each has ended; yields (answer, piece of its text).

        drawings, answers: of each answer; admit: gives answers that begin now; ended: is told of each that is over.
        """
        going: list[_Live] = []
        live = live or admit()
        while live:
            for a in live:
                if self.C.llama_vocab_is_eog(self.vocab, a.token):
                    piece, over = answers[a.i].finish(), True
                else:
                    piece, over = answers[a.i].add(self.piece(a.token))
                    if not over and a.left == 1:
                        piece, over = piece + answers[a.i].finish(), True
                if piece:
                    yield a.i, piece
                if over:
                    self.C.llama_memory_seq_rm(self.memory, a.sequence, -1, -1)
                    if ended:
                        ended(a)
                else:
                    going.append(a)
            if live := admit():
                continue  # their first tokens are drawn already
            if not going:
                return
            self._decode([(a.token, a.position, a.sequence, True) for a in going])
            for at, a in enumerate(going):
                a.token, a.position, a.left = drawings[a.i].next(self._logits(at)), a.position + 1, a.left - 1
            live, going = going, []

    def generate(self, prompts: Sequence[Messages], n: int, sampling: Samplings) -> list[list[str]]:
        texts = [""] * (len(prompts) * n)
        for i, piece in self.stream(prompts, n, sampling):
            texts[i] += piece
        return [texts[p * n : (p + 1) * n] for p in range(len(prompts))]

    def choose(self, prompts: Sequence[Messages], options: Sequence[str], reason: int = 0) -> list[Choice]:
        firsts = [self.tokenize(option, special=False)[0] for option in options]
        if len(set(firsts)) < len(firsts):
            raise UserError(f"two of the options {list(options)} begin with the same token for {self.name}")
        tokens = [self.chat_tokens(p) for p in prompts]
        with self.cores.at_work():
            return self._choose(tokens, firsts, reason)

    def _choose(self, tokens: list[list[int]], firsts: list[int], reason: int) -> list[Choice]:
        choices: list[Choice] = []
        greedy = Drawing(Sampling(temperature=0))
        for block in self._blocks(tokens, reason + 1 if reason else 0):
            logps = {}
            for sequence, _, logits in self._prefill([tokens[i] for i in block], reason + 1 if reason else 0):
                picked = logits[firsts].astype(np.float64)
                logps[block[sequence]] = picked - np.logaddexp.reduce(picked)
            reasons = {i: "" for i in block}
            if reason:
                answers = {i: _Answer(("\n",)) for i in block}
                self._decode([(firsts[int(logps[i].argmax())], len(tokens[i]), s, True) for s, i in enumerate(block)])
                live = [
                    _Live(i, s, greedy.next(self._logits(s)), len(tokens[i]) + 1, reason) for s, i in enumerate(block)
                ]
                for i, piece in self._go_on(live, dict.fromkeys(block, greedy), answers):
                    reasons[i] += piece
            choices += [Choice(tuple(logps[i].tolist()), tidy_reason(reasons[i])) for i in block]
        return choices

    def logps(self, tokens: list[int]) -> np.ndarray:
        """Log-probability (nats) of each token after the first, given those before it: shape (T − 1)."""
        with self.cores.at_work():
            rows = [logits.astype(np.float64) for _, _, logits in self._prefill([tokens], 0, every=True)]
        return np.array([row[nxt] - np.logaddexp.reduce(row) for row, nxt in zip(rows, tokens[1:], strict=False)])

    def answer_logps(self, prompt: Messages, answer: str) -> tuple[np.ndarray, np.ndarray]:
        """What this model would have said at each token of `answer`: (token ids (T), log-probabilities (T, V), nats)."""
        before, ids = self.chat_tokens(prompt), self.tokenize(answer, special=False)
        seen = enumerate(self._prefill([before + ids], 0, every=True))
        with self.cores.at_work():
            rows = [row.copy() for at, (_, _, row) in seen if len(before) - 1 <= at < len(before) + len(ids) - 1]
        logps = np.array(rows, dtype=np.float32).reshape(len(ids), self.n_vocab)
        del rows
        logps -= np.logaddexp.reduce(logps, axis=1, keepdims=True)
        return np.array(ids), logps


@dataclass
class _Live:
    """Answer `i` in its sequence: the token just drawn, where it goes, and how many may still be drawn with it."""

    i: int
    sequence: int
    token: int
    position: int
    left: int


class _Queue:
    """Answers of one call that wait, and the cache's room: at most SIDE_BY_SIDE are written at once, in order.

    Sequences: 0 … SIDE_BY_SIDE − 1 for answers, as many again for prompts, one for what all prompts begin with.

    Raises UserError where a prompt with its longest answer has no room.
    """

    def __init__(self, engine: LlamaEngine, tokens: list[list[int]], samplings: list[Sampling]):
        self.engine, self.tokens, self.samplings, self.n = engine, tokens, samplings, len(samplings)
        self.shared = shared_beginning(tokens)
        longest = max(map(len, tokens)) + max(s.max_tokens for s in samplings)
        engine._check_room(longest, longest)
        C, memory = engine.C, engine.memory
        C.llama_memory_clear(memory, True)
        self.root = 2 * SIDE_BY_SIDE
        engine._read(tokens[0][: self.shared], self.root)
        self.room = engine.n_ctx - self.shared
        self.free, self.holders = list(range(SIDE_BY_SIDE))[::-1], list(range(SIDE_BY_SIDE, self.root))[::-1]
        self.next = 0  # answers are numbered prompt by prompt
        self.open: dict[int, int] = {}  # prompt that is read → answers to it that are not over
        self.held: dict[int, int] = {}  # prompt → its sequence, while answers to it wait
        self.firsts: dict[int, int] = {}  # answer → its first token
        self.drawings, self.answers = {}, {}

    def admit(self) -> list[_Live]:
        """The answers that begin now."""
        begun, fresh = [], []
        while self.next < len(self.tokens) * self.n and self.free:
            p, k = divmod(self.next, self.n)
            tail = 0 if p in self.open else len(self.tokens[p]) - self.shared
            need = tail + self.samplings[k].max_tokens
            if need > self.room:
                break
            if tail:
                self.open[p], self.held[p] = self.n, self.holders.pop()
                fresh.append(p)
            self.room -= need
            begun.append((self.next, self.free.pop()))
            self.next += 1
        self._read(fresh)
        return [self._begin(i, sequence) for i, sequence in begun]

    def _read(self, fresh: list[int]) -> None:
        """Read prompts side by side and draw the first token of every answer to them."""
        engine, items = self.engine, []
        for p in fresh:
            engine.C.llama_memory_seq_cp(engine.memory, self.root, self.held[p], -1, -1)
            last = len(self.tokens[p]) - 1
            items += [
                (p, (token, at, self.held[p], at == last))
                for at, token in enumerate(self.tokens[p])
                if at >= self.shared
            ]
        for start in range(0, len(items), 2048):
            part = items[start : start + 2048]
            engine._decode([item for _, item in part])
            for index, (p, item) in enumerate(part):
                for k, sampling in enumerate(self.samplings if item[3] else ()):
                    i = p * self.n + k
                    self.drawings[i] = engine._drawing(sampling, sampling.seed + i)
                    self.answers[i] = _Answer(sampling.stop)
                    self.firsts[i] = self.drawings[i].next(engine._logits(index))

    def _begin(self, i: int, sequence: int) -> _Live:
        engine, (p, k) = self.engine, divmod(i, self.n)
        engine.C.llama_memory_seq_cp(engine.memory, self.held[p], sequence, -1, -1)
        if k == self.n - 1:  # the last answer to it: what they share stays with them
            held = self.held.pop(p)
            engine.C.llama_memory_seq_rm(engine.memory, held, -1, -1)
            self.holders.append(held)
        return _Live(i, sequence, self.firsts.pop(i), len(self.tokens[p]), self.samplings[k].max_tokens)

    def ended(self, answer: _Live) -> None:
        """Its place and its room are free."""
        p, k = divmod(answer.i, self.n)
        self.free.append(answer.sequence)
        self.drawings.pop(answer.i), self.answers.pop(answer.i)
        self.room += self.samplings[k].max_tokens
        self.open[p] -= 1
        if not self.open[p]:
            self.room += len(self.tokens[p]) - self.shared
            del self.open[p]


def shared_beginning(prompts: list[list[int]]) -> int:
    """How many tokens all prompts begin with alike, short of the last one of any; 0 for a single prompt."""
    if len(prompts) < 2:
        return 0
    low, high = min(prompts), max(prompts)  # what the first and the last in order share, all share
    return min(common(low, high), min(map(len, prompts)) - 1)


def common(a: list[int], b: list[int]) -> int:
    """Length of the beginning that two lists share."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class _Answer:
    """Bytes of one answer: holds back unfinished characters and anything that may become a stop text."""

    def __init__(self, stop: tuple[str, ...]):
        self.stop, self.raw, self.sent = stop, b"", 0
        self.hold = max((len(s) for s in stop), default=1) - 1

    def _text(self) -> str:
        return self.raw.decode(errors="ignore" if _incomplete(self.raw) else "replace")

    def add(self, piece: bytes) -> tuple[str, bool]:
        self.raw += piece
        text, ended = trim_at_stop(self._text(), self.stop)
        upto = len(text) if ended else max(self.sent, len(text) - self.hold)
        out, self.sent = text[self.sent : upto], upto
        return out, ended

    def finish(self) -> str:
        text = trim_at_stop(self._text(), self.stop)[0]
        out, self.sent = text[self.sent :], len(text)
        return out


def _incomplete(raw: bytes) -> bool:
    """Whether `raw` ends within a UTF-8 character."""
    for back in range(1, min(4, len(raw) + 1)):
        byte = raw[-back]
        if byte >= 0xC0:
            return back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
        if byte < 0x80:
            return False
    return False


def check_gguf(path: Path) -> None:
    """Raise UserError unless `path` is a whole GGUF file (magic, and every tensor's bytes inside the file)."""
    if not path.is_file():
        raise UserError(f"no GGUF file at {path}", "check the path")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(
                f"{path} is not a GGUF file", "give a .gguf file; a folder of safetensors must be exported first"
            )


_log_lines: list[str] = []
_overridden: list[str] = []


def silence(C) -> None:
    """llama.cpp writes hundreds of lines to stderr while loading: keep the last errors for our own message, and the
    names of the tensors that it put elsewhere than usual."""
    global _log_callback

    @C.llama_log_callback
    def keep(level, text, _):
        if level == 4 and text:  # GGML_LOG_LEVEL_ERROR
            _log_lines.append(text.decode(errors="replace").strip())
            del _log_lines[:-4]
        elif level == 1 and text and b"buffer type overridden" in text:  # GGML_LOG_LEVEL_DEBUG: "tensor NAME (…"
            _overridden.append(text.decode(errors="replace").split()[1])

    _log_callback = keep  # ctypes must not collect it
    C.llama_log_set(keep, ctypes.c_void_p(0))


def _last_error() -> str:
    return _log_lines[0] if _log_lines else "no reason given"
