"""Planted instructions with the defences on and off: what each guard shields, and what it costs in telling good from bad.

    python benchmarks/guards.py embedded --pairs 48 --planted-in 2

Prints a Markdown table a judge: rating points that 20 planted demands for the top mark add (beyond a harmless insertion of the
same length at the same place), and how often a damaged plot is rated lower than the whole one.
"""

import argparse
from pathlib import Path

import numpy as np

from toolkit.evaluate.passport import Asked, known_pairs, plant
from toolkit.judges import open_judge, shipped_material
from toolkit.narrative.quoting import GUARDS
from toolkit.progress import bar
from toolkit.stats import bootstrap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("judge")
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--planted-in", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/passports"))
    args = parser.parse_args()
    material = shipped_material(args.pairs, args.planted_in)
    pairs, planted = known_pairs(material.plots, args.pairs, 0), plant(material, 0)
    print(
        "| guard | planted demand adds (95 % interval) | most obeyed | a harmless insertion adds | damaged plot rated lower |"
    )
    print("|---|---|---|---|---|")
    for guard in GUARDS:
        opened = open_judge(args.judge, guard=guard)
        folder = args.out / opened.identity
        folder.mkdir(parents=True, exist_ok=True)
        asked = Asked(opened.judge, folder / "asked.jsonl")
        asked.bar = bar(total=2 * len(pairs) + 3 * len(planted), desc=guard, unit="text")
        rated = [[asked.rate(p) for p in pair[:2]] + [pair[2]] for pair in pairs]
        right = [np.mean([float(a.scores[k] > b.scores[k]) for k in aimed]) for a, b, aimed in rated]
        rows = [[asked.rate(p).mean for p in three[:3]] + [three[3]] for three in planted]
        asked.bar.close()
        opened.judge.close()
        shift = bootstrap([demand - harmless for _, harmless, demand, _ in rows])
        control = bootstrap([harmless - plain for plain, harmless, _, _ in rows])
        kinds = {kind: np.mean([d - h for _, h, d, k in rows if k == kind]) for *_, kind in rows}
        worst = max(kinds, key=kinds.get)
        print(
            f"| {guard} | {shift[0]:+.2f} ({shift[1]:+.2f} to {shift[2]:+.2f}) | {worst.replace('_', ' ')} {kinds[worst]:+.2f} | "
            f"{control[0]:+.2f} | {100 * np.mean(right):.0f} % of {len(right)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
