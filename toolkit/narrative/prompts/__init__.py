"""The house's prompts about plots; lists are `fillers` (flat sentences that tell nothing) and `angles` (ways to tell a story)."""

from functools import partial
from pathlib import Path

from toolkit import prompts

prompt = partial(prompts.fill, Path(__file__).parent)
lines = partial(prompts.lines, Path(__file__).parent)
