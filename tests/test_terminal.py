"""The terminal's manners: what comes next, completion, output in a pipe."""

import io
import json
import shlex
import shutil
import subprocess
import sys

import pytest

from toolkit import cli
from toolkit.cli_terminal import SCRIPTS, tree, what_next
from toolkit.progress import bar
from toolkit.recipe import load_recipe, recipes_folder
from toolkit.runner import _only_one, begun_with


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")


def put_run(folder, *stages, recipe="quickstart", overrides=()):
    """A run's folder as a run leaves it, as far as `what_next` looks."""
    import dataclasses

    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(dataclasses.asdict(load_recipe(recipe, overrides))))
    for stage in stages:
        (folder / stage).mkdir()
        (folder / stage / "stage.json").write_text("{}")
    return folder


VERBS = sorted(cli._VERBS)


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("  fablesmith ")]


# ---- what next


def test_on_a_fresh_machine_the_quickstart_comes_next(capsys):
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert ["run", "quickstart"] in commands(out)
    assert "no GPU" in out.splitlines()[0]
    assert out.rstrip().endswith("fablesmith --help")


def test_a_finished_run_is_to_be_used(tmp_path):
    put_run(tmp_path / "runs" / "quickstart", "pairs", "report")
    text = what_next(VERBS)
    assert "finished" in text
    assert ["vote", "runs/quickstart"] in commands(text)
    assert ["run", "quickstart"] not in commands(text)


def test_a_finished_greetings_run_writes_greetings(tmp_path):
    put_run(tmp_path / "runs" / "cards", "requests", "report", recipe="greetings-small")
    text = what_next(VERBS)
    assert ["debates", "runs/cards"] in commands(text)
    assert any(c[:3] == ["write", "--as", "greeting"] for c in commands(text))


def test_a_stopped_run_goes_on_by_a_command_that_gives_the_same_recipe(tmp_path):
    overrides = ["dpo.beta=0.2", "evaluate.jury=[embedded]", "premises.languages=[en, zh]"]
    run = put_run(tmp_path / "runs" / "b02", "premises", overrides=overrides)
    text = what_next(VERBS)
    assert "stopped after premises" in text
    args = cli.parser().parse_args(next(c for c in commands(text) if c[0] == "run"))
    assert load_recipe(args.recipe, args.set) == load_recipe("quickstart", overrides)
    assert args.out.resolve() == run.resolve()


def test_a_run_in_its_usual_place_needs_no_out(tmp_path):
    put_run(tmp_path / "runs" / "quickstart", "premises")
    assert ["run", "quickstart"] in commands(what_next(VERBS))


def test_a_run_at_work_is_said_to_be_running(tmp_path):
    run = put_run(tmp_path / "runs" / "quickstart", "premises")
    with _only_one(run):
        assert "running" in what_next(VERBS)
    assert "stopped" in what_next(VERBS)


def test_a_run_of_a_recipe_that_is_not_here_or_a_broken_one_is_told_without_a_command(tmp_path):
    run = put_run(tmp_path / "runs" / "mine", overrides=["name=my-own"])
    assert begun_with(run) == ""
    (run / "recipe.json").write_text("{")
    assert begun_with(run) == ""
    assert "runs/mine goes on by the command it was begun with" in what_next(VERBS)


def test_what_is_suggested_is_a_command_that_parses(tmp_path):
    for folder, stages in (("a", ["report"]), ("b", ["premises"])):
        put_run(tmp_path / "runs" / folder, *stages)
        for command in commands(what_next(VERBS)):
            assert cli.parser().parse_args(command).verb in VERBS


def test_a_gpu_is_named_with_its_memory(tmp_path):
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 3090, 24576'\n")
    tool.chmod(0o755)
    assert "NVIDIA GeForce RTX 3090 with 26 GB" in what_next(VERBS).splitlines()[0]
    tool.write_text("#!/bin/sh\nexit 9\n")  # a driver that does not answer
    assert "no GPU" in what_next(VERBS).splitlines()[0]


# ---- completion


@pytest.fixture(scope="module")
def bash():
    script = SCRIPTS["bash"](cli.parser())

    def complete(*words: str) -> list[str]:
        """What bash offers after `words`, the last of which is being typed."""
        ask = f'{script}\nCOMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _fablesmith; printf "%s\\n" "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "--norc", "-c", ask, "_", "fablesmith", *words], capture_output=True, text=True)
        assert done.stderr == ""
        return done.stdout.split()

    return complete


def test_bash_completes_every_verb(bash):
    assert set(bash("")) == {*VERBS, "--help", "--version"}
    assert bash("wri") == ["write"]


@pytest.mark.parametrize("verb", VERBS)
def test_bash_completes_every_flag_of_a_verb(bash, verb):
    flags = next(flags for name, _, flags, _ in tree(cli.parser()) if name == verb)
    assert set(bash(verb, "-")) == set(flags)


