"""What `fablesmith fit` predicts against measured peaks of resident memory, one stage a process, on the CPU.

    python benchmarks/fit_against_measured.py            # every case, a Markdown table
    python benchmarks/fit_against_measured.py dpo reward # some
    python benchmarks/fit_against_measured.py --run runs/quickstart   # the stages of a run that is done

A case trains two steps on texts of a known number of tokens, with the stage's own code. PeakMemory samples what the process holds
five times a second: its imports too, which is what a user's machine must have. Weights are made on first use.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("FABLESMITH_QUIET", "1")

from toolkit.recipe import (
    DpoSettings,
    GrpoSettings,
    LoraSettings,
    ModelSettings,
    PairwiseSettings,
    Recipe,
    RewardSettings,
    SafetySettings,
    SftSettings,
    TripwireSettings,
)

ATTENTION = LoraSettings(targets=("q_proj", "k_proj", "v_proj", "o_proj"))
LAST = LoraSettings(r=16, alpha=32, last_layers=12)
WORD = " stone"  # one token of the embedded tokenizer


@dataclass(frozen=True)
class Case:
    """A stage of a recipe whose texts have `tokens` tokens (with the chat template's own)."""

    stage: str
    tokens: int
    recipe: Recipe


def recipe(model: ModelSettings, **sections) -> Recipe:
    return Recipe(name="measured", model=model, tripwire=TripwireSettings(every=0), **sections)


F32 = ModelSettings(dtype="float32")
BF16 = ModelSettings(dtype="bfloat16")
NF4 = ModelSettings(dtype="float32", four_bit=True)
MOE = ModelSettings(id="embedded-moe", dtype="float32", four_bit=True)
HELD = SafetySettings(signal="constant")
DPO = DpoSettings(lora=LAST, batch=2, accumulate=1, epochs=0.5, gradient_checkpointing=False)
GRPO = Recipe(
    task="greeting",
    align="grpo",
    model=F32,
    sft=SftSettings(lora=LAST),
    grpo=GrpoSettings(batch=8, mini_batch=8, updates=2, steps=2, max_tokens=112, gradient_checkpointing=False),
    tripwire=TripwireSettings(every=0),
)
CASES = {
    "dpo": Case("dpo", 240, recipe(F32, dpo=DPO)),
    "dpo-checkpointed": Case("dpo", 384, recipe(F32, dpo=DpoSettings(batch=2, accumulate=1, epochs=0.5))),
    "dpo-nf4": Case("dpo", 240, recipe(NF4, dpo=replace(DPO, gradient_checkpointing=True))),
    "dpo-long": Case("dpo", 640, recipe(F32, dpo=replace(DPO, gradient_checkpointing=True, max_tokens=700))),
    "reward": Case(
        "reward",
        256,
        recipe(F32, reward=RewardSettings(lora=LoraSettings(8, 16, 6), gradient_checkpointing=False)),
    ),
    "reward-bf16": Case(
        "reward",
        256,
        recipe(BF16, reward=RewardSettings(lora=LoraSettings(8, 16, 6), gradient_checkpointing=False)),
    ),
    "dpo-bf16": Case("dpo", 384, recipe(BF16, dpo=DpoSettings(batch=2, accumulate=1, epochs=0.5))),
    "sft": Case(
        "sft", 320, Recipe(task="greeting", model=F32, sft=SftSettings(lora=LAST, gradient_checkpointing=False))
    ),
    "pairwise": Case("pairwise", 320, Recipe(task="greeting", model=F32, pairwise=PairwiseSettings(lora=LAST))),
    "grpo": Case("grpo", 232, GRPO),
    "grpo-held": Case("grpo", 232, replace(GRPO, safety=HELD)),
    "dpo-held": Case("dpo", 240, recipe(F32, dpo=DPO, safety=HELD)),
    "sft-held": Case(
        "sft",
        320,
        recipe(
            F32, task="instruct", align="sft", sft=SftSettings(lora=LAST, gradient_checkpointing=False), safety=HELD
        ),
    ),
    "dpo-moe-nf4": Case("dpo", 240, recipe(MOE, dpo=DpoSettings(lora=ATTENTION, batch=1, accumulate=1, epochs=0.25))),
}


def text(tokens: int) -> str:
    return "The" + WORD * (tokens - 1)


def template() -> int:
    """Tokens of a prompt of `pairs` with the chat template around it."""
    from toolkit.models.load import load_tokenizer
    from toolkit.models.resolve import resolve

    asked = [{"role": "user", "content": "Write 0."}]
    return len(
        load_tokenizer(resolve("embedded")).apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    )


def pairs(tokens: int, count: int = 8):
    """Pairs whose longer text has `tokens` tokens with prompt and template (two end the answer's turn)."""
    from toolkit.records import PreferencePair

    room = tokens - template() - 2
    return [PreferencePair(f"Write {i}.", text(room - i % 2), text(room - 1 + i % 2)) for i in range(count)]


def held(recipe: Recipe):
    """What holds each of the `pairs` to its reference, or None."""
    from toolkit.models.anchor import Held

    return None if recipe.safety.signal == "none" else Held([1.0] * 8, recipe.safety)


def work(case: Case, out: Path) -> None:
    """The stage's own training code on made-up texts."""
    from toolkit.models.resolve import resolve

    r, model = case.recipe, resolve(case.recipe.model.id)
    if case.stage == "dpo":
        from toolkit.preference.dpo import train_dpo

        train_dpo(model, pairs(case.tokens), r.dpo, r.model, out, held=held(r))
    elif case.stage == "sft":
        from toolkit.models.sft import train_sft

        rows = [(p.prompt, p.chosen) for p in pairs(case.tokens)]
        train_sft(model, rows, replace(r.sft, epochs=1), r.model, out, held=held(r))
    elif case.stage == "pairwise":
        from toolkit.reward.pairwise import train_pairwise

        train_pairwise(model, pairs(case.tokens), [], replace(r.pairwise, epochs=1), r.model, out)
    elif case.stage == "reward":
        from toolkit.models.load import fingerprint
        from toolkit.reward.data import Group
        from toolkit.reward.model import RewardConfig, new_reward_model
        from toolkit.reward.train import train_reward

        config = RewardConfig(model.id, fingerprint(model), r.reward.depth, dtype=r.model.dtype)
        rm, rating = new_reward_model(config, r.reward.lora), [5.0] * 5
        groups = [Group(str(i), texts=[text(case.tokens - n) for n in range(7)], targets=[rating] * 7, weights=[1.0] * 7, origins=["x"] * 7) for i in range(4)]  # fmt: skip
        train_reward(rm, groups, replace(r.reward, epochs=1), out)
    elif case.stage == "grpo":
        from toolkit.models.sft import train_sft
        from toolkit.preference.grpo import train_grpo

        asked = [{"prompt": text(80) + str(i)} for i in range(8)]
        train_sft(model, [("Write.", text(20))], replace(r.sft, epochs=1), r.model, out / "start")
        paid = [("length", lambda prompts, answers: [float(len(a)) for a in answers], 1.0)]
        start = out / "start" / "adapter"
        train_grpo(model, asked, paid, lambda p, a: [], r.grpo, r.model, out / "grpo", start=start, held=held(r))


def predict(case: Case) -> dict[str, float]:
    """GiB of RAM by part, as `fit` says for this stage with texts of this length."""
    from toolkit.memory import Run

    class Known(Run):
        def tokens(self, stage: str) -> int:
            return case.tokens

        def rated_states(self) -> float:
            return 0.0  # 28 texts

        def pair(self) -> tuple[int, int, int]:
            prompt = template()
            return prompt, case.tokens - prompt, case.tokens - prompt - 1

    run = Known(case.recipe, 0.0)
    parts = run.use(case.stage).ram
    return {name: size for name, size in parts.items() if name != "reward model"}  # none of the cases is paid by one


def measure(name: str) -> dict:
    from toolkit.hardware import PeakMemory, prepare_environment

    prepare_environment(offline=True)
    case = CASES[name]
    with tempfile.TemporaryDirectory() as out, PeakMemory() as memory:
        work(case, Path(out))
    parts = predict(case)  # afterwards: it imports and counts too
    return {"case": name, "measured": memory.gb, "predicted": sum(parts.values()), "parts": parts}


def main(names: list[str]) -> None:
    print("| case | measured GiB | predicted GiB | off | parts |\n|---|---|---|---|---|")
    for name in names or CASES:
        done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True)
        if done.returncode:
            print(f"| {name} | failed | | | {done.stderr.strip().splitlines()[-1]} |", flush=True)
            continue
        row = json.loads(done.stdout.strip().splitlines()[-1])
        off = row["predicted"] / row["measured"] - 1
        parts = ", ".join(f"{k} {v:.2f}" for k, v in row["parts"].items())
        print(f"| {name} | {row['measured']:.2f} | {row['predicted']:.2f} | {off:+.0%} | {parts} |", flush=True)


