"""What was won is kept: ratios of our way to the plain way in the same sitting, in processor seconds, which neighbours on the machine
disturb less than the clock. Measured ratios, which are higher: docs/results.md, Speed; benchmarks/speed.py measures them.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "speed_dpo.py"
sys.path.insert(0, str(SCRIPT.parent))
pytestmark = pytest.mark.slow


def spent(work) -> float:
    """Processor seconds of `work`, the better of two: a neighbour's cache misses count as ours."""

    def once():
        begun = time.process_time()
        work()
        return time.process_time() - begun

    return min(once(), once())


@pytest.fixture(scope="module")
def engine():
    from toolkit.engines.load import load_engine

    engine = load_engine("embedded")
    yield engine
    engine.close()


def test_sixteen_answers_at_once_stay_well_ahead_of_one_by_one(engine):
    from speed import plots

    from toolkit.engines.base import Sampling
    from toolkit.narrative.writing import write_prompt

    prompt = [write_prompt(plots(1)[0].premise)]
    drawn = Sampling(temperature=0.8, max_tokens=24, seed=1)
    alone = spent(lambda: [engine.generate(prompt, 1, drawn) for _ in range(4)])
    together = spent(lambda: engine.generate(prompt, 16, drawn))
    assert 4 * alone > 2.5 * together


def test_ten_questions_in_one_call_stay_well_ahead_of_single_calls(engine, monkeypatch):
    from speed import plots

    from toolkit.feedback.ratings import rate_plot

    plot, real = plots(1)[0], engine.choose
    together = spent(lambda: rate_plot(engine, plot, 0))
    monkeypatch.setattr(engine, "choose", lambda asks, options, reason=0: [real([a], options)[0] for a in asks])
    assert spent(lambda: rate_plot(engine, plot, 0)) > 2.3 * together


def test_an_answer_is_drawn_far_faster_than_llama_cpps_samplers_do(engine):
    """0.03 to 0.05 ms against 0.08 to 0.1 (docs/results.md, Speed)."""
    from toolkit.engines.base import Sampling
    from toolkit.engines.drawing import Drawing

    C, drawing = engine.C, Drawing(Sampling())
    *_, (_, at, _) = engine._prefill([engine.tokenize("A bell rang twice.")], 0)
    chain = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
    for part in (C.llama_sampler_init_min_p(0.05, 1), C.llama_sampler_init_temp(0.8), C.llama_sampler_init_dist(1)):
        C.llama_sampler_chain_add(chain, part)
    theirs = spent(lambda: [C.llama_sampler_sample(chain, engine.ctx, at) for _ in range(200)])
    assert theirs > 1.3 * spent(lambda: [drawing.next(engine._logits(at)) for _ in range(200)])
    C.llama_sampler_free(chain)


def test_texts_scored_together_stay_ahead_of_one_by_one(tiny):
    """A tiny model: what is won here is won of the calls, not of the products."""
    from toolkit.models.load import fingerprint
    from toolkit.models.resolve import resolve
    from toolkit.recipe import LoraSettings
    from toolkit.reward.model import RewardConfig, new_reward_model

    made = RewardConfig(str(tiny), fingerprint(resolve(str(tiny))))
    model = new_reward_model(made, LoraSettings(4, 8))
    texts = [f"The keeper counted {n} lamps and went home in the rain." for n in range(64)]
    model.score(texts)
    alone = spent(lambda: [model.score([t]) for t in texts])
    assert alone > 2 * spent(lambda: model.score(texts))


def test_a_preference_step_stays_well_ahead_of_trls(tmp_path):
    """Against TRL's defaults, whose loss it is. Two steps: what starts up is not counted."""
    rows = {}
    for who in ("ours", "trl"):
        out = tmp_path / f"{who}.json"
        subprocess.run([sys.executable, str(SCRIPT), who, "--steps", "2", "--out", str(out)], check=True)
        rows[who] = json.loads(out.read_text())
    assert rows["trl"]["median_cpu_s"] > 1.5 * rows["ours"]["median_cpu_s"]
    assert rows["ours"]["peak_gb"] < 0.75 * rows["trl"]["peak_gb"]
    assert rows["ours"]["losses"][0]["loss"] == pytest.approx(rows["trl"]["losses"][0]["loss"], abs=1e-3)
