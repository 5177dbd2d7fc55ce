"""The verbs about how different texts are: diversity."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

EXAMPLES = {
    "diversity": "fablesmith diversity runs/quickstart\n  fablesmith diversity mine.jsonl theirs.jsonl --out figures",
}
_SEMANTIC = "embedding model for meaning: minilm (English), jina, a folder or hub id (default: minilm)"
_STYLE = "for style: stylometry, style-embedding, a folder or hub id (default: stylometry)"


def add_verbs(verb: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Declare the verbs; `verb(name, help)` gives each its parser."""
    p = verb("diversity", "how different are the texts that answer one premise")
    p.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSONL with texts and their premise_id or premise, or a run folder; several writers where texts differ in origin")  # fmt: skip
    p.add_argument("--semantic", default="minilm", metavar="MODEL", help=_SEMANTIC)
    p.add_argument("--style", default="stylometry", metavar="MODEL", help=_STYLE)
    p.add_argument("--out", type=Path, help="folder for figures.json and the picture")
    p.add_argument("--json", action="store_true", help="figures as JSON")
    p.add_argument("--skip-bad-lines", action="store_true", help="leave bad lines out and count them")


def diversity(args) -> None:
    from toolkit.evaluate.diversity import diversity as measure
    from toolkit.evaluate.diversity import read_writers, table
    from toolkit.progress import say

    writers, premises, notes = read_writers(args.files, args.skip_bad_lines)
    for note in notes:
        say(note)
    figures = measure(writers, premises, semantic=args.semantic, style=args.style, out=args.out)
    print(json.dumps(figures, ensure_ascii=False) if args.json else table(figures))
    if args.out:
        say(f"{args.out / 'diversity.svg'}")


VERBS = {"diversity": diversity}
