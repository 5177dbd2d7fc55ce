# %% [markdown]
# # PlotTwist on a free Colab T4
#
# {badge}
#
# The same road as the quickstart, with a writer that can write. In *Runtime → Change runtime type* choose **T4 GPU**, and set `DRIVE = True` below: free
# sessions end without asking.
#
# | | |
# |---|---|
# | machine | one T4 (15 GB) |
# | needs | {needs:plottwist-t4} |
# | time | not measured on a GPU yet; `fablesmith run plottwist-t4 --dry-run` lists what each stage handles |

# %% setup
# %% [markdown]
# ## Does it fit this machine?
#
# Every stage's memory, predicted before anything is loaded, and the single change that would make it fit.

# %%
fablesmith("fit", "plottwist-t4", *small("fit"))

# %% [markdown]
# ## Run it
#
# The model is fetched once. A disconnect costs at most the step that was being done: run the notebook again from the top.

# %%
fablesmith("run", "plottwist-t4", "--out", RUNS / "plottwist-t4", *small("plots"))

# %% [markdown]
# ## What came out

# %%
from IPython.display import Markdown, display

display(Markdown((RUNS / "plottwist-t4" / "model-card.md").read_text(encoding="utf-8").split("---\n", 2)[2]))

# %%
fablesmith(
    "write",
    "A lighthouse keeper learns what the light keeps away.",
    "--model",
    RUNS / "plottwist-t4",
    "-n",
    2,
    *small("write"),
)

# %% [markdown]
# ## Would you have chosen the same?
#
# In a terminal, `fablesmith vote RUN` shows you texts of both models blind; your votes become training pairs, and a test of the judge.
#
# Take the model along:

# %%
fablesmith("export", RUNS / "plottwist-t4", "--for", "koboldcpp")
