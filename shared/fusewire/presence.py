"""One database, one broker: what works on a database with another broker's store is noticed, and refused."""

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

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 2.0
GONE_S = 5.0
"""A process that was not seen for so long has ended, or finds out that it was taken for one that has."""
ALIVE_LOOKS = 3
"""One that was seen again so often lives. A replica may take a moment to notice that its broker's store is new."""
_FOREIGN = "another Fusewire, with another NATS, works on this database"


class Presence:
    """Tells others that this process works here, and with which broker's store.

    Two stacks with a broker each on one database would publish each other's prompts, and pay for them twice.
    """

    def __init__(self, service: str, bus: Bus, store: Store, clock: Callable[[], datetime]) -> None:
        self._service = service
        self._bus = bus
        self._processes = Processes(store, clock)
        self._me = secrets.token_hex(16)
        self._others: dict[str, tuple[datetime, int]] = {}
        """By process: when it was seen last, and how often again since it was seen first."""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look who else works on the database. Where processes with another store are noted, wait whether they live.

        This one is noted once it may work: until then it must not seem to be one that does.

        Raises:
            StartupError: they do, or the broker was not provisioned.
        """
        await self._bus.store_id(afresh=True)
        await self._look()
        if self._others:
            log.warning("presence.other_store", processes=len(self._others))
        while self._others:
            await asyncio.sleep(LOOK_EVERY_S)
            await self._look()
            if self.faults():
                raise StartupError(
                    _FOREIGN, "stop that one, or give this one a database of its own"
                )
        await self._processes.add(self._me, self._service, self._bus.last_store_id)
        self._task = asyncio.create_task(self._look_on(), name=f"{self._service}-presence")

    async def stop(self) -> None:
        """Leave."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(Transient):
            await self._processes.remove([self._me])

    def faults(self) -> list[str]:
        """Whether somebody else has taken the database."""
        is_alive = any(again >= ALIVE_LOOKS for _, again in self._others.values())
        found = [_FOREIGN] if is_alive else []
        return found + (
            [f"{self._task.get_name()} has ended"] if self._task and self._task.done() else []
        )

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
        """Note that it still works. One that was taken for gone comes back, if nobody has come instead."""
        if await self._processes.renew(self._me, self._bus.last_store_id):
            return
        if not await self._processes.with_another_store(self._bus.last_store_id):
            await self._processes.add(self._me, self._service, self._bus.last_store_id)

    async def _look(self) -> None:
        found = await self._processes.with_another_store(self._bus.last_store_id)
        if gone := [process.process_id for process in found if process.unseen_s > GONE_S]:
            await self._processes.remove(gone)
        before, self._others = self._others, {}
        for process in found:
            if process.process_id in gone:
                continue
            seen_at, again = before.get(process.process_id, (process.seen_at, 0))
            self._others[process.process_id] = process.seen_at, again + (process.seen_at != seen_at)
