"""Embeddings: unit vectors, cached, long texts read whole, and clear words where a model is missing."""

import zlib

import numpy as np
import pytest

from toolkit.errors import UserError
from toolkit.models import embed as module
from toolkit.models.embed import LONGEST, cosine_distances, embed

SAID = ["A ferryman refuses one passenger.", "The boatman will not take a traveller.", "Stock prices fell on Monday."]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FABLESMITH_CACHE", str(tmp_path))


def test_the_packaged_model_puts_a_paraphrase_nearer_than_another_subject():
    d = cosine_distances(embed(SAID))
    assert d[0, 1] < d[0, 2]


def test_vectors_are_units():
    assert np.linalg.norm(embed(SAID), axis=1) == pytest.approx(1, abs=1e-5)


def test_what_was_embedded_once_is_not_computed_again(monkeypatch):
    first = embed(SAID)
    monkeypatch.setattr(module, "_load", lambda *a: pytest.fail("the model was loaded again"))
    assert np.array_equal(embed(SAID[::-1]), first[::-1])


def test_a_torn_cache_is_begun_anew(tmp_path):
    first = embed(SAID)
    path = next(tmp_path.glob("embeddings-*.sqlite"))
    path.write_bytes(b"not a database" * 99)
    assert np.allclose(embed(SAID), first)


def test_the_end_of_a_long_text_counts_too():
    filler = "The road went on through the fields. " * 60
    one, two = filler + SAID[0] * 20, filler + SAID[2] * 20
    assert cosine_distances(embed([one, two]))[0, 1] > 0.05


def test_an_empty_text_is_refused_with_its_place():
    with pytest.raises(UserError, match="text 2 of 2 is empty"):
        embed(["a", "  "])


def test_an_enormous_text_is_refused_with_its_size():
    with pytest.raises(UserError, match=r"200,001 characters"):
        embed(["a" * (LONGEST + 1)])


def test_a_model_that_is_not_here_offline_is_named_with_what_to_do():
    with pytest.raises(UserError, match="cannot load the embedding model jina") as error:
        embed(SAID, "jina")
    assert "minilm, ngrams and stylometry need no network" in error.value.hint


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot load the embedding model"):
        embed(SAID, str(tmp_path))


def test_no_texts_give_no_vectors():
    assert len(embed([])) == 0


def test_identical_texts_are_at_distance_zero_in_style_too():
    assert cosine_distances(embed([SAID[0], SAID[0]], "stylometry"))[0, 1] == pytest.approx(0, abs=1e-6)


def test_style_ignores_what_a_text_is_about():
    ferry = "She ran to the ferry. She paid the man. She wept."
    prices = "He ran to the market. He sold the cow. He slept."
    long = "Although nobody, least of all the harbour master, had expected it, the ferry, which was late, sank; why?"
    d = cosine_distances(embed([ferry, prices, long], "stylometry"))
    assert d[0, 1] < d[0, 2]


def test_english_and_chinese_styles_have_nothing_in_common():
    d = cosine_distances(embed([SAID[0], "船夫不肯载一个客人。"], "stylometry"))
    assert d[0, 1] == pytest.approx(1)


def test_chinese_with_the_english_model_is_said(capsys, monkeypatch):
    monkeypatch.delenv("FABLESMITH_QUIET", raising=False)
    embed(["船夫不肯载一个客人。"])
    assert "minilm knows English only" in capsys.readouterr().err


def test_the_words_about_chinese_name_what_works_without_a_network(capsys, monkeypatch):
    monkeypatch.delenv("FABLESMITH_QUIET", raising=False)
    embed(["船夫不肯载一个客人。"])
    assert "multilingual, or ngrams (no network)" in capsys.readouterr().err


def test_ngrams_put_chinese_texts_about_the_same_thing_nearer():
    d = cosine_distances(embed(["七十大寿，写给外公", "外公过寿，写几句话", "乔迁之喜，写给同事"], "ngrams"))
    assert d[0, 1] < d[0, 2]


def test_ngrams_put_english_texts_about_the_same_thing_nearer():
    texts = ["Birthday card for my grandmother", "birthdays: a poem for grandma", "A toast to the new house"]
    d = cosine_distances(embed(texts, "ngrams"))
    assert d[0, 1] < d[0, 2]


def test_ngrams_are_units_and_zero_where_there_is_no_letter():
    vectors = embed(["生日 grand", "!!! 123 a"], "ngrams")
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 0], abs=1e-6)


def test_ngrams_are_the_same_in_every_process():
    # hashed by crc32, not by Python's salted hash
    assert np.flatnonzero(embed(["生"], "ngrams")[0]).tolist() == [zlib.crc32("生".encode()) % 2048]


def test_a_misspelt_model_is_told_with_the_nearest_name():
    with pytest.raises(UserError, match="no embedding model is called 'miniml'") as error:
        module.check_embedding("miniml")
    assert "did you mean minilm?" in error.value.hint


def test_another_pooling_of_the_same_weights_has_a_cache_of_its_own(tmp_path):
    for pooling in ("mean", "cls"):
        folder = tmp_path / pooling
        (folder / "1_Pooling").mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"same")
        (folder / "1_Pooling" / "config.json").write_text(pooling)
    assert module._Cache(tmp_path / "mean").path != module._Cache(tmp_path / "cls").path
