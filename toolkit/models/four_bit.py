"""A mixture of experts into memory in 4 bits: quantised shard by shard into a cache, once, and read from there ever after.

Experts, attention and shared MLPs become NF4 with double quantisation; embeddings, head, norms and routers stay as they are.
Converting holds one shard and never the model; loading holds the quantised model. A conversion that is killed goes on with the
shard it was at. Which checkpoint tensors make up which parameter (one an expert, or fused, under old names or new) is
transformers' own table, so that every mixture it knows is known here.
"""

import json
import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from bitsandbytes import functional as bnb
from bitsandbytes.nn import Linear4bit
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from toolkit.errors import UserError
from toolkit.hardware import cache_dir, left_by_killed, require_disk
from toolkit.models.experts import BLOCK, ROUTERS, expert_weights, is_experts, pack, packed_parameter, quantise
from toolkit.models.resolve import digest
from toolkit.progress import bar, say

FORMAT = "1-nf4-64-256"  # of the cache: version, blocks, nested blocks; another one is another folder
_STATE = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".quant_state.bitsandbytes__nf4")
_MX = ("_blocks", "_scales")  # what a parameter's two halves are called in an MXFP4 checkpoint (GPT-OSS)


def skeleton(config, kind, dtype: torch.dtype) -> nn.Module | None:
    """The model of `config` without weights, on the meta device, its Linear and expert modules ready for 4 bits.

    None when it is no mixture whose experts can be packed. Raises UserError when its checkpoint is quantised in a way
    that is not undone here.
    """
    quantised = getattr(config, "quantization_config", None)
    with torch.device("meta"):
        net = kind.from_config(config, dtype=dtype)
    experts = [m for m in net.modules() if is_experts(m)]
    if not experts:
        return None
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
        if str(getattr(method, "value", method)) != "mxfp4":
            raise UserError(f"the checkpoint is quantised already ({method})", "name one in 16 bits, or in MXFP4")
        del net.config.quantization_config
    for module in experts:
        pack(module)
    head = net.get_output_embeddings()
    for name, module in list(net.named_modules()):
        if type(module) is not nn.Linear or module is head or name.rsplit(".", 1)[-1] in (*ROUTERS, "score"):
            continue
        if module.in_features % BLOCK:  # bitsandbytes 0.50 unpacks such rows wrongly on a CPU
            continue
        with torch.device("meta"):
            made = Linear4bit(module.in_features, module.out_features, module.bias is not None, dtype, quant_type="nf4")
            if module.bias is not None:
                made.bias = nn.Parameter(torch.empty_like(module.bias), False)
        net.set_submodule(name, made)
    return net


def four_bit_names(net: nn.Module) -> set[str]:
    """Names of the parameters of a skeleton that are kept in 4 bits."""
    found = set()
    for name, module in net.named_modules():
        if isinstance(module, Linear4bit):
            found.add(f"{name}.weight")
        elif is_experts(module):
            found |= {f"{name}.{weight}" for weight in expert_weights(module)}
    return found


# ---- quantising


@dataclass(frozen=True)
class _Group:
    """Checkpoint tensors that make up one or a few parameters. `sources`: (name, pattern that the name matched)."""

    target: str
    transform: object
    sources: tuple[tuple[str, str], ...]


def quantised_parts(source: Path, net: nn.Module) -> list[Path]:
    """Files of the quantised weights of `source`, made where they are not there or torn: one for each of its shards.

    Args:
        net: the `skeleton` of its causal language model.

    Raises:
        UserError: the disk is too small, a shard is torn, or no weight of the model is in them.
    """
    shards = shards_of(source)
    folder = cache_dir() / "nf4" / f"{digest([source / 'config.json', *shards])}-{FORMAT}"
    folder.mkdir(parents=True, exist_ok=True)
    for left in left_by_killed(folder):
        left.unlink(missing_ok=True)
    parts = [folder / shard.name for shard in shards]
    todo = [part for part in parts if not _whole(part)]
    if todo:
        size = sum(s.stat().st_size for s in shards) / 2**20 * len(todo) / len(parts)
        require_disk(folder, size * 0.35, "the cache of 4-bit weights")
        name = Path(net.config.name_or_path or source).name  # a hub's folder is named by a commit
        say(f"  quantising {name} to 4 bits, once: {len(todo)} of {len(parts)} shards, into {folder}")
        groups, home = _plan(shards, net)
        for part in bar(todo, desc="4 bits", unit="shard"):
            _convert(shards, parts.index(part), part, groups, home, net)
    return parts


