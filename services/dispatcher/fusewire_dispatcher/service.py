"""Wiring."""

import asyncio
from datetime import UTC, datetime

from fusewire.bus import Bus
from fusewire.cancel import CancelledFusions
from fusewire.loops import PriorityLoop
from fusewire.service import App
from fusewire.settings import Settings
from fusewire.topology import DISPATCHER_PROMPTS, DISPATCHER_ROUND
from fusewire_dispatcher.handlers import Handlers
from fusewire_dispatcher.pools import book

CONCURRENCY = 32


class Dispatcher:
    """The dispatcher as a service."""

    name = "dispatcher"

    def __init__(self, settings: Settings) -> None:
        self.drain_s = settings.limits.drain_s
        self._bus = Bus(self.name, settings.nats, drain_s=self.drain_s)
        self._cancelled = CancelledFusions()
        handlers = Handlers(self._bus, book(settings), lambda: datetime.now(UTC), self._cancelled)
        self._loops = [
            PriorityLoop(
                self._bus, DISPATCHER_PROMPTS, handlers.on_prompt, concurrency=CONCURRENCY
            ),
            PriorityLoop(self._bus, [DISPATCHER_ROUND], handlers.on_round, concurrency=CONCURRENCY),
        ]

    async def start(self) -> None:
        """Connect, check the topology, listen for what is cancelled, begin."""
        await self._bus.connect()
        await self._bus.require(*DISPATCHER_PROMPTS, DISPATCHER_ROUND)
        await self._cancelled.listen(self._bus)
        for loop in self._loops:
            await loop.start()

    def close(self) -> None:
        """Nobody waits here."""

    async def stop(self) -> None:
        """Drain."""
        await asyncio.gather(*(loop.stop(self.drain_s) for loop in self._loops))
        await self._bus.stop()

    def faults(self) -> list[str]:
        """See Service."""
        return self._bus.faults() + [fault for loop in self._loops for fault in loop.faults()]

    def unready(self) -> list[str]:
        """See Service."""
        return self._bus.unready()

    def app(self) -> App | None:
        """It has no HTTP interface of its own."""
        return None


def build(settings: Settings) -> Dispatcher:
    """The entry point `fusewire.services`."""
    return Dispatcher(settings)
