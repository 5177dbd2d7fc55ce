"""What a distance between two texts sees: the topic, or who wrote them.

    python benchmarks/embeddings.py ../shared/data/human-ratings/plots.jsonl [--model minilm --model stylometry]

Rows need `group` (the content plan) and `system` (who wrote). Printed is the chance (AUC) that a pair of different writers,
or of different topics, is farther apart than a pair of the same; the other of the two is held apart or equal.
"""

import argparse
import itertools
import json

from toolkit.hardware import prepare_environment

prepare_environment(offline=True)

from toolkit.models.embed import cosine_distances, embed  # noqa: E402
from toolkit.stats import auc as area  # noqa: E402
from toolkit.stats import two_sample_bootstrap  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("file")
parser.add_argument("--model", action="append")
args = parser.parse_args()
with open(args.file, encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]
print("| model | another writer, topics differ | another topic, one writer |\n|---|---|---|")
for model in args.model or ["minilm", "stylometry"]:
    found = cosine_distances(embed([r["text"] for r in rows], model))
    kinds: dict[str, list[float]] = {"same writer": [], "other writer": [], "same topic": [], "other topic": []}
    for i, j in itertools.combinations(range(len(rows)), 2):
        writer, topic = (rows[i][key] == rows[j][key] for key in ("system", "group"))
        if not topic:
            kinds["same writer" if writer else "other writer"].append(found[i, j])
        if writer:
            kinds["same topic" if topic else "other topic"].append(found[i, j])
    cells = []
    for name in ("writer", "topic"):
        other, same = kinds[f"other {name}"], kinds[f"same {name}"]
        value, low, high = two_sample_bootstrap(other, same, area, draws=200)
        cells.append(f"{100 * value:.0f} % ({100 * low:.0f}–{100 * high:.0f}; {len(other)} against {len(same)} pairs)")
    print(f"| {model} | {' | '.join(cells)} |")
