"""The verbs about judging: rate, judge, passport, judges, compare, sensitivity, vote, calibrate, learn, export-judge."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from toolkit.errors import EngineDown, UserError
from toolkit.narrative.dimensions import DIMENSIONS

EXAMPLES = {
    "rate": "fablesmith rate stories.jsonl --with runs/quickstart",
    "judge": "fablesmith judge stories.jsonl\n  fablesmith judge stories.jsonl --model qwen3-4b --panel --out ratings.jsonl",
    "judges": "fablesmith judges",
    "passport": "fablesmith passport embedded\n"
    "  fablesmith passport qwen3-4b --people ratings.jsonl\n  fablesmith passport runs/quickstart/reward",
    "compare": "fablesmith compare embedded runs/quickstart --premises premises.jsonl --judge qwen3-4b",
    "sensitivity": "fablesmith sensitivity acclaimed.jsonl panned.jsonl --model runs/quickstart/reward",
    "vote": "fablesmith vote runs/quickstart --out votes.jsonl\n  fablesmith vote mine.jsonl theirs.jsonl --out votes.jsonl",
    "calibrate": "fablesmith calibrate runs/quickstart/reward ratings.jsonl --map coherence=coherence\n"
    "  fablesmith calibrate qwen3-4b --votes votes.jsonl\n  fablesmith calibrate --pairs pairs.jsonl ratings.jsonl",
    "learn": "fablesmith learn ratings.jsonl --out runs/people",
    "export-judge": "fablesmith export-judge runs/quickstart --out rater.gguf",
}
JUDGE_HELP = (
    "embedded, a name from `fablesmith judges`, a .gguf file, a run folder (its exported model), a reward model's folder "
    "(RUN/reward), an http address, a folder or hub id (default: embedded)"
)


def place_flags(p: argparse.ArgumentParser, what: str) -> None:
    """--on and --gpu-experts of a verb that runs GGUF files."""
    p.add_argument("--on", choices=["auto", "cpu", "gpu"], default="auto", help=what)
    p.add_argument("--gpu-experts", choices=["auto", "all", "none"], default="auto", help="a mixture's experts on the GPU: all, none (they stay in the computer's memory), or as it fits (default: auto)")  # fmt: skip


def placed(args) -> dict[str, str]:
    """What `place_flags` was told, for load_engine and open_judge."""
    return {"on": args.on, "gpu_experts": args.gpu_experts}


def add_verbs(verb: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Declare the verbs; `verb(name, help)` gives each its parser."""

    def judging(p: argparse.ArgumentParser, flag: str = "--model") -> None:
        p.add_argument(flag, default="embedded", metavar="JUDGE", help=JUDGE_HELP)
        p.add_argument("--guard", choices=["none", "tags", "quote", "both"], default="tags", help="how texts are shown to it: marked off by tags, quoted line by line, both, or not at all (default: tags)")  # fmt: skip
        place_flags(p, "where a GGUF judge runs")

    p = verb("rate", "rate texts with a reward model you trained")
    p.add_argument("file", type=Path, help="JSONL with texts: ours, messages, ShareGPT, Alpaca …")
    p.add_argument("--with", dest="reward", type=Path, required=True, metavar="RUN", help="the run that trained it")
    p.add_argument("--out", type=Path, help="write JSONL there instead of a table")
    p.add_argument("--json", action="store_true", help="one JSON line a text instead of a table")
    p.add_argument("--skip-bad-lines", action="store_true", help="leave bad lines out and count them")

    p = verb("judge", "rate texts on five dimensions with a quantized judge")
    p.add_argument("file", type=Path, help="JSONL with texts: ours, messages, ShareGPT, Alpaca …")
    judging(p)
    p.add_argument("--panel", action="store_true", help="critics, a close reader and an editor besides the single call")
    p.add_argument(
        "--jury", action="append", default=[], metavar="JUDGE", help="one more model on the panel; may be repeated"
    )
    p.add_argument("--calibration", type=Path, help="what `fablesmith calibrate` made: ratings on people's scale")
    p.add_argument("--any-language", action="store_true", help="also rate what is neither English nor Chinese")
    p.add_argument(
        "--out", type=Path, help="write JSONL there instead of a table; an interrupted command goes on from it"
    )
    p.add_argument("--json", action="store_true", help="one JSON line a text instead of a table")
    p.add_argument("--skip-bad-lines", action="store_true", help="leave bad lines out and count them")

    verb("judges", "list judges and writers by the memory they need").add_argument(
        "--json", action="store_true", help="one JSON line a model"
    )

    p = verb("passport", "measure how far a judge can be trusted, once")
    p.add_argument("judge", help=JUDGE_HELP)
    p.add_argument("--people", action="append", default=[], type=Path, metavar="FILE", help="JSONL with people's ratings: text, mean or ratings, group or prompt; may be repeated")  # fmt: skip
    p.add_argument("--guard", choices=["none", "tags", "quote", "both"], default="tags", help="as in judge")
    place_flags(p, "where a GGUF judge runs")
    p.add_argument(
        "--pairs", type=int, default=90, help="comparisons of known order, and of each file of people (default: 90)"
    )
    p.add_argument(
        "--planted-in", type=int, default=3, help="plots each of the 20 instructions is planted in (default: 3)"
    )
    p.add_argument("--out", type=Path, help="folder for what was asked, passport.json and passport.svg")
    p.add_argument("--json", action="store_true", help="print the whole passport")

    p = verb("compare", "a tournament of writers, judged blind in both orders")
    p.add_argument(
        "writers", nargs="+", metavar="WRITER", help="two or more engines: embedded, GGUF files, run folders, servers …"
    )
    p.add_argument("--premises", type=Path, required=True, help="JSONL with premises")
    judging(p, "--judge")
    p.add_argument("--per-premise", type=int, default=1, help="texts a premise from each writer (default: 1)")
    p.add_argument(
        "--budget", type=int, help="verdicts at most; fewer where the order is settled before (default: all)"
    )
    p.add_argument(
        "--trust-anyway", action="store_true", help="count verdicts that the judge's passport says not to trust"
    )
    p.add_argument("--seed", type=int, default=0, help="of texts and pairing")
    p.add_argument("--max-tokens", type=int, default=220, help="longest plot (default: 220)")
    p.add_argument(
        "--out",
        type=Path,
        default=Path("runs/compare"),
        help="folder (default: runs/compare); the same command goes on from it",
    )
    p.add_argument("--json", action="store_true", help="figures as JSON")

    p = verb("sensitivity", "does a judge tell good texts from bad ones")
    p.add_argument("good", type=Path, help="JSONL with texts known to be good")
    p.add_argument("bad", type=Path, help="JSONL with texts known to be bad")
    judging(p)
    p.add_argument("--out", type=Path, help="folder for ratings, figures and the picture")
    p.add_argument("--json", action="store_true", help="figures as JSON")

    p = verb("vote", "vote blind between two writers' texts; votes become preference pairs")
    p.add_argument(
        "source", nargs="+", type=Path, help="a run folder (base against aligned), or two JSONL files of texts"
    )
    p.add_argument(
        "--out", type=Path, default=Path("votes.jsonl"), help="votes, as preference pairs (default: votes.jsonl)"
    )
    p.add_argument("--seed", type=int, default=0, help="of the order in which texts are shown")
    p.add_argument("--json", action="store_true", help="the count as JSON on stdout; the questions go to stderr")

    p = verb("calibrate", "bring a judge's ratings to people's scale, or turn ratings into pairs")
    p.add_argument("judge", nargs="?", default="embedded", help=JUDGE_HELP)
    p.add_argument("ratings", nargs="?", type=Path, help="JSONL with people's ratings")
    p.add_argument("--map", action="append", default=[], metavar="ASPECT=DIMENSION", help="which aspect of the file speaks of which dimension")  # fmt: skip
    p.add_argument("--votes", type=Path, help="votes of `fablesmith vote`: how often the judge agrees with you")
    p.add_argument("--pairs", type=Path, help="write preference pairs made from the ratings there; no judge is asked")
    p.add_argument("--gap", type=float, default=1.0, help="least difference of people's means in a pair (default: 1)")
    p.add_argument("--guard", choices=["none", "tags", "quote", "both"], default="tags", help="as in judge")
    place_flags(p, "where a GGUF judge runs")
    p.add_argument("--scale", nargs=2, type=float, metavar=("LOW", "HIGH"), help="of people's ratings, where the file does not show it")  # fmt: skip
    p.add_argument("--out", type=Path, default=Path("calibration"), help="folder (default: calibration)")
    p.add_argument("--json", action="store_true", help="figures as JSON")

    p = verb("learn", "train a reward model on people's ratings, tested across prompts")
    p.add_argument("ratings", type=Path, help="JSONL with people's ratings")
    p.add_argument("--base", default="embedded", help="embedded, a folder of safetensors, or a hub id")
    p.add_argument("--out", type=Path, required=True, help="folder of the reward model")
    p.add_argument("--seed", type=int, default=1, help="of folds and training")
    p.add_argument("--json", action="store_true", help="figures as JSON")

    p = verb("export-judge", "turn a run's reward model into a GGUF that rates by itself")
    p.add_argument("run", type=Path, help="a run that trained a reward model")
    p.add_argument("--out", type=Path, required=True, help="the .gguf file")
    p.add_argument(
        "--quantisation", default="Q8_0", choices=["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"], help="of the GGUF"
    )
    p.add_argument("--json", action="store_true", help="figures as JSON")


