"""GGUF files worth running as writer or judge, by name: gguf/models.yaml, and how to get one."""

import difflib
import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from toolkit.errors import UserError
from toolkit.hardware import cache_dir, free_vram, require_disk
from toolkit.models.resolve import embedded_gguf

INSTALLED = "pypi:"  # a repo of this kind came with pip
SPARE_GB = 2.0  # of RAM, for the system and ourselves


@dataclass(frozen=True)
class Entry:
    """One GGUF file; gguf/models.yaml says what each field means. Sizes are in 10^9 bytes, parameters in 10^9."""

    name: str
    about: str
    role: str
    family: str
    parameters: float
    active: float
    repo: str
    file: str
    quantisation: str
    size_gb: float
    memory_gb: float
    context: int
    licence: str
    sha256: str = ""

    @property
    def path(self) -> Path:
        """Where the file is, or will be: a download by hand belongs there too."""
        return embedded_gguf() if self.repo.startswith(INSTALLED) else cache_dir() / "gguf" / self.file


def catalogue_file() -> Path:
    """gguf/models.yaml of the checkout, or the copy inside the installed package."""
    beside = Path(__file__).resolve().parents[2] / "gguf" / "models.yaml"
    return beside if beside.is_file() else Path(__file__).resolve().parents[1] / "_gguf" / "models.yaml"


@cache
def catalogue() -> tuple[Entry, ...]:
    """All entries, from the smallest file to the largest."""
    return tuple(Entry(**fields) for fields in yaml.safe_load(catalogue_file().read_text(encoding="utf-8")))


def entry(name: str) -> Entry:
    """The entry called `name`. Raises UserError with the nearest name."""
    entries = {e.name: e for e in catalogue()}
    if name.lower() in entries:
        return entries[name.lower()]
    near = difflib.get_close_matches(name.lower(), entries, 1, cutoff=0.5)
    meant = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"no model at {name}, and none in the catalogue is called that",
        f"{meant}Give a .gguf file, a folder, a hub id owner/name, an http address, or one of {', '.join(entries)}",
    )


def fetch(entry: Entry) -> Path:
    """The entry's file, downloaded the first time; never half of it.

    Raises UserError: offline and not here, the hub has no such file, a full disk, a partial file, a wrong checksum.
    """
    path = entry.path
    if path.is_file():
        if path.stat().st_size < 0.95 * entry.size_gb * 1e9:
            raise UserError(
                f"{path} has {path.stat().st_size / 1e9:.2f} GB of {entry.size_gb:.2f}: a download that broke off",
                "delete it and try again",
            )
        return path
    by_hand = f"download {entry.file} from huggingface.co/{entry.repo} and put it at {path}"
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise UserError(
            f"{entry.name} is not on this machine ({entry.repo}: {entry.file}, {entry.size_gb:g} GB)",
            f"without --offline it is fetched; or {by_hand}",
        )
    from huggingface_hub import hf_hub_download

    require_disk(path.parent, entry.size_gb * 1e9 / 2**20, f"{entry.name}'s file")
    try:  # written beside its place and moved there when whole
        hf_hub_download(entry.repo, entry.file, local_dir=path.parent)
    except OSError as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cannot get {entry.file} from {entry.repo}: {first}", f"try again later, or {by_hand}"
        ) from None
    if entry.sha256 and sha256(path) != entry.sha256:
        path.unlink()
        raise UserError(
            f"{entry.file} from {entry.repo} is not the file the catalogue names", "try again, or report it"
        )
    return path


def named_gguf(name: str) -> Path | None:
    """A GGUF file by its path or its name in the catalogue (fetched the first time); None for "". Raises UserError."""
    if not name:
        return None
    return Path(name).resolve() if Path(name).is_file() else fetch(entry(name))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fits(entry: Entry, ram_gb: float, vram_gb: float) -> bool:
    """Whether the model runs with 8192 tokens of context, whole on the GPU or whole in RAM."""
    return entry.memory_gb <= max(vram_gb, ram_gb - SPARE_GB)


def machine_memory() -> tuple[float, float]:
    """Free RAM and free memory of the first GPU (0 where there is none), in 10^9 bytes."""
    import psutil

    return psutil.virtual_memory().available / 1e9, (free_vram() or 0) / 1e9
