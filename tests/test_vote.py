"""A person votes blind; the votes are pairs, and a judge is held against them."""

import json
import math

import numpy as np
import pytest

from toolkit.errors import UserError
from toolkit.evaluate.judge import Verdict
from toolkit.evaluate.vote import (
    agreement,
    matches_from_files,
    matches_from_run,
    read_votes,
    tally,
    tally_lines,
    ties_file,
    vote,
    wrapped,
)
from toolkit.narrative.dimensions import KEYS
from toolkit.narrative.writing import write_prompt
from toolkit.records import Plot, append_jsonl, read_jsonl, read_pairs
from toolkit.stats import wilson


def match(i: int, one="lamp", other="wave"):
    """Premise number i with a text of each origin; the ids are the same on both sides, as in two files."""
    a = Plot(f"x{i}", f"ALPHA {i}.", f"p{i}", f"Premise {i}.", origin=one)
    b = Plot(f"x{i}", f"BETA {i}.", f"p{i}", f"Premise {i}.", origin=other)
    return f"Premise {i}.", a, b


MATCHES = [match(i) for i in range(6)]


class Person:
    """Answers from a list; then the file ends. Remembers what was on the screen at each question."""

    def __init__(self, *answers, end=EOFError):
        self.answers, self.end, self.screen, self.screens = list(answers), end, [], []

    def show(self, text=""):
        self.screen.append(text)

    def ask(self, _):
        self.screens.append("\n".join(self.screen))
        self.screen = []
        if not self.answers:
            raise self.end
        answer = self.answers.pop(0)
        return answer(self.screens[-1]) if callable(answer) else answer

    def vote(self, out, matches=MATCHES, seed=0):
        return vote(matches, out, self.ask, self.show, seed)


def alpha(screen: str) -> str:
    """The key of the ALPHA text on the screen."""
    return "1" if screen.index("ALPHA") < screen.index("BETA") else "2"


def beta(screen: str) -> str:
    return "21"[int(alpha(screen)) - 1]


# ---- the sitting


def test_every_vote_is_a_preference_pair_that_training_reads(tmp_path):
    Person(*[alpha] * 6).vote(tmp_path / "votes.jsonl")
    pairs = read_pairs(tmp_path / "votes.jsonl").rows
    assert {p.premise_id for p in pairs} == {f"p{i}" for i in range(6)}
    for p in pairs:
        i = p.premise_id[1:]
        assert p.prompt == write_prompt(f"Premise {i}.")[-1]["content"]
        assert (p.chosen, p.rejected) == (f"ALPHA {i}.", f"BETA {i}.")


def test_a_vote_says_who_wrote_what_which_stood_first_and_how_long_it_took(tmp_path):
    person = Person(*[beta] * 6)
    person.vote(tmp_path / "votes.jsonl")
    rows = read_jsonl(tmp_path / "votes.jsonl")
    assert {(r["chosen_from"], r["rejected_from"]) for r in rows} == {("wave", "lamp")}
    for row, screen in zip(rows, person.screens, strict=True):
        assert row["shown_first"] == ("chosen" if beta(screen) == "1" else "rejected")
        assert row["seconds"] >= 0


def test_a_tie_is_no_pair_and_goes_into_a_file_beside(tmp_path):
    out = tmp_path / "votes.jsonl"
    found = Person("0", alpha).vote(out)
    assert (found["votes"], found["ties"], found["left"]) == (1, 1, 4)
    assert ties_file(out) == tmp_path / "votes.ties.jsonl"
    (tie,) = read_jsonl(ties_file(out))
    assert {tie["first_from"], tie["second_from"]} == {"lamp", "wave"}
    assert len(read_jsonl(out)) == 1


def test_the_screen_shows_premise_and_both_texts_and_not_who_wrote_them(tmp_path):
    person = Person(*[alpha] * 6)
    person.vote(tmp_path / "votes.jsonl")
    for screen in person.screens:
        assert all(word in screen for word in ("Premise: Premise", "ALPHA", "BETA", "── 1", "── 2"))
        assert not [word for word in ("lamp", "wave") if word in screen]


