"""Peak memory of each step of an export, on a random mixture in many files: does any step hold the model?

python benchmarks/export_memory.py [--layers 6] [--experts 16]

Each step runs in a process of its own, sampled five times a second with its children; pages of mapped files count too. "beyond"
is what it took over a process that only imports the same libraries (the converter is a child, which imports torch anew).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
STEPS = {
    "merge": "from toolkit.export.merge import merge_adapter\nfrom toolkit.models.resolve import Model\n"
    "if go: merge_adapter(Model('m', Path('base')), Path('adapter'), Path('merged'))",
    "convert": "from toolkit.export.gguf import convert\nif go: convert(Path('merged'), Path('f16.gguf'))",
    "quantise": "from toolkit.models.gguf_file import quantise\nimport llama_cpp\n"
    "if go: quantise(Path('f16.gguf'), Path('q4.gguf'), 'Q4_K_M')",
}


def make(folder: Path, layers: int, experts: int) -> None:
    """base/ (bfloat16, a file about a layer) and adapter/ with LoRA on attention and experts."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    from toolkit.models.load import load_tokenizer
    from toolkit.models.resolve import resolve

    tokenizer = load_tokenizer(resolve("embedded"))
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        num_experts=experts,
        num_experts_per_tok=2,
        moe_intermediate_size=1024,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / "base", max_shard_size="110MB")
    tokenizer.save_pretrained(folder / "base")
    targets = {
        "target_modules": ["q_proj", "o_proj"],
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    }
    get_peft_model(model, LoraConfig(r=4, **targets)).save_pretrained(str(folder / "adapter"))


def measure(code: str, folder: Path, go: bool) -> tuple[float, float]:
    """(peak resident memory in MB of a process and its children together, seconds)."""
    lines = [
        "from pathlib import Path",
        "from toolkit.hardware import PeakMemory",
        f"go = {go}",
        "with PeakMemory() as memory:",
    ]
    lines += [f"    {line}" for line in [*code.splitlines(), "import time; time.sleep(0.3)"]]
    lines += ["print(memory.gb * 1024)"]
    env = {**os.environ, "PYTHONPATH": str(HERE)}
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout.split()[-1]), time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--keep", type=Path, help="a folder to work in, instead of a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        if not (folder / "adapter").exists():
            make(folder, args.layers, args.experts)
        files = sorted((folder / "base").glob("*.safetensors"))
        sizes = [f.stat().st_size / 2**20 for f in files]
        print(f"{len(files)} files, {sum(sizes):.0f} MB in all, the largest {max(sizes):.0f} MB")
        print(f"{'step':<10}{'peak MB':>9}{'imports':>9}{'beyond':>8}{'seconds':>9}")
        for step, code in STEPS.items():
            imports = measure(code, folder, False)[0]
            peak, seconds = measure(code, folder, True)
            print(f"{step:<10}{peak:>9.0f}{imports:>9.0f}{peak - imports:>8.0f}{seconds:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