# ---- ratings

_WIDE = 16  # a column of the table of ratings: as wide as the longest name of an aspect we know


def rate(args) -> None:
    from toolkit.records import read_plots, write_jsonl

    check_out(args.out)
    plots = read_texts(read_plots(args.file, args.skip_bad_lines))
    from toolkit import api

    ratings = api.rate(plots, args.reward)
    if args.out:
        write_jsonl(args.out, ratings)
    _print_ratings(args, plots, ratings)


def _print_ratings(args, plots, ratings) -> None:
    """Where they were written, one JSON line a text, or a table: as the flags say."""
    from toolkit.records import dump

    if args.out:
        print(args.out)
    elif args.json:
        for rating in ratings:
            print(dump(rating))
    else:
        show_ratings(plots, ratings)


def check_out(path: Path | None) -> None:
    """Before the work, not after it: can the file be written?"""
    if path is not None:
        from toolkit.hardware import require_writable

        if path.is_dir():
            raise UserError(f"{path} is a folder", "name a file with --out")
        require_writable(path.parent)


def read_texts(imported) -> list:
    from toolkit.progress import say

    for bad in imported.bad:
        say(f"left out {bad}")
    if imported.bad:
        say(f"{len(imported.bad)} bad lines left out, {len(imported.rows)} texts kept")
    return imported.rows


