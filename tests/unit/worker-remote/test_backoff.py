import string
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire_worker_remote.backoff import MOST_WAIT_S, Backoff, retry_after_s

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "Mon, 23 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Mon, 23 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        # No provider means these. C's integers have not so many digits.
        ({"retry-after": "Mon, 23 Nov 99999 12:00:30 GMT"}, None),
        ({"retry-after": f"Mon, 23 Nov {10**22} 12:00:30 GMT"}, None),
        ({"retry-after": f"Mon, 23 Nov 2026 12:00:30 +{10**29}"}, None),
        ({"retry-after": f"Mon, 23 Nov {'9' * 5000} 12:00:30 GMT"}, None),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 -2359"}, MOST_WAIT_S),
        ({"retry-after": "Mon, 01 Jan 0001 00:00:00 +2359"}, 0.0),
        ({"retry-after": "1e308"}, MOST_WAIT_S),
        ({"retry-after": str(MOST_WAIT_S - 1)}, MOST_WAIT_S - 1),
        ({"retry-after-ms": "1e308"}, MOST_WAIT_S),
        ({"x-ratelimit-reset": "1e300"}, MOST_WAIT_S),
        ({"x-ratelimit-reset": "9" * 5000 + "h"}, MOST_WAIT_S),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"x-ratelimit-reset-requests": "1m30s"}, 90.0),
        ({"x-ratelimit-reset-tokens": "17ms"}, 0.017),
        ({"x-ratelimit-reset-requests": "2s", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        (
            {
                "x-ratelimit-reset-requests": "2s",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-tokens": "6m0s",
                "x-ratelimit-remaining-tokens": "4000",
            },
            2.0,
        ),
        ({"x-ratelimit-reset": str(int(NOW.timestamp()) + 5)}, 5.0),
        ({"x-ratelimit-reset": str((int(NOW.timestamp()) + 5) * 1000)}, 5.0),
        ({"x-ratelimit-reset": "7.66"}, 7.66),
        ({"x-ratelimit-reset": "1m of rest"}, None),
    ],
)
def test_reads_what_a_provider_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, NOW) == pytest.approx(seconds)


@given(value=st.text(string.printable, max_size=20))
def test_no_header_value_makes_it_fail_or_give_a_negative_wait(value: str) -> None:
    for name in ("retry-after", "retry-after-ms", "x-ratelimit-reset", "x-ratelimit-remaining"):
        wait = retry_after_s({name: value}, NOW)
        assert wait is None or 0 <= wait <= MOST_WAIT_S


@given(
    day=st.integers(0, 10**30),
    year=st.integers(0, 10**30),
    hour=st.integers(0, 10**30),
    zone=st.sampled_from(["GMT", "-0000", "+2359", "-9999"])
    | st.integers(0, 10**30).map("+{}".format),
)
def test_no_date_makes_it_fail(day: int, year: int, hour: int, zone: str) -> None:
    wait = retry_after_s({"retry-after": f"Mon, {day} Nov {year} {hour}:00:00 {zone}"}, NOW)
    assert wait is None or 0 <= wait <= MOST_WAIT_S


@given(
    attempt=st.integers(1, 12),
    max_attempts=st.integers(1, 10),
    left_s=st.floats(-10, 200),
    random=st.floats(0, 1, exclude_max=True),
    retry_after=st.none() | st.floats(0, 300),
    base_s=st.floats(0.01, 5),
    cap_s=st.floats(0.01, 60),
)
def test_a_wait_is_bounded_by_attempts_deadline_cap_and_request(
    attempt: int,
    max_attempts: int,
    left_s: float,
    random: float,
    retry_after: float | None,
    base_s: float,
    cap_s: float,
) -> None:
    wait = Backoff(base_s=base_s, cap_s=cap_s).wait_s(
        attempt=attempt,
        max_attempts=max_attempts,
        now=NOW,
        deadline=NOW + timedelta(seconds=left_s),
        random=random,
        retry_after_s=retry_after,
    )
    if wait is None:
        least = retry_after if retry_after is not None else 0.0
        most = (
            least + base_s if retry_after is not None else min(cap_s, base_s * 2 ** (attempt - 1))
        )
        assert attempt >= max_attempts or most >= left_s - 1e-5
    else:
        assert attempt < max_attempts
        assert 0 <= wait < left_s + 1e-5
        if retry_after is not None:
            assert retry_after <= wait <= retry_after + base_s
        else:
            assert wait <= min(cap_s, base_s * 2 ** (attempt - 1))


def test_waits_grow_with_the_attempts_up_to_the_cap() -> None:
    waits = [
        Backoff(base_s=1, cap_s=5).wait_s(
            attempt=n, max_attempts=9, now=NOW, deadline=NOW + timedelta(minutes=5), random=0.5
        )
        for n in range(1, 6)
    ]
    assert waits == [0.5, 1.0, 2.0, 2.5, 2.5]


@pytest.mark.parametrize(
    ("left_s", "waits"), [(1000, [0.25, 25.0, 25.0]), (86_400, [0.25, 30.0, 30.0])]
)
def test_a_prompt_with_hours_left_waits_in_proportion_but_for_the_first_time(
    left_s: int, waits: list[float]
) -> None:
    deadline = NOW + timedelta(seconds=left_s)
    assert waits == [
        Backoff().wait_s(attempt=n, max_attempts=4, now=NOW, deadline=deadline, random=0.5)
        for n in (1, 2, 3)
    ]
