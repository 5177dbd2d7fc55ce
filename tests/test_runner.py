"""The machinery of a run, with stages that only write a file and remember that they were called."""

import dataclasses
import errno
import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from toolkit.errors import UserError
from toolkit.recipe import Recipe
from toolkit.runner import (
    GREETING_STAGES,
    INSTRUCT_STAGES,
    STAGES,
    Stage,
    _only_one,
    plan,
    run_recipe,
    stage_keys,
    stands,
)

R = importlib.import_module("toolkit.runner")


@pytest.fixture
def stages(monkeypatch):
    """one ← two ← three; beside stands on one. `called` in order; `before[name](work)` runs inside a stage."""
    house = SimpleNamespace(called=[], before={})

    def make(name, needs, settings):
        def function(recipe, work):
            house.called.append(name)
            house.before.get(name, lambda work: None)(work)
            (work.out / "out.txt").write_text(f"{name} of seed {recipe.seed}, beta {recipe.dpo.beta}")
            return {"made": name}

        return Stage(name, f"does {name}", function, needs, settings)

    monkeypatch.setattr(
        R,
        "STAGES",
        (
            make("one", (), ("seed",)),
            make("two", ("one",), ("dpo",)),
            make("beside", ("one",), ("export",)),
            make("three", ("two",), ()),
            make("report", (), ()),
        ),
    )
    return house


@pytest.fixture
def out(tmp_path):
    """A run's folder with no other run beside it."""
    return tmp_path / "runs" / "mine"


ALL = ["one", "two", "beside", "three", "report"]


def recipe(seed=1, beta=0.1, **dpo):
    base = Recipe(name="mine", seed=seed)
    return dataclasses.replace(base, dpo=dataclasses.replace(base.dpo, beta=beta, **dpo))


def run(stages, out, made=None):
    """The names of the stages that a run really did."""
    stages.called.clear()
    run_recipe(made or recipe(), out)
    return list(stages.called)


def card(out, name):
    return json.loads((out / name / "stage.json").read_text())


# ---- doing and skipping


def test_stages_run_in_order_and_leave_whole_folders(stages, out):
    assert run(stages, out) == ALL
    assert all((out / name / "out.txt").is_file() for name in ALL)
    assert list((out).glob("*.partial")) == []


def test_a_run_answers_with_its_report(stages, out):
    assert run_recipe(recipe(), out) == out / "report" / "report.html"


def test_what_stands_is_skipped(stages, out):
    run(stages, out)
    assert run(stages, out) == []


def test_what_changed_is_redone_with_everything_that_needs_it(stages, out):
    run(stages, out)
    assert run(stages, out, recipe(beta=0.2)) == ["two", "three", "report"]
    assert "beta 0.2" in (out / "two" / "out.txt").read_text()
    assert run(stages, out, recipe(seed=2, beta=0.2)) == ALL


def test_a_setting_of_another_stage_redoes_nothing_before_it(stages, out):
    run(stages, out)
    made = recipe()
    made = dataclasses.replace(made, export=dataclasses.replace(made.export, quantisation="F16"))
    assert run(stages, out, made) == ["beside", "report"]


@pytest.mark.parametrize("harm", [Path.unlink, lambda p: p.write_text("shorter")], ids=["deleted", "of another size"])
def test_a_stage_whose_output_is_damaged_is_redone(stages, out, harm):
    run(stages, out)
    harm(out / "two" / "out.txt")
    assert run(stages, out) == ["two"]
    assert run(stages, out) == []


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '"x"'])
def test_a_stage_whose_card_is_damaged_is_redone(stages, out, text):
    run(stages, out)
    (out / "two" / "stage.json").write_text(text)
    assert run(stages, out) == ["two"]


def test_a_stage_sees_the_folders_and_facts_of_those_before_it(stages, out):
    seen = {}

    def look(work):
        seen["text"] = (work.of("one") / "out.txt").read_text()
        seen["facts"] = work.card("one")["facts"]
        seen["has"] = (work.has("one"), work.has("reward"))

    stages.before["two"] = look
    run(stages, out)
    assert seen == {"text": "one of seed 1, beta 0.1", "facts": {"made": "one"}, "has": (True, False)}


