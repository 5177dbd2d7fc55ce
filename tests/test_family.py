"""Whose weights: from names as they are found in the wild, and from real files."""

import pytest

from toolkit.engines.base import family_of
from toolkit.engines.load import load_engine


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (["smollm2", "Smollm2 135M 8k Lc100K Mix1 Ep2", "llama"], "smollm"),
        (["Qwen/Qwen3-30B-A3B-Instruct-2507"], "qwen"),
        (["QwQ-32B"], "qwen"),
        (["Meta-Llama-3.1-8B-Instruct"], "llama"),
        (["meta-llama/Llama-3.2-3B"], "llama"),
        (["Hermes-3-Llama-3.1-8B"], "llama"),
        (["TinyLlama-1.1B-Chat"], "tinyllama"),
        (["Mistral-Nemo-Instruct-2407"], "mistral"),
        (["Mixtral-8x7B"], "mistral"),
        (["google_gemma-3-12b-it"], "gemma"),
        (["phi-4", "phi3"], "phi"),
        (["Dolphin-2.9", "qwen2"], "qwen"),
        (["ibm-granite/granite-3.3-8b-instruct"], "granite"),
        (["openai/gpt-oss-20b"], "gpt-oss"),
        (["gpt_oss"], "gpt-oss"),
        (["DeepSeek-R1-Distill-Qwen-7B"], "qwen"),
        (["DeepSeek-V3"], "deepseek"),
        (["c4ai-command-r-v01"], "cohere"),
        (["", "Merged Weights", "nemotron_h"], "nemotron"),
        (["/models/my-own-zephyr-7b.gguf"], "own"),
        (["default"], ""),
        ([""], ""),
        ([], ""),
    ],
)
def test_a_family_is_the_word_that_says_whose_weights_they_are(names, family):
    assert family_of(*names) == family


def test_the_embedded_model_is_no_llama_for_all_its_architecture():
    engine = load_engine("embedded")
    assert (engine.metadata("general.architecture"), engine.family) == ("llama", "smollm")
    engine.close()


def test_our_own_export_is_of_its_bases_family(tiny, tiny_gguf):
    here, there = load_engine(tiny_gguf), load_engine(tiny)
    assert here.metadata("general.name").startswith("Tiny")  # the folder's name: tells nothing
    assert here.family == there.family == "smollm"  # by the embedded model's tokenizer and template
    here.close()
