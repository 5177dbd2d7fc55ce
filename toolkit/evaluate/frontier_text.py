"""The frontier's figures as sentences and as a table. A rater whose figures need a caution carries a star."""

HEADS = {"semantic": "semantic", "style": "style", "vendi": "Vendi/n", "distinct_2": "distinct-2", "self_bleu": "self-BLEU", "words": "words"}  # fmt: skip
LEAST, FEW = 6, 10  # premises: under the first there are no intervals, under the second they are too narrow
FEW_SEEDS = 5
SELECTION = 0.02  # share of texts without a rating above which the mean is of a selection


def lines(figures: dict) -> list[str]:
    """What was found, in sentences: differences to the first writer, equal quality, and what to be careful about."""
    said, raters, first = [], list(figures["cautions"]), figures["first"]
    curve = len({p["temperature"] for p in figures["points"] if p["writer"] == first}) > 1
    for row in figures["over"]:
        said += [_difference(row, figures, rater) for rater in raters or [""]]
        said += [_equal_quality(row["writer"], figures, rater) for rater in raters if curve]
    if figures["over"] and raters and not curve:
        said.append(f"At equal quality: {first} has one temperature and draws no curve; --temperatures gives it more.")
    for rater in raters:
        on: dict[str, list[str]] = {}
        for p in figures["points"]:
            if p["frontier"][f"{rater}/semantic"][0]:
                on.setdefault(p["writer"], []).append(_setting(p, figures))
        if on and len(figures["points"]) > 1:
            listed = "; ".join(f"{name} at {', '.join(settings)}" for name, settings in on.items())
            said.append(f"No point beats these in both {_star(rater, figures)} and semantic diversity: {listed}.")
    said += [f"* {caution}." for caution in figures["cautions"].values() if caution]
    for name, reasons in figures["no_text"].items():
        said += [f"{name} gave no text {n} times: {why}." for why, n in reasons.items()]
    texts = figures["premises"] * figures["settings"]["samples"] * sum(p["seeds"] for p in figures["points"])
    for rater, n in figures["unrated"].items():
        if n:
            rest = ": its mean is of the rest, which flatters a writer that falls into babble" if n > SELECTION * texts else ""  # fmt: skip
            said.append(f"{n} of {texts} texts have no rating by {rater} (not in its language, or too long){rest}.")
    if figures["premises"] < FEW:
        no = "too few for intervals" if figures["premises"] < LEAST else "intervals are narrower than they should be"
        said.append(f"{figures['premises']} premise{'s' * (figures['premises'] > 1)}: {no}; take this for a try.")
    if alone := [name for name, ids in figures["writers"].items() if len(ids) == 1]:
        said.append(f"No interval knows what training again with another seed would change: one model of {', '.join(alone)}.")  # fmt: skip
    if few := [f"{name} {len(ids)}" for name, ids in figures["writers"].items() if 1 < len(ids) < FEW_SEEDS]:
        said.append(f"Few seeds ({', '.join(few)}): the part of the intervals that is theirs is too narrow.")
    short = {
        p["writer"]: 0 for p in figures["points"] if p["figures"]["style"][0] is None and p["figures"]["semantic"][0]
    }
    if short:
        said.append(
            f"Too few texts of {', '.join(short)} have {figures['words']} words: no figure where length counts."
        )
    terms = f"{figures['count']} texts a premise at a time"
    said.append(f"Style, distinct-2 and self-BLEU are of the first {figures['words']} words of each text, {terms}.")
    return said


def _difference(row: dict, figures: dict, rater: str) -> str:
    f, first = row["figures"], figures["first"]
    if not row["settings"]:
        return f"{row['writer']}: no sampling setting in common with {first}."
    if all(f[m][0] is None for m in ("semantic", "style")):
        return f"{row['writer']}: nothing to hold against {first}, no premise has enough texts of both."
    spread = [f"{m} diversity {_span(f[m], 3)}{_doubt(f[m])}" for m in ("semantic", "style")]
    text = f"{row['writer']}: {', '.join(spread)} against {first}"
    if rater:
        value, low, _ = f[rater]
        by = f"of quality by {_star(rater, figures)}"
        if value is None:
            text += f"; {_star(rater, figures)} has no rating to compare"
        elif low is None:
            text += f", {_span(f[rater], 2)} {by}"
        elif _settled(f[rater]):
            text += f" {'with a gain' if low > 0 else 'at a loss'} {by} ({_span(f[rater], 2, ', ')})"
        else:
            text += f" at no measurable {'loss' if value < 0 else 'change'} {by} ({_span(f[rater], 2, ', ')})"
    text += f", mean of {row['settings']} sampling settings" if row["settings"] > 1 else ""
    if _settled(f["words"]):
        longer = "longer" if f["words"][0] > 0 else "shorter"
        text += f"; its texts are {abs(f['words'][0]):.0f} words {longer}, which may be part of why"
    return text + "."