def test_who_is_ahead_is_not_shown_before_the_last_vote(tmp_path):
    person = Person(*[alpha] * 5, "q")
    person.vote(tmp_path / "votes.jsonl")
    assert not [word for word in ("lamp", "wave") if word in "\n".join(person.screens + person.screen)]
    last = Person(alpha)
    last.vote(tmp_path / "votes.jsonl")
    assert "lamp: preferred in 100 % of 6 votes" in "\n".join(last.screen)


def test_the_order_is_random_but_seeded_and_knows_nothing_of_the_origins(tmp_path):
    many = [match(i) for i in range(24)]
    swapped = [(premise, b, a) for premise, a, b in reversed(many)]
    screens = []
    for name, matches, seed in (("a", many, 0), ("b", many, 0), ("c", swapped, 0), ("d", many, 1)):
        person = Person(*["1"] * 24)
        person.vote(tmp_path / f"{name}.jsonl", matches, seed)
        screens.append([s[s.index("Premise:") :] for s in person.screens])
    assert screens[0] == screens[1] == screens[2]
    assert screens[0] != screens[3]
    first = sum(alpha(s) == "1" for s in screens[0])
    assert 5 <= first <= 19
    assert [s.split()[2] for s in screens[0]] != [f"{i}." for i in range(24)]


def test_what_is_voted_on_is_not_asked_again_ties_included(tmp_path):
    out = tmp_path / "votes.jsonl"
    first = Person(alpha, "0", beta)
    first.vote(out)
    second = Person(*[alpha] * 9)
    found = second.vote(out)
    assert len(second.screens) == 3
    seen = [s[s.index("Premise:") :] for s in first.screens[:3] + second.screens]
    assert len(set(seen)) == 6
    assert (found["votes"], found["ties"], found["left"]) == (5, 1, 0)
    assert Person().vote(out)["votes"] == 5


def test_a_resumed_sitting_keeps_the_side_on_which_a_text_stood(tmp_path):
    whole, parts = Person(*[alpha] * 6), [Person(*[alpha] * n) for n in (2, 4)]
    whole.vote(tmp_path / "a.jsonl")
    for person in parts:
        person.vote(tmp_path / "b.jsonl")
    side = lambda name: {r["premise_id"]: r["shown_first"] for r in read_jsonl(tmp_path / name)}  # noqa: E731
    assert side("a.jsonl") == side("b.jsonl")


def test_undo_takes_the_last_vote_back_and_asks_again(tmp_path):
    out = tmp_path / "votes.jsonl"
    person = Person(alpha, beta, "u", alpha, "0", "u", alpha, "q")
    found = person.vote(out)
    assert (found["votes"], found["ties"]) == (3, 0)
    assert {r["chosen_from"] for r in read_jsonl(out)} == {"lamp"}
    assert person.screens[1][-200:] == person.screens[3][-200:]  # the same pair again


def test_undo_goes_back_over_a_skipped_pair(tmp_path):
    out = tmp_path / "votes.jsonl"
    assert Person(alpha, "s", "u", "u", beta).vote(out)["votes"] == 1
    assert [r["chosen_from"] for r in read_jsonl(out)] == ["wave"]


def test_before_the_first_answer_there_is_nothing_to_undo(tmp_path):
    Person(alpha).vote(tmp_path / "votes.jsonl")
    person = Person("u")
    assert person.vote(tmp_path / "votes.jsonl")["votes"] == 1
    assert "nothing to undo" in person.screens[1]


def test_undo_leaves_what_another_sitting_wrote_meanwhile(tmp_path):
    out = tmp_path / "votes.jsonl"

    def meanwhile(screen):
        append_jsonl(out, [{"premise": "Q", "premise_id": "q", "chosen": "x", "rejected": "y"}])
        return "u"

    Person(alpha, meanwhile).vote(out)
    assert [r["premise_id"] for r in read_jsonl(out)] == ["q"]