def show_ratings(plots, ratings) -> None:
    """A table, one line a text; where there is no rating the line says why."""

    keys = next((list(r.scores) for r in ratings if r.scores), [d.key for d in DIMENSIONS])
    names = _short_names()
    print(f"{'text':<34}" + "".join(f"{names.get(k, k)[:15]:>{_WIDE}}" for k in keys) + f"{'mean':>8}")
    for plot, r in zip(plots, ratings, strict=True):
        cells = (
            "".join(f"{r.scores[k]:>{_WIDE}.2f}" for k in keys) + f"{r.mean:>8.2f}" if r.scores else f"    {r.error}"
        )
        print(f"{_beginning(plot):<34}{cells}")


def _beginning(plot) -> str:
    text = plot.text.replace("\n", " ")
    return text if len(text) <= 32 else text[:31] + "…"


def _short_names() -> dict[str, str]:
    return {d.key: d.name.split()[0] if d.key != "coherence" else "Coherence" for d in DIMENSIONS}


def judge(args) -> None:
    from toolkit.judges import open_judge
    from toolkit.progress import bar, say
    from toolkit.records import AspectRatings, append_jsonl, read_jsonl, read_plots

    check_out(args.out)
    plots = read_texts(read_plots(args.file, args.skip_bad_lines))
    languages = None if args.any_language else ("en", "zh")
    if args.panel or args.jury:
        _panel(args, plots)
        return
    opened = open_judge(args.model, guard=args.guard, reason=16, languages=languages, **placed(args))
    rater = opened.judge
    if args.calibration:
        from toolkit.evaluate.calibrate import Calibrated

        rater = Calibrated(rater, args.calibration)
    done = read_jsonl(args.out, AspectRatings) if args.out else []
    done = {r.plot_id: r for r in done if r.rater == rater.name and not r.error}
    if args.out and done:
        say(f"{len(done)} of {len(plots)} texts stand in {args.out} already")
    if args.out and args.out.exists():
        from toolkit.records import write_jsonl

        write_jsonl(args.out, [r for r in read_jsonl(args.out, AspectRatings) if r.plot_id in done])
    records = []
    try:
        for plot in bar(plots, total=len(plots), desc="judge", unit="text"):
            record = done.get(plot.id) or rater.rate(plot)
            records.append(record)
            if plot.id not in done and args.out:
                append_jsonl(args.out, [record])
    except EngineDown as error:
        kept = f"{sum(not r.error for r in records)} of {len(plots)} texts were rated"
        kept += (
            f" and are in {args.out}; the same command goes on from there" if args.out else " before; --out keeps them"
        )
        raise EngineDown(f"{error} ({kept})", error.hint) from None
    finally:
        opened.judge.close()
    failed = [r for r in records if r.error]
    _print_ratings(args, plots, records)
    for record in failed[:5]:
        say(f"no rating for {record.plot_id}: {record.error}")
    if failed:
        say(
            f"{len(failed)} of {len(records)} texts have no rating"
            + (", the first five above" if len(failed) > 5 else "")
        )
    say(_trust(opened, args.model))


