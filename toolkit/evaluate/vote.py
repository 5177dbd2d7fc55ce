"""A person votes blind in the terminal; the votes are preference pairs, and measure how far a judge agrees with people."""

import dataclasses
import random
import shutil
import textwrap
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from toolkit.errors import UserError
from toolkit.evaluate.judge import Judge, Verdict
from toolkit.hardware import require_writable
from toolkit.narrative.writing import check_premise, write_prompt
from toolkit.progress import bar, say
from toolkit.records import Plot, append_jsonl, guess_language, read_jsonl, read_plots, text_id, write_jsonl
from toolkit.stats import cluster_bootstrap, rounded, share_interval

Match = tuple[str, Plot, Plot]  # premise and two texts for it, in any order

HELP = """1  the first text is better          s  skip: ask me another time
2  the second text is better         u  undo the last answer
0  a tie, or I cannot tell           q  save and quit (so do Ctrl-C and Ctrl-D)
Read both texts to the end. Take the one you would rather have written; length is no merit."""


def vote(
    matches: list[Match],
    out: Path,
    ask: Callable[[str], str] = input,
    show: Callable[[str], None] = print,
    seed: int = 0,
) -> dict:
    """Show premise and two texts, ask which is better, until all are voted on or the person stops.

    Which text stands first, and which pair comes when, is drawn with `seed` and does not depend on who wrote them.
    Every vote is on disk at once: in `out` as a preference pair that `records.read_pairs` takes, with chosen_from and
    rejected_from (Plot.origin), shown_first ("chosen" or "rejected") and seconds; ties, being no pairs, in
    NAME.ties.jsonl beside it. What stands there is not asked again. Who is ahead is shown when nothing is left to ask,
    not before: a person who knows votes differently, and stops when the figures please.

    Returns:
        `tally`'s figures with "skipped" (in this sitting) and "left" (pairs without a vote).

    Raises:
        UserError: no two texts to compare, a premise that is empty or too long, or an `out` that cannot be written.
    """
    if out.is_dir():
        raise UserError(f"{out} is a folder", "name a file")
    require_writable(out.parent)
    pairs = _askable(matches)
    votes, ties = read_votes(out)
    done = {_key(v["premise"], v["chosen"], v["rejected"]) for v in votes}
    done |= {_key(t["premise"], t["first"], t["second"]) for t in ties}
    todo = sorted(((k, m) for k, m in pairs.items() if k not in done), key=lambda pair: pair[0])
    random.Random(f"{seed}:order").shuffle(todo)
    given: list[tuple[Path, dict] | None] = []  # one an answered pair; None for a skipped one
    if todo:
        show(f"{len(todo)} pairs to vote on" + (f", {len(pairs) - len(todo)} done before" if done else ""))
        show(HELP)
    try:
        while len(given) < len(todo):
            key, (premise, *texts) = todo[len(given)]
            texts.sort(key=lambda p: p.text)
            random.Random(f"{seed}:{key}").shuffle(texts)
            _show(show, f"{len(given) + 1} of {len(todo)}", premise, texts)
            started = time.monotonic()
            answer = _answer(ask, show, undo=bool(given))
            if answer == "q":
                break
            if answer == "u":
                if (last := given.pop()) is not None:
                    take_back(*last)
                continue
            if answer == "s":
                given.append(None)
                continue
            given.append(keep_vote(out, answer, premise, texts, round(time.monotonic() - started, 1)))
    except (EOFError, KeyboardInterrupt):
        show("")
    figures = tally(*read_votes(out))
    figures["skipped"] = given.count(None)
    figures["left"] = len(todo) - len(given) + figures["skipped"]
    show(f"{figures['votes'] + figures['ties']} votes ({figures['ties']} of them ties) are kept in {out}")
    if figures["left"]:
        show(f"{figures['left']} pairs are left: the same command goes on from here. The count is shown at the end.")
    else:
        for line in tally_lines(figures):
            show(line)
    return figures


def ties_file(out: Path) -> Path:
    return out.with_name(f"{out.stem}.ties.jsonl")


