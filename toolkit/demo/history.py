"""What was written on the page, kept on this machine: one JSON line an entry in the cache, the newest last."""

import contextlib
import dataclasses
import datetime
import secrets
from pathlib import Path

from toolkit.hardware import cache_dir
from toolkit.records import append_jsonl, read_jsonl, write_jsonl

MOST = 500  # entries; older ones go


def history_file() -> Path:
    return cache_dir() / "demo" / "history.jsonl"


def keep(path: Path, wish, texts: list[str]) -> None:
    """Add an entry {"id", "made", "wish", "texts"}. A disk that cannot take it must not lose the person's text: no error."""
    entry = {
        "id": f"x{secrets.token_hex(6)}",
        "made": datetime.datetime.now().isoformat(timespec="seconds"),
        "wish": dataclasses.asdict(wish),
        "texts": texts,
    }
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        append_jsonl(path, [entry])
        rows = read_jsonl(path)
        if len(rows) > MOST * 1.2:
            write_jsonl(path, rows[-MOST:])


def recall(path: Path, most: int = 40) -> list[dict]:
    """The newest entries, the newest first; none from a file that is none of ours."""
    try:
        rows = read_jsonl(path)
    except (OSError, ValueError):
        return []
    return [r for r in rows if isinstance(r, dict) and {"id", "made", "wish", "texts"} <= r.keys()][::-1][:most]


def forget(path: Path) -> None:
    """Delete all of it."""
    path.unlink(missing_ok=True)
