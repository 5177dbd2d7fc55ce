"""How the cost grows, beside what the machine could do at most: candidates, length of a pair, size of the vocabulary.

python benchmarks/speed_curves.py candidates length vocabulary --out curves.json --plot docs/speed_curves.svg

--at picks points (`length --at 4096`), so the work can be done in pieces; --out grows. Time and peak memory are of a process of its
own each. The limits: writing reads all weights once a step and multiplies them with sixteen rows, at the measured bandwidth of the
memory and rate of products, whichever is slower; training multiplies, at the measured rate, what the step cannot do without.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT))
os.environ.setdefault("FABLESMITH_QUIET", "1")

from toolkit.hardware import PeakMemory, prepare_environment  # noqa: E402

prepare_environment(offline=True)

POINTS = {"candidates": (10, 100, 1000), "length": (128, 512, 1024, 2048, 4096), "vocabulary": (49152, 100352, 151936)}
SHORT = 16  # tokens a candidate
LAYERS, TRAINED, WIDTH, A_LAYER = 30, 12, 576, 3_540_000  # of SmolLM2-135M; parameters of one layer's products


def machine() -> dict:
    """Bytes/s read from memory and FLOP/s of products in bfloat16 and float32, the best of five, on all cores."""
    import torch

    def best(work) -> float:
        took = []
        for _ in range(5):
            begun = time.perf_counter()
            work()
            took.append(time.perf_counter() - begun)
        return min(took)

    many, n = torch.ones(2**27), 1024
    found = {"bytes_a_second": many.nbytes / best(many.sum)}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        a, b = torch.randn(n, n, dtype=dtype), torch.randn(n, n, dtype=dtype)
        found[f"flops_{name}"] = 2 * n**3 / best(lambda a=a, b=b: a @ b)
    return found


def candidates(count: int, _) -> dict:
    """Answers of 16 tokens to one premise, in this process."""
    from toolkit.engines.base import Sampling
    from toolkit.engines.load import load_engine
    from toolkit.narrative.writing import write_prompt

    engine = load_engine("embedded")
    prompt, written = [write_prompt("A ferryman refuses one passenger.")], 0
    engine.generate(prompt, 16, Sampling(max_tokens=4))
    with PeakMemory() as memory:
        begun = time.perf_counter()
        for _ in engine.stream(prompt, count, Sampling(temperature=0.8, max_tokens=SHORT, seed=1)):
            written += 1
        took = time.perf_counter() - begun
        time.sleep(0.3)  # PeakMemory looks five times a second
    engine.close()
    return {"seconds": took, "peak_gb": memory.gb, "pieces": written}


def length(tokens: int, who: str) -> dict:
    return step(who, "--tokens", str(tokens))


def vocabulary(size: int, who: str) -> dict:
    """The embedded model's shape with another vocabulary, random weights."""
    with tempfile.TemporaryDirectory() as folder:
        return step(who, "--model", random_model(Path(folder), size))


