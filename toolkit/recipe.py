"""What a recipe may say: dataclasses with ranges, read from YAML, checked before anything loads.

One section per stage. A wrong key, type or value is reported with file, line, key, value and what is allowed.
"""

import contextlib
import dataclasses
import difflib
import math
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from toolkit.errors import UserError

SHIPPED = "shipped"
WEIGHTED = ("ddpo", "dorpo")  # losses that count a pair by its chosen answer's deviation
MERGED_BELOW = 8e9  # parameters: `export.merge: auto` merges smaller models
QUANTISATIONS = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")


def setting(default, help: str, *, low=None, high=None, one_of: tuple = (), above=None):
    """A setting with its meaning and what it may be: low ≤ value ≤ high, value > above, or one of a few."""
    limits = {"help": help, "low": low, "high": high, "one_of": one_of, "above": above}
    if isinstance(default, (list, tuple)):
        return field(default=tuple(default), metadata=limits)
    return field(default=default, metadata=limits)


@dataclass(frozen=True)
class ModelSettings:
    id: str = setting(
        "embedded", "embedded, embedded-moe (the same as a mixture), a folder of safetensors, or a hub id"
    )
    gguf: str = setting(
        "",
        "a GGUF of the same weights, for llama.cpp: a file or a name of the catalogue; made from the weights when empty",
    )
    quantisation: str = setting(
        "F16",
        "of the GGUF made when none is given; F16 may be BF16, where this CPU computes faster in it",
        one_of=QUANTISATIONS,
    )
    dtype: str = setting("auto", "of the frozen weights", one_of=("auto", "float32", "bfloat16", "float16"))
    kind: str = setting(
        "any", "what it must be: any, dense, moe (a mixture of experts)", one_of=("any", "dense", "moe")
    )
    four_bit: bool = setting(False, "NF4 with double quantisation (QLoRA)")
    least_4bit: float = setting(
        0.9, "with four_bit: share of the layers' weights that must really be in 4 bits; 0 asks nothing", low=0, high=1
    )
    unsloth: str = setting(
        "auto", "train through unsloth: auto (where it is installed, with a GPU), never", one_of=("auto", "never")
    )


@dataclass(frozen=True)
class LoraSettings:
    r: int = setting(16, "rank", low=1, high=512)
    alpha: int = setting(32, "scale = alpha / r", low=1)
    last_layers: int = setting(0, "train only the last so many layers; 0 is all", low=0)
    targets: tuple[str, ...] = setting(
        ("auto",),
        "what gets LoRA: auto (attention and MLP; of a mixture of experts attention alone), or any of attention, mlp, shared, "
        "experts, router, and names of modules",
    )


@dataclass(frozen=True)
class PremisesSettings:
    file: str = setting(SHIPPED, "shipped, or a file of premises")
    plots: str = setting(SHIPPED, "shipped, or a file of well-made plots to learn from")
    languages: tuple[str, ...] = setting(("en",), "which of the shipped premises and plots")
    train: int = setting(16, "premises to write candidates for", low=1)
    test: int = setting(12, "premises to compare base and aligned on", low=1)
    skip_bad_lines: bool = setting(False, "leave bad lines of the files out instead of stopping")


@dataclass(frozen=True)
class CandidatesSettings:
    per_premise: int = setting(6, "drafts a premise", low=2, high=16)
    temperatures: tuple[float, ...] = setting((0.6, 0.8, 1.0), "taken in turn", low=0, high=5)
    min_p: float = setting(0.05, "drop tokens less likely than this share of the likeliest", low=0, high=1)
    repeat_penalty: float = setting(1.05, "1 is off", low=0.5, high=3)
    angles: bool = setting(False, "each draft of a premise is asked from another angle, so that the pool is wider")
    max_tokens: int = setting(160, "longest draft", low=16)
    writer: str = setting(
        "base",
        "engine: base (the recipe's own model, through llama.cpp), http addresses with commas between them that serve it, or "
        "what ratings.rater takes",
    )


