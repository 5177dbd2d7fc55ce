"""The stages of a greetings run: requests, cold start, agents' verdicts, two kinds of reward, one policy, a comparison."""

import random
import statistics
import time
from functools import partial
from pathlib import Path

from toolkit import together
from toolkit.errors import UserError
from toolkit.progress import bar, batched, say
from toolkit.recipe import SHIPPED, Recipe
from toolkit.records import Labelled, PreferencePair, Request, append_jsonl, read_jsonl, write_jsonl
from toolkit.stages import base_of, hold_rows, load_json, save_json, write_with

SIDES = ("train", "validate", "test")
LABELLED = 10  # requests with labelled greetings that each side needs in each language, for the unseen judges
LENGTH_TELLS = 0.15  # AUC of length alone beyond a coin's from which a run warns
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
        found = read_labelled(Path(settings.labelled), settings.skip_bad_lines, own)
        made, bad = found.rows, bad + found.bad
    for line in bad:
        say(f"  left out {line}")
    least = 4 if recipe.align == "grpo" and "judge" in recipe.grpo.rewards else 1
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
    spoken = sorted({r.language for r in own})
    for language in spoken:
        if (count := sum(r.language == language for r in sides["train"])) < least:
            raise UserError(
                f"{count} requests in {language} to train on; the principles' rounds need {least} of each language",
                "give more requests, raise requests.train, or name one language in requests.languages",
            )
    known = {side: [*sides[side], *(x for x in made if x.side == side)] for side in SIDES}
    for side in SIDES:
        check_split(known[side], [r for other in SIDES if other != side for r in known[other]])
    facts = {side: len(rows) for side, rows in sides.items()}
    if odd := sorted({x.language for x in made} - set(spoken)):
        say(f"  labelled greetings in {', '.join(odd)} are left out: no request is in that language")
        made = [x for x in made if x.language in spoken]
    write_jsonl(work.out / "labelled.jsonl", made)
    facts["labelled"] = {side: sum(x.side == side for x in made) for side in SIDES}
    for language in spoken:
        for side in SIDES:
            count = len({x.request_id for x in made if x.side == side and x.language == language})
            if count < LABELLED:
                raise UserError(
                    f"{count} labelled requests in {language} of {settings.labelled} fall on the {side} side; {LABELLED} are the least",
                    "give more pairs of a good and a flawed greeting, or name one language in requests.languages",
                )
    return {**facts, "languages": spoken, "bad_lines": len(bad)}


def _requests(work, side: str) -> list[Request]:
    return read_jsonl(work.of("requests") / f"{side}.jsonl", Request)


def _labelled(work, *sides: str) -> list[Labelled]:
    rows = read_jsonl(work.of("requests") / "labelled.jsonl", Labelled)
    return [x for x in rows if not sides or x.side in sides]


def _all_requests(work) -> list[Request]:
    return [r for side in SIDES for r in _requests(work, side)]


def ask(request: Request) -> str:
    """The user turn that asks for a greeting: what every training sees as the prompt."""
    from toolkit.greeting.writing import greet_prompt

    return greet_prompt(request)[0]["content"]


def sft(recipe: Recipe, work) -> dict:
    """adapter/ and adapter.gguf: the cold start on the train side's good greetings."""
    import shutil

    from toolkit.export.gguf import adapter_to_gguf
    from toolkit.feedback.verdicts import curated_pairs
    from toolkit.models.sft import train_sft

    base = base_of(work)
    rows = [(p.prompt, p.chosen) for p in curated_pairs(_labelled(work, "train"), _all_requests(work))]
    holds, told = hold_rows(recipe, work, rows)
    facts = train_sft(base, rows, recipe.sft, recipe.model, work.out, recipe.seed, holds) | told
    if together.rank():  # one of several that train together: the first writes
        return {}
    shutil.rmtree(work.out / "checkpoints", ignore_errors=True)
    adapter_to_gguf(work.out / "adapter", base.gguf, work.out / "adapter.gguf")
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
    from toolkit.feedback.rejection import Agents, check_agents, sample
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
        facts = sample(agents, todo, examples, settings, work.out, recipe.seed, roles)
        facts["check"] = check_agents(agents, _labelled(work, "validate"), examples, settings, work.out, recipe.seed)
    finally:
        cast.close()
    share, low, _ = facts["check"].get("accuracy", (1, 1, 1))
    if low <= 0.5:
        say(
            f"  these agents are right on {share:.0%} of labelled greetings, which a coin may be: their pairs mean little"
        )
    return facts


