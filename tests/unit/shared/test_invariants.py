"""The checker of histories: each violation, planted in a good history, is named."""

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.testing.history import (
    Acceptance,
    AccountCost,
    BatchLines,
    Event,
    FaultEnd,
    FaultStart,
    History,
    LeakCheck,
    MemorySample,
    ModelCall,
    OutcomeCount,
    OutcomeView,
    QueueCount,
    StoredCandidate,
    StoredVerdict,
    decode,
    encode,
    read,
)
from fusewire.testing.invariants import INVARIANTS, check, paid_duplicates, recoveries, slope

GOOD: tuple[Event, ...] = (
    Acceptance(0, "f1", "q1"),
    Acceptance(0, "f2", "q2"),
    ModelCall(0.5, "f1-0-a", "a", "answered"),
    FaultStart(1, 1, "kill", "judge"),
    FaultEnd(1, 1),
    ModelCall(1.5, "f2-0-a", "a", "refused"),
    ModelCall(1.6, "f2-0-a", "a", "answered"),
    OutcomeView(2, "f1", "selected", "d1"),
    OutcomeView(3, "f2", "selected", "d2"),
    OutcomeView(9, "f1", "selected", "d1"),
    OutcomeCount(9, "f1", 1),
    OutcomeCount(9, "f2", 1),
    StoredCandidate(9, "f1", "f1-0-a", 1, maybe_paid_twice=False),
    StoredCandidate(9, "f2", "f2-0-a", 2, maybe_paid_twice=False),
    StoredVerdict(9, "f1", "a", ("a", "b")),
    AccountCost(9, "acme", 1.0, 1.0),
    LeakCheck(9, "log", 1000, 0),
    BatchLines(9, "b", ("x", "y"), ("x", "y")),
    QueueCount(9, "FW_PROMPT", 0),
    *(MemorySample(60.0 * minute, "judge", 100.0) for minute in range(10)),
)
PAID_AGAIN = ModelCall(2.0, "f1-0-a", "a", "answered")
MARKED = StoredCandidate(9, "f1", "f1-0-a", 1, maybe_paid_twice=True)


def without(kind: type) -> tuple[Event, ...]:
    return tuple(event for event in GOOD if not isinstance(event, kind))


def names(history: tuple[Event, ...]) -> set[str]:
    return {violation.invariant for violation in check(history)}


VIOLATED: list[tuple[str, str, tuple[Event, ...]]] = [
    ("I1", "lost", (*GOOD, Acceptance(5, "f3", "q3"))),
    ("I1", "twice", (*without(OutcomeCount), OutcomeCount(9, "f1", 2), OutcomeCount(9, "f2", 1))),
    ("I2", "an outcome that nobody asked for", (*GOOD, OutcomeCount(9, "f9", 1))),
    ("I3", "paid again without a fault", (*without(FaultStart), MARKED, PAID_AGAIN)),
    ("I3", "paid three times at one fault", (*GOOD, MARKED, PAID_AGAIN, PAID_AGAIN)),
    ("I3", "paid again and not told", (*GOOD, PAID_AGAIN)),
    ("I3", "a fault that ended long before", (
        *GOOD, Acceptance(0, "f4", "q4"), OutcomeCount(9, "f4", 1),
        ModelCall(500, "f4-0-a", "a", "answered"), ModelCall(501, "f4-0-a", "a", "answered"),
    )),
    ("I4", "spent more", (*GOOD, AccountCost(9, "acme", 1.2, 1.0, 0.1))),
    ("I5", "a canary", (*GOOD, LeakCheck(9, "remote stream", 10, 1))),
    ("I6", "swapped", (*GOOD, BatchLines(9, "b", ("x", "y"), ("y", "x")))),
    ("I6", "cut", (*GOOD, BatchLines(9, "b", ("x", "y"), ("x",)))),
    ("I7", "another answer", (*GOOD, OutcomeView(10, "f1", "selected", "d9"))),
    ("I7", "another state", (*GOOD, OutcomeView(10, "f1", "failed", "d1"))),
    ("I8", "a winner from nowhere", (*GOOD, StoredVerdict(9, "f2", "z", ("a", "b")))),
    ("I9", "work left", (*GOOD, QueueCount(9, "FW_TASK_REMOTE", 3))),
    ("I10", "slow", (
        *GOOD, Acceptance(20, "f5", "q5"), OutcomeCount(99, "f5", 1),
        FaultStart(21, 2, "freeze", "judge"), FaultEnd(30, 2),
        OutcomeView(41, "f5", "selected", "d"),
    )),
    ("I10", "never", (
        *GOOD, Acceptance(20, "f5", "q5"), OutcomeCount(99, "f5", 1),
        FaultStart(21, 2, "kill", "judge"), FaultEnd(21, 2),
    )),
    ("I11", "a leak", (
        *GOOD, *(MemorySample(60.0 * m, "ingest", 100.0 + 2 * m) for m in range(10)),
    )),
]  # fmt: skip


