"""The adversarial rounds as a picture: how right the principles are, against how often flawed greetings slip through."""

from toolkit.evaluate.charts import ALIGNED, BASE, INK, QUIET, _figure, _svg


def chart(history: list[dict]) -> str:
    """SVG of `history` (rows of feedback.adversarial's history.jsonl): accuracy of S_D on the held-out greetings with its 95 %
    interval, hollow where it was rejected and grey where nothing was tried; S_G's success beside it, which is the share of
    its flawed greetings that passed as Good. A row without a figure leaves a gap.
    """
    figure, axes = _figure(5.6, 3.0)
    drawn = set()

    def name(label: str) -> str | None:
        """A label for the legend once."""
        return None if label in drawn or drawn.add(label) else label

    best = []
    for row in history:
        value, low, high = row.get("accuracy") or (None,) * 3
        if value is None:
            continue
        x, verdict = row["round"], row.get("verdict")
        if row["kept"]:
            best.append((x, 100 * value))
        colour = QUIET if verdict == "unchanged" else ALIGNED
        label = {"rejected": "S_D tried and rejected", "unchanged": "S_D unchanged"}.get(verdict, "S_D kept: accuracy")
        if low is not None and verdict != "unchanged":
            axes.plot([x, x], [100 * low, 100 * high], color=colour, linewidth=2, alpha=0.45)
        face = "none" if verdict == "rejected" else colour
        axes.plot(x, 100 * value, "o", color=colour, markerfacecolor=face, markersize=6.5, label=name(label), zorder=3)
    if best:
        end = history[-1]["round"]
        x, y = zip(*best, (end, best[-1][1]), strict=True)
        axes.plot(x, y, color=ALIGNED, linewidth=1.4, drawstyle="steps-post")
    passed = [(row["round"], row["passed"]) for row in history if (row.get("passed") or [None])[0] is not None]
    for x, (_, low, high) in passed:
        axes.plot([x + 0.06] * 2, [100 * low, 100 * high], color=BASE, linewidth=2, alpha=0.45)
    if passed:
        points = [(x + 0.06, 100 * share) for x, (share, _, _) in passed]
        label = "S_G: flawed ones that passed"
        axes.plot(*zip(*points, strict=True), color=BASE, marker="s", markersize=5, linewidth=1.4, linestyle=":", label=label)  # fmt: skip
    axes.axhline(50, color=INK, linestyle="--", linewidth=1)
    axes.set_xticks([row["round"] for row in history])
    axes.set_xlim(-0.4, max([row["round"] for row in history], default=0) + 0.4)
    axes.set_ylim(-3, 103)
    axes.set_xlabel("round (0 is the start)")
    axes.set_ylabel("%")
    axes.grid(axis="y", color=QUIET, linewidth=0.5)
    if drawn or passed:
        axes.legend(frameon=False, ncols=2, fontsize=8, loc="lower left", bbox_to_anchor=(0.0, 1.0))
    return _svg(figure, "Accuracy of the judging principles and success of the flawed greetings, by round")
