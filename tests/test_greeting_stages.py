"""Stages of a greetings run that need no model: what they take from a user's files, and what they refuse."""

import dataclasses
import json
from pathlib import Path

import pytest

from toolkit import greeting_stages as G
from toolkit.errors import UserError
from toolkit.recipe import GrpoSettings, Recipe, load_recipe
from toolkit.records import Labelled, PreferencePair, Request, dump, read_jsonl, side_of, write_jsonl
from toolkit.runner import Work, plan


def names(recipe: Recipe) -> list[str]:
    return [s.name for s in plan(recipe)]


def recipe(**more) -> Recipe:
    return Recipe(task="greeting", align="grpo", **more)


def here(tmp_path: Path) -> Work:
    (tmp_path / "out").mkdir(exist_ok=True)
    return Work(tmp_path, tmp_path / "out", ())


def asked(tmp_path, rows, *overrides) -> tuple[dict, Work]:
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    work = here(tmp_path)
    return G.requests(load_recipe("greetings-small", [f"requests.file={file}", *overrides]), work), work


def many(count: int) -> list[dict]:
    return [{"id": f"m{i}", "text": f"A birthday card for my neighbour number {i}"} for i in range(count)]


def test_own_requests_are_split_by_their_ids(tmp_path):
    facts, work = asked(tmp_path, many(60))
    for side in G.SIDES:
        rows = read_jsonl(work.out / f"{side}.jsonl", Request)
        assert rows
        assert {side_of(r.id) for r in rows} == {side}
    assert facts["train"] > facts["test"] > 0


def test_a_greeting_that_stands_on_two_sides_is_refused(tmp_path):
    rows = [
        {"request_id": f"m{i}", "request": f"Card {i}", "good": f"Ann, you did {i}!", "bad": f"Well done, number {i}."}
        for i in range(80)
    ]
    one, other = (next(r for r in rows if side_of(r["request_id"]) == side) for side in ("train", "test"))
    other["good"] = one["good"].upper()
    file = tmp_path / "labelled.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    with pytest.raises(UserError, match="two sides of the split"):
        G.requests(load_recipe("greetings-small", [f"requests.labelled={file}"]), here(tmp_path))


def test_too_few_requests_for_a_side_are_refused(tmp_path):
    with pytest.raises(UserError, match="side"):
        asked(tmp_path, many(2))


def test_requests_too_few_for_the_rounds_are_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(UserError, match="rounds need 4"):
        asked(tmp_path, many(40), "requests.train=3", "grpo.rewards=[judge]")


def test_few_labelled_greetings_are_refused(tmp_path):
    rows = [{"request": f"Card {i}", "good": f"You did {i}.", "bad": f"Well done {i}."} for i in range(12)]
    file = tmp_path / "labelled.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    with pytest.raises(UserError, match="labelled requests"):
        G.requests(load_recipe("greetings-small", [f"requests.labelled={file}"]), here(tmp_path))


def test_the_shipped_material_stands_on_three_sides_without_a_leak(tmp_path):
    facts = G.requests(
        load_recipe("greetings-small", ["requests.languages=[zh, en]", "requests.test=500"]), here(tmp_path)
    )
    assert facts["train"] + facts["validate"] + facts["test"] >= 400
    assert sum(facts["labelled"].values()) >= 150


def pairs_of(tmp_path, records: list[dict], labelled: list[Labelled]) -> tuple[dict, list[PreferencePair]]:
    for stage in ("requests", "rejection"):
        (tmp_path / stage).mkdir(exist_ok=True)
    write_jsonl(tmp_path / "requests" / "labelled.jsonl", labelled)
    for side in G.SIDES:
        write_jsonl(tmp_path / "requests" / f"{side}.jsonl", [])
    write_jsonl(tmp_path / "rejection" / "records.jsonl", records)
    work = here(tmp_path)
    return G.pairs(load_recipe("greetings-small"), work), read_jsonl(work.out / "pairs.jsonl", PreferencePair)


def said(id: str, k: int, text: str, verdict) -> dict:
    return {"id": f"{id}-{k}", "request_id": id, "request": "A card for Ann", "text": text, "verdict": verdict}


TRAIN = next(f"r{i}" for i in range(99) if side_of(f"r{i}") == "train")
VALIDATE = next(f"r{i}" for i in range(99) if side_of(f"r{i}") == "validate")


def test_agents_that_accept_everything_make_no_pair_and_labelled_ones_stand_in(tmp_path):
    rows = [said(TRAIN, k, f"Ann, the garden asks after you, day {k}.", 1) for k in range(4)]
    made = Labelled(TRAIN, "A card for Ann", "Ann, the roses are late.", "Dear Ann, best wishes.")
    facts, pairs = pairs_of(tmp_path, rows, [made])
    assert facts["train"]["by_agents"] == 0
    assert [p.chosen for p in pairs] == [made.good]


