"""Stages that need no model: what they take from a user's files, and what they refuse."""

import json
from pathlib import Path

import pytest

from toolkit import stages
from toolkit.errors import UserError
from toolkit.recipe import load_recipe
from toolkit.records import PreferencePair, Premise, read_jsonl
from toolkit.runner import Work, plan


def work(tmp_path: Path) -> Work:
    (tmp_path / "out").mkdir(exist_ok=True)
    return Work(tmp_path, tmp_path / "out", ())


def premises_of(tmp_path, rows, *more) -> tuple[dict, Work]:
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    here = work(tmp_path)
    return stages.premises(load_recipe("quickstart", [f"premises.file={file}", *more]), here), here


def many(n: int) -> list[dict]:
    return [{"id": f"m{i}", "text": f"A woman counts {i} doors."} for i in range(n)]


def test_own_premises_are_split_by_their_ids(tmp_path):
    _, here = premises_of(tmp_path, many(60))
    sides = {s: read_jsonl(here.out / f"{s}.jsonl", Premise) for s in ("train", "test")}
    assert all(p.split == side for side, rows in sides.items() for p in rows)
    assert sides["train"]
    assert sides["test"]


def test_too_few_premises_for_a_test_side_are_refused(tmp_path):
    one = [p for p in many(20) if Premise(**p).split == "train"][:1]
    with pytest.raises(UserError, match="test side"):
        premises_of(tmp_path, one)


def test_the_same_text_under_two_ids_stands_on_one_side_only(tmp_path):
    _, here = premises_of(tmp_path, [*many(60), *({**p, "id": p["id"] + "x"} for p in many(60))], "premises.train=200")
    sides = [{p.text for p in read_jsonl(here.out / f"{s}.jsonl", Premise)} for s in ("train", "test")]
    assert not sides[0] & sides[1]


def test_an_overlong_premise_is_named_by_its_id(tmp_path):
    with pytest.raises(UserError, match=r"mine\.jsonl, premise huge: the premise has 5,000 characters"):
        premises_of(tmp_path, [*many(20), {"id": "huge", "text": "x" * 5000}])


def test_with_skip_bad_lines_an_overlong_premise_is_left_out_and_counted(tmp_path):
    rows = [*many(60), {"id": "huge", "text": "x" * 5000}]
    facts, _ = premises_of(tmp_path, rows, "premises.skip_bad_lines=true")
    assert facts["bad_lines"] == 1


def test_languages_choose_among_the_shipped_premises(tmp_path):
    here = work(tmp_path)
    stages.premises(load_recipe("quickstart", ["premises.languages=[zh]"]), here)
    assert {p.language for p in read_jsonl(here.out / "train.jsonl", Premise)} == {"zh"}


def test_own_pairs_are_used_as_they_are(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "Write.", "chosen": "Good.", "rejected": "Bad."}))
    recipe, here = load_recipe("quickstart", [f"pairs.file={file}"]), work(tmp_path)
    assert stages.pairs(recipe, here)["pairs"] == 1
    assert read_jsonl(here.out / "pairs.jsonl", PreferencePair)[0].prompt == "Write."


def test_with_own_pairs_nothing_is_generated_rated_or_rewarded(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("{}")
    names = [s.name for s in plan(load_recipe("quickstart", [f"pairs.file={file}"]))]
    assert names == ["model", "premises", "pairs", "dpo", "export", "passport", "evaluate", "report"]
