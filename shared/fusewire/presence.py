"""One database, one broker: what works on a database with another broker's store is noticed, and refused."""

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from fusewire.bus import Bus, fault
from fusewire.errors import StartupError, Transient
from fusewire.store.engine import Store
from fusewire.store.processes import Process, Processes

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 3.0
GONE_LOOKS = 4
"""A process that was not seen again in so many looks is gone."""
ALIVE_LOOKS = 3
"""One that was seen again so often lives. A replica may take a moment to notice that its broker's store is new."""
_FOREIGN = "another Fusewire, with another NATS, works on this database"


@dataclass
class _Watch:
    """How often a process with another store was seen again. Its times are not compared: clocks of machines differ."""

    last: Process
    again: int = 0
    not_again: int = 0


class Presence:
    """Tells others that this process works here, and with which broker's store.

    Two stacks with a broker each on one database would publish each other's prompts, and pay for them twice.
    """

    def __init__(self, service: str, bus: Bus, store: Store, clock: Callable[[], datetime]) -> None:
        self._service = service
        self._bus = bus
        self._processes = Processes(store)
        self._clock = clock
        self._me = secrets.token_hex(16)
        self._others: dict[str, _Watch] = {}
        self._is_replaced = False
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
                raise StartupError(_FOREIGN, "stop that one, or give this one a database of its own")
        await self._processes.add(self._service, self._process())
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
        is_alive = any(watch.again >= ALIVE_LOOKS for watch in self._others.values())
        found = [_FOREIGN] if is_alive or self._is_replaced else []
        return found + ([f"{self._task.get_name()} has ended"] if self._task and self._task.done() else [])

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

    def _process(self) -> Process:
        return Process(self._me, self._bus.last_store_id, self._clock())

    async def _renew(self) -> None:
        """Note that it still works. One that was taken for gone comes back, if nobody has come instead."""
        if await self._processes.renew(self._process()):
            return
        self._is_replaced = bool(await self._processes.with_another_store(self._bus.last_store_id))
        if not self._is_replaced:
            await self._processes.add(self._service, self._process())

    async def _look(self) -> None:
        found = {process.process_id: process for process in await self._processes.with_another_store(self._bus.last_store_id)}
        self._others = {key: watch for key, watch in self._others.items() if key in found}
        for key, process in found.items():
            watch = self._others.setdefault(key, _Watch(process))
            is_again = process != watch.last
            watch.again += is_again
            watch.not_again = 0 if is_again else watch.not_again + 1
            watch.last = process
        # The first look at a process is none at whether it was seen again.
        if gone := [key for key, watch in self._others.items() if watch.not_again > GONE_LOOKS]:
            await self._processes.remove(gone)
            self._others = {key: watch for key, watch in self._others.items() if key not in gone}
