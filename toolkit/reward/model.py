"""Aspect Rating Reward Model (PlotTwist): text → ratings, one per dimension: the five narrative ones, or a file's own.

A backbone cut after `depth` of its layers + LoRA + mean over tokens + one linear head with an output per dimension.
Backbone, head and loss are not published. Chosen because, measured on damage of held-out plots with the embedded
model, the mean over tokens after two thirds of the layers ranks better than the last token or the last layer
(docs/results.md), and costs a third less.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from toolkit import together
from toolkit.errors import UserError
from toolkit.models.load import fingerprint, load_model, load_tokenizer, lora_config, prepare_four_bit, wear
from toolkit.models.lower import KEPT, layers_from, states_into, where_cut
from toolkit.models.resolve import resolve
from toolkit.narrative.dimensions import HALF, KEYS, MIDDLE, SCALE
from toolkit.progress import bar
from toolkit.recipe import LoraSettings
from toolkit.reward.reading import FIGURES, Reader


@dataclass(frozen=True)
class RewardConfig:
    """What must be known to load a reward model again.

    `reading` puts how the base model reads a text (reward.reading) beside its mean state. `scale` is the lowest and highest rating of the people it learnt from; scores are on 1 … 10 all the same. `languages` are those it learnt from (records.written_in): texts in
    others get no rating.
    """

    base: str
    fingerprint: str
    depth: float = 0.67
    max_tokens: int = 4096
    dtype: str = "auto"
    four_bit: bool = False
    dimensions: tuple[str, ...] = KEYS
    scale: tuple[float, float] = SCALE
    reading: bool = False
    languages: tuple[str, ...] = ("en",)


class AspectHeadModel(nn.Module):
    """Backbone + head. `forward` returns {"loss", "scores"}, so that transformers' Trainer runs it as it is.

    Args:
        backbone: a transformers base model (no language-model head) with `.layers`.
        depth: share of the layers that is kept.
        outputs: D, how many dimensions it rates.
        figures: R, how many features a text has beside its mean state.
    """

    def __init__(self, backbone, depth: float, outputs: int = len(KEYS), figures: int = 0):
        super().__init__()
        keep = max(1, round(len(backbone.layers) * depth))
        backbone.layers = backbone.layers[:keep]
        backbone.config.num_hidden_layers = keep
        if getattr(backbone.config, "layer_types", None):
            backbone.config.layer_types = backbone.config.layer_types[:keep]
        backbone.norm = nn.Identity()  # it belongs to the last layer, which may be gone; the head standardises instead
        self.backbone, self.head = backbone, AspectHead(backbone.config.hidden_size, outputs, figures)
        self.is_loaded_in_4bit = getattr(backbone, "is_loaded_in_4bit", False)  # peft asks
        self.rank_weight, self.rank_gap, self.cut = 1.0, 0.5, 0

    def features(self, input_ids, attention_mask, reading=None, lower=None) -> torch.Tensor:
        """Mean hidden state over each text's tokens, and `reading` (B, R) beside it: (B, T) → (B, H + R), float32.

        With `lower` (B, T, H), what comes into layer `cut`, only the layers from there on are run.
        """
        read = {"input_ids": input_ids} if lower is None else {"inputs_embeds": lower}
        with layers_from(self.backbone, 0 if lower is None else self.cut):
            hidden = self.backbone(**read, attention_mask=attention_mask, use_cache=False).last_hidden_state
        mask = attention_mask[..., None].float()
        mean = (hidden.float() * mask).sum(1) / mask.sum(1)
        return mean if reading is None else torch.cat([mean, reading.to(mean)], dim=1)

    def forward(
        self,
        input_ids,
        attention_mask,
        reading=None,
        targets=None,
        weights=None,
        groups=None,
        absolute=None,
        lower=None,
    ):
        """Scores (B, D) on 1 … 10 and, with `targets` (B, D; NaN where unknown), `weights`, `groups`, `absolute` (B), the loss."""
        raw = torch.tanh(self.head(self.features(input_ids, attention_mask, reading, lower)))
        out = {"scores": MIDDLE + HALF * raw}
        if targets is not None:
            out = {
                "loss": aspect_loss(
                    raw, (targets - MIDDLE) / HALF, weights, groups, absolute, self.rank_weight, self.rank_gap / HALF
                ),
                **out,
            }
        return out


class AspectHead(nn.Module):
    """Standardise features, then one linear map to the dimensions: (B, H) → (B, D).

    Its tanh is the rating in units of (rating − MIDDLE) / HALF: inside the scale, and never two texts cut to one value.
    """

    def __init__(self, hidden: int, outputs: int = len(KEYS), figures: int = 0):
        super().__init__()
        self.figures = figures
        self.register_buffer("mean", torch.zeros(hidden + figures))
        self.register_buffer("scale", torch.ones(hidden + figures))
        self.linear = nn.Linear(hidden + figures, outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear((features - self.mean) / self.scale)

    def fit_ridge(self, features: np.ndarray, targets: np.ndarray, weights: np.ndarray, ridge: float) -> None:
        """Closed-form start (linear probe, then fine-tune: Kumar et al. 2022): ridge regression per dimension.

        Args:
            features (N, H + figures): the few figures together count as much as the H states; targets (N, D) as (rating − MIDDLE) / HALF, NaN where unknown; weights (N).
        """
        targets = np.arctanh(np.clip(targets, -0.95, 0.95))
        mean, scale = features.mean(0), features.std(0) + 1e-6
        if self.figures:
            scale[-self.figures :] /= np.sqrt((features.shape[1] - self.figures) / self.figures)
        z = (features - mean) / scale
        rows, biases = [], []
        for d in range(targets.shape[1]):
            known = ~np.isnan(targets[:, d])
            w = weights[known]
            bias = float(np.average(targets[known, d], weights=w))
            centre = np.average(z[known], axis=0, weights=w)
            x = z[known] - centre
            gram = x.T @ (x * w[:, None]) + ridge * np.eye(x.shape[1])
            row = np.linalg.solve(gram, x.T @ (w * (targets[known, d] - bias)))
            rows.append(row)
            biases.append(bias - centre @ row)
        with torch.no_grad():
            self.mean.copy_(torch.from_numpy(mean))
            self.scale.copy_(torch.from_numpy(scale))
            self.linear.weight.copy_(torch.from_numpy(np.stack(rows)))
            self.linear.bias.copy_(torch.tensor(biases))


def aspect_loss(raw, targets, weights, groups, absolute, rank_weight: float, gap: float) -> torch.Tensor:
    """Regression and pairwise ranking together.

    L = Σ w (s − y)² / Σ w  over known (text, dimension) whose level counts
      + rank_weight · mean of −log σ(s_i − s_j)  over pairs of one group with y_i − y_j ≥ gap, per dimension.
    Not published; chosen because regression keeps the scale and ranking is what pairs need.

    Args:
        raw, targets: (B, D) in units of (rating − MIDDLE) / HALF, in −1 … 1; targets NaN where unknown.
        weights: (B) trust in each text's targets.
        groups: (B) texts with the same number are compared.
        absolute: (B) bool, False where only the order of the targets counts.
    """
    known = ~torch.isnan(targets)
    safe = torch.where(known, targets, torch.zeros_like(targets))
    w = known * (weights * absolute)[:, None]
    loss = (w * (raw - safe) ** 2).sum() / _over_all(w)
    better = (safe[:, None] - safe[None] >= gap) & known[:, None] & known[None]  # (B, B, D): row better than column
    better &= (groups[:, None] == groups[None])[..., None]
    pair_weight = torch.minimum(weights[:, None], weights[None])[..., None] * better
    ranking = -nn.functional.logsigmoid(raw[:, None] - raw[None])
    return loss + rank_weight * (ranking * pair_weight).sum() / _over_all(pair_weight)


def _over_all(weight: torch.Tensor) -> torch.Tensor:
    """What a weighted sum is divided by: the sum of its weights; where several processes share a step, the mean of their sums, so
    that the mean of their losses is the loss of the whole step."""
    total = weight.detach().sum()
    if together.count() > 1:
        torch.distributed.all_reduce(total)
        total = total / together.count()
    return total.clamp(min=1e-6)


class RewardModel:
    """A trained (or untrained) reward model for use: `score(texts)`."""

    def __init__(self, module, tokenizer, config: RewardConfig, reader: Reader | None = None):
        self.module, self.tokenizer, self.config = module.eval(), tokenizer, config
        self.reader = reader or (Reader(config.base, config.dtype) if config.reading else None)
        self.lower: dict[bytes, torch.Tensor] = {}  # token ids → (T, H), what comes into layer `cut`

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text. Raises UserError for an empty one, or one above max_tokens (nothing is cut silently)."""
        for i, text in enumerate(texts):
            if not text.strip():
                raise UserError(f"text {i + 1} of {len(texts)} is empty", "remove it")
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        for i, row in enumerate(rows):
            if len(row) > self.config.max_tokens:
                raise UserError(
                    f"text {i + 1} of {len(texts)} has {len(row)} tokens; the reward model reads at most {self.config.max_tokens}",
                    "shorten it",
                )
        return rows

    @torch.no_grad()
    def _batches(self, texts: list[str], batch: int, run, width: int, progress: str = "") -> np.ndarray:
        rows = self.encode(texts)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # alike lengths together: little padding
        out = np.zeros((len(rows), width), dtype=np.float32)
        starts = range(0, len(order), batch)
        for start in bar(starts, desc=progress, unit="batch") if progress else starts:
            picked = order[start : start + batch]
            out[picked] = run(**self.inputs([rows[i] for i in picked], self.device)).float().cpu().numpy()
        return out

    def inputs(self, rows: list[list[int]], device="cpu") -> dict[str, torch.Tensor]:
        """What the module reads of tokenised texts: input_ids and attention_mask (B, T) and, where asked, reading (B, R)."""
        inputs = pad(rows, self.tokenizer.pad_token_id, device)
        if self.config.reading:
            inputs["reading"] = torch.from_numpy(self.reader.read(rows)).to(device)
        if self.lower and None not in (known := [self.lower.get(_key(row)) for row in rows]):
            inputs["lower"] = nn.utils.rnn.pad_sequence(known, batch_first=True)
        return inputs

    @torch.no_grad()
    def keep_lower(self, texts: list[str], batch: int = 16) -> None:
        """Read these texts through the layers below the adapter now, so that they need not be again while the adapter learns.

        On the CPU, where the model may be read in two parts and KEPT bytes hold them all. What is read beside what depends on the
        texts alone: a training that goes on finds the same numbers to the last bit.
        """
        backbone = self.inner.backbone
        if self.device.type != "cpu" or not (cut := where_cut(backbone)):
            return
        rows = sorted(map(list, set(map(tuple, self.encode(texts)))), key=lambda row: (len(row), row))
        if sum(map(len, rows)) * backbone.config.hidden_size * backbone.dtype.itemsize > KEPT:
            return
        self.inner.cut = cut
        for start in bar(range(0, len(rows), batch), desc="lower layers", unit="batch"):
            picked = rows[start : start + batch]
            states = states_into(backbone, cut, **pad(picked, self.tokenizer.pad_token_id))
            self.lower |= {_key(row): found[: len(row)].clone() for row, found in zip(picked, states, strict=True)}

    @property
    def inner(self) -> AspectHeadModel:
        """The module without peft's wrapping."""
        return getattr(getattr(self.module, "base_model", self.module), "model", self.module)

    @property
    def device(self):
        return next(self.module.parameters()).device

    def score(self, texts: list[str], batch: int = 16, progress: str = "") -> np.ndarray:
        """Ratings of texts, (N, D) on 1 … 10 in the order of `config.dimensions`.

        Batched by length; the result does not depend on the order of `texts` beyond
        rounding. Raises UserError as `encode` does.
        """
        run = lambda **b: self.module(**b)["scores"]  # noqa: E731
        return self._batches(texts, batch, run, len(self.config.dimensions), progress)

    def features(self, texts: list[str], batch: int = 16, progress: str = "") -> np.ndarray:
        """What the head sees, (N, H + R): mean states, and how the base model reads the text where config.reading."""
        return self._batches(texts, batch, self.inner.features, self.inner.head.mean.shape[0], progress)

    def save(self, folder: Path) -> None:
        """PEFT adapter, head.safetensors and reward.json into `folder`."""
        self.module.save_pretrained(str(folder))
        inner = self.module.base_model.model
        head = inner.head.modules_to_save["default"] if hasattr(inner.head, "modules_to_save") else inner.head
        save_file({k: v.contiguous().cpu() for k, v in head.state_dict().items()}, folder / "head.safetensors")
        (folder / "reward.json").write_text(json.dumps(asdict(self.config), indent=1))