def read_votes(out: Path) -> tuple[list[dict], list[dict]]:
    """(votes, ties) as `vote` left them. Raises UserError for a file that is none of ours."""
    found = []
    for path, texts in ((out, {"chosen", "rejected"}), (ties_file(out), {"first", "second"})):
        needed = texts | {"premise", "premise_id"}
        try:
            rows = read_jsonl(path)
            if any(not isinstance(r, dict) or not needed <= r.keys() for r in rows):
                raise ValueError(f"a line without {', '.join(sorted(needed))}")
        except (ValueError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is no file of votes: {error}", "name another file with --out") from None
        found.append(rows)
    return found[0], found[1]


# ---- what is put to the vote


def matches_from_run(folder: Path) -> list[Match]:
    """Base against aligned, as a run's evaluation wrote them."""
    path = Path(folder) / "evaluate" / "plots.jsonl"
    if not path.is_file():
        raise UserError(f"{folder} holds no finished evaluation", "finish the run first: fablesmith run …")
    sides: dict[str, dict[str, Plot]] = {"base": {}, "aligned": {}}
    for plot in read_jsonl(path, Plot):
        if plot.origin in sides:
            sides[plot.origin][plot.id.removesuffix(f"-{plot.origin}")] = plot
    shared = [id for id in sides["base"] if id in sides["aligned"]]
    if not shared:
        raise UserError(f"{path} holds no premise that both models wrote for", "finish the run first")
    return [(sides["base"][id].premise, sides["base"][id], sides["aligned"][id]) for id in shared]


def matches_from_files(a: Path, b: Path) -> list[Match]:
    """Texts of two files for the same premise (by premise_id, else by the premise's words), the k-th with the k-th.

    A text's origin becomes the name of its file. Raises UserError when no premise is in both, or none is given in words.
    """
    a, b = Path(a), Path(b)
    names = (a.stem, b.stem) if a.stem != b.stem else (str(a), str(b))
    mine, theirs = (
        [dataclasses.replace(p, origin=name) for p in read_plots(path).rows]
        for path, name in zip((a, b), names, strict=True)
    )
    free: dict[str, list[Plot]] = {}
    for plot in theirs:
        for key in _premise_keys(plot):
            free.setdefault(key, []).append(plot)
    matches, used, unnamed = [], set(), 0
    for plot in mine:
        other = next((p for k in _premise_keys(plot) for p in free.get(k, []) if p.id not in used), None)
        if other is None:
            continue
        used.add(other.id)
        premise = plot.premise or other.premise
        if not premise:
            unnamed += 1
            continue
        matches.append((premise, plot, other))
    if not matches and unnamed:
        raise UserError(f"neither {a} nor {b} gives a premise in words", 'add "premise" to the rows')
    if not matches:
        raise UserError(
            f"{a} and {b} share no premise", "each row needs `premise` or `premise_id`, alike in both files"
        )
    if left := len(mine) + len(theirs) - 2 * len(matches):
        say(f"{left} texts have no counterpart for their premise in the other file and are left out")
    return matches


def _premise_keys(plot: Plot) -> list[str]:
    words = " ".join(plot.premise.split()).lower()
    return [k for k in (f"id:{plot.premise_id}" if plot.premise_id else "", f"text:{words}" if words else "") if k]


def _askable(matches: Iterable[Match]) -> dict[str, Match]:
    """Key → match, without pairs that no one can vote on and without repetitions."""
    pairs, given = {}, 0
    for premise, a, b in matches:
        given += 1
        mine, other = a.text.strip(), b.text.strip()
        if mine and other and mine != other:
            pairs[_key(premise, mine, other)] = (
                check_premise(premise),
                dataclasses.replace(a, text=mine),
                dataclasses.replace(b, text=other),
            )
    if not pairs:
        raise UserError("there are no two different texts to vote on", "give two files, or a run with an evaluation")
    if len(pairs) < given:
        say(f"{given - len(pairs)} pairs are left out: twice the same text, an empty one, or the same pair again")
    return pairs


def _key(premise: str, a: str, b: str) -> str:
    return text_id("\n".join([premise.strip(), *sorted((text_id(a), text_id(b)))]), "v")


# ---- the sitting


def _answer(ask: Callable[[str], str], show: Callable[[str], None], undo: bool) -> str:
    """One of 1, 2, 0, s, u, q; asks until it is."""
    while True:
        said = unicodedata.normalize("NFKC", ask("Which is better? [1 2 0 s u q ?] ")).strip().lower()
        if said == "u" and not undo:
            show("There is nothing to undo in this sitting.")
        elif said in ("1", "2", "0", "s", "u", "q"):
            return said
        else:
            show(HELP)


def _show(show: Callable[[str], None], place: str, premise: str, texts: list[Plot]) -> None:
    width = shutil.get_terminal_size((80, 24)).columns
    show("\n" + f"── {place} ".ljust(width, "─"))
    show(wrapped(f"Premise: {premise}", width))
    for name, plot in zip("12", texts, strict=True):
        show(f"\n── {name}")
        show(wrapped(plot.text, width))
    show("")


def wrapped(text: str, width: int) -> str:
    """`text` in lines of at most `width` columns; control characters, which could paint the terminal, are taken out."""
    text = "".join(c for c in text.replace("\t", " ") if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf"))
    columns = max(20, width) // (2 if guess_language(text) == "zh" else 1)  # a Chinese character takes two columns
    return "\n".join(textwrap.fill(line, columns) for line in text.split("\n"))


def keep_vote(out: Path, answer: str, premise: str, texts: list[Plot], seconds: float) -> tuple[Path, dict]:
    """Put one vote on disk, as `vote` does; returns what `take_back` takes.

    Args:
        answer: "1" or "2" for the better of the two texts as they were shown, "0" for a tie.
        texts: the two in the order in which they were shown; `origin` of each says who wrote it.
    """
    row = _row(answer, premise, texts, seconds)
    path = ties_file(out) if answer == "0" else out
    append_jsonl(path, [row])
    return path, row


def _row(answer: str, premise: str, texts: list[Plot], seconds: float) -> dict:
    first, second = texts
    common = {
        "premise_id": first.premise_id or second.premise_id or text_id(premise, "p"),
        "premise": premise,
        "seconds": seconds,
    }
    if answer == "0":
        named = (("first", first), ("second", second))
    else:
        named = tuple(zip(("chosen", "rejected"), (first, second) if answer == "1" else (second, first), strict=True))
        common["shown_first"] = "chosen" if answer == "1" else "rejected"
    row = {"prompt": write_prompt(premise)[-1]["content"]}
    row |= {name: plot.text for name, plot in named}
    row |= {f"{name}_id": plot.id for name, plot in named} | {f"{name}_from": plot.origin for name, plot in named}
    return row | common


def take_back(path: Path, row: dict) -> None:
    """Take one vote out of a file, whole or not at all; the rest stays, whoever wrote it."""
    rows = read_jsonl(path)
    if row not in rows:
        return  # somebody else did, or the file is another now
    at = len(rows) - 1 - rows[::-1].index(row)
    write_jsonl(path, rows[:at] + rows[at + 1 :])


# ---- figures


def tally(votes: list[dict], ties: list[dict]) -> dict:
    """How often each origin was preferred, a tie counting half, where its opponent had another origin.

    Returns:
        {"votes", "ties", "preferred": {origin: {"share": [value, low, high], "of": comparisons}}, "first_preferred":
        [value, low, high] (a person without a habit takes the first text half of the time)}. Intervals: 95 %, the wider
        of Wilson's and the bootstrap over premises.
    """
    points: dict[str, dict[str, list[float]]] = {}
    for row in votes + ties:
        better, worse, win = ("chosen", "rejected", 1.0) if "chosen" in row else ("first", "second", 0.5)
        one, other = row.get(f"{better}_from"), row.get(f"{worse}_from")
        if one and other and one != other:
            for origin, value in ((one, win), (other, 1 - win)):
                points.setdefault(origin, {}).setdefault(row["premise_id"], []).append(value)
    preferred = {
        origin: {
            "share": rounded(share_interval([np.array(g) for g in by_premise.values()])),
            "of": sum(map(len, by_premise.values())),
        }
        for origin, by_premise in sorted(points.items())
    }
    firsts = [np.array([float(v["shown_first"] == "chosen")]) for v in votes if "shown_first" in v]
    return {
        "votes": len(votes),
        "ties": len(ties),
        "preferred": preferred,
        "first_preferred": rounded(share_interval(firsts)),
    }


def tally_lines(figures: dict) -> list[str]:
    """`tally` for a terminal."""
    lines = []
    for origin, row in sorted(figures["preferred"].items(), key=lambda item: -item[1]["share"][0]):
        value, low, high = row["share"]
        lines.append(
            f"{origin}: preferred in {_pct(value)} of {row['of']} votes (95 % interval {_pct(low)} to {_pct(high)})"
        )
    if len(figures["preferred"]) == 2:
        _, low, high = next(iter(figures["preferred"].values()))["share"]
        if low <= 0.5 <= high:
            lines.append("Not distinguishable from no preference: more votes would tell.")
    value, low, high = figures["first_preferred"]
    if value is not None and (low > 0.5 or high < 0.5):
        lines.append(f"Beware: the text shown first was preferred in {_pct(value)} of the votes, whoever wrote it.")
    return lines


def _pct(share: float) -> str:
    return f"{100 * share:.0f} %"


# ---- a judge beside the person


def agreement(judge: Judge, votes: list[dict], threshold: float | None = 0.0, out: Path | None = None) -> dict:
    """How far a judge agrees with the person, on votes whose chosen_from and rejected_from are known (ties are none).

    Args:
        threshold: as in Verdict.outcome: least |log-odds| at which the judge has earned trust.
        out: JSONL of verdicts that grows; a later call goes on from it.

    Returns:
        {"judge", "votes", "unknown" (votes left out), "verdicts" (where the judge names one text), "no_verdict" (share
        without), "why": reason → count, "accuracy" where there is a verdict, "lean_accuracy" of its lean with the
        order's pull cancelled out, on all it could read, "kappa"}. The last three are [value, low, high] over premises.
        Cohen's kappa takes the two origins as its categories: a judge that always names the origin people like
        better on the whole is accurate and has a kappa of 0.

    Raises UserError when no vote has known origins.
    """
    known = [v for v in votes if v.get("chosen_from") and v.get("rejected_from") and v.get("premise")]
    if not known:
        raise UserError("no vote says where its texts come from", "vote with: fablesmith vote A B")
    saved = {(r["judge"], r["key"]): r["verdict"] for r in (read_jsonl(out) if out else [])}
    rows: dict[str, list[tuple[float, float]]] = {}  # premise → (person, judge) chose the origin that sorts first
    leans: dict[str, list[float]] = {}
    why: Counter[str] = Counter()
    for v in bar(known, desc="judge", unit="vote"):
        sides = sorted((v[f"{s}_from"], v[s]) for s in ("chosen", "rejected"))
        key = _key(v["premise"], v["chosen"], v["rejected"])
        if (judge.name, key) in saved:
            verdict = Verdict(**saved[judge.name, key])
        else:
            a, b = (Plot(text_id(text), text, v["premise_id"], v["premise"]) for _, text in sides)
            verdict = judge.compare(v["premise"], a, b)
            if out:
                row = {"judge": judge.name, "key": key, "verdict": dataclasses.asdict(verdict)}
                append_jsonl(out, [row])
        person_a = sides[0] == (v["chosen_from"], v["chosen"])
        if not verdict.error:
            lean = verdict.lean()
            leans.setdefault(v["premise_id"], []).append(lean if person_a else 1 - lean)
        outcome = verdict.outcome(threshold=threshold)
        if outcome in ("a", "b"):
            rows.setdefault(v["premise_id"], []).append((float(person_a), float(outcome == "a")))
        else:
            changed = "the verdict changed with the order of the texts"
            why[verdict.error or (changed if outcome == "tie" else "less sure than the threshold")] += 1
    groups = [np.array(g) for g in rows.values()]
    verdicts = sum(map(len, groups))
    return {
        "judge": judge.name,
        "votes": len(known),
        "unknown": len(votes) - len(known),
        "verdicts": verdicts,
        "no_verdict": round(1 - verdicts / len(known), 4),
        "why": dict(why.most_common()),
        "accuracy": rounded(share_interval([(g[:, 0] == g[:, 1]).astype(float) for g in groups])),
        "lean_accuracy": rounded(share_interval([np.array(g) for g in leans.values()])),
        "kappa": rounded(_kappa_interval(groups)),
    }


def _kappa_interval(groups: list[np.ndarray]) -> tuple[float, float, float]:
    if not groups or np.isnan(value := _kappa(np.concatenate(groups))):
        return (float("nan"),) * 3
    _, low, high = cluster_bootstrap(groups, _kappa)
    return value, low, high


def _kappa(rows: np.ndarray) -> float:
    """Cohen's kappa of two raters with two categories, rows (N, 2) of 0 and 1; NaN where both name always the same."""
    p, q = rows.mean(0)
    chance = p * q + (1 - p) * (1 - q)
    return float(((rows[:, 0] == rows[:, 1]).mean() - chance) / (1 - chance)) if chance < 1 else float("nan")
