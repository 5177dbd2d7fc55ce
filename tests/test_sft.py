"""The cold start: only the answer teaches, what cannot be used is counted, a kill costs nothing."""

import pytest

from toolkit.errors import UserError
from toolkit.models.load import load_model, load_tokenizer
from toolkit.models.resolve import resolve
from toolkit.models.sft import train_sft
from toolkit.models.training import read_metrics
from toolkit.recipe import LoraSettings, ModelSettings, SftSettings

WEIGHTS = ModelSettings(dtype="float32")
ROWS = [("Wish Ada well.", "May the lamp you lit burn on."), ("Wish Bo well.", "Your kite still flies above the mill.")]


def settings(**more) -> SftSettings:
    base = {"lora": LoraSettings(8, 16), "batch": 2, "epochs": 8, "lr": 1e-2, "save_every": 2}
    return SftSettings(**{**base, **more})


def adapter(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("sft")
    return out, train_sft(resolve(str(tiny)), ROWS, settings(), WEIGHTS, out)


def test_it_learns_the_answers(trained):
    _, facts = trained
    assert facts["rows"] == 2
    assert facts["loss"][1] < facts["loss"][0] - 2


def test_the_first_loss_is_the_answers_mean_negative_log_likelihood_and_nothing_of_the_prompt(tiny, trained):
    import torch

    model = resolve(str(tiny))
    network, tokenizer = load_model(model, dtype="float32"), load_tokenizer(model)
    total, tokens = 0.0, 0
    for prompt, answer in ROWS:
        turns = [{"role": "user", "content": prompt}]
        head = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}], return_dict=False)
        with torch.no_grad():
            rows = network(torch.tensor([ids])).logits[0].log_softmax(-1)
        total -= sum(float(rows[i - 1, ids[i]]) for i in range(len(head), len(ids)))
        tokens += len(ids) - len(head)
    assert read_metrics(trained[0])[0]["loss"] == pytest.approx(total / tokens, abs=2e-4)


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tiny, trained, tmp_path, monkeypatch):
    from toolkit.models import training

    real = training.Log.on_step_end

    def dies(self, args, state, control, **kwargs):
        real(self, args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.Log, "on_step_end", dies)
    with pytest.raises(KeyboardInterrupt):
        train_sft(resolve(str(tiny)), ROWS, settings(), WEIGHTS, tmp_path)
    monkeypatch.undo()
    train_sft(resolve(str(tiny)), ROWS, settings(), WEIGHTS, tmp_path)
    whole, resumed = adapter(trained[0]), adapter(tmp_path)
    assert all((whole[k] == resumed[k]).all() for k in whole)
    assert [r["step"] for r in read_metrics(tmp_path)] == list(range(1, 9))


def test_in_four_bits_it_learns_them_too(tiny, tmp_path):
    facts = train_sft(resolve(str(tiny)), ROWS, settings(), ModelSettings(dtype="float32", four_bit=True), tmp_path)
    assert facts["loss"][1] < facts["loss"][0] - 2


def test_rows_that_are_too_long_are_left_out_and_counted(tiny, tmp_path):
    facts = train_sft(resolve(str(tiny)), [*ROWS, ("Go on.", "luck " * 300)], settings(epochs=1, max_tokens=120), WEIGHTS, tmp_path)  # fmt: skip
    assert (facts["rows"], facts["too_long"]) == (2, 1)


def test_when_no_row_is_short_enough_it_says_how_long_they_are(tiny, tmp_path):
    with pytest.raises(UserError, match=r"none of the 2 answers.*sft\.max_tokens = 32"):
        train_sft(resolve(str(tiny)), ROWS, settings(max_tokens=32), WEIGHTS, tmp_path)
