"""Does preference training of a 30B mixture fit a 24 GiB card? Full size, random weights, our own training code, a hard cap.

    python benchmarks/memory_24gb.py                    # on a GPU: Qwen3-30B-A3B, DPO and reward model, at 1,024 and 2,048 tokens
    python benchmarks/memory_24gb.py --tiny             # the same road at reduced size on a CPU (resident memory instead)
    python benchmarks/memory_24gb.py --cpu --ways ours --tokens 1024 --steps 2   # full size in 20 GiB of RAM: 20 minutes a step on one core
    python benchmarks/memory_24gb.py --checkpoint DIR   # with that folder's weights; unsloth, where installed, then runs too

The weights are made directly in 4 bits (numbers of no meaning, sizes of the real ones), so that no 60 GB need be had.
Every row is a process of its own under the cap. `predicted` is what `fablesmith fit` says of the same step. The plain row is
transformers' own load_in_4bit with bitsandbytes and TRL. experts4bit-qlora (`pip install experts4bit-qlora==0.58.1`, beside this
project's own packages) brings its loader and its LoRA on attention; it trains on instructions only, so the DPO step is ours.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = "Qwen/Qwen3-30B-A3B-Instruct-2507"
TINY = {
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "moe_intermediate_size": 128,
    "intermediate_size": 256,
    "num_experts": 16,
    "vocab_size": 49152,
}
WAYS = ("ours", "plain", "unsloth", "experts4bit")
CAP = 24.0


def config_of(tiny: bool, checkpoint: Path | None):
    from transformers import AutoConfig

    from toolkit.models.sizes import published

    if checkpoint:
        return AutoConfig.from_pretrained(checkpoint)
    known = {**published()[MODEL], **(TINY if tiny else {})}
    return AutoConfig.for_model(known.pop("model_type"), **known)


def random_mixture(config, folder, kind, dtype):
    """Stands for toolkit.models.four_bit.load_mixture: the same model, its weights drawn where they will lie."""
    import torch
    from bitsandbytes import functional
    from torch import nn

    from toolkit.models import four_bit
    from toolkit.models.experts import BLOCK, packed_parameter, quantise, shape_of

    net = four_bit.skeleton(config, kind, dtype)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    _, like = quantise(torch.randn(BLOCK * 256, dtype=dtype) * 0.02, device)
    for name in sorted(four_bit.four_bit_names(net)):
        module, leaf = net.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        shape = shape_of(getattr(module, leaf))
        blocks = shape.numel() // BLOCK
        nested = functional.QuantState(
            torch.full((-(-blocks // 256),), 1e-4, device=device),
            blocksize=256,
            code=like.state2.code,
            dtype=torch.float32,
        )
        state = functional.QuantState(
            torch.randint(0, 256, (blocks,), dtype=torch.uint8, device=device),
            shape=shape,
            code=like.code,
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=dtype,
            offset=like.offset,
            state2=nested,
        )
        packed = torch.randint(0, 256, (shape.numel() // 2, 1), dtype=torch.uint8, device=device)
        setattr(module, leaf, packed_parameter(packed, state, module if isinstance(module, nn.Linear) else None))
    for name, p in list(net.named_parameters()):
        if p.is_meta and not name.startswith("score"):
            value = torch.ones(p.shape, dtype=dtype, device=device)
            if p.dim() > 1:
                nn.init.normal_(value, std=0.02)
            made = nn.Parameter(value, False)
            made._is_hf_initialized = True
            setattr(net.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], made)
    net.tie_weights()
    four_bit._fresh(net, device)
    return four_bit._as_loaded(net, folder(), device, dtype)


def model_folder(config, into: Path) -> Path:
    """A folder that has all of a model but its weights, with the embedded model's tokenizer."""
    import torch
    from safetensors.torch import save_file

    from toolkit.models.load import load_tokenizer
    from toolkit.models.resolve import resolve

    config.save_pretrained(into)
    load_tokenizer(resolve("embedded")).save_pretrained(into)
    save_file({"no.weight": torch.zeros(1)}, into / "model.safetensors", metadata={"format": "pt"})
    return into


