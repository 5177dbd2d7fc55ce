"""Will a run fit? Every stage's memory against this machine's (or one that is named), and which single change would help."""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.errors import UserError
from toolkit.memory import Run, Use
from toolkit.recipe import Recipe
from toolkit.runner import plan

ATTENTION = ("attention",)
MARGIN = 0.03  # of a card or of RAM that is left alone: the screen's, the system's
WHERE = ("vram", "ram")


class DoesNotFit(UserError):
    """The run needs more memory than there is (exit code 3)."""

    code = 3


@dataclass(frozen=True)
class Stage:
    """A stage's peak in GiB by part; `kept` and `scratch` are on disk, the latter until the stage is done."""

    name: str
    vram: dict[str, float] = field(default_factory=dict)
    ram: dict[str, float] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)
    scratch: dict[str, float] = field(default_factory=dict)

    def peak(self, where: str) -> float:
        return sum(getattr(self, where).values())


@dataclass(frozen=True)
class Help:
    """One change of the recipe: `set` is what `--set` takes, `vram` and `ram` the peaks (GiB) with it."""

    change: str
    set: tuple[str, ...]
    vram: float
    ram: float
    fits: bool


@dataclass(frozen=True)
class Fit:
    """The verdict. Figures are GiB; `parameters` and `active` count the model's. `has_…` is what the machine has."""

    recipe: str
    model: str
    parameters: int
    active: int
    stages: tuple[Stage, ...]
    has_vram: float
    has_ram: float
    has_disk: float | None
    what_helps: tuple[Help, ...] = ()

    def peak(self, where: str) -> float:
        """The most that a stage holds of `vram` or `ram`."""
        return max((s.peak(where) for s in self.stages), default=0.0)

    @property
    def disk(self) -> float:
        """What stays on disk, and the largest that a stage needs for a time."""
        return sum(s.peak("kept") for s in self.stages) + max((s.peak("scratch") for s in self.stages), default=0.0)

    def short(self) -> list[str]:
        """Which of vram, ram and disk are not enough."""
        found = [w for w, has in (("vram", self.has_vram), ("ram", self.has_ram)) if self.peak(w) > has * (1 - MARGIN)]
        return found + ["disk"] * (self.has_disk is not None and self.disk > self.has_disk)

    @property
    def fits(self) -> bool:
        return not self.short()


def fit(
    recipe: Recipe,
    vram_gb: float | None = None,
    ram_gb: float | None = None,
    *,
    stages: tuple[str, ...] | None = None,
    disk_gb: float | None = None,
) -> Fit:
    """Predict what every stage of a recipe holds, and compare it with a machine.

    Args:
        vram_gb, ram_gb, disk_gb: GiB of the machine; None asks this one (vram_gb 0: no graphics card; its disk is not
            asked where another machine is named).
        stages: only these.

    Raises:
        UserError: the model's configuration is nowhere, or a LoRA target names nothing of it.
    """
    here = vram_gb is None and ram_gb is None
    vram = _card() if vram_gb is None else vram_gb
    ram = _ram() if ram_gb is None else ram_gb
    disk = shutil.disk_usage(Path.cwd()).free / 2**30 if here and disk_gb is None else disk_gb
    names = [s.name for s in plan(recipe) if stages is None or s.name in stages]
    run = Run(recipe, vram)
    found = Fit(
        recipe.name,
        recipe.model.id,
        run.sizes.total,
        run.sizes.active,
        tuple(_stage(name, run.use(name, names[:at])) for at, name in enumerate(names)),
        vram,
        ram,
        disk,
    )
    if found.fits or found.short() == ["disk"]:
        return found
    return dataclasses.replace(found, what_helps=tuple(_what_helps(recipe, found, run)))


def _stage(name: str, use: Use) -> Stage:
    round_all = lambda parts: {k: round(v, 3) for k, v in parts.items() if v >= 0.0005}  # noqa: E731
    return Stage(name, *(round_all(getattr(use, part)) for part in ("vram", "ram", "kept", "scratch")))


def _what_helps(recipe: Recipe, found: Fit, run: Run) -> Iterator[Help]:
    """Each single change with what it makes of the stages that do not fit; those that make the run fit come first."""
    tried = []
    for change, sets, changed in changes(recipe):
        if not sets:
            continue
        again, names = Run(changed, found.has_vram, run), [s.name for s in found.stages]
        stages = []
        for at, stage in enumerate(found.stages):
            tight = any(stage.peak(w) > getattr(found, f"has_{w}") * (1 - MARGIN) for w in WHERE)
            stages.append(_stage(stage.name, again.use(stage.name, names[:at])) if tight else stage)
        then = dataclasses.replace(found, stages=tuple(stages), has_disk=None)
        gained = sum(found.peak(w) - then.peak(w) for w in found.short() if w in WHERE)
        if gained > 0.01:
            tried.append(Help(change, sets, round(then.peak("vram"), 2), round(then.peak("ram"), 2), then.fits))
    yield from sorted(tried, key=lambda h: (not h.fits, h.vram + h.ram))


