"""The machine on the command line: `fit`, whether a run fits; `audit`, what of a model is in 4 bits; `doctor`, what stands in the way."""

import json
from typing import TYPE_CHECKING

from toolkit.errors import UserError

if TYPE_CHECKING:
    from toolkit.recipe import Recipe

EXAMPLES = {
    "fit": "fablesmith fit greetings-rm --vram 24\n  fablesmith fit quickstart --set dpo.batch=4 --ram 8",
    "audit": "fablesmith audit embedded-moe\n  fablesmith audit Qwen/Qwen3-30B-A3B-Instruct-2507 --json",
    "doctor": "fablesmith doctor",
}
BLOCKED, DOES_NOT_FIT = 1, 3  # exit codes


def add_verbs(verb) -> None:
    p = verb("fit", "predict memory and disk of every stage, and say which single change makes a recipe fit")
    p.add_argument("recipe", nargs="?", default="", help="a recipe's name or YAML file (default: all that are shipped)")
    p.add_argument("--vram", type=float, help="GiB of the graphics card; 0 is none (default: this machine's)")
    p.add_argument("--ram", type=float, help="GiB of memory (default: what is free here)")
    p.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting; may be repeated"
    )
    p.add_argument("--json", action="store_true", help="one JSON document")

    p = verb("audit", "load a model in 4 bits and say which of its weights really are")
    p.add_argument("model", metavar="MODEL", help="embedded, embedded-moe, a folder of safetensors, or a hub id")
    p.add_argument("--json", action="store_true", help="figures as JSON")

    p = verb("doctor", "look at this machine: GPU, torch, llama.cpp, packages, disk, memory; each problem with its fix")
    p.add_argument("--json", action="store_true", help="one JSON document")


def _fit(args) -> int:
    from toolkit.fit import as_dict, fit, table
    from toolkit.recipe import load_recipe, recipes_folder

    for name, value in (("--vram", args.vram), ("--ram", args.ram)):
        if value is not None and value < 0:
            raise UserError(f"{name} {value:g} is out of range: at least 0")
    if args.recipe:
        found = fit(load_recipe(args.recipe, args.set), args.vram, args.ram)
        print(json.dumps(as_dict(found), ensure_ascii=False) if args.json else table(found))
        return 0 if found.fits else DOES_NOT_FIT
    rows = [fit(load_recipe(str(p), args.set), args.vram, args.ram) for p in sorted(recipes_folder().glob("*.yaml"))]
    if args.json:
        print(json.dumps([as_dict(found) for found in rows], ensure_ascii=False))
        return 0
    for found in rows:
        needs = ", ".join(f"{w.upper()} {found.peak(w):.1f}" for w in ("vram", "ram") if found.peak(w) >= 0.05)
        print(f"{found.recipe:<18} {'fits' if found.fits else 'too large':<10} {needs}, disk {found.disk:.1f} GiB")
    print(f"held against VRAM {rows[0].has_vram:.1f}, RAM {rows[0].has_ram:.1f} GiB")
    return 0


def check(recipe: "Recipe", out, until: str) -> None:
    """What `run` asks first, of the stages that do not stand yet. Raises DoesNotFit (exit code 3) and UserError."""
    from toolkit.runner import plan_facts

    todo = tuple(row["stage"] for row in plan_facts(recipe, out, until) if row["state"] == "todo")
    if todo:
        from toolkit.fit import check

        check(recipe, todo)


def _audit(args) -> None:
    from dataclasses import asdict

    from toolkit.models.audit import audit, table
    from toolkit.models.load import load_model
    from toolkit.models.resolve import resolve

    found = audit(load_model(resolve(args.model), four_bit=True, least_4bit=0))
    print(json.dumps({**asdict(found), "share": found.share}) if args.json else table(found))


def _doctor(args) -> int:
    from dataclasses import asdict

    from toolkit.doctor import NOTE, OK, PROBLEM, examine

    found = examine()
    blocked = [f for f in found if f.state == PROBLEM]
    if args.json:
        print(json.dumps({"fine": not blocked, "findings": [asdict(f) for f in found]}, ensure_ascii=False))
        return BLOCKED if blocked else 0
    marks = {OK: " ", NOTE: "·", PROBLEM: "✗"}
    for f in found:
        print(f"{marks[f.state]} {f.about:<12} {f.said}")
        if f.fix:
            print(f"{'':<15}→ {f.fix}")
    print(f"\n{len(blocked)} to mend" if blocked else "\nnothing stands in the way")
    return BLOCKED if blocked else 0


VERBS = {"audit": _audit, "doctor": _doctor, "fit": _fit}
