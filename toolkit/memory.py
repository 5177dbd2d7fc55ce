"""What each stage of a run holds: graphics memory, RAM and disk, part by part, before anything is loaded.

Weights are counted (models.sizes), training steps are run on the meta device (models.dry); what is left are a few constants, measured
where that was possible: RAM on two CPU cores (benchmarks/fit_against_measured.py, docs/results.md). No graphics card was at
hand: CUDA_CONTEXT and HOST are not measured.
"""

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import torch

from toolkit.engines.placing import BUFFERS, placement
from toolkit.export.export import proved_in
from toolkit.models.anchor import BLOCK
from toolkit.models.catalogue import catalogue, entry
from toolkit.models.dry import Job, dry_step
from toolkit.models.gguf_file import BITS
from toolkit.models.load import pick_dtype
from toolkit.models.lower import KEPT, plain_kind
from toolkit.models.resolve import EMBEDDED, MADE, exported_gguf, resolve, unmade
from toolkit.models.sizes import config_of, count
from toolkit.pace import KINDS, MADE_PLOT, MADE_PLOTS
from toolkit.recipe import MERGED_BELOW, LoraSettings, Recipe
from toolkit.runner import plan

GIB = 2**30
CUDA_CONTEXT = 0.7  # GiB on the card before any tensor: the driver's context and cuBLAS' workspace (not measured)
HOST = 2.0  # GiB of RAM for CUDA's libraries beside torch (not measured)
SHARD = 4.6  # GiB: the hub's usual largest file of safetensors
# GiB of RAM of a process that only runs our code, runs llama.cpp, reads with torch, trains, has trained, and of the GGUF converter beside ours
PLAIN, READS, LOADS, TRAINS, AFTER, CONVERTS = 0.1, 0.25, 0.5, 0.85, 0.75, 0.7
# GiB of RAM more where a CPU trains in 16 bits (oneDNN's kernels for the shapes it meets) and a mixture (each expert reads another number of
# tokens in each pass: what is freed fits worse), and less before the first step: what freed tensors leave in pieces is in TRAINS
KERNELS, UNEVEN, IN_PIECES = 0.1, 0.1, 0.35
TORCH = ("sft", "reward", "pairwise", "dpo", "grpo", "export")  # stages that load it, whatever the recipe
LIBRARIES = ("python", "llama.cpp", "python and torch", "CUDA's libraries")
# GiB of RAM of sentence-transformers and its small model: with what it leaves in pieces (distances), and beside an engine (retrieval, unseen judge)
EMBEDS, SEARCHES = 0.6, 0.25
GREETING = 200  # tokens of a good greeting, at the longest
PROMPT = 120  # tokens of a question and the chat template around it, ours at their longest
TEMPLATE = 20  # tokens of a chat template around a prompt and its answer
REQUESTS, CURATED = 440, 135  # requests that ship, and pairs of a good and a flawed greeting
PROVED = 150  # tokens of the text that an export is proved on
CONTEXT = {"writer": 4096, "agent": 8192, "judge": 8192}  # tokens of llama.cpp's cache
LOOK_ROWS, READ_ROWS = 16, 4  # answers that a tripwire writes and reads at once


@dataclass(frozen=True)
class Use:
    """What a stage holds at its peak: part → GiB. `kept` stays on disk, `scratch` goes when the stage is done."""

    vram: dict[str, float] = field(default_factory=dict)
    ram: dict[str, float] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)
    scratch: dict[str, float] = field(default_factory=dict)

    def beside(self, part: str, gib: float) -> "Use":
        """The same with a part more in RAM."""
        return dataclasses.replace(self, ram={**self.ram, part: gib})


@dataclass(frozen=True)
class Engine:
    """A GGUF in llama.cpp: bytes of the file, and of the cache of one token; `experts` is the share of the file that they are."""

    name: str
    file: float
    token: float
    experts: float = 0.0

    def bytes(self, context: int) -> float:
        return self.file + self.work(context)

    def work(self, context: int) -> float:
        """Bytes of cache and buffers: all but the file."""
        return self.token * context + min(0.3 * GIB, self.file)  # buffers: 512 tokens' logits, mostly


