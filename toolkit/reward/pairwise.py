"""Bradley–Terry reward model: (prompt, answer) → one number, learnt from pairs through TRL's RewardTrainer with (Q)LoRA.

P(chosen above rejected) = σ(r(chosen) − r(rejected))  (Bradley & Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, eq. 1).
transformers' sequence-classification head reads the last token that is not padding; where a template ends with the end token
and that token is also the padding, it reads the one before, in training and in use alike.
"""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from toolkit import together
from toolkit.engines.base import defused
from toolkit.errors import UserError
from toolkit.models.load import checkpoint, fingerprint, load_model, load_tokenizer, lora_config, prepare_four_bit, wear
from toolkit.models.resolve import Model, resolve
from toolkit.models.training import Agree, FirstGradients, Log, in_float32, last_checkpoint, passes, trainer_settings
from toolkit.progress import bar
from toolkit.recipe import ModelSettings, PairwiseSettings
from toolkit.records import PreferencePair
from toolkit.reward.model import pad
from toolkit.stats import rounded, share_interval

CARD = "pairwise.json"
SCALES = (
    0.05,
    20.0,
)  # of the calibration: where held-out pairs are all right (or all wrong) the best one is infinite (or 0)
FOLDS = 5


@dataclass(frozen=True)
class PairwiseConfig:
    """What must be known to load the reward model again. `temperature` divides its raw output: what comes out are log-odds."""

    base: str
    fingerprint: str
    dtype: str = "auto"
    four_bit: bool = False
    temperature: float = 1.0


class PairwiseModel:
    """A trained reward model for use: `score(prompts, answers)`."""

    def __init__(self, module, tokenizer, config: PairwiseConfig):
        self.module, self.tokenizer, self.config = module.eval(), tokenizer, config

    def encode(self, prompts: list[str], answers: list[str]) -> list[list[int]]:
        """Token ids of each conversation of one turn, as the chat template writes it."""
        return [conversation(self.tokenizer, p, a) for p, a in zip(prompts, answers, strict=True)]

    @torch.inference_mode()
    def score(self, prompts: list[str], answers: list[str], progress: str = "", batch: int = 16) -> np.ndarray:
        """Rewards (N,) in calibrated logits: the difference of two answers to one prompt is the log-odds of the first being better.

        Batched by length; the order of the texts changes nothing beyond rounding. Nothing is cut.
        """
        rows = self.encode(prompts, answers)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        out = np.zeros(len(rows))
        device = next(self.module.parameters()).device
        was_training = self.module.training
        self.module.eval()
        starts = range(0, len(order), batch)
        for at in bar(starts, desc=progress, unit="batch") if progress else starts:
            picked = order[at : at + batch]
            inputs = pad([rows[i] for i in picked], self.tokenizer.pad_token_id, device)
            out[picked] = self.module(**inputs, use_cache=False).logits[:, 0].float().cpu().numpy()
        self.module.train(was_training)
        return out / self.config.temperature


def conversation(tokenizer, prompt: str, answer: str) -> list[int]:
    """Token ids of one question and its answer."""
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return tokenizer.apply_chat_template(defused(messages, tokenizer.all_special_tokens), return_dict=False)


