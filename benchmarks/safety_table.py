"""What benchmarks/safety.py found, as Markdown and as a picture of safety against utility.

python benchmarks/safety_table.py --grid runs/safety-grid --chart docs/safety.svg
"""

import argparse
import json
from pathlib import Path

import numpy as np

from toolkit.evaluate.charts import BASE, INK, MANY, MARKS, QUIET, _figure, _svg
from toolkit.safety.refusal import COMPLIANCE, REFUSAL
from toolkit.stats import bootstrap, cluster_bootstrap, share_interval

SETTINGS = {  # (share of harmful rows, learning rate) → what it is called
    (0.1, 1e-3): "10 % harmful, lr 1e-3",
    (0.1, 3e-4): "10 % harmful, lr 3e-4",
    (0.1, 3e-3): "10 % harmful, lr 3e-3",
    (0.3, 1e-3): "30 % harmful, lr 1e-3",
    (1.0, 1e-3): "100 % harmful, lr 1e-3",
    (0.0, 1e-3): "no harmful row, lr 1e-3",
}
AGAINST = ("constant 0.9", "constant 0.3", "sft", "probe")


def groups(points: list[dict], kind: str, of: tuple[str, ...]) -> list[np.ndarray]:
    """One array a seed: 1 for each answer to this set that is of one of these kinds."""
    return [np.array([float(k in of) for _, k in sorted(p["each"][kind].items())]) for p in points]


def cell(value: tuple, digits: int = 0, scale: float = 100, sign: str = "") -> str:
    form = f"{sign}.{digits}f"
    return f"{scale * value[0]:{form}} ({scale * value[1]:{form}} to {scale * value[2]:{form}})"


def losses(points: list[dict]) -> np.ndarray:
    """(texts,) mean over the seeds: the held-out texts are the same for all."""
    return np.mean([p["losses"] for p in points], axis=0)


def table(found: dict[str, list[dict]]) -> None:
    print(
        "| held by | seeds | mean β | complies with harm, % | refuses look-alikes, % | refuses dark premises, % | loss on the task, nats |"
    )
    print("|---|---|---|---|---|---|---|")
    for control, points in found.items():
        beta = [p["facts"]["beta"][2] for p in points if "beta" in p["facts"]]
        shares = [
            share_interval(groups(points, *what))
            for what in (("harmful", (COMPLIANCE,)), ("lookalikes", (REFUSAL,)), ("dark", (REFUSAL,)))
        ]
        told = f"{np.mean(beta):.2f}" if beta else "–"
        print(
            f"| {control} | {len(points)} | {told} | "
            + " | ".join(cell(s) for s in shares)
            + f" | {cell(bootstrap(losses(points)), 2, 1)} |"
        )


def against(found: dict[str, list[dict]], other: str) -> None:
    """Differences from another control on the same seeds: compliance paired by request, loss paired by text."""
    by = {c: {p["seed"]: p for p in points} for c, points in found.items()}
    if other not in by:
        return
    print(
        f"\nAgainst {other} (same rows, seeds and requests):\n\n| held by | complies with harm, points | loss on the task, nats |\n|---|---|---|"
    )
    for control in (c for c in by if c != other):
        seeds = sorted(set(by[control]) & set(by[other]))
        if not seeds:
            continue
        pairs = [[[by[c][s]] for s in seeds] for c in (control, other)]
        moved = [
            groups(a, "harmful", (COMPLIANCE,))[0] - groups(b, "harmful", (COMPLIANCE,))[0]
            for a, b in zip(*pairs, strict=True)
        ]
        # three seeds are few to draw from: the wider of drawing requests and drawing seeds
        each, whole = bootstrap(np.concatenate(moved)), cluster_bootstrap(moved)
        wide = (each[0], min(each[1], whole[1]), max(each[2], whole[2])) if len(moved) > 1 else each
        cost = bootstrap(losses([by[control][s] for s in seeds]) - losses([by[other][s] for s in seeds]))
        print(f"| {control} | {cell(wide, 0, 100, '+')} | {cell(cost, 2, 1, '+')} |")


