"""The lease of a ledger's entry: who may call, and what those who come later are told."""

import asyncio
from collections.abc import Collection
from datetime import UTC, datetime, timedelta

import pytest

from fusewire.contracts import CallFailure, Candidate
from fusewire.errors import Transient
from fusewire.testing.eventually import eventually
from fusewire.testing.memory_kv import MemoryKeyValue
from fusewire_worker_remote.lease import LeaseTerms, LedgerLease
from fusewire_worker_remote.ledger import EntryBusy, Ledger, LedgerEntry, LedgerUnavailable
from fusewire_worker_remote.ledger_kv import KvLedger

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
LEASE = timedelta(seconds=15)
DAY = timedelta(days=1)


class Writes:
    """A ledger that notes what is written, and that can be out of reach."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.entries: list[LedgerEntry] = []
        self.kept_s: list[float] = []
        self.is_down = False

    async def get(self, key: str) -> tuple[LedgerEntry | None, int]:
        if self.is_down:
            raise LedgerUnavailable("no answer")
        return await self._ledger.get(key)

    async def put(self, key: str, entry: LedgerEntry, revision: int, keep_s: float) -> int:
        if self.is_down:
            raise LedgerUnavailable("no answer")
        self.entries.append(entry)
        self.kept_s.append(keep_s)
        return await self._ledger.put(key, entry, revision, keep_s)


class Desk:
    """One message's entry, a clock, and the candidates that have come."""

    def __init__(self) -> None:
        self.ledger = Writes(KvLedger(MemoryKeyValue()))
        self.now = NOW
        self.ended: set[str] = set()

    async def find_ended(self, calls: Collection[str]) -> Collection[str]:
        return [call for call in calls if call in self.ended]

    def lease(
        self, owner: str, *, is_first: bool = False, earlier: Collection[str] = ()
    ) -> LedgerLease:
        terms = LeaseTerms(owner, LEASE, NOW + DAY, lambda: self.now)
        return LedgerLease(
            self.ledger, "f1-0", terms, self.find_ended, is_first=is_first, earlier=earlier
        )

    async def crash(self, owner: str, *calls: str, earlier: Collection[str] = ()) -> LedgerLease:
        """A worker takes the message, begins calls, and is gone until its lease is over."""
        lease = self.lease(owner, earlier=earlier)
        await lease.__aenter__()
        for call in calls:
            await lease.begin(call, 9)
        self.now += LEASE + timedelta(seconds=1)
        return lease

    async def stop(self, owner: str, *, is_down: bool = False) -> None:
        """A worker is stopped within a call, and lets go."""
        async with self.lease(owner) as lease:
            await lease.begin("a", 9)
            self.ledger.is_down = is_down
            raise Transient("it stops")


@pytest.fixture
def desk() -> Desk:
    return Desk()


def candidate(content: str | None = "Paris") -> Candidate:
    failure = CallFailure(code="timeout", message="none", retryable=False)
    return Candidate(
        task_id="f1-0-a",
        fusion_id="f1",
        round=0,
        call="a",
        model="big",
        tier="remote",
        provider="openai",
        content=content,
        error=None if content else failure,
        started_at=NOW,
        finished_at=NOW,
    )


async def test_what_had_ended_is_known_after_a_second_crash_too(desk: Desk) -> None:
    """Two crashes after its candidate was stored, a task would otherwise be paid for again."""
    await desk.crash("w1", "a", "b")
    desk.ended.add("a")
    await desk.crash("w2", "b")

    async with desk.lease("w3") as lease:
        assert lease.has_ended("a")
        assert not lease.has_ended("b")
        known = {call: lease.calls(call) for call in "ab"}
    assert {call: entry and entry.unknown for call, entry in known.items()} == {"a": 0, "b": 2}, (
        "the result of what has ended is known"
    )


async def test_after_a_lost_store_too_what_had_ended_is_known_to_the_next(desk: Desk) -> None:
    desk.ended.add("a")
    await desk.crash("w1", "b", earlier=("a", "b"))

    async with desk.lease("w2", earlier=("a", "b")) as lease:
        assert lease.has_ended("a")
        assert lease.calls("b") is not None


async def test_who_comes_first_after_a_lost_store_knows_what_had_ended_before(desk: Desk) -> None:
    desk.ended.add("a")
    async with desk.lease("w1", earlier=("a", "b")) as lease:
        assert (lease.has_ended("a"), lease.has_ended("b")) == (True, False)
        lost = lease.calls("b")
        assert (lost and lost.unknown, lost and lost.is_sent) == (1, False)


