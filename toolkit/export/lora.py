"""A PEFT LoRA adapter as plain matrices under names that training, the hub's files and GGUF agree on.

The experts of a mixture have many homes. In memory transformers fuses them (`mlp.experts.gate_up_proj`, all experts and
gate and up in one tensor), on disk most models keep one matrix an expert (`block_sparse_moe.experts.3.w1.weight`), some a
fused one; GGUF keeps one tensor for each of gate, up and down. Here they are `…mlp.experts.gate`, `.up` and `.down`,
stacked over experts, whatever the adapter was trained on.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from toolkit.errors import UserError

GATES = {"w1": "gate", "w3": "up", "w2": "down", "gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
FUSED = {"gate_up_proj": "gate_up", "input_linear": "gate_up", "down_proj": "down", "output_linear": "down"}
_BLOCK = r"(.+)\.(?:mlp|block_sparse_moe)\."
_ONE_EXPERT = re.compile(_BLOCK + rf"experts\.(\d+)\.({'|'.join(GATES)})$")
_ALL_EXPERTS = re.compile(_BLOCK + r"(?:experts\.(gate_up_proj|down_proj)|(input_linear|output_linear))$")


@dataclass(frozen=True)
class Lora:
    """ΔW = scale · B A, float32: a (r, in), b (out, r); with experts first, a (E, r, in), b (E, out, r)."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    def delta(self, expert: int | None = None) -> torch.Tensor:
        """ΔW (out, in), of one expert where there are several. In the order peft computes it, so that bits agree."""
        a, b = (self.a, self.b) if expert is None else (self.a[expert], self.b[expert])
        return (b @ a) * self.scale


@dataclass(frozen=True)
class Place:
    """Where a tensor stands. key: the common name; kind "" is a plain matrix, else gate, up, down or gate_up of experts.

    expert: of one expert's own matrix; None for all of them in one tensor.
    """

    key: str
    kind: str = ""
    expert: int | None = None


def place(name: str) -> Place:
    """A tensor's or module's name, in memory or on disk, in any of the layouts above → Place."""
    name = name.removesuffix(".weight")
    if found := _ONE_EXPERT.match(name):
        return Place(f"{found[1]}.mlp.experts", GATES[found[3]], int(found[2]))
    if found := _ALL_EXPERTS.match(name):
        return Place(f"{found[1]}.mlp.experts", FUSED[found[2] or found[3]])
    return Place(name.replace("block_sparse_moe.router.layer", "mlp.router").replace("block_sparse_moe.", "mlp."))


def read_adapter(folder: Path, experts: int = 0, interleaved: bool = False) -> dict[str, Lora]:
    """The adapter in `folder`: common name → Lora; of experts "…mlp.experts.gate", ".up" and ".down".

    Args:
        experts: how many the base model has (0: it is dense), which an adapter on fused experts does not say.
        interleaved: its fused tensors hold gate and up row by row (gpt-oss), instead of one after the other.

    Raises:
        UserError: no LoRA (DoRA, whole modules trained beside it), or fused experts that cannot be told apart.
    """
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if settings.get("use_dora") or settings.get("fan_in_fan_out"):
        raise UserError(f"{folder} is not a plain LoRA adapter", "DoRA and transposed layers cannot be exported")
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        module, dot, side = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        if not dot or side not in ("lora_A", "lora_B"):
            raise UserError(
                f"the adapter in {folder} has {key}, which is no LoRA matrix", "train LoRA alone to export it"
            )
        sides.setdefault(module, {})[side] = tensor.float()
    found: dict[str, Lora] = {}
    stacks: dict[tuple[str, str], dict[int, Lora]] = {}  # matrices of single experts, to be stacked
    fused: dict[str, list[Lora]] = {}  # of a fused block: one for each tensor that peft wrapped
    for module, both in sides.items():
        a, b = both["lora_A"], both["lora_B"]
        block = module.replace(".base_layer", "")  # peft wraps one tensor of a block around the other
        if block.endswith(".experts"):
            rank = a.shape[0] // max(experts, 1)
            a = a.reshape(experts, rank, -1)
            b = b.reshape(b.shape[0], rank, experts).permute(2, 0, 1)
            fused.setdefault(place(block).key, []).append(Lora(a, b, _scale(settings, block, rank)))
            continue
        one, where = Lora(a, b, _scale(settings, module, a.shape[0])), place(module)
        if where.expert is None:
            found[where.key] = one
        else:
            stacks.setdefault((where.key, where.kind), {})[where.expert] = one
    for (key, kind), one in stacks.items():
        found[f"{key}.{kind}"] = _stack(one, experts)
    for key, loras in fused.items():
        found |= _unfuse(key, loras, settings, folder, interleaved)
    return found


def _scale(settings: dict, module: str, rank: int) -> float:
    """alpha / r, or alpha / √r, with the module's own alpha where the adapter has patterns."""
    patterns = settings.get("alpha_pattern") or {}
    alpha = next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", module)), settings["lora_alpha"])
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _stack(loras: dict[int, Lora], experts: int) -> Lora:
    """Single experts' matrices in one; an expert that has none gets zeros."""
    some = next(iter(loras.values()))
    zero = Lora(torch.zeros_like(some.a), torch.zeros_like(some.b), some.scale)
    each = [loras.get(e, zero) for e in range(experts)]
    return Lora(torch.stack([x.a for x in each]), torch.stack([x.b for x in each]), some.scale)


def _unfuse(key: str, loras: list[Lora], settings: dict, folder: Path, interleaved: bool) -> dict[str, Lora]:
    """LoRA on a fused gate_up_proj and down_proj → gate, up and down. The adapter file does not say which is which."""
    names = {t.rpartition(".")[2] for t in settings.get("target_parameters") or ()}
    up = down = None
    if len(loras) == 2:  # gate and up turn `hidden` into twice the width, down turns the width into `hidden`
        one, other = loras
        pairs = [(one, other), (other, one)]
        up, down = next(((u, d) for u, d in pairs if u.a.shape[2] == d.b.shape[1] and u.b.shape[1] == 2 * d.a.shape[2]), (None, None))  # fmt: skip
    elif names & {"gate_up_proj", "down_proj"} == {"gate_up_proj"}:
        up = loras[0]
    elif names & {"gate_up_proj", "down_proj"} == {"down_proj"}:
        down = loras[0]
    if up is None and down is None:
        raise UserError(f"the adapter in {folder} has LoRA on {key} of an unknown layout", "train attention LoRA alone")
    found = {f"{key}.down": down} if down else {}
    if up:
        gate_b, up_b = (up.b[:, ::2], up.b[:, 1::2]) if interleaved else up.b.chunk(2, 1)
        found[f"{key}.gate"] = Lora(up.a, gate_b, up.scale)
        found[f"{key}.up"] = Lora(up.a, up_b, up.scale)
    return found
