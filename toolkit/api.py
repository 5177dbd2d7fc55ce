"""The verbs as plain Python. The command line is a thin door to these."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from toolkit.engines.base import Sampling
from toolkit.engines.load import load_engine
from toolkit.narrative.angles import Angled
from toolkit.narrative.writing import check_premise, write_prompt
from toolkit.records import AspectRatings, Plot, text_id


def write_stream(
    premise: str,
    n: int = 1,
    *,
    model: str | Path = "embedded",
    adapter: str | Path | None = None,
    seed: int | None = None,
    temperature: float = 0.8,
    min_p: float = 0.05,
    max_tokens: int = 220,
    angles: bool = False,
    on: str = "auto",
    gpu_experts: str = "auto",
) -> Iterator[tuple[int, str]]:
    """Plots for one premise as they are written: (which of the n, next piece of its text).

    Args:
        model: embedded, a .gguf file, a run folder (what it exported), an http address, a folder or hub id.
        adapter: a GGUF adapter, put on a GGUF model.
        angles: ask for each plot from another angle, so that they differ more.
        on, gpu_experts: where a GGUF model runs, as load_engine.
        seed: same seed, same n, same machine: same texts; None draws one.

    Raises:
        UserError: empty or over-long premise, n below 1, or no such model.
    """
    import random

    from toolkit.errors import UserError

    if n < 1:
        raise UserError(f"n is {n}; at least 1 plot must be asked for")
    premise = check_premise(premise)
    seed = random.randrange(2**31) if seed is None else seed
    sampling = Sampling(temperature, min_p, repeat_penalty=1.05, max_tokens=max_tokens, seed=seed)
    engine = load_engine(model, lora=adapter, on=on, gpu_experts=gpu_experts)
    engine = Angled(engine) if angles else engine
    try:
        from dataclasses import replace

        for start in range(0, n, 16):  # the local engine decodes so many side by side
            part = min(16, n - start)
            for i, piece in engine.stream([write_prompt(premise)], part, replace(sampling, seed=seed + start)):
                yield start + i, piece
    finally:
        engine.close()


def greet(
    request: str,
    n: int = 1,
    *,
    model: str | Path = "embedded",
    adapter: str | Path | None = None,
    seed: int | None = None,
    temperature: float = 0.8,
    max_tokens: int | None = None,
    on: str = "auto",
    gpu_experts: str = "auto",
) -> list[tuple[str, list[str]]]:
    """`n` greetings for one request: (text, what breaks its form, greeting.form.broken), cleaned.

    Args:
        request: as a person says it, Chinese or English: "七十大寿，写给外公".
        model, adapter, seed, on, gpu_experts: as `write_stream`.
        max_tokens: longest greeting; by default what the request's length needs.

    Raises:
        UserError: an empty or over-long request, n below 1, or no such model.
    """
    import random

    from toolkit.errors import UserError
    from toolkit.greeting.form import broken, clean
    from toolkit.greeting.writing import answer_tokens, as_request, greet_prompt
    from toolkit.progress import batched

    if n < 1:
        raise UserError(f"n is {n}; at least 1 greeting must be asked for")
    asked = as_request(request)
    room = max_tokens or answer_tokens(asked)
    seed = random.randrange(2**31) if seed is None else seed
    engine, texts = load_engine(model, lora=adapter, on=on, gpu_experts=gpu_experts), []
    try:
        for part in batched(list(range(n)), 16):  # the local engine decodes so many side by side
            sampling = Sampling(temperature, min_p=0.05, max_tokens=room, seed=seed + part[0])
            texts += engine.generate([greet_prompt(asked)], len(part), sampling)[0]
    finally:
        engine.close()
    cleaned = [clean(t, asked) for t in texts]
    return [(t, broken(t, asked)) for t in cleaned]


def write(premise: str, n: int = 1, **settings) -> list[str]:
    """`n` plots for one premise; settings as `write_stream`."""
    texts = [""] * n
    for i, piece in write_stream(premise, n, **settings):
        texts[i] += piece
    return [t.strip() for t in texts]


def rate(texts: Iterable[str | Plot], reward: str | Path) -> list[AspectRatings]:
    """Ratings of each text by a trained reward model; a record with `error` for a text it cannot read.

    Args:
        reward: folder of the reward model, or of the run that trained it.

    Raises UserError when there is none.
    """
    from toolkit.errors import UserError
    from toolkit.evaluate.judge import unfit
    from toolkit.reward.model import load_reward_model

    plots, name = [_plot(t) for t in texts], f"reward model {reward}"
    model, records, readable = load_reward_model(reward), {}, []
    for plot in plots:
        why = unfit(plot.text, model.config.languages)
        try:
            model.encode([plot.text])
        except UserError as error:
            why = why or str(error).replace("text 1 of 1", "the text")
        if why:
            records[plot.id] = AspectRatings(plot.id, {}, rater=name, error=why)
        else:
            readable.append(plot)
    values = model.score([p.text for p in readable], progress="scoring") if readable else []
    for plot, row in zip(readable, values, strict=True):
        scores = {k: round(float(v), 3) for k, v in zip(model.config.dimensions, row, strict=True)}
        records[plot.id] = AspectRatings(plot.id, scores, rater=name)
    return [records[p.id] for p in plots]


def judge(
    texts: Iterable[str | Plot],
    judge: str | Path = "embedded",
    *,
    guard: str = "tags",
    on: str = "auto",
    gpu_experts: str = "auto",
    any_language: bool = False,
) -> Iterator[AspectRatings]:
    """Five ratings a text by a quantized judge that is independent of the reward model, one after the other.

    Args:
        judge: embedded, a catalogue name, a .gguf file, a run folder, an http address, a folder or hub id.
        guard: how texts are shown to it (narrative.quoting.GUARDS).
        on, gpu_experts: as `write_stream`.
        any_language: also rate texts in languages that no passport covers.

    A text that cannot be rated gives a record with `error` and no scores. Raises EngineDown when the judge is gone.
    """
    from toolkit.judges import open_judge

    plots = [_plot(t) for t in texts]
    spoken = None if any_language else ("en", "zh")
    opened = open_judge(judge, guard=guard, reason=16, languages=spoken, on=on, gpu_experts=gpu_experts)
    try:
        for plot in plots:
            yield opened.judge.rate(plot)
    finally:
        opened.judge.close()


def run(recipe: str | Path, out: str | Path | None = None, **overrides) -> Path:
    """Run a recipe (a name or a YAML file); returns the report. Overrides: run("quickstart", **{"dpo.beta": 0.2})."""
    import json

    from toolkit.recipe import load_recipe
    from toolkit.runner import run_recipe

    loaded = load_recipe(str(recipe), [f"{k}={json.dumps(v)}" for k, v in overrides.items()])
    return run_recipe(loaded, Path(out) if out else Path("runs") / loaded.name)


def _plot(text: str | Plot) -> Plot:
    return text if isinstance(text, Plot) else Plot(text_id(text), text)
