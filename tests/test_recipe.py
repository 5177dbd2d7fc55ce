"""A recipe is checked before anything loads: file, line, key, value, and what is allowed."""

import re

import pytest

from toolkit.errors import UserError
from toolkit.recipe import find_recipe, load_recipe, recipes_folder

SHIPPED = sorted(p.stem for p in recipes_folder().glob("*.yaml"))


@pytest.fixture
def recipe(tmp_path):
    def write(text, *overrides):
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(str(path), overrides)

    return write


def refused(recipe, text, *overrides):
    with pytest.raises(UserError) as error:
        recipe(text, *overrides)
    return str(error.value), error.value.hint


def test_an_empty_file_is_a_recipe_of_defaults(recipe):
    found = recipe("")
    assert (found.name, found.dpo.beta) == ("mine", 0.1)


def test_what_a_recipe_says_is_what_is_read(recipe):
    found = recipe("seed: 7\ndpo:\n  lora: {r: 4}\ncandidates: {temperatures: [0.5, 1]}")
    assert (found.seed, found.dpo.lora.r, found.candidates.temperatures) == (7, 4, (0.5, 1.0))


@pytest.mark.parametrize(
    ("text", "line", "key", "near"),
    [
        ("seed: 1\ndpo:\n  bta: 0.1", 3, "dpo.bta", "dpo.beta"),
        ("seed: 1\ncandidatse: {}", 2, "candidatse", "candidates"),
        ("dpo:\n  lora:\n    r: 4\n    alhpa: 8", 4, "dpo.lora.alhpa", "dpo.lora.alpha"),
    ],
)
def test_an_unknown_key_is_named_with_file_line_and_nearest_key(recipe, text, line, key, near):
    message, hint = refused(recipe, text)
    assert re.search(rf"mine\.yaml:{line}: {re.escape(key)}: unknown key", message)
    assert hint == f"did you mean {near}?"


def test_a_key_like_no_other_gets_the_list_of_keys(recipe):
    _, hint = refused(recipe, "export:\n  zzz: 1")
    assert hint == "known here: quantisation, merge"


@pytest.mark.parametrize(
    ("text", "expected", "value"),
    [
        ("\ndpo: {beta: high}", "expected a number", "'high'"),
        ("\ndpo: {batch: 1.5}", "expected a whole number", "1.5"),
        ("\ndpo: {batch: true}", "expected a whole number", "True"),
        ("\ndpo: {beta: true}", "expected a number", "True"),
        ("\nmodel: {four_bit: 1}", "expected true or false", "1"),
        ("\nmodel: {id: 3}", "expected a text", "3"),
        ("\nmodel: {id: }", "expected a text", "None"),
        ("\ndpo: 3", "expected a section", "3"),
        ("\ncandidates: {temperatures: 0.8}", "expected a list of numbers", "0.8"),
        ("\ncandidates: {temperatures: []}", "expected a list of numbers", r"\[\]"),
        ("\npremises: {languages: [1]}", "expected a text", "1"),
    ],
)
def test_a_wrong_type_is_named_with_line_and_value(recipe, text, expected, value):
    message, _ = refused(recipe, text)
    assert re.search(rf"mine\.yaml:2: .*: {expected}, got {value}$", message)


@pytest.mark.parametrize(
    ("text", "value", "allowed"),
    [
        ("dpo: {beta: 0}", "0.0", "above 0"),
        ("dpo: {lr: 1.5}", "1.5", "above 0 and at most 1"),
        ("candidates: {per_premise: 1}", "1", "at least 2 and at most 16"),
        ("candidates: {temperatures: [0.5, 9]}", "9.0", "at least 0 and at most 5"),
        ("dpo: {lora: {r: 0}}", "0", "at least 1 and at most 512"),
        ("seed: -1", "-1", "at least 0"),
        ("dpo: {beta: .nan}", "nan", "above 0"),
        ("dpo: {epochs: .inf}", "inf", "above 0"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(recipe, text, value, allowed):
    message, hint = refused(recipe, text)
    assert re.search(rf"mine\.yaml:1: .*: {re.escape(value)} is out of range", message)
    assert allowed in hint


def test_a_word_that_is_not_among_the_allowed_gets_the_nearest(recipe):
    message, hint = refused(recipe, "export: {quantisation: Q8_O}")
    assert "mine.yaml:1: export.quantisation: 'Q8_O' is not allowed" in message
    assert hint.startswith("did you mean Q8_0?")
    assert "Q4_K_M" in hint


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("premises", "file"),
        ("premises", "plots"),
        ("pairs", "file"),
        ("model", "gguf"),
        ("ratings", "rater"),
        ("evaluate", "judge"),
    ],
)
def test_a_file_that_is_not_there_is_named_by_its_path(recipe, tmp_path, section, key):
    message, _ = refused(recipe, f"seed: 1\n{section}: {{{key}: {tmp_path}/gone.gguf}}")
    assert f"mine.yaml:2: {section}.{key}: no file at {tmp_path}/gone.gguf" in message


def test_a_key_given_twice_is_refused(recipe):
    message, _ = refused(recipe, "dpo:\n  beta: 0.1\n  beta: 0.2")
    assert "mine.yaml:3: dpo.beta is given twice" in message


@pytest.mark.parametrize(
    "text", ["seed: 1\ndpo: {beta: 0.1", "seed: 1\nseed : : 2", "\n- a\nb: 1"], ids=["open", "colons", "mixed"]
)
def test_invalid_yaml_is_named_by_line(recipe, text):
    message, _ = refused(recipe, text)
    assert re.search(r"mine\.yaml:[23]: not valid YAML", message)


@pytest.mark.parametrize("text", ["seed: !mine 3", "name: 2026-99-99", "seed: !!int x"])
def test_a_value_that_yaml_cannot_make_is_refused(recipe, text):
    message, _ = refused(recipe, text)
    assert "mine.yaml:1" in message


@pytest.mark.parametrize("text", ["- a\n- b", "hello"])
def test_a_file_that_is_no_mapping_is_refused(recipe, text):
    message, _ = refused(recipe, text)
    assert "mine.yaml: a recipe is a mapping" in message


def test_a_recipe_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"about: Am\xe1lia")
    with pytest.raises(UserError, match="not UTF-8"):
        load_recipe(str(path))


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "1E-4"])
def test_every_way_to_write_a_small_number_is_read_as_a_number(recipe, text):
    assert recipe(f"dpo: {{lr: {text}}}").dpo.lr == 1e-4