@dataclass(frozen=True)
class RatingsSettings:
    rater: str = setting(
        "base",
        "engine: base (the model that writes), embedded, a .gguf file, an http address or several with commas between them, a "
        "folder or hub id",
    )
    reason: int = setting(12, "tokens of each merit and fault named; 0 names none", low=0, high=200)
    check: int = setting(12, "held-out plots on which the rater is tested against their own damage; 0 skips", low=0)


@dataclass(frozen=True)
class RewardSettings:
    lora: LoraSettings = field(default_factory=LoraSettings)
    depth: float = setting(0.67, "share of the backbone's layers that is used", above=0, high=1)
    strengths: tuple[float, ...] = setting((0.7,), "of damage done to well-made plots", above=0, high=1)
    rated_weight: float = setting(0.25, "trust in the rater's labels, against 1 for known damage", low=0, high=1)
    ridge: float = setting(1000.0, "of the linear probe that starts the head", above=0)
    epochs: float = setting(1.0, "passes over the groups", above=0)
    lr: float = setting(2e-4, "learning rate", above=0, high=1)
    batch: int = setting(2, "groups (a plot and its damage) a step", low=1)
    rank_weight: float = setting(1.0, "of the ranking loss beside regression", low=0)
    rank_gap: float = setting(0.5, "least difference of targets (1 … 10) for a pair to be ranked", above=0)
    max_tokens: int = setting(256, "longer texts are left out of training, and counted", low=16)
    gradient_checkpointing: bool = setting(True, "less memory, more time")
    save_every: int = setting(10, "steps between checkpoints", low=1)


@dataclass(frozen=True)
class PairsSettings:
    file: str = setting("", "your own pairs; no candidates, ratings or reward model are made then")
    margin: float = setting(0.3, "least difference of mean reward (1 … 10)", low=0)
    agree: float = setting(0.6, "least share of the dimensions that favour the chosen one", low=0, high=1)
    prompts: str = setting(
        "either", "of the two assessments must favour the chosen one", one_of=("both", "either", "ignore")
    )
    length_ratio: float = setting(1.5, "longer text at most so many times the shorter", low=1)
    per_premise: int = setting(2, "pairs a premise at most", low=1)
    max_pairs: int = setting(
        0, "the most certain so many (divpo: those that differ most in deviation); 0 is all", low=0
    )
    select: str = setting(
        "confident",
        "confident: by reward alone; divpo: the most deviating good against the least deviating bad",
        one_of=("confident", "divpo"),
    )
    share: float = setting(0.25, "divpo: good and bad are the best and worst such share", above=0, high=0.5)
    threshold: float = setting(
        0.0, "divpo: good is a mean reward of at least this (1 … 10) instead; 0 goes by share", low=0, high=10
    )


@dataclass(frozen=True)
class DeviationSettings:
    kinds: tuple[str, ...] = setting(
        ("semantic", "style"), "of difference; several are combined", one_of=("semantic", "style", "words")
    )
    floor: float = setting(0.0, "no weight is below this; the mean stays 1", low=0, high=1)
    semantic: str = setting("minilm", "embedding model: minilm, jina, a folder or hub id")
    style: str = setting("stylometry", "stylometry, style-embedding, a folder or hub id")


@dataclass(frozen=True)
class DpoSettings:
    loss: str = setting(
        "dpo",
        "dpo, ddpo (weighted by deviation), orpo (without a reference), dorpo (weighted)",
        one_of=("dpo", "ddpo", "orpo", "dorpo"),
    )
    lora: LoraSettings = field(default_factory=LoraSettings)
    beta: float = setting(0.1, "dpo, ddpo: how hard the policy is held to the reference", above=0)
    odds: float = setting(0.25, "orpo, dorpo: weight λ of the odds ratio beside the chosen answer's likelihood", low=0)
    lr: float = setting(2e-4, "learning rate", above=0, high=1)
    epochs: float = setting(2.0, "passes over the pairs", above=0)
    batch: int = setting(2, "pairs a forward pass", low=1)
    accumulate: int = setting(2, "forward passes a step", low=1)
    router_aux: float = setting(
        0.0,
        "mixtures of experts: weight of the loss that keeps experts evenly used. 0, because routers do not learn unless "
        "lora.targets says so; with router there, take the model's own (0.001 of most)",
        low=0,
    )
    max_tokens: int = setting(384, "pairs with a longer text are left out, and counted", low=32)
    gradient_checkpointing: bool = setting(True, "less memory, more time")
    save_every: int = setting(5, "steps between checkpoints", low=1)


