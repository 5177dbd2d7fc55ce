"""Many texts past one judge: with progress, and resuming from what is on disk."""

from collections import Counter
from pathlib import Path

from toolkit.evaluate.judge import Judge
from toolkit.progress import bar, say
from toolkit.records import AspectRatings, Plot, append_jsonl, read_jsonl, text_id


def rate_texts(judge: Judge, texts: list[str], path: Path | None, desc: str = "judge") -> list[AspectRatings]:
    """One record a text, in the order of `texts`; the same text is asked once.

    Each rating is on disk at once. A record's `plot_id` is the hash of its text, so that a text that was changed
    under an old id is asked again; so is one whose record is an error, or another judge's.

    Args:
        path: JSONL that grows; None keeps nothing.
    """
    known = {r.plot_id: r for r in (read_jsonl(path, AspectRatings) if path else []) if r.rater == judge.name}
    found = {id: r for id, r in known.items() if not r.error}
    todo = {id: text for text in texts if (id := text_id(text)) not in found}
    progress = bar(total=len(todo) + len(found.keys() & set(map(text_id, texts))), desc=desc, unit="text")
    progress.update(progress.total - len(todo))
    for id, text in todo.items():
        found[id] = judge.rate(Plot(id, text))
        if path and found[id] != known.get(id):  # the same error once more is no news
            append_jsonl(path, [found[id]])
        progress.update(1)
    progress.close()
    return [found[text_id(text)] for text in texts]


def say_unrated(ratings: list[AspectRatings]) -> dict[str, int]:
    """Tell how many texts have no rating and why; returns reason → count, the most frequent first."""
    reasons = dict(Counter(r.error for r in ratings if r.error).most_common())
    if reasons:
        say(f"{sum(reasons.values())} of {len(ratings)} texts could not be rated and are left out:")
        for reason, count in list(reasons.items())[:5]:
            say(f"  {count} × {reason}")
    return reasons
