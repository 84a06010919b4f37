"""The breaker: what opens it, for how long, and that one probe at a time closes it."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusewire_worker_remote.breaker import Breaker, BreakerTerms, Permit, Signal

TERMS = BreakerTerms()
GOOD, BAD = Signal.ANSWERED, Signal.FAILED


def call(
    breaker: Breaker,
    signal: Signal,
    now: float,
    *,
    random: float = 0.5,
    retry_after_s: float | None = None,
) -> None:
    """A call that begins and ends now."""
    permit = breaker.begin(now)
    assert permit is not None, "it is open"
    breaker.end(permit, signal, now=now, random=random, retry_after_s=retry_after_s)


def opened(now: float = 0.0, random: float = 0.5, retry_after_s: float | None = None) -> Breaker:
    """A breaker that calls in a row have opened."""
    breaker = Breaker()
    for _ in range(TERMS.failures):
        call(breaker, BAD, now, random=random, retry_after_s=retry_after_s)
    return breaker


@pytest.mark.parametrize(
    ("signals", "state"),
    [
        ([BAD] * 4, "closed"),
        ([BAD] * 5, "open"),
        # Half of them have to fail.
        ([GOOD] * 6 + [BAD] * 5, "closed"),
        ([GOOD] * 5 + [BAD] * 5, "open"),
        ([BAD, GOOD] * 4 + [BAD], "open"),
        ([BAD, GOOD, GOOD] * 20, "closed"),
        # The last 20 count, and no others.
        ([GOOD] * 50 + [BAD] * 9, "closed"),
        ([GOOD] * 50 + [BAD] * 10, "open"),
        # What every other call would meet opens it at once.
        ([Signal.REJECTED], "open"),
        ([GOOD] * 50 + [Signal.REJECTED], "open"),
        ([Signal.DOUBTFUL], "open"),
        # But where the model has answered, a doubtful failure may be the request's.
        ([GOOD, Signal.DOUBTFUL], "closed"),
        ([GOOD] + [Signal.DOUBTFUL] * 5, "open"),
        # Neither counts.
        ([Signal.UNCLEAR] * 50, "closed"),
        ([Signal.NOTHING] * 50, "closed"),
        ([BAD] * 4 + [Signal.UNCLEAR, Signal.NOTHING] * 20 + [BAD], "open"),
    ],
)
def test_what_opens_it(signals: list[Signal], state: str) -> None:
    breaker = Breaker()
    for signal in signals:
        call(breaker, signal, now=0.0)
    assert breaker.state == state


def test_failures_of_long_ago_do_not_count() -> None:
    breaker = Breaker()
    for now in (0.0, 1.0, 2.0, 3.0, TERMS.memory_s + 1.5):
        call(breaker, BAD, now)
    assert breaker.wait_s(TERMS.memory_s + 1.5) == 0
    call(breaker, BAD, TERMS.memory_s + 1.5)
    call(breaker, BAD, TERMS.memory_s + 1.5)
    assert breaker.state == "open"


def test_while_it_is_open_nothing_is_called_and_then_one_probe() -> None:
    breaker = opened()
    wait_s = breaker.wait_s(0.0)
    assert breaker.begin(wait_s * 0.99) is None
    assert breaker.begin(wait_s) is not None
    assert breaker.state == "probing"
    assert [breaker.begin(wait_s + later) for later in (0.0, 1.0, 1e6)] == [None] * 3


def test_an_answered_probe_closes_it_and_a_failed_one_keeps_it_open_for_longer() -> None:
    breaker, now, waits = opened(), 0.0, []
    for _ in range(7):
        waits.append(breaker.wait_s(now))
        now += waits[-1]
        call(breaker, BAD, now)
    assert waits == [3.75, 7.5, 15.0, 30.0, 45.0, 45.0, 45.0], "doubled up to the cap, by 0.75"

    now += breaker.wait_s(now)
    call(breaker, GOOD, now)
    assert breaker.state == "closed"
    for _ in range(4):
        call(breaker, BAD, now)
    assert breaker.wait_s(now) == 0, "what failed before it closed does not count"


@pytest.mark.parametrize("signal", [Signal.UNCLEAR, BAD, Signal.REJECTED, Signal.DOUBTFUL])
def test_a_probe_that_shows_no_answer_opens_it_again(signal: Signal) -> None:
    breaker = opened()
    now = breaker.wait_s(0.0)
    call(breaker, signal, now)
    assert breaker.state == "open"
    assert breaker.wait_s(now) > 0


def test_a_probe_that_called_nothing_leaves_the_next_call_to_be_one() -> None:
    breaker = opened()
    now = breaker.wait_s(0.0)
    call(breaker, Signal.NOTHING, now)
    assert breaker.wait_s(now) == 0
    call(breaker, GOOD, now)
    assert breaker.state == "closed"


def test_the_time_grows_on_if_it_fails_soon_again_and_begins_anew_otherwise() -> None:
    for pause_s, wait_s in [(TERMS.cap_s - 1, 7.5), (TERMS.cap_s + 1, 3.75)]:
        breaker = opened()
        now = breaker.wait_s(0.0)
        call(breaker, GOOD, now)
        now += pause_s
        for _ in range(5):
            call(breaker, BAD, now)
        assert breaker.wait_s(now) == wait_s


@pytest.mark.parametrize(
    ("retry_after_s", "random", "wait_s"),
    [
        (None, 0.0, 2.5),
        (None, 0.999, 4.9975),
        (1.0, 0.0, 2.5),
        (90.0, 0.0, 90.0),
        (90.0, 0.5, 92.5),
        (1000000000.0, 0.0, TERMS.longest_s),
    ],
)
def test_the_wait_that_a_provider_asks_for_is_obeyed(
    retry_after_s: float | None, random: float, wait_s: float
) -> None:
    assert opened(0.0, random, retry_after_s).wait_s(0.0) == pytest.approx(wait_s)


def test_what_somebody_has_to_mend_is_tried_less_often() -> None:
    breaker = Breaker()
    call(breaker, Signal.REJECTED, 0.0, random=0.0)
    assert breaker.wait_s(0.0) == TERMS.rejected_base_s / 2


def test_a_call_from_before_the_last_change_says_nothing() -> None:
    breaker = Breaker()
    early = [breaker.begin(0.0) for _ in range(10)]
    assert None not in early
    for permit in early[:5]:
        assert permit is not None
        breaker.end(permit, BAD, now=1.0, random=0.5)
    assert breaker.state == "open"
    for permit, signal in zip(early[5:], itertools.cycle([GOOD, BAD, Signal.REJECTED])):
        assert permit is not None
        assert breaker.end(permit, signal, now=1.0, random=0.5) is None
    assert breaker.wait_s(1.0) == 3.75


STEPS = st.lists(
    st.tuples(
        st.floats(0, 40),
        st.booleans(),
        st.sampled_from(Signal),
        st.none() | st.floats(0, 1e5),
        st.floats(0, 1, exclude_max=True),
    ),
    max_size=80,
)


@given(steps=STEPS, choice=st.randoms(use_true_random=False))
@settings(max_examples=300)
def test_whatever_happens_it_probes_by_one_call_and_never_stays_open(
    steps: list[tuple[float, bool, Signal, float | None, float]], choice: object
) -> None:
    breaker, now = Breaker(), 0.0
    running: list[Permit] = []
    probe: Permit | None = None
    for pause_s, is_begin, signal, retry_after_s, random in steps:
        now += pause_s
        before = breaker.state
        if is_begin or not running:
            wait_s = breaker.wait_s(now)
            permit = breaker.begin(now)
            assert (permit is None) == (wait_s > 0)
            if permit is None:
                continue
            if before == "open":
                assert probe is None
                probe = permit
            else:
                assert before == "closed", "no second call beside the probe"
            running.append(permit)
            continue
        ended = running.pop(choice.randrange(len(running)))  # type: ignore[attr-defined]
        change = breaker.end(ended, signal, now=now, random=random, retry_after_s=retry_after_s)
        if ended is probe:
            probe = None
            assert breaker.state == ("closed" if signal is GOOD else "open")
        elif before != "closed":
            assert change is None, "only the probe decides"
        if change == "open":
            longest_s = max(TERMS.rejected_cap_s, min(retry_after_s or 0, TERMS.longest_s) + 60)
            assert TERMS.base_s / 2 <= breaker.wait_s(now) <= longest_s
    for permit in running:
        breaker.end(permit, Signal.NOTHING, now=now, random=0.0)
    assert breaker.begin(now + TERMS.longest_s + 60) is not None
