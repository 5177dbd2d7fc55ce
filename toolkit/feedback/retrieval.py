"""Good greetings for similar requests, shown to the judge so that it knows what good looks like here."""

import hashlib

import numpy as np

from toolkit.greeting.form import plain
from toolkit.models.embed import NAMED, embed
from toolkit.progress import say
from toolkit.records import Labelled, guess_language


class Examples:
    """Labelled greetings to find similar ones among; of the train side only, which is the caller's to see to.

    Args:
        labelled: those there are.
        model: of models.embed, as `pick_model` gives it.
    """

    def __init__(self, labelled: list[Labelled], model: str):
        self.labelled, self.model = labelled, model
        self._vectors = embed([x.request for x in labelled], model, "examples")
        self._texts = [plain(x.request) for x in labelled]

    def similar(self, requests: list[str], k: int, among: int, seed: int) -> list[list[Labelled]]:
        """For each request `k` of the `among` nearest in its language, nearest first.

        Near is the cosine between requests. Drawing from more than are shown keeps one example from being shown
        everywhere; the draw follows from the seed and the request alone. Never one of the same request, and one
        labelled greeting of each request at most. Fewer than `k`, or none, where there are no more.
        """
        if not self.labelled or k < 1:
            return [[] for _ in requests]
        vectors = embed(requests, self.model, "retrieval")
        return [self._draw(r, self._vectors @ v, k, among, seed) for r, v in zip(requests, vectors, strict=True)]

    def _draw(self, request: str, near: np.ndarray, k: int, among: int, seed: int) -> list[Labelled]:
        own, language = plain(request), guess_language(request)
        ids = {x.request_id for x, text in zip(self.labelled, self._texts, strict=True) if text == own}
        found: dict[str, int] = {}
        for i in np.argsort(-near, kind="stable"):
            x = self.labelled[i]
            if x.language == language and x.request_id not in ids and len(found) < max(among, k):
                found.setdefault(x.request_id, int(i))
        pool = list(found.values())
        rng = np.random.default_rng(int(hashlib.sha256(f"{seed}:{own}".encode()).hexdigest()[:15], 16))
        drawn = rng.choice(len(pool), size=min(k, len(pool)), replace=False) if pool else []
        return [self.labelled[pool[i]] for i in sorted(drawn)]


def pick_model(name: str, languages: tuple[str, ...]) -> str:
    """The embedding model that `name` means for texts in these languages.

    "auto" is multilingual when it is on this machine (nothing is fetched for it), else ngrams when Chinese occurs,
    else minilm; what was picked is said.
    """
    if name != "auto":
        return name
    from huggingface_hub import try_to_load_from_cache

    files = ("config.json", "model.safetensors")
    if all(isinstance(try_to_load_from_cache(NAMED["multilingual"], file), str) for file in files):
        picked, why = "multilingual", "it is on this machine"
    elif "zh" in languages:
        picked, why = "ngrams", "Chinese occurs and no multilingual model is on this machine"
    else:
        picked, why = "minilm", "all is English"
    say(f"  similar greetings are found by {picked}: {why}")
    return picked
