"""A greeting's form: length, script, punctuation, and what makes an answer no greeting whatever it says.

Lengths are counted as readers count them: Chinese in characters, English in words. Script (simplified or
traditional) is told and converted by opencc's phrase tables.
"""

import re
import unicodedata
from collections import Counter
from functools import cache

from toolkit.greeting.prompts import prompt
from toolkit.records import Request, guess_language

LENGTHS = {  # length → language → (least, most): characters for zh, words for en
    "short": {"zh": (10, 40), "en": (8, 25)},
    "medium": {"zh": (40, 80), "en": (25, 50)},
    "long": {"zh": (80, 140), "en": (50, 85)},
}
SLACK = 1.5  # times over or under those bounds before it is broken form: the bounds are a wish, this is a fault

_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ebef〇"
_MARKS = r"\u3001-\u3006\u3008-\u3020\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65“”‘’…—·"
_WORD = r"[^\W_]+(?:[-'’.,&][^\W_]+)*"
_HAN_ONE = re.compile(f"[{_HAN}]")
_ZH_UNIT = re.compile(rf"[{_HAN}{_MARKS}]|(?:(?![{_HAN}])[^\W_])+(?:[-'’.,&](?:(?![{_HAN}])[^\W_])+)*")
_EN_UNIT = re.compile(_WORD)


def length_of(text: str, language: str) -> int:
    """Length as a reader counts it.

    zh: every Chinese character and every full-width mark is one, a Latin word or a number is one. en: words.
    """
    return len((_ZH_UNIT if language == "zh" else _EN_UNIT).findall(text))


def bounds(request: Request) -> tuple[int, int]:
    """(least, most) that the request's length asks for, in its language's unit."""
    return LENGTHS[request.length]["zh" if request.language == "zh" else "en"]


# ---- script


@cache
def _converter(name: str):
    from opencc import OpenCC

    return OpenCC(name)


def _convert(text: str, name: str) -> str:
    return _converter(name).convert(text.replace("\0", " "))  # it stops at a zero byte


def _common_in_big5(c: str) -> bool:
    """Whether a character is of Big5's first level (5,401 common ones of traditional Chinese; lead bytes below 0xC9)."""
    try:
        return c.encode("big5")[0] < 0xC9
    except UnicodeEncodeError:
        return False


def script_of(text: str) -> str:
    """ "simplified", "traditional", "mixed" (characters of both), "both" (none that tells), or "" without Chinese."""
    if not _HAN_ONE.search(text):
        return ""
    traditional = _convert(text, "tw2s") != text
    # 台, 里 change too, but traditional texts have them as well, as Hong Kong has 温 and 户: what changes in every
    # standard and is not common in Big5 tells
    after = zip(text, _convert(text, "s2t"), _convert(text, "s2hk"), strict=False)
    simplified = any(a not in (b, c) and not _common_in_big5(a) for a, b, c in after)
    if simplified and traditional:
        return "mixed"
    return "simplified" if simplified else "traditional" if traditional else "both"


def to_script(text: str, script: str) -> str:
    """`text` in simplified or traditional characters (forms of Taiwan's standard); unchanged where it fits already."""
    if script_of(text) in ("", "both", script):
        return text
    return _convert(text, "tw2s" if script == "simplified" else "s2tw")  # tw2s knows 看著 besides 著名


def script_for(request: Request) -> str:
    """The script an answer should have: the request's own, simplified where it does not tell; "" for English."""
    if request.language != "zh":
        return ""
    return "traditional" if script_of(request.text) == "traditional" else "simplified"


# ---- punctuation

_FULL = dict(zip(",.!?:;", "，。！？：；", strict=True))
_CHINESE = re.compile(f"[{_HAN}{_MARKS}]")


def full_width(text: str) -> str:
    """Half-width , . ! ? : ; ( ) beside Chinese become full-width, without the spaces around them.

    Numbers (3.5, 10:30, 1,000), Latin passages and a stop after a Latin word (Dr.王) stay as they are.
    """
    text = re.sub(rf"(?<=[{_HAN}{_MARKS}])[ \t]*\.{{3,}}", "……", text)

    def wrap(m: re.Match) -> str:
        before, after = text[: m.start()].rstrip(" ")[-1:], text[m.end() :].lstrip(" ")[:1]
        near = any(_CHINESE.match(c) for c in (before, after) if c)
        return f"（{m[1]}）" if near or _HAN_ONE.search(m[1]) else m[0]

    text = re.sub(r"[ \t]*\(([^()\n]*)\)", wrap, text)
    out = ""
    for at, c in enumerate(text):
        if c in _FULL:
            left, right = out.rstrip(" ")[-1:], text[at + 1 :].lstrip(" ")[:1]
            beside = bool(_CHINESE.match(left)) or (c != "." and bool(_CHINESE.match(right)))
            if beside and not (left.isdigit() and right.isdigit()):
                out = out.rstrip(" ") + _FULL[c]
                continue
        if c == " " and out[-1:] and out[-1] in "，。！？：；（）":
            continue
        out += c
    return out


