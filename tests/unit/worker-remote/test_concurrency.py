"""The limit of calls at once, and the budget of calls that are made again."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from fusewire_worker_remote.concurrency import AdaptiveLimit
from fusewire_worker_remote.retry_budget import RetryBudget


def answer(
    limit: AdaptiveLimit, now: float, *, running: int | None = None, took_s: float = 1
) -> None:
    limit.add_answer(
        started_at=now - took_s, now=now, running=limit.limit if running is None else running
    )


def test_it_is_halved_once_for_calls_that_were_under_way_together() -> None:
    limit = AdaptiveLimit(32)
    assert [limit.add_overload(started_at=0.0, now=1.0 + n / 10) for n in range(16)] == (
        [True] + [False] * 15
    )
    assert limit.limit == 16


def test_it_is_halved_at_most_once_in_the_time_that_an_answer_takes() -> None:
    limit = AdaptiveLimit(32)
    answer(limit, 4.0, took_s=4.0)
    cuts = [now for now in range(5, 25) if limit.add_overload(started_at=now, now=now)]
    assert cuts == [5, 9, 13, 17, 21]
    assert limit.limit == 1


def test_it_grows_by_one_for_as_many_answers_as_it_is() -> None:
    limit = AdaptiveLimit(32)
    limit.add_overload(started_at=0.0, now=0.0)
    sizes = []
    for now in range(1, 200):
        before = limit.limit
        answer(limit, float(now))
        if limit.limit != before:
            sizes.append(now)
    steps = [later - earlier for earlier, later in itertools.pairwise(sizes)]
    assert all(abs(step - size) <= 1 for size, step in enumerate(steps, start=17)), steps


def test_it_does_not_grow_where_half_of_it_is_not_used() -> None:
    limit = AdaptiveLimit(32)
    limit.add_overload(started_at=0.0, now=0.0)
    for now in range(1, 200):
        answer(limit, float(now), running=7)
    assert limit.limit == 16
    for now in range(200, 240):
        answer(limit, float(now), running=8)
    assert limit.limit > 16


def test_after_an_outage_it_grows_from_what_runs_quickly_to_half() -> None:
    limit = AdaptiveLimit(32)
    limit.restart(running=1)
    assert limit.limit == 1
    for now in range(15):
        answer(limit, float(now))
    assert limit.limit == 16
    answer(limit, 16.0)
    assert limit.limit == 16


def test_calls_that_still_hang_from_before_an_outage_keep_no_others_out() -> None:
    limit = AdaptiveLimit(32)
    limit.restart(running=20)
    assert limit.limit == 20


@given(
    most=st.integers(1, 64),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["answer", "overload", "restart"]),
            st.floats(0, 30),
            st.floats(0, 60),
            st.integers(1, 100),
        ),
        max_size=100,
    ),
)
@settings(max_examples=200)
def test_it_stays_between_one_and_the_most_and_comes_back(
    most: int, steps: list[tuple[str, float, float, int]]
) -> None:
    limit, now = AdaptiveLimit(most), 0.0
    for kind, pause_s, took_s, running in steps:
        now += pause_s
        before = limit.limit
        if kind == "answer":
            limit.add_answer(started_at=now - took_s, now=now, running=running)
            assert before <= limit.limit <= before + 1
        elif kind == "overload":
            limit.add_overload(started_at=now - took_s, now=now)
            assert limit.limit >= max(1, before // 2)
        else:
            limit.restart(running)
        assert 1 <= limit.limit <= most
    for _ in range(most * most + 1):
        now += 1
        answer(limit, now)
    assert limit.limit == most


@given(
    steps=st.lists(st.tuples(st.booleans(), st.floats(0, 20)), max_size=300),
)
def test_no_more_calls_are_made_again_than_the_budget_says(
    steps: list[tuple[bool, float]],
) -> None:
    budget, now, calls, retries = RetryBudget(), 0.0, 0, 0
    for is_retry, pause_s in steps:
        now += pause_s
        if is_retry:
            retries += budget.take(now)
        else:
            budget.add_call()
            calls += 1
        assert retries <= 10 + calls / 10 + now / 6 + 1e-6


def test_in_an_outage_a_tenth_is_made_again_and_after_a_quiet_time_ten() -> None:
    budget = RetryBudget()
    made = 0
    for _ in range(1000):
        budget.add_call()
        made += budget.take(0.0) + budget.take(0.0)
    assert 105 <= made <= 110
    assert sum(budget.take(3600.0) for _ in range(50)) == 10
