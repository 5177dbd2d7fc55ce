"""What flows: our own files, and everybody else's formats."""

import json

import pytest
from conftest import PLOTS

from toolkit.errors import UserError
from toolkit.records import (
    AspectRatings,
    Plot,
    PreferencePair,
    Premise,
    append_jsonl,
    build,
    dump,
    guess_language,
    join_sentences,
    languages_of,
    read_jsonl,
    read_pairs,
    read_plots,
    read_premises,
    split_of,
    text_id,
    write_jsonl,
    written_in,
)

ASK, GOOD, BAD = "A lighthouse keeper.", "She lit the lamp.", "It was a lamp."


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def save(tmp_path, *rows, name="data.jsonl"):
    path = tmp_path / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in rows))
    return path


# one row of each format that has a better and a worse answer
PAIR_ROWS = {
    "texts": ("prompt/chosen/rejected", {"prompt": ASK, "chosen": GOOD, "rejected": BAD}),
    "message lists": (
        "prompt/chosen/rejected",
        {"prompt": [user(ASK)], "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]},
    ),
    "TRL implicit prompt": (
        "prompt/chosen/rejected",
        {"chosen": [user(ASK), assistant(GOOD)], "rejected": [user(ASK), assistant(BAD)]},
    ),
    "messages with rejected": ("messages", {"messages": [user(ASK), assistant(GOOD)], "rejected": BAD}),
    "ShareGPT": (
        "sharegpt",
        {
            "conversations": [{"from": "human", "value": ASK}],
            "chosen": {"from": "gpt", "value": GOOD},
            "rejected": {"from": "gpt", "value": BAD},
        },
    ),
    "Alpaca": ("alpaca", {"instruction": ASK, "chosen": GOOD, "rejected": BAD}),
    "Alpaca output list": ("alpaca", {"instruction": ASK, "output": [GOOD, BAD]}),
}

# one row of each format that has one answer
ANSWER_ROWS = {
    "prompt/chosen": ("prompt/chosen/rejected", {"prompt": ASK, "chosen": GOOD}),
    "messages": ("messages", {"messages": [{"role": "system", "content": "Write."}, user(ASK), assistant(GOOD)]}),
    "ShareGPT": (
        "sharegpt",
        {"conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": GOOD}]},
    ),
    "Alpaca": ("alpaca", {"instruction": ASK, "input": "", "output": GOOD}),
}


@pytest.mark.parametrize(("format", "row"), PAIR_ROWS.values(), ids=PAIR_ROWS)
def test_pairs_are_read_from_every_format(tmp_path, format, row):
    found = read_pairs(save(tmp_path, row))
    (pair,) = found.rows
    assert (found.format, pair.prompt, pair.chosen, pair.rejected) == (format, ASK, GOOD, BAD)


@pytest.mark.parametrize(("format", "row"), [*ANSWER_ROWS.values(), *PAIR_ROWS.values()])
def test_plots_are_the_answers_of_every_format(tmp_path, format, row):
    found = read_plots(save(tmp_path, row))
    (plot,) = found.rows
    assert (found.format, plot.text, plot.premise) == (format, GOOD, ASK)


@pytest.mark.parametrize(("format", "row"), [*ANSWER_ROWS.values(), *PAIR_ROWS.values()])
def test_premises_are_what_the_user_asked_in_every_format(tmp_path, format, row):
    found = read_premises(save(tmp_path, row))
    (premise,) = found.rows
    assert (found.format, premise.text) == (format, ASK)


def test_alpaca_input_follows_the_instruction(tmp_path):
    path = save(tmp_path, {"instruction": "Write a plot.", "input": ASK, "output": GOOD})
    assert read_premises(path).rows[0].text == f"Write a plot.\n\n{ASK}"


def test_our_premises_keep_what_is_known_of_them(tmp_path):
    row = {"id": "p1", "text": ASK, "genre": "fable", "tone": "wry", "setting": "sea"}
    assert read_premises(save(tmp_path, row)).rows == [Premise("p1", ASK, "fable", "wry", "sea", "en")]


def test_our_plots_keep_sentences_turn_and_characters(tmp_path):
    row = {"id": "x", "premise_id": "p1", "sentences": ["Ann ran.", "Ann won."], "turn": [1], "characters": ["Ann"]}
    (plot,) = read_plots(save(tmp_path, row)).rows
    assert plot == Plot(
        "x", "Ann ran. Ann won.", "p1", sentences=("Ann ran.", "Ann won."), turn=(1,), characters=("Ann",)
    )


def test_a_premise_without_a_language_gets_the_one_it_is_in(tmp_path):
    rows = read_premises(save(tmp_path, {"text": "灯塔看守人。"}, {"text": ASK})).rows
    assert [p.language for p in rows] == ["zh", "en"]


