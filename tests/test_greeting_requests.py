"""Requests and labelled greetings: any known format, clear errors, the shipped ones, and no leakage between sides."""

import json
from collections import Counter

import pytest

from toolkit.errors import UserError
from toolkit.greeting.form import broken, length_of
from toolkit.greeting.requests import (
    DATA,
    FLAWS,
    check_split,
    leaks,
    read_labelled,
    read_requests,
    shipped,
)
from toolkit.greeting.writing import answer_tokens, as_request, greet_prompt, request_in
from toolkit.records import Labelled, PreferencePair, Request, side_of

there = pytest.mark.skipif(not (DATA / "labelled.jsonl").is_file(), reason="the shipped greetings are not here yet")


def file(tmp_path, *rows, name="own.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows) + "\n")
    return path


# ---- requests


def test_a_request_keeps_its_fields(tmp_path):
    row = {"id": "a", "text": "七十大寿，写给外公", "occasion": "birthday", "receiver": "外公", "relation": "外孙"}
    row |= {"tone": "warm", "length": "long", "language": "zh"}
    assert read_requests(file(tmp_path, row)).rows == [Request(**row)]


def test_language_and_length_are_guessed_where_absent(tmp_path):
    rows = read_requests(file(tmp_path, {"text": "七十大寿，写给外公"}, {"text": "a short note for Tom"})).rows
    assert [(r.language, r.length) for r in rows] == [("zh", "medium"), ("en", "short")]


@pytest.mark.parametrize(
    "row",
    [
        {"request": "七十大寿"},
        {"messages": [{"role": "user", "content": "七十大寿"}]},
        {"conversations": [{"from": "human", "value": "七十大寿"}]},
        {"instruction": "七十大寿", "output": "祝您长寿。"},
        {"prompt": "七十大寿", "chosen": "a", "rejected": "b"},
    ],
)
def test_the_users_turn_of_any_format_is_a_request(tmp_path, row):
    assert read_requests(file(tmp_path, row)).rows[0].text == "七十大寿"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"text": ""}, "text is empty"),
        ({"text": 3}, "text must be a text, not int"),
        ({"text": "a", "length": "tiny"}, "length 'tiny' is not known; one of short, medium, long"),
        ({"text": "a", "language": "fr"}, "language 'fr' is not known"),
        ({"text": "First!"}, "the same request as 'one'"),
        ({"id": "one", "text": "another"}, "id 'one' occurs twice"),
        ({"words": "a"}, "of no known format"),
        ("{", "not valid JSON"),
    ],
)
def test_a_bad_request_is_named_with_its_line(tmp_path, row, why):
    path = file(tmp_path, {"id": "one", "text": "first"}, row)
    with pytest.raises(UserError, match=r"own\.jsonl:2: ") as error:
        read_requests(path)
    assert why in str(error.value)
    assert len(read_requests(path, skip_bad_lines=True).bad) == 1


# ---- labelled greetings


def test_a_labelled_row_gets_its_text_from_the_request(tmp_path):
    known = [Request("z1", "七十大寿", language="zh")]
    path = file(tmp_path, {"request_id": "z1", "good": "好棋。", "bad": "快乐。", "flaw": "generic"})
    assert read_labelled(path, requests=known).rows == [Labelled("z1", "七十大寿", "好棋。", "快乐。", "generic", "zh")]


def test_a_labelled_row_with_text_alone_has_the_id_that_its_request_has(tmp_path):
    request = read_requests(file(tmp_path, {"text": "for Tom"})).rows[0]
    row = {"request": "For Tom.", "good": "a b", "bad": "c d"}
    assert read_labelled(file(tmp_path, row), requests=[request]).rows[0].request_id == request.id
    assert read_labelled(file(tmp_path, row | {"request": "for Tom"})).rows[0].request_id == request.id


def test_preference_pairs_are_labelled_greetings(tmp_path):
    (row,) = read_labelled(file(tmp_path, {"prompt": "for Tom", "chosen": "a b", "rejected": "c d"})).rows
    assert (row.request, row.good, row.bad) == ("for Tom", "a b", "c d")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"good": "a", "bad": "b"}, "neither `request` nor `request_id`"),
        ({"request_id": "nobody", "good": "a", "bad": "b"}, "no request has the id 'nobody'"),
        ({"request": "r", "good": "a"}, "no `bad` in this line"),
        ({"request": "r", "good": "a", "bad": " "}, "bad is empty"),
        ({"request": "r", "good": "A b!", "bad": "a b"}, "good and bad are the same text"),
        ({"request": "r", "good": "a", "bad": "b", "flaw": "ugly"}, "flaw 'ugly' is not known; one of generic"),
        ({"request_id": "z1", "request": "other", "good": "a", "bad": "b"}, "reads otherwise"),
        ({"text": "for Tom"}, "no `good` and `bad` in this line"),
        ({"prompt": "for Tom", "chosen": "a"}, "no good and bad greeting"),
    ],
)
def test_a_bad_labelled_line_is_named(tmp_path, row, why):
    with pytest.raises(UserError, match=r"own\.jsonl:1: ") as error:
        read_labelled(file(tmp_path, row), requests=[Request("z1", "七十大寿")])
    assert why in str(error.value)


# ---- leakage


def test_sides_that_share_nothing_pass():
    check_split([Request("a", "for Tom"), Labelled("a", "for Tom", "x y", "z")], [Request("b", "for Ann")])


def test_the_same_request_on_two_sides_is_refused():
    with pytest.raises(UserError, match="request of 'a' and request of 'b'"):
        check_split([Request("a", "生日快樂，寫給外公")], [Labelled("b", "生日快乐，写给外公！", "好", "坏")])


