"""People's ratings as one trains on them: checked, and put on the house's scale."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.errors import UserError
from toolkit.narrative.dimensions import SCALE
from toolkit.people import RatedText, read_people


@dataclass(frozen=True)
class Rated:
    """Texts with people's ratings. `targets` (N, D) on 1 … 10, in the order of `dimensions` (the file's aspects)."""

    rows: list[RatedText]
    targets: np.ndarray
    dimensions: tuple[str, ...]
    scale: tuple[float, float]

    @property
    def texts(self) -> list[str]:
        return [r.text for r in self.rows]

    @property
    def groups(self) -> list[str]:
        return [r.group for r in self.rows]

    @property
    def systems(self) -> list[str]:
        return [r.system for r in self.rows]


def to_house(values, scale: tuple[float, float]):
    """People's ratings on `scale` → 1 … 10, linearly."""
    return SCALE[0] + (np.asarray(values, float) - scale[0]) / (scale[1] - scale[0]) * (SCALE[1] - SCALE[0])


def from_house(values, scale: tuple[float, float]):
    """1 … 10 → people's `scale`, linearly."""
    return scale[0] + (np.asarray(values, float) - SCALE[0]) / (SCALE[1] - SCALE[0]) * (scale[1] - scale[0])


def read_rated(path: Path, scale: tuple[float, float] | None = None) -> Rated:
    """A file of people's ratings (people.read_people), as one trains on it.

    Args:
        scale: lowest and highest possible rating; the whole numbers around those in the file when None.

    Raises UserError as `read_people` does, for a rating outside `scale`, and for an aspect that is the same for all.
    """
    rows = read_people(Path(path))
    aspects = tuple(rows[0].mean)
    table = np.array([[r.mean[a] for a in aspects] for r in rows])
    given = [v for r in rows for people in r.people.values() for v in people] + table.ravel().tolist()
    if scale is None:
        scale = (float(math.floor(min(given))), float(math.ceil(max(given))))
    if min(given) < scale[0] or max(given) > scale[1]:
        raise UserError(f"{path}: ratings go from {min(given):g} to {max(given):g}, outside {scale}", "mend the scale")
    for aspect, column in zip(aspects, table.T, strict=True):
        if column.min() == column.max():
            raise UserError(f"{path}: every text has the same {aspect}", "there is nothing to learn; leave it out")
    return Rated(rows, to_house(table, scale), aspects, scale)
