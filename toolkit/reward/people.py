"""A reward model fine-tuned on people's ratings, and how well it agrees with people on groups it has not seen.

The head starts as ridge regression on frozen states; LoRA on the last layers then learns the level and, among texts
of one group, the order. Cross-validation holds out whole groups: texts of one content plan are alike.
"""

import hashlib
import json
import math
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from toolkit.errors import UserError
from toolkit.models.load import fingerprint, load_model, load_tokenizer
from toolkit.models.resolve import EMBEDDED, resolve
from toolkit.narrative.dimensions import HALF, MIDDLE
from toolkit.progress import bar, say
from toolkit.recipe import LoraSettings, RewardSettings
from toolkit.records import write_jsonl
from toolkit.reward.data import Group
from toolkit.reward.model import AspectHead, RewardConfig, new_reward_model, pad
from toolkit.reward.rated import Rated, from_house, read_rated
from toolkit.reward.train import train_reward
from toolkit.stats import bootstrap, spearman, spearman_interval

TOGETHER = 6  # least texts compared in one step; smaller groups are joined
# Fixed before looking at LoRA's figures, not searched: a third of the layers is where ridge on frozen states agrees
# with people as well as anywhere (docs/results.md), and so few texts bear few weights and few passes.
SETTINGS = RewardSettings(
    lora=LoraSettings(r=8, alpha=16, last_layers=2),
    depth=1 / 3,
    epochs=3.0,
    batch=1,
    gradient_checkpointing=False,
    save_every=50,
)


def configured(rated: Rated, base: str, settings: RewardSettings) -> RewardConfig:
    """The reward model that learns from `rated`: its outputs are named by the file's aspects."""
    model = resolve(base)
    return RewardConfig(
        str(model.weights) if model.id != EMBEDDED else EMBEDDED,
        fingerprint(model),
        settings.depth,
        dimensions=rated.dimensions,
        scale=rated.scale,
    )


def fold_of(groups: list[str], folds: int, seed: int) -> np.ndarray:
    """Fold of every text, (N): whole groups, drawn by `seed`. Raises UserError when there are fewer groups than folds."""
    names = sorted(set(groups))
    if not 2 <= folds <= len(names):
        raise UserError(f"{folds} folds of {len(names)} groups", f"choose 2 to {len(names)} folds")
    order = np.random.default_rng(seed).permutation(len(names))
    fold = {names[g]: i % folds for i, g in enumerate(order)}
    return np.array([fold[g] for g in groups])


def train_on(rated: Rated, picked: np.ndarray, config: RewardConfig, settings: RewardSettings, work: Path, seed: int):
    """A reward model trained on the texts `picked`; it goes on from checkpoints in `work`."""
    torch.manual_seed(seed)
    model = new_reward_model(config, settings.lora)
    groups: list[Group] = []
    for i in sorted(picked, key=lambda i: rated.groups[i]):
        last = groups[-1] if groups else None
        if last is None or (last.id != rated.groups[i] and len(last.texts) >= TOGETHER):
            groups.append(last := Group(rated.groups[i]))
        last.id = rated.groups[i]
        last.add(rated.texts[i], rated.targets[i].tolist(), 1.0, "people")
    work.mkdir(parents=True, exist_ok=True)
    train_reward(model, groups, settings, work, seed)
    return model


def cross_validate(
    rated: Rated, config: RewardConfig, settings: RewardSettings, work: Path, folds: int, seed: int
) -> np.ndarray:
    """Ratings of every text by a model that saw none of its group, (N, D) on 1 … 10. Folds on disk are not redone."""
    fold, out, begun = fold_of(rated.groups, folds, seed), np.zeros_like(rated.targets), []
    for k in range(folds):
        file, test = work / f"fold-{seed}-{k}.json", np.flatnonzero(fold == k)
        if not file.is_file():
            left = f", about {np.mean(begun) * (folds - k) / 60:.0f} min left" if begun else ""
            say(f"  fold {k + 1} of {folds}{left}")
            start = time.monotonic()
            model = train_on(rated, np.flatnonzero(fold != k), config, settings, work / f"fold-{seed}-{k}", seed)
            _save(file, model.score([rated.texts[i] for i in test]).tolist())
            shutil.rmtree(work / f"fold-{seed}-{k}")
            begun.append(time.monotonic() - start)
        out[test] = json.loads(file.read_text())
    return out


