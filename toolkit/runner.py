"""Run a recipe's stages in order. A stage that stands is skipped, one whose settings or inputs changed is done again.

A stage is a function (recipe, work) → facts. It writes into `work.out`, a folder NAME.partial that survives a kill and
is reused when its key is still right; when the stage is whole the folder is renamed to NAME. The key is a hash of the
settings the stage reads, the files the user named, and the keys of the stages it needs.
"""

import dataclasses
import errno
import hashlib
import json
import os
import platform
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from toolkit import greeting_stages as G
from toolkit import safe_stages as I
from toolkit import stages as S
from toolkit.card import write_card
from toolkit.errors import UserError
from toolkit.hardware import (
    PACKAGES,
    PeakMemory,
    package_version,
    physical_cores,
    release_memory,
    require_disk,
    require_writable,
)
from toolkit.pace import estimate
from toolkit.progress import say
from toolkit.recipe import SHIPPED, WEIGHTED, Recipe, load_recipe
from toolkit.together import Processes

CARD = "stage.json"


@dataclass(frozen=True)
class Stage:
    """One step of a run. `settings`: recipe keys it reads, whole sections or section.key; `needs`: stages before it."""

    name: str
    does: str
    function: Callable[[Recipe, "Work"], dict]
    needs: tuple[str, ...]
    settings: tuple[str, ...]

    def alone(self, recipe: Recipe, processes: int) -> str | None:
        """Why the first process of a launch does it alone ("" where it is no training); None where all train it together."""
        if self.function not in TRAININGS:
            return ""
        settings = getattr(recipe, self.name)
        held = recipe.safety.signal != "none" and self.name in ("sft", "dpo", "grpo")
        if held and (recipe.safety.per == "batch" or recipe.safety.ema):
            return "safety.per: batch and safety.ema look at a whole batch, of which each process sees a part"
        step = settings.batch * getattr(settings, "accumulate", 1)
        if self.name == "grpo":
            step = settings.batch * settings.samples // settings.updates
        return f"{processes} processes cannot share a step of {step}" if step % processes else None


STAGES = (
    Stage("model", "weights and a GGUF of the base model", S.model, (), ("model",)),
    Stage("premises", "choose premises and well-made plots", S.premises, (), ("seed", "premises")),
    Stage("candidates", "several plots a premise, through llama.cpp", S.candidates, ("model", "premises"), ("seed", "candidates")),
    Stage("ratings", "positive and negative assessment of each candidate", S.ratings, ("model", "premises", "candidates"), ("seed", "ratings")),
    Stage("reward", "train the aspect reward model", S.reward, ("model", "premises", "candidates", "ratings"), ("seed", "model", "reward")),
    Stage("deviation", "how unusual each answer is among those to its prompt", S.deviation, ("candidates",), ("deviation",)),
    Stage("pairs", "score candidates, keep confident pairs", S.pairs, ("candidates", "ratings", "reward"), ("pairs",)),
    Stage("dpo", "align the writer", S.dpo, ("model", "pairs"), ("seed", "model", "dpo", "tripwire", "candidates.max_tokens", "deviation.semantic")),
    Stage("export", "GGUF of what was trained, with proof", S.export, ("model", "dpo"), ("model", "export")),
    Stage(
        "passport",
        "how far the judge can be trusted",
        S.passport,
        (),
        ("evaluate.judge", "evaluate.passport", "evaluate.passport_pairs", "evaluate.people"),
    ),
    Stage(
        "evaluate",
        "base against aligned on unseen premises",
        S.evaluate,
        ("model", "premises", "export", "reward", "passport"),
        (
            *("seed", "candidates.max_tokens", "candidates.min_p", "candidates.repeat_penalty"),
            *("deviation.semantic", "deviation.style", "evaluate"),
        ),
    ),
    Stage("report", "report.html", S.report, (), ("name", "about", "memory")),
)  # fmt: skip

