"""The service: builds the worker for hosted models out of its parts."""

import asyncio
import os
import random
import socket
from datetime import UTC, datetime

from fusewire.bus import Bus
from fusewire.service import App
from fusewire.settings import RemoteModel, Settings
from fusewire.topology import BLOB_STORE, DIALECT_BUCKET, LEDGER_BUCKET
from fusewire.worker import Worker
from fusewire_worker_remote.candidate_lookup import JudgeLookup
from fusewire_worker_remote.dialects import KvDialects
from fusewire_worker_remote.generate import RemoteGenerate
from fusewire_worker_remote.ledger_kv import KvLedger


class WorkerRemote:
    """The worker for hosted models as a service."""

    name = "worker-remote"

    def __init__(self, settings: Settings) -> None:
        self.drain_s = max(settings.limits.drain_s, settings.limits.call_drain_s)
        self._models = {
            name: model for name, model in settings.models.items() if isinstance(model, RemoteModel)
        }
        self._pools = settings.pools
        self._bus = Bus(self.name, settings.nats, drain_s=settings.limits.drain_s)
        self._worker: Worker | None = None

    async def start(self) -> None:
        """Connect, open the ledger, begin to take tasks."""

        def clock() -> datetime:
            return datetime.now(UTC)

        await self._bus.connect()
        dialects = KvDialects(await self._bus.key_value(DIALECT_BUCKET))
        await dialects.load(list(self._models.values()))
        generate = RemoteGenerate(
            self._models,
            KvLedger(await self._bus.key_value(LEDGER_BUCKET)),
            dialects,
            lookup=JudgeLookup(self._bus),
            clock=clock,
            sleep=asyncio.sleep,
            rng=random.random,
            images=self._bus.blobs(BLOB_STORE),
            worker_id=f"{socket.gethostname()}-{os.getpid()}",
        )
        # As many rounds wait in line as the largest model has slots; each waits there until one
        # of its calls begins.
        widest = max((model.max_concurrency for model in self._models.values()), default=0)
        hands = dict.fromkeys(self._pools, widest) if self._models else {}
        self._worker = Worker(self._bus, generate, hands, tier="remote", clock=clock)
        await self._worker.start()

    def close(self) -> None:
        """Do nothing: no client waits here."""

    async def stop(self) -> None:
        """Finish the calls under way within the drain time, then disconnect."""
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
        """Return None: the service has no HTTP interface of its own."""
        return None


def build(settings: Settings) -> WorkerRemote:
    """Build the service; the entry point `fusewire.services`."""
    return WorkerRemote(settings)