# ---- stopped in the middle


def stop(work):
    (work.out / "half.txt").write_text("half")
    raise KeyboardInterrupt


def interrupt(stages, out, name="two", made=None):
    stages.before[name] = stop
    with pytest.raises(KeyboardInterrupt):
        run(stages, out, made)
    del stages.before[name]


def test_a_stopped_stage_is_not_finished_and_those_before_it_are(stages, out):
    interrupt(stages, out)
    assert (out / "one").is_dir()
    assert not (out / "two").exists()
    assert run(stages, out) == ["two", "beside", "three", "report"]


def test_a_stopped_stage_goes_on_from_what_it_had_made(stages, out):
    interrupt(stages, out)
    found = []
    stages.before["two"] = lambda work: found.append((work.out / "half.txt").read_text())
    run(stages, out)
    assert found == ["half"]
    assert card(out, "two")["resumed"] is True
    assert card(out, "three")["resumed"] is False


def test_what_a_stopped_stage_had_made_for_other_settings_is_discarded(stages, out):
    interrupt(stages, out)
    found = []
    stages.before["two"] = lambda work: found.extend(p.name for p in work.out.iterdir() if p.name == "half.txt")
    run(stages, out, recipe(beta=0.2))
    assert found == []
    assert card(out, "two")["resumed"] is False


def test_a_stopped_redo_leaves_the_old_stage_until_the_new_one_is_whole(stages, out):
    run(stages, out)
    interrupt(stages, out, made=recipe(beta=0.2))
    assert "beta 0.1" in (out / "two" / "out.txt").read_text()
    assert run(stages, out, recipe(beta=0.1)) == []


def test_a_stage_stopped_just_before_it_takes_its_place_is_not_done_again(stages, out, monkeypatch):
    rename = Path.rename

    def killed(self, target):
        if self.name == "two.partial":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            run(stages, out)
    assert run(stages, out) == ["beside", "three", "report"]


# ---- other runs


def test_the_same_stage_is_taken_from_a_run_beside_this_one(stages, tmp_path):
    run(stages, tmp_path / "runs" / "a")
    assert run(stages, tmp_path / "runs" / "b") == []
    assert (tmp_path / "runs" / "b" / "three" / "out.txt").read_text() == (
        tmp_path / "runs" / "a" / "three" / "out.txt"
    ).read_text()


def test_only_what_differs_from_the_run_beside_is_done(stages, tmp_path):
    run(stages, tmp_path / "runs" / "a")
    assert run(stages, tmp_path / "runs" / "b", recipe(beta=0.2)) == ["two", "three", "report"]


def test_a_damaged_stage_is_not_taken_from_the_run_beside(stages, tmp_path):
    run(stages, tmp_path / "runs" / "a")
    (tmp_path / "runs" / "a" / "two" / "out.txt").unlink()
    assert run(stages, tmp_path / "runs" / "b") == ["two"]


def test_removing_the_run_beside_leaves_what_was_taken_from_it(stages, tmp_path):
    import shutil

    run(stages, tmp_path / "runs" / "a")
    run(stages, tmp_path / "runs" / "b")
    shutil.rmtree(tmp_path / "runs" / "a")
    assert run(stages, tmp_path / "runs" / "b") == []


def test_two_runs_in_one_folder_are_refused(stages, out):
    out.mkdir(parents=True)
    with _only_one(out), pytest.raises(UserError, match="another run works in"):
        run(stages, out)
    assert stages.called == []
    assert run(stages, out) == ALL


# ---- the disk


