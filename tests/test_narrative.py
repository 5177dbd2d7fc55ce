"""Premises and plots as shipped, damage of known kind and strength, prompts, sentences."""

from itertools import pairwise

import pytest

from toolkit.errors import UserError
from toolkit.narrative.damage import BARE, HARM, damage
from toolkit.narrative.dimensions import DIMENSIONS, KEYS
from toolkit.narrative.prompts import lines, prompt
from toolkit.narrative.writing import LONGEST_PREMISE, check_premise, sentences_of, whole_sentences, write_prompt
from toolkit.records import Plot, Premise, read_plots, read_premises
from toolkit.stages import DATA

PREMISES = read_premises(DATA / "premises.jsonl").rows
PLOTS = read_plots(DATA / "plots.jsonl").rows
ENGLISH = [p for p in PLOTS if p.id.startswith("plot-en")]
PLOT = ENGLISH[0]
BARE_PLOT = Plot("bare", PLOT.text, PLOT.premise_id)  # the same text, not annotated

# ---- what is shipped


def test_enough_premises_are_shipped():
    assert len(PREMISES) >= 300
    assert sum(p.language == "zh" for p in PREMISES) >= 36


def test_enough_plots_are_shipped():
    assert len(PLOTS) >= 60


@pytest.mark.parametrize("rows", [PREMISES, PLOTS], ids=["premises", "plots"])
def test_no_shipped_text_or_id_occurs_twice(rows):
    assert len({r.id for r in rows}) == len({r.text for r in rows}) == len(rows)


def test_every_shipped_plot_belongs_to_a_shipped_premise():
    assert {p.premise_id for p in PLOTS} <= {p.id for p in PREMISES}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_shipped_premises_fall_on_both_sides(language):
    assert {p.split for p in PREMISES if p.language == language} == {"train", "test"}


def test_shipped_plots_fall_on_both_sides():
    side = {p.id: p.split for p in PREMISES}
    assert {side[p.premise_id] for p in PLOTS} == {"train", "test"}


@pytest.mark.parametrize("field", ["genre", "tone", "setting"])
def test_every_shipped_premise_tells_its(field):
    assert all(getattr(p, field) for p in PREMISES)


def test_every_shipped_plot_is_annotated_for_every_damage():
    assert all(p.turn and p.characters and len(p.sentences) >= 5 for p in PLOTS)


def test_the_first_character_of_every_shipped_plot_is_in_its_text():
    assert [p.id for p in PLOTS if p.characters[0] not in p.text] == []


def test_every_shipped_premise_is_short_enough_to_be_taken():
    assert all(check_premise(p.text) == p.text for p in PREMISES)


# ---- damage


def left_of(plot, worse):
    """How many of the plot's sentences stand unchanged in the damaged one."""
    return sum(s in worse.sentences for s in plot.sentences)


@pytest.mark.parametrize("kind", HARM)
def test_the_same_seed_does_the_same_damage(kind):
    assert damage(PLOT, kind, 0.7, PLOTS, seed=3) == damage(PLOT, kind, 0.7, PLOTS, seed=3)


def test_another_seed_does_other_damage():
    assert len({damage(PLOT, "shuffle", 0.7, PLOTS, seed=s).text for s in range(5)}) > 1


@pytest.mark.parametrize("kind", HARM)
@pytest.mark.parametrize("strength", [0.05, 0.5, 1.0])
def test_damage_changes_every_shipped_plot_and_says_so(kind, strength):
    for plot in PLOTS:
        worse = damage(plot, kind, strength, PLOTS, seed=1)
        assert worse.text != plot.text
        assert worse.origin == f"damage:{kind}:{strength:g}"
        assert (worse.id != plot.id, worse.premise_id) == (True, plot.premise_id)