def text_of(tokenizer, tokens: int, salt: int) -> str:
    """A text that a chat template makes `tokens` long, to within 3."""
    words = [f" w{(i * 7 + salt) % 97}" for i in range(tokens)]
    size = lambda n: len(tokenizer.apply_chat_template(_turns("".join(words[:n])), return_dict=False))  # noqa: E731
    low, high = 1, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(middle) <= tokens else (low, middle - 1)
    return "".join(words[:low])


def _turns(answer: str) -> list[dict]:
    return [{"role": "user", "content": "Write."}, {"role": "assistant", "content": answer}]


class Clock:
    """Seconds between optimiser steps, however a trainer is called."""

    def __enter__(self):
        from transformers import Trainer

        self.at, self.real = [], Trainer.training_step
        clock = self

        def timed(trainer, *args, **kwargs):
            out = clock.real(trainer, *args, **kwargs)
            float(out)  # waits for the card
            clock.tick()
            return out

        Trainer.training_step = timed
        return self

    def tick(self) -> None:
        self.at.append(time.perf_counter())

    def __exit__(self, *exc):
        from transformers import Trainer

        Trainer.training_step = self.real

    @property
    def step(self) -> float:
        gaps = [b - a for a, b in zip(self.at, self.at[1:], strict=False)]
        return min(gaps) if gaps else float("nan")


def run_dpo(way: str, folder: Path, tokens: int, steps: int, out: Path, config, clock: Clock) -> None:
    from toolkit.models.load import load_tokenizer
    from toolkit.models.resolve import Model
    from toolkit.preference.dpo import train_dpo
    from toolkit.recipe import DpoSettings, LoraSettings, ModelSettings
    from toolkit.records import PreferencePair

    base = Model(str(folder), folder)
    tokenizer = load_tokenizer(base)
    pairs = [PreferencePair("Write.", text_of(tokenizer, tokens, 2 * i), text_of(tokenizer, tokens, 2 * i + 1)) for i in range(steps)]  # fmt: skip
    settings = DpoSettings(lora=LoraSettings(16, 32), batch=1, accumulate=1, epochs=1, lr=1e-5, max_tokens=tokens, save_every=10**6)  # fmt: skip
    if way == "plain":
        plain_dpo(folder, config, pairs, settings, out)
    elif way == "experts4bit":
        experts4bit_dpo(folder, pairs, settings, clock)
    else:
        weights = ModelSettings(four_bit=True, unsloth="auto" if way == "unsloth" else "never")
        train_dpo(base, pairs, settings, weights, out)


