"""A reward model fine-tuned on people's ratings: what is read, what is refused, honest folds, saving, going on."""

import json
from dataclasses import replace

import numpy as np
import pytest

from toolkit.errors import UserError
from toolkit.narrative.dimensions import KEYS
from toolkit.recipe import LoraSettings
from toolkit.reward import people
from toolkit.reward.model import load_reward_model
from toolkit.reward.people import SETTINGS, figures, fold_of, ridge_start, train_on_people, within
from toolkit.reward.rated import from_house, read_rated, to_house

WORDS = ["The", "well", "was", "dry,", "so", "Ama", "dug", "until", "water", "came", "and", "the", "village", "sang."]
SMALL = replace(SETTINGS, lora=LoraSettings(r=2, last_layers=1), depth=0.5, epochs=1, ridge=10.0)


def rows(count: int = 32) -> list[dict]:
    """Eight groups of four texts by four systems; longer texts are rated better on flow, worse on calm."""
    made = []
    for i in range(count):
        length = 3 + (i * 5) % 11
        text = " ".join(WORDS[(i + k) % len(WORDS)] for k in range(length))
        flow = [1 + length / 4, 1 + length / 4, min(5, 1 + length / 3)]
        made.append(
            {
                "text": f"{text} {i}",
                "group": f"g{i // 4}",
                "system": f"s{i % 4}",
                "ratings": {"flow": flow, "calm": [6 - f for f in flow]},
            }
        )
    return made


def write(path, made):
    path.write_text("".join(json.dumps(r) + "\n" for r in made))
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "ratings.jsonl", rows())


def test_the_file_is_read_onto_the_house_scale(file):
    rated = read_rated(file)
    assert (rated.dimensions, rated.scale, len(rated.texts)) == (("flow", "calm"), (1.0, 5.0), 32)
    assert rated.targets.min() >= 1
    assert rated.targets.max() <= 10
    assert {len(r.people["flow"]) for r in rated.rows} == {3}


def test_a_mean_alone_is_enough(tmp_path):
    made = [{"text": r["text"], "mean": {"flow": r["ratings"]["flow"][0]}} for r in rows()]
    rated = read_rated(write(tmp_path / "m.jsonl", made))
    assert {len(r.people) for r in rated.rows} == {0}
    assert len(set(rated.groups)) == 32


@pytest.mark.parametrize("scale", [(1.0, 5.0), (0.0, 100.0), (-3.0, 3.0)])
def test_scales_map_there_and_back(scale):
    values = np.linspace(*scale, 7)
    assert to_house(scale, scale) == pytest.approx([1, 10])
    assert from_house(to_house(values, scale), scale) == pytest.approx(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m[4].pop("text"), ":5: no 'text'"),
        (lambda m: m[4].update(text=" "), ":5: `text` is empty"),
        (lambda m: m[6].pop("ratings"), ":7: no ratings"),
        (lambda m: m[6].update(ratings={"flow": ["good"], "calm": [1]}), ":7: could not convert"),
        (lambda m: m[6].update(ratings={"flow": [], "calm": [1]}), ":7: aspects calm differ from flow, calm"),
        (lambda m: m[6].update(ratings={"flow": [float("nan")], "calm": [1]}), ":7: a rating is not a number"),
        (lambda m: m[8]["ratings"].pop("calm"), ":9: aspects flow differ from flow, calm above"),
        (lambda m: [r["ratings"].update(calm=[3]) for r in m], "the same calm"),
        (lambda m: m.__delitem__(slice(29, None)), "29 rated texts"),
    ],
)
def test_a_bad_file_is_refused_where_it_is_bad(tmp_path, change, message):
    made = rows()
    change(made)
    with pytest.raises(UserError, match=message):
        read_rated(write(tmp_path / "bad.jsonl", made))


def test_a_line_that_is_no_json_and_a_missing_file_are_refused(tmp_path, file):
    file.write_text(file.read_text() + "{oh\n")
    with pytest.raises(UserError, match=":33: not valid JSON"):
        read_rated(file)
    with pytest.raises(UserError, match="no file"):
        read_rated(tmp_path / "absent.jsonl")


def test_a_rating_outside_the_named_scale_is_refused(file):
    with pytest.raises(UserError, match="outside"):
        read_rated(file, scale=(1.0, 3.0))


def test_no_group_is_on_both_sides_of_a_fold(file):
    groups = read_rated(file).groups
    for seed in range(5):
        fold = fold_of(groups, 3, seed)
        assert all(len({f for f, g in zip(fold, groups, strict=True) if g == one}) == 1 for one in set(groups))
        assert set(fold) == {0, 1, 2}


