"""How different are the texts that answer one premise? Measures of meaning, style, words and shape, at equal terms.

Texts are compared inside a premise, the same number of them for every premise and writer; where length alone would
move a measure, every text is cut to the same number of words. docs/diversity.md says exactly what each measure is.
"""

import itertools
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.errors import UserError
from toolkit.evaluate import charts
from toolkit.evaluate.measures import (
    SEGMENTS,
    compression,
    cut_to,
    distinct,
    length_of,
    opening_of,
    openings,
    pair_distance,
    quarters_of,
    self_bleu,
    self_repetition,
    skeleton,
    vendi,
)
from toolkit.evaluate.shared_names import name_index, names_interval, shared_names
from toolkit.hardware import require_writable
from toolkit.models.embed import LONGEST, embed
from toolkit.narrative.names import names_in
from toolkit.records import guess_language, read_plots, text_id
from toolkit.stats import bootstrap, rounded

LEAST_WORDS = 30  # a shorter text has no place where length counts: cut to it, the others would lose nearly everything
_SAMPLES = 10  # draws of equally many texts, where a measure is no mean over pairs
_SURE_OF = 10  # premises under which a bootstrap's interval is known to be too narrow
_NO_PREMISE = "(no premise)"  # the one group of a file that names none


@dataclass(frozen=True)
class Measure:
    """One way of telling texts apart. `higher`: a higher value means texts that differ more."""

    label: str
    higher: bool
    about: str


MEASURES: dict[str, Measure] = {
    "semantic": Measure("distance in meaning", True, "mean cosine distance of two texts' sentence embeddings"),
    "style": Measure("distance in style", True, "mean cosine distance of two texts' style vectors, at equal length"),
    "vendi": Measure("Vendi score", True, "how many texts with nothing in common the texts amount to, in meaning"),
    "distinct_1": Measure("distinct words", True, "different words / all words, at equal length"),
    "distinct_2": Measure("distinct pairs of words", True, "different runs of 2 words / all, at equal length"),
    "distinct_3": Measure("distinct triples of words", True, "different runs of 3 words / all, at equal length"),
    "compression": Measure(
        "compressed size", True, "bytes of the texts together, zlib-compressed / plain, at equal length"
    ),
    "self_bleu": Measure("self-BLEU", False, "BLEU of a text against the others, mean, at equal length"),
    "self_repetition": Measure(
        "repeated 4-word runs", False, "share of a text's 4-word runs that another text has, at equal length"
    ),
    "openings": Measure(
        "same opening", False, "share of pairs that begin with the same 3 words (4 Chinese characters)"
    ),
    "skeleton": Measure(
        "same skeleton", False, "how much more alike two texts are quarter by quarter than in any order"
    ),
}
NAMES = Measure(
    "same name, other premise", False, "chance that texts of two premises share a name neither premise gave"
)


_DRAWN: dict[str, Callable[[list[str]], float]] = {  # of texts cut to equal length, and not a mean over pairs
    "distinct_1": lambda texts: distinct(texts, 1),
    "distinct_2": lambda texts: distinct(texts, 2),
    "distinct_3": lambda texts: distinct(texts, 3),
    "compression": compression,
    "self_bleu": self_bleu,
    "self_repetition": self_repetition,
}
AT_EQUAL_LENGTH = ("style", *_DRAWN)


# ---- at equal terms


def equal_terms(writers: dict[str, dict[str, list[str]]]) -> tuple[int | None, int | None]:
    """(texts a premise, words a text) on which all writers can be compared: the fewest of the premises with two texts or
    more, and the shortest of their texts of LEAST_WORDS words or more. None where there is no such premise or text."""
    counts, lengths = [], []
    for groups in writers.values():
        for texts in groups.values():
            if len(texts) < 2:
                continue
            long = [n for n in map(length_of, texts) if n >= LEAST_WORDS]
            counts.append(len(long) if len(long) > 1 else len(texts))
            lengths += long
    return min(counts, default=None), min(lengths, default=None)


