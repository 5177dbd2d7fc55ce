"""Base against aligned on real (tiny) writers with a judge of known character: files, resuming, side by side."""

import pytest

from toolkit.engines.base import Sampling
from toolkit.engines.load import load_engine
from toolkit.evaluate.duel import duel_stage
from toolkit.evaluate.judge import Verdict
from toolkit.narrative.dimensions import KEYS
from toolkit.records import Premise

PREMISES = [Premise(f"p{i}", f"A keeper hears knocking, night {i}.") for i in range(8)]
SAMPLING = Sampling(max_tokens=24, seed=3)


class Longer:
    """Prefers the longer text."""

    name, family = "longer", ""

    def compare(self, premise, a, b):
        sure = dict.fromkeys(KEYS, 0.5 + 0.4 * ((len(a.text) > len(b.text)) - (len(a.text) < len(b.text))))
        return Verdict(a.premise_id, a.id, b.id, sure, sure)

    def close(self):
        pass


def duel(gguf, out, judge, **more):
    out.mkdir(exist_ok=True)
    return duel_stage(
        {"base": lambda: load_engine(gguf), "aligned": lambda: load_engine(gguf)},
        PREMISES,
        2,
        SAMPLING,
        lambda: judge,
        None,
        out,
        **more,
    )


@pytest.fixture(scope="module")
def whole(tiny_gguf, tmp_path_factory):
    out = tmp_path_factory.mktemp("duel")
    return out, duel(tiny_gguf, out, Longer())


def test_each_pair_is_judged_once(whole):
    out, found = whole
    assert (found["pairs"], found["premises"], found["judge"]) == (16, 8, "longer")
    assert found["families"] == {"base": "smollm", "aligned": "smollm"}
    assert len((out / "verdicts.jsonl").read_text().splitlines()) == 16


def test_a_judge_beside_the_writer_decides_the_same(whole, tiny_gguf, tmp_path):
    out, found = whole
    assert duel(tiny_gguf, tmp_path, Longer(), beside=True) == found
    assert (tmp_path / "verdicts.jsonl").read_bytes() == (out / "verdicts.jsonl").read_bytes()


def test_a_killed_duel_goes_on_where_it_was(whole, tiny_gguf, tmp_path, monkeypatch):
    out, found = whole
    monkeypatch.setattr("toolkit.evaluate.duel._Bench.judge", _stop)
    with pytest.raises(KeyboardInterrupt):
        duel(tiny_gguf, tmp_path, Longer())
    monkeypatch.undo()
    assert duel(tiny_gguf, tmp_path, Longer()) == found
    assert (tmp_path / "plots.jsonl").read_bytes() == (out / "plots.jsonl").read_bytes()


def _stop(self, premises):
    raise KeyboardInterrupt


def test_what_fails_beside_the_writer_is_not_lost(tiny_gguf, tmp_path, monkeypatch):
    monkeypatch.setattr("toolkit.evaluate.duel._Bench.judge", _stop)
    with pytest.raises(KeyboardInterrupt):
        duel(tiny_gguf, tmp_path, Longer(), beside=True)
