"""Quantiles of bucket counts against the exact ones."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.analysis.quantiles import quantile, quantile_interval
from fusewire.store.sums import bucket_bounds

BOUNDS = bucket_bounds()


def bucket(latency_ms: float) -> int:
    return next((bound for bound in BOUNDS if latency_ms <= bound), BOUNDS[-1])


@given(
    st.lists(st.floats(0.01, 9e6), min_size=1, max_size=200),
    st.sampled_from([0.0, 0.05, 0.5, 0.9, 0.95, 0.99, 1.0]),
)
def test_a_quantile_is_in_the_bucket_of_the_exact_one(latencies: list[float], share: float) -> None:
    rank = max(math.ceil(round(share * len(latencies), 9)), 1)
    exact = sorted(latencies)[rank - 1]
    high = bucket(exact)
    low = max((bound for bound in BOUNDS if bound < high), default=0)

    estimate = quantile(Counter(map(bucket, latencies)), share, BOUNDS)

    assert estimate is not None
    assert low < estimate <= high


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_quantile_of_many_is_close_to_the_exact_one(share: float) -> None:
    latencies = np.random.default_rng(1).lognormal(7, 0.6, 20_000)
    counts = Counter(map(bucket, latencies))

    assert quantile(counts, share, BOUNDS) == pytest.approx(np.quantile(latencies, share), rel=0.03)


def test_inside_a_bucket_logarithms_are_spread_evenly() -> None:
    assert quantile({1000: 100}, 0.5, BOUNDS) == pytest.approx((794 * 1000) ** 0.5)
    assert quantile({1000: 100}, 1.0, BOUNDS) == pytest.approx(1000)
    # The first bucket has no lower bound to take a logarithm of.
    assert quantile({1: 4}, 0.5, BOUNDS) == 0.5


def test_the_95th_of_100_is_the_95th() -> None:
    assert quantile({100: 95, 1000: 5}, 0.95, BOUNDS) == pytest.approx(100)


def test_of_nothing_there_is_no_quantile() -> None:
    assert quantile({}, 0.5, BOUNDS) is None
    assert quantile({100: 0}, 0.5, BOUNDS) is None
    assert quantile_interval({}, 0.5, BOUNDS) is None


def test_a_bucket_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no bucket ends at 7 ms"):
        quantile({7: 1}, 0.5, BOUNDS)


def test_the_interval_of_a_quantile_holds_the_true_one_about_95_times_in_100() -> None:
    generator = np.random.default_rng(2)
    truth = math.exp(7 + 0.6 * 1.6448536)
    insides = []
    for _ in range(400):
        counts = Counter(map(bucket, generator.lognormal(7, 0.6, 500)))
        interval = quantile_interval(counts, 0.95, BOUNDS)
        assert interval
        insides.append(interval.low <= truth <= interval.high)
    assert 0.92 <= np.mean(insides) <= 0.99
