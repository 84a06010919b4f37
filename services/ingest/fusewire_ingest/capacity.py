"""How full the broker's stores are: nothing is accepted for which there may be no room later.

A work queue that is full refuses what is published, and what was accepted then waits in SQL until there is room. With
answers it is worse: they are paid for by then. So the doors close while there is room for what is inside.
"""

import asyncio
from collections.abc import Sequence

import structlog
from nats.errors import Error as NatsError
from nats.js.errors import APIError

from fusewire import provision, telemetry
from fusewire.bus import Bus
from fusewire.errors import Transient
from fusewire.topology import ALARM, STORES

log = structlog.get_logger(__name__)

CLOSED = 0.9
"""The share of a stream's limit at which nothing more is accepted."""
LOOK_EVERY_S = 5.0
RETRY_AFTER_S = 10.0


class StoreCapacity:
    """Looks how full each store is, and refuses what would fill it."""

    def __init__(self, bus: Bus, stores: Sequence[str] = STORES) -> None:
        self._bus = bus
        self._used = dict.fromkeys(stores, 0.0)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._run(), name="ingest-room")

    async def stop(self) -> None:
        """End."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def faults(self) -> list[str]:
        """Why it no longer looks; empty while it does."""
        return ["ingest-room has ended"] if self._task and self._task.done() else []

    def check(self) -> None:
        """Raises Transient where nothing may be accepted now."""
        name, used = max(self._used.items(), key=lambda item: item[1])
        if used >= CLOSED:
            raise Transient(f"the store {name} is {used:.0%} full", retry_after_s=RETRY_AFTER_S)

    async def look(self) -> None:
        """Ask the broker. What cannot be read stays as it was: a broker that is away closes no intake."""
        for name, before in self._used.items():
            if not self._bus.is_connected:
                return
            try:
                used = await provision.stream_usage(self._bus.js, name)
            except (APIError, NatsError, TimeoutError, OSError):
                continue
            self._used[name] = used
            telemetry.STORE_USED.labels(name).set(round(used, 4))
            for share, event in ((CLOSED, "ingest.closed"), (ALARM, "ingest.store_fills")):
                if used >= share > before:
                    log.warning(event, store=name, used=round(used, 3))
                    break
            if before >= CLOSED > used:
                log.info("ingest.open_again", store=name, used=round(used, 3))

    async def _run(self) -> None:
        while True:
            if self._bus.is_connected:
                await self.look()
            await asyncio.sleep(LOOK_EVERY_S)
