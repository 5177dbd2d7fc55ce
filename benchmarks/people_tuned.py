"""How well a reward model trained on people's ratings agrees with people on content plans it has not seen.

    python benchmarks/people_tuned.py ../shared/data/human-ratings/plots.jsonl

Prints a Markdown table. Spearman is the mean over the fold seeds, its 95 % interval from drawing whole groups of texts;
"within generators" is inside each (generator, fold), since folds differ by their training mean. With
--epochs 3 LoRA follows on the closed-form head; folds that are on disk (--work) are not trained again.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from toolkit.hardware import prepare_environment


def over_seeds(columns: np.ndarray, groups: list[str]) -> tuple[float, float, float]:
    """Mean Spearman of the columns 1 … with column 0, [value, low, high]. columns (N, 1 + S)."""
    from toolkit.stats import cluster_bootstrap, spearman

    names = np.array(groups)
    rows = [columns[names == g] for g in sorted(set(groups))]
    mean = lambda r: float(np.mean([spearman(r[:, s], r[:, 0]) for s in range(1, r.shape[1])]))  # noqa: E731
    return cluster_bootstrap(rows, mean, draws=1000)


def gain(tuned: np.ndarray, ridge: np.ndarray, people: np.ndarray, groups: list[str]) -> tuple[float, float, float]:
    """Mean over seeds of (Spearman of tuned − of ridge), [value, low, high]. tuned, ridge (N, S)."""
    from toolkit.stats import cluster_bootstrap, spearman

    names, seeds = np.array(groups), tuned.shape[1]
    both = np.concatenate([people[:, None], tuned, ridge], axis=1)
    rho = lambda r, first: np.mean([spearman(r[:, first + s], r[:, 0]) for s in range(seeds)])  # noqa: E731
    rows = [both[names == g] for g in sorted(set(groups))]
    return cluster_bootstrap(rows, lambda r: float(rho(r, 1) - rho(r, 1 + seeds)), draws=1000)


def show(value) -> str:
    return "–" if value is None else f"{value[0]:+.2f} ({value[1]:+.2f} to {value[2]:+.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "ratings", type=Path, help="JSONL with text, ratings {aspect: [person, …]} or mean, group, system"
    )
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=0.0, help="passes of LoRA; 0 is the closed-form head")
    parser.add_argument("--seeds", type=int, default=3, help="how many ways to cut the folds")
    parser.add_argument("--work", type=Path, default=Path("runs/people-tuned"), help="where folds are kept")
    args = parser.parse_args()
    prepare_environment()
    from toolkit.reward.people import SETTINGS, baselines, cross_validate, figures, fold_of, study

    begun = time.monotonic()
    it = study(args.ratings, args.work, args.base, replace(SETTINGS, epochs=args.epochs))
    rated, every = it.rated, []
    for seed in range(1, args.seeds + 1):
        fold = fold_of(rated.groups, args.folds, seed)
        scores = {"model": cross_validate(it, args.folds, seed), **baselines(it, fold)}
        every.append((scores, figures(rated, scores, fold)))
    print(
        f"{len(rated.texts)} texts of {args.ratings.name}, {len(set(rated.groups))} groups, {args.folds} folds cut "
        f"{args.seeds} ways; base {args.base}; {(time.monotonic() - begun) / 60:.0f} min\n"
    )
    print("| people's rating | by | Spearman | above ridge | within generators |\n|---|---|---|---|---|")
    for d, aspect in enumerate(rated.dimensions):
        people = rated.targets[:, d]
        column = lambda name: np.stack([scores[name][:, d] for scores, _ in every], axis=1)  # noqa: E731, B023
        for name in every[0][0]:
            inside = [found[aspect]["within"][name] for _, found in every]
            table = np.concatenate([people[:, None], column(name)], axis=1)
            above = (
                show(gain(column(name), column("ridge"), people, rated.groups))
                if name in ("model", "before LoRA")
                else ""
            )
            mean = None if None in inside else np.mean(inside, axis=0)
            print(f"| {aspect} | {name} | {show(over_seeds(table, rated.groups))} | {above} | {show(mean)} |")
        found = every[0][1][aspect]
        one = [found["one rater"], found["one rater within"]]
        print(
            f"| {aspect} | one rater against the rest | "
            + " | | ".join("–" if v is None else f"{v:+.2f}" for v in one)
            + " |"
        )


if __name__ == "__main__":
    main()
