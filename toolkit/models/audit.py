"""What of a model is really in 4 bits. Asked after every 4-bit load: loaders leave weights in 16 bits without a word.

(transformers 5 with `load_in_4bit=True` leaves 95 % of Qwen3-30B-A3B so: experts are no Linear modules.)
"""

from collections import defaultdict
from dataclasses import dataclass
from math import prod

from torch import nn

from toolkit.errors import UserError
from toolkit.models.experts import shape_of
from toolkit.progress import say
from toolkit.recipe import ModelSettings

FOUR_BIT = "4-bit"
SHOWN = 8  # of the largest parameters that are not


@dataclass(frozen=True)
class Audit:
    """Counts are of weights as they were before quantising, without adapters; bytes are what they take now.

    Args:
        parameters, four_bit: all weights, and those in 4 bits.
        inner, inner_four_bit: the same without embeddings and head, which every loader leaves in 16 bits.
        bytes: kind ("4-bit", "bfloat16", …) → bytes; 4-bit ones with their scales.
        largest, largest_inner: (name, weights, kind) of the largest that are not in 4 bits.
    """

    parameters: int
    four_bit: int
    inner: int
    inner_four_bit: int
    bytes: dict[str, int]
    largest: tuple[tuple[str, int, str], ...]
    largest_inner: tuple[tuple[str, int, str], ...]

    @property
    def share(self) -> float:
        """Of the weights in 4 bits among those of the layers: what `model.least_4bit` asks about."""
        return self.inner_four_bit / max(1, self.inner)


def audit(model: nn.Module) -> Audit:
    """Count `model`, which may wear an adapter. Tied weights count once."""
    ends = {id(p) for p in _ends(model)}
    sizes, counts, four, others = defaultdict(int), [0, 0], [0, 0], []
    for name, p in model.named_parameters():
        if "lora_" in name:
            continue
        weights, inner = prod(shape_of(p)), id(p) not in ends
        state = getattr(p, "quant_state", None)
        kind = FOUR_BIT if state is not None else str(p.dtype).removeprefix("torch.")
        sizes[kind] += p.nbytes
        if state is not None:
            sizes[kind] += sum(t.nbytes for t in state.as_dict(packed=True).values())
        else:
            row = (name.replace("base_model.model.", "").replace(".base_layer", ""), weights, kind)
            others.append((inner, row))
        for inside in (False, True)[: 1 + inner]:
            counts[inside] += weights
            four[inside] += weights * (state is not None)
    others.sort(key=lambda other: -other[1][1])
    largest = [tuple(row for inner, row in others if inner or every)[:SHOWN] for every in (True, False)]
    return Audit(counts[0], four[0], counts[1], four[1], dict(sizes), *largest)


def _ends(model: nn.Module):
    """Parameters of embeddings and heads, of every model inside `model`."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield from module.parameters(recurse=False)
        for head in ("lm_head", "score"):
            if isinstance(getattr(module, head, None), nn.Module):
                yield from getattr(module, head).parameters()


def require_four_bit(model: nn.Module, least: float) -> Audit:
    """What was found, in a line where something is asked for. Raises UserError, with the names, when less than `least` of the
    layers' weights is in 4 bits.
    """
    found = audit(model)
    if found.share < least:
        names = ", ".join(f"{name} ({weights:,}, {kind})" for name, weights, kind in found.largest_inner[:3])
        raise UserError(
            f"only {found.share:.1%} of the layers' weights are in 4 bits, model.least_4bit asks for {least:.0%}. Largest of them that are not: {names}",
            "this architecture's weights cannot be packed here: take another model, or lower model.least_4bit if the memory is there",
        )
    if least:
        say(
            f"  {found.share:.1%} of the layers' weights are in 4 bits; {sum(found.bytes.values()) / 2**30:.2f} GiB in all"
        )
    return found


def table(found: Audit) -> str:
    """For people."""
    gib = lambda n: f"{n / 2**30:9.3f} GiB"  # noqa: E731
    lines = [
        f"{found.parameters / 1e6:,.1f}M weights, {found.four_bit / max(1, found.parameters):.1%} of them in 4 bits "
        f"({found.share:.1%} of those in layers; a run asks for {ModelSettings.least_4bit:.0%})",
        *(f"  {kind:<10} {gib(size)}" for kind, size in sorted(found.bytes.items(), key=lambda kv: -kv[1])),
        f"  {'together':<10} {gib(sum(found.bytes.values()))}",
        "largest that are not in 4 bits:",
        *(f"  {name:<52} {weights:13,}  {kind}" for name, weights, kind in found.largest),
    ]
    return "\n".join(lines)
