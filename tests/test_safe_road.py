"""An instruct run on a tiny model, held by its own probe: every stage, killed, resumed; and one line in another recipe."""

import hashlib
import json
from pathlib import Path

import pytest
from conftest import tiny_recipe
from test_probe import MILD, SHARP
from test_road import finish, kill_at, run_whole, start

from toolkit.errors import UserError
from toolkit.models.resolve import resolve
from toolkit.models.training import read_metrics
from toolkit.recipe import ModelSettings, load_recipe
from toolkit.records import guess_language, read_chats, read_jsonl
from toolkit.runner import plan, run_recipe, stage_keys
from toolkit.safe_stages import shipped_chats
from toolkit.safety.probe import fit_probe

ARTEFACTS = (
    "data/train.jsonl",
    "risk/risk.jsonl",
    "sft/adapter/adapter_model.safetensors",
    "export/quickstart-Q8_0.gguf",
    "export/adapter.gguf",
)


@pytest.fixture(scope="module")
def probe(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    fit_probe(SHARP, MILD, resolve(str(tiny)), ModelSettings(dtype="float32")).save(folder)
    return folder


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("chats") / "mine.jsonl"
    rows = [{"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": "The ferry waits."}]} for t in SHARP[:12] + MILD[:12]]  # fmt: skip
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


@pytest.fixture(scope="module")
def recipe(tiny, tiny_gguf, probe, chats) -> list[str]:
    return [
        *(f"model.id={tiny}", f"model.gguf={tiny_gguf}", "model.dtype=float32"),
        *("task=instruct", "align=sft", f"data.file={chats}", "data.test=3"),
        "sft={lora: {r: 4, alpha: 8}, lr: 1e-2, epochs: 2, batch: 4, gradient_checkpointing: false, save_every: 2}",
        f"safety={{signal: probe, probe: {probe}, ema: 0.5, most: 3, max_tokens: 8}}",
    ]


def settings(recipe, *more):
    return load_recipe("quickstart", [*recipe, *more])


# ---- what a recipe may say


def test_the_stages_of_an_instruct_run(recipe):
    assert [s.name for s in plan(settings(recipe))] == ["model", "data", "risk", "sft", "export", "safety", "report"]
    assert "risk" not in [s.name for s in plan(settings(recipe, "safety.signal=constant"))]


def test_a_run_that_nothing_holds_keeps_the_keys_it_had():
    before, after = (stage_keys(load_recipe("quickstart", sets)) for sets in ([], ["safety.beta_max=0.5", "safety.most=3"]))  # fmt: skip
    assert before == after


def test_controls_share_everything_before_training(recipe):
    keys = {s: stage_keys(settings(recipe, f"safety.signal={s}")) for s in ("probe", "constant", "none")}
    assert keys["probe"]["data"] == keys["constant"]["data"] == keys["none"]["data"]
    assert len({k["sft"] for k in keys.values()}) == 3


def test_another_beta_asks_for_no_risk_again(recipe):
    one, other = stage_keys(settings(recipe)), stage_keys(settings(recipe, "safety.beta_max=0.5"))
    assert one["risk"] == other["risk"]
    assert one["sft"] != other["sft"]


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["safety.beta_min=0.9", "safety.beta_max=0.1"], "safety.beta_min: 0.9 is above"),
        (["safety.signal=sometimes"], "safety.signal: 'sometimes' is not allowed"),
        (["safety.signal=probe", "safety.probe=gone"], "safety.probe: no probe in"),
        (["safety.signal=critic", "safety.critic=gone.gguf"], "safety.critic: no file at"),
        (
            ["safety.signal=critic", "task=greeting", "align=grpo"],
            "the critic reads answers, and grpo's are not written",
        ),
        (["task=instruct"], "align: dpo does not align task instruct"),
        (["align=sft"], "align: sft does not align task plot"),
        (["task=instruct", "align=sft", "data.file=gone.jsonl"], "data.file: no file at"),
    ],
    ids=lambda x: x[-1] if isinstance(x, list) else "",
)
def test_what_cannot_be_is_said_before_anything_runs(sets, says):
    with pytest.raises(UserError, match=says.replace("(", r"\(")):
        load_recipe("quickstart", sets)


