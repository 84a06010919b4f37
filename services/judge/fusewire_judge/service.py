"""The judge as a service: wiring, start and stop."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import structlog

from fusewire.bus_service import BusService
from fusewire.errors import Transient
from fusewire.loops import BatchLoop
from fusewire.presence import Presence
from fusewire.settings import Pool, Settings
from fusewire.store import migrate
from fusewire.store.engine import Store
from fusewire.topology import JUDGE, JUDGE_DUE
from fusewire_judge.candidate_lookup import StoredCandidates
from fusewire_judge.handlers import Handlers
from fusewire_judge.learner import RoutedPool

log = structlog.get_logger(__name__)

BATCH = 64
"""The most messages that are handled in one transaction."""
AHEAD = 1024
"""Messages that may wait here, so that the urgent ones among them go first: those of as many lines
of batches as are in flight by default."""
SWEEP_EVERY_S = 1.0
LEARN_EVERY_S = 30.0


class Judge(BusService):
    """The judge as a service. Any number of replicas may run: each message goes to one of them."""

    name = "judge"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._store = Store(settings.database)
        self._lookup = StoredCandidates(self.bus, self._store)
        self._presence = Presence(self.name, self.bus, self._store, _now)
        self._handlers = Handlers(
            self.bus,
            self._store,
            _now,
            _configured_weights(settings),
            self._lookup.has_pending,
            routed_pools=_routed_pools(settings),
        )
        self.loops = [
            BatchLoop(self.bus, JUDGE, self._handlers.on_batch, batch=BATCH, ahead=AHEAD),
            BatchLoop(self.bus, JUDGE_DUE, self._handlers.on_due, batch=BATCH),
        ]

    async def start(self) -> None:
        """Check the schema, connect, check the topology, learn, and begin to pull and to sweep."""
        await migrate.check(self._store, wait_s=migrate.START_S)
        await self.bus.connect()
        await self.bus.require(JUDGE, JUDGE_DUE)
        await self._presence.start()
        # Before the first message: a plan that is taken without weights keeps none.
        await self._handlers.update_statistics()
        await self._lookup.start()
        for loop in self.loops:
            await loop.start()
        self.background.start("judge-statistics", self._learn())
        self.background.start("judge-sweep", self._sweep())

    async def stop(self) -> None:
        """Let running handlers end, and disconnect."""
        await self.drain()
        await self._presence.stop()
        await self.bus.stop()
        await self._store.close()

    def faults(self) -> list[str]:
        """See Service."""
        return super().faults() + self._presence.faults()

    def unready(self) -> list[str]:
        """See Service."""
        return super().unready() + self._store.unready()

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


def _configured_weights(settings: Settings) -> dict[str, dict[str, float]]:
    """Return the members' weights, by pool."""
    return {name: _member_weights(pool) for name, pool in settings.pools.items()}


def _member_weights(pool: Pool) -> dict[str, float]:
    return {member.name: member.weight for member in pool.members}


def _routed_pools(settings: Settings) -> list[RoutedPool]:
    """Return the pools whose members are chosen for each prompt."""
    return [
        RoutedPool(name, _models(pool), pool.route_loss_points / 100)
        for name, pool in settings.pools.items()
        if pool.route == "learned" and len(pool.members) > 1
    ]


def _models(pool: Pool) -> tuple[tuple[str, str], ...]:
    return tuple((member.name, member.model) for member in pool.members)


def _now() -> datetime:
    return datetime.now(UTC)


def build(settings: Settings) -> Judge:
    """Build the service: the entry point `fusewire.services`."""
    return Judge(settings)
