"""Wiring."""

import asyncio
from datetime import UTC, datetime

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
SWEEP_EVERY_S = 1.0
REMEMBER_EVERY_S = 30.0


class Judge:
    """The judge as a service. Any number of replicas may run: each message goes to one of them."""

    name = "judge"

    def __init__(self, settings: Settings) -> None:
        self.drain_s = settings.limits.drain_s
        self._bus = Bus(self.name, settings.nats, drain_s=self.drain_s)
        self._store = Store(settings.database)
        self._stored = StoredCandidates(self._bus, self._store)
        self._presence = Presence(self.name, self._bus, self._store, _now)
        self._handlers = Handlers(self._bus, self._store, _now, settings.pools, self._stored.waits)
        self._loops = [
            BatchLoop(self._bus, JUDGE, self._handlers.on_batch, batch=BATCH),
            BatchLoop(self._bus, JUDGE_DUE, self._handlers.on_due, batch=BATCH),
        ]
        self._sweeper: asyncio.Task[None] | None = None
        self._rememberer: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Check the schema, connect, check the topology, begin."""
        await migrate.check(self._store, wait_s=migrate.START_S)
        await self._bus.connect()
        await self._bus.require(JUDGE, JUDGE_DUE)
        await self._presence.start()
        await self._handlers.remember()
        await self._stored.start()
        for loop in self._loops:
            await loop.start()
        self._rememberer = asyncio.create_task(self._remember(), name="judge-memory")
        self._sweeper = asyncio.create_task(self._sweep(), name="judge-sweep")

    def close(self) -> None:
        """Nobody waits here."""

    async def stop(self) -> None:
        """Drain."""
        for task in (self._sweeper, self._rememberer):
            if task:
                task.cancel()
        await asyncio.gather(*(loop.stop(self.drain_s) for loop in self._loops))
        await self._presence.stop()
        await self._bus.stop()
        await self._store.close()

    def faults(self) -> list[str]:
        """See Service."""
        found = [fault for loop in self._loops for fault in loop.faults()]
        found += [
            f"{t.get_name()} has ended" for t in (self._sweeper, self._rememberer) if t and t.done()
        ]
        return self._bus.faults() + self._presence.faults() + found

    def unready(self) -> list[str]:
        """See Service."""
        return self._bus.unready() + self._store.unready()

    def app(self) -> App | None:
        """It has no HTTP interface of its own."""
        return None

    async def _remember(self) -> None:
        while True:
            await asyncio.sleep(REMEMBER_EVERY_S)
            try:
                await self._handlers.remember()
            except Transient as exc:
                log.warning("judge.memory_failed", fault=str(exc))
            except Exception:
                # Weights that are no longer renewed harm less than a judge that has ended.
                log.exception("judge.memory_broken")

    async def _sweep(self) -> None:
        while True:
            # Each by itself: while the broker is away deadlines are kept all the same.
            for step in (self._handlers.publish_again, self._handlers.sweep):
                try:
                    while await step():
                        pass
                except Transient as exc:
                    log.warning("judge.sweep_failed", what=step.__name__, fault=str(exc))
                except Exception:
                    # A sweep that ended would leave fusions undecided in silence.
                    log.exception("judge.sweep_broken", what=step.__name__)
            await asyncio.sleep(SWEEP_EVERY_S)


def _now() -> datetime:
    return datetime.now(UTC)


def build(settings: Settings) -> Judge:
    """The entry point `fusewire.services`."""
    return Judge(settings)
