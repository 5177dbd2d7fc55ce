"""The generative rater: a reward model's ratings as digits out of a chat model, and out of its GGUF."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import PLOTS

from toolkit import rater
from toolkit.engines.load import load_engine
from toolkit.errors import UserError
from toolkit.evaluate.judge import DIGITS, judge_plot, rating_questions
from toolkit.models.load import load_model, load_tokenizer
from toolkit.models.resolve import resolve
from toolkit.narrative.dimensions import KEYS
from toolkit.recipe import LoraSettings, ModelSettings
from toolkit.records import Plot, written_in
from toolkit.reward import generative as G
from toolkit.reward.probe import fit_probe, ridge_of

TEXTS = [
    "The well was dry, so Ama dug. She struck a root, and it bled.",
    "Um um um um, nothing, um.",
    "Water came when she begged its pardon, and the village drank and forgot her.",
    "He left. He came back.",
    "A ferryman refuses one passenger every night, and every night it is his daughter. He never asks why.",
    "The clock stopped; so did the town.",
]
WEIGHTS = ModelSettings(dtype="float32")


def settings(**more) -> G.RaterSettings:
    lora = LoraSettings(r=16, alpha=32, last_layers=2)
    return G.RaterSettings(**{"lora": lora, "lr": 1e-2, "epochs": 4, "batch": 3, "save_every": 3, **more})


def wanted() -> np.ndarray:
    return np.random.default_rng(0).uniform(1.5, 9.5, (len(TEXTS), 5))


def loaded(folder, adapter=None):
    from peft import PeftModel

    model = load_model(resolve(str(folder)), dtype="float32").eval()
    return PeftModel.from_pretrained(model, str(adapter)).eval() if adapter else model


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return load_tokenizer(resolve(str(tiny)))


@pytest.fixture(scope="module")
def base(tiny, tokenizer, tmp_path_factory) -> str:
    """The tiny model with its digits' embeddings enlarged: as it is, 64 numbers cannot make 9 of 49,152 tokens likely."""
    import torch

    folder = tmp_path_factory.mktemp("digits")
    model = loaded(tiny)
    with torch.no_grad():
        model.get_input_embeddings().weight[G.option_tokens(tokenizer, DIGITS)] *= 5
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def train(base, out, *, texts=TEXTS, weights=WEIGHTS, **more) -> dict:
    scores = wanted()[: len(texts)]
    return G.train_rater(resolve(base), texts, scores, rating_questions, DIGITS, settings(**more), weights, out, seed=4)


@pytest.mark.parametrize("rating", [1.0, 1.01, 3.7, 5.5, 9.99, 10.0])
def test_the_mean_of_the_target_is_the_rating(rating):
    p = G.target_digits(np.array(rating), 9)
    assert p.sum() == pytest.approx(1)
    assert (p >= 0).all()
    assert 1 + (p @ np.arange(9)) / 8 * 9 == pytest.approx(rating)


def test_at_the_ends_of_the_scale_only_the_end_is_left():
    assert G.target_digits(np.array([1.0, 10.0]), 9)[:, [0, 8]].tolist() == [[1, 0], [0, 1]]


def test_asked_together_a_question_has_the_answer_it_has_alone(tiny, tokenizer):
    import torch

    model, digits = loaded(tiny), G.option_tokens(tokenizer, DIGITS)
    batch = G.collate([G.encode(tokenizer, rating_questions(t)) for t in TEXTS], tokenizer.pad_token_id)
    with torch.inference_mode():
        together = G.digit_logps(model, batch, digits)
        for i, question in enumerate(q for t in TEXTS for q in rating_questions(t)):
            text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
            ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
            alone = model(ids).logits[0, -1].log_softmax(-1)[digits]
            assert together[i].numpy() == pytest.approx(alone.numpy(), abs=1e-3)