def _equal_quality(name: str, figures: dict, rater: str) -> str:
    first, by = figures["first"], f"{name} at equal quality by {_star(rater, figures)}"
    found = [(r, r["figures"][f"{rater}/semantic"]) for r in figures["above"] if r["writer"] == name]
    end = " (no interval, too near the curve's end)" if figures["premises"] >= LEAST else ""
    inside = [
        f"{_span(x, 3)}{_doubt(x)} at {_setting(r, figures)}{end if x[1] is None else ''}"
        for r, x in found
        if x is not None
    ]
    if not inside:
        return f"{by}: none of its points lies within the quality that {first}'s temperature curve covers."
    outside = f"; {len(found) - len(inside)} of {len(found)} points outside it" if len(inside) < len(found) else ""
    return f"{by}, against {first}'s temperature curve: semantic diversity {'; '.join(inside)}{outside}."


def _settled(found: list) -> bool:
    """Whether the interval leaves 0 out."""
    return found[1] is not None and (found[1] > 0 or found[2] < 0)


def _doubt(found: list) -> str:
    return " (not settled)" if found[1] is not None and not _settled(found) else ""


def _span(found: list, digits: int, between: str = "") -> str:
    """ "+0.03 (+0.01 to +0.05)", or with `between` in place of the brackets."""
    value, low, high = found
    if value is None:
        return "unknown"
    span = f"{low:+.{digits}f} to {high:+.{digits}f}" if low is not None else ""
    return f"{value:+.{digits}f}" + (f"{between}{span}" if between else f" ({span})") * bool(span)


def _setting(row: dict, figures: dict) -> str:
    several = len({p["min_p"] for p in figures["points"]}) > 1
    return f"t {row['temperature']:g}" + (f" min-p {row['min_p']:g}" if several else "")


def _star(rater: str, figures: dict) -> str:
    return rater + "*" * bool(figures["cautions"][rater])


def table(figures: dict) -> str:
    """Points, differences to the first writer, and the sentences."""
    raters = list(figures["cautions"])
    heads = {r: _star(r, figures) for r in raters} | HEADS
    wide = {m: 26 if m in (*raters, "semantic", "style") else 11 for m in heads}
    digits = dict.fromkeys(heads, 2) | {"semantic": 3, "style": 3, "words": 0}
    if figures["premises"] < LEAST:
        wide = dict.fromkeys(heads, 11)
    left = max(7, *(len(p["writer"]) for p in figures["points"])) + 2

    def row(p: dict, sign: str = "") -> str:
        out = f"{p['writer']:<{left}}{p['temperature']:<5g}{p['min_p']:<7g}"
        for m in heads:
            value, low, high = (f"{x:{sign}.{digits[m]}f}" if x is not None else "–" for x in p["figures"][m])
            out += f"{value + (f' ({low} to {high})' if low != '–' and wide[m] > 11 else ''):<{wide[m]}}"
        return out

    out = [f"{'writer':<{left}}{'t':<5}{'min-p':<7}" + "".join(f"{head:<{wide[m]}}" for m, head in heads.items())]
    out[0] += f"{'no text':<9}" + ("on the frontier" if raters else "")
    for p in figures["points"]:
        keys = [key if len(raters) > 1 else key.partition("/")[2] for key, (on, _) in p["frontier"].items() if on]
        out.append(f"{row(p)}{100 * p['figures']['no_text'][0]:>3.0f} %    {', '.join(keys)}")
    if figures["against"]:
        out += ["", f"against {figures['first']} at the same setting, paired by premise"]
        out += [row(r, "+") for r in figures["against"]]
    return "\n".join(line.rstrip() for line in [*out, "", *figures["lines"]])
