"""How judges agree with people, beside what length, the language model's likelihood and one more person reach.

    python benchmarks/human_ratings.py ../shared/data/human-ratings/*.jsonl --judge runs/quickstart/reward --judge embedded

Prints a Markdown table a file: Spearman with a 95 % bootstrap interval over texts, the mean correlation inside each
writer's texts (knowing who wrote a text already tells much), pair accuracy within a prompt, and quadratic-weighted kappa.
What was asked is kept in --out, where `fablesmith passport` keeps it too: nothing is asked twice.
"""

import argparse
from pathlib import Path

import numpy as np

from toolkit.evaluate.passport import SAME_QUESTION, Asked, against_people
from toolkit.judges import open_judge
from toolkit.narrative.dimensions import KEYS
from toolkit.people import RatedText, read_people
from toolkit.progress import bar
from toolkit.records import AspectRatings, Plot, append_jsonl, read_jsonl


def as_ratings(rows: list[RatedText], values: np.ndarray) -> list[tuple[RatedText, AspectRatings]]:
    """One value a text, as if a judge had given it for every dimension; put on 1 … 10, so that kappa means something."""
    scaled = 1 + 9 * (values - values.min()) / (np.ptp(values) or 1)
    return [(r, AspectRatings(r.id, dict.fromkeys(KEYS, float(v)))) for r, v in zip(rows, scaled, strict=True)]


def likelihoods(rows: list[RatedText], path: Path) -> np.ndarray:
    """Mean log-probability (nats a token) that the embedded model gives each text."""
    from toolkit.engines.load import load_engine

    known = {row["id"]: row["logp"] for row in read_jsonl(path)}
    if any(r.id not in known for r in rows):
        engine = load_engine("embedded", n_ctx=8192)
        for r in bar(rows, total=len(rows), desc="likelihood", unit="text"):
            if r.id not in known:
                known[r.id] = float(engine.logps(engine.tokenize(r.text, special=False)).mean())
                append_jsonl(path, [{"id": r.id, "logp": known[r.id]}])
        engine.close()
    return np.array([known[r.id] for r in rows])


def interval(found: list | None, percent: bool = False) -> str:
    if found is None or found[0] != found[0]:
        return "–"
    value, low, high = found
    return (
        f"{100 * value:.0f} % ({100 * low:.0f}–{100 * high:.0f})"
        if percent
        else f"{value:+.2f} ({low:+.2f} to {high:+.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "ratings", type=Path, nargs="+", help="JSONL with people's ratings (toolkit.people.read_people)"
    )
    parser.add_argument("--judge", action="append", default=[], help="what open_judge takes; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("runs/passports"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for path in args.ratings:
        rows = read_people(path)
        raters = {}
        for spec in args.judge:
            opened = open_judge(spec)
            asked = Asked(opened.judge, args.out / opened.identity / "asked.jsonl")  # what a passport asked counts too
            asked.path.parent.mkdir(exist_ok=True)
            asked.bar = bar(total=len(rows), desc=path.stem, unit="text")
            raters[spec] = [(r, asked.rate(Plot(f"{path.stem}:{r.id}", r.text))) for r in rows]
            asked.bar.close()
            opened.judge.close()
        raters["likelihood"] = as_ratings(rows, likelihoods(rows, args.out / f"{path.stem}-likelihood.jsonl"))
        raters["length alone"] = as_ratings(rows, np.array([len(r.text) for r in rows], float))
        writers = len({r.system for r in rows if r.system})
        print(
            f"\n{len(rows)} texts of {path.name}, {len({r.group for r in rows})} prompts, {writers or 'unnamed'} writers\n"
        )
        print("| people's rating | rater | Spearman | within writers | pairs of one prompt ordered rightly | kappa |")
        print("|---|---|---|---|---|---|")
        for aspect in rows[0].mean:
            for name, scored in raters.items():
                f = against_people([x for x in scored if not x[1].error])[aspect]
                what = (
                    "" if name in ("likelihood", "length alone") else f", {SAME_QUESTION.get(aspect, 'mean of five')}"
                )
                within = "–" if f["within"] is None else f"{f['within']:+.2f}"
                pairs = f"{interval(f['accuracy'], True)} of {f['pairs']}" if f["pairs"] >= 10 else "–"
                print(
                    f"| {aspect} | {name}{what} | {interval(f['spearman'])} | {within} | {pairs} | {f['kappa']:+.2f} |"
                )
            rest = f["rest"]
            print(f"| {aspect} | one person against the rest | {'–' if rest is None else f'{rest:+.2f}'} | | | |")
        unrated = {name: [a.error for _, a in scored if a.error] for name, scored in raters.items()}
        for name, errors in unrated.items():
            if errors:
                print(f"\n{name}: {len(errors)} texts without a rating (for example: {errors[0]}).")


if __name__ == "__main__":
    main()
