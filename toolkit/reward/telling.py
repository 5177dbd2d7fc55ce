"""What sets chosen answers apart from rejected ones: the most telling n-grams, and length alone.

For people to read: a reward model learns these too, and a template that opens every chosen answer is no quality.
"""

import math
import re
from collections import Counter

from toolkit.narrative.words import UNIT
from toolkit.records import guess_language
from toolkit.stats import auc

SIZES = (1, 2, 3)
PRIOR = 0.1  # of all n-grams' counts that every n-gram's prior is: what both sides say is what neither says more
_UNIT = re.compile(rf"{UNIT.pattern}|[^\w\s]")  # marks tell too


def telling(chosen: list[str], rejected: list[str], top: int = 12) -> list[dict]:
    """The n-grams (1–3 words or marks; Chinese by character) that stand most in the answers of one side.

    Log-odds ratio with an informative Dirichlet prior, in standard deviations (Monroe, Colaresi & Quinn 2008, “Fightin'
    Words”, eqs. 16 and 22). Prior: the n-gram's own count on both sides together × PRIOR (the paper takes a large background
    corpus; there is none of greetings). An n-gram counts once an answer, so that one answer's refrain does not tell, and
    must stand in three answers at least. A telling n-gram inside a longer one that is as telling is left out.

    Returns:
        `top` rows of each side, the most telling first, chosen's before rejected's: {"ngram", "side": "chosen" or
        "rejected", "z" (above 0 for chosen), "chosen": share of the chosen answers that hold it, "rejected": the same};
        only |z| ≥ 1.96.
    """
    counts = [Counter(g for text in side for g in set(ngrams(text))) for side in (chosen, rejected)]
    both = counts[0] + counts[1]
    known = [g for g, n in both.items() if n >= 3]
    totals = [sum(c.values()) for c in counts]
    prior_total = PRIOR * sum(both.values())
    rows = []
    for gram in known:
        prior, own = PRIOR * both[gram], [c[gram] for c in counts]
        odds = [math.log((y + prior) / (n + prior_total - y - prior)) for y, n in zip(own, totals, strict=True)]
        z = (odds[0] - odds[1]) / math.sqrt(sum(1 / (y + prior) for y in own))
        if abs(z) >= 1.96:
            shares = {name: round(y / max(1, len(side)), 4) for name, y, side in zip(("chosen", "rejected"), own, (chosen, rejected), strict=True)}  # fmt: skip
            rows.append({"ngram": gram, "side": "chosen" if z > 0 else "rejected", "z": round(z, 2), **shares})
    found = []
    for side in ("chosen", "rejected"):
        picked: list[dict] = []
        for row in sorted((r for r in rows if r["side"] == side), key=lambda r: (-abs(r["z"]), -len(r["ngram"]))):
            alike = (r for r in picked if row["ngram"] in r["ngram"] or r["ngram"] in row["ngram"])
            if len(picked) < top and not any(alike):
                picked.append(row)
        found += picked
    return found


def ngrams(text: str) -> list[str]:
    """Runs of 1–3 words or marks in lower case, readable: Chinese without spaces between."""
    units = [u.lower() for u in _UNIT.findall(text)]
    glue = "" if guess_language(text) == "zh" else " "
    runs = (units[i : i + n] for n in SIZES for i in range(len(units) - n + 1))
    return [glue.join(run) for run in runs if any(re.search(r"\w", u) for u in run)]


def length_auc(chosen: list[str], rejected: list[str]) -> float:
    """Probability that a chosen answer is longer (in characters) than a rejected one, ties half; 0.5 is what it should be."""
    return float(auc([len(t) for t in chosen], [len(t) for t in rejected]))