def pairs(recipe: Recipe, work) -> dict:
    """pairs.jsonl (train side) and held_out.jsonl (validate side): accepted against rejected, and the labelled ones."""
    from toolkit.feedback.verdicts import curated_pairs, read_records, to_pairs
    from toolkit.greeting.form import plain
    from toolkit.greeting.requests import check_split
    from toolkit.records import side_of
    from toolkit.reward.telling import length_auc, telling

    settings, every = recipe.rejection, _all_requests(work)
    sampled = read_records(work.of("rejection") / "records.jsonl")
    facts: dict = {}
    kept: dict[str, list[PreferencePair]] = {}
    known = {side: curated_pairs(_labelled(work, side), every) for side in SIDES}
    for side, file in (("validate", "held_out"), ("train", "pairs")):
        mine = [s for s in sampled if side_of(s.request_id) == side]
        if side == "train":  # a small writer says the same to many
            others = [*kept["validate"], *known["test"]]
            said = {plain(text) for p in others for text in (p.chosen, p.rejected)}
            leaked = [s for s in mine if plain(s.text) in said]
            mine, facts["said_on_two_sides"] = [s for s in mine if s not in leaked], len(leaked)
        agreed, counts = to_pairs(mine, settings)
        curated = known[side] if settings.curated or side == "validate" else []
        kept[side] = agreed + curated
        write_jsonl(work.out / f"{file}.jsonl", kept[side])
        facts[side] = {"by_agents": len(agreed), "curated": len(curated), "agents": counts}
    train = kept["train"]
    check_split(train, [*kept["validate"], *known["test"], *_requests(work, "test"), *_requests(work, "validate")])
    if not train:
        raise UserError(
            "no request has both an accepted and a rejected answer, and no labelled greeting is used",
            "ask for more answers (rejection.per_request), take better agents, or set rejection.curated",
        )
    chosen, rejected = [p.chosen for p in train], [p.rejected for p in train]
    facts["length_auc"] = round(length_auc(chosen, rejected), 3)
    if abs(facts["length_auc"] - 0.5) > LENGTH_TELLS:
        say(
            f"  length alone tells chosen from rejected with AUC {facts['length_auc']:.2f}: the reward will pay for length"
        )
    facts["telling"] = telling(chosen, rejected)
    longer, shorter = (sum(sign * (len(p.chosen) - len(p.rejected)) > 0 for p in train) for sign in (1, -1))
    return {"pairs": len(train), "chosen_longer": longer, "chosen_shorter": shorter, **facts}


def pairwise(recipe: Recipe, work) -> dict:
    """The Bradley–Terry reward model of the pairs."""
    import shutil

    from toolkit.reward.pairwise import train_pairwise

    train, held_out = (read_jsonl(work.of("pairs") / f"{f}.jsonl", PreferencePair) for f in ("pairs", "held_out"))
    facts = train_pairwise(base_of(work), train, held_out, recipe.pairwise, recipe.model, work.out, recipe.seed)
    if together.rank():
        return {}
    shutil.rmtree(work.out / "checkpoints", ignore_errors=True)
    return facts


