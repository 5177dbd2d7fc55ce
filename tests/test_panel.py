"""The panel: every claim must be quoted from the plot, nothing is made up, and the single call stands beside it."""

import json
import math

import pytest

from toolkit.engines.base import Choice
from toolkit.errors import EngineDown, UserError
from toolkit.evaluate.judge import DIGITS
from toolkit.evaluate.panel import Claim, hear, sit, summarise_panel, why_unsupported
from toolkit.narrative.dimensions import DIMENSIONS, KEYS
from toolkit.records import Plot, read_jsonl

TEXT = "The keeper lit the lamp at dusk. Her brother cut the rope, and the sea took the boat. She forgave him."
PLOT = Plot("p1", TEXT, "q", origin="base")


SENTENCES = (
    "The keeper lit the lamp at dusk.",
    "Her brother cut the rope, and the sea took the boat.",
    "She forgave him.",
)


class Actor:
    """Plays every agent: critics claim `claims`, the reader quotes `quote` (a text, or one for each claim in turn), each
    rating is `digit`, or 3 after evidence."""

    family = ""

    def __init__(
        self,
        claims=("She forgives her brother.",),
        quote=(*SENTENCES[:2], "took the boat. She forgave", "lit the lamp at dusk"),
        digit=7,
        name="actor",
    ):
        self.claims, self.quote, self.digit, self.name, self.asked, self.closed = claims, quote, digit, name, [], 0

    def generate(self, prompts, n, sampling):
        self.asked += [m[-1]["content"] for m in prompts]
        keys = json.loads(sampling.schema)["properties"]
        if "claims" in keys:
            return [[json.dumps({"claims": list(self.claims)})]] * len(prompts)
        quotes = [self.quote] if isinstance(self.quote, str) else self.quote
        return [[json.dumps({"quote": quotes[i % len(quotes)]})] for i in range(len(prompts))]

    def choose(self, prompts, options, reason=0):
        self.asked += [m[-1]["content"] for m in prompts]
        out = []
        for messages in prompts:
            digit = 3 if "You are the editor" in messages[-1]["content"] else self.digit
            out.append(Choice(tuple(0.0 if d == str(digit) else -math.inf for d in DIGITS), "for a reason"))
        return out

    def close(self):
        self.closed += 1


def test_each_dimension_has_an_advocate_and_an_adversary_and_each_claim_a_reader():
    actor = Actor()
    hear(actor, PLOT)
    for d in DIMENSIONS:
        assert sum("advocate" in q and d.name in q for q in actor.asked) == 1
        assert sum("adversary" in q and d.name in q for q in actor.asked) == 1
    assert sum("word for word" in q for q in actor.asked) == 2 * len(DIMENSIONS)


def test_the_panels_rating_stands_beside_the_single_call_of_the_same_model():
    found = hear(Actor(digit=9), PLOT)
    assert (found.single, found.scores) == (dict.fromkeys(KEYS, 10.0), dict.fromkeys(KEYS, 3.25))
    assert found.reasons["tone"] == "for a reason"


def test_the_editor_reads_supported_claims_with_their_quotes():
    actor = Actor()
    hear(actor, PLOT)
    editors = [q for q in actor.asked if "You are the editor" in q]
    assert len(editors) == len(DIMENSIONS)
    assert sum("She forgives her brother. (“The keeper lit the lamp at dusk.”)" in q for q in editors) == 3


def test_a_claim_that_cannot_be_quoted_is_dropped_and_counted():
    actor = Actor(quote="Her brother cut the throat")
    found = hear(actor, PLOT)
    assert {c.dropped for c in found.claims} == {"not in the plot"}
    assert all("- none" in q and "forgives" not in q for q in actor.asked if "You are the editor" in q)


@pytest.mark.parametrize(
    ("quote", "why"),
    [
        ("Her brother cut the rope", ""),
        ("her  brother cut the ROPE,", ""),
        ("“the sea took the boat”", ""),
        (TEXT, "more than one place quoted"),
        ("brother cut the rop", "not in the plot"),  # half a word is no quote
        ("Her brother cut the throat", "not in the plot"),
        ("the rope", "the quote is too short to show anything"),
        ("", "nothing quoted"),
        ("…", "nothing quoted"),
    ],
)
def test_a_quote_must_stand_in_the_plot(quote, why):
    assert why_unsupported(quote, TEXT) == why