# ---- cleaning

_QUOTES = ("“”", "「」", "『』", '""', "''", "‘’", "《》", "``")
_ROLE = r"(?:assistant|ai|bot|system|user|human|助手|助理|用户|用戶|回答|答)"
_HEAD = re.compile(
    rf"(?:<\|?im_start\|?>\s*)?{_ROLE}\s*[:：]\s*"
    r"|<\|?im_start\|?>\s*\w*\s*"
    r"|(?:以下是|下面是|这是|這是|好的|当然|當然)[^\n。！？]{0,40}[:：]\s*"
    r"|[^\n，。！？:：我]{0,6}(?:祝福语|祝福語|祝福|贺词|賀詞|贺卡|文案)\s*[:：]\s*"
    r"|(?:sure|certainly|of course|absolutely)[!,.]?\s+(?=here)"
    r"|here(?:'s| is| are|’s)\b[^\n.!?]{0,90}:\s*"
    r"|(?:the |your |my )?(?:greeting|message|blessing|wish|toast|card|answer|response)(?: message| card)?\s*:\s*",
    re.IGNORECASE,
)
_TAIL = re.compile(rf"<\|?im_(?:end|start)\|?>|</?s>|\n\s*{_ROLE}\s*[:：]", re.IGNORECASE)
_ITEM = re.compile(r"(?m)^\s*(?:\(?\d{1,2}[.)、）]|[（(][一二三四五六七八九十][)）]|[-*•·])\s*(?=[^\s\d])")
_ENDS = re.compile(r"[.!?…。！？~～♪♥♡❤\U0001f300-\U0001faff][\"”’」』）)\ufe0f]*$")


def clean(text: str, request: Request) -> str:
    """The greeting in an answer: without thoughts, role echoes, a heading line, wrapping quotes or a lone list number;
    Chinese in the request's script with full-width marks; without an unfinished last sentence.

    Nothing is added, and several list items are left for `broken` to see.
    """
    for _ in range(5):  # what one pass takes off may lay bare a label or a quote for the next
        before, text = text, _clean(text, request)
        if text == before:
            break
    return text


def _clean(text: str, request: Request) -> str:
    text = unicodedata.normalize("NFC", re.sub(r"(?s)<think>.*?(?:</think>|$)|[\x00-\x08\x0b-\x1f]", "", text)).strip()
    if _HEAD.match(text):
        text = _HEAD.sub("", text, 1).strip()
    for first, last in _QUOTES:
        inner = text[1:-1]
        if len(text) > 2 and text[0] == first and text[-1] == last and first not in inner and last not in inner:
            text = inner.strip()
        elif text.startswith(first) and text.count(last) == (first == last):  # opened, never closed
            text = text[1:].strip()
    text = text.replace("**", "").strip()
    if len(_ITEM.findall(text)) == 1 and _ITEM.match(text):
        text = _ITEM.sub("", text, 1).strip()
    text = text[: m.start()].strip() if (m := _TAIL.search(text)) else text
    text = re.sub(r"[ \t]+", " ", re.sub(r"\s*\n\s*", "\n", text))
    if request.language == "zh":
        text = full_width(to_script(text, script_for(request)))
    return _whole(text)


def _whole(text: str) -> str:
    """Without what follows the last finished sentence; as it is when none is finished."""
    if _ENDS.search(text):
        return text
    found = list(re.finditer(r"[!?…。！？]+[\"”’」』）)]*|\.(?!\d)[\"”’)]*(?=\s|$)", text))
    return text[: found[-1].end()] if found else text


# ---- broken form