def test_a_folder_that_cannot_be_made_is_refused(stages, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write to .*file/run") as error:
        run(stages, tmp_path / "file" / "run")
    assert "--out" in error.value.hint


def test_a_folder_that_may_not_be_written_is_refused(stages, out, monkeypatch):
    def denied(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", denied)
    with pytest.raises(UserError, match=r"cannot write to .*: Permission denied"):
        run(stages, out)


def test_a_disk_with_too_little_room_is_refused_before_anything_is_done(stages, out, monkeypatch):
    monkeypatch.setattr("toolkit.hardware.shutil.disk_usage", lambda _: SimpleNamespace(free=100 * 2**20))
    with pytest.raises(UserError, match="which has 100 MB free"):
        run(stages, out)
    assert stages.called == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["the system's", "wrapped by a library"],
)
def test_a_disk_that_fills_up_is_told_and_what_was_made_is_kept(stages, out, error):
    def fill(work):
        (work.out / "half.txt").write_text("half")
        raise error

    stages.before["two"] = fill
    with pytest.raises(UserError, match=r"is full \(stage two\)") as told:
        run(stages, out)
    assert "run again" in told.value.hint
    assert (out / "two.partial" / "half.txt").read_text() == "half"
    found = []
    stages.before["two"] = lambda work: found.append((work.out / "half.txt").exists())
    assert run(stages, out) == ["two", "beside", "three", "report"]
    assert found == [True]


def test_any_other_error_of_a_stage_is_not_taken_for_a_full_disk(stages, out):
    def fail(work):
        raise RuntimeError("odd")

    stages.before["two"] = fail
    with pytest.raises(RuntimeError, match="odd"):
        run(stages, out)


# ---- what is recorded


def test_the_manifest_tells_recipe_machine_versions_and_stages(stages, out):
    run(stages, out)
    found = json.loads((out / "manifest.json").read_text())
    assert found["recipe"]["dpo"]["beta"] == 0.1
    assert [s["stage"] for s in found["stages"]] == ALL
    assert found["stages"][0]["facts"] == {"made": "one"}
    assert all(s["seconds"] >= 0 and s["peak_gb"] >= 0 and len(s["key"]) == 20 for s in found["stages"])
    assert found["versions"]["torch"] != "not installed"
    assert found["machine"]["cores"] >= 1


def test_a_stage_stands_only_under_its_own_key(stages, out):
    run(stages, out)
    key = stage_keys(recipe())["two"]
    assert stands(out / "two", key)
    assert not stands(out / "two", "another")
    assert not stands(out / "gone", key)


# ---- the real stages


def test_every_stage_needs_only_stages_before_it():
    names = [s.name for s in STAGES]
    for i, stage in enumerate(STAGES):
        assert set(stage.needs) <= set(names[:i])


def test_with_own_pairs_nothing_is_generated_rated_or_rewarded():
    base = Recipe()
    found = plan(dataclasses.replace(base, pairs=dataclasses.replace(base.pairs, file="mine.jsonl")))
    names = [s.name for s in found]
    assert names == ["model", "premises", "pairs", "dpo", "export", "passport", "evaluate", "report"]
    assert all(set(s.needs) <= set(names) for s in found)


def named(**more):
    base = Recipe(name="mine")
    return dataclasses.replace(base, **{k: dataclasses.replace(getattr(base, k), **v) for k, v in more.items()})


def order(recipe):
    return [s.name for s in plan(recipe)]


@pytest.mark.parametrize("loss", ["dpo", "orpo"])
def test_a_loss_without_weights_measures_no_deviation(loss):
    assert "deviation" not in order(named(dpo={"loss": loss}))


@pytest.mark.parametrize("loss", ["ddpo", "dorpo"])
def test_a_weighted_loss_shares_everything_but_its_own_stages_with_plain_dpo(loss):
    plain, weighted = stage_keys(named()), stage_keys(named(dpo={"loss": loss}))
    changed = {name for name in weighted if plain.get(name) != weighted[name]}
    assert changed == {"deviation", "dpo", "export", "evaluate", "report"}


def test_divpo_measures_deviation_before_it_chooses_pairs_and_trains_plain_dpo():
    recipe = named(pairs={"select": "divpo"})
    assert order(recipe).index("deviation") < order(recipe).index("pairs")
    assert "deviation" not in next(s for s in plan(recipe) if s.name == "dpo").needs


def test_another_floor_redoes_the_deviation_and_what_follows_it():
    one, two = (stage_keys(named(dpo={"loss": "ddpo"}, deviation={"floor": f})) for f in (0.0, 0.2))
    assert {name for name in one if one[name] != two[name]} == {"deviation", "dpo", "export", "evaluate", "report"}


def test_of_own_pairs_the_deviation_is_measured_after_they_are_read(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("")
    recipe = named(pairs={"file": str(tmp_path / "pairs.jsonl")}, dpo={"loss": "ddpo"})
    names = order(recipe)
    assert names.index("pairs") < names.index("deviation") < names.index("dpo")


def test_a_run_stops_after_the_stage_that_is_named_and_goes_on_later(stages, out):
    assert run_recipe(recipe(), out, until="two") == out / "two"
    assert stages.called == ["one", "two"]
    run_recipe(recipe(), out)
    assert stages.called == ALL


def test_an_embedding_model_that_leads_nowhere_is_told_before_anything_is_done(stages, out):
    odd = dataclasses.replace(recipe(), deviation=dataclasses.replace(recipe().deviation, semantic="jinna"))
    with pytest.raises(UserError, match="no embedding model is called 'jinna'"):
        run_recipe(odd, out)
    assert not stages.called


def test_a_stage_that_a_run_does_not_have_is_refused_with_those_it_has(stages, out):
    with pytest.raises(UserError, match="no stage 'four'") as error:
        run_recipe(recipe(), out, until="four")
    assert "one, two" in error.value.hint


def test_the_report_needs_every_other_stage():
    found = plan(Recipe())
    assert found[-1].needs == tuple(s.name for s in found[:-1])


PLANNED = {"memory", "task", "align"}  # shown, or deciding which stages there are


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Recipe) if f.name not in PLANNED])
def test_every_setting_is_read_by_some_stage(field):
    read = {path.split(".")[0] for stage in (*STAGES, *GREETING_STAGES, *INSTRUCT_STAGES) for path in stage.settings}
    assert field in read