@pytest.mark.parametrize(
    ("quote", "why"),
    [
        ("弟弟割断了绳子", ""),
        ("弟弟烧断了绳子", "not in the plot"),
        ("弟弟", "the quote is too short to show anything"),
    ],
)
def test_a_chinese_quote_is_found_between_characters(quote, why):
    assert why_unsupported(quote, "黄昏时她点亮了灯，弟弟割断了绳子，海带走了船。") == why


class Mumbles(Actor):
    def generate(self, prompts, n, sampling):
        super().generate(prompts, n, sampling)
        return [['{"claims": ["cut off']] * len(prompts)


def test_critics_that_cannot_be_read_give_no_rating_but_leave_the_single_call():
    found = hear(Mumbles(), PLOT)
    assert (found.scores, found.malformed) == ({}, 10)
    assert found.error == "no critic answered in the asked form"
    assert found.single["tone"] == pytest.approx(7.75)


def test_a_critic_may_find_nothing():
    found = hear(Actor(claims=()), PLOT)
    assert (found.claims, found.malformed, found.error) == ((), 0, "")
    assert found.scores["tone"] == 3.25


class TooLong(Actor):
    def choose(self, prompts, options, reason=0):
        raise UserError("the text is too long")


@pytest.mark.parametrize(
    ("actor", "text", "why"),
    [
        (TooLong(), TEXT, "the text is too long"),
        (Actor(), " ", "the text is empty"),
        (Actor(), "Маяк погас, и море пришло.", "language"),
    ],
)
def test_what_cannot_be_heard_gets_a_reason_and_no_score(actor, text, why):
    found = hear(actor, Plot("x", text))
    assert (found.scores, found.single) == ({}, {})
    assert why in found.error


# ---- juries


def test_a_jury_is_the_mean_of_its_members_with_their_spread(tmp_path):
    class Kind(Actor):
        def choose(self, prompts, options, reason=0):
            return [Choice(tuple(0.0 if d == "9" else -math.inf for d in DIGITS), "") for _ in prompts]

    one, two = Actor(name="one"), Kind(name="two")
    (found,) = sit({"one": lambda: one, "two": lambda: two}, [PLOT], tmp_path / "o.jsonl")
    assert found.scores["tone"] == pytest.approx((3.25 + 10) / 2)
    assert found.spread["tone"] == pytest.approx((10 - 3.25) / 2)
    assert (one.closed, two.closed) == (1, 1)


def test_a_member_that_fails_on_a_plot_leaves_the_rating_to_the_others(tmp_path):
    (found,) = sit({"a": lambda: Actor(), "b": lambda: TooLong()}, [PLOT], tmp_path / "o.jsonl")
    assert found.scores["tone"] == 3.25
    assert found.error == ""


def test_a_killed_panel_goes_on_where_it_was(tmp_path):
    class Dies(Actor):
        def choose(self, prompts, options, reason=0):
            if "boat two" in prompts[0][-1]["content"]:
                raise EngineDown("gone")
            return super().choose(prompts, options, reason)

    plots = [PLOT, Plot("p2", TEXT + " The boat two men built sank.")]
    with pytest.raises(EngineDown):
        sit({"m": Dies}, plots, tmp_path / "o.jsonl")
    assert len(read_jsonl(tmp_path / "o.jsonl")) == 1
    again = Actor()
    found = sit({"m": lambda: again}, plots, tmp_path / "o.jsonl")
    assert [r.plot_id for r in found] == ["p1", "p2"]
    assert not any("advocate" in q and "boat two" not in q for q in again.asked)
    assert isinstance(found[0].opinions[0].claims[0], Claim)


def test_the_summary_counts_what_was_dropped_and_who_got_no_rating(tmp_path):
    plots = [PLOT, Plot("p2", "Маяк погас, и море пришло.", origin="aligned")]
    ratings = sit({"m": lambda: Actor(quote="nothing of the kind")}, plots, tmp_path / "o.jsonl")
    found = summarise_panel(ratings, {"p1": "base", "p2": "aligned"})
    assert (found["claims"], found["kept"], found["dropped"]) == (10, 0, {"not in the plot": 10})
    assert found["writers"]["base"]["single"]["tone"] == pytest.approx(7.75)
    assert found["writers"]["aligned"] == {"plots": 0, "panel": {}, "single": {}}
    assert sum(found["without_rating"].values()) == 1
