"""A training step on the meta device: the real layers, LoRA, checkpointing and backward pass run on tensors that have a size
and no memory, and a ledger adds up what would be alive at once. So no architecture needs a formula of its own.

What cannot run without numbers is stood in for: attention (its kernel keeps queries, keys, values, mask, output and one float per
row) and bitsandbytes' 4-bit matrices (unpacked where they are used). So are log-probabilities, whose working memory is inside
operations: tiles as in trl.kernels (TRL ≥ 1.16; older TRL makes all logits), or blocks as in preference.shared.
"""

import weakref
from dataclasses import dataclass

import torch
from peft.tuners.lora import layer as peft_layer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from toolkit.models.anchor import BLOCK
from toolkit.models.experts import expert_weights, is_experts, pack
from toolkit.models.load import checkpoint, lora_config
from toolkit.models.sizes import on_meta
from toolkit.recipe import LoraSettings

TILE_TOKENS, TILE_WORDS = 4096, 32768  # of a tile of logits (trl.kernels.chunked_logprob, trl.trainer.utils)
SAMPLE = (2, 3)  # layers that are run where all after the first are alike: each one more weighs the same


@dataclass(frozen=True)
class Job:
    """What a step does.

    Args:
        rows, tokens: sequences of a forward pass, and tokens of the longest.
        answer: tokens of a sequence that are scored (a card scores only those; without Triton all are).
        passes: (tokens, of which scored) of each forward pass of a pair, where that is read by preference.shared: one that has
            the prompt once and both answers, or one an answer. `rows`, `tokens` and `answer` then say nothing.
        head: logprobs of a language model, its last states (whose logits are counted elsewhere), score of a Bradley–Terry model,
            mean state of a rating model.
        lora: None runs no backward pass: reading only.
        reference: a second reading with the adapter off.
        depth: share of the layers.
        dtype: of the frozen weights, and of the computation in 4 bits.
    """

    rows: int
    tokens: int
    answer: int = 0
    passes: tuple[tuple[int, int], ...] = ()
    head: str = "logprobs"
    lora: LoraSettings | None = None
    reference: bool = False
    checkpointing: bool = False
    depth: float = 1.0
    four_bit: bool = False
    dtype: str = "bfloat16"
    gpu: bool = True


@dataclass(frozen=True)
class Step:
    """Bytes alive at the peak of a step besides weights, adapter and optimiser; `trainable` is a count of parameters."""

    trainable: int
    activations: float
    logits: float
    unpacked: float

    @property
    def total(self) -> float:
        return self.activations + self.logits + self.unpacked


class Ledger(TorchDispatchMode):
    """Adds up the sizes of living tensors by kind, and remembers what they were when they were most."""

    def __init__(self, standing):
        super().__init__()
        self.now, self.peak, self.kind, self.kinds, self.at_peak, self.known = 0, 0, "activations", {}, {}, {}
        for tensor in standing:  # weights are counted elsewhere
            storage = tensor.untyped_storage()
            self.known[storage._cdata] = (0, self.kind, storage)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for found in (out,) if isinstance(out, torch.Tensor) else tree_leaves(out):
            if isinstance(found, torch.Tensor):
                self._enter(found.untyped_storage())
        return out

    def _enter(self, storage) -> None:
        key = storage._cdata
        if key in self.known:
            return
        size, kind = storage.nbytes(), self.kind
        self.known[key] = (size, kind, weakref.ref(storage, lambda _, key=key: self._leave(key)))
        self.now += size
        self.kinds[kind] = self.kinds.get(kind, 0) + size
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, dict(self.kinds)

    def _leave(self, key) -> None:
        size, kind, _ = self.known.pop(key)
        self.now -= size
        self.kinds[kind] -= size


def dry_step(config, job: Job) -> Step:
    """Run `job` on the meta device. Raises UserError where the LoRA settings name nothing of this model."""
    text = config.get_text_config()
    layers = max(1, round(text.num_hidden_layers * job.depth))
    mixed = len(set(getattr(text, "layer_types", None) or ())) > 1
    if layers <= SAMPLE[1] or mixed or (job.lora and job.lora.last_layers):
        return _run(config, job, layers)
    low, high = (_run(config, job, n) for n in SAMPLE)
    rest = (layers - SAMPLE[1]) / (SAMPLE[1] - SAMPLE[0])
    return Step(*(b + (b - a) * rest for a, b in zip(_values(low), _values(high), strict=True)))


def _values(step: Step) -> tuple[float, ...]:
    return step.trainable, step.activations, step.logits, step.unpacked


def _run(config, job: Job, layers: int) -> Step:
    model = _model(config, job, layers)
    ids = torch.zeros(job.rows, job.tokens, dtype=torch.long, device="meta")
    ledger = Ledger([*model.parameters(), *model.buffers(), ids])
    read = _pair_reader(model, job, layers, ledger) if job.passes else lambda: _read(model, ids, job, ledger)
    with _Unpacking(ledger), _Folding(), ledger:
        if job.lora is None:
            with torch.no_grad():
                read()
        else:
            out = read()
            if job.reference:
                with torch.no_grad(), model.disable_adapter():
                    known = read()
                out = out - known
            out.sum().backward()
    at = ledger.at_peak
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad) if job.lora else 0
    return Step(trainable, at.get("activations", 0), at.get("logits", 0), at.get("unpacked", 0))


