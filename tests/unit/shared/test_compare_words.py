"""The figures of a comparison as words and as drawings."""

from fusewire.analysis.compare import words
from fusewire.analysis.compare.drawing import WIDTH, draw
from fusewire.analysis.compare.verdict import Look
from fusewire.analysis.measures import Interval


def test_a_drawing_stays_in_its_frame() -> None:
    for bounds in (Interval(5, 2, 80), Interval(-3, -3.5, -2), Interval(0, 0, 0)):
        drawing = draw(bounds, "label", 3.0)
        assert drawing is not None
        assert drawing.margin_low is not None
        assert drawing.zero == WIDTH / 2
        assert 0 <= drawing.low <= drawing.value <= drawing.high <= WIDTH
        assert 0 <= drawing.margin_low < drawing.zero
    assert draw(None, "label") is None


def test_how_many_more_are_rounded_up() -> None:
    assert [words.round_up(n) for n in (7, 99, 101, 1234, 12_001)] == [7, 99, 110, 1300, 13_000]


def test_zero_has_no_minus() -> None:
    assert words.interval(Interval(-0.01, -0.04, 0.01)) == "+0.0 (+0.0 to +0.0)"
    difference = Look(40, Interval(-0.0123, -0.02, 0.0), None, 0.02, 0.0077)
    assert words.cost(difference)[0] == "-12.30 (-20.00 to +0.00) USD per 1,000 prompts"
