"""A judge's verdict as HTML: radar, passport line, claims with their quotes, and the text with the quotes marked."""

import math
import re
from html import unescape

from toolkit.demo.judging import Verdict
from toolkit.demo.parts import esc, note
from toolkit.demo.words import Words
from toolkit.narrative.dimensions import DIMENSIONS, SCALE
from toolkit.records import guess_language


def verdict(words: Words, text: str, found: Verdict) -> str:
    """The whole answer to one text, as far as it is known."""
    w, opinion = words, found.opinion
    panel = dict(opinion.scores) if opinion is not None else {}
    out = [passport(w, found.passport)]
    if found.single:
        series = {w("judge.single"): found.single} | ({w("judge.panel"): panel} if panel else {})
        out.append(f"<div class='ratings'>{radar(w, series)}{_table(w, series)}</div>")
        out += [_dimension(w, d.key, found) for d in DIMENSIONS if opinion is not None or found.reasons.get(d.key)]
    if opinion is not None:
        kept = [c for c in opinion.claims if not c.dropped]
        if not kept:
            out.append(note(w("judge.no_evidence"), w("judge.no_evidence.hint"), "quiet"))
        dropped = [c for c in opinion.claims if c.dropped]
        if dropped:
            rows = "".join(f"<li>{esc(c.claim)} <span>{esc(w.drop(c.dropped))}</span></li>" for c in dropped)
            out.append(
                f"<details class='dropped'><summary>{esc(w('judge.dropped', n=len(dropped)))}</summary><ul>{rows}</ul></details>"
            )
        if kept:
            out.append(
                f"<details class='marked'><summary>{esc(w('judge.marked'))}</summary>{marked(text, [c.quote for c in kept])}</details>"
            )
    return f"<div class='verdict'>{''.join(out)}</div>"


def passport(w: Words, known) -> str:
    """How far the judge can be trusted, in one line; that nobody knows, where there is no passport."""
    if known is None:
        return note(w("passport.none"), w("passport.none.hint"), "quiet")
    trusted = w("passport.trusted" if known.threshold is not None else "passport.not_trusted")
    head = f"<strong>{esc(w('passport'))}</strong> {esc(trusted)}"
    return f"<details class='passport'><summary>{head}</summary><p>{esc(_measured(w, known))}</p></details>"


def _measured(w: Words, known) -> str:
    if w.language == "en":
        return known.line
    share = lambda v: "?" if v[0] is None else f"{100 * v[0]:.0f} %"  # noqa: E731
    said = w(
        "passport.line",
        judge=known.judge,
        known=share(known.known_pairs),
        length=known.length_slope[0] or 0,
        planted=known.planted[0] or 0,
    )
    if known.flips:
        said += w("passport.flips", flips=share(known.flips))
    return f"{said}。"