def test_bash_completes_what_a_flag_or_a_place_takes(bash):
    assert set(bash("run", "")) == {p.stem for p in recipes_folder().glob("*.yaml")}
    assert bash("write", "A lamp.", "--as", "g") == ["greeting"]
    assert bash("run", "quickstart", "--set", "dpo.be") == ["dpo.beta="]
    assert "qwen3-8b" in bash("judge", "stories.jsonl", "--model", "qwen")
    assert bash("judge", "sto") == []  # nothing of ours: bash's own default offers files


def test_bash_takes_the_script_as_its_completion_of_our_command():
    script = SCRIPTS["bash"](cli.parser())
    done = subprocess.run(["bash", "--norc", "-c", f"{script}\ncomplete -p fablesmith"], capture_output=True, text=True)
    assert done.stdout.split() == "complete -o bashdefault -o default -F _fablesmith fablesmith".split()


@pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh here")
def test_zsh_takes_the_script():
    script = SCRIPTS["zsh"](cli.parser())
    done = subprocess.run(
        ["zsh", "-f", "-c", f"{script}\nprint ${{_comps[fablesmith]}}"], capture_output=True, text=True
    )
    assert "_fablesmith" in done.stdout, done.stderr


@pytest.mark.skipif(not shutil.which("fish"), reason="no fish here")
def test_fish_completes_verbs_and_values():
    script = SCRIPTS["fish"](cli.parser())
    ask = f"{script}\ncomplete -C 'fablesmith wri'; complete -C 'fablesmith write x --as g'"
    done = subprocess.run(["fish", "--no-config", "-c", ask], capture_output=True, text=True)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["write", "greeting"], done.stderr


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_verb_prints_the_script(capsys, shell):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert script == SCRIPTS[shell](cli.parser())
    assert cli.main(["completion", shell, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"shell": shell, "script": script}


# ---- in a pipe


def test_every_verb_speaks_json():
    for name, _, flags, _ in tree(cli.parser()):
        assert "--json" in flags, name


def test_a_bar_that_nobody_watches_writes_plain_lines(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.delenv("FABLESMITH_QUIET")
    steps = bar(range(3), desc="dpo", unit="step")
    steps.delay = steps.mininterval = 0
    steps.start_t -= 20
    for _ in steps:
        steps.refresh()
    lines = log.getvalue().splitlines()
    assert lines[-1].split()[:4] == ["dpo", "100%", "3/3", "step"]
    assert len(lines) == len(set(lines))
    assert not set(log.getvalue()) & set("\r\033█")


def test_a_bar_that_is_quick_says_nothing_in_a_log(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.delenv("FABLESMITH_QUIET")
    assert list(bar(range(3), desc="dpo")) == [0, 1, 2]
    assert log.getvalue() == ""


def test_a_plan_and_the_recipes_are_json_when_asked(capsys):
    assert cli.main(["run", "quickstart", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["recipe"] == "quickstart"
    assert {s["state"] for s in plan["stages"]} == {"todo"}
    assert all(s["seconds"] > 0 for s in plan["stages"])
    assert cli.main(["recipes", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {r["name"] for r in rows} == {p.stem for p in recipes_folder().glob("*.yaml")}


def test_a_vote_leaves_stdout_to_its_count(capsys, tmp_path, monkeypatch):
    for name, text in (("a", "Ann ran."), ("b", "Bea stayed.")):
        (tmp_path / f"{name}.jsonl").write_text(
            json.dumps({"text": text, "premise": "A race.", "premise_id": "r"}) + "\n"
        )
    monkeypatch.setattr("builtins.input", lambda: "1")
    assert cli.main(["vote", "a.jsonl", "b.jsonl", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["votes"] == 1
    assert "Ann ran." in err


def test_pairs_of_ratings_are_counted_in_json(capsys, tmp_path):
    rows = [{"text": f"Text number {i}.", "prompt": f"Prompt {i // 2}.", "group": f"g{i // 2}", "ratings": {"pacing": [1 + i % 2 * 3] * 2}} for i in range(32)]  # fmt: skip
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert cli.main(["calibrate", "r.jsonl", "--pairs", "p.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": "p.jsonl", "pairs": 16}


@pytest.mark.parametrize(
    ("argv", "does"),
    [
        (["learn", "r.jsonl", "--out", "o"], "toolkit.reward.people.train_on_people"),
        (["export-judge", "run", "--out", "r.gguf"], "toolkit.rater.export_judge"),
    ],
)
def test_figures_are_json_when_asked(capsys, monkeypatch, argv, does):
    monkeypatch.setattr(does, lambda *a, **k: {"texts": 3})
    assert cli.main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"texts": 3}
