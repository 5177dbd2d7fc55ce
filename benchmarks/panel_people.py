"""Does debate help? The panel beside the single call of the same model, against people.

    python benchmarks/panel_people.py ../shared/data/human-ratings/plots.jsonl --model embedded --texts 24

Takes the first texts of the file in the order of a hash (no picking), and prints what the panel dropped and a table of
Spearman with people, for both.
"""

import argparse
import hashlib
from pathlib import Path

from toolkit.engines.load import load_engine
from toolkit.evaluate.panel import sit, summarise_panel
from toolkit.evaluate.passport import SAME_QUESTION
from toolkit.people import read_people
from toolkit.records import Plot
from toolkit.stats import spearman_interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ratings", type=Path)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--texts", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("runs/panel"))
    args = parser.parse_args()
    rows = sorted(read_people(args.ratings), key=lambda r: hashlib.sha256(r.id.encode()).hexdigest())[: args.texts]
    args.out.mkdir(parents=True, exist_ok=True)
    plots = [Plot(r.id, r.text) for r in rows]
    members = {args.model: lambda: load_engine(args.model, n_ctx=8192)}
    heard = sit(members, plots, args.out / f"{args.ratings.stem}.jsonl")
    facts = summarise_panel(heard, {p.id: "texts" for p in plots})
    print(
        f"{facts['kept']} of {facts['claims']} claims could be quoted; dropped: {facts['dropped']}; {facts['malformed']} unreadable"
    )
    print("\n| people's rating | panel | single call |\n|---|---|---|")
    both = [(r, o) for r, o in zip(rows, heard, strict=True) if o.scores]
    for aspect in rows[0].mean:
        key, cells = SAME_QUESTION.get(aspect), []
        for which in ("scores", "single"):
            mine = [getattr(o, which)[key] if key else sum(getattr(o, which).values()) / 5 for _, o in both]
            value, low, high = spearman_interval(mine, [r.mean[aspect] for r, _ in both])
            cells.append(f"{value:+.2f} ({low:+.2f} to {high:+.2f})")
        print(f"| {aspect}, {key or 'mean of five'} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