@dataclass(frozen=True)
class RequestsSettings:
    file: str = setting(SHIPPED, "shipped, or a file of requests for greetings")
    labelled: str = setting(SHIPPED, "shipped, or a file of good and flawed greetings of one request")
    languages: tuple[str, ...] = setting(
        ("zh", "en"), "which of the shipped requests and greetings", one_of=("zh", "en")
    )
    train: int = setting(0, "requests to train on, drawn from that side; 0 is all", low=0)
    test: int = setting(24, "requests to compare writers on", low=1)
    skip_bad_lines: bool = setting(False, "leave bad lines of the files out instead of stopping")


@dataclass(frozen=True)
class DataSettings:
    """What an instruct run learns from. One prompt in five, decided by its words, is kept for testing."""

    file: str = setting(
        SHIPPED,
        "shipped (plots and greetings, harmless), or your chats: messages, ShareGPT, Alpaca, prompt and completion",
    )
    train: int = setting(0, "answers to learn from, drawn; 0 is all", low=0)
    test: int = setting(48, "answers on which the loss is measured at the end, at most", low=0)
    skip_bad_lines: bool = setting(False, "leave bad lines of the file out instead of stopping")


@dataclass(frozen=True)
class SftSettings:
    """Greetings: the cold start, whose adapter dpo and grpo go on with. Instruct: the training itself."""

    lora: LoraSettings = field(default_factory=LoraSettings)
    lr: float = setting(2e-4, "learning rate", above=0, high=1)
    epochs: float = setting(3.0, "passes over the answers", above=0)
    batch: int = setting(4, "answers a forward pass", low=1)
    accumulate: int = setting(1, "forward passes a step", low=1)
    max_tokens: int = setting(512, "longer ones are left out, and counted", low=32)
    gradient_checkpointing: bool = setting(True, "less memory, more time")
    save_every: int = setting(20, "steps between checkpoints", low=1)


@dataclass(frozen=True)
class RejectionSettings:
    """Multi-agent rejection sampling. A role left empty is played by `agents`."""

    agents: str = setting(
        "base", "engine: base, embedded, a catalogue name, a .gguf file, an http address, a folder or hub id"
    )
    writer: str = setting("sft", "who writes: sft (the cold start), base, or an engine")
    positive: str = setting("", "lists every merit")
    negative: str = setting("", "lists every fault")
    judge: str = setting("", "weighs both lists: 1 or 0, with a reason")
    reflector: str = setting("", "reviews the verdict; overturns it only with cause")
    requests: int = setting(0, "train requests that are answered, and a third as many to check on; 0 is all", low=0)
    per_request: int = setting(4, "answers a request", low=2, high=16)
    temperatures: tuple[float, ...] = setting((0.7, 1.0), "of the writer, taken in turn", low=0, high=5)
    examples: int = setting(2, "similar good greetings shown to the judge", low=0, high=8)
    among: int = setting(8, "drawn from so many nearest ones, so that not everyone sees the same", low=1)
    retrieval: str = setting(
        "auto", "embedding model that finds them: auto, multilingual, minilm, ngrams, a folder or hub id"
    )
    words: int = setting(96, "tokens of each list of merits or faults, and of a reason", low=16, high=1000)
    tries: int = setting(2, "times an agent is asked when it gives no usable answer", low=1, high=5)
    pairs: int = setting(2, "pairs a request at most", low=1)
    length_ratio: float = setting(1.5, "longer answer of a pair at most so many times the shorter", low=1)
    check: int = setting(12, "labelled pairs on which the agents are tested themselves; 0 skips", low=0)
    curated: bool = setting(True, "the train side's good and flawed greetings are pairs too")


