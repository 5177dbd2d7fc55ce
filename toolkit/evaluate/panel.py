"""Agentic evaluation (PlotTwist's third part): critics for and against, a close reader who asks for quotes, an editor.

The number and roles of the paper's agents are not published; chosen because two opposed briefs cancel a judge's habitual
kindness, and because a claim that must be quoted from the text can be checked without trusting anybody. Debate can
harm as well as help: the single-call rating of the same model stands beside the panel's in every record.
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from toolkit.engines.base import Engine, Sampling
from toolkit.errors import EngineDown, UserError
from toolkit.evaluate.judge import DIGITS, GUARD, LANGUAGES, digit_rating, judge_plot, unfit
from toolkit.narrative.dimensions import DIMENSIONS, KEYS
from toolkit.narrative.prompts import prompt
from toolkit.narrative.quoting import guard_rule, quoted
from toolkit.narrative.writing import sentences_of
from toolkit.progress import bar
from toolkit.records import Plot, append_jsonl, guess_language, read_jsonl

CLAIMS = {
    "type": "object",
    "properties": {
        "claims": {
            "type": "array",
            "items": {"type": "string", "minLength": 12, "maxLength": 160},
            "minItems": 1,
            "maxItems": 2,
        }
    },
    "required": ["claims"],
    "additionalProperties": False,
}
QUOTE = {
    "type": "object",
    "properties": {"quote": {"type": "string", "maxLength": 160}},
    "required": ["quote"],
    "additionalProperties": False,
}
SIDES = {"merit": "critic_merit", "fault": "critic_fault"}
MOST_CLAIMS = 3  # that one quote may stand for: a reader that quotes the same line for everything has not read
SHORTEST = {"en": 3, "zh": 4}  # words (characters) of a quote: less occurs in any text


@dataclass(frozen=True)
class Claim:
    """What a critic said. `quote` is the plot's own words for it; `dropped` says why the claim does not count, if so."""

    dimension: str
    side: str
    claim: str
    quote: str = ""
    dropped: str = ""


@dataclass(frozen=True)
class Opinion:
    """What one model made of one plot: `scores` by the panel, `single` by one call; both empty where `error` says why."""

    judge: str
    scores: dict[str, float] = field(default_factory=dict)
    single: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    malformed: int = 0  # critics whose answer was no JSON of the asked form
    error: str = ""


@dataclass(frozen=True)
class PanelRating:
    """A jury's ratings of one plot: the mean of its members' panels, 1 … 10, beside the mean of their single calls."""

    plot_id: str
    opinions: tuple[Opinion, ...]

    def _mean(self, which: str) -> dict[str, float]:
        heard = [getattr(o, which) for o in self.opinions if getattr(o, which)]
        return {k: round(float(np.mean([h[k] for h in heard])), 4) for k in KEYS} if heard else {}

    @property
    def scores(self) -> dict[str, float]:
        return self._mean("scores")

    @property
    def single(self) -> dict[str, float]:
        return self._mean("single")

    @property
    def spread(self) -> dict[str, float]:
        """Standard deviation between the members, per dimension: 0 for a jury of one."""
        heard = [o.scores for o in self.opinions if o.scores]
        return {k: round(float(np.std([h[k] for h in heard])), 4) for k in KEYS} if heard else {}

    @property
    def error(self) -> str:
        if self.scores:
            return ""
        reasons = list(dict.fromkeys(o.error for o in self.opinions))
        return reasons[0] if len(reasons) == 1 else "; ".join(f"{o.judge}: {o.error}" for o in self.opinions)


