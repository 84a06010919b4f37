"""Clients that wait for their outcome."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable

from nats.aio.msg import Msg

from fusewire.bus import Bus
from fusewire.errors import Transient
from fusewire.store.engine import Store
from fusewire.store.queries import FusionStatus, standings

POLL_S = 10.0
"""How long an announcement that the judge could not make can delay a waiting client."""
AWAY_S = 0.5
"""How long a database that is away is left alone, while there is time."""
CONNECTION_S = 2.0
"""How soon it is noticed that the connection was lost, and announcements with it."""


class Outcomes:
    """Wakes those who wait when the judge announces an outcome; the text always comes from SQL."""

    def __init__(
        self, bus: Bus, store: Store, announced: Callable[[], None] = lambda: None
    ) -> None:
        self._bus = bus
        self._heard = announced
        self._store = store
        self._asked: defaultdict[str, dict[str, asyncio.Future[FusionStatus | None]]] = defaultdict(
            dict
        )
        """By tenant and fusion: who is about to be told from SQL."""
        self._looking: asyncio.Task[None] | None = None
        self._events: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self.is_closing = False
        """Whether nobody is let wait any more, because this process stops."""

    async def start(self) -> None:
        """Listen to the announcements (a core subscription: losing one costs time, not the outcome)."""
        await self._bus.client.subscribe("fw.outcome.*.*", cb=self._announced)

    def close(self) -> None:
        """Let those who wait go, with what there is."""
        self.is_closing = True
        for events in list(self._events.values()):
            for event in events:
                event.set()

    async def _announced(self, msg: Msg) -> None:
        self._heard()
        for event in self._events.get(msg.subject.rpartition(".")[2], ()):
            event.set()

    async def get(
        self, tenant: str, fusion_id: str, wait_s: float = 0, *, just_begun: bool = False
    ) -> FusionStatus | None:
        """Where a fusion stands, after waiting up to `wait_s` for its end; None if there is none of that id.

        Args:
            tenant: whose it must be.
            fusion_id: which.
            wait_s: how long to wait for its end.
            just_begun: it was accepted a moment ago, so the first look is saved.

        Raises:
            Transient: the database is still away at the end.
        """
        if wait_s <= 0:
            return await self._look(tenant, fusion_id)
        event = asyncio.Event()
        self._events[fusion_id].add(event)
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        try:
            if just_begun:
                await self._announcement(event, wait_s)
            while True:
                try:
                    found = await self._look(tenant, fusion_id)
                except Transient:
                    if loop.time() + AWAY_S >= until or self.is_closing:
                        raise
                    await asyncio.sleep(AWAY_S)
                    continue
                left = until - loop.time()
                if found is None or found.outcome or left <= 0 or self.is_closing:
                    return found
                event.clear()
                await self._announcement(event, left)
        finally:
            self._events[fusion_id].discard(event)
            if not self._events[fusion_id]:
                del self._events[fusion_id]

    async def _announcement(self, event: asyncio.Event, seconds: float) -> None:
        """Wait until it is worth a look at SQL: each costs a millisecond, and hundreds may wait.

        Who comes when this process stops already does not wait.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + min(seconds, POLL_S)
        connection = self._bus.connection
        while (left := end - loop.time()) > 0 and not (event.is_set() or self.is_closing):
            await _within(event, min(left, CONNECTION_S))
            if connection is None or self._bus.connection != connection:
                return

    async def _look(self, tenant: str, fusion_id: str) -> FusionStatus | None:
        """Where it stands by SQL. Those who ask while another look is under way share the next one."""
        asked = self._asked[tenant]
        if fusion_id not in asked:
            asked[fusion_id] = asyncio.get_running_loop().create_future()
        found = asked[fusion_id]
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_for_all(), name="ingest-look")
        return await asyncio.shield(found)

    async def _look_for_all(self) -> None:
        # Outcomes are announced in groups.
        await asyncio.sleep(0)
        while self._asked:
            tenant, asked = self._asked.popitem()
            try:
                found = {
                    one.fusion_id: one for one in await standings(self._store, tenant, list(asked))
                }
            except Exception as exc:  # noqa: BLE001 - it belongs to those who wait
                for waiting in asked.values():
                    waiting.set_exception(exc)
                continue
            for fusion_id, waiting in asked.items():
                waiting.set_result(found.get(fusion_id))


async def _within(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