async def test_a_first_delivery_knows_of_no_call(desk: Desk) -> None:
    async with desk.lease("w1", is_first=True) as lease:
        assert not lease.has_ended("a")
        assert lease.calls("a") is None
        # Of a task that was refused before any call.
        assert await lease.end(candidate(None)) == candidate(None)


async def test_where_all_has_ended_nothing_is_written(desk: Desk) -> None:
    await desk.crash("w1", "a")
    desk.ended.add("a")
    desk.ledger.entries.clear()

    async with desk.lease("w2") as lease:
        assert lease.has_ended("a")
    assert desk.ledger.entries == []


async def test_a_message_that_another_works_on_comes_back_when_its_lease_is_over(
    desk: Desk,
) -> None:
    async with desk.lease("w1") as lease:
        await lease.begin("a", 9)
        desk.now += timedelta(seconds=5)
        with pytest.raises(EntryBusy) as busy:
            await desk.lease("w2").__aenter__()
        assert busy.value.retry_after_s == 10.0


async def test_a_lease_of_a_clock_that_was_ahead_holds_a_message_no_longer_than_any(
    desk: Desk,
) -> None:
    desk.now += timedelta(hours=1)
    await desk.crash("w1", "a", "b")
    desk.now = NOW
    writes = len(desk.ledger.entries)

    with pytest.raises(EntryBusy) as busy:
        async with desk.lease("w2"):
            pass
    assert busy.value.retry_after_s == LEASE.total_seconds()

    # The fusion is over: nobody needs the calls any more.
    desk.ended |= {"a", "b"}
    async with desk.lease("w2") as lease:
        assert lease.has_ended("a")
    assert len(desk.ledger.entries) == writes


async def test_the_moment_that_a_lease_ends_it_can_be_taken_over(desk: Desk) -> None:
    await desk.lease("w1").__aenter__()
    lease = desk.lease("w1")
    await lease.__aenter__()
    await lease.begin("a", 9)
    desk.now += LEASE

    async with desk.lease("w2") as taken:
        assert taken.calls("a") == lease.calls("a").abandon()  # type: ignore[union-attr]
        entry, _ = await desk.ledger.get("f1-0")
        assert entry is not None
        assert (entry.owner, entry.until) == ("w2", desk.now + LEASE)


async def test_a_copy_of_a_first_delivery_is_handed_back_for_a_moment(desk: Desk) -> None:
    async with desk.lease("w1", is_first=True) as lease:
        await lease.begin("a", 9)
        copy = desk.lease("w2", is_first=True)
        await copy.__aenter__()
        with pytest.raises(EntryBusy) as busy:
            await copy.begin("a", 9)
        assert busy.value.retry_after_s == 1.0
        # Once lost it writes no more.
        with pytest.raises(EntryBusy) as busy:
            await copy.begin("b", 9)
        assert busy.value.retry_after_s == LEASE.total_seconds()


async def test_who_lost_its_entry_hands_back_for_as_long_as_the_other_holds_it(desk: Desk) -> None:
    stalled = await desk.crash("w1", "a")
    async with desk.lease("w2") as lease:
        await lease.begin("a", 9)
        with pytest.raises(EntryBusy) as busy:
            await stalled.pause("a", ambiguous=False)
        assert busy.value.retry_after_s == LEASE.total_seconds()


async def test_what_is_written_says_who_until_when_and_how_long_it_is_kept(desk: Desk) -> None:
    desk.now += timedelta(hours=1)
    async with desk.lease("w1", is_first=True) as lease:
        await lease.begin("a", 9)
    (entry,) = desk.ledger.entries
    assert (entry.owner, entry.until) == ("w1", desk.now + LEASE)
    assert list(entry.calls) == ["a"]
    assert desk.ledger.kept_s == [timedelta(hours=23).total_seconds()]


async def test_after_an_exception_the_next_need_not_wait(desk: Desk) -> None:
    with pytest.raises(Transient):
        await desk.stop("w1")
    assert desk.ledger.entries[-1].until == desk.now

    async with desk.lease("w2") as lease:
        assert lease.calls("a") is not None


async def test_who_has_written_nothing_or_lost_its_entry_releases_nothing(desk: Desk) -> None:
    with pytest.raises(Transient):
        async with desk.lease("w1"):
            raise Transient("it stops before its first call")
    assert desk.ledger.entries == []

    stalled = await desk.crash("w1", "a")
    async with desk.lease("w2") as lease:
        await lease.begin("a", 9)
        with pytest.raises(EntryBusy):
            await stalled.resend("a")
        written = len(desk.ledger.entries)
        await stalled.__aexit__(Transient, Transient("lost"), None)
        assert len(desk.ledger.entries) == written


