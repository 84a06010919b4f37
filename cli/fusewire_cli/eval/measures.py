"""Rates, differences and agreement, with their intervals. Pure."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(right: int, n: int) -> Interval:
    """A proportion with its score interval (Wilson, 1927); of nothing, 0 to 1 around 0."""
    if not n:
        return Interval(0.0, 0.0, 1.0)
    rate = right / n
    centre = (rate + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(rate * (1 - rate) / n + Z95**2 / (4 * n**2))
    # At 0 and n a bound is the rate itself, and rounding must not push it past.
    return Interval(rate, min(max(centre - half, 0.0), rate), max(min(centre + half, 1.0), rate))


def paired_difference(one: Sequence[bool], other: Sequence[bool]) -> Interval:
    """How much more often `one` is right than `other` on the same questions, -1 to 1.

    The interval is the adjusted Wald interval for matched proportions: half an observation is
    added to each of the four cells (Agresti and Min, "Simple improved confidence intervals for
    comparing matched proportions", Statistics in Medicine 24, 2005).

    Raises:
        ValueError: they differ in length.
    """
    pairs = Counter(zip(one, other, strict=True))
    n = len(one)
    gained, lost = pairs[True, False] + 0.5, pairs[False, True] + 0.5
    centre = (gained - lost) / (n + 2)
    half = Z95 / (n + 2) * math.sqrt(gained + lost - (gained - lost) ** 2 / (n + 2))
    value = (pairs[True, False] - pairs[False, True]) / n if n else 0.0
    return Interval(value, max(centre - half, -1.0), min(centre + half, 1.0))


def kappa(one: Sequence[str], other: Sequence[str]) -> float | None:
    """Agreement of two raters beyond chance (Cohen, 1960), at most 1.

    None where chance alone explains it all: there are no ratings, or both raters always say the same one thing.

    Raises:
        ValueError: they differ in length.
    """
    n = len(one)
    agreed = sum(a == b for a, b in zip(one, other, strict=True))
    left, right = Counter(one), Counter(other)
    by_chance = sum(count * right[name] for name, count in left.items())
    if by_chance == n * n:
        return None
    return (agreed * n - by_chance) / (n * n - by_chance)
