"""Preference losses compared: what each does to diversity and to quality, over training seeds, on one set of candidates.

    fablesmith run diverse-small --set premises.train=48 --set premises.test=24 --set candidates.per_premise=8 \
        --set candidates.max_tokens=80 --out runs/prep --until candidates
    python benchmarks/diversity.py train runs/prep --reward runs/quickstart --out runs/diversity
    fablesmith frontier $(python benchmarks/diversity.py writers runs/prep --out runs/diversity) --temperatures 1.0 \
        --samples 8 --most 20 --max-tokens 80 --reward runs/quickstart --out runs/diversity/frontier
    python benchmarks/diversity.py table runs/prep --out runs/diversity

`train` makes one adapter a method and seed (GGUF, beside the base) and skips those that stand, so that it may be killed, or
run twice at once with `--part 0/2` and `--part 1/2`. All methods see the same candidates and as many pairs, one epoch.
"""

import argparse
import json
import random
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
from toolkit.records import Plot, dump, read_jsonl, text_id  # noqa: E402
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
    "ddpo-shuffled": ("ddpo", BOTH, 0.0, 0),  # control: the same weights, each on another pair
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
        if name == "ddpo-shuffled":
            random.Random(seed).shuffle(weights)
        started = time.monotonic()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        facts = train_dpo(base, pairs, settings(loss), ModelSettings(), folder, seed, weights)
        facts |= {"method": name, "seed": seed, "seconds": round(time.monotonic() - started), "weights": weights}
        (folder / "facts.json").write_text(json.dumps(facts))
        (folder / "pairs.jsonl").write_text("".join(dump(p) + "\n" for p in pairs))
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        adapter_to_gguf(folder / "adapter", base.gguf, folder / "making.gguf")
        (folder / "making.gguf").rename(folder / "adapter.gguf")
        print({k: v for k, v in facts.items() if k != "weights"}, flush=True)


def writers(args) -> None:
    """The arguments of `fablesmith frontier` for what was trained; DPO first, so that all are held against it."""
    base = (args.prep / "model" / "base.gguf").resolve()
    made = sorted(args.out.glob("*.s?"), key=lambda p: list(METHODS).index(p.name.rsplit(".", 1)[0]))
    made = [p for p in made if (p / "adapter.gguf").exists() and (p.name.rsplit(".", 1)[0] in (args.only or METHODS))]
    out = [f"{p.name.rsplit('.', 1)[0]}={base}+{(p / 'adapter.gguf').resolve()}" for p in made]
    print("\n".join([*out, f"base={base}@t0.6,0.8,1.0,1.2,1.4", f"base-angles={base}@angles"]))


def table(args) -> None:
    """Figures of the last `frontier`, with what is left of the reward at equal length, as Markdown."""
    import numpy as np

    from toolkit.cli_diversity import reward_weights
    from toolkit.evaluate.frontier import Draws, triple
    from toolkit.reward.model import reward_folder

    folder = args.out / "frontier"
    found = json.loads((folder / "frontier.json").read_text())
    first = found["first"]
    rater = f"reward {reward_weights(reward_folder(args.reward))}"
    rating = {r["text"]: r["rating"] for r in read_jsonl(folder / "quality.jsonl") if r["rater"] == rater}
    rows = [r for r in read_jsonl(folder / "plots.jsonl") if rating.get(text_id(r["text"])) is not None]
    name_of = {identity: name for name, ids in found["writers"].items() for identity in ids}
    length = lambda r: np.log(len(r["text"].split()))  # noqa: E731
    plain = [r for r in rows if name_of.get(r["origin"]) == "base"]
    slope = np.polyfit([length(r) for r in plain], [rating[text_id(r["text"])] for r in plain], 1)
    premises = sorted({r["premise_id"] for r in rows})
    points = [(p["writer"], p["temperature"]) for p in found["points"]]
    draws = Draws({name: len(ids) for name, ids in found["writers"].items()}, len(premises))
    profiles = {}
    for name, temperature in points:
        cells: dict[tuple[int, int], list[float]] = {}
        for r in rows:
            if name_of.get(r["origin"]) == name and r["sampling"]["temperature"] == temperature:
                place = found["writers"][name].index(r["origin"]), premises.index(r["premise_id"])
                cells.setdefault(place, []).append(rating[text_id(r["text"])] - np.polyval(slope, length(r)))
        values = np.full((len(found["writers"][name]), len(premises)), np.nan)
        for place, rest in cells.items():
            values[place] = np.mean(rest)
        profiles[name, temperature] = draws.profile(name, values)
    shown = ("reward", "semantic", "style", "vendi", "distinct_2", "self_bleu", "words")
    print(f"reward = {slope[0]:.2f} · ln(words) + {slope[1]:.2f} on the base's texts\n")
    print("| writer | t | seeds | " + " | ".join([*shown, "reward at equal length"]) + " |")
    print("|" + "---|" * (len(shown) + 4))
    for p in found["points"]:
        rest = triple(draws.mean(profiles[p["writer"], p["temperature"]]))
        cells = [_span(p["figures"][m], 1 if m == "words" else 2) for m in shown] + [_span(rest, 2, "+")]
        print(f"| {p['writer']} | {p['temperature']:g} | {p['seeds']} | " + " | ".join(cells) + " |")
    print(f"\nAgainst {first} at the same setting, paired by premise:\n")
    print("| writer | t | " + " | ".join([*shown, "reward at equal length"]) + " |")
    print("|" + "---|" * (len(shown) + 3))
    for p in found["against"]:
        at = p["temperature"]
        rest = triple(draws.mean(profiles[p["writer"], at] - profiles[first, at]))
        cells = [_span(p["figures"][m], 1 if m == "words" else 3, "+") for m in shown] + [_span(rest, 3, "+")]
        print(f"| {p['writer']} | {at:g} | " + " | ".join(cells) + " |")


def _span(found: list, digits: int, sign: str = "") -> str:
    value, low, high = found
    if value is None:
        return "–"
    return f"{value:{sign}.{digits}f}" + (
        f" ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})" if low is not None else ""
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "writers", "table"))
    parser.add_argument("prep", type=Path)
    parser.add_argument("--reward", default="runs/quickstart")
    parser.add_argument("--out", type=Path, default=Path("runs/diversity"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--only", nargs="*", choices=list(METHODS))
    parser.add_argument("--part", default="0/1", help="this process's share of the jobs: 0/2 and 1/2 share them")
    args = parser.parse_args()
    {"train": train, "writers": writers, "table": table}[args.what](args)
