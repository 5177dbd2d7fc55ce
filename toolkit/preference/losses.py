"""The preference losses, one value a pair: DPO, ORPO and their deviation-weighted forms. All tensors are (B,).

w is the deviation weight of the *chosen* answer (preference.deviation), as published; with w = 1 DDPO is DPO and DORPO is
ORPO.
"""

import torch
from torch.nn.functional import logsigmoid


def ddpo(logratio_gap: torch.Tensor, weights: torch.Tensor, beta: float) -> torch.Tensor:
    """w · −log σ(β · gap), gap = log π(c)/π_ref(c) − log π(r)/π_ref(r), sums over answer tokens (arXiv 2503.17126)."""
    return weights * -logsigmoid(beta * logratio_gap)


def dorpo(chosen: torch.Tensor, rejected: torch.Tensor, weights: torch.Tensor, odds: float) -> torch.Tensor:
    """w · NLL(c) − λ · log σ(w · [log odds(c) − log odds(r)]): the weight stands inside the sigmoid (arXiv 2503.17126).

    NLL(c) = −`chosen`: mean over the answer's own tokens, for each pair by itself (the released code reduces over the
    batch first, and TRL's ORPO counts the prompt's tokens too).

    Args:
        chosen, rejected: mean log-probability a token of each answer, below 0.
        odds: λ.
    """
    return weights * -chosen - odds * logsigmoid(weights * (log_odds(chosen) - log_odds(rejected)))


def log_odds(mean_logps: torch.Tensor) -> torch.Tensor:
    """log p/(1 − p) of p = exp(mean log-probability), in float32 and without losing small 1 − p (ORPO, eq. 4)."""
    x = mean_logps.float().clamp(max=-1e-6)  # a certain answer has no finite odds
    log_rest = torch.where(x > -0.6931, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
    return x - log_rest
