"""The ledger's rules, and the promise they add up to: a task is paid for at most twice, and says so."""

from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fusewire.contracts import CallFailure, Candidate, ContractError
from fusewire.testing.memory_kv import MemoryKeyValue
from fusewire_worker_remote.claim import Claim, claim
from fusewire_worker_remote.ledger import (
    MAX_UNKNOWN,
    Busy,
    Call,
    Entry,
    GiveUp,
    Republish,
    Step,
    Wait,
    next_step,
)
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


def entry(state: str = "sent", **changes: Any) -> Entry:
    given = {"state": state, "owner": "w1", "until": NOW + LEASE, "started_at": NOW, "attempts": 1, **changes}
    return Entry.model_validate(given)


def step(of: Entry | None, *, me: str = "w2", after_s: float = 0, max_attempts: int = 3) -> Step:
    return next_step(of, NOW + timedelta(seconds=after_s), me, lease=LEASE, max_attempts=max_attempts)


def test_a_new_task_is_called_and_noted_as_sent_first() -> None:
    taken = step(None)
    assert isinstance(taken, Call)
    assert (taken.entry.state, taken.entry.owner, taken.entry.attempts, taken.entry.unknown) == ("sent", "w2", 1, 0)
    assert taken.entry.until == NOW + LEASE


@pytest.mark.parametrize("after_s", [0, 3600])
@pytest.mark.parametrize("me", ["w1", "w2"])
def test_a_settled_task_is_republished_and_not_called(me: str, after_s: float) -> None:
    assert step(entry("settled", candidate=candidate()), me=me, after_s=after_s) == Republish(candidate())


@pytest.mark.parametrize("state", ["reserved", "sent", "ambiguous"])
def test_a_live_lease_is_waited_for(state: str) -> None:
    assert step(entry(state), after_s=5) == Wait(10.0)


def test_reserved_with_a_dead_lease_is_called_with_nothing_unknown() -> None:
    taken = step(entry("reserved"), after_s=16)
    assert isinstance(taken, Call)
    assert (taken.entry.state, taken.entry.attempts, taken.entry.unknown) == ("sent", 2, 0)


def test_sent_with_a_dead_lease_is_called_once_more_and_remembered() -> None:
    taken = step(entry("sent"), after_s=16)
    assert isinstance(taken, Call)
    assert (taken.entry.state, taken.entry.owner, taken.entry.unknown) == ("sent", "w2", 1)


def test_ambiguous_with_a_dead_lease_is_called_once_more() -> None:
    taken = step(entry("ambiguous", unknown=1), after_s=16)
    assert isinstance(taken, Call)
    assert taken.entry.unknown == 1


@pytest.mark.parametrize("left", [entry("sent", unknown=1), entry("ambiguous", unknown=2)])
def test_a_second_unknowable_call_ends_it(left: Entry) -> None:
    given_up = step(left, after_s=16)
    assert isinstance(given_up, GiveUp)
    assert given_up.entry.unknown == MAX_UNKNOWN
    assert given_up.entry.owner == "w2"


def test_attempts_are_counted_over_all_workers() -> None:
    assert isinstance(step(entry("reserved", attempts=3), after_s=16), GiveUp)
    assert isinstance(step(entry("sent"), after_s=16, max_attempts=1), GiveUp)


def test_an_entry_survives_its_json() -> None:
    settled = entry("sent", unknown=1).settled(candidate(twice=True), NOW)
    assert Entry.decode(settled.encode()) == settled


@pytest.mark.parametrize("state", ["reserved", "sent", "ambiguous"])
def test_a_candidate_belongs_to_a_settled_entry_only(state: str) -> None:
    whole = entry("settled", candidate=candidate()).encode()
    with pytest.raises(ContractError, match="candidate belongs"):
        Entry.decode(whole.replace(b'"settled"', f'"{state}"'.encode()))


def now_or_never(work: Coroutine[Any, Any, T]) -> T:
    """Run what never really waits, as nothing on a bucket in memory does."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    work.close()
    raise AssertionError("it waited")


class PaidCalls(RuleBasedStateMachine):
    """Three workers, one task, any order of deliveries, results, crashes, stalls and lapsed leases.

    A crash, an unreadable result and an answer count as paid; only a refusal that cost nothing
    does not. `flying` are calls under way, which may yet turn out to be paid.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ledger = KvLedger(MemoryKeyValue())
        self.now = NOW
        self.flying: dict[str, Claim] = {}
        self.pausing: dict[str, Claim] = {}
        self.claims = 0
        self.paid = 0
        self.published: list[Candidate] = []

    def clock(self) -> datetime:
        return self.now

    def settle(self, held: Claim, outcome: Candidate) -> None:
        try:
            self.published.append(now_or_never(held.settle(outcome)))
        except Busy:
            assert not outcome.ok

    @rule(me=st.sampled_from(["w1", "w2", "w3"]))
    def deliver(self, me: str) -> None:
        if me in self.flying or me in self.pausing:
            return
        self.claims += 1
        taking = claim(self.ledger, "t", me=f"{me}#{self.claims}", lease=LEASE, max_attempts=99, clock=self.clock)
        try:
            taken = now_or_never(taking)
        except Busy:
            return
        if isinstance(taken, Candidate):
            self.published.append(taken)
            return
        held, may_call = taken
        if may_call:
            self.flying[me] = held
        else:
            self.settle(held, candidate(None, twice=held.entry.unknown >= 2))

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        me = data.draw(st.sampled_from(sorted(self.flying)))
        held = self.flying.pop(me)
        self.paid += 1
        self.settle(held, candidate(f"answer of {me}", twice=held.entry.unknown >= 1))

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), ambiguous=st.booleans())
    def fail(self, data: st.DataObject, ambiguous: bool) -> None:
        me = data.draw(st.sampled_from(sorted(self.flying)))
        held = self.flying.pop(me)
        self.paid += ambiguous
        if held.entry.unknown + ambiguous >= MAX_UNKNOWN:
            self.settle(held, candidate(None, twice=True))
            return
        try:
            now_or_never(held.pause(ambiguous=ambiguous, wait_s=1))
        except Busy:
            return
        self.pausing[me] = held

    @precondition(lambda self: self.pausing)
    @rule(data=st.data())
    def resend(self, data: st.DataObject) -> None:
        me = data.draw(st.sampled_from(sorted(self.pausing)))
        held = self.pausing.pop(me)
        try:
            now_or_never(held.resend())
        except Busy:
            return
        self.flying[me] = held

    @precondition(lambda self: self.flying or self.pausing)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        me = data.draw(st.sampled_from(sorted({*self.flying, *self.pausing})))
        self.paid += self.flying.pop(me, None) is not None
        self.pausing.pop(me, None)

    @rule(seconds=st.sampled_from([1, 5, 16, 40]))
    def pass_time(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @invariant()
    def a_task_is_paid_for_at_most_twice(self) -> None:
        assert self.paid + len(self.flying) <= 2

    @invariant()
    def every_delivery_ends_in_the_same_candidate(self) -> None:
        assert all(c == self.published[0] for c in self.published)

    @invariant()
    def an_answer_that_may_have_been_paid_for_twice_says_so(self) -> None:
        if self.published and self.published[0].ok and self.paid + len(self.flying) == 2:
            assert self.published[0].maybe_paid_twice


PaidCalls.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestPaidCalls = PaidCalls.TestCase
