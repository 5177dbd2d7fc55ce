"""Runs on this machine: what a folder of one tells, and training as a process of its own that outlives the page."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from toolkit.demo.house import RECIPE, House
from toolkit.errors import UserError
from toolkit.recipe import load_recipe

NOTE, LOG = "page.json", "page.log"  # in a run's folder: the process that the page started, and what it said
TRAINED = ("sft", "reward", "pairwise", "dpo", "grpo")
CURVES = ("loss", "rewards/margins", "reward", "rewards/accuracies")  # the first two that a stage logs are drawn
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
CARD = "stage.json"


@dataclass(frozen=True)
class Step:
    """A stage of a run: state is done, working (its folder is begun), or waiting."""

    name: str
    state: str
    seconds: float | None = None
    peak_gb: float | None = None


def steps(folder: Path) -> list[Step]:
    """The stages of a run in order, as far as its folder tells; what is still to come where its recipe can be read."""
    names = _planned(folder)
    found = {p.parent.name for p in folder.glob(f"*/{CARD}")} | {
        p.name.removesuffix(".partial") for p in folder.glob("*.partial") if p.is_dir()
    }
    out = []
    for name in [*names, *sorted(found - set(names))]:
        card = read_json(folder / name / CARD)
        if card:
            out.append(Step(name, "done", card.get("seconds"), card.get("peak_gb")))
        else:
            out.append(Step(name, "working" if (folder / f"{name}.partial").is_dir() else "waiting"))
    return out


def _planned(folder: Path) -> list[str]:
    from toolkit.runner import GREETING_STAGES, STAGES

    task = read_json(folder / RECIPE).get("task", "plot")
    have = [s.name for s in (GREETING_STAGES if task == "greeting" else STAGES)]
    made = {p.parent.name for p in folder.glob(f"*/{CARD}")} | {p.stem for p in folder.glob("*.partial")}
    if "report" in made:
        return [n for n in have if n in made]  # it is whole: what its plan left out is not waited for
    with contextlib.suppress(UserError, OSError, KeyError, TypeError, ValueError):
        from toolkit.runner import plan

        return [s.name for s in plan(_recipe_of(folder))]
    return have


def _recipe_of(folder: Path):
    """The recipe that a run recorded. Raises UserError, KeyError, TypeError, ValueError where it is another version's."""
    from toolkit.runner import begun_with

    words = shlex.split(begun_with(folder))
    if not words:
        raise UserError("the recipe is not at hand")
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    return load_recipe(words[2], sets)


def read_json(path: Path) -> dict:
    """A JSON object from a file; empty where there is none, or it is being written."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_lines(path: Path, most: int = 100_000) -> list[dict]:
    """The whole lines of a JSONL file that may be growing. The file is left as it is, torn line and all."""
    rows = []
    with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                if isinstance(row := json.loads(line), dict):
                    rows.append(row)
            if len(rows) >= most:
                break
    return rows


_drawing = threading.Lock()  # matplotlib draws for one at a time


def curves(folder: Path) -> dict[str, str]:
    """Stage → its training curve so far as SVG text, for every stage that logs one."""
    from toolkit.evaluate.charts import curves as draw

    found = {}
    for name in TRAINED:
        rows = [
            r
            for r in read_lines(
                (folder / name if (folder / name).is_dir() else folder / f"{name}.partial") / "metrics.jsonl"
            )
            if isinstance(r.get("step"), (int, float))
        ]
        keys = [k for k in CURVES if any(isinstance(r.get(k), (int, float)) for r in rows)][:2]
        if rows and keys:
            with _drawing:
                found[name] = draw(
                    [{k: v for k, v in r.items() if isinstance(v, (int, float))} for r in rows],
                    {k: k for k in keys},
                    name,
                )
    return found


def pairs(folder: Path, most: int = 6) -> tuple[list[dict], int, Counter]:
    """(the surest pairs, how many there are, reason → how many pairs it left out)."""
    kept = [r for r in read_lines(folder / "pairs" / "pairs.jsonl") if {"prompt", "chosen", "rejected"} <= r.keys()]
    out = Counter(str(r.get("reason", "")) for r in read_lines(folder / "pairs" / "rejected.jsonl"))
    return sorted(kept, key=lambda r: -float(r.get("margin") or 0))[:most], len(kept), out


def pictures(house: House, folder: Path) -> dict[str, Path]:
    """Charts of a run: its diversity, its safety card's (`fablesmith safety`), and the quality–diversity chart of all runs."""
    known = {
        "diversity": folder / "evaluate" / "diversity.svg",
        "safety": safety_card(house, folder).with_suffix(".svg"),
        "frontier": house.runs / "frontier" / "frontier.svg",
    }
    return {name: path for name, path in known.items() if path.is_file()}