def test_a_skipped_pair_is_left_for_the_next_sitting(tmp_path):
    out = tmp_path / "votes.jsonl"
    person = Person("s", *[alpha] * 5)
    found = person.vote(out)
    assert (found["votes"], found["skipped"], found["left"]) == (5, 1, 1)
    assert "preferred" not in "\n".join(person.screen)
    assert Person(alpha).vote(out)["left"] == 0


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_the_end_of_the_file_and_ctrl_c_keep_what_was_voted(tmp_path, end):
    found = Person(alpha, beta, end=end).vote(tmp_path / "votes.jsonl")
    assert (found["votes"], found["left"]) == (2, 4)
    assert len(read_pairs(tmp_path / "votes.jsonl").rows) == 2


def test_other_keys_show_the_help_and_full_width_digits_count(tmp_path):
    person = Person("", "yes", "?", " １ ")
    assert person.vote(tmp_path / "votes.jsonl")["votes"] == 1
    assert all("the first text is better" in screen for screen in person.screens[1:4])


def test_pairs_nobody_can_vote_on_are_left_out(tmp_path):
    same = ("P.", Plot("a", "One.", "p"), Plot("b", "One. ", "p"))
    empty = ("P.", Plot("a", "One.", "p"), Plot("b", "", "p"))
    _, a, b = MATCHES[0]
    person = Person(*"111")
    assert person.vote(tmp_path / "v.jsonl", [same, empty, MATCHES[0], ("Premise 0.", b, a)])["votes"] == 1
    with pytest.raises(UserError, match="no two different texts"):
        person.vote(tmp_path / "w.jsonl", [same, empty])


def test_a_file_that_holds_no_votes_is_not_added_to(tmp_path):
    out = tmp_path / "pairs.jsonl"
    out.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(UserError, match="no file of votes"):
        Person("1").vote(out)
    with pytest.raises(UserError, match="is a folder"):
        Person("1").vote(tmp_path)


def test_a_text_is_wrapped_and_cannot_paint_the_terminal():
    shown = wrapped("a\x1b[31mred\x1b[0m " + "word " * 30 + "\n\nnext\u202e line", 40)
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert max(map(len, shown.splitlines())) <= 40
    assert shown.endswith("\n\nnext line")


def test_a_chinese_text_is_wrapped_at_its_width_on_the_screen():
    assert max(map(len, wrapped("灯塔守夜人" * 20, 40).splitlines())) == 20


# ---- what is put to the vote


def test_a_run_gives_base_against_aligned_by_premise_and_draw(tmp_path):
    folder = tmp_path / "evaluate"
    folder.mkdir()
    plots = [
        Plot(f"{p}-{k}-{o}", f"{o} {p} {k}", p, f"Premise {p}", origin=o)
        for o in ("base", "aligned")
        for p in ("p-1", "p-2")
        for k in (0, 1)
    ]
    append_jsonl(folder / "plots.jsonl", plots[:-1])
    found = matches_from_run(tmp_path)
    assert [(premise, a.id, b.id) for premise, a, b in found] == [
        ("Premise p-1", "p-1-0-base", "p-1-0-aligned"),
        ("Premise p-1", "p-1-1-base", "p-1-1-aligned"),
        ("Premise p-2", "p-2-0-base", "p-2-0-aligned"),
    ]


def test_a_run_without_an_evaluation_says_so(tmp_path):
    with pytest.raises(UserError, match="holds no finished evaluation"):
        matches_from_run(tmp_path)