@dataclass(frozen=True)
class PairwiseSettings:
    """The Bradley–Terry reward model."""

    lora: LoraSettings = field(default_factory=LoraSettings)
    lr: float = setting(1e-4, "learning rate", above=0, high=1)
    epochs: float = setting(2.0, "passes over the pairs", above=0)
    batch: int = setting(4, "pairs a forward pass", low=1)
    accumulate: int = setting(1, "forward passes a step", low=1)
    max_tokens: int = setting(768, "pairs with a longer text are left out, and counted", low=32)
    gradient_checkpointing: bool = setting(True, "less memory, more time")
    save_every: int = setting(20, "steps between checkpoints", low=1)


@dataclass(frozen=True)
class PrinciplesSettings:
    """The principle-guided judge, and the adversarial rounds that sharpen its principles."""

    agent: str = setting(
        "base", "engine of generator, detector, reflector and optimiser; the detector is the reward's judge"
    )
    detector: str = setting(SHIPPED, "shipped, or a file of judging principles (Markdown, at most 10 rules)")
    generator: str = setting(SHIPPED, "shipped, or a file of ways to write a flawed greeting")
    rounds: int = setting(3, "adversarial rounds at most; 0 takes the principles as they are", low=0, high=50)
    per_round: int = setting(8, "requests a round, in batches of 4", low=4)
    patience: int = setting(2, "rounds without a gain on held-out greetings before it stops", low=1)
    words: int = setting(128, "tokens of an explanation or a suggestion", low=16, high=1000)
    tries: int = setting(2, "times an agent is asked when it gives no usable answer", low=1, high=5)


@dataclass(frozen=True)
class GrpoSettings:
    """Defaults are the published ones (7B, whole model); LoRA on a small model wants a higher rate."""

    rewards: tuple[str, ...] = setting(
        ("model",), "what pays: model (Bradley–Terry), judge (principles), or both", one_of=("model", "judge")
    )
    weights: tuple[float, ...] = setting((1.0,), "of each reward, in that order", low=0)
    guard: float = setting(
        1.0, "taken off for an answer that breaks form: empty, other language or script, too long, unfinished …", low=0
    )
    lr: float = setting(3e-7, "learning rate", above=0, high=1)
    beta: float = setting(0.001, "weight of the KL divergence from the start (low-variance estimator)", low=0)
    samples: int = setting(4, "answers a request", low=2, high=64)
    batch: int = setting(32, "requests a round of writing", low=1)
    mini_batch: int = setting(16, "answers a forward pass", low=1)
    updates: int = setting(2, "optimiser steps a round of writing", low=1)
    epochs: float = setting(5.0, "passes over the requests", above=0)
    steps: int = setting(0, "optimiser steps at most; 0 goes by epochs", low=0)
    prompt_tokens: int = setting(256, "longer requests are left out, and counted", low=16)
    max_tokens: int = setting(512, "longest answer", low=16)
    temperature: float = setting(1.0, "of the writing", above=0, high=5)
    vllm: str = setting(
        "auto", "write through vLLM: auto (where it is installed, with a GPU), never", one_of=("auto", "never")
    )
    gradient_checkpointing: bool = setting(True, "less memory, more time")
    save_every: int = setting(10, "steps between checkpoints", low=1)


@dataclass(frozen=True)
class TripwireSettings:
    """Watches a training for reward hacking: reward climbs while something the reward does not see falls."""

    every: int = setting(20, "steps between looks; 0 is off", low=0)
    prompts: int = setting(8, "prompts of the probe", low=2)
    samples: int = setting(2, "answers to each", low=2, high=8)
    diversity: float = setting(0.3, "share of the start's diversity that may be lost", above=0, high=1)
    length: float = setting(2.0, "times longer or shorter than the start", above=1)
    repetition: float = setting(0.15, "more repeated word runs than at the start, share", above=0, high=1)
    form: float = setting(0.3, "more answers of broken form than at the start, share", above=0, high=1)
    kl: float = setting(1.0, "nats a token from the start", above=0)