def safety_card(house: House, folder: Path) -> Path:
    """Where `fablesmith safety RUN` puts its page by default."""
    return house.runs / f"safety-{folder.name}" / "safety.html"


# ---- training


def recipes() -> list[str]:
    """Names of the shipped recipes, the quickstart first."""
    from toolkit.recipe import recipes_folder

    return sorted(
        (path.stem for path in recipes_folder().glob("*.yaml")), key=lambda name: (name != "quickstart", name)
    )


class Training:
    """Starts, watches and stops runs. A run goes on when the page or the server is closed; its folder tells the next one."""

    def __init__(self, house: House):
        self.house, self.started = house, {}

    def start(self, recipe: str, name: str, sets: list[str]) -> Path:
        """Run a shipped recipe in runs/NAME, or go on with it. Returns the folder.

        Raises UserError: no such recipe, a name that is no plain name, a setting that the recipe does not take, a run
        at work there, or a page that others than this machine's user may reach.
        """
        if not self.house.local:
            raise UserError("training starts only from this machine's own page", "serve on the default host")
        if recipe not in recipes():
            raise UserError("there is no such recipe here", "choose one from the list")
        if not isinstance(name, str) or not NAME.fullmatch(name) or name.endswith(".partial"):
            raise UserError(
                "a run's name is made of letters, digits, dots, dashes and underscores", "for example quickstart-2"
            )
        load_recipe(recipe, sets)
        folder = self.house.runs / name
        if self.at_work(folder):
            raise UserError(f"{name} is at work already", "stop it first, or choose another name")
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "toolkit", "run", recipe, "--out", str(folder)]
        command += [word for one in sets for word in ("--set", one)]
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self.started[process.pid] = process
        note = {"pid": process.pid, "recipe": recipe, "sets": sets, "born": _born(process.pid)}
        (folder / NOTE).write_text(json.dumps(note), encoding="utf-8")
        return folder

    def folder(self, name) -> Path:
        """The folder of a run, one that has only just been started included. Raises UserError as `House.run`."""
        plain = isinstance(name, str) and NAME.fullmatch(name)
        if plain and (self.house.runs / name / NOTE).is_file():
            return self.house.runs / name
        return self.house.run(name)

    def at_work(self, folder: Path) -> bool:
        """Whether a run works in the folder, whoever started it."""
        from toolkit.runner import is_running

        return self._process(folder) is not None or is_running(folder)

    def stop(self, folder: Path) -> None:
        """Interrupt the run that a page started there; what it made is kept. Raises UserError when it is somebody else's."""
        process = self._process(folder)
        if process is None:
            raise UserError(f"no run that this page could stop works in {folder.name}", "stop it where it was started")
        import psutil

        with contextlib.suppress(psutil.Error):
            family = [process, *process.children(recursive=True)]
            for end in ("terminate", "kill"):
                for one in family:
                    with contextlib.suppress(psutil.Error):
                        getattr(one, end)()
                family = psutil.wait_procs(family, timeout=8)[1]
                if not family:
                    break
        with (folder / LOG).open("ab") as log:
            log.write(b"\nstopped; what was made is kept\n")

    def _process(self, folder: Path):
        """The living process that the folder's note names; the time of its birth tells it from a later one of that number."""
        import psutil

        note = read_json(folder / NOTE)
        if (mine := self.started.get(note.get("pid"))) is not None and mine.poll() is not None:
            return None
        try:
            process = psutil.Process(note["pid"])
            alive = abs(process.create_time() - note["born"]) < 2 and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, KeyError, TypeError, ValueError):
            return None
        return process if alive else None


def _born(pid: int) -> float:
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def said(folder: Path, most: int = 14) -> str:
    """The last lines of what the run said; of a progress bar only its last state."""
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(max(0, os.path.getsize(folder / LOG) - 20_000))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.splitlines() if line.strip()]
    return (
        "\n".join(line for line in lines if line)[-6000:].split("\n", 1)[-1]
        if len(text) > 6000
        else "\n".join(lines[-most:])
    )


def verdict(recipe: str, sets: list[str]) -> dict:
    """Whether it fits this machine (`fablesmith fit --json`, in a process of its own: it loads torch) and about how long it
    takes. Raises UserError as `load_recipe`, and where the verdict cannot be had.
    """
    from toolkit.pace import estimate
    from toolkit.runner import plan

    loaded = load_recipe(recipe, sets)
    seconds = [estimate(loaded)[s.name].seconds for s in plan(loaded)]
    command = [sys.executable, "-m", "toolkit", "fit", recipe, *(x for s in sets for x in ("--set", s)), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, stdin=subprocess.DEVNULL)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        why = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error: ")]
        raise UserError(why[0] if why else "whether it fits cannot be told", "") from None
    return found | {"seconds": None if None in seconds else sum(seconds)}
