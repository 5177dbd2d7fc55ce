"""What this machine does in a second, side by side with what one would otherwise run: medians and ratios, as JSON, table and plot.

python benchmarks/speed.py write judge score dpo start --rounds 3 --out speed.json --plot speed.svg

A round measures every side once, one after the other in one process (dpo, start: each in its own, as they load what they need),
so that what disturbs the machine disturbs both. --out grows by each round, so the work can be done in pieces:
`speed.py write --rounds 1` three times is `speed.py write --rounds 3`; without a work named, what is in the file is shown. The
slower side does less of the work and is counted by the token or the text, which each row says. `elsewhere` in the file is the
share of the machine's processors that other programs took meanwhile: run it alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT))
os.environ.setdefault("FABLESMITH_QUIET", "1")

from toolkit.hardware import physical_cores, prepare_environment  # noqa: E402

prepare_environment(offline=True)

Side = tuple[str, Callable[[], dict]]  # its name, and work that returns {"units": what was done, …}


def plots(count: int):
    from toolkit.judges import shipped_material
    from toolkit.records import guess_language

    return [p for p in shipped_material(1, 1).plots if p.premise and guess_language(p.text) == "en"][:count]


def write() -> Iterator[Side]:
    """Writing, tokens/s: 64 answers of at most 150 tokens to 8 premises. llama-cpp-python's own loop writes 8 of them, with the file
    as packaged; transformers' generate 8 to one premise, and a single one."""
    import llama_cpp
    import torch

    from toolkit.engines.base import Sampling
    from toolkit.engines.load import load_engine
    from toolkit.models.load import load_model, load_tokenizer
    from toolkit.models.resolve import embedded_gguf, resolve
    from toolkit.narrative.writing import write_prompt

    prompts = [write_prompt(p.premise) for p in plots(8)]
    engine, drawn = load_engine("embedded"), Sampling(temperature=0.8, max_tokens=150, seed=1)
    count = lambda texts: sum(len(engine.tokenize(t)) for t in texts)  # noqa: E731
    engine.generate(prompts[:1], 1, Sampling(max_tokens=4))
    yield "ours", lambda: {"units": count(t for a in engine.generate(prompts, 8, drawn) for t in a)}
    # Llama() alone would take half of the cores
    high = llama_cpp.Llama(str(embedded_gguf()), n_ctx=4096, n_threads=physical_cores(), verbose=False)
    more = {"max_tokens": 150, "temperature": 0.8, "min_p": 0.05, "top_p": 1.0, "top_k": 0}
    ask = lambda k: high.create_chat_completion(prompts[k], seed=k, **more)["choices"][0]["message"]["content"]  # noqa: E731
    yield "llama-cpp-python", lambda: {"units": count([ask(k) for k in range(8)])}
    high.close()
    model, tokenizer = load_model(resolve("embedded")).eval(), load_tokenizer(resolve("embedded"))
    ids = tokenizer.apply_chat_template(prompts[0], add_generation_prompt=True, return_tensors="pt", return_dict=True)

    def generate(answers: int):
        with torch.inference_mode():
            out = model.generate(**ids, do_sample=True, temperature=0.8, min_p=0.05, top_k=0, max_new_tokens=150,
                                 num_return_sequences=answers, pad_token_id=tokenizer.pad_token_id)  # fmt: skip
        return {"units": count(tokenizer.batch_decode(out[:, ids["input_ids"].shape[1] :], skip_special_tokens=True))}

    yield "transformers, 8 at once", lambda: generate(8)
    yield "transformers, one at a time", lambda: generate(1)
    engine.close()


def judge() -> Iterator[Side]:
    """Judging, plots/s: five dimensions × two assessments of 50 plots, verdicts without reasons. Single calls, of the same engine: 8
    plots."""
    from toolkit.engines.load import load_engine
    from toolkit.feedback.ratings import rate_plot

    engine, some = load_engine("embedded"), plots(50)
    real, found = engine.choose, {}
    rate_plot(engine, some[0], 0)

    def rate(count: int, choose):
        engine.choose = choose
        found[count] = [rate_plot(engine, p, 0).scores for p in some[:count]]
        return {"units": count}

    yield "ours", lambda: rate(50, real)
    one_by_one = lambda asks, options, reason=0: [a for q in asks for a in real([q], options, reason)]  # noqa: E731
    alike = lambda: max(abs(a[k] - b[k]) for a, b in zip(found[8], found[50], strict=False) for k in a)  # noqa: E731
    yield "single calls", lambda: {**rate(8, one_by_one), "largest_difference_of_10": alike()}
    engine.close()