def test_a_premise_without_an_id_gets_one_from_its_text(tmp_path):
    assert read_premises(save(tmp_path, {"text": ASK})).rows[0].id == text_id(ASK, "p")


def test_a_file_may_be_one_json_list(tmp_path):
    path = save(tmp_path, json.dumps([{"text": "One."}, {"text": "Two."}], indent=2), name="data.json")
    assert [p.text for p in read_premises(path).rows] == ["One.", "Two."]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"text": ASK}).encode())
    assert read_premises(path).rows[0].text == ASK


def test_blank_lines_are_passed_over_and_still_counted(tmp_path):
    path = save(tmp_path, {"text": "One."}, "", "{")
    with pytest.raises(UserError, match=r"data\.jsonl:3: "):
        read_premises(path)


BAD_LINES = {
    "not JSON": ("{oops", "not valid JSON"),
    "not an object": ("3", "not a JSON object"),
    "empty text": ({"text": "  "}, "text is empty"),
    "text of a wrong type": ({"text": 5}, "must be a text"),
    "no known format": ({"colour": "red"}, "of no known format"),
    "another format": (ANSWER_ROWS["messages"][1], "the lines before are ours"),
    "an id twice": ({"id": "one", "text": "Again."}, "occurs twice"),
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, reason):
    path = save(tmp_path, {"id": "one", "text": "One."}, line)
    with pytest.raises(UserError, match=reason) as error:
        read_premises(path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert "--skip-bad-lines" in error.value.hint


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.values(), ids=BAD_LINES)
def test_skip_bad_lines_keeps_the_rest_and_lists_the_bad(tmp_path, line, reason):
    path = save(tmp_path, {"id": "one", "text": "One."}, line, {"id": "two", "text": "Two."})
    found = read_premises(path, skip_bad_lines=True)
    assert [p.id for p in found.rows] == ["one", "two"]
    (bad,) = found.bad
    assert bad.startswith(f"{path}:2: ")
    assert reason in bad


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user(ASK)]},
        {"prompt": ASK},
        {"instruction": ASK},
        {"conversations": [{"from": "human", "value": ASK}]},
    ],
)
def test_a_conversation_without_an_answer_is_no_plot(tmp_path, row):
    with pytest.raises(UserError, match=r"data\.jsonl:1: "):
        read_plots(save(tmp_path, row))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": ASK, "chosen": GOOD}, "no rejected answer"),
        ({"prompt": ASK, "chosen": GOOD, "rejected": GOOD}, "the same text"),
        ({"prompt": ASK, "rejected": BAD}, "chosen"),
        ({"messages": [user(ASK)], "rejected": BAD}, "answer"),
        ({"text": GOOD}, "pair"),
    ],
    ids=["no rejected", "the same", "no chosen", "no answer", "a plot"],
)
def test_a_line_that_is_no_pair_is_refused_with_the_reason(tmp_path, row, reason):
    with pytest.raises(UserError, match=rf"data\.jsonl:1: .*{reason}"):
        read_pairs(save(tmp_path, row))


@pytest.mark.parametrize("turns", [[], "hello", [{"role": "system", "content": "Write."}], ["hello"]])
def test_messages_without_a_user_turn_are_a_bad_line(tmp_path, turns):
    with pytest.raises(UserError, match=r"data\.jsonl:1: "):
        read_premises(save(tmp_path, {"messages": turns}))


