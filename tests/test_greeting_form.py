"""A greeting's form: lengths as readers count, script, full-width marks, cleaning, and what is broken."""

import pytest

from toolkit.greeting.form import (
    LENGTHS,
    bounds,
    broken,
    clean,
    full_width,
    length_of,
    overlap,
    plain,
    script_for,
    script_of,
    to_script,
)
from toolkit.greeting.writing import greet_prompt
from toolkit.records import Request

ZH = Request("z", "七十大寿，写给外公，他每天去公园下棋", length="short", language="zh")
TRAD = Request("t", "七十大壽，寫給外公，他每天去公園下棋", length="short", language="zh")
EN = Request("e", "birthday card for my neighbour, who mends old radios", length="short")
ZH_FINE = "外公，七十岁快乐！愿您的棋盘上天天都有好局。"
EN_FINE = "Happy birthday, and may every old radio on your bench sing again this year."


# ---- lengths


@pytest.mark.parametrize(
    ("text", "language", "size"),
    [
        ("生日快乐！", "zh", 5),
        ("祝Tom生日快乐，3.5岁", "zh", 9),
        ("“外公”……", "zh", 6),
        ("", "zh", 0),
        ("Happy birthday, Tom!", "en", 3),
        ("You're twenty-one and it's 10.30.", "en", 5),
        ("...", "en", 0),
    ],
)
def test_length_is_counted_in_characters_or_words(text, language, size):
    assert length_of(text, language) == size


def test_the_lengths_follow_on_one_another():
    for language in ("zh", "en"):
        ends = [LENGTHS[name][language] for name in ("short", "medium", "long")]
        assert ends[0][1] == ends[1][0] < ends[1][1] == ends[2][0]


# ---- script


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("生日快乐", "simplified"),
        ("生日快樂", "traditional"),
        ("後天生日快乐", "mixed"),
        ("祝你早日康复", "simplified"),
        ("萬事如意", "traditional"),
        ("万事如意", "simplified"),
        ("祝你", "both"),
        ("台北的周末", "both"),  # traditional texts have 台 and 周 too
        ("祝你生日快樂，台灣的朋友們，這個周末在公園裡見", "traditional"),
        ("溫暖的家，看著你長大", "traditional"),
        ("户外温暖，願你開心", "traditional"),  # Hong Kong's forms
        ("看著", "traditional"),
        ("著名的乾坤", "both"),
        ("hello", ""),
    ],
)
def test_the_script_is_told_by_telling_characters(text, script):
    assert script_of(text) == script


def test_texts_are_put_into_the_other_script_by_phrases():
    assert to_script("头发和发财", "traditional") == "頭髮和發財"
    assert to_script("頭髮和發財", "simplified") == "头发和发财"


def test_taiwans_particle_becomes_the_mainlands():
    assert to_script("看著妳長大，顯著", "simplified") == "看着妳长大，显著"


def test_a_text_that_fits_its_script_is_left_alone():
    assert to_script("台灣的周末", "traditional") == "台灣的周末"
    assert to_script("Happy birthday", "traditional") == "Happy birthday"


def test_an_answer_should_have_the_requests_script():
    assert [script_for(r) for r in (ZH, TRAD, EN, Request("b", "生日", language="zh"))] == [
        "simplified",
        "traditional",
        "",
        "simplified",
    ]


# ---- punctuation


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("生日快乐,外公!", "生日快乐，外公！"),
        ("生日快乐 , 外公 !", "生日快乐，外公！"),
        ("祝您:身体好;心情好.好吗?!", "祝您：身体好；心情好。好吗？！"),
        ("愿您身体好...", "愿您身体好……"),
        ("版本3.5发布,10:30见,共1,000元", "版本3.5发布，10:30见，共1,000元"),
        ("Dr.王,你好", "Dr.王，你好"),
        ("Happy birthday, Tom. 生日快乐.", "Happy birthday, Tom. 生日快乐。"),
        ("老友(Tom)生日快乐(真的)", "老友（Tom）生日快乐（真的）"),
        ("Hello (Tom), see you at 10:30.", "Hello (Tom), see you at 10:30."),
        ("祝Tom,Ann和你快乐", "祝Tom,Ann和你快乐"),
    ],
)
def test_half_width_marks_beside_chinese_become_full_width(text, right):
    assert full_width(text) == right


# ---- cleaning


@pytest.mark.parametrize(
    ("answer", "greeting"),
    [
        (ZH_FINE, ZH_FINE),
        ("祝福语：" + ZH_FINE, ZH_FINE),
        ("生日祝福：\n“" + ZH_FINE + "”", ZH_FINE),
        ("以下是为外公写的一段祝福：\n\n" + ZH_FINE, ZH_FINE),
        ("助手：" + ZH_FINE + "\n用户：再写一段", ZH_FINE),
        ("<think>外公七十了。</think>\n" + ZH_FINE, ZH_FINE),
        ("**" + ZH_FINE + "**", ZH_FINE),
        ("1. " + ZH_FINE, ZH_FINE),
        ("「" + ZH_FINE, ZH_FINE),
        ("外公,七十歲快樂!願您的棋盤上天天都有好局.", ZH_FINE),
        (ZH_FINE + "也愿您", ZH_FINE),
        ("我最真诚的祝福：愿您安康。", "我最真诚的祝福：愿您安康。"),
    ],
)
def test_a_chinese_answer_is_cleaned_to_the_greeting(answer, greeting):
    assert clean(answer, ZH) == greeting