def plain_dpo(folder: Path, config, pairs, settings, out: Path) -> None:
    """transformers' load_in_4bit and TRL as their documentation has it: experts stay in 16 bits."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import DPOConfig, DPOTrainer

    from toolkit.models.training import passes, trainer_settings
    from toolkit.preference.dpo import chat_row

    gpu = torch.cuda.is_available()
    if (
        folder / "model.safetensors"
    ).stat().st_size < 1000:  # no weights: make what loading would make, tensor by tensor
        from transformers.integrations import replace_with_bnb_linear

        with torch.device("meta"):
            shell = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
        shell = replace_with_bnb_linear(shell, ["lm_head"], quantised)
        held = []
        for p in shell.parameters():
            bits = 4 if type(p).__name__ == "Params4bit" else 16
            held.append(torch.zeros(p.numel() * bits // 8, dtype=torch.uint8, device="cuda" if gpu else "cpu"))
        raise SystemExit("the weights alone fit; training was not tried without a checkpoint")
    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=quantised, device_map={"": 0 if gpu else "cpu"}
    )
    model.config.use_cache = False
    model.gradient_checkpointing_enable({"use_reentrant": False})
    args = trainer_settings(out, seed=1, **passes(settings))
    DPOTrainer(
        model=model,
        args=DPOConfig(**args, max_length=None),
        train_dataset=Dataset.from_list([chat_row(p) for p in pairs]),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
    ).train()


def experts4bit_dpo(folder: Path, pairs, settings, clock: Clock) -> None:
    """Its model in 4 bits, its LoRA on attention, our loss. Adapters change nothing at first: the reference is read then."""
    import torch
    from experts4bit_qlora import add_attention_lora, load_moe_4bit_streaming
    from experts4bit_qlora.lora import quantize_attention_projections_4bit
    from transformers import AutoTokenizer

    from toolkit.preference.dpo import chat_row, token_ids
    from toolkit.preference.losses import ddpo
    from toolkit.preference.shared import answer_logps, rows_of

    device = "cuda" if torch.cuda.is_available() else "cpu"
    # r 1: LoRA on experts comes with the loader, and is not trained here, as in the other rows
    model, _ = load_moe_4bit_streaming(str(folder), device, torch.bfloat16, r=1, alpha=1)
    model.requires_grad_(False)
    quantize_attention_projections_4bit(model)
    if not add_attention_lora(model, settings.lora.r, settings.lora.alpha, torch.float32):
        raise SystemExit("experts4bit-qlora found no attention to put LoRA on")
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [rows_of(*token_ids(tokenizer, chat_row(p)), False, device) for p in pairs]
    sums = lambda pair: torch.stack([answer_logps(model, row).sum() for row in pair])  # noqa: E731
    with torch.no_grad():
        known = [sums(pair) for pair in rows]
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=settings.lr)
    for pair, reference in zip(rows, known, strict=True):
        chosen, rejected = sums(pair) - reference
        ddpo(chosen - rejected, torch.ones(()), settings.beta).backward()
        optimiser.step()
        optimiser.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        clock.tick()


def run_reward(folder: Path, tokens: int, steps: int, out: Path) -> None:
    from toolkit.models.load import fingerprint, load_tokenizer
    from toolkit.models.resolve import resolve
    from toolkit.recipe import LoraSettings, RewardSettings
    from toolkit.reward.data import Group
    from toolkit.reward.model import RewardConfig, new_reward_model
    from toolkit.reward.train import train_reward

    base = resolve(str(folder))
    tokenizer, groups = load_tokenizer(base), []
    for i in range(steps):
        group = Group(str(i))
        group.add(text_of(tokenizer, tokens, 2 * i), [9.0] * 5, 1.0, "people")
        group.add(text_of(tokenizer, tokens, 2 * i + 1), [3.0] * 5, 1.0, "people")
        groups.append(group)
    config = RewardConfig(str(folder), fingerprint(base), four_bit=True)
    model = new_reward_model(config, LoraSettings(16, 32))
    train_reward(model, groups, RewardSettings(epochs=1, batch=1, max_tokens=tokens, save_every=10**6), out)


def one(args) -> dict:
    """Run one row in this process."""
    import torch

    from toolkit.hardware import PeakMemory, prepare_environment
    from toolkit.models import four_bit

    prepare_environment(offline=True)
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, CAP * 2**30 / torch.cuda.get_device_properties(0).total_memory)
        )
    config = config_of(args.tiny, args.checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        out.mkdir()
        folder = args.checkpoint or args.folder or model_folder(config, Path(scratch) / "model")
        if args.one == "ours" and not args.checkpoint:
            four_bit.load_mixture = random_mixture
        with PeakMemory() as memory, Clock() as clock:
            if args.what == ["dpo"]:
                run_dpo(args.one, folder, args.tokens[0], args.steps, out, config, clock)
            else:
                run_reward(folder, args.tokens[0], args.steps, out)
    row = {"seconds": clock.step, "rate": 2 * args.tokens[0] / clock.step, "ram": memory.gb}
    if gpu:
        row |= {
            "allocated": torch.cuda.max_memory_allocated() / 2**30,
            "reserved": torch.cuda.max_memory_reserved() / 2**30,
        }
    return row


def predicted(config, what: str, tokens: int, gpu: bool) -> float:
    """GiB that `fablesmith fit` reckons for the step, without CUDA's own context or Python."""
    from toolkit.models.dry import Job, dry_step
    from toolkit.models.sizes import NF4_BYTES, count
    from toolkit.recipe import LoraSettings

    lora = LoraSettings(16, 32)
    more = {"head": "mean", "depth": 0.67} if what == "reward" else {"answer": tokens - 30, "reference": True}
    step = dry_step(config, Job(2, tokens, lora=lora, checkpointing=True, four_bit=True, gpu=gpu, **more))
    sizes = count(config)
    inner = (sizes.linear + sizes.experts) * more.get("depth", 1.0)
    table = sizes.table / (2 if what == "reward" and not config.tie_word_embeddings else 1)
    weights = inner * NF4_BYTES + (table + sizes.rest) * 2
    loading = (
        weights + inner * (1 / more.get("depth", 1.0) - 1) * NF4_BYTES
    )  # a reward model's layers are cut once they are there
    return max(loading, weights + step.trainable * 12 + step.total) / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="reduced size, such as a CPU can do")
    parser.add_argument("--cpu", action="store_true", help="full size without a GPU: resident memory instead, slow")
    parser.add_argument("--what", choices=("dpo", "reward"), nargs="+", help="only these steps")
    parser.add_argument(
        "--tokens", type=int, nargs="+", help="of each of a pair's two texts (default: 1024 2048; tiny: 128)"
    )
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--checkpoint", type=Path, help="a folder of real weights")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.tokens = args.tokens or ([128] if args.tiny else [1024, 2048])
    if args.one:
        print(json.dumps(one(args)))
        return
    import torch

    from toolkit.hardware import package_version, prepare_environment

    prepare_environment(offline=True)
    gpu = torch.cuda.is_available()
    card = f"{torch.cuda.get_device_name(0)}, at most {CAP:g} GiB of it" if gpu else "CPU"
    if not (gpu or args.tiny or args.cpu):
        raise SystemExit("no GPU: --tiny runs the same road at reduced size, --cpu the full size in RAM")
    versions = ", ".join(f"{n} {package_version(n)}" for n in ("torch", "transformers", "trl", "peft", "bitsandbytes"))
    print(f"{'reduced' if args.tiny else MODEL} on {card}; {versions}\n")
    print(
        "| way | step | allocated GiB | reserved GiB | RAM GiB | predicted GiB | s a step | tokens/s |\n|---|---|---|---|---|---|---|---|"
    )
    config = config_of(args.tiny, args.checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        folder = None
        if args.tiny and not args.checkpoint:  # small enough to be written: the plain way then really trains
            folder = model_folder(config, Path(scratch))
            from transformers import AutoModelForCausalLM

            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
        for way in args.ways:
            if why := not_here(way, gpu, args):
                print(f"| {way} | not run: {why} | | | | | | |", flush=True)
                continue
            for what in args.what or ("dpo", "reward"):
                if what == "reward" and way != "ours":
                    continue
                for tokens in args.tokens:
                    print(row(args, way, what, tokens, folder, config, gpu), flush=True)


def not_here(way: str, gpu: bool, args) -> str:
    """Why a way cannot run here; "" where it can."""
    packages = {"unsloth": "unsloth", "experts4bit": "experts4bit_qlora"}
    if way not in packages:
        return ""
    if importlib.util.find_spec(packages[way]) is None:
        return f"{packages[way].replace('_', '-')} is not installed"
    if way == "unsloth" and not gpu:
        return "it takes a GPU"
    return "" if args.checkpoint or args.tiny else "it reads weights from a folder: --checkpoint"


def row(args, way: str, what: str, tokens: int, folder: Path | None, config, gpu: bool) -> str:
    command = [
        sys.executable,
        __file__,
        "--one",
        way,
        "--what",
        what,
        "--tokens",
        str(tokens),
        "--steps",
        str(args.steps),
    ]
    command += ["--tiny"] * args.tiny
    command += ["--checkpoint", str(args.checkpoint)] if args.checkpoint else []
    command += ["--folder", str(folder)] if folder else []
    done = subprocess.run(command, capture_output=True, text=True)
    name = f"| {way} | {what}, 2 × {tokens} tokens |"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["?"])[-1]
        said = "does not fit: out of memory" if "out of memory" in done.stderr.lower() else last[:90]
        return f"{name} {said} | | | | | |"
    found = json.loads(done.stdout.splitlines()[-1])
    figure = lambda key, digits=2: f"{found[key]:.{digits}f}" if key in found else "–"  # noqa: E731
    reckoned = f"{predicted(config, what, tokens, gpu):.2f}" if way == "ours" else "–"
    return f"{name} {figure('allocated')} | {figure('reserved')} | {figure('ram')} | {reckoned} | {figure('seconds')} | {figure('rate', 0)} |"


if __name__ == "__main__":
    main()
