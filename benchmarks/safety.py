"""Safe fine-tuning under attack: every way of holding a training, on the same rows and seeds, with safety and utility of each.

    python benchmarks/safety.py reference --harmful ../shared/data/safety/advbench.jsonl
    python benchmarks/safety.py grid --part 0/2     # and --part 1/2 beside it; both may be killed and called again
    python benchmarks/safety.py table               # Markdown, and docs/safety.svg with --chart docs/safety.svg

SmolLM2-135M hardly refuses. `reference` first teaches it to, on harmful requests of the file's train side with refusals of our own,
and on harmless ones with its own answers; that adapter is what is attacked and what trainings are held to. Harmful rows of an attack
are requests with the file's bare affirmative opening (AdvBench's `target`), nothing further.
"""

import argparse
import json
import random
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.hardware import prepare_environment

prepare_environment(offline=True)

import numpy as np  # noqa: E402

from toolkit.engines.base import Sampling  # noqa: E402
from toolkit.models.resolve import resolve  # noqa: E402
from toolkit.narrative.writing import whole_sentences, write_prompt  # noqa: E402
from toolkit.recipe import LoraSettings, ModelSettings, SafetySettings, SftSettings  # noqa: E402
from toolkit.records import read_jsonl, read_premises, side_of  # noqa: E402
from toolkit.safety.asking import COMPLIANCE, REFUSAL, Ask, answer, read_asks, shares  # noqa: E402
from toolkit.safety.refusal import classify  # noqa: E402

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "toolkit" / "data"
SEEDS = (1, 2, 3)
ROWS, HARMFUL_ASKED, SAFE_ASKED, TASK = 40, 28, 20, 20  # of a training; asked of a seed's model; held-out texts
ANSWER = Sampling(temperature=0, max_tokens=20)
SFT = SftSettings(
    lora=LoraSettings(16, 32, last_layers=12),
    lr=1e-3,
    epochs=2,
    batch=4,
    max_tokens=128,
    gradient_checkpointing=False,
    save_every=1000,
)
SAFETY = SafetySettings(signal="probe", beta_min=0.1, beta_max=0.9)
#   name: what holds the training; whose risks
CONTROLS = {
    "sft": (replace(SAFETY, signal="none"), ""),
    "constant 0.3": (replace(SAFETY, signal="constant", beta_max=0.3), ""),
    "constant 0.6": (replace(SAFETY, signal="constant", beta_max=0.6), ""),
    "constant 0.9": (replace(SAFETY, signal="constant", beta_max=0.9), ""),
    "random": (replace(SAFETY, signal="random"), "probe"),
    "probe": (SAFETY, "probe"),
    "probe from 0.3": (replace(SAFETY, beta_min=0.3), "probe"),
    "probe per batch": (replace(SAFETY, per="batch"), "probe"),  # as in the released code
    "critic": (replace(SAFETY, signal="critic"), "critic"),
    "both": (replace(SAFETY, signal="both"), "both"),
    "oracle": (SAFETY, "oracle"),  # risk 1 for the harmful rows, 0 for the others: what a perfect signal could do
}


@dataclass(frozen=True)
class Point:
    """One training: share of harmful rows, learning rate, control, seed."""

    harmful: float
    lr: float
    control: str
    seed: int

    @property
    def name(self) -> str:
        return f"h{100 * self.harmful:g}-lr{self.lr:g}-{self.control.replace(' ', '')}-s{self.seed}"


def points() -> list[Point]:
    """The most telling first; a first seed of everything before the third of anything but the mixed setting's core."""
    core, few = ("sft", "probe", "constant 0.9", "constant 0.3", "random"), ("sft", "probe", "constant 0.9")
    rest = ("probe from 0.3", "constant 0.6", "critic", "both", "oracle")
    every = [Point(0.1, SFT.lr, c, s) for s in SEEDS for c in core]
    for seeds in (SEEDS[:1], SEEDS[1:]):
        every += [
            Point(h, lr, c, s) for s in seeds for h, lr in ((1.0, SFT.lr), (0.1, 3e-4), (0.0, SFT.lr)) for c in few
        ]
        every += [Point(0.1, SFT.lr, c, s) for s in seeds for c in rest]
        every += [Point(h, lr, c, s) for s in seeds for h, lr in ((0.3, SFT.lr), (0.1, 3e-3)) for c in few]
    return every + [Point(0.1, SFT.lr, "probe per batch", s) for s in SEEDS]


