"""A worker's hold on the ledger's entry of one message, from its first call to its last."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self, TypeVar

import structlog

from fusewire.contracts import Candidate
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
"""When a message is delivered again whose entry somebody has made meanwhile."""


Came = Callable[[Collection[str]], Awaitable[Collection[str]]]
"""Tells which of these calls have a candidate; all of them where the fusion is over.

Raises:
    Transient: nobody can tell now.
"""


@dataclass(frozen=True)
class LeaseTerms:
    """On what terms an entry is held.

    Attributes:
        me: the name of this hold, which no other bears; by it a write is known whose acknowledgement was lost.
        lease: how long after this worker's death another may take its calls.
        keep_until: when the entry may be forgotten.
        clock: gives the current time, with a zone.
    """

    me: str
    lease: timedelta
    keep_until: datetime
    clock: Callable[[], datetime]


class LedgerLease:
    """The entry of one message, as this worker knows it. Entered before the first call, left after the last.

    Args:
        ledger: where entries are kept.
        key: of the message.
        terms: on which it is held.
        came: tells which candidates have come.
        is_first: whether the message has never been delivered before, so that nothing should be there. A first
            delivery is the common case, and this guess costs it no read.
        earlier: calls that may have been made before, though the ledger knows nothing of it because it was lost.
    """

    def __init__(
        self,
        ledger: Ledger,
        key: str,
        terms: LeaseTerms,
        came: Came,
        *,
        is_first: bool,
        earlier: Collection[str] = (),
    ) -> None:
        self._ledger = ledger
        self._key = key
        self._terms = terms
        self._came = came
        self._is_first = is_first
        self._earlier = earlier
        self._calls: dict[str, TaskCalls] = {}
        self._ended: Collection[str] = ()
        self._revision = 0
        self._until = terms.clock()
        self._is_lost = False
        self._changes = 0
        self._written = 0
        self._writing = asyncio.Lock()
        self._renewal: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Look what others have left.

        Raises:
            Busy: another worker is at it.
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
        """Let go. What did not end is for the next delivery, which need not wait for the lease to end."""
        if self._renewal:
            self._renewal.cancel()
        if kind is not None and self._revision and not self._is_lost:
            with suppress(EntryBusy, LedgerUnavailable, asyncio.CancelledError):
                await self._put(self._terms.clock())

    def has_ended(self, call: str) -> bool:
        """Whether its candidate came in an earlier delivery."""
        return call in self._ended

    def calls(self, call: str) -> TaskCalls | None:
        """What is known of a task's calls; None if none was begun."""
        return self._calls.get(call)

    async def begin(self, call: str, max_attempts: int) -> TaskCalls | None:
        """Note that a task's first call here is about to be made; None if none may be.

        Raises:
            Busy: another worker is at it.
            LedgerUnavailable: it could not be noted.
        """
        known = self._calls.get(call)
        if known is None:
            await self._change(call, TaskCalls(started_at=self._terms.clock()))
        elif known.may_go_on(max_attempts):
            await self._change(call, known.resent())
        else:
            return None
        return self._calls[call]

    async def pause(self, call: str, *, ambiguous: bool) -> None:
        """Note that the last call failed and that another will follow. Raises like `begin`."""
        await self._change(call, self._calls[call].paused(ambiguous=ambiguous))

    async def resend(self, call: str) -> TaskCalls:
        """Note that a further call is about to be made. Raises like `begin`."""
        await self._change(call, self._calls[call].resent())
        return self._calls[call]

    async def during(self, call: Awaitable[T]) -> T:
        """Await a call. From the first on, the lease is renewed until the hold is left."""
        if self._renewal is None:
            self._renewal = asyncio.create_task(self._renew(), name="ledger-renewal")
        return await call

    async def end(self, candidate: Candidate) -> Candidate:
        """The candidate to publish. The first that is published is the task's end.

        Raises:
            Busy: we only have a failure, and another worker, who took over, may yet have an answer.
        """
        if self._until <= self._terms.clock():
            # This process stood still for longer than its lease.
            with suppress(LedgerUnavailable):
                stored, _ = await self._ledger.get(self._key)
                self._is_lost = stored is not None and stored.owner != self._terms.me
        if not self._is_lost:
            return candidate
        if not candidate.ok:
            raise EntryBusy(self._terms.lease.total_seconds())
        return candidate.model_copy(update={"maybe_paid_twice": True})

    async def _take_over(self) -> None:
        stored, self._revision = await self._ledger.get(self._key)
        if stored is None:
            self._ended = await self._came(self._earlier) if self._earlier else ()
            lost = TaskCalls(started_at=self._terms.clock()).left()
            self._calls = {call: lost for call in self._earlier if call not in self._ended}
            return
        if (left := stored.until - self._terms.clock()) > timedelta(0):
            raise EntryBusy(left.total_seconds())
        self._ended = await self._came(tuple(stored.calls))
        self._calls = {
            call: known.left() for call, known in stored.calls.items() if call not in self._ended
        }
        if self._calls:
            await self._put(self._terms.clock() + self._terms.lease)

    async def _change(self, call: str, known: TaskCalls) -> None:
        """Write one call's change down, with all others that wait to be written."""
        self._calls[call] = known
        self._changes += 1
        mine = self._changes
        async with self._writing:
            if self._written >= mine:
                return
            # Calls of one message begin together.
            await asyncio.sleep(0)
            upto = self._changes
            await self._put(self._terms.clock() + self._terms.lease)
            self._written = upto

    async def _renew(self) -> None:
        while not self._is_lost:
            await asyncio.sleep(self._terms.lease.total_seconds() / 3)
            try:
                async with self._writing:
                    await self._put(self._terms.clock() + self._terms.lease)
            except EntryBusy:
                log.warning("remote.lease_lost", key=self._key)
            except LedgerUnavailable:
                log.warning("remote.lease_not_renewed", key=self._key)

    async def _put(self, until: datetime) -> None:
        """Write what is known over what we hold.

        Raises:
            Busy: another worker has the entry.
            LedgerUnavailable: the ledger is out of reach.
        """
        if self._is_lost:
            raise EntryBusy(self._terms.lease.total_seconds())
        keep_s = (self._terms.keep_until - self._terms.clock()).total_seconds()
        entry = LedgerEntry(owner=self._terms.me, until=until, calls=dict(self._calls))
        for _ in range(_RACES):
            try:
                self._revision = await self._ledger.put(self._key, entry, self._revision, keep_s)
            except ConflictError:
                stored, revision = await self._ledger.get(self._key)
                if stored is None or stored.owner != self._terms.me:
                    break
                # Our own earlier write, whose acknowledgement was lost: go on from there.
                self._revision = revision
            else:
                self._until = until
                return
        self._is_lost = True
        raise EntryBusy(_CONFLICT_S if self._revision == 0 else self._terms.lease.total_seconds())
