"""Usage of the broker's stores: nothing is accepted for which there may be no room later.

A full work queue refuses what is published, and accepted prompts then wait in SQL until there is
room. For answers that is worse, since they are paid for by then. So ingest stops accepting while
there is still room for the fusions that run.
"""

import asyncio
from collections.abc import Sequence

import structlog
from nats.errors import Error as NatsError
from nats.js.errors import APIError

from fusewire import metrics, provision
from fusewire.bus import Bus
from fusewire.errors import Transient
from fusewire.tasks import BackgroundTasks
from fusewire.topology import ALARM, STORES

log = structlog.get_logger(__name__)

CLOSED = 0.9
"""Nothing more is accepted when a stream has used this share of its limit."""
LOOK_EVERY_S = 5.0
RETRY_AFTER_S = 10.0


class StoreCapacity:
    """Measures the usage of each store, and refuses prompts while one is nearly full."""

    def __init__(self, bus: Bus, stores: Sequence[str] = STORES) -> None:
        self._bus = bus
        self._usage_by_store = dict.fromkeys(stores, 0.0)
        self._background = BackgroundTasks()

    def start(self) -> None:
        """Start to measure every `LOOK_EVERY_S`."""
        self._background.start("ingest-capacity", self._run())

    async def stop(self) -> None:
        """Stop measuring."""
        await self._background.stop()

    def faults(self) -> list[str]:
        """Explain why usage is no longer measured; empty while it is."""
        return self._background.faults()

    def check(self) -> None:
        """Raise Transient if nothing may be accepted now."""
        name, usage = max(self._usage_by_store.items(), key=lambda store: store[1])
        if usage >= CLOSED:
            raise Transient(f"the store {name} is {usage:.0%} full", retry_after_s=RETRY_AFTER_S)

    async def look(self) -> None:
        """Ask the broker for the usage of each store.

        A usage that cannot be read stays as it was: an unreachable broker closes no intake.
        """
        for name, usage_before in self._usage_by_store.items():
            if not self._bus.is_connected:
                return
            try:
                usage = await provision.stream_usage(self._bus.js, name)
            except (APIError, NatsError, TimeoutError, OSError):
                continue
            self._usage_by_store[name] = usage.share
            metrics.STORE_USED.labels(name).set(round(usage.share, 4))
            metrics.STREAM_MESSAGES.labels(name).set(usage.messages)
            _log_crossing(name, usage_before, usage.share)

    async def _run(self) -> None:
        while True:
            if self._bus.is_connected:
                await self.look()
            await asyncio.sleep(LOOK_EVERY_S)


def _log_crossing(store: str, usage_before: float, usage: float) -> None:
    """Log the highest threshold that a store's usage has crossed since the last look."""
    if usage >= CLOSED > usage_before:
        log.warning("ingest.closed", store=store, used=round(usage, 3))
    elif usage >= ALARM > usage_before:
        log.warning("ingest.store_fills", store=store, used=round(usage, 3))
    if usage_before >= CLOSED > usage:
        log.info("ingest.open_again", store=store, used=round(usage, 3))
