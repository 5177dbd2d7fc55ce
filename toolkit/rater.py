"""A run's reward model as a GGUF judge: scored texts → rater → merged, quantised, tried on texts it has not seen.

    run/reward ──scores──▶ train-side texts ──▶ LoRA on the run's base ──▶ NAME.gguf, and NAME.json with what it reached

`fablesmith judge --model NAME.gguf`, or any llama.cpp program that puts the judge's questions, then rates without torch.
"""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from toolkit.errors import ProofError, UserError
from toolkit.hardware import PeakMemory, package_version, require_disk, require_writable
from toolkit.narrative.dimensions import KEYS
from toolkit.progress import bar, say
from toolkit.recipe import QUANTISATIONS, ModelSettings
from toolkit.records import AspectRatings, Plot, append_jsonl, read_jsonl, split_of
from toolkit.stages import base_model

MOST_GROUPS = 24  # held-out plots (each with its damage) and premises that the rater is tried on at most
# Largest mean |difference| (1 … 10) of the GGUF's ratings from the merged model's in transformers: a wrong token, template
# or tensor costs points. Measured on the embedded model, once while building: F16 0.02, Q8_0 0.32
TOLERANCE = 0.5


def export_judge(run: str | Path, out: str | Path, quantisation: str = "Q8_0", settings=None) -> dict:
    """Make `out` (NAME.gguf): a judge that gives the ratings of the run's reward model. NAME.json holds the facts returned.

    What was made before a kill stays in NAME.work, is reused by the next call, and is removed at the end.

    Args:
        run: a folder whose reward stage has finished.
        quantisation: of recipe.QUANTISATIONS.
        settings: reward.generative.RaterSettings, or None for its defaults.

    Returns:
        `follows`: whether the ratings follow the reward model's on held-out plots (Spearman of the mean of five, lower end of
        its 95 % interval above 0); `held_out`: agreement and pair accuracy of rater and base; `training`; `proof`.

    Raises:
        UserError: no reward model or base in `run`, an unknown quantisation, no space, or nothing to learn from.
        ProofError: the GGUF does not rate as the trained model does.
    """
    from toolkit.reward.generative import RaterSettings

    run, out, settings = Path(run), Path(out), settings or RaterSettings()
    recipe, base = _check(run, out, quantisation)
    work = out.with_suffix(".work")
    require_writable(out.parent)
    require_disk(out.parent, base.gguf.stat().st_size / 2**20 * 6, "the export")
    texts = _texts(run, recipe, base, settings)
    if not texts[0]:
        raise UserError(f"{run} holds no text on the training side", "give it more plots or premises")
    reward = hashlib.sha256(b"".join((run / "reward" / n).read_bytes() for n in REWARD_FILES)).hexdigest()[:20]
    asked = {
        "reward": reward,
        "settings": json.loads(json.dumps(asdict(settings))),
        "quantisation": quantisation,
        "base": base.id,
    }
    more = {"seed": recipe["seed"], "version": package_version("fablesmith"), "texts": _hash(texts)}
    key = json.dumps({**asked, **more, "quantisation": ""}, sort_keys=True)  # another is made of the same training
    if not (work / "key").is_file() or (work / "key").read_text() != key:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        (work / "key").write_text(key)
    with PeakMemory() as memory:
        facts = _make(run, work, recipe, base, quantisation, settings, texts)
    facts = {"gguf": out.name, "run": str(run), **asked, **facts, "peak_gb": round(memory.gb, 2)}
    facts["megabytes"] = round((work / f"{quantisation}.gguf").stat().st_size / 2**20)
    _save(out.with_suffix(".json"), facts)
    os.replace(work / f"{quantisation}.gguf", out)
    shutil.rmtree(work)
    return facts


def _hash(texts) -> str:
    learn, groups, drafts = texts
    return hashlib.sha256(repr((learn, [g.texts for g in groups], drafts)).encode()).hexdigest()[:20]


REWARD_FILES = ("reward.json", "head.safetensors", "adapter_model.safetensors")


