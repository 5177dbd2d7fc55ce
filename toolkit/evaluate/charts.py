"""Pictures for the report, as SVG text: readable in light and dark, no files, no network."""

import io
import warnings

import numpy as np

from toolkit.narrative.dimensions import DIMENSIONS, SCALE

INK, BASE, ALIGNED, QUIET = "#6b7280", "#8a94a6", "#d9730d", "#c9ced6"
MANY = (
    BASE,
    ALIGNED,
    "#3b7ea1",
    "#3f9a63",
    "#b0569e",
    "#7a6fd0",
    "#d0524f",
    "#a8862a",
    "#39a0a0",
    "#96705b",
    "#5b8c2a",
    "#c77d9b",
)
MARKS = "osD^vPX<>p*h"  # beside the colours, for those who tell few of them apart


def _figure(width: float, height: float, polar: bool = False):
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams.update(
        {
            "svg.fonttype": "none",  # text stays text: sharp, and read aloud by screen readers
            "svg.hashsalt": "fablesmith",  # same input, same bytes
            "font.family": "sans-serif",
            "font.size": 10,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": QUIET,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    figure, axes = plt.subplots(figsize=(width, height), subplot_kw={"polar": True} if polar else {})
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    return figure, axes


def _svg(figure, title: str) -> str:
    from matplotlib import pyplot as plt

    room = io.StringIO()
    with warnings.catch_warnings():
        # Chinese: the page's fonts draw the words, matplotlib's need not have them
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(room, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = room.getvalue()
    text = text[text.index("<svg") :]
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def radar(series: dict[str, dict[str, float]], title: str) -> str:
    """Mean rating of each writer on the five dimensions."""
    figure, axes = _figure(4.6, 4.0, polar=True)
    angles = np.linspace(0, 2 * np.pi, len(DIMENSIONS), endpoint=False)
    closed = np.append(angles, angles[0])
    values = [v for s in series.values() for k, v in s.items() if k != "mean"]
    low, high = max(SCALE[0], np.floor(min(values)) - 1), min(SCALE[1], np.ceil(max(values)) + 0.5)
    for (name, scores), colour in zip(series.items(), (BASE, ALIGNED), strict=False):
        row = [scores[d.key] for d in DIMENSIONS]
        axes.plot(closed, [*row, row[0]], color=colour, linewidth=2, label=name)
        axes.fill(closed, [*row, row[0]], color=colour, alpha=0.12)
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_xticks(angles, [d.name.replace(" ", "\n", 1) for d in DIMENSIONS])
    axes.set_ylim(low, high)
    axes.tick_params(pad=16)
    axes.grid(color=QUIET, linewidth=0.6)
    axes.spines["polar"].set_color(QUIET)
    axes.legend(loc="upper left", bbox_to_anchor=(-0.32, 1.14), frameon=False)
    return _svg(figure, title)


def curves(rows: list[dict], keys: dict[str, str], title: str) -> str:
    """Logged values over training steps: key → label, one line each."""
    figure, axes = _figure(5.2, 2.8)
    colours = (ALIGNED, "#3b7ea1", BASE)
    for (key, label), colour in zip(keys.items(), colours, strict=False):
        points = [(r["step"], r[key]) for r in rows if key in r]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=colour, label=label, linewidth=1.8, marker="o" if len(x) < 30 else None, markersize=3)
    axes.set_xlabel("step")
    if axes.lines:
        axes.legend(frameon=False)
    axes.grid(axis="y", color=QUIET, linewidth=0.5)
    return _svg(figure, title)


def margins(kept: list[float], rejected: list[float], threshold: float | None) -> str:
    """Histogram of the mean-reward margins of kept and rejected pairs."""
    figure, axes = _figure(5.2, 2.8)
    bins = np.linspace(0, max([*kept, *rejected, 0.1]), 25)
    axes.hist([kept, rejected], bins=bins, stacked=True, color=[ALIGNED, QUIET], label=["kept", "left out"])
    if threshold is not None:
        axes.axvline(threshold, color=INK, linestyle="--", linewidth=1, label="pairs.margin")
    axes.set_xlabel("difference of mean reward within a pair")
    axes.set_ylabel("pairs")
    axes.legend(frameon=False)
    return _svg(figure, "Histogram of reward margins of candidate pairs")


def wins(facts: dict) -> str:
    """Raw win rate of the aligned writer (dots) and the judge's lean (rings), with 95 % intervals; 50 % is no difference."""
    figure, axes = _figure(5.2, 3.0)
    names = [d.name for d in DIMENSIONS] + ["Overall"]
    for kind, shift in (("raw_win_rate", 0.14), ("lean_rate", -0.14)):
        rows = [facts[f"{kind}_by_dimension"][d.key] for d in DIMENSIONS] + [facts[kind]]
        for y, (value, low, high) in enumerate(rows):
            if value is None:
                continue
            colour = ALIGNED if y == len(rows) - 1 else BASE
            if low is not None:
                axes.plot([100 * low, 100 * high], [y + shift] * 2, color=colour, linewidth=2, alpha=0.6)
            face = colour if kind == "raw_win_rate" else "none"
            axes.plot(100 * value, y + shift, "o", color=colour, markersize=6, markerfacecolor=face)
    axes.axvline(50, color=INK, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 100)
    axes.set_xlabel("pairs won by the aligned model, % (ties count half)")
    return _svg(figure, "Win rate of the aligned model with intervals")


def accuracy(quality: dict[str, dict]) -> str:
    """Pair accuracy on held-out plots per dimension: reward model beside its baselines."""
    figure, axes = _figure(5.6, 2.9)
    names = [n for n in ("reward model", "untrained", "length only") if n in quality]
    width = 0.8 / len(names)
    for i, (name, colour) in enumerate(zip(names, (ALIGNED, QUIET, BASE), strict=False)):
        for j, d in enumerate(DIMENSIONS):
            found = quality[name].get(d.key, {}).get("accuracy")
            if not found:
                continue
            value, low, high = found
            x = j + (i - (len(names) - 1) / 2) * width
            axes.bar(x, 100 * value, width * 0.9, color=colour, label=name if j == 0 else None)
            if low == low and low is not None:
                axes.plot([x, x], [100 * low, 100 * high], color=INK, linewidth=1)
    axes.axhline(50, color=INK, linestyle="--", linewidth=1)
    axes.set_xticks(range(len(DIMENSIONS)), [d.name.replace(" ", "\n", 1) for d in DIMENSIONS], fontsize=8)
    axes.set_ylim(0, 100)
    axes.set_ylabel("pairs ordered rightly, %")
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.18))
    return _svg(figure, "Pair accuracy of the reward model on held-out plots beside its baselines")


