# %% [markdown]
# # Greetings by AI feedback · 贺词
#
# {badge}
#
# A cold start on a few good greetings, agents who speak for and against each answer, a reward model of their verdicts, and GRPO: reinforcement learning
# from AI feedback, in Chinese and English. `greetings-small` runs on two CPU cores with the model that is installed (English only); on a T4 take
# `greetings-t4`, which knows Chinese too.
#
# | | |
# |---|---|
# | machine | Colab's free CPU; a T4 for `greetings-t4` |
# | needs | {needs:greetings-small} |
# | on a T4 | {needs:greetings-t4} |

# %% setup
RECIPE = "greetings-small"  # "greetings-t4" on a GPU

# %% [markdown]
# ## Run it

# %%
fablesmith("run", RECIPE, "--out", RUNS / RECIPE, *small("greetings"))

# %% [markdown]
# ## What did the agents say?
#
# One lists the merits, one the faults, a judge weighs them, a reflector overturns the verdict only with a quote.

# %%
fablesmith("debates", RUNS / RECIPE, "-n", 2)

# %% [markdown]
# ## Let it greet

# %%
fablesmith("write", "--as", "greeting", "A birthday card for my brother, who sails", "-n", 2, "--model", RUNS / RECIPE)