def chart(all_points: dict, reference: dict, shown: list[tuple]) -> str:
    """A panel a setting: loss on the task against compliance with harm, a cross of 95 % intervals for each control."""
    wide = min(3, len(shown))
    high = -(-len(shown) // wide)
    figure, axes = _figure(4.2 * wide, 3.8 * high)
    axes.remove()
    controls = list(dict.fromkeys(c for key in shown for c in all_points[key]))
    looks = {c: (MANY[(i + 1) % len(MANY)], MARKS[i % len(MARKS)]) for i, c in enumerate(controls)}
    rows = figure.subplots(high, wide, squeeze=False, sharey=True)
    panels = rows.ravel()
    for axes in panels[len(shown) :]:
        axes.remove()
    for axes, key in zip(panels, shown, strict=False):
        axes.patch.set_alpha(0)
        axes.grid(color=QUIET, linewidth=0.5)
        ref = 100 * reference["harmful"][COMPLIANCE][0]
        axes.axhline(ref, color=INK, linewidth=0.8, linestyle=":")
        axes.plot(reference["loss"], ref, "*", color=BASE, markersize=11, label="the reference, before")
        for control, points in all_points[key].items():
            colour, mark = looks[control]
            x, y = bootstrap(losses(points)), share_interval(groups(points, "harmful", (COMPLIANCE,)))
            axes.plot([x[0], x[0]], [100 * y[1], 100 * y[2]], color=colour, linewidth=1, alpha=0.5)
            axes.plot(x[0], 100 * y[0], mark, color=colour, markersize=8, label=control)
        axes.set_title(SETTINGS[key], fontsize=10, color=INK)
        axes.set_ylim(-3, 103)
    for row in rows:
        row[0].set_ylabel("harmful requests complied with, %\n(low is better)")
    for axes in panels[max(0, len(shown) - wide) : len(shown)]:
        axes.set_xlabel("loss on held-out greetings,\nnats a token (left is better)")
    named = {
        label: handle
        for axes in panels[: len(shown)]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.tight_layout()
    figure.legend(named.values(), named.keys(), frameon=False, loc="upper left", bbox_to_anchor=(1.0, 0.97))
    return _svg(figure, "Safety against utility for each way of holding a training")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=Path, default=Path("runs/safety-grid"))
    parser.add_argument("--chart", type=Path)
    args = parser.parse_args()
    order = [
        "sft",
        "constant 0.3",
        "constant 0.6",
        "constant 0.9",
        "random",
        "probe",
        "probe from 0.3",
        "probe per batch",
        "critic",
        "both",
        "oracle",
    ]
    read = []
    for path in sorted(
        args.grid.glob("points/*/point.json")
    ):  # the folder's name begins with the share of harmful rows: h10-…
        read.append(
            {**json.loads(path.read_text()), "rows_harmful": float(path.parent.name[1:].partition("-")[0]) / 100}
        )
    points = {
        key: {
            c: mine
            for c in order
            if (mine := [p for p in read if (p["rows_harmful"], p["lr"]) == key and p["control"] == c])
        }
        for key in SETTINGS
    }
    reference = {
        name: json.loads((args.grid / "reference" / f"{name}.json").read_text()) for name in ("base", "reference")
    }
    for name, f in reference.items():
        print(
            f"{name}: complies with {100 * f['harmful'][COMPLIANCE][0]:.0f} % of {f['harmful']['asked']}, refuses {100 * f['lookalikes'][REFUSAL][0]:.0f} % of {f['lookalikes']['asked']} look-alikes and {100 * f['dark'][REFUSAL][0]:.0f} % of {f['dark']['asked']} dark premises; loss {f['loss']:.2f}"
        )
    for key, found in points.items():
        if found:
            print(f"\n### {SETTINGS[key]}\n")
            table(found)
            for other in AGAINST:
                against(found, other)
    shown = [key for key in SETTINGS if len(points[key]) >= 3]
    if args.chart and shown:
        args.chart.write_text(chart(points, reference["reference"], shown), encoding="utf-8")


if __name__ == "__main__":
    main()
