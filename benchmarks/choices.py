"""The measurements behind our defaults (docs/results.md, "Choices made by measurement").

python benchmarks/choices.py gguf       which GGUF llama.cpp reads and writes fastest, and what quantising costs
python benchmarks/choices.py side       tokens a second for 1 … 16 sequences side by side
python benchmarks/choices.py dtype      float32 against bfloat16, forward and training
python benchmarks/choices.py layers [../shared/data/human-ratings/plots.jsonl]
python benchmarks/choices.py rater      the embedded model's ratings against plots of known order
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from toolkit.hardware import prepare_environment

prepare_environment()

DATA = Path(__file__).resolve().parents[1] / "toolkit" / "data"


def made_plots():
    from toolkit.records import guess_language, read_plots

    return [p for p in read_plots(DATA / "plots.jsonl").rows if guess_language(p.text) == "en"]


def gguf(_) -> None:
    import torch

    from toolkit.engines.llama import LlamaEngine
    from toolkit.export.gguf import convert
    from toolkit.export.proof import TEXT
    from toolkit.models.gguf_file import quantise
    from toolkit.models.load import load_model, weights_folder
    from toolkit.models.resolve import embedded_gguf, resolve
    from toolkit.narrative.writing import write_prompt

    model = resolve("embedded")
    with tempfile.TemporaryDirectory() as folder:
        files = {"the package's Q4_1": embedded_gguf(), "F16": Path(folder) / "F16.gguf"}
        convert(weights_folder(model), files["F16"])
        for kind in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"):
            files[kind] = Path(folder) / f"{kind}.gguf"
            quantise(files["F16"], files[kind], kind)
        network = load_model(model, dtype="float32")
        print(
            "| file | prompt of 512, tokens/s | 8 sequences side by side, tokens/s | error, nats a token |\n|---|---|---|---|"
        )
        for name, path in files.items():
            engine = LlamaEngine(path)
            prompt, best = list(range(300, 812)), 9.0
            for _ in range(5):
                started = time.perf_counter()
                list(engine._prefill([prompt], 0))
                best = min(best, time.perf_counter() - started)
            tokens = engine.chat_tokens(write_prompt("A net mender hears knocking.")) + engine.tokenize(TEXT)
            with torch.inference_mode():
                rows = network(torch.tensor([tokens])).logits[0].double()[:-1].log_softmax(-1)
            reference = rows.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].numpy()
            error = np.abs(engine.logps(tokens) - reference).mean()
            print(f"| {name} | {512 / best:.0f} | {decode_speed(engine, 8):.0f} | {error:.3f} |", flush=True)
            engine.close()


def decode_speed(engine, n: int, steps: int = 32) -> float:
    """Tokens a second, all sequences together, after a shared prompt of 100 tokens."""
    list(engine._prefill([list(range(300, 400))], 0))
    for sequence in range(1, n):
        engine.C.llama_memory_seq_cp(engine.memory, 0, sequence, -1, -1)
    started = time.perf_counter()
    for step in range(steps):
        engine._decode([(500 + step, 100 + step, sequence, True) for sequence in range(n)])
    return n * steps / (time.perf_counter() - started)


def side(_) -> None:
    from toolkit.engines.load import load_engine

    engine = load_engine("embedded")
    for n in (1, 2, 4, 8, 12, 16):
        print(f"{n} side by side: {decode_speed(engine, n):.0f} tokens/s", flush=True)


def dtype(_) -> None:
    import torch
    from peft import get_peft_model

    from toolkit.models.load import load_model, lora_config, pick_dtype
    from toolkit.models.resolve import resolve
    from toolkit.recipe import LoraSettings

    print(f"auto picks {pick_dtype()} here")
    ids = torch.randint(5, 40000, (4, 160))
    for name in ("float32", "bfloat16"):
        model = load_model(resolve("embedded"), dtype=name)
        with torch.inference_mode():
            forward = min(timed(lambda m=model: m.model(ids)) for _ in range(3))
        model = get_peft_model(model, lora_config(model, LoraSettings(r=8)))
        train = min(timed(lambda m=model: m(ids, labels=ids).loss.backward()) for _ in range(3))
        print(
            f"{name}: forward without head {ids.numel() / forward:.0f}, LoRA step {ids.numel() / train:.0f} tokens/s",
            flush=True,
        )


def timed(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def layers(people: Path | None) -> None:
    """Ridge on mean-pooled states of each layer, fitted to damage of train-side plots, tested on the test side."""
    import torch

    from toolkit.models.load import load_model, load_tokenizer
    from toolkit.models.resolve import resolve
    from toolkit.narrative.dimensions import HALF, KEYS, MIDDLE
    from toolkit.reward.data import anchored_groups, split_groups
    from toolkit.reward.model import AspectHead, pad
    from toolkit.reward.train import measure
    from toolkit.stats import spearman

    made = made_plots()
    train, test = split_groups(anchored_groups(made, [0.7], 1), {p.id: p.premise_id for p in made})
    rows = [json.loads(line) for line in people.read_text().splitlines()] if people else []
    network, tokenizer = load_model(resolve("embedded"), backbone=True), load_tokenizer(resolve("embedded"))
    chosen = (10, 13, 15, 17, 20, 23, 26, 30)

    @torch.inference_mode()
    def features(texts: list[str]) -> dict:
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        order, out = sorted(range(len(ids)), key=lambda i: len(ids[i])), {}
        for start in range(0, len(order), 16):
            picked = order[start : start + 16]
            batch = pad([ids[i] for i in picked], tokenizer.pad_token_id)
            states = network(**batch, output_hidden_states=True).hidden_states
            mask = batch["attention_mask"][..., None].float()
            last = batch["attention_mask"].sum(1) - 1
            for layer in chosen:
                hidden = states[layer].float()
                pooled = (hidden * mask).sum(1) / mask.sum(1)
                out.setdefault((layer, "mean"), np.zeros((len(ids), hidden.shape[-1]), np.float32))[picked] = pooled
            at_end = states[30].float()[torch.arange(len(picked)), last]
            out.setdefault((30, "last token"), np.zeros((len(ids), at_end.shape[-1]), np.float32))[picked] = at_end
        return out

    seen, held_out = (features([t for g in groups for t in g.texts]) for groups in (train, test))
    judged = features([r["text"] for r in rows]) if rows else {}
    targets = (np.array([t for g in train for t in g.targets]) - MIDDLE) / HALF
    print("| layer | held-out pair accuracy, mean of five | Spearman with people's coherence |\n|---|---|---|")
    for key, table in seen.items():
        head = AspectHead(table.shape[1])
        head.fit_ridge(table, targets, np.ones(len(table)), 1000.0)
        score = lambda x, head=head: head(torch.from_numpy(x)).detach().numpy()  # noqa: E731
        accuracy = np.mean([v["accuracy"][0] for v in measure(score(held_out[key]), test).values()])
        rho = (
            spearman(score(judged[key])[:, KEYS.index("coherence")], [r["mean"]["coherence"] for r in rows])
            if rows
            else 0
        )
        print(f"| {key[0]}, {key[1]} | {accuracy:.2f} | {rho:+.2f} |")


def rater(_) -> None:
    from toolkit.engines.load import load_engine
    from toolkit.feedback.ratings import check_rater

    with tempfile.TemporaryDirectory() as folder:
        found = check_rater(load_engine("embedded"), made_plots(), 15, 1, Path(folder) / "check.jsonl")
    print(json.dumps(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["gguf", "side", "dtype", "layers", "rater"])
    parser.add_argument("people", nargs="?", type=Path, help="for layers: JSONL of people's ratings")
    args = parser.parse_args()
    {"gguf": gguf, "side": side, "dtype": dtype, "layers": layers, "rater": rater}[args.what](args.people)
