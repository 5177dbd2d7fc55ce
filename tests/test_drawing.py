"""Tokens drawn from logits: what llama.cpp's own samplers leave is left, and the seed decides among it."""

import ctypes

import numpy as np
import pytest

from toolkit.engines.base import Sampling
from toolkit.engines.drawing import Drawing

VOCABULARY = 500


def logits(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, VOCABULARY).astype(np.float32)


def by_llama_cpp(row: np.ndarray, s: Sampling, seen: list[int]) -> dict[int, float]:
    """Probability of each token that llama.cpp's samplers leave."""
    import llama_cpp as C

    chain = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
    parts = [C.llama_sampler_init_penalties(VOCABULARY, 64, s.repeat_penalty, 0.0, 0.0)]
    parts += [C.llama_sampler_init_top_p(s.top_p, 1), C.llama_sampler_init_min_p(s.min_p, 1)]
    for part in [*parts, C.llama_sampler_init_temp(s.temperature), C.llama_sampler_init_dist(1)]:
        C.llama_sampler_chain_add(chain, part)
    for token in seen:
        C.llama_sampler_accept(chain, token)
    data = (C.llama_token_data * len(row))(*[C.llama_token_data(i, float(x), 0.0) for i, x in enumerate(row)])
    array = C.llama_token_data_array(data, len(row), -1, False)
    C.llama_sampler_apply(chain, ctypes.byref(array))
    found = {array.data[i].id: array.data[i].p for i in range(array.size)}
    C.llama_sampler_free(chain)
    return found


@pytest.mark.parametrize(
    "more",
    [
        {"min_p": 0.05},
        {"min_p": 0.0, "top_p": 0.6},
        {"min_p": 0.02, "top_p": 0.9, "repeat_penalty": 1.3},
        {"min_p": 0.0, "temperature": 0.3},
        {"min_p": 0.05, "repeat_penalty": 1.05},
    ],
)
def test_draws_are_distributed_as_llama_cpps(more):
    sampling = Sampling(**{"temperature": 0.8, **more})
    row, seen = logits(), [int(i) for i in logits().argsort()[-4:]]
    wanted = by_llama_cpp(row, sampling, seen)
    tries, drawn = 4000, np.zeros(VOCABULARY)
    drawing = Drawing(sampling, 3)
    for _ in range(tries):
        drawing.seen.clear()
        drawing.seen.extend(seen)
        drawn[drawing.next(row)] += 1
    assert set(np.flatnonzero(drawn)) <= set(wanted)
    expected = np.zeros(VOCABULARY)
    expected[list(wanted)] = list(wanted.values())
    deviation = np.abs(drawn / tries - expected)
    assert (deviation < 5 * np.sqrt(expected * (1 - expected) / tries) + 1e-3).all()


def test_a_seed_decides_and_the_logits_stay_as_they_are():
    row = logits()
    before = row.copy()
    sampling = Sampling(temperature=1.2, repeat_penalty=1.2)
    first, again, other = ([d.next(row) for _ in range(20)] for d in (Drawing(sampling, s) for s in (1, 1, 2)))
    assert first == again != other
    assert (row == before).all()


def test_temperature_zero_takes_the_likeliest_and_the_penalty_moves_on():
    row = logits()
    order = row.argsort()[::-1]
    assert Drawing(Sampling(temperature=0)).next(row) == order[0]
    drawing = Drawing(Sampling(temperature=0, repeat_penalty=100))
    assert [drawing.next(row) for _ in range(3)] == order[:3].tolist()


def test_a_single_token_that_holds_all_probability_is_kept_by_top_p():
    row = np.full(VOCABULARY, -50, np.float32)
    row[7] = 10
    assert Drawing(Sampling(min_p=0.0, top_p=0.01)).next(row) == 7