GREETING_STAGES = (
    Stage("model", "weights and a GGUF of the base model", S.model, (), ("model",)),
    Stage("requests", "choose requests, and greetings known to be good or flawed", G.requests, (), ("seed", "requests", "align", "grpo.rewards")),
    Stage("sft", "cold start on good greetings", G.sft, ("model", "requests"), ("seed", "model", "sft")),
    Stage("rejection", "agents for and against each answer, a judge, a reviewer", G.rejection, ("model", "requests", "sft"), ("seed", "rejection.agents", "rejection.writer", "rejection.positive", "rejection.negative", "rejection.judge", "rejection.reflector", "rejection.requests", "rejection.per_request", "rejection.temperatures", "rejection.examples", "rejection.among", "rejection.retrieval", "rejection.words", "rejection.tries", "rejection.check")),
    Stage("pairs", "accepted against rejected answers", G.pairs, ("requests", "rejection"), ("rejection.pairs", "rejection.length_ratio", "rejection.curated")),
    Stage("pairwise", "train the reward model (Bradley–Terry)", G.pairwise, ("model", "pairs"), ("seed", "model", "pairwise")),
    Stage("unseen", "a judge of greetings that nothing else learns from", G.unseen, ("requests",), ()),
    Stage("principles", "judging principles, sharpened against a writer of flaws", G.principles, ("model", "requests", "sft"), ("seed", "principles")),
    Stage("grpo", "align the writer by its rewards", G.grpo, ("model", "requests", "sft"), ("seed", "model", "grpo", "tripwire", "principles.agent")),
    Stage("dpo", "align the writer on the pairs", G.dpo, ("model", "requests", "sft", "pairs"), ("seed", "model", "dpo", "tripwire", "grpo.max_tokens")),
    Stage("export", "GGUF of what was trained, with proof", S.export, ("model",), ("model", "export")),
    Stage("evaluate", "base, cold start, best of n and aligned on unseen requests", G.evaluate, ("model", "requests", "sft", "unseen", "export"), ("seed", "principles.agent", "evaluate.per_premise", "evaluate.best_of", "evaluate.temperature")),
    Stage("report", "report.html", G.report, (), ("name", "about", "memory")),
)  # fmt: skip

TRAININGS = {S.reward, S.dpo, G.sft, G.pairwise, G.dpo, G.grpo, I.sft}  # each with a section of its name in the recipe