def test_the_gradient_reaches_the_text_that_all_questions_share(tiny, tokenizer):
    import torch

    model = loaded(tiny)
    batch = G.collate([G.encode(tokenizer, rating_questions(TEXTS[0]))], tokenizer.pad_token_id)
    seen = []

    def keep(module, args, out):
        out.retain_grad()
        seen.append(out)

    model.model.embed_tokens.register_forward_hook(keep)
    with torch.enable_grad():
        G.digit_logps(model, batch, G.option_tokens(tokenizer, DIGITS)).sum().backward()
    assert len(seen) == 2
    assert all(float(x.grad.abs().sum()) > 0 for x in seen)


def test_ratings_move_to_their_targets(base, tokenizer, tmp_path):
    facts = train(base, tmp_path, epochs=90, batch=6, save_every=1000)
    assert facts["loss"][1] < facts["loss"][0] / 10
    ratings, share = G.ask(loaded(base, tmp_path / "adapter"), tokenizer, TEXTS, rating_questions, DIGITS)
    assert np.abs(ratings - wanted()).max() * 8 / 9 < 0.5  # in digits
    assert share > 0.95


def test_the_probe_moves_the_slope_of_the_digits_by_what_it_fitted(base, tokenizer):
    import torch
    from peft import get_peft_model

    from toolkit.models.load import lora_config

    torch.manual_seed(0)
    model = loaded(base)
    model = get_peft_model(model, lora_config(model, settings().lora))
    digits = G.option_tokens(tokenizer, DIGITS)
    texts = TEXTS + [t.upper() for t in TEXTS]
    rows = [G.encode(tokenizer, rating_questions(t)) for t in texts]
    batches = [G.collate(rows[at : at + 3], tokenizer.pad_token_id) for at in range(0, 12, 3)]
    logps = lambda m, batch: G.digit_logps(m, batch, digits)  # noqa: E731
    targets = [np.full(15, 0.8)] * 4
    facts = fit_probe(model, batches, targets, logps)
    assert facts["at"] == "layers.3.mlp.down_proj"
    with torch.no_grad():
        rows = torch.cat([logps(model, batch) for batch in batches])
    slopes = (rows @ torch.arange(-4.0, 5.0) / 60).numpy()
    assert slopes == pytest.approx(np.full(60, np.log(0.8 / 0.2)), abs=0.3)


def test_the_ridge_is_chosen_on_left_out_folds():
    rng = np.random.default_rng(0)
    x, u = rng.normal(size=(80, 8)), np.arange(8.0)
    found, _, error = ridge_of(x, x @ u + 0.01 * rng.normal(size=80), np.arange(80) % 5)
    assert found == pytest.approx(u, abs=0.2)
    assert error < 0.1
    noise = ridge_of(x, rng.normal(size=80), np.arange(80) % 5)
    assert noise[1] >= 100


def test_the_probe_does_not_lean_on_what_eight_bits_round_away():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 64)) * 0.05
    x[:, 0] += 100  # its whole block is rounded in steps of 0.8
    u, _, _ = ridge_of(x, 20 * x[:, 1] + 20 * x[:, 40], np.arange(200) % 5)
    assert abs(u[1]) < 2 < 18 < u[40]