def passport(p) -> str:
    """One page: each thing measured of a judge as a point with its 95 % interval between what is bad and what is good.

    Args:
        p: a passport.Passport.
    """
    percent = lambda v: f"{100 * v:.0f} %"  # noqa: E731
    signed = lambda v: f"{v:+.2f}"  # noqa: E731
    rows = [("right on pairs of known order, both orders", p.known_pairs, (0, 1), 0.25, percent)]
    rows.append(("rates the damaged plot lower", p.rated_right, (0, 1), 0.5, percent))
    if p.flips:
        rows.append(("the order decides", p.flips, (0, 1), 0, percent))
    rows.append(("points for a doubled length, same story", p.length_slope, (-2, 2), 0, signed))
    rows.append(("points added by a planted demand", p.planted, (-2, 2), 0, signed))
    if p.own:
        rows.append(("prefers its own text to a well-made one", p.own, (0, 1), None, percent))
    for file, aspects in p.people.items():
        rows += [(f"people, {file}: {a}", f["spearman"], (-1, 1), 0, signed) for a, f in aspects.items()]
    figure, axes = _figure(7.6, 0.9 + 0.36 * len(rows))
    for y, (name, (value, low, high), (start, end), mark, write) in enumerate(reversed(rows)):
        place = lambda v, start=start, end=end: (min(max(v, start), end) - start) / (end - start)  # noqa: E731
        axes.plot([0, 1], [y, y], color=QUIET, linewidth=0.6)
        if mark is not None:
            axes.plot([place(mark)] * 2, [y - 0.25, y + 0.25], color=INK, linewidth=1, linestyle=":")
        if value is not None:
            if low is not None:
                axes.plot([place(low), place(high)], [y, y], color=ALIGNED, linewidth=3, alpha=0.45)
            axes.plot(place(value), y, "o", color=ALIGNED, markersize=6)
        axes.text(1.03, y, "not measured" if value is None else write(value), va="center", fontsize=9)
        axes.text(-0.02, y, name, va="center", ha="right", fontsize=9)
    axes.set_title(f"{p.judge}\n{p.trust}", loc="left", x=-0.55, fontsize=10, color=INK)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_axis_off()
    return _svg(figure, f"Passport of {p.judge}")


