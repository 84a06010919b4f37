"""Lets clients wait for their outcome."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable

from nats.aio.msg import Msg

from fusewire.bus import Bus
from fusewire.errors import TextsDeletedError, Transient
from fusewire.store.engine import Store
from fusewire.store.queries import FusionStatus, standings

POLL_S = 10.0
"""How often SQL is read without an announcement: a lost one delays a client by as much at most."""
AWAY_S = 0.5
"""Pause before a database that did not answer is asked again."""
CONNECTION_S = 2.0
"""How often is checked whether the connection was lost, and announcements with it."""

_Statuses = dict[str, asyncio.Future[FusionStatus | None]]
"""By fusion: its status at the next read of SQL."""


class Outcomes:
    """Wakes waiting clients when the judge announces an outcome, which is then read from SQL."""

    def __init__(
        self, bus: Bus, store: Store, on_announcement: Callable[[str], None] = lambda _: None
    ) -> None:
        self._bus = bus
        self._on_any_announcement = on_announcement
        self._store = store
        self._lookups: defaultdict[str, _Statuses] = defaultdict(dict)
        """By tenant: the fusions to look up next."""
        self._lookup_task: asyncio.Task[None] | None = None
        self._events: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        """By fusion: set at its announcement."""
        self.is_closing = False
        """Whether no client may wait any more, because this process stops."""

    async def start(self) -> None:
        """Subscribe to announcements, on core NATS: a lost one costs time, not the outcome."""
        await self._bus.client.subscribe("fw.outcome.*.*", cb=self._on_announcement)

    def close(self) -> None:
        """End all waits with the statuses of now."""
        self.is_closing = True
        for events in list(self._events.values()):
            for event in events:
                event.set()

    async def _on_announcement(self, msg: Msg) -> None:
        fusion_id = msg.subject.rpartition(".")[2]
        self._on_any_announcement(fusion_id)
        for event in self._events.get(fusion_id, ()):
            event.set()

    async def get(
        self, tenant: str, fusion_id: str, wait_s: float = 0, *, just_begun: bool = False
    ) -> FusionStatus | None:
        """Read a fusion's status, after waiting up to `wait_s` for its end.

        Args:
            tenant: the tenant that it must belong to.
            fusion_id: the fusion.
            wait_s: how long to wait for its end.
            just_begun: it was accepted a moment ago, so the read before waiting is skipped.

        Returns:
            None if the tenant has no such fusion.

        Raises:
            Transient: the database still does not answer when the time is over.
            TextsDeletedError: its texts were deleted.
        """
        if wait_s <= 0:
            return await self._look_up(tenant, fusion_id)
        event = asyncio.Event()
        self._events[fusion_id].add(event)
        deadline = asyncio.get_running_loop().time() + wait_s
        try:
            if just_begun:
                await self._wait_for_announcement(event, wait_s)
            return await self._wait_for_end(tenant, fusion_id, event, deadline)
        finally:
            self._events[fusion_id].discard(event)
            if not self._events[fusion_id]:
                del self._events[fusion_id]

    async def _wait_for_end(
        self, tenant: str, fusion_id: str, event: asyncio.Event, deadline: float
    ) -> FusionStatus | None:
        """Read the status until the fusion has ended, or until a deadline of the loop's clock."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                status = await self._look_up(tenant, fusion_id)
            except Transient:
                if loop.time() + AWAY_S >= deadline or self.is_closing:
                    raise
                await asyncio.sleep(AWAY_S)
                continue
            remaining_s = deadline - loop.time()
            if status is None or status.outcome or remaining_s <= 0 or self.is_closing:
                return status
            event.clear()
            await self._wait_for_announcement(event, remaining_s)

    async def _wait_for_announcement(self, event: asyncio.Event, seconds: float) -> None:
        """Wait until a read of SQL is worthwhile: it costs a millisecond, and hundreds may wait.

        Does not wait while this process stops.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + min(seconds, POLL_S)
        connection = self._bus.connection
        while (remaining_s := end - loop.time()) > 0 and not (event.is_set() or self.is_closing):
            await _wait_within(event, min(remaining_s, CONNECTION_S))
            if connection is None or self._bus.connection != connection:
                return

    async def _look_up(self, tenant: str, fusion_id: str) -> FusionStatus | None:
        """Read a status from SQL. Callers during a read share the next one."""
        statuses = self._lookups[tenant]
        if fusion_id not in statuses:
            statuses[fusion_id] = asyncio.get_running_loop().create_future()
        status = statuses[fusion_id]
        # Who waits shares a look with all who wait, as each look is a transaction
        # (docs/decisions/0043).
        if self._lookup_task is None or self._lookup_task.done():
            self._lookup_task = asyncio.create_task(self._look_up_all(), name="ingest-look")
        # Shielded: a caller that is cancelled must not cancel it for the others.
        found_status = await asyncio.shield(status)
        if found_status and found_status.texts_deleted_at:
            raise TextsDeletedError(fusion_id)
        return found_status

    async def _look_up_all(self) -> None:
        # Outcomes are announced in groups: let the other clients of this group join.
        await asyncio.sleep(0)
        while self._lookups:
            tenant, pending = self._lookups.popitem()
            try:
                rows = await standings(self._store, tenant, list(pending))
            except Exception as exc:  # noqa: BLE001 - it belongs to those who wait
                for future in pending.values():
                    future.set_exception(exc)
                continue
            statuses = {status.fusion_id: status for status in rows}
            for fusion_id, future in pending.items():
                future.set_result(statuses.get(fusion_id))


async def _wait_within(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
