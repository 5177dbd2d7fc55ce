"""The server engine against a tiny server on this machine that answers as it is told."""

import contextlib
import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from toolkit.engines.base import Sampling
from toolkit.engines.load import load_engine
from toolkit.engines.server import ServerEngine, at_once
from toolkit.errors import EngineDown, UserError

ASK = [{"role": "user", "content": "A lamp."}]


class Handler(BaseHTTPRequestHandler):
    """Gives `server.answers` one after the other (a dict, or bytes, or a status), the last one for ever."""

    def do_GET(self):
        self.server.asked.append((self.path, None))
        self.answer(self.server.models)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((self.path, body))
            answers = self.server.answers
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        self.answer(answer(body) if callable(answer) else answer)

    def answer(self, answer):
        status, answer = answer if isinstance(answer, tuple) else (200, answer)
        status = answer if isinstance(answer, int) else status
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw) + self.server.missing))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # who asked has not waited
            self.wfile.write(raw)
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    waits = []
    monkeypatch.setattr("toolkit.engines.server.time", SimpleNamespace(sleep=waits.append))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.lock, server.asked, server.answers, server.missing = threading.Lock(), [], [], 0
    server.models = 501
    server.url, server.waits = f"http://127.0.0.1:{server.server_port}/v1", waits
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def says(text):
    return {"choices": [{"message": {"content": text}}]}


def chooses(top, *after):
    """A first token with these (token, log-probability) alternatives, then the tokens `after`."""
    first = {"token": top[0][0], "top_logprobs": [{"token": t, "logprob": p} for t, p in top]}
    return {"choices": [{"message": {"content": ""}, "logprobs": {"content": [first, *({"token": t} for t in after)]}}]}


def test_an_http_address_names_a_server(server):
    assert load_engine(server.url).name == f"server:{server.url}"


def test_answers_come_n_to_a_prompt_and_in_order(server):
    server.answers = [lambda body: says(f"{body['messages'][0]['content']}{body['seed']}")]
    prompts = [[{"role": "user", "content": c}] for c in "ab"]
    assert ServerEngine(server.url).generate(prompts, 2, Sampling(seed=7)) == [["a7", "a8"], ["b9", "b10"]]


def test_the_sampling_reaches_the_server(server):
    server.answers = [says("")]
    ServerEngine(server.url + "/", model="m").generate(
        [ASK], 1, Sampling(0.3, min_p=0.1, top_p=0.9, repeat_penalty=1.2, max_tokens=9, stop=("\n",), seed=5)
    )
    ((path, body),) = server.asked
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "m",
        "messages": ASK,
        "temperature": 0.3,
        "min_p": 0.1,
        "top_p": 0.9,
        "repeat_penalty": 1.2,
        "max_tokens": 9,
        "stop": ["\n"],
        "seed": 5,
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_each_answer_may_have_its_own_sampling(server):
    server.answers = [lambda body: says(f"{body['temperature']}")]
    found = ServerEngine(server.url).generate([ASK, ASK], 2, [Sampling(0.1), Sampling(0.9)])
    assert found == [["0.1", "0.9"], ["0.1", "0.9"]]


def test_an_answer_without_text_is_empty(server):
    server.answers = [says(None)]
    assert ServerEngine(server.url).generate([ASK], 1, Sampling()) == [[""]]


def test_a_stream_tells_which_answer_each_text_is(server):
    server.answers = [lambda body: says(str(body["seed"]))]
    assert list(ServerEngine(server.url).stream([ASK, ASK], 2, Sampling())) == [(0, "0"), (1, "1"), (2, "2"), (3, "3")]


def test_a_choice_is_renormalised_over_the_options(server):
    server.answers = [chooses([("1", math.log(0.6)), (" 2", math.log(0.2)), ("No", math.log(0.2))])]
    (choice,) = ServerEngine(server.url).choose([ASK], ["1", "2"])
    assert [math.exp(p) for p in choice.logps] == pytest.approx([0.75, 0.25])
    assert (choice.best, server.asked[0][1]["top_logprobs"], server.asked[0][1]["max_tokens"]) == (0, 20, 1)


