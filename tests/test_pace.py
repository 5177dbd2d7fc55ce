"""How long a greetings run will take, before it runs."""

import pytest

from toolkit.pace import estimate
from toolkit.recipe import load_recipe, recipes_folder
from toolkit.runner import plan


@pytest.mark.parametrize(
    ("name", "merge", "what"),
    [
        ("quickstart", "auto", "GGUF Q8_0 and adapter"),
        ("quickstart", "never", "adapter"),
        ("plottwist-24gb", "auto", "adapter, and GGUF Q8_0 below 8B parameters"),
        ("plottwist-24gb", "always", "GGUF Q8_0 and adapter"),
    ],
)
def test_a_merged_model_is_promised_where_one_is_made(name, merge, what):
    assert estimate(load_recipe(name, [f"export.merge={merge}"]))["export"].size == f"{what}, with proof"


GREETINGS = sorted(p.stem for p in recipes_folder().glob("greetings-*.yaml"))


@pytest.mark.parametrize("name", GREETINGS)
def test_every_stage_of_a_greetings_recipe_has_an_estimate(name):
    found = load_recipe(name)
    assert {s.name for s in plan(found)} <= set(estimate(found))
