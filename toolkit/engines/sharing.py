"""Cores among the engines that are at work at the same moment, in whatever threads of this process."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from toolkit.hardware import physical_cores


class Cores:
    """As many as there are, never given out twice: who works alone gets all; of several each gets its share.

    Two engines that each took all the cores wait for each other's threads at every barrier of a step (docs/results.md, Large runs).
    """

    def __init__(self, count: int):
        self.count, self.free, self._at_work, self._changed = count, count, 0, threading.Condition()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """One more to share with, for the length of a call."""
        with self._changed:
            self._at_work += 1
        try:
            yield
        finally:
            with self._changed:
                self._at_work -= 1

    @contextmanager
    def some(self) -> Iterator[int]:
        """How many the caller may use for one decoding; waits while another still has more than its share."""
        with self._changed:
            share = self.count / max(1, self._at_work)
            self._changed.wait_for(lambda: self.free >= max(1, int(share)))
            taken = min(self.free, math.ceil(share))
            self.free -= taken
        try:
            yield taken
        finally:
            with self._changed:
                self.free += taken
                self._changed.notify_all()


CORES = Cores(physical_cores())  # this process's, since it is the processor that is shared
