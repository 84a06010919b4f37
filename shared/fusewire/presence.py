"""One database, one broker: detects processes that use the database with another broker's store."""

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from datetime import datetime

import structlog

from fusewire.bus import Bus, fault
from fusewire.errors import StartupError, Transient
from fusewire.store.engine import Store
from fusewire.store.processes import Processes
from fusewire.tasks import BackgroundTasks

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 2.0
GONE_S = 5.0
"""A process whose row is older than this has ended, or will find its row removed."""
ALIVE_LOOKS = 3
"""A process that renewed its row this often is alive.

More than once, as a replica may take a moment to notice that its broker's store is new.
"""
_FOREIGN = "another Fusewire, with another NATS, works on this database"


class Presence:
    """Publishes in SQL that this process works here, and with which broker's store.

    Two stacks with a broker each on one database would publish each other's prompts, and pay for
    them twice (docs/decisions/0044).
    """

    def __init__(self, service: str, bus: Bus, store: Store, clock: Callable[[], datetime]) -> None:
        self._service = service
        self._bus = bus
        self._processes = Processes(store, clock)
        self._me = secrets.token_hex(16)
        self._foreign_processes: dict[str, tuple[datetime, int]] = {}
        """Processes with another store, by id: when each was last seen, and how often it was
        renewed."""
        self._is_listed = False
        self._background = BackgroundTasks()

    async def start(self) -> None:
        """Look for processes with another store; if there are any, wait until they have ended.

        This process adds its own row only then, as it must not look like one that works.

        Raises:
            StartupError: such a process is alive, or the broker was not provisioned.
        """
        await self._bus.store_id(afresh=True)
        await self._look()
        if self._foreign_processes:
            log.warning("presence.other_store", processes=len(self._foreign_processes))
        while self._foreign_processes:
            await asyncio.sleep(LOOK_EVERY_S)
            await self._look()
            if self.faults():
                raise StartupError(
                    _FOREIGN, "stop that one, or give this one a database of its own"
                )
        await self._processes.add(self._me, self._service, self._bus.last_store_id)
        self._is_listed = True
        self._background.start(f"{self._service}-presence", self._look_on())

    async def stop(self) -> None:
        """Remove this process's row."""
        if not self._is_listed:
            return
        await self._background.stop()
        with contextlib.suppress(Transient):
            await self._processes.remove([self._me])

    def faults(self) -> list[str]:
        """Whether somebody else has taken the database."""
        reasons = []
        if any(renewals >= ALIVE_LOOKS for _, renewals in self._foreign_processes.values()):
            reasons.append(_FOREIGN)
        return reasons + self._background.faults()

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self._bus.store_id(afresh=True)
            except (Transient, StartupError):
                log.debug("presence.broker_away")
            try:
                await self._renew()
                await self._look()
            except Transient:
                log.debug("presence.database_away")
            except Exception as exc:  # noqa: BLE001 - one look that failed says nothing
                log.error("presence.broken", fault=fault(exc))  # noqa: TRY400 - no text of its

    async def _renew(self) -> None:
        """Renew this process's row; add it again if it was removed and no other store is used."""
        if await self._processes.renew(self._me, self._bus.last_store_id):
            return
        if not await self._processes.with_another_store(self._bus.last_store_id):
            await self._processes.add(self._me, self._service, self._bus.last_store_id)

    async def _look(self) -> None:
        processes = await self._processes.with_another_store(self._bus.last_store_id)
        ended_ids = [process.process_id for process in processes if process.unseen_s > GONE_S]
        if ended_ids:
            await self._processes.remove(ended_ids)
        before, self._foreign_processes = self._foreign_processes, {}
        for process in processes:
            if process.process_id in ended_ids:
                continue
            seen_at, renewals = before.get(process.process_id, (process.seen_at, 0))
            # A row alone tells nothing: its process may just have ended.
            renewals += process.seen_at != seen_at
            self._foreign_processes[process.process_id] = process.seen_at, renewals
