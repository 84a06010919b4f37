"""The judge as a service: wiring, start and stop."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from itertools import chain

import structlog

from fusewire.bus import Bus
from fusewire.errors import Transient
from fusewire.loops import BatchLoop
from fusewire.presence import Presence
from fusewire.service import App
from fusewire.settings import Settings
from fusewire.store import migrate
from fusewire.store.engine import Store
from fusewire.topology import JUDGE, JUDGE_DUE
from fusewire_judge.candidate_lookup import StoredCandidates
from fusewire_judge.handlers import Handlers

log = structlog.get_logger(__name__)

BATCH = 64
"""The most messages that are handled in one transaction."""
SWEEP_EVERY_S = 1.0
LEARN_EVERY_S = 30.0


class Judge:
    """The judge as a service. Any number of replicas may run: each message goes to one of them."""

    name = "judge"

    def __init__(self, settings: Settings) -> None:
        self.drain_s = settings.limits.drain_s
        self._bus = Bus(self.name, settings.nats, drain_s=self.drain_s)
        self._store = Store(settings.database)
        self._lookup = StoredCandidates(self._bus, self._store)
        self._presence = Presence(self.name, self._bus, self._store, _now)
        self._handlers = Handlers(
            self._bus, self._store, _now, settings.pools, self._lookup.has_pending
        )
        self._loops = [
            BatchLoop(self._bus, JUDGE, self._handlers.on_batch, batch=BATCH),
            BatchLoop(self._bus, JUDGE_DUE, self._handlers.on_due, batch=BATCH),
        ]
        self._sweeper: asyncio.Task[None] | None = None
        self._learner: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Check the schema, connect, check the topology, learn, and begin to pull and to sweep."""
        await migrate.check(self._store, wait_s=migrate.START_S)
        await self._bus.connect()
        await self._bus.require(JUDGE, JUDGE_DUE)
        await self._presence.start()
        await self._handlers.update_statistics()
        await self._lookup.start()
        for loop in self._loops:
            await loop.start()
        self._learner = asyncio.create_task(self._learn(), name="judge-memory")
        self._sweeper = asyncio.create_task(self._sweep(), name="judge-sweep")

    def close(self) -> None:
        """Do nothing: no client waits here."""

    async def stop(self) -> None:
        """Let running handlers end, and disconnect."""
        for task in (self._sweeper, self._learner):
            if task:
                task.cancel()
        await asyncio.gather(*(loop.stop(self.drain_s) for loop in self._loops))
        await self._presence.stop()
        await self._bus.stop()
        await self._store.close()

    def faults(self) -> list[str]:
        """See Service."""
        tasks = (self._sweeper, self._learner)
        return [
            *self._bus.faults(),
            *self._presence.faults(),
            *chain.from_iterable(loop.faults() for loop in self._loops),
            *(f"{task.get_name()} has ended" for task in tasks if task and task.done()),
        ]

    def unready(self) -> list[str]:
        """See Service."""
        return self._bus.unready() + self._store.unready()

    def app(self) -> App | None:
        """Return None: it has no HTTP interface of its own."""
        return None

    async def _learn(self) -> None:
        """Renew the statistics, for ever."""
        while True:
            await asyncio.sleep(LEARN_EVERY_S)
            try:
                await self._handlers.update_statistics()
            except Transient as exc:
                log.warning("judge.memory_failed", fault=str(exc))
            except Exception:
                # Weights that are no longer renewed harm less than a judge that has ended.
                log.exception("judge.memory_broken")

    async def _sweep(self) -> None:
        """Publish again what may be lost, and decide what is due, for ever."""
        while True:
            # Each by itself: while the broker is away deadlines are kept all the same.
            await self._repeat("publish_again", self._handlers.publish_again)
            await self._repeat("sweep", self._handlers.sweep)
            await asyncio.sleep(SWEEP_EVERY_S)

    @staticmethod
    async def _repeat(name: str, step: Callable[[], Awaitable[int]]) -> None:
        """Take a step of the sweep until nothing is left to do, or it fails."""
        try:
            while await step():
                pass
        except Transient as exc:
            log.warning("judge.sweep_failed", what=name, fault=str(exc))
        except Exception:
            # A sweep that ended would leave fusions undecided in silence.
            log.exception("judge.sweep_broken", what=name)


def _now() -> datetime:
    return datetime.now(UTC)


def build(settings: Settings) -> Judge:
    """Build the service: the entry point `fusewire.services`."""
    return Judge(settings)