INSTRUCT_STAGES = (
    Stage("model", "weights and a GGUF of the base model", S.model, (), ("model",)),
    Stage("data", "your chats, some of them kept for testing", I.data, (), ("seed", "data")),
    Stage("risk", "how risky it is to learn each answer", I.risk, ("model", "data"), ("model",)),
    Stage("sft", "learn the answers, held to the base where they are risky", I.sft, ("model", "data", "risk"), ("seed", "model", "sft")),
    Stage("export", "GGUF of what was trained, with proof", S.export, ("model", "sft"), ("model", "export")),
    Stage("safety", "what became of the model's safety and of its task", I.safety, ("model", "data", "export"), ("seed", "safety.harmful", "safety.lookalikes", "safety.judge", "safety.most", "safety.max_tokens")),
    Stage("report", "report.html", I.report, (), ("name", "about", "memory")),
)  # fmt: skip
ASKED = tuple(f"safety.{name}" for name in ("signal", "probe", "critic", "random_of"))  # what risks depend on
HELD = (*ASKED, *(f"safety.{name}" for name in ("beta_min", "beta_max", "map", "per", "ema", "reference")))


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe, in order."""
    plans = {"plot": _plot_plan, "greeting": _greeting_plan, "instruct": _instruct_plan}
    listed, left_out, more = plans[recipe.task](recipe)
    stages = _in_order(
        [
            dataclasses.replace(s, needs=tuple(n for n in (*s.needs, *more.get(s.name, ())) if n not in left_out))
            for s in listed
            if s.name not in left_out
        ]
    )
    if recipe.safety.signal != "none":  # a run that nothing holds has the keys it always had
        reads = {"risk": ASKED, "sft": HELD, "dpo": HELD, "grpo": HELD}
        stages = [dataclasses.replace(s, settings=s.settings + reads.get(s.name, ())) for s in stages]
    before = [s.name for s in stages if s.name != "report"]
    return [dataclasses.replace(s, needs=tuple(before)) if s.name == "report" else s for s in stages]


def _plot_plan(recipe: Recipe) -> tuple[tuple[Stage, ...], set[str], dict[str, tuple[str, ...]]]:
    """(all stages, names left out, needs to add). With the user's own pairs nothing is generated, rated or rewarded.

    Deviations are measured only where a loss or a selection uses them, and only that stage then needs them: runs that
    differ in nothing else share everything before.
    """
    divpo, weighted = recipe.pairs.select == "divpo", recipe.dpo.loss in WEIGHTED
    left_out = {"candidates", "ratings", "reward"} if recipe.pairs.file else set()
    if not (divpo or weighted):
        left_out.add("deviation")
    more = {"pairs": ("deviation",)} if divpo else {}
    more |= {"dpo": ("deviation",)} if weighted else {}
    if recipe.tripwire.every:
        more["dpo"] = (*more.get("dpo", ()), *(() if recipe.pairs.file else ("premises", "reward")))
    if recipe.pairs.file:
        more["deviation"] = ("pairs",)
    return STAGES, left_out, more


def _greeting_plan(recipe: Recipe) -> tuple[tuple[Stage, ...], set[str], dict[str, tuple[str, ...]]]:
    """As `_plot_plan`. Without a reward model no agent need be asked, without the judge no principle."""
    by_model = recipe.align == "dpo" or "model" in recipe.grpo.rewards
    by_judge = recipe.align == "grpo" and "judge" in recipe.grpo.rewards
    left_out = {"dpo" if recipe.align == "grpo" else "grpo"}
    left_out |= set() if by_model else {"rejection", "pairs", "pairwise"}
    left_out |= set() if by_judge else {"principles"}
    paid = ("pairwise",) * by_model + ("principles",) * by_judge
    watch = ("unseen",) * bool(recipe.tripwire.every)
    aligned = (*(paid if recipe.align == "grpo" or watch else ()), *watch)
    return GREETING_STAGES, left_out, {recipe.align: aligned, "export": (recipe.align,), "evaluate": paid}


def _instruct_plan(recipe: Recipe) -> tuple[tuple[Stage, ...], set[str], dict[str, tuple[str, ...]]]:
    """As `_plot_plan`. Where nobody is asked for risks there is no such stage."""
    return INSTRUCT_STAGES, set() if recipe.safety.asks else {"risk"}, {}


def _in_order(stages: list[Stage]) -> list[Stage]:
    """As they are listed, each after what it needs."""
    ordered: list[Stage] = []
    while left := [s for s in stages if s not in ordered]:
        done = {s.name for s in ordered}
        ordered.append(next(s for s in left if done.issuperset(s.needs)))
    return ordered


@dataclass(frozen=True)
class Work:
    """Where a stage works: `out` is its own partial folder; `of(name)` the finished folder of a stage before it."""

    root: Path
    out: Path
    stages: tuple[str, ...]

    def of(self, name: str) -> Path:
        return self.root / name

    def has(self, name: str) -> bool:
        """Whether the run has a stage of this name (not every recipe has all)."""
        return name in self.stages

    def card(self, name: str) -> dict:
        """What a finished stage recorded of itself."""
        return json.loads((self.root / name / CARD).read_text())


def stage_keys(recipe: Recipe) -> dict[str, str]:
    """Stage name → key, from settings, named files and the keys of the needed stages."""
    keys: dict[str, str] = {}
    for stage in plan(recipe):
        part = {
            "stage": stage.name,
            "settings": {path: _lookup(recipe, path) for path in stage.settings},
            "files": {
                path: _file_hash(_lookup(recipe, path))
                for path in _FILES
                if path in stage.settings or path.split(".")[0] in stage.settings
            },
            "needs": {name: keys[name] for name in stage.needs},
            "version": package_version("fablesmith"),
        }
        if "probe" in recipe.safety.asks and "safety.probe" in stage.settings:
            part["probe"] = _probe_of(recipe)
        if stage.name == "candidates" and recipe.candidates.writer == "base":
            # a run has the keys it had before there was a choice
            del part["settings"]["candidates"]["writer"], part["files"]["candidates.writer"]
        if stage.name == "pairs" and recipe.task == "plot" and recipe.pairs.file:
            part["skip_bad_lines"] = recipe.premises.skip_bad_lines
        keys[stage.name] = hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:20]
    return keys


def _probe_of(recipe: Recipe) -> str:
    """What tells the probe that would be asked from any other; auto may find another one tomorrow. "" where there is none yet."""
    from toolkit.models.resolve import resolve
    from toolkit.safety.probe import find_probe

    try:
        probe = find_probe(recipe.safety.probe, resolve(recipe.model.id, recipe.model.gguf or None))
    except UserError:
        return ""
    return hashlib.sha256(probe.weights.tobytes() + repr((probe.layer, probe.slope, probe.shift)).encode()).hexdigest()


_FILES = (
    "premises.file",
    "premises.plots",
    "pairs.file",
    "model.gguf",
    "model.id",
    "deviation.semantic",
    "deviation.style",
    "candidates.writer",
    "ratings.rater",
    "evaluate.judge",
    "evaluate.people",
    "safety.critic",
    "safety.harmful",
    "safety.lookalikes",
    "safety.judge",
    "data.file",
    "requests.file",
    "requests.labelled",
    "rejection.agents",
    "rejection.writer",
    "rejection.positive",
    "rejection.negative",
    "rejection.judge",
    "rejection.reflector",
    "rejection.retrieval",
    "principles.agent",
    "principles.detector",
    "principles.generator",
)


def _lookup(recipe: Recipe, path: str):
    value = recipe
    for name in path.split("."):
        value = getattr(value, name)
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


def _file_hash(name: str) -> str:
    """What a named file holds: a hash of a text, size and date of weights (hashing those would take minutes)."""
    path = Path(name)
    if not name or name == SHIPPED or not path.exists():
        return name
    if path.is_dir():
        return " ".join(_file_hash(str(p)) for p in [path / "config.json", *sorted(path.glob("*.safetensors"))])
    if path.suffix in {".gguf", ".safetensors"}:
        return f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _up_to(recipe: Recipe, until: str) -> list[Stage]:
    """The plan, as far as the stage named. Raises UserError when there is none of that name."""
    stages = plan(recipe)
    names = [s.name for s in stages]
    if until and until not in names:
        raise UserError(f"{recipe.name} has no stage {until!r}", f"its stages: {', '.join(names)}")
    return stages[: names.index(until) + 1] if until else stages


def plan_facts(recipe: Recipe, out: Path, until: str = "") -> list[dict]:
    """What each stage would do: {"stage", "state": todo, stands or elsewhere, "run": where it stands, "seconds", "size"}.

    Seconds are those expected of what is left to do; None where the model's size is not known before it is fetched.
    """
    keys, estimates, rows = stage_keys(recipe), estimate(recipe), []
    for stage in _up_to(recipe, until):
        e = estimates[stage.name]
        row = {"stage": stage.name, "state": "todo", "run": None, "seconds": e.seconds, "size": e.size}
        if stands(out / stage.name, keys[stage.name]):
            row |= {"state": "stands", "run": str(out), "seconds": 0.0}
        elif other := _find_elsewhere(out, stage.name, keys[stage.name]):
            row |= {"state": "elsewhere", "run": str(other.parent), "seconds": 0.0}
        rows.append(row)
    return rows


def show_plan(recipe: Recipe, out: Path, until: str = "") -> str:
    """The plan as text: stages, sizes, expected time, and what stands already in `out`."""
    rows = plan_facts(recipe, out, until)
    shown = {"stands": lambda r: "stands", "elsewhere": lambda r: f"in {Path(r['run']).name}"}
    shown["todo"] = lambda r: "?" if r["seconds"] is None else _clock(r["seconds"])
    lines = [f"  {r['stage']:<11} {shown[r['state']](r):>12}   {r['size']}" for r in rows]
    total, unknown = sum(r["seconds"] or 0 for r in rows), any(r["seconds"] is None for r in rows)
    ending = " and what is marked ?: a model's pace is not known before it is fetched" if unknown else ""
    head = f"{recipe.name}: {recipe.about}\n" if recipe.about else f"{recipe.name}\n"
    needs = f"needs {recipe.memory}\n" if recipe.memory else ""
    return (
        f"{head}{needs}in {out}:\n"
        + "\n".join(lines)
        + f"\nabout {_clock(total)} on 2 cores{ending}. Nothing was executed."
    )


def run_recipe(recipe: Recipe, out: Path, until: str = "") -> Path:
    """Run what is not done yet of `recipe` in the folder `out`; returns the report.

    Args:
        until: stop after the stage of this name, and return its folder.

    Of several processes (toolkit.together) the first does this; the others train with it where a stage is trained together.

    Raises UserError when there is no such stage, the folder cannot be written, another run works in it, or the disk is
    full (what was made stays, and the next run goes on from it).
    """
    from toolkit.models.embed import check_embedding

    out = Path(out)
    found = recipe.rejection.retrieval
    for model in (recipe.deviation.semantic, recipe.deviation.style, "minilm" if found == "auto" else found):
        check_embedding(model)  # it is needed late: a name that leads nowhere is told now
    _check_asked(recipe)
    with Processes() as processes:
        if processes.rank:
            return _join(recipe, out, until, processes)
        return _run(recipe, out, until, processes)


def _join(recipe: Recipe, out: Path, until: str, processes: Processes) -> Path:
    """What a process does that is not the first of its launch: train where all do."""
    names = tuple(s.name for s in plan(recipe))
    for stage in _up_to(recipe, until):
        if stage.alone(recipe, processes.count) is None and processes.told(stage.name) == "together":
            partial = out / f"{stage.name}.partial"
            if not partial.is_dir():
                raise UserError(f"no folder {partial} here", "--out must be on a disk that all machines share")
            with processes.together(stage.name):
                stage.function(recipe, Work(out, partial, names))
            release_memory()
    return out


def _run(recipe: Recipe, out: Path, until: str, processes: Processes) -> Path:
    require_writable(out)
    require_disk(out, 2000, "a run")
    with _only_one(out):
        stages, keys = _up_to(recipe, until), stage_keys(recipe)
        names = tuple(s.name for s in plan(recipe))
        (out / "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe), indent=1, ensure_ascii=False))
        estimates, started = estimate(recipe), time.monotonic()
        for number, stage in enumerate(stages, 1):
            title = f"[{number}/{len(stages)}] {stage.name:<11}"
            if stands(out / stage.name, keys[stage.name]):
                say(f"{title} stands, skipped")
                processes.tell(stage.name, "stands")
                continue
            if other := _find_elsewhere(out, stage.name, keys[stage.name]):
                _link_tree(other, out / stage.name)
                say(f"{title} taken from {other.parent}")
                processes.tell(stage.name, "stands")
                continue
            expected = getattr(estimates.get(stage.name), "seconds", None)
            say(f"{title} {stage.does}" + (f", about {_clock(expected)}" if expected and expected > 5 else ""))
            seconds = _do(stage, recipe, keys[stage.name], out, names, processes)
            processes.tell(stage.name, "stands")
            say(f"{'':17}{seconds:.0f} s")
            _write_manifest(out, recipe, names)
        _write_manifest(out, recipe, names)
        write_card(out)
        made = out / until if until else out / "report" / "report.html"
        say(f"done in {_clock(time.monotonic() - started)}: {made}")
    return made


def _check_asked(recipe: Recipe) -> None:
    """Raises UserError where the probe or the critic that a run would ask for risks is not there."""
    if "probe" in recipe.safety.asks:
        from toolkit.models.resolve import resolve
        from toolkit.safety.probe import find_probe

        find_probe(recipe.safety.probe, resolve(recipe.model.id, recipe.model.gguf or None))
    if "critic" in recipe.safety.asks:
        from toolkit.engines.load import check_engine

        check_engine(recipe.safety.critic)


def stands(folder: Path, key: str) -> bool:
    """Whether a stage's folder is whole, of this key, and has the files it recorded, at their sizes."""
    try:
        card = json.loads((folder / CARD).read_text())
        return card["key"] == key and all((folder / n).stat().st_size == size for n, size in card["files"].items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _do(stage: Stage, recipe: Recipe, key: str, out: Path, names: tuple[str, ...], processes: Processes) -> float:
    partial, final = out / f"{stage.name}.partial", out / stage.name
    mark = partial / ".key"
    if stands(partial, key):  # killed after the work, before the renaming
        _put_in_place(partial, final)
        return 0.0
    if partial.exists() and (not mark.exists() or mark.read_text() != key):
        shutil.rmtree(partial)
    resumed = partial.exists()
    partial.mkdir(exist_ok=True)
    mark.write_text(key)
    started = time.monotonic()
    try:
        why = stage.alone(recipe, processes.count)
        if why and processes.count > 1:
            say(f"  the first process trains this alone: {why}")
        shared = processes.together(stage.name) if why is None else nullcontext()
        with PeakMemory() as memory, shared:
            facts = stage.function(recipe, Work(out, partial, names))
    except Exception as error:
        if _disk_is_full(error):
            raise UserError(
                f"the disk of {out} is full (stage {stage.name})",
                "free some space and run again: what was made so far is kept and reused",
            ) from error
        raise
    release_memory()
    seconds = time.monotonic() - started
    files = {
        str(p.relative_to(partial)): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file() and p != mark
    }
    card = {
        "stage": stage.name,
        "key": key,
        "seconds": round(seconds, 1),
        "peak_gb": round(memory.gb, 2),
        "resumed": resumed,
    }
    (partial / CARD).write_text(json.dumps({**card, "facts": facts, "files": files}, indent=1, ensure_ascii=False))
    _put_in_place(partial, final)
    return seconds


def _put_in_place(partial: Path, final: Path) -> None:
    old = final.with_name(final.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _disk_is_full(error: BaseException) -> bool:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left on device" in str(error)  # safetensors and torch wrap the system's error in a text


def _find_elsewhere(out: Path, name: str, key: str) -> Path | None:
    """The same stage, whole and of the same key, in another run beside this one."""
    for card in sorted(out.resolve().parent.glob(f"*/{name}/{CARD}")):
        if card.parent.parent != out.resolve() and stands(card.parent, key):
            return card.parent
    return None


def _link_tree(source: Path, target: Path) -> None:
    """Copy a finished stage by hard links where the disk has them: no space, no time."""

    def link(a, b):
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)

    arriving = target.with_name(target.name + ".arriving")
    shutil.rmtree(arriving, ignore_errors=True)
    shutil.copytree(source, arriving, copy_function=link)
    shutil.rmtree(target, ignore_errors=True)
    arriving.rename(target)


class _only_one:
    """One run at a time in a folder. The lock is the system's, so a killed process leaves none behind."""

    def __init__(self, out: Path):
        self.path = out / ".lock"

    def __enter__(self):
        self.file = self.path.open("w")
        try:
            if os.name == "nt":
                import msvcrt

                msvcrt.locking(self.file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.close()
            raise UserError(
                f"another run works in {self.path.parent}", "wait for it, or name another folder with --out"
            ) from None

    def __exit__(self, *exc):
        self.file.close()


def is_running(out: Path) -> bool:
    """Whether a run works in the folder at this moment."""
    if not (out / ".lock").is_file():
        return False
    try:
        with _only_one(out):
            return False
    except UserError:
        return True
    except OSError:  # a folder that is another's to write
        return False


def begun_with(out: Path) -> str:
    """The command that goes on with the run in `out`, from the settings it recorded; "" when its recipe is not at hand."""
    try:
        saved = json.loads((out / "recipe.json").read_text())
        shipped = json.loads(json.dumps(dataclasses.asdict(load_recipe(saved["name"]))))
    except (UserError, KeyError, ValueError):
        return ""
    sets = [f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in _differences(saved, shipped)]
    words = ["fablesmith", "run", saved["name"], *(w for text in sets for w in ("--set", text))]
    here = Path("runs") / saved["name"]
    return shlex.join(words if out.resolve() == here.resolve() else [*words, "--out", str(out)])


def _differences(saved: dict, shipped: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in saved.items():
        if isinstance(value, dict):
            yield from _differences(value, shipped.get(key, {}), f"{prefix}{key}.")
        elif key in shipped and value != shipped[key]:
            yield prefix + key, value


def _write_manifest(out: Path, recipe: Recipe, names: tuple[str, ...]) -> None:
    cards = [json.loads((out / n / CARD).read_text()) for n in names if (out / n / CARD).is_file()]
    manifest = {
        "recipe": dataclasses.asdict(recipe),
        "machine": {"system": platform.platform(), "cores": physical_cores(), "python": platform.python_version()},
        "versions": {name: package_version(name) for name in PACKAGES},
        "stages": [{k: v for k, v in c.items() if k != "files"} for c in cards],
    }
    partial = out / "manifest.json.partial"
    partial.write_text(json.dumps(manifest, indent=1, ensure_ascii=False))
    os.replace(partial, out / "manifest.json")


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)} min {int(seconds % 60)} s" if seconds >= 60 else f"{seconds:.0f} s"