def files(tmp_path, a, b):
    for name, rows in (("a", a), ("b", b)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "a.jsonl", tmp_path / "b.jsonl"


def test_texts_of_two_files_are_matched_by_premise_the_kth_with_the_kth(tmp_path):
    a = [
        {"id": "1", "text": "A1", "premise": "A well."},
        {"id": "2", "text": "A2", "premise": "A well."},
        {"id": "3", "text": "A3", "premise_id": "p3", "premise": "Snow."},
        {"id": "4", "text": "A4", "premise": "Alone."},
    ]
    b = [
        {"id": "1", "text": "B3", "premise_id": "p3"},
        {"id": "2", "text": "B1", "premise": " a  Well."},
        {"id": "3", "text": "B2", "premise": "A well."},
    ]
    found = matches_from_files(*files(tmp_path, a, b))
    assert [(p, x.text, y.text) for p, x, y in found] == [
        ("A well.", "A1", "B1"),
        ("A well.", "A2", "B2"),
        ("Snow.", "A3", "B3"),
    ]
    assert {(x.origin, y.origin) for _, x, y in found} == {("a", "b")}


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ({"text": "A", "premise": "X."}, {"text": "B", "premise": "Y."}, "share no premise"),
        ({"text": "A"}, {"text": "B"}, "share no premise"),
        ({"text": "A", "premise_id": "p"}, {"text": "B", "premise_id": "p"}, "premise in words"),
    ],
)
def test_files_that_cannot_be_matched_say_why(tmp_path, a, b, said):
    with pytest.raises(UserError, match=said):
        matches_from_files(*files(tmp_path, [a], [b]))


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.jsonl").write_text(json.dumps({"text": name, "premise": "P."}))
    ((_, a, b),) = matches_from_files(tmp_path / "x" / "t.jsonl", tmp_path / "y" / "t.jsonl")
    assert a.origin != b.origin


# ---- figures


def row(i, chosen_from="lamp", rejected_from="wave", first="chosen"):
    texts = {"lamp": f"ALPHA {i}.", "wave": f"BETA {i}."}
    return {
        "premise": f"Premise {i}.",
        "premise_id": f"p{i}",
        "chosen": texts[chosen_from],
        "rejected": texts[rejected_from],
        "chosen_from": chosen_from,
        "rejected_from": rejected_from,
        "shown_first": first,
    }


def tie(i):
    return {"premise_id": f"p{i}", "first_from": "wave", "second_from": "lamp"}


def test_a_tie_counts_half_for_each_side():
    found = tally([row(0), row(1), row(2, "wave", "lamp")], [tie(3)])
    assert found["preferred"]["lamp"]["share"][0] == 0.625
    assert found["preferred"]["wave"]["share"][0] == 0.375
    assert found["preferred"]["lamp"]["of"] == 4


def test_a_few_votes_for_one_side_are_not_certainty():
    value, low, high = tally([row(i) for i in range(5)], [])["preferred"]["lamp"]["share"]
    assert (value, high) == (1.0, 1.0)
    assert low == pytest.approx(wilson(5, 5)[0], abs=1e-4)


def test_an_even_count_is_said_to_be_not_distinguishable():
    lines = tally_lines(tally([row(i, *s) for i, s in enumerate([("lamp", "wave"), ("wave", "lamp")] * 5)], []))
    assert lines[-1].startswith("Not distinguishable") or "Beware" in lines[-1]
    assert any(line.startswith("Not distinguishable") for line in lines)


def test_a_person_who_always_takes_the_first_text_is_told_so():
    found = tally([row(i) for i in range(20)], [])
    assert found["first_preferred"][0] == 1.0
    assert tally_lines(found)[-1].startswith("Beware: the text shown first was preferred in 100 %")


# ---- a judge beside the person


class OddsJudge:
    """Compares by a log-odds function of (ALPHA number); positive is for the ALPHA text."""

    family = ""

    def __init__(self, odds, bias=0.0):
        self.odds, self.bias, self.name, self.asked = odds, bias, "fake", 0

    def compare(self, premise, a, b):
        self.asked += 1
        assert "lamp" not in f"{a}{b}"
        odds = self.odds(int(premise.split()[1][:-1])) * (1 if a.text.startswith("ALPHA") else -1)
        if not np.isfinite(odds):
            return Verdict(a.premise_id, a.id, b.id, {}, {}, "too long")
        side = lambda x: dict.fromkeys(KEYS, 1 / (1 + math.exp(-x)))  # noqa: E731
        return Verdict(a.premise_id, a.id, b.id, side(odds + self.bias), side(odds - self.bias))