@dataclass(frozen=True)
class SafetySettings:
    """Holds the training of sft, dpo and grpo to the model it starts from, the harder the riskier an example is (docs/safety.md)."""

    signal: str = setting(
        "none",
        "who tells an example's risk: probe, critic, both (the higher); constant (beta_max for all), random (shuffled: a control)",
        one_of=("none", "probe", "critic", "both", "constant", "random"),
    )
    beta_min: float = setting(0.1, "weight of the KL divergence at no risk; the task keeps 1 − β", low=0, high=1)
    beta_max: float = setting(0.9, "the same at full risk", low=0, high=1)
    map: str = setting(
        "linear",
        "risk to β: linear between the two, or clamp (brought between them, as the released code does)",
        one_of=("linear", "clamp"),
    )
    per: str = setting(
        "example", "each example has its own β, or the batch's mean as published", one_of=("example", "batch")
    )
    ema: float = setting(0.0, "λ: share of the running mean of earlier batches in an example's risk", low=0, high=0.99)
    reference: str = setting(
        "start",
        "what it is held to: start (the adapter that training starts from, else the base), or base",
        one_of=("start", "base"),
    )
    probe: str = setting("auto", "folder of a probe (`fablesmith probe train`); auto finds the one of this model")
    critic: str = setting(
        "embedded", "engine that scores examples 1 to 5: embedded, a catalogue name, a .gguf file, an http address …"
    )
    random_of: str = setting("probe", "random: whose risks are shuffled", one_of=("probe", "critic", "both"))
    harmful: str = setting("", "instruct: file of harmful requests that attack the result (none are shipped)")
    lookalikes: str = setting("", "instruct: file of safe requests that look unsafe, such as XSTest")
    judge: str = setting("", "instruct: engine that scores the answers to harmful requests; empty leaves it to rules")
    most: int = setting(60, "instruct: requests of each kind that are asked at the end, at most", low=1)
    max_tokens: int = setting(96, "instruct: longest answer to them", low=8)

    @property
    def asks(self) -> tuple[str, ...]:
        """Who is asked for risks: probe, critic, both of them or nobody."""
        signal = self.random_of if self.signal == "random" else self.signal
        return {"probe": ("probe",), "critic": ("critic",), "both": ("probe", "critic")}.get(signal, ())


@dataclass(frozen=True)
class ExportSettings:
    quantisation: str = setting("Q8_0", "of the merged GGUF", one_of=QUANTISATIONS)
    merge: str = setting(
        "auto",
        "one GGUF with the training in it (always), or the adapter alone for the base's GGUF (never); auto: alone from "
        "8 billion parameters, where 16-bit copies of the whole model cost more disk than they are worth",
        one_of=("auto", "always", "never"),
    )


@dataclass(frozen=True)
class EvaluateSettings:
    judge: str = setting("embedded", "engine that compares base and aligned; never the reward model")
    judge_on: str = setting("auto", "where a GGUF judge runs", one_of=("auto", "cpu", "gpu"))
    gpu_experts: str = setting(
        "auto",
        "plots: where the experts of writers and judges that are mixtures lie: auto (as it fits), all (on the card), none (in RAM)",
        one_of=("auto", "all", "none"),
    )
    passport: str = setting(
        "auto", "auto: the judge's passport is found or made; skip: judge without", one_of=("auto", "skip")
    )
    passport_pairs: int = setting(60, "comparisons of known order for a passport that must be made", low=8)
    people: str = setting("", "a file of people's ratings for that passport")
    panel: int = setting(4, "test premises whose plots a panel of critics hears besides; 0 is none", low=0)
    jury: tuple[str, ...] = setting((), "more engines on the panel, beside the judge")
    per_premise: int = setting(2, "texts a premise or request from each writer", low=1, high=16)
    best_of: int = setting(
        4, "greetings: the cold start's best of so many stands beside; 1 leaves it out", low=1, high=16
    )
    temperature: float = setting(0.8, "of all writers", low=0, high=5)


