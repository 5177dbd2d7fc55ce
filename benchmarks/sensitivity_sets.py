"""Sets of good and bad texts out of a file of people's ratings, for `fablesmith sensitivity`.

    python benchmarks/sensitivity_sets.py ../shared/data/human-ratings/stories.jsonl --out runs/sets
    fablesmith sensitivity runs/sets/stories-top.jsonl runs/sets/stories-bottom.jsonl --model runs/quickstart/reward

Writes NAME-top and NAME-bottom (quarters by the mean of all aspects) and, where the file says who is human, NAME-human and
NAME-machine.
"""

import argparse
from pathlib import Path

import numpy as np

from toolkit.people import RatedText, read_people
from toolkit.records import Plot, write_jsonl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ratings", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/sets"))
    args = parser.parse_args()
    rows = read_people(args.ratings)
    value = np.array([np.mean(list(r.mean.values())) for r in rows])
    low, high = np.quantile(value, [0.25, 0.75])
    sets: dict[str, list[RatedText]] = {
        "top": [r for r, v in zip(rows, value, strict=True) if v >= high],
        "bottom": [r for r, v in zip(rows, value, strict=True) if v <= low],
    }
    if {"human", "machine"} <= {r.system for r in rows}:
        sets |= {who: [r for r in rows if r.system == who] for who in ("human", "machine")}
    args.out.mkdir(parents=True, exist_ok=True)
    for name, texts in sets.items():
        path = args.out / f"{args.ratings.stem}-{name}.jsonl"
        write_jsonl(path, [Plot(r.id, r.text) for r in texts])
        print(f"{path}: {len(texts)} texts")


if __name__ == "__main__":
    main()
