"""What the page's other tabs stand on: blind pairs, verdicts as they grow, runs and training."""

import json
import sys
import time

import pytest
from test_demo import Opened, Writer, wait_for, wish

from toolkit.demo import comparing, judging, parts, running, runview, verdict
from toolkit.demo.comparing import Pair, Progress
from toolkit.demo.desk import Desk, Job, Models
from toolkit.demo.house import House
from toolkit.demo.running import Training
from toolkit.demo.tab_judge import read_text
from toolkit.demo.words import Words
from toolkit.engines.base import Choice, Sampling
from toolkit.errors import Stopped, UserError
from toolkit.evaluate.vote import keep_vote, read_votes, take_back, tally
from toolkit.narrative.dimensions import KEYS
from toolkit.records import read_pairs

A, B = ("one", "a.gguf"), ("other", "b.gguf")


def pair_desk(**texts) -> Desk:
    return Desk(Models(lambda spec: Opened(Writer(texts[spec[0]], most=3))))


# ---- compare


def test_both_texts_come_together_and_until_then_only_their_length_is_told():
    desk = pair_desk(a="lamp ", b="wave ")
    job, seen = desk.ask(comparing.write_pair(wish(n=1), A, B)), []
    show = job.show
    job.show = lambda shown: (seen.append(shown), show(shown))
    wait_for(lambda: job.ended)
    assert all(isinstance(s, Progress) for s in seen[:-1])
    assert isinstance(job.shown, Pair)
    assert {p.text: p.origin for p in job.shown.shown} == {"lamp lamp lamp": "one", "wave wave wave": "other"}
    desk.close()


def test_which_text_stands_first_does_not_depend_on_the_model():
    desk, first = pair_desk(a="lamp ", b="wave "), set()
    for _ in range(40):
        job = desk.ask(comparing.write_pair(wish(n=1), A, B))
        wait_for(lambda job=job: job.ended)
        first.add(job.shown.shown[0].origin)
    assert first == {"one", "other"}
    desk.close()


def test_the_page_shows_a_pair_without_its_origins():
    desk = pair_desk(a="lamp ", b="wave ")
    job = desk.ask(comparing.write_pair(wish(n=1), ("SECRET-1", "a"), ("SECRET-2", "b")))
    wait_for(lambda: job.ended)
    assert "SECRET" not in parts.pair(Words("en"), job.shown)
    desk.close()


def test_the_same_model_or_the_same_words_are_no_comparison():
    with pytest.raises(UserError, match="same model"):
        comparing.write_pair(wish(), A, ("name", A[1]))
    desk = pair_desk(a="same ", b="same ")
    job = desk.ask(comparing.write_pair(wish(n=1), A, B))
    wait_for(lambda: job.ended)
    assert (job.state, str(job.error)) == ("failed", "both wrote the same words")
    desk.close()


def test_votes_of_the_page_are_training_pairs_and_can_be_taken_back(tmp_path):
    desk, out = pair_desk(a="lamp ", b="wave "), tmp_path / "votes.jsonl"
    job = desk.ask(comparing.write_pair(wish(n=1), A, B))
    wait_for(lambda: job.ended)
    pair = job.shown
    keep_vote(out, "2", pair.premise, list(pair.shown), 1.5)
    last = keep_vote(out, "0", pair.premise, list(pair.shown), 1.5)
    (row,) = read_pairs(out).rows
    assert row.chosen == pair.shown[1].text
    assert tally(*read_votes(out))["votes"] == 1
    take_back(*last)
    take_back(*last)
    assert [len(x) for x in read_votes(out)] == [1, 0]
    shown = parts.count(Words("en"), tally(*read_votes(out)), "votes.jsonl")
    assert "100 % of 1 votes" in shown
    assert pair.shown[1].origin in shown
    desk.close()


# ---- judge


class Judge(Writer):
    """Rates 9 throughout and finds one quote for everything it claims."""

    languages = ("en", "zh")

    def choose(self, prompts, options, reason=0):
        logps = [-20.0] * len(options)
        logps[-1] = 0.0
        return [Choice(tuple(logps), "a clear and moving turn") for _ in prompts]

    def stream(self, prompts, n, sampling):
        for i, prompt in enumerate(prompts):
            asked = prompt[-1]["content"]
            quoting = "quote" in sampling.schema
            self.prompts.append(asked)
            yield (
                i,
                json.dumps(
                    {"quote": "She burned the letters one by one"}
                    if quoting
                    else {"claims": [f"claim number {len(self.prompts)} holds"]}
                ),
            )