def sit(
    members: dict[str, Callable[[], Engine]], plots: list[Plot], path: Path, guard: str = GUARD
) -> list[PanelRating]:
    """Each member hears every plot; one model is open at a time.

    Args:
        members: name → how to open the engine. Several models make a jury, whose rating is their mean.
        path: grows a line an opinion and is read again after a kill.

    Raises EngineDown when a member is gone for good: what was heard stays in `path`.
    """
    opinions = {(row["plot_id"], row["member"]): _opinion(row) for row in read_jsonl(path)}
    progress = bar(total=len(plots) * len(members), desc="panel", unit="plot", initial=len(opinions))
    for member, opening in members.items():
        todo = [p for p in plots if (p.id, member) not in opinions]
        engine = opening() if todo else None
        for plot in todo:
            opinions[plot.id, member] = found = hear(engine, plot, guard)
            append_jsonl(path, [{"plot_id": plot.id, "member": member, **dataclasses.asdict(found)}])
            progress.update(1)
        if engine is not None:
            engine.close()
    progress.close()
    return [PanelRating(p.id, tuple(opinions[p.id, member] for member in members)) for p in plots]


def _opinion(row: dict) -> Opinion:
    claims = tuple(Claim(**c) for c in row["claims"])
    return Opinion(**{k: v for k, v in row.items() if k not in ("plot_id", "member", "claims")}, claims=claims)


def hear(engine: Engine, plot: Plot, guard: str = GUARD) -> Opinion:
    """Critics, close reader and editor, all played by one model; and its single-call rating."""
    if why := unfit(plot.text, LANGUAGES):
        return Opinion(engine.name, error=why)
    try:
        single = judge_plot(engine, plot, 0, guard).scores
        claims, malformed = _criticise(engine, plot.text, guard)
        if malformed == len(DIMENSIONS) * len(SIDES):
            return Opinion(
                engine.name, single=single, malformed=malformed, error="no critic answered in the asked form"
            )
        claims = _read_closely(engine, plot.text, claims, guard)
        scores, reasons = _edit(engine, plot.text, claims, guard)
    except EngineDown:
        raise
    except UserError as error:
        return Opinion(engine.name, error=str(error))
    return Opinion(engine.name, scores, single, reasons, tuple(claims), malformed)


def _messages(text: str, guard: str, question: str) -> list[dict[str, str]]:
    """System, then the plot, then the question: all agents of a panel share the beginning, so that it is read once."""
    language = guess_language(text)
    system = f"{prompt('judge_system', language)} {guard_rule(guard, language)}".strip()
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": f"{quoted(text, guard)}\n\n{question}"},
    ]


def _criticise(engine: Engine, text: str, guard: str) -> tuple[list[Claim], int]:
    language = guess_language(text)
    briefs = [(d, side) for d in DIMENSIONS for side in SIDES]
    asks = [_messages(text, guard, prompt(SIDES[s], language, name=d.name, asks=d.asks)) for d, s in briefs]
    drawn = Sampling(temperature=0, max_tokens=160, schema=json.dumps(CLAIMS))
    claims, malformed = [], 0
    for (d, side), (answer,) in zip(briefs, engine.generate(asks, 1, drawn), strict=True):
        said = _json(answer, "claims", list)
        malformed += said is None
        claims += [Claim(d.key, side, c.strip()) for c in (said or [])[:2] if isinstance(c, str) and c.strip()]
    return claims, malformed


def _read_closely(engine: Engine, text: str, claims: list[Claim], guard: str) -> list[Claim]:
    """The claims with the quotes found for them; what says nothing or cannot be quoted is marked as dropped."""
    language = guess_language(text)
    claims = _worth_reading(claims, text)
    todo = [c for c in claims if not c.dropped]
    asks = [_messages(text, guard, prompt("close_reader", language, claim=c.claim)) for c in todo]
    drawn = Sampling(temperature=0, max_tokens=80, schema=json.dumps(QUOTE))
    quotes = [_json(answers[0], "quote", str) for answers in (engine.generate(asks, 1, drawn) if asks else [])]
    used = Counter(plain(q) for q in quotes if q)
    read = []
    for claim in claims:
        if not claim.dropped:
            quote = quotes.pop(0)
            why = "no quote in the asked form" if quote is None else why_unsupported(quote, text)
            if not why and used[plain(quote)] > MOST_CLAIMS:
                why = "the same quote for everything"
            claim = replace(claim, quote=(quote or "").strip(), dropped=why)
        read.append(claim)
    return read


