"""From a run to other programs: what is written for each, the model card, and the hub."""

import dataclasses
import json
import shlex
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import yaml

from toolkit import cli
from toolkit.card import licence, model_card, write_card
from toolkit.errors import UserError
from toolkit.export.handoff import PROGRAMS, hand_out, read_handout
from toolkit.models.resolve import embedded_gguf
from toolkit.recipe import load_recipe


def put_run(folder, merged=True, recipe="quickstart", overrides=()):
    """A run's folder after its export: the embedded model's own file stands for the aligned one."""
    out = folder / "export"
    out.mkdir(parents=True)
    settings = dataclasses.asdict(load_recipe(recipe, overrides))
    (folder / "recipe.json").write_text(json.dumps(settings))
    model = out / f"{recipe}-Q8_0.gguf"
    model.symlink_to(embedded_gguf())
    (out / "adapter.gguf").write_bytes(b"GGUF adapter")
    card = {"gguf": model.name if merged else str(embedded_gguf()), "adapter": "adapter.gguf", "merged": merged}
    card |= {"quantisation": "Q8_0", "proof": {"mean_difference": 0.1, "mean_change_from_base": 0.4}}
    (out / "export.json").write_text(json.dumps(card))
    put_stage(folder, "export", card)
    return folder


def put_stage(folder, name, facts):
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "stage.json").write_text(json.dumps({"stage": name, "seconds": 60, "facts": facts}))


@pytest.fixture
def run(tmp_path):
    return put_run(tmp_path / "runs" / "quickstart")


@pytest.fixture
def adapter_run(tmp_path):
    return put_run(tmp_path / "runs" / "large", merged=False)


# ---- programs


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_program_gets_the_model_beside_what_was_written_for_it(run, tmp_path, program):
    files, then, _ = hand_out(run, program, tmp_path / "out")
    model = tmp_path / "out" / "quickstart-Q8_0.gguf"
    assert model in files
    assert model.stat().st_size == embedded_gguf().stat().st_size
    assert str(tmp_path / "out") in then
    text = "".join(f.read_text() for f in files if f != model)
    for value in (
        "0.8",
        "0.05",
        "1.05",
        "120",
        "8192",
    ):  # the recipe's temperature, min-p, penalty, length; the context
        assert value in text


def test_handing_out_again_replaces_what_was_there(run, tmp_path):
    first = hand_out(run, "ollama", tmp_path / "out")
    assert hand_out(run, "ollama", tmp_path / "out") == first
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["Modelfile", "quickstart-Q8_0.gguf"]


def test_where_the_disk_knows_no_links_the_model_is_copied_or_refused_for_want_of_room(run, tmp_path, monkeypatch):
    def no_link(*args):
        raise OSError("another device")

    monkeypatch.setattr("os.link", no_link)
    monkeypatch.setattr("shutil.disk_usage", lambda p: SimpleNamespace(free=2**20))
    with pytest.raises(UserError, match=r"a copy of quickstart-Q8_0\.gguf needs"):
        hand_out(run, "koboldcpp", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.gguf"))
    monkeypatch.setattr("shutil.disk_usage", lambda p: SimpleNamespace(free=2**40))
    hand_out(run, "koboldcpp", tmp_path / "out")
    assert (tmp_path / "out" / "quickstart-Q8_0.gguf").stat().st_size == embedded_gguf().stat().st_size


def modelfile(run, out) -> tuple[dict[str, list[str]], str]:
    """(command → its arguments, template) of a Modelfile, read as Ollama's parser does."""
    hand_out(run, "ollama", out)
    text = (out / "Modelfile").read_text()
    before, _, rest = text.partition('TEMPLATE """')
    template, _, after = rest.partition('"""')
    commands: dict[str, list[str]] = {}
    for line in (before + after).splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition(" ")
            commands.setdefault(name, []).append(value)
    return commands, template


def test_ollama_gets_the_embedded_models_own_template_with_its_default_system_text(run, tmp_path):
    commands, template = modelfile(run, tmp_path / "out")
    assert commands["FROM"] == ["./quickstart-Q8_0.gguf"]
    assert "ADAPTER" not in commands
    assert 'stop "<|im_end|>"' in commands["PARAMETER"]
    assert "{{ else }}<|im_start|>system\nYou are a helpful AI assistant named SmolLM" in template
    assert '{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}' in template


def test_an_adapter_goes_on_the_base_where_that_is(adapter_run, tmp_path):
    commands, _ = modelfile(adapter_run, tmp_path / "out")
    assert commands["FROM"] == [str(embedded_gguf())]
    assert commands["ADAPTER"] == ["./adapter.gguf"]
    for program, said in (("llama-server", "--lora ./adapter.gguf"), ("koboldcpp", '"./adapter.gguf"')):
        files, _, notes = hand_out(adapter_run, program, tmp_path / program)
        assert said in files[-1].read_text()
        assert any(str(embedded_gguf()) in note for note in notes)
    assert not list((tmp_path / "out").glob("*.Q4_1.gguf"))  # the base is not copied


def test_lm_studio_refuses_an_adapter_before_anything_is_written(adapter_run, tmp_path):
    with pytest.raises(UserError, match="takes no adapters"):
        hand_out(adapter_run, "lmstudio", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_greetings_run_is_as_long_as_its_greetings(tmp_path):
    run = put_run(tmp_path / "cards", recipe="greetings-small")
    assert read_handout(run).sampling.max_tokens == load_recipe("greetings-small").grpo.max_tokens


def test_the_servers_script_is_one_command_of_the_shell(run, tmp_path):
    hand_out(run, "llama-server", tmp_path / "a b")
    last = (tmp_path / "a b" / "llama-server.sh").read_text().splitlines()[-1]
    words = shlex.split(last.partition("exec ")[2])
    assert words[:3] == ["llama-server", "--model", "./quickstart-Q8_0.gguf"]
    assert "127.0.0.1" in words


# ---- the command


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["runs/quickstart"], "needs a program or a place"),
        (["gone", "--for", "ollama"], "gone has exported no model yet"),
        (["runs/quickstart", "--public", "--for", "ollama"], "--public says who"),
        (["runs/quickstart", "--push", "nobody"], "not a hub id"),
        (["runs/quickstart", "--push", "ann/stories", "--offline"], "--offline forbids"),
    ],
)
def test_what_the_user_can_mend_is_one_error_line(run, tmp_path, monkeypatch, capsys, argv, says):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", *argv]) == 2
    assert says in capsys.readouterr().err
    assert not list(run.glob("for-*"))


