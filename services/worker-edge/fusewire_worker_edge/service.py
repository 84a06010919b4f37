"""The edge worker's parts put together."""

import asyncio
from datetime import UTC, datetime

from fusewire.bus import Bus
from fusewire.errors import StartupError
from fusewire.service import App
from fusewire.settings import EdgeModel, Settings
from fusewire.worker import Worker
from fusewire_worker_edge.folder import ModelFolderError, verify
from fusewire_worker_edge.generate import EdgeGenerate

AHEAD = 1
"""Tasks to fetch per model beyond its slots, so that a free slot never waits for the bus."""


class WorkerEdge:
    """The edge worker as a service."""

    name = "worker-edge"

    def __init__(self, settings: Settings) -> None:
        self.drain_s = settings.limits.drain_s
        self._models = {
            name: model for name, model in settings.models.items() if isinstance(model, EdgeModel)
        }
        self._bus = Bus(self.name, settings.nats, drain_s=self.drain_s)
        self._worker: Worker | None = None

    async def start(self) -> None:
        """Verify every model's folder, connect, and begin to take tasks.

        Raises:
            StartupError: a model folder cannot be used.
        """
        for folder in sorted({model.path for model in self._models.values()}):
            try:
                await asyncio.to_thread(verify, folder)
            except ModelFolderError as exc:
                raise StartupError(
                    f"the model folder {exc.folder} cannot be used: {exc.what}", exc.mend
                ) from None

        def clock() -> datetime:
            return datetime.now(UTC)

        await self._bus.connect()
        generate = EdgeGenerate(self._models, clock)
        task_limits = {name: model.slots + AHEAD for name, model in self._models.items()}
        self._worker = Worker(
            self._bus, generate, task_limits, tier="edge", clock=clock, on_cancel=generate.cancel
        )
        await self._worker.start()

    def close(self) -> None:
        """See Service: there are no open connections of clients to close."""

    async def stop(self) -> None:
        """Finish the tasks in hand, for at most `drain_s` seconds, then disconnect."""
        if self._worker:
            await self._worker.stop(self.drain_s)
        await self._bus.stop()

    def faults(self) -> list[str]:
        """See Service."""
        return self._bus.faults() + (self._worker.faults() if self._worker else [])

    def unready(self) -> list[str]:
        """See Service."""
        return self._bus.unready()

    def app(self) -> App | None:
        """None: the service has no HTTP interface of its own."""
        return None


def build(settings: Settings) -> WorkerEdge:
    """The entry point `fusewire.services`."""
    return WorkerEdge(settings)
