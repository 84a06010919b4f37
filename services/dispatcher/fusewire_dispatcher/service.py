"""The dispatcher as a service: wiring, start and stop."""

import asyncio
from datetime import UTC, datetime
from itertools import chain

from fusewire.bus import Bus
from fusewire.cancel import CancelledFusions
from fusewire.loops import PriorityLoop
from fusewire.service import App
from fusewire.settings import Settings
from fusewire.topology import DISPATCHER_PROMPTS, DISPATCHER_ROUND
from fusewire_dispatcher.handlers import Handlers
from fusewire_dispatcher.pools import build_catalogue

CONCURRENCY = 32
"""Prompts, and rounds, that are handled at once."""


class Dispatcher:
    """The dispatcher as a service."""

    name = "dispatcher"

    def __init__(self, settings: Settings) -> None:
        self.drain_s = settings.limits.drain_s
        self._bus = Bus(self.name, settings.nats, drain_s=self.drain_s)
        self._cancelled = CancelledFusions()
        catalogue = build_catalogue(settings)
        handlers = Handlers(self._bus, catalogue, lambda: datetime.now(UTC), self._cancelled)
        self._loops = [
            PriorityLoop(
                self._bus, DISPATCHER_PROMPTS, handlers.on_prompt, concurrency=CONCURRENCY
            ),
            PriorityLoop(self._bus, [DISPATCHER_ROUND], handlers.on_round, concurrency=CONCURRENCY),
        ]

    async def start(self) -> None:
        """Connect, check the topology, listen for cancellations, and begin to pull."""
        await self._bus.connect()
        await self._bus.require(*DISPATCHER_PROMPTS, DISPATCHER_ROUND)
        await self._cancelled.listen(self._bus)
        for loop in self._loops:
            await loop.start()

    def close(self) -> None:
        """Do nothing: no client waits here."""

    async def stop(self) -> None:
        """Let running handlers end, and disconnect."""
        await asyncio.gather(*(loop.stop(self.drain_s) for loop in self._loops))
        await self._bus.stop()

    def faults(self) -> list[str]:
        """See Service."""
        loop_faults = chain.from_iterable(loop.faults() for loop in self._loops)
        return [*self._bus.faults(), *loop_faults]

    def unready(self) -> list[str]:
        """See Service."""
        return self._bus.unready()

    def app(self) -> App | None:
        """Return None: it has no HTTP interface of its own."""
        return None


def build(settings: Settings) -> Dispatcher:
    """Build the service: the entry point `fusewire.services`."""
    return Dispatcher(settings)
