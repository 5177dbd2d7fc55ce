"""What a run hands out: GGUF files, the proof that they are what was trained, and a card that says how to use them."""

import json
import os
import shutil
from pathlib import Path

from toolkit.export.gguf import adapter_to_gguf, convert
from toolkit.export.merge import merge_adapter, weight_files
from toolkit.export.proof import prove_export
from toolkit.hardware import require_disk
from toolkit.models.gguf_file import BITS, GgufFile, quantise, read_gguf
from toolkit.models.load import weights_folder
from toolkit.models.resolve import Model
from toolkit.progress import bar, say
from toolkit.recipe import MERGED_BELOW, ExportSettings, ModelSettings

# parameters that torch holds in float32 for the proof: then what was trained in 4 bits, too, is compared with the weights that
# the files have, and no rounding has to be allowed for. In 4 bits training may have had less memory than float32 takes.
FLOAT32_UP_TO, TRAINED_IN_4_BITS_UP_TO = 2e9, 1e9
README = Path(__file__).parent / "card"


def export_model(
    base: Model, adapter: Path, name: str, settings: ExportSettings, weights: ModelSettings, out: Path
) -> dict:
    """adapter.gguf, NAME-KIND.gguf where the model is merged, export.json, README.md and chat_template.jinja in `out`.

    Merged or not is decided by `settings.merge` and the model's size. The intermediate files (merged safetensors, f16)
    are gone as soon as the next is whole; after a kill the work goes on from the last whole one.

    Returns:
        The card (export.json). gguf: the file to load; merged: whether it holds the training already; if not, `adapter`
        goes on top of it. Paths are relative to `out`, or absolute where the user named a file of his own.

    Raises:
        UserError: not enough disk, or weights that cannot be merged. ProofError: the files are not the trained model.
    """
    facts = read_gguf(base.gguf)
    merge = settings.merge == "always" or (settings.merge == "auto" and facts.parameters < MERGED_BELOW)
    kind, final, f16 = settings.quantisation, None, out / "f16.gguf"
    steps = bar(total=5 if merge else 2, desc="export", unit="step")
    adapter_gguf = out / "adapter.gguf"
    adapter_to_gguf(adapter, base.gguf, adapter_gguf)
    steps.update()
    if merge:
        final = out / f"{name}-{kind}.gguf"
        _merge(base, adapter, facts.parameters, kind, final, f16, steps)
    elif settings.merge == "auto":
        say(f"  {facts.parameters / 1e9:.1f}B parameters: the adapter is handed out alone, for {base.gguf.name}")
    proof = prove_export(
        base,
        adapter,
        base.gguf,
        adapter_gguf,
        final,
        kind if merge else facts.quantisation,
        f16 if f16.is_file() else None,
        **proved_in(facts.parameters, weights),
    )
    steps.update()
    steps.close()
    f16.unlink(missing_ok=True)
    shutil.rmtree(out / "merged", ignore_errors=True)
    return _write_card(out, name, base, adapter, facts, final, kind if merge else facts.quantisation, proof)


def proved_in(parameters: int, weights: ModelSettings) -> dict:
    """How torch holds the base for the proof: {"four_bit", "dtype"} of `prove_export`."""
    if parameters <= (TRAINED_IN_4_BITS_UP_TO if weights.four_bit else FLOAT32_UP_TO):
        return {"four_bit": False, "dtype": "float32"}
    return {"four_bit": weights.four_bit, "dtype": weights.dtype}


def _merge(base: Model, adapter: Path, parameters: int, kind: str, final: Path, f16: Path, steps) -> None:
    merged = f16.with_name("merged")
    if not f16.is_file() and not final.is_file():
        stored = sum(file.stat().st_size for file in weight_files(weights_folder(base)))
        # the merged files and the f16 one stand together for a while, then the f16 and the quantised one
        most = max(stored + 2 * parameters, parameters * (2 + BITS[kind] / 8)) / 2**20
        require_disk(f16.parent, most, f"merging {parameters / 1e9:.1f}B parameters (export.merge: never needs none)")
        merge_adapter(base, adapter, merged)
        steps.update()
        convert(merged, f16)
    shutil.rmtree(merged, ignore_errors=True)
    steps.update()
    if not final.is_file():
        quantise(f16, final, kind)
    steps.update()


def _write_card(
    out: Path, name: str, base: Model, adapter: Path, facts: GgufFile, final: Path | None, kind: str, proof: dict
) -> dict:
    shown = lambda path: os.path.relpath(path, out) if _beside(path, out) else str(Path(path).resolve())  # noqa: E731
    files = [final] if final else []
    card = {
        "name": name,
        "gguf": final.name if final else shown(base.gguf),
        "merged": final is not None,
        "adapter": "adapter.gguf",
        "peft_adapter": shown(adapter),
        "base": base.id,
        "base_gguf": shown(base.gguf),
        "quantisation": kind,
        "base_quantisation": facts.quantisation,
        "architecture": facts.arch,
        "parameters": facts.parameters,
        "experts": facts.experts,
        "context": facts.context,
        "chat_template": "chat_template.jinja",
        "megabytes": round(sum(f.stat().st_size for f in [*files, out / "adapter.gguf"]) / 2**20),
        "proof": proof,
    }
    (out / "chat_template.jinja").write_text(facts.template, encoding="utf-8")
    words = {**card, "context": min(facts.context or 4096, 8192), "moe": " --cpu-moe" if facts.experts else ""}
    text = (README / ("merged.md" if final else "adapter.md")).read_text(encoding="utf-8").format(**words)
    if facts.experts:
        text += "\n" + (README / "mixture.md").read_text(encoding="utf-8").format(**words)
    (out / "README.md").write_text(text, encoding="utf-8")
    (out / "export.json").write_text(json.dumps(card, indent=1, ensure_ascii=False), encoding="utf-8")
    return card


def _beside(path: Path, out: Path) -> bool:
    """Whether `path` is part of the same run folder as `out`, and so moves with it."""
    return out.resolve().parent in Path(path).resolve().parents
