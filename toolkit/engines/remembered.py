"""A judge's verdicts, known again: the same weights asked the same questions are not asked twice, in whatever run.

One file for all judges, in the cache folder; processes share it, and a kill loses nothing but the call under way. A call is
known as a whole, for a call is the unit that gives the same answers again (engines.base.Engine).
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from toolkit.engines.base import Choice, Engine, Messages
from toolkit.hardware import cache_base, cache_dir, package_version
from toolkit.models.resolve import digest
from toolkit.progress import say

MOST = 200_000  # calls kept, about 200 MB; the oldest go first
OFF = "FABLESMITH_VERDICTS"  # set to "off": nothing is looked up, nothing kept
TABLE = "verdicts (key blob unique, choices text)"


def weights_of(engine: Engine, spec: str | Path) -> str:
    """What tells the weights behind `spec` from any other's; "" where nothing does (a server, a hub id)."""
    files = _files(engine, spec)
    return digest(files) if files else ""


def _files(engine: Engine, spec: str | Path) -> list[Path]:
    gguf, folder = getattr(engine, "path", None), Path(spec)
    if gguf is not None:
        return [gguf, *filter(None, [getattr(engine, "lora", None)])]
    return [folder / "config.json", *sorted(folder.glob("*.safetensors"))] if folder.is_dir() else []


def remembered(engine: Engine, spec: str | Path) -> Engine:
    """`engine` with verdicts that are known again; itself where its weights cannot be told, or FABLESMITH_VERDICTS is off."""
    files = _files(engine, spec)
    return Remembered(engine, files) if files and os.environ.get(OFF) != "off" else engine


class Remembered:
    """An engine whose `choose` looks first whether the call is known. `asked` and `known` count calls.

    Weights are told by the digest of their `files` and by when those were written: the digest sees a part of a large file. In what
    form an engine computes (LlamaEngine.opened) counts too: verdicts differ in their third digit.
    """

    def __init__(self, engine: Engine, files: list[Path]):
        self.engine, self.name, self.family = engine, engine.name, engine.family
        versions = (package_version(name) for name in ("llama_cpp_python", "transformers"))
        form = getattr(engine, "opened", Path()).name
        self.by = [digest(files), [file.stat().st_mtime_ns for file in files], form, *versions]
        self.path, self.asked, self.known = cache_dir() / "verdicts.sqlite", 0, 0
        self._try("delete from verdicts where rowid <= (select max(rowid) from verdicts) - ?", MOST)

    def choose(self, prompts: Sequence[Messages], options: Sequence[str], reason: int = 0) -> list[Choice]:
        """As Engine.choose."""
        call = json.dumps([self.by, list(prompts), list(options), reason], ensure_ascii=False)
        key = hashlib.sha256(call.encode("utf-8", "replace")).digest()
        self.asked += 1
        if rows := self._try("select choices from verdicts where key = ?", key):
            self.known += 1
            return [Choice(tuple(logps), said) for logps, said in json.loads(rows[0][0])]
        found = self.engine.choose(prompts, options, reason)
        kept = json.dumps([[c.logps, c.reason] for c in found], ensure_ascii=False)
        self._try("insert or ignore into verdicts values (?, ?)", key, kept)
        return found

    def _try(self, statement: str, *values) -> list[tuple]:
        """Rows of one statement; none where the file is not to be used (a full or read-only disk): the judge is asked then.

        A connection a statement: judges are asked from several threads.
        """
        try:
            with closing(cache_base(self.path, TABLE)) as base, base:
                return base.execute(statement, values).fetchall()
        except (sqlite3.Error, OSError):
            return []

    def generate(self, prompts, n, sampling):
        """As Engine.generate: what is written is written anew."""
        return self.engine.generate(prompts, n, sampling)

    def stream(self, prompts, n, sampling):
        """As Engine.stream."""
        return self.engine.stream(prompts, n, sampling)

    def close(self) -> None:
        """Say how much was known, and close the engine."""
        if self.known:
            say(f"  {self.known} of {self.asked} verdicts were known ({self.path}; {OFF}=off asks again)")
            self.known = self.asked = 0
        self.engine.close()