def overlap(rows: dict[str, tuple[list[float], list[float]]], names: tuple[str, str], title: str) -> str:
    """Two samples of ratings, one row a label: smoothed distributions over each other, a dot for each text, a line at each mean."""
    figure, axes = _figure(5.6, 0.5 + 0.85 * len(rows))
    both = np.concatenate([np.concatenate([np.asarray(s, float) for s in pair]) for pair in rows.values()])
    room = max(0.5, 0.08 * (both.max() - both.min()))
    low, high = max(SCALE[0], both.min() - room), min(SCALE[1], both.max() + room)
    grid = np.linspace(low, high, 200)
    for y, pair in enumerate(reversed(rows.values())):
        curves_ = [_smooth(np.asarray(values, float), grid) for values in pair]
        top = max(c.max() for c in curves_)
        for i, (values, curve, colour) in enumerate(zip(pair, curves_, (ALIGNED, BASE), strict=True)):
            label = names[i] if y == 0 else None
            shape = y + 0.72 * curve / top
            axes.fill_between(grid, y, shape, color=colour, alpha=0.25, linewidth=0, label=label)
            axes.plot(grid, shape, color=colour, linewidth=1.6)
            axes.plot(values, np.full(len(values), y - 0.07 - 0.08 * i), "o", color=colour, markersize=2.6, alpha=0.6)
            axes.plot([np.mean(values)] * 2, [y - 0.19, y + 0.72], color=colour, linewidth=1.2, linestyle="--")
    axes.set_yticks(range(len(rows)), list(reversed(rows)))
    axes.set_xlim(low, high)
    axes.set_ylim(-0.3, len(rows) - 0.1)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("rating")
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return _svg(figure, title)


def _smooth(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Gaussian kernel density on `grid`; the width after Silverman, at least 0.1 points so that equal ratings show."""
    width = max(0.1, 0.9 * values.std() * len(values) ** -0.2)
    return np.exp(-0.5 * ((grid[:, None] - values) / width) ** 2).sum(1) / (len(values) * width)


def strengths(figures: dict) -> str:
    """A tournament's writers, best on top: strength (Elo-like, mean 1000) with its 95 % interval."""
    rows = [w for w in figures["writers"] if w["rank"]]
    figure, axes = _figure(5.6, 0.9 + 0.42 * max(len(rows), 1))
    for y, w in enumerate(rows):
        value, low, high = w["strength"]
        colour = ALIGNED if y == 0 else BASE
        if low is not None:
            axes.plot([low, high], [y, y], color=colour, linewidth=2, alpha=0.6)
        axes.plot(value, y, "o", color=colour, markersize=6)
    axes.axvline(1000, color=INK, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), [_plain(w["name"]) for w in rows])
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_xlabel("strength (400 points more: ten wins to one)")
    return _svg(figure, "Strengths of the writers with intervals")


def pairwise(figures: dict) -> str:
    """Share of the points the writer in the row won against the one in the column (ties count half), and won–lost–tied."""
    from matplotlib.colors import LinearSegmentedColormap

    names = [w["name"] for w in figures["writers"] if w["rank"]]
    figure, axes = _figure(1.6 + 0.95 * max(len(names), 1), 1.1 + 0.6 * max(len(names), 1))
    share = np.full((max(len(names), 1),) * 2, np.nan)
    for pair in figures["pairs"]:
        i, j = names.index(pair["ahead"]), names.index(pair["behind"])
        won, lost, tied = pair["won"], pair["lost"], pair["tied"]
        if games := won + lost + tied:
            share[i, j] = (won + tied / 2) / games
            share[j, i] = 1 - share[i, j]
            percent = round(100 * share[i, j])
            for x, y, value, score in ((j, i, percent, (won, lost)), (i, j, 100 - percent, (lost, won))):
                label = f"{value} %\n{score[0]}–{score[1]}–{tied}"
                axes.text(x + 0.5, y + 0.5, label, ha="center", va="center", fontsize=8, color="#1f2937")
    pale = LinearSegmentedColormap.from_list("points", [QUIET, "#f3ede4", "#eda760"])  # dark text is readable on it
    axes.pcolormesh(np.ma.masked_invalid(share), cmap=pale, vmin=0, vmax=1)
    axes.invert_yaxis()
    middle = np.arange(len(names)) + 0.5
    axes.set_xticks(middle, [_plain(name) for name in names], rotation=30, ha="left", rotation_mode="anchor")
    axes.set_yticks(middle, [_plain(name) for name in names])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _svg(figure, "Points won by each writer against each other one")


