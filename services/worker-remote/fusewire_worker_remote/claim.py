"""One task's hold on its ledger entry, from the first call to the last write."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TypeVar

import structlog

from fusewire.contracts import Candidate
from fusewire_worker_remote.ledger import (
    Busy,
    Call,
    ConflictError,
    Entry,
    Ledger,
    LedgerUnavailable,
    Republish,
    Wait,
    next_step,
)

log = structlog.get_logger(__name__)

T = TypeVar("T")

_RACES = 5
"""Lost races for one entry before the task is handed back."""


class Claim:
    """A task that this worker holds. `entry` is what the ledger says of it, as far as we know."""

    def __init__(
        self,
        ledger: Ledger,
        task_id: str,
        *,
        entry: Entry,
        revision: int,
        lease: timedelta,
        clock: Callable[[], datetime],
    ) -> None:
        self._ledger = ledger
        self._task_id = task_id
        self._revision = revision
        self._lease = lease
        self._clock = clock
        self.entry = entry

    async def pause(self, *, ambiguous: bool, wait_s: float) -> None:
        """Note that the last call failed and that another follows after `wait_s`."""
        until = self._clock() + timedelta(seconds=wait_s) + self._lease
        await self._write(self.entry.paused(ambiguous=ambiguous, until=until))

    async def resend(self) -> None:
        """Note that a further call is about to be made."""
        await self._write(self.entry.resent(self._clock() + self._lease))

    async def during(self, call: Awaitable[T]) -> T:
        """Await `call`, renewing the lease at every third of it."""
        running = asyncio.ensure_future(call)
        held = True
        try:
            while True:
                await asyncio.wait({running}, timeout=self._lease.total_seconds() / 3 if held else None)
                if running.done():
                    return running.result()
                held = await self._renew()
        finally:
            running.cancel()

    async def settle(self, candidate: Candidate) -> Candidate:
        """Write the end down and return the candidate to publish.

        Where the lease was lost to another worker meanwhile, the first to settle decides: its candidate
        is returned, and an answer settles over a call that is still in flight there.
        A ledger out of reach does not take a paid answer away: it is returned all the same.

        Raises:
            Busy: we only have a failure, and another worker may yet have an answer.
        """
        with suppress(LedgerUnavailable):
            for _ in range(_RACES):
                try:
                    await self._ledger.put(self._task_id, self.entry.settled(candidate, self._clock()), self._revision)
                except ConflictError:
                    stored, self._revision = await self._ledger.get(self._task_id)
                    if stored is not None and stored.candidate is not None:
                        return stored.candidate
                    if stored is not None and stored.owner != self.entry.owner:
                        if not candidate.ok:
                            raise Busy(self._lease.total_seconds()) from None
                        candidate = candidate.model_copy(update={"maybe_paid_twice": True})
                else:
                    return candidate
        log.error("remote.settle_failed", task_id=self._task_id)
        return candidate

    async def _renew(self) -> bool:
        try:
            await self._write(self.entry.renewed(self._clock() + self._lease))
        except Busy:
            log.warning("remote.lease_lost", task_id=self._task_id)
            return False
        except LedgerUnavailable:
            log.warning("remote.lease_not_renewed", task_id=self._task_id)
        return True

    async def _write(self, entry: Entry) -> None:
        """Write over what we hold.

        Raises:
            Busy: another worker has taken the entry.
            LedgerUnavailable: the ledger is out of reach.
        """
        for _ in range(_RACES):
            try:
                self._revision = await self._ledger.put(self._task_id, entry, self._revision)
            except ConflictError:
                stored, self._revision = await self._ledger.get(self._task_id)
                if stored is None or stored.owner != entry.owner:
                    break
                # Our own earlier write, whose acknowledgement was lost: go on from there.
            else:
                self.entry = entry
                return
        raise Busy(self._lease.total_seconds())


async def claim(
    ledger: Ledger,
    task_id: str,
    *,
    me: str,
    lease: timedelta,
    max_attempts: int,
    clock: Callable[[], datetime],
) -> tuple[Claim, bool] | Candidate:
    """Take a task.

    Args:
        me: the name of this claim, which no other bears; by it a write is known whose acknowledgement was lost.

    Returns:
        The stored candidate if the task is settled. Otherwise the claim, and whether a call may
        be made, which is then noted as sent.

    Raises:
        Busy: another worker is at it.
        LedgerUnavailable: the ledger is out of reach; nothing was called.
    """
    stored, revision = None, 0  # a first delivery is the common case, and this guess costs it no read
    for _ in range(_RACES):
        step = next_step(stored, clock(), me, lease=lease, max_attempts=max_attempts)
        if isinstance(step, Republish):
            return step.candidate
        if isinstance(step, Wait):
            raise Busy(step.seconds)
        may_call = isinstance(step, Call)
        if may_call:
            try:
                revision = await ledger.put(task_id, step.entry, revision)
            except ConflictError:
                stored, revision = await ledger.get(task_id)
                if stored is None or stored.owner != me:
                    continue
                # Our own write, whose acknowledgement was lost.
        held = Claim(ledger, task_id, entry=step.entry, revision=revision, lease=lease, clock=clock)
        return held, may_call
    raise Busy(1.0)