def premise_values(
    groups: dict[str, list[str]],
    *,
    semantic: str = "minilm",
    style: str = "stylometry",
    measures: tuple[str, ...] | None = None,
    count: int | None = None,
    words: int | None = None,
    seed: int = 0,
    premises: dict[str, str] | None = None,
) -> dict[str, dict[str, float]]:
    """Measure key → premise id → value, for the texts of one writer, grouped by premise.

    A value is what `count` texts of the premise have, on average over draws of so many (exactly, for means over pairs).
    NaN where a premise has fewer than `count` texts, or fewer of `words` words for the measures AT_EQUAL_LENGTH.

    Args:
        measures: keys of MEASURES; None takes all. Nothing is embedded that no measure asks for.
        count: texts a premise, at least 2; None takes the fewest of these groups. Writers that are to be compared need
            the same: see `equal_terms`.
        words: length to which texts are cut for the measures AT_EQUAL_LENGTH; None takes the shortest of these groups.
        premises: premise id → its text; its words are masked for the skeleton where it is given.

    Raises:
        UserError: an unknown measure, a count under 2, an empty or huge text, a model that is not to be had.
    """
    chosen = tuple(MEASURES) if measures is None else tuple(measures)
    if unknown := [m for m in chosen if m not in MEASURES]:
        raise UserError(f"no measure of diversity is called {unknown[0]}", f"there are {', '.join(MEASURES)}")
    if count is not None and count < 2:
        raise UserError(f"{count} texts a premise cannot be compared", "2 is the least")
    given = equal_terms({"": groups})
    count, words = count or given[0], words or given[1]
    values = {m: dict.fromkeys(groups, float("nan")) for m in chosen}
    whole = {p: texts for p, texts in groups.items() if count and len(texts) >= count}
    cut = {p: [cut_to(t, words) for t in texts if length_of(t) >= words] for p, texts in whole.items()} if words else {}
    cut = {p: texts for p, texts in cut.items() if len(texts) >= count}

    quarters = _quarters(groups, whole, premises or {}) if "skeleton" in chosen else {}
    asked = [t for texts in whole.values() for t in texts] if {"semantic", "vendi"} & set(chosen) else []
    pieces = [q for texts in quarters.values() for four in texts for q in four]
    vectors = embed(asked + pieces, semantic)  # in one call: a model is loaded once
    meaning = _split(vectors[: len(asked)], whole) if asked else {}
    fours = vectors[len(asked) :].reshape(-1, SEGMENTS, vectors.shape[1]) if pieces else None
    shapes = _split(fours, quarters) if pieces else {}
    styles = _split(embed([t for texts in cut.values() for t in texts], style), cut) if "style" in chosen else {}
    for p, texts in whole.items():
        if "semantic" in chosen:
            values["semantic"][p] = pair_distance(meaning[p])
        if "vendi" in chosen:
            drawn = _drawn(len(texts), count, p, seed)
            values["vendi"][p] = float(np.mean([vendi(meaning[p][i]) for i in drawn]))
        if "openings" in chosen:
            values["openings"][p] = openings(texts)
        if p in shapes:
            values["skeleton"][p] = skeleton(shapes[p])
    for p, texts in cut.items():
        if "style" in chosen:
            values["style"][p] = pair_distance(styles[p])
        drawn = _drawn(len(texts), count, p, seed)
        for m in [m for m in chosen if m in _DRAWN]:
            values[m][p] = float(np.mean([_DRAWN[m]([texts[i] for i in some]) for some in drawn]))
    return values


def _quarters(groups: dict, whole: dict, premises: dict[str, str]) -> dict[str, list[list[str]]]:
    """Premise → the quarters of each of its texts that has any."""
    texts = [t for ts in groups.values() for t in ts]
    names = dict(zip(texts, names_in(texts), strict=True))
    made = {p: [quarters_of(t, names[t], premises.get(p, "")) for t in mine] for p, mine in whole.items()}
    return {p: [q for q in found if q] for p, found in made.items()}


def _drawn(n: int, count: int, premise: str, seed: int) -> list[list[int]]:
    """Index lists of `count` in `n`: all there are where they are few, else _SAMPLES drawn ones, by the premise's own seed."""
    if math.comb(n, count) <= _SAMPLES:
        return [list(some) for some in itertools.combinations(range(n), count)]
    rng = np.random.default_rng([seed, zlib.crc32(premise.encode("utf-8", "replace"))])
    return [sorted(rng.choice(n, count, replace=False).tolist()) for _ in range(_SAMPLES)]


def _split(vectors: np.ndarray, groups: dict[str, list]) -> dict[str, np.ndarray]:
    """Rows of all groups, in order → rows of each."""
    out, at = {}, 0
    for p, texts in groups.items():
        out[p], at = vectors[at : at + len(texts)], at + len(texts)
    return out


# ---- the verb


