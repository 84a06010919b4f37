"""Figures with their intervals. Pure."""

import math
import random
from collections.abc import Callable, Sequence
from statistics import NormalDist, fmean, stdev
from typing import Any

Z = NormalDist().inv_cdf(0.975)

Figure = dict[str, Any]
"""`value`, `ci` (95 %), `n`; with an `aim` also `met`; anything else beside them."""


def figure(
    value: float,
    ci: tuple[float, float],
    n: int,
    aim: str = "",
    is_met: bool | None = None,
    **more: Any,
) -> Figure:
    """One figure as it stands in the JSON."""
    entry: Figure = {"value": round(value, 4), "ci": [round(ci[0], 4), round(ci[1], 4)], "n": n}
    if aim:
        entry |= {"aim": aim, "met": is_met}
    return entry | {name: round(v, 4) if isinstance(v, float) else v for name, v in more.items()}


def mean(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The mean and its normal interval; of paired differences, the paired interval."""
    middle = fmean(values)
    half = Z * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return middle, (middle - half, middle + half)


def share(hits: int, n: int) -> tuple[float, tuple[float, float]]:
    """A proportion and its interval (Wilson, 1927)."""
    p, z2 = hits / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # Rounding may leave the ends a hair outside.
    return p, (min(max(centre - half, 0.0), p), max(min(centre + half, 1.0), p))


def difference(a: tuple[int, int], b: tuple[int, int]) -> tuple[float, tuple[float, float]]:
    """Of two independent proportions, each (hits, n): a less b."""
    p, q = a[0] / a[1], b[0] / b[1]
    half = Z * math.sqrt(p * (1 - p) / a[1] + q * (1 - q) / b[1])
    return p - q, (p - q - half, p - q + half)


def quantile(values: Sequence[float], q: float) -> float:
    """The nearest-rank quantile."""
    return sorted(values)[max(math.ceil(q * len(values)) - 1, 0)]


def bootstrap(
    rows: Sequence[tuple[float, ...]],
    statistic: Callable[[Sequence[tuple[float, ...]]], float],
    seed: str,
    times: int,
) -> tuple[float, tuple[float, float]]:
    """A statistic of rows that belong together, and its percentile interval (Efron, 1979)."""
    rng = random.Random(seed)
    samples = sorted(statistic(rng.choices(rows, k=len(rows))) for _ in range(times))
    return statistic(rows), (quantile(samples, 0.025), quantile(samples, 0.975))