# ---- --set


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("dpo.beta=0.2", lambda r: r.dpo.beta == 0.2),
        ("dpo.lr=1e-4", lambda r: r.dpo.lr == 1e-4),
        ("dpo.lora.r=4", lambda r: r.dpo.lora.r == 4),
        ("seed=9", lambda r: r.seed == 9),
        ("candidates.temperatures=[0.1, 0.2]", lambda r: r.candidates.temperatures == (0.1, 0.2)),
        ("model.four_bit=true", lambda r: r.model.four_bit is True),
        ("about=a=b", lambda r: r.about == "a=b"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_an_override_wins_over_the_file(recipe, override, value):
    assert value(recipe("dpo: {beta: 0.1, lora: {r: 16, alpha: 8}}\nseed: 1", override))


def test_an_override_leaves_the_other_settings_of_its_section(recipe):
    found = recipe("dpo: {epochs: 5, lora: {alpha: 8}}", "dpo.lora.r=4")
    assert (found.dpo.epochs, found.dpo.lora.alpha) == (5, 8)


def test_nothing_after_the_equals_sign_is_an_empty_text(recipe):
    assert recipe("model: {gguf: qwen3-4b}", "model.gguf=").model.gguf == ""


def test_the_last_of_two_overrides_wins(recipe):
    assert recipe("", "seed=2", "seed=3").seed == 3


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("dpo.bta=1", "--set dpo.bta: unknown key"),
        ("dpoo.beta=1", "--set dpoo"),
        ("dpo.beta=high", "--set dpo.beta: expected a number, got 'high'"),
        ("dpo.beta=-1", "--set dpo.beta: -1.0 is out of range"),
        ("dpo={beta: -1}", "--set dpo"),
        ("dpo", "--set dpo: expected section.key=value"),
        ("=3", "--set =3: expected section.key=value"),
        ("seed.x=3", "--set seed.x=3: seed is no section"),
        ("dpo.beta=[", "is not valid YAML"),
        ("name=2026-99-99", "--set name"),
        ("premises.file=gone.jsonl", "--set premises.file: no file at"),
    ],
)
def test_a_bad_override_is_named_as_given_on_the_command_line(recipe, override, says):
    message, _ = refused(recipe, "seed: 1\ndpo: {beta: 0.1}", override)
    assert says in message
    assert message.startswith("--set")


# ---- names


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_loads_and_tells_what_it_needs(name):
    found = load_recipe(name)
    assert found.name == name
    assert found.about
    assert found.memory


def test_the_quickstart_is_shipped():
    assert find_recipe("quickstart").is_file()


def test_an_unknown_recipe_gets_the_nearest_name():
    with pytest.raises(UserError, match="no recipe at quickstrat") as error:
        find_recipe("quickstrat")
    assert error.value.hint == "did you mean quickstart?"


def test_a_name_like_no_recipe_gets_the_list():
    with pytest.raises(UserError) as error:
        find_recipe("zzz")
    assert all(name in error.value.hint for name in SHIPPED)


def test_divpo_on_own_pairs_is_refused_because_nothing_is_left_to_choose(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"pairs\.select: divpo chooses among candidates"):
        load_recipe("quickstart", [f"pairs.file={tmp_path / 'pairs.jsonl'}", "pairs.select=divpo"])


def test_an_unknown_kind_of_deviation_is_refused_with_those_there_are():
    with pytest.raises(UserError, match="'meaning' is not allowed") as error:
        load_recipe("quickstart", ["deviation.kinds=[meaning]"])
    assert "semantic, style, words" in error.value.hint
