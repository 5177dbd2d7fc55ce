"""How well a run's reward model agrees with people, beside what length alone and one more person reach.

    python benchmarks/human_ratings.py runs/quickstart ../shared/data/human-ratings/plots.jsonl

Prints a Markdown table: Spearman with a 95 % bootstrap interval over texts. "Within generators" is the mean of the
correlations inside each system's texts, since knowing which generator wrote a text already tells much.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from toolkit.narrative.dimensions import KEYS
from toolkit.stats import spearman, spearman_interval


def interval(mine, people) -> str:
    value, low, high = spearman_interval(mine, people)
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


def within(mine, people, systems) -> float:
    found = [spearman(mine[systems == s], people[systems == s]) for s in sorted(set(systems))]
    return float(np.nanmean(found))


def one_against_the_rest(ratings: list[list[float]]) -> float:
    """Mean Spearman of one rater with the mean of the others, over which one it is."""
    table = np.array([r for r in ratings if len(r) == max(map(len, ratings))], dtype=float)
    columns = range(table.shape[1])
    return float(np.mean([spearman(table[:, i], np.delete(table, i, axis=1).mean(1)) for i in columns]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run that trained a reward model")
    parser.add_argument("ratings", type=Path, help="JSONL with text, ratings {aspect: [person, …]}, mean, system")
    args = parser.parse_args()
    from toolkit import load_reward_model

    rows = [json.loads(line) for line in args.ratings.read_text(encoding="utf-8").splitlines()]
    texts, systems = [r["text"] for r in rows], np.array([r.get("system", "") for r in rows])
    scores = load_reward_model(args.run).score(texts, progress="scoring")
    lengths = np.array([len(t) for t in texts], dtype=float)
    aspects = sorted(rows[0]["mean"])
    overall = np.mean([[r["mean"][a] for a in aspects] for r in rows], axis=1)
    print(f"{len(rows)} texts of {args.ratings.name}, {len(set(systems))} generators; reward model of {args.run}\n")
    print(
        "| people's rating | reward model's | Spearman | within generators | length alone | one person against the rest |"
    )
    print("|---|---|---|---|---|---|")
    coherence = KEYS.index("coherence")
    for aspect in [*aspects, "overall"]:
        people = overall if aspect == "overall" else np.array([r["mean"][aspect] for r in rows])
        picked = aspects if aspect == "overall" else [aspect]
        rater_rows = [np.mean([r["ratings"][a] for a in picked], axis=0).tolist() for r in rows]
        for name, mine in (("coherence", scores[:, coherence]), ("mean of five", scores.mean(1))):
            if aspect not in ("coherence", "overall") and name == "coherence":
                continue
            print(
                f"| {aspect} | {name} | {interval(mine, people)} | {within(mine, people, systems):+.2f} | "
                f"{interval(lengths, people)} | {one_against_the_rest(rater_rows):+.2f} |"
            )


if __name__ == "__main__":
    main()