def dots(rows: dict[str, list], names: list[str], label: str, title: str) -> str:
    """One row a measure, in it a dot with its 95 % interval for each name; [value, low, high], None where there is none."""
    figure, axes = _figure(6.0, 0.9 + (0.26 + 0.14 * len(names)) * len(rows))
    colours = (BASE, ALIGNED, "#3b7ea1", "#7a9a3c", "#9467a8", INK)
    for y, found in enumerate(rows.values()):
        for i, (value, low, high) in enumerate(found):
            if value is None:
                continue
            place, colour = y + 0.6 * ((i + 0.5) / len(names) - 0.5), colours[i % len(colours)]
            if low is not None:
                axes.plot([low, high], [place, place], color=colour, linewidth=2, alpha=0.6)
            axes.plot(value, place, "o", color=colour, markersize=5)
    for i, name in enumerate(names):
        axes.plot([], [], "o", color=colours[i % len(colours)], label=_plain(name))
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(left=min(0, axes.get_xlim()[0]), right=max(1, axes.get_xlim()[1]))
    axes.grid(axis="x", color=QUIET, linewidth=0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(label)
    axes.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return _svg(figure, title)


def frontier(figures: dict) -> str:
    """Diversity against quality: a writer's settings joined in order of temperature, crosses of 95 % intervals, the
    points that no other beats ringed. A panel for meaning, one for style, and a row of them for each rater; without a
    rater the temperature stands in quality's place.
    """
    from matplotlib.lines import Line2D

    raters = list(figures["cautions"]) or [""]
    figure, axes = _figure(9.2, 3.9 * len(raters))
    axes.remove()
    looks = {n: (MANY[i % len(MANY)], MARKS[i % len(MARKS)], i % 2) for i, n in enumerate(figures["writers"])}
    min_ps = sorted({p["min_p"] for p in figures["points"]})
    for row, rater in zip(figure.subplots(len(raters), 2, squeeze=False), raters, strict=True):
        for axes, (measure, label) in zip(row, {"semantic": "meaning", "style": "style"}.items(), strict=True):
            axes.patch.set_alpha(0)
            axes.grid(color=INK, linewidth=0.5, alpha=0.25)
            axes.margins(0.12)
            for name, look in looks.items():
                for min_p in min_ps:
                    mine = [p for p in figures["points"] if p["writer"] == name and p["min_p"] == min_p]
                    _curve(axes, sorted(mine, key=lambda p: p["temperature"]), rater, measure, *look, len(min_ps) > 1)
            star = "*" if rater and figures["cautions"][rater] else ""
            axes.set_xlabel(f"quality: mean rating by {rater}{star}, 1 … 10" if rater else "temperature")
            axes.set_ylabel(f"diversity of {label}: mean cosine distance")
    handles = [Line2D([], [], color=c, marker=m, label=_plain(name)) for name, (c, m, _) in looks.items()]
    if raters != [""]:
        ring = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "markeredgecolor": INK, "linewidth": 0}
        handles.append(Line2D([], [], **ring, label="on the frontier"))
    figure.tight_layout()
    figure.legend(handles=handles, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 0.98))
    for i, why in enumerate(filter(None, figures["cautions"].values())):
        figure.text(0.01, -0.02 - 0.03 * i, _plain(f"* {why}"), fontsize=7, va="top")
    return _svg(figure, "Quality against diversity of each writer at each sampling setting")


def _curve(axes, points: list[dict], rater: str, measure: str, colour: str, mark: str, below: bool, both: bool) -> None:
    """One writer's points at one min_p, in order of temperature; labels above or below them, with min_p where `both`."""
    spots = [
        (p["figures"][rater] if rater else [p["temperature"], None, None], p["figures"][measure], p) for p in points
    ]
    spots = [spot for spot in spots if spot[0][0] is not None and spot[1][0] is not None]
    axes.plot([x[0] for x, _, _ in spots], [y[0] for _, y, _ in spots], color=colour, linewidth=1.3, marker=mark, markersize=5)  # fmt: skip
    for (x, *wide), (y, *high), p in spots:
        if wide[0] is not None:
            axes.plot(wide, [y, y], color=colour, linewidth=0.9, alpha=0.45)
        if high[0] is not None:
            axes.plot([x, x], high, color=colour, linewidth=0.9, alpha=0.45)
        if p["frontier"].get(f"{rater}/{measure}", [False])[0]:
            axes.plot(x, y, "o", markersize=12, markerfacecolor="none", markeredgecolor=INK)
        told = f"{p['temperature']:g}" + (f"/{p['min_p']:g}" if both else "")
        place = {"xytext": (7, -6), "va": "top"} if below else {"xytext": (7, 5)}
        axes.annotate(told, (x, y), **place, textcoords="offset points", fontsize=7, color=colour, zorder=5)


def _plain(name: str) -> str:
    """A name as it is: matplotlib would read what stands between two dollar signs as mathematics."""
    return name.replace("$", r"\$")