def test_a_good_history_violates_nothing() -> None:
    assert check(GOOD) == []


@pytest.mark.parametrize(
    ("invariant", "history"),
    [(name, history) for name, _, history in VIOLATED],
    ids=[f"{name} {what}" for name, what, _ in VIOLATED],
)
def test_a_planted_violation_is_named(invariant: str, history: tuple[Event, ...]) -> None:
    assert names(history) == {invariant}


@pytest.mark.parametrize("invariant", INVARIANTS)
def test_each_invariant_is_planted_and_only_its_own_check_sees_it(
    invariant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = [history for name, _, history in VIOLATED if name == invariant]
    assert planted
    monkeypatch.delitem(INVARIANTS, invariant)
    assert [check(history) for history in planted] == [[]] * len(planted)


def test_a_second_call_after_a_kill_is_no_violation_where_its_candidate_tells() -> None:
    history = (*without(StoredCandidate), MARKED, PAID_AGAIN)
    assert check(history) == []
    assert paid_duplicates(history) == {"kill": 1}


def test_recovery_is_that_of_the_last_of_faults_that_follow_each_other() -> None:
    freeze = (FaultStart(1, 1, "freeze", "judge"), FaultEnd(3, 1))
    kill = (FaultStart(4, 2, "kill", "ingest"), FaultEnd(4, 2))
    accepted, view = Acceptance(0, "f", "q"), OutcomeView(6, "f", "selected", "d")
    assert recoveries([accepted, *freeze, view]) == [3]
    assert recoveries([accepted, *freeze, *kill, view]) == [2]
    assert recoveries([accepted, *freeze, *kill]) == [math.inf]
    assert recoveries([*freeze, *kill]) == []
    # Nothing waited when it ended.
    assert recoveries([accepted, view, FaultStart(7, 3, "kill", "judge"), FaultEnd(7, 3)]) == []


def test_samples_over_a_moment_tell_nothing() -> None:
    assert check((MemorySample(0, "p", 1), MemorySample(1, "p", 900))) == []


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20), st.floats(-10, 10))
def test_a_slope_is_that_of_the_line_that_is_added(noise: list[float], added: float) -> None:
    flat = list(enumerate(noise))
    tilted = [(x, y + added * x) for x, y in flat]
    assert slope(tilted) == pytest.approx(slope(flat) + added, abs=1e-6)


@pytest.mark.parametrize("event", GOOD[:-9], ids=lambda event: type(event).__name__)
def test_an_event_is_read_as_it_was_written(event: Event) -> None:
    assert decode(encode(event)) == event


def test_a_history_is_on_the_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    number = history.begin("kill", "judge")
    history.end(number)
    history.add(*GOOD)
    assert read(path.read_text().splitlines()) == history.events
    assert isinstance(history.events[0], FaultStart)
    assert dataclasses.replace(history.events[0], at=0) == FaultStart(0, 1, "kill", "judge")
    history.close()