@dataclass(frozen=True)
class Recipe:
    """One run. `about` and `memory` are what `fablesmith recipes` prints."""

    name: str = setting("unnamed", "of the run's folder")
    about: str = setting("", "one line")
    memory: str = setting("", "what it needs")
    task: str = setting(
        "plot", "what is written; instruct learns from your own chats", one_of=("plot", "greeting", "instruct")
    )
    align: str = setting(
        "dpo", "by what the writer is aligned: dpo, grpo (greetings), sft (instruct)", one_of=("dpo", "grpo", "sft")
    )
    seed: int = setting(1, "of everything drawn at random", low=0)
    model: ModelSettings = field(default_factory=ModelSettings)
    premises: PremisesSettings = field(default_factory=PremisesSettings)
    candidates: CandidatesSettings = field(default_factory=CandidatesSettings)
    ratings: RatingsSettings = field(default_factory=RatingsSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    pairs: PairsSettings = field(default_factory=PairsSettings)
    deviation: DeviationSettings = field(default_factory=DeviationSettings)
    requests: RequestsSettings = field(default_factory=RequestsSettings)
    data: DataSettings = field(default_factory=DataSettings)
    sft: SftSettings = field(default_factory=SftSettings)
    rejection: RejectionSettings = field(default_factory=RejectionSettings)
    pairwise: PairwiseSettings = field(default_factory=PairwiseSettings)
    principles: PrinciplesSettings = field(default_factory=PrinciplesSettings)
    dpo: DpoSettings = field(default_factory=DpoSettings)
    grpo: GrpoSettings = field(default_factory=GrpoSettings)
    tripwire: TripwireSettings = field(default_factory=TripwireSettings)
    safety: SafetySettings = field(default_factory=SafetySettings)
    export: ExportSettings = field(default_factory=ExportSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)


# ---- reading


def recipes_folder() -> Path:
    """recipes/ of the checkout, or the copy inside the installed package."""
    beside = Path(__file__).resolve().parent.parent / "recipes"
    return beside if beside.is_dir() else Path(__file__).resolve().parent / "_recipes"


def find_recipe(name: str) -> Path:
    """A recipe's file by path or by name. Raises UserError with the nearest name."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = {p.stem: p for p in sorted(recipes_folder().glob("*.yaml"))}
    if name in shipped:
        return shipped[name]
    near = difflib.get_close_matches(path.stem, shipped, 1)
    known = f"did you mean {near[0]}?" if near else f"shipped: {', '.join(shipped)}"
    raise UserError(f"no recipe at {name}", known)


def load_recipe(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        name: path of a YAML file, or the name of a shipped recipe.
        overrides: "section.key=value" texts, values as YAML; they win over the file.

    Raises:
        UserError: unreadable YAML, unknown key, wrong type or range, or a file it names that is not there.
    """
    path = find_recipe(name)
    try:
        root = yaml.compose(path.read_text(encoding="utf-8")) or yaml.MappingNode("tag:yaml.org,2002:map", [])
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}", "mend the line") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text", "a recipe is a YAML file") from None
    data, lines = _plain(root, path)
    for override in overrides:
        _override(data, lines, override)
    data.setdefault("name", path.stem)
    recipe = _read(Recipe, data, lines, str(path), "")
    if not re.fullmatch(r"[\w.-]+", recipe.name) or recipe.name.startswith("."):
        where = _where(str(path), lines, "name")
        raise UserError(f"{where}: {recipe.name!r} cannot name a folder", "use letters, digits, - and _")
    _check_files(recipe, lines, str(path))
    return recipe


def _plain(node: yaml.Node, path: Path) -> tuple[dict, dict]:
    """YAML node → (values, line of every dotted key)."""
    lines: dict[str, int] = {}

    def walk(node, prefix):
        if not isinstance(node, yaml.MappingNode):
            try:
                return yaml.SafeLoader("").construct_object(node, deep=True)
            except (yaml.YAMLError, ValueError) as error:
                reason = getattr(error, "problem", None) or error
                raise UserError(
                    f"{path}:{node.start_mark.line + 1}: {prefix.rstrip('.')}: not a value: {reason}", "mend the line"
                ) from None
        out = {}
        for key_node, value in node.value:
            key = str(key_node.value)
            dotted = f"{prefix}{key}"
            if key in out:
                raise UserError(f"{path}:{key_node.start_mark.line + 1}: {dotted} is given twice", "remove one")
            lines[dotted] = key_node.start_mark.line + 1
            out[key] = walk(value, dotted + ".")
        return out

    data = walk(node, "")
    if not isinstance(data, dict):
        raise UserError(
            f"{path}: a recipe is a mapping of sections, not {type(data).__name__}", "see recipes/quickstart.yaml"
        )
    return data, lines


