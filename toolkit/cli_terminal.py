"""The terminal's manners: what to do next on this machine, and completion scripts for the shell."""

import argparse
import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import typing
from collections.abc import Iterator
from pathlib import Path

EXAMPLES = {"completion": "fablesmith completion bash\n  fablesmith completion fish"}
SHELLS = ("bash", "zsh", "fish")
PREMISE = '"A lighthouse keeper learns what the light keeps away."'
_ENGINES = {"model", "judge", "jury", "base", "agent", "agents", "writers", "a", "b"}  # destinations that name a model


def add_verbs(verb) -> None:
    p = verb("completion", "print a script that completes verbs, options, recipes and settings in your shell")
    p.add_argument("shell", choices=SHELLS, help='bash, zsh: put eval "$(fablesmith completion SHELL)" into ~/.bashrc or ~/.zshrc; fish: write it to ~/.config/fish/completions/fablesmith.fish')  # fmt: skip
    p.add_argument("--json", action="store_true", help="the script inside one JSON document")


# ---- what next


def what_next(verbs: set[str]) -> str:
    """What this machine has, what lies in runs/, and the commands that come next. Loads neither torch nor a model.

    Args:
        verbs: the command's verbs: what is suggested exists.
    """
    machine, vram = _machine()
    runs = _runs(Path("runs"))
    lines = [machine]
    if runs:
        lines += ["", "Runs here:"]
        width = max(len(name) for name, _ in runs)
        lines += [f"  {name:<{width}}  {state}" for name, state in runs]
    lines += ["", *_commands(dict(runs), vram, verbs)]
    return "\n".join([*lines, "", "Every command: fablesmith --help"])


def _machine() -> tuple[str, float]:
    """One line about the machine, and GB of memory on its largest GPU (0 without one)."""
    import psutil

    from toolkit.hardware import package_version, physical_cores

    cards = _cards()
    free = psutil.virtual_memory().available / 1e9
    gpu = ", ".join(f"{name} with {gb:.0f} GB" for name, gb in cards) or "no GPU"
    line = f"Fablesmith {package_version('fablesmith')} · {physical_cores()} cores, {free:.0f} GB of memory free, {gpu}"
    return line, max((gb for _, gb in cards), default=0.0)


def _cards() -> list[tuple[str, float]]:
    """(name, GB of memory) of each GPU that nvidia-smi tells of."""
    if not shutil.which("nvidia-smi"):
        return []
    ask = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True)
        rows = [line.rsplit(",", 1) for line in done.stdout.strip().splitlines()]
        return [(name.strip(), int(mib) * 2**20 / 1e9) for name, mib in rows]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def _runs(folder: Path) -> list[tuple[str, str]]:
    """(path, state) of each run in `folder`, the one worked at last first: running, stopped after …, finished."""
    from toolkit.runner import is_running

    found = sorted(folder.glob("*/recipe.json"), key=lambda p: p.stat().st_mtime, reverse=True)
    states = []
    for run in (p.parent for p in found):
        cards = sorted(run.glob("*/stage.json"), key=lambda p: p.stat().st_mtime)
        if is_running(run):
            state = "running"
        elif (run / "report" / "stage.json").is_file():
            state = "finished"
        else:
            state = (
                f"stopped after {cards[-1].parent.name.removesuffix('.partial')}" if cards else "stopped at its start"
            )
        states.append((str(run), state))
    return states


def _commands(runs: dict[str, str], vram: float, verbs: set[str]) -> list[str]:
    """Headings and commands, in the order in which a person would want them."""
    stopped = [run for run, state in runs.items() if state.startswith("stopped")]
    finished = [run for run, state in runs.items() if state == "finished"]
    groups: list[tuple[str, list[str]]] = []
    if stopped:
        from toolkit.runner import begun_with

        command = begun_with(Path(stopped[0]))
        groups.append((f"Go on with {stopped[0]}" if command else f"{stopped[0]} goes on by the command it was begun with", [command]))  # fmt: skip
    if finished:
        groups.append((f"Use what {finished[0]} made", _uses(finished[0], verbs)))
    if not runs:
        groups.append(("Start here (8 to 10 minutes on 2 cores, no network)", ["fablesmith run quickstart"]))
    if vram and "fit" in verbs:
        groups.append((f"What fits the {vram:.0f} GB of this GPU", ["fablesmith fit"]))
    if not finished:
        groups.append(("Write at once, with the model that is installed", [f"fablesmith write {PREMISE}"]))
    if "demo" in verbs:
        groups.append(("In the browser", [f"fablesmith demo{f' {shlex.quote(finished[0])}' if finished else ''}"]))
    return [line for head, commands in groups for line in (f"{head}:", *(f"  {c}" for c in commands if c), "")][:-1]


def _uses(run: str, verbs: set[str]) -> list[str]:
    name, greets = shlex.quote(run), (Path(run) / "requests").is_dir()  # a stage of greetings only
    ask = '--as greeting "A birthday card for my brother, who sails"' if greets else PREMISE
    commands = [f"open {name}/report/report.html", f"fablesmith write {ask} --model {name}"]
    commands.append(f"fablesmith debates {name}" if greets else f"fablesmith vote {name}")
    return commands + ([f"fablesmith export {name} --for ollama"] if "export" in verbs else [])


# ---- completion


@dataclasses.dataclass(frozen=True)
class Value:
    """What may follow: `words`, and whether a file's name may."""

    words: tuple[str, ...] = ()
    files: bool = True


def completion(args) -> None:
    from toolkit.cli import parser

    script = SCRIPTS[args.shell](parser())
    print(json.dumps({"shell": args.shell, "script": script}) if args.json else script, end="\n" if args.json else "")


