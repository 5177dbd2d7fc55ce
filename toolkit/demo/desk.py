"""The desk: one thread that does one job at a time with the opened models, first come, first served.

Models are not safe to use from two threads, and of two decodings at once each has half the cores. So whatever asks a model from the page is a `Job`: it waits, works, shows what it has so far, and ends.
A stopped job leaves the queue, or its decoding, within a token. No web framework here.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import FablesmithError, UserError

if TYPE_CHECKING:
    from toolkit.judges import Opened

KEPT = 2  # models held open: as many as a comparison needs
CONTEXT = 8192  # tokens; what a judge needs, so that writer and judge can be one opened model
QUEUE = 64  # jobs that may wait: more is a mistake or an attack

Work = Callable[["Models", "Job"], Iterator[Any]]


def _open(spec: str) -> "Opened":
    from toolkit.judges import open_judge  # in the desk's thread: the page is served meanwhile

    return open_judge(spec, reason=16, n_ctx=CONTEXT)


class Busy(UserError):
    """So many jobs wait already that another would only wait in vain."""


class Job:
    """One piece of work. `shown` is what it has so far (whatever the work yields); `state` is one of waiting, opening,
    working, done, stopped, failed; `error` says why it failed.
    """

    def __init__(self, work: Work, owner: str = ""):
        self.work, self.owner = work, owner
        self.state, self.shown, self.error, self.version = "waiting", None, None, 0
        self._stop = threading.Event()

    def stop(self) -> None:
        """End it: at once while it waits, within a token while a model decodes. What it has shown stays."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    @property
    def ended(self) -> bool:
        return self.state in ("done", "stopped", "failed")

    def show(self, shown: Any) -> None:
        """Put what there is so far before the reader."""
        self.shown = shown
        self.version += 1

    def become(self, state: str) -> None:
        self.state = state
        self.version += 1


class Models:
    """Opened models by name, the last `KEPT` that were used."""

    def __init__(self, opening: Callable[[str], "Opened"] = _open):
        self._opening, self._open, self.job = opening, {}, None

    def get(self, spec: str) -> "Opened":
        """The model that `spec` names, opened if need be. A file that is gone or was replaced is not used any further.

        Raises UserError as `open_judge`.
        """
        found = self._open.pop(spec, None)
        if found is not None and found[1] != _signature(found[0]):
            found[0].judge.close()
            found = None
        if found is None:
            while len(self._open) >= KEPT:
                self._open.pop(next(iter(self._open)))[0].judge.close()
            if self.job is not None:
                self.job.become("opening")
            opened = self._opening(spec)
            if (engine := opened.engine) is not None and hasattr(engine, "stop_when"):
                engine.stop_when(lambda: self.job is not None and self.job.stopping)
            found = (opened, _signature(opened))
        self._open[spec] = found
        if self.job is not None:
            self.job.become("working")
        return found[0]

    def holds(self, spec: str) -> bool:
        return spec in self._open

    def close(self) -> None:
        for opened, _ in self._open.values():
            opened.judge.close()
        self._open = {}


def _signature(opened: "Opened") -> tuple | None:
    """What tells whether the file behind a model is still the one that was opened; None where there is no file."""
    path = getattr(opened.engine, "path", None)
    if path is None:
        return None
    try:
        stat = Path(path).stat()
    except OSError:
        return ("gone",)
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


class Desk:
    """The queue and its thread. `close` ends both."""

    def __init__(self, models: Models | None = None):
        self.models = models or Models()
        self._jobs: deque[Job] = deque()
        self._current: Job | None = None
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="desk", daemon=True)
        self._thread.start()

    def ask(self, work: Work, owner: str = "") -> Job:
        """Put work in the queue. Raises Busy when `QUEUE` jobs wait."""
        job = Job(work, owner)
        with self._changed:
            if len(self._jobs) >= QUEUE:
                raise Busy(f"{QUEUE} jobs wait already", "try again in a minute")
            self._jobs.append(job)
            self._changed.notify_all()
        return job

    @property
    def busy(self) -> bool:
        with self._changed:
            return bool(self._jobs or self._current)

    def ahead(self, job: Job) -> int:
        """How many jobs come before this one, the one being worked on included; 0 for one that does not wait."""
        with self._changed:
            return self._jobs.index(job) + (self._current is not None) if job in self._jobs else 0

    def stop(self, owner: str) -> None:
        """Stop every job of this owner."""
        with self._changed:
            for job in [*self._jobs, *([self._current] if self._current else [])]:
                if job.owner == owner:
                    job.stop()
            for job in [j for j in self._jobs if j.stopping]:
                self._jobs.remove(job)
                job.become("stopped")

    def close(self) -> None:
        """Stop what is at work, forget what waits, close the models."""
        with self._changed:
            self._closed = True
            for job in [*self._jobs, *([self._current] if self._current else [])]:
                job.stop()
            self._changed.notify_all()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if self._closed:
                    for job in self._jobs:
                        job.become("stopped")
                    self.models.close()
                    return
                job = self._current = self._jobs.popleft()
            self._do(job)
            with self._changed:
                self._current = None

    def _do(self, job: Job) -> None:
        if job.stopping:
            job.become("stopped")
            return
        self.models.job = job
        job.become("working")
        steps = job.work(self.models, job)
        try:
            for shown in steps:
                job.show(shown)
                if job.stopping:
                    break
            end = "stopped" if job.stopping else "done"
        except Exception as error:  # whatever happens in one job, the next one is served
            job.error = error
            end = "stopped" if job.stopping else "failed"
            if not isinstance(error, (FablesmithError, OSError, MemoryError)) and end == "failed":
                import traceback

                traceback.print_exc()
        finally:
            steps.close()  # the engine's own generator with it: nothing decodes any more
            self.models.job = None
        job.become(end)


async def follow(desk: Desk, job: Job, every: float = 0.06) -> AsyncIterator[tuple[str, Any, int]]:
    """(state, what is shown, jobs ahead) each time something changed, to the end. When nobody reads on, the job stops."""
    seen = None
    try:
        while True:
            ended = job.ended  # read before the rest, so that the last word is not missed
            now = (job.version, desk.ahead(job) if job.state == "waiting" else 0)
            if now != seen:
                seen = now
                yield job.state, job.shown, now[1]
            if ended:
                return
            await asyncio.sleep(every)
    finally:
        if not job.ended:
            job.stop()
