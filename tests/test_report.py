"""What the report says in words, that every text is only text in it, and that nothing in it is fetched."""

import json
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from toolkit.evaluate import charts
from toolkit.evaluate.diversity import MEASURES
from toolkit.evaluate.report import _e, _table, _texts, verdict_lines, write_report
from toolkit.narrative.dimensions import DIMENSIONS, KEYS
from toolkit.recipe import Recipe
from toolkit.records import AspectRatings, Plot, write_jsonl

EVIL = "<script>alert('x')</script> & \"more\""
GAIN, LOSS, EVEN, UNKNOWN = [0.8, 0.7, 0.9], [0.2, 0.1, 0.3], [0.55, 0.4, 0.7], [0.6, None, None]
MOVED, STOOD, FELL = [1.0, 0.5, 1.5], [0.1, -0.2, 0.4], [-1.0, -1.5, -0.5]


def facts(win_rate, gain=None, ties=0.1):
    dimension = dict.fromkeys(KEYS, 5.0)
    reward = {
        "base": {**dimension, "mean": [5.0, 4.5, 5.5]},
        "aligned": {**dimension, "mean": [5.0 + (gain or [0])[0], 4.5, 5.5]},
        "gain": gain,
    }
    return {
        "judge": "llama.cpp:judge.gguf",
        "pairs": 24,
        "premises": 12,
        "threshold": 0.0,
        "no_verdict": 0,
        "errors": [],
        "warnings": [],
        "win_rate": win_rate,
        "length_controlled": win_rate,
        "raw_win_rate": win_rate,
        "raw_win_rate_by_dimension": dict.fromkeys(KEYS, win_rate),
        "lean_rate": [0.61, 0.42, 0.8],
        "lean_rate_by_dimension": {key: [0.61, 0.42, 0.8] for key in KEYS},
        "ties_by_order": ties,
        "wins": 9,
        "losses": 6,
        "longer_wins": 0.5,
        "mean_characters": {"aligned": 400.0, "base": 380.0},
        **({"reward": reward} if gain else {}),
    }


# ---- words


@pytest.mark.parametrize(
    ("win_rate", "says"),
    [
        (GAIN, "a real gain."),
        (LOSS, "a real loss."),
        (EVEN, "not distinguishable from no difference."),
        (UNKNOWN, "not distinguishable from no difference."),
    ],
)
def test_the_first_line_says_whether_the_judge_saw_a_difference(win_rate, says):
    first = verdict_lines(facts(win_rate))[0]
    assert first.endswith(says)
    assert f"{100 * win_rate[0]:.0f} % of 24 pairs" in first


UNCONFIRMED = "the independent judge does not confirm"


@pytest.mark.parametrize(
    ("win_rate", "gain", "plain"),
    [
        (EVEN, MOVED, True),
        (LOSS, MOVED, True),
        (UNKNOWN, MOVED, True),
        (GAIN, MOVED, False),
        (EVEN, STOOD, False),
        (EVEN, FELL, False),
    ],
)
def test_a_reward_that_moved_without_the_judge_is_said_plainly(win_rate, gain, plain):
    assert (UNCONFIRMED in " ".join(verdict_lines(facts(win_rate, gain)))) is plain


def test_a_reward_that_did_not_move_is_said_plainly():
    assert "did not measurably move the reward" in verdict_lines(facts(EVEN, STOOD))[-1]


def test_the_change_of_reward_is_told_with_its_interval():
    text = " ".join(verdict_lines(facts(GAIN, MOVED)))
    assert "from 5.00 to 6.00 of 10 (change +1.00, 95 % interval +0.50 to +1.50)" in text


@pytest.mark.parametrize(("ties", "told"), [(0.6, True), (0.5, False)])
def test_a_judge_that_follows_the_order_is_told(ties, told):
    assert ("changed with the order" in " ".join(verdict_lines(facts(GAIN, ties=ties)))) is told


def test_without_a_reward_model_nothing_is_said_of_rewards():
    assert "reward" not in " ".join(verdict_lines(facts(GAIN)))


# ---- escaping


