"""People's ratings are read into one form; what one person agrees with the rest, and what a writer's level gives away."""

import json

import numpy as np
import pytest
from conftest import SHARED

from toolkit.errors import UserError
from toolkit.people import one_against_the_rest, read_people, within_systems
from toolkit.stats import spearman

FOLDER = SHARED / "data" / "human-ratings"
known_data = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"needs {FOLDER}")


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def row(i, **more):
    return {"text": f"Story {i}.", "ratings": {"fun": [1, 2, 3 + i % 3]}, "prompt": f"P{i % 5}"} | more


def test_a_mean_is_made_from_the_single_ratings(tmp_path):
    first = read_people(write(tmp_path / "r.jsonl", [row(i) for i in range(30)]))[0]
    assert (first.mean, first.people) == ({"fun": 2.0}, {"fun": (1.0, 2.0, 3.0)})


def test_texts_of_one_prompt_are_one_group(tmp_path):
    found = read_people(write(tmp_path / "r.jsonl", [row(i) for i in range(30)]))
    assert len({r.group for r in found}) == 5
    assert found[0].group == found[5].group


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{oops", "r.jsonl:31:"),
        ({"ratings": {"fun": [1]}}, "r.jsonl:31: no 'text'"),
        ({"text": "Words."}, "r.jsonl:31: no ratings"),
        ({"text": "Words.", "mean": {"dull": 1}}, "r.jsonl:31: aspects dull differ from fun"),
        ({"text": "Words.", "mean": {"fun": "high"}}, "r.jsonl:31: could not convert"),
        ({"text": 3, "mean": {"fun": 1}}, "r.jsonl:31: `text` is no text"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path, line, says):
    with pytest.raises(UserError) as error:
        read_people(write(tmp_path / "r.jsonl", [*(row(i) for i in range(30)), line]))
    assert says in str(error.value)


def test_too_few_texts_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds 29 rated texts; at least 30"):
        read_people(write(tmp_path / "r.jsonl", [row(i) for i in range(29)]))


def test_inside_a_writers_texts_the_writers_own_level_counts_for_nothing():
    systems = ["a"] * 8 + ["b"] * 8
    level = np.repeat([1.0, 5.0], 8)
    mine = level + np.array([*range(8), *range(8, 0, -1)]) / 10
    people = level + np.array([*range(8), *range(8)]) / 10
    assert spearman(mine, people) > 0.5
    assert within_systems(mine, people, systems) == pytest.approx(0.0)


def test_a_writer_with_few_texts_is_not_counted():
    assert np.isnan(within_systems([1, 2, 3], [1, 2, 3], ["a", "a", "b"]))


def test_with_one_writer_there_is_nothing_to_tell_apart():
    assert np.isnan(within_systems(range(9), range(9), [""] * 9))


@known_data
@pytest.mark.parametrize(("aspect", "known"), [("coherence", 0.31), ("interestingness", 0.54), ("naturalness", 0.38)])
def test_one_rater_against_the_rest_is_as_known(aspect, known):
    assert one_against_the_rest(read_people(FOLDER / "plots.jsonl"), aspect) == pytest.approx(known, abs=0.03)


@known_data
@pytest.mark.parametrize(("aspect", "known"), [("coherence", -0.16), ("interestingness", 0.20), ("naturalness", -0.11)])
def test_length_alone_is_as_known(aspect, known):
    rows = read_people(FOLDER / "plots.jsonl")
    assert spearman([len(r.text) for r in rows], [r.mean[aspect] for r in rows]) == pytest.approx(known, abs=0.06)


@known_data
@pytest.mark.parametrize("name", ["plots", "stories", "hanna"])
def test_the_public_files_are_read(name):
    assert len(read_people(FOLDER / f"{name}.jsonl")) >= 30


def test_what_the_writer_was_asked_for_is_kept(tmp_path):
    path = tmp_path / "rated.jsonl"
    rows = [
        {"text": "A tale.", "mean": {"likability": 3}, "prompt": "A well."},
        {"text": "B.", "mean": {"likability": 1}},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [r.prompt for r in read_people(path, needed=1)] == ["A well.", ""]