def score() -> Iterator[Side]:
    """Reward scoring, texts/s: 500 texts of 60 to 400 tokens (shipped plots and their damage). One at a time: 50 of them."""
    from speed_dpo import pairs_of

    from toolkit.models.load import fingerprint
    from toolkit.models.resolve import resolve
    from toolkit.recipe import LoraSettings
    from toolkit.reward.model import RewardConfig, new_reward_model

    made = RewardConfig("embedded", fingerprint(resolve("embedded")))
    model = new_reward_model(made, LoraSettings(8, 16, last_layers=6))
    some = [t for p in pairs_of(250, 400) for t in (p.chosen, p.rejected)]
    texts, found = (some * (1 + 500 // len(some)))[:500], {}
    model.score(texts[:2])

    def scored(work, count):
        found[count] = work(texts[:count])
        return {"units": count}

    yield "ours", lambda: scored(model.score, 500)
    alike = lambda: float(max(abs(a - b).max() for a, b in zip(found[50], found[500], strict=False)))  # noqa: E731
    one = lambda some: [model.score([t])[0] for t in some]  # noqa: E731
    yield "one at a time", lambda: {**scored(one, 50), "largest_difference_of_10": alike()}


def dpo() -> Iterator[Side]:
    """A preference step, steps/s and peak memory: two pairs, LoRA r 16 on the last 12 of 30 layers; TRL's DPOTrainer with its defaults,
    and in our data type without checkpointing. Four steps each; their median is the time."""
    for side, who, more in (
        ("ours", "ours", []),
        ("TRL, its defaults", "trl", []),
        ("TRL, our dtype, no checkpointing", "trl-plain", []),
    ):
        yield side, lambda who=who, more=more: _dpo(who, more)


def same() -> Iterator[Side]:
    """The same preference step in float32, steps/s: the losses beside are those of four steps."""
    for side, who in (("ours", "ours"), ("TRL, float32, no checkpointing", "trl-plain")):
        yield side, lambda who=who: _dpo(who, ["--dtype", "float32"])


def _dpo(who: str, more: list[str]) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [sys.executable, str(ROOT / "benchmarks" / "speed_dpo.py"), who, "--steps", "4", "--out", str(out)]
        subprocess.run([*command, *more], check=True, stdout=subprocess.DEVNULL)
        row = json.loads(out.read_text())
    losses = [round(r["loss"], 6) for r in row["losses"]]
    return {"units": 1, "seconds": row["median_s"], "peak_gb": row["peak_gb"], "losses": losses}


def start() -> Iterator[Side]:
    """Seconds to the first letter of `--help`, and of what `write` writes."""

    def first(*args):
        begun = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "toolkit", *args], stdout=subprocess.PIPE, cwd=ROOT)
        process.stdout.read(1)
        took = time.perf_counter() - begun
        process.communicate()
        return {"units": 1, "seconds": took}

    yield "--help", lambda: first("--help")
    yield "write", lambda: first("write", "A ferryman refuses one passenger.", "--seed", "1", "--max-tokens", "8")


def two() -> Iterator[Side]:
    """Two engines with the embedded model that write one answer of at most 100 tokens each, both done so many times a second."""
    from concurrent.futures import ThreadPoolExecutor

    from toolkit.engines.base import Sampling
    from toolkit.engines.load import load_engine
    from toolkit.engines.sharing import CORES, Cores
    from toolkit.narrative.writing import write_prompt

    both = [load_engine("embedded") for _ in range(2)]
    ask = lambda e: e.generate([write_prompt(plots(1)[0].premise)], 1, Sampling(max_tokens=100, seed=1))  # noqa: E731

    def work(threads: int, cores: Callable[[], Cores]):
        for engine in both:
            engine.cores = cores()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(ask, both))
        return {"units": 1}

    work(1, lambda: CORES)
    yield "ours", lambda: work(2, lambda: CORES)
    yield "at once, all cores each", lambda: work(2, lambda: Cores(physical_cores()))
    yield "one after the other", lambda: work(1, lambda: CORES)
    for engine in both:
        engine.close()


WORK = {"write": write, "judge": judge, "score": score, "dpo": dpo, "same": same, "start": start, "two": two}
TARGETS = {("write", "llama-cpp-python"): 3, ("write", "transformers, 8 at once"): 6, ("write", "transformers, one at a time"): 6, ("judge", "single calls"): 4,
           ("score", "one at a time"): 3, ("dpo", "TRL, its defaults"): 1.8}  # fmt: skip


def measured(work: Callable[[], dict]) -> dict:
    """One sample of a side: units, seconds, and what other programs took meanwhile."""
    import psutil

    busy = lambda: sum(v for k, v in psutil.cpu_times()._asdict().items() if k not in ("idle", "iowait"))  # noqa: E731
    mine = lambda: sum(os.times()[:4])  # noqa: E731
    begun, all_before, mine_before = time.perf_counter(), busy(), mine()
    found = work()
    took = time.perf_counter() - begun
    others = max(0.0, (busy() - all_before) - (mine() - mine_before))
    return {"seconds": took, **found, "elsewhere": round(others / took / (os.cpu_count() or 1), 3)}