def _override(data: dict, lines: dict, text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {text}: expected section.key=value", "for example --set dpo.beta=0.2")
    *sections, last = key.strip().split(".")
    here, done = data, ""
    for section in sections:
        done += section
        if section not in here:
            lines[done] = 0
        here = here.setdefault(section, {})
        done += "."
        if not isinstance(here, dict):
            raise UserError(f"--set {text}: {section} is no section", "for example --set dpo.beta=0.2")
    try:
        here[last] = yaml.safe_load(value) if value.strip() else ""
    except (yaml.YAMLError, ValueError):
        raise UserError(f"--set {text}: {value!r} is not valid YAML", "quote it") from None
    dotted = key.strip()
    for line in [name for name in lines if name.startswith(dotted + ".")]:
        del lines[line]
    lines[dotted] = 0


def _where(file: str, lines: dict, dotted: str) -> str:
    parts = dotted.split(".")
    near = [lines[name] for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in lines]
    line = lines.get(dotted, 0 if near and near[0] == 0 else None)
    return f"--set {dotted}" if line == 0 else f"{file}:{line}: {dotted}" if line else f"{file}: {dotted}"


def _read(kind: type, data, lines: dict, file: str, prefix: str):
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in data.items():
        dotted = f"{prefix}{key}"
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, 1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(fields)}"
            raise UserError(f"{_where(file, lines, dotted)}: unknown key", hint)
        where, hint_type = _where(file, lines, dotted), hints[key]
        if dataclasses.is_dataclass(hint_type):
            if not isinstance(value, dict):
                raise UserError(
                    f"{where}: expected a section, got {value!r}",
                    f"keys: {', '.join(x.name for x in dataclasses.fields(hint_type))}",
                )
            values[key] = _read(hint_type, value, lines, file, dotted + ".")
        else:
            values[key] = _value(hint_type, value, fields[key].metadata, where)
    return kind(**values)


_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _value(kind, value, limits, where: str):
    if isinstance(kind, types.GenericAlias) or typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        if not isinstance(value, (list, tuple)) or not value:
            raise UserError(f"{where}: expected a list of {_NAMES[inner][2:]}s, got {value!r}", "for example [a, b]")
        return tuple(_value(inner, v, limits, where) for v in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as a text
        with contextlib.suppress(ValueError):
            value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"{where}: expected {_NAMES[kind]}, got {value!r}", limits["help"])
    if limits["one_of"] and value not in limits["one_of"]:
        near = difflib.get_close_matches(str(value), limits["one_of"], 1)
        raise UserError(
            f"{where}: {value!r} is not allowed",
            (f"did you mean {near[0]}? " if near else "") + f"one of {', '.join(limits['one_of'])}",
        )
    if kind in (int, float):
        low, high, above = limits["low"], limits["high"], limits["above"]
        wrong = (
            (low is not None and value < low)
            or (high is not None and value > high)
            or (above is not None and value <= above)
        )
        if wrong or not math.isfinite(value):
            lower = f"above {above}" if above is not None else f"at least {low}" if low is not None else ""
            upper = f"at most {high}" if high is not None else ""
            raise UserError(f"{where}: {value!r} is out of range", " and ".join(x for x in (lower, upper) if x))
    return value


def _is_path(name: str) -> bool:
    """Whether `name` means a file rather than a name of the catalogue."""
    return "/" in name or "\\" in name or name.endswith(".gguf")


