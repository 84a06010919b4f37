"""A comparison as one self-contained page: no script, and nothing is requested."""

from dataclasses import dataclass
from typing import Any

from fusewire.analysis.compare.cards import Card
from fusewire.analysis.compare.comparison import Comparison
from fusewire.analysis.measures import Interval
from fusewire_cli.compare import words

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


def render(comparison: Comparison) -> str:
    """The page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fusewire_cli.compare", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html")
    return page.render(
        it=comparison,
        words=words,
        width=WIDTH,
        title=words.title(comparison),
        looks=_looks(comparison),
        cards=[_card(card) for card in comparison.cards],
    )


def _looks(comparison: Comparison) -> list[dict[str, Any]]:
    header = comparison.header
    margin = header.margin_points
    rows = [
        ("Quality", header.quality, words.quality(header), margin),
        ("Cost", header.cost, words.cost(header.cost), None),
        ("Latency", header.latency, words.latency(header.latency), None),
    ]
    return [
        {
            "name": name,
            "n": look.n,
            "difference": difference,
            "source": source,
            "drawing": draw(look.interval, f"{name}, B less A: {difference}", edge),
            "better": "right" if name == "Quality" else "left",
        }
        for name, look, (difference, source), edge in rows
    ]


def _card(card: Card) -> dict[str, Any]:
    difference = f"{words.interval(card.difference)} {card.unit}"
    return {
        "card": card,
        "difference": difference if card.difference else None,
        "drawing": draw(card.difference, f"{card.name}, B less A: {difference}"),
        "scores": [("a", words.score(card.a), card.a), ("b", words.score(card.b), card.b)],
    }
