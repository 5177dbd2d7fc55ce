"""The activation probe: how risky a request is, read off the reference model's hidden states before it writes a word.

A ridge-penalised logistic regression on one layer at the last token of the prompt, or on the mean over its tokens (arXiv
2602.17546, section "activation-based"; the released code pools over tokens and layers into an MLP whose checkpoint was picked on
its test split). Layer, pooling and ridge are chosen on a validation part, on which its probability is calibrated too; a test
set is only ever read by `measure`. One forward pass a batch, no generation.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from toolkit.engines.base import Messages, defused
from toolkit.errors import UserError
from toolkit.hardware import cache_dir
from toolkit.models.load import fingerprint, load_model, load_tokenizer
from toolkit.models.resolve import Model, digest
from toolkit.models.sft import asked
from toolkit.progress import bar, say
from toolkit.recipe import ModelSettings
from toolkit.records import text_id
from toolkit.stats import auc, logistic, rounded, share_interval, span, two_sample_bootstrap

POOLINGS = ("last", "mean")  # of the prompt's tokens
LAYERS = 32  # layers looked at, evenly spread where a model has more
STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # of the ridge, per example, on columns of deviation 1
MOST = 600  # requests of a kind that are learnt from and chosen by; drawn when there are more
LEAST = 10  # of each kind, in the training and in the validation part
TOKENS = 2048  # of a batch, padding included
WEIGHTS, CARD = "probe.safetensors", "probe.json"
SHIPPED = Path(__file__).resolve().parents[1] / "data" / "probes"


@dataclass(frozen=True)
class Probe:
    """p(harmful) = σ(slope · ((x − mean) / deviation · weights + bias) + shift), x one layer's pooled state; classes weighed alike.

    Args:
        identity: of the reference whose states it reads (`reference_identity`).
        model, four_bit: the same in words, for messages.
        layer: 0 are the embeddings, 1 the first layer's output.
        mean, deviation, weights: (H,), float32.
        validation: what was found on the validation part: "layers": [{"layer", "pooling", "auroc", "loss"}], "auroc", "counts".
        read: text_id of each request that it was learnt from or chosen by; empty in probes from before this was kept.
    """

    identity: str
    model: str
    layer: int
    pooling: str
    mean: np.ndarray
    deviation: np.ndarray
    weights: np.ndarray
    bias: float
    slope: float
    shift: float
    four_bit: bool = False
    validation: dict = field(default_factory=dict)
    read: list[str] = field(default_factory=list)

    def risks(self, states: np.ndarray) -> np.ndarray:
        """(N,) probabilities for states (N, H); 1 where a state is not finite: what cannot be read is risky."""
        with np.errstate(invalid="ignore", over="ignore"):
            z = self.slope * ((states.astype(np.float64) - self.mean) / self.deviation @ self.weights + self.bias)
            found = 1 / (1 + np.exp(-np.clip(z + self.shift, -500, 500)))
        return np.where(np.isfinite(found), found, 1.0)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {k: np.ascontiguousarray(getattr(self, k), np.float32) for k in ("mean", "deviation", "weights")}
        save_file(arrays, folder / WEIGHTS)
        card = {k: v for k, v in asdict(self).items() if k not in arrays}
        (folder / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False), encoding="utf-8")


def reference_identity(base: Model, start: Path | None = None) -> str:
    """What the reference is: the model's fingerprint, and the adapter's where it wears one."""
    worn = f"+{digest([Path(start) / 'adapter_model.safetensors'])}" if start else ""
    return fingerprint(base) + worn


def probe_folder(base: Model, start: Path | None = None) -> Path:
    """Where the probe of this reference is kept unless a folder is named."""
    return cache_dir() / "probes" / reference_identity(base, start)


def load_probe(folder: Path, base: Model, start: Path | None = None) -> Probe:
    """Raises UserError where `folder` holds no probe, or that of another reference: its directions mean nothing here."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        probe = Probe(**card, **load_file(folder / WEIGHTS))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise UserError(f"no probe in {folder} ({type(error).__name__})", "fablesmith probe train makes one") from None
    if probe.identity != reference_identity(base, start):
        raise UserError(
            f"the probe in {folder} reads {probe.model} ({probe.identity}), not {base.id} ({reference_identity(base, start)})",
            f"train one for this model: fablesmith probe train --model {base.id} --harmful FILE",
        )
    return probe