def read_writers(paths: list[Path], skip_bad_lines: bool = False) -> tuple[dict, dict, list[str]]:
    """(writer → premise id → texts, premise id → its text, notes) of files of plots or run folders (evaluate/plots.jsonl).

    Where a file's texts have several origins each is a writer; else the file is one, by its name.

    Raises:
        UserError: no such file, a bad line (an empty text is one), a huge text, or a text without a premise beside
            others that have one.
    """
    writers: dict[str, dict[str, list[str]]] = {}
    premises: dict[str, str] = {}
    notes: list[str] = []
    if len({p.resolve() for p in paths}) < len(paths):
        raise UserError("the same file is named twice", "name each once")
    stems = Counter(_stem(p) for p in paths)
    for path in paths:
        file = path / "evaluate" / "plots.jsonl" if path.is_dir() else path
        if path.is_dir() and not file.is_file():
            raise UserError(f"{path} is no finished run: no {file}", "name a run folder, or a JSONL file of texts")
        read = read_plots(file, skip_bad_lines)
        notes += [f"left out {bad}" for bad in read.bad]
        placed = [p for p in read.rows if p.premise_id or p.premise]
        if placed and len(placed) < len(read.rows):
            odd = next(p for p in read.rows if not (p.premise_id or p.premise))
            raise UserError(f"{file}: the text {odd.id} names no premise, others do", "give it premise_id or premise")
        if not placed:
            notes.append(f"{file} names no premises: all its texts are compared as answers to one")
        elif not any(p.premise for p in placed):
            notes.append(f"{file} has no premise in words: a name that a premise gave counts as the writer's own")
        origins = dict.fromkeys(p.origin for p in read.rows)
        name = _stem(path) if stems[_stem(path)] == 1 else str(path)
        for plot in read.rows:
            if len(plot.text) > LONGEST:
                raise UserError(
                    f"{file}: the text {plot.id} has {len(plot.text):,} characters; at most {LONGEST:,} are compared",
                    "give shorter texts",
                )
            writer = name if len(origins) == 1 else plot.origin if len(paths) == 1 else f"{name}: {plot.origin}"
            id = plot.premise_id or (text_id(plot.premise, "p") if plot.premise else _NO_PREMISE)
            premises[id] = plot.premise or premises.get(id, "")
            writers.setdefault(writer, {}).setdefault(id, []).append(plot.text)
    return writers, premises, notes


def _stem(path: Path) -> str:
    return path.resolve().name if path.is_dir() else path.stem