def _model(config, job: Job, layers: int):
    import copy

    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    config._attn_implementation = ATTENTION
    _register()
    dtype = getattr(torch, job.dtype)
    model = on_meta(config, dtype, backbone=job.head == "mean", scoring=job.head == "score")
    model.requires_grad_(False)
    if job.four_bit:
        _as_four_bit(model, dtype)
    if job.checkpointing:
        checkpoint(model)
    if job.lora is None:
        return model.eval()
    from peft import get_peft_model

    with torch.device("meta"):
        model = get_peft_model(model, lora_config(model, job.lora, task=None))
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    return model.train()


def _read(model, ids, job: Job, ledger: Ledger):
    """One number a sequence, (B,)."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    backbone = causal if job.head == "mean" else causal.base_model
    hidden = backbone(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
    if job.head == "mean":
        return (hidden.float() * torch.ones_like(ids)[..., None].float()).sum((1, 2))
    if job.head == "states":
        return hidden.sum((1, 2))
    if job.head == "score":
        return causal.score(hidden)[:, -1, 0].float()
    hidden = hidden[:, -job.answer :] if job.gpu and job.answer else hidden[:, :-1]
    weight = causal.get_output_embeddings().weight
    each = _LogProbs.apply(hidden.reshape(-1, hidden.shape[-1]), weight, ledger, job.gpu)
    return each.view(hidden.shape[:2]).sum(1)


def _pair_reader(model, job: Job, layers: int, ledger: Ledger):
    """preference.shared in sizes: a function that reads a pair's answers, those layers of it that wear an adapter."""
    causal = model.get_base_model()
    backbone, every = causal.base_model, causal.base_model.layers
    start = layers - min(job.lora.last_layers, layers) if job.lora.last_layers else 0
    weight, states = causal.get_output_embeddings().weight, {}
    hidden, flows = weight.shape[1], causal.get_input_embeddings().weight.dtype
    causal.config.get_text_config().never_padded = True

    def one(tokens: int, scored: int):
        two = len(job.passes) == 1  # answers in a pass; one alone is a text like any other and gets no mask
        mask = torch.empty((1, 1, tokens, tokens) if two else (1, tokens), dtype=torch.bool, device="meta")
        if start and tokens not in states:  # the layers below are read once, one at a time: less than what comes now
            states[tokens] = torch.empty(1, tokens, hidden, dtype=flows, device="meta")
        if start:
            source = {"inputs_embeds": states[tokens]}
        else:
            source = {"input_ids": torch.empty(1, tokens, dtype=torch.long, device="meta")}
        backbone.layers = every[start:]
        try:
            out = backbone(**source, attention_mask=mask, use_cache=False).last_hidden_state[0]
        finally:
            backbone.layers = every
        return _AnswerLogps.apply(out[:scored].clone(), weight, ledger).sum()

    return lambda: sum(one(tokens, scored) for tokens, scored in job.passes)


