"""Angles: each answer is asked for in its own way, and everything else is the engine's."""

from dataclasses import replace

import pytest

from toolkit.engines.base import Sampling
from toolkit.narrative.angles import Angled, from_angle
from toolkit.narrative.prompts import lines
from toolkit.narrative.writing import write_prompt


class Parrot:
    """Answers with what it was asked and how it was drawn."""

    name, family, closed = "parrot", "bird", False

    def __init__(self):
        self.calls = []

    def generate(self, prompts, n, sampling):
        self.calls.append((len(prompts), n, sampling))
        return [[f"{p[-1]['content']} | {sampling.temperature} {sampling.seed + i}"] for i, p in enumerate(prompts)]

    def stream(self, prompts, n, sampling):
        for i, p in enumerate(prompts):
            yield i, p[-1]["content"]

    def close(self):
        self.closed = True


ASKED = [write_prompt("A ferryman refuses one passenger."), write_prompt("A bell rings twice.")]


def test_the_k_th_answer_to_every_prompt_is_asked_from_the_k_th_angle():
    answers = Angled(Parrot()).generate(ASKED, 3, Sampling())
    for prompt, texts in zip(ASKED, answers, strict=True):
        assert [t.split(" | ")[0] for t in texts] == [
            f"{prompt[-1]['content']}\n\n{lines('angles')[k]}" for k in range(3)
        ]


def test_each_answer_keeps_its_own_sampling():
    hot, cold = Sampling(temperature=1.2), Sampling(temperature=0.6)
    answers = Angled(Parrot()).generate(ASKED, 4, [cold, hot, cold, hot])
    assert [t.split(" | ")[1].split()[0] for t in answers[1]] == ["0.6", "1.2", "0.6", "1.2"]


def test_answers_of_one_sampling_are_one_call():
    parrot = Parrot()
    Angled(parrot).generate(ASKED, 4, [Sampling(), replace(Sampling(), temperature=1.0)] * 2)
    assert [(size, n) for size, n, _ in parrot.calls] == [(4, 1), (4, 1)]


def test_no_two_answers_are_drawn_with_one_seed():
    answers = Angled(Parrot()).generate(ASKED, 4, [Sampling(), replace(Sampling(), temperature=1.0)] * 2)
    seeds = [t.split()[-1] for texts in answers for t in texts]
    assert len(set(seeds)) == len(seeds)


def test_angles_are_taken_round_and_round():
    assert from_angle(ASKED[0], len(lines("angles"))) == from_angle(ASKED[0], 0)


def test_a_chinese_prompt_gets_a_chinese_angle():
    assert from_angle(write_prompt("船夫不肯载一个客人。"), 0)[-1]["content"].endswith(lines("angles", "zh")[0])


def test_streaming_gives_the_answers_their_places():
    got = dict(Angled(Parrot()).stream(ASKED[:1], 3, Sampling()))
    assert [got[k].endswith(lines("angles")[k]) for k in range(3)] == [True] * 3


def test_closing_closes_the_engine():
    parrot = Parrot()
    Angled(parrot).close()
    assert parrot.closed


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_two_angles_are_alike(language):
    known = lines("angles", language)
    assert len(set(known)) == len(known) == 16