def diversity(
    writers: dict[str, dict[str, list[str]]],
    premises: dict[str, str],
    *,
    semantic: str = "minilm",
    style: str = "stylometry",
    out: Path | None = None,
    seed: int = 0,
) -> dict:
    """How different each writer's texts of one premise are, and how that differs from the first writer's.

    Intervals are 95 % bootstraps over premises; a difference is taken premise by premise, on those both writers have.

    Args:
        writers: name → premise id → texts; premises: premise id → its text ("" or missing where it is not known).
        out: folder for figures.json and diversity.svg; None keeps nothing.

    Returns:
        {"count": texts a premise, "words": length where it counts, "semantic", "style": models, "writers": {name:
        {"texts", "premises" compared, "per_premise": [fewest, most], "single": premises left out for having one text,
        "short": texts left out where length counts, "repeated": texts that stand there before, "measures": {key:
        {"value": [value, low, high], "premises"}} with "vendi_per_text" besides MEASURES, "names": see `name_index`,
        "openings": the three commonest, [words, texts]}}, "differences": {name: {key: {"value", "premises"}}} against
        the first writer that has a premise with two texts, "sentence"}. What cannot be computed is None.

    Raises:
        UserError: no premise with two texts, an empty or huge text, a model that is not to be had.
    """
    count, words = equal_terms(writers)
    if count is None:
        raise UserError(
            "no premise has two texts of one writer: there is nothing to compare",
            "write several for each: fablesmith write PREMISE -n 4 --json",
        )
    if out is not None:
        require_writable(out)
    figures: dict = {"count": count, "words": words, "semantic": semantic, "style": style, "writers": {}}
    values: dict[str, dict[str, dict[str, float]]] = {}
    names = {}
    for name, groups in writers.items():
        settings = {"semantic": semantic, "style": style, "count": count, "words": words, "seed": seed}
        values[name] = premise_values(groups, **settings, premises=premises)
        values[name]["vendi_per_text"] = {p: v / count for p, v in values[name]["vendi"].items()}
        names[name] = shared_names(groups, premises, words)[0]
        sizes = {p: len(texts) for p, texts in groups.items() if len(texts) > 1}
        figures["writers"][name] = {
            "texts": sum(sizes.values()),
            "premises": len(sizes),
            "per_premise": [min(sizes.values(), default=0), max(sizes.values(), default=0)],
            "single": len(groups) - len(sizes),
            "short": sum(length_of(t) < (words or LEAST_WORDS) for p in sizes for t in groups[p]),
            "repeated": sum(n - len(set(groups[p])) for p, n in sizes.items()),
            "measures": {m: _over_premises(list(by.values()), seed) for m, by in values[name].items()},
            "names": name_index(groups, premises, words=words, seed=seed),
            "openings": _commonest_openings(groups),
        }
    first, *others = [name for name in writers if figures["writers"][name]["premises"]]
    figures["differences"] = {}
    for name in others:
        found = {
            m: _over_premises([v - values[first][m][p] for p, v in by.items() if p in values[first][m]], seed)
            for m, by in values[name].items()
        }
        index = rounded(names_interval([names[name], names[first]], lambda s: s[0] - s[1], seed))
        found["names"] = {"value": index, "premises": len(names[name].keys() & names[first].keys())}
        figures["differences"][name] = found
    figures["sentence"] = sentence(figures)
    if out is not None:
        (out / "figures.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False), encoding="utf-8")
        (out / "diversity.svg").write_text(_picture(figures), encoding="utf-8")
    return figures


def _over_premises(values: list[float], seed: int) -> dict:
    known = [v for v in values if not np.isnan(v)]
    return {"value": rounded(bootstrap(known, seed=seed)), "premises": len(known)}


def _commonest_openings(groups: dict[str, list[str]]) -> list[list]:
    """The three commonest openings of the writer's texts, of whatever premise, that occur more than once."""
    counts = Counter(opening_of(t) for texts in groups.values() for t in texts)
    joined = [("".join(o) if guess_language("".join(o)) == "zh" else " ".join(o), n) for o, n in counts.most_common(3)]
    return [[words, n] for words, n in joined if n > 1]


def sentence(figures: dict) -> str:
    """What the figures say, in plain words that claim no more than they do."""
    first = next(name for name, row in figures["writers"].items() if row["premises"])
    if not figures["differences"]:
        return _of_one(first, figures["writers"][first], figures["semantic"])
    parts = []
    for name, found in figures["differences"].items():
        compared = max(found[m]["premises"] for m in MEASURES)
        if compared < 2:
            of = "no premise" if not compared else "one premise only"
            parts.append(f"{name} and {first} share {of} with two texts of each: no difference can be told.")
            continue
        rows = {m: found[m]["value"] for m in (*MEASURES, "names") if found[m]["value"][1] is not None}
        kinds = {m: MEASURES.get(m, NAMES) for m in rows}
        clear = {
            m: (v[1] > 0) == kinds[m].higher for m, v in rows.items() if v[1] > 0 or v[2] < 0
        }  # True: more diverse
        more, less = ([kinds[m].label for m, up in clear.items() if up is side] for side in (True, False))
        if not clear:
            parts.append(f"None of {len(rows)} measures tells {name} from {first} on {compared} premises.")
            continue
        said = [f"{word} by {', '.join(labels)}" for word, labels in (("less", less), ("more", more)) if labels]
        left = len(rows) - len(clear)
        text = f"On {compared} premises {name}’s texts differ among themselves, against {first}’s, {'; '.join(said)}"
        text += f"; {left} of {len(rows)} measures show no clear difference." if left else "."
        if len(clear) == 1:
            text += " One of so many may well be chance."
        parts.append(text)
    return "\n".join(parts)


def _of_one(name: str, row: dict, semantic: str) -> str:
    scale = "0: the same"
    if semantic == "minilm" and row["names"]["texts"]:  # measured (docs/diversity.md), on English texts
        scale += "; plots of different premises: about 0.7"
    apart, opened = (row["measures"][m]["value"][0] for m in ("semantic", "openings"))
    text = (
        f"Two texts of {name} that answer one premise are {apart:.2f} apart in meaning ({scale}), and "
        f"{100 * opened:.0f} % of such pairs begin alike."
    )
    names = row["names"]
    if names["index"][0] is not None:
        text += f" Texts of two premises share a name in {100 * names['index'][0]:.0f} % of pairs."
    return text


def table(figures: dict) -> str:
    """The figures for a terminal: one line a measure and writer, what was left out, and the sentence."""
    writers, words = figures["writers"], figures["words"]
    lines = [
        f"{figures['count']} texts a premise are compared; meaning by {figures['semantic']}, style by {figures['style']}",
        f"=: every text cut to its first {words} words"
        if words
        else f"=: no text has {LEAST_WORDS} words, so no figure",
    ]
    lines += [f"{name}: {_counts(row, figures)}" for name, row in writers.items()]
    shown = [name for name, row in writers.items() if row["premises"]]
    wide = max(len(name) for name in shown) + 2 if len(writers) > 1 else 0
    against = f"{'against the first [95 %]':>28}" if figures["differences"] else ""
    lines += ["", f"{'':<32}{'':<{wide}}{'value [95 %]':>24}{against}"]
    for key, label, mark in _rows(figures):
        for i, name in enumerate(shown):
            row = writers[name]
            value = row["names"]["index"] if key == "names" else row["measures"][key]["value"]
            digits = 2 if key == "vendi" else 3
            line = f"{f'{mark} {label}' if i == 0 else '':<32}{name if wide else '':<{wide}}{_span(value, digits):>24}"
            if name in figures["differences"]:
                line += f"{_span(figures['differences'][name][key]['value'], digits, '+'):>28}"
            lines.append(line.rstrip())
    lines += ["", "↑ higher: they differ more. ↓ higher: they repeat each other more."]
    if figures["differences"]:
        lines.append("Differences are taken premise by premise, on the premises for which both have a figure.")
    lines.append("")
    for name in shown:
        lines += _habits(name, writers[name])
    if 1 < max(row["premises"] for row in writers.values()) < _SURE_OF:
        lines.append(f"Under {_SURE_OF} premises the intervals are narrower than they should be.")
    if max(row["premises"] for row in writers.values()) == 1:
        lines.append("One premise: no intervals, and nothing is known of others.")
    return "\n".join([*lines, "", figures["sentence"]])


def _rows(figures: dict) -> list[tuple[str, str, str]]:
    """(key, label, mark) of each line: which way it points, and whether texts were cut to equal length."""
    labels = {}
    for key, measure in MEASURES.items():
        labels[key] = measure
        if key == "vendi":
            labels[key] = Measure(f"Vendi score (1 … {figures['count']})", True, "")
            labels["vendi_per_text"] = Measure("Vendi score / texts", True, "")
    labels["names"] = NAMES
    equal = (*AT_EQUAL_LENGTH, "names")
    return [(k, m.label, ("↑" if m.higher else "↓") + ("=" if k in equal else " ")) for k, m in labels.items()]


def _counts(row: dict, figures: dict) -> str:
    if not row["premises"]:
        return f"left out, no premise with two texts ({row['single']} with one)"
    low, high = row["per_premise"]
    each = f"{low if low == high else f'{low} to {high}'} for each of {row['premises']} premises"
    out = [f"{row['texts']} texts" + (f", {each}" if row["premises"] > 1 else " of one premise")]
    if high > figures["count"]:
        out.append(f"{figures['count']} of a premise at a time, averaged over draws")
    if row["single"]:
        out.append(f"{_number(row['single'], 'premise')} of one text left out")
    if row["short"]:
        out.append(
            f"{_number(row['short'], 'text')} under {figures['words'] or LEAST_WORDS} words left out where length counts"
        )
    if row["repeated"]:
        out.append(f"{row['repeated']} the same as an earlier one, word for word")
    return "; ".join(out)


def _number(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _habits(name: str, row: dict) -> list[str]:
    lines = []
    names = row["names"]
    if again := [f"{n} {texts}" for n, texts, premises in names["top"][:6] if premises > 1]:
        lines.append(
            f"{name}: names used for several premises, in how many of {names['texts']} texts: {', '.join(again)}"
        )
    if names["why"]:
        lines.append(f"{name}: no index of names: {names['why']}")
    if row["openings"]:
        lines.append(f"{name}: commonest openings: " + ", ".join(f"“{o}” {n}" for o, n in row["openings"]))
    return lines


def _span(values: list[float | None], digits: int, sign: str = "") -> str:
    value, low, high = (f"{v:{sign}.{digits}f}" if v is not None else "–" for v in values)
    return value if low == "–" else f"{value} [{low}, {high}]"


def _picture(figures: dict) -> str:
    """Every measure on one scale, the Vendi score by the text."""
    keys = [(key, label, mark) for key, label, mark in _rows(figures) if key != "vendi"]
    shown = {name: row for name, row in figures["writers"].items() if row["premises"]}
    rows = {
        f"{label} {mark[0]}": [
            row["names"]["index"] if key == "names" else row["measures"][key]["value"] for row in shown.values()
        ]
        for key, label, mark in sorted(keys, key=lambda k: k[2][0] != "↑")
    }
    title = f"How different the texts of one premise are, {figures['count']} at a time"
    return charts.dots(rows, list(shown), "↑ higher: they differ more    ↓ higher: they repeat each other more", title)