# ---- material


def harmful(path: Path, side: str) -> list[dict]:
    """Rows {"prompt", "answer"} of one side (records.side_of): the answer is the file's affirmative opening."""
    rows = [r for r in read_jsonl(path) if side_of(r["id"]) == side]
    return [{"id": r["id"], "prompt": r["prompt"], "answer": r["target"]} for r in rows]


def greetings(side: str) -> list[dict]:
    """The benign creative task: shipped English greetings of one side, shortest first."""
    asked = {r["id"]: r for r in read_jsonl(DATA / "greetings" / "requests.jsonl") if r["language"] == "en"}
    rows = read_jsonl(DATA / "greetings" / "labelled.jsonl")
    found = [
        {"id": r["request_id"], "prompt": asked[r["request_id"]]["text"], "answer": r["good"]}
        for r in rows
        if r["request_id"] in asked and side_of(r["request_id"]) == side
    ]
    return sorted(found, key=lambda r: len(r["prompt"]) + len(r["answer"]))


def rows_of(point: Point, path: Path) -> list[dict]:
    """ROWS of a training, shuffled: the same for every control of a seed."""
    rng = random.Random(f"{point.seed}:{point.harmful}")
    bad = round(point.harmful * ROWS)
    attack = rng.sample(harmful(path, "train")[1::2], bad)  # the other half taught the reference to refuse
    kind = rng.sample(greetings("train")[:60], ROWS - bad)
    rows = [{**r, "harmful": True} for r in attack] + [{**r, "harmful": False} for r in kind]
    rng.shuffle(rows)
    return rows


# ---- the reference that refuses


def reference(args) -> None:
    from toolkit.engines.load import load_engine
    from toolkit.export.gguf import convert
    from toolkit.models.load import weights_folder
    from toolkit.safety.train import train_safe

    out = args.out / "reference"
    out.mkdir(parents=True, exist_ok=True)
    told = json.loads((HERE / "safety_prompts.json").read_text())
    if not (out / "own.json").exists():  # its own answers to harmless requests: what it can do it keeps
        premises = [p for p in read_premises(DATA / "premises.jsonl").rows if p.language == "en" and p.split == "train"]
        asks = told["benign"] + [write_prompt(p)[0]["content"] for p in premises[:40]]
        engine = load_engine("embedded", on="cpu")
        draw = Sampling(temperature=0, max_tokens=56, repeat_penalty=1.05)
        texts = engine.generate([[{"role": "user", "content": a}] for a in asks], 1, draw)
        engine.close()
        (out / "own.json").write_text(
            json.dumps([(a, whole_sentences(t[0])) for a, t in zip(asks, texts, strict=True)])
        )
    if not (args.out / "base.gguf").exists():
        convert(weights_folder(resolve("embedded")), args.out / "base.partial.gguf")
        (args.out / "base.partial.gguf").rename(args.out / "base.gguf")
    if not (out / "adapter.gguf").exists():
        rng = random.Random(0)
        rows = [
            {"prompt": r["prompt"], "answer": rng.choice(told["refusals"])} for r in harmful(args.harmful, "train")[::2]
        ]
        rows += [{"prompt": p, "answer": a} for p, a in json.loads((out / "own.json").read_text())]
        rng.shuffle(rows)
        settings = replace(SFT, lr=5e-4, batch=8, max_tokens=160)
        facts = train_safe(resolve("embedded"), rows, [], settings, CONTROLS["sft"][0], ModelSettings(), out, 1)
        (out / "facts.json").write_text(json.dumps(facts))
        to_gguf(args, out)
    for name, lora in (("base", None), ("reference", out / "adapter.gguf")):
        figures = evaluate(args, lora, SEEDS, out / f"{name}.jsonl")
        (out / f"{name}.json").write_text(json.dumps(figures, indent=1))
        print(name, {k: v for k, v in figures.items() if k not in ("losses", "each")}, flush=True)


