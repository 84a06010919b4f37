"""Latencies by stage and model: percentiles and histograms. Pure."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusewire.analysis.measures import LEAST_N
from fusewire.analysis.quantiles import quantile

STAGES = ("total", "panel", "judge", "call")
SHARES = (0.5, 0.95, 0.99)


@dataclass(frozen=True)
class LatencyRow:
    """The latencies of a stage, or of the calls or verdicts of a model."""

    stage: str
    model: str | None
    counts: Mapping[int, int]
    """Observations by the upper bound of their bucket, in ms."""
    quantiles_ms: tuple[float | None, ...]
    """Of SHARES; None where there are too few observations."""

    @property
    def n(self) -> int:
        """How many observations there are."""
        return sum(self.counts.values())


def least_n(share: float) -> int:
    """With fewer observations a quantile is not shown: none would lie beyond it.

    >>> least_n(0.5), least_n(0.95), least_n(0.99)
    (30, 30, 100)
    """
    return max(LEAST_N, math.ceil(round(1 / (1 - share), 9)))


def latency_rows(rows: Sequence[Mapping[str, Any]], bounds: Sequence[int]) -> list[LatencyRow]:
    """Rows of `v_latency_hist` by stage, and by model where the stage has one.

    Args:
        rows: `stage`, `model`, `bucket_ms` and `n`.
        bounds: the upper bounds of all buckets in ascending order, in ms.
    """
    counts: dict[tuple[str, str | None], dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        counts[row["stage"], row["model"]][int(row["bucket_ms"])] += int(row["n"])
    keys = sorted(counts, key=lambda key: (STAGES.index(key[0]), key[1] or ""))
    return [_latency_row(stage, model, counts[stage, model], bounds) for stage, model in keys]


def _latency_row(
    stage: str, model: str | None, counts: Mapping[int, int], bounds: Sequence[int]
) -> LatencyRow:
    n = sum(counts.values())
    quantiles = tuple(
        quantile(counts, share, bounds) if n >= least_n(share) else None for share in SHARES
    )
    return LatencyRow(stage, model, dict(counts), quantiles)


@dataclass(frozen=True)
class BucketAxis:
    """Buckets side by side, each equally wide, which makes the axis logarithmic."""

    bounds_ms: tuple[int, ...]
    """The upper bounds of the buckets that are shown."""
    low_ms: int
    """Where the first of them begins."""

    @property
    def high_ms(self) -> int:
        """Where the last of them ends."""
        return self.bounds_ms[-1] if self.bounds_ms else 0

    def bars(self, row: LatencyRow) -> list[tuple[int, float]]:
        """Place and height, 0 to 100, of each bucket that is not empty; the fullest has 100."""
        most = max(row.counts.values(), default=0)
        return [
            (place, round(100 * row.counts[bound] / most, 2))
            for place, bound in enumerate(self.bounds_ms)
            if row.counts.get(bound)
        ]


def bucket_axis(rows: Sequence[LatencyRow], bounds: Sequence[int]) -> BucketAxis:
    """An axis on which all rows fit, so that they can be compared."""
    full: set[int] = set().union(*(row.counts for row in rows))
    if not full:
        return BucketAxis((), 0)
    first, last = bounds.index(min(full)), bounds.index(max(full))
    return BucketAxis(tuple(bounds[first : last + 1]), bounds[first - 1] if first else 0)
