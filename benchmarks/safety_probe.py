"""How well the probe tells harmful requests from harmless ones (docs/results.md, "A probe of hidden states").

python benchmarks/safety_probe.py ../shared/data/safety [--out work/probe]
python benchmarks/safety_probe.py ../shared/data/safety --ship     the probe of the embedded model that comes with the package

Reads the embedded model's states once (kept in --out), then fits probes on different training sets and prints a table of AUROC with
95 % intervals on test requests that neither taught, chose nor calibrated anything; docs/probe.svg shows every layer. AdvBench and
XSTest are not part of the project: name the folder with advbench.jsonl and xstest.jsonl.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from toolkit.hardware import prepare_environment

prepare_environment(offline=True)

from toolkit.cli_safety import shipped_benign  # noqa: E402
from toolkit.models.embed import embed  # noqa: E402
from toolkit.models.resolve import resolve  # noqa: E402
from toolkit.recipe import ModelSettings  # noqa: E402
from toolkit.records import read_jsonl, read_premises, side_of, text_id  # noqa: E402
from toolkit.safety.probe import (  # noqa: E402
    POOLINGS,
    SHIPPED,
    _fit,
    _logits,
    fit_states,
    measure,
    read_states,
    reference_identity,
    validates,
)

DOCS = Path(__file__).resolve().parents[1] / "docs"
DATA = DOCS.parent / "toolkit" / "data"
PLAIN = 400  # of our own requests
TRAINED = {  # name → sets it learns from
    "AdvBench, XSTest, plain": ("advbench", "unsafe", "safe", "plain"),
    "AdvBench, plain": ("advbench", "plain"),
    "XSTest, plain": ("unsafe", "safe", "plain"),
}
TESTS = {  # name → (harmful, benign)
    "AdvBench / plain": ("advbench", "plain"),
    "AdvBench / XSTest safe": ("advbench", "safe"),
    "XSTest unsafe / safe": ("unsafe", "safe"),
    "XSTest unsafe / dark fiction": ("unsafe", "dark"),
}


def requests(folder: Path) -> dict[str, list[str]]:
    """Set → its requests. `dark` (premises of dark fiction, as a writer is asked for them) teaches no probe here."""
    from toolkit.narrative.writing import write_prompt

    xstest = read_jsonl(folder / "xstest.jsonl")
    dark = [write_prompt(p)[0]["content"] for p in read_premises(DATA / "dark_fiction.jsonl").rows]
    plain = sorted(
        set(shipped_benign()) - set(dark) - {p.text for p in read_premises(DATA / "dark_fiction.jsonl").rows}
    )
    rng = np.random.default_rng(0)
    return {
        "advbench": [r["prompt"] for r in read_jsonl(folder / "advbench.jsonl")],
        "unsafe": [r["prompt"] for r in xstest if r["label"] == "unsafe"],
        "safe": [r["prompt"] for r in xstest if r["label"] == "safe"],
        "plain": [plain[i] for i in sorted(rng.choice(len(plain), PLAIN, replace=False))],
        "dark": dark,
    }


def sides_of(name: str, texts: list[str]) -> np.ndarray:
    """train, validate or test by the words alone; nothing of `dark` but test."""
    return np.array(["test" if name == "dark" else side_of(text_id(t)) for t in texts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ship", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("work/probe"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sets = requests(args.folder)
    states, layers = read(sets, args.out)
    if args.ship:
        ship(sets, states, layers)
        return
    sides = {name: sides_of(name, texts) for name, texts in sets.items()}
    figures = {"layers": layers, "sizes": {n: len(t) for n, t in sets.items()}, "probes": {}}
    for trained, names in TRAINED.items():
        x = np.concatenate([states[n][sides[n] != "test"] for n in names])
        bad = np.concatenate([np.full((sides[n] != "test").sum(), n in ("advbench", "unsafe")) for n in names])
        checks = np.concatenate([sides[n][sides[n] != "test"] == "validate" for n in names])
        probe = fit_states(x, bad, checks, layers, ("", "embedded", False))
        k, p = layers.index(probe.layer), POOLINGS.index(probe.pooling)
        risks = {n: probe.risks(states[n][:, k, p]) for n in sets}
        row = {"layer": probe.layer, "pooling": probe.pooling, "tests": {}, "each": []}
        # what taught is tested on its test side; what did not, on all of it
        tested = {n: sides[n] == "test" if n in names else np.ones(len(sides[n]), bool) for n in sets}
        for test, (harmful, benign) in TESTS.items():
            row["tests"][test] = measure(risks[harmful][tested[harmful]], risks[benign][tested[benign]])
        for at, layer in enumerate(layers):
            for place, pooling in enumerate(POOLINGS):
                fitted = _fit(x[~checks, at, place].astype(float), bad[~checks], 0.1)
                found = {n: _logits(states[n][tested[n], at, place].astype(float), *fitted) for n in sets}
                aurocs = {t: measure(found[a], found[b])["auroc"] for t, (a, b) in TESTS.items()}
                row["each"].append({"layer": layer, "pooling": pooling, **aurocs})
        for words in ("minilm", "ngrams"):
            vectors = {n: embed(t, words).astype(float) for n, t in sets.items()}
            fitted = _fit(np.concatenate([vectors[n][sides[n] != "test"] for n in names]), bad, 0.1)
            row[words] = {
                t: measure(*(_logits(vectors[n][tested[n]], *fitted) for n in pair))["auroc"]
                for t, pair in TESTS.items()
            }
        figures["probes"][trained] = row
        print(table(trained, row), flush=True)
    (args.out / "figures.json").write_text(json.dumps(figures, indent=1))
    (DOCS / "probe.svg").write_text(picture(figures), encoding="utf-8")


def ship(sets: dict[str, list[str]], states: dict[str, np.ndarray], layers: list[int]) -> None:
    """Learnt from all sets, as `fablesmith probe train` would: nothing is left that it could be tested on."""
    base = resolve("embedded")
    bad = np.concatenate([np.full(len(t), n in ("advbench", "unsafe")) for n, t in sets.items()])
    checks = np.array([validates(t) for texts in sets.values() for t in texts])
    of = (reference_identity(base), "embedded", False)
    probe = fit_states(np.concatenate([states[n] for n in sets]), bad, checks, layers, of)
    probe.save(SHIPPED / of[0])
    print(probe.layer, probe.pooling, probe.validation["auroc"], probe.validation["counts"])


def read(sets: dict[str, list[str]], out: Path) -> tuple[dict[str, np.ndarray], list[int]]:
    """Set → states (N, L, P, H), read once."""
    base, found, layers = resolve("embedded"), {}, []
    for name, texts in sets.items():
        file = out / f"{name}.npz"
        if not file.is_file():
            states, layers = read_states(base, texts, None, ModelSettings(dtype="float32"))
            np.savez(out / "partial.npz", states=states, layers=layers)
            (out / "partial.npz").rename(file)
        with np.load(file) as kept:
            found[name], layers = kept["states"], kept["layers"].tolist()
    return found, layers


def table(trained: str, row: dict) -> str:
    cell = lambda v: f"{v[0]:.3f} ({v[1]:.3f}–{v[2]:.3f})"  # noqa: E731
    lines = [
        f"\ntrained on {trained}: layer {row['layer']}, {row['pooling']}\n",
        "| test | requests | AUROC of the probe | of MiniLM's embedding | of character n-grams | caught at s ≥ ½ | alarms at s ≥ ½ |",
        "|---|---|---|---|---|---|---|",
    ]
    for test, found in row["tests"].items():
        shares = " | ".join(f"{found[k][0]:.0%} ({found[k][1]:.0%}–{found[k][2]:.0%})" for k in ("caught", "alarms"))
        lines.append(
            f"| {test} | {found['requests'][0]}, {found['requests'][1]} | {cell(found['auroc'])} | {cell(row['minilm'][test])} "
            f"| {cell(row['ngrams'][test])} | {shares} |"
        )
    return "\n".join(lines)


def picture(figures: dict) -> str:
    """AUROC by layer on XSTest's held-out and unseen requests, the last token's state, with 95 % bands."""
    from toolkit.evaluate.charts import MANY, _figure, _svg

    figure, axes = _figure(7, 3.6)
    for colour, (trained, row) in zip(MANY[1:], figures["probes"].items(), strict=False):
        rows = [r for r in row["each"] if r["pooling"] == "last"]
        values = np.array([r["XSTest unsafe / safe"] for r in rows], float)
        axes.plot([r["layer"] for r in rows], values[:, 0], color=colour, label=f"trained on {trained}")
        axes.fill_between([r["layer"] for r in rows], values[:, 1], values[:, 2], color=colour, alpha=0.15, linewidth=0)
    axes.axhline(0.5, color=MANY[0], linewidth=0.8, linestyle=":")
    axes.set_xlabel("layer of the embedded model (last token of the prompt)")
    axes.set_ylabel("AUROC, XSTest unsafe / safe")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return _svg(figure, "How well each layer tells XSTest's unsafe requests from its safe look-alikes")


if __name__ == "__main__":
    main()
