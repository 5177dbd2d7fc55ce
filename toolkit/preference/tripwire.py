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

from toolkit.engines.base import Messages, Sampling, defused
from toolkit.models.lower import lowest_adapted
from toolkit.narrative.words import ngrams, words_of
from toolkit.preference.shared import answer_logps, lower_states, rows_of, why_plain
from toolkit.progress import batched, say
from toolkit.recipe import TripwireSettings
from toolkit.records import append_jsonl, guess_language, read_jsonl, write_jsonl

FILE, GOOD = "tripwire.jsonl", "good"
BATCH, READ = 16, 4  # answers written by transformers, and read, at once
DRAWS = 2000
MEASURES = ("reward", "judge", "diversity", "length", "repetition", "form", "kl")

Scorer = Callable[[list[str], list[str]], list[float | None]]
Writer = Callable[[Path, list[Messages], int, Sampling], list[list[str]]]


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
        writer: (adapter's folder, prompts, answers to each, sampling) → the answers, where something writes them faster on the CPU
            than transformers, which writes them on a GPU and where this is None.
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
        writer: Writer | None = None,
    ):
        if settings.every < 1:
            raise ValueError("tripwire.every is 0: there is nothing to watch")
        self.settings, self.reward, self.judge, self.diversity = settings, reward, judge, diversity
        self.prompts = [p if isinstance(p, list) else [{"role": "user", "content": p}] for p in prompts]
        self.prompts = self.prompts[: settings.prompts]
        self.out, self.seed, self.max_tokens, self.temperature = Path(out), seed, max_tokens, temperature
        self.broken, self.writer, self.rows = broken, writer, []
        self.plain: bool | None = None  # whether answers are read side by side; not known before the first look

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
        adapter = self._save(model, step)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(self.seed)
            elsewhere = self.writer and model.device.type == "cpu"
            said = self._by_writer(adapter, tokenizer) if elsewhere else self._by_transformers(model, tokenizer)
            texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for _, ids in said]
            answers, kl = list(batched(texts, self.settings.samples)), self._divergence(model, tokenizer, said)
            each = self._measure(answers) | {"kl": kl}  # rewards and judges may draw numbers too
        model.train(training)
        random.setstate(states[0])
        np.random.set_state(states[1])
        row = {"step": step, **{m: _mean(each[m]) for m in MEASURES if m in each}}
        row |= {"seconds": round(time.perf_counter() - begun, 2), "reasons": [], "each": each, "answers": answers}
        if self.rows:
            row["reasons"] = decide(self.rows[0], row, self.settings)
        if row["reasons"]:
            shutil.rmtree(adapter)
        else:
            self._keep(adapter)
        append_jsonl(self.out / FILE, [row])
        self.rows.append(row)
        return row["reasons"]

    def _asked(self, tokenizer) -> list[list[int]]:
        """Token ids of each prompt in the chat template, with the answer's turn opened."""
        return [
            tokenizer.apply_chat_template(
                defused(p, tokenizer.all_special_tokens),
                add_generation_prompt=True,
                enable_thinking=False,
                return_dict=False,
            )
            for p in self.prompts
        ]

    def _by_writer(self, adapter: Path, tokenizer) -> list[tuple[list[int], list[int]]]:
        """As `_by_transformers`. It gives texts: read again, some are cut into other tokens than they were written in, and one that
        could have gone on counts as ended.
        """
        sampling = Sampling(self.temperature, min_p=0.0, max_tokens=self.max_tokens, seed=1000 * self.seed)
        texts = self.writer(adapter, self.prompts, self.settings.samples, sampling)
        found = []
        for asked, group in zip(self._asked(tokenizer), texts, strict=True):
            for text in group:
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                found.append((asked, ids + [tokenizer.eos_token_id] * (len(ids) < self.max_tokens)))
        return found

    def _by_transformers(self, model, tokenizer) -> list[tuple[list[int], list[int]]]:
        """(prompt, answer up to its end token, with it), token ids, of every answer, prompt by prompt."""
        from transformers import GenerationConfig

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
        found = []
        for rows in batched([p for p in self._asked(tokenizer) for _ in range(self.settings.samples)], BATCH):
            width = max(map(len, rows))
            ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(r)) + r for r in rows], device=model.device)
            mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=model.device)
            whole = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            for row, said in zip(rows, whole[:, width:].tolist(), strict=True):
                over = next((at + 1 for at, token in enumerate(said) if token in ends), len(said))
                found.append((row, said[:over]))
        return found

    def _divergence(self, model, tokenizer, said: list[tuple[list[int], list[int]]]) -> list[float]:
        """Each prompt's mean log π − log π_start a token of its answers (nats)."""
        if self.plain is None:
            prompt, answer = said[0]
            self.plain = bool(model.device.type != "cpu" or why_plain(model, (prompt, answer, answer)))
        ratios = self._side_by_side(model, tokenizer, said) if self.plain else self._one_by_one(model, said)
        groups = zip(*(batched(each, self.settings.samples) for each in (ratios, said)), strict=True)
        return [round(sum(found) / max(1, sum(len(ids) for _, ids in own)), 6) for found, own in groups]

    def _one_by_one(self, model, said: list[tuple[list[int], list[int]]]) -> list[float]:
        """log π − log π_start of each answer; the layers below the adapter, where nothing has changed, once for both."""
        base, ratios = model.get_base_model(), []
        cut = lowest_adapted(base)
        for prompt, answer in said:
            row = rows_of(prompt, answer, answer, shared=False)[0]
            lower = lower_states(base, row, cut) if cut else None
            gap = answer_logps(base, row, cut, lower)
            with _at_the_start(model):
                ratios.append(float((gap - answer_logps(base, row, cut, lower)).sum()))
        return ratios

    def _side_by_side(self, model, tokenizer, said: list[tuple[list[int], list[int]]]) -> list[float]:
        """As `_one_by_one`, READ answers of alike lengths at once."""
        ratios = [0.0] * len(said)
        for picked in batched(sorted(range(len(said)), key=lambda i: sum(map(len, said[i]))), READ):
            rows = [said[i] for i in picked]
            gap = self._read(model, tokenizer, rows)
            with _at_the_start(model):
                gap = gap - self._read(model, tokenizer, rows)
            for i, row in zip(picked, gap, strict=True):
                ratios[i] = float(row.sum())
        return ratios

    @staticmethod
    def _read(model, tokenizer, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
        """Log-probability of every token of each row's answer, 0 elsewhere, (B, T); a row's logits may be a quarter of a GiB."""
        whole, first = [prompt + answer for prompt, answer in rows], min(len(prompt) for prompt, _ in rows)
        width = max(map(len, whole))
        ids = torch.tensor([r + [tokenizer.pad_token_id] * (width - len(r)) for r in whole], device=model.device)
        mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in whole], device=model.device)
        own = torch.tensor(
            [[0] * (len(p) - first) + [1] * len(a) + [0] * (width - len(p) - len(a)) for p, a in rows],
            device=model.device,
        )
        known = {"attention_mask": mask, "use_cache": False, "logits_to_keep": width - first + 1}
        logits = model(input_ids=ids, **known).logits[:, :-1].float()
        said = logits.gather(-1, ids[:, first:, None])[..., 0]
        return (said - logits.logsumexp(-1)) * own

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

    def _save(self, model, step: int) -> Path:
        """The adapter as it is, in a folder of its own until the look says that it is good."""
        partial = self.out / f"{GOOD}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(str(partial), selected_adapters=["default"])
        (partial / "step").write_text(str(step))
        return partial

    def _keep(self, partial: Path) -> None:
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


def _at_the_start(model):
    """A context in which the model is the policy as it was before training."""
    from trl.trainer.utils import use_adapter

    return use_adapter(model, "ref" if "ref" in model.peft_config else None)


def _mean(values) -> float | None:
    known = _numbers(list(values))
    return None if np.isnan(known).all() else round(float(np.nanmean(known)), 6)


def repetition(text: str) -> float:
    """Share of a text's runs of 4 words (8 Chinese characters) that have stood in it before; 0 for shorter texts."""
    words, n = words_of(text), 8 if guess_language(text) == "zh" else 4
    runs = ngrams(words, n)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
