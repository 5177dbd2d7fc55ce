"""What the documentation takes from the code: docs/commands.md and docs/which-model.md.

python docs/make_pages.py
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CARDS = (8, 12, 16, 24, 48, 80)  # GB, as they are sold
MADE = "<!-- made by docs/make_pages.py: change the code, then run it again -->"


def commands() -> str:
    """Every verb with its arguments, from the parser that the command itself uses."""
    from toolkit.cli import EXAMPLES, parser

    top = parser()
    verbs = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    helps = {choice.dest: choice.help for choice in verbs._choices_actions}
    lines = [MADE, "", "# Commands", "", "`fablesmith` alone says what comes next on this machine. Every command takes `--help`, `--offline` (never use the network) and `--debug` (show the traceback of an error). Exit codes: 0 done, 1 a failure of ours, 2 something you can mend, 3 it does not fit this machine, 130 interrupted. What a command finds is on standard output, what it does meanwhile on standard error; with `--json` standard output holds JSON and nothing else: one document, or one line for each thing where the help says so.", ""]  # fmt: skip
    lines += [
        "| command | what it does |",
        "|---|---|",
        *(f"| [{name}](#{name}) | {helps[name]} |" for name in verbs.choices),
        "",
    ]
    for name, p in verbs.choices.items():
        lines += [f"## {name}", "", f"{_sentence(helps[name])}", "", "```", *(line.strip() for line in EXAMPLES[name].splitlines()), "```", ""]  # fmt: skip
        rows = [_row(a) for a in p._actions if a.dest not in ("help", "offline", "debug")]
        lines += ["| argument | |", "|---|---|", *rows, ""] if rows else []
    return "\n".join(lines)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _row(action: argparse.Action) -> str:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    value = " ".join(value) if isinstance(value, tuple) else value
    shown = ", ".join(action.option_strings) or value
    if action.option_strings and action.nargs != 0:
        shown += f" {value}"
    name = shown.replace("|", "\\|")
    return f"| `{name}` | {(action.help or '').replace('|', chr(92) + '|')} |"


def which_model() -> str:
    """Which recipe for which card: predicted by `fablesmith fit`, recipe by recipe."""
    from toolkit.fit import MARGIN, fit
    from toolkit.recipe import load_recipe, recipes_folder

    lines = [MADE, "", "# Which model for my card", "", "Predicted by `fablesmith fit`, which counts every stage's memory from the model's architecture; not measured on a GPU yet unless [results.md](results.md) says so. For your own machine and settings: `fablesmith fit RECIPE --vram 12`. It names the single change that would make a recipe fit.", ""]  # fmt: skip
    rows = []
    for path in sorted(recipes_folder().glob("*.yaml")):
        recipe = load_recipe(str(path))
        small = recipe.model.id.startswith("embedded")
        found = fit(recipe, 0 if small else 80, 256)
        vram = found.peak("vram")
        card = next((c for c in CARDS if vram <= c * (1 - MARGIN)), None)
        place = "no GPU" if small else f"{card} GB" if card else "more than 80 GB"
        rows.append((0 if small else card or 999, f"| {place} | `{recipe.name}` | {recipe.model.id} | {vram:.1f} | {found.peak('ram'):.1f} | {found.disk:.0f} | {recipe.about} |"))  # fmt: skip
    lines += [
        "| smallest card | recipe | model | VRAM, GiB | RAM, GiB | disk, GiB | |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [row for _, row in sorted(rows)]
    lines += ["", f"The smallest card is the smallest of {', '.join(map(str, CARDS))} GB that holds the predicted peak with {MARGIN:.0%} to spare. Writers and judges that need no training run on less: `fablesmith judges` lists them by the memory they need.", ""]  # fmt: skip
    return "\n".join(lines)


PAGES = {"commands.md": commands, "which-model.md": which_model}

if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
        print(HERE / name)