def random_model(folder: Path, size: int) -> str:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from toolkit.models.load import load_tokenizer
    from toolkit.models.resolve import resolve

    base = resolve("embedded")
    tokenizer = load_tokenizer(base)  # makes the weights' folder where it is not there
    config = AutoConfig.from_pretrained(base.weights)
    config.vocab_size = size
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def step(who: str, *more: str) -> dict:
    """One preference step of one pair after a first one, seconds and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [sys.executable, str(ROOT / "benchmarks" / "speed_dpo.py"), who, "--steps", "2", "--batch", "1"]
        subprocess.run([*command, "--out", str(out), *more], check=True, stdout=subprocess.DEVNULL)
        row = json.loads(out.read_text())
    return {"seconds": row["times"][-1], "peak_gb": row["peak_gb"]}


def limit(work: str, at: int, m: dict) -> float:
    """Seconds that the machine needs at least, given its bandwidth and rate of products."""
    if work == "candidates":
        parameters = LAYERS * A_LAYER + 49152 * WIDTH
        a_step = max(2 * parameters / m["bytes_a_second"], 2 * 16 * parameters / m["flops_bfloat16"])
        return -(-at // 16) * SHORT * a_step
    size, answer = (at, 110) if work == "vocabulary" else (49152, at)
    read = 100 + 2 * answer  # tokens of the pass: the prompt once
    passes = LAYERS + 2 * TRAINED  # lower layers once, upper ones for reference and policy, back through the trained
    layers = passes * read * 2 * A_LAYER
    attention = passes * 4 * WIDTH * (read**2 / 2 - answer**2)  # causal, and the answers do not see each other
    head = 3 * 2 * answer * 2 * size * WIDTH
    return (layers + attention + head) / m["flops_bfloat16"]


def plot(found: dict) -> str:
    """Three pictures side by side: seconds over size, both logarithmic, with the limit; peak memory on the points."""
    from matplotlib import pyplot as plt

    from toolkit.evaluate.charts import ALIGNED, BASE, INK, _figure, _svg

    figure, first = _figure(10, 3.4)
    first.remove()
    for at, work in enumerate(w for w in POINTS if w in found):
        axes = figure.add_subplot(1, 3, at + 1)
        axes.patch.set_alpha(0)
        for who, rows in found[work].items():
            xs = sorted(map(int, rows))
            color = ALIGNED if who == "ours" else BASE
            axes.plot(xs, [rows[str(x)]["seconds"] for x in xs], "o-", color=color, label=who)
            for x in xs:
                axes.annotate(f"{rows[str(x)]['peak_gb']:.1f}", (x, rows[str(x)]["seconds"]), fontsize=7, color=color,
                              xytext=(0, 6), textcoords="offset points", ha="center")  # fmt: skip
        xs = sorted({int(x) for rows in found[work].values() for x in rows})
        axes.plot(xs, [limit(work, x, found["machine"]) for x in xs], "--", color=INK, label="limit")
        axes.set(xscale="log", yscale="log", xlabel=work, ylabel="seconds" if not at else "")
        axes.minorticks_off()
        axes.set_xticks(xs, [f"{x:,}" for x in xs], rotation=40)
        axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    svg = _svg(figure, "What grows with what: seconds; peak memory in GB on the points")
    plt.close("all")
    return svg


def table(found: dict) -> list[str]:
    lines = ["| | | seconds | peak memory, GB | limit, seconds |", "|---|---|---|---|---|"]
    for work in (w for w in POINTS if w in found):
        for who, rows in found[work].items():
            for x in sorted(map(int, rows)):
                row, least = rows[str(x)], limit(work, x, found["machine"])
                lines.append(f"| {work} {x:,} | {who} | {row['seconds']:.2f} | {row['peak_gb']:.2f} | {least:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", nargs="*", metavar="work", help=", ".join(POINTS))
    parser.add_argument("--at", type=int, nargs="+", help="these points only")
    parser.add_argument("--who", choices=("ours", "trl"), default="ours", help="whose preference step")
    parser.add_argument("--out", type=Path, default=Path("curves.json"))
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    if unknown := set(args.work) - set(POINTS):
        parser.error(f"no curve called {', '.join(unknown)}; there are {', '.join(POINTS)}")
    found = json.loads(args.out.read_text()) if args.out.exists() else {}
    if "machine" not in found:
        found["machine"] = machine()
        print({k: f"{v / 1e9:.0f} G" for k, v in found["machine"].items()})
    for work in args.work:
        for x in args.at or POINTS[work]:
            row = {"candidates": candidates, "length": length, "vocabulary": vocabulary}[work](x, args.who)
            found.setdefault(work, {}).setdefault(args.who, {})[str(x)] = row
            args.out.write_text(json.dumps(found, indent=1))
            print(work, x, row, flush=True)
    args.out.write_text(json.dumps(found, indent=1))
    print("\n".join(table(found)))
    if args.plot:
        args.plot.write_text(plot(found), encoding="utf-8")


if __name__ == "__main__":
    main()
