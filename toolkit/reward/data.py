"""What the reward model learns from: groups of texts with known or rated quality."""

from dataclasses import dataclass, field

import numpy as np

from toolkit.narrative.damage import BARE, HARM, damage
from toolkit.narrative.dimensions import KEYS, MIDDLE, SCALE
from toolkit.records import AspectRatings, Plot, split_of

WHOLE = 9.0  # rating of a well-made plot: room above it for a better one
DROP = 6.0  # what full damage takes away on the dimension it aims at


@dataclass
class Group:
    """Texts that are compared with each other. `targets` (G, 5) on 1 … 10, NaN where unknown; `weights` (G).

    Where `absolute` is False only the order of the targets counts, not their level.
    """

    id: str
    absolute: bool = True
    texts: list[str] = field(default_factory=list)
    targets: list[list[float]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)

    def add(self, text: str, targets: list[float], weight: float, origin: str) -> None:
        self.texts.append(text)
        self.targets.append(targets)
        self.weights.append(weight)
        self.origins.append(origin)


def anchored_groups(plots: list[Plot], strengths: list[float], seed: int, kinds=tuple(HARM)) -> list[Group]:
    """One group a plot: the plot itself and each kind of damage at each strength. No rater is asked."""
    groups = []
    for plot in plots:
        group = Group(plot.id)
        group.add(plot.text, [WHOLE] * len(KEYS), 1.0, "whole plots")
        for kind in kinds:
            for strength in strengths:
                if (worse := damage(plot, kind, strength, plots, seed)) is not None:
                    group.add(worse.text, harmed([WHOLE] * len(KEYS), kind, strength, DROP), 1.0, f"damage:{kind}")
        groups.append(group)
    return groups


def rated_groups(
    candidates: list[Plot], ratings: dict[str, AspectRatings], weight: float, strength: float, seed: int
) -> list[Group]:
    """One group a premise: its candidates as rated, and one candidate's damage, which is known to be worse than it.

    Only the order counts (`absolute` False), and ratings are put in units of their standard deviation over all
    candidates: a small rater gives every text nearly the same number, and regressing on that number teaches who wrote
    a text instead of how good it is (measured: agreement with people on coherence fell from 0.47 to 0.03).
    """
    rated = [p for p in candidates if p.id in ratings]
    table = np.array([[ratings[p.id].scores[k] for k in KEYS] for p in rated])
    units = MIDDLE + (table - table.mean(0)) / (table.std(0) + 1e-6) if len(rated) else table
    before = {p.id: row.tolist() for p, row in zip(rated, units, strict=True)}
    by_premise: dict[str, list[Plot]] = {}
    for plot in rated:
        by_premise.setdefault(plot.premise_id, []).append(plot)
    groups = []
    for number, (premise, plots) in enumerate(sorted(by_premise.items())):
        group = Group(premise, absolute=False)
        for plot in plots:
            group.add(plot.text, before[plot.id], weight, "rated")
        kind = BARE[number % len(BARE)]
        for plot in plots:
            if (worse := damage(plot, kind, strength, candidates, seed)) is not None:
                group.add(worse.text, harmed(before[plot.id], kind, strength, DROP), weight, f"damage:{kind}")
                break
        groups.append(group)
    return groups


def harmed(before: list[float], kind: str, strength: float, drop: float) -> list[float]:
    """Targets after damage: before − drop · strength · share on the harmed dimensions, NaN where the effect is unknown."""
    shares = [HARM[kind].get(key) for key in KEYS]
    return [
        float("nan") if share is None else max(SCALE[0], value - drop * strength * share)
        for value, share in zip(before, shares, strict=True)
    ]


def split_groups(groups: list[Group], premise_of: dict[str, str]) -> tuple[list[Group], list[Group]]:
    """(train, held out) by premise id, so that no premise stands on both sides."""
    sides = {"train": [], "test": []}
    for g in groups:
        sides[split_of(premise_of.get(g.id, g.id))].append(g)
    return sides["train"], sides["test"]


def label_shares(groups: list[Group]) -> dict[str, float]:
    """Where the labels come from: origin → share of all known (text, dimension) labels, weighted by trust."""
    totals: dict[str, float] = {}
    for g in groups:
        for targets, weight, origin in zip(g.targets, g.weights, g.origins, strict=True):
            known = sum(not np.isnan(t) for t in targets)
            totals[origin] = totals.get(origin, 0.0) + weight * known
    whole = sum(totals.values()) or 1.0
    return {k: round(v / whole, 4) for k, v in sorted(totals.items())}
