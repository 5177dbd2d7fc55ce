"""How the page puts its wishes to a writer."""

from functools import partial
from pathlib import Path

from toolkit import prompts

prompt = partial(prompts.fill, Path(__file__).parent)