@pytest.mark.parametrize(
    ("answer", "greeting"),
    [
        (EN_FINE, EN_FINE),
        (f'Sure! Here is a short greeting for your neighbour:\n\n"{EN_FINE}"', EN_FINE),
        (f"Here's a birthday message: {EN_FINE}", EN_FINE),
        (f"assistant: {EN_FINE}<|im_end|>\n<|im_start|>user", EN_FINE),
        (f"Greeting: {EN_FINE}", EN_FINE),
        (f"{EN_FINE} And may you", EN_FINE),
        ("Happy birthday, you are 3.5 today. And", "Happy birthday, you are 3.5 today."),
        ('"Happy birthday, Tom! All the', "Happy birthday, Tom!"),
        ("no sentence ends here", "no sentence ends here"),
        ("3.5 years of radio, and counting!", "3.5 years of radio, and counting!"),
        ("", ""),
    ],
)
def test_an_english_answer_is_cleaned_to_the_greeting(answer, greeting):
    assert clean(answer, EN) == greeting


def test_cleaning_puts_an_answer_into_the_requests_script():
    assert clean("外公，七十岁快乐！", TRAD) == "外公，七十歲快樂！"


def test_cleaning_twice_changes_nothing_more():
    for text in (
        "助手：“祝福语：" + ZH_FINE + "”",
        "1. " + ZH_FINE,
        "“assistant:}a2\n2. <|im_end|>\nUser:X",
        "a\0，樂.",
    ):
        assert clean(clean(text, ZH), ZH) == clean(text, ZH)


# ---- broken form


def test_a_fine_greeting_is_fine():
    assert broken(ZH_FINE, ZH) == []
    assert broken(clean(ZH_FINE, TRAD), TRAD) == []
    assert broken(EN_FINE, EN) == []


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("", ["empty"]),
        ("！！……", ["empty"]),
        ("Happy birthday, dear grandfather, and many more games.", ["language"]),
        ("おじいさん、お誕生日おめでとうございます。長生きしてね。", ["language"]),
        ("外公，七十歲快樂！願您的棋盤上天天都有好局。", ["script"]),
        ("外公好！", ["too short"]),
        (
            "外公，七十岁快乐！愿您的棋盘上天天都有好局，" * 1 + "一二三四五六七八九十甲乙丙丁戊己庚辛壬癸" * 2 + "。",
            ["too long"],
        ),
        ("外公，七十岁快乐，愿您的棋盘上天天都有", ["unfinished"]),
        ("七十大寿，写给外公，他每天去公园下棋。祝您快乐。", ["echo"]),
        ("1. 外公，七十岁快乐！\n2. 外公，愿您安康！", ["list"]),
        ("愿您天天开心，愿您天天开心，愿您天天开心！", ["repeats"]),
        ("[姓名]外公，七十岁快乐！愿您天天开心。", ["placeholder"]),
        ("XX外公，七十岁快乐！愿您天天开心。", ["placeholder"]),
        ("外公___，七十岁快乐！愿您天天开心。", ["placeholder"]),
    ],
)
def test_broken_chinese_form_is_named(text, reasons):
    assert broken(text, ZH) == reasons


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("祝你生日快乐，愿每一台旧收音机都再唱起来。", ["language", "too short"]),
        ("Alles Gute zum Geburtstag, und möge jedes alte Radio wieder singen.", ["language"]),
        ("Birthday!", ["too short"]),
        (EN_FINE[:-1], ["unfinished"]),
        ("A birthday card for my neighbour, who mends old radios, is here.", ["echo"]),
        ("1. Happy birthday to you, my friend!\n2. Many happy returns of the day!", ["list"]),
        ("May you sing all day, may you sing all day, may you sing all day!", ["repeats"]),
        ("Dear [Name], may every old radio sing again for you.", ["placeholder"]),
        ("Dear XX, may every old radio sing again for you.", ["placeholder"]),
        ("Dear {name}, may every old radio sing again for you.", ["placeholder"]),
    ],
)
def test_broken_english_form_is_named(text, reasons):
    assert broken(text, EN) == reasons


def test_saying_the_instruction_again_is_an_echo():
    for request in (ZH, EN):
        assert "echo" in broken(greet_prompt(request)[0]["content"], request)


def test_a_chinese_greeting_may_hold_a_latin_name_and_a_year():
    assert broken("Tom，2026年生日快乐！愿你的收音机天天响。", ZH) == []


def test_an_emoji_or_a_wave_ends_a_sentence():
    assert broken("外公，七十岁快乐，愿您天天都有好局～", ZH) == []


def test_traditional_and_simplified_say_the_same():
    assert plain("生日快樂！") == plain(" 生日快乐")
    assert overlap("外公，生日快樂！", "外公生日快乐") == 1


def test_bounds_are_in_the_unit_of_the_language():
    assert (bounds(ZH), bounds(EN)) == ((10, 40), (8, 25))


def test_half_a_character_is_broken_form():
    request = Request("z", "外公七十大寿", language="zh", length="short")
    assert broken("外公，愿您棋盘上步步从�容，笑口常开。", request) == ["characters"]
