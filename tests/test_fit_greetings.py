"""What a greetings run will take, before it runs."""

import dataclasses

import pytest

from toolkit.fit import estimate, grpo_memory
from toolkit.recipe import GrpoSettings, ModelSettings, Recipe, find_recipe, load_recipe, recipes_folder
from toolkit.runner import plan

GREETINGS = sorted(p.stem for p in recipes_folder().glob("greetings-*.yaml"))


def recipe(**grpo) -> Recipe:
    model = ModelSettings(id="Qwen/Qwen2.5-7B-Instruct", four_bit=True)
    return Recipe(task="greeting", align="grpo", model=model, grpo=GrpoSettings(**grpo))


@pytest.mark.parametrize("name", GREETINGS)
def test_every_stage_of_a_greetings_recipe_has_an_estimate(name):
    found = load_recipe(name)
    assert {s.name for s in plan(found)} <= set(estimate(found))


@pytest.mark.parametrize("name", [n for n in GREETINGS if n != "greetings-small"])
def test_every_gpu_recipe_fits_the_card_it_names_by_arithmetic(name):
    card = 14.5 if "t4" in name else 22.0
    assert grpo_memory(load_recipe(name))["peak"] < card
    assert "not yet measured" in find_recipe(name).read_text(encoding="utf-8")


def test_the_weights_of_a_7b_model_in_four_bit_by_hand():
    linear = 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944) * 0.516
    assert grpo_memory(recipe())["weights"] == pytest.approx((linear + 2 * 152064 * 3584 * 2) / 2**30, abs=0.01)


def test_a_larger_mini_batch_of_answers_needs_more_memory():
    assert grpo_memory(recipe(mini_batch=16))["peak"] > grpo_memory(recipe(mini_batch=4))["peak"] + 5


def test_the_reward_that_is_not_used_takes_no_memory():
    found = grpo_memory(recipe(rewards=("judge",)))
    assert found["reward model"] == 0
    assert found["judge"] > 7


def test_a_model_whose_dimensions_nobody_tells_has_no_figure():
    odd = dataclasses.replace(recipe(), model=ModelSettings(id="somebody/unknown"))
    assert grpo_memory(odd) is None
