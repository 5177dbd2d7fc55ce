"""Any OpenAI-compatible server (llama-server, vLLM, LM Studio …) behind the engine protocol. Standard library only."""

import http.client
import json
import math
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from toolkit.engines.base import Choice, Messages, Samplings, family_of, spread, tidy_reason
from toolkit.engines.schema import read_schema
from toolkit.errors import EngineDown, UserError
from toolkit.progress import say

AT_ONCE = 4  # questions a server is asked at once where its address does not say: llama-server's slots
# what a server answers every request with when the address, the key or the model's name is wrong
NO_REQUEST_WILL_DO = (401, 403, 404, 405)


class ServerEngine:
    """Args: url: such as http://127.0.0.1:8080/v1, or …/v1#64 for one that answers 64 questions at once (`at_once` else); model: the
    name the server wants; tries: calls before giving up.

    Raises UserError for another number than 1 … 1024, EngineDown when the server cannot be reached or answers with an error after `tries` calls, and a plain
    UserError when it refuses one request (a text too long, say).
    """

    def __init__(self, url: str, model: str = "default", tries: int = 3, timeout: float = 300, at_once: int = AT_ONCE):
        self.url, self.at_once = _address(url, at_once)
        self.model, self.tries, self.timeout = model, tries, timeout
        self.name = f"server:{self.url}"
        self._asks_thinking, self._schema_form = True, "json_schema"  # until this server refuses them

    @cached_property
    def family(self) -> str:
        """Whose weights answer, by the name the server gives its model; "" when it does not say."""
        try:
            with urllib.request.urlopen(f"{self.url}/models", timeout=min(5, self.timeout)) as reply:
                names = [str(m["id"]) for m in json.load(reply)["data"]]
        except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException):
            names = []
        return family_of(self.model, *(names if len(names) == 1 else []))

    def close(self) -> None:
        """Nothing is held: every call is its own connection."""

    def _call(self, messages: Messages, schema: str = "", **more) -> dict:
        """One request. What this server does not know (thinking switched off, a form of schema) is left out from then on."""
        while True:
            thinking, form = self._asks_thinking, self._schema_form  # calls run side by side: keep what this one said
            known = more | ({"chat_template_kwargs": {"enable_thinking": False}} if thinking else {})
            try:
                return self._post(messages, **known, **_response_format(schema, form))
            except _Refused as refused:
                if thinking and any(word in refused.reason for word in ("chat_template_kwargs", "enable_thinking")):
                    self._asks_thinking = False
                    continue
                if not schema or form == "json_object":
                    raise
                try:
                    choice = self._post(messages, **known, **_response_format(schema, "json_object"))
                except _Refused:
                    raise refused from None  # the form was not what it minded
                self._schema_form = "json_object"
                return choice

    def _post(self, messages: Messages, **more) -> dict:
        body = json.dumps({"model": self.model, "messages": messages, **more}).encode()
        request = urllib.request.Request(
            f"{self.url}/chat/completions", body, {"Content-Type": "application/json", "Authorization": "Bearer none"}
        )
        slow = False
        for attempt in range(self.tries):
            if attempt:
                time.sleep(2**attempt / 2)
            slow = False
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                    choice = json.load(reply)["choices"][0]
                    choice["message"]["content"]  # a reply of another shape is no answer
                    return choice
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {error.read(1000).decode(errors='replace')}"
                if error.code in NO_REQUEST_WILL_DO:
                    break
                if error.code < 500 and error.code != 429:
                    raise _Refused(self.url, reason) from None
            except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException) as error:
                slow = isinstance(error, TimeoutError)  # while connecting it comes as a URLError, and nobody is there
                reason = str(getattr(error, "reason", error))
        if slow:
            raise UserError(
                f"the server at {self.url} took longer than {self.timeout:g} s for one answer",
                "ask for shorter answers, or give the model more room",
            )
        raise EngineDown(
            f"the server at {self.url} did not answer: {reason[:300]}", "is it running, and is the address right?"
        )

    def _each(self, calls: list[dict]) -> list[dict]:
        with ThreadPoolExecutor(self.at_once) as pool:
            return list(pool.map(lambda call: self._call(**call), calls))

    def generate(self, prompts: Sequence[Messages], n: int, sampling: Samplings) -> list[list[str]]:
        calls = []
        for k, draw in enumerate(spread(sampling, n) * len(prompts)):
            call = {"messages": prompts[k // n], "seed": draw.seed + k, "max_tokens": draw.max_tokens}
            call |= {"temperature": draw.temperature, "top_p": draw.top_p, "min_p": draw.min_p}
            call |= {"repeat_penalty": draw.repeat_penalty}
            call |= {"schema": draw.schema}
            calls.append(call | ({"stop": list(draw.stop)} if draw.stop else {}))
        texts = [c["message"]["content"] or "" for c in self._each(calls)]
        return [texts[i * n : (i + 1) * n] for i in range(len(prompts))]

    def stream(self, prompts: Sequence[Messages], n: int, sampling: Samplings) -> Iterator[tuple[int, str]]:
        for i, texts in enumerate(self.generate(prompts, n, sampling)):
            yield from ((i * n + j, text) for j, text in enumerate(texts))

    def choose(self, prompts: Sequence[Messages], options: Sequence[str], reason: int = 0) -> list[Choice]:
        """As the protocol says, from the server's 20 likeliest first tokens.

        An option missing among them counts as no likelier than the last of them; when all are missing there is no
        verdict to read and UserError is raised.
        """
        more = {"max_tokens": 1 + reason, "temperature": 0, "logprobs": True, "top_logprobs": 20}
        return [self._read_choice(c, options) for c in self._each([{"messages": p, **more} for p in prompts])]

    def _read_choice(self, choice: dict, options: Sequence[str]) -> Choice:
        content = (choice.get("logprobs") or {}).get("content") or []
        if not content:
            raise UserError(f"{self.url} returns no log-probabilities", "start the server with logprobs allowed")
        top = [(t["token"].strip(), t["logprob"]) for t in content[0]["top_logprobs"]]
        # an option's own text, or the token it starts with; a longer token ("10" for "1") is another answer
        found = {o: max((p for token, p in top if token and o.startswith(token)), default=None) for o in options}
        if all(p is None for p in found.values()):
            raise UserError(f"the model behind {self.url} answered with none of {list(options)}", "try another judge")
        floor = min(p for _, p in top)
        row = [floor if found[o] is None else found[o] for o in options]
        total = math.log(sum(map(math.exp, row)))
        text = "".join(t["token"] for t in content[1:])
        return Choice(tuple(p - total for p in row), tidy_reason(text.split("\n")[0]))


class ServerPool(ServerEngine):
    """Several servers with the same model, as one: each answer is asked of whichever is free, and counted once.

    A server that is down (it has had all its tries) is left out for good; its questions go to the others. Answers carry their own
    seed, so who gives them does not matter to servers that run the same model alike.

    Args: urls: addresses; more: as of ServerEngine, for each.

    Raises EngineDown when none is left, and what ServerEngine raises besides.
    """

    def __init__(self, urls: Sequence[str], **more):
        super().__init__(urls[0], **more)
        self.servers = [ServerEngine(url, **more) for url in urls]
        self.name = f"servers:{','.join(s.url for s in self.servers)}"

    def _each(self, calls: list[dict]) -> list[dict]:
        found: list[dict | None] = [None] * len(calls)
        waiting, more, failed = deque(range(len(calls))), threading.Condition(), []
        over = lambda: failed or all(f is not None for f in found)  # noqa: E731

        def serve(server: ServerEngine) -> None:
            gone = lambda: over() or server not in self.servers  # noqa: E731
            while True:
                with more:
                    more.wait_for(lambda: waiting or gone())  # a call that another server holds may come back
                    if gone():
                        return
                    i = waiting.popleft()
                try:
                    answer = server._call(**calls[i])
                except EngineDown as error:
                    with more:
                        waiting.appendleft(i)
                        if server in self.servers:
                            self.servers.remove(server)
                            say(f"  {error}; {len(self.servers)} of the servers go on")
                        if not self.servers:
                            failed.append(error)
                        more.notify_all()
                    return
                except BaseException as error:
                    with more:
                        failed.append(error)
                        more.notify_all()
                    return
                with more:
                    found[i] = answer
                    more.notify_all()

        if not self.servers:
            raise EngineDown(f"none of {self.name} answers any more", "are they running, and are the addresses right?")
        threads = [
            threading.Thread(target=serve, args=(s,), daemon=True) for s in self.servers for _ in range(s.at_once)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
        return found


def at_once(spec: str) -> int:
    """Questions that the servers which `spec` names work on at once, all together; 0 where it names none."""
    urls = spec.split(",") if spec.startswith("http") else []
    return sum(_address(url, AT_ONCE)[1] for url in urls if url.strip())


def _address(url: str, at_once: int) -> tuple[str, int]:
    """The address itself, and the number after its #, which no server is told."""
    url, _, number = url.strip().partition("#")
    if number and not (number.isdecimal() and 1 <= int(number) <= 1024):
        raise UserError(
            f"{url}#{number}: after # stands how many questions a server works on at once, 1 to 1024", "such as #64"
        )
    return url.rstrip("/"), int(number or at_once)


class _Refused(UserError):
    """A 4xx: this request will not do as it is."""

    def __init__(self, url: str, reason: str):
        super().__init__(f"the server at {url} refused the request: {reason[:300]}", "a shorter text may do")
        self.reason = reason


def _response_format(schema: str, form: str) -> dict:
    """The schema as OpenAI, llama-server and vLLM take it, or as llama-cpp-python's server does ("json_object")."""
    if not schema:
        return {}
    rules = read_schema(schema)
    if form == "json_object":
        return {"response_format": {"type": "json_object", "schema": rules}}
    named = {"name": "answer", "strict": True, "schema": rules}
    return {"response_format": {"type": "json_schema", "json_schema": named}}