class Judged(Opened):
    passport = None

    def __init__(self, engine):
        super().__init__(engine)
        self.judge = engine


TEXT = "Mara kept the light. She burned the letters one by one. In the morning the ship was safe."


def judged(closely: bool, text=TEXT):
    desk = Desk(Models(lambda spec: Judged(Judge())))
    job = desk.ask(judging.judge(text, "m", closely))
    wait_for(lambda: job.ended)
    desk.close()
    return job


def test_ratings_come_first_and_evidence_after():
    quick, close = judged(False), judged(True)
    assert quick.shown.opinion is None
    assert close.state == "done"
    assert set(close.shown.single) == set(KEYS)
    assert any(c.quote for c in close.shown.opinion.claims)


def test_the_verdict_shows_radar_claims_and_quotes():
    shown = verdict.verdict(Words("en"), TEXT, judged(True).shown)
    for piece in ("<svg", "Character Development", "<table", "claims that do not count"):
        assert piece in shown
    assert verdict.marked(TEXT, ["she burned the letters one by one"]).count("<mark>") == 1


def test_marking_a_quote_lets_no_markup_in():
    shown = verdict.marked("A <b>bold</b> word & more.", ["<b>bold</b>"])
    assert "<b>" not in shown
    assert "<mark>&lt;b&gt;bold&lt;/b&gt;</mark>" in shown


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Это рассказ о маяке и о буре, и о письмах. " * 3, "another language"),
        ("", "empty"),
        ("x" * 2**20, "1,048,576"),
    ],
)
def test_what_cannot_be_judged_says_why(text, why):
    try:
        job = judged(True, judging.check_text(text))
        told = str(job.error)
    except UserError as error:
        told = str(error)
    assert why in told


def test_judging_stops_between_two_answers():
    job = Job(None)
    watched = judging.Watched(Judge(), job, lambda *step: job.stop())
    with pytest.raises(Stopped):
        watched.generate([[{"role": "user", "content": "x"}]] * 3, 1, Sampling(schema="{}"))
    with pytest.raises(Stopped):
        watched.choose([[{"role": "user", "content": "x"}]], ["1"])


def test_a_passport_line_is_shown_and_its_absence_too():
    from toolkit.evaluate.passport import Passport
    from toolkit.judges import DATA

    known = Passport.load(DATA / "passports" / "embedded.json")
    assert known.line[:40] in verdict.passport(Words("en"), known)
    assert "不可信" in verdict.passport(Words("zh"), known)
    assert "fablesmith passport" in verdict.passport(Words("en"), None)


@pytest.mark.parametrize(
    ("name", "content"), [("a.gguf", b"GGUF"), ("a.txt", b"\xff\xfe\x00x"), ("b.txt", b"x" * (2**20 + 1))]
)
def test_only_text_files_are_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError):
        read_text(str(tmp_path / name))


# ---- runs


