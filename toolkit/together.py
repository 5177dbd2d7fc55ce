"""A run in several processes: `accelerate launch --multi_gpu --num_processes N -m toolkit run RECIPE` (or torchrun).

The first process is the run: it alone generates, judges, writes and speaks. The others wait, and come in where a stage is
trained together. What waits asks the launcher's own store now and then, so a stage may take days.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from toolkit.errors import UserError

# what tells a library that it is one of several: hidden but where all of them train
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
EVERY = 0.5  # seconds between two questions
PATIENCE = 7 * 24 * 3600  # seconds that a process waits for the others within a training


def rank() -> int:
    """This process among those of the launch; 0 is the run itself."""
    return int(os.environ.get("RANK", 0))


def count() -> int:
    """How many train together here; 1 outside `Processes.together`."""
    return int(os.environ.get("WORLD_SIZE", 1))


class Processes:
    """The processes of one launch, one alone where there is none. Use as a context manager: within it every library sees a
    single process, but in `together`.

    Raises UserError when started by something that leaves no store to meet at (mpirun, deepspeed).
    """

    def __enter__(self) -> "Processes":
        self.rank, self.count, self._store = rank(), count(), None
        if self.count > 1:
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                raise UserError(
                    f"{self.count} processes, but nothing to meet at",
                    "start them with accelerate launch --multi_gpu --num_processes N, or with torchrun",
                )
            from torch.distributed import PrefixStore, TCPStore

            place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = TCPStore(*place, is_master=False, timeout=timedelta(seconds=60))
            self._store = PrefixStore(f"fablesmith/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        self._hidden = {name: os.environ.pop(name) for name in NAMES if name in os.environ}
        self._quiet = os.environ.get("FABLESMITH_QUIET")
        if self.rank:
            os.environ["FABLESMITH_QUIET"] = "1"
        return self

    def __exit__(self, *exc) -> None:
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

        if not self.rank:
            self.tell(stage, "together")
        _forget()
        os.environ.update(self._hidden)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        try:
            yield
        finally:
            for name in self._hidden:
                os.environ.pop(name, None)
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            _forget()


def _forget() -> None:
    """accelerate keeps what it found when first asked, for the whole process."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
