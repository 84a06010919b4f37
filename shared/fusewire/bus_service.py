"""What the services on the bus have in common."""

import abc
import asyncio
from typing import Protocol

from fusewire.bus import Bus
from fusewire.http_server import App
from fusewire.settings import Settings
from fusewire.tasks import BackgroundTasks


class MessageLoop(Protocol):
    """What takes messages and handles them: a fetch loop, or a worker."""

    async def start(self) -> None:
        """Begin to take messages."""

    async def stop(self, drain_s: float) -> None:
        """Begin nothing more, and wait `drain_s` seconds at most for what runs."""

    def faults(self) -> list[str]:
        """Why it does no work any more; empty while it does."""


class BusService(abc.ABC):
    """A service that takes messages from the bus and has no HTTP interface of its own.

    It is a `fusewire.service.Service`. A subclass has a name, adds what takes messages to
    `loops`, and connects the bus and starts everything in `start`.

    Args:
        settings: the configuration.
        drain_s: seconds that running handlers may take to end; unset: `limits.drain_s`.
    """

    name: str

    def __init__(self, settings: Settings, *, drain_s: float | None = None) -> None:
        self.drain_s = settings.limits.drain_s if drain_s is None else drain_s
        self.bus = Bus(self.name, settings.nats, drain_s=settings.limits.drain_s)
        self.loops: list[MessageLoop] = []
        self.background = BackgroundTasks()

    @abc.abstractmethod
    async def start(self) -> None:
        """Connect and begin to work. Raises StartupError when it cannot."""

    def close(self) -> None:  # noqa: B027 - it may stay as it is
        """Do nothing: no client waits here."""

    async def drain(self) -> None:
        """Take no more messages, and let running handlers end."""
        await self.background.stop()
        await asyncio.gather(*(loop.stop(self.drain_s) for loop in self.loops))

    async def stop(self) -> None:
        """Drain, then disconnect."""
        await self.drain()
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
