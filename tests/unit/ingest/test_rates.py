"""Rate limits: never more than one minute's worth at once, nor more than the limit over time."""

import math
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire_ingest.admission.rates import RateBalance, RateLimit, RateRefusal, Rates, duration


def waits(rates: Rates, at: float, per_minute: int, amount: int = 1) -> float:
    """Seconds that a request has to wait; 0 if it passes."""
    limits = {"acme": RateLimit(requests_per_minute=per_minute)}
    excess = rates.take(limits, "requests", amount, at)
    if excess is None:
        return 0.0
    assert excess.wait_s
    return excess.wait_s


def passing_times(rates: Rates, times: list[float], per_minute: int) -> list[float]:
    return [at for at in times if waits(rates, at, per_minute) == 0]


def test_a_minute_s_worth_passes_and_then_one_by_one() -> None:
    rates = Rates()

    assert len(passing_times(rates, [0.0] * 100, 60)) == 60
    assert waits(rates, 0.0, 60) == 1.0
    assert waits(rates, 0.25, 60) == 0.75
    assert waits(rates, 1.0, 60) == 0
    assert waits(rates, 1.0, 60) == 1.0


def test_who_was_silent_for_long_has_a_minute_s_worth_and_no_more() -> None:
    rates = Rates()
    assert len(passing_times(rates, [0.0] * 10, 5)) == 5

    assert len(passing_times(rates, [1e6] * 10, 5)) == 5


def test_each_account_has_its_own() -> None:
    rates = Rates()
    limits = [{account: RateLimit(1)} for account in ("acme", "acme", "other")]

    found = [rates.take(limit, "requests", 1, 0.0) for limit in limits]
    assert found == [None, RateRefusal("acme", 1, 60), None]


def test_what_one_account_refuses_is_taken_from_no_other() -> None:
    rates = Rates()
    tenant = {"tenant": RateLimit(tokens_per_minute=100)}
    both = {**tenant, "key": RateLimit(tokens_per_minute=30)}

    assert rates.take(both, "tokens", 20, 0.0) is None
    assert rates.take(both, "tokens", 20, 0.0) == RateRefusal("key", 30, 20)
    assert rates.take(tenant, "tokens", 80, 0.0) is None
    assert rates.take(tenant, "tokens", 1, 0.0) is not None


def test_requests_and_tokens_are_counted_apart() -> None:
    rates, limits = Rates(), {"acme": RateLimit(requests_per_minute=1, tokens_per_minute=10)}

    assert rates.take(limits, "requests", 1, 0.0) is None
    assert rates.take(limits, "tokens", 10, 0.0) is None
    assert rates.take(limits, "requests", 1, 0.0) is not None


def test_what_is_more_than_a_minute_s_worth_never_fits() -> None:
    assert waits(Rates(), 0.0, 60, amount=61) == math.inf


def test_a_limit_may_change_while_it_is_counted() -> None:
    rates = Rates()
    assert len(passing_times(rates, [0.0] * 100, 60)) == 60

    assert waits(rates, 30.0, 6) == 0, "half a minute of the new limit has come"
    assert [waits(rates, 30.0, 6) for _ in range(3)] == [0, 0, 10]


def test_what_is_left_is_that_of_the_tightest_limit() -> None:
    rates = Rates()
    limits = {"tenant": RateLimit(60), "key": RateLimit(10), "free": RateLimit()}
    for _ in range(4):
        rates.take(limits, "requests", 1, 0.0)

    assert rates.balance(limits, "requests", 0.0) == RateBalance(10, 6, 24)
    assert rates.balance(limits, "requests", 6.0) == RateBalance(10, 7, 18)
    assert rates.balance(limits, "tokens", 0.0) is None


def test_prompts_in_flight_have_room_again_when_one_has_ended() -> None:
    rates = Rates()
    limits = {"tenant": RateLimit(prompts_in_flight=2), "key": RateLimit(prompts_in_flight=1)}
    tenant = {"tenant": limits["tenant"]}

    assert rates.hold(limits, "one", 100.0, 0.0) is None
    assert rates.hold(limits, "two", 100.0, 0.0) == RateRefusal("key", 1, None)
    assert rates.hold(limits, "one", 100.0, 0.0) is None, "it is the same one"
    assert rates.hold(tenant, "two", 100.0, 0.0) is None
    assert rates.hold(tenant, "three", 100.0, 0.0) == RateRefusal("tenant", 2, None)
    rates.release("one")
    assert not rates.is_held("one")
    assert rates.hold(limits, "three", 100.0, 0.0) is None


def test_a_prompt_whose_end_nobody_told_counts_until_its_time_is_over() -> None:
    rates, limits = Rates(), {"acme": RateLimit(prompts_in_flight=1)}
    assert rates.hold(limits, "one", 100.0, 0.0) is None

    assert rates.hold(limits, "two", 200.0, 99.0) is not None
    assert rates.hold(limits, "two", 200.0, 100.0) is None


def test_without_a_limit_nothing_is_held() -> None:
    rates = Rates()

    assert rates.hold({"acme": RateLimit()}, "one", 100.0, 0.0) is None
    assert not rates.is_held("one")
    rates.release("one")


def test_a_clock_that_stands_still_or_goes_back_gives_nothing_away() -> None:
    rates = Rates()
    assert waits(rates, 100.0, 1) == 0

    assert waits(rates, 40.0, 1) == 60
    assert waits(rates, 99.0, 1) > 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0191, "20ms"), (1.5, "1.5s"), (59.99, "1m0s"), (360, "6m0s"), (3723, "1h2m3s")],
)
def test_a_duration_is_written_as_openai_writes_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


GAPS = st.lists(st.floats(0, 100, allow_nan=False), min_size=1, max_size=100)


@given(GAPS, st.integers(1, 100))
def test_no_stretch_of_time_lets_more_pass_than_the_limit_and_one_minute_s_worth(
    gaps: list[float], per_minute: int
) -> None:
    through = passing_times(Rates(), list(accumulate(gaps)), per_minute)

    for first, since in enumerate(through):
        for count, until in enumerate(through[first:], 1):
            assert count <= per_minute + (until - since) * per_minute / 60 + 1e-6


@given(GAPS, st.integers(1, 100), st.data())
def test_who_waits_as_told_passes(gaps: list[float], per_minute: int, data: st.DataObject) -> None:
    rates, now = Rates(), 0.0
    for gap in gaps:
        now += gap / 50
        amount = data.draw(st.integers(1, per_minute))
        if wait_s := waits(rates, now, per_minute, amount):
            now += wait_s + 1e-6
            assert waits(rates, now, per_minute, amount) == 0
