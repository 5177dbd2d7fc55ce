"""What the agents' debates left: records, counts, preference pairs in which length tells nothing, and readable text."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.greeting.form import length_of, overlap
from toolkit.greeting.writing import as_request, greet_prompt
from toolkit.recipe import RejectionSettings
from toolkit.records import Labelled, PreferencePair, Request, build
from toolkit.stats import wilson

ROLES = ("writer", "positive", "negative", "judge", "reflector")
SAME = 0.8  # overlap (form.overlap) from which two answers say the same and make no pair


@dataclass(frozen=True)
class Sampled:
    """One answer and all that was said of it.

    `verdict` is the judge's (1 good in every respect, 0 not, None where there is none and `error` says why), `reflected`
    the reflection agent's; `final` is what stands. `broken` lists what is wrong with the form: such an answer is 0
    without anybody being asked. `calls` and `tokens` (written) are by role; `seconds` is the answer's share of its unit.
    """

    id: str
    request_id: str
    request: str
    text: str
    language: str = "en"
    length: str = "medium"
    sampling: dict = field(default_factory=dict)
    raw: str = ""  # the answer before it was cleaned, where that changed it
    examples: tuple[str, ...] = ()  # request ids of the good greetings the judge was shown
    broken: tuple[str, ...] = ()
    merits: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    verdict: int | None = None
    reason: str = ""
    reflected: int | None = None
    overturned: bool = False
    cause: str = ""
    quote: str = ""
    error: str = ""
    calls: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def final(self) -> int | None:
        return self.reflected if self.overturned else self.verdict


def read_records(path: Path) -> list[Sampled]:
    """The records of a `sample`, which may be under way: unlike `read_jsonl`, a line half written is left in the file."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [build(Sampled, json.loads(line)) for line in lines if line]


def facts_of(records: list[Sampled], names: dict[str, str]) -> dict:
    """What came of it, in counts.

    Returns:
        {"requests", "asked": answers written, "judged": with a verdict of the debate, "accepted": of those, after
        reflection; "acceptance": [share of the judged, low, high] (Wilson), "overturned", "overturn": [share, low, high],
        "overturn_refused": changes of verdict without a quote that stands, "unreflected": verdicts whose reflector could
        not be read, "broken": answers of broken form, "form": {what: answers}, "no_verdict": {why: answers},
        "calls", "tokens", "seconds": by role, by role, in all; "names"}
    """
    judged = [r for r in records if r.final is not None and not r.broken]
    accepted, overturned = sum(r.final == 1 for r in judged), sum(r.overturned for r in judged)
    lacking = Counter(r.error[:100] for r in records if r.final is None)
    return {
        "names": names,
        "requests": len({r.request_id for r in records}),
        "asked": len(records),
        "judged": len(judged),
        "accepted": accepted,
        "acceptance": _share(accepted, len(judged)),
        "overturned": overturned,
        "overturn": _share(overturned, len(judged)),
        "overturn_refused": sum(r.reflected not in (None, r.verdict) and not r.overturned for r in judged),
        "unreflected": sum(r.reflected is None for r in judged),
        "broken": sum(bool(r.broken) for r in records),
        "form": dict(Counter(reason for r in records for reason in r.broken).most_common()),
        "no_verdict": dict(lacking.most_common()),
        "calls": {role: sum(r.calls.get(role, 0) for r in records) for role in ROLES},
        "tokens": {role: sum(r.tokens.get(role, 0) for r in records) for role in ROLES},
        "seconds": round(sum(r.seconds for r in records), 1),
    }


def _share(part: int, whole: int) -> list[float | None]:
    """[share, low, high]; None thrice for a share of nothing."""
    return [round(part / whole, 4), *(round(x, 4) for x in wilson(part, whole))] if whole else [None] * 3


# ---- pairs


@dataclass(frozen=True)
class _Candidate:
    chosen: Sampled
    rejected: Sampled
    longer: int  # length of the chosen less that of the rejected, in characters (zh) or words (en)
    apart: float  # |log of the ratio of lengths|


def to_pairs(records: list[Sampled], settings: RejectionSettings) -> tuple[list[PreferencePair], dict]:
    """Accepted × rejected answers of one request, in which the chosen is the longer one as often as the shorter one.

    Answers without a verdict never enter, nor do empty ones. A pair whose lengths differ more than `length_ratio` times,
    or that says nearly the same twice, is left out. At most `pairs` a request are taken: first those that even out the
    lengths, then faults of content before faults of form, answers not used yet, like lengths. What surplus of one
    direction remains is dropped, largest difference of length first, within each language.

    Returns:
        (pairs by request, {"pairs", "requests", "with_both", "without_accepted", "without_rejected": requests;
        "candidates", "dropped": {"length", "duplicate", "surplus", "balance"}, "chosen_longer", "chosen_shorter", "equal":
        pairs kept, "before_balance": {"chosen_longer", "chosen_shorter"}})
    """
    by_request: dict[str, list[Sampled]] = {}
    for record in records:
        by_request.setdefault(record.request_id, []).append(record)
    dropped = Counter(length=0, duplicate=0, surplus=0, balance=0)
    facts = Counter(requests=len(by_request), with_both=0, without_accepted=0, without_rejected=0, candidates=0)
    picked: dict[str, list[_Candidate]] = {}
    for _, rows in sorted(by_request.items()):
        good, bad = [r for r in rows if r.final == 1], [r for r in rows if r.final == 0 and r.text]
        facts["without_accepted"] += not good
        facts["without_rejected"] += not bad
        facts["with_both"] += bool(good and bad)
        facts["candidates"] += len(good) * len(bad)
        found = _candidates(good, bad, settings.length_ratio, dropped)
        own = picked.setdefault(rows[0].language, [])
        own += (taken := _pick(found, settings.pairs, _tilt(own)))
        dropped["surplus"] += len(found) - len(taken)
    before = [c for own in picked.values() for c in own]
    kept = [c for own in picked.values() for c in _balanced(own)]
    dropped["balance"] = len(before) - len(kept)
    kept.sort(key=lambda c: (c.chosen.request_id, c.chosen.id, c.rejected.id))
    pairs = [_pair(c.chosen, c.rejected) for c in kept]
    return pairs, {
        "pairs": len(pairs),
        **facts,
        "dropped": dict(dropped),
        **_directions(kept),
        "equal": sum(c.longer == 0 for c in kept),
        "before_balance": _directions(before),
    }


