"""The verbs about safety: probe."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from toolkit.errors import UserError
from toolkit.progress import say

EXAMPLES = {
    "probe": "fablesmith probe train --harmful harmful.jsonl --benign mine.jsonl\n"
    "  fablesmith probe test --harmful unseen.jsonl --benign lookalikes.jsonl",
}
UNSAFE, SAFE = ("unsafe", "harmful", "1", "true"), ("safe", "benign", "0", "false")


def add_verbs(verb: Callable[[str, str], argparse.ArgumentParser]) -> None:
    p = verb("probe", "train or test the probe that tells risky requests by a model's hidden states")
    p.add_argument(
        "action", choices=["train", "test"], help="train: learn and keep it; test: figures on other requests"
    )
    p.add_argument("--harmful", action="append", default=[], type=Path, metavar="FILE", help="JSONL with requests no one should help with; may be repeated. None are shipped. A row's own `label` (safe, unsafe) goes before the flag")  # fmt: skip
    p.add_argument("--benign", action="append", default=[], type=Path, metavar="FILE", help="JSONL with harmless requests; may be repeated. train adds the shipped premises and greeting requests")  # fmt: skip
    p.add_argument("--model", default="embedded", help="whose states: embedded, a folder of safetensors or a hub id")
    p.add_argument("--adapter", type=Path, help="an adapter that the reference wears (RUN/sft/adapter)")
    p.add_argument("--four-bit", action="store_true", help="read the model in NF4, as a four_bit recipe does")
    p.add_argument("--probe", type=Path, help="its folder (default: where recipes look for this model's)")
    p.add_argument("--json", action="store_true", help="figures as JSON")


def _probe(args) -> None:
    from toolkit.models.resolve import resolve
    from toolkit.recipe import ModelSettings
    from toolkit.safety.probe import find_probe, fit_probe, measure, probe_folder, probe_risks

    base, weights = resolve(args.model), ModelSettings(id=args.model, four_bit=args.four_bit)
    if args.adapter and not (args.adapter / "adapter_model.safetensors").is_file():
        raise UserError(f"no adapter in {args.adapter}", "name a folder with adapter_model.safetensors")
    harmful, benign = read_sides(args.harmful, args.benign)
    if args.action == "test":
        probe = find_probe(str(args.probe) if args.probe else "auto", base, args.adapter)
        if not harmful or not benign:
            raise UserError("a test needs both kinds of requests", "--harmful FILE --benign FILE")
        risks = probe_risks(probe, base, harmful + benign, weights, args.adapter)
        figures = measure(risks[: len(harmful)], risks[len(harmful) :])
        print(json.dumps(figures) if args.json else _table(figures))
        return
    if not harmful:
        raise UserError("there is nothing harmful to learn from", "--harmful FILE (public sets are AdvBench, XSTest …)")
    probe = fit_probe(harmful, benign + shipped_benign(), base, weights, args.adapter)
    folder = args.probe or probe_folder(base, args.adapter)
    probe.save(folder)
    v = probe.validation
    if args.json:
        print(json.dumps({"folder": str(folder), "layer": probe.layer, "pooling": probe.pooling, **v}))
        return
    say(f"{folder}: layer {probe.layer}, {'last token' if probe.pooling == 'last' else 'mean over tokens'}")
    print(f"AUROC {v['auroc']:.3f} on the requests it was chosen by, which flatters: test it on others")


def _table(figures: dict) -> str:
    lines = [f"requests    {figures['requests'][0]} harmful, {figures['requests'][1]} benign"]
    for name, key in (("AUROC", "auroc"), ("caught", "caught"), ("alarms", "alarms")):
        value, low, high = figures[key]
        lines.append(f"{name:<11} {value:.3f}  (95 %: {low:.3f} to {high:.3f})")
    lines.append(f"mean risk   {figures['mean'][0]:.3f} harmful, {figures['mean'][1]:.3f} benign")
    return "\n".join(lines)


def read_sides(harmful: list[Path], benign: list[Path]) -> tuple[list[str], list[str]]:
    """(harmful, benign) requests of files in any known format; a row's own `label` goes before its file's side.

    Raises UserError for a file that is not there, a bad line, or a label nobody knows.
    """
    from toolkit.records import import_rows, request_of

    sides: tuple[list[str], list[str]] = ([], [])
    for place, files in enumerate((harmful, benign)):

        def make(kind: str, row: dict, place=place) -> tuple[int, str]:
            label = str(row["label"]).lower() if row.get("label") is not None else ""
            if label and label not in UNSAFE + SAFE:
                raise ValueError(f"label {row['label']!r} is neither safe nor unsafe")
            return (place if not label else int(label in SAFE)), request_of(kind, row)

        for file in files:
            for side, text in import_rows(file, make).rows:
                sides[side].append(text)
    return sides


def shipped_benign() -> list[str]:
    """Harmless requests that come with the package: its premises, dark ones too, and its requests for greetings,
    as a training puts them and bare."""
    from toolkit.greeting.writing import greet_prompt
    from toolkit.narrative.writing import write_prompt
    from toolkit.records import Request, read_jsonl, read_premises

    data = Path(__file__).parent / "data"
    plots = [p for name in ("premises", "dark_fiction") for p in read_premises(data / f"{name}.jsonl").rows]
    greetings = read_jsonl(data / "greetings" / "requests.jsonl", Request)
    texts = [write_prompt(p)[0]["content"] for p in plots] + [greet_prompt(r)[0]["content"] for r in greetings]
    return [*texts, *(p.text for p in plots), *(r.text for r in greetings)]


VERBS = {"probe": _probe}
