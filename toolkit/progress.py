"""Progress with time left, on stderr, silent when nobody watches."""

import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm


def bar(
    items: Iterable | None = None, *, total: int | None = None, desc: str = "", unit: str = "it", initial=0
) -> "tqdm":
    """A tqdm bar in the house's style. In a pipe or a log: at most one plain line each 15 s, none for what is quicker."""
    from tqdm import tqdm  # here: who only has something to say answers at once

    watched = sys.stderr.isatty()
    return tqdm(
        items,
        file=None if watched else _Log(),
        total=total,
        desc=f"  {desc:<12}",
        unit=unit,
        initial=initial,
        disable=bool(os.environ.get("FABLESMITH_QUIET")),
        mininterval=0.2 if watched else 15,
        delay=0 if watched else 15,
        dynamic_ncols=watched,
        bar_format="{desc}{percentage:3.0f}% "
        + ("|{bar}| " if watched else "")
        + "{n_fmt}/{total_fmt} {unit}  {elapsed} gone, {remaining} left{postfix}",
    )


class _Log:
    """stderr for a bar that nobody watches: whole lines, no carriage returns, nothing twice."""

    last = ""

    def write(self, text: str) -> None:
        text = text.strip("\r\n").rstrip()
        if text and text != self.last:
            self.last = text
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        sys.stderr.flush()


def say(text: str = "") -> None:
    """One line for the person running the command; stderr, so that stdout stays data."""
    if not os.environ.get("FABLESMITH_QUIET"):
        print(text, file=sys.stderr, flush=True)


def batched(items: Iterable, size: int) -> Iterator[list]:
    waiting = iter(items)
    while part := list(islice(waiting, size)):
        yield part
