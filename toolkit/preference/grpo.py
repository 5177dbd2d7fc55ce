"""GRPO (Shao et al. 2024, arXiv 2402.03300) with LoRA on TRL's GRPOTrainer: rewards from models, and a guard for form.

Each round writes `samples` answers to `batch` requests; an answer's advantage is its reward less its group's mean, over the
group's standard deviation; the loss is a mean over each answer's tokens, clipped at 1 ± 0.2, plus β times the KL divergence
from the start (low-variance estimator k3, as published: without TRL's importance correction of that term).
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from toolkit import together
from toolkit.engines.base import defused
from toolkit.errors import UserError
from toolkit.models.anchor import Anchor, Held, answer_terms, last_states, row_sums, trace
from toolkit.models.load import load_tokenizer
from toolkit.models.resolve import Model
from toolkit.models.training import Agree, FirstGradients, Log, in_float32, last_checkpoint, policy, trainer_settings
from toolkit.models.unsloth_road import FROM_ADAPTER, OWN_LOSS, take
from toolkit.preference.tripwire import Tripwire
from toolkit.progress import say
from toolkit.recipe import GrpoSettings, LoraSettings, ModelSettings

Reward = Callable[[list[str], list[str]], list[float | None]]
Guard = Callable[[str, str], list[str]]
SCALES = "scales.json"


class Rewards:
    """What pays for an answer: the weighted sum of standardised rewards, less `off` where the guard finds a fault.

    Each reward is standardised by the mean and the deviation of its first round of answers, so that weights compare like
    with like and 1 is one deviation of the start; these figures are kept in `file`, so that a resumed training pays the same.
    An answer a reward has no number for gets the lowest of its group: it must not pay to be unreadable. A group without any
    number pays 0 all round, which teaches nothing.

    Args:
        rewards: (name, (prompts, answers) → numbers or None, weight).
        guard: (prompt, answer) → what is wrong with its form; nothing when all is well.
        samples: answers of one group stand together, so many of them.
    """

    def __init__(self, rewards: list[tuple[str, Reward, float]], guard: Guard, off: float, samples: int, file: Path):
        self.rewards, self.guard, self.off, self.samples, self.file = rewards, guard, off, samples, file
        self.scales = json.loads(file.read_text()) if file.exists() else {}

    def __call__(self, prompts: list[str], answers: list[str]) -> tuple[list[float], dict[str, float]]:
        """(what each answer gets (N,), figures of the round for the log). Raises UserError for a reward without any number."""
        total, notes = np.zeros(len(answers)), {}
        for name, reward, weight in self.rewards:
            values = np.array([math.nan if v is None else v for v in reward(prompts, answers)], float)
            known = values[np.isfinite(values)]
            notes[f"{name}/missing"] = 1 - len(known) / len(values)
            if name not in self.scales:
                if not len(known):
                    raise UserError(
                        f"reward {name!r} gave none of the first {len(values)} answers a number",
                        "look at what the judge answers",
                    )
                self.scales[name] = [float(known.mean()), float(known.std()) if np.ptp(known) > 1e-9 else 1.0]
            if len(known):
                notes[f"{name}/mean"] = float(known.mean())
            mean, deviation = self.scales[name]
            total += weight * (_filled(values, self.samples, mean) - mean) / deviation
        if not self.file.exists():
            self.file.write_text(json.dumps(self.scales, indent=1))
        faults = [self.guard(p, a) for p, a in zip(prompts, answers, strict=True)]
        for reason, count in Counter(r for found in faults for r in dict.fromkeys(found)).items():
            notes[f"guard/{reason}"] = float(count)
        notes["guard/any"] = float(sum(map(bool, faults)))
        return (total - self.off * np.array([bool(f) for f in faults])).tolist(), notes


def _filled(values: np.ndarray, samples: int, mean: float) -> np.ndarray:
    """Missing values (not finite) → the lowest of their group of `samples`; `mean` where a group has none."""
    out = values.copy()
    for group in out.reshape(-1, samples):  # views: writing to them writes to `out`
        known = np.isfinite(group)
        group[~known] = group[known].min() if known.any() else mean
    return out


def shape(settings: GrpoSettings, requests: int) -> dict[str, int]:
    """How a round is cut: {"batch": requests a round, "mini_batch": answers a forward pass, "accumulate": passes a step}.

    Fewer requests than a round takes make smaller rounds; a mini-batch that does not divide a step's answers gives way to the
    next smaller one that does. Several processes share a step's answers.

    Raises UserError where a round cannot be split into `settings.updates` equal steps, or a step among the processes.
    """
    batch = min(settings.batch, requests)
    answers = batch * settings.samples
    if answers % settings.updates:
        raise UserError(
            f"grpo: {batch} requests × {settings.samples} samples cannot be split into {settings.updates} equal steps",
            "choose grpo.updates so that it divides their product",
        )
    a_step, rest = divmod(answers // settings.updates, together.count())
    if rest:
        raise UserError(
            f"{together.count()} processes cannot share a step of {answers // settings.updates} answers "
            f"({batch} requests × {settings.samples} samples / {settings.updates} updates)",
            "start as many processes as divide it, or change grpo.batch, samples or updates",
        )
    mini = next(n for n in range(min(settings.mini_batch, a_step), 0, -1) if a_step % n == 0)
    return {"batch": batch, "mini_batch": mini, "accumulate": a_step // mini}


def rounds_of(requests: int, places: int, seed: int) -> list[int]:
    """Which request stands where, (places): one shuffle of all after the other, so that none is left over at an epoch's end.

    TRL's own sampler begins its first epoch again where a training is resumed in a later one, and drops a last round that is
    not full.
    """
    rng = np.random.default_rng(seed)
    turns = [rng.permutation(requests) for _ in range(math.ceil(places / requests))]
    return np.concatenate(turns)[:places].tolist()


def train_grpo(
    base: Model,
    requests: list[dict],
    rewards: list[tuple[str, Reward, float]],
    guard: Guard,
    settings: GrpoSettings,
    weights: ModelSettings,
    out: Path,
    seed: int = 1,
    start: Path | None = None,
    tripwire: Tripwire | None = None,
    lora: LoraSettings = LoraSettings(),  # noqa: B008 (frozen)
    held: Held | None = None,
) -> dict:
    """Train `base` to write what the rewards pay for; the adapter lands in out/adapter. Goes on from the last checkpoint in `out`.

    Args:
        requests: {"prompt": the whole user turn, …}; those above settings.prompt_tokens are left out and counted.
        rewards: (name, (prompts, answers) → numbers, None where there is none, weight); asked once a round, all at once.
        guard: (prompt, answer) → faults of form; any costs settings.guard deviations of the reward.
        start: an adapter to go on from; also what the KL divergence is measured from.
        lora: of a new adapter, where there is no start.
        held: what holds the answers to a request to the safe reference: with risk s its advantages count α, and β times the mean
            over an answer's tokens of KL(π_ref ‖ π), whole vocabulary, is added. (`settings.beta` is GRPO's own, for all alike.)
        tripwire: stops when reward climbs while what it does not see falls; the adapter is then the last good one.

    Returns:
        Facts (of several processes only the first has any): requests, too_long, rounds, steps, answers, tokens, seconds {writing, rewards, update}, written_by, reward
        [first, last] and of each reward by its name, flat_groups (share of groups with equal rewards: no gradient), kl and
        clipped_length [first, last], guard {reason: count}, missing {reward: share}, scales {reward: [mean, deviation]},
        the tripwire's, and beta and kl_held where held. Steps that a kill undid are not in them.

    Raises:
        UserError: no request is short enough; a round cannot be split; a reward gave no number.
    """
    road = take(base, weights, OWN_LOSS if held else FROM_ADAPTER if start else "")
    from datasets import Dataset
    from transformers import PrinterCallback, set_seed
    from trl import GRPOConfig

    tokenizer = load_tokenizer(base)
    turns = [defused([{"role": "user", "content": r["prompt"]}], tokenizer.all_special_tokens) for r in requests]
    lengths = [
        len(tokenizer.apply_chat_template(t, add_generation_prompt=True, enable_thinking=False, return_dict=False))
        for t in turns
    ]
    risks = [{"risk": s} for s in held.risks] if held else [{}] * len(requests)
    kept = [
        {"prompt": t, "asked": r["prompt"], **s}
        for t, r, n, s in zip(turns, requests, lengths, risks, strict=True)
        if n <= settings.prompt_tokens
    ]
    if not kept:
        raise UserError(
            f"none of the {len(requests)} requests is within grpo.prompt_tokens = {settings.prompt_tokens} "
            f"(shortest: {min(lengths, default=0)})",
            "raise grpo.prompt_tokens",
        )
    cut = shape(settings, len(kept))
    steps = settings.steps or math.ceil(settings.epochs * len(kept) / cut["batch"]) * settings.updates
    order = rounds_of(len(kept), cut["batch"] * math.ceil(steps / settings.updates), seed)
    resumed = last_checkpoint(out)
    if resumed is None and not together.rank():  # an attempt that left no checkpoint starts over, its scales too
        (out / SCALES).unlink(missing_ok=True)
    pays = Rewards(rewards, guard, settings.guard, settings.samples, out / SCALES)

    def reward(prompts, completions, asked, log_metric, **_) -> list[float]:
        values, notes = together.asked_of_first(pays, asked, [c[0]["content"].strip() for c in completions])
        for name, value in notes.items():
            log_metric(name, value)
        return values

    set_seed(seed)
    model, fresh = policy(
        base, weights, lora, settings.gradient_checkpointing, start, road, settings.prompt_tokens + settings.max_tokens
    )
    vllm = settings.vllm == "auto" and vllm_is_there()
    args = trainer_settings(
        out,
        seed=seed,
        save_every=math.ceil(settings.save_every / settings.updates) * settings.updates,  # between rounds only
        per_device_train_batch_size=cut["mini_batch"],
        gradient_accumulation_steps=cut["accumulate"],
        generation_batch_size=cut["batch"] * settings.samples,
        num_generations=settings.samples,
        num_train_epochs=1,
        max_steps=steps,
        shuffle_dataset=False,
        learning_rate=settings.lr,
        lr_scheduler_type="constant",  # not published; chosen so that where it stops does not change how it got there
        gradient_checkpointing=False,
        gradient_checkpointing_kwargs={"use_reentrant": False},  # TRL switches it off to write, and on again with these
        bf16=False,
    )
    anchor = Anchor(held.settings, out) if held else None
    trainer = _trainer_class(anchor)(
        model=model,
        reward_funcs=[reward],
        args=GRPOConfig(
            **args,
            beta=settings.beta,
            loss_type="grpo",
            scale_rewards="group",
            num_iterations=1,
            use_bias_correction_kl=False,
            # an unfinished answer is a fault of form: it must stay in, or nothing would teach to come to an end. Without
            # a guard it is left out, since its reward is of a text that its writer did not end
            mask_truncated_completions=not settings.guard,
            max_completion_length=settings.max_tokens,
            temperature=settings.temperature,
            chat_template_kwargs={"enable_thinking": False},
            generation_kwargs=None if vllm else {"use_cache": True},
            use_vllm=vllm,
            vllm_max_model_length=settings.prompt_tokens
            + settings.max_tokens,  # else room is kept for the longest context
        ),
        train_dataset=Dataset.from_list([kept[i] for i in order]),
        processing_class=tokenizer,
        peft_config=fresh,
        callbacks=[
            Log(out, "grpo", show="reward"),
            FirstGradients(),
            *([tripwire.callback(tokenizer)] if tripwire else []),
            *([anchor.callback()] if anchor else []),
            Agree(),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    if start and "ref" not in trainer.model.peft_config:  # TRL keeps none where β is 0; the tripwire's KL wants it
        trainer.model.add_adapter("ref", trainer.model.peft_config["default"])
    in_float32(trainer.model)
    if not resumed:
        say(
            f"  {cut['batch']} requests × {settings.samples} answers a round, through {'vLLM' if vllm else 'transformers'}"
        )
    trainer.train(resume_from_checkpoint=resumed)
    if together.rank():  # one of several that train together: the first writes
        return {}
    trainer.model.save_pretrained(str(out / "adapter"), selected_adapters=["default"])
    facts = {"requests": len(kept), "too_long": len(requests) - len(kept), **cut}
    facts |= figures([h for h in trainer.state.log_history if "reward" in h or "loss" in h], [n for n, _, _ in rewards])
    facts |= {"written_by": "vllm" if vllm else "transformers", "scales": pays.scales}
    if held:
        found = trace(trainer.state.log_history)
        facts |= {"beta": found["beta"], "kl_held": found["kl"]}
    if tripwire:
        facts["tripwire"] = tripwire.finish(out / "adapter")
    return facts


def _trainer_class(anchor: Anchor | None = None):
    from trl import GRPOTrainer

    class Timed(GRPOTrainer):
        """TRL's trainer that says what writing and judging cost; the rest of a step's time is the update."""

        def _generate(self, *args, **kwargs):
            begun = time.perf_counter()
            found = super()._generate(*args, **kwargs)
            self._metrics["train"]["seconds/writing"].append(time.perf_counter() - begun)
            counts = torch.tensor([[sum(map(len, found[1])), len(found[1])]], device=self.accelerator.device)
            for name, value in zip(("tokens", "answers"), self.accelerator.gather(counts).sum(0).tolist(), strict=True):
                self._metrics["train"][name].append(float(value))
            return found

        def _calculate_rewards(self, *args, **kwargs):
            begun = time.perf_counter()
            found = super()._calculate_rewards(*args, **kwargs)
            self._metrics["train"]["seconds/rewards"].append(time.perf_counter() - begun)
            return found

    class Anchored(Timed):
        """Timed, with each answer's advantage and its divergence from the safe reference weighed by its request's risk."""

        def _generate_and_score_completions(self, inputs):
            found = super()._generate_and_score_completions(inputs)
            found["risks"] = torch.tensor([x["risk"] for x in inputs], device=found["completion_ids"].device)
            return found

        def _compute_loss(self, model, inputs):
            inputs = dict(inputs)
            risks, advantages = inputs.pop("risks"), inputs["advantages"]
            beta = anchor.betas(risks)
            inputs["advantages"] = advantages * (1 - beta).reshape(-1, *[1] * (advantages.dim() - 1))
            inner = self.accelerator.unwrap_model(model)
            with last_states(inner) as seen:
                loss = super()._compute_loss(model, inputs)
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
            known = {
                "input_ids": ids,
                "attention_mask": torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
            }
            mask = torch.cat([torch.zeros_like(inputs["prompt_mask"]), inputs["completion_mask"]], 1)
            states = torch.cat([s for s in seen if s.requires_grad])  # TRL may read a mini-batch in parts
            _, kl, row = answer_terms(inner, states, anchor.reference_states(inner, known), ids, mask)
            kl = row_sums(kl, row, len(ids)) / mask.sum(1).clamp(min=1)
            for name, value in (("kl", kl), ("beta", beta), ("risk", risks)):
                self._metrics["train"][f"safety/{name}"].append(
                    self.accelerator.gather(value.detach().to(kl)).mean().item()
                )
            return loss + (beta * kl).mean() / self.current_gradient_accumulation_steps

    return Anchored if anchor else Timed


def vllm_is_there() -> bool:
    """Whether TRL can write through vLLM here: a GPU, and vLLM of a version it knows."""
    if not torch.cuda.is_available():
        return False
    from trl.import_utils import is_vllm_available

    return is_vllm_available()


def figures(history: list[dict], names: list[str]) -> dict:
    """What a training's logged steps come to (see `train_grpo`); only a round's first step has its rewards."""
    rounds = [h for h in history if "reward" in h]  # TRL logs None where a mean is of nothing
    total = lambda key: sum(float(h.get(key, 0)) for h in history)  # noqa: E731
    ends = lambda key: [round(float(rounds[at][key]), 4) for at in (0, -1)] if key in rounds[0] else None  # noqa: E731
    writing, judging = total("seconds/writing"), total("seconds/rewards")
    guards = Counter()
    for h in rounds:
        guards.update({k.removeprefix("guard/"): int(v) for k, v in h.items() if k.startswith("guard/")})
    kls = [round(float(h["kl"]), 5) for h in history if h.get("kl") is not None]
    return {
        "rounds": len(rounds),
        "steps": max((h["step"] for h in history), default=0),
        "answers": int(total("answers")),
        "tokens": int(total("tokens")),
        "seconds": {
            "writing": round(writing, 1),
            "rewards": round(judging, 1),
            "update": round(total("step_time") - writing - judging, 1),
        },
        "reward": ends("reward"),
        "rewards": {n: ends(f"{n}/mean") for n in names},
        "missing": {n: round(float(np.mean([h.get(f"{n}/missing", 0) for h in rounds])), 4) for n in names},
        "flat_groups": round(float(np.mean([h["frac_reward_zero_std"] for h in rounds])), 4),
        "kl": [kls[0], kls[-1]] if kls else None,
        "length": ends("completions/mean_length"),
        "cut_short": ends("completions/clipped_ratio"),
        "guard": dict(guards),
    }
