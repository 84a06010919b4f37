"""Intervals of paired differences at any level, and of quantiles and tails. Pure."""

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

from fusewire.analysis.measures import Interval

Z95 = NormalDist().inv_cdf(0.975)


def points(choices: Sequence[int], z: float = Z95) -> Interval:
    """On how many more of 100 prompts B is better than A, -100 to 100.

    The adjusted Wald interval for matched proportions of Agresti and Min, 2005, as in
    `measures.paired_difference`, with any z.

    Args:
        choices: 1 where B is better, -1 where A is, 0 where neither is.
        z: the normal quantile of the interval's level.
    """
    n = len(choices)
    gains, losses = choices.count(1) + 0.5, choices.count(-1) + 0.5
    centre = (gains - losses) / (n + 2)
    variance = gains + losses - (gains - losses) ** 2 / (n + 2)
    half = z / (n + 2) * math.sqrt(variance)
    value = sum(choices) / n if n else 0.0
    return Interval(100 * value, 100 * max(centre - half, -1.0), 100 * min(centre + half, 1.0))


def discordance(choices: Sequence[int]) -> float:
    """The share of prompts on which one is better; half a prompt is added to either side."""
    return (len(choices) - choices.count(0) + 1) / (len(choices) + 2)


def mean_difference(differences: Sequence[float], z: float = Z95) -> Interval:
    """The mean of paired differences, with its normal interval.

    If the two are alike, their differences are as often above 0 as below it by the same amount;
    then heavy tails make the interval too wide rather than too narrow (Efron, "Student's t-test
    under symmetry conditions", JASA 64, 1969).

    Raises:
        StatisticsError: there are fewer than two differences.
    """
    half = z * stdev(differences) / math.sqrt(len(differences))
    value = fmean(differences)
    return Interval(value, value - half, value + half)


def quantile(values: Sequence[float], share: float, z: float = Z95) -> Interval:
    """A quantile with the interval between two order statistics.

    Free of the distribution (Conover, "Practical Nonparametric Statistics", 3rd ed., 1999, section
    3.2): ranks are share · n ± z √(n · share · (1 - share)), rounded outwards. With values of which
    few lie beyond the quantile, a bound is the least or the greatest value.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values have no quantile")
    ascending, n = sorted(values), len(values)
    half = z * math.sqrt(n * share * (1 - share))
    low = max(math.floor(n * share - half), 1)
    high = min(math.ceil(n * share + half) + 1, n)
    # 0.95 · 100 is a little above 95, whose rank is 95.
    rank = min(max(math.ceil(round(n * share, 9)), 1), n)
    return Interval(ascending[rank - 1], ascending[low - 1], ascending[high - 1])


def tail_mean(values: Sequence[float], share: float) -> tuple[float, list[float]]:
    """The mean of the largest values that make up a share, and how each value moves it.

    The expected shortfall of Rockafellar and Uryasev, "Optimization of conditional value-at-risk",
    Journal of Risk 2, 2000: q + mean((value - q)⁺) / share, where q is the quantile. The influences
    have the mean 0, and their standard deviation by √n is the standard error.
    """
    descending, n = sorted(values, reverse=True), len(values)
    q = descending[max(math.ceil(round(n * share, 9)), 1) - 1]
    parts = [q + max(value - q, 0.0) / share for value in values]
    mean = fmean(parts)
    return mean, [part - mean for part in parts]


def log_ratio(
    numerators: Sequence[float], denominators: Sequence[float]
) -> tuple[float, list[float]] | None:
    """The logarithm of a ratio of two sums, and how each observation moves it.

    Linearised (Cochran, "Sampling Techniques", 3rd ed., 1977, section 6.4). None if a sum is 0.
    """
    top, bottom = fmean(numerators), fmean(denominators)
    if top <= 0 or bottom <= 0:
        return None
    pairs = zip(numerators, denominators, strict=True)
    return math.log(top / bottom), [above / top - below / bottom for above, below in pairs]