_FUNCTION_WORDS = frozenset(
    """the of to and is it he she for be what his her that with they but had not from by you i my we this were a an in
    on at your our us me all as so are may has have will who when where every no more than into up out if or can do its
    it's you're you've i'm let here hope wish wishing happy been only just how one their them there now""".split()
)
_PLACEHOLDER = re.compile(
    r"\[[^\]\d][^\]\n]{0,30}\]|【[^】\n]{1,12}】|\{[^}\n]{1,30}\}|<\s*(?:name|your name|姓名|名字)\s*>|_{3,}|×{2,}|[○〇]{2,}"
    r"|(?<![A-Za-z])[Xx]{2,}(?![A-Za-z])|某某"
    r"|\((?:your |recipient'?s? |their )?names?\)|（(?:姓名|名字|称呼|你的名字)）",
    re.IGNORECASE,
)
_OPTIONS = re.compile(r"(?i)\b(?:option|version|example)\s*\d|(?:选项|方案|版本|示例|例)[一二三1-3][:：]")


def broken(text: str, request: Request) -> list[str]:
    """What is wrong with an answer's form; empty when it is fine. It judges no content.

    empty; language (other than the request's); script; too long, too short (past LENGTHS by SLACK); unfinished (no
    sentence ends); echo (says the request or the instruction again); list (several answers, or points); repeats (a run
    of 4 words or 6 characters three times); placeholder ([Name], XX, ___); characters (one that was cut in half, �).
    """
    if not any(c.isalnum() for c in text):
        return ["empty"]
    found = []
    chinese = request.language == "zh"
    if not (_is_chinese(text) if chinese else _is_english(text)):
        found.append("language")
    elif chinese and script_of(text) not in ("both", script_for(request)):
        found.append("script")
    least, most = bounds(request)
    size = length_of(text, request.language)
    found += ["too long"] if size > most * SLACK else ["too short"] if size < least / SLACK else []
    found += [] if _ENDS.search(text) else ["unfinished"]
    found += ["echo"] if _echoes(text, request) else []
    found += ["list"] if len(_ITEM.findall(text)) > 1 or _OPTIONS.search(text) else []
    run = 6 if chinese else 4
    found += ["repeats"] if max(Counter(runs(text, run)).values(), default=0) >= 3 else []
    found += ["placeholder"] if _PLACEHOLDER.search(text) else []
    found += ["characters"] if "\ufffd" in text else []
    return found


def _is_chinese(text: str) -> bool:
    """Most letters are Chinese characters, a Latin word counting as one; no Japanese."""
    han, units = len(_HAN_ONE.findall(text)), [u for u in _ZH_UNIT.findall(text) if u[0].isalnum()]
    return han > 0.6 * len(units) and not re.search(r"[\u3040-\u30ff\uac00-\ud7af]", text)


def _is_english(text: str) -> bool:
    """Latin letters, and one word in eight is a common little word of English (looked at from 8 words on)."""
    letters = [c for c in text if c.isalpha()]
    if sum("A" <= c <= "\u024f" for c in letters) < 0.9 * len(letters):
        return False
    words = _EN_UNIT.findall(text.lower().replace("’", "'"))
    return len(words) < 8 or sum(w in _FUNCTION_WORDS for w in words) >= len(words) / 8


def _echoes(text: str, request: Request) -> bool:
    """Whether the whole request, or a long run of the request or of the instruction, stands in the answer."""
    chinese = request.language == "zh"
    said, asked = plain(text), plain(request.text)
    whole = asked in said if chinese else f" {asked} " in f" {said} "
    if whole and len(units_of(asked)) >= (8 if chinese else 5):
        return True
    shown = prompt("greet", request.language, request=request.text, least="", most="")
    size = 14 if chinese else 9
    return bool(set(runs(said, size)) & set(runs(plain(shown), size)))


def plain(text: str) -> str:
    """Text as it counts for "the same text": simplified, lower case, letters and digits only, one space between words."""
    text = unicodedata.normalize("NFKC", text).lower()
    if guess_language(text) == "zh":
        return re.sub(r"[\W_]+", "", _convert(text, "tw2s"))
    return re.sub(r"[\W_]+", " ", text).strip()


def units_of(text: str) -> list[str]:
    """Chinese: characters (Latin words and numbers whole), without marks; else words in lower case."""
    if guess_language(text) == "zh":
        return [u for u in _ZH_UNIT.findall(text) if u[0].isalnum()]
    return _EN_UNIT.findall(text.lower())


def runs(text: str, size: int) -> list[tuple[str, ...]]:
    """All runs of `size` units (`units_of`) of a text."""
    units = units_of(text)
    return [tuple(units[i : i + size]) for i in range(len(units) - size + 1)]


def overlap(a: str, b: str) -> float:
    """Share of the smaller text's runs of three units that stand in the other: 1 says the same."""
    one, two = set(runs(plain(a), 3)), set(runs(plain(b), 3))
    smaller = min(len(one), len(two))
    return len(one & two) / smaller if smaller else float(plain(a) == plain(b))