class Run:
    """A recipe on a machine: `use(stage)` says what it holds there.

    Args:
        vram: GiB of the graphics card, 0 where there is none.
        like: another run of the same model: what is known of it need not be found again.
    """

    def __init__(self, recipe: Recipe, vram: float, like: "Run | None" = None):
        self.recipe, self.vram = recipe, vram
        self.model = resolve(recipe.model.id)
        self.config = like.config if like else config_of(self.model)
        self.sizes = like.sizes if like else count(self.config)
        self.steps = like.steps if like else {}
        self.gpu = vram > 0
        here = str(pick_dtype(recipe.model.dtype)).removeprefix("torch.")
        told = recipe.model.dtype != "auto" or not self.gpu or torch.cuda.is_available()
        self.dtype = here if told else "bfloat16"  # a card that is not here is taken for one of today's
        self.each = 4.0 if self.dtype == "float32" else 2.0

    def use(self, stage: str, before: Collection[str] = ()) -> Use:
        """What `stage` holds in a process that has done the stages `before`: libraries stay once they are loaded.

        Stages that only move texts hold next to nothing.
        """
        use = getattr(self, f"_{stage}", lambda: Use(ram={"python": PLAIN}))()
        if stage in ("sft", "dpo", "grpo") and self.recipe.task != "instruct" and self.recipe.safety.asks:
            use = dataclasses.replace(
                _most([use, self._risk()]), kept=use.kept, scratch=use.scratch
            )  # asked before it trains
        left = (AFTER + HOST * self.gpu) * any(name in TORCH for name in before)
        if sum(use.ram.get(part, 0.0) for part in LIBRARIES) >= left:
            return use
        own = {part: size for part, size in use.ram.items() if part not in LIBRARIES}
        return dataclasses.replace(use, ram={"left by earlier stages": left, **own})

    # ---- training

    def step(self, rows: int, tokens: int, lora: LoraSettings | None, **more) -> "Trained":
        """What training (lora None: reading) takes with that many sequences of that many tokens at once."""
        model = self.recipe.model
        job = Job(rows, tokens, lora=lora, four_bit=model.four_bit, dtype=self.dtype, gpu=self.gpu, **more)
        if job not in self.steps:
            self.steps[job] = dry_step(self.config, job)
        step = self.steps[job]
        share = self.sizes.linear + self.sizes.experts
        size, head = self.sizes, job.head
        beside = size.table + size.rest
        if head in ("mean", "score"):  # no output matrix is loaded, where it is one of its own
            beside -= 0 if self.tied else size.table // 2
            if self.mapped:  # only those rows of the embeddings are in memory that are read
                beside -= size.table if self.tied else size.table // 2
        shrunk = dataclasses.replace(
            size,
            total=round(share * job.depth) + beside,
            linear=round(size.linear * job.depth),
            experts=round(size.experts * job.depth),
            table=beside,
            rest=0,
        )
        raised = (
            (lora or head in ("mean", "score")) and not size.moe and self.dtype == "float16"
        )  # models.load.prepare_four_bit
        weights = shrunk.weights(model.four_bit, self.each, 4.0 if raised else None)
        return Trained(
            weights, step.trainable * 4.0, step.trainable * 8.0, step.activations, step.logits, step.unpacked
        )

    @property
    def tied(self) -> bool:
        return bool(self.config.get_text_config().tie_word_embeddings)

    def train(
        self, found: "Trained", beside: dict[str, float] | None = None, turns: dict[str, float] | None = None
    ) -> Use:
        """Use of a training stage.

        Args:
            beside: part → bytes that stay in memory all along.
            turns: part → bytes that a moment of its own takes (writing, a look of the tripwire): the largest of them and of the step
                counts. On a CPU a file of weights that is read while they become another type is one, and a look's distances.
        """
        step = {"activations": found.activations, "logits": found.logits, "unpacked experts": found.unpacked}
        turns = {k: v for k, v in (turns or {}).items() if v}
        four_bit = self.recipe.model.four_bit
        if not (self.gpu or self.mapped or (four_bit and self.sizes.moe)):
            not_yet = IN_PIECES * GIB if found.adapter and not four_bit else 0.0
            turns["a file of weights"] = max(self.files()) - not_yet
        if "tripwire's look" in turns:
            turns["distances"] = EMBEDS * GIB
        distances = {"distances": turns.pop("distances") / GIB} if self.gpu and "distances" in turns else {}
        longest = max(turns, key=turns.get, default="")
        if longest and turns[longest] > sum(step.values()):
            step = {longest: turns[longest]}
        parts = {
            "weights": found.weights,
            "adapter": found.adapter,
            "optimiser": found.optimiser,
            **(beside or {}),
            **step,
        }
        parts = {name: size / GIB for name, size in parts.items() if size > 1e5}
        adapter = {"adapter": found.adapter / GIB}
        scratch = {"checkpoints": 3 * (found.adapter + found.optimiser) / GIB}
        if not self.gpu:
            return Use(ram={**self.libraries(bool(found.adapter)), **parts}, kept=adapter, scratch=scratch)
        ram = {
            "python and torch": TRAINS,
            **distances,
            "CUDA's libraries": HOST,
            "a file of weights": min(SHARD, self.sizes.total * 2 / GIB),
        }
        return Use({"CUDA": CUDA_CONTEXT, **parts}, ram, adapter, scratch)

    def libraries(self, trains: bool) -> dict[str, float]:
        """GiB of RAM of Python and what it loads, where no card does the work."""
        if not trains:
            return {"python and torch": LOADS}
        return {"python and torch": TRAINS + KERNELS * (self.each == 2.0) + UNEVEN * self.sizes.moe}

    @property
    def mapped(self) -> bool:
        """Whether the weights are the file itself: of its type, on the CPU. Only what was read of them is then in memory."""
        return not (self.gpu or self.recipe.model.four_bit) and self.of_type(self.each)

    def files(self) -> list[float]:
        """Bytes of the files of weights; where they are not here as they will be made, or as the hub has them."""
        folder = self.model.weights
        here = [float(p.stat().st_size) for p in folder.glob("*.safetensors")] if isinstance(folder, Path) else []
        if here:
            return here
        whole = self.sizes.total * (4.0 if self.recipe.model.id == EMBEDDED else 2.0)
        shards = math.ceil(whole / GIB / SHARD)
        return [whole / shards] * shards

    def of_type(self, each: float) -> bool:
        """Whether the files of weights have that many bytes a parameter."""
        return abs(sum(self.files()) / self.sizes.total - each) < 0.5

    def cache(self, rows: int, tokens: int) -> float:
        """Bytes of keys and values of answers that transformers writes side by side."""
        return rows * tokens * self.sizes.cache * self.each

    def look(self, most: int) -> float:
        """Bytes of a tripwire's look: answers written, then read with all their logits. On a CPU llama.cpp writes them, whose memory goes
        again, and they are read one by one with a block of logits (preference.shared), where the model can be."""
        t = self.recipe.tripwire
        if not t.every:
            return 0.0
        rows = min(LOOK_ROWS, t.prompts * t.samples)
        if self.gpu:
            written = self.cache(rows, PROMPT + most) + 4 * rows * self.sizes.vocabulary * 4.0
        else:
            written = self.engine("base").work(CONTEXT["writer"])
        if self.gpu or plain_kind(self.config):
            read = min(READ_ROWS, rows) * most * self.sizes.vocabulary * (self.each + 4.0 + 4.0)
        else:
            read = 1.5 * BLOCK
        return max(written, read)

    def writer(self) -> dict[str, float]:
        """Bytes of the GGUF that a tripwire's look maps on a CPU: nothing that was freed makes room for it."""
        return {"GGUF, to look": self.engine("base").file} if self.recipe.tripwire.every and not self.gpu else {}

    def tokens(self, stage: str) -> int:
        """The longest text that a training stage sees, with its question and the chat template; longer ones are left out."""
        r = self.recipe
        if stage == "reward":
            return min(r.reward.max_tokens, max(256, r.candidates.max_tokens))
        if stage == "grpo":
            return min(r.grpo.prompt_tokens, PROMPT) + r.grpo.max_tokens
        limit = getattr(r, stage).max_tokens
        if r.task == "instruct":  # your own rows are as long as they may
            return limit
        if r.task == "greeting":
            return min(limit, PROMPT + max(GREETING, r.grpo.max_tokens if stage == "dpo" else 0))
        if r.pairs.file:
            rows = self.own_pairs()
            return self.longest([f"{p.prompt}\n{answer}" for p in rows for answer in (p.chosen, p.rejected)], limit)
        return min(limit, PROMPT + r.candidates.max_tokens)

    def longest(self, texts: list[str], limit: int) -> int:
        """Tokens of the longest text that, with the chat template's own, is not above `limit`."""
        return max((n + TEMPLATE for n in self.lengths(texts) if n + TEMPLATE <= limit), default=limit)

    def lengths(self, texts: list[str]) -> list[int]:
        """Tokens of each text, counted where the tokenizer is at hand, else guessed."""
        tokenizer = self.tokenizer() if texts else None
        if tokenizer is None:
            return [math.ceil(sum(1.0 if ord(c) > 0x2E80 else 0.3 for c in text)) for text in texts]
        return [len(row) for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def tokenizer(self):
        """The model's tokenizer where it is on this machine; None elsewhere: nothing is fetched for a count."""
        folder = self.model.weights
        if not isinstance(folder, Path) or not (folder / "tokenizer.json").is_file():
            return None
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)

    def _reward(self) -> Use:
        r, g = self.recipe, self.recipe.reward
        group = max(1 + KINDS * len(g.strengths), r.candidates.per_premise + 1)
        found = self.step(
            g.batch * group,
            self.tokens("reward"),
            g.lora,
            head="mean",
            depth=g.depth,
            checkpointing=g.gradient_checkpointing,
        )
        whole = self.step(1, 1, None, head="mean").weights  # all layers are loaded, then some are cut
        below = {} if self.gpu else {"lower layers' states": self.rated_states()}
        return self.train(found, below, {"layers that are cut": whole - found.weights})

    def rated_states(self) -> float:
        """Bytes of what the layers below the reward model's adapter make of every text it learns from (RewardModel.keep_lower)."""
        r, g = self.recipe, self.recipe.reward
        texts = MADE_PLOTS * (1 + KINDS * len(g.strengths)) + r.premises.train * r.candidates.per_premise
        states = texts * MADE_PLOT * self.sizes.hidden * self.each
        below = 0 < g.lora.last_layers < round(self.sizes.layers * g.depth)
        return states if below and states <= KEPT and not plain_kind(self.config) else 0.0

    def _dpo(self) -> Use:
        g, greeting = self.recipe.dpo, self.recipe.task == "greeting"
        tokens = self.tokens("dpo")
        lora = self.recipe.sft.lora if greeting else g.lora
        more = {"reference": g.loss in ("dpo", "ddpo"), "checkpointing": g.gradient_checkpointing}
        kept = 0.0
        if self.pairs_apart():
            found = self.step(2 * g.batch, tokens, lora, answer=tokens - PROMPT // 2, **more)
        else:
            found = self.step(1, tokens, lora, passes=self.passes(), **more)
            kept = self.kept_states(lora)
        found, states = self.held(found, g.batch * tokens)
        beside = ({"reference adapter": found.adapter} if greeting else {}) | states | self.writer()
        if self.recipe.tripwire.every and not self.recipe.pairs.file:
            beside["reward model"] = self._read_reward(greeting)
        most = self.recipe.grpo.max_tokens if greeting else self.recipe.candidates.max_tokens
        use = self.train(found, beside, {"tripwire's look": self.look(most)})
        return use.beside("lower layers' states", kept / GIB) if kept else use

    def pairs_apart(self) -> str:
        """Why DPO reads pairs the plain way, both answers padded side by side; "" where a pair is read at once (preference.shared)."""
        from toolkit.models.unsloth_road import would_take

        r = self.recipe
        if r.safety.signal != "none":
            return "held by risk"
        if self.gpu and r.task != "greeting" and r.dpo.loss == "dpo" and would_take(self.config, r.model):
            return "unsloth"
        return plain_kind(self.config)

    def pair(self) -> tuple[int, int, int]:
        """Tokens of prompt, chosen and rejected answer of the largest pair that DPO sees."""
        rows = self.own_pairs() if self.recipe.pairs.file else []
        prompts, *answers = (
            self.lengths([getattr(p, side) for p in rows]) for side in ("prompt", "chosen", "rejected")
        )
        seen = [(p + TEMPLATE, c, r) for p, c, r in zip(prompts, *answers, strict=True)]
        seen = [(p, c, r) for p, c, r in seen if p + max(c, r) <= self.recipe.dpo.max_tokens]
        answer = self.tokens("dpo") - PROMPT // 2
        return max(seen, key=sum, default=(PROMPT // 2, answer, answer))

    def passes(self) -> tuple[tuple[int, int], ...]:
        """(tokens, scored ones) of each forward pass over the largest pair: one, or one an answer (preference.shared)."""
        from toolkit.preference.shared import query_width, worth_sharing

        prompt, chosen, rejected = self.pair()
        layer = self.sizes.linear // self.sizes.layers
        if worth_sharing(prompt, chosen, rejected, layer, query_width(self.config)):
            return ((prompt + chosen + rejected, chosen + rejected),)
        return tuple((prompt + answer, answer) for answer in (chosen, rejected))

    def kept_states(self, lora: LoraSettings) -> float:
        """Bytes of RAM of what the layers below the adapter make of each pair, kept for the epochs after the first."""
        below = lora.last_layers and lora.last_layers < self.sizes.layers
        if not below or self.recipe.dpo.epochs <= 1:
            return 0.0
        tokens = sum(n for n, _ in self.passes())
        return float(min(KEPT, self.pair_count() * tokens * self.sizes.hidden * self.each))

    def pair_count(self) -> int:
        """Pairs that DPO sees, at most."""
        r = self.recipe
        if r.task == "greeting":
            return (
                r.rejection.pairs * (r.rejection.requests or r.requests.train or REQUESTS)
                + CURATED * r.rejection.curated
            )
        if r.pairs.file:
            return len(self.own_pairs())
        most = r.premises.train * r.pairs.per_premise
        return min(most, r.pairs.max_pairs or most)

    def own_pairs(self):
        from toolkit.records import read_pairs

        return read_pairs(Path(self.recipe.pairs.file), self.recipe.premises.skip_bad_lines).rows

    def _read_reward(self, pairwise: bool) -> float:
        """Bytes of the weights of a trained reward model in use."""
        g = self.recipe.reward
        more = {"head": "score"} if pairwise else {"head": "mean", "depth": g.depth}
        return self.step(1, 64, None, **more).weights

    def _sft(self) -> Use:
        g = self.recipe.sft
        tokens = self.tokens("sft")
        held = self.recipe.safety.signal != "none"  # its own loss makes logits in blocks, and reads the reference too
        more = {"head": "states", "reference": True} if held else {"answer": tokens - PROMPT // 2}
        found = self.step(g.batch, tokens, g.lora, checkpointing=g.gradient_checkpointing, **more)
        return self.train(*self.held(found, g.batch * tokens))

    def held(self, found: "Trained", tokens: int) -> tuple["Trained", dict[str, float]]:
        """(`found` with the logits by which it is held to its reference, the last states of both that stay beside).

        At the peak seven blocks of logits are alive, head's and softmaxes' copies among them (anchor._Terms), and never at once with
        the loss's own; on a CPU they find no room where those were. A reference adapter counts where there is one.
        """
        if self.recipe.safety.signal == "none":
            return found, {}
        blocks = 7.0 * min(BLOCK, 4 * tokens * self.sizes.vocabulary)
        states = {"reference's states": 2 * tokens * self.sizes.hidden * self.each}
        logits = max(found.logits, blocks) if self.gpu else found.logits + blocks
        return dataclasses.replace(found, logits=logits), states

    def _risk(self) -> Use:
        """The probe reads prompts through transformers, then the critic answers through llama.cpp."""
        asks, turns = self.recipe.safety.asks, [Use(ram={"python": PLAIN})]
        if "critic" in asks:
            turns.append(self._reading(self.recipe.safety.critic, "judge"))
        if "probe" in asks:
            turns.append(self.train(self.step(1, 2048, None, head="mean")))
        return _most(turns)

    def _safety(self) -> Use:
        judge, writer = self.recipe.safety.judge, self._reading("base", "writer")
        logits = 3.0 * self.tokens("sft") * self.sizes.vocabulary * 4 / GIB  # llama.cpp's, ours, what their sum takes
        turns = [writer.beside("an answer's logits", logits)]
        return _most([*turns, self._reading(judge, "judge")] if judge else turns)

    def _pairwise(self) -> Use:
        g = self.recipe.pairwise
        found = self.step(
            2 * g.batch, self.tokens("pairwise"), g.lora, head="score", checkpointing=g.gradient_checkpointing
        )
        return self.train(found)

    def _grpo(self) -> Use:
        r, g = self.recipe, self.recipe.grpo
        tokens, answers = self.tokens("grpo"), g.batch * g.samples
        found = self.step(
            min(g.mini_batch, answers), tokens, r.sft.lora, answer=g.max_tokens, checkpointing=g.gradient_checkpointing
        )
        prefill = self.step(answers, tokens - g.max_tokens, None, head="mean")
        writing = self.cache(answers, tokens) + max(
            prefill.activations + prefill.unpacked, 4.0 * answers * self.sizes.vocabulary * 4
        )
        found, states = self.held(found, min(g.mini_batch, answers) * g.max_tokens)
        beside = {"reference adapter": found.adapter} | states | self.writer()
        if "model" in g.rewards:
            beside["reward model"] = self._read_reward(True)
        use = self.train(found, beside, {"writing": writing, "tripwire's look": self.look(g.max_tokens)})
        if "judge" in g.rewards:
            use = self._with_engine(use, self.engine(r.principles.agent), CONTEXT["agent"])
        return use

    # ---- llama.cpp

    def engine(self, name: str) -> Engine | None:
        """What stands behind an engine's name; None for a server, which holds nothing here."""
        if name.startswith(("http://", "https://")):
            return None
        if name in ("base", "sft", "writer"):
            m = self.recipe.model
            size = self.gguf_bytes(m.quantisation)
            if m.gguf:  # a file, or a name of the catalogue
                size = Path(m.gguf).stat().st_size if Path(m.gguf).is_file() else entry(m.gguf).size_gb * 1e9
            return Engine("base", size, self.sizes.cache * 2, self.sizes.experts / self.sizes.total)
        if name == "aligned" and not self.merges():
            return self.engine("base")
        if name == "aligned":
            size = self.gguf_bytes(self.recipe.export.quantisation)
            return Engine(name, size, self.sizes.cache * 2, self.sizes.experts / self.sizes.total)
        for e in catalogue():
            if e.name == name.lower():
                token = max(0.0, e.memory_gb - e.size_gb - 0.5) * 1e9 / 8192
                return Engine(name, e.size_gb * 1e9, token, 1 - e.active / e.parameters)  # at least so much is experts'
        path = exported_gguf(Path(name)) or Path(name)
        if path.suffix == ".gguf" and path.is_file():
            return Engine(path.name, path.stat().st_size, _cache_of(path))
        sizes = count(config_of(resolve(name)))  # a folder or hub id, through transformers in 16 bit
        return Engine(name, sizes.total * 2, sizes.cache * 2)

    def merges(self) -> bool:
        """Whether the export merges, or hands out the adapter alone."""
        wanted = self.recipe.export.merge
        return wanted == "always" or (wanted == "auto" and self.sizes.total < MERGED_BELOW)

    def gguf_bytes(self, quantisation: str) -> float:
        return self.sizes.total * BITS[quantisation] / 8

    def _with_engine(
        self, use: Use, engine: Engine | None, context: int, on: str = "auto", experts: str = "auto"
    ) -> Use:
        """`use` with a GGUF open beside it, as `load_engine` decides: on the card where it has room, a mixture's experts in
        RAM where the rest has, else all in RAM."""
        if engine is None:
            return use
        size, taken = engine.bytes(context) / GIB, sum(use.vram.values())
        part = {engine.name: size}
        if self.gpu:
            kept = engine.file * engine.experts
            beside = lambda: int(engine.file - kept + engine.token * context + BUFFERS) if kept else None  # noqa: E731
            free = int((self.vram - taken - CUDA_CONTEXT) * GIB)
            layers, in_ram = placement(on, "auto" if on == "cpu" else experts, int(engine.file), True, free, beside)
            if layers:
                ram = {f"experts of {engine.name}": kept / GIB} if in_ram else {}
                part = {engine.name: size - sum(ram.values())}
                return dataclasses.replace(
                    use,
                    vram={**(use.vram or {"CUDA": CUDA_CONTEXT}), **part},
                    ram={**(use.ram or {"llama.cpp": READS}), **ram},
                )
        return dataclasses.replace(use, ram={**(use.ram or {"llama.cpp": READS}), **part})

    def _reading(self, name: str, context: str, on: str = "auto", experts: str = "auto") -> Use:
        """A GGUF alone."""
        return self._with_engine(Use(), self.engine(name), CONTEXT[context], on, experts)

    def _candidates(self) -> Use:
        return self._reading("base", "writer")

    def _ratings(self) -> Use:
        return self._reading(self.recipe.ratings.rater, "writer")

    def _passport(self) -> Use:
        e = self.recipe.evaluate
        return self._reading(e.judge, "judge", e.judge_on, e.gpu_experts)

    def _rejection(self) -> Use:
        """The writer, and every agent that is another model: all of them stay open."""
        r, use = self.recipe.rejection, Use()
        names = {r.writer, *((getattr(r, role) or r.agents) for role in ("positive", "negative", "judge", "reflector"))}
        for name in sorted(names):
            use = self._with_engine(use, self.engine(name), CONTEXT["agent"])
        return use if r.retrieval == "ngrams" else use.beside("retrieval", SEARCHES)

    def _principles(self) -> Use:
        return self._reading(self.recipe.principles.agent, "agent")

    def _evaluate(self) -> Use:
        """One writer after the other, then the judge (beside the last writer where it judges on the CPU), then the reward."""
        e = self.recipe.evaluate
        if self.recipe.task == "greeting":
            return self._evaluate_greetings()
        writer, judge = self._reading("aligned", "writer", experts=e.gpu_experts), self._passport()
        panel = [self._reading(name, "judge", e.judge_on, e.gpu_experts) for name in e.jury]
        if e.judge_on == "cpu" and self.gpu:
            judge = self._with_engine(writer, self.engine(e.judge), CONTEXT["judge"], "cpu")
        last = (
            Use(ram={"python and torch": LOADS}) if self.recipe.pairs.file else self._pairs({"distances": EMBEDS * GIB})
        )
        if e.panel and not self.gpu:  # its judges are opened after the distances
            last = self._with_engine(last, self.engine(e.judge), CONTEXT["judge"], "cpu")
        return _most([writer, judge, *panel, last])

    def _evaluate_greetings(self) -> Use:
        """One writer after the other, then what paid: the reward model, and the judge of principles."""
        names, last = {s.name for s in plan(self.recipe)}, Use(ram={"python and torch": LOADS})
        if "pairwise" in names:
            last = dataclasses.replace(
                self.train(self.step(16, self.tokens("pairwise"), None, head="score")), kept={}, scratch={}
            )
        if "principles" in names:
            last = self._with_engine(last, self.engine(self.recipe.principles.agent), CONTEXT["agent"])
        return _most([self._reading("base", "writer"), last.beside("unseen judge", SEARCHES)])

    # ---- files

    def _model(self) -> Use:
        r, weights = self.recipe.model, self.sizes.total * 2 / GIB
        kept = {} if isinstance(self.model.weights, Path) and r.id not in MADE else {"weights": weights}
        if self.sizes.moe and r.four_bit:
            kept["4-bit cache"] = self.sizes.weights(True, 2.0) / GIB
        if r.gguf:
            own = Path(r.gguf).is_file()
            return Use(ram={"python": PLAIN}, kept=kept if own else {**kept, "GGUF": self.engine("base").file / GIB})
        largest = 2 * self.sizes.vocabulary * self.sizes.hidden * 4 / GIB
        kept["GGUF"] = self.gguf_bytes(r.quantisation) / GIB
        turns = [Use(ram={"converter": CONVERTS + largest})]
        if unmade(self.model):  # in float32, and as they are written
            made = self.sizes.total * (6.0 if self.sizes.moe else 8.0) / GIB
            turns.append(Use(ram={"python and torch": AFTER, "weights that are made": made}))
        return dataclasses.replace(_most(turns), kept=kept, scratch={"16-bit GGUF": weights})

    def _export(self) -> Use:
        """Merged a few matrices at a time, converted, quantised; or the adapter alone.

        The proof holds the base in torch (`proved_in`), with logits of one text in float64, then its GGUF in llama.cpp.
        """
        weights = self.sizes.total * 2 / GIB
        proof = self.step(1, PROVED, None, head="states")
        exact = proved_in(self.sizes.total, self.recipe.model) == proved_in(0, self.recipe.model)
        whole = self.sizes.total * 4.0 if exact else proof.weights
        reading = proof.activations + proof.unpacked + PROVED * self.sizes.vocabulary * (self.each + 8 + 8)
        held = {"weights, to prove": whole / GIB, "reading": reading / GIB}
        ram = {"python and torch": TRAINS if self.gpu else LOADS}
        ram |= {"CUDA's libraries": HOST, "a file of weights": min(SHARD, weights)} if self.gpu else held
        vram = {"CUDA": CUDA_CONTEXT, **held} if self.gpu else {}
        if not self.merges():
            return _most([Use(vram, ram), self._reading("base", "writer")])
        if not self.gpu:
            turns = {"GGUF, to prove": weights}
            if not self.of_type(4.0 if exact else self.each):  # a mixture's experts are put together besides
                turns["a file of weights"] = max(self.files()) * (1 + self.sizes.moe) / GIB
            longest = max(turns, key=turns.get)
            ram[longest] = turns[longest]
        scratch = {"merged weights": weights, "16-bit GGUF": weights}
        kept = {"GGUF": self.gguf_bytes(self.recipe.export.quantisation) / GIB}
        return Use(vram, ram, kept, scratch)

    def _pairs(self, turns: dict[str, float] | None = None) -> Use:
        """The trained reward model reads the candidates."""
        r = self.recipe
        if r.pairs.file or r.task == "greeting":
            return Use(ram={"python": PLAIN})
        found = self.step(16, r.candidates.max_tokens, None, head="mean", depth=r.reward.depth)
        use = self.train(found, turns=turns)
        return dataclasses.replace(use, kept={}, scratch={})


@dataclass(frozen=True)
class Trained:
    """Bytes of a training step by part."""

    weights: float
    adapter: float
    optimiser: float
    activations: float
    logits: float
    unpacked: float


def _most(turns: list[Use]) -> Use:
    """The largest of each kind of memory, of uses that come one after the other."""
    most = lambda where: max((getattr(u, where) for u in turns), key=lambda parts: sum(parts.values()))  # noqa: E731
    return Use(vram=most("vram"), ram=most("ram"))


def _cache_of(path: Path) -> float:
    """Bytes of a token in llama.cpp's cache, from a GGUF's metadata."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    arch = str(fields["general.architecture"].contents())
    get = lambda key, other=None: fields[f"{arch}.{key}"].contents() if f"{arch}.{key}" in fields else other  # noqa: E731
    heads = get("attention.head_count")
    size = get("attention.key_length") or get("embedding_length") // (heads if isinstance(heads, int) else max(heads))
    kv = get("attention.head_count_kv", heads)
    rows = sum(kv) if isinstance(kv, list) else kv * get("block_count")
    return 2.0 * rows * size * 2
