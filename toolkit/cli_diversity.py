"""The verbs about how different texts are: diversity, frontier."""

import argparse
import json
import re
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from toolkit.cli_judging import place_flags, placed
from toolkit.errors import UserError

EXAMPLES = {
    "diversity": "fablesmith diversity runs/quickstart\n  fablesmith diversity mine.jsonl theirs.jsonl --out figures",
    "frontier": "fablesmith frontier embedded runs/quickstart --most 12 --temperatures 0.6,1.0 --reward runs/quickstart\n"
    "  fablesmith frontier dpo=runs/dpo-1 dpo=runs/dpo-2 ddpo=runs/ddpo-1 ddpo=runs/ddpo-2 --judge qwen3-4b",
}
ANGLES, OWN_TEMPERATURES = "@angles", re.compile(r"@t([\d.,]+)$")
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

    p = verb("frontier", "chart writers' quality against the diversity of what they write")
    p.add_argument("writers", nargs="+", metavar="WRITER", help="embedded, a .gguf file, a run folder …, MODEL.gguf+ADAPTER.gguf, any of them with @angles (each text asked from another angle) and @tT,T (its own temperatures) after it, or NAME=one of these; one NAME several times pools training seeds. The others are held against the first")  # fmt: skip
    p.add_argument("--temperatures", default="0.8", metavar="T,T,…", help="each writer writes at each (default: 0.8)")
    p.add_argument("--min-p", default="0.05", metavar="P,P,…", help="with each of these (default: 0.05)")
    p.add_argument("--samples", type=int, default=8, help="texts for each premise at each setting (default: 8)")
    p.add_argument("--premises", type=Path, help="JSONL with premises (default: the shipped English ones of the test side)")  # fmt: skip
    p.add_argument("--most", type=int, metavar="N", help="take at most N premises")
    p.add_argument("--max-tokens", type=int, default=120, help="longest text (default: 120)")
    p.add_argument("--reward", type=Path, metavar="RUN", help="quality is the mean rating by this run's reward model")
    p.add_argument("--judge", help="quality is the mean rating by this judge; with --reward both are shown")
    p.add_argument("--diversity-only", action="store_true", help="no quality")
    p.add_argument("--semantic", default="minilm", metavar="MODEL", help=_SEMANTIC)
    p.add_argument("--style", default="stylometry", metavar="MODEL", help=_STYLE)
    place_flags(p, "where GGUF writers and judges run")
    p.add_argument("--seed", type=int, default=0, help="of the texts")
    p.add_argument("--out", type=Path, default=Path("runs/frontier"), help="folder (default: runs/frontier); the same command goes on from it, one with more writers or temperatures reuses it")  # fmt: skip
    p.add_argument("--json", action="store_true", help="figures as JSON")


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


# ---- frontier


def frontier(args) -> None:
    from toolkit.engines.base import Sampling
    from toolkit.evaluate.frontier import Setting
    from toolkit.evaluate.frontier import frontier as measure
    from toolkit.evaluate.frontier_text import table
    from toolkit.hardware import require_writable
    from toolkit.judges import same_family
    from toolkit.progress import say

    temperatures = _temperatures("--temperatures", args.temperatures)
    grid = [Setting(t, p) for p in _numbers("--min-p", args.min_p, 0, 1) for t in temperatures]
    for flag, value, least in (("--samples", args.samples, 2), ("--max-tokens", args.max_tokens, 1), ("--most", args.most, 1)):  # fmt: skip
        if value is not None and value < least:
            raise UserError(f"{flag} {value} is out of range: at least {least}")
    if not (args.reward or args.judge or args.diversity_only):
        raise UserError(
            "frontier needs something that says how good a text is",
            "--reward RUN, --judge JUDGE, or --diversity-only for diversity alone",
        )
    families: dict[str, str] = {}
    own: dict[str, list[Setting]] = {}
    writers = _writers(args, families, own, [s.min_p for s in grid])
    premises = _premises(args)
    raters = {}
    if args.reward and not args.diversity_only:
        raters["reward"] = _reward(args)
    if args.judge and not args.diversity_only:
        raters["judge"], judge = _judge(args)
    require_writable(args.out)
    figures = measure(
        writers,
        premises,
        raters,
        args.out,
        grid=grid,
        sampling=Sampling(repeat_penalty=1.05, max_tokens=args.max_tokens, seed=args.seed),
        samples=args.samples,
        semantic=args.semantic,
        style=args.style,
        own=own,
    )
    print(json.dumps(figures, ensure_ascii=False) if args.json else table(figures))
    if "judge" in raters:
        for warning in same_family(judge.name, judge.family, families):
            say(warning)
    say(f"{args.out / 'frontier.svg'}")