def of_run(folder: Path) -> None:
    """Stages of a finished run: what each recorded as its peak, beside the prediction for its recipe without a card."""
    from toolkit.memory import Run
    from toolkit.recipe import load_recipe
    from toolkit.runner import CARD, plan

    stated = lambda d: {k: stated(v) if isinstance(v, dict) else v for k, v in d.items() if v != []}  # noqa: E731
    with tempfile.TemporaryDirectory() as made:  # a recipe does not name what is empty
        (Path(made) / "recipe.yaml").write_text(json.dumps(stated(json.loads((folder / "recipe.json").read_text()))))
        recipe = load_recipe(str(Path(made) / "recipe.yaml"))
    run = Run(recipe, 0.0)
    print("| stage | measured GiB | predicted GiB | off |\n|---|---|---|---|")
    names = [stage.name for stage in plan(recipe)]
    for at, name in enumerate(names):
        if (card := folder / name / CARD).is_file():
            peak, told = json.loads(card.read_text())["peak_gb"], sum(run.use(name, names[:at]).ram.values())
            print(
                f"| {name} | {peak:.2f} | {told:.2f} | {told / peak - 1:+.0%} |"
                if peak > 0.2
                else f"| {name} | under 0.2 | {told:.2f} | |"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        sys.exit(of_run(Path(sys.argv[2])))
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main(sys.argv[1:])
