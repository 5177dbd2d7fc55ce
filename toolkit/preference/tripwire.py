"""Tripwire against reward hacking: looks at the policy now and then, and stops when reward climbs while something else falls.

Gao et al. 2022 (arXiv 2210.10760): past some distance from the start what the reward says goes on climbing while what it
stands for falls. So a small probe set is written again and again, and what the reward does not see is measured on it: a judge
that has never been trained against, diversity, length, repetition, and the distance itself (KL). The limits are not
published; chosen so that a healthy run of the embedded model stays inside them.
"""

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback

from toolkit.engines.base import Messages, defused
from toolkit.narrative.words import ngrams, words_of
from toolkit.progress import batched, say
from toolkit.recipe import TripwireSettings
from toolkit.records import append_jsonl, guess_language, read_jsonl, write_jsonl

FILE, GOOD = "tripwire.jsonl", "good"
BATCH, READ = 16, 4  # answers written and read at once
DRAWS = 2000
MEASURES = ("reward", "judge", "diversity", "length", "repetition", "form", "kl")

Scorer = Callable[[list[str], list[str]], list[float | None]]


def decide(first: dict, now: dict, settings: TripwireSettings) -> list[str]:
    """Why to stop, given the look before training and the one now; nothing when all is well.

    Stops where reward climbed and at least one guard fell. Both are differences prompt by prompt, and count only where an
    interval (paired bootstrap over prompts, 95 %) excludes 0: what differs by chance stops nothing. Diversity, length,
    repetition and KL must have passed the settings' limits too. The unseen judge has no limit, so its interval is the 99 %
    one: every look is a test, and there are many.

    Args:
        first, now: {"each": {measure: one value a prompt, None where there is none}} for MEASURES; `judge`, `reward` and
            `form` may be missing.
    """
    before, after = ({m: _numbers(row["each"].get(m)) for m in MEASURES} for row in (first, now))

    def change(measure: str, level: float = 0.95) -> tuple[float, float, float]:
        """(before, low and high of the difference); NaN where it is not known, and then nothing is concluded."""
        if before[measure].shape != after[measure].shape:
            return (np.nan,) * 3
        known = ~np.isnan(after[measure] - before[measure])
        gaps = (after[measure] - before[measure])[known]
        if len(gaps) < 2:
            return (np.nan,) * 3
        drawn = gaps[np.random.default_rng(0).integers(0, len(gaps), (DRAWS, len(gaps)))].mean(1)
        return before[measure][known].mean(), *np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])

    if "reward" in first["each"] and not change("reward")[1] > 0:
        return []
    mean = {m: (float(np.nanmean(a)) if len(a) and not np.isnan(a).all() else np.nan) for m, a in after.items()}
    reasons = []
    _, _, high = change("judge", 0.99)
    if high < 0:
        reasons.append("the unseen judge likes the answers less")
    start, _, high = change("diversity")
    if high < 0 and mean["diversity"] < (1 - settings.diversity) * start:
        reasons.append(f"diversity fell from {start:.2f} to {mean['diversity']:.2f}")
    start, low, high = change("length")
    if low > 0 and mean["length"] > settings.length * start:
        reasons.append(f"answers grew from {start:.0f} to {mean['length']:.0f} words or characters")
    if high < 0 and mean["length"] < start / settings.length:
        reasons.append(f"answers shrank from {start:.0f} to {mean['length']:.0f} words or characters")
    start, low, _ = change("repetition")
    if low > 0 and mean["repetition"] - start > settings.repetition:
        reasons.append(f"repeated word runs rose from {start:.0%} to {mean['repetition']:.0%}")
    if "form" in first["each"]:
        start, low, _ = change("form")
        if low > 0 and mean["form"] - start > settings.form:
            reasons.append(f"answers of broken form rose from {start:.0%} to {mean['form']:.0%}")
    _, low, _ = change("kl")
    if low > 0 and mean["kl"] > settings.kl:
        reasons.append(f"it is {mean['kl']:.2f} nats a token from the start")
    return reasons


def _numbers(values) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values or []], float)


