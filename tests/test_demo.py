"""The page's logic, without a browser: the desk, what is asked of a writer, what is shown, what is refused."""

import asyncio
import threading
import time

import pytest

from toolkit.demo import drafting, history, parts
from toolkit.demo.desk import Busy, Desk, Models, follow
from toolkit.demo.drafting import Wish, change, draft_prompt, markdown, passage_at
from toolkit.demo.house import House
from toolkit.demo.words import Words, _table
from toolkit.errors import UserError


class Writer:
    """An engine that writes words for ever, and counts them."""

    name, family = "writer", ""

    def __init__(self, words="word ", most=10_000, wait=0.001):
        self.words, self.most, self.wait, self.written, self.prompts, self.closed = words, most, wait, 0, [], False

    def stream(self, prompts, n, sampling):
        self.prompts.append(prompts[0][-1]["content"])
        for _ in range(self.most):
            for i in range(n):
                time.sleep(self.wait)
                self.written += 1
                yield i, self.words

    def close(self):
        self.closed = True


class Opened:
    def __init__(self, engine):
        self.engine = self.judge = engine


def desk_with(engine) -> Desk:
    return Desk(Models(lambda spec: Opened(engine)))


def wait_for(told, seconds=5):
    end = time.monotonic() + seconds
    while not told():
        assert time.monotonic() < end
        time.sleep(0.005)


def wish(**more) -> Wish:
    return Wish.of(
        *(
            {
                "premise": "A door.",
                "genre": "",
                "tone": "",
                "size": "plot",
                "n": 2,
                "temperature": 0.8,
                "min_p": 0.05,
                "seed": 3,
                "model": "m",
            }
            | more
        ).values()
    )


# ---- the desk


def test_jobs_are_done_one_at_a_time_in_order():
    desk, order, at_once, now = desk_with(Writer()), [], [], []

    def work(name):
        def steps(models, job):
            now.append(name)
            at_once.append(len(now))
            yield name
            now.remove(name)
            order.append(name)

        return steps

    jobs = [desk.ask(work(i)) for i in range(8)]
    wait_for(lambda: all(j.ended for j in jobs))
    assert order == list(range(8))
    assert set(at_once) == {1}
    desk.close()


def test_stop_ends_the_decoding_itself_and_keeps_what_was_written():
    engine = Writer()
    desk = desk_with(engine)
    job = desk.ask(drafting.write_drafts(wish(), None), "me")
    wait_for(lambda: job.shown)
    desk.stop("me")
    wait_for(lambda: job.ended)
    written = engine.written
    time.sleep(0.05)
    assert job.state == "stopped"
    assert job.shown[0].startswith("word")
    assert engine.written == written
    desk.close()


def test_stopping_a_waiting_job_takes_it_out_of_the_queue_and_leaves_others_alone():
    engine = Writer()
    desk = desk_with(engine)
    first = desk.ask(drafting.write_drafts(wish(), None), "one")
    second = desk.ask(drafting.write_drafts(wish(), None), "two")
    third = desk.ask(drafting.write_drafts(wish(), None), "three")
    wait_for(lambda: first.shown)
    assert desk.ahead(second) == 1
    assert desk.ahead(third) == 2
    desk.stop("two")
    assert second.state == "stopped"
    assert desk.ahead(third) == 1
    assert not first.ended
    desk.close()


def test_a_failed_job_does_not_end_the_desk():
    desk = desk_with(Writer(most=3))

    def fail(models, job):
        yield 1
        raise UserError("the premise is empty")

    bad, good = desk.ask(fail), desk.ask(drafting.write_drafts(wish(), None))
    wait_for(lambda: good.ended)
    assert (bad.state, good.state) == ("failed", "done")
    desk.close()


def test_the_queue_has_an_end():
    desk = desk_with(Writer())

    def flood():
        for _ in range(100):
            desk.ask(drafting.write_drafts(wish(), None))

    with pytest.raises(Busy):
        flood()
    desk.close()


def test_when_nobody_reads_on_the_job_stops():
    desk = desk_with(Writer())
    job = desk.ask(drafting.write_drafts(wish(), None))

    async def leave():
        reader = follow(desk, job)
        async for _state, shown, _ahead in reader:
            if shown:
                break
        await reader.aclose()

    asyncio.run(leave())
    wait_for(lambda: job.ended)
    assert job.state == "stopped"
    desk.close()


