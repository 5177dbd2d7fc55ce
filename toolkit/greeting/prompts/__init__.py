"""What the agents around a greeting are asked."""

from functools import partial
from pathlib import Path

from toolkit import prompts

prompt = partial(prompts.fill, Path(__file__).parent)
lines = partial(prompts.lines, Path(__file__).parent)
