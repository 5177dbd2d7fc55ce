"""One word → a judge with its passport: any engine, or the reward model of a run."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toolkit.engines.base import Engine, Sampling
from toolkit.engines.load import load_engine
from toolkit.engines.remembered import remembered, weights_of
from toolkit.errors import UserError
from toolkit.evaluate.judge import GUARD, EngineJudge, Judge, ScoreJudge
from toolkit.evaluate.passport import Material, Passport, make_passport
from toolkit.hardware import cache_dir
from toolkit.models.resolve import digest, exported_adapter, exported_gguf, resolve
from toolkit.narrative.dimensions import KEYS
from toolkit.narrative.writing import whole_sentences, write_prompt
from toolkit.people import read_people
from toolkit.records import Plot, Premise, guess_language, read_jsonl, read_plots, split_of, write_jsonl

DATA = Path(__file__).parent / "data"
PROMPTS = Path(__file__).parent / "narrative" / "prompts"
ASKED_WITH = ("judge_system", "judge_score", "duel_system", "duel", "guard_tags", "guard_quote")


@dataclass(frozen=True)
class Opened:
    """A judge ready to be asked.

    Args:
        identity: hash of the weights, the prompts and the guard: a passport holds for exactly this.
        beside: where the passport lies beside the model; None where nothing can be put (packaged, on a hub, a server).
        engine: the language model behind it; None for a reward model.
    """

    judge: Judge
    identity: str
    beside: Path | None
    engine: Engine | None = None

    @property
    def passport(self) -> Passport | None:
        """The passport of exactly this judge: beside the model, in the cache, or shipped; None when there is none."""
        return find_passport(self.identity, self.beside)


def open_judge(
    spec: str | Path,
    *,
    guard: str = GUARD,
    reason: int = 0,
    languages: tuple[str, ...] | None = ("en", "zh"),
    on: str = "auto",
    gpu_experts: str = "auto",
    n_ctx: int = 8192,
) -> Opened:
    """Open the judge that `spec` names.

    Args:
        spec: what `load_engine` takes, or the folder of a reward model (RUN/reward).
        guard, reason, languages: as EngineJudge.
        on, gpu_experts: as load_engine.

    Raises:
        UserError: nothing stands behind `spec`.
    """
    path = Path(spec)
    if (path / "reward.json").is_file():
        from toolkit.reward.model import load_reward_model

        model = load_reward_model(path, dimensions=KEYS)
        judge = ScoreJudge(f"reward model {path}", model.score, model.config.languages)
        files = [p for p in sorted(path.glob("*.safetensors"))] + [path / "reward.json"]
        return Opened(judge, _identity(digest(files), "none"), path / "passport.json")
    engine = load_engine(spec, n_ctx=n_ctx, on=on, gpu_experts=gpu_experts)
    judge = EngineJudge(remembered(engine, spec), guard, reason, languages)
    weights, beside = _weights(str(spec), engine)
    return Opened(judge, _identity(weights, guard), beside, engine)


def _weights(spec: str, engine: Engine) -> tuple[str, Path | None]:
    """What tells this engine's weights from any other's, and where a passport can lie beside them."""
    weights, gguf = weights_of(engine, spec), getattr(engine, "path", None)
    if gguf is not None:
        last = getattr(engine, "lora", None) or gguf
        return weights, None if resolve("embedded").gguf == last else last.with_suffix(".passport.json")
    if weights:
        return weights, Path(spec) / "passport.json"
    return (
        f"{engine.name} {getattr(engine, 'model', '') if isinstance(getattr(engine, 'model', ''), str) else ''}",
        None,
    )


def writer_weights(spec: str) -> str:
    """What tells a writer's weights from any other's, without opening it; its name where that is all there is."""
    path = exported_gguf(Path(spec)) or (resolve("embedded").gguf if spec == "embedded" else Path(spec))
    if path.is_file():
        return digest([path, *filter(None, [exported_adapter(Path(spec))])])
    return (
        digest([path / "config.json", *sorted(path.glob("*.safetensors"))])
        if (path / "config.json").is_file()
        else spec
    )


def _identity(weights: str, guard: str) -> str:
    prompts = "".join((PROMPTS / f"{name}.en.txt").read_text(encoding="utf-8") for name in ASKED_WITH)
    return hashlib.sha256(json.dumps([weights, guard, prompts]).encode()).hexdigest()[:16]


# ---- passports


def find_passport(identity: str, beside: Path | None) -> Passport | None:
    """The newest passport of this identity; files of another identity (other weights, prompts or guard) do not count."""
    shipped = sorted((DATA / "passports").glob("*.json"))
    found = []
    for path in [*([beside] if beside else []), passport_cache(identity), *shipped]:
        try:
            passport = Passport.load(path)
        except (OSError, ValueError, TypeError):
            continue
        if passport.identity == identity:
            found.append(passport)
    return max(found, key=lambda p: p.made) if found else None


def passport_cache(identity: str) -> Path:
    return cache_dir() / "passports" / f"{identity}.json"


def keep_passport(passport: Passport, opened: Opened) -> list[Path]:
    """Store it beside the model where that can be written, and in the cache; returns where."""
    kept = []
    for path in [*([opened.beside] if opened.beside else []), passport_cache(opened.identity)]:
        try:
            passport.save(path)
            kept.append(path)
        except OSError:
            continue  # a model on a read-only disk: the cache has it
    return kept


def issue_passport(
    opened: Opened,
    out: Path,
    people: list[Path] = (),
    pairs: int = 90,
    own: int = 12,
    planted_in: int = 3,
    seed: int = 0,
) -> Passport:
    """Measure a judge (evaluate.passport.make_passport) on the shipped material and on files of people's ratings.

    Args:
        out: what was asked grows there, so that a killed run goes on; passport.json and passport.svg are left there.
        pairs, own, planted_in: how much is asked; see Material.
    """
    rated = {}
    for path in people:
        rated[Path(path).stem] = read_people(Path(path))
    likelihood = _likelihood(opened.engine) if opened.engine is not None else None
    texts = own_texts(opened.engine, out, own, seed) if opened.engine is not None and own else []
    judge = opened.judge
    if opened.engine is not None:  # asked anew: a passport also tells whether the same question gets the same answer
        judge = EngineJudge(opened.engine, judge.guard, judge.reason, judge.languages)
    passport = make_passport(
        judge,
        opened.identity,
        shipped_material(pairs, planted_in),
        out,
        own=texts,
        likelihood=likelihood,
        people=rated,
        seed=seed,
    )
    keep_passport(passport, opened)
    return passport


def shipped_material(pairs: int, planted_in: int, again: int = 10) -> Material:
    premises = {p["id"]: p["text"] for p in read_jsonl(DATA / "premises.jsonl")}
    plots = [
        Plot(**{**vars(p), "premise": premises.get(p.premise_id, "")}) for p in read_plots(DATA / "plots.jsonl").rows
    ]
    rows = (read_jsonl(DATA / f"{name}.jsonl") for name in ("same_story", "planted", "planted_controls"))
    return Material(plots, *rows, pairs=pairs, planted_in=planted_in, again=again)


def own_texts(engine: Engine, out: Path, count: int, seed: int) -> list[tuple[str, Plot, Plot]]:
    """(premise, a plot by this engine, the house's well-made plot), for the test of self-preference; kept in own.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    references = [p for p in shipped_material(0, 0).plots if guess_language(p.text) == "en" and p.premise]
    references = sorted((p for p in references if split_of(p.premise_id) == "test"), key=lambda p: p.id)[:count]
    path = out / "own.jsonl"
    if not path.exists():
        prompts = [write_prompt(Premise(p.premise_id, p.premise)) for p in references]
        try:
            answers = engine.generate(
                prompts, 1, Sampling(temperature=0.8, repeat_penalty=1.05, max_tokens=220, seed=seed)
            )
        except UserError:
            return []  # a model that rates but cannot write has no text of its own
        write_jsonl(
            path,
            [
                Plot(f"own-{p.premise_id}", whole_sentences(texts[0]), p.premise_id, p.premise)
                for p, texts in zip(references, answers, strict=True)
            ],
        )
    mine = {p.premise_id: p for p in read_jsonl(path, Plot)}
    return [(p.premise, mine[p.premise_id], p) for p in references if p.premise_id in mine]


def _likelihood(engine: Engine) -> Callable[[str], float] | None:
    """Mean log-probability (nats a token) of a text; None where the engine cannot tell."""
    if not hasattr(engine, "logps"):
        return None
    return lambda text: float(engine.logps(engine.tokenize(text, special=False)).mean())


def same_family(judge: str, family: str, writers: dict[str, str]) -> list[str]:
    """A warning for the writers (name → family) whose weights are of the judge's family: models prefer their own kind."""
    kin = [name for name, other in writers.items() if family and other == family]
    if not kin:
        return []
    return [
        f"the judge {judge} and {' and '.join(kin)} are of one family ({family}): a judge tends to prefer its own kind's "
        "texts; a judge of another family is the safer one"
    ]