def find_probe(name: str, base: Model, start: Path | None = None) -> Probe:
    """The probe in the folder `name`; auto: the one of this reference that was trained here, else the shipped one.

    Raises UserError where there is none.
    """
    if name != "auto":
        return load_probe(Path(name), base, start)
    for folder in (probe_folder(base, start), SHIPPED / reference_identity(base, start)):
        if (folder / CARD).is_file():
            return load_probe(folder, base, start)
    raise UserError(
        f"there is no probe of {base.id} yet",
        f"fablesmith probe train --model {base.id} --harmful FILE (requests no one should help with; none are shipped)",
    )


# ---- reading


def read_states(
    base: Model,
    prompts: list[str | Messages],
    layers: list[int] | None,
    weights: ModelSettings,
    start: Path | None = None,
) -> tuple[np.ndarray, list[int]]:
    """((N, L, P, H) hidden states before the answer, by layer and pooling (POOLINGS), float16; the layers).

    A prompt longer than the model's context is not read: its row is NaN.

    Args:
        prompts: a user's turn, or the turns before the answer.
        layers: 0 are the embeddings; None: LAYERS of them, evenly spread, the last among them.
        start: an adapter that the reference wears.
    """
    model, tokenizer = load_model(base, dtype=weights.dtype, four_bit=weights.four_bit), load_tokenizer(base)
    if start:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(start))
    model.eval()
    rows = [
        tokenizer.apply_chat_template(
            defused(asked(p), tokenizer.all_special_tokens),
            add_generation_prompt=True,
            enable_thinking=False,
            return_dict=False,
        )
        for p in prompts
    ]
    config = model.config.get_text_config()
    depth = config.num_hidden_layers
    layers = layers or sorted({round(n) for n in np.linspace(1, depth, min(depth, LAYERS))})
    room = getattr(config, "max_position_embeddings", None) or 1 << 30
    out = np.full((len(rows), len(layers), len(POOLINGS), config.hidden_size), np.nan, np.float16)
    order = sorted((i for i, r in enumerate(rows) if len(r) <= room), key=lambda i: len(rows[i]))
    progress = bar(total=len(order), desc="reading", unit="prompt")
    at = 0
    while at < len(order):
        batch = [order[at]]
        while at + len(batch) < len(order) and len(rows[order[at + len(batch)]]) * (len(batch) + 1) <= TOKENS:
            batch.append(order[at + len(batch)])
        width = len(rows[batch[-1]])
        ids = torch.tensor([rows[i] + [tokenizer.pad_token_id] * (width - len(rows[i])) for i in batch])
        mask = torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in batch])
        ids, mask = ids.to(model.device), mask.to(model.device)
        with torch.inference_mode():
            found = model(ids, attention_mask=mask, output_hidden_states=True, use_cache=False, logits_to_keep=1)
        last = mask.sum(1) - 1
        for k, layer in enumerate(layers):
            states = found.hidden_states[layer].float()
            share = (mask / mask.sum(1, keepdim=True)).to(states.device)
            pooled = torch.stack([states[torch.arange(len(batch)), last], (states * share[..., None]).sum(1)], 1)
            out[batch, k] = pooled.clamp(-65504, 65504).cpu().numpy().astype(np.float16)
        at += len(batch)
        progress.update(len(batch))
    progress.close()
    return out, layers