def test_more_folds_than_groups_are_refused(file):
    with pytest.raises(UserError, match="9 folds of 8 groups"):
        fold_of(read_rated(file).groups, 9, 1)


def test_a_held_out_text_does_not_reach_the_ridge_start(file):
    rated, rng = read_rated(file), np.random.default_rng(0)
    features, fold = rng.normal(size=(32, 6)).astype(np.float32), fold_of(rated.groups, 4, 1)
    before = ridge_start(rated, features, 2, 10.0, fold)
    other = replace(rated, targets=np.where((fold == 2)[:, None], 1.5, rated.targets))
    assert ridge_start(other, features, 2, 10.0, fold)[fold == 2] == pytest.approx(before[fold == 2])


def test_within_generators_a_folds_level_does_not_count():
    systems, fold = ["a", "b"] * 12, np.repeat([0, 1, 2, 3], 6)
    people = np.arange(24.0)
    shifted = people - 100 * fold  # right inside every fold, though the folds' levels are upside down
    assert within(shifted, people, systems, fold)[0] == pytest.approx(1.0)
    assert within(shifted, people, ["a"] * 24, fold) is None


def test_figures_of_perfect_and_of_reversed_scores(file):
    rated = read_rated(file)
    found = figures(rated, {"model": rated.targets, "ridge": -rated.targets}, fold_of(rated.groups, 2, 1))
    assert found["flow"]["spearman"]["model"][0] == pytest.approx(1.0)
    assert found["calm"]["gain"][0] == pytest.approx(2.0)
    assert found["flow"]["one rater"] > 0.9


def test_trained_saved_and_loaded_it_scores_the_same_under_its_own_names(tiny, file, tmp_path):
    out = tmp_path / "out"
    facts = train_on_people(file, out, str(tiny), folds=2, settings=SMALL)
    assert set(facts["aspects"]) == {"flow", "calm"}
    assert facts["scale"] == [1.0, 5.0]
    assert set(facts["aspects"]["flow"]["spearman"]) == {"model", "before LoRA", "ridge", "likelihood", "length"}
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 32
    model = load_reward_model(out)
    scores = model.score([r["text"] for r in rows()])
    assert (model.config.dimensions, model.config.scale, scores.shape) == (("flow", "calm"), (1.0, 5.0), (32, 2))
    again = tmp_path / "again"
    assert train_on_people(file, again, str(tiny), folds=2, settings=SMALL)["aspects"] == facts["aspects"]
    assert load_reward_model(again).score(["Rain fell."]) == pytest.approx(model.score(["Rain fell."]), abs=1e-5)
    with pytest.raises(UserError, match="rates flow, calm, not character"):
        load_reward_model(out, dimensions=KEYS)


def test_without_epochs_the_head_is_closed_form_and_what_is_saved_is_what_was_measured(tiny, file, tmp_path):
    it = people.study(file, tmp_path, str(tiny), replace(SMALL, epochs=0))
    fold = fold_of(it.rated.groups, 2, 1)
    model = people.train_on(it, np.flatnonzero(fold == 0), tmp_path / "work", 1)
    held_out = [it.rated.texts[i] for i in np.flatnonzero(fold == 1)]
    assert model.score(held_out) == pytest.approx(people.cross_validate(it, 2, 1)[fold == 1], abs=0.05)  # bfloat16
    assert "before LoRA" not in people.baselines(it, fold)


def test_after_a_kill_the_whole_folds_are_not_trained_again(tiny, file, tmp_path, monkeypatch):
    trained, real = [], people.train_on

    def until_the_second(it, picked, work, seed):
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(work.name)
        return real(it, picked, work, seed)

    monkeypatch.setattr(people, "train_on", until_the_second)
    with pytest.raises(KeyboardInterrupt):
        train_on_people(file, tmp_path / "out", str(tiny), folds=2, settings=SMALL)
    assert not (tmp_path / "out" / "people.json").exists()
    seen = []
    monkeypatch.setattr(people, "train_on", lambda *a: seen.append(a[2].name) or real(*a))
    facts = train_on_people(file, tmp_path / "out", str(tiny), folds=2, settings=SMALL)
    assert (trained, seen) == (["fold-2-1-0"], ["fold-2-1-1", "all"])
    monkeypatch.setattr(people, "study", None)  # a third call finds everything done
    assert train_on_people(file, tmp_path / "out", str(tiny), folds=2, settings=SMALL) == facts
    assert not list((tmp_path / "out").glob("work-*"))
