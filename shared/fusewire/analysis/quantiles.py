"""Quantiles of latencies that are kept as counts per bucket (`v_latency_hist`). Pure."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate

from fusewire.analysis.measures import Interval, wilson


def quantile(counts: Mapping[int, int], share: float, bounds: Sequence[int]) -> float | None:
    """The latency that a share of the observations did not exceed, in ms; None without any.

    That observation is the one of rank ⌈share · n⌉. The bucket that holds it is exact: the result
    lies above the bound before the bucket's and is at most the bucket's. Inside it the logarithms
    are taken as spread evenly, so the result is wrong by at most the ratio of the two bounds (26 %
    where there are ten buckets for each power of ten; up to 100 % below 3 ms, where bounds are
    rounded to whole ms). In the first bucket, which starts at 0, the latencies themselves are
    taken so. The last one holds longer ones too: there the result is a least value.

    Args:
        counts: observations by the upper bound of their bucket, in ms.
        share: 0 to 1.
        bounds: the upper bounds of all buckets in ascending order, in ms.

    Raises:
        ValueError: a count is of a bucket that is not among `bounds`.
    """
    if unknown := counts.keys() - set(bounds):
        raise ValueError(f"no bucket ends at {min(unknown)} ms")
    buckets = sorted(bound for bound, n in counts.items() if n > 0)
    sums = list(accumulate(counts[bound] for bound in buckets))
    if not sums:
        return None
    # Rounded first: 0.95 · 100 is a little above 95, whose rank is 95.
    rank = min(max(math.ceil(round(share * sums[-1], 9)), 1), sums[-1])
    place = bisect_left(sums, rank)
    high = buckets[place]
    part = (rank - (sums[place] - counts[high])) / counts[high]
    number = bisect_left(bounds, high)
    if not number:
        return high * part
    low = bounds[number - 1]
    # Rounding must not push it past the bucket.
    return float(min(low * (high / low) ** part, high))


def quantile_interval(
    counts: Mapping[int, int], share: float, bounds: Sequence[int]
) -> Interval | None:
    """A quantile with its 95 % interval, in ms; None without observations.

    The bounds are the quantiles of the bounds of the share's score interval: how many of n
    observations fall below the true quantile is binomial, whatever their distribution (Conover,
    "Practical Nonparametric Statistics", 3rd ed., 1999, section 3.2).

    Raises:
        ValueError: a count is of a bucket that is not among `bounds`.
    """
    n = sum(counts.values())
    value = quantile(counts, share, bounds)
    if value is None:
        return None
    shares = wilson(share * n, n)
    low = quantile(counts, shares.low, bounds)
    high = quantile(counts, shares.high, bounds)
    assert low is not None
    assert high is not None
    return Interval(value, min(low, value), max(high, value))