def shards_of(source: Path) -> list[Path]:
    """The files that hold a folder's weights: those of its index where it has one, since some hold them twice."""
    index = source / "model.safetensors.index.json"
    if index.is_file():
        return [source / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    single = source / "model.safetensors"
    return [single] if single.is_file() else sorted(source.glob("*.safetensors"))


def _whole(part: Path) -> bool:
    if not part.is_file():
        return False
    try:
        with safe_open(part, "pt"):
            return True
    except (SafetensorError, OSError):  # cut short by a full disk or a lost machine
        say(f"  {part} is torn: it is made anew")
        part.unlink()
        return False


def _plan(shards: list[Path], net) -> tuple[list[_Group], dict[str, int]]:
    """What each parameter is made of, and the shard that each checkpoint tensor lies in."""
    home = {}
    for i, shard in enumerate(shards):
        try:
            with safe_open(shard, "pt") as file:
                home |= dict.fromkeys(file.keys(), i)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"cannot read {shard}: {error}", "it may be a download that broke off: get it anew"
            ) from None
    table = get_model_conversion_mapping(net)
    renamings = [t for t in table if isinstance(t, WeightRenaming)]
    converters = [t for t in table if isinstance(t, WeightConverter)]
    by_pattern = {p: c for c in converters for p in c.source_patterns}
    wanted, prefix = net.state_dict(), net.base_model_prefix
    found: dict[str, list] = {}
    how: dict[str, object] = {}
    for key in sorted(home, key=dot_natural_key):
        plain = next((key.removesuffix(end) for end in _MX if key.endswith(end)), key)
        target, pattern = rename_source_key(plain, renamings, converters, prefix, wanted)
        if target not in wanted and plain in wanted:
            target, pattern = plain, None
        if target in wanted:
            found.setdefault(target, []).append((key, pattern))
            how[target] = _unmx if plain != key else by_pattern.get(pattern)
    if not found:
        raise UserError(f"{shards[0].parent} holds no weight of a {type(net).__name__}", "is it that model's folder?")
    return [_Group(target, how[target], tuple(sources)) for target, sources in found.items()], home