@pytest.mark.parametrize("kind", ["swap", "splice", "cut", "flat"])
def test_stronger_damage_leaves_fewer_sentences_as_they_were(kind):
    for plot in ENGLISH:
        left = [left_of(plot, damage(plot, kind, s, PLOTS, seed=1)) for s in (0.1, 0.5, 1.0)]
        assert left == sorted(left, reverse=True)
    plot = max(ENGLISH, key=lambda p: sum(p.characters[0] in s for s in p.sentences) + 2 * len(p.turn))
    weak, strong = (left_of(plot, damage(plot, kind, s, PLOTS, seed=1)) for s in (0.1, 1.0))
    assert strong < weak < len(plot.sentences)


def test_stronger_padding_is_longer():
    lengths = [len(damage(PLOT, "pad", s, PLOTS, seed=1).sentences) for s in (0.1, 0.4, 0.6)]
    assert all(a < b for a, b in pairwise([len(PLOT.sentences), *lengths]))


def test_shuffled_sentences_are_the_same_ones_in_another_order():
    worse = damage(PLOT, "shuffle", 1.0, PLOTS, seed=1)
    assert sorted(worse.sentences) == sorted(PLOT.sentences)
    assert worse.sentences != PLOT.sentences


def test_a_cut_takes_the_middle_and_keeps_both_ends():
    worse = damage(PLOT, "cut", 1.0, PLOTS, seed=1)
    assert (worse.sentences[0], worse.sentences[-1]) == (PLOT.sentences[0], PLOT.sentences[-1])


def test_a_swap_keeps_the_first_mention_of_the_protagonist():
    worse = damage(PLOT, "swap", 1.0, PLOTS, seed=1)
    name = PLOT.characters[0]
    assert sum(name in s for s in worse.sentences) == 1
    assert next(i for i, s in enumerate(worse.sentences) if name in s) == next(
        i for i, s in enumerate(PLOT.sentences) if name in s
    )


def test_flattening_takes_every_sentence_of_the_turn():
    worse = damage(PLOT, "flat", 1.0, PLOTS, seed=1)
    assert not {PLOT.sentences[i] for i in PLOT.turn} & set(worse.sentences)


def test_spliced_sentences_come_from_a_plot_of_another_premise():
    twin = Plot("twin", "", PLOT.premise_id, sentences=("Twin.",) * 8)
    assert damage(PLOT, "splice", 0.5, [PLOT, twin], seed=1) is None
    worse = damage(PLOT, "splice", 0.5, [PLOT, twin, ENGLISH[1]], seed=1)
    assert set(worse.sentences) - set(PLOT.sentences) <= set(ENGLISH[1].sentences)


@pytest.mark.parametrize("kind", ["swap", "flat"])
def test_a_plot_that_is_not_annotated_is_not_damaged_in_that_kind(kind):
    assert damage(BARE_PLOT, kind, 0.7, PLOTS, seed=1) is None


@pytest.mark.parametrize("kind", BARE)
def test_a_plot_that_is_not_annotated_can_be_damaged_in_every_bare_kind(kind):
    assert damage(BARE_PLOT, kind, 0.7, PLOTS, seed=1).text != BARE_PLOT.text


@pytest.mark.parametrize("kind", HARM)
def test_a_plot_of_four_sentences_is_too_short_to_damage(kind):
    short = Plot("s", "A. B. C. D.", sentences=("A.", "B.", "C.", "D."), turn=(1,), characters=("A",))
    assert damage(short, kind, 1.0, PLOTS, seed=1) is None


@pytest.mark.parametrize("kind", HARM)
def test_harm_is_told_for_known_dimensions_and_full_on_one_at_least(kind):
    assert set(HARM[kind]) <= set(KEYS)
    assert max(HARM[kind].values()) == 1.0
    assert min(HARM[kind].values()) >= 0.0


def test_every_dimension_is_the_aim_of_some_damage():
    assert {key for shares in HARM.values() for key, share in shares.items() if share == 1.0} == set(KEYS)


def test_there_are_the_five_dimensions_of_the_paper():
    assert KEYS == ("character", "tone", "pacing", "coherence", "emotion")
    assert all(d.name and d.asks for d in DIMENSIONS)


# ---- prompts


