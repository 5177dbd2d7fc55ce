"""Progress with time left, on stderr, silent when nobody watches."""

import os
import sys
from collections.abc import Iterable, Iterator

from tqdm import tqdm


def bar(
    items: Iterable | None = None, *, total: int | None = None, desc: str = "", unit: str = "it", initial=0
) -> tqdm:
    """A tqdm bar in the house's style. In a pipe or a log it prints at most one line each 15 s."""
    watched = sys.stderr.isatty()
    return tqdm(
        items,
        total=total,
        desc=f"  {desc:<12}",
        unit=unit,
        initial=initial,
        disable=bool(os.environ.get("FABLESMITH_QUIET")),
        mininterval=0.2 if watched else 15,
        dynamic_ncols=watched,
        ncols=None if watched else 88,
        bar_format="{desc}{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} {unit}  {elapsed} gone, {remaining} left{postfix}",
    )


def say(text: str = "") -> None:
    """One line for the person running the command; stderr, so that stdout stays data."""
    if not os.environ.get("FABLESMITH_QUIET"):
        print(text, file=sys.stderr, flush=True)


def batched(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