def ridge_start(rated: Rated, features: np.ndarray, ridge: float, fold: np.ndarray) -> np.ndarray:
    """Cross-validated ratings of the head as it starts, before any fine-tuning, (N, D): ridge on `features` (N, H)."""
    out, targets = np.zeros_like(rated.targets), (rated.targets - MIDDLE) / HALF
    for k in sorted(set(fold)):
        head = AspectHead(features.shape[1], len(rated.dimensions))
        head.fit_ridge(features[fold != k], targets[fold != k], np.ones((fold != k).sum()), ridge)
        with torch.no_grad():
            out[fold == k] = MIDDLE + HALF * torch.tanh(head(torch.from_numpy(features[fold == k]))).numpy()
    return out


@torch.inference_mode()
def likelihood(base: str, texts: list[str], batch: int = 4) -> np.ndarray:
    """Mean log-probability of a token of each text under the base model, (N), nats."""
    model = resolve(base)
    net, tokenizer = load_model(model).eval(), load_tokenizer(model)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    rows = [[start, *row] for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    order, out = sorted(range(len(rows)), key=lambda i: len(rows[i])), np.zeros(len(rows))
    for at in bar(range(0, len(order), batch), desc="likelihood", unit="batch"):
        picked = order[at : at + batch]
        inputs = pad([rows[i] for i in picked], tokenizer.pad_token_id, net.device)
        logps = net(**inputs).logits[:, :-1].float().log_softmax(-1)
        logps = logps.gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
        mask = inputs["attention_mask"][:, 1:]
        out[picked] = ((logps * mask).sum(1) / mask.sum(1)).cpu().numpy()
    return out


def one_against_the_rest(table: np.ndarray) -> float:
    """Mean Spearman of one rater with the mean of the others, over which one it is. table (N, R)."""
    return float(np.nanmean([spearman(table[:, i], np.delete(table, i, 1).mean(1)) for i in range(table.shape[1])]))


def within(mine: np.ndarray, people: np.ndarray, systems: list[str], fold: np.ndarray) -> list[float] | None:
    """[mean, low, high] of Spearman inside each (generator, fold), 95 % bootstrap over those; None with one generator.

    Inside a fold, because folds differ by their training mean, which is low where the held-out texts are good: over
    folds together that alone makes a correlation inside a generator negative.
    """
    systems = np.array(systems)
    if len(set(systems)) < 2:
        return None
    cells = [(systems == s) & (fold == k) for s in sorted(set(systems)) for k in sorted(set(fold))]
    rhos = [rho for c in cells if not math.isnan(rho := spearman(mine[c], people[c]))]
    return list(bootstrap(rhos)) if rhos else None


def figures(rated: Rated, scores: dict[str, np.ndarray], fold: np.ndarray) -> dict:
    """How well each column of `scores` (name → (N, D)) agrees with people, per aspect.

    Returns:
        aspect → {"spearman": {name: [rho, low, high]}, "within": {name: [rho, low, high] or None},
        "gain": [rho of tuned − rho of ridge, low, high], "one rater", "one rater within": rho or None}.
        95 % bootstrap over texts; `within` as the function of that name.
    """
    found, inside = {}, np.array(rated.systems)
    for d, aspect in enumerate(rated.dimensions):
        people, table = rated.targets[:, d], rated.raters.get(aspect)
        both = np.stack([scores["tuned"][:, d], scores["ridge"][:, d], people], axis=1)
        found[aspect] = {
            "spearman": {name: list(spearman_interval(s[:, d], people)) for name, s in scores.items()},
            "within": {name: within(s[:, d], people, rated.systems, fold) for name, s in scores.items()},
            "gain": list(bootstrap(both, lambda r: spearman(r[:, 0], r[:, 2]) - spearman(r[:, 1], r[:, 2]))),
            "one rater": None if table is None else one_against_the_rest(table),
            "one rater within": None
            if table is None or len(set(inside)) < 2
            else float(np.nanmean([one_against_the_rest(table[inside == s]) for s in sorted(set(inside))])),
        }
    return found


def train_on_people(
    ratings: Path, out: Path, base: str = EMBEDDED, folds: int = 5, seed: int = 1, settings: RewardSettings = SETTINGS
) -> dict:
    """Cross-validate, then train on all texts. Leaves in `out` a reward model (`load_reward_model(out)`), people.json
    with the figures returned, and predictions.jsonl; what a kill cut short is taken up again.

    Returns:
        {"texts", "groups", "dimensions", "scale", "folds", "seed", "aspects": see `figures`, "settings"}.

    Raises UserError as `read_rated` and `fold_of` do, and for a text above the reward model's max_tokens.
    """
    ratings, out = Path(ratings), Path(out)
    rated = read_rated(ratings)
    config = configured(rated, base, settings)
    asked = {"settings": asdict(settings), "config": asdict(config), "folds": folds, "seed": seed}
    digest = hashlib.sha256(json.dumps(asked).encode() + ratings.read_bytes()).hexdigest()[:16]
    done = out / "people.json"
    if done.is_file() and (known := json.loads(done.read_text(encoding="utf-8"))).get("digest") == digest:
        return known
    work, fold = out / f"work-{digest}", fold_of(rated.groups, folds, seed)
    work.mkdir(parents=True, exist_ok=True)
    scores = {"tuned": cross_validate(rated, config, settings, work, folds, seed)}
    scores |= baselines(rated, config, settings, work, fold)
    tuned = train_on(rated, np.arange(len(rated.texts)), config, settings, work / "all", seed)
    tuned.save(out)
    facts = {
        "texts": len(rated.texts),
        "groups": len(set(rated.groups)),
        "dimensions": list(rated.dimensions),
        "scale": list(rated.scale),
        "aspects": figures(rated, scores, fold),
        **asked,
        "digest": digest,
    }
    write_jsonl(out / "predictions.jsonl", _predictions(rated, scores, fold))
    _save(done, facts)
    shutil.rmtree(work)
    return json.loads(done.read_text(encoding="utf-8"))


def baselines(rated: Rated, config: RewardConfig, settings: RewardSettings, work: Path, fold: np.ndarray) -> dict:
    """What is reached without fine-tuning: name → (N, D). The base model's part is kept in `work`."""
    file, width = work / "frozen.npz", len(rated.dimensions)
    if not file.is_file():
        frozen = new_reward_model(config, settings.lora).features(rated.texts, progress="frozen")
        partial = work / "partial.npz"
        np.savez(partial, features=frozen, likelihood=likelihood(config.base, rated.texts))
        os.replace(partial, file)
    with np.load(file) as kept:
        features, likely = kept["features"], kept["likelihood"]
    lengths = np.array([len(t) for t in rated.texts], dtype=float)
    return {
        "ridge": ridge_start(rated, features, settings.ridge, fold),
        "likelihood": np.repeat(likely[:, None], width, axis=1),
        "length": np.repeat(lengths[:, None], width, axis=1),
    }


def _predictions(rated: Rated, scores: dict[str, np.ndarray], fold: np.ndarray) -> list[dict]:
    named = lambda row: {a: round(float(v), 3) for a, v in zip(rated.dimensions, row, strict=True)}  # noqa: E731
    mine, people = from_house(scores["tuned"], rated.scale), from_house(rated.targets, rated.scale)
    return [
        {"row": i + 1, "fold": int(fold[i]), "held_out": named(mine[i]), "people": named(people[i])}
        for i in range(len(rated.texts))
    ]


def _save(path: Path, value) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1), encoding="utf-8")
    os.replace(partial, path)
