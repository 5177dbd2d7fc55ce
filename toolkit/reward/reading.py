"""How the base model reads a text: twenty figures of how likely it finds the tokens and how often they repeat.

Not published; chosen because beside mean hidden states they double the agreement with people inside a generator's
texts (benchmarks/people_tuned.py): dull repetition and broken sentences show in likelihood, not in the mean state.
"""

import numpy as np
import torch

from toolkit.models.load import load_model, load_tokenizer
from toolkit.models.resolve import resolve
from toolkit.progress import bar

FIGURES = 20


class Reader:
    """The frozen base language model, loaded when first asked. `known` (token ids → figures) is what it has read."""

    def __init__(self, base: str, dtype: str = "auto"):
        self.base, self.dtype, self.net, self.known = base, dtype, None, {}

    def read(self, rows: list[list[int]], batch: int = 4, progress: str = "") -> np.ndarray:
        """Figures of tokenised texts, (N, 20) float32; the first is the mean log-probability of a token in nats."""
        new = sorted({tuple(r) for r in rows} - self.known.keys(), key=lambda r: (len(r), r))
        starts = range(0, len(new), batch)
        for at in bar(starts, desc=progress, unit="batch") if progress else starts:
            self._read(new[at : at + batch])
        return np.stack([self.known[tuple(r)] for r in rows])

    @torch.inference_mode()
    def _read(self, rows: list[tuple[int, ...]]) -> None:
        from toolkit.reward.model import pad

        if self.net is None:
            model = resolve(self.base)
            self.net, tokenizer = load_model(model, dtype=self.dtype).eval(), load_tokenizer(model)
            self.pad = tokenizer.pad_token_id
            self.start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        inputs = pad([[self.start, *r] for r in rows], self.pad, self.net.device)
        logps = self.net(**inputs).logits[:, :-1].float().log_softmax(-1)
        said = logps.gather(-1, inputs["input_ids"][:, 1:, None])
        ranks = (logps > said).sum(-1).float()
        entropy = -(logps.exp() * logps).sum(-1)
        for i, row in enumerate(rows):
            n = len(row)
            self.known[row] = figures(row, *(x[i, :n].cpu().numpy() for x in (said[..., 0], entropy, ranks)))


def figures(row: tuple[int, ...], logps: np.ndarray, entropy: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """One text's figures, (20). logps, entropy (nats), ranks (0 is the likeliest): (T)."""
    half, log_ranks = max(1, len(row) // 2), np.log1p(ranks)
    likelihood = [logps.mean(), logps.std(), *np.quantile(logps, [0.05, 0.1, 0.25, 0.5, 0.75])]
    halves = [logps[:half].mean(), logps[-half:].mean()]
    surprise = [entropy.mean(), entropy.std(), log_ranks.mean(), log_ranks.std(), (ranks == 0).mean()]
    surprise += [(ranks > 100).mean(), (logps + entropy).mean()]
    distinct = [len({row[i : i + n] for i in range(len(row))}) / len(row) for n in (1, 2, 3)]
    return np.array([*likelihood, *halves, *surprise, np.log(len(row)), *distinct], dtype=np.float32)
