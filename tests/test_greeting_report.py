"""The greetings' report: every section from what the stages recorded, sections without facts left out, texts only text."""

import json
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from test_report import EVIL, loads

from toolkit.evaluate import greeting_charts, greetings
from toolkit.evaluate.greeting_report import write_greeting_report
from toolkit.evaluate.greeting_sections import tag
from toolkit.evaluate.greetings import Writer, answer_rows, measure
from toolkit.recipe import Recipe
from toolkit.records import Request, write_jsonl

REQUESTS = [
    Request("e0", "wedding toast for my sister, funny " + EVIL),
    Request("e1", "retirement card for a colleague who kept bees"),
    Request("z0", "七十大寿，写给外公，他每天早上去公园下棋", language="zh"),
    Request("z1", "恭賀喬遷，寫給同事", language="zh"),
]
GOOD = {
    "e0": ["You once cried at a soup advert; today it is our turn.", "To the bride who still owes me a bicycle!"],
    "e1": ["May your bees be lazy and your mornings long.", "Thirty years of meetings, and only the bees listened."],
    "z0": ["外公，棋盘上您让我一子，日子里您让了我一生。", "七十年落子无悔，愿外公天天有好对手！"],
    "z1": ["新居的窗很大，願你的日子也亮堂。", "鑰匙換了，鄰居換了，請你喝茶的人沒換！"],
}
PLAIN = {r.id: ["Congratulations." if r.language == "en" else "恭喜，祝一切顺利。"] * 2 for r in REQUESTS}
SHARE = [0.84, 0.69, 0.94]
QUALITY = {
    "accuracy": SHARE,
    "length_only": [0.54, 0.38, 0.69],
    "own": SHARE,
    "pairs": 36,
    "requests": 36,
    "trusted": True,
}
UNSEEN = {"all": QUALITY, "en": {**QUALITY, "model": "minilm", "strength": 0.003}}
FIGURES = {"pairs": 40, "requests": 20, "accuracy": SHARE, "length_only": [0.5, 0.4, 0.6]}
RULES = ["Answers what was asked, the small detail too.", "Could be sent to one person only. " + EVIL]


def comparison() -> tuple[dict, list[dict]]:
    writers = [
        Writer("base", PLAIN, 20.0, 4),
        Writer("sft", {**PLAIN, "e0": GOOD["e0"]}, 21.5, 4),
        Writer("best of 4", {**PLAIN, "e0": GOOD["e0"], "z0": GOOD["z0"]}, 80.0, 16),
        Writer("grpo " + EVIL, GOOD, 22.0, 4),
    ]
    judge = SimpleNamespace(score=lambda q, a: np.array([len(set(t)) / 9 for t in a]), quality=UNSEEN)
    scorers = {"model": lambda q, a: [len(t) / 10 for t in a], "judge": lambda q, a: [t.count("，") + 0.5 for t in a]}
    broken = lambda text, request: ["too short"] if text in PLAIN[request.id] else []  # noqa: E731
    telling = {writers[-1].name: [{"ngram": "您让", "z": 2.4}, {"ngram": EVIL, "z": -2.1}]}
    return measure(writers, REQUESTS, scorers, judge, broken=broken, telling=telling), answer_rows(writers, REQUESTS)


def debate(**more) -> dict:
    row = {
        "request_id": "z0",
        "request": REQUESTS[2].text,
        "text": GOOD["z0"][0],
        "broken": [],
        "verdict": 1,
        "reflected": 1,
    }
    row |= {
        "merits": ["提到了下棋", EVIL],
        "faults": ["“让了我一生”略重"],
        "reason": "具体而真诚。",
        "overturned": False,
    }
    return row | {"cause": "", "error": ""} | more


DEBATES = [
    debate(),
    debate(verdict=0, reflected=1, overturned=True, cause="nobody else would be told so", quote="您让我一子"),
    debate(verdict=0, reflected=1, text="福寿安康。", cause="not overturned, nothing quoted: it is short"),
    debate(verdict=0, reflected=0, text="福如东海，寿比南山。"),
    debate(verdict=None, reflected=None, error="no readable JSON in 2 tries"),
    debate(verdict=0, reflected=None, broken=["too short"], text="好"),
]


def look(step: int, **more) -> dict:
    row = {
        "step": step,
        "reward": 0.1 * step,
        "judge": 1.2 - 0.05 * step,
        "diversity": 0.6 - 0.02 * step,
        "length": 30 + step,
    }
    return {**row, "repetition": 0.01 * step, "kl": 0.03 * step, "reasons": [], **more}


