"""Which of a model's modules and parameters an adapter goes on: by word, by module name, or what its kind is best trained at."""

import re

from torch import nn

from toolkit.errors import UserError
from toolkit.models.experts import ROUTERS, expert_weights, is_experts

AUTO = "auto"  # attention and MLP of a dense model; attention of a mixture, whose experts are 95 % of it
WORDS = ("attention", "mlp", "shared", "experts", "router")
_LAYER = re.compile(r"\blayers\.(\d+)\.")


def adapter_targets(model: nn.Module, targets: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """(module name ends, parameter names) that `targets` mean in `model`.

    Args:
        targets: auto, or any of attention, mlp (dense ones), shared (experts that see every token), experts, router; or ends
            of names of modules or of parameters.

    Raises:
        UserError: one of them matches nothing (peft would drop it without a word).
    """
    groups = _groups(model)
    if AUTO in targets:
        auto = ("attention",) if groups["experts"][1] or groups["experts"][0] else ("attention", "mlp")
        targets = (*(w for w in auto if any(groups[w])), *(t for t in targets if t != AUTO))
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    modules, parameters = set(), set()
    for target in targets:
        if target in WORDS:
            found = groups[target]
        else:
            ends = lambda name, target=target: f".{name}".endswith(f".{target}")  # noqa: E731
            found = (
                [name for name, _ in model.named_modules() if ends(name)],
                [name for name, _ in model.named_parameters() if ends(name)],
            )
        if not any(found):
            has = [w for w in WORDS if any(groups[w])]
            names = sorted({n.rsplit(".", 1)[-1] for word in WORDS for n in groups[word][0]})
            raise UserError(
                f"lora.targets: {target!r} matches no module of this model", f"it has {', '.join([*has, *names])}"
            )
        modules |= set(found[0])
        parameters |= set(found[1])
    return _ends(modules, linear), sorted(parameters)


def of_layers(parameters: list[str], chosen: list[int] | None) -> list[str]:
    """The parameters of the chosen layers; as short ends of names where all layers are chosen."""
    if chosen is not None:
        return [p for p in parameters if (at := _LAYER.search(p)) and int(at[1]) in chosen]
    return sorted({_LAYER.split(p)[-1] for p in parameters})


def _groups(model: nn.Module) -> dict[str, tuple[list[str], list[str]]]:
    """Word → (Linear modules, parameters) inside the layers."""
    found = {word: ([], []) for word in WORDS}
    kinds = dict(model.named_modules())
    blocks = {name.rpartition(".")[0] for name, module in kinds.items() if is_experts(module)}
    for name, module in kinds.items():
        parent, _, leaf = name.rpartition(".")
        if not _LAYER.search(f"{name}."):
            continue
        inside = next((b for b in blocks if name.startswith(f"{b}.")), None)
        if is_experts(module):
            found["experts"][1].extend(f"{name}.{weight}" for weight in expert_weights(module))
        elif isinstance(module, nn.Linear):
            if inside is None:
                word = "attention" if "ttention" in type(kinds[parent]).__name__ else "mlp"
            else:
                word = "router" if leaf in ROUTERS else "shared"
            found[word][0].append(name)
        elif inside == parent and leaf in ROUTERS and getattr(module, "weight", None) is not None:
            found["router"][1].append(f"{name}.weight")
    return found


def _ends(chosen: set[str], everything: set[str]) -> list[str]:
    """The shortest ends of the chosen names that no other Linear shares: q_proj, or shared_expert.up_proj."""
    for parts in range(1, 10):
        ends = {".".join(name.split(".")[-parts:]) for name in chosen}
        if {n for n in everything if any(f".{n}".endswith(f".{end}") for end in ends)} <= chosen:
            return sorted(ends)
    return sorted(chosen)