def test_without_any_pair_the_run_ends_and_says_what_to_do(tmp_path):
    rows = [said(TRAIN, k, f"Ann, the garden asks after you, day {k}.", None) for k in range(4)]
    with pytest.raises(UserError, match="no request has both"):
        pairs_of(tmp_path, rows, [])


def test_an_answer_said_to_train_and_to_test_is_taken_out_of_training(tmp_path):
    both = "Happy birthday, Ann, from all of us here!"
    labelled = [
        Labelled(VALIDATE, "A card for Bob", "Bob, the boat floats.", both),
        Labelled(TRAIN, "A card for Ann", "Ann, the roses are late.", "Dear Ann, best wishes."),
    ]
    rows = [said(TRAIN, 0, both, 1), said(TRAIN, 1, "Ann, all the very best to you, always.", 0)]
    facts, pairs = pairs_of(tmp_path, rows, labelled)
    assert facts["said_on_two_sides"] == 1
    assert [p.chosen for p in pairs] == ["Ann, the roses are late."]


def test_a_run_says_when_length_tells_chosen_from_rejected(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(G, "say", told.append)
    longer = [Labelled(TRAIN, f"A card {i}", f"Ann, here is a very long greeting {i}.", f"Hi {i}.") for i in range(3)]
    pairs_of(tmp_path, [], longer)
    assert "pay for length" in told[0]


# ---- the plan


def test_a_run_by_the_judge_alone_asks_no_agents_and_trains_no_reward_model():
    found = names(recipe(grpo=GrpoSettings(rewards=("judge",))))
    assert {"rejection", "pairs", "pairwise"}.isdisjoint(found)
    assert found.index("principles") < found.index("grpo")


def test_a_run_by_the_reward_model_needs_no_principles():
    assert "principles" not in names(recipe())


def test_dpo_of_greetings_trains_on_the_pairs_of_the_reward_model():
    found = names(dataclasses.replace(recipe(), align="dpo"))
    assert "grpo" not in found
    assert found.index("pairs") < found.index("dpo")


def test_the_watch_of_a_training_needs_the_unseen_judge():
    watched = recipe(tripwire=dataclasses.replace(Recipe().tripwire, every=5))
    needs = {s.name: s.needs for s in plan(watched)}
    assert "unseen" in needs["grpo"]


def test_grpo_is_refused_for_plots():
    with pytest.raises(UserError, match="grpo aligns greetings"):
        load_recipe("quickstart", ["align=grpo"])


def test_one_weight_a_reward_is_asked_for():
    with pytest.raises(UserError, match="1 for 2 rewards"):
        load_recipe("greetings-small", ["grpo.rewards=[model, judge]"])


def test_an_agent_that_is_no_file_is_refused_before_anything_runs():
    with pytest.raises(UserError, match=r"rejection\.judge"):
        load_recipe("greetings-small", ["rejection.judge=nowhere.gguf"])


# ---- the command line


def test_debates_of_a_folder_without_records_are_refused(tmp_path, capsys):
    from toolkit.cli import main

    assert main(["debates", str(tmp_path)]) == 2
    assert "no agents' records" in capsys.readouterr().err


def test_debates_show_what_was_overturned(tmp_path, capsys):
    from toolkit.cli import main
    from toolkit.feedback.verdicts import Sampled

    kept = Sampled("a-0", "a", "A card for Ann", "Ann, hello.", verdict=1)
    turned = Sampled("a-1", "a", "A card for Ann", "Ann, bye.", verdict=1, reflected=0, overturned=True, cause="cold")
    (tmp_path / "rejection").mkdir()
    (tmp_path / "rejection" / "records.jsonl").write_text(f"{dump(kept)}\n{dump(turned)}\n", encoding="utf-8")
    assert main(["debates", str(tmp_path), "--only", "overturned"]) == 0
    out = capsys.readouterr().out
    assert "Ann, bye." in out
    assert "Ann, hello." not in out


def test_an_empty_request_for_a_greeting_is_refused(capsys):
    from toolkit.cli import main

    assert main(["write", "--as", "greeting", "  "]) == 2
    assert "empty" in capsys.readouterr().err


def test_angles_are_for_plots(capsys):
    from toolkit.cli import main

    assert main(["write", "--as", "greeting", "--angles", "A card"]) == 2
    assert "for plots" in capsys.readouterr().err


@pytest.mark.slow
def test_the_embedded_model_writes_a_greeting_from_the_command_line(capsys):
    from toolkit.cli import main

    assert (
        main(["write", "--as", "greeting", "A birthday card for my brother, who sails", "--seed", "1", "--json"]) == 0
    )
    row = json.loads(capsys.readouterr().out)
    assert row["text"]
    assert isinstance(row["broken"], list)
