"""The command line. Nothing heavy is imported before a verb needs it: --help answers at once."""

import argparse
import json
import os
import random
import sys
from pathlib import Path

from toolkit import (
    cli_demo,
    cli_diversity,
    cli_export,
    cli_greetings,
    cli_judging,
    cli_machine,
    cli_safety,
    cli_terminal,
)
from toolkit.cli_greetings import heading
from toolkit.errors import FablesmithError, UserError

EXAMPLES = {
    "run": "fablesmith run quickstart\n  fablesmith run recipes/quickstart.yaml --set dpo.beta=0.2 --out runs/b02",
    "recipes": "fablesmith recipes",
    "write": 'fablesmith write "A lighthouse keeper learns what the light keeps away." -n 3 --seed 1\n'
    '  fablesmith write "A lighthouse keeper learns what the light keeps away." --model runs/quickstart\n'
    '  fablesmith write --as greeting "A birthday card for my brother, who hates birthdays" -n 3\n'
    '  fablesmith write --as greeting "七十大寿，写给外公" --model qwen3-4b',
    **cli_judging.EXAMPLES,
    **cli_diversity.EXAMPLES,
    **cli_greetings.EXAMPLES,
    **cli_machine.EXAMPLES,
    **cli_export.EXAMPLES,
    **cli_terminal.EXAMPLES,
    **cli_demo.EXAMPLES,
    **cli_safety.EXAMPLES,
}
MODEL_HELP = "embedded, a .gguf file, a run folder, an http address, a folder or hub id (default: embedded)"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="fablesmith",
        description="Teach a small language model to write better plots and greetings, on your own machine.",
        epilog="start here:\n  fablesmith run quickstart\n\nwithout a verb it says what comes next on this machine",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="store_true", help="print the version and stop")
    verbs = top.add_subparsers(dest="verb", metavar="VERB")

    def verb(name: str, help: str) -> argparse.ArgumentParser:
        p = verbs.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=f"example:\n  {EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        p.add_argument("--offline", action="store_true", help="never use the network; say what is missing instead")
        p.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return p

    p = verb("run", "run a recipe: premises to report, resuming what stands")
    p.add_argument("recipe", help="a recipe's name (see `fablesmith recipes`) or a YAML file")
    p.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting; may be repeated"
    )
    p.add_argument("--out", type=Path, help="the run's folder (default: runs/NAME)")
    p.add_argument("--until", default="", metavar="STAGE", help="stop after this stage; the same command goes on later")
    p.add_argument("--dry-run", action="store_true", help="show stages, sizes and expected time; do nothing")
    p.add_argument("--no-fit", action="store_true", help="run even where memory is predicted not to be enough")
    p.add_argument("--skip-bad-lines", action="store_true", help="leave bad lines of your files out and count them")
    p.add_argument("--json", action="store_true", help="what was made, or would be, as one JSON document")

    p = verb("recipes", "list the recipes, with what each needs")
    p.add_argument("--json", action="store_true", help="one JSON line a recipe")

    p = verb("write", "write plots for a premise, or greetings for an occasion")
    p.add_argument("premise", help="one or two sentences, or what the greeting is for; - reads standard input")
    p.add_argument(
        "--as", dest="kind", choices=("plot", "greeting"), default="plot", help="what to write (default: plot)"
    )
    p.add_argument("-n", type=int, default=1, help="how many plots or greetings (default: 1)")
    p.add_argument("--model", default="embedded", help=MODEL_HELP)
    p.add_argument("--adapter", type=Path, help="a GGUF adapter for the model")
    p.add_argument("--seed", type=int, help="the same seed and the same -n give the same plots")
    p.add_argument("--temperature", type=float, default=0.8, help="0 is the likeliest text (default: 0.8)")
    p.add_argument(
        "--max-tokens", type=int, help="longest text (default: 220 for a plot, what a greeting's length needs)"
    )
    cli_judging.place_flags(p, "where a GGUF model runs")
    p.add_argument(
        "--angles", action="store_true", help="ask for each plot from another angle, so that they differ more"
    )
    p.add_argument("--json", action="store_true", help="one JSON line a plot")

    cli_judging.add_verbs(verb)
    cli_diversity.add_verbs(verb)
    cli_greetings.add_verbs(verb)
    cli_machine.add_verbs(verb)
    cli_export.add_verbs(verb)
    cli_terminal.add_verbs(verb)
    cli_demo.add_verbs(verb)
    cli_safety.add_verbs(verb)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 (our failure), 2 (something the user can mend), 3 (does not fit), 130 (interrupted)."""
    for stream in (sys.stdout, sys.stderr):  # redirected on Windows they speak a code page that lacks most characters
        if hasattr(stream, "reconfigure") and (stream.encoding or "").lower().replace("-", "") != "utf8":
            stream.reconfigure(encoding="utf-8", errors="replace")
    top = parser()
    args = top.parse_args(argv)
    if args.version:
        from importlib.metadata import version

        print(version("fablesmith"))
        return 0
    if not args.verb:
        print(cli_terminal.what_next(set(_VERBS)))
        return 0
    from toolkit.hardware import prepare_environment

    prepare_environment(args.offline)
    try:
        code = _VERBS[args.verb](args)
        sys.stdout.flush()
        return code or 0
    except UserError as error:
        if args.debug:
            raise
        _complain(str(error), error.hint)
        return error.code
    except FablesmithError as error:
        if args.debug:
            raise
        _complain(str(error), "this is a failure of ours or of a library, not of yours; --debug shows where")
        return 1
    except KeyboardInterrupt:
        _complain(
            "interrupted",
            "what was made is kept; the same command goes on from there" if args.verb in ("run", "frontier") else "",
        )
        return 130
    except BrokenPipeError:  # `fablesmith write … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if args.debug:
            raise
        name = f"{error.filename}: " if error.filename else ""
        _complain(f"{name}{error.strerror or error}", "--debug shows where")
        return 2
    except MemoryError:
        if args.debug:
            raise
        _complain("this machine's memory is not enough", "close other programs, or make the batch or the texts smaller")
        return 2
    except ImportError as error:
        if args.debug or (error.name or "").partition(".")[0] in ("", "toolkit"):
            raise
        _complain(f"a library does not load: {error}", "`fablesmith doctor` says what is missing, and its fix")
        return 2
    except Exception as error:
        if args.debug or "No space left on device" not in str(error):  # safetensors wraps the system's error in a text
            raise
        _complain(f"a disk is full: {error}", "free some space, or set FABLESMITH_CACHE to another disk")
        return 2


def _complain(message: str, hint: str) -> None:
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() and "NO_COLOR" not in os.environ else ("", "")
    print(f"{red}error: {message}{plain}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


def _run(args) -> None:
    from toolkit.recipe import load_recipe

    overrides = list(args.set) + (
        ["premises.skip_bad_lines=true", "requests.skip_bad_lines=true", "data.skip_bad_lines=true"]
        if args.skip_bad_lines
        else []
    )
    recipe = load_recipe(args.recipe, overrides)
    out = args.out or Path("runs") / recipe.name
    if args.dry_run:
        from toolkit.runner import plan_facts, show_plan

        if args.json:
            head = {"recipe": recipe.name, "out": str(out), "needs": recipe.memory}
            print(json.dumps({**head, "stages": plan_facts(recipe, out, args.until)}, ensure_ascii=False))
        else:
            print(show_plan(recipe, out, args.until))
        return
    from toolkit import together
    from toolkit.runner import run_recipe

    first = together.rank() == 0
    if not args.no_fit and first:
        cli_machine.check(recipe, out, args.until)
    made = run_recipe(recipe, out, args.until)
    if not first:  # one of several that train together: the first speaks
        return
    if args.json:
        stages = json.loads((out / "manifest.json").read_text())["stages"]
        print(json.dumps({"recipe": recipe.name, "out": str(out), "made": str(made), "stages": stages}))
    else:
        print(made)


def _recipes(args) -> None:
    from toolkit.recipe import load_recipe, recipes_folder

    for path in sorted(recipes_folder().glob("*.yaml")):
        recipe = load_recipe(str(path))
        if args.json:
            row = {"name": recipe.name, "about": recipe.about, "needs": recipe.memory, "task": recipe.task}
            print(json.dumps({**row, "file": str(path)}, ensure_ascii=False))
        else:
            print(f"{recipe.name:<14} {recipe.about}\n{'':<14} needs: {recipe.memory}")


def _write(args) -> None:
    from toolkit.api import write_stream

    premise = sys.stdin.read() if args.premise == "-" else args.premise
    seed = random.randrange(2**31) if args.seed is None else args.seed
    settings = {"model": args.model, "adapter": args.adapter, "seed": seed}
    settings |= cli_judging.placed(args)
    settings |= {"temperature": args.temperature, "max_tokens": args.max_tokens, "angles": args.angles}
    if not 0 <= args.temperature <= 5:
        raise UserError(f"--temperature {args.temperature} is out of range: at least 0, at most 5")
    if args.max_tokens is not None and args.max_tokens < 1:
        raise UserError(f"--max-tokens {args.max_tokens} is out of range: at least 1")
    if args.kind == "greeting":
        cli_greetings.write(premise, args.n, args.angles, args.json, settings)
        return
    stream = write_stream(premise, args.n, **settings | {"max_tokens": args.max_tokens or 220})
    texts, shown = [""] * args.n, 0
    for i, piece in stream:
        # the first plot appears as it is written; the others, written beside it, each when its turn has come
        piece = piece if texts[i] else piece.lstrip()
        if i == shown and not args.json:
            if not texts[i] and piece:
                heading(i, args.n)
            print(piece, end="", flush=True)
        texts[i] += piece
    if args.json:
        for i, text in enumerate(texts):
            print(
                json.dumps({"premise": premise.strip(), "text": text.strip(), "n": i, "seed": seed}, ensure_ascii=False)
            )
        return
    print()
    for i in range(1, args.n):
        print()
        heading(i, args.n)
        print(texts[i].strip())


_VERBS = {
    "run": _run,
    "recipes": _recipes,
    "write": _write,
    **cli_judging.VERBS,
    **cli_diversity.VERBS,
    **cli_greetings.VERBS,
    **cli_machine.VERBS,
    **cli_export.VERBS,
    **cli_terminal.VERBS,
    **cli_demo.VERBS,
    **cli_safety.VERBS,
}