def _check_files(recipe: Recipe, lines: dict, file: str) -> None:
    for dotted, name in (
        ("premises.file", recipe.premises.file),
        ("premises.plots", recipe.premises.plots),
        ("pairs.file", recipe.pairs.file),
        ("model.gguf", recipe.model.gguf if _is_path(recipe.model.gguf) else ""),
        ("evaluate.people", recipe.evaluate.people),
        ("requests.file", recipe.requests.file),
        ("requests.labelled", recipe.requests.labelled),
        ("data.file", recipe.data.file),
        ("safety.harmful", recipe.safety.harmful),
        ("safety.lookalikes", recipe.safety.lookalikes),
        ("principles.detector", recipe.principles.detector),
        ("principles.generator", recipe.principles.generator),
    ):
        if name and name != SHIPPED and not Path(name).is_file():
            raise UserError(f"{_where(file, lines, dotted)}: no file at {Path(name).absolute()}", "check the path")
    if recipe.pairs.file and recipe.pairs.select == "divpo":
        raise UserError(
            f"{_where(file, lines, 'pairs.select')}: divpo chooses among candidates, and pairs.file leaves nothing to choose",
            "take pairs.file or pairs.select out",
        )
    if recipe.align == "grpo" and recipe.task != "greeting":
        raise UserError(f"{_where(file, lines, 'align')}: grpo aligns greetings", "set task: greeting, or align: dpo")
    if (recipe.align == "sft") != (recipe.task == "instruct"):
        raise UserError(
            f"{_where(file, lines, 'align')}: {recipe.align} does not align task {recipe.task}",
            "task: instruct goes with align: sft",
        )
    _check_safety(recipe, lines, file)
    if recipe.task == "greeting" and recipe.pairs.file:
        raise UserError(
            f"{_where(file, lines, 'pairs.file')}: a greetings run makes its own pairs",
            "give requests.labelled, or align on your pairs with task: plot",
        )
    if recipe.task == "greeting" and recipe.align == "dpo" and recipe.dpo.loss in WEIGHTED:
        raise UserError(
            f"{_where(file, lines, 'dpo.loss')}: {recipe.dpo.loss} weighs pairs by deviation, which greetings do not measure",
            "take dpo or orpo",
        )
    if len(recipe.grpo.weights) != len(recipe.grpo.rewards):
        raise UserError(
            f"{_where(file, lines, 'grpo.weights')}: {len(recipe.grpo.weights)} for {len(recipe.grpo.rewards)} rewards",
            "give one weight a reward",
        )
    engines = [("ratings.rater", recipe.ratings.rater), ("evaluate.judge", recipe.evaluate.judge)]
    engines += [("safety.critic", recipe.safety.critic), ("safety.judge", recipe.safety.judge)]
    roles = ("agents", "writer", "positive", "negative", "judge", "reflector")
    engines += [(f"rejection.{role}", getattr(recipe.rejection, role)) for role in roles]
    engines.append(("principles.agent", recipe.principles.agent))
    for dotted, name in [*engines, *(("evaluate.jury", name) for name in recipe.evaluate.jury)]:
        if name.endswith(".gguf") and not Path(name).is_file():
            raise UserError(f"{_where(file, lines, dotted)}: no file at {Path(name).absolute()}", "check the path")


def _check_safety(recipe: Recipe, lines: dict, file: str) -> None:
    s = recipe.safety
    if s.beta_min > s.beta_max:
        raise UserError(
            f"{_where(file, lines, 'safety.beta_min')}: {s.beta_min} is above safety.beta_max = {s.beta_max}",
            "riskier examples are held harder, not softer",
        )
    if "critic" in s.asks and recipe.align == "grpo":
        raise UserError(
            f"{_where(file, lines, 'safety.signal')}: the critic reads answers, and grpo's are not written yet",
            "take signal: probe, which reads requests",
        )
    if "probe" in s.asks and s.probe != "auto" and not (Path(s.probe) / "probe.json").is_file():
        raise UserError(
            f"{_where(file, lines, 'safety.probe')}: no probe in {Path(s.probe).absolute()}",
            "fablesmith probe train makes one; auto finds the one of the model",
        )
