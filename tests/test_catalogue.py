"""The catalogue of models, what is said when one is not to be had, and where a model runs."""

import dataclasses
import os

import pytest

from toolkit.engines.base import family_of
from toolkit.engines.load import load_engine
from toolkit.engines.placing import placement
from toolkit.errors import UserError
from toolkit.models.catalogue import Entry, catalogue, entry, fetch, fits, machine_memory, named_gguf, sha256
from toolkit.models.resolve import embedded_gguf
from toolkit.recipe import load_recipe

GB = 10**9


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FABLESMITH_CACHE", str(tmp_path))
    return tmp_path


def small(**more) -> Entry:
    return dataclasses.replace(entry("qwen3-4b"), size_gb=1e-6, **more)


def test_there_are_models_for_every_memory_and_of_several_families():
    assert 8 <= len(catalogue()) <= 12
    assert len({e.family for e in catalogue()}) >= 5
    assert min(e.memory_gb for e in catalogue()) < 1 < 20 <= max(e.memory_gb for e in catalogue())


def test_names_and_files_are_unique_and_sizes_rise():
    for field in ("name", "file"):
        values = [getattr(e, field) for e in catalogue()]
        assert len(set(values)) == len(values)
    assert [e.size_gb for e in catalogue()] == sorted(e.size_gb for e in catalogue())


@pytest.mark.parametrize("e", catalogue(), ids=lambda e: e.name)
def test_every_field_is_given_and_believable(e):
    for field in dataclasses.fields(Entry):
        value = getattr(e, field.name)
        assert type(value) is field.type or (field.type is float and type(value) is int), field.name
        assert value or field.name == "sha256", field.name
    assert e.role in ("writer", "judge", "both")
    assert family_of(e.file) == e.family
    assert e.quantisation in e.file
    assert e.file.endswith(".gguf")
    assert e.repo.startswith("pypi:") or e.repo.count("/") == 1
    assert 0.5 < 8 * e.size_gb / e.parameters < 8  # bits a weight
    assert e.active <= e.parameters
    assert e.size_gb < e.memory_gb < e.size_gb + 4


@pytest.mark.slow
def test_the_embedded_file_is_the_one_the_catalogue_names():
    embedded = entry("embedded")
    assert sha256(fetch(embedded)) == embedded.sha256
    assert fetch(embedded).stat().st_size / GB == pytest.approx(embedded.size_gb, rel=0.01)


def test_a_mistyped_name_gets_the_nearest():
    with pytest.raises(UserError, match="no model at qwen-4b") as caught:
        load_engine("qwen-4b")
    assert "did you mean qwen3-4b?" in caught.value.hint
    assert entry("Qwen3-4B").name == "qwen3-4b"


def test_offline_the_repo_the_file_and_its_place_are_named(cache):
    with pytest.raises(UserError, match=r"unsloth/Qwen3-4B.*Qwen3-4B-Instruct-2507-Q4_K_M\.gguf, 2\.5 GB") as caught:
        load_engine("qwen3-4b")
    assert str(cache / "gguf" / "Qwen3-4B-Instruct-2507-Q4_K_M.gguf") in caught.value.hint


def test_a_file_put_in_its_place_by_hand_is_taken(cache):
    place = small().path
    place.parent.mkdir()
    place.write_bytes(b"GGUF" * 250)
    assert fetch(small()) == place


def test_half_a_file_is_not_taken(cache):
    place = small().path
    place.parent.mkdir()
    place.write_bytes(b"GGUF" * 100)
    with pytest.raises(UserError, match="broke off"):
        fetch(small())


@pytest.fixture
def hub(cache, monkeypatch):
    """A hub that gives 1000 bytes, or raises what is put in `hub[0]`."""
    import huggingface_hub

    given = []

    def download(repo, file, local_dir):
        if given:
            raise given[0]
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / file).write_bytes(b"GGUF" * 250)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.delitem(os.environ, "HF_HUB_OFFLINE")
    return given


def test_a_file_is_fetched_to_its_place(hub):
    assert fetch(small()) == small().path
    assert small().path.stat().st_size == 1000


def test_a_file_with_another_checksum_is_refused_and_removed(hub):
    with pytest.raises(UserError, match="not the file the catalogue names"):
        fetch(small(sha256="0" * 64))
    assert not small().path.exists()


def test_a_hub_that_fails_is_reported_with_the_way_by_hand(hub):
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub.append(LocalEntryNotFoundError("no network\nmore"))
    with pytest.raises(UserError, match=r"from unsloth/.*: no network") as caught:
        fetch(small())
    assert "put it at" in caught.value.hint