def test_a_prompt_has_its_places_filled():
    text = prompt("duel", "en", premise="P!", first="F!", second="S!", name="N!", asks="A!")
    assert all(word in text for word in ("P!", "F!", "S!", "N!", "A!"))
    assert "{" not in text


@pytest.mark.parametrize("text", ["{premise}", "{0}", "a { b", "}{", "{{plot}}"])
def test_braces_of_a_users_text_are_only_text(text):
    assert f"Premise: {text}" in prompt("write", "en", premise=text)


def test_a_language_without_a_file_of_its_own_gets_english():
    assert prompt("duel_system", "zh") == prompt("duel_system", "en")


def test_fillers_are_several_different_sentences():
    assert len(set(lines("fillers"))) == len(lines("fillers")) >= 5


@pytest.mark.parametrize(
    ("premise", "language"),
    [
        ("A lighthouse keeper.", "en"),
        ("灯塔看守人。", "zh"),
        (Premise("p", "灯塔看守人。", language="zh"), "zh"),
        (Premise("p", "A keeper named 灯.", language="en"), "en"),
    ],
)
def test_the_writer_is_asked_in_the_language_of_the_premise(premise, language):
    (message,) = write_prompt(premise)
    text = premise if isinstance(premise, str) else premise.text
    assert message == {"role": "user", "content": prompt("write", language, premise=text)}
    assert text in message["content"]


def test_chinese_and_english_are_asked_in_different_words():
    assert "前提" in write_prompt("灯塔。")[0]["content"]
    assert "Premise" in write_prompt("A lamp.")[0]["content"]


def test_a_premise_is_taken_without_the_blanks_around_it():
    assert check_premise("  A lamp. \n") == "A lamp."


@pytest.mark.parametrize("text", ["", "  \n\t", "\u3000"])
def test_an_empty_premise_is_refused(text):
    with pytest.raises(UserError, match="the premise is empty"):
        check_premise(text)


def test_a_premise_that_is_a_whole_text_is_refused_with_both_lengths():
    assert check_premise("x" * LONGEST_PREMISE)
    with pytest.raises(UserError, match="100,000 characters; at most 4,000"):
        check_premise("x" * 100_000)


# ---- sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four…", ["One.", "Two!", "Three?", "Four…"]),
        ("One.\nTwo.\n\nThree.", ["One.", "Two.", "Three."]),
        ("It cost 3.5 pounds. Gone.", ["It cost 3.5 pounds.", "Gone."]),
        ("Go... and wait. Then go.", ["Go... and wait.", "Then go."]),
        ('He left. "Wait." She ran.', ["He left.", '"Wait."', "She ran."]),
        ("He left. “Wait.” She ran.", ["He left.", "“Wait.”", "She ran."]),
        ("He left (late.) She ran.", ["He left (late.)", "She ran."]),
        ("他走了。她没有！真的？", ["他走了。", "她没有！", "真的？"]),
        ("真的？！她走了。", ["真的？！", "她走了。"]),
        ("他说：“走。”她走了。", ["他说：“走。”", "她走了。"]),
        ("no end", ["no end"]),
        ("  ", []),
    ],
)
def test_a_text_is_cut_into_its_sentences(text, sentences):
    assert sentences_of(text) == sentences


def test_cutting_a_shipped_plot_loses_no_character():
    bare = lambda text: "".join(text.split())  # noqa: E731
    assert [p.id for p in PLOTS if bare("".join(sentences_of(p.text))) != bare(p.text)] == []


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("She ran. She wo", "She ran."),
        ("She ran. She won.", "She ran. She won."),
        ('She ran. "Go!"', 'She ran. "Go!"'),
        ("她跑了。她赢", "她跑了。"),
        ("她说：「走。」", "她说：「走。」"),
        ("She ran and", "She ran and"),
        ("  She ran. ", "She ran."),
        ("", ""),
    ],
)
def test_an_unfinished_last_sentence_is_left_out(text, whole):
    assert whole_sentences(text) == whole
