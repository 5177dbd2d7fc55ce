"""How long a greetings run will take, before it runs."""

import pytest

from toolkit.pace import estimate
from toolkit.recipe import load_recipe, recipes_folder
from toolkit.runner import plan

GREETINGS = sorted(p.stem for p in recipes_folder().glob("greetings-*.yaml"))


@pytest.mark.parametrize("name", GREETINGS)
def test_every_stage_of_a_greetings_recipe_has_an_estimate(name):
    found = load_recipe(name)
    assert {s.name for s in plan(found)} <= set(estimate(found))