def rows(work: str, found: dict) -> Iterator[dict]:
    """A row a side: its rate, median and spread over the rounds, and how far ours is ahead."""
    rate = lambda s: s["units"] / s["seconds"]  # noqa: E731
    ours = found.get("ours")
    for side, samples in found.items():
        rates = sorted(map(rate, samples))
        row = {"side": side, "rate": statistics.median(rates), "low": rates[0], "high": rates[-1], "rounds": len(rates)}
        if ours:
            row["ahead"] = statistics.median(map(rate, ours)) / row["rate"]
        if ours and "peak_gb" in samples[0]:
            peak = lambda some: statistics.median(s["peak_gb"] for s in some)  # noqa: E731
            row |= {"peak_gb": peak(samples), "memory": peak(ours) / peak(samples)}
        yield row | {"target": TARGETS.get((work, side)), "elsewhere": max(s["elsewhere"] for s in samples)}


def table(work: str, found: dict) -> list[str]:
    """The rows as Markdown; a step and a start are given in seconds."""
    lines = [" ".join(WORK[work].__doc__.split()), "", "| | median (least to most of the rounds) | ours is | target |"]
    lines.append("|---|---|---|---|")
    for r in rows(work, found):
        if work in ("dpo", "same", "start"):
            told = f"{1 / r['rate']:.2f} s ({1 / r['high']:.2f}–{1 / r['low']:.2f})"
        else:
            digits = 1 if r["rate"] >= 10 else 2
            told = f"{r['rate']:.{digits}f} ({r['low']:.{digits}f}–{r['high']:.{digits}f})"
        told += f", {r['peak_gb']:.2f} GB" if "peak_gb" in r else ""
        ahead = f"{r['ahead']:.2f} × as fast" if r.get("ahead") and r["side"] != "ours" else ""
        ahead += f", {r['memory']:.2f} × the memory" if ahead and "memory" in r else ""
        target = f"≥ {r['target']} ×" if r["target"] else ""
        lines.append(f"| {r['side']} | {told} | {ahead} | {target} |")
    sides = list(found.values())
    for side, samples in found.items():
        if "losses" in samples[-1]:
            lines.append(f"\nLosses of {side}: {samples[-1]['losses']}")
        if "largest_difference_of_10" in samples[-1]:
            lines.append(f"\nLargest difference of a rating of 10: {samples[-1]['largest_difference_of_10']:.3f}")
    lines.append(
        f"\nOther programs took at most {max(s['elsewhere'] for x in sides for s in x):.0%} of the processors."
    )
    return lines


def plot(found: dict) -> str:
    """How many times as fast ours is as each other side: bars, and the target as a mark. SVG text."""
    from toolkit.evaluate.charts import ALIGNED, BASE, _figure, _svg

    bars = [
        (f"{w}: {r['side']}", r) for w in found for r in rows(w, found[w]) if r.get("ahead") and r["side"] != "ours"
    ]
    figure, axes = _figure(6.5, 0.6 + 0.38 * len(bars))
    for at, (_, r) in enumerate(bars):
        axes.barh(at, r["ahead"], color=ALIGNED, height=0.6)
        axes.text(r["ahead"], at, f" {r['ahead']:.1f} ×", va="center")
        if r["target"]:
            axes.plot([r["target"]] * 2, [at - 0.38, at + 0.38], color=BASE, linewidth=2)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("ours is so many times as fast; the upright mark is the target")
    return _svg(figure, "Speed beside what one would otherwise run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", nargs="*", metavar="work", help=", ".join(WORK))
    parser.add_argument("--rounds", type=int, default=3, help="how often each side is measured, in turn")
    parser.add_argument("--out", type=Path, default=Path("speed.json"), help="grows by each round")
    parser.add_argument("--plot", type=Path, help="write an SVG of the ratios here")
    args = parser.parse_args()
    if unknown := set(args.work) - set(WORK):
        parser.error(f"no work called {', '.join(unknown)}; there are {', '.join(WORK)}")
    found = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in args.work:
        for _ in range(args.rounds):
            for side, work in WORK[name]():
                found.setdefault(name, {}).setdefault(side, []).append(measured(work))
                args.out.write_text(json.dumps(found, indent=1))
    for name in args.work or found:
        print("\n" + "\n".join(table(name, found[name])))
    if args.plot:
        args.plot.write_text(plot(found), encoding="utf-8")


if __name__ == "__main__":
    main()