def test_markup_in_a_text_is_escaped():
    assert _e(EVIL) == "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;more&quot;"


def test_markup_in_a_table_is_escaped():
    assert "<script" not in _table([EVIL], [[EVIL, EVIL]])


class Proof(dict):
    """An export proof of which every other figure is 0.5."""

    def __missing__(self, key):
        return 0.5


@pytest.fixture
def work(tmp_path):
    """A finished run with the user's own pairs, every text in it full of markup."""
    said = {d.key: 5.0 for d in DIMENSIONS}
    panel = {
        "members": [EVIL],
        "writers": {
            "base": {"plots": 1, "panel": said, "single": said},
            "aligned": {"plots": 0, "panel": {}, "single": {}},
        },
        "claims": 2,
        "kept": 1,
        "dropped": {"not in the plot": 1},
        "malformed": 3,
        "without_rating": {EVIL: 1},
    }
    writer = {
        "measures": {key: {"value": [0.4321, 0.4, 0.5], "premises": 8} for key in MEASURES},
        "names": {"top": [[EVIL, 5, 3], ["Once", 1, 1]]},
    }
    spread = {
        "sentence": f"{EVIL} differ.",
        "writers": {"base": writer, "aligned": writer},
        "differences": {"aligned": {key: {"value": [-0.05, None, None], "premises": 8} for key in MEASURES}},
    }
    cards = {
        "passport": {"line": f"Passport of {EVIL}.", "threshold": 0.5, "from": "found"},
        "evaluate": {**facts(EVEN, MOVED), "warnings": [f"{EVIL} of one family"], "panel": panel, "diversity": spread},
        "pairs": {"pairs": 8, "from": EVIL, "format": "messages", "bad_lines": 0},
        "dpo": {"loss_kind": "dpo", "pairs": 8, "steps": 2, "too_long": 0, "margin": [0.0, 0.2]},
        "export": {
            "gguf": EVIL,
            "adapter": "adapter.gguf",
            "megabytes": 100,
            "proof": {"eos": EVIL},
        },
    }
    for name, found in cards.items():
        (tmp_path / name).mkdir()
        card = {"stage": name, "seconds": 3.0, "peak_gb": 1.0, "resumed": False, "facts": found}
        (tmp_path / name / "stage.json").write_text(json.dumps(card))
    plots = [
        Plot(f"p{i}-{k}-{who}", f"{EVIL} {who} {i}.{k}", f"p{i}", EVIL, who)
        for who in ("base", "aligned")
        for i in range(8)
        for k in range(2)
    ]
    plots[0] = Plot("p0-0-base", "", "p0", EVIL, "base")
    write_jsonl(tmp_path / "evaluate" / "plots.jsonl", plots)
    write_jsonl(
        tmp_path / "evaluate" / "scores.jsonl", [AspectRatings("p0-0-aligned", dict.fromkeys(KEYS, 6.25), rater="r")]
    )
    claim = {"dimension": "tone", "side": "merit", "claim": EVIL, "quote": EVIL}
    claims = [{**claim, "dropped": ""}, {**claim, "dropped": "not in the plot"}]
    write_jsonl(tmp_path / "evaluate" / "panel.jsonl", [{"plot_id": "p0-0-base", "claims": claims}])
    (tmp_path / "passport" / "passport.svg").write_text("<svg></svg>")
    (tmp_path / "evaluate" / "diversity.svg").write_text("<svg></svg>")
    metrics = [{"step": s, "loss": 0.7 / s, "rewards/accuracies": 0.5, "rewards/margins": 0.1 * s} for s in (1, 2)]
    (tmp_path / "dpo" / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
    return SimpleNamespace(
        of=lambda name: tmp_path / name,
        has=lambda name: name in cards,
        card=lambda name: json.loads((tmp_path / name / "stage.json").read_text(), object_hook=Proof),
        stages=tuple(cards),
    )


def test_texts_stand_side_by_side_and_only_as_text(work):
    page = "".join(_texts(work, most=3))
    assert page.count('class="premise"') == 3
    assert page.index("(nothing)") < page.index("aligned 0.0") < page.index("base 1.0") < page.index("aligned 2.0")
    assert "reward 6.25" in page
    assert "<script" not in page


def test_only_the_first_plot_of_a_premise_is_shown(work):
    page = "".join(_texts(work, most=99))
    assert "base 1.0" in page
    assert "base 1.1" not in page


@pytest.fixture
def page(work, tmp_path):
    write_report(Recipe(name=EVIL, about=EVIL), work, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_no_text_of_a_run_becomes_markup(page):
    assert "<script" not in page
    assert "{{" not in page.replace(EVIL, "")


def test_the_report_says_its_verdict_and_its_settings(page):
    assert UNCONFIRMED in page
    assert "beta: 0.1" in page


def test_the_report_shows_the_judges_passport_and_what_the_panel_dropped(page):
    assert "Passport of &lt;script&gt;" in page
    assert "1 of 2 claims could be supported by a quote; dropped: 1 not in the plot; 3 critics" in page
    assert "base, single call (1 plot)" in page
    assert "aligned, panel (0 plots)" in page


NO_VERDICT = facts([None] * 3) | {"threshold": None, "no_verdict": 24, "raw_win_rate": [0.9, 0.8, 1.0]}


def test_a_judge_whose_passport_forbids_trust_gives_no_verdict():
    first, record = verdict_lines(NO_VERDICT)[:2]
    assert first.startswith("The judge gives no verdict on any of 24 pairs: its passport says")
    assert "untrusted: it would have preferred the aligned model in 90 %" in record
    assert "a real gain" not in " ".join(verdict_lines(NO_VERDICT))


def test_pairs_without_verdict_are_counted():
    lines = verdict_lines(facts(GAIN) | {"no_verdict": 4})
    assert "80 % of 20 pairs" in lines[0]
    assert lines[2].startswith("On 4 of 24 pairs it gives no verdict")


LOADS = re.compile(r"""(?:\b(?:src|href|srcset|action|data)\s*=|url\(|@import)\s*["']?\s*(?!["']?#)(\S+)""", re.I)


def loads(text):
    """What a browser would fetch: every src, href, url() and @import that is not a place in the page itself."""
    return [found for found in LOADS.findall(text) if not found.startswith("data:")]


def test_the_report_fetches_nothing(page):
    assert loads(page) == []
    assert not re.search(r"<(?:link|iframe|object|embed)\b", page)


# ---- pictures

QUALITY = {key: {"accuracy": [0.7, 0.6, 0.8]} for key in KEYS} | {"emotion": {"accuracy": None}}
PICTURES = {
    "radar": lambda: charts.radar({n: dict.fromkeys(KEYS, v) for n, v in (("base", 4.0), ("aligned", 6.0))}, "T"),
    "curves": lambda: charts.curves([{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.6}], {"loss": "loss"}, "T"),
    "curves of nothing": lambda: charts.curves([], {"loss": "loss"}, "T"),
    "margins": lambda: charts.margins([0.5, 0.9], [0.1], 0.3),
    "margins of nothing": lambda: charts.margins([], [], None),
    "wins": lambda: charts.wins(facts(UNKNOWN)),
    "wins of nothing": lambda: charts.wins(facts([None] * 3)),
    "accuracy": lambda: charts.accuracy({"reward model": QUALITY, "length only": QUALITY}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_svg_that_fetches_nothing(name):
    svg = PICTURES[name]()
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("aria-label")
    assert loads(svg) == []
    assert not [e for e in root.iter() if e.tag.endswith(("}script", "}image", "}foreignObject"))]


def test_the_same_figures_make_the_same_picture():
    assert PICTURES["wins"]() == PICTURES["wins"]()


def test_the_words_of_a_picture_stay_words():
    svg = PICTURES["radar"]()
    assert all(word in svg for word in ("base", "aligned", "Pacing"))


def test_the_diversity_of_both_writers_stands_in_the_report_with_its_change(work, tmp_path):
    write_report(Recipe(), work, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "0.43 (0.40 to 0.50)" in page
    assert "-0.05" in page
    assert "Once" not in page  # a name of one premise only is no habit
