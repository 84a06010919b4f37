"""The edge worker's parts put together."""

import asyncio
from datetime import UTC, datetime

from fusewire.bus_service import BusService
from fusewire.errors import StartupError
from fusewire.settings import EdgeModel, Settings
from fusewire.worker import Worker
from fusewire_worker_edge.folder import ModelFolderError, verify
from fusewire_worker_edge.generate import EdgeGenerate

AHEAD = 1
"""Tasks to fetch per model beyond its slots, so that a free slot never waits for the bus."""


class WorkerEdge(BusService):
    """The edge worker as a service."""

    name = "worker-edge"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._models = {
            name: model for name, model in settings.models.items() if isinstance(model, EdgeModel)
        }

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

        await self.bus.connect()
        generate = EdgeGenerate(self._models, clock)
        task_limits = {name: model.slots + AHEAD for name, model in self._models.items()}
        worker = Worker(
            self.bus, generate, task_limits, tier="edge", clock=clock, on_cancel=generate.cancel
        )
        self.loops = [worker]
        await worker.start()


def build(settings: Settings) -> WorkerEdge:
    """The entry point `fusewire.services`."""
    return WorkerEdge(settings)