def unseen(recipe: Recipe, work) -> dict:
    """The unseen judge (of the test side's labelled greetings) for the comparison; another one, of the validate side, for the tripwire."""
    from toolkit.evaluate.unseen import Unseen

    facts = {}
    for name, side in (("judge", "test"), ("watch", "validate")):
        made = Unseen.fit(_labelled(work, side))
        (work.out / name).mkdir(exist_ok=True)
        made.save(work.out / name)
        facts[name] = {"quality": made.quality, "trusted": made.trusted, "left_out": made.left_out}
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
            (out / "rounds.svg").write_text(chart(rows), encoding="utf-8")
            kept = _principles(str(out / f"detector.{language}.md"), "detector", language)
        else:
            facts[language], kept = {"rounds": 0}, start["detector"][language]
        kept.save(work.out / f"detector.{language}.md")
        first, tested = start["detector"][language], {}
        for when, held, shift in (("before", first, "start_shift"), ("after", kept, "shift")):
            if held.rules not in tested:  # no round may have changed them: asked once then
                judge = PrincipledJudge(engine, {language: held})
                judge.shift[language] = facts[language].get(shift, 0.0)
                tested[held.rules] = agreement(judge, sides["test"], progress=f"test {when}")
            facts[language][f"test_{when}"] = tested[held.rules]
    cast.close()
    return facts


def _principles(name: str, role: str, language: str):
    from toolkit.greeting.principles import load, shipped

    if name == SHIPPED:
        return shipped(role, language)
    found = load(Path(name))
    if found.language != language:
        raise UserError(
            f"{name} is in {found.language!r}, and the run has requests in {language!r}",
            f"write `language: {language}` into it, or name one language in requests.languages",
        )
    return found


def judge_of(work, cast: Cast, agent: str):
    """The principle-guided judge with the principles that the run has come to."""
    from toolkit.feedback.principled import PrincipledJudge
    from toolkit.greeting.principles import load

    found = [load(p) for p in sorted(work.of("principles").glob("detector.*.md"))]
    judge = PrincipledJudge(cast(agent), {p.language: p for p in found})
    judge.shift |= {p.language: work.card("principles")["facts"][p.language].get("shift", 0.0) for p in found}
    return judge


def rewards_of(recipe: Recipe, work, cast: Cast, names: tuple[str, ...]) -> dict:
    """What pays, by name: (requests' texts, answers) → floats, None where there is none."""
    found, by_text = {}, {r.text: ask(r) for r in _all_requests(work)}
    if "model" in names:
        from toolkit.reward.pairwise import load_pairwise

        model = load_pairwise(work.of("pairwise"))
        found["model"] = lambda asked, answers: model.score([by_text[a] for a in asked], answers).tolist()
    if "judge" in names:
        found["judge"] = judge_of(work, cast, recipe.principles.agent).reward
    return found


def dpo(recipe: Recipe, work) -> dict:
    """adapter/: DPO on the very pairs of the reward model, from the cold start."""
    import shutil

    from toolkit.preference.dpo import train_dpo

    rows = read_jsonl(work.of("pairs") / "pairs.jsonl", PreferencePair)
    cast, wire = Cast(work), None
    if recipe.tripwire.every and not together.rank():  # only the watch asks the reward model
        wire = _tripwire(recipe, work, rewards_of(recipe, work, cast, ("model",)), {"model": 1.0})
    holds, told = hold_rows(recipe, work, [(p.prompt, p.chosen) for p in rows])
    given = {"start": work.of("sft") / "adapter", "tripwire": wire, "held": holds}
    facts = train_dpo(base_of(work), rows, recipe.dpo, recipe.model, work.out, recipe.seed, **given) | told
    if together.rank():
        return {}
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
    by_prompt = {ask(r): r for r in _all_requests(work)}
    shares = dict(zip(settings.rewards, settings.weights, strict=True))
    paid, rewards, wire = {}, [], None
    if not together.rank():  # of several that train together only the first is asked for rewards
        paid = rewards_of(recipe, work, cast, settings.rewards)
        rewards = [(name, _on_prompts(paid[name], by_prompt), weight) for name, weight in shares.items()]
        wire = _tripwire(recipe, work, paid, shares)
    holds, told = hold_rows(recipe, work, [(ask(r), "") for r in todo])
    facts = train_grpo(
        base_of(work),
        [{"prompt": ask(r)} for r in todo],
        rewards,
        lambda prompt, answer: broken(answer, by_prompt[prompt]),
        settings,
        recipe.model,
        work.out,
        recipe.seed,
        start=work.of("sft") / "adapter",
        tripwire=wire,
        held=holds,
    )
    if together.rank():
        return {}
    shutil.rmtree(work.out / "checkpoints", ignore_errors=True)
    cast.close()
    return facts | told


