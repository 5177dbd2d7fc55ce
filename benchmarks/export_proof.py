"""How far what is handed out stays from what was trained: a short DPO, then every way of exporting it, proved.

python benchmarks/export_proof.py embedded-moe [--four-bit] [--experts] [--steps 8] [--keep FOLDER]

The pairs are well-made plots against the same plots with their sentences shuffled; what is learnt does not matter here, only that
both programs see it alike. The base's GGUF is made in each quantisation; the proof's limits are lifted, so that figures
beyond them are printed too.
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toolkit.hardware import prepare_environment

prepare_environment(offline=True)

from toolkit.export import proof  # noqa: E402
from toolkit.export.gguf import adapter_to_gguf, base_to_gguf, convert  # noqa: E402
from toolkit.export.merge import merge_adapter  # noqa: E402
from toolkit.models.gguf_file import quantise  # noqa: E402
from toolkit.models.load import weights_folder  # noqa: E402
from toolkit.models.resolve import resolve  # noqa: E402
from toolkit.preference.dpo import train_dpo  # noqa: E402
from toolkit.recipe import DpoSettings, LoraSettings, ModelSettings  # noqa: E402
from toolkit.records import PreferencePair  # noqa: E402

PLOTS = Path(__file__).resolve().parents[1] / "toolkit" / "data" / "plots.jsonl"
KINDS = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")
PLAIN = ("q_proj", "k_proj", "v_proj", "o_proj")


def pairs(n: int) -> list[PreferencePair]:
    found = []
    for line in PLOTS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        sentences = row["sentences"][:3]
        if len(found) < n and len(sentences) == 3 and " ".join(sentences).isascii():
            worse = random.Random(len(found)).sample(sentences[0].split(), len(sentences[0].split()))
            found.append(
                PreferencePair(
                    f"Write a plot about {row.get('premise', 'a lamp')}", " ".join(sentences), " ".join(worse)
                )
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="embedded-moe")
    parser.add_argument("--four-bit", action="store_true")
    parser.add_argument("--experts", action="store_true", help="LoRA on the MLPs or experts too")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--keep", type=Path, help="a folder to work in, instead of a temporary one")
    args = parser.parse_args()
    proof._within = lambda reference, measured, *_: round(float(abs(reference - measured).mean()), 5)
    proof.CORRELATION = {"exact": -1.0, "rounded": -1.0}
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        base, adapter = resolve(args.model), folder / f"dpo-{'4bit' if args.four_bit else 'f32'}" / "adapter"
        weights = ModelSettings(four_bit=args.four_bit, dtype="float32")
        if not adapter.exists():
            more = ("gate_proj", "up_proj", "down_proj") if args.experts else ()
            settings = DpoSettings(
                lora=LoraSettings(r=8, alpha=16, targets=PLAIN + more),
                lr=args.lr,
                batch=1,
                accumulate=1,
                epochs=1.0,
                max_tokens=256,
            )
            facts = train_dpo(base, pairs(args.steps), settings, weights, adapter.parent)
            print({k: facts[k] for k in facts if "loss" in k or "margin" in k or k == "steps"})
        files = {}
        for kind in args.kinds.split(","):
            files[kind] = folder / f"base-{kind}.gguf"
            if not files[kind].is_file():
                base_to_gguf(weights_folder(base), kind, files[kind])
        merge_adapter(base, adapter, folder / "merged")
        f16 = folder / f"{adapter.parent.name}-f16.gguf"
        if not f16.is_file():
            convert(folder / "merged", f16)
        adapter_to_gguf(adapter, files["F16"], folder / "adapter.gguf")
        print(f"{args.model}, torch in {'nf4' if args.four_bit else 'float32'}")
        print(f"{'handed out':<22}{'from trained':>13}{'from base':>11}{'correlation':>13}{'off by':>8}  text")
        told = {"base": base, "adapter": adapter, "adapter_gguf": folder / "adapter.gguf", "four_bit": args.four_bit}
        for kind, file in files.items():
            whole = f16 if kind == "F16" else folder / f"merged-{kind}.gguf"
            if kind != "F16":
                quantise(f16, whole, kind)
            for name, merged in ((f"merged {kind}", whole), (f"adapter on {kind}", None)):
                found = proof.prove_export(**told, base_gguf=file, merged=merged, kind=kind)
                print(
                    f"{name:<22}{found['mean_difference']:>13.4f}{found['mean_change_from_base']:>11.4f}"
                    f"{found['adapter_change_correlation']:>13.3f}{found['adapter_mean_difference']:>8.4f}"
                    f"  {'differs' if found['greedy_text_differs_from_base'] else 'same'}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
