"""The stages of a PlotTwist run: each reads files, calls one trade, writes files. Heavy libraries load inside."""

import dataclasses
import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import groupby, islice
from pathlib import Path

from toolkit import together
from toolkit.errors import UserError
from toolkit.progress import bar, batched, say
from toolkit.recipe import SHIPPED, WEIGHTED, Recipe
from toolkit.records import (
    REASONS,
    AspectRatings,
    Plot,
    PreferencePair,
    Premise,
    append_jsonl,
    each_jsonl,
    guess_language,
    languages_of,
    read_jsonl,
    read_pairs,
    read_plots,
    read_premises,
    text_id,
    write_jsonl,
)

DATA = Path(__file__).parent / "data"
MANY = 1024  # texts in memory at once where there may be any number of them
PROBE = 16  # premises that neither train nor test anything: what the tripwire lets the writer write to


def save_json(path: Path, data) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")


def load_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def base_model(folder: Path):
    """The base model as the `model` stage left it in `folder`."""
    from toolkit.models.resolve import Model, resolve

    known = load_json(folder / "model.json")
    gguf = Path(known["gguf"]) if Path(known["gguf"]).is_absolute() else folder / known["gguf"]
    return Model(known["id"], resolve(known["id"]).weights, gguf)


def base_of(work):
    return base_model(work.of("model"))


def model(recipe: Recipe, work) -> dict:
    """model.json, and base.gguf unless the recipe names a GGUF: what writes the candidates and is compared at the end.

    The embedded model's file is not taken as it is packaged, which llama.cpp reads slowly, but in 16 bits (engines.load.in_16_bits).
    """
    from toolkit.engines.load import in_16_bits
    from toolkit.export.gguf import base_to_gguf
    from toolkit.models.catalogue import named_gguf
    from toolkit.models.gguf_file import check_same_model
    from toolkit.models.load import ensure_weights, fingerprint, weights_folder
    from toolkit.models.resolve import EMBEDDED, resolve

    named = named_gguf(recipe.model.gguf)
    found = resolve(recipe.model.id)
    ensure_weights(found)
    if named:
        check_same_model(named, found)
    elif found.id == EMBEDDED and recipe.model.quantisation == "F16" and (fast := in_16_bits(found.gguf)):
        shutil.copyfile(fast, work.out / "base.gguf")
    else:
        base_to_gguf(weights_folder(found), recipe.model.quantisation, work.out / "base.gguf")
    facts = {"id": found.id, "gguf": str(named) if named else "base.gguf", "fingerprint": fingerprint(found)}
    save_json(work.out / "model.json", facts)
    return facts


def premises(recipe: Recipe, work) -> dict:
    """train.jsonl and test.jsonl (premises), plots.jsonl (well-made plots)."""
    settings = recipe.premises
    own = lambda name, shipped: DATA / shipped if name == SHIPPED else Path(name)  # noqa: E731
    found = read_premises(own(settings.file, "premises.jsonl"), settings.skip_bad_lines)
    made = read_plots(own(settings.plots, "plots.jsonl"), settings.skip_bad_lines)
    for bad in found.bad + made.bad:
        say(f"  left out {bad}")
    rows, plots = found.rows, made.rows
    if settings.file == SHIPPED:
        rows = [p for p in rows if p.language in settings.languages]
    if settings.plots == SHIPPED:
        plots = [p for p in plots if guess_language(p.text) in settings.languages]
    rows, odd = _usable(rows, settings)
    facts = {"format": found.format, "bad_lines": len(found.bad) + len(made.bad) + odd, "plots": len(plots)}
    for split, wanted in (("train", settings.train), ("test", settings.test)):
        side = sorted((p for p in rows if p.split == split), key=lambda p: p.id)
        random.Random(f"{recipe.seed}:{split}").shuffle(side)
        if not side:
            raise UserError(
                f"no premise of {settings.file} falls on the {split} side (one id in five is for testing)",
                "give more premises, or other ids",
            )
        if len(side) < wanted:
            say(f"  only {len(side)} premises for {split}, {wanted} asked for")
        write_jsonl(work.out / f"{split}.jsonl", side[:wanted])
        if split == "train":
            write_jsonl(work.out / "probe.jsonl", side[wanted : wanted + PROBE])
        facts[split] = min(wanted, len(side))
    write_jsonl(work.out / "plots.jsonl", plots)
    return facts