@pytest.mark.parametrize(
    ("section", "key", "stage"),
    [
        ("premises", "file", "premises"),
        ("premises", "plots", "premises"),
        ("pairs", "file", "pairs"),
        ("model", "gguf", "model"),
        ("ratings", "rater", "ratings"),
        ("evaluate", "judge", "evaluate"),
    ],
)
def test_a_named_file_that_changed_redoes_the_stage_that_reads_it(tmp_path, section, key, stage):
    path = tmp_path / "named.gguf"
    base = Recipe()
    made = dataclasses.replace(base, **{section: dataclasses.replace(getattr(base, section), **{key: str(path)})})
    path.write_text("before")
    before = stage_keys(made)
    path.write_text("after, and longer")
    after = stage_keys(made)
    assert before[stage] != after[stage]
    assert before["report"] != after["report"]


def test_weights_that_changed_in_their_folder_redo_the_model_stage(tmp_path):
    base = Recipe()
    made = dataclasses.replace(base, model=dataclasses.replace(base.model, id=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"before")
    before = stage_keys(made)["model"]
    (tmp_path / "model.safetensors").write_bytes(b"after, and longer")
    assert stage_keys(made)["model"] != before


def test_run_stays_a_function_of_the_package_after_it_was_used():
    import toolkit

    assert callable(toolkit.run)


def test_a_dry_run_names_the_run_beside_that_has_a_stage_already(stages, tmp_path, monkeypatch):
    run(stages, tmp_path / "runs" / "a")
    monkeypatch.setattr(R, "estimate", lambda _: {name: SimpleNamespace(size="", seconds=60.0) for name in ALL})
    shown = R.show_plan(recipe(beta=0.2), tmp_path / "runs" / "b")
    times = {line.split()[0]: " ".join(line.split()[1:]) for line in shown.splitlines() if line.startswith("  ")}
    assert (times["one"], times["two"]) == ("in a", "1 min 0 s")
