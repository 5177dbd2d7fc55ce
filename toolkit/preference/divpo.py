"""Diverse Preference Optimisation (Lanchantin et al. 2025, arXiv 2501.18101): the chosen answer is the most different of the
good ones, the rejected the least different of the bad ones. What it makes are pairs for plain DPO.
"""

import math

from toolkit.preference.pairs import Rejected, as_pair, by_premise, overlap, within_budget
from toolkit.records import Plot, PreferencePair


def divpo_pairs(
    plots: list[Plot],
    scores: dict[str, dict[str, float]],
    rank: dict[str, float],
    *,
    share: float,
    threshold: float,
    length_ratio: float,
    per_premise: int,
    max_pairs: int,
) -> tuple[list[PreferencePair], list[Rejected]]:
    """Pairs of one premise's candidates, most deviating good against least deviating bad.

    Args:
        scores: plot id → dimension → reward (1 … 10); a plot's quality is their mean.
        rank: plot id → how much it deviates among its premise's candidates, 0 … 1.
        share: ρ; good and bad are the best and the worst ρ of a premise's candidates, at least one each. Used when
            `threshold` is 0.
        threshold: good is a quality of at least this, bad is below it (the paper's form); a premise with one kind only
            gives no pair.
        length_ratio, per_premise, max_pairs: as in `confident_pairs`; each answer is used once.

    Returns:
        (pairs, rejected): pairs by falling difference of deviation; rejected has what a rule kept from being a pair.
    """
    quality = {id: sum(s.values()) / len(s) for id, s in scores.items()}
    kept: list[PreferencePair] = []
    rejected: list[Rejected] = []
    for premise, group in by_premise(plots):
        ordered = sorted(group, key=lambda p: (-quality[p.id], p.id))
        if threshold:
            good = [p for p in ordered if quality[p.id] >= threshold]
            bad = [p for p in ordered if quality[p.id] < threshold]
        else:
            size = min(max(1, math.floor(share * len(ordered) + 0.5)), len(ordered) // 2)
            good, bad = ordered[:size], ordered[len(ordered) - size :]
        good.sort(key=lambda p: (-rank[p.id], -quality[p.id], p.id))
        bad.sort(key=lambda p: (rank[p.id], quality[p.id], p.id))
        made = 0
        for chosen in good:
            for other in bad:
                gap = round(quality[chosen.id] - quality[other.id], 4)
                sizes = sorted((len(chosen.text), len(other.text)))
                if made >= per_premise:
                    reason = "surplus"
                elif gap <= 0:
                    reason = "margin"
                elif sizes[1] > length_ratio * sizes[0]:
                    reason = "length"
                elif overlap(chosen.text, other.text) > 0.8:
                    reason = "duplicate"
                else:
                    kept.append(as_pair(chosen, other, scores, gap))
                    bad = [p for p in bad if p is not other]
                    made += 1
                    break
                rejected.append(Rejected(premise, chosen.id, other.id, gap, reason))
    kept, over = within_budget(kept, max_pairs, lambda p: rank[p.chosen_id] - rank[p.rejected_id])
    return kept, rejected + over
