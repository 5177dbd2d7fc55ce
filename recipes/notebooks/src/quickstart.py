# %% [markdown]
# # Fablesmith: quickstart
#
# {badge}
#
# A small model learns to write better short plots from feedback that it makes itself: PlotTwist end to end, from premises to a judged GGUF file.
# Nothing leaves the machine it runs on, and no model is downloaded: SmolLM2-135M comes inside a package.
#
# | | |
# |---|---|
# | machine | Colab's free CPU or T4, or any computer |
# | needs | {needs:quickstart} |
# | disk | about 4 GB, with everything that is installed |

# %% setup
# %% [markdown]
# ## What will it do, and how long will it take?

# %%
fablesmith("run", "quickstart", "--dry-run", "--out", RUNS / "quickstart", *small("plots"))

# %% [markdown]
# ## Run it
#
# Interrupt it whenever you like: the same cell goes on where it was.

# %%
fablesmith("run", "quickstart", "--out", RUNS / "quickstart", *small("plots"))

# %% [markdown]
# ## What was it worth?
#
# The report holds plots side by side, charts, every setting, and what the judge may be trusted with.

# %%
from IPython.display import HTML, display

report = (RUNS / "quickstart" / "report" / "report.html").read_text(encoding="utf-8")
display(
    HTML(
        f'<iframe srcdoc="{report.replace("&", "&amp;").replace(chr(34), "&quot;")}" width="100%" height="600"></iframe>'
    )
)

# %% [markdown]
# ## Let it write
#
# The base model first, then the one that was just aligned, with the same seed.

# %%
premise = "A lighthouse keeper learns what the light keeps away."
fablesmith("write", premise, "--seed", 1, *small("write"))

# %%
fablesmith("write", premise, "--seed", 1, "--model", RUNS / "quickstart", *small("write"))

# %% [markdown]
# ## Take it along
#
# A folder with the GGUF, its model card and what Ollama needs; `koboldcpp`, `llama-server` and `lmstudio` are the others.

# %%
fablesmith("export", RUNS / "quickstart", "--for", "ollama")
