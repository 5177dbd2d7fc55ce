"""The reward model as a whole: start, training, resuming, saving, loading, refusing."""

import json

import numpy as np
import pytest

from toolkit.errors import UserError
from toolkit.models.load import fingerprint
from toolkit.models.resolve import resolve
from toolkit.recipe import LoraSettings, RewardSettings
from toolkit.reward.data import Group
from toolkit.reward.model import RewardConfig, load_reward_model, new_reward_model
from toolkit.reward.train import train_reward

GOOD = ["The well was dry, so Ama dug.", "She struck a root, and it bled.", "Water came when she begged its pardon."]


def fresh(tiny, **config):
    import torch

    torch.manual_seed(3)
    config = {"depth": 0.5, "dtype": "float32", **config}
    return new_reward_model(
        RewardConfig(str(tiny), fingerprint(resolve(str(tiny))), **config), LoraSettings(r=4, last_layers=1)
    )


def groups() -> list[Group]:
    made = []
    for i, text in enumerate(GOOD):
        group = Group(str(i))
        group.add(text, [9.0] * 5, 1.0, "people")
        group.add("Um um um um, nothing, um.", [3.0] * 4 + [float("nan")], 1.0, "damage:pad")
        made.append(group)
    return made


def settings(**more) -> RewardSettings:
    return RewardSettings(**{"epochs": 4, "batch": 1, "lr": 1e-2, "ridge": 1.0, "save_every": 3, **more})


def test_only_the_asked_share_of_the_layers_is_kept(tiny):
    assert len(fresh(tiny).module.base_model.model.backbone.layers) == 2


def test_an_untrained_model_rates_the_middle_of_the_scale(tiny):
    assert fresh(tiny).score(GOOD) == pytest.approx(np.full((3, 5), 5.5))


def test_scores_stay_inside_the_scale_and_tell_good_from_bad(tiny, tmp_path):
    model = fresh(tiny)
    train_reward(model, groups(), settings(), tmp_path)
    scores = model.score([*GOOD, "Um um um um, nothing, um."])
    assert ((scores > 1) & (scores < 10)).all()
    assert (scores[:3].min(0) > scores[3])[:4].all()


def test_batching_does_not_change_a_score(tiny, tmp_path):
    model = fresh(tiny)
    train_reward(model, groups(), settings(epochs=1), tmp_path)
    texts = [*GOOD, "Short.", "A much longer text that goes on. " * 8]
    assert model.score(texts, batch=1) == pytest.approx(model.score(texts, batch=5), abs=1e-3)


def test_saved_and_loaded_it_scores_the_same(tiny, tmp_path):
    model = fresh(tiny)
    train_reward(model, groups(), settings(epochs=1), tmp_path)
    model.save(tmp_path)
    assert load_reward_model(tmp_path).score(GOOD) == pytest.approx(model.score(GOOD), abs=1e-5)


def test_layers_below_the_adapter_read_a_text_once_and_teach_the_same(tiny, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from toolkit.reward import model as module

    real, read = module.states_into, []
    monkeypatch.setattr(module, "states_into", lambda *a, **k: read.append(k["input_ids"]) or real(*a, **k))
    models = {name: fresh(tiny) for name in ("kept", "whole")}
    models["kept"].keep_lower([t for g in groups() for t in g.texts])
    for name, model in models.items():
        model.features(GOOD)
        train_reward(model, groups(), settings(), tmp_path / name)
        model.save(tmp_path / name)
    assert [len(ids) for ids in read] == [4]
    assert models["kept"].score(GOOD) == pytest.approx(models["whole"].score(GOOD), abs=1e-5)
    for file in ("adapter_model.safetensors", "head.safetensors"):
        a, b = (load_file(tmp_path / name / file) for name in models)
        assert all(np.allclose(a[k], b[k], atol=1e-5) for k in b)


def test_a_text_that_was_not_kept_is_read_whole_beside_one_that_was(tiny):
    model, whole = fresh(tiny), fresh(tiny)
    model.keep_lower(GOOD[:2])
    assert model.features(GOOD) == pytest.approx(whole.features(GOOD), abs=1e-5)


def test_where_a_model_is_not_the_same_in_two_parts_it_is_read_whole(tiny, monkeypatch):
    from toolkit.models import lower

    real = lower.states_into
    monkeypatch.setattr(
        lower, "states_into", lambda *a, **k: real(*a, **k) * 1.1
    )  # as a model that scales its embeddings
    model = fresh(tiny)
    model.keep_lower(GOOD)
    assert not model.lower


def test_in_four_bits_it_trains_and_loads(tiny, tmp_path):
    model = fresh(tiny, four_bit=True)
    train_reward(model, groups(), settings(epochs=1), tmp_path)
    model.save(tmp_path)
    assert load_reward_model(tmp_path).score(GOOD) == pytest.approx(model.score(GOOD), abs=1e-2)


def test_other_base_weights_are_refused(tiny, tmp_path):
    model = fresh(tiny)
    model.save(tmp_path)
    card = json.loads((tmp_path / "reward.json").read_text())
    (tmp_path / "reward.json").write_text(json.dumps({**card, "fingerprint": "0" * 16}))
    with pytest.raises(UserError, match="other weights"):
        load_reward_model(tmp_path)


def test_an_empty_text_is_named_by_its_number(tiny):
    with pytest.raises(UserError, match="text 2 of 3 is empty"):
        fresh(tiny).score([GOOD[0], "  ", GOOD[1]])


def test_a_folder_without_a_reward_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="no reward model"):
        load_reward_model(tmp_path)