def _usable(rows: list[Premise], settings) -> tuple[list[Premise], int]:
    """Premises that can be put to a writer, each text once (else one could stand on both sides); how many were too long."""
    from toolkit.narrative.writing import check_premise

    kept, odd = {}, 0
    for p in rows:
        try:
            kept.setdefault(check_premise(p.text).lower(), p)
        except UserError as error:
            if not settings.skip_bad_lines:
                raise UserError(f"{settings.file}, premise {p.id}: {error}", error.hint) from None
            say(f"  left out premise {p.id}: {error}")
            odd += 1
    return list(kept.values()), odd


def _samplings(recipe: Recipe):
    from toolkit.engines.base import Sampling

    c = recipe.candidates
    return [
        Sampling(
            temperature=c.temperatures[k % len(c.temperatures)],
            min_p=c.min_p,
            repeat_penalty=c.repeat_penalty,
            max_tokens=c.max_tokens,
            seed=recipe.seed * 1000,
        )
        for k in range(c.per_premise)
    ]


def candidates(recipe: Recipe, work) -> dict:
    """candidates.jsonl; units.jsonl grows as they are written, so that a killed run keeps them."""
    from toolkit.engines.load import load_engine
    from toolkit.engines.server import at_once
    from toolkit.feedback.candidates import write_candidates
    from toolkit.narrative.angles import Angled

    todo = read_jsonl(work.of("premises") / "train.jsonl", Premise)
    samplings = _samplings(recipe)
    angles = recipe.candidates.angles
    calls = len(set(samplings)) if angles else 1  # drafts from angles are a call for each temperature
    writer = recipe.candidates.writer
    places = at_once(writer) or 4
    units = list(batched(todo, max(1, 4 * places * calls // len(samplings))))  # 16 are written side by side here
    done = sum(1 for _ in each_jsonl(work.out / "units.jsonl"))
    engine = load_engine(base_of(work).gguf if writer == "base" else writer)
    if angles:
        engine = Angled(engine)
    progress = bar(total=len(todo), desc="candidates", unit="premise", initial=sum(len(u) for u in units[:done]))
    for unit in units[done:]:
        rows = [dataclasses.asdict(p) for _, plots in write_candidates(engine, unit, samplings) for p in plots]
        append_jsonl(work.out / "units.jsonl", [{"plots": rows}])
        progress.update(len(unit))
    progress.close()
    engine.close()
    plots = (Plot(**row) for unit in each_jsonl(work.out / "units.jsonl") for row in unit["plots"])
    written = write_jsonl(work.out / "candidates.jsonl", plots)
    if not written:
        raise UserError("the writer produced no usable plot", "raise candidates.max_tokens, or take another model")
    (work.out / "units.jsonl").unlink()
    asked = len(todo) * len(samplings)
    return {"candidates": written, "asked": asked, "left_out": asked - written, "premises": len(todo)}


def ratings(recipe: Recipe, work) -> dict:
    """ratings.jsonl, one line a candidate as it is rated; check.jsonl: the rater against damage of known order."""
    from toolkit.engines.load import load_engine
    from toolkit.engines.remembered import remembered
    from toolkit.engines.server import at_once
    from toolkit.feedback.ratings import check_rater, rate_plots

    drafts = work.of("candidates") / "candidates.jsonl"
    path, check_path = work.out / "ratings.jsonl", work.out / "check.jsonl"
    count, done = (sum(1 for _ in each_jsonl(file)) for file in (drafts, path))  # one a draft, in their order
    rater = base_of(work).gguf if recipe.ratings.rater == "base" else recipe.ratings.rater
    engine = remembered(load_engine(rater), rater)
    progress = bar(total=count, desc="ratings", unit="plot", initial=done)
    for plots in batched(islice(each_jsonl(drafts, Plot), done, None), at_once(str(rater)) or 1):
        append_jsonl(path, rate_plots(engine, plots, recipe.ratings.reason))
        progress.update(len(plots))
    progress.close()
    made = read_jsonl(work.of("premises") / "plots.jsonl", Plot)
    facts = {"rated": count, "rater": engine.name, "merge": "balanced", "known": getattr(engine, "known", 0)}
    facts |= check_rater(engine, made, recipe.ratings.check, recipe.seed, check_path)
    engine.close()
    return facts


def reward(recipe: Recipe, work) -> dict:
    """The reward model: PEFT adapter, head.safetensors, reward.json, metrics; facts hold quality beside baselines."""
    from toolkit.models.load import fingerprint
    from toolkit.models.resolve import MADE
    from toolkit.reward.data import anchored_groups, label_shares, rated_groups, split_groups
    from toolkit.reward.model import RewardConfig, new_reward_model
    from toolkit.reward.train import baselines, drop_long, measure, train_reward

    settings, base = recipe.reward, base_of(work)
    made = read_jsonl(work.of("premises") / "plots.jsonl", Plot)
    ratings = each_jsonl(work.of("ratings") / "ratings.jsonl", AspectRatings)
    rated = {r.plot_id: AspectRatings(r.plot_id, r.scores) for r in ratings}  # without what was said of them
    drafts = read_jsonl(work.of("candidates") / "candidates.jsonl", Plot)
    anchored = anchored_groups(made, list(settings.strengths), recipe.seed)
    train, held_out = split_groups(anchored, {p.id: p.premise_id or p.id for p in made})
    if settings.rated_weight > 0:
        train += rated_groups(drafts, rated, settings.rated_weight, max(settings.strengths), recipe.seed)
    config = RewardConfig(
        base.id if base.id in MADE else str(base.weights),
        fingerprint(base),
        settings.depth,
        dtype=recipe.model.dtype,
        four_bit=recipe.model.four_bit,
        languages=languages_of(p.text for p in made),
    )
    import torch

    torch.manual_seed(recipe.seed)
    rm = new_reward_model(config, settings.lora)
    too_long = drop_long(train, rm, settings.max_tokens) + drop_long(held_out, rm, 1 << 20)
    if not any(g.absolute for g in train):
        raise UserError(
            "there is nothing to train the reward model on", "give well-made plots, or raise reward.max_tokens"
        )
    rm.keep_lower([t for g in train + held_out for t in g.texts])
    before = work.out / "baselines.json"
    if not before.exists() and not together.rank():
        save_json(before, baselines(rm, held_out, recipe.seed))
    train_reward(rm, train, settings, work.out, recipe.seed)
    if together.rank():  # one of several that train together: the first measures and writes
        return {}
    rm.save(work.out)
    shutil.rmtree(work.out / "checkpoints", ignore_errors=True)
    texts = [t for g in held_out for t in g.texts]
    quality = measure(rm.score(texts, progress="held out"), held_out) if held_out else {}
    return {
        "texts": sum(len(g.texts) for g in train),
        "groups": len(train),
        "held_out_texts": len(texts),
        "too_long": too_long,
        "labels_from": label_shares(train),
        "dtype": str(next(p for p in rm.module.parameters() if not p.requires_grad).dtype).removeprefix("torch."),
        "held_out": {"reward model": quality, **load_json(before)},
    }


def deviation(recipe: Recipe, work) -> dict:
    """deviation.jsonl: how far each answer lies from the others to its prompt, and the weight that gives it.

    The answers are a premise's candidates, or the different answers to one prompt in the user's own pairs.
    """
    from toolkit.preference.deviation import deviations

    settings, counts, heaviest = recipe.deviation, Counter(), 0.0
    kinds, models = tuple(dict.fromkeys(settings.kinds)), {"semantic": settings.semantic, "style": settings.style}

    def rows() -> Iterator[dict]:
        nonlocal heaviest
        for groups in batched(_answers(recipe, work), MANY):
            counts.update(prompts=len(groups), few=sum(len(group) < 3 for _, group in groups))
            for row in deviations(dict(groups), kinds, settings.floor, models):
                counts["zero"] += row.weight == 0
                heaviest = max(heaviest, row.weight)
                yield dataclasses.asdict(row)

    written = write_jsonl(work.out / "deviation.jsonl", rows())
    if counts["few"]:
        say(
            f"  {counts['few']} of {counts['prompts']} prompts have fewer than three answers: each of those counts as 1"
        )
    return {
        "answers": written,
        "prompts": counts["prompts"],
        "fewer_than_three": counts["few"],
        "weight_zero": counts["zero"],
        "heaviest": round(heaviest, 3),
    }


def _answers(recipe: Recipe, work) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(prompt's id, [(answer's id, its text)]), prompt by prompt."""
    if not recipe.pairs.file:
        drafts = each_jsonl(work.of("candidates") / "candidates.jsonl", Plot)
        for premise, plots in groupby(drafts, lambda plot: plot.premise_id):  # they stand premise by premise
            yield premise, [(plot.id, plot.text) for plot in plots]
        return
    answers: dict[str, list[tuple[str, str]]] = {}
    for p in each_jsonl(work.of("pairs") / "pairs.jsonl", PreferencePair):
        group = answers.setdefault(_prompt_id(p), [])
        group += [row for text in (p.chosen, p.rejected) if (row := (text_id(text), text)) not in group]
    yield from answers.items()


def _prompt_id(pair: PreferencePair) -> str:
    return text_id(pair.prompt, "p")


def pairs(recipe: Recipe, work) -> dict:
    """pairs.jsonl, rejected.jsonl (with reasons) and scores.jsonl, which grows; or the user's own pairs, checked."""
    settings = recipe.pairs
    if settings.file:
        own = read_pairs(Path(settings.file), recipe.premises.skip_bad_lines)
        for bad in own.bad:
            say(f"  left out {bad}")
        write_jsonl(work.out / "pairs.jsonl", own.rows)
        return {"pairs": len(own.rows), "from": settings.file, "format": own.format, "bad_lines": len(own.bad)}
    from toolkit.narrative.dimensions import KEYS
    from toolkit.preference.divpo import divpo_pairs
    from toolkit.preference.pairs import confident_pairs, within_budget
    from toolkit.reward.model import load_reward_model

    drafts, path = work.of("candidates") / "candidates.jsonl", work.out / "scores.jsonl"
    count, done = (sum(1 for _ in each_jsonl(file)) for file in (drafts, path))  # one a draft, in their order
    model = load_reward_model(work.of("reward"), dimensions=KEYS)
    progress = bar(total=count, desc="scoring", unit="plot", initial=done)
    for plots in batched(islice(each_jsonl(drafts, Plot), done, None), MANY):
        found = model.score([p.text for p in plots])
        scores = [{k: round(float(v), 4) for k, v in zip(KEYS, row, strict=True)} for row in found]
        rows = zip(plots, scores, strict=True)
        append_jsonl(path, [AspectRatings(plot.id, score, rater="reward model") for plot, score in rows])
        progress.update(len(plots))
    progress.close()
    limits = {n: getattr(settings, n) for n in ("length_ratio", "per_premise")}
    if settings.select == "divpo":
        rank = {row["id"]: row["rank"] for row in each_jsonl(work.of("deviation") / "deviation.jsonl")}
        limits |= {"share": settings.share, "threshold": settings.threshold}
        choose = lambda plots, scores, _: divpo_pairs(plots, scores, rank, **limits, max_pairs=0)  # noqa: E731
        surest = lambda pair: rank[pair.chosen_id] - rank[pair.rejected_id]  # noqa: E731
        hint = "lower pairs.threshold, raise pairs.share, or write more candidates a premise"
    else:
        limits |= {n: getattr(settings, n) for n in ("margin", "agree", "prompts")}
        choose, surest = partial(confident_pairs, **limits, max_pairs=0), lambda pair: pair.margin
        hint = "lower pairs.margin or pairs.agree, or write more candidates"
    kept, counts = [], dict.fromkeys(REASONS, 0)

    def left_out() -> Iterator[dict]:
        nonlocal kept
        files = zip(
            each_jsonl(drafts, Plot),
            each_jsonl(path, AspectRatings),
            each_jsonl(work.of("ratings") / "ratings.jsonl", AspectRatings),
            strict=True,
        )
        for _, group in groupby(files, lambda row: row[0].premise_id):  # they stand premise by premise
            plots, scored, rated = zip(*group, strict=True)
            scores = {r.plot_id: r.scores for r in scored}
            found, rejected = choose(list(plots), scores, {r.plot_id: r for r in rated})
            kept += found
            yield from rejected
            if settings.max_pairs and len(kept) > 4 * settings.max_pairs:  # those beyond are not carried along
                kept, rejected = within_budget(kept, settings.max_pairs, surest)
                yield from rejected
        kept, rejected = within_budget(kept, settings.max_pairs, surest)
        yield from rejected

    def counted() -> Iterator[dict]:
        for row in left_out():
            counts[row.reason] += 1
            yield dataclasses.asdict(row)

    rejected = write_jsonl(work.out / "rejected.jsonl", counted())
    if not kept:
        raise UserError(
            f"none of {rejected} pairs is good enough: " + ", ".join(f"{k} {v}" for k, v in counts.items() if v),
            hint,
        )
    write_jsonl(work.out / "pairs.jsonl", kept)
    longer = sum(len(p.chosen) > len(p.rejected) for p in kept) / len(kept)
    return {"pairs": len(kept), "rejected": counts, "chosen_is_longer": round(longer, 3)}


def hold_rows(recipe: Recipe, work, rows: list[tuple[str, str]]):
    """(what holds a training on rows (prompt, answer) to its reference, or None; facts): the risks are in risk.jsonl.

    They are asked for once: a resumed training takes those it began with.
    """
    if recipe.safety.signal == "none":
        return None, {}
    from toolkit.safety.risk import FILE, assess, risks_of, summary
    from toolkit.safety.train import hold

    with together.first_goes_first():
        if (work.out / FILE).is_file():
            facts = summary(risks_of(work.out, len(rows)))
        else:
            asked = [{"prompt": prompt, "answer": answer} for prompt, answer in rows]
            facts = assess(base_of(work), asked, recipe.safety, recipe.model, work.out)
    return hold(risks_of(work.out, len(rows)), recipe.safety, recipe.seed), {"risk": facts}


def dpo(recipe: Recipe, work) -> dict:
    """adapter/ (PEFT), metrics.jsonl, tensorboard/."""
    from toolkit.preference.dpo import train_dpo

    rows = read_jsonl(work.of("pairs") / "pairs.jsonl", PreferencePair)
    weights = None
    if recipe.dpo.loss in WEIGHTED:
        found = {
            (row["premise_id"], row["id"]): row["weight"]
            for row in read_jsonl(work.of("deviation") / "deviation.jsonl")
        }
        own = recipe.pairs.file  # an answer may stand under several prompts there, with another weight in each
        weights = [found[_prompt_id(p), text_id(p.chosen)] if own else found[p.premise_id, p.chosen_id] for p in rows]
    holds, told = hold_rows(recipe, work, [(p.prompt, p.chosen) for p in rows])
    wire = None if together.rank() else _tripwire(recipe, work, rows)
    given = {"deviation": weights, "tripwire": wire, "held": holds}
    facts = train_dpo(base_of(work), rows, recipe.dpo, recipe.model, work.out, recipe.seed, **given) | told
    if together.rank():  # one of several that train together: the first writes
        return {}
    shutil.rmtree(work.out / "checkpoints", ignore_errors=True)
    if weights:
        facts["weights"] = {"mean": round(sum(weights) / len(weights), 3), "zero": sum(w == 0 for w in weights)}
    return facts


def _tripwire(recipe: Recipe, work, rows: list[PreferencePair]):
    """The watch over DPO; None where the recipe has none. Own pairs have no reward model: a fallen guard is enough then."""
    if not recipe.tripwire.every:
        return None
    from toolkit.evaluate.greetings import answer_distances
    from toolkit.narrative.writing import write_prompt
    from toolkit.preference.tripwire import Tripwire

    models = dict.fromkeys(("en", "zh"), recipe.deviation.semantic)
    reward = None
    if work.has("reward"):
        from toolkit.narrative.dimensions import KEYS
        from toolkit.reward.model import load_reward_model

        model = load_reward_model(work.of("reward"), dimensions=KEYS)

        def reward(prompts: list[str], answers: list[str]) -> list[float | None]:
            said = [t for t in answers if t.strip()]
            found = iter(model.score(said).mean(1).tolist() if said else [])
            return [next(found) if t.strip() else None for t in answers]

    probe = [] if recipe.pairs.file else read_jsonl(work.of("premises") / "probe.jsonl", Premise)
    prompts = [write_prompt(p)[0]["content"] for p in probe]
    if len(prompts) < 6:
        say("  the tripwire looks at prompts of the pairs: fewer than 6 premises neither train nor test anything")
        prompts = list(dict.fromkeys(p.prompt for p in rows))
    most = recipe.candidates.max_tokens
    apart = partial(answer_distances, models=models)
    given = {"max_tokens": most, "writer": partial(write_with, base_of(work).gguf)}
    return Tripwire(recipe.tripwire, prompts, reward, None, apart, work.out, recipe.seed, **given)


def write_with(gguf: Path, adapter: Path, prompts, samples: int, sampling) -> list[list[str]]:
    """`samples` answers to each prompt by llama.cpp, from the base's file with a PEFT adapter on top; nothing stays open."""
    from toolkit.engines.load import load_engine
    from toolkit.export.gguf import adapter_to_gguf

    lora = adapter / "adapter.gguf"
    adapter_to_gguf(adapter, gguf, lora)
    engine = load_engine(gguf, lora=lora, on="cpu")
    texts = engine.generate(prompts, samples, sampling)
    engine.close()
    lora.unlink()
    return texts


def export(recipe: Recipe, work) -> dict:
    """adapter.gguf, NAME-QUANTISATION.gguf where the model is merged, export.json with the proof, README.md."""
    from toolkit.export.export import export_model

    base, adapter = base_of(work), work.of(recipe.align) / "adapter"
    return export_model(base, adapter, recipe.name, recipe.export, recipe.model, work.out)


def _judge_where(settings) -> dict[str, str]:
    """Where a GGUF judge runs; on the CPU its experts are there anyway."""
    return {"on": settings.judge_on, "gpu_experts": "auto" if settings.judge_on == "cpu" else settings.gpu_experts}


def passport(recipe: Recipe, work) -> dict:
    """passport.json and passport.svg of the judge: found beside its model, in the cache or shipped, else made here."""
    from toolkit.evaluate.charts import passport as picture
    from toolkit.judges import issue_passport, open_judge

    settings = recipe.evaluate
    if settings.passport == "skip":
        return {"line": "", "threshold": 0.0, "from": "skipped"}
    opened = open_judge(settings.judge, **_judge_where(settings))
    found, source = opened.passport, "found"
    if found is None or (settings.people and Path(settings.people).stem not in found.people):
        say("  no passport of this judge yet: making it, once")
        people = [Path(settings.people)] if settings.people else []
        found, source = issue_passport(opened, work.out, people, settings.passport_pairs), "made"
    opened.judge.close()
    found.save(work.out / "passport.json")
    (work.out / "passport.svg").write_text(picture(found), encoding="utf-8")
    say(f"  {found.line}")
    return {"line": found.line, "threshold": found.threshold, "from": source}


def evaluate(recipe: Recipe, work) -> dict:
    """plots.jsonl (both writers), verdicts.jsonl (both orders), panel.jsonl, summary with intervals."""
    import llama_cpp

    from toolkit.engines.base import Sampling
    from toolkit.engines.load import load_engine
    from toolkit.evaluate.duel import duel_stage
    from toolkit.evaluate.panel import sit, summarise_panel
    from toolkit.judges import open_judge, same_family

    settings, c = recipe.evaluate, recipe.candidates
    sampling = Sampling(
        temperature=settings.temperature,
        min_p=c.min_p,
        repeat_penalty=c.repeat_penalty,
        max_tokens=c.max_tokens,
        seed=recipe.seed * 1000 + 500,
    )
    experts, where = {"gpu_experts": settings.gpu_experts}, _judge_where(settings)
    writers = {
        "base": lambda: load_engine(base_of(work).gguf, **experts),
        "aligned": lambda: load_engine(work.root, **experts),
    }
    todo = read_jsonl(work.of("premises") / "test.jsonl", Premise)

    def score(texts: list[str]):
        from toolkit.narrative.dimensions import KEYS
        from toolkit.reward.model import load_reward_model

        return load_reward_model(work.of("reward"), dimensions=KEYS).score(texts, progress="reward")

    facts = duel_stage(
        writers,
        todo,
        settings.per_premise,
        sampling,
        lambda: open_judge(settings.judge, **where).judge,
        score if work.has("reward") else None,
        work.out,
        work.card("passport")["facts"]["threshold"],
        beside=settings.judge_on == "cpu" and bool(llama_cpp.llama_supports_gpu_offload()),
    )
    facts["warnings"] = same_family(facts["judge"], facts.pop("judge_family"), facts.pop("families"))
    for warning in facts["warnings"]:
        say(f"  {warning}")
    facts["diversity"] = _diversity(recipe, work.out)
    if settings.panel:
        heard = {p.id for p in todo[: settings.panel]}
        plots = [
            p
            for p in read_jsonl(work.out / "plots.jsonl", Plot)
            if p.premise_id in heard and p.id.split("-")[-2] == "0"
        ]
        members = {
            name: (lambda name=name: load_engine(name, n_ctx=8192, **where))
            for name in dict.fromkeys((settings.judge, *settings.jury))
        }
        facts["panel"] = summarise_panel(sit(members, plots, work.out / "panel.jsonl"), {p.id: p.origin for p in plots})
    return facts


def _diversity(recipe: Recipe, out: Path) -> dict | None:
    """How different each writer's plots of one premise are, with diversity.svg; None where nobody wrote two."""
    from toolkit.evaluate.diversity import diversity, equal_terms

    writers: dict[str, dict[str, list[str]]] = {"base": {}, "aligned": {}}
    premises = {}
    for plot in read_jsonl(out / "plots.jsonl", Plot):
        if plot.text.strip():
            writers[plot.origin].setdefault(plot.premise_id, []).append(plot.text)
            premises[plot.premise_id] = plot.premise
    if equal_terms(writers)[0] is None:
        return None
    settings = recipe.deviation
    return diversity(writers, premises, semantic=settings.semantic, style=settings.style, out=out, seed=recipe.seed)


def report(recipe: Recipe, work) -> dict:
    """report.html, self-contained."""
    from toolkit.evaluate.report import write_report

    write_report(recipe, work, work.out / "report.html")
    return {}