def test_a_file_larger_than_the_disk_is_not_begun(hub):
    with pytest.raises(UserError, match="MB free") as caught:
        fetch(dataclasses.replace(small(), size_gb=1e9))
    assert "FABLESMITH_CACHE" in caught.value.hint


def test_a_model_fits_whole_on_the_gpu_or_whole_in_ram():
    e = dataclasses.replace(small(), memory_gb=8)
    assert fits(e, ram_gb=16, vram_gb=0)
    assert fits(e, ram_gb=4, vram_gb=8)
    assert not fits(e, ram_gb=9, vram_gb=7.9)


def test_this_machine_has_memory():
    ram, vram = machine_memory()
    assert ram > 0.1
    assert vram >= 0


@pytest.mark.parametrize(
    ("on", "size", "supports", "free", "layers"),
    [
        ("cpu", GB, True, 24 * GB, 0),
        ("cpu", GB, False, None, 0),
        ("gpu", 30 * GB, True, GB, -1),  # asked for: llama.cpp says when it does not fit
        ("auto", GB, False, None, 0),
        ("auto", 10 * GB, True, 12 * GB, -1),
        ("auto", 10 * GB, True, 12 * GB - 1, 0),
        ("auto", 10 * GB, True, None, -1),
    ],
)
def test_where_a_judge_runs(on, size, supports, free, layers):
    assert placement(on, "auto", size, supports, free) == (layers, False)


@pytest.mark.parametrize(
    ("on", "experts", "free", "placed"),
    [
        ("auto", "auto", 24, (-1, False)),  # 18 GB and a fifth: all of it fits
        ("auto", "auto", 16, (-1, True)),  # the 2.5 GB beside the experts fit
        ("auto", "auto", 2, (0, False)),  # not even those
        ("gpu", "auto", 2, (-1, True)),  # asked for the GPU: as little of it as can be
        ("auto", "none", 24, (-1, True)),
        ("auto", "none", 2, (-1, True)),
        ("auto", "all", 2, (-1, False)),
        ("cpu", "auto", 24, (0, False)),
        ("cpu", "none", 24, (0, True)),
    ],
)
def test_where_a_mixture_of_18_gigabytes_runs(on, experts, free, placed):
    assert placement(on, experts, 18 * GB, True, free * GB, lambda: int(2.5 * GB)) == placed


def test_a_dense_model_has_no_experts_to_keep_in_memory():
    assert placement("auto", "none", 18 * GB, True, 24 * GB) == (-1, False)
    assert placement("auto", "none", 18 * GB, True, 2 * GB) == (0, False)


def test_a_files_header_is_read_only_where_it_matters():
    def read():
        raise AssertionError("the header was read")

    assert placement("auto", "auto", 18 * GB, True, 24 * GB, read) == (-1, False)
    assert placement("auto", "auto", 18 * GB, False, None, read) == (0, False)


def test_experts_on_a_gpu_that_is_not_to_be_used_are_refused():
    with pytest.raises(UserError, match="leaves no GPU"):
        placement("cpu", "all", GB, True, 24 * GB)
    with pytest.raises(UserError, match="without a GPU"):
        placement("auto", "all", GB, False, None)
    with pytest.raises(UserError, match="auto, all, none"):
        load_engine("embedded", gpu_experts="some")


def test_a_gpu_without_a_build_for_one_is_refused_with_the_way_to_get_it():
    with pytest.raises(UserError, match="without a GPU") as caught:
        placement("gpu", "auto", GB, False, None)
    assert "CMAKE_ARGS" in caught.value.hint


def test_an_unknown_place_to_run_is_refused():
    with pytest.raises(UserError, match="auto, cpu, gpu"):
        load_engine("embedded", on="tpu")


def test_a_models_gguf_is_a_file_or_a_name_of_the_catalogue(tmp_path):
    assert named_gguf("") is None
    assert named_gguf("embedded") == embedded_gguf()
    (tmp_path / "mine.gguf").write_bytes(b"GGUF")
    assert named_gguf(str(tmp_path / "mine.gguf")) == tmp_path / "mine.gguf"
    with pytest.raises(UserError, match="none in the catalogue"):
        named_gguf("qwen3-30b-a3c")
    assert load_recipe("quickstart", ["model.gguf=qwen3-30b-a3b"]).model.gguf == "qwen3-30b-a3b"
    with pytest.raises(UserError, match="no file at"):
        load_recipe("quickstart", ["model.gguf=./nowhere.gguf"])
