"""Places in drawings, which templates draw as SVG. Pure: lengths are in the drawing's own units."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """A linear axis from `lowest` to `highest`, `length` units long."""

    lowest: float
    highest: float
    length: float = 100.0

    def place(self, value: float) -> float:
        """Where a value is; what lies outside the axis is at its end.

        >>> Axis(0, 10).place(2.5), Axis(0, 10).place(99)
        (25.0, 100.0)
        """
        if self.highest <= self.lowest:
            return self.length / 2
        share = (value - self.lowest) / (self.highest - self.lowest)
        return round(min(max(share, 0.0), 1.0) * self.length, 2)


def axis(values: Sequence[float | None], length: float = 100.0, *, from_zero: bool = True) -> Axis:
    """An axis that all known values fit on, its end a round number.

    >>> axis([3, None, 87])
    Axis(lowest=0.0, highest=100.0, length=100.0)
    """
    numbers = [value for value in values if value is not None]
    lowest = 0.0 if from_zero else min(numbers, default=0.0)
    return Axis(lowest, _round_up(max(numbers, default=1.0)), length)


def _round_up(value: float) -> float:
    """The next of 1, 2 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    steps = (1.0, 2.0, 5.0, 10.0)
    return next(step * power for step in steps if step * power >= value * (1 - 1e-9))