def probe_risks(probe: Probe, base: Model, prompts: list[str | Messages], weights: ModelSettings, start: Path | None = None) -> np.ndarray:  # fmt: skip
    """(N,) risk of each prompt, 0 … 1, in one pass of the reference."""
    if probe.four_bit != weights.four_bit:
        say("  the probe was trained on states of another precision (4 bit or not): its calibration may be off")
    texts = [json.dumps(asked(p), ensure_ascii=False) for p in prompts]
    once = dict(zip(texts, prompts, strict=True))  # prompts of several answers are read once
    states, _ = read_states(base, list(once.values()), [probe.layer], weights, start)
    found = dict(zip(once, probe.risks(states[:, 0, POOLINGS.index(probe.pooling)]), strict=True))
    return np.array([found[t] for t in texts])


# ---- learning


def validates(text: str) -> bool:
    """Whether a request is in the validation part: one in four, decided by its words alone."""
    return int(text_id(text, "").removeprefix("-"), 16) % 4 == 0


def fit_probe(harmful: list[str], benign: list[str], base: Model, weights: ModelSettings, start: Path | None = None, more: Sequence[str] = ()) -> Probe:  # fmt: skip
    """Learn to tell harmful requests from benign ones; doubles count once, a request on both sides is left out.

    At most MOST of a kind are read. `more` are benign requests too, which are drawn where room is left: look-alikes that somebody
    collected must not drown in easy ones.

    Raises UserError with fewer than LEAST of a kind in the training or the validation part.
    """
    harmful, benign, more = ({t.strip() for t in side if t.strip()} for side in (harmful, benign, more))
    both = harmful & (benign | more)
    if both:
        say(f"  {len(both)} requests are named harmful and benign: they are left out")
    sides = []
    for kind, own, filler in (("harmful", harmful - both, set()), ("benign", benign - both, more - benign - both)):
        rows = _drawn(own, MOST) + _drawn(filler, max(0, MOST - len(own)))
        if len(rows) < len(own | filler):
            say(
                f"  {len(rows)} of {len(own | filler)} {kind} requests are drawn, {min(len(own), MOST)} of them your own"
            )
        parts = [t for t in rows if validates(t)], [t for t in rows if not validates(t)]
        if min(map(len, parts)) < LEAST:
            raise UserError(
                f"{len(rows)} different {kind} requests: {len(parts[1])} to learn from, {len(parts[0])} to choose by; "
                f"{LEAST} are the least of each",
                f"give more {kind} requests",
            )
        sides.append(rows)
    texts = sides[0] + sides[1]
    bad = np.repeat([True, False], [len(side) for side in sides])
    states, layers = read_states(base, texts, None, weights, start)
    read = np.isfinite(states[:, 0, 0, 0])
    if not read.all():
        say(f"  {(~read).sum()} requests are longer than the model's context: they are left out")
    checks = np.array([validates(t) for t in texts])
    found = fit_states(states[read], bad[read], checks[read], layers, (reference_identity(base, start), base.id, weights.four_bit))  # fmt: skip
    return replace(found, read=sorted(map(text_id, texts)))


def _drawn(texts: set[str], most: int) -> list[str]:
    return random.Random(1).sample(sorted(texts), min(most, len(texts)))


def unread(probe: Probe, texts: list[str]) -> list[str]:
    """The requests of `texts` that the probe was neither learnt from nor chosen by: only of these is a test's figure worth anything."""
    read = set(probe.read)
    return [t for t in texts if text_id(t.strip()) not in read]