ALL = {
    "requests": {"train": 240, "validate": 60, "test": 100, "labelled": {"train": 160, "validate": 40, "test": 70}},
    "sft": {"rows": 160, "too_long": 0, "steps": 120},
    "rejection": {
        "asked": 40,
        "judged": 36,
        "accepted": 9,
        "acceptance": [0.25, 0.14, 0.41],
        "overturned": 3,
        "overturn": [0.08, 0.03, 0.22],
        "overturn_refused": 1,
        "broken": 1,
        "form": {"too short": 1},
        "no_verdict": {"no readable JSON": 4},
        "calls": {"writer": 10, "judge": 40},
        "seconds": 81.2,
    },
    "pairs": {"pairs": 60, "chosen_longer": 30, "chosen_shorter": 28, "equal": 2},
    "pairwise": {
        "pairs": 60,
        "steps": 30,
        "too_long": 0,
        "held_out": {"natural": FIGURES, "balanced": FIGURES},
        "untrained": {"natural": FIGURES, "balanced": None},
        "calibration": {"temperature": 1.7, "log_loss": [0.71, 0.6], "ece": [0.12, 0.05]},
        "telling": [{"ngram": "下棋", "side": "chosen", "z": 3.1}, {"ngram": "福如东海", "side": "rejected", "z": -4.2}],
    },
    "unseen": {"judge": {"quality": UNSEEN, "left_out": {"zh": "3 labelled requests; at least 10 are needed"}}},
    "principles": {
        "en": {
            "language": "en",
            "rounds": 2,
            "kept": 1,
            "stopped": "all rounds done",
            "gate": {"pairs": 40, "start": {"accuracy": [0.6, 0.5, 0.7]}, "best": {"accuracy": [0.7, 0.6, 0.8]}},
            "detector": {"version": 2, "rules": RULES},
        }
    },
    "grpo": {
        "steps": 40,
        "answers": 320,
        "reward": [0.1, 4.0],
        "seconds": {"writing": 100.5, "rewards": 20.1, "update": 80.2},
        "tripwire": {"looks": 5, "tripped": 40, "reasons": ["diversity fell from 0.60 to 0.20"], "kept": 30},
    },
    "evaluate": {},
}  # fmt: skip


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A finished run's folder with the facts of these stages → the page."""
    monkeypatch.setattr(greetings, "embed", letters)

    def page(facts: dict, recipe: Recipe | None = None) -> str:
        found, rows = comparison()
        work = run_folder(tmp_path, {**facts, "evaluate": found})
        write_jsonl(tmp_path / "evaluate" / "answers.jsonl", rows)
        write_greeting_report(recipe or Recipe(name=EVIL, about=EVIL, task="greeting"), work, tmp_path / "report.html")
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return page


def letters(texts, model="", desc=""):
    out = np.zeros((len(texts), 256), np.float32)
    for row, text in zip(out, texts, strict=True):
        for c in text:
            row[ord(c) % 256] += 1
        row /= np.linalg.norm(row)
    return out


def run_folder(root, facts: dict):
    for name, found in facts.items():
        (root / name).mkdir(exist_ok=True)
        card = {"stage": name, "facts": found, "seconds": 3.0, "peak_gb": 1.0, "resumed": False}
        (root / name / "stage.json").write_text(json.dumps(card))
    if "rejection" in facts:
        write_jsonl(root / "rejection" / "records.jsonl", DEBATES)
    if "principles" in facts:
        (root / "principles" / "en").mkdir(exist_ok=True)
        rounds = [{"round": n, "language": "en", "kept": True, "accuracy": [0.6 + n / 10, 0.5, 0.8]} for n in (0, 1)]
        rounds[1] |= {
            "verdict": "kept",
            "why": "accuracy 60 % → 70 %",
            "passed": [0.5, 0.3, 0.7],
            "diff": "--- 1\n+++ 2\n-1. Be kind.\n+1. Be kind to one person. " + EVIL,
        }
        write_jsonl(root / "principles" / "en" / "history.jsonl", rounds)
    if "grpo" in facts:
        write_jsonl(root / "grpo" / "tripwire.jsonl", [look(s) for s in (0, 10, 20, 30, 40)])
        write_jsonl(
            root / "grpo" / "metrics.jsonl", [{"step": s, "reward": 0.1 * s, "kl": 0.01 * s} for s in range(1, 41)]
        )
    return SimpleNamespace(
        of=lambda name: root / name,
        has=lambda name: name in facts,
        card=lambda name: json.loads((root / name / "stage.json").read_text()),
        stages=(*facts, "report"),
    )


# ---- the whole page


def test_a_whole_run_has_every_section(make):
    page = make(ALL)
    for title in ("What was done", "Writers compared", "Side by side", "unseen judge can be trusted", "Alignment by GRPO",
                  "The tripwire", "The reward model", "The principle-guided judge", "The agents", "Settings"):  # fmt: skip
        assert title in page


