"""Preference losses compared: what each does to diversity and to quality, over training seeds, on one set of candidates.

    fablesmith run diverse-small --set premises.train=48 --set premises.test=24 --set candidates.per_premise=8 \
        --set candidates.max_tokens=80 --out runs/prep --until candidates
    python benchmarks/diversity.py train runs/prep --reward runs/quickstart --out runs/diversity
    python benchmarks/diversity.py lines runs/prep --out runs/diversity        # the frontier command for what stands

`train` makes one adapter a method and seed (GGUF, beside the base) and skips those that stand, so that it may be killed, or
run twice at once with `--part 0/2` and `--part 1/2`. All methods see the same candidates and as many pairs, one epoch.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

from toolkit.hardware import prepare_environment

prepare_environment(offline=True)

from toolkit.narrative.dimensions import KEYS  # noqa: E402
from toolkit.preference.deviation import deviations  # noqa: E402
from toolkit.preference.divpo import divpo_pairs  # noqa: E402
from toolkit.preference.pairs import by_premise, confident_pairs  # noqa: E402
from toolkit.recipe import DpoSettings, LoraSettings, ModelSettings  # noqa: E402
from toolkit.records import Plot, dump, read_jsonl  # noqa: E402
from toolkit.stages import base_model  # noqa: E402

BOTH = ("semantic", "style")
#       name: loss, kinds of deviation, floor, answers a premise (0: all), pairs
METHODS = {
    "dpo": ("dpo", (), 0.0, 0),
    "ddpo-both": ("ddpo", BOTH, 0.0, 0),
    "ddpo-semantic": ("ddpo", ("semantic",), 0.0, 0),
    "ddpo-style": ("ddpo", ("style",), 0.0, 0),
    "orpo": ("orpo", (), 0.0, 0),
    "dorpo": ("dorpo", BOTH, 0.0, 0),
    "divpo": ("dpo", BOTH, 0.0, 0),
    "ddpo-floor0.2": ("ddpo", BOTH, 0.2, 0),
    "dpo-of4": ("dpo", (), 0.0, 4),
    "ddpo-of4": ("ddpo", BOTH, 0.0, 4),
    "dpo-of2": ("dpo", (), 0.0, 2),  # DDPO of two answers is the same: every weight is 1
}
FEWER = 24  # pairs of the runs with fewer answers, and of their counterparts with all
METHODS |= {"dpo-of8": ("dpo", (), 0.0, 8), "ddpo-of8": ("ddpo", BOTH, 0.0, 8)}


def settings(loss: str) -> DpoSettings:
    return DpoSettings(
        loss=loss,
        lora=LoraSettings(16, 32, last_layers=12),
        lr=1e-3,
        epochs=1,
        batch=2,
        accumulate=1,
        gradient_checkpointing=False,
        save_every=1000,
    )


def material(prep: Path, reward: str, out: Path) -> tuple[list[Plot], dict]:
    """The candidates and their rewards (scored once)."""
    from toolkit.reward.model import load_reward_model

    plots, path = read_jsonl(prep / "candidates" / "candidates.jsonl", Plot), out / "scores.json"
    if not path.exists():
        values = load_reward_model(reward, dimensions=KEYS).score([p.text for p in plots], progress="reward")
        rows = {p.id: dict(zip(KEYS, map(float, v), strict=True)) for p, v in zip(plots, values, strict=True)}
        path.write_text(json.dumps(rows))
    return plots, json.loads(path.read_text())


def pairs_of(name: str, plots: list[Plot], scores: dict, count: int) -> tuple[list, list[float]]:
    """The pairs of a method, `count` at most, and each chosen answer's weight."""
    _, kinds, floor, answers = METHODS[name]
    if answers:
        plots = [p for _, group in by_premise(plots) for p in group[:answers]]
    groups = {premise: [(p.id, p.text) for p in group] for premise, group in by_premise(plots)}
    rows = deviations(groups, kinds or BOTH, floor, {"semantic": "minilm", "style": "stylometry"})
    limits = {"length_ratio": 1.5, "max_pairs": count, "per_premise": 2}
    if name == "divpo":
        found, _ = divpo_pairs(plots, scores, {r.id: r.rank for r in rows}, share=0.25, threshold=0.0, **limits)
    else:
        found, _ = confident_pairs(plots, scores, {}, margin=0.05, agree=0.6, prompts="ignore", **limits)
    weight = {r.id: r.weight for r in rows}
    return found, [weight[p.chosen_id] for p in found]


def train(args) -> None:
    from toolkit.export.gguf import adapter_to_gguf
    from toolkit.preference.dpo import train_dpo

    args.out.mkdir(parents=True, exist_ok=True)
    plots, scores = material(args.prep, args.reward, args.out)
    base = base_model(args.prep / "model")
    part, of = map(int, args.part.split("/"))
    jobs = [(name, seed) for seed in range(1, args.seeds + 1) for name in args.only or METHODS]
    for name, seed in jobs[part::of]:
        folder = args.out / f"{name}.s{seed}"
        if (folder / "adapter.gguf").exists():
            continue
        loss = METHODS[name][0]
        pairs, weights = pairs_of(name, plots, scores, args.pairs if not METHODS[name][3] else FEWER)
        started = time.monotonic()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        facts = train_dpo(base, pairs, settings(loss), ModelSettings(), folder, seed, weights)
        facts |= {"method": name, "seed": seed, "seconds": round(time.monotonic() - started), "weights": weights}
        (folder / "facts.json").write_text(json.dumps(facts))
        (folder / "pairs.jsonl").write_text("".join(dump(p) + "\n" for p in pairs))
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        adapter_to_gguf(base, folder / "adapter", base.gguf, folder / "making.gguf")
        (folder / "making.gguf").rename(folder / "adapter.gguf")
        print({k: v for k, v in facts.items() if k != "weights"}, flush=True)


def lines(args) -> None:
    base = (args.prep / "model" / "base.gguf").resolve()
    print(f"base={base}")
    for folder in sorted(args.out.glob("*.s?")):
        if (folder / "adapter.gguf").exists():
            print(f"{folder.name.rsplit('.', 1)[0]}={base}+{(folder / 'adapter.gguf').resolve()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "lines"))
    parser.add_argument("prep", type=Path)
    parser.add_argument("--reward", default="runs/quickstart")
    parser.add_argument("--out", type=Path, default=Path("runs/diversity"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--only", nargs="*", choices=list(METHODS))
    parser.add_argument("--part", default="0/1", help="this process's share of the jobs: 0/2 and 1/2 share them")
    args = parser.parse_args()
    {"train": train, "lines": lines}[args.what](args)
