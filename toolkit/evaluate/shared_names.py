"""The same names in every story: how often a writer's texts of different premises share one."""

from collections import Counter
from collections.abc import Callable

import numpy as np

from toolkit.evaluate.measures import cut_to, length_of
from toolkit.narrative.names import names_in, words_in
from toolkit.records import written_in
from toolkit.stats import DRAWS, rounded


def name_index(
    groups: dict[str, list[str]], premises: dict[str, str], *, words: int | None = None, seed: int = 0
) -> dict:
    """The “Elara” index: the chance that two texts of one writer, of two different premises, share a name.

    Every pair of premises counts the same; a name that a text's own premise gives does not count. Names are found by
    their capitals (narrative.names), so only in English: other texts are left out, and without any the index is None,
    which is not 0. Not published; chosen because a model that has learnt to please calls everybody the same.

    Args:
        words: names count in the first so many words of a text, and shorter texts are left out; None takes whole texts.

    Returns:
        {"index": [value, low, high], 95 % by drawing premises; "texts", "premises" counted; "top": the ten names of
        most premises, [name, texts, premises]; "why" there is no index, or ""}.
    """
    shares, top, texts, why = shared_names(groups, premises, words)
    return {
        "index": rounded(names_interval([shares], lambda s: s[0], seed)),
        "texts": texts,
        "premises": len(shares),
        "top": top,
        "why": why,
    }


def shared_names(groups: dict, premises: dict, words: int | None) -> tuple[dict, list, int, str]:
    """(premise → premise → share of pairs of texts with a name in common, top names, texts, why there is nothing)."""
    rows = [(p, t) for p, texts in groups.items() for t in texts if words is None or length_of(t) >= words]
    english = [(p, t) for p, t in rows if written_in(t) == "en"]
    if not english:
        why = "names are found by their capitals, in English only" if rows else f"no text of {words} words"
        return {}, [], 0, why
    found: dict[str, list[set[str]]] = {}
    for (p, text), names in zip(english, names_in([t for _, t in english]), strict=True):
        kept = {w for _, _, w in words_in(cut_to(text, words) if words else text)}
        given = {w.lower() for _, _, w in words_in(premises.get(p, ""))}
        found.setdefault(p, []).append({n for n in names & kept if n.lower() not in given})
    ids, flat = list(found), [n for sets in found.values() for n in sets]
    column = {name: i for i, name in enumerate(sorted(set().union(*flat)))}
    table = np.zeros((len(flat), len(column) or 1), np.float32)
    for i, names in enumerate(flat):
        table[i, [column[n] for n in names]] = 1
    starts = np.cumsum([0, *(len(found[p]) for p in ids)])[:-1]
    shares: dict[str, dict[str, float]] = {}
    for p, mine in zip(
        ids, np.split(table, starts[1:]), strict=True
    ):  # a premise at a time: all pairs at once would be too many
        meets = np.add.reduceat((mine @ table.T > 0).mean(0), starts) / [len(found[q]) for q in ids]
        shares[p] = dict(zip(ids, meets.tolist(), strict=True))
    counts = Counter(n for names in flat for n in names)
    spread = Counter(n for sets in found.values() for n in set().union(*sets))
    top = sorted(counts, key=lambda n: (-spread[n], -counts[n], n))[:10]
    why = "" if len(shares) > 1 else "one premise only: names are compared across premises"
    return shares, [[n, counts[n], spread[n]] for n in top], len(flat), why


def names_interval(writers: list[dict], statistic: Callable, seed: int) -> tuple[float, float, float]:
    """(statistic of the writers' indices, low, high): premises they share drawn 2000 times, a premise never against itself."""
    ids = [p for p in writers[0] if all(p in shares for shares in writers)]
    if len(ids) < 2:
        return (float("nan"),) * 3
    tables = [np.array([[shares[p][q] if p != q else 0.0 for q in ids] for p in ids]) for shares in writers]

    def at(w: np.ndarray):
        pairs = w.sum(-1) ** 2 - (w**2).sum(-1)
        with np.errstate(invalid="ignore"):  # a draw of one premise over and over has no pair
            return statistic([((w @ t) * w).sum(-1) / pairs for t in tables])

    drawn = at(np.random.default_rng(seed).multinomial(len(ids), [1 / len(ids)] * len(ids), size=DRAWS).astype(float))
    value, known = float(at(np.ones(len(ids)))), drawn[~np.isnan(drawn)]
    if len(ids) < 3 or not len(known):  # two premises make one pair: nothing varies
        return value, float("nan"), float("nan")
    return value, *map(float, np.percentile(known, [2.5, 97.5]))