def test_a_run_without_a_stage_has_no_section_of_it(make):
    page = make({})
    for title in (
        "The reward model",
        "The tripwire",
        "principle-guided",
        "The agents",
        "Alignment by",
        "can be trusted",
    ):
        assert title not in page
    assert "Writers compared" in page


def test_no_text_of_a_run_becomes_markup(make):
    page = make(ALL)
    assert "<script" not in page
    assert "{{" not in page


def test_nothing_is_fetched(make):
    assert loads(make(ALL)) == []


def test_texts_say_their_language(make):
    page = make(ALL)
    assert f'lang="zh-Hans">{GOOD["z0"][0]}' in page
    assert f'lang="zh-Hant">{GOOD["z1"][0]}' in page
    assert f'lang="en">{GOOD["e1"][0]}' in page


@pytest.mark.parametrize(
    ("text", "language"),
    [("Good luck", "en"), ("祝外公健康长寿", "zh-Hans"), ("恭賀喬遷之喜", "zh-Hant"), ("大山", "zh-Hans"), ("", "en")],
)
def test_the_tag_of_a_text(text, language):
    assert tag(text) == language


def test_chinese_has_a_font_on_every_system(make):
    page = make(ALL)
    for font in (
        "PingFang SC",
        "Hiragino Sans GB",
        "Microsoft YaHei",
        "Noto Sans CJK SC",
        "Source Han Sans SC",
        "PingFang TC",
    ):
        assert font in page
    assert "svg text { font-family:" in page


# ---- sections


def test_a_tripped_run_says_so_at_the_top(make):
    page = make(ALL)
    top = page[: page.index("<h2>")]
    assert "stopped the training at step 40" in top
    assert "diversity fell from 0.60 to 0.20" in top
    assert "last good checkpoint: step 30" in top


def test_a_healthy_run_says_how_often_it_was_looked_at(make):
    healthy = {**ALL, "grpo": {"steps": 40, "tripwire": {"looks": 5, "tripped": None}}}
    page = make(healthy)
    assert "It looked 5 times and did not trip" in page
    assert "stopped the training" not in page


def test_the_first_debate_of_each_outcome_can_be_opened(make):
    page = make(ALL)
    for kind in ("overturned", "accepted", "rejected", "no verdict", "broken form"):
        assert f"<summary>{kind}: " in page
    assert "no readable JSON in 2 tries" in page
    assert "提到了下棋" in page


def test_a_refused_change_of_verdict_leaves_the_judges(make):
    page = make(ALL)
    assert page.index("<summary>rejected: ") < page.index("福寿安康。")
    assert "not overturned, nothing quoted" in page


def test_first_and_last_reward_are_shown(make):
    assert "0.1 → 4" in make(ALL)


def test_the_principles_history_is_shown_as_diffs(make):
    page = make(ALL)
    assert '<span class="added">+1. Be kind to one person.' in page
    assert '<span class="gone">-1. Be kind.' in page
    assert "Round 1: kept, 70 % (50–80) right" in page


def test_rates_are_beside_their_intervals(make):
    page = make(ALL)
    assert "25 % (14–41)" in page
    assert "length only" in page


def test_the_reward_models_telling_words_are_shown(make):
    page = make(ALL)
    assert page.index("Most telling of chosen") < page.index("下棋</span>") < page.index("福如东海</span>")


# ---- pictures


def pictures() -> dict[str, str]:
    spread = {"sft $a$": [1.0, 0.5, 1.5], "祝福 <x>": [2.0, None, None], "none": [None, None, None]}
    return {
        "forest": greeting_charts.forest(spread, "reward <b>"),
        "trade": greeting_charts.trade({k: (v, v) for k, v in spread.items()}, "reward"),
        "series": greeting_charts.series([(0, 1.0), (10, 2.0)], "KL", stopped=10, kept=0),
        "bars": greeting_charts.bars({"reward model": [0.8, 0.7, 0.9], "length only": [0.5, None, None]}, "right, %"),
    }


@pytest.mark.parametrize("name", ["forest", "trade", "series", "bars"])
def test_a_picture_is_well_formed(name):
    root = ElementTree.fromstring(pictures()[name])
    assert root.tag.endswith("svg")
    assert root.get("role") == "img"


def test_the_words_of_a_picture_stay_words():
    found = pictures()["forest"]
    assert "祝福 &lt;x&gt;" in found
    assert "sft $a$" in found


def test_a_writer_without_a_figure_has_no_row():
    assert "none<" not in pictures()["forest"]
