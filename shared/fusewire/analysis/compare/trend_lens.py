"""Futurist: is it getting better? Pure."""

import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from statistics import fmean, pvariance

from fusewire.analysis.compare.cards import Card, Lens, choice_evidence, step_by
from fusewire.analysis.compare.intervals import Z95
from fusewire.analysis.compare.quality import Worth, read_worths
from fusewire.analysis.compare.rows import Pair
from fusewire.analysis.measures import LEAST_N, Interval

N_WEEKS = 4
LEAST_WEEKS = 3
POINTS_PER_STEP = 10
"""What a point a week adds to the score, or takes from it."""

FUTURIST = Lens(
    "Futurist",
    "Is it getting better from week to week?",
    "50 + 10 × slope, from 0 to 100: the slope in points a week of the share that is right (or"
    " preferred), over the 4 weeks before the newest prompt",
    "points a week",
)


def futurist(pairs: Sequence[Pair]) -> Card:
    """The trends of A and B, and of their difference."""
    weeks = _weeks(read_worths(pairs)[1])
    n = sum(len(worths) for worths in weeks.values())
    if len(weeks) < LEAST_WEEKS:
        return FUTURIST.unknown(
            n,
            f"{len(weeks)} of the last {N_WEEKS} weeks have {LEAST_N} prompts that tell;"
            f" {LEAST_WEEKS} are the least",
        )
    slope_a = _slope_of(weeks, lambda worth: worth.a)
    slope_b = _slope_of(weeks, lambda worth: worth.b)
    difference = _slope_of(weeks, lambda worth: worth.b - worth.a)
    card = FUTURIST.card(
        n,
        (_score(slope_a), _score(slope_b)),
        difference,
        step_by(difference),
        (f"A: {_trend_text(slope_a)}", f"B: {_trend_text(slope_b)}"),
    )
    newest = weeks[max(weeks)]
    return choice_evidence(card, [(worth.pair, worth.choice) for worth in newest])


def _weeks(worths: Sequence[Worth]) -> dict[int, list[Worth]]:
    """Worths by week, -3 to 0, of the weeks that have enough of them."""
    newest = max((worth.pair.at for worth in worths), default=None)
    weeks: dict[int, list[Worth]] = {}
    for worth in worths:
        assert newest is not None
        week = (newest - worth.pair.at) // timedelta(weeks=1)
        if week < N_WEEKS:
            weeks.setdefault(-week, []).append(worth)
    return {week: those for week, those in weeks.items() if len(those) >= LEAST_N}


def _slope_of(weeks: dict[int, list[Worth]], value: Callable[[Worth], float]) -> Interval:
    return slope({week: list(map(value, worths)) for week, worths in weeks.items()})


def slope(weeks: dict[int, list[float]]) -> Interval:
    """The slope of weekly means in points a week, by least squares, with its 95 % interval.

    Weights are the inverse variances of the means, which are taken as known (Draper and Smith,
    "Applied Regression Analysis", 3rd ed., 1998, section 9.2). A week whose values are all equal
    has the variance of two values more, a point apart.
    """
    numbers = list(weeks)
    means = [fmean(weeks[week]) for week in numbers]
    weights = [1 / _variance_of_mean(weeks[week]) for week in numbers]
    total = sum(weights)
    centre = sum(w * x for w, x in zip(weights, numbers, strict=True)) / total
    spread = sum(w * (x - centre) ** 2 for w, x in zip(weights, numbers, strict=True))
    value = (
        sum(w * (x - centre) * y for w, x, y in zip(weights, numbers, means, strict=True)) / spread
    )
    half = Z95 / math.sqrt(spread)
    return Interval(100 * value, 100 * (value - half), 100 * (value + half))


def _variance_of_mean(values: Sequence[float]) -> float:
    middle = fmean(values)
    return pvariance([*values, middle - 0.5, middle + 0.5]) / len(values)


def _score(trend: Interval) -> float:
    return min(max(50 + POINTS_PER_STEP * trend.value, 0.0), 100.0)


def _trend_text(trend: Interval) -> str:
    bounds = f"{trend.value:+.1f} points a week ({trend.low:+.1f} to {trend.high:+.1f})"
    return f"no trend: {bounds}" if trend.low <= 0 <= trend.high else bounds
