"""The notebooks are what their scripts say, and run from top to bottom: with the embedded model, a handful of texts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from toolkit.recipe import load_recipe, recipes_folder

NOTEBOOKS = recipes_folder() / "notebooks"
sys.path.insert(0, str(NOTEBOOKS))
import make_notebooks as build  # noqa: E402

PLOTS = Path(__file__).resolve().parents[1] / "toolkit" / "data" / "plots.jsonl"
NAMES = [source.stem for source in build.sources()]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_what_its_script_makes(name):
    made = build.notebook(NOTEBOOKS / "src" / f"{name}.py")
    assert (NOTEBOOKS / f"{name}.ipynb").read_text() == made, "run python recipes/notebooks/make_notebooks.py"


def test_no_notebook_without_a_script():
    assert sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_says_at_its_top_what_it_needs_and_opens_in_colab(name):
    top = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4).cells[0]["source"]
    assert f"recipes/notebooks/{name}.ipynb)" in top
    assert "| machine |" in top
    assert "| needs |" in top


# ---- execution

TRAINED = "lora: {r: 4, last_layers: 2}, gradient_checkpointing: false"


def sections(**found: str) -> list[str]:
    return [word for name, text in found.items() for word in ("--set", f"{name}={{{text}}}")]


def sizes(few_plots: Path) -> dict[str, list[str]]:
    """What shrinks each command. Every plot recipe becomes the same small run, so that stages are taken from each other."""
    plots = {
        "model": "id: embedded",
        "premises": f"train: 4, test: 2, plots: {few_plots}",
        "candidates": "per_premise: 3, max_tokens: 64",
        "ratings": "reason: 0, check: 0",
        "reward": f"epochs: 0.1, depth: 0.3, {TRAINED}",
        "pairs": "margin: 0, agree: 0, prompts: ignore, length_ratio: 50, max_pairs: 4",
        "dpo": f"lr: 1e-3, epochs: 1, {TRAINED}",
        "tripwire": "every: 0",
        "export": "quantisation: Q8_0",
        "evaluate": "judge: embedded, per_premise: 1, panel: 0, passport: skip",
    }
    greetings = {
        "model": "id: embedded",
        "requests": "languages: [en], train: 4, test: 2",
        "sft": f"epochs: 0.05, max_tokens: 200, {TRAINED}",
        "rejection": "requests: 2, per_request: 2, words: 16, tries: 1, check: 0, examples: 1, retrieval: ngrams",
        "pairwise": f"epochs: 0.05, max_tokens: 200, {TRAINED}",
        "grpo": "steps: 1, updates: 1, samples: 2, batch: 2, mini_batch: 2, max_tokens: 24, gradient_checkpointing: false",
        "tripwire": "every: 0",
        "evaluate": "judge: embedded, per_premise: 1, best_of: 1",
    }
    safe = {
        "model": "id: embedded",
        "data": "train: 6, test: 2",
        "sft": f"epochs: 1, batch: 2, lr: 1e-3, max_tokens: 300, {TRAINED}",
        "safety": "signal: probe, most: 2, max_tokens: 16",
    }
    return {
        "plots": sections(**plots),
        "diverse": sections(**{**plots, "dpo": f"loss: ddpo, lr: 1e-3, epochs: 1, {TRAINED}"}),
        "safe": sections(**safe),
        "greetings": sections(**greetings),
        "frontier": ["--most", "2", "--samples", "2", "--max-tokens", "40"],
        "write": ["--max-tokens", "40"],
        "fit": ["--vram", "24", "--ram", "32"],
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """One folder for all notebooks: what one run made another takes."""
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "few-plots.jsonl").write_text("".join(PLOTS.open(encoding="utf-8").readlines()[:12]))
    return folder


def command(name: str, place: Path) -> subprocess.Popen:
    """Execute a notebook in a process of its own; what its cells said goes to NAME.log."""
    script = (
        "import nbclient, nbformat, sys\n"
        f"book = nbformat.read({str(NOTEBOOKS / f'{name}.ipynb')!r}, 4)\n"
        "try:\n    nbclient.NotebookClient(book, timeout=900, kernel_name='python3').execute()\n"
        "finally:\n"
        "    print(*(o.get('text', '') for c in book.cells for o in c.get('outputs', [])), sep='')\n"
    )
    env = {**os.environ, "FABLESMITH_TINY": json.dumps(sizes(place / "few-plots.jsonl")), "FABLESMITH_RUNS": "runs"}
    env |= {"PYTHONPATH": os.pathsep.join([str(PLOTS.parents[2]), env.get("PYTHONPATH", "")])}
    env.pop("FABLESMITH_QUIET", None)
    log = (place / f"{name}.log").open("w")
    return subprocess.Popen(
        [sys.executable, "-c", script], cwd=place, env=env, stdout=log, stderr=log, start_new_session=True
    )


def execute(name: str, place: Path) -> str:
    code = command(name, place).wait(timeout=900)
    said = (place / f"{name}.log").read_text()
    assert code == 0, said[-3000:]
    return said


@pytest.mark.slow
def test_the_quickstart_goes_on_after_a_disconnect(place):
    process = command("quickstart", place)
    run, deadline = place / "runs" / "quickstart", time.monotonic() + 300
    while not (run / "premises" / "stage.json").is_file() and time.monotonic() < deadline:
        assert process.poll() is None, (place / "quickstart.log").read_text()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "report").exists()
    said = execute("quickstart", place)
    assert "premises    stands, skipped" in said
    assert (run / "for-ollama" / "Modelfile").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "quickstart"])
def test_a_notebook_runs_from_top_to_bottom(name, place):
    execute(name, place)


def test_the_recipes_that_the_notebooks_run_are_shipped():
    for source in build.sources():
        for line in source.read_text().splitlines():
            if line.startswith('fablesmith("run", "'):
                assert load_recipe(line.split('"')[3])