def tree(top: argparse.ArgumentParser) -> Iterator[tuple[str, str, dict[str, tuple[str, Value | None]], Value | None]]:
    """(verb, its help, flag → (help, value it takes or None), value of its positionals or None) of each verb."""
    verbs = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    helps = {choice.dest: choice.help for choice in verbs._choices_actions}
    for name, p in verbs.choices.items():
        flags, positional = {}, None
        for action in p._actions:
            if action.option_strings:
                value = None if action.nargs == 0 else _value(action)
                flags |= {flag: (action.help or "", value) for flag in action.option_strings}
            elif positional is None or not positional.words:
                positional = _value(action)
        yield name, helps.get(name) or "", flags, positional


def _value(action: argparse.Action) -> Value:
    if action.choices:
        return Value(tuple(map(str, action.choices)), files=False)
    if action.dest == "recipe":
        return Value(_recipes())
    if action.dest == "set":
        return Value(tuple(f"{key}=" for key in _settings()), files=False)
    if action.dest == "until":
        return Value(_stages(), files=False)
    if action.dest in _ENGINES:
        return Value(("embedded", *_catalogue()))
    return Value(files=action.type in (None, Path))


def _recipes() -> tuple[str, ...]:
    from toolkit.recipe import recipes_folder

    return tuple(sorted(p.stem for p in recipes_folder().glob("*.yaml")))


def _settings() -> Iterator[str]:
    """Every key that --set takes."""
    from toolkit.recipe import Recipe

    def walk(kind: type, prefix: str) -> Iterator[str]:
        for name, hint in typing.get_type_hints(kind).items():
            yield from walk(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else [prefix + name]

    return walk(Recipe, "")


def _stages() -> tuple[str, ...]:
    from toolkit.runner import GREETING_STAGES, STAGES

    return tuple(dict.fromkeys(s.name for s in (*STAGES, *GREETING_STAGES)))


def _catalogue() -> tuple[str, ...]:
    from toolkit.models.catalogue import catalogue

    return tuple(e.name for e in catalogue() if e.name != "embedded")


_BASH = """\
# fablesmith: completion for {shell}; made by `fablesmith completion {shell}`
{load}_fablesmith() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="" verb="" words="" i
    [ "$COMP_CWORD" -gt 0 ] && prev="${{COMP_WORDS[COMP_CWORD-1]}}"
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "${{COMP_WORDS[i]}}" in
            -*) ;;
            *) verb="${{COMP_WORDS[i]}}"; break ;;
        esac
    done
    COMPREPLY=()
    case "$verb" in
        "") words="{verbs} --help --version" ;;
{cases}
    esac
    [ -n "$words" ] && COMPREPLY=( $(compgen -W "$words" -- "$cur") )
    case "${{COMPREPLY[0]}}" in
        *=) type compopt >/dev/null 2>&1 && compopt -o nospace 2>/dev/null ;;
    esac
    return 0
}}
complete -o bashdefault -o default -F _fablesmith fablesmith
"""


def bash(top: argparse.ArgumentParser, shell: str = "bash") -> str:
    """Words where we know them; where a file may stand nothing is offered, and the shell's own default offers files."""
    rows, cases = list(tree(top)), []
    for name, _, flags, positional in rows:
        after = {}  # value → flags before it
        for flag, (_, value) in flags.items():
            if value is not None:
                after.setdefault(value, []).append(flag)
        inner = [f"{'|'.join(names)}) {_offer(value)} ;;" for value, names in after.items()]
        own = f'words="{" ".join(flags)}"'
        inner.append(f'*) if [ "${{cur#-}}" != "$cur" ]; then {own}; {f"else {_offer(positional)}; " if positional else ""}fi ;;')  # fmt: skip
        lines = "\n".join(f"                {line}" for line in inner)
        cases.append(f'        {name})\n            case "$prev" in\n{lines}\n            esac ;;')
    load = (
        "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    )
    return _BASH.format(shell=shell, load=load, verbs=" ".join(r[0] for r in rows), cases="\n".join(cases))


def _offer(value: Value) -> str:
    return f'words="{" ".join(value.words)}"' if value.words else ":"


def zsh(top: argparse.ArgumentParser) -> str:
    """zsh reads bash's scripts; this one is."""
    return bash(top, "zsh")


def fish(top: argparse.ArgumentParser) -> str:
    lines = ["# fablesmith: completion for fish; made by `fablesmith completion fish`", "complete -c fablesmith -f"]
    lines += ["complete -c fablesmith -n __fish_use_subcommand -l help -d 'show the verbs'"]
    for name, help, flags, positional in tree(top):
        lines.append(f"complete -c fablesmith -n __fish_use_subcommand -a {name} -d {_fish(help)}")
        inside = f"complete -c fablesmith -n '__fish_seen_subcommand_from {name}'"
        for flag, (about, value) in flags.items():
            named = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            lines.append(f"{inside} {named} -d {_fish(re.split('[;(]', about)[0])}{_fish_value(value, ' -r')}")
        if positional:
            lines.append(inside + _fish_value(positional, ""))
    return "\n".join(lines) + "\n"


def _fish_value(value: Value | None, required: str) -> str:
    if value is None:
        return ""
    words = f" -a {_fish(' '.join(value.words))}" if value.words else ""
    return required + (" -F" if value.files else " -f") + words


def _fish(text: str) -> str:
    return "'" + text.strip().replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS = {"bash": bash, "zsh": zsh, "fish": fish}
VERBS = {"completion": completion}