def _check(run: Path, out: Path, quantisation: str):
    """(the run's recipe, its base model), or UserError."""
    if quantisation not in QUANTISATIONS:
        raise UserError(f"{quantisation!r} is no quantisation of ours", f"one of {', '.join(QUANTISATIONS)}")
    if out.suffix != ".gguf":
        raise UserError(f"{out} does not end in .gguf", "name the file to be written, for example rater.gguf")
    for name in ("recipe.json", "model/model.json", *(f"reward/{n}" for n in REWARD_FILES)):
        if not (run / name).is_file():
            raise UserError(f"{run} has no {name}", "name the folder of a run whose reward stage has finished")
    base = base_model(run / "model")
    if not base.gguf.is_file():
        raise UserError(f"the base model's GGUF is gone: {base.gguf}", "run the recipe again")
    return json.loads((run / "recipe.json").read_text()), base


def _make(run: Path, work: Path, recipe: dict, base, quantisation: str, settings, texts) -> dict:
    """The steps in order, each skipped where its result stands in `work`."""
    from toolkit.evaluate.judge import DIGITS, rating_questions
    from toolkit.reward.generative import train_rater

    learn, groups, drafts = texts
    held_out = [t for g in groups for t in g.texts] + [d.text for d in drafts]

    def score() -> list:
        from toolkit.reward.model import load_reward_model

        return load_reward_model(run / "reward").score(learn + held_out, progress="reward").round(4).tolist()

    scores = np.array(_once(work / "scores.json", score))
    weights = ModelSettings(dtype=recipe["model"]["dtype"], four_bit=recipe["model"]["four_bit"])
    teach = (base, learn, scores[: len(learn)], rating_questions, DIGITS, settings, weights, work, recipe["seed"])
    training = _once(work / "training.json", lambda: train_rater(*teach))
    gguf = work / f"{quantisation}.gguf"
    if not gguf.is_file():
        _convert(base, work, gguf, quantisation)
    ratings = {"rater": _rate(gguf, held_out, work / f"rater-{quantisation}.jsonl")}
    proof = _prove(work / "merged", held_out[:6], ratings["rater"][:6])
    ratings["base"] = _rate(base.gguf, held_out, work / "base.jsonl")
    found = _compare(scores[len(learn) :], ratings, groups, drafts)
    follows = bool(groups) and found["plots"]["rater"]["mean"]["spearman"][1] > 0
    return {"follows": follows, "training": training, "proof": proof, "held_out": found}


def _texts(run: Path, recipe: dict, base, settings):
    """(texts to learn from, held-out plots and their damage in groups, held-out drafts), split by premise."""
    from toolkit.models.load import load_tokenizer
    from toolkit.reward.data import anchored_groups, split_groups
    from toolkit.reward.train import drop_long

    made = read_jsonl(run / "premises" / "plots.jsonl", Plot)
    groups = anchored_groups(made, list(recipe["reward"]["strengths"]), recipe["seed"])
    train, test = split_groups(groups, {p.id: p.premise_id or p.id for p in made})
    reader = SimpleNamespace(tokenizer=load_tokenizer(base))
    drop_long(train, reader, settings.max_tokens)
    drop_long(test, reader, settings.max_tokens)
    side = lambda plots, name: [p for p in plots if p.text.strip() and split_of(p.premise_id or p.id) == name]  # noqa: E731
    own = side(read_jsonl(run / "candidates" / "candidates.jsonl", Plot), "train")
    learn = list(dict.fromkeys([t for g in train for t in g.texts] + [p.text for p in own]))
    if len(learn) > settings.max_texts:
        learn = random.Random(recipe["seed"]).sample(learn, settings.max_texts)
    drafts = side(read_jsonl(run / "evaluate" / "plots.jsonl", Plot), "test")
    known = sorted({d.premise_id for d in drafts})[:MOST_GROUPS]
    return learn, test[:MOST_GROUPS], [d for d in drafts if d.premise_id in known]


def _convert(base, work: Path, gguf: Path, quantisation: str) -> None:
    from toolkit.export.gguf import convert
    from toolkit.export.merge import merge_adapter
    from toolkit.models.gguf_file import quantise

    steps = bar(total=3, desc="export", unit="step")
    merge_adapter(base, work / "adapter", work / "merged")
    steps.update()
    convert(work / "merged", work / "f16.gguf")
    steps.update()
    quantise(work / "f16.gguf", gguf, quantisation)
    (work / "f16.gguf").unlink(missing_ok=True)
    steps.update()
    steps.close()


