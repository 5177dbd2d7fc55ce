# %% [markdown]
# # Use the model elsewhere: llama.cpp, Ollama, KoboldCpp, LM Studio
#
# {badge}
#
# A run's GGUF file is a model like any other. What differs from program to program is how its chat template, its stop tokens and its sampling are said;
# `fablesmith export` writes that, with the model's card.
#
# | | |
# |---|---|
# | machine | Colab's free CPU |
# | needs | a finished run: here the quickstart ({needs:quickstart}), taken from Drive if it is there |

# %% setup
# %% [markdown]
# ## A model to use

# %%
RUN = RUNS / "quickstart"
fablesmith("run", "quickstart", "--out", RUN, *small("plots"))

# %% [markdown]
# ## llama.cpp, from Python
#
# The library that Fablesmith itself uses. The chat template is inside the file.

# %%
from llama_cpp import Llama

card = json.loads((RUN / "export" / "export.json").read_text())
llama = Llama(str(RUN / "export" / card["gguf"]), n_ctx=2048, verbose=False)
answer = llama.create_chat_completion(
    [{"role": "user", "content": "Write a short plot: a bell rings twice."}],
    max_tokens=int((small("write") or ["", 160])[1]),
    temperature=0.8,
    min_p=0.05,
)
print(answer["choices"][0]["message"]["content"])

# %% [markdown]
# ## llama.cpp's server, with a page in the browser

# %%
fablesmith("export", RUN, "--for", "llama-server")
print((RUN / "for-llama-server" / "llama-server.sh").read_text())

# %% [markdown]
# ## Ollama
#
# Ollama has a template language of its own; the `TEMPLATE` here was taken out of the model's own template and checked against it, letter by letter.

# %%
fablesmith("export", RUN, "--for", "ollama")
print((RUN / "for-ollama" / "Modelfile").read_text())

# %% [markdown]
# ## KoboldCpp and LM Studio

# %%
fablesmith("export", RUN, "--for", "koboldcpp")
fablesmith("export", RUN, "--for", "lmstudio")

# %% [markdown]
# ## Download

# %%
if COLAB:
    from google.colab import files

    files.download(str(RUN / "export" / card["gguf"]))