def test_without_a_probe_of_this_model_a_run_stops_before_its_first_stage(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("FABLESMITH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="there is no probe of"):
        run_recipe(load_recipe("quickstart", [f"model.id={tiny}", "safety.signal=probe"]), tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


# ---- own chats


def write(tmp_path, rows) -> Path:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path / "x.jsonl"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Ho."}]},
        {"conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Ho."}]},
        {"instruction": "Hi.", "input": "", "output": "Ho."},
        {"prompt": "Hi.", "completion": "Ho."},
        {"prompt": "Hi.", "chosen": "Ho.", "rejected": "No."},
    ],
    ids=["messages", "sharegpt", "alpaca", "completion", "pair"],
)
def test_chats_are_read_in_every_known_format(tmp_path, row):
    assert read_chats(write(tmp_path, [row])).rows == [{"prompt": "Hi.", "answer": "Ho."}]


def test_every_answer_of_a_conversation_is_a_row_with_the_turns_before_it(tmp_path):
    turns = [("system", "Be brief."), ("user", "Hi."), ("assistant", "Ho."), ("user", "And?"), ("assistant", "So.")]
    messages = [{"role": r, "content": c} for r, c in turns]
    rows = read_chats(write(tmp_path, [{"messages": messages}])).rows
    assert [(r["prompt"], r["answer"]) for r in rows] == [(messages[:2], "Ho."), (messages[:4], "So.")]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": [{"role": "user", "content": "Hi."}]}, "no answer of the assistant"),
        ({"messages": [{"role": "tool", "content": "Hi."}]}, "a turn of 'tool'"),
        ({"prompt": "Hi."}, "no answer to learn from"),
        ({"text": "A story."}, "no prompt and answer"),
    ],
)
def test_rows_without_an_answer_are_named(tmp_path, row, says):
    with pytest.raises(UserError, match=says):
        read_chats(write(tmp_path, [row]))


def test_what_comes_with_the_package_is_plots_and_greetings_in_english_with_their_prompts():
    rows = shipped_chats()
    assert len(rows) > 100
    assert all(guess_language(r["prompt"] + r["answer"]) == "en" for r in rows)
    assert len({r["answer"] for r in rows}) == len(rows)


# ---- the road


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> Path:
    return run_whole(recipe, tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
def test_a_run_holds_each_answer_by_its_request(whole):
    data, risks = read_jsonl(whole / "data" / "train.jsonl"), read_jsonl(whole / "risk" / "risk.jsonl")
    sharp = [r["risk"] for r, row in zip(risks, data, strict=True) if row["prompt"] in SHARP]
    mild = [r["risk"] for r, row in zip(risks, data, strict=True) if row["prompt"] in MILD]
    assert min(sharp) > max(mild)
    betas = [r["safety/beta"] for r in read_metrics(whole / "sft")]
    assert all(0.1 <= b <= 0.9 for b in betas)
    assert len(set(betas)) > 1


@pytest.mark.slow
def test_the_report_shows_the_card_the_trace_and_the_riskiest_requests(whole):
    page = (whole / "report" / "report.html").read_text()
    for said in ("How hard each step was held", "riskiest requests", SHARP[0].split()[0]):
        assert said in page
    for loader in ("<script", "<link", "<img", "<iframe", "@import", "url(http"):
        assert loader not in page


@pytest.mark.slow
def test_killed_while_training_it_ends_as_if_it_had_not_been(whole, recipe, tmp_path):
    out = tmp_path / "runs" / "killed"
    out.parent.mkdir()
    kill_at(recipe, out, "sft.partial/checkpoints/checkpoint-*/trainer_state.json")
    finish(start(recipe, out), out)
    sums = [{n: hashlib.sha256((run / n).read_bytes()).hexdigest() for n in ARTEFACTS} for run in (whole, out)]
    assert sums[0] == sums[1]


@pytest.mark.slow
def test_one_line_holds_the_quickstarts_dpo(tiny, tiny_gguf, probe, tmp_path):
    pairs = [{"prompt": t, "chosen": "The ferry waits for her.", "rejected": "Um, no."} for t in SHARP[:3] + MILD[:3]]
    file, out = write(tmp_path, pairs), tmp_path / "run"
    sets = [*tiny_recipe(tiny, tiny_gguf), f"pairs.file={file}", "tripwire.every=0"]
    run_recipe(load_recipe("quickstart", [*sets, f"safety={{signal: probe, probe: {probe}}}"]), out, "dpo")
    facts = json.loads((out / "dpo" / "stage.json").read_text())["facts"]
    risks = [r["risk"] for r in read_jsonl(out / "dpo" / "risk.jsonl")]
    assert min(risks[:3]) > 0.5 > max(risks[3:])
    assert facts["beta"][2] == pytest.approx(0.1 + 0.8 * sum(risks) / 6, abs=1e-3)
    assert facts["risk"]["signal"] == "probe"