def _trust(opened, name: str) -> str:
    if (passport := opened.passport) is not None:
        return passport.line
    return f"this judge has no passport: how far it can be trusted is not known. fablesmith passport {name}"


def _panel(args, plots) -> None:
    import tempfile

    from toolkit.engines.load import load_engine
    from toolkit.evaluate.panel import sit, summarise_panel
    from toolkit.progress import say
    from toolkit.records import write_jsonl

    members = {
        name: (lambda name=name: load_engine(name, n_ctx=8192, **placed(args)))
        for name in dict.fromkeys((args.model, *args.jury))
    }
    with tempfile.TemporaryDirectory() as scratch:
        path = args.out.with_suffix(".opinions.jsonl") if args.out else Path(scratch) / "opinions.jsonl"
        ratings = sit(members, plots, path, args.guard)
    rows = [
        {"plot_id": r.plot_id, "scores": r.scores, "single": r.single, "spread": r.spread, "error": r.error,
         "opinions": [dataclasses.asdict(o) for o in r.opinions]}
        for r in ratings
    ]  # fmt: skip
    if args.out:
        write_jsonl(args.out, rows)
        print(args.out)
    elif args.json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    else:
        print(f"{'panel (single call)':<34}" + "".join(f"{name:>{_WIDE}}" for name in _short_names().values()))
        for plot, r in zip(plots, ratings, strict=True):
            cells = [f"{r.scores[d.key]:.2f} ({r.single[d.key]:.2f})" if r.scores else "–" for d in DIMENSIONS]
            print(
                f"{_beginning(plot):<34}"
                + "".join(f"{c:>{_WIDE}}" for c in cells)
                + (f"  {r.error}" if r.error else "")
            )
            for claim in [c for o in r.opinions for c in o.claims if not c.dropped]:
                print(f"    {claim.dimension} {claim.side}: {claim.claim} “{claim.quote}”")
    facts = summarise_panel(ratings, {p.id: "texts" for p in plots})
    dropped = ", ".join(f"{n} {why}" for why, n in facts["dropped"].items())
    say(f"{facts['kept']} of {facts['claims']} claims could be quoted" + (f"; dropped: {dropped}" if dropped else ""))
    if facts["malformed"]:
        say(f"{facts['malformed']} critics answered in no readable form")
    for why, n in facts["without_rating"].items():
        say(f"{n} texts have no rating: {why}")


