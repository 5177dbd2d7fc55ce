"""Any OpenAI-compatible server (llama-server, vLLM, LM Studio …) behind the engine protocol. Standard library only."""

import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from toolkit.engines.base import Choice, Messages, Samplings, spread, tidy_reason
from toolkit.errors import UserError


class ServerEngine:
    """Args: url: such as http://127.0.0.1:8080/v1; model: the name the server wants; tries: calls before giving up.

    Raises UserError when the server cannot be reached or answers with an error after `tries` calls.
    """

    def __init__(self, url: str, model: str = "default", tries: int = 3, timeout: float = 300, at_once: int = 4):
        self.url, self.model, self.tries, self.timeout, self.at_once = url.rstrip("/"), model, tries, timeout, at_once
        self.name = f"server:{self.url}"

    def close(self) -> None:
        """Nothing is held: every call is its own connection."""

    def _call(self, messages: Messages, **more) -> dict:
        body = json.dumps({"model": self.model, "messages": messages, **more}).encode()
        request = urllib.request.Request(
            f"{self.url}/chat/completions", body, {"Content-Type": "application/json", "Authorization": "Bearer none"}
        )
        for attempt in range(self.tries):
            if attempt:
                time.sleep(2**attempt / 2)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                    choice = json.load(reply)["choices"][0]
                    choice["message"]["content"]  # a reply of another shape is no answer
                    return choice
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {error.read(300).decode(errors='replace')}"
                if error.code < 500 and error.code != 429:
                    break
            except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", error))
        raise UserError(
            f"the server at {self.url} did not answer: {reason}", "is it running, and is the address right?"
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
