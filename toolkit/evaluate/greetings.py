"""Writers of greetings compared on the same requests: rewards, the unseen judge, diversity, length, form and cost.

Everything is paired by request and every interval draws whole requests: two greetings to one request are not two
independent observations.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from toolkit.errors import UserError
from toolkit.evaluate.measures import opening_of, pair_distance
from toolkit.evaluate.shared_names import names_interval
from toolkit.evaluate.unseen import MODELS, Unseen
from toolkit.greeting.form import length_of
from toolkit.models.embed import embed
from toolkit.narrative.words import ngrams, words_of
from toolkit.records import Request, guess_language
from toolkit.stats import bootstrap, length_controlled, rounded, share_interval

UNSEEN_FAULTS = {
    "empty",
    "language",
    "echo",
    "repeats",
    "placeholder",
    "unfinished",
}  # which the unseen judge is blind to
RUN = {"en": 4, "zh": 8}  # words (Chinese characters) that two texts must share in a row to count as repeating
NONE = [None, None, None]
Scorer = Callable[[list[str], list[str]], list[float | None]]


@dataclass(frozen=True)
class Writer:
    """What one writer handed in: request id → its answers, in the order in which it wrote them; and what that took.

    `seconds` and `calls` are of the writing and scoring of these answers, of all that were written to pick them from too.
    """

    name: str
    answers: dict[str, list[str]]
    seconds: float = 0.0
    calls: int = 0


def best_of(answers: dict[str, list[str]], scores: dict[str, list[float | None]], n: int) -> dict[str, list[str]]:
    """The best by score of each n answers in a row to a request: 8 answers at n = 4 leave 2.

    An answer without a score (None, NaN) is never preferred; where none of the n has one nothing was chosen, and the
    first is handed in, as the writer would have.

    Raises:
        UserError: a number of answers that n does not divide.
    """
    picked: dict[str, list[str]] = {}
    for id, texts in answers.items():
        if len(texts) % n:
            raise UserError(
                f"{len(texts)} answers to request {id} cannot be cut into groups of {n}", "write a multiple"
            )
        known = [s if s is not None and np.isfinite(s) else -np.inf for s in scores[id]]
        best = [max(range(at, at + n), key=lambda i: known[i]) for at in range(0, len(texts), n)]
        picked[id] = [texts[i] for i in best]
    return picked


def answer_rows(writers: list[Writer], requests: list[Request]) -> list[dict]:
    """One row an answer, for answers.jsonl, which the report reads: request_id, request, language, writer, k, text."""
    return [
        {"request_id": r.id, "request": r.text, "language": r.language, "writer": w.name, "k": k, "text": text}
        for r in requests
        for w in writers
        for k, text in enumerate(w.answers.get(r.id, []))
    ]


def measure(
    writers: list[Writer],
    requests: list[Request],
    scorers: dict[str, Scorer],
    unseen: Unseen | None,
    baseline: str = "sft",
    seed: int = 0,
    *,
    broken: Callable[[str, Request], list[str]] | None = None,
    telling: dict[str, list] | None = None,
    models: dict[str, str] | None = None,
) -> dict:
    """Compare writers; the facts of the stage `evaluate`. Figures are [value, low, high] with 95 % intervals over requests.

    Args:
        scorers: name → (the requests' texts, answers) → a score an answer, None or NaN where there is none.
        unseen: the judge that nothing was trained on; None leaves its columns out.
        baseline: the writer the others are compared with, by paired differences on the requests both answered.
        broken: (text, request) → why its form is broken (greeting.form.broken). An answer with one of UNSEEN_FAULTS gets no
            score of the unseen judge, which cannot see them: it loses to one that has a score ("void" counts them).
        telling: writer → its most telling n-grams, passed on to the report.
        models: language → embedding model of the diversity.

    Returns:
        {"baseline", "requests" (number), "languages", "scorers" (names), "judge" (its quality by language, or None),
        "writers": [{"name", "texts", "missing" (requests without an answer), "empty",
        "scores": {scorer: {"mean", "difference", "unscored"}},
        "unseen": {"mean", "difference", "wins", "by_language", "length_controlled", "won", "lost", "tied", "void"} or None,
        "diversity": {"mean", "difference"}, "by_language": {language: {"length" (greeting.form.length_of), "openings", "repeats"}},
        "broken": {"share", "reasons"} or None, "telling", "seconds", "calls"}]}. The baseline has no difference.

    Raises:
        UserError: no request, a baseline that is no writer, or a name that occurs twice.
    """
    names = [w.name for w in writers]
    if not requests:
        raise UserError("no requests to compare writers on", "the test side must have at least one")
    if baseline not in names or len(set(names)) < len(names):
        raise UserError(f"cannot compare {', '.join(names)} with {baseline}", "name each writer once, the baseline too")
    models = {**MODELS, **(models or {})}
    rows = [_Answers(w, requests, scorers, unseen, models, broken) for w in writers]
    base = rows[names.index(baseline)]
    return {
        "baseline": baseline,
        "requests": len(requests),
        "languages": sorted({r.language for r in requests}),
        "scorers": list(scorers),
        "judge": unseen.quality if unseen else None,
        "writers": [
            {**row.facts(None if row is base else base, seed), "telling": (telling or {}).get(row.writer.name)}
            for row in rows
        ],
    }


def answer_distances(
    groups: list[list[str]], languages: list[str] | None = None, models: dict[str, str] | None = None
) -> list[float]:
    """Mean cosine distance of the answers to each request, NaN under two that say anything.

    Args:
        languages: of each group; by default as its texts look.
        models: language → embedding model (models.embed), MODELS by default.
    """
    models = {**MODELS, **(models or {})}
    kept = [[t for t in texts if t.strip()] for texts in groups]
    languages = languages or [guess_language(" ".join(texts)) for texts in kept]
    found = [float("nan")] * len(groups)
    for language in set(languages):
        mine = [i for i, texts in enumerate(kept) if languages[i] == language and len(texts) > 1]
        if mine:
            vectors = embed([t for i in mine for t in kept[i]], models.get(language, MODELS["en"]))
            ends = np.cumsum([len(kept[i]) for i in mine])[:-1]
            for i, own in zip(mine, np.split(vectors, ends), strict=True):
                found[i] = pair_distance(own)
    return found


class _Answers:
    """A writer's answers with all that is known of each: request id → one value an answer."""

    def __init__(self, writer: Writer, requests, scorers: dict, unseen: Unseen | None, models: dict, broken):
        self.writer, self.requests = writer, [r for r in requests if writer.answers.get(r.id)]
        self.missing = len(requests) - len(self.requests)
        self.texts = {r.id: writer.answers[r.id] for r in self.requests}
        self.broken = {r.id: [broken(t, r) for t in self.texts[r.id]] for r in self.requests} if broken else None
        self.scores = {name: self._scored(scorer) for name, scorer in scorers.items()}
        self.judged = self._scored(unseen.score) if unseen else None
        if self.judged and self.broken:
            for id, rows in self.broken.items():
                self.judged[id][[bool(UNSEEN_FAULTS & set(reasons)) for reasons in rows]] = np.nan
        groups = [self.texts[r.id] for r in self.requests]
        apart = answer_distances(groups, [r.language for r in self.requests], models)
        self.apart = {r.id: d for r, d in zip(self.requests, apart, strict=True) if not np.isnan(d)}

    def _scored(self, scorer: Scorer) -> dict[str, np.ndarray]:
        """All answers in one call; NaN for no score, and for an empty answer, which is not asked about."""
        asked = [(r, k, t) for r in self.requests for k, t in enumerate(self.texts[r.id]) if t.strip()]
        found = {id: np.full(len(texts), np.nan) for id, texts in self.texts.items()}
        values = scorer([r.text for r, _, _ in asked], [t for _, _, t in asked]) if asked else []
        for (r, k, _), value in zip(asked, values, strict=True):
            found[r.id][k] = np.nan if value is None else value
        return found

    def facts(self, base: "_Answers | None", seed: int) -> dict:
        texts = [t for r in self.requests for t in self.texts[r.id]]
        return {
            "name": self.writer.name,
            "texts": len(texts),
            "missing": self.missing,
            "empty": sum(not t.strip() for t in texts),
            "scores": {
                name: {
                    **_mean_and_difference(_means(found), _means(base.scores[name]) if base else None, seed),
                    "unscored": int(sum(np.isnan(v).sum() for v in found.values())),
                }
                for name, found in self.scores.items()
            },
            "unseen": self._unseen(base, seed),
            "diversity": _mean_and_difference(self.apart, base.apart if base else None, seed),
            "by_language": {
                language: self._wording(language, seed) for language in sorted({r.language for r in self.requests})
            },
            "broken": self._form(seed) if self.broken else None,
            **{k: getattr(self.writer, k) for k in ("seconds", "calls")},
        }

    def _unseen(self, base: "_Answers | None", seed: int) -> dict | None:
        if self.judged is None:
            return None
        found = _mean_and_difference(_means(self.judged), _means(base.judged) if base else None, seed)
        found["void"] = int(sum(np.isnan(v).sum() for v in self.judged.values()))
        if base is None:
            return found
        meetings = {r.id: self._meetings(base, r) for r in self.requests if r.id in base.texts}
        language = {r.id: r.language for r in self.requests}
        points = {id: rows[:, 0] for id, rows in meetings.items()}
        every = np.concatenate([*points.values(), []])
        return {
            **found,
            "wins": rounded(share_interval(list(points.values()), seed)),
            "by_language": {
                name: rounded(share_interval([p for id, p in points.items() if language[id] == name], seed))
                for name in sorted(set(language.values()))
            },
            "length_controlled": rounded(length_controlled(list(meetings.values()), seed)),
            **{name: int((every == value).sum()) for name, value in (("won", 1), ("lost", 0), ("tied", 0.5))},
        }

    def _meetings(self, base: "_Answers", request: Request) -> np.ndarray:
        """(pairs, 2): points of each answer against each of the baseline's to one request, and log ratio of lengths.

        Ties count half. Where one of the two has no score (it is empty, or void) it loses; where neither has one they tie.
        """
        rows, id = [], request.id
        for (a, x), (b, y) in itertools.product(
            zip(self.texts[id], self.judged[id], strict=True), zip(base.texts[id], base.judged[id], strict=True)
        ):
            x, y = (v if np.isfinite(v) else -np.inf for v in (x, y))
            ratio = np.log(max(length_of(a, request.language), 1) / max(length_of(b, request.language), 1))
            rows.append((1.0 if x > y else 0.0 if x < y else 0.5, ratio))
        return np.array(rows)

    def _wording(self, language: str, seed: int) -> dict:
        """Length in words (Chinese characters); how often two requests' answers begin alike, or repeat a run of words."""
        mine = {r.id: [t for t in self.texts[r.id] if t.strip()] for r in self.requests if r.language == language}
        mine = {id: texts for id, texts in mine.items() if texts}
        runs = {id: [set(ngrams(words_of(t), RUN.get(language, 4))) for t in texts] for id, texts in mine.items()}
        begun = {id: [opening_of(t) for t in texts] for id, texts in mine.items()}
        lengths = {id: np.array([length_of(t, language) for t in texts], float) for id, texts in mine.items()}
        return {
            "length": rounded(bootstrap(list(_means(lengths).values()), seed=seed), 1),
            "openings": _across(begun, lambda a, b: a == b, seed),
            "repeats": _across(runs, lambda a, b: bool(a & b), seed),
        }

    def _form(self, seed: int) -> dict:
        groups = [np.array([bool(reasons) for reasons in rows], float) for rows in self.broken.values()]
        counts = Counter(reason for rows in self.broken.values() for reasons in rows for reason in reasons)
        return {"share": rounded(share_interval(groups, seed)), "reasons": dict(counts.most_common())}


def _means(values: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean of a request's known values; requests without any are left out."""
    known = {id: v[np.isfinite(v)] for id, v in values.items()}
    return {id: float(v.mean()) for id, v in known.items() if len(v)}


def _mean_and_difference(mine: dict[str, float], base: dict[str, float] | None, seed: int) -> dict:
    """{"mean": …, "difference": mine − base on the requests that both have, None without a base}."""
    found = {"mean": rounded(bootstrap(list(mine.values()), seed=seed)) if mine else NONE, "difference": None}
    if base is not None:
        gaps = [mine[id] - base[id] for id in mine if id in base]
        found["difference"] = rounded(bootstrap(gaps, seed=seed)) if gaps else NONE
    return found


def _across(rows: dict[str, list], same: Callable, seed: int) -> list[float | None]:
    """Chance that an answer to one request and one to another are the `same`, with its interval over requests."""
    shares: dict[str, dict[str, float]] = {id: {} for id in rows}
    for p, q in itertools.combinations(rows, 2):
        share = float(np.mean([same(a, b) for a in rows[p] for b in rows[q]]))
        shares[p][q] = shares[q][p] = share
    return rounded(names_interval([shares], lambda s: s[0], seed))


# ---- in words


def verdict_lines(found: dict) -> list[str]:
    """What the comparison says of each writer against the baseline, in plain sentences."""
    judge, base = found["judge"], found["baseline"]
    lines = []
    if judge:
        value, low, high = judge["all"]["accuracy"]
        lines.append(
            f"The unseen judge orders {_pct(value)} of {judge['all']['pairs']} labelled pairs rightly that it had not seen "
            f"({_pct(low)} to {_pct(high)}; length alone {_pct(judge['all']['length_only'][0])}): "
            + ("better than a coin. It compares embeddings and cannot see whether a text makes sense: read the greetings too." if judge["all"]["trusted"] else "no better than a coin for all we know, so its verdicts below say nothing.")
        )  # fmt: skip
    for writer in found["writers"]:
        if writer["name"] == base:
            continue
        moved = {}
        for name in found["scorers"]:
            gap = writer["scores"][name]["difference"]
            moved[name] = gap[1] is not None and (gap[1] > 0) - (gap[2] < 0)
        up = [name for name, way in moved.items() if way and way > 0]
        down = [name for name, way in moved.items() if way and way < 0]
        said = [f"{name} rose" for name in up] + [f"{name} fell" for name in down]
        text = f"{writer['name']} against {base}: " + (", ".join(said) if said else "no reward moved measurably")
        if judge and writer["unseen"]:
            value, low, high = writer["unseen"]["wins"]
            if value is None:
                text += "; the unseen judge has nothing to compare"
            else:
                verdict = (
                    "a gain before this judge"
                    if low > 0.5
                    else "a loss before this judge"
                    if high < 0.5
                    else "no clear difference"
                )
                verdict = verdict if judge["all"]["trusted"] else "not to be relied on"
                text += f"; the unseen judge prefers it in {_pct(value)} ({_pct(low)} to {_pct(high)}): {verdict}"
                if up and not low > 0.5:
                    text += ". A reward rose, and the unseen judge does not confirm it"
        gap = writer["diversity"]["difference"]
        if gap and gap[1] is not None and (gap[2] < 0 or gap[1] > 0):
            text += f". Its greetings are {'less' if gap[2] < 0 else 'more'} diverse ({gap[0]:+.2f})"
        lines.append(text + ".")
    return lines


def _pct(value: float | None) -> str:
    return "?" if value is None else f"{100 * value:.0f} %"
