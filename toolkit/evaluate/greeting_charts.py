"""Pictures for the greetings' report: small ones that stand side by side on a screen and below each other on a phone."""

from toolkit.evaluate.charts import ALIGNED, BASE, INK, MANY, MARKS, _figure, _plain, _svg


def forest(found: dict[str, list], label: str, mark: float = 0.0, scale: float = 1.0) -> str:
    """One row a writer: [value, low, high] as a dot with its 95 % interval; dashed where there would be no difference.

    A row whose interval does not touch the mark is drawn strong. `scale` multiplies all (100 for percent).
    """
    rows = {name: v for name, v in found.items() if v and v[0] is not None}
    figure, axes = _figure(4.2, 0.8 + 0.34 * max(len(rows), 1))
    for y, (value, low, high) in enumerate(rows.values()):
        clear = low is not None and (low > mark or high < mark)
        colour = ALIGNED if clear else BASE
        if low is not None:
            axes.plot([scale * low, scale * high], [y, y], color=colour, linewidth=2.2, alpha=0.65)
        axes.plot(scale * value, y, "o", color=colour, markersize=6)
    axes.axvline(scale * mark, color=INK, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), [_plain(name) for name in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(_plain(label))
    axes.grid(axis="x", color=INK, linewidth=0.5, alpha=0.25)
    return _svg(figure, "Differences of each writer from the baseline with intervals")


def trade(points: dict[str, tuple[list, list]], label: str) -> str:
    """Reward against diversity: writer → ([value, low, high] of each), a cross of intervals for each writer, named beside it."""
    figure, axes = _figure(5.2, 3.6)
    axes.margins(0.14)
    for i, (name, (x, y)) in enumerate(points.items()):
        if x[0] is None or y[0] is None:
            continue
        colour = MANY[i % len(MANY)]
        if x[1] is not None:
            axes.plot(x[1:], [y[0]] * 2, color=colour, linewidth=1, alpha=0.5)
        if y[1] is not None:
            axes.plot([x[0]] * 2, y[1:], color=colour, linewidth=1, alpha=0.5)
        axes.plot(x[0], y[0], MARKS[i % len(MARKS)], color=colour, markersize=7)
        axes.annotate(
            _plain(name), (x[0], y[0]), xytext=(7, 5), textcoords="offset points", fontsize=8.5, color=colour, zorder=5
        )
    axes.grid(color=INK, linewidth=0.5, alpha=0.25)
    axes.set_xlabel(_plain(label))
    axes.set_ylabel("diversity: mean cosine distance\nof greetings to one request")
    return _svg(figure, "Reward against diversity of each writer")


def series(points: list[tuple[float, float]], label: str, stopped: int | None = None, kept: int | None = None) -> str:
    """One thing watched over training: (step, value). `kept`: the step that was put back, ringed; `stopped`: a dashed line."""
    figure, axes = _figure(3.2, 2.0)
    x, y = zip(*points, strict=True)
    axes.plot(x, y, color=ALIGNED, linewidth=1.8, marker="o" if len(points) < 30 else None, markersize=3.5)
    if stopped is not None:
        axes.axvline(stopped, color=INK, linestyle="--", linewidth=1)
    for step, value in points:
        if step == kept:
            axes.plot(step, value, "o", markersize=11, markerfacecolor="none", markeredgecolor=INK)
    axes.set_title(_plain(label), loc="left", fontsize=10, color=INK)
    axes.margins(y=0.2)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("step")
    axes.grid(axis="y", color=INK, linewidth=0.5, alpha=0.25)
    return _svg(figure, "Series watched by the tripwire")


def bars(rows: dict[str, list], label: str) -> str:
    """Shares with 95 % intervals as dots on 0 … 100 %, a dashed line at one half: an accuracy beside its baselines."""
    figure, axes = _figure(5.2, 0.8 + 0.32 * len(rows))
    for y, (name, (value, low, high)) in enumerate(rows.items()):
        colour = BASE if "length only" in name or "untrained" in name else ALIGNED
        if low is not None:
            axes.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=2.2, alpha=0.65)
        axes.plot(100 * value, y, "o", color=colour, markersize=6)
    axes.axvline(50, color=INK, linestyle="--", linewidth=1)
    axes.set_xlim(0, 100)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [_plain(name) for name in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(_plain(label))
    axes.grid(axis="x", color=INK, linewidth=0.5, alpha=0.25)
    return _svg(figure, "Accuracy beside its baselines with intervals")