def test_killed_and_resumed_the_adapter_is_the_same(base, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def kill(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(G.Log, "on_step_begin", kill, raising=False)
        with pytest.raises(Killed):
            train(base, tmp_path / "a")
    train(base, tmp_path / "a")
    facts = train(base, tmp_path / "b")
    assert facts["steps"] == 8
    one, other = (tmp_path / x / "adapter" / "adapter_model.safetensors" for x in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_in_four_bits_it_trains(base, tmp_path):
    weights = ModelSettings(dtype="float32", four_bit=True)
    facts = train(base, tmp_path, weights=weights)
    assert facts["loss"][1] < facts["loss"][0]


def test_overlong_texts_are_counted_and_none_left_is_refused(base, tmp_path):
    texts = [TEXTS[0], "word " * 400]
    assert train(base, tmp_path / "some", texts=texts, epochs=1, max_tokens=200)["too_long"] == 1
    with pytest.raises(UserError, match="none of 2 texts"):
        train(base, tmp_path / "none", texts=texts, max_tokens=20)


# ---- a run's reward model as a GGUF


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """What export_judge reads of a finished run: recipe, base, plots of both sides, and a reward model of a random head."""
    import torch

    from toolkit.export.gguf import convert
    from toolkit.models.load import fingerprint
    from toolkit.records import read_plots, split_of, write_jsonl
    from toolkit.reward.model import RewardConfig, new_reward_model

    folder = tmp_path_factory.mktemp("run")
    for name in ("model", "premises", "candidates", "reward"):
        (folder / name).mkdir()
    recipe = {"seed": 1, "model": {"dtype": "float32", "four_bit": False}, "reward": {"strengths": [0.7]}}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    convert(Path(base), folder / "model" / "base.gguf")
    (folder / "model" / "model.json").write_text(json.dumps({"id": base, "gguf": "base.gguf"}))
    plots = [p for p in read_plots(PLOTS).rows if written_in(p.text) == "en"]
    sides = {s: [p for p in plots if split_of(p.premise_id or p.id) == s] for s in ("train", "test")}
    write_jsonl(folder / "premises" / "plots.jsonl", sides["train"][:3] + sides["test"][:3])
    torch.manual_seed(0)
    model = new_reward_model(
        RewardConfig(base, fingerprint(resolve(base)), 0.5, dtype="float32"), LoraSettings(r=2, last_layers=1)
    )
    torch.nn.init.normal_(model.module.base_model.model.head.modules_to_save["default"].linear.weight, std=0.1)
    model.save(folder / "reward")
    return folder


@pytest.mark.slow
def test_a_runs_reward_model_becomes_a_gguf_that_judges(run, tmp_path, monkeypatch):
    out, few = tmp_path / "rater.gguf", settings(max_texts=10, epochs=20, batch=5, save_every=1000)

    def full(*args):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(rater, "_convert", full)
        with pytest.raises(OSError, match="no space"):
            rater.export_judge(run, out, "F16", few)
    assert not out.exists()
    with monkeypatch.context() as patch:
        patch.setattr(G, "train_rater", None)  # what was learnt before the disk was full is not learnt again
        facts = rater.export_judge(run, out, "F16", few)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rater.gguf", "rater.json"]
    assert json.loads(out.with_suffix(".json").read_text()) == facts
    assert facts["training"]["texts"] == 10
    assert facts["training"]["probe"]["at"] == "layers.3.mlp.down_proj"
    assert facts["proof"]["mean_difference"] < 0.1
    assert facts["proof"]["probability_of_digits"] > 0.9
    held_out = facts["held_out"]
    assert held_out["plots"]["rater"]["mean"]["mean_difference"] < held_out["plots"]["base"]["mean"]["mean_difference"]
    assert set(held_out["pairs"]) == {"reward model", "rater", "base"}
    engine = load_engine(out)
    rated = judge_plot(engine, Plot("p", TEXTS[0]), reason=0)
    engine.close()
    assert all(1 <= rated.scores[k] <= 10 for k in KEYS)


def test_agreement_is_whole_with_the_same_and_reversed_with_the_opposite():
    scores = np.random.default_rng(0).uniform(1, 10, (12, 5))
    same = rater.agreement(scores, scores, [0] * 6 + [1] * 6)
    assert same["mean"] == {"spearman": [1, 1, 1], "mean_difference": 0}
    assert rater.agreement(11 - scores, scores, list(range(12)))["tone"]["spearman"][0] == -1


@pytest.mark.parametrize(
    ("name", "kind", "what"), [("a.gguf", "Q3", "no quantisation"), ("a.bin", "F16", "does not end in .gguf")]
)
def test_a_wrong_kind_or_name_is_refused(run, tmp_path, name, kind, what):
    with pytest.raises(UserError, match=what):
        rater.export_judge(run, tmp_path / name, kind)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no recipe\.json"):
        rater.export_judge(tmp_path, tmp_path / "a.gguf")