def _convert(shards: list[Path], i: int, part: Path, groups: list[_Group], home: dict[str, int], net) -> None:
    """Write `part`: every parameter of which the last piece lies in shard `i`. Pieces in earlier shards are read anew there."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    four_bit, made = four_bit_names(net), {}
    with safe_open(shards[i], "pt") as here:

        def read(key: str) -> torch.Tensor:
            if home[key] == i:
                return here.get_tensor(key)
            with safe_open(shards[home[key]], "pt") as there:
                return there.get_tensor(key)

        for group in groups:
            if max(home[key] for key, _ in group.sources) != i:
                continue
            for name, weight in _realise(group, read, net).items():
                if name not in four_bit:
                    made[name] = weight.clone()
                    continue
                packed, state = quantise(weight, device)
                made[name] = packed.cpu()
                made |= {f"{name}.{key}": value.cpu().clone() for key, value in state.as_dict(packed=True).items()}
            del weight
    partial = part.with_name(f"{part.name}.partial-{os.getpid()}")
    save_file(made, partial)
    partial.rename(part)


def _realise(group: _Group, read, net) -> dict[str, torch.Tensor]:
    """The group's parameters in 16 bits, fused as the model wants them."""
    if group.transform is None:
        return {group.target: read(group.sources[0][0])}
    if group.transform is _unmx:
        return {group.target: _unmx(*(read(key) for key, _ in group.sources))}
    transform = deepcopy(group.transform)
    for key, pattern in group.sources:
        transform.add_tensor(group.target, key, pattern, read(key))
    made = transform.convert(group.target, model=net, config=net.config)
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def _unmx(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """An MXFP4 checkpoint's two halves → bfloat16 (E, in, out)."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    return convert_moe_packed_tensors(blocks, scales)


# ---- loading


def load_mixture(config, folder: Callable[[], Path], kind, dtype: torch.dtype) -> nn.Module | None:
    """A mixture in 4 bits, on the GPU where there is one; None when `config` is of none (load it the plain way).

    Args:
        folder: fetches the weights if need be, and says where they are; not called for what is no mixture.
        kind: transformers' Auto class of what is wanted: the language model, its backbone, or one with a fresh `score`.
            The cache is of the language model's parameters, whatever is loaded from it.
    """
    net = skeleton(deepcopy(config), kind, dtype)
    if net is None:
        return None
    source = folder()
    whole = net if kind is AutoModelForCausalLM else skeleton(deepcopy(config), AutoModelForCausalLM, dtype)
    parts = quantised_parts(source, whole)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    for part in parts:
        with safe_open(part, "pt", device=str(device)) as file:
            names = set(file.keys())
            for name in sorted(n for n in names if not n.endswith(_STATE)):
                _put(net, whole, name, file, names, device, dtype)
    net.tie_weights()
    _fresh(net, device)
    missing = [name for name, p in net.named_parameters() if p.is_meta]
    if missing:
        raise UserError(f"{source} lacks {len(missing)} of the model's weights, first {missing[0]}", "get it anew")
    return _as_loaded(net, source, device, dtype)


def _put(net, whole, name: str, file, names: set[str], device, dtype: torch.dtype) -> None:
    """One parameter out of the cache into its place; one that `net` has no place for (a head) is left out."""
    here = name
    if net is not whole and type(net).base_model_prefix and not _has(net, name):
        here = name.removeprefix(f"{type(net).base_model_prefix}.")
    if not _has(net, here):
        return
    module, leaf = net.get_submodule(here.rpartition(".")[0]), here.rpartition(".")[2]
    value = file.get_tensor(name)
    if f"{name}{_STATE[0]}" in names:
        state = bnb.QuantState.from_dict({end[1:]: file.get_tensor(name + end) for end in _STATE}, device)
        state.dtype = dtype  # what it is unpacked to
        parameter = packed_parameter(value, state, module if isinstance(module, Linear4bit) else None)
    else:
        old = getattr(module, leaf)
        parameter = value.to(old.dtype)
        if leaf not in module._buffers:
            parameter = nn.Parameter(parameter, False)
    parameter._is_hf_initialized = True  # transformers then leaves it alone
    setattr(module, leaf, parameter)


def _has(net, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    try:
        return getattr(net.get_submodule(path), leaf, None) is not None
    except AttributeError:
        return False


def _fresh(net, device) -> None:
    """What no checkpoint holds, as transformers makes it: rotary tables, and a new `score`."""
    score = getattr(net, "score", None)
    for module in net.modules():
        lacking = [name for name, b in module.named_buffers(recurse=False) if b.is_meta]
        for name in lacking:
            module._buffers[name] = torch.empty_like(module._buffers[name], device=device)
        if module is score:
            module.to_empty(device=device)
        if lacking or module is score:
            net._init_weights(module)


def _as_loaded(net, source: Path, device, dtype: torch.dtype):
    """What transformers writes on a model that it loaded in 4 bits, and trl, peft and Trainer read."""
    from transformers.quantizers import AutoHfQuantizer

    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    net.hf_quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=True)
    net.hf_quantizer.postprocess_model(net)
    net.quantization_method = settings.quant_method
    net.hf_device_map = {"": device.index if device.type == "cuda" else "cpu"}
    if net.can_generate() and (source / "generation_config.json").is_file():
        net.generation_config = GenerationConfig.from_pretrained(source)
    return net.requires_grad_(False).eval()
