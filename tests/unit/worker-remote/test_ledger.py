"""The ledger's rules, and what they guarantee: a task is paid for at most twice, and says so."""

from collections.abc import Collection, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fusewire.contracts import CallFailure, Candidate
from fusewire.errors import Transient
from fusewire.testing.memory_kv import MemoryKeyValue
from fusewire_worker_remote.lease import LeaseTerms, LedgerLease
from fusewire_worker_remote.ledger import MAX_UNKNOWN, EntryBusy, LedgerEntry, TaskCalls
from fusewire_worker_remote.ledger_kv import KvLedger

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
LEASE = timedelta(seconds=15)
T = TypeVar("T")


def candidate(content: str | None = "Paris", *, twice: bool = False) -> Candidate:
    return Candidate(
        task_id="f1-0-a",
        fusion_id="f1",
        round=0,
        call="a",
        model="big",
        tier="remote",
        provider="openai",
        content=content,
        error=None if content else CallFailure(code="timeout", message="none", retryable=False),
        maybe_paid_twice=twice,
        started_at=NOW,
        finished_at=NOW,
    )


def test_a_call_that_a_dead_worker_leaves_is_unknowable_where_it_was_sent() -> None:
    sent_call = TaskCalls(started_at=NOW)
    paused_call = sent_call.pause(ambiguous=False)

    assert (sent_call.abandon().unknown, sent_call.abandon().is_sent) == (1, False)
    assert paused_call.abandon() == paused_call


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({}, True),
        ({"attempts": 2}, True),
        ({"attempts": 3}, False),
        ({"attempts": 2, "unknown": 1}, True),
        ({"attempts": 2, "unknown": MAX_UNKNOWN}, False),
    ],
)
def test_attempts_are_counted_over_all_workers(counts: dict[str, int], expected: bool) -> None:
    assert TaskCalls(started_at=NOW, **counts).may_call_again(max_attempts=3) is expected


def test_an_entry_survives_its_json() -> None:
    entry = LedgerEntry(
        owner="w", until=NOW, calls={"a": TaskCalls(started_at=NOW).pause(ambiguous=True).resend()}
    )
    assert LedgerEntry.decode(entry.encode()) == entry
    assert (entry.calls["a"].attempts, entry.calls["a"].unknown, entry.calls["a"].is_sent) == (
        2,
        1,
        True,
    )


def now_or_never(work: Coroutine[Any, Any, T]) -> T:
    """Run what never really waits, as nothing on a bucket in memory does."""
    while True:
        try:
            waits_for = work.send(None)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        if waits_for is not None:  # but for a turn of the loop
            work.close()
            raise AssertionError("it waited")


class LedgerRules(RuleBasedStateMachine):
    """Three workers, one task, any order of deliveries, results, crashes, stalls and lapsed leases.

    A crash, an unreadable result and an answer count as paid; only a refusal that cost nothing does
    not. `flying` are calls under way, which may yet turn out to be paid. The first candidate that
    is published is the task's end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ledger = KvLedger(MemoryKeyValue())
        self.now = NOW
        self.flying: dict[str, LedgerLease] = {}
        self.pausing: dict[str, LedgerLease] = {}
        self.leases = 0
        self.paid_calls = 0
        self.candidates: list[Candidate] = []

    def clock(self) -> datetime:
        return self.now

    async def find_ended(self, calls: Collection[str]) -> Collection[str]:
        return calls if self.candidates else ()

    def end(self, lease: LedgerLease, outcome: Candidate) -> None:
        try:
            self.candidates.append(now_or_never(lease.end(outcome)))
        except EntryBusy:
            assert not outcome.ok

    @rule(me=st.sampled_from(["w1", "w2", "w3"]), is_first=st.booleans())
    def deliver(self, me: str, is_first: bool) -> None:
        if me in self.flying or me in self.pausing:
            return
        self.leases += 1
        terms = LeaseTerms(f"{me}#{self.leases}", LEASE, NOW + timedelta(days=1), self.clock)
        # More than one first delivery are copies of the message.
        lease = LedgerLease(self.ledger, "f1-0", terms, self.find_ended, is_first=is_first)
        try:
            now_or_never(lease.__aenter__())
            if lease.has_ended("a"):
                return
            may_call = now_or_never(lease.begin("a", max_attempts=99))
        except EntryBusy:
            return
        if may_call:
            self.flying[me] = lease
        else:
            self.end(lease, candidate(None, twice=True))

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        me = data.draw(st.sampled_from(sorted(self.flying)))
        lease = self.flying.pop(me)
        self.paid_calls += 1
        task_calls = lease.calls("a")
        assert task_calls is not None
        self.end(lease, candidate(f"answer of {me}", twice=task_calls.unknown >= 1))

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), ambiguous=st.booleans())
    def fail(self, data: st.DataObject, ambiguous: bool) -> None:
        me = data.draw(st.sampled_from(sorted(self.flying)))
        lease = self.flying.pop(me)
        self.paid_calls += ambiguous
        task_calls = lease.calls("a")
        assert task_calls is not None
        if task_calls.unknown + ambiguous >= MAX_UNKNOWN:
            self.end(lease, candidate(None, twice=True))
            return
        try:
            now_or_never(lease.pause("a", ambiguous=ambiguous))
        except EntryBusy:
            return
        self.pausing[me] = lease

    @precondition(lambda self: self.pausing)
    @rule(data=st.data())
    def resend(self, data: st.DataObject) -> None:
        me = data.draw(st.sampled_from(sorted(self.pausing)))
        lease = self.pausing.pop(me)
        try:
            now_or_never(lease.resend("a"))
        except EntryBusy:
            return
        self.flying[me] = lease

    @precondition(lambda self: self.flying or self.pausing)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        me = data.draw(st.sampled_from(sorted({*self.flying, *self.pausing})))
        self.paid_calls += self.flying.pop(me, None) is not None
        self.pausing.pop(me, None)

    @precondition(lambda self: self.flying or self.pausing)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        """It is stopped within its call, and lets go."""
        me = data.draw(st.sampled_from(sorted({*self.flying, *self.pausing})))
        lease = self.flying.get(me) or self.pausing[me]
        self.paid_calls += self.flying.pop(me, None) is not None
        self.pausing.pop(me, None)
        now_or_never(lease.__aexit__(Transient, Transient("stopped"), None))

    @rule(seconds=st.sampled_from([1, 5, 16, 40]))
    def pass_time(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @invariant()
    def a_task_is_paid_for_at_most_twice(self) -> None:
        assert self.paid_calls + len(self.flying) <= 2

    @invariant()
    def an_answer_that_may_have_been_paid_for_twice_says_so(self) -> None:
        if self.candidates and self.candidates[0].ok and self.paid_calls + len(self.flying) == 2:
            assert self.candidates[0].maybe_paid_twice


LedgerRules.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestLedgerRules = LedgerRules.TestCase