def judges(args) -> None:
    from toolkit.models.catalogue import catalogue, fits, machine_memory

    ram, vram = machine_memory()
    entries = catalogue()
    if args.json:
        for e in entries:
            print(json.dumps({**dataclasses.asdict(e), "fits": fits(e, ram, vram)}, ensure_ascii=False))
        return
    print(f"this machine: {ram:.0f} GB of memory" + (f", {vram:.0f} GB on the GPU" if vram else ", no GPU") + "\n")
    print(f"{'name':<22}{'memory':>9}{'context':>9}  {'licence':<14}{'fits':<6}about")
    for e in entries:
        print(
            f"{e.name:<22}{e.memory_gb:>6.1f} GB{e.context // 1024:>8}k  {e.licence:<14}"
            f"{'yes' if fits(e, ram, vram) else 'no':<6}{e.about}"
        )
    print("\nName one with --model, --judge or in a recipe; it is fetched once. Then: fablesmith passport NAME")


# ---- passport


def passport(args) -> None:
    from toolkit.judges import issue_passport, keep_passport, open_judge
    from toolkit.progress import say

    if args.pairs < 8:
        raise UserError(f"--pairs {args.pairs} is out of range: at least 8", "90 are asked by default")
    if args.planted_in < 1:
        raise UserError(f"--planted-in {args.planted_in} is out of range: at least 1", "3 is the default")
    for path in args.people:  # read before the judge is loaded
        from toolkit.people import read_people

        read_people(path)
    opened = open_judge(args.judge, guard=args.guard, **placed(args))
    out = args.out or Path("runs") / "passports" / opened.identity
    from toolkit.hardware import require_writable

    require_writable(out)
    try:
        found = issue_passport(opened, out, args.people, args.pairs, planted_in=args.planted_in)
    finally:
        opened.judge.close()
    places = ", ".join(str(p) for p in keep_passport(found, opened))
    if args.json:
        print(json.dumps(dataclasses.asdict(found), indent=1, ensure_ascii=False))
    else:
        print(found.line)
    say(f"{out / 'passport.svg'} shows it; kept in {places}")


# ---- writers against each other


def compare(args) -> None:
    from toolkit.engines.base import Sampling
    from toolkit.engines.load import load_engine
    from toolkit.evaluate.ranking import table
    from toolkit.evaluate.tournament import tournament
    from toolkit.judges import open_judge, same_family, writer_weights
    from toolkit.progress import say
    from toolkit.records import read_premises

    if len(set(args.writers)) < max(2, len(args.writers)):
        raise UserError("compare needs at least two different writers", "fablesmith compare embedded runs/quickstart …")
    premises = read_premises(args.premises).rows
    opened = open_judge(args.judge, guard=args.guard, **placed(args))
    known = opened.passport
    threshold = 0.0 if known is None or args.trust_anyway else known.threshold
    say(_trust(opened, args.judge))
    if threshold is None:
        opened.judge.close()
        raise UserError(
            f"no verdict of {opened.judge.name} is to be trusted, says its passport: the tournament would decide nothing",
            "name a better --judge (see `fablesmith judges`), or pass --trust-anyway to count its verdicts all the same",
        )
    opened.judge.close()
    families: dict[str, str] = {}

    def opening(name: str):
        engine = load_engine(name, **placed(args))
        families[name] = engine.family
        return engine

    writers = {name: (lambda name=name: opening(name)) for name in args.writers}
    sampling = Sampling(temperature=0.8, repeat_penalty=1.05, max_tokens=args.max_tokens, seed=args.seed)
    figures = tournament(
        writers,
        premises,
        lambda: open_judge(args.judge, guard=args.guard, **placed(args)).judge,
        args.out,
        sampling=sampling,
        per_premise=args.per_premise,
        budget=args.budget,
        threshold=threshold,
        seed=args.seed,
        about={name: writer_weights(name) for name in args.writers} | {"judge": opened.identity},
    )
    print(json.dumps(figures, ensure_ascii=False) if args.json else table(figures))
    for warning in same_family(opened.judge.name, opened.judge.family, families):
        say(warning)
    say(f"{args.out / 'tournament.svg'}")


def sensitivity(args) -> None:
    from toolkit.evaluate.sensitivity import sensitivity as measure
    from toolkit.evaluate.sensitivity import table
    from toolkit.judges import open_judge
    from toolkit.progress import say
    from toolkit.records import read_plots

    good, bad = read_plots(args.good).rows, read_plots(args.bad).rows
    opened = open_judge(args.model, guard=args.guard, **placed(args))
    try:
        figures = measure(opened.judge, good, bad, args.out)
    finally:
        opened.judge.close()
    print(json.dumps(figures, ensure_ascii=False) if args.json else table(figures))
    say(_trust(opened, args.model))