def _worth_reading(claims: list[Claim], text: str) -> list[Claim]:
    """Claims that only copy the plot, or were made before on the same dimension and side, are dropped at once."""
    seen, out = set(), []
    for claim in claims:
        said = (claim.dimension, claim.side, plain(claim.claim))
        why = "only copies the plot" if f" {said[2]} " in f" {plain(text)} " else "said already" if said in seen else ""
        seen.add(said)
        out.append(replace(claim, dropped=why))
    return out


def why_unsupported(quote: str, text: str) -> str:
    """Why `quote` is no evidence from `text`; "" when it is. Case, spaces and kinds of quotation marks do not matter."""
    said, language = plain(quote), guess_language(quote)
    size = len(said.replace(" ", "")) if language == "zh" else len(said.split())
    if not said:
        return "nothing quoted"
    if size < SHORTEST[language]:
        return "the quote is too short to show anything"
    if not (f" {said} " in f" {plain(text)} " or (language == "zh" and said in plain(text))):
        return "not in the plot"
    return "more than one place quoted" if sum(plain(s) in said for s in sentences_of(text)) > 1 else ""


def plain(text: str) -> str:
    """Letters and digits in lower case, one space between words."""
    return re.sub(r"[\W_]+", " ", text.lower()).strip()


def _edit(engine: Engine, text: str, claims: list[Claim], guard: str) -> tuple[dict, dict]:
    language = guess_language(text)
    asks = []
    for d in DIMENSIONS:
        kept = {
            side: "\n".join(
                f"- {c.claim} (“{c.quote}”)"
                for c in claims
                if c.dimension == d.key and c.side == side and not c.dropped
            )
            for side in SIDES
        }
        question = prompt("judge_score", language, name=d.name, asks=d.asks)
        words = {"merits": kept["merit"] or "- none", "faults": kept["fault"] or "- none", "question": question}
        asks.append(_messages(text, guard, prompt("editor", language, name=d.name, **words)))
    answers = engine.choose(asks, list(DIGITS), 32)
    scores = {d.key: digit_rating(a) for d, a in zip(DIMENSIONS, answers, strict=True)}
    return scores, {d.key: a.reason for d, a in zip(DIMENSIONS, answers, strict=True) if a.reason}


def _json(answer: str, key: str, kind: type):
    """The value under `key` of a JSON answer when it is of `kind`; None for anything else (cut off, other form)."""
    try:
        value = json.loads(answer)[key]
    except (ValueError, LookupError, TypeError):
        return None
    return value if isinstance(value, kind) else None


def summarise_panel(ratings: list[PanelRating], writer: dict[str, str]) -> dict:
    """What the panels found and what they dropped.

    Args:
        writer: plot id → who wrote it.

    Returns:
        {"members", "writers": {writer: {"plots", "panel": {dimension: mean}, "single": the same by single calls}},
        "claims", "kept", "dropped": {reason: count}, "malformed", "without_rating": {reason: count}}.
    """
    claims = [c for r in ratings for o in r.opinions for c in o.claims]
    writers = {}
    for name in dict.fromkeys(writer[r.plot_id] for r in ratings):
        rated = [r for r in ratings if writer[r.plot_id] == name and r.scores]
        writers[name] = {"plots": len(rated)} | {
            which: {k: round(float(np.mean([getattr(r, at)[k] for r in rated])), 4) for k in KEYS} if rated else {}
            for which, at in (("panel", "scores"), ("single", "single"))
        }
    return {
        "members": list(dict.fromkeys(o.judge for r in ratings for o in r.opinions)),
        "writers": writers,
        "claims": len(claims),
        "kept": sum(not c.dropped for c in claims),
        "dropped": dict(Counter(c.dropped for c in claims if c.dropped)),
        "malformed": sum(o.malformed for r in ratings for o in r.opinions),
        "without_rating": dict(Counter(r.error for r in ratings if not r.scores)),
    }