def test_a_model_that_is_gone_is_said_with_its_place(run, tmp_path):
    (run / "export" / "quickstart-Q8_0.gguf").unlink()
    with pytest.raises(UserError, match=r"no GGUF file at .*quickstart-Q8_0\.gguf"):
        hand_out(run, "ollama", tmp_path / "out")


def test_the_command_writes_the_card_along_and_says_what_comes_next(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", "runs/quickstart", "--for", "ollama"]) == 0
    assert "next: cd runs/quickstart/for-ollama && ollama create quickstart" in capsys.readouterr().out
    assert (run / "for-ollama" / "README.md").read_text() == model_card(run)
    assert cli.main(["export", "runs/quickstart", "--for", "ollama", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "runs/quickstart/for-ollama/Modelfile" in found["files"]


# ---- the card

EVALUATE = {
    "judge": "five",
    "pairs": 24,
    "premises": 12,
    "no_verdict": 4,
    "win_rate": [0.6, 0.41, 0.77],
    "reward": {
        "base": {"mean": [6.41, 6.2, 6.6], "pacing": 6.0},
        "aligned": {"mean": [6.63, 6.4, 6.9], "pacing": 6.3},
        "gain": [0.22, -0.1, 0.53],
    },
    "diversity": None,
    "warnings": ["the judge is of the writer's family"],
}


def head(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_of_an_unfinished_run_claims_nothing(run):
    text = model_card(run)
    assert head(text)["license"] == "apache-2.0"
    assert head(text)["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "Nothing is claimed of this model." in text
    assert "was not measured" in text.partition("## Safety")[2]


def test_an_adapter_is_called_one_in_the_cards_header(run, adapter_run):
    assert head(model_card(run))["base_model_relation"] == "finetune"
    assert head(model_card(adapter_run))["base_model_relation"] == "adapter"
    assert "`adapter.gguf` goes on" in model_card(adapter_run)


def test_the_card_of_an_upcycled_model_says_that_it_is_no_copy_of_its_base(run, tmp_path):
    moe = put_run(tmp_path / "moe", overrides=["model.id=embedded-moe"])
    put_stage(moe, "export", {"gguf": "x.gguf", "merged": True, "experts": 4, "quantisation": "Q8_0"})
    assert "| base | HuggingFaceTB/SmolLM2-135M-Instruct, each MLP copied into 4 experts |" in model_card(moe)
    assert "copied into" not in model_card(run)


def test_the_card_gives_figures_with_their_baseline_and_interval(run):
    put_stage(run, "evaluate", EVALUATE)
    put_stage(run, "passport", {"line": "Passport of five: right on 89 % (81–96)."})
    put_stage(run, "dpo", {"steps": 16, "loss": [0.6931, 0.6068]})
    text = model_card(run)
    assert "6.41 (6.20 to 6.60) | 6.63 (6.40 to 6.90) | +0.22 (-0.10 to +0.53) |" in text
    assert "60 % (41–77) of the pairs with a verdict (a coin: 50 %); on 4 pairs it gave none" in text
    assert "> Passport of five: right on 89 % (81–96)." in text
    assert "16 steps; loss 0.693 → 0.607" in text
    assert "- The judge is of the writer's family." in text


def test_a_judge_without_a_verdict_is_said_to_have_none(run):
    put_stage(run, "evaluate", {**EVALUATE, "no_verdict": 24})
    assert "It gave no verdict on any of them" in model_card(run)


def test_the_card_says_what_was_found_of_safety(run):
    put_stage(run, "safety", {"lines": ["Dark premises refused: 3 % (1–7) of 40."]})
    assert "- Dark premises refused: 3 % (1–7) of 40." in model_card(run).partition("## Safety")[2]


def test_an_instruct_runs_card_has_no_plots_in_it(run):
    recipe = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps({**recipe, "task": "instruct", "align": "sft"}))
    put_stage(run, "data", {"train": 110, "test": 32})
    put_stage(run, "safety", {"lines": ["Drift from the model before: 0.1 nats a token."]})
    text = model_card(run)
    assert "language" not in head(text)
    assert "110 answers to learn from, 32 held out" in text
    assert "under Safety" in text
    assert "SFT, learning rate" in text
    assert read_handout(run).sampling.max_tokens == recipe["sft"]["max_tokens"]


def test_a_base_that_only_this_machine_has_is_not_named_to_the_hub(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "README.md").write_text("---\nlicense: mit\n---\n")
    run = put_run(tmp_path / "run", overrides=[f"model.id={tmp_path / 'weights'}"])
    assert "base_model" not in head(model_card(run))
    assert head(model_card(run))["license"] == "mit"


@pytest.mark.parametrize(
    ("base", "found"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "apache-2.0"),
        ("Qwen/Qwen2.5-3B-Instruct", "other"),  # the research licence
        ("google/gemma-3-4b-it", "gemma"),
        ("nobody/knows", "other"),
    ],
)
def test_the_licence_is_the_bases_or_said_to_be_unknown(base, found):
    assert licence(base) == found


def test_no_card_without_an_export(tmp_path):
    assert write_card(tmp_path) is None
    assert not list(tmp_path.iterdir())


# ---- the hub


@pytest.fixture
def hub(monkeypatch):
    """The calls of huggingface_hub's API that an upload makes, answered on this machine; what came is kept."""
    kept = {"files": {}, "private": None, "refuse": False}

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def answer(self, found: dict, code: int = 200) -> None:
            data = json.dumps(found).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_PUT(self):
            kept["blobs"] = {**kept.get("blobs", {}), self.path.rsplit("/", 1)[1]: len(self.body())}
            self.answer({})

        def do_POST(self):
            body = self.body()
            if self.path == "/api/repos/create":
                if kept["refuse"]:
                    return self.answer({"error": "not the owner"}, 403)
                asked = json.loads(body)  # "private" or "visibility", by the client's version
                kept["private"] = asked.get("private", asked.get("visibility") == "private")
                return self.answer({"url": f"{url}/ann/stories", "name": "ann/stories"})
            if self.path == "/api/validate-yaml":  # of the card's header
                return self.answer({"errors": [], "warnings": []})
            if self.path.endswith("/preupload/main"):
                files = json.loads(body)["files"]
                modes = [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith("gguf") else "regular", "shouldIgnore": False} for f in files]  # fmt: skip
                return self.answer({"files": modes})
            if self.path.endswith("/info/lfs/objects/batch"):
                objects = json.loads(body)["objects"]
                return self.answer({"transfer": "basic", "objects": [{**o, "actions": {"upload": {"href": f"{url}/blob/{o['oid']}"}}} for o in objects]})  # fmt: skip
            for line in body.splitlines():  # the commit
                row = json.loads(line)
                kept["files"] |= {row["value"]["path"]: row["key"]} if row["key"] in ("file", "lfsFile") else {}
            return self.answer({"commitUrl": f"{url}/ann/stories/commit/0", "commitOid": "0" * 40, "hookOutput": ""})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    for name, value in (("ENDPOINT", url), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    yield kept
    server.shutdown()


def test_the_hub_gets_what_was_asked_for_privately_and_no_file_beside_it(run, tmp_path, hub, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "diary.md").write_text("mine")
    assert cli.main(["export", str(run), "--push", "ann/stories", "--out", str(out)]) == 0
    assert hub["private"] is True
    assert hub["files"] == {"README.md": "file", "llama-server.sh": "file", "quickstart-Q8_0.gguf": "lfsFile"}
    assert list(hub["blobs"].values()) == [embedded_gguf().stat().st_size]
    assert "(private)" in capsys.readouterr().out


def test_without_push_the_hub_hears_nothing(run, hub):
    assert cli.main(["export", str(run), "--for", "llama-server"]) == 0
    assert hub["private"] is None


def test_everybody_may_see_it_only_when_that_is_said(run, hub):
    assert cli.main(["export", str(run), "--for", "ollama", "--push", "ann/stories", "--public"]) == 0
    assert hub["private"] is False
    assert "Modelfile" in hub["files"]


def test_a_hub_that_refuses_is_one_error_line(run, hub, capsys):
    hub["refuse"] = True
    assert cli.main(["export", str(run), "--push", "ann/stories"]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: the hub did not take ann/stories")
    assert "hf auth login" in hint
