"""Rates, differences and agreement, with their intervals. Pure."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""
LEAST_N = 30
"""With fewer observations no rate is shown, only its interval."""


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rate:
    """How many of n, with the bounds of the share's 95 % interval.

    `value` is None, and shown as a dash, where n is under LEAST_N.
    """

    count: float
    n: int
    value: float | None
    low: float
    high: float


def wilson(right: float, n: int) -> Interval:
    """A proportion with its score interval (Wilson, 1927).

    With n = 0 it is 0, and its interval is 0 to 1. Where ties count as halves, `right` may be no
    whole number, and the interval is a little wider than it had to be.
    """
    if not n:
        return Interval(0.0, 0.0, 1.0)
    rate = right / n
    centre = (rate + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(rate * (1 - rate) / n + Z95**2 / (4 * n**2))
    # At 0 and n a bound equals the rate; rounding must not push it past the rate.
    return Interval(rate, min(max(centre - half, 0.0), rate), max(min(centre + half, 1.0), rate))


def rate(count: float, n: int) -> Rate:
    """A proportion with its score interval, without a value where n is too small for one."""
    interval = wilson(count, n)
    return Rate(count, n, interval.value if n >= LEAST_N else None, interval.low, interval.high)


def difference(first: Interval, second: Interval) -> Interval:
    """`first` less `second`, of estimates that are independent, with its 95 % interval.

    Each bound takes from either interval the half that can pull it there (Zou and Donner,
    "Construction of confidence limits about effect measures", Statistics in Medicine 27, 2008).
    Of two score intervals of proportions it is Newcombe's hybrid score interval (his method 10 in
    "Interval estimation for the difference between independent proportions", Statistics in
    Medicine 17, 1998).
    """
    value = first.value - second.value
    return Interval(
        value,
        value - math.hypot(first.value - first.low, second.high - second.value),
        value + math.hypot(first.high - first.value, second.value - second.low),
    )


def mean(total: float, total_of_squares: float, n: int) -> Interval | None:
    """A mean with its normal 95 % interval, from sums; None for fewer than two observations.

    Good from about LEAST_N observations on. Two of them make Welch's interval by `difference`.
    """
    if n < 2:
        return None
    value = total / n
    # Rounding can make the variance of equal amounts a little less than 0.
    variance = max(total_of_squares - n * value**2, 0.0) / (n - 1)
    half = Z95 * math.sqrt(variance / n)
    return Interval(value, value - half, value + half)


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> Interval:
    """How much more often `first` is right than `second` on the same questions, -1 to 1.

    The interval is the adjusted Wald interval for matched proportions: half an observation is
    added to each of the four cells (Agresti and Min, "Simple improved confidence intervals for
    comparing matched proportions", Statistics in Medicine 24, 2005).

    Raises:
        ValueError: they differ in length.
    """
    pairs = Counter(zip(first, second, strict=True))
    n = len(first)
    gains, losses = pairs[True, False] + 0.5, pairs[False, True] + 0.5
    centre = (gains - losses) / (n + 2)
    half = Z95 / (n + 2) * math.sqrt(gains + losses - (gains - losses) ** 2 / (n + 2))
    value = (pairs[True, False] - pairs[False, True]) / n if n else 0.0
    return Interval(value, max(centre - half, -1.0), min(centre + half, 1.0))


def kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Agreement of two raters beyond chance (Cohen, 1960), at most 1.

    None if chance alone explains it: there are no ratings, or both raters always give the same
    single rating.

    >>> kappa(["a", "a", "b", "b"], ["a", "a", "b", "a"])
    0.5

    Raises:
        ValueError: they differ in length.
    """
    n = len(first)
    agreements = sum(a == b for a, b in zip(first, second, strict=True))
    first_counts, second_counts = Counter(first), Counter(second)
    by_chance = sum(count * second_counts[rating] for rating, count in first_counts.items())
    if by_chance == n * n:
        return None
    return (agreements * n - by_chance) / (n * n - by_chance)
