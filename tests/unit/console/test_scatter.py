"""Scatter plots: points where they belong, labels apart at every width."""

import random

import pytest

from fusewire_console.figures.scatter import (
    HEIGHT_PX,
    LETTER_PX,
    LINE_PX,
    WIDTHS_PX,
    PlotPoint,
    ScatterPoint,
    plot,
)


def point(name: str, x: float, y: float) -> ScatterPoint:
    return ScatterPoint(name, x, y, max(y - 0.01, 0.0), y + 0.01)


def label_box(it: PlotPoint, width: float) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a label, in px."""
    length = len(it.label) * LETTER_PX
    assert it.place
    start = {"start": 0.0, "middle": length / 2, "end": length}[it.place.anchor]
    left = it.x / 100 * width + it.place.dx - start
    base = it.y / 100 * HEIGHT_PX + it.place.dy
    return left, base - LINE_PX + 3, left + length, base + 3


def overlaps(points: tuple[PlotPoint, ...], width: float) -> list[tuple[str, str]]:
    boxes = {it.name: label_box(it, width) for it in points if it.place}
    pairs = [(a, b) for a in boxes for b in boxes if a < b]
    return [
        (a, b)
        for a, b in pairs
        if boxes[a][0] < boxes[b][2]
        and boxes[b][0] < boxes[a][2]
        and boxes[a][1] < boxes[b][3]
        and boxes[b][1] < boxes[a][3]
    ]


def test_points_lie_where_their_figures_say_on_axes_from_zero() -> None:
    drawing = plot([ScatterPoint("a", 0.005, 0.04, 0.02, 0.08), ScatterPoint("b", 0.0, 0, 0, 0.01)])
    assert (drawing.x_axis.highest, drawing.y_axis.highest) == (0.005, 0.1)
    a, b = drawing.points
    assert (a.x, a.y, a.low, a.high) == (100.0, 60.0, 80.0, 20.0)
    assert (b.x, b.y, b.low) == (0.0, 100.0, 100.0)


@pytest.mark.parametrize(
    "points",
    [
        [point("alpha", 1, 0.05), point("beta", 1, 0.05)],
        [point("alpha", 0, 0), point("beta", 0, 0), point("gamma", 0.02, 0.001)],
        [point("a-model-with-a-long-name", 1, 0.03), point("another-long-name", 0.9, 0.031)],
    ],
)
def test_labels_of_points_at_one_place_are_apart_at_every_width(points: list[ScatterPoint]) -> None:
    drawing = plot(points)
    narrow, wide = WIDTHS_PX
    for width in range(int(narrow), int(wide) + 1, 20):
        assert not overlaps(drawing.points, width)


def test_labels_of_eight_points_anywhere_are_apart_and_nearly_all_there() -> None:
    n_missing = 0
    for seed in range(100):
        rng = random.Random(seed)
        points = plot(
            [point(f"model-{i}", rng.random(), rng.random() / 10) for i in range(8)]
        ).points
        assert not any(overlaps(points, width) for width in WIDTHS_PX)
        n_missing += sum(it.place is None for it in points)
    assert n_missing <= 8


def test_labels_of_twelve_members_that_add_nothing_are_stacked() -> None:
    points = plot(
        [ScatterPoint(f"model-{i}-xlarge", 1 + i // 3, 0, 0, 0.005) for i in range(12)]
    ).points
    assert all(it.place for it in points)
    assert any(it.has_leader for it in points)
    assert not any(overlaps(points, width) for width in WIDTHS_PX)


def test_a_label_without_room_is_left_out() -> None:
    points = plot([ScatterPoint(f"m{i}", 1, 0, 0, 0.005) for i in range(40)]).points
    assert points[0].place
    assert points[-1].place is None
    assert not points[-1].has_leader


def test_a_label_stays_in_the_plot_and_is_cut_where_it_is_long() -> None:
    for x in (0.0, 1.0):
        (only,) = plot([point("m" * 63, x, 0.02), point("far", 1, 0.1)]).points[:1]
        assert len(only.label) == 20
        assert only.label.endswith("…")
        for width in WIDTHS_PX:
            left, _, right, bottom = label_box(only, width)
            assert left >= -7
            assert right <= width + 7
            assert bottom <= HEIGHT_PX + 7


def test_no_points_make_an_empty_plot() -> None:
    assert plot([]).points == ()
