"""A worker's lease of the ledger's entry of one message, from its first call to its last."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self, TypeVar

import structlog

from fusewire.contracts import Candidate
from fusewire.crash_points import CrashPoint, reach
from fusewire_worker_remote.ledger import (
    ConflictError,
    EntryBusy,
    Ledger,
    LedgerEntry,
    LedgerUnavailable,
    TaskCalls,
)

log = structlog.get_logger(__name__)

T = TypeVar("T")

_RACES = 5
"""Lost races for one entry before the message is handed back."""
_CONFLICT_S = 1.0
"""Seconds until a message is delivered again whose entry another worker has just created."""


FindEnded = Callable[[Collection[str]], Awaitable[Collection[str]]]
"""Returns those of the given calls that have a candidate; all of them where the fusion is over.

Raises:
    Transient: nobody can tell now.
"""


@dataclass(frozen=True)
class LeaseTerms:
    """The terms on which an entry is leased.

    Attributes:
        owner: the name of this lease, which no other bears. By it the lease recognizes its own
            write whose acknowledgement was lost.
        duration: how long after this worker's death another may take its calls.
        keep_until: when the entry may be forgotten.
        clock: gives the current time, with a zone.
    """

    owner: str
    duration: timedelta
    keep_until: datetime
    clock: Callable[[], datetime]


class LedgerLease:
    """The entry of one message, as this worker knows it.

    An async context: enter it before the first call, leave it after the last.

    Args:
        ledger: where entries are kept.
        key: key of the message.
        terms: name, duration and clock of the lease.
        find_ended: tells which candidates have come.
        is_first: whether the message has never been delivered before, so that no entry should
            exist. A first delivery is the common case, and this guess saves it a read.
        earlier: calls that may have been made before, though the ledger does not show them
            because it was lost.
    """

    def __init__(
        self,
        ledger: Ledger,
        key: str,
        terms: LeaseTerms,
        find_ended: FindEnded,
        *,
        is_first: bool,
        earlier: Collection[str] = (),
    ) -> None:
        self._ledger = ledger
        self._key = key
        self._terms = terms
        self._find_ended = find_ended
        self._is_first = is_first
        self._earlier = earlier
        self._calls: dict[str, TaskCalls] = {}
        self._ended_calls: Collection[str] = ()
        self._revision = 0
        self._until = terms.clock()
        self._is_lost = False
        self._changes = 0
        self._written_changes = 0
        self._writing = asyncio.Lock()
        self._renewal: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Read what earlier workers have written, unless this is the first delivery.

        Raises:
            EntryBusy: another worker holds the entry.
            LedgerUnavailable: the ledger is out of reach; nothing was called.
            Transient: nobody can tell which candidates have come.
        """
        if not self._is_first:
            await self._take_over()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the entry. After an exception the next delivery need not wait for the lease."""
        if self._renewal:
            self._renewal.cancel()
        if kind is not None and self._revision and not self._is_lost:
            with suppress(EntryBusy, LedgerUnavailable, asyncio.CancelledError):
                await self._put(self._terms.clock())

    def has_ended(self, call: str) -> bool:
        """Whether the call's candidate came in an earlier delivery."""
        return call in self._ended_calls

    def calls(self, call: str) -> TaskCalls | None:
        """Return what is known of a task's calls; None if none was begun."""
        return self._calls.get(call)

    async def begin(self, call: str, max_attempts: int) -> TaskCalls | None:
        """Note that a task's first call here is about to be made; None if none may be.

        Raises:
            EntryBusy: another worker holds the entry.
            LedgerUnavailable: it could not be noted.
        """
        task_calls = self._calls.get(call)
        if task_calls is None:
            await self._change(call, TaskCalls(started_at=self._terms.clock()))
        elif task_calls.may_call_again(max_attempts):
            await self._change(call, task_calls.resend())
        else:
            return None
        return self._calls[call]

    async def pause(self, call: str, *, ambiguous: bool) -> None:
        """Note that the last call failed and that another will follow. Raises like `begin`."""
        await self._change(call, self._calls[call].pause(ambiguous=ambiguous))

    async def resend(self, call: str) -> TaskCalls:
        """Note that a further call is about to be made. Raises like `begin`."""
        await self._change(call, self._calls[call].resend())
        return self._calls[call]

    async def during(self, call: Awaitable[T]) -> T:
        """Await a call. From the first call on, the lease is renewed until its context is left."""
        if self._renewal is None:
            self._renewal = asyncio.create_task(self._renew(), name="ledger-renewal")
        return await call

    async def end(self, candidate: Candidate) -> Candidate:
        """Return the candidate to publish. The first that is published is the task's end.

        Raises:
            EntryBusy: the candidate is a failure, and another worker, which took over, may yet
                get an answer.
        """
        if self._until <= self._terms.clock():
            # This process stood still for longer than its lease.
            with suppress(LedgerUnavailable):
                entry, _ = await self._ledger.get(self._key)
                self._is_lost = entry is not None and entry.owner != self._terms.owner
        if not self._is_lost:
            return candidate
        if not candidate.ok:
            raise EntryBusy(self._terms.duration.total_seconds())
        return candidate.model_copy(update={"maybe_paid_twice": True})

    async def _take_over(self) -> None:
        entry, self._revision = await self._ledger.get(self._key)
        if entry is None:
            await self._assume_lost_calls()
            return
        remaining = entry.until - self._terms.clock()
        if timedelta(0) < remaining <= self._terms.duration:
            raise EntryBusy(remaining.total_seconds())
        self._ended_calls = await self._find_ended(tuple(entry.calls))
        if remaining > timedelta(0) and entry.calls.keys() - set(self._ended_calls):
            # Longer than any lease: the writer's clock was ahead of this one, by hours perhaps.
            raise EntryBusy(self._terms.duration.total_seconds())
        # Those that have ended stay in the entry: who takes over next has to ask for them too.
        self._calls = {
            call: task_calls if call in self._ended_calls else task_calls.abandon()
            for call, task_calls in entry.calls.items()
        }
        if self._calls.keys() - set(self._ended_calls):
            await self._put(self._terms.clock() + self._terms.duration)
            reach(CrashPoint.REMOTE_TAKEN_OVER)

    async def _assume_lost_calls(self) -> None:
        """Take earlier calls without a candidate as sent, with an unknowable result."""
        self._ended_calls = await self._find_ended(self._earlier) if self._earlier else ()
        lost_call = TaskCalls(started_at=self._terms.clock()).abandon()
        self._calls = dict.fromkeys(self._earlier, lost_call)

    async def _change(self, call: str, task_calls: TaskCalls) -> None:
        """Write one call's change, together with all others that wait to be written."""
        self._calls[call] = task_calls
        self._changes += 1
        own_change = self._changes
        async with self._writing:
            if self._written_changes >= own_change:
                return
            # Calls of one message begin together: let the others add their change.
            await asyncio.sleep(0)
            last_change = self._changes
            await self._put(self._terms.clock() + self._terms.duration)
            self._written_changes = last_change

    async def _renew(self) -> None:
        while not self._is_lost:
            # Early enough that one renewal which fails does not end the lease.
            await asyncio.sleep(self._terms.duration.total_seconds() / 3)
            try:
                async with self._writing:
                    await self._put(self._terms.clock() + self._terms.duration)
            except EntryBusy:
                log.warning("remote.lease_lost", key=self._key)
            except LedgerUnavailable:
                log.warning("remote.lease_not_renewed", key=self._key)

    async def _put(self, until: datetime) -> None:
        """Write the calls known here over the revision that this lease holds.

        Raises:
            EntryBusy: another worker has the entry.
            LedgerUnavailable: the ledger is out of reach.
        """
        if self._is_lost:
            raise EntryBusy(self._terms.duration.total_seconds())
        keep_s = (self._terms.keep_until - self._terms.clock()).total_seconds()
        entry = LedgerEntry(owner=self._terms.owner, until=until, calls=dict(self._calls))
        for _ in range(_RACES):
            try:
                self._revision = await self._ledger.put(self._key, entry, self._revision, keep_s)
            except ConflictError:
                current, revision = await self._ledger.get(self._key)
                if current is None or current.owner != self._terms.owner:
                    break
                # Our own earlier write, whose acknowledgement was lost: go on from there.
                self._revision = revision
            else:
                self._until = until
                return
        self._is_lost = True
        retry_s = _CONFLICT_S if self._revision == 0 else self._terms.duration.total_seconds()
        raise EntryBusy(retry_s)