def test_follow_ends_with_the_last_word():
    desk = desk_with(Writer(most=5))
    job = desk.ask(drafting.write_drafts(wish(n=1), None))

    async def read():
        return [frame async for frame in follow(desk, job, every=0.002)]

    frames = asyncio.run(read())
    assert frames[-1][:2] == ("done", ["word word word word word "])
    desk.close()


def test_a_model_file_that_goes_away_is_not_used_again(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    opened = []

    def opening(spec):
        if not file.is_file():
            raise UserError(f"no GGUF file at {file}")
        engine = Writer(most=1)
        engine.path = file
        opened.append(engine)
        return Opened(engine)

    models = Models(opening)
    assert models.get("m") is models.get("m")
    file.write_bytes(b"GGUF2")
    models.get("m")
    assert [e.closed for e in opened] == [True, False]
    file.unlink()
    with pytest.raises(UserError, match="no GGUF file"):
        models.get("m")
    assert opened[-1].closed


def test_two_models_are_held_and_the_one_unused_longest_goes():
    engines = {}

    def opening(spec):
        engines[spec] = Writer()
        return Opened(engines[spec])

    models = Models(opening)
    for spec in ("a", "b", "a", "c"):
        models.get(spec)
    assert [s for s, e in engines.items() if e.closed] == ["b"]


def test_closing_the_desk_stops_its_work():
    engine = Writer()
    desk = desk_with(engine)
    job = desk.ask(drafting.write_drafts(wish(), None))
    wait_for(lambda: job.shown)
    desk.close()
    assert job.state == "stopped"
    assert engine.closed
    assert not any(t.name == "desk" and t is desk._thread for t in threading.enumerate())


# ---- what is asked


def test_a_plot_is_asked_for_as_everywhere_in_the_house():
    from toolkit.narrative.writing import write_prompt

    assert draft_prompt(wish()) == write_prompt("A door.")


def test_genre_and_tone_stand_after_the_premise_in_its_language():
    assert "A door.\n\nGenre: Fable. Tone: Wry." in draft_prompt(wish(genre="Fable", tone="Wry"))[0]["content"]
    assert (
        "一扇门。\n\n体裁：寓言。" in draft_prompt(wish(premise="一扇门。", genre="寓言", size="brief"))[0]["content"]
    )


def test_fields_out_of_range_are_brought_into_it():
    asked = wish(n=99, temperature=-4, min_p=7, size="endless", seed=2**40 + 5)
    assert (asked.n, asked.temperature, asked.min_p, asked.size, asked.seed) == (4, 0, 0.5, "plot", 5)


@pytest.mark.parametrize("premise", ["", "  \n", None, "x" * 2**20])
def test_an_empty_premise_or_a_megabyte_is_refused(premise):
    with pytest.raises(UserError, match="premise"):
        wish(premise=premise)


@pytest.mark.parametrize(
    ("start", "end", "passage"),
    [
        (0, 0, "One."),
        (8, 8, "Two two."),
        (7, 9, "wo"),
        (5, 5, "One."),
        (99, 120, "Three."),
        (4, 6, "One."),
        (-3, 2, "On"),
    ],
)
def test_the_passage_is_what_is_marked_or_the_paragraph_at_the_cursor(start, end, passage):
    text = "One.\n\nTwo two.\n\nThree."
    a, b = passage_at(text, start, end)
    assert text[a:b] == passage


def test_a_change_touches_only_its_passage():
    engine = Writer("new ", most=2)
    desk = desk_with(engine)
    job = desk.ask(change("One.\n\nTwo.\n\nThree.", "calmer", (7, 7), wish()))
    wait_for(lambda: job.ended)
    assert job.shown == "One.\n\nnew new \n\nThree."
    assert "Passage: Two." in engine.prompts[0]
    desk.close()


def test_a_change_that_brings_nothing_leaves_the_text():
    desk = desk_with(Writer("", most=2))
    job = desk.ask(change("One.", "rewrite", (0, 0), wish()))
    wait_for(lambda: job.ended)
    assert job.shown == "One."
    desk.close()


def test_continue_adds_at_the_end():
    desk = desk_with(Writer("more ", most=1))
    job = desk.ask(change("One.\n", "continue", (0, 0), wish()))
    wait_for(lambda: job.ended)
    assert job.shown == "One.\n\nmore "
    desk.close()


def test_markdown_holds_the_text_and_no_markup_of_its_own():
    made = markdown("A *door*", "# not a heading <b>", "by x")
    assert made.startswith("> A \\*door\\*\n\n\\# not a heading \\<b\\>")


# ---- history


def test_history_keeps_the_newest_first_and_can_be_deleted(tmp_path):
    path = tmp_path / "deep" / "history.jsonl"
    for i in range(3):
        history.keep(path, wish(premise=f"Premise {i}."), ["a", "b"])
    assert [e["wish"]["premise"] for e in history.recall(path)] == ["Premise 2.", "Premise 1.", "Premise 0."]
    assert history.recall(path)[0]["texts"] == ["a", "b"]
    history.forget(path)
    assert history.recall(path) == []


def test_a_history_that_cannot_be_written_or_read_loses_no_text(tmp_path):
    (tmp_path / "file").write_text("x")
    history.keep(tmp_path / "file" / "history.jsonl", wish(), ["a"])
    broken = tmp_path / "h.jsonl"
    broken.write_text("not json\n")
    assert history.recall(broken) == []


def test_what_was_stopped_is_in_the_history(tmp_path):
    desk, path = desk_with(Writer()), tmp_path / "h.jsonl"
    job = desk.ask(drafting.write_drafts(wish(), path), "me")
    wait_for(lambda: job.shown)
    desk.stop("me")
    wait_for(lambda: job.ended)
    assert history.recall(path)[0]["texts"][0].startswith("word")
    desk.close()


# ---- what is shown


def test_whatever_was_written_is_text_not_markup():
    nasty = "<script>alert(1)</script>'\"${x}{{y}}`"
    shown = parts.drafts(Words("en"), [nasty], True, "Take") + parts.note(nasty, nasty)
    for sign in ("<script", "${", "{{", "`"):
        assert sign not in shown
    assert "&lt;script&gt;" in shown


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_word_is_there_in_both_languages(language):
    for key, both in _table()["words"].items():
        assert len(both) == 2, key
        assert all(isinstance(x, str) and x for x in both), key
    for rule in _table()["mistakes"]:
        assert rule["en"], rule
        assert rule["zh"], rule


def test_known_mistakes_are_told_in_the_language_of_the_page(tmp_path):
    from toolkit.engines.llama import check_gguf
    from toolkit.narrative.writing import check_premise

    def said(call, *given):
        with pytest.raises(UserError) as caught:
            call(*given)
        return Words("zh").mistake(caught.value)[0]

    assert said(check_premise, "") == "前提是空的。"
    assert "1,048,576" in said(check_premise, "x" * 2**20)
    assert "已不存在" in said(check_gguf, tmp_path / "gone.gguf")
    assert Words("zh").mistake(UserError("something new"))[0].endswith("something new")


def test_an_unexpected_error_is_named_without_a_traceback():
    message, hint = Words("en").mistake(RuntimeError("boom"))
    assert "our side" in message
    assert hint == "RuntimeError: boom"


# ---- the house


@pytest.mark.parametrize("name", ["../secret", "/etc", "..", ".", "", None, "r1/../../x", "r1\x00", ["r1"]])
def test_no_name_leads_out_of_the_folder_of_runs(tmp_path, name):
    (tmp_path / "runs" / "r1").mkdir(parents=True)
    (tmp_path / "runs" / "r1" / "recipe.json").write_text("{}")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "recipe.json").write_text("{}")
    house = House(runs=tmp_path / "runs", desk=None)
    assert house.run("r1").name == "r1"
    with pytest.raises(UserError, match="no such run"):
        house.run(name)


def test_only_models_that_were_offered_are_opened(tmp_path):
    house = House(runs=tmp_path, desk=None)
    assert house.model("embedded") == "embedded"
    for name in ("/etc/passwd", "owner/name", "http://elsewhere", None, []):
        with pytest.raises(UserError, match="no such model"):
            house.model(name)
