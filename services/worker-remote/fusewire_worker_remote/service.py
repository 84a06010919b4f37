"""The service: builds the worker for hosted models out of its parts."""

import asyncio
import os
import random
import socket
from datetime import UTC, datetime

from fusewire.bus_service import BusService
from fusewire.candidate_lookup import JudgeLookup
from fusewire.settings import RemoteModel, Settings
from fusewire.topology import BLOB_STORE, DIALECT_BUCKET, LEDGER_BUCKET
from fusewire.worker import Worker
from fusewire_worker_remote.dialects import KvDialects
from fusewire_worker_remote.generate import RemoteGenerate
from fusewire_worker_remote.ledger_kv import KvLedger


class WorkerRemote(BusService):
    """The worker for hosted models as a service."""

    name = "worker-remote"

    def __init__(self, settings: Settings) -> None:
        limits = settings.limits
        super().__init__(settings, drain_s=max(limits.drain_s, limits.call_drain_s))
        self._models = {
            name: model for name, model in settings.models.items() if isinstance(model, RemoteModel)
        }
        self._pools = settings.pools

    async def start(self) -> None:
        """Connect, open the ledger, begin to take tasks."""

        def clock() -> datetime:
            return datetime.now(UTC)

        await self.bus.connect()
        dialects = KvDialects(await self.bus.key_value(DIALECT_BUCKET))
        await dialects.load(list(self._models.values()))
        generate = RemoteGenerate(
            self._models,
            KvLedger(await self.bus.key_value(LEDGER_BUCKET)),
            dialects,
            lookup=JudgeLookup(self.bus),
            clock=clock,
            sleep=asyncio.sleep,
            rng=random.random,
            images=self.bus.blobs(BLOB_STORE),
            worker_id=f"{socket.gethostname()}-{os.getpid()}",
        )
        # As many rounds wait in line as the largest model has slots; each waits there until one
        # of its calls begins (docs/decisions/0041).
        widest = max((model.max_concurrency for model in self._models.values()), default=0)
        hands = dict.fromkeys(self._pools, widest) if self._models else {}
        worker = Worker(self.bus, generate, hands, tier="remote", clock=clock)
        self.loops = [worker]
        await worker.start()


def build(settings: Settings) -> WorkerRemote:
    """Build the service; the entry point `fusewire.services`."""
    return WorkerRemote(settings)