# ---- people


def vote(args) -> None:
    from toolkit.evaluate.vote import matches_from_files, matches_from_run
    from toolkit.evaluate.vote import vote as ballot

    if len(args.source) == 1:
        matches = matches_from_run(args.source[0])
    elif len(args.source) == 2:
        matches = matches_from_files(*args.source)
    else:
        raise UserError("vote takes one run folder or two files of texts", "fablesmith vote runs/quickstart")
    if not args.json:
        ballot(matches, args.out, seed=args.seed)
        return
    aside = partial(print, file=sys.stderr, flush=True)

    def ask(question: str) -> str:
        print(question, end="", file=sys.stderr, flush=True)  # input() itself would ask on stdout
        return input()

    print(json.dumps(ballot(matches, args.out, ask, aside, seed=args.seed), ensure_ascii=False))


def calibrate(args) -> None:
    from toolkit.evaluate.calibrate import calibrate_ratings, ratings_to_pairs
    from toolkit.evaluate.passport import SAME_QUESTION
    from toolkit.evaluate.vote import agreement, read_votes
    from toolkit.judges import open_judge
    from toolkit.narrative.dimensions import KEYS
    from toolkit.people import read_people
    from toolkit.progress import say
    from toolkit.records import write_jsonl

    if args.pairs:
        rated = read_people(args.ratings or Path(args.judge))
        pairs = ratings_to_pairs(rated, dict.fromkeys(rated[0].mean, 1.0), args.gap)
        write_jsonl(args.pairs, pairs)
        if args.json:
            print(json.dumps({"file": str(args.pairs), "pairs": len(pairs)}))
        else:
            print(f"{args.pairs}: {len(pairs)} pairs; train on them with --set pairs.file={args.pairs}")
        return
    if args.votes is None and args.ratings is None:
        raise UserError("calibrate needs a file of people's ratings, or --votes", EXAMPLES["calibrate"].split("\n")[0])
    if args.votes:
        if not args.votes.is_file():
            raise UserError(f"no file at {args.votes}", "vote first: fablesmith vote RUN")
        votes, _ = read_votes(args.votes)
        opened = open_judge(args.judge, guard=args.guard, **placed(args))
        known = opened.passport
        try:
            found = agreement(opened.judge, votes, known.threshold if known else 0.0)
        finally:
            opened.judge.close()
        print(json.dumps(found, ensure_ascii=False) if args.json else "\n".join(agreement_lines(found)))
        say(_trust(opened, args.judge))
        return
    rated = read_people(args.ratings)
    aspects = {a: SAME_QUESTION[a] for a in rated[0].mean if a in SAME_QUESTION}
    for given in args.map:
        aspect, _, key = given.partition("=")
        if aspect not in rated[0].mean or key not in KEYS:
            raise UserError(
                f"--map {given}: no such aspect or dimension",
                f"aspects: {', '.join(rated[0].mean)}; dimensions: {', '.join(KEYS)}",
            )
        aspects[aspect] = key
    if not aspects:
        raise UserError(
            f"none of the aspects {', '.join(rated[0].mean)} is one of our dimensions",
            f"say which speaks of which: --map {next(iter(rated[0].mean))}=coherence",
        )
    opened = open_judge(args.judge, guard=args.guard, **placed(args))
    try:
        found = calibrate_ratings(opened.judge, rated, aspects, args.out, args.scale, args.ratings.name)
    finally:
        opened.judge.close()
    _show_calibration(found) if not args.json else print(json.dumps(found, ensure_ascii=False))
    say(f"fablesmith judge stories.jsonl --model {args.judge} --calibration {args.out}")


def _show_calibration(found: dict) -> None:
    print(
        f"{'dimension':<12}{'aspect':<18}{'off by':>8}{'mapped':>8}{'mean only':>11}{'kappa':>8}{'mapped':>8}{'Spearman':>10}"
    )
    for key, q in found["quality"].items():
        cells = [q[k][0] for k in ("mae_before", "mae_after", "mae_constant", "kappa_before", "kappa_after")]
        shown = [f"{c:.2f}" if c is not None else "–" for c in [*cells, q["spearman_before"]]]
        print(
            f"{key:<12}{q['aspect']:<18}"
            + "".join(f"{c:>{w}}" for c, w in zip(shown, (8, 8, 11, 8, 8, 10), strict=True))
        )
    for key, why in found["refused"].items():
        print(f"{key}: no map. {why}")
    print(
        "off by: mean absolute error in points of 1 … 10, as it is and mapped (tested across prompts); mean only: naming people's mean"
    )