def _on_prompts(score, by_prompt: dict[str, Request]):
    """A reward of requests and answers, called with the prompts that the training sees."""
    return lambda prompts, answers: score([by_prompt[p].text for p in prompts], answers)


def _tripwire(recipe: Recipe, work, paid: dict, weights: dict[str, float]):
    """The watch over a training, on validate-side requests; None where the recipe has none.

    Its reward is what is paid: each part in standard deviations of the first look's answers, weighted.
    """
    if not recipe.tripwire.every:
        return None
    from toolkit.evaluate.greetings import answer_distances
    from toolkit.evaluate.unseen import Unseen
    from toolkit.greeting.form import broken, clean
    from toolkit.preference.tripwire import Tripwire

    by_prompt = {ask(r): r for r in _requests(work, "validate")[: recipe.tripwire.prompts]}
    file = work.out / "probe_scales.json"

    def reward(prompts, answers) -> list[float | None]:
        parts = {name: _on_prompts(paid[name], by_prompt)(prompts, answers) for name in weights}
        if not file.exists():
            save_json(file, {name: _spread(values) for name, values in parts.items()})
        scales, total = load_json(file), [0.0] * len(answers)
        for name, values in parts.items():
            total = [
                None if t is None or v is None else t + weights[name] * v / scales[name]
                for t, v in zip(total, values, strict=True)
            ]
        return total

    judge = Unseen.load(work.of("unseen") / "watch")
    if not judge.trusted:
        say("  the tripwire's unseen judge orders labelled greetings no better than a coin: it does not watch")
    return Tripwire(
        recipe.tripwire,
        list(by_prompt),
        reward,
        _on_prompts(judge.score, by_prompt) if judge.trusted else None,
        answer_distances,
        work.out,
        recipe.seed,
        max_tokens=recipe.grpo.max_tokens,
        writer=partial(write_with, base_of(work).gguf),
        broken=lambda prompt, answer: broken(clean(answer, by_prompt[prompt]), by_prompt[prompt]),
    )


def _spread(values: list[float | None]) -> float:
    """Standard deviation of what is known, 1 where it has none."""
    known = [v for v in values if v is not None]
    return statistics.pstdev(known) or 1.0 if known else 1.0


def evaluate(recipe: Recipe, work) -> dict:
    """answers.jsonl (base, cold start, its best of n, aligned, on unseen requests); the comparison as facts."""
    from toolkit.engines.load import load_engine
    from toolkit.evaluate.greetings import answer_rows
    from toolkit.evaluate.unseen import Unseen

    settings, base = recipe.evaluate, base_of(work)
    todo, n = _requests(work, "test"), settings.per_premise
    cold, aligned = work.of("sft") / "adapter.gguf", work.of("export") / "adapter.gguf"
    writers = {
        "base": (base.gguf, None, n),
        "sft": (base.gguf, cold, n * settings.best_of),
        recipe.align: (base.gguf, aligned, n),  # as an adapter, so that all are quantised alike
    }
    path = work.out / "written.jsonl"
    for name, (gguf, lora, count) in writers.items():
        have = {row["request_id"] for row in read_jsonl(path) if row["writer"] == name}
        if not {r.id for r in todo} <= have:
            engine = load_engine(gguf, lora=lora)
            write_answers(engine, name, todo, count, recipe, path)
            engine.close()
    rows, cast = read_jsonl(path), Cast(work)
    stage_of = {"model": "pairwise", "judge": "principles"}
    scorers = rewards_of(recipe, work, cast, tuple(name for name, stage in stage_of.items() if work.has(stage)))
    made = [writer_of(name, [row for row in rows if row["writer"] == name], n) for name in writers]
    drawn = [row for row in rows if row["writer"] == "sft"]
    if settings.best_of > 1:
        made += [best_by(name, score, drawn, todo, settings.best_of) for name, score in scorers.items()]
    facts = compare(made, todo, scorers, Unseen.load(work.of("unseen") / "judge"), recipe.seed)
    cast.close()
    write_jsonl(work.out / "answers.jsonl", answer_rows(made, todo))
    path.unlink()
    return facts