@pytest.fixture
def house(tmp_path) -> House:
    """A house with one run: model done, dpo at work, a line of its metrics torn."""
    run = tmp_path / "runs" / "r<1>"
    (run / "model").mkdir(parents=True)
    (run / "recipe.json").write_text(json.dumps({"name": "r", "about": "<i>about</i>", "task": "plot"}))
    (run / "model" / "stage.json").write_text(json.dumps({"seconds": 12.5, "peak_gb": 1.25}))
    (run / "dpo.partial").mkdir()
    rows = [{"step": i, "loss": 0.7 - i / 100, "rewards/margins": i / 10} for i in range(5)]
    (run / "dpo.partial" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 5, "lo')
    return House(runs=tmp_path / "runs", votes=tmp_path / "votes.jsonl", history=tmp_path / "h.jsonl", desk=None)


def test_a_run_tells_where_its_stages_stand(house):
    found = {s.name: s for s in running.steps(house.run("r<1>"))}
    assert (found["model"].state, found["model"].seconds) == ("done", 12.5)
    assert found["dpo"].state == "working"
    assert found["report"].state == "waiting"
    shown = runview.stages(Words("zh"), house.run("r<1>"), at_work=False)
    assert "中途停止" in shown


def test_curves_are_drawn_from_a_file_that_is_still_being_written(house):
    path = house.run("r<1>") / "dpo.partial" / "metrics.jsonl"
    before = path.read_bytes()
    assert list(running.curves(house.run("r<1>"))) == ["dpo"]
    assert path.read_bytes() == before


def test_whatever_stands_in_a_run_is_shown_as_text(house):
    folder = house.run("r<1>")
    (folder / "pairs").mkdir()
    nasty = "<script>x</script>"
    (folder / "pairs" / "pairs.jsonl").write_text(
        json.dumps({"prompt": nasty, "chosen": nasty, "rejected": nasty, "margin": 1}) + "\n[1]\n"
    )
    (folder / "pairs" / "rejected.jsonl").write_text(
        json.dumps({"reason": "margin"}) + "\n" + json.dumps({"reason": nasty}) + "\n"
    )
    shown = runview.run(Words("en"), house, folder, at_work=True)
    assert "<script" not in shown
    assert "<i>about" not in shown
    assert "the mean reward differs too little" in shown


def test_the_safety_card_and_the_report_are_linked_when_they_are_there(house):
    folder = house.run("r<1>")
    assert "../safety/" not in runview.run(Words("en"), house, folder, at_work=False)
    card = running.safety_card(house, folder)
    card.parent.mkdir()
    card.write_text("<p>card</p>")
    card.with_suffix(".svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>x</script></svg>")
    shown = runview.run(Words("en"), house, folder, at_work=False)
    assert "href='../safety/r%3C1%3E'" in shown
    assert "src='data:image/svg+xml;base64," in shown
    assert "<script" not in shown


def test_a_broken_run_folder_breaks_nothing(house):
    folder = house.runs / "broken"
    folder.mkdir()
    for name in ("recipe.json", "manifest.json"):
        (folder / name).write_text("{")
    (folder / "dpo").mkdir()
    (folder / "dpo" / "metrics.jsonl").write_text("\x00\n[]\n{}\n")
    assert "broken" in runview.run(Words("en"), house, folder, at_work=False)


def test_a_run_that_has_only_just_been_started_is_shown_too(house):
    folder = house.runs / "new"
    folder.mkdir()
    (folder / running.NOTE).write_text("{}")
    assert {s.state for s in running.steps(Training(house).folder("new"))} == {"waiting"}


# ---- training


def test_training_starts_is_seen_stops_and_goes_on(house, monkeypatch):
    training = Training(house)
    real = running.subprocess.Popen
    monkeypatch.setattr(
        running.subprocess,
        "Popen",
        lambda command, **more: real(
            [sys.executable, "-c", "import time; print('step 1', flush=True); time.sleep(60)"], **more
        ),
    )
    folder = training.start("quickstart", "t1", ["dpo.beta=0.2"])
    (folder / "recipe.json").write_text("{}")
    wait_for(lambda: "step 1" in running.said(folder))
    assert training.at_work(folder)
    with pytest.raises(UserError, match="at work already"):
        training.start("quickstart", "t1", [])
    other = Training(house)  # a server that was started later
    assert other.at_work(folder)
    began = time.monotonic()
    other.stop(folder)
    assert time.monotonic() - began < 5
    assert not training.at_work(folder)
    with pytest.raises(UserError, match="no run"):
        training.stop(folder)
    assert training.start("quickstart", "t1", []) == folder
    training.stop(folder)


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "/tmp/x", "a/b", ".hidden", "-rf", "x" * 61, "a.partial", None, "n\nm"]
)
def test_no_name_of_a_run_leads_elsewhere(house, name):
    with pytest.raises(UserError, match="name"):
        Training(house).start("quickstart", name, [])


def test_training_refuses_what_the_recipe_does_not_take_before_it_starts(house):
    for recipe, sets in (("quickstart", ["dpo.beat=0.2"]), ("/etc/passwd", []), ("quickstart", ["no equals sign"])):
        with pytest.raises(UserError):
            Training(house).start(recipe, "t2", sets)
    assert not (house.runs / "t2").exists()


def test_a_page_that_others_can_reach_starts_no_training(house):
    house.local = False
    with pytest.raises(UserError, match="own page"):
        Training(house).start("quickstart", "t3", [])


def test_the_verdict_of_fit_is_told_in_words():
    found = {
        "fits": False,
        "has_vram": 0.0,
        "has_ram": 8.0,
        "has_disk": 100.0,
        "needs": {"vram": 0, "ram": 12.3, "disk": 5},
    }
    found |= {
        "seconds": 640,
        "what_helps": [{"change": "shorter <texts>", "set": ["dpo.max_length=512"], "fits": True}],
    }
    shown = runview.fits(Words("en"), found)
    assert "It does not fit." in shown
    assert "memory 12.3 of 8.0 GiB" in shown
    assert "About 11 min" in shown
    assert "shorter &lt;texts&gt;" in shown
