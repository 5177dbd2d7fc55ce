"""A run in several processes: `accelerate launch --multi_gpu --num_processes N -m toolkit run RECIPE` (or torchrun).

The first process is the run: it alone generates, judges, writes and speaks. The others wait, and come in where a stage is
trained together. What waits asks the launcher's own store now and then, so a stage may take days. Where one process fails or the
launcher is gone, all end: within two seconds, with exit code 2.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from toolkit.errors import UserError

# what tells a library that it is one of several: hidden but where all of them train
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
EVERY = 0.5  # seconds between two questions
PATIENCE = 7 * 24 * 3600  # seconds that a process waits for the others within a training
FAILED = "failed"


def rank() -> int:
    """This process among those of the launch; 0 is the run itself."""
    return int(os.environ.get("RANK", 0))


def count() -> int:
    """How many train together here; 1 outside `Processes.together`."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def first_goes_first() -> Iterator[None]:
    """Within a training: the first process does the block before the others, which find what it left on the disk."""
    from torch.distributed import barrier

    if rank():
        barrier()
    yield
    if count() > 1 and not rank():
        barrier()


def asked_of_first(ask: Callable[..., tuple[list, dict]], *rows: list) -> tuple[list, dict]:
    """ask(*rows) → (a value a row, notes), asked once, in the first process, of the rows of all: each gets its own rows' values."""
    if count() == 1:
        return ask(*rows)
    from torch.distributed import all_gather_object, broadcast_object_list

    every = [None] * count()
    all_gather_object(every, rows)
    whole = [[row for part in every for row in part[i]] for i in range(len(rows))]
    told = [None if rank() else ask(*whole)]
    broadcast_object_list(told, 0)
    values, notes = told[0]
    start = sum(len(part[0]) for part in every[: rank()])
    return values[start : start + len(rows[0])], notes


class Processes:
    """The processes of one launch, one alone where there is none. Use as a context manager: within it every library sees a
    single process, but in `together`.

    Raises UserError when started by something that leaves no store to meet at (mpirun, deepspeed).
    """

    def __enter__(self) -> "Processes":
        self.rank, self.count, self._store = rank(), count(), None
        self._over = threading.Event()
        if self.count > 1:
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                raise UserError(
                    f"{self.count} processes, but nothing to meet at",
                    "start them with accelerate launch --multi_gpu --num_processes N, or with torchrun",
                )
            os.environ.setdefault(
                "TORCH_CPP_LOG_LEVEL", "ERROR"
            )  # a warning a process and training, for us and not the user
            self._store = _meet()
            threading.Thread(target=self._watch, args=(os.getppid(), _meet()), daemon=True).start()
        self._hidden = {name: os.environ.pop(name) for name in NAMES if name in os.environ}
        self._quiet = os.environ.get("FABLESMITH_QUIET")
        if self.rank:
            os.environ["FABLESMITH_QUIET"] = "1"
        return self

    def __exit__(self, kind, *exc) -> None:
        if kind:
            self._fail()
        self._over.set()
        os.environ.update(self._hidden)
        if self.rank and self._quiet is None:
            del os.environ["FABLESMITH_QUIET"]

    def tell(self, stage: str, what: str) -> None:
        """The first process: whether a stage is trained "together" or "stands"."""
        if self._store is not None:
            self._store.set(stage, what)

    def told(self, stage: str) -> str:
        """The others: wait for what the first one tells of a stage."""
        while not self._store.check([stage]):
            time.sleep(EVERY)
        return self._store.get(stage).decode()

    @contextmanager
    def together(self, stage: str) -> Iterator[None]:
        """All processes train: libraries see every one of them."""
        if self.count == 1:
            yield
            return
        import torch
        from torch.distributed import PrefixStore

        if not self.rank:
            self.tell(stage, "together")
        _forget()
        os.environ.update(self._hidden)
        card = torch.cuda.is_available()
        if card:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group(
            "nccl" if card else "gloo",
            # its own corner: what an earlier training left in the store would be taken for this one's
            store=PrefixStore(f"training/{stage}", self._store),
            rank=self.rank,
            world_size=self.count,
            timeout=timedelta(seconds=PATIENCE),
        )
        try:
            yield
        except BaseException as error:
            self._fail()  # before the group is taken down, for which it would wait for the others
            if isinstance(error, torch.distributed.DistError) or (
                isinstance(error, RuntimeError) and "gloo" in str(error)
            ):
                raise UserError("another process of this launch failed", "the same command goes on") from error
            raise
        finally:
            for name in self._hidden:
                os.environ.pop(name, None)
            torch.distributed.destroy_process_group()
            _forget()

    def _fail(self) -> None:
        """Let the others end, too."""
        if self._store is not None and not self._over.is_set():
            self._over.set()
            self._store.set(FAILED, "1")

    def _watch(self, launcher: int, store) -> None:
        """In a thread: end this process, whatever it waits for, when another has failed or nobody would start it again."""
        while not self._over.wait(EVERY):
            try:
                why = "another process of this launch failed" if store.check([FAILED]) else ""
            except RuntimeError:  # the store is the launcher's
                why = "the launcher is gone"
            if (why or os.getppid() != launcher) and not self._over.is_set():
                print(f"{why or 'the launcher is gone'}: the same command goes on", file=sys.stderr, flush=True)
                os._exit(2)


def _meet():
    """The launcher's store, as this launch sees it."""
    from torch.distributed import PrefixStore, TCPStore

    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(*place, is_master=False, timeout=timedelta(seconds=60))
    store.set_timeout(timedelta(seconds=PATIENCE))
    return PrefixStore(f"fablesmith/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _forget() -> None:
    """accelerate keeps what it found when first asked, for the whole process."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