async def test_a_release_that_fails_hides_no_exception(desk: Desk) -> None:
    with pytest.raises(Transient, match="it stops"):
        await desk.stop("w1", is_down=True)


async def test_a_release_of_what_another_has_taken_hides_no_exception(desk: Desk) -> None:
    async def stop_too_late() -> None:
        async with desk.lease("w1") as lease:
            await lease.begin("a", 9)
            desk.now += LEASE
            await desk.lease("w2").__aenter__()
            raise Transient("it stops")

    with pytest.raises(Transient, match="it stops"):
        await stop_too_late()
    assert desk.ledger.entries[-1].owner == "w1", "it tried"
    stored, _ = await desk.ledger.get("f1-0")
    assert stored is not None
    assert stored.owner == "w2"


async def test_no_call_is_begun_once_its_attempts_are_used_up(desk: Desk) -> None:
    async with desk.lease("w1") as lease:
        begun = await lease.begin("a", 2)
        assert (begun.attempts, begun.unknown, begun.started_at) == (1, 0, NOW)  # type: ignore[union-attr]
        await lease.pause("a", ambiguous=False)
        desk.now += timedelta(seconds=1)
        again = await lease.begin("a", 2)
        assert (again.attempts, again.unknown, again.started_at) == (2, 0, NOW)  # type: ignore[union-attr]
        await lease.pause("a", ambiguous=True)
        assert await lease.begin("a", 2) is None
        resent = await lease.resend("a")
        assert (resent.attempts, resent.unknown, resent.is_sent) == (3, 1, True)
        assert lease.calls("b") is None


async def test_calls_that_begin_together_are_written_once(desk: Desk) -> None:
    async with desk.lease("w1", is_first=True) as lease:
        await asyncio.gather(*(lease.begin(call, 9) for call in "abc"))
    (entry,) = desk.ledger.entries
    assert sorted(entry.calls) == ["a", "b", "c"]


async def test_who_stood_still_looks_before_it_ends(desk: Desk) -> None:
    stalled = await desk.crash("w1", "a")
    # Nobody took over: it is still its own.
    assert await stalled.end(candidate()) == candidate()
    async with desk.lease("w2") as lease:
        await lease.begin("a", 9)
        ended = await stalled.end(candidate())
        assert (ended.content, ended.maybe_paid_twice) == ("Paris", True)
        with pytest.raises(EntryBusy) as busy:
            await stalled.end(candidate(None))
        assert busy.value.retry_after_s == LEASE.total_seconds()


async def test_the_moment_that_its_lease_ends_it_looks(desk: Desk) -> None:
    async with desk.lease("w1") as lease:
        await lease.begin("a", 9)
        desk.now += LEASE
        async with desk.lease("w2"):
            assert (await lease.end(candidate())).maybe_paid_twice


async def test_within_its_lease_it_ends_without_a_look(desk: Desk) -> None:
    async with desk.lease("w1") as lease:
        await lease.begin("a", 9)
        desk.ledger.is_down = True
        assert await lease.end(candidate()) == candidate()
        desk.now += LEASE
        # Out of reach: the answer is not thrown away.
        assert await lease.end(candidate()) == candidate()


async def test_an_own_write_whose_acknowledgement_was_lost_is_recognised(desk: Desk) -> None:
    lease = desk.lease("w1", is_first=True)
    await lease.__aenter__()
    await lease.begin("a", 9)
    entry, revision = await desk.ledger.get("f1-0")
    assert entry is not None
    await desk.ledger.put("f1-0", entry, revision, 60)

    await lease.pause("a", ambiguous=True)

    stored, _ = await desk.ledger.get("f1-0")
    assert stored is not None
    assert stored.calls["a"] == lease.calls("a")


async def test_a_renewal_keeps_the_lease_and_ends_with_it(desk: Desk) -> None:
    async def call() -> str:
        await eventually(is_renewed)
        return "Paris"

    async def is_renewed() -> bool:
        return len(desk.ledger.entries) > 2

    terms = LeaseTerms("w1", timedelta(seconds=0.009), NOW + DAY, lambda: desk.now)
    lease = LedgerLease(desk.ledger, "f1-0", terms, desk.find_ended, is_first=True)
    async with lease:
        await lease.begin("a", 9)
        assert await lease.during(call()) == "Paris"
    assert {entry.until for entry in desk.ledger.entries} == {NOW + terms.duration}
    written = len(desk.ledger.entries)
    await asyncio.sleep(0.02)
    assert len(desk.ledger.entries) == written
