"""Intervals and agreement against published values."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.analysis.measures import kappa, paired_difference, wilson


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson(right: int, n: int, low: float, high: float) -> None:
    interval = wilson(right, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)
    assert interval.value == (right / n if n else 0)


def pairs(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    first_rights = [True] * (both + first) + [False] * (second + neither)
    second_rights = [True] * both + [False] * first + [True] * second + [False] * neither
    return first_rights, second_rights


@pytest.mark.parametrize(
    ("cells", "value", "low", "high"),
    [
        # Agresti's approval ratings (Categorical Data Analysis, table 10.1):
        # -0.04, Wald -0.06 to -0.02.
        ((794, 86, 150, 570), -0.04, -0.05868, -0.02122),
        # Bentur's airway data (1, 1, 7, 12): (-6 ± 1.96 √(9 - 36/23)) / 23, by hand.
        ((1, 1, 7, 12), -0.2857, -0.4932, -0.0285),
        ((10, 0, 0, 10), 0.0, -0.0891, 0.0891),
        ((0, 0, 0, 0), 0.0, -0.98, 0.98),
        ((0, 5, 0, 0), 1.0, 0.27794, 1.0),
    ],
)
def test_paired_difference(
    cells: tuple[int, int, int, int], value: float, low: float, high: float
) -> None:
    interval = paired_difference(*pairs(*cells))
    assert (interval.value, interval.low, interval.high) == pytest.approx(
        (value, low, high), abs=6e-5
    )


@given(st.lists(st.tuples(st.booleans(), st.booleans())))
def test_a_difference_turned_round_is_its_opposite(both: list[tuple[bool, bool]]) -> None:
    there = paired_difference([a for a, _ in both], [b for _, b in both])
    back = paired_difference([b for _, b in both], [a for a, _ in both])
    assert (there.value, there.low, there.high) == pytest.approx(
        (-back.value, -back.high, -back.low)
    )
    assert -1 <= there.low <= there.value <= there.high <= 1


def test_what_is_not_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([True], [])


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        # The two readers of fifty grant proposals: 0.7 observed, 0.5 by chance.
        ({("y", "y"): 20, ("y", "n"): 5, ("n", "y"): 10, ("n", "n"): 15}, 0.4),
        ({("y", "y"): 45, ("y", "n"): 15, ("n", "y"): 25, ("n", "n"): 15}, 0.1304),
        ({("a", "a"): 3, ("b", "b"): 3, ("c", "c"): 3}, 1.0),
        ({("a", "b"): 5, ("b", "a"): 5}, -1.0),
        ({("a", "a"): 9}, None),
        ({}, None),
    ],
)
def test_kappa(table: dict[tuple[str, str], int], expected: float | None) -> None:
    ratings = list(Counter(table).elements())
    agreement = kappa([a for a, _ in ratings], [b for _, b in ratings])
    assert agreement == (None if expected is None else pytest.approx(expected, abs=5e-5))
