"""Train the reward model, and measure it on premises it has not seen."""

from pathlib import Path

import numpy as np
import torch

from toolkit import together
from toolkit.models.load import checkpoint
from toolkit.models.training import Agree, FirstGradients, Log, last_checkpoint, passes, trainer_settings
from toolkit.narrative.dimensions import HALF, KEYS, MIDDLE
from toolkit.recipe import RewardSettings
from toolkit.reward.data import Group
from toolkit.reward.model import RewardModel
from toolkit.stats import bootstrap, cluster_bootstrap, spearman


def drop_long(groups: list[Group], model: RewardModel, max_tokens: int) -> int:
    """Take texts above `max_tokens` out of the groups, in place; returns how many (reported, never cut silently)."""
    dropped = 0
    for g in groups:
        rows = model.tokenizer(g.texts, add_special_tokens=False)["input_ids"]
        keep = [i for i, row in enumerate(rows) if len(row) <= max_tokens]
        dropped += len(rows) - len(keep)
        for name in ("texts", "targets", "weights", "origins"):
            setattr(g, name, [getattr(g, name)[i] for i in keep])
    groups[:] = [g for g in groups if len(g.texts) > 1]
    return dropped


def train_reward(
    model: RewardModel, groups: list[Group], settings: RewardSettings, out: Path, seed: int = 1, features=None
) -> None:
    """Linear probe, then LoRA and head together. Writes checkpoints and metrics into `out`, from which it goes on.

    Args:
        model: from `new_reward_model`; changed in place.
        groups: one training example is one group, `settings.batch` of them a step.
        features: (N, H), `model.features` of the texts of the groups whose level counts, where they are known already.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments

    module = model.module
    inner = module.base_model.model
    inner.rank_weight, inner.rank_gap = settings.rank_weight, settings.rank_gap
    resume = last_checkpoint(out)
    if resume is None and not together.rank():  # others get the first one's weights as they begin
        level = [g for g in groups if g.absolute]
        texts = [t for g in level for t in g.texts]
        targets = (np.array([t for g in level for t in g.targets]) - MIDDLE) / HALF
        weights = np.array([w for g in level for w in g.weights])
        if features is None:
            features = model.features(texts, progress="linear probe")
        inner.head.modules_to_save["default"].fit_ridge(features, targets, weights, settings.ridge)
    if settings.gradient_checkpointing:
        checkpoint(inner.backbone)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # low-precision optimiser states lose small steps

    packed = lambda texts: [np.array(ids, np.int32) for ids in model.encode(texts)]  # noqa: E731  # lists take nine times as much
    rows = [
        {"ids": packed(g.texts), "targets": g.targets, "weights": g.weights, "group": i, "absolute": g.absolute}
        for i, g in enumerate(groups)
    ]

    def collate(batch: list[dict]) -> dict[str, torch.Tensor]:
        return {
            **model.inputs([ids.tolist() for row in batch for ids in row["ids"]]),
            "targets": torch.tensor([t for row in batch for t in row["targets"]]),
            "weights": torch.tensor([w for row in batch for w in row["weights"]]),
            "groups": torch.tensor([row["group"] for row in batch for _ in row["ids"]]),
            "absolute": torch.tensor([row["absolute"] for row in batch for _ in row["ids"]]),
        }

    args = trainer_settings(out, seed=seed, **passes(settings))
    trainer = Trainer(
        model=module,
        args=TrainingArguments(**args),
        train_dataset=rows,
        data_collator=collate,
        callbacks=[Log(out, "reward"), FirstGradients(), Agree()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    if settings.gradient_checkpointing:
        inner.backbone.gradient_checkpointing_disable()
    module.eval()


def measure(scores: np.ndarray, groups: list[Group], gap: float = 0.5) -> dict:
    """How well `scores` order held-out texts, per dimension.

    Args:
        scores: (ΣG, 5), the texts of `groups` one after the other.

    Returns:
        dimension → {"spearman", "pairs", "accuracy": [value, low, high]}. Pairs are of one group, targets at least
        `gap` apart; a tie counts half; the 95 % interval draws whole groups.
    """
    result = {}
    starts = np.cumsum([0] + [len(g.texts) for g in groups])
    for d, key in enumerate(KEYS):
        right, rhos = [], []
        for g, start in zip(groups, starts, strict=False):
            target = np.array([t[d] for t in g.targets])
            mine = scores[start : start + len(g.texts), d]
            known = ~np.isnan(target)
            rhos.append(spearman(mine[known], target[known]))
            better = (target[:, None] - target[None] >= gap) & known[:, None] & known[None]
            gaps = (mine[:, None] - mine[None])[better]
            right.append(np.where(gaps > 0, 1.0, np.where(gaps < 0, 0.0, 0.5)))
        right = [r for r in right if len(r)]
        rhos = [r for r in rhos if not np.isnan(r)]
        result[key] = {
            "spearman": list(bootstrap(rhos)) if rhos else None,
            "pairs": int(sum(map(len, right))),
            "accuracy": list(cluster_bootstrap(right)) if right else None,
        }
    return result


def baselines(model: RewardModel, held_out: list[Group], seed: int) -> dict:
    """What an untrained model and length alone reach on the held-out texts: name → `measure`'s figures.

    Untrained: the same backbone with a head of random weights.
    """
    if not held_out:
        return {}
    features = model.features([t for g in held_out for t in g.texts], progress="baselines")
    z = (features - features.mean(0)) / (features.std(0) + 1e-6)
    random_head = np.random.default_rng(seed).normal(size=(z.shape[1], len(KEYS)))
    return {"untrained": measure(z @ random_head, held_out), "length only": measure(length_scores(held_out), held_out)}


def length_scores(groups: list[Group]) -> np.ndarray:
    """The length-only baseline: every dimension scored by the number of characters, (ΣG, 5)."""
    lengths = np.array([len(t) for g in groups for t in g.texts], dtype=float)
    return np.repeat(lengths[:, None], len(KEYS), axis=1)
