"""The five narrative quality dimensions (PlotTwist, arXiv 2603.16410): defined here and nowhere else.

Every prompt, reward head, chart and report reads this tuple; a text's scores are always in its order.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dimension:
    key: str  # in files and columns
    name: str  # in reports
    asks: str  # what it means, for raters and people


DIMENSIONS = (
    Dimension(
        "character",
        "Character Development",
        "characters with clear motives, believable relations, and a meaningful change",
    ),
    Dimension("tone", "Tone Consistency", "one atmosphere, style and mood from start to end, no abrupt shifts"),
    Dimension("pacing", "Pacing", "events well balanced, tension where it belongs, nothing rushed or dragged"),
    Dimension("coherence", "Narrative Coherence", "cause and effect that hold, no holes or contradictions"),
    Dimension("emotion", "Emotional Turning Points", "strong turns that move the reader"),
)
KEYS = tuple(d.key for d in DIMENSIONS)
SCALE = (1.0, 10.0)  # every rating in every file, lowest and highest
MIDDLE, HALF = sum(SCALE) / 2, (SCALE[1] - SCALE[0]) / 2
