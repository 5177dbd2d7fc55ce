"""The stages of a greetings run: requests, cold start, agents' verdicts, two kinds of reward, one policy, a comparison."""

import random
import time
from pathlib import Path

from toolkit.errors import UserError
from toolkit.progress import bar, batched, say
from toolkit.recipe import SHIPPED, Recipe
from toolkit.records import Labelled, PreferencePair, Request, append_jsonl, read_jsonl, write_jsonl
from toolkit.stages import base_of, load_json, save_json

SIDES = ("train", "validate", "test")
AT_ONCE = 16  # answers the local engine decodes side by side


def requests(recipe: Recipe, work) -> dict:
    """train.jsonl, validate.jsonl, test.jsonl (requests by side) and labelled.jsonl (all sides), checked for leaks."""
    from toolkit.greeting.requests import check_split, read_labelled, read_requests, shipped

    settings = recipe.requests
    own, made = shipped(settings.languages)
    bad: list[str] = []
    if settings.file != SHIPPED:
        found = read_requests(Path(settings.file), settings.skip_bad_lines)
        own, bad = found.rows, bad + found.bad
    if settings.labelled != SHIPPED:
        found = read_labelled(Path(settings.labelled), settings.skip_bad_lines)
        made, bad = found.rows, bad + found.bad
    for line in bad:
        say(f"  left out {line}")
    limits = {"train": settings.train, "validate": settings.train, "test": settings.test}
    sides: dict[str, list[Request]] = {}
    for side in SIDES:
        rows = sorted((r for r in own if r.side == side), key=lambda r: r.id)
        if not rows:
            raise UserError(
                f"no request of {settings.file} falls on the {side} side (decided by its id)", "give more requests"
            )
        random.Random(f"{recipe.seed}:{side}").shuffle(rows)
        sides[side] = rows[: limits[side] or None]
        write_jsonl(work.out / f"{side}.jsonl", sides[side])
    check_split(sides, made)
    write_jsonl(work.out / "labelled.jsonl", made)
    facts = {side: len(rows) for side, rows in sides.items()}
    facts["labelled"] = {side: sum(x.side == side for x in made) for side in SIDES}
    for side, count in facts["labelled"].items():
        if count < 4:
            raise UserError(
                f"only {count} labelled greetings of {settings.labelled} fall on the {side} side; 4 are the least",
                "give more pairs of a good and a flawed greeting",
            )
    return {**facts, "languages": sorted({r.language for r in own}), "bad_lines": len(bad)}


def _requests(work, side: str) -> list[Request]:
    return read_jsonl(work.of("requests") / f"{side}.jsonl", Request)


def _labelled(work, *sides: str) -> list[Labelled]:
    rows = read_jsonl(work.of("requests") / "labelled.jsonl", Labelled)
    return [x for x in rows if not sides or x.side in sides]


def _ask(text: str) -> str:
    """The user turn that asks for a greeting."""
    from toolkit.greeting.writing import greet_prompt

    return greet_prompt(text)[0]["content"]


def sft(recipe: Recipe, work) -> dict:
    """adapter/ and adapter.gguf: the cold start on the train side's good greetings."""
    import shutil

    from toolkit.export.gguf import adapter_to_gguf
    from toolkit.preference.sft import train_sft

    base = base_of(work)
    prompts = {r.text: _ask_request(r) for r in _all_requests(work)}
    rows = [(prompts.get(x.request) or _ask(x.request), x.good) for x in _labelled(work, "train")]
    facts = train_sft(base, rows, recipe.sft, recipe.model, work.out, recipe.seed)
    shutil.rmtree(work.out / "checkpoints", ignore_errors=True)
    adapter_to_gguf(base, work.out / "adapter", base.gguf, work.out / "adapter.gguf")
    return facts


