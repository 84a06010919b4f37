"""The edge worker's parts put together."""

import asyncio
from datetime import UTC, datetime

from fusewire.bus_service import BusService
from fusewire.errors import StartupError
from fusewire.settings import EdgeModel, Settings
from fusewire.topology import FORWARDER
from fusewire.worker import Worker
from fusewire_worker_edge.engine.options import library_problem
from fusewire_worker_edge.folder import ModelFolderError, verify
from fusewire_worker_edge.generate import EdgeGenerate
from fusewire_worker_edge.outbox import Forwarder, Outbox


class WorkerEdge(BusService):
    """The edge worker as a service."""

    name = "worker-edge"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._worker: Worker | None = None
        self._models = {
            name: model for name, model in settings.models.items() if isinstance(model, EdgeModel)
        }

    async def start(self) -> None:
        """Verify every model's folder, connect, and begin to take tasks.

        Raises:
            StartupError: a model folder cannot be used, or an engine's library is not installed.
        """
        self._check_libraries()
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
        # No more than can begin at once: another worker may be free for it. Fetching the next one
        # takes 2 ms beside a broker, of answers that take seconds.
        task_limits = {name: model.slots for name, model in self._models.items()}
        outbox = Outbox(self.bus) if self.bus.site else None
        worker = Worker(
            self.bus,
            generate,
            task_limits,
            tier="edge",
            clock=clock,
            on_cancel=generate.cancel,
            outbox=outbox,
        )
        self.loops, self._worker = [worker], worker
        if outbox:
            await self.bus.require(FORWARDER)
            self.loops.append(Forwarder(self.bus).loop())
        for loop in self.loops:
            await loop.start()

    def _check_libraries(self) -> None:
        for name, model in self._models.items():
            if problem := library_problem(model.engine):
                what, mend = problem
                raise StartupError(f"models.{name}: {what}", mend)

    def unready(self) -> list[str]:
        """Why it should get no work now."""
        reasons = super().unready()
        if self._worker and self._worker.is_cut_off():
            reasons.append("the hub is out of reach; answers wait in the outbox")
        return reasons


def build(settings: Settings) -> WorkerEdge:
    """The entry point `fusewire.services`."""
    return WorkerEdge(settings)