def test_a_missing_option_is_no_likelier_than_the_last_one_told(server):
    server.answers = [chooses([("2", math.log(0.6)), ("x", math.log(0.3)), ("y", math.log(0.1))])]
    (choice,) = ServerEngine(server.url).choose([ASK], ["1", "2"])
    assert [math.exp(p) for p in choice.logps] == pytest.approx([1 / 7, 6 / 7])


def test_a_longer_token_is_another_answer(server):
    server.answers = [chooses([("10", math.log(0.9)), ("1", math.log(0.05)), ("2", math.log(0.05))])]
    (choice,) = ServerEngine(server.url).choose([ASK], ["1", "2"])
    assert [math.exp(p) for p in choice.logps] == pytest.approx([0.5, 0.5])


def test_an_option_is_found_by_the_token_it_starts_with(server):
    server.answers = [chooses([("Y", math.log(0.8)), ("No", math.log(0.2))])]
    assert ServerEngine(server.url).choose([ASK], ["No", "Yes"])[0].best == 1


def test_a_verdict_that_names_no_option_is_refused(server):
    server.answers = [chooses([("Well", -0.1), ("I", -2.0)])]
    with pytest.raises(UserError, match="answered with none of"):
        ServerEngine(server.url).choose([ASK], ["1", "2"])


@pytest.mark.parametrize("logprobs", [None, {"content": None}, {"content": []}])
def test_a_server_without_log_probabilities_is_refused(server, logprobs):
    server.answers = [{"choices": [{"message": {"content": "1"}, "logprobs": logprobs}]}]
    with pytest.raises(UserError, match="no log-probabilities"):
        ServerEngine(server.url).choose([ASK], ["1", "2"])


def test_the_reason_is_the_first_line_after_the_verdict(server):
    server.answers = [chooses([("7", -0.1)], ".", " A clear", " turn.", "\nMore")]
    (choice,) = ServerEngine(server.url).choose([ASK], ["7", "8"], reason=8)
    assert (choice.reason, server.asked[0][1]["max_tokens"]) == ("A clear turn.", 9)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_busy_server_is_asked_again(server, status):
    server.answers = [status, says("late")]
    assert ServerEngine(server.url).generate([ASK], 1, Sampling()) == [["late"]]
    assert (len(server.asked), len(server.waits)) == (2, 1)


def test_a_server_that_stays_broken_is_given_up_with_its_status(server):
    server.answers = [500]
    with pytest.raises(EngineDown, match="did not answer: 500"):
        ServerEngine(server.url, tries=3).generate([ASK], 1, Sampling())
    assert len(server.asked) == 3


def test_a_request_the_server_refuses_is_not_repeated(server):
    server.answers = [400]
    with pytest.raises(UserError, match="400") as caught:
        ServerEngine(server.url).generate([ASK], 1, Sampling())
    assert len(server.asked) == 1
    assert not isinstance(caught.value, EngineDown)  # another text may do


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_a_server_that_refuses_every_request_is_down(server, status):
    server.answers = [status]
    with pytest.raises(EngineDown, match=f"{status}"):
        ServerEngine(server.url).generate([ASK], 1, Sampling())
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [b"not json", {}, {"choices": []}, [], None, {"choices": None}, {"choices": [{"text": "old"}]}],
    ids=["not json", "nothing", "no choice", "a list", "null", "null choices", "no message"],
)
def test_an_answer_of_another_shape_is_refused(server, answer):
    server.answers = [answer]
    with pytest.raises(UserError):
        ServerEngine(server.url, tries=1).generate([ASK], 1, Sampling())


def test_a_server_that_dies_in_the_middle_of_an_answer_is_refused(server):
    server.answers, server.missing = [says("half")], 50
    with pytest.raises(UserError, match="did not answer"):
        ServerEngine(server.url, tries=1).generate([ASK], 1, Sampling())


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "http://", "http://127.0.0.1:port/v1"])
def test_a_server_that_cannot_be_reached_is_named(server, url):
    with pytest.raises(EngineDown, match=f"the server at {url.rstrip('/')}") as error:
        ServerEngine(url, tries=2, timeout=2).generate([ASK], 1, Sampling())
    assert "is it running" in error.value.hint


