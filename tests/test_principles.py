"""Principles are a readable file: ten rules at most, refused with the line that is wrong."""

import pytest

from toolkit.errors import UserError
from toolkit.greeting.principles import LONGEST, MOST, Principles, diff, fault, load, shipped

HEAD = "# Judging principles\n\nversion: 3\nlanguage: en\n\n"


def write(path, text):
    file = path / "rules.md"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_saved_list_is_loaded_as_it_was(tmp_path):
    one = Principles(("Be kind.", "不要套话。"), 4, "en", "Judging principles", "round 2: accuracy 60 % → 70 %")
    one.save(tmp_path / "a.md")
    assert load(tmp_path / "a.md") == one
    assert [p.name for p in tmp_path.iterdir()] == ["a.md"]


def test_text_numbers_the_rules():
    assert Principles(("A", "B"), 1, "en", "x").text == "1. A\n2. B"


@pytest.mark.parametrize("kind", ["detector", "generator"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_shipped_lists_stand_and_leave_room_for_a_rule(kind, language):
    found = shipped(kind, language)
    assert (found.language, found.version) == (language, 1)
    assert len(found.rules) < MOST
    assert fault(found.rules) == ""


def test_a_language_without_a_list_starts_from_english():
    assert shipped("detector", "fr") == shipped("detector", "en")


@pytest.mark.parametrize(
    ("body", "line", "what"),
    [
        ("".join(f"{i}. Rule number {i}.\n" for i in range(1, 12)), 16, "more than 10 rules"),
        ("1. One.\n2.\n", 7, "rule 2 is empty"),
        ("1. One thing.\n2. one thing!\n", 7, "the same as rule 1"),
        (f"1. {'x' * (LONGEST + 1)}\n", 6, "301 characters"),
        ("1. One.\nand so on\n", 7, "'and so on'"),
        ("", 5, "no rule"),
    ],
)
def test_a_bad_list_is_refused_with_its_line(tmp_path, body, line, what):
    with pytest.raises(UserError, match=rf"rules\.md:{line}: .*{what}"):
        load(write(tmp_path, HEAD + body))


@pytest.mark.parametrize(
    ("head", "what"),
    [("language: en\n", "no version"), ("version: 1\n", "no language"), ("version: new\nlanguage: en\n", "'new'")],
)
def test_a_bad_head_is_refused(tmp_path, head, what):
    with pytest.raises(UserError, match=what):
        load(write(tmp_path, f"# T\n{head}\n1. One.\n"))


def test_a_file_that_is_not_there_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.md"):
        load(tmp_path / "nowhere.md")


def test_a_diff_shows_only_what_changed():
    old = Principles(("A", "B", "C"), 1, "en", "Rules")
    lines = diff(old, Principles(("A", "C", "D"), 2, "en", "Rules")).splitlines()
    assert lines[:2] == ["--- Rules, version 1", "+++ Rules, version 2"]
    assert lines[3:] == [" A", "-B", " C", "+D"]


def test_a_diff_of_equal_lists_is_empty():
    one = Principles(("A",), 1, "en", "Rules")
    assert diff(one, one) == ""
