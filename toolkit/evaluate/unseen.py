"""The unseen judge: a small regression on frozen sentence embeddings that no writer and no reward has ever met.

It learns from the labelled greetings of the test side alone which of two answers to one request is the good one. Its worth
is that nothing was trained to please it. It says how weak it is, and it is blind to some things: it sees worn and fresh wording and
whether an answer bears on its request; it does not see the order of words, an answer that breaks off or repeats itself, nor that
an answer is only its request again. greeting.form tells these. One regression a language.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

from toolkit.errors import UserError
from toolkit.evaluate.measures import length_of
from toolkit.models.embed import check_embedding, embed
from toolkit.records import Labelled, guess_language
from toolkit.stats import logistic, rounded, share_interval, span

MODELS = {"en": "minilm", "zh": "ngrams"}  # language → embedding model; both work without a network
RELATION = 0.5  # weight of the second block of features beside the first; 1 and 2 cost accuracy on labelled pairs
OTHERS = 0.5  # weight of a pair "good for this request, good for another one" beside a labelled pair; see `fit`
STRENGTHS = (0.001, 0.003, 0.01, 0.03)  # of the ridge, per labelled pair; chosen among by cross-validation
FOLDS, REPEATS = 5, 3  # of the cross-validation; one way of cutting a few dozen requests depends on luck
LEAST = 10  # requests of a language under which there is nothing to learn from
WEIGHTS, CARD = "unseen.safetensors", "unseen.json"


@dataclass(frozen=True)
class Regression:
    """One language's: score = features · weights, of `_blocks` times `scale`, each its own."""

    model: str
    weights: np.ndarray  # (2 D), float32
    scale: np.ndarray  # (2), float32
    strength: float


