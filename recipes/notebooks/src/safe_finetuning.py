# %% [markdown]
# # Fine-tuning that keeps a model's safety
#
# {badge}
#
# Training a model on stories can wear off what it refuses. Here the training is held to the model it starts from, the harder the riskier an example is:
# the risk of each is told by a probe of the model's own hidden states (`safe-probe`) or by a critic (`safe-critic`). How it works, and what it does not
# do: docs/safety.md.
#
# | | |
# |---|---|
# | machine | Colab's free CPU (`safe-small`), a GPU for the larger recipes |
# | needs | {needs:safe-small} |

# %% setup
# %% [markdown]
# ## Run it

# %%
fablesmith("run", "safe-small", "--out", RUNS / "safe-small", *small("safe"))

# %% [markdown]
# ## How was each example held?
#
# β is the weight of staying near the start: low where an example is harmless, high where it is not.

# %%
from IPython.display import Markdown, display

display(Markdown((RUNS / "safe-small" / "model-card.md").read_text(encoding="utf-8").split("---\n", 2)[2]))

# %% [markdown]
# ## What did it do to safety?
#
# Your own lists of harmful requests and of harmless ones that look harmful go here; none is shipped. `fablesmith safety --help` says in what form.

# %%
HARMFUL, LOOKALIKES = Path("harmful.jsonl"), Path("lookalikes.jsonl")
if HARMFUL.is_file() and LOOKALIKES.is_file():
    fablesmith("safety", RUNS / "safe-small", "--against", "embedded", "--harmful", HARMFUL, "--lookalikes", LOOKALIKES)
else:
    print(f"put {HARMFUL} and {LOOKALIKES} beside this notebook to measure")
