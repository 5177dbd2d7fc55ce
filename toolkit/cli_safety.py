"""The verbs about safety: probe, safety."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from toolkit.errors import UserError
from toolkit.progress import say

EXAMPLES = {
    "probe": "fablesmith probe train --harmful harmful.jsonl --benign mine.jsonl\n"
    "  fablesmith probe test --harmful unseen.jsonl --benign lookalikes.jsonl",
    "safety": "fablesmith safety runs/quickstart --against embedded --harmful harmful.jsonl --lookalikes xstest.jsonl\n"
    "  fablesmith safety embedded+runs/mine/sft/adapter --against embedded --harmful harmful.jsonl --critic qwen3-4b",
}
UNSAFE, SAFE = ("unsafe", "harmful", "1", "true"), ("safe", "benign", "0", "false")
DATA = Path(__file__).parent / "data"
FIXED, PREMISES = 12, 24  # prompts that the drift is measured on; premises that the judge compares on


def add_verbs(verb: Callable[[str, str], argparse.ArgumentParser]) -> None:
    p = verb("probe", "train or test the probe that tells risky requests by a model's hidden states")
    p.add_argument(
        "action", choices=["train", "test"], help="train: learn and keep it; test: figures on other requests"
    )
    p.add_argument("--harmful", action="append", default=[], type=Path, metavar="FILE", help="JSONL with requests no one should help with; may be repeated. None are shipped. A row's own `label` (safe, unsafe) goes before the flag")  # fmt: skip
    p.add_argument("--benign", action="append", default=[], type=Path, metavar="FILE", help="JSONL with harmless requests; may be repeated. train adds the shipped premises and greeting requests")  # fmt: skip
    p.add_argument("--model", default="embedded", help="whose states: embedded, a folder of safetensors or a hub id")
    p.add_argument("--adapter", type=Path, help="an adapter that the reference wears (RUN/sft/adapter)")
    p.add_argument("--four-bit", action="store_true", help="read the model in NF4, as a four_bit recipe does")
    p.add_argument("--probe", type=Path, help="its folder (default: where recipes look for this model's)")
    p.add_argument("--json", action="store_true", help="figures as JSON")

    p = verb(
        "safety",
        "measure what a fine-tuning did to a model's safety: attacks, over-refusal, dark fiction, utility, drift",
    )
    p.add_argument("model", help="a run folder, embedded, a .gguf file, a folder or hub id, an http address, an adapter's folder, or MODEL+ADAPTER")  # fmt: skip
    p.add_argument("--against", metavar="BASE", help="the model before (the same forms): changes and drift are measured against it")  # fmt: skip
    p.add_argument("--harmful", type=Path, metavar="FILE", help="JSONL with requests no one should help with ({\"prompt\": …}). None are shipped")  # fmt: skip
    p.add_argument("--lookalikes", type=Path, metavar="FILE", help="JSONL with safe requests that look unsafe; of rows with a label those called safe (XSTest's form)")  # fmt: skip
    p.add_argument("--task", type=Path, metavar="FILE", help="JSONL of held-out prompts and answers for the loss (default: shipped plots of the test side)")  # fmt: skip
    p.add_argument("--no-dark", action="store_true", help="leave the shipped dark premises out")
    p.add_argument("--critic", default="embedded", help="engine that scores the answers to harmful requests, or none (default: embedded, which is no good judge)")  # fmt: skip
    p.add_argument("--judge", help="also compare the two on the task: a judge with a passport")
    p.add_argument(
        "--most", type=int, default=100, metavar="N", help="take at most N requests of each kind (default: 100)"
    )
    p.add_argument("--max-tokens", type=int, default=48, help="longest answer (default: 48: a refusal comes first)")
    p.add_argument("--on", choices=["auto", "cpu", "gpu"], default="auto", help="where GGUF models run")
    p.add_argument(
        "--seed", type=int, default=0, help="of the texts that the judge compares; answers are the likeliest ones"
    )
    p.add_argument("--out", type=Path, help="folder (default: runs/safety-NAME); the same command goes on from it")
    p.add_argument("--json", action="store_true", help="figures as JSON")


def _probe(args) -> None:
    from toolkit.models.resolve import resolve
    from toolkit.recipe import ModelSettings
    from toolkit.safety.probe import find_probe, fit_probe, measure, probe_folder, probe_risks, unread

    base, weights = resolve(args.model), ModelSettings(id=args.model, four_bit=args.four_bit)
    if args.adapter and not (args.adapter / "adapter_model.safetensors").is_file():
        raise UserError(f"no adapter in {args.adapter}", "name a folder with adapter_model.safetensors")
    harmful, benign = read_sides(args.harmful, args.benign)
    if args.action == "test":
        probe = find_probe(str(args.probe) if args.probe else "auto", base, args.adapter)
        if not harmful or not benign:
            raise UserError("a test needs both kinds of requests", "--harmful FILE --benign FILE")
        given = len(harmful) + len(benign)
        harmful, benign = unread(probe, harmful), unread(probe, benign)
        if not harmful or not benign:
            raise UserError(
                f"the probe was trained on all the {'benign' if harmful else 'harmful'} requests of these files",
                "test it on requests that it has not read, or its figures flatter",
            )
        risks = probe_risks(probe, base, harmful + benign, weights, args.adapter)
        figures = measure(risks[: len(harmful)], risks[len(harmful) :])
        figures["left_out"] = given - len(harmful) - len(benign)
        print(json.dumps(figures) if args.json else _table(figures))
        return
    if not harmful:
        raise UserError("there is nothing harmful to learn from", "--harmful FILE (public sets are AdvBench, XSTest …)")
    probe = fit_probe(harmful, benign, base, weights, args.adapter, more=shipped_benign())
    folder = args.probe or probe_folder(base, args.adapter)
    probe.save(folder)
    v = probe.validation
    if args.json:
        print(json.dumps({"folder": str(folder), "layer": probe.layer, "pooling": probe.pooling, **v}))
        return
    say(f"{folder}: layer {probe.layer}, {'last token' if probe.pooling == 'last' else 'mean over tokens'}")
    print(f"AUROC {v['auroc']:.3f} on the requests it was chosen by, which flatters: test it on others")


def _table(figures: dict) -> str:
    lines = [f"requests    {figures['requests'][0]} harmful, {figures['requests'][1]} benign"]
    if figures["left_out"]:
        lines.append(f"left out    {figures['left_out']} that the probe was trained on")
    for name, key in (("AUROC", "auroc"), ("caught", "caught"), ("alarms", "alarms")):
        value, low, high = figures[key]
        lines.append(f"{name:<11} {value:.3f}  (95 %: {low:.3f} to {high:.3f})")
    lines.append(f"mean risk   {figures['mean'][0]:.3f} harmful, {figures['mean'][1]:.3f} benign")
    return "\n".join(lines)


def read_sides(harmful: list[Path], benign: list[Path]) -> tuple[list[str], list[str]]:
    """(harmful, benign) requests of files in any known format, each once; a row's own `label` goes before its file's side.

    Raises UserError for a file that is not there, a bad line, or a label nobody knows.
    """
    from toolkit.records import import_rows, request_of

    sides: tuple[list[str], list[str]] = ([], [])
    for place, files in enumerate((harmful, benign)):

        def make(kind: str, row: dict, place=place) -> tuple[int, str]:
            label = str(row["label"]).lower() if row.get("label") is not None else ""
            if label and label not in UNSAFE + SAFE:
                raise ValueError(f"label {row['label']!r} is neither safe nor unsafe")
            return (place if not label else int(label in SAFE)), request_of(kind, row)

        for file in files:
            for side, text in import_rows(file, make).rows:
                sides[side].append(text)
    return list(dict.fromkeys(sides[0])), list(dict.fromkeys(sides[1]))  # a labelled file may be named on both sides


def shipped_benign() -> list[str]:
    """Harmless requests that come with the package: its premises, dark ones too, and its requests for greetings,
    as a training puts them and bare."""
    from toolkit.greeting.writing import greet_prompt
    from toolkit.narrative.writing import write_prompt
    from toolkit.records import Request, read_jsonl, read_premises

    plots = [p for name in ("premises", "dark_fiction") for p in read_premises(DATA / f"{name}.jsonl").rows]
    greetings = read_jsonl(DATA / "greetings" / "requests.jsonl", Request)
    texts = [write_prompt(p)[0]["content"] for p in plots] + [greet_prompt(r)[0]["content"] for r in greetings]
    return [*texts, *(p.text for p in plots), *(r.text for r in greetings)]


# ---- safety


def _safety(args) -> None:
    from toolkit.engines.base import Sampling
    from toolkit.engines.load import load_engine
    from toolkit.evaluate.safety_card import table
    from toolkit.hardware import require_writable
    from toolkit.safety_report import measure_safety

    if args.harmful is None:
        raise UserError(
            "--harmful FILE is missing: attacks need harmful requests, and none are shipped",
            'JSONL with {"prompt": …} rows; public sets: AdvBench (MIT), HarmBench (MIT), StrongREJECT (MIT), XSTest\'s unsafe half (CC BY 4.0)',
        )
    for flag, value in (("--most", args.most), ("--max-tokens", args.max_tokens)):
        if value < 1:
            raise UserError(f"{flag} {value} is out of range: at least 1")
    if args.judge and not args.against:
        raise UserError("--judge compares with the model before", "name it: --against embedded")
    sets, task, fixed = _asks(args)
    out = args.out or Path("runs") / f"safety-{Path(args.model).name}"
    require_writable(out)
    model, against = subject(args.model, args, out), subject(args.against, args, out) if args.against else None
    if against and against.identity == model.identity:
        raise UserError(f"{args.model} and {args.against} are the same weights", "name the model before as --against")
    critic = None if args.critic == "none" else lambda: load_engine(args.critic, n_ctx=8192, on=args.on)
    if critic:
        from toolkit.engines.load import check_engine

        check_engine(args.critic)
    figures = measure_safety(
        model,
        against,
        sets,
        task,
        fixed,
        critic,
        out,
        sampling=Sampling(temperature=0, max_tokens=args.max_tokens),
        win_rate=(lambda: win_rate(args, model, against, out / "duel")) if args.judge else None,
        trace=_trace(args.model),
    )
    print(json.dumps(figures, ensure_ascii=False) if args.json else table(figures))
    say(f"{out / 'safety.html'}")


def _asks(args) -> tuple[dict, list, list]:
    """(requests by kind, held-out texts of the task, the drift's prompts)."""
    from toolkit.narrative.writing import write_prompt
    from toolkit.records import read_chats, read_plots, read_premises, text_id
    from toolkit.safety.asking import Ask, read_asks
    from toolkit.safety_report import Task

    sets = {"harmful": read_asks(args.harmful, "unsafe", args.most)}
    if args.lookalikes:
        sets["lookalikes"] = read_asks(args.lookalikes, "safe", args.most)
    if not args.no_dark:
        dark = read_premises(DATA / "dark_fiction.jsonl").rows[: args.most]
        sets["dark"] = [Ask(p.id, p.text, tuple(write_prompt(p))) for p in dark]
    premises = {
        p.id: p for p in read_premises(DATA / "premises.jsonl").rows if p.split == "test" and p.language == "en"
    }
    if args.task:
        chats = [(r["prompt"], r["answer"]) for r in read_chats(args.task).rows][: args.most]
        turns = [([{"role": "user", "content": p}] if isinstance(p, str) else p, a) for p, a in chats]
    else:
        plots = [p for p in read_plots(DATA / "plots.jsonl").rows if p.premise_id in premises]
        turns = [(write_prompt(premises[p.premise_id]), p.text) for p in plots][: args.most]
    task = [Task(text_id(json.dumps([m, a])), m, a) for m, a in turns]
    fixed = [Ask(p.id, write_prompt(p)[0]["content"]) for p in list(premises.values())[:FIXED]]
    return sets, task, fixed


def subject(spec: str, args, out: Path):
    """The model that `spec` names, as a Subject; an adapter's folder is made a GGUF adapter in `out` where its base has a GGUF.

    Raises UserError where nothing stands behind `spec`; nothing is opened here.
    """
    from toolkit.engines.load import check_engine, load_engine
    from toolkit.judges import writer_weights
    from toolkit.models.resolve import Model, digest, exported_gguf, resolve
    from toolkit.safety_report import Subject

    model, adapter = parts(spec)
    name = _told(model) + (f" + {'/'.join(adapter.parts[-3:])}" if adapter else "")
    room = max(4096, 16 * args.max_tokens + 4096)  # 16 answers are written side by side, beside their requests
    card = Path(model) / "export" / "stage.json"  # a stage's key tells runs apart whose files begin and end alike
    base = json.loads(card.read_text(encoding="utf-8"))["key"] if card.is_file() else writer_weights(model)
    if adapter is None or adapter.suffix == ".gguf":
        check_engine(model, adapter)
        identity = base + (f"+{digest([adapter])}" if adapter else "")
        return Subject(name, identity, lambda: load_engine(model, n_ctx=room, lora=adapter, on=args.on))
    weights = adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise UserError(f"no adapter in {adapter}", "name a folder with adapter_model.safetensors, or a .gguf adapter")
    identity = f"{base}+{digest([weights])}"
    gguf = exported_gguf(Path(model)) or (Path(model) if model.endswith(".gguf") else None)

    def opening():
        from toolkit.export.gguf import adapter_to_gguf

        below = Model(model, model, gguf) if gguf else resolve(model)
        if below.gguf is None:
            return _with_peft(below, adapter, spec)
        made = out / f"adapter-{digest([weights])}.gguf"
        if not made.is_file():
            adapter_to_gguf(adapter, below.gguf, made.with_suffix(".partial"))
            made.with_suffix(".partial").rename(made)
        return load_engine(below.gguf, n_ctx=room, lora=made, on=args.on)

    return Subject(name, identity, opening)


def _told(path) -> str:
    """A model's name for people: a path's last part, everything else as it was given."""
    return Path(path).resolve().name if Path(path).exists() else str(path)


def parts(spec: str) -> tuple[str, Path | None]:
    """(model, adapter or None) of MODEL, MODEL+ADAPTER, or the folder of an adapter, whose base stands in its configuration."""
    from toolkit.models.resolve import resolve

    config = Path(spec) / "adapter_config.json"
    if config.is_file():
        base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
        own = Path(base).resolve() == Path(resolve("embedded").weights).resolve()
        return ("embedded" if own else base), Path(spec)
    model, plus, adapter = spec.rpartition("+")
    if not plus or Path(spec).exists() or not Path(adapter).exists():
        return spec, None
    return model, Path(adapter)


def _with_peft(base, adapter: Path, name: str):
    from peft import PeftModel

    from toolkit.engines.hf import TransformersEngine
    from toolkit.models.load import load_model, load_tokenizer

    return TransformersEngine(PeftModel.from_pretrained(load_model(base), str(adapter)), load_tokenizer(base), name)


def _trace(spec: str) -> list[dict]:
    """Logged steps of the training behind a run folder or an adapter that was held by risk; [] where there is none."""
    from toolkit.models.training import METRICS, read_metrics

    model, adapter = parts(spec)
    folders = [adapter.parent] if adapter else sorted(p.parent for p in Path(model).glob(f"*/{METRICS}"))
    for folder in folders:
        if rows := [r for r in read_metrics(folder) if "safety/beta" in r]:
            keys = ("step", "safety/beta", "safety/risk", "safety/kl")
            return [{k: r[k] for k in keys if k in r} for r in rows]
    return []


def win_rate(args, model, against, out: Path) -> dict:
    """The judge's comparison of the two on shipped premises: {"rate": [share, low, high], "verdicts"}, or {"why": …} there is none."""
    from toolkit.engines.base import Sampling
    from toolkit.evaluate.tournament import tournament
    from toolkit.judges import open_judge
    from toolkit.records import read_premises
    from toolkit.safety.asking import share

    opened = open_judge(args.judge, on=args.on)
    passport = opened.passport
    opened.judge.close()
    if passport is None:
        return {"why": f"No win rate: the judge {args.judge} has no passport (fablesmith passport {args.judge})."}
    if passport.threshold is None:
        return {"why": f"No win rate: no verdict of {args.judge} is to be trusted, says its passport."}
    premises = [p for p in read_premises(DATA / "premises.jsonl").rows if p.split == "test" and p.language == "en"]
    figures = tournament(
        {"before": against.open, "after": model.open},
        premises[:PREMISES],
        lambda: open_judge(args.judge, on=args.on).judge,
        out,
        sampling=Sampling(temperature=0.8, repeat_penalty=1.05, max_tokens=220, seed=args.seed),
        threshold=passport.threshold,
        seed=args.seed,
        about={"before": against.identity, "after": model.identity, "judge": opened.identity},
    )
    if not figures["pairs"]:
        return {"why": f"No win rate: {args.judge} was never as sure as its passport asks."}
    pair = figures["pairs"][0]
    won = pair["won"] if pair["ahead"] == "after" else pair["lost"]
    verdicts = pair["won"] + pair["lost"] + pair["tied"]
    return {"rate": share(won + pair["tied"] / 2, verdicts), "verdicts": verdicts, "passport": passport.line}


VERBS = {"probe": _probe, "safety": _safety}
