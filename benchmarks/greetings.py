"""Two rewards, one policy: GRPO by the reward model, by the principle-guided judge and by both, beside DPO, cold start, best of four.

    fablesmith run greetings-small --set 'grpo.rewards=[model,judge]' --set 'grpo.weights=[1,1]' --until principles --out runs/greet
    python benchmarks/greetings.py train runs/greet --out runs/greetings-compared      # or twice at once: --part 0/2, --part 1/2
    python benchmarks/greetings.py write runs/greet --out runs/greetings-compared
    python benchmarks/greetings.py table runs/greet --out runs/greetings-compared

Every policy starts from the same cold start and sees the same requests; what stands is skipped, so that it may be killed.
Answers of a method's training seeds are measured together, clustered by request; each seed's own figures stand beside.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

from toolkit.hardware import prepare_environment, release_memory

prepare_environment(offline=True)


from toolkit import greeting_stages as G  # noqa: E402
from toolkit.recipe import Recipe, load_recipe  # noqa: E402
from toolkit.records import Request, read_jsonl  # noqa: E402
from toolkit.runner import Work  # noqa: E402

#        name: aligned by, rewards
METHODS = {
    "grpo-model": ("grpo", ("model",)),
    "grpo-judge": ("grpo", ("judge",)),
    "grpo-both": ("grpo", ("model", "judge")),
    "dpo": ("dpo", ()),
    "grpo-shuffled": ("grpo", ("model",)),  # control: the same rewards, given to other answers
}
STAGES = ("model", "requests", "sft", "rejection", "pairs", "pairwise", "unseen", "principles")


def recipe_of(args, name: str = "", seed: int = 1) -> Recipe:
    recipe = load_recipe(args.recipe, args.set)
    if not name:
        return recipe
    align, rewards = METHODS[name]
    grpo = dataclasses.replace(recipe.grpo, rewards=rewards or ("model",), weights=(1.0,) * max(1, len(rewards)))
    return dataclasses.replace(recipe, align=align, seed=seed, grpo=grpo)


def train(args) -> None:
    from toolkit.export.gguf import adapter_to_gguf
    from toolkit.stages import base_model

    part, of = map(int, args.part.split("/"))
    base = base_model(args.prep / "model")
    jobs = [(name, seed) for seed in args.seeds for name in args.only or METHODS]
    for name, seed in jobs[part::of]:
        folder = args.out / f"{name}.s{seed}"
        if (folder / "adapter.gguf").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        recipe, work = recipe_of(args, name, seed), Work(args.prep, folder, STAGES)
        if name == "grpo-shuffled":
            _shuffle_rewards(seed)
        print(f"{folder.name} …", flush=True)
        started = time.monotonic()
        facts = getattr(G, recipe.align)(recipe, work)
        if name == "grpo-shuffled":
            G.rewards_of = _REWARDS
        adapter_to_gguf(folder / "adapter", base.gguf, folder / "adapter.part")
        facts = {"method": name, "seed": seed, "minutes": round((time.monotonic() - started) / 60, 2), **facts}
        (folder / "facts.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False, default=str))
        (folder / "adapter.part").rename(folder / "adapter.gguf")
        release_memory()  # three trainings in one process were killed for 12 GB


_REWARDS = G.rewards_of


def _shuffle_rewards(seed: int) -> None:
    """Rewards reach another answer of the same call: the machinery without the signal."""
    import random

    chance = random.Random(seed)

    def shuffled(recipe, work, cast, names):
        def mixed(score):
            return lambda asked, answers: chance.sample(list(score(asked, answers)), len(answers))

        return {name: mixed(score) for name, score in _REWARDS(recipe, work, cast, names).items()}

    G.rewards_of = shuffled


def write(args) -> None:
    """answers.jsonl of every adapter that stands, of the base and of the cold start."""
    from toolkit.engines.load import load_engine
    from toolkit.stages import base_model

    recipe, base = recipe_of(args), base_model(args.prep / "model")
    todo = read_jsonl(args.prep / "requests" / "test.jsonl", Request)
    n = recipe.evaluate.per_premise
    part, of = map(int, args.part.split("/"))
    writers = {"base": (None, n), "sft": (args.prep / "sft" / "adapter.gguf", n * recipe.evaluate.best_of)}
    writers |= {p.parent.name: (p, n) for p in sorted(args.out.glob("*/adapter.gguf"))}
    for name, (lora, count) in list(writers.items())[part::of]:
        path = args.out / f"answers.{name}.jsonl"
        have = {row["request_id"] for row in read_jsonl(path)}
        left = [r for r in todo if r.id not in have]
        if left:
            engine = load_engine(base.gguf, lora=lora)
            G.write_answers(engine, name, left, count, recipe, path)
            engine.close()


def once(score):
    """A scorer that is asked about each answer once: the small judge takes half a second for one."""
    known: dict[tuple[str, str], float | None] = {}

    def asked(requests, answers):
        new = [key for key in dict.fromkeys(zip(requests, answers, strict=True)) if key not in known]
        if new:
            known.update(zip(new, score([r for r, _ in new], [a for _, a in new]), strict=True))
        return [known[key] for key in zip(requests, answers, strict=True)]

    return asked


def table(args) -> None:
    from toolkit.evaluate.greetings import verdict_lines
    from toolkit.evaluate.unseen import Unseen

    recipe, work = recipe_of(args), Work(args.prep, args.out, STAGES)
    todo, n = read_jsonl(args.prep / "requests" / "test.jsonl", Request), recipe.evaluate.per_premise
    cast = G.Cast(work)
    scorers = {name: once(score) for name, score in G.rewards_of(recipe, work, cast, tuple(args.scorers)).items()}
    rows = {p.name[len("answers.") : -len(".jsonl")]: read_jsonl(p) for p in sorted(args.out.glob("answers.*.jsonl"))}
    of = {method: [name for name in rows if name.rsplit(".s", 1)[0] == method] for method in ("base", "sft", *METHODS)}
    writers, each = [], {}
    for method, names in of.items():
        mine = [G.writer_of(name, rows[name], n) for name in names]
        if mine:
            answers = {r.id: [t for w in mine for t in w.answers[r.id]] for r in todo}
            writers.append(dataclasses.replace(mine[0], name=method, answers=answers))
            each[method] = mine
    writers += [G.best_by(name, score, rows["sft"], todo, recipe.evaluate.best_of) for name, score in scorers.items()]
    judge = Unseen.load(args.prep / "unseen" / "judge")
    facts = G.compare(writers, todo, scorers, judge, recipe.seed)
    (args.out / "figures.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False))
    print("\n".join(verdict_lines(facts)) + "\n")
    head = [
        "writer",
        *(f"{s}, Δ" for s in scorers),
        "unseen judge wins",
        "at equal length",
        "diversity Δ",
        "length",
        "broken",
        "s",
    ]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    show = lambda v: "–" if not v or v[0] is None else f"{v[0]:+.2f} ({v[1]:+.2f} to {v[2]:+.2f})"  # noqa: E731
    part = lambda v: "–" if not v or v[0] is None else f"{v[0]:.0%} ({v[1]:.0%}–{v[2]:.0%})"  # noqa: E731
    for w in facts["writers"]:
        unseen = w["unseen"] or {}
        cells = [show(w["scores"][s].get("difference")) for s in scorers]
        cells += [
            part(unseen.get("wins")),
            part(unseen.get("length_controlled")),
            show(w["diversity"].get("difference")),
        ]
        cells += [
            ", ".join(f"{v['length'][0]:.1f}" for v in w["by_language"].values()),
            part((w["broken"] or {}).get("share")),
            f"{w['seconds']:.0f}",
        ]
        print("| " + " | ".join([w["name"], *cells]) + " |")
    for method, names in of.items():
        found = [json.loads((args.out / m / "facts.json").read_text()) for m in names if "." in m]
        if found:
            minutes = ", ".join(f"{f['minutes']:.1f}" for f in found)
            tripped = ", ".join(str((f.get("tripwire") or {}).get("tripped")) for f in found)
            print(f"{method}: {minutes} minutes; tripped at {tripped}")
            seeds = [dataclasses.replace(w, name=m) for w, m in zip(each[method], names, strict=True)]
            alone = G.compare([G.writer_of("sft", rows["sft"], n), *seeds], todo, scorers, judge, 1)
            for w in alone["writers"][1:]:
                moved = {s: w["scores"][s]["difference"] for s in scorers}
                print("  ", w["name"], moved, (w["unseen"] or {}).get("wins"), w["diversity"]["difference"])
    cast.close()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("train", "write", "table"))
    p.add_argument("prep", type=Path, help="a run of greetings-small, as far as `principles`")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--recipe", default="greetings-small")
    p.add_argument("--set", action="append", default=[])
    p.add_argument("--seeds", type=lambda s: [int(x) for x in s.split(",")], default=[1, 2, 3])
    p.add_argument("--only", nargs="*", choices=tuple(METHODS))
    p.add_argument("--scorers", nargs="+", choices=("model", "judge"), default=["model", "judge"])
    p.add_argument("--part", default="0/1", metavar="I/N")
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    {"train": train, "write": write, "table": table}[args.what](args)


if __name__ == "__main__":
    main()
