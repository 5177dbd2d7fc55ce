# %% [markdown]
# # Stories that are not all the same story
#
# {badge}
#
# Preference training makes a model tell its surest story again and again. Here the unusual among the good answers counts more (deviation-weighted DPO,
# arXiv 2503.17126), and the difference is measured: quality against diversity, so that a model that is only hotter is not mistaken for a better one.
#
# | | |
# |---|---|
# | machine | Colab's free CPU or T4 (`diverse-ddpo` is the recipe for a 24 GB GPU) |
# | needs | {needs:diverse-small}; the quickstart before it 8 to 10 minutes |

# %% setup
# %% [markdown]
# ## Plain DPO, then the weighted one
#
# The second run takes candidates, ratings, reward model and pairs from the first: only what differs is done again.

# %%
fablesmith("run", "quickstart", "--out", RUNS / "quickstart", *small("plots"))

# %%
fablesmith("run", "diverse-small", "--out", RUNS / "diverse-small", *small("diverse"))

# %% [markdown]
# ## Quality against diversity

# %%
size = small("frontier") or ["--most", 12, "--temperatures", "0.7,1.1"]
fablesmith(
    "frontier",
    "embedded",
    RUNS / "quickstart",
    RUNS / "diverse-small",
    "--reward",
    RUNS / "quickstart",
    "--out",
    RUNS / "frontier",
    *size,
)

# %%
from IPython.display import SVG, display

display(SVG(filename=str(RUNS / "frontier" / "frontier.svg")))

# %% [markdown]
# ## Without any training
#
# Ask for each plot from another angle: the baseline that training has to beat.

# %%
fablesmith("write", "A bell rings twice.", "-n", 4, "--angles", "--seed", 1, *small("write"))