def _temperatures(flag: str, text: str) -> list[float]:
    found = _numbers(flag, text, 0, 5)
    if 0 in found:
        raise UserError(f"{flag} 0 writes the same text every time", "give temperatures above 0")
    return found


def _numbers(flag: str, text: str, low: float, high: float) -> list[float]:
    """ "0.6,0.8" → [0.6, 0.8], each once."""
    try:
        found = list(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise UserError(f"{flag} {text}: not numbers with commas between", f"{flag} 0.6,0.8") from None
    if odd := [x for x in found if not low <= x <= high]:
        raise UserError(f"{flag} {odd[0]:g} is out of range: at least {low:g}, at most {high:g}")
    return found


def _writers(args, families: dict[str, str], own: dict, min_ps: list[float]) -> dict[str, dict[str, Callable]]:
    """Name → identity of the weights → what opens them; `families` is filled as they are opened, `own` with the settings
    of writers that name their temperatures. Nothing is opened here.
    """
    from toolkit.engines.load import check_engine, load_engine
    from toolkit.evaluate.frontier import Setting
    from toolkit.judges import writer_weights
    from toolkit.models.resolve import digest
    from toolkit.narrative.angles import Angled

    room = max(4096, 16 * args.max_tokens + 2048)  # 16 texts are written side by side, beside their premises

    def opening(name: str, model: str, adapter: str | None, angled: bool):
        engine = load_engine(model, n_ctx=room, lora=adapter, **placed(args))
        engine = Angled(engine) if angled else engine
        families[name] = engine.family
        return engine

    writers: dict[str, dict[str, Callable]] = {}
    known: dict[str, str] = {}
    for given in args.writers:
        name, equals, spec = given.partition("=")
        if not equals or Path(given).exists():  # a path may hold an equals sign
            name = spec = given
        if not name or not spec:
            raise UserError(f"no writer in {given!r}", "NAME=WRITER, such as dpo=runs/quickstart")
        if asked := OWN_TEMPERATURES.search(spec):
            spec = spec[: asked.start()]
            name = name.removesuffix(asked[0])
        heats = _temperatures(f"{name}: temperature", asked[1]) if asked else []
        mine = [Setting(t, p) for p in dict.fromkeys(min_ps) for t in heats]
        if name in writers and mine != own.get(name, []):
            raise UserError(f"the models called {name} name different temperatures", "give each of them the same @t…")
        if mine:
            own[name] = mine
        plain = spec.removesuffix(ANGLES)
        model, plus, adapter = plain.rpartition("+")
        if not plus or not adapter.endswith(".gguf") or Path(plain).exists():
            model, adapter = plain, None
        check_engine(model, adapter)
        card = Path(model) / "export" / "stage.json"  # a stage's key tells runs apart whose files begin and end alike
        weights = json.loads(card.read_text())["key"] if card.is_file() else writer_weights(model)
        weights += f"+{digest([Path(adapter)])}" if adapter else ""
        weights += spec[len(plain) :]
        identity = weights if weights == spec else f"{Path(spec).name} {weights}"
        if weights in known:
            raise UserError(
                f"{given} and {known[weights]} are the same weights: they write the same texts", "name each model once"
            )
        known[weights] = given
        members = writers.setdefault(name, {})
        members[identity] = lambda n=name, m=model, a=adapter, w=plain != spec: opening(n, m, a, w)
    return writers


def _premises(args) -> list:
    """The file's premises, or the shipped ones of the test side in the order in which a recipe of this seed takes them."""
    import random

    from toolkit.judges import DATA
    from toolkit.records import read_premises

    if args.premises:
        return read_premises(args.premises).rows[: args.most]
    found = [p for p in read_premises(DATA / "premises.jsonl").rows if p.split == "test" and p.language == "en"]
    found.sort(key=lambda p: p.id)
    random.Random(f"{args.seed}:test").shuffle(found)
    return found[: args.most]


def _reward(args):
    """The reward model as a rater: the mean of its ratings."""
    from toolkit.evaluate.frontier import Rater
    from toolkit.evaluate.judge import unfit
    from toolkit.reward.model import load_reward_model, reward_folder

    folder = reward_folder(args.reward)

    @contextmanager
    def opened():
        model = load_reward_model(folder)

        def rate(texts: list[str], premises: list[str]) -> list[float]:
            found = [float("nan")] * len(texts)
            readable = [i for i, t in enumerate(texts) if not unfit(t, model.config.languages) and _fits(model, t)]
            if readable:
                for i, row in zip(readable, model.score([texts[i] for i in readable]), strict=True):
                    found[i] = float(row.mean())
            return found

        yield rate

    weights = reward_weights(folder)
    pupils = {w.partition("=")[0]: 0 for w in args.writers if any(_taught_by(p) == weights for p in _paths(w))}
    caution = (
        f"reward: {' and '.join(pupils)} learnt from this very reward model, whose praise of it is no independent word; "
        "--judge asks another"
        if pupils
        else ""
    )
    return Rater(f"reward {weights}", opened, caution)


def reward_weights(folder: Path) -> str:
    from toolkit.models.resolve import digest

    return digest([*sorted(folder.glob("*.safetensors")), folder / "reward.json"])


def _taught_by(path: Path) -> str:
    """The weights of the reward model of the run that `path` is or lies in; "" when there is none (it may be taken from a run beside)."""
    found = (p / "reward" for p in (path, *path.parents) if (p / "reward" / "reward.json").is_file())
    return next(map(reward_weights, found), "")


def _fits(model, text: str) -> bool:
    try:
        model.encode([text])
    except UserError:
        return False
    return True


def _paths(writer: str) -> list[Path]:
    """The paths that a WRITER names."""
    plain = OWN_TEMPERATURES.sub("", writer).removesuffix(ANGLES)
    return [Path(part).resolve() for part in plain.partition("=")[2].split("+") + plain.split("+") if part]


def _judge(args):
    """(the judge as a rater, the judge): its passport is printed."""
    from toolkit.evaluate.frontier import Rater
    from toolkit.judges import open_judge
    from toolkit.progress import say
    from toolkit.records import Plot, text_id

    known = open_judge(args.judge, **placed(args))
    known.judge.close()
    passport, name = known.passport, known.judge.name
    if passport is None:
        caution = f"judge: {name} has no passport, how far its ratings can be trusted is not known"
        say(f"{caution}. fablesmith passport {args.judge}")
    else:
        say(passport.line)
        caution = ""
        if passport.threshold is None:
            caution = f"judge: the passport of {name} says: {passport.trust}"
        elif (passport.rated_right[1] or 0) <= 0.5:
            caution = f"judge: {name} rates a damaged plot no lower than a coin would, says its passport"

    @contextmanager
    def opened():
        judge = open_judge(args.judge, **placed(args)).judge
        try:
            yield lambda texts, premises: [
                judge.rate(Plot(text_id(t), t, premise=p)).mean for t, p in zip(texts, premises, strict=True)
            ]
        finally:
            judge.close()

    return Rater(f"judge {known.identity}", opened, caution), known.judge


VERBS = {"diversity": diversity, "frontier": frontier}