def changes(recipe: Recipe) -> Iterator[tuple[str, tuple[str, ...], Recipe]]:
    """(what, for --set, the recipe with it) for each single change worth a try."""
    trains = [name for name in _trained(recipe)]

    def to(what: str, sections: list[str], **values):
        """The same new values in several sections, where they are new."""
        new, sets = recipe, []
        for name in sections:
            section = getattr(new, name)
            fresh = {k: v for k, v in values.items() if getattr(section, k, v) != v}
            if fresh:
                new = dataclasses.replace(new, **{name: dataclasses.replace(section, **fresh)})
                sets += [f"{name}.{k}={json.dumps(v)}" for k, v in fresh.items()]
        return (what, tuple(sets), new)

    yield to("weights in 4 bits", ["model"], four_bit=True)
    yield to("gradient checkpointing", trains, gradient_checkpointing=True)
    lora, sets = recipe, []
    for name in trains:
        section = getattr(recipe, name)
        if hasattr(section, "lora") and section.lora.targets != ATTENTION:
            own = dataclasses.replace(section.lora, targets=ATTENTION)
            lora = dataclasses.replace(lora, **{name: dataclasses.replace(section, lora=own)})
            sets.append(f"{name}.lora.targets=[{', '.join(ATTENTION)}]")
    yield "LoRA on attention only", tuple(sets), lora
    yield to("one pair or group at a time", [n for n in trains if n != "grpo"], batch=1)
    if "grpo" in trains:
        yield to("one answer a forward pass", ["grpo"], mini_batch=1)
        yield to("half as many requests a round", ["grpo"], batch=max(1, recipe.grpo.batch // 2))
    yield to("the judge on the CPU", ["evaluate"], judge_on="cpu")
    yield to("experts of writers and judges in RAM while they are compared", ["evaluate"], gpu_experts="none")
    yield to("no tripwire", ["tripwire"], every=0)
    yield to("not held to the reference, which gives up what `safety` is for", ["safety"], signal="none")
    for share in (0.75, 0.5, 0.25):
        shorter = {n: int(getattr(recipe, n).max_tokens * share) for n in trains}
        new, sets = recipe, []
        for name, tokens in shorter.items():
            new = dataclasses.replace(
                new, **{name: dataclasses.replace(getattr(new, name), max_tokens=max(32, tokens))}
            )
            sets.append(f"{name}.max_tokens={max(32, tokens)}")
        yield f"texts of at most {share:.0%} of the tokens", tuple(sets), new


def _trained(recipe: Recipe) -> list[str]:
    names = {s.name for s in plan(recipe)}
    return [n for n in ("sft", "reward", "pairwise", "dpo", "grpo") if n in names]


# ---- in words


def table(found: Fit) -> str:
    """The verdict for people: a line a stage, the tightest one by part, and what helps."""
    active = f", {found.active / 1e9:.1f}B active" if found.active != found.parameters else ""
    lines = [f"{found.recipe}: {found.model}, {found.parameters / 1e9:.2f}B parameters{active}", ""]
    lines.append(f"  {'stage':<11} {'VRAM':>6} {'RAM':>6} {'disk':>6}   GiB at the peak")
    for s in found.stages:
        disk = s.peak("kept") + s.peak("scratch")
        cells = [f"{v:6.1f}" if v >= 0.05 else f"{'·':>6}" for v in (s.peak("vram"), s.peak("ram"), disk)]
        lines.append(f"  {s.name:<11} {' '.join(cells)}")
    lines.append("")
    where = "vram" if found.has_vram else "ram"
    worst = max(found.stages, key=lambda s: s.peak(where), default=None)
    if worst and worst.peak(where):
        parts = ", ".join(f"{k} {v:.2f}" for k, v in getattr(worst, where).items() if v >= 0.005)
        lines.append(f"  most {where.upper()} in {worst.name}: {parts}")
    if in_ram := [s.name for s in found.stages if any(part.startswith("experts of ") for part in s.ram)]:
        lines.append(f"  experts wait in RAM, the rest of their model is on the card: {', '.join(in_ram)}")
    has = {"vram": found.has_vram, "ram": found.has_ram, "disk": found.has_disk}
    needs = {"vram": found.peak("vram"), "ram": found.peak("ram"), "disk": found.disk}
    said = [f"{w.upper() if w != 'disk' else w} {needs[w]:.1f} of {has[w]:.1f} GiB" for w in has if has[w]]
    lines.append(f"  {'fits' if found.fits else 'DOES NOT FIT'}: {', '.join(said)}")
    if found.what_helps:
        lines += ["", *_helps(found)]
    return "\n".join(lines)


def _helps(found: Fit) -> list[str]:
    enough = [h for h in found.what_helps if h.fits]
    head = (
        "any one of these makes it fit:"
        if enough
        else "no single change makes it fit (`fablesmith fit` lists recipes that do); the largest gains:"
    )
    where = "vram" if "vram" in found.short() else "ram"
    shown = enough or found.what_helps[:3]
    return [f"  {head}"] + [
        f"    {h.change}: {where.upper()} {getattr(h, where):.1f} GiB   --set {' --set '.join(repr(s) for s in h.set)}"
        for h in shown
    ]


def check(recipe: Recipe, stages: tuple[str, ...] | None = None) -> Fit:
    """What `run` asks before anything is fetched or made; `stages`: those that are still to do.

    Raises DoesNotFit, with the verdict, where memory is not enough; UserError where the recipe cannot run here at all: weights
    that are not to be had, another kind of model than it is for, a LoRA target that names nothing, a precision that the card lacks.
    """
    from toolkit.models.hub import require
    from toolkit.models.load import pick_dtype
    from toolkit.models.resolve import resolve

    pick_dtype(recipe.model.dtype)
    require(resolve(recipe.model.id))
    _require_engines(recipe)
    found = fit(recipe, stages=stages)
    is_mixture, kind = found.parameters != found.active, recipe.model.kind
    if kind != "any" and is_mixture != (kind == "moe"):
        is_a = "a mixture of experts" if is_mixture else "a dense model"
        raise UserError(
            f"model.id: {recipe.model.id} is {is_a}, and {recipe.name} is for {'mixtures' if kind == 'moe' else 'dense ones'}",
            "name another model, or set model.kind: any and look at lora.targets",
        )
    if recipe.dpo.router_aux and not is_mixture and any(s.name == "dpo" for s in found.stages):
        raise UserError(
            f"dpo.router_aux = {recipe.dpo.router_aux:g}, but {recipe.model.id} has no routers to balance",
            "set it to 0",
        )
    if not found.fits:
        raise DoesNotFit(f"{recipe.name} does not fit this machine\n{table(found)}", "--no-fit runs it all the same")
    return found


def _require_engines(recipe: Recipe) -> None:
    """Raise UserError for a judge or an agent that is not on this machine and must not be fetched."""
    from toolkit.models.catalogue import catalogue

    if os.environ.get("HF_HUB_OFFLINE") != "1":
        return
    names = {s.name for s in plan(recipe)}
    asked = [("evaluate.judge", recipe.evaluate.judge), *(("evaluate.jury", j) for j in recipe.evaluate.jury)]
    asked = asked if "passport" in names else []
    asked += [("ratings.rater", recipe.ratings.rater)] if "ratings" in names else []
    if "rejection" in names:
        r = recipe.rejection
        asked += [
            (f"rejection.{f}", getattr(r, f))
            for f in ("agents", "writer", "positive", "negative", "judge", "reflector")
        ]
    asked += [("principles.agent", recipe.principles.agent)] if "principles" in names else []
    known = {e.name: e for e in catalogue()}
    for key, name in asked:
        e = known.get(name.lower())
        if e is not None and not e.path.is_file():
            raise UserError(
                f"{key}: {name} is not on this machine ({e.repo}: {e.file}, {e.size_gb:g} GB)",
                f"without --offline it is fetched; or put it at {e.path}",
            )


def as_dict(found: Fit) -> dict:
    """For --json: every field, with the peaks and the verdict."""
    peaks = {"vram": round(found.peak("vram"), 2), "ram": round(found.peak("ram"), 2), "disk": round(found.disk, 2)}
    return {**dataclasses.asdict(found), "needs": peaks, "fits": found.fits, "short": found.short()}


def _card() -> float:
    """GiB of the first graphics card, all of it; 0 where torch sees none."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else 0.0


def _ram() -> float:
    import psutil

    return psutil.virtual_memory().available / 2**30