VOTES = [row(i, *(("lamp", "wave") if i % 2 else ("wave", "lamp"))) for i in range(12)]


def test_a_judge_that_votes_as_the_person_agrees_wholly():
    found = agreement(OddsJudge(lambda i: 2.0 if i % 2 else -2.0), VOTES)
    assert (found["accuracy"][0], found["kappa"][0], found["no_verdict"]) == (1.0, 1.0, 0.0)
    assert found["accuracy"][1] < 1.0  # twelve votes are not certainty


def test_kappa_of_three_wrong_in_twelve_is_the_hand_value():
    # person: 6 lamp, 6 wave; the judge turns three waves to lamp: 9 lamp, 3 wave. po = .75, pe = .5·.75 + .5·.25
    found = agreement(OddsJudge(lambda i: 2.0 if i % 2 or i in (0, 4, 8) else -2.0), VOTES)
    assert found["accuracy"][0] == 0.75
    assert found["kappa"][0] == pytest.approx(0.5)


def test_a_judge_that_always_names_one_origin_has_a_kappa_of_nothing():
    votes = [row(i) for i in range(9)] + [row(9, "wave", "lamp")]
    found = agreement(OddsJudge(lambda i: 2.0), votes)
    assert (found["accuracy"][0], found["kappa"][0]) == (0.9, 0.0)


def test_a_judge_swayed_by_the_order_has_no_verdict_but_a_lean():
    found = agreement(OddsJudge(lambda i: 0.5 if i % 2 else -0.5, bias=3.0), VOTES)
    assert (found["no_verdict"], found["verdicts"], found["accuracy"], found["kappa"]) == (
        1.0,
        0,
        [None] * 3,
        [None] * 3,
    )
    assert found["why"] == {"the verdict changed with the order of the texts": 12}
    assert found["lean_accuracy"][0] == 1.0


def test_what_is_below_the_threshold_or_unread_is_no_verdict():
    odds = lambda i: (1.0 if i % 2 else -1.0) * (math.nan if i == 0 else 0.2 if i < 4 else 2.0)  # noqa: E731
    found = agreement(OddsJudge(odds), VOTES, threshold=1.0)
    assert (found["verdicts"], found["no_verdict"]) == (8, pytest.approx(1 / 3, abs=1e-4))
    assert found["why"] == {"less sure than the threshold": 3, "too long": 1}
    assert agreement(OddsJudge(odds), VOTES, threshold=None)["verdicts"] == 0


def test_votes_of_unknown_origin_are_counted_and_left_out():
    unknown = {k: v for k, v in row(5).items() if not k.endswith("_from")}
    assert agreement(OddsJudge(lambda i: 1.0), [*VOTES, unknown])["unknown"] == 1
    with pytest.raises(UserError, match="no vote says where its texts come from"):
        agreement(OddsJudge(lambda i: 1.0), [unknown])


def test_a_judges_verdicts_are_kept_and_not_asked_for_again(tmp_path):
    judge = OddsJudge(lambda i: math.sin(i))
    first = agreement(judge, VOTES, out=tmp_path / "verdicts.jsonl")
    assert agreement(judge, VOTES, out=tmp_path / "verdicts.jsonl") == first
    assert judge.asked == 12


def test_votes_come_back_as_the_judge_needs_them(tmp_path):
    Person(*[alpha] * 6).vote(tmp_path / "votes.jsonl")
    found = agreement(OddsJudge(lambda i: 1.0), read_votes(tmp_path / "votes.jsonl")[0])
    assert (found["votes"], found["accuracy"][0]) == (6, 1.0)
