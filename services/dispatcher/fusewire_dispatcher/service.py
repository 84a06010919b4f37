"""The dispatcher as a service: wiring, start and stop."""

from datetime import UTC, datetime

from fusewire.bus_service import BusService
from fusewire.cancel import CancelledFusions
from fusewire.loops import PriorityLoop
from fusewire.settings import Settings
from fusewire.topology import DISPATCHER_PROMPTS, DISPATCHER_ROUND
from fusewire_dispatcher.handlers import Handlers
from fusewire_dispatcher.pools import build_catalogue

CONCURRENCY = 32
"""Prompts, and rounds, that are handled at once."""


class Dispatcher(BusService):
    """The dispatcher as a service."""

    name = "dispatcher"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._cancelled = CancelledFusions()
        catalogue = build_catalogue(settings)
        handlers = Handlers(self.bus, catalogue, lambda: datetime.now(UTC), self._cancelled)
        self.loops = [
            PriorityLoop(self.bus, DISPATCHER_PROMPTS, handlers.on_prompt, concurrency=CONCURRENCY),
            PriorityLoop(self.bus, [DISPATCHER_ROUND], handlers.on_round, concurrency=CONCURRENCY),
        ]

    async def start(self) -> None:
        """Connect, check the topology, listen for cancellations, and begin to pull."""
        await self.bus.connect()
        await self.bus.require(*DISPATCHER_PROMPTS, DISPATCHER_ROUND)
        await self._cancelled.listen(self.bus)
        for loop in self.loops:
            await loop.start()


def build(settings: Settings) -> Dispatcher:
    """Build the service: the entry point `fusewire.services`."""
    return Dispatcher(settings)
