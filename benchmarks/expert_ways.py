"""Three ways to keep a mixture's experts in 4 bits, on the same small Qwen3-MoE: what a training step takes, in time and memory.

    python benchmarks/expert_ways.py

unpacked whole: bitsandbytes.nn.parametrize on the fused parameters. one Linear4bit each: the experts taken apart into modules.
one at a time: ours (toolkit.models.experts). Attention LoRA, gradient checkpointing, forward and backward over 2 × 256 tokens.
Each way runs in a process of its own; memory is what a step adds to the loaded model.
"""

import argparse
import json
import subprocess
import sys
import time

SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "moe_intermediate_size": 384,
    "num_experts": 48,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
}
WAYS = ("unpacked whole", "one Linear4bit each", "one at a time")


def build(way: str):
    """A random mixture in bfloat16 whose experts are in 4 bits."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **SHAPE), dtype=torch.bfloat16)
    model.config._experts_implementation = "eager"
    for name, module in list(model.named_modules()):
        if name.endswith("mlp.experts"):
            {"unpacked whole": _parametrise, "one Linear4bit each": _take_apart, "one at a time": _pack}[way](
                model, name, module
            )
    return model.requires_grad_(False)


def _parametrise(model, name, experts) -> None:
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    for weight in ("gate_up_proj", "down_proj"):
        replace_parameter_4bit(experts, weight, compress_statistics=True, quant_type="nf4")


def _pack(model, name, experts) -> None:
    from toolkit.models.experts import pack, packed_parameter, quantise

    pack(experts)
    for weight in ("gate_up_proj", "down_proj"):
        setattr(experts, weight, packed_parameter(*quantise(getattr(experts, weight))))


def _take_apart(model, name, experts) -> None:
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit
    from torch import nn

    def linear(weight):
        made = Linear4bit(weight.shape[1], weight.shape[0], bias=False, compute_dtype=weight.dtype, quant_type="nf4")
        made.weight = Params4bit(weight.data.clone(), quant_type="nf4", module=made).to("cpu")
        return made

    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            halves = [w.chunk(2) for w in experts.gate_up_proj]
            self.gate = nn.ModuleList(linear(g) for g, _ in halves)
            self.up = nn.ModuleList(linear(u) for _, u in halves)
            self.down = nn.ModuleList(linear(w) for w in experts.down_proj)
            self.act = experts.act_fn

        def forward(self, hidden, index, weights):
            out = torch.zeros_like(hidden)
            for e in index.unique().tolist():
                token, place = torch.where(index == e)
                x = hidden[token]
                x = self.down[e](self.act(self.gate[e](x)) * self.up[e](x))
                out = out.index_add(0, token, x * weights[token, place, None].to(x.dtype))
            return out

    model.set_submodule(name, Apart())


def measure(way: str, steps: int) -> dict:
    import psutil
    import torch
    from peft import LoraConfig, get_peft_model

    from toolkit.hardware import PeakMemory, release_memory

    model = get_peft_model(build(way), LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    model.train()
    ids = torch.randint(0, SHAPE["vocab_size"], (2, 256), generator=torch.Generator().manual_seed(1))

    def step():
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        return float(loss)

    loss, times = step(), []
    release_memory()
    before = psutil.Process().memory_info().rss / 2**20
    with PeakMemory() as memory:
        for _ in range(steps):
            begun = time.perf_counter()
            step()
            times.append(time.perf_counter() - begun)
    return {"way": way, "seconds": min(times), "mib": memory.gb * 1024 - before, "loss": loss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help="measure this one here, and print JSON")
    args = parser.parse_args()
    from toolkit.hardware import prepare_environment

    prepare_environment(offline=True)
    if args.way:
        print(json.dumps(measure(args.way, args.steps)))
        return
    print("| experts in 4 bits | s a step | MiB a step adds | loss |\n|---|---|---|---|")
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, "--steps", str(args.steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        print(f"| {way} | {row['seconds']:.2f} | {row['mib']:.0f} | {row['loss']:.4f} |", flush=True)


if __name__ == "__main__":
    main()
