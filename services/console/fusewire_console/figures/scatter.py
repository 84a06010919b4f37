"""A scatter plot whose points have labels that do not overlap. Pure.

Places are percentages of a plot of any width, so that texts keep their size; labels are placed so
that they are apart on the narrowest plot and on the widest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fusewire_console.charts import Axis, axis

WIDTHS_PX = (240.0, 1080.0)
"""Of the plot, on a phone and on a wide screen."""
HEIGHT_PX = 256.0
LETTER_PX = 6.5
"""Of a letter of 11 px, on average rather too wide."""
LINE_PX = 13.0
POINT_PX = 6.0
"""From the centre of a point to its edge, with a gap."""
MOST_LETTERS = 20
_OUTSIDE_PX = 7.0
"""How far a label may reach out of the plot."""


@dataclass(frozen=True)
class ScatterPoint:
    """A point, with the interval of its y."""

    name: str
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class LabelPlace:
    """Where a label stands, from its point, in px; `anchor` as SVG's text-anchor has it."""

    anchor: str
    dx: float
    dy: float


def _stacked_places() -> Iterator[LabelPlace]:
    """Places ever higher above a point, for those that lie at the bottom of the plot."""
    for level in range(1, 11):
        for anchor, dx in (("start", 7.0), ("end", -7.0)):
            yield LabelPlace(anchor, dx, -10 - (LINE_PX + 1) * level)


PLACES = (
    LabelPlace("start", 9, 4),
    LabelPlace("end", -9, 4),
    LabelPlace("start", 7, -10),
    LabelPlace("end", -7, -10),
    LabelPlace("start", 7, 18),
    LabelPlace("end", -7, 18),
    LabelPlace("middle", 0, -11),
    LabelPlace("middle", 0, 19),
    *_stacked_places(),
)
"""Where a label may stand, the best place first."""


@dataclass(frozen=True)
class PlotPoint:
    """A point as it is drawn: places in percent of the plot, from its left and its top."""

    name: str
    label: str
    x: float
    y: float
    low: float
    high: float
    place: LabelPlace | None
    """None where there is no room for the label."""

    @property
    def has_leader(self) -> bool:
        """Whether the label stands so far from its point that a line leads to it."""
        return self.place is not None and self.place.dy < -12


@dataclass(frozen=True)
class Plot:
    """A scatter plot, with axes from 0."""

    x_axis: Axis
    y_axis: Axis
    points: tuple[PlotPoint, ...]


@dataclass(frozen=True)
class _Box:
    left: float
    right: float
    top: float
    bottom: float

    def overlaps(self, other: "_Box") -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def plot(points: Sequence[ScatterPoint]) -> Plot:
    """Place points and their labels; the labels of the first points have the first choice."""
    x_axis, y_axis = axis([point.x for point in points]), axis([point.high for point in points])
    places = [(x_axis.place(point.x), 100 - y_axis.place(point.y)) for point in points]
    labels = [_shorten(point.name) for point in points]
    label_places = _place_labels(places, labels)
    return Plot(
        x_axis,
        y_axis,
        tuple(
            PlotPoint(
                point.name,
                label,
                x,
                round(y, 2),
                round(100 - y_axis.place(point.low), 2),
                round(100 - y_axis.place(point.high), 2),
                label_place,
            )
            for point, label, (x, y), label_place in zip(
                points, labels, places, label_places, strict=True
            )
        ),
    )


def _shorten(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "…"


def _place_labels(
    places: Sequence[tuple[float, float]], labels: Sequence[str]
) -> list[LabelPlace | None]:
    """The first place of each label that is free at each width; None where none is."""
    obstacles: dict[float, list[_Box]] = {}
    for width in WIDTHS_PX:
        obstacles[width] = [_point_box(*place, width) for place in places]
    label_places: list[LabelPlace | None] = []
    for number, (place, label) in enumerate(zip(places, labels, strict=True)):
        label_place = next(_fitting_places(place, label, number, obstacles), None)
        label_places.append(label_place)
        if label_place is not None:
            for width in WIDTHS_PX:
                obstacles[width].append(_label_box(place, label, label_place, width))
    return label_places


def _fitting_places(
    place: tuple[float, float], label: str, number: int, obstacles: dict[float, list[_Box]]
) -> Iterator[LabelPlace]:
    for label_place in PLACES:
        boxes = {width: _label_box(place, label, label_place, width) for width in WIDTHS_PX}
        if all(_is_free(boxes[width], number, obstacles[width], width) for width in WIDTHS_PX):
            yield label_place


def _is_free(box: _Box, number: int, boxes: Sequence[_Box], width: float) -> bool:
    """Whether a box is inside the plot, and overlaps none but the point of its own number."""
    is_inside = (
        box.left >= -_OUTSIDE_PX
        and box.right <= width + _OUTSIDE_PX
        and box.top >= 0
        and box.bottom <= HEIGHT_PX + _OUTSIDE_PX
    )
    if not is_inside:
        return False
    return not any(box.overlaps(other) for place, other in enumerate(boxes) if place != number)


def _point_box(x: float, y: float, width: float) -> _Box:
    x_px, y_px = x / 100 * width, y / 100 * HEIGHT_PX
    return _Box(x_px - POINT_PX, x_px + POINT_PX, y_px - POINT_PX, y_px + POINT_PX)


def _label_box(
    place: tuple[float, float], label: str, label_place: LabelPlace, width: float
) -> _Box:
    x, y = place
    length = len(label) * LETTER_PX
    anchor_px = {"start": 0.0, "middle": length / 2, "end": length}[label_place.anchor]
    x_px = x / 100 * width + label_place.dx - anchor_px
    base_px = y / 100 * HEIGHT_PX + label_place.dy
    return _Box(x_px, x_px + length, base_px - LINE_PX + 3, base_px + 3)
