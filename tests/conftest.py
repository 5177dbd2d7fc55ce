"""A tiny random model with the embedded model's tokenizer, so that the whole road runs in seconds."""

import json
import os

os.environ.setdefault("FABLESMITH_QUIET", "1")
os.environ["FABLESMITH_VERDICTS"] = "off"  # what is tested is judged
if "PYTEST_XDIST_WORKER" in os.environ:  # a process a core: two threads in each would only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from toolkit.hardware import prepare_environment

prepare_environment(offline=True)

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

PLOTS = Path(__file__).resolve().parents[1] / "toolkit" / "data" / "plots.jsonl"
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no process is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Folder of a Llama of 4 layers × 64, seeded and taught the shipped plots for seconds: it babbles in sentences."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from toolkit.models.load import load_tokenizer
    from toolkit.models.resolve import resolve

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = load_tokenizer(resolve("embedded"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config)
    text = " ".join(
        json.loads(line)["sentences"][0] for line in PLOTS.read_text().splitlines() if "zh" not in line[:20]
    )
    ids = torch.tensor(tokenizer(text)["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        batch = torch.stack([ids[at : at + 48] for at in torch.randint(0, len(ids) - 48, (8,)).tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_gguf(tiny, tmp_path_factory) -> Path:
    """The tiny model as an f16 GGUF."""
    from toolkit.export.gguf import convert

    path = tmp_path_factory.mktemp("tiny-gguf") / "tiny.gguf"
    convert(tiny, path)
    return path


@pytest.fixture(scope="session")
def tiny_moe(tiny, tmp_path_factory) -> Path:
    """Folder of the tiny model upcycled to a mixture of 4 experts, 2 active, in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from toolkit.models.upcycle import upcycle

    folder = tmp_path_factory.mktemp("tiny-moe")
    upcycle(AutoModelForCausalLM.from_pretrained(tiny)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def tiny_recipe(tiny: Path, gguf: Path) -> list[str]:
    """Overrides that shrink the quickstart to the tiny model: every stage runs, in seconds."""
    return [
        f"model.id={tiny}",
        f"model.gguf={gguf}",
        "model.dtype=float32",
        f"ratings.rater={gguf}",
        f"evaluate.judge={gguf}",
        "premises.train=6",
        "premises.test=3",
        "candidates.per_premise=3",
        "candidates.max_tokens=64",
        "ratings.reason=3",
        "ratings.check=2",
        "reward.depth=0.5",
        "reward.epochs=0.2",
        "reward.save_every=2",
        "reward.lora.last_layers=1",
        "pairs.margin=0.0",
        "pairs.agree=0.0",
        "pairs.prompts=ignore",
        "pairs.length_ratio=50",
        "pairs.max_pairs=8",
        "dpo.lora.last_layers=2",
        "dpo.lr=5e-3",
        "dpo.save_every=2",
        "tripwire.every=4",
        "tripwire.prompts=2",
        "evaluate.per_premise=1",
        "evaluate.passport=skip",
        "evaluate.panel=1",
    ]