def test_an_answer_that_takes_too_long_is_about_one_request_and_not_the_end_of_the_server(server):
    server.answers = [lambda body: (time.sleep(1), says("late"))[1]]
    with pytest.raises(UserError, match=r"longer than 0\.3 s") as caught:
        ServerEngine(server.url, tries=2, timeout=0.3).generate([ASK], 1, Sampling())
    assert not isinstance(caught.value, EngineDown)


# ---- schemas, thinking, family

SCHEMA = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'
RULES = {**json.loads(SCHEMA), "additionalProperties": False}


def bodies(server):
    return [body for _, body in server.asked]


def test_a_schema_is_asked_for_in_the_strict_form(server):
    server.answers = [says('{"a":1}')]
    assert ServerEngine(server.url).generate([ASK], 1, Sampling(schema=SCHEMA)) == [['{"a":1}']]
    named = {"name": "answer", "strict": True, "schema": RULES}
    assert bodies(server)[0]["response_format"] == {"type": "json_schema", "json_schema": named}


def knows_only_json_object(body):
    if body["response_format"]["type"] == "json_schema":
        return 422, {"detail": "Input should be 'text' or 'json_object'"}
    return says('{"a":1}')


def test_a_server_that_wants_another_form_of_schema_is_asked_so_from_then_on(server):
    server.answers = [knows_only_json_object]
    engine = ServerEngine(server.url)
    for _ in range(2):
        assert engine.generate([ASK], 1, Sampling(schema=SCHEMA)) == [['{"a":1}']]
    assert [b["response_format"]["type"] for b in bodies(server)] == ["json_schema", "json_object", "json_object"]
    assert bodies(server)[1]["response_format"]["schema"] == RULES


def test_a_request_refused_in_both_forms_is_reported_as_first_refused(server):
    server.answers = [(400, {"error": "too long"}), (400, {"error": "no json_object"}), says('{"a":1}')]
    engine = ServerEngine(server.url)
    with pytest.raises(UserError, match="too long"):
        engine.generate([ASK], 1, Sampling(schema=SCHEMA))
    engine.generate([ASK], 1, Sampling(schema=SCHEMA))
    assert bodies(server)[-1]["response_format"]["type"] == "json_schema"  # nothing was learnt from it


def test_a_schema_that_is_no_json_is_refused_before_anything_is_asked(server):
    with pytest.raises(UserError, match="schema is not JSON"):
        ServerEngine(server.url).generate([ASK], 1, Sampling(schema="{"))
    assert not server.asked


def knows_no_thinking(body):
    if "chat_template_kwargs" in body:
        return 400, {"error": {"message": "Unrecognized request argument supplied: chat_template_kwargs"}}
    return says("ok")


def test_a_server_that_knows_no_thinking_is_not_asked_about_it_again(server):
    server.answers = [knows_no_thinking]
    engine = ServerEngine(server.url, at_once=1)
    assert engine.generate([ASK], 3, Sampling()) == [["ok", "ok", "ok"]]
    assert ["chat_template_kwargs" in b for b in bodies(server)] == [True, False, False, False]


def test_calls_side_by_side_all_learn_what_the_server_does_not_know(server):
    server.answers = [lambda body: knows_no_thinking(body) if "response_format" not in body else (422, "no")]
    assert ServerEngine(server.url).generate([ASK], 8, Sampling()) == [["ok"] * 8]


@pytest.mark.parametrize(
    ("models", "family"),
    [
        ({"data": [{"id": "/models/Qwen3-4B-Instruct-2507-Q4_K_M.gguf"}]}, "qwen"),
        ({"data": [{"id": "a-llama"}, {"id": "a-qwen"}]}, ""),
        ({"data": []}, ""),
        ([], ""),
        (b"not json", ""),
        (404, ""),
    ],
    ids=["one", "several", "none", "a list", "not json", "not found"],
)
def test_the_family_is_read_from_the_name_the_server_gives_its_model(server, models, family):
    server.models = models
    engine = ServerEngine(server.url)
    assert (engine.family, engine.family) == (family, family)
    assert server.asked == [("/v1/models", None)]  # asked once