def _candidates(good: list[Sampled], bad: list[Sampled], ratio: float, dropped: Counter) -> list[_Candidate]:
    found = []
    for a in good:
        for b in bad:
            sizes = length_of(a.text, a.language), length_of(b.text, b.language)
            if max(sizes) > ratio * min(sizes):
                dropped["length"] += 1
            elif overlap(a.text, b.text) > SAME:
                dropped["duplicate"] += 1
            else:
                found.append(_Candidate(a, b, sizes[0] - sizes[1], abs(math.log(sizes[0] / sizes[1]))))
    return found


def _pick(found: list[_Candidate], most: int, tilt: int) -> list[_Candidate]:
    """`most` of one request's pairs; `tilt` is how many more pairs so far have the longer answer chosen."""
    taken: list[_Candidate] = []
    used: Counter[str] = Counter()
    while len(taken) < min(most, len(found)):
        lean = tilt + _tilt(taken)
        best = min(
            (c for c in found if c not in taken),
            key=lambda c: (
                c.longer * lean > 0,
                bool(c.rejected.broken),
                used[c.chosen.id] + used[c.rejected.id],
                c.apart,
                c.chosen.id,
                c.rejected.id,
            ),
        )
        taken.append(best)
        used.update((best.chosen.id, best.rejected.id))
    return taken


def _tilt(candidates: list[_Candidate]) -> int:
    return sum((c.longer > 0) - (c.longer < 0) for c in candidates)


def _balanced(candidates: list[_Candidate]) -> list[_Candidate]:
    """Without the surplus of one direction, the largest differences of length gone first."""
    surplus = _tilt(candidates)
    same = sorted(
        (c for c in candidates if c.longer * surplus > 0), key=lambda c: (-c.apart, c.chosen.id, c.rejected.id)
    )
    gone = same[: abs(surplus)]
    return [c for c in candidates if c not in gone]


def _directions(candidates: list[_Candidate]) -> dict[str, int]:
    return {
        "chosen_longer": sum(c.longer > 0 for c in candidates),
        "chosen_shorter": sum(c.longer < 0 for c in candidates),
    }


def _pair(chosen: Sampled, rejected: Sampled) -> PreferencePair:
    request = Request(chosen.request_id, chosen.request, length=chosen.length, language=chosen.language)
    ask = greet_prompt(request)[0]["content"]
    return PreferencePair(ask, chosen.text, rejected.text, request.id, chosen.id, rejected.id)


def curated_pairs(labelled: list[Labelled], requests: Sequence[Request] = ()) -> list[PreferencePair]:
    """Labelled greetings as pairs, in order.

    Args:
        requests: where each one's length stands; a request that is not among them is read from its text alone
            (`as_request`), and its prompt may then name another length than the request's own.
    """
    known = {r.id: r for r in requests}
    pairs = []
    for x in labelled:
        ask = greet_prompt(known.get(x.request_id) or as_request(x.request))[0]["content"]
        pairs.append(PreferencePair(ask, x.good, x.bad, x.request_id, f"{x.request_id}-good", f"{x.request_id}-bad"))
    return pairs


# ---- reading


def show_record(record: Sampled) -> str:
    """One answer and its debate as plain text, for `fablesmith debates`."""
    heat = record.sampling.get("temperature")
    lines = [f"{record.id}  {record.request}", "", record.text or "(nothing)", ""]
    if heat is not None:
        lines[0] += f"  (temperature {heat:g})"
    for title, points in (("for", record.merits), ("against", record.faults)):
        lines += [f"  {title:<10}{p}" for p in points]
    if record.examples:
        lines.append(f"  {'shown':<10}good greetings of {', '.join(record.examples)}")
    if record.verdict is not None:
        lines.append(f"  {'judge':<10}{record.verdict}: {record.reason}")
    if record.reflected is not None:
        did = (
            "overturns it"
            if record.overturned
            else "keeps it"
            if record.reflected == record.verdict
            else "would change it"
        )
        quote = f" (“{record.quote}”)" if record.quote else ""
        lines.append(f"  {'reflector':<10}{record.reflected}, {did}: {record.cause}{quote}")
    if record.error:
        lines.append(f"  {'error':<10}{record.error}")
    calls, tokens = sum(record.calls.values()), sum(record.tokens.values())
    stands = {1: "accepted", 0: "rejected", None: "no verdict"}[record.final]
    return "\n".join([*lines, "", f"  {stands}; {calls} calls, {tokens} tokens, {record.seconds:.1f} s"])