@pytest.mark.parametrize(
    "row", [{"sentences": ["A.", "B."], "turn": [2]}, {"sentences": [1]}, {"text": "A.", "sentences": "A."}]
)
def test_annotations_that_do_not_fit_the_text_are_a_bad_line(tmp_path, row):
    with pytest.raises(UserError, match=r"data\.jsonl:1: "):
        read_plots(save(tmp_path, row))


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_an_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match="no usable line"):
        read_premises(path)


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes('{"text": "Amália"}'.encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_premises(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no file at .*gone\.jsonl"):
        read_plots(tmp_path / "gone.jsonl")


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_plots(tmp_path)


def test_a_broken_json_list_is_named_by_line(tmp_path):
    path = save(tmp_path, '[{"text": "One."},\n oops]', name="data.json")
    with pytest.raises(UserError, match=r"data\.json:2: not valid JSON"):
        read_premises(path)


# ---- our own files

RECORDS = [
    Premise("p1", "灯塔 🗼", genre="fable"),
    Plot("x", "One.\nTwo.", "p1", sentences=("One.", "Two."), turn=(1,), sampling={"seed": 3}),
    AspectRatings("x", {"tone": 4.5}, merits={"tone": "calm"}, rater="r"),
    PreferencePair("ask", "good", "bad", margin=0.5, chosen_scores={"tone": 5.0}),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_a_record_survives_dump_and_build(record):
    assert build(type(record), json.loads(dump(record))) == record


def test_fields_at_their_default_are_not_written():
    assert json.loads(dump(Premise("p1", "A."))) == {"id": "p1", "text": "A."}


def test_unknown_keys_are_ignored_when_reading_our_files():
    assert build(Premise, {"id": "p1", "text": "A.", "later": 1}) == Premise("p1", "A.")


@pytest.mark.parametrize("gap", ["\n", "\u2028", "\u2029", "\x85", "\x0b", "\x1c"], ids=ascii)
def test_a_text_with_any_line_separator_stays_one_record(tmp_path, gap):
    path, plot = tmp_path / "plots.jsonl", Plot("x", f"One.{gap}Two.")
    write_jsonl(path, [plot])
    assert read_jsonl(path, Plot) == [plot]


def test_a_torn_last_line_is_dropped_and_the_rest_kept(tmp_path):
    path = tmp_path / "plots.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3')
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]


def test_appending_after_a_torn_line_leaves_a_whole_file(tmp_path):
    path = tmp_path / "plots.jsonl"
    path.write_text('{"a": 1}\n{"a": 2')
    read_jsonl(path)
    append_jsonl(path, [{"a": 2}])
    append_jsonl(path, [Premise("p1", "A.")])
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n{"id": "p1", "text": "A."}\n'


def test_a_line_torn_inside_a_character_is_dropped(tmp_path):
    path = tmp_path / "plots.jsonl"
    path.write_bytes('{"a": "灯"}\n'.encode() + '{"a": "灯'.encode()[:-1])
    assert read_jsonl(path) == [{"a": "灯"}]


def test_a_file_that_is_not_there_yet_has_no_rows(tmp_path):
    assert read_jsonl(tmp_path / "none.jsonl") == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "plots.jsonl"
    write_jsonl(path, [{"a": 1}])

    def rows():
        yield {"a": 2}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_jsonl(path, rows())
    assert read_jsonl(path) == [{"a": 1}]


# ---- small things


@pytest.mark.parametrize(("id", "side"), [("en-001", "test"), ("zh-001", "test"), ("en-002", "train"), ("a", "train")])
def test_a_premise_stays_on_its_side_for_good(id, side):
    assert split_of(id) == Premise(id, "A.").split == side


def test_about_one_premise_in_five_is_for_testing():
    share = sum(split_of(f"premise-{i}") == "test" for i in range(2000)) / 2000
    assert 0.17 < share < 0.23


@pytest.mark.parametrize(
    ("sentences", "text"),
    [
        (["One.", "Two."], "One. Two."),
        (["他走了。", "她没有。"], "他走了。她没有。"),
        (["他说：“走。”", "她走了。"], "他说：“走。”她走了。"),
        (["他走了。", "He left.", "她没有。"], "他走了。He left. 她没有。"),
        (["She said, “Go.”", "He left."], "She said, “Go.” He left."),
        (["She waited…", "He left."], "She waited… He left."),
        ([], ""),
    ],
)
def test_sentences_join_as_their_language_does(sentences, text):
    assert join_sentences(sentences) == text


@pytest.mark.parametrize(("text", "language"), [("灯塔", "zh"), ("A 灯 lamp", "zh"), ("Amália", "en"), ("🗼", "en")])
def test_language_is_chinese_when_a_chinese_character_is_there(text, language):
    assert guess_language(text) == language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The keeper lit the lamp and waited for the boat that never came.", "en"),
        ("Ann ran.", "en"),
        ("灯塔熄灭了，没人知道为什么。", "zh"),
        ("她说“OK”，然后把 iPhone 扔进了海里。", "zh"),
        ("灯台の光が消えた。誰も知らない。", "other"),
        ("Маяк погас, и никто не знал почему.", "other"),
        ("El faro se apagó cuando la niña bajó por la escalera y nadie en el pueblo quiso decir por qué.", "other"),
        ("Das Licht ging aus und niemand in der Stadt wollte sagen, warum es so gewesen war in jener Nacht.", "other"),
        ("… 123 !!", "other"),
    ],
)
def test_the_language_a_text_is_written_in(text, language):
    assert written_in(text) == language


def test_every_shipped_plot_is_taken_for_its_language():
    for plot in read_plots(PLOTS).rows:
        assert written_in(plot.text) == guess_language(plot.text)


def test_what_learnt_from_texts_is_known_for_their_languages():
    english, chinese, russian = "The keeper lit the lamp.", "灯塔熄灭了。", "Маяк погас."
    assert languages_of([english] * 20 + [russian]) == ("en",)
    assert languages_of([english, chinese]) == ("en", "zh")
    assert languages_of([russian] * 3) == ("other",)
