"""Rates, differences of independent estimates, and means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.analysis.measures import LEAST_N, difference, mean, rate, wilson


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        # Newcombe, "Interval estimation for the difference between independent proportions",
        # 1998, table II, method 10.
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_the_difference_of_two_rates_is_newcombes(
    first: tuple[int, int], second: tuple[int, int], low: float, high: float
) -> None:
    interval = difference(wilson(*first), wilson(*second))
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)
    assert interval.value == pytest.approx(first[0] / first[1] - second[0] / second[1])


COUNT = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNT, COUNT)
def test_a_difference_turned_round_is_its_opposite(
    first: tuple[int, int], second: tuple[int, int]
) -> None:
    there = difference(wilson(*first), wilson(*second))
    back = difference(wilson(*second), wilson(*first))
    assert (there.value, there.low, there.high) == pytest.approx(
        (-back.value, -back.high, -back.low)
    )
    assert -1 - 1e-9 <= there.low <= there.value <= there.high <= 1 + 1e-9


def test_a_rate_of_few_has_no_value_but_an_interval() -> None:
    few = rate(10, LEAST_N - 1)
    assert (few.count, few.n, few.value) == (10, 29, None)
    assert 0 < few.low < 10 / 29 < few.high < 1
    assert rate(10, LEAST_N).value == pytest.approx(1 / 3)
    assert (rate(0, 0).low, rate(0, 0).high) == (0, 1)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=50))
def test_a_mean_from_sums_is_that_of_the_amounts(amounts: list[float]) -> None:
    interval = mean(sum(amounts), sum(amount**2 for amount in amounts), len(amounts))
    assert interval
    assert interval.value == pytest.approx(np.mean(amounts))
    half = 1.959963984540054 * np.std(amounts, ddof=1) / len(amounts) ** 0.5
    assert interval.high - interval.value == pytest.approx(half, abs=1e-4)


def test_fewer_than_two_amounts_have_no_interval() -> None:
    assert mean(3.0, 9.0, 1) is None
    assert mean(0.0, 0.0, 0) is None