def train_pairwise(
    base: Model,
    pairs: list[PreferencePair],
    held_out: list[PreferencePair],
    settings: PairwiseSettings,
    weights: ModelSettings,
    out: Path,
    seed: int = 1,
) -> dict:
    """Train on `pairs`, calibrate and measure on `held_out`; adapter with its head and pairwise.json land in `out`.

    Goes on from the last checkpoint in `out`. Pairs above `settings.max_tokens` are left out and counted, held-out ones too.

    Returns:
        Facts (of several processes only the first has any): pairs, too_long, steps, loss [first, last]; held_out and untrained: `measure`'s figures after and before
        training; calibration: `calibrate`'s. Without held-out pairs these are None and the temperature is 1.

    Raises:
        UserError: no pair is short enough.
    """
    from datasets import Dataset
    from transformers import PrinterCallback, set_seed
    from trl import RewardConfig, RewardTrainer

    tokenizer = load_tokenizer(base)
    rows, short = _tokens(tokenizer, pairs, settings.max_tokens)
    rows = [r for r, keep in zip(rows, short, strict=True) if keep]
    tested = [p for p, keep in zip(held_out, _tokens(tokenizer, held_out, settings.max_tokens)[1], strict=True) if keep]
    if not rows:
        raise UserError(
            f"none of the {len(pairs)} pairs is within pairwise.max_tokens = {settings.max_tokens}",
            "raise pairwise.max_tokens, or give more pairs",
        )
    set_seed(seed)  # the head's first weights
    model = load_model(
        base, dtype=weights.dtype, four_bit=weights.four_bit, scoring=True, least_4bit=weights.least_4bit
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    _float_head(model)
    if weights.four_bit:
        prepare_four_bit(model)
    if settings.gradient_checkpointing:
        checkpoint(model)
    args = trainer_settings(out, seed=seed, **passes(settings))
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**args, max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora_config(model, settings.lora, task="SEQ_CLS"),
        callbacks=[Log(out, "reward"), FirstGradients(), Agree()],
    )
    trainer.remove_callback(PrinterCallback)
    in_float32(trainer.model)
    config = PairwiseConfig(base.id, fingerprint(base), weights.dtype, weights.four_bit)
    reward = PairwiseModel(trainer.model, tokenizer, config)
    untrained = None if together.rank() else _scores(reward, tested, "untrained")
    trainer.model.train()
    trainer.train(resume_from_checkpoint=last_checkpoint(out))
    if together.rank():  # one of several that train together: the first measures and writes
        return {}
    scores = _scores(reward, tested, "held out")
    calibration = calibrate(*scores, tested) if tested else None
    trainer.model.save_pretrained(str(out))
    card = {**asdict(config), "temperature": calibration["temperature"] if calibration else 1.0}
    (out / CARD).write_text(json.dumps(card, indent=1))
    history = [h for h in trainer.state.log_history if "loss" in h]
    return {
        "pairs": len(rows),
        "too_long": len(pairs) - len(rows),
        "steps": trainer.state.global_step,
        "loss": [round(float(history[at]["loss"]), 4) for at in (0, -1)],
        "held_out_too_long": len(held_out) - len(tested),
        "held_out": measure(*scores, tested) if tested else None,
        "untrained": measure(*untrained, tested) if tested else None,
        "calibration": calibration,
    }


def load_pairwise(folder: str | Path) -> PairwiseModel:
    """The reward model in `folder`, or in the `pairwise` folder of a run.

    Raises UserError when there is none, or when the base model is not the one it was trained on.
    """
    folder = next((p for p in (Path(folder), Path(folder) / "pairwise") if (p / CARD).is_file()), None) or _none(folder)
    config = PairwiseConfig(**json.loads((folder / CARD).read_text()))
    base = resolve(config.base)
    if fingerprint(base) != config.fingerprint:
        raise UserError(f"{folder} was trained on other weights of {config.base} than those here", "train it again")
    tokenizer = load_tokenizer(base)
    with torch.random.fork_rng():  # the fresh head draws numbers; the adapter's own takes its place at once
        model = load_model(base, dtype=config.dtype, four_bit=config.four_bit, scoring=True)
    model.config.pad_token_id = tokenizer.pad_token_id
    _float_head(model)
    return PairwiseModel(wear(model, folder), tokenizer, config)


def _none(folder):
    raise UserError(f"no pairwise reward model in {folder}", "name a run that trained one")


def _float_head(model) -> None:
    """The head computes in float32 whatever the backbone does: rewards in bfloat16 have two digits."""
    model.score.float()
    model.score.register_forward_pre_hook(lambda module, args: (args[0].float(), *args[1:]))


def _tokens(tokenizer, pairs: list[PreferencePair], max_tokens: int) -> tuple[list[dict], list[bool]]:
    """Each pair's two token lists, and whether both are within `max_tokens`."""
    rows = [
        {f"{side}_ids": conversation(tokenizer, p.prompt, getattr(p, side)) for side in ("chosen", "rejected")}
        for p in pairs
    ]
    return rows, [max(map(len, row.values())) <= max_tokens for row in rows]


def _scores(reward: PairwiseModel, pairs: list[PreferencePair], progress: str) -> tuple[np.ndarray, np.ndarray]:
    prompts = [p.prompt for p in pairs]
    both = reward.score(prompts * 2, [p.chosen for p in pairs] + [p.rejected for p in pairs], progress)
    return both[: len(pairs)], both[len(pairs) :]


# ---- how good it is