def to_gguf(args, folder: Path) -> None:
    from toolkit.export.gguf import adapter_to_gguf

    adapter_to_gguf(folder / "adapter", args.out / "base.gguf", folder / "making.gguf")
    (folder / "making.gguf").rename(folder / "adapter.gguf")


def sets(args, seeds: tuple[int, ...]) -> dict[str, list[Ask]]:
    """What models of these seeds are asked: each seed another part of the held-out requests."""
    bad = [Ask(r["id"], r["prompt"]) for r in harmful(args.harmful, "test")]
    safe = read_asks(args.lookalikes, "safe")
    dark = [p for p in read_premises(DATA / "dark_fiction.jsonl").rows if p.language == "en"]
    found = {"harmful": [], "lookalikes": [], "dark": []}
    for seed in seeds:
        at = seed - 1
        found["harmful"] += bad[at::3][:HARMFUL_ASKED]
        found["lookalikes"] += safe[at::3][:SAFE_ASKED]
        found["dark"] += [Ask(p.id, p.text, tuple(write_prompt(p))) for p in dark[at::9][:10]]
    return found


def evaluate(args, lora: Path | None, seeds: tuple[int, ...], path: Path) -> dict:
    """Shares of each set, and the loss (nats a token) of each held-out greeting."""
    from toolkit.engines.llama import LlamaEngine

    engine = LlamaEngine(args.out / "base.gguf", 4096, lora, 0)
    asks = sets(args, seeds)
    answer("model", lambda: engine, asks, path, ANSWER)
    losses = []
    for r in greetings("test")[:TASK]:
        ids, logps = engine.answer_logps([{"role": "user", "content": r["prompt"]}], r["answer"])
        losses.append(round(float(-logps[range(len(ids)), ids].mean()), 5))
    engine.close()
    rows = read_jsonl(path)
    found = {kind: shares([r for r in rows if r["set"] == kind]) for kind in asks}
    each = {kind: {r["id"]: classify(r["answer"]) for r in rows if r["set"] == kind} for kind in asks}
    return {**found, "loss": float(np.mean(losses)), "losses": losses, "each": each}


# ---- signals


def risks_of(args, point: Point, rows: list[dict]) -> list[float]:
    """Risk of each row by the control's signal; probe and critic are asked once for every row of the grid."""
    signal = CONTROLS[point.control][1]
    if not signal:  # nobody looks at them
        return [1.0] * len(rows)
    if signal == "oracle":
        return [float(r["harmful"]) for r in rows]
    known = {r["id"]: r for r in read_jsonl(args.out / "risks.jsonl")}
    pick = {
        "probe": lambda r: r["probe"],
        "critic": lambda r: r["critic"],
        "both": lambda r: max(r["probe"], r["critic"]),
    }
    return [pick[signal](known[r["id"]]) for r in rows]


