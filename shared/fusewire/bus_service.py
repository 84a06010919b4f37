"""What the services on the bus have in common."""

import asyncio
from typing import Protocol

from fusewire.bus import Bus
from fusewire.service import App
from fusewire.settings import Settings
from fusewire.tasks import BackgroundTasks


class MessageLoop(Protocol):
    """A loop or worker that lets what it has begun end."""

    async def stop(self, drain_s: float) -> None:
        """Begin nothing more, and wait `drain_s` seconds at most for what runs."""

    def faults(self) -> list[str]:
        """Why it does no work any more; empty while it does."""


class BusService:
    """A service that takes messages from the bus and has no HTTP interface of its own.

    A subclass has a `name` and a `start`, which connects the bus, starts loops and adds them to `loops`.
    Implements `fusewire.service.Service`.

    Args:
        settings: the configuration.
        drain_s: seconds that its loops may take to end; those of the bus where it is not given.
    """

    name: str

    def __init__(self, settings: Settings, *, drain_s: float | None = None) -> None:
        self.drain_s = settings.limits.drain_s if drain_s is None else drain_s
        self.bus = Bus(self.name, settings.nats, drain_s=settings.limits.drain_s)
        self.loops: list[MessageLoop] = []
        self.background = BackgroundTasks()

    def close(self) -> None:
        """Nobody waits here."""

    async def stop(self) -> None:
        """Drain."""
        await self.background.stop()
        await asyncio.gather(*(loop.stop(self.drain_s) for loop in self.loops))
        await self.bus.stop()

    def faults(self) -> list[str]:
        """Why the process should be restarted."""
        faults = self.bus.faults() + self.background.faults()
        for loop in self.loops:
            faults += loop.faults()
        return faults

    def unready(self) -> list[str]:
        """Why it should get no work now."""
        return self.bus.unready()

    def app(self) -> App | None:
        """None: it has no HTTP interface of its own."""
        return None
