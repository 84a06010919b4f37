"""A comparison's differences as drawings and words, for the pages that show it. Pure."""

from dataclasses import dataclass
from typing import Literal

from fusewire.analysis.compare import words
from fusewire.analysis.compare.cards import Card, SideName
from fusewire.analysis.compare.comparison import Comparison
from fusewire.analysis.compare.verdict import Look
from fusewire.analysis.measures import Interval

WIDTH = 240
"""Of a drawing, in its own units."""
EDGE = 8


@dataclass(frozen=True)
class Drawing:
    """An interval on a line with a zero: places from the left, 0 to WIDTH."""

    low: float
    value: float
    high: float
    zero: float
    margin_low: float | None
    margin_high: float | None
    label: str


def draw(bounds: Interval | None, label: str, margin: float | None = None) -> Drawing | None:
    """Place an interval so that zero is in the middle, and the margin on both sides of it."""
    if bounds is None:
        return None
    reach = max(abs(bounds.low), abs(bounds.high), 1.2 * (margin or 0.0)) or 1.0

    def place(number: float) -> float:
        return round(WIDTH / 2 + number / reach * (WIDTH / 2 - EDGE), 1)

    return Drawing(
        place(bounds.low),
        place(bounds.value),
        place(bounds.high),
        place(0),
        place(-margin) if margin else None,
        place(margin) if margin else None,
        label,
    )


@dataclass(frozen=True)
class LookFigure:
    """One of the three differences that the verdict looks at, B less A."""

    name: str
    n: int
    difference: str
    source: str
    """Where it is from."""
    drawing: Drawing | None
    better: Literal["left", "right"]
    """The side of the line that is better for B."""


@dataclass(frozen=True)
class CardFigure:
    """A lens card, and what is drawn of it."""

    card: Card
    difference: str | None
    drawing: Drawing | None
    scores: tuple[tuple[SideName, str, float | None], ...]
    """Of each side its score as text, and from 0 to 100."""


def look_figures(comparison: Comparison) -> list[LookFigure]:
    """Quality, cost and latency."""
    header = comparison.header
    margin = header.margin_points
    return [
        _look_figure("Quality", header.quality, words.quality(header), "right", margin),
        _look_figure("Cost", header.cost, words.cost(header.cost), "left"),
        _look_figure("Latency", header.latency, words.latency(header.latency), "left"),
    ]


def _look_figure(
    name: str,
    look: Look,
    texts: tuple[str, str],
    better: Literal["left", "right"],
    margin: float | None = None,
) -> LookFigure:
    difference, source = texts
    drawing = draw(look.interval, f"{name}, B less A: {difference}", margin)
    return LookFigure(name, look.n, difference, source, drawing, better)


def card_figure(card: Card) -> CardFigure:
    """A card with its drawing."""
    difference = f"{words.interval(card.difference)} {card.unit}"
    return CardFigure(
        card,
        difference if card.difference else None,
        draw(card.difference, f"{card.name}, B less A: {difference}"),
        (("a", words.score(card.a), card.a), ("b", words.score(card.b), card.b)),
    )