def _key(row: list[int]) -> bytes:
    return np.array(row, np.int32).tobytes()


def pad(rows: list[list[int]], pad_id: int, device="cpu") -> dict[str, torch.Tensor]:
    """Right-padded input_ids and attention_mask, (B, T)."""
    length = max(map(len, rows))
    ids = torch.tensor([r + [pad_id] * (length - len(r)) for r in rows], device=device)
    mask = torch.tensor([[1] * len(r) + [0] * (length - len(r)) for r in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


def new_reward_model(
    config: RewardConfig, lora: LoraSettings, gguf: str | None = None, reader: Reader | None = None
) -> RewardModel:
    """An untrained reward model: backbone, fresh LoRA (an identity at birth), head of zeros.

    A `reader` may be shared by several, so that each text is read once.
    """
    from peft import get_peft_model

    model = resolve(config.base, gguf)
    backbone = load_model(model, dtype=config.dtype, four_bit=config.four_bit, backbone=True)
    module = _module(backbone, config)
    if config.four_bit:
        prepare_four_bit(module.backbone)
    peft_config = lora_config(module.backbone, lora, task=None)
    peft_config.modules_to_save = ["head"]
    module = get_peft_model(module, peft_config)
    return RewardModel(module, load_tokenizer(model), config, reader)


def _module(backbone, config: RewardConfig) -> AspectHeadModel:
    return AspectHeadModel(backbone, config.depth, len(config.dimensions), FIGURES if config.reading else 0)


def reward_folder(folder: str | Path) -> Path:
    """Where the reward model of a run, or of its own folder, lies. Raises UserError when there is none."""
    for place in (Path(folder), Path(folder) / "reward"):
        if (place / "reward.json").is_file():
            return place
    raise UserError(f"no reward model in {folder}", "name a run that trained one, such as runs/quickstart")


def load_reward_model(folder: str | Path, *, dimensions: tuple[str, ...] | None = None) -> RewardModel:
    """A reward model from its folder, or from a run's.

    Args:
        dimensions: what it must rate, in this order, such as narrative.dimensions.KEYS; any when None.

    Raises UserError when there is none, when it rates something else, or when the base model is not the one it was
    trained on.
    """
    folder = reward_folder(folder)
    known = json.loads((folder / "reward.json").read_text())
    config = RewardConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})
    if dimensions is not None and config.dimensions != dimensions:
        raise UserError(f"{folder} rates {', '.join(config.dimensions)}, not {', '.join(dimensions)}", "train it again")
    model = resolve(config.base)
    if fingerprint(model) != config.fingerprint:
        raise UserError(f"{folder} was trained on other weights of {config.base} than those here", "train it again")
    backbone = load_model(model, dtype=config.dtype, four_bit=config.four_bit, backbone=True)
    module = wear(_module(backbone, config), folder)
    head = load_file(folder / "head.safetensors")
    module.base_model.model.head.modules_to_save["default"].load_state_dict(head)
    return RewardModel(module, load_tokenizer(model), config)
