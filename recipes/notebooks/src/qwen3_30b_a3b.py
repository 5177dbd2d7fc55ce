# %% [markdown]
# # Qwen3-30B-A3B on one card: L4 or A100
#
# {badge}
#
# A mixture of 128 experts, of which 8 work on a token: 30 billion parameters to hold, 3 billion to compute with. The experts are held in 4 bits, LoRA trains
# the attention, and what comes out is an adapter for any GGUF of the same base. In *Runtime → Change runtime type* choose **L4** or **A100** and high
# memory, and set `DRIVE = True` below.
#
# | | |
# |---|---|
# | machine | one GPU of 24 GB (L4; A100 has room to spare) |
# | needs | {needs:plottwist-24gb} |
# | time | not measured on a GPU yet |

# %% setup
# %% [markdown]
# ## Does it fit this machine?

# %%
fablesmith("fit", "plottwist-24gb", *small("fit"))

# %% [markdown]
# ## Run it
#
# First the stages up to the pairs, which only write and rate, then the rest: two cells, so that you can look at the pairs in between.

# %%
fablesmith("run", "plottwist-24gb", "--out", RUNS / "plottwist-24gb", "--until", "pairs", *small("plots"))

# %%
with (RUNS / "plottwist-24gb" / "pairs" / "pairs.jsonl").open(encoding="utf-8") as file:
    pair = json.loads(next(file))
print("CHOSEN\n" + str(pair["chosen"])[:600] + "\n\nREJECTED\n" + str(pair["rejected"])[:600])

# %%
fablesmith("run", "plottwist-24gb", "--out", RUNS / "plottwist-24gb", *small("plots"))

# %% [markdown]
# ## Take it along
#
# llama.cpp's server puts the adapter on the base; on a smaller card add `--cpu-moe` to the script's command, which keeps the experts in RAM.

# %%
fablesmith("export", RUNS / "plottwist-24gb", "--for", "llama-server")
