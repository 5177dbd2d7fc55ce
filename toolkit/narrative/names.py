"""Proper names in English texts, by their capital letters: no model, so people and places are not told apart."""

import re

from toolkit.narrative.stylometry import FUNCTION_WORDS

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_SHORT = re.compile(r"['’](?:s|m|d|ve|ll|re)$", re.IGNORECASE)
_INSIDE = re.compile(r"[,;'’”\")]*[ \t]+")  # between two words of one sentence; an opening quote begins another
_ABBREVIATED = {"Mr", "Mrs", "Ms", "Dr", "St", "Prof", "Capt"}
_NO_NAMES = {  # capitals that name nobody
    *"january february march april may june july august september october november december".split(),
    *"monday tuesday wednesday thursday friday saturday sunday christmas easter halloween".split(),
    *"mr mrs ms dr st prof capt sir madam lord lady king queen prince princess captain doctor professor inspector".split(),
    *"miss madame reverend sister brother mama papa north south east west".split(),
    *"detective sergeant father mother mom dad mum grandma grandpa grandmother grandfather aunt uncle god".split(),
    *"chapter act scene title part english french german spanish chinese american british".split(),
    *"your yours our ours us myself himself herself itself themselves whose why oh yes okay well".split(),
    *FUNCTION_WORDS["en"],
}


def names_in(texts: list[str]) -> list[set[str]]:
    """The proper names of each English text, (N) sets of single words (“Ann Lee” is two).

    A name is a word seen with a capital inside a sentence and nowhere in that text without one. A word that only begins
    sentences counts where it is a name in another of these texts and written small in fewer of them than that. Titles,
    days and months, function words, words all in capitals and headings are no names. Not published; chosen because it
    needs no model, and misses rather than invents.
    """
    found = [_sorted_out(text) for text in texts]
    inside, small = {}, {}
    for counts, column in ((inside, 0), (small, 2)):
        for row in found:
            for word in row[column]:
                key = word.lower()
                counts[key] = counts.get(key, 0) + 1
    out = []
    for within, first, lower in found:
        known = {w for w in first if inside.get(w.lower(), 0) > small.get(w.lower(), 0)}
        out.append({w for w in within | known if w.lower() not in lower and w.lower() not in _NO_NAMES})
    return out


def words_in(text: str) -> list[tuple[int, int, str]]:
    """(start, end, word) of every word, what is contracted to it ('s, 'll …) left out of the word."""
    return [(m.start(), m.end(), _SHORT.sub("", m.group())) for m in _WORD.finditer(text)]


def _sorted_out(text: str) -> tuple[set[str], set[str], set[str]]:
    """Words (capitalised inside a sentence, capitalised where one begins, written small)."""
    text = re.sub(r"[*_`#]", "", "\n".join(line for line in text.split("\n") if not _heading(line)))
    inside, first, small = set(), set(), set()
    end, before = 0, ""
    for start, stop, word in words_in(text):
        gap = text[end:start]
        if word[:1].islower():
            small.add(word.lower())
        elif len(word) > 1 and not word.isupper() and all(part[0].isupper() for part in word.split("-")):
            within = before and (_INSIDE.fullmatch(gap) or (before in _ABBREVIATED and gap.strip() == "."))
            (inside if within else first).add(word)
        end, before = stop, word
    return inside, first, small


def _heading(line: str) -> bool:
    """A line of capitalised words without a full stop, such as “Title: The Forgotten Tide”."""
    long = [w for w in _WORD.findall(line) if len(w) > 3]
    return bool(long) and line.rstrip(" *_\"”’'")[-1:] not in ".!?…," and all(w[0].isupper() for w in long)
