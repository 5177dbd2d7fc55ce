"""What the Judge tab asks of a judge: ratings at once, then critics, a close reader and an editor (evaluate.panel)."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from toolkit.demo.desk import Job, Models
from toolkit.engines.base import Sampling
from toolkit.errors import Stopped, UserError
from toolkit.records import Plot, text_id

LONGEST = 24_000  # characters of a text to be judged; the judge's context ends somewhat later
STEPS = ("rating", "critics", "reading", "editor")


@dataclass(frozen=True)
class Verdict:
    """What is known so far. `single`: ratings by one call each; `opinion`: the panel's, at the end; `passport`: its line."""

    judge: str
    passport: object = None
    step: str = "rating"
    done: int = 0
    of: int = 0
    single: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    opinion: object = None


class Watched:
    """An engine whose answers are counted as they come, and which stops between two of them (and within a generated one)."""

    def __init__(self, engine, job: Job, told):
        self.engine, self.job, self.told = engine, job, told
        self.name, self.family, self.calls = engine.name, engine.family, -1

    def generate(self, prompts, n: int, sampling: Sampling) -> list[list[str]]:
        self.calls += 1
        texts, seen = [""] * (len(prompts) * n), -1
        pieces = self.engine.stream(prompts, n, sampling)
        try:
            for i, piece in pieces:
                texts[i] += piece
                if i > seen:
                    seen = i
                    self.told(STEPS[min(self.calls, 3)], i, len(texts))
                self._go_on()
        finally:
            pieces.close()
        return [texts[p * n : (p + 1) * n] for p in range(len(prompts))]

    def choose(self, prompts, options, reason: int = 0):
        self.calls += 1
        self.told(STEPS[min(self.calls, 3)], 0, len(prompts))
        self._go_on()
        return self.engine.choose(prompts, options, reason)

    def _go_on(self) -> None:
        if self.job.stopping:
            raise Stopped("the judging was stopped")


def check_text(text: str) -> str:
    """The text to judge. Raises UserError when it is empty or longer than LONGEST characters."""
    text = (text or "").strip()
    if not text:
        raise UserError("the text is empty", "paste a plot or a story")
    if len(text) > LONGEST:
        raise UserError(f"the text has {len(text):,} characters; at most {LONGEST:,} are judged", "judge a part of it")
    return text


def judge(text: str, spec: str, closely: bool):
    """Work that shows a Verdict as it grows.

    Args:
        closely: also hear the panel: critics for and against, with quotes from the text for what they claim.

    Raises UserError where the judge cannot rate the text.
    """

    def work(models: Models, job: Job) -> Iterator[Verdict]:
        from toolkit.evaluate.judge import judge_plot, unfit
        from toolkit.evaluate.panel import hear

        opened = models.get(spec)
        if why := unfit(text, opened.judge.languages):
            raise UserError(why)
        plot = Plot(text_id(text), text)
        now = Verdict(opened.judge.name, opened.passport)
        yield now
        if opened.engine is None:  # a reward model: it rates, and says no more
            found = opened.judge.rate(plot)
            if found.error:
                raise UserError(found.error)
            yield replace(now, single=found.scores)
            return

        def told(step: str, done: int, of: int) -> None:
            job.show(replace(now, step=step, done=done, of=of))

        rated = judge_plot(Watched(opened.engine, job, told), plot)
        now = replace(now, step="critics", single=rated.scores, reasons=rated.merits)
        yield now
        if not closely:
            return
        opinion = hear(Watched(opened.engine, job, told), plot)
        if opinion.error and not opinion.claims:
            raise UserError(opinion.error)
        yield replace(now, step="editor", opinion=opinion)

    return work
