"""Rate limits: never more than one minute's tokens at once, nor more than the limit over time."""

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from fusewire_ingest.admission.rates import Rates


def passing_times(rates: Rates, times: list[float], per_minute: int) -> list[float]:
    return [at for at in times if rates.take("acme", per_minute, at) == 0]


def test_a_minute_s_worth_passes_and_then_one_by_one() -> None:
    rates = Rates()

    assert len(passing_times(rates, [0.0] * 100, 60)) == 60
    assert rates.take("acme", 60, 0.0) == 1.0
    assert rates.take("acme", 60, 0.25) == 0.75
    assert rates.take("acme", 60, 1.0) == 0
    assert rates.take("acme", 60, 1.0) == 1.0


def test_who_was_silent_for_long_has_a_minute_s_worth_and_no_more() -> None:
    rates = Rates()
    assert len(passing_times(rates, [0.0] * 10, 5)) == 5

    assert len(passing_times(rates, [1e6] * 10, 5)) == 5


def test_each_tenant_has_its_own() -> None:
    rates = Rates()

    assert [rates.take(tenant, 1, 0.0) for tenant in ("acme", "acme", "other")] == [0, 60, 0]


def test_a_clock_that_stands_still_or_goes_back_gives_nothing_away() -> None:
    rates = Rates()
    assert rates.take("acme", 1, 100.0) == 0

    assert rates.take("acme", 1, 40.0) == 60
    assert rates.take("acme", 1, 99.0) > 0


GAPS = st.lists(st.floats(0, 100, allow_nan=False), min_size=1, max_size=100)


@given(GAPS, st.integers(1, 100))
def test_no_stretch_of_time_lets_more_pass_than_the_limit_and_one_minute_s_worth(
    gaps: list[float], per_minute: int
) -> None:
    through = passing_times(Rates(), list(accumulate(gaps)), per_minute)

    for first, since in enumerate(through):
        for count, until in enumerate(through[first:], 1):
            assert count <= per_minute + (until - since) * per_minute / 60 + 1e-6


@given(GAPS, st.integers(1, 100))
def test_who_waits_as_told_passes(gaps: list[float], per_minute: int) -> None:
    rates, now = Rates(), 0.0
    for gap in gaps:
        now += gap / 50
        if wait_s := rates.take("acme", per_minute, now):
            now += wait_s + 1e-6
            assert rates.take("acme", per_minute, now) == 0
