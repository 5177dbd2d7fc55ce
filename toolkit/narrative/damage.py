"""Controlled damage of known kind and strength: texts whose order on a dimension is known without any rater.

Not published; chosen because a small rater's scores are mostly noise, while "this plot with its turn taken out turns
less" needs no rater. Kinds after the founding issue; which dimension each kind harms, and how much, is the table HARM.
"""

import random
from dataclasses import replace

from toolkit.narrative.prompts import lines
from toolkit.narrative.writing import sentences_of
from toolkit.records import Plot, guess_language, join_sentences

# kind → dimension → share of the full drop. 0: known to be unharmed. Absent: not known, so no label is given.
HARM = {
    "shuffle": {"coherence": 1.0, "pacing": 0.5, "tone": 0.0},  # sentences change places
    "swap": {
        "character": 1.0,
        "coherence": 0.5,
        "tone": 0.0,
        "pacing": 0.0,
    },  # the protagonist turns into somebody else
    "splice": {"tone": 1.0, "coherence": 0.7},  # sentences of a story of another genre
    "cut": {"pacing": 1.0, "coherence": 0.5, "tone": 0.0},  # the middle is missing
    "pad": {"pacing": 1.0, "emotion": 0.3, "coherence": 0.2},  # the middle says nothing, at length
    "flat": {"emotion": 1.0, "character": 0.5, "tone": 0.0, "coherence": 0.0},  # the emotional turn is taken out
}
BARE = ("shuffle", "splice", "cut", "pad")  # kinds that need no annotation, so that any text can be damaged


def damage(plot: Plot, kind: str, strength: float, donors: list[Plot], seed: int) -> Plot | None:
    """`plot`, damaged.

    Args:
        plot: with `sentences`, `turn` and `characters` for the kinds that need them.
        kind: a key of HARM.
        strength: in (0, 1]: which share of what can be harmed is.
        donors: other plots, to splice sentences or borrow names from.
        seed: same seed, same damage.

    Returns:
        The damaged plot, origin "damage:KIND:STRENGTH"; None when the plot is too short or not annotated for it.
    """
    rng = random.Random(f"{seed}:{plot.id}:{kind}:{strength}")
    sentences = list(plot.sentences or sentences_of(plot.text))
    language = guess_language(plot.text)
    donors = [
        d for d in donors if d.premise_id != plot.premise_id and d.id != plot.id and guess_language(d.text) == language
    ]
    if len(sentences) < 5:
        return None
    done = _KINDS[kind](plot, sentences, strength, donors, rng)
    if not done or done == sentences:
        return None
    text = join_sentences(done)
    return replace(
        plot,
        id=f"{plot.id}~{kind}{strength:g}",
        text=text,
        origin=f"damage:{kind}:{strength:g}",
        sentences=tuple(done),
        turn=(),
        characters=(),
    )


def _some(n: int, strength: float, most: int) -> int:
    return max(1, min(most, round(n * strength)))


def _shuffle(plot, sentences, strength, donors, rng):
    places = sorted(rng.sample(range(len(sentences)), max(2, round(len(sentences) * strength))))
    order = places[:]
    while order == places:
        rng.shuffle(order)
    out = sentences[:]
    for to, source in zip(places, order, strict=True):
        out[to] = sentences[source]
    return out


def _swap(plot, sentences, strength, donors, rng):
    if not plot.characters:
        return None
    names = [c for d in donors for c in d.characters if c not in plot.text]
    holding = [i for i, s in enumerate(sentences) if plot.characters[0] in s][1:]  # the first mention stays
    if not names or not holding:
        return None
    out, stranger = sentences[:], rng.choice(names)
    for i in rng.sample(holding, _some(len(holding), strength, len(holding))):
        out[i] = out[i].replace(plot.characters[0], stranger)
    return out


def _splice(plot, sentences, strength, donors, rng):
    if not donors:
        return None
    donor = rng.choice(donors)
    foreign = [s for s in (donor.sentences or sentences_of(donor.text)) if s]
    n = _some(len(sentences) - 2, strength, min(len(sentences) - 2, len(foreign)))
    out = sentences[:]
    for at, s in zip(rng.sample(range(1, len(sentences) - 1), n), rng.sample(foreign, n), strict=True):
        out[at] = s
    return out


def _cut(plot, sentences, strength, donors, rng):
    n = _some(len(sentences) - 2, strength, len(sentences) - 3)
    start = (len(sentences) - n) // 2
    return sentences[:start] + sentences[start + n :]


def _pad(plot, sentences, strength, donors, rng):
    out, flat = sentences[:], lines("fillers", guess_language(plot.text))
    for _ in range(_some(len(sentences), strength, 5)):
        # half of it says nothing, half says again what was said: both are how weak writers pad
        extra = rng.choice(flat) if rng.random() < 0.5 else rng.choice(sentences)
        out.insert(rng.randrange(2, len(out)), extra)
    return out


def _flat(plot, sentences, strength, donors, rng):
    if not plot.turn:
        return None
    gone = list(plot.turn)[: _some(len(plot.turn), strength, len(plot.turn))]
    flat = rng.sample(lines("fillers", guess_language(plot.text)), len(gone))
    # taken out or talked past, evenly, so that length tells nothing
    keep = rng.random() < 0.5
    return [flat[gone.index(i)] if i in gone else s for i, s in enumerate(sentences) if keep or i not in gone]


_KINDS = {"shuffle": _shuffle, "swap": _swap, "splice": _splice, "cut": _cut, "pad": _pad, "flat": _flat}
