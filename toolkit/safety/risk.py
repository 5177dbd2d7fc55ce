"""Who tells an example's risk: the probe, the critic, or both."""

from pathlib import Path

import numpy as np

from toolkit.models.resolve import Model
from toolkit.recipe import ModelSettings, SafetySettings
from toolkit.records import read_jsonl, write_jsonl
from toolkit.safety.critic import critic_risk, criticise
from toolkit.safety.probe import find_probe, probe_risks

FILE = "risk.jsonl"


def assess(base: Model, rows: list[dict], settings: SafetySettings, weights: ModelSettings, out: Path) -> dict:
    """Risk of rows {"prompt", "answer"} → out/risk.jsonl, a line a row in their order: {"risk", "probe", "score"}.

    both: the higher of the two, so that either can raise an alarm (not published; chosen because it errs safe). none and
    constant need no risk and ask nobody; random asks the one whose risks it shuffles (safety.train.hold shuffles).

    Returns:
        Facts: rows, signal, mean, over_half (share with a risk of one half or more), quantiles [5, 50, 95 %], and of the critic
        what `criticise` says. Empty without a signal.

    Raises:
        UserError: no probe of this model, or no such critic.
    """
    if not settings.asks:
        return {}
    facts: dict = {"signal": settings.signal, "rows": len(rows)}
    found: dict[str, list[float]] = {}
    if "probe" in settings.asks:
        probe = find_probe(settings.probe, base)
        found["probe"] = probe_risks(probe, base, [r["prompt"] for r in rows], weights).tolist()
        facts["probe"] = {"layer": probe.layer, "pooling": probe.pooling, "validation_auroc": probe.validation["auroc"]}
    if "critic" in settings.asks:
        found["score"], facts["critic"] = _critic(rows, settings.critic)
    risks = {
        "probe": found.get("probe"),
        "score": [critic_risk(r) for r in found["score"]] if "score" in found else None,
    }
    highest = [max(values) for values in zip(*(v for v in risks.values() if v is not None), strict=True)]
    each = [{"risk": round(risk, 6), **{k: round(v[i], 6) for k, v in found.items()}} for i, risk in enumerate(highest)]
    write_jsonl(out / FILE, each)
    return facts | summary([row["risk"] for row in each])


def _critic(rows: list[dict], name: str) -> tuple[list[float], dict]:
    from toolkit.engines.load import load_engine

    engine = load_engine(name, n_ctx=8192)
    try:
        return criticise(engine, rows)
    finally:
        engine.close()


def risks_of(folder: Path, count: int) -> list[float]:
    """The risks that `assess` left in a folder; `count` ones where nobody was asked (constant does not look at them)."""
    rows = read_jsonl(folder / FILE)
    return [row["risk"] for row in rows] if rows else [1.0] * count


def summary(risks: list[float]) -> dict:
    values = np.array(risks)
    return {
        "mean": round(float(values.mean()), 4),
        "over_half": round(float((values >= 0.5).mean()), 4),
        "quantiles": [round(float(q), 4) for q in np.quantile(values, [0.05, 0.5, 0.95])],
    }