def _rate(gguf: Path, texts: list[str], path: Path) -> np.ndarray:
    """Ratings (N, 5) by the judge's own questions through llama.cpp; each is on disk as soon as it is made."""
    from toolkit.engines.llama import LlamaEngine
    from toolkit.evaluate.judge import judge_plot

    done = len(read_jsonl(path, AspectRatings))
    engine = LlamaEngine(gguf, n_ctx=8192)
    progress = bar(total=len(texts), desc=path.stem.split("-")[0], unit="text", initial=done)
    for i in range(done, len(texts)):
        append_jsonl(path, [judge_plot(engine, Plot(str(i), texts[i]), reason=0)])
        progress.update()
    progress.close()
    engine.close()
    return np.array([[r.scores[k] for k in KEYS] for r in read_jsonl(path, AspectRatings)]).reshape(-1, len(KEYS))


def _prove(merged: Path, texts: list[str], rated: np.ndarray) -> dict:
    """The GGUF rates as the trained model does in transformers. Raises ProofError."""
    from toolkit.evaluate.judge import DIGITS, rating_questions
    from toolkit.models.load import load_model, load_tokenizer
    from toolkit.models.resolve import resolve
    from toolkit.reward.generative import ask

    if not texts:
        say("  no held-out text: the GGUF is not compared with the trained model")
        return {"texts": 0}
    model = resolve(str(merged))
    trained, share = ask(load_model(model, dtype="float32"), load_tokenizer(model), texts, rating_questions, DIGITS)
    difference = float(np.abs(trained - rated).mean())
    if not difference <= TOLERANCE:  # NaN fails too
        raise ProofError(
            f"the GGUF's ratings differ from the trained model's by {difference:.2f} on average; at most {TOLERANCE} is "
            "allowed: quantise less (F16)"
        )
    return {"texts": len(texts), "mean_difference": round(difference, 4), "probability_of_digits": round(share, 4)}


def _compare(scores: np.ndarray, ratings: dict[str, np.ndarray], groups: list, drafts: list[Plot]) -> dict:
    """How near each judge is to the reward model on held-out plots (with damage) and drafts, and how it orders damage."""
    from toolkit.reward.train import measure

    of_plots = [i for i, g in enumerate(groups) for _ in g.texts]
    n = len(of_plots)
    found: dict = {"plots": {"texts": n}, "drafts": {"texts": len(drafts)}}
    for name, rated in ratings.items():
        if n:
            found["plots"][name] = agreement(rated[:n], scores[:n], of_plots)
        if drafts:
            found["drafts"][name] = agreement(rated[n:], scores[n:], [d.premise_id for d in drafts])
    pairs = {"reward model": scores, **ratings}
    found["pairs"] = {name: measure(rows[:n], groups) for name, rows in pairs.items()} if n else {}
    return found


def agreement(mine: np.ndarray, theirs: np.ndarray, groups: list) -> dict:
    """Ratings (N, 5) beside the reward model's: dimension, or mean → {"spearman": [rho, low, high], "mean_difference"}.

    The 95 % interval draws whole groups (N labels): texts of one plot, or one premise, stand together.
    """
    from toolkit.stats import cluster_bootstrap, spearman

    found = {}
    for d, key in enumerate((*KEYS, "mean")):
        both = np.stack([(x.mean(1) if key == "mean" else x[:, d]) for x in (mine, theirs)], axis=1)
        parts = [both[[g == name for g in groups]] for name in dict.fromkeys(groups)]
        rho = cluster_bootstrap(parts, lambda rows: spearman(rows[:, 0], rows[:, 1]))
        difference = float(np.abs(both[:, 0] - both[:, 1]).mean())
        found[key] = {"spearman": [round(float(x), 4) for x in rho], "mean_difference": round(difference, 3)}
    return found


def _once(path: Path, make: Callable):
    """What stands in `path` (JSON), or else what `make` gives, kept there."""
    if not path.is_file():
        _save(path, make())
    return json.loads(path.read_text(encoding="utf-8"))


def _save(path: Path, data) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(partial, path)