class Unseen:
    """Scores greetings by a pairwise logistic regression: log-odds that this answer, and not another one, is good.

    Only differences between answers to one request mean something: σ(score(a) − score(b)) is the probability that
    a is the better one.

    Attributes:
        quality: "all" and each language → {"accuracy": [value, low, high], the share of labelled pairs ordered rightly by
            a regression that had not seen the request; "length_only": [value, low, high], what "the longer one is good"
            would get; "own": [value, low, high], how often a good answer stands above another request's good answer;
            "pairs", "requests", "model", "strength", "trusted"}.
        left_out: language → why there is no judge for it.
    """

    def __init__(self, parts: dict[str, Regression], quality: dict, left_out: dict[str, str]):
        self.parts, self.quality, self.left_out = parts, quality, left_out

    @property
    def trusted(self) -> bool:
        """Whether, over all languages, it orders held-out pairs better than a coin: the interval lies above one half."""
        return self.quality["all"]["trusted"]

    @classmethod
    def fit(cls, labelled: list[Labelled], models: dict[str, str] | None = None, seed: int = 0) -> "Unseen":
        """Learn from labelled pairs: those of the test side, which nothing else has seen (the caller picks them).

        Features of an answer with embedding a to a request with embedding r: a, which can tell worn from fresh, and
        a ⊙ r, how the answer bears on its request; both brought to the same mean square over the pairs, then the second
        times RELATION. Ridge-penalised logistic loss on the differences good − bad, without intercept: which of the two
        stands first cannot matter. Beside each labelled pair stands a second one, weight OTHERS: the good answer above
        the good answer to another request. Not published; chosen because without it one fine greeting sent to everybody
        scored as well as an own one (half of such pairs were ordered
        rightly, three in four with it; labelled pairs neither better nor worse).

        Args:
            models: language → embedding model (models.embed); English minilm and Chinese ngrams where it names none.

        Raises:
            UserError: no language with at least LEAST labelled requests, or an embedding model that is not to be had.
        """
        models = {**MODELS, **(models or {})}
        parts: dict[str, Regression] = {}
        right: dict[
            str, dict[str, list]
        ] = {}  # language → request id → of each pair (right, own above other's, longer is good)
        left_out: dict[str, str] = {}
        for language in sorted({x.language for x in labelled}):
            rows = [x for x in labelled if x.language == language]
            groups = [x.request_id for x in rows]
            if len(set(groups)) < LEAST:
                left_out[language] = f"{len(set(groups))} labelled requests; at least {LEAST} are needed"
                continue
            model = models.get(language, MODELS["en"])
            check_embedding(model)
            other, couple = _couples(groups, np.random.default_rng(seed))
            pairs, scale = _pairs(rows, [rows[i] for i in other], model)
            turned, back = span(pairs)
            data = _Data(turned[: len(rows)], turned[len(rows) :], couple)
            every = np.ones(len(rows), bool)
            strength = _strength(data, every, np.random.default_rng(seed))
            weights = back @ _fit(data, every, strength)
            parts[language] = Regression(model, weights.astype(np.float32), scale.astype(np.float32), strength)
            hits, by_id = _cross_validated(data, seed), right.setdefault(language, {})
            for x, row in zip(rows, hits, strict=True):
                longer = np.sign(length_of(x.good) - length_of(x.bad)) / 2 + 0.5
                by_id.setdefault(x.request_id, []).append((*row, longer))
        if not parts:
            reasons = "; ".join(f"{language}: {why}" for language, why in left_out.items()) or "there are none"
            raise UserError(
                f"too few labelled greetings on the test side for an unseen judge ({reasons})",
                "give more labelled ones",
            )
        quality = {
            language: {**_quality(right[language], seed), "model": part.model, "strength": part.strength}
            for language, part in parts.items()
        }
        together = {(language, id): pairs for language, found in right.items() for id, pairs in found.items()}
        return cls(parts, {"all": _quality(together, seed), **quality}, left_out)

    def score(self, requests: list[str], answers: list[str]) -> np.ndarray:
        """(N,) log-odds scale, of answers[i] to the request's text requests[i].

        NaN where there is nothing to judge: an empty answer, or a request in a language without a judge.
        """
        scores = np.full(len(answers), np.nan)
        languages = [guess_language(r) for r in requests]
        for language, part in self.parts.items():
            mine = [i for i, a in enumerate(answers) if languages[i] == language and a.strip()]
            if mine:
                blocks = _blocks([requests[i] for i in mine], [answers[i] for i in mine], part.model)
                features = np.concatenate([b * s for b, s in zip(blocks, part.scale, strict=True)], axis=1)
                scores[mine] = features @ part.weights
        return scores

    def save(self, folder: Path) -> None:
        """Write unseen.safetensors and unseen.json."""
        tensors = {f"{k}.{name}": getattr(p, name) for k, p in self.parts.items() for name in ("weights", "scale")}
        save_file(tensors, folder / WEIGHTS)
        card = {
            "models": {language: part.model for language, part in self.parts.items()},
            "quality": self.quality,
            "left_out": self.left_out,
        }
        (folder / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Unseen":
        """Raises UserError where `folder` holds no unseen judge."""
        if not (folder / CARD).is_file() or not (folder / WEIGHTS).is_file():
            raise UserError(f"no unseen judge in {folder}", "the stage `unseen` of a greeting's run makes one")
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
        parts = {
            k: Regression(model, tensors[f"{k}.weights"], tensors[f"{k}.scale"], card["quality"][k]["strength"])
            for k, model in card["models"].items()
        }
        return cls(parts, card["quality"], card["left_out"])


def _blocks(requests: list[str], answers: list[str], model: str) -> list[np.ndarray]:
    """(N, D), (N, D): the answer, and how it bears on the request."""
    asked, answer = (embed(texts, model, "unseen judge").astype(float) for texts in (requests, answers))
    return [answer, asked * answer]


def _couples(groups: list[str], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Requests in twos (one three where they are odd): (N,) a row of the other request for each row, (N,) its couple.

    A couple stands on one side of every cut, so that no regression is asked about an answer it was taught.
    """
    names, place = np.unique(groups, return_inverse=True)
    order, last = rng.permutation(len(names)), len(names) // 2 - 1
    other, couple = np.zeros(len(groups), int), np.zeros(len(groups), int)
    for c in range(last + 1):
        members = order[2 * c :] if c == last else order[2 * c : 2 * c + 2]
        rows = [np.flatnonzero(place == m) for m in members]
        for mine, theirs in zip(rows, [*rows[1:], rows[0]], strict=True):
            other[mine], couple[mine] = np.resize(theirs, len(mine)), c
    return other, couple


def _pairs(rows: list[Labelled], others: list[Labelled], model: str) -> tuple[np.ndarray, np.ndarray]:
    """(2 N, P) differences, good − bad and then good − good for another request; (2,) what each block is multiplied by."""
    requests = [x.request for x in rows]
    good, bad, other = (
        _blocks(requests, texts, model)
        for texts in ([x.good for x in rows], [x.bad for x in rows], [x.good for x in others])
    )
    labelled = [g - b for g, b in zip(good, bad, strict=True)]
    scale = np.array([1, RELATION]) / [max(np.sqrt((d**2).sum(1).mean()), 1e-9) for d in labelled]
    blocks = [np.concatenate([d, g - o]) for d, g, o in zip(labelled, good, other, strict=True)]
    return np.concatenate([b * s for b, s in zip(blocks, scale, strict=True)], axis=1), scale


class _Data(NamedTuple):
    """`labelled`, `others` (N, R): the two differences of each row; `couple` (N,)."""

    labelled: np.ndarray
    others: np.ndarray
    couple: np.ndarray


def _fit(data: _Data, train: np.ndarray, strength: float, start: np.ndarray | None = None) -> np.ndarray:
    """(R,) from the rows `train` (N,) bool."""
    n = train.sum()
    weights = np.repeat([1 / n, OTHERS / n], n)
    return logistic(np.concatenate([data.labelled[train], data.others[train]]), weights, strength, start)


def _folds(couple: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) fold of each row; a couple's rows stand together."""
    names, place = np.unique(couple, return_inverse=True)
    return (rng.permutation(len(names)) % min(FOLDS, len(names)))[place]


def _strength(data: _Data, rows: np.ndarray, rng: np.random.Generator) -> float:
    """The ridge with the least held-out log-loss on the labelled pairs among `rows` (N,) bool."""
    fold, loss = np.full(len(rows), -1), dict.fromkeys(STRENGTHS, 0.0)
    fold[rows] = _folds(data.couple[rows], rng)
    for k in np.unique(fold[rows]):
        w = None
        for s in sorted(STRENGTHS, reverse=True):
            w = _fit(data, rows & (fold != k), s, w)
            loss[s] += np.logaddexp(0, -data.labelled[fold == k] @ w).sum()
    return min(loss, key=loss.get)


def _cross_validated(data: _Data, seed: int) -> np.ndarray:
    """(N, 2) share of REPEATS in which a regression that had not seen the request ordered each row's two pairs rightly.

    The ridge is chosen inside each training part, so that the figure is not flattered by the choice.
    """
    rng, hits = np.random.default_rng(seed + 1), np.zeros((len(data.couple), 2))
    for _ in range(REPEATS):
        fold = _folds(data.couple, rng)
        for k in np.unique(fold):
            train = fold != k
            w = _fit(data, train, _strength(data, train, rng))
            for i, x in enumerate((data.labelled, data.others)):
                hits[~train, i] += np.sign(x[~train] @ w) / 2 + 0.5
    return hits / REPEATS


def _quality(right: dict, seed: int) -> dict:
    """Shares with intervals, of request → pairs (right, own above another's, the longer one is good)."""
    groups = [np.array(pairs, float) for pairs in right.values()]
    accuracy, own, length = (rounded(share_interval([g[:, i] for g in groups], seed)) for i in range(3))
    return {
        "accuracy": accuracy,
        "length_only": length,
        "own": own,
        "pairs": sum(map(len, groups)),
        "requests": len(groups),
        "trusted": accuracy[1] is not None and accuracy[1] > 0.5,
    }