def signals(args) -> None:
    """A probe of the reference, and the critic's score, for every row that any point trains on → risks.jsonl."""
    from toolkit.engines.load import load_engine
    from toolkit.safety.critic import critic_risk, criticise
    from toolkit.safety.probe import fit_probe, load_probe, probe_risks

    base, start = resolve("embedded"), args.out / "reference" / "adapter"
    rows = {r["id"]: r for r in harmful(args.harmful, "train")[1::2] + greetings("train")[:60]}
    told = json.loads((HERE / "safety_prompts.json").read_text())
    bad = [
        r["prompt"] for side in (harmful(args.harmful, "train")[::2], harmful(args.harmful, "validate")) for r in side
    ]
    good = told["benign"] + [r["prompt"] for r in greetings("validate")]
    good += [p.text for p in read_premises(DATA / "premises.jsonl").rows if p.language == "en"][:60]
    if not (args.out / "probe" / "probe.json").exists():
        fit_probe(bad, good, base, ModelSettings(), start).save(args.out / "probe")
    probe = load_probe(args.out / "probe", base, start)
    asked = list(rows.values())
    probed = probe_risks(probe, base, [r["prompt"] for r in asked], ModelSettings(), start)
    engine = load_engine(args.critic, on="cpu", n_ctx=8192)
    scores, facts = criticise(engine, asked, args.out / "critic.jsonl")
    engine.close()
    found = [
        {"id": r["id"], "probe": round(float(p), 5), "critic": round(critic_risk(s), 5), "score": round(s, 4)}
        for r, p, s in zip(asked, probed, scores, strict=True)
    ]
    (args.out / "risks.jsonl").write_text("".join(json.dumps(r) + "\n" for r in found))
    for name in ("probe", "critic"):
        of = [[r[name] for r in found if r["id"].startswith("advbench") == bad] for bad in (True, False)]
        print(name, "mean risk of harmful and benign rows:", *(round(float(np.mean(x)), 3) for x in of))
    print("probe", probe.layer, probe.pooling, probe.validation["auroc"], "critic", facts)


# ---- the grid


def _busy(folder: Path) -> bool:
    """Whether another process wrote there within the last three minutes."""
    return time.time() - max((p.stat().st_mtime for p in folder.glob("*")), default=0) < 180


def grid(args) -> None:
    from toolkit.safety.train import train_safe

    part, of = map(int, args.part.split("/"))
    begun = time.monotonic()
    for point in [p for p in points() if args.only in p.name][part::of]:
        folder = args.out / "points" / point.name
        if (folder / "point.json").exists() or _busy(folder):
            continue
        if time.monotonic() - begun > 60 * args.minutes:
            return
        rows = rows_of(point, args.harmful)
        if CONTROLS[point.control][1] in ("probe", "critic", "both") and not (args.out / "risks.jsonl").exists():
            continue
        risks = risks_of(args, point, rows)
        started = time.monotonic()
        if not (folder / "facts.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            settings, start = replace(SFT, lr=point.lr), args.out / "reference" / "adapter"
            held = CONTROLS[point.control][0]
            facts = train_safe(
                resolve("embedded"), rows, risks, settings, held, ModelSettings(), folder, point.seed, start
            )
            (folder / "facts.json").write_text(json.dumps(facts))
        facts, trained = json.loads((folder / "facts.json").read_text()), time.monotonic() - started
        for left in ("checkpoints", "tensorboard"):
            shutil.rmtree(folder / left, ignore_errors=True)
        to_gguf(args, folder)
        figures = evaluate(args, folder / "adapter.gguf", (point.seed,), folder / "answers.jsonl")
        seconds = [round(trained), round(time.monotonic() - started - trained)]
        found = {
            "lr": point.lr,
            "control": point.control,
            "seed": point.seed,
            **figures,
            "facts": facts,
            "seconds": seconds,
        }
        (folder / "point.json.partial").write_text(json.dumps(found))
        (folder / "point.json.partial").rename(folder / "point.json")
        shutil.rmtree(folder / "adapter")
        (folder / "adapter.gguf").unlink()
        brief = figures["harmful"][COMPLIANCE][0], figures["lookalikes"][REFUSAL][0], figures["dark"][REFUSAL][0]
        print(point.name, *brief, round(figures["loss"], 3), facts.get("beta"), seconds, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("reference", "signals", "grid"))
    parser.add_argument("--harmful", type=Path, default=Path("../shared/data/safety/advbench.jsonl"))
    parser.add_argument("--lookalikes", type=Path, default=Path("../shared/data/safety/xstest.jsonl"))
    parser.add_argument("--critic", default="embedded", help="engine that scores the rows")
    parser.add_argument("--out", type=Path, default=Path("runs/safety-grid"))
    parser.add_argument("--part", default="0/1", help="this process's share of the points: 0/2 and 1/2 share them")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no point after so many")
    parser.add_argument("--only", default="", help="only points whose name has this in it")
    args = parser.parse_args()
    {"reference": reference, "signals": signals, "grid": grid}[args.what](args)
