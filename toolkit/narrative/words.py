"""Words of English and Chinese texts, wherever words are counted, compared or run together."""

import re

UNIT = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]|[^\W_\u3040-\u30ff\u4e00-\u9fff]+(?:['’][^\W_]+)*")


def words_of(text: str) -> list[str]:
    """Words in lower case without marks; Chinese and Japanese by character."""
    return [w.lower().replace("’", "'") for w in UNIT.findall(text)]


def ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    """All runs of `n` words, in order."""
    return list(zip(*(words[i:] for i in range(n)), strict=False))