def agreement_lines(found: dict) -> list[str]:
    """How often a judge agrees with a person's votes, in sentences."""
    span = lambda t: "unknown" if t[0] is None else f"{100 * t[0]:.0f} %" + (f" ({100 * t[1]:.0f}–{100 * t[2]:.0f})" if t[1] is not None else "")  # noqa: E731  # fmt: skip
    lines = [f"{found['judge']}, {found['votes']} votes" + (f", {found['unknown']} of unknown origin left out" if found["unknown"] else "")]  # fmt: skip
    lines.append(
        f"it gives a verdict on {100 * (1 - found['no_verdict']):.0f} % of them and agrees with you in {span(found['accuracy'])} of those"
    )
    lines.append(
        f"its lean, with the order's pull cancelled out, agrees in {span(found['lean_accuracy'])} of all; a coin: 50 %"
    )
    return lines + [f"no verdict on {n}: {why}" for why, n in found["why"].items()]


def learn(args) -> None:
    from toolkit.progress import say
    from toolkit.reward.people import train_on_people

    found = train_on_people(args.ratings, args.out, base=args.base, seed=args.seed)
    print(json.dumps(found, ensure_ascii=False)) if args.json else _show_learnt(found)
    say(f"fablesmith rate stories.jsonl --with {args.out}")


def _show_learnt(found: dict) -> None:
    print(
        f"{found['texts']} texts, {found['groups']} prompts; Spearman with people on prompts not trained on (95 % interval)"
    )
    print(
        f"{'aspect':<18}{'model':<26}{'within writers':<24}{'ridge':>8}{'likelihood':>12}{'length':>8}{'one person':>12}"
    )
    span = lambda t: f"{t[0]:+.2f} ({t[1]:+.2f} to {t[2]:+.2f})" if t else "–"  # noqa: E731
    for aspect, f in found["aspects"].items():
        rho = f["spearman"]
        one = "–" if f["one rater"] is None else f"{f['one rater']:+.2f}"
        print(
            f"{aspect:<18}{span(rho['model']):<26}{span(f['within']['model']):<24}{rho['ridge'][0]:>+8.2f}"
            f"{rho['likelihood'][0]:>+12.2f}{rho['length'][0]:>+8.2f}{one:>12}"
        )


def export_judge(args) -> None:
    from toolkit.progress import say
    from toolkit.rater import export_judge as export

    found = export(args.run, args.out, args.quantisation)
    print(json.dumps(found, ensure_ascii=False)) if args.json else _show_rater(found, args.out)
    say(f"fablesmith judge stories.jsonl --model {args.out}")


def _show_rater(found: dict, out: Path) -> None:
    print(f"{out} ({found['megabytes']} MB)")
    held_out = found["held_out"]
    for name, who in (("rater", "this file"), ("base", "the base model as judge")):
        if name in held_out["plots"]:
            value, low, high = held_out["plots"][name]["mean"]["spearman"]
            print(f"{who} against the reward model on {held_out['plots']['texts']} held-out texts: Spearman {value:+.2f} ({low:+.2f} to {high:+.2f})")  # fmt: skip
    for name, by in held_out["pairs"].items():
        right = [v["accuracy"][0] for v in by.values() if v["accuracy"]]
        print(
            f"orders plots and their damage rightly, mean of the dimensions: {name} {100 * sum(right) / len(right):.0f} %"
        )
    if not found["follows"]:
        print("it does not follow the reward model on held-out plots: do not use it as its stand-in")


VERBS = {
    "rate": rate,
    "judge": judge,
    "judges": judges,
    "passport": passport,
    "compare": compare,
    "sensitivity": sensitivity,
    "vote": vote,
    "calibrate": calibrate,
    "learn": learn,
    "export-judge": export_judge,
}