def writer_of(name: str, rows: list[dict], n: int):
    """The first `n` answers to each request as `write_answers` left them, with their share of the time."""
    from toolkit.evaluate.greetings import Writer

    answers = {row["request_id"]: row["answers"][:n] for row in rows}
    return Writer(name, answers, sum(row["seconds"] * n / len(row["answers"]) for row in rows), n * len(rows))


def best_by(name: str, score, rows: list[dict], todo: list[Request], n: int):
    """Best of `n` by one reward, out of the rows of `write_answers`; the time of scoring counts."""
    from toolkit.evaluate.greetings import Writer, best_of

    started, texts = time.monotonic(), {r.id: r.text for r in todo}
    flat = [(row["request_id"], text) for row in rows for text in row["answers"]]
    values = iter(score([texts[id] for id, _ in flat], [text for _, text in flat]))
    scores = {row["request_id"]: [next(values) for _ in row["answers"]] for row in rows}
    picked = best_of({row["request_id"]: row["answers"] for row in rows}, scores, n)
    seconds = sum(row["seconds"] for row in rows) + time.monotonic() - started
    return Writer(f"best of {n} by {name}", picked, seconds, 2 * len(flat))  # written and scored


def compare(writers, todo: list[Request], scorers: dict, judge, seed: int) -> dict:
    """The facts of a comparison with the cold start (evaluate.greetings.measure), n-grams that tell each writer from it among them."""
    from toolkit.evaluate.greetings import measure
    from toolkit.greeting.form import broken
    from toolkit.reward.telling import telling

    said = {w.name: [t for texts in w.answers.values() for t in texts] for w in writers}
    told = {name: telling(mine, said["sft"]) for name, mine in said.items() if name != "sft"}
    return measure(writers, todo, scorers, judge, "sft", seed, broken=broken, telling=told)


def write_answers(engine, name: str, todo: list[Request], n: int, recipe: Recipe, path: Path) -> None:
    """A row a request on disk as it is written: `n` cleaned answers. Fixed units, so that a resumed run writes the same."""
    from toolkit.engines.base import Sampling
    from toolkit.greeting.form import clean
    from toolkit.greeting.writing import answer_tokens, greet_prompt

    have = {row["request_id"] for row in read_jsonl(path) if row["writer"] == name}
    progress = bar(total=len(todo), desc=name, unit="request", initial=sum(r.id in have for r in todo))
    for unit in batched(todo, max(1, AT_ONCE // n)):
        if {r.id for r in unit} <= have:
            continue
        room = max(map(answer_tokens, unit))
        sampling = Sampling(recipe.evaluate.temperature, min_p=0.05, max_tokens=room, seed=recipe.seed * 1000 + 500)
        started = time.monotonic()
        texts = engine.generate([greet_prompt(r) for r in unit], n, sampling)
        took = (time.monotonic() - started) / len(unit)
        append_jsonl(
            path,
            [
                {"writer": name, "request_id": r.id, "answers": [clean(t, r) for t in mine], "seconds": round(took, 3)}
                for r, mine in zip(unit, texts, strict=True)
                if r.id not in have
            ],
        )
        progress.update(len(unit))
    progress.close()


def report(recipe: Recipe, work) -> dict:
    """report.html, self-contained."""
    from toolkit.evaluate.greeting_report import write_greeting_report

    write_greeting_report(recipe, work, work.out / "report.html")
    return {}