def measure(scores_chosen, scores_rejected, pairs: list[PreferencePair]) -> dict:
    """How often the chosen answer scores higher, beside what length alone would reach (the longer answer wins).

    Args:
        scores_chosen, scores_rejected: (N,), of `pairs`.

    Returns:
        {"natural": …, "balanced": …}, each {"pairs", "requests", "accuracy": [value, low, high], "length_only": the same};
        a tie counts half; intervals draw whole requests (premise_id). Balanced: as many pairs in which the chosen answer is
        longer as shorter (`balanced`); None where that leaves no pair.
    """
    gaps = np.asarray(scores_chosen, float) - np.asarray(scores_rejected, float)
    lengths = np.array([len(p.chosen) - len(p.rejected) for p in pairs], float)

    def figures(picked: list[int]) -> dict | None:
        if not picked:
            return None
        groups = defaultdict(list)
        for i in picked:
            groups[pairs[i].premise_id or pairs[i].prompt].append(i)
        share = lambda d: rounded(share_interval([_points(d[rows]) for rows in groups.values()]))  # noqa: E731
        return {"pairs": len(picked), "requests": len(groups), "accuracy": share(gaps), "length_only": share(lengths)}

    return {"natural": figures(list(range(len(pairs)))), "balanced": figures(balanced(pairs))}


def _points(differences: np.ndarray) -> np.ndarray:
    return np.where(differences > 0, 1.0, np.where(differences < 0, 0.0, 0.5))


def balanced(pairs: list[PreferencePair]) -> list[int]:
    """Indices of pairs of which as many have the longer answer chosen as rejected; the surplus that goes is what differs most.

    Pairs of equal length stay.
    """
    ratio = np.log([max(len(p.chosen), 1) / max(len(p.rejected), 1) for p in pairs]) if pairs else np.zeros(0)
    longer, shorter = ([int(i) for i in np.flatnonzero(side)] for side in (ratio > 0, ratio < 0))
    keep = min(len(longer), len(shorter))
    nearest = lambda side: sorted(side, key=lambda i: (abs(ratio[i]), i))[:keep]  # noqa: E731
    return sorted([*nearest(longer), *nearest(shorter), *(int(i) for i in np.flatnonzero(ratio == 0))])


def calibrate(scores_chosen, scores_rejected, pairs: list[PreferencePair]) -> dict:
    """One temperature for the raw scores, by maximum likelihood on held-out pairs (Guo et al. 2017, arXiv 1706.04599).

    The scale is searched within SCALES. "after" is measured across folds of requests (each scaled by what the others say),
    so that it is no better than it will be.

    Returns:
        {"temperature", "log_loss": [before, after], "ece": [before, after]}; nats a pair; log 2 = 0.693 is a coin.
    """
    gaps = np.asarray(scores_chosen, float) - np.asarray(scores_rejected, float)
    requests = sorted({p.premise_id or p.prompt for p in pairs})
    fold = np.array([requests.index(p.premise_id or p.prompt) % FOLDS for p in pairs])
    scaled = gaps.copy()
    for f in set(fold):
        rest = gaps[fold != f]
        scaled[fold == f] *= best_scale(rest) if len(rest) else 1.0
    return {
        "temperature": 1 / best_scale(gaps),
        "log_loss": rounded([log_loss(gaps), log_loss(scaled)]),
        "ece": rounded([calibration_error(gaps), calibration_error(scaled)]),
    }


def log_loss(gaps: np.ndarray) -> float:
    """−mean log σ(gap), gaps (N,) of chosen over rejected: the Bradley–Terry loss."""
    return float(np.logaddexp(0, -gaps).mean())


def best_scale(gaps: np.ndarray) -> float:
    """The scale within SCALES with the least `log_loss`, which is convex in it: by golden section on its logarithm."""
    low, high = np.log(SCALES)
    ratio = (np.sqrt(5) - 1) / 2
    for _ in range(60):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        if log_loss(np.exp(a) * gaps) < log_loss(np.exp(b) * gaps):
            high = b
        else:
            low = a
    return float(np.exp((low + high) / 2))


def calibration_error(gaps: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error of σ(|gap|) as the probability that the answer it prefers is the chosen one; 0 … ½.

    Bins of equally many pairs, at least ten in each where there are so many.
    """
    p, right = 1 / (1 + np.exp(-np.abs(gaps))), _points(gaps)
    parts = np.array_split(np.argsort(p, kind="stable"), max(1, min(bins, len(gaps) // 10)))
    return float(sum(len(i) * abs(p[i].mean() - right[i].mean()) for i in parts) / len(gaps))
