"""How a request is put to a writer: the same messages for candidates, training, `write --as greeting` and evaluation."""

import math
import re

from toolkit.engines.base import Messages
from toolkit.errors import UserError
from toolkit.greeting.form import SLACK, bounds, script_for, to_script
from toolkit.greeting.prompts import prompt
from toolkit.records import Request, guess_language, text_id

_PLACE = "\ue000"  # where the request goes in; a character of nobody's
LONGEST = 500  # characters of a request; above this it is no request but a text

_SHORT = re.compile(
    r"短一?点|短一?些|简短|[写要]短|短小|短句|一句话|一两句|两句|(?i:\b(?:short (?:and|but|message|note|greeting|card|line|text|toast|one)"
    r"|(?:keep|make) it (?:short|brief)|brief(?:ly)?|one[- ]lin(?:e|er)|one sentence|a line or two)\b|\bshort[.!]?$|, short\b)"
)
_LONG = re.compile(
    r"长一?点|长一?些|[写要]长|长篇|多写|详细|(?i:\b(?:long(?:er)? (?:message|note|greeting|card|letter|toast|one|text)"
    r"|(?:make|a bit|a little|something) (?:it )?long(?:er)?|in detail|at length)\b|\blong(?:er)?[.!]?$|, longer?\b)"
)


def greet_prompt(request: Request | str, script: str = "") -> Messages:
    """One user turn that asks for the greeting, naming its length in words or characters.

    Args:
        request: or only its text, read as `as_request` does.
        script: "simplified" or "traditional"; by default the request's own.
    """
    if isinstance(request, str):
        request = as_request(request)
    least, most = bounds(request)
    script = script or script_for(request)
    # the request is put in last: it stands as the user wrote it, whatever the script
    asked = prompt("greet", request.language, request=_PLACE, least=str(least), most=str(most))
    if script == "traditional":
        asked = to_script(asked, script)
    elif script and script_for(request) == "traditional":
        asked += "\n" + "请用简体字写。"
    return [{"role": "user", "content": asked.replace(_PLACE, request.text)}]


def request_in(asked: str) -> str:
    """The request's text in what `greet_prompt` made of it; a text that it did not make is returned as it is."""
    return re.split(r"\n\n(?:Request: |要求：)", asked, maxsplit=1)[-1].removesuffix("\n请用简体字写。")


def as_request(text: str) -> Request:
    """A request typed on the command line: language by its characters, length by words such as 短一点 or "brief".

    Raises UserError when it is empty or longer than LONGEST characters.
    """
    text = text.encode("utf-8", "replace").decode("utf-8").strip()
    if not text:
        raise UserError("the request is empty", 'say what for: fablesmith write --as greeting "七十大寿，写给外公"')
    if len(text) > LONGEST:
        raise UserError(
            f"the request has {len(text):,} characters; at most {LONGEST} are taken",
            "name the occasion, who it is for, and a detail or two",
        )
    return Request(text_id(text, "r"), text, length=guess_length(text), language=guess_language(text))


def guess_length(text: str) -> str:
    """ "short" or "long" where a request says so in so many words, else "medium"."""
    text = to_script(text, "simplified")
    return "short" if _SHORT.search(text) else "long" if _LONG.search(text) else "medium"


def answer_tokens(request: Request) -> int:
    """Room for an answer in tokens, so that the longest one that is not too long (`form.broken`) is not cut.

    2.2 tokens a Chinese character and 1.6 an English word: the most that any shipped greeting takes with the embedded
    model's tokenizer, which splits Chinese characters into bytes; large vocabularies need half.
    """
    return math.ceil(bounds(request)[1] * SLACK * (2.2 if request.language == "zh" else 1.6))