class Tripwire:
    """Looks into `out` (tripwire.jsonl, good/). One for one training; `callback` is what a trainer takes.

    Args:
        prompts: of the probe, never trained on; the first `settings.prompts` of them.
        reward, judge: (prompts, answers) → one number each, higher is better, None where there is none. Without a reward (DPO
            on the user's own pairs) a fallen guard is enough. The judge must be one that neither the reward nor the writer has
            learnt from; None leaves it out.
        diversity: answers to each prompt → how far apart they are, one number a prompt.
        max_tokens, temperature: of the probe's answers.
        broken: (prompt, answer) → what is wrong with its form; None does not look at form.
    """

    def __init__(
        self,
        settings: TripwireSettings,
        prompts: list[Messages | str],
        reward: Scorer | None,
        judge: Scorer | None,
        diversity: Callable[[list[list[str]]], list[float]],
        out: Path,
        seed: int = 1,
        max_tokens: int = 160,
        temperature: float = 1.0,
        broken: Callable[[str, str], list[str]] | None = None,
    ):
        if settings.every < 1:
            raise ValueError("tripwire.every is 0: there is nothing to watch")
        self.settings, self.reward, self.judge, self.diversity = settings, reward, judge, diversity
        self.prompts = [p if isinstance(p, list) else [{"role": "user", "content": p}] for p in prompts]
        self.prompts = self.prompts[: settings.prompts]
        self.out, self.seed, self.max_tokens, self.temperature = Path(out), seed, max_tokens, temperature
        self.broken, self.rows = broken, []

    def callback(self, tokenizer) -> TrainerCallback:
        return _Callback(self, tokenizer)

    @property
    def tripped(self) -> dict | None:
        """The look that stopped the training, or None."""
        return next((row for row in self.rows if row["reasons"]), None)

    def resume(self, step: int) -> None:
        """Take up the series of an earlier attempt; looks after `step` are made again."""
        self.rows = [row for row in read_jsonl(self.out / FILE) if row["step"] <= step]
        write_jsonl(self.out / FILE, self.rows)

    def look(self, model, tokenizer, step: int) -> list[str]:
        """Write the probe, measure it, keep the adapter when all is well. Returns why to stop, nothing when all is well.

        The training goes on as if nothing had been: random states, modes and weights are as before.
        """
        begun = time.perf_counter()
        states = random.getstate(), np.random.get_state()
        training = model.training
        model.eval()  # also switches gradient checkpointing off, with which there is no cache
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(self.seed)
            answers, kl = self._write(model, tokenizer)
            each = self._measure(answers) | {"kl": kl}  # rewards and judges may draw numbers too
        model.train(training)
        random.setstate(states[0])
        np.random.set_state(states[1])
        row = {"step": step, **{m: _mean(each[m]) for m in MEASURES if m in each}}
        row |= {"seconds": round(time.perf_counter() - begun, 2), "reasons": [], "each": each, "answers": answers}
        if self.rows:
            row["reasons"] = decide(self.rows[0], row, self.settings)
        if not row["reasons"]:
            self._keep(model, step)
        append_jsonl(self.out / FILE, [row])
        self.rows.append(row)
        return row["reasons"]

    def _write(self, model, tokenizer) -> tuple[list[list[str]], list[float]]:
        """Answers to each prompt, and each prompt's mean log π − log π_start a token on them (nats)."""
        from transformers import GenerationConfig
        from trl.trainer.utils import use_adapter

        samples = self.settings.samples
        asked = [
            tokenizer.apply_chat_template(
                defused(p, tokenizer.all_special_tokens),
                add_generation_prompt=True,
                enable_thinking=False,
                return_dict=False,
            )
            for p in self.prompts
            for _ in range(samples)
        ]
        ends = model.generation_config.eos_token_id or tokenizer.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        config = GenerationConfig(
            do_sample=True,
            temperature=self.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=self.max_tokens,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,
        )
        texts, ratios = [], []
        for rows in batched(asked, BATCH):
            width = max(map(len, rows))
            ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(r)) + r for r in rows], device=model.device)
            mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=model.device)
            whole = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            said = whole[:, width:]
            ended = torch.isin(said, torch.tensor(ends, device=said.device))
            own = ((ended.cumsum(1) - ended.int()) == 0).int()  # up to the first end token, with it
            mask = torch.cat([mask, own], 1)
            gap = self._read(model, whole, mask, width)
            with use_adapter(model, "ref" if "ref" in model.peft_config else None):  # the policy as it was at the start
                gap = gap - self._read(model, whole, mask, width)
            ratios += [(float(g[m.bool()].sum()), int(m.sum())) for g, m in zip(gap, own, strict=True)]
            texts += [
                tokenizer.decode(r[m.bool()], skip_special_tokens=True).strip() for r, m in zip(said, own, strict=True)
            ]
        groups = list(batched(ratios, samples))
        kl = [round(sum(r for r, _ in g) / max(1, sum(n for _, n in g)), 6) for g in groups]
        return list(batched(texts, samples)), kl

    @staticmethod
    def _read(model, ids, mask, width: int) -> torch.Tensor:
        """Log-probability of every token of the answers, (B, T); few rows at once, for a row's logits may be a quarter of a GiB."""
        positions, keep = (mask.cumsum(1) - 1).clamp(min=0), ids.shape[1] - width + 1
        found = []
        for at in range(0, len(ids), READ):
            rows = slice(at, at + READ)
            known = {"attention_mask": mask[rows], "position_ids": positions[rows]}
            logits = model(input_ids=ids[rows], **known, use_cache=False, logits_to_keep=keep).logits[:, :-1].float()
            said = logits.gather(-1, ids[rows, width:, None])[..., 0]
            found.append(said - logits.logsumexp(-1))
        return torch.cat(found)

    def _measure(self, answers: list[list[str]]) -> dict[str, list[float | None]]:
        asked = [p[-1]["content"] for p, texts in zip(self.prompts, answers, strict=True) for _ in texts]
        flat = [t for texts in answers for t in texts]
        group = lambda values: [_mean(g) for g in batched(list(values), self.settings.samples)]  # noqa: E731
        found = {"reward": group(self.reward(asked, flat))} if self.reward else {}
        if self.judge:
            found["judge"] = group(self.judge(asked, flat))
        found["diversity"] = [None if v is None or np.isnan(v) else float(v) for v in self.diversity(answers)]
        found["length"] = group(len(words_of(t)) for t in flat)
        found["repetition"] = group(repetition(t) for t in flat)
        if self.broken:
            found["form"] = group(float(bool(self.broken(p, t))) for p, t in zip(asked, flat, strict=True))
        return found

    def _keep(self, model, step: int) -> None:
        partial = self.out / f"{GOOD}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(str(partial), selected_adapters=["default"])
        (partial / "step").write_text(str(step))
        shutil.rmtree(self.out / GOOD, ignore_errors=True)
        partial.rename(self.out / GOOD)

    def finish(self, adapter: Path) -> dict:
        """Put the last good adapter in place of `adapter` where the training was stopped; facts of what was seen.

        Returns:
            {"looks", "seconds", "tripped": step or None, "reasons", "kept": step of the adapter or None, and of each measure
            [before, at the end]}.
        """
        facts = {"looks": len(self.rows), "seconds": round(sum(r["seconds"] for r in self.rows), 1), "tripped": None}
        facts |= {"reasons": [], "kept": None}
        if row := self.tripped:
            kept = int((self.out / GOOD / "step").read_text())
            shutil.rmtree(adapter, ignore_errors=True)
            shutil.copytree(self.out / GOOD, adapter, ignore=shutil.ignore_patterns("step"))
            facts |= {"tripped": row["step"], "reasons": row["reasons"], "kept": kept}
        return facts | {m: [self.rows[0][m], self.rows[-1][m]] for m in MEASURES if self.rows and m in self.rows[0]}


class _Callback(TrainerCallback):
    def __init__(self, wire: Tripwire, tokenizer):
        self.wire, self.tokenizer = wire, tokenizer

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.wire.resume(state.global_step)
        if not self.wire.rows:
            self.wire.look(model, self.tokenizer, state.global_step)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        wire, step = self.wire, state.global_step
        due = step % wire.settings.every == 0 or step == state.max_steps
        if due and not wire.tripped and (reasons := wire.look(model, self.tokenizer, step)):
            kept, climbs = (wire.out / GOOD / "step").read_text(), "reward climbs while " * bool(wire.reward)
            say(f"  tripwire: stopped at step {step}, back to step {kept}: {climbs}{'; '.join(reasons)}")
        if wire.tripped:  # also one that an earlier attempt ran into before it was killed
            control.should_training_stop = True
        return control


def _mean(values) -> float | None:
    known = _numbers(list(values))
    return None if np.isnan(known).all() else round(float(np.nanmean(known)), 6)


def repetition(text: str) -> float:
    """Share of a text's runs of 4 words (8 Chinese characters) that have stood in it before; 0 for shorter texts."""
    words, n = words_of(text), 8 if guess_language(text) == "zh" else 4
    runs = ngrams(words, n)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