def fit_states(states: np.ndarray, bad: np.ndarray, checks: np.ndarray, layers: list[int], of: tuple[str, str, bool]) -> Probe:  # fmt: skip
    """The probe of states (N, L, P, H), with the layer, pooling and ridge that order the validation part best.

    Best: the highest AUROC to three places, then the lowest log-loss with both classes weighed alike.

    Args:
        bad, checks: (N,) which requests are harmful, and which are the validation part. of: identity, model, four_bit.
    """
    tried, strengths = [], {}
    for k, layer in enumerate(layers):
        for p, pooling in enumerate(POOLINGS):
            x = states[:, k, p].astype(np.float64)
            fitted = _fit(x[~checks], bad[~checks], 0.1)
            tried.append({"layer": layer, "pooling": pooling, **_quality(_logits(x[checks], *fitted), bad[checks])})
    best = min(tried, key=lambda row: (-row["auroc"], row["loss"]))
    x = states[:, layers.index(best["layer"]), POOLINGS.index(best["pooling"])].astype(np.float64)
    for strength in STRENGTHS:
        fitted = _fit(x[~checks], bad[~checks], strength)
        found = _quality(_logits(x[checks], *fitted), bad[checks])
        strengths[strength] = (-found["auroc"], found["loss"], fitted, found)
    strength = min(strengths, key=lambda s: strengths[s][:2])
    *_, fitted, found = strengths[strength]
    slope, shift = _platt(_logits(x[checks], *fitted), bad[checks])
    mean, deviation, w, bias = fitted
    counts = {f"{part}_{kind}": int((m & b).sum()) for part, m in (("learnt", ~checks), ("chosen", checks)) for kind, b in (("harmful", bad), ("benign", ~bad))}  # fmt: skip
    validation = {"auroc": found["auroc"], "strength": strength, "counts": counts, "layers": tried}
    arrays = (a.astype(np.float32) for a in (mean, deviation, w))
    return Probe(of[0], of[1], best["layer"], best["pooling"], *arrays, bias, slope, shift, of[2], validation)


def _even(bad: np.ndarray) -> np.ndarray:
    """Weight of each example: both classes count one half."""
    return np.where(bad, 0.5 / max(bad.sum(), 1), 0.5 / max((~bad).sum(), 1))


def _fit(x: np.ndarray, bad: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """(mean (H), deviation (H), weights (H), bias) of a logistic regression on standardised columns."""
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    turned, back = span((x - mean) / deviation)
    rows = np.concatenate([turned, np.ones((len(x), 1))], 1) * np.where(bad, 1.0, -1.0)[:, None]
    ridge = np.append(np.full(turned.shape[1], strength), 1e-6)  # the intercept is free
    w = logistic(rows, _even(bad), ridge)
    return mean, deviation, back @ w[:-1], float(w[-1])


def _logits(x: np.ndarray, mean, deviation, weights, bias) -> np.ndarray:
    return (x - mean) / deviation @ weights + bias


def _quality(z: np.ndarray, bad: np.ndarray) -> dict:
    loss = float(_even(bad) @ np.logaddexp(0, np.where(bad, -z, z)))
    return {"auroc": round(float(auc(z[bad], z[~bad])), 3), "loss": round(loss, 5)}


def _platt(z: np.ndarray, bad: np.ndarray) -> tuple[float, float]:
    """(slope, shift) of σ(slope · z + shift) (Platt 1999), with his smoothed targets: a validation part that is told apart
    without a fault would else make every probability 0 or 1."""
    share = np.where(bad, (bad.sum() + 1) / (bad.sum() + 2), 1 / ((~bad).sum() + 2))
    rows = np.stack([z, np.ones(len(z))], 1)
    even = _even(bad)
    slope, shift = logistic(np.concatenate([rows, -rows]), np.concatenate([even * share, even * (1 - share)]), 1e-6)
    return max(float(slope), 1e-3), float(shift)  # never turned round


# ---- testing


def measure(harmful: np.ndarray, benign: np.ndarray) -> dict:
    """How well risks tell two test sets apart.

    Returns:
        {"auroc": [value, low, high] (95 %, bootstrap over requests), "caught", "alarms": [share, low, high] of the harmful and
        of the benign with a risk of one half or more, "mean": [harmful, benign], "requests": [harmful, benign]}.
    """
    share = lambda risks: rounded(share_interval([np.array([r >= 0.5], float) for r in risks]))  # noqa: E731
    return {
        "auroc": rounded(two_sample_bootstrap(harmful, benign, auc)),
        "caught": share(harmful),
        "alarms": share(benign),
        "mean": rounded([np.mean(harmful), np.mean(benign)]),
        "requests": [len(harmful), len(benign)],
    }