class Cast:
    """Engines by their names in the recipe: each opened once, whatever roles it plays."""

    def __init__(self, work, n_ctx: int = 8192):
        self.base, self.n_ctx, self.opened = base_of(work), n_ctx, {}
        self.adapter = work.of("sft") / "adapter.gguf"

    def __call__(self, name: str):
        from toolkit.engines.load import load_engine

        if name not in self.opened:
            lora = self.adapter if name == "sft" else None
            spec = self.base.gguf if name in ("base", "sft") else name
            self.opened[name] = load_engine(spec, n_ctx=self.n_ctx, lora=lora)
        return self.opened[name]

    def close(self) -> None:
        for engine in self.opened.values():
            engine.close()
        self.opened = {}


def rejection(recipe: Recipe, work) -> dict:
    """records.jsonl: for each request several answers, and what every agent said of each."""
    from toolkit.feedback.rejection import Agents, sample
    from toolkit.feedback.retrieval import Examples, pick_model

    settings = recipe.rejection
    roles = {"writer": settings.writer}
    roles |= {r: getattr(settings, r) or settings.agents for r in ("positive", "negative", "judge", "reflector")}
    most = settings.requests
    todo = _requests(work, "train")[: most or None] + _requests(work, "validate")[: (most + 2) // 3 or None]
    model = pick_model(settings.retrieval, sorted({r.language for r in todo}))
    cast = Cast(work)
    agents = Agents(**{role: cast(name) for role, name in roles.items()})
    examples = Examples(_labelled(work, "train"), model)
    try:
        return sample(agents, todo, examples, settings, work.out, recipe.seed, roles)
    finally:
        cast.close()


def pairs(recipe: Recipe, work) -> dict:
    """pairs.jsonl (train side) and held_out.jsonl (validate side): accepted against rejected, and the labelled ones."""
    from toolkit.feedback.rejection import Sampled, curated_pairs, to_pairs
    from toolkit.records import build, side_of
    from toolkit.reward.telling import length_auc, telling

    settings = recipe.rejection
    sampled = [build(Sampled, row) for row in read_jsonl(work.of("rejection") / "records.jsonl")]
    facts: dict = {}
    kept: dict[str, list[PreferencePair]] = {}
    for side, file in (("train", "pairs"), ("validate", "held_out")):
        agreed, counts = to_pairs([s for s in sampled if side_of(s.request_id) == side], settings)
        curated = curated_pairs(_labelled(work, side)) if settings.curated or side == "validate" else []
        kept[side] = agreed + curated
        write_jsonl(work.out / f"{file}.jsonl", kept[side])
        facts[side] = {"by agents": len(agreed), "curated": len(curated), **counts}
    train = kept["train"]
    if not train:
        raise UserError(
            "no request has both an accepted and a rejected answer, and no labelled greeting is used",
            "ask for more answers (rejection.per_request), take better agents, or set rejection.curated",
        )
    chosen, rejected = [p.chosen for p in train], [p.rejected for p in train]
    facts["length_auc"] = round(length_auc(chosen, rejected), 3)
    facts["telling"] = telling(chosen, rejected)
    facts["pairs"] = len(train)
    return facts


def pairwise(recipe: Recipe, work) -> dict:
    """The Bradley–Terry reward model of the pairs."""
    import shutil

    from toolkit.reward.pairwise import train_pairwise

    train, held_out = (read_jsonl(work.of("pairs") / f"{f}.jsonl", PreferencePair) for f in ("pairs", "held_out"))
    facts = train_pairwise(base_of(work), train, held_out, recipe.pairwise, recipe.model, work.out, recipe.seed)
    shutil.rmtree(work.out / "checkpoints", ignore_errors=True)
    return facts


def unseen(recipe: Recipe, work) -> dict:
    """The unseen judge (of the test side's labelled greetings) for the comparison; another one, of the validate side, for the tripwire."""
    from toolkit.evaluate.unseen import Unseen

    facts = {}
    for name, side in (("judge", "test"), ("watch", "validate")):
        made = Unseen.fit(_labelled(work, side))
        made.save(work.out / name)
        facts[name] = {"quality": made.quality, "trusted": made.trusted, "pairs": len(_labelled(work, side))}
    return facts


def principles(recipe: Recipe, work) -> dict:
    """detector.LANG.md, the judging principles (history.jsonl and rounds.svg a language tell how they came about), and how far the judge agrees with labels."""
    from toolkit.evaluate.rounds_chart import chart
    from toolkit.feedback.adversarial import train
    from toolkit.feedback.principled import PrincipledJudge, agreement

    settings, cast, facts = recipe.principles, Cast(work), {}
    engine = cast(settings.agent)
    for language in sorted({x.language for x in _labelled(work)}):
        mine = [x for x in _labelled(work) if x.language == language]
        sides = {side: [x for x in mine if x.side == side] for side in SIDES}
        start = {
            role: {language: _principles(getattr(settings, role), role, language)} for role in ("detector", "generator")
        }
        out = work.out / language
        out.mkdir(exist_ok=True)
        if settings.rounds:
            roles = dict.fromkeys(("generator", "detector", "reflector", "optimiser"), engine)
            asked = [r for r in _requests(work, "train") if r.language == language]
            facts[language] = train(roles, asked, sides["train"], sides["validate"], start, settings, out, recipe.seed)
            rows = read_jsonl(out / "history.jsonl")
            (work.out / f"rounds.{language}.svg").write_text(chart(rows), encoding="utf-8")
            kept = _principles(str(out / f"detector.{language}.md"), "detector", language)
        else:
            facts[language], kept = {}, start["detector"][language]
        kept.save(work.out / f"detector.{language}.md")
        before, after = (
            agreement(PrincipledJudge(engine, {language: p}), sides["test"])
            for p in (start["detector"][language], kept)
        )
        facts[language] |= {"unseen_before": before, "unseen_after": after, "version": kept.version}
    cast.close()
    return facts


def _principles(name: str, role: str, language: str):
    from toolkit.greeting.principles import load, shipped

    return shipped(role, language) if name == SHIPPED else load(Path(name))


def judge_of(work, cast: Cast, agent: str):
    """The principle-guided judge with the principles that the run has come to."""
    from toolkit.feedback.principled import PrincipledJudge
    from toolkit.greeting.principles import load

    found = [load(p) for p in sorted(work.of("principles").glob("detector.*.md"))]
    return PrincipledJudge(cast(agent), {p.language: p for p in found})


def _rewards(recipe: Recipe, work, cast: Cast, names: tuple[str, ...]) -> dict:
    """What pays, by name: (requests, answers) → floats, None where there is none."""
    found = {}
    if "model" in names:
        from toolkit.reward.pairwise import load_pairwise

        found["model"] = load_pairwise(work.of("pairwise")).score
    if "judge" in names:
        found["judge"] = judge_of(work, cast, recipe.principles.agent).reward
    return found


def _all_requests(work) -> list[Request]:
    return [r for side in SIDES for r in _requests(work, side)]


def _ask_request(request: Request) -> str:
    from toolkit.greeting.writing import greet_prompt

    return greet_prompt(request)[0]["content"]


def dpo(recipe: Recipe, work) -> dict:
    """adapter/: DPO on the very pairs of the reward model, from the cold start."""
    import shutil

    from toolkit.preference.dpo import train_dpo

    rows = read_jsonl(work.of("pairs") / "pairs.jsonl", PreferencePair)
    cast = Cast(work)
    wire = _tripwire(recipe, work, cast, ("model",))
    start = work.of("sft") / "adapter"
    facts = train_dpo(base_of(work), rows, recipe.dpo, recipe.model, work.out, recipe.seed, start=start, tripwire=wire)
    shutil.rmtree(work.out / "checkpoints", ignore_errors=True)
    cast.close()
    return facts


def grpo(recipe: Recipe, work) -> dict:
    """adapter/: GRPO from the cold start, paid by the reward model, the principle-guided judge, or both."""
    import shutil

    from toolkit.greeting.form import broken
    from toolkit.preference.grpo import train_grpo

    settings, cast = recipe.grpo, Cast(work)
    todo = _requests(work, "train")
    by_prompt = {_ask_request(r): r for r in _all_requests(work)}
    paid = _rewards(recipe, work, cast, settings.rewards)
    rewards = [
        (name, _on_prompts(name, paid[name], by_prompt), weight)
        for name, weight in zip(settings.rewards, settings.weights, strict=True)
    ]
    facts = train_grpo(
        base_of(work),
        [{"prompt": _ask_request(r)} for r in todo],
        rewards,
        lambda prompt, answer: broken(answer, by_prompt[prompt]),
        settings,
        recipe.model,
        work.out,
        recipe.seed,
        start=work.of("sft") / "adapter",
        tripwire=_tripwire(recipe, work, cast, settings.rewards),
    )
    shutil.rmtree(work.out / "checkpoints", ignore_errors=True)
    cast.close()
    return facts


def _on_prompts(name: str, reward, by_prompt: dict[str, Request]):
    """A reward called with whole prompts: the reward model reads those, judges read the request alone."""
    if name == "model":
        return reward
    return lambda prompts, answers: reward([by_prompt[p].text for p in prompts], answers)


def _tripwire(recipe: Recipe, work, cast: Cast, names: tuple[str, ...]):
    """The watch over a training, on validate-side requests; None where the recipe has none."""
    if not recipe.tripwire.every:
        return None
    from toolkit.evaluate.unseen import Unseen
    from toolkit.preference.tripwire import Tripwire

    probe = _requests(work, "validate")[: recipe.tripwire.prompts]
    by_prompt = {_ask_request(r): r for r in probe}
    paid = _rewards(recipe, work, cast, names)
    weights = dict(zip(recipe.grpo.rewards, recipe.grpo.weights, strict=False))

    def reward(prompts, answers):
        rows = [_on_prompts(name, paid[name], by_prompt)(prompts, answers) for name in names]
        return [
            sum(weights.get(n, 1.0) * (v or 0.0) for n, v in zip(names, values, strict=True))
            for values in zip(*rows, strict=True)
        ]

    judge = Unseen.load(work.of("unseen") / "watch")
    asked = lambda prompts, answers: judge.score([by_prompt[p].text for p in prompts], answers)  # noqa: E731
    return Tripwire(
        recipe.tripwire,
        list(by_prompt),
        reward,
        asked if judge.trusted else None,
        distances,
        work.out,
        recipe.seed,
    )


def distances(groups: list[list[str]]) -> list[float]:
    """Mean pairwise distance of the answers to each prompt: in meaning for English, by characters for Chinese."""
    import numpy as np

    from toolkit.evaluate.measures import pair_distance
    from toolkit.models.embed import embed
    from toolkit.records import guess_language

    found = []
    for texts in groups:
        texts = [t for t in texts if t.strip()]
        if len(texts) < 2:
            found.append(float("nan"))
            continue
        model = "ngrams" if guess_language(" ".join(texts)) == "zh" else "minilm"
        found.append(pair_distance(np.asarray(embed(texts, model))))
    return found


def evaluate(recipe: Recipe, work) -> dict:
    """answers.jsonl (base, sft, best of n, aligned on unseen requests) and figures.json: the comparison."""
    from toolkit.engines.load import load_engine
    from toolkit.evaluate.greetings import Writer, best_of
    from toolkit.evaluate.unseen import Unseen
    from toolkit.greeting.form import broken

    settings, base = recipe.evaluate, base_of(work)
    todo = _requests(work, "test")
    aligned = work.of("export") / load_json(work.of("export") / "export.json")["gguf"]
    cold = work.of("sft") / "adapter.gguf"
    n = settings.per_premise
    writers = {
        "base": (base.gguf, None, n),
        "sft": (base.gguf, cold, n * settings.best_of),
        recipe.align: (aligned, None, n),
    }
    path = work.out / "answers.jsonl"
    for name, (gguf, lora, count) in writers.items():
        have = {row["request_id"] for row in read_jsonl(path) if row["writer"] == name}
        left = [r for r in todo if r.id not in have]
        if left:
            engine = load_engine(gguf, lora=lora)
            write_answers(engine, name, left, count, recipe, path)
            engine.close()
    rows = read_jsonl(path)
    cast = Cast(work)
    scorers = _rewards(
        recipe,
        work,
        cast,
        tuple(n for n in ("model", "judge") if work.has({"model": "pairwise", "judge": "principles"}[n])),
    )
    by_id = {r.id: r for r in todo}
    made: list[Writer] = []
    for name in writers:
        mine = [row for row in rows if row["writer"] == name]
        answers = {row["request_id"]: row["answers"][:n] for row in mine}
        made.append(Writer(name, answers, sum(row["seconds"] * n / len(row["answers"]) for row in mine), n * len(mine)))
    if settings.best_of > 1:
        started = time.monotonic()
        drawn = {row["request_id"]: row["answers"] for row in rows if row["writer"] == "sft"}
        seconds = sum(row["seconds"] for row in rows if row["writer"] == "sft")
        for name, score in scorers.items():
            flat = [(id, text) for id, texts in drawn.items() for text in texts]
            ask = _ask_request if name == "model" else (lambda r: r.text)
            values = list(score([ask(by_id[id]) for id, _ in flat], [text for _, text in flat]))
            grouped: dict[str, list] = {}
            for (id, _), value in zip(flat, values, strict=True):
                grouped.setdefault(id, []).append(float("-inf") if value is None else float(value))
            took = time.monotonic() - started
            made.append(
                Writer(
                    f"best of {settings.best_of} by {name}",
                    best_of(drawn, grouped, settings.best_of),
                    seconds + took,
                    len(flat),
                )
            )
    judge = Unseen.load(work.of("unseen") / "judge")
    facts = compare(made, todo, scorers, judge, broken, recipe.seed)
    cast.close()
    save_json(work.out / "figures.json", facts)
    write_jsonl(work.out / "writers.jsonl", [{"writer": w.name, "answers": w.answers} for w in made])
    return facts


def compare(writers, todo: list[Request], scorers: dict, judge, broken, seed: int) -> dict:
    """evaluate.greetings.measure, with every scorer put on requests and answers."""
    from toolkit.evaluate.greetings import measure
    from toolkit.reward.telling import telling

    by_text = {r.text: r for r in todo}

    def put(name, score):
        if name == "model":
            return lambda asked, answers: score([_ask_request(by_text[a]) for a in asked], answers)
        return score

    facts = measure(
        writers, todo, {n: put(n, s) for n, s in scorers.items()}, judge, baseline="sft", seed=seed,
        broken=lambda request, answer: broken(answer, request), distances=distances,
    )  # fmt: skip
    start = next(w for w in writers if w.name == "sft")
    said = lambda w: [t for texts in w.answers.values() for t in texts]  # noqa: E731
    facts["telling"] = {w.name: telling(said(w), said(start)) for w in writers if w is not start}
    facts["unseen"] = {"quality": judge.quality, "trusted": judge.trusted}
    return facts


def write_answers(engine, name: str, todo: list[Request], n: int, recipe: Recipe, path: Path) -> None:
    """A row a request on disk as it is written: `n` cleaned answers. Fixed units, so that a resumed run writes the same."""
    from toolkit.engines.base import Sampling
    from toolkit.greeting.form import clean
    from toolkit.greeting.writing import greet_prompt

    sampling = Sampling(
        recipe.evaluate.temperature, min_p=0.05, max_tokens=recipe.grpo.max_tokens, seed=recipe.seed * 1000 + 500
    )
    progress = bar(total=len(todo), desc=name, unit="request")
    for unit in batched(todo, max(1, AT_ONCE // n)):
        started = time.monotonic()
        texts = engine.generate([greet_prompt(r) for r in unit], n, sampling)
        took = (time.monotonic() - started) / len(unit)
        append_jsonl(
            path,
            [
                {"writer": name, "request_id": r.id, "answers": [clean(t, r) for t in mine], "seconds": round(took, 3)}
                for r, mine in zip(unit, texts, strict=True)
            ],
        )
        progress.update(len(unit))
    progress.close()


def report(recipe: Recipe, work) -> dict:
    """report.html, self-contained."""
    from toolkit.evaluate.greeting_report import write_greeting_report

    write_greeting_report(recipe, work, work.out / "report.html")
    return {}
