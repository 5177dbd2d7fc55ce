"""The house stands: an import only ever points down (shared design), and nobody reaches into a neighbour's trade."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "toolkit"
TRADES = ("reward", "preference", "feedback", "safety", "evaluate", "export")
FLOORS = [
    ("errors", "records", "progress", "stats", "hardware", "people", "prompts", "together"),
    ("recipe", "pace"),
    ("engines", "models", "narrative", "greeting"),
    TRADES,
    ("judges", "card", "doctor"),
    ("stages", "greeting_stages", "safe_stages", "rater", "safety_report"),
    ("runner",),
    ("memory",),
    ("fit",),
    ("api",),
    (
        "cli",
        "cli_demo",
        "cli_diversity",
        "cli_export",
        "cli_greetings",
        "cli_judging",
        "cli_machine",
        "cli_safety",
        "cli_terminal",
        "demo",
    ),
    ("__init__", "__main__"),
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
FILES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py"))


def imported(file: str) -> set[str]:
    """First names below `toolkit` that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "toolkit":
            inside = node.module.split(".")[1:2]
            names |= set(inside) if inside else {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("file", FILES)
def test_imports_point_down(file):
    here = file.split("/")[0].removesuffix(".py")
    higher = {name for name in imported(file) if LEVEL[name] > LEVEL[here]}
    assert not higher


@pytest.mark.parametrize("file", [f for f in FILES if f.split("/")[0] in TRADES])
def test_a_trade_imports_no_other_trade(file):
    assert not imported(file) & set(TRADES) - {file.split("/")[0]}