def radar(w: Words, series: dict[str, dict[str, float]]) -> str:
    """Ratings (1 … 10) on the five dimensions as an SVG whose colours are the page's. Centre and rim are whole marks
    around the ratings, and said so: over the whole scale all texts of one kind look alike."""
    values = [v for s in series.values() for v in s.values()]
    low, high = max(SCALE[0], math.floor(min(values)) - 1), min(SCALE[1], math.ceil(max(values)) + 1)
    middle, room, corners = 160, 104, range(len(DIMENSIONS))

    def at(i: int, share: float) -> tuple[float, float]:
        angle = 2 * math.pi * i / len(DIMENSIONS) - math.pi / 2
        return middle + room * share * math.cos(angle), middle + room * share * math.sin(angle)

    def polygon(kind: str, shares: list[float]) -> str:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, corners, shares))
        return f"<polygon class='{kind}' points='{points}'/>"

    drawn = [polygon("ring", [share] * len(DIMENSIONS)) for share in (0.25, 0.5, 0.75, 1)]
    drawn += [
        f"<line class='ring' x1='{middle}' y1='{middle}' x2='{x:.1f}' y2='{y:.1f}'/>"
        for x, y in map(at, corners, [1] * 5)
    ]
    for k, scores in enumerate(series.values(), 2 - len(series)):
        drawn.append(polygon(f"shape s{k}", [(scores[d.key] - low) / (high - low) for d in DIMENSIONS]))
    for i, d in enumerate(DIMENSIONS):
        x, y = at(i, 1.2)
        anchor = "middle" if abs(x - middle) < 20 else "start" if x > middle else "end"
        drawn.append(f"<text x='{x:.0f}' y='{y + 4:.0f}' text-anchor='{anchor}'>{esc(w(f'short.{d.key}'))}</text>")
    for share, mark in ((0, low), (1, high)):
        x, y = at(0, share)
        drawn.append(f"<text class='mark' x='{x + 5:.0f}' y='{y + (12 if share else 14):.0f}'>{mark:g}</text>")
    told = "; ".join(
        f"{name}: " + ", ".join(f"{w(f'dimension.{k}')} {v:.1f}" for k, v in s.items()) for name, s in series.items()
    )
    return f"<svg class='radar' viewBox='-40 20 400 270' role='img' aria-label='{esc(told)}'>{''.join(drawn)}</svg>"


def _table(w: Words, series: dict[str, dict[str, float]]) -> str:
    head = "".join(
        f"<th scope='col'><i class='key s{k}'></i>{esc(name)}</th>" for k, name in enumerate(series, 2 - len(series))
    )
    rows = "".join(
        f"<tr><th scope='row'>{esc(w(f'dimension.{d.key}'))}</th>"
        + "".join(f"<td>{s[d.key]:.1f}</td>" for s in series.values())
        + "</tr>"
        for d in DIMENSIONS
    )
    means = "".join(f"<td>{sum(s.values()) / len(s):.1f}</td>" for s in series.values())
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}<tr class='mean'><th scope='row'>{esc(w('judge.mean'))}</th>{means}</tr></tbody></table>"


def _dimension(w: Words, key: str, found: Verdict) -> str:
    """One dimension: what speaks for it and against it, each claim with its quote; the judge's own reason below."""
    claims = [c for c in (found.opinion.claims if found.opinion else ()) if c.dimension == key and not c.dropped]
    reason = (found.opinion.reasons if found.opinion else {}).get(key) or found.reasons.get(key, "")
    if guess_language(reason) == "en" and len(set(re.findall(r"[a-z]{2,}", reason.lower()))) < 4:
        reason = ""  # "1. 1. 1." is what small judges say when asked why
    if not claims and not reason:
        return ""
    sides = ""
    for side in ("merit", "fault"):
        mine = "".join(
            f"<li><p>{esc(c.claim)}</p><blockquote>{esc(c.quote)}</blockquote></li>" for c in claims if c.side == side
        )
        if mine:
            sides += f"<div class='side {side}'><h4>{esc(w(f'judge.{side}'))}</h4><ul>{mine}</ul></div>"
    said = f"<p class='reason'>{esc(w('judge.reason'))} {esc(reason)}</p>" if reason else ""
    return f"<section class='dimension'><h3>{esc(w(f'dimension.{key}'))}</h3><div class='sides'>{sides}</div>{said}</section>"


def marked(text: str, quotes: list[str]) -> str:
    """The text with each quote marked where it stands in just these words."""
    shown = esc(text)
    for quote in sorted({q.strip() for q in quotes if q.strip()}, key=len, reverse=True):
        shown = re.sub(re.escape(esc(quote)), lambda m: f"\ue000{m.group()}\ue001", shown, count=1, flags=re.IGNORECASE)
    shown = shown.replace("\ue000", "<mark>").replace("\ue001", "</mark>")
    return "<div class='story'><p>" + "</p><p>".join(p for p in shown.split("\n") if unescape(p).strip()) + "</p></div>"
