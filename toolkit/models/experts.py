"""A mixture's experts in 4 bits: packed weights, of which one expert at a time is unpacked while it works.

transformers keeps the experts of a layer as one 3-D parameter, which bitsandbytes does not quantise. Unpacking all of them at
once (bitsandbytes.nn.parametrize) costs a layer's whole weights in 16 bit, and what autograd keeps of them; one Linear4bit an
expert costs 128 modules a projection, and adapters that no stock model reads. Here the parameter stays one, under its own name,
as bitsandbytes' Params4bit; only two small autograd nodes an expert are new. Measured beside those two: docs/results.md.
"""

from math import prod

import torch
from bitsandbytes import functional as bnb
from bitsandbytes.nn import Params4bit
from peft.tuners.lora import layer as peft_layer
from torch import nn

from toolkit.errors import FablesmithError, UserError

BLOCK = 64  # weights a scale is shared by; NESTED scales share one in turn (QLoRA, arXiv 2305.14314)
NESTED = 256
ROUTERS = ("gate", "router", "shared_expert_gate")  # modules of this name choose experts, they do not compute
_PIECE = 4 * 2**20  # weights quantised at once: bitsandbytes on a CPU needs 14 bytes beside each


def quantise(weight: torch.Tensor, device: torch.device | str = "cpu") -> tuple[torch.Tensor, bnb.QuantState]:
    """NF4 with double quantisation, as bitsandbytes' quantize_4bit, but in pieces: (packed (N/2, 1), what undoes it).

    `weight` may be of any shape and lie elsewhere than `device`, where the work is done and the result lies.
    """
    flat = weight.detach().reshape(-1)
    packed = torch.empty((flat.numel() + 1) // 2, 1, dtype=torch.uint8, device=device)
    scales = torch.empty(-(-flat.numel() // BLOCK), dtype=torch.float32, device=device)
    for at in range(0, flat.numel(), _PIECE):
        piece, state = bnb.quantize_4bit(flat[at : at + _PIECE].to(device), blocksize=BLOCK, quant_type="nf4")
        packed[at // 2 : at // 2 + len(piece)] = piece
        scales[at // BLOCK : at // BLOCK + len(state.absmax)] = state.absmax
    offset = scales.mean()
    small, nested = bnb.quantize_blockwise(scales - offset, blocksize=NESTED)
    return packed, bnb.QuantState(
        small,
        shape=weight.shape,
        code=state.code,
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=weight.dtype,
        offset=offset,
        state2=nested,
    )


def is_experts(module: nn.Module) -> bool:
    """Whether `module` holds a layer's experts as transformers 5 writes them (its use_experts_implementation)."""
    return hasattr(module, "is_transposed") and hasattr(module, "has_gate")


def expert_weights(module: nn.Module) -> list[str]:
    """Names of the module's own 3-D parameters, (E, out, in) or, where it `is_transposed`, (E, in, out)."""
    return [name for name, p in module.named_parameters(recurse=False) if len(shape_of(p)) == 3]


def shape_of(parameter: torch.Tensor) -> torch.Size:
    """A parameter's shape before it was quantised."""
    state = getattr(parameter, "quant_state", None)
    return state.shape if state is not None else parameter.shape


def pack(experts: nn.Module) -> None:
    """Make `experts` compute with Params4bit weights, which may be put in later.

    Raises UserError when an expert's matrix is no whole number of blocks.
    """
    for name in expert_weights(experts):
        if prod(shape_of(getattr(experts, name))[1:]) % BLOCK:
            raise UserError(
                f"experts of {tuple(shape_of(getattr(experts, name)))} cannot be put into 4 bits one by one",
                f"an expert's matrix must be a multiple of {BLOCK} weights; take model.four_bit: false",
            )
    experts.__class__ = type(f"Packed{type(experts).__name__}", (Packed, type(experts)), {})
    experts.lora = {}


class Packed:
    """Mixed into the experts' own class, whose flags (gated, transposed, biased) and gate it uses."""

    def forward(self, hidden_states, top_k_index, top_k_weights) -> torch.Tensor:
        """Weighted sum of the chosen experts' outputs: (N, H), (N, K), (N, K) → (N, H). Each expert sees its tokens at once.

        Nothing is added in an order that a GPU chooses: the same input gives the same output.
        """
        tokens, k = top_k_index.shape
        order = top_k_index.reshape(-1).argsort(stable=True)
        counts = torch.bincount(top_k_index.reshape(-1), minlength=self.num_experts).tolist()
        up = _Projection(self, "gate_up_proj" if self.has_gate else "up_proj")
        down = _Projection(self, "down_proj")
        done = []
        for e, x in enumerate(hidden_states[order // k].split(counts)):
            if counts[e]:
                x = up(x, e)
                x = down(self._apply_gate(x) if self.has_gate else self.act_fn(x), e)
                done.append(self.post_expert_norm(x) if getattr(self, "has_post_expert_norm", False) else x)
        out = torch.cat(done) * top_k_weights.reshape(-1)[order][:, None]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return out[back].view(tokens, k, -1).sum(1).to(hidden_states.dtype)


class _Projection:
    """One of the experts' matrices, for one pass: x (T, in), expert number → (T, out), with bias and LoRA where there are any."""

    def __init__(self, experts, name: str):
        weight = getattr(experts, name)
        self.weight, self.state = weight.data, weight.quant_state
        self.scales = bnb.dequantize_blockwise(self.state.absmax, self.state.state2) + self.state.offset
        self.shape, self.transposed = self.state.shape[1:], experts.is_transposed
        self.bias = getattr(experts, f"{name}_bias", None) if experts.has_bias else None
        self.lora = [(a.unbind(), b.unbind(), scaling) for a, b, scaling in experts.lora.get(name, ())]

    def __call__(self, x: torch.Tensor, e: int) -> torch.Tensor:
        size = prod(self.shape)
        packed = self.weight[e * size // 2 : (e + 1) * size // 2]
        scales = self.scales[e * size // BLOCK : (e + 1) * size // BLOCK]
        out = _Product.apply(x, packed, scales, self.shape, self.transposed)
        if self.bias is not None:
            out = out + self.bias[e].to(out.dtype)
        for a, b, scaling in self.lora:
            out = out + (x.to(a[e].dtype) @ a[e].T @ b[e].T * scaling).to(out.dtype)
        return out


class _Product(torch.autograd.Function):
    """x @ W for a frozen 4-bit W, unpacked anew in the backward pass instead of kept from the forward one."""

    @staticmethod
    def forward(ctx, x, packed, scales, shape, transposed):
        ctx.save_for_backward(packed, scales)
        ctx.shape, ctx.transposed = shape, transposed
        return x @ _unpacked(packed, scales, shape, transposed, x.dtype)

    @staticmethod
    def backward(ctx, grad):
        packed, scales = ctx.saved_tensors
        weight = _unpacked(packed, scales, ctx.shape, ctx.transposed, grad.dtype)
        return grad @ weight.T, None, None, None, None


def _unpacked(packed, scales, shape, transposed: bool, dtype: torch.dtype) -> torch.Tensor:
    """(in, out). Unpacked as rows of one block each: bitsandbytes 0.50 on a CPU mistakes the scales of rows that are no whole
    number of blocks.
    """
    rows = (prod(shape) // BLOCK, BLOCK)
    weight = torch.ops.bitsandbytes.dequantize_4bit.default(packed, scales, BLOCK, "nf4", rows, dtype).view(shape)
    return weight if transposed else weight.T


class ParamWrapper(peft_layer.ParamWrapper):
    """peft's LoRA on a parameter, for packed experts: the same tensors under the same names, so that its files are plain peft's.

    peft adds B·A to the weights, which are not there to be added to; here both factors see what passes through the experts, which
    also spares a layer of full-size sums. The class's name is what peft knows a wrapper by when a second adapter comes.
    """

    def get_param(self) -> torch.Tensor:
        """A stand-in of the parameter's shape, device and trainable dtype, without memory."""
        packed = getattr(self.get_base_layer(), self.parameter_name)
        return torch.empty((), device=packed.device).expand(shape_of(packed))

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        worn = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.lora_A]
        experts = self.get_base_layer()
        experts.lora[self.parameter_name] = [self._factors(name) for name in worn]
        try:
            return self.base_layer(x, *args, **kwargs)
        finally:
            del experts.lora[self.parameter_name]

    def _factors(self, name: str):
        """(A (E, r, in), B (E, out, r), scaling)."""
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        a = a.reshape(self.num_experts, -1, a.shape[1])
        return a, b.reshape(b.shape[0], -1, self.num_experts).permute(2, 0, 1), self.scaling[name]

    def merge(self, *args, **kwargs) -> None:
        raise FablesmithError("an adapter is merged into 16-bit weights, never into 4-bit ones")


def packed_parameter(packed: torch.Tensor, state: bnb.QuantState, module: nn.Module | None = None) -> Params4bit:
    """bitsandbytes' parameter of what `quantise` made; `module` is a Linear4bit, which keeps the state too."""
    made = Params4bit(packed, False, state, BLOCK, True, "nf4", bnb_quantized=True, module=module)
    if module is not None:
        module.quant_state = state
    return made
