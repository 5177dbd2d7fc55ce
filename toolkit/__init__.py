"""Fablesmith: a small language model learns to write better plots, on your own machine.

from toolkit import write, rate, judge, run, load_reward_model
"""

from importlib import import_module

__all__ = ["UserError", "judge", "load_recipe", "load_reward_model", "rate", "run", "write"]

_HOME = {
    "UserError": "toolkit.errors",
    "judge": "toolkit.api",
    "rate": "toolkit.api",
    "run": "toolkit.api",
    "write": "toolkit.api",
    "load_recipe": "toolkit.recipe",
    "load_reward_model": "toolkit.reward.model",
}


def __getattr__(name: str):
    """Load a verb when it is first asked for: `import toolkit` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'toolkit' has no attribute {name!r}")
    from toolkit.hardware import prepare_environment

    prepare_environment()  # before torch or llama.cpp can be loaded
    return getattr(import_module(_HOME[name]), name)