class _AnswerLogps(torch.autograd.Function):
    """The sizes of preference.shared.AnswerLogps: a block of logits in float32, in 16 bits too where those are, and a slope for each state."""

    @staticmethod
    def forward(ctx, states, weight, ledger):
        ctx.slopes = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        with _Kind(ledger, "logits"):
            rows = min(len(states), max(1, BLOCK // (4 * len(weight))))
            block = [states.new_empty(rows, len(weight), dtype=d) for d in {torch.float32, states.dtype}]
            del block
        return states.new_empty(len(states), dtype=torch.float32)

    @staticmethod
    def backward(ctx, grad):
        return (ctx.slopes.float() * grad[:, None]).to(ctx.slopes.dtype), None, None


class _LogProbs(torch.autograd.Function):
    """The sizes of trl.kernels.ChunkedLogProbFunction. Without Triton a tile is worked on in float32 copies."""

    @staticmethod
    def forward(ctx, hidden, weight, ledger, triton):
        ctx.save_for_backward(hidden, weight)
        ctx.ledger, ctx.triton = ledger, triton
        with _Kind(ledger, "logits"):
            _tile(hidden, weight, 0 if triton else 3)
        return hidden.new_empty(len(hidden), dtype=torch.float32)

    @staticmethod
    def backward(ctx, grad):
        hidden, weight = ctx.saved_tensors
        with _Kind(ctx.ledger, "logits"):
            out = hidden.new_empty(hidden.shape, dtype=torch.float32)
            _tile(hidden, weight, 0 if ctx.triton else 7.25)
        return out.to(hidden.dtype), None, None, None


def _tile(hidden, weight, copies: float):
    """A tile of logits and `copies` of it in float32, all at once (the 0.25 is a mask of the targets)."""
    shape = min(len(hidden), TILE_TOKENS), min(len(weight), TILE_WORDS)
    return hidden.new_empty(shape), hidden.new_empty(int(shape[0] * shape[1] * copies), dtype=torch.float32)


class _Kind:
    """What the ledger books new tensors as, for the time being."""

    def __init__(self, ledger: Ledger, kind: str):
        self.ledger, self.kind = ledger, kind

    def __enter__(self):
        self.before, self.ledger.kind = self.ledger.kind, self.kind

    def __exit__(self, *exc):
        self.ledger.kind = self.before


# ---- 4-bit matrices


class _Unpacking:
    """Tells the stand-ins which ledger is open."""

    ledger: Ledger | None = None

    def __init__(self, ledger: Ledger):
        self.mine = ledger

    def __enter__(self):
        _Unpacking.ledger = self.mine

    def __exit__(self, *exc):
        _Unpacking.ledger = None


class _Folding:
    """peft's LoRA on 16-bit experts without the autocast that it switches off, which the meta device does not know."""

    def __enter__(self):
        self.theirs = peft_layer._LoraFactorsProxy.forward
        peft_layer._LoraFactorsProxy.forward = lambda self, w: torch.baddbmm(w, self.lhs, self.rhs, alpha=self.scaling)

    def __exit__(self, *exc):
        peft_layer._LoraFactorsProxy.forward = self.theirs


class _FourBitMatmul(torch.autograd.Function):
    """bitsandbytes' MatMul4Bit: the matrix is unpacked for the product, forward and backward, and kept by nobody."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.weight = weight
        ctx.width = x.shape[-1]
        with _Kind(_Unpacking.ledger, "unpacked"):
            matrix = x.new_empty(weight.shape)
        out = x.new_empty(*x.shape[:-1], matrix.shape[0])
        return out

    @staticmethod
    def backward(ctx, grad):
        with _Kind(_Unpacking.ledger, "unpacked"):
            matrix = grad.new_empty(ctx.weight.shape)
        return grad.new_empty(*grad.shape[:-1], matrix.shape[1]), None


def _as_four_bit(model, dtype) -> None:
    """Linear layers and experts as the 4-bit loaders leave them, the rest as models.load.prepare_four_bit does."""
    mixture = False
    for module in model.modules():
        if (
            type(module) is torch.nn.Linear  # a router of a class of its own gives more than a product
            and module is not model.get_output_embeddings()
            and module.weight.dim() == 2
        ):
            if module is getattr(model, "score", None):
                continue
            module.forward = _linear_forward(module, dtype)
        if is_experts(module):
            pack(module)
            module.forward, mixture = _experts_forward(module), True
    if not mixture and dtype == torch.float16:
        for p in model.parameters():
            p.data = p.data.float()


def _linear_forward(module, dtype):
    def forward(x):
        return _FourBitMatmul.apply(x.to(dtype), module.weight).to(x.dtype)

    return forward


def _experts_forward(module):
    """models.experts.Packed.forward in sizes: every token's copies pass through one expert's matrix, unpacked, at a time."""
    up, down = expert_weights(module)[0], "down_proj"

    def product(x, name):
        inner, outer = getattr(module, name).shape[1:] if module.is_transposed else getattr(module, name).shape[:0:-1]
        out = _ExpertMatmul.apply(x, inner, outer)
        for a, b, scaling in module.lora.get(name, ()):  # one expert's factors stand for each token's own
            out = out + (x.to(a.dtype) @ a[0].T @ b[0].T * scaling).to(out.dtype)
        return out

    def forward(hidden, index, weights):
        tokens, k = index.shape
        x = product(hidden.repeat_interleave(k, 0), up)
        x = product(module._apply_gate(x) if module.has_gate else module.act_fn(x), down)
        x = torch.cat([x]) * weights.reshape(-1)[:, None]
        return x[index.reshape(-1)].view(tokens, k, -1).sum(1).to(hidden.dtype)

    return forward


class _ExpertMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, inner, outer):
        ctx.shape = inner, outer
        with _Kind(_Unpacking.ledger, "unpacked"):
            x.new_empty(inner, outer)
        return x.new_empty(len(x), outer)

    @staticmethod
    def backward(ctx, grad):
        with _Kind(_Unpacking.ledger, "unpacked"):
            grad.new_empty(ctx.shape)
        return grad.new_empty(len(grad), ctx.shape[0]), None, None


# ---- attention

ATTENTION = "sizes_only"


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, mask):
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        mask = None if mask is None else query.new_empty(mask.shape)  # what is let through is added as numbers
        ctx.save_for_backward(query, key, value, mask, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, grad):
        return *(torch.empty_like(t) for t in ctx.saved_tensors[:3]), None


def _attention(module, query, key, value, attention_mask, **_):
    from transformers.integrations.sdpa_attention import repeat_kv

    groups = getattr(module, "num_key_value_groups", 1) if attention_mask is not None else 1
    # with a mask, torch's kernels want a key for every query head
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    return _Attend.apply(query, key, value, attention_mask).transpose(1, 2).contiguous(), None


def _mask(batch_size, q_length, kv_length, *_, config=None, **__):
    """None for a text without padding, which needs no mask."""
    if getattr(config, "never_padded", False):
        return None
    return torch.empty((batch_size, 1, q_length, kv_length), dtype=torch.bool, device="meta")


def _register() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, _mask)
