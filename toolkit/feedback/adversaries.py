"""What the agents of the adversarial rounds are asked, each question kept on disk with its answer."""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from toolkit.engines.base import Engine
from toolkit.feedback.principled import BLOCK, PrincipledJudge
from toolkit.greeting.asking import ask_json, object_schema
from toolkit.greeting.form import bounds, broken, clean, plain, runs
from toolkit.greeting.principles import LONGEST, MOST, Principles, fault
from toolkit.greeting.prompts import lines, prompt
from toolkit.greeting.requests import FLAWS
from toolkit.progress import batched
from toolkit.recipe import PrinciplesSettings
from toolkit.records import Labelled, Request, append_jsonl, read_jsonl

LINE = {"type": "string", "minLength": 1, "maxLength": LONGEST}
FLAWED = object_schema(greeting={**LINE, "maxLength": 600}, hidden=LINE)
HIDE = object_schema(suggestion=LINE)
REFLECTION = object_schema(explanation=LINE, suggestion=LINE)
RULES = object_schema(rules={"type": "array", "items": LINE, "minItems": 1, "maxItems": MOST})


@dataclass(frozen=True)
class Case:
    """A greeting with its known label, as put before the detector. `known` says to the reflector why it is what it is."""

    request: str
    greeting: str
    good: bool
    known: str
    hidden: str = ""  # what its generator says of the flaw; labelled ones have none


class _Kept:
    """What was asked and answered, on disk: a step that stands is not done again."""

    def __init__(self, path: Path):
        self.path, self.rows = path, {row["step"]: row for row in read_jsonl(path)}

    def once(self, step: str, inputs, do: Callable[[], dict]) -> dict:
        """The step's answer: from the file, or from `do`. Other inputs are another step."""
        told = json.dumps(inputs, ensure_ascii=False, sort_keys=True)
        key = f"{step}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
        if key not in self.rows:
            began = time.monotonic()
            row = {"step": key, **do()}
            row = json.loads(json.dumps({**row, "seconds": round(time.monotonic() - began, 3)}, ensure_ascii=False))
            append_jsonl(self.path, [row])
            self.rows[key] = row
        return self.rows[key]


