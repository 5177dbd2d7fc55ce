"""The benchmark against people's ratings computes what is known of that data. Skipped where ../shared is not at hand."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED

from toolkit.stats import spearman

RATINGS = SHARED / "data" / "human-ratings" / "plots.jsonl"
pytestmark = pytest.mark.skipif(not RATINGS.is_file(), reason=f"needs {RATINGS}")


@pytest.fixture(scope="module")
def rows():
    return [json.loads(line) for line in RATINGS.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "human_ratings.py"
    spec = importlib.util.spec_from_file_location("human_ratings", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("aspect", "known"), [("coherence", 0.31), ("interestingness", 0.54), ("naturalness", 0.38)])
def test_one_rater_against_the_rest_is_as_known(rows, benchmark, aspect, known):
    assert benchmark.one_against_the_rest([r["ratings"][aspect] for r in rows]) == pytest.approx(known, abs=0.03)


@pytest.mark.parametrize(("aspect", "known"), [("coherence", -0.16), ("interestingness", 0.20), ("naturalness", -0.11)])
def test_length_alone_is_as_known(rows, aspect, known):
    assert spearman([len(r["text"]) for r in rows], [r["mean"][aspect] for r in rows]) == pytest.approx(known, abs=0.06)


def test_within_generators_a_generators_own_level_counts_for_nothing(benchmark):
    systems = np.array(["a"] * 4 + ["b"] * 4)
    level = np.array([1, 1, 1, 1, 5, 5, 5, 5], float)
    inside = np.array([1, 2, 3, 4, 4, 3, 2, 1], float)
    people = level + np.array([1, 2, 3, 4, 1, 2, 3, 4]) / 10
    assert benchmark.within(inside, people, systems) == pytest.approx(0.0)
