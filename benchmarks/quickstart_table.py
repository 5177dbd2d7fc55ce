"""A finished run as the Markdown tables of docs/results.md.

python benchmarks/quickstart_table.py runs/quickstart
"""

import argparse
import json
from pathlib import Path

from toolkit.evaluate.report import verdict_lines
from toolkit.narrative.dimensions import DIMENSIONS


def percent(found: list | None) -> str:
    if not found:
        return "no pairs"
    value, low, high = (100 * x for x in found)
    return f"{value:.0f} ({low:.0f}–{high:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    manifest = json.loads((parser.parse_args().run / "manifest.json").read_text())
    cards = {c["stage"]: c for c in manifest["stages"]}
    print(
        f"{manifest['machine']['system']}, {manifest['machine']['cores']} cores; "
        + ", ".join(f"{k} {v}" for k, v in manifest["versions"].items())
    )
    print("\n| stage | seconds | peak memory, GB |\n|---|---|---|")
    for name, card in cards.items():
        print(f"| {name} | {card['seconds']:.0f} | {card['peak_gb']:.1f} |")
    print(
        f"| **whole** | **{sum(c['seconds'] for c in cards.values()):.0f}** | **{max(c['peak_gb'] for c in cards.values()):.1f}** |"
    )
    reward = cards["reward"]["facts"]
    held_out = reward["held_out"]
    print(
        f"\nReward model ({reward['dtype']}), {reward['held_out_texts']} texts of held-out premises; pairs ordered rightly, % (95 % interval):\n"
    )
    print("| dimension | reward model | untrained | length only | Spearman in a group |\n|---|---|---|---|---|")
    for d in DIMENSIONS:
        cells = [percent(held_out[n][d.key]["accuracy"]) for n in ("reward model", "untrained", "length only")]
        print(f"| {d.name} | " + " | ".join(cells) + f" | {held_out['reward model'][d.key]['spearman'][0]:.2f} |")
    labels = ", ".join(f"{k} {100 * v:.0f} %" for k, v in reward["labels_from"].items())
    print(f"\nLabels: {labels}.")
    check = cards["ratings"]["facts"]["rater_check"]
    print(
        f"The rater orders a plot and its damage rightly in {percent(check['right'])} % of {check['comparisons']} comparisons."
    )
    pairs = cards["pairs"]["facts"]
    print(f"Pairs: {pairs['pairs']} kept, {sum(pairs['rejected'].values())} left out ({pairs['rejected']}).")
    dpo = cards["dpo"]["facts"]
    print(
        f"DPO: {dpo['steps']} steps; first and last loss {dpo['loss']}, margin {dpo['margin']}, accuracy {dpo['accuracy']}."
    )
    proof = cards["export"]["facts"]["proof"]
    kept = (
        "f16_mean_difference",
        "mean_difference",
        "tolerance",
        "mean_change_from_base",
        "adapter_change_correlation",
    )
    print("Export proof: " + ", ".join(f"{k} {proof[k]}" for k in kept) + ".")
    evaluation = cards["evaluate"]["facts"]
    print(
        f"\nBase against aligned, {evaluation['pairs']} pairs on {evaluation['premises']} unseen premises; aligned wins, %, every answer of the judge counted:\n"
    )
    print("| " + " | ".join(["overall", *(d.name for d in DIMENSIONS), "lean", "order decided", "longer wins"]) + " |")
    print("|---" * (len(DIMENSIONS) + 4) + "|")
    cells = [
        percent(evaluation["raw_win_rate"]),
        *(percent(evaluation["raw_win_rate_by_dimension"][d.key]) for d in DIMENSIONS),
    ]
    longer = evaluation["longer_wins"]
    cells += [
        percent(evaluation["lean_rate"]),
        f"{100 * evaluation['ties_by_order']:.0f}",
        "–" if longer is None else f"{100 * longer:.0f}",
    ]
    print("| " + " | ".join(cells) + " |\n")
    print("\n".join(verdict_lines(evaluation)))


if __name__ == "__main__":
    main()
