"""What this machine does in a second, side by side with what one would otherwise run: medians and ratios, as JSON and a table.

python benchmarks/speed.py write judge score dpo start --out speed.json

The slower side does a part of the work (--part) and is counted by the token or the text; both sides run in the same process
one after the other (dpo: each in its own, benchmarks/speed_dpo.py). Run it alone on the machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT))
os.environ.setdefault("FABLESMITH_QUIET", "1")

from toolkit.hardware import physical_cores, prepare_environment  # noqa: E402

prepare_environment(offline=True)


def seconds(work) -> tuple[float, object]:
    begun = time.perf_counter()
    found = work()
    return time.perf_counter() - begun, found


def plots(count: int):
    from toolkit.judges import shipped_material
    from toolkit.records import guess_language

    return [p for p in shipped_material(1, 1).plots if p.premise and guess_language(p.text) == "en"][:count]


def write(part: int) -> dict:
    """64 candidates of at most 150 tokens: 8 premises × 8. Others: llama-cpp-python's own loop, transformers' generate."""
    import llama_cpp

    from toolkit.engines.base import Sampling
    from toolkit.engines.hf import TransformersEngine
    from toolkit.engines.load import load_engine
    from toolkit.models.load import load_model, load_tokenizer
    from toolkit.models.resolve import embedded_gguf, resolve
    from toolkit.narrative.writing import write_prompt

    prompts = [write_prompt(p.premise) for p in plots(8)]
    drawn = Sampling(temperature=0.8, max_tokens=150, seed=1)
    engine = load_engine("embedded")
    count = lambda texts: sum(len(engine.tokenize(t)) for t in texts)  # noqa: E731
    engine.generate(prompts[:1], 1, drawn)
    took, answers = seconds(lambda: engine.generate(prompts, 8, drawn))
    rates = {"ours": count(t for a in answers for t in a) / took}
    high = llama_cpp.Llama(str(embedded_gguf()), n_ctx=4096, n_threads=physical_cores(), verbose=False)
    ask = lambda k: high.create_chat_completion(  # noqa: E731
        prompts[k % 8], max_tokens=150, temperature=0.8, min_p=0.05, top_p=1.0, top_k=0, seed=k
    )["choices"][0]["message"]["content"]
    took, texts = seconds(lambda: [ask(k) for k in range(part)])
    rates["llama-cpp-python"] = count(texts) / took
    model = resolve("embedded")
    hf = TransformersEngine(load_model(model), load_tokenizer(model))
    took, answers = seconds(lambda: hf.generate(prompts[:1], max(1, part // 4), drawn))
    rates["transformers"] = count(answers[0]) / took
    engine.close()
    return {"unit": "tokens/s"} | rates


def judge(part: int) -> dict:
    """Five dimensions × two assessments of plots, verdicts without reasons. Other: the same ten questions as single calls."""
    from toolkit.engines.load import load_engine
    from toolkit.feedback.ratings import rate_plot

    engine, some = load_engine("embedded"), plots(3 * part)
    asked, real = [], engine.choose
    engine.choose = lambda asks, options, reason=0: [a for q in asks for a in real([q], options, reason)]
    rate_plot(engine, some[0], 0)
    took, asked = seconds(lambda: [rate_plot(engine, p, 0).scores for p in some[:part]])
    rates = {"single calls": part / took}
    engine.choose = real
    took, ours = seconds(lambda: [rate_plot(engine, p, 0).scores for p in some])
    rates["ours"] = len(some) / took
    gap = max(abs(a[k] - b[k]) for a, b in zip(asked, ours, strict=False) for k in a)
    engine.close()
    return {"unit": "plots/s", "largest_difference_of_a_rating": gap} | rates


def score(part: int) -> dict:
    """Plots and damaged plots through the reward model. Other: one text at a time."""
    from speed_dpo import pairs_of

    from toolkit.models.load import fingerprint
    from toolkit.models.resolve import resolve
    from toolkit.recipe import LoraSettings
    from toolkit.reward.model import RewardConfig, new_reward_model

    model = new_reward_model(
        RewardConfig("embedded", fingerprint(resolve("embedded"))), LoraSettings(8, 16, last_layers=6)
    )
    texts = [t for p in pairs_of(4 * part, 400) for t in (p.chosen, p.rejected)]
    model.score(texts[:2])
    took, ours = seconds(lambda: model.score(texts))
    rates = {"ours": len(texts) / took}
    alone = texts[: 2 * part]
    took, ones = seconds(lambda: [model.score([t])[0] for t in alone])
    rates["one at a time"] = len(alone) / took
    return {"unit": "texts/s", "largest_difference": float(abs(ours[: len(alone)] - ones).max())} | rates


def dpo(part: int) -> dict:
    """A preference step of two pairs, LoRA r 16 on the last 12 layers; seconds a step, median. Others: TRL's DPOTrainer with its
    defaults, and in our data type without checkpointing."""
    rows = {}
    for name, who, more in (
        ("ours", "ours", []),
        ("ours, second epoch", "ours", ["--epochs", "2"]),
        ("trl, its defaults", "trl", []),
        ("trl, our dtype, no checkpointing", "trl-plain", []),
    ):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "row.json"
            command = [
                sys.executable,
                str(ROOT / "benchmarks" / "speed_dpo.py"),
                who,
                "--steps",
                str(part),
                "--out",
                str(out),
            ]
            subprocess.run([*command, *more], check=True, stdout=subprocess.DEVNULL)
            row = json.loads(out.read_text())
        times = row["times"][len(row["times"]) // 2 :] if "epoch" in name else row["times"]
        rows[name] = {
            "s_a_step": statistics.median(times),
            "spread": [min(times), max(times)],
            "peak_gb": row["peak_gb"],
        }
        rows[name]["losses"] = [round(x["loss"], 4) for x in row["losses"]]
    return rows


def start(part: int) -> dict:
    """Seconds to --help, and to the first piece of text of `write`; median of `part` tries."""

    def first(*args):
        begun = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "toolkit", *args], stdout=subprocess.PIPE, cwd=ROOT)
        process.stdout.read(1)
        took = time.perf_counter() - begun
        process.communicate()
        return took

    tries = {
        "--help": ["--help"],
        "write": ["write", "A ferryman refuses one passenger.", "--seed", "1", "--max-tokens", "8"],
    }
    return {name: round(statistics.median(first(*args) for _ in range(part)), 3) for name, args in tries.items()}


WORK = {"write": (write, 6), "judge": (judge, 6), "score": (score, 12), "dpo": (dpo, 6), "start": (start, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", nargs="+", choices=WORK)
    parser.add_argument("--part", type=int, help="how much of the work the slower side does")
    parser.add_argument("--out", type=Path, default=Path("speed.json"))
    args = parser.parse_args()
    found = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in args.work:
        work, part = WORK[name]
        found[name] = work(args.part or part)
        args.out.write_text(json.dumps(found, indent=1))
        print(f"\n**{name}**: {' '.join(work.__doc__.split())}\n")
        print("\n".join(table(found[name])))


def table(row: dict) -> list[str]:
    lines = ["| | | ours is |", "|---|---|---|"]
    rates = "unit" in row
    for name, value in row.items():
        if isinstance(value, dict):
            times, memory = value["s_a_step"] / row["ours"]["s_a_step"], row["ours"]["peak_gb"] / value["peak_gb"]
            spread = "–".join(f"{x:.2f}" for x in value["spread"])
            lines.append(
                f"| {name} | {value['s_a_step']:.2f} s ({spread}), {value['peak_gb']:.2f} GB | {times:.2f} × as fast, {memory:.2f} × the memory |"
            )
        elif isinstance(value, float) and rates and "difference" not in name:
            lines.append(f"| {name} | {value:.1f} {row['unit']} | {row['ours'] / value:.2f} × |")
        elif name != "unit":
            lines.append(f"| {name} | {value} | |")
    return lines


if __name__ == "__main__":
    main()
