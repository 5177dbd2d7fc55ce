"""One preference training in a process of its own, ours or TRL's, timed step by step; run by benchmarks/speed.py.

python benchmarks/speed_dpo.py ours|trl|trl-plain --steps 8 --out row.json
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("FABLESMITH_QUIET", "1")

from toolkit.hardware import PeakMemory, prepare_environment

prepare_environment(offline=True)


def pairs_of(count: int, longest: int):
    """Shipped English plots against their own damage, under the prompt that writers are given: about 120 tokens an answer."""
    from toolkit.judges import DATA
    from toolkit.models.load import load_tokenizer
    from toolkit.models.resolve import resolve
    from toolkit.narrative.damage import HARM, damage
    from toolkit.narrative.writing import write_prompt
    from toolkit.records import Plot, PreferencePair, guess_language, read_plots, read_premises

    tokenizer = load_tokenizer(resolve("embedded"))
    premises = {p.id: p.text for p in read_premises(DATA / "premises.jsonl").rows}
    plots = [
        Plot(**{**vars(p), "premise": premises.get(p.premise_id, "")}) for p in read_plots(DATA / "plots.jsonl").rows
    ]
    plots = [p for p in plots if p.premise and guess_language(p.text) == "en"]
    found = []
    for number, plot in enumerate(plots):
        worse = damage(plot, list(HARM)[number % len(HARM)], 0.7, plots, 1)
        if worse and len(tokenizer(worse.text)["input_ids"]) <= longest:
            found.append(
                PreferencePair(write_prompt(plot.premise)[-1]["content"], plot.text, worse.text, plot.premise_id)
            )
    return found[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "who", choices=("ours", "trl", "trl-plain"), help="trl: its defaults; trl-plain: our dtype, no checkpointing"
    )
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--last-layers", type=int, default=12, help="0 is all")
    parser.add_argument("--tokens", type=int, default=0, help="repeat the answers to this length (0: as they are)")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--model", default="embedded", help="of the embedded model's tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    import tempfile

    from transformers import TrainerCallback

    from toolkit.models.load import load_model, load_tokenizer, lora_config, pick_dtype
    from toolkit.models.resolve import resolve
    from toolkit.recipe import DpoSettings, LoraSettings, ModelSettings

    base = resolve(args.model)
    pairs = pairs_of(round(args.steps * args.batch / args.epochs), 170)
    if args.tokens:
        tokenizer = load_tokenizer(base)

        def stretch(text):
            ids = tokenizer(" ".join([text] * (1 + args.tokens // 60)))["input_ids"]
            return tokenizer.decode(ids[: args.tokens])

        pairs = [type(p)(p.prompt, stretch(p.chosen), stretch(p.rejected), p.premise_id) for p in pairs]
    lora = LoraSettings(16, 32, last_layers=args.last_layers)
    times, cpu, rows = [], [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.begun = time.perf_counter(), time.process_time()

        def on_step_end(self, *_, **__):
            times.append(time.perf_counter() - self.begun[0])
            cpu.append(time.process_time() - self.begun[1])

        def on_log(self, a, state, control, logs=None, **__):
            if logs and "loss" in logs:
                rows.append({k: float(logs[k]) for k in ("loss", "rewards/margins", "logps/chosen")})

    with PeakMemory() as memory, tempfile.TemporaryDirectory() as folder:
        if args.who == "ours":
            from toolkit.preference import dpo

            real = dpo.Log
            dpo.Log = lambda out, desc: _Both(real(out, desc), Clock())
            settings = DpoSettings(lora=lora, lr=1e-3, epochs=args.epochs, batch=args.batch, accumulate=1, max_tokens=8192,
                                   gradient_checkpointing=False, save_every=10_000)  # fmt: skip
            dpo.train_dpo(base, pairs, settings, ModelSettings(dtype=args.dtype), Path(folder))
        else:
            from datasets import Dataset
            from trl import DPOConfig, DPOTrainer

            from toolkit.preference.dpo import chat_row

            plain = args.who == "trl-plain"
            dtype = str(pick_dtype(args.dtype)).removeprefix("torch.") if plain else "float32"
            model = load_model(base, dtype=dtype)
            more = {"bf16": False, "gradient_checkpointing": False} if plain else {}
            config = DPOConfig(
                folder, per_device_train_batch_size=args.batch, num_train_epochs=args.epochs, learning_rate=1e-3, seed=1,
                data_seed=1, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
                max_length=None, **more)  # fmt: skip
            trainer = DPOTrainer(
                model, args=config, train_dataset=Dataset.from_list([chat_row(p) for p in pairs]), callbacks=[Clock()],
                processing_class=load_tokenizer(base), peft_config=lora_config(model, lora))  # fmt: skip
            trainer.train()
    row = {
        "who": args.who,
        "median_s": statistics.median(times),
        "median_cpu_s": statistics.median(cpu),
        "times": [round(t, 3) for t in times],
    }
    row |= {"peak_gb": round(memory.gb, 3), "losses": rows, "pairs": len(pairs)}
    args.out.write_text(json.dumps(row))
    print({k: v for k, v in row.items() if k != "losses"}, [round(r["loss"], 4) for r in rows])


class _Both:
    """Two callbacks as one."""

    def __init__(self, *parts):
        self.parts = parts

    def __getattr__(self, name):
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda *a, **k: [getattr(p, name)(*a, **k) for p in self.parts] and None


if __name__ == "__main__":
    main()