class Adversaries:
    """The four agents, who asks them, and what it cost.

    Args:
        path: file of every answer; what stands there is not asked again.
    """

    def __init__(self, engines: dict[str, Engine], language: str, settings: PrinciplesSettings, path: Path, seed: int):
        self.engines, self.language, self.settings, self.seed = engines, language, settings, seed
        self.kept = _Kept(path)
        self.calibrated, self.shifts = False, {}  # whether, and by how much under each list of rules
        self._spent, self.errors, self.dropped = Counter(), Counter(), Counter()

    def spent(self) -> dict:
        """What was spent, and what failed, since the last call."""
        out = {"calls": self._spent["calls"], "tokens": self._spent["tokens"], "errors": dict(self.errors)}
        out |= {"dropped": dict(self.dropped), "seconds": round(self._spent["seconds"], 1)}
        self._spent, self.errors, self.dropped = Counter(), Counter(), Counter()
        return out

    def _ask(self, role: str, step: str, texts: list[str], schema: dict, words: int, accept=None) -> list[dict | None]:
        """The values of one question each; None, and the reason counted, where there is none."""
        if not texts:
            return []
        drawn = int(hashlib.sha256(f"{self.seed} {step}".encode()).hexdigest()[:7], 16)

        def do():
            asks = [[{"role": "user", "content": text}] for text in texts]
            tries = self.settings.tries
            found = ask_json(self.engines[role], asks, schema, words=words, tries=tries, seed=drawn, accept=accept)
            return {"asked": [asdict(a) for a in found]}

        row = self.kept.once(step, [role, texts, drawn, words, self.settings.tries], do)
        self._count(row, sum(a["calls"] for a in row["asked"]), sum(a["tokens_out"] for a in row["asked"]))
        self.errors.update(f"{role}: {a['error']}" for a in row["asked"] if a["value"] is None)
        return [a["value"] for a in row["asked"]]

    def _count(self, row: dict, calls: int, tokens: int = 0) -> None:
        self._spent.update(calls=calls, tokens=tokens, seconds=row["seconds"])

    def judge(self, principles: Principles) -> PrincipledJudge:
        """The detector, calibrated where this was chosen; its shift under each list is asked once."""
        judge = PrincipledJudge(self.engines["detector"], {self.language: principles}, self.settings.words)
        if self.calibrated:
            if principles.rules not in self.shifts:
                row = self.kept.once("shift", principles.rules, lambda: {"shift": judge.calibrate()[self.language]})
                self._count(row, 3)
                self.shifts[principles.rules] = row["shift"]
            judge.shift = {self.language: self.shifts[principles.rules]}
        return judge

    def detect(self, step: str, principles: Principles, cases: list[Case]) -> list[dict]:
        """Verdicts as dicts of PrincipledVerdict; one that is missing is counted."""
        if not cases:
            return []
        judge = self.judge(principles)
        asked = [[c.request for c in cases], [c.greeting for c in cases]]
        inputs = [principles.rules, asked, self.settings.words, judge.shift]
        row = self.kept.once(step, inputs, lambda: {"verdicts": [asdict(v) for v in judge.verdicts(*asked)]})
        self._count(row, len(cases))
        self.errors.update(f"detector: {v['error']}" for v in row["verdicts"] if v["good"] is None)
        return row["verdicts"]

    def measure(self, principles: Principles, labelled: list[Labelled]) -> list[float | None]:
        """Log-odds (nats) of the good and the flawed one of each pair under these principles, (2·N)."""
        judge = self.judge(principles)
        asked = [(x.request, text) for x in labelled for text in (x.good, x.bad)]
        odds: list[float | None] = []
        for number, block in enumerate(batched(asked, BLOCK)):
            texts = [list(column) for column in zip(*block, strict=True)]
            inputs = [principles.rules, texts, judge.shift]
            row = self.kept.once(f"gate.{number}", inputs, lambda texts=texts: {"odds": judge.reward(*texts)})
            self._count(row, len(block))
            odds += row["odds"]
        self.errors.update(["detector: no verdict on a held-out greeting"] * sum(o is None for o in odds))
        return odds

    def _prompt(self, name: str, **places: str) -> str:
        return prompt(name, self.language, **places)

    def flawed(self, step: str, s_g: Principles, requests: list[Request]) -> list[Case]:
        """Greetings the generator means to be bad. Those of broken form are dropped and counted: a rule finds them, no judge is
        asked about them in training either. "Too short" stays in: it is one of the published ways.
        """
        asks = []
        for r in requests:
            least, most = map(str, bounds(r))
            asks.append(self._prompt("generate", strategies=s_g.text, request=r.text, least=least, most=most))
        # a long greeting takes as much room again as what is said about it
        found = self._ask("generator", f"{step}.generate", asks, FLAWED, 2 * self.settings.words)
        cases = []
        size = (
            14 if self.language == "zh" else 9
        )  # characters or words in a row that nobody repeats by chance, as in `broken`
        for r, ask, value in zip(requests, asks, found, strict=True):
            if value is None:
                continue
            text = clean(value["greeting"], r)
            reasons = [x for x in broken(text, r) if x != "too short"]
            if set(runs(plain(text), size)) & set(runs(plain(ask), size)):
                reasons.append("echo")
            if reasons:
                self.dropped[f"generator: form, {reasons[0]}"] += 1
            else:
                known = self._prompt("known_bad", flaw=value["hidden"])
                cases.append(Case(r.text, text, False, known, value["hidden"]))
        return cases

    def known(self, rows: list[Labelled]) -> list[Case]:
        """Both greetings of each labelled pair."""
        fine = self._prompt("known_good")
        flaws = dict(line.split(": ", 1) for line in lines("flaws", "zh")) if self.language == "zh" else FLAWS
        cases = []
        for x in rows:
            flaw = self._prompt("known_bad", flaw=flaws.get(x.flaw, x.flaw)) if x.flaw else ""
            cases += [Case(x.request, x.good, True, fine), Case(x.request, x.bad, False, flaw)]
        return cases

    def how_to_hide(self, step: str, s_g: Principles, found_out: list[tuple[Case, dict]]) -> list[str]:
        texts = [
            self._prompt(
                "hide", strategies=s_g.text, request=c.request, greeting=c.greeting, hidden=c.hidden, reason=v["reason"]
            )
            for c, v in found_out
        ]
        values = self._ask("detector", f"{step}.hide", texts, HIDE, self.settings.words)
        return [v["suggestion"] for v in values if v]

    def reflect(self, step: str, s_d: Principles, wrong: list[tuple[Case, dict]]) -> list[str]:
        words = {True: "Good", False: "Bad"}
        texts = [
            self._prompt(
                "reflect_detector",
                principles=s_d.text,
                request=c.request,
                greeting=c.greeting,
                verdict=words[v["good"]],
                reason=v["reason"],
                truth=words[c.good],
                known=c.known,
            )
            for c, v in wrong
        ]
        # two sentences: the error, and the change
        values = self._ask("reflector", f"{step}.reflect", texts, REFLECTION, 2 * self.settings.words)
        return [v["suggestion"] for v in values if v]

    def usable(self, kind: str, suggestions: list[str], principles: Principles) -> list[str]:
        """Suggestions that could stand in the list; the others are dropped and counted."""
        kept: list[str] = []
        for text in suggestions:
            rule = _as_rule(text)
            if wrong := fault([rule]):
                self.dropped[f"{kind}: {wrong.replace('rule 1', 'suggestion')}"] += 1
            elif any(fault([r, rule]) for r in (*principles.rules, *kept)):
                self.dropped[f"{kind}: suggestion already there"] += 1
            else:
                kept.append(rule)
        return kept

    def rewrite(self, step: str, kind: str, old: Principles, suggestions: list[str]) -> Principles:
        """The list with the suggestions merged in; as it was when there is nothing to merge or no usable list came back."""
        if not suggestions:
            return old
        told = "\n".join(f"- {s}" for s in suggestions)
        text = self._prompt(f"optimise_{kind}", rules=old.text, suggestions=told, most=str(MOST))
        accept = lambda v: fault([_as_rule(r) for r in v["rules"]])  # noqa: E731
        # a list is as long as several explanations
        (value,) = self._ask("optimiser", f"{step}.optimise_{kind}", [text], RULES, 4 * self.settings.words, accept)
        return replace(old, rules=tuple(_as_rule(r) for r in value["rules"])) if value else old


def _as_rule(text: str) -> str:
    """One line, without a number or a dash before it."""
    return re.sub(r"^(\d+[.)、．]|[-*•])\s*", "", " ".join(text.split()))