def test_the_same_answer_on_two_sides_is_refused_whatever_its_label():
    train = [PreferencePair("p", "Many happy returns!", "other", premise_id="a")]
    with pytest.raises(UserError, match="answer of 'a' and answer of 'b'"):
        check_split(train, [Labelled("b", "q", "fine", "many happy returns")])


def test_a_pairs_prompt_leaks_by_the_request_in_it():
    pair = PreferencePair(greet_prompt("七十大寿，写给外公")[0]["content"], "x", "y", premise_id="a")
    with pytest.raises(UserError, match="request of 'a' and request of 'b'"):
        check_split([pair], [Request("b", "七十大寿，写给外公", language="zh")])


@pytest.mark.parametrize("text", ["七十大寿，写给外公", "七十大壽，寫給外公", "toast for Ann\n\nshort"])
def test_the_request_is_found_again_in_what_was_asked(text):
    for script in ("", "simplified", "traditional"):
        assert request_in(greet_prompt(text, script)[0]["content"]) == text
    assert request_in(text) == text


def test_leaks_lists_every_one_so_that_they_can_be_left_out():
    train = [Labelled("a", "r", "one", "two")]
    assert [x[2] for x in leaks(train, [Labelled("b", "s", "two", "one")])] == ["one", "two"]


def test_answers_of_one_request_on_its_own_side_are_no_leak():
    assert leaks([Request("a", "one")], [Labelled("b", "two", "one", "three")]) == []


# ---- shipped


@there
def test_the_shipped_greetings_are_enough_in_both_languages():
    requests, labelled = shipped(("zh", "en"))
    assert len(requests) >= 400
    assert len(labelled) >= 150
    assert min(Counter(r.language for r in requests).values()) >= 150
    assert min(Counter(x.language for x in labelled).values()) >= 75


@there
def test_a_language_can_be_left_out():
    requests, labelled = shipped(("zh",))
    assert {r.language for r in requests} == {x.language for x in labelled} == {"zh"}


@there
def test_no_shipped_text_stands_on_two_sides():
    requests, labelled = shipped(("zh", "en"))
    by_side = {s: [x for x in [*requests, *labelled] if x.side == s] for s in ("train", "validate", "test")}
    check_split(by_side["train"], by_side["validate"] + by_side["test"])
    check_split(by_side["validate"], by_side["test"])
    assert all(sum(isinstance(x, Labelled) for x in rows) >= 20 for rows in by_side.values())


@there
def test_the_shipped_greetings_have_good_form():
    requests, labelled = shipped(("zh", "en"))
    known = {r.id: r for r in requests}
    wrong = [(x.request_id, b) for x in labelled for t in (x.good, x.bad) if (b := broken(t, known[x.request_id]))]
    assert wrong == []


@there
def test_length_does_not_tell_good_from_bad():
    _, labelled = shipped(("zh", "en"))
    for language in ("zh", "en"):
        longer = [length_of(x.good, language) - length_of(x.bad, language) for x in labelled if x.language == language]
        assert 0.4 <= sum((d > 0) + (d == 0) / 2 for d in longer) / len(longer) <= 0.6


@there
def test_every_kind_of_flaw_occurs_and_generic_most():
    _, labelled = shipped(("zh", "en"))
    kinds = Counter(x.flaw for x in labelled)
    assert set(kinds) == set(FLAWS)
    assert kinds.most_common(1)[0][0] == "generic"


def test_missing_shipped_files_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr("toolkit.greeting.requests.DATA", tmp_path)
    with pytest.raises(UserError, match="no file at"):
        shipped(("zh",))


# ---- how it is asked


def test_the_prompt_names_the_length_in_the_unit_of_the_language():
    assert "10到40字" in greet_prompt(Request("a", "七十大寿", length="short", language="zh"))[0]["content"]
    assert "50 to 85 words" in greet_prompt(Request("a", "for Tom", length="long"))[0]["content"]


def test_a_traditional_request_is_asked_in_traditional_and_left_as_it_is():
    asked = greet_prompt("七十大壽，寫給外公，台灣的周末")[0]["content"]
    assert "祝福語" in asked
    assert asked.endswith("七十大壽，寫給外公，台灣的周末")


def test_another_script_can_be_asked_for():
    assert "祝福語" in greet_prompt("七十大寿，写给外公", "traditional")[0]["content"]
    assert "简体" in greet_prompt("七十大壽，寫給外公", "simplified")[0]["content"]


def test_a_text_is_asked_like_its_request():
    assert greet_prompt("toast for Ann, short") == greet_prompt(as_request("toast for Ann, short"))


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("七十大寿，写给外公", "medium"),
        ("给班长的成长祝福", "medium"),
        ("闺蜜生日，短一些", "short"),
        ("給外公的生日祝福，簡短", "short"),
        ("婚礼致辞，写长一点", "long"),
        ("a short trip for my long-distance friend", "medium"),
        ("for Ann, keep it short", "short"),
        ("a longer message for Ann", "long"),
    ],
)
def test_the_length_is_guessed_from_words_about_length(text, length):
    assert as_request(text).length == length


@pytest.mark.parametrize(("text", "why"), [("  ", "is empty"), ("a" * 501, "has 501 characters")])
def test_a_request_that_is_none_is_refused(text, why):
    with pytest.raises(UserError, match=why):
        as_request(text)


def test_there_is_room_for_the_longest_fine_answer():
    assert answer_tokens(Request("a", "x", length="long")) >= 1.5 * 85
    assert side_of("a") in ("train", "validate", "test")
