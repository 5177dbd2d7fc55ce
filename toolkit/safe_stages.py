"""The stages of an instruct run: your own chats, the risk of each, a training held by it, a card of what it did to safety."""

import random
from pathlib import Path

from toolkit import together
from toolkit.errors import UserError
from toolkit.progress import say
from toolkit.recipe import SHIPPED, Recipe
from toolkit.records import Plot, Premise, read_chats, read_jsonl, split_of, text_id, write_jsonl
from toolkit.stages import DATA, base_of

FIXED = 12  # prompts that the drift is measured on


def data(recipe: Recipe, work) -> dict:
    """train.jsonl and test.jsonl: {"prompt", "answer"}; all answers to one prompt stand on one side."""
    settings = recipe.data
    if settings.file == SHIPPED:
        rows, format, bad = shipped_chats(), SHIPPED, []
    else:
        found = read_chats(Path(settings.file), settings.skip_bad_lines)
        rows, format, bad = found.rows, found.format, found.bad
    for line in bad:
        say(f"  left out {line}")
    sides: dict[str, list[dict]] = {"train": [], "test": []}
    for row in rows:
        sides[split_of(text_id(str(row["prompt"])))].append(row)
    if not sides["train"]:
        raise UserError(
            f"no row of {settings.file} is left to train on (one prompt in five is for testing)", "give more rows"
        )
    facts = {"format": format, "bad_lines": len(bad)}
    for side, most in (("train", settings.train or len(rows)), ("test", settings.test)):
        random.Random(f"{recipe.seed}:{side}").shuffle(sides[side])
        write_jsonl(work.out / f"{side}.jsonl", sides[side][:most])
        facts[side] = min(most, len(sides[side]))
    return facts


def shipped_chats() -> list[dict]:
    """The package's own harmless answers, in English: its well-made plots, and its good greetings."""
    from toolkit.greeting.requests import shipped
    from toolkit.greeting.writing import greet_prompt
    from toolkit.narrative.writing import write_prompt
    from toolkit.records import guess_language, read_plots

    premises = {p.id: p for p in read_jsonl(DATA / "premises.jsonl", Premise)}
    plots: list[Plot] = [p for p in read_plots(DATA / "plots.jsonl").rows if p.premise_id in premises]
    rows = [(write_prompt(premises[p.premise_id]), p.text) for p in plots]
    asked, made = shipped(("en",))
    by_id = {r.id: r for r in asked}
    rows += [(greet_prompt(by_id[x.request_id]), x.good) for x in made]
    return [{"prompt": turns[0]["content"], "answer": a} for turns, a in rows if guess_language(a) == "en"]


def risk(recipe: Recipe, work) -> dict:
    """risk.jsonl: a line for each row of data/train.jsonl, with what the probe and the critic say."""
    from toolkit.safety.risk import assess

    rows = read_jsonl(work.of("data") / "train.jsonl")
    return assess(base_of(work), rows, recipe.safety, recipe.model, work.out)


def sft(recipe: Recipe, work) -> dict:
    """adapter/, metrics.jsonl (the β of every step in it)."""
    import shutil

    from toolkit.safety.risk import risks_of
    from toolkit.safety.train import train_safe

    rows = read_jsonl(work.of("data") / "train.jsonl")
    risks = risks_of(work.of("risk"), len(rows)) if work.has("risk") else [1.0] * len(rows)
    facts = train_safe(base_of(work), rows, risks, recipe.sft, recipe.safety, recipe.model, work.out, recipe.seed)
    if together.rank():  # one of several that train together: the first writes
        return {}
    shutil.rmtree(work.out / "checkpoints", ignore_errors=True)
    return facts


def safety(recipe: Recipe, work) -> dict:
    """The safety card of base and result: dark fiction always, attacks and look-alikes where files of them are named, the loss on
    held-out answers, drift. Both run as the base's GGUF, the result with its adapter on it, so that they are quantised alike.
    """
    from toolkit.engines.base import Sampling
    from toolkit.engines.load import load_engine
    from toolkit.models.resolve import digest
    from toolkit.models.sft import asked
    from toolkit.models.training import read_metrics
    from toolkit.narrative.writing import write_prompt
    from toolkit.safety.asking import Ask, read_asks
    from toolkit.safety_report import Subject, Task, measure_safety

    settings, gguf, lora = recipe.safety, base_of(work).gguf, work.of("export") / "adapter.gguf"
    sets = {"harmful": read_asks(Path(settings.harmful), "unsafe", settings.most)} if settings.harmful else {}
    if settings.lookalikes:
        sets["lookalikes"] = read_asks(Path(settings.lookalikes), "safe", settings.most)
    dark = read_jsonl(DATA / "dark_fiction.jsonl", Premise)[: settings.most]
    sets["dark"] = [Ask(p.id, p.text, tuple(write_prompt(p))) for p in dark]
    held_out = read_jsonl(work.of("data") / "test.jsonl")
    task = [Task(text_id(str(r["prompt"]) + r["answer"]), asked(r["prompt"]), r["answer"]) for r in held_out]
    fixed = [Ask(p.id, write_prompt(p)[0]["content"]) for p in read_jsonl(DATA / "premises.jsonl", Premise)[:FIXED]]
    room = max(4096, 16 * settings.max_tokens + 4096)  # 16 answers are written side by side, beside their requests
    names = digest([gguf]), digest([gguf, lora])
    figures = measure_safety(
        Subject(recipe.name, names[1], lambda: load_engine(gguf, n_ctx=room, lora=lora)),
        Subject("base", names[0], lambda: load_engine(gguf, n_ctx=room)),
        sets,
        task,
        fixed,
        (lambda: load_engine(settings.judge, n_ctx=8192)) if settings.judge else None,
        work.out,
        sampling=Sampling(temperature=0, max_tokens=settings.max_tokens),
        trace=[r for r in read_metrics(work.of("sft")) if "safety/beta" in r],
    )
    return {k: v for k, v in figures.items() if k != "trace"}


def report(recipe: Recipe, work) -> dict:
    """report.html, self-contained."""
    from toolkit.evaluate.instruct_report import write_instruct_report

    write_instruct_report(recipe, work, work.out / "report.html")
    return {}