def test_the_family_of_a_named_model_is_the_names(server):
    server.models = {"data": [{"id": "a-llama"}, {"id": "a-qwen"}]}
    assert ServerEngine(server.url, model="mistral-small").family == "mistral"


def test_a_server_that_is_gone_has_no_family():
    assert ServerEngine("http://127.0.0.1:1/v1").family == ""


def crowd(server, seen):
    """An answer that takes a while, and notes how many are asked for meanwhile."""
    now = []

    def answer(body):
        with server.lock:
            now.append(body)
            seen.append(len(now))
        time.sleep(0.03)
        with server.lock:
            now.pop()
        return echo(body)

    return answer


@pytest.mark.parametrize(("more", "most"), [("", 4), ("#9", 9), ("/#1", 1)])
def test_a_server_is_asked_as_many_questions_at_once_as_its_address_says(server, more, most):
    seen = []
    server.answers = [crowd(server, seen)]
    engine = load_engine(server.url + more)
    assert engine.generate(PROMPTS, 4, Sampling(seed=7)) == WANTED
    assert max(seen) == most
    assert {path for path, _ in server.asked} == {"/v1/chat/completions"}
    assert engine.name == f"server:{server.url}"


@pytest.mark.parametrize("number", ["0", "many", "-3", "5000", "4.5"])
def test_another_number_of_questions_is_refused(number):
    with pytest.raises(UserError, match="1 to 1024"):
        load_engine(f"http://127.0.0.1:1/v1#{number}")


def test_questions_at_once_are_counted_over_all_servers():
    assert at_once("http://a/v1, http://b/v1#64,") == 68
    assert at_once("base") == 0


# ---- several servers as one


def test_each_of_several_servers_is_asked_as_much_as_it_takes(server, other):
    few, many = [], []
    server.answers, other.answers = [crowd(server, few)], [crowd(other, many)]
    engine = load_engine(f"{server.url}#2,{other.url}#12")
    assert engine.generate(PROMPTS, 4, Sampling(seed=7)) == WANTED
    assert (max(few), max(many)) == (2, 12)


@pytest.fixture
def other():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.lock, server.asked, server.answers, server.missing = threading.Lock(), [], [], 0
    server.models, server.url = 501, f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def echo(body):
    return says(f"{body['messages'][0]['content']}{body['seed']}")


def slow_echo(body):
    time.sleep(0.02)
    return echo(body)


PROMPTS = [[{"role": "user", "content": c}] for c in "abcdefgh"]
WANTED = [[f"{c}{7 + 4 * i + k}" for k in range(4)] for i, c in enumerate("abcdefgh")]


def test_addresses_with_commas_are_one_engine_and_share_the_work(server, other):
    server.answers, other.answers = [slow_echo], [slow_echo]
    engine = load_engine(f"{server.url}, {other.url}")
    assert engine.generate(PROMPTS, 4, Sampling(seed=7)) == WANTED
    assert len(server.asked) + len(other.asked) == 32
    assert min(len(server.asked), len(other.asked)) > 4


def test_a_server_that_dies_midway_leaves_its_work_to_the_others_and_no_answer_is_lost_or_doubled(server, other):
    server.answers = [slow_echo] * 5 + [503]
    other.answers = [slow_echo]
    engine = load_engine(f"{server.url},{other.url}")
    assert engine.generate(PROMPTS, 4, Sampling(seed=7)) == WANTED
    gone = len(server.asked)
    assert engine.generate(PROMPTS[:1], 4, Sampling(seed=7)) == WANTED[:1]
    assert len(server.asked) == gone  # it is not asked again


def test_when_the_last_server_is_gone_it_says_so(server, other):
    server.answers, other.answers = [503], [503]
    engine = load_engine(f"{server.url},{other.url}")
    for _ in range(2):
        with pytest.raises(EngineDown):
            engine.generate(PROMPTS, 1, Sampling())


def test_a_request_that_is_refused_is_not_tried_elsewhere(server, other):
    server.answers, other.answers = [400], [400]
    with pytest.raises(UserError, match="refused"):
        load_engine(f"{server.url},{other.url}").generate(PROMPTS[:1], 1, Sampling())
    assert len(server.asked) + len(other.asked) < 4
