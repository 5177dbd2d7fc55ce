"""Every training on a tiny model, for one process or several: `torchrun --nproc-per-node 2 tests/several.py train TINY OUT`.

Also a launch of which one process fails, and one that waits for ever; tests/test_together.py starts them.
"""

import hashlib
import sys
import time
from dataclasses import replace
from pathlib import Path

from toolkit.hardware import prepare_environment

prepare_environment(offline=True)

from toolkit import together  # noqa: E402
from toolkit.errors import UserError  # noqa: E402

NAMES = "Ada Bo Cy Di Eve Flo Gus Hal".split()
GOOD = [f"May the lamp {name} lit burn on" + ", and on" * i + "." for i, name in enumerate(NAMES)]
FLAT = [f"Um, {name}" + ", luck" * (i % 3) + "." for i, name in enumerate(NAMES)]
RISKS = [0.9, 0.1, 0.5, 0.0, 1.0, 0.3, 0.7, 0.2]
STEPS = {"batch": 4, "epochs": 3.0, "lr": 5e-3, "save_every": 4}


def parts():
    from toolkit.models.anchor import Held
    from toolkit.recipe import LoraSettings, ModelSettings, SafetySettings

    held = Held(RISKS, SafetySettings(signal="constant"))
    return LoraSettings(8, 16), ModelSettings(dtype="float32"), held


def pairs():
    from toolkit.records import PreferencePair

    return [PreferencePair(f"Wish {n} well.", g, f, premise_id=n) for n, g, f in zip(NAMES, GOOD, FLAT, strict=True)]


def sft(tiny, out, held=False):
    from toolkit.models.sft import train_sft
    from toolkit.recipe import SftSettings

    lora, weights, holds = parts()
    rows = [(p.prompt, p.chosen) for p in pairs()]
    settings = SftSettings(lora, **{**STEPS, "batch": 2}, accumulate=2)
    return train_sft(tiny, rows, settings, weights, out, held=holds if held else None)


def pairwise(tiny, out):
    from toolkit.recipe import PairwiseSettings
    from toolkit.reward.pairwise import train_pairwise

    lora, weights, _ = parts()
    return train_pairwise(tiny, pairs(), pairs(), PairwiseSettings(lora, **STEPS), weights, out)


def reward(tiny, out):
    import torch

    from toolkit.models.load import fingerprint
    from toolkit.recipe import RewardSettings
    from toolkit.reward.data import Group
    from toolkit.reward.model import RewardConfig, new_reward_model
    from toolkit.reward.train import train_reward

    lora, _, _ = parts()
    groups = []
    for i, (good, flat) in enumerate(zip(GOOD, FLAT, strict=True)):
        # unlike in number, trust and in whether their level counts: a mean of means would not do
        groups.append(Group(str(i), absolute=i % 3 > 0))
        groups[-1].add(good, [8.0] * 5, 1.0, "x")
        groups[-1].add(flat, [3.0] * 5, 0.2 + i, "x")
        if i % 2:
            groups[-1].add(f"{flat} {good}", [5.0] * 5, 0.5, "x")
    torch.manual_seed(1)
    lora = replace(lora, last_layers=1)
    model = new_reward_model(RewardConfig(str(tiny.weights), fingerprint(tiny), dtype="float32"), lora)
    model.keep_lower([t for g in groups for t in g.texts])
    train_reward(model, groups, RewardSettings(lora=lora, **STEPS), out)
    assert model.lower, "layers below the adapter were to be kept"
    if not together.rank():
        model.save(out)
    return {}


def dpo(tiny, out, held=False, start=None):
    from toolkit.preference.dpo import train_dpo
    from toolkit.recipe import DpoSettings

    lora, weights, holds = parts()
    settings = DpoSettings(lora=lora, **STEPS, accumulate=1)
    return train_dpo(tiny, pairs(), settings, weights, out, held=holds if held else None, start=start)


def grpo(tiny, out, held=False):
    import torch
    from transformers import LlamaForCausalLM

    from toolkit.preference.grpo import train_grpo
    from toolkit.recipe import GrpoSettings

    lora, weights, holds = parts()
    real = LlamaForCausalLM.generate

    def written(self, input_ids, **kwargs):
        """Answers that depend on the prompt and on which of its answers it is, not on who writes them."""
        seen, rows = {}, []
        for row in input_ids.tolist():
            key = str([t for t in row if t != 2])
            seen[key] = seen.get(key, 0) + 1
            drawn = hashlib.sha256(f"{key}{seen[key]}".encode()).digest()[:12]
            rows.append([*row, *(100 + b for b in drawn), 2])
        return torch.tensor(rows)

    LlamaForCausalLM.generate = written
    try:
        letters = [("letters", lambda prompts, answers: [float(a.count("e")) for a in answers], 1.0)]
        requests = [{"prompt": p.prompt} for p in pairs()]
        settings = GrpoSettings(batch=2, samples=4, mini_batch=4, updates=1, epochs=2, lr=5e-3, beta=0.1, max_tokens=16)
        return train_grpo(
            tiny, requests, [] if together.rank() else letters, lambda p, a: ["short"] * (len(a) < 30), settings,
            weights, out, lora=lora, held=holds if held else None,
        )  # fmt: skip
    finally:
        LlamaForCausalLM.generate = real


def from_start(tiny, out):
    return dpo(tiny, out, start=out.parent / "sft" / "adapter")


TRAININGS = {
    "sft": sft,
    "sft held": lambda tiny, out: sft(tiny, out, held=True),
    "pairwise": pairwise,
    "reward": reward,
    "dpo held": lambda tiny, out: dpo(tiny, out, held=True),
    "dpo from an adapter": from_start,
    "grpo": grpo,
    "grpo held": lambda tiny, out: grpo(tiny, out, held=True),
}


def train(folder: str, out: str) -> None:
    from toolkit.models.resolve import resolve

    with together.Processes() as processes:
        for name, training in TRAININGS.items():
            (Path(out) / name).mkdir(parents=True, exist_ok=True)
            with processes.together(name):
                training(resolve(folder), Path(out) / name)


def fail(which: str) -> None:
    """One process has a user's error within a training, while the other waits for it."""
    import torch

    with together.Processes() as processes, processes.together("training"):
        if processes.rank == int(which):
            raise UserError("it cannot be")
        torch.distributed.barrier()


def wait() -> None:
    """The first process works, the second waits to be told."""
    with together.Processes() as processes:
        print("waiting", flush=True)
        if processes.rank:
            processes.told("training")
        time.sleep(600)


if __name__ == "__main__":
    try:
        {"train": train, "fail": fail, "wait": wait}[sys.argv[1]](*sys.argv[2:])
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
