"""The last step of a rater's training in closed form: what tells texts apart is read by ridge regression.

Not published; chosen because gradient steps first learn what all texts have in common: on the embedded model 100 steps left the
rater giving every text nearly the same rating (spread 0.05 of 10), while a regression on the same states orders texts it has
not seen (docs/results.md). The same reason for which the reward model's head starts from a linear probe.
"""

import numpy as np
import torch

from toolkit.progress import bar

RIDGES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
FOLDS = 5


def fit_probe(model, batches: list[dict], targets: list[np.ndarray], logps, rank: int = -1) -> dict | None:
    """Write a rank-1 update W += v uᵀ into one LoRA rank of the last MLP's output projection.

    u: ridge regression of what is missing in the slope of the digits' log-probabilities, on the projection's input at the
    answer's place. v: the direction of its output that moves the slope by 1 and is shortest, by the mean gradient; nothing
    but the final norm and the vocabulary stands behind it, so that the step is exact to the norm's curvature.

    Args:
        model: a PEFT model. batches: what `logps` reads; targets: rating's place on the scale in 0 … 1, (B · Q) a batch.
        logps: (model, batch) → log-probabilities of the digits (B · Q, O).
        rank: which of the LoRA's ranks is given up for it.

    Returns facts: where, the ridge (chosen by 5-fold validation on whole texts) and the share of the variance explained there;
    None when the model has no such projection with LoRA, or there are under 10 texts (then nothing is changed).
    """
    found = [(n, m) for n, m in model.named_modules() if n.endswith("mlp.down_proj") and hasattr(m, "lora_A")]
    texts = sum(len(batch["input_ids"]) for batch in batches)
    if not found or texts < 2 * FOLDS:
        return None
    name, module = found[-1]
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    wanted = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False).eval()
    a[rank], b[:, rank] = 0, 0
    inputs, slopes, directions = _read(model, module, batches, logps)
    for parameter in wanted:
        parameter.requires_grad = True
    share = np.clip(np.concatenate(targets), 0.01, 0.99)
    missing = np.log(share / (1 - share)) - slopes
    fold = np.repeat(np.arange(texts) % FOLDS, len(missing) // texts)  # a text's questions stand on one side
    u, ridge, error = ridge_of(inputs, missing, fold)
    v = directions / (directions @ directions)
    even = np.sqrt(np.linalg.norm(v) / (np.linalg.norm(u) + 1e-12))  # both factors of one size, for whoever trains on
    with torch.no_grad():
        a[rank] = torch.from_numpy(u * even)
        b[:, rank] = torch.from_numpy(v / even / module.scaling["default"])
    explained = 1 - error / float(((missing - missing.mean()) ** 2).mean())
    return {"at": name.split("model.")[-1], "ridge": ridge, "explained": round(explained, 3)}


def _read(model, module, batches: list[dict], logps) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(inputs (N, F), slopes (N), mean gradient of a slope by the output (H)) at the answers' places."""
    seen: dict = {}

    def keep(_, args, out):
        seen["in"], seen["out"] = args[0][:, -1], out.detach().requires_grad_()
        return seen["out"]

    hook = module.register_forward_hook(keep)
    inputs, slopes, gradient = [], [], 0.0
    for batch in bar(batches, desc="probe", unit="batch"):
        rows = logps(model, {k: v.to(model.device) for k, v in batch.items()}).double()
        k = torch.arange(rows.shape[1], device=rows.device) - (rows.shape[1] - 1) / 2
        slope = rows @ k.double() / (k**2).sum()
        slope.sum().backward()
        inputs.append(seen["in"].float().cpu().numpy())
        slopes.append(slope.detach().cpu().numpy())
        gradient = gradient + seen["out"].grad[:, -1].double().sum(0).cpu().numpy()
    hook.remove()
    return np.concatenate(inputs).astype(np.float64), np.concatenate(slopes), gradient / sum(map(len, slopes))


def ridge_of(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, float, float]:
    """(u (F), ridge, mean squared error on left-out folds) of y ≈ x u, for x (N, F), y (N); no intercept.

    Minimises ‖y − x u‖² + Σ u² (ridge · deviation² + N · rounding²). Columns are not centred: a LoRA has no bias, and the
    inputs carry one already. Rounding is what 8-bit llama.cpp does to inputs: blocks of 32 share a scale, so that one large
    number takes the precision of its neighbours. Without that term u leans on differences that Q8_0 rounds away (measured on
    the embedded model: right in transformers, noise in the GGUF; docs/results.md).
    """
    errors, rounding = {}, rounding_of(x)
    for ridge in RIDGES:
        z = x / np.sqrt(ridge * x.var(0) + len(x) * rounding**2 + 1e-12)
        gram, left = z @ z.T, np.empty(len(y))
        for f in set(fold):
            out, rest = fold == f, fold != f
            inner = gram[np.ix_(rest, rest)] + np.eye(rest.sum())
            left[out] = gram[np.ix_(out, rest)] @ np.linalg.solve(inner, y[rest])
        errors[ridge] = float(((left - y) ** 2).mean())
    ridge = min(errors, key=errors.get)
    scale = np.sqrt(ridge * x.var(0) + len(x) * rounding**2 + 1e-12)
    z = x / scale
    return z.T @ np.linalg.solve(z @ z.T + np.eye(len(y)), y) / scale, ridge, errors[ridge]


def rounding_of(x: np.ndarray) -> np.ndarray:
    """Deviation (F) that rounding to Q8_0 adds to each column of x (N, F): a step is the block's largest |x| / 127."""
    starts = np.arange(0, x.shape[1], 32)
    largest = np.maximum.reduceat(np.abs(x), starts, axis=1).mean(0)
    return np.repeat(largest, 32)[: x.shape[1]] / 127 / np.sqrt(12)
